//! Azure's platform in each virtual network: starts what answers there, and ends it with the network. Not here: what
//! is answered (see [`super::dns`] and [`super::metadata`]).

use std::{collections::BTreeMap, sync::Arc};

use axum::Router;
use linux::{LinuxError, netns::Netns};
use store::Store;
use tokio::task::JoinSet;
use vnet::{
    host::{names::vnet_ns, platform::networks},
    name::ArmId,
    region::Region,
};

use super::{dns, metadata, upstream::Upstream};

/// Everything that answers at 168.63.129.16 and 169.254.169.254. Ends with this value.
pub(super) struct Platform {
    lab: String,
    store: Store,
    /// Answers `/metadata/identity`.
    identity: Option<Router>,
    upstream: Option<Arc<Upstream>>,
    /// By the namespace's name.
    serving: BTreeMap<String, JoinSet<()>>,
}

impl Platform {
    pub(super) fn new(
        lab: &str,
        store: Store,
        identity: Option<Router>,
        upstream: Option<Upstream>,
    ) -> Self {
        let (lab, upstream) = (lab.to_owned(), upstream.map(Arc::new));
        Self { lab, store, identity, upstream, serving: BTreeMap::new() }
    }

    /// Answers in the virtual networks of the region and no others. `created` are namespaces that are new, under a
    /// name that may not be.
    pub(super) fn serve(&mut self, region: &Region, created: &[String]) -> Result<(), LinuxError> {
        let wanted: BTreeMap<String, &ArmId> =
            networks(region).into_iter().map(|vnet| (vnet_ns(&self.lab, vnet), vnet)).collect();
        self.serving.retain(|name, tasks| {
            // A task that has ended has panicked: all of them start again.
            wanted.contains_key(name) && !created.contains(name) && tasks.try_join_next().is_none()
        });
        for (name, vnet) in wanted {
            if !self.serving.contains_key(&name) {
                let tasks = self.start(&name, vnet)?;
                self.serving.insert(name, tasks);
            }
        }
        Ok(())
    }

    fn start(&self, name: &str, vnet: &ArmId) -> Result<JoinSet<()>, LinuxError> {
        let namespace = Netns::open(name)?;
        let mut tasks = JoinSet::new();
        let names = dns::Server {
            store: self.store.clone(),
            vnet: vnet.clone(),
            upstream: self.upstream.clone(),
        };
        names.serve(&namespace, &mut tasks)?;
        let instances = metadata::Server {
            store: self.store.clone(),
            vnet: vnet.clone(),
            identity: self.identity.clone(),
        };
        instances.serve(&namespace, &mut tasks)?;
        Ok(tasks)
    }
}

//! What an upgrade does to a node whose turn it is: drains it, stops it, forgets it. Not here: whose turn it is,
//! which the region knows, and how a node starts (see [`super::nodes`]).

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::view;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use linux::netns::Netns;
use store::Store;
use vnet::{
    fault::Fault,
    host::names,
    model::{AgentPool, Cluster, Machine, NodeRole, Timestamp, UpgradeStep},
    region::Region,
};

use super::{ClustersError, Shared, blocking, is_leaving, report, stop_sandbox};
use crate::reconcile::{Chain, now};

/// How long after a refusal a pod is asked again to leave.
const AGAIN: Duration = Duration::from_secs(2);

/// What the loop remembers of upgrades. A loop that starts anew says events again, and Kubernetes counts them.
#[derive(Default)]
pub(super) struct Upgrades {
    told: BTreeSet<(String, &'static str)>,
    asked: Option<Instant>,
    was_blocked: Option<(String, String)>,
}

/// One cluster during a pass.
pub(super) struct Pass<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) store: &'a Store,
    pub(super) region: &'a Region,
    pub(super) cluster: &'a Cluster,
    pub(super) client: &'a Client,
}

/// Takes every node whose turn it is one step on.
pub(super) async fn advance(pass: &Pass<'_>, upgrades: &mut Upgrades) -> Result<(), ClustersError> {
    let machines = pass.region.nodes_of(&pass.cluster.meta.id);
    let mut is_any = false;
    let may_ask = upgrades.asked.is_none_or(|asked| asked.elapsed() >= AGAIN);
    for machine in machines.into_iter().filter(|machine| !is_leaving(machine)) {
        let Some(node) = machine.node() else { continue };
        let Some(pool) = pass.cluster.pools.get(&node.pool) else { continue };
        if node.is_surge && pass.cluster.mode.is_up(node.phase) {
            let message = format!(
                "Created a surge node [{} {}] for agentpool {}",
                machine.hostname, pool.name, pool.name
            );
            pass.tell(upgrades, machine, "Surge", &message).await;
        }
        match node.step {
            UpgradeStep::Draining { since } => {
                is_any = true;
                if may_ask {
                    pass.drain(upgrades, machine, pool, since).await?;
                }
            }
            UpgradeStep::Stopping => {
                is_any = true;
                pass.stop(machine).await?;
            }
            UpgradeStep::Starting => is_any = true,
            UpgradeStep::Idle => pass.tell_upgraded(upgrades, machine, node, pool).await,
        }
    }
    if may_ask {
        upgrades.asked = is_any.then(Instant::now);
    }
    if !is_any && pass.cluster.pools.values().all(|pool| pool.upgrade.is_none()) {
        upgrades.told.clear();
    }
    Ok(())
}

impl Pass<'_> {
    /// Drains a node, and says so when it is done or has taken too long.
    async fn drain(
        &self,
        upgrades: &mut Upgrades,
        machine: &Machine,
        pool: &AgentPool,
        since: Timestamp,
    ) -> Result<(), ClustersError> {
        let name = &machine.hostname;
        self.tell(upgrades, machine, "Drain", &format!("Draining node: {name}")).await;
        let drained = view::drain_node(self.client, name).await;
        let drained = drained.map_err(self.api("draining a node"))?;
        if drained.n_staying == 0 {
            tracing::info!(node = name, "drained for an upgrade");
            return report::drained(self.store, machine);
        }
        if drained.refused.is_some() {
            upgrades.was_blocked = drained.refused;
        }
        let waited = now().0.saturating_sub(since.0);
        if waited < i64::from(pool.drain_timeout_minutes) * 60_000 {
            return Ok(());
        }
        let (pod, why) = upgrades.was_blocked.take().unwrap_or_else(|| {
            ("of the node".to_owned(), "Its pods did not end in time.".to_owned())
        });
        let fault = Fault::bad(
            "PodDrainFailure",
            format!(
                "Drain node {name} failed when evicting pod {pod} failed with Too Many Requests error. This is often \
                 caused by a restrictive Pod Disruption Budget (PDB) policy. See https://aka.ms/aks/debugdrainfailures. \
                 Original error: {why}. PDB debug info: {pod} was given {} minutes.",
                pool.drain_timeout_minutes
            ),
        );
        report::failed(self.store, self.region, &self.cluster.meta.id, &fault)
    }

    /// Stops a node and forgets what it kept: its pods, its network, its place in the cluster.
    async fn stop(&self, machine: &Machine) -> Result<(), ClustersError> {
        let netns = names::machine_ns(&self.shared.places.lab, machine);
        stop_sandbox(&self.shared.places, self.shared.places.sandbox_name(&netns)).await?;
        view::delete_node(self.client, &machine.hostname)
            .await
            .map_err(self.api("removing a node"))?;
        // The fabric makes it anew: what a node's programs left in it belongs to the old one.
        blocking(move || match Netns::delete(&netns) {
            Ok(()) => Ok(()),
            Err(_) if !linux::netns::path(&netns).exists() => Ok(()),
            Err(source) => Err(ClustersError::Namespace { name: netns, source }),
        })
        .await?;
        tracing::info!(node = machine.hostname, "stopped for an upgrade");
        report::stopped(self.store, machine)
    }

    async fn tell_upgraded(
        &self,
        upgrades: &mut Upgrades,
        machine: &Machine,
        node: &NodeRole,
        pool: &AgentPool,
    ) {
        let is_new = node.image.as_ref() == Some(&pool.image(self.cluster));
        if is_new && upgrades.told.contains(&(machine.hostname.clone(), "Drain")) {
            let message = format!("Successfully upgraded node: {}", machine.hostname);
            self.tell(upgrades, machine, "Upgrade", &message).await;
        }
    }

    /// Says something about a node to whoever looks at its events; once.
    async fn tell(
        &self,
        upgrades: &mut Upgrades,
        machine: &Machine,
        reason: &'static str,
        message: &str,
    ) {
        if !upgrades.told.insert((machine.hostname.clone(), reason)) {
            return;
        }
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(message.to_owned()),
            action: reason.to_owned(),
            secondary: None,
        };
        let published = async {
            let node = Api::<Node>::all(self.client.clone()).get(&machine.hostname).await?;
            let reporter = Reporter { controller: "upgrader".to_owned(), instance: None };
            let recorder = Recorder::new(self.client.clone(), reporter);
            recorder.publish(&event, &node.object_ref(&())).await
        };
        if let Err(err) = published.await {
            tracing::warn!(node = machine.hostname, reason, error = %Chain(&err), "an event could not be published");
        }
    }

    fn api<E>(&self, action: &'static str) -> impl FnOnce(E) -> ClustersError + use<E>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let cluster = self.cluster.meta.id.name().to_owned();
        move |source| ClustersError::Api { action, cluster, source: Box::new(source) }
    }
}

/// Something that is another after every step of a cluster's nodes, and whether pods are being waited for.
pub(super) fn progress(region: &Region, id: &vnet::name::ArmId) -> (u64, bool) {
    let nodes = region.nodes_of(id);
    let draining = |machine: &&Arc<Machine>| {
        machine.node().is_some_and(|node| matches!(node.step, UpgradeStep::Draining { .. }))
    };
    let is_draining = nodes.iter().copied().any(|machine| draining(&machine));
    (nodes.iter().map(|machine| machine.meta.changed).max().unwrap_or(0), is_draining)
}

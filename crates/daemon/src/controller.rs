//! What AKS's cloud provider does in a cluster: initialises nodes, keeps kubenet's routes, makes load
//! balancers for Services, grants pod addresses, and says which destinations see a pod's own address.
//!
//! # Expected flow
//! For every cluster whose API server can be reached, four loops run over watched objects: `nodes`,
//! `grants`, `masquerade` and `services`. Each is level-triggered: a wake-up says that something changed, never what.
//!
//! # Guarantees
//! A pass that finds nothing to do writes nothing. Killed between any two writes, the next pass goes on.
//!
//! # Assumptions
//! It reaches Azure only by ARM requests ([`arm::Arm`]) and the cluster only by its API, as
//! kubernetes-sigs/cloud-provider-azure does. `grants` stands for the service side of AKS's address
//! management, which knows both; it is the one that reads the region itself.

mod access;
mod admission;
mod arm;
mod balancers;
mod grants;
mod masquerade;
mod nodes;
pub mod routes;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        events::{Event, EventType, Recorder, Reporter},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use store::Store;
use tokio::{sync::watch, task::JoinSet};
use vnet::{
    model::{NetworkMode, ProvisioningState},
    name::ArmId,
};

pub use arm::{Arm, ArmError, ArmRequest, ArmResponse, Method};

use crate::reconcile;

/// How long after the last change each loop looks again by itself.
const RESYNC: Duration = Duration::from_secs(10);

/// Why a pass failed; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The API server refused or could not be reached.
    #[error("{action}")]
    Kubernetes {
        /// What was being done, to what.
        action: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// Azure refused or could not be reached.
    #[error("{action}")]
    Azure {
        /// What was being done, to what.
        action: String,
        /// What it answered.
        #[source]
        source: ArmError,
    },
    /// Traffic to a Service cannot be let in.
    #[error("letting traffic to service {service} in: {why}")]
    Admission {
        /// The Service.
        service: String,
        /// Why not.
        why: String,
    },
    /// A Service asks for what cannot be.
    #[error("{why}")]
    Refused {
        /// Why not, in the cloud provider's words.
        why: String,
    },
    /// Azure made a public IP and said no address.
    #[error("public IP {public_ip} has no address")]
    NoAddress {
        /// Its name.
        public_ip: String,
    },
    /// A kubeconfig that cannot be used.
    #[error("reading the kubeconfig of {cluster}")]
    Kubeconfig {
        /// The cluster.
        cluster: ArmId,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The region could not be changed.
    #[error("recording addresses of {node}")]
    Store {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: Box<store::StoreError>,
    },
}

fn kubernetes(action: impl Into<String>) -> impl FnOnce(kube::Error) -> ControllerError {
    let action = action.into();
    move |source| ControllerError::Kubernetes { action, source: Box::new(source) }
}

/// Where a cluster's kubeconfig comes from: `None` until its API server is there.
pub type Credentials = Arc<dyn Fn(&ArmId) -> Option<String> + Send + Sync>;

/// Runs a controller for every cluster of the region until `store` is gone. Cancel by dropping.
pub async fn run(store: Store, arm: Arc<dyn Arm>, credentials: Credentials) {
    let mut wake = store.watch();
    let mut running: BTreeMap<ArmId, JoinSet<()>> = BTreeMap::new();
    loop {
        let region = store.snapshot();
        running.retain(|id, _| {
            region.clusters.get(id).is_some_and(|c| c.meta.state != ProvisioningState::Deleting)
        });
        for (id, cluster) in &region.clusters {
            if running.contains_key(id) || cluster.meta.state == ProvisioningState::Deleting {
                continue;
            }
            let Some(kubeconfig) = credentials(id) else { continue };
            match start(id, &kubeconfig, &store, &arm).await {
                Ok(tasks) => {
                    running.insert(id.clone(), tasks);
                }
                Err(error) => {
                    tracing::warn!(cluster = %id.name(), error = %reconcile::Chain(&error),
                        "the controller could not start; it will be tried again");
                }
            }
        }
        tokio::select! {
            woken = wake.changed() => if woken.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(1)) => (),
        }
    }
}

/// One cluster, as the loops see it.
struct Cluster {
    id: ArmId,
    client: Client,
    store: Store,
    arm: Arc<dyn Arm>,
    nodes: reflector::Store<Node>,
    services: reflector::Store<Service>,
    grants: reflector::Store<DynamicObject>,
    /// The addresses' state of pod subnets, one object each.
    subnets: reflector::Store<DynamicObject>,
    /// What AKS itself says of masquerading; at most one object.
    masquerade: reflector::Store<ConfigMap>,
    /// What a waiting pod was told last, by its UID: an event is not repeated while nothing changes.
    told: Mutex<BTreeMap<String, String>>,
    /// Which annotations without effect a Service was warned of, by its UID.
    warned: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// A recorder for each text of an event: one alone counts events of one reason about one object as one, and shows
    /// the first one's text for ever.
    recorders: Mutex<BTreeMap<String, Recorder>>,
}

/// How many texts are remembered at a time.
const TEXTS: usize = 256;

impl Cluster {
    /// Waits until every kind of object has been listed once.
    async fn is_known(&self) -> Result<(), reflector::store::WriterDropped> {
        self.nodes.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        let mode = self.store.snapshot().clusters.get(&self.id).map(|cluster| cluster.mode);
        if matches!(mode, Some(NetworkMode::Azure | NetworkMode::Overlay)) {
            self.grants.wait_until_ready().await?;
            self.subnets.wait_until_ready().await?;
        }
        self.masquerade.wait_until_ready().await?;
        Ok(())
    }

    /// Publishes a Kubernetes event about `object`.
    async fn event<K>(&self, object: &K, type_: EventType, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let recorder = self.recorder(note);
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: reason.to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(cluster = %self.id.name(), reason, error = %reconcile::Chain(&error),
                "an event could not be published");
        }
    }
}

impl Cluster {
    /// The recorder of events that say `note`.
    fn recorder(&self, note: &str) -> Recorder {
        const NEVER_POISONED: &str = "nothing panics while it holds the recorders";
        let mut recorders = self.recorders.lock().expect(NEVER_POISONED);
        if recorders.len() >= TEXTS && !recorders.contains_key(note) {
            recorders.clear();
        }
        let made = || {
            let controller = "cloud-controller-manager".to_owned();
            Recorder::new(self.client.clone(), Reporter { controller, instance: None })
        };
        recorders.entry(note.to_owned()).or_insert_with(made).clone()
    }
}

/// `NodeNetworkConfig`, the object by which a node asks for pod addresses
/// (Azure/azure-container-networking, `crd/nodenetworkconfig/api/v1alpha`).
fn node_network_config() -> ApiResource {
    let kind = GroupVersionKind::gvk("acn.azure.com", "v1alpha", "NodeNetworkConfig");
    ApiResource::from_gvk_with_plural(&kind, "nodenetworkconfigs")
}

/// `ClusterSubnetState`, which says whether a pod subnet is exhausted
/// (Azure/azure-container-networking, `crd/clustersubnetstate/api/v1alpha1`).
fn cluster_subnet_state() -> ApiResource {
    let kind = GroupVersionKind::gvk("acn.azure.com", "v1alpha1", "ClusterSubnetState");
    ApiResource::from_gvk_with_plural(&kind, "clustersubnetstates")
}

async fn start(
    id: &ArmId,
    kubeconfig: &str,
    store: &Store,
    arm: &Arc<dyn Arm>,
) -> Result<JoinSet<()>, ControllerError> {
    let wrong = |source| ControllerError::Kubeconfig { cluster: id.clone(), source };
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).map_err(wrong)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(wrong)?;
    let client = Client::try_from(config).map_err(kubernetes("making a client"))?;

    let mut tasks = JoinSet::new();
    let (changed, wake) = watch::channel(());
    let changed = Arc::new(changed);
    let grant_kind = node_network_config();
    let grants = Api::namespaced_with(client.clone(), "kube-system", &grant_kind);
    let subnet_kind = cluster_subnet_state();
    let subnets = Api::namespaced_with(client.clone(), "kube-system", &subnet_kind);
    let maps = Api::namespaced(client.clone(), "kube-system");
    let ours = watcher::Config::default()
        .fields(&format!("metadata.name={}", ::cluster::masquerade::RECONCILED));
    let cluster = Arc::new(Cluster {
        id: id.clone(),
        store: store.clone(),
        arm: arm.clone(),
        nodes: mirror(&mut tasks, Api::all(client.clone()), (), &changed),
        services: mirror(&mut tasks, Api::all(client.clone()), (), &changed),
        grants: mirror(&mut tasks, grants, grant_kind, &changed),
        subnets: mirror(&mut tasks, subnets, subnet_kind, &changed),
        masquerade: mirror_some(&mut tasks, maps, (), ours, &changed),
        told: Mutex::default(),
        warned: Mutex::default(),
        recorders: Mutex::default(),
        client,
    });

    // A change of the region (a node, a granted batch) wakes the loops as an object's change does.
    let mut region = store.watch();
    tasks.spawn({
        let changed = changed.clone();
        async move {
            while region.changed().await.is_ok() {
                changed.send_replace(());
            }
        }
    });
    tasks.spawn(async move {
        // Before the first lists are there, everything would look gone. One task waits for all loops: of several
        // that wait for one list, a reflector wakes only the last.
        if cluster.is_known().await.is_err() {
            return;
        }
        macro_rules! run {
            ($module:ident) => {{
                let pass = || {
                    let cluster = cluster.clone();
                    async move { $module::pass(&cluster).await }
                };
                reconcile::run(stringify!($module), pass, wake.clone(), RESYNC)
            }};
        }
        tokio::join!(run!(nodes), run!(grants), run!(masquerade), run!(services));
    });
    Ok(tasks)
}

/// Keeps a local copy of every object that `api` lists, and wakes the loops when one changes.
fn mirror<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    kind: K::DynamicType,
    changed: &Arc<watch::Sender<()>>,
) -> reflector::Store<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    mirror_some(tasks, api, kind, watcher::Config::default(), changed)
}

/// The same for the objects that `which` selects.
fn mirror_some<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    kind: K::DynamicType,
    which: watcher::Config,
    changed: &Arc<watch::Sender<()>>,
) -> reflector::Store<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    let writer = reflector::store::Writer::new(kind);
    let reader = writer.as_reader();
    let changed = changed.clone();
    tasks.spawn(async move {
        let events = watcher(api, which).default_backoff();
        let mut events = std::pin::pin!(reflector::reflector(writer, events));
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => {
                    changed.send_replace(());
                }
                Err(error) => {
                    tracing::debug!(error = %reconcile::Chain(&error), "a watch broke; it is made again");
                }
            }
        }
    });
    reader
}

/// `namespace/name`.
fn full_name(object: &impl ResourceExt) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// The reference of an object of a reflector, for a look-up.
fn reference(name: &str) -> ObjectRef<Node> {
    ObjectRef::new(name)
}

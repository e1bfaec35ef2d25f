//! Makes control planes and nodes run as the region says: real Kubernetes in sandboxes, or nothing but its
//! states.
//!
//! # Expected flow
//!
//! Every cluster of the region has a task (`keeper`). A pass of it starts what should run in the network
//! namespaces that the fabric has made, puts add-ons into the cluster, and reports how far its nodes
//! are; when all is as asked it reports `ClusterReal`. One more task (`registry`)
//! runs the image registry and fills it.
//!
//! # Guarantees
//!
//! - Level-triggered: a pass compares what should be with what is. Killed at any instant and started
//!   again, it finds running sandboxes and leaves them as they are.
//! - A machine leaves the region only when nothing of it runs any more.
//!
//! # Assumptions
//!
//! - The fabric makes namespaces and keeps them while the region has the machine.
//! - Kubernetes' programs are in the cache (see [`cluster::install`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use cluster::{
    images::{ImageError, REGISTRY_PORT},
    install,
};
use linux::{
    LinuxError,
    netns::Netns,
    sandbox::{Sandbox, SandboxError},
};
use store::Store;
use tokio::{sync::watch, task::JoinSet};
use vnet::{
    host::names,
    model::{Dataplane, Machine, NetworkMode, NodePhase, ProvisioningState},
    name::ArmId,
    region::Region,
};

mod cilium;
mod keeper;
mod network_only;
mod nodes;
mod places;
mod pods;
mod proxy;
mod records;
mod registry;
mod report;
mod seed;
mod simulated;
mod upgrades;
mod upstream;

pub use network_only::{PodView, PodsDone, PodsError, RunPods};
use places::Places;
pub use pods::PodAt;

/// How long after the last change the region is looked at again.
const RESYNC: Duration = Duration::from_secs(2);

/// How clusters run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Real Kubernetes.
    Kubernetes,
    /// Network namespaces with an agent each, and pods without Kubernetes.
    NetworkOnly,
    /// In the region only: no process, no packet.
    Simulated,
}

/// A lab, as far as its clusters need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The lab's name.
    pub lab: String,
    /// How clusters run.
    pub nodes: Nodes,
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What does not.
    pub run_dir: PathBuf,
    /// Logs.
    pub log_dir: PathBuf,
    /// Programs and images, shared by labs.
    pub cache_dir: PathBuf,
    /// The version of Kubernetes that clusters get unless they ask for another.
    pub kubernetes: String,
}

/// Why a cluster is not what it should be, for now.
#[derive(Debug, thiserror::Error)]
pub enum ClustersError {
    /// A file of the lab's.
    #[error("cannot {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A sandbox does not start or stop.
    #[error("computer `{name}`")]
    Sandbox {
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: SandboxError,
    },
    /// A network namespace cannot be used.
    #[error("network namespace of `{name}`")]
    Namespace {
        /// Whose.
        name: String,
        /// What is wrong.
        #[source]
        source: LinuxError,
    },
    /// Certificates cannot be made or read.
    #[error("certificates of `{name}`")]
    Certificates {
        /// Whose.
        name: String,
        /// What is wrong.
        #[source]
        source: cluster::pki::PkiError,
    },
    /// The cluster's API refused, or cannot be reached.
    #[error("{action} in cluster `{cluster}`")]
    Api {
        /// What was being done.
        action: &'static str,
        /// The cluster's name.
        cluster: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Kubernetes' programs are not there.
    #[error(
        "Kubernetes {version} is not installed: `{missing}` does not exist \
         (`aksnet kubernetes install --version {version}` gets it)"
    )]
    Programs {
        /// The wanted version.
        version: String,
        /// The first file that is missing.
        missing: PathBuf,
    },
    /// Cilium's images cannot be installed, made or pushed.
    #[error("Cilium {version} cannot be had")]
    Cilium {
        /// The wanted version.
        version: String,
        /// Why not.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A node's agent cannot be started or go on.
    #[error("agent of node `{node}`")]
    Agent {
        /// The node.
        node: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An image cannot be made, read or pushed.
    #[error("images")]
    Image(#[from] ImageError),
    /// The region does not take a report.
    #[error("reporting on `{target}`")]
    Report {
        /// What it is about.
        target: ArmId,
        /// Why not.
        #[source]
        source: Box<store::StoreError>,
    },
}

/// The clusters of a lab. Clones are the same.
#[derive(Clone)]
pub struct Clusters(Arc<Shared>);

/// What all tasks see.
struct Shared {
    places: Places,
    nodes: Nodes,
    /// Kubeconfigs of clusters whose API server has answered.
    kubeconfigs: Mutex<BTreeMap<ArmId, String>>,
    /// Whether the registry has, or will never have, the images that clusters need.
    images: watch::Sender<bool>,
    /// How far Cilium's images are, for clusters that ask for them.
    cilium: cilium::Wanted,
    /// Once its loop runs.
    network_only: OnceLock<Arc<network_only::NetworkOnly>>,
}

impl Shared {
    fn kubeconfigs(&self) -> std::sync::MutexGuard<'_, BTreeMap<ArmId, String>> {
        // Only whole values are put in.
        self.kubeconfigs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clusters {
    /// The clusters of a lab; nothing happens before [`run`](Self::run).
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let places = Places {
            lab: settings.lab,
            state: settings.state_dir,
            run: settings.run_dir,
            logs: settings.log_dir,
            cache: settings.cache_dir,
            aksnet: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("aksnet")),
        };
        Self(Arc::new(Shared {
            places,
            nodes: settings.nodes,
            kubeconfigs: Mutex::default(),
            images: watch::Sender::new(false),
            cilium: cilium::Wanted::default(),
            network_only: OnceLock::new(),
        }))
    }

    /// The same clusters, with another program than this one as their sandboxes' first process and their
    /// nodes' agent. For tests.
    #[must_use]
    pub fn with_program(settings: Settings, aksnet: &Path) -> Self {
        let mut clusters = Self::new(settings);
        if let Some(shared) = Arc::get_mut(&mut clusters.0) {
            aksnet.clone_into(&mut shared.places.aksnet);
        }
        clusters
    }

    /// The administrator's kubeconfig of a cluster, once its API server is there. It works as it is on this
    /// machine.
    #[must_use]
    pub fn credentials(&self, cluster: &ArmId) -> Option<String> {
        self.0.kubeconfigs().get(cluster).cloned()
    }

    /// The same, also while the API server has not answered this process yet: what was kept when it last did.
    /// Azure gives credentials of every cluster that was made.
    #[must_use]
    pub fn kept_credentials(&self, cluster: &ArmId) -> Option<String> {
        let places = &self.0.places;
        let netns = names::control_plane_ns(&places.lab, cluster);
        self.credentials(cluster)
            .or_else(|| records::kept_kubeconfig(&places.state_of(places.sandbox_name(&netns))))
    }

    /// The pid of the first process of the computer that this machine is, where it runs Kubernetes.
    #[must_use]
    pub fn first_process(&self, machine: &Machine) -> Option<i32> {
        let places = &self.0.places;
        Some(places.sandbox_in(&names::machine_ns(&places.lab, machine))?.pid())
    }

    /// Why the Cilium that clusters would get has no Envoy, which enforces policies of layer 7, and what would do;
    /// `None` where it has one. Blocking.
    #[must_use]
    pub fn why_no_envoy(&self) -> Option<String> {
        cilium::why_no_envoy(&self.0)
    }

    /// What is being done that takes minutes and clusters wait for, a sentence each.
    #[must_use]
    pub fn underway(&self) -> Vec<String> {
        self.0.cilium.underway()
    }

    /// Runs until the store is gone. Cancel by dropping: sandboxes go on.
    pub async fn run(&self, store: Store) {
        match self.0.nodes {
            Nodes::Simulated => simulated::run(&store).await,
            Nodes::NetworkOnly => network_only::run(&self.0, &store).await,
            Nodes::Kubernetes => self.run_kubernetes(store).await,
        }
    }

    async fn run_kubernetes(&self, store: Store) {
        let mut tasks = JoinSet::new();
        tasks.spawn(registry::keep(self.0.clone()));
        tasks.spawn(upstream::keep(self.0.places.lab.clone()));
        let mut kept: BTreeMap<ArmId, tokio::task::AbortHandle> = BTreeMap::new();
        let mut wake = store.watch();
        loop {
            wake.mark_unchanged();
            let region = store.snapshot();
            kept.retain(|_, task| !task.is_finished());
            if region.clusters.values().any(|cluster| cluster.dataplane == Dataplane::Cilium) {
                // Begun while control planes start. Their keepers ask again, and hear of errors.
                let _told_to_keepers = cilium::ensure(&self.0, install::CILIUM_VERSION);
            }
            for id in region.clusters.keys() {
                kept.entry(id.clone()).or_insert_with(|| {
                    tasks.spawn(keeper::keep(self.0.clone(), store.clone(), id.clone()))
                });
            }
            stop_strays(&self.0.places, &region).await;
            tokio::select! {
                woken = wake.changed() => if woken.is_err() { return },
                Some(_) = tasks.join_next() => {}
                () = tokio::time::sleep(RESYNC) => {}
            }
        }
    }
}

/// Stops sandboxes that belong to nothing in the region, such as those of a lab that lost its state.
async fn stop_strays(places: &Places, region: &Region) {
    let run_dir = places.run_dir();
    let mut known: BTreeSet<String> = BTreeSet::from([registry::NAME.to_owned()]);
    let control_planes = region.clusters.keys().map(|id| names::control_plane_ns(&places.lab, id));
    let machines = region.machines.values().map(|machine| names::machine_ns(&places.lab, machine));
    known
        .extend(control_planes.chain(machines).map(|netns| places.sandbox_name(&netns).to_owned()));
    for name in Sandbox::list(&run_dir).into_iter().filter(|name| !known.contains(name)) {
        tracing::info!(sandbox = name, "stopping what nothing asks for");
        let stopped = stop_sandbox(places, &name).await;
        if let Err(err) = stopped {
            tracing::warn!(error = %crate::reconcile::Chain(&err), "it will be tried again");
        }
    }
}

/// Stops a sandbox and forgets what it kept. Success when there is none.
async fn stop_sandbox(places: &Places, name: &str) -> Result<(), ClustersError> {
    let (run_dir, state) = (places.run_dir(), places.state_of(name));
    let logs = places.logs.join(name);
    let name = name.to_owned();
    blocking(move || {
        Sandbox::stop_named(&run_dir, &name)
            .map_err(|source| ClustersError::Sandbox { name, source })?;
        for folder in [state, logs] {
            match std::fs::remove_dir_all(&folder) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ClustersError::File { action: "remove", path: folder, source });
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await
}

/// Runs what blocks on a thread made for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Stops everything of a lab's clusters, whether a daemon runs or not. What they keep stays.
pub fn down(lab: &str, run_dir: &Path) -> Result<(), ClustersError> {
    network_only::down(run_dir)?;
    let run_dir = places::run_dir(run_dir);
    tracing::debug!(lab, "stopping sandboxes");
    let stopping = Sandbox::list(&run_dir).into_iter().map(|name| {
        let run_dir = run_dir.clone();
        thread::spawn(move || {
            Sandbox::stop_named(&run_dir, &name)
                .map_err(|source| ClustersError::Sandbox { name, source })
        })
    });
    // All at once, then the first error.
    let stopping: Vec<_> = stopping.collect();
    let results = stopping.into_iter().map(|thread| match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Gives the images of an archive to the registry of a running lab; the answer is their names.
pub fn import_image(lab: &str, archive: &Path) -> Result<Vec<String>, ClustersError> {
    let folder = std::env::temp_dir().join(format!("aksnet-import-{}", std::process::id()));
    let file = |action, source| ClustersError::File { action, path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(|source| file("make", source))?;
    let imported = import(lab, archive, &folder);
    std::fs::remove_dir_all(&folder).map_err(|source| file("remove", source))?;
    imported
}

fn import(lab: &str, archive: &Path, folder: &Path) -> Result<Vec<String>, ClustersError> {
    let images = cluster::images::read_archive(archive, folder)?;
    let address = SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT);
    in_internet(lab, move || {
        let mut pushed = Vec::new();
        for (references, image) in &images {
            for reference in references {
                cluster::images::push(address, reference, image)?;
                pushed.push(reference.to_string());
            }
        }
        Ok(pushed)
    })
}

/// Does something in the network of the lab's internet.
fn in_internet<T: Send>(
    lab: &str,
    work: impl FnOnce() -> Result<T, ImageError> + Send,
) -> Result<T, ClustersError> {
    let name = names::internet_ns(lab);
    let namespace = |source| ClustersError::Namespace { name: name.clone(), source };
    let done = Netns::open(&name).map_err(namespace)?.run(work).map_err(namespace)?;
    Ok(done?)
}

/// The phase in which a node of this mode is as it should be.
fn wanted_phase(mode: NetworkMode) -> NodePhase {
    match mode {
        NetworkMode::None => NodePhase::NotReady,
        NetworkMode::Kubenet | NetworkMode::Azure | NetworkMode::Overlay => NodePhase::Ready,
    }
}

fn is_leaving(machine: &Machine) -> bool {
    machine.meta.state == ProvisioningState::Deleting
}

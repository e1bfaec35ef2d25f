//! Clusters whose nodes are network namespaces with an agent, and nothing else: no Kubernetes, no process.
//!
//! # Expected flow
//! One loop for all clusters. A node whose namespace the fabric has made gets its agent, which works on threads
//! of the daemon's (`member`); when all nodes of a cluster have theirs, the cluster is real. Pods are made
//! and removed as a container runtime would (`pods`): a namespace, then the CNI plugin, executed on the node
//! (`runtime`); they move when their node goes (`upgrades`). One process answers in all of them (`echo`).
//!
//! # Guarantees
//! - A pod is written down before anything of it is made and struck out after everything of it is gone. Killed
//!   at any instant and started again, the daemon finishes what it began; pods that run are not disturbed, and
//!   answer all the time.
//! - A node leaves the region only when no pod of it is left.
//!
//! # Assumptions
//! The fabric makes namespaces and keeps them while the region has the machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use linux::{echo::Voice, netns::Folder};
use store::Store;
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use vnet::{
    addr::Prefix,
    model::{Cluster, Destination, Machine, NetworkMode, ProvisioningState, UpgradeStep},
    region::Region,
};

use super::{
    ClustersError, RESYNC, Shared, blocking, is_leaving, places::Places, report, wanted_phase,
};
use crate::{hands::Hands, reconcile::Chain};

mod addresses;
mod echo;
mod member;
mod pods;
mod records;
mod runtime;
mod upgrades;

use addresses::Exhaustion;
use echo::Echo;
use member::{Member, NodePlaces};
pub use pods::{PodView, PodsDone, PodsError, RunPods};
use records::{Key, Pod, PodPhase};

/// Threads for agents. Two processors are kept busy by fewer; some of them wait for the kernel's one lock.
const AGENT_HANDS: usize = 4;
/// Threads that each wait for one plugin.
const RUNTIME_HANDS: usize = 8;
/// Everything that the loop and the commands share.
pub(super) struct NetworkOnly {
    places: Places,
    agents: Hands,
    plugins: Hands,
    echo: Echo,
    folder: Folder,
    bell: Arc<Notify>,
    exhaustion: Exhaustion,
    /// Nodes that have what they need, by host name.
    members: Mutex<BTreeMap<String, Seat>>,
    pods: Mutex<BTreeMap<Key, Pod>>,
    /// The containers of pods whose removal is under way.
    ending: Mutex<BTreeSet<String>>,
}

/// A node that has what it needs.
struct Seat {
    /// The number of its network namespace. Another one is a node that was made anew.
    netns: u64,
    /// Its agent; `None` when it needs none.
    member: Option<Member>,
}

/// Where nodes keep their things, below a lab's running state.
fn nodes_dir(run: &Path) -> PathBuf {
    run.join("nodes")
}

/// Where pods' namespaces are.
fn pods_dir(run: &Path) -> PathBuf {
    run.join("pods")
}

/// Removes all pods of a lab at once, and ends what answers in them, whether a daemon runs or not.
pub(super) fn down(run: &Path) -> Result<(), ClustersError> {
    echo::end(run);
    let folder = pods_dir(run);
    Folder::remove(&folder)
        .map_err(|source| ClustersError::Namespace { name: folder.display().to_string(), source })
}

/// Keeps all clusters until the store is gone.
pub(super) async fn run(shared: &Arc<Shared>, store: &Store) {
    let own = loop {
        match NetworkOnly::start(shared.places.clone()) {
            Ok(own) => break Arc::new(own),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "pods cannot be kept; it will be tried again");
                sleep(RESYNC).await;
            }
        }
    };
    own.recover();
    // Set once: this is the only place.
    let _ = shared.network_only.set(own.clone());
    let mut wake = store.watch();
    loop {
        wake.mark_unchanged();
        if let Err(error) = own.pass(store).await {
            tracing::warn!(error = %Chain(&error), "reconciliation failed; it will be tried again");
        }
        tokio::select! {
            woken = wake.changed() => if woken.is_err() { return },
            () = own.bell.notified() => {}
            () = sleep(RESYNC) => {}
        }
    }
}

impl NetworkOnly {
    fn start(places: Places) -> Result<Self, ClustersError> {
        let threads = |name, n| {
            Hands::new(name, n).map_err(|source| ClustersError::File {
                action: "start threads for",
                path: places.run.clone(),
                source,
            })
        };
        let (agents, plugins) =
            (threads("agents", AGENT_HANDS)?, threads("runtime", RUNTIME_HANDS)?);
        let path = pods_dir(&places.run);
        let namespace =
            |source| ClustersError::Namespace { name: path.display().to_string(), source };
        linux::echo::raise_open_files().map_err(namespace)?;
        let folder = Folder::ensure(&path).map_err(namespace)?;
        let echo = Echo::new(&places);
        Ok(Self {
            places,
            agents,
            plugins,
            echo,
            folder,
            bell: Arc::default(),
            exhaustion: Exhaustion::default(),
            members: Mutex::default(),
            pods: Mutex::default(),
            ending: Mutex::default(),
        })
    }

    /// Takes up the pods of a daemon that has ended. What it was in the middle of is undone: whoever asked for
    /// it has got no answer.
    fn recover(&self) {
        let nodes = fs::read_dir(nodes_dir(&self.places.run)).into_iter().flatten().flatten();
        let found = nodes.flat_map(|node| records::read_all(&node.path().join("pods")));
        let mut known = BTreeSet::new();
        {
            let mut pods = self.pods();
            for mut pod in found {
                known.insert(pod.container.clone());
                if pod.phase == PodPhase::Creating || !self.folder.has(&pod.container) {
                    pod.phase = PodPhase::Terminating;
                }
                pods.insert(pod.key(), pod);
            }
        }
        // A namespace is made after its record and goes before it, so one without is a stranger's or a bug's.
        for name in self.folder.list().unwrap_or_default() {
            if !known.contains(&name)
                && let Err(error) = self.folder.delete(&name)
            {
                tracing::warn!(name, error = %Chain(&error), "a namespace of no pod stays");
            }
        }
    }

    async fn pass(self: &Arc<Self>, store: &Store) -> Result<(), ClustersError> {
        let region = store.snapshot();
        self.keep_echo().await?;
        self.start_members(store, &region).await;
        let mut staying = BTreeSet::new();
        for (id, cluster) in &region.clusters {
            if cluster.meta.state != ProvisioningState::Deleting {
                let nodes = region.nodes_of(id);
                let nodes = nodes.into_iter().filter(|machine| !is_leaving(machine));
                staying.extend(nodes.map(|machine| machine.hostname.clone()));
            }
        }
        self.clear_nodes_but(&region, &staying).await;
        self.remove_nodes_but(&staying)?;
        self.upgrade(store, &region).await?;
        let busy: BTreeSet<String> = self.pods().values().map(|pod| pod.node.clone()).collect();
        for (id, cluster) in &region.clusters {
            let nodes = region.nodes_of(id);
            if cluster.meta.state == ProvisioningState::Deleting {
                if !nodes.iter().any(|machine| busy.contains(&machine.hostname)) {
                    report::gone(store, id)?;
                }
                continue;
            }
            let mut is_real = true;
            for machine in nodes {
                if is_leaving(machine) {
                    is_real &= !busy.contains(&machine.hostname);
                } else if !is_away(machine)
                    && self.is_ready(&machine.hostname)
                    && is_plugged_in(&region, cluster, machine)
                {
                    report::node(store, machine, wanted_phase(cluster.mode))?;
                } else {
                    is_real = false;
                }
            }
            if is_real {
                report::real(store, &region, id)?;
            }
        }
        Ok(())
    }

    /// Starts what answers in pods, or starts it again after it was killed.
    async fn keep_echo(self: &Arc<Self>) -> Result<(), ClustersError> {
        let voices: Vec<Voice> = {
            let pods = self.pods();
            let running = pods.values().filter(|pod| pod.phase == PodPhase::Running);
            running.filter_map(|pod| self.voice(pod)).collect()
        };
        let own = self.clone();
        blocking(move || {
            // Without pods there is nothing to answer; the first one starts it.
            if voices.is_empty() || own.echo.is_alive() {
                return Ok(());
            }
            tracing::info!(n_pods = voices.len(), "starting what answers in pods");
            own.echo.be_exactly(&voices)
        })
        .await
    }

    fn voice(&self, pod: &Pod) -> Option<Voice> {
        Some(Voice {
            id: pod.container.clone(),
            name: pod.name.clone(),
            address: pod.address?,
            netns: self.folder.path_of(&pod.container),
        })
    }

    /// Gives every node its agent that has a namespace and none.
    async fn start_members(self: &Arc<Self>, store: &Store, region: &Region) {
        let mut starting = JoinSet::new();
        for (id, cluster) in &region.clusters {
            if cluster.meta.state == ProvisioningState::Deleting {
                continue;
            }
            // An agent wants its node's NIC; when that is real, it is there.
            let wired = |machine: &&Arc<Machine>| {
                !is_leaving(machine) && !is_stopping(machine) && has_nic(region, machine)
            };
            for machine in region.nodes_of(id).into_iter().filter(wired) {
                let places = self.node_places(&machine.hostname);
                let Some(netns) = places.namespace_number() else { continue };
                let is_there = |seat: &Seat| seat.netns == netns;
                if self.members().get(&machine.hostname).is_some_and(is_there) {
                    continue;
                }
                self.members().remove(&machine.hostname);
                let (own, store) = (self.clone(), store.clone());
                let (cluster, machine) = (cluster.clone(), machine.clone());
                starting.spawn(async move {
                    let shared = (&own.bell, &own.exhaustion);
                    let member =
                        Member::start(&places, &own.agents, &store, &cluster, &machine, shared)
                            .await?;
                    own.members().insert(machine.hostname.clone(), Seat { netns, member });
                    Ok::<(), ClustersError>(())
                });
            }
        }
        while let Some(started) = starting.join_next().await {
            match started {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "a node has no agent; it will be tried again");
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }

    fn is_ready(&self, hostname: &str) -> bool {
        let members = self.members();
        members.get(hostname).is_some_and(|it| it.member.as_ref().is_none_or(Member::is_ready))
    }

    /// Ends the agents of nodes that go, and forgets what they kept, once their pods are gone.
    fn remove_nodes_but(&self, staying: &BTreeSet<String>) -> Result<(), ClustersError> {
        let busy: BTreeSet<String> = self.pods().values().map(|pod| pod.node.clone()).collect();
        let stays = |name: &String| staying.contains(name) || busy.contains(name);
        self.members().retain(|name, _| stays(name));
        let folders = fs::read_dir(nodes_dir(&self.places.run)).into_iter().flatten().flatten();
        for folder in folders {
            let Ok(name) = folder.file_name().into_string() else { continue };
            if !stays(&name) {
                tracing::info!(node = name, "removing");
                self.forget_node(&name)?;
            }
        }
        Ok(())
    }

    fn forget_node(&self, hostname: &str) -> Result<(), ClustersError> {
        let path = self.node_places(hostname).folder;
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ClustersError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn node_places(&self, hostname: &str) -> NodePlaces {
        NodePlaces::new(&self.places.lab, &self.places.run, hostname)
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<Key, Pod>> {
        // Only whole values are put in.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Seat>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_real(state: ProvisioningState) -> bool {
    state == ProvisioningState::Succeeded
}

/// Whether an upgrade is about to stop a node.
fn is_stopping(machine: &Machine) -> bool {
    machine.node().is_some_and(|node| node.step == UpgradeStep::Stopping)
}

/// Whether an upgrade keeps pods from a node.
fn is_away(machine: &Machine) -> bool {
    let is_draining = |step| matches!(step, UpgradeStep::Draining { .. });
    is_stopping(machine) || machine.node().is_some_and(|node| is_draining(node.step))
}

fn has_nic(region: &Region, machine: &Machine) -> bool {
    region.nics.get(&machine.nic).is_some_and(|nic| is_real(nic.meta.state))
}

/// Whether the fabric has made a node's NIC real, and what its pods need of it. A node of kubenet is not Ready
/// before its route is there (Kubernetes' condition `NetworkUnavailable`).
fn is_plugged_in(region: &Region, cluster: &Cluster, machine: &Machine) -> bool {
    let has_route = || {
        let table = region.route_tables.get(cluster.route_table.as_ref()?)?;
        let ranges = machine.node()?.pod_ranges();
        let leads = |range: &Prefix| {
            table.routes.values().any(|route| route.prefix == Destination::Prefix(*range))
        };
        Some(!ranges.is_empty() && ranges.iter().all(leads) && is_real(table.meta.state))
    };
    has_nic(region, machine)
        && (cluster.mode != NetworkMode::Kubenet || has_route().unwrap_or(false))
}

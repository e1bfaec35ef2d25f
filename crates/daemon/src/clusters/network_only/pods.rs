//! Pods of network-only clusters: placed, made through the CNI plugin as a container runtime would, shown, removed. Not
//! here: nodes, and what becomes of pods whose node goes (see `upgrades`).

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use store::Store;
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;
use vnet::{
    model::{Cluster, Machine, ProvisioningState},
    name::Name,
    pods::spread::{Full, Room, spread},
    region::Region,
};

use super::{
    NetworkOnly, is_away,
    member::NodePlaces,
    records::{self, Pod, PodPhase},
    runtime::{self, Container, Network, RuntimeError},
};
use crate::{
    clusters::{Clusters, ClustersError, Nodes, is_leaving, pods::PodAt},
    reconcile::{Chain, now},
};

/// How long an address is waited for: a batch of a pod subnet takes a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a plugin that said "try again" is.
const AGAIN: Duration = Duration::from_millis(50);
/// Debian's reference plugins, for configurations that name them.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The most characters of a pod's name: a DNS label.
const LONGEST_NAME: usize = 63;

/// Why pods cannot be run or deleted.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The lab has other nodes.
    #[error("pods are made by `kubectl` here: only a lab of `--nodes network-only` has its own")]
    OtherNodes,
    /// The loop has not begun yet.
    #[error("the lab is still starting; try again")]
    Starting,
    /// Nothing is called so.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// Cluster, node, pod.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Several are.
    #[error("there are several {what} called `{name}`: {choices}")]
    Ambiguous {
        /// Clusters, pods.
        what: &'static str,
        /// The name.
        name: String,
        /// What would be clear.
        choices: String,
    },
    /// A name is no name.
    #[error(
        "`{name}` cannot be a pod's name: 1 to 63 of a-z, 0-9 and `-`, a letter or digit at both ends"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("cluster `{cluster}` has a pod `{name}` already")]
    Taken {
        /// The cluster's name.
        cluster: String,
        /// The pod's name.
        name: String,
    },
    /// No place.
    #[error("cluster `{cluster}` (maxPods of its nodes)")]
    Full {
        /// The cluster's name.
        cluster: String,
        /// How much place there is.
        #[source]
        source: Full,
    },
}

/// Pods that are asked for.
#[derive(Clone, Debug)]
pub struct RunPods {
    /// The cluster's name.
    pub cluster: String,
    /// Their names, none twice.
    pub names: Vec<String>,
    /// The node's host name; spread over all nodes unless given.
    pub node: Option<String>,
    /// Their labels.
    pub labels: BTreeMap<String, String>,
}

/// What became of pods: those for which it was done, and a sentence for each for which it was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodsDone {
    /// In the order asked.
    pub pods: Vec<PodView>,
    /// Why not.
    pub failures: Vec<String>,
}

/// A pod as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its cluster's name.
    pub cluster: String,
    /// The cluster's resource group.
    pub resource_group: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: Option<String>,
    /// Its address of IPv6, in dual-stack clusters.
    pub address_v6: Option<String>,
    /// `Creating`, `Running`, `Terminating`.
    pub phase: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The path of its network namespace.
    pub netns: PathBuf,
}

impl NetworkOnly {
    fn container(&self, pod: &Pod) -> Container {
        let plugin = self.places.cni_plugin();
        let own = plugin.parent().map(Path::to_owned);
        Container {
            id: pod.container.clone(),
            netns: self.folder.path_of(&pod.container),
            pod: pod.name.clone(),
            search: own.into_iter().chain([PathBuf::from(REFERENCE_PLUGINS)]).collect(),
        }
    }

    /// Chooses nodes for pods and takes their names, all of them or none.
    pub(super) fn place(
        &self,
        region: &Region,
        cluster: &Cluster,
        asked: &RunPods,
    ) -> Result<Vec<Pod>, PodsError> {
        let id = &cluster.meta.id;
        let nodes: Vec<&Arc<Machine>> = region
            .nodes_of(id)
            .into_iter()
            .filter(|machine| !is_leaving(machine) && !is_away(machine))
            .filter(|machine| self.is_ready(&machine.hostname))
            .filter(|machine| asked.node.as_ref().is_none_or(|node| *node == machine.hostname))
            .collect();
        if let (Some(node), true) = (&asked.node, nodes.is_empty()) {
            return Err(PodsError::NotFound { what: "ready node", name: node.clone() });
        }
        if let Some(name) = asked.names.iter().find(|name| !is_name(name)) {
            return Err(PodsError::Name { name: name.clone() });
        }
        let mut pods = self.pods();
        let is_taken = |name: &&String| pods.contains_key(&(id.clone(), (*name).clone()));
        if let Some(name) = asked.names.iter().find(is_taken) {
            let cluster = id.name().to_owned();
            return Err(PodsError::Taken { cluster, name: name.clone() });
        }
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for pod in pods.values() {
            *used.entry(pod.node.as_str()).or_default() += 1;
        }
        let room = |machine: &&Arc<Machine>| Room {
            used: used.get(machine.hostname.as_str()).copied().unwrap_or_default(),
            capacity: machine
                .node()
                .and_then(|node| cluster.pools.get(&node.pool))
                .map_or(0, |pool| pool.max_pods),
        };
        let rooms: Vec<Room> = nodes.iter().map(room).collect();
        let placed = spread(&rooms, asked.names.len())
            .map_err(|source| PodsError::Full { cluster: id.name().to_owned(), source })?;
        let chosen = placed.into_iter().filter_map(|index| nodes.get(index));
        let new: Vec<Pod> = asked
            .names
            .iter()
            .zip(chosen)
            .map(|(name, machine)| Pod {
                version: 1,
                name: name.clone(),
                cluster: id.clone(),
                node: machine.hostname.clone(),
                labels: asked.labels.clone(),
                container: Uuid::new_v4().simple().to_string(),
                created: now(),
                phase: PodPhase::Creating,
                address: None,
                result: None,
            })
            .collect();
        pods.extend(new.iter().map(|pod| (pod.key(), pod.clone())));
        Ok(new)
    }

    /// Makes a pod that has been placed. When it cannot be, nothing of it is left.
    pub(super) async fn create(self: Arc<Self>, pod: Pod) -> Result<Pod, String> {
        let made = self.make(&pod).await;
        match made {
            Ok(pod) => {
                self.pods().insert(pod.key(), pod.clone());
                Ok(pod)
            }
            Err(why) => {
                let going = Pod { phase: PodPhase::Terminating, ..pod };
                self.pods().insert(going.key(), going.clone());
                let name = going.name.clone();
                if let Err(left) = self.clone().delete(going).await {
                    tracing::warn!(pod = name, left, "what was made of a pod is not gone yet");
                }
                Err(format!("pod `{name}`: {why}"))
            }
        }
    }

    async fn make(self: &Arc<Self>, pod: &Pod) -> Result<Pod, String> {
        let begin = Instant::now();
        let places = self.node_places(&pod.node);
        let (own, new, at) = (self.clone(), pod.clone(), places.clone());
        self.plugins
            .run(move || {
                records::write(&at.pods(), &new).map_err(|error| Chain(&error).to_string())?;
                own.folder.create(&new.container).map_err(|error| Chain(&error).to_string())
            })
            .await?;
        let result = loop {
            let (container, at) = (self.container(pod), places.clone());
            let added = self.plugins.run(move || add(&at, &container)).await;
            match added {
                Err(error) if error.is_passing() && begin.elapsed() < PATIENCE => {
                    sleep(AGAIN).await;
                }
                other => break other.map_err(|error| error.to_string())?,
            }
        };
        let address = runtime::address_of(&result);
        let pod = Pod { phase: PodPhase::Running, address, result: Some(result), ..pod.clone() };
        let (own, new) = (self.clone(), pod.clone());
        self.plugins
            .run(move || {
                if let Some(voice) = own.voice(&new) {
                    own.echo.add(voice).map_err(|error| Chain(&error).to_string())?;
                }
                records::write(&places.pods(), &new).map_err(|error| Chain(&error).to_string())
            })
            .await?;
        Ok(pod)
    }

    /// Removes a pod. What is gone already is fine.
    async fn delete(self: Arc<Self>, pod: Pod) -> Result<(), String> {
        // A second one would write down anew what the first has struck out.
        let Some(_claim) = Ending::of(&self, &pod.container) else { return Ok(()) };
        let places = self.node_places(&pod.node);
        let container = self.container(&pod);
        let (own, key) = (self.clone(), pod.key());
        self.plugins
            .run(move || {
                let text = |error: ClustersError| Chain(&error).to_string();
                records::write(&places.pods(), &pod).map_err(text)?;
                if own.echo.is_alive() {
                    own.echo.remove(&pod.container).map_err(text)?;
                }
                // A node without a network, such as one that is gone, has nothing to disconnect.
                if let (true, Some(network)) = (
                    places.netns.exists(),
                    Network::read(&places.networks()).map_err(|error| error.to_string())?,
                ) {
                    let delete = || network.delete(&container, pod.result.as_ref());
                    runtime::on_node(&places.netns, delete).map_err(|error| error.to_string())?;
                }
                own.folder.delete(&pod.container).map_err(|error| Chain(&error).to_string())?;
                records::remove(&places.pods(), &pod.container).map_err(text)
            })
            .await?;
        self.pods().remove(&key);
        Ok(())
    }

    /// Removes pods in whatever phase: those that are being made when they are made, and those that somebody else
    /// removes are waited for. Whoever is told that a pod is gone may take its name.
    async fn end(self: &Arc<Self>, pods: Vec<Pod>) -> PodsDone {
        let begin = Instant::now();
        let mut done = PodsDone { pods: Vec::new(), failures: Vec::new() };
        let mut waiting = pods;
        while !waiting.is_empty() {
            let now: Vec<(Pod, Option<Pod>)> = {
                let known = self.pods();
                let is_same = |pod: &&Pod, it: &&Pod| pod.container == it.container;
                let find = |pod: Pod| {
                    let found = known.get(&pod.key()).filter(|it| is_same(it, &&pod)).cloned();
                    (pod, found)
                };
                waiting.into_iter().map(find).collect()
            };
            waiting = Vec::new();
            let mut ours = Vec::new();
            for (pod, found) in now {
                match found {
                    None => done.pods.push(self.view(&pod)),
                    Some(pod) => {
                        if pod.phase == PodPhase::Running {
                            ours.push(pod.clone());
                        }
                        waiting.push(pod);
                    }
                }
            }
            // Gone is what is in the list no more, whoever has removed it.
            done.failures.extend(self.delete_all(ours).await.failures);
            if begin.elapsed() > PATIENCE {
                let late =
                    waiting.drain(..).map(|pod| format!("pod `{}`: it is still there", pod.name));
                done.failures.extend(late);
            }
            if !waiting.is_empty() {
                sleep(AGAIN).await;
            }
        }
        done
    }

    pub(super) async fn delete_all(self: &Arc<Self>, pods: Vec<Pod>) -> PodsDone {
        let work = pods.into_iter().map(|pod| {
            let going = Pod { phase: PodPhase::Terminating, ..pod };
            self.pods().insert(going.key(), going.clone());
            let own = self.clone();
            async move {
                let view = own.view(&going);
                let name = going.name.clone();
                own.delete(going).await.map(|()| view).map_err(|why| format!("pod `{name}`: {why}"))
            }
        });
        together(work).await
    }

    pub(super) fn view(&self, pod: &Pod) -> PodView {
        PodView {
            name: pod.name.clone(),
            cluster: pod.cluster.name().to_owned(),
            resource_group: pod.cluster.resource_group().to_owned(),
            node: pod.node.clone(),
            address: pod.address.map(|address| address.to_string()),
            address_v6: pod
                .result
                .as_ref()
                .and_then(runtime::address_of::<Ipv6Addr>)
                .map(|address| address.to_string()),
            phase: format!("{:?}", pod.phase),
            labels: pod.labels.clone(),
            netns: self.folder.path_of(&pod.container),
        }
    }

    /// The pods that `text` names: `[CLUSTER:][default/]NAME`.
    fn named(&self, text: &str) -> Vec<Pod> {
        let (cluster, name) = match text.split_once(':') {
            Some((cluster, name)) => (Some(Name::new(cluster)), name),
            None => (None, text),
        };
        let name = name.strip_prefix("default/").unwrap_or(name);
        let pods = self.pods();
        let is_it = |pod: &&Pod| {
            let of = |cluster: &Name| *cluster == Name::new(pod.cluster.name());
            pod.name == name && cluster.as_ref().is_none_or(of)
        };
        pods.values().filter(is_it).cloned().collect()
    }
}

/// While this lives, a pod's removal is one task's.
struct Ending {
    own: Arc<NetworkOnly>,
    container: String,
}

impl Ending {
    /// `None` when another one has it.
    fn of(own: &Arc<NetworkOnly>, container: &str) -> Option<Self> {
        let is_first = own.ending().insert(container.to_owned());
        is_first.then(|| Self { own: own.clone(), container: container.to_owned() })
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.own.ending().remove(&self.container);
    }
}

/// Reads the node's network and connects a container to it.
fn add(places: &NodePlaces, container: &Container) -> Result<serde_json::Value, RuntimeError> {
    let folder = places.networks();
    let network = Network::read(&folder)?.ok_or_else(|| RuntimeError::Configuration {
        path: folder,
        why: "the folder has no .conflist (a cluster with network plugin `none` brings its own)"
            .to_owned(),
    })?;
    runtime::on_node(&places.netns, || network.add(container))
}

/// Does all of it at once; what came of it is in the order given.
pub(super) async fn together(
    work: impl Iterator<Item = impl Future<Output = Result<PodView, String>> + Send + 'static>,
) -> PodsDone {
    let mut tasks = JoinSet::new();
    for (number, one) in work.enumerate() {
        tasks.spawn(async move { (number, one.await) });
    }
    let mut outcomes = tasks.join_all().await;
    outcomes.sort_by_key(|(number, _)| *number);
    let mut done = PodsDone::default();
    for (_, outcome) in outcomes {
        match outcome {
            Ok(pod) => done.pods.push(pod),
            Err(why) => done.failures.push(why),
        }
    }
    done
}

fn find_cluster<'a>(region: &'a Region, name: &str) -> Result<&'a Arc<Cluster>, PodsError> {
    let wanted = Name::new(name);
    let all = region.clusters.values().filter(|it| Name::new(it.meta.id.name()) == wanted);
    let alive = all.filter(|it| it.meta.state != ProvisioningState::Deleting);
    match alive.collect::<Vec<_>>().as_slice() {
        [cluster] => Ok(cluster),
        [] => Err(PodsError::NotFound { what: "cluster", name: name.to_owned() }),
        several => {
            let groups: Vec<&str> = several.iter().map(|it| it.meta.id.resource_group()).collect();
            let choices = format!("in the groups {}", groups.join(", "));
            Err(PodsError::Ambiguous { what: "clusters", name: name.to_owned(), choices })
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=LONGEST_NAME).contains(&text.len())
        && text.chars().all(|c| is_plain(c) || c == '-')
        && text.starts_with(is_plain)
        && text.ends_with(is_plain)
}

impl Clusters {
    /// The loop, which begins a moment after the lab answers.
    async fn network_only(&self) -> Result<&Arc<NetworkOnly>, PodsError> {
        if self.0.nodes != Nodes::NetworkOnly {
            return Err(PodsError::OtherNodes);
        }
        let begin = Instant::now();
        loop {
            if let Some(own) = self.0.network_only.get() {
                return Ok(own);
            }
            if begin.elapsed() > PATIENCE {
                return Err(PodsError::Starting);
            }
            sleep(AGAIN).await;
        }
    }

    /// Makes pods in a network-only cluster. Each that could not be made left nothing behind.
    ///
    /// # Errors
    /// When none is begun: a name is wrong or taken, or there is no place for all of them.
    pub async fn run_pods(&self, store: &Store, asked: &RunPods) -> Result<PodsDone, PodsError> {
        let own = self.network_only().await?;
        let region = store.snapshot();
        let placed = own.place(&region, find_cluster(&region, &asked.cluster)?, asked)?;
        let work = placed.into_iter().map(|pod| {
            let own = own.clone();
            async move { own.clone().create(pod).await.map(|pod| own.view(&pod)) }
        });
        Ok(together(work).await)
    }

    /// All pods of network-only clusters, by cluster and name.
    pub async fn list_pods(&self, cluster: Option<&str>) -> Result<Vec<PodView>, PodsError> {
        let own = self.network_only().await?;
        let wanted = cluster.map(Name::new);
        let is_of =
            |pod: &&Pod| wanted.as_ref().is_none_or(|it| *it == Name::new(pod.cluster.name()));
        Ok(own.pods().values().filter(is_of).map(|pod| own.view(pod)).collect())
    }

    /// Removes the pods that are named, or all (of a cluster).
    ///
    /// # Errors
    /// When none is begun, because a name names no pod, or several.
    pub async fn delete_pods(
        &self,
        names: &[String],
        cluster: Option<&str>,
    ) -> Result<PodsDone, PodsError> {
        let own = self.network_only().await?;
        let of =
            |pod: &Pod| cluster.is_none_or(|it| Name::new(it) == Name::new(pod.cluster.name()));
        let mut going = Vec::new();
        for name in names {
            let mut found: Vec<Pod> = own.named(name).into_iter().filter(|pod| of(pod)).collect();
            match (found.pop(), found.is_empty()) {
                (Some(pod), true) => going.push(pod),
                (None, _) => return Err(PodsError::NotFound { what: "pod", name: name.clone() }),
                (Some(last), false) => return Err(ambiguous(name, found.iter().chain([&last]))),
            }
        }
        if names.is_empty() {
            going.extend(own.pods().values().filter(|pod| of(pod)).cloned());
        }
        Ok(own.end(going).await)
    }

    /// Where the pods `[CLUSTER:][default/]NAME` run.
    pub(in crate::clusters) fn own_pods_at(&self, region: &Region, text: &str) -> Vec<PodAt> {
        let Some(own) = self.0.network_only.get() else { return Vec::new() };
        let found = own.named(text).into_iter().filter_map(|pod| {
            let nodes = region.nodes_of(&pod.cluster);
            let node = nodes.into_iter().find(|node| node.hostname == pod.node)?;
            Some(PodAt {
                cluster: pod.cluster.clone(),
                node: node.meta.id.clone(),
                netns: own.folder.path_of(&pod.container),
            })
        });
        found.collect()
    }
}

fn ambiguous<'a>(name: &str, pods: impl Iterator<Item = &'a Pod>) -> PodsError {
    let choices: Vec<String> =
        pods.map(|pod| format!("{}:{}", pod.cluster.name(), pod.name)).collect();
    PodsError::Ambiguous { what: "pods", name: name.to_owned(), choices: choices.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_labels() {
        for good in ["a", "web-1", "0", "a--b", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a:b", "ä", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}

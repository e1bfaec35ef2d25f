//! What the cluster says about the node's addresses: its own Node object (kubenet) or its own
//! `NodeNetworkConfig` (the other modes), and what the node asks for in the latter.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};

use futures::{Stream, StreamExt, TryStreamExt, future::ready};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watch_object, watcher},
    },
};
use serde::Deserialize;
use serde_json::json;
use vnet::{
    addr::{Prefix, Prefix4, Prefix6},
    pods::{
        PodNetwork,
        demand::{Scaler, Step, Supply, step},
        exhaustion::state_name,
    },
};

use super::{
    NodeError,
    agent::Agent,
    chain, masquerade,
    setup::{Learnt, Setup},
    source::{AddressSource, learn},
};

/// Where the cluster keeps a `NodeNetworkConfig` for each node.
const NAMESPACE: &str = "kube-system";

/// Why the cluster could not be asked, or what it said that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The credentials are no good.
    #[error("the credentials in {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<kube::config::KubeconfigError>,
    },
    /// A request failed.
    #[error("{what}")]
    Request {
        /// What was asked.
        what: &'static str,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// A watch broke and could not be mended.
    #[error("watching {what}")]
    Watch {
        /// What was watched.
        what: &'static str,
        /// Why it broke.
        source: Box<kube::runtime::watcher::Error>,
    },
    /// A watch ended, which it never should.
    #[error("the watch of {what} ended")]
    Ended {
        /// What was watched.
        what: &'static str,
    },
    /// An object says something that is not understood.
    #[error("{what} of `{node}` is not understood")]
    Object {
        /// Which kind.
        what: &'static str,
        /// Its name.
        node: String,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

/// Kubenet: the block is the Node's `spec.podCIDR`.
pub struct NodeSource {
    kubeconfig: PathBuf,
}

impl NodeSource {
    /// A source that asks with these credentials.
    #[must_use]
    pub fn new(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned() }
    }
}

impl AddressSource for NodeSource {
    async fn run(
        &mut self,
        agent: &Arc<Agent>,
        setup: &mut Setup,
    ) -> Result<Infallible, NodeError> {
        const WHAT: &str = "the node";
        let client = client(&self.kubeconfig).await?;
        let api: Api<Node> = Api::all(client.clone());
        let name = setup.config().node.clone();
        let (network, is_dual_stack) = (setup.config().network, setup.config().is_dual_stack);
        let mut changes = pin!(watch_object(api, &name));
        let mut settings = pin!(masquerade::watch(client));
        loop {
            let node = tokio::select! {
                node = next(&mut changes, WHAT) => node?,
                Some(settings) = settings.next() => {
                    setup.set_masquerade(agent, settings)?;
                    continue;
                }
            };
            let Some(node) = node else { continue };
            let spec = node.spec.unwrap_or_default();
            // A cluster of one family may have the singular only.
            let blocks = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
            let blocks: Result<Vec<Prefix>, _> = blocks.iter().map(|one| one.parse()).collect();
            match blocks.as_deref() {
                Ok([Prefix::V4(block)]) if !is_dual_stack => {
                    setup.apply(agent, learn(network, Some(*block), None, []))?;
                }
                Ok([Prefix::V4(block), Prefix::V6(block_v6)]) if is_dual_stack => {
                    setup.apply(agent, learn(network, Some(*block), Some(*block_v6), []))?;
                }
                Ok([]) => {}
                Ok(_) => tracing::warn!(
                    "spec.podCIDRs of the node are of other families than the cluster"
                ),
                Err(error) => tracing::warn!(%error, "spec.podCIDRs of the node"),
            }
        }
    }
}

/// The other modes: addresses come from the node's `NodeNetworkConfig`, and in a pod subnet the node
/// asks there for as many as it needs.
pub struct NetworkConfigSource {
    kubeconfig: PathBuf,
}

impl NetworkConfigSource {
    /// A source that asks with these credentials.
    #[must_use]
    pub fn new(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned() }
    }
}

impl AddressSource for NetworkConfigSource {
    async fn run(
        &mut self,
        agent: &Arc<Agent>,
        setup: &mut Setup,
    ) -> Result<Infallible, NodeError> {
        const WHAT: &str = "the NodeNetworkConfig";
        let client = client(&self.kubeconfig).await?;
        let kind = GroupVersionKind::gvk("acn.azure.com", "v1alpha", "NodeNetworkConfig");
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
        let name = setup.config().node.clone();
        let (network, is_dual_stack) = (setup.config().network, setup.config().is_dual_stack);
        let mut changes = pin!(watch_object(api.clone(), &name));
        let mut settings = pin!(masquerade::watch(client.clone()));
        let mut exhausted = pin!(exhausted(client));
        let mut subnets = BTreeSet::new();
        let mut current: Option<NetworkConfig> = None;
        loop {
            tokio::select! {
                Some(settings) = settings.next(), if network != PodNetwork::PodSubnet => {
                    setup.set_masquerade(agent, settings)?;
                }
                Some(names) = exhausted.next(), if network == PodNetwork::PodSubnet => {
                    subnets = names;
                }
                change = next(&mut changes, WHAT) => {
                    let Some(object) = change? else { continue };
                    let config = NetworkConfig::parse(&name, &object.data)?;
                    if let Some(learnt) = config.learnt(network, is_dual_stack) {
                        setup.apply(agent, learnt)?;
                    }
                    current = Some(config);
                }
                () = agent.used.notified() => (),
            }
            let is_static = current.as_ref().is_some_and(NetworkConfig::is_static);
            if network != PodNetwork::PodSubnet || is_static {
                continue;
            }
            // The object that our own patch makes comes by the watch as well; taking it from the
            // answer keeps a burst of pods from asking for the same batch twice.
            if let Some(config) = &current
                && let Some(spec) = config.wants(agent, &subnets)
            {
                let patch = Patch::Merge(json!({ "spec": spec }));
                let object =
                    api.patch(&name, &PatchParams::default(), &patch).await.map_err(|source| {
                        KubernetesError::Request {
                            what: "asking for addresses",
                            source: Box::new(source),
                        }
                    })?;
                tracing::info!(node = name, %spec, "asked for addresses");
                current = Some(NetworkConfig::parse(&name, &object.data)?);
            }
        }
    }
}

/// The names of the pod subnets that are exhausted, whenever they change. What cannot be watched (an older
/// cluster has no such objects) is watched again later, and says nothing meanwhile.
fn exhausted(client: Client) -> impl Stream<Item = BTreeSet<String>> {
    let kind = GroupVersionKind::gvk("acn.azure.com", "v1alpha1", "ClusterSubnetState");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &resource);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    events
        .scan(BTreeSet::new(), |names, event| {
            let before = names.clone();
            match event {
                Ok(Event::Init) => names.clear(),
                Ok(Event::Apply(object) | Event::InitApply(object)) => {
                    let name = object.name_any();
                    if object.data["status"]["exhausted"] == true {
                        names.insert(name);
                    } else {
                        names.remove(&name);
                    }
                }
                Ok(Event::Delete(object)) => {
                    names.remove(&object.name_any());
                }
                Ok(Event::InitDone) => {}
                Err(error) => tracing::debug!(error = %chain(&error), "watching pod subnets"),
            }
            let news = (before != *names).then(|| names.clone());
            ready(Some(news))
        })
        .filter_map(ready)
}

async fn client(kubeconfig: &Path) -> Result<Client, KubernetesError> {
    let bad = |source| KubernetesError::Kubeconfig {
        path: kubeconfig.to_owned(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(bad)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await.map_err(bad)?;
    Client::try_from(config).map_err(|source| KubernetesError::Request {
        what: "preparing a client",
        source: Box::new(source),
    })
}

type Watched<T> = Result<Option<T>, kube::runtime::watcher::Error>;

async fn next<T>(
    changes: &mut (impl Stream<Item = Watched<T>> + Unpin),
    what: &'static str,
) -> Result<Option<T>, KubernetesError> {
    changes
        .try_next()
        .await
        .map_err(|source| KubernetesError::Watch { what, source: Box::new(source) })?
        .ok_or(KubernetesError::Ended { what })
}

/// A node's `NodeNetworkConfig`, as far as the agent reads it. Others add fields; they are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "requestedIPCount")]
    requested: u32,
    #[serde(rename = "ipsNotInUse")]
    not_in_use: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    scaler: WireScaler,
    network_containers: Vec<Container>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireScaler {
    batch_size: Option<u32>,
    request_threshold_percent: Option<u32>,
    release_threshold_percent: Option<u32>,
    #[serde(rename = "maxIPCount")]
    max_ip_count: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    #[serde(rename = "primaryIP")]
    primary: Option<String>,
    subnet_name: Option<String>,
    status: Option<String>,
    assignment_mode: Option<String>,
    ip_assignments: Vec<Assignment>,
}

#[derive(Clone, Debug, Deserialize)]
struct Assignment {
    name: String,
    ip: Granted,
}

fn all_of(block: Prefix4) -> impl Iterator<Item = Ipv4Addr> {
    (0..block.n_addresses()).map_while(move |offset| block.nth(offset))
}

/// An address, or all of a block.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Granted {
    Address(Ipv4Addr),
    Block(Prefix4),
}

impl Granted {
    fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let block = match self {
            Self::Address(address) => Prefix4::host(address),
            Self::Block(block) => block,
        };
        all_of(block)
    }
}

impl NetworkConfig {
    /// Reads what the object `node` says.
    pub fn parse(node: &str, data: &serde_json::Value) -> Result<Self, KubernetesError> {
        Self::deserialize(data).map_err(|source| KubernetesError::Object {
            what: "the NodeNetworkConfig",
            node: node.to_owned(),
            source,
        })
    }

    /// The addresses, once there are any: of both families where the cluster has both.
    fn learnt(&self, network: PodNetwork, is_dual_stack: bool) -> Option<Learnt> {
        let container = self.status.network_containers.first()?;
        let origin = container.subnet_name.clone().map(|subnet| {
            (subnet, container.status.clone().unwrap_or_else(|| "NCUpdateSuccess".to_owned()))
        });
        match network {
            PodNetwork::Kubenet | PodNetwork::Overlay => {
                let block = container.primary.as_deref()?.parse::<Prefix4>().ok()?;
                // One container per family (Azure/azure-container-networking, `cns/restserver/ipam.go`: a pod gets an
                // address of each).
                let mut more = self.status.network_containers.iter().skip(1);
                let block_v6 = more
                    .find_map(|container| container.primary.as_deref()?.parse::<Prefix6>().ok());
                if is_dual_stack != block_v6.is_some() {
                    return None;
                }
                Some(Learnt { origin, ..learn(network, Some(block), block_v6, []) })
            }
            PodNetwork::NodeSubnet | PodNetwork::NodeBridge | PodNetwork::PodSubnet => {
                // The first block stands where other nodes have an address of their own, and so has this node's: the
                // first of its addresses.
                let first =
                    container.primary.as_deref().and_then(|text| text.parse::<Prefix4>().ok());
                let first = first.into_iter().flat_map(|block| all_of(block).skip(1));
                let addresses =
                    first.chain(container.ip_assignments.iter().flat_map(|it| it.ip.addresses()));
                // What was offered back before the agent was started anew stays so.
                let offered =
                    self.assignments().filter(|one| self.spec.not_in_use.contains(&one.name));
                let aside = offered.flat_map(|one| one.ip.addresses()).collect();
                Some(Learnt { aside, origin, ..learn(network, None, None, addresses) })
            }
        }
    }

    /// The spec that the node should have, when it should have another.
    fn wants(&self, agent: &Agent, exhausted: &BTreeSet<String>) -> Option<serde_json::Value> {
        agent.with_pool(|pool| {
            let supply = Supply {
                requested: self.spec.requested,
                granted: number(pool.n_granted()),
                in_use: number(pool.n_in_use()),
                returning: number(pool.returning().len()),
                listed: number(self.spec.not_in_use.len()),
            };
            let requested = match step(self.scaler(exhausted), supply) {
                Step::Rest => return None,
                Step::Tidy => self.spec.requested,
                Step::Ask { requested } => requested,
                Step::GiveBack { requested, n } => {
                    pool.give_back(usize::try_from(n).unwrap_or_default());
                    requested
                }
            };
            let names: BTreeMap<_, _> = self
                .assignments()
                .flat_map(|Assignment { ip, name }| ip.addresses().map(|it| (it, name.as_str())))
                .collect();
            let not_in_use: Vec<_> =
                pool.returning().iter().filter_map(|address| names.get(address)).collect();
            Some(json!({ "requestedIPCount": requested, "ipsNotInUse": not_in_use }))
        })
    }

    /// Whether the node has all addresses that it will ever have.
    fn is_static(&self) -> bool {
        let containers = &self.status.network_containers;
        containers.iter().any(|it| it.assignment_mode.as_deref() == Some("static"))
    }

    fn assignments(&self) -> impl Iterator<Item = &Assignment> {
        self.status.network_containers.iter().flat_map(|container| &container.ip_assignments)
    }

    fn scaler(&self, exhausted: &BTreeSet<String>) -> Scaler {
        let (default, wire) = (Scaler::default(), self.status.scaler);
        // A controller that does not set one writes zero.
        let or = |value: Option<u32>, default| value.filter(|value| *value > 0).unwrap_or(default);
        let scaler = Scaler {
            batch: or(wire.batch_size, default.batch),
            request_percent: or(wire.request_threshold_percent, default.request_percent),
            release_percent: or(wire.release_threshold_percent, default.release_percent),
            max: or(wire.max_ip_count, default.max),
        };
        let subnets =
            self.status.network_containers.iter().filter_map(|one| one.subnet_name.as_ref());
        if subnets.map(|name| state_name(name)).any(|name| exhausted.contains(&name)) {
            return scaler.exhausted();
        }
        scaler
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

//! One node of a network-only cluster: its agent, and the tasks that keep it. Not here: its pods.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::net::UnixListener as StdListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::programs::Plugin;
use cni::talk;
use linux::{
    net::{Netlink, link_indexes},
    netns::Netns,
};
use store::Store;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use vnet::{
    addr::{Family, Prefix4, Prefix6},
    command::Command,
    host::names,
    model::{Cluster, Dataplane, Machine, POD_BATCH, PodAllocation},
    name::ArmId,
    pods::{PodNetwork, masquerade::Settings},
    region::Region,
};

use super::super::{ClustersError, blocking};
use crate::{
    hands::Hands,
    metrics::METER,
    node::{
        config::{Config, SourceConfig},
        hosted::{Hosted, Want},
    },
    reconcile::{Chain, now},
};

/// How long links are gathered before they are deleted together.
const GATHER: Duration = Duration::from_millis(50);
/// How often the queue of releases is looked at, and something that failed tried again.
const LOOK: Duration = Duration::from_secs(1);
/// A plugin writes its line at once; whoever does not is not one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a namespace is looked at again that has no NIC yet.
const WAIT: Duration = Duration::from_millis(20);
/// Steps of a batch that one look may take: a node has at most 256 addresses.
const MOST_STEPS: usize = 256 / POD_BATCH + 1;

/// A node that has its agent. Dropping it ends the agent; its pods stay as they are.
pub(super) struct Member {
    is_ready: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Member {
    /// Starts the agent of a node whose namespace is there. `None` when it needs none: bring your own CNI.
    pub(super) async fn start(
        places: &NodePlaces,
        hands: &Hands,
        store: &Store,
        cluster: &Cluster,
        machine: &Machine,
        bell: &Arc<Notify>,
    ) -> Result<Option<Self>, ClustersError> {
        let Some(config) = config(places, &store.snapshot(), cluster, machine) else {
            fs::create_dir_all(places.networks()).map_err(|source| ClustersError::File {
                action: "make",
                path: places.networks(),
                source,
            })?;
            return Ok(None);
        };
        let folder = places.folder.clone();
        let netns = places.netns.clone();
        let name = machine.hostname.clone();
        wait_for_nic(&netns, &name).await?;
        let started = hands.run(move || start_agent(&folder, &netns, config)).await;
        let (hosted, listener) = started.map_err(|error| failed(&name, error))?;
        let listener = UnixListener::from_std(listener).map_err(|source| ClustersError::File {
            action: "listen at",
            path: places.socket(),
            source,
        })?;
        let hosted = Arc::new(hosted);
        let is_ready = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, hosted.clone(), hands.clone()));
        tasks.spawn(
            Upkeep {
                hosted,
                hands: hands.clone(),
                store: store.clone(),
                machine: machine.meta.id.clone(),
                name,
                is_ready: is_ready.clone(),
                bell: bell.clone(),
                offered: None,
                is_told: false,
            }
            .run(),
        );
        Ok(Some(Self { is_ready, _tasks: tasks }))
    }

    /// Whether the node has addresses, rules and the runtime's network file.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }
}

/// Where a node's things are, below the lab's running state.
#[derive(Clone, Debug)]
pub(super) struct NodePlaces {
    pub(super) folder: PathBuf,
    /// The path of its network namespace.
    pub(super) netns: PathBuf,
}

impl NodePlaces {
    /// Of the node `hostname` of a lab.
    pub(super) fn new(lab: &str, run: &std::path::Path, hostname: &str) -> Self {
        let netns = linux::netns::path(&names::node_ns(lab, hostname));
        Self { folder: super::nodes_dir(run).join(hostname), netns }
    }

    /// The number of its network namespace, which no other has while it lives; `None` when there is none.
    pub(super) fn namespace_number(&self) -> Option<u64> {
        // A file is made before the namespace is mounted on it, so the path alone says nothing.
        linux::pod::Sandbox::open(&self.netns).ok().map(|namespace| namespace.id())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Where the runtime looks for network configurations.
    pub(super) fn networks(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// Where pods are written down.
    pub(super) fn pods(&self) -> PathBuf {
        self.folder.join("pods")
    }
}

fn config(
    places: &NodePlaces,
    region: &Region,
    cluster: &Cluster,
    machine: &Machine,
) -> Option<Config> {
    let pool = cluster.pools.get(&machine.node()?.pool)?;
    // In an upgrade nodes of both kinds live side by side.
    let image = region.image_of(machine)?;
    // Addresses are the same whoever forwards packets, and without Kubernetes the agent's plugin does.
    let network = Plugin::of(cluster, image.mode, image.dataplane, pool).network()?;
    Some(Config {
        node: machine.hostname.clone(),
        network,
        source: SourceConfig::Host,
        masquerade: masquerade(region, cluster, network),
        socket: places.socket(),
        interface: names::ETH0.to_owned(),
        run_directory: places.folder.clone(),
        cni_directory: places.networks(),
        host_ports: true,
        dataplane: Dataplane::Azure,
        is_dual_stack: cluster.pod_cidr6.is_some(),
    })
}

/// The rules of AKS's ip-masq-agent for what the cluster and its virtual network are now.
fn masquerade(region: &Region, cluster: &Cluster, network: PodNetwork) -> Settings {
    let vnet = region.vnets.get(&cluster.vnet);
    let prefixes = vnet.map_or_else(Vec::new, |vnet| vnet.prefixes4());
    Settings::of_aks(network, &cluster.pod_cidrs(), &prefixes)
}

fn start_agent(
    folder: &PathBuf,
    netns: &std::path::Path,
    config: Config,
) -> Result<(Hosted, StdListener), Box<dyn std::error::Error + Send + Sync>> {
    fs::create_dir_all(folder)?;
    let netns = Netns::at(netns, &config.node)?;
    let (hosted, listener) = Hosted::start(netns, config)?;
    listener.set_nonblocking(true)?;
    Ok((hosted, listener))
}

/// Waits until the fabric has put its NIC into a namespace that it makes anew.
async fn wait_for_nic(netns: &std::path::Path, node: &str) -> Result<(), ClustersError> {
    let begin = Instant::now();
    loop {
        let netns = netns.to_owned();
        let name = node.to_owned();
        let looked = blocking(move || {
            let look = || {
                Netlink::open_in(&Netns::at(&netns, &name)?)
                    .and_then(|mut it| link_indexes(&mut it))
            };
            look().map_err(|source| ClustersError::Namespace { name, source })
        });
        if looked.await?.contains_key(names::ETH0) || begin.elapsed() > PATIENCE {
            return Ok(());
        }
        sleep(WAIT).await;
    }
}

fn failed(node: &str, source: Box<dyn std::error::Error + Send + Sync>) -> ClustersError {
    ClustersError::Agent { node: node.to_owned(), source }
}

/// Answers plugins for ever.
async fn serve(listener: UnixListener, hosted: Arc<Hosted>, hands: Hands) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(answering.spawn(answer(stream, hosted.clone(), hands.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = answering.join_next() => {}
        }
    }
}

async fn answer(stream: UnixStream, hosted: Arc<Hosted>, hands: Hands) {
    let mut stream = BufReader::new(stream.take(talk::LONGEST_LINE_BYTES));
    let mut line = Vec::new();
    let read = timeout(PATIENCE, stream.read_until(b'\n', &mut line)).await;
    if !matches!(read, Ok(Ok(_))) || line.pop() != Some(b'\n') {
        return;
    }
    let reply = hands.run(move || hosted.answer(&line)).await;
    let mut text = Vec::new();
    let written = match reply {
        Ok(reply) => talk::write_line(&mut text, &reply),
        Err(error) => {
            // The plugin sees the end of the connection and has the runtime try again.
            tracing::warn!(error = %Chain(&error), "a plugin could not be answered");
            return;
        }
    };
    if written.is_ok() {
        let _ = timeout(PATIENCE, stream.get_mut().get_mut().write_all(&text)).await;
    }
}

/// The addresses of a node's pods: its block, or single ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    block: Option<Prefix4>,
    block_v6: Option<Prefix6>,
    addresses: Vec<Ipv4Addr>,
    masquerade: Settings,
}

/// Keeps an agent's addresses what the region says, asks for more of a pod subnet, and clears up.
struct Upkeep {
    hosted: Arc<Hosted>,
    hands: Hands,
    store: Store,
    machine: ArmId,
    name: String,
    is_ready: Arc<AtomicBool>,
    /// Rung when the node turns ready.
    bell: Arc<Notify>,
    offered: Option<Offer>,
    /// Whether it was said that the subnet is full.
    is_told: bool,
}

/// A node that is gone is in no trouble.
impl Drop for Upkeep {
    fn drop(&mut self) {
        METER.out_of_trouble(&self.name);
    }
}

impl Upkeep {
    async fn run(mut self) {
        let mut wake = self.store.watch();
        loop {
            wake.mark_unchanged();
            let passed = self.pass().await;
            if passed.is_ok() {
                METER.out_of_trouble(&self.name);
            }
            if let Err(error) = passed {
                METER.failed("agents");
                METER.in_trouble(&self.name, Chain(&error).to_string());
                tracing::warn!(node = self.name, error = %Chain(&error),
                    "a node's addresses are not what they should be; it will be tried again");
                sleep(LOOK).await;
                continue;
            }
            if self.hosted.is_untidy() {
                sleep(GATHER).await;
                self.tidy().await;
            }
            tokio::select! {
                woken = wake.changed() => if woken.is_err() { return },
                () = self.hosted.used() => {}
                () = sleep(LOOK) => self.tidy().await,
            }
        }
    }

    async fn tidy(&self) {
        let hosted = self.hosted.clone();
        if let Err(error) = self.hands.run(move || hosted.tidy()).await {
            tracing::warn!(node = self.name, error = %Chain(&error), "a node is not cleared up yet");
        }
    }

    async fn pass(&mut self) -> Result<(), ClustersError> {
        for _ in 0..MOST_STEPS {
            let Some(offer) = self.offer() else { return Ok(()) };
            let n_addresses = offer.addresses.len();
            if self.offered.as_ref() != Some(&offer) {
                let (hosted, given) = (self.hosted.clone(), offer.clone());
                let offer_it = move || {
                    hosted.set_masquerade(given.masquerade)?;
                    hosted.offer(given.block, given.block_v6, given.addresses)
                };
                let offered = self.hands.run(offer_it).await;
                offered.map_err(|error| failed(&self.name, error.into()))?;
                self.offered = Some(offer);
                if !self.is_ready.swap(true, Ordering::AcqRel) {
                    self.bell.notify_one();
                }
            }
            if self.hosted.config().network != PodNetwork::PodSubnet {
                return Ok(());
            }
            let Some(want) = self.hosted.wants(n_addresses) else { return Ok(()) };
            if !self.ask(want).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the region says that the node has; `None` when it is gone.
    fn offer(&self) -> Option<Offer> {
        let region = self.store.snapshot();
        let machine = region.machines.get(&self.machine)?;
        let cluster = region.clusters.get(&machine.node()?.cluster)?;
        let network = self.hosted.config().network;
        let mut block_v6 = None;
        let (block, addresses) = match network {
            PodNetwork::Kubenet | PodNetwork::Overlay => {
                let node = machine.node()?;
                block_v6 = node.pod_range6;
                (Some(node.pod_range?), Vec::new())
            }
            PodNetwork::NodeSubnet | PodNetwork::NodeBridge => {
                let configs = region.nics.get(&machine.nic)?.configs.iter().skip(1);
                (None, configs.filter_map(|config| Family::v4(config.address)).collect())
            }
            PodNetwork::PodSubnet => {
                let pool = cluster.pools.get(&machine.node()?.pool)?;
                // One of a static node's addresses is its own (see `NetworkConfigSource`).
                let n_own = usize::from(pool.pod_allocation == PodAllocation::StaticBlock);
                let addresses = region.pod_addresses_of(&self.machine);
                (None, addresses.into_iter().skip(n_own).collect())
            }
        };
        let masquerade = masquerade(&region, cluster, network);
        Some(Offer { block, block_v6, addresses, masquerade })
    }

    /// Asks the region for another number of addresses, in whole batches, as AKS's address management does for a
    /// `NodeNetworkConfig`. Says whether it was granted.
    async fn ask(&mut self, want: Want) -> Result<bool, ClustersError> {
        let batch = u32::try_from(POD_BATCH).unwrap_or(1);
        let total = want.total.next_multiple_of(batch);
        let (store, machine) = (self.store.clone(), self.machine.clone());
        let command = Command::SetPodAddresses { machine, total, released: want.released };
        match self.hands.run(move || store.change(command, now())).await {
            Ok(_) => {
                self.is_told = false;
                Ok(true)
            }
            Err(store::StoreError::Refused(fault)) => {
                if !self.is_told {
                    tracing::info!(node = self.name, error = %fault, "no more pod addresses");
                }
                self.is_told = true;
                Ok(false)
            }
            Err(source) => Err(ClustersError::Report {
                target: self.machine.clone(),
                source: Box::new(source),
            }),
        }
    }
}

//! One node of a network-only cluster: its agent, and the tasks that keep it. Not here: its pods.

use std::{
    fs,
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
    host::names,
    model::{Cluster, Dataplane, Machine},
    pods::{PodNetwork, masquerade::Settings},
    region::Region,
};

use super::{
    super::{ClustersError, blocking},
    addresses::{Exhaustion, Upkeep},
};
use crate::{
    hands::Hands,
    node::{
        config::{Config, SourceConfig},
        hosted::Hosted,
    },
    reconcile::Chain,
};

/// A plugin writes its line at once; whoever does not is not one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a namespace is looked at again that has no NIC yet.
const WAIT: Duration = Duration::from_millis(20);

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
        (bell, exhaustion): (&Arc<Notify>, &Exhaustion),
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
                exhaustion: exhaustion.clone(),
                is_short: false,
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
pub(super) fn masquerade(region: &Region, cluster: &Cluster, network: PodNetwork) -> Settings {
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

pub(super) fn failed(
    node: &str,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> ClustersError {
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

//! `aksnet serve`: the lab itself. Starts the loops and the doors, and answers the other commands.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use daemon::metrics::{METER, Trouble};
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use vnet::{host::platform::Resolver, model::Role, region::Region};

use crate::{
    azure_env,
    control::{
        Answer, Ask, AskPods, AskTags, ClusterStatus, NodeStatus, PodStatus, Status, SubnetStatus,
        TroubleStatus, VmStatus,
    },
    lab::{Config, Lab, Nodes},
    places::Finder,
    run,
    trace::model,
};

/// Runs until SIGTERM or SIGINT. What the loops made stays; `aksnet down` removes it.
pub(crate) fn run(lab: &Lab, config: &Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("AKSNET_LOG")
                // The client logs at `error` what callers report and try again.
                .unwrap_or_else(|_| "info,kube_client=off".into()),
        )
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    for folder in [lab.state_dir(), lab.run_dir()] {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let store = Store::open(&lab.store_path()).context("opening the region's state")?;
    run::write_pid(lab)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let answered = runtime.block_on(serve(lab, config, store));
    // Loops may be in the middle of a system call; what they leave half done, the next start mends.
    runtime.shutdown_timeout(Duration::from_secs(2));
    answered
}

async fn serve(lab: &Lab, config: &Config, store: Store) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let clusters = daemon::clusters::Clusters::new(daemon::clusters::Settings {
        lab: lab.name().to_owned(),
        nodes: match config.nodes {
            Nodes::Kubernetes => daemon::clusters::Nodes::Kubernetes,
            Nodes::NetworkOnly => daemon::clusters::Nodes::NetworkOnly,
            Nodes::Simulated => daemon::clusters::Nodes::Simulated,
        },
        state_dir: lab.state_dir(),
        run_dir: lab.run_dir(),
        log_dir: lab.log_dir(),
        cache_dir: Lab::cache_dir(),
        kubernetes: config.kubernetes.clone(),
    });
    let credentials = {
        let clusters = clusters.clone();
        move |cluster: &vnet::name::ArmId| clusters.credentials(cluster)
    };
    let kept_credentials = {
        let clusters = clusters.clone();
        move |cluster: &vnet::name::ArmId| clusters.kept_credentials(cluster)
    };

    let why_no_envoy = {
        let clusters = clusters.clone();
        move || clusters.why_no_envoy()
    };

    let authority = azure::tls::Authority::load_or_create(&lab.tls_dir())
        .context("the endpoint's certificates")?;
    let door = azure::Door {
        store: store.clone(),
        clock: Arc::new(daemon::reconcile::now),
        credentials: Arc::new(kept_credentials),
        available_versions: vec![config.kubernetes.clone()],
        retry_after: azure::RetryAfter::Seconds(1),
        nodes: match config.nodes {
            Nodes::Kubernetes => azure::Nodes::Kubernetes,
            Nodes::NetworkOnly => azure::Nodes::NetworkOnly,
            Nodes::Simulated => azure::Nodes::Simulated,
        },
        why_no_envoy: Arc::new(why_no_envoy),
    };
    let router = azure::router(door);
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;

    let control = listen_for_commands(lab)?;
    let answering = Answering {
        lab: lab.clone(),
        config: config.clone(),
        store: store.clone(),
        clusters: clusters.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    std::thread::spawn(move || answering.run(&control));

    let arm = Arc::new(crate::in_process_arm::InProcessArm::new(router.clone()));
    let uplink = if let Some(link) = &config.uplink {
        Some(lab.uplink(Some(link))?)
    } else {
        // What a lab that had one and crashed has left.
        lab.uplink(None)?.down().context("leaving the machine's network")?;
        None
    };
    let fabric = daemon::fabric::Settings {
        lab: lab.name().to_owned(),
        identity: Some(azure::imds_router(Arc::new(daemon::reconcile::now))),
        resolv_conf: config
            .uplink
            .as_ref()
            .and_then(|_| fs::read_to_string("/etc/resolv.conf").ok()),
        flow_logs: config.flow_logs.then(|| lab.flow_log_dir()),
        uplink,
    };
    let is_network_only = config.nodes == Nodes::NetworkOnly;
    let controller = async {
        if is_network_only {
            daemon::controller::routes::run(store.clone(), arm).await;
        } else {
            daemon::controller::run(store.clone(), arm, Arc::new(credentials)).await;
        }
    };
    let loops = async {
        tokio::join!(
            daemon::fabric::run(store.clone(), fabric),
            clusters.run(store.clone()),
            controller,
        );
    };
    let metrics = serve_metrics(lab, config, &store).await?;
    tracing::info!(lab = lab.name(), endpoint = azure_env::endpoint(config), "the lab is up");
    tokio::select! {
        () = loops => anyhow::bail!("a loop ended"),
        served = metrics => served.context("serving metrics"),
        served = azure::serve(listener, &authority, router) => served.context("serving Azure Resource Manager"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Answers Prometheus, where that was asked for; never ends otherwise.
async fn serve_metrics(
    lab: &Lab,
    config: &Config,
    store: &Store,
) -> anyhow::Result<impl Future<Output = std::io::Result<()>> + use<>> {
    let listener = match config.metrics {
        None => None,
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("listening on {address} for metrics"))?,
        ),
    };
    let (store, lab) = (store.clone(), lab.name().to_owned());
    Ok(async move {
        match listener {
            Some(listener) => daemon::metrics::serve(listener, store, lab).await,
            None => std::future::pending().await,
        }
    })
}

fn listen_for_commands(lab: &Lab) -> anyhow::Result<UnixListener> {
    let path = lab.control_socket();
    // The store is open, so no other daemon of this lab lives: the socket is a dead one's.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))?;
    Ok(listener)
}

/// Answers [`Ask`]s: each on a thread of its own, since those about pods take as long as the pods do.
#[derive(Clone)]
struct Answering {
    lab: Lab,
    config: Config,
    store: Store,
    clusters: daemon::clusters::Clusters,
    runtime: tokio::runtime::Handle,
}

impl Answering {
    fn run(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            let answering = self.clone();
            let answer = move || {
                let done = stream.and_then(|stream| answering.answer(&stream));
                if let Err(error) = done {
                    tracing::debug!(%error, "a command went away before its answer");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("control".to_owned()).spawn(answer)
            {
                tracing::warn!(%error, "a command could not be answered");
            }
        }
    }

    fn answer(&self, stream: &UnixStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer = match serde_json::from_str(&line) {
            Ok(Ask::Status) => Answer::Status(self.status()),
            Ok(Ask::Find { name }) => self.find(&name),
            Ok(Ask::Pods(ask)) => self.pods(ask),
            Ok(Ask::ServiceTags(ask)) => self.service_tags(ask),
            Ok(Ask::Places { names }) => self.places(&names),
            Ok(Ask::Ground { from, to }) => self.ground(&from, &to),
            Ok(Ask::Ways(question)) => {
                let (region, health) = (self.store.snapshot(), METER.health(self.lab.name()));
                Answer::Ways(model::ways(&region, &health, &question))
            }
            Ok(Ask::Sample { talkers }) => {
                let sample =
                    daemon::metrics::sample(self.lab.name(), &self.store.snapshot(), talkers);
                Answer::Sample(Box::new(sample))
            }
            Err(error) => Answer::Failed { message: format!("not a question: {error}") },
        };
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        (&*stream).write_all(text.as_bytes())
    }

    fn status(&self) -> Status {
        let region = self.store.snapshot();
        Status {
            version: 1,
            lab: self.lab.name().to_owned(),
            endpoint: azure_env::endpoint(&self.config),
            nodes: match self.config.nodes {
                Nodes::Kubernetes => "kubernetes".to_owned(),
                Nodes::NetworkOnly => "network-only".to_owned(),
                Nodes::Simulated => "simulated".to_owned(),
            },
            generation: region.generation,
            clusters: self.cluster_statuses(&region),
            vms: vms(&region),
            subnets: subnets(&region),
            troubles: troubles(),
            underway: self.clusters.underway(),
        }
    }

    fn cluster_statuses(&self, region: &Region) -> Vec<ClusterStatus> {
        let status = |cluster: &Arc<vnet::model::Cluster>| ClusterStatus {
            name: cluster.meta.id.name().to_owned(),
            resource_group: cluster.meta.id.resource_group().to_owned(),
            state: format!("{:?}", cluster.meta.state),
            network: network(cluster),
            kubernetes: cluster.version.clone(),
            nodes: nodes(region, &cluster.meta.id, &|machine| self.trouble(machine)),
        };
        region.clusters.values().map(status).collect()
    }

    /// The programs of a node that do not stay up.
    fn trouble(&self, machine: &vnet::model::Machine) -> Vec<String> {
        let lab = self.lab.name();
        let netns = vnet::host::names::machine_ns(lab, machine);
        // Sandboxes are named after their namespaces, without the lab's name.
        let sandbox = netns.strip_prefix(lab).map_or(&*netns, |rest| rest.trim_start_matches('-'));
        let logs = self.lab.log_dir().join(sandbox);
        let failing = linux::sandbox::failing(&logs).into_iter();
        let say = |failing: linux::sandbox::Failing| {
            let linux::sandbox::Failing { unit, how, last_words, log } = failing;
            format!("{unit} {how}, again and again; {} ends: {last_words}", log.display())
        };
        failing.map(say).collect()
    }

    fn pods(&self, ask: AskPods) -> Answer {
        let done = match ask {
            AskPods::Run { cluster, names, node, labels } => {
                let asked = daemon::clusters::RunPods { cluster, names, node, labels };
                self.runtime.block_on(self.clusters.run_pods(&self.store, &asked))
            }
            AskPods::List { cluster } => self
                .runtime
                .block_on(self.clusters.list_pods(cluster.as_deref()))
                .map(|pods| daemon::clusters::PodsDone { pods, failures: Vec::new() }),
            AskPods::Delete { cluster, names } => {
                self.runtime.block_on(self.clusters.delete_pods(&names, cluster.as_deref()))
            }
        };
        match done {
            Ok(daemon::clusters::PodsDone { pods, failures }) => {
                Answer::Pods { pods: pods.into_iter().map(PodStatus::from).collect(), failures }
            }
            Err(error) => Answer::Failed { message: daemon::reconcile::Chain(&error).to_string() },
        }
    }

    fn service_tags(&self, ask: AskTags) -> Answer {
        let tags = match ask {
            AskTags::Show => None,
            AskTags::Set(tags) => Some(Some(tags)),
            AskTags::Reset => Some(None),
        };
        if let Some(tags) = tags {
            let command = vnet::command::Command::SetServiceTags { tags };
            if let Err(error) = self.store.change(command, daemon::reconcile::now()) {
                return Answer::Failed { message: daemon::reconcile::Chain(&error).to_string() };
            }
        }
        Answer::ServiceTags(self.store.snapshot().service_tags().clone())
    }

    fn places(&self, names: &[String]) -> Answer {
        let region = self.store.snapshot();
        let pods = |name: &str| self.clusters.find_pods(&region, name);
        let finder = Finder { lab: self.lab.name(), region: &region, pods: &pods };
        match names.iter().map(|name| finder.find(name)).collect() {
            Ok(places) => Answer::Places(places),
            Err(message) => Answer::Failed { message },
        }
    }

    fn ground(&self, from: &str, to: &str) -> Answer {
        let region = self.store.snapshot();
        let pods = |name: &str| self.clusters.find_pods(&region, name);
        let finder = Finder { lab: self.lab.name(), region: &region, pods: &pods };
        match finder.find(from).and_then(|from| Ok((from, finder.find(to)?))) {
            Ok((mut from, to)) => {
                let mut watched = finder.between(&from, &to);
                for place in watched.iter_mut().chain([&mut from]) {
                    let machine = place.machine.as_ref().and_then(|id| region.machines.get(id));
                    place.first_process =
                        machine.and_then(|machine| self.clusters.first_process(machine));
                }
                let groups = daemon::metrics::groups(&region);
                Answer::Ground { from: Box::new(from), to: Box::new(to), watched, groups }
            }
            Err(message) => Answer::Failed { message },
        }
    }

    fn find(&self, name: &str) -> Answer {
        let region = self.store.snapshot();
        let pods = |name: &str| self.clusters.find_pods(&region, name);
        let finder = Finder { lab: self.lab.name(), region: &region, pods: &pods };
        let place = match finder.find_host(name) {
            Ok(place) => place,
            Err(message) => return Answer::Failed { message },
        };
        if place.machine.is_none() {
            // The internet is no machine's.
            let (netns, kind) = (place.netns, place.name);
            return Answer::Found { kind, netns, resolv_conf: None, first_process: None };
        }
        let Some(machine) = place.machine.as_ref().and_then(|id| region.machines.get(id)) else {
            return Answer::Failed { message: format!("the node of `{name}` is gone") };
        };
        let kind = place.name.split_once('/').map_or("", |(kind, _)| kind).to_owned();
        // A pod's own file is inside its container; its node's cluster decides what is in it.
        let is_pod = kind == "pod";
        let resolver = Resolver::of(&region, machine).filter(|_| !is_pod);
        Answer::Found {
            kind,
            netns: place.netns,
            resolv_conf: resolver.map(|it| it.to_string()),
            first_process: self.clusters.first_process(machine),
        }
    }
}

fn troubles() -> Vec<TroubleStatus> {
    let troubles = METER.troubles().into_iter();
    troubles.map(|(who, Trouble { error, times })| TroubleStatus { who, error, times }).collect()
}

fn network(cluster: &vnet::model::Cluster) -> String {
    use vnet::model::{Dataplane, NetworkLinks, NetworkMode};
    let pods = cluster.pools.values().any(|pool| pool.pod_subnet.is_some());
    let addresses = match cluster.mode {
        NetworkMode::Kubenet => "kubenet",
        NetworkMode::Azure if pods => "azure, pod subnet",
        NetworkMode::Azure if cluster.links == Some(NetworkLinks::Bridge) => "azure, bridge",
        NetworkMode::Azure => "azure",
        NetworkMode::Overlay => "azure, overlay",
        NetworkMode::None => "none",
    };
    match cluster.dataplane {
        Dataplane::Azure => addresses.to_owned(),
        Dataplane::Cilium => format!("{addresses}, cilium"),
    }
}

fn nodes(
    region: &Region,
    cluster: &vnet::name::ArmId,
    trouble: &dyn Fn(&vnet::model::Machine) -> Vec<String>,
) -> Vec<NodeStatus> {
    let node = |machine: &Arc<vnet::model::Machine>| {
        let Role::Node(role) = &machine.role else { return None };
        if role.cluster != *cluster {
            return None;
        }
        let nic = region.nics.get(&machine.nic)?;
        let subnet = nic.configs.first().map(|config| config.subnet.name().to_owned());
        Some(NodeStatus {
            name: machine.hostname.clone(),
            pool: role.pool.to_string(),
            phase: format!("{:?}", role.phase),
            address: nic.address()?.to_string(),
            subnet: subnet.unwrap_or_default(),
            pod_range: role.pod_range.map(|range| range.to_string()),
            trouble: trouble(machine),
        })
    };
    region.machines.values().filter_map(node).collect()
}

fn vms(region: &Region) -> Vec<VmStatus> {
    let vm = |machine: &Arc<vnet::model::Machine>| {
        if !matches!(machine.role, Role::Vm) {
            return None;
        }
        let nic = region.nics.get(&machine.nic)?;
        let config = nic.configs.first()?;
        Some(VmStatus {
            name: machine.hostname.clone(),
            resource_group: machine.meta.id.resource_group().to_owned(),
            state: format!("{:?}", machine.meta.state),
            address: config.address.to_string(),
            vnet: config.subnet.parent().map(|vnet| vnet.name().to_owned()).unwrap_or_default(),
            subnet: config.subnet.name().to_owned(),
        })
    };
    region.machines.values().filter_map(vm).collect()
}

fn subnets(region: &Region) -> Vec<SubnetStatus> {
    let mut all = Vec::new();
    for vnet in region.vnets.values() {
        for subnet in vnet.subnets.values() {
            all.push(SubnetStatus {
                vnet: vnet.meta.id.name().to_owned(),
                name: subnet.name.to_string(),
                prefix: subnet.prefix.to_string(),
                usable: subnet.usage().usable,
                held: subnet.usage().held,
                delegated_to: subnet.delegations.first().map(|given| given.service.clone()),
            });
        }
    }
    all
}

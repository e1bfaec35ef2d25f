//! The sandboxes of a cluster's nodes: started, drained, stopped. Not here: when a cluster is real.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddrV4},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{
    images::REGISTRY_PORT,
    pki::ClusterCertificates,
    programs::{CNI_BIN, Node, node},
    view,
};
use kube::Client;
use linux::sandbox::{Sandbox, SandboxSpec};
use tokio::task::JoinSet;
use vnet::{
    addr::{Family, Prefix},
    host::{names, platform::Resolver},
    model::{Cluster, Machine, UpgradeStep},
    name::ArmId,
    region::Region,
};

use super::{
    ClustersError, Shared, blocking, is_leaving, places::Places, records, seed, stop_sandbox,
};

/// Where Debian's reference plugins are. Nodes of AKS have them too.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The names of the lab's plugin: as a network's own, and as the one that Cilium asks for addresses.
const OWN_PLUGINS: [&str; 2] = ["aksnet-cni", "azure-ipam"];
/// Where containerd keeps images, on a node.
const CONTAINERD_ROOT: &str = "/var/lib/containerd";
/// How long pods may take to leave a node.
const DRAIN_PATIENCE: Duration = Duration::from_mins(1);

/// Since when nodes are being drained.
#[derive(Default)]
pub(super) struct Draining(BTreeMap<String, Instant>);

/// Starts every node that has a network namespace and does not run; says whether that was all of them.
pub(super) async fn start(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    cluster: &Arc<Cluster>,
    certificates: &Arc<ClusterCertificates>,
) -> Result<bool, ClustersError> {
    let mut starting = JoinSet::new();
    let mut is_all = true;
    for machine in region.nodes_of(&cluster.meta.id).into_iter().filter(|m| !is_leaving(m)) {
        // What is being taken down for an upgrade must not come up again as it was.
        let is_stopping = machine.node().is_some_and(|node| node.step == UpgradeStep::Stopping);
        if is_stopping
            || !linux::netns::path(&names::machine_ns(&shared.places.lab, machine)).exists()
        {
            is_all = false;
            continue;
        }
        let (shared, region, cluster) = (shared.clone(), region.clone(), cluster.clone());
        let (certificates, machine) = (certificates.clone(), machine.clone());
        let version = region.image_of(&machine).map_or(cluster.version.clone(), |it| it.version);
        let programs = shared.places.programs(&version)?;
        let seed = if cluster.dataplane.is_azure() { None } else { shared.cilium.seed() };
        starting.spawn(blocking(move || {
            plant(&shared.places, &machine, seed.as_deref());
            start_one(&shared.places, &region, &cluster, &machine, &certificates, &programs)
        }));
    }
    let mut result = Ok(is_all);
    while let Some(started) = starting.join_next().await {
        match started {
            Ok(Ok(())) => {}
            // The others go on; the first error is told.
            Ok(Err(err)) => result = result.and(Err(err)),
            Err(err) => std::panic::resume_unwind(err.into_panic()),
        }
    }
    result
}

fn start_one(
    places: &Places,
    region: &Region,
    cluster: &Cluster,
    machine: &Machine,
    certificates: &ClusterCertificates,
    programs: &Path,
) -> Result<(), ClustersError> {
    let role = machine.node();
    let Some(pool) = role.and_then(|role| cluster.pools.get(&role.pool)) else { return Ok(()) };
    let Some(address) = region.nics.get(&machine.nic).and_then(|nic| nic.address()) else {
        return Ok(());
    };
    let Some(resolver) = Resolver::of(region, machine) else { return Ok(()) };
    let netns = names::machine_ns(&places.lab, machine);
    let name = places.sandbox_name(&netns);
    let own = records::node_certificates(
        &places.state_of(name),
        certificates,
        &machine.hostname,
        address,
    )?;
    let vnet = region.vnets.get(&cluster.vnet);
    let prefixes: Vec<Prefix> =
        vnet.map_or_else(Vec::new, |vnet| vnet.prefixes4().into_iter().map(Prefix::from).collect());
    let mut subnets = vnet.into_iter().flat_map(|vnet| vnet.subnets.values());
    let subnet = subnets.find(|subnet| subnet.prefix.contains(address));
    let address_v6 = region.nics.get(&machine.nic).and_then(|nic| nic.address_of(Family::V6));
    let address_v6 = address_v6.and_then(|address| match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    });
    let computer = node(&Node {
        cluster,
        pool,
        machine,
        address,
        address_v6: address_v6.filter(|_| cluster.is_dual_stack()),
        vnet: &prefixes,
        subnet: subnet.map(|subnet| subnet.prefix),
        resolver: &resolver,
        authority: &certificates.authority.certificate,
        certificates: &own,
        registry: SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT),
    });
    let spec = places.sandbox(name, &netns, &computer, programs);
    if !is_running(places, &spec) {
        install_plugins(places, &places.folder_of(name, CNI_BIN))?;
        tracing::info!(node = machine.hostname, "starting");
    }
    Sandbox::start(&places.launcher(), &places.run_dir(), &spec)
        .map(drop)
        .map_err(|source| ClustersError::Sandbox { name: name.to_owned(), source })
}

/// Lets a new node begin with what containerd keeps of Cilium's images, if that is prepared.
fn plant(places: &Places, machine: &Machine, seed: Option<&Path>) {
    let Some(seed) = seed else { return };
    let netns = names::machine_ns(&places.lab, machine);
    let root = places.folder_of(places.sandbox_name(&netns), CONTAINERD_ROOT);
    match seed::plant(seed, &root) {
        Ok(true) => tracing::debug!(node = machine.hostname, "begins with Cilium's images"),
        Ok(false) => {}
        // It pulls, then.
        Err(error) => {
            tracing::warn!(node = machine.hostname, %error, "begins without Cilium's images");
        }
    }
}

fn is_running(places: &Places, spec: &SandboxSpec) -> bool {
    Sandbox::find(&places.run_dir(), &spec.name)
        .is_some_and(|sandbox| sandbox.spec().digest == spec.digest)
}

/// Fills a node's folder of CNI plugins; what users have put there stays.
fn install_plugins(places: &Places, folder: &Path) -> Result<(), ClustersError> {
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ClustersError::File { action, path, source }
    };
    fs::create_dir_all(folder).map_err(file("make", folder))?;
    let reference = Path::new(REFERENCE_PLUGINS);
    for entry in fs::read_dir(reference).map_err(file("list", reference))?.flatten() {
        // Copies: a link would lead out of the containers that see this folder, and one that can be
        // written through would change the machine's own.
        let target = folder.join(entry.file_name());
        if !target.exists() {
            let beside = folder.join(".plugin.new");
            fs::copy(entry.path(), &beside).map_err(file("copy", &entry.path()))?;
            fs::rename(&beside, &target).map_err(file("write", &target))?;
        }
    }
    let plugin = places.cni_plugin();
    if plugin.exists() {
        for name in OWN_PLUGINS {
            let target = folder.join(name);
            let beside = folder.join(".plugin.new");
            fs::copy(&plugin, &beside).map_err(file("copy", &plugin))?;
            fs::rename(&beside, &target).map_err(file("write", &target))?;
        }
    }
    Ok(())
}

/// Takes nodes out of the cluster that are to leave, or whose machine is gone: their pods first, then the
/// node, then what runs. Says whether none is left.
pub(super) async fn remove(
    shared: &Arc<Shared>,
    region: &Region,
    id: &ArmId,
    client: &Client,
    registered: impl Iterator<Item = &String>,
    draining: &mut Draining,
) -> Result<bool, ClustersError> {
    let api = |action| {
        let cluster = id.name().to_owned();
        move |source| ClustersError::Api { action, cluster, source: Box::new(source) }
    };
    let machines = region.nodes_of(id);
    for name in registered {
        let machine = machines.iter().find(|machine| machine.hostname == *name);
        match machine {
            Some(machine) if !is_leaving(machine) => continue,
            Some(_) => {
                let since = *draining.0.entry(name.clone()).or_insert_with(Instant::now);
                let drained =
                    view::drain_node(client, name).await.map_err(api("draining a node"))?;
                if drained.n_staying > 0 && since.elapsed() < DRAIN_PATIENCE {
                    continue;
                }
            }
            None => {}
        }
        tracing::info!(node = name, "removing");
        view::delete_node(client, name).await.map_err(api("removing a node"))?;
        draining.0.remove(name);
    }
    let mut is_none_left = true;
    for machine in machines.into_iter().filter(|machine| is_leaving(machine)) {
        if draining.0.contains_key(&machine.hostname) {
            is_none_left = false;
            continue;
        }
        let netns = names::machine_ns(&shared.places.lab, machine);
        stop_sandbox(&shared.places, shared.places.sandbox_name(&netns)).await?;
    }
    Ok(is_none_left)
}

/// Stops a cluster's nodes and its control plane, all at once, and forgets what they kept.
pub(super) async fn stop_all(
    shared: &Arc<Shared>,
    region: &Region,
    id: &ArmId,
) -> Result<(), ClustersError> {
    let lab = &shared.places.lab;
    let nodes = region.nodes_of(id).into_iter().map(|machine| names::machine_ns(lab, machine));
    let mut stopping = JoinSet::new();
    for netns in nodes.chain([names::control_plane_ns(lab, id)]) {
        let shared = shared.clone();
        stopping.spawn(async move {
            let name = shared.places.sandbox_name(&netns).to_owned();
            stop_sandbox(&shared.places, &name).await
        });
    }
    let mut result = Ok(());
    while let Some(stopped) = stopping.join_next().await {
        match stopped {
            Ok(stopped) => result = result.and(stopped),
            Err(err) => std::panic::resume_unwind(err.into_panic()),
        }
    }
    result
}

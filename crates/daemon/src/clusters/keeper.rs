//! Keeps one cluster as the region says. Not here: its nodes' sandboxes (see [`super::nodes`]).

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{
    addons::{self, Group, Values},
    install::CILIUM_VERSION,
    pki::ClusterCertificates,
    programs::{ControlPlane, control_plane},
    view,
};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::watcher::{self, watcher},
};
use linux::sandbox::Sandbox;
use store::Store;
use tokio::{sync::Notify, task::JoinSet};
use vnet::{
    fault::Fault,
    host::names,
    model::{Cluster, Dataplane, NodePhase, ProvisioningState, UpgradeStep},
    name::ArmId,
    region::Region,
};

use super::{
    ClustersError, RESYNC, Shared, blocking, cilium, is_leaving, nodes,
    proxy::{Proxy, preferred_port},
    records, report, upgrades, wanted_phase,
};
use crate::reconcile::Chain;

/// How soon a cluster is looked at again while it is not as it should be.
const HURRY: Duration = Duration::from_millis(200);
/// How long an operation may take before it fails.
const PATIENCE: Duration = Duration::from_mins(10);

/// How a cluster is after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// As asked.
    Settled,
    /// On its way.
    Underway,
    /// Not in the region any more.
    Gone,
}

/// What a task knows of its cluster beside the region. All of it can be found out again.
struct Keeper {
    shared: Arc<Shared>,
    store: Store,
    id: ArmId,
    proxy: Option<Proxy>,
    client: Option<Client>,
    kubeconfig: String,
    /// Add-ons that this task has applied, and with what.
    applied: Vec<(Group, Values)>,
    /// Whether Cilium's images are being got, which takes minutes.
    is_waiting: bool,
    /// Rung by the watch of nodes.
    bell: Arc<Notify>,
    watching: JoinSet<()>,
    draining: nodes::Draining,
    upgrades: upgrades::Upgrades,
}

/// Keeps a cluster until it is gone from the region.
pub(super) async fn keep(shared: Arc<Shared>, store: Store, id: ArmId) {
    let mut keeper = Keeper {
        shared,
        store,
        id,
        proxy: None,
        client: None,
        kubeconfig: String::new(),
        applied: Vec::new(),
        is_waiting: false,
        bell: Arc::default(),
        watching: JoinSet::new(),
        draining: nodes::Draining::default(),
        upgrades: upgrades::Upgrades::default(),
    };
    let mut wake = keeper.store.watch();
    let mut trouble = Trouble::default();
    loop {
        wake.mark_unchanged();
        let wait = match keeper.pass().await {
            Ok(Outcome::Gone) => return,
            Ok(Outcome::Settled) => {
                trouble = Trouble::default();
                RESYNC
            }
            Ok(Outcome::Underway) => {
                let (steps, is_draining) = upgrades::progress(&keeper.store.snapshot(), &keeper.id);
                trouble.note(steps, is_draining || keeper.is_waiting);
                trouble.begin();
                HURRY
            }
            Err(err) => {
                trouble.meet(&keeper.id, &err);
                HURRY * 2
            }
        };
        if let Some(fault) = trouble.fault() {
            // A report that is not taken is made again after the next pass.
            if report::failed(&keeper.store, &keeper.store.snapshot(), &keeper.id, &fault).is_ok() {
                trouble = Trouble { told: true, ..Trouble::default() };
            }
        }
        tokio::select! {
            woken = wake.changed() => if woken.is_err() { return },
            () = keeper.bell.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long a cluster has not been what it should be, and why.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    last: String,
    is_final: bool,
    told: bool,
    progress: u64,
}

impl Trouble {
    /// Each step of a long way is a beginning; pods that leave, and programs that are built, have a patience of
    /// their own.
    fn note(&mut self, progress: u64, is_patient: bool) {
        if is_patient || progress != self.progress {
            self.since = None;
        }
        self.progress = progress;
    }

    fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn meet(&mut self, cluster: &ArmId, err: &ClustersError) {
        self.begin();
        let text = Chain(err).to_string();
        if text != self.last {
            tracing::warn!(
                cluster = cluster.name(),
                error = text,
                "reconciliation failed; it will be tried again"
            );
            self.told = false;
        }
        self.last = text;
        // Waiting does not install programs.
        self.is_final =
            matches!(err, ClustersError::Programs { .. } | ClustersError::Cilium { .. });
    }

    /// What a running operation ends with, if it is to end.
    fn fault(&self) -> Option<Fault> {
        let is_late = self.since.is_some_and(|since| since.elapsed() > PATIENCE);
        if self.told || !(self.is_final || is_late) {
            return None;
        }
        let text =
            if self.last.is_empty() { "its nodes are not what was asked" } else { &self.last };
        Some(Fault::new(500, "CreateClusterError", format!("The cluster cannot run: {text}.")))
    }
}

impl Keeper {
    /// Compares the cluster with the region and takes it one step nearer.
    async fn pass(&mut self) -> Result<Outcome, ClustersError> {
        let region = self.store.snapshot();
        let Some(cluster) = region.clusters.get(&self.id).cloned() else {
            self.shared.kubeconfigs().remove(&self.id);
            return Ok(Outcome::Gone);
        };
        if cluster.meta.state == ProvisioningState::Deleting {
            return self.tear_down(&region).await;
        }
        let programs = self.shared.places.programs(&cluster.version)?;
        let netns = names::control_plane_ns(&self.shared.places.lab, &self.id);
        if !linux::netns::path(&netns).exists() {
            return Ok(Outcome::Underway);
        }
        let certificates = self.start_control_plane(&netns, &cluster, &programs).await?;
        let all_started = nodes::start(&self.shared, &region, &cluster, &certificates).await?;
        let client = self.client(&netns, &cluster, &certificates).await?;
        if !view::is_ready(&client).await {
            return Ok(Outcome::Underway);
        }
        self.publish(&client);
        let is_complete = self.apply_addons(&client, &cluster).await?;
        let phases = view::observe_nodes(&client).await.map_err(self.api("listing nodes"))?;
        self.report_nodes(&region, &phases)?;
        let pass = upgrades::Pass {
            shared: &self.shared,
            store: &self.store,
            region: &region,
            cluster: &cluster,
            client: &client,
        };
        // No node is taken down for a data plane that is not to be had yet.
        if !self.is_waiting {
            upgrades::advance(&pass, &mut self.upgrades).await?;
        }
        // Machines that came after the pass began may have registered meanwhile.
        let all_left = nodes::remove(
            &self.shared,
            &self.store.snapshot(),
            &self.id,
            &client,
            phases.keys(),
            &mut self.draining,
        )
        .await?;
        let wanted = wanted_phase(cluster.mode);
        let all_here =
            region.nodes_of(&self.id).into_iter().filter(|m| !is_leaving(m)).all(|machine| {
                let phase = phases.get(&machine.hostname);
                phase.is_some_and(|phase| *phase == NodePhase::Ready || *phase == wanted)
            });
        let takes_pods = view::takes_pods(&client).await;
        let takes_pods = takes_pods.map_err(self.api("looking for the default account"))?;
        let is_upgrading = region.is_upgrading(&self.id);
        if is_upgrading || !(all_started && is_complete && all_left && all_here && takes_pods) {
            return Ok(Outcome::Underway);
        }
        report::real(&self.store, &region, &self.id)?;
        Ok(Outcome::Settled)
    }

    /// Starts the control plane unless it runs.
    async fn start_control_plane(
        &self,
        netns: &str,
        cluster: &Arc<Cluster>,
        programs: &Path,
    ) -> Result<Arc<ClusterCertificates>, ClustersError> {
        let (shared, cluster) = (self.shared.clone(), cluster.clone());
        let (netns, programs) = (netns.to_owned(), programs.to_owned());
        blocking(move || {
            let places = &shared.places;
            let name = places.sandbox_name(&netns);
            let certificates = records::cluster_certificates(&places.state_of(name), &cluster)?;
            let input = ControlPlane { cluster: &cluster, certificates: &certificates };
            let spec = places.sandbox(name, &netns, &control_plane(&input), &programs);
            Sandbox::start(&places.launcher(), &places.run_dir(), &spec)
                .map_err(|source| ClustersError::Sandbox { name: name.to_owned(), source })?;
            Ok(Arc::new(certificates))
        })
        .await
    }

    /// A client by way of the loopback port, which is opened at first.
    async fn client(
        &mut self,
        netns: &str,
        cluster: &Cluster,
        certificates: &ClusterCertificates,
    ) -> Result<Client, ClustersError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let folder = self.shared.places.state_of(self.shared.places.sandbox_name(netns));
        let kept = folder.join("port");
        let proxy = Proxy::start(
            &kept,
            preferred_port(&cluster.fqdn),
            netns.to_owned(),
            SocketAddrV4::new(cluster.api_address, 443),
        )
        .await
        .map_err(|source| ClustersError::File {
            action: "listen on the port of",
            path: kept,
            source,
        })?;
        let text = records::kubeconfig(&folder, cluster, certificates, proxy.port())?;
        let client = view::client(&text).await.map_err(self.api("making a client"))?;
        self.kubeconfig = text;
        self.proxy = Some(proxy);
        self.client = Some(client.clone());
        Ok(client)
    }

    /// The API server is there: whoever asks gets the kubeconfig, and its nodes are watched.
    fn publish(&mut self, client: &Client) {
        if self.watching.is_empty() {
            self.shared.kubeconfigs().insert(self.id.clone(), self.kubeconfig.clone());
            self.watching.spawn(ring(client.clone(), self.bell.clone()));
        }
    }

    /// Puts add-ons into the cluster, each group once and again when what it depends on changes; says whether all are
    /// there.
    async fn apply_addons(
        &mut self,
        client: &Client,
        cluster: &Cluster,
    ) -> Result<bool, ClustersError> {
        let is_cilium = cluster.dataplane == Dataplane::Cilium;
        let values = Values::of(cluster);
        let all = [Group::Base, Group::CiliumAccess, Group::Cilium, Group::Dns];
        let of_cilium = |group: &Group| matches!(group, Group::CiliumAccess | Group::Cilium);
        for group in all.into_iter().filter(|group| is_cilium || !of_cilium(group)) {
            if self.applied.iter().any(|(there, with)| *there == group && *with == values) {
                continue;
            }
            // A pod that is too early for its image waits ten seconds for the next try.
            if group == Group::Dns && !*self.shared.images.borrow() {
                return Ok(false);
            }
            if group == Group::Cilium {
                let images = cilium::ensure(&self.shared, CILIUM_VERSION)?;
                self.is_waiting = images != cilium::Images::Ready;
                let is_told = addons::tells_api_server(client).await;
                if self.is_waiting || !is_told.map_err(self.api("asking about pods"))? {
                    return Ok(false);
                }
            }
            let applied = addons::apply(client, group, &values).await;
            applied.map_err(self.api("applying add-ons"))?;
            self.applied.retain(|(there, _)| *there != group);
            self.applied.push((group, values.clone()));
        }
        if is_cilium {
            let is_there = addons::is_rolled_out(client).await;
            return is_there.map_err(self.api("asking about Cilium's agents"));
        }
        Ok(true)
    }

    fn report_nodes(
        &self,
        region: &Region,
        phases: &BTreeMap<String, NodePhase>,
    ) -> Result<(), ClustersError> {
        for machine in region.nodes_of(&self.id).into_iter().filter(|machine| !is_leaving(machine))
        {
            let is_stopping = machine.node().is_some_and(|node| node.step == UpgradeStep::Stopping);
            // What the API server still says of it is of what it was.
            if let Some(phase) = phases.get(&machine.hostname).filter(|_| !is_stopping) {
                report::node(&self.store, machine, *phase)?;
            }
        }
        Ok(())
    }

    /// Stops everything of the cluster's, then says so.
    async fn tear_down(&mut self, region: &Region) -> Result<Outcome, ClustersError> {
        self.watching = JoinSet::new();
        (self.client, self.proxy) = (None, None);
        self.shared.kubeconfigs().remove(&self.id);
        nodes::stop_all(&self.shared, region, &self.id).await?;
        report::gone(&self.store, &self.id)?;
        Ok(Outcome::Underway)
    }

    fn api<E>(&self, action: &'static str) -> impl FnOnce(E) -> ClustersError + use<E>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let cluster = self.id.name().to_owned();
        move |source| ClustersError::Api { action, cluster, source: Box::new(source) }
    }
}

/// Rings whenever something about the cluster's nodes changes.
async fn ring(client: Client, bell: Arc<Notify>) {
    let mut events = std::pin::pin!(watcher(Api::<Node>::all(client), watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => bell.notify_one(),
            // The API server is not there, or not yet: the watch begins anew.
            Err(_) => tokio::time::sleep(HURRY).await,
        }
    }
}

//! A real cluster in a lab of its own: made, left alone when the loops end, made whole after a crash,
//! removed. Needs root, and Kubernetes' programs in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use daemon::{
    clusters::{Clusters, Nodes, Settings},
    reconcile::now,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use linux::sandbox::Sandbox;
use store::Store;
use tokio::time::{Instant, sleep};
use vnet::{
    command::Command,
    model::{NodePhase, ProvisioningState},
    name::ArmId,
};

#[path = "../examples/clusters/region.rs"]
mod region;

/// A lab whose folders are in one place and go with it.
struct World {
    lab: String,
    dir: PathBuf,
    store: Store,
    cluster: ArmId,
}

impl World {
    fn new(letter: char) -> Self {
        let lab = format!("{letter}{}", std::process::id());
        let dir = Path::new("/var/tmp").join(format!("aksnet-test-{lab}"));
        let store = Store::in_memory().expect("a store");
        let cluster = region::ask(&store, 1).expect("a cluster");
        Self { lab, dir, store, cluster }
    }

    fn clusters(&self, nodes: Nodes) -> Clusters {
        let settings = Settings {
            lab: self.lab.clone(),
            nodes,
            state_dir: self.dir.join("state"),
            run_dir: self.dir.join("run"),
            log_dir: self.dir.join("log"),
            cache_dir: region::cache_dir(),
            kubernetes: cluster::install::DEFAULT_VERSION.to_owned(),
        };
        // The example that cargo builds beside the tests.
        let test = std::env::current_exe().expect("this program");
        let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
        Clusters::with_program(settings, &profile.join("examples/clusters"))
    }

    /// Runs the loops as a daemon does, until `work` is done; then they end as if it were killed.
    async fn with_loops<T>(&self, clusters: &Clusters, work: impl Future<Output = T>) -> T {
        let fabric = daemon::fabric::Settings { lab: self.lab.clone(), ..Default::default() };
        tokio::select! {
            done = work => done,
            () = daemon::fabric::run(self.store.clone(), fabric) => panic!("the fabric ended"),
            () = clusters.run(self.store.clone()) => panic!("the clusters ended"),
        }
    }

    /// Waits until no operation runs on the cluster.
    async fn settled(&self) {
        eventually("the operation ends", async || {
            self.store.snapshot().running_write(&self.cluster).is_none()
        })
        .await;
    }

    fn state(&self) -> Option<ProvisioningState> {
        self.store.snapshot().clusters.get(&self.cluster).map(|cluster| cluster.meta.state)
    }

    fn sandboxes(&self) -> Vec<(String, Option<i32>)> {
        let run_dir = self.dir.join("run/sandboxes");
        let names = Sandbox::list(&run_dir).into_iter();
        names
            .map(|name| {
                let pid = Sandbox::find(&run_dir, &name).map(|sandbox| sandbox.pid());
                (name, pid)
            })
            .collect()
    }

    /// The folder behind `/etc/cni/net.d` of the only node.
    fn cni_folder(&self) -> PathBuf {
        let (name, _) = self
            .sandboxes()
            .into_iter()
            .find(|(name, _)| name.starts_with("node-"))
            .expect("a node runs");
        self.dir.join("state/sandboxes").join(name).join("root/etc-cni-net.d")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = daemon::clusters::down(&self.lab, &self.dir.join("run"));
        let _ = daemon::fabric::down(&self.lab);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn only_node(client: &Client) -> Option<Node> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.ok()?;
    nodes.items.into_iter().next()
}

/// Status and message of the node's condition `Ready`.
async fn readiness(client: &Client) -> (String, String) {
    let status = only_node(client).await.and_then(|node| node.status);
    let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.map(|ready| (ready.status, ready.message.unwrap_or_default())).unwrap_or_default()
}

/// Debian's reference plugin, as a user would install it.
const PTP: &str = r#"{"cniVersion": "0.4.0", "name": "own", "plugins": [{"type": "ptp", "ipMasq": true,
    "ipam": {"type": "host-local", "subnet": "10.244.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_lives_and_leaves_nothing() {
    let world = World::new('k');
    let clusters = world.clusters(Nodes::Kubernetes);
    let client = world
        .with_loops(&clusters, async {
            world.settled().await;
            assert_eq!(world.state(), Some(ProvisioningState::Succeeded));
            let kubeconfig = clusters.credentials(&world.cluster).expect("a kubeconfig");
            let client = cluster::view::client(&kubeconfig).await.expect("a client");
            let (status, message) = readiness(&client).await;
            assert_eq!(status, "False");
            assert!(message.contains("cni plugin not initialized"), "{message}");

            fs::write(world.cni_folder().join("10-own.conflist"), PTP).expect("written");
            eventually("the node is Ready", async || readiness(&client).await.0 == "True").await;
            eventually("the region knows", async || {
                let region = world.store.snapshot();
                let nodes = region.nodes_of(&world.cluster);
                nodes.iter().filter_map(|m| m.node()).all(|node| node.phase == NodePhase::Ready)
            })
            .await;
            client
        })
        .await;

    let before = world.sandboxes();
    assert_eq!(before.len(), 3, "{before:?}");
    let clusters = world.clusters(Nodes::Kubernetes);
    world
        .with_loops(&clusters, async {
            eventually("the cluster is found again", async || {
                clusters.credentials(&world.cluster).is_some()
            })
            .await;
            assert_eq!(world.sandboxes(), before, "nothing that runs is disturbed");
            a_pod_runs(&client).await;

            let (_, pid) = before.iter().find(|(name, _)| name.starts_with("node-")).expect("node");
            let kill = std::process::Command::new("kill")
                .args(["-9", &pid.expect("it runs").to_string()])
                .status();
            assert!(kill.expect("kill runs").success());
            eventually("the node runs again", async || {
                world.sandboxes().iter().all(|(_, pid)| pid.is_some())
                    && world.sandboxes() != before
            })
            .await;

            let delete = Command::Delete { id: world.cluster.clone() };
            world.store.change(delete, now()).expect("accepted");
            eventually("the cluster is gone", async || world.state().is_none()).await;
        })
        .await;
    let left: Vec<String> = world.sandboxes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["registry"]);
    daemon::clusters::down(&world.lab, &world.dir.join("run")).expect("down");
    assert!(world.sandboxes().is_empty());
    let cgroups = Path::new("/sys/fs/cgroup");
    let version_1 = fs::read_dir(cgroups).expect("cgroups").flatten().map(|entry| entry.path());
    for hierarchy in version_1.chain([cgroups.to_owned()]) {
        let left = hierarchy.join("aksnet").join(&world.lab);
        assert!(!left.exists(), "{}", left.display());
    }
}

/// A pod of the image that articles use, pulled from the lab's registry.
async fn a_pod_runs(client: &Client) {
    // The lab's controller does this, which does not run here.
    let node = only_node(client).await.expect("a node");
    let name = node.metadata.name.expect("a name");
    let patch = Patch::Merge(serde_json::json!({"spec": {"taints": null}}));
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch(&name, &PatchParams::default(), &patch).await.expect("untainted");

    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "nginx"}], "terminationGracePeriodSeconds": 1},
    }));
    let pod: Pod = pod.expect("a pod");
    // Refused until the namespace has its service account.
    eventually("the pod is accepted", async || {
        pods.create(&PostParams::default(), &pod).await.is_ok()
    })
    .await;
    eventually("the pod runs", async || {
        let status = pods.get("web").await.ok().and_then(|pod| pod.status);
        status.and_then(|status| status.phase).as_deref() == Some("Running")
    })
    .await;
    let logs = pods.logs("web", &LogParams::default()).await.expect("logs");
    assert!(logs.contains("nginx/"), "{logs}");
    pods.delete("web", &DeleteParams::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_clusters_are_real_at_once() {
    let world = World::new('s');
    let clusters = world.clusters(Nodes::Simulated);
    let work = async {
        world.settled().await;
        assert_eq!(world.state(), Some(ProvisioningState::Succeeded));
        assert!(clusters.credentials(&world.cluster).is_none());
        world.store.change(Command::Delete { id: world.cluster.clone() }, now()).expect("accepted");
        eventually("the cluster is gone", async || world.state().is_none()).await;
    };
    tokio::select! {
        () = work => {}
        () = clusters.run(world.store.clone()) => panic!("the clusters ended"),
    }
    assert!(world.sandboxes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_installed_fails_the_operation() {
    let world = World::new('v');
    let clusters = world.clusters(Nodes::Kubernetes);
    let region = world.store.snapshot();
    let operation = region.running_write(&world.cluster).expect("an operation").id;
    let cache = world.dir.join("cache");
    let settings = Settings {
        lab: world.lab.clone(),
        nodes: Nodes::Kubernetes,
        state_dir: world.dir.join("state"),
        run_dir: world.dir.join("run"),
        log_dir: world.dir.join("log"),
        cache_dir: cache,
        kubernetes: cluster::install::DEFAULT_VERSION.to_owned(),
    };
    drop(clusters);
    let clusters = Clusters::new(settings);
    tokio::select! {
        () = world.settled() => {}
        () = clusters.run(world.store.clone()) => panic!("the clusters ended"),
    }
    let region = world.store.snapshot();
    let (_, fault) = region.operation(operation).and_then(|it| it.ended.clone()).expect("ended");
    let message = fault.expect("it failed").message;
    assert!(message.contains("aksnet kubernetes install --version 1.36.3"), "{message}");
}

//! The agent and a real API server: where its addresses come from and how it asks for more. Needs
//! root, etcd, and `kube-apiserver` where `aksnet kubernetes install` puts it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lab::pods::{NEIGHBOUR, Said, World, wait};
use linux::netns::Netns;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(10);
const CONFIGS: &str = "/apis/acn.azure.com/v1alpha/namespaces/kube-system/nodenetworkconfigs";

/// etcd and an API server in the neighbour's namespace.
struct Cluster {
    namespace: Netns,
    directory: TempDir,
    programs: [Child; 2],
}

impl Cluster {
    fn start(world: &World) -> Self {
        let namespace = Netns::open(&world.netns("out")).unwrap();
        let directory = TempDir::new().unwrap();
        let file = |name: &str| directory.path().join(name);
        let start = |program: &Path, arguments: &[String], log: &str| {
            let log = fs::File::create(file(log)).unwrap();
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stderr(log.try_clone().unwrap());
            command.stdout(log);
            namespace.run(|| command.spawn()).unwrap().unwrap()
        };
        let data = file("etcd");
        let etcd = [
            format!("--data-dir={}", data.display()),
            "--unsafe-no-fsync".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ];
        let etcd = start(Path::new("etcd"), &etcd, "etcd.log");
        let key = file("key.pem");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        fs::write(file("tokens.csv"), "secret,admin,1,system:masters\n").unwrap();
        let apiserver = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://lab".to_owned(),
            format!("--service-account-key-file={}", key.display()),
            format!("--service-account-signing-key-file={}", key.display()),
            format!("--token-auth-file={}", file("tokens.csv").display()),
            format!("--cert-dir={}", file("certificates").display()),
            format!("--advertise-address={NEIGHBOUR}"),
            "--authorization-mode=AlwaysAllow".to_owned(),
        ];
        let apiserver = start(&program(), &apiserver, "apiserver.log");
        let log = file("apiserver.log");
        let cluster = Self { namespace, directory, programs: [etcd, apiserver] };
        let is_ready = || cluster.call("GET", "/readyz", &Value::Null) == json!("ok");
        assert!(wait(Duration::from_mins(1), is_ready), "{}", fs::read_to_string(log).unwrap());
        cluster
    }

    /// Calls the API; an answer that is no JSON comes back as a string.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        let mut command = Command::new("curl");
        command
            .args(["-sk", "-X", method, "-H", "Authorization: Bearer secret"])
            .args(["-H", &format!("Content-Type: application/{kind}")])
            .arg(format!("https://{NEIGHBOUR}:6443{path}"))
            .stdout(Stdio::piped());
        if !body.is_null() {
            command.args(["-d", &body.to_string()]);
        }
        let child = self.namespace.run(|| command.spawn()).unwrap().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        let server = format!("https://{NEIGHBOUR}:6443");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "u", "user": { "token": "secret" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Defines the kind as AKS does, as far as the agent sees it.
    fn define_network_configs(&self) {
        let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": "nodenetworkconfigs.acn.azure.com" },
            "spec": {
                "group": "acn.azure.com",
                "scope": "Namespaced",
                "names": {
                    "kind": "NodeNetworkConfig", "listKind": "NodeNetworkConfigList",
                    "plural": "nodenetworkconfigs", "singular": "nodenetworkconfig", "shortNames": ["nnc"],
                },
                "versions": [{
                    "name": "v1alpha", "served": true, "storage": true,
                    "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": {
                        "type": "object", "properties": { "spec": any, "status": any },
                    } },
                }],
            },
        });
        self.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition);
        let served = || self.call("GET", CONFIGS, &Value::Null)["items"].is_array();
        assert!(wait(PATIENCE, served), "{}", self.call("GET", CONFIGS, &Value::Null));
        self.call("POST", "/api/v1/namespaces", &json!({ "metadata": { "name": "kube-system" } }));
    }

    fn create_network_config(&self) {
        let object = json!({
            "apiVersion": "acn.azure.com/v1alpha",
            "kind": "NodeNetworkConfig",
            "metadata": { "name": "node" },
            "spec": {},
        });
        let made = self.call("POST", CONFIGS, &object);
        assert_eq!(made["metadata"]["name"], "node", "{made}");
    }

    fn grant(&self, container: &Value) {
        let status = json!({ "status": {
            "scaler": { "batchSize": 16, "requestThresholdPercent": 50, "releaseThresholdPercent": 150, "maxIPCount": 250 },
            "networkContainers": [container],
        } });
        let object = self.call("PATCH", &format!("{CONFIGS}/node/status"), &status);
        assert!(object["status"].is_object(), "{object}");
    }

    fn spec(&self) -> Value {
        self.call("GET", &format!("{CONFIGS}/node"), &Value::Null)["spec"].clone()
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let good = wait(PATIENCE, || holds(&self.spec()));
        assert!(good, "{what}: {}", self.spec());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn program() -> PathBuf {
    let cache = std::env::var_os("AKSNET_CACHE").unwrap_or_else(|| "/var/cache/aksnet".into());
    let root = Path::new(&cache).join("kubernetes");
    let versions = fs::read_dir(&root).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> = versions.map(|version| version.path().join("kube-apiserver")).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| {
        panic!("no kube-apiserver below {}: run `aksnet kubernetes install`", root.display())
    })
}

fn assignments(range: std::ops::Range<u8>) -> Value {
    let all: Vec<_> = range
        .map(|n| json!({ "name": format!("name-{n}"), "ip": format!("10.1.0.{n}") }))
        .collect();
    json!({ "id": "nc", "type": "vnet", "assignmentMode": "dynamic", "primaryIP": "10.1.0.4", "ipAssignments": all })
}

#[test]
fn the_agent_learns_from_the_cluster_and_asks_it_for_more() {
    let mut world = World::new(PROGRAM);
    let cluster = Cluster::start(&world);
    let kubeconfig = cluster.kubeconfig();
    cluster.define_network_configs();

    // A pod subnet: the node asks for a batch, and for another when fewer than eight are free.
    world.start_agent_of_cluster("pod-subnet", &kubeconfig);
    let network = world.network("1.0.0");
    let _ = world.container("p0");
    assert!(wait(PATIENCE, || world
        .plugin("ADD", "p0", &network)
        .stdout
        .contains("no pod addresses yet")));
    cluster.create_network_config();
    cluster.wait_for("the first batch", |spec| spec["requestedIPCount"] == 16);
    cluster.grant(&assignments(16..32));
    world.wait_for_network();
    let names: Vec<_> = (0..9).map(|n| format!("p{n}")).collect();
    for (number, name) in names.iter().enumerate() {
        let _ = world.container(name);
        let said = world.plugin("ADD", name, &network);
        assert!(said.success, "{said:?}\n{}", world.agent_log());
        if number == 7 {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(cluster.spec()["requestedIPCount"], 16, "eight are still free");
        }
    }
    cluster.wait_for("the second batch", |spec| spec["requestedIPCount"] == 32);
    cluster.grant(&assignments(16..48));
    // Twenty-four free: one batch goes back, and none of it is in use.
    let held: Vec<_> =
        names[1..].iter().map(|name| world.plugin("ADD", name, &network).address()).collect();
    assert!(world.plugin("DEL", "p0", &network).success);
    cluster.wait_for("a batch goes back", |spec| {
        spec["requestedIPCount"] == 16
            && spec["ipsNotInUse"].as_array().is_some_and(|list| list.len() == 16)
    });
    let offered = cluster.spec()["ipsNotInUse"].clone();
    let offered: Vec<_> = offered.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for address in &held {
        let name = format!("name-{}", address.rsplit('.').next().unwrap());
        assert!(!offered.contains(&name.as_str()), "{name} is in use");
    }
    // The agent is started anew while the offer stands: what was offered is not handed out.
    world.kill_agent();
    world.start_agent_of_cluster("pod-subnet", &kubeconfig);
    world.wait_for_network();
    let later: Vec<_> = (0..8).map(|n| format!("q{n}")).collect();
    for name in &later {
        let _ = world.container(name);
        let said = world.plugin("ADD", name, &network);
        let name = format!("name-{}", said.address().rsplit('.').next().unwrap());
        assert!(!offered.contains(&name.as_str()), "{name} was offered back");
    }
    let _ = world.container("q8");
    let said = world.plugin("ADD", "q8", &network);
    assert!(said.stdout.contains("not enough IPs"), "only offered ones are left: {said:?}");
    let kept: Vec<_> = (16..48_u8)
        .map(|n| json!({ "name": format!("name-{n}"), "ip": format!("10.1.0.{n}") }))
        .filter(|one| !offered.contains(&one["name"].as_str().unwrap()))
        .collect();
    cluster.grant(
        &json!({ "id": "nc", "type": "vnet", "primaryIP": "10.1.0.4", "ipAssignments": kept }),
    );
    cluster.wait_for("the list is tidied", |spec| spec["ipsNotInUse"] == json!([]));
    for name in names.iter().chain(&later) {
        assert!(world.plugin("DEL", name, &network).success);
    }
    world.kill_agent();

    // Overlay: the node's block is the primary address of its container.
    cluster.grant(&json!({ "id": "nc", "type": "overlay", "primaryIP": "10.244.7.0/24" }));
    world.start_agent_of_cluster("overlay", &kubeconfig);
    world.wait_for_network();
    assert_eq!(world.plugin("ADD", "p0", &network).address(), "10.244.7.0");
    assert!(world.plugin("DEL", "p0", &network).success);
    world.kill_agent();

    static_blocks(&mut world, &cluster);

    // Kubenet: the block is the Node's.
    world.start_agent_of_cluster("kubenet", &kubeconfig);
    let node = json!({ "metadata": { "name": "node" }, "spec": { "podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"] } });
    cluster.call("POST", "/api/v1/nodes", &node);
    world.wait_for_network();
    assert_eq!(world.plugin("ADD", "p1", &network).address(), "10.244.3.2");
    assert!(world.plugin("DEL", "p1", &network).success);
}

/// Static blocks: all addresses of both but the node's own, the first one, and no question for more.
fn static_blocks(world: &mut World, cluster: &Cluster) {
    cluster.grant(&json!({
        "id": "nc", "type": "vnetblock", "assignmentMode": "static", "subnetName": "pods",
        "primaryIP": "10.1.2.16/28", "ipAssignments": [{ "name": "block", "ip": "10.1.2.32/28" }],
    }));
    let asked = cluster.spec();
    world.start_agent_of_cluster("pod-subnet", &cluster.kubeconfig());
    let network = world.network("1.0.0");
    world.wait_for_network();
    let all: Vec<_> = (0..32).map(|n| format!("b{n}")).collect();
    let given: Vec<_> = all
        .iter()
        .map(|name| {
            let _ = world.container(name);
            world.plugin("ADD", name, &network)
        })
        .collect();
    let addresses: BTreeSet<_> = given[..31].iter().map(Said::address).collect();
    let expected: BTreeSet<_> = (17..48).map(|n| format!("10.1.2.{n}")).collect();
    assert_eq!(addresses, expected);
    assert!(given[31].stdout.contains("not enough IPs"), "{:?}", given[31]);
    assert_eq!(cluster.spec(), asked);
    for name in &all {
        assert!(world.plugin("DEL", name, &network).success);
    }
    world.kill_agent();
}

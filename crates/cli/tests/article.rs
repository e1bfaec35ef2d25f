//! The article from end to end: real az, real Kubernetes, real packets. One lab, played once, looked at from all sides.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says so, and a long one what it did"
)]

mod lab;

use lab::{TestLab, eventually};

/// A server that says who called it, once per connection. It runs from the machine's own python3, in somebody's network.
const ECHO: &str = "import socket\n\
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
s.bind(('0.0.0.0', 9000)); s.listen(16)\n\
while True:\n    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()\n";

/// Whoever asks learns which source address was seen; nothing when it cannot get there.
fn seen_from(lab: &TestLab, from: &str, to: &str) -> String {
    let line = format!(
        "python3 -c \"import socket; s = socket.create_connection(('{to}', 9000), 3); print(s.recv(64).decode(), end='')\""
    );
    lab.exec(from, &line).stdout()
}

struct Echo(std::process::Child);

impl Echo {
    fn start(lab: &TestLab, target: &str, address: &str) -> Self {
        let child = lab.exec_in_background(target, &format!("exec python3 -c \"{ECHO}\""));
        let echo = Self(child);
        eventually(&format!("an echo in {target}"), || !seen_from(lab, target, address).is_empty());
        echo
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // `aksnet exec` waits for its child; killing the child ends both.
        let pid = self.0.id().to_string();
        let _ = std::process::Command::new("pkill").args(["-9", "-P", &pid]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn jsonpath(lab: &TestLab, cluster: &str, what: &str, path: &str) -> String {
    lab.kubectl(cluster, &format!("get {what} -o jsonpath={{{path}}}")).stdout()
}

fn run_pod(lab: &TestLab, cluster: &str, name: &str, node: &str) {
    let manifest = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"labels\":{{\"app\":\"{name}\"}}}},\
         \"spec\":{{\"nodeName\":\"{node}\",\"terminationGracePeriodSeconds\":0,\
         \"containers\":[{{\"name\":\"c\",\"image\":\"nginx\"}}]}}}}"
    );
    lab.apply(cluster, &manifest);
}

fn wait_for_pods(lab: &TestLab, cluster: &str) {
    lab.kubectl(cluster, "wait --for=condition=Ready pod --all --timeout=120s").succeeds();
}

/// Who reaches whom in a mode, and which source address is seen
/// (MicrosoftDocs/azure-aks-docs, concepts-network-cni-overview.md and the pages of each mode).
struct Mode {
    cluster: &'static str,
    /// What a VM in the virtual network sees of a pod.
    vm_sees: Seen,
    /// What a pod sees of a VM; `None` when it cannot be reached.
    pod_sees_vm: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Seen {
    Pod,
    Node,
}

#[test]
fn the_article_from_end_to_end() {
    let lab = TestLab::up();

    // Every command of the article, every answer compared.
    let tour = lab.aksnet(&["tour"]);
    println!("{}{}", tour.stdout(), tour.stderr());
    assert!(tour.success(), "the tour was not as the article has it");

    // Played again, it finds everything there and changes nothing.
    lab.aksnet(&["tour"]).succeeds();

    let subnet =
        lab.az("network vnet subnet show --vnet-name aks-vnet3 -n ilb-subnet -g aksntwdemo").json();
    let front_end = subnet["ipConfigurations"][0]["id"].as_str().unwrap_or_default();
    assert!(
        front_end.contains("/loadBalancers/kubernetes-internal/frontendIPConfigurations/"),
        "{front_end}"
    );

    // Pods of the pod subnet hold addresses of it.
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let pods = status["subnets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|subnet| subnet["name"] == "subnet-pods")
        .unwrap();
    assert_eq!(pods["held"].as_u64().unwrap() % 16, 0, "whole batches: {pods}");
    assert!(pods["held"].as_u64().unwrap() >= 48, "a batch per node: {pods}");

    let make = |vm: &str, vnet: &str, subnet: &str| {
        lab.aksnet(&["vm", "create", vm, "-g", "aksntwdemo", "--vnet", vnet, "--subnet", subnet])
            .succeeds();
    };
    make("vm10", "aks-vnet2", "subnet-aks");
    // A subnet without kubenet's route table: those with it know the way to pods.
    make("vm12", "aks-vnet3", "ilb-subnet");
    for mode in [
        Mode { cluster: "aks-ntwdemo12", vm_sees: Seen::Node, pod_sees_vm: false },
        Mode { cluster: "aks-ntwdemo10", vm_sees: Seen::Pod, pod_sees_vm: true },
    ] {
        let vm = if mode.cluster == "aks-ntwdemo12" { "vm12" } else { "vm10" };
        table(&lab, &mode, vm);
    }

    // A crash of the daemon disturbs nothing that runs, and the next `up` goes on from there.
    let before = jsonpath(&lab, "aks-ntwdemo12", "pods -n testns", ".items[*].metadata.uid");
    lab.kill();
    let ilb = lab.exec("jump", "curl -s --max-time 5 http://172.20.0.132/ | head -5");
    assert!(!ilb.success(), "`exec` asks the daemon, which is dead");
    lab.aksnet(&["up"]).succeeds();
    eventually("the API server answers again", || {
        lab.kubectl("aks-ntwdemo12", "get --raw /readyz").success()
    });
    assert_eq!(jsonpath(&lab, "aks-ntwdemo12", "pods -n testns", ".items[*].metadata.uid"), before);
    let page = lab.exec("jump", "curl -s --max-time 5 http://172.20.0.132/").succeeds();
    assert!(page.contains("Welcome to nginx!"));

    bring_your_own(&lab);

    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// The table: who reaches whom, seen as whom.
fn table(lab: &TestLab, mode: &Mode, vm: &str) {
    let cluster = mode.cluster;
    let nodes = jsonpath(lab, cluster, "nodes", ".items[*].metadata.name");
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    run_pod(lab, cluster, "a", nodes[0]);
    run_pod(lab, cluster, "b", nodes[0]);
    run_pod(lab, cluster, "c", nodes[1]);
    wait_for_pods(lab, cluster);
    let address = |pod: &str| jsonpath(lab, cluster, &format!("pod {pod}"), ".status.podIP");
    let node_of_a = jsonpath(lab, cluster, "pod a", ".status.hostIP");
    let (a, b, c) = (address("a"), address("b"), address("c"));
    let vm_address = lab.aksnet(&["vm", "list", "-o", "json"]).json()["vms"]
        .as_array()
        .unwrap()
        .iter()
        .find(|machine| machine["name"] == vm)
        .unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned();

    // Pods of two clusters may have one name; this finds them by cluster.
    let pod = |name: &str| format!("{cluster}:default/{name}");
    {
        let _b = Echo::start(lab, &pod("b"), &b);
        let _c = Echo::start(lab, &pod("c"), &c);
        assert_eq!(seen_from(lab, &pod("a"), &b), a, "{cluster}: pod to pod on its node");
        assert_eq!(seen_from(lab, &pod("a"), &c), a, "{cluster}: pod to pod on another node");
        let expected = if mode.pod_sees_vm { vm_address.clone() } else { String::new() };
        assert_eq!(seen_from(lab, vm, &c), expected, "{cluster}: VM to pod");

        lab.apply(
            cluster,
            "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"echo\"},\
            \"spec\":{\"selector\":{\"app\":\"c\"},\"ports\":[{\"port\":9000}]}}",
        );
        let service = jsonpath(lab, cluster, "service echo", ".spec.clusterIP");
        eventually("the service is programmed", || !seen_from(lab, &pod("a"), &service).is_empty());
        assert_eq!(seen_from(lab, &pod("a"), &service), a, "{cluster}: pod to service");
    }
    {
        let _vm = Echo::start(lab, vm, &vm_address);
        let expected = match mode.vm_sees {
            Seen::Pod => &a,
            Seen::Node => &node_of_a,
        };
        assert_eq!(&seen_from(lab, &pod("a"), &vm_address), expected, "{cluster}: pod to VM");
    }
    let outside = lab.exec(&pod("a"), "curl -s --max-time 5 http://203.0.113.9/").succeeds();
    let group = format!("MC_aksntwdemo_{cluster}_eastus");
    let public = lab.az(&format!("network public-ip list -g {group}")).json();
    assert_eq!(
        outside.trim(),
        public[0]["ipAddress"].as_str().unwrap(),
        "{cluster}: pod to internet"
    );
}

/// On the cluster without a network: Debian's reference plugins and a configuration of one's own, brought by a
/// `DaemonSet` as any network provider brings its own.
fn bring_your_own(lab: &TestLab) {
    let cluster = "aks-ntwdemo8";
    let node = jsonpath(lab, cluster, "nodes", ".items[0].metadata.name");
    assert_eq!(node_ready(lab, cluster), "False");
    let archive = std::env::temp_dir().join(format!("{}-plugins.tar", lab.name()));
    let made = std::process::Command::new("python3")
        .args(["-c", IMAGE, archive.to_str().unwrap()])
        .status()
        .unwrap();
    assert!(made.success());
    let imported = lab.aksnet(&["image", "import", archive.to_str().unwrap()]).succeeds();
    assert!(imported.contains("own-plugins:1"), "{imported}");
    std::fs::remove_file(&archive).unwrap();
    lab.apply(cluster, OWN_NETWORK);
    eventually("the node is Ready", || node_ready(lab, cluster) == "True");
    run_pod(lab, cluster, "a", &node);
    run_pod(lab, cluster, "b", &node);
    wait_for_pods(lab, cluster);
    let b = jsonpath(lab, cluster, "pod b", ".status.podIP");
    let _echo = Echo::start(lab, &format!("{cluster}:default/b"), &b);
    let a = jsonpath(lab, cluster, "pod a", ".status.podIP");
    assert_eq!(seen_from(lab, &format!("{cluster}:default/a"), &b), a);
}

fn node_ready(lab: &TestLab, cluster: &str) -> String {
    jsonpath(lab, cluster, "nodes", ".items[0].status.conditions[?(@.type==\"Ready\")].status")
}

/// Makes an image archive as `docker save` does, of Debian's busybox and reference plugins.
const IMAGE: &str = r"
import hashlib, io, json, sys, tarfile
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode='w') as tar:
    tar.add('/bin/busybox', 'bin/busybox')
    for plugin in ('bridge', 'host-local', 'loopback'):
        tar.add('/usr/lib/cni/' + plugin, 'plugins/' + plugin)
layer = layer.getvalue()
digest = hashlib.sha256(layer).hexdigest()
config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {},
    'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + digest]}}).encode()
name = hashlib.sha256(config).hexdigest() + '.json'
manifest = json.dumps([{'Config': name, 'RepoTags': ['own-plugins:1'], 'Layers': ['layer.tar']}]).encode()
with tarfile.open(sys.argv[1], 'w') as tar:
    for path, data in ((name, config), ('layer.tar', layer), ('manifest.json', manifest)):
        entry = tarfile.TarInfo(path)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
";

const OWN_NETWORK: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: own-network, namespace: kube-system }
data:
  10-own.conflist: |
    {"cniVersion": "0.4.0", "name": "own", "plugins": [{"type": "bridge", "bridge": "own0", "isGateway": true,
      "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: own-network, namespace: kube-system }
spec:
  selector: { matchLabels: { app: own-network } }
  template:
    metadata: { labels: { app: own-network } }
    spec:
      hostNetwork: true
      tolerations: [{ operator: Exists }]
      terminationGracePeriodSeconds: 0
      containers:
      - name: install
        image: own-plugins:1
        command: [/bin/busybox, sh, -c, "/bin/busybox cp /plugins/* /host/bin/ && /bin/busybox cp /config/10-own.conflist /host/net.d/ && exec /bin/busybox sleep 1000000"]
        volumeMounts:
        - { name: bin, mountPath: /host/bin }
        - { name: net, mountPath: /host/net.d }
        - { name: config, mountPath: /config }
      volumes:
      - { name: bin, hostPath: { path: /opt/cni/bin } }
      - { name: net, hostPath: { path: /etc/cni/net.d } }
      - { name: config, configMap: { name: own-network } }
"#;

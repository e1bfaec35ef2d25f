//! Who reaches whom, and which source address is seen: measured with real connections.

use super::{TestLab, eventually};

/// A server that says who called it, once per connection. It runs from the machine's own python3, in somebody's network.
const ECHO: &str = "import socket\n\
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
s.bind(('0.0.0.0', 9000)); s.listen(16)\n\
while True:\n    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()\n";

/// Whoever asks learns which source address was seen; nothing when it cannot get there.
pub(crate) fn seen_from(lab: &TestLab, from: &str, to: &str) -> String {
    let line = format!(
        "python3 -c \"import socket; s = socket.create_connection(('{to}', 9000), 3); print(s.recv(64).decode(), end='')\""
    );
    lab.exec(from, &line).stdout()
}

pub(crate) struct Echo(std::process::Child);

impl Echo {
    pub(crate) fn start(lab: &TestLab, target: &str, address: &str) -> Self {
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

pub(crate) fn jsonpath(lab: &TestLab, cluster: &str, what: &str, path: &str) -> String {
    lab.kubectl(cluster, &format!("get {what} -o jsonpath={{{path}}}")).stdout()
}

pub(crate) fn run_pod(lab: &TestLab, cluster: &str, name: &str, node: &str) {
    let manifest = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"labels\":{{\"app\":\"{name}\"}}}},\
         \"spec\":{{\"nodeName\":\"{node}\",\"terminationGracePeriodSeconds\":0,\
         \"containers\":[{{\"name\":\"c\",\"image\":\"nginx\"}}]}}}}"
    );
    lab.apply(cluster, &manifest);
}

pub(crate) fn wait_for_pods(lab: &TestLab, cluster: &str) {
    lab.kubectl(cluster, "wait --for=condition=Ready pod --all --timeout=120s").succeeds();
}

/// Who reaches whom in a mode, and which source address is seen
/// (MicrosoftDocs/azure-aks-docs, concepts-network-cni-overview.md and the pages of each mode).
pub(crate) struct Mode {
    pub(crate) group: &'static str,
    pub(crate) cluster: &'static str,
    /// What a VM in the virtual network sees of a pod.
    pub(crate) vm_sees: Seen,
    /// What a pod sees of a VM; `None` when it cannot be reached.
    pub(crate) pod_sees_vm: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Seen {
    Pod,
    Node,
}

/// The table: who reaches whom, seen as whom.
pub(crate) fn table(lab: &TestLab, mode: &Mode, vm: &str) {
    let cluster = mode.cluster;
    let nodes = jsonpath(lab, cluster, "nodes", ".items[*].metadata.name");
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    run_pod(lab, cluster, "a", nodes[0]);
    run_pod(lab, cluster, "b", nodes[0]);
    run_pod(lab, cluster, "c", nodes[1]);
    let ported = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"ported\"}},\"spec\":{{\"nodeName\":\"{}\",\
         \"terminationGracePeriodSeconds\":0,\"containers\":[{{\"name\":\"c\",\"image\":\"nginx\",\
         \"ports\":[{{\"containerPort\":80,\"hostPort\":8088}}]}}]}}}}",
        nodes[0]
    );
    lab.apply(cluster, &ported);
    wait_for_pods(lab, cluster);
    let address = |pod: &str| jsonpath(lab, cluster, &format!("pod {pod}"), ".status.podIP");
    let node_of_a = jsonpath(lab, cluster, "pod a", ".status.hostIP");
    let (a, b, c) = (address("a"), address("b"), address("c"));
    let host_port = format!("curl -s -m 2 -o /dev/null http://{node_of_a}:8088/");
    eventually(&format!("{cluster}: a host port"), || lab.exec(vm, &host_port).success());
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
        let capture = lab.exec_in_background(
            nodes[1],
            &format!("timeout 10 tcpdump -lnni eth0 -c 1 'dst host {c} and tcp dst port 9000'"),
        );
        // tcpdump says nothing on its standard output before a packet comes, so the packets go on until it has one.
        let capture = std::thread::spawn(move || capture.wait_with_output().unwrap());
        while !capture.is_finished() {
            assert_eq!(seen_from(lab, &pod("a"), &c), a, "{cluster}: pod to pod on another node");
        }
        let captured = String::from_utf8_lossy(&capture.join().unwrap().stdout).into_owned();
        // Between pods of two nodes nothing wraps the packet, and nobody rewrites it.
        assert!(
            captured.contains(&format!("IP {a}.")) && captured.contains(&format!("> {c}.9000:")),
            "{captured}"
        );
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
    let group = format!("MC_{}_{cluster}_eastus", mode.group);
    let public = lab.az(&format!("network public-ip list -g {group}")).json();
    assert_eq!(
        outside.trim(),
        public[0]["ipAddress"].as_str().unwrap(),
        "{cluster}: pod to internet"
    );
}

/// Two pods that end slowly, of which one may be away, behind an internal load balancer.
pub(crate) const WEB: &str = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, \
selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, \
image: nginx, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}, \
lifecycle: {preStop: {sleep: {seconds: 3}}}}]}}}}\n\
---\n\
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 1, \
selector: {matchLabels: {app: web}}}}\n\
---\n\
{apiVersion: v1, kind: Service, metadata: {name: web, annotations: \
{service.beta.kubernetes.io/azure-load-balancer-internal: 'true'}}, spec: {type: LoadBalancer, \
selector: {app: web}, ports: [{port: 80}]}}\n";

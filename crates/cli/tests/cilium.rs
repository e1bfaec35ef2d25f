//! Azure CNI powered by Cilium: the real one, with addresses and a fabric of the lab's, in each way of giving addresses.
//! Nothing is tested where Cilium is not installed; `make test` installs it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(dead_code, reason = "the laboratory is shared")]

mod lab;

use std::{collections::BTreeSet, fs};

use lab::{
    TestLab, eventually, is_cilium_installed,
    kernel::{self, Objects},
    packets::{Echo, Mode, Seen, WEB, jsonpath, run_pod, seen_from, table, wait_for_pods},
};
use serde_json::{Value, json};

const CILIUM: &str = "--network-plugin azure --network-dataplane cilium --no-ssh-key";
const IDS: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Network/virtualNetworks/net/subnets";
const SERVICES: &str = "--service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10";
/// A name that the lab's internet has, and its port: the lab's own registry of images.
const OUTSIDE: &str = "registry.aksnet.test:5000";

/// A lab with a virtual network and these subnets of it.
fn world(subnets: &[(&str, &str)]) -> TestLab {
    let lab = TestLab::up();
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az("network vnet create -g rg -n net --address-prefixes 10.20.0.0/16").succeeds();
    for (name, prefix) in subnets {
        lab.az(&format!(
            "network vnet subnet create -g rg --vnet-name net -n {name} --address-prefixes {prefix}"
        ))
        .succeeds();
    }
    lab
}

fn vm(lab: &TestLab, subnet: &str) {
    lab.aksnet(&["vm", "create", "vm", "-g", "rg", "--vnet", "net", "--subnet", subnet]).succeeds();
}

#[test]
fn overlay() {
    if !is_cilium_installed() {
        return;
    }
    let lab = world(&[("nodes", "10.20.0.0/24"), ("vms", "10.20.2.0/24"), ("lb", "10.20.3.0/24")]);
    let made = lab
        .az(&format!(
            "aks create -g rg -n c {CILIUM} --network-plugin-mode overlay --pod-cidr 192.168.0.0/16 \
             --node-count 2 --enable-acns --vnet-subnet-id {IDS}/nodes {SERVICES}"
        ))
        .json();
    let profile = &made["networkProfile"];
    assert_eq!(profile["networkDataplane"], "cilium");
    assert_eq!(profile["networkPolicy"], "cilium");
    lab.az("aks get-credentials -g rg -n c").succeeds();
    described(&lab);
    vm(&lab, "vms");
    table(&lab, &Mode { group: "rg", cluster: "c", vm_sees: Seen::Node, pod_sees_vm: false }, "vm");
    node_ports(&lab);
    balancer_in_a_subnet_of_its_own(&lab);
    policies(&lab);
    names_in_policies(&lab);
    seen_by_hubble(&lab);
    lab.az("aks delete -g rg -n c --yes").succeeds();
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// What the article shows of a cluster with Cilium.
fn described(lab: &TestLab) {
    let operator = "deployment cilium-operator -n kube-system";
    eventually("the operator is available", || {
        jsonpath(lab, "c", operator, ".status.availableReplicas") == "1"
    });
    let text = lab.kubectl("c", &format!("describe {operator}")).succeeds();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "app.kubernetes.io/managed-by=Helm helm.toolkit.fluxcd.io/name=cilium-adapter-helmrelease",
        "io.cilium/app=operator kubernetes.azure.com/managedby=aks name=cilium-operator",
        "meta.helm.sh/release-name: cilium meta.helm.sh/release-namespace: kube-system",
        "Selector: io.cilium/app=operator,name=cilium-operator",
        "Replicas: 1 desired | 1 updated | 1 total | 1 available | 0 unavailable",
        "RollingUpdateStrategy: 1 max unavailable, 1 max surge",
        "kubernetes.azure.com/ebpf-dataplane=cilium",
        "prometheus.io/port: 9963 prometheus.io/scrape: true Service Account: cilium-operator",
        "Image: mcr.microsoft.com/oss/cilium/operator-generic:1.20.2",
        "Port: 9963/TCP Host Port: 9963/TCP Command: cilium-operator-generic Args: \
         --config-dir=/tmp/cilium/config-map --debug=$(CILIUM_DEBUG)",
        "Liveness: http-get http://127.0.0.1:9234/healthz delay=60s timeout=3s period=10s #success=1 #failure=3",
        "K8S_NODE_NAME: (v1:spec.nodeName) CILIUM_K8S_NAMESPACE: (v1:metadata.namespace) CILIUM_DEBUG: \
         <set to the key 'debug' of config map 'cilium-config'> Optional: true",
        "/tmp/cilium/config-map from cilium-config-path (ro)",
        "Priority Class Name: system-cluster-critical",
        "Available True MinimumReplicasAvailable",
    ] {
        assert!(words.contains(part), "`{part}` is not in\n{text}");
    }
    assert_eq!(
        jsonpath(lab, "c", "daemonset cilium -n kube-system", ".status.numberAvailable"),
        "2"
    );
    let all = lab.kubectl("c", "get all -A").succeeds();
    assert!(!all.contains("kube-proxy"), "{all}");
    let labels = jsonpath(lab, "c", "nodes", ".items[*].metadata.labels");
    assert_eq!(labels.matches(r#""kubernetes.azure.com/ebpf-dataplane":"cilium""#).count(), 2);
    let processes = std::process::Command::new("pgrep")
        .args(["-fa", "kube-proxy"])
        .output()
        .map(|it| String::from_utf8_lossy(&it.stdout).into_owned())
        .unwrap();
    assert!(!processes.contains(lab.name()), "{processes}");
}

/// `NodePort`s from outside and from pods, by either node.
fn node_ports(lab: &TestLab) {
    let address = jsonpath(lab, "c", "pod c", ".status.podIP");
    let _echo = Echo::start(lab, "c:default/c", &address);
    lab.apply(
        "c",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"np"},"spec":{"type":"NodePort",
            "selector":{"app":"c"},"ports":[{"port":9000,"nodePort":30900}]}}"#,
    );
    let path = ".items[*].status.addresses[?(@.type=='InternalIP')].address";
    let nodes = jsonpath(lab, "c", "nodes", path);
    let holder = jsonpath(lab, "c", "pod c", ".spec.nodeName");
    let get = |from: &str, node: &str| {
        let line = format!(
            "python3 -c \"import socket; s = socket.create_connection(('{node}', 30900), 3); print(s.recv(64).decode())\""
        );
        lab.exec(from, &line).success()
    };
    for node in nodes.split_whitespace() {
        for from in ["vm", "c:default/a"] {
            eventually(&format!("port of {node} from {from}"), || get(from, node));
        }
        // Whoever the node sends it on to is shown too.
        let text = lab.aksnet(&["trace", "vm", node, "--port", "30900"]).succeeds();
        let last = format!("  node/{holder}  in eth0, out lxc");
        assert!(text.contains(&last) && text.contains("did what the model says"), "{text}");
    }
    named(lab, "np");
}

/// By name, from a pod: the cluster's own name server behind its service.
fn named(lab: &TestLab, service: &str) {
    let labels = [service, "default", "svc", "cluster", "local"];
    let name = labels.map(|label| format!("\\\\x{:02x}{label}", label.len())).concat();
    let line = format!(
        "python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); \
         s.sendto(b'\\\\x12\\\\x34\\\\x01\\\\0\\\\0\\\\1\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0{name}\\\\0\\\\0\\\\1\\\\0\\\\1', ('10.1.0.10', 53)); \
         print('.'.join(map(str, s.recv(512)[-4:])))\""
    );
    let said = lab.exec("c:default/a", &line);
    let address = jsonpath(lab, "c", &format!("service {service}"), ".spec.clusterIP");
    assert_eq!(said.succeeds().trim(), address);
}

/// `externalTrafficPolicy: Local` keeps the client's address, behind a front end in a subnet that has nothing else.
fn balancer_in_a_subnet_of_its_own(lab: &TestLab) {
    let address = jsonpath(lab, "c", "pod c", ".status.podIP");
    let _echo = Echo::start(lab, "c:default/c", &address);
    lab.apply(
        "c",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"inside","annotations":{
            "service.beta.kubernetes.io/azure-load-balancer-internal":"true",
            "service.beta.kubernetes.io/azure-load-balancer-internal-subnet":"lb"}},
            "spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local","selector":{"app":"c"},
            "ports":[{"port":9000}]}}"#,
    );
    let mut front = String::new();
    eventually("the service has an address", || {
        front = jsonpath(lab, "c", "service inside", ".status.loadBalancer.ingress[0].ip");
        !front.is_empty()
    });
    assert!(front.starts_with("10.20.3."), "{front}");
    let own = lab.aksnet(&["vm", "list", "-o", "json"]).json()["vms"][0]["address"].clone();
    eventually("the balancer knows where the pod is", || seen_from(lab, "vm", &front) == own);
    for _ in 0..10 {
        assert_eq!(seen_from(lab, "vm", &front), own.as_str().unwrap());
    }
}

fn policy(name: &str, spec: &Value) -> String {
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name }, "spec": spec })
    .to_string()
}

/// What lets into pod `c` only what these rules name.
fn to_c(rules: &Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "c" } }, "policyTypes": ["Ingress"], "ingress": rules })
}

/// Denied and allowed by `NetworkPolicy`; what AKS says `ipBlock` never selects.
fn policies(lab: &TestLab) {
    let address = jsonpath(lab, "c", "pod c", ".status.podIP");
    let _echo = Echo::start(lab, "c:default/c", &address);
    let heard = |from: &str| !seen_from(lab, &format!("c:default/{from}"), &address).is_empty();
    lab.apply("c", &policy("deny", &to_c(&json!([]))));
    eventually("nobody is let in", || !heard("a") && !heard("b"));
    let from_a = json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "a" } } }],
        "ports": [{ "port": 9000 }] }]);
    lab.apply("c", &policy("from-a", &to_c(&from_a)));
    eventually("one is let in", || heard("a"));
    assert!(!heard("b"));
    traced(lab, &address);
    // Addresses never select pods (MicrosoftDocs/azure-aks-docs, azure-cni-powered-by-cilium.md).
    let everyone = json!([{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }]);
    lab.apply("c", &policy("from-everyone", &to_c(&everyone)));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(!heard("b"), "an ipBlock selects a pod");
    lab.kubectl("c", "delete networkpolicy --all").succeeds();
    eventually("all are let in", || heard("a") && heard("b"));
}

/// The trace says what Cilium decides, and which policies that is for.
fn traced(lab: &TestLab, address: &str) {
    let trace = |from: &str, to: &str| lab.aksnet(&["trace", from, to, "--port", "9000"]);
    let said = trace("c:default/b", address);
    let text = said.stdout();
    let wanted = "by `NetworkPolicy default/deny, NetworkPolicy default/from-a` (Cilium, ingress of default/c)";
    assert!(!said.success() && text.contains(wanted), "{text}");
    let text = trace("c:default/a", address).succeeds();
    let allows = "Cilium, ingress of default/c: NetworkPolicy default/from-a allows";
    assert!(text.contains(allows), "{text}");
    // Cilium chooses who answers for a service before the packet is sent.
    let service = jsonpath(lab, "c", "service echo", ".spec.clusterIP");
    let text = trace("c:default/a", &service).succeeds();
    let chosen = format!("socket of pod/c:default/a: {address}:9000 for {service}:9000");
    assert!(text.contains(&chosen) && text.contains(allows), "{text}");
}

/// A policy of Cilium's own that names a destination by its DNS name.
fn names_in_policies(lab: &TestLab) {
    let policy = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "names" }, "spec": {
            "endpointSelector": { "matchLabels": { "app": "a" } },
            "egress": [
                { "toEndpoints": [{ "matchLabels": { "k8s:io.kubernetes.pod.namespace": "kube-system", "k8s-app": "kube-dns" } }],
                  "toPorts": [{ "ports": [{ "port": "53", "protocol": "ANY" }], "rules": { "dns": [{ "matchPattern": "*" }] } }] },
                { "toFQDNs": [{ "matchName": OUTSIDE.split(':').next() }] },
            ] } });
    let get = |url: &str| {
        lab.exec("c:default/a", &format!("curl -s -m 3 -o /dev/null http://{url}")).success()
    };
    let inside = |name: &str| {
        // Names are asked of the cluster's server, as the pod's own programs do.
        // Busybox's own switch for it does not do.
        let line = format!("exec a -- timeout 3 wget -q -O /dev/null http://{name}");
        lab.kubectl("c", &line).success()
    };
    lacks_envoy(lab);
    eventually("the registry answers", || inside(&format!("{OUTSIDE}/v2/")));
    assert!(get("203.0.113.9/"));
    lab.apply("c", &policy.to_string());
    eventually("other addresses are denied", || !get("203.0.113.9/"));
    eventually("the name is allowed", || inside(&format!("{OUTSIDE}/v2/")));
    lab.kubectl("c", "delete ciliumnetworkpolicy names").succeeds();
    eventually("all are allowed", || get("203.0.113.9/"));
}

/// Rules for which there is no proxy are refused: Cilium would take them, and enforce nothing from then on.
fn lacks_envoy(lab: &TestLab) {
    let rules = json!([{ "ports": [{ "port": "80", "protocol": "TCP" }], "rules": { "http": [{ "path": "/" }] } }]);
    for (kind, direction) in
        [("CiliumNetworkPolicy", "ingress"), ("CiliumClusterwideNetworkPolicy", "egress")]
    {
        let policy = json!({ "apiVersion": "cilium.io/v2", "kind": kind, "metadata": { "name": "http" },
            "specs": [{ "endpointSelector": {}, direction: [{ "toPorts": rules }] }] });
        let said = lab.applied("c", &policy.to_string()).fails();
        assert!(said.contains("rules for HTTP and TLS need Envoy"), "{said}");
    }
}

/// Flows are to be seen in the node, with the names of pods.
fn seen_by_hubble(lab: &TestLab) {
    let node = jsonpath(lab, "c", "pod c", ".spec.nodeName");
    let flows = lab
        .aksnet(&[
            "exec",
            &node,
            "--",
            "hubble",
            "observe",
            "--to-pod",
            "default/c",
            "--verdict",
            "DROPPED",
            "-o",
            "json",
        ])
        .succeeds();
    let dropped = flows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let from_b = dropped.filter(|it| it["flow"]["source"]["pod_name"] == "b").count();
    assert!(from_b > 0, "{flows}");
    let status = lab.aksnet(&["exec", &node, "--", "cilium-dbg", "status"]).succeeds();
    assert!(status.contains("KubeProxyReplacement:") && status.contains("True"), "{status}");
}

/// Pods have addresses of the nodes' subnet, and are seen with them. When the lab is down, the kernel has nothing of Cilium's.
#[test]
fn node_subnet() {
    if !is_cilium_installed() {
        return;
    }
    let (machine, before) = (kernel::machine(), kernel::objects());
    let lab = world(&[("nodes", "10.20.0.0/24"), ("vms", "10.20.2.0/24")]);
    let made = lab
        .az(&format!(
            "aks create -g rg -n c {CILIUM} --node-count 2 --max-pods 30 --vnet-subnet-id {IDS}/nodes {SERVICES}"
        ))
        .json();
    assert_eq!(made["networkProfile"]["networkPluginMode"], Value::Null);
    assert_eq!(made["networkProfile"]["podCidr"], Value::Null);
    lab.az("aks get-credentials -g rg -n c").succeeds();
    vm(&lab, "vms");
    table(&lab, &Mode { group: "rg", cluster: "c", vm_sees: Seen::Pod, pod_sees_vm: true }, "vm");
    named(&lab, "echo");
    addresses_of_the_nodes_subnet(&lab);
    let c = jsonpath(&lab, "c", "pod c", ".status.podIP");
    {
        let _echo = Echo::start(&lab, "c:default/c", &c);
        let is_heard = |from: &str| !seen_from(&lab, from, &c).is_empty();
        lab.apply("c", &policy("deny", &to_c(&json!([]))));
        for from in ["c:default/a", "vm"] {
            eventually(&format!("{from} is not let in"), || !is_heard(from));
        }
    }
    let dns = json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "dns" },
        "spec": { "endpointSelector": {}, "egress": [{ "toPorts": [{ "ports": [{ "port": "53" }],
            "rules": { "dns": [{ "matchPattern": "*" }] } }] }] } });
    let said = lab.applied("c", &dns.to_string()).fails();
    assert!(said.contains("rules for DNS need Advanced Container Networking Services"), "{said}");
    nothing_is_left(&lab, &machine, &before);
}

/// Each node has held `1 + maxPods` addresses from the beginning, and its pods have some of these.
fn addresses_of_the_nodes_subnet(lab: &TestLab) {
    let subnet = lab.az("network vnet subnet show -g rg --vnet-name net -n nodes").json();
    assert_eq!(subnet["ipConfigurations"].as_array().unwrap().len(), 2 * 31);
    let pods = lab.kubectl("c", "get pods -A -o json").json();
    let mut addresses = BTreeSet::new();
    let of_pods = pods["items"].as_array().unwrap().iter();
    for pod in of_pods.filter(|it| it["spec"]["hostNetwork"] != true) {
        let address = pod["status"]["podIP"].as_str().unwrap();
        assert!(address.starts_with("10.20.0.") && addresses.insert(address), "{address}: {pods}");
    }
    // Two name servers, and those of the table.
    assert_eq!(addresses.len(), 6);
}

/// Ends the lab, and looks for what it has had in the kernel.
fn nothing_is_left(lab: &TestLab, machine: &BTreeSet<String>, before: &Objects) {
    let own = kernel::objects_of(lab);
    let count = |kind: &str| own.iter().filter(|(it, _)| *it == kind).count();
    let [programs, maps, links] = ["program", "map", "link"].map(count);
    // Two nodes have programs for sockets, for their interfaces and for pods', and hang them up by links.
    assert!(programs > 80 && maps > 80 && links > 20, "{own:?}");
    assert!(own.is_disjoint(before), "what was there is not the lab's");
    // Somebody outside holds one of the lab's programs, which must be noticed.
    let (_, program) = own.iter().find(|(kind, _)| *kind == "program").unwrap();
    let held = libbpf_rs::Program::fd_from_id(*program).unwrap();
    lab.aksnet(&["down"]).succeeds();
    let left = || own.intersection(&kernel::objects()).copied().collect::<Objects>();
    assert!(left().contains(&("program", *program)));
    drop(held);
    // The kernel frees some after a while.
    eventually("nothing is left of the lab's programs, maps and links", || left().is_empty());
    eventually("nothing is left that was not there before, unless it is others'", || {
        kernel::has_others(lab) || kernel::objects().is_subset(before)
    });
    assert_eq!(lab.traces(), Vec::<String>::new());
    let new: Vec<String> = kernel::machine().difference(machine).cloned().collect();
    assert_eq!(new, Vec::<String>::new());
}

/// Addresses of a pod subnet come in batches; when it is full a pod waits and says why, and starts when there are some.
#[test]
fn pod_subnet() {
    if !is_cilium_installed() {
        return;
    }
    let lab =
        world(&[("nodes", "10.20.0.0/24"), ("pods", "10.20.1.0/27"), ("vms", "10.20.2.0/24")]);
    lab.az(&format!(
        "aks create -g rg -n c {CILIUM} --node-count 1 --max-pods 60 --vnet-subnet-id {IDS}/nodes --pod-subnet-id {IDS}/pods {SERVICES}"
    ))
    .succeeds();
    lab.az("aks get-credentials -g rg -n c").succeeds();
    vm(&lab, "vms");
    let node = jsonpath(&lab, "c", "nodes", ".items[0].metadata.name");
    observed_from_now_on(&lab, &node);
    first_packets(&lab);
    run_pod(&lab, "c", "a", &node);
    wait_for_pods(&lab, "c");
    let a = jsonpath(&lab, "c", "pod a", ".status.podIP");
    assert!(a.starts_with("10.20.1."), "{a}");
    {
        let _echo = Echo::start(&lab, "c:default/a", &a);
        let own = lab.aksnet(&["vm", "list", "-o", "json"]).json()["vms"][0]["address"].clone();
        assert_eq!(seen_from(&lab, "vm", &a), own.as_str().unwrap(), "VM to pod");
    }
    // 27 addresses of a /27 are the subnet's to give, in batches of 16: one batch only.
    lab.apply(
        "c",
        r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"many"},"spec":{"replicas":18,
            "selector":{"matchLabels":{"app":"many"}},"template":{"metadata":{"labels":{"app":"many"}},
            "spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"nginx"}]}}}}"#,
    );
    eventually("a pod says that the subnet is full", || {
        let events = lab.kubectl("c", "get events -o jsonpath={.items[*].message}").stdout();
        events.contains("pods") && events.contains("full")
    });
    lab.kubectl("c", "scale deployment many --replicas=8").succeeds();
    lab.kubectl("c", "rollout status deployment many --timeout=120s").succeeds();
    eventually("addresses are held by those that run alone", || {
        let listed = lab.kubectl("c", "get pods -A -o jsonpath={.items[*].status.podIP}").stdout();
        let mut all: Vec<&str> =
            listed.split_whitespace().filter(|it| it.starts_with("10.20.1.")).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n, "an address has two holders: {listed}");
        // With the cluster's two name servers.
        n == 11
    });
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// The first thing that these pods do is to call somebody outside, and they do it once.
fn first_packets(lab: &TestLab) {
    for n in 0..4 {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("eager{n}") },
            "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "nc -w 2 203.0.113.9 80 </dev/null"] }] } });
        lab.apply("c", &pod.to_string());
    }
    let phases = || jsonpath(lab, "c", "pods", ".items[*].status.phase");
    eventually("every pod has had its answer", || {
        phases() == "Succeeded Succeeded Succeeded Succeeded"
    });
    lab.kubectl("c", "delete pods --all").succeeds();
}

/// Hubble comes with an update of a living cluster, and nobody's node is made anew for it.
fn observed_from_now_on(lab: &TestLab, node: &str) {
    let hubble = || lab.aksnet(&["exec", node, "--", "hubble", "status"]);
    hubble().fails();
    let before = jsonpath(lab, "c", "nodes", ".items[*].metadata.uid");
    let updated = lab.az("aks update -g rg -n c --enable-acns").json();
    assert_eq!(updated["networkProfile"]["advancedNetworking"]["enabled"], true);
    hubble().succeeds();
    assert_eq!(jsonpath(lab, "c", "nodes", ".items[*].metadata.uid"), before);
}

/// From kubenet to overlay to Cilium in a living cluster, with a client that counts what it loses.
#[test]
fn migration() {
    if !is_cilium_installed() {
        return;
    }
    let lab = world(&[("nodes", "10.20.0.0/24"), ("vms", "10.20.2.0/24")]);
    lab.az(&format!(
        "aks create -g rg -n c --network-plugin kubenet --no-ssh-key --node-count 2 --vnet-subnet-id {IDS}/nodes {SERVICES}"
    ))
    .succeeds();
    lab.az("aks get-credentials -g rg -n c").succeeds();
    vm(&lab, "vms");
    lab.apply("c", WEB);
    let mut front = String::new();
    eventually("the service has an address", || {
        front = jsonpath(&lab, "c", "service web", ".status.loadBalancer.ingress[0].ip");
        !front.is_empty()
    });
    let get = format!("curl -s -m 2 -o /dev/null http://{front}/");
    eventually("the service answers", || lab.exec("vm", &get).success());
    let stop = lab_file(&lab, "stop");
    let client = lab.exec_in_background(
        "vm",
        &format!(
            "good=0; bad=0; end=$(($(date +%s) + 600)); while [ ! -e {stop} ] && [ $(date +%s) -lt $end ]; do \
             if {get}; then good=$((good + 1)); else bad=$((bad + 1)); fi; sleep 0.05; done; echo $good $bad"
        ),
    );
    let said = lab.az("aks update -g rg -n c --network-dataplane cilium").fails();
    assert!(said.contains("Cilium dataplane requires network plugin azure."), "{said}");
    lab.az("aks update -g rg -n c --network-plugin azure --network-plugin-mode overlay").succeeds();
    let shown = lab.az("aks update -g rg -n c --network-dataplane cilium").json();
    assert_eq!(shown["networkProfile"]["networkDataplane"], "cilium");
    assert_eq!(shown["networkProfile"]["networkPluginMode"], "overlay");
    let ready = "get nodes -l kubernetes.azure.com/ebpf-dataplane=cilium -o name";
    assert_eq!(lab.kubectl("c", ready).succeeds().lines().count(), 2);
    lab.kubectl("c", "rollout status deployment web --timeout=120s").succeeds();
    eventually("the service answers", || lab.exec("vm", &get).success());
    fs::write(&stop, "").unwrap();
    let output = client.wait_with_output().unwrap();
    let _ = fs::remove_file(&stop);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts: Vec<u32> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let [good, bad] = counts[..] else { panic!("the client says `{text}`") };
    assert!(good >= 100 && bad * 10 <= good, "{bad} requests of {} were lost", good + bad);
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

fn lab_file(lab: &TestLab, name: &str) -> String {
    std::env::temp_dir().join(format!("{}-{name}", lab.name())).display().to_string()
}

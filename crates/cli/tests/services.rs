//! Services of type `LoadBalancer` as their annotations say, on a cluster of one node: real az, real Kubernetes, packets
//! that arrive.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod lab;

use std::{collections::BTreeMap, process::Command};

use lab::{TestLab, eventually, packets::jsonpath};
use serde_json::{Value, json};

const IDS: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Network/virtualNetworks/net/subnets";
const PREFIX: &str = "service.beta.kubernetes.io/";
const CLUSTER: &str = "one";
const NODES: &str = "MC_rg_one_eastus";
/// What the pod serves.
const PAGE: &str = "Welcome to nginx!";
const INTERNAL: (&str, &str) = ("azure-load-balancer-internal", "true");

#[test]
fn services_are_balanced_as_their_annotations_say() {
    let lab = TestLab::up();
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az("network vnet create -g rg -n net --address-prefixes 10.20.0.0/16").succeeds();
    for (name, prefix) in
        [("nodes", "10.20.0.0/24"), ("vms", "10.20.2.0/24"), ("other", "10.20.3.0/29")]
    {
        lab.az(&format!(
            "network vnet subnet create -g rg --vnet-name net -n {name} --address-prefixes {prefix}"
        ))
        .succeeds();
    }
    lab.az(&format!(
        "aks create -g rg -n {CLUSTER} --network-plugin azure --network-plugin-mode overlay --node-count 1 \
         --vnet-subnet-id {IDS}/nodes --service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10"
    ))
    .succeeds();
    lab.az(&format!("aks get-credentials -g rg -n {CLUSTER}")).succeeds();
    lab.aksnet(&["vm", "create", "vm", "-g", "rg", "--vnet", "net", "--subnet", "vms"]).succeeds();
    lab::packets::run_pod(
        &lab,
        CLUSTER,
        "web",
        &jsonpath(&lab, CLUSTER, "nodes", ".items[0].metadata.name"),
    );
    lab::packets::wait_for_pods(&lab, CLUSTER);

    moves(&lab);
    shares(&lab);
    probes(&lab);
    public_ips(&lab);
    is_no_way_out(&lab);

    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Applies a Service before the pod, with one port that leads to its port 80.
fn apply(lab: &TestLab, name: &str, port: u16, annotations: &[(&str, &str)]) {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
    let service = json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "type": "LoadBalancer", "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": port, "targetPort": 80 }] } });
    lab.apply(CLUSTER, &service.to_string());
}

fn delete(lab: &TestLab, names: &str) {
    lab.kubectl(CLUSTER, &format!("delete service {names}")).succeeds();
}

fn addresses(lab: &TestLab, name: &str) -> String {
    jsonpath(lab, CLUSTER, &format!("service {name}"), ".status.loadBalancer.ingress[*].ip")
}

#[track_caller]
fn has(lab: &TestLab, name: &str, expected: &str) {
    eventually(&format!("service {name} has {expected}"), || addresses(lab, name) == expected);
}

/// Whether somebody in the virtual network is answered.
fn answers(lab: &TestLab, place: &str) -> bool {
    lab.exec("vm", &format!("curl -s -m 2 http://{place}/")).stdout().contains(PAGE)
}

/// Whether somebody on the internet is, by the pod: what is nobody's, the internet answers itself.
fn answers_the_internet(lab: &TestLab, place: &str) -> bool {
    let internet = format!("{}-internet", lab.name());
    let url = format!("http://{place}/");
    let output = Command::new("ip")
        .args(["netns", "exec", &internet, "curl", "-s", "-m", "2", &url])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).contains(PAGE)
}

#[track_caller]
fn says(lab: &TestLab, name: &str, reason: &str, text: &str) {
    eventually(&format!("service {name} says `{text}`"), || {
        let events = format!(
            "get events --field-selector reason={reason},involvedObject.name={name} -o wide"
        );
        lab.kubectl(CLUSTER, &events).stdout().contains(text)
    });
}

/// Another subnet, the internet, and back: the Service gets an address there, and keeps the one that it has until then.
fn moves(lab: &TestLab) {
    apply(lab, "mover", 80, &[INTERNAL]);
    has(lab, "mover", "10.20.0.5");
    eventually("it answers", || answers(lab, "10.20.0.5"));
    // The other subnet has three addresses, and they are taken.
    for i in 0..3 {
        let taker = format!("vm create t{i} -g rg --vnet net --subnet other");
        lab.aksnet(&taker.split(' ').collect::<Vec<_>>()).succeeds();
    }
    apply(lab, "mover", 80, &[INTERNAL, ("azure-load-balancer-internal-subnet", "other")]);
    says(lab, "mover", "SyncLoadBalancerFailed", "SubnetIsFull");
    assert_eq!(addresses(lab, "mover"), "10.20.0.5");
    assert!(answers(lab, "10.20.0.5"), "what cannot be had takes nothing away");
    lab.aksnet(&["vm", "delete", "t1", "-g", "rg"]).succeeds();
    has(lab, "mover", "10.20.3.5");
    eventually("it answers there", || answers(lab, "10.20.3.5"));
    assert!(!answers(lab, "10.20.0.5"));

    apply(lab, "mover", 80, &[]);
    eventually("it has a public address", || addresses(lab, "mover").starts_with("198."));
    let public = addresses(lab, "mover");
    eventually("the internet is answered", || answers_the_internet(lab, &public));
    apply(lab, "mover", 80, &[INTERNAL]);
    has(lab, "mover", "10.20.0.5");
    eventually("it answers again", || answers(lab, "10.20.0.5"));
    assert!(!answers_the_internet(lab, &public));
    assert_eq!(public_ips_of(lab, NODES).len(), 1, "only the way out is left");
    delete(lab, "mover");
    for name in ["t0", "t2"] {
        lab.aksnet(&["vm", "delete", name, "-g", "rg"]).succeeds();
    }
}

/// Two Services at one address, by different ports. A third that wants a port that is taken is told so.
fn shares(lab: &TestLab) {
    let at = [
        INTERNAL,
        ("azure-load-balancer-internal-subnet", "other"),
        ("azure-load-balancer-ipv4", "10.20.3.6"),
    ];
    apply(lab, "first", 80, &at);
    has(lab, "first", "10.20.3.6");
    apply(lab, "second", 81, &at);
    has(lab, "second", "10.20.3.6");
    apply(lab, "third", 80, &at);
    says(
        lab,
        "third",
        "SyncLoadBalancerFailed",
        "checkLoadBalancerResourcesConflicts: service port http is trying to consume the port 80",
    );
    for place in ["10.20.3.6:80", "10.20.3.6:81"] {
        eventually(&format!("{place} answers"), || answers(lab, place));
    }
    // Both hear of other nodes, and of nothing else.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    lab.kubectl(CLUSTER, &format!("label node --all {label}=true")).succeeds();
    for name in ["first", "second"] {
        says(lab, name, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
    }
    eventually("no node is there to answer", || !answers(lab, "10.20.3.6:81"));
    lab.kubectl(CLUSTER, &format!("label node --all {label}-")).succeeds();
    eventually("it answers again", || answers(lab, "10.20.3.6:81"));
    // The third has its port as soon as the first has not, and the front end stays.
    delete(lab, "first");
    has(lab, "third", "10.20.3.6");
    delete(lab, "third");
    eventually("the port is nobody's", || !answers(lab, "10.20.3.6:80"));
    assert!(answers(lab, "10.20.3.6:81"));
    delete(lab, "second");
    let all = lab.az(&format!("network lb list -g {NODES} --query [].name")).json();
    assert_eq!(all, json!(["kubernetes"]));
}

/// Probes ask what annotations say: a path that is not there leaves nobody to balance to.
fn probes(lab: &TestLab) {
    let http = ("azure-load-balancer-health-probe-protocol", "http");
    let path = |path| ("azure-load-balancer-health-probe-request-path", path);
    apply(lab, "probed", 80, &[INTERNAL, http, path("/nowhere")]);
    has(lab, "probed", "10.20.0.5");
    let probe = || {
        let list = format!("network lb probe list -g {NODES} --lb-name kubernetes-internal");
        lab.az(&list).json()[0].clone()
    };
    assert_eq!(
        (&probe()["protocol"], &probe()["requestPath"]),
        (&json!("Http"), &json!("/nowhere"))
    );
    eventually("nobody is found fit", || !answers(lab, "10.20.0.5"));
    let interval = ("port_80_health-probe_interval", "6");
    apply(lab, "probed", 80, &[INTERNAL, http, path("/"), interval]);
    eventually("the pod is found fit", || answers(lab, "10.20.0.5"));
    assert_eq!((&probe()["intervalInSeconds"], &probe()["requestPath"]), (&json!(6), &json!("/")));
    let all_ports = ("azure-load-balancer-enable-high-availability-ports", "true");
    let (link, mode) = (("azure-pls-create", "true"), ("azure-load-balancer-mode", "auto"));
    apply(lab, "probed", 8080, &[INTERNAL, all_ports, link, mode]);
    eventually("any port leads there", || answers(lab, "10.20.0.5:8080"));
    for (name, _) in [link, mode] {
        says(lab, "probed", "AnnotationWithoutEffect", &format!("{PREFIX}{name}"));
    }
    let interval = ("azure-load-balancer-health-probe-interval", "60");
    apply(lab, "probed", 80, &[INTERNAL, interval]);
    says(lab, "probed", "SyncLoadBalancerFailed", "total probe should be less than 120");
    delete(lab, "probed");
}

fn public_ips_of(lab: &TestLab, group: &str) -> Vec<Value> {
    lab.az(&format!("network public-ip list -g {group}")).json().as_array().unwrap().clone()
}

/// Public IPs of users by address and name, one that two Services have, and one with a name.
fn public_ips(lab: &TestLab) {
    lab.az("group create -n ips -l eastus").succeeds();
    let make = |group: &str, name: &str| {
        let made = lab.az(&format!("network public-ip create -g {group} -n {name} --sku Standard"));
        made.json()["publicIp"]["ipAddress"].as_str().unwrap().to_owned()
    };
    let (near, far) = (make(NODES, "near"), make("ips", "far"));
    apply(lab, "near", 80, &[("azure-load-balancer-ipv4", &near), ("azure-pip-tags", "a=b")]);
    apply(lab, "beside", 81, &[("azure-pip-name", "near")]);
    let group = ("azure-load-balancer-resource-group", "ips");
    let more = ("azure-additional-public-ips", "198.18.9.8");
    apply(lab, "far", 80, &[group, ("azure-pip-name", "far"), more]);
    apply(lab, "named", 80, &[("azure-dns-label-name", "named"), ("azure-pip-tags", "a=b")]);
    apply(lab, "missing", 80, &[("azure-load-balancer-ipv4", "198.18.9.9")]);
    has(lab, "near", &near);
    has(lab, "beside", &near);
    has(lab, "far", &format!("{far} 198.18.9.8"));
    eventually("it has an address", || !addresses(lab, "named").is_empty());
    let named = addresses(lab, "named");
    for place in
        [format!("{near}:80"), format!("{near}:81"), format!("{far}:80"), format!("{named}:80")]
    {
        eventually(&format!("{place} answers"), || answers_the_internet(lab, &place));
    }
    let found = lab.exec("vm", "getent hosts named.eastus.cloudapp.azure.com").succeeds();
    assert!(found.starts_with(&named), "{found}");
    says(
        lab,
        "missing",
        "SyncLoadBalancerFailed",
        &format!("user supplied IP Address 198.18.9.9 was not found in resource group {NODES}"),
    );
    let tags = |address: &str| {
        let all = public_ips_of(lab, NODES);
        all.iter().find(|it| it["ipAddress"] == address).unwrap()["tags"].clone()
    };
    assert_eq!(tags(&near).as_object().map_or(0, serde_json::Map::len), 0, "a user's");
    assert_eq!(
        (&tags(&named)["a"], &tags(&named)["k8s-azure-service"]),
        (&json!("b"), &json!("default/named"))
    );
    apply(lab, "missing", 80, &[("azure-additional-public-ips", "nowhere")]);
    says(lab, "missing", "SyncLoadBalancerFailed", "invalid service annotation");
    // One that two Services have stays for the second.
    apply(lab, "joined", 81, &[("azure-load-balancer-ipv4", &named)]);
    has(lab, "joined", &named);
    assert_eq!(tags(&named)["k8s-azure-service"], "default/named,default/joined");
    delete(lab, "named missing");
    eventually("it answers still", || answers_the_internet(lab, &format!("{named}:81")));
    assert_eq!(tags(&named)["k8s-azure-service"], "default/joined");
    delete(lab, "joined near beside far");
    // The way out has a GUID for a name.
    let left = |group: &str| {
        let all = public_ips_of(lab, group).into_iter();
        let all = all.map(|it| it["name"].as_str().unwrap().to_owned());
        all.filter(|name| name.len() != 36).collect::<Vec<String>>()
    };
    assert_eq!((left(NODES), left("ips")), (vec!["near".to_owned()], vec!["far".to_owned()]));
}

/// Where a cluster has no way out, a public Service is none; the balancer goes with it.
fn is_no_way_out(lab: &TestLab) {
    apply(lab, "public", 80, &[]);
    eventually("it has an address", || !addresses(lab, "public").is_empty());
    let public = addresses(lab, "public");
    let outside = || lab.exec("one:default/web", "curl -s -m 3 http://203.0.113.9/").success();
    assert!(outside());
    lab.az(&format!("aks update -g rg -n {CLUSTER} --outbound-type none")).succeeds();
    let rules = format!(
        "network lb rule list -g {NODES} --lb-name kubernetes --query [].disableOutboundSnat"
    );
    eventually("its rule says so", || lab.az(&rules).json() == json!([true]));
    eventually("nothing gets out", || !outside());
    eventually("the internet is answered", || answers_the_internet(lab, &public));
    delete(lab, "public");
    assert_eq!(lab.az(&format!("network lb list -g {NODES}")).json(), json!([]));
}

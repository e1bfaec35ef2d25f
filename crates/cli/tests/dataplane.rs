//! Data plane cilium by `az`: new clusters, living ones, and what Azure refuses. Clusters without Kubernetes, whose pods have
//! the addresses that they have with Azure's own data plane.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(
    dead_code,
    reason = "the laboratory is shared, and Kubernetes' half of it is not for here"
)]

mod lab;

use std::{os::unix::fs::MetadataExt, thread};

use lab::{
    TestLab,
    network_only::{nodes, pods},
};
use serde_json::{Value, json};

const OVERLAY: &str = "--network-plugin azure --network-plugin-mode overlay";
const CREATE: &str = "aks create -g rg --node-count 2 --no-ssh-key";

#[test]
fn cilium_is_had_and_got() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    lab.az("group create -n rg -l eastus -o none").succeeds();
    lab.az("network vnet create -g rg -n net --address-prefixes 10.20.0.0/16 -o none").succeeds();
    for (name, prefix) in
        [("cni", "10.20.1.0/24"), ("hosts", "10.20.2.0/24"), ("pods", "10.20.3.0/24")]
    {
        lab.az(&format!(
            "network vnet subnet create -g rg --vnet-name net -n {name} --address-prefixes {prefix} -o none"
        ))
        .succeeds();
    }
    refusals(&lab);
    thread::scope(|scope| {
        scope.spawn(|| new(&lab));
        scope.spawn(|| living(&lab));
    });
    advanced(&lab);
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

fn subnet(name: &str) -> String {
    format!(
        "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Network/\
         virtualNetworks/net/subnets/{name}"
    )
}

/// The data plane and the policies that a profile says.
fn says(profile: &Value) -> (&str, &str) {
    let text = |property: &str| profile[property].as_str().unwrap_or_default();
    (text("networkDataplane"), text("networkPolicy"))
}

/// What Azure refuses, in its words, and what is not made here.
fn refusals(lab: &TestLab) {
    let refused = |more: &str, texts: &[&str]| {
        let said = lab.az(&format!("{CREATE} -n no {more}")).fails();
        for text in texts {
            assert!(said.contains(text), "`{more}`: {said}");
        }
    };
    let policy = "Target: networkProfile.networkPolicy";
    for engine in ["none", "calico", "azure"] {
        refused(
            &format!("{OVERLAY} --network-dataplane cilium --network-policy {engine}"),
            &["(BadRequest) Cilium dataplane requires network policy cilium.", policy],
        );
    }
    refused(
        &format!("{OVERLAY} --network-policy cilium"),
        &[
            "(NetworkPolicyNotSupported) Network Policy cilium requires NetworkDataplane cilium",
            policy,
        ],
    );
    refused(
        &format!("{OVERLAY} --network-policy calico"),
        &["(NetworkPolicyNotSupported) Not supported by this version of aksnet yet"],
    );
    for plugin in ["kubenet", "none"] {
        refused(
            &format!("--network-plugin {plugin} --network-dataplane cilium"),
            &["(BadRequest) Cilium dataplane requires network plugin azure."],
        );
    }
    let cilium = format!("{OVERLAY} --network-dataplane cilium");
    refused(
        &format!("{cilium} --enable-acns --acns-advanced-networkpolicies L7"),
        &["NotSupported", "Envoy"],
    );
    refused(&format!("{OVERLAY} --enable-acns"), &["NotSupported", "data plane azure"]);
    assert_eq!(lab.az("aks list").json(), json!([]));
}

/// Cilium from the beginning: with every way that pods get addresses, and with as many of them as without.
fn new(lab: &TestLab) {
    for (name, arguments, held) in [
        ("overlay", OVERLAY.to_owned(), None),
        (
            "cni",
            format!("--network-plugin azure --max-pods 30 --vnet-subnet-id {}", subnet("cni")),
            Some(("cni", 62)),
        ),
        (
            "pods",
            format!(
                "--network-plugin azure --vnet-subnet-id {} --pod-subnet-id {}",
                subnet("hosts"),
                subnet("pods")
            ),
            Some(("pods", 32)),
        ),
    ] {
        let services = "--service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10";
        let made = lab
            .az(&format!("{CREATE} -n {name} {arguments} {services} --network-dataplane cilium"));
        assert_eq!(says(&made.json()["networkProfile"]), ("cilium", "cilium"), "{name}");
        if let Some((subnet, held)) = held {
            let status = lab.aksnet(&["status", "-o", "json"]).json();
            let subnets = status["subnets"].as_array().unwrap();
            let there = subnets.iter().find(|it| it["name"] == subnet).unwrap();
            assert_eq!(there["held"], held, "{name}");
        }
    }
    let status = lab.aksnet(&["status"]).stdout();
    assert!(status.contains("azure, pod subnet, cilium"), "{status}");
    let back = lab.az("aks update -g rg -n overlay --network-dataplane azure").fails();
    assert!(back.contains("(PropertyChangeNotAllowed)"), "{back}");
    let none = lab.az("aks update -g rg -n overlay --network-policy none").fails();
    assert!(none.contains("Cilium dataplane requires network policy cilium."), "{none}");
}

/// Azure's own data plane first, then Cilium: every node is another one, with the same name and addresses, and its
/// pods are elsewhere meanwhile.
fn living(lab: &TestLab) {
    let made = lab.az(&format!("{CREATE} -n living {OVERLAY}")).json();
    assert_eq!(says(&made["networkProfile"]), ("azure", "none"));
    for name in ["a", "b"] {
        lab.aksnet(&["pod", "run", name, "-c", "living"]).succeeds();
    }
    let inodes = || -> Vec<u64> {
        let of = |node: &str| format!("/run/netns/{}-node-{node}", lab.name());
        let all = nodes(lab, "living").into_iter();
        all.map(|(node, _)| std::fs::metadata(of(&node)).unwrap().ino()).collect()
    };
    let before = (nodes(lab, "living"), pods(lab));
    // As long as somebody has an old namespace open, the kernel gives its number to no other.
    let path = |node: &str| format!("/run/netns/{}-node-{node}", lab.name());
    let _old: Vec<_> =
        before.0.iter().map(|(node, _)| std::fs::File::open(path(node)).unwrap()).collect();
    let old = inodes();
    // `az` sends back the policies that it was shown, `none`.
    let updated = lab.az("aks update -g rg -n living --network-dataplane cilium").json();
    assert_eq!(says(&updated["networkProfile"]), ("cilium", "cilium"));
    assert_eq!(updated["provisioningState"], "Succeeded");
    assert_eq!(nodes(lab, "living"), before.0);
    assert!(inodes().iter().all(|inode| !old.contains(inode)), "every node is another");
    let after = pods(lab);
    assert!(
        before.1.keys().filter(|key| key.starts_with("living:")).all(|key| after.contains_key(key))
    );
    let address = after["living:b"]["address"].as_str().unwrap();
    let heard = lab.exec("living:a", &format!("curl -s --max-time 2 http://{address}/")).succeeds();
    assert!(heard.contains("pod=b"), "{heard}");
}

/// Advanced Container Networking Services come and go.
fn advanced(lab: &TestLab) {
    let shown = |more: &str| {
        let line = format!("aks update -g rg -n overlay {more}");
        let profile = lab.az(&line).json()["networkProfile"]["advancedNetworking"].clone();
        let on = |part: &str| profile[part]["enabled"].as_bool().unwrap();
        let policies = profile["security"]["advancedNetworkPolicies"].as_str().unwrap().to_owned();
        (profile["enabled"].as_bool().unwrap(), on("observability"), on("security"), policies)
    };
    let expected = |enabled, observability, security, policies: &str| {
        (enabled, observability, security, policies.to_owned())
    };
    assert_eq!(shown("--enable-acns"), expected(true, true, true, "FQDN"));
    assert_eq!(
        shown("--enable-acns --acns-advanced-networkpolicies None"),
        expected(true, true, true, "None")
    );
    assert_eq!(
        shown("--enable-acns --disable-acns-observability"),
        expected(true, false, true, "None")
    );
    assert_eq!(shown("--disable-acns"), expected(false, false, false, "None"));
    let without = lab.az("aks update -g rg -n living --enable-acns").json();
    assert_eq!(without["networkProfile"]["advancedNetworking"]["enabled"], true);
}

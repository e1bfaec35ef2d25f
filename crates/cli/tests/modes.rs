//! The modes that the article describes without commands: overlay, and Azure CNI in the node subnet. And what Azure refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod lab;

use lab::{
    TestLab, eventually,
    packets::{Mode, Seen, WEB, jsonpath, table},
};

const IDS: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Network/virtualNetworks/net/subnets";

#[test]
fn overlay_and_node_subnet() {
    let lab = TestLab::up();
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az("network vnet create -g rg -n net --address-prefixes 10.20.0.0/16").succeeds();
    for (name, prefix) in
        [("nodes", "10.20.0.0/24"), ("cni", "10.20.1.0/24"), ("vms", "10.20.2.0/24")]
    {
        lab.az(&format!(
            "network vnet subnet create -g rg --vnet-name net -n {name} --address-prefixes {prefix}"
        ))
        .succeeds();
    }
    refusals(&lab);

    let services = "--service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10";
    lab.az(&format!("aks create -g rg -n overlay --network-plugin azure --network-plugin-mode overlay --node-count 2 --vnet-subnet-id {IDS}/nodes {services}")).succeeds();
    let cni = lab
        .az(&format!("aks create -g rg -n cni --network-plugin azure --node-count 2 --max-pods 30 --vnet-subnet-id {IDS}/cni {services}"))
        .json();
    assert_eq!(cni["networkProfile"]["podCidr"], serde_json::Value::Null);
    assert_eq!(cni["agentPoolProfiles"][0]["maxPods"], 30);

    // 1 + maxPods addresses per node from creation.
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let held = |subnet: &str| {
        status["subnets"].as_array().unwrap().iter().find(|it| it["name"] == subnet).unwrap()["held"].as_u64().unwrap()
    };
    assert_eq!((held("nodes"), held("cni")), (2, 62));
    // No route table: neither mode needs one.
    for group in ["rg", "MC_rg_overlay_eastus", "MC_rg_cni_eastus"] {
        assert_eq!(
            lab.az(&format!("network route-table list -g {group}")).json(),
            serde_json::json!([])
        );
    }

    for cluster in ["overlay", "cni"] {
        lab.az(&format!("aks get-credentials -g rg -n {cluster}")).succeeds();
    }
    lab.aksnet(&["vm", "create", "vm", "-g", "rg", "--vnet", "net", "--subnet", "vms"]).succeeds();
    table(
        &lab,
        &Mode { group: "rg", cluster: "overlay", vm_sees: Seen::Node, pod_sees_vm: false },
        "vm",
    );
    table(&lab, &Mode { group: "rg", cluster: "cni", vm_sees: Seen::Pod, pod_sees_vm: true }, "vm");

    changed(&lab);

    // Scale out and in: the addresses come and go with the nodes.
    lab.az("aks nodepool scale -g rg --cluster-name cni -n nodepool1 -c 3").succeeds();
    assert_eq!(
        jsonpath(&lab, "cni", "nodes", ".items[*].metadata.name").split_whitespace().count(),
        3
    );
    lab.az("aks nodepool scale -g rg --cluster-name cni -n nodepool1 -c 1").succeeds();
    eventually("the nodes are gone", || {
        jsonpath(&lab, "cni", "nodes", ".items[*].metadata.name").split_whitespace().count() == 1
    });
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let cni = status["subnets"].as_array().unwrap().iter().find(|it| it["name"] == "cni").unwrap();
    assert_eq!(cni["held"], 31);

    upgrade(&lab);
    lab.az("aks delete -g rg -n overlay --yes").succeeds();
    lab.az("group delete -n rg --yes").succeeds();
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    assert_eq!(status["clusters"], serde_json::json!([]));
    assert_eq!(status["subnets"], serde_json::json!([]));

    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// What a user may change while nodes run reaches them without an end of their pods: a pod CIDR that grows, a virtual
/// network's prefixes and name servers.
fn changed(lab: &TestLab) {
    let started = |cluster: &str| {
        jsonpath(lab, cluster, "pods -A", ".items[*].status.containerStatuses[*].containerID")
    };
    let before = [started("overlay"), started("cni")];
    let grown = lab.az("aks update -g rg -n overlay --pod-cidr 10.244.0.0/15").json();
    assert_eq!(grown["networkProfile"]["podCidrs"], serde_json::json!(["10.244.0.0/15"]));
    lab.az(
        "network vnet update -g rg -n net --address-prefixes 10.20.0.0/16 10.30.0.0/16 --dns-servers 10.20.2.9",
    )
    .succeeds();
    let space = ".items[*].status.networkContainers[0].subnetAddressSpace";
    eventually("nodes are told of the range", || {
        jsonpath(lab, "overlay", "nnc -A", space) == "10.244.0.0/15 10.244.0.0/15"
    });
    // A write that nodes must follow, too: whoever looks at them sees all that has changed.
    for cluster in ["overlay", "cni"] {
        lab.az(&format!(
            "aks nodepool update -g rg --cluster-name {cluster} -n nodepool1 --labels a=b"
        ))
        .succeeds();
    }
    lab.az("network vnet update -g rg -n net --dns-servers []").succeeds();
    assert_eq!([started("overlay"), started("cni")], before);
}

/// An upgrade node by node: the machines are others, their names and addresses are not, a client outside hardly
/// notices, and a daemon that is killed in the middle goes on.
fn upgrade(lab: &TestLab) {
    lab.kubectl("overlay", "delete pod --all --grace-period=0 --force").succeeds();
    lab.apply("overlay", WEB);
    let mut front = String::new();
    eventually("the service has an address", || {
        front = jsonpath(lab, "overlay", "service web", ".status.loadBalancer.ingress[0].ip");
        !front.is_empty()
    });
    let get = format!("curl -s -m 2 -o /dev/null http://{front}/");
    eventually("the service answers", || lab.exec("vm", &get).success());
    let nodes = || {
        let list = |path: &str| jsonpath(lab, "overlay", "nodes", path);
        let names = list(".items[*].metadata.name");
        let ids = list(".items[*].metadata.uid");
        let addresses = list(".items[*].status.addresses[?(@.type=='InternalIP')].address");
        (names, addresses, ids.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let before = nodes();
    let client = lab.exec_in_background(
        "vm",
        &format!(
            "good=0; bad=0; end=$(($(date +%s) + 75)); while [ $(date +%s) -lt $end ]; do \
             if {get}; then good=$((good + 1)); else bad=$((bad + 1)); fi; sleep 0.05; done; echo $good $bad"
        ),
    );
    lab.az("aks nodepool upgrade -g rg --cluster-name overlay -n nodepool1 --node-image-only --yes --no-wait")
        .succeeds();
    eventually("the first node is away", || nodes().2[0] != before.2[0]);
    lab.kill();
    lab.aksnet(&["up"]).succeeds();
    lab.az("aks nodepool wait -g rg --cluster-name overlay -n nodepool1 --updated --interval 1")
        .succeeds();
    let after = nodes();
    assert_eq!((&after.0, &after.1), (&before.0, &before.1));
    assert!(after.2.iter().all(|id| !before.2.contains(id)), "every machine is another");
    let events = lab.kubectl("overlay", "get events -A -o jsonpath={.items[*].reason}").stdout();
    for reason in ["Surge", "Drain", "Upgrade"] {
        assert!(events.contains(reason), "no event {reason} in {events}");
    }
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let held = status["subnets"].as_array().unwrap().iter().find(|it| it["name"] == "nodes");
    // Two nodes and the front end: the surge node's address is free.
    assert_eq!(held.unwrap()["held"], 3);
    let output = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts: Vec<u32> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let [good, bad] = counts[..] else { panic!("the client says `{text}`") };
    assert!(good >= 100 && bad * 50 <= good, "{bad} requests of {good} were lost");
    lab.kubectl("overlay", "delete service web").succeeds();
}

/// Refused with Azure's code and numbers, and nothing is half done.
fn refusals(lab: &TestLab) {
    let before = lab.az("network vnet show -g rg -n net").json();
    let check = |line: &str, texts: &[&str]| {
        let said = lab.az(line).fails();
        for text in texts {
            assert!(said.contains(text), "`az {line}` says: {said}");
        }
    };
    check(
        "network vnet subnet create -g rg --vnet-name net -n x --address-prefixes 10.20.0.128/25",
        &["NetcfgSubnetRangesOverlap"],
    );
    check(
        "network vnet subnet create -g rg --vnet-name net -n x --address-prefixes 10.21.0.0/24",
        &["NetcfgSubnetRangeOutsideVnet"],
    );
    check(
        "network vnet subnet create -g rg --vnet-name net -n x --address-prefixes 10.20.9.1/24",
        &["InvalidCIDRNotation", "10.20.9.0/24"],
    );
    check(
        "network vnet subnet create -g rg --vnet-name net -n x --address-prefixes bogus",
        &["InvalidAddressPrefixFormat"],
    );
    check(
        &format!(
            "aks create -g rg -n big --network-plugin azure --node-count 10 --max-pods 30 --vnet-subnet-id {IDS}/cni --service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10"
        ),
        &["InsufficientSubnetSize", "310", "251"],
    );
    check(
        &format!(
            "aks create -g rg -n clash --network-plugin azure --node-count 1 --vnet-subnet-id {IDS}/cni --service-cidr 10.20.0.0/16 --dns-service-ip 10.20.0.10"
        ),
        &["ServiceCidrOverlapExistingSubnetsCidr"],
    );
    check(
        "aks create -g rg -n c --network-plugin azure --network-plugin-mode overlay --network-policy calico",
        &["NetworkPolicyNotSupported", "calico"],
    );
    check(
        "aks create -g rg -n c --network-plugin kubenet --network-policy azure",
        &["NetworkPolicyAzureNotSupportedForKubenet"],
    );
    check("network dns zone create -g rg -n example.test", &["NotSupported"]);
    check("network vnet show -g rg -n nope", &["ResourceNotFound"]);
    check("aks show -g nope -n c", &["ResourceGroupNotFound"]);
    assert_eq!(lab.az("network vnet show -g rg -n net").json(), before);
    assert_eq!(lab.az("aks list").json(), serde_json::json!([]));

    let said =
        lab.aksnet(&["vm", "create", "v", "-g", "rg", "--vnet", "net", "--subnet", "nope"]).fails();
    assert!(said.contains("nope"), "{said}");
    let said = lab.aksnet(&["exec", "nobody", "--", "true"]).fails();
    assert!(said.contains("`nobody`; there are internet; a pod is"), "{said}");
    let said = lab.aksnet(&["--name", "a/b", "status"]).fails();
    assert!(said.contains("lower-case letters"), "{said}");
    let said = lab.aksnet(&["image", "import", "/nonexistent"]).fails();
    assert!(said.contains("/nonexistent"), "{said}");
}

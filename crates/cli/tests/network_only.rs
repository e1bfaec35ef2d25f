//! Clusters without Kubernetes: every mode, who reaches whom, and which source is seen. Each pod says itself who
//! called it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(
    dead_code,
    reason = "the laboratory is shared, and Kubernetes' half of it is not for here"
)]

mod lab;

use std::{collections::BTreeMap, process::Command, thread};

use lab::{
    TestLab, eventually,
    network_only::{nodes, pods},
    packets::{Echo, Seen, seen_from},
};
use serde_json::{Value, json};

const GROUP: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Network";
const SERVICES: &str = "--service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10 --no-ssh-key -o none";

/// The network mode that only the API itself can be asked for.
const BRIDGED: &str = "networkMode bridge";

/// A cluster, and what its mode promises
/// (MicrosoftDocs/azure-aks-docs, `concepts-network-cni-overview.md` and the pages of each mode).
struct Mode {
    cluster: &'static str,
    arguments: &'static str,
    /// The subnets of nodes and pods of a second pool.
    second_pool: Option<&'static str>,
    /// What a VM of the virtual network sees of a pod.
    vm_sees: Seen,
    /// Whether a VM in another subnet reaches a pod.
    from_vm: bool,
}

const MODES: [Mode; 6] = [
    Mode {
        cluster: "kubenet",
        arguments: "--network-plugin kubenet --vnet-subnet-id SUBNETS/kubenet",
        second_pool: None,
        vm_sees: Seen::Node,
        // Only the nodes' own subnet has the routes.
        from_vm: false,
    },
    Mode {
        cluster: "nodes",
        arguments: "--network-plugin azure --max-pods 30 --vnet-subnet-id SUBNETS/cni1",
        second_pool: Some("--max-pods 30 --vnet-subnet-id SUBNETS/cni2"),
        vm_sees: Seen::Pod,
        from_vm: true,
    },
    // `az aks create` has no word for it; `az rest`, templates and Terraform have.
    Mode {
        cluster: "bridged",
        arguments: BRIDGED,
        second_pool: None,
        vm_sees: Seen::Pod,
        from_vm: true,
    },
    Mode {
        cluster: "pods",
        arguments: "--network-plugin azure --vnet-subnet-id SUBNETS/hosts --pod-subnet-id SUBNETS/pods1",
        second_pool: Some("--vnet-subnet-id SUBNETS/hosts --pod-subnet-id SUBNETS/pods2"),
        vm_sees: Seen::Pod,
        from_vm: true,
    },
    Mode {
        cluster: "overlay1",
        arguments: "--network-plugin azure --network-plugin-mode overlay --vnet-subnet-id SUBNETS/overlay",
        second_pool: None,
        vm_sees: Seen::Node,
        from_vm: false,
    },
    Mode {
        cluster: "overlay2",
        arguments: "--network-plugin azure --network-plugin-mode overlay --vnet-subnet-id SUBNETS/overlay",
        second_pool: None,
        vm_sees: Seen::Node,
        from_vm: false,
    },
];

fn subnets(arguments: &str) -> String {
    arguments.replace("SUBNETS", &format!("{GROUP}/virtualNetworks/net/subnets"))
}

/// What a pod says of itself and of who called; `None` when it cannot be reached.
fn heard(lab: &TestLab, from: &str, to: &str) -> Option<(String, String)> {
    let said = lab.exec(from, &format!("curl -s --max-time 2 http://{to}/"));
    parse(&said.stdout())
}

/// The pod and the caller's address of `pod=NAME address=ADDRESS caller=ADDRESS:PORT`.
fn parse(line: &str) -> Option<(String, String)> {
    let fields: BTreeMap<&str, &str> =
        line.split_whitespace().filter_map(|field| field.split_once('=')).collect();
    let (caller, _) = fields.get("caller")?.rsplit_once(':')?;
    Some(((*fields.get("pod")?).to_owned(), caller.to_owned()))
}

fn held(lab: &TestLab, subnet: &str) -> u64 {
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let subnets = status["subnets"].as_array().unwrap();
    subnets.iter().find(|it| it["name"] == subnet).unwrap()["held"].as_u64().unwrap()
}

#[test]
fn every_mode_without_kubernetes() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    build(&lab);
    {
        let vm = vm_address(&lab, "vm");
        let _vm = Echo::start(&lab, "vm", &vm);
        thread::scope(|scope| {
            for mode in &MODES {
                scope.spawn(|| table(&lab, mode, &vm));
            }
        });
    }
    between_clusters(&lab);
    on_a_bridged_node(&lab);
    batches(&lab);
    without_a_cni(&lab);
    killed(&lab);
    traced(&lab);
    upgraded(&lab);

    // Pods of a node that goes are on others.
    let leaving =
        nodes(&lab, "nodes").into_iter().find(|(name, _)| name.contains("second")).unwrap().0;
    let before = pods(&lab);
    lab.az("aks nodepool delete -g rg --cluster-name nodes -n second -o none").succeeds();
    let left = pods(&lab);
    assert!(left.keys().eq(before.keys()), "{left:?}");
    assert!(!left.values().any(|pod| pod["node"] == leaving.as_str()), "{left:?}");
    assert_eq!(held(&lab, "cni2"), 0);

    lab.aksnet(&["pod", "delete", "--all"]).succeeds();
    assert_eq!(pods(&lab), BTreeMap::new());
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// With which public address a pod is seen outside, by its cluster's outbound type; and a trace says the same as the
/// packet where there is no way out
/// (MicrosoftDocs/azure-aks-docs, `egress-outboundtype.md`).
#[test]
fn outbound_types_are_seen_outside() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    lab.az("group create -n rg -l eastus -o none").succeeds();
    lab.az("network vnet create -g rg -n net --address-prefixes 10.20.0.0/16 -o none").succeeds();
    lab.az("network public-ip create -g rg -n own --sku Standard -o none").succeeds();
    lab.az("network nat gateway create -g rg -n nat --public-ip-addresses own -o none").succeeds();
    lab.az("network route-table create -g rg -n rt -o none").succeeds();
    for (subnet, prefix, more) in [
        ("gateway", "10.20.1.0/24", "--nat-gateway nat"),
        ("routed", "10.20.2.0/24", "--route-table rt"),
        ("appliances", "10.20.3.0/24", ""),
    ] {
        lab.az(&format!(
            "network vnet subnet create -g rg --vnet-name net -n {subnet} --address-prefixes {prefix} {more} -o none"
        ))
        .succeeds();
    }
    let appliance = ["-g", "rg", "--vnet", "net", "--subnet", "appliances", "--ip-forwarding"];
    lab.aksnet(&[&["vm", "create", "firewall"][..], &appliance].concat()).succeeds();
    let firewall = vm_address(&lab, "firewall");
    lab.az("network public-ip create -g rg -n firewall --sku Standard -o none").succeeds();
    lab.az(
        "network nic ip-config update -g rg --nic-name firewall-nic -n ipconfig1 --public-ip-address firewall -o none",
    )
    .succeeds();
    lab.az(&format!(
        "network route-table route create -g rg --route-table-name rt -n out --address-prefix 0.0.0.0/0 \
         --next-hop-type VirtualAppliance --next-hop-ip-address {firewall} -o none"
    ))
    .succeeds();
    let types = [
        ("balanced", "--outbound-type loadBalancer"),
        ("managed", "--outbound-type managedNATGateway"),
        ("user", "--outbound-type userAssignedNATGateway --vnet-subnet-id SUBNETS/gateway"),
        ("routed", "--outbound-type userDefinedRouting --vnet-subnet-id SUBNETS/routed"),
        ("none", "--outbound-type none"),
    ];
    thread::scope(|scope| {
        for (name, arguments) in types {
            let (lab, arguments) = (&lab, subnets(arguments));
            scope.spawn(move || {
                lab.az(&format!(
                    "aks create -g rg -n {name} --node-count 1 --network-plugin azure --network-plugin-mode overlay \
                     {arguments} {SERVICES}"
                ))
                .succeeds();
                lab.aksnet(&["pod", "run", name, "-c", name]).succeeds();
            });
        }
    });
    let public = lab.az("network public-ip list").json();
    let address = |which: &dyn Fn(&Value) -> bool| {
        let found = public.as_array().unwrap().iter().find(|ip| which(ip)).unwrap();
        found["ipAddress"].as_str().unwrap().to_owned()
    };
    let of_cluster = |name: &str| {
        let group = format!("MC_rg_{name}_eastus");
        address(&|ip| ip["resourceGroup"].as_str().unwrap().eq_ignore_ascii_case(&group))
    };
    let seen = |pod: &str| {
        lab.exec(pod, "curl -s --max-time 2 http://203.0.113.9/").stdout().trim().to_owned()
    };
    assert_eq!(seen("balanced"), of_cluster("balanced"));
    assert_eq!(seen("managed"), of_cluster("managed"));
    assert_eq!(seen("user"), address(&|ip| ip["name"] == "own"));
    // A firewall has a way out for what is its own alone: it must masquerade.
    assert_eq!(seen("routed"), "");
    lab.exec(
        "firewall",
        "nft 'table ip nat { chain out { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }'",
    )
    .succeeds();
    assert_eq!(seen("routed"), address(&|ip| ip["name"] == "firewall"));
    assert_eq!(seen("none"), "");
    // Its exit code says that it was not reached.
    let traced = lab.aksnet(&["trace", "none", "203.0.113.9", "--port", "80", "-o", "json"]);
    let report: Value = serde_json::from_str(&traced.stdout()).unwrap();
    assert_eq!(report["agree"], true, "{report}");
    assert_eq!(report["reachable"], false, "{report}");
}

/// The pod CIDR of a running overlay becomes larger: nodes that were there heed it at once, and there is room for more.
#[test]
fn an_overlay_grows() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    lab.az("group create -n rg -l eastus -o none").succeeds();
    lab.az(
        "aks create -g rg -n k --node-count 2 --network-plugin azure --network-plugin-mode overlay \
         --pod-cidr 192.168.0.0/23 -o none",
    )
    .succeeds();
    lab.aksnet(&["pod", "run", "a", "-c", "k"]).succeeds();
    let scaled = lab.az("aks scale -g rg -n k --node-count 3 -o none").fails();
    assert!(scaled.contains("InsufficientSubnetSize"), "{scaled}");
    let smaller = lab.az("aks update -g rg -n k --pod-cidr 192.168.0.0/24 -o none").fails();
    assert!(smaller.contains("can only be expanded"), "{smaller}");
    let grown = lab.az("aks update -g rg -n k --pod-cidr 192.168.0.0/22").json();
    assert_eq!(grown["networkProfile"]["podCidr"], "192.168.0.0/22");
    lab.az("aks scale -g rg -n k --node-count 3 -o none").succeeds();
    let third = nodes(&lab, "k")[2].0.clone();
    lab.aksnet(&["pod", "run", "c", "-c", "k", "--node", &third]).succeeds();
    let address =
        |pod: &str| pods(&lab)[&format!("k:{pod}")]["address"].as_str().unwrap().to_owned();
    let (a, c) = (address("a"), address("c"));
    assert!(c.starts_with("192.168.2."), "{c}");
    // Seen with its own address: it is inside, so nobody translates it.
    for (from, of, to, name) in [("a", &a, &c, "c"), ("c", &c, &a, "a")] {
        assert_eq!(heard(&lab, from, to), Some((name.to_owned(), of.clone())));
        let trace = lab.aksnet(&["trace", from, to, "--port", "80", "-o", "json"]).json();
        assert_eq!(trace["agree"], true, "{trace:#}");
    }
}

/// The network, then all clusters at once.
fn build(lab: &TestLab) {
    lab.az("group create -n rg -l eastus -o none").succeeds();
    let subnet = |name: &str, prefix: &str| json!({ "name": name, "properties": { "addressPrefix": prefix } });
    let body = json!({ "location": "eastus", "properties": {
        "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] },
        "subnets": [
            subnet("kubenet", "10.20.0.0/24"), subnet("cni1", "10.20.1.0/24"), subnet("cni2", "10.20.2.0/24"),
            subnet("hosts", "10.20.3.0/24"), subnet("pods1", "10.20.4.0/24"), subnet("pods2", "10.20.5.0/27"),
            subnet("overlay", "10.20.6.0/24"), subnet("vms", "10.20.7.0/24"), subnet("bridged", "10.20.8.0/24"),
        ] } });
    let url = format!("{GROUP}/virtualNetworks/net?api-version=2024-05-01");
    lab.az(&format!(
        "rest --method put --url {url} --body {} -o none",
        body.to_string().replace(' ', "")
    ))
    .succeeds();
    thread::scope(|scope| {
        for mode in &MODES {
            scope.spawn(move || {
                if mode.arguments == BRIDGED {
                    return bridged(lab, mode.cluster);
                }
                let (name, arguments) = (mode.cluster, subnets(mode.arguments));
                lab.az(&format!("aks create -g rg -n {name} --node-count 2 {arguments} {SERVICES}")).succeeds();
                if let Some(arguments) = mode.second_pool.map(subnets) {
                    lab.az(&format!(
                        "aks nodepool add -g rg --cluster-name {name} -n second -c 1 {arguments} -o none"
                    ))
                    .succeeds();
                }
            });
        }
        scope.spawn(|| {
            lab.az(&format!(
                "aks create -g rg -n bare --network-plugin none --node-count 1 {} {SERVICES}",
                subnets("--vnet-subnet-id SUBNETS/hosts")
            ))
            .succeeds();
        });
        for (name, subnet) in [("vm", "vms"), ("near", "kubenet")] {
            lab.aksnet(&["vm", "create", name, "-g", "rg", "--vnet", "net", "--subnet", subnet])
                .succeeds();
        }
    });
}

/// A cluster whose nodes connect their pods by bridge `azure0`.
fn bridged(lab: &TestLab, name: &str) {
    let body = json!({ "location": "eastus", "properties": {
        "dnsPrefix": name,
        "agentPoolProfiles": [{ "name": "nodepool1", "mode": "System", "count": 2, "maxPods": 30,
            "vmSize": "Standard_D2s_v3", "vnetSubnetID": subnets("SUBNETS/bridged") }],
        "networkProfile": { "networkPlugin": "azure", "networkMode": "bridge",
            "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" } } });
    let url = format!("{}?api-version=2025-01-01", lab_cluster(name));
    let body = body.to_string().replace(' ', "");
    lab.az(&format!("rest --method put --url {url} --body {body} -o none")).succeeds();
    lab.az(&format!("aks wait -g rg -n {name} --created --interval 1")).succeeds();
    let shown = lab.az(&format!("aks show -g rg -n {name}")).json();
    assert_eq!(shown["networkProfile"]["networkMode"], "bridge");
}

/// What one sees on a node whose pods are connected by a bridge.
fn on_a_bridged_node(lab: &TestLab) {
    let (node, address) = nodes(lab, "bridged").remove(0);
    let words = |line: &str| {
        let said = lab.exec(&node, line).succeeds();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        words("ip -4 route show"),
        format!(
            "default via 10.20.8.1 dev azure0 proto 197 onlink 10.20.8.0/24 dev azure0 proto kernel scope link src {address}"
        )
    );
    assert!(words("ip link show eth0").contains("master azure0"));
    assert_eq!(words("ip -4 addr show eth0"), "");
    // The fabric looks at everything every ten seconds; it must find the node as it is to be.
    let log = std::path::Path::new("/var/log/aksnet").join(lab.name()).join("aksnet.log");
    let text = std::fs::read_to_string(log).unwrap();
    assert!(!text.contains("somebody has"), "{text}");
    // And when the bridge's route goes, it comes back on the bridge.
    lab.exec(&node, "ip route del default").succeeds();
    eventually("the default route is back", || {
        lab.exec(&node, "ip route show default").stdout().contains("dev azure0")
    });
}

/// Who reaches whom in a mode, seen as whom.
fn table(lab: &TestLab, mode: &Mode, vm: &str) {
    let cluster = mode.cluster;
    let nodes = nodes(lab, cluster);
    let address_of_node: BTreeMap<&str, &str> =
        nodes.iter().map(|(name, address)| (name.as_str(), address.as_str())).collect();
    let mut others = vec!["c"];
    for (pod, node) in [("a", 0), ("b", 0), ("c", 1), ("d", 2)] {
        let Some((node, _)) = nodes.get(node) else { continue };
        lab.aksnet(&["pod", "run", pod, "-c", cluster, "--node", node]).succeeds();
        others.extend((pod == "d").then_some("d"));
    }
    assert_eq!(others.contains(&"d"), mode.second_pool.is_some());
    let pods = pods(lab);
    let address =
        |pod: &str| pods[&format!("{cluster}:{pod}")]["address"].as_str().unwrap().to_owned();
    let pod = |name: &str| format!("{cluster}:{name}");
    let a = address("a");
    let said = |name: &str, caller: &str| Some((name.to_owned(), caller.to_owned()));

    // The same node, another one, a node of another pool: its own address, and nobody in between.
    for other in ["b"].into_iter().chain(others) {
        assert_eq!(
            heard(lab, &pod("a"), &address(other)),
            said(other, &a),
            "{cluster}: a to {other}"
        );
        assert_eq!(
            heard(lab, &pod(other), &a),
            said("a", &address(other)),
            "{cluster}: {other} to a"
        );
    }
    let udp = format!("echo | timeout 3 nc -u -w 1 {} 8080", address("c"));
    assert_eq!(parse(&lab.exec(&pod("a"), &udp).stdout()), said("c", &a), "{cluster}: UDP");
    let first = format!("timeout 3 nc -d {} 8080", address("c"));
    assert_eq!(
        parse(&lab.exec(&pod("a"), &first).stdout()),
        said("c", &a),
        "{cluster}: who speaks first"
    );

    let expected = mode.from_vm.then(|| ("c".to_owned(), vm.to_owned()));
    assert_eq!(heard(lab, "vm", &address("c")), expected, "{cluster}: VM to pod");
    let expected = match mode.vm_sees {
        Seen::Pod => a.clone(),
        Seen::Node => address_of_node[pods[&pod("a")]["node"].as_str().unwrap()].to_owned(),
    };
    assert_eq!(seen_from(lab, &pod("a"), vm), expected, "{cluster}: pod to VM");
    if cluster == "kubenet" {
        let near = vm_address(lab, "near");
        assert_eq!(heard(lab, "near", &address("c")), said("c", &near), "by the nodes' routes");
    }
    let outside = lab.exec(&pod("a"), "curl -s --max-time 5 http://203.0.113.9/").succeeds();
    let ips = lab.az(&format!("network public-ip list -g MC_rg_{cluster}_eastus")).json();
    assert_eq!(outside.trim(), ips[0]["ipAddress"].as_str().unwrap(), "{cluster}: pod to internet");
}

fn vm_address(lab: &TestLab, name: &str) -> String {
    let vms = lab.aksnet(&["vm", "list", "-o", "json"]).json();
    let vms = vms["vms"].as_array().unwrap();
    vms.iter().find(|vm| vm["name"] == name).unwrap()["address"].as_str().unwrap().to_owned()
}

fn between_clusters(lab: &TestLab) {
    let pods = pods(lab);
    let address = |pod: &str| pods[pod]["address"].as_str().unwrap().to_owned();
    // Two overlays have one range, and each address means its own cluster's pod. In both it is `c` of that one.
    let c = address("overlay1:c");
    assert_eq!(c, address("overlay2:c"));
    for cluster in ["overlay1", "overlay2"] {
        let a = address(&format!("{cluster}:a"));
        lab.aksnet(&["pod", "run", &format!("only-{cluster}"), "-c", cluster]).succeeds();
        assert_eq!(heard(lab, &format!("{cluster}:a"), &c), Some(("c".to_owned(), a)));
    }
    let pods = self::pods(lab);
    let own = |cluster: &str| {
        pods[&format!("{cluster}:only-{cluster}")]["address"].as_str().unwrap().to_owned()
    };
    assert_eq!(own("overlay1"), own("overlay2"));
    for cluster in ["overlay1", "overlay2"] {
        let (pod, _) = heard(lab, &format!("{cluster}:a"), &own(cluster)).unwrap();
        assert_eq!(pod, format!("only-{cluster}"));
    }
    // Pods with addresses of the virtual network meet across clusters and modes.
    let (nodes_a, pods_d) = (address("nodes:a"), address("pods:d"));
    assert_eq!(heard(lab, "nodes:a", &pods_d), Some(("d".to_owned(), nodes_a)));
    assert_eq!(heard(lab, "pods:d", &address("overlay1:a")), None);
}

/// Batches of 16 come and go with pods, and end with the subnet.
fn batches(lab: &TestLab) {
    let second =
        nodes(lab, "pods").into_iter().find(|(name, _)| name.contains("second")).unwrap().0;
    let first =
        nodes(lab, "pods").into_iter().find(|(name, _)| !name.contains("second")).unwrap().0;
    assert_eq!((held(lab, "pods1"), held(lab, "pods2")), (32, 16));
    lab.aksnet(&["pod", "run", "many", "-c", "pods", "--node", &first, "--count", "20"]).succeeds();
    // 22 pods and half a batch more: 32 on this node, 16 on the other.
    eventually("a batch is granted", || held(lab, "pods1") == 48);
    let names: Vec<String> = (0..20).map(|n| format!("pods:many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    lab.aksnet(&[&["pod", "delete"], names.as_slice()].concat()).succeeds();
    eventually("the batch is given back", || held(lab, "pods1") == 32);

    // A /27 has room for one batch; what is left comes one by one, and who goes short is told why.
    let said = lab
        .aksnet(&["pod", "run", "full", "-c", "pods", "--node", &second, "--count", "29"])
        .fails();
    let why = "Subnet `pods2` (10.20.5.0/27) of virtual network `net` is full: 27 of its 27 usable addresses are held";
    assert_eq!(said.matches(why).count(), 3, "{said}");
    let status = "not enough IPs available of type IPv4 for pods2, waiting on Azure CNS to allocate more with NC Status: \
                  NCUpdateSubnetFullError";
    assert!(said.contains(status), "{said}");
    let running = || pods(lab).into_keys().filter(|pod| pod.starts_with("pods:full-")).count();
    assert_eq!((running(), held(lab, "pods2")), (26, 27));
    // As soon as there is one, somebody else has it.
    lab.aksnet(&["pod", "delete", "pods:full-0"]).succeeds();
    lab.aksnet(&["pod", "run", "late", "-c", "pods", "--node", &second]).succeeds();
    lab.aksnet(&["pod", "delete", "pods:late"]).succeeds();
}

/// Bring your own: with a configuration of one's own, any plugin.
fn without_a_cni(lab: &TestLab) {
    let (node, _) = nodes(lab, "bare").remove(0);
    let said = lab.aksnet(&["pod", "run", "p", "-c", "bare"]).fails();
    assert!(said.contains("brings its own"), "{said}");
    let folder = format!("/run/aksnet/{}/nodes/{node}/net.d", lab.name());
    let list = json!({ "cniVersion": "1.0.0", "name": "own", "plugins": [{ "type": "ptp",
        "ipam": { "type": "host-local", "subnet": "10.99.0.0/24", "dataDir": format!("{folder}/../host-local") } }] });
    std::fs::write(format!("{folder}/10-own.conflist"), list.to_string()).unwrap();
    lab.aksnet(&["pod", "run", "p", "-c", "bare"]).succeeds();
    let address = pods(lab)["bare:p"]["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.99.0."), "{address}");
    assert_eq!(heard(lab, &node, &address).unwrap().0, "p");

    let said = lab.az("aks get-credentials -g rg -n bare").fails();
    assert!(said.contains("network-only"), "{said}");
}

/// Neither the daemon's end nor the echo's takes anything away for good.
fn killed(lab: &TestLab) {
    let before = pods(lab);
    let (a, c) = (&before["overlay1:a"], &before["overlay1:c"]);
    let ask = || {
        let line = [
            "curl",
            "-s",
            "--max-time",
            "2",
            &format!("http://{}/", c["address"].as_str().unwrap()),
        ];
        let netns = format!("--net={}", a["netns"].as_str().unwrap());
        let output = Command::new("nsenter").arg(netns).args(line).output().unwrap();
        parse(&String::from_utf8_lossy(&output.stdout)).map(|(pod, _)| pod)
    };
    lab.kill();
    assert_eq!(ask().as_deref(), Some("c"), "without the daemon");
    // What a daemon that dies in the middle of a pod leaves: a record without a network.
    let torn = json!({ "version": 1, "name": "torn", "cluster": lab_cluster("overlay1"), "node": a["node"],
        "labels": {}, "container": "torn", "created": 0, "phase": "creating", "address": null, "result": null });
    let record =
        format!("/run/aksnet/{}/nodes/{}/pods/torn.json", lab.name(), a["node"].as_str().unwrap());
    std::fs::write(&record, torn.to_string()).unwrap();
    lab.aksnet(&["up"]).succeeds();
    eventually("what was torn is cleared away", || {
        !std::path::Path::new(&record).exists() && pods(lab) == before
    });
    assert_eq!(ask().as_deref(), Some("c"), "with the daemon back");
    let addresses = |pods: &BTreeMap<String, Value>| -> Vec<String> {
        let of = pods.values().filter(|pod| pod["cluster"] == "overlay1");
        of.map(|pod| pod["address"].to_string()).collect()
    };
    lab.aksnet(&["pod", "run", "after", "-c", "overlay1", "--count", "4"]).succeeds();
    let mut after = addresses(&pods(lab));
    after.sort();
    after.dedup();
    assert_eq!(after.len(), addresses(&before).len() + 4, "no address twice");

    let pid = std::fs::read(format!("/run/aksnet/{}/echo.pid", lab.name())).unwrap();
    let pid = serde_json::from_slice::<Value>(&pid).unwrap()["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    eventually("pods answer again", || ask().as_deref() == Some("c"));
}

/// Two clusters have pods of one name and one address; a trace is about the one that is named.
fn traced(lab: &TestLab) {
    for cluster in ["overlay1", "overlay2"] {
        let pod = format!("{cluster}:a");
        let node = pods(lab)[&pod]["node"].as_str().unwrap().to_owned();
        let answer = lab.aksnet(&["trace", &pod, "203.0.113.9", "--port", "80", "-o", "json"]);
        let report = answer.json();
        assert_eq!(report["agree"], true, "{report}");
        let hops = report["hops"].as_array().unwrap();
        assert_eq!(hops[1]["place"], format!("node/{node}"), "{report}");
        let gate = report["model"][0]["steps"].to_string();
        assert!(gate.contains(&node), "the model's sender is {node}: {report}");
    }
    let refusal = lab.aksnet(&["trace", "a", "203.0.113.9"]).fails();
    assert!(refusal.contains("pod/overlay1:a"), "{refusal}");
}

/// Node by node: pods are on others meanwhile, and each node is another one with the same name and address.
fn upgraded(lab: &TestLab) {
    let inode = |node: &str| {
        use std::os::unix::fs::MetadataExt;
        let path = format!("/run/netns/{}-node-{node}", lab.name());
        std::fs::metadata(path).unwrap().ino()
    };
    let before = (nodes(lab, "overlay1"), pods(lab));
    let first = &before.0[0].0;
    let number = inode(first);
    // As long as somebody has the old namespace open, the kernel gives its number to no other.
    let _old = std::fs::File::open(format!("/run/netns/{}-node-{first}", lab.name())).unwrap();
    lab.az("aks nodepool upgrade -g rg --cluster-name overlay1 -n nodepool1 --node-image-only --yes -o none")
        .succeeds();
    assert_eq!(nodes(lab, "overlay1"), before.0);
    assert_ne!(inode(first), number, "it was made anew");
    let after = pods(lab);
    assert!(after.keys().eq(before.1.keys()), "{after:?}");
    let c = after["overlay1:c"]["address"].as_str().unwrap();
    let heard = heard(lab, "overlay1:a", c).map(|(pod, _)| pod);
    assert_eq!(heard.as_deref(), Some("c"));
}

fn lab_cluster(name: &str) -> String {
    GROUP
        .replace("Microsoft.Network", &format!("Microsoft.ContainerService/managedClusters/{name}"))
}

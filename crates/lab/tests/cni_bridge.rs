//! azure-vnet's mode `bridge`: the node's NIC and its pods are ports of one bridge. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{fs, time::Duration};

use lab::pods::{NEIGHBOUR, NODE, OUTSIDE, World, leases, wait};
use linux::netns::Netns;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(5);
/// The subnet's router, which pods have as their gateway.
const ROUTER: &str = "10.0.0.1";
const VIRTUAL_MAC: &str = "12:34:56:78:9a:bc";
const PODS: [&str; 4] = ["10.0.0.20", "10.0.0.21", "10.0.0.22", "10.0.0.23"];

/// A node whose network is as Azure's: one router that answers for every address.
fn world() -> World {
    let mut world = World::new(PROGRAM);
    for line in [
        format!("ip link set in address {VIRTUAL_MAC}"),
        format!("ip addr add {ROUTER}/24 dev in"),
        "sysctl -qw net.ipv4.conf.in.proxy_arp=1 net.ipv4.conf.in.proxy_arp_pvlan=1 net.ipv4.ip_forward=1"
            .to_owned(),
    ] {
        let done = world.run("out", &line);
        assert!(done.status.success(), "{line}: {done:?}");
    }
    // What the network sends to the node has the NIC's Ethernet address, whichever of its addresses it is for.
    let nic = link(&world, "node", "eth0");
    let mac = nic["address"].as_str().unwrap();
    for pod in PODS {
        let line = format!("ip neigh replace {pod} lladdr {mac} dev in nud permanent");
        assert!(world.run("out", &line).status.success());
    }
    world.start_agent("node-subnet-bridge", &json!({ "version": 1, "addresses": PODS }));
    world
}

fn add(world: &World, name: &str) -> String {
    let _ = world.container(name);
    let said = world.plugin("ADD", name, &world.network("1.0.0"));
    assert!(said.success, "{said:?}\n{}", world.agent_log());
    said.address()
}

/// A link as `ip` describes it.
fn link(world: &World, at: &str, name: &str) -> Value {
    let shown = world.output(at, &format!("ip -j link show {name}"));
    serde_json::from_str::<Value>(&shown).unwrap()[0].clone()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The source that a listener at `to` in `at` sees of a connection from `from`.
fn source_seen(world: &World, from: &str, at: &str, to: &str) -> String {
    let there = Netns::open(&world.netns(at)).unwrap();
    let listener = there.tcp_listen(format!("{to}:0").parse().unwrap()).unwrap();
    let to = format!("{to}:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let here = Netns::open(&world.netns(from)).unwrap();
    let connected = here.tcp_connect(None, to, Duration::from_secs(3));
    assert!(connected.is_ok(), "{from} to {to}: {connected:?}");
    listener.accept().unwrap().1.ip().to_string()
}

#[test]
fn the_bridge_stands_in_for_the_nic() {
    let world = world();
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    // As AKS' documentation showed it for this mode (MicrosoftDocs/azure-docs, `articles/aks/faq.md` of 2021): two
    // routes, however many pods there are.
    assert_eq!(
        words(&world.output("node", "ip -4 route show")),
        format!(
            "default via {NEIGHBOUR} dev azure0 onlink 10.0.0.0/24 dev azure0 proto kernel scope link src {NODE}"
        )
    );
    assert_eq!(words(&world.output("node", "ip -4 addr show dev eth0")), "");
    let (bridge, nic) = (link(&world, "node", "azure0"), link(&world, "node", "eth0"));
    assert_eq!(bridge["address"], nic["address"]);
    assert_eq!(bridge["mtu"], 1400, "the NIC's");
    assert_eq!(nic["master"], "azure0");
    let ports = world.output("node", "bridge link show");
    assert_eq!(ports.matches("master azure0").count(), 3, "{ports}");
    // A pod is on the subnet.
    assert_eq!(
        words(&world.output("a", "ip -4 route show")),
        format!(
            "default via {ROUTER} dev eth0 proto 198 onlink 10.0.0.0/24 dev eth0 proto kernel scope link src {a}"
        )
    );
    for (from, to) in [
        ("a", b.as_str()),
        ("b", &a),
        ("node", &a),
        ("a", NODE),
        ("a", NEIGHBOUR),
        ("a", OUTSIDE),
        ("node", NEIGHBOUR),
        ("node", OUTSIDE),
        ("out", &a),
        ("out", NODE),
    ] {
        assert!(
            world.pings(from, to),
            "{from} to {to}\n{}",
            world.output("node", "nft list ruleset")
        );
    }
    // Pods of one node find each other, and the node; the network is one Ethernet address for all others.
    let own = link(&world, "b", "eth0")["address"].as_str().unwrap().to_owned();
    let known = world.output("a", "ip neigh show");
    assert!(known.contains(&format!("{b} dev eth0 lladdr {own}")), "{known}");
    assert!(known.contains(&format!("{NEIGHBOUR} dev eth0 lladdr {VIRTUAL_MAC}")), "{known}");
    assert!(world.output("node", "ip neigh show").contains(&format!("{a} dev azure0")));
    let file = fs::read(world.path("net.d/10-azure.conflist")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["plugins"][0]["mode"], "bridge");
    assert_eq!(file["plugins"][0]["bridge"], "azure0");
    for name in ["a", "b"] {
        assert!(world.plugin("DEL", name, &world.network("1.0.0")).success);
    }
    let bare = || {
        let links = world.output("node", "ip -br link show");
        leases(&world.path("run")).is_empty() && !links.contains("azv")
    };
    assert!(wait(PATIENCE, bare), "{}", world.agent_log());
    let elements = world.output("node", "nft list table bridge aksnet");
    assert!(!elements.contains("elements"), "{elements}");
}

/// The virtual network sees a pod's own address and everybody else the node's; the far end sees one NIC.
#[test]
fn sources_and_services_are_as_in_the_other_mode() {
    let world = world();
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert!(world.run("out", "ip addr add 203.0.113.9/32 dev lo").status.success());
    for (to, expected) in [(NEIGHBOUR, a.as_str()), (OUTSIDE, NODE), ("203.0.113.9", NODE)] {
        assert_eq!(source_seen(&world, "a", "out", to), expected, "to {to}");
    }
    assert_eq!(source_seen(&world, "a", "b", &b), a);
    assert_eq!(source_seen(&world, "out", "a", &a), NEIGHBOUR);
    // As kube-proxy does it: the destination is translated on the node, and who reaches itself has the node's address.
    let rules = format!(
        "table ip service {{
            chain to {{
                type nat hook prerouting priority dstnat
                ip daddr 10.96.0.1 dnat to {b}
                ip daddr 10.96.0.2 dnat to {NEIGHBOUR}
            }}
            chain from {{
                type nat hook postrouting priority srcnat
                ip saddr {b} ip daddr {b} masquerade
            }}
        }}
"
    );
    let file = world.path("service.nft");
    fs::write(&file, rules).unwrap();
    assert!(world.run("node", &format!("nft -f {}", file.display())).status.success());
    for (at, service) in [("b", "10.96.0.1:8080"), ("out", "10.96.0.2:8080")] {
        let there = Netns::open(&world.netns(at)).unwrap();
        let listener = there.tcp_listen("0.0.0.0:8080".parse().unwrap()).unwrap();
        for from in ["a", "b"] {
            let here = Netns::open(&world.netns(from)).unwrap();
            let connected =
                here.tcp_connect(None, service.parse().unwrap(), Duration::from_secs(3));
            assert!(connected.is_ok(), "{service} from {from}: {connected:?}");
            let _ = listener.accept().unwrap();
        }
    }
}

#[test]
fn host_ports_lead_over_the_bridge() {
    let world = world();
    let _ = world.container("a");
    let mut network = world.network("1.0.0");
    network["runtimeConfig"]["portMappings"] =
        json!([{ "hostPort": 8081, "containerPort": 80, "protocol": "tcp" }]);
    let said = world.plugin("ADD", "a", &network);
    assert!(said.success, "{said:?}\n{}", world.agent_log());
    let _other = add(&world, "b");
    let pod = Netns::open(&world.netns("a")).unwrap();
    let listener = pod.tcp_listen("0.0.0.0:80".parse().unwrap()).unwrap();
    for (from, to) in
        [("out", NODE), ("node", NODE), ("node", "127.0.0.1"), ("b", NODE), ("a", NODE)]
    {
        let here = Netns::open(&world.netns(from)).unwrap();
        let at = format!("{to}:8081").parse().unwrap();
        let connected = here.tcp_connect(None, at, Duration::from_secs(3));
        assert!(connected.is_ok(), "{from} to {to}: {connected:?}");
        let _ = listener.accept().unwrap();
    }
}

/// A port carries its own pod's addresses, in packets and in ARP.
#[test]
fn a_pod_cannot_be_another() {
    let world = world();
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert!(world.run("a", "ip addr add 10.0.0.77/32 dev eth0").status.success());
    let forged = |source: &str, to: &str| {
        world.run("a", &format!("ping -c 1 -W 1 -n -q -I {source} {to}")).status.success()
    };
    assert!(forged(&a, &b));
    assert!(!forged("10.0.0.77", &b), "another's address");
    assert!(!forged("10.0.0.77", NEIGHBOUR), "another's address, out of the node");
    let known = world.output("b", "ip neigh show 10.0.0.77");
    assert!(!known.contains("lladdr"), "{known}");
    // With the neighbour's Ethernet address and its own IP address.
    let mac = world.output("b", "cat /sys/class/net/eth0/address");
    for line in
        [format!("ip link set eth0 address {}", mac.trim()), "ip neigh flush all".to_owned()]
    {
        assert!(world.run("a", &line).status.success());
    }
    assert!(!world.pings("a", NODE), "another's Ethernet address");
    assert!(world.pings("b", NODE), "who is who it says is not hurt");
}

/// Everything that the bridge needs comes back: from CHECK's words, from a second ADD, and by itself.
#[test]
fn what_is_lost_is_found_and_mended() {
    let mut world = world();
    let a = add(&world, "a");
    let network = world.network("1.0.0");
    let said = world.plugin("ADD", "a", &network);
    let mut checked = network.clone();
    checked["prevResult"] = said.json();
    assert!(world.plugin("CHECK", "a", &checked).success);
    let port = said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
    for (damage, found) in [
        (format!("ip link set {port} nomaster"), "no port of the bridge"),
        (
            format!("nft delete element bridge aksnet here {{ {a} }}"),
            "does not know the pod's frames",
        ),
    ] {
        let bad = world.check_after("node", &damage, "a", &checked);
        assert!(bad.stdout.contains(found), "{damage}: {bad:?}");
        assert!(world.plugin("ADD", "a", &network).success, "{damage}");
        assert!(world.plugin("CHECK", "a", &checked).success, "{damage}");
    }
    for damage in [
        "nft flush ruleset",
        "nft delete table bridge aksnet",
        "nft flush chain bridge aksnet prerouting",
        "nft flush map bridge aksnet macs",
        "ip link set azure0 down",
        "ip link set eth0 nomaster",
        "ip link set eth0 down",
    ] {
        assert!(world.run("node", damage).status.success(), "{damage}");
        let is_mended = || {
            let pod = world.run("node", &format!("ping -c 1 -W 1 -n -q {a}")).status.success();
            pod && world.pings("out", &a) && world.plugin("CHECK", "a", &checked).success
        };
        assert!(wait(PATIENCE, is_mended), "{damage}\n{}", world.agent_log());
    }
    // The same after a start.
    world.kill_agent();
    assert!(world.run("node", "nft flush ruleset").status.success());
    world.start_agent("node-subnet-bridge", &json!({ "version": 1, "addresses": PODS }));
    assert!(world.pings("out", &a) && world.pings("a", OUTSIDE));
    assert_eq!(add(&world, "a"), a);
}

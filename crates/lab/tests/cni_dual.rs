//! Pods with an address of each family, with real namespaces, links and packets. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lab::pods::{NEIGHBOUR_V6, NODE_V6, OUTSIDE_V6, Said, World, leases, wait};
use linux::netns::Netns;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(5);
const V6_BLOCK: &str = "fd12:3456:789a:0:1::/80";

fn blocks() -> Value {
    json!({ "version": 1, "block": "10.244.1.0/24", "block_v6": V6_BLOCK })
}

fn world(mode: &str) -> World {
    let mut world = World::new(PROGRAM);
    world.start_agent(mode, &blocks());
    world
}

/// Adds a container and answers with its two addresses.
fn add(world: &World, name: &str) -> [String; 2] {
    let _ = world.container(name);
    let said = world.plugin("ADD", name, &world.network("1.0.0"));
    addresses(world, &said)
}

fn addresses(world: &World, said: &Said) -> [String; 2] {
    assert!(said.success, "{said:?}\n{}", world.agent_log());
    let result = said.json();
    let ips = result["ips"].as_array().unwrap();
    assert_eq!(ips.len(), 2, "{result}");
    [0, 1].map(|n| ips[n]["address"].as_str().unwrap().split('/').next().unwrap().to_owned())
}

fn delete(world: &World, name: &str) {
    let said = world.plugin("DEL", name, &world.network("1.0.0"));
    assert!(said.success && said.stdout.is_empty(), "{said:?}");
}

fn nothing_is_left(world: &World) {
    let links = || world.output("node", "ip -o link show type veth").lines().count();
    let is_empty = || leases(&world.path("run")).is_empty() && links() == 1;
    assert!(wait(PATIENCE, is_empty), "{}", world.agent_log());
    let routes = world.output("node", "ip -6 route show");
    assert!(!routes.contains("azv"), "{routes}");
}

fn listen(world: &World, at: &str, port: u16) -> TcpListener {
    let netns = Netns::open(&world.netns(at)).unwrap();
    netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap().unwrap()
}

/// The source that a listener sees of a connection from `from` to `to`.
fn seen(world: &World, listener: &TcpListener, from: &str, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let netns = Netns::open(&world.netns(from)).unwrap();
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
    let _client = netns.run(connect).unwrap().ok()?;
    Some(listener.accept().unwrap().1.ip().to_canonical().to_string())
}

#[test]
fn a_routed_pod_has_both_families_as_azure_wires_it() {
    let world = world("overlay");
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert_eq!(a, ["10.244.1.0", "fd12:3456:789a:0:1::"]);
    assert_eq!(b, ["10.244.1.1", "fd12:3456:789a:0:1::1"]);
    for (from, to) in [
        ("a", &*b[1]),
        ("b", &*a[1]),
        ("a", &*b[0]),
        ("node", &*a[1]),
        ("a", NODE_V6),
        ("a", NEIGHBOUR_V6),
        ("a", OUTSIDE_V6),
    ] {
        assert!(world.pings(from, to), "{from} to {to}");
    }
    let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let routes = words(world.output("a", "ip -6 route show default"));
    assert!(routes.starts_with("default via fe80::1234:5678:9abc dev eth0 proto 198"), "{routes}");
    let neighbours = words(world.output("a", "ip -6 neigh show fe80::1234:5678:9abc"));
    assert!(neighbours.contains("lladdr aa:aa:aa:aa:aa:aa PERMANENT"), "{neighbours}");
    let neighbours = world.output("node", &format!("ip -6 neigh show {}", a[1]));
    assert!(neighbours.contains("PERMANENT"), "{neighbours}");
    // Nothing is waited for, and no router believed.
    let tentative = world.output("a", "ip -6 addr show dev eth0 tentative");
    assert_eq!(tentative.trim(), "");
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("forwarding", "0")] {
        let has = world.output("a", &format!("cat /proc/sys/net/ipv6/conf/eth0/{name}"));
        assert_eq!(has.trim(), value, "{name}");
    }
    for name in ["a", "b"] {
        delete(&world, name);
        delete(&world, name);
    }
    nothing_is_left(&world);
}

/// The kernel lets the node's end send only some time after the pod's end is up; an ADD answers after that.
#[test]
fn a_pod_hears_the_answer_to_its_first_packet() {
    let world = world("overlay");
    let first = add(&world, "first");
    for n in 0..40 {
        let name = format!("p{n}");
        let _ = add(&world, &name);
        let line = format!("ping -c 1 -W 1 -n -q {}", first[n % 2]);
        assert!(world.run(&name, &line).status.success(), "{n}");
        delete(&world, &name);
    }
}

#[test]
fn bridged_pods_have_both_families_of_the_bridge() {
    let world = world("kubenet");
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert_eq!(a, ["10.244.1.2", "fd12:3456:789a:0:1::2"]);
    assert_eq!(b, ["10.244.1.3", "fd12:3456:789a:0:1::3"]);
    for (from, to) in [
        ("a", &*b[1]),
        ("node", &*a[1]),
        ("a", "fd12:3456:789a:0:1::1"),
        ("b", NEIGHBOUR_V6),
        ("b", OUTSIDE_V6),
    ] {
        assert!(world.pings(from, to), "{from} to {to}");
    }
    let permanent = |place: &str| world.output(place, "ip -6 neigh show nud permanent");
    assert!(permanent("a").contains("fd12:3456:789a:0:1::1 "), "{}", permanent("a"));
    assert!(permanent("node").contains(&a[1]), "{}", permanent("node"));
    for name in ["a", "b"] {
        delete(&world, name);
    }
    nothing_is_left(&world);
    assert_eq!(permanent("node"), "");
}

/// Outside the pods' range the node's address of the same family is seen; inside it the pod's own.
#[test]
fn a_pods_source_is_translated_in_each_family() {
    for mode in ["overlay", "kubenet"] {
        let world = world(mode);
        let [_, pod] = add(&world, "a");
        let elsewhere = "fd12:3456:789a:0:9::9";
        for line in [
            format!("ip -6 route add {V6_BLOCK} via {NODE_V6}"),
            format!("ip addr add {elsewhere}/128 dev lo nodad"),
        ] {
            assert!(world.run("out", &line).status.success(), "{line}");
        }
        let listener = listen(&world, "out", 7000);
        for (to, expected) in
            [(NEIGHBOUR_V6, NODE_V6), (OUTSIDE_V6, NODE_V6), (elsewhere, pod.as_str())]
        {
            let said = seen(&world, &listener, "a", &format!("[{to}]:7000"));
            assert_eq!(said.as_deref(), Some(expected), "{mode}: to {to}");
        }
    }
}

/// A pod that sends with another's address, or with one of nobody's, is not heard.
#[test]
fn a_pod_cannot_have_anothers_source() {
    let world = world("overlay");
    let (_, [_, b]) = (add(&world, "a"), add(&world, "b"));
    assert!(world.pings("a", &b));
    for source in [&*b, "fd12:3456:789a:0:1::77", "2001:db8::1"] {
        assert!(world.run("a", &format!("ip addr add {source}/128 dev lo nodad")).status.success());
        let line = format!("ping -c 1 -W 1 -n -q -I {source} {NEIGHBOUR_V6}");
        let before = n_packets(&world);
        assert!(!world.run("a", &line).status.success(), "{source}");
        assert_eq!(n_packets(&world), before, "{source}");
    }
}

/// Echo requests that the neighbour has got.
fn n_packets(world: &World) -> String {
    let text = world.output("out", "cat /proc/net/snmp6");
    text.lines().find(|line| line.starts_with("Icmp6InEchos")).unwrap_or_default().to_owned()
}

#[test]
fn host_ports_lead_to_the_pod_in_each_family() {
    for mode in ["overlay", "kubenet"] {
        let world = world(mode);
        let _ = world.container("a");
        let mut network = world.network("1.0.0");
        let mapping = |host: u16, pod: u16, at: &str| json!({ "hostPort": host, "containerPort": pod, "protocol": "tcp", "hostIP": at });
        network["runtimeConfig"] = json!({ "portMappings": [
            mapping(8080, 80, ""), mapping(8081, 81, NODE_V6), mapping(8082, 82, "10.0.0.4") ] });
        let said = world.plugin("ADD", "a", &network);
        let [_, _] = addresses(&world, &said);
        let [_, _] = add(&world, "b");
        for (port, inside, reaches_v6, reaches_v4) in
            [(8080, 80, true, true), (8081, 81, true, false), (8082, 82, false, true)]
        {
            let listener = listen(&world, "a", inside);
            for (to, expected) in [
                (format!("[{NODE_V6}]:{port}"), reaches_v6),
                (format!("10.0.0.4:{port}"), reaches_v4),
            ] {
                let got = seen(&world, &listener, "out", &to);
                assert_eq!(got.is_some(), expected, "{mode}: {to}");
            }
        }
        let listener = listen(&world, "a", 80);
        for from in ["node", "b", "a"] {
            let got = seen(&world, &listener, from, &format!("[{NODE_V6}]:8080"));
            assert!(got.is_some(), "{mode}: from {from}");
        }
        // CHECK sees that an element is gone, and a second ADD brings it back.
        let mut checked = network.clone();
        checked["prevResult"] = said.json();
        assert!(world.plugin("CHECK", "a", &checked).success);
        assert!(world.run("node", "nft flush map ip6 aksnet host_ports").status.success());
        let mended = || world.plugin("CHECK", "a", &checked).success;
        assert!(wait(PATIENCE, mended), "the agent loads the table anew");
        delete(&world, "a");
        let maps = world.output("node", "nft list table ip6 aksnet");
        assert!(!maps.contains("8080"), "{maps}");
    }
}

/// Each part of the wiring of IPv6 is taken away in turn; CHECK says which, and a second ADD mends it.
#[test]
fn check_finds_what_is_missing_of_ipv6() {
    for (mode, damages) in [
        (
            "overlay",
            &[
                ("pod", "ip -6 addr flush dev eth0", "pod's address of IPv6 is missing"),
                ("pod", "ip -6 route del default", "default route of IPv6 is missing"),
                (
                    "pod",
                    "ip -6 neigh del fe80::1234:5678:9abc dev eth0",
                    "way to its gateway of IPv6",
                ),
                ("node", "ip -6 route del ADDRESS", "node's route of IPv6"),
            ][..],
        ),
        ("kubenet", &[("node", "ip -6 addr flush dev cbr0", "bridge's address of IPv6")][..]),
    ] {
        let world = world(mode);
        let network = world.network("1.1.0");
        for (number, (place, damage, found)) in damages.iter().enumerate() {
            let name = format!("c{number}");
            let [_, six] = add(&world, &name);
            let said = world.plugin("ADD", &name, &network);
            let mut checked = network.clone();
            checked["prevResult"] = said.json();
            let good = world.plugin("CHECK", &name, &checked);
            assert!(good.success && good.stdout.is_empty(), "{good:?}");
            let damage = damage.replace("ADDRESS", &six);
            let place = if *place == "pod" { name.as_str() } else { place };
            let bad = world.check_after(place, &damage, &name, &checked);
            assert!(bad.stdout.contains(found), "{damage}: {bad:?}");
            if mode == "overlay" {
                let again = world.plugin("ADD", &name, &network);
                assert_eq!(addresses(&world, &again)[1], six, "{damage}");
                let good = world.plugin("CHECK", &name, &checked);
                assert!(good.success, "{damage}: {good:?}");
            }
            delete(&world, &name);
        }
    }
    let world = world("overlay");
    let network = world.network("1.1.0");
    let _ = add(&world, "a");
    let said = world.plugin("ADD", "a", &network);
    let mut checked = network.clone();
    checked["prevResult"] = said.json();
    checked["prevResult"]["ips"][1]["address"] = "fd12:3456:789a:0:1::77/128".into();
    let bad = world.plugin("CHECK", "a", &checked);
    assert!(bad.stdout.contains("it was told fd12:3456:789a:0:1::77 and holds"), "{bad:?}");
}

#[test]
fn every_version_says_both_addresses_in_its_own_way() {
    let world = world("overlay");
    let _ = world.container("a");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let said = world.plugin("ADD", "a", &world.network(version));
        assert_eq!(addresses(&world, &said)[1], "fd12:3456:789a:0:1::");
        let result = said.json();
        let old = version < "1.0.0";
        for (n, family) in [(0, "4"), (1, "6")] {
            let expected = if old { json!(family) } else { Value::Null };
            assert_eq!(result["ips"][n]["version"], expected, "{version}");
        }
        assert_eq!(result["ips"][1]["address"], "fd12:3456:789a:0:1::/128");
        assert_eq!(result["ips"][1]["gateway"], "fe80::1234:5678:9abc");
        assert_eq!(result["routes"][1]["dst"], "::/0", "{version}");
    }
    delete(&world, "a");
    nothing_is_left(&world);
}

/// The record is one file for both addresses: a killed agent hands out neither of them again.
#[test]
fn a_killed_agent_keeps_both_addresses() {
    let mut world = world("overlay");
    let first = add(&world, "a");
    for _ in 0..3 {
        world.kill_agent();
        world.start_agent("overlay", &blocks());
        assert_eq!(add(&world, "a"), first);
        let other = add(&world, "b");
        assert!(other.iter().all(|address| !first.contains(address)), "{other:?}");
        assert!(world.pings("b", &first[1]));
        delete(&world, "b");
    }
    // Another block beside the same one of IPv6: what the first pod holds of the latter is nobody else's.
    world.kill_agent();
    let moved = json!({ "version": 1, "block": "10.244.2.0/31", "block_v6": V6_BLOCK });
    world.start_agent("overlay", &moved);
    assert_eq!(add(&world, "c"), ["10.244.2.1", "fd12:3456:789a:0:1::1"]);
    assert!(world.pings("c", &first[1]));
    for name in ["a", "c"] {
        delete(&world, name);
    }
    nothing_is_left(&world);
}

//! The CNI plugin and its agent with real namespaces, links and packets. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    ffi::OsString, fs, net::SocketAddrV4, os::unix::ffi::OsStringExt, process::Command,
    time::Duration,
};

use lab::pods::{NEIGHBOUR, NODE, OUTSIDE, Said, World, leases, wait};
use linux::netns::{self, Netns};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(5);

fn world(mode: &str, addresses: &Value) -> World {
    let mut world = World::new(PROGRAM);
    world.start_agent(mode, addresses);
    world
}

fn block() -> Value {
    json!({ "version": 1, "block": "10.244.1.0/24" })
}

fn listed(addresses: &[&str]) -> Value {
    json!({ "version": 1, "addresses": addresses })
}

/// Adds a container and answers with its address.
fn add(world: &World, name: &str) -> String {
    let _ = world.container(name);
    let said = world.plugin("ADD", name, &world.network("1.0.0"));
    assert!(said.success, "{said:?}\n{}", world.agent_log());
    said.address()
}

fn delete(world: &World, name: &str) {
    let said = world.plugin("DEL", name, &world.network("1.0.0"));
    assert!(said.success && said.stdout.is_empty(), "{said:?}");
}

fn code(said: &Said) -> u64 {
    assert!(!said.success, "{said:?}");
    said.json()["code"].as_u64().unwrap()
}

/// No lease, and no link on the node but its own.
fn nothing_is_left(world: &World) {
    let is_empty = || leases(&world.path("run")).is_empty() && pod_links(world).is_empty();
    assert!(
        wait(PATIENCE, is_empty),
        "{:?} {:?}\n{}",
        leases(&world.path("run")),
        pod_links(world),
        world.agent_log()
    );
    let routes = world.output("node", "ip -4 route show");
    assert!(!routes.contains("azv"), "{routes}");
}

fn pod_links(world: &World) -> Vec<String> {
    let text = world.output("node", "ip -j link show");
    let links: Value = serde_json::from_str(&text).unwrap();
    let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap());
    names.filter(|name| !["lo", "eth0", "cbr0"].contains(name)).map(str::to_owned).collect()
}

/// The source address that a listener at `to`, in the neighbour, sees of a connection from `name`.
fn seen_source(world: &World, name: &str, to: &str) -> String {
    let out = Netns::open(&world.netns("out")).unwrap();
    let at: SocketAddrV4 = format!("{to}:0").parse().unwrap();
    let listener = out.tcp_listen(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    let pod = Netns::open(&world.netns(name)).unwrap();
    let _client =
        pod.tcp_connect(None, SocketAddrV4::new(*at.ip(), port), Duration::from_secs(3)).unwrap();
    listener.accept().unwrap().1.ip().to_string()
}

#[test]
fn routed_pods_meet_and_nothing_is_left() {
    let world = world("overlay", &block());
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert_eq!([a.as_str(), b.as_str()], ["10.244.1.0", "10.244.1.1"]);
    for (from, to) in
        [("a", &*b), ("b", &*a), ("node", &*a), ("a", NODE), ("a", NEIGHBOUR), ("a", OUTSIDE)]
    {
        assert!(world.pings(from, to), "{from} to {to}");
    }
    let text = world.output("a", "ip -j -d link show eth0");
    let link: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(link[0]["mtu"], 1400, "the NIC's");
    let routes = world.output("a", "ip route show");
    assert_eq!(
        routes.split_whitespace().collect::<Vec<_>>().join(" "),
        "default via 169.254.1.1 dev eth0 proto 198 onlink 169.254.1.1 dev eth0 proto 198 scope link"
    );
    let links = pod_links(&world);
    let proxy =
        world.output("node", &format!("cat /proc/sys/net/ipv4/conf/{}/proxy_arp", links[0]));
    assert_eq!(proxy.trim(), "1");
    // The neighbour entry is what the pod uses; without it the node still answers.
    assert!(world.run("a", "ip neigh del 169.254.1.1 dev eth0").status.success());
    assert!(world.pings("a", &b), "by proxy ARP");
    for name in ["a", "b"] {
        delete(&world, name);
        delete(&world, name);
    }
    nothing_is_left(&world);
}

#[test]
fn kubenet_pods_share_a_bridge() {
    let world = world("kubenet", &block());
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert_eq!([a.as_str(), b.as_str()], ["10.244.1.2", "10.244.1.3"]);
    for (from, to) in
        [("a", &*b), ("node", &*a), ("a", "10.244.1.1"), ("a", NEIGHBOUR), ("b", OUTSIDE)]
    {
        assert!(world.pings(from, to), "{from} to {to}");
    }
    assert_eq!(
        world.output("a", "ip route show default").trim(),
        "default via 10.244.1.1 dev eth0 proto 198 onlink"
    );
    let ports = world.output("node", "bridge -d link show");
    assert_eq!(ports.matches("hairpin on").count(), 2, "{ports}");
    let file: Value =
        serde_json::from_slice(&fs::read(world.path("net.d/10-containerd-net.conflist")).unwrap())
            .unwrap();
    assert_eq!(file["name"], "kubenet");
    let network = world.network("1.1.0");
    let said = world.plugin("ADD", "a", &network);
    let mut checked = network.clone();
    checked["prevResult"] = said.json();
    assert!(world.plugin("CHECK", "a", &checked).success);
    assert!(world.run("node", "ip link set cbr0 up").status.success());
    let port = said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let damage = format!("ip link set {port} nomaster");
    let said = world.check_after("node", &damage, "a", &checked);
    assert!(said.json()["details"].as_str().unwrap().contains("no port"), "{said:?}");
    for name in ["a", "b"] {
        delete(&world, name);
    }
    nothing_is_left(&world);
}

/// Mode, where the pod is, and what the virtual network, the internet and another pod see.
#[test]
fn each_mode_shows_the_source_address_that_azure_shows() {
    for (mode, addresses, seen) in [
        ("kubenet", block(), ["node", "node", "pod"]),
        ("overlay", block(), ["node", "node", "pod"]),
        ("node-subnet", listed(&["10.0.0.20"]), ["pod", "node", "node"]),
        ("pod-subnet", listed(&["10.1.0.20"]), ["pod", "pod", "pod"]),
    ] {
        let world = world(mode, &addresses);
        let pod = add(&world, "a");
        // What the fabric would do: bring answers to the node, and have pods elsewhere.
        assert!(world.run("out", &format!("ip route add {pod}/32 via {NODE}")).status.success());
        assert!(world.run("out", "ip addr add 10.244.9.9/32 dev lo").status.success());
        for (to, expected) in [NEIGHBOUR, OUTSIDE, "10.244.9.9"].into_iter().zip(seen) {
            let expected = if expected == "node" { NODE } else { &pod };
            assert_eq!(seen_source(&world, "a", to), expected, "{mode}: to {to}");
        }
    }
}

/// Each part of the wiring is taken away in turn; CHECK says which.
#[test]
fn check_finds_what_is_missing() {
    let world = world("overlay", &block());
    let network = world.network("1.0.0");
    for (number, (place, damage, found)) in [
        ("pod", "ip addr flush dev eth0", "address is missing"),
        ("pod", "ip route del default", "default route is missing"),
        ("pod", "ip route del 169.254.1.1", "way to its gateway is missing"),
        ("pod", "ip neigh del 169.254.1.1 dev eth0", "way to its gateway is missing"),
        ("pod", "ip link set eth0 down", "link is down"),
        ("pod", "ip link del eth0", "pair of links is not there"),
        ("pod", "ip link set eth0 address 02:00:00:00:00:01", "pair of links is not there"),
        ("node", "ip route del ADDRESS", "node's route to the pod is missing"),
        ("node", "ip link set LINK down", "link is down"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("c{number}");
        let _ = world.container(&name);
        let said = world.plugin("ADD", &name, &network);
        let mut checked = network.clone();
        checked["prevResult"] = said.json();
        let good = world.plugin("CHECK", &name, &checked);
        assert!(good.success && good.stdout.is_empty(), "{good:?}");
        let link = said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let damage = damage.replace("ADDRESS", &said.address()).replace("LINK", &link);
        let place = if place == "pod" { &name } else { place };
        let bad = world.check_after(place, &damage, &name, &checked);
        assert_eq!(code(&bad), 101, "{damage}");
        assert!(bad.stdout.contains(found), "{damage}: {bad:?}");
        // A second ADD mends it, with the same address.
        let again = world.plugin("ADD", &name, &network);
        assert!(again.success, "{damage}: {again:?}");
        assert_eq!(again.address(), said.address());
        let good = world.plugin("CHECK", &name, &checked);
        assert!(good.success, "{damage}: {good:?}");
        delete(&world, &name);
        assert_eq!(code(&world.plugin("CHECK", &name, &checked)), 3);
    }
    let _ = world.container("d");
    let said = world.plugin("ADD", "d", &network);
    let mut checked = network.clone();
    checked["prevResult"] = said.json();
    checked["prevResult"]["ips"][0]["address"] = "10.244.1.77/32".into();
    assert_eq!(code(&world.plugin("CHECK", "d", &checked)), 101);
    delete(&world, "d");
    nothing_is_left(&world);
}

#[test]
fn paths_that_are_no_containers_are_refused_and_nothing_is_made() {
    let world = world("overlay", &block());
    let _ = world.container("a");
    let fifo = world.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let node = format!("/run/netns/{}", world.netns("node"));
    let wrong = [
        "/dev/null",
        "/etc/passwd",
        "/",
        "/no/such/path",
        "/proc/self/ns/mnt",
        "/proc/self/ns/net",
        &node,
        fifo.to_str().unwrap(),
    ];
    for path in wrong {
        let mut command = Command::new(PROGRAM);
        command.arg("plugin");
        // `run_plugin` sets the container's own path first; this one counts.
        let mut through = Command::new("env");
        through.arg(format!("CNI_NETNS={path}")).arg(PROGRAM).arg("plugin");
        let said = world.run_plugin(&mut through, "ADD", "a", &world.network("1.0.0"));
        // A namespace of another kind is found out by the kernel.
        let expected = if path.ends_with("/mnt") { 100 } else { 4 };
        assert_eq!(code(&said), expected, "{path}: {said:?}");
        nothing_is_left(&world);
    }
    // An interface of that name that is not ours stays as it is.
    assert!(world.run("a", "ip link add eth0 type veth peer name other").status.success());
    let said = world.plugin("ADD", "a", &world.network("1.0.0"));
    assert_eq!(code(&said), 100);
    assert!(said.stdout.contains("already has an interface `eth0`"), "{said:?}");
    assert!(world.run("a", "ip link show eth0").status.success());
    nothing_is_left(&world);
}

#[test]
fn addresses_run_out_and_come_back() {
    let world = world("pod-subnet", &listed(&["10.1.0.4", "10.1.0.5"]));
    let newest = world.network("1.1.0");
    let (a, b) = (add(&world, "a"), add(&world, "b"));
    assert_ne!(a, b);
    let _ = world.container("c");
    let said = world.plugin("ADD", "c", &newest);
    assert_eq!(code(&said), 11);
    assert!(said.stdout.contains("the node has 2, 2 are held"), "{said:?}");
    assert_eq!(code(&world.plugin("STATUS", "", &newest)), 50);
    delete(&world, "a");
    assert!(wait(PATIENCE, || world.plugin("ADD", "c", &newest).success), "it comes back");
    assert_eq!(world.plugin("ADD", "c", &newest).address(), a);
    let mut collected = newest.clone();
    collected["cni.dev/valid-attachments"] =
        json!([{ "containerID": "b", "ifname": "eth0" }, { "containerID": "x", "ifname": "eth0" }]);
    assert!(world.plugin("GC", "", &collected).success);
    assert!(wait(PATIENCE, || leases(&world.path("run")).len() == 1), "c is collected, b stays");
    assert!(world.plugin("STATUS", "", &newest).success);
    assert_eq!(add(&world, "b"), b);
}

/// What a runtime does when one sandbox is deleted and made again at once under the same id.
#[test]
fn a_container_may_come_back_at_once() {
    let world = world("overlay", &block());
    for _ in 0..5 {
        add(&world, "a");
        delete(&world, "a");
    }
    // Another namespace under the same id, without a DEL between.
    let before = add(&world, "a");
    world.remove_container("a");
    assert_eq!(add(&world, "a"), before);
    assert!(world.pings("a", NEIGHBOUR));
    delete(&world, "a");
    nothing_is_left(&world);
}

#[test]
fn an_agent_that_was_away_catches_up() {
    let mut world = world("overlay", &block());
    let stays = add(&world, "stays");
    for name in ["deleted", "vanished"] {
        add(&world, name);
    }
    world.kill_agent();
    let network = world.network("1.1.0");
    assert_eq!(code(&world.plugin("STATUS", "", &network)), 50);
    let _ = world.container("later");
    assert_eq!(code(&world.plugin("ADD", "later", &network)), 11);
    delete(&world, "deleted");
    delete(&world, "deleted");
    world.remove_container("vanished");
    // A lease that was being written when the power went, and a link that no lease names.
    fs::write(world.path("run/leases/.10.244.1.99"), "{").unwrap();
    let orphan = "ip link add azvorphan group 2654 type veth peer name x";
    assert!(world.run("node", orphan).status.success());
    world.start_agent("overlay", &block());
    let only = || leases(&world.path("run")).len() == 1 && pod_links(&world).len() == 1;
    assert!(wait(PATIENCE, only), "{:?}", pod_links(&world));
    assert_eq!(leases(&world.path("run"))[0].0, stays);
    assert!(world.pings("stays", NEIGHBOUR), "what runs is not disturbed");
    assert_eq!(add(&world, "stays"), stays);
    delete(&world, "stays");
    nothing_is_left(&world);
}

#[test]
fn reference_plugins_can_follow_in_the_chain() {
    let world = world("overlay", &block());
    let network = world.network("1.0.0");
    let _ = world.container("a");
    let said = world.plugin("ADD", "a", &network);
    for (plugin, more) in [
        ("tuning", json!({ "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" } })),
        ("portmap", json!({ "snat": true, "runtimeConfig": { "portMappings": [] } })),
        ("bandwidth", json!({})),
    ] {
        let mut chained = more;
        chained["cniVersion"] = "1.0.0".into();
        chained["name"] = "azure".into();
        chained["type"] = plugin.into();
        chained["prevResult"] = said.json();
        let path = format!("/usr/lib/cni/{plugin}");
        let then = world.run_plugin(&mut Command::new(path), "ADD", "a", &chained);
        assert!(then.success, "{plugin}: {then:?}");
        assert_eq!(then.address(), said.address(), "{plugin}");
        assert_eq!(then.json()["interfaces"], said.json()["interfaces"], "{plugin}");
    }
    delete(&world, "a");
    nothing_is_left(&world);
}

/// As kube-proxy does it: the destination is translated on the node, and a pod that reaches itself
/// gets the node's address as source. On a bridge the answer must come back through the rules too.
#[test]
fn a_pod_reaches_others_and_itself_through_a_service() {
    for mode in ["kubenet", "overlay"] {
        let world = world(mode, &block());
        let (_, b) = (add(&world, "a"), add(&world, "b"));
        let rules = format!(
            "table ip service {{
                chain to {{
                    type nat hook prerouting priority dstnat
                    ip daddr 10.96.0.1 dnat to {b}
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
        let pod = Netns::open(&world.netns("b")).unwrap();
        let listener = pod.tcp_listen("0.0.0.0:8080".parse().unwrap()).unwrap();
        for from in ["a", "b"] {
            let client = Netns::open(&world.netns(from)).unwrap();
            let service = "10.96.0.1:8080".parse().unwrap();
            let connected = client.tcp_connect(None, service, Duration::from_secs(3));
            assert!(connected.is_ok(), "{mode}, from {from}: {connected:?}");
            let _ = listener.accept().unwrap();
        }
    }
}

/// Somebody else takes away what pods need on the node; it comes back without anybody asking.
#[test]
fn what_others_take_from_the_node_comes_back() {
    for mode in ["kubenet", "overlay"] {
        let world = world(mode, &block());
        let a = add(&world, "a");
        let network = world.network("1.0.0");
        let said = world.plugin("ADD", "a", &network);
        let mut checked = network.clone();
        checked["prevResult"] = said.json();
        let link = said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let damages: &[&str] = match mode {
            "kubenet" => &[
                "ip link set LINK nomaster",
                "ip link set LINK down",
                "ip link set cbr0 down",
                "ip addr flush dev cbr0",
                "ip link del cbr0",
                "nft flush ruleset",
            ],
            _ => &[
                "ip route del ADDRESS",
                "ip neigh flush nud permanent dev LINK",
                "ip link set LINK down",
                "nft flush ruleset",
                "nft delete rule ip aksnet guard handle HANDLE",
            ],
        };
        for damage in damages {
            let damage = damage.replace("ADDRESS", &a).replace("LINK", &link);
            let handle = world.output("node", "nft -a list chain ip aksnet guard");
            let handle =
                handle.lines().find_map(|line| line.rsplit_once("127.0.0.0/8 drop # handle "));
            let damage = damage.replace("HANDLE", handle.map_or("", |(_, handle)| handle));
            let before = world.output("node", "nft list ruleset");
            assert!(world.run("node", &damage).status.success(), "{mode}: {damage}");
            let is_mended = || {
                world.plugin("CHECK", "a", &checked).success
                    && world.output("node", "nft list ruleset") == before
                    && world.output("node", "ip neigh show nud permanent").contains(&a)
                        == (mode == "overlay")
                    && world.pings("node", &a)
                    && world.pings("a", OUTSIDE)
            };
            assert!(wait(PATIENCE, is_mended), "{mode}: {damage}\n{}", world.agent_log());
        }
    }
}

/// Bytes of every value in names, ids and paths, with an agent that listens and a namespace that is there: an error
/// with a code, and nothing is made. What happens to be right goes again by DEL.
#[test]
fn hostile_bytes_make_nothing() {
    let world = world("overlay", &block());
    let _ = world.container("a");
    let netns = netns::path(&world.netns("a")).into_os_string().into_vec();
    let mut chance = 7_u64;
    let mut below = |n: u64| {
        chance =
            chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % n
    };
    for byte in 1..=u8::MAX {
        for (variable, good) in [
            ("CNI_CONTAINERID", b"a".to_vec()),
            ("CNI_IFNAME", b"eth0".to_vec()),
            ("CNI_NETNS", netns.clone()),
        ] {
            // In front, behind or in the middle.
            let mut value = good;
            let at = usize::try_from(below(u64::try_from(value.len() + 1).unwrap())).unwrap();
            value.insert(at, byte);
            let mut assignment = format!("{variable}=").into_bytes();
            assignment.extend(&value);
            let call = |verb| {
                let mut through = Command::new("env");
                through.arg(OsString::from_vec(assignment.clone())).arg(PROGRAM).arg("plugin");
                world.run_plugin(&mut through, verb, "a", &world.network("1.0.0"))
            };
            let said = call("ADD");
            if said.success {
                assert!(byte.is_ascii_graphic(), "{variable} with {byte:#x}: {said:?}");
                assert!(call("DEL").success, "{variable} with {byte:#x}");
            } else {
                let code = code(&said);
                assert!([4, 100].contains(&code), "{variable} with {byte:#x}: {said:?}");
                assert!(leases(&world.path("run")).iter().all(|(_, it)| it["phase"] == "leaving"));
            }
        }
    }
    for byte in 0..=u8::MAX {
        let mut network = world.network("1.0.0");
        network["name"] = format!("azure{}", char::from(byte)).into();
        let said = world.plugin("ADD", "a", &network);
        if said.success {
            assert!(byte.is_ascii_alphanumeric() || b"_.-".contains(&byte), "{byte:#x}: {said:?}");
            assert!(world.plugin("DEL", "a", &network).success);
        } else {
            assert_eq!(code(&said), 7, "{byte:#x}: {said:?}");
        }
    }
    nothing_is_left(&world);
}

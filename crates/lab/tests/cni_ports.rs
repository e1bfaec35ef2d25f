//! Host ports, rates and masquerading of pods, with real packets. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lab::pods::{NEIGHBOUR, NODE, OUTSIDE, Said, World, leases, wait};
use linux::netns::Netns;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(5);
const NODE2: &str = "10.0.0.5";

fn world(mode: &str) -> World {
    let mut world = World::new(PROGRAM);
    let addresses = match mode {
        "kubenet" | "overlay" => json!({ "version": 1, "block": "10.244.1.0/24" }),
        _ => json!({ "version": 1, "addresses": ["10.1.0.20", "10.1.0.21", "10.1.0.22"] }),
    };
    world.start_agent(mode, &addresses);
    assert!(world.run("node", &format!("ip addr add {NODE2}/24 dev eth0")).status.success());
    world
}

fn mapping(port: u16, pod_port: u16, protocol: &str, address: &str) -> Value {
    json!({ "hostPort": port, "containerPort": pod_port, "protocol": protocol, "hostIP": address })
}

fn add(world: &World, name: &str, runtime: &Value) -> Said {
    let _ = world.container(name);
    let mut network = world.network("1.0.0");
    network["runtimeConfig"] = runtime.clone();
    world.plugin("ADD", name, &network)
}

fn delete(world: &World, name: &str) {
    let said = world.plugin("DEL", name, &world.network("1.0.0"));
    assert!(said.success, "{said:?}");
}

/// Whether a connection from `from` to `to` reaches the listener of `pod` at `port`, and with which source.
fn reaches(world: &World, from: &str, to: &str, pod: &str, port: u16) -> Option<String> {
    let listener =
        Netns::open(&world.netns(pod)).unwrap().tcp_listen(SocketAddrV4::new([0; 4].into(), port));
    let listener = listener.unwrap();
    let client = Netns::open(&world.netns(from)).unwrap();
    let _client = client.tcp_connect(None, to.parse().unwrap(), Duration::from_secs(1)).ok()?;
    listener.set_nonblocking(true).unwrap();
    let mut seen = None;
    wait(Duration::from_secs(1), || {
        seen = listener.accept().ok().map(|(_, from)| from.ip().to_string());
        seen.is_some()
    });
    seen
}

#[test]
fn host_ports_lead_to_the_pod_in_every_mode_and_end_with_it() {
    for mode in ["kubenet", "overlay", "node-subnet", "pod-subnet"] {
        let world = world(mode);
        let ports = json!({ "portMappings": [
            mapping(8080, 80, "tcp", ""),
            mapping(8081, 81, "TCP", NODE2),
            mapping(8082, 82, "udp", "0.0.0.0"),
            mapping(8083, 83, "sctp", ""),
        ] });
        let said = add(&world, "a", &ports);
        assert!(said.success, "{said:?}\n{}", world.agent_log());
        let other = add(&world, "b", &json!({}));
        assert!(other.success, "{other:?}");
        let a = said.address();
        assert!(world.run("out", &format!("ip route add {a}/32 via {NODE}")).status.success());
        // From outside with its own source, by the right address only.
        let reached = |from: &str, to: &str, port| reaches(&world, from, to, "a", port);
        assert_eq!(reached("out", "10.0.0.4:8080", 80).as_deref(), Some(NEIGHBOUR), "{mode}");
        assert_eq!(reached("out", "10.0.0.5:8080", 80).as_deref(), Some(NEIGHBOUR), "{mode}");
        assert_eq!(reached("out", "10.0.0.5:8081", 81).as_deref(), Some(NEIGHBOUR), "{mode}");
        assert_eq!(reached("out", "10.0.0.4:8081", 81), None, "{mode}: hostIP is another");
        // From the node itself, by its address and by loopback; from another pod; from the pod itself.
        assert!(reached("node", "10.0.0.4:8080", 80).is_some(), "{mode}: node");
        assert!(reached("node", "127.0.0.1:8080", 80).is_some(), "{mode}: loopback");
        assert_eq!(
            reached("b", "10.0.0.4:8080", 80),
            Some(other.address()),
            "{mode}: pod to host port"
        );
        assert!(reached("a", "10.0.0.4:8080", 80).is_some(), "{mode}: hairpin");
        udp_round_trip(&world, "10.0.0.4:8082", 82);
        // Nobody but the node itself reaches the node's loopback.
        let node = Netns::open(&world.netns("node")).unwrap();
        let local = node.tcp_listen("127.0.0.1:9999".parse().unwrap()).unwrap();
        assert!(world.run("b", "ip addr flush dev lo").status.success());
        assert!(
            world
                .run("b", "ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0 onlink")
                .status
                .success()
        );
        let pod = Netns::open(&world.netns("b")).unwrap();
        let inside = "127.0.0.1:9999".parse().unwrap();
        assert!(pod.tcp_connect(None, inside, Duration::from_millis(300)).is_err(), "{mode}");
        drop(local);
        // CHECK sees that an element is gone, and a second ADD brings it back.
        let mut checked = world.network("1.0.0");
        checked["prevResult"] = said.json();
        let good = world.plugin("CHECK", "a", &checked);
        assert!(good.success, "{mode}: {good:?}");
        // Another pod wants the port too.
        let taken = add(&world, "c", &json!({ "portMappings": [mapping(8080, 80, "tcp", NODE)] }));
        assert_eq!(taken.json()["code"], 102, "{taken:?}");
        assert!(taken.stdout.contains("8080/tcp of this node leads to container a"), "{taken:?}");
        assert_eq!(leases(&world.path("run")).len(), 2, "nothing is left of it");
        // Gone with the pod, at once; then the port is free.
        delete(&world, "a");
        assert_eq!(reached("out", "10.0.0.4:8080", 80), None, "{mode}");
        let again = add(&world, "c", &ports);
        assert!(again.success, "{again:?}");
        let reached = reaches(&world, "out", "10.0.0.4:8080", "c", 80);
        assert_eq!(reached.as_deref(), Some(NEIGHBOUR), "{mode}");
        delete(&world, "b");
        delete(&world, "c");
        let maps = world.output("node", "nft list ruleset");
        assert!(!maps.contains("8080"), "{maps}");
    }
}

fn udp_round_trip(world: &World, to: &str, port: u16) {
    let pod = Netns::open(&world.netns("a")).unwrap();
    let server = pod.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
    let out = Netns::open(&world.netns("out")).unwrap();
    let client = out.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"ping", to).unwrap();
    let mut buffer = [0; 16];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"pong", from).unwrap();
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(from.to_string(), to, "the answer comes from where it was asked");
}

/// Whoever takes rules or elements away, and a crash of the agent, change nothing for long.
#[test]
fn rules_that_somebody_takes_away_come_back() {
    let mut world = world("overlay");
    let ports = json!({ "portMappings": [mapping(8080, 80, "tcp", "")] });
    let said = add(&world, "a", &ports);
    assert!(said.success, "{said:?}");
    let works = |world: &World| reaches(world, "out", "10.0.0.4:8080", "a", 80).is_some();
    assert!(works(&world));
    for damage in [
        "nft flush ruleset",
        "nft flush table ip aksnet",
        "nft flush map ip aksnet host_ports",
        "nft delete table ip aksnet",
    ] {
        assert!(world.run("node", damage).status.success(), "{damage}");
        assert!(wait(PATIENCE, || works(&world)), "{damage}\n{}", world.agent_log());
        let seen = source_seen(&world, "a", OUTSIDE);
        assert_eq!(seen.as_deref(), Some(NODE), "{damage}");
    }
    world.kill_agent();
    assert!(works(&world), "without an agent");
    world.start_agent("overlay", &json!({ "version": 1, "block": "10.244.1.0/24" }));
    assert!(works(&world), "with a new one");
    delete(&world, "a");
    assert!(!works(&world));
}

/// The source address that a listener at `to`, in the neighbour, sees of a connection from `name`.
fn source_seen(world: &World, name: &str, to: &str) -> Option<String> {
    let out = Netns::open(&world.netns("out")).unwrap();
    let listener = out.tcp_listen(format!("{to}:0").parse().unwrap()).unwrap();
    let at = SocketAddrV4::new(to.parse().unwrap(), listener.local_addr().unwrap().port());
    let pod = Netns::open(&world.netns(name)).unwrap();
    let _client = pod.tcp_connect(None, at, Duration::from_secs(3)).ok()?;
    Some(listener.accept().ok()?.1.ip().to_string())
}

/// What the platform's own two services see of a pod, and the other ports of the same addresses.
#[test]
fn the_platform_sees_what_azure_shows_it() {
    for (mode, dns, metadata, other) in [
        ("kubenet", "node", "pod", "pod"),
        ("overlay", "node", "node", "node"),
        ("node-subnet", "node", "node", "node"),
        ("pod-subnet", "node", "node", "pod"),
    ] {
        let world = world(mode);
        for address in ["168.63.129.16", "169.254.169.254"] {
            assert!(world.run("out", &format!("ip addr add {address}/32 dev lo")).status.success());
        }
        let said = add(&world, "a", &json!({}));
        assert!(said.success, "{said:?}");
        let pod = said.address();
        assert!(world.run("out", &format!("ip route add {pod}/32 via {NODE}")).status.success());
        for (to, expected) in [
            ("168.63.129.16:53", dns),
            ("169.254.169.254:80", metadata),
            ("169.254.169.254:81", other),
        ] {
            let to: SocketAddrV4 = to.parse().unwrap();
            let out = Netns::open(&world.netns("out")).unwrap();
            let listener = out.tcp_listen(to).unwrap();
            let client = Netns::open(&world.netns("a")).unwrap();
            let _client = client.tcp_connect(None, to, Duration::from_secs(3)).unwrap();
            let seen = listener.accept().unwrap().1.ip().to_string();
            let expected = if expected == "node" { NODE } else { &pod };
            assert_eq!(seen, expected, "{mode}: {to}");
        }
    }
}

/// A megabyte in each direction at 8 Mbit/s takes about a second; without limits, hardly any time.
#[test]
fn a_pod_is_as_fast_as_it_may_be() {
    let world = world("overlay");
    let rate = 8_000_000;
    let burst = 800_000;
    let limits = |direction: &str| {
        json!({ "bandwidth": {
            format!("{direction}Rate"): rate, format!("{direction}Burst"): burst,
        } })
    };
    let both = json!({ "bandwidth": {
        "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst,
    } });
    for (name, runtime, slow_in, slow_out) in [
        ("free", json!({}), false, false),
        ("in", limits("ingress"), true, false),
        ("out1", limits("egress"), false, true),
        ("both", both, true, true),
    ] {
        let said = add(&world, name, &runtime);
        assert!(said.success, "{said:?}\n{}", world.agent_log());
        let to_pod = transfer(&world, "node", name, &said.address());
        let from_pod = transfer(&world, name, "node", NODE);
        for (time, is_slow, what) in [(to_pod, slow_in, "to"), (from_pod, slow_out, "from")] {
            let expected = if is_slow { 0.6..2.5 } else { 0.0..0.5 };
            assert!(expected.contains(&time.as_secs_f64()), "{name}, {what} the pod: {time:?}");
        }
        delete(&world, name);
    }
    let gone = || {
        let links = world.output("node", "ip -o link");
        !links.contains("ifb") && !links.contains("azv")
    };
    assert!(wait(PATIENCE, gone), "{}", world.output("node", "ip -o link"));
}

/// How long a megabyte takes from a server in `from` to a client in `to`.
fn transfer(world: &World, from: &str, to: &str, at: &str) -> Duration {
    const SIZE: usize = 1_000_000;
    let target = Netns::open(&world.netns(to)).unwrap();
    let listener = target.tcp_listen(SocketAddrV4::new(at.parse().unwrap(), 0)).unwrap();
    let address = SocketAddrV4::new(at.parse().unwrap(), listener.local_addr().unwrap().port());
    let source = Netns::open(&world.netns(from)).unwrap();
    let begin = Instant::now();
    let mut client: TcpStream = source.tcp_connect(None, address, PATIENCE).unwrap();
    let writing = thread::spawn(move || client.write_all(&vec![7; SIZE]).unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), SIZE);
    writing.join().unwrap();
    begin.elapsed()
}

//! Flows that a node has let through go past its stack; what the node must see does not. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use lab::pods::{World, wait};
use linux::netns::Netns;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const QUESTIONS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(2);

fn world(addresses: &Value) -> World {
    let mut world = World::new(PROGRAM);
    world.start_agent("overlay", addresses);
    world
}

fn add(world: &World, name: &str, runtime: &Value) -> String {
    let _ = world.container(name);
    let mut network = world.network("1.0.0");
    network["runtimeConfig"] = runtime.clone();
    let said = world.plugin("ADD", name, &network);
    assert!(said.success, "{said:?}\n{}", world.agent_log());
    said.address()
}

/// Answers every byte with one, on all addresses of both families.
fn serve(world: &World, name: &str, port: u16) {
    let namespace = Netns::open(&world.netns(name)).unwrap();
    let listener = namespace.tcp_listen_at(format!("[::]:{port}").parse().unwrap()).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|n| n == 1)
                    && stream.write_all(&byte).is_ok()
                {}
            });
        }
    });
}

fn connect(world: &World, from: &str, to: &str) -> TcpStream {
    let namespace = Netns::open(&world.netns(from)).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let stream = namespace.tcp_connect_from(None, to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn talk(stream: &mut TcpStream) {
    for _ in 0..QUESTIONS {
        stream.write_all(b"?").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
    }
}

fn link_of(world: &World, address: &str) -> String {
    let route = world.output("node", &format!("ip route get {address}"));
    route.split_once(" dev ").unwrap().1.split(' ').next().unwrap().to_owned()
}

/// Waits until what the pod sends has the shortcut, or may be sure that it gets none.
fn settle(world: &World, addresses: &[&str], has: bool) {
    for address in addresses {
        let line = format!("tc filter show dev {} ingress", link_of(world, address));
        let is_there = || world.output("node", &line).contains("aksnet-shortcut");
        // Two are asked for that get none, the second when both are old enough.
        let patience = if has { Duration::from_secs(10) } else { Duration::from_secs(3) };
        assert_eq!(wait(patience, is_there), has, "{address}");
    }
}

/// Counts what the node routes from now on.
fn count(world: &World) {
    for line in [
        "nft add table inet counting",
        "nft add chain inet counting c { type filter hook forward priority -400 ; }",
        "nft add rule inet counting c counter",
    ] {
        assert!(world.run("node", line).status.success(), "{line}");
    }
}

fn routed(world: &World) -> u64 {
    let listing = world.output("node", "nft list chain inet counting c");
    let (_, after) = listing.split_once("counter packets ").unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn pods_of_a_node_and_the_world_outside_speak_past_its_stack_in_both_families() {
    let block =
        json!({ "version": 1, "block": "10.244.1.0/24", "block_v6": "fd12:3456:789a::/80" });
    let world = world(&block);
    let (a, b) = (add(&world, "a", &json!({})), add(&world, "b", &json!({})));
    let v6 = |name: &str| {
        let addresses = world.output(name, "ip -6 -br addr show dev eth0 scope global");
        let address = addresses.split_whitespace().nth(2).unwrap();
        address.split('/').next().unwrap().to_owned()
    };
    serve(&world, "b", 80);
    serve(&world, "out", 81);
    for (family, pod) in [("-4", &a), ("-6", &v6("a"))] {
        let via = if family == "-4" { "10.0.0.4" } else { "fd00:10::4" };
        let route = format!("ip {family} route add {pod} via {via} dev in");
        let _ = world.run("out", &route);
    }
    settle(&world, &[&a, &b], true);
    count(&world);
    for to in [format!("{b}:80"), format!("[{}]:80", v6("b"))] {
        let before = routed(&world);
        let mut stream = connect(&world, "a", &to);
        talk(&mut stream);
        let n = routed(&world) - before;
        assert!(
            (2..10).contains(&n),
            "{to}: {n} of more than {QUESTIONS} packets took the long way"
        );
    }
    // What is masqueraded is not spoken past it: each packet is translated.
    let before = routed(&world);
    talk(&mut connect(&world, "a", &format!("{}:81", lab::pods::OUTSIDE)));
    assert!(routed(&world) - before >= 2 * QUESTIONS);
}

#[test]
fn services_limits_and_agents_that_die_are_as_without_it() {
    let block = json!({ "version": 1, "block": "10.244.1.0/24" });
    let mut world = world(&block);
    let a = add(&world, "a", &json!({}));
    let b = add(&world, "b", &json!({}));
    let slow = json!({ "bandwidth": { "egressRate": 8_000_000, "egressBurst": 80_000 } });
    let limited = add(&world, "c", &slow);
    for name in ["b", "c"] {
        serve(&world, name, 80);
    }
    settle(&world, &[&a, &b], true);
    // Behind ours in a chain was a plugin that wanted the same place.
    let chained = add(&world, "d", &json!({}));
    let line = format!("tc qdisc add dev {} ingress", link_of(&world, &chained));
    assert!(world.run("node", &line).status.success());
    settle(&world, &[&limited, &chained], false);
    count(&world);
    for line in [
        "nft add table ip service",
        "nft add chain ip service c { type nat hook prerouting priority -100 ; }",
        &format!("nft add rule ip service c ip daddr 10.99.0.1 dnat to {b}"),
    ] {
        assert!(world.run("node", line).status.success(), "{line}");
    }
    // One flow to the service and one to the pod behind it, from the same place, side by side.
    let mut service = connect(&world, "a", "10.99.0.1:80");
    let mut pod = connect(&world, "a", &format!("{b}:80"));
    let before = routed(&world);
    talk(&mut service);
    let translated = routed(&world) - before;
    assert!(translated >= 2 * QUESTIONS, "{translated}");
    talk(&mut pod);
    assert!(routed(&world) - before - translated < 5);
    // What a limited pod sends passes its bucket, which is on the way through the stack.
    let mut stream = connect(&world, "a", &format!("{limited}:80"));
    let before = routed(&world);
    talk(&mut stream);
    assert!(routed(&world) - before >= QUESTIONS, "its answers");
    // Nobody looks after the kernel's part.
    world.kill_agent();
    let before = routed(&world);
    talk(&mut pod);
    assert!(routed(&world) - before < 5);
    talk(&mut service);
    world.start_agent("overlay", &block);
    talk(&mut pod);
    talk(&mut service);
    // The pod's route ends, and with it its flows.
    assert!(world.run("node", &format!("ip route del {b}")).status.success());
    pod.write_all(b"?").unwrap();
    pod.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(pod.read(&mut [0]).is_err());
}

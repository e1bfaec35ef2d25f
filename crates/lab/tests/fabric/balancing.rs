//! Load balancers.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread,
    time::Duration,
};

use daemon::fabric::Scope;
use vnet::{
    host::{Health, health::Probed},
    name::Name,
};

use crate::{
    lab::{Lab, ask, ask_as, connect, pod, run, serve},
    world::{id, nic_id},
};

const INTERNAL: &str = "
    vnet v 172.20.0.0/24
    subnet nodes 172.20.0.0/26
    subnet ilb 172.20.0.128/26
    subnet clients 172.20.0.64/26
    vm client 172.20.0.68
    vm n1 172.20.0.4
    vm n2 172.20.0.5
    balancer kubernetes-internal
    frontend front 172.20.0.132
    pool nodes n1 n2
    probe p tcp 80
    rule front nodes tcp 80 probe p
    rule front nodes tcp 81 probe p by-source
    rule front nodes tcp 90 to 8080 probe p
";

fn healthy(members: &[&str]) -> Health {
    let probed = |member: &&str| Probed {
        balancer: id("loadBalancers", "kubernetes-internal"),
        probe: Name::new("p"),
        member: nic_id(member),
    };
    Health { up: members.iter().map(probed).collect() }
}

/// A lab whose members own the front end's address, as kube-proxy lets a node.
fn lab() -> Lab {
    let mut lab = Lab::new(INTERNAL);
    lab.pass(&healthy(&["n1", "n2"]), Scope::Changed);
    for node in ["n1", "n2"] {
        run(&lab.machine(node), "ip", &["addr", "add", "172.20.0.132/32", "dev", "lo"]);
        lab.serve(node, &[80, 81, 8080]);
    }
    lab
}

fn answers(lab: &Lab, to: &str) -> BTreeSet<String> {
    let client = lab.machine("client");
    (0..24).map(|_| ask(&client, to)).collect()
}

#[test]
fn an_internal_front_end_spreads_flows_and_keeps_its_address() {
    let lab = lab();
    let both = ["n1", "n2"].map(|name| format!("{name} sees 172.20.0.68 at 172.20.0.132"));
    assert_eq!(answers(&lab, "172.20.0.132:80"), BTreeSet::from(both));
    assert_eq!(answers(&lab, "172.20.0.132:81").len(), 1, "by source");
    let both = [("n1", 4), ("n2", 5)]
        .map(|(name, last)| format!("{name} sees 172.20.0.68 at 172.20.0.{last}"));
    assert_eq!(answers(&lab, "172.20.0.132:90"), BTreeSet::from(both), "translated");
    assert_eq!(ask(&lab.machine("client"), "172.20.0.132:99"), "nothing");
}

/// The member that each of twelve clients meets at a port, by protocol; fails where one client meets two.
fn met_by(lab: &Lab, port: u16) -> [Vec<usize>; 2] {
    let front = SocketAddrV4::new([172, 20, 0, 132].into(), port);
    let client = lab.machine("client");
    let members = ["n1", "n2"].map(|name| lab.machine(name).udp_bind(front).unwrap());
    for member in &members {
        member.set_nonblocking(true).unwrap();
    }
    let one_of = |mut all: BTreeSet<usize>| {
        assert_eq!(all.len(), 1, "one client at port {port} meets {all:?}");
        all.pop_first().unwrap()
    };
    let by_tcp = |source: &Ipv4Addr| {
        let said = (0..4).map(|_| ask_as(&client, &source.to_string(), &front.to_string()));
        one_of(said.map(|said| usize::from(said.starts_with("n2 "))).collect())
    };
    let receiver = || {
        for _ in 0..200 {
            let got = |member: &UdpSocket| member.recv(&mut [0; 9]).is_ok();
            if let Some(member) = members.iter().position(got) {
                return member;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("nobody at port {port} got a datagram");
    };
    let by_udp = |source: &Ipv4Addr| {
        let all = (0..4).map(|_| {
            let socket = client.udp_bind(SocketAddrV4::new(*source, 0)).unwrap();
            socket.send_to(b"who", front).unwrap();
            receiver()
        });
        one_of(all.collect())
    };
    let clients: Vec<Ipv4Addr> = clients().collect();
    [clients.iter().map(by_tcp).collect(), clients.iter().map(by_udp).collect()]
}

fn clients() -> impl Iterator<Item = Ipv4Addr> {
    (68..80).map(|last| Ipv4Addr::new(172, 20, 0, last))
}

#[test]
fn clients_meet_one_member_or_one_of_each_protocol() {
    let all: Vec<String> = clients().map(|it| it.to_string()).collect();
    let text = INTERNAL.replace("vm client 172.20.0.68", &format!("vm client {}", all.join(",")));
    let more = "rule front nodes udp 81 probe p by-source
        rule front nodes tcp 82 probe p by-source-and-protocol
        rule front nodes udp 82 probe p by-source-and-protocol";
    let mut lab = Lab::new(&format!("{text}\n{more}"));
    lab.pass(&healthy(&["n1", "n2"]), Scope::Changed);
    for node in ["n1", "n2"] {
        run(&lab.machine(node), "ip", &["addr", "add", "172.20.0.132/32", "dev", "lo"]);
        lab.serve(node, &[81, 82]);
    }
    let [tcp, udp] = met_by(&lab, 81);
    assert_eq!(tcp, udp, "SourceIP knows no protocols");
    assert!(tcp.contains(&0) && tcp.contains(&1), "each member has clients: {tcp:?}");
    let [tcp, udp] = met_by(&lab, 82);
    assert_ne!(tcp, udp, "SourceIPProtocol does");
}

#[test]
fn live_flows_stay_when_a_member_fails_and_new_ones_go_elsewhere() {
    let mut lab = lab();
    let client = lab.machine("client");
    let mut held: Vec<_> =
        (0..16).map(|_| connect(&client, "172.20.0.132:80").expect("an answer")).collect();
    lab.pass(&healthy(&["n2"]), Scope::Changed);
    for (stream, said) in &mut held {
        stream.write_all(b"x").unwrap();
        let mut name = [0; 2];
        stream.read_exact(&mut name).expect("the flow lives");
        assert!(said.as_bytes().starts_with(&name), "{said} moved");
    }
    let only = "n2 sees 172.20.0.68 at 172.20.0.132".to_owned();
    assert_eq!(answers(&lab, "172.20.0.132:80"), BTreeSet::from([only]));
    lab.pass(&healthy(&[]), Scope::Changed);
    assert_eq!(ask(&client, "172.20.0.132:80"), "nothing", "nobody is healthy");
    let (stream, _) = &mut held[0];
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 2]).expect("but the flow lives");
}

#[test]
fn a_public_front_end_is_reached_from_the_internet_and_other_networks() {
    let lab = Lab::new(
        "nsg open
         in 100 allow * Internet * > * *
         vnet w 10.2.0.0/16
         subnet a 10.2.1.0/24
         vm stranger 10.2.1.4
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24 nsg open
         vm n1 10.1.1.4
         vm n2 10.1.1.5
         balancer b
         frontend front public 20.8.8.8
         pool nodes n1 n2
         rule front nodes tcp 80
         rule front nodes tcp 90 to 8080
         rule front nodes all 0",
    );
    for node in ["n1", "n2"] {
        run(&lab.machine(node), "ip", &["addr", "add", "20.8.8.8/32", "dev", "lo"]);
        lab.serve(node, &[80, 8080]);
    }
    serve(&lab.internet(), "internet", 80);
    let seen = ask(&lab.internet(), "20.8.8.8:80");
    assert!(seen.ends_with(" at 20.8.8.8"), "{seen}");
    let seen = ask(&lab.machine("stranger"), "20.8.8.8:90");
    assert!(seen.contains("sees 20.0.0.1 at 10.1.1."), "{seen}");
    assert_eq!(ask(&lab.internet(), "20.0.0.1:80"), "nothing");
    assert_eq!(ask(&lab.internet(), "20.0.0.2:80"), "nothing", "nobody asked for that");
    assert_eq!(ask(&lab.machine("n1"), "9.9.9.9:80"), "internet sees 20.8.8.8 at 9.9.9.9");
}

#[test]
fn inbound_nat_rules_lead_to_one_machine_each() {
    let lab = Lab::new(
        "nsg open
         in 100 allow * Internet * > * *
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24 nsg open
         vm n1 10.1.1.4
         vm n2 10.1.1.5
         vm client 10.1.1.9
         balancer b
         frontend front public 20.8.8.8
         pool nodes n1 n2
         inbound front tcp 2200 to 22 of n2
         inbound front tcp 5000-5009 to 80 in nodes
         balancer i
         frontend inside 10.1.1.100
         inbound inside tcp 2201 to 22 of n1",
    );
    for node in ["n1", "n2"] {
        lab.serve(node, &[22, 80]);
    }
    let internet = lab.internet();
    let at = |to: &str| ask_as(&internet, "198.19.0.10", to);
    assert_eq!(at("20.8.8.8:2200"), "n2 sees 198.19.0.10 at 10.1.1.5");
    assert_eq!(at("20.8.8.8:5000"), "n1 sees 198.19.0.10 at 10.1.1.4");
    assert_eq!(at("20.8.8.8:5001"), "n2 sees 198.19.0.10 at 10.1.1.5");
    assert_eq!(at("20.8.8.8:5002"), "nothing", "there is no third member");
    assert_eq!(at("20.8.8.8:22"), "nothing");
    let client = lab.machine("client");
    assert_eq!(ask(&client, "10.1.1.100:2201"), "n1 sees 10.1.1.9 at 10.1.1.4");
}

#[test]
fn front_ends_share_members_and_high_availability_ports_take_everything() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm n1 10.1.1.4
         vm client 10.1.1.9
         balancer b
         frontend one 10.1.1.100
         frontend two 10.1.1.101
         frontend all 10.1.1.102
         pool nodes n1
         rule one nodes tcp 80
         rule two nodes tcp 80
         rule all nodes all 0",
    );
    let n1 = lab.machine("n1");
    for address in ["10.1.1.100", "10.1.1.101", "10.1.1.102"] {
        pod(&n1, address);
    }
    lab.serve("n1", &[80, 8443]);
    let client = lab.machine("client");
    for (to, expected) in [
        ("10.1.1.100:80", "n1 sees 10.1.1.9 at 10.1.1.100"),
        ("10.1.1.101:80", "n1 sees 10.1.1.9 at 10.1.1.101"),
        ("10.1.1.101:8443", "nothing"),
        ("10.1.1.102:80", "n1 sees 10.1.1.9 at 10.1.1.102"),
        ("10.1.1.102:8443", "n1 sees 10.1.1.9 at 10.1.1.102"),
    ] {
        assert_eq!(ask(&client, to), expected, "{to}");
    }
}

/// Azure's documented limit: a member whose own flow comes back to it gets no answer.
#[test]
fn a_member_reaches_its_own_front_end_only_at_the_others() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm n1 10.1.1.4
         vm n2 10.1.1.5
         balancer b
         frontend front 10.1.1.100
         pool nodes n1 n2
         rule front nodes tcp 90 to 8080",
    );
    lab.serve("n1", &[8080]);
    lab.serve("n2", &[8080]);
    let n1 = lab.machine("n1");
    let expected = BTreeSet::from(["n2 sees 10.1.1.4 at 10.1.1.5", "nothing"].map(str::to_owned));
    // Which member a flow gets goes by its source port; a run of equal choices is no news.
    let mut said = BTreeSet::new();
    for _ in 0..500 {
        said.insert(ask(&n1, "10.1.1.100:90"));
        if said == expected {
            return;
        }
    }
    panic!("{said:?}");
}

#[test]
fn a_flow_that_was_idle_for_too_long_is_reset() {
    let lab = lab();
    let client = lab.machine("client");
    let (mut stream, _) = connect(&client, "172.20.0.132:80").expect("an answer");
    let vnet = lab.vnet("v");
    let flows = run(&vnet, "cat", &["/proc/net/nf_conntrack"]);
    let flow = flows.lines().find(|flow| flow.contains("dst=172.20.0.132")).expect("the flow");
    let seconds: u32 = flow.split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!((200..=240).contains(&seconds), "four minutes: {flow}");
    // As if they had passed.
    run(&vnet, "conntrack", &["-F"]);
    let mut name = [0; 2];
    let _ = stream.write_all(b"x");
    let err = stream.read_exact(&mut name).expect_err("nobody answers");
    assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn routes_are_for_what_the_sender_wrote_not_for_the_member_that_was_chosen() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.1.2.0/24 none
         subnet clients 10.1.1.0/24 table t
         subnet members 10.1.2.0/24
         vm client 10.1.1.4
         vm member 10.1.2.4
         balancer b
         frontend front 10.1.1.100
         pool p member
         rule front p tcp 80 to 8080",
    );
    lab.serve("member", &[8080]);
    let client = lab.machine("client");
    assert_eq!(ask(&client, "10.1.1.100:80"), "member sees 10.1.1.4 at 10.1.2.4");
    assert_eq!(ask(&client, "10.1.2.4:8080"), "nothing");
}

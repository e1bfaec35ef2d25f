//! Load balancers.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
};

use daemon::fabric::Scope;
use vnet::{
    host::{Health, health::Probed},
    name::Name,
};

use crate::{
    lab::{Lab, ask, connect, run, serve},
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
        "vnet w 10.2.0.0/16
         subnet a 10.2.1.0/24
         vm stranger 10.2.1.4
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
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

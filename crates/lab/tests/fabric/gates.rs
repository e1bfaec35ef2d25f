//! Network security groups: each list is a gate of its own.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
};

use daemon::fabric::Scope;
use linux::netns::Netns;
use vnet::{
    host::{Health, names},
    model::Direction,
    policy::{Decision, Flow, Gate, Protocol},
};

use crate::{
    lab::{Lab, all_decided, ask, ask_as, connect, count, counted, decided, pod, run, serve},
    world::id,
};

/// How often each rule of a list has decided, by its name.
fn hits(lab: &Lab, group: &str, direction: Direction, rule: &str) -> u32 {
    let chain = names::gate(&id("networkSecurityGroups", group), direction, None);
    decided(&lab.vnet("v"), &chain, rule)
}

const SENDER_AND_RECEIVER: &str = "
    vnet v 10.1.0.0/16
    nsg a
    out 100 deny tcp * * > * 81
    out 110 allow * * * > * *
    nsg b
    in 100 deny tcp * * > * 82
    in 110 allow * * * > * *
    subnet a 10.1.1.0/24 nsg a
    subnet b 10.1.2.0/24 nsg b
    vm one 10.1.1.4
    vm two 10.1.1.5
    vm three 10.1.2.4
";

#[test]
fn what_the_sender_may_send_and_the_receiver_may_get_are_two_decisions() {
    let lab = Lab::new(SENDER_AND_RECEIVER);
    lab.serve("three", &[80, 81, 82]);
    lab.serve("one", &[81, 82]);
    let (one, three) = (lab.machine("one"), lab.machine("three"));
    assert_eq!(ask(&one, "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
    assert_eq!(ask(&one, "10.1.2.4:81"), "nothing", "the receiver's allow helps no sender");
    assert_eq!(ask(&one, "10.1.2.4:82"), "nothing", "the sender's allow opens no receiver");
    assert_eq!(hits(&lab, "a", Direction::Outbound, "out-100"), 1);
    assert_eq!(hits(&lab, "a", Direction::Outbound, "out-110"), 2);
    assert_eq!(hits(&lab, "b", Direction::Inbound, "in-100"), 1);
    assert_eq!(hits(&lab, "b", Direction::Inbound, "in-110"), 1, "the first packet of one flow");
    // Replies pass lists that would deny them, and nobody's other list is asked.
    assert_eq!(ask(&three, "10.1.1.4:81"), "one sees 10.1.2.4 at 10.1.1.4");
    assert_eq!(ask(&three, "10.1.1.4:82"), "one sees 10.1.2.4 at 10.1.1.4");
}

#[test]
fn neighbours_in_one_subnet_meet_its_group_and_each_nic_its_own() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         nsg subnet
         in 100 allow tcp 10.1.1.4 * > * 80,443-445
         in 110 deny tcp * * > 10.1.1.6 *
         in 120 allow tcp * 1-65535 > * 81
         in 130 allow icmp asg:pingers * > * *
         in 4096 deny * * * > * *
         nsg nic
         in 100 deny tcp * * > * 444
         subnet a 10.1.1.0/24 nsg subnet
         vm one 10.1.1.4 asg pingers
         vm two 10.1.1.5 nsg nic
         vm three 10.1.1.6",
    );
    for port in [80, 81, 82, 443, 444, 445] {
        lab.serve("two", &[port]);
        lab.serve("three", &[port]);
    }
    let (one, three) = (lab.machine("one"), lab.machine("three"));
    let open = |from: &Netns, to: &str| ask(from, to) != "nothing";
    for (port, expected) in [(80, true), (443, true), (444, false), (445, true), (82, false)] {
        assert_eq!(open(&one, &format!("10.1.1.5:{port}")), expected, "one to two, port {port}");
    }
    assert!(open(&one, "10.1.1.6:444"), "the NIC's group is that NIC's");
    assert!(!open(&three, "10.1.1.5:80"));
    assert!(open(&three, "10.1.1.5:81"));
    assert!(!open(&lab.machine("two"), "10.1.1.6:81"), "denied before it is allowed");
    assert!(pings(&one, "10.1.1.5"), "in the application security group");
    assert!(!pings(&three, "10.1.1.5"), "not in it");
}

fn pings(from: &Netns, to: &str) -> bool {
    run(from, "ping", &["-c1", "-W1", to]).contains(" 0% packet loss")
}

#[test]
fn a_change_of_rules_is_for_new_flows() {
    let group = |rule: &str| {
        format!(
            "vnet v 10.1.0.0/16
             nsg n
             {rule}
             subnet a 10.1.1.0/24 nsg n
             vm one 10.1.1.4
             vm two 10.1.1.5"
        )
    };
    let mut lab = Lab::new(&group(""));
    lab.serve("two", &[80]);
    let one = lab.machine("one");
    let (mut held, _) = connect(&one, "10.1.1.5:80").expect("default rules allow it");
    lab.becomes(&group("in 100 deny * * * > * *"));
    assert_eq!(ask(&one, "10.1.1.5:80"), "nothing");
    let mut name = [0; 3];
    held.write_all(b"x").unwrap();
    held.read_exact(&mut name).expect("the flow lives");
    assert_eq!(&name, b"two");
    lab.becomes(&group(""));
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
}

/// Two pools of a cluster without a network mode of its own, each in a subnet with its own group.
#[test]
fn pools_are_kept_apart_by_their_subnets_groups_alone() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         nsg web
         in 100 deny * 10.1.2.0/24 * > * *
         nsg data
         in 100 deny * 10.1.1.0/24 * > * *
         subnet web 10.1.1.0/24 nsg web
         subnet data 10.1.2.0/24 nsg data
         cluster c azure 198.18.0.10
         node w1 10.1.1.4,10.1.1.5
         node w2 10.1.1.6,10.1.1.7
         node d1 10.1.2.4,10.1.2.5",
    );
    for (node, address) in [("w1", "10.1.1.5"), ("w2", "10.1.1.7"), ("d1", "10.1.2.5")] {
        pod(&lab.machine(node), address);
        lab.serve(node, &[80]);
    }
    let (w1, d1) = (lab.machine("w1"), lab.machine("d1"));
    assert_eq!(ask_as(&w1, "10.1.1.5", "10.1.1.7:80"), "w2 sees 10.1.1.5 at 10.1.1.7");
    assert_eq!(ask_as(&w1, "10.1.1.5", "10.1.2.5:80"), "nothing");
    assert_eq!(ask_as(&d1, "10.1.2.5", "10.1.1.7:80"), "nothing");
    assert_eq!(ask(&lab.control_plane("c"), "10.1.2.4:80"), "d1 sees 100.82.0.10 at 10.1.2.4");
}

#[test]
fn pods_of_a_pod_subnet_meet_their_own_subnets_group() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         nsg nodes
         in 100 deny tcp * * > * 80
         nsg pods
         in 100 deny tcp * * > * 81
         out 100 deny tcp * * > * 90
         subnet a 10.1.1.0/24 nsg nodes
         subnet pods 10.1.4.0/24 nsg pods
         subnet open 10.1.5.0/24
         subnet b 10.1.2.0/24
         vm one 10.1.2.4
         cluster d azure 198.18.0.11
         node p1 10.1.1.8 batch 10.1.4.4-10.1.4.19
         node p2 10.1.1.9 batch 10.1.5.4-10.1.5.19",
    );
    let (p1, p2, one) = (lab.machine("p1"), lab.machine("p2"), lab.machine("one"));
    pod(&p1, "10.1.4.9");
    pod(&p2, "10.1.5.9");
    lab.serve("p1", &[80, 81]);
    lab.serve("p2", &[80]);
    lab.serve("one", &[90]);
    let open = |from: &Netns, to: &str| ask(from, to) != "nothing";
    assert!(open(&one, "10.1.4.9:80"), "the nodes' group is not the pods'");
    assert!(!open(&one, "10.1.4.9:81"));
    assert!(!open(&one, "10.1.1.8:80"));
    assert!(open(&one, "10.1.1.8:81"));
    assert!(open(&one, "10.1.5.9:80"), "a pod subnet without a group");
    assert!(!open(&one, "10.1.1.9:80"));
    assert_eq!(ask_as(&p1, "10.1.4.9", "10.1.2.4:90"), "nothing");
    assert_eq!(ask(&p1, "10.1.2.4:90"), "one sees 10.1.1.8 at 10.1.2.4");
}

/// AKS' documentation warns of this: with rules that deny, an overlay's pods need rules that name their range.
#[test]
fn a_deny_on_everything_breaks_an_overlay_until_its_range_is_allowed() {
    let overlay = |rules: &str| {
        format!(
            "vnet v 10.1.0.0/16
             nsg n
             {rules}
             subnet a 10.1.1.0/24 nsg n
             cluster c overlay 198.18.0.10 pods 10.244.0.0/16
             node c1 10.1.1.5 range 10.244.0.0/24
             node c2 10.1.1.6 range 10.244.1.0/24
             cluster d overlay 198.18.0.11 pods 10.244.0.0/16
             node d1 10.1.1.7 range 10.244.0.0/24
             node d2 10.1.1.8 range 10.244.1.0/24"
        )
    };
    let mut lab = Lab::new(&overlay(""));
    for node in ["c1", "c2", "d1", "d2"] {
        pod(&lab.machine(node), if node.ends_with('1') { "10.244.0.7" } else { "10.244.1.7" });
        lab.serve(node, &[80]);
    }
    let (c1, d1, to) = (lab.machine("c1"), lab.machine("d1"), "10.244.1.7:80");
    let works = |lab: &Lab| {
        let _ = lab;
        (ask_as(&c1, "10.244.0.7", to), ask_as(&d1, "10.244.0.7", to))
    };
    let both = |c: &str, d: &str| (c.to_owned(), d.to_owned());
    let reached = both("c2 sees 10.244.0.7 at 10.244.1.7", "d2 sees 10.244.0.7 at 10.244.1.7");
    assert_eq!(works(&lab), reached, "default rules");
    lab.becomes(&overlay("in 4096 deny * * * > * *\n out 4096 deny * * * > * *"));
    assert_eq!(works(&lab), both("nothing", "nothing"));
    assert_eq!(ask(&c1, to), "nothing", "node to pod");
    let deny = "in 4096 deny * * * > * *";
    lab.becomes(&overlay(&format!("in 100 allow * VirtualNetwork * > * *\n {deny}")));
    assert_eq!(works(&lab), both("nothing", "nothing"), "to a user's rule pods are not in the tag");
    lab.becomes(&overlay(&format!("in 100 allow * 10.244.0.0/16 * > 10.244.0.0/16 *\n {deny}")));
    assert_eq!(works(&lab), reached);
    assert_eq!(ask(&c1, to), "nothing", "node to pod is another pair");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

#[test]
fn an_appliance_is_a_receiver_and_a_sender() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.1.2.0/24 via 10.1.9.4
         nsg nva
         in 100 deny tcp * * > * 81
         out 100 deny tcp * * > * 82
         nsg b
         in 100 deny tcp * * > * 83
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24 nsg b
         subnet nva 10.1.9.0/24 nsg nva
         vm one 10.1.1.4
         vm far 10.1.2.4
         vm nva 10.1.9.4 forwards",
    );
    lab.serve("far", &[80, 81, 82, 83]);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.1.2.4:80"), "far sees 10.1.1.4 at 10.1.2.4");
    for port in [81, 82, 83] {
        assert_eq!(ask(&one, &format!("10.1.2.4:{port}")), "nothing", "{port}");
    }
    assert_ne!(hits(&lab, "nva", Direction::Inbound, "in-100"), 0);
    assert_ne!(hits(&lab, "nva", Direction::Outbound, "out-100"), 0);
    assert_ne!(hits(&lab, "b", Direction::Inbound, "in-100"), 0);
}

#[test]
fn probes_meet_inbound_lists_and_public_flows_come_with_the_clients_address() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         nsg n
         in 100 deny * AzureLoadBalancer * > * 8081
         in 110 allow tcp 20.0.0.1,198.18.0.0/15 * > 20.8.8.8 80
         in 120 allow tcp Internet * > 10.1.1.4 8080
         nsg out
         out 100 deny * * * > * *
         subnet a 10.1.1.0/24 nsg n
         subnet b 10.1.2.0/24 nsg out
         vm n1 10.1.1.4
         vm two 10.1.2.4
         balancer b
         frontend front public 20.8.8.8
         pool nodes n1
         rule front nodes tcp 80
         rule front nodes tcp 81
         rule front nodes tcp 90 to 8080",
    );
    run(&lab.machine("n1"), "ip", &["addr", "add", "20.8.8.8/32", "dev", "lo"]);
    lab.serve("n1", &[80, 81, 8080, 8081]);
    let probe = |port: u16| {
        let to = format!("10.1.1.4:{port}");
        ask_as(&lab.vnet("v"), "168.63.129.16", &to)
    };
    assert_eq!(probe(8080), "n1 sees 168.63.129.16 at 10.1.1.4");
    assert_eq!(probe(8081), "nothing");
    let internet = lab.internet();
    let as_client = |to: &str| ask_as(&internet, "198.19.0.10", to);
    assert_eq!(as_client("20.8.8.8:80"), "n1 sees 198.19.0.10 at 20.8.8.8");
    assert_eq!(as_client("20.8.8.8:81"), "nothing", "DenyAllInBound");
    assert_eq!(as_client("20.8.8.8:90"), "n1 sees 198.19.0.10 at 10.1.1.4", "after translation");
    // Nobody leaves a subnet whose group denies everything, but for the platform.
    serve(&internet, "internet", 80);
    assert_eq!(ask(&lab.machine("two"), "9.9.9.9:80"), "nothing");
    assert_eq!(ask(&lab.machine("two"), "168.63.129.16:80"), "nothing");
    assert_eq!(hits(&lab, "out", Direction::Outbound, "out-100"), 1, "only for the internet");
}

/// Numbers that are the same every time (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A group of so many rules about flows from 10.1.1.0/28 to 10.1.2.0/28, each unlike the others.
fn many_rules(numbers: &mut Numbers, n_rules: u64) -> String {
    let rule = |n: u64| {
        let mut peer = |third: u64| match numbers.below(4) {
            0 => "*".to_owned(),
            1 => format!("10.1.{third}.0/28"),
            2 => format!("10.1.{third}.{}/31", 2 * numbers.below(8)),
            _ => format!(
                "10.1.{third}.{},10.1.{third}.{}",
                4 + numbers.below(4),
                4 + numbers.below(4)
            ),
        };
        let (source, destination) = (peer(1), peer(2));
        let access = ["allow", "deny"][usize::try_from(numbers.below(2)).unwrap()];
        let protocol = ["udp", "udp", "*", "tcp"][usize::try_from(numbers.below(4)).unwrap()];
        let port = 1000 + numbers.below(100);
        let ports = match numbers.below(5) {
            0 if n % 100 == 99 => "*".to_owned(),
            1 => format!("{port}-{}", port + numbers.below(30)),
            2 => format!("{port},{}", 1000 + numbers.below(100)),
            _ => port.to_string(),
        };
        let sports = if numbers.below(10) == 0 { "30000-30999" } else { "*" };
        let number = 100 + n;
        format!("in {number} {access} {protocol} {source} {sports} > {destination} {ports}")
    };
    (0..n_rules).map(rule).collect::<Vec<_>>().join("\n")
}

/// Long lists are cut into maps. Each rule decides about the flows that the model says it decides about.
#[test]
fn long_lists_decide_as_the_model_does() {
    for seed in 0..4 {
        let mut numbers = Numbers(seed);
        let rules = many_rules(&mut numbers, 400);
        let lab = Lab::new(&format!(
            "vnet v 10.1.0.0/16
             nsg n
             {rules}
             subnet a 10.1.1.0/24
             subnet b 10.1.2.0/24 nsg n
             vm one 10.1.1.4,10.1.1.5,10.1.1.6,10.1.1.7
             vm two 10.1.2.4,10.1.2.5,10.1.2.6,10.1.2.7"
        ));
        let group = id("networkSecurityGroups", "n");
        let vnet = &lab.region.vnets[&crate::world::vnet_id("v")];
        let gate = Gate::new(&lab.region, vnet, &lab.region.security_groups[&group], None);
        let mut expected: BTreeMap<String, u32> = BTreeMap::new();
        let one = lab.machine("one");
        for n in 0..2000_u16 {
            let mut address =
                |third| Ipv4Addr::new(10, 1, third, 4 + u8::try_from(numbers.below(4)).unwrap());
            let flow = Flow {
                source: address(1).into(),
                destination: address(2).into(),
                protocol: Protocol::Udp,
                source_port: 30_000 + n,
                destination_port: u16::try_from(995 + numbers.below(110)).unwrap(),
            };
            let Decision::Rule(rule) = gate.decide(Direction::Inbound, &flow) else {
                panic!("{flow:?}")
            };
            *expected.entry(rule.rule.name.to_string()).or_default() += 1;
            let socket =
                one.run(|| UdpSocket::bind((flow.source, flow.source_port))).unwrap().unwrap();
            socket.send_to(b"x", (flow.destination, flow.destination_port)).unwrap();
        }
        let chain = names::gate(&group, Direction::Inbound, None);
        assert!(expected.len() > 30, "many rules decide: {expected:?}");
        assert_eq!(all_decided(&lab.vnet("v"), &chain), expected, "seed {seed}");
    }
}

#[test]
fn rules_and_elements_that_somebody_takes_away_come_back() {
    let mut lab = Lab::new(SENDER_AND_RECEIVER);
    lab.serve("three", &[80, 81]);
    let (one, vnet) = (lab.machine("one"), lab.vnet("v"));
    let look = |lab: &mut Lab| lab.pass(&Health::default(), Scope::All);
    assert!(look(&mut lab).is_nothing());
    // Somebody's own table is nobody else's business.
    run(&vnet, "nft", &["add table ip other; add chain ip other c; add rule ip other c counter"]);
    assert!(look(&mut lab).is_nothing());
    for damage in [
        "flush chain ip aksnet outbound",
        "flush map ip aksnet nodes_out",
        "flush set ip aksnet sources",
        "add rule ip aksnet inbound accept",
        "flush ruleset",
    ] {
        run(&vnet, "nft", &[damage]);
        assert!(!look(&mut lab).is_nothing(), "{damage}");
        assert_eq!(ask(&one, "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4", "{damage}");
        assert_eq!(ask(&one, "10.1.2.4:81"), "nothing", "{damage}");
        assert!(look(&mut lab).is_nothing(), "{damage}");
    }
}

/// How many packets to the platform get through a machine's gates: to port 53 and port 80 of its address, and to the
/// metadata's.
fn reach_the_platform(lab: &Lab, machine: &str) -> [u32; 3] {
    let from = lab.machine(machine);
    [("168.63.129.16", 53), ("168.63.129.16", 80), ("169.254.169.254", 80)].map(|(to, port)| {
        let at = lab.vnet("v");
        count(&at, "input", &format!("ip daddr {to} udp dport {port}"));
        run(&from, "bash", &["-c", &format!("echo x > /dev/udp/{to}/{port}")]);
        let n = counted(&at);
        run(&at, "nft", &["delete", "table", "ip", "counting"]);
        n
    })
}

#[test]
fn each_name_of_the_platforms_closes_that_service_alone() {
    let lab = Lab::new(
        "nsg names
         out 100 deny * * * > AzurePlatformDNS *
         nsg metadata
         out 100 deny * * * > AzurePlatformIMDS *
         nsg licences
         out 100 deny * * * > AzurePlatformLKM *
         nsg all
         out 100 deny * * * > * *
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm names 10.1.1.4 nsg names
         vm metadata 10.1.1.5 nsg metadata
         vm licences 10.1.1.6 nsg licences
         vm all 10.1.1.7 nsg all",
    );
    for (machine, expected) in
        [("names", [0, 1, 1]), ("metadata", [1, 1, 0]), ("licences", [1; 3]), ("all", [1; 3])]
    {
        assert_eq!(reach_the_platform(&lab, machine), expected, "{machine}");
    }
}

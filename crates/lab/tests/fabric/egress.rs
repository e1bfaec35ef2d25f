//! Who is seen outside as whom.

use std::{collections::BTreeSet, sync::Arc};

use daemon::fabric::Scope;
use vnet::host::Health;

use crate::{
    lab::{Lab, ask, ask_as, connect, masquerade, pod, run, serve},
    world::nic_id,
};

/// What the internet sees of a machine's flow.
fn seen(lab: &Lab, machine: &str) -> String {
    let said = ask(&lab.machine(machine), "9.9.9.9:80");
    said.replace("internet sees ", "").replace(" at 9.9.9.9", "")
}

#[test]
fn each_method_has_its_own_address_and_the_first_of_them_wins() {
    let mut lab = Lab::new(
        "nsg open
         in 100 allow * Internet * > * *
         vnet v 10.1.0.0/16
         gateway g 20.7.7.7
         subnet plain 10.1.1.0/24
         subnet private 10.1.2.0/24 private
         subnet gated 10.1.3.0/24 nat g
         subnet pods 10.1.4.0/24
         vm default 10.1.1.4
         vm own 10.1.1.5 nsg open public 20.5.5.5
         vm member 10.1.1.6
         vm silent 10.1.1.7
         vm ruled 10.1.1.8
         vm alone 10.1.2.4
         vm owner 10.1.2.5 public 20.5.5.6
         vm gated 10.1.3.4
         vm both 10.1.3.5 nsg open public 20.5.5.7
         vm all 10.1.3.6
         cluster c azure 198.18.0.10 outbound nat
         node n1 10.1.3.7 batch 10.1.4.4-10.1.4.9
         balancer b
         frontend front public 20.8.8.8
         frontend other public 20.8.8.9
         pool nodes member silent ruled all
         rule front nodes tcp 90 to 8080
         balancer i
         frontend front 10.1.1.100
         pool inside silent
         rule front inside tcp 80
         balancer o
         frontend out public 20.9.9.9
         pool ruled ruled all
         outbound out ruled",
    );
    serve(&lab.internet(), "internet", 80);
    for (machine, expected) in [
        ("default", "20.0.0.1"),
        ("own", "20.5.5.5"),
        ("member", "20.8.8.8"),
        ("ruled", "20.9.9.9"),
        ("alone", "nothing"),
        ("owner", "20.5.5.6"),
        ("gated", "20.7.7.7"),
        ("both", "20.7.7.7"),
        ("all", "20.7.7.7"),
        ("n1", "20.7.7.7"),
    ] {
        assert_eq!(seen(&lab, machine), expected, "{machine}");
    }
    // The pods' subnet needs the gateway, too.
    let n1 = lab.machine("n1");
    pod(&n1, "10.1.4.5");
    assert_eq!(ask_as(&n1, "10.1.4.5", "9.9.9.9:80"), "nothing");
    // A gateway takes nothing from outside, an address of one's own does.
    lab.serve("both", &[80]);
    lab.serve("own", &[80]);
    assert_eq!(
        ask(&lab.internet(), "20.5.5.7:80"),
        "both sees 20.0.0.1 at 10.1.3.5".replace("20.0.0.1", &source(&lab))
    );
    assert_eq!(
        ask(&lab.internet(), "20.5.5.5:80"),
        format!("own sees {} at 10.1.1.5", source(&lab))
    );
    assert_eq!(ask(&lab.internet(), "20.7.7.7:80"), "nothing");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

/// A NIC's own public IP says how long its flows may be idle; the load balancer's rule says it of its members'.
#[test]
fn a_public_ip_says_how_long_flows_may_be_idle() {
    let mut lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm own 10.1.1.5 public 20.5.5.5
         vm member 10.1.1.6
         balancer b
         frontend front public 20.8.8.8
         pool nodes member
         rule front nodes tcp 90 to 8080",
    );
    serve(&lab.internet(), "internet", 80);
    let minutes = |lab: &Lab, machine: &str| {
        let (_stream, _) = connect(&lab.machine(machine), "9.9.9.9:80").expect("an answer");
        let from = if machine == "own" { "src=10.1.1.5 " } else { "src=10.1.1.6 " };
        let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
        let flow = flows.lines().find(|flow| flow.contains(from) && flow.contains("ESTABLISHED"));
        let seconds = flow.expect("the flow").split_whitespace().nth(4).unwrap();
        let minutes = seconds.parse::<u32>().unwrap().div_ceil(60);
        run(&lab.vnet("v"), "conntrack", &["-F"]);
        minutes
    };
    assert_eq!((minutes(&lab, "own"), minutes(&lab, "member")), (4, 4));
    for id in lab.region.public_ips.keys().cloned().collect::<Vec<_>>() {
        let public_ip = lab.region.public_ips.get_mut(&id).unwrap();
        Arc::make_mut(public_ip).settings.idle_timeout_minutes = 11;
    }
    lab.pass(&Health::default(), Scope::Changed);
    assert_eq!((minutes(&lab, "own"), minutes(&lab, "member")), (11, 4));
}

/// The address that the internet speaks from by itself.
fn source(lab: &Lab) -> String {
    let route = run(&lab.internet(), "ip", &["-o", "route", "get", "20.5.5.5"]);
    let (_, after) = route.split_once("src ").expect("a source");
    after.split(' ').next().expect("an address").to_owned()
}

#[test]
fn members_without_outbound_snat_have_no_way_out() {
    let lab = Lab::new(
        "nsg open
         in 100 allow * Internet * > * *
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4 nsg open
         vm two 10.1.1.5
         balancer b
         frontend front public 20.8.8.8
         pool nodes one
         rule front nodes tcp 80 no-snat
         balancer i
         frontend front 10.1.1.100
         pool nodes two
         rule front nodes tcp 80",
    );
    serve(&lab.internet(), "internet", 80);
    assert_eq!(seen(&lab, "one"), "nothing", "refused by the rule");
    assert_eq!(seen(&lab, "two"), "nothing", "behind a Standard internal load balancer");
    lab.serve("one", &[80]);
    pod(&lab.machine("one"), "20.8.8.8");
    assert_ne!(ask(&lab.internet(), "20.8.8.8:80"), "nothing", "but it is reached");
}

#[test]
fn flows_are_spread_over_all_addresses_of_a_gateway() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         gateway g 20.7.7.7,20.6.0.0/31
         subnet a 10.1.1.0/24 nat g
         vm one 10.1.1.4",
    );
    serve(&lab.internet(), "internet", 80);
    let all: BTreeSet<String> = (0..24).map(|_| seen(&lab, "one")).collect();
    let expected = ["20.7.7.7", "20.6.0.0", "20.6.0.1"].map(str::to_owned);
    assert_eq!(all, BTreeSet::from(expected));
}

#[test]
fn a_member_that_has_used_its_ports_reaches_other_destinations_only() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4
         vm two 10.1.1.5
         balancer b
         frontend out public 20.9.9.9
         pool nodes one two
         outbound out nodes ports 8",
    );
    serve(&lab.internet(), "internet", 80);
    serve(&lab.internet(), "internet", 81);
    let (one, two) = (lab.machine("one"), lab.machine("two"));
    let held: Vec<_> = (0..8).map(|_| connect(&one, "9.9.9.9:80").expect("a port")).collect();
    let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
    let ports: BTreeSet<u16> = flows
        .split("dst=20.9.9.9 sport=80 dport=")
        .skip(1)
        .map(|after| after.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(ports, (1024..1032).collect(), "the first member's: {flows}");
    assert_eq!(ask(&one, "9.9.9.9:80"), "nothing", "exhausted");
    assert_eq!(ask(&one, "9.9.9.9:81"), "internet sees 20.9.9.9 at 9.9.9.9", "another port");
    assert_eq!(ask(&one, "9.9.9.8:80"), "internet sees 20.9.9.9 at 9.9.9.8", "another address");
    assert_eq!(ask(&two, "9.9.9.9:80"), "internet sees 20.9.9.9 at 9.9.9.9", "another member");
    drop(held);
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.9.9.9 at 9.9.9.9", "given back");
}

#[test]
fn several_front_ends_are_used_and_each_member_has_ports_of_all() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4
         vm two 10.1.1.5
         balancer b
         frontend out public 20.9.9.9
         frontend more public 20.9.9.8
         pool nodes one two
         outbound out,more nodes",
    );
    serve(&lab.internet(), "internet", 80);
    for name in ["one", "two"] {
        let all: BTreeSet<String> = (0..24).map(|_| seen(&lab, name)).collect();
        assert_eq!(all, BTreeSet::from(["20.9.9.8", "20.9.9.9"].map(str::to_owned)), "{name}");
    }
    let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
    for flow in flows.lines().filter(|flow| flow.contains("dst=9.9.9.9")) {
        let (_, port) = flow.rsplit_once("dport=").unwrap();
        let port: u16 = port.split(' ').next().unwrap().parse().unwrap();
        let range = if flow.contains("src=10.1.1.4") { 1024..2048 } else { 2048..3072 };
        assert!(range.contains(&port), "{flow}");
    }
}

#[test]
fn an_outbound_rule_may_have_a_whole_prefix() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4
         balancer b
         frontend out prefix 20.9.9.8/31
         frontend more public 20.9.9.7
         pool nodes one
         outbound out,more nodes",
    );
    serve(&lab.internet(), "internet", 80);
    let all: BTreeSet<String> = (0..40).map(|_| seen(&lab, "one")).collect();
    assert_eq!(all, BTreeSet::from(["20.9.9.7", "20.9.9.8", "20.9.9.9"].map(str::to_owned)));
}

#[test]
fn a_cluster_with_user_defined_routing_leaves_through_the_appliance() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.4
         subnet nodes 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm nva 10.1.9.4 forwards public 20.5.5.5
         cluster c azure 198.18.0.10 outbound udr
         node n1 10.1.1.4
         subnet other 10.1.2.0/24
         cluster d azure 198.18.0.11 outbound block
         node m1 10.1.2.4",
    );
    serve(&lab.internet(), "internet", 80);
    assert_eq!(seen(&lab, "n1"), "nothing", "nobody translates");
    masquerade(&lab.machine("nva"));
    assert_eq!(seen(&lab, "n1"), "20.5.5.5");
    assert_eq!(seen(&lab, "m1"), "nothing");
}

/// With which addresses a machine's TCP, UDP and ICMP are seen.
fn seen_by_protocol(lab: &Lab, machine: &str) -> [String; 3] {
    let tcp = seen(lab, machine);
    let address = lab.region.nics[&nic_id(machine)].configs[0].address;
    let from = format!("src={address} dst=9.9.9.9");
    let machine = lab.machine(machine);
    let flows = |protocol: &str| {
        match protocol {
            "udp" => run(&machine, "bash", &["-c", "echo x > /dev/udp/9.9.9.9/53"]),
            _ => run(&machine, "sh", &["-c", "ping -c 1 -W 1 9.9.9.9 || true"]),
        };
        let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
        let flow = flows.lines().find(|it| it.contains(protocol) && it.contains(&from));
        flow.map_or_else(
            || "nothing".to_owned(),
            |flow| {
                let (_, outside) = flow.rsplit_once("dst=").expect("the answer's");
                outside.split(' ').next().expect("an address").to_owned()
            },
        )
    };
    [tcp, flows("udp"), flows("icmp")]
}

#[test]
fn only_an_address_of_ones_own_carries_more_than_tcp_and_udp() {
    let lab = Lab::new(
        "nsg open
         in 100 allow * Internet * > * *
         vnet v 10.1.0.0/16
         gateway g 20.7.7.7
         gateway h 20.6.0.0/31
         subnet plain 10.1.1.0/24
         subnet gated 10.1.3.0/24 nat g
         subnet rows 10.1.4.0/24 nat h
         vm default 10.1.1.4
         vm own 10.1.1.5 nsg open public 20.5.5.5
         vm ruled 10.1.1.6
         vm streams 10.1.1.7
         vm both 10.1.1.8
         vm plain 10.1.1.9
         vm gated 10.1.3.4
         vm owner 10.1.3.5 nsg open public 20.5.5.7
         vm rows 10.1.4.4
         balancer all
         frontend one public 20.9.9.1
         pool ruled ruled
         outbound one ruled
         balancer tcp
         frontend two public 20.9.9.2
         pool streams streams
         outbound two streams for tcp
         balancer both
         frontend three public 20.9.9.3
         frontend four public 20.9.9.4
         pool both both
         outbound three both for tcp
         outbound four both for udp ports 16
         balancer rule
         frontend five public 20.9.9.5
         pool plain plain
         rule five plain udp 90 to 8080",
    );
    serve(&lab.internet(), "internet", 80);
    for (machine, expected) in [
        ("default", ["20.0.0.1", "20.0.0.1", "nothing"]),
        ("own", ["20.5.5.5"; 3]),
        ("ruled", ["20.9.9.1", "20.9.9.1", "nothing"]),
        ("streams", ["20.9.9.2", "nothing", "nothing"]),
        ("both", ["20.9.9.3", "20.9.9.4", "nothing"]),
        ("plain", ["nothing", "20.9.9.5", "nothing"]),
        ("gated", ["20.7.7.7", "20.7.7.7", "nothing"]),
        ("owner", ["20.7.7.7", "20.7.7.7", "20.5.5.7"]),
    ] {
        assert_eq!(seen_by_protocol(&lab, machine), expected, "{machine}");
    }
    let [tcp, udp, icmp] = seen_by_protocol(&lab, "rows");
    assert!(tcp.starts_with("20.6.0.") && udp.starts_with("20.6.0."), "{tcp} {udp}");
    assert_eq!(icmp, "nothing");
    // The share of the UDP rule's ports, and who dropped the rest.
    let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
    let datagram = flows.lines().find(|it| it.contains("udp") && it.contains("dst=20.9.9.4"));
    let (_, port) = datagram.expect("above").rsplit_once("dport=").expect("a port");
    let port: u16 = port.split(' ').next().expect("a number").parse().expect("a number");
    assert!((1024..1040).contains(&port), "{port}");
    let forward = run(&lab.vnet("v"), "nft", &["list", "chain", "ip", "aksnet", "forward"]);
    let dropped = |why: &str| {
        let line = forward.lines().find(|line| line.contains(why)).expect("a rule");
        let (_, after) = line.split_once("counter packets ").expect("a counter");
        after.split(' ').next().expect("a number").parse::<u32>().expect("a number")
    };
    assert_eq!(dropped("is for TCP and UDP"), 7, "{forward}");
    assert_eq!(dropped("method for UDP"), 1, "{forward}");
    assert!(dropped("method for TCP") > 0, "{forward}");
}

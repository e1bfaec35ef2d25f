//! IPv6 beside IPv4: the same machines, networks and rules, and packets of both families.

use std::{net::SocketAddrV6, time::Duration};

use daemon::fabric::Scope;
use linux::{
    net::{Netlink, link_indexes},
    netns::Netns,
};
use vnet::host::Health;

use crate::lab::{Lab, add_ipv6, ask, ask_as, run, serve};

/// Two networks that are joined; `w` has one subnet.
const WORLD: &str = "
    nsg n
    in 100 deny tcp fd00:1:0:1::4 * > * 81
    in 110 deny tcp 10.1.1.4 * > * 82
    in 120 deny * * * > * 83
    in 130 deny icmp * * > * *
    nsg open
    in 100 allow tcp Internet * > * 80
    table t
    route fd00:9::/64 via fd00:1:0:1::9
    route fd00:1:0:3::/64 none
    vnet w 10.2.0.0/16,fd00:2::/48
    subnet a 10.2.1.0/24,fd00:2:0:1::/64
    vm far 10.2.1.4,fd00:2:0:1::4
    vm outer 10.2.1.5,fd00:2:0:1::5 nsg open public 20.0.9.5,2001:2::5
    vnet v 10.1.0.0/16,fd00:1::/48
    subnet a 10.1.1.0/24,fd00:1:0:1::/64 table t
    subnet b 10.1.2.0/24,fd00:1:0:2::/64 nsg n
    subnet c 10.1.3.0/24,fd00:1:0:3::/64
    vm one 10.1.1.4,fd00:1:0:1::4
    vm two 10.1.1.5,fd00:1:0:1::5
    vm nva 10.1.1.9,fd00:1:0:1::9 forwards
    vm three 10.1.2.4,fd00:1:0:2::4
    vm four 10.1.3.4,fd00:1:0:3::4
    vm plain 10.1.1.7
    peer v w
    peer w v
    balancer ilb
    frontend six fd00:1:0:2::100
    pool p three
    rule six p tcp 90
    rule six p tcp 91 to 80
";

#[test]
fn machines_reach_each_other_as_they_do_by_ipv4() {
    let lab = Lab::new(WORLD);
    for name in ["two", "three", "far", "four"] {
        lab.serve(name, &[80, 81, 82, 83]);
    }
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(
        ask(&one, "[fd00:1:0:1::5]:80"),
        "two sees fd00:1:0:1::4 at fd00:1:0:1::5",
        "in a subnet"
    );
    assert_eq!(
        ask(&one, "[fd00:1:0:2::4]:80"),
        "three sees fd00:1:0:1::4 at fd00:1:0:2::4",
        "across subnets"
    );
    assert_eq!(
        ask(&one, "[fd00:2:0:1::4]:80"),
        "far sees fd00:1:0:1::4 at fd00:2:0:1::4",
        "across a peering"
    );
    // A rule with IPv6 prefixes is about IPv6, one with IPv4 prefixes about IPv4, one with any about both.
    assert_eq!(ask(&one, "[fd00:1:0:2::4]:81"), "nothing");
    assert_eq!(ask(&one, "10.1.2.4:81"), "three sees 10.1.1.4 at 10.1.2.4");
    assert_eq!(ask(&one, "[fd00:1:0:2::4]:82"), "three sees fd00:1:0:1::4 at fd00:1:0:2::4");
    assert_eq!(ask(&one, "10.1.2.4:82"), "nothing");
    assert_eq!(ask(&one, "[fd00:1:0:2::4]:83"), "nothing");
    assert_eq!(ask(&one, "10.1.2.4:83"), "nothing");
    // A route of the user's with next hop None; nobody; a network that nothing leads to; the gateway.
    for nobody in
        ["[fd00:1:0:3::4]:80", "[fd00:1:0:1::77]:80", "[fd00:7::1]:80", "[fd00:1:0:1::1]:80"]
    {
        assert_eq!(ask(&one, nobody), "nothing", "{nobody}");
    }
    assert_eq!(
        ask(&lab.machine("three"), "[fd00:1:0:3::4]:80"),
        "four sees fd00:1:0:2::4 at fd00:1:0:3::4"
    );
}

#[test]
fn nobody_is_asked_who_has_an_address() {
    let lab = Lab::new(WORLD);
    lab.serve("two", &[80]);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "[fd00:1:0:1::5]:80"), "two sees fd00:1:0:1::4 at fd00:1:0:1::5");
    let neighbours = run(&one, "ip", &["-6", "neigh"]);
    assert_eq!(
        neighbours.trim(),
        "fe80::1234:5678:9abc dev eth0 lladdr 12:34:56:78:9a:bc PERMANENT proto 197"
    );
    let addresses = run(&one, "ip", &["-6", "-o", "addr", "show", "dev", "eth0"]);
    assert!(!addresses.contains("tentative"), "{addresses}");
    assert_eq!(addresses.lines().count(), 1, "no address of the kernel's own: {addresses}");
}

#[test]
fn a_second_pass_changes_nothing_and_damage_is_mended() {
    let mut lab = Lab::new(WORLD);
    let text = |steps: &[vnet::host::Step]| {
        steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let done = lab.pass(&Health::default(), Scope::All);
    assert!(done.is_nothing(), "{}", text(&done.steps));
    let vnet = lab.vnet("v");
    run(&vnet, "ip", &["-6", "route", "flush", "proto", "197"]);
    run(&vnet, "ip", &["-6", "rule", "flush", "protocol", "197"]);
    run(&vnet, "nft", &["flush", "ruleset"]);
    run(&vnet, "sysctl", &["-q", "net.ipv6.conf.all.forwarding=0"]);
    run(&lab.machine("one"), "ip", &["-6", "addr", "flush", "dev", "eth0"]);
    assert!(!lab.pass(&Health::default(), Scope::All).is_nothing());
    let done = lab.pass(&Health::default(), Scope::All);
    assert!(done.is_nothing(), "{}", text(&done.steps));
    lab.serve("three", &[80]);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "[fd00:1:0:2::4]:80"), "three sees fd00:1:0:1::4 at fd00:1:0:2::4");
    // A network that gives its IPv6 back has nothing left of it.
    let text_of_v4: String = WORLD
        .lines()
        .filter(|line| !line.contains("route fd") && !line.contains("in 100"))
        .take_while(|line| !line.contains("balancer"))
        .map(|line| {
            let words = line.split(' ').map(|word| {
                word.split(',').filter(|one| !one.contains("::")).collect::<Vec<_>>().join(",")
            });
            words.collect::<Vec<_>>().join(" ") + "\n"
        })
        .collect();
    lab.becomes(&text_of_v4);
    let done = lab.pass(&Health::default(), Scope::All);
    assert!(done.is_nothing(), "{}", text(&done.steps));
    let tables = run(&lab.vnet("v"), "nft", &["list", "tables"]);
    assert_eq!(tables.trim(), "table ip aksnet");
    assert_eq!(
        run(&lab.vnet("v"), "ip", &["-6", "route", "show", "proto", "197", "table", "all"]),
        ""
    );
    assert_eq!(ask(&lab.machine("one"), "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
}

#[test]
fn nobody_speaks_with_anothers_address() {
    let lab = Lab::new(WORLD);
    lab.serve("two", &[80]);
    let one = lab.machine("one");
    for spoofed in ["fd00:1:0:1::6", "fe80::6"] {
        add_ipv6(&one, spoofed, "eth0");
    }
    assert_eq!(ask_as(&one, "fd00:1:0:1::6", "[fd00:1:0:1::5]:80"), "nothing");
    // Link-local ones, too, which the kernel takes with their link only.
    let (vnet, two) = (lab.vnet("v"), lab.machine("two"));
    for namespace in [&vnet, &two] {
        let rules = "add table ip6 counting; \
                     add chain ip6 counting c { type filter hook prerouting priority -400; }; \
                     add rule ip6 counting c ip6 saddr { fe80::6, fd00:1:0:1::6 } counter";
        assert_eq!(run(namespace, "nft", &[rules]), "");
    }
    let counted = |namespace: &Netns| {
        let listing = run(namespace, "nft", &["list", "chain", "ip6", "counting", "c"]);
        !listing.contains("counter packets 0 ")
    };
    let links = link_indexes(&mut Netlink::open_in(&one).unwrap()).unwrap();
    let source = SocketAddrV6::new("fe80::6".parse().unwrap(), 0, 0, links["eth0"]);
    let to = "[fd00:1:0:1::5]:80".parse().unwrap();
    assert!(one.tcp_connect_from(Some(source.into()), to, Duration::from_millis(300)).is_err());
    assert!(counted(&vnet), "it was sent");
    assert!(!counted(&two), "it came no further");
    assert_eq!(ask(&one, "[fd00:1:0:1::5]:80"), "two sees fd00:1:0:1::4 at fd00:1:0:1::5");
}

#[test]
fn an_appliance_gets_what_a_route_sends_to_it() {
    let lab = Lab::new(WORLD);
    let nva = lab.machine("nva");
    add_ipv6(&nva, "fd00:9::1", "lo");
    serve(&nva, "nva", 80);
    assert_eq!(ask(&lab.machine("one"), "[fd00:9::1]:80"), "nva sees fd00:1:0:1::4 at fd00:9::1");
    // Subnet `b` has no such route.
    assert_eq!(ask(&lab.machine("three"), "[fd00:9::1]:80"), "nothing");
}

#[test]
fn load_balancers_have_front_ends_of_ipv6() {
    let lab = Lab::new(WORLD);
    lab.serve("three", &[80]);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "[fd00:1:0:2::100]:91"), "three sees fd00:1:0:1::4 at fd00:1:0:2::4");
    // Floating IP: the member has the front end's address.
    let three = lab.machine("three");
    add_ipv6(&three, "fd00:1:0:2::100", "lo");
    serve(&three, "three", 90);
    assert_eq!(ask(&one, "[fd00:1:0:2::100]:90"), "three sees fd00:1:0:1::4 at fd00:1:0:2::100");
}

#[test]
fn only_who_has_a_public_address_reaches_the_internet_and_is_reached() {
    let lab = Lab::new(WORLD);
    serve(&lab.internet(), "internet", 80);
    lab.serve("outer", &[80]);
    let (one, outer) = (lab.machine("one"), lab.machine("outer"));
    assert_eq!(ask(&outer, "[2a00::1]:80"), "internet sees 2001:2::5 at 2a00::1");
    assert_eq!(ask(&outer, "9.9.9.9:80"), "internet sees 20.0.9.5 at 9.9.9.9");
    assert_eq!(ask(&one, "[2a00::1]:80"), "nothing", "there is no default way out");
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.0.0.2 at 9.9.9.9");
    let internet = lab.internet();
    add_ipv6(&internet, "2a00::1", "lo");
    assert_eq!(
        ask_as(&internet, "2a00::1", "[2001:2::5]:80"),
        "outer sees 2a00::1 at fd00:2:0:1::5"
    );
}

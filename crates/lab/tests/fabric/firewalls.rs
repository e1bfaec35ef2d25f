//! Appliances behind a load balancer: routes whose next hop is its front end, and routes that lead past one.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
};

use daemon::fabric::Scope;
use linux::netns::Netns;
use vnet::{
    host::{Health, change, health::Probed},
    name::Name,
};

use crate::{
    lab::{Lab, ask, connect, count, counted, masquerade, run, serve},
    world::{id, nic_id, region},
};

/// Two firewalls in hub `w`, behind a front end that the spokes `v` and `x` route everything to.
fn hub(rules: &str) -> String {
    format!(
        "vnet w 10.2.0.0/16
         subnet nva 10.2.9.0/24
         subnet shared 10.2.1.0/24 table from-hub
         vm fw1 10.2.9.4 forwards
         vm fw2 10.2.9.5 forwards
         vm shared 10.2.1.4
         balancer firewalls
         frontend front 10.2.9.100
         pool fws fw1 fw2
         probe p tcp 22
         {rules}
         table t
         route 10.0.0.0/8 via 10.2.9.100
         route 10.1.0.0/16 via 10.2.9.100
         route 10.2.0.0/16 via 10.2.9.100
         route 0.0.0.0/0 via 10.2.9.100
         table from-hub
         route 10.1.0.0/16 via 10.2.9.100
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24 table t
         vm one 10.1.1.4
         vm two 10.1.2.4
         vnet x 10.3.0.0/16
         subnet a 10.3.1.0/24 table t
         vm three 10.3.1.4
         peer v w forwarded
         peer w v forwarded
         peer x w forwarded
         peer w x forwarded"
    )
}

const ALL_PORTS: &str = "rule front fws all 0 to 0 probe p";

fn healthy(members: &[&str]) -> Health {
    let probed = |member: &&str| Probed {
        balancer: id("loadBalancers", "firewalls"),
        probe: Name::new("p"),
        member: nic_id(member),
    };
    Health { up: members.iter().map(probed).collect() }
}

/// Has a machine pass on only flows whose beginning it has seen, as a firewall does: half of a flow does not get through.
fn guard(machine: &Netns) {
    let rules = "add table inet fw; add chain inet fw c { type filter hook forward priority 0; policy drop; }; \
         add rule inet fw c ct state established,related accept; \
         add rule inet fw c meta l4proto tcp tcp flags & (syn | ack) == syn ct state new accept; \
         add rule inet fw c meta l4proto udp ct state new accept; \
         add rule inet fw c icmp type echo-request ct state new accept; \
         add rule inet fw c icmpv6 type echo-request ct state new accept";
    assert_eq!(run(machine, "nft", &[rules]), "");
}

/// The hub, with both firewalls up.
fn lab(rules: &str) -> Lab {
    let mut lab = Lab::new(&hub(rules));
    lab.pass(&healthy(&["fw1", "fw2"]), Scope::Changed);
    for name in ["fw1", "fw2"] {
        guard(&lab.machine(name));
    }
    for name in ["one", "two", "three", "shared"] {
        lab.serve(name, &[80, 81]);
    }
    lab
}

#[test]
fn flows_of_both_directions_are_spread_over_the_firewalls_and_each_keeps_to_one() {
    let mut lab = lab(ALL_PORTS);
    let (one, three) = (lab.machine("one"), lab.machine("three"));
    let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
    for firewall in &firewalls {
        count(firewall, "forward", "ip daddr 10.3.1.4 tcp flags syn");
    }
    for _ in 0..24 {
        assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    }
    let passed = firewalls.each_ref().map(counted);
    assert_eq!(passed.iter().sum::<u32>(), 24, "each flow once, with its own destination");
    assert!(passed.iter().all(|n| *n > 0), "{passed:?}");
    for _ in 0..12 {
        assert_eq!(ask(&three, "10.1.1.4:80"), "one sees 10.3.1.4 at 10.1.1.4");
        assert_eq!(ask(&one, "10.1.2.4:80"), "two sees 10.1.1.4 at 10.1.2.4", "back where it was");
        assert_eq!(ask(&one, "10.2.1.4:80"), "shared sees 10.1.1.4 at 10.2.1.4");
        assert_eq!(ask(&lab.machine("shared"), "10.1.1.4:80"), "one sees 10.2.1.4 at 10.1.1.4");
    }
    let ping = run(&one, "ping", &["-c", "2", "-i", "0.2", "-W", "1", "10.3.1.4"]);
    assert!(ping.contains(" 2 received"), "{ping}");
    assert!(lab.pass(&healthy(&["fw1", "fw2"]), Scope::All).is_nothing());
}

#[test]
fn firewalls_of_a_hub_are_its_way_out_behind_their_own_groups() {
    let text = hub(ALL_PORTS)
        .replace(
            "vnet w 10.2.0.0/16",
            "nsg n\nin 100 allow * 10.1.0.0/16 * > * *\nin 200 deny * * * > * *\nvnet w 10.2.0.0/16",
        )
        .replace("10.2.9.4 forwards", "10.2.9.4 forwards nsg n public 20.5.5.4")
        .replace("10.2.9.5 forwards", "10.2.9.5 forwards nsg n public 20.5.5.5");
    let mut lab = Lab::new(&text);
    lab.pass(&healthy(&["fw1", "fw2"]), Scope::Changed);
    serve(&lab.internet(), "internet", 80);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "9.9.9.9:80"), "nothing", "nobody translates");
    for name in ["fw1", "fw2"] {
        guard(&lab.machine(name));
    }
    lab.serve("one", &[80]);
    lab.serve("three", &[80]);
    for _ in 0..8 {
        assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4", "and answers");
    }
    assert_eq!(ask(&lab.machine("three"), "10.1.1.4:80"), "nothing", "the group denies it");
    for name in ["fw1", "fw2"] {
        masquerade(&lab.machine(name));
    }
    let mut held: Vec<_> =
        (0..24).map(|_| connect(&one, "9.9.9.8:80").expect("an answer")).collect();
    let seen: BTreeSet<String> = held.iter().map(|(_, said)| said.clone()).collect();
    let expected = [4, 5].map(|last| format!("internet sees 20.5.5.{last} at 9.9.9.8"));
    assert_eq!(seen, BTreeSet::from(expected), "answers are no new flows to the firewalls' groups");
    // The front end never sees what comes back: answers are for the firewall, and it sends them on.
    lab.pass(&healthy(&["fw2"]), Scope::Changed);
    for (stream, said) in &mut held {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 8]).unwrap_or_else(|err| panic!("{said} is over: {err}"));
    }
}

#[test]
fn a_firewall_that_fails_keeps_its_flows_and_gets_no_new_ones() {
    let mut lab = lab(ALL_PORTS);
    let one = lab.machine("one");
    let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
    let mut held: Vec<_> =
        (0..16).map(|_| connect(&one, "10.3.1.4:80").expect("an answer")).collect();
    lab.pass(&healthy(&["fw2"]), Scope::Changed);
    for (stream, _) in &mut held {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 5]).expect("the flow lives, by the firewall that knows it");
    }
    for firewall in &firewalls {
        count(firewall, "forward", "ip daddr 10.3.1.4 tcp flags syn");
    }
    for _ in 0..12 {
        assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    }
    assert_eq!(firewalls.each_ref().map(counted), [0, 12]);
    lab.pass(&healthy(&[]), Scope::Changed);
    assert_eq!(ask(&one, "10.3.1.4:80"), "nothing", "nobody is healthy");
    lab.pass(&healthy(&["fw1"]), Scope::Changed);
    assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    assert_ne!(counted(&firewalls[0]), 0);
}

#[test]
fn only_what_a_rule_is_for_passes() {
    let lab = lab("rule front fws tcp 80 to 80 probe p");
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    assert_eq!(ask(&one, "10.3.1.4:81"), "nothing");
    let ping = run(&one, "ping", &["-c", "1", "-W", "1", "10.3.1.4"]);
    assert!(ping.contains(" 0 received"), "{ping}");
    let listing =
        run(&lab.vnet("w"), "nft", &["list", "chain", "ip", "aksnet", "front-10-2-9-100"]);
    assert!(!listing.contains("packets 0"), "dropped, and counted: {listing}");
}

#[test]
fn a_client_meets_one_firewall_when_the_rule_says_so() {
    let lab = lab("rule front fws all 0 to 0 probe p by-source");
    let (one, three) = (lab.machine("one"), lab.machine("three"));
    let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
    for firewall in &firewalls {
        count(firewall, "forward", "ip daddr 10.3.1.4 tcp flags syn");
    }
    for _ in 0..12 {
        assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    }
    let passed = firewalls.each_ref().map(counted);
    assert!(passed == [12, 0] || passed == [0, 12], "{passed:?}");
    assert_eq!(ask(&three, "10.1.1.4:80"), "one sees 10.3.1.4 at 10.1.1.4");
}

#[test]
fn a_client_meets_one_firewall_of_each_protocol_when_the_rule_says_so() {
    let lab = lab("rule front fws all 0 to 0 probe p by-source-and-protocol");
    let one = lab.machine("one");
    let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
    for firewall in &firewalls {
        count(firewall, "forward", "ip daddr 10.3.1.4 tcp flags syn");
    }
    for _ in 0..12 {
        assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    }
    let passed = firewalls.each_ref().map(counted);
    assert!(passed == [12, 0] || passed == [0, 12], "{passed:?}");
    let listing = run(&lab.vnet("w"), "nft", &["list", "table", "ip", "aksnet"]);
    assert!(listing.contains("jhash ip saddr . ip daddr . meta l4proto mod 2"), "{listing}");
}

#[test]
fn the_front_end_itself_is_still_one() {
    let lab = lab("rule front fws tcp 80 to 8080 probe p");
    for name in ["fw1", "fw2"] {
        lab.serve(name, &[8080]);
    }
    let seen: BTreeSet<String> =
        (0..24).map(|_| ask(&lab.machine("one"), "10.2.9.100:80")).collect();
    let both = [("fw1", 4), ("fw2", 5)];
    let both = both.map(|(name, last)| format!("{name} sees 10.1.1.4 at 10.2.9.{last}"));
    assert_eq!(seen, BTreeSet::from(both), "though a route leads to it by way of itself");
}

#[test]
fn a_member_that_does_not_forward_gets_nothing() {
    let text = hub(ALL_PORTS).replace("vm fw2 10.2.9.5 forwards", "vm fw2 10.2.9.5");
    let mut lab = Lab::new(&text);
    lab.pass(&healthy(&["fw1", "fw2"]), Scope::Changed);
    lab.serve("three", &[80]);
    run(&lab.machine("fw2"), "sysctl", &["-q", "net.ipv4.ip_forward=1"]);
    count(&lab.machine("fw2"), "prerouting", "ip daddr 10.3.1.4");
    let one = lab.machine("one");
    let seen: BTreeSet<String> = (0..12).map(|_| ask(&one, "10.3.1.4:80")).collect();
    let expected = ["nothing", "three sees 10.1.1.4 at 10.3.1.4"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected), "its share is lost");
    assert_eq!(counted(&lab.machine("fw2")), 0);
}

#[test]
fn machines_come_and_go_beside_firewalls_by_what_they_change() {
    let text = hub("rule front fws all 0 to 0");
    let mut lab = Lab::new(&text);
    let more = text.replace("vm one 10.1.1.4", "vm one 10.1.1.4\nvm more 10.1.1.5");
    let fewer = more.replace("vm fw2 10.2.9.5 forwards", "vm fw2 10.2.9.5");
    for (now, is_told) in [(&more, true), (&text, true), (&more, true), (&fewer, false)] {
        let told = change(&lab.name, &lab.region, &region(now), &Health::default());
        assert_eq!(told.is_some(), is_told, "a NIC alone is told, a member less is another rule");
        lab.becomes(now);
        assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
    }
    lab.serve("three", &[80]);
    guard(&lab.machine("fw1"));
    let more = lab.machine("more");
    let seen: BTreeSet<String> = (0..12).map(|_| ask(&more, "10.3.1.4:80")).collect();
    assert!(seen.contains("three sees 10.1.1.5 at 10.3.1.4"), "{seen:?}");
}

/// One network, with a front end at `10.1.2.100` whose members answer, and one whose members are firewalls.
fn one_network(route: &str) -> String {
    format!(
        "vnet v 10.1.0.0/16,fd00:1::/48
         table t
         {route}
         table back
         route 10.1.1.0/24 via 10.1.9.100
         route fd00:1:0:1::/64 via fd00:1:0:9::100
         subnet a 10.1.1.0/24,fd00:1:0:1::/64 table t
         subnet b 10.1.2.0/24,fd00:1:0:2::/64 table back
         subnet nva 10.1.9.0/24,fd00:1:0:9::/64
         vm one 10.1.1.4,fd00:1:0:1::4
         vm web 10.1.2.4,fd00:1:0:2::4
         vm fw1 10.1.9.4,fd00:1:0:9::4 forwards
         vm fw2 10.1.9.5,fd00:1:0:9::5 forwards
         balancer web
         frontend front 10.1.2.100
         pool webs web
         rule front webs tcp 80
         rule front webs tcp 90 to 8080
         balancer six
         frontend front fd00:1:0:2::100
         pool webs web
         rule front webs tcp 80
         rule front webs tcp 90 to 8080
         balancer firewalls
         frontend front 10.1.9.100
         pool fws fw1 fw2
         rule front fws all 0 to 0
         balancer firewalls-six
         frontend front fd00:1:0:9::100
         pool fws fw1 fw2
         rule front fws all 0 to 0"
    )
}

/// That network, with servers; `web` owns the front end's addresses, as a node does.
fn lab_of_one(route: &str) -> Lab {
    let lab = Lab::new(&one_network(route));
    let web = lab.machine("web");
    run(&web, "ip", &["addr", "add", "10.1.2.100/32", "dev", "lo"]);
    crate::lab::add_ipv6(&web, "fd00:1:0:2::100", "lo");
    lab.serve("web", &[80, 8080]);
    for name in ["fw1", "fw2"] {
        guard(&lab.machine(name));
    }
    lab
}

#[test]
fn a_front_end_that_a_route_contains_is_found_behind_the_firewalls() {
    for hop in ["10.1.9.100", "10.1.9.4"] {
        let mut lab = lab_of_one(&format!("route 10.1.2.0/24 via {hop}"));
        // A machine as the next hop of one direction needs the same for the other one.
        if hop == "10.1.9.4" {
            lab.becomes(
                &one_network("route 10.1.2.0/24 via 10.1.9.4")
                    .replace("route 10.1.1.0/24 via 10.1.9.100", "route 10.1.1.0/24 via 10.1.9.4"),
            );
        }
        let one = lab.machine("one");
        let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
        for firewall in &firewalls {
            count(firewall, "forward", "ip daddr 10.1.2.100 tcp flags syn");
        }
        for _ in 0..12 {
            assert_eq!(ask(&one, "10.1.2.100:80"), "web sees 10.1.1.4 at 10.1.2.100", "{hop}");
            assert_eq!(ask(&one, "10.1.2.100:90"), "web sees 10.1.1.4 at 10.1.2.4", "{hop}");
            assert_eq!(ask(&one, "10.1.2.4:80"), "web sees 10.1.1.4 at 10.1.2.4", "{hop}");
        }
        let passed: u32 = firewalls.iter().map(counted).sum();
        assert_eq!(passed, 24, "with the front end's address");
        assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
    }
}

#[test]
fn the_longest_route_decides_whether_a_front_end_is_found() {
    for (route, is_found) in [
        ("route 10.1.0.0/16 none", false),
        ("route 10.1.2.100/32 none", false),
        ("route 10.1.2.100/32 internet", false),
        ("route 10.1.2.100/32 via 10.1.2.4", false),
        ("route 10.1.2.100/32 local", true),
        // Shorter than the network's own.
        ("route 10.0.0.0/8 none", true),
        ("route 10.1.2.0/24 none\nroute 10.1.2.100/32 local", true),
    ] {
        let lab = Lab::new(&format!(
            "vnet v 10.1.0.0/16
             table t
             {route}
             subnet a 10.1.1.0/24 table t
             subnet b 10.1.2.0/24
             vm one 10.1.1.4
             vm web 10.1.2.4
             vm other 10.1.2.5
             balancer web
             frontend front 10.1.2.100
             pool webs web
             rule front webs tcp 90 to 8080"
        ));
        lab.serve("web", &[8080]);
        let seen = ask(&lab.machine("one"), "10.1.2.100:90");
        let expected = if is_found { "web sees 10.1.1.4 at 10.1.2.4" } else { "nothing" };
        assert_eq!(seen, expected, "{route}");
        let seen = ask(&lab.machine("other"), "10.1.2.100:90");
        assert_eq!(seen, "web sees 10.1.2.5 at 10.1.2.4", "{route}: of another subnet");
    }
}

#[test]
fn firewalls_guard_ipv6_as_they_do_ipv4() {
    let mut lab = lab_of_one("route fd00:1:0:2::/64 via fd00:1:0:9::100");
    let one = lab.machine("one");
    let firewalls = [lab.machine("fw1"), lab.machine("fw2")];
    for firewall in &firewalls {
        let rules = "add table ip6 counting; add chain ip6 counting c { type filter hook forward priority -400; }; \
             add rule ip6 counting c ip6 daddr fd00:1:0:2::/64 tcp flags syn counter";
        assert_eq!(run(firewall, "nft", &[rules]), "");
    }
    for _ in 0..12 {
        assert_eq!(ask(&one, "[fd00:1:0:2::4]:80"), "web sees fd00:1:0:1::4 at fd00:1:0:2::4");
        assert_eq!(ask(&one, "[fd00:1:0:2::100]:80"), "web sees fd00:1:0:1::4 at fd00:1:0:2::100");
        assert_eq!(ask(&one, "[fd00:1:0:2::100]:90"), "web sees fd00:1:0:1::4 at fd00:1:0:2::4");
    }
    for firewall in &firewalls {
        let listing = run(firewall, "nft", &["list", "chain", "ip6", "counting", "c"]);
        assert!(!listing.contains("packets 0"), "both have a share: {listing}");
    }
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

//! Ways put together from sightings that were written down: what no lab makes at will.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{collections::BTreeMap, time::Duration};

use linux::{
    netfilter::{Event, Fate, Verdict},
    packets::Direction,
    probe::{Kind, Outcome},
};
use vnet::addr::Family;

use super::{
    DSCP, agreement, cilium,
    hops::{self, Decision, Rule, Seen, Told, Turn},
    model::Way,
    said, verdict,
};
use crate::watch::frame::{Inside, Packet, flags};

const WEB: [u8; 4] = [10, 1, 0, 4];
const DB: [u8; 4] = [10, 1, 1, 4];
const FRONT: [u8; 4] = [10, 1, 1, 9];

fn syn(from: [u8; 4], to: [u8; 4], id: u16) -> Packet {
    Packet {
        source: from.into(),
        destination: to.into(),
        protocol: 6,
        dscp: DSCP,
        id,
        ttl: 64,
        inside: Inside::Tcp { source: 40_000, destination: 80, flags: flags::SYN },
        payload: 0,
    }
}

fn seen(place: usize, at: u64, link: &str, direction: Direction, packet: Packet) -> Seen {
    Seen { place, at: Duration::from_micros(at), link: link.to_owned(), direction, packet }
}

/// The bytes of a packet's headers, as traces have them.
fn headers(packet: &Packet) -> Vec<u8> {
    let std::net::IpAddr::V4(source) = packet.source else { panic!("IPv4") };
    let std::net::IpAddr::V4(destination) = packet.destination else { panic!("IPv4") };
    let Some((from, to)) = packet.ports() else { panic!("ports") };
    let mut bytes = vec![0x45, packet.dscp << 2, 0, 40];
    bytes.extend(packet.id.to_be_bytes());
    bytes.extend([0, 0, 64, 6, 0, 0]);
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags::SYN, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn event(table: &str, chain: &str, fate: Fate, packet: Option<&Packet>) -> Event {
    Event {
        packet: 1,
        table: table.to_owned(),
        chain: chain.to_owned(),
        fate,
        headers: packet.map(headers),
        link_in: None,
        link_out: None,
    }
}

fn told(name: &str, events: Vec<Event>) -> Told {
    let listing = "table ip aksnet { # handle 3\n\tchain gate { # handle 1\n\t\tcounter drop comment \"deny-all\" # handle 7\n\t\tmeta mark set ct mark # handle 8\n\t}\n}\n";
    let other = listing.replace("table ip ", "table ip6 ").replace("deny-all", "deny-six");
    let rules = hops::rules(&[listing, &other].concat(), Family::V4);
    assert_eq!(
        rules.len(),
        2,
        "chains and tables are no rules, and those of IPv6 are met by others"
    );
    let links = BTreeMap::from([("nic-1".to_owned(), "vm/web".to_owned())]);
    let own_table = "own".to_owned();
    Told { name: name.to_owned(), links, rules, events, own_table, ..Told::default() }
}

fn way(passes: bool, denied_by: Option<&str>, to: [u8; 4]) -> Way {
    Way {
        steps: Vec::new(),
        denied_by: denied_by.map(str::to_owned),
        end: String::new(),
        through: Vec::new(),
        delivered_to: passes.then(|| "vm/db".to_owned()),
        passes,
        ends_in_network: false,
        destination: to.into(),
    }
}

fn rule(handle: u64, verdict: Verdict) -> Fate {
    Fate::Rule { handle, verdict }
}

#[test]
fn a_packet_that_a_rule_drops_ends_there_with_the_rules_name() {
    let packet = syn(WEB, DB, 7);
    let again = syn(WEB, DB, 8);
    let sightings = [
        seen(0, 10, "eth0", Direction::Out, packet.clone()),
        seen(1, 11, "nic-1", Direction::In, packet.clone()),
        // What the kernel sends again is another packet.
        seen(0, 1_000_010, "eth0", Direction::Out, again.clone()),
        seen(1, 1_000_011, "nic-1", Direction::In, again.clone()),
    ];
    let events = |packet: &Packet| {
        vec![
            event("own", "incoming", Fate::Policy(Verdict::Accept), Some(packet)),
            event("aksnet", "gate", rule(7, Verdict::Drop), Some(packet)),
        ]
    };
    let at_vnet = [events(&packet), events(&again)].concat();
    let told = [told("vm/web", Vec::new()), told("vnet/v", at_vnet)];
    let path = hops::path(&sightings, &told, DSCP, 6);
    let places: Vec<_> = path.hops.iter().map(|hop| (hop.place.as_str(), hop.dropped)).collect();
    assert_eq!(places, [("vm/web", false), ("vnet/v", true)]);
    assert_eq!(path.hops[1].link_in.as_deref(), Some("nic-1 (vm/web)"));
    assert_eq!(path.hops[1].rules.len(), 1, "once, not again for what was sent again");
    assert_eq!(
        verdict(Outcome::Silence, &path, false, &[]),
        "dropped at vnet/v by `deny-all` (gate)"
    );
    let agrees = |ways: &[Way]| agreement(&path, ways).1;
    assert_eq!(agrees(&[way(false, Some("deny-all"), DB)]), Some(true));
    assert_eq!(agrees(&[way(false, Some("deny-else"), DB)]), Some(false), "another rule");
    assert_eq!(agrees(&[way(false, None, DB)]), Some(true), "dropped, by no rule of a group");
    assert_eq!(agrees(&[way(true, None, DB)]), Some(false));
}

#[test]
fn a_translation_shows_as_addresses_before_and_after_and_answers_turn_around() {
    let (before, after) = (syn(WEB, FRONT, 7), syn(WEB, DB, 7));
    let answer = |from, to| Packet {
        dscp: 0,
        inside: Inside::Tcp { source: 80, destination: 40_000, flags: flags::SYN | flags::ACK },
        ..syn(from, to, 0)
    };
    let sightings = [
        seen(0, 10, "eth0", Direction::Out, before.clone()),
        seen(1, 11, "nic-1", Direction::In, before.clone()),
        seen(1, 12, "nic-2", Direction::Out, after.clone()),
        seen(2, 13, "eth0", Direction::In, after.clone()),
        seen(2, 14, "eth0", Direction::Out, answer(DB, WEB)),
        seen(1, 15, "nic-2", Direction::In, answer(DB, WEB)),
        // Somebody else's.
        seen(2, 16, "eth0", Direction::Out, answer(DB, [10, 1, 0, 77])),
    ];
    let told = ["vm/web", "vnet/v", "vm/db"].map(|name| told(name, Vec::new()));
    let path = hops::path(&sightings, &told, DSCP, 6);
    let vnet = &path.hops[1];
    assert_eq!(vnet.before, "10.1.0.4:40000 > 10.1.1.9:80");
    assert_eq!(vnet.after, "10.1.0.4:40000 > 10.1.1.4:80");
    assert_eq!(
        path.answer,
        [(2, "tcp syn ack".to_owned()), (1, "tcp syn ack".to_owned())],
        "and it never got back to who sent the probe"
    );
    let names = ["vm/web", "vnet/v", "vm/db"].map(str::to_owned);
    assert_eq!(
        verdict(Outcome::Silence, &path, true, &names),
        "it arrived at vm/db, and the answer (tcp syn ack) was last seen at vnet/v"
    );
    // Of two members the model's way is the one that was chosen.
    let other = Way { delivered_to: Some("vm/other".to_owned()), ..way(true, None, [10, 1, 1, 5]) };
    let ways = [other.clone(), way(true, None, DB)];
    let (taken, agree) = agreement(&path, &ways);
    assert_eq!((taken.unwrap().destination, agree), (DB.into(), Some(true)));
    assert_eq!(agreement(&path, &[other]).1, Some(false), "a member that it must not choose");
}

#[test]
fn a_network_that_is_passed_twice_is_two_hops() {
    let packet = syn(WEB, DB, 7);
    let sightings = [
        seen(0, 1, "eth0", Direction::Out, packet.clone()),
        seen(1, 2, "nic-1", Direction::In, packet.clone()),
        seen(1, 3, "nic-3", Direction::Out, packet.clone()),
        // An appliance that nobody watches is between.
        seen(1, 5, "nic-3", Direction::In, packet.clone()),
        seen(1, 6, "nic-2", Direction::Out, packet.clone()),
    ];
    let pass = |verdict: Verdict| {
        vec![
            event("own", "incoming", Fate::Policy(Verdict::Accept), Some(&packet)),
            event("aksnet", "gate", rule(8, verdict), None),
        ]
    };
    let events = [pass(Verdict::Continue), pass(Verdict::Accept)].concat();
    let told = [told("vm/web", Vec::new()), told("vnet/v", events)];
    let path = hops::path(&sightings, &told, DSCP, 6);
    let verdicts: Vec<_> =
        path.hops.iter().flat_map(|hop| &hop.rules).map(|rule| rule.verdict.as_str()).collect();
    assert_eq!(path.hops.len(), 3);
    assert_eq!(verdicts, ["continue", "accept"], "each pass has its own rules");
}

#[test]
fn what_is_dropped_before_any_link_is_seen_by_its_rules_alone() {
    let packet = syn(WEB, DB, 7);
    let events = vec![
        event("own", "outgoing", Fate::Policy(Verdict::Accept), Some(&packet)),
        event("aksnet", "gate", rule(7, Verdict::Drop), Some(&packet)),
    ];
    let path = hops::path(&[], &[told("vm/web", events)], DSCP, 6);
    assert_eq!(path.hops.len(), 1);
    assert!(path.hops[0].dropped);
    assert_eq!(path.hops[0].before, "10.1.0.4:40000 > 10.1.1.4:80");
    let nothing =
        hops::path(&[], &[told("vm/web", Vec::new())], DSCP, Kind::Tcp.protocol(Family::V4));
    assert_eq!(nothing.hops, []);
    assert_eq!(verdict(Outcome::Silence, &nothing, false, &[]), "it never left");
}

/// IPv6 has no number of a packet: those of a flow share its label.
#[test]
fn of_a_flow_of_ipv6_the_first_packet_alone_is_the_probe() {
    let (source, destination) = ("fd00::4".parse().unwrap(), "fd00::5".parse().unwrap());
    let packet = |flags| {
        let mut bytes = vec![0x60 | DSCP >> 2, DSCP << 6, 0x12, 0x34, 0, 20, 6, 64];
        let octets = |address: std::net::Ipv6Addr| address.octets();
        bytes.extend(octets(source));
        bytes.extend(octets(destination));
        bytes.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let at = |flags| {
        let entered = Fate::Policy(Verdict::Accept);
        let event =
            Event { headers: Some(packet(flags)), ..event("own", "incoming", entered, None) };
        [event, self::event("aksnet", "gate", rule(8, Verdict::Accept), None)]
    };
    let events = [at(flags::SYN), at(flags::ACK), at(flags::FIN | flags::ACK)].concat();
    let (syn, fin) = [flags::SYN, flags::FIN | flags::ACK]
        .map(|flags| crate::watch::frame::packet(&packet(flags)).unwrap())
        .into();
    assert_eq!((syn.dscp, syn.id, fin.id), (DSCP, 0x1234, 0x1234));
    let sightings = [
        seen(0, 1, "nic-1", Direction::In, syn.clone()),
        seen(0, 2, "nic-2", Direction::Out, syn),
        seen(0, 9, "nic-1", Direction::In, fin),
    ];
    let path = hops::path(&sightings, &[told("vnet/v", events)], DSCP, 6);
    assert_eq!(path.hops.len(), 1);
    assert_eq!(path.hops[0].rules.len(), 1);
    assert_eq!(path.hops[0].before, "[fd00::4]:40000 > [fd00::5]:80");
}

fn decision(packet: &Packet, turn: Turn, name: &str, said: &str, is_drop: bool) -> Decision {
    let rule = Rule {
        table: "Cilium".to_owned(),
        chain: String::new(),
        gate: Some(format!("Cilium, {}", if turn == Turn::First { "egress" } else { "ingress" })),
        name: Some(name.to_owned()),
        text: None,
        verdict: said.to_owned(),
        is_drop,
    };
    Decision { packet: packet.clone(), turn, rule }
}

#[test]
fn what_policies_decide_stands_around_the_rules_of_the_node() {
    let (packet, again) = (syn(WEB, DB, 7), syn(WEB, DB, 8));
    let sightings = [
        seen(0, 10, "eth0", Direction::Out, packet.clone()),
        seen(1, 11, "lxc1", Direction::In, packet.clone()),
    ];
    let events = vec![
        event("own", "incoming", Fate::Policy(Verdict::Accept), Some(&packet)),
        event("aksnet", "gate", rule(8, Verdict::Continue), Some(&packet)),
    ];
    let mut node = told("node/n", events);
    node.decisions = vec![
        decision(&packet, Turn::First, "NetworkPolicy default/out", "allow", false),
        decision(&packet, Turn::Last, "NetworkPolicy default/deny", cilium::DEFAULT_DENY, true),
        // Of what was sent again.
        decision(&again, Turn::Last, "NetworkPolicy default/deny", cilium::DEFAULT_DENY, true),
    ];
    let pods = told("pod/default/web", Vec::new());
    let path = hops::path(&sightings, &[pods, node], DSCP, 6);
    let hop = &path.hops[1];
    let names: Vec<_> = hop.rules.iter().map(|rule| rule.name.as_deref()).collect();
    assert_eq!(
        names,
        [Some("NetworkPolicy default/out"), None, Some("NetworkPolicy default/deny")]
    );
    assert!(hop.dropped);
    assert_eq!(
        verdict(Outcome::Silence, &path, false, &[]),
        "dropped at node/n by `NetworkPolicy default/deny` (Cilium, ingress)"
    );
    let words: Vec<String> = hop.rules.iter().map(|rule| said(rule, "it")).collect();
    assert_eq!(words, ["it allows", "it", "no rule of it allows it"]);
}

#[test]
fn what_is_dropped_once_it_is_translated_shows_what_it_had_become() {
    let (before, after) = (syn(WEB, FRONT, 7), syn(WEB, DB, 7));
    let sightings = [seen(0, 10, "eth0", Direction::In, before)];
    let mut node = told("node/n", Vec::new());
    node.decisions = vec![decision(&after, Turn::Last, "deny", "deny", true)];
    let path = hops::path(&sightings, &[node], DSCP, 6);
    assert_eq!(path.hops[0].before, "10.1.0.4:40000 > 10.1.1.9:80");
    assert_eq!(path.hops[0].after, "10.1.0.4:40000 > 10.1.1.4:80");
    // No link saw it at all.
    let mut node = told("node/n", Vec::new());
    node.decisions = vec![decision(&after, Turn::Last, "deny", "deny", true)];
    let path = hops::path(&[], &[node], DSCP, 6);
    assert_eq!((path.hops.len(), path.hops[0].dropped), (1, true));
}

#[test]
fn the_model_knows_where_a_packet_got_first_not_where_a_node_sent_it_on() {
    let (packet, on) = (syn(WEB, FRONT, 7), syn([10, 1, 2, 4], DB, 7));
    let sightings = [
        seen(0, 1, "eth0", Direction::Out, packet.clone()),
        seen(1, 2, "nic-1", Direction::In, packet.clone()),
        seen(1, 3, "nic-2", Direction::Out, packet.clone()),
        seen(2, 4, "eth0", Direction::In, packet.clone()),
        seen(2, 5, "eth0", Direction::Out, on.clone()),
        seen(1, 6, "nic-2", Direction::In, on.clone()),
    ];
    let arrives = [
        seen(1, 7, "nic-3", Direction::Out, on.clone()),
        seen(3, 8, "eth0", Direction::In, on.clone()),
    ];
    let told = ["vm/web", "vnet/v", "node/one", "node/two"].map(|name| told(name, Vec::new()));
    let to = |name: &str| Way { delivered_to: Some(name.to_owned()), ..way(true, None, FRONT) };
    let ways = [to("node/two"), to("node/one")];
    let all = [&sightings[..], &arrives[..]].concat();
    let path = hops::path(&all, &told, DSCP, 6);
    assert_eq!(path.hops.len(), 5);
    let (taken, agree) = agreement(&path, &ways);
    assert_eq!(taken.unwrap().delivered_to.as_deref(), Some("node/one"));
    assert_eq!(agree, Some(true));
    // What becomes of it then is not the model's.
    let path = hops::path(&sightings, &told, DSCP, 6);
    assert_eq!(agreement(&path, &ways).1, Some(true));
    assert_eq!(agreement(&path, &[to("node/three")]).1, Some(false));
}

#[test]
fn the_model_knows_a_packet_until_an_appliance_translates_it_and_by_which_one_it_went() {
    let (packet, on) = (syn(WEB, DB, 7), syn([10, 1, 2, 4], DB, 7));
    let through = |name: &str, way: Way| Way { through: vec![name.to_owned()], ..way };
    for (sent_on, no_way_out) in [(&on, Some(true)), (&packet, Some(false))] {
        let sightings = [
            seen(0, 1, "eth0", Direction::Out, packet.clone()),
            seen(1, 2, "nic-1", Direction::In, packet.clone()),
            seen(1, 3, "nic-2", Direction::Out, packet.clone()),
            seen(2, 4, "eth0", Direction::In, packet.clone()),
            seen(2, 5, "eth0", Direction::Out, sent_on.clone()),
            seen(1, 6, "nic-2", Direction::In, sent_on.clone()),
            seen(1, 7, "uplink", Direction::Out, sent_on.clone()),
            seen(3, 8, "v-1", Direction::In, sent_on.clone()),
        ];
        let told = ["vm/web", "vnet/v", "vm/fw2", "internet"].map(|name| told(name, Vec::new()));
        let path = hops::path(&sightings, &told, DSCP, 6);
        assert_eq!(path.hops.len(), 5);
        let dropped = ["vm/fw1", "vm/fw2"].map(|name| through(name, way(false, None, DB)));
        let (taken, agree) = agreement(&path, &dropped);
        assert_eq!(agree, no_way_out, "the sender's own address has no way out");
        if agree == Some(true) {
            assert_eq!(taken.unwrap().through, ["vm/fw2"]);
        }
        assert_eq!(agreement(&path, &dropped[..1]).1, Some(false), "the other firewall");
        let out = Way { delivered_to: None, ..way(true, None, DB) };
        let passes = ["vm/fw1", "vm/fw2"].map(|name| through(name, out.clone()));
        let (taken, agree) = agreement(&path, &passes);
        assert_eq!((&taken.unwrap().through[0][..], agree), ("vm/fw2", Some(true)));
    }
}

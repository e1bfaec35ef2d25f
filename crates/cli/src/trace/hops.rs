//! The way of one packet, put together from what was seen of it: frames on links, and stations in rules.
//! A plain function from values to values. Not here: seeing (see [`super::watcher`]).

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use linux::{
    netfilter::{Event, Fate, Verdict},
    packets::Direction,
};
use serde::Serialize;
use vnet::{addr::Family, host::names};

use crate::watch::frame::{self, Inside, Packet, flags};

/// A frame that a tap gave.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Which of the watched places.
    pub(super) place: usize,
    pub(super) at: Duration,
    pub(super) link: String,
    pub(super) direction: Direction,
    pub(super) packet: Packet,
}

/// A place that was watched: its name, what its links and rules are called, and the stations told there.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) name: String,
    /// Who is behind a link.
    pub(super) links: BTreeMap<String, String>,
    /// Rules by table and number, as `nft` writes them.
    pub(super) rules: BTreeMap<(String, u64), String>,
    /// Of our own packets, in order.
    pub(super) events: Vec<Event>,
    /// Security groups by the hash that chains are named after.
    pub(super) groups: BTreeMap<String, String>,
    /// The table whose stations mean that a packet enters.
    pub(super) own_table: String,
    /// What was decided there by others than `nft`'s rules, in order.
    pub(super) decisions: Vec<Decision>,
}

/// Something that others than `nft`'s rules decided on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// As it then was.
    pub(super) packet: Packet,
    pub(super) turn: Turn,
    pub(super) rule: Rule,
}

/// When something is decided, beside the rules of the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before them, as the packet comes in.
    First,
    /// After them, as it goes on.
    Last,
}

/// One namespace that the packet passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hop {
    pub(super) place: String,
    #[serde(skip)]
    pub(super) place_number: usize,
    /// The link that it came in on; `None` where it was sent.
    pub(super) link_in: Option<String>,
    /// The link that it went out on; `None` where it stayed.
    pub(super) link_out: Option<String>,
    /// Sender and receiver as it came.
    pub(super) before: String,
    /// Sender and receiver as it went on, or was delivered.
    pub(super) after: String,
    #[serde(skip)]
    pub(super) first: Option<Packet>,
    #[serde(skip)]
    pub(super) last: Option<Packet>,
    pub(super) rules: Vec<Rule>,
    /// Whether a rule dropped it here.
    pub(super) dropped: bool,
}

/// A rule that it met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    pub(super) table: String,
    pub(super) chain: String,
    /// The network security group and its list, when the rule is one's: `web-nsg, inbound`.
    pub(super) gate: Option<String>,
    /// The rule's comment: a security rule's name, or why it drops.
    pub(super) name: Option<String>,
    /// As `nft` writes it.
    pub(super) text: Option<String>,
    pub(super) verdict: String,
    #[serde(skip)]
    pub(super) is_drop: bool,
}

/// Everything that was seen of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) hops: Vec<Hop>,
    /// Where its answer passed: place, what it was.
    pub(super) answer: Vec<(usize, String)>,
}

/// Puts together the way of the probe that is marked with `dscp`: the first one, not what the kernel sent again.
pub(super) fn path(seen: &[Seen], told: &[Told], dscp: u8, protocol: u8) -> Path {
    let mut ours: Vec<&Seen> =
        seen.iter().filter(|seen| is_probe(&seen.packet, dscp, protocol)).collect();
    ours.sort_by_key(|seen| seen.at);
    let first = ours.first().map(|seen| seen.packet.id);
    let by_rules = || {
        let packets = told.iter().flat_map(|told| &told.events).filter_map(headers);
        let decided = told.iter().flat_map(|told| &told.decisions).map(|it| it.packet.clone());
        packets
            .chain(decided)
            .find(|packet| is_probe(packet, dscp, protocol))
            .map(|packet| packet.id)
    };
    let Some(id) = first.or_else(by_rules) else {
        return Path { hops: Vec::new(), answer: Vec::new() };
    };
    ours.retain(|seen| seen.packet.id == id);
    let mut hops: Vec<Hop> = Vec::new();
    for seen in &ours {
        let link = describe(&told[seen.place], &seen.link);
        match hops.last_mut() {
            Some(hop)
                if hop.place_number == seen.place
                    && !(hop.link_out.is_some() && seen.direction == Direction::In) =>
            {
                match seen.direction {
                    // A bridge hands up what a port took in.
                    Direction::In => hop.link_in = hop.link_in.take().or(Some(link)),
                    Direction::Out => hop.link_out = Some(link),
                }
                hop.last = Some(seen.packet.clone());
            }
            _ => hops.push(Hop {
                link_in: (seen.direction == Direction::In).then(|| link.clone()),
                link_out: (seen.direction == Direction::Out).then_some(link),
                ..Hop::new(&told[seen.place].name, seen.place, Some(seen.packet.clone()))
            }),
        }
    }
    for (number, told) in told.iter().enumerate() {
        let is_ours = |packet: &Packet| packet.id == id && is_probe(packet, dscp, protocol);
        add_rules(&mut hops, number, told, is_ours);
        add_decisions(&mut hops, number, told, id);
    }
    for hop in &mut hops {
        let ends = |packet: &Option<Packet>| packet.as_ref().map(Packet::ends).unwrap_or_default();
        (hop.before, hop.after) = (ends(&hop.first), ends(&hop.last));
    }
    let answer = answer(seen, &ours, protocol);
    Path { hops, answer }
}

impl Hop {
    fn new(name: &str, number: usize, packet: Option<Packet>) -> Self {
        Self {
            place: name.to_owned(),
            place_number: number,
            link_in: None,
            link_out: None,
            before: String::new(),
            after: String::new(),
            first: packet.clone(),
            last: packet,
            rules: Vec::new(),
            dropped: false,
        }
    }
}

/// Gives the hops at one place the rules that were met there. What else belongs to the same flow may have its number, too.
fn add_rules(hops: &mut Vec<Hop>, number: usize, told: &Told, is_ours: impl Fn(&Packet) -> bool) {
    let mut passes: Vec<(Option<Packet>, Vec<&Event>)> = Vec::new();
    for event in &told.events {
        // Its own packet's headers are told once for each hook; the first hook is our own table's.
        if event.table == told.own_table && event.headers.is_some() {
            passes.push((headers(event), Vec::new()));
        }
        if let Some((_, events)) = passes.last_mut() {
            events.push(event);
        }
    }
    passes.retain(|(packet, _)| packet.as_ref().is_some_and(&is_ours));
    let here: Vec<usize> =
        (0..hops.len()).filter(|&hop| hops[hop].place_number == number).collect();
    for (n, (packet, events)) in passes.into_iter().enumerate() {
        let at = here.get(n).copied().unwrap_or_else(|| {
            // No link carried it: it was sent, and dropped before one could.
            hops.push(Hop::new(&told.name, number, packet.clone()));
            hops.len() - 1
        });
        let hop = &mut hops[at];
        // Where it was sent, rules may have changed it before a link saw it.
        if hop.link_in.is_none() {
            hop.first = packet.or(hop.first.take());
        }
        // Where it stays, the last hook knows the addresses that the receiver sees.
        if hop.link_out.is_none() {
            hop.last = events.iter().rev().find_map(|event| headers(event)).or(hop.last.take());
        }
        for event in events.into_iter().filter(|event| event.table != told.own_table) {
            hop.rules.extend(rule(told, event));
        }
        hop.dropped = hop.rules.iter().any(|rule| rule.is_drop);
    }
}

/// Gives the hops at one place what others decided there.
fn add_decisions(hops: &mut Vec<Hop>, number: usize, told: &Told, id: u16) {
    let mut first = 0;
    for decision in told.decisions.iter().filter(|decision| decision.packet.id == id) {
        let has = |packet: &Option<Packet>| {
            packet.as_ref().is_some_and(|it| it.ends() == decision.packet.ends())
        };
        let here = |hop: &Hop| hop.place_number == number;
        let at = hops
            .iter()
            .rposition(|hop| here(hop) && (has(&hop.first) || has(&hop.last)))
            .or_else(|| hops.iter().rposition(here))
            .unwrap_or_else(|| {
                hops.push(Hop::new(&told.name, number, Some(decision.packet.clone())));
                hops.len() - 1
            });
        let hop = &mut hops[at];
        match decision.turn {
            Turn::First => {
                hop.rules.insert(first.min(hop.rules.len()), decision.rule.clone());
                first += 1;
            }
            Turn::Last => hop.rules.push(decision.rule.clone()),
        }
        if decision.rule.is_drop {
            hop.dropped = true;
            // It may have been translated just before, and no link saw it after.
            if hop.link_out.is_none() {
                hop.last = Some(decision.packet.clone());
            }
        }
    }
}

/// `None` for stations that decide nothing.
fn rule(told: &Told, event: &Event) -> Option<Rule> {
    let (handle, verdict) = match &event.fate {
        Fate::Rule { handle, verdict } => (Some(*handle), verdict),
        Fate::Policy(Verdict::Drop) => (None, &Verdict::Drop),
        Fate::Policy(_) | Fate::Return => return None,
    };
    let text = handle.and_then(|handle| told.rules.get(&(event.table.clone(), handle)));
    let name = match handle {
        None => Some("the chain's policy".to_owned()),
        Some(_) => text.and_then(|text| comment(text)),
    };
    Some(Rule {
        table: event.table.clone(),
        chain: event.chain.clone(),
        gate: names::gate_of(&event.chain).map(|(hash, direction)| {
            let group = told.groups.get(hash).map_or(hash, String::as_str);
            match direction {
                vnet::model::Direction::Inbound => format!("{group}, inbound"),
                vnet::model::Direction::Outbound => format!("{group}, outbound"),
            }
        }),
        name,
        text: text.cloned(),
        verdict: match verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::Continue => "continue".to_owned(),
            Verdict::Return => "return".to_owned(),
            Verdict::Jump(chain) => format!("jump {chain}"),
            Verdict::Goto(chain) => format!("goto {chain}"),
            Verdict::Other(number) => format!("verdict {number}"),
        },
        is_drop: *verdict == Verdict::Drop,
    })
}

fn comment(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("comment \"")?;
    rest.split_once('"').map(|(comment, _)| comment.to_owned())
}

/// The rules of a listing with numbers (`nft -a list ruleset`) that packets of a family meet, by table and number.
/// Tables of the other family may have the same names.
pub(super) fn rules(listing: &str, family: Family) -> BTreeMap<(String, u64), String> {
    let other = match family {
        Family::V4 => "ip6",
        Family::V6 => "ip",
    };
    let mut table = String::new();
    let mut is_met = false;
    let mut rules = BTreeMap::new();
    for line in listing.lines() {
        if let Some(rest) = line.strip_prefix("table ") {
            let mut words = rest.split_whitespace();
            is_met = words.next() != Some(other);
            words.next().unwrap_or_default().clone_into(&mut table);
        } else if is_met
            && let Some((text, handle)) = line.trim().rsplit_once(" # handle ")
            && !text.ends_with('{')
            && let Ok(handle) = handle.parse()
        {
            rules.insert((table.clone(), handle), text.to_owned());
        }
    }
    rules
}

fn headers(event: &Event) -> Option<Packet> {
    event.headers.as_deref().and_then(frame::packet)
}

fn describe(told: &Told, link: &str) -> String {
    match told.links.get(link).filter(|behind| !behind.is_empty()) {
        Some(behind) => format!("{link} ({behind})"),
        None => link.to_owned(),
    }
}

pub(super) fn is_probe(packet: &Packet, dscp: u8, protocol: u8) -> bool {
    packet.dscp == dscp
        && packet.protocol == protocol
        && match packet.inside {
            Inside::Tcp { flags, .. } => flags & (flags::SYN | flags::ACK) == flags::SYN,
            Inside::Icmp { kind, .. } => kind == if protocol == frame::ICMPV6 { 128 } else { 8 },
            Inside::Udp { .. } => true,
            Inside::Other => false,
        }
}

/// Where answers passed: packets the other way round, or errors about the probe, at places that the probe passed.
fn answer(seen: &[Seen], ours: &[&Seen], protocol: u8) -> Vec<(usize, String)> {
    let is_answer = |candidate: &&Seen| {
        ours.iter().filter(|probe| probe.place == candidate.place).any(|probe| {
            let (probe, packet) = (&probe.packet, &candidate.packet);
            let turned = packet.source == probe.destination
                && packet.destination == probe.source
                && packet.protocol == protocol
                && packet.ports() == probe.ports().map(|(from, to)| (to, from));
            match &packet.inside {
                Inside::Icmp { about: Some(about), .. } => {
                    about.source == probe.source && about.destination == probe.destination
                }
                Inside::Icmp { kind, .. } => turned && *kind == echo_reply(&packet.source),
                _ => turned,
            }
        })
    };
    let mut answers: Vec<&Seen> = seen.iter().filter(is_answer).collect();
    answers.sort_by_key(|seen| seen.at);
    let mut places: Vec<(usize, String)> = Vec::new();
    for answer in answers {
        if !places.iter().any(|(place, _)| *place == answer.place) {
            places.push((answer.place, short(&answer.packet)));
        }
    }
    places
}

/// The type of an echo reply in the family of an address (RFC 792, RFC 4443).
fn echo_reply(address: &IpAddr) -> u8 {
    if address.is_ipv6() { 129 } else { 0 }
}

/// An ICMP message without what it is about.
fn bare(inside: &Inside) -> Inside {
    match inside {
        Inside::Icmp { kind, code, id, .. } => {
            Inside::Icmp { kind: *kind, code: *code, id: *id, about: None }
        }
        other => other.clone(),
    }
}

fn short(packet: &Packet) -> String {
    match &packet.inside {
        Inside::Tcp { flags, .. } if flags & flags::RST != 0 => "tcp reset".to_owned(),
        Inside::Tcp { .. } => "tcp syn ack".to_owned(),
        Inside::Udp { .. } => "udp datagram".to_owned(),
        Inside::Icmp { kind, .. } if *kind == echo_reply(&packet.source) => "echo reply".to_owned(),
        Inside::Icmp { about: Some(_), .. } => {
            let text = Packet { inside: bare(&packet.inside), ..packet.clone() }.to_string();
            format!(
                "icmp {} from {}",
                text.rsplit_once(&packet.ends()).map_or("", |(_, what)| what).trim(),
                packet.source
            )
        }
        _ => packet.to_string(),
    }
}

//! Long lists of security rules, cut into maps of intervals, so that a new flow looks into a few maps and at a few
//! rules, whatever the length of the list. Not here: short lists (see [`super::gates`]).
//!
//! A list is cut first by protocol, then by whichever of source, destination and destination port leaves the
//! shortest lists, and so on until few rules are left or cutting helps no more. A part of a list ends at the first
//! rule that everything in it matches. Many parts may have one rule, so each rule that decides is a chain of its own,
//! with its one counter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    gates::{merged, one_of, port_texts, range_texts, verdict},
    ruleset::{ip, line},
};
use crate::{addr::Family, model::RuleProtocol, policy::Rule};

/// Rules in a list from which on it is cut: below, looking at each costs less than the maps
/// (about 35 ns a rule, measured).
pub(super) const LONG: usize = 100;
/// Rules that are looked at one after the other.
const FEW: usize = 8;
/// How much longer than the list all of its parts together may be.
const GROWTH: usize = 40;

/// A packet's protocol, as far as rules tell protocols apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Tcp,
    Udp,
    Icmp,
    Esp,
    Ah,
    Other,
}

/// What a list can be cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Source,
    Destination,
    Port,
}

/// What is known of a packet when it meets a part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    class: Class,
    source: bool,
    destination: bool,
    port: bool,
}

/// A rule with its fields as ranges of numbers, apart and in order; `None` when it matches all.
struct Flat<'r> {
    rule: &'r Rule,
    source: Option<Vec<(u128, u128)>>,
    destination: Option<Vec<(u128, u128)>>,
    port: Option<Vec<(u128, u128)>>,
}

/// Part of a list: numbers of rules, in order.
type Part = Vec<usize>;

/// Numbers from one to another, and the part of a list that they meet.
type Cut = Vec<((u128, u128), Part)>;

struct Writer<'t, 'r> {
    text: &'t mut String,
    name: &'t str,
    family: Family,
    rules: Vec<Flat<'r>>,
    /// Where the packets of a part go, once it is written.
    written: BTreeMap<(Known, Part), String>,
    /// Rules that have a chain of their own.
    used: BTreeSet<usize>,
    left: usize,
}

/// Writes a list as the chain `name`, after `head`, its first rules.
pub(super) fn render(text: &mut String, name: &str, head: &str, rules: &[Rule], family: Family) {
    let flat: Vec<Flat<'_>> = rules.iter().map(|rule| Flat::new(rule, family)).collect();
    let mut writer = Writer {
        text,
        name,
        family,
        left: flat.len() * GROWTH,
        rules: flat,
        written: BTreeMap::new(),
        used: BTreeSet::new(),
    };
    let mut by_class = Vec::new();
    for (class, protocol) in [
        (Class::Tcp, Some("tcp")),
        (Class::Udp, Some("udp")),
        (Class::Icmp, Some("icmp")),
        (Class::Esp, Some("esp")),
        (Class::Ah, Some("ah")),
        (Class::Other, None),
    ] {
        // IPv6 has a protocol of its own for this, which no rule is about.
        if class == Class::Icmp && family == Family::V6 {
            continue;
        }
        // Nothing but TCP and UDP has ports that a rule could name.
        let port = !matches!(class, Class::Tcp | Class::Udp);
        let known = Known { class, source: false, destination: false, port };
        let about = (0..rules.len()).filter(|n| writer.rules[*n].is_about(class));
        let whole = writer.ended(known, about);
        by_class.push((protocol, writer.write(known, whole)));
    }
    let by_protocol: Vec<String> = by_class
        .iter()
        .filter_map(|(protocol, verdict)| Some(format!("{} : {verdict}", (*protocol)?)))
        .collect();
    let used = std::mem::take(&mut writer.used);
    for n in used {
        let rule = verdict(name, rules.get(n).expect("a rule of the list"));
        line(text, format_args!("\tchain {name}-r{n} {{\n\t\t{rule}\n\t}}"));
    }
    line(text, format_args!("\tchain {name} {{"));
    text.push_str(head);
    line(text, format_args!("\t\tmeta l4proto vmap {{ {} }}", by_protocol.join(", ")));
    let other = by_class.pop().map_or_else(String::new, |(_, verdict)| verdict);
    line(text, format_args!("\t\t{other}\n\t}}"));
}

impl<'r> Flat<'r> {
    fn new(rule: &'r Rule, family: Family) -> Self {
        let addresses = |set: &crate::addr::AddressSet| {
            let ranges = set.ranges(family).into_iter();
            let ranges = ranges.map(|(first, last)| (number(first), number(last)));
            (!set.is_all_of(family)).then(|| ranges.collect())
        };
        let ports = &rule.destination_ports;
        let ranges = merged(&ports.any_of).into_iter();
        let port = ranges.map(|range| (range.first.into(), range.last.into())).collect();
        Self {
            source: addresses(&rule.source),
            destination: addresses(&rule.destination),
            port: (!ports.are_all()).then_some(port),
            rule,
        }
    }

    fn is_about(&self, class: Class) -> bool {
        let rule = &self.rule.rule;
        match (rule.protocol, class) {
            (RuleProtocol::Any, Class::Tcp | Class::Udp) => true,
            (RuleProtocol::Any, _) => {
                rule.source_ports.are_all() && self.rule.destination_ports.are_all()
            }
            (RuleProtocol::Tcp, Class::Tcp)
            | (RuleProtocol::Udp, Class::Udp)
            | (RuleProtocol::Icmp, Class::Icmp)
            | (RuleProtocol::Esp, Class::Esp)
            | (RuleProtocol::Ah, Class::Ah) => true,
            _ => false,
        }
    }

    fn ranges(&self, field: Field) -> Option<&[(u128, u128)]> {
        match field {
            Field::Source => self.source.as_deref(),
            Field::Destination => self.destination.as_deref(),
            Field::Port => self.port.as_deref(),
        }
    }

    /// Whether it matches every packet of which this is known.
    fn matches_all(&self, known: Known) -> bool {
        let has_ports = matches!(known.class, Class::Tcp | Class::Udp);
        (known.source || self.source.is_none())
            && (known.destination || self.destination.is_none())
            && (known.port || self.port.is_none())
            && (!has_ports || self.rule.rule.source_ports.are_all())
    }
}

impl Field {
    fn max(self, family: Family) -> u128 {
        match (self, family) {
            (Self::Port, _) => u16::MAX.into(),
            (_, Family::V4) => u32::MAX.into(),
            (_, Family::V6) => u128::MAX,
        }
    }

    fn text(self, family: Family) -> String {
        match self {
            Self::Source => format!("{} saddr", ip(family)),
            Self::Destination => format!("{} daddr", ip(family)),
            Self::Port => "th dport".to_owned(),
        }
    }

    fn range(self, (first, last): (u128, u128), family: Family) -> String {
        let one = |at| match self {
            Self::Source | Self::Destination => address(at, family).to_string(),
            Self::Port => at.to_string(),
        };
        if first == last { one(first) } else { format!("{}-{}", one(first), one(last)) }
    }
}

/// An address as a number of its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// A number of a family as an address.
fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

impl Known {
    fn has(self, field: Field) -> bool {
        match field {
            Field::Source => self.source,
            Field::Destination => self.destination,
            Field::Port => self.port,
        }
    }

    fn with(self, field: Field) -> Self {
        match field {
            Field::Source => Self { source: true, ..self },
            Field::Destination => Self { destination: true, ..self },
            Field::Port => Self { port: true, ..self },
        }
    }
}

impl Writer<'_, '_> {
    /// Rules up to the first that matches everything.
    fn ended(&self, known: Known, rules: impl Iterator<Item = usize>) -> Part {
        let mut part = Vec::new();
        for n in rules {
            part.push(n);
            if self.rules[n].matches_all(known) {
                break;
            }
        }
        part
    }

    /// Writes what becomes of packets that meet `part`, and says where they go.
    fn write(&mut self, known: Known, part: Part) -> String {
        match part.as_slice() {
            [] => return "return".to_owned(),
            [only] if self.rules[*only].matches_all(known) => return self.decide(*only),
            _ => {}
        }
        let key = (known, part);
        if let Some(verdict) = self.written.get(&key) {
            return verdict.clone();
        }
        let (known, part) = key;
        let body = match self.cut(known, &part) {
            Some((field, cut)) => {
                let known = known.with(field);
                let mut elements = Vec::with_capacity(cut.len());
                for (range, part) in cut {
                    let verdict = self.write(known, part);
                    elements.push(format!("{} : {verdict}", field.range(range, self.family)));
                }
                format!("\t\t{} vmap {{ {} }}\n", field.text(self.family), elements.join(", "))
            }
            None => part.iter().map(|n| self.look_at(known, *n)).collect(),
        };
        let chain = format!("{}-n{}", self.name, self.written.len());
        line(self.text, format_args!("\tchain {chain} {{\n{body}\t}}"));
        let verdict = format!("goto {chain}");
        self.written.insert((known, part), verdict.clone());
        verdict
    }

    fn decide(&mut self, n: usize) -> String {
        self.used.insert(n);
        format!("goto {}-r{n}", self.name)
    }

    /// A rule as one of a few. What is known is not looked at again.
    fn look_at(&mut self, known: Known, n: usize) -> String {
        let rule = self.rules[n].rule;
        let mut text = "\t\t".to_owned();
        let mut possible = true;
        for (field, set) in [(Field::Source, &rule.source), (Field::Destination, &rule.destination)]
        {
            if !known.has(field) && !set.is_all_of(self.family) {
                let ranges = range_texts(set, self.family);
                possible &= one_of(&mut text, &field.text(self.family), &ranges).is_some();
            }
        }
        if matches!(known.class, Class::Tcp | Class::Udp) {
            let (source, destination) = (&rule.rule.source_ports, &rule.destination_ports);
            if !source.are_all() {
                possible &= one_of(&mut text, "th sport", &port_texts(source)).is_some();
            }
            if !known.port && !destination.are_all() {
                possible &= one_of(&mut text, "th dport", &port_texts(destination)).is_some();
            }
        }
        if !possible {
            return String::new();
        }
        text + &self.decide(n) + "\n"
    }

    /// The cut that leaves the shortest longest part, if one is worth it.
    fn cut(&mut self, known: Known, part: &[usize]) -> Option<(Field, Cut)> {
        if part.len() <= FEW {
            return None;
        }
        let longest = |cut: &Cut| cut.iter().map(|(_, part)| part.len()).max().unwrap_or(0);
        let (field, cut) = [Field::Source, Field::Destination, Field::Port]
            .into_iter()
            .filter(|field| !known.has(*field))
            .filter_map(|field| Some((field, self.cut_by(known, part, field)?)))
            .min_by_key(|(_, cut)| (longest(cut), cut.len()))?;
        let size: usize = cut.iter().map(|(_, part)| part.len()).sum();
        if longest(&cut) >= part.len() || size > self.left {
            return None;
        }
        self.left -= size;
        Some((field, cut))
    }

    /// `part`, cut wherever one of its rules begins or ends. `None` when the parts get too long.
    fn cut_by(&self, known: Known, part: &[usize], field: Field) -> Option<Cut> {
        let known = known.with(field);
        // Where a rule begins to match, and where it no longer does.
        let mut changes: BTreeMap<u128, Vec<(usize, bool)>> = BTreeMap::from([(0, Vec::new())]);
        let max = field.max(self.family);
        let whole = [(0, max)];
        for n in part {
            for (first, last) in self.rules[*n].ranges(field).unwrap_or(&whole) {
                changes.entry(*first).or_default().push((*n, true));
                if *last < max {
                    changes.entry(last + 1).or_default().push((*n, false));
                }
            }
        }
        let mut matching = BTreeSet::new();
        let mut cut: Cut = Vec::new();
        let mut size = 0;
        for (at, changed) in changes {
            for (n, begins) in changed {
                if begins {
                    matching.insert(n)
                } else {
                    matching.remove(&n)
                };
            }
            let part = self.ended(known, matching.iter().copied());
            if let Some((before, _)) = cut.last_mut() {
                before.1 = at - 1;
            }
            match cut.last_mut() {
                Some((_, last)) if *last == part => {}
                _ => {
                    size += part.len();
                    cut.push(((at, max), part));
                }
            }
            if let Some((range, _)) = cut.last_mut() {
                range.1 = max;
            }
            if size > self.left {
                return None;
            }
        }
        Some(cut)
    }
}

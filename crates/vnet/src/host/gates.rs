//! Network security groups in a virtual network's nftables table: a chain for each list of rules, and which NIC's
//! packets meet which. Not here: what rules mean (see [`crate::policy`]).
//!
//! Each gate is a chain and a decision of its own: what it allows returns and meets the next gate, what it denies
//! is dropped. Allowed at one gate, a flow can still be denied at another.
//!
//! Pods of a pod subnet meet their own subnet's group, everything else that a NIC sends or gets the group of the
//! NIC's own subnet: also what an appliance forwards, and a front end's address.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    cuts, names,
    platform::logged_drop,
    ruleset::{digest, elements, ip, line},
    view::View,
};
use crate::{
    addr::{AddressSet, Family},
    model::{Access, Direction, OverlayRanges, PortRange, Ports, RuleProtocol, Subnet},
    name::ArmId,
    policy::{Gate, Rule},
};

/// A group as it is where it is attached: to default rules, an overlay's pods are part of the network.
type Variant<'a> = (&'a ArmId, Option<OverlayRanges>);

/// The chains that send packets to their gates, with a place of [`super::fronts::Fragments`]. Jumped to from the hooks,
/// in the order in which gates are met.
pub(super) const CHAINS: &str = r#"
	# The sender's NIC, then its subnet. Before routing and load balancing: a packet is as its sender made it.
	chain outbound {
		type filter hook prerouting priority -170; policy accept;
		ct state established,related accept
		iifname vmap @nic_out
		jump subnet_out
	}

	chain subnet_out {
		iifname vmap @pods_out
		iifname vmap @nodes_out
	}

	# The receiver's subnet, then its NIC. A control plane's leg is no part of the network.
	chain inbound {
		ct state established,related accept
$inbound
		iifname "cp-*" accept
		jump subnet_in
		oifname vmap @nic_in
	}

	chain subnet_in {
		oifname vmap @pods_in
		oifname vmap @nodes_in
	}

	# Health probes come from the namespace itself.
	chain probes {
		type filter hook output priority filter; policy accept;
		ct state established,related accept
		jump subnet_in
		oifname vmap @nic_in
	}
"#;

/// Writes the groups' chains, and the maps that [`CHAINS`] look into.
pub(super) fn render(text: &mut String, view: &View<'_>, family: Family) {
    let mut variants: BTreeSet<Variant<'_>> = BTreeSet::new();
    let mut maps: BTreeMap<(&str, Direction), BTreeSet<String>> = BTreeMap::new();
    let mut lists: BTreeMap<(String, Direction), Vec<String>> = BTreeMap::new();
    for port in &view.ports {
        let pod_ranges = port.overlay_ranges();
        let own = view.subnet_of(port.primary);
        let pod_subnets = view.pod_subnets(port);
        let group_of = |subnet: &'_ Subnet| view.group(subnet.security_group.as_ref());
        let nic = view.group(port.nic.security_group.as_ref());
        let subnet = own.and_then(group_of);
        for direction in [Direction::Inbound, Direction::Outbound] {
            let link = &port.link;
            let mut put = |map, element| maps.entry((map, direction)).or_default().insert(element);
            if let Some(group) = nic {
                let chain = names::gate(&group.meta.id, direction, pod_ranges);
                put("nic", format!("\"{link}\" : jump {chain}"));
            }
            if let Some(group) = subnet {
                let chain = names::gate(&group.meta.id, direction, pod_ranges);
                put("nodes", format!("\"{link}\" : goto {chain}"));
            }
            let mut pods_of = Vec::new();
            for (pods, prefix) in
                pod_subnets.iter().filter_map(|it| Some((*it, it.prefix_of(family)?)))
            {
                let verdict = match group_of(pods) {
                    Some(group) => {
                        format!("goto {}", names::gate(&group.meta.id, direction, None))
                    }
                    None if subnet.is_some() => "return".to_owned(),
                    None => continue,
                };
                pods_of.push(format!("{prefix} {verdict}"));
            }
            if !pods_of.is_empty() {
                let chain =
                    format!("pods-{}-{}", way(direction), &digest(&pods_of.join(" "))[..10]);
                put("pods", format!("\"{link}\" : goto {chain}"));
                lists.insert((chain, direction), pods_of);
            }
        }
        variants.extend([nic, subnet].iter().flatten().map(|group| (&group.meta.id, pod_ranges)));
        for pods in pod_subnets {
            variants.extend(group_of(pods).map(|group| (&group.meta.id, None)));
        }
    }
    for direction in [Direction::Outbound, Direction::Inbound] {
        for (group, pod_ranges) in &variants {
            let Some(security) = view.group(Some(*group)) else { continue };
            let gate = Gate::new(view.region, view.vnet, security, *pod_ranges);
            let name = names::gate(group, direction, *pod_ranges);
            line(text, format_args!("\t# {group}"));
            list(text, &name, direction, gate.rules(direction), family);
        }
        for map in ["nic", "nodes", "pods"] {
            let members = maps.remove(&(map, direction)).unwrap_or_default();
            elements(
                text,
                &format!("map {map}_{}", way(direction)),
                "ifname : verdict",
                "",
                &members,
            );
        }
    }
    for ((chain, direction), pods_of) in lists {
        let (link, address) = match direction {
            Direction::Inbound => ("oifname", "daddr"),
            Direction::Outbound => ("iifname", "saddr"),
        };
        line(text, format_args!("\tchain {chain} {{"));
        for pods in pods_of {
            line(text, format_args!("\t\t{} {address} {pods}", ip(family)));
        }
        // What is no pod's is the node's.
        line(text, format_args!("\t\t{link} vmap @nodes_{}", way(direction)));
        line(text, format_args!("\t}}"));
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    }
}

/// A list of rules as a chain.
fn list(text: &mut String, name: &str, direction: Direction, rules: &[Rule], family: Family) {
    let mut head = String::new();
    // The platform's own services have IPv4 addresses.
    if direction == Direction::Outbound && family == Family::V4 {
        // Nothing but a rule that says so is about the platform's own services.
        platform(text, name, rules);
        let platform = format!("{}, {}", names::PLATFORM_ADDRESS, names::METADATA_ADDRESS);
        line(&mut head, format_args!("\t\tip daddr {{ {platform} }} goto {name}-platform"));
    }
    if rules.len() > cuts::LONG {
        return cuts::render(text, name, &head, rules, family);
    }
    line(text, format_args!("\tchain {name} {{"));
    text.push_str(&head);
    for rule in rules {
        write_rule(text, name, rule, family);
    }
    line(text, format_args!("\t}}"));
}

fn platform(text: &mut String, name: &str, rules: &[Rule]) {
    line(text, format_args!("\tchain {name}-platform {{"));
    for rule in rules.iter().filter(|rule| rule.is_for_platform) {
        write_rule(text, name, rule, Family::V4);
    }
    line(text, format_args!("\t}}"));
}

fn write_rule(text: &mut String, name: &str, rule: &Rule, family: Family) {
    if let Some(matches) = matches(rule, family) {
        line(text, format_args!("\t\t{matches}{}", verdict(name, rule)));
    }
}

/// What a rule of the list `name` does with what it matches, with its counter and its name. Flow logs hear of what it
/// denies, when there are any: where nobody listens to a group, the kernel does nothing.
pub(super) fn verdict(name: &str, rule: &Rule) -> String {
    let own = comment(rule.rule.name.as_str());
    let verdict = match rule.rule.access {
        Access::Allow => "return".to_owned(),
        Access::Deny => logged_drop(name, &own),
    };
    format!("counter {verdict} comment \"{own}\"")
}

/// A text as nft takes it between quotes: at most 128 bytes, nothing that ends it.
fn comment(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' };
    text.chars().take(120).map(plain).collect()
}

/// What a rule matches of a family, with a space behind each part; `None` when that is nothing.
fn matches(rule: &Rule, family: Family) -> Option<String> {
    let mut text = String::new();
    addresses(&mut text, "saddr", &rule.source, family)?;
    addresses(&mut text, "daddr", &rule.destination, family)?;
    let (source, destination) = (&rule.rule.source_ports, &rule.destination_ports);
    let all = source.are_all() && destination.are_all();
    match rule.rule.protocol {
        RuleProtocol::Any if all => {}
        RuleProtocol::Any => text.push_str("meta l4proto { tcp, udp } "),
        RuleProtocol::Tcp => text.push_str("meta l4proto tcp "),
        RuleProtocol::Udp => text.push_str("meta l4proto udp "),
        // IPv6 has a protocol of its own for this, which no rule is about.
        RuleProtocol::Icmp if family == Family::V6 => return None,
        RuleProtocol::Icmp => text.push_str("meta l4proto icmp "),
        RuleProtocol::Esp => text.push_str("meta l4proto esp "),
        RuleProtocol::Ah => text.push_str("meta l4proto ah "),
    }
    match rule.rule.protocol {
        RuleProtocol::Any | RuleProtocol::Tcp | RuleProtocol::Udp => {
            ports(&mut text, "sport", source)?;
            ports(&mut text, "dport", destination)?;
        }
        RuleProtocol::Icmp | RuleProtocol::Esp | RuleProtocol::Ah => {}
    }
    Some(text)
}

fn addresses(text: &mut String, field: &str, set: &AddressSet, family: Family) -> Option<()> {
    if set.is_all_of(family) {
        return Some(());
    }
    one_of(text, &format!("{} {field}", ip(family)), &range_texts(set, family))
}

fn ports(text: &mut String, field: &str, ports: &Ports) -> Option<()> {
    if ports.are_all() {
        return Some(());
    }
    one_of(text, &format!("th {field}"), &port_texts(ports))
}

/// The ranges of a set's addresses of a family as nft reads them.
pub(super) fn range_texts(set: &AddressSet, family: Family) -> Vec<String> {
    let one = |(first, last)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    set.ranges(family).into_iter().map(one).collect()
}

/// Ports as nft reads them.
pub(super) fn port_texts(ports: &Ports) -> Vec<String> {
    let one = |range: &PortRange| match range {
        PortRange { first, last } if first == last => first.to_string(),
        PortRange { first, last } => format!("{first}-{last}"),
    };
    merged(&ports.any_of).iter().map(one).collect()
}

/// A match of one of these values, with a space behind it; `None` when there are none, which nothing matches.
pub(super) fn one_of(text: &mut String, field: &str, values: &[String]) -> Option<()> {
    match values {
        [] => return None,
        [one] => write!(text, "{field} {one} "),
        several => write!(text, "{field} {{ {} }} ", several.join(", ")),
    }
    .expect("writing to a String never fails");
    Some(())
}

/// Ranges in order, apart: nft refuses those that overlap.
pub(super) fn merged(ranges: &[PortRange]) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> =
        ranges.iter().copied().filter(|range| range.first <= range.last).collect();
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

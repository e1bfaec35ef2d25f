//! Translation to and from public addresses in a virtual network's nftables table. Not here: who has which (see
//! [`super::egress`]).
//!
//! Ports are the source's own where they are free and in range, never random: a random port meets one that the far
//! end has not yet forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use uuid::Uuid;

use super::{
    balancing::Services,
    egress::{self, Way, Ways},
    ruleset::{elements, line},
    view::View,
};
use crate::model::PortRange;

/// The chain that looks into the maps. Without free ports the kernel finds no tuple of its own for a new flow, and
/// drops its first packet: that is SNAT exhaustion, for this destination.
pub(super) const CHAINS: &str = r#"
	chain leave {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "uplink" accept
		ip saddr vmap @public_idle
		ip saddr vmap @public_several
		meta l4proto { tcp, udp } snat ip to ip saddr map @public_ports
		snat to ip saddr map @public
	}
"#;

/// Writes the sets, maps and chains that [`CHAINS`] and the filter look into.
pub(super) fn render(text: &mut String, view: &View<'_>, services: &Services, ways: &Ways<'_>) {
    let mut leaving = BTreeSet::new();
    let mut public = BTreeSet::new();
    let mut public_ports = BTreeSet::new();
    let mut several: BTreeMap<&[Ipv4Addr], BTreeMap<Ipv4Addr, &Way>> = BTreeMap::new();
    let mut idle = BTreeSet::new();
    let served = services.0.values().filter(|service| !service.healthy.is_empty());
    let mut minutes: BTreeSet<u32> = served.map(|service| service.idle_minutes).collect();
    for (address, (link, way)) in ways {
        leaving.insert(format!("\"{link}\" . {address}"));
        idle.insert(format!("{address} : jump {}", idle_chain(way.idle_minutes)));
        minutes.insert(way.idle_minutes);
        match (way.addresses.as_slice(), way.ports) {
            ([outside], ports) => {
                public.insert(format!("{address} : {outside}"));
                public_ports
                    .extend(ports.map(|ports| format!("{address} : {}", at(*outside, ports))));
            }
            (outside, _) => {
                several.entry(outside).or_default().insert(*address, way);
            }
        }
    }
    let chosen = several.iter().flat_map(|(outside, sources)| {
        let chain = choice_chain(outside);
        sources.keys().map(move |address| format!("{address} : goto {chain}"))
    });
    let chosen: BTreeSet<String> = chosen.collect();
    elements(text, "set leaving", "ifname . ipv4_addr", "", &leaving);
    elements(text, "map public", "ipv4_addr : ipv4_addr", "", &public);
    let kind = "ipv4_addr : interval ipv4_addr . inet_service";
    elements(text, "map public_ports", kind, "", &public_ports);
    elements(text, "map public_several", "ipv4_addr : verdict", "", &chosen);
    elements(text, "map public_idle", "ipv4_addr : verdict", "", &idle);
    let own = view.ports.iter().flat_map(|port| egress::own_public_ips(view, port));
    let own: BTreeSet<String> =
        own.map(|(inside, outside)| format!("{outside} : {inside}")).collect();
    elements(text, "map own_public", "ipv4_addr : ipv4_addr", "", &own);
    for (outside, sources) in &several {
        choice(text, outside, sources);
    }
    for minutes in minutes {
        idle_timeout(text, minutes);
    }
}

fn at(outside: Ipv4Addr, ports: PortRange) -> String {
    format!("{outside} . {}-{}", ports.first, ports.last)
}

fn choice_chain(outside: &[Ipv4Addr]) -> String {
    let text: Vec<String> = outside.iter().map(ToString::to_string).collect();
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.join(" ").as_bytes());
    format!("one-of-{}", &hash.simple().to_string()[..10])
}

/// The chains that choose one of several public addresses for a flow.
fn choice(text: &mut String, outside: &[Ipv4Addr], sources: &BTreeMap<Ipv4Addr, &Way>) {
    let name = choice_chain(outside);
    let choices: Vec<String> =
        (0..outside.len()).map(|n| format!("{n} : goto {name}-{n}")).collect();
    let ports: BTreeSet<Option<PortRange>> = sources.values().map(|way| way.ports).collect();
    line(text, format_args!("\tchain {name} {{"));
    line(
        text,
        format_args!(
            "\t\tjhash ip saddr . ip daddr . meta l4proto . th sport . th dport mod {} seed 0x616b736e vmap {{ {} }}",
            outside.len(),
            choices.join(", ")
        ),
    );
    line(text, format_args!("\t}}"));
    for (n, address) in outside.iter().enumerate() {
        let shares = sources.iter().filter_map(|(source, way)| {
            way.ports.map(|ports| format!("{source} : {}", at(*address, ports)))
        });
        let shares: BTreeSet<String> = shares.collect();
        // Those of a NAT gateway all have the same.
        let common = ports.iter().next().copied().flatten().filter(|_| ports.len() == 1);
        if common.is_none() {
            let kind = "ipv4_addr : interval ipv4_addr . inet_service";
            elements(text, &format!("map {name}-{n}"), kind, "", &shares);
        }
        line(text, format_args!("\tchain {name}-{n} {{"));
        let to = match common {
            Some(PortRange { first, last }) => format!("snat to {address}:{first}-{last}"),
            None => format!("snat ip to ip saddr map @{name}-{n}"),
        };
        line(text, format_args!("\t\tmeta l4proto {{ tcp, udp }} {to}"));
        line(text, format_args!("\t\tsnat to {address}"));
        line(text, format_args!("\t}}"));
    }
}

/// The chain that says after how long a flow is forgotten that nobody uses.
pub(super) fn idle_chain(minutes: u32) -> String {
    format!("idle-{minutes}")
}

fn idle_timeout(text: &mut String, minutes: u32) {
    let seconds = minutes.saturating_mul(60);
    let name = idle_chain(minutes);
    for (protocol, policy) in [
        ("tcp", format!("established : {seconds}")),
        ("udp", format!("unreplied : {seconds}, replied : {seconds}")),
    ] {
        line(text, format_args!("\tct timeout {name}-{protocol} {{"));
        line(text, format_args!("\t\tprotocol {protocol}; l3proto ip; policy = {{ {policy} }};"));
        line(text, format_args!("\t}}"));
    }
    line(text, format_args!("\tchain {name} {{"));
    for protocol in ["tcp", "udp"] {
        line(
            text,
            format_args!("\t\tmeta l4proto {protocol} ct timeout set \"{name}-{protocol}\""),
        );
    }
    line(text, format_args!("\t}}"));
}

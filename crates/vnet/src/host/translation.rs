//! Translation to and from public addresses in a virtual network's nftables table. Not here: who has which (see
//! [`super::egress`]).
//!
//! Ports are the source's own where they are free and in range, never random: a random port meets one that the far
//! end has not yet forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use uuid::Uuid;

use super::{
    balancing::Services,
    egress::{self, Outside, Way, Ways},
    ruleset::{elements, ip, ip_addr, line},
    view::View,
};
use crate::{addr::Family, model::PortRange};

/// The chain that looks into the maps. Without free ports the kernel finds no tuple of its own for a new flow, and
/// drops its first packet: that is SNAT exhaustion, for this destination.
const CHAINS: &str = r#"
	chain leave {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "uplink" accept
		$ip saddr vmap @public_idle
		meta l4proto tcp $ip saddr vmap @public_tcp
		meta l4proto udp $ip saddr vmap @public_udp
		meta l4proto { tcp, udp } $ip saddr vmap @public_several
$ports		snat to $ip saddr map @public
	}
"#;

/// The chains of a family. `nft` 1.0.6 loads no rule that looks up an IPv6 address together with ports from and to, so
/// that each range of ports of an IPv6 address is a chain.
pub(super) fn chains(family: Family) -> String {
    let ports = match family {
        Family::V4 => "\t\tmeta l4proto { tcp, udp } snat ip to ip saddr map @public_ports\n",
        Family::V6 => "",
    };
    CHAINS.replace("$ports", ports)
}

/// Some public addresses, and the ports that all who are seen with them have of each; `None` where each has its own.
type Shared<'w> = (&'w [IpAddr], Option<PortRange>);

/// Writes the sets, maps and chains that [`CHAINS`] and the filter look into.
pub(super) fn render(
    text: &mut String,
    view: &View<'_>,
    services: &Services,
    ways: &Ways<'_>,
    family: Family,
) {
    let mut leaving = Leaving::default();
    let mut public = BTreeSet::new();
    let mut public_ports = BTreeSet::new();
    let mut several: BTreeMap<Shared<'_>, BTreeMap<IpAddr, &Way>> = BTreeMap::new();
    let mut apart = Apart::default();
    let mut chosen = BTreeSet::new();
    let mut idle = BTreeSet::new();
    let served = services.0.iter().filter(|((address, ..), service)| {
        Family::of(*address) == family && !service.healthy.is_empty()
    });
    let mut minutes: BTreeSet<u32> = served.map(|(_, service)| service.idle_minutes).collect();
    for (address, (link, outside)) in ways.iter().filter(|(it, _)| Family::of(**it) == family) {
        leaving.add(link, *address, outside);
        if let Some((tcp, udp)) = outside.apart() {
            for (way, verdicts) in [(tcp, &mut apart.tcp), (udp, &mut apart.udp)] {
                // Shares of members differ, and in a map of the chain's there is one for each address.
                let shared = (way.addresses.as_slice(), way.ports);
                several.entry(shared).or_default().insert(*address, way);
                let chain = apart_chain(shared, way.idle_minutes);
                verdicts.insert(format!("{address} : goto {chain}"));
                apart.chains.insert(chain, (choice_chain(shared), way.idle_minutes));
                minutes.insert(way.idle_minutes);
            }
            continue;
        }
        let ways = [&outside.tcp, &outside.udp, &outside.other];
        let Some(way) = ways.into_iter().flatten().next() else { continue };
        idle.insert(format!("{address} : jump {}", idle_chain(way.idle_minutes)));
        minutes.insert(way.idle_minutes);
        if let Some([own]) = outside.other.as_ref().map(|way| way.addresses.as_slice()) {
            public.insert(format!("{address} : {own}"));
        }
        match (way.addresses.as_slice(), way.ports) {
            ([outside], None) => {
                public.insert(format!("{address} : {outside}"));
            }
            ([outside], Some(ports)) if family == Family::V4 => {
                public_ports.insert(format!("{address} : {}", at(*outside, ports)));
            }
            (outside, ports) => {
                // Shares of IPv4 addresses are in maps of the chains'.
                let ports = ports.filter(|_| family == Family::V6);
                several.entry((outside, ports)).or_default().insert(*address, way);
                chosen.insert(format!("{address} : goto {}", choice_chain((outside, ports))));
            }
        }
    }
    let kind = ip_addr(family);
    let one_to_one = &format!("{kind} : {kind}");
    let verdicts = &format!("{kind} : verdict");
    leaving.render(text, kind);
    elements(text, "map public", one_to_one, "", &public);
    if family == Family::V4 {
        elements(text, "map public_ports", WITH_PORTS, "", &public_ports);
    }
    elements(text, "map public_several", verdicts, "", &chosen);
    elements(text, "map public_tcp", verdicts, "", &apart.tcp);
    elements(text, "map public_udp", verdicts, "", &apart.udp);
    elements(text, "map public_idle", verdicts, "", &idle);
    let own = view.ports.iter().flat_map(|port| egress::own_public_ips(view, port));
    let own = own.filter(|(inside, _)| Family::of(*inside) == family);
    let own: BTreeSet<String> =
        own.map(|(inside, outside)| format!("{outside} : {inside}")).collect();
    elements(text, "map own_public", one_to_one, "", &own);
    for (shared, sources) in &several {
        choice(text, *shared, sources, family);
    }
    for minutes in minutes {
        idle_timeout(text, minutes, family);
    }
    for (name, (choice, minutes)) in &apart.chains {
        line(text, format_args!("\tchain {name} {{"));
        line(text, format_args!("\t\tjump {}", idle_chain(*minutes)));
        line(text, format_args!("\t\tgoto {choice}"));
        line(text, format_args!("\t}}"));
    }
}

/// Who may leave, and with what.
#[derive(Default)]
struct Leaving {
    any: BTreeSet<String>,
    /// Those with every protocol.
    bare: BTreeSet<String>,
    without_tcp: BTreeSet<String>,
    without_udp: BTreeSet<String>,
}

impl Leaving {
    fn add(&mut self, link: &str, address: IpAddr, outside: &Outside) {
        let element = format!("\"{link}\" . {address}");
        for (set, is_in) in [
            (&mut self.bare, outside.other.is_some()),
            (&mut self.without_tcp, outside.tcp.is_none()),
            (&mut self.without_udp, outside.udp.is_none()),
        ] {
            set.extend(is_in.then(|| element.clone()));
        }
        self.any.insert(element);
    }

    fn render(&self, text: &mut String, kind: &str) {
        let kind = format!("ifname . {kind}");
        elements(text, "set leaving", &kind, "", &self.any);
        elements(text, "set leaving_bare", &kind, "", &self.bare);
        elements(text, "set leaving_without_tcp", &kind, "", &self.without_tcp);
        elements(text, "set leaving_without_udp", &kind, "", &self.without_udp);
    }
}

/// Those whose TCP is seen otherwise than their UDP.
#[derive(Default)]
struct Apart {
    tcp: BTreeSet<String>,
    udp: BTreeSet<String>,
    /// The chain that chooses, and the idle timeout, by the chain that has them.
    chains: BTreeMap<String, (String, u32)>,
}

fn at(outside: IpAddr, ports: PortRange) -> String {
    format!("{outside} . {}-{}", ports.first, ports.last)
}

/// The kind of maps from a private address to a public one with ports.
const WITH_PORTS: &str = "ipv4_addr : interval ipv4_addr . inet_service";

/// An address that a port can follow.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn choice_chain((outside, ports): Shared<'_>) -> String {
    let text: Vec<String> = outside.iter().map(ToString::to_string).collect();
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.join(" ").as_bytes());
    let ports = ports.map(|it| format!("-from-{}-to-{}", it.first, it.last)).unwrap_or_default();
    format!("one-of-{}{ports}", &hash.simple().to_string()[..10])
}

fn apart_chain(shared: Shared<'_>, idle_minutes: u32) -> String {
    format!("{}-{}", choice_chain(shared), idle_chain(idle_minutes))
}

/// The chains that choose one of several public addresses for a flow.
fn choice(text: &mut String, among: Shared<'_>, sources: &BTreeMap<IpAddr, &Way>, family: Family) {
    let ip = ip(family);
    let name = choice_chain(among);
    let (outside, _) = among;
    let choices: Vec<String> =
        (0..outside.len()).map(|n| format!("{n} : goto {name}-{n}")).collect();
    let ports: BTreeSet<Option<PortRange>> = sources.values().map(|way| way.ports).collect();
    line(text, format_args!("\tchain {name} {{"));
    let chosen = format!(
        "jhash {ip} saddr . {ip} daddr . meta l4proto . th sport . th dport mod {} seed 0x616b736e vmap {{ {} }}",
        outside.len(),
        choices.join(", ")
    );
    // Nothing is one of one by chance.
    let chosen = if outside.len() == 1 { format!("goto {name}-0") } else { chosen };
    line(text, format_args!("\t\t{chosen}"));
    line(text, format_args!("\t}}"));
    for (n, address) in outside.iter().enumerate() {
        let shares = sources.iter().filter_map(|(source, way)| {
            way.ports.map(|ports| format!("{source} : {}", at(*address, ports)))
        });
        let shares: BTreeSet<String> = shares.collect();
        // Those of a NAT gateway all have the same.
        let common = ports.iter().next().copied().flatten().filter(|_| ports.len() == 1);
        if common.is_none() {
            elements(text, &format!("map {name}-{n}"), WITH_PORTS, "", &shares);
        }
        line(text, format_args!("\tchain {name}-{n} {{"));
        let to = match common {
            Some(PortRange { first, last }) => {
                let address = bracketed(*address);
                format!("snat to {address}:{first}-{last}")
            }
            None => format!("snat {ip} to {ip} saddr map @{name}-{n}"),
        };
        line(text, format_args!("\t\tmeta l4proto {{ tcp, udp }} {to}"));
        line(text, format_args!("\t}}"));
    }
}

/// The chain that says after how long a flow is forgotten that nobody uses.
pub(super) fn idle_chain(minutes: u32) -> String {
    format!("idle-{minutes}")
}

fn idle_timeout(text: &mut String, minutes: u32, family: Family) {
    let seconds = minutes.saturating_mul(60);
    let name = idle_chain(minutes);
    for (protocol, policy) in [
        ("tcp", format!("established : {seconds}")),
        ("udp", format!("unreplied : {seconds}, replied : {seconds}")),
    ] {
        line(text, format_args!("\tct timeout {name}-{protocol} {{"));
        line(
            text,
            format_args!(
                "\t\tprotocol {protocol}; l3proto {}; policy = {{ {policy} }};",
                ip(family)
            ),
        );
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

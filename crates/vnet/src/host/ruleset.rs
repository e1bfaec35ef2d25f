//! A virtual network's nftables table, as text: who may send as whom, and what its other parts
//! ([`super::gates`], [`super::services`], [`super::translation`]) make of their own. Not here: routes (see
//! [`super::routing`]) and loading it (`linux::nft`).
//!
//! The table is always rendered whole. Rules are few and the same in every virtual network; what differs
//! is in sets, maps and chains of their own. Whatever drops has a counter, and a comment that says why.

use std::{collections::BTreeSet, fmt::Write as _};

use uuid::Uuid;

use super::{
    balancing::Services, control, egress, gates, names, peering::Networks, services, translation,
    view::View,
};

/// The name of the table.
pub const TABLE: &str = "aksnet";

/// A short name for a rule set: the same for the same text. An empty chain named after it says what is loaded.
#[must_use]
pub fn digest(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

/// The table of a virtual network.
pub(super) fn render(view: &View<'_>, networks: &Networks<'_>, services: &Services) -> String {
    let mut text = format!("table ip {TABLE} {{\n");
    sources(&mut text, view, services);
    overlays(&mut text, view);
    joined(&mut text, view, networks);
    translation::render(&mut text, view, services, &egress::ways(view));
    services::render(&mut text, services);
    gates::render(&mut text, view);
    for chains in [CHAINS, gates::CHAINS, services::CHAINS, translation::CHAINS] {
        text.push_str(chains);
    }
    text.push_str("}\n");
    text
}

/// The rules that every virtual network has. `uplink`, `nic-` are link names of [`super::names`].
const CHAINS: &str = r#"
	# A NIC sends from its own addresses, unless IP forwarding is on. Two overlay clusters may use one range,
	# so flows of their pods have states of their own.
	chain early {
		type filter hook prerouting priority raw; policy accept;
		iifname "nic-*" iifname != @forwarding iifname . ip saddr != @sources counter drop comment "not an address of the NIC"
		iifname . ip saddr vmap @overlay
		iifname . ip daddr vmap @overlay
	}

	# From outside come answers, and what a public front end takes. To the outside goes what has a public
	# address, and only from the NIC that it belongs to. What is routed to lo leads nowhere.
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname "lo" counter drop comment "no route"
		ct direction reply accept
		ct state related accept
		iifname "uplink" ct status dnat goto inbound
		iifname "uplink" ct mark != 0 goto inbound
		iifname "uplink" counter drop comment "nobody asked the internet"
		oifname "uplink" iifname . ip saddr != @leaving counter drop comment "no outbound method"
		iifname @joined oifname @joined counter drop comment "peering leads no further"
		iifname @joined iifname . ip saddr != @remote counter drop comment "forwarded traffic is not allowed"
		goto inbound
	}

	# The gateway's address is silent. The platform answers names and instance metadata, and hears answers to
	# its health probes.
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "nic-*" ip daddr 168.63.129.16 meta l4proto { tcp, udp } th dport 53 accept
		iifname "nic-*" ip daddr 169.254.169.254 tcp dport 80 accept
	}
"#;

/// Who may send as whom.
fn sources(text: &mut String, view: &View<'_>, services: &Services) {
    let mut sources = BTreeSet::new();
    let mut forwarding = BTreeSet::new();
    let fronts = services.addresses_by_member();
    for port in &view.ports {
        let link = &port.link;
        let pods = port.pod_range.filter(|_| port.is_overlay());
        let fronts = fronts.get(&port.primary).into_iter().flatten().copied();
        for address in port.addresses().chain(fronts) {
            // Intervals of a set must not overlap.
            if pods.is_none_or(|pods| !pods.contains(address)) {
                sources.insert(format!("\"{link}\" . {address}"));
            }
        }
        if let Some(pods) = pods {
            sources.insert(format!("\"{link}\" . {pods}"));
        }
        if port.nic.ip_forwarding {
            forwarding.insert(format!("\"{link}\""));
        }
    }
    elements(text, "set sources", "ifname . ipv4_addr", "flags interval", &sources);
    elements(text, "set forwarding", "ifname", "", &forwarding);
}

/// Which links and addresses belong to an overlay, and the state of which one that is.
fn overlays(text: &mut String, view: &View<'_>) {
    let mut overlay = BTreeSet::new();
    let mut zones = BTreeSet::new();
    let nodes = view.ports.iter().filter_map(|port| Some((port.link.clone(), port.cluster?)));
    let planes = view.clusters.iter().map(|it| (names::control_port(&it.meta.id), *it));
    for (link, cluster) in nodes.chain(planes) {
        if let Some((range, zone)) = control::overlay(cluster) {
            overlay.insert(format!("\"{link}\" . {range} : goto overlay-{zone}"));
            zones.insert(zone);
        }
    }
    let kind = "ifname . ipv4_addr : verdict";
    elements(text, "map overlay", kind, "flags interval", &overlay);
    for zone in zones {
        line(text, format_args!("\tchain overlay-{zone} {{"));
        line(text, format_args!("\t\tct zone set {zone}"));
        line(text, format_args!("\t}}"));
    }
}

/// The links to peers, and the sources that may come in on each.
fn joined(text: &mut String, view: &View<'_>, networks: &Networks<'_>) {
    let mut joined: BTreeSet<String> =
        view.peers.iter().map(|peer| format!("\"{}\"", peer.link)).collect();
    let mut remote = BTreeSet::new();
    for (peer, link) in networks.links_from(view) {
        joined.insert(format!("\"{link}\""));
        if peer.peering.allow_forwarded {
            remote.insert(format!("\"{link}\" . 0.0.0.0/0"));
        } else {
            let own = peer.peering.remote_prefixes.iter();
            remote.extend(own.map(|prefix| format!("\"{link}\" . {prefix}")));
        }
    }
    elements(text, "set joined", "ifname", "", &joined);
    elements(text, "set remote", "ifname . ipv4_addr", "flags interval", &remote);
}

/// Writes a set or a map.
pub(super) fn elements(
    text: &mut String,
    what: &str,
    kind: &str,
    flags: &str,
    elements: &BTreeSet<String>,
) {
    line(text, format_args!("\t{what} {{"));
    line(text, format_args!("\t\ttype {kind}"));
    if !flags.is_empty() {
        line(text, format_args!("\t\t{flags}"));
    }
    if !elements.is_empty() {
        let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
        line(text, format_args!("\t\telements = {{ {} }}", elements.join(", ")));
    }
    line(text, format_args!("\t}}"));
}

pub(super) fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a String never fails");
}

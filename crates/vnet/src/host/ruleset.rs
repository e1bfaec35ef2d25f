//! A virtual network's nftables table, as text: who may send as whom, load balancing, translation to
//! public addresses. Not here: routes (see [`super::routing`]) and loading it (`linux::nft`).
//!
//! The table is always rendered whole. Rules are few and the same in every virtual network; what differs
//! is in sets, maps and a chain for each load-balancing rule.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr};

use uuid::Uuid;

use super::{
    balancing::{Delivery, Key, Service, Services},
    control, names,
    view::View,
};
use crate::model::Transport;

/// The name of the table.
pub const TABLE: &str = "aksnet";

/// A short name for a rule set: the same for the same text. An empty chain named after it says what is loaded.
#[must_use]
pub fn digest(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

/// The table of a virtual network.
pub(super) fn render(view: &View<'_>, services: &Services) -> String {
    let mut text = format!("table ip {TABLE} {{\n");
    sets(&mut text, view, services);
    maps(&mut text, services);
    for (key, service) in &services.0 {
        chain(&mut text, *key, service);
    }
    text.push_str(CHAINS);
    text.push_str("}\n");
    text
}

/// The rules that every virtual network has. `uplink`, `nic-` are link names of [`super::names`].
const CHAINS: &str = r#"
	# A NIC sends from its own addresses, unless IP forwarding is on. Pods of an overlay meet no state
	# here: two clusters may use one range.
	chain early {
		type filter hook prerouting priority raw; policy accept;
		iifname "nic-*" iifname != @forwarding iifname . ip saddr != @sources counter drop
		iifname . ip daddr @overlay notrack
	}

	# A flow keeps the member that it got, whatever becomes of the others. An answer to what a member sent
	# out as a front end is no flow to it.
	chain balance {
		type filter hook prerouting priority mangle; policy accept;
		ct direction reply accept
		ct mark != 0 meta mark set ct mark accept
		ip daddr . meta l4proto . th dport vmap @balanced
		ip daddr vmap @balanced_whole
	}

	chain translate {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport vmap @translated
		ip daddr vmap @translated_whole
	}

	# From outside come answers, and what a public front end takes. To the outside goes what has a public
	# address, and only from the NIC that it belongs to; many share one address, so only what has ports, or an
	# identifier, can be told apart. What is routed to lo leads nowhere.
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname "lo" counter drop
		ct direction reply accept
		ct state related accept
		iifname "uplink" ct status dnat accept
		iifname "uplink" ct mark != 0 accept
		iifname "uplink" counter drop
		oifname "uplink" iifname . ip saddr != @leaving counter drop
		oifname "uplink" meta l4proto != { tcp, udp, icmp } counter drop
	}

	# The gateway's address is silent, but for answers to health probes.
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
	}

	chain leave {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "uplink" snat to ip saddr map @public
	}
"#;

fn sets(text: &mut String, view: &View<'_>, services: &Services) {
    let mut sources = BTreeSet::new();
    let mut forwarding = BTreeSet::new();
    let mut overlay = BTreeSet::new();
    let mut leaving = BTreeSet::new();
    let mut public = BTreeSet::new();
    for port in &view.ports {
        let link = &port.link;
        let pods = port.pod_range.filter(|_| port.is_overlay());
        for address in port.addresses().chain(services.addresses_of(port.primary)) {
            // Intervals of a set must not overlap.
            if pods.is_none_or(|pods| !pods.contains(address)) {
                sources.insert(format!("\"{link}\" . {address}"));
            }
        }
        if let Some(pods) = pods {
            sources.insert(format!("\"{link}\" . {pods}"));
        }
        if let (Some(range), true) = (port.cluster.and_then(|it| it.pod_cidr), port.is_overlay()) {
            overlay.insert(format!("\"{link}\" . {range}"));
        }
        if port.nic.ip_forwarding {
            forwarding.insert(format!("\"{link}\""));
        }
        if let Some(outside) = view.outbound_address(port) {
            for address in port.addresses() {
                leaving.insert(format!("\"{link}\" . {address}"));
                public.insert(format!("{address} : {outside}"));
            }
        }
    }
    for cluster in &view.clusters {
        if let (crate::model::NetworkMode::Overlay, Some(range)) = (cluster.mode, cluster.pod_cidr)
        {
            debug_assert_eq!(control::pod_range(cluster), Some(range));
            overlay.insert(format!("\"{}\" . {range}", names::control_port(&cluster.meta.id)));
        }
    }
    elements(text, "set sources", "ifname . ipv4_addr", "flags interval", &sources);
    elements(text, "set forwarding", "ifname", "", &forwarding);
    elements(text, "set overlay", "ifname . ipv4_addr", "flags interval", &overlay);
    elements(text, "set leaving", "ifname . ipv4_addr", "", &leaving);
    elements(text, "map public", "ipv4_addr : ipv4_addr", "", &public);
}

fn maps(text: &mut String, services: &Services) {
    let (mut balanced, mut balanced_whole) = (BTreeSet::new(), BTreeSet::new());
    let (mut dnat, mut dnat_whole) = (BTreeSet::new(), BTreeSet::new());
    for (key, service) in &services.0 {
        let (address, protocol, port) = key;
        let verdict = if service.healthy.is_empty() {
            "drop".to_owned()
        } else {
            format!("goto {}", chain_name(*key))
        };
        let element = match protocol {
            Transport::All => format!("{address} : {verdict}"),
            Transport::Tcp => format!("{address} . tcp . {port} : {verdict}"),
            Transport::Udp => format!("{address} . udp . {port} : {verdict}"),
        };
        // Without members there is no flow to translate either, and a filter chain may drop.
        let to_member = service.delivery != Delivery::Kept && !service.healthy.is_empty();
        match (to_member, *protocol == Transport::All) {
            (false, false) => balanced.insert(element),
            (false, true) => balanced_whole.insert(element),
            (true, false) => dnat.insert(element),
            (true, true) => dnat_whole.insert(element),
        };
    }
    let by_port = "ipv4_addr . inet_proto . inet_service : verdict";
    elements(text, "map balanced", by_port, "", &balanced);
    elements(text, "map balanced_whole", "ipv4_addr : verdict", "", &balanced_whole);
    elements(text, "map translated", by_port, "", &dnat);
    elements(text, "map translated_whole", "ipv4_addr : verdict", "", &dnat_whole);
}

fn elements(text: &mut String, what: &str, kind: &str, flags: &str, elements: &BTreeSet<String>) {
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

fn chain_name((address, protocol, port): Key) -> String {
    let protocol = match protocol {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::All => "all",
    };
    format!("service-{}-{protocol}-{port}", address.to_string().replace('.', "-"))
}

/// The chain that chooses a member.
fn chain(text: &mut String, key: Key, service: &Service) {
    if service.healthy.is_empty() {
        return;
    }
    let protocol = match key.1 {
        Transport::Tcp => "meta l4proto tcp ",
        Transport::Udp => "meta l4proto udp ",
        Transport::All => "",
    };
    let hashed = match (service.by_source, key.1) {
        (true, _) => "ip saddr . ip daddr",
        (false, _) => "ip saddr . ip daddr . meta l4proto . th sport . th dport",
    };
    // A fixed seed: the same flow meets the same member after a reload.
    let choice = format!("jhash {hashed} mod {} seed 0x616b736e", service.healthy.len());
    let member = |to_text: &dyn Fn(Ipv4Addr) -> String| {
        let members = service.healthy.iter().enumerate();
        members.map(|(n, it)| format!("{n} : {}", to_text(*it))).collect::<Vec<_>>().join(", ")
    };
    line(text, format_args!("\tchain {} {{", chain_name(key)));
    match service.delivery {
        Delivery::Kept => {
            let marks = member(&|it| format!("{:#010x}", u32::from(it)));
            line(text, format_args!("\t\tct mark set {choice} map {{ {marks} }}"));
            line(text, format_args!("\t\tmeta mark set ct mark"));
        }
        Delivery::Translated(0) => {
            let members = member(&|it| it.to_string());
            line(text, format_args!("\t\tdnat to {choice} map {{ {members} }}"));
        }
        Delivery::Translated(port) => {
            let members = member(&|it| format!("{it} . {port}"));
            line(text, format_args!("\t\t{protocol}dnat ip to {choice} map {{ {members} }}"));
        }
    }
    line(text, format_args!("\t}}"));
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a String never fails");
}

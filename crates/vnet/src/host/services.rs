//! Load balancing in a virtual network's nftables table. Not here: which services there are (see
//! [`super::balancing`]).

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    balancing::{Delivery, Key, Service, Services},
    ruleset::{elements, ip, ip_addr, line},
    translation::idle_chain,
    view::View,
};
use crate::{
    addr::Family,
    model::{Distribution, Transport},
};

/// The chains that look into the maps, with the places of [`super::fronts::Fragments`].
pub(super) const CHAINS: &str = r#"
	# A flow keeps the member that it got, whatever becomes of the others. An answer to what a member sent
	# out as a front end is no flow to it. What goes to an appliance is not for a front end here.
	chain balance {
		type filter hook prerouting priority mangle; policy accept;
$balance
		ct direction reply accept
$hop
		ct mark != 0 meta mark set ct mark accept
		$ip daddr . meta l4proto . th dport vmap @balanced
		$ip daddr vmap @balanced_whole
	}

	chain translate {
		type nat hook prerouting priority dstnat; policy accept;
$translate
$hop
		$ip daddr . meta l4proto . th dport vmap @translated
		$ip daddr vmap @translated_whole
		iifname "uplink" dnat to $ip daddr map @own_public
	}

	# Routes are for what the sender wrote. Once a member is chosen, the flow goes there.
	chain direct {
		type filter hook prerouting priority -90; policy accept;
		ct direction original ct status dnat meta mark set $ip daddr map @direct
	}
"#;

/// Writes the maps that [`CHAINS`] look into, and a chain for each service.
pub(super) fn render(text: &mut String, view: &View<'_>, services: &Services, family: Family) {
    maps(text, services, family);
    let direct = services.members();
    let direct = direct.iter().filter(|member| Family::of(**member) == family);
    let direct = direct.filter_map(|member| Some(format!("{member} : {}", mark(view, *member)?)));
    let kind = format!("{} : mark", ip_addr(family));
    elements(text, "map direct", &kind, "", &direct.collect());
    for (key, service) in of_family(services, family) {
        chain(text, view, *key, service);
    }
}

/// The services whose front ends have addresses of a family.
fn of_family(services: &Services, family: Family) -> impl Iterator<Item = (&Key, &Service)> {
    services.0.iter().filter(move |((address, ..), _)| Family::of(*address) == family)
}

/// The mark of flows to a member, as nft reads it.
pub(super) fn mark(view: &View<'_>, member: IpAddr) -> Option<String> {
    view.mark_of(member).map(|mark| format!("{mark:#010x}"))
}

fn maps(text: &mut String, services: &Services, family: Family) {
    let (mut balanced, mut balanced_whole) = (BTreeSet::new(), BTreeSet::new());
    let (mut dnat, mut dnat_whole) = (BTreeSet::new(), BTreeSet::new());
    for (key, service) in of_family(services, family) {
        let (address, protocol, port) = key;
        let verdict = if service.healthy.is_empty() {
            "goto nobody".to_owned()
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
    let by_port = &format!("{} . inet_proto . inet_service : verdict", ip_addr(family));
    let whole = &format!("{} : verdict", ip_addr(family));
    elements(text, "map balanced", by_port, "", &balanced);
    elements(text, "map balanced_whole", whole, "", &balanced_whole);
    elements(text, "map translated", by_port, "", &dnat);
    elements(text, "map translated_whole", whole, "", &dnat_whole);
    line(text, format_args!("\tchain nobody {{"));
    line(text, format_args!("\t\tcounter drop comment \"no healthy member\""));
    line(text, format_args!("\t}}"));
}

fn chain_name((address, protocol, port): Key) -> String {
    let protocol = protocol_name(protocol);
    format!("service-{}-{protocol}-{port}", address.to_string().replace(['.', ':'], "-"))
}

pub(super) fn protocol_name(protocol: Transport) -> &'static str {
    match protocol {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::All => "all",
    }
}

/// The chain that chooses a member.
fn chain(text: &mut String, view: &View<'_>, key: Key, service: &Service) {
    if service.healthy.is_empty() {
        return;
    }
    let protocol = match key.1 {
        Transport::Tcp => "meta l4proto tcp ",
        Transport::Udp => "meta l4proto udp ",
        Transport::All => "",
    };
    let ip = ip(Family::of(key.0));
    let addresses = format!("{ip} saddr . {ip} daddr");
    let hashed = match service.distribution {
        Distribution::SourceIp => addresses,
        Distribution::SourceIpProtocol => format!("{addresses} . meta l4proto"),
        Distribution::Default => format!("{addresses} . meta l4proto . th sport . th dport"),
    };
    // A fixed seed: the same flow meets the same member after a reload.
    let choice = format!("jhash {hashed} mod {} seed 0x616b736e", service.healthy.len());
    let member = |to_text: &dyn Fn(IpAddr) -> String| {
        let members = service.healthy.iter().enumerate();
        members.map(|(n, it)| format!("{n} : {}", to_text(*it))).collect::<Vec<_>>().join(", ")
    };
    line(text, format_args!("\tchain {} {{", chain_name(key)));
    if service.reset && key.1 != Transport::Udp {
        // Who goes on with a flow that was idle for too long is told, instead of being a new flow.
        line(
            text,
            format_args!(
                "\t\tct state new tcp flags & (fin | syn | rst | ack) != syn counter reject with tcp reset comment \"idle for too long\""
            ),
        );
    }
    line(text, format_args!("\t\tjump {}", idle_chain(service.idle_minutes)));
    match service.delivery {
        Delivery::Kept => {
            let marks = member(&|it| mark(view, it).unwrap_or_default());
            line(text, format_args!("\t\tct mark set {choice} map {{ {marks} }}"));
            line(text, format_args!("\t\tmeta mark set ct mark"));
        }
        Delivery::Translated(0) => {
            let members = member(&|it| it.to_string());
            line(text, format_args!("\t\tdnat to {choice} map {{ {members} }}"));
        }
        Delivery::Translated(port) => {
            let members = member(&|it| format!("{it} . {port}"));
            line(text, format_args!("\t\t{protocol}dnat {ip} to {choice} map {{ {members} }}"));
        }
    }
    line(text, format_args!("\t}}"));
}

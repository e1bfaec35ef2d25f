//! Routes and front ends in a virtual network's nftables table: what a route leads to a front end as its next hop, and
//! what it leads past one. Not here: what is for a front end and finds it (see [`super::services`]), and the links
//! that what has a next hop comes in by (see [`super::peering`]).
//!
//! # To a front end
//! What comes in by such a link is not the front end's: it stays as it is, and gets a mark that leads to a member. Both
//! directions of a flow meet one member when both are led to one front end (Azure documentation, "High availability
//! ports overview", "Flow symmetry"): whichever comes first chooses, by a hash that is the same for both, and its state
//! remembers. The appliance sends the packet on, and it is back in this network. So each front end has states of its
//! own, apart from those of the network, where the packet was already and will be again.
//!
//! Often it sees one direction alone: a firewall that translates gets the answers itself. The kernel believes no TCP
//! flow whose handshake it has seen a half of, but it does believe one that it comes upon later. So a front end's
//! states of TCP begin with the packet after the first one, whose member the hash gives as well. Where rules are for
//! single ports an answer has none, and only the state of the first packet lets it through.
//!
//! # Past a front end
//! What a route leads to an appliance although a front end of this network has its destination comes back, and then it
//! finds the front end. The kernel decides once in a flow's life whether to translate it. So what is led past is
//! another flow, in a zone of its own, and so are the answers that the appliance sends on: translated back once, they
//! are no answers any more to what the member was sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    balancing::{Delivery, Key, Service, Services},
    peering::Networks,
    ruleset::{digest, elements, ip, ip_addr, line},
    services::{mark, protocol_name},
    translation::idle_chain,
    view::View,
};
use crate::{
    addr::Family,
    model::{Distribution, Transport},
    routes,
};

/// The zone of what is led past front ends.
const PAST: u16 = 0x7fff;
/// Zones from here on are front ends': overlays' (see [`super::control`]) are below, but for networks of tens of
/// thousands of clusters.
const FIRST_ZONE: u16 = 0x8000;

/// Whether flows in a zone are seen in the network's own, too: they are led to a front end, or past one, and come back.
#[must_use]
pub fn is_led(zone: u16) -> bool {
    zone >= PAST
}

/// What the parts of a table that others write have of this.
pub(super) struct Fragments {
    /// Before states are looked up: which ones.
    pub(super) early: String,
    /// Before a member is chosen for what is for a front end.
    pub(super) balance: String,
    /// Before that is translated.
    pub(super) translate: String,
    /// For both, what came in for an appliance, and is not for a front end here.
    pub(super) hop: String,
    /// At a receiver's gates.
    pub(super) inbound: String,
}

impl Default for Fragments {
    fn default() -> Self {
        let hop = "\t\tiifname \"hop-*\" accept\n".to_owned();
        Self {
            early: String::new(),
            balance: String::new(),
            translate: String::new(),
            hop,
            inbound: String::new(),
        }
    }
}

impl Fragments {
    /// Puts them into chains' text.
    pub(super) fn fill(&self, chains: &str) -> String {
        chains
            .replace("$early\n", &self.early)
            .replace("$balance\n", &self.balance)
            .replace("$translate\n", &self.translate)
            .replace("$hop\n", &self.hop)
            .replace("$inbound\n", &self.inbound)
    }
}

/// Writes the sets and chains of a family, and gives the rules that look into them: none where no route has to do with
/// a front end, since they are looked at for every packet.
pub(super) fn render(
    text: &mut String,
    view: &View<'_>,
    networks: &Networks<'_>,
    services: &Services,
    family: Family,
) -> Fragments {
    let led_to: Vec<(String, IpAddr)> =
        networks.frontends(view).filter(|(_, to)| Family::of(*to) == family).collect();
    let past = Past::new(view, services, family);
    if led_to.is_empty() && !networks.has_hops(view, family) && past.is_nothing() {
        return Fragments::default();
    }
    let kind = ip_addr(family);
    let (mut zones, mut choices, mut at_front) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut frontends = BTreeSet::new();
    let mut links = Vec::new();
    for (link, frontend) in led_to {
        if services.has_all_ports(frontend) {
            links.push(format!("\"{link}\""));
        }
        zones.insert(format!("\"{link}\" : goto zone-{}", zone_of(frontend)));
        choices.insert(format!("\"{link}\" : goto {}", chain_name(frontend)));
        at_front.insert(format!("\"{link}\" . {frontend}"));
        frontends.insert(frontend);
    }
    let of_network = services.0.keys().map(|(address, ..)| *address);
    let of_network = of_network.filter(|it| Family::of(*it) == family);
    let of_network = of_network.map(|it| it.to_string()).collect();
    elements(text, "set frontends", kind, "", &of_network);
    elements(text, "set at_front", &format!("ifname . {kind}"), "", &at_front);
    elements(text, "map front_zones", "ifname : verdict", "", &zones);
    elements(text, "map front_choices", "ifname : verdict", "", &choices);
    let zones: BTreeMap<u16, bool> =
        frontends.iter().map(|it| (zone_of(*it), services.has_all_ports(*it))).collect();
    for (zone, begins_late) in zones {
        line(text, format_args!("\tchain zone-{zone} {{"));
        if begins_late {
            line(text, format_args!("\t\ttcp flags & (syn | ack) == syn notrack return"));
        }
        line(text, format_args!("\t\tct zone set {zone}"));
        line(text, format_args!("\t}}"));
    }
    for frontend in frontends {
        frontend_chains(text, view, services, frontend);
    }
    past.render(text, family);
    fragments(&links, family)
}

fn fragments(links: &[String], family: Family) -> Fragments {
    let ip = ip(family);
    Fragments {
        early: format!(
            "\t\tiifname . {ip} daddr @at_front accept
\t\tiifname vmap @front_zones
\t\tiifname vmap @past
\t\tiifname \"hop-*\" {ip} daddr @frontends ct zone set {PAST}
\t\t{ip} saddr . meta l4proto . th sport @back ct zone set {PAST}
\t\t{ip} saddr @back_whole ct zone set {PAST}
"
        ),
        balance: format!(
            "\t\tiifname . {ip} daddr != @at_front iifname vmap @front_choices
\t\tct zone {PAST} accept
"
        ),
        translate: format!("\t\tct zone {PAST} accept\n"),
        hop: format!("\t\tiifname \"hop-*\" iifname . {ip} daddr != @at_front accept\n"),
        // The answer to a first packet, which has no state there.
        inbound: match links {
            [] => String::new(),
            links => format!(
                "\t\tiifname {{ {} }} tcp flags & (syn | ack) == (syn | ack) accept\n",
                links.join(", ")
            ),
        },
    }
}

/// The zone of the flows that routes lead to a front end. Two of one network that have the same low bits share one,
/// which is wrong only for a flow that is led to both.
fn zone_of(frontend: IpAddr) -> u16 {
    let [high, low] = match frontend {
        IpAddr::V4(address) => [address.octets()[2], address.octets()[3]],
        IpAddr::V6(address) => [address.octets()[14], address.octets()[15]],
    };
    FIRST_ZONE | u16::from_be_bytes([high, low])
}

fn chain_name(frontend: IpAddr) -> String {
    format!("front-{}", frontend.to_string().replace(['.', ':'], "-"))
}

/// The chains that choose a member for what a route leads to a front end. What no rule of it is for goes nowhere.
fn frontend_chains(text: &mut String, view: &View<'_>, services: &Services, frontend: IpAddr) {
    let name = chain_name(frontend);
    let own: Vec<(&Key, &Service)> =
        services.0.iter().filter(|((address, ..), _)| *address == frontend).collect();
    let members = own.iter().flat_map(|(_, service)| &service.members);
    let members = members.filter(|member| view.appliance(**member).is_some());
    let marks: BTreeSet<String> = members.filter_map(|member| mark(view, *member)).collect();
    for (key, service) in own.iter().filter(|(_, service)| !service.healthy.is_empty()) {
        choice(text, view, &format!("{name}-{}-{}", protocol_name(key.1), key.2), service, **key);
    }
    line(text, format_args!("\tchain {name} {{"));
    if !marks.is_empty() {
        let marks: Vec<String> = marks.into_iter().collect();
        let marks = marks.join(", ");
        line(text, format_args!("\t\tct mark {{ {marks} }} meta mark set ct mark accept"));
    }
    // Keys are in order, and that of all ports comes last.
    for ((_, protocol, port), service) in own {
        let matches = match protocol {
            Transport::All => String::new(),
            Transport::Tcp | Transport::Udp => {
                format!("meta l4proto {} th dport {port} ", protocol_name(*protocol))
            }
        };
        let to = if service.healthy.is_empty() {
            "nobody".to_owned()
        } else {
            format!("{name}-{}-{port}", protocol_name(*protocol))
        };
        line(text, format_args!("\t\t{matches}goto {to}"));
    }
    if !services.has_all_ports(frontend) {
        let why = "no rule of the front end is for it";
        line(text, format_args!("\t\tcounter drop comment \"{why}\""));
    }
    line(text, format_args!("\t}}"));
}

/// The chain that chooses a member for a flow. One that does not forward gets no mark, and without one nothing that came
/// in here leads anywhere. A packet that belongs to no flow has no state to remember, but is led by the same hash.
fn choice(text: &mut String, view: &View<'_>, name: &str, service: &Service, key: Key) {
    let ip = ip(Family::of(key.0));
    let n = service.healthy.len();
    let addresses = format!("{ip} saddr . {ip} daddr");
    let hash = match service.distribution {
        Distribution::SourceIp => format!("jhash {addresses} mod {n} seed 0x616b736e"),
        Distribution::SourceIpProtocol => {
            format!("jhash {addresses} . meta l4proto mod {n} seed 0x616b736e")
        }
        Distribution::Default => format!("symhash mod {n}"),
    };
    let members = service.healthy.iter().enumerate().map(|(n, member)| {
        let forwards = view.appliance(*member).is_some();
        let mark = mark(view, *member).filter(|_| forwards);
        format!("{n} : {}", mark.unwrap_or_else(|| "0x00000000".to_owned()))
    });
    let members: Vec<String> = members.collect();
    line(text, format_args!("\tchain {name} {{"));
    line(text, format_args!("\t\tjump {}", idle_chain(service.idle_minutes)));
    line(text, format_args!("\t\tmeta mark set {hash} map {{ {} }}", members.join(", ")));
    line(text, format_args!("\t\tct mark set meta mark"));
    line(text, format_args!("\t\taccept"));
    line(text, format_args!("\t}}"));
}

/// What is led past front ends.
struct Past {
    /// The rules that say which packets are, by the links that they come in on.
    lists: BTreeMap<String, Vec<String>>,
    /// Whose translated answers may come back: front ends' addresses, protocols and ports, and addresses alone.
    back: BTreeSet<String>,
    back_whole: BTreeSet<String>,
}

impl Past {
    fn new(view: &View<'_>, services: &Services, family: Family) -> Self {
        let mut past =
            Self { lists: BTreeMap::new(), back: BTreeSet::new(), back_whole: BTreeSet::new() };
        let has_routes = |table: &_| {
            view.region.route_tables.get(table).is_some_and(|table| !table.routes.is_empty())
        };
        let mut of_subnets: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for subnet in view.vnet.subnets.values() {
            if !subnet.route_table.as_ref().is_some_and(has_routes) {
                continue;
            }
            let routes = routes::effective(view.region, view.vnet, subnet);
            let mut missed: BTreeSet<IpAddr> = services.0.keys().map(|it| it.0).collect();
            missed.retain(|address| {
                let route = routes::select(&routes, *address);
                Family::of(*address) == family
                    && route.is_some_and(|route| !view.finds(route, *address))
            });
            let missed = missed.iter().map(ToString::to_string).collect();
            of_subnets.insert(&subnet.name, missed);
        }
        if of_subnets.is_empty() {
            return past;
        }
        for ((address, protocol, port), service) in &services.0 {
            if Family::of(*address) != family
                || service.delivery == Delivery::Kept
                || !view.has_frontend(*address)
            {
                continue;
            }
            match protocol {
                Transport::All => past.back_whole.insert(address.to_string()),
                Transport::Tcp | Transport::Udp => {
                    past.back.insert(format!("{address} . {} . {port}", protocol_name(*protocol)))
                }
            };
        }
        // Most networks: nobody needs to look at a thousand NICs.
        if of_subnets.values().all(Vec::is_empty) {
            return past;
        }
        let missed_in = |subnet| of_subnets.get(subnet).filter(|missed| !missed.is_empty());
        let rule = |missed: &[String]| {
            format!("{} daddr {{ {} }} ct zone set {PAST}", ip(family), missed.join(", "))
        };
        for port in &view.ports {
            let Some(subnet) = view.subnet_of(port.primary) else { continue };
            let own = missed_in(&subnet.name);
            let mut rules = Vec::new();
            for (pods, prefix) in view
                .pod_subnets(port)
                .into_iter()
                .filter_map(|it| Some((it, it.prefix_of(family)?)))
            {
                let from = format!("{} saddr {prefix}", ip(family));
                let missed = missed_in(&pods.name);
                rules.extend(missed.map(|missed| format!("{from} {}", rule(missed))));
                rules.extend(own.map(|_| format!("{from} return")));
            }
            rules.extend(own.map(|missed| rule(missed)));
            if !rules.is_empty() {
                past.lists.insert(port.link.clone(), rules);
            }
        }
        past
    }

    fn is_nothing(&self) -> bool {
        self.lists.is_empty() && self.back.is_empty() && self.back_whole.is_empty()
    }

    fn render(self, text: &mut String, family: Family) {
        let mut chains = BTreeMap::new();
        let mut links = BTreeSet::new();
        for (link, rules) in self.lists {
            let chain = format!("past-{}", &digest(&rules.join(" "))[..10]);
            links.insert(format!("\"{link}\" : jump {chain}"));
            chains.insert(chain, rules);
        }
        for (chain, rules) in chains {
            line(text, format_args!("\tchain {chain} {{"));
            for rule in rules {
                line(text, format_args!("\t\t{rule}"));
            }
            line(text, format_args!("\t}}"));
        }
        let kind = ip_addr(family);
        elements(text, "map past", "ifname : verdict", "", &links);
        elements(text, "set back", &format!("{kind} . inet_proto . inet_service"), "", &self.back);
        elements(text, "set back_whole", kind, "", &self.back_whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_tell_what_is_led_from_the_networks_own_flows_and_overlays() {
        for frontend in ["10.1.9.100", "10.1.0.0", "172.20.255.255", "fd00:1:0:9::100", "fd00::"] {
            assert!(is_led(zone_of(frontend.parse().unwrap())), "{frontend}");
        }
        assert!(is_led(PAST));
        // Everybody's, and those of the first and of very many clusters (198.18.0.10 on).
        for zone in [0, 10, 0x7ffe] {
            assert!(!is_led(zone), "{zone}");
        }
        let zones =
            ["10.1.9.100", "10.1.9.101", "10.1.8.100"].map(|it| zone_of(it.parse().unwrap()));
        assert_eq!(BTreeSet::from(zones).len(), 3, "each has its own");
    }
}

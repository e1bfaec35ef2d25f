//! How a virtual network's namespace routes. Not here: what it filters and translates (see
//! [`super::ruleset`]).
//!
//! # A packet's way
//! 1. *Load balancer marks*: a flow to a front end goes to the member that was chosen for it.
//!    *Next hops*: what comes in for an appliance goes there.
//! 2. *Pod ranges*: from a node of an overlay cluster, or from a control plane, to the node of a pod.
//!    Nobody else has these rules, so two clusters may use one range and VMs reach no overlay pod.
//! 3. *The subnet's routes*: user-defined ones with their own lengths; the network's prefixes are
//!    `throw`, so the longest prefix wins between the two kinds, and a user's route a tie.
//! 4. *The main table*: a /32 for each address; the network's prefixes lead nowhere; private ranges are
//!    dropped; everything else goes to the internet.
//!
//! What leads nowhere is routed to `lo` and dropped there by the rule set rather than being unreachable:
//! the kernel then answers ARP requests for it, as Azure's switch does, and says nothing more.

use super::{
    balancing, control,
    fabric::{FAR_END, FAR_END_6, INTERNET_MAC, enable_ipv6, far_end},
    health::Health,
    names,
    peering::Networks,
    platform, ruleset,
    state::{Crossing, End, Link, MAIN, MAIN_PRIORITY, NamespaceState, Rule, Target, Then},
    view::{Port, View},
};
use crate::{
    addr::{Family, Mac, Prefix, Prefix4},
    model::Subnet,
    routes::{self, EffectiveRoute, Hop, Source},
};

const PRIORITY_MARK: u32 = 500;
/// What came in for an appliance goes there and nowhere else.
pub(super) const PRIORITY_HOP: u32 = 600;
const PRIORITY_PODS: u32 = 900;
const PRIORITY_POD_SUBNET: u32 = 950;
const PRIORITY_SUBNET: u32 = 1000;

/// The namespace of a virtual network.
pub(super) fn vnet(
    lab: &str,
    view: &View<'_>,
    networks: &Networks<'_>,
    health: &Health,
) -> NamespaceState {
    let mut state = NamespaceState::default();
    settings(&mut state);
    uplink(&mut state, lab, view);
    platform::addresses(&mut state);
    if view.vnet.is_dual_stack() {
        ipv6(&mut state);
    }
    for prefix in view.vnet.subnets.values().flat_map(Subnet::prefixes) {
        if let Some(gateway) = prefix.nth(1) {
            state.address("lo", gateway, prefix.family().bits());
        }
    }
    networks.join(&mut state, lab, view);
    system_routes(&mut state, view);
    for port in &view.ports {
        plug_in(&mut state, lab, view, port);
    }
    for cluster in &view.clusters {
        control::connect_vnet(&mut state, lab, cluster, view);
        if !control::pod_ranges(cluster).is_empty() {
            let iif = names::control_port(&cluster.meta.id);
            let then = Then::Table(control::pod_table(cluster));
            state.rules.insert(from_link(PRIORITY_PODS, Family::V4, &iif, then));
        }
    }
    for subnet in view.vnet.subnets.values() {
        subnet_routes(&mut state, view, networks, subnet);
    }
    let services = balancing::services(view, health);
    for member in services.members() {
        let family = Family::of(member);
        let (Some(port), Some(table)) = (view.holder(member), view.mark_of(member)) else {
            continue;
        };
        let Some(main) = port.main_address(family) else { continue };
        state.route(table, Prefix::everything(family), Target::via(&port.link, main));
        state.rules.insert(Rule {
            priority: PRIORITY_MARK,
            family,
            mark: Some(table),
            iif: None,
            from: None,
            then: Then::Table(table),
        });
    }
    state.nft = Some(ruleset::render(view, networks, &services));
    state
}

fn from_link(priority: u32, family: Family, iif: &str, then: Then) -> Rule {
    Rule { priority, family, mark: None, iif: Some(iif.to_owned()), from: None, then }
}

fn settings(state: &mut NamespaceState) {
    state.sysctl("net/ipv4/ip_forward", "1");
    for name in ["all", "default"] {
        state.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
        state.sysctl(&format!("net/ipv4/conf/{name}/send_redirects"), "0");
    }
    // A flow through an appliance is seen twice, and its answer perhaps once.
    state.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1");
}

/// What is added where the virtual network has IPv6. Ports answer nobody's question who has an address: every
/// machine knows its gateway, and nothing else is its neighbour.
fn ipv6(state: &mut NamespaceState) {
    enable_ipv6(state);
    state.sysctl("net/ipv6/conf/all/forwarding", "1");
    state.neighbour(names::UPLINK, FAR_END_6, INTERNET_MAC);
}

fn uplink(state: &mut NamespaceState, lab: &str, view: &View<'_>) {
    let peer = End {
        namespace: names::internet_ns(lab),
        link: names::internet_link_to_vnet(&view.vnet.meta.id),
    };
    state.links.insert(names::UPLINK.to_owned(), Link::new(Mac::FABRIC, peer));
    state.neighbour(names::UPLINK, FAR_END, INTERNET_MAC);
}

fn to_internet(family: Family) -> Target {
    Target::via(names::UPLINK, far_end(family))
}

/// Routed to `lo` for IPv4; the kernel would answer that with an error for IPv6, where nobody asks for neighbours.
pub(super) fn nowhere(family: Family) -> Target {
    match family {
        Family::V4 => Target::Link("lo".to_owned()),
        Family::V6 => Target::Blackhole,
    }
}

/// What every subnet's packets meet. A peering that the other side does not let through leads nowhere.
fn system_routes(state: &mut NamespaceState, view: &View<'_>) {
    for route in routes::system(view.region, view.vnet) {
        let family = route.prefix.family();
        let target = match &route.hop {
            Hop::Internet => to_internet(family),
            Hop::Peering(remote) => view
                .peers
                .iter()
                .find(|peer| peer.remote.meta.id == *remote)
                .filter(|peer| family == Family::V4 || peer.remote.is_dual_stack())
                .map_or_else(|| nowhere(family), |peer| Target::via(&peer.link, far_end(family))),
            Hop::VnetLocal | Hop::None | Hop::VirtualAppliance(_) => nowhere(family),
        };
        state.route(MAIN, route.prefix, target);
    }
}

/// A NIC's port: its link, a route for each of its addresses, and its rules.
fn plug_in(state: &mut NamespaceState, lab: &str, view: &View<'_>, port: &Port<'_>) {
    let link = port.link.clone();
    let peer =
        End { namespace: names::machine_ns(lab, port.machine), link: names::ETH0.to_owned() };
    let pods = port.pod_range_of(Family::V4).filter(|_| port.is_overlay());
    let crossing = Some(Crossing {
        address: port.primary,
        pods: pods.and_then(Prefix::as_v4),
        overlay: port.cluster.and_then(control::overlay),
    });
    state.links.insert(link.clone(), Link { crossing, ..Link::new(Mac::FABRIC, peer) });
    state.sysctl(&format!("net/ipv4/conf/{link}/proxy_arp"), "1");
    state.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    state.sysctl(&format!("net/ipv4/conf/{link}/send_redirects"), "0");
    // The kernel's default answers ARP for others after up to 0.8 s.
    state.sysctl(&format!("net/ipv4/neigh/{link}/proxy_delay"), "0");
    state.neighbour(&link, port.primary, port.nic.mac);
    state.route(MAIN, Prefix4::host(port.primary), Target::Link(link.clone()));
    if let Some(main) = port.main_address(Family::V6) {
        // Health probes come from the gateway.
        state.address(&link, names::GATEWAY_ADDRESS, 128);
        state.neighbour(&link, main, port.nic.mac);
        state.route(MAIN, Prefix::host(main), Target::Link(link.clone()));
    }
    for address in &port.others {
        let main = port.main_address(Family::of(*address));
        if let Some(main) = main.filter(|main| main != address) {
            state.route(MAIN, Prefix::host(*address), Target::via(&link, main));
        }
    }
    if let (true, Some(cluster)) = (port.is_overlay(), port.cluster) {
        for range in control::pod_ranges(cluster) {
            let then = Then::Table(control::pod_table(cluster));
            state.rules.insert(from_link(PRIORITY_PODS, range.family(), &link, then));
        }
    }
    let Some(subnet) = view.subnet_of(port.primary) else { return };
    if subnet.route_table.is_some() {
        for family in view.families() {
            let then = Then::Table(table_of(subnet));
            state.rules.insert(from_link(PRIORITY_SUBNET, *family, &link, then));
        }
    }
    // Pods of another subnet than their node's meet the routes of their own one.
    for (pods, prefix) in view
        .pod_subnets(port)
        .into_iter()
        .flat_map(|it| it.prefixes().map(move |prefix| (it, prefix)))
    {
        let (from, family) = (Some(prefix), prefix.family());
        if pods.route_table.is_some() {
            let then = Then::Table(table_of(pods));
            let rule = from_link(PRIORITY_POD_SUBNET, family, &link, then);
            state.rules.insert(Rule { from, ..rule });
        }
        if subnet.route_table.is_some() {
            let then = Then::Goto(MAIN_PRIORITY);
            let rule = from_link(PRIORITY_POD_SUBNET + 1, family, &link, then);
            state.rules.insert(Rule { from, ..rule });
        }
    }
}

fn table_of(subnet: &Subnet) -> u32 {
    subnet.prefix.network().into()
}

/// The table of a subnet that has user-defined routes. What they do not say, the main table does.
fn subnet_routes(
    state: &mut NamespaceState,
    view: &View<'_>,
    networks: &Networks<'_>,
    subnet: &Subnet,
) {
    if subnet.route_table.is_none() {
        return;
    }
    let table = table_of(subnet);
    // No user-defined route applies to the platform. Its other addresses are the namespace's own.
    for cluster in &view.clusters {
        let platform = Prefix4::host(control::platform_address(cluster));
        state.route(table, platform, Target::Throw);
    }
    for route in routes::effective(view.region, view.vnet, subnet) {
        if let Some(target) = subnet_target(view, networks, &route) {
            state.route(table, route.prefix, target);
        }
    }
}

/// Where a subnet's table sends what meets this route; `None` for one that the main table has and no other
/// route of the subnet's could come before.
fn subnet_target(
    view: &View<'_>,
    networks: &Networks<'_>,
    route: &EffectiveRoute,
) -> Option<Target> {
    let family = route.prefix.family();
    let target = match (&route.hop, route.source) {
        _ if !route.is_active => return None,
        (Hop::Internet, Source::Default) => return None,
        (_, Source::Default) => Target::Throw,
        (Hop::VirtualAppliance(address), _) => match view.appliance(*address) {
            Some(port) => port
                .main_address(family)
                .map_or_else(|| nowhere(family), |main| Target::via(&port.link, main)),
            None => networks.hop(view, *address).unwrap_or_else(|| nowhere(family)),
        },
        // The network's own /32s are in the main table; outside of its prefixes there is nobody, but there the
        // main table leads out.
        (Hop::VnetLocal, _)
            if view.vnet.prefixes.iter().any(|it| it.contains_prefix(route.prefix)) =>
        {
            Target::Throw
        }
        (Hop::Internet, _) => to_internet(family),
        (Hop::VnetLocal | Hop::None | Hop::Peering(_), _) => nowhere(family),
    };
    Some(target)
}

//! How a virtual network's namespace routes. Not here: what it filters and translates (see
//! [`super::ruleset`]).
//!
//! # A packet's way
//! 1. *Load balancer marks*: a flow to a front end goes to the member that was chosen for it.
//! 2. *Pod ranges*: from a node of an overlay cluster, or from a control plane, to the node of a pod.
//!    Nobody else has these rules, so two clusters may use one range and VMs reach no overlay pod.
//! 3. *The subnet's routes*: user-defined ones with their own lengths; the network's prefixes are
//!    `throw`, so the longest prefix wins between the two kinds, and a user's route a tie.
//! 4. *The main table*: a /32 for each address; the network's prefixes lead nowhere; private ranges are
//!    dropped; everything else goes to the internet.
//!
//! What leads nowhere is routed to `lo` and dropped there by the rule set rather than being unreachable:
//! the kernel then answers ARP requests for it, as Azure's switch does, and says nothing more.

use std::net::Ipv4Addr;

use super::{
    balancing, control,
    fabric::{FAR_END, INTERNET_MAC, MTU, PRIVATE, everywhere},
    health::Health,
    names, ruleset,
    state::{End, Link, MAIN, MAIN_PRIORITY, NamespaceState, Rule, Target, Then},
    view::{Port, View},
};
use crate::{
    addr::{Mac, Prefix4},
    model::{NextHop, RouteTable, Subnet},
};

const PRIORITY_MARK: u32 = 500;
const PRIORITY_PODS: u32 = 900;
const PRIORITY_POD_SUBNET: u32 = 950;
const PRIORITY_SUBNET: u32 = 1000;

/// The namespace of a virtual network.
pub(super) fn vnet(lab: &str, view: &View<'_>, health: &Health) -> NamespaceState {
    let mut state = NamespaceState::default();
    settings(&mut state);
    uplink(&mut state, lab, view);
    state.address("lo", names::PLATFORM_ADDRESS, 32);
    for subnet in view.vnet.subnets.values() {
        if let Some(gateway) = subnet.prefix.nth(1) {
            state.address("lo", gateway, 32);
        }
    }
    system_routes(&mut state, view);
    for port in &view.ports {
        plug_in(&mut state, lab, view, port);
    }
    for cluster in &view.clusters {
        control::connect_vnet(&mut state, lab, cluster, view);
        if control::pod_range(cluster).is_some() {
            let iif = names::control_port(&cluster.meta.id);
            let then = Then::Table(control::pod_table(cluster));
            state.rules.insert(from_link(PRIORITY_PODS, &iif, then));
        }
    }
    for subnet in view.vnet.subnets.values() {
        subnet_routes(&mut state, view, subnet);
    }
    let services = balancing::services(view, health);
    for member in services.members() {
        let Some(port) = view.holder(member) else { continue };
        let table = u32::from(member);
        state.route(table, everywhere(), Target::Via(port.link.clone(), port.primary));
        state.rules.insert(Rule {
            priority: PRIORITY_MARK,
            mark: Some(table),
            iif: None,
            from: None,
            then: Then::Table(table),
        });
    }
    state.nft = Some(ruleset::render(view, &services));
    state
}

fn from_link(priority: u32, iif: &str, then: Then) -> Rule {
    Rule { priority, mark: None, iif: Some(iif.to_owned()), from: None, then }
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

fn uplink(state: &mut NamespaceState, lab: &str, view: &View<'_>) {
    let peer = End {
        namespace: names::internet_ns(lab),
        link: names::internet_link_to_vnet(&view.vnet.meta.id),
    };
    state.links.insert(names::UPLINK.to_owned(), Link { mac: Mac::FABRIC, mtu: MTU, peer });
    state.neighbour(names::UPLINK, FAR_END, INTERNET_MAC);
    state.route(MAIN, everywhere(), to_internet());
}

fn to_internet() -> Target {
    Target::Via(names::UPLINK.to_owned(), FAR_END)
}

fn nowhere() -> Target {
    Target::Link("lo".to_owned())
}

fn system_routes(state: &mut NamespaceState, view: &View<'_>) {
    for (network, length) in PRIVATE {
        let private = Prefix4::containing(network, length);
        if !view.vnet.prefixes.iter().any(|prefix| prefix.contains_prefix(private)) {
            state.route(MAIN, private, Target::Blackhole);
        }
    }
    state.route(MAIN, Prefix4::host(names::METADATA_ADDRESS), Target::Blackhole);
    for prefix in &view.vnet.prefixes {
        state.route(MAIN, *prefix, nowhere());
    }
}

/// A NIC's port: its link, a route for each of its addresses, and its rules.
fn plug_in(state: &mut NamespaceState, lab: &str, view: &View<'_>, port: &Port<'_>) {
    let link = port.link.clone();
    let peer =
        End { namespace: names::machine_ns(lab, port.machine), link: names::ETH0.to_owned() };
    state.links.insert(link.clone(), Link { mac: Mac::FABRIC, mtu: MTU, peer });
    state.sysctl(&format!("net/ipv4/conf/{link}/proxy_arp"), "1");
    state.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    state.sysctl(&format!("net/ipv4/conf/{link}/send_redirects"), "0");
    // The kernel's default answers ARP for others after up to 0.8 s.
    state.sysctl(&format!("net/ipv4/neigh/{link}/proxy_delay"), "0");
    state.neighbour(&link, port.primary, port.nic.mac);
    state.route(MAIN, Prefix4::host(port.primary), Target::Link(link.clone()));
    for address in &port.others {
        let via = Target::Via(link.clone(), port.primary);
        state.route(MAIN, Prefix4::host(*address), via);
    }
    if let (true, Some(cluster)) = (port.is_overlay(), port.cluster) {
        let then = Then::Table(control::pod_table(cluster));
        state.rules.insert(from_link(PRIORITY_PODS, &link, then));
    }
    let Some(subnet) = view.subnet_of(port.primary) else { return };
    if view.route_table(subnet).is_some() {
        let then = Then::Table(table_of(subnet));
        state.rules.insert(from_link(PRIORITY_SUBNET, &link, then));
    }
    // Pods of another subnet than their node's meet the routes of their own one.
    for pods in pod_subnets(view, port, subnet) {
        let from = Some(pods.prefix);
        if view.route_table(pods).is_some() {
            let then = Then::Table(table_of(pods));
            state.rules.insert(Rule { from, ..from_link(PRIORITY_POD_SUBNET, &link, then) });
        }
        if view.route_table(subnet).is_some() {
            let then = Then::Goto(MAIN_PRIORITY);
            state.rules.insert(Rule { from, ..from_link(PRIORITY_POD_SUBNET + 1, &link, then) });
        }
    }
}

fn pod_subnets<'a>(view: &View<'a>, port: &Port<'_>, own: &Subnet) -> Vec<&'a Subnet> {
    let mut subnets: Vec<&Subnet> = port
        .others
        .iter()
        .filter_map(|address| view.subnet_of(*address))
        .filter(|subnet| subnet.name != own.name)
        .collect();
    subnets.sort_by_key(|subnet| subnet.prefix);
    subnets.dedup_by_key(|subnet| subnet.prefix);
    subnets
}

fn table_of(subnet: &Subnet) -> u32 {
    subnet.prefix.network().into()
}

/// The table of a subnet that has user-defined routes. What they do not say, the main table does.
fn subnet_routes(state: &mut NamespaceState, view: &View<'_>, subnet: &Subnet) {
    let Some(routes) = view.route_table(subnet) else { return };
    let table = table_of(subnet);
    for prefix in &view.vnet.prefixes {
        state.route(table, *prefix, Target::Throw);
    }
    // No user-defined route applies to the platform. Its other address is the namespace's own.
    state.route(table, Prefix4::host(names::METADATA_ADDRESS), Target::Throw);
    for cluster in &view.clusters {
        let platform = Prefix4::host(control::platform_address(cluster));
        state.route(table, platform, Target::Throw);
    }
    if !has_default(routes) {
        private_ranges(state, view, table);
    }
    for route in routes.routes.values() {
        let target = match route.next_hop {
            NextHop::VirtualAppliance(address) => appliance(view, address),
            // The network's own /32s are in the main table; outside of its prefixes there is nobody, but there the
            // main table leads out.
            NextHop::VnetLocal
                if view.vnet.prefixes.iter().any(|it| it.contains_prefix(route.prefix)) =>
            {
                Target::Throw
            }
            NextHop::VnetLocal | NextHop::None => Target::Blackhole,
            NextHop::Internet => to_internet(),
        };
        state.route(table, route.prefix, target);
    }
}

/// Whether the user says where everything goes. Azure then has no system routes that drop private ranges.
fn has_default(routes: &RouteTable) -> bool {
    routes.routes.values().any(|route| route.prefix.length() == 0)
}

/// Private ranges are longer than a user's `/1`, and drop.
fn private_ranges(state: &mut NamespaceState, view: &View<'_>, table: u32) {
    for (network, length) in PRIVATE {
        let private = Prefix4::containing(network, length);
        if !view.vnet.prefixes.iter().any(|prefix| prefix.contains_prefix(private)) {
            state.route(table, private, Target::Throw);
        }
    }
}

/// A machine that forwards, found by its address. Azure drops when nobody has the address or its NIC does
/// not forward.
fn appliance(view: &View<'_>, address: Ipv4Addr) -> Target {
    match view.holder(address) {
        Some(port) if port.nic.ip_forwarding => Target::Via(port.link.clone(), port.primary),
        _ => nowhere(),
    }
}

//! All network namespaces of a lab: the internet, virtual networks, machines, control planes. Not here:
//! how a virtual network routes and filters (see `routing.rs` and `ruleset.rs` beside this file).
//!
//! Numbers of marks and routing tables are addresses, so that they mean the same in every compilation
//! and can be read: a member of a load balancer has its primary address, a subnet with routes of its own
//! its network address, a cluster the public address of its API server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    control, egress,
    health::Health,
    names,
    peering::Networks,
    state::{End, Fabric, IPV6_MARK, LOCAL, Link, MAIN, NamespaceState, Target, Tenancy},
    view::{View, is_there},
};
use crate::{
    addr::{Family, Mac, Prefix, Prefix4, Prefix6},
    model::{Machine, Nic, Role, Vnet},
    region::Region,
    routes::NOWHERE,
};

/// The MTU of every link, as in Azure.
pub(super) const MTU: u32 = 1500;
/// The router at the far end of an uplink or a control plane's leg. It is never on the wire: a permanent
/// neighbour says which Ethernet address it has.
pub(super) const FAR_END: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// The same for IPv6.
pub(super) const FAR_END_6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The router at the far end, in a family.
pub(super) fn far_end(family: Family) -> IpAddr {
    match family {
        Family::V4 => FAR_END.into(),
        Family::V6 => FAR_END_6.into(),
    }
}

/// The internet's Ethernet address.
pub(super) const INTERNET_MAC: Mac = Mac([0x12, 0x34, 0x56, 0x78, 0x9a, 0x01]);

/// Every destination.
pub(super) fn everywhere() -> Prefix4 {
    Prefix4::containing(Ipv4Addr::UNSPECIFIED, 0)
}

/// What IPv6 destinations the internet does not lead to.
const NOWHERE_6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// Makes a namespace one that has IPv6 as the fabric gives it, and nothing that the kernel makes up: no addresses from
/// Ethernet ones, no routers that are heard.
pub(super) fn enable_ipv6(state: &mut NamespaceState) {
    state.sysctl(IPV6_MARK, "1");
    state.sysctl("net/ipv6/conf/all/accept_ra", "0");
    state.sysctl("net/ipv6/conf/default/accept_ra", "0");
}

/// What the network namespaces of `lab` must look like for `region`, given who answers probes.
#[must_use]
pub fn compile_fabric(lab: &str, region: &Region, health: &Health) -> Fabric {
    let mut fabric = Fabric::default();
    let mut internet = internet();
    let networks = Networks::new(region);
    if networks.views.values().any(|view| view.vnet.is_dual_stack()) {
        internet_ipv6(&mut internet);
    }
    for view in networks.views.values() {
        connect_vnet(&mut internet, lab, view);
        let state = super::routing::vnet(lab, view, &networks, health);
        fabric.namespaces.insert(names::vnet_ns(lab, &view.vnet.meta.id), state);
    }
    for machine in region.machines.values().filter(|machine| is_there(machine)) {
        let nic = region.nics.get(&machine.nic).map(|nic| &**nic);
        let vnet = nic.and_then(Nic::vnet).and_then(|id| region.vnets.get(&id));
        let state = machine_state(lab, machine, nic, vnet.map(|vnet| &**vnet));
        fabric.namespaces.insert(names::machine_ns(lab, machine), state);
    }
    for cluster in region.clusters.values() {
        control::connect_internet(&mut internet, lab, cluster);
        let vnet = region.vnets.get(&cluster.vnet).map(|vnet| &**vnet);
        fabric.namespaces.insert(
            names::control_plane_ns(lab, &cluster.meta.id),
            control::plane(lab, cluster, vnet),
        );
    }
    fabric.namespaces.insert(names::internet_ns(lab), internet);
    fabric
}

/// The internet without anybody connected.
fn internet() -> NamespaceState {
    let mut state = NamespaceState::default();
    state.sysctl("net/ipv4/ip_forward", "1");
    state.sysctl("net/ipv4/conf/all/rp_filter", "0");
    state.sysctl("net/ipv4/conf/default/rp_filter", "0");
    // What it sends back by the link that it came in by, such as to another public address of one virtual network, is
    // as it should be.
    state.sysctl("net/ipv4/conf/all/send_redirects", "0");
    state.sysctl("net/ipv4/conf/default/send_redirects", "0");
    state.address("lo", names::REGISTRY_ADDRESS, 32);
    for (network, length) in NOWHERE {
        state.route(LOCAL, Prefix4::containing(network, length), Target::Blackhole);
    }
    // Whatever is not connected is the internet's own and answers. This must be in the local table, where
    // the kernel looks whether it may answer from an address (`__ip_dev_find`, net/ipv4/devinet.c), and
    // which it looks into first; so what is connected is there, too, and wins by its length.
    state.route(LOCAL, everywhere(), Target::Local("lo".to_owned()));
    state
}

/// What is added when a virtual network has IPv6.
fn internet_ipv6(state: &mut NamespaceState) {
    enable_ipv6(state);
    state.sysctl("net/ipv6/conf/all/forwarding", "1");
    let (network, length) = NOWHERE_6;
    state.route(LOCAL, Prefix6::containing(network, length), Target::Blackhole);
    state.route(LOCAL, Prefix::everything(Family::V6), Target::Local("lo".to_owned()));
}

fn connect_vnet(internet: &mut NamespaceState, lab: &str, view: &View<'_>) {
    let vnet = view.vnet;
    let link = names::internet_link_to_vnet(&vnet.meta.id);
    let peer =
        End { namespace: names::vnet_ns(lab, &vnet.meta.id), link: names::UPLINK.to_owned() };
    internet.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    for address in egress::public_addresses(view) {
        internet.neighbour(&link, address, Mac::FABRIC);
        internet.route(LOCAL, Prefix::host(address), Target::Link(link.clone()));
    }
    internet.links.insert(link, Link::new(INTERNET_MAC, peer));
}

/// A VM's or a node's namespace: what is there when the machine boots.
fn machine_state(
    lab: &str,
    machine: &Machine,
    nic: Option<&Nic>,
    vnet: Option<&Vnet>,
) -> NamespaceState {
    let mut state = NamespaceState { tenancy: Tenancy::Shared, ..NamespaceState::default() };
    let (Some(nic), Some(vnet)) = (nic, vnet) else { return state };
    let peer =
        End { namespace: names::vnet_ns(lab, &vnet.meta.id), link: names::port(&nic.meta.id) };
    state.links.insert(names::ETH0.to_owned(), Link::new(nic.mac, peer));
    // A node's other addresses of IPv4 are its pods'.
    let primary = nic.address().map(IpAddr::V4);
    let is_own =
        |address: IpAddr| machine.role == Role::Vm || Some(address) == primary || address.is_ipv6();
    for config in nic.configs.iter().filter(|config| is_own(config.address)) {
        let Some(subnet) = vnet.subnet_of(config.address) else { continue };
        if config.address.is_ipv6() {
            machine_ipv6(&mut state, config.address);
            continue;
        }
        state.address(names::ETH0, config.address, subnet.prefix.length());
        if primary == Some(config.address)
            && let Some(gateway) = subnet.prefix.nth(1)
        {
            state.route(MAIN, everywhere(), Target::via(names::ETH0, gateway));
        }
    }
    if machine.role == Role::Vm {
        // Else removing an address takes those of the same subnet along that were added after it.
        state.sysctl(&format!("net/ipv4/conf/{}/promote_secondaries", names::ETH0), "1");
        if nic.ip_forwarding {
            state.sysctl("net/ipv4/ip_forward", "1");
            if nic.config_of(Family::V6).is_some() {
                state.sysctl("net/ipv6/conf/all/forwarding", "1");
            }
        }
    }
    state
}

/// Gives a machine an IPv6 address as Azure does: a /128, with nothing on the link but the gateway, which is everybody's
/// neighbour (Azure documentation, "IPv6 for Azure Virtual Network"; `ip -6 route` in a VM of Azure).
fn machine_ipv6(state: &mut NamespaceState, address: IpAddr) {
    enable_ipv6(state);
    state.address(names::ETH0, address, 128);
    state.neighbour(names::ETH0, names::GATEWAY_ADDRESS, Mac::FABRIC);
    let gateway = Prefix::host(names::GATEWAY_ADDRESS.into());
    state.route(MAIN, gateway, Target::Link(names::ETH0.to_owned()));
    let everything = Prefix::everything(Family::V6);
    state.route(MAIN, everything, Target::via(names::ETH0, names::GATEWAY_ADDRESS));
}

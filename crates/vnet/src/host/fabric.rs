//! All network namespaces of a lab: the internet, virtual networks, machines, control planes. Not here:
//! how a virtual network routes and filters (see `routing.rs` and `ruleset.rs` beside this file).
//!
//! Numbers of marks and routing tables are addresses, so that they mean the same in every compilation
//! and can be read: a member of a load balancer has its primary address, a subnet with routes of its own
//! its network address, a cluster the public address of its API server.

use std::net::Ipv4Addr;

use super::{
    control, egress,
    health::Health,
    names,
    peering::Networks,
    state::{End, Fabric, LOCAL, Link, MAIN, NamespaceState, Target, Tenancy},
    view::{View, is_there},
};
use crate::{
    addr::{Mac, Prefix4},
    model::{Machine, Nic, Role, Vnet},
    region::Region,
    routes::NOWHERE,
};

/// The MTU of every link, as in Azure.
pub(super) const MTU: u32 = 1500;
/// The router at the far end of an uplink or a control plane's leg. It is never on the wire: a permanent
/// neighbour says which Ethernet address it has.
pub(super) const FAR_END: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// The internet's Ethernet address.
pub(super) const INTERNET_MAC: Mac = Mac([0x12, 0x34, 0x56, 0x78, 0x9a, 0x01]);

/// Every destination.
pub(super) fn everywhere() -> Prefix4 {
    Prefix4::containing(Ipv4Addr::UNSPECIFIED, 0)
}

/// What the network namespaces of `lab` must look like for `region`, given who answers probes.
#[must_use]
pub fn compile_fabric(lab: &str, region: &Region, health: &Health) -> Fabric {
    let mut fabric = Fabric::default();
    let mut internet = internet();
    let networks = Networks::new(region);
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

fn connect_vnet(internet: &mut NamespaceState, lab: &str, view: &View<'_>) {
    let vnet = view.vnet;
    let link = names::internet_link_to_vnet(&vnet.meta.id);
    let peer =
        End { namespace: names::vnet_ns(lab, &vnet.meta.id), link: names::UPLINK.to_owned() };
    internet.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    for address in egress::public_addresses(view) {
        internet.neighbour(&link, address, Mac::FABRIC);
        internet.route(LOCAL, Prefix4::host(address), Target::Link(link.clone()));
    }
    internet.links.insert(link, Link { mac: INTERNET_MAC, mtu: MTU, peer });
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
    state.links.insert(names::ETH0.to_owned(), Link { mac: nic.mac, mtu: MTU, peer });
    // A node's other addresses are its pods'.
    let n_own = match machine.role {
        Role::Vm => nic.configs.len(),
        Role::Node(_) => 1,
    };
    for config in nic.configs.iter().take(n_own) {
        let subnet = vnet.subnets.values().find(|subnet| subnet.prefix.contains(config.address));
        let Some(subnet) = subnet else { continue };
        state.address(names::ETH0, config.address, subnet.prefix.length());
        if nic.address() == Some(config.address)
            && let Some(gateway) = subnet.prefix.nth(1)
        {
            state.route(MAIN, everywhere(), Target::Via(names::ETH0.to_owned(), gateway));
        }
    }
    if machine.role == Role::Vm {
        // Else removing an address takes those of the same subnet along that were added after it.
        state.sysctl(&format!("net/ipv4/conf/{}/promote_secondaries", names::ETH0), "1");
        if nic.ip_forwarding {
            state.sysctl("net/ipv4/ip_forward", "1");
        }
    }
    state
}

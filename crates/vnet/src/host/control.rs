//! A cluster's control plane: its namespace and its two legs. Not here: what runs in it.
//!
//! The leg into the cluster's virtual network stands for AKS's konnectivity tunnel. It speaks from an
//! address of the platform's (100.64.0.0/10), to which no user-defined route applies.

use std::net::Ipv4Addr;

use super::{
    fabric::{FAR_END, INTERNET_MAC, everywhere},
    names,
    state::{End, LOCAL, Link, MAIN, NamespaceState, Target},
    view::{View, mac_for},
};
use crate::{
    addr::{Mac, Prefix, Prefix4},
    model::{Cluster, NetworkMode, OverlayRanges, Vnet},
};

/// The address that a control plane speaks from inside the virtual network. API servers' addresses are
/// all of one small prefix, so their low 22 bits tell them apart.
pub(super) fn platform_address(cluster: &Cluster) -> Ipv4Addr {
    let low = u32::from(cluster.api_address) & 0x003f_ffff;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) | low)
}

/// The number of the table that leads to a cluster's pods.
pub(super) fn pod_table(cluster: &Cluster) -> u32 {
    cluster.api_address.into()
}

/// The ranges of pods that the fabric can reach node by node, IPv4 first.
pub(super) fn pod_ranges(cluster: &Cluster) -> Vec<Prefix> {
    match cluster.mode {
        NetworkMode::Kubenet | NetworkMode::Overlay => cluster.pod_cidrs(),
        NetworkMode::Azure | NetworkMode::None => Vec::new(),
    }
}

/// The ranges of an overlay cluster's pods, and the number of the conntrack zone that its flows are in: the low bits
/// of its API server's address, never 0 because that is everybody else's.
pub(super) fn overlay(cluster: &Cluster) -> Option<(OverlayRanges, u16)> {
    let [.., high, low] = cluster.api_address.octets();
    let zone = u16::from_be_bytes([high, low]).max(1);
    Some((cluster.overlay_ranges()?, zone))
}

fn leg_mac(cluster: &Cluster, leg: &str) -> Mac {
    mac_for(&format!("{}#{leg}", cluster.meta.id.key()))
}

/// Gives the internet its leg to a control plane.
pub(super) fn connect_internet(internet: &mut NamespaceState, lab: &str, cluster: &Cluster) {
    let link = names::internet_link_to_control_plane(&cluster.meta.id);
    let peer = End {
        namespace: names::control_plane_ns(lab, &cluster.meta.id),
        link: names::CONTROL_INTERNET.to_owned(),
    };
    internet.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    internet.neighbour(&link, cluster.api_address, leg_mac(cluster, names::CONTROL_INTERNET));
    internet.route(LOCAL, Prefix4::host(cluster.api_address), Target::Link(link.clone()));
    internet.links.insert(link, Link::new(INTERNET_MAC, peer));
}

/// A control plane's own namespace.
pub(super) fn plane(lab: &str, cluster: &Cluster, vnet: Option<&Vnet>) -> NamespaceState {
    let mut state = NamespaceState::default();
    for name in ["all", "default"] {
        state.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    }
    let leg = names::CONTROL_INTERNET.to_owned();
    let peer = End {
        namespace: names::internet_ns(lab),
        link: names::internet_link_to_control_plane(&cluster.meta.id),
    };
    state.links.insert(leg.clone(), Link::new(leg_mac(cluster, &leg), peer));
    state.sysctl(&format!("net/ipv4/conf/{leg}/rp_filter"), "0");
    state.address(&leg, cluster.api_address, 32);
    state.neighbour(&leg, FAR_END, INTERNET_MAC);
    state.route(MAIN, everywhere(), Target::via(&leg, FAR_END));

    let Some(vnet) = vnet else { return state };
    let leg = names::CONTROL_VNET.to_owned();
    let peer = End {
        namespace: names::vnet_ns(lab, &vnet.meta.id),
        link: names::control_port(&cluster.meta.id),
    };
    state.links.insert(leg.clone(), Link::new(leg_mac(cluster, &leg), peer));
    state.sysctl(&format!("net/ipv4/conf/{leg}/rp_filter"), "0");
    state.address(&leg, platform_address(cluster), 32);
    state.neighbour(&leg, FAR_END, Mac::FABRIC);
    // AKS' tunnel speaks IPv4, to nodes' and pods' first addresses.
    let all = vnet.prefixes.iter().copied().chain(pod_ranges(cluster));
    for prefix in all.filter_map(Prefix::as_v4) {
        state.route(MAIN, prefix, Target::via(&leg, FAR_END));
    }
    state
}

/// Gives a virtual network its leg to a control plane, and the table that leads to the cluster's pods.
pub(super) fn connect_vnet(
    state: &mut NamespaceState,
    lab: &str,
    cluster: &Cluster,
    view: &View<'_>,
) {
    let link = names::control_port(&cluster.meta.id);
    let peer = End {
        namespace: names::control_plane_ns(lab, &cluster.meta.id),
        link: names::CONTROL_VNET.to_owned(),
    };
    let address = platform_address(cluster);
    state.neighbour(&link, address, leg_mac(cluster, names::CONTROL_VNET));
    state.route(MAIN, Prefix4::host(address), Target::Link(link.clone()));
    state.links.insert(link, Link::new(Mac::FABRIC, peer));

    let table = pod_table(cluster);
    for range in pod_ranges(cluster) {
        state.route(table, range, Target::Blackhole);
    }
    for port in &view.ports {
        if port.cluster.is_none_or(|it| it.meta.id != cluster.meta.id) {
            continue;
        }
        for range in &port.pod_ranges {
            if let Some(main) = port.main_address(range.family()) {
                state.route(table, *range, Target::via(&port.link, main));
            }
        }
    }
}

//! What network namespaces and links are called. Not here: what is in them (see [`super::fabric`]).
//!
//! Every name begins with the lab's, so that labs do not meet on one machine. A short hash of the
//! resource's id keeps equal names in different resource groups apart; it does not change while the
//! resource lives.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use uuid::Uuid;

use crate::{
    model::{Direction, Machine, OverlayRanges, Role},
    name::ArmId,
};

/// The link from a virtual network's namespace to the internet's.
pub const UPLINK: &str = "uplink";
/// The one link of a machine.
pub const ETH0: &str = "eth0";
/// A control plane's link to the internet.
pub const CONTROL_INTERNET: &str = "internet";
/// A control plane's link to its cluster's virtual network.
pub const CONTROL_VNET: &str = "vnet";
/// How the name of a virtual network's port to a NIC begins.
pub const PORT_PREFIX: &str = "nic-";
/// How the name of a virtual network's port to a control plane begins.
pub const CONTROL_PREFIX: &str = "cp-";
/// How the name of a virtual network's link to a peer begins.
pub const PEER_PREFIX: &str = "peer-";
/// How the name of a virtual network's link to an appliance in a peer, or to a front end, begins.
pub const HOP_PREFIX: &str = "hop-";
/// How the name of the other end of a link to a front end of the same network begins.
pub const WAY_PREFIX: &str = "way-";
/// How the name of a security group's chain begins.
pub const GATE_PREFIX: &str = "nsg-";

/// The address of the image registry, on the internet's side.
pub const REGISTRY_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// The address that Azure's platform speaks from: health probes come from here.
pub const PLATFORM_ADDRESS: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// The one router of every IPv6 subnet, which IPv6 health probes come from, too
/// (Azure documentation, "Azure Load Balancer health probes"; Azure/azure-container-networking, `network/`, the constant
/// of pods' IPv6 gateway).
pub const GATEWAY_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);
/// The address of Azure's instance metadata service.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The namespace that stands for the internet.
#[must_use]
pub fn internet_ns(lab: &str) -> String {
    format!("{lab}-internet")
}

/// The namespace that routes for a virtual network.
#[must_use]
pub fn vnet_ns(lab: &str, vnet: &ArmId) -> String {
    format!("{lab}-vnet-{}-{}", file_name(vnet), short_hash(vnet))
}

/// The namespace of a VM or a node.
#[must_use]
pub fn machine_ns(lab: &str, machine: &Machine) -> String {
    match &machine.role {
        Role::Vm => vm_ns(lab, &machine.meta.id),
        Role::Node(_) => node_ns(lab, &machine.hostname),
    }
}

/// The namespace of a VM, by its id.
#[must_use]
pub fn vm_ns(lab: &str, machine: &ArmId) -> String {
    format!("{lab}-vm-{}-{}", file_name(machine), short_hash(machine))
}

/// The namespace of a node, by its host name, which is unique in a region.
#[must_use]
pub fn node_ns(lab: &str, hostname: &str) -> String {
    format!("{lab}-node-{hostname}")
}

/// The namespace of a cluster's control plane.
#[must_use]
pub fn control_plane_ns(lab: &str, cluster: &ArmId) -> String {
    format!("{lab}-cp-{}-{}", file_name(cluster), short_hash(cluster))
}

/// A virtual network's port to a NIC.
#[must_use]
pub fn port(nic: &ArmId) -> String {
    format!("{PORT_PREFIX}{}", link_hash(nic))
}

/// A virtual network's port to a control plane.
#[must_use]
pub fn control_port(cluster: &ArmId) -> String {
    format!("{CONTROL_PREFIX}{}", link_hash(cluster))
}

/// A virtual network's link to one that it is peered with.
#[must_use]
pub fn peer(remote: &ArmId) -> String {
    format!("{PEER_PREFIX}{}", link_hash(remote))
}

/// The link, of this name at both ends, by which what `vnet` routes to the appliance or the front end at `address` in a
/// peer gets there: its address is not in the packets, so their way must say it. To a front end of the network's own it
/// is the name of the end that they come out of, and [`way`] that of the other one.
#[must_use]
pub fn hop(vnet: &ArmId, address: IpAddr) -> String {
    let text = format!("{} {address}", vnet.key());
    format!("{HOP_PREFIX}{}", &hash_of(&text)[..10])
}

/// The link by which what `vnet` routes to its own front end at `address` goes in; it comes out of [`hop`].
#[must_use]
pub fn way(vnet: &ArmId, address: IpAddr) -> String {
    let text = format!("{} {address}", vnet.key());
    format!("{WAY_PREFIX}{}", &hash_of(&text)[..10])
}

/// The chain of one list of a security group, in the nftables table of each virtual network where it is attached.
/// To default rules a cluster's overlay ranges are part of the network, so each pair of them has a chain of its own.
///
/// Every rule of the chain that decides has a counter and, as its comment, the security rule's name.
/// The chain's own parts are named after it: `NAME-platform`, `NAME-n…`; see [`gate_of`].
#[must_use]
pub fn gate(group: &ArmId, direction: Direction, pod_ranges: Option<OverlayRanges>) -> String {
    let direction = match direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    };
    let group = link_hash(group);
    let Some(OverlayRanges { v4, v6 }) = pod_ranges else {
        return format!("{GATE_PREFIX}{group}-{direction}");
    };
    let (network, length) = (u32::from(v4.network()), v4.length());
    let mut name = format!("{GATE_PREFIX}{group}-{direction}-pods{network:08x}x{length}");
    if let Some(v6) = v6 {
        // The low half is free of hosts: such a range is a /80 at most, and its name must be short.
        let _ = write!(name, "y{:x}x{}", u128::from(v6.network()) >> 48, v6.length());
    }
    name
}

/// The group, as the hash that [`gate`] gives it, and the direction that a chain is about.
/// `None` when it is not a security group's.
#[must_use]
pub fn gate_of(chain: &str) -> Option<(&str, Direction)> {
    let (group, rest) = chain.strip_prefix(GATE_PREFIX)?.split_once('-')?;
    let direction = match rest.split('-').next()? {
        "in" => Direction::Inbound,
        "out" => Direction::Outbound,
        _ => return None,
    };
    Some((group, direction))
}

/// The internet's link to a virtual network.
#[must_use]
pub fn internet_link_to_vnet(vnet: &ArmId) -> String {
    format!("v-{}", link_hash(vnet))
}

/// The internet's link to a control plane.
#[must_use]
pub fn internet_link_to_control_plane(cluster: &ArmId) -> String {
    format!("c-{}", link_hash(cluster))
}

/// Whether a network namespace of this name is one that the fabric of this lab makes, and so may remove
/// when nothing asks for it.
///
/// A lab's name that begins like another lab's (`a` and `a-vnet`) cannot be told apart in every case,
/// so names of labs have no hyphen.
#[must_use]
pub fn is_fabric_ns(lab: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(lab).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    rest == "internet" || ["vnet-", "vm-", "node-", "cp-"].iter().any(|kind| rest.starts_with(kind))
}

/// The last part of an id as a part of a file name.
fn file_name(id: &ArmId) -> String {
    let name = id.name().to_ascii_lowercase();
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
        .collect()
}

fn hash(id: &ArmId) -> String {
    hash_of(id.key())
}

fn hash_of(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

/// Eight hexadecimal digits.
fn short_hash(id: &ArmId) -> String {
    hash(id)[..8].to_owned()
}

/// Ten hexadecimal digits: a link's name has at most 15 characters.
fn link_hash(id: &ArmId) -> String {
    hash(id)[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_fit_the_kernel_and_ids_compare_without_case() {
        let id = |text: &str| text.parse::<ArmId>().expect("an id");
        let a =
            id("/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/V");
        let b =
            id("/subscriptions/s/resourcegroups/g/providers/microsoft.network/virtualnetworks/v");
        assert_eq!(vnet_ns("lab", &a), vnet_ns("lab", &b));
        let hop = hop(&a, PLATFORM_ADDRESS.into());
        for name in [port(&a), control_port(&a), internet_link_to_vnet(&a), peer(&a), hop] {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn a_chain_says_whose_it_is() {
        let group = ArmId::group("s", "g").sibling("Microsoft.Network/networkSecurityGroups", "n");
        let v4 = crate::addr::Prefix4::containing([10, 244, 0, 0].into(), 16);
        let range = Some(OverlayRanges { v4, v6: None });
        for direction in [Direction::Inbound, Direction::Outbound] {
            for range in [None, range] {
                let name = gate(&group, direction, range);
                let expected = Some((&name[4..14], direction));
                assert_eq!(gate_of(&name), expected, "{name}");
                assert_eq!(gate_of(&format!("{name}-platform")), expected, "{name}");
            }
        }
        assert_eq!(gate_of("forward"), None);
    }

    #[test]
    fn only_the_labs_own_namespaces_are_its_own() {
        assert!(is_fabric_ns("aksnet", "aksnet-internet"));
        assert!(is_fabric_ns("aksnet", "aksnet-vnet-v-01234567"));
        assert!(!is_fabric_ns("aksnet", "aksnet2-internet"));
        assert!(!is_fabric_ns("aksnet", "aksnet"));
        assert!(!is_fabric_ns("aksnet", "cni-0123"));
    }
}

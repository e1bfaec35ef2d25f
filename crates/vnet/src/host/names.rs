//! What network namespaces and links are called. Not here: what is in them (see [`super::fabric`]).
//!
//! Every name begins with the lab's, so that labs do not meet on one machine. A short hash of the
//! resource's id keeps equal names in different resource groups apart; it does not change while the
//! resource lives.

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::{
    model::{Machine, Role},
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

/// The address of the image registry, on the internet's side.
pub const REGISTRY_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// The address that Azure's platform speaks from: health probes come from here.
pub const PLATFORM_ADDRESS: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// The address of Azure's instance metadata service, which this lab has not: nobody answers.
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
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.key().as_bytes()).simple().to_string()
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
        for name in [port(&a), control_port(&a), internet_link_to_vnet(&a)] {
            assert!(name.len() <= 15, "{name}");
        }
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

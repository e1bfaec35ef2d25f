//! NICs and the machines that have them.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Dataplane, Meta, NetworkMode, Timestamp};
use crate::{
    addr::{Family, Mac, Prefix, Prefix4, Prefix6},
    name::{ArmId, Name},
};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Id, location, tags, state. A scale set instance's NIC has its id below the instance.
    pub meta: Meta,
    /// Ethernet address, unique in the region.
    pub mac: Mac,
    /// Whether packets with foreign source or destination addresses pass.
    pub ip_forwarding: bool,
    /// The network security group that its packets meet.
    pub security_group: Option<ArmId>,
    /// The first is the primary one. All are in subnets of one virtual network.
    pub configs: Vec<IpConfiguration>,
    /// The machine that it is attached to.
    pub machine: Option<ArmId>,
}

impl Nic {
    /// The primary address, which is always IPv4.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.configs.first()?.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    /// The first IP configuration of a family: the primary one, or that of IPv6.
    #[must_use]
    pub fn config_of(&self, family: Family) -> Option<&IpConfiguration> {
        self.configs.iter().find(|config| Family::of(config.address) == family)
    }

    /// The address that load balancers know it by in a family.
    #[must_use]
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        self.config_of(family).map(|config| config.address)
    }

    /// The id of the virtual network.
    #[must_use]
    pub fn vnet(&self) -> Option<ArmId> {
        self.configs.first().and_then(|config| config.subnet.parent())
    }
}

/// An address of a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpConfiguration {
    /// `ipconfig1`, …
    pub name: String,
    /// The subnet's id.
    pub subnet: ArmId,
    /// The address.
    pub address: IpAddr,
    /// Chosen by the caller or by Azure.
    pub allocation: Allocation,
    /// The public IP of its own (instance-level).
    pub public_ip: Option<ArmId>,
    /// The application security groups that it is in.
    #[serde(default)]
    pub application_groups: Vec<ArmId>,
}

/// Who chose an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// The caller.
    Static,
    /// Azure: the lowest free one.
    Dynamic,
}

/// A computer with one NIC: a virtual machine, or an instance of a node pool's scale set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// Host name: the VM's name or the node's name.
    pub hostname: String,
    /// Its NIC.
    pub nic: ArmId,
    /// The name servers that its virtual network gave it when it was made; none means the platform.
    #[serde(default)]
    pub dns_servers: Vec<Ipv4Addr>,
    /// What it is for.
    pub role: Role,
}

/// What a [`Machine`] is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A virtual machine of the user's.
    Vm,
    /// A Kubernetes node.
    Node(NodeRole),
}

/// What makes a [`Machine`] a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRole {
    /// The cluster.
    pub cluster: ArmId,
    /// The node pool's name.
    pub pool: Name,
    /// The instance's number in the scale set, never used twice.
    pub instance: u32,
    /// The node's /24 of the cluster's pod CIDR: kubenet and overlay.
    pub pod_range: Option<Prefix4>,
    /// The node's /80 of the cluster's pod CIDR of IPv6, in dual-stack clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_range6: Option<Prefix6>,
    /// Where the node is.
    pub phase: NodePhase,
    /// What it was made from; `None` is what its cluster and pool say, before any upgrade.
    #[serde(default)]
    pub image: Option<NodeImage>,
    /// Where it is in an upgrade of its pool.
    #[serde(default)]
    pub step: UpgradeStep,
    /// Whether it is there only for as long as an upgrade of its pool.
    #[serde(default)]
    pub is_surge: bool,
}

impl NodeRole {
    /// The node's ranges of the cluster's pod CIDRs, IPv4 first (`spec.podCIDRs`).
    #[must_use]
    pub fn pod_ranges(&self) -> Vec<Prefix> {
        let v4 = self.pod_range.map(Prefix::from);
        [v4, self.pod_range6.map(Prefix::from)].into_iter().flatten().collect()
    }
}

/// What a node is made from: a node whose image is not its pool's is made anew in an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeImage {
    /// Kubernetes' version, `1.36.3`.
    pub version: String,
    /// How its pods get addresses.
    pub mode: NetworkMode,
    /// Who forwards its pods' packets.
    #[serde(default, skip_serializing_if = "Dataplane::is_azure")]
    pub dataplane: Dataplane,
    /// Counts the upgrades of the pool.
    pub number: u32,
}

/// Where a node is in an upgrade of its pool
/// (AKS documentation, "Upgrade an Azure Kubernetes Service (AKS) cluster", the upgrade's process).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpgradeStep {
    /// Not in one, or it is not its turn, or it is done.
    #[default]
    Idle,
    /// It takes no new pods, and those that it has are evicted.
    Draining {
        /// Since when.
        since: Timestamp,
    },
    /// Its pods are gone; its machine is stopped and forgotten.
    Stopping,
    /// It comes back, made from the pool's image, with the same name and addresses.
    Starting,
}

/// Where a node is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodePhase {
    /// Its machine is being made.
    Creating,
    /// Its kubelet has registered; it is not Ready (right for a cluster without a CNI).
    NotReady,
    /// Its kubelet says Ready.
    Ready,
}

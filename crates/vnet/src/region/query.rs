//! Questions about a region. Not here: anything that changes it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use uuid::Uuid;

use super::Region;
use crate::{
    addr::{Family, Prefix4},
    ipam::{self, SubnetUsage},
    kind,
    model::{
        AgentPool, Cluster, Machine, Nic, NodeRole, Operation, POD_BLOCK_LENGTH, Role, Subnet,
        Verb, Vnet,
    },
    name::{ArmId, Name},
    policy::tags::ServiceTags,
};

/// The answer to `CheckIPAddressAvailability`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// Whether a resource could have it.
    pub available: bool,
    /// Whether it is one of the five that Azure keeps.
    pub is_platform_reserved: bool,
    /// When it is not available: up to five free ones of the same subnet (of the first subnet, when it is in none).
    pub alternatives: Vec<IpAddr>,
}

impl Machine {
    /// What makes it a node, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<&NodeRole> {
        match &self.role {
            Role::Node(node) => Some(node),
            Role::Vm => None,
        }
    }
}

impl Region {
    /// The service tags that security rules can name.
    #[must_use]
    pub fn service_tags(&self) -> &ServiceTags {
        self.given_tags.as_deref().unwrap_or_else(|| ServiceTags::built_in())
    }

    /// A subnet and the virtual network that it is in.
    #[must_use]
    pub fn subnet(&self, id: &ArmId) -> Option<(&Arc<Vnet>, &Subnet)> {
        if !id.is_kind(kind::SUBNET) {
            return None;
        }
        let vnet = self.vnets.get(&id.parent()?)?;
        Some((vnet, vnet.subnets.get(&Name::new(id.name()))?))
    }

    /// A node pool and the cluster that it is in.
    #[must_use]
    pub fn pool(&self, id: &ArmId) -> Option<(&Arc<Cluster>, &AgentPool)> {
        if !id.is_kind(kind::POOL) {
            return None;
        }
        let cluster = self.clusters.get(&id.parent()?)?;
        Some((cluster, cluster.pools.get(&Name::new(id.name()))?))
    }

    /// The nodes of a cluster with those that are going, by pool and instance.
    #[must_use]
    pub fn nodes_of(&self, cluster: &ArmId) -> Vec<&Arc<Machine>> {
        let mut nodes: Vec<_> = self
            .machines
            .values()
            .filter_map(|machine| machine.node().map(|node| (node, machine)))
            .filter(|(node, _)| node.cluster == *cluster)
            .collect();
        nodes.sort_by_key(|(node, _)| (&node.pool, node.instance));
        nodes.into_iter().map(|(_, machine)| machine).collect()
    }

    /// The NIC of a machine.
    #[must_use]
    pub fn nic_of(&self, machine: &ArmId) -> Option<&Arc<Nic>> {
        self.nics.get(&self.machines.get(machine)?.nic)
    }

    /// The free addresses of a subnet, lowest first.
    pub fn free_addresses(&self, subnet: &ArmId) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.subnet(subnet).into_iter().flat_map(|(_, subnet)| subnet.free_addresses())
    }

    /// How full a subnet is.
    #[must_use]
    pub fn subnet_usage(&self, subnet: &ArmId) -> Option<SubnetUsage> {
        self.subnet(subnet).map(|(_, subnet)| subnet.usage())
    }

    /// The pod addresses that a node holds, lowest first.
    #[must_use]
    pub fn pod_addresses_of(&self, machine: &ArmId) -> Vec<Ipv4Addr> {
        let pod_subnet = self.machines.get(machine).and_then(|machine| {
            let node = machine.node()?;
            self.clusters.get(&node.cluster)?.pools.get(&node.pool)?.pod_subnet.clone()
        });
        let Some((_, subnet)) = pod_subnet.as_ref().and_then(|id| self.subnet(id)) else {
            return Vec::new();
        };
        let is_its = |holder: &crate::model::Holder| matches!(holder, crate::model::Holder::PodBatch { node } if node == machine);
        subnet
            .held
            .iter()
            .filter(|(_, holder)| is_its(holder))
            .filter_map(|(address, _)| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            })
            .collect()
    }

    /// The static blocks of a node's pods, lowest first: those that its pod addresses are of.
    #[must_use]
    pub fn pod_blocks_of(&self, machine: &ArmId) -> Vec<Prefix4> {
        let addresses = self.pod_addresses_of(machine).into_iter();
        let blocks = addresses.map(|address| Prefix4::containing(address, POD_BLOCK_LENGTH));
        blocks.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a resource could have `address` in the virtual network `vnet`, and what else it could have.
    #[must_use]
    pub fn address_availability(&self, vnet: &ArmId, address: IpAddr) -> Option<Availability> {
        let vnet = self.vnets.get(vnet)?;
        let around = vnet.subnet_of(address);
        let is_platform_reserved = around
            .and_then(|subnet| subnet.prefix_of(Family::of(address)))
            .is_some_and(|prefix| ipam::is_reserved(prefix, address));
        let available = !is_platform_reserved
            && around.is_some_and(|subnet| !subnet.held.contains_key(&address));
        let alternatives = match around.or_else(|| vnet.subnets.values().next()) {
            Some(subnet) if !available => match address {
                IpAddr::V4(_) => subnet.free_addresses().map(IpAddr::V4).take(5).collect(),
                IpAddr::V6(_) => subnet.free_addresses6().map(IpAddr::V6).take(5).collect(),
            },
            _ => Vec::new(),
        };
        Some(Availability { available, is_platform_reserved, alternatives })
    }

    /// Everything in a resource group, by id: no children, and no parts of scale sets.
    #[must_use]
    pub fn resources_in_group(&self, group: &ArmId) -> Vec<ArmId> {
        let mut all: Vec<ArmId> = self
            .vnets
            .keys()
            .chain(self.route_tables.keys())
            .chain(self.security_groups.keys())
            .chain(self.application_groups.keys())
            .chain(self.nat_gateways.keys())
            .chain(self.public_ip_prefixes.keys())
            .chain(self.public_ips.keys())
            .chain(self.balancers.keys())
            .chain(self.clusters.keys())
            .chain(self.nics.keys().filter(|id| id.is_kind(kind::NIC)))
            .chain(self.machines.keys().filter(|id| id.is_kind(kind::VM)))
            .filter(|id| id.resource_group_id() == *group)
            .cloned()
            .collect();
        all.sort();
        all
    }

    /// The operation on `target` that still runs, the newest one when there are several.
    #[must_use]
    pub fn running_operation(&self, target: &ArmId) -> Option<&Arc<Operation>> {
        self.operations
            .values()
            .filter(|operation| operation.ended.is_none() && operation.target == *target)
            .max_by_key(|operation| operation.generation)
    }

    /// The write under way on a cluster or on one of its pools.
    #[must_use]
    pub fn running_write(&self, cluster: &ArmId) -> Option<&Arc<Operation>> {
        self.operations.values().find(|operation| {
            operation.ended.is_none()
                && matches!(operation.verb, Verb::Put | Verb::Delete)
                && (operation.target == *cluster
                    || operation.target.parent().as_ref() == Some(cluster))
        })
    }

    /// An operation by id.
    #[must_use]
    pub fn operation(&self, id: Uuid) -> Option<&Arc<Operation>> {
        self.operations.get(&id)
    }

    /// The subnets that have the route table `id`: what its `subnets` shows.
    #[must_use]
    pub fn subnets_of_route_table(&self, id: &ArmId) -> Vec<ArmId> {
        let mut subnets = Vec::new();
        for vnet in self.vnets.values() {
            for subnet in vnet.subnets.values() {
                if subnet.route_table.as_ref() == Some(id) {
                    subnets.push(vnet.meta.id.child("subnets", subnet.name.as_str()));
                }
            }
        }
        subnets
    }
}

//! How many addresses node pools need: the one formula behind refusals, plans and reports.
//!
//! Sources: Azure AKS documentation, "IP address planning for your AKS clusters" and "Configure Azure CNI
//! networking for dynamic allocation of IPs"; the service's own refusals in Azure/AKS issues 456, 1795, 4035,
//! 4467 and Azure/AKS-Construction issue 701.

use crate::{
    addr::Prefix4,
    fault::Fault,
    ipam::n_usable,
    model::{AgentPool, NetworkMode, POD_BATCH, PodAllocation},
};

/// Addresses of the pod CIDR per node: a /24 (Azure AKS documentation, "Azure CNI Overlay networking").
pub const POD_RANGE: u64 = 256;
/// The length of a node's range of the pod CIDR.
pub const POD_RANGE_LENGTH: u8 = 24;
/// The length of a node's range of the pod CIDR of IPv6
/// (MicrosoftDocs/azure-aks-docs, `configure-dual-stack.md`: nodes of a /64 have `/80`s).
pub const POD_RANGE6_LENGTH: u8 = 80;
/// Routes in a route table, so nodes of a kubenet cluster (Azure subscription and service limits).
pub const MAX_KUBENET_NODES: u32 = 400;
/// Nodes of a dual-stack kubenet cluster: each has a route per family (AKS documentation, "Use dual-stack kubenet
/// networking").
pub const MAX_DUAL_KUBENET_NODES: u32 = 200;
/// Nodes of any other cluster (AKS documentation, "Quotas, virtual machine size restrictions, and region availability").
pub const MAX_NODES: u32 = 5_000;
/// Nodes of a pool (same page).
pub const MAX_POOL_NODES: u32 = 1_000;
/// Pools of a cluster (same page).
pub const MAX_POOLS: usize = 100;
/// Pods per node, smallest and largest (same page).
pub const POD_LIMITS: std::ops::RangeInclusive<u32> = 10..=250;

/// How many extra nodes an upgrade of `nodes` nodes makes: a number, or a percentage rounded up; never more
/// than there are nodes. `None` when `max_surge` is neither
/// (AKS documentation, "Customize node surge upgrade").
#[must_use]
pub fn surge_nodes(max_surge: &str, nodes: u32) -> Option<u32> {
    let surge = match max_surge.strip_suffix('%') {
        Some(percent) => {
            let percent: u32 = percent.parse().ok()?;
            if percent > 100 {
                return None;
            }
            (u64::from(nodes) * u64::from(percent)).div_ceil(100)
        }
        None => u64::from(max_surge.parse::<u32>().ok()?),
    };
    u32::try_from(surge).ok().map(|surge| surge.min(nodes))
}

/// What a pool's need depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// How pods get addresses.
    pub mode: NetworkMode,
    /// Whether pods have a subnet of their own.
    pub pod_subnet: bool,
    /// How that subnet is shared out.
    pub pod_allocation: PodAllocation,
    /// Nodes at most: the autoscaler's maximum, or the count, and surge when that is asked about.
    pub nodes: u32,
    /// Pods per node.
    pub max_pods: u32,
}

impl PoolSize {
    /// The size of `pool` in a cluster of `mode`, as the service counts it on creation and scaling: the
    /// autoscaler's maximum where there is one, and no surge.
    #[must_use]
    pub fn of(mode: NetworkMode, pool: &AgentPool) -> Self {
        Self {
            mode,
            pod_subnet: pool.pod_subnet.is_some(),
            pod_allocation: pool.pod_allocation,
            nodes: pool.autoscale.map_or(pool.count, |(_, most)| most.max(pool.count)),
            max_pods: pool.max_pods,
        }
    }

    /// Addresses of the node subnet that each node takes for as long as it lives.
    #[must_use]
    pub fn per_node(self) -> u32 {
        match self.mode {
            NetworkMode::Azure if !self.pod_subnet => 1 + self.max_pods,
            NetworkMode::Azure
            | NetworkMode::Kubenet
            | NetworkMode::Overlay
            | NetworkMode::None => 1,
        }
    }
}

/// What a pool needs of each range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Addresses of the node subnet.
    pub node_subnet: u64,
    /// Addresses of the pod subnet: the first batch of each node, or all its blocks.
    pub pod_subnet: u64,
    /// Addresses of the pod CIDR.
    pub pod_cidr: u64,
}

/// What a pool of this size needs.
#[must_use]
pub fn planned_need(size: PoolSize) -> Need {
    let nodes = u64::from(size.nodes);
    Need {
        node_subnet: nodes * u64::from(size.per_node()),
        pod_subnet: match (size.pod_subnet, size.pod_allocation) {
            (false, _) => 0,
            (true, PodAllocation::Dynamic) => nodes * POD_BATCH as u64,
            (true, PodAllocation::StaticBlock) => {
                nodes * u64::from(n_blocks(size.max_pods)) * POD_BATCH as u64
            }
        },
        pod_cidr: match size.mode {
            NetworkMode::Kubenet | NetworkMode::Overlay => nodes * POD_RANGE,
            NetworkMode::Azure | NetworkMode::None => 0,
        },
    }
}

/// Blocks of /28 that a node of a static pod subnet has: room for its pods and for one address of its own
/// (AKS documentation, "Configure Azure CNI Pod Subnet - Static Block Allocation", planning of IP addresses).
#[must_use]
pub fn n_blocks(max_pods: u32) -> u32 {
    (max_pods + 1).div_ceil(16)
}

/// Pod addresses that a node of a dynamic pod subnet has with `pods` running
/// (Azure/azure-container-networking, `cns/ipampool/v2`: batch 16, buffer 0.5; `maxIPCount` 250).
#[must_use]
pub fn pod_addresses(pods: u32) -> u32 {
    // ceil(0.5 + pods / 16) batches, in halves of a batch.
    let batches = (8 + pods).div_ceil(16);
    (16 * batches).min(250)
}

/// A range that is too small: `InsufficientSubnetSize`, in the service's words.
#[derive(Clone, Copy, Debug)]
pub enum Range<'a> {
    /// A subnet by name; the target is the property that names it.
    Subnet(&'a str, Prefix4, &'a str),
    /// The pod CIDR.
    PodCidr(Prefix4),
}

/// Refuses when `need` addresses do not fit into `range`.
pub fn check_fits(need: u64, range: Range<'_>) -> Result<(), Fault> {
    let (available, prefix, name, target) = match range {
        Range::Subnet(name, prefix, target) => (n_usable(prefix), prefix, name, target),
        // Azure/AKS-Construction issue 701: all 1024 of a /22, and the target stands for the name.
        Range::PodCidr(prefix) => {
            let target = "networkProfile.podCIDR";
            (prefix.n_addresses(), prefix, target, target)
        }
    };
    if need <= available {
        return Ok(());
    }
    Err(Fault::bad(
        "InsufficientSubnetSize",
        format!(
            "Pre-allocated IPs {need} exceeds IPs available {available} in Subnet Cidr {prefix}, Subnet Name {name}. \
             If Autoscaler is enabled, the max-count from each nodepool is counted towards this total \
             (which means that pre-allocated IPs count represents a theoretical max value, not the actual \
             number of IPs requested). http://aka.ms/aks/insufficientsubnetsize"
        ),
    )
    .at(target))
}

//! Managed clusters and their node pools.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Generation, Kept, Meta, NodeImage, NodePhase, ProvisioningState, Timestamp};
use crate::{
    addr::{Prefix, Prefix4, Prefix6},
    name::{ArmId, Name},
};

/// How a cluster's pods get addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// A /24 of the pod CIDR per node, a route per node, NAT to the node's address.
    Kubenet,
    /// `networkPlugin: azure` without a mode: addresses of the node subnet, or of a pool's pod subnet.
    Azure,
    /// A /24 of the pod CIDR per node, routed by the fabric itself.
    Overlay,
    /// Bring your own CNI.
    None,
}

/// `networkMode`: how the pods of a node subnet are connected to their node. Azure offered the choice until
/// 2021 and calls `Bridge` no longer supported
/// (Azure/azure-rest-api-specs, `managedClusters.json`, `NetworkMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkLinks {
    /// Veths that the node routes to.
    Transparent,
    /// Pods and NIC are ports of bridge `azure0`.
    Bridge,
}

/// `networkDataplane`: who forwards the packets of a cluster's pods, on its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dataplane {
    /// The nodes' own routes and filters, and kube-proxy.
    #[default]
    Azure,
    /// Cilium's programs in eBPF, which take kube-proxy's place and enforce network policies.
    Cilium,
}

impl Dataplane {
    /// Whether it is what clusters have unless they ask for another; such is not written down.
    #[must_use]
    pub fn is_azure(&self) -> bool {
        *self == Self::Azure
    }
}

/// `networkPolicy`: who enforces Kubernetes' network policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkPolicy {
    /// Nobody.
    None,
    /// Azure's Network Policy Manager.
    Azure,
    /// Calico.
    Calico,
    /// Cilium, which comes with data plane [`Dataplane::Cilium`] and with no other.
    Cilium,
}

/// `advancedNetworking`: what AKS calls Advanced Container Networking Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdvancedNetworking {
    /// Metrics and flows of pods.
    pub observability: bool,
    /// Cilium's policies of more than addresses and ports; `None` is off.
    pub security: Option<AdvancedPolicies>,
}

impl AdvancedNetworking {
    /// Whether anything of it is on.
    #[must_use]
    pub fn is_enabled(self) -> bool {
        self.observability || self.security.is_some()
    }
}

/// `advancedNetworkPolicies`: what Cilium's policies may name besides addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdvancedPolicies {
    /// Nothing.
    None,
    /// Names that DNS knows (`toFQDNs`).
    Fqdn,
    /// Requests of HTTP, gRPC and Kafka, too.
    L7,
}

impl NetworkMode {
    /// Whether a node in `phase` is as it should be: without a CNI it cannot be Ready.
    #[must_use]
    pub fn is_up(self, phase: NodePhase) -> bool {
        match phase {
            NodePhase::Creating => false,
            NodePhase::NotReady => self == NetworkMode::None,
            NodePhase::Ready => true,
        }
    }
}

/// How a cluster's machines reach the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundType {
    /// Through load balancer `kubernetes` and its outbound rule.
    LoadBalancer,
    /// Through a NAT gateway that AKS makes for its managed virtual network.
    ManagedNatGateway,
    /// Through the NAT gateway that the user's subnets have.
    UserAssignedNatGateway,
    /// Through what the subnet's route table says.
    UserDefinedRouting,
    /// Not at all by AKS' doing.
    None,
    /// Not at all: AKS' network security group denies it.
    Block,
}

/// A managed cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// When it was asked for.
    pub created: Timestamp,
    /// Kubernetes' version, `1.36.3`.
    pub version: String,
    /// `<dns_prefix>-<8>.hcp.<location>.azmk8s.io`.
    pub dns_prefix: String,
    /// The API server's public name.
    pub fqdn: String,
    /// The API server's public address, of the lab's internet.
    pub api_address: Ipv4Addr,
    /// The id of the node resource group, `MC_…`.
    pub node_group: ArmId,
    /// Eight decimal digits that name its parts.
    pub hash: String,
    /// The system-assigned identity's object id.
    pub principal: Uuid,
    /// How pods get addresses.
    pub mode: NetworkMode,
    /// `networkMode`, when it was given; `Transparent` else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<NetworkLinks>,
    /// Who forwards pods' packets; `Cilium` only where addresses are Azure's.
    #[serde(default, skip_serializing_if = "Dataplane::is_azure")]
    pub dataplane: Dataplane,
    /// Who enforces network policies, when anything was said of it: `Cilium` where Cilium forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
    /// Advanced Container Networking Services, when anything was said of them; security only with Cilium.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advanced_networking: Option<AdvancedNetworking>,
    /// Kubenet and overlay always; `None` mode when given.
    pub pod_cidr: Option<Prefix4>,
    /// The pods' range of IPv6: dual-stack kubenet and overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr6: Option<Prefix6>,
    /// The services' range.
    pub service_cidr: Prefix4,
    /// The services' range of IPv6: dual-stack clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_cidr6: Option<Prefix6>,
    /// The cluster DNS' address in it.
    pub dns_service_ip: Ipv4Addr,
    /// How machines reach the internet.
    pub outbound: OutboundType,
    /// What was asked of the addresses that machines are seen with outside.
    #[serde(default)]
    pub outbound_profile: OutboundProfile,
    /// The virtual network of all its pools.
    pub vnet: ArmId,
    /// The managed route table: kubenet.
    pub route_table: Option<ArmId>,
    /// The managed network security group, `aks-agentpool-<hash>-nsg`.
    pub security_group: Option<ArmId>,
    /// Node pools by name.
    pub pools: BTreeMap<Name, AgentPool>,
}

/// `loadBalancerProfile` and `natGatewayProfile`: how many outbound addresses there are, and how ports are shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundProfile {
    /// Where the addresses come from.
    pub addresses: OutboundAddresses,
    /// How many addresses of IPv6 AKS makes beside managed ones, 0 to 100; `None` is one in a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_v6: Option<u32>,
    /// SNAT ports per node and address, a multiple of 8; 0 is Azure's default by pool size.
    pub allocated_ports: u32,
    /// Minutes.
    pub idle_timeout_minutes: u32,
}

/// Where a cluster's outbound addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum OutboundAddresses {
    /// AKS makes this many, 1 to 100 (NAT gateway: 16).
    Managed(u32),
    /// The user's public IPs.
    PublicIps(Vec<ArmId>),
    /// The user's public IP prefixes.
    Prefixes(Vec<ArmId>),
}

impl Default for OutboundProfile {
    /// One managed address, ports by pool size, Azure's 30 minutes.
    fn default() -> Self {
        Self {
            addresses: OutboundAddresses::Managed(1),
            managed_v6: None,
            allocated_ports: 0,
            idle_timeout_minutes: 30,
        }
    }
}

/// The ranges of an overlay cluster's pods: a routing domain of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverlayRanges {
    /// Of IPv4.
    pub v4: Prefix4,
    /// Of IPv6, in dual-stack clusters.
    pub v6: Option<Prefix6>,
}

impl OverlayRanges {
    /// All of them, IPv4 first.
    pub fn prefixes(self) -> impl Iterator<Item = Prefix> {
        both(Some(self.v4), self.v6).into_iter()
    }

    /// Whether `address` is in one of them.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.prefixes().any(|range| range.contains(address))
    }
}

impl Cluster {
    /// The ranges of its pods, if it is an overlay cluster.
    #[must_use]
    pub fn overlay_ranges(&self) -> Option<OverlayRanges> {
        let v4 = self.pod_cidr.filter(|_| self.mode == NetworkMode::Overlay)?;
        Some(OverlayRanges { v4, v6: self.pod_cidr6 })
    }

    /// Whether its nodes, pods and services have IPv6 beside IPv4 (`ipFamilies`).
    #[must_use]
    pub fn is_dual_stack(&self) -> bool {
        self.service_cidr6.is_some()
    }

    /// The pods' ranges, IPv4 first (`podCidrs`).
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<Prefix> {
        both(self.pod_cidr, self.pod_cidr6)
    }

    /// How many managed outbound addresses of IPv6 it has.
    #[must_use]
    pub fn n_managed_v6(&self) -> u32 {
        match self.outbound_profile.addresses {
            OutboundAddresses::Managed(_) => {
                self.outbound_profile.managed_v6.unwrap_or(u32::from(self.is_dual_stack()))
            }
            OutboundAddresses::PublicIps(_) | OutboundAddresses::Prefixes(_) => 0,
        }
    }

    /// The services' ranges, IPv4 first (`serviceCidrs`).
    #[must_use]
    pub fn service_cidrs(&self) -> Vec<Prefix> {
        both(Some(self.service_cidr), self.service_cidr6)
    }

    /// The node pools in the order in which they were made, which is Azure's.
    #[must_use]
    pub fn pools_in_order(&self) -> Vec<&AgentPool> {
        let mut pools: Vec<&AgentPool> = self.pools.values().collect();
        pools.sort_by_key(|pool| pool.ordinal);
        pools
    }
}

/// What there is of both families, IPv4 first.
fn both(v4: Option<Prefix4>, v6: Option<Prefix6>) -> Vec<Prefix> {
    [v4.map(Prefix::from), v6.map(Prefix::from)].into_iter().flatten().collect()
}

/// A node pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPool {
    /// Its name.
    pub name: Name,
    /// System or User.
    pub mode: PoolMode,
    /// How many nodes are asked for.
    pub count: u32,
    /// Pods per node, 10 to 250.
    pub max_pods: u32,
    /// The node subnet.
    pub subnet: ArmId,
    /// Whether the caller named the subnet (`vnetSubnetID`); a managed one is not shown.
    pub subnet_given: bool,
    /// The pods' subnet.
    pub pod_subnet: Option<ArmId>,
    /// How the pods' subnet is shared out.
    #[serde(default)]
    pub pod_allocation: PodAllocation,
    /// The version of its nodes.
    pub version: String,
    /// `Standard_D2s_v3`.
    pub vm_size: String,
    /// Labels of its nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints of its nodes, `key=value:Effect`.
    pub taints: Vec<String>,
    /// `10%`, `33%`, `1`.
    pub max_surge: String,
    /// How many nodes may be away in an upgrade instead of surge nodes: `0`, `1`, `10%`.
    #[serde(default = "no_nodes")]
    pub max_unavailable: String,
    /// Minutes that pods have to leave a node in an upgrade, 1 to 1440.
    #[serde(default = "half_an_hour")]
    pub drain_timeout_minutes: u32,
    /// Counts the upgrades of its nodes.
    #[serde(default)]
    pub image: u32,
    /// The upgrade of its nodes that is under way.
    #[serde(default)]
    pub upgrade: Option<Upgrade>,
    /// Minimum and maximum, when the autoscaler is on.
    pub autoscale: Option<(u32, u32)>,
    /// Counts the cluster's pools as they were made; Azure lists them in this order.
    pub ordinal: u32,
    /// The next instance's number in its scale set.
    pub next_instance: u32,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Changes with every write.
    pub etag: Uuid,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

/// An upgrade of a pool's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// How many nodes are drained or made anew at a time: as many as there are surge nodes.
    pub at_once: u32,
}

fn no_nodes() -> String {
    "0".to_owned()
}

fn half_an_hour() -> u32 {
    30
}

impl AgentPool {
    /// What its nodes are made from, in its `cluster`.
    #[must_use]
    pub fn image(&self, cluster: &Cluster) -> NodeImage {
        NodeImage {
            version: self.version.clone(),
            mode: cluster.mode,
            dataplane: cluster.dataplane,
            number: self.image,
        }
    }
}

/// How a node gets addresses of its pod subnet (`podIPAllocationMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodAllocation {
    #[default]
    /// In batches of [`super::POD_BATCH`], more and fewer as its pods come and go.
    Dynamic,
    /// In blocks of /28 for as many pods as it may have, when it is made.
    StaticBlock,
}

/// What a node pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMode {
    /// Runs the cluster's own pods; there is always one.
    System,
    /// Runs the user's pods.
    User,
}

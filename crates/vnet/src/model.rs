//! The resources of a region, as values. Not here: how they change (see [`crate::region`]).
//!
//! Every resource that Azure Resource Manager shows has an [`ArmId`], a [`ProvisioningState`] and an
//! etag. What a request sets and nothing here acts on is in `kept`: property path to JSON text,
//! opaque to this crate, so that a `GET` gives back what a `PUT` gave.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    addr::{Mac, Prefix4},
    fault::Fault,
    name::{ArmId, Name},
};

/// Milliseconds since 1970-01-01T00:00:00Z. The caller's clock; this crate has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// Counts accepted commands, from 1. A resource changed by command `g` is real once the loops have
/// seen a state of generation `g` or later.
pub type Generation = u64;

/// Properties that are kept and given back but not acted upon: path to JSON text.
pub type Kept = BTreeMap<String, String>;

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// Where a resource is between request and reality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvisioningState {
    /// Being made; shown for clusters and pools (network resources show `Updating` here too).
    Creating,
    /// Being changed.
    Updating,
    /// A pool is getting or losing nodes.
    Scaling,
    /// A pool or cluster is getting another version.
    Upgrading,
    /// Being removed.
    Deleting,
    /// As asked, and real.
    Succeeded,
    /// The last operation failed; its operation says why.
    Failed,
}

/// What every resource has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The resource's id.
    pub id: ArmId,
    /// The region's name, `eastus`.
    pub location: String,
    /// Tags, in order.
    pub tags: Tags,
    /// Changes with every write. Subnets and other children have their own `etag` but Azure shows the parent's.
    pub etag: Uuid,
    /// Never changes (`resourceGuid`).
    pub guid: Uuid,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

/// A resource group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceGroup {
    /// Its id.
    pub id: ArmId,
    /// The region's name.
    pub location: String,
    /// Tags.
    pub tags: Tags,
    /// The cluster that this node resource group belongs to.
    pub managed_by: Option<ArmId>,
    /// `Deleting` while its resources go.
    pub state: ProvisioningState,
}

/// A virtual network with its subnets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vnet {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The address space: no two overlap.
    pub prefixes: Vec<Prefix4>,
    /// Its subnets: each inside the address space, no two overlap.
    pub subnets: BTreeMap<Name, Subnet>,
    /// The public address that machines without an outbound method of their own are seen with
    /// (Azure's default outbound access).
    pub default_outbound: Ipv4Addr,
}

/// A subnet and who holds its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Its name.
    pub name: Name,
    /// Its one IPv4 prefix, /29 or larger.
    pub prefix: Prefix4,
    /// The route table that its machines' packets meet.
    pub route_table: Option<ArmId>,
    /// At most one in practice.
    pub delegations: Vec<Delegation>,
    /// Clusters whose pods live here: each is a service association link `AzureKubernetesService`.
    pub association_links: Vec<ArmId>,
    /// Every held address. None of the five reserved is ever here.
    pub held: BTreeMap<Ipv4Addr, Holder>,
    /// `Disabled` (default), `Enabled`, …
    pub private_endpoint_network_policies: String,
    /// `Enabled` (default) or `Disabled`.
    pub private_link_service_network_policies: String,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

/// A subnet given to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegation {
    /// `aks-delegation` when AKS made it.
    pub name: Name,
    /// `Microsoft.ContainerService/managedClusters`.
    pub service: String,
    /// What the service may do, `Microsoft.Network/virtualNetworks/subnets/join/action`.
    pub actions: Vec<String>,
}

/// Who holds an address of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Holder {
    /// An IP configuration of a NIC.
    IpConfiguration {
        /// The NIC.
        nic: ArmId,
        /// The IP configuration's name.
        config: String,
    },
    /// A front end of an internal load balancer.
    Frontend {
        /// The load balancer.
        balancer: ArmId,
        /// The front end's name.
        frontend: String,
    },
    /// Given to a node for its pods, in batches of [`POD_BATCH`].
    PodBatch {
        /// The node, by its machine's id.
        node: ArmId,
    },
}

/// How many addresses of a pod subnet a node gets at a time
/// (Azure/azure-container-networking, scaler default `batchSize`).
pub const POD_BATCH: usize = 16;

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
    /// The first is the primary one. All are in subnets of one virtual network.
    pub configs: Vec<IpConfiguration>,
    /// The machine that it is attached to.
    pub machine: Option<ArmId>,
}

impl Nic {
    /// The primary address.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.configs.first().map(|config| config.address)
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
    pub address: Ipv4Addr,
    /// Chosen by the caller or by Azure.
    pub allocation: Allocation,
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
    /// Where the node is.
    pub phase: NodePhase,
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

/// A route table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// Routes by name.
    pub routes: BTreeMap<Name, Route>,
    /// Kept; there is no gateway here that could propagate any.
    pub disable_bgp_route_propagation: bool,
}

/// A user-defined route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name, up to 80 characters.
    pub name: Name,
    /// Destination.
    pub prefix: Prefix4,
    /// Where to.
    pub next_hop: NextHop,
}

/// A route's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHop {
    /// Through a machine with IP forwarding.
    VirtualAppliance(Ipv4Addr),
    /// Inside the virtual network.
    VnetLocal,
    /// Out of the virtual network.
    Internet,
    /// Dropped.
    None,
}

/// A public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIp {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The address, of the lab's internet.
    pub address: Ipv4Addr,
    /// `Static` always for Standard.
    pub allocation: Allocation,
    /// `Standard`, `Basic`.
    pub sku: String,
    /// The front end or IP configuration that uses it, as an id.
    pub used_by: Option<String>,
}

/// A load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancer {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// `Standard`.
    pub sku: String,
    /// Front ends by name.
    pub frontends: BTreeMap<Name, Frontend>,
    /// Back-end pools by name.
    pub pools: BTreeMap<Name, BackendPool>,
    /// Probes by name.
    pub probes: BTreeMap<Name, Probe>,
    /// Load-balancing rules by name.
    pub rules: BTreeMap<Name, BalancingRule>,
    /// Outbound rules by name.
    pub outbound_rules: BTreeMap<Name, OutboundRule>,
}

/// A front end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Frontend {
    /// A private address.
    Internal {
        /// The subnet's id.
        subnet: ArmId,
        /// The address.
        address: Ipv4Addr,
        /// Who chose it.
        allocation: Allocation,
    },
    /// A public one.
    Public {
        /// The public IP's id.
        public_ip: ArmId,
    },
}

/// Machines behind a load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendPool {
    /// The NICs, by id: their primary addresses are the members.
    pub members: Vec<ArmId>,
}

/// A health probe. It comes from 168.63.129.16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// TCP, HTTP or HTTPS.
    pub protocol: ProbeProtocol,
    /// On the member's primary address.
    pub port: u16,
    /// For HTTP.
    pub path: String,
    /// Seconds between probes, 5 or more.
    pub interval_seconds: u32,
    /// How many in a row change the verdict.
    pub threshold: u32,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// A connection is made.
    Tcp,
    /// `GET path` answers 200.
    Http,
    /// The same over TLS.
    Https,
}

/// A transport protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Both, every port: a high-availability-ports rule, or an outbound rule.
    All,
}

/// A load-balancing rule.
#[expect(
    clippy::struct_excessive_bools,
    reason = "Azure's independent switches, one property each"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalancingRule {
    /// The front end's name.
    pub frontend: Name,
    /// The pool's name.
    pub pool: Name,
    /// The probe's name.
    pub probe: Option<Name>,
    /// Protocol.
    pub protocol: Transport,
    /// 1 to 65534; 0 with [`Transport::All`].
    pub frontend_port: u16,
    /// The member's port; equal to the front end's with floating IP.
    pub backend_port: u16,
    /// Whether the packet keeps the front end's address as its destination (direct server return).
    pub floating_ip: bool,
    /// Whether a client always meets the same member (`SourceIP`), or each flow by its 5-tuple (`Default`).
    pub source_ip_affinity: bool,
    /// Minutes, 4 to 100.
    pub idle_timeout_minutes: u32,
    /// Kept.
    pub enable_tcp_reset: bool,
    /// Whether members may not use the front end for outbound flows.
    pub disable_outbound_snat: bool,
}

/// An outbound rule: the pool's machines are seen outside with the front ends' addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundRule {
    /// The front ends' names.
    pub frontends: Vec<Name>,
    /// The pool's name.
    pub pool: Name,
    /// Protocol.
    pub protocol: Transport,
    /// Ports per machine; 0 is Azure's default by pool size.
    pub allocated_ports: u32,
    /// Minutes.
    pub idle_timeout_minutes: u32,
    /// Kept.
    pub enable_tcp_reset: bool,
}

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

/// How a cluster's machines reach the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundType {
    /// Through load balancer `kubernetes` and its outbound rule.
    LoadBalancer,
    /// Through what the subnet's route table says.
    UserDefinedRouting,
    /// Not at all by AKS' doing.
    None,
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
    /// Kubenet and overlay always; `None` mode when given.
    pub pod_cidr: Option<Prefix4>,
    /// The services' range.
    pub service_cidr: Prefix4,
    /// The cluster DNS' address in it.
    pub dns_service_ip: Ipv4Addr,
    /// How machines reach the internet.
    pub outbound: OutboundType,
    /// The virtual network of all its pools.
    pub vnet: ArmId,
    /// The managed route table: kubenet.
    pub route_table: Option<ArmId>,
    /// Node pools by name.
    pub pools: BTreeMap<Name, AgentPool>,
}

impl Cluster {
    /// The node pools in the order in which they were made, which is Azure's.
    #[must_use]
    pub fn pools_in_order(&self) -> Vec<&AgentPool> {
        let mut pools: Vec<&AgentPool> = self.pools.values().collect();
        pools.sort_by_key(|pool| pool.ordinal);
        pools
    }
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

/// What a node pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMode {
    /// Runs the cluster's own pods; there is always one.
    System,
    /// Runs the user's pods.
    User,
}

/// A role given to a principal at a scope. Kept, shown, not enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleAssignment {
    /// The assignment's name, a GUID.
    pub name: String,
    /// The id that it is given at, as the caller wrote it.
    pub scope: String,
    /// The role's id.
    pub role_definition: String,
    /// Who has it.
    pub principal: String,
    /// `ServicePrincipal`, `User`.
    pub principal_type: String,
}

/// A long-running operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its id, in the operation's URL.
    pub id: Uuid,
    /// What it works on: a resource, a child (subnet, agent pool) or a group.
    pub target: ArmId,
    /// What it does.
    pub verb: Verb,
    /// The command that began it.
    pub generation: Generation,
    /// When it began.
    pub started: Timestamp,
    /// How it ended, and when. `None` while it runs.
    pub ended: Option<(Timestamp, Option<Fault>)>,
}

/// What an [`Operation`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Makes or changes.
    Put,
    /// Removes.
    Delete,
    /// Answers a question that takes time.
    Post,
}

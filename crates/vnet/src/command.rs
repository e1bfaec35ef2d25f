//! What can be asked of a region, already parsed. Not here: what it does (see [`crate::region`]).
//!
//! The first group of variants comes from the azure door, the second from the loops that make the
//! region real and report back.

use std::net::{IpAddr, Ipv4Addr};

use uuid::Uuid;

use crate::{
    addr::{Family, Prefix, Prefix4, Prefix6},
    fault::Fault,
    model::{
        AdvancedNetworking, Allocation, BackendPool, BalancingRule, Dataplane, Delegation,
        Generation, InboundNatRule, Kept, NetworkLinks, NetworkMode, NetworkPolicy, NodePhase,
        OutboundProfile, OutboundRule, OutboundType, PodAllocation, PoolMode, Probe,
        PublicIpSettings, RoleAssignment, Route, SecurityRule, Tags,
    },
    name::{ArmId, Name},
    policy::tags::ServiceTags,
};

/// One change to a region.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Makes or changes a resource group.
    PutGroup {
        /// Its id.
        id: ArmId,
        /// The region's name; may not change.
        location: String,
        /// Tags.
        tags: Tags,
    },
    /// Removes a resource group and all that is in it.
    DeleteGroup {
        /// Its id.
        id: ArmId,
    },
    /// Makes or replaces a virtual network. `subnets` is the whole list.
    PutVnet {
        /// Common fields.
        common: Common,
        /// The address space.
        prefixes: Vec<Prefix>,
        /// All subnets; `None` keeps those that are there.
        subnets: Option<Vec<PutSubnet>>,
    },
    /// Makes or replaces a subnet. Its id's parent is the virtual network.
    PutSubnet {
        /// Its id.
        id: ArmId,
        /// What it should be.
        subnet: PutSubnet,
    },
    /// Makes or replaces a route table. `routes` is the whole list.
    PutRouteTable {
        /// Common fields.
        common: Common,
        /// All routes; `None` keeps those that are there.
        routes: Option<Vec<Route>>,
        /// Kept.
        disable_bgp_route_propagation: bool,
    },
    /// Makes or replaces a route.
    PutRoute {
        /// The route's id; its parent is the route table.
        id: ArmId,
        /// The route.
        route: Route,
    },
    /// Makes or replaces a network security group. `rules` is the whole list.
    PutSecurityGroup {
        /// Common fields.
        common: Common,
        /// All rules; `None` keeps those that are there.
        rules: Option<Vec<SecurityRule>>,
    },
    /// Makes or replaces a security rule.
    PutSecurityRule {
        /// The rule's id; its parent is the network security group.
        id: ArmId,
        /// The rule.
        rule: SecurityRule,
    },
    /// Makes or changes an application security group.
    PutApplicationGroup {
        /// Common fields.
        common: Common,
    },
    /// Makes or changes one side of a peering.
    PutPeering {
        /// The peering's id; its parent is the virtual network.
        id: ArmId,
        /// What it should be.
        peering: PutPeering,
    },
    /// Makes or replaces a NAT gateway.
    PutNatGateway {
        /// Common fields.
        common: Common,
        /// What it should be.
        gateway: PutNatGateway,
    },
    /// Makes or changes a public IP prefix.
    PutPublicIpPrefix {
        /// Common fields.
        common: Common,
        /// `Standard`.
        sku: String,
        /// 28 to 31, or 124 to 127; may not change.
        length: u8,
        /// Of which family it is; may not change.
        family: Family,
    },
    /// Makes or changes a public IP.
    PutPublicIp {
        /// Common fields.
        common: Common,
        /// The prefix that it is to be of; may not change.
        prefix: Option<ArmId>,
        /// `Standard` or `Basic`.
        sku: String,
        /// Static or Dynamic.
        allocation: Allocation,
        /// Of which family it is; may not change.
        family: Family,
        /// The rest; what is not said is the default again.
        settings: PublicIpSettings,
    },
    /// Makes or replaces a NIC.
    PutNic {
        /// Common fields.
        common: Common,
        /// Whether foreign addresses pass.
        ip_forwarding: bool,
        /// Its network security group.
        security_group: Option<ArmId>,
        /// At least one.
        configs: Vec<PutIpConfiguration>,
    },
    /// Makes or changes a virtual machine (Microsoft.Compute/virtualMachines, the part that the network sees).
    PutVm {
        /// Common fields.
        common: Common,
        /// Its NIC, which must exist and be free.
        nic: ArmId,
    },
    /// Makes or replaces a load balancer.
    PutLoadBalancer {
        /// Common fields.
        common: Common,
        /// What it should be.
        balancer: PutLoadBalancer,
    },
    /// Makes or changes a cluster.
    PutCluster {
        /// Common fields.
        common: Common,
        /// What it should be.
        cluster: PutCluster,
    },
    /// Makes or changes a node pool.
    PutPool {
        /// The pool's id; its parent is the cluster.
        id: ArmId,
        /// What it should be.
        pool: PutPool,
    },
    /// Makes the nodes of a pool anew from its newest image (`upgradeNodeImageVersion`).
    UpgradeNodeImage {
        /// The pool's id.
        id: ArmId,
    },
    /// Gives a role. Giving it again is success.
    PutRoleAssignment(RoleAssignment),
    /// Removes any resource or child by id: virtual network, subnet, peering, route table, route,
    /// network security group, rule, application security group, NAT gateway, public IP, public IP prefix, NIC, VM,
    /// load balancer, cluster, agent pool. Removing what is not there succeeds and changes nothing.
    Delete {
        /// Its id.
        id: ArmId,
    },
    /// All of these, in order, or none: what one request asks of several resources. The answer is the first
    /// one's; the others' operations run beside it.
    Together(Vec<Command>),
    /// Begins an operation that changes nothing and whose answer the door computes (`POST` actions).
    BeginPost {
        /// What it is about.
        target: ArmId,
    },

    /// The fabric has made all of this generation real: network resources up to it are `Succeeded`, those
    /// being deleted are gone.
    FabricReal {
        /// The generation that was compiled and applied.
        generation: Generation,
    },
    /// A node got somewhere.
    NodeReached {
        /// The node's machine.
        machine: ArmId,
        /// Where.
        phase: NodePhase,
    },
    /// No pod that has to leave is left on a node that is being drained for an upgrade.
    NodeDrained {
        /// The node's machine.
        machine: ArmId,
    },
    /// Nothing runs any more of a node that is made anew in an upgrade, and nothing of it is kept.
    NodeStopped {
        /// The node's machine.
        machine: ArmId,
    },
    /// A node wants more addresses of its pod subnet, or gives some back: its total should be this many,
    /// lowest free addresses first. A multiple of [`crate::model::POD_BATCH`] is granted in whole batches only, as far as
    /// there are any; another number (an exhausted subnet gives single addresses) as far as there is room.
    SetPodAddresses {
        /// The node's machine.
        machine: ArmId,
        /// The wanted total.
        total: u32,
        /// Addresses that the node gives back; only these are taken from it when `total` is smaller.
        released: Vec<Ipv4Addr>,
    },
    /// A cluster and its pools are what was asked up to this generation (nodes registered, or gone): its
    /// state and its pools' become `Succeeded` and its operations end.
    ClusterReal {
        /// The cluster.
        cluster: ArmId,
        /// The generation that was seen.
        generation: Generation,
    },
    /// A cluster's nodes and control plane are gone from the machine, so its resources may go.
    ClusterGone {
        /// The cluster.
        cluster: ArmId,
    },
    /// What was begun cannot be done: the operation and its target become `Failed`.
    Failed {
        /// The operation's target.
        target: ArmId,
        /// Why.
        fault: Fault,
    },
    /// Replaces the service tags that security rules can name; `None` brings the built-in list back. Rules that name
    /// a tag which is in the new list no more are about nobody until it comes back.
    SetServiceTags {
        /// The whole list. What the platform's own tags mean stays, whatever it says.
        tags: Option<ServiceTags>,
    },
    /// Forgets operations that ended before this many operations ago, to keep the state small.
    PruneOperations {
        /// How many ended ones to keep.
        keep: usize,
    },
}

/// What every `PUT` of a top-level resource has.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// The resource's id.
    pub id: ArmId,
    /// The region's name; `None` keeps the stored one or takes the group's.
    pub location: Option<String>,
    /// Tags; `None` keeps the stored ones.
    pub tags: Option<Tags>,
    /// Properties that nothing acts on.
    pub kept: Kept,
}

/// What a subnet should be.
#[derive(Clone, Debug, PartialEq)]
pub struct PutSubnet {
    /// Its name.
    pub name: Name,
    /// Its IPv4 prefix.
    pub prefix: Prefix4,
    /// Its IPv6 prefix, if it is to be dual stack.
    pub prefix6: Option<Prefix6>,
    /// Its route table.
    pub route_table: Option<ArmId>,
    /// Its network security group.
    pub security_group: Option<ArmId>,
    /// Its NAT gateway.
    pub nat_gateway: Option<ArmId>,
    /// `None` is yes.
    pub default_outbound: Option<bool>,
    /// Its delegations; actions are filled in by the region.
    pub delegations: Vec<Delegation>,
    /// `None` is `Disabled`.
    pub private_endpoint_network_policies: Option<String>,
    /// `None` is `Enabled`.
    pub private_link_service_network_policies: Option<String>,
    /// Properties that nothing acts on.
    pub kept: Kept,
}

/// An IP configuration that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct PutIpConfiguration {
    /// Its name.
    pub name: String,
    /// The subnet's id.
    pub subnet: ArmId,
    /// A static address, or `None` for the lowest free one (or the one that it has).
    pub address: Option<IpAddr>,
    /// Of which family it is to be (`privateIPAddressVersion`).
    pub family: Family,
    /// A public IP of its own.
    pub public_ip: Option<ArmId>,
    /// The application security groups that it is to be in.
    pub application_groups: Vec<ArmId>,
}

/// What one side of a peering should be.
#[expect(
    clippy::struct_excessive_bools,
    reason = "Azure's independent switches, one property each"
)]
#[derive(Clone, Debug, PartialEq)]
pub struct PutPeering {
    /// Its name.
    pub name: Name,
    /// The other virtual network; may not change.
    pub remote: ArmId,
    /// See [`crate::model::Peering::allow_access`].
    pub allow_access: bool,
    /// See [`crate::model::Peering::allow_forwarded`].
    pub allow_forwarded: bool,
    /// Kept.
    pub allow_gateway_transit: bool,
    /// Kept.
    pub use_remote_gateways: bool,
    /// Whether the remote address space is to be learned anew (`syncRemoteAddressSpace=true`).
    pub sync: bool,
    /// Properties that nothing acts on.
    pub kept: Kept,
}

/// What a NAT gateway should be.
#[derive(Clone, Debug, PartialEq)]
pub struct PutNatGateway {
    /// `Standard`.
    pub sku: String,
    /// Its public IPs.
    pub public_ips: Vec<ArmId>,
    /// Its public IP prefixes.
    pub public_ip_prefixes: Vec<ArmId>,
    /// Minutes; `None` is 4.
    pub idle_timeout_minutes: Option<u32>,
}

/// What a load balancer should be.
#[derive(Clone, Debug, PartialEq)]
pub struct PutLoadBalancer {
    /// `Standard`.
    pub sku: String,
    /// Front ends.
    pub frontends: Vec<(Name, PutFrontend)>,
    /// Back-end pools.
    pub pools: Vec<(Name, BackendPool)>,
    /// Probes.
    pub probes: Vec<(Name, Probe)>,
    /// Rules.
    pub rules: Vec<(Name, BalancingRule)>,
    /// Outbound rules.
    pub outbound_rules: Vec<(Name, OutboundRule)>,
    /// Inbound NAT rules.
    pub inbound_rules: Vec<(Name, InboundNatRule)>,
}

/// A front end that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum PutFrontend {
    /// In a subnet.
    Internal {
        /// The subnet's id.
        subnet: ArmId,
        /// A static address, or `None` for the lowest free one (or the one that it has).
        address: Option<IpAddr>,
        /// Of which family it is to be (`privateIPAddressVersion`).
        family: Family,
    },
    /// With a public IP.
    Public {
        /// Its id.
        public_ip: ArmId,
    },
    /// With every address of a public IP prefix.
    Prefix {
        /// Its id.
        public_ip_prefix: ArmId,
    },
}

/// What a cluster should be. `None` is the default on creation and "as it is" on update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PutCluster {
    /// Kubernetes' version; the door has turned `1.36` into a version that can be had.
    pub version: Option<String>,
    /// For the FQDN.
    pub dns_prefix: Option<String>,
    /// The name of the node resource group; default `MC_<group>_<cluster>_<location>`.
    pub node_group: Option<String>,
    /// How pods get addresses; `None` is the service's default for the api-version, overlay today.
    pub mode: Option<NetworkMode>,
    /// `networkMode`, for pods of a node subnet; `None` is transparent.
    pub links: Option<NetworkLinks>,
    /// `networkDataplane`; `None` is `Azure` on creation.
    pub dataplane: Option<Dataplane>,
    /// `networkPolicy`; `None` is what comes with the data plane.
    pub policy: Option<NetworkPolicy>,
    /// `advancedNetworking`; `None` is off on creation.
    pub advanced_networking: Option<AdvancedNetworking>,
    /// The pods' range.
    pub pod_cidr: Option<Prefix4>,
    /// Whether it has IPv6 beside IPv4 (`ipFamilies`); default no.
    pub is_dual_stack: Option<bool>,
    /// The pods' range of IPv6.
    pub pod_cidr6: Option<Prefix6>,
    /// The services' range, default 10.0.0.0/16.
    pub service_cidr: Option<Prefix4>,
    /// The services' range of IPv6, default `fd12:3456:789a:1::/108`.
    pub service_cidr6: Option<Prefix6>,
    /// Default 10.0.0.10.
    pub dns_service_ip: Option<Ipv4Addr>,
    /// Default `LoadBalancer`.
    pub outbound: Option<OutboundType>,
    /// Default one managed address.
    pub outbound_profile: Option<OutboundProfile>,
    /// All node pools; on update those that are not named stay.
    pub pools: Vec<PutPool>,
}

/// What a node pool should be. `None` is the default on creation and "as it is" on update.
#[derive(Clone, Debug, PartialEq)]
pub struct PutPool {
    /// Its name.
    pub name: Name,
    /// `None` is System for the first pool, User for others.
    pub mode: Option<PoolMode>,
    /// How many nodes.
    pub count: Option<u32>,
    /// Pods per node; default by mode.
    pub max_pods: Option<u32>,
    /// The node subnet; `None` is the first pool's, or a managed virtual network.
    pub subnet: Option<ArmId>,
    /// The pods' subnet.
    pub pod_subnet: Option<ArmId>,
    /// How the pods' subnet is shared out; `None` is `Dynamic`.
    pub pod_allocation: Option<PodAllocation>,
    /// The version of its nodes; `None` is the cluster's.
    pub version: Option<String>,
    /// `None` is `Standard_D2s_v3`.
    pub vm_size: Option<String>,
    /// Labels of its nodes.
    pub labels: Option<std::collections::BTreeMap<String, String>>,
    /// Taints of its nodes.
    pub taints: Option<Vec<String>>,
    /// `None` is `10%`.
    pub max_surge: Option<String>,
    /// `None` is `0`.
    pub max_unavailable: Option<String>,
    /// `None` is 30.
    pub drain_timeout_minutes: Option<u32>,
    /// Minimum and maximum when the autoscaler is on.
    pub autoscale: Option<(u32, u32)>,
    /// Properties that nothing acts on.
    pub kept: Kept,
}

impl PutPool {
    /// A pool of which nothing is asked but its name.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            name,
            mode: None,
            count: None,
            max_pods: None,
            subnet: None,
            pod_subnet: None,
            pod_allocation: None,
            version: None,
            vm_size: None,
            labels: None,
            taints: None,
            max_surge: None,
            max_unavailable: None,
            drain_timeout_minutes: None,
            autoscale: None,
            kept: Kept::new(),
        }
    }
}

/// What an accepted command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Whether the resource is new (answered 201), was there (200), or nothing changed (204 for a delete).
    pub outcome: Outcome,
    /// The operation that ends when it is real; `None` when there is nothing to wait for.
    pub operation: Option<Uuid>,
}

/// See [`Accepted::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Made.
    Created,
    /// Changed.
    Updated,
    /// As it was.
    Unchanged,
    /// Being removed.
    Deleting,
}

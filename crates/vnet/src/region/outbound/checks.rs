//! What a cluster's way out is refused for. Not here: what it brings (see [`super`]).

use super::super::{Change, pools, refusal, upgrades};
use crate::{
    addr::{Family, Prefix},
    fault::Fault,
    model::{AgentPool, Cluster, Destination, NextHop, OutboundAddresses, OutboundType, Subnet},
    name::ArmId,
};

/// SNAT ports of a load balancer's public address that AKS shares out.
const PORTS_PER_ADDRESS: u64 = 64_000;
/// Addresses that AKS makes for a load balancer.
const BALANCER_ADDRESSES: std::ops::RangeInclusive<u32> = 1..=100;
/// Addresses that AKS makes for a NAT gateway.
const GATEWAY_ADDRESSES: std::ops::RangeInclusive<u32> = 1..=16;
/// Minutes that a flow may be idle.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u32> = 4..=120;
const TARGET: &str = "networkProfile.outboundType";

/// Whether AKS made the cluster's virtual network.
pub(super) fn has_managed_vnet(cluster: &Cluster) -> bool {
    cluster.vnet.resource_group_id() == cluster.node_group
}

/// Refuses an outbound type that cannot follow the one that is
/// (AKS documentation, "Customize cluster egress with outbound types in AKS", "Updating outboundType after cluster
/// creation").
pub(super) fn check_migration(cluster: &Cluster, to: OutboundType) -> Result<(), Fault> {
    use OutboundType::{
        Block, LoadBalancer, ManagedNatGateway, None as Nothing, UserAssignedNatGateway,
        UserDefinedRouting,
    };
    let from = cluster.outbound;
    let managed = has_managed_vnet(cluster);
    let allowed = match (from, to) {
        (LoadBalancer | ManagedNatGateway | Nothing, Block)
        | (Block, LoadBalancer | ManagedNatGateway | Nothing)
        | (LoadBalancer | Nothing, ManagedNatGateway)
        | (ManagedNatGateway, Nothing) => managed,
        (LoadBalancer, Nothing) | (Nothing, LoadBalancer) => true,
        (LoadBalancer | Nothing | UserAssignedNatGateway, UserDefinedRouting)
        | (LoadBalancer | Nothing | UserDefinedRouting, UserAssignedNatGateway)
        | (UserAssignedNatGateway | UserDefinedRouting, LoadBalancer | Nothing) => !managed,
        (
            LoadBalancer
            | ManagedNatGateway
            | UserAssignedNatGateway
            | UserDefinedRouting
            | Nothing
            | Block,
            _,
        ) => from == to,
    };
    if allowed {
        return Ok(());
    }
    let vnet = if managed { "a managed" } else { "its own" };
    Err(Fault::bad(
        "UpdatingOutboundTypeNotAllowed",
        format!(
            "Updating the outbound type from {} to {} is not allowed for a cluster with {vnet} virtual network. Please \
             see https://aka.ms/aks/egress for the migrations that are supported.",
            name_of(from),
            name_of(to)
        ),
    )
    .at(TARGET))
}

fn name_of(outbound: OutboundType) -> &'static str {
    match outbound {
        OutboundType::LoadBalancer => "loadBalancer",
        OutboundType::ManagedNatGateway => "managedNATGateway",
        OutboundType::UserAssignedNatGateway => "userAssignedNATGateway",
        OutboundType::UserDefinedRouting => "userDefinedRouting",
        OutboundType::None => "none",
        OutboundType::Block => "block",
    }
}

/// Refuses a profile out of its limits.
fn check_profile(cluster: &Cluster) -> Result<(), Fault> {
    let profile = &cluster.outbound_profile;
    let (what, limits, codes) = match cluster.outbound {
        OutboundType::LoadBalancer => (
            "loadBalancerProfile",
            BALANCER_ADDRESSES,
            (
                "InvalidLoadBalancerProfileManagedOutboundIPCount",
                "InvalidLoadBalancerProfileIdleTimeoutInMinutes",
            ),
        ),
        OutboundType::ManagedNatGateway => (
            "natGatewayProfile",
            GATEWAY_ADDRESSES,
            (
                "InvalidNATGatewayProfileManagedOutboundIPCount",
                "InvalidNATGatewayProfileIdleTimeoutInMinutes",
            ),
        ),
        OutboundType::UserAssignedNatGateway
        | OutboundType::UserDefinedRouting
        | OutboundType::None
        | OutboundType::Block => return Ok(()),
    };
    let refuse = |code: &str, message: String| {
        Err(Fault::bad(code, message).at(&format!("networkProfile.{what}")))
    };
    if let Some(n) = profile.managed_v6.filter(|_| cluster.outbound == OutboundType::LoadBalancer) {
        let most = BALANCER_ADDRESSES.end();
        if n > *most || n > 0 && !cluster.is_dual_stack() {
            let text = format!(
                "{n} managed outbound IPs of IPv6 are not between 0 and {most}, or the cluster is not dual-stack."
            );
            return refuse(codes.0, text);
        }
    }
    if let OutboundAddresses::Managed(n) = profile.addresses
        && !limits.contains(&n)
    {
        let (least, most) = (limits.start(), limits.end());
        let text = format!("{n} managed outbound IPs are not between {least} and {most}.");
        return refuse(codes.0, text);
    }
    let minutes = profile.idle_timeout_minutes;
    if !IDLE_TIMEOUT.contains(&minutes) {
        let (least, most) = (IDLE_TIMEOUT.start(), IDLE_TIMEOUT.end());
        let text =
            format!("An idle timeout of {minutes} minutes is not between {least} and {most}.");
        return refuse(codes.1, text);
    }
    if cluster.outbound != OutboundType::LoadBalancer {
        return Ok(());
    }
    let (OutboundAddresses::PublicIps(given) | OutboundAddresses::Prefixes(given)) =
        &profile.addresses
    else {
        return check_ports(profile.allocated_ports);
    };
    let code = match &profile.addresses {
        OutboundAddresses::PublicIps(_) => "InvalidLoadBalancerProfileOutboundIPs",
        _ => "InvalidLoadBalancerProfileOutboundIPPrefixes",
    };
    if given.is_empty() {
        return refuse(code, "None is given.".to_owned());
    }
    if let Some(twice) = given.iter().enumerate().find(|(n, id)| given[..*n].contains(id)) {
        return refuse(code, format!("{} is given twice.", twice.1));
    }
    check_ports(profile.allocated_ports)
}

fn check_ports(ports: u32) -> Result<(), Fault> {
    let target = "networkProfile.loadBalancerProfile.allocatedOutboundPorts";
    if !ports.is_multiple_of(8) {
        return Err(Fault::bad(
            "LoadBalancerProfileAllocatedOutboundPortsMustBeMultipleOfEight",
            format!("Load balancer profile allocated ports {ports} is not a multiple of 8."),
        )
        .at(target));
    }
    if u64::from(ports) > PORTS_PER_ADDRESS {
        return Err(Fault::bad(
            "InvalidLoadBalancerProfileAllocatedOutboundPorts",
            format!(
                "Load balancer profile allocated ports {ports} is not in an allowable range: it is more than \
                 {PORTS_PER_ADDRESS}. Refer to https://aka.ms/aks/slb-ports for more details."
            ),
        )
        .at(target));
    }
    Ok(())
}

/// Refuses an outbound type that the cluster's virtual network cannot have, and a profile out of its limits.
pub(in crate::region) fn check_type(cluster: &Cluster) -> Result<(), Fault> {
    let managed = has_managed_vnet(cluster);
    match (cluster.outbound, managed) {
        (OutboundType::ManagedNatGateway, false) => {
            return Err(Fault::bad(
                    "ManagedNATGatewayWithCustomVNetNotAllowed",
                    "Outbound type managedNATGateway is not allowed with a virtual network of one's own; use \
                     userAssignedNATGateway.",
                )
                .at(TARGET));
        }
        (OutboundType::UserAssignedNatGateway, true) => {
            return Err(Fault::bad(
                    "UserAssignedNATGatewayWithManagedVNetNotAllowed",
                    "Outbound type userAssignedNATGateway is not allowed with a managed virtual network; use \
                     managedNATGateway.",
                )
                .at(TARGET));
        }
        (OutboundType::Block, false) => {
            return Err(Fault::bad(
                "UnsupportedOutboundType",
                "Outbound type block is not supported with a virtual network of one's own.",
            )
            .at(TARGET));
        }
        _ => {}
    }
    check_profile(cluster)
}

impl Change {
    /// Refuses an outbound type that the cluster's pools cannot have, and more nodes than it serves.
    pub(in crate::region) fn check_outbound(&self, cluster: &Cluster) -> Result<(), Fault> {
        check_type(cluster)?;
        for pool in cluster.pools.values() {
            self.check_way_out(cluster, pool)?;
        }
        self.check_port_budget(cluster)
    }

    /// Refuses a pool whose subnets do not lead out as the cluster's outbound type needs it.
    pub(in crate::region) fn check_way_out(
        &self,
        cluster: &Cluster,
        pool: &AgentPool,
    ) -> Result<(), Fault> {
        let subnets = [Some(&pool.subnet), pool.pod_subnet.as_ref()].into_iter().flatten();
        match cluster.outbound {
            OutboundType::UserDefinedRouting => {
                let (_, subnet) = self
                    .region
                    .subnet(&pool.subnet)
                    .ok_or_else(|| refusal::reference(&pool.subnet, &cluster.meta.id))?;
                self.check_default_route(&pool.subnet, subnet)
            }
            OutboundType::UserAssignedNatGateway => subnets.into_iter().try_for_each(|id| {
                let there = self.region.subnet(id);
                let (_, subnet) = there.ok_or_else(|| refusal::reference(id, &cluster.meta.id))?;
                self.check_gateway(id, subnet)
            }),
            OutboundType::LoadBalancer
            | OutboundType::ManagedNatGateway
            | OutboundType::None
            | OutboundType::Block => Ok(()),
        }
    }

    fn check_default_route(&self, id: &ArmId, subnet: &Subnet) -> Result<(), Fault> {
        let table = subnet.route_table.as_ref();
        let Some(table) = table.and_then(|table| self.region.route_tables.get(table)) else {
            return Err(Fault::bad(
                "ExistingRouteTableNotAssociatedWithSubnet",
                format!(
                    "An existing route table has not been associated with subnet {id}. Please update the route table \
                     association"
                ),
            ));
        };
        let id = &table.meta.id;
        let everything = Destination::Prefix(Prefix::everything(Family::V4));
        let default = table.routes.values().find(|route| route.prefix == everything);
        match default.map(|route| route.next_hop) {
            Some(NextHop::VirtualAppliance(_)) => Ok(()),
            Some(NextHop::Internet | NextHop::VnetLocal | NextHop::None) => Err(Fault::bad(
                "RouteTableInvalidNextHop",
                format!("The next hop of 0.0.0.0/0 in route table {id} is no appliance."),
            )),
            None => Err(Fault::bad(
                "RouteTableMissingDefaultRouteError",
                format!("Route table {id} has no route for 0.0.0.0/0."),
            )),
        }
    }

    fn check_gateway(&self, id: &ArmId, subnet: &Subnet) -> Result<(), Fault> {
        let gateway = subnet.nat_gateway.as_ref();
        let Some(gateway) = gateway.and_then(|gateway| self.region.nat_gateways.get(gateway))
        else {
            return Err(Fault::bad(
                "SubnetNotAssociatedWithNATGateway",
                format!("Subnet {id} is not associated with a NAT gateway."),
            )
            .at(TARGET));
        };
        if gateway.public_ips.is_empty() && gateway.public_ip_prefixes.is_empty() {
            return Err(Fault::bad(
                "NATGatewayNotAssociatedWithPublicIPOrIPPrefix",
                format!(
                    "NAT gateway {} is not associated with a public IP or a public IP prefix.",
                    gateway.meta.id
                ),
            )
            .at(TARGET));
        }
        Ok(())
    }

    /// Refuses a new cluster that would not use the NAT gateway that its subnet has
    /// (AKS release notes of 2022-05-01).
    pub(in crate::region) fn refuse_idle_gateway(&self, cluster: &Cluster) -> Result<(), Fault> {
        if cluster.outbound != OutboundType::LoadBalancer {
            return Ok(());
        }
        let has_gateway = |pool: &&AgentPool| {
            let subnet = self.region.subnet(&pool.subnet);
            subnet.is_some_and(|(_, subnet)| subnet.nat_gateway.is_some())
        };
        match cluster.pools.values().find(has_gateway) {
            Some(pool) => Err(refusal::invalid(
                TARGET,
                &format!(
                    "Subnet {} is associated with a NAT gateway, so the outbound type cannot be loadBalancer; use \
                     userAssignedNATGateway.",
                    pool.subnet
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses more nodes than the outbound addresses have ports for, surge nodes and the autoscaler's included.
    pub(in crate::region) fn check_port_budget(&self, cluster: &Cluster) -> Result<(), Fault> {
        let profile = &cluster.outbound_profile;
        if cluster.outbound != OutboundType::LoadBalancer || profile.allocated_ports == 0 {
            return Ok(());
        }
        let n_addresses = match &profile.addresses {
            OutboundAddresses::Managed(n) => u64::from(*n),
            OutboundAddresses::PublicIps(ids) => {
                let there = ids.iter().filter_map(|id| self.region.public_ips.get(id));
                there.filter(|it| it.address.is_ipv4()).count() as u64
            }
            OutboundAddresses::Prefixes(ids) => {
                let there = ids.iter().filter_map(|id| self.region.public_ip_prefixes.get(id));
                let there = there.filter(|it| it.prefix.family() == Family::V4);
                there.map(|it| it.prefix.n_addresses()).sum()
            }
        };
        let nodes_of = |pool: &AgentPool| {
            let most = pool.autoscale.map_or(pool.count, |(_, most)| most.max(pool.count));
            u64::from(most) + u64::from(upgrades::surge_of(pool))
        };
        let nodes: u64 = pools::staying(cluster).map(nodes_of).sum();
        let needed = nodes * u64::from(profile.allocated_ports);
        let available = n_addresses * PORTS_PER_ADDRESS;
        if needed <= available {
            return Ok(());
        }
        Err(Fault::bad(
            "InvalidLoadBalancerProfileAllocatedOutboundPorts",
            format!(
                "Load balancer profile allocated ports {} is not in an allowable range given the number of nodes and IPs \
                 provisioned. Total node count {nodes} requires {needed} ports but only {available} ports are available \
                 given {n_addresses} outbound public IPs. Refer to https://aka.ms/aks/slb-ports for more details.",
                profile.allocated_ports
            ),
        ))
    }
}

//! How a cluster's machines reach the internet: what each outbound type needs, what it brings, and which can follow
//! which.
//!
//! Rules: AKS documentation, "Customize cluster egress with outbound types in AKS", "Use a public standard load
//! balancer in AKS", "Create a managed or user-assigned NAT gateway".

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Change,
    nodes::{INBOUND_POOL, INBOUND_POOL_V6, OUTBOUND_POOL, OUTBOUND_POOL_V6},
    pools, refusal, upgrades, uuid_of,
};
use crate::{
    addr::{Family, Prefix},
    fault::Fault,
    kind,
    model::{
        AgentPool, Allocation, BackendPool, Cluster, Frontend, LoadBalancer, NatGateway, NextHop,
        OutboundAddresses, OutboundProfile, OutboundRule, OutboundType, ProvisioningState,
        PublicIp, Subnet, Transport,
    },
    name::{ArmId, Name},
};

/// SNAT ports of a load balancer's public address that AKS shares out.
const PORTS_PER_ADDRESS: u64 = 64_000;
/// Addresses that AKS makes for a load balancer.
const BALANCER_ADDRESSES: std::ops::RangeInclusive<u32> = 1..=100;
/// Addresses that AKS makes for a NAT gateway.
const GATEWAY_ADDRESSES: std::ops::RangeInclusive<u32> = 1..=16;
/// Minutes that a flow may be idle.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u32> = 4..=120;
/// A NAT gateway's minutes where nobody says.
const GATEWAY_IDLE: u32 = 4;

const BALANCER: &str = "kubernetes";
const OUTBOUND_RULE: &str = "aksOutboundRule";
/// The same for IPv6; its name is made as the cloud provider makes names.
const OUTBOUND_RULE_V6: &str = "aksOutboundRule-IPv6";
const TARGET: &str = "networkProfile.outboundType";

/// What an outbound type has when nothing is asked of it.
pub(super) fn default_profile(outbound: OutboundType) -> OutboundProfile {
    let default = OutboundProfile::default();
    match outbound {
        OutboundType::ManagedNatGateway => {
            OutboundProfile { idle_timeout_minutes: GATEWAY_IDLE, ..default }
        }
        OutboundType::LoadBalancer
        | OutboundType::UserAssignedNatGateway
        | OutboundType::UserDefinedRouting
        | OutboundType::None
        | OutboundType::Block => default,
    }
}

/// Whether AKS made the cluster's virtual network.
fn has_managed_vnet(cluster: &Cluster) -> bool {
    cluster.vnet.resource_group_id() == cluster.node_group
}

/// Refuses an outbound type that cannot follow the one that is
/// (AKS documentation, "Customize cluster egress with outbound types in AKS", "Updating outboundType after cluster
/// creation").
fn check_migration(cluster: &Cluster, to: OutboundType) -> Result<(), Fault> {
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
pub(super) fn check_type(cluster: &Cluster) -> Result<(), Fault> {
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
    pub(super) fn check_outbound(&self, cluster: &Cluster) -> Result<(), Fault> {
        check_type(cluster)?;
        for pool in cluster.pools.values() {
            self.check_way_out(cluster, pool)?;
        }
        self.check_port_budget(cluster)
    }

    /// Refuses a pool whose subnets do not lead out as the cluster's outbound type needs it.
    pub(super) fn check_way_out(&self, cluster: &Cluster, pool: &AgentPool) -> Result<(), Fault> {
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
        let default =
            table.routes.values().find(|route| route.prefix == Prefix::everything(Family::V4));
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
    pub(super) fn refuse_idle_gateway(&self, cluster: &Cluster) -> Result<(), Fault> {
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
    pub(super) fn check_port_budget(&self, cluster: &Cluster) -> Result<(), Fault> {
        let profile = &cluster.outbound_profile;
        if cluster.outbound != OutboundType::LoadBalancer || profile.allocated_ports == 0 {
            return Ok(());
        }
        let n_addresses = match &profile.addresses {
            OutboundAddresses::Managed(n) => u64::from(*n),
            OutboundAddresses::PublicIps(ids) => ids.len() as u64,
            OutboundAddresses::Prefixes(ids) => {
                let there = ids.iter().filter_map(|id| self.region.public_ip_prefixes.get(id));
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

    /// Gives a cluster another way out, or changes the one that it has.
    pub(super) fn change_outbound(
        &mut self,
        old: &Cluster,
        cluster: &mut Cluster,
        outbound: Option<OutboundType>,
        profile: Option<OutboundProfile>,
    ) -> Result<(), Fault> {
        let to = outbound.unwrap_or(old.outbound);
        check_migration(old, to)?;
        cluster.outbound = to;
        cluster.outbound_profile = match profile {
            Some(profile) => profile,
            None if to == old.outbound => old.outbound_profile.clone(),
            None => default_profile(to),
        };
        let is_same = to == old.outbound && cluster.outbound_profile == old.outbound_profile;
        if is_same {
            return Ok(());
        }
        self.check_outbound(cluster)?;
        if to != old.outbound {
            self.unmake_outbound(old);
        }
        self.make_outbound(cluster)?;
        self.sync_members(cluster);
        Ok(())
    }

    /// Makes what the cluster's outbound type brings, or brings it up to date.
    pub(super) fn make_outbound(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        match cluster.outbound {
            OutboundType::LoadBalancer => self.make_balancer(cluster),
            OutboundType::ManagedNatGateway => self.make_gateway(cluster),
            OutboundType::UserAssignedNatGateway
            | OutboundType::UserDefinedRouting
            | OutboundType::None
            | OutboundType::Block => Ok(()),
        }
    }

    /// Load balancer `kubernetes` as the way out. What Services have made of it stays.
    fn make_balancer(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        let id = cluster.node_group.sibling(kind::LOAD_BALANCER, BALANCER);
        let location = &cluster.meta.location;
        let updating = ProvisioningState::Updating;
        let there = self.region.balancers.get(&id);
        let there = there.filter(|it| it.meta.state != ProvisioningState::Deleting).cloned();
        let mut balancer = there.map_or_else(
            || LoadBalancer {
                inbound_rules: BTreeMap::new(),
                meta: self.part_meta(&id, location, updating),
                sku: "Standard".to_owned(),
                frontends: BTreeMap::new(),
                pools: BTreeMap::new(),
                probes: BTreeMap::new(),
                rules: BTreeMap::new(),
                outbound_rules: BTreeMap::new(),
            },
            |there| there.as_ref().clone(),
        );
        self.touch(&mut balancer.meta, updating);
        let wanted = self.outbound_frontends(cluster)?;
        let wanted6 = (0..cluster.n_managed_v6())
            .map(|i| self.managed_ip(cluster, &format!("outbound IPv6 {i}"), None, Family::V6))
            .collect::<Result<Vec<_>, _>>()?;
        let kept: Vec<&Name> = wanted.iter().chain(&wanted6).map(|(name, _)| name).collect();
        self.remove_frontends(cluster, &mut balancer, &kept);
        // Whoever takes an address later must find it taken.
        for (name, public_ip) in wanted.iter().chain(&wanted6) {
            if !balancer.frontends.contains_key(name) {
                self.attach_public_ip(public_ip, &id, location, name)?;
                let frontend = Frontend::Public { public_ip: public_ip.clone() };
                balancer.frontends.insert(name.clone(), frontend);
            }
        }
        for pool in [INBOUND_POOL, OUTBOUND_POOL] {
            balancer.pools.entry(Name::new(pool)).or_insert_with(BackendPool::default);
        }
        let rule = OutboundRule {
            frontends: wanted.into_iter().map(|(name, _)| name).collect(),
            pool: OUTBOUND_POOL.into(),
            protocol: Transport::All,
            allocated_ports: cluster.outbound_profile.allocated_ports,
            idle_timeout_minutes: cluster.outbound_profile.idle_timeout_minutes,
            enable_tcp_reset: true,
        };
        if cluster.is_dual_stack() {
            for pool in [INBOUND_POOL_V6, OUTBOUND_POOL_V6] {
                let empty = BackendPool { members: Vec::new(), family: Family::V6 };
                balancer.pools.entry(Name::new(pool)).or_insert(empty);
            }
        }
        if wanted6.is_empty() {
            balancer.outbound_rules.remove(&Name::new(OUTBOUND_RULE_V6));
        } else {
            let rule = OutboundRule {
                frontends: wanted6.into_iter().map(|(name, _)| name).collect(),
                pool: OUTBOUND_POOL_V6.into(),
                ..rule.clone()
            };
            balancer.outbound_rules.insert(Name::new(OUTBOUND_RULE_V6), rule);
        }
        balancer.outbound_rules.insert(Name::new(OUTBOUND_RULE), rule);
        self.region.balancers.insert(id, Arc::new(balancer));
        Ok(())
    }

    /// The front ends of the way out, each with its public IP; managed ones are made. A front end of a managed
    /// address has the same GUID as its name.
    fn outbound_frontends(&mut self, cluster: &Cluster) -> Result<Vec<(Name, ArmId)>, Fault> {
        match cluster.outbound_profile.addresses.clone() {
            OutboundAddresses::Managed(n) => (0..n)
                .map(|i| {
                    let what = if i == 0 { "outbound".to_owned() } else { format!("outbound {i}") };
                    self.managed_ip(cluster, &what, None, Family::V4)
                })
                .collect(),
            OutboundAddresses::PublicIps(ids) => ids
                .into_iter()
                .map(|id| {
                    let name = guid(cluster, &format!("outbound {}", id.key()));
                    self.check_own_ip(cluster, &id, &name)?;
                    Ok((name, id))
                })
                .collect(),
            OutboundAddresses::Prefixes(ids) => {
                let mut all = Vec::new();
                for id in ids {
                    let there = self.region.public_ip_prefixes.get(&id);
                    let n = there.map(|it| it.prefix.n_addresses());
                    let n = n.ok_or_else(|| refusal::reference(&id, &cluster.meta.id))?;
                    for i in 0..n {
                        let what = format!("outbound {} {i}", id.key());
                        all.push(self.managed_ip(cluster, &what, Some(&id), Family::V4)?);
                    }
                }
                Ok(all)
            }
        }
    }

    /// Refuses a public IP of the user's that cannot be a way out.
    fn check_own_ip(&self, cluster: &Cluster, id: &ArmId, frontend: &Name) -> Result<(), Fault> {
        let refuse = |what: &str, text: String| {
            Err(Fault::bad(&format!("LoadBalancerProfileOutboundIP{what}"), text)
                .at("networkProfile.loadBalancerProfile.outboundIPs"))
        };
        let Some(there) = self.region.public_ips.get(id) else {
            return refuse("NotExist", format!("Public IP {id} does not exist."));
        };
        if !there.sku.eq_ignore_ascii_case("Standard") {
            let text = format!("Public IP {id} is of SKU {}, not Standard.", there.sku);
            return refuse("NotStandardSKU", text);
        }
        if there.meta.location != cluster.meta.location {
            let (is, should) = (&there.meta.location, &cluster.meta.location);
            return refuse(
                "NotInTheSameRegion",
                format!("Public IP {id} is in {is}, not in {should}."),
            );
        }
        let balancer = cluster.node_group.sibling(kind::LOAD_BALANCER, BALANCER);
        let ours = super::balancer::frontend_id(&balancer, frontend);
        match there.used_by.as_ref().filter(|user| user.as_str() != ours.as_str()) {
            Some(user) => refuse(
                "AttachedToAnotherIPConfiguration",
                format!("Public IP {id} is attached to {user}."),
            ),
            None => Ok(()),
        }
    }

    /// A public IP in the node resource group that AKS makes; the same for the same purpose.
    fn managed_ip(
        &mut self,
        cluster: &Cluster,
        what: &str,
        prefix: Option<&ArmId>,
        family: Family,
    ) -> Result<(Name, ArmId), Fault> {
        let name = guid(cluster, what);
        let id = cluster.node_group.sibling(kind::PUBLIC_IP, name.as_str());
        if !self.region.public_ips.contains_key(&id) {
            let location = &cluster.meta.location;
            let address = match prefix {
                Some(prefix) => self.address_of_prefix(prefix, &id, location)?,
                None => self.lab_address_of(family)?,
            };
            let public_ip = PublicIp {
                meta: self.part_meta(&id, location, ProvisioningState::Updating),
                address,
                allocation: Allocation::Static,
                sku: "Standard".to_owned(),
                prefix: prefix.cloned(),
                used_by: None,
            };
            self.region.public_ips.insert(id.clone(), Arc::new(public_ip));
        }
        Ok((name, id))
    }

    /// Takes the front ends of the way out from a load balancer, but for those that stay and those that Services use.
    fn remove_frontends(&mut self, cluster: &Cluster, balancer: &mut LoadBalancer, kept: &[&Name]) {
        let rules = [OUTBOUND_RULE, OUTBOUND_RULE_V6].map(Name::new);
        let rules = rules.iter().filter_map(|name| balancer.outbound_rules.get(name));
        let going: Vec<Name> = rules
            .flat_map(|rule| &rule.frontends)
            .filter(|name| !kept.contains(name))
            .filter(|name| !balancer.rules.values().any(|rule| rule.frontend == **name))
            .cloned()
            .collect();
        for name in going {
            if let Some(Frontend::Public { public_ip }) = balancer.frontends.remove(&name) {
                self.detach_public(&public_ip);
                if public_ip.resource_group_id() == cluster.node_group {
                    self.drop_resource(&public_ip);
                }
            }
        }
    }

    /// The NAT gateway of a managed virtual network.
    fn make_gateway(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        let id = gateway_id(cluster);
        let OutboundAddresses::Managed(n) = cluster.outbound_profile.addresses else {
            return Err(refusal::invalid(
                "networkProfile.natGatewayProfile",
                "A managed NAT gateway has managed public IPs.",
            ));
        };
        let old = self.region.nat_gateways.get(&id).map(|it| it.public_ips.clone());
        let old = old.unwrap_or_default();
        let mut public_ips = Vec::new();
        for i in 0..n {
            let (_, public_ip) = self.managed_ip(cluster, &format!("nat {i}"), None, Family::V4)?;
            if !old.contains(&public_ip) {
                let user = id.to_string();
                self.attach_public(&public_ip, &id, &cluster.meta.location, &user)?;
            }
            public_ips.push(public_ip);
        }
        let gateway = NatGateway {
            meta: self.part_meta(&id, &cluster.meta.location, ProvisioningState::Updating),
            sku: "Standard".to_owned(),
            public_ips: public_ips.clone(),
            public_ip_prefixes: Vec::new(),
            idle_timeout_minutes: cluster.outbound_profile.idle_timeout_minutes,
        };
        self.region.nat_gateways.insert(id.clone(), Arc::new(gateway));
        for going in old.into_iter().filter(|it| !public_ips.contains(it)) {
            self.detach_public(&going);
            self.drop_resource(&going);
        }
        for subnet in self.managed_subnets(cluster) {
            self.change_subnet(&subnet, |subnet| subnet.nat_gateway = Some(id.clone()));
        }
        Ok(())
    }

    fn managed_subnets(&self, cluster: &Cluster) -> Vec<ArmId> {
        let vnet = self.region.vnets.get(&cluster.vnet).filter(|_| has_managed_vnet(cluster));
        vnet.into_iter()
            .flat_map(|vnet| vnet.subnets.keys())
            .map(|name| cluster.vnet.child("subnets", name.as_str()))
            .collect()
    }

    /// Takes back what an outbound type brought. What Services use stays.
    fn unmake_outbound(&mut self, cluster: &Cluster) {
        match cluster.outbound {
            OutboundType::LoadBalancer => {
                let id = cluster.node_group.sibling(kind::LOAD_BALANCER, BALANCER);
                let Some(balancer) = self.region.balancers.get(&id) else { return };
                let mut balancer = balancer.as_ref().clone();
                self.remove_frontends(cluster, &mut balancer, &[]);
                for (rule, pool) in
                    [(OUTBOUND_RULE, OUTBOUND_POOL), (OUTBOUND_RULE_V6, OUTBOUND_POOL_V6)]
                {
                    balancer.outbound_rules.remove(&Name::new(rule));
                    balancer.pools.remove(&Name::new(pool));
                }
                let state = if balancer.frontends.is_empty() {
                    ProvisioningState::Deleting
                } else {
                    ProvisioningState::Updating
                };
                self.touch(&mut balancer.meta, state);
                self.region.balancers.insert(id, Arc::new(balancer));
            }
            OutboundType::ManagedNatGateway => {
                let id = gateway_id(cluster);
                for subnet in self.managed_subnets(cluster) {
                    self.change_subnet(&subnet, |subnet| {
                        if subnet.nat_gateway.as_ref() == Some(&id) {
                            subnet.nat_gateway = None;
                        }
                    });
                }
                let public_ips = self.region.nat_gateways.get(&id).map(|it| it.public_ips.clone());
                self.drop_resource(&id);
                for public_ip in public_ips.unwrap_or_default() {
                    self.drop_resource(&public_ip);
                }
            }
            OutboundType::UserAssignedNatGateway
            | OutboundType::UserDefinedRouting
            | OutboundType::None
            | OutboundType::Block => {}
        }
    }
}

/// `aks-natgateway-<hash>`.
fn gateway_id(cluster: &Cluster) -> ArmId {
    cluster.node_group.sibling(kind::NAT_GATEWAY, &format!("aks-natgateway-{}", cluster.hash))
}

/// The name of a part, which is a GUID.
fn guid(cluster: &Cluster, what: &str) -> Name {
    Name::new(&uuid_of(&format!("{} {what}", cluster.meta.id.key())).to_string())
}

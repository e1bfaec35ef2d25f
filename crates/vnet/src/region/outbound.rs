//! How a cluster's machines reach the internet: what each outbound type needs, what it brings, and which can follow
//! which.
//!
//! Rules: AKS documentation, "Customize cluster egress with outbound types in AKS", "Use a public standard load
//! balancer in AKS", "Create a managed or user-assigned NAT gateway".

use std::{collections::BTreeMap, sync::Arc};

mod checks;

pub(super) use self::checks::check_type;
use self::checks::{check_migration, has_managed_vnet};
use super::{
    Change,
    nodes::{INBOUND_POOL, INBOUND_POOL_V6, OUTBOUND_POOL, OUTBOUND_POOL_V6},
    refusal, uuid_of,
};
use crate::{
    addr::Family,
    fault::Fault,
    kind,
    model::{
        Allocation, BackendPool, Cluster, Frontend, LoadBalancer, NatGateway, OutboundAddresses,
        OutboundProfile, OutboundRule, OutboundType, ProvisioningState, PublicIp, PublicIpSettings,
        Transport,
    },
    name::{ArmId, Name},
};

/// A NAT gateway's minutes where nobody says.
const GATEWAY_IDLE: u32 = 4;

const BALANCER: &str = "kubernetes";
const OUTBOUND_RULE: &str = "aksOutboundRule";
/// The same for IPv6; its name is made as the cloud provider makes names.
const OUTBOUND_RULE_V6: &str = "aksOutboundRule-IPv6";

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
impl Change {
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
        let all = self.outbound_frontends(cluster)?;
        let is_v6 = |(_, id): &(Name, ArmId)| {
            self.region.public_ips.get(id).is_some_and(|it| it.address.is_ipv6())
        };
        let (mut wanted6, wanted): (Vec<_>, Vec<_>) = all.into_iter().partition(is_v6);
        check_given(cluster, &wanted, &wanted6)?;
        for i in 0..cluster.n_managed_v6() {
            let what = format!("outbound IPv6 {i}");
            wanted6.push(self.managed_ip(cluster, &what, None, Family::V6)?);
        }
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
                settings: PublicIpSettings::default(),
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

/// Refuses addresses of the user's that are of IPv6 where the cluster is not, and such of IPv6 alone: nodes leave by IPv4,
/// too.
fn check_given(cluster: &Cluster, v4: &[(Name, ArmId)], v6: &[(Name, ArmId)]) -> Result<(), Fault> {
    let target = "networkProfile.loadBalancerProfile";
    match (v4, v6) {
        (_, [(_, id), ..]) if !cluster.is_dual_stack() => Err(refusal::invalid(
            target,
            &format!("{id} is an outbound address of IPv6, which needs a dual-stack cluster."),
        )),
        ([], _) => Err(refusal::invalid(target, "No outbound address of IPv4 is given.")),
        _ => Ok(()),
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

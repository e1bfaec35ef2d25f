//! Load balancers.

mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Change, inbound, refusal};
use crate::{
    addr::Family,
    command::{Accepted, Common, PutFrontend, PutLoadBalancer},
    fault::Fault,
    kind,
    model::{Allocation, BackendPool, Frontend, Holder, InboundTarget, LoadBalancer, OutboundType},
    name::{ArmId, Name},
};

impl Change {
    pub(super) fn put_balancer(
        &mut self,
        common: &Common,
        put: PutLoadBalancer,
    ) -> Result<Accepted, Fault> {
        let old = self.region.balancers.get(&common.id).cloned();
        let meta = self.meta(common, kind::LOAD_BALANCER, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        // What it had is free for the new list.
        if let Some(old) = &old {
            self.release_frontends(old);
        }
        let frontends = self.hold_frontends(&id, &meta.location, old.as_deref(), put.frontends)?;
        let pools = put.pools.into_iter().map(|(name, pool)| {
            (name, BackendPool { members: without_repeats(pool.members), ..pool })
        });
        let balancer = LoadBalancer {
            meta,
            sku: put.sku,
            frontends,
            pools: unique("backendAddressPools", pools)?,
            probes: unique("probes", put.probes)?,
            rules: unique("loadBalancingRules", put.rules)?,
            outbound_rules: unique("outboundRules", put.outbound_rules)?,
            inbound_rules: unique("inboundNatRules", put.inbound_rules)?,
        };
        check_references(&balancer)?;
        rules::check(&self.region, &balancer)?;
        inbound::check(&balancer)?;
        self.check_members(&balancer)?;
        self.check_families(&balancer)?;
        self.check_inbound_members(&balancer)?;
        self.check_skus(&balancer)?;
        self.region.balancers.insert(id.clone(), Arc::new(balancer));
        Ok(self.put(&id, old.is_none()))
    }

    /// Takes addresses and public IPs for the front ends. Those who want a certain one come first.
    fn hold_frontends(
        &mut self,
        id: &ArmId,
        location: &str,
        old: Option<&LoadBalancer>,
        wanted: Vec<(Name, PutFrontend)>,
    ) -> Result<BTreeMap<Name, Frontend>, Fault> {
        let wanted = unique("frontendIPConfigurations", wanted)?;
        let mut frontends = BTreeMap::new();
        let mut later = Vec::new();
        for (name, put) in wanted {
            match put {
                PutFrontend::Public { public_ip } => {
                    self.attach_public_ip(&public_ip, id, location, &name)?;
                    frontends.insert(name, Frontend::Public { public_ip });
                }
                PutFrontend::Prefix { public_ip_prefix } => {
                    let user = frontend_id(id, &name).to_string();
                    self.attach_prefix(&public_ip_prefix, id, location, &user)?;
                    frontends.insert(name, Frontend::Prefix { public_ip_prefix });
                }
                PutFrontend::Internal { subnet, address, family } => {
                    self.joinable(&subnet, id, location)?;
                    let has = match old.and_then(|old| old.frontends.get(&name)) {
                        Some(Frontend::Internal { subnet: before, address, .. })
                            if *before == subnet && Family::of(*address) == family =>
                        {
                            Some(*address)
                        }
                        _ => None,
                    };
                    if address.or(has).is_some() {
                        let frontend =
                            self.hold_frontend(id, &name, (subnet, family), address, has)?;
                        frontends.insert(name, frontend);
                    } else {
                        later.push((name, (subnet, family)));
                    }
                }
            }
        }
        for (name, place) in later {
            let frontend = self.hold_frontend(id, &name, place, None, None)?;
            frontends.insert(name, frontend);
        }
        Ok(frontends)
    }

    fn hold_frontend(
        &mut self,
        id: &ArmId,
        name: &Name,
        (subnet, family): (ArmId, Family),
        wanted: Option<std::net::IpAddr>,
        has: Option<std::net::IpAddr>,
    ) -> Result<Frontend, Fault> {
        let holder = Holder::Frontend { balancer: id.clone(), frontend: name.as_str().to_owned() };
        let address = self.hold(&subnet, family, wanted.or(has), holder)?;
        let allocation = if wanted.is_some() { Allocation::Static } else { Allocation::Dynamic };
        Ok(Frontend::Internal { subnet, address, allocation })
    }

    /// Gives a public IP to a front end.
    pub(super) fn attach_public_ip(
        &mut self,
        public_ip: &ArmId,
        balancer: &ArmId,
        location: &str,
        frontend: &Name,
    ) -> Result<(), Fault> {
        let user = frontend_id(balancer, frontend).to_string();
        self.attach_public(public_ip, balancer, location, &user)
    }

    /// Gives back the addresses and public IPs of a load balancer's front ends.
    fn release_frontends(&mut self, balancer: &LoadBalancer) {
        for frontend in balancer.frontends.values() {
            match frontend {
                Frontend::Internal { subnet, address, .. } => self.release(subnet, *address),
                Frontend::Public { public_ip } => self.detach_public(public_ip),
                Frontend::Prefix { public_ip_prefix } => self.detach_prefix(public_ip_prefix),
            }
        }
    }

    /// Takes a load balancer out of the region.
    pub(super) fn drop_balancer(&mut self, id: &ArmId) {
        if let Some(balancer) = self.region.balancers.remove(id) {
            self.release_frontends(&balancer);
        }
    }

    /// Members are NICs that exist, all in one virtual network, which is also the front ends'.
    fn check_members(&self, balancer: &LoadBalancer) -> Result<(), Fault> {
        let id = &balancer.meta.id;
        let mut vnets = BTreeSet::new();
        for frontend in balancer.frontends.values() {
            if let Frontend::Internal { subnet, .. } = frontend {
                vnets.extend(subnet.parent());
            }
        }
        for member in balancer.pools.values().flat_map(|pool| &pool.members) {
            let nic = self.region.nics.get(member).ok_or_else(|| refusal::reference(member, id))?;
            self.refuse_going(member, nic.meta.state)?;
            vnets.extend(nic.vnet());
        }
        for rule in balancer.inbound_rules.values() {
            if let InboundTarget::Configuration { member: Some((nic, _)), .. } = &rule.target {
                vnets.extend(self.region.nics.get(nic).and_then(|nic| nic.vnet()));
            }
        }
        if vnets.len() > 1 {
            return Err(refusal::invalid(
                "properties.backendAddressPools",
                &format!("The front ends and members of {id} must be in one virtual network."),
            ));
        }
        Ok(())
    }

    /// Refuses rules whose front end and pool are of different families, and members without an address of their
    /// pool's (Azure documentation, "IPv6 for Azure Virtual Network": a rule has front end and pool of one family).
    fn check_families(&self, balancer: &LoadBalancer) -> Result<(), Fault> {
        let frontend_family = |name: &Name| match balancer.frontends.get(name)? {
            Frontend::Internal { address, .. } => Some(Family::of(*address)),
            Frontend::Public { public_ip } => {
                self.region.public_ips.get(public_ip).map(|it| Family::of(it.address))
            }
            Frontend::Prefix { public_ip_prefix } => {
                self.region.public_ip_prefixes.get(public_ip_prefix).map(|it| it.prefix.family())
            }
        };
        let pool_family = |name: &Name| {
            let pool = balancer.pools.get(name)?;
            // Nobody has said yet which it is.
            (!pool.members.is_empty()).then_some(pool.family)
        };
        let refuse = |kind: &str, rule: &Name, frontend: &Name, pool: &Name| {
            refusal::invalid(
                &format!("properties.{kind}[{rule}]"),
                &format!(
                    "Front end {frontend} and back-end pool {pool} are not of one IP address version."
                ),
            )
        };
        let differ = |frontend: &Name, pool: &Name| {
            let both = frontend_family(frontend).zip(pool_family(pool));
            both.is_some_and(|(frontend, pool)| frontend != pool)
        };
        for (name, rule) in &balancer.rules {
            if differ(&rule.frontend, &rule.pool) {
                return Err(refuse("loadBalancingRules", name, &rule.frontend, &rule.pool));
            }
        }
        for (name, rule) in &balancer.outbound_rules {
            if let Some(frontend) = rule.frontends.iter().find(|it| differ(it, &rule.pool)) {
                return Err(refuse("outboundRules", name, frontend, &rule.pool));
            }
        }
        for (name, rule) in &balancer.inbound_rules {
            if let InboundTarget::Pool { pool, .. } = &rule.target
                && differ(&rule.frontend, pool)
            {
                return Err(refuse("inboundNatRules", name, &rule.frontend, pool));
            }
        }
        for (name, pool) in &balancer.pools {
            for member in &pool.members {
                let nic = self.region.nics.get(member);
                if nic.is_some_and(|nic| nic.config_of(pool.family).is_none()) {
                    return Err(refusal::invalid(
                        "properties.backendAddressPools",
                        &format!("{member} has no IPv6 address to be in pool {name} with."),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses a public IP of another SKU than the load balancer's.
    fn check_skus(&self, balancer: &LoadBalancer) -> Result<(), Fault> {
        for frontend in balancer.frontends.values() {
            let Frontend::Public { public_ip } = frontend else { continue };
            let sku = self.region.public_ips.get(public_ip).map(|it| it.sku.as_str());
            if sku.is_some_and(|sku| !sku.eq_ignore_ascii_case(&balancer.sku)) {
                return Err(Fault::bad(
                    "PublicIPAndLBSkuDoNotMatch",
                    format!(
                        "{} sku load balancer {} cannot reference {} sku publicIP {public_ip}.",
                        balancer.sku,
                        balancer.meta.id,
                        sku.unwrap_or_default()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Refuses to delete the load balancer that a cluster's machines reach the internet through.
    pub(super) fn refuse_used_balancer(&self, id: &ArmId) -> Result<(), Fault> {
        let group = self.region.groups.get(&id.resource_group_id());
        let cluster = group.and_then(|group| group.managed_by.as_ref());
        let cluster = cluster.and_then(|cluster| self.region.clusters.get(cluster));
        let is_needed = cluster.is_some_and(|cluster| {
            cluster.outbound == OutboundType::LoadBalancer
                && Name::new(id.name()) == "kubernetes".into()
        });
        if is_needed {
            return Err(Fault::bad(
                "LoadBalancerInUseByVirtualMachineScaleSet",
                format!(
                    "Cannot delete load balancer {id} since its child resources are in use by virtual machine scale sets."
                ),
            ));
        }
        Ok(())
    }
}

pub(super) fn frontend_id(balancer: &ArmId, frontend: &Name) -> ArmId {
    balancer.child("frontendIPConfigurations", frontend.as_str())
}

fn without_repeats(members: Vec<ArmId>) -> Vec<ArmId> {
    let mut seen = BTreeSet::new();
    members.into_iter().filter(|member| seen.insert(member.clone())).collect()
}

/// A list of named parts as a map; no name twice.
fn unique<T>(
    part: &str,
    list: impl IntoIterator<Item = (Name, T)>,
) -> Result<BTreeMap<Name, T>, Fault> {
    let mut map = BTreeMap::new();
    for (name, value) in list {
        refusal::check_name(name.as_str())?;
        if map.insert(name.clone(), value).is_some() {
            return Err(refusal::invalid(
                &format!("properties.{part}"),
                &format!("The name {name} is used more than once."),
            ));
        }
    }
    Ok(map)
}

/// Rules name front ends, pools and probes of the same load balancer, and no two want the same packets.
fn check_references(balancer: &LoadBalancer) -> Result<(), Fault> {
    let id = &balancer.meta.id;
    let missing = |kind: &str, name: &Name| refusal::reference(&id.child(kind, name.as_str()), id);
    let frontend = |name: &Name| {
        let known = balancer.frontends.contains_key(name);
        if known { Ok(()) } else { Err(missing("frontendIPConfigurations", name)) }
    };
    let pool = |name: &Name| {
        let known = balancer.pools.contains_key(name);
        if known { Ok(()) } else { Err(missing("backendAddressPools", name)) }
    };
    // Azure documentation, "Public IP address prefix": a whole one is for outbound rules.
    let takes = |kind: &str, rule: &Name, name: &Name| match balancer.frontends.get(name) {
        Some(Frontend::Prefix { public_ip_prefix }) => Err(refusal::invalid(
            &format!("properties.{kind}[{rule}]"),
            &format!(
                "Front end {name} is public IP prefix {public_ip_prefix}, which is for outbound rules only."
            ),
        )),
        Some(Frontend::Public { .. } | Frontend::Internal { .. }) | None => Ok(()),
    };
    for (name, rule) in &balancer.inbound_rules {
        takes("inboundNatRules", name, &rule.frontend)?;
    }
    let mut wanted = BTreeMap::new();
    for (name, rule) in &balancer.rules {
        frontend(&rule.frontend)?;
        takes("loadBalancingRules", name, &rule.frontend)?;
        pool(&rule.pool)?;
        if let Some(probe) =
            rule.probe.as_ref().filter(|probe| !balancer.probes.contains_key(*probe))
        {
            return Err(missing("probes", probe));
        }
        let target = format!("properties.loadBalancingRules[{name}]");
        // Azure Load Balancer documentation, "Floating IP": the packet arrives as it was sent.
        if rule.floating_ip && rule.frontend_port != rule.backend_port {
            return Err(refusal::invalid(
                &target,
                "With floating IP the back-end port is the front-end port.",
            ));
        }
        let key = (&rule.frontend, rule.protocol, rule.frontend_port);
        if let Some(other) = wanted.insert(key, name) {
            return Err(refusal::invalid(
                &target,
                &format!("Rule {other} has the same front end, protocol and port."),
            ));
        }
    }
    for rule in balancer.outbound_rules.values() {
        rule.frontends.iter().try_for_each(frontend)?;
        pool(&rule.pool)?;
    }
    Ok(())
}

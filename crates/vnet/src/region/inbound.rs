//! Inbound NAT rules of load balancers: a front end's port is one machine's, or a range of them is a pool's.
//!
//! Rules: Azure Load Balancer documentation, "Inbound NAT rules".

use std::collections::BTreeMap;

use super::{Change, refusal};
use crate::{
    fault::Fault,
    model::{InboundNatRule, InboundTarget, LoadBalancer, PortRange, Transport},
    name::{ArmId, Name},
};

/// Minutes that a flow through a rule may be idle.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u32> = 4..=100;

/// Refuses inbound NAT rules that name what is not there, or that want packets that another rule has.
pub(super) fn check(balancer: &LoadBalancer) -> Result<(), Fault> {
    let id = &balancer.meta.id;
    for (name, rule) in &balancer.inbound_rules {
        let missing =
            |kind: &str, name: &Name| refusal::reference(&id.child(kind, name.as_str()), id);
        if !balancer.frontends.contains_key(&rule.frontend) {
            return Err(missing("frontendIPConfigurations", &rule.frontend));
        }
        check_ports(balancer, name, rule)?;
    }
    check_conflicts(balancer)?;
    check_backends(balancer)
}

/// The ports of its front end that a rule takes.
fn frontend_ports(rule: &InboundNatRule) -> PortRange {
    match &rule.target {
        InboundTarget::Configuration { frontend_port, .. } => PortRange::one(*frontend_port),
        InboundTarget::Pool { frontend_ports, .. } => *frontend_ports,
    }
}

fn check_ports(balancer: &LoadBalancer, name: &Name, rule: &InboundNatRule) -> Result<(), Fault> {
    let target = format!("properties.inboundNatRules[{name}]");
    let ports = frontend_ports(rule);
    if rule.protocol == Transport::All {
        return Err(refusal::invalid(&target, "An inbound NAT rule is for TCP or for UDP."));
    }
    if ports.first == 0 || ports.last < ports.first || rule.backend_port == 0 {
        return Err(refusal::invalid(&target, "Ports are 1 to 65535, a range's first one first."));
    }
    if !IDLE_TIMEOUT.contains(&rule.idle_timeout_minutes) {
        return Err(refusal::invalid(
            &format!("{target}.idleTimeoutInMinutes"),
            &format!(
                "{} is not between {} and {}.",
                rule.idle_timeout_minutes,
                IDLE_TIMEOUT.start(),
                IDLE_TIMEOUT.end()
            ),
        ));
    }
    match &rule.target {
        InboundTarget::Configuration { frontend_port, .. } => {
            if rule.floating_ip && *frontend_port != rule.backend_port {
                return Err(refusal::invalid(
                    &target,
                    "With floating IP the back-end port is the front-end port.",
                ));
            }
        }
        InboundTarget::Pool { pool, frontend_ports } => {
            let Some(members) = balancer.pools.get(pool).map(|pool| pool.members.len()) else {
                let missing = balancer.meta.id.child("backendAddressPools", pool.as_str());
                return Err(refusal::reference(&missing, &balancer.meta.id));
            };
            let n_ports = usize::from(frontend_ports.last - frontend_ports.first) + 1;
            if members > n_ports {
                return Err(refusal::invalid(
                    &target,
                    &format!(
                        "Back-end pool {pool} has {members} members, the rule {n_ports} ports."
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// No two rules want the same packets of a front end, whether they balance or not.
fn check_conflicts(balancer: &LoadBalancer) -> Result<(), Fault> {
    let inbound = balancer.inbound_rules.iter().map(|(name, rule)| {
        (format!("inboundNatRules/{name}"), &rule.frontend, rule.protocol, frontend_ports(rule))
    });
    let others = balancer.rules.iter().map(|(name, rule)| {
        let ports = match rule.protocol {
            Transport::All => PortRange::ALL,
            Transport::Tcp | Transport::Udp => PortRange::one(rule.frontend_port),
        };
        (format!("loadBalancingRules/{name}"), &rule.frontend, rule.protocol, ports)
    });
    let n_inbound = balancer.inbound_rules.len();
    let all: Vec<_> = inbound.chain(others).collect();
    for (i, (name, frontend, protocol, ports)) in all[..n_inbound].iter().enumerate() {
        let other = all[i + 1..].iter().find(|(_, other, others, range)| {
            other == frontend
                && (others == protocol || *others == Transport::All)
                && range.first <= ports.last
                && ports.first <= range.last
        });
        if let Some((other, ..)) = other {
            return Err(refusal::invalid(
                &format!("properties.{}", name.replacen('/', "[", 1) + "]"),
                &format!(
                    "{name} and {other} of load balancer {} use the same front end {frontend}, protocol and port.",
                    balancer.meta.id
                ),
            ));
        }
    }
    Ok(())
}

/// A machine's port cannot be the end of two rules, as the answers could not be told apart.
fn check_backends(balancer: &LoadBalancer) -> Result<(), Fault> {
    let mut taken: BTreeMap<(&ArmId, &str, Transport, u16), &Name> = BTreeMap::new();
    for (name, rule) in &balancer.inbound_rules {
        let InboundTarget::Configuration { member: Some((nic, config)), .. } = &rule.target else {
            continue;
        };
        if rule.floating_ip {
            continue;
        }
        let key = (nic, config.as_str(), rule.protocol, rule.backend_port);
        if let Some(other) = taken.insert(key, name) {
            return Err(Fault::bad(
                "RulesOfSameLoadBalancerTypeUseSameBackendPortProtocolAndIPConfig",
                format!(
                    "Load balancer rules {other} and {name} of {} use the same back-end port {} and protocol, and must not \
                     be used with the same IP configuration {}.",
                    balancer.meta.id,
                    rule.backend_port,
                    nic.child("ipConfigurations", config)
                ),
            ));
        }
    }
    Ok(())
}

impl Change {
    /// Who is behind an inbound NAT rule is there.
    pub(super) fn check_inbound_members(&self, balancer: &LoadBalancer) -> Result<(), Fault> {
        for rule in balancer.inbound_rules.values() {
            let InboundTarget::Configuration { member: Some((nic, config)), .. } = &rule.target
            else {
                continue;
            };
            let id = nic.child("ipConfigurations", config);
            let there = self.region.nics.get(nic);
            let there = there.filter(|there| there.configs.iter().any(|it| it.name == *config));
            let there = there.ok_or_else(|| refusal::reference(&id, &balancer.meta.id))?;
            self.refuse_going(nic, there.meta.state)?;
        }
        Ok(())
    }

    /// Takes from inbound NAT rules every IP configuration that `stays` does not hold for.
    pub(super) fn aim_inbound_rules(&mut self, stays: impl Fn(&ArmId, &String) -> bool) {
        let is_lost = |rule: &InboundNatRule| match &rule.target {
            InboundTarget::Configuration { member: Some((nic, config)), .. } => !stays(nic, config),
            InboundTarget::Configuration { member: None, .. } | InboundTarget::Pool { .. } => false,
        };
        let loses = |balancer: &LoadBalancer| balancer.inbound_rules.values().any(is_lost);
        self.region.balancers.change(loses, |balancer| {
            for rule in balancer.inbound_rules.values_mut() {
                if is_lost(rule)
                    && let InboundTarget::Configuration { member, .. } = &mut rule.target
                {
                    *member = None;
                }
            }
        });
    }
}

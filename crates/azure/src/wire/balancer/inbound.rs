//! Inbound NAT rules: alone, as parts of their load balancer, and as what an IP configuration names.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::Family,
    command::Command,
    fault::Fault,
    kind,
    model::{InboundNatRule, InboundTarget, LoadBalancer, PortRange},
    name::{ArmId, Name},
    region::Region,
};

use super::{Parser, mixed_pool, read_value, stored, with_inbound_rules, with_parts};
use crate::{
    findings::{arm_id_of, missing},
    refuse::unsupported,
    wire::{Asked, Named, Reference, id_of},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Properties {
    #[serde(rename = "frontendIPConfiguration")]
    frontend: Option<Reference>,
    backend_address_pool: Option<Reference>,
    protocol: Option<String>,
    frontend_port: Option<u16>,
    frontend_port_range_start: Option<u16>,
    frontend_port_range_end: Option<u16>,
    backend_port: Option<u16>,
    #[serde(rename = "enableFloatingIP")]
    floating_ip: Option<bool>,
    idle_timeout_in_minutes: Option<u32>,
    enable_tcp_reset: Option<bool>,
}

/// A rule of the load balancer `stored` or of one that is being made.
pub(super) fn parse(
    parser: &mut Parser<'_>,
    stored: Option<&LoadBalancer>,
    name: &Name,
    part: Properties,
) -> Option<InboundNatRule> {
    let path = "properties.inboundNatRules";
    let frontend = parser.part(
        part.frontend,
        "frontendIPConfigurations",
        &format!("{path}.frontendIPConfiguration"),
    );
    let target = format!("{path}.protocol");
    let protocol = parser.protocol(part.protocol, &target);
    let backend_port = part.backend_port.ok_or_else(|| missing(&format!("{path}.backendPort")));
    let backend_port = parser.findings.take(backend_port);
    let pool = match id_of(part.backend_address_pool) {
        None => None,
        Some(id) => Some(parser.part(
            Some(Reference { id: Some(id) }),
            "backendAddressPools",
            &format!("{path}.backendAddressPool"),
        )?),
    };
    let target = if let Some(pool) = pool {
        let end =
            |port: Option<u16>, key: &str| port.ok_or_else(|| missing(&format!("{path}.{key}")));
        let first = end(part.frontend_port_range_start, "frontendPortRangeStart");
        let last = end(part.frontend_port_range_end, "frontendPortRangeEnd");
        let (first, last) = (parser.findings.take(first), parser.findings.take(last));
        InboundTarget::Pool { pool, frontend_ports: PortRange { first: first?, last: last? } }
    } else {
        let single = part.frontend_port;
        let single = single.ok_or_else(|| missing(&format!("{path}.frontendPort")));
        // Who is behind it is said by the IP configuration, and stays until that says otherwise.
        let old = stored.and_then(|stored| stored.inbound_rules.get(name));
        let member = match old.map(|old| &old.target) {
            Some(InboundTarget::Configuration { member, .. }) => member.clone(),
            Some(InboundTarget::Pool { .. }) | None => None,
        };
        InboundTarget::Configuration { frontend_port: parser.findings.take(single)?, member }
    };
    Some(InboundNatRule {
        frontend: frontend?,
        protocol: protocol?,
        target,
        backend_port: backend_port?,
        floating_ip: part.floating_ip.unwrap_or(false),
        idle_timeout_minutes: part.idle_timeout_in_minutes.unwrap_or(4),
        enable_tcp_reset: part.enable_tcp_reset.unwrap_or(false),
    })
}

/// A `PUT` of one rule by its own path: the stored load balancer with that rule.
pub(crate) fn parse_alone(asked: &Asked<'_>) -> Result<Command, Fault> {
    let stored = stored(asked)?;
    let named = read_value::<Named<Properties>>(&asked.value)?;
    let mut parser =
        Parser { id: &stored.meta.id, region: asked.view.region, findings: asked.findings(&[]) };
    let name = Name::new(asked.id.name());
    let Some(part) = named.properties else {
        return Err(missing("properties.inboundNatRules.frontendIPConfiguration.id"));
    };
    let rule = parse(&mut parser, Some(stored), &name, part);
    parser.findings.then(|| {
        let rule = rule?;
        Some(with_inbound_rules(stored, |rules| {
            rules.retain(|(other, _)| *other != name);
            rules.push((name, rule));
        }))
    })
}

/// The properties of a rule, but for its provisioning state.
pub(super) fn properties(
    rule: &InboundNatRule,
    reference: impl Fn(&str, &Name) -> Value,
    protocol: &str,
) -> Value {
    let mut properties = json!({
        "frontendIPConfiguration": reference("frontendIPConfigurations", &rule.frontend),
        "protocol": protocol,
        "frontendPort": 0,
        "backendPort": rule.backend_port,
        "enableFloatingIP": rule.floating_ip,
        "enableDestinationServiceEndpoint": false,
        "idleTimeoutInMinutes": rule.idle_timeout_minutes,
        "enableTcpReset": rule.enable_tcp_reset,
        "allowBackendPortConflict": false,
    });
    match &rule.target {
        InboundTarget::Configuration { frontend_port, member } => {
            properties["frontendPort"] = json!(frontend_port);
            if let Some((nic, config)) = member {
                let id = nic.child("ipConfigurations", config);
                properties["backendIPConfiguration"] = json!({ "id": id });
            }
        }
        InboundTarget::Pool { pool, frontend_ports } => {
            properties["backendAddressPool"] = reference("backendAddressPools", pool);
            properties["frontendPortRangeStart"] = json!(frontend_ports.first);
            properties["frontendPortRangeEnd"] = json!(frontend_ports.last);
        }
    }
    properties
}

/// What a NIC's body says about load balancers.
#[derive(Debug, Default)]
pub(crate) struct Memberships {
    /// The back-end pools that it shall be in.
    pub(crate) pools: Vec<(ArmId, Family)>,
    /// The inbound NAT rules that it shall be behind, each with the IP configuration's name.
    pub(crate) rules: Vec<(ArmId, String)>,
}

impl Memberships {
    /// Adds one inbound NAT rule.
    pub(crate) fn add_rule(&mut self, text: &str, config: &str, target: &str) -> Result<(), Fault> {
        let kind = format!("{}/inboundNatRules", kind::LOAD_BALANCER);
        self.rules.push((arm_id_of(text, &kind, target)?, config.to_owned()));
        Ok(())
    }

    /// The changes of load balancers that make `nic` a member of exactly these; what is not there is refused.
    pub(crate) fn commands(&self, region: &Region, nic: &ArmId) -> Result<Vec<Command>, Fault> {
        for (pool, family) in &self.pools {
            let balancer = pool.parent().and_then(|id| region.balancers.get(&id));
            let there = balancer.and_then(|it| it.pools.get(&Name::new(pool.name())));
            let known = there.is_some();
            if !known {
                return Err(not_there(pool, nic));
            }
            // Who is the only member may be of the other family from now on.
            if there.is_some_and(|it| {
                it.family != *family && it.members.iter().any(|member| member != nic)
            }) {
                return Err(mixed_pool(pool));
            }
        }
        for (rule, config) in &self.rules {
            check_rule(region, rule, nic, config)?;
        }
        let mut commands = Vec::new();
        for (id, balancer) in &region.balancers {
            let is_in = |name: &Name| {
                let id = id.child("backendAddressPools", name.as_str());
                self.pools.iter().find(|(pool, _)| *pool == id).map(|(_, family)| *family)
            };
            let wanted = |name: &Name| {
                let id = id.child("inboundNatRules", name.as_str());
                let mut rules = self.rules.iter().filter(|(rule, _)| *rule == id);
                rules.next().map(|(_, config)| (nic.clone(), config.clone()))
            };
            let differs = balancer.pools.iter().any(|(name, pool)| {
                pool.members.contains(nic).then_some(pool.family) != is_in(name)
            }) || balancer.inbound_rules.iter().any(|(name, rule)| {
                let has = member(rule).filter(|(it, _)| it == nic);
                has != wanted(name).as_ref()
            });
            if differs {
                commands.push(with_parts(balancer, |put| {
                    for (name, pool) in &mut put.pools {
                        pool.members.retain(|member| member != nic);
                        if let Some(family) = is_in(name) {
                            pool.members.push(nic.clone());
                            pool.family = family;
                        }
                    }
                    for (name, rule) in &mut put.inbound_rules {
                        let is_its = member(rule).is_none_or(|(it, _)| it == nic);
                        if let InboundTarget::Configuration { member, .. } = &mut rule.target
                            && is_its
                        {
                            *member = wanted(name);
                        }
                    }
                }));
            }
        }
        Ok(commands)
    }
}

fn member(rule: &InboundNatRule) -> Option<&(ArmId, String)> {
    match &rule.target {
        InboundTarget::Configuration { member, .. } => member.as_ref(),
        InboundTarget::Pool { .. } => None,
    }
}

/// Refuses a rule that is not there, is a pool's, or has another machine behind it.
fn check_rule(region: &Region, id: &ArmId, nic: &ArmId, config: &str) -> Result<(), Fault> {
    let balancer = id.parent().and_then(|id| region.balancers.get(&id));
    let rule = balancer.and_then(|it| it.inbound_rules.get(&Name::new(id.name())));
    let rule = rule.ok_or_else(|| not_there(id, nic))?;
    let user = nic.child("ipConfigurations", config);
    match &rule.target {
        InboundTarget::Pool { pool, .. } => {
            let what = format!(
                "an IP configuration in inbound NAT rule {}, which is for back-end pool {pool}",
                id.name()
            );
            Err(unsupported("InvalidParameter", &what))
        }
        InboundTarget::Configuration { member: Some((other, name)), .. } if other != nic => {
            Err(Fault::bad(
                "InvalidParameter",
                format!(
                    "Inbound NAT rule {id} referenced by {user} is already used by {}.",
                    other.child("ipConfigurations", name)
                ),
            ))
        }
        InboundTarget::Configuration { .. } => Ok(()),
    }
}

fn not_there(missing: &ArmId, by: &ArmId) -> Fault {
    let message = format!(
        "Resource {missing} referenced by resource {by} was not found. Please make sure that the referenced resource exists, and that both resources are in the same region."
    );
    Fault::bad("InvalidResourceReference", message)
}

/// The inbound NAT rules that an IP configuration is behind, as ids.
pub(crate) fn rules_of(region: &Region, nic: &ArmId, config: &str) -> Vec<ArmId> {
    let mut rules = Vec::new();
    for (id, balancer) in &region.balancers {
        for (name, rule) in &balancer.inbound_rules {
            if member(rule).is_some_and(|(it, its)| it == nic && its == config) {
                rules.push(id.child("inboundNatRules", name.as_str()));
            }
        }
    }
    rules
}

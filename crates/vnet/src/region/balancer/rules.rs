//! What the parts of a load balancer must be for Azure to take them. Not here: whether what they name is there (see
//! [`super::check_references`]), and inbound NAT rules.
//!
//! Rules: Azure Load Balancer documentation, "Load Balancer components", "High availability ports overview", "Multiple
//! frontends", "Outbound rules", "Health probes"; REST API reference, "Load Balancers - Create Or Update". Codes and texts
//! are Azure's as people pasted them; each says where. The others have the provider's general code.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::super::{Region, refusal};
use crate::{
    addr::Family,
    fault::Fault,
    model::{BalancingRule, Frontend, LoadBalancer, OutboundRule, Probe, ProbeProtocol, Transport},
    name::Name,
};

/// Minutes that a flow through a load-balancing rule may be idle (hashicorp/terraform-provider-azurerm pull request 24751).
const RULE_IDLE: RangeInclusive<u32> = 4..=100;
/// The same for an outbound rule.
const OUTBOUND_IDLE: RangeInclusive<u32> = 4..=120;
/// The ports of a front end that rules can be for.
const FRONTEND_PORTS: RangeInclusive<u16> = 1..=65534;
/// The most SNAT ports of each public address, and so the most that a rule may give to a member of one address's pool.
const PORTS_PER_ADDRESS: u64 = 64_000;
/// Seconds between two probes, at least.
const PROBE_INTERVAL: u32 = 5;

/// Refuses a load balancer whose parts cannot be as they are, or not beside each other.
pub(super) fn check(region: &Region, balancer: &LoadBalancer) -> Result<(), Fault> {
    check_frontends(balancer)?;
    for (name, probe) in &balancer.probes {
        check_probe(name, probe)?;
    }
    for (name, rule) in &balancer.rules {
        check_rule(balancer, name, rule)?;
    }
    check_backends(balancer)?;
    for (name, rule) in &balancer.outbound_rules {
        check_outbound(region, balancer, name, rule)?;
    }
    check_shared_frontends(balancer)
}

fn is_internal(frontend: &Frontend) -> bool {
    matches!(frontend, Frontend::Internal { .. })
}

/// A load balancer is internal or public, and without a front end it is nothing else either
/// (hashicorp/terraform-provider-azurerm issue 774).
fn check_frontends(balancer: &LoadBalancer) -> Result<(), Fault> {
    let LoadBalancer {
        meta, frontends, pools, probes, rules, outbound_rules, inbound_rules, ..
    } = balancer;
    let n_children =
        pools.len() + probes.len() + rules.len() + outbound_rules.len() + inbound_rules.len();
    if frontends.is_empty() && n_children > 0 {
        return Err(Fault::bad(
            "LoadBalancerWithoutFrontendIPCantHaveChildResources",
            format!(
                "Load Balancer {} does not have Frontend IP Configuration, but it has other child resources. This setup is \
                 not supported.",
                meta.id
            ),
        ));
    }
    let is = |internal: bool| frontends.iter().find(|(_, it)| is_internal(it) == internal);
    if let (Some((inside, _)), Some((outside, _))) = (is(true), is(false)) {
        return Err(refusal::invalid(
            "properties.frontendIPConfigurations",
            &format!(
                "Front end {inside} is in a subnet, {outside} has a public IP: a load balancer is either internal or public. \
                 Two load balancers can have the same members, one of each kind."
            ),
        ));
    }
    Ok(())
}

fn check_probe(name: &Name, probe: &Probe) -> Result<(), Fault> {
    let refuse = |property: &str, why: &str| {
        Err(refusal::invalid(&format!("properties.probes[{name}].{property}"), why))
    };
    if probe.port == 0 {
        return refuse("port", "0 is not between 1 and 65535.");
    }
    if probe.interval_seconds < PROBE_INTERVAL {
        let is = probe.interval_seconds;
        let why = format!("{is} seconds are too short: the least are {PROBE_INTERVAL}.");
        return refuse("intervalInSeconds", &why);
    }
    if probe.threshold == 0 {
        return refuse("probeThreshold", "0 probes decide nothing: the least is 1.");
    }
    match (probe.protocol, probe.path.is_empty()) {
        (ProbeProtocol::Http | ProbeProtocol::Https, true) => {
            refuse("requestPath", "A probe of protocol Http or Https needs one, such as '/'.")
        }
        (ProbeProtocol::Tcp, false) => {
            refuse("requestPath", "A probe of protocol Tcp asks for none; Http and Https do.")
        }
        (ProbeProtocol::Tcp, true) | (ProbeProtocol::Http | ProbeProtocol::Https, false) => Ok(()),
    }
}

fn check_idle(target: &str, minutes: u32, limits: &RangeInclusive<u32>) -> Result<(), Fault> {
    if limits.contains(&minutes) {
        return Ok(());
    }
    Err(refusal::invalid(
        &format!("{target}.idleTimeoutInMinutes"),
        &format!("{minutes} is not between {} and {}.", limits.start(), limits.end()),
    ))
}

fn check_rule(balancer: &LoadBalancer, name: &Name, rule: &BalancingRule) -> Result<(), Fault> {
    let target = format!("properties.loadBalancingRules[{name}]");
    let refuse = |why: &str| Err(refusal::invalid(&target, why));
    check_idle(&target, rule.idle_timeout_minutes, &RULE_IDLE)?;
    let ports = (rule.frontend_port, rule.backend_port);
    if rule.protocol != Transport::All {
        if !FRONTEND_PORTS.contains(&ports.0) || ports.1 == 0 {
            let why = format!(
                "Ports {} and {} of a rule for Tcp or Udp: the front end's is one of {} to {}, the back end's of 1 to 65535. \
                 Port 0 and protocol All belong together: a rule for high-availability ports.",
                ports.0,
                ports.1,
                FRONTEND_PORTS.start(),
                FRONTEND_PORTS.end()
            );
            return refuse(&why);
        }
        return Ok(());
    }
    if ports != (0, 0) {
        return refuse(
            "Port 0 and protocol All belong together: a rule for high-availability ports, with front-end port 0 and \
             back-end port 0.",
        );
    }
    if !balancer.frontends.get(&rule.frontend).is_some_and(is_internal) {
        return refuse(
            "A rule for high-availability ports (protocol All) needs an internal front end; a public one takes rules for \
             Tcp and Udp.",
        );
    }
    if !balancer.sku.eq_ignore_ascii_case("Standard") {
        return refuse("A rule for high-availability ports (protocol All) needs SKU Standard.");
    }
    Ok(())
}

/// Without floating IP, a member cannot tell by port which of two rules a packet came by
/// (MicrosoftDocs/azure-docs issues 94673 and 117762).
fn check_backends(balancer: &LoadBalancer) -> Result<(), Fault> {
    let id = &balancer.meta.id;
    let mut taken = BTreeMap::new();
    for (name, rule) in balancer.rules.iter().filter(|(_, rule)| !rule.floating_ip) {
        let key = (&rule.pool, rule.protocol, rule.backend_port);
        let Some(other) = taken.insert(key, name) else { continue };
        let rule_id = |name: &Name| id.child("loadBalancingRules", name.as_str());
        return Err(Fault::bad(
            "RulesUseSameBackendPortProtocolAndPool",
            format!(
                "Load balancing rules {} and {} with floating IP disabled use the same protocol {:?} and backend port {}, and \
                 must not be used with the same backend address pool {}.",
                rule_id(other),
                rule_id(name),
                rule.protocol,
                rule.backend_port,
                id.child("backendAddressPools", rule.pool.as_str())
            ),
        ));
    }
    Ok(())
}

fn check_outbound(
    region: &Region,
    balancer: &LoadBalancer,
    name: &Name,
    rule: &OutboundRule,
) -> Result<(), Fault> {
    let target = format!("properties.outboundRules[{name}]");
    if !balancer.sku.eq_ignore_ascii_case("Standard") {
        return Err(refusal::invalid(
            &target,
            &format!("Outbound rules need SKU Standard, not {}.", balancer.sku),
        ));
    }
    if rule.frontends.is_empty() {
        return Err(refusal::invalid(
            &target,
            "An outbound rule needs at least one front end with a public IP or a public IP prefix.",
        ));
    }
    let frontends = rule.frontends.iter().filter_map(|name| balancer.frontends.get_key_value(name));
    let inside = frontends.clone().find(|(_, frontend)| is_internal(frontend));
    if let Some((inside, _)) = inside {
        // The text, without its code: MicrosoftDocs/azure-docs issue 45707.
        return Err(refusal::invalid(
            &target,
            &format!(
                "Internal load balancer cannot have any outbound rules. Either remove outbound rules or make sure frontend \
                 IP configurations {} reference public IP addresses and not subnets.",
                super::frontend_id(&balancer.meta.id, inside)
            ),
        ));
    }
    check_idle(&target, rule.idle_timeout_minutes, &OUTBOUND_IDLE)?;
    let n_addresses = frontends
        .map(|(_, frontend)| match frontend {
            Frontend::Prefix { public_ip_prefix } => region
                .public_ip_prefixes
                .get(public_ip_prefix)
                .map_or(1, |prefix| prefix.prefix.n_addresses()),
            Frontend::Public { .. } | Frontend::Internal { .. } => 1,
        })
        .sum();
    check_ports(balancer, name, rule, n_addresses)
}

/// SNAT ports that are given to each member. Codes: MicrosoftDocs/azure-docs pull request 124508; text of the last one:
/// issue 36809 there.
fn check_ports(
    balancer: &LoadBalancer,
    name: &Name,
    rule: &OutboundRule,
    n_addresses: u64,
) -> Result<(), Fault> {
    let ports = u64::from(rule.allocated_ports);
    let refuse = |what: &str, why: &str| {
        let target = format!("properties.outboundRules[{name}].allocatedOutboundPorts");
        Err(Fault::bad(
            &format!("SpecifiedAllocatedOutboundPortsForOutboundRule{what}"),
            format!(
                "Specified Allocated Outbound Ports {ports} for Outbound Rule {} {why}",
                balancer.meta.id.child("outboundRules", name.as_str())
            ),
        )
        .at(&target))
    };
    if !ports.is_multiple_of(8) {
        return refuse("IsNotAMultipleOfEight", "is not a multiple of 8.");
    }
    let most = PORTS_PER_ADDRESS;
    if ports > most {
        return refuse(
            "ExceedsTotalNumberOfAllowedPortsPerRule",
            &format!("exceeds total number of allowed ports of {most}."),
        );
    }
    // AKS gives the pool of IPv6 as many ports as that of IPv4, however few addresses it has: its own writes must pass.
    let pool = balancer.pools.get(&rule.pool).filter(|pool| pool.family == Family::V4);
    let n_members = pool.map_or(0, |pool| u64::try_from(pool.members.len()).unwrap_or(u64::MAX));
    let available = (most * n_addresses).checked_div(n_members).unwrap_or(most) / 8 * 8;
    if ports > available {
        return refuse(
            "ExceedsTotalNumberOfAvailablePorts",
            &format!(
                "exceeds total number of available ports per backend instance of {available} based upon desired pool size. \
                 Reduce allocated ports or increase number of IP addresses for outbound rule."
            ),
        );
    }
    Ok(())
}

/// Who uses an outbound rule's front end beside it.
fn check_shared_frontends(balancer: &LoadBalancer) -> Result<(), Fault> {
    let id = &balancer.meta.id;
    let ids = |kind: &str, names: &[&Name]| {
        let ids = names.iter().map(|name| id.child(kind, name.as_str()).to_string());
        ids.collect::<Vec<_>>().join(",")
    };
    for frontend in balancer.frontends.keys() {
        let outbound = balancer.outbound_rules.iter();
        let outbound: Vec<(&Name, &OutboundRule)> =
            outbound.filter(|(_, rule)| rule.frontends.contains(frontend)).collect();
        let names: Vec<&Name> = outbound.iter().map(|(name, _)| *name).collect();
        let frontend_id = super::frontend_id(id, frontend);
        let overlap =
            |a: Transport, b: Transport| a == b || a == Transport::All || b == Transport::All;
        let overlaps = outbound.iter().enumerate().any(|(n, (_, rule))| {
            outbound[..n].iter().any(|(_, other)| overlap(rule.protocol, other.protocol))
        });
        if overlaps {
            // Azure/AzLoadBalancerMigration issue 10, typo included.
            return Err(Fault::bad(
                "MoreThanOneOutboundRuleUsingSameFrontendIPConfigurationAndProtocolIsNotSupported",
                format!(
                    "Is is not supported to have more than a single outbound rule using frontendIPConfiguration {frontend_id} \
                     with same or overlapping protocol. This frontendIPConfiguration is used by the following outbound \
                     rules: {}",
                    ids("outboundRules", &names)
                ),
            ));
        }
        let lets_out =
            |rule: &BalancingRule| rule.frontend == *frontend && !rule.disable_outbound_snat;
        let rules = balancer.rules.iter().filter(|(_, rule)| lets_out(rule));
        let rules: Vec<&Name> = rules.map(|(name, _)| name).collect();
        if !names.is_empty() && !rules.is_empty() {
            // ansible-collections/azure issue 743.
            return Err(Fault::bad(
                "LoadBalancingRuleMustDisableSNATSinceSameFrontendIPConfigurationIsReferencedByOutboundRule",
                format!(
                    "Load Balancing Rules {} must have disableOutboundSNAT set to true when same FrontendIPConfiguration \
                     {frontend_id} is referenced by Outbound Rules {}.",
                    ids("loadBalancingRules", &rules),
                    ids("outboundRules", &names)
                ),
            ));
        }
    }
    Ok(())
}

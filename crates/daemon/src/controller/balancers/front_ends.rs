//! A Service's front ends, of which some may be another Service's. Pure.
//!
//! Rules: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go` (`reconcileFrontendIPConfigs`,
//! `serviceOwnsFrontendIP`, `checkLoadBalancerResourcesConflicts`). Services that ask for one address have one front
//! end, which is named after the first of them, and stays as long as a rule is of it.

use std::net::IpAddr;

use serde_json::{Value, json};
use vnet::addr::Family;

use super::{FrontEnd, Wanted, covers};

const KIND: &str = "frontendIPConfigurations";

fn all<'a>(body: &'a Value, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    body["properties"][kind].as_array().into_iter().flatten()
}

/// Whether `reference` is to the front end of this name.
fn is_to(reference: &Value, name: &str) -> bool {
    let id = reference["id"].as_str().unwrap_or_default();
    id.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(name))
}

/// Whether an outbound rule is of the front end of this name.
pub(super) fn is_way_out(balancer: &Value, name: &str) -> bool {
    all(balancer, "outboundRules").any(|rule| {
        let front_ends = rule["properties"][KIND].as_array();
        front_ends.into_iter().flatten().any(|it| is_to(it, name))
    })
}

/// Whether a front end is named after `wanted`, or one of its rules is of it.
fn is_had(balancer: &Value, wanted: &Wanted, part: &Value) -> bool {
    let name = part["name"].as_str().unwrap_or_default();
    let mut rules = all(balancer, "loadBalancingRules").filter(|rule| wanted.owns(rule));
    wanted.owns(part)
        || rules.any(|rule| is_to(&rule["properties"]["frontendIPConfiguration"], name))
}

/// The public IPs, by id, that front ends of `wanted` stand on.
pub(in super::super) fn public_ips<'a>(
    balancer: &'a Value,
    wanted: &'a Wanted,
) -> impl Iterator<Item = &'a str> {
    let parts = all(balancer, KIND).filter(|part| is_had(balancer, wanted, part));
    parts.filter_map(|part| part["properties"]["publicIPAddress"]["id"].as_str())
}

/// Whether somebody but `wanted` uses the front end of this name.
fn is_others(balancer: &Value, wanted: &Wanted, name: &str) -> bool {
    let uses = |rule: &Value| is_to(&rule["properties"]["frontendIPConfiguration"], name);
    all(balancer, "loadBalancingRules").any(|rule| !wanted.owns(rule) && uses(rule))
        || all(balancer, "inboundNatRules").any(uses)
        || is_way_out(balancer, name)
}

/// A family's front end: the one that is there, as long as it is what is asked for, or another Service's, or a new one.
pub(super) fn part(
    current: &Value,
    wanted: &Wanted,
    family: Family,
    front_end: &FrontEnd,
) -> Value {
    match find(current, wanted, family, front_end) {
        Some(there) => there.clone(),
        None => made(wanted, family, front_end),
    }
}

/// The front end that serves a family of `wanted`, if there is one.
fn find<'a>(
    current: &'a Value,
    wanted: &Wanted,
    family: Family,
    front_end: &FrontEnd,
) -> Option<&'a Value> {
    let name = wanted.front_end_name(family);
    let own = all(current, KIND).find(|part| part["name"] == json!(name));
    let own = own.filter(|there| is_asked_for(there, wanted, family, front_end));
    own.or_else(|| {
        // Whoever names no address has one of its own.
        let mut others = all(current, KIND).filter(|part| !wanted.owns(part));
        match front_end {
            FrontEnd::Internal { .. } => {
                let asked: IpAddr = wanted.addresses.get(&family)?.parse().ok()?;
                others.find(|part| private_address(part) == Some(asked))
            }
            FrontEnd::Public { public_ip, .. } => others.find(|part| stands_on(part, public_ip)),
        }
    })
}

fn private_address(part: &Value) -> Option<IpAddr> {
    part["properties"]["privateIPAddress"].as_str()?.parse().ok()
}

fn stands_on(part: &Value, public_ip: &str) -> bool {
    covers(&part["properties"]["publicIPAddress"]["id"], &json!(public_ip))
}

/// Whether a front end stands on what is asked for, and has the address that is.
fn is_asked_for(there: &Value, wanted: &Wanted, family: Family, front_end: &FrontEnd) -> bool {
    match front_end {
        FrontEnd::Internal { subnet, .. } => {
            // What is no address is Azure's to refuse.
            let asked = wanted.addresses.get(&family).map(|asked| asked.parse::<IpAddr>().ok());
            covers(&there["properties"]["subnet"]["id"], &json!(subnet))
                && private_address(there).is_some_and(|address| {
                    Family::of(address) == family
                        && asked.is_none_or(|asked| asked == Some(address))
                })
        }
        FrontEnd::Public { public_ip, .. } => stands_on(there, public_ip),
    }
}

fn made(wanted: &Wanted, family: Family, front_end: &FrontEnd) -> Value {
    let properties = match front_end {
        FrontEnd::Internal { subnet, prefixes } => {
            let version = match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            let mut properties =
                json!({ "subnet": { "id": subnet }, "privateIPAddressVersion": version });
            // An address once shown is asked for again, so that it does not change under its users. One of another
            // subnet, or a public one, cannot be had.
            let shown = wanted.shown.iter().find(|shown| {
                Family::of(**shown) == family && prefixes.iter().any(|it| it.contains(**shown))
            });
            let asked = wanted.addresses.get(&family).cloned();
            if let Some(address) = asked.or(shown.map(ToString::to_string)) {
                properties["privateIPAddress"] = json!(address);
                properties["privateIPAllocationMethod"] = json!("Static");
            } else {
                properties["privateIPAllocationMethod"] = json!("Dynamic");
            }
            properties
        }
        FrontEnd::Public { public_ip, .. } => json!({ "publicIPAddress": { "id": public_ip } }),
    };
    json!({ "name": wanted.front_end_name(family), "properties": properties })
}

/// The private address of `wanted`'s front end of a family, once it has one.
pub(in super::super) fn address(
    current: &Value,
    wanted: &Wanted,
    family: Family,
    front_end: &FrontEnd,
) -> Option<IpAddr> {
    private_address(find(current, wanted, family, front_end)?)
}

/// Refuses a port that another one's rule has at the front end of this name.
pub(super) fn check_conflicts(current: &Value, wanted: &Wanted, name: &str) -> Result<(), String> {
    let rules = all(current, "loadBalancingRules").filter(|rule| !wanted.owns(rule));
    let rules = rules.map(|rule| ("loadBalancing rule", rule));
    let rules = rules.chain(all(current, "inboundNatRules").map(|it| ("inbound NAT rule", it)));
    let there: Vec<(&str, &Value)> = rules
        .filter(|(_, rule)| is_to(&rule["properties"]["frontendIPConfiguration"], name))
        .collect();
    for port in &wanted.ports {
        for (kind, rule) in &there {
            let properties = &rule["properties"];
            let protocol = properties["protocol"].as_str().unwrap_or_default();
            if !protocol.eq_ignore_ascii_case(&port.protocol)
                || properties["frontendPort"] != json!(port.port)
            {
                continue;
            }
            return Err(format!(
                "checkLoadBalancerResourcesConflicts: service port {} is trying to consume the port {} which is being \
                 referenced by an existing {kind} {} with the same protocol {protocol} and frontend IP config with ID {}",
                port.name,
                port.port,
                rule["name"].as_str().unwrap_or_default(),
                properties["frontendIPConfiguration"]["id"].as_str().unwrap_or_default(),
            ));
        }
    }
    Ok(())
}

/// Gives `wanted` these front ends, and takes away those that it had and nobody else uses. Answers whether that changes
/// anything.
pub(super) fn replace(body: &mut Value, wanted: &Wanted, parts: &[Value]) -> bool {
    let is_wanted = |part: &Value| parts.iter().any(|wanted| wanted["name"] == part["name"]);
    let stays = |part: &Value| {
        let name = part["name"].as_str().unwrap_or_default();
        !is_wanted(part) && (!is_had(body, wanted, part) || is_others(body, wanted, name))
    };
    let before: Vec<&Value> = all(body, KIND).collect();
    let mut after: Vec<Value> =
        before.iter().copied().filter(|part| stays(part)).cloned().collect();
    after.extend_from_slice(parts);
    let is_same = before.len() == after.len()
        && after.iter().all(|part| before.iter().any(|other| covers(other, part)));
    if !is_same {
        body["properties"][KIND] = json!(after);
    }
    !is_same
}

#[cfg(test)]
mod tests;

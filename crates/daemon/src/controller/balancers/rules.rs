//! A Service's load-balancing rules. Pure.
//!
//! Contents: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go` (`getExpectedLBRules`).

use serde_json::{Value, json};
use vnet::addr::Family;

use super::{Parts, Place, ServicePort, Wanted, annotations::PREFIX, pool_name, probes};

/// Minutes that a flow may be idle where nobody says, and what may be said.
const IDLE: i32 = 4;
const IDLES: std::ops::RangeInclusive<i32> = 4..=100;
const IDLE_ANNOTATION: &str = "azure-load-balancer-tcp-idle-timeout";

/// Where rules are.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) family: Family,
    /// The front end's name.
    pub(super) front_end: &'a str,
    /// Whether an outbound rule is of the front end, too: then no other rule may be a way out.
    pub(super) is_way_out: bool,
}

/// Adds a family's rules, and their probes. Refused in the provider's words.
pub(super) fn add(
    parts: &mut Parts,
    place: Place<'_>,
    wanted: &Wanted,
    at: At<'_>,
) -> Result<(), String> {
    let annotations = &wanted.annotations;
    let probe_name = |port: i32| wanted.rule_name(at.family, "TCP", port);
    let health = match wanted.health_check_port {
        Some(port) => Some((probe_name(port), probes::of_health_port(annotations, port)?)),
        None => None,
    };
    if let (true, Some(first)) = (is_for_all_ports(wanted), wanted.ports.first()) {
        let name = wanted.rule_name(at.family, &first.protocol, first.port);
        // One port's verdict stands for all; one that cannot be probed is passed over.
        let of_ports = || {
            let probe = wanted.ports.iter().find_map(|port| {
                probes::of_port(annotations, &wanted.ports, port, false).ok().flatten()
            });
            probe.map(|probe| (name.clone(), probe))
        };
        let mut rule = properties(place, wanted, at, None)?;
        rule["probe"] = probe(parts, place, health.or_else(of_ports));
        parts.rules.push(json!({ "name": name, "properties": rule }));
        return Ok(());
    }
    for port in &wanted.ports {
        let name = wanted.rule_name(at.family, &port.protocol, port.port);
        if annotations.is_true(&format!("port_{}_no_lb_rule", port.port)) {
            continue;
        }
        if port.protocol == "SCTP" && !wanted.internal {
            return Err(
                "SCTP is only supported on standard loadbalancer in internal mode".to_owned()
            );
        }
        let mut rule = properties(place, wanted, at, Some(port))?;
        let its = if annotations.is_true(&format!("port_{}_no_probe_rule", port.port)) {
            None
        } else {
            let own = probes::of_port(annotations, &wanted.ports, port, health.is_some())?;
            own.map(|own| (name.clone(), own)).or_else(|| health.clone())
        };
        rule["probe"] = probe(parts, place, its);
        parts.rules.push(json!({ "name": name, "properties": rule }));
    }
    Ok(())
}

/// Whether one rule is for every port and protocol.
fn is_for_all_ports(wanted: &Wanted) -> bool {
    let name = "azure-load-balancer-enable-high-availability-ports";
    wanted.internal && wanted.annotations.is_true(name)
}

/// Adds a probe, if it is not there, and gives what a rule says of it. A rule without one says so: it may have had one.
fn probe(parts: &mut Parts, place: Place<'_>, probe: Option<(String, Value)>) -> Value {
    let Some((name, properties)) = probe else { return Value::Null };
    let reference = reference(place, "probes", &name);
    if !parts.probes.iter().any(|probe| probe["name"] == json!(name)) {
        parts.probes.push(json!({ "name": name, "properties": properties }));
    }
    reference
}

fn reference(place: Place<'_>, kind: &str, name: &str) -> Value {
    json!({ "id": format!("{}/{kind}/{name}", place.id) })
}

/// The properties of the rule of a port, or of all ports.
fn properties(
    place: Place<'_>,
    wanted: &Wanted,
    at: At<'_>,
    port: Option<&ServicePort>,
) -> Result<Value, String> {
    let annotations = &wanted.annotations;
    let idle_minutes = annotations.number(IDLE_ANNOTATION, |minutes| {
        let (least, most) = (IDLES.start(), IDLES.end());
        let why = || {
            format!(
                "idle timeout value must be a whole number representing minutes between {least} and {most}, \
                 actual value: {minutes}"
            )
        };
        if IDLES.contains(&minutes) { Ok(()) } else { Err(why()) }
    });
    let idle_minutes = idle_minutes.map_err(|why| {
        format!(
            "error generate lb rule for ha mod loadbalancer. err: error parsing idle timeout key: \
             {PREFIX}{IDLE_ANNOTATION}, err: {why}"
        )
    })?;
    // Inside, a NIC's other addresses cannot be front ends of IPv6, so that there is no floating IP.
    let is_translated = wanted.internal && at.family == Family::V6
        || port.is_some() && annotations.is_true("azure-disable-load-balancer-floating-ip");
    let back_end_port = |port: &ServicePort| if is_translated { port.node_port } else { port.port };
    let resets = port.is_none_or(|port| port.protocol == "TCP")
        && !annotations.is_true("azure-load-balancer-disable-tcp-reset");
    Ok(json!({
        "frontendIPConfiguration": reference(place, "frontendIPConfigurations", at.front_end),
        "backendAddressPool": reference(place, "backendAddressPools", pool_name(at.family)),
        "protocol": match port.map(|port| port.protocol.as_str()) {
            Some("TCP") => "Tcp",
            Some("UDP") => "Udp",
            Some(_) | None => "All",
        },
        "frontendPort": port.map_or(0, |port| port.port),
        "backendPort": port.map_or(0, back_end_port),
        "enableFloatingIP": !is_translated,
        "loadDistribution": wanted.load_distribution,
        "idleTimeoutInMinutes": idle_minutes.unwrap_or(IDLE),
        "enableTcpReset": resets,
        "disableOutboundSnat": at.is_way_out || place.disables_outbound_snat(),
    }))
}

#[cfg(test)]
mod tests;

//! How the load balancer asks whether a node serves a Service. Pure.
//!
//! Rules: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer_healthprobe.go`. An annotation of the
//! port comes before what its `appProtocol` says, that before an annotation of the Service, and TCP is last.

use serde_json::{Value, json};

use super::{
    ServicePort,
    annotations::{Annotations, PREFIX},
};

/// Seconds between two probes where nobody says.
const INTERVAL: i32 = 5;
/// How many in a row change the verdict where nobody says.
const COUNT: i32 = 2;
/// Azure answers within this many seconds: the interval, as often as the count.
const TOGETHER: i32 = 120;

/// The probe of a port: its properties. `None` where another one's, `has_other`, or nobody's verdict is asked for.
pub(super) fn of_port(
    annotations: &Annotations,
    ports: &[ServicePort],
    port: &ServicePort,
    has_other: bool,
) -> Result<Option<Value>, String> {
    if port.protocol != "TCP" {
        return Ok(None);
    }
    let key = of_port_key(port.port, "port");
    let number = match annotations.raw(&key) {
        Some(text) => probed_port(text, ports)
            .map_err(|why| format!("failed to parse annotation {PREFIX}{key}: {why}"))?,
        None if has_other => return Ok(None),
        None => port.node_port,
    };
    let protocol = annotations
        .raw(&of_port_key(port.port, "protocol"))
        .or(port.app_protocol.as_deref())
        .or(annotations.raw("azure-load-balancer-health-probe-protocol"))
        .unwrap_or("Tcp");
    let protocol = match protocol.trim().to_ascii_lowercase().as_str() {
        "http" => "Http",
        "https" => "Https",
        _ => "Tcp",
    };
    let (interval, count) = timing(annotations, port.port).map_err(|why| {
        format!("failed to parse health probe config for port {}: {why}", port.port)
    })?;
    let mut properties = json!({ "protocol": protocol, "port": number,
        "intervalInSeconds": interval, "probeThreshold": count });
    if protocol != "Tcp" {
        let path = annotations
            .raw(&of_port_key(port.port, "request-path"))
            .or(annotations.raw("azure-load-balancer-health-probe-request-path"));
        properties["requestPath"] = json!(path.unwrap_or("/"));
    }
    Ok(Some(properties))
}

/// The probe of a Service that only nodes with its pods serve: kube-proxy answers for them on this port.
pub(super) fn of_health_port(annotations: &Annotations, port: i32) -> Result<Value, String> {
    let (interval, count) = timing(annotations, port)?;
    Ok(json!({ "protocol": "Http", "port": port, "requestPath": "/healthz",
        "intervalInSeconds": interval, "probeThreshold": count }))
}

fn of_port_key(port: i32, what: &str) -> String {
    format!("port_{port}_health-probe_{what}")
}

/// Another port of the Service, by name or number, is probed by its node port; any other number is itself.
fn probed_port(text: &str, ports: &[ServicePort]) -> Result<i32, String> {
    if let Some(named) = ports.iter().find(|port| port.name.eq_ignore_ascii_case(text)) {
        return Ok(named.node_port);
    }
    let number: i32 = text.parse().map_err(|_| format!("port {text} not found in service"))?;
    if !(0..=65535).contains(&number) {
        return Err(format!("port {number} is out of range"));
    }
    let ours = ports.iter().find(|port| port.port == number);
    Ok(ours.map_or(number, |port| port.node_port))
}

/// Interval and count of a port's probe.
fn timing(annotations: &Annotations, port: i32) -> Result<(i32, i32), String> {
    let number = |what: &str, least: i32, default: i32| {
        let check = |number: i32| {
            let why = || format!("the minimum value of {what} is {least}");
            if number < least { Err(why()) } else { Ok(()) }
        };
        let read = |key: String| {
            let found = annotations.number(&key, check);
            found.map_err(|why| format!("failed to parse annotation {PREFIX}{key}: {why}"))
        };
        let found = match read(of_port_key(port, what))? {
            Some(number) => Some(number),
            None => read(format!("azure-load-balancer-health-probe-{what}"))?,
        };
        Ok::<i32, String>(found.unwrap_or(default))
    };
    let count = number("num-of-probe", 2, COUNT)?;
    let interval = number("interval", 5, INTERVAL)?;
    if interval.saturating_mul(count) >= TOGETHER {
        return Err(format!(
            "total probe should be less than {TOGETHER}, please adjust interval and number of probe accordingly"
        ));
    }
    Ok((interval, count))
}

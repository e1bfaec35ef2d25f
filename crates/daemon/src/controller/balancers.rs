//! What a Service wants of a load balancer, and the load balancer's body with or without it. Pure.
//!
//! Names and contents: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go`,
//! and its documentation page `loadbalancer.md`.

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};
use kube::ResourceExt;
use serde_json::{Value, json};

const PREFIX: &str = "service.beta.kubernetes.io/";
const POOL: &str = "kubernetes";
/// The longest name of a rule or front end that the provider makes.
const LONGEST: usize = 75;

/// What a Service asks for, read from its spec and annotations.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// `namespace/name`.
    pub(super) full_name: String,
    /// `a` and the UID without dashes, 32 characters at most: every part's name begins with it.
    pub(super) base: String,
    /// Whether it is for the virtual network only.
    pub(super) internal: bool,
    /// The subnet's name of an internal one.
    pub(super) subnet: Option<String>,
    address: Option<String>,
    shown: Option<String>,
    ports: Vec<ServicePort>,
    load_distribution: &'static str,
    health_check_port: Option<i32>,
    idle_minutes: i64,
    tcp_reset: bool,
    floating: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct ServicePort {
    protocol: String,
    port: i32,
    node_port: i32,
    probe: &'static str,
}

/// What a front end stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FrontEnd {
    /// A subnet, by id.
    Internal { subnet: String },
    /// A public IP, by id, with its address.
    Public { public_ip: String, address: String },
}

impl Wanted {
    /// Reads a Service.
    pub(super) fn of(service: &Service) -> Self {
        let annotation = |name: &str| {
            let value = service.annotations().get(&format!("{PREFIX}{name}"));
            value.map(|value| value.trim()).filter(|value| !value.is_empty())
        };
        let spec = service.spec.clone().unwrap_or_default();
        let internal = annotation("azure-load-balancer-internal") == Some("true");
        let mut base = format!("a{}", service.uid().unwrap_or_default().replace('-', ""));
        base.truncate(32);
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let ports = spec.ports.unwrap_or_default().into_iter().map(|port| ServicePort {
            protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
            port: port.port,
            node_port: port.node_port.unwrap_or(match port.target_port {
                Some(IntOrString::Int(number)) => number,
                _ => port.port,
            }),
            probe: match port.app_protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
                Some("http") => "Http",
                Some("https") => "Https",
                _ => "Tcp",
            },
        });
        Self {
            full_name: super::full_name(service),
            base,
            internal,
            subnet: annotation("azure-load-balancer-internal-subnet")
                .filter(|_| internal)
                .map(str::to_owned),
            address: annotation("azure-load-balancer-ipv4")
                .map(str::to_owned)
                .or(spec.load_balancer_ip.filter(|address| !address.is_empty())),
            shown: service.status.as_ref().and_then(|status| {
                status.load_balancer.as_ref()?.ingress.as_ref()?.first()?.ip.clone()
            }),
            ports: ports.collect(),
            load_distribution: match spec.session_affinity.as_deref() {
                Some("ClientIP") => "SourceIP",
                _ => "Default",
            },
            health_check_port: spec.health_check_node_port.filter(|port| local && *port > 0),
            idle_minutes: annotation("azure-load-balancer-tcp-idle-timeout")
                .and_then(|minutes| minutes.parse().ok())
                .unwrap_or(4),
            tcp_reset: annotation("azure-load-balancer-disable-tcp-reset") != Some("true"),
            floating: annotation("azure-disable-load-balancer-floating-ip") != Some("true"),
        }
    }

    /// `base`, with the subnet's name where one is asked for.
    fn front_end_name(&self) -> String {
        match &self.subnet {
            Some(subnet) => cut(format!("{}-{subnet}", self.base)),
            None => self.base.clone(),
        }
    }

    /// `base[-subnet]-TCP-80`, the subnet's part shortened where needed.
    fn rule_name(&self, protocol: &str, port: i32) -> String {
        let end = format!("-{protocol}-{port}");
        let mut start = match &self.subnet {
            Some(subnet) => format!("{}-{subnet}", self.base),
            None => self.base.clone(),
        };
        start.truncate(LONGEST.saturating_sub(end.len()));
        format!("{start}{end}")
    }

    fn owns(&self, part: &Value) -> bool {
        part["name"].as_str().is_some_and(|name| name.starts_with(&self.base))
    }
}

fn cut(mut name: String) -> String {
    if name.len() > LONGEST {
        name.truncate(LONGEST);
        if !name.ends_with(|last: char| last.is_ascii_alphanumeric()) {
            name.pop();
            name.push('_');
        }
    }
    name
}

/// The body that makes the load balancer serve `wanted`, or `None` when it does already.
/// Parts of other Services, and those that AKS made, stay as they are.
pub(super) fn with(
    id: &str,
    current: &Value,
    wanted: &Wanted,
    front_end: &FrontEnd,
    members: &[String],
    location: &str,
) -> Option<Value> {
    let name = wanted.front_end_name();
    let properties = match front_end {
        FrontEnd::Internal { subnet } => {
            let mut properties = json!({ "subnet": { "id": subnet } });
            // An address once shown is asked for again, so that it never changes under its users.
            let has = wanted.shown.as_ref().filter(|_| address(current, wanted).is_none());
            if let Some(address) = wanted.address.as_ref().or(has) {
                properties["privateIPAddress"] = json!(address);
                properties["privateIPAllocationMethod"] = json!("Static");
            } else {
                properties["privateIPAllocationMethod"] = json!("Dynamic");
            }
            properties
        }
        FrontEnd::Public { public_ip, .. } => json!({ "publicIPAddress": { "id": public_ip } }),
    };
    let part = |kind: &str, name: &str| json!({ "id": format!("{id}/{kind}/{name}") });
    let mut rules = Vec::new();
    let mut probes: Vec<Value> = Vec::new();
    for port in &wanted.ports {
        let rule_name = wanted.rule_name(&port.protocol, port.port);
        let probe = match (wanted.health_check_port, port.protocol.as_str()) {
            (Some(health), _) => Some((
                wanted.rule_name("TCP", health),
                json!({ "protocol": "Http", "port": health, "requestPath": "/healthz" }),
            )),
            (None, "TCP") if port.probe == "Tcp" => {
                Some((rule_name.clone(), json!({ "protocol": "Tcp", "port": port.node_port })))
            }
            (None, "TCP") => Some((
                rule_name.clone(),
                json!({ "protocol": port.probe, "port": port.node_port, "requestPath": "/" }),
            )),
            (None, _) => None,
        };
        let mut rule = json!({
            "frontendIPConfiguration": part("frontendIPConfigurations", &name),
            "backendAddressPool": part("backendAddressPools", POOL),
            "protocol": title_case(&port.protocol),
            "frontendPort": port.port,
            "backendPort": if wanted.floating { port.port } else { port.node_port },
            "enableFloatingIP": wanted.floating,
            "loadDistribution": wanted.load_distribution,
            "idleTimeoutInMinutes": wanted.idle_minutes,
            "enableTcpReset": wanted.tcp_reset && port.protocol == "TCP",
            "disableOutboundSnat": false,
        });
        if let Some((probe_name, mut properties)) = probe {
            rule["probe"] = part("probes", &probe_name);
            properties["intervalInSeconds"] = json!(5);
            properties["numberOfProbes"] = json!(2);
            if !probes.iter().any(|probe| probe["name"] == json!(probe_name)) {
                probes.push(json!({ "name": probe_name, "properties": properties }));
            }
        }
        rules.push(json!({ "name": rule_name, "properties": rule }));
    }
    let pool = json!({ "name": POOL, "properties": {
        "backendIPConfigurations": members.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>() } });

    let mut body = if current.is_null() {
        json!({ "location": location, "sku": { "name": "Standard" }, "properties": {} })
    } else {
        current.clone()
    };
    let mut changed = current.is_null();
    let front_ends = vec![json!({ "name": name, "properties": properties })];
    changed |= replace(&mut body, "frontendIPConfigurations", wanted, front_ends);
    changed |= replace(&mut body, "probes", wanted, probes);
    changed |= replace(&mut body, "loadBalancingRules", wanted, rules);
    changed |= replace_pool(&mut body, pool);
    changed.then_some(body)
}

/// The body without `wanted`'s parts, or `None` when there are none.
pub(super) fn without(current: &Value, wanted: &Wanted) -> Option<Value> {
    if current.is_null() {
        return None;
    }
    let mut body = current.clone();
    let mut changed = false;
    for kind in ["frontendIPConfigurations", "probes", "loadBalancingRules"] {
        changed |= replace(&mut body, kind, wanted, Vec::new());
    }
    changed.then_some(body)
}

/// Whether no front end is left.
pub(super) fn is_unused(body: &Value) -> bool {
    body["properties"]["frontendIPConfigurations"].as_array().is_none_or(Vec::is_empty)
}

/// The private address of `wanted`'s front end, once it has one.
pub(super) fn address(current: &Value, wanted: &Wanted) -> Option<String> {
    let front_ends = current["properties"]["frontendIPConfigurations"].as_array()?;
    let name = wanted.front_end_name();
    let ours = front_ends.iter().find(|part| part["name"] == json!(name))?;
    ours["properties"]["privateIPAddress"].as_str().map(str::to_owned)
}

/// Replaces the parts that `wanted` owns. Answers whether that changes anything.
fn replace(body: &mut Value, kind: &str, wanted: &Wanted, parts: Vec<Value>) -> bool {
    let all = body["properties"][kind].as_array().cloned().unwrap_or_default();
    let (ours, mut others): (Vec<Value>, Vec<Value>) =
        all.into_iter().partition(|part| wanted.owns(part));
    let same = ours.len() == parts.len()
        && parts.iter().all(|part| ours.iter().any(|other| covers(other, part)));
    if !same {
        others.extend(parts);
        body["properties"][kind] = json!(others);
    }
    !same
}

fn replace_pool(body: &mut Value, pool: Value) -> bool {
    let mut pools =
        body["properties"]["backendAddressPools"].as_array().cloned().unwrap_or_default();
    match pools.iter_mut().find(|other| other["name"] == pool["name"]) {
        Some(other) if covers(other, &pool) => return false,
        Some(other) => *other = pool,
        None => pools.push(pool),
    }
    body["properties"]["backendAddressPools"] = json!(pools);
    true
}

/// Whether `has` says everything that `wanted` says. Ids compare without regard to case, lists as sets.
pub(super) fn covers(has: &Value, wanted: &Value) -> bool {
    match (has, wanted) {
        (Value::Object(has), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| covers(has.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(has), Value::Array(wanted)) => {
            has.len() == wanted.len()
                && wanted.iter().all(|value| has.iter().any(|other| covers(other, value)))
        }
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::String(has), Value::String(wanted)) => has.eq_ignore_ascii_case(wanted),
        (has, wanted) => has == wanted,
    }
}

fn title_case(protocol: &str) -> &str {
    match protocol {
        "TCP" => "Tcp",
        "UDP" => "Udp",
        other => other,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    fn service(extra: &Value) -> Service {
        let mut value = json!({
            "metadata": { "name": "testdeploy", "namespace": "testns",
                "uid": "01234567-89ab-cdef-0123-456789abcdef",
                "annotations": {
                    "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
                    "service.beta.kubernetes.io/azure-load-balancer-internal-subnet": "ilb-subnet" } },
            "spec": { "type": "LoadBalancer",
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 32709 }] } });
        for (key, part) in extra.as_object().unwrap() {
            for (name, inner) in part.as_object().unwrap() {
                value[key][name] = inner.clone();
            }
        }
        serde_json::from_value(value).unwrap()
    }

    fn subnet() -> FrontEnd {
        FrontEnd::Internal { subnet: "/subscriptions/s/…/subnets/ilb-subnet".to_owned() }
    }

    #[test]
    fn names_are_the_cloud_providers() {
        let wanted = Wanted::of(&service(&json!({})));
        assert_eq!(wanted.base, "a0123456789abcdef0123456789abcde");
        assert_eq!(wanted.front_end_name(), "a0123456789abcdef0123456789abcde-ilb-subnet");
        assert_eq!(
            wanted.rule_name("TCP", 80),
            "a0123456789abcdef0123456789abcde-ilb-subnet-TCP-80"
        );
        let long = Wanted { subnet: Some("s".repeat(80)), ..wanted };
        assert_eq!(long.rule_name("TCP", 80).len(), LONGEST);
        assert!(long.rule_name("TCP", 80).ends_with("-TCP-80"));
        assert_eq!(long.front_end_name().len(), LONGEST);
    }

    #[test]
    fn the_articles_service_gets_a_floating_rule_and_a_probe_on_its_node_port() {
        let wanted = Wanted::of(&service(&json!({})));
        let body = with("/lb", &Value::Null, &wanted, &subnet(), &["/nic/1".to_owned()], "eastus")
            .unwrap();
        let rule = &body["properties"]["loadBalancingRules"][0]["properties"];
        assert_eq!(rule["enableFloatingIP"], true);
        assert_eq!(rule["backendPort"], 80);
        assert_eq!(rule["loadDistribution"], "Default");
        let probe = &body["properties"]["probes"][0]["properties"];
        assert_eq!((&probe["protocol"], &probe["port"]), (&json!("Tcp"), &json!(32709)));
        assert_eq!(with("/lb", &body, &wanted, &subnet(), &["/NIC/1".to_owned()], "eastus"), None);
        assert!(with("/lb", &body, &wanted, &subnet(), &["/nic/2".to_owned()], "eastus").is_some());
    }

    #[test]
    fn a_local_service_is_probed_on_its_health_port() {
        let wanted = Wanted::of(&service(&json!({ "spec": {
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000 } })));
        let body = with("/lb", &Value::Null, &wanted, &subnet(), &[], "eastus").unwrap();
        let probe = &body["properties"]["probes"][0];
        assert_eq!(probe["name"], "a0123456789abcdef0123456789abcde-ilb-subnet-TCP-31000");
        assert_eq!(probe["properties"]["requestPath"], "/healthz");
    }

    #[test]
    fn other_services_parts_stay() {
        let other = json!({ "name": "aother", "properties": {} });
        let current = json!({ "id": "/lb", "properties": { "frontendIPConfigurations": [other] } });
        let wanted = Wanted::of(&service(&json!({})));
        let body = with("/lb", &current, &wanted, &subnet(), &[], "eastus").unwrap();
        assert_eq!(body["properties"]["frontendIPConfigurations"].as_array().unwrap().len(), 2);
        let rest = without(&body, &wanted).unwrap();
        assert_eq!(rest["properties"]["frontendIPConfigurations"], json!([other]));
        assert!(!is_unused(&rest));
        assert_eq!(without(&rest, &wanted), None);
    }
}

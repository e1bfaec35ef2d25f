//! What a Service wants of a load balancer, and the load balancer's body with or without it. Pure.
//!
//! Names and contents: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go`,
//! and its documentation page `loadbalancer.md`. A dual-stack Service has every part twice, and the names of those of
//! IPv6 end differently (`getResourceByIPFamily` in `azure_utils.go`); a Service of IPv6 alone has plain names, but for
//! the pool, which is shared by all of a family.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};
use kube::ResourceExt;
use serde_json::{Value, json};
use vnet::{
    addr::{Family, Prefix},
    model::OutboundType,
};

pub(super) mod annotations;
pub(super) mod front_ends;
mod probes;
pub(super) mod public_ips;
mod rules;

use annotations::Annotations;
pub(super) use front_ends::address;

/// The longest name of a rule or front end that the provider makes, without what IPv6 adds.
const LONGEST: usize = 75;
/// What names of IPv6 end in, where there are such of IPv4, too.
const SUFFIX: &str = "-IPv6";

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
    /// The families of its addresses, IPv4 first; at least one.
    pub(super) families: Vec<Family>,
    /// What it asks for, by family.
    addresses: BTreeMap<Family, String>,
    /// What its users were told.
    shown: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    load_distribution: &'static str,
    health_check_port: Option<i32>,
    pub(super) annotations: Annotations,
}

#[derive(Clone, Debug, PartialEq)]
struct ServicePort {
    /// Empty when it is the only one.
    name: String,
    protocol: String,
    port: i32,
    node_port: i32,
    app_protocol: Option<String>,
}

/// The NICs' IP configurations of each family, by id.
pub(super) type Members = BTreeMap<Family, Vec<String>>;

/// The load balancer that a Service is given a part of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Its id.
    pub(super) id: &'a str,
    /// Its location, where it has yet to be made.
    pub(super) location: &'a str,
    /// How the cluster's machines reach the internet.
    pub(super) outbound: OutboundType,
}

impl Place<'_> {
    /// Whether rules may not be a way out. They are a cluster's only one where AKS makes it none of a load balancer:
    /// AKS then sets `disableOutboundSNAT` in the provider's configuration (`pkg/provider/config/azure.go`).
    fn disables_outbound_snat(&self) -> bool {
        match self.outbound {
            OutboundType::LoadBalancer => false,
            OutboundType::ManagedNatGateway
            | OutboundType::UserAssignedNatGateway
            | OutboundType::UserDefinedRouting
            | OutboundType::None
            | OutboundType::Block => true,
        }
    }
}

/// What a front end stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FrontEnd {
    /// A subnet, by id, with its prefixes.
    Internal { subnet: String, prefixes: Vec<Prefix> },
    /// A public IP, by id, with its address.
    Public { public_ip: String, address: IpAddr },
}

impl FrontEnd {
    /// The id of a public one's public IP.
    pub(super) fn public_ip(&self) -> Option<&str> {
        match self {
            Self::Internal { .. } => None,
            Self::Public { public_ip, .. } => Some(public_ip),
        }
    }
}

impl Wanted {
    /// Reads a Service.
    pub(super) fn of(service: &Service) -> Self {
        let annotations = Annotations::of(service);
        let spec = service.spec.clone().unwrap_or_default();
        let families = families(spec.ip_families.as_deref().unwrap_or_default());
        let any = spec.load_balancer_ip.as_deref().filter(|address| !address.is_empty());
        let asked = |family: Family| {
            let of_family = |text: &&str| {
                text.parse().is_ok_and(|address: IpAddr| Family::of(address) == family)
            };
            let name = match family {
                Family::V4 => "azure-load-balancer-ipv4",
                Family::V6 => "azure-load-balancer-ipv6",
            };
            // What is no address at all is Azure's to refuse, once.
            let is_first = families.first() == Some(&family);
            let any = any.filter(|it| of_family(it) || is_first && it.parse::<IpAddr>().is_err());
            Some((family, annotations.text(name).or(any)?.to_owned()))
        };
        let internal = annotations.text("azure-load-balancer-internal") == Some("true");
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
            name: port.name.unwrap_or_default(),
            app_protocol: port.app_protocol,
        });
        Self {
            full_name: super::full_name(service),
            base,
            internal,
            subnet: annotations
                .text("azure-load-balancer-internal-subnet")
                .filter(|_| internal)
                .map(str::to_owned),
            addresses: families.iter().filter_map(|family| asked(*family)).collect(),
            families,
            shown: shown(service),
            ports: ports.collect(),
            load_distribution: match spec.session_affinity.as_deref() {
                Some("ClientIP") => "SourceIP",
                _ => "Default",
            },
            health_check_port: spec.health_check_node_port.filter(|port| local && *port > 0),
            annotations,
        }
    }

    /// What the names of a family's parts end in.
    fn suffix(&self, family: Family) -> &'static str {
        if family == Family::V6 && self.families.len() > 1 { SUFFIX } else { "" }
    }

    /// `base`, with the subnet's name where one is asked for.
    fn front_end_name(&self, family: Family) -> String {
        let mut name = match &self.subnet {
            Some(subnet) => cut(format!("{}-{subnet}", self.base)),
            None => self.base.clone(),
        };
        name += self.suffix(family);
        name
    }

    /// `base[-subnet]-TCP-80`, the subnet's part shortened where needed.
    fn rule_name(&self, family: Family, protocol: &str, port: i32) -> String {
        let end = format!("-{protocol}-{port}");
        let mut start = match &self.subnet {
            Some(subnet) => format!("{}-{subnet}", self.base),
            None => self.base.clone(),
        };
        start.truncate(LONGEST.saturating_sub(end.len()));
        format!("{start}{end}{}", self.suffix(family))
    }

    fn owns(&self, part: &Value) -> bool {
        part["name"].as_str().is_some_and(|name| name.starts_with(&self.base))
    }
}

/// The families that a Service names, IPv4 first. One that names none, of a cluster that knows nothing else, has IPv4.
fn families(names: &[String]) -> Vec<Family> {
    let has = |name: &str| names.iter().any(|it| it == name);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => vec![Family::V4, Family::V6],
        (false, true) => vec![Family::V6],
        (_, false) => vec![Family::V4],
    }
}

/// The addresses that a Service shows.
pub(super) fn shown(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|it| it.ip.as_deref()?.parse().ok()).collect()
}

fn pool_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "kubernetes",
        Family::V6 => "kubernetes-IPv6",
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
/// Parts of other Services, and those that AKS made, stay as they are. Refused, in the provider's words, when `wanted`
/// asks for what there is not.
pub(super) fn with(
    place: Place<'_>,
    current: &Value,
    wanted: &Wanted,
    front_ends: &BTreeMap<Family, FrontEnd>,
    members: &Members,
) -> Result<Option<Value>, String> {
    let mut parts = Parts::default();
    let mut pools = Vec::new();
    for (family, front_end) in front_ends {
        let part = front_ends::part(current, wanted, *family, front_end);
        let name = part["name"].as_str().unwrap_or_default();
        front_ends::check_conflicts(current, wanted, name)?;
        let is_way_out = front_ends::is_way_out(current, name);
        let at = rules::At { family: *family, front_end: name, is_way_out };
        rules::add(&mut parts, place, wanted, at)?;
        parts.front_ends.push(part);
        let members = members.get(family).into_iter().flatten();
        let members: Vec<Value> = members.map(|id| json!({ "id": id })).collect();
        pools.push(json!({ "name": pool_name(*family),
            "properties": { "backendIPConfigurations": members } }));
    }

    let mut body = if current.is_null() {
        json!({ "location": place.location, "sku": { "name": "Standard" }, "properties": {} })
    } else {
        current.clone()
    };
    let mut changed = current.is_null();
    changed |= front_ends::replace(&mut body, wanted, &parts.front_ends);
    changed |= replace(&mut body, "probes", wanted, parts.probes);
    changed |= replace(&mut body, "loadBalancingRules", wanted, parts.rules);
    for pool in pools {
        changed |= replace_pool(&mut body, pool);
    }
    Ok(changed.then_some(body))
}

/// The parts of a load balancer that are one Service's.
#[derive(Default)]
struct Parts {
    front_ends: Vec<Value>,
    probes: Vec<Value>,
    rules: Vec<Value>,
}

/// The body without `wanted`'s parts, or `None` when there are none.
pub(super) fn without(current: &Value, wanted: &Wanted) -> Option<Value> {
    if current.is_null() {
        return None;
    }
    let mut body = current.clone();
    let mut changed = front_ends::replace(&mut body, wanted, &[]);
    for kind in ["probes", "loadBalancingRules"] {
        changed |= replace(&mut body, kind, wanted, Vec::new());
    }
    changed.then_some(body)
}

/// Whether what is to be done concerns the nodes alone.
pub(super) fn is_of_members(current: &Value, body: &Value) -> bool {
    let without_pools = |body: &Value| {
        let mut body = body.clone();
        body["properties"]["backendAddressPools"] = Value::Null;
        body
    };
    without_pools(current) == without_pools(body)
}

/// Whether no front end is left.
pub(super) fn is_unused(body: &Value) -> bool {
    body["properties"]["frontendIPConfigurations"].as_array().is_none_or(Vec::is_empty)
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

#[cfg(test)]
mod tests;

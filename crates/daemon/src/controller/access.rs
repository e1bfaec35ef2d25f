//! Who may reach the Services: the rules that a cluster's cloud provider keeps in AKS's network security group. Pure.
//!
//! Names, contents and priorities: kubernetes-sigs/cloud-provider-azure, `pkg/provider/loadbalancer/accesscontrol.go`
//! and `pkg/provider/securitygroup`. That one patches the group once a Service; here the rules of all Services are
//! one function of them, so that what somebody took away comes back, and what nobody needs goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use serde_json::{Value, json};
use vnet::addr::{AddressSet, Family, Prefix};

use super::balancers::covers;

mod md5;

const PREFIX: &str = "service.beta.kubernetes.io/";
const ALLOWED_RANGES: &str = "service.beta.kubernetes.io/azure-allowed-ip-ranges";
const ALLOWED_TAGS: &str = "service.beta.kubernetes.io/azure-allowed-service-tags";

/// What the names of the provider's rules begin with.
const OURS: &str = "k8s-azure-lb";
/// The priorities of the provider's rules, from the first to before the last.
const PRIORITIES: std::ops::Range<u64> = 500..4096;

/// What one Service asks of the group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Claim {
    /// The Service's front ends, or the nodes where floating IP is off, and what its users added.
    destinations: BTreeSet<IpAddr>,
    /// Ports by the group's word for their protocol.
    ports: BTreeMap<&'static str, BTreeSet<i32>>,
    /// Tags whose addresses may reach it, `Internet` for a public one that names nobody.
    tags: Vec<String>,
    /// Addresses that may reach it, as few prefixes as can be.
    ranges: Vec<Prefix>,
    /// Whether nobody else may, the virtual network included.
    denies_others: bool,
}

/// A Service that asks for what contradicts itself, or a warning about one: an event's reason and note.
pub(super) type Warning = (&'static str, String);

/// What is wrong with a Service that names its users twice.
pub(super) const BOTH_RANGES: &str = "cannot set both spec.LoadBalancerSourceRanges and service annotation \
     service.beta.kubernetes.io/azure-allowed-ip-ranges";

impl Claim {
    /// What a Service with these addresses asks for, and what its users should hear. `nodes` are the addresses behind
    /// its load balancer. Refused when it names its users in two places.
    pub(super) fn of(
        service: &Service,
        addresses: &[IpAddr],
        nodes: &BTreeSet<IpAddr>,
    ) -> Result<(Self, Vec<Warning>), &'static str> {
        let annotation = |name: &str| service.annotations().get(name).map(|text| text.trim());
        let is = |name: &str, value: &str| {
            annotation(&format!("{PREFIX}{name}"))
                .is_some_and(|text| text.eq_ignore_ascii_case(value))
        };
        if is("azure-disable-load-balancer-nsg-rule", "true") {
            return Ok((Self::default(), Vec::new()));
        }
        let mut warnings: Vec<Warning> = Vec::new();
        let spec = service.spec.clone().unwrap_or_default();
        let source = Ranges::of(spec.load_balancer_source_ranges.iter().flatten());
        let allowed = [ALLOWED_RANGES, "service.beta.kubernetes.io/load-balancer-source-ranges"];
        let allowed = allowed.into_iter().filter_map(annotation);
        let allowed = Ranges::of(allowed.flat_map(|text| text.split(',')));
        let tags: Vec<String> = annotation(ALLOWED_TAGS)
            .into_iter()
            .flat_map(|text| text.split(','))
            .map(|tag| tag.trim().to_owned())
            .collect();
        if !source.valid.is_empty() && !allowed.valid.is_empty() {
            return Err(BOTH_RANGES);
        }
        if !source.invalid.is_empty() {
            let note = format!(
                "Found invalid spec.LoadBalancerSourceRanges {:?}, ignoring and adding a default DenyAll rule in \
                 security group.",
                source.invalid
            );
            warnings.push(("InvalidSourceRanges", note));
        }
        if !allowed.invalid.is_empty() {
            let note = format!(
                "Found invalid {ALLOWED_RANGES} {:?}, ignoring and adding a default DenyAll rule in security group.",
                allowed.invalid
            );
            warnings.push(("InvalidAllowedIPRanges", note));
        }
        if !source.valid.is_empty() && !tags.is_empty() {
            let note = format!(
                "Please use annotation {ALLOWED_RANGES} instead of spec.loadBalancerSourceRanges while using \
                 {ALLOWED_TAGS} annotation at the same time."
            );
            warnings.push(("ConflictConfiguration", note));
        }
        let is_invalid = !source.invalid.is_empty() || !allowed.invalid.is_empty();
        let is_internal = is("azure-load-balancer-internal", "true");
        let named = !source.valid.is_empty() || !allowed.valid.is_empty();
        let is_open = !is_invalid && !named && tags.is_empty() && !is_internal;
        let only_named = is("azure-deny-all-except-load-balancer-source-ranges", "true") && named;
        let is_floating = !is("azure-disable-load-balancer-floating-ip", "true");
        let mut ports: BTreeMap<&'static str, BTreeSet<i32>> = BTreeMap::new();
        for port in spec.ports.iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => "Tcp",
                Some("UDP") => "Udp",
                Some(_) => "*",
            };
            let number = if is_floating { Some(port.port) } else { port.node_port };
            ports.entry(protocol).or_default().extend(number);
        }
        let more = annotation(&format!("{PREFIX}azure-additional-public-ips"));
        let more = more.into_iter().flat_map(|text| text.split(','));
        let mut destinations: BTreeSet<IpAddr> =
            more.filter_map(|text| text.trim().parse().ok()).collect();
        if is_floating {
            destinations.extend(addresses);
        } else {
            let has = |family| addresses.iter().any(|it| Family::of(*it) == family);
            destinations.extend(nodes.iter().filter(|node| has(Family::of(**node))));
        }
        let ranges: AddressSet = source.valid.into_iter().chain(allowed.valid).collect();
        let claim = Self {
            destinations,
            ports,
            tags: if is_open { vec!["Internet".to_owned()] } else { tags },
            ranges: ranges.prefixes(),
            denies_others: only_named || is_invalid,
        };
        Ok((claim, warnings))
    }
}

impl Claim {
    /// The names of the rules that it needs.
    pub(super) fn rule_names(&self) -> Vec<String> {
        wanted(std::slice::from_ref(self)).into_keys().collect()
    }
}

/// Prefixes that somebody wrote.
struct Ranges {
    valid: Vec<Prefix>,
    invalid: Vec<String>,
}

impl Ranges {
    fn of<T: AsRef<str>>(texts: impl Iterator<Item = T>) -> Self {
        let mut ranges = Self { valid: Vec::new(), invalid: Vec::new() };
        for text in texts {
            let text = text.as_ref().trim();
            // A bare address is none to the provider either.
            match text.parse::<Prefix>() {
                Ok(prefix) if text.contains('/') => ranges.valid.push(prefix),
                _ => ranges.invalid.push(text.to_owned()),
            }
        }
        ranges
    }
}

/// What must be done to a group's rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// Names of rules that must go.
    pub(super) remove: Vec<String>,
    /// Names and bodies of rules that must come or change.
    pub(super) put: Vec<(String, Value)>,
}

/// What turns the rules of `group`, a body, into those that `claims` need. Rules that are not the provider's stay,
/// and those that are keep their priorities. `None` when no priority is left.
pub(super) fn changes(group: &Value, claims: &[Claim]) -> Option<Changes> {
    let there: Vec<&Value> =
        group["properties"]["securityRules"].as_array().into_iter().flatten().collect();
    let wanted = wanted(claims);
    let mut changes = Changes::default();
    let mut taken = BTreeSet::new();
    let mut kept: BTreeMap<&str, &Value> = BTreeMap::new();
    for rule in there {
        let name = rule["name"].as_str().unwrap_or_default();
        let properties = &rule["properties"];
        let priority = properties["priority"].as_u64().unwrap_or_default();
        let is_inbound = properties["direction"] == "Inbound";
        let is_ours = name.starts_with(OURS) && (500..=4096).contains(&priority);
        if is_ours && !wanted.contains_key(name) {
            changes.remove.push(name.to_owned());
            continue;
        }
        if is_inbound {
            taken.insert(priority);
        }
        if is_ours {
            kept.insert(name, properties);
        }
    }
    for (name, mut rule) in wanted {
        let old = kept.get(name.as_str());
        let priority = match old.and_then(|old| old["priority"].as_u64()) {
            Some(priority) => priority,
            None if rule["access"] == "Deny" => {
                PRIORITIES.rev().find(|priority| !taken.contains(priority))?
            }
            None => PRIORITIES.clone().find(|priority| !taken.contains(priority))?,
        };
        taken.insert(priority);
        rule["priority"] = json!(priority);
        if !old.is_some_and(|old| covers(old, &rule)) {
            changes.put.push((name, json!({ "properties": rule })));
        }
    }
    Some(changes)
}

/// The properties of every rule that is needed, without priorities, by name. Services that let the same in by the
/// same ports share a rule.
fn wanted(claims: &[Claim]) -> BTreeMap<String, Value> {
    let of_family = [(Family::V4, "IPv4"), (Family::V6, "IPv6")];
    of_family.into_iter().flat_map(|(family, word)| wanted_of(claims, family, word)).collect()
}

/// The same of one family: a rule never has prefixes of both.
fn wanted_of(claims: &[Claim], family: Family, word: &str) -> BTreeMap<String, Value> {
    // By protocol, sources and ports.
    let mut allowed = BTreeMap::<_, BTreeSet<IpAddr>>::new();
    let mut denied = BTreeSet::new();
    for claim in claims {
        let destinations = claim.destinations.iter().filter(|it| Family::of(**it) == family);
        let destinations: BTreeSet<IpAddr> = destinations.copied().collect();
        if destinations.is_empty() {
            continue;
        }
        let mut sources: Vec<Vec<String>> =
            claim.tags.iter().map(|tag| vec![tag.clone()]).collect();
        let ranges = claim.ranges.iter().filter(|range| range.family() == family);
        let ranges = sorted(ranges.map(ToString::to_string));
        if !ranges.is_empty() {
            sources.push(ranges);
        }
        for (protocol, ports) in &claim.ports {
            let ports = sorted(ports.iter().map(ToString::to_string));
            for source in &sources {
                let key = (*protocol, source.clone(), ports.clone());
                allowed.entry(key).or_default().extend(&destinations);
            }
        }
        if claim.denies_others {
            denied.extend(destinations);
        }
    }
    let mut rules = BTreeMap::new();
    for ((protocol, sources, ports), destinations) in allowed {
        let text = format!("{protocol}_{}_{}", sources.join(","), ports.join(","));
        let name = format!("{OURS}_allow_{word}_{}", md5::hex(text.as_bytes()));
        let mut rule = json!({ "protocol": protocol, "access": "Allow", "direction": "Inbound",
            "sourcePortRange": "*", "destinationPortRanges": ports });
        set(&mut rule, "sourceAddressPrefix", sources);
        set(&mut rule, "destinationAddressPrefix", texts(&destinations));
        rules.insert(name, rule);
    }
    if !denied.is_empty() {
        let mut rule = json!({ "protocol": "*", "access": "Deny", "direction": "Inbound",
            "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationPortRange": "*" });
        set(&mut rule, "destinationAddressPrefix", texts(&denied));
        rules.insert(format!("{OURS}_deny-all_{word}"), rule);
    }
    rules
}

/// The provider sorts texts, not numbers.
fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<String> = texts.collect();
    texts.sort();
    texts
}

fn texts(addresses: &BTreeSet<IpAddr>) -> Vec<String> {
    sorted(addresses.iter().map(ToString::to_string))
}

/// One is given as itself, several as a list.
fn set(rule: &mut Value, key: &str, mut texts: Vec<String>) {
    if texts.len() == 1 {
        rule[key] = json!(texts.remove(0));
    } else {
        rule[format!("{key}es")] = json!(texts);
    }
}

#[cfg(test)]
mod tests;

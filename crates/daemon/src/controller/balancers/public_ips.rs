//! The public IPs of a Service: which it wants, what they must be like, and what becomes of those that it leaves. Pure.
//!
//! Rules: kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go` (`determinePublicIPName`,
//! `ensurePublicIPExists`, `reconcileDNSSettings`, `unbindServiceFromPIP`). Those that the provider made say in a tag
//! which Services have them, and go with the last of them. Without that tag a public IP is its user's: it is never
//! tagged and never goes.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use vnet::{addr::Family, name::ArmId};

use super::{Wanted, covers};

const SERVICE_TAG: &str = "k8s-azure-service";
const DNS_TAG: &str = "k8s-azure-dns-label-service";
const CLUSTER_TAG: &str = "k8s-azure-cluster-name";
/// What earlier providers called the first two, and the third.
const SERVICE_TAGS: [&str; 2] = [SERVICE_TAG, "service"];
const DNS_TAGS: [&str; 2] = [DNS_TAG, "kubernetes-dns-label-service"];
const CLUSTER_TAGS: [&str; 2] = [CLUSTER_TAG, "kubernetes-cluster-name"];

/// Which public IP a Service wants.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Choice {
    /// One that is there, by its name.
    Named(String),
    /// One that is there, by its address, or by what should be one.
    Address(String),
    /// One of its own, which is made where it is missing.
    Own(String),
}

impl Wanted {
    /// Which public IP it wants for a family.
    pub(in super::super) fn choice(&self, family: Family) -> Choice {
        let own = format!("kubernetes-{}{}", self.base, self.suffix(family));
        if let Some(name) = self.of_family("azure-pip-name", family) {
            return Choice::Named(name.to_owned());
        }
        match self.addresses.get(&family) {
            Some(address) if self.prefix(family).is_none() => Choice::Address(address.clone()),
            _ => Choice::Own(own),
        }
    }

    /// The resource group that its public IPs are in.
    pub(in super::super) fn public_ip_group(&self, node_group: &ArmId) -> ArmId {
        match self.annotations.text("azure-load-balancer-resource-group") {
            Some(group) => ArmId::group(node_group.subscription(), group),
            None => node_group.resource_group_id(),
        }
    }

    /// The public IP prefix that an address of its own should be of.
    fn prefix(&self, family: Family) -> Option<&str> {
        self.of_family("azure-pip-prefix-id", family)
    }

    /// An annotation whose name ends differently for IPv6. A Service of IPv6 alone may write the other.
    fn of_family(&self, name: &str, family: Family) -> Option<&str> {
        let plain = || self.annotations.text(name);
        match family {
            Family::V4 => plain(),
            Family::V6 => {
                let own = self.annotations.text(&format!("{name}-ipv6"));
                own.or_else(|| plain().filter(|_| self.families.len() == 1))
            }
        }
    }
}

/// A family's public IP as it is made.
pub(in super::super) fn new(
    wanted: &Wanted,
    family: Family,
    location: &str,
) -> Result<Value, String> {
    let mut body = json!({ "location": location, "sku": { "name": "Standard" },
        "tags": { SERVICE_TAG: wanted.full_name, CLUSTER_TAG: "kubernetes" },
        "properties": {
            "publicIPAllocationMethod": "Static", "publicIPAddressVersion": version(family) } });
    if let Some(prefix) = wanted.prefix(family) {
        body["properties"]["publicIPPrefix"] = json!({ "id": prefix });
    }
    Ok(changed(&body, wanted)?.unwrap_or(body))
}

/// How Azure calls a family.
pub(in super::super) fn version(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The one of `all` that has an address.
pub(in super::super) fn with_address<'a>(all: &'a Value, address: &str) -> Option<&'a Value> {
    let address: IpAddr = address.trim().parse().ok()?;
    let is_it = |text: &str| text.parse::<IpAddr>().is_ok_and(|has| has == address);
    let mut all = all["value"].as_array()?.iter();
    all.find(|it| it["properties"]["ipAddress"].as_str().is_some_and(is_it))
}

/// What a public IP must become, now that `wanted` has it; `None` when it is so already.
pub(in super::super) fn changed(
    public_ip: &Value,
    wanted: &Wanted,
) -> Result<Option<Value>, String> {
    let mut body = public_ip.clone();
    let mut tags = tags_of(public_ip);
    let users = users(&tags);
    let is_managed = !users.is_empty();
    if is_managed {
        if !users.iter().any(|user| user.eq_ignore_ascii_case(&wanted.full_name)) {
            let all = [users.join(","), wanted.full_name.clone()].join(",");
            set_tag(&mut tags, &SERVICE_TAGS, &all);
        }
        let fixed = [SERVICE_TAGS, DNS_TAGS, CLUSTER_TAGS].concat();
        for (key, value) in pairs(wanted.annotations.raw("azure-pip-tags").unwrap_or_default()) {
            if !fixed.iter().any(|it| it.eq_ignore_ascii_case(key)) {
                set_tag(&mut tags, &[key], value);
            }
        }
    }
    if let Some(label) = wanted.annotations.raw("azure-dns-label-name") {
        let owner = tag(&tags, &DNS_TAGS).map(|(_, owner)| owner).unwrap_or_default();
        let is_anothers = !owner.is_empty() && !owner.eq_ignore_ascii_case(&wanted.full_name);
        if is_anothers {
            let (service, name) = (&wanted.full_name, public_ip["name"].as_str());
            return Err(format!(
                "ensurePublicIPExists for service({service}): failed to reconcileDNSSettings: \
                 ensurePublicIPExists for service({service}): pip({}) - there is an existing service {owner} consuming \
                 the DNS label on the public IP, so the service cannot set the DNS label annotation with this value",
                name.unwrap_or_default()
            ));
        }
        let there = &public_ip["properties"]["dnsSettings"]["domainNameLabel"];
        if label.is_empty() {
            if let Some(properties) = body["properties"].as_object_mut() {
                properties.remove("dnsSettings");
            }
            remove_tag(&mut tags, &DNS_TAGS);
        } else {
            if !covers(there, &json!(label)) {
                body["properties"]["dnsSettings"] = json!({ "domainNameLabel": label });
            }
            if is_managed {
                set_tag(&mut tags, &DNS_TAGS, &wanted.full_name);
            }
        }
    }
    if tags != tags_of(public_ip) {
        body["tags"] = json!(tags);
    }
    Ok((body != *public_ip).then_some(body))
}

/// What becomes of a public IP that a Service leaves.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Left {
    /// Nothing: it was never its, or is its user's.
    Alone,
    /// Others have it, and its tags say so.
    Changed(Value),
    /// It goes.
    Gone,
}

/// What becomes of a public IP when the Service `full_name` leaves it.
pub(in super::super) fn left(public_ip: &Value, full_name: &str) -> Left {
    let mut tags = tags_of(public_ip);
    let users = users(&tags);
    let is_it = |user: &&str| user.eq_ignore_ascii_case(full_name);
    if !users.iter().any(is_it) {
        return Left::Alone;
    }
    let rest: Vec<&str> = users.iter().copied().filter(|user| !is_it(user)).collect();
    if rest.is_empty() {
        // What somebody has put to another use is not ours to take.
        let is_used = ["ipConfiguration", "natGateway"]
            .iter()
            .any(|key| !public_ip["properties"][key].is_null());
        return if is_used { Left::Alone } else { Left::Gone };
    }
    let rest = rest.join(",");
    set_tag(&mut tags, &SERVICE_TAGS, &rest);
    if tag(&tags, &DNS_TAGS).is_some_and(|(_, owner)| owner.eq_ignore_ascii_case(full_name)) {
        remove_tag(&mut tags, &DNS_TAGS);
    }
    let mut body = public_ip.clone();
    body["tags"] = json!(tags);
    Left::Changed(body)
}

fn tags_of(public_ip: &Value) -> Map<String, Value> {
    public_ip["tags"].as_object().cloned().unwrap_or_default()
}

/// The first of `names` that is a tag: its name as it is spelled, and its value.
fn tag<'a>(tags: &'a Map<String, Value>, names: &[&str]) -> Option<(&'a str, &'a str)> {
    names.iter().find_map(|name| {
        let (name, value) = tags.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some((name.as_str(), value.as_str()?))
    })
}

/// Sets the tag that has one of `names`, or a new one of the first.
fn set_tag(tags: &mut Map<String, Value>, names: &[&str], value: &str) {
    let name = tag(tags, names).map_or(names[0], |(name, _)| name).to_owned();
    tags.insert(name, json!(value));
}

fn remove_tag(tags: &mut Map<String, Value>, names: &[&str]) {
    tags.retain(|key, _| !names.iter().any(|name| name.eq_ignore_ascii_case(key)));
}

/// The Services whose a public IP is; nobody's where a user made it.
fn users(tags: &Map<String, Value>) -> Vec<&str> {
    let all = tag(tags, &SERVICE_TAGS).map(|(_, all)| all).unwrap_or_default();
    all.split(',').map(str::trim).filter(|user| !user.is_empty()).collect()
}

/// `a=b,c=d`. What is no pair counts for nothing.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',').filter_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        (!key.is_empty() && !value.contains('=')).then_some((key, value))
    })
}

#[cfg(test)]
mod tests;

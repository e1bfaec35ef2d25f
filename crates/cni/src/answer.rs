//! The success result, in each version of the specification.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::{
    config::{NetworkConfig, list},
    spec::{Verb, Version},
    talk::Added,
};

/// The answer to ADD: what was added, after what earlier plugins of the chain had made.
#[must_use]
pub fn render_added(config: &NetworkConfig, netns: &str, added: &Added) -> String {
    let mut result = config.previous.clone().unwrap_or_default();
    let n_before = list(&result, "interfaces").len();
    let version = config.version;
    if version < Version::V0_3_0 {
        result.extend(oldest(config, added));
        return format!("{}\n", Value::Object(result));
    }
    result.insert("cniVersion".to_owned(), version.as_str().into());
    let interfaces = added.interfaces.iter().map(|interface| {
        let mut value = json!({ "name": interface.name, "mac": interface.mac });
        if version >= Version::V1_1_0 {
            value["mtu"] = interface.mtu.into();
        }
        if interface.in_container {
            value["sandbox"] = netns.into();
        }
        value
    });
    extend(&mut result, "interfaces", interfaces);
    let addresses = added.addresses.iter().map(|address| {
        let mut value = Map::new();
        if version < Version::V1_0_0 {
            value.insert("version".to_owned(), version_of(address.gateway).into());
        }
        value.insert("interface".to_owned(), (n_before + address.interface).into());
        value.insert("address".to_owned(), address.address.as_str().into());
        value.insert("gateway".to_owned(), address.gateway.to_string().into());
        Value::Object(value)
    });
    extend(&mut result, "ips", addresses);
    let routes = added.routes.iter().map(|route| {
        let mut value = json!({ "dst": route.destination });
        if let Some(gateway) = route.gateway {
            value["gw"] = gateway.to_string().into();
        }
        value
    });
    extend(&mut result, "routes", routes);
    if !result.contains_key("dns") {
        result.insert("dns".to_owned(), config.dns.clone().unwrap_or_else(|| json!({})));
    }
    format!("{}\n", Value::Object(result))
}

/// The answer to a plugin that delegates: addresses, routes and DNS, "an abbreviated success result".
#[must_use]
pub fn render_reserved(config: &NetworkConfig, added: &Added) -> String {
    let addresses = added.addresses.iter().map(|address| {
        let mut value = json!({ "address": address.address });
        // A routed address is alone in its network: how its gateway is reached is our own wiring's secret.
        if !is_alone(&address.address) {
            value["gateway"] = address.gateway.to_string().into();
        }
        if config.version < Version::V1_0_0 {
            value["version"] = version_of(address.gateway).into();
        }
        value
    });
    if config.version < Version::V0_3_0 {
        return format!("{}\n", Value::Object(oldest(config, added)));
    }
    let routes = added.routes.iter().map(|route| match route.gateway {
        Some(gateway) => json!({ "dst": route.destination, "gw": gateway }),
        None => json!({ "dst": route.destination }),
    });
    let result = json!({
        "cniVersion": config.version.as_str(),
        "ips": addresses.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": config.dns.clone().unwrap_or_else(|| json!({})),
    });
    format!("{result}\n")
}

/// A result before interfaces were told: the first address of each family, with the routes of its family
/// (containernetworking/cni, `pkg/types/020`).
fn oldest(config: &NetworkConfig, added: &Added) -> Map<String, Value> {
    let mut result = Map::new();
    result.insert("cniVersion".to_owned(), config.version.as_str().into());
    for (family, mark) in [("ip4", '.'), ("ip6", ':')] {
        let mut addresses = added.addresses.iter();
        let Some(address) = addresses.find(|one| one.address.contains(mark)) else { continue };
        let mut value = json!({ "ip": address.address });
        // As above: how the gateway of an address that is alone in its network is reached, nobody is told.
        let is_alone = is_alone(&address.address);
        if !added.interfaces.is_empty() || !is_alone {
            value["gateway"] = address.gateway.to_string().into();
        }
        let of_family = added.routes.iter().filter(|route| route.destination.contains(mark));
        let routes: Vec<Value> = of_family
            .map(|route| match route.gateway {
                Some(gateway) => json!({ "dst": route.destination, "gw": gateway }),
                None => json!({ "dst": route.destination }),
            })
            .collect();
        if !routes.is_empty() {
            value["routes"] = routes.into();
        }
        result.insert(family.to_owned(), value);
    }
    if let Some(dns) = &config.dns {
        result.insert("dns".to_owned(), dns.clone());
    }
    result
}

/// Whether an address with its length is alone in its network.
fn is_alone(address: &str) -> bool {
    address.ends_with("/32") || address.ends_with("/128")
}

/// The family of an address, as versions before 1.0.0 say it beside it.
fn version_of(gateway: IpAddr) -> &'static str {
    if gateway.is_ipv4() { "4" } else { "6" }
}

/// The answer to VERSION.
#[must_use]
pub fn render_versions(asked: Option<&str>) -> String {
    let value = json!({
        "cniVersion": asked.unwrap_or(Version::NEWEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    });
    format!("{value}\n")
}

/// The addresses, without their lengths, that `previous` says are on `interface` in the container.
#[must_use]
pub fn addresses_of(previous: &Map<String, Value>, interface: &str) -> Vec<String> {
    let interfaces = list(previous, "interfaces");
    let is_ours = |address: &&Value| {
        let Some(index) = address.get("interface").and_then(Value::as_u64) else { return false };
        let Some(owner) = usize::try_from(index).ok().and_then(|index| interfaces.get(index))
        else {
            return false;
        };
        let in_container = owner["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        in_container && owner["name"] == interface
    };
    list(previous, "ips")
        .iter()
        .filter(is_ours)
        .filter_map(|address| address["address"].as_str())
        .map(|address| address.split('/').next().unwrap_or(address).to_owned())
        .collect()
}

/// What is said when a version has no such verb.
#[must_use]
pub fn lacks(version: Version, verb: Verb) -> String {
    let since = Version::ALL.into_iter().find(|version| version.has(verb));
    let since = since.map_or("no version", Version::as_str);
    format!("cniVersion is {version}; {} exists since {since}", verb.as_str())
}

fn extend(result: &mut Map<String, Value>, name: &str, more: impl Iterator<Item = Value>) {
    let mut all = list(result, name).to_vec();
    all.extend(more);
    result.insert(name.to_owned(), all.into());
}

//! `Microsoft.Network/virtualNetworks`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{command::Command, fault::Fault, kind, model::Vnet};

use super::{Asked, Resource, View, frame, network_state, peering, subnet};
use crate::{
    findings::{missing, network_prefix},
    kept,
    refuse::{Refusal, When, refusal},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    address_space: Option<AddressSpace>,
    subnets: Option<Vec<Value>>,
    virtual_network_peerings: Option<Vec<Value>>,
    dhcp_options: Option<DhcpOptions>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DhcpOptions {
    dns_servers: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddressSpace {
    address_prefixes: Option<Vec<String>>,
}

const KNOWN: [&str; 5] = [
    "/properties/addressSpace",
    "/properties/subnets",
    "/properties/virtualNetworkPeerings",
    "/properties/enableDdosProtection",
    // Azure doesn't give it back.
    "/properties/enableVmProtection",
];

const REFUSED: [Refusal; 5] = [
    refusal("/properties/enableDdosProtection", When::True, "DDoS protection plans"),
    refusal("/properties/encryption/enabled", When::True, "virtual network encryption"),
    refusal("/properties/ipAllocations", When::Given, "IP allocations"),
    refusal("/properties/addressSpace/ipamPoolPrefixAllocations", When::Given, "IPAM pools"),
    refusal("/extendedLocation", When::Given, "edge zones"),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(&REFUSED);
    let common = asked.common(&resource, &KNOWN);
    let dhcp = resource.properties.as_ref().and_then(|given| given.dhcp_options.as_ref());
    for server in dhcp.and_then(|dhcp| dhcp.dns_servers.as_ref()).into_iter().flatten() {
        // Kept as it is; machines' resolvers read it from there. Azure's code for this is not documented.
        if server.parse::<std::net::Ipv4Addr>().is_err() {
            let text = format!("DNS server '{server}' of {} is not an IPv4 address.", asked.id);
            let fault = Fault::bad("InvalidIPAddress", text);
            findings.add(fault.at("properties.dhcpOptions.dnsServers"));
        }
    }
    let (space, subnets, peerings) = resource.properties.map_or((None, None, None), |given| {
        (given.address_space, given.subnets, given.virtual_network_peerings)
    });
    let texts = space.and_then(|space| space.address_prefixes).unwrap_or_default();
    let target = "properties.addressSpace.addressPrefixes";
    if texts.is_empty() {
        findings.add(missing(target));
    }
    let prefixes = texts
        .iter()
        .filter_map(|text| findings.take(network_prefix(text, &asked.id, target)))
        .collect();
    let subnets = subnets.map(|subnets| {
        subnets
            .into_iter()
            .filter_map(|value| {
                let name = value["name"].as_str().unwrap_or_default().to_owned();
                if name.is_empty() {
                    findings.add(missing("properties.subnets.name"));
                }
                subnet::parse_body(&asked.id.child("subnets", &name), &value, &mut findings)
            })
            .collect()
    });
    let stored = asked.view.region.vnets.get(&asked.id).map(AsRef::as_ref);
    let peerings = peerings
        .map(|list| peering::parse_list(&asked.id, &list, stored, &mut findings))
        .unwrap_or_default();
    findings.finish()?;
    let vnet = Command::PutVnet { common, prefixes, subnets };
    if peerings.is_empty() {
        return Ok(vnet);
    }
    Ok(Command::Together(std::iter::once(vnet).chain(peerings).collect()))
}

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, vnet: &Vnet) -> Value {
    let mut body = frame(&vnet.meta, kind::VNET);
    let peerings: Vec<Value> =
        vnet.peerings.values().map(|it| peering::render(view, vnet, it)).collect();
    body["properties"] = json!({
        "provisioningState": network_state(vnet.meta.state),
        "resourceGuid": vnet.meta.guid,
        "addressSpace": { "addressPrefixes": vnet.prefixes },
        "subnets": vnet.subnets.values().map(|subnet| subnet::render(vnet, subnet)).collect::<Vec<_>>(),
        "virtualNetworkPeerings": peerings,
        "enableDdosProtection": false,
    });
    kept::merge(&mut body, &vnet.meta.kept);
    body
}

/// How full each subnet is, as `…/usages` shows it.
pub(crate) fn render_usages(vnet: &Vnet) -> Vec<Value> {
    let usage = |subnet: &vnet::model::Subnet| {
        let usage = subnet.usage();
        json!({
            "id": vnet.meta.id.child("subnets", subnet.name.as_str()),
            "currentValue": usage.held,
            "limit": usage.usable,
            "unit": "Count",
            "name": { "value": "SubnetSpace", "localizedValue": "Subnet size and usage" },
        })
    };
    vnet.subnets.values().map(usage).collect()
}

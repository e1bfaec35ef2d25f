//! `Microsoft.Network/virtualNetworks/subnets`, alone and inside of a virtual network.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::{Prefix, Prefix4, Prefix6},
    command::{Command, PutSubnet},
    fault::Fault,
    kind,
    model::{Delegation, ProvisioningState, Subnet, Vnet},
    name::{ArmId, Name},
};

use super::{Asked, Named, Reference, child_frame, etag, id_of, network_state, references};
use crate::{
    call::content,
    findings::{Findings, arm_id_of, given, missing, network_prefix},
    kept,
    refuse::{self, Refusal, When, refusal, unsupported},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    address_prefix: Option<String>,
    address_prefixes: Option<Vec<String>>,
    route_table: Option<Reference>,
    network_security_group: Option<Reference>,
    nat_gateway: Option<Reference>,
    default_outbound_access: Option<bool>,
    delegations: Option<Vec<Named<DelegationProperties>>>,
    private_endpoint_network_policies: Option<String>,
    private_link_service_network_policies: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DelegationProperties {
    service_name: Option<String>,
}

const KNOWN: &[&str] = &[
    "/id",
    "/name",
    "/type",
    "/etag",
    "/resourceGroup",
    "/properties/provisioningState",
    "/properties/addressPrefix",
    "/properties/addressPrefixes",
    "/properties/routeTable",
    "/properties/networkSecurityGroup",
    "/properties/natGateway",
    "/properties/defaultOutboundAccess",
    "/properties/delegations",
    "/properties/privateEndpointNetworkPolicies",
    "/properties/privateLinkServiceNetworkPolicies",
    "/properties/ipConfigurations",
    "/properties/ipConfigurationProfiles",
    "/properties/privateEndpoints",
    "/properties/resourceNavigationLinks",
    "/properties/serviceAssociationLinks",
    "/properties/purpose",
    "/properties/serviceEndpoints/*/provisioningState",
];

const REFUSED: &[Refusal] = &[
    refusal("/properties/serviceEndpointPolicies", When::Given, "service endpoint policies"),
    refusal("/properties/ipAllocations", When::Given, "IP allocations"),
    refusal("/properties/applicationGatewayIPConfigurations", When::Given, "application gateways"),
    refusal("/properties/ipamPoolPrefixAllocations", When::Given, "IPAM pools"),
    refusal("/properties/sharingScope", When::Given, "subnet sharing"),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    asked.read::<Named<Properties>>()?;
    let mut findings = Findings::default();
    let subnet = parse_body(&asked.id, &asked.value, &mut findings);
    findings.then(|| Some(Command::PutSubnet { id: asked.id.clone(), subnet: subnet? }))
}

/// What a subnet should be, alone or as a part of its virtual network.
pub(super) fn parse_body(id: &ArmId, value: &Value, findings: &mut Findings) -> Option<PutSubnet> {
    refuse::check(value, REFUSED, "", findings);
    let body = serde_json::from_value::<Named<Properties>>(value.clone());
    let body = findings.take(body.map_err(|error| content(&error)))?;
    let Some(properties) = body.properties else {
        findings.add(missing("properties.addressPrefix"));
        return None;
    };
    let (prefix, prefix6) =
        parse_prefixes(id, properties.address_prefix, properties.address_prefixes, findings);
    let route_table = findings.take_some(id_of(properties.route_table), |text| {
        arm_id_of(&text, kind::ROUTE_TABLE, "properties.routeTable.id")
    });
    let security_group = findings.take_some(id_of(properties.network_security_group), |text| {
        arm_id_of(&text, kind::SECURITY_GROUP, "properties.networkSecurityGroup.id")
    });
    let nat_gateway = findings.take_some(id_of(properties.nat_gateway), |text| {
        arm_id_of(&text, kind::NAT_GATEWAY, "properties.natGateway.id")
    });
    let mut delegations = Vec::new();
    for delegation in properties.delegations.unwrap_or_default() {
        match given(delegation.properties.and_then(|properties| properties.service_name)) {
            Some(service) => delegations.push(Delegation {
                name: given(delegation.name).unwrap_or_else(|| "0".to_owned()).into(),
                service,
                actions: Vec::new(),
            }),
            None => findings.add(missing("properties.delegations.serviceName")),
        }
    }
    Some(PutSubnet {
        security_group,
        nat_gateway,
        default_outbound: properties.default_outbound_access,
        name: Name::new(id.name()),
        prefix: prefix?,
        prefix6,
        route_table,
        delegations,
        private_endpoint_network_policies: given(properties.private_endpoint_network_policies),
        private_link_service_network_policies: given(
            properties.private_link_service_network_policies,
        ),
        kept: kept::collect(value, KNOWN),
    })
}

/// A subnet's one IPv4 prefix and its IPv6 prefix. They come as a list, in any order; one alone may come by itself.
fn parse_prefixes(
    id: &ArmId,
    one: Option<String>,
    list: Option<Vec<String>>,
    findings: &mut Findings,
) -> (Option<Prefix4>, Option<Prefix6>) {
    let target = "properties.addressPrefix";
    let list = list.unwrap_or_default();
    let texts = match given(one) {
        Some(one) if list.len() < 2 => vec![one],
        _ => list,
    };
    let n = texts.len();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for text in texts {
        match findings.take(network_prefix(&text, id, target)) {
            Some(Prefix::V4(prefix)) => v4.push(prefix),
            Some(Prefix::V6(prefix)) => v6.push(prefix),
            None => {}
        }
    }
    if v4.len() > 1 || v6.len() > 1 {
        let what = "more than one address prefix of one IP address version in a subnet";
        let code = "MultipleAddressPrefixesSubnetNotSupported";
        findings.add(unsupported(code, what).at("/properties/addressPrefixes"));
    } else if n == 0 {
        findings.add(missing(target));
    } else if v4.is_empty() && !v6.is_empty() {
        let what = "subnets without an IPv4 address prefix";
        findings.add(unsupported("NotSupported", what).at(target));
    }
    (v4.first().copied(), v6.first().copied())
}

/// The resource as a `GET` shows it, alone or inside of its virtual network.
pub(crate) fn render(vnet: &Vnet, subnet: &Subnet) -> Value {
    let id = vnet.meta.id.child("subnets", subnet.name.as_str());
    let mut body = child_frame(&id, kind::SUBNET, &vnet.meta);
    let mut properties = json!({
        "provisioningState": network_state(subnet.state),
    });
    if subnet.prefix6.is_some() {
        properties["addressPrefixes"] = json!(subnet.prefixes().collect::<Vec<_>>());
    } else {
        properties["addressPrefix"] = json!(subnet.prefix);
    }
    if let Some(group) = &subnet.security_group {
        properties["networkSecurityGroup"] = json!({ "id": group });
    }
    if let Some(table) = &subnet.route_table {
        properties["routeTable"] = json!({ "id": table });
    }
    if let Some(gateway) = &subnet.nat_gateway {
        properties["natGateway"] = json!({ "id": gateway });
    }
    if !subnet.default_outbound {
        properties["defaultOutboundAccess"] = json!(false);
    }
    let users: Vec<ArmId> =
        subnet.held.values().filter_map(vnet::model::Holder::configuration_id).collect();
    if !users.is_empty() {
        properties["ipConfigurations"] = json!(references(users));
    }
    if !subnet.association_links.is_empty() {
        properties["serviceAssociationLinks"] = render_links(vnet, &id, subnet);
    }
    properties["delegations"] = subnet
        .delegations
        .iter()
        .map(|delegation| {
            let id = id.child("delegations", delegation.name.as_str());
            let kind = format!("{}/delegations", kind::SUBNET);
            let mut body = child_frame(&id, &kind, &vnet.meta);
            body["properties"] = json!({
                "provisioningState": network_state(ProvisioningState::Succeeded),
                "serviceName": delegation.service,
                "actions": delegation.actions,
            });
            body
        })
        .collect();
    properties["privateEndpointNetworkPolicies"] = json!(subnet.private_endpoint_network_policies);
    properties["privateLinkServiceNetworkPolicies"] =
        json!(subnet.private_link_service_network_policies);
    body["properties"] = properties;
    kept::merge(&mut body, &subnet.kept);
    body
}

fn render_links(vnet: &Vnet, id: &ArmId, subnet: &Subnet) -> Value {
    let link = |cluster: &ArmId| {
        json!({
            "name": "AzureKubernetesService",
            "id": id.child("serviceAssociationLinks", "AzureKubernetesService"),
            "etag": etag(vnet.meta.etag),
            "type": format!("{}/serviceAssociationLinks", kind::SUBNET),
            "properties": {
                "provisioningState": "Succeeded",
                "linkedResourceType": kind::AKS_SERVICE,
                "link": cluster,
                "allowDelete": false,
                "locations": [],
            },
        })
    };
    subnet.association_links.iter().map(link).collect()
}

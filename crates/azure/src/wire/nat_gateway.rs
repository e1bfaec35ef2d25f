//! `Microsoft.Network/natGateways`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::{Command, PutNatGateway},
    fault::Fault,
    kind,
    model::NatGateway,
    name::ArmId,
};

use super::{
    Asked, Reference, Resource, View, frame, network_state, public_ip::one_of, references,
};
use crate::{
    findings::{Findings, arm_id_of, given, missing},
    kept,
    refuse::{Refusal, When, refusal},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    idle_timeout_in_minutes: Option<u32>,
    public_ip_addresses: Option<Vec<Reference>>,
    public_ip_prefixes: Option<Vec<Reference>>,
}

const KNOWN: &[&str] = &[
    "/sku/name",
    "/properties/idleTimeoutInMinutes",
    "/properties/publicIpAddresses",
    "/properties/publicIpPrefixes",
    "/properties/subnets",
];

const REFUSED: &[Refusal] = &[
    refusal("/properties/publicIpAddressesV6", When::Given, "IPv6 and dual stack")
        .code("IPv6NotSupported"),
    refusal("/properties/publicIpPrefixesV6", When::Given, "IPv6 and dual stack")
        .code("IPv6NotSupported"),
    refusal(
        "/properties/sourceVirtualNetwork",
        When::Given,
        "NAT gateways of a whole virtual network",
    ),
    refusal("/properties/serviceGateway", When::Given, "service gateways"),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(REFUSED);
    let common = asked.common(&resource, KNOWN);
    let sku = given(resource.sku.and_then(|sku| sku.name)).unwrap_or_else(|| "Standard".to_owned());
    let sku = findings.take(one_of(&sku, &["Standard", "StandardV2"], "sku.name"));
    let properties = resource.properties.unwrap_or_default();
    let public_ips = ids(
        properties.public_ip_addresses,
        kind::PUBLIC_IP,
        "properties.publicIpAddresses.id",
        &mut findings,
    );
    let public_ip_prefixes = ids(
        properties.public_ip_prefixes,
        kind::PUBLIC_IP_PREFIX,
        "properties.publicIpPrefixes.id",
        &mut findings,
    );
    findings.then(|| {
        let gateway = PutNatGateway {
            sku: sku?.to_owned(),
            public_ips,
            public_ip_prefixes,
            idle_timeout_minutes: properties.idle_timeout_in_minutes,
        };
        Some(Command::PutNatGateway { common, gateway })
    })
}

fn ids(
    references: Option<Vec<Reference>>,
    kind: &str,
    target: &str,
    findings: &mut Findings,
) -> Vec<ArmId> {
    let mut ids = Vec::new();
    for reference in references.unwrap_or_default() {
        let text = given(reference.id).ok_or_else(|| missing(target));
        ids.extend(findings.take(text.and_then(|text| arm_id_of(&text, kind, target))));
    }
    ids
}

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, gateway: &NatGateway) -> Value {
    let mut body = frame(&gateway.meta, kind::NAT_GATEWAY);
    body["sku"] = json!({ "name": gateway.sku });
    body["properties"] = json!({
        "provisioningState": network_state(gateway.meta.state),
        "resourceGuid": gateway.meta.guid,
        "idleTimeoutInMinutes": gateway.idle_timeout_minutes,
    });
    // Azure leaves empty lists of references out.
    let lists = [
        ("publicIpAddresses", &gateway.public_ips),
        ("publicIpPrefixes", &gateway.public_ip_prefixes),
        ("subnets", &view.region.subnets_of_nat_gateway(&gateway.meta.id)),
    ];
    for (key, list) in lists {
        if !list.is_empty() {
            body["properties"][key] = json!(references(list));
        }
    }
    kept::merge(&mut body, &gateway.meta.kept);
    body
}

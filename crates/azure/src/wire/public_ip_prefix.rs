//! `Microsoft.Network/publicIPPrefixes`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{command::Command, fault::Fault, kind, model::PublicIpPrefix, name::ArmId};

use super::{Asked, Resource, View, fill, frame, network_state, public_ip::one_of, references};
use crate::{
    findings::{self, given, missing},
    kept,
    refuse::{Refusal, When, refusal},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    prefix_length: Option<u8>,
    #[serde(rename = "publicIPAddressVersion")]
    version: Option<String>,
}

const KNOWN: &[&str] = &[
    "/sku/name",
    "/properties/prefixLength",
    "/properties/publicIPAddressVersion",
    "/properties/ipPrefix",
    "/properties/ipTags",
    "/properties/publicIPAddresses",
    "/properties/natGateway",
    "/properties/loadBalancerFrontendIpConfiguration",
];

const REFUSED: &[Refusal] = &[
    refusal("/properties/customIPPrefix", When::Given, "custom IP prefixes"),
    refusal("/properties/ipTags", When::Given, "IP tags"),
    refusal("/sku/tier", When::Is(&["Global"]), "global public IP prefixes"),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(REFUSED);
    let common = asked.common(&resource, KNOWN);
    let sku = given(resource.sku.and_then(|sku| sku.name)).unwrap_or_else(|| "Standard".to_owned());
    let sku = findings.take(one_of(&sku, &["Standard", "StandardV2"], "sku.name"));
    let (length, version) =
        resource.properties.map_or((None, None), |given| (given.prefix_length, given.version));
    let target = "properties.publicIPAddressVersion";
    let family = findings.take(findings::version(version.as_deref(), target));
    let length = findings.take(length.ok_or_else(|| missing("properties.prefixLength")));
    findings.then(|| {
        let (sku, length, family) = (sku?.to_owned(), length?, family?);
        Some(Command::PutPublicIpPrefix { common, sku, length, family })
    })
}

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, prefix: &PublicIpPrefix) -> Value {
    let mut body = frame(&prefix.meta, kind::PUBLIC_IP_PREFIX);
    body["sku"] = json!({ "name": prefix.sku });
    body["properties"] = json!({
        "provisioningState": network_state(prefix.meta.state),
        "resourceGuid": prefix.meta.guid,
        "prefixLength": prefix.prefix.length(),
        "ipPrefix": prefix.prefix,
        "publicIPAddressVersion": findings::version_of(prefix.prefix.family()),
        "ipTags": [],
    });
    let public_ips = view.region.public_ips_of_prefix(&prefix.meta.id);
    if !public_ips.is_empty() {
        body["properties"]["publicIPAddresses"] = json!(references(public_ips));
    }
    if let Some(user) = &prefix.used_by {
        let is_gateway = user.parse::<ArmId>().is_ok_and(|user| user.is_kind(kind::NAT_GATEWAY));
        let key = if is_gateway { "natGateway" } else { "loadBalancerFrontendIpConfiguration" };
        body["properties"][key] = json!({ "id": user });
    }
    kept::merge(&mut body, &prefix.meta.kept);
    fill(&mut body, json!({ "sku": { "tier": "Regional" } }));
    body
}

//! `Microsoft.Network/publicIPAddresses`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::Family,
    command::Command,
    fault::Fault,
    kind,
    model::{Allocation, PublicIp, PublicIpSettings},
    name::ArmId,
};

use super::{Asked, Reference, Resource, fill, frame, id_of, network_state};
use crate::{
    findings::{self, arm_id_of, given, not_one_of},
    kept,
    refuse::{Refusal, When, refusal},
};

#[derive(Debug, Default, Deserialize)]
struct Properties {
    #[serde(rename = "publicIPAllocationMethod")]
    allocation: Option<String>,
    #[serde(rename = "publicIPPrefix")]
    prefix: Option<Reference>,
    #[serde(rename = "publicIPAddressVersion")]
    version: Option<String>,
    #[serde(rename = "idleTimeoutInMinutes")]
    idle_timeout: Option<u32>,
    #[serde(rename = "dnsSettings")]
    dns: Option<DnsSettings>,
}

#[derive(Debug, Deserialize)]
struct DnsSettings {
    #[serde(rename = "domainNameLabel")]
    label: Option<String>,
}

const KNOWN: &[&str] = &[
    "/sku/name",
    "/properties/publicIPAllocationMethod",
    "/properties/publicIPAddressVersion",
    "/properties/ipAddress",
    "/properties/ipConfiguration",
    "/properties/ipTags",
    "/properties/publicIPPrefix",
    "/properties/natGateway",
    "/properties/idleTimeoutInMinutes",
    "/properties/dnsSettings/domainNameLabel",
    "/properties/dnsSettings/fqdn",
];

const REFUSED: &[Refusal] = &[
    refusal("/properties/ipTags", When::Given, "IP tags"),
    refusal("/properties/linkedPublicIPAddress", When::Given, "linked public IPs"),
    // The name would have a hash of who asks between label and location.
    refusal(
        "/properties/dnsSettings/domainNameLabelScope",
        When::Given,
        "scopes of domain name labels",
    ),
    refusal("/sku/tier", When::Is(&["Global"]), "global public IPs"),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(REFUSED);
    let common = asked.common(&resource, KNOWN);
    let sku = given(resource.sku.and_then(|sku| sku.name)).unwrap_or_else(|| "Basic".to_owned());
    let sku = findings.take(one_of(&sku, &["Basic", "Standard"], "sku.name"));
    let properties = resource.properties.unwrap_or_default();
    let Properties { allocation: method, prefix, version, idle_timeout, dns } = properties;
    let settings = PublicIpSettings {
        idle_timeout_minutes: idle_timeout
            .unwrap_or(PublicIpSettings::default().idle_timeout_minutes),
        dns_label: given(dns.and_then(|dns| dns.label)),
    };
    let target = "properties.publicIPAddressVersion";
    let family = findings.take(findings::version(version.as_deref(), target));
    let method = given(method);
    let prefix = findings.take_some(id_of(prefix), |text| {
        arm_id_of(&text, kind::PUBLIC_IP_PREFIX, "properties.publicIPPrefix.id")
    });
    let target = "properties.publicIPAllocationMethod";
    let allocation = match method {
        None if sku == Some("Standard") => Some(Allocation::Static),
        None => Some(Allocation::Dynamic),
        Some(text) => findings
            .take(one_of(&text, &["Static", "Dynamic"], target))
            .map(|text| if text == "Static" { Allocation::Static } else { Allocation::Dynamic }),
    };
    if sku == Some("Standard") && allocation == Some(Allocation::Dynamic) {
        findings.add(
            Fault::bad(
                "PublicIPAddressStandardSkuDynamicNotAllowed",
                format!(
                    "Standard sku publicIp {} must have AllocationMethod set to Static.",
                    asked.id
                ),
            )
            .at(target),
        );
    }
    findings.then(|| {
        Some(Command::PutPublicIp {
            common,
            prefix,
            sku: sku?.to_owned(),
            allocation: allocation?,
            family: family?,
            settings,
        })
    })
}

/// The one of `known` that `text` is, as Azure spells it.
pub(super) fn one_of(
    text: &str,
    known: &'static [&'static str],
    target: &str,
) -> Result<&'static str, Fault> {
    let found = known.iter().find(|other| text.eq_ignore_ascii_case(other));
    found.copied().ok_or_else(|| not_one_of(text, known, target))
}

/// The resource as a `GET` shows it.
pub(crate) fn render(public_ip: &PublicIp) -> Value {
    let mut body = frame(&public_ip.meta, kind::PUBLIC_IP);
    body["sku"] = json!({ "name": public_ip.sku });
    body["properties"] = json!({
        "provisioningState": network_state(public_ip.meta.state),
        "resourceGuid": public_ip.meta.guid,
        "ipAddress": public_ip.address,
        "publicIPAddressVersion": findings::version_of(Family::of(public_ip.address)),
        "publicIPAllocationMethod": method(public_ip.allocation),
        "ipTags": [],
    });
    if let Some(user) = &public_ip.used_by {
        let is_gateway = user.parse::<ArmId>().is_ok_and(|user| user.is_kind(kind::NAT_GATEWAY));
        let key = if is_gateway { "natGateway" } else { "ipConfiguration" };
        body["properties"][key] = json!({ "id": user });
    }
    if let Some(prefix) = &public_ip.prefix {
        body["properties"]["publicIPPrefix"] = json!({ "id": prefix });
    }
    let PublicIpSettings { idle_timeout_minutes, dns_label } = &public_ip.settings;
    // The default is filled in below.
    if *idle_timeout_minutes != PublicIpSettings::default().idle_timeout_minutes {
        body["properties"]["idleTimeoutInMinutes"] = json!(idle_timeout_minutes);
    }
    if let Some(label) = dns_label {
        body["properties"]["dnsSettings"] =
            json!({ "domainNameLabel": label, "fqdn": public_ip.fqdn() });
    }
    kept::merge(&mut body, &public_ip.meta.kept);
    fill(
        &mut body,
        json!({
            "sku": { "tier": "Regional" },
            "properties": {
                "idleTimeoutInMinutes": 4,
                "ddosSettings": { "protectionMode": "VirtualNetworkInherited" },
            },
        }),
    );
    body
}

/// An allocation method as Azure spells it.
pub(super) fn method(allocation: Allocation) -> &'static str {
    match allocation {
        Allocation::Static => "Static",
        Allocation::Dynamic => "Dynamic",
    }
}

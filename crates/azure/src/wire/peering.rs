//! `Microsoft.Network/virtualNetworks/virtualNetworkPeerings`, alone and inside of a virtual network.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::{Command, PutPeering},
    fault::Fault,
    kind,
    model::{Peering, PeeringState, PeeringSync, Vnet},
    name::{ArmId, Name},
};

use super::{Asked, Named, Reference, View, child_frame, fill, id_of, network_state};
use crate::{
    call::content,
    findings::{Findings, arm_id_of, missing},
    kept,
    refuse::{self, Refusal, When, refusal},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    remote_virtual_network: Option<Reference>,
    allow_virtual_network_access: Option<bool>,
    allow_forwarded_traffic: Option<bool>,
    allow_gateway_transit: Option<bool>,
    use_remote_gateways: Option<bool>,
}

const KNOWN: &[&str] = &[
    "/id",
    "/name",
    "/type",
    "/etag",
    "/resourceGroup",
    "/properties/provisioningState",
    "/properties/resourceGuid",
    "/properties/remoteVirtualNetwork",
    "/properties/allowVirtualNetworkAccess",
    "/properties/allowForwardedTraffic",
    "/properties/allowGatewayTransit",
    "/properties/useRemoteGateways",
    // What this side knows of the other is learned, not told.
    "/properties/remoteAddressSpace",
    "/properties/remoteVirtualNetworkAddressSpace",
    "/properties/remoteVirtualNetworkEncryption",
    "/properties/localAddressSpace",
    "/properties/localVirtualNetworkAddressSpace",
    "/properties/remoteBgpCommunities",
    "/properties/peeringState",
    "/properties/peeringSyncLevel",
];

const REFUSED: &[Refusal] = &[
    refusal("/properties/peerCompleteVnets", When::False, "peering of single subnets"),
    refusal("/properties/localSubnetNames", When::Given, "peering of single subnets"),
    refusal("/properties/remoteSubnetNames", When::Given, "peering of single subnets"),
    refusal("/properties/enableOnlyIPv6Peering", When::True, "IPv6 and dual stack")
        .code("IPv6NotSupported"),
];

/// The command that a `PUT` asks for; `sync` is its parameter `syncRemoteAddressSpace`.
pub(crate) fn parse(asked: &Asked<'_>, sync: bool) -> Result<Command, Fault> {
    asked.read::<Named<Properties>>()?;
    let mut findings = Findings::default();
    let peering = parse_body(&asked.id, &asked.value, sync, &mut findings);
    findings.then(|| Some(Command::PutPeering { id: asked.id.clone(), peering: peering? }))
}

fn parse_body(
    id: &ArmId,
    value: &Value,
    sync: bool,
    findings: &mut Findings,
) -> Option<PutPeering> {
    refuse::check(value, REFUSED, "", findings);
    let body = serde_json::from_value::<Named<Properties>>(value.clone());
    let body = findings.take(body.map_err(|error| content(&error)))?;
    let target = "properties.remoteVirtualNetwork.id";
    let Some(properties) = body.properties else {
        findings.add(missing(target));
        return None;
    };
    let remote = id_of(properties.remote_virtual_network).ok_or_else(|| missing(target));
    let remote = findings.take(remote.and_then(|text| arm_id_of(&text, kind::VNET, target)));
    Some(PutPeering {
        name: Name::new(id.name()),
        remote: remote?,
        // Azure's defaults: access is what a peering is for, everything else is asked for.
        allow_access: properties.allow_virtual_network_access.unwrap_or(true),
        allow_forwarded: properties.allow_forwarded_traffic.unwrap_or(false),
        allow_gateway_transit: properties.allow_gateway_transit.unwrap_or(false),
        use_remote_gateways: properties.use_remote_gateways.unwrap_or(false),
        sync,
        kept: kept::collect(value, KNOWN),
    })
}

/// What the list of peerings in the body of virtual network `id` changes. A side that stays as it is isn't written:
/// that would bring one that is disconnected back.
pub(super) fn parse_list(
    id: &ArmId,
    list: &[Value],
    stored: Option<&Vnet>,
    findings: &mut Findings,
) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut names = Vec::new();
    for value in list {
        let Some(name) = value["name"].as_str().filter(|name| !name.is_empty()) else {
            findings.add(missing("properties.virtualNetworkPeerings.name"));
            continue;
        };
        let child = id.child("virtualNetworkPeerings", name);
        names.push(Name::new(name));
        let Some(put) = parse_body(&child, value, false, findings) else { continue };
        let old = stored.and_then(|vnet| vnet.peerings.get(&put.name));
        let is_same = old.is_some_and(|old| {
            old.remote == put.remote
                && old.allow_access == put.allow_access
                && old.allow_forwarded == put.allow_forwarded
                && old.allow_gateway_transit == put.allow_gateway_transit
                && old.use_remote_gateways == put.use_remote_gateways
        });
        if !is_same {
            commands.push(Command::PutPeering { id: child, peering: put });
        }
    }
    let gone = stored.into_iter().flat_map(|vnet| vnet.peerings.keys());
    for name in gone.filter(|name| !names.contains(*name)) {
        commands.push(Command::Delete { id: id.child("virtualNetworkPeerings", name.as_str()) });
    }
    commands
}

/// The resource as a `GET` shows it, alone or inside of its virtual network.
pub(crate) fn render(view: &View<'_>, vnet: &Vnet, peering: &Peering) -> Value {
    let id = vnet.meta.id.child("virtualNetworkPeerings", peering.name.as_str());
    let mut body = child_frame(&id, kind::PEERING, &vnet.meta);
    let remote = view.region.vnets.get(&peering.remote);
    let now = remote.map_or(&peering.remote_prefixes, |remote| &remote.prefixes);
    body["properties"] = json!({
        "provisioningState": network_state(peering.state),
        "resourceGuid": guid(&vnet.meta.id, &peering.remote),
        "peeringState": match peering.peering_state {
            PeeringState::Initiated => "Initiated",
            PeeringState::Connected => "Connected",
            PeeringState::Disconnected => "Disconnected",
        },
        "peeringSyncLevel": match view.region.peering_sync(vnet, peering) {
            PeeringSync::FullyInSync => "FullyInSync",
            PeeringSync::RemoteNotInSync => "RemoteNotInSync",
            PeeringSync::LocalNotInSync => "LocalNotInSync",
            PeeringSync::LocalAndRemoteNotInSync => "LocalAndRemoteNotInSync",
        },
        "remoteVirtualNetwork": { "id": peering.remote },
        "allowVirtualNetworkAccess": peering.allow_access,
        "allowForwardedTraffic": peering.allow_forwarded,
        "allowGatewayTransit": peering.allow_gateway_transit,
        "useRemoteGateways": peering.use_remote_gateways,
        "remoteAddressSpace": { "addressPrefixes": peering.remote_prefixes },
        "remoteVirtualNetworkAddressSpace": { "addressPrefixes": now },
    });
    kept::merge(&mut body, &peering.kept);
    let defaults = json!({ "doNotVerifyRemoteGateways": false, "peerCompleteVnets": true });
    fill(&mut body, json!({ "properties": defaults }));
    body
}

/// Both sides show the same one.
fn guid(one: &ArmId, other: &ArmId) -> uuid::Uuid {
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    let text = format!("peering {} {}", first.key(), second.key());
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes())
}

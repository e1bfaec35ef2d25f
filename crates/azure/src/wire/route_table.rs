//! `Microsoft.Network/routeTables` and their routes.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::Command,
    fault::Fault,
    kind,
    model::{Destination, NextHop, Route, RouteTable},
    name::{ArmId, Name},
};

use super::{Asked, Named, Resource, View, child_frame, frame, network_state, references};
use crate::{
    call::content,
    findings::{Findings, any_address, given, missing, network_prefix, not_one_of},
    kept,
    refuse::unsupported,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    routes: Option<Vec<Value>>,
    disable_bgp_route_propagation: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RouteProperties {
    address_prefix: Option<String>,
    next_hop_type: Option<String>,
    next_hop_ip_address: Option<String>,
}

const KNOWN: [&str; 3] =
    ["/properties/routes", "/properties/disableBgpRoutePropagation", "/properties/subnets"];

/// The command that a `PUT` of a route table asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let common = asked.common(&resource, &KNOWN);
    let mut findings = Findings::default();
    let (routes, disable) = resource
        .properties
        .map_or((None, None), |given| (given.routes, given.disable_bgp_route_propagation));
    let routes = routes.map(|routes| {
        let route = |value: Value| {
            let name = value["name"].as_str().unwrap_or_default().to_owned();
            if name.is_empty() {
                findings.add(missing("properties.routes.name"));
            }
            parse_body(&asked.id.child("routes", &name), value, &mut findings)
        };
        routes.into_iter().filter_map(route).collect()
    });
    findings.finish()?;
    Ok(Command::PutRouteTable {
        common,
        routes,
        disable_bgp_route_propagation: disable.unwrap_or(false),
    })
}

/// The command that a `PUT` of a route asks for.
pub(crate) fn parse_route(asked: &Asked<'_>) -> Result<Command, Fault> {
    asked.read::<Named<RouteProperties>>()?;
    let mut findings = Findings::default();
    let route = parse_body(&asked.id, asked.value.clone(), &mut findings);
    findings.then(|| Some(Command::PutRoute { id: asked.id.clone(), route: route? }))
}

fn parse_body(id: &ArmId, value: Value, findings: &mut Findings) -> Option<Route> {
    let body = serde_json::from_value::<Named<RouteProperties>>(value);
    let body = findings.take(body.map_err(|error| content(&error)))?;
    let Some(properties) = body.properties else {
        findings.add(missing("properties.addressPrefix"));
        return None;
    };
    let prefix =
        given(properties.address_prefix).ok_or_else(|| missing("properties.addressPrefix"));
    let prefix = prefix.and_then(|text| destination(&text, id));
    let prefix = findings.take(prefix);
    let hop = next_hop(
        &properties.next_hop_type.unwrap_or_default(),
        given(properties.next_hop_ip_address),
    );
    let next_hop = findings.take(hop);
    Some(Route { name: Name::new(id.name()), prefix: prefix?, next_hop: next_hop? })
}

/// A prefix, or what may be a service tag: a word.
fn destination(text: &str, id: &ArmId) -> Result<Destination, Fault> {
    match text.parse() {
        Ok(destination) => Ok(destination),
        Err(_) => network_prefix(text, id, "properties.addressPrefix").map(Destination::Prefix),
    }
}

fn next_hop(kind: &str, hop: Option<String>) -> Result<NextHop, Fault> {
    let target = "properties.nextHopType";
    let is = |other: &str| kind.eq_ignore_ascii_case(other);
    let without_address = |next_hop| {
        match &hop {
        None => Ok(next_hop),
        Some(_) => Err(Fault::bad(
            "NextHopIpAddressNotAllowed",
            format!("nextHopIpAddress is only allowed with nextHopType VirtualAppliance, not with {kind}."),
        )
        .at("properties.nextHopIpAddress")),
    }
    };
    if is("VirtualAppliance") {
        let text = hop.ok_or_else(|| missing("properties.nextHopIpAddress"))?;
        Ok(NextHop::VirtualAppliance(any_address(&text, "properties.nextHopIpAddress")?))
    } else if is("VnetLocal") {
        without_address(NextHop::VnetLocal)
    } else if is("Internet") {
        without_address(NextHop::Internet)
    } else if is("None") {
        without_address(NextHop::None)
    } else if is("VirtualNetworkGateway") {
        Err(unsupported("NotSupported", "virtual network gateways").at(target))
    } else {
        Err(not_one_of(kind, &["VirtualAppliance", "VnetLocal", "Internet", "None"], target))
    }
}

/// A route table as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, table: &RouteTable) -> Value {
    let mut body = frame(&table.meta, kind::ROUTE_TABLE);
    body["properties"] = json!({
        "provisioningState": network_state(table.meta.state),
        "resourceGuid": table.meta.guid,
        "disableBgpRoutePropagation": table.disable_bgp_route_propagation,
        "routes": table.routes.values().map(|route| render_route(table, route)).collect::<Vec<_>>(),
    });
    let subnets = view.region.subnets_of_route_table(&table.meta.id);
    if !subnets.is_empty() {
        body["properties"]["subnets"] = json!(references(subnets));
    }
    kept::merge(&mut body, &table.meta.kept);
    body
}

/// A route as a `GET` shows it.
pub(crate) fn render_route(table: &RouteTable, route: &Route) -> Value {
    let id = table.meta.id.child("routes", route.name.as_str());
    let mut body = child_frame(&id, kind::ROUTE, &table.meta);
    let (next_hop, address) = match route.next_hop {
        NextHop::VirtualAppliance(address) => ("VirtualAppliance", Some(address)),
        NextHop::VnetLocal => ("VnetLocal", None),
        NextHop::Internet => ("Internet", None),
        NextHop::None => ("None", None),
    };
    body["properties"] = json!({
        "provisioningState": network_state(table.meta.state),
        "addressPrefix": route.prefix.to_string(),
        "nextHopType": next_hop,
    });
    if let Some(address) = address {
        body["properties"]["nextHopIpAddress"] = json!(address);
    }
    body["properties"]["hasBgpOverride"] = json!(false);
    body
}

//! What is answered about a NIC: effective security rules and routes, and what Network Watcher says of one flow.
//! Not here: what decides it, which is [`vnet::effective`].

use serde_json::{Map, Value, json};
use vnet::{
    addr::{AddressSet, Prefix},
    effective::{self, Attached, NextStop, Verdict},
    kind,
    model::{Addresses, Nic, Peers, PortRange, Ports, RuleProtocol},
    name::ArmId,
    policy::{Rule, tags::ServiceTags},
    region::Region,
    routes::{EffectiveRoute, Hop, Source},
};

use super::{
    View,
    security_group::{self, access, direction},
};

/// A group where it is attached, with everything that its rules name looked up: an element of
/// `effectiveNetworkSecurityGroups`.
pub(crate) fn render_gate(attached: &Attached) -> Value {
    let at = if attached.at.is_kind(kind::SUBNET) { "subnet" } else { "networkInterface" };
    let rules: Vec<&Rule> = attached.gate.inbound.iter().chain(&attached.gate.outbound).collect();
    let mut tags = Map::new();
    for rule in &rules {
        for (peers, set) in
            [(&rule.rule.source, &rule.source), (&rule.rule.destination, &rule.destination)]
        {
            if let Some(tag) = tag(peers) {
                tags.insert(tag.to_owned(), json!(set.prefixes()));
            }
        }
    }
    json!({
        "networkSecurityGroup": { "id": attached.gate.group },
        "association": { at: { "id": attached.at } },
        "effectiveSecurityRules": rules.into_iter().map(render_rule).collect::<Vec<_>>(),
        "tagMap": tags,
    })
}

fn render_rule(rule: &Rule) -> Value {
    let list = if rule.is_default { "defaultSecurityRules" } else { "securityRules" };
    let protocol = match rule.rule.protocol {
        RuleProtocol::Any => "All",
        RuleProtocol::Tcp => "Tcp",
        RuleProtocol::Udp => "Udp",
        RuleProtocol::Icmp => "Icmp",
        RuleProtocol::Esp => "Esp",
        RuleProtocol::Ah => "Ah",
    };
    let mut body = json!({
        "name": format!("{list}/{}", rule.rule.name),
        "protocol": protocol,
        "priority": rule.rule.priority,
        "access": access(rule.rule.access),
        "direction": direction(rule.rule.direction),
    });
    for (side, peers, set, ports) in [
        ("source", &rule.rule.source, &rule.source, &rule.rule.source_ports),
        ("destination", &rule.rule.destination, &rule.destination, &rule.rule.destination_ports),
    ] {
        let capital = if side == "source" { "Source" } else { "Destination" };
        let prefixes = prefixes(peers, set);
        let ranges = ranges(ports);
        body[format!("{side}AddressPrefix")] = json!(prefixes.first());
        body[format!("{side}AddressPrefixes")] = json!(prefixes);
        body[format!("{side}PortRange")] = json!(ranges.first());
        body[format!("{side}PortRanges")] = json!(ranges);
        // Only what a name stands for is written out.
        if tag(peers).is_some() || matches!(peers, Peers::Groups(_)) {
            body[format!("expanded{capital}AddressPrefix")] = json!(set.prefixes());
        }
    }
    body
}

fn tag(peers: &Peers) -> Option<&str> {
    match peers {
        Peers::Addresses { any_of, .. } => any_of.iter().find_map(|one| match one {
            Addresses::Tag(tag) => Some(tag.as_str()),
            Addresses::Any | Addresses::Prefix(_) => None,
        }),
        Peers::Groups(_) => None,
    }
}

fn prefixes(peers: &Peers, set: &AddressSet) -> Vec<String> {
    match peers {
        Peers::Addresses { any_of, .. } => any_of
            .iter()
            .map(|one| match one {
                Addresses::Any => "0.0.0.0/0".to_owned(),
                Addresses::Prefix(prefix) => prefix.to_string(),
                Addresses::Tag(tag) => tag.clone(),
            })
            .collect(),
        Peers::Groups(_) => set.prefixes().iter().map(ToString::to_string).collect(),
    }
}

fn ranges(ports: &Ports) -> Vec<String> {
    let text = |range: &PortRange| format!("{}-{}", range.first, range.last);
    ports.any_of.iter().map(text).collect()
}

/// A NIC's `effectiveRouteTable`: a user's route for a service tag is one element, with the tag's prefixes; those that
/// another route of the table's takes are an element of their own.
pub(crate) fn render_routes(region: &Region, nic: &Nic, routes: &[EffectiveRoute]) -> Vec<Value> {
    let mut elements: Vec<(&EffectiveRoute, Vec<Prefix>)> = Vec::new();
    for route in routes {
        let same = elements.iter_mut().find(|(first, _)| {
            route.name.is_some() && first.name == route.name && first.is_active == route.is_active
        });
        match same {
            Some((_, prefixes)) => prefixes.push(route.prefix),
            None => elements.push((route, vec![route.prefix])),
        }
    }
    elements.iter().map(|(route, prefixes)| render_route(region, nic, route, prefixes)).collect()
}

fn render_route(region: &Region, nic: &Nic, route: &EffectiveRoute, prefixes: &[Prefix]) -> Value {
    let (hop, address) = match &route.hop {
        Hop::VnetLocal => ("VnetLocal", None),
        Hop::Peering(peer) if effective::is_global(region, nic, peer) => {
            ("VNetGlobalPeering", None)
        }
        Hop::Peering(_) => ("VNetPeering", None),
        Hop::Internet => ("Internet", None),
        Hop::VirtualAppliance(address) => ("VirtualAppliance", Some(address)),
        Hop::None => ("None", None),
    };
    let mut body = json!({
        "source": match route.source {
            Source::Default => "Default",
            Source::User => "User",
        },
        "state": if route.is_active { "Active" } else { "Invalid" },
        "addressPrefix": prefixes,
        "nextHopType": hop,
        "nextHopIpAddress": address.into_iter().collect::<Vec<_>>(),
        "disableBgpRoutePropagation": false,
    });
    if let Some(name) = &route.name {
        body["name"] = json!(name.as_str());
    }
    body
}

/// The answer of `ipFlowVerify`.
pub(crate) fn render_verdict(verdict: &Verdict) -> Value {
    let rule = verdict.rule.as_ref().map(|decider| {
        let list = if decider.is_default { "defaultSecurityRules" } else { "securityRules" };
        format!("{list}/{}", decider.name)
    });
    json!({ "access": access(verdict.access), "ruleName": rule.unwrap_or_default() })
}

/// The answer of `nextHop`, in the words of Azure documentation, "Network Watcher next hop overview", which has one for
/// peerings, wherever the peer is.
pub(crate) fn render_next_stop(stop: &NextStop) -> Value {
    let (hop, address) = match &stop.hop {
        // The host answers for the platform, whatever the routes say.
        None => ("HyperNetGateway", None),
        Some(Hop::VnetLocal) => ("VnetLocal", None),
        Some(Hop::Peering(_)) => ("VirtualNetworkPeering", None),
        Some(Hop::Internet) => ("Internet", None),
        Some(Hop::VirtualAppliance(address)) => ("VirtualAppliance", Some(address)),
        Some(Hop::None) => ("None", None),
    };
    let table = stop.route_table.as_ref().map_or("System Route", ArmId::as_str);
    let mut body = json!({ "nextHopType": hop, "routeTableId": table });
    if let Some(address) = address {
        body["nextHopIpAddress"] = json!(address);
    }
    body
}

/// The answer of `securityGroupView` about a machine with one NIC.
pub(crate) fn render_view(view: &View<'_>, nic: &Nic) -> Value {
    let gates = nic.address().map(|address| effective::gates(view.region, nic, address.into()));
    let mut associations = json!({ "defaultSecurityRules": [], "effectiveSecurityRules": [] });
    for attached in gates.iter().flatten() {
        let Some(group) = view.region.security_groups.get(&attached.gate.group) else { continue };
        let body = security_group::render(view, group);
        let key = if attached.at.is_kind(kind::SUBNET) {
            "subnetAssociation"
        } else {
            "networkInterfaceAssociation"
        };
        associations[key] = json!({
            "id": attached.at,
            "securityRules": body["properties"]["securityRules"],
        });
        // The same six for every group.
        associations["defaultSecurityRules"] = body["properties"]["defaultSecurityRules"].clone();
        let rules = attached.gate.inbound.iter().chain(&attached.gate.outbound).map(render_rule);
        if let Some(all) = associations["effectiveSecurityRules"].as_array_mut() {
            all.extend(rules);
        }
    }
    json!({ "networkInterfaces": [{
        "id": nic.meta.id,
        "securityRuleAssociations": associations,
    }] })
}

/// The answer of `serviceTags`: Azure's list for a location, which has all of them.
pub(crate) fn render_tags(tags: &ServiceTags, location: &str) -> Value {
    let number = tags.change_number.to_string();
    let value = |(tag, prefixes): (&String, &Vec<Prefix>)| {
        let (service, region) = match tag.split_once('.') {
            // Front Door's tags are of its parts, not of regions.
            Some((service @ "AzureFrontDoor", _)) => (service, ""),
            Some(parts) => parts,
            None => (tag.as_str(), ""),
        };
        json!({ "name": tag, "id": tag, "properties": {
            "changeNumber": number,
            "region": region.to_ascii_lowercase(),
            "systemService": if service == "AzureCloud" { "" } else { service },
            "addressPrefixes": prefixes,
        } })
    };
    json!({
        "name": "Public",
        "id": format!("/providers/Microsoft.Network/locations/{location}/serviceTags/Public"),
        "type": "Microsoft.Network/serviceTags",
        "changeNumber": number,
        "cloud": "Public",
        "values": tags.tags.iter().map(value).collect::<Vec<_>>(),
    })
}

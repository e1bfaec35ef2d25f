//! Gives pods back what others took from them on the node: routes, neighbours, ports of a bridge. Not here: what
//! is in the pod's own namespace (its runtime asks for that), and rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use vnet::{
    addr::{Family, Prefix},
    pods::wiring::{Path, Wiring},
};

use super::{DEAD_GROUP, Wirer, hairpin, is_gone, name_of, new_neighbour, route, verify};
use crate::{
    LinuxError,
    net::{
        Request,
        wire::{self, RouteTo},
    },
};

/// A link of the node.
struct Here {
    index: u32,
    is_up: bool,
    controller: Option<u32>,
}

impl Wirer {
    /// Puts right what the pods lack on the node. Answers with what was put right, in words; a pod whose pair
    /// is gone is left to its runtime.
    pub fn mend(&mut self, wirings: &[Wiring]) -> Result<Vec<String>, LinuxError> {
        if wirings.is_empty() {
            return Ok(Vec::new());
        }
        let mut links = self.here()?;
        let mut done = Vec::new();
        let bridge = wirings.iter().find_map(|wiring| match &wiring.path {
            Path::Bridged(bridge) => Some(bridge.clone()),
            Path::Routed | Path::Switched(_) => None,
        });
        if let Some(bridge) = bridge {
            let mut is_whole = false;
            if let Some(link) = links.get(&bridge.name).filter(|link| link.is_up) {
                is_whole = true;
                for (gateway, network) in bridge.addresses() {
                    let length = network.length();
                    is_whole &= verify::has_address(&mut self.node, link.index, gateway, length)?;
                }
            }
            if !is_whole {
                self.ensure_bridge(&bridge)?;
                done.push(format!("bridge {}", bridge.name));
                links = self.here()?;
            }
        }
        let is_routed = wirings.iter().any(|wiring| wiring.path == Path::Routed);
        let is_dual_stack = wirings.iter().any(|wiring| wiring.address_v6.is_some());
        let mut to_pods: BTreeSet<(IpAddr, u32)> = BTreeSet::new();
        let mut neighbours = BTreeSet::new();
        if is_routed {
            let families: &[_] =
                if is_dual_stack { &[Family::V4, Family::V6] } else { &[Family::V4] };
            for family in families {
                let routes = verify::routes(&mut self.node, *family)?;
                to_pods.extend(routes.iter().filter_map(verify::host_route));
                neighbours.append(&mut self.permanent_neighbours(*family)?);
            }
        }
        let mut requests = Vec::new();
        for wiring in wirings {
            let Some(link) = links.get(&wiring.host_link) else { continue };
            let name = &wiring.host_link;
            let mut add = |request: Request, what: String| {
                requests.push(request);
                done.push(what);
            };
            if !link.is_up {
                let up = wire::link_up(link.index, true);
                add(Request::change(up, format!("set link {name} up")), format!("link {name}"));
            }
            if let Some(bridge) = wiring.path.bridge() {
                let Some(bridge) = links.get(bridge).map(|link| link.index) else { continue };
                if link.controller != Some(bridge) {
                    let port = wire::link_set(link.index, vec![LinkAttribute::Controller(bridge)]);
                    let what = format!("port {name}");
                    add(Request::change(port, format!("make {name} a port")), what.clone());
                    let hairpin = RouteNetlinkMessage::NewLink(hairpin(name));
                    add(Request::change(hairpin, format!("set link {name}")), what);
                }
                continue;
            }
            // A link that was down has lost its routes, and may lose what comes before it is up.
            for address in wiring.addresses() {
                if !link.is_up || !to_pods.contains(&(address, link.index)) {
                    let host = Prefix::host(address);
                    let to = RouteTo::Link(link.index);
                    let route = RouteNetlinkMessage::NewRoute(route(host, to));
                    let what = format!("route {host}");
                    add(Request::replace(route, format!("add {what} dev {name}")), what);
                }
                if !link.is_up || !neighbours.contains(&(address, link.index)) {
                    let neighbour = new_neighbour(link.index, address, wiring.pod_mac);
                    let what = format!("neighbour {address}");
                    add(Request::replace(neighbour, format!("add {what}")), what);
                }
            }
        }
        for outcome in self.node.send_batch(&requests)? {
            match outcome {
                // The pod has gone meanwhile.
                Err(error) if is_gone(&error) => (),
                other => other?,
            }
        }
        Ok(done)
    }

    fn here(&mut self) -> Result<BTreeMap<String, Here>, LinuxError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = self.node.dump(&question)?.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { return None };
            if link.attributes.contains(&LinkAttribute::Group(DEAD_GROUP)) {
                return None;
            }
            let controller = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Controller(index) => Some(*index),
                _ => None,
            });
            let is_up = link.header.flags.contains(LinkFlags::Up);
            Some((name_of(&link)?.to_owned(), Here { index: link.header.index, is_up, controller }))
        });
        Ok(links.collect())
    }

    fn permanent_neighbours(
        &mut self,
        family: Family,
    ) -> Result<BTreeSet<(IpAddr, u32)>, LinuxError> {
        let mut question = NeighbourMessage::default();
        question.header.family = wire::address_family(family);
        let answers = self.node.dump(&RouteNetlinkMessage::GetNeighbour(question))?;
        let neighbours = answers.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewNeighbour(found) = answer else { return None };
            let address = found.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                    Some(IpAddr::from(*address))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                    Some(IpAddr::from(*address))
                }
                _ => None,
            })?;
            (found.header.state == NeighbourState::Permanent)
                .then_some((address, found.header.ifindex))
        });
        Ok(neighbours.collect())
    }
}

//! Is a pod still wired as it was? Each fault is named; nothing is mended.

use std::{fmt, net::Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use vnet::pods::wiring::{Path, Wiring};

use super::{PodError, Sandbox, Wirer, index, is_up, no_socket};
use crate::{LinuxError, net::Netlink};

/// What is not as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The pod's interface, or its other end, is missing or not the pair that was made.
    Link,
    /// The pair cannot carry packets.
    Down,
    /// The pod's address is missing.
    Address,
    /// The pod's default route is missing.
    DefaultRoute,
    /// The gateway cannot be reached from the pod: its route or neighbour entry is missing.
    Gateway,
    /// The node's route to the pod is missing.
    NodeRoute,
    /// The node's end is no port of the bridge.
    Port,
    /// The bridge lacks its address.
    BridgeAddress,
    /// The bridge drops the pod's frames.
    Frames,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "the pair of links is not there",
            Self::Down => "the link is down",
            Self::Address => "the pod's address is missing",
            Self::DefaultRoute => "the pod's default route is missing",
            Self::Gateway => "the pod's way to its gateway is missing",
            Self::NodeRoute => "the node's route to the pod is missing",
            Self::Port => "the node's link is no port of the bridge",
            Self::Frames => "the bridge does not know the pod's frames",
            Self::BridgeAddress => "the bridge's address is missing",
        })
    }
}

impl Wirer {
    /// Compares a pod's wiring with what it must be.
    pub fn verify(
        &mut self,
        sandbox: &Sandbox,
        interface: &str,
        wiring: &Wiring,
    ) -> Result<Vec<Fault>, PodError> {
        let (pod, pod_index) = self.inside(sandbox, || (Netlink::open(), index(interface)))?;
        let mut pod = pod.map_err(|_| no_socket())?;
        let (Ok(pod_index), Ok(host_index)) = (pod_index, index(&wiring.host_link)) else {
            return Ok(vec![Fault::Link]);
        };
        let Some(link) = links(&mut pod, None)?
            .into_iter()
            .find(|link| link.header.index == pod_index && is_pair(link, host_index, wiring))
        else {
            return Ok(vec![Fault::Link]);
        };
        let mut faults = Vec::new();
        let mut expect = |holds: bool, fault: Fault| {
            if !holds {
                faults.push(fault);
            }
        };
        expect(is_up(&link), Fault::Down);
        let length = wiring.prefix_length();
        expect(has_address(&mut pod, pod_index, wiring.address, length)?, Fault::Address);
        let routes = routes(&mut pod)?;
        let gateway = wiring.gateway();
        expect(
            routes.iter().any(|route| leads(route, None, pod_index, Some(gateway))),
            Fault::DefaultRoute,
        );
        match &wiring.path {
            Path::Routed => {
                let on_link =
                    routes.iter().any(|route| leads(route, Some(gateway), pod_index, None));
                expect(on_link && has_neighbour(&mut pod, pod_index, wiring)?, Fault::Gateway);
                let node = self::routes(&mut self.node)?;
                let here = Some(wiring.address);
                expect(
                    node.iter().any(|route| leads(route, here, host_index, None)),
                    Fault::NodeRoute,
                );
            }
            Path::Bridged(bridge) => {
                let Ok(bridge_index) = index(&bridge.name) else {
                    return Ok(vec![Fault::Port, Fault::BridgeAddress]);
                };
                let ports = links(&mut self.node, Some(bridge_index))?;
                expect(ports.iter().any(|port| port.header.index == host_index), Fault::Port);
                let length = bridge.network.length();
                let has = has_address(&mut self.node, bridge_index, bridge.gateway, length)?;
                expect(has, Fault::BridgeAddress);
            }
            Path::Switched(switch) => {
                let Ok(bridge) = index(&switch.bridge) else { return Ok(vec![Fault::Port]) };
                let ports = links(&mut self.node, Some(bridge))?;
                expect(ports.iter().any(|port| port.header.index == host_index), Fault::Port);
                expect(self.is_admitted(wiring)?, Fault::Frames);
            }
        }
        Ok(faults)
    }
}

/// Whether `link` is the pod's end of the pair whose other end has `host_index`.
fn is_pair(link: &LinkMessage, host_index: u32, wiring: &Wiring) -> bool {
    let has = |wanted: &LinkAttribute| link.attributes.contains(wanted);
    has(&LinkAttribute::Link(host_index))
        && has(&LinkAttribute::Address(wiring.pod_mac.0.to_vec()))
        && has(&LinkAttribute::Mtu(wiring.mtu))
}

fn links(socket: &mut Netlink, controller: Option<u32>) -> Result<Vec<LinkMessage>, LinuxError> {
    let mut question = LinkMessage::default();
    question.attributes.extend(controller.map(LinkAttribute::Controller));
    let answers = socket.dump(&RouteNetlinkMessage::GetLink(question))?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    // An old kernel does not filter; so look once more.
    let belongs = |link: &LinkMessage| {
        controller.is_none_or(|index| link.attributes.contains(&LinkAttribute::Controller(index)))
    };
    Ok(links.filter(belongs).collect())
}

pub(super) fn has_address(
    socket: &mut Netlink,
    index: u32,
    address: Ipv4Addr,
    length: u8,
) -> Result<bool, LinuxError> {
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    let answers = socket.dump(&RouteNetlinkMessage::GetAddress(question))?;
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewAddress(found) = answer else { return false };
        found.header.index == index
            && found.header.prefix_len == length
            && found.attributes.contains(&AddressAttribute::Local(address.into()))
    }))
}

pub(super) fn routes(socket: &mut Netlink) -> Result<Vec<RouteMessage>, LinuxError> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let answers = socket.dump(&RouteNetlinkMessage::GetRoute(question))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes
        .filter(|route| route.header.table == u8::try_from(super::MAIN_TABLE).unwrap_or(0))
        .collect())
}

/// The address and the link of a route to one host.
pub(super) fn host_route(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    let mut to = None;
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(host)) => to = Some(*host),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    (route.header.destination_prefix_length == 32).then_some((to?, link?))
}

/// Whether `route` goes to `to` (everywhere when `None`) over `link` and `gateway`.
fn leads(route: &RouteMessage, to: Option<Ipv4Addr>, link: u32, gateway: Option<Ipv4Addr>) -> bool {
    let has = |wanted: &RouteAttribute| route.attributes.contains(wanted);
    let goes = match to {
        None => route.header.destination_prefix_length == 0,
        Some(host) => {
            route.header.destination_prefix_length == 32
                && has(&RouteAttribute::Destination(RouteAddress::Inet(host)))
        }
    };
    let over =
        gateway.is_none_or(|gateway| has(&RouteAttribute::Gateway(RouteAddress::Inet(gateway))));
    goes && over && has(&RouteAttribute::Oif(link))
}

fn has_neighbour(pod: &mut Netlink, index: u32, wiring: &Wiring) -> Result<bool, LinuxError> {
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Inet;
    let answers = pod.dump(&RouteNetlinkMessage::GetNeighbour(question))?;
    let address = NeighbourAttribute::Destination(NeighbourAddress::Inet(wiring.gateway()));
    let mac = NeighbourAttribute::LinkLayerAddress(wiring.host_mac.0.to_vec());
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewNeighbour(found) = answer else { return false };
        found.header.ifindex == index
            && found.header.state == NeighbourState::Permanent
            && found.attributes.contains(&address)
            && found.attributes.contains(&mac)
    }))
}

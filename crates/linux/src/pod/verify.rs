//! Is a pod still wired as it was? Each fault is named; nothing is mended.

use std::{fmt, net::IpAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use vnet::{
    addr::Family,
    pods::wiring::{Path, Wiring},
};

use super::{PodError, Sandbox, Wirer, index, is_up, no_socket};
use crate::{
    LinuxError,
    net::{Netlink, wire},
};

/// What is not as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The pod's interface, or its other end, is missing or not the pair that was made.
    Link,
    /// The pair cannot carry packets.
    Down,
    /// The pod's address is missing.
    Address(Family),
    /// The pod's default route is missing.
    DefaultRoute(Family),
    /// The gateway cannot be reached from the pod: its route or neighbour entry is missing.
    Gateway(Family),
    /// The node's route to the pod is missing.
    NodeRoute(Family),
    /// The node's end is no port of the bridge.
    Port,
    /// The bridge lacks its address.
    BridgeAddress(Family),
    /// The bridge drops the pod's frames.
    Frames,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |family: &Family| match family {
            Family::V4 => "",
            Family::V6 => " of IPv6",
        };
        match self {
            Self::Link => f.write_str("the pair of links is not there"),
            Self::Down => f.write_str("the link is down"),
            Self::Address(family) => write!(f, "the pod's address{} is missing", of(family)),
            Self::DefaultRoute(family) => {
                write!(f, "the pod's default route{} is missing", of(family))
            }
            Self::Gateway(family) => {
                write!(f, "the pod's way to its gateway{} is missing", of(family))
            }
            Self::NodeRoute(family) => {
                write!(f, "the node's route{} to the pod is missing", of(family))
            }
            Self::Port => f.write_str("the node's link is no port of the bridge"),
            Self::Frames => f.write_str("the bridge does not know the pod's frames"),
            Self::BridgeAddress(family) => {
                write!(f, "the bridge's address{} is missing", of(family))
            }
        }
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
        for leg in wiring.legs() {
            let family = Family::of(leg.address);
            let has = has_address(&mut pod, pod_index, leg.address, leg.length)?;
            expect(has, Fault::Address(family));
            let routes = routes(&mut pod, family)?;
            let gateway = leg.gateway;
            expect(
                routes.iter().any(|route| leads(route, None, pod_index, Some(gateway))),
                Fault::DefaultRoute(family),
            );
            if !matches!(wiring.path, Path::Routed) {
                continue;
            }
            let on_link = routes.iter().any(|route| leads(route, Some(gateway), pod_index, None));
            let mac = wiring.host_mac.0;
            let is_known = has_neighbour(&mut pod, pod_index, gateway, &mac)?;
            expect(on_link && is_known, Fault::Gateway(family));
            let node = self::routes(&mut self.node, family)?;
            let here = Some(leg.address);
            expect(
                node.iter().any(|route| leads(route, here, host_index, None)),
                Fault::NodeRoute(family),
            );
        }
        match &wiring.path {
            Path::Routed => {}
            Path::Bridged(bridge) => {
                let Ok(bridge_index) = index(&bridge.name) else {
                    return Ok(vec![Fault::Port, Fault::BridgeAddress(Family::V4)]);
                };
                let ports = links(&mut self.node, Some(bridge_index))?;
                expect(ports.iter().any(|port| port.header.index == host_index), Fault::Port);
                for (gateway, network) in bridge.addresses() {
                    let has = has_address(&mut self.node, bridge_index, gateway, network.length())?;
                    expect(has, Fault::BridgeAddress(network.family()));
                }
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
    address: IpAddr,
    length: u8,
) -> Result<bool, LinuxError> {
    let mut question = AddressMessage::default();
    question.header.family = wire::address_family(Family::of(address));
    let answers = socket.dump(&RouteNetlinkMessage::GetAddress(question))?;
    // The kernel names an address of IPv6 only once when it has no peer.
    let is_it = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(found) => *found == address,
        AddressAttribute::Address(found) => address.is_ipv6() && *found == address,
        _ => false,
    };
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewAddress(found) = answer else { return false };
        found.header.index == index
            && found.header.prefix_len == length
            && found.attributes.iter().any(is_it)
    }))
}

pub(super) fn routes(
    socket: &mut Netlink,
    family: Family,
) -> Result<Vec<RouteMessage>, LinuxError> {
    let mut question = RouteMessage::default();
    question.header.address_family = wire::address_family(family);
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
pub(super) fn host_route(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    let mut to = None;
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(host)) => to = Some(IpAddr::from(*host)),
            RouteAttribute::Destination(RouteAddress::Inet6(host)) => {
                to = Some(IpAddr::from(*host));
            }
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to = to?;
    (route.header.destination_prefix_length == Family::of(to).bits()).then_some((to, link?))
}

/// Whether `route` goes to `to` (everywhere when `None`) over `link` and `gateway`.
fn leads(route: &RouteMessage, to: Option<IpAddr>, link: u32, gateway: Option<IpAddr>) -> bool {
    let has = |wanted: &RouteAttribute| route.attributes.contains(wanted);
    let goes = match to {
        None => route.header.destination_prefix_length == 0,
        Some(host) => {
            route.header.destination_prefix_length == Family::of(host).bits()
                && has(&RouteAttribute::Destination(wire::route_address(host)))
        }
    };
    let over =
        gateway.is_none_or(|gateway| has(&RouteAttribute::Gateway(wire::route_address(gateway))));
    goes && over && has(&RouteAttribute::Oif(link))
}

fn has_neighbour(
    pod: &mut Netlink,
    index: u32,
    gateway: IpAddr,
    mac: &[u8],
) -> Result<bool, LinuxError> {
    let mut question = NeighbourMessage::default();
    question.header.family = wire::address_family(Family::of(gateway));
    let answers = pod.dump(&RouteNetlinkMessage::GetNeighbour(question))?;
    let address = NeighbourAttribute::Destination(wire::neighbour_address(gateway));
    let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewNeighbour(found) = answer else { return false };
        found.header.ifindex == index
            && found.header.state == NeighbourState::Permanent
            && found.attributes.contains(&address)
            && found.attributes.contains(&mac)
    }))
}

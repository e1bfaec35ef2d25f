//! Builders of rtnetlink messages: what a request says. Not here: sending them (see [`super::netlink`]).
//!
//! Everything that the fabric makes carries [`PROTOCOL`], so that it is told apart from what the
//! kernel, Kubernetes or a person made.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope,
    },
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use vnet::addr::{Family, Mac, Prefix};

/// The protocol number of the fabric's addresses, routes, rules and neighbours
/// (`rtm_protocol`; free in iproute2's `rt_protos`).
pub const PROTOCOL: u8 = 197;

/// One end of a veth pair that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name, up to 15 characters.
    pub name: &'a str,
    /// Its Ethernet address; `None` lets the kernel choose.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The namespace that it belongs in; `None` is that of the socket.
    pub namespace: Option<BorrowedFd<'a>>,
    /// Whether it is made up. The kernel refuses this for the peer (`ENOTCONN`).
    pub up: bool,
    /// Its interface group; 0 is the default one.
    pub group: u32,
}

/// Makes a veth pair. `peer` may be in another namespace than the socket's; `end` as well.
#[must_use]
pub fn new_veth(end: VethEnd<'_>, peer: VethEnd<'_>) -> RouteNetlinkMessage {
    let mut message = veth_end(end);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(veth_end(peer)))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

fn veth_end(end: VethEnd<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    if end.up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(end.mtu));
    if let Some(mac) = end.mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if let Some(namespace) = end.namespace {
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    }
    if end.group != 0 {
        message.attributes.push(LinkAttribute::Group(end.group));
    }
    message
}

/// Makes a bridge.
#[must_use]
pub fn new_bridge(name: &str, mac: Option<Mac>, mtu: u32) -> RouteNetlinkMessage {
    let end = VethEnd { name, mac, mtu, namespace: None, up: true, group: 0 };
    let mut message = veth_end(end);
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    RouteNetlinkMessage::NewLink(message)
}

/// A link message about a link by its index, for the `link_*` functions' own needs and others'.
#[must_use]
pub fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets a link up or down.
#[must_use]
pub fn link_up(index: u32, up: bool) -> RouteNetlinkMessage {
    let mut message = link(index);
    if up {
        message.header.flags = LinkFlags::Up;
    }
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

/// Sets attributes of a link: MTU, address, controller (bridge), group, name.
#[must_use]
pub fn link_set(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = link(index);
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// Deletes a link, and its peer if it is a veth. Takes 16 to 30 ms of the kernel's time.
#[must_use]
pub fn link_delete(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(link(index))
}

/// Deletes all links of a group at once, which takes about as long as deleting one.
#[must_use]
pub fn group_delete(group: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    RouteNetlinkMessage::DelLink(message)
}

/// Asks for a link by name.
#[must_use]
pub fn link_get(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

/// An address on a link: for `NewAddress` and `DelAddress`.
#[must_use]
pub fn address(index: u32, address: impl Into<IpAddr>, length: u8) -> AddressMessage {
    let address = address.into();
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.prefix_len = length;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Protocol(AddressProtocol::from(PROTOCOL)),
    ];
    if address.is_ipv6() {
        // Whoever gives addresses knows that nobody else has them, and nobody is on the link to be asked.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// A family as rtnetlink writes it.
#[must_use]
pub fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// An address as routes have it.
#[must_use]
pub fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// Adds an address to a link.
#[must_use]
pub fn new_address(index: u32, ip: impl Into<IpAddr>, length: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(address(index, ip, length))
}

/// Removes an address from a link.
#[must_use]
pub fn delete_address(index: u32, ip: impl Into<IpAddr>, length: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(address(index, ip, length))
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTo {
    /// To neighbours on a link.
    Link(u32),
    /// To a gateway on a link, which is believed to be there.
    Via(u32, IpAddr),
    /// To this machine itself, by way of a link.
    Local(u32),
    /// Nowhere, silently.
    Blackhole,
    /// Nowhere, with an ICMP error.
    Unreachable,
    /// On to the next rule.
    Throw,
}

/// A route: for `NewRoute` and `DelRoute`.
#[must_use]
pub fn route(table: u32, prefix: impl Into<Prefix>, to: RouteTo) -> RouteMessage {
    let prefix = prefix.into();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = address_family(prefix.family());
    header.destination_prefix_length = prefix.length();
    header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = RouteProtocol::from(PROTOCOL);
    (header.kind, header.scope) = match to {
        RouteTo::Link(_) => (RouteType::Unicast, RouteScope::Link),
        RouteTo::Via(..) => (RouteType::Unicast, RouteScope::Universe),
        RouteTo::Local(_) => (RouteType::Local, RouteScope::Host),
        RouteTo::Blackhole => (RouteType::BlackHole, RouteScope::Universe),
        RouteTo::Unreachable => (RouteType::Unreachable, RouteScope::Universe),
        RouteTo::Throw => (RouteType::Throw, RouteScope::Universe),
    };
    message.attributes.push(RouteAttribute::Table(table));
    if prefix.length() > 0 {
        let network = route_address(prefix.network());
        message.attributes.push(RouteAttribute::Destination(network));
    }
    match to {
        RouteTo::Link(index) | RouteTo::Local(index) => {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTo::Via(index, gateway) => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTo::Blackhole | RouteTo::Unreachable | RouteTo::Throw => {}
    }
    message
}

/// Adds or replaces a route.
#[must_use]
pub fn new_route(table: u32, prefix: impl Into<Prefix>, to: RouteTo) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(route(table, prefix, to))
}

/// Deletes a route.
#[must_use]
pub fn delete_route(table: u32, prefix: impl Into<Prefix>, to: RouteTo) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelRoute(route(table, prefix, to))
}

/// A permanent neighbour: for `NewNeighbour` and `DelNeighbour`.
#[must_use]
pub fn neighbour(index: u32, address: impl Into<IpAddr>, mac: Mac) -> NeighbourMessage {
    let address = address.into();
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour_address(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

/// An address as neighbours have it.
#[must_use]
pub fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

/// Adds or replaces a permanent neighbour.
#[must_use]
pub fn new_neighbour(index: u32, address: impl Into<IpAddr>, mac: Mac) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(neighbour(index, address, mac))
}

/// Deletes a neighbour.
#[must_use]
pub fn delete_neighbour(index: u32, address: impl Into<IpAddr>, mac: Mac) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(neighbour(index, address, mac))
}

/// What a rule looks at; what is `None` matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleMatch<'a> {
    /// Of which family packets are.
    pub family: Family,
    /// The packet's mark.
    pub mark: Option<u32>,
    /// The link that it came in on.
    pub iif: Option<&'a str>,
    /// Its source.
    pub from: Option<Prefix>,
    /// Its destination.
    pub to: Option<Prefix>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleThen {
    /// Looks into a table.
    Table(u32),
    /// Goes on at the rule of this priority.
    Goto(u32),
}

/// A rule: for `NewRule` and `DelRule`.
#[must_use]
pub fn rule(priority: u32, matches: RuleMatch<'_>, then: RuleThen) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(matches.family);
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    if let Some(mark) = matches.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    if let Some(iif) = matches.iif {
        message.attributes.push(RuleAttribute::Iifname(iif.to_owned()));
    }
    if let Some(from) = matches.from {
        message.header.src_len = from.length();
        message.attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(to) = matches.to {
        message.header.dst_len = to.length();
        message.attributes.push(RuleAttribute::Destination(to.network()));
    }
    match then {
        RuleThen::Table(table) => {
            message.header.action = RuleAction::ToTable;
            message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
            message.attributes.push(RuleAttribute::Table(table));
        }
        RuleThen::Goto(priority) => {
            message.header.action = RuleAction::Goto;
            message.attributes.push(RuleAttribute::Goto(priority));
        }
    }
    message
}

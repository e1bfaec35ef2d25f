//! Reads what a namespace looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressProtocol},
    link::{LinkAttribute, LinkFlags, LinkMessage, State},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use vnet::{
    addr::{Family, Mac, Prefix},
    host::state::{
        Address, IPV6_MARK, NamespaceState, Observed, ObservedLink, RouteKey, Rule, Target, Then,
    },
};

use super::{
    netlink::Netlink,
    sysctl,
    wire::{self, PROTOCOL},
};
use crate::{LinuxError, netns::Netns, nft};

/// Link names by number.
type Names = BTreeMap<u32, String>;

/// What `namespace` looks like now. Of settings and rule sets only those that `desired` speaks of are read.
pub fn observe(namespace: &Netns, desired: &NamespaceState) -> Result<Observed, LinuxError> {
    let mut netlink = Netlink::open_in(namespace)?;
    let mut observed = Observed { links: links(&mut netlink)?, ..Observed::default() };
    let names: Names =
        observed.links.iter().map(|(name, link)| (link.index, name.clone())).collect();
    for family in families(namespace, desired)? {
        observed.addresses.extend(addresses(&mut netlink, &names, *family)?);
        observed.routes.extend(routes(&mut netlink, &names, *family)?);
        observed.rules.extend(rules(&mut netlink, *family)?);
        observed.neighbours.extend(neighbours(&mut netlink, &names, *family)?);
    }
    observed.sysctls = sysctl::read(namespace, desired.sysctls.keys().map(String::as_str))?;
    if desired.nft.is_some() {
        observed.nft = nft::loaded(namespace)?;
    }
    Ok(observed)
}

/// The families of which there may be something of the fabric's. The kernel has IPv6 of its own on every link, and where
/// the fabric has none, nobody reads through that.
fn families(namespace: &Netns, desired: &NamespaceState) -> Result<&'static [Family], LinuxError> {
    let marked = || -> Result<bool, LinuxError> {
        let mark = sysctl::read(namespace, std::iter::once(IPV6_MARK))?;
        Ok(mark.get(IPV6_MARK).is_some_and(|value| value == "1"))
    };
    let has_ipv6 = desired.has_ipv6() || marked()?;
    Ok(if has_ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] })
}

/// The numbers of all links, by name.
pub fn link_indexes(netlink: &mut Netlink) -> Result<BTreeMap<String, u32>, LinuxError> {
    Ok(links(netlink)?.into_iter().map(|(name, link)| (name, link.index)).collect())
}

/// The number of one link; `None` when there is none of this name.
pub fn link_index(netlink: &mut Netlink, name: &str) -> Result<Option<u32>, LinuxError> {
    Ok(get_link(netlink, name)?.map(|message| message.header.index))
}

/// Whether a link is there and does not send yet.
pub(super) fn lacks_carrier(netlink: &mut Netlink, name: &str) -> Result<bool, LinuxError> {
    let up = LinkAttribute::OperState(State::Up);
    Ok(get_link(netlink, name)?.is_some_and(|message| !message.attributes.contains(&up)))
}

fn get_link(netlink: &mut Netlink, name: &str) -> Result<Option<LinkMessage>, LinuxError> {
    Ok(match netlink.get(&wire::link_get(name), || format!("link {name}"))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Some(message),
        _ => None,
    })
}

/// The names of links that do not send yet.
pub(super) fn links_without_carrier(netlink: &mut Netlink) -> Result<Vec<String>, LinuxError> {
    let answers = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut without = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        let sends = message.attributes.contains(&LinkAttribute::OperState(State::Up));
        let name = message.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        without.extend(name.filter(|_| !sends));
    }
    Ok(without)
}

fn links(netlink: &mut Netlink) -> Result<BTreeMap<String, ObservedLink>, LinuxError> {
    let answers = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut links = BTreeMap::new();
    for answer in answers {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        let mut name = None;
        let mut link = ObservedLink {
            index: message.header.index,
            peer: None,
            mac: Mac([0; 6]),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.try_into().map_or(Mac([0; 6]), Mac);
                }
                _ => {}
            }
        }
        links.extend(name.map(|name| (name, link)));
    }
    Ok(links)
}

fn addresses(
    netlink: &mut Netlink,
    names: &Names,
    family: Family,
) -> Result<BTreeSet<Address>, LinuxError> {
    let mut question = AddressMessage::default();
    question.header.family = wire::address_family(family);
    let answers = netlink.dump(&RouteNetlinkMessage::GetAddress(question))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(&message, names),
            _ => None,
        })
        .collect())
}

fn address(message: &AddressMessage, names: &Names) -> Option<Address> {
    let mut ours = false;
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Protocol(protocol) => {
                ours = *protocol == AddressProtocol::from(PROTOCOL);
            }
            AddressAttribute::Local(it) => local = Some(*it),
            AddressAttribute::Address(it) => address = Some(*it),
            _ => {}
        }
    }
    let link = names.get(&message.header.index)?.clone();
    // Of IPv6 addresses without a peer the kernel tells no local one.
    let address = local.or(address)?;
    ours.then_some(Address { link, address, length: message.header.prefix_len })
}

fn routes(
    netlink: &mut Netlink,
    names: &Names,
    family: Family,
) -> Result<BTreeMap<RouteKey, Target>, LinuxError> {
    let mut question = RouteMessage::default();
    question.header.address_family = wire::address_family(family);
    let answers = netlink.dump(&RouteNetlinkMessage::GetRoute(question))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => route(&message, names),
            _ => None,
        })
        .collect())
}

fn route(message: &RouteMessage, names: &Names) -> Option<(RouteKey, Target)> {
    if message.header.protocol != RouteProtocol::from(PROTOCOL) {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let family =
        if message.header.address_family == AddressFamily::Inet6 { Family::V6 } else { Family::V4 };
    let mut network = Prefix::everything(family).network();
    let mut link = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                network = (*address).into();
            }
            RouteAttribute::Oif(index) => link = names.get(index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                gateway = Some(IpAddr::from(*address));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                gateway = Some(IpAddr::from(*address));
            }
            _ => {}
        }
    }
    let target = match (message.header.kind, link, gateway) {
        (RouteType::Unicast, Some(link), Some(gateway)) => Target::Via(link.clone(), gateway),
        (RouteType::Unicast, Some(link), None) => Target::Link(link.clone()),
        (RouteType::Local, Some(link), _) => Target::Local(link.clone()),
        (RouteType::BlackHole, ..) => Target::Blackhole,
        (RouteType::Unreachable, ..) => Target::Unreachable,
        (RouteType::Throw, ..) => Target::Throw,
        _ => return None,
    };
    let length = message.header.destination_prefix_length.min(family.bits());
    let prefix = Prefix::containing(network, length);
    Some((RouteKey { table, prefix }, target))
}

fn rules(netlink: &mut Netlink, family: Family) -> Result<BTreeSet<Rule>, LinuxError> {
    let mut question = RuleMessage::default();
    question.header.family = wire::address_family(family);
    let answers = netlink.dump(&RouteNetlinkMessage::GetRule(question))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRule(message) => rule(&message, family),
            _ => None,
        })
        .collect())
}

fn rule(message: &RuleMessage, family: Family) -> Option<Rule> {
    let mut ours = false;
    let mut priority = 0;
    let mut table = u32::from(message.header.table);
    let mut goto = None;
    let (mut mark, mut iif, mut from) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::from(PROTOCOL);
            }
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(number) => goto = Some(*number),
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::Iifname(name) => iif = Some(name.clone()),
            RuleAttribute::Source(address) => {
                let length = message.header.src_len.min(Family::of(*address).bits());
                from = Some(Prefix::containing(*address, length));
            }
            _ => {}
        }
    }
    let then = match (message.header.action, goto) {
        (RuleAction::ToTable, _) => Then::Table(table),
        (RuleAction::Goto, Some(priority)) => Then::Goto(priority),
        _ => return None,
    };
    ours.then_some(Rule { priority, family, mark, iif, from, then })
}

fn neighbours(
    netlink: &mut Netlink,
    names: &Names,
    family: Family,
) -> Result<BTreeMap<(String, IpAddr), Mac>, LinuxError> {
    let mut question = NeighbourMessage::default();
    question.header.family = wire::address_family(family);
    let answers = netlink.dump(&RouteNetlinkMessage::GetNeighbour(question))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message, names),
            _ => None,
        })
        .collect())
}

fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<((String, IpAddr), Mac)> {
    let mut ours = false;
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::from(PROTOCOL);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => {
                address = Some(IpAddr::from(*it));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => {
                address = Some(IpAddr::from(*it));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    let link = names.get(&message.header.ifindex)?.clone();
    (ours && message.header.state == NeighbourState::Permanent).then_some(((link, address?), mac?))
}

/// The first address of each family in a namespace that is neither a loopback link's nor link-local: a pod's own.
pub fn addresses_of(namespace: &Netns) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), LinuxError> {
    use nix::{
        ifaddrs::getifaddrs,
        net::if_::InterfaceFlags,
        sys::socket::{SockaddrIn, SockaddrIn6},
    };
    let listed = namespace.run(|| {
        let mut found = (None, None);
        let all = getifaddrs()?.filter(|it| !it.flags.contains(InterfaceFlags::IFF_LOOPBACK));
        for address in all.filter_map(|it| it.address) {
            let six = address.as_sockaddr_in6().map(SockaddrIn6::ip);
            found.0 = found.0.or(address.as_sockaddr_in().map(SockaddrIn::ip));
            found.1 = found.1.or(six.filter(|address| !address.is_unicast_link_local()));
        }
        Ok(found)
    })?;
    listed.map_err(|source| LinuxError::Call {
        what: format!("listing addresses of `{}`", namespace.name()),
        source,
    })
}

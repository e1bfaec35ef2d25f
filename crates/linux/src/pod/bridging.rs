//! A node whose NIC and pods are ports of one bridge (see `vnet::pods::bridging`): the bridge takes over the
//! NIC's part, and each pod is an element or three of the table of frames.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};
use nix::errno::Errno;
use vnet::{
    addr::{Mac, Prefix4},
    pods::{
        bridging::{HERE, MACS, SENDERS},
        table::TABLE,
        wiring::Wiring,
    },
};

use super::{MAIN_TABLE, Wirer, index, is_gone};
use crate::{
    LinuxError,
    net::{Netlink, Request, wire},
    netfilter::elements::{Element, Nfnetlink, TableFamily},
};

/// What a bridge has taken over from a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Their Ethernet address.
    pub mac: Mac,
    /// The node's first address.
    pub address: Ipv4Addr,
    /// The network that it is in.
    pub network: Prefix4,
}

impl Wirer {
    /// Lets `bridge` be what `nic` was: it is made with the NIC's Ethernet address and MTU, the NIC becomes a
    /// port of it, and the NIC's addresses and routes of the main table move. Does nothing when it is so.
    ///
    /// Addresses are there twice for a moment and never missing, and keep who they are of; so what is connected
    /// stays connected, and whoever made them finds them.
    pub fn take_over(&mut self, nic: &str, bridge: &str) -> Result<Uplink, LinuxError> {
        let links = links(&mut self.node)?;
        let missing = || LinuxError::NoLink {
            link: nic.to_owned(),
            namespace: self.namespace.name().to_owned(),
        };
        let port =
            links.iter().find(|link| super::name_of(link) == Some(nic)).ok_or_else(missing)?;
        let mac = mac_of(port).ok_or_else(missing)?;
        let mtu = port.attributes.iter().find_map(|one| match one {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let new = wire::new_bridge(bridge, Some(mac), mtu.ok_or_else(missing)?);
        match self.node.send_all(&[Request::create(new, format!("add bridge {bridge}"))]) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => (),
            other => other?,
        }
        let (from, to) = (port.header.index, index(bridge)?);
        let mut requests =
            vec![Request::change(wire::link_up(to, true), format!("set {bridge} up"))];
        if !port.attributes.contains(&LinkAttribute::Controller(to)) {
            let port = wire::link_set(from, vec![LinkAttribute::Controller(to)]);
            requests.push(Request::change(port, format!("make {nic} a port of {bridge}")));
        }
        if !super::is_up(port) {
            requests.push(Request::change(wire::link_up(from, true), format!("set {nic} up")));
        }
        self.node.send_all(&requests)?;
        self.move_addresses(from, to)?;
        let address = addresses(&mut self.node, to)?.into_iter().find_map(|message| {
            let address = local(&message)?;
            Some((address, Prefix4::containing(address, message.header.prefix_len.min(32))))
        });
        let (address, network) = address.ok_or_else(|| LinuxError::Answer {
            text: format!("neither `{nic}` nor `{bridge}` has an address"),
        })?;
        Ok(Uplink { mac, address, network })
    }

    /// Addresses first, for routes need them; the old ones last.
    fn move_addresses(&mut self, from: u32, to: u32) -> Result<(), LinuxError> {
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for mut message in addresses(&mut self.node, from)? {
            let Some(address) = local(&message) else { continue };
            // The rest is the kernel's, and the label would be the NIC's name.
            message.attributes.retain(|one| {
                matches!(
                    one,
                    AddressAttribute::Local(_)
                        | AddressAttribute::Address(_)
                        | AddressAttribute::Broadcast(_)
                        | AddressAttribute::Protocol(_)
                )
            });
            let gone = RouteNetlinkMessage::DelAddress(message.clone());
            old.push(Request::change(gone, format!("delete address {address}")));
            message.header.index = to;
            let moved = RouteNetlinkMessage::NewAddress(message);
            new.push(Request::replace(moved, format!("move address {address}")));
        }
        for mut message in routes(&mut self.node, from)? {
            for attribute in &mut message.attributes {
                if let RouteAttribute::Oif(link) = attribute {
                    *link = to;
                }
            }
            message.attributes.retain(|one| !matches!(one, RouteAttribute::CacheInfo(_)));
            // Until the old address goes, the way to a gateway on the network has two ends.
            message.header.flags = netlink_packet_route::route::RouteFlags::Onlink;
            let moved = RouteNetlinkMessage::NewRoute(message);
            new.push(Request::replace(moved, "move a route".to_owned()));
        }
        self.node.send_all(&new)?;
        for outcome in self.node.send_batch(&old)? {
            match outcome {
                // Whoever made it was faster.
                Err(error) if is_gone(&error) || error.errno() == Some(Errno::EADDRNOTAVAIL) => (),
                other => other?,
            }
        }
        Ok(())
    }

    /// Lets a pod's frames pass: its own addresses from its port, and to it what is for its address.
    pub fn admit(&mut self, wiring: &Wiring) -> Result<(), LinuxError> {
        self.frames()?.add(TABLE, &elements(wiring))
    }

    /// The opposite. What is gone is fine.
    pub fn dismiss(&mut self, wiring: &Wiring) -> Result<(), LinuxError> {
        let frames = self.frames()?;
        for element in elements(wiring) {
            match frames.delete(TABLE, &[element]) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether a pod's frames pass.
    pub fn is_admitted(&mut self, wiring: &Wiring) -> Result<bool, LinuxError> {
        let frames = self.frames()?;
        for element in elements(wiring) {
            if !frames.has(TABLE, &element)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn frames(&mut self) -> Result<&mut Nfnetlink, LinuxError> {
        match &mut self.frames {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(Nfnetlink::open()?)),
        }
    }
}

/// As `vnet::pods::bridging` writes them in text. A field of a key is filled up to whole words.
fn elements(wiring: &Wiring) -> [Element; 3] {
    /// `IFNAMSIZ` (`linux/if.h`).
    const NAME: usize = 16;
    let mac = &wiring.pod_mac.0;
    let address = wiring.address.octets();
    let mut sender = wiring.host_link.clone().into_bytes();
    sender.resize(NAME, 0);
    sender.extend(mac);
    sender.extend([0, 0]);
    sender.extend(address);
    let element = |set: &str, key: Vec<u8>, value| Element {
        family: TableFamily::Bridge,
        set: set.to_owned(),
        key,
        value,
    };
    [
        element(MACS, address.to_vec(), Some(mac.to_vec())),
        element(SENDERS, sender, None),
        element(HERE, address.to_vec(), None),
    ]
}

fn links(socket: &mut Netlink) -> Result<Vec<LinkMessage>, LinuxError> {
    let answers = socket.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

fn mac_of(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|one| match one {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

fn addresses(socket: &mut Netlink, link: u32) -> Result<Vec<AddressMessage>, LinuxError> {
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    let answers = socket.dump(&RouteNetlinkMessage::GetAddress(question))?;
    let addresses = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(found) if found.header.index == link => Some(found),
        _ => None,
    });
    Ok(addresses.collect())
}

fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|one| match one {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// The routes through `link` that somebody has made; those of its addresses are the kernel's.
fn routes(socket: &mut Netlink, link: u32) -> Result<Vec<RouteMessage>, LinuxError> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let answers = socket.dump(&RouteNetlinkMessage::GetRoute(question))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    let through = routes.filter(|route| {
        route.header.protocol != RouteProtocol::Kernel
            && route.header.kind == RouteType::Unicast
            && u32::from(route.header.table) == MAIN_TABLE
            && route.attributes.contains(&RouteAttribute::Oif(link))
    });
    Ok(through.collect())
}

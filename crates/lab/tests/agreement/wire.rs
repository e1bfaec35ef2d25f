//! Raw packets: sent from a namespace, seen where they arrive.
//!
//! A probe is told from all other packets by its source port, or its ICMP identifier, which no other probe of the
//! same lab has, and by its payload.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use linux::netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    socket,
};
use vnet::policy::{Flow, Protocol};

/// What the payload of every probe begins with.
const MAGIC: [u8; 4] = *b"prob";

/// A packet that arrived somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    /// The probe's number.
    pub(crate) probe: u32,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
}

/// Sends the first packets of flows from a namespace, whatever sources they have.
pub(crate) fn send(from: &Netns, probes: &[(u32, Flow)]) {
    from.run(|| {
        let raw = |family| {
            socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
                .expect("a raw socket")
        };
        let (v4, v6) = (raw(AddressFamily::Inet), raw(AddressFamily::Inet6));
        for (number, flow) in probes {
            let packet = packet(*number, flow);
            let to = match flow.destination {
                IpAddr::V4(_) => SocketAddr::new(flow.destination, 0),
                IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, 0).into(),
            };
            let to = match to {
                SocketAddr::V4(to) => SockaddrStorage::from(to),
                SocketAddr::V6(to) => SockaddrStorage::from(to),
            };
            let raw = if flow.destination.is_ipv4() { &v4 } else { &v6 };
            // A route that leads nowhere in the sender's own namespace is a fate like any other.
            let _ = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty());
        }
    })
    .expect("the namespace can be entered");
}

/// IPv6's own protocol for echo requests and errors.
pub(crate) const ICMP6: Protocol = Protocol::Other(58);

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn packet(number: u32, flow: &Flow) -> Vec<u8> {
    let mut payload = MAGIC.to_vec();
    payload.extend(number.to_be_bytes());
    let (protocol, body) = match flow.protocol {
        Protocol::Tcp => (6, tcp(number, flow)),
        Protocol::Udp => (17, udp(flow, &payload)),
        Protocol::Icmp => (1, icmp(flow.source_port, &payload)),
        ICMP6 => (58, icmp6(flow, &payload)),
        Protocol::Esp => (50, payload.clone()),
        Protocol::Ah => (51, payload.clone()),
        Protocol::Other(other) => (other, payload.clone()),
    };
    if flow.source.is_ipv6() {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(body.len()).expect("a small packet").to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(octets(flow.source));
        packet.extend(octets(flow.destination));
        packet.extend(body);
        return packet;
    }
    let length = u16::try_from(20 + body.len()).expect("a small packet");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(octets(flow.source));
    packet.extend(octets(flow.destination));
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// A SYN whose sequence number is the probe's.
fn tcp(number: u32, flow: &Flow) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(flow.source_port.to_be_bytes());
    body.extend(flow.destination_port.to_be_bytes());
    body.extend(number.to_be_bytes());
    body.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    with_checksum(flow, 6, body, 16)
}

fn udp(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(flow.source_port.to_be_bytes());
    body.extend(flow.destination_port.to_be_bytes());
    body.extend(u16::try_from(8 + payload.len()).expect("small").to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    with_checksum(flow, 17, body, 6)
}

/// An echo request.
fn icmp(identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![8, 0, 0, 0];
    body.extend(identifier.to_be_bytes());
    body.extend([0, 1]);
    body.extend(payload);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// The same for IPv6.
fn icmp6(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![128, 0, 0, 0];
    body.extend(flow.source_port.to_be_bytes());
    body.extend([0, 1]);
    body.extend(payload);
    with_checksum(flow, 58, body, 2)
}

fn with_checksum(flow: &Flow, protocol: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    // The order of length and protocol differs between the families, and makes no difference to a sum.
    let mut pseudo = octets(flow.source);
    pseudo.extend(octets(flow.destination));
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(body.len()).expect("small").to_be_bytes());
    pseudo.extend(&body);
    let sum = checksum(&pseudo);
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// Listens to everything that arrives in a namespace.
pub(crate) struct Ear {
    sockets: [OwnedFd; 2],
}

impl Ear {
    pub(crate) fn new(at: &Netns) -> Self {
        let listen = |protocol| {
            let (family, kind) = (AddressFamily::Packet, SockType::Datagram);
            let socket = at
                .run(|| {
                    socket(family, kind, SockFlag::SOCK_NONBLOCK, protocol)
                        .expect("a packet socket")
                })
                .expect("the namespace can be entered");
            let buffer = nix::sys::socket::sockopt::RcvBufForce;
            nix::sys::socket::setsockopt(&socket, buffer, &(8 << 20)).expect("a large buffer");
            socket
        };
        Self { sockets: [SockProtocol::EthIp, SockProtocol::EthIpv6].map(listen) }
    }

    /// The probes that arrived since the last time, in order.
    pub(crate) fn hear(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        for socket in &self.sockets {
            while let Ok(n) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                seen.extend(read(&buffer[..n]));
            }
        }
        seen
    }
}

/// Until what was sent has arrived.
pub(crate) fn wait() {
    std::thread::sleep(Duration::from_millis(150));
}

/// A probe's packet: not an answer to one, which a TCP reset or an echo reply is.
fn read(packet: &[u8]) -> Option<Seen> {
    let is_v4 = packet.first()? >> 4 == 4;
    let address = |at: usize| -> Option<IpAddr> {
        if is_v4 {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            return Some(octets.into());
        }
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(octets.into())
    };
    let (header, protocol, addresses) = if is_v4 { (20, 9, [12, 16]) } else { (40, 6, [8, 24]) };
    let short =
        |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long =
        |bytes: &[u8], at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let body = packet.get(header..)?;
    let marked = |payload: &[u8]| (payload.get(..4)? == MAGIC).then(|| long(payload, 4)).flatten();
    let (probe, destination_port) = match packet.get(protocol)? {
        6 if *body.get(13)? == 0x02 => (long(body, 4)?, short(body, 2)?),
        17 => (marked(body.get(8..)?)?, short(body, 2)?),
        1 if *body.first()? == 8 => (marked(body.get(8..)?)?, 0),
        58 if *body.first()? == 128 => (marked(body.get(8..)?)?, 0),
        6 | 1 | 58 => return None,
        _ => (marked(body)?, 0),
    };
    let [source, destination] = addresses;
    let (source, destination) = (address(source)?, address(destination)?);
    Some(Seen { probe, source, destination, destination_port })
}

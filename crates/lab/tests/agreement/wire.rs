//! Raw packets: sent from a namespace, seen where they arrive.
//!
//! A probe is told from all other packets by its source port, or its ICMP identifier, which no other probe of the
//! same lab has, and by its payload.

use std::{net::Ipv4Addr, os::fd::AsRawFd, time::Duration};

use linux::netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use vnet::policy::{Flow, Protocol};

/// What the payload of every probe begins with.
const MAGIC: [u8; 4] = *b"prob";

/// A packet that arrived somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    /// The probe's number.
    pub(crate) probe: u32,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) destination_port: u16,
}

/// Sends the first packets of flows from a namespace, whatever sources they have.
pub(crate) fn send(from: &Netns, probes: &[(u32, Flow)]) {
    from.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
            .expect("a raw socket");
        for (number, flow) in probes {
            let packet = packet(*number, flow);
            let to = SockaddrIn::from(std::net::SocketAddrV4::new(flow.destination, 0));
            // A route that leads nowhere in the sender's own namespace is a fate like any other.
            let _ = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty());
        }
    })
    .expect("the namespace can be entered");
}

fn packet(number: u32, flow: &Flow) -> Vec<u8> {
    let mut payload = MAGIC.to_vec();
    payload.extend(number.to_be_bytes());
    let (protocol, body) = match flow.protocol {
        Protocol::Tcp => (6, tcp(number, flow)),
        Protocol::Udp => (17, udp(flow, &payload)),
        Protocol::Icmp => (1, icmp(flow.source_port, &payload)),
        Protocol::Esp => (50, payload.clone()),
        Protocol::Ah => (51, payload.clone()),
        Protocol::Other(other) => (other, payload.clone()),
    };
    let length = u16::try_from(20 + body.len()).expect("a small packet");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(flow.source.octets());
    packet.extend(flow.destination.octets());
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

fn with_checksum(flow: &Flow, protocol: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let mut pseudo = flow.source.octets().to_vec();
    pseudo.extend(flow.destination.octets());
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
    socket: std::os::fd::OwnedFd,
}

impl Ear {
    pub(crate) fn new(at: &Netns) -> Self {
        let socket = at
            .run(|| {
                socket(
                    AddressFamily::Packet,
                    SockType::Datagram,
                    SockFlag::SOCK_NONBLOCK,
                    SockProtocol::EthIp,
                )
                .expect("a packet socket")
            })
            .expect("the namespace can be entered");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))
            .expect("a large buffer");
        Self { socket }
    }

    /// The probes that arrived since the last time, in order.
    pub(crate) fn hear(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(n) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            seen.extend(read(&buffer[..n]));
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
    let address = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let short =
        |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long =
        |bytes: &[u8], at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let body = packet.get(20..)?;
    let marked = |payload: &[u8]| (payload.get(..4)? == MAGIC).then(|| long(payload, 4)).flatten();
    let (probe, destination_port) = match packet.get(9)? {
        6 if *body.get(13)? == 0x02 => (long(body, 4)?, short(body, 2)?),
        17 => (marked(body.get(8..)?)?, short(body, 2)?),
        1 if *body.first()? == 8 => (marked(body.get(8..)?)?, 0),
        6 | 1 => return None,
        _ => (marked(body)?, 0),
    };
    Some(Seen { probe, source: address(12)?, destination: address(16)?, destination_port })
}

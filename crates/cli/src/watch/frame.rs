//! A frame's bytes, understood as far as people ask: who to whom, with which protocol. What is cut short or
//! malformed is understood less, never wrongly.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// An ARP question or answer.
    Arp { is_answer: bool, sender: Ipv4Addr, target: Ipv4Addr },
    /// An IP packet.
    Ip(Packet),
    /// Something else, by its Ethernet type.
    Other(u16),
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// IP's number of the protocol inside.
    pub(crate) protocol: u8,
    /// Six bits.
    pub(crate) dscp: u8,
    /// IPv4's identification; with IPv6 the end of the flow label, which the kernel changes where it sends a TCP packet
    /// again.
    pub(crate) id: u16,
    pub(crate) ttl: u8,
    pub(crate) inside: Inside,
    /// How many bytes the protocol inside carries.
    pub(crate) payload: usize,
}

/// What is in an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
        id: u16,
        about: Option<Box<Packet>>,
    },
    /// Without ports: another protocol, a fragment, or too short.
    Other,
}

/// A TCP packet's flags.
pub(crate) mod flags {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;
}

/// From an Ethernet header on; `None` when even that is cut short.
pub(crate) fn decode(frame: &[u8]) -> Option<Decoded> {
    let kind = u16_at(frame, 12)?;
    let rest = frame.get(14..)?;
    Some(match kind {
        0x0806 => arp(rest).unwrap_or(Decoded::Other(kind)),
        0x0800 | 0x86dd => packet(rest).map_or(Decoded::Other(kind), Decoded::Ip),
        kind => Decoded::Other(kind),
    })
}

fn arp(bytes: &[u8]) -> Option<Decoded> {
    let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let (sender, target) = (address(14)?, address(24)?);
    Some(Decoded::Arp { is_answer: u16_at(bytes, 6)? == 2, sender, target })
}

/// From an IP header on.
pub(crate) fn packet(bytes: &[u8]) -> Option<Packet> {
    match bytes.first()? >> 4 {
        4 => ipv4(bytes),
        6 => ipv6(bytes),
        _ => None,
    }
}

fn ipv4(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let length = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16_at(bytes, 2)?);
    let is_later_fragment = u16_at(bytes, 6)? & 0x1fff != 0;
    let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let protocol = header[9];
    let body = bytes.get(length.max(20)..).unwrap_or_default();
    let inside = if is_later_fragment { Inside::Other } else { inside(protocol, body) };
    Some(Packet {
        source: address(12)?.into(),
        destination: address(16)?.into(),
        protocol,
        dscp: header[1] >> 2,
        id: u16_at(bytes, 4)?,
        ttl: header[8],
        payload: total.saturating_sub(length).saturating_sub(header_length(&inside, body)),
        inside,
    })
}

/// Extension headers are not followed: such a packet has no ports here.
fn ipv6(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 40] = bytes.first_chunk()?;
    let address = |at: usize| Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?));
    let body = bytes.get(40..).unwrap_or_default();
    let inside = inside(header[6], body);
    Some(Packet {
        source: address(8)?.into(),
        destination: address(24)?.into(),
        protocol: header[6],
        dscp: u8::try_from((u16_at(bytes, 0)? >> 6) & 0x3f).unwrap_or_default(),
        id: u16_at(bytes, 2)?,
        ttl: header[7],
        payload: usize::from(u16_at(bytes, 4)?).saturating_sub(header_length(&inside, body)),
        inside,
    })
}

fn inside(protocol: u8, body: &[u8]) -> Inside {
    let ports = || Some((u16_at(body, 0)?, u16_at(body, 2)?));
    match protocol {
        TCP => ports()
            .zip(body.get(13).copied())
            .map(|((source, destination), flags)| Inside::Tcp { source, destination, flags }),
        UDP => ports().map(|(source, destination)| Inside::Udp { source, destination }),
        ICMP | ICMPV6 => body.first().zip(body.get(1)).map(|(&kind, &code)| {
            let quotes = match protocol {
                ICMP => matches!(kind, 3 | 5 | 11 | 12),
                _ => kind < 128,
            };
            let about = if quotes { body.get(8..).and_then(packet).map(Box::new) } else { None };
            Inside::Icmp { kind, code, id: u16_at(body, 4).unwrap_or_default(), about }
        }),
        _ => None,
    }
    .unwrap_or(Inside::Other)
}

fn header_length(inside: &Inside, body: &[u8]) -> usize {
    match inside {
        Inside::Tcp { .. } => body.get(12).map_or(20, |length| usize::from(length >> 4) * 4),
        Inside::Udp { .. } | Inside::Icmp { .. } => 8,
        Inside::Other => 0,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

impl Packet {
    /// The ports of sender and receiver, where the protocol has ports.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        match self.inside {
            Inside::Tcp { source, destination, .. } | Inside::Udp { source, destination } => {
                Some((source, destination))
            }
            Inside::Icmp { .. } | Inside::Other => None,
        }
    }

    /// `10.0.0.4:40000 > 10.0.1.4:80`, without ports where there are none.
    pub(crate) fn ends(&self) -> String {
        match self.ports() {
            Some((source, destination)) => format!(
                "{} > {}",
                std::net::SocketAddr::new(self.source, source),
                std::net::SocketAddr::new(self.destination, destination)
            ),
            None => format!("{} > {}", self.source, self.destination),
        }
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arp { is_answer: false, sender, target } => {
                write!(f, "arp who has {target}, tell {sender}")
            }
            Self::Arp { is_answer: true, sender, .. } => write!(f, "arp {sender} is here"),
            Self::Ip(packet) => packet.fmt(f),
            Self::Other(kind) => write!(f, "ethernet type {kind:#06x}"),
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = self.ends();
        match &self.inside {
            Inside::Tcp { flags, .. } => {
                write!(f, "tcp {ends} [{}] {} bytes", flag_names(*flags), self.payload)
            }
            Inside::Udp { .. } => write!(f, "udp {ends} {} bytes", self.payload),
            Inside::Icmp { kind, code, about, .. } => {
                let name = match (self.protocol, kind, code) {
                    (ICMP, 8, _) | (ICMPV6, 128, _) => "echo request".to_owned(),
                    (ICMP, 0, _) | (ICMPV6, 129, _) => "echo reply".to_owned(),
                    (ICMP, 3, 0) => "network unreachable".to_owned(),
                    (ICMP, 3, 1) => "host unreachable".to_owned(),
                    (ICMP, 3, 3) | (ICMPV6, 1, 4) => "port unreachable".to_owned(),
                    (ICMP, 3, 4) | (ICMPV6, 2, _) => "packet too big".to_owned(),
                    (ICMP, 3, 9 | 10 | 13) | (ICMPV6, 1, 1) => "prohibited".to_owned(),
                    (ICMP, 11, _) | (ICMPV6, 3, _) => "time exceeded".to_owned(),
                    (_, kind, code) => format!("type {kind} code {code}"),
                };
                write!(f, "icmp {ends} {name}")?;
                about.as_ref().map_or(Ok(()), |about| write!(f, " about {}", about.ends()))
            }
            Inside::Other => write!(f, "ip protocol {} {ends}", self.protocol),
        }
    }
}

fn flag_names(flags: u8) -> String {
    let all = [
        (flags::SYN, "syn"),
        (flags::FIN, "fin"),
        (flags::RST, "rst"),
        (flags::PSH, "psh"),
        (flags::ACK, "ack"),
    ];
    let names: Vec<&str> =
        all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    names.join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame with a TCP packet.
    pub(crate) fn tcp(
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: u8,
        body: &[u8],
    ) -> Vec<u8> {
        let length = u16::try_from(40 + body.len()).expect("a short body");
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 45 << 2]);
        frame.extend(length.to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, TCP, 0, 0]);
        frame.extend(from.0.octets());
        frame.extend(to.0.octets());
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        frame.extend(body);
        frame
    }

    const A: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 4), 40_000);
    const B: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 4), 80);

    fn text(frame: &[u8]) -> String {
        decode(frame).map_or_else(|| "nothing".to_owned(), |decoded| decoded.to_string())
    }

    #[test]
    fn packets_read_as_people_say_them() {
        let frame = tcp(A, B, flags::SYN, b"");
        assert_eq!(text(&frame), "tcp 10.0.0.4:40000 > 10.0.1.4:80 [syn] 0 bytes");
        let frame = tcp(B, A, flags::PSH | flags::ACK, b"hello");
        assert_eq!(text(&frame), "tcp 10.0.1.4:80 > 10.0.0.4:40000 [psh ack] 5 bytes");
        let Some(Decoded::Ip(packet)) = decode(&frame) else { panic!("an IP packet") };
        assert_eq!((packet.dscp, packet.id, packet.ttl), (45, 0x1234, 64));

        let mut icmp = vec![0; 12];
        icmp.extend([8, 0, 0x45, 0, 0, 56, 0, 0, 0, 0, 64, ICMP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 4]);
        icmp.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        icmp.extend(&tcp(A, B, flags::SYN, b"")[14..42]);
        // Only eight bytes of what it is about: ports, and no flags.
        assert_eq!(
            text(&icmp),
            "icmp 10.0.0.1 > 10.0.0.4 port unreachable about 10.0.0.4 > 10.0.1.4"
        );
    }

    #[test]
    fn what_is_cut_short_is_understood_less_and_never_panics() {
        let whole = tcp(A, B, flags::SYN, b"hello");
        for length in 0..whole.len() {
            let _ = text(&whole[..length]);
        }
        assert_eq!(text(&whole[..13]), "nothing");
        assert_eq!(text(&whole[..20]), "ethernet type 0x0800");
        assert_eq!(text(&whole[..36]), "ip protocol 6 10.0.0.4 > 10.0.1.4");
        let mut odd = whole.clone();
        for byte in 0..=u8::MAX {
            odd[14] = byte;
            let _ = text(&odd);
        }
    }
}

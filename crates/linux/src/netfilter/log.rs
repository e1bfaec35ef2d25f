//! Packets that a rule with `log group` has seen.
//!
//! Source: `linux/netfilter/nfnetlink_log.h`.

use std::{net::IpAddr, time::Duration};

use super::{
    channel::{Channel, Heard},
    conntrack::Tuple,
    wire::{Attributes, find, find_u32},
};
use crate::{LinuxError, netns::Netns};

const SUBSYSTEM: u8 = 4;
const PACKET: u8 = 0;
const CONFIG: u8 = 1;
/// How much of each packet is copied: an IPv4 header with options, or one of IPv6, and ports.
const SNAPLEN: u32 = 64;

/// A packet that was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What the rule says beside it (`prefix`).
    pub prefix: String,
    /// The number of the link that it came in on, 0 for none.
    pub from_link: u32,
    /// The number of the link that it was to leave by, 0 for none.
    pub to_link: u32,
    /// Whose it is.
    pub tuple: Tuple,
}

/// Hears what rules of one namespace log to a group.
pub struct Listener(Channel);

impl Listener {
    /// From now on. A group has one listener; the kernel refuses a second one (`EBUSY`).
    pub fn open_in(namespace: &Netns, group: u16) -> Result<Self, LinuxError> {
        let channel = Channel::open_in(namespace)?;
        // The family, the version, and the group in network order (`struct nfgenmsg`).
        let [high, low] = group.to_be_bytes();
        let ask = |attributes: Attributes, what: &str| {
            let mut body = vec![0, 0, high, low];
            body.extend(attributes.as_bytes());
            channel.ask([CONFIG, SUBSYSTEM], &body, &format!("{what} log group {group}"))
        };
        // `NFULA_CFG_CMD` with `NFULNL_CFG_CMD_BIND`.
        ask(Attributes::default().bytes(1, &[1]), "hear")?;
        // `NFULA_CFG_MODE` with `NFULNL_COPY_PACKET`; `NFULA_CFG_TIMEOUT`, in hundredths of a second: how long the
        // kernel gathers packets.
        let [a, b, c, d] = SNAPLEN.to_be_bytes();
        let mode = Attributes::default().bytes(2, &[a, b, c, d, 2, 0]).number(4, 10);
        ask(mode, "set the mode of")?;
        Ok(Self(channel))
    }

    /// What was logged, after waiting at most this long for something.
    pub fn hear(&self, patience: Duration) -> Result<Vec<Logged>, LinuxError> {
        Ok(match self.0.hear("hear of packets", patience)? {
            Heard::Silence | Heard::Lost => Vec::new(),
            Heard::Messages(told) | Heard::End(told) => told
                .iter()
                .filter(|(subsystem, kind, _)| (*subsystem, *kind) == (SUBSYSTEM, PACKET))
                .filter_map(|(_, _, attributes)| logged(attributes))
                .collect(),
        })
    }
}

fn logged(attributes: &[u8]) -> Option<Logged> {
    let link = |kind| find_u32(attributes, kind).unwrap_or_default();
    // `NFULA_PREFIX`, `NFULA_IFINDEX_INDEV`, `_OUTDEV`, `NFULA_PAYLOAD`.
    let prefix = String::from_utf8_lossy(find(attributes, 10)?);
    Some(Logged {
        prefix: prefix.trim_end_matches('\0').trim().to_owned(),
        from_link: link(4),
        to_link: link(5),
        tuple: packet(find(attributes, 9)?)?,
    })
}

/// Whose a packet is. Extension headers of IPv6 are not followed: behind them are no ports.
fn packet(bytes: &[u8]) -> Option<Tuple> {
    let first = *bytes.first()?;
    let four = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let six = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<16>()?));
    let (source, destination, protocol, length) = match first >> 4 {
        4 => (four(12)?, four(16)?, *bytes.get(9)?, usize::from(first & 15) * 4),
        6 => (six(8)?, six(24)?, *bytes.get(6)?, 40),
        _ => return None,
    };
    let above = bytes.get(length..).unwrap_or_default();
    let ports = match (protocol, above) {
        (6 | 17, [a, b, c, d, ..]) => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        _ => (0, 0),
    };
    Some(Tuple { source, destination, protocol, source_port: ports.0, destination_port: ports.1 })
}

#[cfg(test)]
mod tests {
    use super::packet;

    #[test]
    fn a_packet_that_is_cut_short_is_nobodys() {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 1, 1, 4, 10, 1, 1, 5];
        bytes.extend([0x9c, 0x40, 0, 80]);
        let tuple = packet(&bytes).expect("a packet");
        assert_eq!((tuple.source.to_string(), tuple.source_port), ("10.1.1.4".to_owned(), 40_000));
        assert_eq!(
            (tuple.destination.to_string(), tuple.destination_port),
            ("10.1.1.5".to_owned(), 80)
        );
        // A later fragment, or too little of it: addresses alone.
        assert_eq!(packet(&bytes[..22]).map(|it| it.source_port), Some(0));
        for length in 0..20 {
            assert_eq!(packet(&bytes[..length]), None, "{length}");
        }
        // Called IPv6, it is too short for that.
        bytes[0] = 0x65;
        assert_eq!(packet(&bytes), None);
        bytes[0] = 0x75;
        assert_eq!(packet(&bytes), None);
    }

    #[test]
    fn a_packet_of_ipv6_has_ports_unless_something_is_before_them() {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
        bytes.extend("fd00::4".parse::<std::net::Ipv6Addr>().expect("an address").octets());
        bytes.extend("fd00::5".parse::<std::net::Ipv6Addr>().expect("an address").octets());
        bytes.extend([0x9c, 0x40, 0, 53]);
        let tuple = packet(&bytes).expect("a packet");
        assert_eq!((tuple.source.to_string(), tuple.source_port), ("fd00::4".to_owned(), 40_000));
        assert_eq!(
            (tuple.destination.to_string(), tuple.destination_port),
            ("fd00::5".to_owned(), 53)
        );
        for length in 0..40 {
            assert_eq!(packet(&bytes[..length]), None, "{length}");
        }
        // A fragment header.
        bytes[6] = 44;
        assert_eq!(packet(&bytes).map(|it| it.destination_port), Some(0));
    }
}

//! Connections as the kernel tracks them: as they begin, end, and how much went each way.
//!
//! Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::{net::IpAddr, time::Duration};

use super::{
    channel::{Channel, Heard, Message},
    wire::{find, find_u32, find_u64},
};
use crate::{LinuxError, netns::Netns};

const SUBSYSTEM: u8 = 1;
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
/// `NFNLGRP_CONNTRACK_NEW` and `NFNLGRP_CONNTRACK_DESTROY`.
const GROUPS: [u32; 2] = [1, 3];

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const MARK: u16 = 8;
const COUNTERS_ORIGINAL: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One direction of a connection, as its packets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IANA's number.
    pub protocol: u8,
    /// 0 where the protocol has no ports.
    pub source_port: u16,
    /// 0 where the protocol has no ports.
    pub destination_port: u16,
}

/// Packets and bytes (of whole IP packets) in one direction since the connection began. All 0 unless the
/// namespace counts (`net.netfilter.nf_conntrack_acct`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's number for it: unique while it lives.
    pub id: u32,
    /// What whoever began it sends.
    pub original: Tuple,
    /// What the other side answers; where it is no mirror image, addresses are translated.
    pub reply: Tuple,
    /// Its mark, 0 for none.
    pub mark: u32,
    /// Its zone, 0 for none.
    pub zone: u16,
    /// Sent by whoever began it.
    pub sent: Counters,
    /// Sent by the other side.
    pub received: Counters,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It began: its first packet passed all rules.
    Began(Connection),
    /// It ended.
    Ended(Connection),
    /// Some events did not fit and are lost.
    Lost,
}

/// Hears of one namespace's connections.
pub struct Listener(Channel);

impl Listener {
    /// From now on.
    pub fn open_in(namespace: &Netns) -> Result<Self, LinuxError> {
        let channel = Channel::open_in(namespace)?;
        for group in GROUPS {
            channel.join(group)?;
        }
        Ok(Self(channel))
    }

    /// What has happened, after waiting at most this long for something to happen.
    pub fn hear(&self, patience: Duration) -> Result<Vec<Event>, LinuxError> {
        Ok(match self.0.hear("hear of connections", patience)? {
            Heard::Silence => Vec::new(),
            Heard::Lost => vec![Event::Lost],
            Heard::Messages(told) | Heard::End(told) => told.iter().filter_map(event).collect(),
        })
    }
}

/// Every connection that a namespace tracks.
pub fn list(namespace: &Netns) -> Result<Vec<Connection>, LinuxError> {
    let channel = Channel::open_in(namespace)?;
    // The family is all that is asked (`struct nfgenmsg`); `NFPROTO_UNSPEC` is every one.
    let listed = channel.list([GET, SUBSYSTEM], &[0, 0, 0, 0], "list connections")?;
    Ok(listed.iter().filter_map(|(_, _, attributes)| connection(attributes)).collect())
}

fn event((subsystem, kind, attributes): &Message) -> Option<Event> {
    let connection = connection(attributes).filter(|_| *subsystem == SUBSYSTEM)?;
    match *kind {
        NEW => Some(Event::Began(connection)),
        DELETE => Some(Event::Ended(connection)),
        _ => None,
    }
}

fn connection(attributes: &[u8]) -> Option<Connection> {
    let counters = |kind| {
        find(attributes, kind).map_or_else(Counters::default, |bytes| Counters {
            packets: find_u64(bytes, 1).unwrap_or_default(),
            bytes: find_u64(bytes, 2).unwrap_or_default(),
        })
    };
    Some(Connection {
        id: find_u32(attributes, ID)?,
        original: tuple(find(attributes, TUPLE_ORIGINAL)?)?,
        reply: tuple(find(attributes, TUPLE_REPLY)?)?,
        mark: find_u32(attributes, MARK).unwrap_or_default(),
        zone: find_u16(attributes, ZONE).unwrap_or_default(),
        sent: counters(COUNTERS_ORIGINAL),
        received: counters(COUNTERS_REPLY),
    })
}

fn find_u16(attributes: &[u8], kind: u16) -> Option<u16> {
    find(attributes, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// `CTA_TUPLE_IP` with `CTA_IP_V4_SRC` and `_DST`, or `CTA_IP_V6_SRC` and `_DST`; `CTA_TUPLE_PROTO` with `CTA_PROTO_NUM`, `_SRC_PORT`, `_DST_PORT`.
fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
    let address = |four, six| {
        let four = find(ip, four).and_then(|bytes| bytes.first_chunk::<4>());
        let six = || find(ip, six).and_then(|bytes| bytes.first_chunk::<16>());
        four.map(|bytes| IpAddr::from(*bytes)).or_else(|| six().map(|bytes| IpAddr::from(*bytes)))
    };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *find(protocol, 1)?.first()?,
        source_port: find_u16(protocol, 2).unwrap_or_default(),
        destination_port: find_u16(protocol, 3).unwrap_or_default(),
    })
}

//! The way of single packets through a namespace's rules, as `nft monitor trace` tells it. Not here: which
//! packets.
//!
//! The rule that marks packets is in a table that the socket owns (`NFT_TABLE_F_OWNER`): the kernel removes
//! it when the socket closes, also when its process was killed.

use std::os::fd::{AsRawFd, RawFd};

use vnet::addr::Family;

use super::{
    rules::Verdict,
    wire::{
        APPEND, Attributes, CREATE, Incoming, Message, Nfnetlink, find, find_text, find_u32,
        find_u64,
    },
};
use crate::{LinuxError, netns::Netns};

const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const TRACE: u16 = 17;
/// `NFNLGRP_NFTRACE`.
const TRACE_GROUP: u32 = 9;
/// Before everything else, raw tables included.
const PRIORITY: i32 = -350;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;

/// What became of a packet at a rule, or at a chain's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A rule matched and said this.
    Rule {
        /// The rule's number in its table.
        handle: u64,
        /// What it said.
        verdict: Verdict,
    },
    /// The chain's end was reached, and the chain that came here goes on.
    Return,
    /// The chain's end was reached, and its policy said this.
    Policy(Verdict),
}

/// One station of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The same for all stations of one packet in one namespace; may be used again.
    pub packet: u32,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What happened.
    pub fate: Fate,
    /// The packet from its IP header on (at least both headers), told once for each hook.
    pub headers: Option<Vec<u8>>,
    /// The number of the link that it came in on.
    pub link_in: Option<u32>,
    /// The number of the link that it goes out on.
    pub link_out: Option<u32>,
}

/// Follows the packets of one family, in one namespace, whose DSCP is a given one.
pub struct Tracer {
    socket: Nfnetlink,
    table: String,
}

impl Tracer {
    /// Begins. `table` is the name of the table that it makes; `dscp` has six bits, `protocol` is IP's.
    pub fn open(
        namespace: &Netns,
        table: &str,
        family: Family,
        dscp: u8,
        protocol: u8,
    ) -> Result<Self, LinuxError> {
        let socket = Nfnetlink::open_in(namespace)?;
        socket.join(TRACE_GROUP)?;
        let mut messages = vec![Message {
            family,
            kind: NEW_TABLE,
            flags: CREATE,
            // NFT_TABLE_F_OWNER.
            body: Attributes::default().text(1, table).number(2, 2),
        }];
        for (chain, hook) in [("incoming", PREROUTING), ("outgoing", OUTPUT)] {
            messages.push(new_chain(table, family, chain, hook));
            messages.push(new_rule(table, family, chain, dscp, protocol));
        }
        let what = format!("make table {table} in `{}`", namespace.name());
        socket.transaction(&messages, &what)?;
        Ok(Self { socket, table: table.to_owned() })
    }

    /// The name of the table that marks the packets: its events are where a packet enters a namespace.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What has happened since the last call, in order. Does not wait.
    pub fn events(&self) -> Result<Vec<Event>, LinuxError> {
        let mut events = Vec::new();
        loop {
            let incoming = self.socket.receive(false)?;
            if incoming.is_empty() {
                return Ok(events);
            }
            events.extend(incoming.iter().filter_map(|message| match message {
                Incoming::Message(TRACE, body) => parse(body),
                _ => None,
            }));
        }
    }
}

impl AsRawFd for Tracer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn new_chain(table: &str, family: Family, name: &str, hook: u32) -> Message {
    let place = Attributes::default().number(1, hook).number(2, PRIORITY.cast_unsigned());
    let body = Attributes::default()
        .text(1, table)
        .text(3, name)
        .list(4, &place)
        // NF_ACCEPT.
        .number(5, 1)
        .text(7, "filter");
    Message { kind: NEW_CHAIN, flags: CREATE, family, body }
}

/// `ip dscp DSCP ip protocol PROTOCOL meta nftrace set 1`, or the same of IPv6, where the next header is the protocol.
fn new_rule(table: &str, family: Family, chain: &str, dscp: u8, protocol: u8) -> Message {
    let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
    // Into register 1, from the network header.
    let of_header = |offset, length| {
        Attributes::default().number(1, 1).number(2, 1).number(3, offset).number(4, length)
    };
    let equals =
        |bytes: &[u8]| Attributes::default().number(1, 1).number(2, 0).list(3, &value(bytes));
    let masked = |mask: &[u8]| {
        Attributes::default()
            .number(1, 1)
            .number(2, 1)
            .number(3, u32::try_from(mask.len()).unwrap_or_default())
            .list(4, &value(mask))
            .list(5, &value(&vec![0; mask.len()]))
    };
    // Six bits: of the second byte, or across the first two, behind the version.
    let (field, mask, wanted, next) = match family {
        Family::V4 => (of_header(1, 1), vec![0xfc], vec![dscp << 2], 9),
        Family::V6 => {
            let wanted = (u16::from(dscp) << 6).to_be_bytes().to_vec();
            (of_header(0, 2), vec![0x0f, 0xc0], wanted, 6)
        }
    };
    let one = Attributes::default().number(1, 1).list(2, &value(&[1]));
    // NFT_META_NFTRACE from register 1.
    let follow = Attributes::default().number(2, 12).number(3, 1);
    let expressions = [
        ("payload", field),
        ("bitwise", masked(&mask)),
        ("cmp", equals(&wanted)),
        ("payload", of_header(next, 1)),
        ("cmp", equals(&[protocol])),
        ("immediate", one),
        ("meta", follow),
    ];
    let list = expressions.iter().fold(Attributes::default(), |list, (name, data)| {
        list.list(1, &Attributes::default().text(1, name).list(2, data))
    });
    let body = Attributes::default().text(1, table).text(2, chain).list(4, &list);
    Message { kind: NEW_RULE, flags: CREATE | APPEND, family, body }
}

fn parse(body: &[u8]) -> Option<Event> {
    let verdict = || find(body, 5).and_then(Verdict::parse).unwrap_or(Verdict::Continue);
    let fate = match find_u32(body, 4)? {
        1 => Fate::Policy(match find_u32(body, 16) {
            Some(0) => Verdict::Drop,
            _ => Verdict::Accept,
        }),
        2 => Fate::Return,
        3 => Fate::Rule { handle: find_u64(body, 3)?, verdict: verdict() },
        _ => return None,
    };
    let headers = find(body, 8).map(|network| {
        let mut headers = network.to_vec();
        headers.extend(find(body, 9).unwrap_or_default());
        headers
    });
    Some(Event {
        packet: find_u32(body, 6)?,
        table: find_text(body, 1)?,
        chain: find_text(body, 2)?,
        fate,
        headers,
        link_in: find_u32(body, 10),
        link_out: find_u32(body, 12),
    })
}

//! The bytes of nfnetlink: messages, attributes, and a socket for both. Not here: what they mean (see the
//! siblings). Numbers are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.

use std::{io, os::fd::AsRawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use vnet::addr::Family;

use crate::{LinuxError, netns::Netns};

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// Nested attributes say so in their type.
const NESTED: u16 = 0x8000;

/// A list of attributes that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// In network order, as nftables wants its numbers.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn list(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes that are being read: their type and value. What is malformed ends the list.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

pub(super) fn find(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(super) fn find_text(list: &[u8], kind: u16) -> Option<String> {
    find(list, kind).map(|bytes| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

pub(super) fn find_u32(list: &[u8], kind: u16) -> Option<u32> {
    find(list, kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn find_u64(list: &[u8], kind: u16) -> Option<u64> {
    find(list, kind)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A message to or from nftables.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Which: 0 is `NFT_MSG_NEWTABLE`.
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// Of which family's table it speaks.
    pub(super) family: Family,
    pub(super) body: Attributes,
}

/// What the kernel sent.
#[derive(Debug)]
pub(super) enum Incoming {
    /// An nftables message of this kind, and its attributes.
    Message(u16, Vec<u8>),
    /// A request was done or refused.
    Answered(Result<(), Errno>),
    /// A list is at its end.
    Done,
}

/// An nfnetlink socket.
pub(super) struct Nfnetlink {
    socket: Socket,
}

impl Nfnetlink {
    /// A socket of this namespace.
    pub(super) fn open_in(namespace: &Netns) -> Result<Self, LinuxError> {
        let failed = |source| LinuxError::Netlink { source };
        namespace
            .run(|| {
                let mut socket = Socket::new(NETLINK_NETFILTER)?;
                socket.bind_auto()?;
                socket.set_rx_buf_sz(4_u32 << 20)?;
                socket.set_cap_ack(true)?;
                Ok(Self { socket })
            })?
            .map_err(failed)
    }

    /// Also sends what is told to this group.
    pub(super) fn join(&self, group: u32) -> Result<(), LinuxError> {
        self.socket.add_membership(group).map_err(|source| LinuxError::Netlink { source })
    }

    /// Sends messages as one transaction: all or none. `what` is for messages to people.
    pub(super) fn transaction(&self, messages: &[Message], what: &str) -> Result<(), LinuxError> {
        let mut bytes = Vec::new();
        frame(&mut bytes, BATCH_BEGIN, REQUEST, 0, (0, NFTABLES), &[]);
        for (number, message) in (1..).zip(messages) {
            let flags = REQUEST | ACK | message.flags;
            let (kind, about) = (NFTABLES << 8 | message.kind, (number_of(message.family), 0));
            frame(&mut bytes, kind, flags, number, about, &message.body.0);
        }
        frame(&mut bytes, BATCH_END, REQUEST, 0, (0, NFTABLES), &[]);
        self.send(&bytes)?;
        let mut n_answered = 0;
        while n_answered < messages.len() {
            for incoming in self.receive(true)? {
                match incoming {
                    Incoming::Answered(Ok(())) => n_answered += 1,
                    Incoming::Answered(Err(source)) => {
                        let (what, text) = (what.to_owned(), String::new());
                        return Err(LinuxError::Refused { what, text, source });
                    }
                    Incoming::Message(..) | Incoming::Done => {}
                }
            }
        }
        Ok(())
    }

    /// Everything that the kernel answers to a question.
    pub(super) fn ask(&self, message: &Message, what: &str) -> Result<Vec<Vec<u8>>, LinuxError> {
        let mut bytes = Vec::new();
        let is_dump = message.flags & DUMP == DUMP;
        let flags = REQUEST | message.flags | if is_dump { 0 } else { ACK };
        let (kind, about) = (NFTABLES << 8 | message.kind, (number_of(message.family), 0));
        frame(&mut bytes, kind, flags, 1, about, &message.body.0);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        loop {
            for incoming in self.receive(true)? {
                match incoming {
                    Incoming::Message(_, body) => answers.push(body),
                    Incoming::Done | Incoming::Answered(Ok(())) => return Ok(answers),
                    Incoming::Answered(Err(source)) => {
                        let (what, text) = (what.to_owned(), String::new());
                        return Err(LinuxError::Refused { what, text, source });
                    }
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), LinuxError> {
        let kernel = SocketAddr::new(0, 0);
        let sent = self.socket.send_to(bytes, &kernel, 0);
        sent.map(drop).map_err(|source| LinuxError::Netlink { source })
    }

    /// What is there to read; with `waiting` at least one datagram.
    pub(super) fn receive(&self, waiting: bool) -> Result<Vec<Incoming>, LinuxError> {
        self.socket.set_non_blocking(!waiting).map_err(|source| LinuxError::Netlink { source })?;
        loop {
            match self.socket.recv_from_full() {
                Ok((data, _)) => return Ok(parse(&data)),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
                Err(source) => return Err(LinuxError::Netlink { source }),
            }
        }
    }
}

impl AsRawFd for Nfnetlink {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// `family` and `resource` are those of nfgenmsg.
fn frame(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    number: u32,
    (family, resource): (u8, u16),
    body: &[u8],
) {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn parse(mut rest: &[u8]) -> Vec<Incoming> {
    let mut found = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or_default();
        let Some(kind) = after.first_chunk() else { break };
        let Some(body) = rest.get(16..length) else { break };
        found.extend(match u16::from_ne_bytes(*kind) {
            DONE => Some(Incoming::Done),
            ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                let answer = if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) };
                Some(Incoming::Answered(answer))
            }
            kind if kind >> 8 == NFTABLES => {
                // Behind the four bytes of nfgenmsg.
                let body = body.get(4..).unwrap_or_default().to_vec();
                Some(Incoming::Message(kind & 0xff, body))
            }
            _ => None,
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

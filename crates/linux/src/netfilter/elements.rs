//! Elements of nftables sets and maps by netlink, and a look at what is loaded. Not here: rules, which are
//! text for the `nft` program.
//!
//! Starting `nft` costs about five milliseconds, an element by netlink less than one: this is what a pod
//! that comes or goes can afford. The numbers are those of `linux/netfilter/nf_tables.h`.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use vnet::addr::Family;

use crate::LinuxError;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const ERROR: u16 = 0x2;
const DONE: u16 = 0x3;
/// `NFNL_MSG_BATCH_BEGIN` and its end.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;

const NESTED: u16 = 0x8000;
/// The length of a netlink header, and of one of nfnetlink behind it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// What a table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// Packets of a family.
    Ip(Family),
    /// A bridge's frames.
    Bridge,
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        Self::Ip(family)
    }
}

/// One element to add or to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The family of the table that it is in.
    pub family: TableFamily,
    /// The set or map.
    pub set: String,
    /// Its key: each field of a concatenation filled up to four bytes.
    pub key: Vec<u8>,
    /// What a map's key leads to, filled up likewise; `None` in a set.
    pub value: Option<Vec<u8>>,
}

/// A socket of the namespace that it was opened in, for tables of any family.
pub struct Nfnetlink {
    socket: Socket,
    sequence: u32,
}

impl Nfnetlink {
    /// A socket of the calling thread's namespace.
    pub fn open() -> Result<Self, LinuxError> {
        let failed = |source| LinuxError::Netlink { source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds elements, all or none. One that is there already is fine; one that leads elsewhere is `EEXIST`.
    pub fn add(&mut self, table: &str, elements: &[Element]) -> Result<(), LinuxError> {
        self.batch(NEW_ELEMENT, CREATE, table, elements)
    }

    /// Deletes elements, all or none. One that is not there is `ENOENT`.
    pub fn delete(&mut self, table: &str, elements: &[Element]) -> Result<(), LinuxError> {
        self.batch(DELETE_ELEMENT, 0, table, elements)
    }

    /// Whether an element is there, whatever it leads to.
    pub fn has(&mut self, table: &str, element: &Element) -> Result<bool, LinuxError> {
        let key = Element { value: None, ..element.clone() };
        let body = element_list(table, &key);
        let sequence = self.send(element.family, GET_ELEMENT, REQUEST | ACK, &body)?;
        match self.answers(sequence) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The number of the namespace's rule set: another after every change that anybody makes.
    pub fn generation(&mut self) -> Result<u32, LinuxError> {
        let sequence =
            self.send(TableFamily::Ip(Family::V4), GET_GENERATION, REQUEST | ACK, &[])?;
        for (kind, body) in self.answers(sequence)? {
            if kind == NFTABLES << 8 | NEW_GENERATION
                && let Some(value) = attribute(&body, 1).and_then(|value| value.first_chunk())
            {
                return Ok(u32::from_be_bytes(*value));
            }
        }
        Err(LinuxError::Answer { text: "no generation".to_owned() })
    }

    /// How many rules a table has; 0 when it is not there.
    pub fn n_rules(
        &mut self,
        family: impl Into<TableFamily>,
        table: &str,
    ) -> Result<usize, LinuxError> {
        let mut body = Vec::new();
        put_text(&mut body, 1, table);
        let sequence = self.send(family.into(), GET_RULE, REQUEST | DUMP, &body)?;
        let answers = self.answers(sequence)?;
        Ok(answers.iter().filter(|(kind, _)| *kind == NFTABLES << 8 | NEW_RULE).count())
    }

    /// How many elements a set has, as the kernel counts (an interval is two); 0 when it is not there.
    pub fn n_elements(
        &mut self,
        family: impl Into<TableFamily>,
        table: &str,
        set: &str,
    ) -> Result<usize, LinuxError> {
        let mut body = Vec::new();
        put_text(&mut body, 1, table);
        put_text(&mut body, 2, set);
        let sequence = self.send(family.into(), GET_ELEMENT, REQUEST | DUMP, &body)?;
        let answers = match self.answers(sequence) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(0),
            other => other?,
        };
        let lists = answers.iter().filter_map(|(_, body)| attribute(body, 3));
        Ok(lists.map(|list| attributes(list).count()).sum())
    }

    fn batch(
        &mut self,
        kind: u16,
        flags: u16,
        table: &str,
        elements: &[Element],
    ) -> Result<(), LinuxError> {
        if elements.is_empty() {
            return Ok(());
        }
        let mut buffer = Vec::new();
        let begin = self.next();
        put_message(&mut buffer, BATCH_BEGIN, REQUEST, begin, (0, NFTABLES), &[]);
        let mut waiting = Vec::new();
        for element in elements {
            let sequence = self.next();
            waiting.push(sequence);
            let body = element_list(table, element);
            let flags = REQUEST | ACK | flags;
            put_message(
                &mut buffer,
                NFTABLES << 8 | kind,
                flags,
                sequence,
                (number(element.family), 0),
                &body,
            );
        }
        let end = self.next();
        put_message(&mut buffer, BATCH_END, REQUEST, end, (0, NFTABLES), &[]);
        self.socket.send(&buffer, 0).map_err(|source| LinuxError::Netlink { source })?;
        let mut refused = None;
        while !waiting.is_empty() {
            for (header, body) in messages(&self.read()?) {
                if header.kind != ERROR {
                    continue;
                }
                let errno = errno(body);
                if header.sequence == begin {
                    // Of the batch as a whole; there are no others then.
                    waiting.clear();
                    refused = refused.or(errno.map(|errno| (begin, errno)));
                } else if let Some(index) = waiting.iter().position(|one| *one == header.sequence) {
                    waiting.swap_remove(index);
                    refused = refused.or(errno.map(|errno| (header.sequence, errno)));
                }
            }
        }
        let Some((sequence, source)) = refused else { return Ok(()) };
        let index = usize::try_from(sequence.wrapping_sub(begin)).unwrap_or(0).saturating_sub(1);
        let set = elements.get(index).map_or("", |element| element.set.as_str());
        let verb = if kind == DELETE_ELEMENT { "delete" } else { "add" };
        Err(LinuxError::Refused {
            what: format!("{verb} element {table} {set}"),
            text: String::new(),
            source,
        })
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(
        &mut self,
        family: TableFamily,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<u32, LinuxError> {
        let sequence = self.next();
        let mut buffer = Vec::new();
        put_message(&mut buffer, NFTABLES << 8 | kind, flags, sequence, (number(family), 0), body);
        self.socket.send(&buffer, 0).map_err(|source| LinuxError::Netlink { source })?;
        Ok(sequence)
    }

    /// All answers to one question, up to its acknowledgement: kind, and what is behind the headers.
    fn answers(&mut self, sequence: u32) -> Result<Vec<(u16, Vec<u8>)>, LinuxError> {
        let mut answers = Vec::new();
        loop {
            for (header, body) in messages(&self.read()?) {
                if header.sequence != sequence {
                    continue;
                }
                match (header.kind, errno(body)) {
                    (DONE, _) | (ERROR, None) => return Ok(answers),
                    (ERROR, Some(source)) => {
                        return Err(LinuxError::Refused {
                            what: "look at nftables".to_owned(),
                            text: String::new(),
                            source,
                        });
                    }
                    (kind, _) => {
                        let body = body.get(FAMILY_HEADER..).unwrap_or_default();
                        answers.push((kind, body.to_vec()));
                    }
                }
            }
        }
    }

    fn read(&mut self) -> Result<Vec<u8>, LinuxError> {
        loop {
            match self.socket.recv_from_full() {
                Ok((data, _)) => return Ok(data),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LinuxError::Netlink { source }),
            }
        }
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`, `NFPROTO_BRIDGE` (`linux/netfilter.h`).
fn number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Ip(Family::V4) => 2,
        TableFamily::Ip(Family::V6) => 10,
        TableFamily::Bridge => 7,
    }
}

/// Table, set and a list of one element.
fn element_list(table: &str, element: &Element) -> Vec<u8> {
    let mut one = Vec::new();
    let value = |bytes: &[u8]| {
        let mut data = Vec::new();
        put(&mut data, 1, bytes);
        data
    };
    put(&mut one, NESTED | 1, &value(&element.key));
    if let Some(bytes) = &element.value {
        put(&mut one, NESTED | 2, &value(bytes));
    }
    let mut list = Vec::new();
    put(&mut list, NESTED | 1, &one);
    let mut body = Vec::new();
    put_text(&mut body, 1, table);
    put_text(&mut body, 2, &element.set);
    put(&mut body, NESTED | 3, &list);
    body
}

fn put_message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    body: &[u8],
) {
    let length = u32::try_from(HEADER + FAMILY_HEADER + body.len()).unwrap_or(u32::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(flags.to_ne_bytes());
    buffer.extend(sequence.to_ne_bytes());
    buffer.extend(0_u32.to_ne_bytes());
    buffer.extend([family, 0]);
    buffer.extend(resource.to_be_bytes());
    buffer.extend(body);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

fn put(buffer: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(content);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

fn put_text(buffer: &mut Vec<u8>, kind: u16, text: &str) {
    let mut content = text.as_bytes().to_vec();
    content.push(0);
    put(buffer, kind, &content);
}

/// What is needed of a netlink header.
struct Header {
    kind: u16,
    sequence: u32,
}

fn messages(data: &[u8]) -> Vec<(Header, &[u8])> {
    let mut rest = data;
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(sequence)) =
        (word(rest, 0), rest.get(4..).and_then(<[u8]>::first_chunk), word(rest, 8))
    {
        let length = usize::try_from(length).unwrap_or(0);
        let Some(body) = rest.get(HEADER..length) else { break };
        found.push((Header { kind: u16::from_ne_bytes(*kind), sequence }, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

/// The error in an acknowledgement; `None` is success.
fn errno(body: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    (code != 0).then(|| Errno::from_raw(code.saturating_abs()))
}

fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body).find_map(|(kind, content)| (kind == wanted).then_some(content))
}

fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let &[a, b, c, d] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let content = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, content))
    })
}

//! Changes the elements of a table's sets and maps, all or none, and the mark that says what is loaded. Not here: which
//! (see `vnet::host::delta`), and loading whole tables (see [`crate::nft`]).
//!
//! Starting `nft` takes five milliseconds, and it first reads what is there.

use std::net::IpAddr;

use vnet::{
    addr::Family,
    host::{
        Element, Elements,
        element::{Field, Value, Verdict},
    },
};

use super::wire::{Attributes, CREATE, Message, Nfnetlink};
use crate::{LinuxError, netns::Netns, nft::LOADED};

const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ONE: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN`, as their senders write them.
const JUMP: u32 = 0xffff_fffd;
const GOTO: u32 = 0xffff_fffc;
const RETURN: u32 = 0xffff_fffb;

/// The kernel's length of a link's name, with its end.
const LINK_NAME: usize = 16;
/// Elements of one message: the length of a list has 16 bits.
const MOST: usize = 200;

/// Changes the tables of one namespace, by a socket of its own.
pub struct Changer(Nfnetlink);

impl Changer {
    /// One for this namespace.
    pub fn open_in(namespace: &Netns) -> Result<Self, LinuxError> {
        Nfnetlink::open_in(namespace).map(Self)
    }

    /// Changes the table of this name, if what has the digest `before` is loaded; from then on that of `after` is. When
    /// it is refused, the table stands as it was.
    pub fn change(
        &mut self,
        table: &str,
        changes: &[Elements],
        before: &str,
        after: &str,
    ) -> Result<(), LinuxError> {
        // Deleting a chain that is not there refuses the whole of it.
        let mut messages = vec![chain(DELETE_CHAIN, 0, table, before)];
        for change in changes {
            elements(&mut messages, DELETE_ELEMENTS, table, change, &change.gone)?;
        }
        for change in changes {
            elements(&mut messages, NEW_ELEMENTS, table, change, &change.come)?;
        }
        messages.push(chain(NEW_CHAIN, CREATE, table, after));
        self.0.transaction(&messages, "changing elements")
    }
}

fn chain(kind: u16, flags: u16, table: &str, digest: &str) -> Message {
    let body = Attributes::default().text(CHAIN_TABLE, table);
    let family = Family::V4;
    Message { kind, flags, family, body: body.text(CHAIN_NAME, &format!("{LOADED}{digest}")) }
}

fn elements(
    messages: &mut Vec<Message>,
    kind: u16,
    table: &str,
    Elements { family, set, kind: of, is_interval, .. }: &Elements,
    texts: &[String],
) -> Result<(), LinuxError> {
    let flags = if kind == NEW_ELEMENTS { CREATE } else { 0 };
    for some in texts.chunks(MOST) {
        let mut list = Attributes::default();
        for text in some {
            let bytes = Element::parse(of, text).and_then(|it| encode(&it, *is_interval));
            let bytes = bytes.ok_or_else(|| LinuxError::Answer {
                text: format!("an element `{text}` of {set}, type {of}"),
            })?;
            list = list.list(LIST_ONE, &bytes);
        }
        let body = Attributes::default().text(LIST_TABLE, table).text(LIST_SET, set);
        let body = body.list(LIST_ELEMENTS, &list);
        messages.push(Message { kind, flags, family: *family, body });
    }
    Ok(())
}

/// `None` for what is done otherwise: intervals of a single field are two elements.
fn encode(element: &Element, is_interval: bool) -> Option<Attributes> {
    let Element { key, value } = element;
    let is_exact = key.iter().all(|(from, to)| from == to);
    if (is_interval && key.len() < 2) || !(is_interval || is_exact) {
        return None;
    }
    let data = |bytes: &[u8]| Attributes::default().bytes(DATA_VALUE, bytes);
    let one = Attributes::default().list(KEY, &data(&bytes(key.iter().map(|(from, _)| from))?));
    let one = match value {
        None => one,
        Some(Value::Fields(fields)) => one.list(DATA, &data(&bytes(fields.iter())?)),
        Some(Value::Interval(fields)) => {
            let mut both = bytes(fields.iter().map(|(from, _)| from))?;
            both.extend(bytes(fields.iter().map(|(_, to)| to))?);
            one.list(DATA, &data(&both))
        }
        Some(Value::Verdict(verdict)) => {
            let said = |code| Attributes::default().number(VERDICT_CODE, code);
            let verdict = match verdict {
                Verdict::Jump(chain) => said(JUMP).text(VERDICT_CHAIN, chain),
                Verdict::Goto(chain) => said(GOTO).text(VERDICT_CHAIN, chain),
                Verdict::Return => said(RETURN),
            };
            one.list(DATA, &Attributes::default().list(DATA_VERDICT, &verdict))
        }
    };
    Some(if is_interval {
        one.list(KEY_END, &data(&bytes(key.iter().map(|(_, to)| to))?))
    } else {
        one
    })
}

/// Fields one after the other, each filled up to four bytes.
fn bytes<'a>(fields: impl Iterator<Item = &'a Field>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Link(name) => {
                if name.len() >= LINK_NAME {
                    return None;
                }
                bytes.extend(name.as_bytes());
                bytes.resize(bytes.len() + LINK_NAME - name.len(), 0);
            }
            Field::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Field::Address(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Field::Protocol(protocol) => bytes.push(*protocol),
            Field::Port(port) => bytes.extend(port.to_be_bytes()),
            Field::Mark(mark) => bytes.extend(mark.to_ne_bytes()),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Some(bytes)
}

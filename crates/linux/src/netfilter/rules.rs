//! A table's rules as the kernel counts them: where each is, its comment, how many packets it met. Not here:
//! what a rule compares.

use nix::errno::Errno;

use vnet::addr::Family;

use super::wire::{
    Attributes, DUMP, Message, Nfnetlink, attributes, find, find_text, find_u32, find_u64,
};
use crate::{LinuxError, netns::Netns};

const GET_TABLE: u16 = 1;
const GET_RULE: u16 = 7;

const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// What a rule or a chain's end does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It goes on behind this hook.
    Accept,
    /// It ends here.
    Drop,
    /// The next rule is asked.
    Continue,
    /// A chain is asked, and then the next rule.
    Jump(String),
    /// A chain is asked instead of what follows.
    Goto(String),
    /// The chain that came here goes on.
    Return,
    /// Something else, by number: queued, stolen.
    Other(i32),
}

impl Verdict {
    /// From the attributes of a verdict.
    pub(super) fn parse(list: &[u8]) -> Option<Self> {
        let code = find_u32(list, VERDICT_CODE)?.cast_signed();
        let chain = || find_text(list, VERDICT_CHAIN).unwrap_or_default();
        Some(match code {
            0 => Self::Drop,
            1 => Self::Accept,
            -1 | -2 => Self::Continue,
            -3 => Self::Jump(chain()),
            -4 => Self::Goto(chain()),
            -5 => Self::Return,
            other => Self::Other(other),
        })
    }
}

/// A table of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which load of the table this is: another one after it was removed and made again.
    pub load: u64,
    /// Its rules that count, in order.
    pub rules: Vec<RuleCount>,
}

/// A rule that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// The family of its table.
    pub family: Family,
    /// Its number in the table, for as long as the table is not loaded again.
    pub handle: u64,
    /// The chain that it is in.
    pub chain: String,
    /// What it is called.
    pub comment: Option<String>,
    /// What it says, unless a map decides.
    pub verdict: Option<Verdict>,
    /// How many packets it met since it was loaded.
    pub packets: u64,
    /// How many bytes they had.
    pub bytes: u64,
}

/// The tables `ip NAME` and `ip6 NAME` of a namespace as one, with their counters; `None` when there is neither.
pub fn table(namespace: &Netns, name: &str) -> Result<Option<Table>, LinuxError> {
    let socket = Nfnetlink::open_in(namespace)?;
    let four = table_of(&socket, name, Family::V4)?;
    Ok(match (four, table_of(&socket, name, Family::V6)?) {
        (Some(four), Some(six)) => Some(Table {
            // Numbers of tables are a namespace's, and small.
            load: four.load | six.load << 32,
            rules: four.rules.into_iter().chain(six.rules).collect(),
        }),
        (four, six) => four.or(six),
    })
}

/// The table of one family.
fn table_of(socket: &Nfnetlink, name: &str, family: Family) -> Result<Option<Table>, LinuxError> {
    let question = |kind, attribute, flags| Message {
        family,
        kind,
        flags,
        body: Attributes::default().text(attribute, name),
    };
    let found = socket.ask(&question(GET_TABLE, TABLE_NAME, 0), "looking for a table");
    let found = match found {
        Err(LinuxError::Refused { source: Errno::ENOENT, .. }) => return Ok(None),
        other => other?,
    };
    let load = found.first().and_then(|table| find_u64(table, TABLE_HANDLE)).unwrap_or_default();
    let rules = match socket.ask(&question(GET_RULE, RULE_TABLE, DUMP), "listing rules") {
        // It was removed in between.
        Err(LinuxError::Refused { source: Errno::ENOENT, .. }) => return Ok(None),
        other => other?,
    };
    let is_of_table = |rule: &&Vec<u8>| find_text(rule, RULE_TABLE).as_deref() == Some(name);
    let rules = rules.iter().filter(is_of_table).filter_map(|rule| parse(family, rule)).collect();
    Ok(Some(Table { load, rules }))
}

/// `None` for a rule without a counter.
fn parse(family: Family, rule: &[u8]) -> Option<RuleCount> {
    let mut counted = None;
    let mut verdict = None;
    for (_, expression) in attributes(find(rule, RULE_EXPRESSIONS)?) {
        let data = find(expression, EXPRESSION_DATA).unwrap_or_default();
        match find_text(expression, EXPRESSION_NAME).as_deref() {
            Some("counter") => {
                counted = find_u64(data, COUNTER_PACKETS).zip(find_u64(data, COUNTER_BYTES));
            }
            Some("immediate") => {
                let said = find(data, IMMEDIATE_DATA).and_then(|data| find(data, DATA_VERDICT));
                verdict = said.and_then(Verdict::parse).or(verdict);
            }
            Some("reject") => verdict = Some(Verdict::Drop),
            _ => {}
        }
    }
    let (packets, bytes) = counted?;
    Some(RuleCount {
        family,
        handle: find_u64(rule, RULE_HANDLE)?,
        chain: find_text(rule, RULE_CHAIN)?,
        comment: find(rule, RULE_USERDATA).and_then(comment),
        verdict,
        packets,
        bytes,
    })
}

/// The comment in a rule's user data, which libnftnl writes as type, length, value (type 0).
fn comment(mut data: &[u8]) -> Option<String> {
    while let Some(&[kind, length]) = data.first_chunk() {
        let (value, rest) = data.get(2..)?.split_at_checked(usize::from(length))?;
        if kind == 0 {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        data = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_behind_other_data_and_never_past_the_end() {
        assert_eq!(comment(b"\x01\x02xy\x00\x04abc\0").as_deref(), Some("abc"));
        assert_eq!(comment(b"\x01\x09xy"), None);
        assert_eq!(comment(b"\x00"), None);
        assert_eq!(comment(b""), None);
    }
}

//! An element of a set or map as a value, from its text in a table. Not here: its bytes (`linux::netfilter`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::addr::Prefix;

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The fields of its key: from and to, which are the same but for intervals.
    pub key: Vec<(Field, Field)>,
    /// What it leads to, in a map.
    pub value: Option<Value>,
}

/// A field of a key or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ifname`.
    Link(String),
    /// `ipv4_addr` or `ipv6_addr`.
    Address(IpAddr),
    /// `inet_proto`.
    Protocol(u8),
    /// `inet_service`.
    Port(u16),
    /// `mark`.
    Mark(u32),
}

/// What a map's key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// These fields.
    Fields(Vec<Field>),
    /// Fields from and to.
    Interval(Vec<(Field, Field)>),
    /// What becomes of the packet.
    Verdict(Verdict),
}

/// What becomes of a packet that a map is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The chain is asked, and then the next rule.
    Jump(String),
    /// The chain is asked instead.
    Goto(String),
    /// The chain that came here goes on.
    Return,
}

impl Element {
    /// Reads an element of a set of type `kind`, as `nft` writes both. `None` for what this does not know.
    #[must_use]
    pub fn parse(kind: &str, text: &str) -> Option<Self> {
        let Some((kind, value_kind)) = kind.split_once(" : ") else {
            return Some(Self { key: fields(kind, text)?, value: None });
        };
        let (key, value) = text.split_once(" : ")?;
        let value = match (value_kind, value_kind.strip_prefix("interval ")) {
            ("verdict", _) => Value::Verdict(verdict(value)?),
            (_, Some(kind)) => Value::Interval(fields(kind, value)?),
            (kind, None) => {
                let fields = fields(kind, value)?;
                if fields.iter().any(|(from, to)| from != to) {
                    return None;
                }
                Value::Fields(fields.into_iter().map(|(from, _)| from).collect())
            }
        };
        Some(Self { key: fields(kind, key)?, value: Some(value) })
    }
}

fn fields(kinds: &str, texts: &str) -> Option<Vec<(Field, Field)>> {
    let (kinds, texts): (Vec<&str>, Vec<&str>) =
        (kinds.split(" . ").collect(), texts.split(" . ").collect());
    if kinds.len() != texts.len() {
        return None;
    }
    kinds.into_iter().zip(texts).map(|(kind, text)| field(kind, text)).collect()
}

fn field(kind: &str, text: &str) -> Option<(Field, Field)> {
    match kind {
        "ifname" => {
            let name = text.strip_prefix('"')?.strip_suffix('"')?;
            // `nft` would take a star for any ending.
            let plain = !name.is_empty() && !name.contains(['*', '"', '\\']);
            plain.then(|| same(Field::Link(name.to_owned())))
        }
        "ipv4_addr" => addresses(text, |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)),
        "ipv6_addr" => addresses(text, |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)),
        "inet_proto" => match text {
            "icmp" => Some(same(Field::Protocol(1))),
            "tcp" => Some(same(Field::Protocol(6))),
            "udp" => Some(same(Field::Protocol(17))),
            _ => None,
        },
        "inet_service" => range(text, |text| text.parse().ok().map(Field::Port)),
        "mark" => {
            u32::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(|it| same(Field::Mark(it)))
        }
        _ => None,
    }
}

fn addresses(text: &str, one: impl Fn(&str) -> Option<IpAddr>) -> Option<(Field, Field)> {
    if let Some((network, _)) = text.split_once('/') {
        // Of the other family, it is none of this kind.
        one(network)?;
        let prefix = Prefix::from_str(text).ok()?;
        return Some((Field::Address(prefix.network()), Field::Address(prefix.last())));
    }
    range(text, |text| one(text).map(Field::Address))
}

fn same(field: Field) -> (Field, Field) {
    (field.clone(), field)
}

fn range(text: &str, one: impl Fn(&str) -> Option<Field>) -> Option<(Field, Field)> {
    match text.split_once('-') {
        None => one(text).map(same),
        Some((from, to)) => Some((one(from)?, one(to)?)),
    }
}

fn verdict(text: &str) -> Option<Verdict> {
    Some(match text.split_once(' ') {
        None if text == "return" => Verdict::Return,
        Some(("jump", chain)) => Verdict::Jump(chain.to_owned()),
        Some(("goto", chain)) => Verdict::Goto(chain.to_owned()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "shorter where it is called")]
    fn check(kind: &str, text: &str, expected: Option<Element>) {
        let found = Element::parse(kind, text);
        assert!(found == expected, "{kind} {text}: {found:?} and not {expected:?}");
    }

    fn at(a: [u8; 4]) -> Field {
        Field::Address(a.into())
    }

    #[test]
    fn elements_of_all_kinds_are_read_and_others_refused() {
        let link = || same(Field::Link("nic-1".to_owned()));
        let set = |key| Some(Element { key, value: None });
        let map = |key, value| Some(Element { key, value: Some(value) });
        check("ifname", "\"nic-1\"", set(vec![link()]));
        check(
            "ifname . ipv4_addr",
            "\"nic-1\" . 10.1.0.0/16",
            set(vec![link(), (at([10, 1, 0, 0]), at([10, 1, 255, 255]))]),
        );
        check(
            "ifname . ipv4_addr : verdict",
            "\"nic-1\" . 10.1.0.4 : goto overlay-7",
            map(
                vec![link(), same(at([10, 1, 0, 4]))],
                Value::Verdict(Verdict::Goto("overlay-7".to_owned())),
            ),
        );
        check(
            "ipv4_addr . inet_proto . inet_service : verdict",
            "10.1.0.4 . tcp . 80 : return",
            map(
                vec![same(at([10, 1, 0, 4])), same(Field::Protocol(6)), same(Field::Port(80))],
                Value::Verdict(Verdict::Return),
            ),
        );
        check(
            "ipv4_addr : interval ipv4_addr . inet_service",
            "10.1.0.4 : 20.0.0.1 . 1024-2047",
            map(
                vec![same(at([10, 1, 0, 4]))],
                Value::Interval(vec![
                    same(at([20, 0, 0, 1])),
                    (Field::Port(1024), Field::Port(2047)),
                ]),
            ),
        );
        check(
            "ifname . ipv6_addr",
            "\"nic-1\" . fd00::/64",
            set(vec![
                link(),
                (
                    Field::Address("fd00::".parse().unwrap()),
                    Field::Address("fd00::ffff:ffff:ffff:ffff".parse().unwrap()),
                ),
            ]),
        );
        check(
            "ipv4_addr : mark",
            "10.1.0.4 : 0x0a010004",
            map(vec![same(at([10, 1, 0, 4]))], Value::Fields(vec![Field::Mark(0x0a01_0004)])),
        );
        for (kind, text) in [
            ("ifname", "nic-1"),
            ("ifname", "\"nic-*\""),
            ("ifname . ipv4_addr", "\"nic-1\""),
            ("ether_addr", "00:00:00:00:00:00"),
            ("ipv4_addr : verdict", "10.1.0.4 : drop"),
            ("ipv6_addr", "10.1.0.4"),
            ("ipv4_addr", "fd00::/64"),
            ("ipv4_addr : ipv4_addr", "10.1.0.4 : 10.0.0.0/8"),
            ("ipv4_addr : ipv4_addr", "10.1.0.4"),
            ("inet_service", "65536"),
        ] {
            check(kind, text, None);
        }
    }
}

//! Which packets are wanted: the words of pcap-filter(7) that people use most, and no others.
//!
//! `host A`, `net PREFIX`, `port N`, `portrange N-M`, each after `src` or `dst` if one end is meant; `ip`,
//! `ip6`, `arp`, `tcp`, `udp`, `icmp`; `and`, `or`, `not`, parentheses. Side by side means `and`: `tcp port 80`.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

use vnet::addr::Prefix4;

use super::frame::{Decoded, ICMP, ICMPV6, TCP, UDP};

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Host(Ends, IpAddr),
    Net(Ends, Prefix4),
    Ports(Ends, RangeInclusive<u16>),
    Arp,
    Ipv4,
    Ipv6,
    Protocol(&'static [u8]),
    Not(Box<Filter>),
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
}

/// Which end of a packet is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Either,
    Source,
    Destination,
}

impl Ends {
    fn any<T>(self, source: T, destination: T, is: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Either => is(source) || is(destination),
            Self::Source => is(source),
            Self::Destination => is(destination),
        }
    }
}

impl Filter {
    /// Packets from or to one of these addresses; `None` when there are none.
    pub(crate) fn any_host(hosts: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        hosts
            .into_iter()
            .map(|host| Self::Host(Ends::Either, host))
            .reduce(|all, next| Self::Or(Box::new(all), Box::new(next)))
    }

    /// Whether a packet is wanted.
    pub(crate) fn wants(&self, packet: &Decoded) -> bool {
        match self {
            Self::Not(inner) => !inner.wants(packet),
            Self::And(a, b) => a.wants(packet) && b.wants(packet),
            Self::Or(a, b) => a.wants(packet) || b.wants(packet),
            Self::Arp => matches!(packet, Decoded::Arp { .. }),
            Self::Host(ends, host) => {
                addresses(packet).is_some_and(|(from, to)| ends.any(from, to, |it| it == *host))
            }
            Self::Net(ends, net) => addresses(packet).is_some_and(|(from, to)| {
                ends.any(from, to, |it| matches!(it, IpAddr::V4(it) if net.contains(it)))
            }),
            Self::Ports(ends, range) => match packet {
                Decoded::Ip(packet) => packet
                    .ports()
                    .is_some_and(|(from, to)| ends.any(from, to, |it| range.contains(&it))),
                Decoded::Arp { .. } | Decoded::Other(_) => false,
            },
            Self::Ipv4 => matches!(packet, Decoded::Ip(packet) if packet.source.is_ipv4()),
            Self::Ipv6 => matches!(packet, Decoded::Ip(packet) if packet.source.is_ipv6()),
            Self::Protocol(numbers) => {
                matches!(packet, Decoded::Ip(packet) if numbers.contains(&packet.protocol))
            }
        }
    }
}

/// As in pcap, `host` also means ARP about it.
fn addresses(packet: &Decoded) -> Option<(IpAddr, IpAddr)> {
    match packet {
        Decoded::Ip(packet) => Some((packet.source, packet.destination)),
        Decoded::Arp { sender, target, .. } => Some(((*sender).into(), (*target).into())),
        Decoded::Other(_) => None,
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('!', " not ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut parser = Parser { words: &words };
        let filter = parser.or(0)?;
        match parser.words.first() {
            None => Ok(filter),
            Some(word) => Err(format!("`{word}` is too much")),
        }
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
}

/// Deeper than people write, less than the stack holds.
const DEEPEST: u32 = 50;
const UNDERSTOOD: &str = "understood are [src|dst] host ADDRESS, net PREFIX, port N and portrange N-M; ip, ip6, arp, tcp, udp, icmp; and, or, not and parentheses";

impl<'a> Parser<'a> {
    fn take(&mut self) -> Option<&'a str> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(word)
    }

    fn take_if(&mut self, wanted: &[&str]) -> bool {
        let is = self.words.first().is_some_and(|word| wanted.contains(word));
        if is {
            self.words = &self.words[1..];
        }
        is
    }

    fn or(&mut self, depth: u32) -> Result<Filter, String> {
        let mut all = self.and(depth)?;
        while self.take_if(&["or", "||"]) {
            all = Filter::Or(Box::new(all), Box::new(self.and(depth)?));
        }
        Ok(all)
    }

    fn and(&mut self, depth: u32) -> Result<Filter, String> {
        let mut all = self.not(depth)?;
        loop {
            let said = self.take_if(&["and", "&&"]);
            let ends = self.words.first().is_none_or(|word| ["or", "||", ")"].contains(word));
            if !said && ends {
                return Ok(all);
            }
            all = Filter::And(Box::new(all), Box::new(self.not(depth)?));
        }
    }

    fn not(&mut self, depth: u32) -> Result<Filter, String> {
        if depth > DEEPEST {
            return Err("it is nested too deeply".to_owned());
        }
        if self.take_if(&["not"]) {
            return Ok(Filter::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.take_if(&["("]) {
            let inner = self.or(depth + 1)?;
            return if self.take_if(&[")"]) {
                Ok(inner)
            } else {
                Err("a `)` is missing".to_owned())
            };
        }
        self.condition()
    }

    fn condition(&mut self) -> Result<Filter, String> {
        let ends = if self.take_if(&["src"]) {
            Ends::Source
        } else if self.take_if(&["dst"]) {
            Ends::Destination
        } else {
            Ends::Either
        };
        let word = self.take().ok_or_else(|| format!("something is missing; {UNDERSTOOD}"))?;
        let filter = match word {
            "host" => Filter::Host(ends, self.value("an address")?),
            "net" => Filter::Net(ends, self.value("a prefix such as 10.0.0.0/24")?),
            "port" => {
                let port = self.value("a port")?;
                Filter::Ports(ends, port..=port)
            }
            "portrange" => {
                let text = self.take().unwrap_or_default();
                let range = text
                    .split_once('-')
                    .and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
                Filter::Ports(ends, range.ok_or_else(|| format!("`{text}` is not N-M"))?)
            }
            other if ends != Ends::Either => match other.parse() {
                Ok(address) => Filter::Host(ends, address),
                Err(_) => {
                    return Err(format!("`{other}` does not follow src or dst; {UNDERSTOOD}"));
                }
            },
            "ip" => Filter::Ipv4,
            "ip6" => Filter::Ipv6,
            "arp" => Filter::Arp,
            "tcp" => Filter::Protocol(&[TCP]),
            "udp" => Filter::Protocol(&[UDP]),
            "icmp" => Filter::Protocol(&[ICMP]),
            "icmp6" => Filter::Protocol(&[ICMPV6]),
            other => return Err(format!("`{other}` is not understood; {UNDERSTOOD}")),
        };
        Ok(filter)
    }

    fn value<T: FromStr>(&mut self, what: &str) -> Result<T, String> {
        let text = self.take().ok_or_else(|| format!("{what} is missing"))?;
        text.parse().map_err(|_| format!("`{text}` is not {what}"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::watch::frame::{decode, flags, tests::tcp};

    #[test]
    fn words_mean_what_they_mean_to_tcpdump() {
        let from = (Ipv4Addr::new(10, 0, 0, 4), 40_000);
        let syn =
            decode(&tcp(from, (Ipv4Addr::new(10, 0, 1, 4), 80), flags::SYN, b"")).expect("a frame");
        let arp = Decoded::Arp { is_answer: false, sender: from.0, target: [10, 0, 0, 1].into() };
        for (text, wants_syn, wants_arp) in [
            ("tcp", true, false),
            ("tcp port 80", true, false),
            ("udp port 80", false, false),
            ("src port 80", false, false),
            ("dst port 80", true, false),
            ("host 10.0.0.4", true, true),
            ("src host 10.0.1.4", false, false),
            ("dst 10.0.1.4", true, false),
            ("net 10.0.1.0/24", true, false),
            ("portrange 70-90 and not src net 10.0.1.0/24", true, false),
            ("arp or tcp", true, true),
            ("not (arp or tcp)", false, false),
            ("udp or tcp and port 81", false, false),
            ("(udp or tcp) and port 80", true, false),
            ("!ip", false, true),
        ] {
            let filter: Filter = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((filter.wants(&syn), filter.wants(&arp)), (wants_syn, wants_arp), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_reason() {
        let refusal = |text: &str| text.parse::<Filter>().expect_err(text);
        for text in ["", "and", "tcp and", "(tcp", "tcp)", "port", "port x", "port 70000", "host a"]
        {
            refusal(text);
        }
        assert!(refusal("greater 100").starts_with("`greater` is not understood; understood are"));
        assert_eq!(refusal("port 80x"), "`80x` is not a port");
        assert!(refusal(&"(".repeat(100_000)).contains("deeply"));
        assert!(refusal(&"not ".repeat(100_000)).contains("deeply"));
    }
}

//! The state of network namespaces as values: what must be, and what was seen. Not here: why (see
//! [`super::fabric`]) and how to get there (see [`mod@super::plan`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::fabric::MTU;
use crate::{
    addr::{Family, Mac, Prefix, Prefix4},
    model::OverlayRanges,
};

/// The kernel's table of its own addresses, which it looks into first.
pub const LOCAL: u32 = 255;
/// The kernel's main routing table.
pub const MAIN: u32 = 254;
/// The priority of the kernel's rule that looks into it.
pub const MAIN_PRIORITY: u32 = 32_766;

/// The kernel setting that says whether a namespace has the fabric's IPv6: the kernel then makes no addresses of its
/// own (`addr_gen_mode` 1, of all links and those to come). Where it is not so, nobody needs to look for any.
pub const IPV6_MARK: &str = "net/ipv6/conf/all/addr_gen_mode";

/// Every namespace that the fabric of a lab is made of, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    /// Desired states by name.
    pub namespaces: BTreeMap<String, NamespaceState>,
}

/// What one network namespace must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceState {
    /// Whose the namespace is.
    pub tenancy: Tenancy,
    /// Links by name, but for `lo`, which is always up.
    pub links: BTreeMap<String, Link>,
    /// Addresses.
    pub addresses: BTreeSet<Address>,
    /// Routes: one for each table and destination.
    pub routes: BTreeMap<RouteKey, Target>,
    /// Rules, beside the kernel's own three.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Values of `/proc/sys`, by dotted name with `/` for dots inside: `net/ipv4/ip_forward`.
    pub sysctls: BTreeMap<String, String>,
    /// The nftables table, as text; see [`super::digest`].
    pub nft: Option<String>,
}

/// Whether others make links in a namespace, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tenancy {
    /// The fabric alone: links that it does not want are deleted.
    #[default]
    Sole,
    /// A machine's: what is not wanted by the fabric belongs to somebody else.
    Shared,
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The other end, which must name this one as its peer.
    pub peer: End,
    /// How what comes in may go past the namespace's stack; `None` when it may not. No part of a plan: without it
    /// packets only take longer.
    pub crossing: Option<Crossing>,
}

/// That what a NIC sends to another one of its network goes there directly, once its flow has passed every gate both
/// ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The NIC's address.
    pub address: Ipv4Addr,
    /// The pods behind it, where they are a range.
    pub pods: Option<Prefix4>,
    /// The ranges of an overlay, and the conntrack zone that their flows are in.
    pub overlay: Option<(OverlayRanges, u16)>,
}

/// A link somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The namespace.
    pub namespace: String,
    /// The link's name there.
    pub link: String,
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: String,
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix that is reached directly on the link.
    pub length: u8,
}

/// What a route is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The table.
    pub table: u32,
    /// The destination.
    pub prefix: Prefix,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To neighbours on a link.
    Link(String),
    /// To a gateway that is believed to be on a link.
    Via(String, IpAddr),
    /// To the namespace itself, by way of a link.
    Local(String),
    /// Nowhere, silently.
    Blackhole,
    /// Nowhere, with an ICMP error.
    Unreachable,
    /// On to the next rule.
    Throw,
}

/// A routing policy rule, of one family. What is `None` matches everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Lower is earlier.
    pub priority: u32,
    /// Which family's packets it is about.
    pub family: Family,
    /// The packet's mark.
    pub mark: Option<u32>,
    /// The link that it came in on.
    pub iif: Option<String>,
    /// Its source.
    pub from: Option<Prefix>,
    /// What to do.
    pub then: Then,
}

/// What a [`Rule`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Then {
    /// Looks into a table; a `throw` or no route goes on to the next rule.
    Table(u32),
    /// Goes on at the rule of this priority.
    Goto(u32),
}

/// What one network namespace was seen to look like. Of addresses, routes, rules and neighbours only
/// those that carry the fabric's protocol number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links by name, `lo` included.
    pub links: BTreeMap<String, ObservedLink>,
    /// Addresses.
    pub addresses: BTreeSet<Address>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Target>,
    /// Rules.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Those that were asked for and exist.
    pub sysctls: BTreeMap<String, String>,
    /// The digest of the table that is loaded.
    pub nft: Option<String>,
}

/// A link that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its number in its namespace.
    pub index: u32,
    /// Its veth peer's number, in the peer's namespace.
    pub peer: Option<u32>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// The number of the link that it is a port of.
    pub controller: Option<u32>,
}

impl Link {
    /// One of the fabric's usual MTU.
    pub(super) fn new(mac: Mac, peer: End) -> Self {
        Self { mac, mtu: MTU, peer, crossing: None }
    }
}

impl NamespaceState {
    pub(super) fn address(&mut self, link: &str, address: impl Into<IpAddr>, length: u8) {
        self.addresses.insert(Address { link: link.to_owned(), address: address.into(), length });
    }

    pub(super) fn route(&mut self, table: u32, prefix: impl Into<Prefix>, target: Target) {
        self.routes.insert(RouteKey { table, prefix: prefix.into() }, target);
    }

    pub(super) fn neighbour(&mut self, link: &str, address: impl Into<IpAddr>, mac: Mac) {
        self.neighbours.insert((link.to_owned(), address.into()), mac);
    }

    pub(super) fn sysctl(&mut self, name: &str, value: &str) {
        self.sysctls.insert(name.to_owned(), value.to_owned());
    }
}

impl NamespaceState {
    /// Whether anything in it is IPv6: what is not there in one of a network without, the kernel is not asked for.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|it| it.address.is_ipv6())
            || self.routes.keys().any(|it| it.prefix.family() == Family::V6)
            || self.rules.iter().any(|it| it.family == Family::V6)
            || self.neighbours.keys().any(|(_, address)| address.is_ipv6())
    }
}

impl Target {
    pub(super) fn via(link: &str, gateway: impl Into<IpAddr>) -> Self {
        Self::Via(link.to_owned(), gateway.into())
    }

    /// The link that the route leads through.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        match self {
            Self::Link(link) | Self::Via(link, _) | Self::Local(link) => Some(link),
            Self::Blackhole | Self::Unreachable | Self::Throw => None,
        }
    }
}

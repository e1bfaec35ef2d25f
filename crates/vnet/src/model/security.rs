//! Network security groups, their rules, and application security groups.
//!
//! Not here: what a rule means for a packet (see [`crate::policy`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Kept, Meta};
use crate::{
    addr::Prefix,
    name::{ArmId, Name},
};

/// A network security group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroup {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The user's rules by name. The six default ones are not stored; see [`crate::policy`].
    pub rules: BTreeMap<Name, SecurityRule>,
}

/// A security rule of a user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityRule {
    /// Its name, unique in its group.
    pub name: Name,
    /// Which list it is in.
    pub direction: Direction,
    /// 100 to 4096, unique in its list; lower is earlier.
    pub priority: u16,
    /// What becomes of a new flow that matches.
    pub access: Access,
    /// Which protocol.
    pub protocol: RuleProtocol,
    /// Who sends.
    pub source: Peers,
    /// From which ports.
    pub source_ports: Ports,
    /// To whom.
    pub destination: Peers,
    /// To which ports.
    pub destination_ports: Ports,
    /// Kept and given back, not acted upon: `description`.
    pub kept: Kept,
}

/// Seen from the machine that a group protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// To the machine.
    Inbound,
    /// From the machine.
    Outbound,
}

/// What a rule says of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// It passes this gate.
    Allow,
    /// It is dropped, silently.
    Deny,
}

/// The protocol of a security rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuleProtocol {
    /// `*`.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP; ports mean nothing.
    Icmp,
    /// The encapsulating security payload of `IPsec`; ports mean nothing.
    Esp,
    /// The authentication header of `IPsec`; ports mean nothing.
    Ah,
}

/// One side of a security rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Peers {
    /// Addresses: at least one.
    Addresses {
        /// Any of these.
        any_of: Vec<Addresses>,
        /// Whether they were given as a list (`sourceAddressPrefixes`), which a `GET` gives back so.
        as_list: bool,
    },
    /// The machines of application security groups, by their ids: at least one, all of one virtual network.
    Groups(Vec<ArmId>),
}

/// Addresses as a security rule names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Addresses {
    /// `*`.
    Any,
    /// A prefix, or an address, which is a /32 or /128.
    Prefix(Prefix),
    /// A service tag as it was given: `VirtualNetwork`, `Internet`, `AzureCloud.eastus`.
    Tag(String),
}

/// Ports of one side of a security rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// Any of these: at least one.
    pub any_of: Vec<PortRange>,
    /// Whether they were given as a list (`destinationPortRanges`), which a `GET` gives back so.
    pub as_list: bool,
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.any_of.iter().any(|range| range.contains(port))
    }

    /// Whether they are `*`.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.any_of.contains(&PortRange::ALL)
    }
}

/// Ports from `first` to `last`, both included; `*` is 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// One port.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// An application security group: a name that NICs carry and rules mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationGroup {
    /// Id, location, tags, state.
    pub meta: Meta,
}

//! Ports of the node that lead to a pod (`hostPort`), and a pod's share of the network: what a runtime
//! hands to the plugin as `portMappings` and `bandwidth`
//! (containernetworking/cni, `CONVENTIONS.md`, "Dynamic Plugin specific fields").

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::addr::Family;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The word that nft and the runtime use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol's number in an IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A word that names no [`Transport`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not one of tcp, udp, sctp")]
pub struct UnknownTransport {
    /// What was given.
    pub text: String,
}

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|one| one.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownTransport { text: text.to_owned() })
    }
}

/// A port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// Its protocol.
    pub transport: Transport,
    /// Only at this address of the node; `None` is all of them.
    pub address: Option<IpAddr>,
    /// The port, never 0.
    pub port: u16,
}

impl HostPort {
    /// Whether a packet of `family` could be for it.
    #[must_use]
    pub fn is_of(self, family: Family) -> bool {
        self.address.is_none_or(|address| Family::of(address) == family)
    }

    /// Whether a packet could be for both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.transport == other.transport
            && self.port == other.port
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => {
                write!(f, "[{address}]:{}/{}", self.port, self.transport.as_str())
            }
            Some(address) => write!(f, "{address}:{}/{}", self.port, self.transport.as_str()),
            None => write!(f, "{}/{}", self.port, self.transport.as_str()),
        }
    }
}

/// A port of the node and the pod's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The node's.
    pub host: HostPort,
    /// The pod's, never 0.
    pub pod_port: u16,
}

/// How fast a pod may be in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bits per second, at least 8.
    pub bits_per_second: u64,
    /// How many bits may go at once, at least 8.
    pub burst_bits: u64,
}

/// A pod's share of the network. The words are the pod's: *ingress* comes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// To the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// From the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// Whether neither direction has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

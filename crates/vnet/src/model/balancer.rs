//! Load balancers.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Allocation, Meta};
use crate::addr::Family;
use crate::name::{ArmId, Name};

/// A load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancer {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// `Standard`.
    pub sku: String,
    /// Front ends by name.
    pub frontends: BTreeMap<Name, Frontend>,
    /// Back-end pools by name.
    pub pools: BTreeMap<Name, BackendPool>,
    /// Probes by name.
    pub probes: BTreeMap<Name, Probe>,
    /// Load-balancing rules by name.
    pub rules: BTreeMap<Name, BalancingRule>,
    /// Outbound rules by name.
    pub outbound_rules: BTreeMap<Name, OutboundRule>,
    /// Inbound NAT rules by name.
    #[serde(default)]
    pub inbound_rules: BTreeMap<Name, InboundNatRule>,
}

/// A front end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Frontend {
    /// A private address.
    Internal {
        /// The subnet's id.
        subnet: ArmId,
        /// The address.
        address: IpAddr,
        /// Who chose it.
        allocation: Allocation,
    },
    /// A public one.
    Public {
        /// The public IP's id.
        public_ip: ArmId,
    },
    /// Every address of a public IP prefix, for outbound rules alone.
    Prefix {
        /// The prefix's id.
        public_ip_prefix: ArmId,
    },
}

/// Machines behind a load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendPool {
    /// The NICs, by id: their primary addresses are the members, or in a pool of IPv6 their IPv6 addresses.
    pub members: Vec<ArmId>,
    /// Of which family the members' addresses are.
    #[serde(default, skip_serializing_if = "Family::is_v4")]
    pub family: Family,
}

impl From<Vec<ArmId>> for BackendPool {
    /// A pool of IPv4 addresses.
    fn from(members: Vec<ArmId>) -> Self {
        Self { members, family: Family::V4 }
    }
}

/// A health probe. It comes from 168.63.129.16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// TCP, HTTP or HTTPS.
    pub protocol: ProbeProtocol,
    /// On the member's primary address.
    pub port: u16,
    /// For HTTP.
    pub path: String,
    /// Seconds between probes, 5 or more.
    pub interval_seconds: u32,
    /// How many in a row change the verdict.
    pub threshold: u32,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// A connection is made.
    Tcp,
    /// `GET path` answers 200.
    Http,
    /// The same over TLS.
    Https,
}

/// A transport protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Both, every port: a high-availability-ports rule, or an outbound rule.
    All,
}

/// What a load balancer chooses a member by: flows that are alike in it meet the same one
/// (Azure Load Balancer documentation, "Azure Load Balancer distribution modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Addresses, ports and protocol.
    #[default]
    Default,
    /// Source and destination address: a client always meets the same member.
    SourceIp,
    /// Source and destination address, and protocol.
    SourceIpProtocol,
}

/// How a [`Distribution`] is written: as when there were two of them, so that what was ever written stays readable.
mod affinity {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Distribution;

    const PROTOCOL: &str = "SourceIPProtocol";

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        BySource(bool),
        Named(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(it: &Distribution, to: S) -> Result<S::Ok, S::Error> {
        match it {
            Distribution::Default => false.serialize(to),
            Distribution::SourceIp => true.serialize(to),
            Distribution::SourceIpProtocol => PROTOCOL.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Distribution, D::Error> {
        match Written::deserialize(from)? {
            Written::BySource(false) => Ok(Distribution::Default),
            Written::BySource(true) => Ok(Distribution::SourceIp),
            Written::Named(name) if name == PROTOCOL => Ok(Distribution::SourceIpProtocol),
            Written::Named(name) => Err(D::Error::custom(format!("unknown distribution `{name}`"))),
        }
    }
}

/// A load-balancing rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalancingRule {
    /// The front end's name.
    pub frontend: Name,
    /// The pool's name.
    pub pool: Name,
    /// The probe's name.
    pub probe: Option<Name>,
    /// Protocol.
    pub protocol: Transport,
    /// 1 to 65534; 0 with [`Transport::All`].
    pub frontend_port: u16,
    /// The member's port; equal to the front end's with floating IP.
    pub backend_port: u16,
    /// Whether the packet keeps the front end's address as its destination (direct server return).
    pub floating_ip: bool,
    /// Which flows meet the same member.
    #[serde(rename = "source_ip_affinity", with = "affinity")]
    pub distribution: Distribution,
    /// Minutes, 4 to 100.
    pub idle_timeout_minutes: u32,
    /// Kept.
    pub enable_tcp_reset: bool,
    /// Whether members may not use the front end for outbound flows.
    pub disable_outbound_snat: bool,
}

/// An inbound NAT rule: a port of a front end is one machine's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboundNatRule {
    /// The front end's name.
    pub frontend: Name,
    /// TCP or UDP.
    pub protocol: Transport,
    /// Who gets the flows.
    pub target: InboundTarget,
    /// The machine's port.
    pub backend_port: u16,
    /// Whether the packet keeps the front end's address as its destination.
    pub floating_ip: bool,
    /// Minutes, 4 to 100.
    pub idle_timeout_minutes: u32,
    /// Kept.
    pub enable_tcp_reset: bool,
}

/// Who is behind an [`InboundNatRule`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum InboundTarget {
    /// One IP configuration, which names the rule; nobody until one does.
    Configuration {
        /// The front end's port.
        frontend_port: u16,
        /// The NIC and the IP configuration's name.
        member: Option<(ArmId, String)>,
    },
    /// Every member of a pool, in order, by one front end port each.
    Pool {
        /// The pool's name.
        pool: Name,
        /// The front end's ports for them.
        frontend_ports: super::PortRange,
    },
}

/// An outbound rule: the pool's machines are seen outside with the front ends' addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundRule {
    /// The front ends' names.
    pub frontends: Vec<Name>,
    /// The pool's name.
    pub pool: Name,
    /// Protocol.
    pub protocol: Transport,
    /// Ports per machine; 0 is Azure's default by pool size.
    pub allocated_ports: u32,
    /// Minutes.
    pub idle_timeout_minutes: u32,
    /// Kept.
    pub enable_tcp_reset: bool,
}

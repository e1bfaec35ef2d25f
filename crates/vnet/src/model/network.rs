//! Virtual networks and what belongs to their shape: subnets, peerings, routes, public addresses, NAT gateways.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{Allocation, Generation, Kept, Meta, ProvisioningState};
use crate::{
    addr::{Family, Prefix, Prefix4, Prefix6, PrefixError},
    name::{ArmId, Name},
};

/// A virtual network with its subnets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vnet {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The address space: no two overlap, at least one is IPv4.
    pub prefixes: Vec<Prefix>,
    /// Its subnets: each inside the address space, no two overlap.
    pub subnets: BTreeMap<Name, Subnet>,
    /// Its peerings, one side of each.
    #[serde(default)]
    pub peerings: BTreeMap<Name, Peering>,
    /// The public address that machines without an outbound method of their own are seen with
    /// (Azure's default outbound access).
    pub default_outbound: Ipv4Addr,
}

/// A subnet and who holds its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Its name.
    pub name: Name,
    /// Its one IPv4 prefix, /29 or larger.
    pub prefix: Prefix4,
    /// Its IPv6 prefix, always a /64, if it is dual stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix6: Option<Prefix6>,
    /// The route table that its machines' packets meet.
    pub route_table: Option<ArmId>,
    /// The network security group that its machines' packets meet.
    pub security_group: Option<ArmId>,
    /// The NAT gateway that its machines' flows to the internet leave by.
    pub nat_gateway: Option<ArmId>,
    /// Whether machines without an outbound method of their own have Azure's default outbound access.
    #[serde(default = "yes")]
    pub default_outbound: bool,
    /// At most one in practice.
    pub delegations: Vec<Delegation>,
    /// Clusters whose pods live here: each is a service association link `AzureKubernetesService`.
    pub association_links: Vec<ArmId>,
    /// Every held address of either family. None of the five reserved of each is ever here.
    pub held: BTreeMap<IpAddr, Holder>,
    /// `Disabled` (default), `Enabled`, …
    pub private_endpoint_network_policies: String,
    /// `Enabled` (default) or `Disabled`.
    pub private_link_service_network_policies: String,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

impl Vnet {
    /// Whether any of its address space is IPv6.
    #[must_use]
    pub fn is_dual_stack(&self) -> bool {
        self.prefixes.iter().any(|prefix| prefix.family() == Family::V6)
    }

    /// The part of the address space that is IPv4.
    #[must_use]
    pub fn prefixes4(&self) -> Vec<Prefix4> {
        self.prefixes.iter().filter_map(|prefix| prefix.as_v4()).collect()
    }

    /// The subnet that an address is in.
    #[must_use]
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.values().find(|subnet| subnet.contains(address))
    }
}

impl Subnet {
    /// Its prefixes, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> + use<> {
        std::iter::once(Prefix::V4(self.prefix)).chain(self.prefix6.map(Prefix::V6))
    }

    /// Its prefix of a family, if it has one.
    #[must_use]
    pub fn prefix_of(&self, family: Family) -> Option<Prefix> {
        self.prefixes().find(|prefix| prefix.family() == family)
    }

    /// Whether `address` is in one of its prefixes.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.prefixes().any(|prefix| prefix.contains(address))
    }
}

/// What a subnet that was written before it could be asked has.
fn yes() -> bool {
    true
}

/// A subnet given to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegation {
    /// `aks-delegation` when AKS made it.
    pub name: Name,
    /// `Microsoft.ContainerService/managedClusters`.
    pub service: String,
    /// What the service may do, `Microsoft.Network/virtualNetworks/subnets/join/action`.
    pub actions: Vec<String>,
}

/// Who holds an address of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Holder {
    /// An IP configuration of a NIC.
    IpConfiguration {
        /// The NIC.
        nic: ArmId,
        /// The IP configuration's name.
        config: String,
    },
    /// A front end of an internal load balancer.
    Frontend {
        /// The load balancer.
        balancer: ArmId,
        /// The front end's name.
        frontend: String,
    },
    /// Given to a node for its pods, in batches of [`POD_BATCH`].
    PodBatch {
        /// The node, by its machine's id.
        node: ArmId,
    },
}

/// The prefix length of a static block of a pod subnet
/// (AKS documentation, "Configure Azure CNI Pod Subnet - Static Block Allocation").
pub const POD_BLOCK_LENGTH: u8 = 28;

/// How many addresses of a pod subnet a node gets at a time
/// (Azure/azure-container-networking, scaler default `batchSize`).
pub const POD_BATCH: usize = 16;

/// One side of a peering between two virtual networks.
#[expect(
    clippy::struct_excessive_bools,
    reason = "Azure's independent switches, one property each"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peering {
    /// Its name, unique in its virtual network.
    pub name: Name,
    /// The other virtual network.
    pub remote: ArmId,
    /// The other one's address space as this side learned it last: a change there needs a sync here.
    pub remote_prefixes: Vec<Prefix>,
    /// `allowVirtualNetworkAccess`: whether flows pass between the two, and `VirtualNetwork` means the other's space, too.
    pub allow_access: bool,
    /// `allowForwardedTraffic`: whether what comes from there may have a source that is not of its space.
    pub allow_forwarded: bool,
    /// `allowGatewayTransit`. Kept; there are no gateways here.
    pub allow_gateway_transit: bool,
    /// `useRemoteGateways`. Never true: there are no gateways here.
    pub use_remote_gateways: bool,
    /// Whether the other side is there, too.
    pub peering_state: PeeringState,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

/// Whether a peering has two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeeringState {
    /// The other side is not there yet.
    Initiated,
    /// Both are there.
    Connected,
    /// The other side was removed. Nothing passes until this one is written or made again, and the other one, too.
    Disconnected,
}

/// Whether the two sides of a peering know each other's address space as it is (`peeringSyncLevel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeeringSync {
    /// Both do.
    FullyInSync,
    /// The other side does not, or is not there.
    RemoteNotInSync,
    /// This side does not.
    LocalNotInSync,
    /// Neither does.
    LocalAndRemoteNotInSync,
}

/// A route table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// Routes by name.
    pub routes: BTreeMap<Name, Route>,
    /// Kept; there is no gateway here that could propagate any.
    pub disable_bgp_route_propagation: bool,
}

/// A user-defined route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name, up to 80 characters.
    pub name: Name,
    /// Destinations: `addressPrefix`.
    pub prefix: Destination,
    /// Where to.
    pub next_hop: NextHop,
}

/// What a user-defined route is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// A prefix.
    Prefix(Prefix),
    /// The prefixes of a service tag, as it was given: `Storage.EastUS`.
    Tag(String),
}

impl Destination {
    /// Whether both are one, tags in any case.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Tag(a), Self::Tag(b)) => a.eq_ignore_ascii_case(b),
            (Self::Prefix(_), Self::Tag(_)) | (Self::Tag(_), Self::Prefix(_)) => false,
        }
    }
}

impl From<Prefix> for Destination {
    fn from(prefix: Prefix) -> Self {
        Self::Prefix(prefix)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::Tag(tag) => f.write_str(tag),
        }
    }
}

impl FromStr for Destination {
    type Err = PrefixError;

    /// A word is a tag; whether there is such a tag, the region knows.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let is_word = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
        };
        if is_word(text) { Ok(Self::Tag(text.to_owned())) } else { text.parse().map(Self::Prefix) }
    }
}

impl TryFrom<String> for Destination {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

/// A route's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHop {
    /// Through a machine with IP forwarding.
    VirtualAppliance(IpAddr),
    /// Inside the virtual network.
    VnetLocal,
    /// Out of the virtual network.
    Internet,
    /// Dropped.
    None,
}

/// A public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIp {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The address, of the lab's internet.
    pub address: IpAddr,
    /// `Static` always for Standard.
    pub allocation: Allocation,
    /// `Standard`, `Basic`.
    pub sku: String,
    /// The prefix that it is of.
    pub prefix: Option<ArmId>,
    /// The front end, IP configuration or NAT gateway that uses it, as an id.
    pub used_by: Option<String>,
    /// What may change at any time.
    #[serde(default, skip_serializing_if = "PublicIpSettings::is_default")]
    pub settings: PublicIpSettings,
}

/// What of a public IP may change at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIpSettings {
    /// Minutes, 4 to 30, that a flow of the NIC whose own it is may be idle.
    pub idle_timeout_minutes: u32,
    /// The first part of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_label: Option<String>,
}

impl Default for PublicIpSettings {
    fn default() -> Self {
        Self { idle_timeout_minutes: 4, dns_label: None }
    }
}

impl PublicIpSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl PublicIp {
    /// Its name, `<label>.<location>.cloudapp.azure.com`, if it has a label.
    #[must_use]
    pub fn fqdn(&self) -> Option<String> {
        let label = self.settings.dns_label.as_ref()?;
        Some(format!("{label}.{}.cloudapp.azure.com", self.meta.location))
    }
}

/// Public addresses in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIpPrefix {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// The addresses, of the lab's internet: /28 to /31, or /124 to /127.
    pub prefix: Prefix,
    /// `Standard`.
    pub sku: String,
    /// The NAT gateway or front end that uses it whole, as an id.
    pub used_by: Option<String>,
}

/// A NAT gateway: the flows of its subnets to the internet have its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatGateway {
    /// Id, location, tags, state.
    pub meta: Meta,
    /// `Standard`, `StandardV2`.
    pub sku: String,
    /// Its public IPs.
    pub public_ips: Vec<ArmId>,
    /// Its public IP prefixes.
    pub public_ip_prefixes: Vec<ArmId>,
    /// Minutes, 4 to 120.
    pub idle_timeout_minutes: u32,
}

//! What network security groups mean for a packet: their rules as ordered lists of addresses and ports, and the
//! rule that decides. Not here: how a kernel is made to obey (see [`crate::host`]).
//!
//! # Gates
//! A flow's first packet meets up to four gates, each a first-match list of its own: the sender's NIC and then its
//! subnet, outbound; the receiver's subnet and then its NIC, inbound. A gate without a group lets everything pass.
//! What passes has a state, and its replies pass. Changes of rules are for new flows only.
//!
//! Source: Azure documentation, "Network security groups" and "How network security groups filter network traffic".

use std::net::IpAddr;

use crate::{
    addr::{AddressSet, Family, Prefix},
    host::names::{GATEWAY_ADDRESS, METADATA_ADDRESS, PLATFORM_ADDRESS},
    model::{
        Access, Addresses, Destination, Direction, Kept, OverlayRanges, PeeringState, Peers,
        PortRange, Ports, ProvisioningState, RuleProtocol, SecurityGroup, SecurityRule, Vnet,
    },
    name::{ArmId, Name},
    region::Region,
};

pub mod tags;

/// The first packet of a flow, as a gate sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// 0 where the protocol has no ports.
    pub source_port: u16,
    /// 0 where the protocol has no ports.
    pub destination_port: u16,
}

/// A packet's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// Number 1. IPv6's own, 58, is another protocol, which no rule can name
    /// (Azure documentation, "IPv6 for Azure Virtual Network", limitations).
    Icmp,
    /// 50.
    Esp,
    /// 51.
    Ah,
    /// Another one, by its number (IANA, "Protocol Numbers").
    Other(u8),
}

impl Protocol {
    /// Whether its packets have ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

/// A network security group as it is where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The group.
    pub group: ArmId,
    /// What is decided about flows to the machine, first match first.
    pub inbound: Vec<Rule>,
    /// What is decided about flows from the machine, first match first.
    pub outbound: Vec<Rule>,
}

/// A rule with everything that it names looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was written.
    pub rule: SecurityRule,
    /// Whether it is one of the six that every group has.
    pub is_default: bool,
    /// The senders.
    pub source: AddressSet,
    /// The receivers.
    pub destination: AddressSet,
    /// To which ports: as they were written, and of `AzurePlatformDNS` that of names alone.
    pub destination_ports: Ports,
    /// Whether it means one of the platform's own services, which no other rule does
    /// (Azure documentation, "Virtual network service tags": `AzurePlatformDNS` and its like).
    pub is_for_platform: bool,
}

/// What a gate says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The first rule that matches.
    Rule(&'a Rule),
    /// A flow to the platform's own services, which no rule forbids.
    Platform,
}

impl Decision<'_> {
    /// Whether the flow passes.
    #[must_use]
    pub fn access(&self) -> Access {
        match self {
            Self::Rule(rule) => rule.rule.access,
            Self::Platform => Access::Allow,
        }
    }
}

impl Gate {
    /// `group` as it is in `vnet`. To the default rules, and to them alone, `pod_ranges` are a part of the virtual
    /// network: they are those of the overlay cluster whose node the NIC belongs to.
    ///
    /// What the AKS documentation says of overlay ("rules that deny pod CIDR traffic"): a cluster with default
    /// rules works, and one with a rule that denies everything needs rules that name the pods' range.
    #[must_use]
    pub fn new(
        region: &Region,
        vnet: &Vnet,
        group: &SecurityGroup,
        pod_ranges: Option<OverlayRanges>,
    ) -> Self {
        let lookup = Lookup::new(region, vnet);
        let with_pods = Lookup {
            vnet_tag: lookup
                .vnet_tag
                .union(&pod_ranges.into_iter().flat_map(OverlayRanges::prefixes).collect()),
            ..lookup.clone()
        };
        let list = |direction| {
            let own = group.rules.values().filter(|rule| rule.direction == direction);
            let mut rules: Vec<Rule> = own.map(|rule| lookup.resolve(rule, false)).collect();
            rules.sort_by_key(|rule| rule.rule.priority);
            rules.extend(
                default_rules()
                    .iter()
                    .filter(|rule| rule.direction == direction)
                    .map(|rule| with_pods.resolve(rule, true)),
            );
            rules
        };
        Self {
            group: group.meta.id.clone(),
            inbound: list(Direction::Inbound),
            outbound: list(Direction::Outbound),
        }
    }

    /// The list of a direction, first match first. The last one matches everything.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// What decides about the first packet of a flow.
    ///
    /// # Panics
    /// Never for a gate that [`new`](Self::new) made: its last rule matches everything.
    #[must_use]
    pub fn decide(&self, direction: Direction, flow: &Flow) -> Decision<'_> {
        let rules = self.rules(direction);
        if direction == Direction::Outbound && is_platform(flow.destination) {
            let rule = rules.iter().find(|rule| rule.is_for_platform && rule.matches(flow));
            return rule.map_or(Decision::Platform, Decision::Rule);
        }
        let rule = rules.iter().find(|rule| rule.matches(flow));
        Decision::Rule(rule.expect("the last default rule matches everything"))
    }
}

/// Whether an address is one that machines find Azure's own services at.
#[must_use]
pub fn is_platform(address: IpAddr) -> bool {
    address == PLATFORM_ADDRESS || address == METADATA_ADDRESS
}

impl Rule {
    /// Whether a flow is one of those that the rule is about.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let protocol = match self.rule.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp => flow.protocol == Protocol::Tcp,
            RuleProtocol::Udp => flow.protocol == Protocol::Udp,
            RuleProtocol::Icmp => flow.protocol == Protocol::Icmp,
            RuleProtocol::Esp => flow.protocol == Protocol::Esp,
            RuleProtocol::Ah => flow.protocol == Protocol::Ah,
        };
        protocol
            && self.source.contains(flow.source)
            && self.destination.contains(flow.destination)
            && self.ports_match(flow)
    }

    /// Ports mean nothing to a rule for a protocol without any. One for every protocol that names some ports is
    /// not about packets that have none.
    fn ports_match(&self, flow: &Flow) -> bool {
        match self.rule.protocol {
            RuleProtocol::Icmp | RuleProtocol::Esp | RuleProtocol::Ah => true,
            RuleProtocol::Any | RuleProtocol::Tcp | RuleProtocol::Udp => {
                let (source, destination) = (&self.rule.source_ports, &self.destination_ports);
                if flow.protocol.has_ports() {
                    source.contains(flow.source_port) && destination.contains(flow.destination_port)
                } else {
                    source.are_all() && destination.are_all()
                }
            }
        }
    }
}

/// The six rules that every group has and nobody can take away
/// (Azure documentation, "Network security groups", "Default security rules").
#[must_use]
pub fn default_rules() -> [SecurityRule; 6] {
    use Direction::{Inbound, Outbound};
    let any = || one(Addresses::Any);
    let tag = |name: &str| one(Addresses::Tag(name.to_owned()));
    let rule = |name: &str, direction, priority, access, source, destination| SecurityRule {
        name: Name::new(name),
        direction,
        priority,
        access,
        protocol: RuleProtocol::Any,
        source,
        source_ports: all_ports(),
        destination,
        destination_ports: all_ports(),
        kept: Kept::new(),
    };
    let vnet = || tag(tags::VIRTUAL_NETWORK);
    [
        rule("AllowVnetInBound", Inbound, 65_000, Access::Allow, vnet(), vnet()),
        rule(
            "AllowAzureLoadBalancerInBound",
            Inbound,
            65_001,
            Access::Allow,
            tag(tags::AZURE_LOAD_BALANCER),
            any(),
        ),
        rule("DenyAllInBound", Inbound, 65_500, Access::Deny, any(), any()),
        rule("AllowVnetOutBound", Outbound, 65_000, Access::Allow, vnet(), vnet()),
        rule("AllowInternetOutBound", Outbound, 65_001, Access::Allow, any(), tag(tags::INTERNET)),
        rule("DenyAllOutBound", Outbound, 65_500, Access::Deny, any(), any()),
    ]
}

fn one(addresses: Addresses) -> Peers {
    Peers::Addresses { any_of: vec![addresses], as_list: false }
}

fn names_tag(peers: &Peers, is_it: impl Fn(&str) -> bool) -> bool {
    match peers {
        Peers::Groups(_) => false,
        Peers::Addresses { any_of, .. } => {
            any_of.iter().any(|one| matches!(one, Addresses::Tag(tag) if is_it(tag)))
        }
    }
}

/// The platform answers names at an address that has other services, too.
fn destination_ports(rule: &SecurityRule) -> Ports {
    if !names_tag(&rule.destination, |tag| tag.eq_ignore_ascii_case(tags::PLATFORM_DNS)) {
        return rule.destination_ports.clone();
    }
    let names = PortRange::one(53);
    let any_of = rule.destination_ports.contains(names.first).then_some(names);
    Ports { any_of: any_of.into_iter().collect(), ..rule.destination_ports.clone() }
}

fn all_ports() -> Ports {
    Ports { any_of: vec![PortRange::ALL], as_list: false }
}

/// What names in rules mean in one virtual network.
#[derive(Clone)]
struct Lookup<'a> {
    region: &'a Region,
    vnet: &'a Vnet,
    vnet_tag: AddressSet,
}

impl<'a> Lookup<'a> {
    fn new(region: &'a Region, vnet: &'a Vnet) -> Self {
        Self { region, vnet, vnet_tag: virtual_network(region, vnet) }
    }

    fn resolve(&self, rule: &SecurityRule, is_default: bool) -> Rule {
        Rule {
            source: self.addresses(&rule.source),
            destination: self.addresses(&rule.destination),
            destination_ports: destination_ports(rule),
            is_for_platform: names_tag(&rule.destination, tags::is_platform_service),
            is_default,
            rule: rule.clone(),
        }
    }

    fn addresses(&self, peers: &Peers) -> AddressSet {
        match peers {
            Peers::Groups(groups) => self.members(groups),
            Peers::Addresses { any_of, .. } => any_of
                .iter()
                .map(|one| self.one(one))
                .fold(AddressSet::default(), |all, one| all.union(&one)),
        }
    }

    fn one(&self, addresses: &Addresses) -> AddressSet {
        match addresses {
            Addresses::Any => AddressSet::all(),
            Addresses::Prefix(prefix) => [*prefix].into_iter().collect(),
            Addresses::Tag(tag) if tag.eq_ignore_ascii_case(tags::VIRTUAL_NETWORK) => {
                self.vnet_tag.clone()
            }
            Addresses::Tag(tag) if tag.eq_ignore_ascii_case(tags::INTERNET) => {
                let all = tags::public(Family::V4);
                let all = if self.vnet.is_dual_stack() {
                    all.union(&tags::public(Family::V6))
                } else {
                    all
                };
                all.without(&self.vnet_tag)
            }
            Addresses::Tag(tag) => {
                let all = self.region.service_tags().addresses(tag).unwrap_or_default();
                let probes = Prefix::host(GATEWAY_ADDRESS.into());
                if self.vnet.is_dual_stack() && tag.eq_ignore_ascii_case(tags::AZURE_LOAD_BALANCER)
                {
                    all.union(&[probes].into_iter().collect())
                } else {
                    all
                }
            }
        }
    }

    /// The addresses of the NICs that are in one of these application security groups.
    fn members(&self, groups: &[ArmId]) -> AddressSet {
        let nics = self.region.nics.values();
        nics.flat_map(|nic| &nic.configs)
            .filter(|config| config.subnet.parent().as_ref() == Some(&self.vnet.meta.id))
            .filter(|config| config.application_groups.iter().any(|it| groups.contains(it)))
            .map(|config| Prefix::host(config.address))
            .collect()
    }
}

/// Whether an address is on the internet: a public one, which neither a virtual network nor a peer of its has. Tag
/// `VirtualNetwork` is more than they are: a user's route makes its destinations a part of it, perhaps all there are.
pub(crate) fn is_outside(vnet: &Vnet, address: IpAddr) -> bool {
    tags::public(Family::of(address)).contains(address)
        && !is_platform(address)
        && !vnet.prefixes.iter().chain(peers(vnet)).any(|prefix| prefix.contains(address))
}

/// What the peers of a virtual network have.
fn peers(vnet: &Vnet) -> impl Iterator<Item = &Prefix> {
    vnet.peerings
        .values()
        .filter(|peering| peering.allow_access)
        .filter(|peering| peering.peering_state == PeeringState::Connected)
        .filter(|peering| peering.state != ProvisioningState::Deleting)
        .flat_map(|peering| &peering.remote_prefixes)
}

/// What tag `VirtualNetwork` means in a virtual network: its address space, that of its peers, the platform's
/// address, and the destinations of its subnets' user-defined routes, which is how kubenet's pods are in it
/// (Azure documentation, "Virtual network service tags").
#[must_use]
pub fn virtual_network(region: &Region, vnet: &Vnet) -> AddressSet {
    let tables = vnet.subnets.values().filter_map(|subnet| subnet.route_table.as_ref());
    let routes = tables
        .filter_map(|table| region.route_tables.get(table))
        .flat_map(|table| table.routes.values());
    let routes = routes.flat_map(|route| match &route.prefix {
        Destination::Prefix(prefix) => std::slice::from_ref(prefix),
        Destination::Tag(tag) => region.service_tags().prefixes(tag),
    });
    vnet.prefixes
        .iter()
        .chain(peers(vnet))
        .chain(routes)
        .copied()
        .chain([Prefix::host(PLATFORM_ADDRESS.into())])
        .collect()
}

#[cfg(test)]
mod tests;

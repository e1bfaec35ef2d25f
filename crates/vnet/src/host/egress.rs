//! With which public addresses flows to the internet are seen, and with which ports. Not here: how that is written
//! down (see [`super::translation`]).
//!
//! # Who decides, first match first
//! 1. The NAT gateway of the subnet that the source is in.
//! 2. The IP configuration's own public IP.
//! 3. An outbound rule of a load balancer, for its own protocol.
//! 4. A load-balancing rule with a public front end that does not refuse it, for its own protocol.
//! 5. Azure's default outbound access: not for members of Standard load balancers, not in a subnet without it, and
//!    not for nodes whose cluster has another outbound type.
//!
//! All of them carry TCP and UDP; ICMP and everything else leaves by the IP configuration's own public IP alone.
//!
//! Source: Azure documentation, "Use Source Network Address Translation (SNAT) for outbound connections",
//! "Azure NAT Gateway" (which wins over the others; TCP and UDP), "Outbound rules" (`protocol`), "Standard Load
//! Balancer overview" (SNAT has the protocol of the load-balancing rule), "Default outbound access", constraints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::view::{Port, View};
use crate::{
    addr::Family,
    model::{
        LoadBalancer, NatGateway, OutboundType, PortRange, ProvisioningState, Subnet, Transport,
    },
    name::{ArmId, Name},
    policy::Protocol,
};

/// The ports of an address of a NAT gateway: 64,512 (Azure documentation, "SNAT with Azure NAT Gateway").
const GATEWAY_PORTS: PortRange = PortRange { first: 1024, last: u16::MAX };
/// The first port that load balancers use for outbound flows, and how many they have of each address
/// (Azure documentation, "Outbound rules").
const FIRST_PORT: u32 = 1024;
const PORTS_PER_ADDRESS: u32 = 64_000;

/// How the flows of an address are seen outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// With one of these; at least one, in order.
    pub(crate) addresses: Vec<IpAddr>,
    /// With one of these ports of each.
    pub(crate) ports: Option<PortRange>,
    /// After how many idle minutes a flow is forgotten.
    pub(crate) idle_minutes: u32,
}

/// The ways of an address, by protocol. At least one is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outside {
    pub(crate) tcp: Option<Way>,
    pub(crate) udp: Option<Way>,
    /// Of every other protocol: an instance's own address, or none.
    pub(crate) other: Option<Way>,
}

impl Outside {
    /// How a flow of this protocol is seen.
    pub(crate) fn of(&self, protocol: Protocol) -> Option<&Way> {
        match protocol {
            Protocol::Tcp => self.tcp.as_ref(),
            Protocol::Udp => self.udp.as_ref(),
            Protocol::Icmp | Protocol::Esp | Protocol::Ah | Protocol::Other(_) => {
                self.other.as_ref()
            }
        }
    }

    /// The two ways of TCP and UDP, where they differ. A rule for TCP and another one for UDP do that.
    pub(crate) fn apart(&self) -> Option<(&Way, &Way)> {
        self.tcp.as_ref().zip(self.udp.as_ref()).filter(|(tcp, udp)| tcp != udp)
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The ways of every address that has one, by address.
pub(crate) type Ways<'v> = BTreeMap<IpAddr, (&'v str, Outside)>;

/// Azure's idle timeout where nobody can set one.
const DEFAULT_IDLE_MINUTES: u32 = 4;

/// The way out of each address of a virtual network, with the link of the NIC that has it.
pub(crate) fn ways<'v>(view: &'v View<'_>) -> Ways<'v> {
    let gateways = Gateways::new(view);
    let ordinals = ordinals(view);
    let mut ways = BTreeMap::new();
    for port in &view.ports {
        let shared = [Family::V4, Family::V6].map(|family| {
            let main = port.main_address(family);
            [Transport::Tcp, Transport::Udp]
                .map(|transport| by_balancer(view, &ordinals, port, main?, transport))
        });
        for address in port.addresses() {
            let subnet = view.subnet_of(address);
            let own = instance_way(view, port, address);
            let [tcp, udp] = match Family::of(address) {
                Family::V4 => shared[0].clone().map(|by_balancer| {
                    subnet
                        .and_then(|subnet| gateways.way(subnet))
                        .or_else(|| own.clone())
                        .or(by_balancer)
                        .or_else(|| by_default(view, port, subnet))
                }),
                // There are neither gateways nor default access for IPv6.
                Family::V6 => shared[1].clone().map(|by_balancer| own.clone().or(by_balancer)),
            };
            let outside = Outside { tcp, udp, other: own };
            if !outside.is_nothing() {
                ways.insert(address, (port.link.as_str(), outside));
            }
        }
    }
    ways
}

/// Every public address that leads into a virtual network.
pub(crate) fn public_addresses(view: &View<'_>) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::from([view.vnet.default_outbound.into()]);
    let public = view.balancers.iter().flat_map(|balancer| balancer.frontends.values());
    addresses.extend(public.flat_map(|frontend| view.outside_addresses(frontend)));
    addresses.extend(view.ports.iter().flat_map(|port| own_public_ips(view, port).into_values()));
    addresses.extend(Gateways::new(view).0.into_values().flat_map(|way| way.addresses));
    addresses
}

/// The NAT gateways of a network's subnets. One without addresses translates nothing.
struct Gateways<'a>(BTreeMap<&'a ArmId, Way>);

impl<'a> Gateways<'a> {
    fn new(view: &View<'a>) -> Self {
        let ids = view.vnet.subnets.values().filter_map(|subnet| subnet.nat_gateway.as_ref());
        let ids: BTreeSet<&ArmId> = ids.collect();
        let gateways = ids.into_iter().filter_map(|id| {
            let gateway = view.region.nat_gateways.get(id)?;
            let is_there = gateway.meta.state != ProvisioningState::Deleting;
            let addresses = gateway_addresses(view, gateway);
            let way = Way {
                addresses,
                ports: Some(GATEWAY_PORTS),
                idle_minutes: gateway.idle_timeout_minutes,
            };
            (is_there && !way.addresses.is_empty()).then_some((id, way))
        });
        Self(gateways.collect())
    }

    fn way(&self, subnet: &Subnet) -> Option<Way> {
        self.0.get(subnet.nat_gateway.as_ref()?).cloned()
    }
}

fn gateway_addresses(view: &View<'_>, gateway: &NatGateway) -> Vec<IpAddr> {
    let single = gateway.public_ips.iter().filter_map(|id| view.public_address(id));
    let prefixes = gateway.public_ip_prefixes.iter();
    let prefixes = prefixes.filter_map(|id| view.region.public_ip_prefixes.get(id));
    let rows = prefixes.flat_map(|it| it.prefix.addresses());
    let addresses: BTreeSet<IpAddr> = single.chain(rows).collect();
    addresses.into_iter().collect()
}

/// The public addresses of a NIC's own (instance-level), by the private address that each belongs to.
pub(crate) fn own_public_ips(view: &View<'_>, port: &Port<'_>) -> BTreeMap<IpAddr, IpAddr> {
    let configs = port.nic.configs.iter();
    configs
        .filter_map(|config| {
            Some((config.address, view.public_address(config.public_ip.as_ref()?)?))
        })
        .collect()
}

/// By the public IP of an address's own.
fn instance_way(view: &View<'_>, port: &Port<'_>, address: IpAddr) -> Option<Way> {
    let config = port.nic.configs.iter().find(|config| config.address == address)?;
    let outside = view.region.public_ips.get(config.public_ip.as_ref()?)?;
    let idle_minutes = outside.settings.idle_timeout_minutes;
    Some(Way { addresses: vec![outside.address], ports: None, idle_minutes })
}

/// Where each member stands in its pool, and how many there are, by pool.
type Ordinals<'a> = BTreeMap<(&'a ArmId, &'a Name), BTreeMap<IpAddr, u32>>;

fn ordinals<'a>(view: &View<'a>) -> Ordinals<'a> {
    let mut ordinals = BTreeMap::new();
    for balancer in &view.balancers {
        for (name, pool) in &balancer.pools {
            let members = pool.members.iter().filter_map(|member| view.port_of(member));
            let members: BTreeSet<IpAddr> =
                members.filter_map(|port| port.main_address(pool.family)).collect();
            let numbered = (0..).zip(members).map(|(n, address)| (address, n)).collect();
            ordinals.insert((&balancer.meta.id, name), numbered);
        }
    }
    ordinals
}

/// Whether a rule of this protocol is about flows of `transport`, TCP or UDP.
fn carries(protocol: Transport, transport: Transport) -> bool {
    protocol == Transport::All || protocol == transport
}

/// How `own`, the address that load balancers know a NIC by in its family, is seen by way of one, in flows of
/// `transport`: TCP or UDP.
fn by_balancer(
    view: &View<'_>,
    ordinals: &Ordinals<'_>,
    port: &Port<'_>,
    own: IpAddr,
    transport: Transport,
) -> Option<Way> {
    let family = Family::of(own);
    let pools = view.pools_of(&port.nic.meta.id).iter();
    let pools = pools
        .filter(|(balancer, pool)| balancer.pools.get(pool).is_some_and(|it| it.family == family));
    let way = |balancer: &LoadBalancer, pool, frontends: &[Name], allocated, idle_minutes| {
        let public = frontends.iter().filter_map(|name| balancer.frontends.get(name));
        let public = public.flat_map(|frontend| view.outside_addresses(frontend));
        let addresses: BTreeSet<IpAddr> =
            public.filter(|address| Family::of(*address) == family).collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        if addresses.is_empty() {
            return None;
        }
        let members = ordinals.get(&(&balancer.meta.id, pool))?;
        let share = share(members.len(), addresses.len(), allocated);
        let ports = ports_of(*members.get(&own)?, share)?;
        Some(Way { addresses, ports: Some(ports), idle_minutes })
    };
    let by_rule = pools.clone().find_map(|(balancer, pool)| {
        let mut rules = balancer.outbound_rules.values();
        let rule = rules.find(|rule| rule.pool == **pool && carries(rule.protocol, transport))?;
        Some(way(balancer, pool, &rule.frontends, rule.allocated_ports, rule.idle_timeout_minutes))
    });
    if let Some(way) = by_rule {
        return way;
    }
    pools.clone().find_map(|(balancer, pool)| {
        let mut rules = balancer.rules.values();
        rules.find_map(|rule| {
            let serves = rule.pool == **pool
                && !rule.disable_outbound_snat
                && carries(rule.protocol, transport);
            let frontends = std::slice::from_ref(&rule.frontend);
            serves.then(|| way(balancer, pool, frontends, 0, rule.idle_timeout_minutes)).flatten()
        })
    })
}

/// How many ports each member has of each address. What was asked for is for all addresses together; Azure's own
/// choice goes by the pool's size (Azure documentation, "Outbound rules" and "SNAT for outbound connections").
fn share(n_members: usize, n_addresses: usize, allocated: u32) -> u32 {
    if allocated > 0 {
        let n_addresses = u32::try_from(n_addresses).unwrap_or(u32::MAX);
        return (allocated / n_addresses / 8 * 8).max(8);
    }
    match n_members {
        0..=50 => 1024,
        51..=100 => 512,
        101..=200 => 256,
        201..=400 => 128,
        401..=800 => 64,
        _ => 32,
    }
}

/// The ports of a member; `None` when those before it have them all.
fn ports_of(ordinal: u32, share: u32) -> Option<PortRange> {
    let end = ordinal.checked_add(1)?.checked_mul(share)?;
    if end > PORTS_PER_ADDRESS {
        return None;
    }
    let first = u16::try_from(FIRST_PORT + ordinal * share).ok()?;
    let last = u16::try_from(FIRST_PORT + end - 1).ok()?;
    Some(PortRange { first, last })
}

fn by_default(view: &View<'_>, port: &Port<'_>, subnet: Option<&Subnet>) -> Option<Way> {
    let pools = view.pools_of(&port.nic.meta.id);
    let is_member = pools.iter().any(|(it, _)| it.sku.eq_ignore_ascii_case("Standard"));
    let is_for_it = match port.cluster.map(|cluster| cluster.outbound) {
        None | Some(OutboundType::LoadBalancer) => true,
        Some(
            OutboundType::ManagedNatGateway
            | OutboundType::UserAssignedNatGateway
            | OutboundType::UserDefinedRouting
            | OutboundType::None
            | OutboundType::Block,
        ) => false,
    };
    let allowed = subnet.is_none_or(|subnet| subnet.default_outbound);
    (is_for_it && allowed && !is_member).then(|| Way {
        addresses: vec![view.vnet.default_outbound.into()],
        ports: None,
        idle_minutes: DEFAULT_IDLE_MINUTES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_shared_out_as_azure_says() {
        // The examples of the AKS documentation ("Configure a public Standard load balancer").
        for (n_addresses, allocated, n_members) in
            [(2, 1000, 128), (7, 1000, 448), (2, 4000, 32), (7, 4000, 112)]
        {
            let share = share(n_members, n_addresses, allocated);
            let last = u32::try_from(n_members).unwrap() - 1;
            assert!(ports_of(last, share).is_some(), "{n_members} of {allocated}");
            assert!(u32::try_from(n_addresses).unwrap() * share <= allocated);
        }
        for (n_members, expected) in [(1, 1024), (50, 1024), (51, 512), (100, 512), (1000, 32)] {
            assert_eq!(share(n_members, 1, 0), expected, "{n_members}");
        }
    }

    #[test]
    fn no_port_is_given_twice_and_none_beyond_the_last() {
        let mut next = FIRST_PORT;
        for ordinal in 0..8 {
            let ports = ports_of(ordinal, 8_000).unwrap();
            assert_eq!(u32::from(ports.first), next);
            next = u32::from(ports.last) + 1;
        }
        assert_eq!(next, FIRST_PORT + PORTS_PER_ADDRESS);
        assert_eq!(ports_of(8, 8_000), None);
        assert_eq!(ports_of(u32::MAX, 8), None);
    }
}

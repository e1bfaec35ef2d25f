//! Where a packet goes: the effective routes of a subnet, and which of them is taken. Not here: how a kernel is
//! made to obey (see [`crate::host`]).
//!
//! The longest prefix wins, and a user's route wins a tie with one of Azure's. Nothing of this applies to the
//! platform's own addresses (Azure documentation, "Virtual network traffic routing").

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    addr::{Family, Prefix, Prefix4},
    model::{Destination, NextHop, PeeringState, ProvisioningState, RouteTable, Subnet, Vnet},
    name::{ArmId, Name},
    region::Region,
};

/// The destinations that no virtual network routes to, unless somebody says otherwise
/// (Azure documentation, "Virtual network traffic routing", "Default").
pub const NOWHERE: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// A route that the packets of a subnet's machines meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveRoute {
    /// A user-defined route's name.
    pub name: Option<Name>,
    /// Who made it.
    pub source: Source,
    /// Whether it is taken: a user's route of the same prefix makes Azure's `Invalid`, and that of a service tag.
    pub is_active: bool,
    /// Destinations.
    pub prefix: Prefix,
    /// Where to.
    pub hop: Hop,
}

/// Who made a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Azure.
    Default,
    /// A user, in a route table.
    User,
}

/// Where an [`EffectiveRoute`] leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To who has the address in the virtual network; dropped when nobody has.
    VnetLocal,
    /// To this virtual network, by a peering.
    Peering(ArmId),
    /// Out, by what the subnet or the machine has for that.
    Internet,
    /// To the machine or the load balancer's front end that has this address, in the virtual network or a peer's.
    VirtualAppliance(IpAddr),
    /// Dropped.
    None,
}

/// Every route of a subnet, Azure's first, each kind in order of prefixes.
#[must_use]
pub fn effective(region: &Region, vnet: &Vnet, subnet: &Subnet) -> Vec<EffectiveRoute> {
    let table = subnet.route_table.as_ref().and_then(|table| region.route_tables.get(table));
    let users = table.map_or_else(Vec::new, |table| of_table(region, vnet, table));
    let mut routes = system(region, vnet);
    // Who says where everything goes says so of private ranges, too: Azure then has no routes that drop them.
    let everywhere = |family| users.iter().any(|route| route.prefix == Prefix::everything(family));
    routes.retain(|route| route.hop != Hop::None || !everywhere(route.prefix.family()));
    for route in &mut routes {
        route.is_active = !users.iter().any(|user| user.prefix == route.prefix);
    }
    routes.extend(users);
    routes.sort_by_key(|route| (route.source == Source::User, route.prefix));
    routes
}

/// The routes of a table, those of service tags with each of their prefixes. Of one prefix, one is active: an explicit
/// one, else that of the narrowest tag (same page, "Service tags for user-defined routes", "Exact match").
fn of_table(region: &Region, vnet: &Vnet, table: &RouteTable) -> Vec<EffectiveRoute> {
    let mut ranked: Vec<(Rank, EffectiveRoute)> = Vec::new();
    for route in table.routes.values() {
        let (hop, only) = match route.next_hop {
            NextHop::VirtualAppliance(address) => {
                (Hop::VirtualAppliance(address), Some(Family::of(address)))
            }
            NextHop::VnetLocal => (Hop::VnetLocal, None),
            NextHop::Internet => (Hop::Internet, None),
            NextHop::None => (Hop::None, None),
        };
        let effective = |prefix| EffectiveRoute {
            name: Some(route.name.clone()),
            source: Source::User,
            is_active: true,
            prefix,
            hop: hop.clone(),
        };
        match &route.prefix {
            Destination::Prefix(prefix) => ranked.push((Rank::Explicit, effective(*prefix))),
            Destination::Tag(tag) => {
                // A tag may have both families; where they cannot lead, there is nothing to route.
                let is_led = |prefix: &Prefix| {
                    only.is_none_or(|family| prefix.family() == family)
                        && (prefix.family() == Family::V4 || vnet.is_dual_stack())
                };
                let prefixes = region.service_tags().prefixes(tag).iter().copied();
                let own = prefixes.filter(is_led).map(effective);
                ranked.extend(own.map(|route| (Rank::of(tag), route)));
            }
        }
    }
    ranked.sort_by_key(|(rank, route)| (route.prefix, *rank));
    let mut before = None;
    for (_, route) in &mut ranked {
        route.is_active = before != Some(route.prefix);
        before = Some(route.prefix);
    }
    ranked.into_iter().map(|(_, route)| route).collect()
}

/// Which of a user's routes is taken where two have one prefix: the first of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Explicit,
    RegionalTag,
    Tag,
    RegionalCloud,
    Cloud,
}

impl Rank {
    fn of(tag: &str) -> Self {
        let (service, part) = tag.split_once('.').map_or((tag, None), |(a, b)| (a, Some(b)));
        let is_cloud = service.eq_ignore_ascii_case("AzureCloud");
        // Front Door's tags are of its parts, not of regions.
        let is_regional = part.is_some() && !service.eq_ignore_ascii_case("AzureFrontDoor");
        match (is_cloud, is_regional) {
            (false, true) => Self::RegionalTag,
            (false, false) => Self::Tag,
            (true, true) => Self::RegionalCloud,
            (true, false) => Self::Cloud,
        }
    }
}

/// The routes that every subnet of a virtual network has.
#[must_use]
pub fn system(region: &Region, vnet: &Vnet) -> Vec<EffectiveRoute> {
    let route = |prefix, hop| EffectiveRoute {
        name: None,
        source: Source::Default,
        is_active: true,
        prefix,
        hop,
    };
    let own = vnet.prefixes.iter().map(|prefix| route(*prefix, Hop::VnetLocal));
    let mut routes: Vec<EffectiveRoute> = own.collect();
    for (remote, prefixes) in peers(region, vnet) {
        routes.extend(prefixes.iter().map(|prefix| route(*prefix, Hop::Peering(remote.clone()))));
    }
    routes.push(route(Prefix::everything(Family::V4), Hop::Internet));
    if vnet.is_dual_stack() {
        routes.push(route(Prefix::everything(Family::V6), Hop::Internet));
    }
    for (network, length) in NOWHERE {
        let private = Prefix::V4(Prefix4::containing(network, length));
        if !routes.iter().any(|it| it.prefix.length() > 0 && it.prefix.contains_prefix(private)) {
            routes.push(route(private, Hop::None));
        }
    }
    routes
}

/// The virtual networks that a virtual network's machines reach by peerings, with the prefixes that lead there.
/// Both sides must be there, and this side must allow it.
pub fn peers<'a>(
    region: &'a Region,
    vnet: &'a Vnet,
) -> impl Iterator<Item = (&'a ArmId, &'a [Prefix])> {
    vnet.peerings
        .values()
        .filter(|peering| peering.allow_access)
        .filter(|peering| peering.peering_state == PeeringState::Connected)
        .filter(|peering| peering.state != ProvisioningState::Deleting)
        .filter_map(|peering| {
            let remote = region.vnets.get(&peering.remote)?;
            let is_there = remote.meta.state != ProvisioningState::Deleting;
            is_there.then_some((&remote.meta.id, peering.remote_prefixes.as_slice()))
        })
}

/// The route that a packet to `destination` takes, if any. None applies to the platform's own addresses.
#[must_use]
pub fn select(routes: &[EffectiveRoute], destination: IpAddr) -> Option<&EffectiveRoute> {
    if crate::policy::is_platform(destination) {
        return None;
    }
    routes
        .iter()
        .filter(|route| route.is_active && route.prefix.contains(destination))
        .max_by_key(|route| (route.prefix.length(), route.source == Source::User))
}

#[cfg(test)]
mod tests;

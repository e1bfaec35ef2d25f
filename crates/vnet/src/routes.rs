//! Where a packet goes: the effective routes of a subnet, and which of them is taken. Not here: how a kernel is
//! made to obey (see [`crate::host`]).
//!
//! The longest prefix wins, and a user's route wins a tie with one of Azure's. Nothing of this applies to the
//! platform's own addresses (Azure documentation, "Virtual network traffic routing").

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    addr::{Family, Prefix, Prefix4},
    model::{NextHop, PeeringState, ProvisioningState, Subnet, Vnet},
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
    /// Whether it is taken: a user's route of the same prefix makes Azure's `Invalid`.
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
    let users = subnet.route_table.as_ref().and_then(|table| region.route_tables.get(table));
    let users: Vec<EffectiveRoute> = users
        .iter()
        .flat_map(|table| table.routes.values())
        .map(|route| EffectiveRoute {
            name: Some(route.name.clone()),
            source: Source::User,
            is_active: true,
            prefix: route.prefix,
            hop: match route.next_hop {
                NextHop::VirtualAppliance(address) => Hop::VirtualAppliance(address),
                NextHop::VnetLocal => Hop::VnetLocal,
                NextHop::Internet => Hop::Internet,
                NextHop::None => Hop::None,
            },
        })
        .collect();
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

//! A subnet's addresses: which can be used, which are free, who holds the others. Not here: taking and
//! giving back, which only a [`crate::command::Command`] does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    addr::{Family, Prefix, Prefix4},
    model::{Holder, Subnet},
    name::ArmId,
};

/// How many addresses of a subnet Azure keeps: network, gateway, two for DNS, broadcast
/// (Azure Virtual Network FAQ, "Are there any restrictions on using IP addresses within these subnets?").
pub const N_RESERVED: u64 = 5;

/// The offset of the first address that a resource can have.
const FIRST_USABLE: u64 = 4;

/// How many addresses of `prefix` resources can have: all but [`N_RESERVED`].
#[must_use]
pub fn n_usable(prefix: Prefix4) -> u64 {
    prefix.n_addresses().saturating_sub(N_RESERVED)
}

/// Whether `address` is one of the five of `prefix` that Azure keeps, which it does in IPv6 prefixes, too.
#[must_use]
pub fn is_reserved(prefix: impl Into<Prefix>, address: impl Into<IpAddr>) -> bool {
    let (prefix, address) = (prefix.into(), address.into());
    let is_early = match (prefix.network(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            u64::from(u32::from(address).wrapping_sub(network.into())) < FIRST_USABLE
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            u128::from(address).wrapping_sub(network.into()) < u128::from(FIRST_USABLE)
        }
        _ => false,
    };
    prefix.contains(address) && (is_early || address == prefix.last())
}

/// How full a subnet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetUsage {
    /// Addresses that somebody holds.
    pub held: u64,
    /// Addresses that can be held at all.
    pub usable: u64,
}

impl Subnet {
    /// The free addresses, lowest first: the order in which Azure is seen to give them.
    pub fn free_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let first = self.prefix.nth(FIRST_USABLE).map_or(1, u32::from);
        let end = u32::from(self.prefix.broadcast());
        let mut held = self.held_v4().peekable();
        (first..end).map(Ipv4Addr::from).filter(move |address| {
            while held.next_if(|taken| taken < address).is_some() {}
            held.next_if_eq(address).is_none()
        })
    }

    /// The free IPv6 addresses, lowest first; none without an IPv6 prefix.
    pub fn free_addresses6(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        let held = self.held.range(IpAddr::from(Ipv6Addr::UNSPECIFIED)..).map(|(at, _)| *at);
        let mut held = held.peekable();
        let all = self.prefix6.into_iter().flat_map(|prefix| {
            let usable = (u128::from(FIRST_USABLE)..).map_while(move |n| prefix.nth(n));
            usable.take_while(move |address| *address != prefix.last())
        });
        all.filter(move |address| {
            let address = IpAddr::from(*address);
            while held.next_if(|taken| *taken < address).is_some() {}
            held.next_if_eq(&address).is_none()
        })
    }

    /// The lowest free address of a family.
    #[must_use]
    pub fn free_address_of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.free_addresses().next().map(IpAddr::V4),
            Family::V6 => self.free_addresses6().next().map(IpAddr::V6),
        }
    }

    /// The held addresses of its IPv4 prefix, lowest first.
    pub fn held_v4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        // Every IPv4 address sorts before every IPv6 one.
        self.held.keys().map_while(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    /// How full its IPv4 prefix is; no IPv6 prefix ever is.
    #[must_use]
    pub fn usage(&self) -> SubnetUsage {
        // A map cannot have more entries than there are IPv4 addresses.
        let held = u64::try_from(self.held_v4().count()).unwrap_or(u64::MAX);
        SubnetUsage { held, usable: n_usable(self.prefix) }
    }
}

impl Holder {
    /// The resource that holds: a NIC, a load balancer, a node.
    #[must_use]
    pub fn resource(&self) -> &ArmId {
        match self {
            Self::IpConfiguration { nic, .. } => nic,
            Self::Frontend { balancer, .. } => balancer,
            Self::PodBatch { node } => node,
        }
    }

    /// The id of the IP configuration that holds, as a subnet's `ipConfigurations` names it. `None` for pod
    /// batches, which Azure shows as a service association link only.
    #[must_use]
    pub fn configuration_id(&self) -> Option<ArmId> {
        match self {
            Self::IpConfiguration { nic, config } => Some(nic.child("ipConfigurations", config)),
            Self::Frontend { balancer, frontend } => {
                Some(balancer.child("frontendIPConfigurations", frontend))
            }
            Self::PodBatch { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix4 {
        text.parse().unwrap()
    }

    #[test]
    fn five_addresses_are_kept() {
        for (text, usable) in [("10.0.0.0/29", 3), ("10.0.0.0/26", 59), ("10.0.0.0/24", 251)] {
            let prefix = prefix(text);
            assert_eq!(n_usable(prefix), usable, "{text}");
            let addresses = (0..prefix.n_addresses()).filter_map(|offset| prefix.nth(offset));
            assert_eq!(
                addresses.filter(|address| !is_reserved(prefix, *address)).count() as u64,
                usable
            );
        }
        assert!(!is_reserved(prefix("10.0.0.0/24"), Ipv4Addr::new(9, 255, 255, 255)));
        assert!(!is_reserved(prefix("10.0.0.0/24"), Ipv4Addr::new(10, 0, 1, 0)));
    }
}

//! How virtual networks are joined, and how what has a next hop gets there. Not here: who is a peer (see
//! [`super::view`]), what is dropped between the two (see [`super::ruleset`]), and which of a front end's members is met
//! (see [`super::fronts`]).
//!
//! A veth pair for each peering: remote prefixes lead to it, and what comes out of it finds its receiver by its
//! destination. What a user's route sends to an appliance in a peer does not say so in its destination, so each such
//! appliance has a pair of its own (a *hop*): what comes out of that goes to the appliance, whatever it is.
//!
//! A front end that routes name has a pair with both ends in its own network, too, however its packets got there: by a
//! NIC or by a peer's hop. A flow that is led to it has two states in that network, like one that is led to an
//! appliance and comes back: of the network, and of the front end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    fabric::{FAR_END_6, far_end},
    names,
    routing::{PRIORITY_HOP, nowhere},
    state::{End, Link, NamespaceState, Rule, Target, Then},
    view::View,
};
use crate::{
    addr::{Family, Mac, Prefix},
    model::{NextHop, Vnet},
    name::ArmId,
    region::Region,
};

/// Every virtual network of a region, the appliances that networks use in their peers, and the front ends that they use
/// as such.
pub(super) struct Networks<'a> {
    pub(super) views: BTreeMap<&'a ArmId, View<'a>>,
    /// By the network whose routes name them: the address, and whose network it is in.
    hops: BTreeMap<&'a ArmId, BTreeMap<IpAddr, &'a ArmId>>,
}

impl<'a> Networks<'a> {
    pub(super) fn new(region: &'a Region) -> Self {
        let views: BTreeMap<&ArmId, View<'_>> = region
            .vnets
            .iter()
            .filter_map(|(id, vnet)| Some((id, View::new(region, vnet)?)))
            .collect();
        let mut hops: BTreeMap<&ArmId, BTreeMap<IpAddr, &ArmId>> =
            views.iter().map(|(id, view)| (*id, hops(view, &views))).collect();
        let of_peers: Vec<(IpAddr, &ArmId)> = hops
            .values()
            .flatten()
            .map(|(address, at)| (*address, *at))
            .filter(|(address, at)| views.get(at).is_some_and(|view| view.has_frontend(*address)))
            .collect();
        for (frontend, at) in of_peers {
            hops.entry(at).or_default().insert(frontend, at);
        }
        Self { views, hops }
    }

    /// How `view` routes to an appliance in a peer or to a front end; `None` when there is none at this address.
    pub(super) fn hop(&self, view: &View<'_>, address: IpAddr) -> Option<Target> {
        let here = &view.vnet.meta.id;
        let there = *self.hops.get(here)?.get(&address)?;
        let link =
            if there == here { names::way(here, address) } else { names::hop(here, address) };
        Some(Target::via(&link, far_end(Family::of(address))))
    }

    /// The front ends of `view`'s network that routes name, with the links by which what is led to them gets there.
    pub(super) fn frontends(&self, view: &View<'_>) -> impl Iterator<Item = (String, IpAddr)> {
        let own = self.hops_between(view.vnet, view.vnet);
        own.map(|address| (names::hop(&view.vnet.meta.id, address), address))
    }

    /// Whether peers send to appliances or front ends in `view`'s network.
    pub(super) fn has_hops(&self, view: &View<'_>, family: Family) -> bool {
        view.peers.iter().any(|peer| {
            let mut hops = self.hops_between(peer.remote, view.vnet);
            hops.any(|address| Family::of(address) == family)
        })
    }

    /// The links on which others' packets come in: of a peering, or of an appliance here.
    pub(super) fn links_from<'v>(
        &'v self,
        view: &'v View<'a>,
    ) -> impl Iterator<Item = (&'v super::view::Peer<'a>, String)> + 'v {
        view.peers.iter().flat_map(move |peer| {
            let hops = self.hops_between(peer.remote, view.vnet);
            let hops = hops.map(|address| names::hop(&peer.remote.meta.id, address));
            std::iter::once(peer.link.clone()).chain(hops).map(move |link| (peer, link))
        })
    }

    /// The appliances and front ends in `to` that `from` uses.
    fn hops_between(&self, from: &Vnet, to: &Vnet) -> impl Iterator<Item = IpAddr> {
        let hops = self.hops.get(&from.meta.id).into_iter().flatten();
        hops.filter(|(_, at)| **at == &to.meta.id).map(|(address, _)| *address)
    }

    /// Gives a network's namespace its links to its peers, and to its own front ends.
    pub(super) fn join(&self, state: &mut NamespaceState, lab: &str, view: &View<'_>) {
        for peer in &view.peers {
            let (here, there) = (&view.vnet.meta.id, &peer.remote.meta.id);
            let namespace = names::vnet_ns(lab, there);
            let is_dual = view.vnet.is_dual_stack() && peer.remote.is_dual_stack();
            let end = End { namespace: namespace.clone(), link: names::peer(here) };
            link(state, &peer.link, end, Family::V4);
            if is_dual {
                state.neighbour(&peer.link, FAR_END_6, Mac::FABRIC);
            }
            for address in self.hops_between(view.vnet, peer.remote) {
                let name = names::hop(here, address);
                let end = End { namespace: namespace.clone(), link: name.clone() };
                link(state, &name, end, Family::of(address));
            }
            for address in self.hops_between(peer.remote, view.vnet) {
                let name = names::hop(there, address);
                let end = End { namespace: namespace.clone(), link: name.clone() };
                link(state, &name, end, Family::of(address));
                self.lead_on(state, view, name, address);
            }
        }
        let here = &view.vnet.meta.id;
        let namespace = names::vnet_ns(lab, here);
        for address in self.hops_between(view.vnet, view.vnet) {
            let (way, hop) = (names::way(here, address), names::hop(here, address));
            for (one, other) in [(&way, &hop), (&hop, &way)] {
                let end = End { namespace: namespace.clone(), link: other.clone() };
                link(state, one, end, Family::of(address));
            }
            // Where members are chosen, what has none goes nowhere.
            hop_rule(state, hop, Family::of(address), NO_MEMBER, nowhere(Family::of(address)));
        }
    }

    /// What comes in by a peer's hop goes to its appliance, or on to the front end.
    fn lead_on(&self, state: &mut NamespaceState, view: &View<'_>, hop: String, address: IpAddr) {
        let family = Family::of(address);
        if let Some(port) = view.appliance(address) {
            let Some(main) = port.main_address(family) else { return };
            let to = Target::via(&port.link, main);
            hop_rule(state, hop, family, port.primary.into(), to);
        } else if let Some(to) = self.hop(view, address) {
            hop_rule(state, hop, family, table_of(address), to);
        }
    }
}

/// What comes out of a hop goes where this table leads.
fn hop_rule(state: &mut NamespaceState, hop: String, family: Family, table: u32, to: Target) {
    state.route(table, Prefix::everything(family), to);
    state.rules.insert(Rule {
        priority: PRIORITY_HOP,
        family,
        mark: None,
        iif: Some(hop),
        from: None,
        then: Then::Table(table),
    });
}

/// The table that leads to a front end: its address, or for IPv6 a number above all addresses that anybody can have.
fn table_of(frontend: IpAddr) -> u32 {
    match frontend {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &address.octets());
            let [a, b, c, d, ..] = hash.into_bytes();
            0xf000_0000 | u32::from_be_bytes([a, b, c, d])
        }
    }
}

fn link(state: &mut NamespaceState, name: &str, peer: End, family: Family) {
    state.links.insert(name.to_owned(), Link::new(Mac::FABRIC, peer));
    state.neighbour(name, far_end(family), Mac::FABRIC);
    state.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    state.sysctl(&format!("net/ipv4/conf/{name}/send_redirects"), "0");
}

/// The table that leads nowhere: nobody's address is 0.0.0.1.
const NO_MEMBER: u32 = 1;

/// The appliances in peers and the front ends that the routes of `view`'s subnets name.
fn hops<'a>(view: &View<'a>, views: &BTreeMap<&'a ArmId, View<'a>>) -> BTreeMap<IpAddr, &'a ArmId> {
    let tables: BTreeSet<&ArmId> =
        view.vnet.subnets.values().filter_map(|subnet| subnet.route_table.as_ref()).collect();
    let tables = tables.into_iter().filter_map(|table| view.region.route_tables.get(table));
    let mut hops = BTreeMap::new();
    for route in tables.flat_map(|table| table.routes.values()) {
        let NextHop::VirtualAppliance(address) = route.next_hop else { continue };
        // A machine of the network's own needs no link: a route leads to its NIC.
        if view.appliance(address).is_some() {
            continue;
        }
        if view.has_frontend(address) {
            hops.insert(address, &view.vnet.meta.id);
            continue;
        }
        let Some(peer) = view.peer_of(address) else { continue };
        let there = views.get(&peer.remote.meta.id);
        let is_hop =
            |there: &View<'_>| there.appliance(address).is_some() || there.has_frontend(address);
        if there.is_some_and(is_hop) {
            hops.insert(address, &peer.remote.meta.id);
        }
    }
    hops
}

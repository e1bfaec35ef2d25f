//! What turns what was observed into what is desired: a list of actions, in order. Not here: doing them.
//!
//! # Guarantees
//! Carrying out the plan reaches the desired state, and a plan made after that is empty.
//!
//! # Order
//! What is too much goes first, from the outside in (rules, routes, neighbours, addresses, links), then
//! pairs of links are made, then each namespace gets what it lacks from the inside out. The rule set
//! comes before addresses and routes, so that nothing passes unfiltered.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use super::{
    delta::Elements,
    ruleset::digest,
    state::{
        Address, End, Fabric, Link, NamespaceState, Observed, RouteKey, Rule, Target, Tenancy,
    },
};
use crate::addr::Mac;

/// An action in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The namespace.
    pub namespace: String,
    /// What to do there.
    pub action: Action,
}

/// One change to a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Deletes a rule.
    DeleteRule(Rule),
    /// Deletes a route.
    DeleteRoute(RouteKey, Target),
    /// Deletes a permanent neighbour.
    DeleteNeighbour(String, IpAddr, Mac),
    /// Deletes an address.
    DeleteAddress(Address),
    /// Deletes a link, and with it its peer.
    DeleteLink(String),
    /// Makes a veth pair: the end here, and the other one.
    MakePair {
        /// This end's name.
        name: String,
        /// This end.
        link: Link,
        /// The other end's Ethernet address.
        peer_mac: Mac,
        /// The other end's MTU in bytes.
        peer_mtu: u32,
    },
    /// Sets a link up, with this address and MTU.
    SetLink {
        /// The link.
        name: String,
        /// `None` leaves it (`lo`).
        shape: Option<(Mac, u32)>,
    },
    /// Writes a value below `/proc/sys`.
    SetSysctl {
        /// `net/ipv4/ip_forward`.
        name: String,
        /// The value.
        value: String,
    },
    /// Replaces the nftables table by this text.
    LoadRuleset(String),
    /// Changes the nftables table where it differs, which is less work than replacing it. A plan has none: whoever
    /// knows the text that is loaded puts it in the place of [`Action::LoadRuleset`].
    ChangeRuleset {
        /// What is different; see [`super::delta()`].
        changes: Vec<Elements>,
        /// The digest of the text that is loaded.
        loaded: String,
        /// That of the text that is to be.
        digest: String,
        /// The text that is to be.
        text: String,
    },
    /// Removes the nftables table.
    DropRuleset,
    /// Adds an address.
    AddAddress(Address),
    /// Adds or replaces a permanent neighbour.
    SetNeighbour(String, IpAddr, Mac),
    /// Adds or replaces a route.
    SetRoute(RouteKey, Target),
    /// Adds a rule.
    AddRule(Rule),
}

/// What turns `observed` into `desired`. A namespace of `desired` that was not observed is left alone, and
/// so are pairs of which only one end's namespace was: the other end is believed to be right.
#[must_use]
pub fn plan(desired: &Fabric, observed: &BTreeMap<String, Observed>) -> Vec<Step> {
    let known: Vec<(&String, Cow<'_, NamespaceState>, &Observed)> = desired
        .namespaces
        .iter()
        .filter_map(|(name, state)| {
            let seen = observed.get(name)?;
            Some((name, with_controllers(state, seen, observed), seen))
        })
        .collect();
    let mut steps = Vec::new();
    let mut broken: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, state, seen) in &known {
        let links = state.links.iter();
        broken.insert(
            name,
            links
                .filter(|(link, is)| !is_paired(link, is, seen, observed))
                .map(|(link, _)| link.as_str())
                .collect(),
        );
    }
    for (name, state, seen) in &known {
        remove(&mut steps, name, state, seen, &broken[name.as_str()]);
    }
    for (name, state, _) in &known {
        for (link, is) in &state.links {
            let end = End { namespace: (*name).clone(), link: link.clone() };
            let peer = peer_of(desired, is);
            // Each pair is made once, from its lesser end, unless only this end's namespace is known.
            let mine = end < is.peer || !observed.contains_key(&is.peer.namespace);
            if mine && broken[name.as_str()].contains(&link.as_str()) {
                let action = Action::MakePair {
                    name: link.clone(),
                    link: is.clone(),
                    peer_mac: peer.map_or(is.mac, |peer| peer.mac),
                    peer_mtu: peer.map_or(is.mtu, |peer| peer.mtu),
                };
                steps.push(Step { namespace: (*name).clone(), action });
            }
        }
    }
    for (name, state, seen) in &known {
        add(&mut steps, name, state, seen, &broken[name.as_str()]);
    }
    steps
}

/// What is wanted, on the links that carry it: whoever owns a machine may have made a NIC a port of a bridge,
/// and then the bridge has the NIC's addresses and routes.
fn with_controllers<'a>(
    state: &'a NamespaceState,
    seen: &Observed,
    observed: &BTreeMap<String, Observed>,
) -> Cow<'a, NamespaceState> {
    if state.tenancy == Tenancy::Sole {
        return Cow::Borrowed(state);
    }
    let controller = |link: &str, is: &Link| {
        // One that is made anew is nobody's port.
        if !is_paired(link, is, seen, observed) {
            return None;
        }
        let index = seen.links.get(link)?.controller?;
        let (name, _) = seen.links.iter().find(|(_, link)| link.index == index)?;
        Some(name.clone())
    };
    let moved: BTreeMap<&str, String> = state
        .links
        .iter()
        .filter_map(|(link, is)| Some((link.as_str(), controller(link, is)?)))
        .collect();
    if moved.is_empty() {
        return Cow::Borrowed(state);
    }
    let mut state = state.clone();
    let carrier = |link: String| moved.get(link.as_str()).cloned().unwrap_or(link);
    state.addresses = std::mem::take(&mut state.addresses)
        .into_iter()
        .map(|address| Address { link: carrier(address.link), ..address })
        .collect();
    state.neighbours = std::mem::take(&mut state.neighbours)
        .into_iter()
        .map(|((link, address), mac)| ((carrier(link), address), mac))
        .collect();
    for target in state.routes.values_mut() {
        if let Target::Link(link) | Target::Via(link, _) | Target::Local(link) = target {
            *link = carrier(std::mem::take(link));
        }
    }
    Cow::Owned(state)
}

fn peer_of<'a>(desired: &'a Fabric, link: &Link) -> Option<&'a Link> {
    desired.namespaces.get(&link.peer.namespace)?.links.get(&link.peer.link)
}

/// Whether a link is there and is the other end of its peer.
fn is_paired(
    name: &str,
    link: &Link,
    seen: &Observed,
    observed: &BTreeMap<String, Observed>,
) -> bool {
    let Some(here) = seen.links.get(name) else { return false };
    let Some(there) = observed.get(&link.peer.namespace) else { return true };
    there
        .links
        .get(&link.peer.link)
        .is_some_and(|there| here.peer == Some(there.index) && there.peer == Some(here.index))
}

fn remove(
    steps: &mut Vec<Step>,
    namespace: &str,
    state: &NamespaceState,
    seen: &Observed,
    broken: &[&str],
) {
    let mut push = |action| steps.push(Step { namespace: namespace.to_owned(), action });
    for rule in seen.rules.difference(&state.rules) {
        push(Action::DeleteRule(rule.clone()));
    }
    for (key, target) in &seen.routes {
        if !state.routes.contains_key(key) {
            push(Action::DeleteRoute(*key, target.clone()));
        }
    }
    for ((link, address), mac) in &seen.neighbours {
        if !state.neighbours.contains_key(&(link.clone(), *address)) {
            push(Action::DeleteNeighbour(link.clone(), *address, *mac));
        }
    }
    for address in seen.addresses.difference(&state.addresses) {
        push(Action::DeleteAddress(address.clone()));
    }
    for link in seen.links.keys().filter(|link| *link != "lo") {
        let foreign = !state.links.contains_key(link);
        let unwanted = foreign && state.tenancy == Tenancy::Sole;
        if unwanted || broken.contains(&link.as_str()) {
            push(Action::DeleteLink(link.clone()));
        }
    }
    if seen.nft.is_some() && state.nft.is_none() {
        push(Action::DropRuleset);
    }
}

fn add(
    steps: &mut Vec<Step>,
    namespace: &str,
    state: &NamespaceState,
    seen: &Observed,
    broken: &[&str],
) {
    let mut push = |action| steps.push(Step { namespace: namespace.to_owned(), action });
    let fresh = |link: &str| broken.contains(&link);
    for (name, value) in &state.sysctls {
        // A new link begins with the kernel's own settings.
        let of_fresh = broken.iter().any(|link| name.split('/').any(|part| part == *link));
        if of_fresh || seen.sysctls.get(name) != Some(value) {
            push(Action::SetSysctl { name: name.clone(), value: value.clone() });
        }
    }
    if let Some(text) = &state.nft
        && seen.nft.as_deref() != Some(digest(text).as_str())
    {
        push(Action::LoadRuleset(text.clone()));
    }
    // What hangs on a link goes when the link goes down or away.
    let mut reset: Vec<&str> = broken.to_vec();
    for (name, link) in &state.links {
        let right = seen
            .links
            .get(name)
            .is_some_and(|seen| seen.up && seen.mac == link.mac && seen.mtu == link.mtu);
        if fresh(name) || !right {
            push(Action::SetLink { name: name.clone(), shape: Some((link.mac, link.mtu)) });
        }
        if seen.links.get(name).is_some_and(|seen| !seen.up) {
            reset.push(name);
        }
    }
    if seen.links.get("lo").is_none_or(|lo| !lo.up) {
        push(Action::SetLink { name: "lo".to_owned(), shape: None });
        reset.push("lo");
    }
    for address in &state.addresses {
        if fresh(&address.link) || !seen.addresses.contains(address) {
            push(Action::AddAddress(address.clone()));
        }
    }
    for ((link, address), mac) in &state.neighbours {
        let key = (link.clone(), *address);
        if reset.contains(&link.as_str()) || seen.neighbours.get(&key) != Some(mac) {
            push(Action::SetNeighbour(link.clone(), *address, *mac));
        }
    }
    for (key, target) in &state.routes {
        let lost = target.link().is_some_and(|link| reset.contains(&link));
        if lost || seen.routes.get(key) != Some(target) {
            push(Action::SetRoute(*key, target.clone()));
        }
    }
    for rule in state.rules.difference(&seen.rules) {
        push(Action::AddRule(rule.clone()));
    }
}

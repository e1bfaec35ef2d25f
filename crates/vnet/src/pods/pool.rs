//! The addresses of one node's pods, and who holds each. Not here: where the record of it is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    addr::{Prefix4, Prefix6},
    pods::PodNetwork,
};

/// The addresses that a node was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    addresses: BTreeSet<Ipv4Addr>,
}

impl Grant {
    /// A whole block, such as a node's /24 of the pod range.
    ///
    /// Behind kubenet's bridge the first address, the bridge's own and the last are not a pod's.
    /// Routed pods have no network of their own in which they could mean anything else, and Azure's
    /// CNS hands out all 256 (cns: the whole prefix is enumerated), which is how 250 pods fit.
    #[must_use]
    pub fn block(network: PodNetwork, block: Prefix4) -> Self {
        let all = (0..block.n_addresses()).filter_map(|offset| block.nth(offset));
        match network {
            PodNetwork::Kubenet => {
                let not_pods = [Some(block.network()), block.nth(1), Some(block.broadcast())];
                all.filter(|address| !not_pods.contains(&Some(*address))).collect()
            }
            PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::PodSubnet
            | PodNetwork::Overlay => all.collect(),
        }
    }

    /// The addresses, lowest first.
    #[must_use]
    pub fn addresses(&self) -> &BTreeSet<Ipv4Addr> {
        &self.addresses
    }
}

impl FromIterator<Ipv4Addr> for Grant {
    fn from_iter<I: IntoIterator<Item = Ipv4Addr>>(addresses: I) -> Self {
        Self { addresses: addresses.into_iter().collect() }
    }
}

/// The address of IPv6 that belongs to a pod's `address` in dual-stack clusters: as far from the beginning of
/// `block_v6` as the other one from that of `block`, as Azure's own samples show it (`configure-kubenet-dual-stack`:
/// 10.244.2.2 and `fd12:3456:789a:0:2::2`).
///
/// So whoever holds the one holds the other, and one record is enough for both. `None` when `address` is not of
/// `block`, or `block_v6` is too small.
#[must_use]
pub fn companion(block: Prefix4, block_v6: Prefix6, address: Ipv4Addr) -> Option<Ipv6Addr> {
    if !block.contains(address) {
        return None;
    }
    let offset = u32::from(address) - u32::from(block.network());
    block_v6.nth(offset.into())
}

/// Who holds which of a node's addresses.
///
/// An address is *free*, *held* by one owner, *leaving* (its owner has gone, its link has not) or
/// *returning* (offered back to the subnet). Only a free one is handed out.
#[derive(Clone, Debug)]
pub struct Pool<Owner> {
    granted: BTreeSet<Ipv4Addr>,
    /// Exactly the reverse of `owners`.
    held: BTreeMap<Ipv4Addr, Owner>,
    owners: BTreeMap<Owner, Ipv4Addr>,
    /// Disjoint from `held`.
    leaving: BTreeSet<Ipv4Addr>,
    /// Disjoint from `held`.
    returning: BTreeSet<Ipv4Addr>,
    /// The address handed out last: the search goes on behind it, so that an address rests for as
    /// long as it can before it means another pod.
    last: Option<Ipv4Addr>,
}

/// No address is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free address: the node has {n_granted}, {n_held} are held and {n_leaving} still leaving"
)]
pub struct Exhausted {
    /// How many the node has.
    pub n_granted: usize,
    /// How many pods hold.
    pub n_held: usize,
    /// How many links are yet to go.
    pub n_leaving: usize,
}

/// An address or an owner is taken already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{address}` cannot be held: it, or its holder, is in another lease")]
pub struct Conflict {
    /// The address.
    pub address: Ipv4Addr,
}

impl<Owner> Default for Pool<Owner> {
    fn default() -> Self {
        Self {
            granted: BTreeSet::new(),
            held: BTreeMap::new(),
            owners: BTreeMap::new(),
            leaving: BTreeSet::new(),
            returning: BTreeSet::new(),
            last: None,
        }
    }
}

impl<Owner: Clone + Ord> Pool<Owner> {
    /// Replaces the grant. An address that is held stays so, granted or not: the pod is there.
    pub fn set_grant(&mut self, grant: &Grant) {
        self.granted.clone_from(&grant.addresses);
        self.returning.retain(|address| grant.addresses.contains(address));
    }

    /// Takes note of a lease made before this pool was.
    pub fn hold(&mut self, owner: Owner, address: Ipv4Addr) -> Result<(), Conflict> {
        if self.held.contains_key(&address)
            || self.leaving.contains(&address)
            || self.owners.contains_key(&owner)
        {
            return Err(Conflict { address });
        }
        self.returning.remove(&address);
        self.held.insert(address, owner.clone());
        self.owners.insert(owner, address);
        Ok(())
    }

    /// The address of `owner`: the one it holds, or a free one from now on.
    pub fn take(&mut self, owner: &Owner) -> Result<Ipv4Addr, Exhausted> {
        self.take_where(owner, |_| true)
    }

    /// Like [`Pool::take`], but none of those that are not `fit`.
    pub fn take_where(
        &mut self,
        owner: &Owner,
        fit: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Ipv4Addr, Exhausted> {
        if let Some(address) = self.owners.get(owner) {
            return Ok(*address);
        }
        let behind = self.last.and_then(|last| {
            let mut after = self.granted.range(last..).skip_while(|address| **address == last);
            after.find(|address| self.is_free(**address) && fit(**address))
        });
        let address = behind
            .or_else(|| {
                let mut all = self.granted.iter();
                all.find(|address| self.is_free(**address) && fit(**address))
            })
            .copied()
            .ok_or(Exhausted {
                n_granted: self.granted.len(),
                n_held: self.held.len(),
                n_leaving: self.leaving.len(),
            })?;
        self.held.insert(address, owner.clone());
        self.owners.insert(owner.clone(), address);
        self.last = Some(address);
        Ok(address)
    }

    /// Which address `owner` holds.
    #[must_use]
    pub fn address_of(&self, owner: &Owner) -> Option<Ipv4Addr> {
        self.owners.get(owner).copied()
    }

    /// Everyone who holds an address.
    pub fn owners(&self) -> impl Iterator<Item = (&Owner, Ipv4Addr)> {
        self.owners.iter().map(|(owner, address)| (owner, *address))
    }

    /// The owner is gone; its address rests until [`Pool::free`]. Nothing to do is fine.
    pub fn leave(&mut self, owner: &Owner) -> Option<Ipv4Addr> {
        let address = self.owners.remove(owner)?;
        self.held.remove(&address);
        self.leaving.insert(address);
        Some(address)
    }

    /// The link of a leaving address is gone too: it can be handed out again.
    pub fn free(&mut self, address: Ipv4Addr) {
        self.leaving.remove(&address);
    }

    /// Sets `n` free addresses aside, highest first, to be given back to the subnet.
    pub fn give_back(&mut self, n: usize) -> Vec<Ipv4Addr> {
        let highest_first = self.granted.iter().rev().copied();
        let chosen: Vec<_> =
            highest_first.filter(|address| self.is_free(*address)).take(n).collect();
        self.returning.extend(&chosen);
        chosen
    }

    /// Sets one address aside that is free; another stays as it is.
    pub fn set_aside(&mut self, address: Ipv4Addr) {
        if self.granted.contains(&address) && self.is_free(address) {
            self.returning.insert(address);
        }
    }

    /// The addresses set aside by [`Pool::give_back`] that are still granted.
    #[must_use]
    pub fn returning(&self) -> &BTreeSet<Ipv4Addr> {
        &self.returning
    }

    /// How many addresses the node has.
    #[must_use]
    pub fn n_granted(&self) -> usize {
        self.granted.len()
    }

    /// How many granted addresses pods use, those that are still leaving included.
    #[must_use]
    pub fn n_in_use(&self) -> usize {
        let used = self.held.keys().chain(&self.leaving);
        used.filter(|address| self.granted.contains(address)).count()
    }

    /// How many could be handed out now.
    #[must_use]
    pub fn n_free(&self) -> usize {
        self.granted.iter().filter(|address| self.is_free(**address)).count()
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        !self.held.contains_key(&address)
            && !self.leaving.contains(&address)
            && !self.returning.contains(&address)
    }
}

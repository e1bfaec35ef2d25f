//! Peerings between virtual networks: each side is an object of its own, and a peering is what both make together.
//!
//! Rules: Azure Virtual Network documentation, "Virtual network peering", "Create, change, or delete a virtual
//! network peering" and "Update the address space for a peered virtual network"; codes and texts as users pasted them.
//!
//! *Life of a side.* `Initiated` until the other virtual network has one, too, then both are `Connected`. When one
//! goes, or its virtual network does, the other is `Disconnected`; writing that one again makes it `Initiated`.
//! A side that is being deleted counts as gone.
//!
//! *Guarantee.* The spaces that a virtual network can have routes to are apart: its own and, for each of its peerings
//! that are not `Disconnected`, the other's as it is and as this side learned it last.

use std::sync::Arc;

use super::{Change, Region, UNCHANGED, etag, lifecycle, refusal};
use crate::{
    addr::Prefix,
    command::{Accepted, PutPeering},
    fault::Fault,
    kind,
    model::{Generation, Peering, PeeringState, PeeringSync, ProvisioningState, Vnet},
    name::{ArmId, Name},
};

/// Peerings of a virtual network (Azure subscription and service limits, networking).
const MAX_PEERINGS: usize = 500;

impl Peering {
    /// Whether this side counts: it is not on its way out.
    fn is_there(&self) -> bool {
        self.state != ProvisioningState::Deleting
    }

    /// Whether routes to the other virtual network may come from this side.
    fn is_live(&self) -> bool {
        self.is_there() && self.peering_state != PeeringState::Disconnected
    }
}

impl Region {
    /// A peering and the virtual network whose side it is.
    #[must_use]
    pub fn peering(&self, id: &ArmId) -> Option<(&Arc<Vnet>, &Peering)> {
        if !id.is_kind(kind::PEERING) {
            return None;
        }
        let vnet = self.vnets.get(&id.parent()?)?;
        Some((vnet, vnet.peerings.get(&Name::new(id.name()))?))
    }

    /// The other virtual network's side of `peering`, which is one of `vnet`'s.
    #[must_use]
    pub fn other_side(&self, vnet: &ArmId, peering: &Peering) -> Option<(&Arc<Vnet>, &Peering)> {
        let other = self.vnets.get(&peering.remote)?;
        let mut sides = other.peerings.values();
        Some((other, sides.find(|side| side.remote == *vnet && side.is_there())?))
    }

    /// Whether the two sides of `peering`, one of `vnet`'s, know each other's address space as it is.
    #[must_use]
    pub fn peering_sync(&self, vnet: &Vnet, peering: &Peering) -> PeeringSync {
        let remote = self.vnets.get(&peering.remote);
        let is_local = remote.is_some_and(|remote| remote.prefixes == peering.remote_prefixes);
        let is_remote = self
            .other_side(&vnet.meta.id, peering)
            .is_some_and(|(_, side)| side.remote_prefixes == vnet.prefixes);
        match (is_local, is_remote) {
            (true, true) => PeeringSync::FullyInSync,
            (true, false) => PeeringSync::RemoteNotInSync,
            (false, true) => PeeringSync::LocalNotInSync,
            (false, false) => PeeringSync::LocalAndRemoteNotInSync,
        }
    }

    /// The spaces that `vnet` has or may have routes to through its live peerings, each with whose it is.
    fn peered_spaces<'a>(
        &'a self,
        vnet: &'a Vnet,
    ) -> impl Iterator<Item = (&'a ArmId, Prefix)> + 'a {
        vnet.peerings.values().filter(|peering| peering.is_live()).flat_map(|peering| {
            let now = self.vnets.get(&peering.remote).map_or(&[][..], |remote| &remote.prefixes);
            let learned = &peering.remote_prefixes;
            let all = learned.iter().chain(now.iter().filter(|prefix| !learned.contains(prefix)));
            all.map(|prefix| (&peering.remote, *prefix))
        })
    }

    /// What is wrong with peerings.
    pub(super) fn find_in_peerings(&self, findings: &mut Vec<String>) {
        for (id, vnet) in &self.vnets {
            let mut spaces: Vec<(&ArmId, Prefix)> =
                vnet.prefixes.iter().map(|prefix| (id, *prefix)).collect();
            spaces.extend(self.peered_spaces(vnet));
            for (i, (a, one)) in spaces.iter().enumerate() {
                for (b, other) in &spaces[i + 1..] {
                    if a != b && one.overlaps(*other) {
                        findings.push(format!("{id} sees {one} of {a} and {other} of {b}"));
                    }
                }
            }
            for peering in vnet.peerings.values() {
                let name = &peering.name;
                if peering.remote == *id {
                    findings.push(format!("{id} is peered with itself"));
                }
                let twins = vnet.peerings.values().filter(|other| other.remote == peering.remote);
                if twins.count() > 1 {
                    findings.push(format!("{id} has two peerings with {}", peering.remote));
                }
                let other = self.other_side(id, peering).map(|(_, side)| side.peering_state);
                let is_right = match peering.peering_state {
                    _ if !peering.is_there() || vnet.meta.state == ProvisioningState::Deleting => {
                        other != Some(PeeringState::Connected)
                    }
                    PeeringState::Connected => other == Some(PeeringState::Connected),
                    PeeringState::Initiated => {
                        other.is_none() && self.vnets.contains_key(&peering.remote)
                    }
                    // The other one is going, or was never there when its virtual network went.
                    PeeringState::Disconnected => other.is_none() || self.is_going(&peering.remote),
                };
                if !is_right {
                    findings.push(format!(
                        "{id} has peering {name} {:?}, the other side is {other:?}",
                        peering.peering_state
                    ));
                }
            }
        }
    }

    fn is_going(&self, vnet: &ArmId) -> bool {
        self.vnets.get(vnet).is_some_and(|vnet| vnet.meta.state == ProvisioningState::Deleting)
    }
}

impl Change {
    pub(super) fn put_peering(&mut self, id: &ArmId, put: PutPeering) -> Result<Accepted, Fault> {
        self.live_group(id)?;
        let vnet_id = id.parent().ok_or_else(|| refusal::wrong_kind(id, kind::PEERING))?;
        let vnet = self.region.vnets.get(&vnet_id).cloned();
        let vnet = vnet.ok_or_else(|| refusal::parent_not_found(id, &vnet_id))?;
        self.refuse_going(&vnet_id, vnet.meta.state)?;
        refusal::check_name(put.name.as_str())?;
        if !put.remote.is_kind(kind::VNET) {
            return Err(refusal::wrong_kind(&put.remote, kind::VNET));
        }
        let old = vnet.peerings.get(&put.name);
        check_old(id, old, &put)?;
        check_new(id, &vnet, &put)?;
        let remote = self.region.vnets.get(&put.remote).cloned();
        let remote = remote.ok_or_else(|| refusal::reference(&put.remote, id))?;
        self.refuse_going(&put.remote, remote.meta.state)?;
        let other = remote.peerings.values().find(|side| side.remote == vnet_id && side.is_there());
        if let Some(other) = other
            && other.peering_state == PeeringState::Disconnected
        {
            return Err(remote_is_disconnected(id, &remote.meta.id, other, &vnet_id));
        }
        let peering_state =
            if other.is_some() { PeeringState::Connected } else { PeeringState::Initiated };
        // What was learned stays until a sync, but a peering that begins again learns anew.
        let learned =
            old.filter(|old| !put.sync && old.peering_state != PeeringState::Disconnected);
        let remote_prefixes =
            learned.map_or_else(|| remote.prefixes.clone(), |old| old.remote_prefixes.clone());
        let is_new = old.is_none();
        let peering = Peering {
            name: old.map_or_else(|| put.name.clone(), |old| old.name.clone()),
            remote: remote.meta.id.clone(),
            remote_prefixes,
            allow_access: put.allow_access,
            allow_forwarded: put.allow_forwarded,
            allow_gateway_transit: put.allow_gateway_transit,
            use_remote_gateways: put.use_remote_gateways,
            peering_state,
            state: ProvisioningState::Updating,
            changed: self.generation,
            kept: put.kept,
        };
        let other = other.map(|other| (other.name.clone(), other.peering_state));
        let mut vnet = vnet.as_ref().clone();
        vnet.peerings.insert(put.name, peering);
        self.touch(&mut vnet.meta, ProvisioningState::Updating);
        let prefixes = vnet.prefixes.clone();
        self.region.vnets.insert(vnet_id.clone(), Arc::new(vnet));
        if let Some((name, PeeringState::Initiated)) = other {
            // Now that both are there, both know each other as they are.
            self.change_side(&remote.meta.id, &name, |side| {
                side.peering_state = PeeringState::Connected;
                side.remote_prefixes = prefixes;
            });
        }
        self.refuse_overlaps(id, &vnet_id)?;
        self.refuse_overlaps_with(id, &vnet_id, &remote.meta.id)?;
        Ok(self.put(id, is_new))
    }

    /// Refuses a virtual network that would see one address in two places, itself or through its peers.
    fn refuse_overlaps(&self, cause: &ArmId, id: &ArmId) -> Result<(), Fault> {
        let Some(vnet) = self.region.vnets.get(id) else { return Ok(()) };
        for (remote, space) in self.region.peered_spaces(vnet) {
            if let Some(own) = vnet.prefixes.iter().find(|own| own.overlaps(space)) {
                return Err(Fault::bad(
                    "VnetAddressSpacesOverlap",
                    format!(
                        "Cannot create or update {}. Virtual networks {id} and {remote} cannot be peered because their \
                         address spaces overlap. Overlapping address prefixes: {own}, {space}",
                        named(cause)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Refuses two peers of a virtual network whose spaces overlap: `first` and `second`, which are peered or
    /// about to be, must not have peers that collide with the other.
    fn refuse_overlaps_with(
        &self,
        cause: &ArmId,
        first: &ArmId,
        second: &ArmId,
    ) -> Result<(), Fault> {
        for (one, hub) in [(first, second), (second, first)] {
            let Some(hub) = self.region.vnets.get(hub) else { continue };
            let spaces: Vec<(&ArmId, Prefix)> = self.region.peered_spaces(hub).collect();
            let of_one = spaces.iter().filter(|(id, _)| *id == one).map(|(_, space)| *space);
            // The hub need not have its side yet.
            let own = self.region.vnets.get(one).into_iter().flat_map(|one| one.prefixes.clone());
            for space in of_one.chain(own) {
                let third = spaces.iter().find(|(id, other)| *id != one && other.overlaps(space));
                if let Some((third, other)) = third {
                    return Err(Fault::bad(
                        "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet",
                        format!(
                            "Cannot create or update {}. Virtual networks {one} and {} cannot be peered because address \
                             space of the first virtual network overlaps with address space of virtual network {third} \
                             already peered with the second virtual network. Overlapping address prefixes: {other}. For \
                             more information please refer to https://aka.ms/VnetPeeringInfo",
                            named(cause),
                            hub.meta.id
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses an address space that a virtual network was just given, when its peers cannot live with it.
    pub(super) fn check_peers(&self, id: &ArmId) -> Result<(), Fault> {
        self.refuse_overlaps(id, id)?;
        let region = &self.region;
        let sees = |vnet: &&Arc<Vnet>| {
            vnet.peerings.values().any(|peering| peering.remote == *id && peering.is_live())
        };
        for other in region.vnets.values().filter(sees) {
            self.refuse_overlaps(id, &other.meta.id)?;
            self.refuse_overlaps_with(id, id, &other.meta.id)?;
        }
        Ok(())
    }

    pub(super) fn delete_peering(&mut self, id: &ArmId) -> Accepted {
        let Some((vnet, peering)) = self.region.peering(id) else { return UNCHANGED };
        if !peering.is_there() {
            return self.deleting_again(id);
        }
        let (vnet, name, remote) =
            (vnet.meta.id.clone(), peering.name.clone(), peering.remote.clone());
        self.change_side(&vnet, &name, |side| side.state = ProvisioningState::Deleting);
        self.disconnect_from(&remote, &vnet);
        self.deleting(id)
    }

    /// A virtual network goes: nobody is peered with it any more.
    pub(super) fn disconnect_peers(&mut self, id: &ArmId) {
        let others: Vec<ArmId> = self.region.vnets.keys().filter(|it| *it != id).cloned().collect();
        for other in others {
            self.disconnect_from(&other, id);
        }
    }

    /// The side of `vnet` that leads to `remote`, if there is one, has lost it.
    fn disconnect_from(&mut self, vnet: &ArmId, remote: &ArmId) {
        let side = self.region.vnets.get(vnet).and_then(|vnet| {
            let mut sides = vnet.peerings.values();
            sides
                .find(|side| side.remote == *remote && side.is_live())
                .map(|side| side.name.clone())
        });
        if let Some(name) = side {
            self.change_side(vnet, &name, |side| {
                side.peering_state = PeeringState::Disconnected;
            });
        }
    }

    /// Changes one side, which the fabric then has to make real. Its virtual network gets another etag.
    fn change_side(&mut self, vnet: &ArmId, name: &Name, change: impl FnOnce(&mut Peering)) {
        let generation = self.generation;
        let vnet = self.vnet_mut(vnet);
        vnet.meta.etag = etag(&vnet.meta.id, generation);
        if let Some(side) = vnet.peerings.get_mut(name) {
            if side.is_there() {
                side.state = ProvisioningState::Updating;
            }
            side.changed = generation;
            change(side);
        }
    }

    /// The fabric made `generation` real: sides are as asked, or gone.
    pub(super) fn settle_peerings(&mut self, generation: Generation) -> bool {
        let mut gone = Vec::new();
        let is_gone = |side: &Peering| !side.is_there() && side.changed <= generation;
        let is_due = |side: &Peering| {
            is_gone(side) || lifecycle::becomes_real(side.state, side.changed, generation)
        };
        let has_due = |vnet: &Vnet| vnet.peerings.values().any(is_due);
        let any = self.region.vnets.change(has_due, |vnet| {
            let id = vnet.meta.id.clone();
            vnet.peerings.retain(|name, side| {
                if is_gone(side) {
                    gone.push(id.child("virtualNetworkPeerings", name.as_str()));
                    return false;
                }
                if lifecycle::becomes_real(side.state, side.changed, generation) {
                    side.state = ProvisioningState::Succeeded;
                }
                true
            });
        });
        for peering in gone {
            self.forget_assignments(&peering);
        }
        any
    }
}

/// `peering …` or `virtual network …`, for the texts of refusals.
fn named(cause: &ArmId) -> String {
    let what = if cause.is_kind(kind::PEERING) { "peering" } else { "virtual network" };
    format!("{what} {cause}")
}

/// Refuses what cannot be changed about a side that is there.
fn check_old(id: &ArmId, old: Option<&Peering>, put: &PutPeering) -> Result<(), Fault> {
    let Some(old) = old else { return Ok(()) };
    if !old.is_there() {
        return Err(refusal::in_progress(id));
    }
    if old.remote != put.remote {
        return Err(Fault::bad(
            "ChangingRemoteVirtualNetworkNotAllowed",
            format!(
                "Remote virtual network of peering {id} cannot be changed from {} to {}.",
                old.remote, put.remote
            ),
        )
        .at("properties.remoteVirtualNetwork.id"));
    }
    Ok(())
}

/// Refuses a side that this virtual network cannot have.
fn check_new(id: &ArmId, vnet: &Vnet, put: &PutPeering) -> Result<(), Fault> {
    if put.remote == vnet.meta.id {
        return Err(refusal::invalid(
            "properties.remoteVirtualNetwork.id",
            &format!("Virtual network {} cannot be peered with itself.", vnet.meta.id),
        ));
    }
    if put.use_remote_gateways {
        return Err(Fault::bad(
            "RemoteVnetHasNoGateways",
            format!(
                "Peering {id} cannot have UseRemoteGateways flag set to true because remote virtual network {} referenced \
                 by the peering does not have any gateways.",
                put.remote
            ),
        )
        .at("properties.useRemoteGateways"));
    }
    let mut others = vnet.peerings.values().filter(|other| other.name != put.name);
    if let Some(other) = others.find(|other| other.remote == put.remote) {
        let other = vnet.meta.id.child("virtualNetworkPeerings", other.name.as_str());
        return Err(Fault::bad(
            "AnotherPeeringAlreadyReferencesRemoteVnet",
            format!(
                "Peering {other} already references remote virtual network {}. Cannot add another peering {id} referencing \
                 the same remote virtual network.",
                put.remote
            ),
        ));
    }
    if vnet.peerings.len() >= MAX_PEERINGS && !vnet.peerings.contains_key(&put.name) {
        return Err(refusal::invalid(
            "properties.virtualNetworkPeerings",
            &format!("{} would have more than {MAX_PEERINGS} peerings.", vnet.meta.id),
        ));
    }
    Ok(())
}

fn remote_is_disconnected(id: &ArmId, remote: &ArmId, other: &Peering, vnet: &ArmId) -> Fault {
    let other = remote.child("virtualNetworkPeerings", other.name.as_str());
    Fault::bad(
        "RemotePeeringIsDisconnected",
        format!(
            "Cannot create or update peering {id} because remote peering {other} referencing parent virtual network {vnet} \
             is in Disconnected state. Update or re-create the remote peering to get it back to Initiated state. Peering \
             gets Disconnected when remote vnet or remote peering is deleted and re-created."
        ),
    )
}

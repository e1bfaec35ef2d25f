//! Two sides of a peering: how they find and lose each other, and what is refused.

use vnet::{
    command::{Command, Outcome, PutPeering},
    model::{PeeringState, PeeringSync, ProvisioningState},
};

use crate::support::{Lab, common, group, id, prefix, put_peering, put_vnet, subnet, sync_peering};

/// Virtual networks `a`, `b` and `c` with a /16 each, and `far` in another group.
fn lab() -> Lab {
    let mut lab = Lab::new();
    for (name, range) in [("a", "10.1.0.0/16"), ("b", "10.2.0.0/16"), ("c", "10.3.0.0/16")] {
        lab.vnet(name, &[range]);
    }
    lab
}

impl Lab {
    fn side(&self, path: &str) -> Option<PeeringState> {
        self.region.peering(&id(&format!("peering {path}"))).map(|(_, side)| side.peering_state)
    }

    fn sync_of(&self, path: &str) -> PeeringSync {
        let (vnet, side) = self.region.peering(&id(&format!("peering {path}"))).unwrap();
        self.region.peering_sync(vnet, side)
    }

    fn learned(&self, path: &str) -> Vec<String> {
        let (_, side) = self.region.peering(&id(&format!("peering {path}"))).unwrap();
        side.remote_prefixes.iter().map(ToString::to_string).collect()
    }

    /// Both sides of a peering between two virtual networks.
    fn peer(&mut self, one: &str, other: &str) {
        self.must(put_peering(&format!("{one}/to-{other}"), other));
        self.must(put_peering(&format!("{other}/to-{one}"), one));
    }
}

#[test]
fn two_sides_make_a_peering() {
    let mut lab = lab();
    let made = lab.must(put_peering("a/to-b", "b"));
    assert_eq!(made.outcome, Outcome::Created);
    assert_eq!(lab.side("a/to-b"), Some(PeeringState::Initiated));
    assert_eq!(lab.sync_of("a/to-b"), PeeringSync::RemoteNotInSync);
    assert_eq!(lab.learned("a/to-b"), ["10.2.0.0/16"]);
    lab.fabric();
    let before = lab.region.vnets[&id("vnet a")].meta.etag;

    lab.must(put_peering("b/to-a", "a"));
    for path in ["a/to-b", "b/to-a"] {
        assert_eq!(lab.side(path), Some(PeeringState::Connected));
        assert_eq!(lab.sync_of(path), PeeringSync::FullyInSync);
        let (_, side) = lab.region.peering(&id(&format!("peering {path}"))).unwrap();
        assert_eq!(side.state, ProvisioningState::Updating, "the fabric has to know of {path}");
    }
    assert_ne!(lab.region.vnets[&id("vnet a")].meta.etag, before, "the other side has changed");
    lab.fabric();
    let (_, side) = lab.region.peering(&id("peering a/to-b")).unwrap();
    assert_eq!(side.state, ProvisioningState::Succeeded);
    assert_eq!(lab.must(put_peering("a/to-b", "b")).outcome, Outcome::Updated);
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Connected));
}

#[test]
fn a_side_that_lost_the_other_is_disconnected_and_begins_again() {
    let mut lab = lab();
    lab.peer("a", "b");
    lab.fabric();
    assert_eq!(lab.delete("peering a/to-b").outcome, Outcome::Deleting);
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Disconnected));
    assert_eq!(lab.refused(put_peering("a/to-b", "b")).code, "AnotherOperationInProgress");
    lab.fabric();
    assert_eq!(lab.side("a/to-b"), None);

    let fault = lab.refused(put_peering("a/to-b", "b"));
    assert_eq!(fault.code, "RemotePeeringIsDisconnected");
    assert!(fault.message.contains("/virtualNetworks/b/virtualNetworkPeerings/to-a"), "{fault}");
    // As the refusal says: the one that is left has to be written again.
    lab.must(put_peering("b/to-a", "a"));
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Initiated));
    lab.must(put_peering("a/to-b", "b"));
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Connected));
    assert_eq!(lab.delete("peering a/nope").outcome, Outcome::Unchanged);
}

#[test]
fn a_side_that_is_going_counts_as_gone() {
    let mut lab = lab();
    lab.must(put_peering("a/to-b", "b"));
    lab.delete("peering a/to-b");
    lab.must(put_peering("b/to-a", "a"));
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Initiated));
    lab.fabric();
    lab.must(put_peering("a/to-b", "b"));
    assert_eq!(lab.side("b/to-a"), Some(PeeringState::Connected));
}

#[test]
fn a_virtual_network_takes_its_peerings_with_it() {
    let mut lab = lab();
    lab.peer("a", "b");
    lab.must(put_peering("c/to-b", "b"));
    lab.delete("vnet b");
    for path in ["a/to-b", "c/to-b"] {
        assert_eq!(lab.side(path), Some(PeeringState::Disconnected), "{path}");
    }
    lab.fabric();
    assert_eq!(lab.refused(put_peering("a/to-b", "b")).code, "InvalidResourceReference");
    // The name comes back, the peering does not.
    lab.vnet("b", &["10.2.0.0/16"]);
    assert_eq!(lab.refused(put_peering("b/to-a", "a")).code, "RemotePeeringIsDisconnected");
    assert_eq!(lab.side("a/to-b"), Some(PeeringState::Disconnected));
}

#[test]
fn a_group_takes_its_side_with_it() {
    let mut lab = lab();
    lab.group("other");
    let far = group("other").sibling(vnet::kind::VNET, "far");
    lab.must(Command::PutVnet {
        common: common(far.clone()),
        prefixes: vec![prefix("10.9.0.0/16")],
        subnets: None,
    });
    let Command::PutPeering { id, peering } = put_peering("a/to-far", "far") else {
        unreachable!()
    };
    lab.must(Command::PutPeering { id, peering: PutPeering { remote: far, ..peering } });
    lab.must(Command::DeleteGroup { id: group("other") });
    lab.fabric();
    assert_eq!(lab.side("a/to-far"), Some(PeeringState::Disconnected));
}

#[test]
fn the_other_address_space_is_learned_by_a_sync() {
    let mut lab = lab();
    lab.peer("a", "b");
    lab.must(put_vnet("b", &["10.2.0.0/16", "10.20.0.0/16"]));
    assert_eq!(lab.learned("a/to-b"), ["10.2.0.0/16"]);
    assert_eq!(lab.sync_of("a/to-b"), PeeringSync::LocalNotInSync);
    assert_eq!(lab.sync_of("b/to-a"), PeeringSync::RemoteNotInSync);
    lab.must(put_vnet("a", &["10.1.0.0/16", "10.10.0.0/16"]));
    assert_eq!(lab.sync_of("a/to-b"), PeeringSync::LocalAndRemoteNotInSync);
    // Another write does not learn.
    lab.must(put_peering("a/to-b", "b"));
    assert_eq!(lab.learned("a/to-b"), ["10.2.0.0/16"]);
    lab.must(sync_peering("a/to-b", "b"));
    assert_eq!(lab.learned("a/to-b"), ["10.2.0.0/16", "10.20.0.0/16"]);
    assert_eq!(lab.sync_of("a/to-b"), PeeringSync::RemoteNotInSync);
    lab.must(sync_peering("b/to-a", "a"));
    assert_eq!(lab.sync_of("a/to-b"), PeeringSync::FullyInSync);
}

#[test]
fn what_no_peering_can_be_is_refused() {
    let mut lab = lab();
    lab.vnet("twin", &["10.3.0.0/24"]);
    lab.peer("a", "b");
    let with = |path: &str, remote: &str, change: fn(&mut PutPeering)| {
        let Command::PutPeering { id, mut peering } = put_peering(path, remote) else {
            unreachable!()
        };
        change(&mut peering);
        Command::PutPeering { id, peering }
    };
    for (command, code) in [
        (put_peering("a/self", "a"), "InvalidParameter"),
        (put_peering("a/nope", "nope"), "InvalidResourceReference"),
        (put_peering("nope/x", "a"), "ParentResourceNotFound"),
        (put_peering("a/again", "b"), "AnotherPeeringAlreadyReferencesRemoteVnet"),
        (put_peering("a/to-b", "c"), "ChangingRemoteVirtualNetworkNotAllowed"),
        (put_peering("a/-", "c"), "InvalidResourceName"),
        (put_peering("c/twin", "twin"), "VnetAddressSpacesOverlap"),
        (with("a/c", "c", |it| it.use_remote_gateways = true), "RemoteVnetHasNoGateways"),
        (with("a/c", "c", |it| it.remote = id("nic c")), "InvalidResourceType"),
    ] {
        assert_eq!(lab.refused(command.clone()).code, code, "{command:?}");
    }
}

#[test]
fn two_peers_of_a_virtual_network_are_apart() {
    let mut lab = lab();
    lab.vnet("twin", &["10.3.0.0/24"]);
    lab.peer("a", "c");
    for path in [("a/twin", "twin"), ("twin/a", "a")] {
        let fault = lab.refused(put_peering(path.0, path.1));
        assert_eq!(fault.code, "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet", "{fault}");
        assert!(fault.message.contains("Overlapping address prefixes: 10.3.0.0/16"), "{fault}");
    }
    // Nothing that is only reachable through somebody else is in the way.
    lab.must(put_peering("b/twin", "twin"));
    lab.must(put_peering("b/a", "a"));
}

#[test]
fn an_address_space_may_not_grow_into_a_peers() {
    let mut lab = lab();
    lab.peer("a", "b");
    lab.peer("b", "c");
    for (name, prefixes, code) in [
        ("a", ["10.1.0.0/16", "10.2.9.0/24"], "VnetAddressSpacesOverlap"),
        ("a", ["10.1.0.0/16", "10.3.9.0/24"], "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"),
        ("b", ["10.2.0.0/16", "10.1.0.0/24"], "VnetAddressSpacesOverlap"),
    ] {
        assert_eq!(lab.refused(put_vnet(name, &prefixes)).code, code, "{name} {prefixes:?}");
    }
    lab.must(put_vnet("a", &["10.1.0.0/16", "10.4.0.0/16"]));
    // What a peer has given up is its own until the other has learned that.
    lab.must(sync_peering("b/to-a", "a"));
    lab.must(put_vnet("a", &["10.1.0.0/16"]));
    let grown = put_vnet("b", &["10.2.0.0/16", "10.4.0.0/16"]);
    assert_eq!(lab.refused(grown.clone()).code, "VnetAddressSpacesOverlap");
    lab.must(sync_peering("b/to-a", "a"));
    lab.must(grown);
}

#[test]
fn what_belongs_to_a_peered_network_still_changes() {
    let mut lab = lab();
    lab.peer("a", "b");
    lab.subnet("a", "s", "10.1.0.0/24");
    lab.fabric();
    assert_eq!(lab.side("a/to-b"), Some(PeeringState::Connected));
    lab.must(Command::PutVnet {
        common: common(id("vnet a")),
        prefixes: vec![prefix("10.1.0.0/16")],
        subnets: Some(vec![subnet("t", "10.1.1.0/24")]),
    });
    assert_eq!(lab.side("a/to-b"), Some(PeeringState::Connected));
}

//! Laws and tables of a node's pods.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use proptest::prelude::*;
use vnet::{
    addr::Prefix4,
    pods::{
        PodNetwork,
        demand::{Scaler, Step, Supply, step},
        masquerade::{masquerade, render},
        pool::{Grant, Pool},
        wiring::{Path, wiring},
    },
};

fn prefix(text: &str) -> Prefix4 {
    text.parse().unwrap()
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

// --- the pool -----------------------------------------------------------------------------------

/// What can happen to a pool; owners are small numbers, so that they meet.
#[derive(Clone, Copy, Debug)]
enum Event {
    Take(u8),
    Leave(u8),
    FreeAll,
    GiveBack(usize),
    Grant(u8),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u8..12).prop_map(Event::Take),
        3 => (0_u8..12).prop_map(Event::Leave),
        1 => Just(Event::FreeAll),
        1 => (0_usize..4).prop_map(Event::GiveBack),
        1 => (0_u8..12).prop_map(Event::Grant),
    ]
}

fn granted(n: u8) -> Grant {
    (0..n).map(|last| Ipv4Addr::new(10, 1, 0, last)).collect()
}

proptest! {
    /// After any steps an address has one owner and an owner one address; what is handed out was
    /// granted, and neither leaving nor offered back.
    #[test]
    fn one_address_has_one_holder(events in prop::collection::vec(any_event(), 0..80)) {
        let mut pool = Pool::default();
        let mut grant = granted(6);
        pool.set_grant(&grant);
        let mut held: BTreeMap<u8, Ipv4Addr> = BTreeMap::new();
        let mut leaving: BTreeSet<Ipv4Addr> = BTreeSet::new();
        for event in events {
            match event {
                Event::Take(owner) => match pool.take(&owner) {
                    Ok(address) => {
                        if let Some(before) = held.insert(owner, address) {
                            prop_assert_eq!(before, address, "repeatable");
                        } else {
                            prop_assert!(grant.addresses().contains(&address), "granted");
                        }
                        prop_assert!(!leaving.contains(&address), "rests until its link is gone");
                        prop_assert!(!pool.returning().contains(&address), "offered back");
                    }
                    Err(full) => {
                        prop_assert_eq!(pool.n_free(), 0);
                        prop_assert_eq!(full.n_held, held.len());
                    }
                },
                Event::Leave(owner) => {
                    prop_assert_eq!(pool.leave(&owner), held.get(&owner).copied());
                    leaving.extend(held.remove(&owner));
                }
                Event::FreeAll => {
                    for address in &leaving {
                        pool.free(*address);
                    }
                    leaving.clear();
                }
                Event::GiveBack(n) => {
                    let chosen = pool.give_back(n);
                    prop_assert!(chosen.len() <= n);
                    for address in chosen {
                        prop_assert!(!held.values().any(|other| *other == address));
                    }
                }
                Event::Grant(n) => {
                    grant = granted(n);
                    pool.set_grant(&grant);
                }
            }
            let distinct: BTreeSet<_> = held.values().collect();
            prop_assert_eq!(distinct.len(), held.len(), "no two holders");
            let listed: BTreeMap<u8, Ipv4Addr> =
                pool.owners().map(|(owner, address)| (*owner, address)).collect();
            prop_assert_eq!(&listed, &held);
        }
    }

    /// A pool made from the leases of another one holds the same.
    #[test]
    fn leases_can_be_taken_up(owners in prop::collection::btree_set(0_u8..40, 0..20)) {
        let mut first = Pool::default();
        first.set_grant(&granted(40));
        for owner in &owners {
            first.take(owner).unwrap();
        }
        let mut second = Pool::default();
        second.set_grant(&granted(40));
        for (owner, address) in first.owners() {
            second.hold(*owner, address).unwrap();
        }
        for (owner, address) in first.owners() {
            prop_assert_eq!(second.take(owner), Ok(address));
            prop_assert!(second.hold(*owner, address).is_err(), "twice");
        }
    }
}

#[test]
fn an_address_rests_as_long_as_it_can() {
    let mut pool = Pool::default();
    pool.set_grant(&granted(3));
    let mut order = Vec::new();
    for owner in 0..6 {
        let address = pool.take(&owner).unwrap();
        order.push(address.octets()[3]);
        pool.leave(&owner);
        pool.free(address);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_full_pool_says_why() {
    let mut pool = Pool::default();
    pool.set_grant(&granted(2));
    pool.take(&1).unwrap();
    pool.take(&2).unwrap();
    pool.leave(&2);
    assert_eq!(
        pool.take(&3).unwrap_err().to_string(),
        "no free address: the node has 2, 1 are held and 1 still leaving"
    );
}

#[test]
fn a_block_gives_what_its_mode_can_use() {
    let block = prefix("10.244.3.0/24");
    let ends = |network| {
        let grant = Grant::block(network, block);
        let all = grant.addresses();
        format!("{} from {} to {}", all.len(), all.first().unwrap(), all.last().unwrap())
    };
    assert_eq!(ends(PodNetwork::Kubenet), "253 from 10.244.3.2 to 10.244.3.254");
    assert_eq!(ends(PodNetwork::Overlay), "256 from 10.244.3.0 to 10.244.3.255");
}

// --- asking for addresses -----------------------------------------------------------------------

/// `requested granted in_use returning listed` in, what is done out.
fn check(supply: [u32; 5], expected: Step) {
    let [requested, granted, in_use, returning, listed] = supply;
    let supply = Supply { requested, granted, in_use, returning, listed };
    assert_eq!(step(Scaler::default(), supply), expected, "{supply:?}");
}

#[test]
fn batches_of_sixteen_come_and_go() {
    let ask = |requested| Step::Ask { requested };
    check([0, 0, 0, 0, 0], ask(16));
    check([16, 16, 8, 0, 0], Step::Rest);
    check([16, 16, 9, 0, 0], ask(32));
    check([32, 16, 9, 0, 0], Step::Rest);
    check([32, 32, 16, 0, 0], Step::Rest);
    check([32, 32, 8, 0, 0], Step::GiveBack { requested: 16, n: 16 });
    check([32, 32, 9, 0, 0], Step::Rest);
    check([16, 32, 8, 16, 16], Step::Rest);
    check([16, 16, 8, 0, 16], Step::Tidy);
    check([240, 240, 233, 0, 0], ask(250));
    check([250, 250, 249, 0, 0], Step::Rest);
    check([250, 250, 226, 0, 0], Step::GiveBack { requested: 240, n: 10 });
}

#[test]
fn foolish_scalers_are_clamped() {
    let scaler = Scaler { batch: 0, request_percent: 0, release_percent: 0, max: 0 }.clamped();
    assert_eq!(scaler, Scaler { batch: 1, request_percent: 1, release_percent: 101, max: 1 });
    let scaler = Scaler { batch: 16, request_percent: 50, release_percent: 60, max: 250 };
    assert_eq!(scaler.clamped().max_free(), 24);
}

proptest! {
    /// With a controller that gives and takes what it is asked to, it comes to rest for every use,
    /// with room for the next pods and without hoarding.
    #[test]
    fn asking_comes_to_rest(uses in prop::collection::vec(0_u32..=250, 1..12)) {
        let scaler = Scaler::default();
        let (mut requested, mut granted, mut listed) = (0, 0, 0);
        for in_use in uses {
            // Pods cannot use what is not there: the use grows as far as it can, then asks again.
            for _ in 0..200 {
                let in_use = in_use.min(granted);
                let supply = Supply { requested, granted, in_use, returning: listed, listed };
                match step(scaler, supply) {
                    Step::Rest => {}
                    Step::Ask { requested: more } => requested = more,
                    Step::GiveBack { requested: fewer, n } => (requested, listed) = (fewer, n),
                    Step::Tidy => listed = 0,
                }
                prop_assert!(requested <= scaler.max);
                prop_assert!(granted - in_use >= listed, "only free ones are given back");
                // The controller's turn.
                granted = requested.max(in_use);
                listed = 0;
            }
            prop_assert_eq!(granted, requested);
            prop_assert!(granted >= in_use);
            let free = granted - in_use;
            prop_assert!(free >= scaler.min_free() || granted == scaler.max, "{} free", free);
            prop_assert!(free < scaler.max_free(), "{} free", free);
        }
    }
}

// --- masquerade ---------------------------------------------------------------------------------

fn rules(network: PodNetwork, grant: &Grant, exempt: &[&str]) -> String {
    let exempt: Vec<_> = exempt.iter().map(|text| prefix(text)).collect();
    render("eth0", &masquerade(network, grant, &exempt))
}

#[test]
fn kubenet_hides_everything_but_the_pod_range() {
    let grant = Grant::block(PodNetwork::Kubenet, prefix("10.244.1.0/30"));
    insta::assert_snapshot!(rules(PodNetwork::Kubenet, &grant, &["10.244.0.0/16"]), @r#"
    table ip aksnet {
    }
    delete table ip aksnet
    table ip aksnet {
    	set pods {
    		type ipv4_addr
    		flags interval
    		elements = { 10.244.1.2/32 }
    	}
    	set exempt {
    		type ipv4_addr
    		flags interval
    		elements = { 10.244.0.0/16, 169.254.0.0/16 }
    	}
    	chain postrouting {
    		type nat hook postrouting priority srcnat + 10; policy accept;
    		oifname "eth0" ip saddr @pods ip daddr != @exempt masquerade
    	}
    }
    "#);
}

#[test]
fn prefixes_that_overlap_or_touch_are_merged() {
    let grant: Grant = (4..8).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let text =
        rules(PodNetwork::NodeSubnet, &grant, &["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"]);
    assert!(text.contains("elements = { 10.0.0.4/30 }"), "{text}");
    assert!(text.contains("elements = { 10.0.0.0/8 }"), "{text}");
}

#[test]
fn a_pod_subnet_and_an_empty_grant_hide_nothing() {
    let grant = granted(3);
    let text = rules(PodNetwork::PodSubnet, &grant, &["10.0.0.0/8"]);
    assert_eq!(text, "table ip aksnet {\n}\ndelete table ip aksnet\n");
    let text = rules(PodNetwork::Overlay, &Grant::default(), &[]);
    assert!(!text.contains("elements"), "{text}");
}

// --- wiring -------------------------------------------------------------------------------------

#[test]
fn a_routed_pod_is_wired_as_azure_does() {
    let wiring = wiring(PodNetwork::Overlay, None, ("c0ffee", "eth0"), address("10.244.1.0"), 1500);
    // SHA-1 of the nil UUID's 16 bytes and `c0ffee/eth0`, computed elsewhere.
    assert_eq!(wiring.host_link, "azv887e99a67fe");
    assert_eq!(wiring.host_mac.to_string(), "aa:aa:aa:aa:aa:aa");
    assert_eq!(wiring.gateway(), address("169.254.1.1"));
    assert_eq!(wiring.prefix_length(), 32);
}

#[test]
fn a_kubenet_pod_is_a_port_of_the_bridge() {
    let block = Some(prefix("10.244.1.0/24"));
    let wiring =
        wiring(PodNetwork::Kubenet, block, ("c0ffee", "eth0"), address("10.244.1.2"), 1500);
    let Path::Bridged(bridge) = &wiring.path else { panic!("{wiring:?}") };
    assert_eq!((bridge.name.as_str(), bridge.gateway), ("cbr0", address("10.244.1.1")));
    assert_eq!(wiring.prefix_length(), 24);
    assert_ne!(wiring.host_mac, wiring.pod_mac);
    assert!(wiring.host_link.len() <= 15, "{}", wiring.host_link);
}

#[test]
fn every_attachment_has_a_link_of_its_own() {
    let names: BTreeSet<_> = (0..2000)
        .map(|n| {
            let container = format!("container{n}");
            let of = (container.as_str(), "eth0");
            wiring(PodNetwork::Overlay, None, of, Ipv4Addr::LOCALHOST, 1500).host_link
        })
        .collect();
    assert_eq!(names.len(), 2000);
}

//! Laws of [`mod@super::plan`]: carrying a plan out reaches what is desired, and then there is nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    plan::{Action, Step, plan},
    ruleset::digest,
    state::{
        Address, End, Fabric, Link, NamespaceState, Observed, ObservedLink, RouteKey, Rule, Target,
        Tenancy, Then,
    },
};
use crate::addr::{Family, Mac, Prefix, Prefix4, Prefix6};

type World = BTreeMap<String, Observed>;

/// Carries out a step as the kernel would.
fn pretend(world: &mut World, next_index: &mut u32, step: &Step) {
    let name = &step.namespace;
    match &step.action {
        Action::DeleteLink(link) => delete_link(world, name, link),
        Action::MakePair { name: link, link: is, peer_mac, peer_mtu } => {
            let (here, there) = (*next_index, *next_index + 1);
            *next_index += 2;
            let end = |index, peer, mac, mtu| ObservedLink {
                index,
                peer: Some(peer),
                mac,
                mtu,
                up: false,
                controller: None,
            };
            let ours = end(here, there, is.mac, is.mtu);
            let theirs = end(there, here, *peer_mac, *peer_mtu);
            assert!(seen(world, name).links.insert(link.clone(), ours).is_none(), "EEXIST");
            let peer = seen(world, &is.peer.namespace);
            assert!(peer.links.insert(is.peer.link.clone(), theirs).is_none(), "EEXIST");
        }
        action => change(seen(world, name), action),
    }
}

fn seen<'a>(world: &'a mut World, name: &str) -> &'a mut Observed {
    world.get_mut(name).expect("steps are for namespaces that were observed")
}

/// A link takes along its peer, and all that hangs on both.
fn delete_link(world: &mut World, name: &str, link: &str) {
    let Some(gone) = seen(world, name).links.get(link).cloned() else { return };
    forget(seen(world, name), link);
    let peer = world.iter().find_map(|(namespace, seen)| {
        let found = seen
            .links
            .iter()
            .find(|(_, it)| it.peer == Some(gone.index) && Some(it.index) == gone.peer)?;
        Some((namespace.clone(), found.0.clone()))
    });
    if let Some((namespace, link)) = peer {
        forget(seen(world, &namespace), &link);
    }
}

fn forget(seen: &mut Observed, link: &str) {
    seen.links.remove(link);
    seen.addresses.retain(|address| address.link != link);
    seen.routes.retain(|_, target| target.link() != Some(link));
    seen.neighbours.retain(|(on, _), _| on != link);
    seen.sysctls.retain(|name, _| !name.split('/').any(|part| part == link));
}

fn change(seen: &mut Observed, action: &Action) {
    match action {
        Action::DeleteRule(rule) => assert!(seen.rules.remove(rule)),
        // These may have gone with a link that was deleted from its other end.
        Action::DeleteRoute(key, _) => drop(seen.routes.remove(key)),
        Action::DeleteNeighbour(link, address, _) => {
            seen.neighbours.remove(&(link.clone(), *address));
        }
        Action::DeleteAddress(address) => {
            seen.addresses.remove(address);
        }
        Action::SetLink { name, shape } => {
            let link = seen.links.get_mut(name).expect("ENODEV");
            link.up = true;
            if let Some((mac, mtu)) = shape {
                (link.mac, link.mtu) = (*mac, *mtu);
            }
        }
        Action::SetSysctl { name, value } => drop(seen.sysctls.insert(name.clone(), value.clone())),
        Action::LoadRuleset(text) => seen.nft = Some(digest(text)),
        Action::ChangeRuleset { digest, .. } => seen.nft = Some(digest.clone()),
        Action::DropRuleset => seen.nft = None,
        Action::AddAddress(address) => {
            assert!(seen.links.contains_key(&address.link), "ENODEV");
            seen.addresses.insert(address.clone());
        }
        Action::SetNeighbour(link, address, mac) => {
            assert!(seen.links.contains_key(link), "ENODEV");
            seen.neighbours.insert((link.clone(), *address), *mac);
        }
        Action::SetRoute(key, target) => {
            let up = target.link().is_none_or(|link| seen.links.get(link).is_some_and(|it| it.up));
            assert!(up, "ENETDOWN");
            seen.routes.insert(*key, target.clone());
        }
        Action::AddRule(rule) => assert!(seen.rules.insert(rule.clone()), "EEXIST"),
        Action::DeleteLink(_) | Action::MakePair { .. } => unreachable!("of two namespaces"),
    }
}

/// What a namespace looks like that is as it must be, apart from numbers of links.
fn is_reached(state: &NamespaceState, seen: &Observed) -> bool {
    let links = state.links.iter().all(|(name, link)| {
        seen.links.get(name).is_some_and(|it| it.up && it.mac == link.mac && it.mtu == link.mtu)
    });
    let foreign = |name: &&String| !state.links.contains_key(*name) && *name != "lo";
    links
        && (state.tenancy == Tenancy::Shared || !seen.links.keys().any(|name| foreign(&name)))
        && state.addresses == seen.addresses
        && state.routes == seen.routes
        && state.rules == seen.rules
        && state.neighbours == seen.neighbours
        && state.nft.as_deref().map(digest) == seen.nft
        && state.sysctls.iter().all(|(name, value)| seen.sysctls.get(name) == Some(value))
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn any_mac() -> impl Strategy<Value = Mac> {
    (0..3u8).prop_map(|last| Mac([2, 0, 0, 0, 0, last]))
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (0..3u8, prop_oneof![Just(0u8), Just(8), Just(24), Just(32)])
        .prop_map(|(n, length)| Prefix::V4(Prefix4::containing([10, n, 0, n].into(), length)));
    let v6 = (0..3u16, prop_oneof![Just(0u8), Just(64), Just(128)]).prop_map(|(n, length)| {
        Prefix::V6(Prefix6::containing([0xfd00, n, 0, 0, 0, 0, 0, n].into(), length))
    });
    prop_oneof![v4, v6]
}

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

/// Everything but links; `links` are those that may be spoken of.
fn any_contents(links: Vec<String>) -> impl Strategy<Value = NamespaceState> {
    let link = prop::sample::select(links);
    let address = (link.clone(), 0..4u8, prop_oneof![Just(24u8), Just(32)])
        .prop_map(|(link, n, length)| Address { link, address: [10, 0, 0, n].into(), length });
    let target = prop_oneof![
        link.clone().prop_map(Target::Link),
        link.clone().prop_map(|link| Target::Via(link, [10, 0, 0, 1].into())),
        Just(Target::Blackhole),
        Just(Target::Throw),
    ];
    let key = (any_prefix(), 254..256u32).prop_map(|(prefix, table)| RouteKey { table, prefix });
    let rule = (1..3u32, any_family(), 0..3u32).prop_map(|(priority, family, table)| Rule {
        priority,
        family,
        mark: None,
        iif: None,
        from: None,
        then: Then::Table(table),
    });
    let neighbour = ((link.clone(), 0..3u8), any_mac())
        .prop_map(|((link, n), mac)| ((link, [10, 0, 0, n].into()), mac));
    let sysctl = (link.prop_map(|link| format!("net/ipv4/conf/{link}/x")), "[01]");
    (
        prop::collection::btree_set(address, 0..3),
        prop::collection::btree_map(key, target, 0..4),
        prop::collection::btree_set(rule, 0..3),
        prop::collection::vec(neighbour, 0..3),
        prop::collection::vec(sysctl, 0..3),
        prop::option::of("[xy]"),
        any::<bool>(),
    )
        .prop_map(|(addresses, routes, rules, neighbours, sysctls, nft, sole)| {
            NamespaceState {
                tenancy: if sole { Tenancy::Sole } else { Tenancy::Shared },
                links: BTreeMap::new(),
                addresses,
                routes,
                rules,
                neighbours: neighbours.into_iter().collect(),
                sysctls: sysctls.into_iter().collect(),
                nft,
            }
        })
}

/// Three namespaces with links between some of them, each pair spoken of from both sides.
fn any_fabric() -> impl Strategy<Value = Fabric> {
    let pair = (prop::sample::subsequence(NAMES.to_vec(), 2), 0..2u8, any_mac(), any_mac());
    prop::collection::vec(pair, 0..4).prop_flat_map(|pairs| {
        let mut links: BTreeMap<String, BTreeMap<String, Link>> =
            NAMES.iter().map(|name| ((*name).to_owned(), BTreeMap::new())).collect();
        for (ends, n, mac, peer_mac) in pairs {
            let end = |this: &str, other: &str| End {
                namespace: this.to_owned(),
                link: format!("to-{other}{n}"),
            };
            let (here, there) = (end(ends[0], ends[1]), end(ends[1], ends[0]));
            for (this, peer, mac) in [(&here, &there, mac), (&there, &here, peer_mac)] {
                let link = Link { mac, mtu: 1500, peer: peer.clone(), crossing: None };
                links.get_mut(&this.namespace).expect("named").insert(this.link.clone(), link);
            }
        }
        let contents: Vec<_> = links
            .values()
            .map(|links| any_contents(links.keys().cloned().chain(["lo".to_owned()]).collect()))
            .collect();
        contents.prop_map(move |contents| {
            let states = links.clone().into_iter().zip(contents);
            let namespaces =
                states.map(|((name, links), state)| (name, NamespaceState { links, ..state }));
            Fabric { namespaces: namespaces.collect() }
        })
    })
}

/// Empty namespaces, as the kernel makes them.
fn fresh() -> World {
    let lo = ObservedLink {
        index: 1,
        peer: None,
        mac: Mac([0; 6]),
        mtu: 65_536,
        up: false,
        controller: None,
    };
    let seen = Observed { links: BTreeMap::from([("lo".to_owned(), lo)]), ..Observed::default() };
    NAMES.iter().map(|name| ((*name).to_owned(), seen.clone())).collect()
}

fn carry_out(world: &mut World, next_index: &mut u32, desired: &Fabric) {
    for step in plan(desired, world) {
        pretend(world, next_index, &step);
    }
}

/// What somebody else may do to a world.
#[derive(Clone, Debug)]
enum Damage {
    LoseLink(usize, usize),
    Down(usize, usize),
    LoseRoutes(usize),
    LoseRules(usize),
    Flush(usize),
    /// The namespace was made anew, and the kernel has not yet removed the old one's links.
    Reborn(usize),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..3usize, 0..3usize).prop_map(|(at, link)| Damage::LoseLink(at, link)),
        (0..3usize, 0..3usize).prop_map(|(at, link)| Damage::Down(at, link)),
        (0..3usize).prop_map(Damage::LoseRoutes),
        (0..3usize).prop_map(Damage::LoseRules),
        (0..3usize).prop_map(Damage::Flush),
        (0..3usize).prop_map(Damage::Reborn),
    ]
}

fn do_damage(world: &mut World, damage: &Damage) {
    match *damage {
        Damage::LoseLink(at, n) => {
            let names: Vec<String> = seen(world, NAMES[at]).links.keys().cloned().collect();
            if let Some(link) = names.iter().filter(|name| *name != "lo").nth(n) {
                delete_link(world, NAMES[at], link);
            }
        }
        Damage::Down(at, n) => {
            let seen = seen(world, NAMES[at]);
            let Some(name) = seen.links.keys().nth(n).cloned() else { return };
            seen.links.get_mut(&name).expect("named").up = false;
            seen.routes.retain(|_, target| target.link() != Some(name.as_str()));
        }
        Damage::LoseRoutes(at) => seen(world, NAMES[at]).routes.clear(),
        Damage::LoseRules(at) => seen(world, NAMES[at]).rules = BTreeSet::new(),
        Damage::Flush(at) => seen(world, NAMES[at]).nft = None,
        Damage::Reborn(at) => *seen(world, NAMES[at]) = fresh()[NAMES[at]].clone(),
    }
}

proptest! {
    #[test]
    fn converges_from_anything_that_was_made_and_damaged_and_then_rests(
        before in any_fabric(),
        damage in prop::collection::vec(any_damage(), 0..4),
        after in prop::option::of(any_fabric()),
    ) {
        // Damage to what stays as it was is the interesting half.
        let desired = after.unwrap_or_else(|| before.clone());
        let mut world = fresh();
        let mut next_index = 2;
        carry_out(&mut world, &mut next_index, &before);
        for damage in &damage {
            do_damage(&mut world, damage);
        }
        carry_out(&mut world, &mut next_index, &desired);
        for (name, state) in &desired.namespaces {
            // Links of others stay in a shared namespace; what hung on them as ours does not.
            prop_assert!(is_reached(state, &world[name]), "{name}: {state}\n{:#?}", world[name]);
        }
        let again = plan(&desired, &world);
        prop_assert!(again.is_empty(), "{again:?}");
    }
}

/// A machine's owner makes its NIC a port of a bridge, which takes over what the NIC had (azure-vnet's mode
/// `bridge`). That is as it must be; what is lost then belongs on the bridge.
#[test]
fn a_bridge_may_stand_in_for_a_machines_nic() {
    let link = |namespace: &str, link: &str| Link {
        mac: Mac([2, 0, 0, 0, 0, 7]),
        mtu: 1500,
        peer: End { namespace: namespace.to_owned(), link: link.to_owned() },
        crossing: None,
    };
    let address = "10.224.0.4".parse().expect("an address");
    let gateway = "10.224.0.1".parse().expect("an address");
    let default = RouteKey { table: 254, prefix: "0.0.0.0/0".parse().expect("a prefix") };
    let mut machine = NamespaceState { tenancy: Tenancy::Shared, ..NamespaceState::default() };
    machine.links.insert("eth0".to_owned(), link(NAMES[1], "port"));
    machine.address("eth0", address, 16);
    machine.route(default.table, default.prefix, Target::Via("eth0".to_owned(), gateway));
    let mut vnet = NamespaceState::default();
    vnet.links.insert("port".to_owned(), link(NAMES[0], "eth0"));
    let namespaces = [(NAMES[0].to_owned(), machine), (NAMES[1].to_owned(), vnet)];
    let desired = Fabric { namespaces: namespaces.into() };
    let mut world = fresh();
    let mut next_index = 2;
    carry_out(&mut world, &mut next_index, &desired);

    let on_bridge = Target::Via("azure0".to_owned(), gateway);
    let seen_here = seen(&mut world, NAMES[0]);
    let bridge = ObservedLink { index: 900, peer: None, ..seen_here.links["eth0"].clone() };
    seen_here.links.insert("azure0".to_owned(), bridge);
    seen_here.links.get_mut("eth0").expect("made").controller = Some(900);
    seen_here.addresses =
        BTreeSet::from([Address { link: "azure0".to_owned(), address, length: 16 }]);
    seen_here.routes.insert(default, on_bridge.clone());
    assert_eq!(plan(&desired, &world), []);

    seen(&mut world, NAMES[0]).routes.clear();
    let step = |action| Step { namespace: NAMES[0].to_owned(), action };
    assert_eq!(plan(&desired, &world), [step(Action::SetRoute(default, on_bridge))]);

    // Without its pair the NIC is made anew, and has what it is to have.
    delete_link(&mut world, NAMES[1], "port");
    carry_out(&mut world, &mut next_index, &desired);
    assert!(is_reached(&desired.namespaces[NAMES[0]], &world[NAMES[0]]), "{world:#?}");
    assert_eq!(plan(&desired, &world), []);
}

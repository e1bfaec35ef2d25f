//! Laws and tables of a node's pods.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use proptest::prelude::*;
use vnet::{
    addr::{Family, Prefix, Prefix4},
    pods::{
        PodNetwork, bridging,
        demand::{Scaler, Step, Supply, step},
        exhaustion::{self, Ask, answer},
        masquerade::{Sets, Settings, sets},
        pool::{Grant, Pool, companion},
        ports::{HostPort, PortMapping, Transport},
        table::{fill, host_ports, n_rules, table},
        wiring::{Leg, Path, wiring},
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

#[test]
fn an_exhausted_subnet_gives_one_address_at_a_time() {
    let scaler = Scaler::default().exhausted().clamped();
    assert_eq!((scaler.batch, scaler.min_free(), scaler.max_free()), (1, 1, 2));
    let supply =
        |requested, granted, in_use| Supply { requested, granted, in_use, returning: 0, listed: 0 };
    assert_eq!(step(scaler, supply(16, 16, 16)), Step::Ask { requested: 17 });
    assert_eq!(step(scaler, supply(17, 17, 16)), Step::Rest);
    assert_eq!(step(scaler, supply(17, 17, 15)), Step::GiveBack { requested: 16, n: 1 });
}

#[test]
fn a_controller_grants_what_there_is() {
    let said = |wanted, has, listed, room, is_exhausted| {
        let (listed, listed_held) = listed;
        let given = answer(Ask { wanted, has, listed, listed_held, room, is_exhausted });
        (given.total, given.is_short)
    };
    assert_eq!(said(16, 0, (0, 0), 251, false), (Some(16), false));
    assert_eq!(said(32, 16, (0, 0), 15, false), (None, true), "no whole batch");
    assert_eq!(said(64, 16, (0, 0), 40, false), (Some(48), true), "two of three");
    assert_eq!(said(32, 16, (0, 0), 15, true), (Some(31), true), "single ones");
    assert_eq!(said(250, 240, (0, 0), 10, false), (Some(250), false), "the maximum is uneven");
    assert_eq!(said(16, 32, (16, 16), 0, false), (Some(16), false));
    assert_eq!(said(16, 32, (0, 0), 0, false), (None, false), "it has not said which");
    assert_eq!(said(48, 32, (1, 1), 99, true), (Some(31), false), "first what comes back");
    assert_eq!(said(48, 31, (1, 0), 99, true), (None, false), "then it is struck off the list");
}

/// A node of the simulation below: what its `NodeNetworkConfig` says and what its pods need.
#[derive(Clone, Debug, Default)]
struct Asker {
    requested: u32,
    granted: u32,
    returning: u32,
    listed: u32,
    pods: u32,
}

impl Asker {
    /// Pods that have an address.
    fn in_use(&self) -> u32 {
        self.pods.min(self.granted - self.returning)
    }

    fn act(&mut self, is_exhausted: bool) {
        let scaler = if is_exhausted { Scaler::default().exhausted() } else { Scaler::default() };
        let supply = Supply {
            requested: self.requested,
            granted: self.granted,
            in_use: self.in_use(),
            returning: self.returning,
            listed: self.listed,
        };
        match step(scaler, supply) {
            Step::Rest => return,
            Step::Tidy => {}
            Step::Ask { requested } => self.requested = requested,
            Step::GiveBack { requested, n } => {
                self.requested = requested;
                self.returning += n.min(self.granted - self.in_use() - self.returning);
            }
        }
        self.listed = self.returning;
    }
}

proptest! {
    /// Several nodes of one subnet, as large or as small as may be, with pods that come and go. No
    /// address is granted that is not there or taken from a pod; and when the pods stay as they are,
    /// every one of them has an address whenever the subnet has as many as there are pods and nodes.
    #[test]
    fn a_full_subnet_is_shared_and_heals(
        usable in 3_u32..300,
        phases in prop::collection::vec(prop::collection::vec(0_u32..=110, 4), 1..5),
    ) {
        let mut nodes = vec![Asker { requested: 16, ..Asker::default() }; 4];
        let mut is_exhausted = false;
        for phase in &phases {
            for (node, pods) in nodes.iter_mut().zip(phase) {
                node.pods = *pods;
            }
            let mut last = Vec::new();
            for round in 0..1200 {
                let mut is_anyone_short = false;
                for node in &mut nodes {
                    let before = node.in_use();
                    node.act(is_exhausted);
                    prop_assert!(node.in_use() >= before.min(node.pods), "a pod lost its address");
                }
                for n in 0..nodes.len() {
                    let room = usable - nodes.iter().map(|node| node.granted).sum::<u32>();
                    let node = &mut nodes[n];
                    let given = answer(Ask {
                        wanted: node.requested,
                        has: node.granted,
                        listed: node.listed,
                        listed_held: node.returning,
                        room,
                        is_exhausted,
                    });
                    is_anyone_short |= given.is_short;
                    if let Some(total) = given.total {
                        if total < node.granted {
                            node.returning -= node.granted - total;
                        }
                        node.granted = total;
                    }
                }
                let granted: u32 = nodes.iter().map(|node| node.granted).sum();
                prop_assert!(granted <= usable);
                is_exhausted = exhaustion::is_exhausted(
                    is_exhausted, is_anyone_short, u64::from(usable - granted), 4,
                );
                if round >= 1190 {
                    last.push(format!("{nodes:?} {is_exhausted}"));
                }
            }
            last.dedup();
            prop_assert_eq!(last.len(), 1, "it comes to rest: {:#?}", last);
            let pods: u32 = nodes.iter().map(|node| node.pods).sum();
            let served: u32 = nodes.iter().map(Asker::in_use).sum();
            // Each node keeps one for its next pod (CNS: `minFree = 1`), at most three idle ones here.
            prop_assert!(served >= pods.min(usable.saturating_sub(3)), "{} of {}: {:?}", served, pods, nodes);
        }
    }
}

#[test]
fn the_name_of_a_subnets_state_is_one_of_kubernetes() {
    assert_eq!(exhaustion::state_name("Pods_A.1-"), "pods-a-1");
    assert_eq!(exhaustion::state_name("podsubnet"), "podsubnet");
}

// --- masquerade ---------------------------------------------------------------------------------

fn sets_of(network: PodNetwork, grant: &Grant, settings: &Settings) -> String {
    let Sets { pods, exempt } = sets(network, grant, None, settings);
    let list = |prefixes: &[Prefix]| {
        prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    format!("pods [{}], exempt [{}]", list(&pods), list(&exempt))
}

/// What AKS says in each mode, and what it comes to.
#[test]
fn each_mode_hides_what_aks_hides() {
    let vnet = [prefix("10.0.0.0/16"), prefix("10.1.0.0/16")];
    let said = |network, grant: &Grant| {
        sets_of(
            network,
            grant,
            &Settings::of_aks(network, &[prefix("10.244.0.0/16").into()], &vnet),
        )
    };
    let block = Grant::block(PodNetwork::Kubenet, prefix("10.244.1.0/30"));
    assert_eq!(
        said(PodNetwork::Kubenet, &block),
        "pods [10.244.1.2/32], exempt [10.244.0.0/16 169.254.0.0/16]"
    );
    let block = Grant::block(PodNetwork::Overlay, prefix("10.244.1.0/24"));
    assert_eq!(said(PodNetwork::Overlay, &block), "pods [10.244.1.0/24], exempt [10.244.0.0/16]");
    let listed = granted(4);
    assert_eq!(said(PodNetwork::NodeSubnet, &listed), "pods [10.1.0.0/30], exempt [10.0.0.0/15]");
    assert_eq!(said(PodNetwork::PodSubnet, &listed), "pods [10.1.0.0/30], exempt []");
}

#[test]
fn lists_are_appended_and_switches_joined() {
    let user = Settings {
        non_masquerade: vec![prefix("192.168.0.0/16").into()],
        masquerade_link_local: true,
    };
    let pods = [prefix("10.244.0.0/16").into()];
    let both = Settings::of_aks(PodNetwork::Kubenet, &pods, &[] as &[Prefix]).and(&user);
    assert_eq!(
        sets_of(PodNetwork::Kubenet, &Grant::default(), &both),
        "pods [], exempt [10.244.0.0/16 192.168.0.0/16]"
    );
}

#[test]
fn prefixes_that_overlap_or_touch_are_merged() {
    let grant: Grant = (4..8).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let settings = Settings {
        non_masquerade: ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"]
            .map(|it| prefix(it).into())
            .to_vec(),
        masquerade_link_local: true,
    };
    assert_eq!(
        sets_of(PodNetwork::NodeSubnet, &grant, &settings),
        "pods [10.0.0.4/30], exempt [10.0.0.0/8]"
    );
}

#[test]
fn the_table_is_static_and_its_contents_are_elements() {
    insta::assert_snapshot!(table("eth0", PodNetwork::Overlay, Family::V4));
    insta::assert_snapshot!("the_table_of_ipv6", table("eth0", PodNetwork::Overlay, Family::V6));
    let each = |network| [(network, Family::V4), (network, Family::V6)];
    for (network, family) in PodNetwork::ALL.into_iter().flat_map(each) {
        let text = table("eth0", network, family);
        let verbs = [" drop", " masquerade", "return", " map @", "jump ", "addr set "];
        let rules = text.lines().filter(|line| verbs.iter().any(|verb| line.contains(verb)));
        assert_eq!(rules.count(), n_rules(network, family), "{network} {family:?}");
    }
    let pod_subnet = table("eth0", PodNetwork::PodSubnet, Family::V4);
    let masquerading: Vec<_> =
        pod_subnet.lines().filter(|line| line.contains("eth0")).map(str::trim).collect();
    assert_eq!(
        masquerading,
        [
            "oifname \"eth0\" ip saddr @pods ip daddr 168.63.129.16 meta l4proto { tcp, udp } th dport 53 masquerade",
            "oifname \"eth0\" ip saddr @pods ip daddr 169.254.169.254 tcp dport 80 masquerade",
        ]
    );
    let sets = Sets {
        pods: vec![prefix("10.244.1.0/24").into(), "fd00:0:0:1::/80".parse().unwrap()],
        exempt: Vec::new(),
    };
    let host = |transport, address, port| HostPort { transport, address, port };
    let ports = [
        PortMapping { host: host(Transport::Tcp, None, 8080), pod_port: 80 },
        PortMapping {
            host: host(Transport::Sctp, Some(address("10.0.0.4").into()), 8080),
            pod_port: 81,
        },
    ];
    let text = fill(&sets, Family::V4)
        + &host_ports([
            (address("10.244.1.5").into(), &ports[..]),
            ("fd00:0:0:1::5".parse().unwrap(), &ports[1..]),
            ("fd00:0:0:1::6".parse().unwrap(), &ports[..1]),
            (address("10.244.1.6").into(), &[]),
        ]);
    assert_eq!(
        text,
        "flush set ip aksnet pods\n\
         add element ip aksnet pods { 10.244.1.0/24 }\n\
         flush set ip aksnet exempt\n\
         add element ip aksnet hairpin { 10.244.1.5 . 10.244.1.5 }\n\
         add element ip aksnet host_ports { tcp . 8080 : 10.244.1.5 . 80 }\n\
         add element ip aksnet host_ports_at { 10.0.0.4 . sctp . 8080 : 10.244.1.5 . 81 }\n\
         add element ip6 aksnet hairpin { fd00:0:0:1::6 . fd00:0:0:1::6 }\n\
         add element ip6 aksnet host_ports { tcp . 8080 : fd00:0:0:1::6 . 80 }\n"
    );
    assert_eq!(
        fill(&sets, Family::V6),
        "flush set ip6 aksnet pods\n\
         add element ip6 aksnet pods { fd00:0:0:1::/80 }\n\
         flush set ip6 aksnet exempt\n"
    );
}

#[test]
fn host_ports_overlap_where_a_packet_could_be_for_both() {
    let host = |transport, address: Option<&str>, port| HostPort {
        transport,
        address: address.map(|text| text.parse().unwrap()),
        port,
    };
    let everywhere = host(Transport::Tcp, None, 80);
    let here = host(Transport::Tcp, Some("10.0.0.4"), 80);
    let there = host(Transport::Tcp, Some("10.0.0.5"), 80);
    assert!(everywhere.overlaps(here) && here.overlaps(everywhere) && here.overlaps(here));
    assert!(!here.overlaps(there));
    assert!(!everywhere.overlaps(host(Transport::Udp, None, 80)));
    assert!(!everywhere.overlaps(host(Transport::Tcp, None, 81)));
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

/// The address of IPv6 is as far from the beginning of its block as the other one.
#[test]
fn a_pod_of_two_families_has_one_leg_each() {
    let blocks = (Some(prefix("10.244.1.0/24")), Some("fd12:3456:789a:0:1::/80".parse().unwrap()));
    let legs = |network| {
        let wiring = wiring(network, blocks.0, ("c0ffee", "eth0"), address("10.244.1.17"), 1500)
            .with_v6(blocks.0, blocks.1);
        let leg = |leg: Leg| format!("{}/{} via {}", leg.address, leg.length, leg.gateway);
        wiring.legs().map(leg).collect::<Vec<_>>()
    };
    assert_eq!(
        legs(PodNetwork::Overlay),
        ["10.244.1.17/32 via 169.254.1.1", "fd12:3456:789a:0:1::11/128 via fe80::1234:5678:9abc",]
    );
    assert_eq!(
        legs(PodNetwork::Kubenet),
        ["10.244.1.17/24 via 10.244.1.1", "fd12:3456:789a:0:1::11/80 via fd12:3456:789a:0:1::1",]
    );
}

#[test]
fn an_address_has_a_companion_only_where_there_is_room() {
    let of = |block: &str, address_: &str| {
        let block = block.parse().unwrap();
        companion(prefix("10.244.1.0/24"), block, address(address_)).map(|it| it.to_string())
    };
    assert_eq!(of("fd00:0:0:1::/80", "10.244.1.0").as_deref(), Some("fd00:0:0:1::"));
    assert_eq!(of("fd00:0:0:1::/80", "10.244.1.255").as_deref(), Some("fd00:0:0:1::ff"));
    assert_eq!(of("fd00:0:0:1::/80", "10.244.2.0"), None);
    assert_eq!(of("fd00::/124", "10.244.1.15").as_deref(), Some("fd00::f"));
    assert_eq!(of("fd00::/124", "10.244.1.16"), None);
}

#[test]
fn a_pod_of_a_node_subnet_may_be_a_port_of_its_network() {
    let subnet = Some(prefix("10.240.0.0/16"));
    let attachment = ("c0ffee", "eth0");
    let wiring = wiring(PodNetwork::NodeBridge, subnet, attachment, address("10.240.0.9"), 1500);
    let Path::Switched(switch) = &wiring.path else { panic!("{wiring:?}") };
    assert_eq!(switch.bridge, "azure0");
    assert_eq!(wiring.gateway(), address("10.240.0.1"), "Azure's router");
    assert_eq!(wiring.prefix_length(), 16);
    assert!(wiring.host_link.starts_with("azv"), "{}", wiring.host_link);
    let mac = wiring.pod_mac;
    let text = bridging::frames("eth0", mac, address("10.240.0.4"));
    let n_rules =
        text.lines().filter(|line| line.starts_with("\t\t") && line.contains("ifname \"")).count();
    assert_eq!(n_rules, bridging::N_RULES);
    insta::assert_snapshot!(format!("{text}{}", bridging::admit([&wiring])));
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

//! What holds after any commands: the region has no findings, a refusal changes nothing (both are asserted by
//! [`Lab::apply`] after each), the same commands give the same region, and deleting everything leaves nothing.

use std::collections::BTreeSet;

use proptest::{collection::vec, option, prelude::*, sample::select, strategy::ValueTree};
use vnet::{
    command::{Command, Outcome, PutCluster, PutFrontend, PutLoadBalancer, PutPool, PutSubnet},
    fault::Fault,
    host::{Fabric, Health, change, compile_fabric},
    model::{
        Dataplane, InboundNatRule, InboundTarget, NetworkMode, NetworkPolicy, NextHop, NodePhase,
        OutboundType, PoolMode, PortRange, Route, Transport,
    },
    name::ArmId,
    region::Region,
};

use crate::support::{
    Lab, cluster, common, delegation, group, id, internal_balancer, ip, members, pool, prefix,
    put_application_group, put_cluster, put_nat, put_nic, put_nic_with, put_peering, put_prefix,
    put_public_ip, put_rule, put_security_group, put_vnet, rule, subnet, sync_peering,
};

/// A step: most are commands as they are; some depend on what is there when they come.
#[derive(Clone, Debug)]
enum Step {
    Do(Box<Command>),
    /// The fabric reports the generation that is this many behind.
    Fabric(u64),
    /// The same for a cluster.
    Cluster(&'static str, u64),
    /// The i-th machine, if there is one, reports.
    Node(usize, NodePhase),
    /// The nodes of a cluster go one step on in an upgrade.
    Upgrade(&'static str),
    /// The i-th machine asks for this many batches, and gives back its highest addresses where that is fewer.
    Pods(usize, u32),
}

fn name<const N: usize>(names: [&'static str; N]) -> impl Strategy<Value = &'static str> {
    select(names.to_vec())
}

/// Mostly the subnets that [`beginning`] has.
fn any_subnet() -> impl Strategy<Value = &'static str> {
    prop_oneof![9 => name(["v/a", "v/b", "v/c"]), 1 => name(["v/d", "w/a"])]
}

fn any_address() -> impl Strategy<Value = Option<&'static str>> {
    option::weighted(
        0.2,
        name(["10.1.0.4", "10.1.0.5", "10.1.0.3", "10.1.0.99", "10.1.1.9", "10.2.0.4"]),
    )
}

fn any_put_subnet() -> impl Strategy<Value = (&'static str, PutSubnet)> {
    // The beginning's own prefixes come first: most changes leave them as they are.
    let of = |path: &'static str| match path {
        "v/a" => name(["10.1.0.0/24", "10.1.0.0/24", "10.1.0.0/25"]),
        "v/b" => name(["10.1.4.0/22", "10.1.4.0/22", "10.1.0.0/22"]),
        "v/c" => name(["10.2.0.0/26", "10.2.0.0/26", "10.3.0.0/24"]),
        _ => name(["10.1.64.0/24", "10.1.64.0/28", "10.1.0.128/25"]),
    };
    let path_and_range = any_subnet().prop_flat_map(move |path| (Just(path), of(path)));
    let services = ["Microsoft.ContainerService/managedClusters", "Microsoft.Web/serverFarms"];
    let delegations = option::weighted(0.2, name(services));
    let group = option::weighted(0.3, name(["s", "t"]));
    let gateway = option::weighted(0.2, name(["g", "h"]));
    (path_and_range, delegations, prop::bool::weighted(0.2), group, gateway).prop_map(
        |((path, range), service, table, group, gateway)| {
            let (_, name) = path.split_once('/').unwrap();
            let put = PutSubnet {
                delegations: service.map(|service| delegation("0", service)).into_iter().collect(),
                route_table: table.then(|| id("table t")),
                security_group: group.map(|name| id(&format!("nsg {name}"))),
                nat_gateway: gateway.map(|name| id(&format!("nat {name}"))),
                ..subnet(name, range)
            };
            (path, put)
        },
    )
}

fn any_pool() -> impl Strategy<Value = PutPool> {
    let max_pods = option::weighted(0.2, select(vec![10, 30, 60]));
    let subnet = option::weighted(0.5, any_subnet());
    let pods = option::weighted(0.1, Just("v/b"));
    let mode = option::weighted(0.5, select(vec![PoolMode::System, PoolMode::User]));
    (name(["one", "two"]), 0_u32..4, max_pods, subnet, pods, mode).prop_map(
        |(name, count, max_pods, subnet, pods, mode)| PutPool {
            max_pods,
            mode,
            subnet: subnet.map(|path| id(&format!("subnet {path}"))),
            pod_subnet: pods.map(|path| id(&format!("subnet {path}"))),
            ..pool(name, count)
        },
    )
}

fn any_cluster() -> impl Strategy<Value = PutCluster> {
    use NetworkMode::{Azure, Kubenet, None, Overlay};
    let modes = select(vec![Azure, Kubenet, None, Overlay]);
    let outbound =
        option::weighted(0.1, select(vec![OutboundType::UserDefinedRouting, OutboundType::None]));
    let first =
        (1_u32..4, option::weighted(0.8, name(["v/a", "v/c"])), option::weighted(0.5, Just("v/b")));
    (modes, first, vec(any_pool(), 0..2), outbound, any_dataplane()).prop_map(
        |(mode, first, mut pools, outbound, (dataplane, policy))| {
            let (count, subnet, pods) = first;
            let pods = pods.filter(|_| mode == Azure);
            let subnet_id = |path: &str| id(&format!("subnet {path}"));
            let one = PutPool {
                subnet: subnet.map(subnet_id),
                pod_subnet: pods.map(subnet_id),
                ..pool("one", count)
            };
            pools.insert(0, one);
            // Where there is none, it is asked for rarely: what is refused leads nowhere.
            let has_cilium = matches!(mode, Azure | Overlay) || pools.len() > 2;
            let (dataplane, policy) =
                if has_cilium { (dataplane, policy) } else { (Option::None, Option::None) };
            PutCluster { outbound, dataplane, policy, ..cluster(mode, pools) }
        },
    )
}

/// A data plane and its policies; some do not go together.
fn any_dataplane() -> impl Strategy<Value = (Option<Dataplane>, Option<NetworkPolicy>)> {
    let dataplane = option::weighted(0.5, select(vec![Dataplane::Azure, Dataplane::Cilium]));
    let policies = vec![NetworkPolicy::None, NetworkPolicy::Cilium];
    (dataplane, option::weighted(0.1, select(policies)))
}

fn any_inbound_rule() -> impl Strategy<Value = InboundNatRule> {
    let member = option::weighted(0.7, (name(["m", "n"]), name(["a", "b", "ipconfig1"])));
    let port = 5_000_u16..5_004;
    (port.clone(), port, member, prop::bool::weighted(0.2)).prop_map(
        |(first, backend_port, member, of_pool)| InboundNatRule {
            frontend: "fe".into(),
            protocol: Transport::Tcp,
            target: if of_pool {
                let frontend_ports = PortRange { first, last: first + 1 };
                InboundTarget::Pool { pool: "pool".into(), frontend_ports }
            } else {
                InboundTarget::Configuration {
                    frontend_port: first,
                    member: member
                        .map(|(nic, config)| (id(&format!("nic {nic}")), config.to_owned())),
                }
            },
            backend_port,
            floating_ip: false,
            idle_timeout_minutes: 4,
            enable_tcp_reset: false,
        },
    )
}

/// Peerings, and what has public addresses.
fn any_beyond() -> impl Strategy<Value = Command> {
    let publics = || name(["p", "q"]);
    let prefixes = || name(["i", "j"]);
    let peers = || name(["v", "x", "y", "z"]);
    let spaces: Vec<(&str, &[&str])> = vec![
        ("x", &["10.5.0.0/16"]),
        ("x", &["10.5.0.0/16", "10.6.0.0/24"]),
        ("y", &["10.6.0.0/16"]),
        ("y", &["10.6.0.0/16", "10.7.0.0/16"]),
        ("z", &["10.7.0.0/16"]),
        ("z", &["10.8.0.0/16"]),
    ];
    let peering = (peers(), peers(), any::<bool>()).prop_map(|(from, to, sync)| {
        let path = format!("{from}/{to}");
        if sync { sync_peering(&path, to) } else { put_peering(&path, to) }
    });
    let end = (peers(), peers()).prop_map(|(from, to)| id(&format!("peering {from}/{to}")));
    let gateway = (name(["g", "h"]), vec(publics(), 0..2), vec(prefixes(), 0..2));
    let nic = (name(["m", "n"]), name(["a", "b"]), any_subnet(), option::of(publics()));
    prop_oneof![
        2 => select(spaces).prop_map(|(name, prefixes)| put_vnet(name, prefixes)),
        6 => peering,
        2 => end.prop_map(|id| Command::Delete { id }),
        1 => (prefixes(), 30_u8..32).prop_map(|(name, length)| put_prefix(name, length)),
        2 => (publics(), option::weighted(0.3, prefixes()))
            .prop_map(|(name, prefix)| put_public_ip(name, prefix)),
        2 => gateway.prop_map(|(name, publics, prefixes)| put_nat(name, &publics, &prefixes)),
        2 => nic.prop_map(|(name, config, subnet, public_ip)| {
            let mut command = put_nic(name, &[(config, subnet, None)]);
            if let Command::PutNic { configs, .. } = &mut command {
                configs[0].public_ip = public_ip.map(|name| id(&format!("pip {name}")));
            }
            command
        }),
    ]
}

fn any_balancer() -> impl Strategy<Value = PutLoadBalancer> {
    let member = name(["m", "n", "o"]);
    let rules = vec(any_inbound_rule(), 0..3);
    (any_subnet(), any_address(), any::<bool>(), vec(member, 0..3), rules).prop_map(
        |(subnet, address, public, members, rules)| {
            let mut balancer = internal_balancer(subnet, address);
            if public {
                balancer.frontends =
                    vec![("p".into(), PutFrontend::Public { public_ip: id("pip p") })];
            }
            let members = members.into_iter().map(|name| id(&format!("nic {name}")));
            balancer.pools = vec![("pool".into(), members.collect::<Vec<_>>().into())];
            let names = ["one", "two"].into_iter().map(Into::into);
            balancer.inbound_rules = names.zip(rules).collect();
            balancer
        },
    )
}

fn any_target() -> impl Strategy<Value = &'static str> {
    name([
        "vnet v",
        "vnet w",
        "subnet v/a",
        "subnet v/b",
        "subnet w/a",
        "table t",
        "route t/r",
        "nsg s",
        "nsg t",
        "rule s/a",
        "asg x",
        "asg y",
        "pip p",
        "pip q",
        "prefix i",
        "nat g",
        "nat h",
        "vnet x",
        "vnet y",
        "nic m",
        "nic n",
        "nic o",
        "vm m",
        "vm n",
        "lb b",
        "cluster c",
        "cluster d",
        "pool c/one",
        "pool c/two",
        "pool d/one",
    ])
}

fn any_command() -> impl Strategy<Value = Command> {
    let both = &["10.1.0.0/16", "10.2.0.0/16"][..];
    let prefixes = select(vec![both, both, &["10.1.0.0/16"], &["10.1.0.0/24"]]);
    let clusters = || name(["c", "d"]);
    prop_oneof![
        1 => (name(["v", "w"]), prefixes).prop_map(|(name, prefixes)| put_vnet(name, prefixes)),
        1 => (name(["v", "w"]), vec(any_put_subnet(), 0..3)).prop_map(|(name, subnets)| Command::PutVnet {
            common: common(id(&format!("vnet {name}"))),
            prefixes: vec![prefix("10.1.0.0/16"), prefix("10.2.0.0/16")],
            subnets: Some(subnets.into_iter().map(|(_, subnet)| subnet).collect()),
        }),
        6 => any_put_subnet().prop_map(|(path, subnet)| Command::PutSubnet {
            id: id(&format!("subnet {path}")),
            subnet,
        }),
        1 => Just(Command::PutRouteTable {
            common: common(id("table t")),
            routes: None,
            disable_bgp_route_propagation: false,
        }),
        2 => (name(["0.0.0.0/0", "10.1.0.0/16", "10.1.0.0/22"]), any_address()).prop_map(|(to, hop)| {
            // The next hop may be a machine's, a front end's, and nobody's.
            let next_hop = NextHop::VirtualAppliance(ip(hop.unwrap_or("10.1.0.4")));
            let route = Route { name: "r".into(), prefix: prefix(to), next_hop };
            Command::PutRoute { id: id("route t/r"), route }
        }),
        1 => name(["s", "t"]).prop_map(|name| put_security_group(name, None)),
        2 => (name(["s", "t"]), name(["a", "b"]), 100_u16..104, option::weighted(0.5, name(["x", "y"])))
            .prop_map(|(group, name, priority, peer)| {
                let mut rule = rule(name, priority);
                if let Some(peer) = peer {
                    rule.source = members(&[peer]);
                }
                put_rule(group, rule)
            }),
        1 => name(["x", "y"]).prop_map(put_application_group),
        3 => (name(["m", "n", "o"]), any_subnet(), option::weighted(0.5, name(["s", "t"])), name(["x", "y"]))
            .prop_map(|(name, subnet, group, member)| put_nic_with(name, subnet, group, &[member])),
        1 => Just(put_public_ip("p", None)),
        9 => any_beyond(),
        1 => vec(any_beyond(), 2..4).prop_map(Command::Together),
        5 => (name(["m", "n", "o"]), vec((name(["a", "b", "c"]), any_subnet(), any_address()), 1..3))
            .prop_map(|(name, configs)| put_nic(name, &configs)),
        4 => (name(["m", "n", "o"]), any_subnet(), option::weighted(0.3, name(["s", "t"])), any::<bool>())
            .prop_map(|(name, subnet, group, forwards)| {
                let mut command = put_nic_with(name, subnet, group, &[]);
                if let Command::PutNic { ip_forwarding, .. } = &mut command {
                    *ip_forwarding = forwards;
                }
                command
            }),
        6 => (name(["m", "n", "o"]), name(["m", "n", "o"])).prop_map(|(name, nic)| Command::PutVm {
            common: common(id(&format!("vm {name}"))),
            nic: id(&format!("nic {nic}")),
        }),
        3 => any_balancer().prop_map(|balancer| Command::PutLoadBalancer { common: common(id("lb b")), balancer }),
        4 => (clusters(), any_cluster()).prop_map(|(name, cluster)| Command::PutCluster {
            common: common(id(&format!("cluster {name}"))),
            cluster,
        }),
        4 => (clusters(), any_pool()).prop_map(|(name, pool)| Command::PutPool {
            id: id(&format!("pool {name}/{}", pool.name)),
            pool,
        }),
        2 => (clusters(), name(["one", "two"])).prop_map(|(name, pool)| Command::UpgradeNodeImage {
            id: id(&format!("pool {name}/{pool}")),
        }),
        1 => clusters().prop_map(|name| put_cluster(name, PutCluster {
            mode: Some(NetworkMode::Overlay),
            ..PutCluster::default()
        })),
        1 => (clusters(), any_dataplane()).prop_map(|(name, (dataplane, policy))| {
            put_cluster(name, PutCluster { dataplane, policy, ..PutCluster::default() })
        }),
        4 => any_target().prop_map(|text| Command::Delete { id: id(text) }),
        1 => clusters().prop_map(|name| Command::Delete { id: id(&format!("cluster {name}")) }),
        3 => clusters().prop_map(|name| Command::ClusterGone { cluster: id(&format!("cluster {name}")) }),
        6 => any_target().prop_map(|text| Command::Failed {
            target: id(text),
            fault: Fault::new(500, "InternalServerError", "it did not work"),
        }),
        1 => Just(Command::PruneOperations { keep: 3 }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_command().prop_map(|command| Step::Do(Box::new(command))),
        4 => (0_u64..3).prop_map(Step::Fabric),
        4 => (name(["c", "d"]), 0_u64..3).prop_map(|(name, behind)| Step::Cluster(name, behind)),
        1 => (0_usize..8, select(vec![NodePhase::NotReady, NodePhase::Ready])).prop_map(|(i, phase)| Step::Node(i, phase)),
        3 => name(["c", "d"]).prop_map(Step::Upgrade),
        2 => (0_usize..8, 0_u32..4).prop_map(|(i, batches)| Step::Pods(i, batches)),
    ]
}

/// A cluster that comes up, and what happens then.
fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    (any_cluster(), vec(any_step(), 1..60)).prop_map(|(cluster, steps)| {
        let put = Command::PutCluster { common: common(id("cluster c")), cluster };
        let mut all = vec![Step::Do(Box::new(put)), Step::Fabric(0), Step::Cluster("c", 0)];
        all.extend(steps);
        all
    })
}

impl Lab {
    fn step(&mut self, step: Step) {
        let machine = |lab: &Self, i: usize| lab.region.machines.keys().nth(i).cloned();
        let command = match step {
            Step::Do(command) => Some(*command),
            Step::Fabric(behind) => {
                let generation = self.region.generation.saturating_sub(behind);
                Some(Command::FabricReal { generation })
            }
            Step::Cluster(name, behind) => {
                let generation = self.region.generation.saturating_sub(behind);
                Some(Command::ClusterReal { cluster: id(&format!("cluster {name}")), generation })
            }
            Step::Node(i, phase) => {
                machine(self, i).map(|machine| Command::NodeReached { machine, phase })
            }
            Step::Upgrade(name) => {
                self.upgrade_step(name, NodePhase::Ready);
                None
            }
            Step::Pods(i, batches) => machine(self, i).map(|machine| Command::SetPodAddresses {
                released: self.region.pod_addresses_of(&machine),
                machine,
                total: batches * 16,
            }),
        };
        if let Some(command) = command {
            // Many are refused; that is what the law about refusals is for.
            let _ = self.apply(command);
        }
    }

    /// Deletes the group, and plays the loops until nothing changes.
    fn delete_everything(&mut self) {
        self.must(Command::DeleteGroup { id: group("aksntwdemo") });
        let clusters: Vec<ArmId> = self.region.clusters.keys().cloned().collect();
        for cluster in clusters {
            self.must(Command::ClusterGone { cluster });
        }
        self.fabric();
    }
}

/// Two virtual networks, a NIC, a route table and a public IP, so that most commands have something to do.
fn beginning() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16", "10.2.0.0/16"]);
    lab.vnet("w", &["10.1.0.0/16"]);
    for (name, range) in [("a", "10.1.0.0/24"), ("b", "10.1.4.0/22"), ("c", "10.2.0.0/26")] {
        lab.subnet("v", name, range);
    }
    lab.subnet("w", "a", "10.1.64.0/24");
    for (name, range) in [("x", "10.5.0.0/16"), ("y", "10.6.0.0/16"), ("z", "10.8.0.0/16")] {
        lab.vnet(name, &[range]);
    }
    lab.nic("m", "v/a", None).unwrap();
    lab.must(put_security_group("s", Some(vec![rule("a", 100)])));
    lab.must(put_application_group("x"));
    lab.must(Command::PutRouteTable {
        common: common(id("table t")),
        routes: None,
        disable_bgp_route_propagation: false,
    });
    lab
}

fn play(steps: Vec<Step>) -> Lab {
    let mut lab = beginning();
    for step in steps {
        lab.step(step);
    }
    lab
}

/// A number of cases that finds what there was to find and lets nobody wait; proptest's own variable
/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    // Proptest's own number means that nobody asked.
    let cases = if default.cases == 256 { 128 } else { default.cases };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_commands_break_the_laws_and_deleting_everything_leaves_nothing(
        steps in any_steps()
    ) {
        let mut lab = play(steps);
        lab.delete_everything();
        let region = &lab.region;
        prop_assert!(region.groups.is_empty() && region.vnets.is_empty());
        prop_assert!(region.nics.is_empty() && region.machines.is_empty());
        prop_assert!(region.balancers.is_empty() && region.public_ips.is_empty());
        prop_assert!(region.nat_gateways.is_empty() && region.public_ip_prefixes.is_empty());
        prop_assert!(region.route_tables.is_empty() && region.clusters.is_empty());
        prop_assert!(region.security_groups.is_empty() && region.application_groups.is_empty());
        prop_assert!(region.operations.values().all(|operation| operation.ended.is_some()));
    }

    #[test]
    fn the_same_commands_give_the_same_region(steps in any_steps()) {
        prop_assert_eq!(play(steps.clone()).region, play(steps).region);
    }

    #[test]
    fn a_report_twice_changes_nothing_the_second_time(steps in any_steps()) {
        let mut lab = play(steps);
        lab.fabric();
        let before = lab.region.clone();
        lab.fabric();
        prop_assert_eq!(&lab.region, &before);
    }
}

proptest! {
    // Each step compiles a whole fabric.
    #![proptest_config(ProptestConfig { cases: config().cases / 8, ..config() })]

    #[test]
    fn what_a_change_changes_of_a_fabric_leads_to_the_whole_one(steps in any_steps()) {
        let mut lab = beginning();
        let mut fabric = fabric_of(&lab.region);
        for step in steps {
            let before = lab.region.clone();
            lab.step(step);
            let whole = fabric_of(&lab.region);
            if let Some(change) = change("lab", &before, &lab.region, &Health::default()) {
                change.apply(&mut fabric);
                prop_assert_eq!(&fabric, &whole);
            }
            fabric = whole;
        }
    }
}

fn fabric_of(region: &Region) -> Fabric {
    compile_fabric("lab", region, &Health::default())
}

/// The law about changes is about something: most steps are told without compiling all, and some of those change a
/// fabric (of 875 steps that did, 45).
#[test]
fn changes_of_nics_and_machines_are_told() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut n_told, mut n_changed, mut n_of_them) = (0, 0, 0);
    for _ in 0..100 {
        let steps = any_steps().new_tree(&mut runner).expect("steps can be drawn").current();
        let mut lab = beginning();
        for step in steps {
            let before = lab.region.clone();
            lab.step(step);
            let is_changed = fabric_of(&before) != fabric_of(&lab.region);
            let change = change("lab", &before, &lab.region, &Health::default());
            n_told += usize::from(change.is_some());
            n_changed += usize::from(is_changed);
            n_of_them += usize::from(is_changed && change.is_some());
        }
    }
    assert!(n_told > 1000 && n_of_them * 40 > n_changed, "{n_told} {n_changed} {n_of_them}");
}

/// The laws are about something: every command is accepted now and then, and refused where it can be.
#[test]
fn steps_reach_every_command() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut accepted = BTreeSet::new();
    let mut codes = BTreeSet::new();
    for _ in 0..300 {
        let steps = any_steps().new_tree(&mut runner).expect("steps can be drawn").current();
        let mut lab = beginning();
        for step in steps {
            let Step::Do(command) = step else {
                lab.step(step);
                continue;
            };
            let text = format!("{command:?}");
            let kind = text.split([' ', '(']).next().unwrap_or_default().to_owned();
            match lab.apply(*command) {
                Ok(answer) if answer.outcome != Outcome::Unchanged => {
                    accepted.insert(kind);
                }
                Ok(_) => (),
                Err(fault) => {
                    codes.insert(fault.code);
                }
            }
        }
    }
    assert_eq!(accepted.len(), 22, "{accepted:?}");
    assert!(codes.len() >= 30, "{codes:?}");
}

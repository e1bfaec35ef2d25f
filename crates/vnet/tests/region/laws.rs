//! What holds after any commands: the region has no findings, a refusal changes nothing (both are asserted by
//! [`Lab::apply`] after each), the same commands give the same region, and deleting everything leaves nothing.

use proptest::{collection::vec, option, prelude::*, sample::select};
use vnet::{
    command::{Command, PutCluster, PutFrontend, PutLoadBalancer, PutPool, PutSubnet},
    fault::Fault,
    model::{Allocation, NetworkMode, NextHop, NodePhase, OutboundType, PoolMode, Route},
    name::ArmId,
};

use crate::support::{
    Lab, cluster, common, delegation, group, id, internal_balancer, ip, pool, prefix, put_nic, put_vnet, subnet,
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
    /// The i-th machine asks for this many batches, and gives back its highest addresses where that is fewer.
    Pods(usize, u32),
}

fn name<const N: usize>(names: [&'static str; N]) -> impl Strategy<Value = &'static str> {
    select(names.to_vec())
}

fn any_subnet() -> impl Strategy<Value = &'static str> {
    name(["v/a", "v/b", "v/c", "w/a", "w/b"])
}

fn any_address() -> impl Strategy<Value = Option<&'static str>> {
    option::weighted(0.3, name(["10.1.0.4", "10.1.0.5", "10.1.0.3", "10.1.0.15", "10.1.1.9", "10.2.0.4"]))
}

fn any_put_subnet() -> impl Strategy<Value = (&'static str, PutSubnet)> {
    let ranges = ["10.1.0.0/28", "10.1.0.0/24", "10.1.0.128/25", "10.1.1.0/24", "10.1.4.0/22", "10.2.0.0/26", "10.3.0.0/24"];
    let delegations = option::weighted(0.2, name(["Microsoft.ContainerService/managedClusters", "Microsoft.Web/serverFarms"]));
    (any_subnet(), name(ranges), delegations, any::<bool>()).prop_map(|(path, range, service, table)| {
        let (_, name) = path.split_once('/').unwrap();
        let put = PutSubnet {
            delegations: service.map(|service| delegation("0", service)).into_iter().collect(),
            route_table: table.then(|| id("table t")),
            ..subnet(name, range)
        };
        (path, put)
    })
}

fn any_pool() -> impl Strategy<Value = PutPool> {
    let max_pods = option::weighted(0.5, select(vec![10, 30, 60]));
    (name(["one", "two"]), 0_u32..5, max_pods, option::weighted(0.7, any_subnet()), option::weighted(0.2, any_subnet()), option::weighted(0.3, Just(PoolMode::System))).prop_map(
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
    let outbound = option::weighted(0.2, select(vec![OutboundType::UserDefinedRouting, OutboundType::None]));
    (modes, vec(any_pool(), 0..3), outbound).prop_map(|(mode, pools, outbound)| PutCluster {
        outbound,
        ..cluster(mode, pools)
    })
}

fn any_balancer() -> impl Strategy<Value = PutLoadBalancer> {
    let member = name(["m", "n", "o"]);
    (any_subnet(), any_address(), any::<bool>(), vec(member, 0..3)).prop_map(|(subnet, address, public, members)| {
        let mut balancer = internal_balancer(subnet, address);
        if public {
            balancer.frontends = vec![("p".into(), PutFrontend::Public { public_ip: id("pip p") })];
        }
        let members = members.into_iter().map(|name| id(&format!("nic {name}"))).collect();
        balancer.pools = vec![("pool".into(), members)];
        balancer
    })
}

fn any_target() -> impl Strategy<Value = &'static str> {
    name([
        "vnet v", "vnet w", "subnet v/a", "subnet v/b", "subnet w/a", "table t", "route t/r", "pip p", "nic m", "nic n",
        "nic o", "vm m", "vm n", "lb b", "cluster c", "cluster d", "pool c/one", "pool c/two", "pool d/one",
    ])
}

fn any_command() -> impl Strategy<Value = Command> {
    let prefixes = select(vec![&["10.1.0.0/16"][..], &["10.1.0.0/16", "10.2.0.0/16"], &["10.1.0.0/24"], &["10.2.0.0/16"]]);
    let clusters = || name(["c", "d"]);
    prop_oneof![
        3 => (name(["v", "w"]), prefixes).prop_map(|(name, prefixes)| put_vnet(name, prefixes)),
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
        1 => Just(Command::PutRoute {
            id: id("route t/r"),
            route: Route {
                name: "r".into(),
                prefix: prefix("0.0.0.0/0"),
                next_hop: NextHop::VirtualAppliance(ip("10.1.0.4")),
            },
        }),
        1 => Just(Command::PutPublicIp {
            common: common(id("pip p")),
            sku: "Standard".to_owned(),
            allocation: Allocation::Static,
        }),
        5 => (name(["m", "n", "o"]), vec((name(["a", "b", "c"]), any_subnet(), any_address()), 1..3))
            .prop_map(|(name, configs)| put_nic(name, &configs)),
        2 => (name(["m", "n"]), name(["m", "n", "o"])).prop_map(|(name, nic)| Command::PutVm {
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
        4 => any_target().prop_map(|text| Command::Delete { id: id(text) }),
        1 => clusters().prop_map(|name| Command::ClusterGone { cluster: id(&format!("cluster {name}")) }),
        1 => any_target().prop_map(|text| Command::Failed {
            target: id(text),
            fault: Fault::new(500, "InternalServerError", "it did not work"),
        }),
        1 => Just(Command::PruneOperations { keep: 3 }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_command().prop_map(|command| Step::Do(Box::new(command))),
        3 => (0_u64..3).prop_map(Step::Fabric),
        3 => (name(["c", "d"]), 0_u64..3).prop_map(|(name, behind)| Step::Cluster(name, behind)),
        1 => (0_usize..8, select(vec![NodePhase::NotReady, NodePhase::Ready])).prop_map(|(i, phase)| Step::Node(i, phase)),
        2 => (0_usize..8, 0_u32..4).prop_map(|(i, batches)| Step::Pods(i, batches)),
    ]
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

fn play(steps: Vec<Step>) -> Lab {
    let mut lab = Lab::new();
    for step in steps {
        lab.step(step);
    }
    lab
}

/// A number of cases that finds what is to be found and lets one wait: `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(200), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_commands_break_the_laws_and_deleting_everything_leaves_nothing(
        steps in vec(any_step(), 1..60)
    ) {
        let mut lab = play(steps);
        lab.delete_everything();
        let region = &lab.region;
        prop_assert!(region.groups.is_empty() && region.vnets.is_empty());
        prop_assert!(region.nics.is_empty() && region.machines.is_empty());
        prop_assert!(region.balancers.is_empty() && region.public_ips.is_empty());
        prop_assert!(region.route_tables.is_empty() && region.clusters.is_empty());
        prop_assert!(region.operations.values().all(|operation| operation.ended.is_some()));
    }

    #[test]
    fn the_same_commands_give_the_same_region(steps in vec(any_step(), 1..40)) {
        prop_assert_eq!(play(steps.clone()).region, play(steps).region);
    }

    #[test]
    fn a_report_twice_changes_nothing_the_second_time(steps in vec(any_step(), 1..40)) {
        let mut lab = play(steps);
        lab.fabric();
        let before = lab.region.clone();
        lab.fabric();
        prop_assert_eq!(&lab.region, &before);
    }
}
#[test]
fn zz_coverage() {
    use proptest::strategy::ValueTree;
    use std::collections::BTreeMap;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut codes: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..300 {
        let steps = vec(any_step(), 1..60).new_tree(&mut runner).unwrap().current();
        let mut lab = Lab::new();
        for s in steps {
            if let Step::Do(c) = s {
                let n = format!("{c:?}"); let n = n.split([' ', '(']).next().unwrap().to_owned();
                let e = counts.entry(n).or_default();
                match lab.apply(*c) { Ok(a) if a.outcome != vnet::command::Outcome::Unchanged => e.0 += 1, Ok(_) => {}, Err(f) => { *codes.entry(f.code).or_default() += 1; e.1 += 1 } }
            } else { lab.step(s) }
        }
    }
    println!("{counts:#?}\n{codes:#?}");
}

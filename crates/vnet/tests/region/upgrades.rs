//! Upgrades of node pools, node by node, and what is one: the migration to overlay.

use vnet::{
    command::{Command, PutCluster, PutPool},
    host::{Health, change},
    kind,
    model::{NetworkMode, NodePhase, PoolMode, ProvisioningState, UpgradeStep},
    name::Name,
};

use crate::support::{
    Lab, cluster, group, id, pool, pool_in, prefix, put_cluster, put_pool, put_subnet, subnet,
};

/// Cluster `c` with `n` nodes in a subnet `nodes` of this prefix.
fn lab(mode: NetworkMode, n: u32, max_surge: &str, prefix: &str) -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", prefix);
    lab.subnet("v", "pods", "10.1.4.0/22");
    let first =
        PutPool { max_surge: Some(max_surge.to_owned()), ..pool_in("nodepool1", n, "v/nodes") };
    lab.cluster("c", cluster(mode, vec![first])).unwrap();
    lab.up("c", NodePhase::Ready);
    lab
}

fn upgrade(lab: &mut Lab) -> Result<vnet::command::Accepted, vnet::fault::Fault> {
    lab.apply(Command::UpgradeNodeImage { id: id("pool c/nodepool1") })
}

/// Each node: its number, what it is at, and the number of its image.
fn nodes(lab: &Lab) -> String {
    let text = lab.region.nodes_of(&id("cluster c")).into_iter().map(|machine| {
        let node = machine.node().unwrap();
        let step = match (node.step, machine.meta.state) {
            (_, ProvisioningState::Deleting) => "-",
            (UpgradeStep::Idle, _) => "",
            (UpgradeStep::Draining { .. }, _) => "d",
            (UpgradeStep::Stopping, _) => "s",
            (UpgradeStep::Starting, _) => "u",
        };
        let image = lab.region.image_of(machine).unwrap().number;
        let surge = if node.is_surge { "+" } else { "" };
        format!("{surge}{}{step}.{image}", node.instance)
    });
    text.collect::<Vec<_>>().join(" ")
}

fn state(lab: &Lab) -> ProvisioningState {
    lab.region.clusters[&id("cluster c")].pools[&"nodepool1".into()].state
}

#[test]
fn nodes_are_made_anew_in_groups_as_large_as_the_surge() {
    let mut lab = lab(NetworkMode::Overlay, 4, "50%", "10.1.0.0/24");
    let before: Vec<_> = addresses(&lab);
    let started = upgrade(&mut lab).unwrap();
    assert_eq!(state(&lab), ProvisioningState::Upgrading);
    let mut seen = vec![nodes(&lab)];
    for _ in 0..8 {
        lab.upgrade_step("c", NodePhase::Ready);
        seen.push(nodes(&lab));
    }
    assert_eq!(
        seen,
        [
            // Nobody is drained before the surge nodes are up.
            "0.0 1.0 2.0 3.0 +4.1 +5.1",
            "0d.0 1d.0 2.0 3.0 +4.1 +5.1",
            "0s.0 1s.0 2.0 3.0 +4.1 +5.1",
            "0u.1 1u.1 2.0 3.0 +4.1 +5.1",
            "0.1 1.1 2d.0 3d.0 +4.1 +5.1",
            "0.1 1.1 2s.0 3s.0 +4.1 +5.1",
            "0.1 1.1 2u.1 3u.1 +4.1 +5.1",
            // The surge nodes go when all are done.
            "0.1 1.1 2.1 3.1 +4-.1 +5-.1",
            "0.1 1.1 2.1 3.1 +4-.1 +5-.1",
        ]
    );
    assert_eq!((lab.held("v/nodes"), state(&lab)), (6, ProvisioningState::Upgrading));
    assert_eq!(lab.region.operations[&started.operation.unwrap()].ended, None);
    lab.up("c", NodePhase::Ready);
    assert_eq!((lab.held("v/nodes"), state(&lab)), (4, ProvisioningState::Succeeded));
    assert!(lab.region.operations[&started.operation.unwrap()].ended.is_some());
    // Names and addresses are the old ones, and the surge nodes' numbers are not used again.
    assert_eq!(addresses(&lab), before);
    lab.must(put_pool("c", pool("nodepool1", 5)));
    assert!(nodes(&lab).ends_with(" 6.1"), "{}", nodes(&lab));
}

fn addresses(lab: &Lab) -> Vec<(String, std::net::Ipv4Addr)> {
    let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
    nodes
        .map(|node| {
            let nic = lab.region.nic_of(&node.meta.id).unwrap();
            (node.hostname.clone(), nic.address().unwrap())
        })
        .collect()
}

#[test]
fn a_loop_that_reports_late_or_twice_changes_nothing() {
    let mut lab = lab(NetworkMode::Overlay, 2, "1", "10.1.0.0/24");
    upgrade(&mut lab).unwrap();
    let machine = lab.region.nodes_of(&id("cluster c"))[0].meta.id.clone();
    // Not its turn yet.
    lab.must(Command::NodeDrained { machine: machine.clone() });
    lab.must(Command::NodeStopped { machine: machine.clone() });
    assert_eq!(nodes(&lab), "0.0 1.0 +2.1");
    // The cluster is not what was asked for before every node is.
    let real = Command::ClusterReal { cluster: id("cluster c"), generation: lab.region.generation };
    lab.must(real);
    assert_eq!(state(&lab), ProvisioningState::Upgrading);
    lab.upgrade_step("c", NodePhase::Ready);
    lab.must(Command::NodeStopped { machine: machine.clone() });
    assert_eq!(nodes(&lab), "0d.0 1.0 +2.1");
    lab.must(Command::NodeDrained { machine: machine.clone() });
    lab.must(Command::NodeDrained { machine: machine.clone() });
    assert_eq!(nodes(&lab), "0s.0 1.0 +2.1");
    let fault = upgrade(&mut lab).unwrap_err();
    assert!(fault.message.contains("in progress upgrade node pool operation"), "{fault}");
    // Deleting the cluster is always possible.
    lab.delete("cluster c");
    lab.must(Command::NodeStopped { machine });
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    assert_eq!(lab.held("v/nodes"), 0);
}

#[test]
fn a_node_that_was_stopped_has_its_namespace_looked_for() {
    let mut lab = lab(NetworkMode::Overlay, 2, "1", "10.1.0.0/24");
    upgrade(&mut lab).unwrap();
    lab.upgrade_step("c", NodePhase::Ready);
    let machine = lab.region.nodes_of(&id("cluster c"))[0].meta.id.clone();
    lab.must(Command::NodeDrained { machine: machine.clone() });
    let before = lab.region.clone();
    lab.must(Command::NodeStopped { machine });
    // The fabric of both is the same; what a namespace should be does not say that it is gone.
    assert_eq!(change("lab", &before, &lab.region, &Health::default()), None);
}

#[test]
fn surge_nodes_must_fit_before_anything_begins() {
    // AKS documentation: 8 nodes of 31 addresses are 248 of the 251 of a /24, and a ninth does not fit.
    let mut full = lab(NetworkMode::Azure, 8, "1", "10.1.0.0/24");
    let fault = upgrade(&mut full).unwrap_err();
    assert_eq!(fault.code, "InsufficientSubnetSize");
    assert!(fault.message.contains("IPs 279 exceeds IPs available 251"), "{fault}");
    assert_eq!(nodes(&full).split(' ').count(), 8);
    // One less has room for one, not for 33%: three.
    let mut room = lab(NetworkMode::Azure, 7, "1", "10.1.0.0/24");
    upgrade(&mut room).unwrap();
    assert_eq!(room.held("v/nodes"), 8 * 31);
    let mut more = lab(NetworkMode::Azure, 7, "33%", "10.1.0.0/24");
    assert_eq!(upgrade(&mut more).unwrap_err().code, "InsufficientSubnetSize");
    // Pod ranges are counted as well.
    let mut ranges = Lab::new();
    ranges.vnet("v", &["10.1.0.0/16"]);
    ranges.subnet("v", "nodes", "10.1.0.0/24");
    let put = PutCluster {
        pod_cidr: Some(prefix("192.168.0.0/23")),
        ..cluster(NetworkMode::Overlay, vec![pool_in("nodepool1", 2, "v/nodes")])
    };
    ranges.cluster("c", put).unwrap();
    ranges.up("c", NodePhase::Ready);
    let fault = upgrade(&mut ranges).unwrap_err();
    assert_eq!(fault.target.as_deref(), Some("networkProfile.podCIDR"));
}

/// What was right when the cluster was made is looked at again before nodes are made anew.
#[test]
fn an_upgrade_needs_what_a_new_cluster_needs() {
    let mut lab = lab(NetworkMode::Overlay, 1, "1", "10.1.0.0/24");
    lab.vnet("v", &["10.1.0.0/16", "10.0.0.0/16"]);
    lab.subnet("v", "late", "10.0.7.0/24");
    assert_eq!(upgrade(&mut lab).unwrap_err().code, "ServiceCidrOverlapExistingSubnetsCidr");
    lab.delete("subnet v/late");
    lab.fabric();
    upgrade(&mut lab).unwrap();

    let mut large = Lab::new();
    large.vnet("v", &["10.1.0.0/16"]);
    large.subnet("v", "nodes", "10.1.0.0/16");
    let pool = |n: u32, surge: &str| PutPool {
        max_surge: Some(surge.to_owned()),
        ..pool_in("nodepool1", n, "v/nodes")
    };
    let put = PutCluster {
        pod_cidr: Some(prefix("10.128.0.0/11")),
        ..cluster(NetworkMode::Overlay, vec![pool(996, "5")])
    };
    large.cluster("c", put).unwrap();
    large.up("c", NodePhase::Ready);
    let fault = upgrade(&mut large).unwrap_err();
    assert_eq!(fault.code, "AgentPoolMaxCountExceeded");
    assert!(fault.message.contains("996 nodes and would have 5 more"), "{fault}");
    large.must(put_pool("c", pool(996, "4")));
    large.up("c", NodePhase::Ready);
    upgrade(&mut large).unwrap();
}

#[test]
fn settings_of_upgrades() {
    let mut lab = lab(NetworkMode::Overlay, 1, "1", "10.1.0.0/24");
    let user = |change: &dyn Fn(&mut PutPool)| {
        let mut put = PutPool { mode: Some(PoolMode::User), ..pool_in("user", 4, "v/nodes") };
        change(&mut put);
        put_pool("c", put)
    };
    let bad: [&dyn Fn(&mut PutPool); 6] = [
        &|put| put.max_surge = Some("0".to_owned()),
        &|put| put.max_unavailable = Some("1".to_owned()),
        &|put| {
            put.max_surge = Some("0".to_owned());
            put.max_unavailable = Some("x".to_owned());
        },
        &|put| {
            put.max_surge = Some("0".to_owned());
            put.max_unavailable = Some("1".to_owned());
            put.mode = Some(PoolMode::System);
        },
        &|put| put.drain_timeout_minutes = Some(0),
        &|put| put.drain_timeout_minutes = Some(1_441),
    ];
    for change in bad {
        assert_eq!(lab.refused(user(change)).code, "InvalidParameter");
    }
    // Nodes away instead of surge nodes: no address more is taken.
    lab.must(user(&|put| {
        put.max_surge = Some("0".to_owned());
        put.max_unavailable = Some("50%".to_owned());
    }));
    lab.up("c", NodePhase::Ready);
    lab.must(Command::UpgradeNodeImage { id: id("pool c/user") });
    assert_eq!((nodes(&lab).as_str(), lab.held("v/nodes")), ("0.0 0d.0 1d.0 2.0 3.0", 5));
}

#[test]
fn a_failed_upgrade_leaves_what_is_done_and_can_go_on() {
    let mut lab = lab(NetworkMode::Overlay, 2, "1", "10.1.0.0/24");
    let started = upgrade(&mut lab).unwrap();
    for _ in 0..4 {
        lab.upgrade_step("c", NodePhase::Ready);
    }
    assert_eq!(nodes(&lab), "0.1 1d.0 +2.1");
    let fault = vnet::fault::Fault::bad("PodDrainFailure", "a budget");
    lab.must(Command::Failed { target: id("pool c/nodepool1"), fault: fault.clone() });
    assert_eq!(
        lab.region.operations[&started.operation.unwrap()].ended.as_ref().unwrap().1,
        Some(fault)
    );
    assert_eq!(state(&lab), ProvisioningState::Failed);
    assert_eq!(nodes(&lab), "0.1 1.0 +2-.1");
    lab.up("c", NodePhase::Ready);
    assert_eq!(nodes(&lab), "0.1 1.0");
    // Any write of the pool goes on with the nodes that are left.
    lab.must(put_pool("c", pool("nodepool1", 2)));
    for _ in 0..4 {
        lab.upgrade_step("c", NodePhase::Ready);
    }
    lab.up("c", NodePhase::Ready);
    assert_eq!((nodes(&lab).as_str(), state(&lab)), ("0.1 1.1", ProvisioningState::Succeeded));
}

#[test]
fn versions_go_up_with_the_control_plane_first() {
    let mut lab = lab(NetworkMode::Overlay, 1, "1", "10.1.0.0/24");
    let to = |version: &str| Some(version.to_owned());
    let nodes_only = put_pool("c", PutPool { version: to("1.37.0"), ..pool("nodepool1", 1) });
    assert_eq!(lab.refused(nodes_only.clone()).code, "NodePoolMcVersionIncompatible");
    let plane_only = PutCluster { version: to("1.37.0"), ..PutCluster::default() };
    lab.must(put_cluster("c", plane_only));
    assert_eq!(lab.region.clusters[&id("cluster c")].meta.state, ProvisioningState::Upgrading);
    lab.up("c", NodePhase::Ready);
    let version =
        |lab: &Lab| lab.region.image_of(lab.region.nodes_of(&id("cluster c"))[0]).unwrap().version;
    assert_eq!(version(&lab), "1.36.3");
    lab.must(nodes_only);
    for _ in 0..4 {
        lab.upgrade_step("c", NodePhase::Ready);
    }
    lab.up("c", NodePhase::Ready);
    assert_eq!((version(&lab).as_str(), state(&lab)), ("1.37.0", ProvisioningState::Succeeded));
    let back = put_pool("c", PutPool { version: to("1.36.3"), ..pool("nodepool1", 1) });
    assert_eq!(lab.refused(back).code, "OperationNotAllowed");
    let skip = PutCluster { version: to("1.39.0"), ..PutCluster::default() };
    assert_eq!(lab.refused(put_cluster("c", skip)).code, "OperationNotAllowed");
}

fn to_overlay() -> PutCluster {
    PutCluster { mode: Some(NetworkMode::Overlay), ..PutCluster::default() }
}

#[test]
fn node_subnet_to_overlay_gives_the_pods_addresses_back() {
    use NetworkMode::{Azure, Overlay};

    let mut lab = lab(NetworkMode::Azure, 2, "1", "10.1.0.0/24");
    assert_eq!(lab.held("v/nodes"), 62);
    let put = PutCluster { pod_cidr: Some(prefix("192.168.0.0/16")), ..to_overlay() };
    lab.must(put_cluster("c", put));
    let ranges = |lab: &Lab| -> Vec<String> {
        let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
        nodes.map(|node| node.node().unwrap().pod_range.unwrap().to_string()).collect()
    };
    assert_eq!(ranges(&lab), ["192.168.0.0/24", "192.168.1.0/24", "192.168.2.0/24"]);
    // The surge node is one of the new kind.
    assert_eq!(lab.held("v/nodes"), 63);
    let modes = |lab: &Lab| -> Vec<NetworkMode> {
        let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
        nodes.map(|node| lab.region.image_of(node).unwrap().mode).collect()
    };
    assert_eq!(modes(&lab), [Azure, Azure, Overlay]);
    for _ in 0..2 {
        lab.upgrade_step("c", NodePhase::Ready);
    }
    // Still on the wire, still held.
    assert_eq!(lab.held("v/nodes"), 63);
    lab.upgrade_step("c", NodePhase::Ready);
    assert_eq!((lab.held("v/nodes"), modes(&lab)), (33, vec![Overlay, Azure, Overlay]));
    lab.finish_upgrade("c");
    assert_eq!((lab.held("v/nodes"), ranges(&lab).len()), (2, 2));
}

#[test]
fn kubenet_to_overlay_keeps_ranges_and_drops_the_route_table() {
    let mut lab = lab(NetworkMode::Kubenet, 2, "1", "10.1.0.0/24");
    lab.must(put_subnet("v", subnet("other", "10.1.8.0/24")));
    lab.must(put_pool("c", pool_in("user", 1, "v/other")));
    lab.up("c", NodePhase::Ready);
    let tables = |lab: &Lab| {
        let of = |name: &str| {
            lab.region.subnet(&id(&format!("subnet v/{name}"))).unwrap().1.route_table.is_some()
        };
        (of("nodes"), of("other"), lab.region.route_tables.len())
    };
    assert_eq!(tables(&lab), (true, true, 1));
    let before: Vec<_> = ranges(&lab);
    lab.must(put_cluster(
        "c",
        PutCluster { pod_cidr: Some(prefix("10.244.0.0/16")), ..to_overlay() },
    ));
    lab.upgrade_step("c", NodePhase::Ready);
    assert_eq!(tables(&lab), (true, true, 1), "old nodes still need their routes");
    lab.finish_upgrade("c");
    assert_eq!(tables(&lab), (false, false, 0));
    assert_eq!(ranges(&lab), before);
    let cluster = &lab.region.clusters[&id("cluster c")];
    assert_eq!((cluster.mode, &cluster.route_table), (NetworkMode::Overlay, &None));
    let balancer = group("MC_aksntwdemo_c_eastus").sibling(kind::LOAD_BALANCER, "kubernetes");
    assert_eq!(lab.region.balancers[&balancer].pools[&Name::new("kubernetes")].members.len(), 3);
}

fn ranges(lab: &Lab) -> Vec<String> {
    let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
    nodes.map(|node| node.node().unwrap().pod_range.unwrap().to_string()).collect()
}

#[test]
fn migrations_that_do_not_exist() {
    use NetworkMode::{Azure, Kubenet, None as Bring, Overlay};
    for (from, to) in [
        (Kubenet, Azure),
        (Kubenet, Bring),
        (Azure, Kubenet),
        (Azure, Bring),
        (Overlay, Azure),
        (Overlay, Kubenet),
        (Overlay, Bring),
        (Bring, Azure),
        (Bring, Kubenet),
        (Bring, Overlay),
    ] {
        let mut lab = lab(from, 3, "1", "10.1.0.0/24");
        let put = PutCluster { mode: Some(to), ..PutCluster::default() };
        assert_eq!(
            lab.refused(put_cluster("c", put)).code,
            "PropertyChangeNotAllowed",
            "{from:?} to {to:?}"
        );
    }
    // A pod subnet stays one, and kubenet's ranges stay where they are.
    let mut pods = Lab::new();
    pods.vnet("v", &["10.1.0.0/16"]);
    pods.subnet("v", "nodes", "10.1.0.0/24");
    pods.subnet("v", "pods", "10.1.4.0/22");
    let first =
        PutPool { pod_subnet: Some(id("subnet v/pods")), ..pool_in("nodepool1", 1, "v/nodes") };
    pods.cluster("c", cluster(Azure, vec![first])).unwrap();
    pods.up("c", NodePhase::Ready);
    let fault = pods.refused(put_cluster("c", to_overlay()));
    assert_eq!(
        (fault.code.as_str(), fault.message.contains("pod subnet")),
        ("PropertyChangeNotAllowed", true)
    );
    let mut kubenet = lab(Kubenet, 1, "1", "10.1.0.0/24");
    let other = PutCluster { pod_cidr: Some(prefix("192.168.0.0/16")), ..to_overlay() };
    assert_eq!(
        kubenet.refused(put_cluster("c", other)).target.as_deref(),
        Some("networkProfile.podCidr")
    );
    // The new range must suit the virtual network like that of a new cluster.
    let mut flat = lab(Azure, 1, "1", "10.1.0.0/24");
    let overlapping = PutCluster { pod_cidr: Some(prefix("10.1.0.0/16")), ..to_overlay() };
    assert_eq!(
        flat.refused(put_cluster("c", overlapping)).code,
        "PodCidrOverlapExistingSubnetsCidr"
    );
}

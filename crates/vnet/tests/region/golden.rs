//! Numbers that the service itself, its documentation or its users' pasted refusals gave.

use vnet::{
    command::{PutCluster, PutPool},
    ipam::n_usable,
    model::{NetworkMode, PodAllocation},
    sizing::{
        Need, PoolSize, Range, check_fits, n_blocks, planned_need, pod_addresses, surge_nodes,
    },
};

use crate::support::{Lab, cluster, id, pool_in, prefix, put_cluster, put_pool};

/// A virtual network with the one subnet `s`.
fn lab(range: &str) -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "s", range);
    lab
}

fn pool(count: u32, max_pods: u32) -> PutPool {
    PutPool { max_pods: Some(max_pods), ..pool_in("nodepool1", count, "v/s") }
}

/// Asserts how many addresses the refusal says are needed and there.
#[track_caller]
fn check(lab: &mut Lab, put: PutCluster, need: u64, available: u64, target: &str) {
    let fault = lab.refused(put_cluster("c", put));
    assert_eq!(
        (fault.code.as_str(), fault.target.as_deref()),
        ("InsufficientSubnetSize", Some(target))
    );
    let text =
        format!("Pre-allocated IPs {need} exceeds IPs available {available} in Subnet Cidr ");
    assert!(fault.message.starts_with(&text), "{fault}");
}

const NODE_SUBNET: &str = "agentPoolProfile.vnetSubnetID";

#[test]
fn node_subnets_that_are_too_small() {
    use NetworkMode::Azure;
    // Azure/AKS issue 456: creation does not add surge.
    check(&mut lab("10.1.0.0/24"), cluster(Azure, vec![pool(10, 30)]), 310, 251, NODE_SUBNET);
    // hashicorp/terraform-provider-azurerm issue 5735.
    check(&mut lab("10.1.0.0/24"), cluster(Azure, vec![pool(5, 100)]), 505, 251, NODE_SUBNET);
    // The article's 3 nodes of 31 addresses in a /26.
    check(&mut lab("10.1.0.0/26"), cluster(Azure, vec![pool(3, 30)]), 93, 59, NODE_SUBNET);
    // The autoscaler's maximum is counted.
    let autoscaled = PutPool { autoscale: Some((1, 10)), ..pool(1, 30) };
    check(&mut lab("10.1.0.0/24"), cluster(Azure, vec![autoscaled]), 310, 251, NODE_SUBNET);
    // All pools of a subnet are counted together.
    let two = vec![pool(4, 30), PutPool { max_pods: Some(40), ..pool_in("two", 4, "v/s") }];
    check(&mut lab("10.1.0.0/24"), cluster(Azure, two), 4 * 31 + 4 * 41, 251, NODE_SUBNET);
    check(
        &mut lab("10.1.0.0/26"),
        cluster(NetworkMode::None, vec![pool(60, 110)]),
        60,
        59,
        NODE_SUBNET,
    );
    // AKS documentation, planning: a /24 has room for 8 nodes of 30 pods.
    let mut lab = lab("10.1.0.0/24");
    lab.cluster("c", cluster(Azure, vec![pool(8, 30)])).unwrap();
    assert_eq!(lab.held("v/s"), 248);
}

#[test]
fn the_whole_text() {
    let fault = lab("10.1.0.0/26")
        .refused(put_cluster("c", cluster(NetworkMode::Azure, vec![pool(3, 30)])));
    assert_eq!(
        fault.message,
        "Pre-allocated IPs 93 exceeds IPs available 59 in Subnet Cidr 10.1.0.0/26, Subnet Name s. If Autoscaler is \
         enabled, the max-count from each nodepool is counted towards this total (which means that pre-allocated IPs \
         count represents a theoretical max value, not the actual number of IPs requested). \
         http://aka.ms/aks/insufficientsubnetsize"
    );
}

#[test]
fn scaling_is_asked_whether_it_fits() {
    let mut lab = lab("10.1.0.0/24");
    lab.cluster("c", cluster(NetworkMode::Azure, vec![pool(7, 30)])).unwrap();
    lab.up("c", vnet::model::NodePhase::Ready);
    let fault = lab.refused(put_pool("c", pool(9, 30)));
    assert!(
        fault.message.starts_with("Pre-allocated IPs 279 exceeds IPs available 251"),
        "{fault}"
    );
    lab.must(put_pool("c", pool(8, 30)));
}

#[test]
fn pod_ranges_that_are_too_small() {
    // Azure/AKS-Construction issue 701: 256 per node, and all of the range is there.
    for mode in [NetworkMode::Overlay, NetworkMode::Kubenet] {
        let put = PutCluster {
            pod_cidr: Some(prefix("10.240.100.0/22")),
            ..cluster(mode, vec![pool(5, 30)])
        };
        check(&mut lab("10.1.0.0/24"), put, 1280, 1024, "networkProfile.podCIDR");
    }
}

#[test]
fn kubenet_has_400_nodes() {
    let mut lab = lab("10.1.0.0/22");
    let put = |count| PutCluster {
        pod_cidr: Some(prefix("10.128.0.0/14")),
        ..cluster(NetworkMode::Kubenet, vec![pool(count, 110)])
    };
    let fault = lab.refused(put_cluster("c", put(401)));
    assert_eq!(fault.code, "AgentPoolMaxCountExceeded");
    lab.must(put_cluster("c", put(400)));
    assert_eq!(lab.region.nodes_of(&id("cluster c")).len(), 400);
}

#[test]
fn kubenet_fills_a_24_with_251_nodes() {
    let mut lab = lab("10.1.0.0/24");
    lab.cluster("c", cluster(NetworkMode::Kubenet, vec![pool(251, 110)])).unwrap();
    assert_eq!(lab.region.free_addresses(&id("subnet v/s")).count(), 0);
    assert_eq!(251 * 110, 27_610);
}

#[test]
fn a_pod_subnet_has_15_nodes() {
    let mut lab = lab("10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.1.0/24");
    let with_pods = |count| {
        cluster(
            NetworkMode::Azure,
            vec![PutPool { pod_subnet: Some(id("subnet v/pods")), ..pool(count, 30) }],
        )
    };
    check(&mut lab, with_pods(16), 256, 251, "agentPoolProfile.podSubnetID");
    // MicrosoftDocs/azure-docs issue 97370 and Azure/AKS issue 4035: 15 batches, 240 addresses.
    lab.must(put_cluster("c", with_pods(15)));
    assert_eq!((lab.held("v/pods"), lab.held("v/s")), (240, 15));
}

/// Nodes with their surge, of a mode and a number of pods.
fn need(mode: NetworkMode, nodes: u32, surge: u32, max_pods: u32) -> Need {
    planned_need(PoolSize {
        mode,
        pod_subnet: false,
        pod_allocation: PodAllocation::Dynamic,
        nodes: nodes + surge,
        max_pods,
    })
}

#[test]
fn plans() {
    use NetworkMode::{Azure, Kubenet, Overlay};
    // The article's plan, whose text says 279: 12 nodes, 12 times 30 pods.
    let surge = surge_nodes("33%", 9).unwrap();
    assert_eq!((surge, need(Azure, 9, surge, 30).node_subnet), (3, 372));
    assert!(372 <= n_usable(prefix("10.0.0.0/23")) && 372 > n_usable(prefix("10.0.0.0/24")));
    assert_eq!((need(Azure, 9, 1, 30).node_subnet, need(Azure, 9, 0, 30).node_subnet), (310, 279));
    // AKS documentation, "IP address planning": 50 nodes and one, 60 nodes and one.
    assert_eq!(
        (need(Azure, 50, 1, 30).node_subnet, need(Azure, 60, 1, 30).node_subnet),
        (1_581, 1_891)
    );
    for need in [1_581, 1_891] {
        assert!(need <= n_usable(prefix("10.0.0.0/21")) && need > n_usable(prefix("10.0.0.0/22")));
    }
    // Azure/AKS issue 2119: one surge node of 100 pods.
    assert_eq!(need(Azure, 0, 1, 100).node_subnet, 101);
    // Azure/AKS issue 1795: two pools of two nodes and one each, 45 pods.
    assert_eq!(2 * need(Azure, 2, 1, 45).node_subnet, 276);
    assert!(check_fits(276, Range::Subnet("s", prefix("10.0.0.0/24"), NODE_SUBNET)).is_err());
    // Azure/AKS issue 4467: maximum and one, times 256.
    assert_eq!(need(Overlay, 127, 1, 250).pod_cidr, n_usable(prefix("10.0.0.0/17")) + 5);
    assert_eq!(
        (need(Kubenet, 9, 3, 110).node_subnet, need(Overlay, 9, 3, 250).node_subnet),
        (12, 12)
    );
    assert!(12 > n_usable(prefix("10.0.0.0/28")) && 12 <= n_usable(prefix("10.0.0.0/27")));
    let pods = PoolSize {
        mode: Azure,
        pod_subnet: true,
        pod_allocation: PodAllocation::Dynamic,
        nodes: 3,
        max_pods: 30,
    };
    assert_eq!(planned_need(pods), Need { node_subnet: 3, pod_subnet: 48, pod_cidr: 0 });
}

#[test]
fn surge_rounds_up() {
    let thirds = [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (5, 2),
        (8, 3),
        (9, 3),
        (10, 4),
        (20, 7),
        (50, 17),
        (100, 33),
    ];
    for (nodes, surge) in thirds {
        assert_eq!(surge_nodes("33%", nodes), Some(surge), "33% of {nodes}");
    }
    for (nodes, surge) in [(1, 1), (10, 1), (11, 2), (20, 2), (50, 5), (100, 10), (1000, 100)] {
        assert_eq!(surge_nodes("10%", nodes), Some(surge), "10% of {nodes}");
    }
    assert_eq!(
        (surge_nodes("5", 3), surge_nodes("100%", 7), surge_nodes("0", 7)),
        (Some(3), Some(7), Some(0))
    );
    for wrong in ["", "%", "-1", "101%", "1.5", "ten", "1 %"] {
        assert_eq!(surge_nodes(wrong, 9), None, "{wrong}");
    }
}

#[test]
fn pods_of_a_dynamic_pod_subnet() {
    // Azure/azure-container-networking, `cns/ipampool/v2`: batch 16, buffer one half.
    let steady = [(0, 16), (8, 16), (9, 32), (24, 32), (25, 48), (30, 48), (110, 128), (250, 250)];
    for (pods, addresses) in steady {
        assert_eq!(pod_addresses(pods), addresses, "{pods} pods");
    }
}

#[test]
fn static_blocks_have_room_for_every_pod_and_the_node() {
    // AKS documentation, "Static Block Allocation": its table of maximum pods and blocks.
    for (max_pods, blocks) in
        [(15, 1), (16, 2), (30, 2), (31, 2), (32, 3), (110, 7), (239, 15), (250, 16)]
    {
        assert_eq!(n_blocks(max_pods), blocks, "{max_pods}");
    }
}

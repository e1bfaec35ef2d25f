//! The article's commands A1 to A12, and what the region then holds.

use crate::support::{Lab, cluster, group, id, ip, pool_in, prefix, put_pool};
use vnet::{
    command::{Outcome, PutCluster, PutPool},
    kind,
    model::{NetworkMode, NodePhase, ProvisioningState},
};

#[test]
fn azure_cni_with_a_pod_subnet() {
    let mut lab = Lab::new();
    lab.vnet("aks-vnet2", &["10.0.0.0/16"]);
    lab.subnet("aks-vnet2", "subnet-aks", "10.0.0.0/24");
    lab.subnet("aks-vnet2", "subnet-pods", "10.0.2.0/23");
    let pods = id("subnet aks-vnet2/subnet-pods");
    let put = PutCluster {
        service_cidr: Some(prefix("10.1.0.0/16")),
        dns_service_ip: Some(ip("10.1.0.10")),
        ..cluster(
            NetworkMode::Azure,
            vec![PutPool {
                pod_subnet: Some(pods.clone()),
                ..pool_in("nodepool1", 3, "aks-vnet2/subnet-aks")
            }],
        )
    };
    let accepted = lab.cluster("aks-ntwdemo10", put).unwrap();
    assert_eq!(accepted.outcome, Outcome::Created);
    let cluster_id = id("cluster aks-ntwdemo10");
    assert_eq!(lab.region.clusters[&cluster_id].meta.state, ProvisioningState::Creating);

    let (_, subnet) = lab.region.subnet(&pods).unwrap();
    assert_eq!(subnet.delegations.len(), 1);
    assert_eq!(subnet.delegations[0].name.as_str(), "aks-delegation");
    assert_eq!(subnet.delegations[0].service, "Microsoft.ContainerService/managedClusters");
    assert_eq!(
        subnet.delegations[0].actions,
        ["Microsoft.Network/virtualNetworks/subnets/join/action"]
    );
    assert_eq!(subnet.held.len(), 3 * 16);
    assert_eq!(lab.held("aks-vnet2/subnet-aks"), 3);

    lab.up("aks-ntwdemo10", NodePhase::Ready);
    let cluster = &lab.region.clusters[&cluster_id];
    assert_eq!(cluster.meta.state, ProvisioningState::Succeeded);
    assert_eq!(cluster.node_group.resource_group(), "MC_aksntwdemo_aks-ntwdemo10_eastus");
    assert_eq!(cluster.pod_cidr, None);
    assert_eq!(cluster.pools[&"nodepool1".into()].max_pods, 30);
    assert!(lab.region.operations[&accepted.operation.unwrap()].ended.is_some());
}

#[test]
fn bring_your_own_cni() {
    let mut lab = Lab::new();
    lab.cluster(
        "aks-ntwdemo8",
        cluster(NetworkMode::None, vec![crate::support::pool("nodepool1", 1)]),
    )
    .unwrap();
    lab.up("aks-ntwdemo8", NodePhase::NotReady);
    let cluster = &lab.region.clusters[&id("cluster aks-ntwdemo8")];
    assert_eq!(cluster.meta.state, ProvisioningState::Succeeded);
    assert_eq!((cluster.pod_cidr, cluster.route_table.clone()), (None, None));
    assert!(!cluster.pools[&"nodepool1".into()].subnet_given);
    let vnet = &lab.region.vnets[&cluster.vnet];
    assert_eq!(vnet.meta.id.name(), format!("aks-vnet-{}", cluster.hash));
    assert_eq!(vnet.meta.id.resource_group(), "MC_aksntwdemo_aks-ntwdemo8_eastus");
    assert_eq!(vnet.prefixes, [prefix("10.224.0.0/12")]);
    assert_eq!(vnet.subnets[&"aks-subnet".into()].prefix, prefix("10.224.0.0/16"));
    let nodes = lab.region.nodes_of(&cluster.meta.id);
    assert_eq!(nodes[0].hostname, format!("aks-nodepool1-{}-vmss000000", cluster.hash));
    assert_eq!(lab.region.nic_of(&nodes[0].meta.id).unwrap().address(), Some(ip("10.224.0.4")));
}

#[test]
fn kubenet_with_two_pools_in_two_subnets() {
    let mut lab = Lab::new();
    lab.vnet("aks-vnet3", &["172.20.0.0/24"]);
    lab.subnet("aks-vnet3", "aks-subnet", "172.20.0.0/26");
    lab.subnet("aks-vnet3", "np-subnet", "172.20.0.64/26");
    lab.cluster(
        "aks-ntwdemo12",
        cluster(NetworkMode::Kubenet, vec![pool_in("nodepool1", 3, "aks-vnet3/aks-subnet")]),
    )
    .unwrap();
    lab.up("aks-ntwdemo12", NodePhase::Ready);
    let added = lab.must(put_pool("aks-ntwdemo12", pool_in("aksnp02", 1, "aks-vnet3/np-subnet")));
    assert_eq!(added.outcome, Outcome::Created);
    lab.subnet("aks-vnet3", "ilb-subnet", "172.20.0.128/26");
    lab.up("aks-ntwdemo12", NodePhase::Ready);

    let cluster = &lab.region.clusters[&id("cluster aks-ntwdemo12")];
    assert_eq!(cluster.pod_cidr, Some(prefix("10.244.0.0/16")));
    assert_eq!(cluster.service_cidr, prefix("10.0.0.0/16"));
    let table = cluster.route_table.clone().unwrap();
    assert_eq!(table.name(), format!("aks-agentpool-{}-routetable", cluster.hash));
    for name in ["aks-subnet", "np-subnet"] {
        let (_, subnet) = lab.region.subnet(&id(&format!("subnet aks-vnet3/{name}"))).unwrap();
        assert_eq!(subnet.route_table.as_ref(), Some(&table), "{name}");
    }
    let nodes: Vec<String> = lab
        .region
        .nodes_of(&cluster.meta.id)
        .into_iter()
        .map(|node| {
            let nic = lab.region.nic_of(&node.meta.id).unwrap();
            let range = node.node().unwrap().pod_range.unwrap();
            format!("{} {} {range}", node.node().unwrap().pool, nic.address().unwrap())
        })
        .collect();
    assert_eq!(
        nodes,
        [
            "aksnp02 172.20.0.68 10.244.3.0/24",
            "nodepool1 172.20.0.4 10.244.0.0/24",
            "nodepool1 172.20.0.5 10.244.1.0/24",
            "nodepool1 172.20.0.6 10.244.2.0/24",
        ]
    );

    let balancer = cluster.node_group.sibling(kind::LOAD_BALANCER, "kubernetes");
    let balancer = &lab.region.balancers[&balancer];
    for pool in ["kubernetes", "aksOutboundBackendPool"] {
        assert_eq!(balancer.pools[&pool.into()].members.len(), 4, "{pool}");
    }
    assert!(balancer.outbound_rules.contains_key(&"aksOutboundRule".into()));

    // The article's service: the lowest address of an empty subnet.
    let internal = vnet::command::Command::PutLoadBalancer {
        common: crate::support::common(
            cluster.node_group.sibling(kind::LOAD_BALANCER, "kubernetes-internal"),
        ),
        balancer: crate::support::internal_balancer("aks-vnet3/ilb-subnet", None),
    };
    lab.must(internal);
    let free = lab.region.free_addresses(&id("subnet aks-vnet3/ilb-subnet")).next();
    assert_eq!(free, Some(ip("172.20.0.133")));
}

#[test]
fn deleting_the_group_leaves_nothing() {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.2.0/23");
    lab.nic("n", "v/nodes", None).unwrap();
    let pods = Some(id("subnet v/pods"));
    let nodes = PutPool { pod_subnet: pods, ..pool_in("nodepool1", 2, "v/nodes") };
    lab.cluster("c", cluster(NetworkMode::Azure, vec![nodes])).unwrap();
    lab.up("c", NodePhase::Ready);

    let deleting = lab.must(vnet::command::Command::DeleteGroup { id: group("aksntwdemo") });
    assert_eq!(deleting.outcome, Outcome::Deleting);
    // The network stays as long as nodes run in it.
    let generation = lab.region.generation;
    lab.must(vnet::command::Command::FabricReal { generation });
    assert!(lab.region.vnets.contains_key(&id("vnet v")));
    lab.must(vnet::command::Command::ClusterGone { cluster: id("cluster c") });
    lab.fabric();
    let region = &lab.region;
    assert_eq!(region.operations[&deleting.operation.unwrap()].ended.as_ref().unwrap().1, None);
    assert!(region.groups.is_empty() && region.vnets.is_empty() && region.nics.is_empty());
    assert!(
        region.machines.is_empty() && region.balancers.is_empty() && region.public_ips.is_empty()
    );
    assert!(region.operations.values().all(|operation| operation.ended.is_some()));
}

//! Clusters and node pools over their lives.

use vnet::{
    command::{Accepted, Command, Outcome, PutCluster, PutPool},
    fault::Fault,
    kind,
    model::{NetworkMode, NodePhase, PodAllocation, PoolMode, ProvisioningState},
    name::ArmId,
};

use crate::support::{
    Lab, cluster, group, id, ip, pool, pool_in, prefix, put_cluster, put_pool, put_subnet, subnet,
};

/// A virtual network 10.1.0.0/16 with subnets `nodes` (/24) and `pods` (/23), and cluster `c` with `n` nodes.
fn lab(mode: NetworkMode, n: u32) -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.2.0/23");
    lab.cluster("c", cluster(mode, vec![pool_in("nodepool1", n, "v/nodes")])).unwrap();
    lab.up("c", NodePhase::Ready);
    lab
}

/// A cluster with a pod subnet.
fn lab_with_pods(n: u32) -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.2.0/24");
    let pods = Some(id("subnet v/pods"));
    let first = PutPool { pod_subnet: pods, ..pool_in("nodepool1", n, "v/nodes") };
    lab.cluster("c", cluster(NetworkMode::Azure, vec![first])).unwrap();
    lab.up("c", NodePhase::Ready);
    lab
}

/// The host names' ends, addresses and pod ranges of the nodes.
fn nodes(lab: &Lab) -> Vec<String> {
    let nodes = lab.region.nodes_of(&id("cluster c"));
    let text = nodes.into_iter().map(|machine| {
        let (_, instance) = machine.hostname.split_once("vmss").unwrap();
        let node = machine.node().unwrap();
        let nic = lab.region.nic_of(&machine.meta.id).unwrap();
        let range = node.pod_range.map(|range| format!(" {range}")).unwrap_or_default();
        let state = match machine.meta.state {
            ProvisioningState::Deleting => " going",
            _ => "",
        };
        format!("{instance} {} {}{range}{state}", nic.address().unwrap(), nic.configs.len())
    });
    text.collect()
}

/// How an operation stands: `runs`, `succeeded`, or the code that it failed with.
fn operation(lab: &Lab, accepted: &Accepted) -> String {
    match &lab.region.operations[&accepted.operation.unwrap()].ended {
        None => "runs".to_owned(),
        Some((_, None)) => "succeeded".to_owned(),
        Some((_, Some(fault))) => fault.code.clone(),
    }
}

#[test]
fn a_node_of_the_node_subnet_takes_an_address_per_pod() {
    let lab = lab(NetworkMode::Azure, 3);
    assert_eq!(nodes(&lab), ["000000 10.1.0.4 31", "000001 10.1.0.35 31", "000002 10.1.0.66 31"]);
    // microsoft/bedrock issue 550: three nodes of 31 addresses end at .96.
    assert_eq!(lab.region.free_addresses(&id("subnet v/nodes")).next(), Some(ip("10.1.0.97")));
    let nic = lab.region.nic_of(&lab.region.nodes_of(&id("cluster c"))[0].meta.id).unwrap().clone();
    assert!(nic.ip_forwarding);
    assert_eq!(nic.configs[0].name, "ipconfig1");
    assert_eq!(
        (nic.configs[30].name.as_str(), nic.configs[30].address),
        ("ipconfig31", ip("10.1.0.34"))
    );
    let hash = &lab.region.clusters[&id("cluster c")].hash;
    assert_eq!(
        nic.meta.id,
        group("MC_aksntwdemo_c_eastus")
            .sibling(kind::SCALE_SET, &format!("aks-nodepool1-{hash}-vmss"))
            .child("virtualMachines", "0")
            .child("networkInterfaces", &format!("aks-nodepool1-{hash}-vmss"))
    );
}

#[test]
fn scaling_removes_the_newest_and_reuses_ranges_but_not_names() {
    let mut lab = lab(NetworkMode::Overlay, 3);
    let all = [
        "000000 10.1.0.4 1 10.244.0.0/24",
        "000001 10.1.0.5 1 10.244.1.0/24",
        "000002 10.1.0.6 1 10.244.2.0/24",
    ];
    assert_eq!(nodes(&lab), all);
    let scaled = lab.must(put_pool("c", pool("nodepool1", 1)));
    assert_eq!(scaled.outcome, Outcome::Updated);
    let state = |lab: &Lab| lab.region.clusters[&id("cluster c")].pools[&"nodepool1".into()].state;
    assert_eq!(state(&lab), ProvisioningState::Scaling);
    assert_eq!(
        nodes(&lab),
        [all[0].to_owned(), format!("{} going", all[1]), format!("{} going", all[2])]
    );
    let balancer = group("MC_aksntwdemo_c_eastus").sibling(kind::LOAD_BALANCER, "kubernetes");
    let members =
        |lab: &Lab| lab.region.balancers[&balancer].pools[&"kubernetes".into()].members.len();
    assert_eq!(members(&lab), 1);
    // The fabric keeps what still runs.
    lab.fabric();
    assert_eq!(nodes(&lab).len(), 3);
    assert_eq!(operation(&lab, &scaled), "runs");
    lab.up("c", NodePhase::Ready);
    assert_eq!(operation(&lab, &scaled), "succeeded");
    assert_eq!((nodes(&lab), state(&lab)), (vec![all[0].to_owned()], ProvisioningState::Succeeded));

    lab.must(put_pool("c", pool("nodepool1", 2)));
    lab.up("c", NodePhase::Ready);
    assert_eq!(nodes(&lab), [all[0], "000003 10.1.0.5 1 10.244.1.0/24"]);
    assert_eq!(members(&lab), 2);
}

#[test]
fn one_write_at_a_time() {
    let mut lab = lab(NetworkMode::Overlay, 1);
    let scaled = lab.must(put_pool("c", pool("nodepool1", 2)));
    let busy = [
        put_pool("c", pool("nodepool1", 3)),
        put_pool("c", pool("other", 3)),
        put_cluster("c", cluster(NetworkMode::Overlay, vec![])),
        Command::Delete { id: id("pool c/nodepool1") },
    ];
    for command in busy {
        let fault = lab.refused(command);
        assert_eq!((fault.status, fault.code.as_str()), (409, "OperationNotAllowed"));
        assert!(fault.message.contains("in progress scale node pool operation"), "{fault}");
        assert!(fault.message.contains(&scaled.operation.unwrap().to_string()), "{fault}");
        assert!(fault.message.contains("started on UTC 1970-01-01T00:00:"), "{fault}");
    }
    // A POST is no write, and deleting the cluster preempts.
    lab.must(Command::BeginPost { target: id("cluster c") });
    lab.delete("cluster c");
    assert_eq!(operation(&lab, &scaled), "AKSOperationPreempted");
}

#[test]
fn pools_come_and_go() {
    let mut lab = lab(NetworkMode::Kubenet, 1);
    lab.subnet("v", "more", "10.1.1.0/24");
    let put = lab.must(put_pool("c", pool_in("user1", 2, "v/more")));
    assert_eq!(put.outcome, Outcome::Created);
    lab.up("c", NodePhase::Ready);
    let there = lab.region.clusters[&id("cluster c")].pools[&"user1".into()].clone();
    assert_eq!(
        (there.mode, there.state, there.max_pods),
        (PoolMode::User, ProvisioningState::Succeeded, 110)
    );
    let table = |lab: &Lab| lab.region.subnet(&id("subnet v/more")).unwrap().1.route_table.clone();
    assert!(table(&lab).is_some());

    let deleting = lab.delete("pool c/user1");
    assert_eq!(deleting.outcome, Outcome::Deleting);
    assert_eq!(lab.held("v/more"), 2);
    lab.up("c", NodePhase::Ready);
    assert_eq!(operation(&lab, &deleting), "succeeded");
    assert_eq!((lab.held("v/more"), table(&lab)), (0, None));
    assert_eq!(lab.region.clusters[&id("cluster c")].pools.len(), 1);

    let fault = lab.refused(Command::Delete { id: id("pool c/nodepool1") });
    assert_eq!(fault.message, "There has to be at least one system agent pool.");
    // A user pool can be empty, and its subnet is still its own.
    lab.must(put_pool("c", pool_in("user2", 0, "v/more")));
    lab.up("c", NodePhase::Ready);
    let fault = lab.refused(Command::Delete { id: id("subnet v/more") });
    assert!(fault.message.contains("virtualMachineScaleSets/aks-user2-"), "{fault}");
}

#[test]
fn static_blocks_are_aligned_and_stay() {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.2.0/25");
    let in_blocks = |name: &str, count: u32| PutPool {
        pod_subnet: Some(id("subnet v/pods")),
        pod_allocation: Some(PodAllocation::StaticBlock),
        ..pool_in(name, count, "v/nodes")
    };
    lab.cluster("c", cluster(NetworkMode::Azure, vec![in_blocks("nodepool1", 2)])).unwrap();
    lab.up("c", NodePhase::Ready);
    let blocks = |lab: &Lab, i: usize| {
        let has = lab.region.pod_addresses_of(&lab.region.nodes_of(&id("cluster c"))[i].meta.id);
        (has.len(), has[0].to_string(), has[has.len() - 1].to_string())
    };
    // Two of /28 for 30 pods; the subnet's first one has what Azure keeps.
    assert_eq!(blocks(&lab, 0), (32, "10.1.2.16".to_owned(), "10.1.2.47".to_owned()));
    assert_eq!(blocks(&lab, 1), (32, "10.1.2.48".to_owned(), "10.1.2.79".to_owned()));
    // Never more and never fewer.
    let machine = lab.region.nodes_of(&id("cluster c"))[0].meta.id.clone();
    let all = lab.region.pod_addresses_of(&machine);
    let fewer = Command::SetPodAddresses { machine, total: 16, released: all };
    assert_eq!(lab.must(fewer).outcome, Outcome::Unchanged);
    // Six blocks of the /25 are whole, and four are taken.
    lab.must(put_pool("c", in_blocks("nodepool1", 3)));
    lab.up("c", NodePhase::Ready);
    assert_eq!(blocks(&lab, 2).1, "10.1.2.80");
    assert_eq!(
        lab.refused(put_pool("c", in_blocks("nodepool1", 4))).code,
        "InsufficientSubnetSize"
    );
    let dynamic = PutPool { pod_allocation: None, ..in_blocks("other", 1) };
    let fault = lab.refused(put_pool("c", dynamic));
    assert_eq!(fault.target.as_deref(), Some("agentPoolProfile.podIPAllocationMode"));
    let change = PutPool { pod_allocation: Some(PodAllocation::Dynamic), ..pool("nodepool1", 3) };
    assert_eq!(lab.refused(put_pool("c", change)).code, "PropertyChangeNotAllowed");
    let mut alone = in_blocks("other", 1);
    alone.pod_subnet = None;
    assert_eq!(lab.refused(put_pool("c", alone)).code, "InvalidParameter");
}

/// MicrosoftDocs/azure-aks-docs, `azure-cni-overlay-pod-expand.md`.
#[test]
fn the_range_of_an_overlay_grows_and_never_shrinks() {
    let put = |range: &str| PutCluster {
        pod_cidr: Some(prefix(range)),
        pools: vec![pool("nodepool1", 2)],
        ..PutCluster::default()
    };
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    let first = cluster(NetworkMode::Overlay, vec![pool_in("nodepool1", 2, "v/nodes")]);
    lab.cluster("c", PutCluster { pod_cidr: Some(prefix("10.8.0.0/23")), ..first }).unwrap();
    lab.up("c", NodePhase::Ready);
    let before = nodes(&lab);
    assert_eq!(lab.refused(put_pool("c", pool("nodepool1", 3))).code, "InsufficientSubnetSize");
    // Smaller, elsewhere, over the services.
    for (range, code) in [
        ("10.8.0.0/24", "PropertyChangeNotAllowed"),
        ("10.9.0.0/16", "PropertyChangeNotAllowed"),
        ("10.0.0.0/12", "PodCidrOverlapServiceCidr"),
    ] {
        let fault = lab.refused(put_cluster("c", put(range)));
        assert_eq!(fault.code, code, "{range}: {fault}");
    }
    // One write makes room and uses it.
    let more = PutCluster { pools: vec![pool("nodepool1", 3)], ..put("10.8.0.0/22") };
    lab.cluster("c", more).unwrap();
    lab.up("c", NodePhase::Ready);
    let after = nodes(&lab);
    assert_eq!(after[..2], before[..], "nodes keep what they have");
    assert!(after[2].contains("10.8.2.0/24"), "{after:?}");
    // Where users bring their own CNI, it says which addresses pods have.
    let mut own = self::lab(NetworkMode::None, 2);
    for range in ["10.8.0.0/16", "10.9.0.0/16"] {
        own.cluster("c", put(range)).unwrap();
        own.up("c", NodePhase::NotReady);
        assert_eq!(own.region.clusters[&id("cluster c")].pod_cidr, Some(prefix(range)));
    }
    let mut kubenet = self::lab(NetworkMode::Kubenet, 1);
    let wider = put_cluster("c", PutCluster { pools: Vec::new(), ..put("10.244.0.0/15") });
    assert_eq!(kubenet.refused(wider).code, "PropertyChangeNotAllowed");
}

#[test]
fn pod_addresses_come_in_batches() {
    let mut lab = lab_with_pods(1);
    let machine = lab.region.nodes_of(&id("cluster c"))[0].meta.id.clone();
    let has = |lab: &Lab| lab.region.pod_addresses_of(&machine);
    assert_eq!(has(&lab).len(), 16);
    assert_eq!(has(&lab)[0], ip::<std::net::Ipv4Addr>("10.1.2.4"));
    let set = |total: u32, released: &[&str]| Command::SetPodAddresses {
        machine: machine.clone(),
        total,
        released: released.iter().map(|text| ip(text)).collect(),
    };
    lab.must(set(32, &[]));
    assert_eq!(lab.must(set(32, &[])).outcome, Outcome::Unchanged);
    assert_eq!(has(&lab).len(), 32);
    // A subnet that is exhausted gives and takes single addresses.
    lab.must(set(33, &[]));
    assert_eq!(has(&lab).len(), 33);
    lab.must(set(32, &["10.1.2.36"]));
    // The one that makes a whole batch of them is a single one, too.
    lab.must(set(31, &["10.1.2.35"]));
    lab.must(set(32, &[]));
    assert_eq!(has(&lab).len(), 32);
    // Only what the node gives back is taken from it.
    lab.refused(set(16, &["10.1.2.4"]));
    let back: Vec<String> = (8..24).map(|i| format!("10.1.2.{i}")).collect();
    let back: Vec<&str> = back.iter().map(String::as_str).collect();
    lab.must(set(16, &back));
    assert_eq!((has(&lab)[4], has(&lab).len()), (ip("10.1.2.24"), 16));
    // Azure/AKS issue 4035: 240 of the 251 addresses of a /24 can be used, 15 whole batches.
    lab.must(set(256, &[]));
    assert_eq!(has(&lab).len(), 240);
    assert_eq!(lab.refused(set(256, &[])).code, "SubnetIsFull");
}

#[test]
fn a_pod_subnet_belongs_to_its_clusters() {
    let mut lab = lab_with_pods(2);
    let pods = id("subnet v/pods");
    let missing = lab.refused(put_subnet("v", subnet("pods", "10.1.2.0/24")));
    assert_eq!(missing.code, "SubnetMissingRequiredDelegation");
    assert!(
        missing.message.ends_with("subnets/pods/serviceAssociationLinks/AzureKubernetesService.")
    );
    assert_eq!(
        lab.nic("n", "v/pods", None).unwrap_err().code,
        "SubnetWithExternalResourcesCannotBeUsedByOtherResources"
    );
    // Another cluster may share it.
    let shared = PutPool { pod_subnet: Some(pods.clone()), ..pool_in("nodepool1", 1, "v/nodes") };
    lab.cluster("d", cluster(NetworkMode::Azure, vec![shared])).unwrap();
    assert_eq!(lab.held("v/pods"), 3 * 16);
    lab.delete("cluster c");
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    let (_, subnet) = lab.region.subnet(&pods).unwrap();
    assert_eq!((subnet.association_links.clone(), subnet.held.len()), (vec![id("cluster d")], 16));
    lab.delete("cluster d");
    lab.must(Command::ClusterGone { cluster: id("cluster d") });
    let (_, subnet) = lab.region.subnet(&pods).unwrap();
    assert!(subnet.delegations.is_empty() && subnet.held.is_empty());
    lab.delete("subnet v/pods");
}

#[test]
fn a_cluster_takes_everything_along() {
    let mut lab = lab(NetworkMode::Kubenet, 2);
    lab.subnet("v", "ilb", "10.1.4.0/24");
    let mc = group("MC_aksntwdemo_c_eastus");
    let id_of = |name: &str| mc.sibling(kind::LOAD_BALANCER, name);
    lab.must(Command::PutLoadBalancer {
        common: crate::support::common(id_of("kubernetes-internal")),
        balancer: crate::support::internal_balancer("v/ilb", None),
    });
    let fault = lab.refused(Command::Delete { id: id_of("kubernetes") });
    assert_eq!(fault.code, "LoadBalancerInUseByVirtualMachineScaleSet");
    let fault = lab.refused(Command::DeleteGroup { id: mc.clone() });
    assert_eq!(fault.code, "ResourceGroupDeletionBlocked");
    // The managed route table stays the cluster's even when no subnet has it.
    lab.must(put_subnet("v", subnet("nodes", "10.1.0.0/24")));
    let table = lab.region.clusters[&id("cluster c")].route_table.clone().unwrap();
    let fault = lab.refused(Command::Delete { id: table });
    assert_eq!(fault.code, "InUseRouteTableCannotBeDeleted");
    let gone = Command::ClusterGone { cluster: id("cluster c") };
    lab.refused(gone.clone());

    let deleting = lab.delete("cluster c");
    assert_eq!(lab.delete("cluster c"), deleting);
    let generation = lab.region.generation;
    let real = Command::ClusterReal { cluster: id("cluster c"), generation };
    assert_eq!(lab.must(real).outcome, Outcome::Unchanged);
    assert_eq!(lab.region.nodes_of(&id("cluster c")).len(), 2);
    lab.must(gone.clone());
    assert_eq!(lab.must(gone).outcome, Outcome::Unchanged);
    assert_eq!(operation(&lab, &deleting), "succeeded");
    let region = &lab.region;
    assert!(region.clusters.is_empty() && region.machines.is_empty() && region.nics.is_empty());
    assert!(
        region.balancers.is_empty()
            && region.public_ips.is_empty()
            && region.route_tables.is_empty()
    );
    assert_eq!(region.groups.keys().collect::<Vec<_>>(), [&group("aksntwdemo")]);
    assert_eq!((lab.held("v/nodes"), lab.held("v/ilb")), (0, 0));
    lab.delete("vnet v");
}

#[test]
fn a_failed_cluster_can_be_deleted_or_tried_again() {
    let mut lab = Lab::new();
    let put = lab.cluster("c", cluster(NetworkMode::Overlay, vec![pool("nodepool1", 1)])).unwrap();
    let fault = Fault::new(500, "InternalServerError", "etcd did not start");
    lab.must(Command::Failed { target: id("cluster c"), fault: fault.clone() });
    let there = &lab.region.clusters[&id("cluster c")];
    assert_eq!(there.meta.state, ProvisioningState::Failed);
    assert_eq!(there.pools[&"nodepool1".into()].state, ProvisioningState::Failed);
    assert_eq!(operation(&lab, &put), fault.code);
    lab.must(put_cluster("c", cluster(NetworkMode::Overlay, vec![pool("nodepool1", 2)])));
    lab.up("c", NodePhase::Ready);
    assert_eq!(lab.region.clusters[&id("cluster c")].meta.state, ProvisioningState::Succeeded);
}

#[test]
fn nodes_report_how_far_they_are() {
    let mut lab = Lab::new();
    lab.cluster("c", cluster(NetworkMode::None, vec![pool("nodepool1", 1)])).unwrap();
    let machine = lab.region.nodes_of(&id("cluster c"))[0].meta.id.clone();
    let reached = |machine: &ArmId, phase| Command::NodeReached { machine: machine.clone(), phase };
    assert_eq!(lab.region.machines[&machine].meta.state, ProvisioningState::Creating);
    lab.must(reached(&machine, NodePhase::NotReady));
    assert_eq!(lab.region.machines[&machine].meta.state, ProvisioningState::Succeeded);
    let again = lab.must(reached(&machine, NodePhase::NotReady));
    assert_eq!(again.outcome, Outcome::Unchanged);
    lab.refused(reached(&id("vm x"), NodePhase::Ready));
    lab.delete("cluster c");
    assert_eq!(lab.must(reached(&machine, NodePhase::Ready)).outcome, Outcome::Unchanged);
}

#[test]
fn an_update_that_says_everything_changes_nothing_but_the_etag() {
    let mut lab = lab(NetworkMode::Overlay, 2);
    let before = lab.region.clusters[&id("cluster c")].clone();
    let mut put = cluster(NetworkMode::Overlay, vec![pool_in("nodepool1", 2, "v/nodes")]);
    put.pod_cidr = Some(prefix("10.244.0.0/16"));
    put.service_cidr = Some(prefix("10.0.0.0/16"));
    put.dns_service_ip = Some(ip("10.0.0.10"));
    put.version = Some(before.version.clone());
    put.pools[0].max_pods = Some(250);
    put.pools[0].vm_size = Some("standard_d2s_V3".to_owned());
    put.pools[0].mode = Some(PoolMode::System);
    lab.must(put_cluster("c", put));
    lab.up("c", NodePhase::Ready);
    let after = &lab.region.clusters[&id("cluster c")];
    assert_ne!(after.meta.etag, before.meta.etag);
    assert_eq!(after.pools, before.pools);
}

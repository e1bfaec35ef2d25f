//! What AKS refuses, and how.

use vnet::{
    command::{Command, PutCluster, PutPool, PutSubnet},
    fault::Fault,
    model::{NetworkLinks, NetworkMode, NextHop, NodePhase, OutboundType, PoolMode, Route},
};

use crate::support::{
    Lab, cluster, common, delegation, id, ip, pool, pool_in, prefix, put_cluster, put_pool,
    put_subnet, subnet,
};

/// A virtual network 10.1.0.0/16 with subnets `a` (/24), `small` (/26), `pods` (/24), `delegated`; another one,
/// `w`, with subnet `a`.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16", "172.30.0.0/24"]);
    lab.vnet("w", &["10.2.0.0/16"]);
    lab.subnet("w", "a", "10.2.0.0/24");
    for (name, range) in [
        ("a", "10.1.0.0/24"),
        ("b", "10.1.1.0/24"),
        ("pods", "10.1.2.0/24"),
        ("small", "10.1.3.0/26"),
        ("large", "10.1.8.0/21"),
        ("reserved", "172.30.0.0/24"),
    ] {
        lab.subnet("v", name, range);
    }
    let delegations = vec![delegation("0", "Microsoft.Web/serverFarms")];
    lab.must(put_subnet("v", PutSubnet { delegations, ..subnet("delegated", "10.1.4.0/24") }));
    lab
}

/// Asserts code, target and a part of the text.
#[track_caller]
fn check(fault: &Fault, code: &str, target: &str, text: &str) {
    assert_eq!(
        (fault.code.as_str(), fault.target.as_deref().unwrap_or("")),
        (code, target),
        "{fault}"
    );
    assert!(fault.message.contains(text), "`{}` does not say `{text}`", fault.message);
}

/// Asserts how a cluster with one pool of one node in subnet `a` is refused, changed by `change`.
#[track_caller]
fn check_cluster(
    mode: NetworkMode,
    change: impl FnOnce(&mut PutCluster),
    (code, target, text): (&str, &str, &str),
) {
    let mut put = cluster(mode, vec![pool_in("nodepool1", 1, "v/a")]);
    change(&mut put);
    check(&lab().refused(put_cluster("c", put)), code, target, text);
}

const SERVICE: &str = "networkProfile.serviceCIDR";
const POD: &str = "networkProfile.podCIDR";
const DNS: &str = "networkProfile.dnsServiceIP";
const NODE_SUBNET: &str = "agentPoolProfile.vnetSubnetID";
const POD_SUBNET: &str = "agentPoolProfile.podSubnetID";

#[test]
fn ranges() {
    use NetworkMode::{Azure, Kubenet, None, Overlay};
    let service = |range: &'static str, dns: &'static str| {
        move |put: &mut PutCluster| {
            put.service_cidr = Some(prefix(range));
            put.dns_service_ip = Some(ip(dns));
        }
    };
    let overlap = "ServiceCidrOverlapExistingSubnetsCidr";
    check_cluster(
        Azure,
        service("10.1.0.0/16", "10.1.0.10"),
        (
            overlap,
            SERVICE,
            "The specified service CIDR 10.1.0.0/16 is conflicted with an existing subnet CIDR 10.1.0.0/24.",
        ),
    );
    check_cluster(None, service("10.1.8.0/24", "10.1.8.10"), (overlap, SERVICE, "10.1.8.0/21"));
    let invalid = "InvalidParameter";
    check_cluster(
        Azure,
        service("172.30.0.0/16", "172.30.0.10"),
        (invalid, SERVICE, "172.30.0.0/16"),
    );
    check_cluster(
        Azure,
        service("10.16.0.0/12", "10.16.0.10"),
        (invalid, SERVICE, "smaller than a /12"),
    );
    check_cluster(Azure, service("224.0.0.0/16", "224.0.0.10"), (invalid, SERVICE, "224.0.0.0/3"));
    let dns_out = "DnsServiceIpOutOfServiceCidr";
    check_cluster(
        Azure,
        |put| put.service_cidr = Some(prefix("10.200.0.0/16")),
        (
            dns_out,
            DNS,
            "The DNS service IP 10.0.0.10 is out of the range defined by service CIDR 10.200.0.0/16.",
        ),
    );
    check_cluster(
        Azure,
        service("10.200.0.0/16", "10.200.0.1"),
        ("DnsServiceIpConflicting", DNS, "10.200.0.1"),
    );
    check_cluster(
        Azure,
        service("10.200.0.0/24", "10.200.0.255"),
        ("DnsBroadcastAddressConflicting", DNS, "10.200.0.255"),
    );
    let pods = |range: &'static str| move |put: &mut PutCluster| put.pod_cidr = Some(prefix(range));
    check_cluster(Kubenet, pods("172.16.0.0/12"), (invalid, POD, "172.30.0.0/16"));
    // What no virtual network can have: the platform, loopback, multicast.
    for (range, overlapped) in [
        ("168.63.0.0/16", "168.63.129.16/32"),
        ("169.254.0.0/17", "169.254.0.0/16"),
        ("126.0.0.0/7", "127.0.0.0/8"),
        ("224.0.0.0/16", "224.0.0.0/3"),
    ] {
        check_cluster(Overlay, pods(range), (invalid, POD, overlapped));
        check_cluster(Kubenet, pods(range), (invalid, POD, overlapped));
    }
    for (range, dns, overlapped) in [
        ("168.63.0.0/16", "168.63.0.10", "168.63.129.16/32"),
        ("169.254.0.0/17", "169.254.0.10", "169.254.0.0/16"),
        ("127.0.0.0/16", "127.0.0.10", "127.0.0.0/8"),
    ] {
        check_cluster(Azure, service(range, dns), (invalid, SERVICE, overlapped));
    }
    check_cluster(
        Overlay,
        pods("10.0.128.0/17"),
        ("PodCidrOverlapServiceCidr", POD, "10.0.0.0/16"),
    );
    check_cluster(
        Overlay,
        pods("10.1.0.0/22"),
        ("PodCidrOverlapExistingSubnetsCidr", POD, "10.1.0.0/24"),
    );
    check_cluster(
        Azure,
        pods("192.168.0.0/16"),
        (invalid, "networkProfile.podCidr", "addresses of a subnet"),
    );
    check_cluster(
        Azure,
        |put| put.pools[0].subnet = Some(id("subnet v/reserved")),
        (invalid, NODE_SUBNET, "which AKS keeps for itself"),
    );
    // The virtual network may contain the pod range as long as no subnet does.
    let mut put = cluster(Overlay, vec![pool_in("nodepool1", 1, "v/a")]);
    put.pod_cidr = Some(prefix("10.1.128.0/17"));
    lab().must(put_cluster("c", put));
    // The default service range and the article's other network.
    let mut lab = Lab::new();
    lab.vnet("x", &["10.0.0.0/16"]);
    lab.subnet("x", "a", "10.0.0.0/24");
    let fault = lab.refused(put_cluster("c", cluster(Azure, vec![pool_in("nodepool1", 1, "x/a")])));
    check(&fault, overlap, SERVICE, "10.0.0.0/24");
}

#[test]
fn subnets_of_pools() {
    use NetworkMode::{Azure, Kubenet, Overlay};
    let links = |links| move |put: &mut PutCluster| put.links = Some(links);
    for (mode, links_asked, found) in [
        (Kubenet, NetworkLinks::Transparent, "if the network plugin is not azure"),
        (NetworkMode::None, NetworkLinks::Bridge, "if the network plugin is not azure"),
        (Overlay, NetworkLinks::Bridge, "not supported with network plugin mode overlay"),
    ] {
        check_cluster(
            mode,
            links(links_asked),
            ("NetworkModeNotSupported", "networkProfile.networkMode", found),
        );
    }
    check_cluster(
        Azure,
        |put| {
            put.links = Some(NetworkLinks::Bridge);
            put.pools[0].pod_subnet = Some(id("subnet v/pods"));
        },
        ("NetworkModeNotSupported", POD_SUBNET, "for pods of the node subnet"),
    );
    let node = |name: &'static str| {
        move |put: &mut PutCluster| put.pools[0].subnet = Some(id(&format!("subnet {name}")))
    };
    let pods = |name: &'static str| {
        move |put: &mut PutCluster| put.pools[0].pod_subnet = Some(id(&format!("subnet {name}")))
    };
    check_cluster(Azure, node("v/x"), ("SubnetNotFound", NODE_SUBNET, "v/subnets/x"));
    check_cluster(
        Azure,
        node("v/delegated"),
        ("SubnetIsDelegated", NODE_SUBNET, "cannot be used as it's a delegated subnet"),
    );
    check_cluster(Azure, pods("v/x"), ("SubnetNotFound", POD_SUBNET, "v/subnets/x"));
    check_cluster(Azure, pods("w/a"), ("InvalidParameter", POD_SUBNET, "not in virtual network"));
    check_cluster(Azure, pods("v/a"), ("InvalidParameter", POD_SUBNET, "is a node subnet"));
    check_cluster(
        Overlay,
        pods("v/pods"),
        ("InvalidParameter", POD_SUBNET, "network plugin azure"),
    );
    check_cluster(
        Azure,
        pods("v/delegated"),
        ("ResourceNotPermittedOnDelegatedSubnet", POD_SUBNET, "Microsoft.Web/serverFarms"),
    );
    check_cluster(
        Azure,
        |put| {
            let pods = Some(id("subnet v/pods"));
            put.pools.push(PutPool { pod_subnet: pods, ..pool_in("two", 1, "v/b") });
        },
        ("InvalidParameter", POD_SUBNET, "the same way"),
    );
    check_cluster(
        Azure,
        |put| put.pools.push(pool_in("two", 1, "w/a")),
        ("InvalidParameter", NODE_SUBNET, "not in virtual network"),
    );
    let mut lab = lab();
    lab.nic("n", "v/pods", None).unwrap();
    let mut put = cluster(Azure, vec![pool_in("nodepool1", 1, "v/a")]);
    put.pools[0].pod_subnet = Some(id("subnet v/pods"));
    let fault = lab.refused(put_cluster("c", put));
    let code = "SubnetDelegationsCannotChangeWhenSubnetUsedByResource";
    check(&fault, code, POD_SUBNET, "networkInterfaces/n");
    // A kubenet cluster has its subnet for itself: the second one meets the first one's route table.
    lab.cluster("k", cluster(Kubenet, vec![pool_in("nodepool1", 1, "v/a")])).unwrap();
    let fault =
        lab.refused(put_cluster("l", cluster(Kubenet, vec![pool_in("nodepool1", 1, "v/a")])));
    check(&fault, "CustomRouteTableWithUnsupportedMSIType", "", "https://aka.ms/aks/customrt");
    let fault =
        lab.refused(put_cluster("l", cluster(Overlay, vec![pool_in("nodepool1", 1, "v/a")])));
    check(&fault, "InvalidParameter", NODE_SUBNET, "shares its subnets with no other cluster");
    // Others share, and a later VM may sit beside the nodes.
    lab.cluster("o", cluster(Overlay, vec![pool_in("nodepool1", 1, "v/b")])).unwrap();
    lab.cluster("p", cluster(Azure, vec![pool_in("nodepool1", 1, "v/b")])).unwrap();
    lab.nic("m", "v/b", None).unwrap();
}

#[test]
fn route_tables_and_ways_out() {
    let mut lab = lab();
    let put_table = |routes: Vec<Route>| Command::PutRouteTable {
        common: common(id("table t")),
        routes: Some(routes),
        disable_bgp_route_propagation: false,
    };
    let default = |next_hop| Route { name: "out".into(), prefix: prefix("0.0.0.0/0"), next_hop };
    let udr = |mode| PutCluster {
        outbound: Some(OutboundType::UserDefinedRouting),
        ..cluster(mode, vec![pool_in("nodepool1", 1, "v/a")])
    };
    let put = put_cluster("c", udr(NetworkMode::Overlay));
    check(
        &lab.refused(put.clone()),
        "ExistingRouteTableNotAssociatedWithSubnet",
        "",
        "An existing route table has not been associated with subnet",
    );
    lab.must(put_table(vec![]));
    let route_table = Some(id("table t"));
    lab.must(put_subnet("v", PutSubnet { route_table, ..subnet("a", "10.1.0.0/24") }));
    check(&lab.refused(put.clone()), "RouteTableMissingDefaultRouteError", "", "0.0.0.0/0");
    lab.must(put_table(vec![default(NextHop::Internet)]));
    check(&lab.refused(put.clone()), "RouteTableInvalidNextHop", "", "appliance");
    lab.must(put_table(vec![default(NextHop::VirtualAppliance(ip("10.1.1.4")))]));
    let kubenet = put_cluster("k", udr(NetworkMode::Kubenet));
    let code = "CustomRouteTableWithUnsupportedMSIType";
    check(&lab.refused(kubenet), code, "", "managed identity type SystemAssigned");
    lab.must(put);
    // No load balancer, and no public address of the cluster's own.
    assert!(lab.region.balancers.is_empty() && lab.region.public_ips.is_empty());
}

#[test]
fn pools() {
    let invalid = "InvalidParameter";
    let change = |change: fn(&mut PutPool)| move |put: &mut PutCluster| change(&mut put.pools[0]);
    let mode = NetworkMode::Overlay;
    let max_pods = "agentPoolProfile.maxPods";
    check_cluster(
        mode,
        change(|pool| pool.max_pods = Some(9)),
        (invalid, max_pods, "between 10 and 250"),
    );
    check_cluster(mode, change(|pool| pool.max_pods = Some(251)), (invalid, max_pods, "251"));
    check_cluster(
        mode,
        change(|pool| (pool.max_pods, pool.count) = (Some(10), Some(2))),
        ("InsufficientAgentPoolMaxPodsPerAgentPool", max_pods, "room for 20 pods"),
    );
    let count = "agentPoolProfile.count";
    check_cluster(
        mode,
        change(|pool| pool.count = Some(0)),
        (invalid, count, "agentPoolProfile.count was 0. It must be greater or equal to minCount:1"),
    );
    check_cluster(mode, change(|pool| pool.count = Some(1001)), (invalid, count, "maxCount:1000"));
    let most = "agentPoolProfile.maxCount";
    check_cluster(mode, change(|pool| pool.autoscale = Some((5, 3))), (invalid, most, "5 to 3"));
    let surge = "agentPoolProfile.upgradeSettings.maxSurge";
    check_cluster(
        mode,
        change(|pool| pool.max_surge = Some("a lot".to_owned())),
        (invalid, surge, "a lot"),
    );
    for name in ["Pool", "1pool", "", "thirteenchars", "a-b"] {
        let mut put = cluster(mode, vec![pool_in("nodepool1", 1, "v/a")]);
        put.pools[0].name = name.into();
        let fault = lab().refused(put_cluster("c", put));
        check(&fault, invalid, "agentPoolProfile.name", "aks-naming-rules");
    }
    let mut put = cluster(mode, vec![pool_in("nodepool1", 1, "v/a")]);
    put.pools[0].name = "aksmanagedap".into();
    let fault = lab().refused(put_cluster("c", put));
    check(&fault, invalid, "agentPoolProfile.name", "keeps for itself");
    // Names that nodes get as labels.
    let long = "s".repeat(64);
    for (mode, is_refused) in [(NetworkMode::Overlay, true), (NetworkMode::Azure, false)] {
        let mut lab = lab();
        lab.subnet("v", &long, "10.1.77.0/24");
        let put = cluster(mode, vec![pool_in("nodepool1", 1, &format!("v/{long}"))]);
        match lab.cluster("long", put) {
            Err(fault) if is_refused => check(&fault, invalid, NODE_SUBNET, "64 characters"),
            answer => assert_eq!(answer.is_err(), is_refused, "{answer:?}"),
        }
    }
    check_cluster(
        mode,
        change(|pool| pool.mode = Some(PoolMode::User)),
        ("MustDefineAtLeastOneSystemPool", "", "There has to be at least one system agent pool."),
    );
    check_cluster(
        mode,
        |put| put.pools.clear(),
        ("MustDefineAtLeastOneSystemPool", "", "There has to be at least one system agent pool."),
    );
    check_cluster(
        mode,
        |put| put.pools.push(pool("NODEPOOL1", 1)),
        (invalid, "agentPoolProfile.name", "NODEPOOL1"),
    );
    check_cluster(
        mode,
        |put| put.pools.push(pool("nodepool1", 1)),
        (invalid, "agentPoolProfiles", "more than once"),
    );
}

#[test]
fn node_resource_groups() {
    let mode = NetworkMode::Overlay;
    let target = "nodeResourceGroup";
    check_cluster(
        mode,
        |put| put.node_group = Some("AKSNTWDEMO".to_owned()),
        ("NodeResourceGroupSameAsResourceGroup", target, "AKSNTWDEMO"),
    );
    let mut lab = lab();
    lab.group("taken");
    let taken = PutCluster {
        node_group: Some("taken".to_owned()),
        ..cluster(mode, vec![pool_in("nodepool1", 1, "v/a")])
    };
    check(&lab.refused(put_cluster("c", taken)), "NodeResourceGroupAlreadyExists", target, "taken");
    let long = "c".repeat(63);
    lab.cluster(&long, cluster(mode, vec![pool_in("nodepool1", 1, "v/a")])).unwrap();
    let node_group = &lab.region.clusters[&id(&format!("cluster {long}"))].node_group;
    assert_eq!(node_group.resource_group().len(), 80);
    let too_long =
        lab.refused(put_cluster(&"c".repeat(64), cluster(mode, vec![pool("nodepool1", 1)])));
    check(&too_long, "InvalidParameter", "resourceName", "1 to 63");
}

#[test]
fn what_is_fixed_stays() {
    let mut lab = lab();
    lab.cluster("c", cluster(NetworkMode::Azure, vec![pool_in("nodepool1", 1, "v/a")])).unwrap();
    lab.up("c", NodePhase::Ready);
    let fixed = "PropertyChangeNotAllowed";
    let mut check_change = |change: &dyn Fn(&mut PutCluster), code: &str, target: &str| {
        let mut put = cluster(NetworkMode::Azure, vec![pool_in("nodepool1", 1, "v/a")]);
        change(&mut put);
        check(&lab.refused(put_cluster("c", put)), code, target, "");
    };
    check_change(
        &|put| put.mode = Some(NetworkMode::Kubenet),
        fixed,
        "networkProfile.networkPlugin",
    );
    check_change(
        &|put| put.service_cidr = Some(prefix("10.9.0.0/16")),
        fixed,
        "networkProfile.serviceCidr",
    );
    check_change(
        &|put| put.dns_service_ip = Some(ip("10.0.0.11")),
        fixed,
        "networkProfile.dnsServiceIP",
    );
    check_change(
        &|put| put.pod_cidr = Some(prefix("10.9.0.0/16")),
        fixed,
        "networkProfile.podCidr",
    );
    check_change(
        &|put| put.links = Some(NetworkLinks::Bridge),
        fixed,
        "networkProfile.networkMode",
    );
    check_change(&|put| put.dns_prefix = Some("x".to_owned()), fixed, "dnsPrefix");
    check_change(&|put| put.node_group = Some("x".to_owned()), fixed, "nodeResourceGroup");
    check_change(
        &|put| put.version = Some("1.99.0".to_owned()),
        "OperationNotAllowed",
        "kubernetesVersion",
    );
    check_change(&|put| put.pools[0].subnet = Some(id("subnet v/b")), fixed, NODE_SUBNET);
    check_change(&|put| put.pools[0].pod_subnet = Some(id("subnet v/pods")), fixed, POD_SUBNET);
    check_change(&|put| put.pools[0].max_pods = Some(31), fixed, "agentPoolProfile.maxPods");
    check_change(
        &|put| put.pools[0].vm_size = Some("x".to_owned()),
        fixed,
        "agentPoolProfile.vmSize",
    );
    let only_user = put_pool("c", PutPool { mode: Some(PoolMode::User), ..pool("nodepool1", 1) });
    check(&lab.refused(only_user), "MustDefineAtLeastOneSystemPool", "", "");
    check(
        &lab.refused(put_pool("x", pool("p", 1))),
        "ParentResourceNotFound",
        "",
        "managedClusters/x",
    );
}

#[test]
fn a_group_with_users_outside_stays() {
    let mut lab = lab();
    lab.group("other");
    let elsewhere = crate::support::group("other").sibling(vnet::kind::CLUSTER, "c");
    let put = cluster(NetworkMode::Overlay, vec![pool_in("nodepool1", 1, "v/a")]);
    lab.must(Command::PutCluster { common: common(elsewhere.clone()), cluster: put });
    let delete = Command::DeleteGroup { id: crate::support::group("aksntwdemo") };
    check(&lab.refused(delete.clone()), "ResourceGroupDeletionBlocked", "", "resourceGroups/other");
    lab.must(Command::Delete { id: elsewhere.clone() });
    lab.must(Command::ClusterGone { cluster: elsewhere });
    lab.must(delete);
    let fault = lab.refused(crate::support::put_vnet("x", &["10.0.0.0/16"]));
    check(&fault, "ResourceGroupBeingDeleted", "", "deprovisioning");
    lab.fabric();
    assert!(lab.region.vnets.is_empty());
}

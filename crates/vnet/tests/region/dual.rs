//! Clusters whose nodes, pods and services have IPv6 beside IPv4.

use std::collections::BTreeMap;

use vnet::{
    addr::Family,
    command::{Command, PutCluster},
    host::platform::{Found, lookup},
    model::{Frontend, NetworkMode, NodePhase, OutboundAddresses, OutboundProfile, OutboundType},
    name::Name,
};

use crate::support::{
    Lab, cluster, id, pool, pool_in, prefix, put_cluster, put_public_ip, put_subnet, subnet,
};

fn dual(mode: NetworkMode, subnet: Option<&str>) -> PutCluster {
    let first = subnet.map_or_else(|| pool("nodepool1", 2), |it| pool_in("nodepool1", 2, it));
    PutCluster { is_dual_stack: Some(true), ..cluster(mode, vec![first]) }
}

/// Each node: addresses, and ranges of pods.
fn nodes(lab: &Lab) -> Vec<String> {
    let nodes = lab.region.nodes_of(&id("cluster c"));
    let text = nodes.into_iter().map(|machine| {
        let nic = lab.region.nic_of(&machine.meta.id).unwrap();
        let addresses: Vec<_> = nic.configs.iter().map(|it| it.address.to_string()).collect();
        let ranges = machine.node().unwrap().pod_ranges();
        let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        format!("{} pods {}", addresses.join(" "), ranges.join(" "))
    });
    text.collect()
}

fn own_vnet(subnet6: Option<&str>) -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16", "fd00:db8::/48"]);
    let mut nodes = subnet("nodes", "10.1.0.0/24");
    nodes.prefix6 = subnet6.map(prefix);
    lab.must(put_subnet("v", nodes));
    lab
}

#[test]
fn nodes_have_both_families_in_a_subnet_of_ones_own() {
    for mode in [NetworkMode::Overlay, NetworkMode::Kubenet] {
        let mut lab = own_vnet(Some("fd00:db8::/64"));
        lab.cluster("c", dual(mode, Some("v/nodes"))).unwrap();
        lab.up("c", NodePhase::Ready);
        assert_eq!(
            nodes(&lab),
            [
                "10.1.0.4 fd00:db8::4 pods 10.244.0.0/24 fd12:3456:789a::/80",
                "10.1.0.5 fd00:db8::5 pods 10.244.1.0/24 fd12:3456:789a:0:1::/80",
            ],
            "{mode:?}"
        );
        let cluster = &lab.region.clusters[&id("cluster c")];
        let texts = |ranges: Vec<vnet::addr::Prefix>| {
            ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(cluster.pod_cidrs()), ["10.244.0.0/16", "fd12:3456:789a::/64"]);
        assert_eq!(texts(cluster.service_cidrs()), ["10.0.0.0/16", "fd12:3456:789a:1::/108"]);
    }
}

#[test]
fn a_managed_network_is_dual_stack_and_so_is_the_way_out() {
    let mut lab = Lab::new();
    lab.cluster("c", dual(NetworkMode::Overlay, None)).unwrap();
    lab.up("c", NodePhase::Ready);
    let cluster = lab.region.clusters[&id("cluster c")].clone();
    let network = &lab.region.vnets[&cluster.vnet];
    assert!(network.is_dual_stack());
    let nodes = &network.subnets[&Name::new("aks-subnet")];
    assert_eq!(nodes.prefix6.unwrap().length(), 64);
    let balancer = cluster.node_group.sibling(vnet::kind::LOAD_BALANCER, "kubernetes");
    let balancer = &lab.region.balancers[&balancer];
    let pools: Vec<_> = balancer
        .pools
        .iter()
        .map(|(name, pool)| format!("{name} {:?} {}", pool.family, pool.members.len()))
        .collect();
    assert_eq!(
        pools,
        [
            "aksOutboundBackendPool V4 2",
            "aksOutboundBackendPool-IPv6 V6 2",
            "kubernetes V4 2",
            "kubernetes-IPv6 V6 2",
        ]
    );
    let rules: Vec<_> = balancer
        .outbound_rules
        .iter()
        .map(|(name, rule)| (name.to_string(), rule.frontends.len()))
        .collect();
    assert_eq!(rules, [("aksOutboundRule".to_owned(), 1), ("aksOutboundRule-IPv6".to_owned(), 1)]);
    let of_v6 = |lab: &Lab| {
        lab.region.public_ips.values().filter(|it| Family::of(it.address) == Family::V6).count()
    };
    assert_eq!(of_v6(&lab), 1);
    // More of them, and none.
    for n in [3, 0] {
        let profile = OutboundProfile { managed_v6: Some(n), ..OutboundProfile::default() };
        let mut put = dual(NetworkMode::Overlay, None);
        put.outbound_profile = Some(profile);
        lab.must(put_cluster("c", put));
        lab.up("c", NodePhase::Ready);
        assert_eq!(of_v6(&lab), usize::try_from(n).unwrap());
    }
}

/// Addresses of the user's are those of the rule of their family.
#[test]
fn outbound_addresses_of_ones_own_may_be_of_ipv6() {
    let put_ip = |name: &str, family| match put_public_ip(name, None) {
        Command::PutPublicIp { common, prefix, sku, allocation, settings, .. } => {
            Command::PutPublicIp { common, prefix, sku, allocation, family, settings }
        }
        other => panic!("{other:?}"),
    };
    let with = |names: &[&str], is_dual_stack| {
        let ids = names.iter().map(|name| id(&format!("pip {name}"))).collect();
        let mut put = dual(NetworkMode::Overlay, None);
        put.is_dual_stack = Some(is_dual_stack);
        put.outbound_profile = Some(OutboundProfile {
            addresses: OutboundAddresses::PublicIps(ids),
            ..OutboundProfile::default()
        });
        put_cluster("c", put)
    };
    let mut lab = Lab::new();
    lab.must(put_ip("four", Family::V4));
    lab.must(put_ip("six", Family::V6));
    assert_eq!(lab.refused(with(&["six"], true)).code, "InvalidParameter");
    assert_eq!(lab.refused(with(&["four", "six"], false)).code, "InvalidParameter");
    lab.must(with(&["six", "four"], true));
    lab.up("c", NodePhase::Ready);
    let cluster = lab.region.clusters[&id("cluster c")].clone();
    let balancer = cluster.node_group.sibling(vnet::kind::LOAD_BALANCER, "kubernetes");
    let there = &lab.region.balancers[&balancer];
    for (rule, pip) in [("aksOutboundRule", "four"), ("aksOutboundRule-IPv6", "six")] {
        let rule = &there.outbound_rules[&Name::new(rule)];
        let fronts: Vec<_> = rule.frontends.iter().map(|name| &there.frontends[name]).collect();
        assert_eq!(fronts, [&Frontend::Public { public_ip: id(&format!("pip {pip}")) }]);
    }
    // Without one of IPv6 there is no way out by it.
    lab.must(with(&["four"], true));
    lab.up("c", NodePhase::Ready);
    let there = &lab.region.balancers[&balancer];
    assert!(!there.outbound_rules.contains_key(&Name::new("aksOutboundRule-IPv6")));
    assert_eq!(there.frontends.len(), 1);
}

#[test]
fn what_a_dual_stack_cluster_cannot_be_is_refused_by_azures_names() {
    let check = |change: &dyn Fn(&mut PutCluster), code: &str| {
        let mut lab = own_vnet(Some("fd00:db8::/64"));
        let mut put = dual(NetworkMode::Overlay, Some("v/nodes"));
        change(&mut put);
        assert_eq!(lab.refused(put_cluster("c", put)).code, code);
    };
    check(&|put| put.mode = Some(NetworkMode::Azure), "UnsupportedDualStackNetworkPlugin");
    check(
        &|put| put.service_cidr6 = Some(prefix("fd12:3456:789a:1::/107")),
        "InvalidServiceCidrIPv6MaskSize",
    );
    check(
        &|put| put.service_cidr6 = Some(prefix("fd12:3456:789a::/108")),
        "PodCidrOverlapServiceCidr",
    );
    check(
        &|put| put.service_cidr6 = Some(prefix("fd00:db8::/108")),
        "ServiceCidrOverlapExistingSubnetsCidr",
    );
    check(
        &|put| put.pod_cidr6 = Some(prefix("fd00:db8::/64")),
        "PodCidrOverlapExistingSubnetsCidr",
    );
    check(&|put| put.pod_cidr6 = Some(prefix("fd77::/48")), "InvalidParameter");
    check(&|put| put.pod_cidr6 = Some(prefix("fd77::/80")), "InsufficientPodCidr");
    check(
        &|put| put.outbound = Some(OutboundType::UserAssignedNatGateway),
        "UnsupportedOutboundType",
    );
    let put = || put_cluster("c", dual(NetworkMode::Overlay, Some("v/nodes")));
    assert_eq!(own_vnet(None).refused(put()).code, "VnetSubnetMissingIPv6");
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    assert_eq!(lab.refused(put()).code, "SingleStackVnetSubnetWithDualStackCluster");
    let mut many = dual(NetworkMode::Kubenet, None);
    many.pools[0].count = Some(201);
    assert_eq!(lab.refused(put_cluster("d", many)).code, "AgentPoolMaxCountExceeded");
    let mut single = cluster(NetworkMode::Overlay, vec![pool("nodepool1", 2)]);
    single.outbound_profile = Some(OutboundProfile {
        managed_v6: Some(1),
        addresses: OutboundAddresses::Managed(1),
        ..OutboundProfile::default()
    });
    assert_eq!(
        lab.refused(put_cluster("e", single)).code,
        "InvalidLoadBalancerProfileManagedOutboundIPCount"
    );
}

#[test]
fn families_and_ranges_stay_as_they_were_made() {
    let mut lab = own_vnet(Some("fd00:db8::/64"));
    lab.cluster("c", dual(NetworkMode::Overlay, Some("v/nodes"))).unwrap();
    lab.up("c", NodePhase::Ready);
    let mut check = |change: &dyn Fn(&mut PutCluster), target: &str| {
        let mut put = dual(NetworkMode::Overlay, Some("v/nodes"));
        change(&mut put);
        let fault = lab.refused(put_cluster("c", put));
        assert_eq!(
            (fault.code.as_str(), fault.target.as_deref()),
            ("PropertyChangeNotAllowed", Some(target))
        );
    };
    check(&|put| put.is_dual_stack = Some(false), "networkProfile.ipFamilies");
    check(&|put| put.pod_cidr6 = Some(prefix("fd77::/64")), "networkProfile.podCidrs");
    check(&|put| put.service_cidr6 = Some(prefix("fd77::/108")), "networkProfile.serviceCidrs");
}

/// A node that goes gives back all that it has; the next one gets it, surge nodes of an upgrade included.
#[test]
fn addresses_and_ranges_come_back() {
    let mut lab = own_vnet(Some("fd00:db8::/64"));
    lab.cluster("c", dual(NetworkMode::Kubenet, Some("v/nodes"))).unwrap();
    lab.up("c", NodePhase::Ready);
    let before = nodes(&lab);
    // From kubenet to overlay: all nodes are made anew, and keep both addresses and both ranges.
    lab.must(put_cluster("c", dual(NetworkMode::Overlay, Some("v/nodes"))));
    assert_eq!(nodes(&lab).len(), 3, "a surge node");
    for _ in 0..20 {
        lab.upgrade_step("c", NodePhase::Ready);
        let generation = lab.region.generation;
        lab.must(Command::ClusterReal { cluster: id("cluster c"), generation });
    }
    assert_eq!(nodes(&lab), before);
    lab.delete("cluster c");
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    lab.fabric();
    assert_eq!(lab.held("v/nodes"), 0);
}

/// Names of IPv6 are those of public IPs; addresses of IPv6 have none, and only those that are the lab's or nobody's
/// are answered here.
#[test]
fn names_of_ipv6() {
    let lab = own_vnet(Some("fd00:db8::/64"));
    let name = "web.eastus.cloudapp.azure.com";
    let both = vec!["198.18.0.4".parse().unwrap(), "2001:2::4".parse().unwrap()];
    let public = BTreeMap::from([(name.to_owned(), both.clone())]);
    let find = |name: &str| lookup(&lab.region, &id("vnet v"), &public, name);
    assert_eq!(find("Web.eastus.cloudapp.azure.com."), Found::Addresses(both));
    // The nibbles of an address, the last one first (RFC 3596, 2.5).
    let reverse = |address: &str| {
        let number: u128 = address.parse::<std::net::Ipv6Addr>().unwrap().into();
        let digits = (0..32).map(|n| format!("{:x}.", number >> (4 * n) & 15));
        format!("{}ip6.arpa", digits.collect::<String>())
    };
    for (address, expected) in [
        ("fd00:db8::4", Found::Nobody),
        ("2001:2::4", Found::Nobody),
        ("fd77::1", Found::Nobody),
        ("fe80::1", Found::Nobody),
        ("2a00::1", Found::Elsewhere),
    ] {
        assert_eq!(find(&reverse(address)), expected, "{address}");
    }
    for odd in ["1.2.ip6.arpa", "x.ip6.arpa", ".ip6.arpa"] {
        assert_eq!(find(odd), Found::Elsewhere, "{odd}");
    }
}

//! How clusters' machines reach the internet: what each outbound type needs and brings, and which follows which.

use vnet::{
    command::{Command, PutCluster, PutSubnet},
    kind,
    model::{
        Frontend, NetworkMode, NextHop, NodePhase, OutboundAddresses, OutboundProfile,
        OutboundType, Route,
    },
    name::ArmId,
};

use crate::support::{
    Lab, cluster, common, group, id, ip, pool, pool_in, prefix, put_cluster, put_nat, put_pool,
    put_prefix, put_public_ip, put_subnet, subnet,
};

use OutboundType::{
    Block, LoadBalancer, ManagedNatGateway, None as Nothing, UserAssignedNatGateway,
    UserDefinedRouting,
};

/// A virtual network with a subnet for each type: `plain`, `udr` behind an appliance, `nat` behind a NAT gateway.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.must(Command::PutRouteTable {
        common: common(id("table t")),
        routes: Some(vec![route(NextHop::VirtualAppliance(ip("10.1.9.4")))]),
        disable_bgp_route_propagation: false,
    });
    lab.must(put_public_ip("out", None));
    lab.must(put_nat("gw", &["out"], &[]));
    lab.subnet("v", "plain", "10.1.0.0/24");
    lab.must(put_subnet("v", leading("udr", "10.1.1.0/24", true, false)));
    lab.must(put_subnet("v", leading("nat", "10.1.2.0/24", false, true)));
    lab.must(put_subnet("v", leading("both", "10.1.3.0/24", true, true)));
    lab.fabric();
    lab
}

fn route(next_hop: NextHop) -> Route {
    Route { name: "default".into(), prefix: prefix("0.0.0.0/0"), next_hop }
}

fn leading(name: &str, range: &str, table: bool, gateway: bool) -> PutSubnet {
    PutSubnet {
        route_table: table.then(|| id("table t")),
        nat_gateway: gateway.then(|| id("nat gw")),
        ..subnet(name, range)
    }
}

fn with(outbound: OutboundType, subnet: Option<&str>) -> PutCluster {
    let first = match subnet {
        Some(subnet) => pool_in("nodepool1", 2, &format!("v/{subnet}")),
        None => pool("nodepool1", 2),
    };
    PutCluster { outbound: Some(outbound), ..cluster(NetworkMode::Overlay, vec![first]) }
}

fn profile(addresses: OutboundAddresses) -> OutboundProfile {
    OutboundProfile { addresses, ..OutboundProfile::default() }
}

fn made(name: &str) -> ArmId {
    group("MC_aksntwdemo_c_eastus").sibling(kind::LOAD_BALANCER, name)
}

/// The public addresses of the outbound rule.
fn outside(lab: &Lab) -> Vec<ArmId> {
    let Some(balancer) = lab.region.balancers.get(&made("kubernetes")) else { return Vec::new() };
    let rules = balancer.outbound_rules.values();
    let names = rules.flat_map(|rule| &rule.frontends);
    names
        .map(|name| match &balancer.frontends[name] {
            Frontend::Public { public_ip } => public_ip.clone(),
            other => panic!("an outbound rule with {other:?}"),
        })
        .collect()
}

#[test]
fn what_each_type_needs() {
    let refused = |put: PutCluster| lab().refused(put_cluster("c", put)).code;
    let table = [
        (LoadBalancer, Some("nat"), "InvalidParameter"),
        (ManagedNatGateway, Some("plain"), "ManagedNATGatewayWithCustomVNetNotAllowed"),
        (UserAssignedNatGateway, None, "UserAssignedNATGatewayWithManagedVNetNotAllowed"),
        (UserAssignedNatGateway, Some("plain"), "SubnetNotAssociatedWithNATGateway"),
        (UserDefinedRouting, Some("plain"), "ExistingRouteTableNotAssociatedWithSubnet"),
        (UserDefinedRouting, None, "ExistingRouteTableNotAssociatedWithSubnet"),
        (Block, Some("plain"), "UnsupportedOutboundType"),
    ];
    for (outbound, subnet, code) in table {
        assert_eq!(refused(with(outbound, subnet)), code, "{outbound:?} in {subnet:?}");
    }
    let accepted = [
        (LoadBalancer, Some("plain")),
        (LoadBalancer, None),
        (ManagedNatGateway, None),
        (UserAssignedNatGateway, Some("nat")),
        (UserDefinedRouting, Some("udr")),
        (Nothing, Some("plain")),
        (Nothing, None),
        (Block, None),
    ];
    for (outbound, subnet) in accepted {
        let mut lab = lab();
        lab.must(put_cluster("c", with(outbound, subnet)));
        lab.up("c", NodePhase::Ready);
        let there = (lab.region.balancers.len(), lab.region.nat_gateways.len());
        let expected = match outbound {
            LoadBalancer => (1, 1),
            ManagedNatGateway => (0, 2),
            _ => (0, 1),
        };
        assert_eq!(there, expected, "{outbound:?} in {subnet:?}");
        lab.delete("cluster c");
        lab.must(Command::ClusterGone { cluster: id("cluster c") });
        assert_eq!((lab.region.balancers.len(), lab.region.nat_gateways.len()), (0, 1));
    }
}

#[test]
fn ways_out_that_lead_nowhere() {
    let mut lab = lab();
    for (hop, code) in [
        (NextHop::Internet, "RouteTableInvalidNextHop"),
        (NextHop::None, "RouteTableInvalidNextHop"),
    ] {
        lab.must(Command::PutRoute { id: id("route t/default"), route: route(hop) });
        assert_eq!(lab.refused(put_cluster("c", with(UserDefinedRouting, Some("udr")))).code, code);
    }
    lab.delete("route t/default");
    let fault = lab.refused(put_cluster("c", with(UserDefinedRouting, Some("udr"))));
    assert_eq!(fault.code, "RouteTableMissingDefaultRouteError");
    lab.must(put_nat("gw", &[], &[]));
    let fault = lab.refused(put_cluster("c", with(UserAssignedNatGateway, Some("nat"))));
    assert_eq!(fault.code, "NATGatewayNotAssociatedWithPublicIPOrIPPrefix");
    // Every pool's subnet has to lead out, also later.
    lab.must(put_nat("gw", &["out"], &[]));
    lab.must(put_cluster("c", with(UserAssignedNatGateway, Some("nat"))));
    lab.up("c", NodePhase::Ready);
    let fault = lab.refused(put_pool("c", pool_in("user", 1, "v/plain")));
    assert_eq!(fault.code, "SubnetNotAssociatedWithNATGateway");
    lab.must(put_pool("c", pool_in("user", 1, "v/both")));
}

#[test]
fn the_load_balancer_has_the_addresses_that_are_asked_for() {
    let mut lab = lab();
    let put = |profile: OutboundProfile| PutCluster {
        outbound_profile: Some(profile),
        ..PutCluster::default()
    };
    let mut first = with(LoadBalancer, Some("plain"));
    first.outbound_profile = Some(profile(OutboundAddresses::Managed(2)));
    lab.must(put_cluster("c", first));
    lab.up("c", NodePhase::Ready);
    let two = outside(&lab);
    assert_eq!(two.len(), 2);
    // More keep those that are; fewer give back the last.
    lab.must(put_cluster("c", put(profile(OutboundAddresses::Managed(3)))));
    lab.up("c", NodePhase::Ready);
    assert_eq!((outside(&lab).len(), &outside(&lab)[..2]), (3, &two[..]));
    let n_public = lab.region.public_ips.len();
    lab.must(put_cluster("c", put(profile(OutboundAddresses::Managed(1)))));
    lab.up("c", NodePhase::Ready);
    assert_eq!((outside(&lab), lab.region.public_ips.len()), (two[..1].to_vec(), n_public - 2));

    // One's own, and a prefix.
    lab.must(put_public_ip("mine", None));
    lab.fabric();
    let mine = OutboundAddresses::PublicIps(vec![id("pip mine")]);
    lab.must(put_cluster("c", put(profile(mine.clone()))));
    lab.up("c", NodePhase::Ready);
    assert_eq!(outside(&lab), [id("pip mine")]);
    assert!(!lab.region.public_ips.contains_key(&two[0]));
    lab.must(put_prefix("row", 30));
    lab.fabric();
    let row = OutboundAddresses::Prefixes(vec![id("prefix row")]);
    lab.must(put_cluster("c", put(profile(row))));
    lab.up("c", NodePhase::Ready);
    assert_eq!(outside(&lab).len(), 4);
    // What was the user's is still there, and free.
    assert_eq!(lab.region.public_ips[&id("pip mine")].used_by, None);

    let bad = [
        (OutboundAddresses::Managed(0), "InvalidLoadBalancerProfileManagedOutboundIPCount"),
        (OutboundAddresses::Managed(101), "InvalidLoadBalancerProfileManagedOutboundIPCount"),
        (OutboundAddresses::PublicIps(vec![]), "InvalidLoadBalancerProfileOutboundIPs"),
        (
            OutboundAddresses::PublicIps(vec![id("pip nope")]),
            "LoadBalancerProfileOutboundIPNotExist",
        ),
        (
            OutboundAddresses::PublicIps(vec![id("pip out")]),
            "LoadBalancerProfileOutboundIPAttachedToAnotherIPConfiguration",
        ),
        (OutboundAddresses::Prefixes(vec![]), "InvalidLoadBalancerProfileOutboundIPPrefixes"),
        (OutboundAddresses::Prefixes(vec![id("prefix nope")]), "InvalidResourceReference"),
    ];
    for (addresses, code) in bad {
        let text = format!("{addresses:?}");
        let fault = lab.refused(put_cluster("c", put(profile(addresses))));
        assert_eq!(fault.code, code, "{text}");
    }
    let idle = OutboundProfile { idle_timeout_minutes: 3, ..OutboundProfile::default() };
    assert_eq!(
        lab.refused(put_cluster("c", put(idle))).code,
        "InvalidLoadBalancerProfileIdleTimeoutInMinutes"
    );
}

#[test]
fn ports_must_be_enough_for_every_node() {
    let mut lab = lab();
    let ports = |allocated_ports| OutboundProfile { allocated_ports, ..OutboundProfile::default() };
    let mut put = with(LoadBalancer, Some("plain"));
    put.pools[0].count = Some(8);
    for (n, code) in [
        (7, "LoadBalancerProfileAllocatedOutboundPortsMustBeMultipleOfEight"),
        (64_008, "InvalidLoadBalancerProfileAllocatedOutboundPorts"),
    ] {
        put.outbound_profile = Some(ports(n));
        assert_eq!(lab.refused(put_cluster("c", put.clone())).code, code);
    }
    // Azure AKS issue, `https://aka.ms/aks/slb-ports`: eight nodes and one for an upgrade.
    put.outbound_profile = Some(ports(8_000));
    let fault = lab.refused(put_cluster("c", put.clone()));
    assert_eq!(
        fault.message,
        "Load balancer profile allocated ports 8000 is not in an allowable range given the number of nodes and IPs \
         provisioned. Total node count 9 requires 72000 ports but only 64000 ports are available given 1 outbound \
         public IPs. Refer to https://aka.ms/aks/slb-ports for more details."
    );
    put.pools[0].count = Some(7);
    lab.must(put_cluster("c", put));
    lab.up("c", NodePhase::Ready);
    // Scaling is asked as well.
    let fault = lab.refused(put_pool("c", pool("nodepool1", 8)));
    assert_eq!(fault.code, "InvalidLoadBalancerProfileAllocatedOutboundPorts");
    let rule = &lab.region.balancers[&made("kubernetes")].outbound_rules[&"aksOutboundRule".into()];
    assert_eq!((rule.allocated_ports, rule.idle_timeout_minutes), (8_000, 30));
}

#[test]
fn a_managed_gateway_serves_the_managed_subnet() {
    let mut lab = lab();
    let mut put = with(ManagedNatGateway, None);
    for (n, minutes, code) in [
        (0, 4, "InvalidNATGatewayProfileManagedOutboundIPCount"),
        (17, 4, "InvalidNATGatewayProfileManagedOutboundIPCount"),
        (1, 121, "InvalidNATGatewayProfileIdleTimeoutInMinutes"),
    ] {
        put.outbound_profile = Some(OutboundProfile {
            idle_timeout_minutes: minutes,
            ..profile(OutboundAddresses::Managed(n))
        });
        assert_eq!(lab.refused(put_cluster("c", put.clone())).code, code);
    }
    put.outbound_profile = None;
    lab.must(put_cluster("c", put));
    lab.up("c", NodePhase::Ready);
    let cluster = lab.region.clusters[&id("cluster c")].clone();
    assert_eq!(cluster.outbound_profile.idle_timeout_minutes, 4);
    let subnet = cluster.vnet.child("subnets", "aks-subnet");
    let gateway = lab.region.subnet(&subnet).unwrap().1.nat_gateway.clone().unwrap();
    assert_eq!(gateway.name(), format!("aks-natgateway-{}", cluster.hash));
    let more = PutCluster {
        outbound_profile: Some(profile(OutboundAddresses::Managed(3))),
        ..PutCluster::default()
    };
    lab.must(put_cluster("c", more));
    lab.up("c", NodePhase::Ready);
    assert_eq!(lab.region.nat_gateways[&gateway].public_ips.len(), 3);
    // Away with it: nothing of it is left.
    let n_public = lab.region.public_ips.len();
    let none = PutCluster { outbound: Some(Nothing), ..PutCluster::default() };
    lab.must(put_cluster("c", none));
    assert_eq!(lab.region.subnet(&subnet).unwrap().1.nat_gateway, None);
    assert!(!lab.region.nat_gateways.contains_key(&gateway));
    assert_eq!(lab.region.public_ips.len(), n_public - 3);
}

/// Azure AKS documentation, "Customize cluster egress with outbound types in AKS": both tables.
#[test]
fn which_type_can_follow_which() {
    let check = |subnet: Option<&str>,
                 types: &[OutboundType],
                 allowed: &[(OutboundType, &[OutboundType])]| {
        for (from, to_allowed) in allowed {
            for to in types {
                let mut lab = lab();
                // A subnet that suits every type after creation.
                let is_flat = *from == LoadBalancer && subnet == Some("both");
                if is_flat {
                    lab.must(put_subnet("v", leading("both", "10.1.3.0/24", true, false)));
                }
                lab.must(put_cluster("c", with(*from, subnet)));
                lab.up("c", NodePhase::Ready);
                if is_flat {
                    lab.must(put_subnet("v", leading("both", "10.1.3.0/24", true, true)));
                }
                let put = PutCluster { outbound: Some(*to), ..PutCluster::default() };
                let result = lab.apply(put_cluster("c", put));
                let is_allowed = from == to || to_allowed.contains(to);
                match result {
                    Ok(_) => {
                        assert!(is_allowed, "{from:?} to {to:?} in {subnet:?}");
                        lab.up("c", NodePhase::Ready);
                        let n = usize::from(*to == LoadBalancer);
                        assert_eq!(lab.region.balancers.len(), n, "{from:?} to {to:?}");
                        assert_eq!(outside(&lab).len(), n);
                    }
                    Err(fault) => {
                        assert!(!is_allowed, "{from:?} to {to:?} in {subnet:?}: {fault}");
                        assert_eq!(fault.code, "UpdatingOutboundTypeNotAllowed");
                    }
                }
            }
        }
    };
    check(
        None,
        &[
            LoadBalancer,
            ManagedNatGateway,
            UserAssignedNatGateway,
            UserDefinedRouting,
            Nothing,
            Block,
        ],
        &[
            (LoadBalancer, &[ManagedNatGateway, Nothing, Block]),
            (ManagedNatGateway, &[Nothing, Block]),
            (Nothing, &[LoadBalancer, ManagedNatGateway, Block]),
            (Block, &[LoadBalancer, ManagedNatGateway, Nothing]),
        ],
    );
    check(
        Some("both"),
        &[
            LoadBalancer,
            ManagedNatGateway,
            UserAssignedNatGateway,
            UserDefinedRouting,
            Nothing,
            Block,
        ],
        &[
            (LoadBalancer, &[UserAssignedNatGateway, UserDefinedRouting, Nothing]),
            (UserAssignedNatGateway, &[LoadBalancer, UserDefinedRouting, Nothing]),
            (UserDefinedRouting, &[LoadBalancer, UserAssignedNatGateway, Nothing]),
            (Nothing, &[LoadBalancer, UserAssignedNatGateway, UserDefinedRouting]),
        ],
    );
}

#[test]
fn what_services_use_outlives_the_way_out() {
    let mut lab = lab();
    lab.must(put_cluster("c", with(LoadBalancer, Some("plain"))));
    lab.up("c", NodePhase::Ready);
    let balancer = lab.region.balancers[&made("kubernetes")].clone();
    let members = balancer.pools[&"kubernetes".into()].members.clone();
    assert_eq!(members.len(), 2);
    let none = PutCluster { outbound: Some(Nothing), ..PutCluster::default() };
    lab.must(put_cluster("c", none));
    lab.up("c", NodePhase::Ready);
    assert!(lab.region.balancers.is_empty(), "nobody needs it");
    let back = PutCluster { outbound: Some(LoadBalancer), ..PutCluster::default() };
    lab.must(put_cluster("c", back));
    lab.up("c", NodePhase::Ready);
    let again = &lab.region.balancers[&made("kubernetes")];
    assert_eq!(again.pools[&"aksOutboundBackendPool".into()].members, members);
    lab.must(put_pool("c", pool("nodepool1", 1)));
    // A node that is going gets no new flows, and keeps its way out.
    let there = &lab.region.balancers[&made("kubernetes")];
    let n = |pool: &str| there.pools[&pool.into()].members.len();
    assert_eq!((n("kubernetes"), n("aksOutboundBackendPool")), (1, 2));
}

//! Virtual networks, subnets and what is in them: which addresses are given, and what is refused how.

use std::sync::Arc;

use crate::support::{
    Lab, cluster, common, delegation, group, id, internal_balancer, ip, pool, prefix, put_nic,
    put_subnet, put_vnet, subnet,
};
use vnet::{
    addr::Family,
    command::{Command, Outcome, PutFrontend, PutLoadBalancer, PutSubnet},
    fault::Fault,
    model::{
        Allocation, BalancingRule, Distribution, NetworkMode, NextHop, ProvisioningState,
        PublicIpSettings, RoleAssignment, Route, Transport,
    },
};

/// A virtual network 10.0.0.0/16 with subnet `a`, 10.0.0.0/24, and NIC `n` in it at .4.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.0.0.0/16"]);
    lab.subnet("v", "a", "10.0.0.0/24");
    lab.nic("n", "v/a", None).unwrap();
    lab.fabric();
    lab
}

/// Asserts the refusal's code and a part of its text.
#[track_caller]
fn check(fault: &Fault, code: &str, text: &str) {
    assert_eq!(fault.code, code, "{fault}");
    assert!(fault.message.contains(text), "`{}` does not say `{text}`", fault.message);
}

#[test]
fn subnets_that_azure_refuses() {
    let overlaps = "overlaps with that of an existing subnet in virtual network 'v'";
    for (range, code, text) in [
        ("10.0.1.0/30", "NetcfgInvalidSubnet", "/29"),
        ("10.0.0.128/25", "NetcfgSubnetRangesOverlap", overlaps),
        ("10.0.0.0/16", "NetcfgSubnetRangesOverlap", overlaps),
        (
            "10.1.0.0/24",
            "NetcfgSubnetRangeOutsideVnet",
            "outside the IP address range of virtual network 'v'",
        ),
        ("10.0.0.0/15", "NetcfgSubnetRangeOutsideVnet", "Subnet 'b'"),
    ] {
        check(&lab().refused(put_subnet("v", subnet("b", range))), code, text);
    }
    lab().must(put_subnet("v", subnet("b", "10.0.1.0/29")));
    for name in ["-b", "b-", "b/c", "b c", &"b".repeat(81)] {
        let fault = lab().refused(Command::PutSubnet {
            id: id("subnet v/b"),
            subnet: PutSubnet { name: name.into(), ..subnet("b", "10.0.1.0/24") },
        });
        check(&fault, "InvalidResourceName", name);
    }
    let fault = lab().refused(put_subnet("nope", subnet("b", "10.0.1.0/24")));
    check(&fault, "ParentResourceNotFound", "virtualNetworks/nope");
    assert_eq!(fault.status, 404);
}

#[test]
fn address_spaces_that_azure_refuses() {
    for (prefixes, text) in [
        (&["224.0.0.0/8"][..], "224.0.0.0/4"),
        (&["0.0.0.0/1"], "not between"),
        (&["127.0.0.0/16"], "127.0.0.0/8"),
        (&["169.254.1.0/24"], "169.254.0.0/16"),
        (&["168.63.129.0/24"], "168.63.129.16/32"),
        (&["10.0.0.0/16", "10.0.3.0/24"], "overlap"),
        (&[], "no address prefix"),
    ] {
        check(&lab().refused(put_vnet("w", prefixes)), "InvalidParameter", text);
    }
    // Another virtual network may have the same range, and one may have several.
    let mut lab = lab();
    lab.vnet("w", &["10.0.0.0/16", "192.168.0.0/24"]);
    lab.subnet("w", "a", "192.168.0.0/24");
    let fault = lab.refused(put_vnet("w", &["10.0.0.0/16"]));
    check(&fault, "NetcfgSubnetRangeOutsideVnet", "'a'");
}

#[test]
fn groups_must_be_there_and_stay_where_they_are() {
    let mut lab = Lab::default();
    let fault = lab.refused(put_vnet("v", &["10.0.0.0/16"]));
    check(&fault, "ResourceGroupNotFound", "Resource group 'aksntwdemo' could not be found.");
    assert_eq!(fault.status, 404);
    lab.group("aksntwdemo");
    let id = group("AKSntwdemo");
    let put = |location: &str| Command::PutGroup {
        id: id.clone(),
        location: location.to_owned(),
        tags: std::collections::BTreeMap::new(),
    };
    assert_eq!(lab.must(put("East US")).outcome, Outcome::Unchanged);
    check(&lab.refused(put("westus")), "InvalidResourceGroupLocation", "'eastus'");
    lab.must(put_vnet("v", &["10.0.0.0/16"]));
    let mut there = common(crate::support::id("vnet v"));
    there.location = Some("westus".to_owned());
    let fault = lab.refused(Command::PutVnet { common: there, prefixes: vec![], subnets: None });
    check(&fault, "InvalidResourceLocation", "already exists in location 'eastus'");
}

#[test]
fn the_lowest_free_address_is_given() {
    let mut lab = lab();
    lab.nic("n5", "v/a", None).unwrap();
    lab.nic("n6", "v/a", None).unwrap();
    assert_eq!(
        [lab.address("n"), lab.address("n5"), lab.address("n6")],
        ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
    );
    lab.delete("nic n");
    lab.nic("n7", "v/a", None).unwrap();
    assert_eq!(lab.address("n7"), "10.0.0.7", ".4 is still on the wire");
    lab.fabric();
    lab.nic("m", "v/a", None).unwrap();
    assert_eq!(lab.address("m"), "10.0.0.4");
    // A second PUT keeps it, and so does one that makes it static.
    lab.nic("n6", "v/a", None).unwrap();
    lab.nic("n6", "v/a", Some("10.0.0.6")).unwrap();
    assert_eq!(lab.region.nics[&id("nic n6")].configs[0].allocation, Allocation::Static);
    lab.nic("n6", "v/a", Some("10.0.0.200")).unwrap();
    assert_eq!(lab.held("v/a"), 4);
}

#[test]
fn static_addresses_that_azure_refuses() {
    for (address, code, text) in [
        ("10.0.1.4", "PrivateIPAddressNotInSubnet", "a/10.0.0.0/24"),
        ("10.0.0.0", "PrivateIPAddressInReservedRange", "10.0.0.0/24"),
        ("10.0.0.3", "PrivateIPAddressInReservedRange", "10.0.0.3"),
        ("10.0.0.255", "PrivateIPAddressInReservedRange", "10.0.0.255"),
        (
            "10.0.0.4",
            "PrivateIPAddressIsAllocated",
            "networkInterfaces/n/ipConfigurations/ipconfig1",
        ),
    ] {
        check(&lab().nic("m", "v/a", Some(address)).unwrap_err(), code, text);
        let balancer = internal_balancer("v/a", Some(address));
        let put = Command::PutLoadBalancer { common: common(id("lb b")), balancer };
        check(&lab().refused(put), code, text);
    }
    let twice = put_nic("m", &[("a", "v/a", Some("10.0.0.9")), ("b", "v/a", Some("10.0.0.9"))]);
    check(&lab().refused(twice), "PrivateIPAddressIsAllocated", "ipConfigurations/a");
}

#[test]
fn an_address_that_stays_is_not_touched_and_one_that_changes_is_free() {
    let mut lab = lab();
    let vnet = |lab: &Lab| Arc::clone(&lab.region.vnets[&id("vnet v")]);
    let held = |lab: &Lab| -> Vec<String> {
        vnet(lab).subnets[&"a".into()].held.keys().map(ToString::to_string).collect()
    };
    let before = vnet(&lab);
    for address in [None, Some("10.0.0.4"), None] {
        lab.must(put_nic("n", &[("ipconfig1", "v/a", address)]));
        // The same value in the same place: nobody copies, compares or writes it.
        assert!(Arc::ptr_eq(&before, &vnet(&lab)), "{address:?}");
    }
    lab.must(put_nic("n", &[("ipconfig1", "v/a", Some("10.0.0.9")), ("two", "v/a", None)]));
    assert_eq!(held(&lab), ["10.0.0.4", "10.0.0.9"]);
    // Each wants what the other has.
    let swapped = [("ipconfig1", "v/a", Some("10.0.0.4")), ("two", "v/a", Some("10.0.0.9"))];
    lab.must(put_nic("n", &swapped));
    assert_eq!(held(&lab), ["10.0.0.4", "10.0.0.9"]);
    lab.must(put_nic("n", &[("two", "v/a", None)]));
    assert_eq!(held(&lab), ["10.0.0.9"]);
}

#[test]
fn a_full_subnet_is_full() {
    let mut lab = lab();
    lab.subnet("v", "small", "10.0.1.0/29");
    let three =
        put_nic("m", &[("a", "v/small", None), ("b", "v/small", None), ("c", "v/small", None)]);
    lab.must(three);
    check(&lab.nic("o", "v/small", None).unwrap_err(), "SubnetIsFull", "10.0.1.0/29");
    let usage = lab.region.subnet_usage(&id("subnet v/small")).unwrap();
    assert_eq!((usage.held, usage.usable), (3, 3));
}

#[test]
fn subnets_in_use_do_not_change() {
    let fault = lab().refused(put_subnet("v", subnet("a", "10.0.0.0/25")));
    check(
        &fault,
        "InUsePrefixCannotBeDeleted",
        "IpPrefix 10.0.0.0/24 on Subnet a has active allocations",
    );
    let user = "networkInterfaces/n/ipConfigurations/ipconfig1 and cannot be deleted";
    let in_use = "InUseSubnetCannotBeDeleted";
    for command in [
        Command::Delete { id: id("subnet v/a") },
        Command::Delete { id: id("vnet v") },
        Command::PutVnet {
            common: common(id("vnet v")),
            prefixes: vec![prefix("10.0.0.0/16")],
            subnets: Some(vec![subnet("b", "10.0.1.0/24")]),
        },
    ] {
        check(&lab().refused(command), in_use, user);
    }
    let service = "Microsoft.Web/serverFarms";
    let delegated =
        PutSubnet { delegations: vec![delegation("0", service)], ..subnet("a", "10.0.0.0/24") };
    let code = "SubnetDelegationsCannotChangeWhenSubnetUsedByResource";
    check(
        &lab().refused(put_subnet("v", delegated)),
        code,
        "from [] to [Microsoft.Web/serverFarms]",
    );
}

#[test]
fn a_virtual_network_keeps_what_its_put_does_not_say() {
    let mut lab = lab();
    let put = |subnets| Command::PutVnet {
        common: common(id("vnet v")),
        prefixes: vec![prefix("10.0.0.0/16"), prefix("10.1.0.0/16")],
        subnets,
    };
    let before = lab.region.vnets[&id("vnet v")].clone();
    assert_eq!(lab.must(put(None)).outcome, Outcome::Updated);
    assert_eq!(lab.held("v/a"), 1);
    lab.must(put(Some(vec![subnet("a", "10.0.0.0/24"), subnet("b", "10.1.0.0/24")])));
    assert_eq!(lab.held("v/a"), 1);
    let after = &lab.region.vnets[&id("vnet v")];
    assert_ne!(after.meta.etag, before.meta.etag);
    assert_eq!(after.meta.guid, before.meta.guid);
    assert_eq!(after.meta.state, ProvisioningState::Updating);
    lab.must(put(Some(vec![subnet("a", "10.0.0.0/24")])));
    assert_eq!(lab.region.vnets[&id("vnet v")].subnets.len(), 1);
}

#[test]
fn delegated_subnets_take_nothing_else() {
    let mut lab = lab();
    let delegations = vec![delegation("0", "Microsoft.Sql/managedInstances")];
    lab.must(put_subnet("v", PutSubnet { delegations, ..subnet("b", "10.0.1.0/24") }));
    let (_, there) = lab.region.subnet(&id("subnet v/b")).unwrap();
    assert_eq!(there.delegations[0].actions.len(), 3);
    let fault = lab.nic("m", "v/b", None).unwrap_err();
    check(&fault, "ResourceNotPermittedOnDelegatedSubnet", "Microsoft.Sql/managedInstances");
}

#[test]
fn references_must_lead_somewhere() {
    let code = "InvalidResourceReference";
    check(
        &lab().nic("m", "v/nope", None).unwrap_err(),
        code,
        "v/subnets/nope referenced by resource",
    );
    let vm = Command::PutVm { common: common(id("vm m")), nic: id("nic nope") };
    check(&lab().refused(vm), code, "networkInterfaces/nope");
    let route_table = Some(id("table nope"));
    let put = put_subnet("v", PutSubnet { route_table, ..subnet("b", "10.0.1.0/24") });
    check(&lab().refused(put), code, "routeTables/nope");
    let balancer = PutLoadBalancer {
        pools: vec![("p".into(), vec![id("nic nope")].into())],
        ..internal_balancer("v/a", None)
    };
    let put = Command::PutLoadBalancer { common: common(id("lb b")), balancer };
    check(&lab().refused(put), code, "networkInterfaces/nope");
}

#[test]
fn machines_hold_their_nics() {
    let mut lab = lab();
    let put = |name: &str, nic: &str| Command::PutVm {
        common: common(id(&format!("vm {name}"))),
        nic: id(&format!("nic {nic}")),
    };
    lab.must(put("m", "n"));
    lab.must(put("m", "n"));
    let fault = lab.refused(put("o", "n"));
    check(&fault, "NicInUse", "virtualMachines/m");
    check(&lab.refused(Command::Delete { id: id("nic n") }), "NicInUse", "virtualMachines/m");
    // Another subnet, but not another network.
    lab.vnet("far", &["10.77.0.0/16"]);
    lab.subnet("far", "a", "10.77.0.0/24");
    let fault = lab.nic("n", "far/a", None).unwrap_err();
    check(&fault, "PropertyChangeNotAllowed", "virtualNetworks/far");
    lab.nic("n2", "v/a", None).unwrap();
    check(&lab.refused(put("m", "n2")), "PropertyChangeNotAllowed", "networkInterfaces");
    lab.delete("vm m");
    lab.fabric();
    assert_eq!(lab.region.nics[&id("nic n")].machine, None);
    lab.delete("nic n");
    lab.fabric();
    assert!(lab.region.machines.is_empty());
}

#[test]
fn load_balancers_hold_front_ends_and_public_ips() {
    let mut lab = lab();
    let put_pip = Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        prefix: None,
        common: common(id("pip p")),
        sku: "Standard".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    };
    lab.must(put_pip);
    let public = |name: &str| Command::PutLoadBalancer {
        common: common(id(&format!("lb {name}"))),
        balancer: PutLoadBalancer {
            frontends: vec![("fe".into(), PutFrontend::Public { public_ip: id("pip p") })],
            ..internal_balancer("v/a", None)
        },
    };
    lab.must(public("b"));
    lab.must(public("b"));
    check(
        &lab.refused(public("c")),
        "PublicIPAddressInUse",
        "loadBalancers/b/frontendIPConfigurations/fe",
    );
    let delete = Command::Delete { id: id("pip p") };
    check(&lab.refused(delete.clone()), "PublicIPAddressCannotBeDeleted", "loadBalancers/b");
    lab.delete("lb b");
    lab.fabric();
    lab.must(delete);
    lab.fabric();
    assert!(lab.region.public_ips.is_empty());

    let put = |address| Command::PutLoadBalancer {
        common: common(id("lb b")),
        balancer: internal_balancer("v/a", address),
    };
    lab.must(put(None));
    assert_eq!(lab.region.free_addresses(&id("subnet v/a")).next(), Some(ip("10.0.0.6")));
    lab.must(put(Some("10.0.0.99")));
    lab.must(put(None));
    let fault = lab.refused(Command::Delete { id: id("subnet v/a") });
    check(&fault, "InUseSubnetCannotBeDeleted", "loadBalancers/b/frontendIPConfigurations/fe");
    lab.delete("lb b");
    assert_eq!(lab.held("v/a"), 2);
    lab.fabric();
    assert_eq!(lab.held("v/a"), 1);
}

#[test]
fn rules_of_load_balancers_name_their_parts() {
    let rule = |frontend: &str, port: u16| BalancingRule {
        frontend: frontend.into(),
        pool: "p".into(),
        probe: None,
        protocol: Transport::Tcp,
        frontend_port: port,
        backend_port: port,
        floating_ip: true,
        distribution: Distribution::Default,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
        disable_outbound_snat: false,
    };
    let put = |rules: Vec<(&str, BalancingRule)>| Command::PutLoadBalancer {
        common: common(id("lb b")),
        balancer: PutLoadBalancer {
            pools: vec![("p".into(), vec![id("nic n")].into())],
            rules: rules.into_iter().map(|(name, rule)| (name.into(), rule)).collect(),
            ..internal_balancer("v/a", None)
        },
    };
    let mut lab = lab();
    lab.must(put(vec![("a", rule("fe", 80)), ("b", rule("fe", 81))]));
    let reference = "InvalidResourceReference";
    check(&lab.refused(put(vec![("a", rule("x", 80))])), reference, "frontendIPConfigurations/x");
    let probed = BalancingRule { probe: Some("x".into()), ..rule("fe", 80) };
    check(&lab.refused(put(vec![("a", probed)])), reference, "probes/x");
    let same = vec![("a", rule("fe", 80)), ("b", rule("fe", 80))];
    check(&lab.refused(put(same)), "InvalidParameter", "same front end, protocol and port");
    let shifted = BalancingRule { backend_port: 8080, ..rule("fe", 80) };
    check(&lab.refused(put(vec![("a", shifted)])), "InvalidParameter", "floating IP");
    // A member that goes leaves the pool.
    lab.delete("nic n");
    lab.fabric();
    assert!(lab.region.balancers[&id("lb b")].pools[&"p".into()].members.is_empty());
}

#[test]
fn route_tables_in_use_stay() {
    let mut lab = lab();
    let put_table = Command::PutRouteTable {
        common: common(id("table t")),
        routes: None,
        disable_bgp_route_propagation: false,
    };
    lab.must(put_table);
    let route = |name: &str, range: &str| Command::PutRoute {
        id: id(&format!("route t/{name}")),
        route: Route {
            name: name.into(),
            prefix: prefix(range),
            next_hop: NextHop::VirtualAppliance(ip("10.0.0.4")),
        },
    };
    lab.must(route("a", "0.0.0.0/0"));
    lab.must(route("a", "10.244.0.0/24"));
    check(
        &lab.refused(route("b", "10.244.0.0/24")),
        "RouteConflict",
        "Route b conflicts with route a",
    );
    let route_table = Some(id("table t"));
    lab.must(put_subnet("v", PutSubnet { route_table, ..subnet("b", "10.0.1.0/24") }));
    let delete = Command::Delete { id: id("table t") };
    check(
        &lab.refused(delete.clone()),
        "InUseRouteTableCannotBeDeleted",
        "Route table t is in use",
    );
    assert_eq!(lab.region.subnets_of_route_table(&id("table t")), [id("subnet v/b")]);
    // A PUT that does not say the table takes it off.
    lab.must(put_subnet("v", subnet("b", "10.0.1.0/24")));
    let deleted = lab.delete("route t/a");
    assert_eq!(deleted.outcome, Outcome::Deleting);
    lab.must(delete);
    lab.fabric();
    assert!(lab.region.route_tables.is_empty());
}

#[test]
fn deleting_what_is_not_there_is_success() {
    let mut lab = lab();
    for text in [
        "vnet x",
        "subnet v/x",
        "subnet x/x",
        "table x",
        "route x/x",
        "pip x",
        "nic x",
        "vm x",
        "lb x",
        "cluster x",
        "pool x/x",
    ] {
        let before = lab.region.generation;
        assert_eq!(lab.delete(text).outcome, Outcome::Unchanged, "{text}");
        assert_eq!(lab.region.generation, before, "{text}");
    }
}

#[test]
fn reports_make_things_real_up_to_their_generation() {
    let mut lab = lab();
    lab.subnet("v", "b", "10.0.1.0/24");
    let early = lab.region.generation;
    let put = lab.must(put_subnet("v", subnet("c", "10.0.2.0/24")));
    let state = |lab: &Lab, name: &str| {
        lab.region.subnet(&id(&format!("subnet v/{name}"))).unwrap().1.state
    };
    lab.must(Command::FabricReal { generation: early });
    assert_eq!(state(&lab, "b"), ProvisioningState::Succeeded);
    assert_eq!(state(&lab, "c"), ProvisioningState::Updating);
    let operation = put.operation.unwrap();
    assert_eq!(lab.region.operations[&operation].ended, None);
    lab.fabric();
    assert_eq!(state(&lab, "c"), ProvisioningState::Succeeded);
    assert_eq!(lab.region.operations[&operation].ended.as_ref().unwrap().1, None);

    let generation = lab.region.generation;
    let again = lab.must(Command::FabricReal { generation });
    assert_eq!((again.outcome, lab.region.generation), (Outcome::Unchanged, generation));

    let early = lab.region.generation;
    let deleting = lab.delete("subnet v/c");
    let twice = lab.delete("subnet v/c");
    lab.must(Command::FabricReal { generation: early });
    assert_eq!(state(&lab, "c"), ProvisioningState::Deleting);
    assert_eq!(deleting, twice);
    let fault = lab.refused(put_subnet("v", subnet("c", "10.0.2.0/24")));
    check(&fault, "AnotherOperationInProgress", "subnets/c");
    lab.fabric();
    assert!(lab.region.subnet(&id("subnet v/c")).is_none());
    lab.must(Command::PruneOperations { keep: 1 });
    assert_eq!(lab.region.operations.len(), 1);
    let fault = Fault::new(500, "InternalServerError", "no");
    let target = id("subnet v/b");
    assert_eq!(
        lab.must(Command::Failed { target: target.clone(), fault: fault.clone() }).outcome,
        Outcome::Unchanged
    );
    lab.subnet("v", "b", "10.0.1.0/24");
    lab.must(Command::Failed { target, fault });
    assert_eq!(state(&lab, "b"), ProvisioningState::Failed);
}

#[test]
fn availability_of_addresses() {
    let lab = lab();
    let ask = |text: &str| {
        let answer = lab.region.address_availability(&id("vnet v"), ip(text)).unwrap();
        let first = answer.alternatives.first().map(ToString::to_string).unwrap_or_default();
        format!(
            "{} {} {first} {}",
            answer.available,
            answer.is_platform_reserved,
            answer.alternatives.len()
        )
    };
    assert_eq!(ask("10.0.0.0"), "false true 10.0.0.5 5");
    assert_eq!(ask("10.0.0.4"), "false false 10.0.0.5 5");
    assert_eq!(ask("10.0.0.9"), "true false  0");
    assert_eq!(ask("10.9.0.9"), "false false 10.0.0.5 5");
}

#[test]
fn names_compare_without_regard_to_case() {
    let mut lab = lab();
    let put = Command::PutVnet {
        common: common(id("vnet V")),
        prefixes: vec![prefix("10.0.0.0/16")],
        subnets: None,
    };
    assert_eq!(lab.must(put).outcome, Outcome::Updated);
    assert_eq!(lab.region.vnets.len(), 1);
    assert_eq!(lab.region.vnets[&id("vnet v")].meta.id.name(), "v");
}

#[test]
fn roles_go_with_their_scope() {
    let mut lab = lab();
    lab.cluster("c", cluster(NetworkMode::None, vec![pool("nodepool1", 1)])).unwrap();
    lab.subnet("v", "b", "10.0.1.0/24");
    let put = |name: &str, scope: &str| {
        Command::PutRoleAssignment(RoleAssignment {
            name: name.to_owned(),
            scope: id(scope).to_string(),
            role_definition: "4d97b98b-1d4f-4787-a291-c67834d212e7".to_owned(),
            principal: "p".to_owned(),
            principal_type: "ServicePrincipal".to_owned(),
        })
    };
    assert_eq!(lab.must(put("1", "subnet v/b")).outcome, Outcome::Created);
    assert_eq!(lab.must(put("1", "subnet v/b")).outcome, Outcome::Unchanged);
    check(&lab.refused(put("2", "subnet v/b")), "RoleAssignmentExists", "already exists");
    lab.must(put("3", "cluster c"));
    lab.must(put("4", "vnet v"));
    let names = |lab: &Lab| {
        let names = lab.region.role_assignments.values().map(|role| role.name.clone());
        names.collect::<Vec<_>>().concat()
    };
    assert_eq!(names(&lab), "341");
    lab.delete("cluster c");
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    assert_eq!(names(&lab), "41");
    lab.delete("subnet v/b");
    lab.fabric();
    assert_eq!(names(&lab), "4");
    let assignment =
        format!("{}/providers/Microsoft.Authorization/roleAssignments/4", id("vnet V"));
    lab.must(Command::Delete { id: assignment.parse().unwrap() });
    assert_eq!(names(&lab), "");
}

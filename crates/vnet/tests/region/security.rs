//! Network security groups and application security groups: what is refused, who uses them, and what AKS makes.

use vnet::{
    command::{Command, Outcome, PutPool, PutSubnet},
    fault::Fault,
    kind,
    model::{
        Access, Addresses, Direction, NetworkMode, NodePhase, Peers, PortRange, Ports,
        ProvisioningState, SecurityRule,
    },
    name::ArmId,
};

use crate::support::{
    Lab, cluster, common, group, id, members, peer, pool, pool_in, prefix, put_application_group,
    put_cluster, put_nic, put_nic_with, put_rule, put_security_group, put_subnet, rule, subnet,
};

/// Virtual networks `v` and `w` with a subnet `a` each, network security group `s` with rule `r` of priority 100,
/// application security groups `x` and `y`.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.vnet("w", &["10.2.0.0/16"]);
    lab.subnet("v", "a", "10.1.0.0/24");
    lab.subnet("w", "a", "10.2.0.0/24");
    lab.must(put_security_group("s", Some(vec![rule("r", 100)])));
    lab.must(put_application_group("x"));
    lab.must(put_application_group("y"));
    lab.fabric();
    lab
}

#[track_caller]
fn check(fault: &Fault, code: &str, text: &str) {
    assert_eq!(fault.code, code, "{fault}");
    assert!(fault.message.contains(text), "`{}` does not say `{text}`", fault.message);
}

fn tag(text: &str) -> Peers {
    peer(Addresses::Tag(text.to_owned()))
}

fn list(any_of: Vec<Addresses>) -> Peers {
    Peers::Addresses { any_of, as_list: true }
}

fn prefixes(texts: &[&str]) -> Peers {
    list(texts.iter().map(|text| Addresses::Prefix(prefix(text))).collect())
}

#[test]
fn no_rule_names_an_address_twice() {
    let code = "OverlappingSubnetsNotPermittedInSecurityRule";
    for (texts, overlap) in [
        (&["9.0.0.0/8", "1.1.0.22/32", "2.0.0.0/8", "1.1.0.0/24"], "[1.1.0.0/24, 1.1.0.22/32]"),
        (&["fd00:1::/48", "fd01::/16", "fd00::/16", "fe00::/16"], "[fd00::/16, fd00:1::/48]"),
        (&["10.1.0.4/32", "0.0.0.0/1", "10.1.0.4/32", "200.0.0.0/8"], "[0.0.0.0/1, 10.1.0.4/32]"),
        (&["10.1.0.4/32", "10.1.0.3/32", "10.1.0.4/32", "9.0.0.0/8"], "[10.1.0.4/32, 10.1.0.4/32]"),
    ] {
        let at =
            |side: &str| format!("Security rule parameter {side}AddressPrefix for rule with Id ");
        let text = format!(
            "/securityRules/new contains overlapping subnets {overlap}, which is not permitted."
        );
        let mut new = rule("new", 200);
        new.source = prefixes(texts);
        let fault = lab().refused(put_rule("s", new.clone()));
        check(&fault, code, &at("Source"));
        check(&fault, code, &text);
        (new.source, new.destination) = (new.destination, new.source);
        let fault = lab().refused(put_security_group("s", Some(vec![new])));
        check(&fault, code, &at("Destination"));
        check(&fault, code, &text);
    }
    let mut beside = rule("new", 200);
    beside.source = prefixes(&["10.0.1.0/24", "10.0.0.0/24", "10.0.2.0/23"]);
    beside.destination = prefixes(&["10.0.1.0/24", "10.0.0.0/24"]);
    lab().must(put_rule("s", beside));
}

#[test]
fn rules_that_azure_refuses() {
    /// What is wrong with a rule, and the refusal's code and a part of its text.
    type Case = (fn(&mut SecurityRule), &'static str, &'static str);
    let cases: &[Case] = &[
        (|rule| rule.priority = 99, "SecurityRuleInvalidPriority", "Value provided: 99"),
        (|rule| rule.priority = 4097, "SecurityRuleInvalidPriority", "range 100-4096"),
        (
            |rule| rule.priority = 100,
            "SecurityRuleConflict",
            "Security rule new conflicts with rule r. Rules cannot have the same Priority and Direction.",
        ),
        (|rule| rule.name = "-".into(), "InvalidResourceName", "-"),
        (
            |rule| rule.source = list(vec![Addresses::Tag("VirtualNetwork".to_owned())]),
            "SecurityRuleParameterContainsUnsupportedValue",
            "Unsupported value used: VirtualNetwork",
        ),
        (
            |rule| rule.destination = list(vec![Addresses::Any]),
            "SecurityRuleParameterContainsUnsupportedValue",
            "parameter DestinationAddressPrefix",
        ),
        (|rule| rule.destination = list(Vec::new()), "InvalidParameter", "one prefix or a list"),
        (
            |rule| rule.source = tag("AzureCloud.atlantis"),
            "SecurityRuleInvalidAddressPrefix",
            "securityRules/new has invalid Address prefix. Value provided: AzureCloud.atlantis",
        ),
        (|rule| rule.source = members(&[]), "InvalidParameter", "empty"),
        (
            |rule| rule.source = members(&["x", "nope"]),
            "InvalidResourceReference",
            "applicationSecurityGroups/nope",
        ),
        (
            |rule| rule.destination_ports.any_of = vec![PortRange { first: 9, last: 8 }],
            "SecurityRuleInvalidPortRange",
            "Value provided: 9-8",
        ),
        (
            |rule| rule.source_ports = Ports { any_of: Vec::new(), as_list: true },
            "InvalidParameter",
            "port range",
        ),
        (
            |rule| {
                rule.direction = Direction::Outbound;
                rule.destination = tag("AzurePlatformDNS");
            },
            "SecurityRuleInvalidAccessType",
            "Deny only",
        ),
        (
            |rule| {
                rule.access = Access::Deny;
                rule.source = tag("AzurePlatformIMDS");
            },
            "SecurityRuleInvalidAccessType",
            "outbound",
        ),
        (
            |rule| {
                let one = |n: u32| {
                    let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
                    Addresses::Prefix(vnet::addr::Prefix::host(address.into()))
                };
                rule.source = list((0..4_001).map(one).collect());
            },
            "InvalidParameter",
            "4002 source addresses",
        ),
    ];
    for (change, code, text) in cases {
        let mut new = rule("new", 200);
        change(&mut new);
        check(&lab().refused(put_rule("s", new.clone())), code, text);
        let both = Some(vec![rule("r", 100), new]);
        check(&lab().refused(put_security_group("s", both)), code, text);
    }
    let mut lab = lab();
    check(&lab.refused(put_rule("nope", rule("n", 100))), "ParentResourceNotFound", "nope");
    let twice = Some(vec![rule("a", 100), rule("A", 101)]);
    check(&lab.refused(put_security_group("t", twice)), "InvalidParameter", "more than once");
}

#[test]
fn a_group_has_a_thousand_rules() {
    let mut lab = lab();
    let rules = |n: u16| Some((0..n).map(|i| rule(&format!("r{i}"), 100 + i)).collect());
    lab.must(put_security_group("s", rules(1_000)));
    let fault = lab.refused(put_rule("s", rule("more", 4_000)));
    check(&fault, "InvalidParameter", "1001 security rules, more than 1000");
    // The two directions have priorities of their own, and share the thousand.
    let mut lab = Lab::new();
    let outbound =
        |priority| SecurityRule { direction: Direction::Outbound, ..rule("out", priority) };
    lab.must(put_security_group("s", Some(vec![rule("in", 100), outbound(100)])));
}

#[test]
fn rules_come_change_and_go() {
    let mut lab = lab();
    assert_eq!(lab.must(put_rule("s", rule("q", 200))).outcome, Outcome::Created);
    let state = |lab: &Lab| lab.region.security_groups[&id("nsg s")].meta.state;
    assert_eq!(state(&lab), ProvisioningState::Updating);
    lab.fabric();
    assert_eq!(state(&lab), ProvisioningState::Succeeded);
    // A rule may take the priority that it has, and two may swap theirs in one request.
    assert_eq!(lab.must(put_rule("s", rule("q", 200))).outcome, Outcome::Updated);
    lab.must(put_security_group("s", Some(vec![rule("r", 200), rule("q", 100)])));
    // No list keeps the rules; an empty one removes them.
    lab.must(put_security_group("s", None));
    assert_eq!(lab.region.security_groups[&id("nsg s")].rules.len(), 2);
    assert_eq!(lab.delete("rule s/q").outcome, Outcome::Deleting);
    assert_eq!(lab.delete("rule s/q").outcome, Outcome::Unchanged);
    lab.must(put_security_group("s", Some(Vec::new())));
    assert!(lab.region.security_groups[&id("nsg s")].rules.is_empty());
    assert_eq!(lab.delete("nsg s").outcome, Outcome::Deleting);
    lab.fabric();
    assert!(lab.region.security_groups.is_empty());
}

#[test]
fn groups_are_attached_to_subnets_and_nics() {
    let mut lab = lab();
    let with = |group: &str| {
        let security_group = Some(id(&format!("nsg {group}")));
        put_subnet("v", PutSubnet { security_group, ..subnet("a", "10.1.0.0/24") })
    };
    check(&lab.refused(with("nope")), "InvalidResourceReference", "networkSecurityGroups/nope");
    let nic = put_nic_with("n", "v/a", Some("nope"), &[]);
    check(&lab.refused(nic), "InvalidResourceReference", "networkSecurityGroups/nope");
    let west = Command::PutSecurityGroup {
        common: vnet::command::Common {
            location: Some("westus".to_owned()),
            ..common(id("nsg west"))
        },
        rules: None,
    };
    lab.must(west);
    check(&lab.refused(with("west")), "InvalidResourceReference", "same region");

    lab.must(with("s"));
    lab.must(put_nic_with("n", "v/a", Some("s"), &[]));
    assert_eq!(lab.region.subnets_of_security_group(&id("nsg s")), [id("subnet v/a")]);
    assert_eq!(lab.region.nics_of_security_group(&id("nsg s")), [id("nic n")]);
    let fault = lab.refused(Command::Delete { id: id("nsg s") });
    check(&fault, "InUseNetworkSecurityGroupCannotBeDeleted", "virtualNetworks/v/subnets/a, ");
    check(&fault, "InUseNetworkSecurityGroupCannotBeDeleted", "networkInterfaces/n");

    // A PUT without the group takes it off.
    lab.must(put_subnet("v", subnet("a", "10.1.0.0/24")));
    lab.must(put_nic("n", &[("ipconfig1", "v/a", None)]));
    lab.delete("nsg s");
    check(&lab.refused(with("s")), "AnotherOperationInProgress", "networkSecurityGroups/s");
}

#[test]
fn members_of_an_application_group_are_in_one_virtual_network() {
    let mut lab = lab();
    let fault = lab.refused(put_nic_with("n", "v/a", None, &["nope"]));
    check(&fault, "InvalidResourceReference", "applicationSecurityGroups/nope");
    lab.must(put_nic_with("n", "v/a", None, &["x"]));
    lab.must(put_nic_with("m", "v/a", None, &["x", "y"]));
    check(
        &lab.refused(put_nic_with("o", "w/a", None, &["x"])),
        "InvalidParameter",
        "must be in one virtual network",
    );
    // All IP configurations of a NIC are in the same groups.
    let mut command = put_nic("n", &[("one", "v/a", None), ("two", "v/a", None)]);
    if let Command::PutNic { configs, .. } = &mut command {
        configs[0].application_groups = vec![id("asg x")];
    }
    let code = "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups";
    check(&lab.refused(command), code, "ipConfigurations/two references ASG(s) ");

    // A group without members may be named beside any; its first member decides.
    lab.must(put_application_group("z"));
    let from_to = |from: &str, to: &str| SecurityRule {
        source: members(&[from]),
        destination: members(&[to]),
        ..rule("q", 200)
    };
    lab.must(put_rule("s", from_to("x", "z")));
    let code = "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet";
    check(&lab.refused(put_nic_with("o", "w/a", None, &["z"])), code, "securityRules/q");
    lab.delete("rule s/q");
    lab.must(put_nic_with("o", "w/a", None, &["z"]));
    check(&lab.refused(put_rule("s", from_to("x", "z"))), code, "virtualNetworks/w");
    lab.must(put_rule("s", from_to("x", "y")));

    // What is used stays.
    let code = "InUseApplicationSecurityGroupCannotBeDeleted";
    let fault = lab.refused(Command::Delete { id: id("asg x") });
    check(&fault, code, "networkInterfaces/m/ipConfigurations/ipconfig1, ");
    lab.must(put_nic_with("m", "v/a", None, &[]));
    let fault = lab.refused(Command::Delete { id: id("asg y") });
    check(&fault, code, "SecurityRule(s) ");
    lab.delete("rule s/q");
    assert_eq!(lab.delete("asg y").outcome, Outcome::Deleting);
    check(
        &lab.refused(put_rule("s", from_to("x", "y"))),
        "AnotherOperationInProgress",
        "applicationSecurityGroups/y",
    );
    lab.fabric();
    assert!(!lab.region.application_groups.contains_key(&id("asg y")));
}

#[test]
fn a_resource_group_stays_while_another_one_uses_its_groups() {
    let elsewhere = |kind: &str, name: &str| group("other").sibling(kind, name);
    let begin = || {
        let mut lab = lab();
        lab.group("other");
        let common = common(elsewhere(kind::SECURITY_GROUP, "t"));
        lab.must(Command::PutSecurityGroup { common, rules: None });
        let common = crate::support::common(elsewhere(kind::APPLICATION_GROUP, "z"));
        lab.must(Command::PutApplicationGroup { common });
        lab
    };
    let nsg = Some(elsewhere(kind::SECURITY_GROUP, "t"));
    let asg = elsewhere(kind::APPLICATION_GROUP, "z");

    let mut with_subnet = begin();
    let security_group = nsg.clone();
    with_subnet.must(put_subnet("v", PutSubnet { security_group, ..subnet("a", "10.1.0.0/24") }));
    let mut with_nic = begin();
    let mut command = put_nic("n", &[("ipconfig1", "v/a", None)]);
    if let Command::PutNic { security_group, .. } = &mut command {
        *security_group = nsg;
    }
    with_nic.must(command);
    let mut with_member = begin();
    let mut command = put_nic("n", &[("ipconfig1", "v/a", None)]);
    if let Command::PutNic { configs, .. } = &mut command {
        configs[0].application_groups = vec![asg.clone()];
    }
    with_member.must(command);
    let mut with_rule = begin();
    let source = Peers::Groups(vec![asg]);
    with_rule.must(put_rule("s", SecurityRule { source, ..rule("q", 200) }));

    for (mut lab, user) in [
        (with_subnet, "subnets/a"),
        (with_nic, "networkInterfaces/n"),
        (with_member, "networkInterfaces/n"),
        (with_rule, "networkSecurityGroups/s"),
    ] {
        let fault = lab.refused(Command::DeleteGroup { id: group("other") });
        check(&fault, "ResourceGroupDeletionBlocked", user);
    }
    let mut unused = begin();
    unused.must(Command::DeleteGroup { id: group("other") });
    unused.fabric();
    assert!(!unused.region.groups.contains_key(&group("other")));
}

/// The security group of a cluster.
fn own_group(lab: &Lab, name: &str) -> ArmId {
    lab.region.clusters[&id(&format!("cluster {name}"))].security_group.clone().unwrap()
}

#[test]
fn a_cluster_in_a_given_subnet_has_its_group_on_its_nics() {
    let mut lab = lab();
    let put = cluster(NetworkMode::Azure, vec![pool_in("one", 2, "v/a")]);
    lab.must(put_cluster("c", put));
    lab.up("c", NodePhase::Ready);
    let own = own_group(&lab, "c");
    let hash = lab.region.clusters[&id("cluster c")].hash.clone();
    assert_eq!(own.name(), format!("aks-agentpool-{hash}-nsg"));
    assert_eq!(own.resource_group(), "MC_aksntwdemo_c_eastus");
    assert_eq!(lab.region.nics_of_security_group(&own).len(), 2);
    assert!(lab.region.subnets_of_security_group(&own).is_empty());
    let fault = lab.refused(Command::Delete { id: own.clone() });
    let nic = "/networkInterfaces/|providers|Microsoft.Compute|virtualMachineScaleSets|aks-one-";
    check(&fault, "InUseNetworkSecurityGroupCannotBeDeleted", nic);

    // New nodes get the group, too.
    lab.must(crate::support::put_pool("c", PutPool { mode: None, ..pool("two", 1) }));
    lab.up("c", NodePhase::Ready);
    assert_eq!(lab.region.nics_of_security_group(&own).len(), 3);

    lab.delete("cluster c");
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    assert!(!lab.region.security_groups.contains_key(&own));
}

#[test]
fn a_cluster_with_a_managed_virtual_network_has_its_group_on_the_subnet() {
    let mut lab = lab();
    lab.must(put_cluster("c", cluster(NetworkMode::Overlay, vec![pool("one", 2)])));
    lab.up("c", NodePhase::Ready);
    let own = own_group(&lab, "c");
    assert!(lab.region.nics_of_security_group(&own).is_empty());
    let subnets = lab.region.subnets_of_security_group(&own);
    assert_eq!(subnets.iter().map(ArmId::name).collect::<Vec<_>>(), ["aks-subnet"]);
    // Somebody else's subnet with the cluster's group keeps the cluster from going.
    let with = PutSubnet { security_group: Some(own.clone()), ..subnet("a", "10.1.0.0/24") };
    lab.must(put_subnet("v", with));
    let fault = lab.refused(Command::Delete { id: id("cluster c") });
    check(&fault, "ResourceGroupDeletionBlocked", "virtualNetworks/v/subnets/a");
    lab.must(put_subnet("v", subnet("a", "10.1.0.0/24")));
    lab.delete("cluster c");
    lab.must(Command::ClusterGone { cluster: id("cluster c") });
    assert!(!lab.region.security_groups.contains_key(&own));
}

#[test]
fn azures_own_tags_are_known_and_no_others() {
    let mut lab = lab();
    let put = |name: &str| {
        let deny = SecurityRule { access: Access::Deny, destination: tag(name), ..rule("t", 300) };
        put_rule("s", SecurityRule { direction: Direction::Outbound, ..deny })
    };
    for name in [
        "GatewayManager",
        "ApiManagement",
        "ServiceBus.westeurope",
        "EventHub",
        "AppService.EastUS",
        "AzureFrontDoor.Backend",
        "azurefrontdoor.frontend",
        "AzureTrafficManager",
        "AzureArcInfrastructure",
        "Storage.WESTUS2",
        "AzureCloud.eastus",
        "AzureCloud.centralfrance",
        "MicrosoftContainerRegistry.NorthEurope",
        "WindowsVirtualDesktop",
    ] {
        lab.must(put(name));
    }
    // Not by region, not in Azure's words, or nobody's.
    for name in [
        "GatewayManager.EastUS",
        "AzureFrontDoor",
        "AzureCloud.francecentral",
        "Storage.Atlantis",
        "Storage.",
        "AzureKubernetesService",
        "VirtualNetwork.EastUS",
    ] {
        let text = format!("Value provided: {name}");
        check(&lab.refused(put(name)), "SecurityRuleInvalidAddressPrefix", &text);
    }
    let tags = lab.region.service_tags();
    let [all, part] = ["Storage", "Storage.EastUS"].map(|it| tags.addresses(it).expect("a tag"));
    assert!(!part.is_empty() && part.without(&all).is_empty());
}

#[test]
fn the_list_of_service_tags_can_be_replaced() {
    use vnet::policy::tags::ServiceTags;
    let mut lab = lab();
    let named =
        |name: &str, tag_name: &str| SecurityRule { source: tag(tag_name), ..rule(name, 300) };
    let list = |pairs: &[(&str, &str)]| ServiceTags {
        change_number: 340,
        tags: pairs.iter().map(|(tag, range)| ((*tag).to_owned(), vec![prefix(range)])).collect(),
    };
    check(
        &lab.refused(put_rule("s", named("q", "Contoso"))),
        "SecurityRuleInvalidAddressPrefix",
        "Contoso",
    );
    // Nobody can say what the platform's own tags and the virtual network are.
    let tags = list(&[
        ("Contoso", "203.0.113.0/24"),
        ("azureloadbalancer", "0.0.0.0/0"),
        ("VIRTUALNETWORK", "0.0.0.0/0"),
    ]);
    let set = Command::SetServiceTags { tags: Some(tags) };
    assert_eq!(lab.must(set.clone()).outcome, Outcome::Updated);
    assert_eq!(lab.must(set).outcome, Outcome::Unchanged);
    let known = lab.region.service_tags();
    assert_eq!(known.change_number, 340);
    let prefixes = known.addresses("AzureLoadBalancer").unwrap().prefixes();
    assert_eq!(prefixes, [prefix("168.63.129.16/32")]);
    assert!(known.knows("azureplatformdns") && known.addresses("VirtualNetwork").is_none());
    lab.must(put_rule("s", named("q", "contoso")));
    check(
        &lab.refused(put_rule("s", named("p", "AzureCloud"))),
        "SecurityRuleInvalidAddressPrefix",
        "AzureCloud",
    );
    // A rule stays when its tag goes, and other rules can still be written.
    assert_eq!(lab.must(Command::SetServiceTags { tags: None }).outcome, Outcome::Updated);
    assert_eq!(lab.region.service_tags(), ServiceTags::built_in());
    lab.must(put_rule("s", rule("other", 400)));
    check(
        &lab.refused(put_rule("s", named("q2", "Contoso"))),
        "SecurityRuleInvalidAddressPrefix",
        "Contoso",
    );
}

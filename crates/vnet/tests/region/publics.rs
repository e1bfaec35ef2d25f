//! Public IPs, prefixes and NAT gateways: who has which address, and what is refused.

use vnet::{
    addr::Family,
    command::{Command, PutFrontend, PutIpConfiguration, PutNatGateway, PutSubnet},
    model::{Allocation, BalancingRule, Distribution, PublicIpSettings, Transport},
    name::ArmId,
};

use crate::support::{
    Lab, common, group, id, internal_balancer, put_nat, put_nic, put_prefix, put_public_ip,
    put_subnet, subnet,
};

/// Virtual network `v` with subnets `s` and `t`, `w` with `s`; public IPs `p` and `q`.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.vnet("w", &["10.2.0.0/16"]);
    lab.subnet("v", "s", "10.1.0.0/24");
    lab.subnet("v", "t", "10.1.1.0/24");
    lab.subnet("w", "s", "10.2.0.0/24");
    lab.must(put_public_ip("p", None));
    lab.must(put_public_ip("q", None));
    lab
}

impl Lab {
    /// Who has a public IP, as the end of an id.
    fn user(&self, public: &str) -> Option<String> {
        let public_ip = self.region.public_ips.get(&id(public)).map(|it| &it.used_by);
        let prefix = self.region.public_ip_prefixes.get(&id(public)).map(|it| &it.used_by);
        let user = public_ip.or(prefix).unwrap().clone()?;
        user.split_once("/Microsoft.Network/").map(|(_, rest)| rest.to_owned())
    }

    fn public_address(&self, name: &str) -> String {
        self.region.public_ips[&id(&format!("pip {name}"))].address.to_string()
    }
}

fn with_gateway(path: &str, range: &str, gateway: Option<&str>) -> Command {
    let (vnet, name) = path.split_once('/').unwrap();
    let nat_gateway = gateway.map(|name| id(&format!("nat {name}")));
    put_subnet(vnet, PutSubnet { nat_gateway, ..subnet(name, range) })
}

/// NIC `n` in subnet `v/s` with a public IP on its configuration `one`.
fn nic_with(public_ip: Option<&str>) -> Command {
    let config = PutIpConfiguration {
        family: Family::V4,
        public_ip: public_ip.map(|name| id(&format!("pip {name}"))),
        application_groups: Vec::new(),
        name: "one".to_owned(),
        subnet: id("subnet v/s"),
        address: None,
    };
    Command::PutNic {
        common: common(id("nic n")),
        ip_forwarding: false,
        security_group: None,
        configs: vec![config],
    }
}

#[test]
fn prefixes_are_aligned_and_apart_from_everything() {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    assert_eq!(lab.region.vnets[&id("vnet v")].default_outbound.to_string(), "198.18.0.4");
    let mut made = Vec::new();
    for (name, length) in [("a", 31), ("b", 30), ("c", 28), ("d", 29)] {
        lab.must(put_prefix(name, length));
        let prefix = lab.region.public_ip_prefixes[&id(&format!("prefix {name}"))].prefix;
        made.push(prefix.to_string());
    }
    // Not the internet's first /31, and not what contains 198.18.0.4.
    assert_eq!(made, ["198.18.0.2/31", "198.18.0.8/30", "198.18.0.16/28", "198.18.0.32/29"]);
    lab.must(put_public_ip("p", None));
    lab.must(put_public_ip("q", None));
    lab.must(put_public_ip("r", None));
    lab.must(put_public_ip("s", None));
    let singles = ["p", "q", "r", "s"].map(|name| lab.public_address(name));
    assert_eq!(singles, ["198.18.0.5", "198.18.0.6", "198.18.0.7", "198.18.0.12"]);
}

#[test]
fn public_ips_of_a_prefix_are_its_addresses() {
    let mut lab = Lab::new();
    lab.must(put_prefix("x", 31));
    lab.must(put_public_ip("a", Some("x")));
    lab.must(put_public_ip("b", Some("x")));
    let range = lab.region.public_ip_prefixes[&id("prefix x")].prefix;
    let both = ["a", "b"].map(|name| lab.public_address(name));
    assert_eq!(both, [range.network().to_string(), range.last().to_string()]);
    assert_eq!(lab.refused(put_public_ip("c", Some("x"))).code, "PublicIpPrefixOutOfIpAddresses");
    assert_eq!(lab.refused(put_public_ip("c", Some("nope"))).code, "InvalidResourceReference");
    let in_use = lab.refused(Command::Delete { id: id("prefix x") });
    assert_eq!(in_use.code, "InUsePublicIpPrefixCannotBeDeleted");
    assert!(in_use.message.contains("publicIPAddresses/a"), "{in_use}");
    assert_eq!(lab.refused(put_nat("g", &[], &["x"])).code, "PublicIPPrefixInUse");
    // A write that leaves it out keeps it; another one is refused.
    lab.must(put_public_ip("a", None));
    assert_eq!(lab.region.public_ips_of_prefix(&id("prefix x")).len(), 2);
    lab.must(put_prefix("y", 31));
    assert_eq!(lab.refused(put_public_ip("a", Some("y"))).code, "PropertyChangeNotAllowed");
    assert_eq!(lab.refused(put_prefix("x", 30)).code, "PropertyChangeNotAllowed");
    for length in [0, 27, 32] {
        assert_eq!(lab.refused(put_prefix("z", length)).code, "InvalidParameter");
    }
    lab.delete("pip a");
    lab.delete("pip b");
    lab.fabric();
    lab.delete("prefix x");
    lab.fabric();
    assert_eq!(lab.region.public_ip_prefixes.len(), 1);
}

#[test]
fn a_basic_public_ip_is_of_no_prefix() {
    let mut lab = Lab::new();
    lab.must(put_prefix("x", 31));
    let command = Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        common: common(id("pip b")),
        prefix: Some(id("prefix x")),
        sku: "Basic".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    };
    assert_eq!(lab.refused(command).code, "InvalidParameter");
}

#[test]
fn a_nat_gateway_has_its_addresses_to_itself() {
    let mut lab = lab();
    lab.must(put_prefix("x", 31));
    lab.must(put_nat("g", &["p"], &["x"]));
    assert_eq!(lab.user("pip p").as_deref(), Some("natGateways/g"));
    assert_eq!(lab.user("prefix x").as_deref(), Some("natGateways/g"));
    assert_eq!(lab.refused(put_nat("h", &["p"], &[])).code, "PublicIPAddressInUse");
    assert_eq!(lab.refused(put_nat("h", &[], &["x"])).code, "PublicIPPrefixInUse");
    assert_eq!(lab.refused(put_public_ip("r", Some("x"))).code, "PublicIPPrefixInUse");
    let fault = lab.refused(Command::Delete { id: id("pip p") });
    assert_eq!(fault.code, "PublicIPAddressCannotBeDeleted");
    assert_eq!(lab.refused(nic_with(Some("p"))).code, "PublicIPAddressInUse");
    // The same list again, another list, and none.
    lab.must(put_nat("g", &["p"], &["x"]));
    lab.must(put_nat("g", &["q"], &[]));
    assert_eq!((lab.user("pip p"), lab.user("prefix x")), (None, None));
    lab.delete("nat g");
    assert_eq!(lab.user("pip q").as_deref(), Some("natGateways/g"), "until it is gone");
    lab.fabric();
    assert_eq!(lab.user("pip q"), None);
}

#[test]
fn what_no_nat_gateway_can_have_is_refused() {
    let mut lab = lab();
    lab.must(put_prefix("x", 28));
    lab.must(Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        common: common(id("pip basic")),
        prefix: None,
        sku: "Basic".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    });
    let mut elsewhere = common(id("pip west"));
    elsewhere.location = Some("westus".to_owned());
    lab.must(Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        common: elsewhere,
        prefix: None,
        sku: "Standard".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    });
    let with = |change: fn(&mut PutNatGateway)| {
        let Command::PutNatGateway { common, mut gateway } = put_nat("g", &[], &[]) else {
            unreachable!()
        };
        change(&mut gateway);
        Command::PutNatGateway { common, gateway }
    };
    for (command, target) in [
        (put_nat("g", &["p"], &["x"]), "properties.publicIpAddresses"),
        (put_nat("g", &["basic"], &[]), "properties.publicIpAddresses"),
        (with(|it| it.sku = "Basic".to_owned()), "sku.name"),
        (with(|it| it.idle_timeout_minutes = Some(3)), "properties.idleTimeoutInMinutes"),
        (with(|it| it.idle_timeout_minutes = Some(121)), "properties.idleTimeoutInMinutes"),
    ] {
        let fault = lab.refused(command);
        assert_eq!(fault.code, "InvalidParameter", "{fault}");
        assert_eq!(fault.target.as_deref(), Some(target), "{fault}");
    }
    for names in [&["west"][..], &["nope"]] {
        assert_eq!(lab.refused(put_nat("g", names, &[])).code, "InvalidResourceReference");
    }
    assert_eq!(lab.refused(put_nat("g", &["p", "p"], &[])).code, "PublicIPAddressInUse");
    lab.must(put_nat("g", &[], &["x"]));
    lab.must(with(|it| it.idle_timeout_minutes = Some(120)));
    let changed = with(|it| it.sku = "StandardV2".to_owned());
    assert_eq!(lab.refused(changed).code, "PropertyChangeNotAllowed");
}

#[test]
fn a_nat_gateway_of_a_subnet_stays() {
    let mut lab = lab();
    lab.must(put_nat("g", &["p"], &[]));
    let with = |path: &str, gateway| {
        let range = ["10.1.0.0/24", "10.1.1.0/24", "10.2.0.0/24"]
            [["v/s", "v/t", "w/s"].iter().position(|it| *it == path).unwrap()];
        with_gateway(path, range, gateway)
    };
    for path in ["v/s", "v/t"] {
        let command = with(path, Some("g"));
        lab.must(command);
    }
    assert_eq!(lab.region.subnets_of_nat_gateway(&id("nat g")).len(), 2);
    let command = with("w/s", Some("g"));
    let fault = lab.refused(command);
    assert_eq!(fault.code, "NatGatewayCannotBeUsedBySubnetsBelongingToDifferentVirtualNetworks");
    let command = with("w/s", Some("nope"));
    assert_eq!(lab.refused(command).code, "InvalidResourceReference");
    let fault = lab.refused(Command::Delete { id: id("nat g") });
    assert_eq!(fault.code, "InUseNatGatewayCannotBeDeleted");
    assert!(fault.message.contains("/subnets/t"), "{fault}");
    for path in ["v/s", "v/t"] {
        let command = with(path, None);
        lab.must(command);
    }
    lab.delete("nat g");
    let command = with("v/s", Some("g"));
    assert_eq!(lab.refused(command).code, "AnotherOperationInProgress");
    lab.fabric();
    assert!(lab.region.nat_gateways.is_empty());
}

#[test]
fn an_ip_configuration_has_a_public_ip_of_its_own() {
    let mut lab = lab();
    lab.must(nic_with(Some("p")));
    assert_eq!(lab.user("pip p").as_deref(), Some("networkInterfaces/n/ipConfigurations/one"));
    assert_eq!(
        lab.refused(Command::Delete { id: id("pip p") }).code,
        "PublicIPAddressCannotBeDeleted"
    );
    let mut balancer = internal_balancer("v/s", None);
    balancer.frontends = vec![("f".into(), PutFrontend::Public { public_ip: id("pip p") })];
    let balancer = |balancer| Command::PutLoadBalancer { common: common(id("lb b")), balancer };
    let mut other = internal_balancer("v/s", None);
    other.frontends = vec![("f".into(), PutFrontend::Public { public_ip: id("pip p") })];
    assert_eq!(lab.refused(balancer(other)).code, "PublicIPAddressInUse");
    // The same, another one, none, and with the NIC.
    lab.must(nic_with(Some("p")));
    lab.must(nic_with(Some("q")));
    assert_eq!((lab.user("pip p"), lab.user("pip q").is_some()), (None, true));
    lab.must(nic_with(None));
    assert_eq!(lab.user("pip q"), None);
    lab.must(nic_with(Some("q")));
    lab.delete("nic n");
    lab.fabric();
    assert_eq!(lab.user("pip q"), None);
    assert_eq!(lab.refused(nic_with(Some("nope"))).code, "InvalidResourceReference");
}

/// A whole prefix is for outbound rules, and has one user.
#[test]
fn a_front_end_may_be_a_whole_prefix() {
    let mut lab = lab();
    lab.must(put_prefix("x", 31));
    let with = |takes_flows: bool| {
        let mut balancer = internal_balancer("v/s", None);
        let front = PutFrontend::Prefix { public_ip_prefix: id("prefix x") };
        balancer.frontends = vec![("fe".into(), front)];
        balancer.pools = vec![("p".into(), Vec::new().into())];
        let rule = BalancingRule {
            frontend: "fe".into(),
            pool: "p".into(),
            probe: None,
            protocol: Transport::Tcp,
            frontend_port: 80,
            backend_port: 80,
            floating_ip: false,
            distribution: Distribution::Default,
            idle_timeout_minutes: 4,
            enable_tcp_reset: false,
            disable_outbound_snat: true,
        };
        balancer.rules.extend(takes_flows.then(|| ("r".into(), rule)));
        Command::PutLoadBalancer { common: common(id("lb b")), balancer }
    };
    assert_eq!(lab.refused(with(true)).code, "InvalidParameter");
    lab.must(with(false));
    assert!(lab.user("prefix x").unwrap().starts_with("loadBalancers/b/frontendIPConfigurations/"));
    assert_eq!(lab.refused(put_public_ip("y", Some("x"))).code, "PublicIPPrefixInUse");
    assert_eq!(
        lab.refused(Command::Delete { id: id("prefix x") }).code,
        "InUsePublicIpPrefixCannotBeDeleted"
    );
    lab.must(with(false));
    lab.delete("lb b");
    lab.fabric();
    assert_eq!(lab.user("prefix x"), None);
}

#[test]
fn a_load_balancer_has_public_ips_of_its_sku() {
    let mut lab = lab();
    let mut balancer = internal_balancer("v/s", None);
    balancer.frontends = vec![("f".into(), PutFrontend::Public { public_ip: id("pip p") })];
    balancer.sku = "Basic".to_owned();
    let command = Command::PutLoadBalancer { common: common(id("lb b")), balancer };
    assert_eq!(lab.refused(command).code, "PublicIPAndLBSkuDoNotMatch");
}

#[test]
fn a_group_with_addresses_that_others_use_stays() {
    let mut lab = Lab::new();
    lab.group("shared");
    let at = |kind: &str, name: &str| group("shared").sibling(kind, name);
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "s", "10.1.0.0/24");
    let public_ip = at(vnet::kind::PUBLIC_IP, "p");
    let gateway = at(vnet::kind::NAT_GATEWAY, "g");
    let prefix = at(vnet::kind::PUBLIC_IP_PREFIX, "x");
    lab.must(Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        common: common(public_ip.clone()),
        prefix: None,
        sku: "Standard".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    });
    lab.must(Command::PutPublicIpPrefix {
        family: Family::V4,
        common: common(prefix.clone()),
        sku: "Standard".to_owned(),
        length: 31,
    });
    let put_gateway = |public_ips: Vec<ArmId>, id: &ArmId| Command::PutNatGateway {
        common: common(id.clone()),
        gateway: PutNatGateway {
            sku: "Standard".to_owned(),
            public_ips,
            public_ip_prefixes: Vec::new(),
            idle_timeout_minutes: None,
        },
    };
    let delete = Command::DeleteGroup { id: group("shared") };
    let check = |lab: &mut Lab, user: &str| {
        let fault = lab.refused(delete.clone());
        assert_eq!(fault.code, "ResourceGroupDeletionBlocked");
        assert!(fault.message.contains(user), "{fault}");
    };
    // A NAT gateway of another group has an address of it.
    lab.must(put_gateway(vec![public_ip.clone()], &id("nat mine")));
    check(&mut lab, "natGateways/mine");
    lab.must(put_gateway(Vec::new(), &id("nat mine")));
    // A subnet of another group has a NAT gateway of it.
    lab.must(put_gateway(vec![public_ip.clone()], &gateway));
    let nat_gateway = Some(gateway.clone());
    lab.must(put_subnet("v", PutSubnet { nat_gateway, ..subnet("s", "10.1.0.0/24") }));
    check(&mut lab, "subnets/s");
    lab.must(put_subnet("v", subnet("s", "10.1.0.0/24")));
    lab.must(put_gateway(Vec::new(), &gateway));
    // So has a NIC, and a public IP of its prefix.
    let Command::PutNic { common: nic, ip_forwarding, security_group, mut configs } =
        put_nic("n", &[("one", "v/s", None)])
    else {
        unreachable!()
    };
    configs[0].public_ip = Some(public_ip);
    lab.must(Command::PutNic { common: nic, ip_forwarding, security_group, configs });
    check(&mut lab, "networkInterfaces/n");
    lab.delete("nic n");
    lab.fabric();
    lab.must(Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        common: common(id("pip mine")),
        prefix: Some(prefix),
        sku: "Standard".to_owned(),
        allocation: Allocation::Static,
        family: Family::V4,
    });
    check(&mut lab, "publicIPAddresses/mine");
    lab.delete("pip mine");
    lab.fabric();
    lab.must(delete);
    lab.fabric();
    assert_eq!(lab.region.groups.len(), 1);
}

#[test]
fn a_subnet_without_default_outbound_access_says_so() {
    let mut lab = lab();
    let put = PutSubnet { default_outbound: Some(false), ..subnet("s", "10.1.0.0/24") };
    lab.must(put_subnet("v", put));
    let is_default =
        |lab: &Lab| lab.region.subnet(&id("subnet v/s")).map(|(_, subnet)| subnet.default_outbound);
    assert_eq!(is_default(&lab), Some(false));
    lab.subnet("v", "s", "10.1.0.0/24");
    assert_eq!(is_default(&lab), Some(true));
}

fn named(name: &str, settings: PublicIpSettings) -> Command {
    match put_public_ip(name, None) {
        Command::PutPublicIp { common, prefix, sku, allocation, family, .. } => {
            Command::PutPublicIp { common, prefix, sku, allocation, family, settings }
        }
        other => panic!("{other:?}"),
    }
}

fn labelled(label: &str) -> PublicIpSettings {
    PublicIpSettings { dns_label: Some(label.to_owned()), ..PublicIpSettings::default() }
}

#[test]
fn a_label_is_one_public_ips_of_a_family_in_a_region() {
    let mut lab = lab();
    let fqdn = |lab: &Lab, name: &str| lab.region.public_ips[&id(&format!("pip {name}"))].fqdn();
    lab.must(named("p", labelled("web")));
    assert_eq!(fqdn(&lab, "p").as_deref(), Some("web.eastus.cloudapp.azure.com"));
    let fault = lab.refused(named("q", labelled("web")));
    assert_eq!((fault.code.as_str(), fault.status), ("DnsRecordInUse", 400));
    let text = "DNS record web.eastus.cloudapp.azure.com is already used by another public IP.";
    assert_eq!(fault.message, text);
    // Its own again, in another region, and for the other family.
    lab.must(named("p", labelled("web")));
    let mut west = named("west", labelled("web"));
    if let Command::PutPublicIp { common, .. } = &mut west {
        common.location = Some("westus".to_owned());
    }
    lab.must(west);
    let mut six = named("six", labelled("web"));
    if let Command::PutPublicIp { family, .. } = &mut six {
        *family = Family::V6;
    }
    lab.must(six);
    // Whoever says none gives it back.
    lab.must(named("p", PublicIpSettings::default()));
    assert_eq!(fqdn(&lab, "p"), None);
    lab.must(named("q", labelled("web")));

    let (long, too_long) = (format!("w{}", "e".repeat(62)), format!("w{}", "e".repeat(63)));
    for (label, is_one) in [
        ("abc", true),
        ("a-1", true),
        ("a--b", true),
        (long.as_str(), true),
        (too_long.as_str(), false),
        ("ab", false),
        ("", false),
        ("1bc", false),
        ("-bc", false),
        ("ab-", false),
        ("Abc", false),
        ("a.b", false),
        ("a_b", false),
        ("äbc", false),
    ] {
        match lab.apply(named("p", labelled(label))) {
            Ok(_) => assert!(is_one, "`{label}` is taken"),
            Err(fault) => {
                assert_eq!(fault.code, "InvalidDomainNameLabel", "{label}: {fault}");
                assert!(!is_one, "`{label}` is refused");
            }
        }
    }
}

#[test]
fn idle_minutes_of_a_public_ip_have_limits() {
    let mut lab = lab();
    for (minutes, is_refused) in [(3, true), (4, false), (30, false), (31, true)] {
        let settings =
            PublicIpSettings { idle_timeout_minutes: minutes, ..PublicIpSettings::default() };
        let result = lab.apply(named("p", settings));
        let message = result.err().map(|fault| fault.message);
        let text =
            "Public IP address p has invalid Idle Timeout. The value must be between 4 and 30.";
        assert_eq!(message.as_deref(), is_refused.then_some(text), "{minutes}");
    }
}

//! Tables of rules, flows and who decides.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::model::{Meta, NextHop, Peering, Route, RouteTable, Subnet};

fn id(kind: &str, name: &str) -> ArmId {
    ArmId::group("S", "g").sibling(kind, name)
}

fn meta(kind: &str, name: &str) -> Meta {
    Meta {
        id: id(kind, name),
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
        etag: uuid::Uuid::nil(),
        guid: uuid::Uuid::nil(),
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: Kept::new(),
    }
}

fn prefix<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a prefix")
}

fn subnet(name: &str, at: &str) -> Subnet {
    Subnet {
        name: Name::new(name),
        prefix: prefix(at),
        prefix6: None,
        route_table: None,
        security_group: None,
        nat_gateway: None,
        default_outbound: true,
        delegations: Vec::new(),
        association_links: Vec::new(),
        held: BTreeMap::new(),
        private_endpoint_network_policies: "Disabled".to_owned(),
        private_link_service_network_policies: "Enabled".to_owned(),
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: Kept::new(),
    }
}

fn vnet() -> Vnet {
    Vnet {
        meta: meta(crate::kind::VNET, "v"),
        prefixes: vec![prefix("172.20.0.0/24")],
        subnets: [("a", "172.20.0.0/26"), ("b", "172.20.0.64/26")]
            .map(|(name, at)| (Name::new(name), subnet(name, at)))
            .into(),
        peerings: BTreeMap::new(),
        default_outbound: [198, 18, 0, 4].into(),
    }
}

/// `priority direction access protocol source sports > destination dports`.
fn rule(text: &str) -> SecurityRule {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [priority, direction, access, protocol, source, sports, ">", destination, dports] =
        words.as_slice()
    else {
        panic!("{text}")
    };
    let peers = |text: &str| Peers::Addresses {
        any_of: text
            .split(',')
            .map(|one| match (one, one.parse()) {
                ("*", _) => Addresses::Any,
                (_, Ok(prefix)) => Addresses::Prefix(prefix),
                (tag, Err(_)) => Addresses::Tag(tag.to_owned()),
            })
            .collect(),
        as_list: false,
    };
    let ports = |text: &str| Ports {
        any_of: text
            .split(',')
            .map(|one| match one.split_once('-') {
                _ if one == "*" => PortRange::ALL,
                Some((first, last)) => PortRange {
                    first: first.parse().expect("a port"),
                    last: last.parse().expect("a port"),
                },
                None => PortRange::one(one.parse().expect("a port")),
            })
            .collect(),
        as_list: false,
    };
    SecurityRule {
        name: Name::new(&format!("r{priority}")),
        direction: if *direction == "in" { Direction::Inbound } else { Direction::Outbound },
        priority: priority.parse().expect("a priority"),
        access: if *access == "allow" { Access::Allow } else { Access::Deny },
        protocol: match *protocol {
            "tcp" => RuleProtocol::Tcp,
            "udp" => RuleProtocol::Udp,
            "icmp" => RuleProtocol::Icmp,
            "esp" => RuleProtocol::Esp,
            "ah" => RuleProtocol::Ah,
            _ => RuleProtocol::Any,
        },
        source: peers(source),
        source_ports: ports(sports),
        destination: peers(destination),
        destination_ports: ports(dports),
        kept: Kept::new(),
    }
}

fn group(rules: &[&str]) -> SecurityGroup {
    let rules = rules.iter().map(|text| rule(text)).map(|rule| (rule.name.clone(), rule));
    SecurityGroup { meta: meta(crate::kind::SECURITY_GROUP, "nsg"), rules: rules.collect() }
}

/// `in|out protocol source sport > destination dport`.
fn flow(text: &str) -> (Direction, Flow) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [direction, protocol, source, sport, ">", destination, dport] = words.as_slice() else {
        panic!("{text}")
    };
    let flow = Flow {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        protocol: match *protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "esp" => Protocol::Esp,
            "ah" => Protocol::Ah,
            number => Protocol::Other(number.parse().expect("a number")),
        },
        source_port: sport.parse().expect("a port"),
        destination_port: dport.parse().expect("a port"),
    };
    let direction = if *direction == "in" { Direction::Inbound } else { Direction::Outbound };
    (direction, flow)
}

fn check(gate: &Gate, table: &[(&str, &str)]) {
    for (text, expected) in table {
        let (direction, flow) = flow(text);
        let decision = gate.decide(direction, &flow);
        let decided = match decision {
            Decision::Rule(rule) => rule.rule.name.as_str().to_owned(),
            Decision::Platform => "platform".to_owned(),
        };
        assert_eq!(decided, *expected, "{text}");
    }
}

#[test]
fn default_rules_are_azures() {
    let gate = Gate::new(&Region::default(), &vnet(), &group(&[]), None);
    check(
        &gate,
        &[
            ("in tcp 172.20.0.4 40000 > 172.20.0.70 80", "AllowVnetInBound"),
            ("in tcp 168.63.129.16 40000 > 172.20.0.70 80", "AllowVnetInBound"),
            ("in tcp 168.63.129.16 40000 > 203.0.113.9 80", "AllowAzureLoadBalancerInBound"),
            ("in tcp 198.18.0.9 40000 > 172.20.0.70 80", "DenyAllInBound"),
            ("in tcp 10.244.0.9 40000 > 172.20.0.70 80", "DenyAllInBound"),
            ("out tcp 172.20.0.4 40000 > 172.20.0.70 80", "AllowVnetOutBound"),
            ("out udp 172.20.0.4 40000 > 198.18.9.9 53", "AllowInternetOutBound"),
            ("out tcp 172.20.0.4 40000 > 10.1.2.3 80", "DenyAllOutBound"),
            ("out udp 172.20.0.4 40000 > 168.63.129.16 53", "platform"),
            ("out tcp 172.20.0.4 40000 > 169.254.169.254 80", "platform"),
        ],
    );
}

#[test]
fn the_lowest_number_decides_in_each_direction_alone() {
    let rules = [
        "200 in allow tcp 172.20.0.0/26 * > * 80,8000-8010",
        "100 in deny tcp 172.20.0.4/32 * > * 80",
        "300 in deny * * * > * *",
        "400 out deny * * * > 172.20.0.0/24 22",
        "410 out allow icmp * * > 10.0.0.0/8 80",
        "420 out deny * AzureCloud 1-1023 > AzureCloud.eastus *",
    ];
    let gate = Gate::new(&Region::default(), &vnet(), &group(&rules), None);
    check(
        &gate,
        &[
            ("in tcp 172.20.0.4 40000 > 172.20.0.70 80", "r100"),
            ("in tcp 172.20.0.5 40000 > 172.20.0.70 80", "r200"),
            ("in tcp 172.20.0.5 40000 > 172.20.0.70 8010", "r200"),
            ("in tcp 172.20.0.5 40000 > 172.20.0.70 8011", "r300"),
            ("in udp 172.20.0.5 40000 > 172.20.0.70 80", "r300"),
            ("in icmp 172.20.0.5 0 > 172.20.0.70 0", "r300"),
            ("in tcp 168.63.129.16 4 > 172.20.0.70 80", "r300"),
            ("out tcp 172.20.0.4 40000 > 172.20.0.70 22", "r400"),
            // A rule for every protocol that names a port is not about packets without ports.
            ("out icmp 172.20.0.4 0 > 172.20.0.70 0", "AllowVnetOutBound"),
            // Ports of an ICMP rule mean nothing.
            ("out icmp 172.20.0.4 0 > 10.1.2.3 0", "r410"),
            ("out 47 172.20.0.4 0 > 10.1.2.3 0", "DenyAllOutBound"),
            ("out tcp 198.18.0.4 1023 > 198.18.0.5 443", "r420"),
            ("out tcp 198.18.0.4 1024 > 198.18.0.5 443", "AllowInternetOutBound"),
        ],
    );
}

#[test]
fn the_platform_is_forbidden_only_by_name() {
    let rules = ["100 out deny * * * > * *", "110 out deny udp * * > AzurePlatformDNS 53"];
    let gate = Gate::new(&Region::default(), &vnet(), &group(&rules), None);
    check(
        &gate,
        &[
            ("out udp 172.20.0.4 40000 > 168.63.129.16 53", "r110"),
            ("out tcp 172.20.0.4 40000 > 168.63.129.16 53", "platform"),
            ("out tcp 172.20.0.4 40000 > 169.254.169.254 80", "platform"),
            ("out tcp 172.20.0.4 40000 > 198.18.0.5 80", "r100"),
        ],
    );
}

#[test]
fn a_name_of_the_platforms_means_that_service_alone() {
    let rules = [
        "100 out deny * * * > AzurePlatformLKM *",
        "110 out deny * * * > AzurePlatformDNS *",
        "120 out deny * * * > AzurePlatformIMDS 8000-9000",
        "130 out deny * * * > AzurePlatformDNS 80",
    ];
    let gate = Gate::new(&Region::default(), &vnet(), &group(&rules), None);
    check(
        &gate,
        &[
            ("out udp 172.20.0.4 40000 > 168.63.129.16 53", "r110"),
            ("out tcp 172.20.0.4 40000 > 168.63.129.16 53", "r110"),
            ("out tcp 172.20.0.4 40000 > 168.63.129.16 80", "platform"),
            ("out icmp 172.20.0.4 0 > 168.63.129.16 0", "platform"),
            ("out tcp 172.20.0.4 40000 > 169.254.169.254 80", "platform"),
            ("out tcp 172.20.0.4 40000 > 169.254.169.254 8080", "r120"),
            ("out tcp 172.20.0.4 40000 > 198.19.1.1 1688", "r100"),
        ],
    );
    let licences = ["100 out deny * * * > AzurePlatformLKM *"];
    let gate = Gate::new(&Region::default(), &vnet(), &group(&licences), None);
    check(&gate, &[("out udp 172.20.0.4 40000 > 168.63.129.16 53", "platform")]);
}

#[test]
fn an_overlays_pods_are_in_the_virtual_network_for_default_rules_alone() {
    let pods = Some(OverlayRanges { v4: prefix("10.244.0.0/16"), v6: None });
    let plain = Gate::new(&Region::default(), &vnet(), &group(&[]), pods);
    check(&plain, &[("in tcp 10.244.1.9 40000 > 10.244.0.7 80", "AllowVnetInBound")]);
    let rules = ["100 in allow * VirtualNetwork * > * *", "4096 in deny * * * > * *"];
    let denying = Gate::new(&Region::default(), &vnet(), &group(&rules), pods);
    check(
        &denying,
        &[
            ("in tcp 10.244.1.9 40000 > 10.244.0.7 80", "r4096"),
            ("in tcp 172.20.0.9 40000 > 10.244.0.7 80", "r100"),
        ],
    );
}

#[test]
fn peers_and_user_routes_are_in_the_virtual_network() {
    let mut region = Region::default();
    let mut vnet = vnet();
    let peering = |name: &str, at: &str, allow_access, peering_state| Peering {
        name: Name::new(name),
        remote: id(crate::kind::VNET, name),
        remote_prefixes: vec![prefix(at)],
        allow_access,
        allow_forwarded: false,
        allow_gateway_transit: false,
        use_remote_gateways: false,
        peering_state,
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: Kept::new(),
    };
    for peering in [
        peering("joined", "10.1.0.0/16", true, PeeringState::Connected),
        peering("refused", "10.2.0.0/16", false, PeeringState::Connected),
        peering("half", "10.3.0.0/16", true, PeeringState::Initiated),
    ] {
        vnet.peerings.insert(peering.name.clone(), peering);
    }
    let table = RouteTable {
        meta: meta(crate::kind::ROUTE_TABLE, "rt"),
        routes: [Route {
            name: Name::new("pods"),
            prefix: prefix("10.244.0.0/24"),
            next_hop: NextHop::VirtualAppliance([172, 20, 0, 4].into()),
        }]
        .map(|route| (route.name.clone(), route))
        .into(),
        disable_bgp_route_propagation: false,
    };
    let a = vnet.subnets.get_mut(&Name::new("a")).expect("subnet a");
    a.route_table = Some(table.meta.id.clone());
    region.route_tables.insert(table.meta.id.clone(), Arc::new(table));
    let gate = Gate::new(&region, &vnet, &group(&[]), None);
    check(
        &gate,
        &[
            ("in tcp 10.1.0.4 1 > 172.20.0.4 80", "AllowVnetInBound"),
            ("in tcp 10.2.0.4 1 > 172.20.0.4 80", "DenyAllInBound"),
            ("in tcp 10.3.0.4 1 > 172.20.0.4 80", "DenyAllInBound"),
            ("in tcp 10.244.0.4 1 > 172.20.0.4 80", "AllowVnetInBound"),
            ("in tcp 10.244.1.4 1 > 172.20.0.4 80", "DenyAllInBound"),
        ],
    );
}

//! Tables of routes and destinations.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::model::{Kept, Meta, Peering, Route, RouteTable};

fn prefix<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a prefix")
}

fn meta(kind: &str, name: &str) -> Meta {
    Meta {
        id: ArmId::group("S", "g").sibling(kind, name),
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
        etag: uuid::Uuid::nil(),
        guid: uuid::Uuid::nil(),
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: Kept::new(),
    }
}

fn vnet(name: &str, prefixes: &[&str]) -> Vnet {
    Vnet {
        meta: meta(crate::kind::VNET, name),
        prefixes: prefixes.iter().map(|text| prefix(text)).collect(),
        subnets: BTreeMap::new(),
        peerings: BTreeMap::new(),
        default_outbound: [198, 18, 0, 4].into(),
    }
}

fn peering(remote: &Vnet, allow_access: bool, peering_state: PeeringState) -> Peering {
    Peering {
        name: Name::new(remote.meta.id.name()),
        remote: remote.meta.id.clone(),
        remote_prefixes: remote.prefixes.clone(),
        allow_access,
        allow_forwarded: false,
        allow_gateway_transit: false,
        use_remote_gateways: false,
        peering_state,
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: Kept::new(),
    }
}

/// A region whose one subnet has these user-defined routes, `prefix hop`.
fn region(routes: &[&str]) -> (Region, Arc<Vnet>) {
    let mut region = Region::default();
    let mut v = vnet("v", &["172.20.0.0/24"]);
    let other = vnet("other", &["10.9.0.0/16"]);
    let refused = vnet("refused", &["10.8.0.0/16"]);
    for peering in [
        peering(&other, true, PeeringState::Connected),
        peering(&refused, false, PeeringState::Connected),
    ] {
        v.peerings.insert(peering.name.clone(), peering);
    }
    let routes = routes.iter().enumerate().map(|(n, text)| {
        let (at, hop) = text.split_once(' ').expect("a prefix and a hop");
        let next_hop = match hop {
            "local" => NextHop::VnetLocal,
            "internet" => NextHop::Internet,
            "none" => NextHop::None,
            address => NextHop::VirtualAppliance(address.parse().expect("an address")),
        };
        let name = Name::new(&format!("r{n}"));
        (name.clone(), Route { name, prefix: prefix(at), next_hop })
    });
    let table = RouteTable {
        meta: meta(crate::kind::ROUTE_TABLE, "rt"),
        routes: routes.collect(),
        disable_bgp_route_propagation: false,
    };
    let subnet = Subnet {
        name: Name::new("s"),
        prefix: prefix("172.20.0.0/26"),
        prefix6: None,
        route_table: Some(table.meta.id.clone()),
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
    };
    v.subnets.insert(subnet.name.clone(), subnet);
    let v = Arc::new(v);
    region.route_tables.insert(table.meta.id.clone(), Arc::new(table));
    for vnet in [v.clone(), Arc::new(other), Arc::new(refused)] {
        region.vnets.insert(vnet.meta.id.clone(), vnet);
    }
    (region, v)
}

fn check(routes: &[&str], table: &[(&str, &str)]) {
    let (region, vnet) = region(routes);
    let routes = effective(&region, &vnet, &vnet.subnets[&Name::new("s")]);
    for (destination, expected) in table {
        let taken = select(&routes, destination.parse().expect("an address"));
        let taken = taken.map_or("no route".to_owned(), |route| {
            let hop = match &route.hop {
                Hop::VnetLocal => "local".to_owned(),
                Hop::Peering(vnet) => vnet.name().to_owned(),
                Hop::Internet => "internet".to_owned(),
                Hop::VirtualAppliance(address) => address.to_string(),
                Hop::None => "none".to_owned(),
            };
            format!("{} {hop}", route.prefix)
        });
        assert_eq!(taken, *expected, "{destination}");
    }
}

#[test]
fn without_a_users_routes_azures_are_taken() {
    check(
        &[],
        &[
            ("172.20.0.9", "172.20.0.0/24 local"),
            ("172.20.1.9", "172.16.0.0/12 none"),
            ("10.9.3.4", "10.9.0.0/16 other"),
            ("10.8.3.4", "10.0.0.0/8 none"),
            ("198.18.0.9", "0.0.0.0/0 internet"),
            ("168.63.129.16", "no route"),
            ("169.254.169.254", "no route"),
        ],
    );
}

#[test]
fn the_longest_prefix_wins_and_the_user_wins_a_tie() {
    check(
        &[
            "172.20.0.0/24 172.20.0.4",
            "172.20.0.64/26 local",
            "10.9.1.0/24 none",
            "10.0.0.0/8 internet",
        ],
        &[
            ("172.20.0.9", "172.20.0.0/24 172.20.0.4"),
            ("172.20.0.70", "172.20.0.64/26 local"),
            ("10.9.1.4", "10.9.1.0/24 none"),
            ("10.9.2.4", "10.9.0.0/16 other"),
            ("10.7.0.4", "10.0.0.0/8 internet"),
        ],
    );
}

#[test]
fn who_says_where_everything_goes_says_so_of_private_ranges() {
    check(
        &["0.0.0.0/0 172.20.0.4"],
        &[
            ("192.168.7.7", "0.0.0.0/0 172.20.0.4"),
            ("198.18.0.9", "0.0.0.0/0 172.20.0.4"),
            ("172.20.0.9", "172.20.0.0/24 local"),
            ("168.63.129.16", "no route"),
        ],
    );
}

#[test]
fn azures_route_of_the_same_prefix_is_shown_as_invalid() {
    let (region, vnet) = region(&["172.20.0.0/24 none"]);
    let routes = effective(&region, &vnet, &vnet.subnets[&Name::new("s")]);
    let same: Vec<_> =
        routes.iter().filter(|it| it.prefix == prefix::<Prefix>("172.20.0.0/24")).collect();
    assert_eq!(same.len(), 2);
    assert_eq!((same[0].source, same[0].is_active), (Source::Default, false));
    assert_eq!((same[1].source, same[1].is_active), (Source::User, true));
}

#[test]
fn a_service_tag_leads_where_its_prefixes_are() {
    check(
        &[
            "Storage 172.20.0.4",
            "Storage.EastUS none",
            "azurecloud 172.20.0.5",
            "198.19.22.8/29 local",
        ],
        &[
            // East US is the seventh region of the list.
            ("198.19.22.49", "198.19.22.48/29 none"),
            ("198.19.22.200", "198.19.22.0/24 172.20.0.4"),
            ("198.19.22.9", "198.19.22.8/29 local"),
            ("198.18.7.7", "198.18.0.0/16 172.20.0.5"),
            ("198.19.23.9", "0.0.0.0/0 internet"),
        ],
    );
}

#[test]
fn of_one_prefix_the_explicit_route_wins_and_then_the_narrowest_tag() {
    let all = ["AzureCloud none", "AzureCloud.eastus internet", "198.18.0.0/16 172.20.0.4"];
    check(&all, &[("198.18.7.7", "198.18.0.0/16 172.20.0.4")]);
    check(&all[..2], &[("198.18.7.7", "198.18.0.0/16 internet")]);
    check(&all[..1], &[("198.18.7.7", "198.18.0.0/16 none")]);
    let registries =
        ["MicrosoftContainerRegistry none", "MicrosoftContainerRegistry.UKSouth local"];
    check(&registries, &[("198.19.0.10", "198.19.0.10/32 local")]);
    // Every one of them is shown, and one is taken.
    let (region, vnet) = region(&all);
    let routes = effective(&region, &vnet, &vnet.subnets[&Name::new("s")]);
    let shown = routes.iter().filter(|it| it.prefix == prefix::<Prefix>("198.18.0.0/16"));
    let shown: Vec<(String, bool)> =
        shown.map(|it| (it.name.as_ref().expect("a user's").to_string(), it.is_active)).collect();
    let expected = [("r2", true), ("r1", false), ("r0", false)];
    assert_eq!(shown, expected.map(|(name, is_active)| (name.to_owned(), is_active)));
}

#[test]
fn a_tags_prefixes_are_of_the_families_that_can_be_led() {
    let (mut region, vnet) = region(&["Contoso 172.20.0.4", "Contoso.EastUS none"]);
    let prefixes = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect();
    region.given_tags = Some(Arc::new(crate::policy::tags::ServiceTags {
        change_number: 1,
        tags: [
            ("Contoso".to_owned(), prefixes(&["20.1.0.0/24", "20.1.1.0/24", "2603:1::/32"])),
            ("Contoso.EastUS".to_owned(), prefixes(&["20.1.1.0/24", "2603:1::/32"])),
        ]
        .into(),
    }));
    let shown = |vnet: &Vnet| -> Vec<String> {
        let routes = effective(&region, vnet, &vnet.subnets[&Name::new("s")]);
        let users = routes.iter().filter(|it| it.source == Source::User && it.is_active);
        users.map(|it| format!("{} {}", it.name.as_ref().expect("a name"), it.prefix)).collect()
    };
    // Neighbours stay apart: the routes are the tag's prefixes, and not others that are as much.
    assert_eq!(shown(&vnet), ["r0 20.1.0.0/24", "r1 20.1.1.0/24"]);
    let mut dual = Vnet::clone(&vnet);
    dual.prefixes.push(prefix("fd00:1::/48"));
    // An appliance of IPv4 leads no IPv6.
    assert_eq!(shown(&dual), ["r0 20.1.0.0/24", "r1 20.1.1.0/24", "r1 2603:1::/32"]);
}

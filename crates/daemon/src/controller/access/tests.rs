#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use super::*;

/// A Service with port 80 and these annotations, source ranges and other ports.
fn service(annotations: &[(&str, &str)], ranges: &[&str], ports: Value) -> Service {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
    let ports = if ports.is_null() { json!([{ "port": 80, "nodePort": 30080 }]) } else { ports };
    let value = json!({
        "metadata": { "name": "web", "namespace": "default", "annotations": annotations },
        "spec": { "type": "LoadBalancer", "ports": ports, "loadBalancerSourceRanges": ranges },
    });
    serde_json::from_value(value).unwrap()
}

const INTERNAL: (&str, &str) = ("azure-load-balancer-internal", "true");

fn claim_at(service: &Service, address: &str) -> Claim {
    let nodes = ["10.0.0.4", "10.0.0.5", "fd00::4", "fd00::5"];
    let nodes = nodes.map(|text| text.parse().unwrap()).into();
    let addresses: Vec<IpAddr> = address.split(' ').map(|text| text.parse().unwrap()).collect();
    Claim::of(service, &addresses, &nodes).unwrap().0
}

fn claim(annotations: &[(&str, &str)], ranges: &[&str]) -> Claim {
    claim_at(&service(annotations, ranges, Value::Null), "198.18.0.9")
}

/// The rules of claims, a line each: name, access, protocol, sources, destinations, ports.
fn rules(claims: &[Claim]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Array(list) => {
            list.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join(",")
        }
        value => value.as_str().unwrap_or("-").to_owned(),
    };
    let line = |(name, rule): (String, Value)| {
        let either = |one: &str, many: &str| {
            text(if rule[one].is_null() { &rule[many] } else { &rule[one] })
        };
        let name = name.trim_start_matches("k8s-azure-lb_").chars().take(13).collect::<String>();
        format!(
            "{name} {} {} {} -> {} {}",
            text(&rule["access"]),
            text(&rule["protocol"]),
            either("sourceAddressPrefix", "sourceAddressPrefixes"),
            either("destinationAddressPrefix", "destinationAddressPrefixes"),
            either("destinationPortRange", "destinationPortRanges"),
        )
    };
    wanted(claims).into_iter().map(line).collect()
}

/// Annotations, source ranges, and the ends of the rules' lines.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

#[test]
fn who_may_reach_a_service() {
    let open = "allow_IPv4_d3 Allow Tcp Internet -> 198.18.0.9 80";
    let deny = "deny-all_IPv4 Deny * * -> 198.18.0.9 *";
    let ranges = ("azure-allowed-ip-ranges", "10.0.0.0/8, 192.168.0.0/16");
    let only = ("azure-deny-all-except-load-balancer-source-ranges", "true");
    let cases: &[Case<'_>] = &[
        // A public one is everybody's, an internal one the virtual network's, which needs no rule.
        (&[], &[], &[open]),
        (&[INTERNAL], &[], &[]),
        // Who names users excludes others, from outside at first.
        (&[], &["10.0.0.0/8"], &["Allow Tcp 10.0.0.0/8 -> 198.18.0.9 80"]),
        (&[INTERNAL], &["10.0.0.0/8"], &["Allow Tcp 10.0.0.0/8 -> 198.18.0.9 80"]),
        (&[ranges], &[], &["Allow Tcp 10.0.0.0/8,192.168.0.0/16 -> 198.18.0.9 80"]),
        (&[ranges, only], &[], &["Allow Tcp 10.0.0.0/8,192.168.0.0/16 -> 198.18.0.9 80", deny]),
        (&[only], &[], &[open]),
        // Ranges that overlap or touch become one; everything is everything.
        (
            &[],
            &["10.1.0.0/16", "10.0.0.0/16", "10.1.2.0/24"],
            &["Allow Tcp 10.0.0.0/15 -> 198.18.0.9 80"],
        ),
        (&[], &["0.0.0.0/0"], &["Allow Tcp 0.0.0.0/0 -> 198.18.0.9 80"]),
        // A tag is a rule of its own.
        (
            &[("azure-allowed-service-tags", "AzureCloud, Storage")],
            &[],
            &["Allow Tcp AzureCloud -> 198.18.0.9 80", "Allow Tcp Storage -> 198.18.0.9 80"],
        ),
        // What cannot be read closes the Service but for what can.
        (&[], &["10.0.0.1/8"], &[deny]),
        (&[], &["10.0.0.0/8", "x"], &["Allow Tcp 10.0.0.0/8 -> 198.18.0.9 80", deny]),
        (&[], &["10.0.0.4"], &[deny]),
        // Without floating IP the nodes are who is asked.
        (
            &[("azure-disable-load-balancer-floating-ip", "true")],
            &[],
            &["Allow Tcp Internet -> 10.0.0.4,10.0.0.5 30080"],
        ),
        (
            &[("azure-additional-public-ips", "198.18.0.7")],
            &[],
            &["Allow Tcp Internet -> 198.18.0.7,198.18.0.9 80"],
        ),
        (&[("azure-disable-load-balancer-nsg-rule", "true")], &[], &[]),
    ];
    for (annotations, source, expected) in cases {
        let mut found = rules(&[claim(annotations, source)]);
        found.sort_by_key(|line| line.contains("deny-all"));
        assert_eq!(found.len(), expected.len(), "{annotations:?} {source:?}: {found:?}");
        let mut rest: Vec<&str> = expected.to_vec();
        for line in &found {
            let at = rest.iter().position(|expected| line.ends_with(expected));
            rest.remove(at.unwrap_or_else(|| panic!("{annotations:?} {source:?}: {line}")));
        }
    }
}

#[test]
fn users_are_named_in_one_place() {
    let both = service(&[("azure-allowed-ip-ranges", "10.0.0.0/8")], &["10.0.0.0/8"], Value::Null);
    let found = Claim::of(&both, &["198.18.0.9".parse().unwrap()], &BTreeSet::new());
    assert_eq!(found, Err(BOTH_RANGES));
    let odd =
        service(&[("azure-allowed-service-tags", "Storage")], &["x", "10.0.0.0/8"], Value::Null);
    let (_, warnings) =
        Claim::of(&odd, &["198.18.0.9".parse().unwrap()], &BTreeSet::new()).unwrap();
    let reasons: Vec<&str> = warnings.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, ["InvalidSourceRanges", "ConflictConfiguration"]);
}

/// The name is made of the protocol, the sources and the ports, as the provider makes it.
#[test]
fn names_are_the_cloud_providers() {
    let names: Vec<String> = wanted(&[claim(&[], &[])]).into_keys().collect();
    // md5 of `Tcp_Internet_80`.
    assert_eq!(names, ["k8s-azure-lb_allow_IPv4_d39272f7f57ed937951650d93992ad77"]);
    let ports = json!([{ "port": 443 }, { "port": 80 }, { "port": 53, "protocol": "UDP" }]);
    let many = claim_at(&service(&[], &[], ports), "198.18.0.9");
    assert_eq!(rules(&[many]).len(), 2);
}

/// Addresses, and the rest of a [`Case`].
type OfFamilies<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

/// Rules of IPv6 are named after it, and each family has those users of a Service that are its own.
#[test]
fn families_have_rules_of_their_own() {
    let both = "198.18.0.9 2001:2::9";
    let floating = ("azure-disable-load-balancer-floating-ip", "true");
    let only = ("azure-deny-all-except-load-balancer-source-ranges", "true");
    let cases: &[OfFamilies<'_>] = &[
        (
            both,
            &[],
            &[],
            &[
                "allow_IPv4 Allow Tcp Internet -> 198.18.0.9 80",
                "allow_IPv6 Allow Tcp Internet -> 2001:2::9 80",
            ],
        ),
        ("2001:2::9", &[], &[], &["allow_IPv6 Allow Tcp Internet -> 2001:2::9 80"]),
        // Who names users of one family only has none of the other.
        (both, &[], &["fd00::/8"], &["allow_IPv6 Allow Tcp fd00::/8 -> 2001:2::9 80"]),
        (
            both,
            &[only],
            &["10.0.0.0/8", "fd00::/9", "fd80::/9"],
            &[
                "allow_IPv4 Allow Tcp 10.0.0.0/8 -> 198.18.0.9 80",
                "deny-all_IPv4 Deny * * -> 198.18.0.9 *",
                "allow_IPv6 Allow Tcp fd00::/8 -> 2001:2::9 80",
                "deny-all_IPv6 Deny * * -> 2001:2::9 *",
            ],
        ),
        (
            "2001:2::9",
            &[floating],
            &[],
            &["allow_IPv6 Allow Tcp Internet -> fd00::4,fd00::5 30080"],
        ),
        ("2001:2::9", &[], &["fd00::1"], &["deny-all_IPv6 Deny * * -> 2001:2::9 *"]),
    ];
    for (address, annotations, ranges, expected) in cases {
        let mut found = rules(&[claim_at(&service(annotations, ranges, Value::Null), address)]);
        found.sort_by_key(|line| line.contains("IPv6"));
        // What users and ports make of the name is another test's.
        let without_hash = |line: &String| {
            let (name, rest) = line.split_once(' ').unwrap();
            format!("{} {rest}", &name[..name.rfind("IPv").unwrap() + 4])
        };
        let found: Vec<String> = found.iter().map(without_hash).collect();
        assert_eq!(found, **expected, "{address} {annotations:?} {ranges:?}");
    }
}

#[test]
fn services_with_the_same_users_and_ports_share_a_rule() {
    let two = claim_at(&service(&[], &[], Value::Null), "198.18.0.10");
    let found = rules(&[claim(&[], &[]), two]);
    assert_eq!(found.len(), 1);
    assert!(found[0].ends_with("Internet -> 198.18.0.10,198.18.0.9 80"), "{found:?}");
}

/// A group as Azure shows it once these changes are made.
fn after(group: &Value, changes: &Changes) -> Value {
    let mut rules = group["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
    rules.retain(|rule| {
        let name = rule["name"].as_str().unwrap();
        !changes.remove.iter().any(|it| it == name) && !changes.put.iter().any(|it| it.0 == name)
    });
    rules.extend(changes.put.iter().map(|(name, body)| {
        let mut rule = json!({ "name": name, "properties": body["properties"] });
        for key in ["sourceAddressPrefixes", "destinationAddressPrefixes"] {
            if rule["properties"][key].is_null() {
                rule["properties"][key] = json!([]);
            }
        }
        rule
    }));
    json!({ "properties": { "securityRules": rules } })
}

fn priorities(changes: &Changes) -> Vec<u64> {
    changes.put.iter().map(|(_, it)| it["properties"]["priority"].as_u64().unwrap()).collect()
}

#[test]
fn rules_come_stay_and_go() {
    let foreign = |name: &str, priority: u64| {
        json!({ "name": name, "properties": {
        "priority": priority, "direction": "Inbound" } })
    };
    let group = json!({ "properties": { "securityRules": [
        foreign("mine", 500), foreign("k8s-azure-lb_mine", 100) ] } });
    let open = claim(&[], &[]);
    let only = ("azure-deny-all-except-load-balancer-source-ranges", "true");
    let closed = claim_at(&service(&[only], &["10.0.0.0/8"], Value::Null), "198.18.0.10");

    let first = changes(&group, std::slice::from_ref(&open)).unwrap();
    assert_eq!((first.remove.len(), priorities(&first)), (0, vec![501]));
    let group = after(&group, &first);
    assert!(changes(&group, std::slice::from_ref(&open)).unwrap() == Changes::default());

    // The second one's rules are beside the first one's; denials are at the other end.
    let both = [open.clone(), closed];
    let second = changes(&group, &both).unwrap();
    let mut found = priorities(&second);
    found.sort_unstable();
    assert_eq!(found, [502, 4095]);
    let group = after(&group, &second);
    assert!(changes(&group, &both).unwrap() == Changes::default());

    // What somebody changed is changed back, at its priority.
    let mut spoiled = group.clone();
    for rule in spoiled["properties"]["securityRules"].as_array_mut().unwrap() {
        if rule["properties"]["priority"] == 501 {
            rule["properties"]["access"] = json!("Deny");
        }
    }
    let mended = changes(&spoiled, &both).unwrap();
    assert_eq!((mended.remove.len(), priorities(&mended)), (0, vec![501]));

    // Foreign rules stay when the last Service goes.
    let last = changes(&group, &[]).unwrap();
    assert_eq!((last.remove.len(), last.put.len()), (3, 0));
    let rest = after(&group, &last);
    assert_eq!(rest["properties"]["securityRules"].as_array().unwrap().len(), 2);
    assert!(changes(&rest, &[]).unwrap() == Changes::default());
}

#[test]
fn no_priority_is_used_twice_and_none_may_be_left() {
    let rules: Vec<Value> = (500..4096)
        .map(|priority| {
            json!({ "name": format!("r{priority}"), "properties": {
            "priority": priority, "direction": "Inbound" } })
        })
        .collect();
    let full = json!({ "properties": { "securityRules": rules } });
    assert_eq!(changes(&full, &[claim(&[], &[])]), None);
    assert_eq!(changes(&full, &[]), Some(Changes::default()));
    // Outbound rules have priorities of their own.
    let outbound = json!({ "properties": { "securityRules": [{ "name": "out", "properties": {
        "priority": 500, "direction": "Outbound" } }] } });
    assert_eq!(priorities(&changes(&outbound, &[claim(&[], &[])]).unwrap()), [500]);
}

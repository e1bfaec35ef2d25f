#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;

use super::{super::annotations::PREFIX, *};

fn wanted(annotations: &[(&str, &str)], families: &[&str], ip: &str) -> Wanted {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
    let service = json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "b".repeat(32),
            "annotations": annotations },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }], "ipFamilies": families,
            "loadBalancerIP": ip } });
    Wanted::of(&serde_json::from_value(service).unwrap())
}

#[test]
fn a_service_has_the_public_ip_that_it_names() {
    let (four, six, both): (&[&str], &[&str], &[&str]) = (&["IPv4"], &["IPv6"], &["IPv4", "IPv6"]);
    let base = format!("kubernetes-a{}", "b".repeat(31));
    let own = |suffix: &str| Choice::Own(format!("{base}{suffix}"));
    let named = |name: &str| Choice::Named(name.to_owned());
    let at = |address: &str| Choice::Address(address.to_owned());
    for (annotations, families, ip, expected) in [
        (&[][..], four, "", vec![own("")]),
        (&[], six, "", vec![own("")]),
        (&[], both, "", vec![own(""), own("-IPv6")]),
        (&[], four, "20.0.0.4", vec![at("20.0.0.4")]),
        (&[], both, "2001:db8::4", vec![own(""), at("2001:db8::4")]),
        (&[("azure-load-balancer-ipv4", "20.0.0.5")], four, "20.0.0.4", vec![at("20.0.0.5")]),
        (
            &[("azure-load-balancer-ipv6", "2001:db8::5")],
            both,
            "",
            vec![own(""), at("2001:db8::5")],
        ),
        // Names come before prefixes, and these before addresses.
        (&[("azure-pip-name", "mine")], four, "20.0.0.4", vec![named("mine")]),
        (&[("azure-pip-name", "mine")], both, "", vec![named("mine"), own("-IPv6")]),
        (&[("azure-pip-name", "mine")], six, "", vec![named("mine")]),
        (
            &[("azure-pip-name", "mine"), ("azure-pip-name-ipv6", "six")],
            six,
            "",
            vec![named("six")],
        ),
        (
            &[("azure-pip-name", "mine"), ("azure-pip-name-ipv6", "six")],
            both,
            "",
            vec![named("mine"), named("six")],
        ),
        (&[("azure-pip-prefix-id", "/prefix")], four, "20.0.0.4", vec![own("")]),
    ] {
        let wanted = wanted(annotations, families, ip);
        let found: Vec<Choice> = wanted.families.iter().map(|it| wanted.choice(*it)).collect();
        assert_eq!(found, expected, "{annotations:?} {families:?} {ip}");
    }
    let group: ArmId = ArmId::group("s", "MC_rg_c_eastus");
    let elsewhere = wanted(&[("azure-load-balancer-resource-group", " mine ")], four, "");
    assert_eq!(elsewhere.public_ip_group(&group), ArmId::group("s", "mine"));
    assert_eq!(wanted(&[], four, "").public_ip_group(&group), group);
}

#[test]
fn a_new_one_is_as_its_service_says() {
    let annotations = [
        ("azure-pip-prefix-id", "/prefix"),
        ("azure-dns-label-name", "web"),
        ("azure-pip-tags", "a=b, Owner = me ,=x,nonsense,K8S-Azure-Service=theft"),
    ];
    let body = new(&wanted(&annotations, &["IPv4"], ""), Family::V4, "eastus").unwrap();
    assert_eq!(
        body,
        json!({ "location": "eastus", "sku": { "name": "Standard" },
            "tags": { "k8s-azure-service": "ns/web", "k8s-azure-cluster-name": "kubernetes",
                "k8s-azure-dns-label-service": "ns/web", "a": "b", "Owner": "me" },
            "properties": { "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4",
                "publicIPPrefix": { "id": "/prefix" },
                "dnsSettings": { "domainNameLabel": "web" } } })
    );
    assert_eq!(changed(&body, &wanted(&annotations, &["IPv4"], "")), Ok(None));
}

/// What becomes of a public IP of these tags and this label for a Service with these annotations: its tags and label.
fn after(tags: Value, label: Option<&str>, annotations: &[(&str, &str)]) -> Result<String, String> {
    let mut there = json!({ "name": "ip", "properties": {} });
    if !tags.is_null() {
        there["tags"] = tags;
    }
    if let Some(label) = label {
        there["properties"]["dnsSettings"] = json!({ "domainNameLabel": label, "fqdn": "x" });
    }
    let wanted = wanted(annotations, &["IPv4"], "");
    let Some(body) = changed(&there, &wanted)? else { return Ok("the same".to_owned()) };
    assert_eq!(changed(&body, &wanted), Ok(None), "a second time nothing is to be done");
    let tags = body["tags"].as_object().into_iter().flatten();
    let mut texts: Vec<String> =
        tags.map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
    texts.sort();
    let label = body["properties"]["dnsSettings"]["domainNameLabel"].as_str();
    texts.extend(label.map(|label| format!("label {label}")));
    Ok(texts.join(" "))
}

#[test]
fn one_that_is_there_becomes_what_its_service_says() {
    let ours = json!({ "k8s-azure-service": "ns/web" });
    let both = json!({ "k8s-azure-service": "ns/first,ns/web" });
    let label = |label| ("azure-dns-label-name", label);
    let tags = ("azure-pip-tags", "A=c");
    for (there, has, annotations, expected) in [
        (
            json!({ "k8s-azure-service": "ns/first" }),
            None,
            &[][..],
            "k8s-azure-service=ns/first,ns/web",
        ),
        (json!({ "service": "ns/first" }), None, &[], "service=ns/first,ns/web"),
        (json!({ "service": "NS/Web" }), None, &[], "the same"),
        (both.clone(), None, &[], "the same"),
        (
            json!({ "k8s-azure-service": "ns/web", "a": "b" }),
            None,
            &[tags],
            "a=c k8s-azure-service=ns/web",
        ),
        // A user's has nobody's tags, but a name as its Service says.
        (json!({ "a": "b" }), None, &[tags], "the same"),
        (Value::Null, None, &[tags], "the same"),
        (Value::Null, None, &[label("web")], "label web"),
        (Value::Null, Some("Web"), &[label("web")], "the same"),
        (Value::Null, Some("other"), &[label("web")], "label web"),
        (Value::Null, Some("other"), &[], "the same"),
        (Value::Null, Some("other"), &[label("")], ""),
        (
            ours.clone(),
            None,
            &[label("web")],
            "k8s-azure-dns-label-service=ns/web k8s-azure-service=ns/web label web",
        ),
        (
            json!({ "k8s-azure-service": "ns/web", "k8s-azure-dns-label-service": "ns/web" }),
            Some("web"),
            &[label("")],
            "k8s-azure-service=ns/web",
        ),
    ] {
        let found = after(there.clone(), has, annotations);
        assert_eq!(found, Ok(expected.to_owned()), "{there} {has:?} {annotations:?}");
    }
    let anothers = json!({ "k8s-azure-service": "ns/first,ns/web", "k8s-azure-dns-label-service": "ns/first" });
    let refused = after(anothers, Some("first"), &[label("web")]).unwrap_err();
    assert!(
        refused.contains("there is an existing service ns/first consuming the DNS label"),
        "{refused}"
    );
}

#[test]
fn the_last_service_takes_it_along_and_users_keep_theirs() {
    let of = |tags: Value| json!({ "name": "ip", "tags": tags, "properties": { "ipAddress": "20.0.0.4" } });
    let left = |public_ip: &Value| left(public_ip, "ns/web");
    assert_eq!(left(&of(json!({ "k8s-azure-service": "ns/web" }))), Left::Gone);
    assert_eq!(left(&of(json!({ "service": "ns/web" }))), Left::Gone);
    assert_eq!(left(&of(json!({ "k8s-azure-service": "ns/web2" }))), Left::Alone);
    assert_eq!(left(&of(json!({ "a": "ns/web" }))), Left::Alone);
    assert_eq!(left(&of(json!({}))), Left::Alone);
    assert_eq!(left(&json!({ "name": "ip", "properties": {} })), Left::Alone);
    let mut used = of(json!({ "k8s-azure-service": "ns/web" }));
    used["properties"]["ipConfiguration"] = json!({ "id": "/nic" });
    assert_eq!(left(&used), Left::Alone);
    let shared = of(json!({ "k8s-azure-service": "ns/first, ns/web,ns/third",
        "k8s-azure-dns-label-service": "ns/web" }));
    let Left::Changed(rest) = left(&shared) else { panic!("others have it") };
    assert_eq!(rest["tags"], json!({ "k8s-azure-service": "ns/first,ns/third" }));
    let first = of(json!({ "k8s-azure-service": "ns/first,ns/web",
        "k8s-azure-dns-label-service": "ns/first" }));
    let Left::Changed(rest) = left(&first) else { panic!("others have it") };
    assert_eq!(rest["tags"]["k8s-azure-dns-label-service"], "ns/first");
}

#[test]
fn an_address_is_found_however_it_is_written() {
    let all = json!({ "value": [
        { "name": "none", "properties": {} },
        { "name": "four", "properties": { "ipAddress": "20.0.0.4" } },
        { "name": "six", "properties": { "ipAddress": "2001:db8::4" } } ] });
    for (address, expected) in [
        ("20.0.0.4", Some("four")),
        (" 20.0.0.4 ", Some("four")),
        ("2001:DB8:0::4", Some("six")),
        ("20.0.0.5", None),
        ("nonsense", None),
    ] {
        let found = with_address(&all, address).and_then(|it| it["name"].as_str());
        assert_eq!(found, expected, "{address}");
    }
}

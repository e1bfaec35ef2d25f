#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use super::{annotations::PREFIX, *};

pub(super) fn service(extra: &Value) -> Service {
    let mut value = json!({
        "metadata": { "name": "testdeploy", "namespace": "testns",
            "uid": "01234567-89ab-cdef-0123-456789abcdef",
            "annotations": {
                "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
                "service.beta.kubernetes.io/azure-load-balancer-internal-subnet": "ilb-subnet" } },
        "spec": { "type": "LoadBalancer",
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 32709 }] } });
    for (key, part) in extra.as_object().unwrap() {
        for (name, inner) in part.as_object().unwrap() {
            value[key][name] = inner.clone();
        }
    }
    serde_json::from_value(value).unwrap()
}

fn subnet() -> BTreeMap<Family, FrontEnd> {
    let subnet = "/subscriptions/s/…/subnets/ilb-subnet".to_owned();
    [(Family::V4, FrontEnd::Internal { subnet, prefixes: Vec::new() })].into()
}

/// A load balancer of a cluster that reaches the internet through it.
pub(super) const LB: Place<'_> =
    Place { id: "/lb", location: "eastus", outbound: OutboundType::LoadBalancer };

pub(super) fn members(names: &[&str]) -> Members {
    [(Family::V4, names.iter().map(ToString::to_string).collect())].into()
}

#[test]
fn names_are_the_cloud_providers() {
    let wanted = Wanted::of(&service(&json!({})));
    assert_eq!(wanted.base, "a0123456789abcdef0123456789abcde");
    assert_eq!(wanted.front_end_name(Family::V4), "a0123456789abcdef0123456789abcde-ilb-subnet");
    assert_eq!(
        wanted.rule_name(Family::V4, "TCP", 80),
        "a0123456789abcdef0123456789abcde-ilb-subnet-TCP-80"
    );
    let long = Wanted { subnet: Some("s".repeat(80)), ..wanted };
    assert_eq!(long.rule_name(Family::V4, "TCP", 80).len(), LONGEST);
    assert!(long.rule_name(Family::V4, "TCP", 80).ends_with("-TCP-80"));
    assert_eq!(long.front_end_name(Family::V4).len(), LONGEST);
}

#[test]
fn the_articles_service_gets_a_floating_rule_and_a_probe_on_its_node_port() {
    let wanted = Wanted::of(&service(&json!({})));
    let body = with(LB, &Value::Null, &wanted, &subnet(), &members(&["/nic/1"])).unwrap().unwrap();
    let rule = &body["properties"]["loadBalancingRules"][0]["properties"];
    assert_eq!(rule["enableFloatingIP"], true);
    assert_eq!(rule["backendPort"], 80);
    assert_eq!(rule["loadDistribution"], "Default");
    let probe = &body["properties"]["probes"][0]["properties"];
    assert_eq!((&probe["protocol"], &probe["port"]), (&json!("Tcp"), &json!(32709)));
    assert_eq!(with(LB, &body, &wanted, &subnet(), &members(&["/NIC/1"])), Ok(None));
    assert!(with(LB, &body, &wanted, &subnet(), &members(&["/nic/2"])).unwrap().is_some());
}

#[test]
fn a_local_service_is_probed_on_its_health_port() {
    let wanted = Wanted::of(&service(&json!({ "spec": {
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000 } })));
    let body = with(LB, &Value::Null, &wanted, &subnet(), &members(&[])).unwrap().unwrap();
    let probe = &body["properties"]["probes"][0];
    assert_eq!(probe["name"], "a0123456789abcdef0123456789abcde-ilb-subnet-TCP-31000");
    assert_eq!(probe["properties"]["requestPath"], "/healthz");
}

#[test]
fn other_services_parts_stay() {
    let other = json!({ "name": "aother", "properties": {} });
    let current = json!({ "id": "/lb", "properties": { "frontendIPConfigurations": [other] } });
    let wanted = Wanted::of(&service(&json!({})));
    let body = with(LB, &current, &wanted, &subnet(), &members(&[])).unwrap().unwrap();
    assert_eq!(body["properties"]["frontendIPConfigurations"].as_array().unwrap().len(), 2);
    let rest = without(&body, &wanted).unwrap();
    assert_eq!(rest["properties"]["frontendIPConfigurations"], json!([other]));
    assert!(!is_unused(&rest));
    assert_eq!(without(&rest, &wanted), None);
}

/// A Service of these families with floating IP, public unless `internal`.
fn of_families(families: &[&str], internal: bool) -> Wanted {
    let annotations = if internal {
        json!({ "service.beta.kubernetes.io/azure-load-balancer-internal": "true" })
    } else {
        json!({})
    };
    Wanted::of(&service(&json!({
        "metadata": { "annotations": annotations }, "spec": { "ipFamilies": families } })))
}

/// The body of a load balancer of a Service, with nodes of both families.
fn body_of(wanted: &Wanted) -> Value {
    let front_end = |family: &Family| {
        let public_ip = format!("/pip/{family:?}");
        let address = match family {
            Family::V4 => "20.0.0.4".parse().unwrap(),
            Family::V6 => "2001:db8::4".parse().unwrap(),
        };
        let subnet = "/vnet/subnets/s".to_owned();
        let front_end = if wanted.internal {
            FrontEnd::Internal { subnet, prefixes: Vec::new() }
        } else {
            FrontEnd::Public { public_ip, address }
        };
        (*family, front_end)
    };
    let front_ends = wanted.families.iter().map(front_end).collect();
    let members: Members =
        [(Family::V4, vec!["/n/4".to_owned()]), (Family::V6, vec!["/n/6".to_owned()])].into();
    let body = with(LB, &Value::Null, wanted, &front_ends, &members).unwrap().unwrap();
    assert_eq!(
        with(LB, &body, wanted, &front_ends, &members),
        Ok(None),
        "a second time nothing is to be done"
    );
    body
}

/// The rules of a body, a line each: name, front end, pool, probe, port, floating IP.
fn lines(body: &Value) -> Vec<String> {
    let last = |it: &Value| it["id"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let all = |kind: &str| body["properties"][kind].as_array().unwrap().clone();
    let rule = |rule: Value| {
        let it = &rule["properties"];
        let floating = if it["enableFloatingIP"] == true { "floating" } else { "translated" };
        format!(
            "{} {} {} {} {} {floating}",
            rule["name"].as_str().unwrap(),
            last(&it["frontendIPConfiguration"]),
            last(&it["backendAddressPool"]),
            last(&it["probe"]),
            it["backendPort"],
        )
    };
    let mut lines: Vec<String> = all("loadBalancingRules").into_iter().map(rule).collect();
    for pool in all("backendAddressPools") {
        let members = &pool["properties"]["backendIPConfigurations"];
        lines.push(format!("{} {members}", pool["name"].as_str().unwrap()));
    }
    let base = "a0123456789abcdef0123456789abcde";
    lines.into_iter().map(|line| line.replace(base, "BASE")).collect()
}

#[test]
fn every_family_has_parts_of_its_own() {
    let dual = of_families(&["IPv6", "IPv4"], false);
    assert_eq!(dual.families, [Family::V4, Family::V6], "whichever is first in the Service");
    assert_eq!(
        lines(&body_of(&dual)),
        [
            "BASE-TCP-80 BASE kubernetes BASE-TCP-80 80 floating",
            "BASE-TCP-80-IPv6 BASE-IPv6 kubernetes-IPv6 BASE-TCP-80-IPv6 80 floating",
            "kubernetes [{\"id\":\"/n/4\"}]",
            "kubernetes-IPv6 [{\"id\":\"/n/6\"}]",
        ]
    );
    let six = of_families(&["IPv6"], false);
    assert_eq!(
        lines(&body_of(&six)),
        [
            "BASE-TCP-80 BASE kubernetes-IPv6 BASE-TCP-80 80 floating",
            "kubernetes-IPv6 [{\"id\":\"/n/6\"}]",
        ]
    );
    assert_eq!(six.choice(Family::V6), dual.choice(Family::V4));
    // Without floating IP inside, by the node's port.
    let internal = body_of(&of_families(&["IPv4", "IPv6"], true));
    assert_eq!(
        lines(&internal)[..2],
        [
            "BASE-TCP-80 BASE kubernetes BASE-TCP-80 80 floating",
            "BASE-TCP-80-IPv6 BASE-IPv6 kubernetes-IPv6 BASE-TCP-80-IPv6 32709 translated",
        ]
    );
    let front_ends = &internal["properties"]["frontendIPConfigurations"];
    assert_eq!(front_ends[1]["properties"]["privateIPAddressVersion"], "IPv6");
    // Everything goes, of both.
    let rest = without(&internal, &dual).unwrap();
    assert!(is_unused(&rest));
    assert_eq!(rest["properties"]["loadBalancingRules"], json!([]));
}

#[test]
fn addresses_are_asked_for_by_family() {
    let asking = |families: Value, annotations: Value, ip: Value| {
        let annotations: BTreeMap<String, Value> = annotations
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value.clone()))
            .collect();
        let wanted = Wanted::of(&service(&json!({
            "metadata": { "annotations": annotations },
            "spec": { "ipFamilies": families, "loadBalancerIP": ip } })));
        let asked = [Family::V4, Family::V6].map(|family| wanted.addresses.get(&family).cloned());
        asked.map(Option::unwrap_or_default).join(" ")
    };
    let (both, six) = (json!(["IPv4", "IPv6"]), json!(["IPv6"]));
    let annotated =
        json!({ "azure-load-balancer-ipv4": "10.0.0.9", "azure-load-balancer-ipv6": "fd00::9" });
    for (families, annotations, ip, expected) in [
        (&both, &annotated, Value::Null, "10.0.0.9 fd00::9"),
        (&six, &annotated, Value::Null, " fd00::9"),
        (&both, &json!({}), json!("fd00::8"), " fd00::8"),
        (&both, &json!({}), json!("10.0.0.8"), "10.0.0.8 "),
        (&six, &json!({}), json!("10.0.0.8"), " "),
        (&both, &json!({}), json!("nonsense"), "nonsense "),
    ] {
        let found = asking(families.clone(), annotations.clone(), ip);
        assert_eq!(found, expected, "{families} {annotations}");
    }
}

/// A Service is a way in. It is a way out, too, only where load balancers are.
#[test]
fn rules_are_no_way_out_where_the_cluster_has_none_or_another() {
    let wanted = of_families(&["IPv4"], false);
    let address = "20.0.0.4".parse().unwrap();
    let public = FrontEnd::Public { public_ip: "/pip".to_owned(), address };
    let front_ends = [(Family::V4, public)].into();
    let disabled = |current: &Value, outbound: OutboundType| {
        let body = with(Place { outbound, ..LB }, current, &wanted, &front_ends, &members(&["/n"]));
        body.unwrap().map(|body| {
            let rule = &body["properties"]["loadBalancingRules"][0];
            (rule["properties"]["disableOutboundSnat"].as_bool().unwrap(), body)
        })
    };
    let open = disabled(&Value::Null, OutboundType::LoadBalancer).unwrap();
    assert!(!open.0);
    for outbound in [
        OutboundType::ManagedNatGateway,
        OutboundType::UserAssignedNatGateway,
        OutboundType::UserDefinedRouting,
        OutboundType::None,
        OutboundType::Block,
    ] {
        assert!(disabled(&Value::Null, outbound).unwrap().0, "{outbound:?}");
        // A cluster that migrates takes its Services along.
        let closed = disabled(&open.1, outbound).unwrap();
        assert!(closed.0, "{outbound:?}");
        assert!(disabled(&closed.1, outbound).is_none(), "{outbound:?}");
    }
}

#[test]
fn a_probe_that_nobody_wants_any_more_goes() {
    let probed = Wanted::of(&service(&json!({})));
    let body = with(LB, &Value::Null, &probed, &subnet(), &members(&[])).unwrap().unwrap();
    let mut unprobed = service(&json!({}));
    unprobed.annotations_mut().insert(format!("{PREFIX}port_80_no_probe_rule"), "true".to_owned());
    let unprobed = Wanted::of(&unprobed);
    let mut body = with(LB, &body, &unprobed, &subnet(), &members(&[])).unwrap().unwrap();
    assert_eq!(body["properties"]["probes"], json!([]));
    let rule = body["properties"]["loadBalancingRules"][0]["properties"].as_object_mut().unwrap();
    assert_eq!(rule["probe"], Value::Null);
    // Azure leaves out what is null.
    rule.remove("probe");
    assert_eq!(with(LB, &body, &unprobed, &subnet(), &members(&[])), Ok(None));
}

#[test]
fn a_change_of_nodes_is_told_from_any_other() {
    let wanted = Wanted::of(&service(&json!({})));
    let to = |current: &Value, wanted: &Wanted, names: &[&str]| {
        with(LB, current, wanted, &subnet(), &members(names)).unwrap().unwrap()
    };
    let body = to(&Value::Null, &wanted, &["/n/1"]);
    assert!(!is_of_members(&Value::Null, &body));
    assert!(is_of_members(&body, &to(&body, &wanted, &["/n/1", "/n/2"])));
    assert!(is_of_members(&body, &to(&body, &wanted, &[])));
    let sticky = Wanted { load_distribution: "SourceIP", ..wanted };
    assert!(!is_of_members(&body, &to(&body, &sticky, &["/n/1", "/n/2"])));
}

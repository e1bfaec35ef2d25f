#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;

use super::{
    super::{
        annotations::PREFIX,
        is_unused,
        tests::{LB, members, service},
        with, without,
    },
    *,
};

/// What an internal front end says when the Service shows and asks for what a row says: address and allocation.
/// `there` is the address of a front end of its name, if there is one, in the subnet that is wanted or another.
fn internal_front_end(shown: &str, asked: &Value, there: Option<(&str, &str)>) -> String {
    let wanted = Wanted::of(&service(&json!({
        "spec": { "loadBalancerIP": asked },
        "status": { "loadBalancer": { "ingress": [{ "ip": shown }] } } })));
    let front_end = FrontEnd::Internal {
        subnet: "/subnets/ilb".to_owned(),
        prefixes: vec!["10.30.0.0/24".parse().unwrap()],
    };
    let current = there.map_or(Value::Null, |(subnet, address)| {
        json!({ "properties": { "frontendIPConfigurations": [{
            "name": wanted.front_end_name(Family::V4), "properties": {
                "subnet": { "id": subnet }, "privateIPAddress": address,
                "privateIPAllocationMethod": "Dynamic" } }] } })
    });
    let found = part(&current, &wanted, Family::V4, &front_end);
    let text = |key: &str| found["properties"][key].as_str().unwrap_or("any").to_owned();
    format!("{} {}", text("privateIPAllocationMethod"), text("privateIPAddress"))
}

#[test]
fn an_address_is_asked_for_where_it_can_be_had() {
    let none = Value::Null;
    for (shown, asked, there, expected) in [
        ("10.30.0.9", &none, None, "Static 10.30.0.9"),
        // Of the subnet before, or of the time when it was public.
        ("10.20.0.9", &none, None, "Dynamic any"),
        ("20.1.1.9", &none, None, "Dynamic any"),
        ("10.30.0.9", &json!("10.30.0.7"), None, "Static 10.30.0.7"),
        // What nobody can have is Azure's to refuse.
        ("10.30.0.9", &json!("10.40.0.7"), None, "Static 10.40.0.7"),
        // What is there stays.
        ("10.30.0.9", &none, Some(("/subnets/ILB", "10.30.0.8")), "Dynamic 10.30.0.8"),
        (
            "10.30.0.9",
            &json!("10.30.0.8"),
            Some(("/subnets/ilb", "10.30.0.8")),
            "Dynamic 10.30.0.8",
        ),
        // But for another address, or in another subnet.
        ("10.30.0.8", &json!("10.30.0.7"), Some(("/subnets/ilb", "10.30.0.8")), "Static 10.30.0.7"),
        ("10.20.0.9", &none, Some(("/subnets/aks", "10.20.0.9")), "Dynamic any"),
        ("10.30.0.9", &none, Some(("/subnets/aks", "10.20.0.9")), "Static 10.30.0.9"),
        ("fd00::9", &none, Some(("/subnets/ilb", "fd00::9")), "Dynamic any"),
    ] {
        let found = internal_front_end(shown, asked, there);
        assert_eq!(found, expected, "{shown} {asked} {there:?}");
    }
}

/// A Service of a name, whose UID is that letter again and again, with a port and, if asked for, an address.
fn one(letter: char, internal: bool, port: i32, address: Option<&str>) -> Wanted {
    let mut annotations: BTreeMap<String, String> = BTreeMap::new();
    if internal {
        annotations.insert(format!("{PREFIX}azure-load-balancer-internal"), "true".to_owned());
    }
    if let Some(address) = address {
        annotations.insert(format!("{PREFIX}azure-load-balancer-ipv4"), address.to_owned());
    }
    let uid = letter.to_string().repeat(32);
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": letter, "namespace": "ns", "uid": uid, "annotations": annotations },
        "spec": { "ports": [{ "name": "web", "port": port, "nodePort": 30000 + port }] } }))
    .unwrap();
    Wanted::of(&service)
}

/// The load balancer as Azure shows it after a Service has been given its part, addresses and all.
fn after(current: &Value, wanted: &Wanted, front_end: &FrontEnd) -> Value {
    let front_ends = [(Family::V4, front_end.clone())].into();
    let mut body = with(LB, current, wanted, &front_ends, &members(&["/n"])).unwrap().unwrap();
    for part in body["properties"][KIND].as_array_mut().unwrap() {
        let properties = &mut part["properties"];
        if !properties["subnet"].is_null() && properties["privateIPAddress"].is_null() {
            properties["privateIPAddress"] = json!("10.30.0.4");
        }
    }
    assert_eq!(
        with(LB, &body, wanted, &front_ends, &members(&["/n"])),
        Ok(None),
        "nothing is left to do"
    );
    body
}

/// Front ends and rules, a line each, UIDs by their letter.
fn lines(body: &Value) -> Vec<String> {
    let short = |name: &Value| {
        let name = name.as_str().unwrap();
        let letters: String = name.trim_start_matches('a').chars().take(1).collect();
        let end = name.rsplit_once('-').map_or(String::new(), |(_, port)| format!(":{port}"));
        if name.len() < 32 { name.to_owned() } else { format!("{letters}{end}") }
    };
    let front_ends = all(body, KIND).map(|part| {
        let address = private_address(part).map(|address| address.to_string());
        let public = part["properties"]["publicIPAddress"]["id"].as_str().map(str::to_owned);
        format!("{} {}", short(&part["name"]), address.or(public).unwrap())
    });
    let rules = all(body, "loadBalancingRules").map(|rule| {
        let at = rule["properties"]["frontendIPConfiguration"]["id"].as_str().unwrap();
        let at = short(&json!(at.rsplit('/').next().unwrap()));
        let snat =
            if rule["properties"]["disableOutboundSnat"] == true { " no way out" } else { "" };
        format!("{} at {at}{snat}", short(&rule["name"]))
    });
    front_ends.chain(rules).collect()
}

fn subnet() -> FrontEnd {
    FrontEnd::Internal {
        subnet: "/subnets/ilb".to_owned(),
        prefixes: vec!["10.30.0.0/24".parse().unwrap()],
    }
}

fn public(id: &str) -> FrontEnd {
    FrontEnd::Public { public_ip: id.to_owned(), address: "20.0.0.4".parse().unwrap() }
}

#[test]
fn services_that_ask_for_one_address_have_one_front_end() {
    let (b, c) = (one('b', true, 80, Some("10.30.0.9")), one('c', true, 81, Some("10.30.0.9")));
    let body = after(&Value::Null, &b, &subnet());
    let body = after(&body, &c, &subnet());
    assert_eq!(lines(&body), ["b 10.30.0.9", "b:80 at b", "c:81 at b"]);
    assert_eq!(address(&body, &c, Family::V4, &subnet()), Some("10.30.0.9".parse().unwrap()));
    // It stays until nobody has it, whoever goes first.
    let rest = without(&body, &b).unwrap();
    assert_eq!(lines(&rest), ["b 10.30.0.9", "c:81 at b"]);
    let front_ends = [(Family::V4, subnet())].into();
    assert_eq!(with(LB, &rest, &c, &front_ends, &members(&["/n"])), Ok(None));
    assert!(is_unused(&without(&rest, &c).unwrap()));
    let rest = without(&body, &c).unwrap();
    assert_eq!(lines(&rest), ["b 10.30.0.9", "b:80 at b"]);
    // One that asks for none has its own.
    let body = after(&rest, &one('d', true, 80, None), &subnet());
    assert_eq!(lines(&body), ["b 10.30.0.9", "d 10.30.0.4", "b:80 at b", "d:80 at d"]);
    // One that had its own leaves it for the other's; one that had the other's for its own.
    let body = after(&body, &one('d', true, 82, Some("10.30.0.9")), &subnet());
    assert_eq!(lines(&body), ["b 10.30.0.9", "b:80 at b", "d:82 at b"]);
    let body = after(&body, &one('d', true, 82, Some("10.30.0.7")), &subnet());
    assert_eq!(lines(&body), ["b 10.30.0.9", "d 10.30.0.7", "b:80 at b", "d:82 at d"]);
}

#[test]
fn services_on_one_public_ip_have_one_front_end() {
    let (b, c) = (one('b', false, 80, None), one('c', false, 81, Some("20.0.0.4")));
    let body = after(&Value::Null, &b, &public("/pip/b"));
    let body = after(&body, &c, &public("/PIP/b"));
    assert_eq!(lines(&body), ["b /pip/b", "b:80 at b", "c:81 at b"]);
    let rest = without(&body, &b).unwrap();
    assert_eq!(lines(&rest), ["b /pip/b", "c:81 at b"]);
    assert!(is_unused(&without(&rest, &c).unwrap()));
}

/// AKS's own front end has an outbound rule: a Service may be at it, does not take it along, and is no way out itself.
#[test]
fn the_way_out_stays() {
    let mine = json!({ "name": "mine", "properties": { "publicIPAddress": { "id": "/pip/out" } } });
    let rule = json!({ "name": "aksOutboundRule", "properties": {
        "frontendIPConfigurations": [{ "id": "/lb/frontendIPConfigurations/Mine" }] } });
    let current = json!({ "id": "/lb", "properties": { KIND: [mine], "outboundRules": [rule] } });
    let b = one('b', false, 80, Some("20.0.0.4"));
    let body = after(&current, &b, &public("/pip/out"));
    assert_eq!(lines(&body), ["mine /pip/out", "b:80 at mine no way out"]);
    assert_eq!(lines(&without(&body, &b).unwrap()), ["mine /pip/out"]);
    // One that somebody's inbound NAT rule is of stays, too.
    let nat = json!({ "name": "ssh", "properties": { "protocol": "Tcp", "frontendPort": 22,
        "frontendIPConfiguration": { "id": "/lb/frontendIPConfigurations/mine" } } });
    let current = json!({ "id": "/lb", "properties": { KIND: [mine], "inboundNatRules": [nat] } });
    let body = after(&current, &b, &public("/pip/out"));
    assert_eq!(lines(&without(&body, &b).unwrap()), ["mine /pip/out"]);
    let conflict = check_conflicts(&current, &one('b', false, 22, None), "mine").unwrap_err();
    assert!(
        conflict.contains("an existing inbound NAT rule ssh with the same protocol Tcp"),
        "{conflict}"
    );
}

#[test]
fn one_port_is_one_services() {
    let (b, c) = (one('b', true, 80, Some("10.30.0.9")), one('c', true, 80, Some("10.30.0.9")));
    let body = after(&Value::Null, &b, &subnet());
    let front_ends = [(Family::V4, subnet())].into();
    assert_eq!(
        with(LB, &body, &c, &front_ends, &members(&["/n"])),
        Err(format!(
            "checkLoadBalancerResourcesConflicts: service port web is trying to consume the port 80 which is being \
             referenced by an existing loadBalancing rule {base}-TCP-80 with the same protocol Tcp and frontend IP \
             config with ID /lb/frontendIPConfigurations/{base}",
            base = b.base
        ))
    );
    // It is not its own rule that is in the way.
    assert_eq!(with(LB, &body, &b, &front_ends, &members(&["/n"])), Ok(None));
}

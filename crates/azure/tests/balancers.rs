//! Load balancers and public IPs at the door: what comes back as it was put, and what is refused there.
#![allow(clippy::unwrap_used, reason = "a test that panics says where")]

mod lab;

use lab::{Lab, network, subnet};
use serde_json::{Value, json};

fn standard(properties: &Value) -> Value {
    json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": properties })
}

/// Load balancer `lb` with an internal front end, a pool, and these parts besides.
fn balancer(parts: Value) -> Value {
    let mut properties = json!({
        "frontendIPConfigurations": [{ "name": "fe", "properties": { "subnet": { "id": subnet("s") } } }],
        "backendAddressPools": [{ "name": "be" }],
    });
    let Value::Object(parts) = parts else { panic!("{parts}") };
    properties.as_object_mut().unwrap().extend(parts);
    standard(&properties)
}

fn part(kind: &str, name: &str) -> Value {
    json!({ "id": format!("{}/{kind}/{name}", network("loadBalancers/lb")) })
}

#[tokio::test]
async fn how_members_are_chosen_comes_back_as_it_was_put() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let id = network("loadBalancers/lb");
    for (put, shown) in [
        (json!("SourceIPProtocol"), "SourceIPProtocol"),
        (json!("sourceip"), "SourceIP"),
        (json!("Default"), "Default"),
        (Value::Null, "Default"),
    ] {
        let rule = json!({ "frontendIPConfiguration": part("frontendIPConfigurations", "fe"),
            "backendAddressPool": part("backendAddressPools", "be"),
            "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "loadDistribution": put });
        let body = balancer(json!({ "loadBalancingRules": [{ "name": "r", "properties": rule }] }));
        let made = lab.put(&id, body).await;
        let rule = &made["properties"]["loadBalancingRules"][0]["properties"];
        assert_eq!(rule["loadDistribution"], shown);
        // What is given back is taken.
        assert_eq!(
            &lab.put(&id, made.clone()).await["properties"]["loadBalancingRules"][0]["properties"],
            rule
        );
    }
}

#[tokio::test]
async fn parts_that_cannot_be_are_refused() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let public_ip = network("publicIPAddresses/p");
    lab.put(&public_ip, standard(&json!({}))).await;
    let id = network("loadBalancers/lb");
    let probe =
        |properties: Value| json!({ "probes": [{ "name": "p", "properties": properties }] });
    let front = |properties: Value| json!({ "frontendIPConfigurations": [{ "name": "fe", "properties": properties }] });
    for (parts, code) in [
        (probe(json!({ "protocol": "Tcp", "port": 80, "probeThreshold": 0 })), "InvalidParameter"),
        (
            probe(
                json!({ "protocol": "Tcp", "port": 80, "probeThreshold": 1, "numberOfProbes": 0 }),
            ),
            "InvalidParameter",
        ),
        (
            probe(json!({ "protocol": "Tcp", "port": 80, "intervalInSeconds": 4 })),
            "InvalidParameter",
        ),
        (probe(json!({ "protocol": "Http", "port": 80 })), "InvalidParameter"),
        (probe(json!({ "protocol": "Tcp", "port": 0 })), "InvalidParameter"),
        (front(json!({})), "FrontendIPConfigHasNoSubnetOrPublicIP"),
        (
            front(
                json!({ "subnet": { "id": subnet("s") }, "publicIPAddress": { "id": public_ip } }),
            ),
            "FrontendIPConfigHasBothSubnetAndPublicIP",
        ),
    ] {
        let shown = parts.to_string();
        assert_eq!(lab.refused(&id, balancer(parts)).await, (400, code.to_owned()), "{shown}");
    }
    let parts =
        probe(json!({ "protocol": "Tcp", "port": 80, "numberOfProbes": 2, "requestPath": "" }));
    let made = lab.put(&id, balancer(parts)).await;
    assert_eq!(made["properties"]["probes"][0]["properties"]["probeThreshold"], 2);
}

#[tokio::test]
async fn a_public_ip_with_a_label_has_a_name() {
    let lab = Lab::new().await;
    let (p, q) = (network("publicIPAddresses/p"), network("publicIPAddresses/q"));
    let labelled = |label: &str| {
        standard(&json!({ "idleTimeoutInMinutes": 30, "dnsSettings": { "domainNameLabel": label,
            "reverseFqdn": "www.contoso.com." } }))
    };
    let made = lab.put(&p, labelled("web")).await;
    let dns = json!({ "domainNameLabel": "web", "fqdn": "web.eastus.cloudapp.azure.com",
        "reverseFqdn": "www.contoso.com." });
    assert_eq!(made["properties"]["dnsSettings"], dns);
    assert_eq!(made["properties"]["idleTimeoutInMinutes"], 30);
    let again = lab.put(&p, made.clone()).await;
    assert_eq!(again["properties"]["dnsSettings"], dns, "what is given back is taken");

    assert_eq!(lab.refused(&q, labelled("web")).await, (400, "DnsRecordInUse".to_owned()));
    assert_eq!(lab.refused(&q, labelled("Web")).await, (400, "InvalidDomainNameLabel".to_owned()));
    let scoped = json!({ "dnsSettings": { "domainNameLabel": "app", "domainNameLabelScope": "TenantReuse" } });
    assert_eq!(lab.refused(&q, standard(&scoped)).await, (400, "NotSupported".to_owned()));
    for minutes in [3, 31] {
        let body = standard(&json!({ "idleTimeoutInMinutes": minutes }));
        assert_eq!(lab.refused(&q, body).await, (400, "InvalidParameter".to_owned()), "{minutes}");
    }
    // `az network public-ip create` without --dns-name.
    let made = lab.put(&q, standard(&json!({ "dnsSettings": { "domainNameLabel": "" } }))).await;
    assert_eq!(made["properties"]["idleTimeoutInMinutes"], 4);
    assert_eq!(made["properties"].get("dnsSettings"), None);
    lab.put(&p, standard(&json!({}))).await;
    lab.put(&q, labelled("web")).await;
}

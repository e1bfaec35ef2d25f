//! Data planes, network policies and Advanced Container Networking Services: what is sent of them, and what is shown.

mod lab;

use lab::{GROUP, Lab, cluster, cluster_body};
use serde_json::{Value, json};

/// The newest version that `az` speaks.
const NOW: &str = "2026-06-01";

/// An overlay profile with more in it.
fn overlay(more: Value) -> Value {
    with(json!({ "networkPlugin": "azure", "networkPluginMode": "overlay" }), more)
}

/// One object with another's properties.
fn with(mut object: Value, more: Value) -> Value {
    let (Value::Object(to), Value::Object(from)) = (&mut object, more) else {
        panic!("both are objects")
    };
    to.extend(from);
    object
}

/// The path of cluster `c` in an api-version.
fn at(version: &str) -> String {
    cluster(&format!("c?api-version={version}"))
}

/// What the profile of a new cluster says of these properties when it is asked for like this; or the refusal's code and target.
async fn asked(version: &str, profile: Value, shown: &[&str]) -> Result<Value, String> {
    let lab = Lab::new().await;
    let answer = lab.send("PUT", &at(version), Some(cluster_body(profile, json!({})))).await;
    if answer.status >= 400 {
        return Err(format!("{} {}", answer.code(), answer.body["target"].as_str().unwrap_or("")));
    }
    let profile = &lab.get(&at(version)).await.body["properties"]["networkProfile"];
    let shown = shown.iter().map(|property| ((*property).to_owned(), profile[property].clone()));
    Ok(Value::Object(shown.filter(|(_, value)| !value.is_null()).collect()))
}

#[tokio::test]
async fn each_api_version_has_its_own_word() {
    let new = |text: &str| overlay(json!({ "networkDataplane": text }));
    let old = |text: &str| overlay(json!({ "ebpfDataplane": text }));
    let none = || overlay(json!({}));
    let by_default = json!({ "networkDataplane": "azure" });
    let says_none = with(by_default.clone(), json!({ "networkPolicy": "none" }));
    let cilium = json!({ "networkDataplane": "cilium", "networkPolicy": "cilium" });
    let unknown = |name: &str| Err(format!("UnmarshalError networkProfile.{name}"));
    for (version, profile, expected) in [
        (NOW, none(), Ok(says_none.clone())),
        (NOW, new("cilium"), Ok(cilium.clone())),
        (NOW, new("Cilium"), Ok(cilium.clone())),
        (NOW, new("azure"), Ok(says_none.clone())),
        (NOW, new(""), Ok(says_none.clone())),
        (NOW, new("calico"), Err("InvalidParameter networkProfile.networkDataplane".to_owned())),
        (NOW, old("cilium"), unknown("ebpfDataplane")),
        ("2024-05-01", none(), Ok(says_none.clone())),
        ("2024-02-01", none(), Ok(by_default.clone())),
        ("2023-08-02-preview", none(), Ok(says_none.clone())),
        ("2023-08-01", none(), Ok(by_default.clone())),
        ("2023-08-01", new("cilium"), Ok(cilium.clone())),
        ("2023-02-02-preview", new("cilium"), Ok(cilium)),
        ("2023-02-02-preview", old("cilium"), unknown("ebpfDataplane")),
        ("2023-02-01", new("cilium"), unknown("networkDataplane")),
        ("2023-02-01", none(), Ok(json!({}))),
        ("2023-01-02-preview", new("cilium"), unknown("networkDataplane")),
        ("2023-01-02-preview", none(), Ok(json!({}))),
        (
            "2023-01-02-preview",
            old("cilium"),
            Ok(json!({ "ebpfDataplane": "cilium", "networkPolicy": "cilium" })),
        ),
        (
            "2022-09-02-preview",
            old("cilium"),
            Ok(json!({ "ebpfDataplane": "cilium", "networkPolicy": "cilium" })),
        ),
        ("2022-11-01", old("cilium"), unknown("ebpfDataplane")),
        ("2022-08-03-preview", old("cilium"), unknown("ebpfDataplane")),
        ("whatever", none(), Ok(says_none)),
    ] {
        let properties = ["networkDataplane", "ebpfDataplane", "networkPolicy"];
        assert_eq!(
            asked(version, profile.clone(), &properties).await,
            expected,
            "{version} {profile}"
        );
    }
}

#[tokio::test]
async fn plugins_and_engines() {
    let code = |code: &str, property: &str| Err(format!("{code} networkProfile.{property}"));
    let not_supported = code("NetworkPolicyNotSupported", "networkPolicy");
    let needs_its_own = code("BadRequest", "networkPolicy");
    let needs_azure = code("BadRequest", "networkPlugin");
    let plugin = |plugin: &str, more: Value| with(json!({ "networkPlugin": plugin }), more);
    let cilium = || json!({ "networkDataplane": "cilium" });
    for (profile, expected) in [
        (plugin("azure", cilium()), Ok(json!({ "networkPolicy": "cilium" }))),
        (plugin("kubenet", cilium()), needs_azure.clone()),
        (plugin("none", cilium()), needs_azure),
        (
            plugin("kubenet", json!({ "networkPluginMode": "overlay" })),
            code("UnsupportedNetworkPluginModeWithNetworkPlugin", "networkPluginMode"),
        ),
        // As Terraform sends it.
        (
            plugin("kubenet", json!({ "networkDataplane": "azure", "networkPolicy": "" })),
            Ok(json!({ "networkPolicy": "none" })),
        ),
        (overlay(json!({ "networkPolicy": "cilium" })), not_supported.clone()),
        (overlay(json!({ "networkPolicy": "calico" })), not_supported.clone()),
        (overlay(json!({ "networkPolicy": "azure" })), not_supported.clone()),
        (overlay(json!({ "networkPolicy": "weave" })), code("InvalidParameter", "networkPolicy")),
        (overlay(with(cilium(), json!({ "networkPolicy": "calico" }))), needs_its_own.clone()),
        (overlay(with(cilium(), json!({ "networkPolicy": "azure" }))), needs_its_own.clone()),
        (overlay(with(cilium(), json!({ "networkPolicy": "none" }))), needs_its_own),
        (
            plugin("kubenet", json!({ "networkPolicy": "azure" })),
            code("NetworkPolicyAzureNotSupportedForKubenet", "networkPolicy"),
        ),
        (
            plugin("azure", with(cilium(), json!({ "networkMode": "bridge" }))),
            code("NetworkModeNotSupported", "networkMode"),
        ),
        (
            overlay(with(cilium(), json!({ "ipFamilies": ["IPv4", "IPv6"] }))),
            Ok(json!({ "networkPolicy": "cilium" })),
        ),
        (
            plugin("azure", with(cilium(), json!({ "ipFamilies": ["IPv4", "IPv6"] }))),
            code("UnsupportedDualStackNetworkPlugin", "ipFamilies"),
        ),
    ] {
        let answer = asked(NOW, profile.clone(), &["networkPolicy"]).await;
        assert_eq!(answer, expected, "{profile}");
    }
}

/// `az aks update`: the whole cluster as it was shown, with what is asked in it.
#[tokio::test]
async fn a_living_cluster_gets_cilium() {
    let lab = Lab::new().await;
    let mut shown = lab.put(&at(NOW), cluster_body(overlay(json!({})), json!({}))).await;
    let profile = &mut shown["properties"]["networkProfile"];
    assert_eq!(profile["networkPolicy"], "none");
    profile["networkDataplane"] = json!("cilium");
    let mut shown = lab.put(&at(NOW), shown).await;
    let profile = &shown["properties"]["networkProfile"];
    assert_eq!(
        (&profile["networkDataplane"], &profile["networkPolicy"]),
        (&json!("cilium"), &json!("cilium"))
    );
    assert_eq!(lab.put(&at(NOW), shown.clone()).await["properties"], shown["properties"]);
    let refused = |property: &str, value: &str| {
        let mut body = shown.clone();
        body["properties"]["networkProfile"][property] = json!(value);
        let lab = &lab;
        async move { lab.refused(&at(NOW), body).await.1 }
    };
    assert_eq!(refused("networkDataplane", "azure").await, "PropertyChangeNotAllowed");
    assert_eq!(refused("networkPolicy", "none").await, "BadRequest");
    assert_eq!(refused("networkPolicy", "calico").await, "BadRequest");
    // A client of an older version does not know what it is shown, and leaves it out.
    let profile = shown["properties"]["networkProfile"].as_object_mut().unwrap();
    profile.remove("networkDataplane");
    profile.remove("networkPolicy");
    let after = lab.put(&at("2023-02-01"), shown).await;
    assert_eq!(after["properties"]["networkProfile"]["networkPolicy"], "cilium");
}

#[tokio::test]
async fn a_template_speaks_its_own_version() {
    let lab = Lab::new().await;
    let deploy = |name: &str, version: &str| {
        let profile = overlay(json!({ "ebpfDataplane": "cilium" }));
        let mut resource = cluster_body(profile, json!({}));
        resource["type"] = json!("Microsoft.ContainerService/managedClusters");
        resource["apiVersion"] = json!(version);
        resource["name"] = json!(name);
        let template = json!({ "contentVersion": "1.0.0.0", "resources": [resource],
            "variables": { "old": "2023-01-02-preview" } });
        let path = format!(
            "{GROUP}/providers/Microsoft.Resources/deployments/{name}?api-version=2024-11-01"
        );
        let body = json!({ "properties": { "mode": "incremental", "template": template } });
        let lab = &lab;
        async move {
            lab.send("PUT", &path, Some(body)).await;
            lab.settle();
            lab.get(&path).await.body["properties"].clone()
        }
    };
    assert_eq!(deploy("c", "[variables('old')]").await["provisioningState"], "Succeeded");
    let shown = lab.get(&at(NOW)).await.body;
    assert_eq!(shown["properties"]["networkProfile"]["networkDataplane"], "cilium");
    let failed = deploy("d", NOW).await;
    assert_eq!(failed["provisioningState"], "Failed");
    assert!(failed["error"].to_string().contains("UnmarshalError"), "{failed}");
}

#[tokio::test]
async fn advanced_networking() {
    let advanced = |advanced: Value| {
        overlay(json!({ "networkDataplane": "cilium", "advancedNetworking": advanced }))
    };
    let shown = |observability: bool, security: bool, policies: &str| {
        Ok(json!({ "advancedNetworking": {
            "enabled": observability || security,
            "observability": { "enabled": observability },
            "security": { "enabled": security, "advancedNetworkPolicies": policies } } }))
    };
    let refused = |code: &str, property: &str| {
        Err(format!("{code} networkProfile.advancedNetworking{property}"))
    };
    let on = json!({ "enabled": true });
    let off = json!({ "enabled": false });
    let without_cilium = |advanced: Value| overlay(json!({ "advancedNetworking": advanced }));
    for (profile, expected) in [
        (overlay(json!({})), Ok(json!({}))),
        (advanced(off.clone()), shown(false, false, "None")),
        (without_cilium(off.clone()), shown(false, false, "None")),
        (
            json!({ "networkPlugin": "kubenet", "advancedNetworking": off }),
            shown(false, false, "None"),
        ),
        // `--enable-acns`.
        (advanced(on.clone()), shown(true, true, "FQDN")),
        // `--disable-acns-security`, `--disable-acns-observability`, both.
        (advanced(json!({ "enabled": true, "security": off })), shown(true, false, "None")),
        (advanced(json!({ "enabled": true, "observability": off })), shown(false, true, "FQDN")),
        (
            advanced(json!({ "enabled": true, "observability": off, "security": off })),
            refused("InvalidParameter", ""),
        ),
        // `--acns-advanced-networkpolicies`.
        (
            advanced(json!({ "enabled": true, "security": { "advancedNetworkPolicies": "FQDN" } })),
            shown(true, true, "FQDN"),
        ),
        (
            advanced(json!({ "enabled": true, "security": { "advancedNetworkPolicies": "None" } })),
            shown(true, true, "None"),
        ),
        (
            advanced(json!({ "enabled": true, "security": { "advancedNetworkPolicies": "L7" } })),
            refused("NotSupported", ".security.advancedNetworkPolicies"),
        ),
        (
            advanced(json!({ "enabled": true, "security": { "advancedNetworkPolicies": "L3" } })),
            refused("InvalidParameter", ".security.advancedNetworkPolicies"),
        ),
        (
            advanced(
                json!({ "enabled": true, "security": { "transitEncryption": { "type": "WireGuard" } } }),
            ),
            refused("NotSupported", ".security.transitEncryption.type"),
        ),
        (
            advanced(json!({ "enabled": true, "performance": { "accelerationMode": "BpfVeth" } })),
            refused("NotSupported", ".performance.accelerationMode"),
        ),
        (without_cilium(on), refused("NotSupported", ".enabled")),
    ] {
        let answer = asked(NOW, profile.clone(), &["advancedNetworking"]).await;
        assert_eq!(answer, expected, "{profile}");
    }
}

/// Policies of HTTP are to be had where Envoy is; who has them keeps them when it is gone.
#[tokio::test]
async fn policies_of_http_need_envoy() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };
    let has_envoy = Arc::new(AtomicBool::new(false));
    let asked = has_envoy.clone();
    let lab = Lab::with(
        |_: &vnet::name::ArmId| None,
        |door| {
            door.why_no_envoy = Arc::new(move || {
                let is_absent = !asked.load(Ordering::Relaxed);
                is_absent.then(|| "it was built; pull it".to_owned())
            });
        },
    );
    lab.group().await;
    let body = |policies: &str| {
        let profile = overlay(json!({ "networkDataplane": "cilium", "advancedNetworking": {
            "enabled": true, "security": { "advancedNetworkPolicies": policies } } }));
        Some(cluster_body(profile, json!({})))
    };
    let refused = lab.send("PUT", &at(NOW), body("L7")).await;
    assert_eq!(refused.code(), "NotSupported");
    assert_eq!(
        refused.body["message"],
        "Advanced network policies L7 (HTTP, gRPC and Kafka) need Envoy, which this lab has not: it was built; pull it."
    );
    lab.put(&at(NOW), body("FQDN").unwrap()).await;
    assert_eq!(lab.send("PUT", &at(NOW), body("l7")).await.code(), "NotSupported");
    has_envoy.store(true, Ordering::Relaxed);
    let made = lab.put(&at(NOW), body("l7").unwrap()).await;
    let shown = &made["properties"]["networkProfile"]["advancedNetworking"]["security"];
    assert_eq!(*shown, json!({ "enabled": true, "advancedNetworkPolicies": "L7" }));
    has_envoy.store(false, Ordering::Relaxed);
    lab.put(&at(NOW), made).await;
}

/// `az aks update --enable-acns` and `--disable-acns`, which sends back what was shown with every part disabled.
#[tokio::test]
async fn advanced_networking_comes_and_goes() {
    let lab = Lab::new().await;
    let profile = overlay(json!({ "networkDataplane": "cilium" }));
    let mut body = lab.put(&at(NOW), cluster_body(profile, json!({}))).await;
    let profile = &mut body["properties"]["networkProfile"];
    profile["advancedNetworking"] = json!({ "enabled": true,
        "observability": { "enabled": true }, "security": { "enabled": true } });
    let mut body = lab.put(&at(NOW), body).await;
    let advanced = &mut body["properties"]["networkProfile"]["advancedNetworking"];
    assert_eq!(advanced["security"]["advancedNetworkPolicies"], "FQDN");
    advanced["enabled"] = json!(false);
    advanced["observability"]["enabled"] = json!(false);
    advanced["security"]["enabled"] = json!(false);
    advanced["performance"] = json!({ "accelerationMode": "None" });
    let after = lab.put(&at(NOW), body).await;
    assert_eq!(
        after["properties"]["networkProfile"]["advancedNetworking"],
        json!({ "enabled": false, "observability": { "enabled": false },
            "security": { "enabled": false, "advancedNetworkPolicies": "None" },
            "performance": { "accelerationMode": "None" } })
    );
    // Who does not speak of it leaves it as it is.
    let mut silent = after.clone();
    silent["properties"]["networkProfile"].as_object_mut().unwrap().remove("advancedNetworking");
    let after = lab.put(&at(NOW), silent).await;
    assert_eq!(after["properties"]["networkProfile"]["advancedNetworking"]["enabled"], false);
}

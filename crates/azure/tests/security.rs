//! Network security groups, application security groups, and the questions about them, as clients see them.

mod lab;

use lab::{GROUP, Lab, SUBSCRIPTION, cluster, cluster_body, network, subnet};
use serde_json::{Value, json};
use vnet::{command::Command, model::Timestamp, policy::tags::ServiceTags};

/// Compares with the golden text.
fn check(name: &str, body: &Value) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_json_snapshot!(name, body);
    });
}

/// A rule as `az network nsg rule create` sends it.
fn rule(change: &Value) -> Value {
    let mut properties = json!({
        "access": "Allow", "direction": "Inbound", "priority": 100, "protocol": "*",
        "sourceAddressPrefix": "*", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": "*",
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        properties[key] = value.clone();
    }
    json!({ "properties": properties })
}

/// A lab with virtual network `v`, NIC `n` and network security group `g` without rules.
async fn lab() -> Lab {
    let lab = Lab::new().await;
    lab.vnet().await;
    lab.nic().await;
    lab.put(&network("networkSecurityGroups/g"), json!({ "location": "eastus" })).await;
    lab
}

/// A NIC in subnet `s`, with a network security group and application security groups.
fn nic_body(security_group: Option<&str>, application_groups: &[&str]) -> Value {
    let reference = |kind: &str, name: &str| json!({ "id": network(&format!("{kind}/{name}")) });
    let groups: Vec<Value> = application_groups
        .iter()
        .map(|name| reference("applicationSecurityGroups", name))
        .collect();
    json!({ "location": "eastus", "properties": {
        "networkSecurityGroup": security_group.map(|name| reference("networkSecurityGroups", name)),
        "ipConfigurations": [{ "name": "ipconfig1", "properties": {
            "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet("s") },
            "applicationSecurityGroups": groups } }],
    } })
}

async fn vm(lab: &Lab, nic: &str) -> String {
    let id = format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/{nic}");
    let nic = network(&format!("networkInterfaces/{nic}"));
    let body = json!({ "location": "eastus", "properties": {
        "networkProfile": { "networkInterfaces": [{ "id": nic }] } } });
    lab.put(&id, body).await;
    id
}

#[tokio::test]
async fn groups_look_as_in_azure() {
    let lab = lab().await;
    let group = network("networkSecurityGroups/g");
    check("security_group_new", &lab.get(&group).await.body);
    let application_group = network("applicationSecurityGroups/web");
    let body = json!({ "location": "eastus", "tags": { "a": "b" } });
    check("application_group", &lab.put(&application_group, body).await);

    let one = rule(&json!({ "description": "pods", "sourceAddressPrefix": "10.244.0.0/16" }));
    check("security_rule", &lab.put(&format!("{group}/securityRules/one"), one).await);
    let many = rule(&json!({
        "priority": 90 + 20, "protocol": "tcp", "access": "deny",
        "sourceAddressPrefix": "", "sourceAddressPrefixes": ["10.1.0.0/16", "10.2.0.4", "10.2.0.5/32"],
        "destinationAddressPrefix": null,
        "destinationApplicationSecurityGroups": [{ "id": application_group }],
        "destinationPortRange": "", "destinationPortRanges": ["80", "8000-8080", "0-65535"],
    }));
    check("security_rule_many", &lab.put(&format!("{group}/securityRules/many"), many).await);
    lab.put(&network("networkInterfaces/n"), nic_body(Some("g"), &["web"])).await;
    let body = json!({ "properties": { "addressPrefix": "10.0.0.0/24",
        "networkSecurityGroup": { "id": group } } });
    let body = lab.put(&subnet("s"), body).await;
    assert_eq!(body["properties"]["networkSecurityGroup"]["id"], json!(group));
    check("security_group", &lab.get(&group).await.body);
    check("nic_in_groups", &lab.get(&network("networkInterfaces/n")).await.body);

    // Children have lists and paths of their own.
    let names = |body: Value| -> Vec<String> {
        let list = body["value"].as_array().cloned().unwrap_or_default();
        list.iter().map(|it| it["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let rules = lab.get(&format!("{group}/securityRules")).await.body;
    assert_eq!(names(rules), ["one", "many"]);
    let defaults = lab.get(&format!("{group}/defaultSecurityRules")).await.body;
    assert_eq!(names(defaults).len(), 6);
    let default = lab.get(&format!("{group}/defaultSecurityRules/DenyAllInBound")).await.body;
    assert_eq!(default["properties"]["priority"], 65_500);
    let groups = lab.get(&network("applicationSecurityGroups")).await.body;
    assert_eq!(names(groups), ["web"]);
    let all = lab.get(&format!("{GROUP}/resources")).await.body;
    assert_eq!(names(all), ["web", "n", "g", "v"]);
}

/// What a client reads and writes back changes nothing: `az network nsg rule update` does so.
#[tokio::test]
async fn a_rule_that_is_read_can_be_written_back() {
    let lab = lab().await;
    lab.put(&network("applicationSecurityGroups/web"), json!({ "location": "eastus" })).await;
    let path = network("networkSecurityGroups/g/securityRules/r");
    for change in [
        json!({}),
        json!({ "sourceAddressPrefix": "10.0.0.4", "destinationAddressPrefix": "10.0.0.5/32" }),
        json!({ "sourceAddressPrefix": "virtualnetwork", "destinationPortRange": "0-65535" }),
        json!({ "sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.4"],
            "sourcePortRange": null, "sourcePortRanges": ["1024-65535"] }),
        json!({ "sourceAddressPrefix": null, "description": "from the web",
            "sourceApplicationSecurityGroups": [{ "id": network("applicationSecurityGroups/web") }] }),
    ] {
        let asked = rule(&change);
        let first = lab.put(&path, asked.clone()).await;
        for (key, value) in asked["properties"].as_object().into_iter().flatten() {
            let shown = &first["properties"][key];
            assert!(shown == value, "{key}: {shown}, not {value}");
        }
        let mut second = lab.put(&path, first.clone()).await;
        second["etag"] = first["etag"].clone();
        assert_eq!(first, second);
    }
}

#[tokio::test]
async fn rules_that_are_refused() {
    let lab = lab().await;
    let path = network("networkSecurityGroups/g/securityRules/r");
    lab.put(
        &network("networkSecurityGroups/g/securityRules/there"),
        rule(&json!({ "priority": 200 })),
    )
    .await;
    let prefix = "SecurityRuleInvalidAddressPrefix";
    let ports = "SecurityRuleInvalidPortRange";
    for (change, code) in [
        (json!({ "priority": 99 }), "SecurityRuleInvalidPriority"),
        (json!({ "priority": -1 }), "SecurityRuleInvalidPriority"),
        (json!({ "priority": 100_000 }), "SecurityRuleInvalidPriority"),
        (json!({ "priority": null }), "MissingJsonReferenceProperty"),
        (json!({ "priority": 200 }), "SecurityRuleConflict"),
        (json!({ "protocol": "gre" }), "InvalidParameter"),
        (json!({ "direction": "Sideways" }), "InvalidParameter"),
        (json!({ "access": null }), "MissingJsonReferenceProperty"),
        (json!({ "sourceAddressPrefix": "10.0.0.1/24" }), prefix),
        (json!({ "sourceAddressPrefix": "10.0.0.0/33" }), prefix),
        (json!({ "sourceAddressPrefix": "Atlantis" }), prefix),
        (json!({ "sourceAddressPrefix": "10.0.0.0-10.0.0.9" }), prefix),
        (
            json!({ "sourceAddressPrefix": null, "sourceAddressPrefixes": ["fd00::/8", "10.0.0.0/8"] }),
            "InvalidParameter",
        ),
        (json!({ "sourceAddressPrefix": null }), "SecurityRuleParametersMissing"),
        (json!({ "destinationAddressPrefix": "" }), "SecurityRuleParametersMissing"),
        (json!({ "sourceAddressPrefixes": ["10.0.0.0/8"] }), "InvalidParameter"),
        (
            json!({ "sourceAddressPrefix": null, "sourceAddressPrefixes": ["Internet"] }),
            "SecurityRuleParameterContainsUnsupportedValue",
        ),
        (
            json!({ "sourceApplicationSecurityGroups": [{ "id": network("applicationSecurityGroups/x") }] }),
            "InvalidParameter",
        ),
        (
            json!({ "sourceAddressPrefix": null,
                "sourceApplicationSecurityGroups": [{ "id": network("applicationSecurityGroups/x") }] }),
            "InvalidResourceReference",
        ),
        (
            json!({ "sourceAddressPrefix": null,
                "sourceApplicationSecurityGroups": [{ "id": network("networkSecurityGroups/g") }] }),
            "LinkedInvalidPropertyId",
        ),
        (json!({ "destinationPortRange": "80,443" }), ports),
        (json!({ "destinationPortRange": "443-80" }), ports),
        (json!({ "destinationPortRange": "65536" }), ports),
        (json!({ "destinationPortRange": "+80" }), ports),
        (json!({ "destinationPortRange": null }), "MissingJsonReferenceProperty"),
        (json!({ "destinationPortRanges": ["80"] }), "InvalidParameter"),
        (json!({ "description": "x".repeat(141) }), "InvalidParameter"),
        (json!({ "priority": "100" }), "InvalidRequestContent"),
    ] {
        let (status, found) = lab.refused(&path, rule(&change)).await;
        assert_eq!((status, found.as_str()), (400, code), "{change}");
        // The same as a part of its group.
        let mut one = rule(&change);
        one["name"] = json!("r");
        let mut there = rule(&json!({ "priority": 200 }));
        there["name"] = json!("there");
        let body = json!({ "location": "eastus", "properties": { "securityRules": [one, there] } });
        let (status, found) = lab.refused(&network("networkSecurityGroups/g"), body).await;
        assert_eq!((status, found.as_str()), (400, code), "in its group: {change}");
    }
    let missing = network("networkSecurityGroups/nope/securityRules/r");
    assert_eq!(lab.refused(&missing, rule(&json!({}))).await.0, 404);
    let default = network("networkSecurityGroups/g/defaultSecurityRules/DenyAllInBound");
    assert_eq!(lab.refused(&default, rule(&json!({}))).await.1, "NotSupported");
    assert_eq!(lab.send("DELETE", &default, None).await.status, 400);
}

#[tokio::test]
async fn groups_in_use_stay() {
    let lab = lab().await;
    let group = network("networkSecurityGroups/g");
    let with = |group: Option<&str>| {
        json!({ "properties": { "addressPrefix": "10.0.0.0/24",
            "networkSecurityGroup": group.map(|id| json!({ "id": id })) } })
    };
    lab.put(&subnet("s"), with(Some(&group))).await;
    let answer = lab.send("DELETE", &group, None).await;
    assert_eq!((answer.status, answer.code()), (400, "InUseNetworkSecurityGroupCannotBeDeleted"));
    let code =
        lab.refused(&subnet("s"), with(Some(&network("networkSecurityGroups/nope")))).await.1;
    assert_eq!(code, "InvalidResourceReference");
    // `--network-security-group ""` sends null.
    let body = lab.put(&subnet("s"), with(None)).await;
    assert_eq!(body["properties"]["networkSecurityGroup"], Value::Null);
    assert_eq!(lab.send("DELETE", &group, None).await.status, 202);
    lab.settle();
    assert_eq!(lab.get(&group).await.code(), "ResourceNotFound");
}

/// VM `n`, whose NIC has group `g` and is in group `web`, in a subnet with group `closed` and route table `rt`; the
/// answer is the VM's id.
async fn guarded(lab: &Lab) -> String {
    lab.put(&network("applicationSecurityGroups/web"), json!({ "location": "eastus" })).await;
    let group = network("networkSecurityGroups/g");
    lab.put(&network("networkInterfaces/n"), nic_body(Some("g"), &["web"])).await;
    let machine = vm(lab, "n").await;
    let web = rule(
        &json!({ "priority": 100, "protocol": "Tcp", "sourceAddressPrefix": "10.0.0.0/24",
        "destinationAddressPrefix": null, "destinationPortRange": "80",
        "destinationApplicationSecurityGroups": [{ "id": network("applicationSecurityGroups/web") }] }),
    );
    lab.put(&format!("{group}/securityRules/web"), web).await;
    let registry = rule(&json!({ "priority": 100, "direction": "Outbound", "access": "Deny",
        "destinationAddressPrefix": "MicrosoftContainerRegistry" }));
    lab.put(&format!("{group}/securityRules/registry"), registry).await;
    let body = json!({ "location": "eastus" });
    lab.put(&network("networkSecurityGroups/closed"), body).await;
    let closed = rule(&json!({ "access": "Deny", "priority": 4096, "destinationPortRange": "81" }));
    lab.put(&network("networkSecurityGroups/closed/securityRules/shut"), closed).await;
    lab.put(
        &network("routeTables/rt"),
        json!({ "location": "eastus", "properties": { "routes": [
            { "name": "out", "properties": { "addressPrefix": "0.0.0.0/0",
                "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.0.9" } },
            { "name": "hole", "properties": { "addressPrefix": "203.0.113.0/24",
                "nextHopType": "None" } }] } }),
    )
    .await;
    lab.put(
        &subnet("s"),
        json!({ "properties": { "addressPrefix": "10.0.0.0/24",
            "networkSecurityGroup": { "id": network("networkSecurityGroups/closed") },
            "routeTable": { "id": network("routeTables/rt") } } }),
    )
    .await;
    machine
}

/// A route for a service tag is shown with the tag's prefixes.
#[tokio::test]
async fn a_route_for_a_service_tag_looks_as_in_azure() {
    let lab = lab().await;
    let machine = guarded(&lab).await;
    let route = network("routeTables/rt/routes/blobs");
    let body = |prefix: &str, hop: &str| json!({ "properties": { "addressPrefix": prefix, "nextHopType": hop } });
    let shown = lab.put(&route, body("Storage.EastUS", "None")).await;
    assert_eq!(shown["properties"]["addressPrefix"], "Storage.EastUS");
    lab.put(&network("routeTables/rt/routes/cloud"), body("AzureCloud", "Internet")).await;
    lab.put(&network("routeTables/rt/routes/own"), body("198.18.0.0/16", "None")).await;
    for (prefix, code) in [
        ("Atlantis", "InvalidAddressPrefixFormat"),
        ("Internet", "InvalidAddressPrefixFormat"),
        ("10.0.0.0/33", "InvalidAddressPrefixFormat"),
        ("10.0.0.1/24", "InvalidCIDRNotation"),
    ] {
        let answer = lab.send("PUT", &route, Some(body(prefix, "None"))).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{prefix}");
    }
    let routes = format!("{}/effectiveRouteTable", network("networkInterfaces/n"));
    let routes = lab.send("POST", &routes, None).await.body;
    let shown = |name: &str| {
        let routes = routes["value"].as_array().expect("a list");
        let route = routes.iter().find(|it| it["name"] == name).expect("a route");
        format!("{} {} {}", route["state"], route["addressPrefix"], route["nextHopType"])
    };
    assert_eq!(shown("blobs"), r#""Active" ["198.19.22.48/29"] "None""#);
    assert_eq!(shown("own"), r#""Active" ["198.18.0.0/16"] "None""#);
    assert_eq!(shown("cloud"), r#""Invalid" ["198.18.0.0/16"] "Internet""#);
    // One element, however many prefixes the tag has.
    let prefixes = ["20.1.0.0/24", "20.9.0.0/24"].map(|text| text.parse().expect("a prefix"));
    let tags = [("Storage.EastUS".to_owned(), prefixes.to_vec())].into();
    let tags = Some(ServiceTags { change_number: 1, tags });
    lab.store.change(Command::SetServiceTags { tags }, Timestamp(1)).expect("a list");
    let routes = format!("{}/effectiveRouteTable", network("networkInterfaces/n"));
    let routes = lab.send("POST", &routes, None).await.body;
    let routes = routes["value"].as_array().expect("a list");
    let blobs: Vec<&Value> = routes.iter().filter(|it| it["name"] == "blobs").collect();
    assert_eq!(blobs.len(), 1);
    assert_eq!(blobs[0]["addressPrefix"], json!(["20.1.0.0/24", "20.9.0.0/24"]));
    let question = json!({ "targetResourceId": machine, "sourceIPAddress": "10.0.0.4",
        "destinationIPAddress": "20.9.0.50" });
    let next = format!("{}/nextHop", watcher(&lab).await);
    let next = lab.send("POST", &next, Some(question)).await.body;
    assert_eq!(next["nextHopType"], "None");
    assert!(next["routeTableId"].as_str().is_some_and(|id| id.ends_with("routeTables/rt")));
}

/// Peers of one location are told from those of another.
#[tokio::test]
async fn peers_far_away_are_global() {
    let lab = lab().await;
    guarded(&lab).await;
    let space = |range: &str, location: &str| {
        json!({ "location": location,
            "properties": { "addressSpace": { "addressPrefixes": [range] } } })
    };
    for (name, range, location) in
        [("near", "10.8.0.0/16", "East US"), ("far", "10.9.0.0/16", "westeurope")]
    {
        lab.put(&network(&format!("virtualNetworks/{name}")), space(range, location)).await;
        for (from, to) in [("v", name), (name, "v")] {
            let remote = network(&format!("virtualNetworks/{to}"));
            let peering = network(&format!("virtualNetworks/{from}/virtualNetworkPeerings/to{to}"));
            let body = json!({ "properties": { "remoteVirtualNetwork": { "id": remote },
                "allowVirtualNetworkAccess": true } });
            lab.put(&peering, body).await;
        }
    }
    let routes = format!("{}/effectiveRouteTable", network("networkInterfaces/n"));
    let routes = lab.send("POST", &routes, None).await.body;
    let hop = |prefix: &str| {
        let routes = routes["value"].as_array().expect("a list");
        let route = routes.iter().find(|route| route["addressPrefix"][0] == prefix);
        route.expect("a route")["nextHopType"].as_str().expect("a word").to_owned()
    };
    assert_eq!(hop("10.8.0.0/16"), "VNetPeering");
    assert_eq!(hop("10.9.0.0/16"), "VNetGlobalPeering");
}

/// The watcher of eastus, found in a list of the subscription, as az looks for it.
async fn watcher(lab: &Lab) -> String {
    let watchers = format!("{SUBSCRIPTION}/providers/Microsoft.Network/networkWatchers");
    let watchers = lab.get(&watchers).await.body;
    assert_eq!(watchers["value"][0]["location"], "eastus");
    let watcher = watchers["value"][0]["id"].as_str().unwrap_or_default().to_owned();
    assert_eq!(lab.get(&watcher).await.body["name"], "NetworkWatcher_eastus");
    assert_eq!(lab.get(&format!("{watcher}/flowLogs")).await.body["value"], json!([]));
    watcher
}

#[tokio::test]
async fn what_a_nic_meets_is_told() {
    let lab = lab().await;
    let nic = network("networkInterfaces/n");
    for word in ["effectiveNetworkSecurityGroups", "effectiveRouteTable"] {
        let answer = lab.send("POST", &format!("{nic}/{word}"), None).await;
        assert_eq!((answer.status, answer.code()), (400, "OperationNotAllowed"), "{word}");
    }
    guarded(&lab).await;
    let answer = lab.send("POST", &format!("{nic}/effectiveNetworkSecurityGroups"), None).await;
    check("effective_groups", &answer.body);
    let answer = lab.send("POST", &format!("{nic}/effectiveRouteTable"), None).await;
    check("effective_routes", &answer.body);
}

#[tokio::test]
async fn one_flow_is_verified() {
    let lab = lab().await;
    let machine = guarded(&lab).await;
    let watcher = watcher(&lab).await;
    let verify = async |direction: &str, local: (&str, &str), remote: (&str, &str)| {
        let body = json!({ "targetResourceId": machine, "direction": direction, "protocol": "TCP",
            "localIPAddress": local.0, "localPort": local.1,
            "remoteIPAddress": remote.0, "remotePort": remote.1 });
        let answer = lab.send("POST", &format!("{watcher}/ipFlowVerify"), Some(body)).await;
        if answer.status != 200 {
            return format!("{} {}", answer.status, answer.code());
        }
        let text = |key: &str| answer.body[key].as_str().unwrap_or("?").to_owned();
        format!("{} {}", text("access"), text("ruleName"))
    };
    let own = "10.0.0.4";
    for (direction, local, remote, expected) in [
        ("Inbound", "80", ("10.0.0.7", "*"), "Allow securityRules/web"),
        ("Inbound", "22", ("10.0.0.7", "*"), "Allow defaultSecurityRules/AllowVnetInBound"),
        // The subnet's group denies before the NIC's is asked.
        ("Inbound", "81", ("10.0.0.7", "*"), "Deny securityRules/shut"),
        // A default route of a user's makes everything a part of the tag `VirtualNetwork`.
        ("Inbound", "80", ("203.0.113.9", "4000"), "Allow defaultSecurityRules/AllowVnetInBound"),
        ("Inbound", "*", ("10.0.0.7", "*"), "400 InvalidParameter"),
        ("Outbound", "*", ("198.19.0.10", "443"), "Deny securityRules/registry"),
        ("Outbound", "*", ("203.0.113.9", "443"), "Allow defaultSecurityRules/AllowVnetOutBound"),
        ("Outbound", "*", ("168.63.129.16", "80"), "Allow "),
    ] {
        let found = verify(direction, (own, local), remote).await;
        assert_eq!(found, expected, "{direction} {local} {remote:?}");
    }
    assert_eq!(
        verify("Inbound", ("10.0.0.5", "80"), ("10.0.0.7", "*")).await,
        "400 InvalidParameter"
    );
    lab.put(&subnet("s"), json!({ "properties": { "addressPrefix": "10.0.0.0/24" } })).await;
    for (direction, local, remote, expected) in [
        ("Inbound", "80", "203.0.113.9", "Deny defaultSecurityRules/DenyAllInBound"),
        ("Inbound", "81", "10.0.0.7", "Allow defaultSecurityRules/AllowVnetInBound"),
        ("Outbound", "9", "203.0.113.9", "Allow defaultSecurityRules/AllowInternetOutBound"),
    ] {
        let found = verify(direction, (own, local), (remote, "4000")).await;
        assert_eq!(
            found, expected,
            "{direction} {local} {remote} without the subnet's group and routes"
        );
    }
    assert_eq!(verify("Up", (own, "80"), ("10.0.0.7", "*")).await, "400 InvalidParameter");
    // Without any group nobody comes in from the internet, and no rule says so.
    lab.put(&network("networkInterfaces/n"), nic_body(None, &[])).await;
    for (direction, remote, expected) in [
        ("Inbound", "203.0.113.9", "Deny "),
        ("Inbound", "10.0.0.7", "Allow "),
        ("Inbound", "168.63.129.16", "Allow "),
        ("Outbound", "203.0.113.9", "Allow "),
    ] {
        let found = verify(direction, (own, "80"), (remote, "4000")).await;
        assert_eq!(found, expected, "{direction} {remote} without any group");
    }
}

#[tokio::test]
async fn the_next_hop_is_told() {
    let lab = lab().await;
    let machine = guarded(&lab).await;
    let watcher = watcher(&lab).await;
    let own = "10.0.0.4";
    let next = async |destination: &str| {
        let body = json!({ "targetResourceId": machine, "sourceIPAddress": own,
            "destinationIPAddress": destination });
        let answer = lab.send("POST", &format!("{watcher}/nextHop"), Some(body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = |key: &str| answer.body[key].as_str().unwrap_or("-").to_owned();
        let table = text("routeTableId").rsplit('/').next().unwrap_or_default().to_owned();
        format!("{} {} {table}", text("nextHopType"), text("nextHopIpAddress"))
    };
    for (destination, expected) in [
        ("10.0.0.9", "VnetLocal - System Route"),
        ("8.8.8.8", "VirtualAppliance 10.0.0.9 rt"),
        ("203.0.113.1", "None - rt"),
        ("168.63.129.16", "HyperNetGateway - System Route"),
    ] {
        assert_eq!(next(destination).await, expected, "{destination}");
    }
    let view = Some(json!({ "targetResourceId": machine }));
    let view = lab.send("POST", &format!("{watcher}/securityGroupView"), view).await.body;
    let associations = &view["networkInterfaces"][0]["securityRuleAssociations"];
    assert_eq!(associations["subnetAssociation"]["securityRules"][0]["name"], "shut");
    assert_eq!(associations["effectiveSecurityRules"].as_array().map(Vec::len), Some(15));
    let nobody = Some(json!({ "targetResourceId": format!("{machine}x") }));
    assert_eq!(lab.send("POST", &format!("{watcher}/nextHop"), nobody).await.status, 404);
    let capture = lab.send("POST", &format!("{watcher}/troubleshoot"), Some(json!({}))).await;
    assert_eq!((capture.status, capture.code()), (400, "NotSupported"));
}

/// Nodes are asked about by the ids of their scale set's instances.
#[tokio::test]
async fn nodes_have_the_clusters_group() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let profile = json!({ "networkPlugin": "azure", "networkPluginMode": "overlay",
        "podCidr": "192.168.0.0/16", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" });
    let pool = json!({ "vnetSubnetID": subnet("s") });
    lab.put(&cluster("c"), cluster_body(profile, pool)).await;
    let node_group = format!("{SUBSCRIPTION}/resourceGroups/MC_rg_c_eastus/providers");
    let groups = format!("{node_group}/Microsoft.Network/networkSecurityGroups");
    let groups = lab.get(&groups).await.body;
    let group = &groups["value"][0];
    let name = group["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("aks-agentpool-") && name.ends_with("-nsg"), "{name}");
    let nics = group["properties"]["networkInterfaces"].as_array().cloned().unwrap_or_default();
    assert_eq!(nics.len(), 2);
    let nic = nics[0]["id"].as_str().unwrap_or_default();
    let answer = lab.send("POST", &format!("{nic}/effectiveNetworkSecurityGroups"), None).await;
    let gate = &answer.body["value"][0];
    assert_eq!(gate["association"]["networkInterface"]["id"], json!(nic));
    // The overlay's pods are a part of the virtual network to the default rules.
    let vnet = &gate["tagMap"]["VirtualNetwork"];
    assert_eq!(vnet, &json!(["10.0.0.0/16", "168.63.129.16/32", "192.168.0.0/16"]));
    let group = group["id"].as_str().unwrap_or_default();
    assert_eq!(
        lab.send("DELETE", group, None).await.code(),
        "InUseNetworkSecurityGroupCannotBeDeleted"
    );
}

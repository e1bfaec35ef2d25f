//! How the door behaves: operations, PUT's meaning, conditions, refusals, bad input.

mod lab;

use azure::{Nodes, RetryAfter};
use lab::{GROUP, Lab, SUBSCRIPTION, cluster, cluster_body, network, subnet};
use serde_json::{Value, json};
use vnet::{command::Command, fault::Fault, name::ArmId};

#[tokio::test]
async fn a_put_is_updating_until_it_is_real() {
    let lab = Lab::new().await;
    let body = json!({ "location": "eastus", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] },
        "subnets": [{ "name": "s", "properties": { "addressPrefix": "10.0.0.0/24" } }] } });
    let path = network("virtualNetworks/v");
    let made = lab.send("PUT", &path, Some(body.clone())).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.body["properties"]["provisioningState"], "Updating");
    assert_eq!(
        made.body["properties"]["subnets"][0]["properties"]["provisioningState"],
        "Updating"
    );
    let url = made.header("azure-asyncoperation").unwrap().to_owned();
    assert!(url.starts_with("https://localhost:8443/subscriptions/"), "{url}");
    assert_eq!(made.header("content-type"), Some("application/json; charset=utf-8"));

    let status = lab.get(&url).await;
    assert_eq!((status.status, status.header("retry-after")), (200, Some("1")));
    assert_eq!(status.body["status"], "InProgress");
    lab.settle();
    let status = lab.get(&url).await;
    assert_eq!(
        (status.body["status"].as_str(), status.header("retry-after")),
        (Some("Succeeded"), None)
    );
    assert_eq!(status.body["endTime"], "2026-11-24T12:00:00.000Z");
    assert_eq!(
        lab.get(&path).await.body["properties"]["subnets"][0]["properties"]["provisioningState"],
        "Succeeded"
    );
    assert_eq!(lab.send("PUT", &path, Some(body)).await.status, 200);
}

#[tokio::test]
async fn a_delete_can_be_polled_by_both_headers() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let path = network("virtualNetworks/v");
    let going = lab.send("DELETE", &path, None).await;
    assert_eq!((going.status, &going.body), (202, &Value::Null));
    let location = going.header("location").unwrap().to_owned();
    assert!(location.contains("/operationresults/"), "{location}");
    assert_eq!(lab.get(&location).await.status, 202);
    assert_eq!(lab.get(&path).await.body["properties"]["provisioningState"], "Deleting");
    lab.settle();
    assert_eq!(lab.get(&location).await.status, 200);
    assert_eq!(
        lab.get(going.header("azure-asyncoperation").unwrap()).await.body["status"],
        "Succeeded"
    );
    assert_eq!(lab.get(&path).await.code(), "ResourceNotFound");
    assert_eq!(lab.send("DELETE", &path, None).await.status, 204);
    let elsewhere = path.replace("/rg/", "/nope/");
    assert_eq!(lab.send("DELETE", &elsewhere, None).await.code(), "ResourceGroupNotFound");
}

#[tokio::test]
async fn a_cluster_goes_without_ever_saying_200() {
    let lab = Lab::new().await;
    lab.put(&cluster("c"), cluster_body(json!({ "networkPlugin": "kubenet" }), json!({}))).await;
    let going = lab.send("DELETE", &cluster("c"), None).await;
    assert_eq!(going.status, 202, "{going:?}");
    lab.settle();
    assert_eq!(
        lab.get(going.header("azure-asyncoperation").unwrap()).await.body["status"],
        "Succeeded"
    );
    assert_eq!(lab.send("DELETE", &cluster("c"), None).await.status, 204);
    let groups = lab.get(&format!("{SUBSCRIPTION}/resourcegroups")).await.body;
    assert_eq!(groups["value"].as_array().unwrap().len(), 1, "{groups}");
}

#[tokio::test]
async fn a_group_is_gone_when_its_location_says_200() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let going = lab.send("DELETE", GROUP, None).await;
    assert_eq!((going.status, going.header("azure-asyncoperation")), (202, None));
    let location = going.header("location").unwrap().to_owned();
    assert_eq!(lab.get(&location).await.status, 202);
    lab.settle();
    assert_eq!(lab.get(&location).await.status, 200);
    assert_eq!(lab.send("HEAD", GROUP, None).await.status, 404);
}

#[tokio::test]
async fn what_fails_later_says_why() {
    let lab = Lab::new().await;
    let body = cluster_body(json!({ "networkPlugin": "kubenet" }), json!({}));
    let made = lab.send("PUT", &cluster("c"), Some(body)).await;
    let fault = Fault::bad("SubnetIsFull", "Subnet is full.");
    let target: ArmId = cluster("c").parse().unwrap();
    lab.store.change(Command::Failed { target, fault }, vnet::model::Timestamp(1)).unwrap();
    let status = lab.get(made.header("azure-asyncoperation").unwrap()).await.body;
    assert_eq!(
        (&status["status"], &status["error"]["code"]),
        (&json!("Failed"), &json!("SubnetIsFull"))
    );
    assert_eq!(lab.get(&cluster("c")).await.body["properties"]["provisioningState"], "Failed");
}

#[tokio::test]
async fn tests_may_poll_faster() {
    let lab = Lab::with(|_: &ArmId| None, |door| door.retry_after = RetryAfter::Millis(50));
    lab.group().await;
    let body = json!({ "location": "eastus", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] } } });
    let made = lab.send("PUT", &network("virtualNetworks/v"), Some(body)).await;
    assert_eq!((made.header("retry-after-ms"), made.header("retry-after")), (Some("50"), None));
}

#[tokio::test]
async fn paths_are_the_same_in_any_case() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let path = network("virtualNetworks/v").to_uppercase();
    let shown = lab.get(&format!("/{path}/?api-version=whatever")).await;
    assert_eq!(shown.status, 200, "{shown:?}");
    assert_eq!(shown.body["id"], network("virtualNetworks/v"));
    // The first spelling of a name stays.
    let body = json!({ "location": "East US", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] } } });
    let again = lab.put(&path, body).await;
    assert_eq!((&again["name"], &again["location"]), (&json!("v"), &json!("eastus")));
    assert_eq!(
        again["properties"]["subnets"].as_array().unwrap().len(),
        1,
        "subnets that are not named stay"
    );
}

#[tokio::test]
async fn a_put_replaces_and_gives_back_what_it_keeps() {
    let lab = Lab::new().await;
    let path = network("virtualNetworks/v");
    let mut body = lab.vnet().await;
    let (guid, etag) = (body["properties"]["resourceGuid"].clone(), body["etag"].clone());
    body["properties"]["dhcpOptions"] = json!({ "dnsServers": ["10.0.0.9"] });
    body["tags"] = json!({ "a": "b" });
    let after = lab.put(&path, body.clone()).await;
    assert_eq!(after["properties"]["dhcpOptions"], json!({ "dnsServers": ["10.0.0.9"] }));
    assert_eq!(
        (&after["properties"]["resourceGuid"], &after["tags"]),
        (&guid, &json!({ "a": "b" }))
    );
    assert_ne!(after["etag"], etag);
    assert_eq!(after["etag"], after["properties"]["subnets"][0]["etag"]);
    body["properties"]["dhcpOptions"] = json!({ "dnsServers": ["10.0.0.9", "nine"] });
    let refused = lab.refused(&path, body.clone()).await;
    assert_eq!((refused.0, refused.1.as_str()), (400, "InvalidIPAddress"));
    body["properties"].as_object_mut().unwrap().remove("dhcpOptions");
    body.as_object_mut().unwrap().remove("tags");
    let after = lab.put(&path, body).await;
    assert_eq!((after["properties"].get("dhcpOptions"), after.get("tags")), (None, None));
}

#[tokio::test]
async fn conditions_hold() {
    let lab = Lab::new().await;
    let vnet = lab.vnet().await;
    let path = network("virtualNetworks/v");
    let text = vnet.to_string();
    let etag = vnet["etag"].as_str().unwrap();
    for (header, value, status) in [
        ("if-none-match", "*", 412),
        ("if-match", "W/\"00000000-0000-0000-0000-000000000000\"", 412),
        ("if-match", etag, 200),
    ] {
        let answer = lab.send_text("PUT", &path, &text, &[(header, value)]).await;
        assert_eq!(answer.status, status, "{header}: {value}");
    }
    let answer =
        lab.send_text("PUT", &network("virtualNetworks/w"), &text, &[("if-match", "*")]).await;
    assert_eq!(answer.code(), "PreconditionFailed");
}

#[tokio::test]
async fn a_pool_and_its_cluster_are_two_views_of_one_thing() {
    let lab = Lab::new().await;
    let overlay = json!({ "networkPlugin": "azure", "networkPluginMode": "overlay" });
    lab.put(&cluster("c"), cluster_body(overlay, json!({}))).await;
    let path = cluster("c/agentPools/nodepool1");
    let mut pool = lab.get(&path).await.body;
    pool["properties"]["count"] = json!(3);
    pool["properties"]["upgradeSettings"] =
        json!({ "maxSurge": "33%", "drainTimeoutInMinutes": 5 });
    let pool = lab.put(&path, pool).await;
    let mut whole = lab.get(&cluster("c")).await.body;
    let mut profile = whole["properties"]["agentPoolProfiles"][0].clone();
    profile.as_object_mut().unwrap().remove("name");
    assert_eq!(profile, pool["properties"]);
    assert_eq!(
        profile["upgradeSettings"],
        json!({ "maxSurge": "33%", "drainTimeoutInMinutes": 5 })
    );

    whole["properties"]["agentPoolProfiles"][0]["count"] = json!(1);
    lab.put(&cluster("c"), whole).await;
    assert_eq!(lab.get(&path).await.body["properties"]["count"], 1);
}

#[tokio::test]
async fn simulated_nodes_are_said_to_be() {
    let lab = Lab::with(|_: &ArmId| None, |door| door.nodes = Nodes::Simulated);
    lab.group().await;
    let mut body = cluster_body(json!({ "networkPlugin": "none" }), json!({}));
    body["tags"] = json!({ "a": "b" });
    let shown = lab.put(&cluster("c"), body).await;
    assert_eq!(shown["tags"], json!({ "a": "b", "aksnet-nodes": "simulated" }));
    lab.put(&cluster("c"), shown).await;
    let id: ArmId = cluster("c").parse().unwrap();
    assert_eq!(lab.store.snapshot().clusters[&id].meta.tags.len(), 1, "the tag is not stored");
}

#[tokio::test]
async fn credentials_come_as_yaml() {
    let lab = Lab::new().await;
    lab.put(&cluster("c"), cluster_body(json!({ "networkPlugin": "none" }), json!({}))).await;
    for (word, name) in [
        ("listClusterUserCredential", "clusterUser"),
        ("listClusterAdminCredential", "clusterAdmin"),
    ] {
        let answer = lab.send("POST", &cluster(&format!("c/{word}")), None).await.body;
        assert_eq!(answer["kubeconfigs"][0]["name"], name);
        assert_eq!(answer["kubeconfigs"][0]["value"], "a3ViZWNvbmZpZyBvZiBj");
    }
    assert_eq!(lab.send("POST", &cluster("x/listClusterUserCredential"), None).await.status, 404);
}

#[tokio::test]
async fn a_service_principals_secret_is_not_kept() {
    let lab = Lab::new().await;
    let mut body = cluster_body(json!({ "networkPlugin": "none" }), json!({}));
    body["properties"]["servicePrincipalProfile"] = json!({ "clientId": "x", "secret": "hush" });
    body.as_object_mut().unwrap().remove("identity");
    let shown = lab.put(&cluster("c"), body).await;
    assert_eq!(shown["properties"]["servicePrincipalProfile"], json!({ "clientId": "x" }));
    assert_eq!(shown.get("identity"), None);
    assert!(!format!("{:?}", lab.store.snapshot()).contains("hush"));
}

#[tokio::test]
async fn roles_are_given_and_found() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let scope = subnet("s");
    let roles = format!("{scope}/providers/Microsoft.Authorization");
    let found = lab
        .get(&format!("{roles}/roleDefinitions?$filter=roleName%20eq%20'Network%20Contributor'"))
        .await
        .body;
    assert_eq!(found["value"].as_array().unwrap().len(), 1);
    let definition = found["value"][0]["id"].clone();
    assert!(definition.as_str().unwrap().ends_with("4d97b98b-1d4f-4787-a291-c67834d212e7"));
    let one = format!("{roles}/roleAssignments/11111111-2222-3333-4444-555555555555");
    let body = json!({ "properties": { "roleDefinitionId": definition, "principalId": "p", "principalType": "ServicePrincipal" } });
    assert_eq!(lab.send("PUT", &one, Some(body.clone())).await.status, 201);
    let list = lab.get(&format!("{roles}/roleAssignments?$filter=atScope()")).await.body;
    assert_eq!(list["value"][0]["properties"]["scope"], scope);
    // A role is the subscription's, wherever it was read.
    let expected = format!(
        "{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/4d97b98b-1d4f-4787-a291-c67834d212e7"
    );
    assert_eq!(list["value"][0]["properties"]["roleDefinitionId"], expected);
    let all = lab
        .get(&format!("{SUBSCRIPTION}/providers/Microsoft.Authorization/roleAssignments"))
        .await
        .body;
    assert_eq!(all["value"].as_array().unwrap().len(), 1);
    let twin = one.replace("1111", "9999");
    assert_eq!(lab.send("PUT", &twin, Some(body)).await.code(), "RoleAssignmentExists");
    assert_eq!(lab.send("DELETE", &one, None).await.status, 200);
    assert_eq!(lab.send("DELETE", &one, None).await.status, 204);
}

#[tokio::test]
async fn resources_are_filtered() {
    let lab = Lab::new().await;
    lab.vnet().await;
    lab.nic().await;
    let n = |filter: &str| {
        let path = format!("{SUBSCRIPTION}/resources?$filter={}", filter.replace(' ', "%20"));
        let lab = &lab;
        async move { lab.get(&path).await.body["value"].as_array().map(Vec::len) }
    };
    assert_eq!(n("resourceGroup eq 'RG'").await, Some(2));
    assert_eq!(n("resourceGroup eq 'rg' and name eq 'v' and resourceType eq 'Microsoft.Network/virtualNetworks'").await, Some(1));
    assert_eq!(n("resourceGroup eq 'rg' and name eq 'None' and resourceType eq 'Microsoft.Network/publicIPAddresses'").await, Some(0));
    assert_eq!(n("startswith(name, 'v')").await, None);
}

#[tokio::test]
async fn addresses_are_offered() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let ask = |address: &str| {
        network(&format!("virtualNetworks/v/CheckIPAddressAvailability?ipAddress={address}"))
    };
    let reserved = lab.get(&ask("10.0.0.0")).await.body;
    assert_eq!(
        reserved,
        json!({ "available": false,
        "availableIPAddresses": ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8"], "isPlatformReserved": true })
    );
    assert_eq!(
        lab.get(&ask("10.0.0.4")).await.body,
        json!({ "available": true, "isPlatformReserved": false })
    );
}

#[tokio::test]
async fn a_dynamic_address_that_is_sent_back_stays_dynamic() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let nic = lab.nic().await;
    let again = lab.put(&network("networkInterfaces/n"), nic.clone()).await;
    let configuration =
        |nic: &Value| nic["properties"]["ipConfigurations"][0]["properties"].clone();
    assert_eq!(configuration(&again), configuration(&nic));
    assert_eq!(configuration(&again)["privateIPAllocationMethod"], "Dynamic");
}

#[tokio::test]
async fn members_survive_clients_that_leave_them_out() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let id = network("loadBalancers/lb");
    let mut body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "fe", "properties": { "subnet": { "id": subnet("s") } } }],
        "backendAddressPools": [{ "name": "be" }] } });
    lab.put(&id, body.clone()).await;
    let mut nic = lab.nic().await;
    let pool = format!("{id}/backendAddressPools/be");
    nic["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] =
        json!([{ "id": pool }]);
    let nic = lab.put(&network("networkInterfaces/n"), nic).await;
    assert_eq!(
        nic["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"]
            [0]["id"],
        pool
    );

    body["properties"]["probes"] =
        json!([{ "name": "pr", "properties": { "protocol": "Tcp", "port": 80 } }]);
    let after = lab.put(&id, body).await;
    let member = &after["properties"]["backendAddressPools"][0]["properties"]["backendIPConfigurations"]
        [0]["id"];
    assert_eq!(member, &json!(network("networkInterfaces/n/ipConfigurations/ipconfig1")));
    assert_eq!(lab.get(&pool).await.body["name"], "be");
    let nics = lab.get(&format!("{id}/networkInterfaces")).await.body;
    assert_eq!(nics["value"].as_array().unwrap().len(), 1);

    let mut nic = lab.get(&network("networkInterfaces/n")).await.body;
    let mut lost = nic.clone();
    lost["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"][0]
        ["id"] = json!(format!("{id}/backendAddressPools/nope"));
    let refused = lab.refused(&network("networkInterfaces/n"), lost).await;
    assert_eq!(refused, (400, "InvalidResourceReference".to_owned()));
    nic["properties"]["ipConfigurations"][0]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("loadBalancerBackendAddressPools");
    lab.put(&network("networkInterfaces/n"), nic).await;
    assert_eq!(lab.get(&pool).await.body["properties"].get("backendIPConfigurations"), None);
}

#[tokio::test]
async fn a_template_makes_a_load_balancer() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let id = format!("{GROUP}/providers/Microsoft.Resources/deployments/d");
    let body = json!({ "properties": { "mode": "incremental", "parameters": {}, "template": {
        "contentVersion": "1.0.0.0", "parameters": {}, "variables": {},
        "resources": [{ "type": "Microsoft.Network/loadBalancers", "name": "lb", "location": "eastus", "tags": {},
            "apiVersion": "2023-04-01", "dependsOn": ["Microsoft.Network/publicIPAddresses/p"], "sku": { "name": "Standard" }, "properties": {
                "backendAddressPools": [{ "name": "be" }],
                "frontendIPConfigurations": [{ "name": "fe", "properties": { "publicIPAddress": { "id": network("publicIPAddresses/p") } } }] } },
            { "type": "Microsoft.Network/publicIPAddresses", "name": "p", "location": "eastus", "apiVersion": "2023-04-01",
              "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static" } }],
        "outputs": { "loadBalancer": { "type": "object", "value": "[reference('lb')]" } } } } });
    let made = lab.send("PUT", &id, Some(body)).await;
    assert_eq!(
        (made.status, &made.body["properties"]["provisioningState"]),
        (201, &json!("Accepted"))
    );
    let url = made.header("azure-asyncoperation").unwrap().to_owned();
    assert_eq!(lab.get(&url).await.body["status"], "InProgress");
    lab.settle();
    assert_eq!(lab.get(&url).await.body["status"], "Succeeded");
    let shown = lab.get(&id).await.body;
    let value = &shown["properties"]["outputs"]["loadBalancer"]["value"];
    assert_eq!(value["frontendIPConfigurations"][0]["name"], "fe");
    assert_eq!(shown["properties"]["outputResources"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_lab_has_not_is_refused() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let some = json!({ "id": network("x/y") });
    for (property, value) in [
        ("natGateway", some.clone()),
        ("addressPrefixes", json!(["10.0.0.0/24", "10.0.1.0/24"])),
        ("addressPrefix", json!("fd00::/64")),
    ] {
        let mut body = json!({ "properties": { "addressPrefix": "10.0.0.0/24" } });
        body["properties"][property] = value;
        assert_eq!(lab.refused(&subnet("s"), body).await.0, 400, "{property}");
    }
    for kind in ["azureFirewalls", "privateEndpoints"] {
        let path = network(&format!("{kind}/x"));
        assert_eq!(
            lab.refused(&path, json!({ "location": "eastus" })).await,
            (400, "NotSupported".to_owned())
        );
        assert_eq!(lab.get(&path).await.code(), "ResourceNotFound");
        assert_eq!(lab.get(&network(kind)).await.body, json!({ "value": [] }));
    }
    let identity = format!("{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i");
    assert_eq!(lab.refused(&identity, json!({ "location": "eastus" })).await.1, "NotSupported");
    for (pointer, value) in [
        ("/properties/networkProfile/networkPolicy", json!("calico")),
        ("/properties/networkProfile/outboundType", json!("managedNATGatewayV2")),
        ("/properties/networkProfile/loadBalancerSku", json!("basic")),
        ("/properties/apiServerAccessProfile", json!({ "enablePrivateCluster": true })),
        ("/properties/apiServerAccessProfile", json!({ "authorizedIPRanges": ["1.2.3.0/24"] })),
        ("/properties/addonProfiles", json!({ "azurepolicy": { "enabled": true } })),
        ("/properties/kubernetesVersion", json!("1.1.1")),
        ("/properties/agentPoolProfiles/0/osType", json!("Windows")),
        ("/properties/agentPoolProfiles/0/enableAutoScaling", json!(true)),
        ("/properties/agentPoolProfiles/0/enableNodePublicIP", json!(true)),
        ("/identity/type", json!("UserAssigned")),
    ] {
        let mut body = cluster_body(json!({}), json!({}));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[key] = value;
        let (status, code) = lab.refused(&cluster("c"), body).await;
        assert_eq!(status, 400, "{pointer}: {code}");
    }
}

#[tokio::test]
async fn a_cluster_keeps_its_version_and_power() {
    let lab = Lab::new().await;
    let body = cluster_body(json!({ "networkPlugin": "none" }), json!({}));
    let mut shown = lab.put(&cluster("c"), body).await;
    shown["properties"]["kubernetesVersion"] = json!("1.36");
    let mut shown = lab.put(&cluster("c"), shown).await;
    assert_eq!(shown["properties"]["currentKubernetesVersion"], "1.36.3");
    shown["properties"]["kubernetesVersion"] = json!("1.35.7");
    assert_eq!(lab.refused(&cluster("c"), shown).await.1, "OperationNotAllowed");
    assert_eq!(lab.send("POST", &cluster("c/stop"), None).await.code(), "NotSupported");
}

#[tokio::test]
async fn tags_can_be_patched() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let path = network("virtualNetworks/v");
    let patched = lab.send("PATCH", &path, Some(json!({ "tags": { "a": "b" } }))).await;
    assert_eq!((patched.status, &patched.body["tags"]), (200, &json!({ "a": "b" })));
    assert_eq!(patched.body["properties"]["subnets"].as_array().unwrap().len(), 1);
    assert_eq!(
        lab.send("PATCH", &path, Some(json!({ "properties": {} }))).await.code(),
        "NotSupported"
    );
    let group = lab.send("PATCH", GROUP, Some(json!({ "tags": { "c": "d" } }))).await.body;
    assert_eq!(group["tags"], json!({ "c": "d" }));
}

#[tokio::test]
async fn every_grant_gets_a_token() {
    let lab = Lab::empty();
    for (path, body, has_user) in [
        (
            "/adfs/oauth2/token",
            "grant_type=client_credentials&client_id=x&scope=https://ARM//.default",
            false,
        ),
        ("/z/oauth2/v2.0/token", "grant_type=client_credentials&client_id=x", false),
        ("/adfs/z/oauth2/v2.0/token", "grant_type=client_credentials&client_assertion=x", false),
        ("/adfs/oauth2/token", "grant_type=password&username=u%40x&password=p", true),
        ("/adfs/oauth2/token", "grant_type=refresh_token&refresh_token=x", true),
        (
            "/adfs/oauth2/token",
            "grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code=x",
            true,
        ),
    ] {
        let answer = lab.send_text("POST", path, body, &[]).await.body;
        let token = answer["access_token"].as_str().unwrap_or_default();
        assert_eq!(token.split('.').count(), 3, "{body}");
        assert!(answer["expires_in"].is_u64());
        assert_eq!(answer.get("id_token").is_some(), has_user, "{body}");
    }
    let imds = lab
        .get("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://ARM/")
        .await
        .body;
    assert!(imds["expires_on"].is_string() && imds["access_token"].is_string());
    let discovery = lab.get("/adfs/z/v2.0/.well-known/openid-configuration").await.body;
    assert_eq!(discovery["issuer"].as_str().unwrap().split('/').nth(3).unwrap().len(), 36);
}

#[tokio::test]
async fn bad_input_is_refused_in_json() {
    let lab = Lab::new().await;
    let vnet = network("virtualNetworks/v");
    for (method, path, body, status) in [
        ("PUT", vnet.as_str(), "{", 400),
        ("PUT", vnet.as_str(), "[]", 400),
        ("PUT", vnet.as_str(), "\u{0}", 400),
        ("PUT", vnet.as_str(), "{}", 400),
        ("PUT", vnet.as_str(), "{\"location\":\"eastus\",\"properties\":7}", 400),
        ("GET", "/subscriptions/not-a-guid/resourceGroups/x", "", 400),
        ("GET", "/", "", 404),
        ("GET", "/%ff/%00/..", "", 404),
        ("POST", vnet.as_str(), "", 405),
        ("TRACE", vnet.as_str(), "", 405),
        ("PUT", &network("virtualNetworks"), "{}", 405),
    ] {
        let answer = lab.send_text(method, path, body, &[]).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(!answer.code().is_empty(), "{method} {path} {body}: {answer:?}");
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!("{{\"location\":\"eastus\",\"properties\":{deep}}}");
    assert_eq!(lab.send_text("PUT", &vnet, &body, &[]).await.code(), "InvalidRequestContent");
    let long = "x".repeat(5 * 1024 * 1024);
    assert_eq!(lab.send_text("PUT", &vnet, &long, &[]).await.status, 413);
}

#[tokio::test]
async fn a_panic_stays_inside() {
    let lab = Lab::with(|_: &ArmId| -> Option<String> { panic!("in a test") }, |_| {});
    lab.group().await;
    lab.put(&cluster("c"), cluster_body(json!({ "networkPlugin": "none" }), json!({}))).await;
    let answer = lab.send("POST", &cluster("c/listClusterUserCredential"), None).await;
    assert_eq!((answer.status, answer.code()), (500, "InternalServerError"));
    assert_eq!(lab.send("PUT", GROUP, Some(json!({ "location": "eastus" }))).await.status, 200);
}

//! What resources look like, as golden texts.

mod lab;

use lab::{GROUP, Lab, SUBSCRIPTION, cluster, cluster_body, network, subnet};
use serde_json::{Value, json};

/// Compares with the golden text, but for what a version of the crates decides.
fn check(name: &str, body: &Value) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_json_snapshot!(name, body);
    });
}

#[tokio::test]
async fn networks() {
    let lab = Lab::new().await;
    lab.vnet().await;
    lab.nic().await;
    check("nic", &lab.nic().await);
    lab.put(
        &network("routeTables/rt"),
        json!({ "location": "eastus", "tags": { "a": "b" }, "properties": {
        "routes": [{ "name": "r1", "properties": { "addressPrefix": "10.244.1.0/24",
            "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.0.4" } }] } }),
    )
    .await;
    let body = json!({ "properties": { "addressPrefix": "10.0.0.0/24", "routeTable": { "id": network("routeTables/rt") },
        "serviceEndpoints": [{ "service": "Microsoft.Storage" }] } });
    check("subnet", &lab.put(&subnet("s"), body).await);
    check("route_table", &lab.get(&network("routeTables/rt")).await.body);
    check("route", &lab.get(&network("routeTables/rt/routes/r1")).await.body);
    check("vnet", &lab.get(&network("virtualNetworks/v")).await.body);
    check("vnet_usages", &lab.get(&network("virtualNetworks/v/usages")).await.body);
}

#[tokio::test]
async fn balancer() {
    let lab = Lab::new().await;
    lab.vnet().await;
    lab.nic().await;
    let public_ip = network("publicIPAddresses/p");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static", "idleTimeoutInMinutes": 10 } });
    lab.put(&public_ip, body).await;
    let id = network("loadBalancers/lb");
    let part = |kind: &str, name: &str| json!({ "id": format!("{id}/{kind}/{name}") });
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [
            { "name": "inside", "zones": ["1"], "properties": { "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet("s") } } },
        ],
        "backendAddressPools": [{ "name": "be", "properties": { "backendIPConfigurations": [
            { "id": network("networkInterfaces/n/ipConfigurations/ipconfig1") }] } }],
        "probes": [{ "name": "pr", "properties": { "protocol": "Http", "port": 80, "requestPath": "/healthz", "numberOfProbes": 2 } }],
        "loadBalancingRules": [{ "name": "ru", "properties": {
            "frontendIPConfiguration": part("frontendIPConfigurations", "inside"),
            "backendAddressPools": [part("backendAddressPools", "be")], "probe": part("probes", "pr"),
            "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "enableFloatingIP": true,
            "loadDistribution": "SourceIPProtocol" } }],
    } });
    check("balancer", &lab.put(&id, body).await);
    let id = network("loadBalancers/public");
    let part = |kind: &str, name: &str| json!({ "id": format!("{id}/{kind}/{name}") });
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "outside", "properties": { "publicIPAddress": { "id": public_ip } } }],
        "backendAddressPools": [{ "name": "be", "properties": { "backendIPConfigurations": [
            { "id": network("networkInterfaces/n/ipConfigurations/ipconfig1") }] } }],
        "outboundRules": [{ "name": "out", "properties": {
            "frontendIPConfigurations": [part("frontendIPConfigurations", "outside")],
            "backendAddressPool": part("backendAddressPools", "be"), "protocol": "All" } }],
    } });
    check("public_balancer", &lab.put(&id, body).await);
    check("public_ip", &lab.get(&public_ip).await.body);
}

#[tokio::test]
async fn clusters() {
    let lab = Lab::new().await;
    lab.vnet().await;
    for (name, prefix) in [
        ("pods", "10.0.2.0/23"),
        ("kubenet", "10.0.4.0/24"),
        ("nodes", "10.0.5.0/24"),
        ("blocks", "10.0.6.0/24"),
    ] {
        lab.put(&subnet(name), json!({ "properties": { "addressPrefix": prefix } })).await;
    }
    let modes = [
        (
            "kubenet",
            json!({ "networkPlugin": "kubenet", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" }),
            json!({ "vnetSubnetID": subnet("kubenet") }),
        ),
        (
            "azure",
            json!({ "networkPlugin": "azure", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" }),
            json!({ "vnetSubnetID": subnet("nodes") }),
        ),
        (
            "podsubnet",
            json!({ "networkPlugin": "azure", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" }),
            json!({ "vnetSubnetID": subnet("s"), "podSubnetID": subnet("pods") }),
        ),
        (
            "overlay",
            json!({ "networkPlugin": "azure", "networkPluginMode": "overlay", "podCidr": "192.168.0.0/16" }),
            json!({}),
        ),
        (
            "cilium",
            json!({ "networkPlugin": "azure", "networkPluginMode": "overlay", "networkDataplane": "cilium" }),
            json!({}),
        ),
        (
            "blocks",
            json!({ "networkPlugin": "azure", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" }),
            json!({ "vnetSubnetID": subnet("nodes"), "podSubnetID": subnet("blocks"), "maxPods": 30,
                "podIPAllocationMode": "StaticBlock" }),
        ),
        ("none", json!({ "networkPlugin": "none", "networkPolicy": "none" }), json!({})),
        ("default", json!({}), json!({})),
    ];
    for (name, profile, pool) in modes {
        let body = lab.put(&cluster(name), cluster_body(profile, pool)).await;
        if name == "overlay" {
            check("cluster", &body);
        }
        check(&format!("cluster_{name}_network"), &body["properties"]["networkProfile"]);
        if name == "podsubnet" {
            check("cluster_podsubnet_pool", &body["properties"]["agentPoolProfiles"][0]);
        }
    }
    check("subnet_of_pods", &lab.get(&subnet("pods")).await.body);
    check("pool", &lab.get(&cluster("kubenet/agentPools/nodepool1")).await.body);
    check("upgrades", &lab.get(&cluster("kubenet/upgradeProfiles/default")).await.body);
    let versions = format!(
        "{SUBSCRIPTION}/providers/Microsoft.ContainerService/locations/eastus/kubernetesVersions"
    );
    check("versions", &lab.get(&versions).await.body);
    let compute =
        format!("{SUBSCRIPTION}/resourceGroups/MC_rg_kubenet_eastus/providers/Microsoft.Compute");
    let sets = lab.get(&format!("{compute}/virtualMachineScaleSets")).await.body;
    check("scale_sets", &sets);
    let set = sets["value"][0]["name"].as_str().expect("the cluster has a scale set");
    let nics =
        lab.get(&format!("{compute}/virtualMachineScaleSets/{set}/networkInterfaces")).await.body;
    check("scale_set_nic", &nics["value"][0]);
    let compute = compute.replace("kubenet", "blocks");
    let sets = lab.get(&format!("{compute}/virtualMachineScaleSets")).await.body;
    let set = sets["value"][0]["name"].as_str().expect("the cluster has a scale set");
    let nics =
        lab.get(&format!("{compute}/virtualMachineScaleSets/{set}/networkInterfaces")).await.body;
    let configurations = nics["value"][0]["properties"]["ipConfigurations"].as_array();
    let configurations = configurations.expect("a NIC has configurations").iter();
    let shown: Vec<String> = configurations
        .map(|it| {
            let properties = &it["properties"];
            let [address, length] =
                ["privateIPAddress", "privateIPAddressPrefixLength"].map(|key| &properties[key]);
            format!("{} {address} {length}", it["name"])
        })
        .collect();
    let blocks = [r#""ipconfig2" "10.0.6.16/28" 28"#, r#""ipconfig3" "10.0.6.32/28" 28"#];
    assert_eq!(shown[1..], blocks, "after the node's own, {}", shown[0]);
}

#[tokio::test]
async fn identity() {
    let lab = Lab::new().await;
    check("metadata", &lab.get("/metadata/endpoints?api-version=2022-09-01").await.body);
    check("subscriptions", &lab.get("/subscriptions?api-version=2022-12-01").await.body);
    check("group", &lab.get(GROUP).await.body);
    check(
        "provider",
        &lab.get(&format!("{SUBSCRIPTION}/providers/microsoft.containerservice")).await.body,
    );
}

#[tokio::test]
async fn errors() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let body = |prefix: &str| Some(json!({ "properties": { "addressPrefix": prefix } }));
    let errors = json!({
        "no vnet": lab.get(&network("virtualNetworks/nope")).await.body,
        "no subnet": lab.get(&subnet("nope")).await.body,
        "no vnet of subnet": lab.get(&network("virtualNetworks/nope/subnets/s")).await.body,
        "no cluster": lab.get(&cluster("nope")).await.body,
        "no group": lab.get(&format!("{SUBSCRIPTION}/resourceGroups/nope")).await.body,
        "no group of vnet": lab.get(&format!("{SUBSCRIPTION}/resourceGroups/nope/providers/Microsoft.Network/virtualNetworks/v")).await.body,
        "no type": lab.get(&network("toasters/t")).await.body,
        "no namespace": lab.get(&format!("{GROUP}/providers/Contoso.Toast/toasters/t")).await.body,
        "overlap": lab.send("PUT", &subnet("t"), body("10.0.0.0/25")).await.body,
        "outside": lab.send("PUT", &subnet("t"), body("10.1.0.0/24")).await.body,
        "host bits": lab.send("PUT", &subnet("t"), body("10.0.1.1/24")).await.body,
        "no prefix": lab.send("PUT", &subnet("t"), body("10.0.1.0")).await.body,
        "bad json": lab.send_text("PUT", &subnet("t"), "{\"properties\": {\n \"addressPrefix\": }", &[]).await.body,
        "wrong type": lab.send_text("PUT", &subnet("t"), "{\"properties\": {\"addressPrefix\": 7}}", &[]).await.body,
        "small subnet": lab.send("PUT", &cluster("c"), Some(cluster_body(
            json!({ "networkPlugin": "azure", "serviceCidr": "10.1.0.0/16", "dnsServiceIP": "10.1.0.10" }),
            json!({ "vnetSubnetID": subnet("s"), "count": 10 })))).await.body,
        "several": lab.send("PUT", &cluster("c"), Some(cluster_body(
            json!({ "networkPolicy": "calico", "podCidr": "x" }),
            json!({ "osType": "Windows" })))).await.body,
        "finer": lab.send("PUT", &cluster("c"), Some(cluster_body(
            json!({ "networkPlugin": "azure", "networkDataplane": "cilium", "networkPolicy": "calico" }),
            json!({})))).await.body,
    });
    check("errors", &errors);
}

#[tokio::test]
async fn beyond_subnets() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let far = network("virtualNetworks/far");
    let space = json!({ "addressSpace": { "addressPrefixes": ["10.8.0.0/16"] } });
    lab.put(&far, json!({ "location": "eastus", "properties": space })).await;
    let peering = network("virtualNetworks/v/virtualNetworkPeerings/p1");
    let side = |remote: String| {
        json!({ "name": "p1", "properties": { "allowForwardedTraffic": false, "allowGatewayTransit": false,
            "allowVirtualNetworkAccess": true, "peerCompleteVnets": true,
            "remoteVirtualNetwork": { "id": remote }, "useRemoteGateways": false } })
    };
    check("peering", &lab.put(&peering, side(far.clone())).await);
    let other = format!("{far}/virtualNetworkPeerings/p1");
    lab.put(&other, side(network("virtualNetworks/v"))).await;
    check("peering_connected", &lab.get(&peering).await.body);

    let prefix = network("publicIPPrefixes/x");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" },
        "properties": { "prefixLength": 31, "publicIPAddressVersion": "IPv4" } });
    check("public_ip_prefix", &lab.put(&prefix, body).await);
    let public_ip = network("publicIPAddresses/p");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static", "publicIPPrefix": { "id": prefix } } });
    lab.put(&public_ip, body).await;
    let gateway = network("natGateways/nat1");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" },
        "properties": { "idleTimeoutInMinutes": 10, "publicIpAddresses": [{ "id": public_ip }] } });
    check("nat_gateway", &lab.put(&gateway, body).await);
    check("public_ip_of_gateway", &lab.get(&public_ip).await.body);
    let body = json!({ "properties": { "addressPrefix": "10.0.0.0/24", "natGateway": { "id": gateway },
        "defaultOutboundAccess": false } });
    check("subnet_of_gateway", &lab.put(&subnet("s"), body).await);
    check("nat_gateway_of_subnet", &lab.get(&gateway).await.body);

    let whole = network("publicIPPrefixes/whole");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": { "prefixLength": 31 } });
    lab.put(&whole, body).await;
    let balancer = network("loadBalancers/out");
    let part = |kind: &str, name: &str| json!({ "id": format!("{balancer}/{kind}/{name}") });
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "all", "properties": { "publicIPPrefix": { "id": whole } } }],
        "backendAddressPools": [{ "name": "p" }],
        "outboundRules": [{ "name": "o", "properties": { "protocol": "All",
            "frontendIPConfigurations": [part("frontendIPConfigurations", "all")],
            "backendAddressPool": part("backendAddressPools", "p") } }] } });
    let made = lab.put(&balancer, body).await;
    let front = &made["properties"]["frontendIPConfigurations"][0];
    assert_eq!(front["properties"]["publicIPPrefix"]["id"], json!(whole));
    let user =
        &lab.get(&whole).await.body["properties"]["loadBalancerFrontendIpConfiguration"]["id"];
    assert_eq!(user, &front["id"]);
    // What is given back is taken.
    let again = lab.put(&balancer, made.clone()).await;
    assert_eq!(
        again["properties"]["frontendIPConfigurations"][0]["properties"],
        front["properties"]
    );
}

#[tokio::test]
async fn inbound_rules() {
    let lab = Lab::new().await;
    lab.vnet().await;
    lab.nic().await;
    let id = network("loadBalancers/lb");
    let body = json!({ "location": "eastus", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "fe", "properties": { "subnet": { "id": subnet("s") } } }],
        "backendAddressPools": [{ "name": "be" }],
        "inboundNatRules": [
            { "name": "one", "properties": { "protocol": "Tcp", "frontendPort": 5000, "backendPort": 22,
                "frontendIPConfiguration": { "id": format!("{id}/frontendIPConfigurations/fe") } } },
            { "name": "all", "properties": { "protocol": "Tcp", "frontendPortRangeStart": 5001,
                "frontendPortRangeEnd": 5009, "backendPort": 22,
                "backendAddressPool": { "id": format!("{id}/backendAddressPools/be") },
                "frontendIPConfiguration": { "id": format!("{id}/frontendIPConfigurations/fe") } } },
        ] } });
    lab.put(&id, body).await;
    let nic = json!({ "location": "eastus", "properties": { "ipConfigurations": [{ "name": "ipconfig1",
        "properties": { "subnet": { "id": subnet("s") },
            "loadBalancerBackendAddressPools": [{ "id": format!("{id}/backendAddressPools/be") }],
            "loadBalancerInboundNatRules": [{ "id": format!("{id}/inboundNatRules/one") }] } }] } });
    check("nic_behind_rules", &lab.put(&network("networkInterfaces/n"), nic).await);
    check("balancer_with_inbound_rules", &lab.get(&id).await.body);
    check("inbound_rule", &lab.get(&format!("{id}/inboundNatRules/one")).await.body);
}

/// IPv6 beside IPv4, in Azure's shapes.
#[tokio::test]
async fn dual_stack() {
    let lab = Lab::new().await;
    let standard = json!({ "name": "Standard" });
    let vnet = network("virtualNetworks/dual");
    let body = json!({ "location": "eastus", "properties": {
        "addressSpace": { "addressPrefixes": ["10.0.0.0/16", "fd00:db8::/48"] } } });
    lab.put(&vnet, body).await;
    let subnet = format!("{vnet}/subnets/s");
    let body = json!({ "properties": { "addressPrefixes": ["10.0.0.0/24", "fd00:db8:0:1::/64"] } });
    check("dual_subnet", &lab.put(&subnet, body).await);
    let body = json!({ "location": "eastus", "sku": standard, "properties": {
        "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv6" } });
    let public_ip = network("publicIPAddresses/six");
    lab.put(&public_ip, body.clone()).await;
    check("dual_public_ip", &lab.get(&public_ip).await.body);
    let front = network("publicIPAddresses/front");
    lab.put(&front, body).await;
    let body = json!({ "location": "eastus", "sku": standard, "properties": {
        "prefixLength": 126, "publicIPAddressVersion": "IPv6" } });
    let prefix = network("publicIPPrefixes/six");
    lab.put(&prefix, body).await;
    check("dual_public_ip_prefix", &lab.get(&prefix).await.body);

    let balancer = network("loadBalancers/dual");
    let part = |kind: &str, name: &str| json!({ "id": format!("{balancer}/{kind}/{name}") });
    let body = json!({ "location": "eastus", "sku": standard, "properties": {
        "frontendIPConfigurations": [
            { "name": "inside", "properties": { "privateIPAllocationMethod": "Dynamic",
                "privateIPAddressVersion": "IPv6", "subnet": { "id": subnet } } } ],
        "backendAddressPools": [{ "name": "six" }],
        "loadBalancingRules": [{ "name": "r", "properties": {
            "frontendIPConfiguration": part("frontendIPConfigurations", "inside"),
            "backendAddressPool": part("backendAddressPools", "six"),
            "protocol": "Tcp", "frontendPort": 80, "backendPort": 80 } }] } });
    lab.put(&balancer, body).await;
    let outside = network("loadBalancers/outside");
    let part = |kind: &str, name: &str| json!({ "id": format!("{outside}/{kind}/{name}") });
    let body = json!({ "location": "eastus", "sku": standard, "properties": {
        "frontendIPConfigurations": [
            { "name": "outside", "properties": { "publicIPAddress": { "id": front } } } ],
        "backendAddressPools": [{ "name": "six" }],
        "outboundRules": [{ "name": "o", "properties": { "protocol": "All",
            "frontendIPConfigurations": [part("frontendIPConfigurations", "outside")],
            "backendAddressPool": part("backendAddressPools", "six") } }] } });
    lab.put(&outside, body).await;
    let nic = network("networkInterfaces/dual");
    let body = json!({ "location": "eastus", "properties": { "ipConfigurations": [
        { "name": "ipconfig1", "properties": { "primary": true, "subnet": { "id": subnet } } },
        { "name": "six", "properties": { "privateIPAddressVersion": "IPv6", "subnet": { "id": subnet },
            "publicIPAddress": { "id": public_ip },
            "loadBalancerBackendAddressPools": [part("backendAddressPools", "six"),
                { "id": format!("{balancer}/backendAddressPools/six") }] } } ] } });
    lab.put(&nic, body).await;
    check("dual_nic", &lab.get(&nic).await.body);
    check("dual_balancer", &lab.get(&balancer).await.body);
    check("dual_public_balancer", &lab.get(&outside).await.body);
    check("dual_subnet_used", &lab.get(&subnet).await.body);

    let table = network("routeTables/dual");
    let body = json!({ "location": "eastus", "properties": { "routes": [{ "name": "all", "properties": {
        "addressPrefix": "::/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "fd00:db8:0:1::9" } }] } });
    lab.put(&table, body).await;
    check("dual_route", &lab.get(&format!("{table}/routes/all")).await.body);
    let group = network("networkSecurityGroups/dual");
    let body = json!({ "location": "eastus", "properties": { "securityRules": [{ "name": "six", "properties": {
        "priority": 100, "direction": "Inbound", "access": "Deny", "protocol": "*",
        "sourceAddressPrefixes": ["fd00::/8", "2001:2::5"], "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": "*" } }] } });
    lab.put(&group, body).await;
    check("dual_rule", &lab.get(&format!("{group}/securityRules/six")).await.body);
}

/// What Azure refuses of IPv6, and what is not made here.
#[tokio::test]
async fn dual_stack_refusals() {
    let lab = Lab::new().await;
    let vnet = network("virtualNetworks/dual");
    let space = |prefixes: Value| json!({ "location": "eastus", "properties": { "addressSpace": { "addressPrefixes": prefixes } } });
    lab.put(&vnet, space(json!(["10.0.0.0/16", "fd00:db8::/48"]))).await;
    let subnet = |prefixes: Value| json!({ "properties": { "addressPrefixes": prefixes } });
    let at = format!("{vnet}/subnets/s");
    lab.put(&at, subnet(json!(["10.0.0.0/24", "fd00:db8:0:1::/64"]))).await;
    let nic = |configs: Value| json!({ "location": "eastus", "properties": { "ipConfigurations": configs } });
    let six = |name: &str, more: Value| {
        let mut properties = json!({ "privateIPAddressVersion": "IPv6", "subnet": { "id": at } });
        properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": name, "properties": properties })
    };
    let four =
        json!({ "name": "ipconfig1", "properties": { "primary": true, "subnet": { "id": at } } });
    let fixed = |address: &str| json!({ "privateIPAllocationMethod": "Static", "privateIPAddress": address });
    let other = format!("{vnet}/subnets/t");
    let n = network("networkInterfaces/n");
    let route = |hop: &str| {
        json!({ "location": "eastus", "properties": { "routes": [{ "name": "r", "properties": {
        "addressPrefix": "::/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop } }] } })
    };
    for (url, body, code) in [
        (&network("virtualNetworks/six"), space(json!(["fd00::/48"])), "InvalidParameter"),
        (
            &network("virtualNetworks/six"),
            space(json!(["10.0.0.0/16", "fe80::/64"])),
            "InvalidParameter",
        ),
        (&other, subnet(json!(["10.0.1.0/24", "fd00:db8:0:2::/72"])), "NetcfgInvalidSubnet"),
        (
            &other,
            subnet(json!(["10.0.1.0/24", "fd00:db9:0:2::/64"])),
            "NetcfgSubnetRangeOutsideVnet",
        ),
        (&other, subnet(json!(["10.0.1.0/24", "fd00:db8:0:1::/64"])), "NetcfgSubnetRangesOverlap"),
        (&other, subnet(json!(["fd00:db8:0:2::/64"])), "NotSupported"),
        (
            &other,
            subnet(json!(["10.0.1.0/24", "10.0.2.0/24"])),
            "MultipleAddressPrefixesSubnetNotSupported",
        ),
        (&n, nic(json!([six("a", json!({}))])), "InvalidParameter"),
        (&n, nic(json!([four, six("a", fixed("10.0.0.9"))])), "InvalidParameter"),
        (
            &n,
            nic(json!([four, six("a", fixed("fd00:db8:0:1::3"))])),
            "PrivateIPAddressInReservedRange",
        ),
        (&n, nic(json!([four, six("a", fixed("fd00:db8:0:2::9"))])), "PrivateIPAddressNotInSubnet"),
        (&network("routeTables/t"), route("10.0.0.4"), "InvalidParameter"),
    ] {
        assert_eq!(lab.refused(url, body.clone()).await.1, code, "{body}");
    }
}

//! Template deployments: what `az vm create`, `az network lb create` and people's templates send.

mod lab;

use lab::{Answer, GROUP, Lab, network, subnet};
use serde_json::{Value, json};

const DEPLOYMENT: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers/Microsoft.Resources/deployments/d";

fn body(template: &Value, parameters: &Value) -> Value {
    json!({ "properties": { "mode": "incremental", "parameters": parameters, "template": template } })
}

/// Deploys and lets everything become real; the deployment as it then is.
async fn deploy(lab: &Lab, template: &Value, parameters: &Value) -> Value {
    let made = lab.send("PUT", DEPLOYMENT, Some(body(template, parameters))).await;
    assert!(matches!(made.status, 200 | 201), "{made:?}");
    lab.settle();
    lab.get(DEPLOYMENT).await.body
}

async fn refused(lab: &Lab, template: &Value, parameters: &Value) -> Answer {
    let before = lab.store.snapshot();
    let answer = lab.send("PUT", DEPLOYMENT, Some(body(template, parameters))).await;
    assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    assert_eq!(lab.store.snapshot(), before, "a refused template made something");
    answer
}

/// The template of `az vm create --count 2 --public-ip-address p`, without what has no part in a network.
fn machines() -> Value {
    let id = |kind: &str, name: &str| network(&format!("{kind}/{name}"));
    json!({
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": { "adminPassword": { "type": "securestring" } },
        "variables": {},
        "resources": [
            { "apiVersion": "2022-01-01", "type": "Microsoft.Network/publicIPAddresses",
              "name": "[concat('p', copyIndex())]", "location": "eastus", "tags": {}, "dependsOn": [],
              "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static" },
              "copy": { "name": "publicipcopy", "mode": "parallel", "count": 2 } },
            { "apiVersion": "2015-06-15", "type": "Microsoft.Compute/virtualMachines",
              "name": "[concat('vm', copyIndex())]", "location": "eastus", "tags": {},
              "dependsOn": ["Microsoft.Network/networkInterfaces/vmVMNic0", "Microsoft.Network/networkInterfaces/vmVMNic1"],
              "copy": { "name": "vmcopy", "mode": "parallel", "count": 2 },
              "properties": {
                  "hardwareProfile": { "vmSize": "Standard_D2s_v5" },
                  "storageProfile": { "osDisk": { "createOption": "fromImage", "name": null },
                      "imageReference": { "publisher": "Canonical", "offer": "0001-com-ubuntu-server-jammy", "sku": "22_04-lts-gen2", "version": "latest" } },
                  "networkProfile": { "networkInterfaces": [{ "id": format!("[concat('{}', copyIndex())]", id("networkInterfaces", "vmVMNic")),
                      "properties": { "deleteOption": null } }] },
                  "osProfile": { "computerName": "[concat('vm', copyIndex())]", "adminUsername": "me",
                      "adminPassword": "[parameters('adminPassword')]" } } },
            { "apiVersion": "2015-06-15", "type": "Microsoft.Network/networkInterfaces",
              "name": "[concat('vmVMNic', copyIndex())]", "location": "eastus", "tags": {},
              "dependsOn": ["Microsoft.Network/publicIpAddresses/p0", "Microsoft.Network/publicIpAddresses/p1"],
              "copy": { "name": "niccopy", "mode": "parallel", "count": 2 },
              "properties": { "ipConfigurations": [{ "name": "[concat('ipconfigvm', copyIndex())]", "properties": {
                  "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet("s") },
                  "publicIPAddress": { "id": format!("[concat('{}', copyIndex())]", id("publicIPAddresses", "p")) } } }] } },
        ],
        "outputs": {},
    })
}

#[tokio::test]
async fn machines_are_made_with_what_they_need() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let parameters = json!({ "adminPassword": { "value": "a secret" } });
    let shown = deploy(&lab, &machines(), &parameters).await;
    assert_eq!(shown["properties"]["provisioningState"], "Succeeded", "{shown}");
    assert_eq!(shown["properties"]["outputResources"].as_array().unwrap().len(), 6);
    let machine = format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/vm1");
    let machine = lab.get(&machine).await.body;
    assert_eq!(machine["properties"]["osProfile"]["computerName"], "vm1");
    assert_eq!(machine["properties"]["storageProfile"]["imageReference"]["publisher"], "Canonical");
    assert_eq!(machine["properties"]["hardwareProfile"]["vmSize"], "Standard_D2s_v5");
    let nic = lab.get(&network("networkInterfaces/vmVMNic1")).await.body;
    let config = &nic["properties"]["ipConfigurations"][0];
    assert_eq!(config["name"], "ipconfigvm1");
    assert_eq!(config["properties"]["publicIPAddress"]["id"], network("publicIPAddresses/p1"));
    let view =
        format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/vm1?$expand=instanceView");
    let view = lab.get(&view).await.body["properties"]["instanceView"].clone();
    assert_eq!(view["statuses"][1]["code"], "PowerState/running", "{view}");
    let all = [shown, machine, nic].map(|body| body.to_string()).concat();
    assert!(!all.contains("a secret"), "a password is shown: {all}");
}

#[tokio::test]
async fn parameters_variables_and_functions_mean_something() {
    let lab = Lab::new().await;
    let template = json!({
        "parameters": {
            "name": { "type": "string", "defaultValue": "v", "allowedValues": ["v", "w"] },
            "size": { "type": "int" },
            "with": { "type": "bool", "defaultValue": false },
        },
        "variables": { "space": "[format('10.{0}.0.0/16', parameters('size'))]",
            "subnet": "[concat(parameters('name'), '/', toLower('S'))]" },
        "resources": [
            { "type": "Microsoft.Network/virtualNetworks/subnets", "name": "[variables('subnet')]", "apiVersion": "2024-01-01",
              "dependsOn": ["[resourceId('Microsoft.Network/virtualNetworks', parameters('name'))]"],
              "properties": { "addressPrefix": "[replace(variables('space'), '/16', '/24')]" } },
            { "type": "Microsoft.Network/virtualNetworks", "name": "[parameters('name')]", "apiVersion": "2024-01-01",
              "location": "[resourceGroup().location]", "tags": { "literal": "[[not evaluated]" },
              "properties": { "addressSpace": { "addressPrefixes": ["[variables('space')]"] } },
              "resources": [{ "type": "subnets", "name": "inner", "apiVersion": "2024-01-01",
                  "properties": { "addressPrefix": "[concat('10.', parameters('size'), '.1.0/24')]" } }] },
            { "type": "Microsoft.Network/routeTables", "name": "t", "condition": "[parameters('with')]", "location": "eastus" },
            { "type": "Microsoft.Network/virtualNetworks", "name": "after", "apiVersion": "2024-01-01", "location": "eastus",
              "properties": { "addressSpace": { "addressPrefixes": ["10.99.0.0/16"] },
                  "dhcpOptions": { "dnsServers": ["[first(split(first(reference(parameters('name')).addressSpace.addressPrefixes), '/'))]"] } } },
        ],
        "outputs": { "id": { "type": "string", "value": "[resourceId('Microsoft.Network/virtualNetworks/subnets', parameters('name'), 's')]" },
            "location": { "type": "string", "value": "[reference('v', '2024-01-01', 'Full').location]" } },
    });
    let shown = deploy(&lab, &template, &json!({ "size": { "value": 7 } })).await;
    let outputs = &shown["properties"]["outputs"];
    assert_eq!(outputs["id"], json!({ "type": "String", "value": subnet("s") }), "{shown}");
    assert_eq!(outputs["location"]["value"], "eastus");
    assert_eq!(shown["properties"]["parameters"]["size"], json!({ "type": "Int", "value": 7 }));
    let vnet = lab.get(&network("virtualNetworks/v")).await.body;
    assert_eq!(vnet["tags"]["literal"], "[not evaluated]");
    let subnets = vnet["properties"]["subnets"].as_array().unwrap();
    let prefixes: Vec<&Value> =
        subnets.iter().map(|it| &it["properties"]["addressPrefix"]).collect();
    assert_eq!(prefixes, ["10.7.1.0/24", "10.7.0.0/24"]);
    let after = lab.get(&network("virtualNetworks/after")).await.body;
    assert_eq!(after["properties"]["dhcpOptions"]["dnsServers"], json!(["10.7.0.0"]));
    assert_eq!(lab.get(&network("routeTables/t")).await.status, 404);
}

#[tokio::test]
async fn what_a_template_cannot_be_is_refused_before_anything_is_made() {
    let lab = Lab::new().await;
    let vnet = |name: &str, more: Value| {
        let mut vnet = json!({ "type": "Microsoft.Network/virtualNetworks", "name": name, "location": "eastus",
            "properties": { "addressSpace": { "addressPrefixes": ["10.1.0.0/16"] } } });
        for (key, value) in more.as_object().unwrap() {
            vnet[key] = value.clone();
        }
        vnet
    };
    let other = |more: Value| json!({ "resources": [vnet("first", json!({})), vnet("v", more)] });
    for (template, parameters, code, text) in [
        (
            other(json!({ "location": "[listKeys('x', 'y')]" })),
            json!({}),
            "NotSupported",
            "'listKeys'",
        ),
        (other(json!({ "location": "[concat('x']" })), json!({}), "InvalidTemplate", "position 10"),
        (
            other(json!({ "location": "[parameters('x')]" })),
            json!({}),
            "InvalidTemplate",
            "'x' is not found",
        ),
        (
            other(json!({ "copy": { "name": "c", "count": 801 } })),
            json!({}),
            "InvalidTemplate",
            "0 to 800",
        ),
        (other(json!({ "condition": "maybe" })), json!({}), "InvalidTemplate", "condition"),
        (
            other(json!({ "type": "Microsoft.Nothing/x" })),
            json!({}),
            "InvalidResourceNamespace",
            "Microsoft.Nothing",
        ),
        (
            other(json!({ "type": "Microsoft.Resources/deployments" })),
            json!({}),
            "NotSupported",
            "inside of templates",
        ),
        (other(json!({ "name": "a/b" })), json!({}), "InvalidTemplate", "no resource"),
        (
            other(json!({ "dependsOn": ["w"], "name": "[concat('v', copyIndex())]" })),
            json!({}),
            "InvalidTemplate",
            "copyIndex",
        ),
        (
            json!({ "resources": [vnet("v", json!({ "dependsOn": ["w"] })), vnet("w", json!({ "dependsOn": ["v"] }))] }),
            json!({}),
            "InvalidTemplate",
            "circle",
        ),
        (json!({ "resources": { "a": {} } }), json!({}), "NotSupported", "symbolic"),
        (
            json!({ "parameters": { "p": { "type": "string" } }, "resources": [] }),
            json!({}),
            "InvalidTemplate",
            "'p' is not provided",
        ),
        (
            json!({ "parameters": { "p": { "type": "int" } }, "resources": [] }),
            json!({ "p": { "value": "x" } }),
            "InvalidTemplate",
            "of type int",
        ),
        (
            json!({ "resources": [] }),
            json!({ "p": { "value": 1 } }),
            "InvalidTemplate",
            "do not correspond",
        ),
        (
            json!({ "outputs": { "o": { "type": "string", "value": "[nope()]" } }, "resources": [] }),
            json!({}),
            "NotSupported",
            "'nope'",
        ),
    ] {
        let answer = refused(&lab, &template, &parameters).await;
        assert_eq!(answer.code(), code, "{answer:?}");
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(message.contains(text), "`{message}` does not say `{text}`");
    }
    let mut complete = body(&json!({ "resources": [] }), &json!({}));
    complete["properties"]["mode"] = json!("Complete");
    assert_eq!(lab.refused(DEPLOYMENT, complete).await.1, "NotSupported");
}

#[tokio::test]
async fn a_deployment_says_what_failed() {
    let lab = Lab::new().await;
    let template = json!({ "resources": [{ "type": "Microsoft.Network/networkInterfaces", "name": "n", "location": "eastus",
        "properties": { "ipConfigurations": [{ "name": "a", "properties": { "subnet": { "id": subnet("s") } } }] } }] });
    let shown = deploy(&lab, &template, &json!({})).await;
    let error = &shown["properties"]["error"];
    assert_eq!(shown["properties"]["provisioningState"], "Failed");
    assert_eq!(error["code"], "DeploymentFailed");
    assert_eq!(error["details"][0]["code"], "InvalidResourceReference", "{shown}");
}

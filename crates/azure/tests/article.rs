//! The article's az half, as az sent it: every request of `data/article.json` in its order.
#![allow(clippy::unwrap_used, reason = "a test that panics says where")]

mod lab;

use lab::{Answer, Lab};
use serde_json::Value;

#[tokio::test]
async fn the_article_can_be_replayed() {
    let lab = Lab::empty();
    let commands: Value = serde_json::from_str(include_str!("data/article.json")).unwrap();
    let mut n_commands = 0;
    for command in commands.as_array().unwrap() {
        let text = command["command"].as_str().unwrap();
        let last = play(&lab, text, command["requests"].as_array().unwrap()).await;
        if let Some((body, name)) = expected(text) {
            assert_eq!(last.body["name"], name, "{text}");
            for (pointer, value) in body {
                let is = last.body.pointer(pointer).unwrap_or(&Value::Null);
                assert_eq!(is, &value, "{text}: {pointer}");
            }
        }
        n_commands += 1;
    }
    assert_eq!(n_commands, 15);
}

/// Plays the requests of one command, polling as az does; the last answer.
async fn play(lab: &Lab, text: &str, requests: &[Value]) -> Answer {
    let mut last = None;
    let mut has_put = false;
    for request in requests {
        let method = request["method"].as_str().unwrap();
        let path = request["path"].as_str().unwrap();
        let answer = lab.send(method, path, request.get("body").cloned()).await;
        let is_cluster = path.contains("/managedClusters/");
        // `az aks create` first makes sure that there is no cluster.
        let wanted: &[u16] = match method {
            "GET" if is_cluster && text.contains(" create ") && !has_put => &[404],
            "PUT" => &[200, 201],
            _ => &[200],
        };
        assert!(wanted.contains(&answer.status), "{text}: {method} {path}: {answer:?}");
        has_put |= method == "PUT";
        if let Some(url) = answer.header("azure-asyncoperation") {
            assert_eq!(answer.header("retry-after"), Some("1"));
            let state = &answer.body["properties"]["provisioningState"];
            assert!(state == "Updating" || state == "Creating", "{text}: {state}");
            assert_eq!(lab.get(url).await.body["status"], "InProgress", "{text}");
            lab.settle();
            assert_eq!(lab.get(url).await.body["status"], "Succeeded", "{text}");
        }
        last = Some(answer);
    }
    last.unwrap()
}

/// What the article prints, by JSON pointer, and the name.
fn expected(command: &str) -> Option<(Vec<(&'static str, Value)>, &'static str)> {
    let text = |value: &str| Value::from(value);
    let succeeded = ("/properties/provisioningState", text("Succeeded"));
    let subnet = |prefix: &str| {
        vec![
            succeeded.clone(),
            ("/properties/addressPrefix", text(prefix)),
            ("/properties/ipConfigurations", Value::Null),
        ]
    };
    let cluster = |plugin: &str, pod_cidr: Value| {
        vec![
            succeeded.clone(),
            ("/properties/networkProfile/networkPlugin", text(plugin)),
            ("/properties/networkProfile/podCidr", pod_cidr),
            ("/properties/networkProfile/networkPluginMode", Value::Null),
        ]
    };
    let contains = |part: &str| command.contains(part);
    Some(match () {
        () if contains("aks create -n aks-ntwdemo10") => {
            (cluster("azure", Value::Null), "aks-ntwdemo10")
        }
        () if contains("aks create -n aks-ntwdemo8") => {
            (cluster("none", Value::Null), "aks-ntwdemo8")
        }
        () if contains("aks create -n aks-ntwdemo12") => {
            (cluster("kubenet", text("10.244.0.0/16")), "aks-ntwdemo12")
        }
        () if contains("nodepool add") => {
            (vec![succeeded, ("/properties/mode", text("User"))], "aksnp02")
        }
        () if contains("subnet show") => (
            vec![
                ("/properties/delegations/0/name", text("aks-delegation")),
                (
                    "/properties/delegations/0/properties/serviceName",
                    text("Microsoft.ContainerService/managedClusters"),
                ),
                (
                    "/properties/delegations/0/properties/actions/0",
                    text("Microsoft.Network/virtualNetworks/subnets/join/action"),
                ),
            ],
            "subnet-pods",
        ),
        () if contains("subnet create -n subnet-aks") => (subnet("10.0.0.0/24"), "subnet-aks"),
        () if contains("subnet create -n subnet-pods") => (subnet("10.0.2.0/23"), "subnet-pods"),
        () if contains("subnet create -n aks-subnet") => (subnet("172.20.0.0/26"), "aks-subnet"),
        () if contains("subnet create -n np-subnet") => (subnet("172.20.0.64/26"), "np-subnet"),
        () if contains("subnet create -n ilb-subnet") => (subnet("172.20.0.128/26"), "ilb-subnet"),
        () => return None,
    })
}

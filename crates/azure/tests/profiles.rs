//! What of a cluster's profiles is done, and what is refused rather than kept without a word.
#![allow(clippy::unwrap_used, reason = "a test that panics says where")]

mod lab;

use lab::{Lab, cluster, cluster_body};
use serde_json::{Value, json};

/// What a cluster's profiles and a pool's upgrades say is done, or refused with a code; never taken for something else.
#[tokio::test]
async fn profiles_say_what_the_lab_does() {
    let lab = Lab::new().await;
    lab.vnet().await;
    let managed = json!({ "managedOutboundIPs": { "count": 1 } });
    let gateway = json!({ "managedOutboundIPProfile": { "count": 1 } });
    let network = "/properties/networkProfile";
    let upgrades = "/properties/agentPoolProfiles/0/upgradeSettings";
    let (invalid, unsupported) = ("InvalidParameter", "NotSupported");
    let of_type =
        |type_: &str, key: &str, profile: &Value| json!({ "outboundType": type_, key: profile });
    let (balancers, gateways) = ("loadBalancerProfile", "natGatewayProfile");
    for (at, value, code) in [
        (network, json!({ balancers: { "backendPoolType": "nodeIP" } }), unsupported),
        (network, json!({ balancers: { "backendPoolType": "nodes" } }), invalid),
        (network, json!({ balancers: { "backendPoolType": "nodeipconfiguration" } }), ""),
        (
            network,
            json!({ balancers: { "clusterServiceLoadBalancerHealthProbeMode": "Shared" } }),
            unsupported,
        ),
        (
            network,
            json!({ balancers: { "clusterServiceLoadBalancerHealthProbeMode": "x" } }),
            invalid,
        ),
        (
            network,
            json!({ balancers: { "clusterServiceLoadBalancerHealthProbeMode": "ServiceNodePort" } }),
            "",
        ),
        (network, of_type("loadBalancer", balancers, &managed), ""),
        (network, of_type("loadBalancer", gateways, &gateway), invalid),
        (
            network,
            of_type("loadBalancer", gateways, &json!({ "idleTimeoutInMinutes": 4 })),
            invalid,
        ),
        (network, of_type("loadBalancer", gateways, &json!({})), ""),
        (network, of_type("none", gateways, &gateway), invalid),
        (network, of_type("none", balancers, &managed), invalid),
        (network, of_type("block", balancers, &json!({ "allocatedOutboundPorts": 0 })), invalid),
        (network, of_type("block", balancers, &json!({})), ""),
        (network, of_type("managedNATGateway", balancers, &managed), invalid),
        (network, of_type("managedNATGateway", gateways, &gateway), ""),
        (
            network,
            of_type("managedNATGateway", gateways, &json!({ "sku": "StandardV2" })),
            "UnsupportedOutboundType",
        ),
        (
            network,
            of_type("userDefinedRouting", balancers, &managed),
            "InvalidUserDefinedRoutingWithLoadBalancerProfile",
        ),
        (network, json!({ "kubeProxyConfig": { "enabled": false } }), unsupported),
        (network, json!({ "kubeProxyConfig": { "mode": "IPVS" } }), unsupported),
        (
            network,
            json!({ "kubeProxyConfig": { "ipvsConfig": { "scheduler": "RoundRobin" } } }),
            unsupported,
        ),
        (network, json!({ "kubeProxyConfig": { "mode": "userspace" } }), invalid),
        (network, json!({ "kubeProxyConfig": { "enabled": true, "mode": "IPTABLES" } }), ""),
        (upgrades, json!({ "nodeSoakDurationInMinutes": 0 }), ""),
        (upgrades, json!({ "nodeSoakDurationInMinutes": 1 }), unsupported),
        (upgrades, json!({ "nodeSoakDurationInMinutes": 30 }), unsupported),
        (upgrades, json!({ "nodeSoakDurationInMinutes": 31 }), invalid),
        (upgrades, json!({ "undrainableNodeBehavior": "Schedule" }), ""),
        (upgrades, json!({ "undrainableNodeBehavior": "Cordon" }), unsupported),
        (upgrades, json!({ "undrainableNodeBehavior": "Drop" }), invalid),
        (upgrades, json!({ "maxBlockedNodes": "2" }), unsupported),
    ] {
        let shown = value.to_string();
        let mut body = cluster_body(json!({}), json!({}));
        let parent = body.pointer_mut(at);
        match (parent, at.rsplit_once('/')) {
            (Some(place), _) => {
                place.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            }
            (None, Some((above, key))) => body.pointer_mut(above).unwrap()[key] = value,
            (None, None) => panic!("{at}"),
        }
        if code.is_empty() {
            let made = lab.send("PUT", &cluster("c"), Some(body)).await;
            assert_eq!(made.status, 201, "{shown}: {made:?}");
            lab.settle();
            // What is given back is taken, and given back again.
            let made = lab.get(&cluster("c")).await.body;
            let again = lab.put(&cluster("c"), made.clone()).await;
            for at in [network, upgrades] {
                assert_eq!(again.pointer(at), made.pointer(at), "{shown}");
            }
            assert_eq!(lab.send("DELETE", &cluster("c"), None).await.status, 202);
            lab.settle();
        } else {
            assert_eq!(lab.refused(&cluster("c"), body).await, (400, code.to_owned()), "{shown}");
        }
    }
}

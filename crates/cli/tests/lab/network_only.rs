//! What a lab without Kubernetes says of its pods and nodes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TestLab;

/// Pods of all clusters by `CLUSTER:NAME`.
pub(crate) fn pods(lab: &TestLab) -> BTreeMap<String, Value> {
    let list = lab.aksnet(&["pod", "list", "-o", "json"]).json();
    let pods = list["pods"].as_array().unwrap().iter();
    let key = |pod: &Value| {
        format!("{}:{}", pod["cluster"].as_str().unwrap(), pod["name"].as_str().unwrap())
    };
    pods.map(|pod| (key(pod), pod.clone())).collect()
}

/// The nodes of a cluster by name, with their addresses.
pub(crate) fn nodes(lab: &TestLab, cluster: &str) -> Vec<(String, String)> {
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let clusters = status["clusters"].as_array().unwrap();
    let cluster = clusters.iter().find(|it| it["name"] == cluster).unwrap();
    let text = |node: &Value, key: &str| node[key].as_str().unwrap().to_owned();
    let nodes = cluster["nodes"].as_array().unwrap().iter();
    nodes.map(|node| (text(node, "name"), text(node, "address"))).collect()
}

//! The lab's own data plane beside Cilium's, in one run: two overlay clusters of two nodes side by side, whose paths
//! are measured in turn, round after round. Services are kube-proxy's in one, Cilium's in the other.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::{
    cluster::Cluster,
    lab::Lab,
    machine,
    packets::{Bare, PORT, Servers, Subject, compare},
    pods::{Pods, Token},
    seconds, spread,
};

/// A cluster's name, what `az` is told beside the mode, and what its paths are called.
const PLANES: [(&str, &str, [&str; 3]); 3] = [
    ("own", "", ["own_same_node", "own_cross_node", "own_service"]),
    (
        "cilium",
        "--network-dataplane cilium",
        ["cilium_same_node", "cilium_cross_node", "cilium_service"],
    ),
    (
        "hubble",
        "--network-dataplane cilium --enable-acns --disable-acns-security",
        ["hubble_same_node", "hubble_cross_node", "hubble_service"],
    ),
];
/// Pods that are made one after the other.
const SINGLE_PODS: usize = 10;
const PODS_AT_ONCE: usize = 20;

/// Everything about both.
pub(crate) fn measure(aksnet: &Path) -> anyhow::Result<Value> {
    let (lab, _) = Lab::up(aksnet)?;
    lab.wait_for_images()?;
    // Cilium's images are made before the first cluster that is timed.
    Cluster::create_with(&lab, "first", 1, PLANES[1].1)?.0.delete()?;
    let own = std::fs::canonicalize(aksnet)?.to_string_lossy().into_owned();
    let place = |target: &str| -> Vec<String> {
        [&own, "--name", lab.name(), "exec", target, "--"].map(str::to_owned).to_vec()
    };
    let bare = Bare::new()?;
    let mut servers = Servers(Vec::new());
    let mut subjects = vec![bare.subject(&mut servers)?];
    let mut report = Map::new();
    let mut clusters = Vec::new();
    for (name, more, _) in PLANES {
        let load = machine::wait_until_quiet();
        let (cluster, times) = Cluster::create_with(&lab, name, 2, more)?;
        let created = json!({ "az_seconds": seconds(times.az), "cluster_seconds": seconds(times.arm), "load": load });
        let mut pods = Pods::watch(&cluster)?;
        let load = machine::wait_until_quiet();
        let alone = pods.one_by_one(SINGLE_PODS, Token::Mounted)?;
        let together = pods.at_once(PODS_AT_ONCE)?;
        drop(pods);
        report.insert(
            name.to_owned(),
            json!({
                "created": created,
                "single_pods": spread(&alone),
                "pods_at_once": { "pods": PODS_AT_ONCE, "seconds": seconds(together) },
                "load": load,
            }),
        );
        cluster.lab.kubectl(name, "delete pod -n default --all --now", "")?;
        clusters.push(cluster);
    }
    let memory = machine::memory(lab.name(), lab.daemon_pid()?);
    report.insert("memory_of_all_nodes".to_owned(), memory["node"].clone());
    for (cluster, (name, _, [same, cross, service])) in clusters.iter().zip(PLANES) {
        let address = ends(cluster)?;
        servers.start(&place(&format!("{name}:default/same")), PORT)?;
        servers.start(&place(&format!("{name}:default/cross")), PORT)?;
        let asker = place(&format!("{name}:default/asker"));
        for (what, to) in [
            (same, address("pod same", ".status.podIP")?),
            (cross, address("pod cross", ".status.podIP")?),
            (service, address("service same", ".spec.clusterIP")?),
        ] {
            let to = format!("{to}:{PORT}");
            subjects.push(Subject { name: what, asker: asker.clone(), to });
        }
    }
    let load = machine::wait_until_quiet();
    let mut paths = compare(&subjects)?;
    paths["unit"] = json!("µs, median");
    paths["load"] = load;
    report.insert("paths".to_owned(), paths);
    drop(servers);
    lab.down()?;
    Ok(Value::Object(report))
}

/// Makes the pods that are measured between; the answer finds addresses.
fn ends<'a>(
    cluster: &'a Cluster<'a>,
) -> anyhow::Result<impl Fn(&str, &str) -> anyhow::Result<String> + 'a> {
    let get = |what: &str, path: &str| {
        let line = format!("get {what} -n default -o jsonpath={{{path}}}");
        cluster.lab.kubectl(&cluster.name, &line, "")
    };
    let nodes = get("nodes", ".items[*].metadata.name")?;
    let mut nodes = nodes.split_whitespace();
    let (one, other) = nodes.next().zip(nodes.next()).context("two nodes")?;
    let pod = |name: &str, node: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
            "spec": { "nodeName": node, "containers": [
                { "name": "nginx", "image": "nginx", "imagePullPolicy": "IfNotPresent" }] } })
    };
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "same" },
        "spec": { "selector": { "app": "same" }, "ports": [{ "port": PORT }] } });
    let all = [pod("asker", one), pod("same", one), pod("cross", other), service];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": all });
    cluster.lab.kubectl(&cluster.name, "create -n default -f -", &list.to_string())?;
    let wait = "wait -n default --for=condition=Ready pod --all --timeout=120s";
    cluster.lab.kubectl(&cluster.name, wait, "")?;
    Ok(get)
}

//! Nodes: what the cloud knows of them goes into the cluster, and kubenet's routes into the cloud
//! (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_instances_v2.go` and `azure_routes.go`).

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Node, NodeAddress, Taint};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::{Value, json};
use vnet::{
    addr::{Family, Prefix},
    model::{Machine, NetworkMode, NodeRole, Role},
    region::Region,
};

use super::{Cluster, ControllerError, arm, kubernetes, reference};

const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// Initialises every node that is not, and makes the managed route table hold one route per node.
pub(super) async fn pass(cluster: &Cluster) -> Result<(), ControllerError> {
    let region = cluster.store.snapshot();
    let machines = machines(&region, cluster);
    let api: Api<Node> = Api::all(cluster.client.clone());
    for node in cluster.nodes.state() {
        let name = node.name_any();
        let Some(machine) = machines.get(name.as_str()) else { continue };
        let addresses = addresses(&region, machine);
        if addresses.is_empty() {
            continue;
        }
        let facts = Facts {
            provider_id: provider_id(machine),
            addresses: addresses.iter().map(IpAddr::to_string).collect(),
            pod_ranges: pod_ranges(machine).iter().map(Prefix::to_string).collect(),
            location: machine.meta.location.clone(),
            instance_type: instance_type(&region, machine),
        };
        if let Some(patch) = missing_spec(&node, &facts) {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .map_err(kubernetes(format!("initialising node {name}")))?;
        }
        if let Some(patch) = missing_status(&node, &facts) {
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .map_err(kubernetes(format!("setting the addresses of node {name}")))?;
        }
    }
    if region.clusters.get(&cluster.id).is_some_and(|c| c.mode == NetworkMode::Kubenet) {
        routes(cluster, &region, &machines).await?;
    }
    Ok(())
}

/// What the cloud knows of a node.
struct Facts {
    provider_id: String,
    /// IPv4 first; so the ranges.
    addresses: Vec<String>,
    pod_ranges: Vec<String>,
    location: String,
    instance_type: String,
}

fn machines<'a>(region: &'a Region, cluster: &Cluster) -> BTreeMap<&'a str, &'a Machine> {
    let ours = region
        .machines
        .values()
        .filter(|machine| matches!(&machine.role, Role::Node(role) if role.cluster == cluster.id));
    ours.map(|machine| (machine.hostname.as_str(), machine.as_ref())).collect()
}

/// `azure:///subscriptions/…`, with the resource group in lower case, as AKS writes it.
pub(super) fn provider_id(machine: &Machine) -> String {
    let id = machine.meta.id.as_str();
    let group = machine.meta.id.resource_group();
    format!("azure://{}", id.replacen(group, &group.to_ascii_lowercase(), 1))
}

/// The ranges of a node's pods, IPv4 first.
pub(super) fn pod_ranges(machine: &Machine) -> Vec<Prefix> {
    machine.node().map(NodeRole::pod_ranges).unwrap_or_default()
}

/// The addresses by which a node is known: the primary one of each family.
pub(super) fn addresses(region: &Region, machine: &Machine) -> Vec<IpAddr> {
    let nic = region.nics.get(&machine.nic);
    let of = |family| nic.and_then(|nic| nic.address_of(family));
    [of(Family::V4), of(Family::V6)].into_iter().flatten().collect()
}

fn instance_type(region: &Region, machine: &Machine) -> String {
    let Role::Node(role) = &machine.role else { return String::new() };
    let cluster = region.clusters.get(&role.cluster);
    let pool = cluster.and_then(|cluster| cluster.pools.get(&role.pool));
    pool.map(|pool| pool.vm_size.clone()).unwrap_or_default()
}

/// What has to change in a node's metadata and spec; `None` when nothing has.
fn missing_spec(node: &Node, facts: &Facts) -> Option<Value> {
    let spec = node.spec.clone().unwrap_or_default();
    let mut wanted = json!({});
    if spec.provider_id.is_none() {
        wanted["spec"]["providerID"] = json!(facts.provider_id);
    }
    if let (None, Some(first)) = (&spec.pod_cidr, facts.pod_ranges.first()) {
        wanted["spec"]["podCIDR"] = json!(first);
        wanted["spec"]["podCIDRs"] = json!(facts.pod_ranges);
    }
    let taints = spec.taints.unwrap_or_default();
    let rest: Vec<&Taint> = taints.iter().filter(|taint| taint.key != UNINITIALIZED).collect();
    if rest.len() != taints.len() {
        wanted["spec"]["taints"] = json!(rest);
    }
    let labels = [
        // What `kubectl get nodes` shows as ROLES; a kubelet may not set it itself.
        ("kubernetes.io/role", "agent"),
        ("topology.kubernetes.io/region", facts.location.as_str()),
        ("topology.kubernetes.io/zone", "0"),
        ("failure-domain.beta.kubernetes.io/region", facts.location.as_str()),
        ("failure-domain.beta.kubernetes.io/zone", "0"),
        ("node.kubernetes.io/instance-type", facts.instance_type.as_str()),
        ("beta.kubernetes.io/instance-type", facts.instance_type.as_str()),
    ];
    for (key, value) in labels {
        if node.labels().get(key).map(String::as_str) != Some(value) {
            wanted["metadata"]["labels"][key] = json!(value);
        }
    }
    (wanted != json!({})).then_some(wanted)
}

/// What has to change in a node's status: its addresses and its name.
fn missing_status(node: &Node, facts: &Facts) -> Option<Value> {
    let address = |type_: &str, address: &str| NodeAddress {
        type_: type_.to_owned(),
        address: address.to_owned(),
    };
    let mut wanted: Vec<_> =
        facts.addresses.iter().map(|text| address("InternalIP", text)).collect();
    wanted.push(address("Hostname", &node.name_any()));
    let has = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
    let all_there = wanted.iter().all(|address| has.contains(address));
    (!all_there || has.len() != wanted.len()).then(|| json!({ "status": { "addresses": wanted } }))
}

/// The name of a node's route: `<node>____<prefix without its punctuation>`.
pub(super) fn route_name(node: &str, prefix: &str) -> String {
    format!("{node}____{}", prefix.replace(['.', ':', '/'], ""))
}

/// A node's routes by name, one per family: where to, and by which next hop of the same family.
pub(super) fn node_routes(
    region: &Region,
    machine: &Machine,
) -> impl Iterator<Item = (String, (String, String))> {
    let addresses = addresses(region, machine);
    pod_ranges(machine).into_iter().filter_map(move |range| {
        let address = addresses.iter().find(|it| Family::of(**it) == range.family())?;
        let range = range.to_string();
        Some((route_name(&machine.hostname, &range), (range, address.to_string())))
    })
}

/// Whether a route of this name is one that a cloud provider made for a node. Others are somebody else's.
pub(super) fn is_node_route(name: &str) -> bool {
    name.split_once("____").is_some_and(|(node, _)| node.starts_with("aks-"))
}

/// Puts a route per node into the managed route table and takes away those of nodes that are gone.
/// Routes with other names are somebody else's.
async fn routes(
    cluster: &Cluster,
    region: &Region,
    machines: &BTreeMap<&str, &Machine>,
) -> Result<(), ControllerError> {
    let table = region.clusters.get(&cluster.id).and_then(|c| c.route_table.clone());
    let Some(table) = table else { return Ok(()) };
    let azure =
        |action: String| move |source: arm::ArmError| ControllerError::Azure { action, source };
    let current = arm::get(&*cluster.arm, table.as_str())
        .await
        .map_err(azure(format!("reading route table {}", table.name())))?;
    let has: BTreeMap<&str, &Value> = current["properties"]["routes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|route| Some((route["name"].as_str()?, &route["properties"])))
        .collect();

    let mut wanted = BTreeMap::new();
    for (name, machine) in machines {
        let Some(node) = cluster.nodes.get(&reference(name)) else { continue };
        for (name, (range, address)) in node_routes(region, machine) {
            wanted.insert(name, (range, address, node.clone()));
        }
    }
    for (name, (range, address, node)) in &wanted {
        let same = has.get(name.as_str()).is_some_and(|route| {
            route["addressPrefix"] == json!(range) && route["nextHopIpAddress"] == json!(address)
        });
        if same {
            continue;
        }
        let id = table.child("routes", name);
        let body = json!({ "name": name, "properties": {
            "addressPrefix": range, "nextHopType": "VirtualAppliance", "nextHopIpAddress": address } });
        if let Err(source) = arm::put(&*cluster.arm, id.as_str(), body).await {
            let note = format!(
                "Could not create route {} {range} for node {}: {source}",
                node.uid().unwrap_or_default(),
                node.name_any()
            );
            cluster.event(node.as_ref(), EventType::Warning, "FailedToCreateRoute", &note).await;
            return Err(azure(format!("making route {name}"))(source));
        }
    }
    for name in has.keys() {
        if is_node_route(name) && !wanted.contains_key(*name) {
            arm::delete(&*cluster.arm, table.child("routes", name).as_str())
                .await
                .map_err(azure(format!("removing route {name}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            provider_id: "azure:///x".to_owned(),
            addresses: vec!["10.224.0.4".to_owned(), "fd00:db8::4".to_owned()],
            pod_ranges: vec!["10.244.1.0/24".to_owned(), "fd12:3456:789a:0:1::/80".to_owned()],
            location: "eastus".to_owned(),
            instance_type: "Standard_D2s_v3".to_owned(),
        }
    }

    fn merged(node: &Node, patch: &Value) -> Node {
        fn merge(into: &mut Value, patch: &Value) {
            match (into, patch) {
                (Value::Object(into), Value::Object(patch)) => {
                    for (key, value) in patch {
                        merge(into.entry(key.clone()).or_insert(Value::Null), value);
                    }
                }
                (into, patch) => *into = patch.clone(),
            }
        }
        let mut value = serde_json::to_value(node).unwrap();
        merge(&mut value, patch);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_new_node_is_initialised_once() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "aks-nodepool1-12345678-vmss000000" },
            "spec": { "taints": [
                { "key": UNINITIALIZED, "value": "true", "effect": "NoSchedule" },
                { "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" } ] } }))
        .unwrap();
        let patch = missing_spec(&node, &facts()).unwrap();
        assert_eq!(patch["spec"]["podCIDR"], "10.244.1.0/24");
        assert_eq!(patch["spec"]["podCIDRs"], json!(["10.244.1.0/24", "fd12:3456:789a:0:1::/80"]));
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 1);
        let node = merged(&node, &patch);
        assert_eq!(missing_spec(&node, &facts()), None);
        let node = merged(&node, &missing_status(&node, &facts()).unwrap());
        assert_eq!(missing_status(&node, &facts()), None);
    }

    #[test]
    fn routes_are_named_as_the_cloud_provider_names_them() {
        assert_eq!(
            route_name("aks-nodepool1-24351847-vmss000000", "10.244.0.0/24"),
            "aks-nodepool1-24351847-vmss000000____102440024"
        );
    }
}

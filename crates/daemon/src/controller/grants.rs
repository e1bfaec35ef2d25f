//! Pod addresses: each node's `NodeNetworkConfig` says what it has, and a node asks there for more
//! (Azure/azure-container-networking, `crd/nodenetworkconfig/api/v1alpha`).
//!
//! The region decides; this only carries its answer into the cluster.

use std::{collections::BTreeMap, net::Ipv4Addr};

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use serde_json::{Value, json};
use uuid::Uuid;
use vnet::{
    addr::{Family, Prefix4},
    command::Command,
    model::{Holder, Machine, NetworkMode, PodAllocation, Role},
    name::ArmId,
    pods::{
        demand::Scaler,
        exhaustion::{Ask, answer},
    },
    region::Region,
};

use super::{Cluster, ControllerError, kubernetes, node_network_config, reference};
use crate::reconcile::now;

mod exhaustion;

const NAMESPACE: &str = "kube-system";
const MANAGER: &str = "aksnet";

/// Makes every node's `NodeNetworkConfig` say what the region says, after granting what nodes ask for.
pub(super) async fn pass(cluster: &Cluster) -> Result<(), ControllerError> {
    let region = cluster.store.snapshot();
    let Some(mode) = region.clusters.get(&cluster.id).map(|c| c.mode) else { return Ok(()) };
    if !matches!(mode, NetworkMode::Azure | NetworkMode::Overlay) {
        return Ok(());
    }
    let kind = node_network_config();
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), NAMESPACE, &kind);
    let machines: Vec<_> = region
        .machines
        .values()
        .filter(|machine| matches!(&machine.role, Role::Node(role) if role.cluster == cluster.id))
        // An old node of a cluster that is being migrated has the old way.
        .filter(|machine| {
            let mode = region.image_of(machine).map_or(mode, |image| image.mode);
            matches!(mode, NetworkMode::Azure | NetworkMode::Overlay)
        })
        .collect();
    let mut subnets: BTreeMap<ArmId, bool> = BTreeMap::new();
    let mut short = Vec::new();
    for machine in &machines {
        let key = ObjectRef::new_with(&machine.hostname, kind.clone()).within(NAMESPACE);
        let object = cluster.grants.get(&key);
        let subnet = pod_subnet(&region, machine);
        let is_short = match (&subnet, object.as_deref()) {
            (Some(subnet), Some(object)) => {
                let is_exhausted = exhaustion::was_exhausted(cluster, subnet);
                grant(cluster, machine, subnet, object, is_exhausted)?
            }
            _ => false,
        };
        if let Some(subnet) = subnet {
            *subnets.entry(subnet.clone()).or_default() |= is_short;
            if is_short {
                short.push((machine.hostname.as_str(), subnet));
            }
        }
        let Some(status) = status(&cluster.store.snapshot(), machine, is_short) else { continue };
        write(cluster, &api, machine, object.as_deref(), status).await?;
    }
    for object in cluster.grants.state() {
        let name = object.name_any();
        if !machines.iter().any(|machine| machine.hostname == name) {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                Err(error) => {
                    return Err(kubernetes(format!("removing the addresses of {name}"))(error));
                }
            }
        }
    }
    exhaustion::publish(cluster, &subnets).await?;
    exhaustion::tell(cluster, &short).await
}

/// The pod subnet of a node's pool, if it has one.
fn pod_subnet(region: &Region, machine: &Machine) -> Option<ArmId> {
    let Role::Node(role) = &machine.role else { return None };
    region.clusters.get(&role.cluster)?.pools.get(&role.pool)?.pod_subnet.clone()
}

/// Grants what the node asks for, as far as there is room. Answers whether it goes short.
fn grant(
    cluster: &Cluster,
    machine: &Machine,
    subnet: &ArmId,
    object: &DynamicObject,
    is_exhausted: bool,
) -> Result<bool, ControllerError> {
    // What an earlier node of this pass was given is not there any more.
    let region = cluster.store.snapshot();
    let Some(has) = batch_addresses(&region, machine) else { return Ok(false) };
    let Some(wanted) = object.data["spec"]["requestedIPCount"].as_u64() else { return Ok(false) };
    let listed = object.data["spec"]["ipsNotInUse"].as_array().map_or(0, Vec::len);
    let released = released(machine, object, &has);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let ask = Ask {
        wanted: u32::try_from(wanted).unwrap_or(u32::MAX).min(Scaler::default().max),
        has: number(has.len()),
        listed: number(listed),
        listed_held: number(released.len()),
        room: number(region.free_addresses(subnet).count()),
        is_exhausted,
    };
    let answer = answer(ask);
    let Some(total) = answer.total else { return Ok(answer.is_short) };
    let command = Command::SetPodAddresses { machine: machine.meta.id.clone(), total, released };
    match cluster.store.change(command, now()) {
        Ok(_) => Ok(answer.is_short),
        Err(store::StoreError::Refused(fault)) => {
            tracing::info!(node = machine.hostname, error = %fault, "no more pod addresses");
            Ok(true)
        }
        Err(error) => {
            Err(ControllerError::Store { node: machine.hostname.clone(), source: Box::new(error) })
        }
    }
}

/// The addresses that the node gives back: it names them by the ids that they were granted with.
fn released(machine: &Machine, object: &DynamicObject, has: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let ids: Vec<&str> = object.data["spec"]["ipsNotInUse"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let is_named = |address: &Ipv4Addr| ids.contains(&address_id(machine, *address).as_str());
    has.iter().copied().filter(is_named).collect()
}

/// The addresses of its pod subnet that a node holds; `None` when its pool has no pod subnet.
fn batch_addresses(region: &Region, machine: &Machine) -> Option<Vec<Ipv4Addr>> {
    let Role::Node(role) = &machine.role else { return None };
    let pool = region.clusters.get(&role.cluster)?.pools.get(&role.pool)?;
    let (_, subnet) = region.subnet(pool.pod_subnet.as_ref()?)?;
    let ours = Holder::PodBatch { node: machine.meta.id.clone() };
    Some(
        subnet
            .held
            .iter()
            .filter(|(_, holder)| **holder == ours)
            .filter_map(|(address, _)| Family::v4(*address))
            .collect(),
    )
}

/// The id by which an address is granted and given back: the same for the same node and address.
fn address_id(machine: &Machine, address: Ipv4Addr) -> String {
    Uuid::new_v5(&machine.meta.guid, address.to_string().as_bytes()).to_string()
}

/// What the node's object should say of it.
fn status(region: &Region, machine: &Machine, refused: bool) -> Option<Value> {
    let Role::Node(role) = &machine.role else { return None };
    let cluster = region.clusters.get(&role.cluster)?;
    let pool = cluster.pools.get(&role.pool)?;
    let nic = region.nics.get(&machine.nic)?;
    let assignments = |addresses: &[Ipv4Addr]| -> Value {
        let entry = |address: &Ipv4Addr| json!({ "name": address_id(machine, *address), "ip": address.to_string() });
        addresses.iter().map(entry).collect()
    };
    let mut container = json!({
        "id": machine.meta.guid.to_string(),
        "nodeIP": nic.address()?.to_string(),
        "macAddress": nic.mac.to_string(),
        "version": 0,
        "status": if refused { "NCUpdateSubnetFullError" } else { "NCUpdateSuccess" },
    });
    let mode = region.image_of(machine)?.mode;
    let count = match (mode, &pool.pod_subnet) {
        (NetworkMode::Overlay, _) => {
            let range = role.pod_range?;
            container["type"] = json!("overlay");
            container["assignmentMode"] = json!("static");
            container["primaryIP"] = json!(range.to_string());
            container["subnetName"] = json!("overlay");
            container["subnetAddressSpace"] = json!(cluster.pod_cidr?.to_string());
            range.n_addresses()
        }
        (_, subnet_id) => {
            let pods = subnet_id.is_some();
            let subnet_id = subnet_id.as_ref().unwrap_or(&pool.subnet);
            let (_, subnet) = region.subnet(subnet_id)?;
            let addresses = if pods {
                batch_addresses(region, machine)?
            } else {
                let others = nic.configs.iter().skip(1);
                others.filter_map(|config| Family::v4(config.address)).collect()
            };
            let is_dynamic = pods && pool.pod_allocation == PodAllocation::Dynamic;
            container["type"] = json!("vnet");
            container["assignmentMode"] = json!(if is_dynamic { "dynamic" } else { "static" });
            container["subnetName"] = json!(subnet.name.as_str());
            container["subnetAddressSpace"] = json!(subnet.prefix.to_string());
            container["defaultGateway"] = json!(subnet.prefix.nth(1)?.to_string());
            container["ipAssignments"] = assignments(&addresses);
            // Static blocks are granted once, with the node: the first in place of an address, the others in a list
            // (Azure/azure-container-networking, `cns/kubecontroller/nodenetworkconfig/conversion_linux.go`).
            if pods && !is_dynamic {
                let blocks = region.pod_blocks_of(&machine.meta.id);
                container["type"] = json!("vnetblock");
                container["primaryIP"] = json!(blocks.first()?.to_string());
                let entry = |block: &Prefix4| json!({ "name": address_id(machine, block.network()), "ip": block.to_string() });
                container["ipAssignments"] = blocks.iter().skip(1).map(entry).collect();
            }
            addresses.len() as u64
        }
    };
    let mut containers = vec![container];
    // A container per family (see `daemon::node::kubernetes`).
    if let (NetworkMode::Overlay, Some(range), Some(space)) =
        (mode, role.pod_range6, cluster.pod_cidr6)
    {
        let mut second = containers[0].clone();
        second["id"] = json!(Uuid::new_v5(&machine.meta.guid, b"IPv6").to_string());
        second["nodeIP"] = json!(nic.address_of(Family::V6)?.to_string());
        second["primaryIP"] = json!(range.to_string());
        second["subnetAddressSpace"] = json!(space.to_string());
        containers.push(second);
    }
    let scaler = Scaler::default();
    Some(json!({
        "assignedIPCount": count,
        "scaler": {
            "batchSize": scaler.batch,
            "releaseThresholdPercent": scaler.release_percent,
            "requestThresholdPercent": scaler.request_percent,
            "maxIPCount": scaler.max,
        },
        "status": if refused { "Error" } else { "Updated" },
        "networkContainers": containers,
    }))
}

/// Makes the object, or brings its status up to date.
async fn write(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    machine: &Machine,
    object: Option<&DynamicObject>,
    mut status: Value,
) -> Result<(), ControllerError> {
    let name = &machine.hostname;
    let doing = || kubernetes(format!("granting addresses to {name}"));
    // The node owns it, as in AKS: whoever deletes the node deletes this.
    let node = cluster.nodes.get(&reference(name));
    let owner = node.as_ref().and_then(|node| {
        Some(json!([{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.uid()? }]))
    });
    let is_owned = object.is_some_and(|object| !object.owner_references().is_empty());
    if object.is_none() || (owner.is_some() && !is_owned) {
        let mut made = json!({ "apiVersion": "acn.azure.com/v1alpha", "kind": "NodeNetworkConfig",
            "metadata": { "name": name, "namespace": NAMESPACE } });
        if let Some(owner) = owner {
            made["metadata"]["ownerReferences"] = owner;
        }
        if object.is_none() {
            made["spec"] = json!({ "requestedIPCount": status["assignedIPCount"] });
        }
        let made = match object {
            None => api.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(&made)).await,
            // The node has written its own count by now, and it is not ours to own.
            Some(_) => api.patch(name, &PatchParams::default(), &Patch::Merge(&made)).await,
        };
        match made {
            Ok(_) => {}
            // The definition of the kind may not be there yet; the next pass finds it.
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
            Err(error) => return Err(doing()(error)),
        }
    }
    let has = object.map(|object| &object.data["status"]);
    if let Some(has) = has {
        // A container's version counts the changes of its addresses.
        let container = &has["networkContainers"][0];
        let version = container["version"].as_u64().unwrap_or_default();
        let is_same = container["ipAssignments"] == status["networkContainers"][0]["ipAssignments"];
        status["networkContainers"][0]["version"] = (version + u64::from(!is_same)).into();
    }
    if has == Some(&status) {
        return Ok(());
    }
    let patch = json!({ "status": status });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(doing())?;
    Ok(())
}

//! Pod addresses: each node's `NodeNetworkConfig` says what it has, and a node asks there for more
//! (Azure/azure-container-networking, `crd/nodenetworkconfig/api/v1alpha`).
//!
//! The region decides; this only carries its answer into the cluster.

use std::net::Ipv4Addr;

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use serde_json::{Value, json};
use uuid::Uuid;
use vnet::{
    command::Command,
    model::{Holder, Machine, NetworkMode, POD_BATCH, PodAllocation, Role},
    region::Region,
};

use super::{Cluster, ControllerError, kubernetes, node_network_config};
use crate::reconcile::now;

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
    let mut names = Vec::new();
    for machine in region.machines.values() {
        if !matches!(&machine.role, Role::Node(role) if role.cluster == cluster.id) {
            continue;
        }
        // An old node of a cluster that is being migrated has the old way.
        let mode = region.image_of(machine).map_or(mode, |image| image.mode);
        if !matches!(mode, NetworkMode::Azure | NetworkMode::Overlay) {
            continue;
        }
        names.push(machine.hostname.clone());
        let key = ObjectRef::new_with(&machine.hostname, kind.clone()).within(NAMESPACE);
        let object = cluster.grants.get(&key);
        let refused = match object.as_deref() {
            Some(object) => grant(cluster, &region, machine, object)?,
            None => false,
        };
        let Some(status) = status(&cluster.store.snapshot(), machine, refused) else { continue };
        write(&api, machine, object.as_deref(), status).await?;
    }
    for object in cluster.grants.state() {
        let name = object.name_any();
        if !names.contains(&name) {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                Err(error) => {
                    return Err(kubernetes(format!("removing the addresses of {name}"))(error));
                }
            }
        }
    }
    Ok(())
}

/// Grants what the node asks for, in whole batches. Answers whether the subnet was too full for it.
fn grant(
    cluster: &Cluster,
    region: &Region,
    machine: &Machine,
    object: &DynamicObject,
) -> Result<bool, ControllerError> {
    let Some(has) = batch_addresses(region, machine) else { return Ok(false) };
    let Some(wanted) = object.data["spec"]["requestedIPCount"].as_u64() else { return Ok(false) };
    let batch = POD_BATCH as u64;
    let wanted = wanted.div_ceil(batch) * batch;
    if wanted == has.len() as u64 {
        return Ok(false);
    }
    let released = released(machine, object, &has);
    if wanted < has.len() as u64 && released.is_empty() {
        // It has not said yet which ones it can do without.
        return Ok(false);
    }
    let total = u32::try_from(wanted).unwrap_or(u32::MAX);
    let command = Command::SetPodAddresses { machine: machine.meta.id.clone(), total, released };
    match cluster.store.change(command, now()) {
        Ok(_) => Ok(false),
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
            .map(|(address, _)| *address)
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
                nic.configs.iter().skip(1).map(|config| config.address).collect()
            };
            // Static blocks are granted once, with the node.
            let is_dynamic = pods && pool.pod_allocation == PodAllocation::Dynamic;
            container["type"] = json!("vnet");
            container["assignmentMode"] = json!(if is_dynamic { "dynamic" } else { "static" });
            container["subnetName"] = json!(subnet.name.as_str());
            container["subnetAddressSpace"] = json!(subnet.prefix.to_string());
            container["defaultGateway"] = json!(subnet.prefix.nth(1)?.to_string());
            container["ipAssignments"] = assignments(&addresses);
            addresses.len() as u64
        }
    };
    Some(json!({
        "assignedIPCount": count,
        "scaler": { "batchSize": POD_BATCH, "releaseThresholdPercent": 150,
                    "requestThresholdPercent": 50, "maxIPCount": 250 },
        "status": if refused { "Error" } else { "Updated" },
        "networkContainers": [container],
    }))
}

/// Makes the object, or brings its status up to date.
async fn write(
    api: &Api<DynamicObject>,
    machine: &Machine,
    object: Option<&DynamicObject>,
    status: Value,
) -> Result<(), ControllerError> {
    let name = &machine.hostname;
    let doing = || kubernetes(format!("granting addresses to {name}"));
    if object.is_none() {
        let count = status["assignedIPCount"].clone();
        let object = json!({ "apiVersion": "acn.azure.com/v1alpha", "kind": "NodeNetworkConfig",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "requestedIPCount": count } });
        let made = api.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(&object)).await;
        match made {
            Ok(_) => {}
            // The definition of the kind may not be there yet; the next pass finds it.
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
            Err(error) => return Err(doing()(error)),
        }
    }
    let has = object.map(|object| &object.data["status"]);
    if has == Some(&status) {
        return Ok(());
    }
    let patch = json!({ "status": status });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(doing())?;
    Ok(())
}

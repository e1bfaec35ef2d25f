//! Pod subnets that run out: their `ClusterSubnetState`, and an event on each pod that waits.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    runtime::{events::EventType, reflector::ObjectRef},
};
use serde_json::json;
use vnet::{
    model::Holder,
    name::ArmId,
    pods::exhaustion::{explain, is_exhausted, state_name},
};

use super::{
    super::{Cluster, ControllerError, cluster_subnet_state, kubernetes},
    MANAGER, NAMESPACE,
};

/// Azure's code for a subnet without a free address.
const REASON: &str = "SubnetIsFull";

/// Whether the cluster's object says that this subnet is exhausted.
pub(super) fn was_exhausted(cluster: &Cluster, subnet: &ArmId) -> bool {
    let name = state_name(subnet.name());
    let key = ObjectRef::new_with(&name, cluster_subnet_state()).within(NAMESPACE);
    let object = cluster.subnets.get(&key);
    object.is_some_and(|object| object.data["status"]["exhausted"] == true)
}

/// Makes each subnet's object say whether it is exhausted, now that in some of them nodes go short.
pub(super) async fn publish(
    cluster: &Cluster,
    subnets: &BTreeMap<ArmId, bool>,
) -> Result<(), ControllerError> {
    let kind = cluster_subnet_state();
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), NAMESPACE, &kind);
    let region = cluster.store.snapshot();
    for (id, is_anyone_short) in subnets {
        let Some((_, subnet)) = region.subnet(id) else { continue };
        let usage = subnet.usage();
        let mut nodes: Vec<_> = subnet
            .held
            .values()
            .filter(|holder| matches!(holder, Holder::PodBatch { .. }))
            .map(Holder::resource)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let now = is_exhausted(
            was_exhausted(cluster, id),
            *is_anyone_short,
            usage.usable.saturating_sub(usage.held),
            u64::try_from(nodes.len()).unwrap_or(u64::MAX),
        );
        let name = state_name(id.name());
        let key = ObjectRef::new_with(&name, kind.clone()).within(NAMESPACE);
        let object = cluster.subnets.get(&key);
        if object.as_ref().is_some_and(|object| object.data["status"]["exhausted"] == now) {
            continue;
        }
        let doing = || kubernetes(format!("saying whether subnet {name} is exhausted"));
        if object.is_none() {
            let made = json!({ "apiVersion": "acn.azure.com/v1alpha1", "kind": "ClusterSubnetState",
                "metadata": { "name": name, "namespace": NAMESPACE } });
            match api.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(&made)).await {
                Ok(_) => {}
                // The definition of the kind may not be there yet; the next pass finds it.
                Err(kube::Error::Api(answer)) if answer.code == 404 => continue,
                Err(error) => return Err(doing()(error)),
            }
        }
        let timestamp = Timestamp::now().to_string();
        let patch = json!({ "status": { "exhausted": now, "timestamp": timestamp } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(doing())?;
        tracing::info!(subnet = %id.name(), exhausted = now, "the subnet's addresses");
    }
    Ok(())
}

/// Tells each pod that waits for an address on one of these nodes who has them all.
pub(super) async fn tell(
    cluster: &Cluster,
    short: &[(&str, ArmId)],
) -> Result<(), ControllerError> {
    if short.is_empty() {
        cluster.told.lock().expect(NEVER_POISONED).clear();
        return Ok(());
    }
    let region = cluster.store.snapshot();
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut told = BTreeMap::new();
    for (node, subnet) in short {
        let Some(note) = explain(&region, subnet) else { continue };
        let waiting =
            ListParams::default().fields(&format!("spec.nodeName={node},status.phase=Pending"));
        let list = pods
            .list(&waiting)
            .await
            .map_err(kubernetes(format!("listing the pods that wait on {node}")))?;
        for pod in list.items.iter().filter(|pod| waits(pod)) {
            let uid = pod.uid().unwrap_or_default();
            let before = cluster.told.lock().expect(NEVER_POISONED).get(&uid).cloned();
            if before.as_ref() != Some(&note) {
                cluster.event(pod, EventType::Warning, REASON, &note).await;
            }
            told.insert(uid, note.clone());
        }
    }
    *cluster.told.lock().expect(NEVER_POISONED) = told;
    Ok(())
}

const NEVER_POISONED: &str = "nothing panics while it holds what was told";

/// Whether a pod of a node has no address yet and needs one of its own.
fn waits(pod: &Pod) -> bool {
    let has_own = pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true));
    let has_none = pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none());
    has_own && has_none && pod.metadata.deletion_timestamp.is_none()
}

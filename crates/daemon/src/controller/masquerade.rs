//! Which destinations see a pod's own address, as AKS says it in the cluster
//! (`azure-ip-masq-agent-config-reconciled` in `kube-system`). Nodes read it; a user's own map beside it adds to it.

use cluster::masquerade::{RECONCILED, RECONCILED_FILE, render};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use serde_json::json;
use vnet::{
    model::NetworkMode,
    pods::{PodNetwork, masquerade::Settings},
    region::Region,
};

use super::{Cluster, ControllerError, kubernetes};

const NAMESPACE: &str = "kube-system";
const MANAGER: &str = "aksnet";

/// Makes the map say what AKS would say; puts it back when somebody has changed it.
pub(super) async fn pass(cluster: &Cluster) -> Result<(), ControllerError> {
    let Some(settings) = settings(&cluster.store.snapshot(), cluster) else { return Ok(()) };
    let text = render(&settings);
    let key = ObjectRef::<ConfigMap>::new(RECONCILED).within(NAMESPACE);
    let has = cluster.masquerade.get(&key);
    let data = has.as_ref().and_then(|map| map.data.as_ref());
    if data.is_some_and(|data| data.len() == 1 && data.get(RECONCILED_FILE) == Some(&text)) {
        return Ok(());
    }
    let labels = json!({
        "addonmanager.kubernetes.io/mode": "Reconcile",
        "component": "ip-masq-agent",
        "kubernetes.io/cluster-service": "true",
    });
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let doing = || kubernetes(format!("writing the ConfigMap {RECONCILED}"));
    if let Some(data) = data {
        // An apply leaves alone what another owner has added.
        let strange = data.keys().filter(|name| *name != RECONCILED_FILE);
        let gone: serde_json::Map<_, _> =
            strange.map(|name| (name.clone(), serde_json::Value::Null)).collect();
        if !gone.is_empty() {
            let patch = Patch::Merge(json!({ "data": gone }));
            api.patch(RECONCILED, &PatchParams::default(), &patch).await.map_err(doing())?;
        }
    }
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": RECONCILED, "namespace": NAMESPACE, "labels": labels },
        "data": { RECONCILED_FILE: text },
    });
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(RECONCILED, &parameters, &Patch::Apply(&map)).await.map_err(doing())?;
    Ok(())
}

/// `None` where AKS runs no ip-masq-agent: pod subnets and clusters without its network plugin.
fn settings(region: &Region, cluster: &Cluster) -> Option<Settings> {
    let cluster = region.clusters.get(&cluster.id)?;
    let network = match cluster.mode {
        NetworkMode::Kubenet => PodNetwork::Kubenet,
        NetworkMode::Overlay => PodNetwork::Overlay,
        // All pools of a cluster have their addresses from the same kind of place.
        NetworkMode::Azure if cluster.pools.values().all(|pool| pool.pod_subnet.is_some()) => {
            return None;
        }
        NetworkMode::Azure => PodNetwork::NodeSubnet,
        NetworkMode::None => return None,
    };
    let vnet = region.vnets.get(&cluster.vnet).map_or_else(Vec::new, |vnet| vnet.prefixes4());
    Some(Settings::of_aks(network, &cluster.pod_cidrs(), &vnet))
}

//! A cluster's nodes as `vnet` sees them. Not here: what follows from them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};
use vnet::model::NodePhase;

/// Why a client of a cluster cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig is not one.
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[source] KubeconfigError),
    /// Its contents are not usable.
    #[error("a client of the cluster cannot be made")]
    Client(#[source] kube::Error),
}

/// A client that uses this kubeconfig.
pub async fn client(kubeconfig: &str) -> Result<Client, ClientError> {
    let parsed = Kubeconfig::from_yaml(kubeconfig).map_err(ClientError::Kubeconfig)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(parsed, &options).await;
    Client::try_from(config.map_err(ClientError::Kubeconfig)?).map_err(ClientError::Client)
}

/// Whether the API server says that it can serve.
pub async fn is_ready(client: &Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
    // The client logs each "no" as an error, and a server that starts says it many times.
    let answer = client.request_text(request).with_subscriber(NoSubscriber::default());
    answer.await.is_ok_and(|text| text == "ok")
}

/// Whether pods can be made in the namespace `default`: each needs an account there, and the controller
/// manager makes it a moment after nodes may be Ready.
pub async fn takes_pods(client: &Client) -> Result<bool, kube::Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    Ok(accounts.get_opt("default").await?.is_some())
}

/// The phase of each node by its name.
pub async fn observe_nodes(client: &Client) -> Result<BTreeMap<String, NodePhase>, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&ListParams::default()).await?;
    let phases = list.items.iter().map(|node| (node.metadata.name.clone(), phase(node)));
    Ok(phases.filter_map(|(name, phase)| Some((name?, phase))).collect())
}

/// What keeps a node from being empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// How many pods are still there; those of daemon sets do not count.
    pub n_staying: usize,
    /// A pod that may not leave, as `namespace/name`, and what the API server says about it.
    pub refused: Option<(String, String)>,
}

/// Takes a node out of use and asks its pods to leave, as far as disruption budgets let them. A node that is not
/// there is empty.
pub async fn drain_node(client: &Client, name: &str) -> Result<Drained, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.cordon(name).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Drained::default()),
        other => other.map(drop)?,
    }
    let here = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let pods = Api::<Pod>::all(client.clone()).list(&here).await?;
    let mut drained = Drained::default();
    for pod in pods.items.iter().filter(|pod| leaves_with_eviction(pod)) {
        drained.n_staying += 1;
        if pod.metadata.deletion_timestamp.is_none() {
            let namespace = pod.namespace().unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            // A budget that forbids it now may allow it at the next try.
            if let Err(kube::Error::Api(status)) =
                api.evict(&pod.name_any(), &EvictParams::default()).await
            {
                let pod = format!("{namespace}/{}", pod.name_any());
                drained.refused = Some((pod, status.message.clone()));
            }
        }
    }
    Ok(drained)
}

/// Pods of daemon sets and finished pods need not leave.
fn leaves_with_eviction(pod: &Pod) -> bool {
    let is_finished = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let is_daemon = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    !is_finished && !is_daemon
}

/// Removes a node. Removing what is not there succeeds.
pub async fn delete_node(client: &Client, name: &str) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// What a registered node's condition `Ready` says.
#[must_use]
pub fn phase(node: &Node) -> NodePhase {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    if ready.any(|condition| condition.status == "True") {
        NodePhase::Ready
    } else {
        NodePhase::NotReady
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(conditions: &[(&str, &str)], expected: NodePhase) {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| serde_json::json!({"type": kind, "status": status}))
            .collect();
        let node = serde_json::json!({"metadata": {}, "status": {"conditions": conditions}});
        assert_eq!(phase(&serde_json::from_value(node).expect("a node")), expected);
    }

    #[test]
    fn only_ready_and_true_is_ready() {
        check(&[], NodePhase::NotReady);
        check(&[("MemoryPressure", "True")], NodePhase::NotReady);
        check(&[("Ready", "False")], NodePhase::NotReady);
        check(&[("Ready", "Unknown")], NodePhase::NotReady);
        check(&[("MemoryPressure", "False"), ("Ready", "True")], NodePhase::Ready);
    }
}

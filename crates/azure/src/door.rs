//! What the door needs from its lab, and the way of a request through it. Not here: what any request means.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State as Extracted},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use vnet::{fault::Fault, model::Timestamp, name::ArmId};

use crate::{
    answer::{self, Answer},
    arm::{self, deployments::Deployment},
    call::Call,
    identity,
};

/// The largest body that is read. Azure Resource Manager's own limit is 4 MB.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// What the door needs from its lab.
#[derive(Clone)]
pub struct Door {
    /// Where everything is.
    pub store: store::Store,
    /// The time.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Where the clusters' kubeconfigs come from.
    pub credentials: Arc<dyn KubeCredentials>,
    /// The versions of Kubernetes that clusters can have, the default one first.
    pub available_versions: Vec<String>,
    /// How long clients are asked to wait between polls.
    pub retry_after: RetryAfter,
    /// What clusters' nodes are.
    pub nodes: Nodes,
    /// Why the Cilium that clusters would get has no Envoy, which enforces policies of layer 7, and what would do; `None`
    /// where it has one. Called on a thread that may block.
    pub why_no_envoy: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("available_versions", &self.available_versions)
            .field("retry_after", &self.retry_after)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// Where the clusters' kubeconfigs come from. A closure will do.
pub trait KubeCredentials: Send + Sync {
    /// The kubeconfig of a cluster as YAML, or `None` while it has none. Called on a thread that may block.
    fn kubeconfig(&self, cluster: &ArmId) -> Option<String>;
}

impl<F: Fn(&ArmId) -> Option<String> + Send + Sync> KubeCredentials for F {
    fn kubeconfig(&self, cluster: &ArmId) -> Option<String> {
        self(cluster)
    }
}

/// How long clients are asked to wait between polls of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// The header `Retry-After`. 0 makes az poll every 30 seconds, so it is sent as 1.
    Seconds(u32),
    /// The header `retry-after-ms` alone, which az and the Python SDK obey: for tests.
    Millis(u32),
}

/// What clusters' nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Real Kubernetes.
    Kubernetes,
    /// Network namespaces with an agent each, no Kubernetes. Clusters show the tag `aksnet-nodes: network-only`.
    NetworkOnly,
    /// Addresses and states only. Clusters show the tag `aksnet-nodes: simulated`.
    Simulated,
}

/// A [`Door`] and what the door itself remembers while it runs.
pub(crate) struct State {
    pub(crate) door: Door,
    /// Template deployments by id. They are the door's own: nothing but their answers depends on them.
    pub(crate) deployments: Mutex<BTreeMap<ArmId, Deployment>>,
    /// Held by one write at a time, because some are made of what was read.
    pub(crate) writing: Mutex<()>,
}

/// All that the door answers.
pub fn router(door: Door) -> Router {
    let state = Arc::new(State { door, deployments: Mutex::default(), writing: Mutex::default() });
    Router::new().fallback(handle).with_state(state)
}

/// The token route of the instance metadata service alone, for a listener without TLS.
pub fn imds_router(clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Router {
    Router::new().fallback(move |request: Request| {
        let now = clock();
        async move {
            let path = request.uri().path().to_ascii_lowercase();
            let query = crate::call::parse_form(request.uri().query().unwrap_or_default());
            match identity::managed_identity(&path, &query, now) {
                Some(reply) => reply.into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
    })
}

async fn handle(Extracted(state): Extracted<Arc<State>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else {
        let fault = Fault::new(
            413,
            "RequestContentTooLarge",
            format!("The request content size exceeds the maximum size of '{BODY_LIMIT}' bytes."),
        );
        return answer::refusal(&fault, "").into_response();
    };
    // Everything behind this line is plain synchronous code: it may wait for the disk, and a panic in it
    // ends this request only.
    let work = tokio::task::spawn_blocking(move || {
        let call = Call::new(&state, &parts, &body);
        let answer: Answer = arm::answer(&call);
        match answer {
            Ok(reply) => reply,
            Err(fault) => answer::refusal(&fault, call.path.namespace()),
        }
    });
    let reply = match work.await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::error!(%error, "a request ended in a panic");
            let fault = Fault::new(
                500,
                "InternalServerError",
                "The lab's own code failed; its log says where.",
            );
            answer::refusal(&fault, "")
        }
    };
    if is_head { reply.without_body().into_response() } else { reply.into_response() }
}

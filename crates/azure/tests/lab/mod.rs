//! A door with a world behind it that does at once what is asked, called in process.
#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../examples/simulated/world.rs"]
mod world;

use std::sync::Arc;

use azure::{
    Door, KubeCredentials, Nodes, RetryAfter,
    axum::{
        Router,
        body::{Body, to_bytes},
        http::Request,
    },
};
use serde_json::{Value, json};
use store::Store;
use tower::ServiceExt;
use vnet::{model::Timestamp, name::ArmId};

/// The subscription of the article.
pub(crate) const SUBSCRIPTION: &str = "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36";

/// A group's id, where most things of a test are.
pub(crate) const GROUP: &str =
    "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg";

/// It is always this time: 2026-11-24T12:00:00Z.
const NOW: Timestamp = Timestamp(1_795_521_600_000);

/// A door and its world.
pub(crate) struct Lab {
    pub(crate) store: Store,
    router: Router,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: azure::axum::http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The code of a refusal, in either form.
    pub(crate) fn code(&self) -> &str {
        let error = self.body.get("error").unwrap_or(&self.body);
        error["code"].as_str().unwrap_or_default()
    }
}

impl Lab {
    /// A door with no group behind it.
    pub(crate) fn empty() -> Self {
        Self::with(|cluster: &ArmId| Some(format!("kubeconfig of {}", cluster.name())), |_| {})
    }

    /// A door with other credentials and settings.
    pub(crate) fn with(
        credentials: impl KubeCredentials + 'static,
        change: impl FnOnce(&mut Door),
    ) -> Self {
        let store = Store::in_memory().expect("memory can be written to");
        let mut door = Door {
            store: store.clone(),
            clock: Arc::new(|| NOW),
            credentials: Arc::new(credentials),
            available_versions: vec!["1.36.3".to_owned(), "1.35.7".to_owned()],
            retry_after: RetryAfter::Seconds(1),
            nodes: Nodes::Kubernetes,
            why_no_envoy: Arc::new(|| Some("it was built without".to_owned())),
        };
        change(&mut door);
        Self { store, router: azure::router(door) }
    }

    /// A door with group `rg` in eastus.
    pub(crate) async fn new() -> Self {
        let lab = Self::empty();
        lab.group().await;
        lab
    }

    /// The door alone.
    pub(crate) fn into_router(self) -> Router {
        self.router
    }

    /// Makes group `rg`.
    pub(crate) async fn group(&self) {
        let made = self.send("PUT", GROUP, Some(json!({ "location": "eastus" }))).await;
        assert_eq!(made.status, 201, "{made:?}");
    }

    /// One request.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        self.send_text(method, path, &text, &[]).await
    }

    /// One request with any body and more headers.
    pub(crate) async fn send_text(
        &self,
        method: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(path).header("host", "localhost:8443");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request =
            request.body(Body::from(body.to_owned())).expect("a request of a test is one");
        let answer = self.router.clone().oneshot(request).await;
        let Ok(answer) = answer;
        let (parts, body) = answer.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.expect("a body in memory can be read");
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).expect("every body is JSON")
        };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    /// Lets the world do what is asked.
    pub(crate) fn settle(&self) {
        world::settle(&self.store, NOW).expect("a world in memory settles");
    }

    /// A `PUT` that is accepted and becomes real; the resource as it then is.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        let accepted = self.send("PUT", path, Some(body)).await;
        assert!(matches!(accepted.status, 200 | 201), "PUT {path}: {accepted:?}");
        self.settle();
        if let Some(url) = accepted.header("azure-asyncoperation") {
            let status = self.get(url).await;
            assert_eq!(status.body["status"], "Succeeded", "PUT {path}: {status:?}");
        }
        let shown = self.get(path).await;
        assert_eq!(shown.status, 200, "GET {path}: {shown:?}");
        shown.body
    }

    /// A `PUT` that is refused: its status and code.
    pub(crate) async fn refused(&self, path: &str, body: Value) -> (u16, String) {
        let before = self.store.snapshot();
        let answer = self.send("PUT", path, Some(body)).await;
        assert!(answer.status >= 400, "PUT {path}: {answer:?}");
        assert_eq!(self.store.snapshot(), before, "a refusal changed something");
        (answer.status, answer.code().to_owned())
    }

    /// Virtual network `v`, 10.0.0.0/16, with subnet `s`, 10.0.0.0/24.
    pub(crate) async fn vnet(&self) -> Value {
        self.put(
            &network("virtualNetworks/v"),
            json!({
                "location": "eastus",
                "properties": {
                    "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] },
                    "subnets": [{ "name": "s", "properties": { "addressPrefix": "10.0.0.0/24" } }],
                },
            }),
        )
        .await
    }

    /// NIC `n` in subnet `s` of virtual network `v`.
    pub(crate) async fn nic(&self) -> Value {
        self.put(
            &network("networkInterfaces/n"),
            json!({
                "location": "eastus",
                "properties": { "ipConfigurations": [{ "name": "ipconfig1", "properties": {
                    "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet("s") } } }] },
            }),
        )
        .await
    }
}

/// A resource of Microsoft.Network in group `rg`.
pub(crate) fn network(rest: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Network/{rest}")
}

/// A subnet of virtual network `v`.
pub(crate) fn subnet(name: &str) -> String {
    network(&format!("virtualNetworks/v/subnets/{name}"))
}

/// A managed cluster in group `rg`.
pub(crate) fn cluster(rest: &str) -> String {
    format!("{GROUP}/providers/Microsoft.ContainerService/managedClusters/{rest}")
}

/// What az sends for `aks create`, with this network profile and these additions to the pool.
pub(crate) fn cluster_body(profile: Value, pool: Value) -> Value {
    let mut first = json!({ "name": "nodepool1", "mode": "System", "count": 2, "vmSize": "",
        "orchestratorVersion": "", "osType": "Linux", "type": "VirtualMachineScaleSets",
        "enableAutoScaling": false, "enableNodePublicIP": false, "scaleSetPriority": "Regular",
        "nodeTaints": [], "upgradeSettings": {}, "enableEncryptionAtHost": false,
        "enableUltraSSD": false, "enableFIPS": false });
    let mut network = json!({ "loadBalancerSku": "standard", "outboundType": "loadBalancer" });
    for (into, from) in [(&mut first, pool), (&mut network, profile)] {
        for (key, value) in from.as_object().into_iter().flatten() {
            into[key] = value.clone();
        }
    }
    json!({
        "location": "eastus",
        "identity": { "type": "SystemAssigned" },
        "sku": { "name": "Base", "tier": "Free" },
        "properties": {
            "kubernetesVersion": "", "dnsPrefix": "c-rg-16e85b", "enableRBAC": true,
            "disableLocalAccounts": false, "addonProfiles": {}, "storageProfile": {},
            "bootstrapProfile": { "artifactSource": "Direct" },
            "networkProfile": network, "agentPoolProfiles": [first],
        },
    })
}

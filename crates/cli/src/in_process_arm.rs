//! The way of the cloud controllers to Azure Resource Manager: the same router that serves az, without the socket.

use std::{future::Future, pin::Pin};

use azure::axum::{Router, body::Body, http::Request};
use daemon::controller::{Arm, ArmError, ArmRequest, ArmResponse, Method};
use tower::ServiceExt;

/// The largest answer that is read.
const LIMIT: usize = 64 << 20;

/// Sends requests straight into the router.
pub(crate) struct InProcessArm {
    router: Router,
}

impl InProcessArm {
    /// For the router that also serves az.
    pub(crate) fn new(router: Router) -> Self {
        Self { router }
    }

    async fn pass(&self, request: ArmRequest) -> Result<ArmResponse, ArmError> {
        let unreachable = |error: &dyn std::error::Error| ArmError::Unreachable(error.to_string());
        let method = match request.method {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        let body = request.body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(request.path)
            .header("host", "localhost")
            .header("authorization", "Bearer aksnet")
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| unreachable(&error))?;
        let Ok(answer) = self.router.clone().oneshot(request).await;
        let status = answer.status().as_u16();
        let operation = answer.headers().get("azure-asyncoperation");
        let operation = operation.and_then(|url| url.to_str().ok()).map(str::to_owned);
        let bytes = azure::axum::body::to_bytes(answer.into_body(), LIMIT)
            .await
            .map_err(|error| unreachable(&error))?;
        let body = serde_json::from_slice(&bytes).unwrap_or(serde_json::Value::Null);
        Ok(ArmResponse { status, operation, body })
    }
}

impl Arm for InProcessArm {
    fn send(
        &self,
        request: ArmRequest,
    ) -> Pin<Box<dyn Future<Output = Result<ArmResponse, ArmError>> + Send + '_>> {
        Box::pin(self.pass(request))
    }
}

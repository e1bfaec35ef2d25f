//! Answers and refusals as HTTP. Not here: what is answered to what.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use vnet::fault::Fault;

/// What a request is answered with, or why it is refused.
pub(crate) type Answer = Result<Reply, Fault>;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Value>,
}

impl Reply {
    /// 200 with a body.
    pub(crate) fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), body: Some(body) }
    }

    /// 200 with `{"value": […]}`.
    pub(crate) fn list(items: Vec<Value>) -> Self {
        Self::ok(Value::Object([("value".to_owned(), Value::Array(items))].into_iter().collect()))
    }

    /// Any status with a body.
    pub(crate) fn with_status(status: StatusCode, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: Some(body) }
    }

    /// Any status without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: None }
    }

    /// The same answer with one more header. A value that cannot stand in a header is left out.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    /// The same answer to a `HEAD`: 204 where a `GET` would be 200.
    pub(crate) fn without_body(mut self) -> Self {
        self.body = None;
        if self.status == StatusCode::OK {
            self.status = StatusCode::NO_CONTENT;
        }
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = match &self.body {
            Some(body) => {
                let mut response = Response::new(Body::from(body.to_string()));
                response.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/json; charset=utf-8"),
                );
                response
            }
            None => Response::new(Body::empty()),
        };
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        let id = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
            .expect("a UUID can stand in a header");
        response.headers_mut().insert("x-ms-request-id", id.clone());
        response.headers_mut().insert("x-ms-correlation-request-id", id);
        response
    }
}

/// Codes of Azure Resource Manager itself, which wraps them also where the provider would not.
const OF_THE_MANAGER: [&str; 16] = [
    "AuthorizationFailed",
    "InternalServerError",
    "InvalidRequestContent",
    "InvalidResourceLocation",
    "InvalidResourceNamespace",
    "InvalidResourceType",
    "InvalidSubscriptionId",
    "LinkedInvalidPropertyId",
    "LocationRequired",
    "MethodNotAllowed",
    "ParentResourceNotFound",
    "PreconditionFailed",
    "RequestContentTooLarge",
    "ResourceGroupBeingDeleted",
    "ResourceGroupNotFound",
    "ResourceNotFound",
];

/// A refusal as Azure words it: `{"error": {…}}`, but bare where it comes from the AKS provider.
pub(crate) fn refusal(fault: &Fault, namespace: &str) -> Reply {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let bare = namespace == "microsoft.containerservice"
        && status.is_client_error()
        && !OF_THE_MANAGER.contains(&fault.code.as_str());
    let body = if bare {
        json!({
            "code": fault.code,
            "details": if fault.details.is_empty() { Value::Null } else { details(fault) },
            "message": fault.message,
            "subcode": fault.subcode.as_deref().unwrap_or_default(),
            "target": fault.target,
        })
    } else {
        json!({ "error": error(fault) })
    };
    Reply::with_status(status, body)
}

/// The inside of `{"error": {…}}`.
pub(crate) fn error(fault: &Fault) -> Value {
    let mut body = json!({ "code": fault.code, "message": fault.message });
    if let Some(target) = &fault.target {
        body["target"] = json!(target);
    }
    if !fault.details.is_empty() {
        body["details"] = details(fault);
    }
    body
}

fn details(fault: &Fault) -> Value {
    fault.details.iter().map(error).collect()
}

//! Requests to Azure Resource Manager. Not here: how they travel; the caller gives an [`Arm`].

use std::{future::Future, pin::Pin, time::Duration};

use serde_json::Value;

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Makes or replaces.
    Put,
    /// Removes.
    Delete,
}

/// A request.
#[derive(Clone, Debug)]
pub struct ArmRequest {
    /// Its method.
    pub method: Method,
    /// Path and query, beginning with `/subscriptions`.
    pub path: String,
    /// What should be.
    pub body: Option<Value>,
}

/// An answer of any status.
#[derive(Clone, Debug)]
pub struct ArmResponse {
    /// HTTP status.
    pub status: u16,
    /// The header `Azure-AsyncOperation`: the URL that says when it is done.
    pub operation: Option<String>,
    /// The body; null when there is none.
    pub body: Value,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// Azure refused it.
    #[error("Code=\"{code}\" Message=\"{message}\"")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Azure's code.
        code: String,
        /// Azure's text.
        message: String,
    },
    /// It did not get there, or no answer came back.
    #[error("Azure Resource Manager did not answer: {0}")]
    Unreachable(String),
    /// It was accepted and has not ended within the time that it should take.
    #[error("the operation on {0} has not ended within two minutes")]
    Unfinished(String),
}

impl ArmError {
    /// Whether what was asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// A way to Azure Resource Manager.
pub trait Arm: Send + Sync + 'static {
    /// Sends one request and gives the answer, whatever its status.
    fn send(
        &self,
        request: ArmRequest,
    ) -> Pin<Box<dyn Future<Output = Result<ArmResponse, ArmError>> + Send + '_>>;
}

const POLL: Duration = Duration::from_millis(100);
const POLLS: u32 = 1200;
const VERSION: &str = "api-version=2024-05-01";

/// Reads the resource `id`.
pub(crate) async fn get(arm: &dyn Arm, id: &str) -> Result<Value, ArmError> {
    Ok(send(arm, Method::Get, id, None).await?.body)
}

/// Makes or replaces the resource `id`, waits until it is real, and gives it back as it then is.
pub(crate) async fn put(arm: &dyn Arm, id: &str, body: Value) -> Result<Value, ArmError> {
    let accepted = send(arm, Method::Put, id, Some(body)).await?;
    wait(arm, id, &accepted).await?;
    get(arm, id).await
}

/// Removes the resource `id` and waits until it is gone.
pub(crate) async fn delete(arm: &dyn Arm, id: &str) -> Result<(), ArmError> {
    let accepted = send(arm, Method::Delete, id, None).await?;
    wait(arm, id, &accepted).await
}

async fn wait(arm: &dyn Arm, id: &str, accepted: &ArmResponse) -> Result<(), ArmError> {
    let Some(operation) = &accepted.operation else { return Ok(()) };
    let path = operation.find("/subscriptions").map_or(operation.as_str(), |at| &operation[at..]);
    for _ in 0..POLLS {
        let request = ArmRequest { method: Method::Get, path: path.to_owned(), body: None };
        let answer = arm.send(request).await?;
        refuse(&answer)?;
        match answer.body["status"].as_str() {
            Some("Succeeded") => return Ok(()),
            Some("Failed" | "Canceled") => return Err(refusal(400, &answer.body)),
            _ => tokio::time::sleep(POLL).await,
        }
    }
    Err(ArmError::Unfinished(id.to_owned()))
}

async fn send(
    arm: &dyn Arm,
    method: Method,
    id: &str,
    body: Option<Value>,
) -> Result<ArmResponse, ArmError> {
    let answer = arm.send(ArmRequest { method, path: format!("{id}?{VERSION}"), body }).await?;
    refuse(&answer)?;
    Ok(answer)
}

fn refuse(answer: &ArmResponse) -> Result<(), ArmError> {
    if answer.status < 400 { Ok(()) } else { Err(refusal(answer.status, &answer.body)) }
}

/// Reads both forms of an error: `{"error": {code, message}}` and the bare one of the AKS provider.
fn refusal(status: u16, body: &Value) -> ArmError {
    let error = body.get("error").unwrap_or(body);
    let text = |key: &str| error[key].as_str().unwrap_or("Unknown").to_owned();
    ArmError::Refused { status, code: text("code"), message: text("message") }
}

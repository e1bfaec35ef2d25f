//! Long-running operations: what the first answer says of them, and what polls are told.
//! Not here: when they end, which the region knows.

use http::StatusCode;
use serde_json::json;
use uuid::Uuid;
use vnet::{
    fault::Fault,
    model::{Operation, Timestamp},
    name::ArmId,
};

use crate::{
    answer::{self, Answer, Reply},
    call::Call,
    door::RetryAfter,
};

/// Adds the headers that make a client poll until a `PUT` is real.
pub(super) fn announce(
    call: &Call<'_>,
    reply: Reply,
    on: &ArmId,
    location: &str,
    id: Uuid,
) -> Reply {
    let url = status_url(call, on, location, id);
    retry_after(call, reply.header("azure-asyncoperation", &url))
}

/// 202 for a `DELETE`: a client may poll the status or ask for the result.
pub(super) fn accepted(call: &Call<'_>, on: &ArmId, location: &str, id: Uuid) -> Reply {
    let status = status_url(call, on, location, id);
    let result = status.replacen("/operations/", "/operationresults/", 1);
    let reply = Reply::empty(StatusCode::ACCEPTED)
        .header("azure-asyncoperation", &status)
        .header("location", &result);
    retry_after(call, reply)
}

/// 202 for the removal of a group: only the result can be polled.
pub(super) fn accepted_group(call: &Call<'_>, subscription: &str, id: Uuid) -> Reply {
    let url = format!(
        "{}/subscriptions/{subscription}/operationresults/{id}?api-version={}",
        call.base,
        call.api_version()
    );
    retry_after(call, Reply::empty(StatusCode::ACCEPTED).header("location", &url))
}

fn status_url(call: &Call<'_>, on: &ArmId, location: &str, id: Uuid) -> String {
    let kind = on.kind();
    let namespace = kind.split('/').next().unwrap_or_default();
    format!(
        "{}/subscriptions/{}/providers/{namespace}/locations/{location}/operations/{id}?api-version={}",
        call.base,
        on.subscription(),
        call.api_version()
    )
}

/// Says when to ask again.
pub(super) fn retry_after(call: &Call<'_>, reply: Reply) -> Reply {
    match call.door().retry_after {
        RetryAfter::Seconds(seconds) => reply.header("retry-after", &seconds.max(1).to_string()),
        RetryAfter::Millis(millis) => reply.header("retry-after-ms", &millis.to_string()),
    }
}

/// Answers a poll of an operation.
pub(super) fn status(call: &Call<'_>, namespace: &str, location: &str, id: &str) -> Answer {
    let operation = find(call, id)?;
    let id = format!(
        "/subscriptions/{}/providers/{namespace}/locations/{location}/operations/{}",
        operation.target.subscription(),
        operation.id
    );
    let reply = Reply::ok(render(&id, &operation));
    Ok(if operation.ended.is_none() { retry_after(call, reply) } else { reply })
}

fn render(id: &str, operation: &Operation) -> serde_json::Value {
    let mut body = json!({
        "id": id,
        "name": operation.id,
        "status": "InProgress",
        "startTime": time(operation.started),
    });
    if let Some((ended, fault)) = &operation.ended {
        body["status"] = json!(if fault.is_some() { "Failed" } else { "Succeeded" });
        body["endTime"] = json!(time(*ended));
        if let Some(fault) = fault {
            body["error"] = answer::error(fault);
        }
    }
    body
}

/// Answers a request for an operation's result: 202 while it runs.
pub(super) fn result(call: &Call<'_>, subscription: &str, namespace: &str, id: &str) -> Answer {
    let operation = find(call, id)?;
    match &operation.ended {
        None if namespace.is_empty() => Ok(accepted_group(call, subscription, operation.id)),
        None => {
            let path = call.path.segments().join("/");
            let url = format!("{}/{path}?api-version={}", call.base, call.api_version());
            Ok(retry_after(call, Reply::empty(StatusCode::ACCEPTED).header("location", &url)))
        }
        Some((_, Some(fault))) => Err(fault.clone()),
        Some((_, None)) => Ok(Reply::empty(StatusCode::OK)),
    }
}

fn find(call: &Call<'_>, id: &str) -> Result<Operation, Fault> {
    let operation =
        Uuid::try_parse(id).ok().and_then(|id| call.region().operations.get(&id).cloned());
    operation.map(|operation| operation.as_ref().clone()).ok_or_else(|| {
        Fault::new(404, "OperationNotFound", format!("The operation '{id}' could not be found."))
    })
}

/// A time as Azure writes it.
pub(super) fn time(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.0)
        .map_or_else(|_| time.0.to_string(), |time| format!("{time:.3}"))
}

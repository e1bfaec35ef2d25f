//! Azure Resource Manager: which code answers which path. Not here: any answer.

mod actions;
pub(crate) mod deployments;
mod groups;
mod operations;
mod resources;
mod roles;
mod search;
mod subscriptions;
mod target;
mod watcher;

use std::sync::PoisonError;

use http::Method;
use vnet::fault::Fault;

use crate::{
    answer::{Answer, Reply},
    call::Call,
    identity,
};

/// Answers any request.
pub(crate) fn answer(call: &Call<'_>) -> Answer {
    if let Some(answer) = identity::answer(call) {
        return answer;
    }
    // A panic under this lock leaves nothing half done: the store's changes are whole.
    let _turn = (!is_read(&call.method))
        .then(|| call.state.writing.lock().unwrap_or_else(PoisonError::into_inner));
    let (segments, lower) = (call.path.segments(), call.path.lower());
    if let Some(answer) = roles::answer(call, &segments, &lower) {
        return answer;
    }
    match lower.as_slice() {
        ["subscriptions"] => Ok(subscriptions::list(call)),
        ["providers"] => Ok(subscriptions::providers("")),
        ["subscriptions", subscription, ..] => {
            check_subscription(subscription)?;
            in_subscription(call, segments[1], &segments[2..], &lower[2..])
        }
        _ => Err(no_route(call)),
    }
}

fn in_subscription(
    call: &Call<'_>,
    subscription: &str,
    segments: &[&str],
    lower: &[&str],
) -> Answer {
    match lower {
        [] => subscriptions::show(call, subscription),
        ["locations"] => Ok(subscriptions::locations(subscription)),
        ["resources"] => search::answer(call, subscription, None),
        ["tagnames"] => Ok(Reply::list(Vec::new())),
        ["resourcegroups"] => Ok(groups::list(call, subscription)),
        ["resourcegroups", _] => groups::answer(call, subscription, segments[1]),
        ["resourcegroups", _, "resources"] => search::answer(call, subscription, Some(segments[1])),
        ["operationresults", id] => operations::result(call, subscription, "", id),
        ["providers"] => Ok(subscriptions::providers(subscription)),
        ["providers", _] => subscriptions::provider(subscription, segments[1]),
        ["providers", _, "register" | "unregister"] => {
            subscriptions::provider(subscription, segments[1])
        }
        ["providers", _, "locations", _, "operations", id] => {
            operations::status(call, segments[1], segments[3], id)
        }
        ["providers", _, "locations", _, "operationresults", id] => {
            operations::result(call, subscription, segments[1], id)
        }
        ["providers", namespace, "locations", location, rest @ ..] => {
            subscriptions::in_location(call, namespace, location, rest)
        }
        _ => resources::answer(call, &target::parse(subscription, segments, lower)?),
    }
}

/// Any GUID is a subscription.
fn check_subscription(text: &str) -> Result<(), Fault> {
    if uuid::Uuid::try_parse(text).is_ok() {
        return Ok(());
    }
    Err(Fault::bad(
        "InvalidSubscriptionId",
        format!("The provided subscription identifier '{text}' is malformed or invalid."),
    ))
}

/// What is said of a path that leads nowhere.
fn no_route(call: &Call<'_>) -> Fault {
    let path = call.path.segments().join("/");
    Fault::new(
        404,
        "NotFound",
        format!(
            "No registered resource provider found for path '/{path}' and method {}.",
            call.method
        ),
    )
}

/// What is said of a method that a path doesn't know.
fn wrong_method(call: &Call<'_>) -> Fault {
    Fault::new(
        405,
        "MethodNotAllowed",
        format!("The requested resource does not support http method '{}'.", call.method),
    )
}

/// Whether a request only asks.
fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

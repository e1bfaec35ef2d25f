//! Resource groups.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::{Command, Outcome},
    fault::Fault,
    model::{ResourceGroup, Tags},
    name::ArmId,
};

use super::{is_read, operations, wrong_method};
use crate::{
    answer::{Answer, Reply},
    call::{Call, content},
    findings::given,
    wire::{cluster_state, location},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    location: Option<String>,
    tags: Option<Tags>,
}

/// Answers a request for one group.
pub(super) fn answer(call: &Call<'_>, subscription: &str, name: &str) -> Answer {
    let id = ArmId::group(subscription, name);
    match &call.method {
        method if is_read(method) => Ok(Reply::ok(render(&*find(call, &id)?))),
        &Method::PUT => put(call, &id),
        &Method::PATCH => patch(call, &id),
        &Method::DELETE => delete(call, subscription, id),
        _ => Err(wrong_method(call)),
    }
}

/// All groups of a subscription; `$filter` by tag.
pub(super) fn list(call: &Call<'_>, subscription: &str) -> Reply {
    let filter = call.query.get("$filter").map_or("", String::as_str);
    let quoted: Vec<&str> = filter.split('\'').skip(1).step_by(2).collect();
    let matches = |group: &ResourceGroup| match quoted.as_slice() {
        [name] => group.tags.contains_key(*name),
        [name, value, ..] => group.tags.get(*name).is_some_and(|other| other == value),
        [] => true,
    };
    let region = call.region();
    let groups = region.groups.values().filter(|group| {
        group.id.subscription().eq_ignore_ascii_case(subscription) && matches(group)
    });
    Reply::list(groups.map(|group| render(group)).collect())
}

fn read(call: &Call<'_>) -> Result<Body, Fault> {
    let value = call.json()?;
    serde_json::from_value(value).map_err(|error| content(&error))
}

fn put(call: &Call<'_>, id: &ArmId) -> Answer {
    let body = read(call)?;
    let location = given(body.location).ok_or_else(|| {
        Fault::bad("LocationRequired", "The location property is required for this definition.")
    })?;
    let command = Command::PutGroup {
        id: id.clone(),
        location: self::location(&location),
        tags: body.tags.unwrap_or_default(),
    };
    let accepted = call.change(command)?;
    let status =
        if accepted.outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(Reply::with_status(status, render(&*find(call, id)?)))
}

fn patch(call: &Call<'_>, id: &ArmId) -> Answer {
    let body = read(call)?;
    let group = find(call, id)?;
    let tags = body.tags.unwrap_or_else(|| group.tags.clone());
    call.change(Command::PutGroup { id: id.clone(), location: group.location.clone(), tags })?;
    Ok(Reply::ok(render(&*find(call, id)?)))
}

fn delete(call: &Call<'_>, subscription: &str, id: ArmId) -> Answer {
    find(call, &id)?;
    let accepted = call.change(Command::DeleteGroup { id })?;
    Ok(match accepted.operation {
        Some(operation) => operations::accepted_group(call, subscription, operation),
        None => Reply::empty(StatusCode::OK),
    })
}

/// The group, or Azure's 404.
pub(super) fn find(call: &Call<'_>, id: &ArmId) -> Result<std::sync::Arc<ResourceGroup>, Fault> {
    call.region().groups.get(id).cloned().ok_or_else(|| {
        Fault::new(
            404,
            "ResourceGroupNotFound",
            format!("Resource group '{}' could not be found.", id.resource_group()),
        )
    })
}

fn render(group: &ResourceGroup) -> Value {
    let mut body = json!({
        "id": group.id,
        "name": group.id.resource_group(),
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
    });
    if !group.tags.is_empty() {
        body["tags"] = json!(group.tags);
    }
    if let Some(cluster) = &group.managed_by {
        body["managedBy"] = json!(cluster);
    }
    body["properties"] = json!({ "provisioningState": cluster_state(group.state) });
    body
}

//! Template deployments: resources in the order of their dependencies, with what template expressions mean.
//! `az network lb create`, `az vm create` and others work through them.
//!
//! Not here: templates inside of templates, links to templates, mode `Complete`. They are refused.
//! Deployments live as long as the door does; the resources that they make live in the store.

mod expression;
mod function;
mod plan;
mod scope;

use std::{collections::BTreeMap, sync::MutexGuard};

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vnet::{fault::Fault, model::Timestamp, name::ArmId};

use self::scope::{Scope, Template};
use super::{
    groups, is_read, operations, resources,
    target::{self, Target, Within},
    wrong_method,
};
use crate::{
    answer::{self, Answer, Reply},
    call::Call,
    findings::missing,
    refuse::{NOT_SUPPORTED, unsupported},
};

/// One deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    id: ArmId,
    operation: Uuid,
    started: Timestamp,
    /// What was made, in order.
    made: Vec<ArmId>,
    template: Template,
    /// Why it went no further.
    fault: Option<Fault>,
}

/// Where a deployment is.
enum State {
    Running,
    /// With its outputs.
    Succeeded(Map<String, Value>),
    Failed(Fault),
}

/// Answers a request for one deployment.
pub(super) fn answer(call: &Call<'_>, id: &ArmId) -> Answer {
    match &call.method {
        method if is_read(method) => Ok(Reply::ok(render(call, &find(call, id)?))),
        &Method::PUT => put(call, id),
        &Method::DELETE => {
            let was = all(call).remove(id);
            let status = if was.is_some() { StatusCode::OK } else { StatusCode::NO_CONTENT };
            Ok(Reply::empty(status))
        }
        _ => Err(wrong_method(call)),
    }
}

/// Answers a word after a deployment's id.
pub(super) fn word(call: &Call<'_>, id: &ArmId, word: &str) -> Answer {
    match (&call.method, word.split_once('/')) {
        (&Method::GET, Some(("operationstatuses", operation))) => status(call, id, operation),
        (&Method::POST, None) if word == "validate" => {
            let template = template(call)?;
            let group = group(call, id)?;
            let resources = |name: &str, is_full| referenced(call, id, &[], name, is_full);
            let resources: &scope::Resources<'_> = &resources;
            plan::steps(&Scope { template: &template, id, group: &group, copy: None, resources })?;
            Ok(Reply::ok(json!({ "id": id, "name": id.name(), "properties": {
                "provisioningState": "Succeeded", "mode": "Incremental" } })))
        }
        (&Method::GET, None) if word == "operations" => Ok(Reply::list(Vec::new())),
        _ => Err(unsupported(NOT_SUPPORTED, &format!("{word} of template deployments"))),
    }
}

/// All deployments in a group.
pub(super) fn list(call: &Call<'_>, within: &Within) -> Vec<Value> {
    let Within::Group(group) = within else { return Vec::new() };
    let found: Vec<Deployment> =
        all(call).values().filter(|it| it.id.resource_group_id() == *group).cloned().collect();
    found.iter().map(|deployment| render(call, deployment)).collect()
}

fn all<'a>(call: &'a Call<'_>) -> MutexGuard<'a, BTreeMap<ArmId, Deployment>> {
    // A panic elsewhere leaves the map whole: values are put in at once.
    call.state.deployments.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn find(call: &Call<'_>, id: &ArmId) -> Result<Deployment, Fault> {
    groups::find(call, &id.resource_group_id())?;
    all(call).get(id).cloned().ok_or_else(|| {
        let message = format!("Deployment '{}' could not be found.", id.name());
        Fault::new(404, "DeploymentNotFound", message)
    })
}

/// The template of a request with its parameters' values.
fn template(call: &Call<'_>) -> Result<Template, Fault> {
    let mut body = call.json()?;
    let properties = &mut body["properties"];
    if !properties["templateLink"].is_null() || !properties["parametersLink"].is_null() {
        return Err(unsupported(NOT_SUPPORTED, "links to templates (send the template itself)"));
    }
    let mode = properties["mode"].as_str().unwrap_or("Incremental");
    if !mode.eq_ignore_ascii_case("Incremental") {
        return Err(unsupported(NOT_SUPPORTED, "template deployments in mode Complete"));
    }
    let given = properties["parameters"].take();
    let value = properties["template"].take();
    if !value.is_object() {
        return Err(missing("properties.template"));
    }
    plan::with_parameters(value, &given)
}

/// The deployment's group as `resourceGroup()` gives it.
fn group(call: &Call<'_>, id: &ArmId) -> Result<Value, Fault> {
    let group = groups::find(call, &id.resource_group_id())?;
    Ok(json!({
        "id": group.id,
        "name": group.id.resource_group(),
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "tags": group.tags,
    }))
}

fn put(call: &Call<'_>, id: &ArmId) -> Answer {
    let group = group(call, id)?;
    let template = template(call)?;
    let none = |name: &str, is_full| referenced(call, id, &[], name, is_full);
    let scope = Scope { template: &template, id, group: &group, copy: None, resources: &none };
    let steps = plan::steps(&scope)?;
    let mut deployment = Deployment {
        id: id.clone(),
        operation: Uuid::new_v4(),
        started: (call.door().clock)(),
        made: Vec::new(),
        template: template.clone(),
        fault: None,
    };
    for step in steps {
        let made = deployment.made.clone();
        let resources = |name: &str, is_full| referenced(call, id, &made, name, is_full);
        let body = step.body(&Scope { resources: &resources, ..scope_of(&template, id, &group) });
        let version = step.api_version.as_deref();
        match body.and_then(|body| resources::put(call, step.kind, &step.id, Some(body), version)) {
            Ok(_) => deployment.made.push(step.id),
            Err(fault) => {
                deployment.fault = Some(fault);
                break;
            }
        }
    }
    let is_new = all(call).insert(id.clone(), deployment.clone()).is_none();
    let mut body = render(call, &deployment);
    body["properties"]["provisioningState"] = json!("Accepted");
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let url = format!(
        "{}{id}/operationStatuses/{}?api-version={}",
        call.base,
        deployment.operation,
        call.api_version()
    );
    let reply = Reply::with_status(status, body).header("azure-asyncoperation", &url);
    Ok(operations::retry_after(call, reply))
}

/// A scope outside of loops and without resources.
fn scope_of<'a>(template: &'a Template, id: &'a ArmId, group: &'a Value) -> Scope<'a> {
    let resources: &scope::Resources<'_> =
        &|name, _| Err(invalid(&format!("the resource '{name}' is not there yet")));
    Scope { template, id, group, copy: None, resources }
}

/// What `reference` gives: a resource of the deployment by its name, or any by its id.
fn referenced(
    call: &Call<'_>,
    deployment: &ArmId,
    made: &[ArmId],
    name: &str,
    is_full: bool,
) -> Result<Value, Fault> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let made = made.iter().rev().find(|id| id.name().eq_ignore_ascii_case(last));
    let id = name.parse::<ArmId>().ok().or_else(|| made.cloned()).ok_or_else(|| {
        invalid(&format!("the resource '{name}' is not defined in the template of {deployment}"))
    })?;
    let path = crate::call::Path::parse(id.as_str());
    let (segments, lower) = (path.segments(), path.lower());
    let Target::One { kind, id } = target::parse(id.subscription(), &segments[2..], &lower[2..])?
    else {
        return Err(invalid(&format!("'{name}' is no resource")));
    };
    let mut body = resources::shown(call, kind, &id)?;
    Ok(if is_full { body } else { body["properties"].take() })
}

fn invalid(what: &str) -> Fault {
    Fault::bad("InvalidTemplate", format!("Deployment template validation failed: '{what}.'."))
}

/// Where a deployment is: done when nothing that it made is under way any more.
fn state(call: &Call<'_>, deployment: &Deployment) -> State {
    if let Some(fault) = &deployment.fault {
        return State::Failed(failed(fault));
    }
    let region = call.region();
    for id in &deployment.made {
        let own = region.operations.values().filter(|it| it.target == *id);
        match own.max_by_key(|it| it.generation).map(|it| &it.ended) {
            Some(None) => return State::Running,
            Some(Some((_, Some(fault)))) => return State::Failed(failed(fault)),
            Some(Some((_, None))) | None => {}
        }
    }
    outputs(call, deployment).map_or_else(|fault| State::Failed(failed(&fault)), State::Succeeded)
}

/// The template's outputs, as they are now.
fn outputs(call: &Call<'_>, deployment: &Deployment) -> Result<Map<String, Value>, Fault> {
    let id = &deployment.id;
    let group = group(call, id)?;
    let resources = |name: &str, is_full| referenced(call, id, &deployment.made, name, is_full);
    let scope = Scope { resources: &resources, ..scope_of(&deployment.template, id, &group) };
    let mut outputs = Map::new();
    for (name, output) in deployment.template.value["outputs"].as_object().into_iter().flatten() {
        if !plan::is_wanted(&scope, output)? {
            continue;
        }
        let kind = output["type"].as_str().unwrap_or("object");
        let value = if is_secret(kind) { Value::Null } else { scope.value(&output["value"])? };
        outputs.insert(name.clone(), json!({ "type": title_case(kind), "value": value }));
    }
    Ok(outputs)
}

/// Whether values of this type are never shown.
fn is_secret(kind: &str) -> bool {
    kind.to_ascii_lowercase().starts_with("secure")
}

fn failed(fault: &Fault) -> Fault {
    Fault {
        details: vec![fault.clone()],
        ..Fault::conflict(
            "DeploymentFailed",
            "At least one resource deployment operation failed. Please list deployment operations for details. Please see https://aka.ms/arm-deployment-operations for usage details.",
        )
    }
}

fn status(call: &Call<'_>, id: &ArmId, operation: &str) -> Answer {
    let deployment = find(call, id)?;
    if deployment.operation.to_string() != operation.to_ascii_lowercase() {
        let message = format!("The operation '{operation}' could not be found.");
        return Err(Fault::new(404, "OperationNotFound", message));
    }
    let mut body = json!({
        "id": format!("{}/operationStatuses/{operation}", deployment.id),
        "name": operation,
        "startTime": operations::time(deployment.started),
    });
    Ok(match state(call, &deployment) {
        State::Running => {
            body["status"] = json!("InProgress");
            operations::retry_after(call, Reply::ok(body))
        }
        State::Succeeded(_) => {
            body["status"] = json!("Succeeded");
            Reply::ok(body)
        }
        State::Failed(fault) => {
            body["status"] = json!("Failed");
            body["error"] = answer::error(&fault);
            Reply::ok(body)
        }
    })
}

fn render(call: &Call<'_>, deployment: &Deployment) -> Value {
    let mut properties = json!({
        "mode": "Incremental",
        "timestamp": operations::time(deployment.started),
        "duration": "PT1S",
        "correlationId": deployment.operation,
        "parameters": {},
        "providers": [],
        "dependencies": [],
    });
    match state(call, deployment) {
        State::Running => properties["provisioningState"] = json!("Running"),
        State::Succeeded(outputs) => {
            properties["provisioningState"] = json!("Succeeded");
            properties["outputs"] = Value::Object(outputs);
        }
        State::Failed(fault) => {
            properties["provisioningState"] = json!("Failed");
            properties["error"] = answer::error(&fault);
        }
    }
    for (name, (kind, value)) in &deployment.template.parameters {
        properties["parameters"][name] = json!({ "type": title_case(kind) });
        if !is_secret(kind) {
            properties["parameters"][name]["value"] = value.clone();
        }
    }
    properties["outputResources"] = deployment.made.iter().map(|id| json!({ "id": id })).collect();
    json!({
        "id": deployment.id,
        "name": deployment.id.name(),
        "type": "Microsoft.Resources/deployments",
        "properties": properties,
    })
}

fn title_case(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

//! Template deployments, as far as `az network lb create` needs them: literal resources in the order of
//! their dependencies, and `[reference('name')]` in outputs. Not here: parameters, functions, loops.
//!
//! Deployments live as long as the door does; the resources that they make live in the store.

use std::{collections::BTreeMap, sync::MutexGuard};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;
use vnet::{fault::Fault, model::Timestamp, name::ArmId};

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
    /// The template's outputs: name to type and value.
    outputs: BTreeMap<String, (String, Value)>,
    /// Why it went no further.
    fault: Option<Fault>,
}

/// One resource of a template.
struct Step {
    target: Target,
    id: ArmId,
    body: Value,
}

/// Where a deployment is.
enum State {
    Running,
    Succeeded,
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
            steps(id, &template(call)?)?;
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

fn template(call: &Call<'_>) -> Result<Value, Fault> {
    let mut body = call.json()?;
    let template = body["properties"]["template"].take();
    if template.is_object() { Ok(template) } else { Err(missing("properties.template")) }
}

fn put(call: &Call<'_>, id: &ArmId) -> Answer {
    groups::find(call, &id.resource_group_id())?;
    let template = template(call)?;
    let steps = steps(id, &template)?;
    let mut deployment = Deployment {
        id: id.clone(),
        operation: Uuid::new_v4(),
        started: (call.door().clock)(),
        made: Vec::new(),
        outputs: outputs(&template)?,
        fault: None,
    };
    for step in steps {
        let Target::One { kind, .. } = step.target else { continue };
        match resources::put(call, kind, &step.id, Some(step.body)) {
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

/// The resources of a template, those first that others depend on.
fn steps(id: &ArmId, template: &Value) -> Result<Vec<Step>, Fault> {
    let group = id.resource_group_id();
    let mut waiting = Vec::new();
    for resource in template["resources"].as_array().into_iter().flatten() {
        refuse_expressions(resource)?;
        let (Some(kind), Some(name)) = (resource["type"].as_str(), resource["name"].as_str())
        else {
            return Err(invalid("every resource must have a type and a name"));
        };
        let path = path_of(&group, kind, name);
        let parsed = crate::call::Path::parse(&path);
        let (segments, lower) = (parsed.segments(), parsed.lower());
        let target = target::parse(group.subscription(), &segments[2..], &lower[2..])?;
        let Target::One { id, .. } = &target else {
            return Err(invalid(&format!("'{kind}' with the name '{name}' is no resource")));
        };
        let mut body = resource.clone();
        if let Some(object) = body.as_object_mut() {
            for key in ["type", "apiVersion", "dependsOn", "condition", "comments", "scope"] {
                object.remove(key);
            }
        }
        let needs: Vec<String> = resource["dependsOn"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_ascii_lowercase))
            .collect();
        let step = Step { id: id.clone(), target: target.clone(), body };
        waiting.push((format!("{kind}/{name}").to_ascii_lowercase(), needs, step));
    }
    let mut ordered = Vec::new();
    while !waiting.is_empty() {
        let names: Vec<String> = waiting.iter().map(|(name, _, _)| name.clone()).collect();
        let free = waiting.iter().position(|(_, needs, _)| {
            !needs.iter().any(|need| names.iter().any(|name| need == name || need.ends_with(name)))
        });
        let Some(free) = free else {
            return Err(invalid("the resources' dependsOn go round in a circle"));
        };
        ordered.push(waiting.remove(free).2);
    }
    Ok(ordered)
}

/// `Microsoft.Network/virtualNetworks/subnets` and `v/s` make `…/virtualNetworks/v/subnets/s`.
fn path_of(group: &ArmId, kind: &str, name: &str) -> String {
    let (namespace, types) = kind.split_once('/').unwrap_or((kind, ""));
    let pairs = types.split('/').zip(name.split('/'));
    pairs.fold(format!("{group}/providers/{namespace}"), |path, (kind, name)| {
        format!("{path}/{kind}/{name}")
    })
}

/// Template functions are not evaluated, so they are refused rather than taken literally.
fn refuse_expressions(value: &Value) -> Result<(), Fault> {
    match value {
        Value::String(text) if text.starts_with('[') && !text.starts_with("[[") => {
            Err(unsupported(NOT_SUPPORTED, &format!("the template expression {text}")))
        }
        Value::Array(items) => items.iter().try_for_each(refuse_expressions),
        Value::Object(object) if object.contains_key("copy") => {
            Err(unsupported(NOT_SUPPORTED, "copy loops in templates"))
        }
        Value::Object(object) => object.values().try_for_each(refuse_expressions),
        _ => Ok(()),
    }
}

fn outputs(template: &Value) -> Result<BTreeMap<String, (String, Value)>, Fault> {
    let mut outputs = BTreeMap::new();
    for (name, output) in template["outputs"].as_object().into_iter().flatten() {
        let kind = output["type"].as_str().unwrap_or("object").to_owned();
        if let Some(text) = output["value"].as_str().filter(|text| text.starts_with('['))
            && referenced(text).is_none()
        {
            return Err(unsupported(NOT_SUPPORTED, &format!("the template expression {text}")));
        }
        outputs.insert(name.clone(), (kind, output["value"].clone()));
    }
    Ok(outputs)
}

/// The name in `[reference('name')]`, the one function that is known.
fn referenced(text: &str) -> Option<&str> {
    text.strip_prefix("[reference('")?.strip_suffix("')]").filter(|name| !name.contains('\''))
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
    State::Succeeded
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
        State::Succeeded => {
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
        State::Succeeded => properties["provisioningState"] = json!("Succeeded"),
        State::Failed(fault) => {
            properties["provisioningState"] = json!("Failed");
            properties["error"] = answer::error(&fault);
        }
    }
    let outputs: serde_json::Map<String, Value> = deployment
        .outputs
        .iter()
        .map(|(name, (kind, value))| {
            let value = evaluate(call, deployment, value);
            (name.clone(), json!({ "type": title_case(kind), "value": value }))
        })
        .collect();
    properties["outputs"] = Value::Object(outputs);
    properties["outputResources"] = deployment.made.iter().map(|id| json!({ "id": id })).collect();
    json!({
        "id": deployment.id,
        "name": deployment.id.name(),
        "type": "Microsoft.Resources/deployments",
        "properties": properties,
    })
}

/// `[reference('name')]` is the properties of the resource of that name.
fn evaluate(call: &Call<'_>, deployment: &Deployment, value: &Value) -> Value {
    let Some(name) = value.as_str().and_then(referenced) else { return value.clone() };
    let name = name.rsplit('/').next().unwrap_or(name);
    let id = deployment.made.iter().rev().find(|id| id.name().eq_ignore_ascii_case(name));
    let Some(id) = id else { return Value::Null };
    let path = crate::call::Path::parse(id.as_str());
    let (segments, lower) = (path.segments(), path.lower());
    match target::parse(id.subscription(), &segments[2..], &lower[2..]) {
        Ok(Target::One { kind, id }) => resources::shown(call, kind, &id)
            .map_or(Value::Null, |mut body| body["properties"].take()),
        _ => Value::Null,
    }
}

fn title_case(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

//! From a template to steps: parameters' values, loops, conditions, the order. Nothing is made here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use vnet::{fault::Fault, name::ArmId};

use super::{
    invalid,
    scope::{self, Scope, Template},
};
use crate::{
    arm::target::{self, Kind, Target},
    call::Path,
    refuse::{NOT_SUPPORTED, unsupported},
};

/// Resources of a template, and rounds of a loop (Azure Resource Manager, "Template limits").
const MAX_RESOURCES: usize = 800;

/// One resource to be made.
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) id: ArmId,
    /// As the template has it where it asks for resources that are there, else as it will be sent.
    body: Value,
    copy: Option<(String, i64)>,
    is_open: bool,
    /// The version that the template speaks of it; `None` is the request's own.
    pub(super) api_version: Option<String>,
}

impl Step {
    /// What is sent, now that the steps before it are made.
    pub(super) fn body(&self, scope: &Scope<'_>) -> Result<Value, Fault> {
        if !self.is_open {
            return Ok(self.body.clone());
        }
        let scope = Scope { copy: self.copy.clone(), ..*scope };
        scope.value(&self.body)
    }
}

/// A step that waits for others.
struct Waiting {
    /// What others may call it, in lower case.
    names: Vec<String>,
    needs: Vec<String>,
    step: Step,
}

/// The template with the value of every parameter: the given one or its default.
pub(super) fn with_parameters(value: Value, given: &Value) -> Result<Template, Fault> {
    let mut template = Template { value, parameters: BTreeMap::new() };
    let declared = template.value["parameters"].as_object().cloned().unwrap_or_default();
    let given = given.as_object().cloned().unwrap_or_default();
    let unknown =
        given.keys().find(|name| !declared.keys().any(|it| it.eq_ignore_ascii_case(name)));
    if let Some(unknown) = unknown {
        return Err(invalid(&format!(
            "The following parameters were supplied, but do not correspond to any parameters defined in the template: '{unknown}'"
        )));
    }
    for (name, declaration) in declared {
        let sent = given.iter().find(|(other, _)| other.eq_ignore_ascii_case(&name));
        let value = match sent.map(|(_, sent)| sent) {
            Some(sent) if !sent["reference"].is_null() => {
                return Err(unsupported(NOT_SUPPORTED, "parameters from a key vault"));
            }
            Some(sent) => sent.get("value").cloned().unwrap_or(Value::Null),
            None => match declaration.get("defaultValue") {
                // A default may use parameters that stand before it, and functions.
                Some(default) => default_value(&template, default)?,
                None => {
                    return Err(invalid(&format!(
                        "The value for the template parameter '{name}' is not provided. Please see https://aka.ms/arm-create-parameter-file for usage details"
                    )));
                }
            },
        };
        let kind = declaration["type"].as_str().unwrap_or("string").to_owned();
        check_value(&name, &kind, &value, &declaration)?;
        template.parameters.insert(name.to_ascii_lowercase(), (kind, value));
    }
    Ok(template)
}

fn default_value(template: &Template, default: &Value) -> Result<Value, Fault> {
    scope::check(default)?;
    let id = "/subscriptions/-/resourceGroups/-".parse::<ArmId>();
    let id = id.map_err(|error| invalid(&error.to_string()))?;
    let resources: &scope::Resources<'_> =
        &|_, _| Err(invalid("the template function 'reference' is not expected in a parameter"));
    let scope = Scope { template, id: &id, group: &Value::Null, copy: None, resources };
    scope.value(default)
}

fn check_value(name: &str, kind: &str, value: &Value, declaration: &Value) -> Result<(), Fault> {
    let fits = match kind.to_ascii_lowercase().as_str() {
        "string" | "securestring" => value.is_string() || value.is_null(),
        "int" => value.is_i64() || value.is_u64(),
        "bool" => value.is_boolean(),
        "array" => value.is_array(),
        "object" | "secureobject" => value.is_object() || value.is_null(),
        _ => return Err(invalid(&format!("'{kind}' is no type of parameters"))),
    };
    if !fits {
        return Err(invalid(&format!(
            "Template parameter JToken type is not valid: the parameter '{name}' must be of type {kind}"
        )));
    }
    let allowed = declaration["allowedValues"].as_array();
    if allowed.is_some_and(|allowed| !allowed.contains(value)) {
        return Err(invalid(&format!(
            "The provided value for the template parameter '{name}' is not valid: it is not part of the allowed value(s)"
        )));
    }
    Ok(())
}

/// Whether the condition of a resource or an output holds.
pub(super) fn is_wanted(scope: &Scope<'_>, value: &Value) -> Result<bool, Fault> {
    let Some(condition) = value.get("condition") else { return Ok(true) };
    let condition = scope.value(condition)?;
    let text = condition.as_str().map(str::to_ascii_lowercase);
    match (condition.as_bool(), text.as_deref()) {
        (Some(holds), _) => Ok(holds),
        (None, Some("true")) => Ok(true),
        (None, Some("false")) => Ok(false),
        _ => Err(invalid(&format!("a condition is {condition}"))),
    }
}

/// The resources of a template, those first that others depend on.
pub(super) fn steps(scope: &Scope<'_>) -> Result<Vec<Step>, Fault> {
    let template = &scope.template.value;
    scope::check(&template["variables"])?;
    scope::check(&template["outputs"])?;
    if template["resources"].is_object() {
        return Err(unsupported(NOT_SUPPORTED, "templates with symbolic names of resources"));
    }
    let mut waiting = Vec::new();
    for resource in template["resources"].as_array().into_iter().flatten() {
        expand(scope, resource, None, &mut waiting)?;
    }
    in_order(waiting)
}

/// A resource, once for each round of its loop, with its children. `parent` is the type and name that a child adds to.
fn expand(
    scope: &Scope<'_>,
    resource: &Value,
    parent: Option<(&str, &str)>,
    waiting: &mut Vec<Waiting>,
) -> Result<(), Fault> {
    let mut body = resource.clone();
    let Some(object) = body.as_object_mut() else {
        return Err(invalid("every resource must be an object"));
    };
    let Some(copy) = object.remove("copy") else { return one(scope, object, parent, waiting) };
    scope::check(&copy)?;
    let name = scope.text(&copy["name"], "the name of a copy loop")?;
    let count = scope.value(&copy["count"])?.as_u64().and_then(|it| usize::try_from(it).ok());
    let Some(count) = count.filter(|count| *count <= MAX_RESOURCES) else {
        return Err(invalid(&format!(
            "the count of copy loop '{name}' is not 0 to {MAX_RESOURCES}"
        )));
    };
    for index in 0..count {
        let index = i64::try_from(index).map_err(|error| invalid(&error.to_string()))?;
        let scope = Scope { copy: Some((name.clone(), index)), ..*scope };
        one(&scope, &mut object.clone(), parent, waiting)?;
    }
    Ok(())
}

fn one(
    scope: &Scope<'_>,
    object: &mut Map<String, Value>,
    parent: Option<(&str, &str)>,
    waiting: &mut Vec<Waiting>,
) -> Result<(), Fault> {
    let children = object.remove("resources").unwrap_or_default();
    let whole = Value::Object(object.clone());
    scope::check(&whole)?;
    if !is_wanted(scope, &whole)? {
        return Ok(());
    }
    let (Some(kind), true) = (whole["type"].as_str(), whole["name"].is_string()) else {
        return Err(invalid("every resource must have a type and a name"));
    };
    let name = scope.text(&whole["name"], "a resource's name")?;
    let (kind, name) = match parent {
        Some((above, of)) => (format!("{above}/{kind}"), format!("{of}/{name}")),
        None => (kind.to_owned(), name),
    };
    if kind.eq_ignore_ascii_case("Microsoft.Resources/deployments") {
        return Err(unsupported(NOT_SUPPORTED, "templates inside of templates"));
    }
    let mut needs = Vec::new();
    for need in whole["dependsOn"].as_array().into_iter().flatten() {
        needs.push(scope.text(need, "an element of dependsOn")?.to_ascii_lowercase());
    }
    needs.extend(parent.map(|(kind, name)| format!("{kind}/{name}").to_ascii_lowercase()));
    let api_version = match object.remove("apiVersion") {
        Some(version) => scope.value(&version)?.as_str().map(str::to_owned),
        None => None,
    };
    for key in ["type", "dependsOn", "condition", "comments", "scope", "name"] {
        object.remove(key);
    }
    object.insert("name".to_owned(), Value::String(name.clone()));
    let body = Value::Object(std::mem::take(object));
    let is_open = scope::asks_for_resources(&body)?;
    needs.extend(references(scope, &body)?);
    let (id, resource_kind) = find(scope.id, &kind, &name)?;
    let mut names = vec![
        id.key().to_owned(),
        format!("{kind}/{name}").to_ascii_lowercase(),
        name.to_ascii_lowercase(),
    ];
    names.extend(scope.copy.iter().map(|(copy, _)| copy.to_ascii_lowercase()));
    let body = if is_open { body } else { scope.value(&body)? };
    let copy = scope.copy.clone();
    let step = Step { kind: resource_kind, id, body, copy, is_open, api_version };
    waiting.push(Waiting { names, needs, step });
    if waiting.len() > MAX_RESOURCES {
        return Err(invalid(&format!("a template has at most {MAX_RESOURCES} resources")));
    }
    for child in children.as_array().into_iter().flatten() {
        expand(scope, child, Some((&kind, &name)), waiting)?;
    }
    Ok(())
}

/// What a body refers to: that has to be there first.
fn references(scope: &Scope<'_>, body: &Value) -> Result<Vec<String>, Fault> {
    let mut texts = Vec::new();
    scope::each_expression(body, &mut |expression| {
        expression.calls(&mut |name, arguments| {
            if name.eq_ignore_ascii_case("reference") {
                texts.extend(arguments.first().cloned());
            }
        });
    })?;
    let names = texts.iter().map(|it| scope.evaluated(it));
    let names: Vec<Value> = names.collect::<Result<_, _>>()?;
    Ok(names.iter().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect())
}

/// The id of a resource of the template.
fn find(deployment: &ArmId, kind: &str, name: &str) -> Result<(ArmId, Kind), Fault> {
    let group = deployment.resource_group_id();
    let wrong = || invalid(&format!("'{kind}' with the name '{name}' is no resource"));
    let path = scope::pairs(kind, &[name]).ok_or_else(wrong)?;
    let parsed = Path::parse(&format!("{group}/providers/{path}"));
    let (segments, lower) = (parsed.segments(), parsed.lower());
    match target::parse(group.subscription(), &segments[2..], &lower[2..])? {
        Target::One { kind, id } => Ok((id, kind)),
        Target::All { .. } | Target::Word { .. } => Err(wrong()),
    }
}

fn in_order(mut waiting: Vec<Waiting>) -> Result<Vec<Step>, Fault> {
    let mut ordered = Vec::new();
    while !waiting.is_empty() {
        // What is in nobody's list is there already, or is refused when it is asked for.
        let free = waiting.iter().position(|one| {
            !waiting.iter().any(|other| {
                other.step.id != one.step.id
                    && one.needs.iter().any(|need| other.names.contains(need))
            })
        });
        let Some(free) = free else {
            return Err(invalid("the resources' dependsOn go round in a circle"));
        };
        ordered.push(waiting.remove(free).step);
    }
    Ok(ordered)
}

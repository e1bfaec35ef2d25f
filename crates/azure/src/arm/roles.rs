//! Role definitions and assignments at any scope. Kept and shown, not enforced: any token may do anything.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::{Command, Outcome},
    fault::Fault,
    model::RoleAssignment,
};

use super::{is_read, wrong_method};
use crate::{
    answer::{Answer, Reply},
    call::{Call, content},
    findings::{given, missing},
};

/// Built-in roles that tools ask for: name and id.
const ROLES: [(&str, &str); 11] = [
    ("Owner", "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"),
    ("Contributor", "b24988ac-6180-42a0-ab88-20f7382dd24c"),
    ("Reader", "acdd72a7-3385-48ef-bd42-f606fba81ae7"),
    ("User Access Administrator", "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9"),
    ("Network Contributor", "4d97b98b-1d4f-4787-a291-c67834d212e7"),
    ("Virtual Machine Contributor", "9980e02c-c2be-4d73-94e8-173b1dc7cf3c"),
    ("Managed Identity Operator", "f1a07417-d97a-45cb-824c-7a7467783830"),
    ("Private DNS Zone Contributor", "b12aa53e-6015-4669-85d0-8515ebb3ae7f"),
    ("AcrPull", "7f951dda-4ed3-4680-a7ca-43fe172d538d"),
    ("Azure Kubernetes Service Cluster Admin Role", "0ab0b1a8-8aac-4efd-b8c2-3ee1fb270be8"),
    ("Azure Kubernetes Service Cluster User Role", "4abbcc35-e782-43d8-92c5-2d3f1bd2253f"),
];

#[derive(Debug, Deserialize)]
struct Body {
    properties: Option<Properties>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    role_definition_id: Option<String>,
    principal_id: Option<String>,
    principal_type: Option<String>,
}

/// Answers a request below `…/providers/Microsoft.Authorization`; `None` when it is for something else.
pub(super) fn answer(call: &Call<'_>, segments: &[&str], lower: &[&str]) -> Option<Answer> {
    let at = lower.windows(2).rposition(|pair| pair == ["providers", "microsoft.authorization"])?;
    let scope: String = segments[..at].iter().fold(String::new(), |all, part| all + "/" + part);
    let name = segments.get(at + 3).copied();
    match (lower[at + 2..].first().copied()?, name) {
        ("roledefinitions", None) => Some(Ok(definitions(call, &scope))),
        ("roledefinitions", Some(name)) => Some(definition(&scope, name)),
        ("roleassignments", None) => Some(Ok(list(call, &scope))),
        ("roleassignments", Some(name)) => Some(one(call, &scope, name)),
        ("denyassignments" | "locks" | "policyassignments" | "classicadministrators", None) => {
            Some(Ok(Reply::list(Vec::new())))
        }
        _ => None,
    }
}

/// `$filter=roleName eq 'Network Contributor'` gives exactly one.
fn definitions(call: &Call<'_>, scope: &str) -> Reply {
    let filter = call.query.get("$filter").map_or("", String::as_str);
    let by_name = filter.to_ascii_lowercase().contains("rolename");
    let wanted = filter.split('\'').nth(1).filter(|_| by_name);
    let matching =
        ROLES.iter().filter(|(name, _)| wanted.is_none_or(|it| name.eq_ignore_ascii_case(it)));
    Reply::list(matching.map(|(name, id)| render_definition(scope, name, id)).collect())
}

fn definition(scope: &str, id: &str) -> Answer {
    let role = ROLES.iter().find(|(_, other)| other.eq_ignore_ascii_case(id));
    let (name, id) = role.ok_or_else(|| {
        let message = format!("The specified role definition with ID '{id}' does not exist.");
        Fault::new(404, "RoleDefinitionDoesNotExist", message)
    })?;
    Ok(Reply::ok(render_definition(scope, name, id)))
}

fn render_definition(scope: &str, name: &str, id: &str) -> Value {
    json!({
        "id": format!("{scope}/providers/Microsoft.Authorization/roleDefinitions/{id}"),
        "name": id,
        "type": "Microsoft.Authorization/roleDefinitions",
        "properties": {
            "roleName": name,
            "type": "BuiltInRole",
            "description": name,
            "assignableScopes": ["/"],
            "permissions": [{ "actions": ["*"], "notActions": [], "dataActions": [], "notDataActions": [] }],
        },
    })
}

/// Assignments that hold at a scope, or with `atScope()` those at it and above; at a subscription all in it.
fn list(call: &Call<'_>, scope: &str) -> Reply {
    let filter = call.query.get("$filter").map_or("", String::as_str).to_ascii_lowercase();
    let principal = filter.contains("principalid").then(|| filter.split('\'').nth(1)).flatten();
    let scope = scope.to_ascii_lowercase();
    let at_scope = filter.contains("atscope()");
    let is_at_or_below = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let region = call.region();
    let matching = region.role_assignments.iter().filter(|((at, _), assignment)| {
        let holds = is_at_or_below(&scope, at) || (!at_scope && is_at_or_below(at, &scope));
        holds && principal.is_none_or(|id| assignment.principal.eq_ignore_ascii_case(id))
    });
    Reply::list(matching.map(|(_, assignment)| render(assignment)).collect())
}

fn one(call: &Call<'_>, scope: &str, name: &str) -> Answer {
    let key = (scope.to_ascii_lowercase(), name.to_ascii_lowercase());
    let find = || call.region().role_assignments.get(&key).map(|assignment| render(assignment));
    match &call.method {
        method if is_read(method) => find().map(Reply::ok).ok_or_else(|| {
            let message = format!("The role assignment '{name}' is not found.");
            Fault::new(404, "RoleAssignmentNotFound", message)
        }),
        &Method::PUT => {
            let accepted = call.change(parse(call, scope, name)?)?;
            let status = if accepted.outcome == Outcome::Created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            Ok(Reply::with_status(status, find().unwrap_or(Value::Null)))
        }
        // Azure answers what was there, at once: clients know no 202 here.
        &Method::DELETE => match find() {
            None => Ok(Reply::empty(StatusCode::NO_CONTENT)),
            Some(was) => {
                let id =
                    format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{name}");
                let id = crate::findings::arm_id(&id, "id")?;
                call.change(Command::Delete { id })?;
                Ok(Reply::ok(was))
            }
        },
        _ => Err(wrong_method(call)),
    }
}

fn parse(call: &Call<'_>, scope: &str, name: &str) -> Result<Command, Fault> {
    let body: Body = serde_json::from_value(call.json()?).map_err(|error| content(&error))?;
    let properties = body.properties.ok_or_else(|| missing("properties"))?;
    Ok(Command::PutRoleAssignment(RoleAssignment {
        name: name.to_owned(),
        scope: scope.to_owned(),
        role_definition: given(properties.role_definition_id)
            .map(|id| of_subscription(&id, scope))
            .ok_or_else(|| missing("properties.roleDefinitionId"))?,
        principal: given(properties.principal_id)
            .ok_or_else(|| missing("properties.principalId"))?,
        principal_type: given(properties.principal_type)
            .unwrap_or_else(|| "ServicePrincipal".to_owned()),
    }))
}

/// The id of a role as every subscription has it, whatever scope it was read at.
fn of_subscription(definition: &str, scope: &str) -> String {
    const KIND: &str = "/providers/Microsoft.Authorization/roleDefinitions/";
    let (Some(subscription), Some((_, name))) =
        (scope.split('/').nth(2), definition.rsplit_once('/'))
    else {
        return definition.to_owned();
    };
    if definition.to_ascii_lowercase().contains(&KIND.to_ascii_lowercase()) {
        format!("/subscriptions/{subscription}{KIND}{name}")
    } else {
        definition.to_owned()
    }
}

fn render(assignment: &RoleAssignment) -> Value {
    json!({
        "id": format!("{}/providers/Microsoft.Authorization/roleAssignments/{}", assignment.scope, assignment.name),
        "name": assignment.name,
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": {
            "scope": assignment.scope,
            "roleDefinitionId": assignment.role_definition,
            "principalId": assignment.principal,
            "principalType": assignment.principal_type,
        },
    })
}

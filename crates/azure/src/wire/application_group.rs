//! `Microsoft.Network/applicationSecurityGroups`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{command::Command, fault::Fault, kind, model::ApplicationGroup};

use super::{Asked, Resource, frame, network_state};
use crate::kept;

/// There is nothing in it but what every resource has.
#[derive(Debug, Deserialize)]
struct Properties {}

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    Ok(Command::PutApplicationGroup { common: asked.common(&resource, &[]) })
}

/// The resource as a `GET` shows it.
pub(crate) fn render(group: &ApplicationGroup) -> Value {
    let mut body = frame(&group.meta, kind::APPLICATION_GROUP);
    body["properties"] = json!({
        "provisioningState": network_state(group.meta.state),
        "resourceGuid": group.meta.guid,
    });
    kept::merge(&mut body, &group.meta.kept);
    body
}

//! The resources as Azure Resource Manager's clients write and read them, a module per type: its struct,
//! what of it is kept or refused, how it becomes a [`::vnet::command::Command`], how it is rendered.
//! Not here: routes and operations (see `arm`).

pub(crate) mod application_group;
pub(crate) mod balancer;
pub(crate) mod cluster;
pub(crate) mod effective;
pub(crate) mod machine;
pub(crate) mod nat_gateway;
pub(crate) mod nic;
pub(crate) mod peering;
pub(crate) mod pool;
pub(crate) mod public_ip;
pub(crate) mod public_ip_prefix;
pub(crate) mod route_table;
pub(crate) mod security_group;
pub(crate) mod subnet;
pub(crate) mod vnet;

use ::vnet::{
    command::Common,
    fault::Fault,
    model::{Kept, Meta, ProvisioningState, Tags},
    name::ArmId,
    region::Region,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    call::{ApiVersion, content},
    door::{Door, Nodes},
    findings::Findings,
    kept,
    refuse::{self, Refusal},
};

/// Set by the lab on clusters whose nodes are not real; never stored.
pub(crate) const NODES_TAG: &str = "aksnet-nodes";

/// What the door can see when it renders.
pub(crate) struct View<'a> {
    pub(crate) region: &'a Region,
    pub(crate) door: &'a Door,
    /// What the client speaks.
    pub(crate) api_version: ApiVersion<'a>,
}

/// A body that was sent for the resource `id`.
pub(crate) struct Asked<'a> {
    pub(crate) view: &'a View<'a>,
    pub(crate) id: ArmId,
    pub(crate) value: Value,
    bytes: &'a [u8],
}

impl<'a> Asked<'a> {
    pub(crate) fn new(view: &'a View<'a>, id: ArmId, value: Value, bytes: &'a [u8]) -> Self {
        Self { view, id, value, bytes }
    }

    /// The body as a wire struct; what doesn't fit is refused with its position.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_slice(self.bytes).map_err(|error| content(&error))
    }

    /// What is refused of it by `table`, as the first findings.
    pub(crate) fn findings(&self, table: &[Refusal]) -> Findings {
        let mut findings = Findings::default();
        refuse::check(&self.value, table, "", &mut findings);
        findings
    }

    /// What every top-level resource has. `known` are the properties that are acted on or read-only.
    pub(crate) fn common<P>(&self, resource: &Resource<P>, known: &[&str]) -> Common {
        let mut tags = resource.tags.clone().unwrap_or_default();
        tags.remove(NODES_TAG);
        Common {
            id: self.id.clone(),
            location: resource.location.as_deref().filter(|text| !text.is_empty()).map(location),
            tags: Some(tags),
            kept: self.kept(known),
        }
    }

    /// What of the body is only kept.
    pub(crate) fn kept(&self, known: &[&str]) -> Kept {
        let all: Vec<&str> = FRAME.iter().chain(known).copied().collect();
        kept::collect(&self.value, &all)
    }
}

/// What every resource has around its properties, and what is read-only in all of them.
const FRAME: [&str; 11] = [
    "/id",
    "/name",
    "/type",
    "/etag",
    "/eTag",
    "/location",
    "/tags",
    "/systemData",
    "/resourceGroup",
    "/properties/provisioningState",
    "/properties/resourceGuid",
];

/// A top-level resource.
#[derive(Debug, Deserialize)]
#[serde(bound = "P: Deserialize<'de>")]
pub(crate) struct Resource<P> {
    pub(crate) location: Option<String>,
    pub(crate) tags: Option<Tags>,
    pub(crate) sku: Option<Sku>,
    pub(crate) properties: Option<P>,
}

/// What a resource costs, in Azure.
#[derive(Debug, Deserialize)]
pub(crate) struct Sku {
    pub(crate) name: Option<String>,
}

/// A child or a part of a resource.
#[derive(Debug, Deserialize)]
#[serde(bound = "P: Deserialize<'de>")]
pub(crate) struct Named<P> {
    pub(crate) name: Option<String>,
    pub(crate) properties: Option<P>,
}

/// A reference to another resource.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Reference {
    pub(crate) id: Option<String>,
}

/// The id in a reference, if there is one.
pub(crate) fn id_of(reference: Option<Reference>) -> Option<String> {
    reference.and_then(|reference| reference.id).filter(|id| !id.is_empty())
}

/// `East US` is `eastus`.
pub(crate) fn location(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase()
}

/// The start of a rendered resource: what all of them have.
pub(crate) fn frame(meta: &Meta, kind: &str) -> Value {
    let mut body = json!({
        "name": meta.id.name(),
        "id": meta.id,
        "etag": etag(meta.etag),
        "type": kind,
        "location": meta.location,
    });
    if !meta.tags.is_empty() {
        body["tags"] = json!(meta.tags);
    }
    body
}

/// The start of a rendered child: no location, the parent's etag.
pub(crate) fn child_frame(id: &ArmId, kind: &str, parent: &Meta) -> Value {
    json!({ "name": id.name(), "id": id, "etag": etag(parent.etag), "type": kind })
}

/// An entity tag as Microsoft.Network writes it.
pub(crate) fn etag(etag: Uuid) -> String {
    format!("W/\"{etag}\"")
}

/// A state in the words of Microsoft.Network and Microsoft.Compute, which know no `Creating`.
pub(crate) fn network_state(state: ProvisioningState) -> &'static str {
    match state {
        ProvisioningState::Creating
        | ProvisioningState::Updating
        | ProvisioningState::Scaling
        | ProvisioningState::Upgrading => "Updating",
        ProvisioningState::Deleting => "Deleting",
        ProvisioningState::Succeeded => "Succeeded",
        ProvisioningState::Failed => "Failed",
    }
}

/// A state in the words of Microsoft.ContainerService.
pub(crate) fn cluster_state(state: ProvisioningState) -> &'static str {
    match state {
        ProvisioningState::Creating => "Creating",
        ProvisioningState::Updating => "Updating",
        ProvisioningState::Scaling => "Scaling",
        ProvisioningState::Upgrading => "Upgrading",
        ProvisioningState::Deleting => "Deleting",
        ProvisioningState::Succeeded => "Succeeded",
        ProvisioningState::Failed => "Failed",
    }
}

/// Adds what is absent.
pub(crate) fn fill(body: &mut Value, defaults: Value) {
    match (body, defaults) {
        (Value::Object(body), Value::Object(defaults)) => {
            for (key, value) in defaults {
                match body.get_mut(&key) {
                    Some(inner) => fill(inner, value),
                    None => {
                        body.insert(key, value);
                    }
                }
            }
        }
        (body @ Value::Null, defaults) => *body = defaults,
        _ => {}
    }
}

/// `{"id": …}` for each.
pub(crate) fn references<T: serde::Serialize>(ids: impl IntoIterator<Item = T>) -> Vec<Value> {
    ids.into_iter().map(|id| json!({ "id": id })).collect()
}

impl Nodes {
    /// The tag's value on clusters.
    pub(crate) fn tag(self) -> Option<&'static str> {
        match self {
            Self::Kubernetes => None,
            Self::NetworkOnly => Some("network-only"),
            Self::Simulated => Some("simulated"),
        }
    }
}

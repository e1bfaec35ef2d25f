//! The resources of a region, as values. Not here: how they change (see [`crate::region`]).
//!
//! Every resource that Azure Resource Manager shows has an [`ArmId`], a [`ProvisioningState`] and an
//! etag. What a request sets and nothing here acts on is in `kept`: property path to JSON text,
//! opaque to this crate, so that a `GET` gives back what a `PUT` gave.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{fault::Fault, name::ArmId};

mod balancer;
mod cluster;
mod machine;
mod network;
mod security;

pub use self::{balancer::*, cluster::*, machine::*, network::*, security::*};

/// Milliseconds since 1970-01-01T00:00:00Z. The caller's clock; this crate has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// Counts accepted commands, from 1. A resource changed by command `g` is real once the loops have
/// seen a state of generation `g` or later.
pub type Generation = u64;

/// Properties that are kept and given back but not acted upon: path to JSON text.
pub type Kept = BTreeMap<String, String>;

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// Where a resource is between request and reality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvisioningState {
    /// Being made; shown for clusters and pools (network resources show `Updating` here too).
    Creating,
    /// Being changed.
    Updating,
    /// A pool is getting or losing nodes.
    Scaling,
    /// A pool or cluster is getting another version.
    Upgrading,
    /// Being removed.
    Deleting,
    /// As asked, and real.
    Succeeded,
    /// The last operation failed; its operation says why.
    Failed,
}

/// What every resource has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The resource's id.
    pub id: ArmId,
    /// The region's name, `eastus`.
    pub location: String,
    /// Tags, in order.
    pub tags: Tags,
    /// Changes with every write. Subnets and other children have their own `etag` but Azure shows the parent's.
    pub etag: Uuid,
    /// Never changes (`resourceGuid`).
    pub guid: Uuid,
    /// Where it is between request and reality.
    pub state: ProvisioningState,
    /// The command that changed it last.
    pub changed: Generation,
    /// Kept and given back, not acted upon.
    pub kept: Kept,
}

/// A resource group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceGroup {
    /// Its id.
    pub id: ArmId,
    /// The region's name.
    pub location: String,
    /// Tags.
    pub tags: Tags,
    /// The cluster that this node resource group belongs to.
    pub managed_by: Option<ArmId>,
    /// `Deleting` while its resources go.
    pub state: ProvisioningState,
}

/// A role given to a principal at a scope. Kept, shown, not enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleAssignment {
    /// The assignment's name, a GUID.
    pub name: String,
    /// The id that it is given at, as the caller wrote it.
    pub scope: String,
    /// The role's id.
    pub role_definition: String,
    /// Who has it.
    pub principal: String,
    /// `ServicePrincipal`, `User`.
    pub principal_type: String,
}

/// A long-running operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its id, in the operation's URL.
    pub id: Uuid,
    /// What it works on: a resource, a child (subnet, agent pool) or a group.
    pub target: ArmId,
    /// What it does.
    pub verb: Verb,
    /// The command that began it.
    pub generation: Generation,
    /// When it began.
    pub started: Timestamp,
    /// How it ended, and when. `None` while it runs.
    pub ended: Option<(Timestamp, Option<Fault>)>,
}

/// What an [`Operation`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Makes or changes.
    Put,
    /// Removes.
    Delete,
    /// Answers a question that takes time.
    Post,
}

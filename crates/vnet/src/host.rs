//! What the network namespaces of a lab must look like to behave as a region says, and how to get there.
//!
//! [`fabric::compile_fabric`] turns a region into a [`state::Fabric`]: desired state, namespace by namespace.
//! [`plan::plan`] compares it with what was observed and lists the actions between the two. Both are
//! plain functions; `linux` observes and acts, `daemon` decides when.

pub(crate) mod balancing;
pub mod change;
mod control;
mod cuts;
pub mod delta;
pub(crate) mod egress;
pub mod element;
pub mod fabric;
mod fronts;
mod gates;
pub mod health;
pub mod names;
mod peering;
pub mod plan;
pub mod platform;
mod routing;
mod ruleset;
mod services;
pub mod state;
mod text;
mod translation;
pub mod uplink;
pub(crate) mod view;

#[cfg(test)]
mod laws;

pub use self::{
    change::{Change, change},
    delta::{Elements, delta},
    element::Element,
    fabric::compile_fabric,
    fronts::is_led,
    health::Health,
    plan::{Action, Step, plan},
    ruleset::{TABLE, digest, digest_after},
    state::{Crossing, Fabric, NamespaceState, Observed},
};

//! The door for Azure's tools: cloud metadata, tokens and Azure Resource Manager over TLS.
//!
//! Entry points: [`router`] makes an [`axum::Router`] of a [`Door`]; [`serve()`] puts it behind TLS with
//! a certificate of [`tls::Authority`]; [`imds_router`] is the metadata service's token route alone, for
//! plain HTTP. The router can be called in-process as a `tower::Service`.
//!
//! A request is parsed into a [`vnet::command::Command`] by the module in `wire` of its resource type,
//! which reports every finding; `store::Store::change` decides; the answer is rendered from a snapshot.
//! What a request sets and nothing acts on is kept and given back. What this lab cannot do is refused.
//!
//! Deliberately absent: kernel calls, allocation of anything outside `Store::change`, authorization (any
//! bearer token is good, as is none), wire structs outside of this crate.
#![forbid(unsafe_code)]

mod answer;
mod arm;
mod call;
mod door;
mod findings;
mod identity;
mod kept;
mod refuse;
mod serve;
pub mod tls;
mod wire;

/// The router's crate, for callers in the same process.
pub use axum;
pub use door::{Door, KubeCredentials, Nodes, RetryAfter, imds_router, router};
pub use identity::{DEFAULT_SUBSCRIPTION, TENANT};
pub use serve::{ServeError, serve, serve_until};

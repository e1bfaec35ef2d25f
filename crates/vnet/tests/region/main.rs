//! The region from outside: commands in, state and refusals out.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod article;
mod balancers;
mod clusters;
mod dataplanes;
mod dual;
mod golden;
mod inbound;
mod laws;
mod networks;
mod outbound;
mod peerings;
mod publics;
mod refusals;
mod routes;
mod security;
mod support;
mod upgrades;

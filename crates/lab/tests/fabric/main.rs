//! The fabric with real packets: who reaches whom in a lab of real namespaces, and as whom.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod balancing;
mod closed;
mod clusters;
mod dual;
mod egress;
mod firewalls;
mod flow_logs;
mod gates;
mod golden;
mod lab;
mod packets;
mod peering;
mod platform;
mod routes;
mod running;
mod shortcuts;
mod uplink;
mod world;

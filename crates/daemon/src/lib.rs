//! The loops that make the machine match the region, and the clusters match both.
//!
//! Each loop reads, asks `vnet` or `cluster` what must be, has `linux` or an API do it, and reports. None decides.
#![forbid(unsafe_code)]

pub mod clusters;
pub mod controller;
pub mod fabric;
mod hands;
pub mod metrics;
pub mod node;
pub mod reconcile;

//! What Azure and AKS networking mean: who gets which address, which request is refused and how,
//! what a plan costs in addresses, and what a Linux host must look like to behave so.
//!
//! Entry points: [`region::Region::apply`] changes the cloud side's whole state, one [`command::Command`]
//! at a time; [`sizing`] says what a plan costs; [`flow`] says what becomes of a packet, by [`policy`] and [`routes`]; [`host`]
//! says what the kernel must look like for a given region.
//!
//! Deliberately absent: clock, disk, sockets, threads, `async`, randomness, environment, logging,
//! and every word of HTTP, JSON, Kubernetes' API or netlink.
#![forbid(unsafe_code)]

pub mod addr;
pub mod name;

pub mod fault;
pub mod kind;
pub mod model;

pub mod command;

pub mod ipam;
pub mod policy;
pub mod region;
pub mod routes;

pub mod effective;
pub mod flow;
pub mod sizing;

pub mod host;
pub mod pods;

//! Tests across crates. Nothing here ships.
#![forbid(unsafe_code)]

pub mod pods;

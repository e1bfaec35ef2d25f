//! The region from outside: commands in, state and refusals out.

mod article;
mod clusters;
mod golden;
mod laws;
mod networks;
mod refusals;
mod support;

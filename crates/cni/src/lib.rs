//! The CNI plugin and its few words with the agent on its node.
//!
//! The plugin is thin on purpose: the runtime starts it for every pod, so it reads its request,
//! refuses what is wrong with it, asks the agent over a Unix socket and prints the answer. All that
//! has state or touches the kernel is the agent's (`daemon::node`).
//!
//! Entry points: [`plugin::run`] is the whole program as a function; [`talk`] is the protocol, which
//! the agent uses from its side; [`spec`] has the words of the CNI specification 1.1.0.
//!
//! Deliberately absent: an async runtime, netlink, a database, anything on stdout but the answer.
#![forbid(unsafe_code)]

pub mod answer;
pub mod config;
pub mod invocation;
pub mod plugin;
pub mod queue;
pub mod spec;
pub mod talk;

//! What nftables and connection tracking know and `nft` does not tell well: counters of rules, the way of
//! single packets through the rules, flows; and elements of sets, one by one. By nfnetlink. Not here: loading rules
//! (see [`crate::nft`]).

mod change;
mod channel;
pub mod conntrack;
pub mod elements;
mod flows;
pub mod log;
mod rules;
mod trace;
mod wire;

pub use self::{
    change::Changer,
    flows::{Flow, Side, flow_count, flows},
    rules::{RuleCount, Table, Verdict, table},
    trace::{Event, Fate, Tracer},
};

//! What `capture` and `trace` share: packets as values.

pub(crate) mod filter;
pub(crate) mod frame;
pub(crate) mod pcapng;

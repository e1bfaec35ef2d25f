//! Acts on the Linux kernel: network namespaces, links, addresses, routes, rules, neighbours, nftables,
//! and process trees with namespaces of their own.
//!
//! Entry points: [`netns::Netns`], [`net::observe`] and [`net::apply`], [`nft::load`], [`echo::run`]. Everything is
//! synchronous; a namespace is entered only by a thread made for it.
//!
//! Deliberately absent: Azure's and Kubernetes' words, choices (an action is carried out as it is),
//! retries, and state of its own that a restart would lose.

pub mod alias;
mod bpf;
pub mod echo;
pub mod error;
pub mod limits;
pub mod net;
pub mod netfilter;
pub mod netns;
pub mod nft;
pub mod packets;
pub mod pod;
pub mod probe;
pub mod sandbox;
pub mod shortcut;

pub use error::LinuxError;

//! Pods on one node: which address a sandbox gets, how it is connected, when the node asks for more
//! addresses and which source address the world sees.
//!
//! Entry points: [`pool::Pool`] hands out the node's addresses, [`wiring::wiring`] says how a pod is
//! connected, [`demand::step`] how many addresses a pod subnet node asks for, [`exhaustion::answer`] how
//! many it gets, [`table::table`] the node's rules. Not here: who grants addresses to nodes
//! ([`crate::region`]), and what carries any of it out.

use std::{fmt, str::FromStr};

pub mod bridging;
pub mod demand;
pub mod exhaustion;
pub mod masquerade;
pub mod pool;
pub mod ports;
pub mod spread;
pub mod table;
pub mod wiring;

/// Where a node's pods have their addresses from, and so how they are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodNetwork {
    /// A /24 of the cluster's pod range, behind a bridge.
    Kubenet,
    /// Secondary addresses of the node's own NIC.
    NodeSubnet,
    /// The same, and pods and NIC are ports of one bridge (`networkMode: bridge`).
    NodeBridge,
    /// Batches of a subnet that holds pods only.
    PodSubnet,
    /// A /24 of the cluster's pod range, routed by the virtual network itself.
    Overlay,
}

impl PodNetwork {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Kubenet, Self::NodeSubnet, Self::NodeBridge, Self::PodSubnet, Self::Overlay];

    /// The word that the agent's configuration file uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubenet => "kubenet",
            Self::NodeSubnet => "node-subnet",
            Self::NodeBridge => "node-subnet-bridge",
            Self::PodSubnet => "pod-subnet",
            Self::Overlay => "overlay",
        }
    }
}

impl fmt::Display for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that names no [`PodNetwork`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not one of kubenet, node-subnet, node-subnet-bridge, pod-subnet, overlay")]
pub struct UnknownPodNetwork {
    /// What was given.
    pub text: String,
}

impl FromStr for PodNetwork {
    type Err = UnknownPodNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownPodNetwork { text: text.to_owned() })
    }
}

//! Whose packets get the node's source address, and on the way to where. Not here: the rules as text
//! ([`super::table`]).

use std::net::Ipv4Addr;

use crate::{
    addr::{Prefix, Prefix4, Prefix6},
    pods::{PodNetwork, pool::Grant},
};

/// Link-local addresses: among them the metadata service's.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);

/// What azure-ip-masq-agent is told (Azure/ip-masq-agent-v2, `MasqConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Destinations that see a pod's own address.
    pub non_masquerade: Vec<Prefix>,
    /// Whether 169.254.0.0/16 sees the node's address.
    pub masquerade_link_local: bool,
}

impl Settings {
    /// What AKS tells it: the pod range keeps addresses in kubenet and overlay, the virtual network where
    /// pods have addresses of it (`azure-ip-masq-agent-config-reconciled`).
    #[must_use]
    pub fn of_aks(network: PodNetwork, pods: &[Prefix], vnet: &[impl Into<Prefix> + Copy]) -> Self {
        match network {
            PodNetwork::Kubenet | PodNetwork::Overlay => Self {
                non_masquerade: pods.to_vec(),
                masquerade_link_local: network == PodNetwork::Overlay,
            },
            PodNetwork::NodeSubnet | PodNetwork::NodeBridge => {
                let non_masquerade = vnet.iter().map(|prefix| (*prefix).into()).collect();
                Self { non_masquerade, masquerade_link_local: true }
            }
            // No agent runs there: pods keep their address everywhere.
            PodNetwork::PodSubnet => Self::default(),
        }
    }

    /// Both: lists are appended, switches are joined by "or".
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.non_masquerade.extend(&other.non_masquerade);
        self.masquerade_link_local |= other.masquerade_link_local;
        self
    }
}

/// The contents of the node's two sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// The node's pods.
    pub pods: Vec<Prefix>,
    /// Destinations that see a pod's own address.
    pub exempt: Vec<Prefix>,
}

/// The sets of a node whose pods have these addresses, and those of `block_v6` in dual-stack clusters. In a pod subnet
/// `settings` mean nothing.
#[must_use]
pub fn sets(
    network: PodNetwork,
    grant: &Grant,
    block_v6: Option<Prefix6>,
    settings: &Settings,
) -> Sets {
    let pods = grant.addresses().iter().map(|address| Prefix4::host(*address).into());
    let pods = merged(pods.chain(block_v6.map(Prefix::from)));
    let exempt = match network {
        PodNetwork::PodSubnet => Vec::new(),
        PodNetwork::Kubenet
        | PodNetwork::NodeSubnet
        | PodNetwork::NodeBridge
        | PodNetwork::Overlay => {
            let link_local = (!settings.masquerade_link_local)
                .then(|| Prefix4::containing(LINK_LOCAL, 16).into());
            merged(settings.non_masquerade.iter().copied().chain(link_local))
        }
    };
    Sets { pods, exempt }
}

/// The same addresses in the fewest prefixes, lowest first.
fn merged(prefixes: impl Iterator<Item = Prefix>) -> Vec<Prefix> {
    let mut sorted: Vec<_> = prefixes.collect();
    sorted.sort_by_key(|prefix| (prefix.network(), prefix.length()));
    let mut result: Vec<Prefix> = Vec::new();
    for prefix in sorted {
        if result.last().is_some_and(|last| last.contains_prefix(prefix)) {
            continue;
        }
        result.push(prefix);
        while let [.., a, b] = result[..]
            && let Some(joined) = join(a, b)
        {
            result.truncate(result.len() - 2);
            result.push(joined);
        }
    }
    result
}

/// The prefix of which `a` and `b` are the two halves.
fn join(a: Prefix, b: Prefix) -> Option<Prefix> {
    let length = a.length().checked_sub(1)?;
    let joined = Prefix::containing(a.network(), length);
    (a.length() == b.length() && a != b && joined.contains_prefix(b)).then_some(joined)
}

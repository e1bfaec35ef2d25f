//! A pod subnet that is full: what its controller grants then, when it is called exhausted, and what is
//! told to whoever waits. Not here: what a node asks for ([`super::demand`]).
//!
//! The controller of Azure's pod subnets (DNC-RC) is not public. Public are its two objects,
//! `NodeNetworkConfig` and `ClusterSubnetState` (Azure/azure-container-networking, `crd/`), and what CNS
//! does with them: while a subnet is exhausted, addresses come and go one by one (`cns/ipampool`).

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    ipam::N_RESERVED,
    model::{POD_BATCH, Role},
    name::ArmId,
    pods::demand::Scaler,
    region::Region,
};

/// What one node asks of its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// `spec.requestedIPCount`, already at most the scaler's `maxIPCount`.
    pub wanted: u32,
    /// Addresses that it holds.
    pub has: u32,
    /// The length of `spec.ipsNotInUse`.
    pub listed: u32,
    /// Those on that list that it still holds.
    pub listed_held: u32,
    /// Free addresses of the subnet.
    pub room: u32,
    /// Whether the subnet is exhausted.
    pub is_exhausted: bool,
}

/// What the controller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How many addresses the node should hold from now on; `None` leaves it as it is.
    pub total: Option<u32>,
    /// Whether the node gets fewer than it asks for because the subnet has no more.
    pub is_short: bool,
}

/// Decides on one node's request.
///
/// What a node gives back is taken first and alone: until the node has struck it off its list, it could
/// be granted again and mean two things. Whole batches come while the subnet has them; when it is
/// exhausted, as many single ones as there are.
#[must_use]
pub fn answer(ask: Ask) -> Answer {
    if ask.listed > 0 {
        let total = (ask.listed_held > 0).then(|| ask.has.saturating_sub(ask.listed_held));
        return Answer { total, is_short: false };
    }
    let missing = ask.wanted.saturating_sub(ask.has);
    let fits = missing.min(ask.room);
    let step = if ask.is_exhausted { 1 } else { u32::try_from(POD_BATCH).unwrap_or(1) };
    let granted = if fits == missing { missing } else { fits - fits % step };
    Answer { total: (granted > 0).then_some(ask.has + granted), is_short: granted < missing }
}

/// Whether a subnet is exhausted now that somebody goes short (or nobody) and this many are free.
///
/// It is over only when each of the nodes that hold addresses in it could have as many free ones as it may
/// keep: with a lower mark the batches asked for at that moment would exhaust it again, and so on for ever.
#[must_use]
pub fn is_exhausted(was: bool, is_anyone_short: bool, n_free: u64, n_nodes: u64) -> bool {
    let most = u64::from(Scaler::default().max_free());
    is_anyone_short || (was && n_free < most.saturating_mul(n_nodes.max(1)))
}

/// The name of the `ClusterSubnetState` of a subnet, from the subnet's name: Kubernetes allows less.
#[must_use]
pub fn state_name(subnet: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = subnet.chars().map(allowed).collect();
    name.trim_matches('-').to_owned()
}

/// Who holds a subnet's addresses: each cluster's nodes, and everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// By cluster's name, then by node's name: how many.
    pub clusters: BTreeMap<String, BTreeMap<String, usize>>,
    /// Load balancers' front ends, NICs of machines that are no nodes.
    pub others: usize,
}

/// Counts who holds the addresses of `subnet`.
#[must_use]
pub fn holders(region: &Region, subnet: &ArmId) -> Holders {
    let mut holders = Holders::default();
    let Some((_, subnet)) = region.subnet(subnet) else { return holders };
    for holder in subnet.held.values() {
        let resource = holder.resource();
        let machine = region.machines.get(resource).or_else(|| {
            let nic = region.nics.get(resource)?;
            region.machines.get(nic.machine.as_ref()?)
        });
        match machine.map(|machine| (&machine.hostname, &machine.role)) {
            Some((hostname, Role::Node(node))) => {
                let nodes = holders.clusters.entry(node.cluster.name().to_owned()).or_default();
                *nodes.entry(hostname.clone()).or_default() += 1;
            }
            _ => holders.others += 1,
        }
    }
    holders
}

/// What is said to a pod that gets no address because `subnet` is full: at most 1,000 characters, since
/// an event's note has 1,024.
#[must_use]
pub fn explain(region: &Region, id: &ArmId) -> Option<String> {
    /// As many nodes of a cluster, and as many clusters, are named; of the others, how many they are.
    const NAMED: usize = 4;
    let (vnet, subnet) = region.subnet(id)?;
    let usage = subnet.usage();
    let mut text = format!(
        "Subnet `{}` ({}) of virtual network `{}` is full: {} of its {} usable addresses are held (Azure keeps {N_RESERVED} of {}).",
        subnet.name,
        subnet.prefix,
        vnet.meta.id.name(),
        usage.held,
        usage.usable,
        subnet.prefix.n_addresses(),
    );
    let holders = holders(region, id);
    let mut clusters: Vec<_> = holders
        .clusters
        .iter()
        .map(|(name, nodes)| (nodes.values().sum::<usize>(), name, nodes))
        .collect();
    clusters.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    for (n_held, name, nodes) in clusters.iter().take(NAMED) {
        let _ = write!(text, " Cluster `{name}` holds {n_held}:");
        let mut nodes: Vec<_> = nodes.iter().collect();
        nodes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let shown: Vec<_> =
            nodes.iter().take(NAMED).map(|(name, n)| format!(" {n} by {name}")).collect();
        text.push_str(&shown.join(","));
        if nodes.len() > NAMED {
            let rest: usize = nodes[NAMED..].iter().map(|(_, n)| **n).sum();
            let _ = write!(text, ", {rest} by {} more nodes", nodes.len() - NAMED);
        }
        text.push('.');
    }
    if clusters.len() > NAMED {
        let rest: usize = clusters[NAMED..].iter().map(|(n, ..)| *n).sum();
        let _ = write!(text, " {} more clusters hold {rest}.", clusters.len() - NAMED);
    }
    if holders.others > 0 {
        let _ = write!(text, " Others hold {}.", holders.others);
    }
    let help = " What helps: fewer pods or nodes in this subnet, or a node pool with another, larger pod subnet (az aks nodepool add --pod-subnet-id). Addresses that come back are granted at once.";
    let room = 1000_usize.saturating_sub(help.len());
    if text.len() > room {
        let end = (0..=room.saturating_sub(3)).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text.push_str(help);
    Some(text)
}

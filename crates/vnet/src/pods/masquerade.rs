//! Which source address the world sees of a node's pods, as rules for `nft -f`.
//!
//! One static table per node: nothing in it changes when a pod comes or goes. It lives beside
//! kube-proxy's tables: whichever chain translates a connection first has decided, and both would
//! choose the node's address.

use std::fmt::Write;

use crate::{
    addr::Prefix4,
    pods::{PodNetwork, pool::Grant},
};

/// The table's name.
pub const TABLE: &str = "aksnet";

/// When a pod's packets get the node's address on their way out of the NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Never: the pod's address is good everywhere.
    Never,
    /// When they come from `pods` and go anywhere but `exempt`.
    Outside {
        /// Sources.
        pods: Vec<Prefix4>,
        /// Destinations that see the pod's own address.
        exempt: Vec<Prefix4>,
    },
}

/// Decides it for a node whose pods have these addresses.
///
/// `exempt` is what the cluster says keeps the pod's address: the pod range for kubenet and
/// overlay, the virtual network's ranges for a node subnet.
#[must_use]
pub fn masquerade(network: PodNetwork, grant: &Grant, exempt: &[Prefix4]) -> Masquerade {
    let pods = merged(grant.addresses().iter().map(|address| Prefix4::host(*address)));
    match network {
        PodNetwork::PodSubnet => Masquerade::Never,
        PodNetwork::Kubenet => {
            // ip-masq-agent's `masqLinkLocal: false` of kubenet.
            let link_local = Prefix4::containing([169, 254, 0, 0].into(), 16);
            let exempt = merged(exempt.iter().copied().chain([link_local]));
            Masquerade::Outside { pods, exempt }
        }
        PodNetwork::NodeSubnet | PodNetwork::Overlay => {
            Masquerade::Outside { pods, exempt: merged(exempt.iter().copied()) }
        }
    }
}

/// The rules, as a file that replaces the table in one transaction.
///
/// Only what leaves by `interface` is translated: pods of the node meet by their own addresses.
/// Plain `masquerade` keeps the source port where it can; random ports meet old connections of the
/// far end and cost whole seconds then.
#[must_use]
pub fn render(interface: &str, masquerade: &Masquerade) -> String {
    let mut text = format!("table ip {TABLE} {{\n}}\ndelete table ip {TABLE}\n");
    let Masquerade::Outside { pods, exempt } = masquerade else { return text };
    let _ = writeln!(text, "table ip {TABLE} {{");
    for (name, prefixes) in [("pods", pods), ("exempt", exempt)] {
        let _ = writeln!(text, "\tset {name} {{\n\t\ttype ipv4_addr\n\t\tflags interval");
        if !prefixes.is_empty() {
            let elements: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
        }
        text.push_str("\t}\n");
    }
    let _ = write!(
        text,
        "\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat + 10; policy accept;
\t\toifname \"{interface}\" ip saddr @pods ip daddr != @exempt masquerade
\t}}
}}
"
    );
    text
}

/// The same addresses in the fewest prefixes, lowest first.
fn merged(prefixes: impl Iterator<Item = Prefix4>) -> Vec<Prefix4> {
    let mut sorted: Vec<_> = prefixes.collect();
    sorted.sort_by_key(|prefix| (prefix.network(), prefix.length()));
    let mut result: Vec<Prefix4> = Vec::new();
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
fn join(a: Prefix4, b: Prefix4) -> Option<Prefix4> {
    let length = a.length().checked_sub(1)?;
    let joined = Prefix4::containing(a.network(), length);
    (a.length() == b.length() && a != b && joined.contains_prefix(b)).then_some(joined)
}

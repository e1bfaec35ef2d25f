//! The frames of a node whose pods and NIC are ports of one bridge, as text for `nft -f`.
//!
//! The network beyond the NIC knows one Ethernet address per NIC. So what leaves by the NIC has the NIC's,
//! what comes for a pod's address is led to the pod's, and answers to the pods' questions reach every port.
//! Questions about the node's own addresses stay inside: the network's router answers for every address, and
//! the second answer would lead pods of one node out and back. All of it as azure-vnet does it with ebtables
//! (Azure/azure-container-networking, `ebtables/ebtables.go`); that a port carries its own pod's addresses only
//! is ours, for the bridge's port is where a forged one can be told.

use std::{fmt::Write, net::Ipv4Addr};

use crate::{
    addr::Mac,
    pods::{table::TABLE, wiring::Wiring},
};

/// Pods' Ethernet addresses by address.
pub const MACS: &str = "macs";
/// The addresses that a port may send from: link, Ethernet address, address.
pub const SENDERS: &str = "senders";
/// The addresses that are on the node, for questions that must not leave it.
pub const HERE: &str = "here";
/// How many rules [`frames`] has.
pub const N_RULES: usize = 8;

/// The table with its rules and no pods, in place of the one that may be there. The node's NIC is `nic`, with
/// the Ethernet address `mac`; `node` is the node's own address.
#[must_use]
pub fn frames(nic: &str, mac: Mac, node: Ipv4Addr) -> String {
    format!(
        "table bridge {TABLE} {{
}}
delete table bridge {TABLE}
table bridge {TABLE} {{
\tmap {MACS} {{
\t\ttype ipv4_addr : ether_addr
\t}}
\tset {SENDERS} {{
\t\ttype ifname . ether_addr . ipv4_addr
\t}}
\tset {HERE} {{
\t\ttype ipv4_addr
\t}}
\tchain prerouting {{
\t\ttype filter hook prerouting priority dstnat; policy accept;
\t\tiifname \"azv*\" ether type ip iifname . ether saddr . ip saddr != @{SENDERS} drop
\t\tiifname \"azv*\" ether type arp iifname . arp saddr ether . arp saddr ip != @{SENDERS} drop
\t\tiifname \"{nic}\" arp operation reply ether daddr set ff:ff:ff:ff:ff:ff accept
\t\tiifname \"{nic}\" ether type ip ether daddr set ip daddr map @{MACS}
\t}}
\tchain postrouting {{
\t\ttype filter hook postrouting priority srcnat; policy accept;
\t\toifname \"{nic}\" arp operation request arp daddr ip {node} drop
\t\toifname \"{nic}\" arp operation request arp daddr ip @{HERE} drop
\t\toifname \"{nic}\" ether type arp arp saddr ether set {mac}
\t\toifname \"{nic}\" ether saddr set {mac}
\t}}
}}
"
    )
}

/// Adds pods to a table that has none.
#[must_use]
pub fn admit<'a>(pods: impl IntoIterator<Item = &'a Wiring>) -> String {
    let mut text = String::new();
    for Wiring { host_link, pod_mac, address, .. } in pods {
        let _ = writeln!(text, "add element bridge {TABLE} {MACS} {{ {address} : {pod_mac} }}");
        let _ = writeln!(
            text,
            "add element bridge {TABLE} {SENDERS} {{ {host_link} . {pod_mac} . {address} }}"
        );
        let _ = writeln!(text, "add element bridge {TABLE} {HERE} {{ {address} }}");
    }
    text
}

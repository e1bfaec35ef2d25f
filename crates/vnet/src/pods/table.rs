//! A node's nftables rules, as text for `nft -f`: masquerading and host ports.
//!
//! The rules are static; everything that changes is an element of a set or a map. So a change never
//! replaces a rule, and a pod that comes costs an element where it has a host port, else nothing. The table
//! lives beside kube-proxy's: whichever chain translates a connection first has decided.

use std::{fmt::Write, net::Ipv4Addr};

use crate::{
    addr::Prefix4,
    pods::{PodNetwork, masquerade::Sets, ports::PortMapping},
};

/// The table's name.
pub const TABLE: &str = "aksnet";
/// Node ports of pods at every address of the node: protocol and port lead to address and port.
pub const HOST_PORTS: &str = "host_ports";
/// The same at one address of the node, which comes first in the key.
pub const HOST_PORTS_AT: &str = "host_ports_at";
/// Pods with host ports, each twice in a key: source and destination of what it sends to itself.
pub const HAIRPIN: &str = "hairpin";

/// The table with its rules and no elements, in place of the one that may be there.
///
/// Only what leaves by `interface` is masqueraded: pods of the node meet by their own addresses. Plain
/// `masquerade` keeps the source port where it can; random ports meet old connections of the far end and
/// cost whole seconds then.
///
/// In a pod subnet the world sees pods' own addresses, but for two services of the platform
/// (Azure/azure-container-networking, `SWIFT-POSTROUTING`).
#[must_use]
pub fn table(interface: &str, network: PodNetwork) -> String {
    let masquerade = match network {
        PodNetwork::PodSubnet => format!(
            "\t\toifname \"{interface}\" ip saddr @pods ip daddr 168.63.129.16 meta l4proto {{ tcp, udp }} th dport 53 masquerade
\t\toifname \"{interface}\" ip saddr @pods ip daddr 169.254.169.254 tcp dport 80 masquerade
"
        ),
        PodNetwork::Kubenet
        | PodNetwork::NodeSubnet
        | PodNetwork::NodeBridge
        | PodNetwork::Overlay => {
            format!("\t\toifname \"{interface}\" ip saddr @pods ip daddr != @exempt masquerade\n")
        }
    };
    // Behind kube-proxy's chains (`dstnat`): a node port of a Service is the Service's.
    format!(
        "table ip {TABLE} {{
}}
delete table ip {TABLE}
table ip {TABLE} {{
\tset pods {{
\t\ttype ipv4_addr
\t\tflags interval
\t}}
\tset exempt {{
\t\ttype ipv4_addr
\t\tflags interval
\t}}
\tmap {HOST_PORTS} {{
\t\ttype inet_proto . inet_service : ipv4_addr . inet_service
\t}}
\tmap {HOST_PORTS_AT} {{
\t\ttype ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
\t}}
\tset {HAIRPIN} {{
\t\ttype ipv4_addr . ipv4_addr
\t}}
\tchain to_host_ports {{
\t\tmeta l4proto != {{ tcp, udp, sctp }} return
\t\tdnat ip addr . port to ip daddr . meta l4proto . th dport map @{HOST_PORTS_AT}
\t\tdnat ip addr . port to meta l4proto . th dport map @{HOST_PORTS}
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat + 5; policy accept;
\t\tfib daddr type local jump to_host_ports
\t}}
\tchain output {{
\t\ttype nat hook output priority -95; policy accept;
\t\tfib daddr type local jump to_host_ports
\t}}
\tchain guard {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname != \"lo\" ip daddr 127.0.0.0/8 drop
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat + 10; policy accept;
\t\tip saddr . ip daddr @{HAIRPIN} ct status dnat masquerade
\t\tip saddr 127.0.0.0/8 ct status dnat masquerade
{masquerade}\t}}
}}
"
    )
}

/// How many rules [`table`] has, for whoever wants to know whether they are all still there.
#[must_use]
pub fn n_rules(network: PodNetwork) -> usize {
    match network {
        PodNetwork::PodSubnet => 10,
        PodNetwork::Kubenet
        | PodNetwork::NodeSubnet
        | PodNetwork::NodeBridge
        | PodNetwork::Overlay => 9,
    }
}

/// Fills the two sets of [`table`], whatever is in them.
#[must_use]
pub fn fill(sets: &Sets) -> String {
    let mut text = String::new();
    for (name, prefixes) in [("pods", &sets.pods), ("exempt", &sets.exempt)] {
        let _ = writeln!(text, "flush set ip {TABLE} {name}");
        if !prefixes.is_empty() {
            let elements: Vec<_> = prefixes.iter().map(Prefix4::to_string).collect();
            let _ = writeln!(text, "add element ip {TABLE} {name} {{ {} }}", elements.join(", "));
        }
    }
    text
}

/// Adds the host ports of pods to a table that has none.
#[must_use]
pub fn host_ports<'a>(pods: impl IntoIterator<Item = (Ipv4Addr, &'a [PortMapping])>) -> String {
    let mut text = String::new();
    for (pod, ports) in pods {
        if ports.is_empty() {
            continue;
        }
        let _ = writeln!(text, "add element ip {TABLE} {HAIRPIN} {{ {pod} . {pod} }}");
        for PortMapping { host, pod_port } in ports {
            let transport = host.transport.as_str();
            let _ = match host.address {
                Some(at) => writeln!(
                    text,
                    "add element ip {TABLE} {HOST_PORTS_AT} {{ {at} . {transport} . {} : {pod} . {pod_port} }}",
                    host.port
                ),
                None => writeln!(
                    text,
                    "add element ip {TABLE} {HOST_PORTS} {{ {transport} . {} : {pod} . {pod_port} }}",
                    host.port
                ),
            };
        }
    }
    text
}

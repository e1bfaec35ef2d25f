//! A node's nftables rules, as text for `nft -f`: masquerading and host ports.
//!
//! The rules are static; everything that changes is an element of a set or a map. So a change never
//! replaces a rule, and a pod that comes costs an element where it has a host port, else nothing. The table
//! lives beside kube-proxy's: whichever chain translates a connection first has decided.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    addr::Family,
    host::names::GATEWAY_ADDRESS,
    pods::{PodNetwork, masquerade::Sets, ports::PortMapping, wiring::BRIDGE},
};

/// The table's name.
pub const TABLE: &str = "aksnet";
/// Node ports of pods at every address of the node: protocol and port lead to address and port.
pub const HOST_PORTS: &str = "host_ports";
/// The same at one address of the node, which comes first in the key.
pub const HOST_PORTS_AT: &str = "host_ports_at";
/// Pods with host ports, each twice in a key: source and destination of what it sends to itself.
pub const HAIRPIN: &str = "hairpin";

/// What health probes of IPv6 come from on a node. They are sent from a link-local address, from which no router forwards
/// anything, and so no node to a pod; AKS's nodes take them for ones from here (Azure/AgentBaker, pull request 2393).
pub const PROBES: Ipv6Addr = Ipv6Addr::new(0x2603, 0x1062, 0, 1, 0xfe80, 0x1234, 0x5678, 0x9abc);

/// The kernel's word for the tables of a family.
fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The table of `family` with its rules and no elements, in place of the one that may be there.
///
/// Only what leaves by `interface` is masqueraded: pods of the node meet by their own addresses. Plain
/// `masquerade` keeps the source port where it can; random ports meet old connections of the far end and
/// cost whole seconds then.
///
/// In a pod subnet the world sees pods' own addresses, but for two services of the platform
/// (Azure/azure-container-networking, `SWIFT-POSTROUTING`).
///
/// IPv4 leads what a process of the node sends to 127.0.0.1 on to pods; the kernel has no such way for `::1`. It has no
/// check of sources for IPv6 either (`rp_filter`), so that the table does it: a pod has its own address only.
#[must_use]
pub fn table(interface: &str, network: PodNetwork, family: Family) -> String {
    let ip = word(family);
    let masquerade = match (network, family) {
        (PodNetwork::PodSubnet, Family::V4) => format!(
            "\t\toifname \"{interface}\" ip saddr @pods ip daddr 168.63.129.16 meta l4proto {{ tcp, udp }} th dport 53 masquerade
\t\toifname \"{interface}\" ip saddr @pods ip daddr 169.254.169.254 tcp dport 80 masquerade
"
        ),
        (PodNetwork::PodSubnet, Family::V6) => String::new(),
        (
            PodNetwork::Kubenet
            | PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::Overlay,
            _,
        ) => {
            format!("\t\toifname \"{interface}\" {ip} saddr @pods {ip} daddr != @exempt masquerade\n")
        }
    };
    let probes = match family {
        Family::V4 => String::new(),
        // Before connections are tracked, and so without a state of its own.
        Family::V6 => format!(
            "\tchain probes {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"{interface}\" ip6 saddr {GATEWAY_ADDRESS} ip6 saddr set {PROBES}
\t}}
\tchain probes_answered {{
\t\ttype filter hook postrouting priority raw; policy accept;
\t\toifname \"{interface}\" ip6 daddr {PROBES} ip6 daddr set {GATEWAY_ADDRESS}
\t}}
"
        ),
    };
    let (local, guard, from_loopback) = match family {
        Family::V4 => (
            "",
            "\t\tiifname != \"lo\" ip daddr 127.0.0.0/8 drop\n".to_owned(),
            "\t\tip saddr 127.0.0.0/8 ct status dnat masquerade\n",
        ),
        Family::V6 => (
            "ip6 daddr != ::1 ",
            ["azv*", BRIDGE].map(|links| format!(
                "\t\tiifname \"{links}\" ip6 saddr != {{ ::, fe80::/10 }} fib saddr . iif oif missing drop\n"
            )).concat(),
            "",
        ),
    };
    // Behind kube-proxy's chains (`dstnat`): a node port of a Service is the Service's.
    format!(
        "table {ip} {TABLE} {{
}}
delete table {ip} {TABLE}
table {ip} {TABLE} {{
\tset pods {{
\t\ttype {ip_addr}
\t\tflags interval
\t}}
\tset exempt {{
\t\ttype {ip_addr}
\t\tflags interval
\t}}
\tmap {HOST_PORTS} {{
\t\ttype inet_proto . inet_service : {ip_addr} . inet_service
\t}}
\tmap {HOST_PORTS_AT} {{
\t\ttype {ip_addr} . inet_proto . inet_service : {ip_addr} . inet_service
\t}}
\tset {HAIRPIN} {{
\t\ttype {ip_addr} . {ip_addr}
\t}}
\tchain to_host_ports {{
\t\tmeta l4proto != {{ tcp, udp, sctp }} return
\t\tdnat {ip} addr . port to {ip} daddr . meta l4proto . th dport map @{HOST_PORTS_AT}
\t\tdnat {ip} addr . port to meta l4proto . th dport map @{HOST_PORTS}
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat + 5; policy accept;
\t\tfib daddr type local jump to_host_ports
\t}}
\tchain output {{
\t\ttype nat hook output priority -95; policy accept;
\t\t{local}fib daddr type local jump to_host_ports
\t}}
\tchain guard {{
\t\ttype filter hook prerouting priority raw; policy accept;
{guard}\t}}
{probes}\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat + 10; policy accept;
\t\t{ip} saddr . {ip} daddr @{HAIRPIN} ct status dnat masquerade
{from_loopback}{masquerade}\t}}
}}
",
        ip_addr = match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        },
    )
}

/// How many rules [`table`] has, for whoever wants to know whether they are all still there.
#[must_use]
pub fn n_rules(network: PodNetwork, family: Family) -> usize {
    match (network, family) {
        (PodNetwork::PodSubnet, Family::V4) => 10,
        (PodNetwork::PodSubnet, Family::V6) => 10,
        (
            PodNetwork::Kubenet
            | PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::Overlay,
            Family::V4,
        ) => 9,
        (
            PodNetwork::Kubenet
            | PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::Overlay,
            Family::V6,
        ) => 11,
    }
}

/// Fills the two sets of the [`table`] of `family`, whatever is in them.
#[must_use]
pub fn fill(sets: &Sets, family: Family) -> String {
    let ip = word(family);
    let mut text = String::new();
    for (name, prefixes) in [("pods", &sets.pods), ("exempt", &sets.exempt)] {
        let _ = writeln!(text, "flush set {ip} {TABLE} {name}");
        let of_family = prefixes.iter().filter(|prefix| prefix.family() == family);
        let elements: Vec<_> = of_family.map(ToString::to_string).collect();
        if !elements.is_empty() {
            let _ = writeln!(text, "add element {ip} {TABLE} {name} {{ {} }}", elements.join(", "));
        }
    }
    text
}

/// Adds the host ports of pods to tables that have none: for each address those of its family.
#[must_use]
pub fn host_ports<'a>(pods: impl IntoIterator<Item = (IpAddr, &'a [PortMapping])>) -> String {
    let mut text = String::new();
    for (pod, ports) in pods {
        let family = Family::of(pod);
        let ip = word(family);
        let of_family: Vec<_> = ports.iter().filter(|port| port.host.is_of(family)).collect();
        if of_family.is_empty() {
            continue;
        }
        let _ = writeln!(text, "add element {ip} {TABLE} {HAIRPIN} {{ {pod} . {pod} }}");
        for PortMapping { host, pod_port } in of_family {
            let transport = host.transport.as_str();
            let _ = match host.address {
                Some(at) => writeln!(
                    text,
                    "add element {ip} {TABLE} {HOST_PORTS_AT} {{ {at} . {transport} . {} : {pod} . {pod_port} }}",
                    host.port
                ),
                None => writeln!(
                    text,
                    "add element {ip} {TABLE} {HOST_PORTS} {{ {transport} . {} : {pod} . {pod_port} }}",
                    host.port
                ),
            };
        }
    }
    text
}

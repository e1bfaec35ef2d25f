//! A virtual network's nftables table, as text: who may send as whom, and what its other parts
//! ([`super::gates`], [`super::services`], [`super::fronts`], [`super::translation`]) make of their own. Not here: routes (see
//! [`super::routing`]) and loading it (`linux::nft`).
//!
//! The table is always rendered whole. Rules are few and the same in every virtual network; what differs
//! is in sets, maps and chains of their own. Whatever drops has a counter, and a comment that says why.
//!
//! No set has intervals in a concatenation. When a table is replaced, the kernel lets packets meet the new rules a moment
//! before such a set has its elements (`nft_set_commit_update` in `nf_tables_commit`, `net/netfilter/nf_tables_api.c`), so
//! what is dropped for not being in it is lost. It is the slowest kind, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    balancing::Services,
    control,
    delta::{self, Elements},
    egress, fronts, gates, names,
    peering::Networks,
    services, translation,
    view::View,
};
use crate::{
    addr::Family,
    sizing::{POD_RANGE_LENGTH, POD_RANGE6_LENGTH},
};

/// The name of the table.
pub const TABLE: &str = "aksnet";

/// A short name for a rule set: the same for the same text. An empty chain named after it says what is loaded.
///
/// It is a sum of one number for each element of a set and one for all the rest, so that whoever knows what changed
/// need not read the whole; see [`digest_after`].
#[must_use]
pub fn digest(text: &str) -> String {
    let mut rest = hash(&[]);
    let mut sum = 0_u128;
    let (mut family, mut set) = (Family::V4, "");
    for line in text.split_inclusive('\n') {
        if let Some(elements) = delta::elements_of(line.trim_end_matches('\n')) {
            for element in elements.split(", ") {
                sum = sum.wrapping_add(term(family, set, element));
            }
            continue;
        }
        family = delta::table_family(line).unwrap_or(family);
        set = delta::set_name(line.trim_end_matches('\n')).unwrap_or(set);
        rest = hash_on(rest, line.as_bytes());
    }
    format!("{:032x}", sum.wrapping_add(mixed(rest)))
}

/// The digest of a text with other elements than that of `digest`; `None` when that is none.
#[must_use]
pub fn digest_after(digest: &str, changes: &[Elements]) -> Option<String> {
    let mut sum = u128::from_str_radix(digest, 16).ok()?;
    for Elements { family, set, gone, come, .. } in changes {
        sum = gone.iter().fold(sum, |sum, it| sum.wrapping_sub(term(*family, set, it)));
        sum = come.iter().fold(sum, |sum, it| sum.wrapping_add(term(*family, set, it)));
    }
    Some(format!("{sum:032x}"))
}

fn term(family: Family, set: &str, element: &str) -> u128 {
    let table: &[u8] = match family {
        Family::V4 => b"",
        Family::V6 => b"ip6 ",
    };
    mixed(hash_on(hash_on(hash_on(hash(table), set.as_bytes()), b" "), element.as_bytes()))
}

/// FNV-1a of 128 bits (Fowler, Noll, Vo; RFC 9923).
fn hash(bytes: &[u8]) -> u128 {
    hash_on(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, bytes)
}

fn hash_on(hash: u128, bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(hash, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// Spreads every bit over all (the finaliser of `MurmurHash3`, on both halves): sums of what FNV gives for texts with
/// one ending are not far enough apart.
fn mixed(hash: u128) -> u128 {
    fn half(mut bits: u64) -> u64 {
        bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        bits ^ (bits >> 33)
    }
    let [high, low] = [hash >> 64, hash & u128::from(u64::MAX)]
        .map(|bits| u64::try_from(bits).unwrap_or_default());
    let high = half(high ^ half(low));
    u128::from(high) << 64 | u128::from(half(low ^ high))
}

/// The table of a virtual network; where it has IPv6, a table of the same name for each family. They are the same but
/// for what they call addresses.
pub(super) fn render(view: &View<'_>, networks: &Networks<'_>, services: &Services) -> String {
    let ways = egress::ways(view);
    let mut text = String::new();
    for family in view.families() {
        let ip = ip(*family);
        line(&mut text, format_args!("table {ip} {TABLE} {{"));
        sources(&mut text, view, services, *family);
        overlays(&mut text, view, *family);
        joined(&mut text, view, networks, *family);
        closed(&mut text, view, *family);
        translation::render(&mut text, view, services, &ways, *family);
        services::render(&mut text, view, services, *family);
        let fragments = fronts::render(&mut text, view, networks, services, *family);
        gates::render(&mut text, view, *family);
        let (early, input) = match family {
            Family::V4 => (EARLY_4, INPUT_4),
            Family::V6 => (EARLY_6, INPUT_6),
        };
        let translation = translation::chains(*family);
        for chains in [early, CHAINS, input, gates::CHAINS, services::CHAINS, &translation] {
            let chains = fragments.fill(chains);
            text.push_str(&chains.replace("$ip", ip).replace("$mask", &mask(*family)));
        }
        text.push_str("}\n");
    }
    text
}

/// What nft calls a family, in tables as in the names of headers.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// What nft calls a family's addresses.
pub(super) fn ip_addr(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// What comes first, for IPv4.
const EARLY_4: &str = r#"
	# A NIC sends from its own addresses, unless IP forwarding is on. Two overlay clusters may use one range,
	# so flows of their pods have states of their own.
	chain early {
		type filter hook prerouting priority raw; policy accept;
		iifname "nic-*" iifname . ip saddr != @sources iifname . ip saddr & $mask != @ranges iifname != @forwarding counter drop comment "not an address of the NIC"
$early
		iifname vmap @overlay
	}
"#;

/// What comes first, for IPv6.
const EARLY_6: &str = r#"
	# The same. Nobody speaks from a link-local address: every neighbour is known, and there is one router.
	chain early {
		type filter hook prerouting priority raw; policy accept;
		iifname "nic-*" ip6 saddr { ::, fe80::/10 } counter drop comment "link-local"
		iifname "nic-*" iifname . ip6 saddr != @sources iifname . ip6 saddr & $mask != @ranges iifname != @forwarding counter drop comment "not an address of the NIC"
$early
		iifname vmap @overlay
	}
"#;

/// What the namespace itself hears, for IPv4.
const INPUT_4: &str = r#"
	# The gateway's address is silent. The platform answers names and instance metadata, and hears answers to
	# its health probes.
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "nic-*" ip daddr 168.63.129.16 meta l4proto { tcp, udp } th dport 53 accept
		iifname "nic-*" ip daddr 169.254.169.254 tcp dport 80 accept
	}
"#;

/// What the namespace itself hears, for IPv6.
const INPUT_6: &str = r"
	# The gateway's address is silent but for answers to its health probes.
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
	}
";

/// The rules that every virtual network has, in each family (`$ip`). `uplink`, `nic-` are link names of [`super::names`].
const CHAINS: &str = r#"
	# From outside come answers, and what a public front end takes; where no security group is, only answers. To the
	# outside goes what has a public address for its protocol, and only from the NIC that it belongs to. What is routed to lo leads nowhere.
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname "lo" counter drop comment "no route"
		ct direction reply accept
		ct state related accept
		iifname "uplink" oifname @closed ct state new ct original $ip daddr != @open counter drop comment "no security group allows it"
		iifname "uplink" ct status dnat goto inbound
		iifname "uplink" ct mark != 0 goto inbound
		iifname "uplink" counter drop comment "nobody asked the internet"
		oifname "uplink" iifname . $ip saddr != @leaving counter drop comment "no outbound method"
		oifname "uplink" meta l4proto != { tcp, udp } iifname . $ip saddr != @leaving_bare counter drop comment "the outbound method is for TCP and UDP"
		oifname "uplink" meta l4proto tcp iifname . $ip saddr @leaving_without_tcp counter drop comment "no outbound method for TCP"
		oifname "uplink" meta l4proto udp iifname . $ip saddr @leaving_without_udp counter drop comment "no outbound method for UDP"
		iifname @joined oifname @joined counter drop comment "peering leads no further"
		iifname vmap @remote
		goto inbound
	}
"#;

/// The netmask of a node's pod range.
fn mask(family: Family) -> String {
    match family {
        Family::V4 => Ipv4Addr::from(u32::MAX << (32 - POD_RANGE_LENGTH)).to_string(),
        Family::V6 => Ipv6Addr::from(u128::MAX << (128 - POD_RANGE6_LENGTH)).to_string(),
    }
}

/// Who may send as whom: NICs' own addresses and those of front ends behind which they are, and the ranges of nodes'
/// pods, by their first address.
fn sources(text: &mut String, view: &View<'_>, services: &Services, family: Family) {
    let mut sources = BTreeSet::new();
    let mut ranges = BTreeSet::new();
    let mut forwarding = BTreeSet::new();
    let fronts = services.addresses_by_member();
    for port in &view.ports {
        let link = &port.link;
        let main = port.main_address(family);
        let fronts = main.and_then(|main| fronts.get(&main)).into_iter().flatten().copied();
        let own = port.addresses().filter(|address| Family::of(*address) == family);
        sources.extend(own.chain(fronts).map(|address| format!("\"{link}\" . {address}")));
        let pods = port.pod_range_of(family).filter(|_| port.is_overlay());
        ranges.extend(pods.map(|range| format!("\"{link}\" . {}", range.network())));
        if port.nic.ip_forwarding {
            forwarding.insert(format!("\"{link}\""));
        }
    }
    let kind = format!("ifname . {}", ip_addr(family));
    elements(text, "set sources", &kind, "", &sources);
    elements(text, "set ranges", &kind, "", &ranges);
    elements(text, "set forwarding", "ifname", "", &forwarding);
}

/// Which links belong to an overlay, and which state the flows of its addresses have.
fn overlays(text: &mut String, view: &View<'_>, family: Family) {
    let mut overlay = BTreeSet::new();
    let mut zones = BTreeMap::new();
    let ip = ip(family);
    let nodes = view.ports.iter().filter_map(|port| Some((port.link.clone(), port.cluster?)));
    let planes = view.clusters.iter().map(|it| (names::control_port(&it.meta.id), *it));
    for (link, cluster) in nodes.chain(planes) {
        let Some((ranges, zone)) = control::overlay(cluster) else { continue };
        for range in ranges.prefixes().filter(|range| range.family() == family) {
            overlay.insert(format!("\"{link}\" : jump overlay-{zone}"));
            zones.insert(zone, range);
        }
    }
    elements(text, "map overlay", "ifname : verdict", "", &overlay);
    for (zone, range) in zones {
        line(text, format_args!("\tchain overlay-{zone} {{"));
        line(text, format_args!("\t\t{ip} saddr {range} ct zone set {zone} return"));
        line(text, format_args!("\t\t{ip} daddr {range} ct zone set {zone}"));
        line(text, format_args!("\t}}"));
    }
}

/// The links to NICs that nobody on the internet reaches, and the public addresses that are open nevertheless.
fn closed(text: &mut String, view: &View<'_>, family: Family) {
    let closed = view.ports.iter().filter(|port| view.is_closed(port));
    let closed = closed.map(|port| format!("\"{}\"", port.link)).collect();
    elements(text, "set closed", "ifname", "", &closed);
    let open = view.open_addresses().into_iter().filter(|it| Family::of(*it) == family);
    let open = open.map(|address| address.to_string()).collect();
    elements(text, "set open", ip_addr(family), "", &open);
}

/// The links to peers, and the sources that may come in on each.
fn joined(text: &mut String, view: &View<'_>, networks: &Networks<'_>, family: Family) {
    // Nothing comes in on a link but what somebody lets.
    let mut allowed: BTreeMap<String, Option<Vec<String>>> =
        view.peers.iter().map(|peer| (peer.link.clone(), Some(Vec::new()))).collect();
    for (peer, link) in networks.links_from(view) {
        let own = peer.peering.remote_prefixes.iter();
        let own = own.filter(|prefix| prefix.family() == family).map(ToString::to_string);
        let own = (!peer.peering.allow_forwarded).then(|| own.collect());
        allowed.insert(link, own);
    }
    let joined: BTreeSet<String> = allowed.keys().map(|link| format!("\"{link}\"")).collect();
    let mut remote = BTreeSet::new();
    let mut lists = BTreeMap::new();
    for (link, own) in allowed {
        let Some(own) = own else { continue };
        let chain = format!("remote-{}", &digest(&own.join(" "))[..10]);
        remote.insert(format!("\"{link}\" : jump {chain}"));
        lists.insert(chain, own);
    }
    elements(text, "set joined", "ifname", "", &joined);
    elements(text, "map remote", "ifname : verdict", "", &remote);
    for (chain, own) in lists {
        line(text, format_args!("\tchain {chain} {{"));
        if !own.is_empty() {
            let (ip, own) = (ip(family), own.join(", "));
            line(text, format_args!("\t\t{ip} saddr {{ {own} }} return"));
        }
        line(text, format_args!("\t\tcounter drop comment \"forwarded traffic is not allowed\""));
        line(text, format_args!("\t}}"));
    }
}

/// Writes a set or a map.
pub(super) fn elements(
    text: &mut String,
    what: &str,
    kind: &str,
    flags: &str,
    elements: &BTreeSet<String>,
) {
    line(text, format_args!("\t{what} {{"));
    line(text, format_args!("\t\ttype {kind}"));
    if !flags.is_empty() {
        line(text, format_args!("\t\t{flags}"));
    }
    if !elements.is_empty() {
        let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
        line(text, format_args!("\t\telements = {{ {} }}", elements.join(", ")));
    }
    line(text, format_args!("\t}}"));
}

pub(super) fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a String never fails");
}

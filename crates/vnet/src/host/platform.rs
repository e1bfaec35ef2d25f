//! What Azure's platform knows inside a virtual network: names, and who asks. Not here: the forms of DNS and
//! HTTP, and the sockets (see `daemon::fabric`).
//!
//! Names are Azure's (Azure documentation, "Name resolution for resources in Azure virtual networks"): a machine is
//! `<host>.<suffix of its network>` and `<host>.internal.cloudapp.net`, the second of which a reverse lookup gives,
//! and nobody in another network finds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use uuid::Uuid;

use super::names::{METADATA_ADDRESS, PLATFORM_ADDRESS, REGISTRY_ADDRESS};
use super::state::NamespaceState;
use crate::{
    addr::{Prefix4, Prefix6},
    model::{Holder, Machine, ProvisioningState, Vnet},
    name::ArmId,
    policy::{Flow, Protocol},
    region::Region,
};

/// The zone of all machines.
pub const MACHINES_ZONE: &str = "internal.cloudapp.net";
/// The zone of what is the lab's own, `registry.aksnet.test`.
pub const LAB_ZONE: &str = "aksnet.test";
/// The search domain of machines whose network has name servers of its own. It leads nowhere, as in Azure
/// (Azure documentation, "Name resolution that uses your own DNS server").
pub const PLACEHOLDER_SUFFIX: &str = "reddog.microsoft.com";
/// Addresses of the lab's own internet: nobody outside knows them (RFC 2544 keeps them for benchmarks).
pub const LAB_INTERNET: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The same of IPv6 (RFC 5180).
const LAB_INTERNET_6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);

/// The group that rules of security groups log to what they deny (`nfnetlink_log`).
pub const FLOW_LOG_GROUP: u16 = 197;

/// Gives the namespace the address of the metadata service beside the platform's own. Both are local, and the
/// kernel looks there before any other table: no user-defined route applies to them.
pub(super) fn addresses(state: &mut NamespaceState) {
    state.address("lo", PLATFORM_ADDRESS, 32);
    state.address("lo", METADATA_ADDRESS, 32);
}

/// Whether the platform hears a flow to one of its own addresses (`ruleset`, chain `input`).
pub(crate) fn hears(flow: &Flow) -> bool {
    match flow.protocol {
        Protocol::Tcp if flow.destination == IpAddr::V4(METADATA_ADDRESS) => {
            flow.destination_port == 80
        }
        Protocol::Tcp | Protocol::Udp if flow.destination == IpAddr::V4(PLATFORM_ADDRESS) => {
            flow.destination_port == 53
        }
        _ => false,
    }
}

/// What a rule of the list `name` does with a packet that it denies: flow logs read list and rule from the prefix, of
/// which nft takes 127 bytes.
pub(super) fn logged_drop(name: &str, rule: &str) -> String {
    let prefix: String = format!("{name} {rule}").replace('$', "_").chars().take(127).collect();
    format!("log prefix \"{prefix}\" group {FLOW_LOG_GROUP} drop")
}

/// The domain of a virtual network's machines, `<26 characters>.<letter>x.internal.cloudapp.net`. Azure's is
/// random; this one follows from the network's GUID, the letter from its location.
#[must_use]
pub fn suffix(vnet: &Vnet) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut rest = Uuid::new_v5(&vnet.meta.guid, b"dns suffix").as_u128();
    let label: String = (0..26)
        .map(|_| {
            let digit = char::from(DIGITS[(rest % 32) as usize]);
            rest /= 32;
            digit
        })
        .collect();
    let sum = vnet.meta.location.bytes().fold(0_usize, |sum, byte| sum + usize::from(byte));
    let letter = char::from(DIGITS[sum % 26]);
    format!("{label}.{letter}x.{MACHINES_ZONE}")
}

/// The name servers that a virtual network gives to machines made from now on (`dhcpOptions.dnsServers`); none
/// means the platform.
///
/// The door has checked them and keeps them as JSON text, in which nothing else looks like an address.
#[must_use]
pub fn dns_servers(vnet: &Vnet) -> Vec<Ipv4Addr> {
    let kept = vnet.meta.kept.iter();
    let texts =
        kept.filter(|(path, _)| path.to_ascii_lowercase().starts_with("/properties/dhcpoptions"));
    texts.flat_map(|(_, text)| text.split('"')).filter_map(|part| part.parse().ok()).collect()
}

/// How a machine finds names. Its text is a `resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Who is asked, in this order.
    pub servers: Vec<Ipv4Addr>,
    /// What is put behind a name that has no dots.
    pub search: String,
}

impl Resolver {
    /// That of a machine: what its network gave it when it was made.
    #[must_use]
    pub fn of(region: &Region, machine: &Machine) -> Option<Self> {
        let vnet = region.vnets.get(&region.nics.get(&machine.nic)?.vnet()?)?;
        Some(if machine.dns_servers.is_empty() {
            Self { servers: vec![PLATFORM_ADDRESS], search: suffix(vnet) }
        } else {
            Self { servers: machine.dns_servers.clone(), search: PLACEHOLDER_SUFFIX.to_owned() }
        })
    }
}

impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            writeln!(f, "nameserver {server}")?;
        }
        writeln!(f, "search {}", self.search)
    }
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there, with these addresses; none when there is only something below it.
    Addresses(Vec<IpAddr>),
    /// It is an address's name for reverse lookup, and this is whose the address is.
    Name(String),
    /// It would be the lab's, and is not there.
    Nobody,
    /// It is none of the lab's.
    Elsewhere,
}

/// What the platform says to a question from inside `vnet`. `public` are names that are known everywhere, in lower
/// case: those of public IPs with a label, which one of each family may share. Names compare without case; a final dot
/// makes no difference.
///
/// Machines have names for their IPv4 addresses alone, and these addresses have names (Azure documentation, "What is the
/// auto registration feature in Azure DNS private zones?": an A record and a PTR record for each).
#[must_use]
pub fn lookup(
    region: &Region,
    vnet: &ArmId,
    public: &BTreeMap<String, Vec<IpAddr>>,
    name: &str,
) -> Found {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(reverse) = name.strip_suffix(".in-addr.arpa") {
        return reverse_lookup(region, vnet, reverse);
    }
    if let Some(reverse) = name.strip_suffix(".ip6.arpa") {
        return reverse_lookup_6(region, vnet, reverse);
    }
    if let Some(addresses) = public.get(&name) {
        return Found::Addresses(addresses.clone());
    }
    if is_below(&name, LAB_ZONE) {
        return match name.as_str() {
            "registry.aksnet.test" => Found::Addresses(vec![REGISTRY_ADDRESS.into()]),
            LAB_ZONE => Found::Addresses(Vec::new()),
            _ => Found::Nobody,
        };
    }
    if is_below(&name, MACHINES_ZONE) {
        return machine_lookup(region, vnet, &name);
    }
    let server = region.clusters.values().find(|it| it.fqdn.eq_ignore_ascii_case(&name));
    match server {
        Some(cluster) => Found::Addresses(vec![cluster.api_address.into()]),
        None => Found::Elsewhere,
    }
}

fn is_below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn machine_lookup(region: &Region, vnet: &ArmId, name: &str) -> Found {
    let Some(suffix) = region.vnets.get(vnet).map(|vnet| suffix(vnet)) else {
        return Found::Nobody;
    };
    // The zone, the letter's and the network's own have machines below them.
    if is_below(&suffix, name) {
        return Found::Addresses(Vec::new());
    }
    let host = [suffix.as_str(), MACHINES_ZONE]
        .into_iter()
        .find_map(|zone| name.strip_suffix(zone)?.strip_suffix('.'));
    let Some(host) = host else { return Found::Nobody };
    let addresses: Vec<IpAddr> = machines(region, vnet)
        .filter(|(machine, _)| machine.hostname.eq_ignore_ascii_case(host))
        .map(|(_, address)| address.into())
        .collect();
    if addresses.is_empty() { Found::Nobody } else { Found::Addresses(addresses) }
}

fn reverse_lookup(region: &Region, vnet: &ArmId, reverse: &str) -> Found {
    let mut octets: Vec<&str> = reverse.split('.').collect();
    octets.reverse();
    let Ok(address) = octets.join(".").parse::<Ipv4Addr>() else { return Found::Elsewhere };
    if let Some((machine, _)) = machines(region, vnet).find(|(_, primary)| *primary == address) {
        return Found::Name(format!("{}.{MACHINES_ZONE}", machine.hostname));
    }
    without_name(region, vnet, address.into())
}

/// Addresses of IPv6 have no names here; of the network's own and private ones nobody else knows any.
fn reverse_lookup_6(region: &Region, vnet: &ArmId, reverse: &str) -> Found {
    let mut digits: Vec<&str> = reverse.split('.').collect();
    digits.reverse();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return Found::Elsewhere;
    }
    let Ok(number) = u128::from_str_radix(&digits.concat(), 16) else { return Found::Elsewhere };
    let address = Ipv6Addr::from(number);
    without_name(region, vnet, address.into())
}

/// Whether anybody else is to be asked for the name of an address that has none here.
fn without_name(region: &Region, vnet: &ArmId, address: IpAddr) -> Found {
    let is_inside = region
        .vnets
        .get(vnet)
        .is_some_and(|vnet| vnet.prefixes.iter().any(|prefix| prefix.contains(address)));
    // Private addresses outside are nobody's business: no resolver of the internet knows them.
    let is_private = match address {
        IpAddr::V4(address) => {
            let (network, length) = LAB_INTERNET;
            let is_lab = Prefix4::containing(network, length).contains(address);
            is_lab || address.is_private() || address.is_link_local()
        }
        IpAddr::V6(address) => {
            let (network, length) = LAB_INTERNET_6;
            let is_lab = Prefix6::containing(network, length).contains(address);
            is_lab || address.is_unique_local() || address.is_unicast_link_local()
        }
    };
    if is_inside || is_private { Found::Nobody } else { Found::Elsewhere }
}

/// The machines of a virtual network that are not being deleted, with their primary addresses.
fn machines<'a>(
    region: &'a Region,
    vnet: &'a ArmId,
) -> impl Iterator<Item = (&'a Machine, Ipv4Addr)> {
    region.machines.values().filter_map(move |machine| {
        let nic = region.nics.get(&machine.nic)?;
        let is_here =
            machine.meta.state != ProvisioningState::Deleting && nic.vnet().as_ref() == Some(vnet);
        is_here.then(|| Some((&**machine, nic.address()?)))?
    })
}

/// The machine that an address inside a virtual network belongs to: any address of its NIC, or one of those that a
/// pod subnet gave to the node.
#[must_use]
pub fn machine_at<'a>(
    region: &'a Region,
    vnet: &ArmId,
    address: impl Into<IpAddr>,
) -> Option<&'a Machine> {
    let address = address.into();
    let has = |machine: &&std::sync::Arc<Machine>| {
        region.nics.get(&machine.nic).is_some_and(|nic| {
            nic.vnet().as_ref() == Some(vnet)
                && nic.configs.iter().any(|config| config.address == address)
        })
    };
    if let Some(machine) = region.machines.values().find(has) {
        return Some(machine);
    }
    let subnets = &region.vnets.get(vnet)?.subnets;
    match subnets.values().find_map(|subnet| subnet.held.get(&address))? {
        Holder::PodBatch { node } => region.machines.get(node).map(|machine| &**machine),
        Holder::IpConfiguration { .. } | Holder::Frontend { .. } => None,
    }
}

/// The virtual networks in which the platform answers.
#[must_use]
pub fn networks(region: &Region) -> BTreeSet<&ArmId> {
    let vnets = region.vnets.values();
    vnets
        .filter(|vnet| vnet.meta.state != ProvisioningState::Deleting)
        .map(|vnet| &vnet.meta.id)
        .collect()
}

//! A lab's numbers at one moment, as values.

use std::collections::{BTreeMap, BTreeSet};

use linux::{netfilter, netns::Netns};
use serde::{Deserialize, Serialize};
use vnet::{
    host::names,
    model::{Direction, Role, Vnet},
    region::Region,
};

use super::meter::{METER, Passes};

/// A lab at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Changes with the form.
    pub version: u32,
    /// The region's.
    pub generation: u64,
    /// Virtual networks, in order.
    pub vnets: Vec<VnetSample>,
    /// Nodes by cluster and phase.
    pub nodes: Vec<(String, String, u64)>,
    /// Virtual machines.
    pub vms: u64,
    /// The fabric's passes.
    pub passes: Passes,
    /// Failed passes by loop.
    pub errors: BTreeMap<String, u64>,
}

/// A virtual network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VnetSample {
    /// Its name.
    pub name: String,
    /// Its resource group.
    pub resource_group: String,
    /// Subnets, in order.
    pub subnets: Vec<SubnetSample>,
    /// Flows that its state table has now.
    pub flows: u64,
    /// The pairs with most of them, most first.
    pub talkers: Vec<FlowSample>,
    /// Rules that count, in order.
    pub rules: Vec<RuleSample>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetSample {
    /// Its name.
    pub name: String,
    /// Its prefix.
    pub prefix: String,
    /// Addresses that somebody holds.
    pub used: u64,
    /// Addresses that are free.
    pub free: u64,
}

/// A rule's count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSample {
    /// The network security group, when it is one's.
    pub group: Option<String>,
    /// `inbound` or `outbound`, when it is a group's.
    pub direction: Option<String>,
    /// A security rule's name, or why packets are dropped.
    pub name: String,
    /// Whether it drops.
    pub drops: bool,
    /// Packets that it decided about.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Flows between two addresses to one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSample {
    /// `tcp`, `udp`, …
    pub protocol: String,
    /// Who began.
    pub source: String,
    /// To whom, with the port where there is one.
    pub destination: String,
    /// How many flows.
    pub flows: u64,
    /// How many of them got no answer yet.
    pub unreplied: u64,
    /// Bytes in both directions, when the kernel counts them.
    pub bytes: Option<u64>,
}

/// Reads the numbers of a lab. Of each virtual network up to `n_talkers` pairs are given; with 0 the flows are
/// only counted, which is cheap.
#[must_use]
pub fn sample(lab: &str, region: &Region, n_talkers: usize) -> Sample {
    let namespaces: BTreeSet<String> =
        region.vnets.keys().map(|vnet| names::vnet_ns(lab, vnet)).collect();
    METER.keep(lab, |name| namespaces.contains(name));
    let mut nodes: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut vms = 0;
    for machine in region.machines.values() {
        match &machine.role {
            Role::Vm => vms += 1,
            Role::Node(node) => {
                let key = (node.cluster.name().to_owned(), format!("{:?}", node.phase));
                *nodes.entry(key).or_default() += 1;
            }
        }
    }
    Sample {
        version: 1,
        generation: region.generation,
        vnets: region.vnets.values().map(|it| vnet(lab, region, it, n_talkers)).collect(),
        nodes: nodes.into_iter().map(|((cluster, phase), n)| (cluster, phase, n)).collect(),
        vms,
        passes: METER.passes(),
        errors: METER.failures(),
    }
}

fn vnet(lab: &str, region: &Region, vnet: &Vnet, n_talkers: usize) -> VnetSample {
    let namespace = names::vnet_ns(lab, &vnet.meta.id);
    let subnets = vnet.subnets.values().map(|subnet| {
        let usage = subnet.usage();
        SubnetSample {
            name: subnet.name.as_str().to_owned(),
            prefix: subnet.prefix.to_string(),
            used: usage.held,
            free: usage.usable.saturating_sub(usage.held),
        }
    });
    let mut sample = VnetSample {
        name: vnet.meta.id.name().to_owned(),
        resource_group: vnet.meta.id.resource_group().to_owned(),
        subnets: subnets.collect(),
        flows: 0,
        talkers: Vec::new(),
        rules: Vec::new(),
    };
    // A network that is being made or removed has no namespace: it has no flows either.
    let Ok(open) = Netns::open(&namespace) else { return sample };
    let read = || -> Result<_, linux::LinuxError> {
        let flows = netfilter::flow_count(&open)?;
        let talkers = if n_talkers == 0 { Vec::new() } else { netfilter::flows(&open)? };
        Ok((flows, talkers, METER.read(&namespace)?))
    };
    match read() {
        Ok((flows, talkers, counts)) => {
            sample.flows = flows;
            sample.talkers = busiest(&talkers, n_talkers);
            let groups = groups(region);
            sample.rules = counts
                .into_iter()
                .map(|((chain, name, drops), (packets, bytes))| {
                    let gate = names::gate_of(&chain);
                    RuleSample {
                        group: gate.map(|(hash, _)| {
                            groups.get(hash).cloned().unwrap_or_else(|| hash.to_owned())
                        }),
                        direction: gate.map(|(_, direction)| in_words(direction).to_owned()),
                        name,
                        drops,
                        packets,
                        bytes,
                    }
                })
                .collect();
        }
        Err(error) => tracing::warn!(namespace, %error, "its numbers cannot be read"),
    }
    sample
}

fn in_words(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

/// The names of security groups by the hash that their chains are named after ([`names::gate_of`]).
#[must_use]
pub fn groups(region: &Region) -> BTreeMap<String, String> {
    let hash = |id| {
        let chain = names::gate(id, Direction::Inbound, None);
        names::gate_of(&chain).map(|(hash, _)| hash.to_owned())
    };
    let groups = region.security_groups.keys();
    groups.filter_map(|id| Some((hash(id)?, id.name().to_owned()))).collect()
}

fn busiest(flows: &[netfilter::Flow], most: usize) -> Vec<FlowSample> {
    let mut pairs: BTreeMap<(&str, String, String), FlowSample> = BTreeMap::new();
    for flow in flows {
        let end = &flow.original;
        let source = end.source.to_string();
        let destination = match end.destination_port {
            Some(port) => std::net::SocketAddr::new(end.destination, port).to_string(),
            None => end.destination.to_string(),
        };
        let bytes = flow.original.bytes.zip(flow.reply.bytes).map(|(one, other)| one + other);
        let pair = pairs
            .entry((&flow.protocol, source.clone(), destination.clone()))
            .or_insert_with(|| FlowSample {
                protocol: flow.protocol.clone(),
                source,
                destination,
                flows: 0,
                unreplied: 0,
                bytes: None,
            });
        pair.flows += 1;
        pair.unreplied += u64::from(flow.unreplied);
        pair.bytes = bytes.map(|bytes| pair.bytes.unwrap_or_default() + bytes).or(pair.bytes);
    }
    let mut pairs: Vec<FlowSample> = pairs.into_values().collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse((pair.bytes, pair.flows)));
    pairs.truncate(most);
    pairs
}

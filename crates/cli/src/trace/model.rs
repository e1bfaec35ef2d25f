//! What the model says of a flow, as values for people and programs. Runs in the lab's daemon, where the region is.

use serde::{Deserialize, Serialize};
use vnet::{
    flow::{End, Map, Origin, Reason, Step, Walk},
    host::Health,
    model::{Access, Direction, Role},
    name::ArmId,
    policy::{Flow, Protocol},
    region::Region,
    routes::{Hop, Source},
};

/// A question about a flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Question {
    /// The machine that sends; `None`: the internet.
    pub(crate) machine: Option<ArmId>,
    pub(crate) source: std::net::SocketAddr,
    pub(crate) destination: std::net::SocketAddr,
    /// IP's number.
    pub(crate) protocol: u8,
}

/// One way that the model has for a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Way {
    /// What it meets, in words.
    pub(crate) steps: Vec<String>,
    /// The rule that denies it, when one does.
    pub(crate) denied_by: Option<String>,
    /// Where it ends, in words.
    pub(crate) end: String,
    /// The machines that send it on, in order: `vm/NAME` or `node/NAME`.
    pub(crate) through: Vec<String>,
    /// The machine that gets it.
    pub(crate) delivered_to: Option<String>,
    /// Whether it gets where it should.
    pub(crate) passes: bool,
    /// Whether it gets there without leaving the virtual network's own namespace: the platform is in it.
    pub(crate) ends_in_network: bool,
    /// The last destination that it has.
    pub(crate) destination: std::net::IpAddr,
}

/// Every way that the flow may take.
pub(crate) fn ways(region: &Region, health: &Health, question: &Question) -> Vec<Way> {
    let origin = match &question.machine {
        Some(machine) => Origin::Machine(machine.clone()),
        None => Origin::Internet,
    };
    let flow = Flow {
        source: question.source.ip(),
        destination: question.destination.ip(),
        protocol: match question.protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            1 => Protocol::Icmp,
            other => Protocol::Other(other),
        },
        source_port: question.source.port(),
        destination_port: question.destination.port(),
    };
    let walks = Map::new(region, health).walk(&origin, flow);
    walks.iter().map(|walk| way(region, walk, flow)).collect()
}

fn way(region: &Region, walk: &Walk, flow: Flow) -> Way {
    let mut destination = flow.destination;
    let mut denied_by = None;
    for step in &walk.steps {
        match step {
            Step::Balanced { after, .. } | Step::Translated { after, .. } => {
                destination = after.destination;
            }
            Step::Gate { rule, access: Access::Deny, .. } => {
                denied_by = rule.as_ref().map(|rule| rule.as_str().to_owned());
            }
            _ => {}
        }
    }
    Way {
        steps: walk.steps.iter().map(|step| in_words(region, step)).collect(),
        denied_by: denied_by.filter(|_| walk.end == End::Dropped(Reason::Denied)),
        end: end(region, &walk.end),
        through: walk
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Forwarded { machine, .. } => Some(name(region, machine)),
                _ => None,
            })
            .collect(),
        delivered_to: match &walk.end {
            End::Delivered { machine, .. } | End::Dropped(Reason::OwnAddress { machine, .. }) => {
                Some(name(region, machine))
            }
            _ => None,
        },
        // What comes from its own address gets to the machine, which does not take it.
        passes: !matches!(&walk.end, End::Dropped(reason) if !matches!(reason, Reason::OwnAddress { .. })),
        ends_in_network: walk.end == End::Platform,
        destination,
    }
}

fn in_words(region: &Region, step: &Step) -> String {
    match step {
        Step::Gate { at, group, direction, rule, access, .. } => {
            let direction = match direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            };
            let verb = match access {
                Access::Allow => "allows",
                Access::Deny => "denies",
            };
            let rule = rule.as_ref().map_or("the platform's exemption", |rule| rule.as_str());
            let at = match at.parent() {
                Some(vnet) if at.kind().ends_with("subnets") => {
                    format!("subnet {}/{}", vnet.name(), at.name())
                }
                // A scale set's NICs all have one name.
                _ => match region.nics.get(at).and_then(|nic| nic.machine.as_ref()) {
                    Some(machine) => format!("nic of {}", name(region, machine)),
                    None => format!("nic {}", at.name()),
                },
            };
            format!("{at}, {direction}: {rule} of {} {verb}", group.name())
        }
        Step::Overlay { cluster } => format!("overlay of {}", cluster.name()),
        Step::Route { subnet, route } => {
            let hop = match &route.hop {
                Hop::VnetLocal => "VnetLocal".to_owned(),
                Hop::None => "None".to_owned(),
                Hop::Internet => "Internet".to_owned(),
                Hop::Peering(remote) => format!("VNetPeering {}", remote.name()),
                Hop::VirtualAppliance(address) => format!("VirtualAppliance {address}"),
            };
            let by = match &route.source {
                Source::Default => "default",
                Source::User => route.name.as_ref().map_or("user", |name| name.as_str()),
            };
            format!("subnet {}, route {}: {hop} ({by})", subnet.name(), route.prefix)
        }
        Step::Peering { to } => format!("peering to {}", to.name()),
        Step::Balanced { frontend, member, .. } => {
            format!("load balancer {frontend} chooses {}", at(region, *member))
        }
        Step::Translated { before, after } => {
            if before.source == after.source {
                format!("destination {} becomes {}", before.destination, after.destination)
            } else {
                format!("source {} becomes {}", before.source, after.source)
            }
        }
        Step::Internet { .. } => "by the internet".to_owned(),
        Step::Forwarded { machine, .. } => format!("{} sends it on", name(region, machine)),
    }
}

fn end(region: &Region, end: &End) -> String {
    match end {
        End::Delivered { machine, .. } => format!("delivered to {}", name(region, machine)),
        End::Internet(flow) => format!("on the internet, seen from {}", flow.source),
        End::ApiServer(cluster) => format!("at the API server of {}", cluster.name()),
        End::Platform => "at the platform".to_owned(),
        End::Dropped(reason) => format!("dropped: {}", why(reason)),
    }
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::NoSuchMachine => "the machine is not there".to_owned(),
        Reason::Spoofed => "the source is not an address of the NIC".to_owned(),
        Reason::Denied => "a security rule denies it".to_owned(),
        Reason::NextHopNone => "the route has next hop None".to_owned(),
        Reason::NobodyThere => "nobody has the destination".to_owned(),
        Reason::NotServed => {
            "the platform has nothing there: 168.63.129.16 answers DNS, 169.254.169.254 HTTP".to_owned()
        }
        Reason::ToMany => "a virtual network carries no multicast and no broadcast".to_owned(),
        Reason::NoAppliance(address) => format!("no machine that forwards has {address}"),
        Reason::NoRule(address) => {
            format!("no rule of the front end {address} is for this protocol and port")
        }
        Reason::NoTransit => "the peering leads no further".to_owned(),
        Reason::NoWayOut => "the machine has no outbound method".to_owned(),
        Reason::NotCarried(protocol) => match protocol {
            Protocol::Tcp => "the machine has no outbound method for TCP".to_owned(),
            Protocol::Udp => "the machine has no outbound method for UDP".to_owned(),
            Protocol::Icmp | Protocol::Esp | Protocol::Ah | Protocol::Other(_) => {
                "the machine's outbound method is for TCP and UDP; a public IP of its own carries the rest"
                    .to_owned()
            }
        },
        Reason::Closed => "nobody asked the internet".to_owned(),
        Reason::NoGroup => {
            "no security group allows it, and the public address is closed".to_owned()
        }
        Reason::NoHealthyMember => "no member answers its probe".to_owned(),
        Reason::OwnAddress { .. } => "the machine takes no packet from its own address".to_owned(),
        Reason::Loop => "it goes round and round".to_owned(),
    }
}

fn name(region: &Region, machine: &ArmId) -> String {
    match region.machines.get(machine) {
        Some(machine) if matches!(machine.role, Role::Node(_)) => {
            format!("node/{}", machine.hostname)
        }
        _ => format!("vm/{}", machine.name()),
    }
}

fn at(region: &Region, address: std::net::IpAddr) -> String {
    let has = |config: &vnet::model::IpConfiguration| config.address == address;
    let nic = region.nics.values().find(|nic| nic.configs.iter().any(has));
    match nic.and_then(|nic| nic.machine.as_ref()) {
        Some(machine) => name(region, machine),
        None => address.to_string(),
    }
}

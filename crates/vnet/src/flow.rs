//! What becomes of a flow: every gate that its first packet meets, who decides there, and where it ends. Not here:
//! the kernel that does so (see [`crate::host`]), and what happens inside of a machine (pod policies, services,
//! masquerading), which is its own.
//!
//! # The way
//! Out of a NIC: may it send so; the NIC's group and then the subnet's, outbound, with the destination that the
//! sender wrote; then a load balancer's front end, the pods of an overlay, or the subnet's effective route. Into a
//! NIC: the subnet's group and then the NIC's, inbound, with the addresses that the machine will see. An appliance
//! sends on what it gets, and everything begins again at its NIC.
//!
//! A load balancer chooses among members by a hash, so there can be several ways; [`Map::walk`] gives them all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    addr::Family,
    effective::{self, Attached},
    host::{
        Health,
        balancing::{self, Delivery, Service, Services},
        egress::{self, Way},
        view::{Port, View},
    },
    model::{Access, Direction, Subnet, Transport},
    name::{ArmId, Name},
    policy::{Decision, Flow, Protocol, is_platform},
    region::Region,
    routes::{self, EffectiveRoute, Hop},
};

/// A region prepared for questions about flows.
pub struct Map<'a> {
    region: &'a Region,
    networks: BTreeMap<&'a ArmId, Network<'a>>,
}

struct Network<'a> {
    view: View<'a>,
    services: Services,
    /// The front ends' addresses that members may answer from, by member.
    fronts: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    /// How each address is seen outside, and the link of the NIC that has it.
    ways: BTreeMap<IpAddr, (String, Way)>,
    /// Every public address that leads in here.
    public: BTreeSet<IpAddr>,
    /// Those that are open where no group is.
    open: BTreeSet<IpAddr>,
}

/// Where a flow's first packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The NIC of this machine; the flow's source says whether it is the machine's own or a pod's.
    Machine(ArmId),
    /// The internet.
    Internet,
    /// The platform, in this virtual network: a health probe from 168.63.129.16.
    Platform(ArmId),
}

/// One way that a flow may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What it met, in order.
    pub steps: Vec<Step>,
    /// Where it ended.
    pub end: End,
}

/// Something that a flow's first packet meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A network security group.
    Gate {
        /// The NIC or subnet that has it.
        at: ArmId,
        /// The group.
        group: ArmId,
        /// Which of its lists.
        direction: Direction,
        /// The rule that decided. `None`: a flow to the platform, which no rule forbids.
        rule: Option<Name>,
        /// What it said.
        access: Access,
        /// What it saw.
        flow: Flow,
    },
    /// The pods of an overlay, which the fabric routes itself, for their own cluster's machines alone.
    Overlay {
        /// The cluster.
        cluster: ArmId,
    },
    /// An effective route of this subnet was taken.
    Route {
        /// The subnet that the sender's address, or else its NIC, is in.
        subnet: ArmId,
        /// The route.
        route: EffectiveRoute,
    },
    /// A peering was crossed.
    Peering {
        /// Into this virtual network.
        to: ArmId,
    },
    /// A load balancer chose a member.
    Balanced {
        /// The front end's address.
        frontend: IpAddr,
        /// The member's primary address.
        member: IpAddr,
        /// The flow after that: the same one with floating IP.
        after: Flow,
    },
    /// Addresses were translated, on the way out or in.
    Translated {
        /// Before.
        before: Flow,
        /// After. A source port of 0 is one that cannot be foretold.
        after: Flow,
    },
    /// An appliance got it and sends it on.
    Forwarded {
        /// The machine.
        machine: ArmId,
        /// What it got.
        flow: Flow,
    },
    /// It crossed the internet.
    Internet {
        /// As it was seen there.
        flow: Flow,
    },
}

/// Where a flow ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At a machine's NIC; what the machine does is its own.
    Delivered {
        /// The machine.
        machine: ArmId,
        /// What it sees.
        flow: Flow,
    },
    /// On the internet, seen so.
    Internet(Flow),
    /// At the public address of this cluster's API server.
    ApiServer(ArmId),
    /// At the platform's own services.
    Platform,
    /// Nowhere.
    Dropped(Reason),
}

/// Why a flow is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The machine is not there, or not in a virtual network.
    NoSuchMachine,
    /// The source is not one of the NIC's addresses, and IP forwarding is off.
    Spoofed,
    /// The last step's gate denied it.
    Denied,
    /// The route that was taken has next hop None.
    NextHopNone,
    /// Nobody has the destination.
    NobodyThere,
    /// Nobody has the next hop's address, or its NIC does not forward.
    NoAppliance(IpAddr),
    /// The peering lets nothing pass that it did not come for: no transit, and no foreign sources unless forwarded
    /// traffic is allowed.
    NoTransit,
    /// The machine has no address to be seen with outside.
    NoWayOut,
    /// From the internet come only answers, and what a front end or a public IP of a machine takes.
    Closed,
    /// From the internet, by a public address of SKU Standard, to a NIC that no security group is in front of: these are
    /// closed until one allows it (Azure documentation, "Public IP addresses": secure by default).
    NoGroup,
    /// The front end has no member that answers its probe.
    NoHealthyMember,
    /// It arrives at a machine with the machine's own address as its source, which no machine takes: a member of a
    /// load balancer that was given its own flow (Azure documentation, "Troubleshoot Azure Load Balancer").
    OwnAddress {
        /// The machine.
        machine: ArmId,
        /// As it arrives.
        flow: Flow,
    },
    /// It went round and round.
    Loop,
}

/// More appliances than anybody puts in a row.
const MAX_APPLIANCES: usize = 8;

impl<'a> Map<'a> {
    /// Prepares `region`, given who answers probes.
    #[must_use]
    pub fn new(region: &'a Region, health: &Health) -> Self {
        let networks = region.vnets.values().filter_map(|vnet| {
            Some((&vnet.meta.id, Network::new(View::new(region, vnet)?, health)))
        });
        Self { region, networks: networks.collect() }
    }

    /// Every way that a flow may take: one, or one for each member that a load balancer may choose.
    #[must_use]
    pub fn walk(&self, origin: &Origin, flow: Flow) -> Vec<Walk> {
        let mut walker = Walker {
            map: self,
            steps: Vec::new(),
            n_appliances: 0,
            public: None,
            done: Vec::new(),
        };
        match origin {
            Origin::Machine(machine) => match self.port(machine) {
                Some((network, port)) => walker.leave(network, port, flow),
                None => walker.end(End::Dropped(Reason::NoSuchMachine)),
            },
            Origin::Internet => walker.internet(flow),
            Origin::Platform(vnet) => match self.networks.get(vnet) {
                Some(network) => walker.arrive(network, flow.destination, flow),
                None => walker.end(End::Dropped(Reason::NobodyThere)),
            },
        }
        walker.done
    }

    fn port(&self, machine: &ArmId) -> Option<(&Network<'a>, &Port<'a>)> {
        let vnet = self.region.nic_of(machine)?.vnet()?;
        let network = self.networks.get(&vnet)?;
        let port = network.view.ports.iter().find(|port| port.machine.meta.id == *machine)?;
        Some((network, port))
    }

    /// The virtual network that a public address leads into.
    fn behind(&self, address: IpAddr) -> Option<&Network<'a>> {
        self.networks.values().find(|network| network.public.contains(&address))
    }
}

impl<'a> Network<'a> {
    fn new(view: View<'a>, health: &Health) -> Self {
        let services = balancing::services(&view, health);
        let ways = egress::ways(&view).into_iter();
        Self {
            ways: ways.map(|(own, (link, way))| (own, (link.to_owned(), way))).collect(),
            public: egress::public_addresses(&view),
            open: view.open_addresses(),
            fronts: services.addresses_by_member(),
            services,
            view,
        }
    }

    fn id(&self) -> &ArmId {
        &self.view.vnet.meta.id
    }

    fn subnet_id(&self, subnet: &Subnet) -> ArmId {
        self.id().child("subnets", subnet.name.as_str())
    }

    /// The subnet whose group and routes a NIC's packets with this address meet: the address's own, for pods of a
    /// pod subnet, too; for everything else the NIC's.
    fn subnet_for(&self, port: &Port<'_>, address: IpAddr) -> Option<&Subnet> {
        let is_own = port.addresses().any(|own| own == address);
        self.view.subnet_of(if is_own { address } else { port.primary.into() })
    }
}

/// One packet on its way. Where the way divides, so does the walker.
struct Walker<'m, 'a> {
    map: &'m Map<'a>,
    steps: Vec<Step>,
    n_appliances: usize,
    /// The public address that it comes in from the internet by, until it is at a NIC.
    public: Option<IpAddr>,
    done: Vec<Walk>,
}

impl<'m, 'a> Walker<'m, 'a> {
    fn end(&mut self, end: End) {
        self.done.push(Walk { steps: self.steps.clone(), end });
    }

    fn drop(&mut self, reason: Reason) {
        self.end(End::Dropped(reason));
    }

    /// Out of a NIC.
    fn leave(&mut self, network: &'m Network<'a>, port: &'m Port<'a>, flow: Flow) {
        if !may_send(network, port, flow.source) {
            return self.drop(Reason::Spoofed);
        }
        let subnet = network.subnet_for(port, flow.source);
        if !self.gates(network, port, subnet, Direction::Outbound, &flow) {
            return self.drop(Reason::Denied);
        }
        if is_platform(flow.destination) {
            return self.end(End::Platform);
        }
        // A subnet's gateway answers ARP requests and nothing else, whatever routes say.
        let mut subnets = network.view.vnet.subnets.values();
        if subnets.any(|it| it.prefixes().any(|own| own.nth(1) == Some(flow.destination))) {
            return self.drop(Reason::NobodyThere);
        }
        if let Some(service) = service(network, &flow) {
            return self.balance(network, service, flow);
        }
        if let Some(cluster) = port.cluster
            && port.overlay_ranges().is_some_and(|range| range.contains(flow.destination))
        {
            self.steps.push(Step::Overlay { cluster: cluster.meta.id.clone() });
            let node = network.view.ports.iter().find(|node| {
                node.cluster.is_some_and(|it| it.meta.id == cluster.meta.id)
                    && node.has_pod(flow.destination)
            });
            return match node {
                Some(node) => self.enter(network, node, flow),
                None => self.drop(Reason::NobodyThere),
            };
        }
        let Some(subnet) = subnet else { return self.drop(Reason::NobodyThere) };
        let effective = routes::effective(self.map.region, network.view.vnet, subnet);
        let Some(route) = routes::select(&effective, flow.destination) else {
            return self.drop(Reason::NobodyThere);
        };
        self.steps.push(Step::Route { subnet: network.subnet_id(subnet), route: route.clone() });
        match &route.hop {
            Hop::VnetLocal => self.arrive(network, flow.destination, flow),
            Hop::None => self.drop(Reason::NextHopNone),
            Hop::Internet => self.out(network, port, flow),
            Hop::Peering(remote) => self.peer(network, remote, flow),
            Hop::VirtualAppliance(address) => self.appliance(network, *address, flow),
        }
    }

    /// To who has `address` in a virtual network.
    fn arrive(&mut self, network: &'m Network<'a>, address: IpAddr, flow: Flow) {
        match network.view.holder(address) {
            Some(port) => self.enter(network, port, flow),
            None => self.drop(Reason::NobodyThere),
        }
    }

    /// Into a NIC.
    fn enter(&mut self, network: &'m Network<'a>, port: &'m Port<'a>, flow: Flow) {
        let is_shut = |public| network.view.is_closed(port) && !network.open.contains(&public);
        if self.public.is_some_and(is_shut) {
            return self.drop(Reason::NoGroup);
        }
        let subnet = network.subnet_for(port, flow.destination);
        if !self.gates(network, port, subnet, Direction::Inbound, &flow) {
            return self.drop(Reason::Denied);
        }
        let machine = port.machine.meta.id.clone();
        if port.addresses().any(|own| own == flow.source) {
            return self.drop(Reason::OwnAddress { machine, flow });
        }
        self.end(End::Delivered { machine, flow });
    }

    /// By the machine that has `address` and forwards, here or in a peer's network.
    fn appliance(&mut self, network: &'m Network<'a>, address: IpAddr, flow: Flow) {
        self.n_appliances += 1;
        if self.n_appliances > MAX_APPLIANCES {
            return self.drop(Reason::Loop);
        }
        let there = network.view.peer_of(address).map(|peer| &peer.remote.meta.id);
        let there = there.and_then(|remote| self.map.networks.get(remote));
        if let Some(port) = network.view.appliance(address) {
            self.hand_over(network, port, flow);
        } else if let Some(there) = there
            && let Some(port) = there.view.appliance(address)
        {
            if self.cross(network, there, &flow) {
                self.hand_over(there, port, flow);
            }
        } else {
            self.drop(Reason::NoAppliance(address));
        }
    }

    /// Into an appliance's NIC and, unless it is for the appliance itself, out of it again.
    fn hand_over(&mut self, network: &'m Network<'a>, port: &'m Port<'a>, flow: Flow) {
        let subnet = network.subnet_for(port, flow.destination);
        if !self.gates(network, port, subnet, Direction::Inbound, &flow) {
            return self.drop(Reason::Denied);
        }
        let machine = port.machine.meta.id.clone();
        if port.addresses().any(|own| own == flow.destination) {
            return self.end(End::Delivered { machine, flow });
        }
        // A route that leads an appliance's own flow back to it. The kernel has no such check for IPv6.
        if flow.source.is_ipv4() && port.addresses().any(|own| own == flow.source) {
            return self.drop(Reason::OwnAddress { machine, flow });
        }
        self.steps.push(Step::Forwarded { machine, flow });
        self.leave(network, port, flow);
    }

    /// Over a peering to who has the destination there.
    fn peer(&mut self, network: &'m Network<'a>, remote: &ArmId, flow: Flow) {
        let is_open = network.view.peers.iter().any(|peer| peer.remote.meta.id == *remote);
        let Some(there) = self.map.networks.get(remote).filter(|_| is_open) else {
            return self.drop(Reason::NobodyThere);
        };
        if !self.cross(network, there, &flow) {
            return;
        }
        match service(there, &flow) {
            Some(service) => self.balance(there, service, flow),
            None => self.arrive(there, flow.destination, flow),
        }
    }

    /// Over a peering. `false`: it is dropped there.
    fn cross(&mut self, network: &Network<'a>, there: &Network<'a>, flow: &Flow) -> bool {
        self.steps.push(Step::Peering { to: there.id().clone() });
        let back = there.view.peers.iter().find(|peer| peer.remote.meta.id == *network.id());
        let passes = back.is_some_and(|peer| {
            let mut own = peer.peering.remote_prefixes.iter();
            peer.peering.allow_forwarded || own.any(|prefix| prefix.contains(flow.source))
        });
        if !passes {
            self.drop(Reason::NoTransit);
        }
        passes
    }

    /// To each of the members that a front end may choose.
    fn balance(&mut self, network: &'m Network<'a>, service: &Service, flow: Flow) {
        if service.healthy.is_empty() {
            return self.drop(Reason::NoHealthyMember);
        }
        for member in &service.healthy {
            let after = match service.delivery {
                Delivery::Kept => flow,
                Delivery::Translated(0) => Flow { destination: *member, ..flow },
                Delivery::Translated(port) => {
                    Flow { destination: *member, destination_port: port, ..flow }
                }
            };
            let n_steps = self.steps.len();
            let n_appliances = self.n_appliances;
            let frontend = flow.destination;
            self.steps.push(Step::Balanced { frontend, member: *member, after });
            match network.view.holder(*member) {
                Some(port) => self.enter(network, port, after),
                None => self.drop(Reason::NobodyThere),
            }
            self.steps.truncate(n_steps);
            self.n_appliances = n_appliances;
        }
    }

    /// Out of the virtual network, with each of the addresses that the sender may be seen with.
    fn out(&mut self, network: &'m Network<'a>, port: &'m Port<'a>, flow: Flow) {
        let way = network.ways.get(&flow.source).filter(|(link, _)| *link == port.link);
        let Some((_, way)) = way else { return self.drop(Reason::NoWayOut) };
        for address in &way.addresses {
            let after = Flow { source: *address, source_port: 0, ..flow };
            let n_steps = self.steps.len();
            self.steps.push(Step::Translated { before: flow, after });
            self.steps.push(Step::Internet { flow: after });
            self.internet(after);
            self.steps.truncate(n_steps);
        }
    }

    /// On the internet.
    fn internet(&mut self, flow: Flow) {
        let map = self.map;
        let mut clusters = map.region.clusters.values();
        if let Some(cluster) = clusters.find(|it| flow.destination == it.api_address) {
            return self.end(End::ApiServer(cluster.meta.id.clone()));
        }
        let Some(network) = map.behind(flow.destination) else {
            return self.end(End::Internet(flow));
        };
        self.public = Some(flow.destination);
        self.come_in(network, flow);
        self.public = None;
    }

    /// From the internet into a virtual network.
    fn come_in(&mut self, network: &'m Network<'a>, flow: Flow) {
        if let Some(service) = service(network, &flow) {
            return self.balance(network, service, flow);
        }
        let mut ports = network.view.ports.iter();
        let own = ports.find_map(|port| {
            let own = egress::own_public_ips(&network.view, port);
            own.into_iter().find(|(_, outside)| *outside == flow.destination)
        });
        match own {
            Some((inside, _)) => {
                let after = Flow { destination: inside, ..flow };
                self.steps.push(Step::Translated { before: flow, after });
                self.arrive(network, inside, after);
            }
            None => self.drop(Reason::Closed),
        }
    }

    /// Has a NIC's and its subnet's groups decide, in the order of the direction. `false`: one denied.
    fn gates(
        &mut self,
        network: &Network<'a>,
        port: &Port<'a>,
        subnet: Option<&Subnet>,
        direction: Direction,
        flow: &Flow,
    ) -> bool {
        let subnet = subnet.map(|subnet| (network.subnet_id(subnet), subnet));
        let (vnet, pod_ranges) = (network.view.vnet, port.overlay_ranges());
        let mut gates = effective::attached(self.map.region, vnet, subnet, port.nic, pod_ranges);
        if direction == Direction::Outbound {
            gates.reverse();
        }
        for Attached { at, gate } in gates {
            let decision = gate.decide(direction, flow);
            let access = decision.access();
            let rule = match decision {
                Decision::Rule(rule) => Some(rule.rule.name.clone()),
                Decision::Platform => None,
            };
            self.steps.push(Step::Gate {
                at,
                group: gate.group.clone(),
                direction,
                rule,
                access,
                flow: *flow,
            });
            if access == Access::Deny {
                return false;
            }
        }
        true
    }
}

/// Whether a NIC's packets may have this source.
fn may_send(network: &Network<'_>, port: &Port<'_>, source: IpAddr) -> bool {
    port.nic.ip_forwarding
        || port.addresses().any(|own| own == source)
        || port.is_overlay() && port.has_pod(source)
        || port
            .main_address(Family::of(source))
            .and_then(|own| network.fronts.get(&own))
            .is_some_and(|fronts| fronts.contains(&source))
}

/// The service that a flow is for, in a virtual network.
fn service<'n>(network: &'n Network<'_>, flow: &Flow) -> Option<&'n Service> {
    let services = &network.services.0;
    let by_port = |transport| services.get(&(flow.destination, transport, flow.destination_port));
    let exact = match flow.protocol {
        Protocol::Tcp => by_port(Transport::Tcp),
        Protocol::Udp => by_port(Transport::Udp),
        Protocol::Icmp | Protocol::Esp | Protocol::Ah | Protocol::Other(_) => None,
    };
    exact.or_else(|| services.get(&(flow.destination, Transport::All, 0)))
}

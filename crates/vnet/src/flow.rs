//! What becomes of a flow: every gate that its first packet meets, who decides there, and where it ends. Not here:
//! the kernel that does so (see [`crate::host`]), and what happens inside of a machine (pod policies, services,
//! masquerading), which is its own.
//!
//! # The way
//! Out of a NIC: may it send so; the NIC's group and then the subnet's, outbound, with the destination that the
//! sender wrote; then a load balancer's front end unless a route leads past it, the pods of an overlay, or the subnet's
//! effective route. Into a NIC: the subnet's group and then the NIC's, inbound, with the addresses that the machine
//! will see. An appliance sends on what it gets, and everything begins again at its NIC; a front end that a route names
//! as its next hop hands over to one of its members, who is the appliance.
//!
//! A load balancer chooses among members by a hash, so there can be several ways; [`Map::walk`] gives them all.

mod fate;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    addr::Family,
    effective::{self, Attached},
    host::{
        Health,
        balancing::{self, Delivery, Service, Services},
        egress::{self, Outside},
        platform,
        view::{Port, View},
    },
    model::{Access, Direction, Subnet},
    name::ArmId,
    policy::{Decision, Flow, is_platform},
    region::Region,
    routes::{self, Hop},
};

pub use self::fate::{End, Origin, Reason, Step, Walk};

/// Whether an address means many: multicast, or everybody on a link.
fn is_to_many(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

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
    ways: BTreeMap<IpAddr, (String, Outside)>,
    /// Every public address that leads in here.
    public: BTreeSet<IpAddr>,
    /// Those that are open where no group is.
    open: BTreeSet<IpAddr>,
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
            chosen: Vec::new(),
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

    /// Whether an address is a subnet's gateway's, which answers ARP requests and nothing else, whatever routes say.
    fn is_gateway(&self, address: IpAddr) -> bool {
        let mut subnets = self.view.vnet.subnets.values();
        subnets.any(|it| it.prefixes().any(|own| own.nth(1) == Some(address)))
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
    /// Which member has which flow, of front ends that routes lead to: a flow that comes again meets it again.
    chosen: Vec<(IpAddr, Flow, IpAddr)>,
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
            let is_heard = platform::hears(&flow);
            return self.end(if is_heard {
                End::Platform
            } else {
                End::Dropped(Reason::NotServed)
            });
        }
        if is_to_many(flow.destination) {
            return self.drop(Reason::ToMany);
        }
        if network.is_gateway(flow.destination) {
            return self.drop(Reason::NobodyThere);
        }
        let effective = subnet.map_or_else(Vec::new, |subnet| {
            routes::effective(self.map.region, network.view.vnet, subnet)
        });
        let route = routes::select(&effective, flow.destination);
        let is_found = route.is_none_or(|route| network.view.finds(route, flow.destination));
        if let Some(service) = network.services.find(flow.destination, &flow).filter(|_| is_found) {
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
        let (Some(subnet), Some(route)) = (subnet, route) else {
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

    /// By the machine that has `address` and forwards, or a member of the front end that has it, here or in a peer's
    /// network.
    fn appliance(&mut self, network: &'m Network<'a>, address: IpAddr, flow: Flow) {
        self.n_appliances += 1;
        if self.n_appliances > MAX_APPLIANCES {
            return self.drop(Reason::Loop);
        }
        let there = network.view.peer_of(address).map(|peer| &peer.remote.meta.id);
        let there = there.and_then(|remote| self.map.networks.get(remote));
        let hop = NextHop::of(network, address).map(|hop| (network, hop));
        let hop =
            hop.or_else(|| there.and_then(|there| Some((there, NextHop::of(there, address)?))));
        let Some((at, hop)) = hop else { return self.drop(Reason::NoAppliance(address)) };
        if !std::ptr::eq(at, network) {
            if !self.cross(network, at, &flow) {
                return;
            }
            if at.is_gateway(flow.destination) {
                return self.drop(Reason::NobodyThere);
            }
        }
        match hop {
            NextHop::Machine(port) => self.hand_over(at, port, flow),
            NextHop::Frontend => self.share_out(at, address, flow),
        }
    }

    /// To a member of the front end that a route names as its next hop. The packet stays as it is: it is not the front
    /// end's. What is for the front end itself is like any flow to it.
    fn share_out(&mut self, network: &'m Network<'a>, frontend: IpAddr, flow: Flow) {
        if flow.destination == frontend {
            return match network.services.find(frontend, &flow) {
                Some(service) => self.balance(network, service, flow),
                None => self.drop(Reason::NobodyThere),
            };
        }
        let Some(service) = network.services.find(frontend, &flow) else {
            return self.drop(Reason::NoRule(frontend));
        };
        if service.healthy.is_empty() {
            return self.drop(Reason::NoHealthyMember);
        }
        let mut chosen = self.chosen.iter();
        let again = chosen.find(|(by, of, _)| *by == frontend && *of == flow);
        let again = again.map(|(_, _, member)| *member);
        for member in service.healthy.iter().filter(|it| again.is_none_or(|again| again == **it)) {
            let (n_steps, n_appliances) = (self.steps.len(), self.n_appliances);
            let n_chosen = self.chosen.len();
            self.steps.push(Step::Balanced { frontend, member: *member, after: flow });
            self.chosen.push((frontend, flow, *member));
            match network.view.appliance(*member) {
                Some(port) => self.hand_over(network, port, flow),
                None => self.drop(Reason::NoAppliance(*member)),
            }
            self.steps.truncate(n_steps);
            self.chosen.truncate(n_chosen);
            self.n_appliances = n_appliances;
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
        match there.services.find(flow.destination, &flow) {
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
        let Some((_, outside)) = way else { return self.drop(Reason::NoWayOut) };
        let Some(way) = outside.of(flow.protocol) else {
            return self.drop(Reason::NotCarried(flow.protocol));
        };
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
        if let Some(service) = network.services.find(flow.destination, &flow) {
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

/// What a user's route names, where it is there.
enum NextHop<'n, 'a> {
    /// A machine that forwards.
    Machine(&'n Port<'a>),
    /// A front end, whose members do.
    Frontend,
}

impl<'n, 'a> NextHop<'n, 'a> {
    fn of(network: &'n Network<'a>, address: IpAddr) -> Option<Self> {
        let machine = network.view.appliance(address).map(Self::Machine);
        machine.or_else(|| network.view.has_frontend(address).then_some(Self::Frontend))
    }
}

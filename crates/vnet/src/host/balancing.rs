//! What load balancers do in one virtual network, as a list of services. Not here: how that is written
//! down (see [`super::services`]), and marks and tables (see [`super::routing`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{health::Health, view::View};
use crate::{
    model::{BalancingRule, Distribution, InboundNatRule, InboundTarget, LoadBalancer, Transport},
    policy::{Flow, Protocol},
};

/// What a service is found by: address, protocol, port (0 with [`Transport::All`]).
pub(crate) type Key = (IpAddr, Transport, u16);

/// All services of a virtual network.
pub(crate) struct Services(pub(crate) BTreeMap<Key, Service>);

/// One load-balancing rule, or one port of an inbound NAT rule.
pub(crate) struct Service {
    /// The members that new flows may go to, in order.
    pub(crate) healthy: Vec<IpAddr>,
    /// All members, in order.
    pub(crate) members: Vec<IpAddr>,
    /// Which flows meet the same member.
    pub(crate) distribution: Distribution,
    pub(crate) delivery: Delivery,
    /// After how many idle minutes a flow is forgotten.
    pub(crate) idle_minutes: u32,
    /// Whether who goes on with a forgotten TCP flow is told so.
    pub(crate) reset: bool,
}

/// What becomes of the packet's destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It stays: floating IP.
    Kept,
    /// It becomes the member's address, and this port unless it is 0.
    Translated(u16),
}

impl Services {
    /// The service of the front end at `address` whose rule is for a flow.
    pub(crate) fn find(&self, address: IpAddr, flow: &Flow) -> Option<&Service> {
        let by_port = |transport| self.0.get(&(address, transport, flow.destination_port));
        let exact = match flow.protocol {
            Protocol::Tcp => by_port(Transport::Tcp),
            Protocol::Udp => by_port(Transport::Udp),
            Protocol::Icmp | Protocol::Esp | Protocol::Ah | Protocol::Other(_) => None,
        };
        exact.or_else(|| self.0.get(&(address, Transport::All, 0)))
    }

    /// Whether the front end at `address` has a rule for high-availability ports.
    pub(crate) fn has_all_ports(&self, address: IpAddr) -> bool {
        self.0.contains_key(&(address, Transport::All, 0))
    }

    /// The members that flows are sent to, whatever routes say of their addresses.
    pub(crate) fn members(&self) -> BTreeSet<IpAddr> {
        self.0.values().flat_map(|service| service.members.iter().copied()).collect()
    }

    /// The front ends' addresses that each member may answer from.
    pub(crate) fn addresses_by_member(&self) -> BTreeMap<IpAddr, BTreeSet<IpAddr>> {
        let mut addresses: BTreeMap<IpAddr, BTreeSet<IpAddr>> = BTreeMap::new();
        let kept = self.0.iter().filter(|(_, service)| service.delivery == Delivery::Kept);
        for ((address, ..), service) in kept {
            for member in &service.members {
                addresses.entry(*member).or_default().insert(*address);
            }
        }
        addresses
    }
}

/// The services of all load balancers that act in a virtual network.
pub(crate) fn services(view: &View<'_>, health: &Health) -> Services {
    let mut services = BTreeMap::new();
    for balancer in &view.balancers {
        for rule in balancer.rules.values() {
            if let Some((key, service)) = service(view, health, balancer, rule) {
                services.entry(key).or_insert(service);
            }
        }
        for rule in balancer.inbound_rules.values() {
            let Some(frontend) = balancer.frontends.get(&rule.frontend) else { continue };
            let Some(address) = view.frontend_address(frontend) else { continue };
            for (port, member) in inbound_ports(view, balancer, rule) {
                let key = (address, rule.protocol, port);
                services.entry(key).or_insert_with(|| inbound_service(rule, member));
            }
        }
    }
    Services(services)
}

/// The front end's ports of an inbound NAT rule, and who has each. A pool's members have one each, in order.
fn inbound_ports(
    view: &View<'_>,
    balancer: &LoadBalancer,
    rule: &InboundNatRule,
) -> Vec<(u16, IpAddr)> {
    match &rule.target {
        InboundTarget::Configuration { frontend_port, member } => {
            let member = member.as_ref().and_then(|(nic, config)| {
                let mut configs = view.port_of(nic)?.nic.configs.iter();
                configs.find(|it| it.name.eq_ignore_ascii_case(config)).map(|it| it.address)
            });
            member.map(|member| (*frontend_port, member)).into_iter().collect()
        }
        InboundTarget::Pool { pool, frontend_ports } => {
            let Some(pool) = balancer.pools.get(pool) else { return Vec::new() };
            let members = &pool.members;
            (frontend_ports.first..=frontend_ports.last)
                .zip(members)
                .filter_map(|(port, member)| {
                    Some((port, view.port_of(member)?.main_address(pool.family)?))
                })
                .collect()
        }
    }
}

fn inbound_service(rule: &InboundNatRule, member: IpAddr) -> Service {
    Service {
        healthy: vec![member],
        members: vec![member],
        distribution: Distribution::Default,
        delivery: if rule.floating_ip {
            Delivery::Kept
        } else {
            Delivery::Translated(rule.backend_port)
        },
        idle_minutes: rule.idle_timeout_minutes,
        reset: rule.enable_tcp_reset,
    }
}

fn service(
    view: &View<'_>,
    health: &Health,
    balancer: &LoadBalancer,
    rule: &BalancingRule,
) -> Option<(Key, Service)> {
    let address = view.frontend_address(balancer.frontends.get(&rule.frontend)?)?;
    let pool = balancer.pools.get(&rule.pool);
    let mut members = Vec::new();
    for (pool, member) in pool.iter().flat_map(|it| it.members.iter().map(move |m| (it, m))) {
        let address = view.port_of(member).and_then(|port| port.main_address(pool.family));
        if let Some(address) = address {
            let up = health.is_up(&balancer.meta.id, rule.probe.as_ref(), member);
            members.push((address, up));
        }
    }
    members.sort_unstable();
    members.dedup();
    let port = if rule.protocol == Transport::All { 0 } else { rule.frontend_port };
    let delivery = match (rule.floating_ip, rule.protocol) {
        (true, _) => Delivery::Kept,
        (false, Transport::All) => Delivery::Translated(0),
        (false, Transport::Tcp | Transport::Udp) => Delivery::Translated(rule.backend_port),
    };
    let service = Service {
        healthy: members.iter().filter(|(_, up)| *up).map(|(address, _)| *address).collect(),
        members: members.iter().map(|(address, _)| *address).collect(),
        distribution: rule.distribution,
        delivery,
        idle_minutes: rule.idle_timeout_minutes,
        reset: rule.enable_tcp_reset,
    };
    Some(((address, rule.protocol, port), service))
}

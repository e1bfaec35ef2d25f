//! What is added to a random region of [`crate::worlds`]: firewalls behind front ends, and routes to front ends and to
//! appliances of the network's own and of its peers', some of which lead past front ends.

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr, str::FromStr};

use vnet::{
    addr::{Family, Prefix},
    command::{Command, Common, PutFrontend, PutLoadBalancer},
    kind,
    model::{
        BackendPool, BalancingRule, Distribution, Frontend, Kept, NextHop, Route, Timestamp,
        Transport, Vnet,
    },
    name::{ArmId, Name},
    region::Region,
};

use crate::dice::Dice;

/// Adds them.
pub(crate) fn add(dice: &mut Dice, region: &mut Region) {
    let vnets: Vec<ArmId> = region.vnets.keys().cloned().collect();
    for vnet in &vnets {
        for family in families(&region.vnets[vnet]) {
            if dice.chance(80) {
                balancer(dice, region, vnet, family);
            }
        }
    }
    for vnet in &vnets {
        routes(dice, region, vnet);
    }
    let generation = region.generation;
    apply(region, Command::FabricReal { generation });
}

fn families(vnet: &Vnet) -> Vec<Family> {
    if vnet.is_dual_stack() { vec![Family::V4, Family::V6] } else { vec![Family::V4] }
}

fn apply(region: &mut Region, command: Command) {
    let again = command.clone();
    if let Err(fault) = region.apply(command, Timestamp(0)) {
        panic!("{fault:?}: {again:?}");
    }
}

fn prefix<P: FromStr<Err: Debug>>(text: &str) -> P {
    text.parse().unwrap()
}

/// The number in the name of one of these networks.
fn number(vnet: &ArmId) -> usize {
    vnet.name().trim_start_matches('v').parse().unwrap()
}

/// How a rule chooses members.
pub(crate) fn any_distribution(dice: &mut Dice) -> Distribution {
    use Distribution::{Default, SourceIp, SourceIpProtocol};
    *dice.pick(&[Default, Default, Default, SourceIp, SourceIpProtocol])
}

fn balancer(dice: &mut Dice, region: &mut Region, vnet: &ArmId, family: Family) {
    let nics = region.nics.values().filter(|nic| nic.vnet().as_ref() == Some(vnet));
    let nics: Vec<_> = nics.filter(|nic| nic.config_of(family).is_some()).cloned().collect();
    let mut members = Vec::new();
    for nic in &nics {
        if dice.chance(if nic.ip_forwarding { 90 } else { 15 }) {
            members.push(nic.meta.id.clone());
        }
    }
    let (frontend, pool) = (Name::new("f"), Name::new("p"));
    let subnet = vnet.child("subnets", ["a", "b"][dice.below(2)]);
    let mut rule = |protocol, port| BalancingRule {
        frontend: frontend.clone(),
        pool: pool.clone(),
        probe: None,
        protocol,
        frontend_port: port,
        backend_port: port,
        floating_ip: dice.chance(40),
        distribution: any_distribution(dice),
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
        disable_outbound_snat: true,
    };
    let all = (Name::new("all"), rule(Transport::All, 0));
    let some = vec![
        (Name::new("t"), rule(Transport::Tcp, 80)),
        (Name::new("u"), rule(Transport::Udp, 443)),
    ];
    let rules = if dice.chance(75) { vec![all] } else { some };
    let id = vnet.sibling(kind::LOAD_BALANCER, &format!("fw{}x{}", number(vnet), family.bits()));
    let command = Command::PutLoadBalancer {
        common: Common { id, location: None, tags: None, kept: Kept::new() },
        balancer: PutLoadBalancer {
            sku: "Standard".to_owned(),
            frontends: vec![(frontend, PutFrontend::Internal { subnet, address: None, family })],
            pools: vec![(pool, BackendPool { members, family })],
            probes: Vec::new(),
            rules,
            outbound_rules: Vec::new(),
            inbound_rules: Vec::new(),
        },
    };
    apply(region, command);
}

/// Every address that may be a next hop: of firewalls' and others' front ends, and of machines that may forward.
fn hops(region: &Region, family: Family) -> Vec<IpAddr> {
    let all = region.balancers.values().flat_map(|balancer| {
        let weight = if balancer.meta.id.name().starts_with("fw") { 4 } else { 1 };
        balancer.frontends.values().flat_map(move |it| std::iter::repeat_n(it, weight))
    });
    let mut hops: Vec<IpAddr> = all
        .filter_map(|frontend| match frontend {
            Frontend::Internal { address, .. } => Some(*address),
            Frontend::Public { .. } | Frontend::Prefix { .. } => None,
        })
        .collect();
    let machines = region.nics.values().filter(|nic| nic.ip_forwarding);
    hops.extend(machines.filter_map(|nic| nic.address_of(family)));
    hops.retain(|address| Family::of(*address) == family);
    hops
}

fn routes(dice: &mut Dice, region: &mut Region, vnet: &ArmId) {
    let table = vnet.sibling(kind::ROUTE_TABLE, &format!("rt{}", number(vnet)));
    let before = region.route_tables[&table].routes.values().cloned();
    let mut routes: BTreeMap<String, Route> =
        before.map(|it| (it.prefix.to_string(), it)).collect();
    for family in families(&region.vnets[vnet]) {
        let hops = hops(region, family);
        if hops.is_empty() {
            continue;
        }
        for _ in 0..=dice.below(5) {
            let n = 1 + dice.below(3);
            let prefix: Prefix = match (family, dice.below(7)) {
                (Family::V4, 0) => prefix("0.0.0.0/0"),
                (Family::V4, 1) => prefix(&format!("10.{n}.0.0/16")),
                (Family::V4, 2 | 3) => prefix(&format!("10.{n}.{}.0/24", dice.below(2))),
                (Family::V6, 0) => prefix("::/0"),
                (Family::V6, 1) => prefix(&format!("fd00:{n}::/48")),
                (Family::V6, 2 | 3) => prefix(&format!("fd00:{n}:0:{}::/64", dice.below(2))),
                _ => Prefix::host(*dice.pick(&hops)),
            };
            let name = Name::new(&format!("h{}", prefix.to_string().replace(['.', ':', '/'], "-")));
            let next_hop = NextHop::VirtualAppliance(*dice.pick(&hops));
            let route = Route { name, prefix: prefix.into(), next_hop };
            routes.insert(prefix.to_string(), route);
        }
    }
    let command = Command::PutRouteTable {
        common: Common { id: table, location: None, tags: None, kept: Kept::new() },
        routes: Some(routes.into_values().collect()),
        disable_bgp_route_propagation: false,
    };
    apply(region, command);
}

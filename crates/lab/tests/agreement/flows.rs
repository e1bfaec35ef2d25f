//! Random flows in a region: from machines and the internet, to what is there and what is not.

use std::net::{IpAddr, Ipv4Addr};

use vnet::{
    addr::Family,
    flow::Origin,
    model::{Frontend, Role},
    policy::{Flow, Protocol},
    region::Region,
};

use crate::{dice::Dice, wire::ICMP6};

/// Ports that rules of [`crate::worlds`] and load balancers speak of, and others.
pub(crate) const PORTS: [u16; 6] = [22, 80, 443, 8000, 8080, 9000];

/// A flow, and where its first packet is sent from. Source ports are the caller's to give.
pub(crate) fn any(dice: &mut Dice, region: &Region, source_port: u16) -> (Origin, Flow) {
    let machines: Vec<_> = region.machines.values().filter(|it| it.role == Role::Vm).collect();
    let protocol = *dice.pick(&[
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::Esp,
    ]);
    let (origin, source) = if dice.chance(10) {
        // The internet has IPv6 when a virtual network has.
        let is_dual = region.vnets.values().any(|vnet| vnet.is_dual_stack());
        let source = if !is_dual || dice.chance(60) { "203.0.113.7" } else { "2a00:1::7" };
        (Origin::Internet, source.parse().expect("an address"))
    } else {
        let machine = dice.pick(&machines);
        let nic = &region.nics[&machine.nic];
        let source = if dice.chance(5) {
            // Somebody else's.
            dice.pick(&addresses(region)).to_owned()
        } else {
            dice.pick(&nic.configs).address
        };
        // A machine without IPv6 has no route for any.
        if nic.config_of(Family::of(source)).is_none() {
            return any(dice, region, source_port);
        }
        (Origin::Machine(machine.meta.id.clone()), source)
    };
    let destination = if origin == Origin::Internet {
        match of(public(region), Family::of(source)).as_slice() {
            [] => return any(dice, region, source_port),
            some => *dice.pick(some),
        }
    } else {
        match Family::of(source) {
            Family::V4 => destination(dice, region),
            Family::V6 => destination6(dice, region),
        }
    };
    // IPv6 has a protocol of its own for this.
    let protocol = match (protocol, Family::of(source)) {
        (Protocol::Icmp, Family::V6) => ICMP6,
        (protocol, _) => protocol,
    };
    // What a machine sends to itself never leaves it.
    let destination_port = if protocol.has_ports() { *dice.pick(&PORTS) } else { 0 };
    let is_own = |machine: &vnet::name::ArmId| {
        let nic = region.nic_of(machine);
        nic.is_some_and(|nic| nic.configs.iter().any(|config| config.address == destination))
    };
    if matches!(&origin, Origin::Machine(machine) if is_own(machine)) {
        return any(dice, region, source_port);
    }
    let source_port = if protocol.has_ports() || matches!(protocol, Protocol::Icmp | ICMP6) {
        source_port
    } else {
        0
    };
    (origin, Flow { source, destination, protocol, source_port, destination_port })
}

fn destination(dice: &mut Dice, region: &Region) -> IpAddr {
    match dice.below(20) {
        0..12 => *dice.pick(&of(addresses(region), Family::V4)),
        12..15 => {
            let inside = of(frontends(region), Family::V4);
            if inside.is_empty() {
                Ipv4Addr::new(198, 18, 250, 1).into()
            } else {
                *dice.pick(&inside)
            }
        }
        15 => *dice.pick(&of(public(region), Family::V4)),
        16 => one_of(dice, &["10.77.0.4", "192.168.3.3", "10.1.0.200", "10.1.1.1"]),
        _ => one_of(dice, &["203.0.113.9", "198.18.250.1", "198.19.22.9"]),
    }
}

/// Nobody's, often enough.
fn destination6(dice: &mut Dice, region: &Region) -> IpAddr {
    let some = match dice.below(20) {
        0..12 => of(addresses(region), Family::V6),
        12..15 => of(frontends(region), Family::V6),
        15 => of(public(region), Family::V6),
        _ => Vec::new(),
    };
    if !some.is_empty() {
        return *dice.pick(&some);
    }
    let texts =
        ["fd00:1:0:1::200", "fd00:1:0:1::1", "fd00:77::4", "2a00:1::9", "2a00:2::9", "2001:2::fff"];
    one_of(dice, &texts)
}

fn of(addresses: Vec<IpAddr>, family: Family) -> Vec<IpAddr> {
    addresses.into_iter().filter(|address| Family::of(*address) == family).collect()
}

fn frontends(region: &Region) -> Vec<IpAddr> {
    let all = region.balancers.values().flat_map(|balancer| balancer.frontends.values());
    all.filter_map(|frontend| match frontend {
        Frontend::Internal { address, .. } => Some(*address),
        Frontend::Public { .. } | Frontend::Prefix { .. } => None,
    })
    .collect()
}

fn one_of(dice: &mut Dice, texts: &[&str]) -> IpAddr {
    dice.pick(texts).parse().expect("an address")
}

fn addresses(region: &Region) -> Vec<IpAddr> {
    region.nics.values().flat_map(|nic| &nic.configs).map(|config| config.address).collect()
}

fn public(region: &Region) -> Vec<IpAddr> {
    let ips = region.public_ips.values().map(|ip| ip.address);
    ips.chain(region.vnets.values().map(|vnet| vnet.default_outbound.into())).collect()
}

//! Random flows in a region: from machines and the internet, to what is there and what is not.

use std::net::{IpAddr, Ipv4Addr};

use vnet::{
    flow::Origin,
    model::{Frontend, Role},
    policy::{Flow, Protocol},
    region::Region,
};

use crate::dice::Dice;

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
        (Origin::Internet, Ipv4Addr::new(203, 0, 113, 7).into())
    } else {
        let machine = dice.pick(&machines);
        let nic = &region.nics[&machine.nic];
        let source = if dice.chance(5) {
            // Somebody else's.
            dice.pick(&addresses(region)).to_owned()
        } else {
            dice.pick(&nic.configs).address
        };
        (Origin::Machine(machine.meta.id.clone()), source)
    };
    let destination = if origin == Origin::Internet {
        *dice.pick(&public(region))
    } else {
        destination(dice, region)
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
    let source_port =
        if protocol.has_ports() || protocol == Protocol::Icmp { source_port } else { 0 };
    (origin, Flow { source, destination, protocol, source_port, destination_port })
}

fn destination(dice: &mut Dice, region: &Region) -> IpAddr {
    match dice.below(20) {
        0..12 => *dice.pick(&addresses(region)),
        12..15 => {
            let inside: Vec<IpAddr> = region
                .balancers
                .values()
                .flat_map(|balancer| balancer.frontends.values())
                .filter_map(|frontend| match frontend {
                    Frontend::Internal { address, .. } => Some(*address),
                    Frontend::Public { .. } => None,
                })
                .collect();
            if inside.is_empty() {
                Ipv4Addr::new(198, 18, 250, 1).into()
            } else {
                *dice.pick(&inside)
            }
        }
        15 => *dice.pick(&public(region)),
        16 => one_of(dice, &["10.77.0.4", "192.168.3.3", "10.1.0.200", "10.1.1.1"]),
        _ => one_of(dice, &["203.0.113.9", "198.18.250.1", "198.19.22.9"]),
    }
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

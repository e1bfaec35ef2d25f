//! Random regions, made by the commands that a door gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::IpAddr,
    str::FromStr,
};

use vnet::{
    addr::{Family, Prefix},
    command::{
        Command, Common, PutFrontend, PutIpConfiguration, PutLoadBalancer, PutNatGateway,
        PutPeering, PutSubnet,
    },
    kind,
    model::{
        Access, Addresses, Allocation, BackendPool, BalancingRule, Destination, Direction, Kept,
        NextHop, OutboundRule, Peers, PortRange, Ports, PublicIpSettings, Route, RuleProtocol,
        SecurityRule, Timestamp, Transport,
    },
    name::{ArmId, Name},
    region::Region,
};

use crate::{dice::Dice, firewalls::any_distribution, flows::PORTS};

struct World<'d> {
    region: Region,
    dice: &'d mut Dice,
    vms: Vec<ArmId>,
    public_ips: Vec<ArmId>,
    /// Those of IPv6.
    public_ips6: Vec<ArmId>,
    /// The virtual networks that are dual stack.
    dual: BTreeSet<usize>,
}

/// A region with two or three virtual networks and something of everything in them.
pub(crate) fn region(dice: &mut Dice) -> Region {
    let mut world = World {
        region: Region::default(),
        dice,
        vms: Vec::new(),
        public_ips: Vec::new(),
        public_ips6: Vec::new(),
        dual: BTreeSet::new(),
    };
    world.build();
    world.region
}

fn group() -> ArmId {
    ArmId::group("00000000-0000-0000-0000-000000000000", "g")
}

fn id(kind: &str, name: &str) -> ArmId {
    group().sibling(kind, name)
}

fn common(id: ArmId) -> Common {
    Common { id, location: None, tags: None, kept: Kept::new() }
}

fn prefix<P: FromStr<Err: Debug>>(text: &str) -> P {
    text.parse().unwrap()
}

impl World<'_> {
    fn apply(&mut self, command: Command) {
        let again = command.clone();
        if let Err(fault) = self.region.apply(command, Timestamp(0)) {
            panic!("{fault:?}: {again:?}");
        }
    }

    /// What a random choice may have made impossible.
    fn try_apply(&mut self, command: Command) -> bool {
        self.region.apply(command, Timestamp(0)).is_ok()
    }

    fn build(&mut self) {
        let location = "eastus".to_owned();
        self.apply(Command::PutGroup { id: group(), location, tags: BTreeMap::new() });
        for n in 0..12 {
            self.apply(Command::PutPublicIp {
                settings: PublicIpSettings::default(),
                common: common(id(kind::PUBLIC_IP, &format!("pip{n}"))),
                prefix: None,
                sku: "Standard".to_owned(),
                allocation: Allocation::Static,
                family: Family::V4,
            });
            // The first one is the public load balancer's.
            if n > 0 {
                self.public_ips.push(id(kind::PUBLIC_IP, &format!("pip{n}")));
            }
        }
        for n in 0..6 {
            let id = id(kind::PUBLIC_IP, &format!("six{n}"));
            self.apply(Command::PutPublicIp {
                settings: PublicIpSettings::default(),
                common: common(id.clone()),
                prefix: None,
                sku: "Standard".to_owned(),
                allocation: Allocation::Static,
                family: Family::V6,
            });
            if n > 0 {
                self.public_ips6.push(id);
            }
        }
        let n_vnets = 2 + self.dice.below(2);
        for n in 1..=n_vnets {
            if self.dice.chance(60) {
                self.dual.insert(n);
            }
        }
        for n in 1..=n_vnets {
            self.vnet(n);
        }
        for n in 1..=n_vnets {
            self.balancer(n, false, Family::V4);
            if self.dual.contains(&n) {
                self.balancer(n, false, Family::V6);
            }
        }
        self.balancer(1, true, Family::V4);
        if self.dual.contains(&1) {
            self.balancer(1, true, Family::V6);
        }
        for n in 1..n_vnets {
            self.peering(n, n + 1);
        }
        let generation = self.region.generation;
        self.apply(Command::FabricReal { generation });
    }

    /// A public IP that nobody has yet.
    fn public_ip(&mut self) -> Option<ArmId> {
        self.public_ips.pop()
    }

    fn nat_gateway(&mut self, n: usize) -> Option<ArmId> {
        let n_addresses = 1 + self.dice.below(2);
        let public_ips: Vec<ArmId> = (0..n_addresses).filter_map(|_| self.public_ip()).collect();
        let gateway = id(kind::NAT_GATEWAY, &format!("nat{n}"));
        let is_there = !public_ips.is_empty()
            && self.try_apply(Command::PutNatGateway {
                common: common(gateway.clone()),
                gateway: PutNatGateway {
                    sku: "Standard".to_owned(),
                    public_ips,
                    public_ip_prefixes: Vec::new(),
                    idle_timeout_minutes: None,
                },
            });
        is_there.then_some(gateway)
    }

    fn vnet(&mut self, n: usize) {
        for group in ["x", "y"] {
            let id = id(kind::APPLICATION_GROUP, &format!("asg{n}{group}"));
            self.apply(Command::PutApplicationGroup { common: common(id) });
        }
        for name in ["a", "b", "nic"] {
            self.security_group(n, name);
        }
        self.route_table(n);
        let gateway = self.nat_gateway(n);
        let subnet = |this: &mut Self, name: &str, third: u8| PutSubnet {
            name: Name::new(name),
            prefix: prefix(&format!("10.{n}.{third}.0/24")),
            prefix6: this.dual.contains(&n).then(|| prefix(&format!("fd00:{n}:0:{third}::/64"))),
            route_table: this.dice.chance(50).then(|| id(kind::ROUTE_TABLE, &format!("rt{n}"))),
            security_group: this
                .dice
                .chance(70)
                .then(|| id(kind::SECURITY_GROUP, &format!("nsg{n}{name}"))),
            nat_gateway: this.dice.chance(40).then(|| gateway.clone()).flatten(),
            default_outbound: Some(this.dice.chance(80)),
            delegations: Vec::new(),
            private_endpoint_network_policies: None,
            private_link_service_network_policies: None,
            kept: Kept::new(),
        };
        let subnets = vec![subnet(self, "a", 0), subnet(self, "b", 1)];
        self.apply(Command::PutVnet {
            common: common(id(kind::VNET, &format!("v{n}"))),
            prefixes: if self.dual.contains(&n) {
                vec![prefix(&format!("10.{n}.0.0/16")), prefix(&format!("fd00:{n}::/48"))]
            } else {
                vec![prefix(&format!("10.{n}.0.0/16"))]
            },
            subnets: Some(subnets),
        });
        for m in 0..3 + self.dice.below(3) {
            self.vm(n, m);
        }
    }

    fn vm(&mut self, n: usize, m: usize) {
        let name = format!("vm{n}{m}");
        let subnet =
            id(kind::VNET, &format!("v{n}")).child("subnets", ["a", "b"][self.dice.below(2)]);
        let n_configs = 1 + self.dice.below(2);
        let mut application_groups = Vec::new();
        for group in ["x", "y"] {
            if self.dice.chance(40) {
                application_groups.push(id(kind::APPLICATION_GROUP, &format!("asg{n}{group}")));
            }
        }
        let mut configs = Vec::new();
        for i in 0..n_configs {
            let is_public = self.dice.chance(20);
            configs.push(PutIpConfiguration {
                name: format!("ipconfig{i}"),
                subnet: subnet.clone(),
                address: None,
                family: Family::V4,
                public_ip: if is_public { self.public_ip() } else { None },
                application_groups: application_groups.clone(),
            });
        }
        if self.dual.contains(&n) && self.dice.chance(85) {
            let is_public = self.dice.chance(30);
            configs.push(PutIpConfiguration {
                name: "six".to_owned(),
                subnet: subnet.clone(),
                address: None,
                family: Family::V6,
                public_ip: if is_public { self.public_ips6.pop() } else { None },
                application_groups: application_groups.clone(),
            });
        }
        let security_group =
            self.dice.chance(40).then(|| id(kind::SECURITY_GROUP, &format!("nsg{n}nic")));
        let ip_forwarding = m == 0 || self.dice.chance(10);
        self.apply(Command::PutNic {
            common: common(id(kind::NIC, &name)),
            ip_forwarding,
            security_group,
            configs,
        });
        let vm = id(kind::VM, &name);
        self.apply(Command::PutVm { common: common(vm.clone()), nic: id(kind::NIC, &name) });
        self.vms.push(vm);
    }

    fn security_group(&mut self, n: usize, name: &str) {
        let n_rules = self.dice.below(8);
        let mut rules = Vec::new();
        for i in 0..n_rules {
            rules.push(self.security_rule(n, i));
        }
        self.apply(Command::PutSecurityGroup {
            common: common(id(kind::SECURITY_GROUP, &format!("nsg{n}{name}"))),
            rules: Some(rules),
        });
    }

    fn security_rule(&mut self, n: usize, i: usize) -> SecurityRule {
        let direction = *self.dice.pick(&[Direction::Inbound, Direction::Outbound]);
        let number = u16::try_from(i).unwrap();
        // A rule names prefixes of one family.
        let family = if self.dice.chance(40) { Family::V6 } else { Family::V4 };
        SecurityRule {
            name: Name::new(&format!("rule{i}")),
            direction,
            priority: 100 + 10 * number,
            access: if self.dice.chance(50) { Access::Allow } else { Access::Deny },
            protocol: *self.dice.pick(&[
                RuleProtocol::Any,
                RuleProtocol::Any,
                RuleProtocol::Tcp,
                RuleProtocol::Udp,
                RuleProtocol::Icmp,
                RuleProtocol::Esp,
            ]),
            source: self.peers(n, family),
            source_ports: Ports { any_of: vec![PortRange::ALL], as_list: false },
            destination: self.peers(n, family),
            destination_ports: self.ports(),
            kept: Kept::new(),
        }
    }

    fn peers(&mut self, n: usize, family: Family) -> Peers {
        if self.dice.chance(15) {
            let group = format!("asg{n}{}", ["x", "y"][self.dice.below(2)]);
            return Peers::Groups(vec![id(kind::APPLICATION_GROUP, &group)]);
        }
        let mut aside = self.dice.aside();
        let mut any_of = Vec::new();
        for _ in 0..=self.dice.below(2) {
            any_of.push(match self.dice.below(8) {
                at @ 5.. if family == Family::V6 => {
                    let third = self.dice.below(2);
                    Addresses::Prefix(match at {
                        5 => prefix(&format!("fd00:{n}:0:{third}::/64")),
                        6 => prefix(&format!("fd00:{}::/48", 1 + self.dice.below(3))),
                        _ => {
                            let last = 4 + self.dice.below(4);
                            Prefix::host(format!("fd00:{n}:0:{third}::{last}").parse().unwrap())
                        }
                    })
                }
                0..3 => Addresses::Any,
                3 => Addresses::Tag("VirtualNetwork".to_owned()),
                4 => Addresses::Tag(
                    (*aside.pick(&["Internet", "Internet", "AzureCloud", "Storage"])).to_owned(),
                ),
                5 => Addresses::Prefix(prefix(&format!("10.{n}.{}.0/24", self.dice.below(2)))),
                6 => Addresses::Prefix(prefix(&format!("10.{}.0.0/16", 1 + self.dice.below(3)))),
                _ => Addresses::Prefix(Prefix::host(
                    format!("10.{n}.{}.{}", self.dice.below(2), 4 + self.dice.below(4))
                        .parse()
                        .unwrap(),
                )),
            });
        }
        // One tag on each side at most, and nothing beside it or `*`.
        if let Some(at) = any_of.iter().position(|one| !matches!(one, Addresses::Prefix(_))) {
            return Peers::Addresses { any_of: vec![any_of.swap_remove(at)], as_list: false };
        }
        Peers::Addresses { any_of: apart(any_of), as_list: true }
    }

    fn ports(&mut self) -> Ports {
        let any_of = match self.dice.below(4) {
            0..2 => vec![PortRange::ALL],
            2 => vec![PortRange::one(*self.dice.pick(&PORTS))],
            _ => vec![PortRange::one(80), PortRange { first: 8000, last: 8100 }],
        };
        Ports { as_list: any_of.len() > 1, any_of }
    }

    fn route_table(&mut self, n: usize) {
        let appliance = IpAddr::from([10, u8::try_from(n).unwrap(), 0, 4]);
        let prefixes = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "198.19.22.0/24",
            "203.0.113.0/24",
            "10.1.1.0/24",
            "10.2.0.0/16",
            "10.2.1.5/32",
            "192.168.0.0/16",
            "::/0",
            "fd00::/16",
            "fd00:1:0:1::/64",
            "fd00:2::/48",
            "fd00:2:0:1::5/128",
            "2a00:1::/32",
        ];
        let mut routes = BTreeMap::new();
        for _ in 0..self.dice.below(6) {
            let prefix: Prefix = prefix(prefixes[self.dice.below(prefixes.len())]);
            let next_hop = match self.dice.below(5) {
                0..2 => NextHop::VirtualAppliance(match prefix.family() {
                    Family::V4 => appliance,
                    Family::V6 => format!("fd00:{n}:0:0::4").parse().unwrap(),
                }),
                2 => NextHop::None,
                3 => NextHop::VnetLocal,
                _ => NextHop::Internet,
            };
            let name = Name::new(&format!("r{}", prefix.to_string().replace(['.', ':', '/'], "-")));
            routes.insert(prefix, Route { name, prefix: prefix.into(), next_hop });
        }
        let mut aside = self.dice.aside();
        let tags = ["Storage", "Storage.AustraliaEast", "AzureCloud", "AzureCloud.eastus", "Sql"];
        let mut tagged = BTreeMap::new();
        for _ in 0..aside.below(3) {
            let tag = *aside.pick(&tags);
            let next_hop = *aside.pick(&[
                NextHop::VirtualAppliance(appliance),
                NextHop::None,
                NextHop::Internet,
            ]);
            let name = Name::new(&format!("t{tag}"));
            tagged.insert(tag, Route { name, prefix: Destination::Tag(tag.to_owned()), next_hop });
        }
        self.apply(Command::PutRouteTable {
            common: common(id(kind::ROUTE_TABLE, &format!("rt{n}"))),
            routes: Some(routes.into_values().chain(tagged.into_values()).collect()),
            disable_bgp_route_propagation: false,
        });
    }

    fn balancer(&mut self, n: usize, public: bool, family: Family) {
        let in_vnet = |id: &ArmId| id.name().starts_with(&format!("vm{n}"));
        let vms: Vec<ArmId> = self.vms.iter().filter(|id| in_vnet(id)).cloned().collect();
        let mut members = Vec::new();
        for vm in &vms {
            let nic = id(kind::NIC, vm.name());
            if self.dice.chance(50) && self.region.nics[&nic].config_of(family).is_some() {
                members.push(nic);
            }
        }
        let (frontend, pool) = (Name::new("f"), Name::new("p"));
        let put = if public {
            let public_ip = id(kind::PUBLIC_IP, if family == Family::V4 { "pip0" } else { "six0" });
            PutFrontend::Public { public_ip }
        } else {
            let subnet = id(kind::VNET, &format!("v{n}")).child("subnets", "b");
            PutFrontend::Internal { subnet, address: None, family }
        };
        let mut aside = self.dice.aside();
        let mut rules = Vec::new();
        for (i, (port, other)) in [(80, 8080), (443, 8000)].into_iter().enumerate() {
            let floating_ip = self.dice.chance(50);
            rules.push((
                Name::new(&format!("r{i}")),
                BalancingRule {
                    frontend: frontend.clone(),
                    pool: pool.clone(),
                    probe: None,
                    protocol: *self.dice.pick(&[Transport::Tcp, Transport::Udp]),
                    frontend_port: port,
                    backend_port: if floating_ip { port } else { other },
                    floating_ip,
                    distribution: any_distribution(self.dice),
                    idle_timeout_minutes: 4,
                    enable_tcp_reset: false,
                    disable_outbound_snat: true,
                },
            ));
        }
        let mut frontends = vec![(frontend.clone(), put)];
        let outbound = |frontend: &Name, protocol| OutboundRule {
            frontends: vec![frontend.clone()],
            pool: pool.clone(),
            protocol,
            allocated_ports: 0,
            idle_timeout_minutes: 4,
            enable_tcp_reset: false,
        };
        let mut outbound_rules = Vec::new();
        let has_outbound = public && self.dice.chance(50);
        // Azure refuses both: a load-balancing rule that translates, beside an outbound rule.
        let translates = !has_outbound && aside.chance(50);
        for (_, rule) in &mut rules {
            rule.disable_outbound_snat = !translates;
        }
        if has_outbound {
            let protocol = *aside.pick(&[Transport::All, Transport::Tcp, Transport::Udp]);
            outbound_rules.push((Name::new("o"), outbound(&frontend, protocol)));
            let other = match family {
                _ if protocol != Transport::Tcp => None,
                Family::V4 => self.public_ip(),
                Family::V6 => self.public_ips6.pop(),
            };
            if let Some(public_ip) = other {
                let more = Name::new("g");
                outbound_rules.push((Name::new("u"), outbound(&more, Transport::Udp)));
                frontends.push((more, PutFrontend::Public { public_ip }));
            }
        }
        self.apply(Command::PutLoadBalancer {
            common: common(id(kind::LOAD_BALANCER, &format!("lb{n}{public}{}", family.bits()))),
            balancer: PutLoadBalancer {
                sku: "Standard".to_owned(),
                frontends,
                pools: vec![(pool, BackendPool { members, family })],
                probes: Vec::new(),
                rules,
                outbound_rules,
                inbound_rules: Vec::new(),
            },
        });
    }

    fn peering(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if self.dice.chance(10) {
                return;
            }
            let name = Name::new(&format!("to{to}"));
            let peering = PutPeering {
                remote: id(kind::VNET, &format!("v{to}")),
                allow_access: self.dice.chance(90),
                allow_forwarded: self.dice.chance(40),
                allow_gateway_transit: false,
                use_remote_gateways: false,
                sync: false,
                kept: Kept::new(),
                name: name.clone(),
            };
            let id =
                id(kind::VNET, &format!("v{from}")).child("virtualNetworkPeerings", name.as_str());
            self.try_apply(Command::PutPeering { id, peering });
        }
    }
}

/// The prefixes without those that overlap with an earlier one: a rule names no address twice.
fn apart(any_of: Vec<Addresses>) -> Vec<Addresses> {
    let of = |one: &Addresses| match one {
        Addresses::Prefix(prefix) => Some(*prefix),
        Addresses::Any | Addresses::Tag(_) => None,
    };
    let mut apart: Vec<Addresses> = Vec::new();
    for one in any_of {
        let overlaps = |it| of(it).zip(of(&one)).is_some_and(|(a, b)| a.overlaps(b));
        if !apart.iter().any(overlaps) {
            apart.push(one);
        }
    }
    apart
}

//! Regions from a few lines of text, for tests of the fabric. A line per thing; a thing belongs to the
//! last virtual network, table, cluster or balancer above it:
//!
//! ```text
//! vnet NAME PREFIX
//! subnet NAME PREFIX [table TABLE]
//! table NAME
//! route PREFIX via ADDRESS | local | internet | none
//! vm NAME ADDRESS[,ADDRESS…] [forwards]
//! cluster NAME kubenet|azure|overlay|none API-ADDRESS [pods PREFIX] [outbound lb|udr|none]
//! node NAME ADDRESS[,ADDRESS…] [range PREFIX] [batch ADDRESS-ADDRESS] [forwards]
//! balancer NAME
//! frontend NAME ADDRESS | public ADDRESS
//! pool NAME MACHINE…
//! probe NAME tcp|http PORT
//! rule FRONTEND POOL tcp|udp|all PORT [to PORT] [probe NAME] [by-source]
//! outbound FRONTEND POOL
//! ```
//!
//! A rule without `to` has floating IP.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use uuid::Uuid;
use vnet::{
    addr::{Mac, Prefix4},
    model::{
        Allocation, BackendPool, BalancingRule, Cluster, Frontend, Holder, IpConfiguration,
        LoadBalancer, Machine, Meta, NetworkMode, NextHop, Nic, NodePhase, NodeRole, OutboundRule,
        OutboundType, Probe, ProbeProtocol, ProvisioningState, PublicIp, Role, Route, RouteTable,
        Subnet, Timestamp, Transport, Vnet,
    },
    name::{ArmId, Name},
    region::Region,
};

const NETWORK: &str = "Microsoft.Network";

/// Where the reading of the text stands.
struct Reader {
    region: Region,
    vnet: ArmId,
    table: ArmId,
    cluster: ArmId,
    balancer: ArmId,
}

/// The region that the text describes.
pub(crate) fn region(text: &str) -> Region {
    let nowhere = id("none", "none");
    let mut reader = Reader {
        region: Region::default(),
        vnet: nowhere.clone(),
        table: nowhere.clone(),
        cluster: nowhere.clone(),
        balancer: nowhere,
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((kind, rest)) = words.split_first() {
            reader.line(kind, rest);
        }
    }
    reader.region.generation = 1;
    reader.region
}

/// The id of a resource of the test's group.
pub(crate) fn id(kind: &str, name: &str) -> ArmId {
    ArmId::group("00000000-0000-0000-0000-000000000000", "lab")
        .sibling(&format!("{NETWORK}/{kind}"), name)
}

/// The id of a virtual network.
pub(crate) fn vnet_id(name: &str) -> ArmId {
    id("virtualNetworks", name)
}

/// The id of a machine.
pub(crate) fn machine_id(name: &str) -> ArmId {
    id("virtualMachines", name)
}

/// The id of a machine's NIC.
pub(crate) fn nic_id(machine: &str) -> ArmId {
    id("networkInterfaces", machine)
}

fn meta(id: ArmId) -> Meta {
    Meta {
        id,
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
        etag: Uuid::nil(),
        guid: Uuid::nil(),
        state: ProvisioningState::Succeeded,
        changed: 1,
        kept: BTreeMap::new(),
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap_or_else(|err| panic!("`{text}`: {err:?}"))
}

/// The word after `key`.
fn after<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == key)?;
    words.get(at + 1).copied()
}

impl Reader {
    fn line(&mut self, kind: &str, words: &[&str]) {
        match (kind, words) {
            ("vnet", [name, prefix]) => self.vnet(name, parse(prefix)),
            ("subnet", [name, prefix, rest @ ..]) => self.subnet(name, parse(prefix), rest),
            ("table", [name]) => {
                self.table = id("routeTables", name);
                let table = RouteTable {
                    meta: meta(self.table.clone()),
                    routes: BTreeMap::new(),
                    disable_bgp_route_propagation: false,
                };
                self.region.route_tables.insert(self.table.clone(), Arc::new(table));
            }
            ("route", [prefix, rest @ ..]) => self.route(parse(prefix), rest),
            ("vm", [name, addresses, rest @ ..]) => {
                self.machine(name, addresses, rest, Role::Vm);
            }
            ("cluster", [name, mode, api, rest @ ..]) => self.cluster(name, mode, parse(api), rest),
            ("node", [name, addresses, rest @ ..]) => self.node(name, addresses, rest),
            ("balancer" | "frontend" | "pool" | "probe" | "rule" | "outbound", _) => {
                self.balancer(kind, words);
            }
            _ => panic!("`{kind} {}` is not understood", words.join(" ")),
        }
    }

    fn vnet(&mut self, name: &str, prefix: Prefix4) {
        self.vnet = vnet_id(name);
        let n = u8::try_from(self.region.vnets.len()).expect("few virtual networks");
        let vnet = Vnet {
            peerings: BTreeMap::new(),
            meta: meta(self.vnet.clone()),
            prefixes: vec![prefix],
            subnets: BTreeMap::new(),
            default_outbound: Ipv4Addr::new(20, 0, 0, n + 1),
        };
        self.region.vnets.insert(self.vnet.clone(), Arc::new(vnet));
    }

    fn vnet_mut(&mut self) -> &mut Vnet {
        Arc::make_mut(self.region.vnets.get_mut(&self.vnet).expect("a virtual network above"))
    }

    fn subnet(&mut self, name: &str, prefix: Prefix4, words: &[&str]) {
        let subnet = Subnet {
            security_group: None,
            nat_gateway: None,
            default_outbound: true,
            name: Name::new(name),
            prefix,
            route_table: after(words, "table").map(|table| id("routeTables", table)),
            delegations: Vec::new(),
            association_links: Vec::new(),
            held: BTreeMap::new(),
            private_endpoint_network_policies: "Disabled".to_owned(),
            private_link_service_network_policies: "Enabled".to_owned(),
            state: ProvisioningState::Succeeded,
            changed: 1,
            kept: BTreeMap::new(),
        };
        self.vnet_mut().subnets.insert(Name::new(name), subnet);
    }

    fn subnet_id(&self, address: Ipv4Addr) -> ArmId {
        let vnet = &self.region.vnets[&self.vnet];
        let subnet = vnet.subnets.values().find(|subnet| subnet.prefix.contains(address));
        let name = &subnet.unwrap_or_else(|| panic!("no subnet has {address}")).name;
        self.vnet.child("subnets", name.as_str())
    }

    fn route(&mut self, prefix: Prefix4, words: &[&str]) {
        let next_hop = match words {
            ["via", address] => NextHop::VirtualAppliance(parse(address)),
            ["local"] => NextHop::VnetLocal,
            ["internet"] => NextHop::Internet,
            ["none"] => NextHop::None,
            _ => panic!("route {prefix} {}", words.join(" ")),
        };
        let table = self.region.route_tables.get_mut(&self.table).expect("a table above");
        let name = Name::new(&prefix.to_string().replace(['.', '/'], "-"));
        Arc::make_mut(table).routes.insert(name.clone(), Route { name, prefix, next_hop });
    }

    fn machine(&mut self, name: &str, addresses: &str, words: &[&str], role: Role) {
        let nic = nic_id(name);
        let configs: Vec<IpConfiguration> = addresses
            .split(',')
            .enumerate()
            .map(|(n, address)| {
                let address = parse(address);
                let subnet = self.subnet_id(address);
                let name = format!("ipconfig{}", n + 1);
                IpConfiguration {
                    name,
                    subnet,
                    public_ip: None,
                    application_groups: Vec::new(),
                    address,
                    allocation: Allocation::Static,
                }
            })
            .collect();
        let primary = configs[0].address.octets();
        let vnet = u8::try_from(self.region.vnets.len()).expect("few virtual networks");
        let mac = Mac([0x00, 0x0d, 0x3a, vnet, primary[2], primary[3]]);
        self.region.nics.insert(
            nic.clone(),
            Arc::new(Nic {
                security_group: None,
                meta: meta(nic.clone()),
                mac,
                ip_forwarding: words.contains(&"forwards"),
                configs,
                machine: Some(machine_id(name)),
            }),
        );
        let machine =
            Machine { meta: meta(machine_id(name)), hostname: name.to_owned(), nic, role };
        self.region.machines.insert(machine_id(name), Arc::new(machine));
    }

    fn cluster(&mut self, name: &str, mode: &str, api_address: Ipv4Addr, words: &[&str]) {
        self.cluster = id("managedClusters", name);
        let cluster = Cluster {
            outbound_profile: vnet::model::OutboundProfile::default(),
            security_group: None,
            meta: meta(self.cluster.clone()),
            created: Timestamp(0),
            version: "1.36.3".to_owned(),
            dns_prefix: name.to_owned(),
            fqdn: format!("{name}.hcp.eastus.azmk8s.io"),
            api_address,
            node_group: ArmId::group("00000000-0000-0000-0000-000000000000", "MC"),
            hash: "00000000".to_owned(),
            principal: Uuid::nil(),
            mode: match mode {
                "kubenet" => NetworkMode::Kubenet,
                "azure" => NetworkMode::Azure,
                "overlay" => NetworkMode::Overlay,
                "none" => NetworkMode::None,
                _ => panic!("mode {mode}"),
            },
            pod_cidr: after(words, "pods").map(parse),
            service_cidr: parse("10.0.0.0/16"),
            dns_service_ip: Ipv4Addr::new(10, 0, 0, 10),
            outbound: match after(words, "outbound") {
                None | Some("lb") => OutboundType::LoadBalancer,
                Some("udr") => OutboundType::UserDefinedRouting,
                Some("none") => OutboundType::None,
                Some(other) => panic!("outbound {other}"),
            },
            vnet: self.vnet.clone(),
            route_table: None,
            pools: BTreeMap::new(),
        };
        self.region.clusters.insert(self.cluster.clone(), Arc::new(cluster));
    }

    fn node(&mut self, name: &str, addresses: &str, words: &[&str]) {
        let role = NodeRole {
            cluster: self.cluster.clone(),
            pool: Name::new("pool"),
            instance: 0,
            pod_range: after(words, "range").map(parse),
            phase: NodePhase::Ready,
            image: None,
            step: vnet::model::UpgradeStep::Idle,
            is_surge: false,
        };
        self.machine(name, addresses, words, Role::Node(role));
        if let Some((first, last)) = after(words, "batch").and_then(|word| word.split_once('-')) {
            let (first, last): (Ipv4Addr, Ipv4Addr) = (parse(first), parse(last));
            for address in u32::from(first)..=u32::from(last) {
                let address = Ipv4Addr::from(address);
                let holder = Holder::PodBatch { node: machine_id(name) };
                let subnets = &mut self.vnet_mut().subnets;
                let subnet = subnets.values_mut().find(|subnet| subnet.prefix.contains(address));
                subnet.expect("a pod subnet").held.insert(address, holder);
            }
        }
    }

    fn balancer(&mut self, kind: &str, words: &[&str]) {
        if let ("balancer", [name]) = (kind, words) {
            self.balancer = id("loadBalancers", name);
            let balancer = LoadBalancer {
                inbound_rules: BTreeMap::new(),
                meta: meta(self.balancer.clone()),
                sku: "Standard".to_owned(),
                frontends: BTreeMap::new(),
                pools: BTreeMap::new(),
                probes: BTreeMap::new(),
                rules: BTreeMap::new(),
                outbound_rules: BTreeMap::new(),
            };
            self.region.balancers.insert(self.balancer.clone(), Arc::new(balancer));
            return;
        }
        let frontend = (kind == "frontend").then(|| self.frontend(words));
        let balancer = self.region.balancers.get_mut(&self.balancer).expect("a balancer above");
        let balancer = Arc::make_mut(balancer);
        match (kind, words) {
            ("frontend", [name, ..]) => {
                balancer.frontends.insert(Name::new(name), frontend.expect("made above"));
            }
            ("pool", [name, members @ ..]) => {
                let members = members.iter().map(|member| nic_id(member)).collect();
                balancer.pools.insert(Name::new(name), BackendPool { members });
            }
            ("probe", [name, protocol, port]) => {
                let probe = Probe {
                    protocol: match *protocol {
                        "tcp" => ProbeProtocol::Tcp,
                        _ => ProbeProtocol::Http,
                    },
                    port: parse(port),
                    path: "/".to_owned(),
                    interval_seconds: 5,
                    threshold: 2,
                };
                balancer.probes.insert(Name::new(name), probe);
            }
            ("rule", [frontend, pool, protocol, port, rest @ ..]) => {
                let rule = rule(frontend, pool, protocol, parse(port), rest);
                balancer.rules.insert(Name::new(&format!("{frontend}-{protocol}-{port}")), rule);
            }
            ("outbound", [frontend, pool]) => {
                let rule = OutboundRule {
                    frontends: vec![Name::new(frontend)],
                    pool: Name::new(pool),
                    protocol: Transport::All,
                    allocated_ports: 0,
                    idle_timeout_minutes: 4,
                    enable_tcp_reset: true,
                };
                balancer.outbound_rules.insert(Name::new("outbound"), rule);
            }
            _ => panic!("`{kind} {}` is not understood", words.join(" ")),
        }
    }

    fn frontend(&mut self, words: &[&str]) -> Frontend {
        match words {
            [name, "public", address] => {
                let public_ip = id("publicIPAddresses", name);
                let ip = PublicIp {
                    prefix: None,
                    meta: meta(public_ip.clone()),
                    address: parse(address),
                    allocation: Allocation::Static,
                    sku: "Standard".to_owned(),
                    used_by: None,
                };
                self.region.public_ips.insert(public_ip.clone(), Arc::new(ip));
                Frontend::Public { public_ip }
            }
            [_, address] => {
                let address = parse(address);
                let subnet = self.subnet_id(address);
                Frontend::Internal { subnet, address, allocation: Allocation::Static }
            }
            _ => panic!("frontend {}", words.join(" ")),
        }
    }
}

fn rule(frontend: &str, pool: &str, protocol: &str, port: u16, words: &[&str]) -> BalancingRule {
    let to = after(words, "to").map(parse);
    BalancingRule {
        frontend: Name::new(frontend),
        pool: Name::new(pool),
        probe: after(words, "probe").map(Name::new),
        protocol: match protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => Transport::All,
        },
        frontend_port: port,
        backend_port: to.unwrap_or(port),
        floating_ip: to.is_none(),
        source_ip_affinity: words.contains(&"by-source"),
        idle_timeout_minutes: 4,
        enable_tcp_reset: true,
        disable_outbound_snat: false,
    }
}

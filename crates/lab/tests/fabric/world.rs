//! Regions from a few lines of text, for tests of the fabric. A line per thing; a thing belongs to the
//! last virtual network, table, cluster or balancer above it:
//!
//! ```text
//! vnet NAME PREFIX[,PREFIX…]
//! peer VNET VNET [forwarded] [closed] [initiated]      one side, of the first
//! nsg NAME
//! in|out PRIORITY allow|deny PROTOCOL SOURCES PORTS > DESTINATIONS PORTS
//! gateway NAME ADDRESS|PREFIX[,…]
//! subnet NAME PREFIX[,PREFIX] [table TABLE] [nsg NSG] [nat GATEWAY] [private]
//! table NAME
//! route PREFIX via ADDRESS | local | internet | none
//! vm NAME ADDRESS[,ADDRESS…] [forwards] [nsg NSG] [public ADDRESS[,ADDRESS]] [asg NAME]
//! cluster NAME kubenet|azure|overlay|none API-ADDRESS [pods PREFIX] [outbound lb|nat|udr|none|block]
//! node NAME ADDRESS[,ADDRESS…] [range PREFIX] [batch ADDRESS-ADDRESS] [forwards] [nsg NSG]
//! balancer NAME
//! frontend NAME ADDRESS | public ADDRESS | prefix PREFIX
//! pool NAME MACHINE…
//! probe NAME tcp|http PORT
//! rule FRONTEND POOL tcp|udp|all PORT [to PORT] [probe NAME] [by-source|by-source-and-protocol] [no-snat]
//! inbound FRONTEND tcp|udp PORT to PORT of MACHINE
//! inbound FRONTEND tcp|udp FIRST-LAST to PORT in POOL
//! outbound FRONTEND[,FRONTEND…] POOL [ports NUMBER]
//! ```
//!
//! A front end's family is its address's, a pool's that of the first front end that a rule sends to it. The public
//! addresses of a machine belong to the first one of its own of the same family; `basic-ADDRESS` is one of that SKU.
//!
//! A rule without `to` has floating IP. Sources and destinations are `*`, or prefixes, tags and `asg:NAME` with
//! commas between them; a security rule is named after its direction and number, `in-100`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use uuid::Uuid;
use vnet::{
    addr::{Family, Mac, Prefix},
    model::{
        Access, Addresses, Allocation, BackendPool, BalancingRule, Cluster, Destination, Direction,
        Distribution, Frontend, Holder, InboundNatRule, InboundTarget, IpConfiguration,
        LoadBalancer, Machine, Meta, NatGateway, NetworkMode, NextHop, Nic, NodePhase, NodeRole,
        OutboundRule, OutboundType, Peering, PeeringState, Peers, PortRange, Ports, Probe,
        ProbeProtocol, ProvisioningState, PublicIp, PublicIpPrefix, PublicIpSettings, Role, Route,
        RouteTable, RuleProtocol, SecurityGroup, SecurityRule, Subnet, Timestamp, Transport, Vnet,
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
    group: ArmId,
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
        group: nowhere.clone(),
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
            ("vnet", [name, prefixes]) => self.vnet(name, prefixes),
            ("peer", [from, to, rest @ ..]) => self.peer(from, to, rest),
            ("gateway", [name, outside]) => self.gateway(name, outside),
            ("nsg", [name]) => {
                self.group = id("networkSecurityGroups", name);
                let group =
                    SecurityGroup { meta: meta(self.group.clone()), rules: BTreeMap::new() };
                self.region.security_groups.insert(self.group.clone(), Arc::new(group));
            }
            ("in" | "out", rest) => {
                let group = self.region.security_groups.get_mut(&self.group);
                let rule = security_rule(kind, rest);
                let rules = &mut Arc::make_mut(group.expect("a group above")).rules;
                rules.insert(rule.name.clone(), rule);
            }
            ("subnet", [name, prefixes, rest @ ..]) => self.subnet(name, prefixes, rest),
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
            ("balancer" | "frontend" | "pool" | "probe" | "rule" | "inbound" | "outbound", _) => {
                self.balancer(kind, words);
            }
            _ => panic!("`{kind} {}` is not understood", words.join(" ")),
        }
    }

    fn vnet(&mut self, name: &str, prefixes: &str) {
        self.vnet = vnet_id(name);
        let n = u8::try_from(self.region.vnets.len()).expect("few virtual networks");
        let vnet = Vnet {
            peerings: BTreeMap::new(),
            meta: meta(self.vnet.clone()),
            prefixes: prefixes.split(',').map(parse).collect(),
            subnets: BTreeMap::new(),
            default_outbound: Ipv4Addr::new(20, 0, 0, n + 1),
        };
        self.region.vnets.insert(self.vnet.clone(), Arc::new(vnet));
    }

    fn peer(&mut self, from: &str, to: &str, words: &[&str]) {
        let remote = vnet_id(to);
        let remote_prefixes = self.region.vnets[&remote].prefixes.clone();
        let peering = Peering {
            name: Name::new(to),
            remote,
            remote_prefixes,
            allow_access: !words.contains(&"closed"),
            allow_forwarded: words.contains(&"forwarded"),
            allow_gateway_transit: false,
            use_remote_gateways: false,
            peering_state: if words.contains(&"initiated") {
                PeeringState::Initiated
            } else {
                PeeringState::Connected
            },
            state: ProvisioningState::Succeeded,
            changed: 1,
            kept: BTreeMap::new(),
        };
        let vnet = self.region.vnets.get_mut(&vnet_id(from)).expect("a virtual network above");
        Arc::make_mut(vnet).peerings.insert(peering.name.clone(), peering);
    }

    fn gateway(&mut self, name: &str, outside: &str) {
        let mut gateway = NatGateway {
            meta: meta(id("natGateways", name)),
            sku: "Standard".to_owned(),
            public_ips: Vec::new(),
            public_ip_prefixes: Vec::new(),
            idle_timeout_minutes: 4,
        };
        for text in outside.split(',') {
            if text.contains('/') {
                gateway.public_ip_prefixes.push(self.public_ip_prefix(text));
            } else {
                gateway.public_ips.push(self.public_ip(text, text));
            }
        }
        self.region.nat_gateways.insert(gateway.meta.id.clone(), Arc::new(gateway));
    }

    fn public_ip(&mut self, name: &str, address: &str) -> ArmId {
        let public_ip = id("publicIPAddresses", name);
        let (sku, address) = match address.strip_prefix("basic-") {
            Some(address) => ("Basic", address),
            None => ("Standard", address),
        };
        let ip = PublicIp {
            prefix: None,
            meta: meta(public_ip.clone()),
            address: parse(address),
            allocation: Allocation::Static,
            sku: sku.to_owned(),
            used_by: None,
            settings: PublicIpSettings::default(),
        };
        self.region.public_ips.insert(public_ip.clone(), Arc::new(ip));
        public_ip
    }

    fn public_ip_prefix(&mut self, prefix: &str) -> ArmId {
        let id = id("publicIPPrefixes", &prefix.replace(['/', ':'], "-"));
        let prefix = PublicIpPrefix {
            meta: meta(id.clone()),
            prefix: parse(prefix),
            sku: "Standard".to_owned(),
            used_by: None,
        };
        self.region.public_ip_prefixes.insert(id.clone(), Arc::new(prefix));
        id
    }

    fn vnet_mut(&mut self) -> &mut Vnet {
        Arc::make_mut(self.region.vnets.get_mut(&self.vnet).expect("a virtual network above"))
    }

    fn subnet(&mut self, name: &str, prefixes: &str, words: &[&str]) {
        let (prefix, prefix6) = match prefixes.split_once(',') {
            Some((v4, v6)) => (parse(v4), Some(parse(v6))),
            None => (parse(prefixes), None),
        };
        let subnet = Subnet {
            security_group: after(words, "nsg").map(|nsg| id("networkSecurityGroups", nsg)),
            nat_gateway: after(words, "nat").map(|gateway| id("natGateways", gateway)),
            default_outbound: !words.contains(&"private"),
            name: Name::new(name),
            prefix,
            prefix6,
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

    fn subnet_id(&self, address: IpAddr) -> ArmId {
        let vnet = &self.region.vnets[&self.vnet];
        let subnet = vnet.subnet_of(address);
        let name = &subnet.unwrap_or_else(|| panic!("no subnet has {address}")).name;
        self.vnet.child("subnets", name.as_str())
    }

    fn route(&mut self, prefix: Destination, words: &[&str]) {
        let next_hop = match words {
            ["via", address] => NextHop::VirtualAppliance(parse(address)),
            ["local"] => NextHop::VnetLocal,
            ["internet"] => NextHop::Internet,
            ["none"] => NextHop::None,
            _ => panic!("route {prefix} {}", words.join(" ")),
        };
        let table = self.region.route_tables.get_mut(&self.table).expect("a table above");
        let name = Name::new(&prefix.to_string().replace(['.', ':', '/'], "-"));
        Arc::make_mut(table).routes.insert(name.clone(), Route { name, prefix, next_hop });
    }

    fn machine(&mut self, name: &str, addresses: &str, words: &[&str], role: Role) {
        let nic = nic_id(name);
        let public = after(words, "public").into_iter().flat_map(|it| it.split(','));
        let public: Vec<(Family, ArmId)> = public
            .map(|address| {
                let family = Family::of(parse(address.trim_start_matches("basic-")));
                (family, self.public_ip(&format!("{name}-{}", address.replace(':', "-")), address))
            })
            .collect();
        let mut families = BTreeSet::new();
        let groups = after(words, "asg").map(|name| id("applicationSecurityGroups", name));
        let configs: Vec<IpConfiguration> = addresses
            .split(',')
            .enumerate()
            .map(|(n, address)| {
                let address: IpAddr = parse(address);
                let subnet = self.subnet_id(address);
                let family = Family::of(address);
                let is_first = families.insert(family);
                let own = public.iter().find(|(its, _)| *its == family && is_first);
                let name = format!("ipconfig{}", n + 1);
                IpConfiguration {
                    name,
                    subnet,
                    public_ip: own.map(|(_, id)| id.clone()),
                    application_groups: groups.iter().cloned().collect(),
                    address,
                    allocation: Allocation::Static,
                }
            })
            .collect();
        let primary = Family::v4(configs[0].address).expect("a primary address of IPv4").octets();
        let vnet = u8::try_from(self.region.vnets.len()).expect("few virtual networks");
        let mac = Mac([0x00, 0x0d, 0x3a, vnet, primary[2], primary[3]]);
        self.region.nics.insert(
            nic.clone(),
            Arc::new(Nic {
                security_group: after(words, "nsg").map(|nsg| id("networkSecurityGroups", nsg)),
                meta: meta(nic.clone()),
                mac,
                ip_forwarding: words.contains(&"forwards"),
                configs,
                machine: Some(machine_id(name)),
            }),
        );
        let machine = Machine {
            meta: meta(machine_id(name)),
            hostname: name.to_owned(),
            nic,
            dns_servers: Vec::new(),
            role,
        };
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
            links: None,
            dataplane: vnet::model::Dataplane::Azure,
            policy: None,
            advanced_networking: None,
            pod_cidr: after(words, "pods").map(parse),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: parse("10.0.0.0/16"),
            dns_service_ip: Ipv4Addr::new(10, 0, 0, 10),
            outbound: match after(words, "outbound") {
                None | Some("lb") => OutboundType::LoadBalancer,
                Some("nat") => OutboundType::UserAssignedNatGateway,
                Some("block") => OutboundType::Block,
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
            pod_range6: None,
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
                subnet.expect("a pod subnet").held.insert(address.into(), holder);
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
                let family = Family::V4;
                balancer.pools.insert(Name::new(name), BackendPool { members, family });
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
                let family = match &balancer.frontends[&Name::new(frontend)] {
                    Frontend::Internal { address, .. } => Family::of(*address),
                    Frontend::Public { public_ip } => {
                        Family::of(self.region.public_ips[public_ip].address)
                    }
                    Frontend::Prefix { .. } => panic!("a rule of a prefix"),
                };
                if let Some(pool) = balancer.pools.get_mut(&Name::new(pool)) {
                    pool.family = family;
                }
                let rule = rule(frontend, pool, protocol, parse(port), rest);
                balancer.rules.insert(Name::new(&format!("{frontend}-{protocol}-{port}")), rule);
            }
            ("inbound", [frontend, protocol, port, "to", backend_port, how, who]) => {
                let target = match *how {
                    "of" => InboundTarget::Configuration {
                        frontend_port: parse(port),
                        member: Some((nic_id(who), "ipconfig1".to_owned())),
                    },
                    _ => InboundTarget::Pool { pool: Name::new(who), frontend_ports: ports(port) },
                };
                let rule = InboundNatRule {
                    frontend: Name::new(frontend),
                    protocol: transport(protocol),
                    target,
                    backend_port: parse(backend_port),
                    floating_ip: false,
                    idle_timeout_minutes: 4,
                    enable_tcp_reset: true,
                };
                let name = Name::new(&format!("{frontend}-{protocol}-{port}"));
                balancer.inbound_rules.insert(name, rule);
            }
            ("outbound", [frontends, pool, rest @ ..]) => {
                let rule = OutboundRule {
                    frontends: frontends.split(',').map(Name::new).collect(),
                    pool: Name::new(pool),
                    protocol: after(rest, "for").map_or(Transport::All, transport),
                    allocated_ports: after(rest, "ports").map_or(0, parse),
                    idle_timeout_minutes: 4,
                    enable_tcp_reset: true,
                };
                let name = Name::new(&format!("outbound-{frontends}"));
                balancer.outbound_rules.insert(name, rule);
            }
            _ => panic!("`{kind} {}` is not understood", words.join(" ")),
        }
    }

    fn frontend(&mut self, words: &[&str]) -> Frontend {
        match words {
            [_, "prefix", prefix] => {
                Frontend::Prefix { public_ip_prefix: self.public_ip_prefix(prefix) }
            }
            [name, "public", address] => {
                Frontend::Public { public_ip: self.public_ip(name, address) }
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
    let distribution = if words.contains(&"by-source") {
        Distribution::SourceIp
    } else if words.contains(&"by-source-and-protocol") {
        Distribution::SourceIpProtocol
    } else {
        Distribution::Default
    };
    BalancingRule {
        frontend: Name::new(frontend),
        pool: Name::new(pool),
        probe: after(words, "probe").map(Name::new),
        protocol: transport(protocol),
        frontend_port: port,
        backend_port: to.unwrap_or(port),
        floating_ip: to.is_none(),
        distribution,
        idle_timeout_minutes: 4,
        enable_tcp_reset: true,
        disable_outbound_snat: words.contains(&"no-snat"),
    }
}

fn transport(text: &str) -> Transport {
    match text {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => Transport::All,
    }
}

/// `*`, a port, or `FIRST-LAST`.
fn ports(text: &str) -> PortRange {
    match text.split_once('-') {
        None if text == "*" => PortRange::ALL,
        None => PortRange::one(parse(text)),
        Some((first, last)) => PortRange { first: parse(first), last: parse(last) },
    }
}

fn security_rule(direction: &str, words: &[&str]) -> SecurityRule {
    let [priority, access, protocol, source, source_ports, ">", destination, destination_ports] =
        words
    else {
        panic!("rule {}", words.join(" "))
    };
    let peers = |text: &str| {
        let groups: Vec<ArmId> = text
            .split(',')
            .filter_map(|one| one.strip_prefix("asg:"))
            .map(|name| id("applicationSecurityGroups", name))
            .collect();
        if !groups.is_empty() {
            return Peers::Groups(groups);
        }
        let one = |text: &str| match text {
            "*" => Addresses::Any,
            _ if text.contains('/') => Addresses::Prefix(parse(text)),
            _ if text.starts_with(|c: char| c.is_ascii_digit()) || text.contains(':') => {
                Addresses::Prefix(Prefix::host(parse(text)))
            }
            tag => Addresses::Tag(tag.to_owned()),
        };
        Peers::Addresses { any_of: text.split(',').map(one).collect(), as_list: true }
    };
    let ports = |text: &str| Ports { any_of: text.split(',').map(ports).collect(), as_list: true };
    SecurityRule {
        name: Name::new(&format!("{direction}-{priority}")),
        direction: if direction == "in" { Direction::Inbound } else { Direction::Outbound },
        priority: parse(priority),
        access: if *access == "allow" { Access::Allow } else { Access::Deny },
        protocol: match *protocol {
            "tcp" => RuleProtocol::Tcp,
            "udp" => RuleProtocol::Udp,
            "icmp" => RuleProtocol::Icmp,
            _ => RuleProtocol::Any,
        },
        source: peers(source),
        source_ports: ports(source_ports),
        destination: peers(destination),
        destination_ports: ports(destination_ports),
        kept: BTreeMap::new(),
    }
}

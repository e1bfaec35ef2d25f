//! Short ways to say commands, and a region that asserts its laws after each.

use std::{collections::BTreeMap, fmt::Debug, str::FromStr};

use vnet::{
    addr::Family,
    command::{
        Accepted, Command, Common, PutCluster, PutFrontend, PutIpConfiguration, PutLoadBalancer,
        PutNatGateway, PutPeering, PutPool, PutSubnet,
    },
    fault::Fault,
    model::{
        Access, Addresses, Allocation, Delegation, Direction, NetworkMode, NodePhase, Peers,
        PortRange, Ports, ProvisioningState, PublicIpSettings, RuleProtocol, SecurityRule,
        Timestamp, UpgradeStep,
    },
    name::ArmId,
    region::Region,
};

/// The article's subscription.
pub(crate) const SUBSCRIPTION: &str = "16e85b36-5c9d-48cc-a45d-c672a4393c36";

/// The id of a group.
pub(crate) fn group(name: &str) -> ArmId {
    ArmId::group(SUBSCRIPTION, name)
}

/// The id of a resource in the article's group: `vnet v`, `subnet v/s`, `cluster c`, `pool c/p`, ….
pub(crate) fn id(text: &str) -> ArmId {
    let (kind, path) = text.split_once(' ').unwrap();
    let (name, child) = path.split_once('/').map_or((path, None), |(a, b)| (a, Some(b)));
    let (kind, children) = match kind {
        "vnet" => (vnet::kind::VNET, ""),
        "subnet" => (vnet::kind::VNET, "subnets"),
        "table" => (vnet::kind::ROUTE_TABLE, ""),
        "route" => (vnet::kind::ROUTE_TABLE, "routes"),
        "nsg" => (vnet::kind::SECURITY_GROUP, ""),
        "rule" => (vnet::kind::SECURITY_GROUP, "securityRules"),
        "asg" => (vnet::kind::APPLICATION_GROUP, ""),
        "peering" => (vnet::kind::VNET, "virtualNetworkPeerings"),
        "nat" => (vnet::kind::NAT_GATEWAY, ""),
        "prefix" => (vnet::kind::PUBLIC_IP_PREFIX, ""),
        "pip" => (vnet::kind::PUBLIC_IP, ""),
        "nic" => (vnet::kind::NIC, ""),
        "vm" => (vnet::kind::VM, ""),
        "lb" => (vnet::kind::LOAD_BALANCER, ""),
        "cluster" => (vnet::kind::CLUSTER, ""),
        "pool" => (vnet::kind::CLUSTER, "agentPools"),
        _ => panic!("unknown kind in `{text}`"),
    };
    let resource = group("aksntwdemo").sibling(kind, name);
    child.map_or(resource.clone(), |child| resource.child(children, child))
}

/// A prefix.
pub(crate) fn prefix<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// An address.
pub(crate) fn ip<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Common fields and nothing else.
pub(crate) fn common(id: ArmId) -> Common {
    Common { id, location: None, tags: None, kept: BTreeMap::new() }
}

/// A subnet with its prefix and nothing else.
pub(crate) fn subnet(name: &str, range: &str) -> PutSubnet {
    PutSubnet {
        security_group: None,
        nat_gateway: None,
        default_outbound: None,
        name: name.into(),
        prefix: prefix(range),
        prefix6: None,
        route_table: None,
        delegations: Vec::new(),
        private_endpoint_network_policies: None,
        private_link_service_network_policies: None,
        kept: BTreeMap::new(),
    }
}

/// A delegation.
pub(crate) fn delegation(name: &str, service: &str) -> Delegation {
    Delegation { name: name.into(), service: service.to_owned(), actions: Vec::new() }
}

/// A pool with a name, a count and nothing else.
pub(crate) fn pool(name: &str, count: u32) -> PutPool {
    PutPool { count: Some(count), ..PutPool::new(name.into()) }
}

/// A pool in a subnet.
pub(crate) fn pool_in(name: &str, count: u32, subnet: &str) -> PutPool {
    PutPool { subnet: Some(id(&format!("subnet {subnet}"))), ..pool(name, count) }
}

/// A cluster with a mode, pools and nothing else.
pub(crate) fn cluster(mode: NetworkMode, pools: Vec<PutPool>) -> PutCluster {
    PutCluster { mode: Some(mode), pools, ..PutCluster::default() }
}

/// A load balancer with one internal front end and nothing else.
pub(crate) fn internal_balancer(subnet: &str, address: Option<&str>) -> PutLoadBalancer {
    let frontend = PutFrontend::Internal {
        subnet: id(&format!("subnet {subnet}")),
        address: address.map(ip),
        family: Family::V4,
    };
    PutLoadBalancer {
        inbound_rules: Vec::new(),
        sku: "Standard".to_owned(),
        frontends: vec![("fe".into(), frontend)],
        pools: Vec::new(),
        probes: Vec::new(),
        rules: Vec::new(),
        outbound_rules: Vec::new(),
    }
}

/// A region under test, and a clock that ticks once a command.
#[derive(Clone, Default)]
pub(crate) struct Lab {
    pub(crate) region: Region,
    now: i64,
}

impl Lab {
    /// A region with the article's group.
    pub(crate) fn new() -> Self {
        let mut lab = Self::default();
        lab.group("aksntwdemo");
        lab
    }

    /// Applies a command and asserts the laws.
    pub(crate) fn apply(&mut self, command: Command) -> Result<Accepted, Fault> {
        self.now += 1_000;
        let before = self.region.clone();
        let result = self.region.apply(command, Timestamp(self.now));
        if result.is_err() {
            assert_eq!(self.region, before, "a refused command changes nothing");
        }
        assert_eq!(self.region.findings(), Vec::<String>::new());
        result
    }

    /// Applies a command that must be accepted.
    pub(crate) fn must(&mut self, command: Command) -> Accepted {
        self.apply(command).unwrap_or_else(|fault| panic!("refused: {fault}"))
    }

    /// Applies a command that must be refused; the answer is the refusal's code and target.
    pub(crate) fn refused(&mut self, command: Command) -> Fault {
        self.apply(command).expect_err("the command must be refused")
    }

    pub(crate) fn group(&mut self, name: &str) {
        let (location, tags) = ("eastus".to_owned(), BTreeMap::new());
        self.must(Command::PutGroup { id: group(name), location, tags });
    }

    pub(crate) fn vnet(&mut self, name: &str, prefixes: &[&str]) {
        self.must(put_vnet(name, prefixes));
    }

    pub(crate) fn subnet(&mut self, vnet: &str, name: &str, range: &str) {
        self.must(put_subnet(vnet, subnet(name, range)));
    }

    pub(crate) fn nic(
        &mut self,
        name: &str,
        subnet: &str,
        address: Option<&str>,
    ) -> Result<Accepted, Fault> {
        self.apply(put_nic(name, &[("ipconfig1", subnet, address)]))
    }

    /// The address of a NIC.
    pub(crate) fn address(&self, nic: &str) -> String {
        self.region.nics[&id(&format!("nic {nic}"))].address().unwrap().to_string()
    }

    pub(crate) fn cluster(&mut self, name: &str, put: PutCluster) -> Result<Accepted, Fault> {
        self.apply(put_cluster(name, put))
    }

    pub(crate) fn delete(&mut self, text: &str) -> Accepted {
        self.must(Command::Delete { id: id(text) })
    }

    /// The fabric makes everything real.
    pub(crate) fn fabric(&mut self) {
        let generation = self.region.generation;
        self.must(Command::FabricReal { generation });
    }

    /// All nodes of a cluster come up, and the cluster is what was asked for.
    pub(crate) fn up(&mut self, cluster: &str, phase: NodePhase) {
        self.fabric();
        let cluster = id(&format!("cluster {cluster}"));
        let nodes: Vec<ArmId> =
            self.region.nodes_of(&cluster).into_iter().map(|node| node.meta.id.clone()).collect();
        for machine in nodes {
            self.must(Command::NodeReached { machine, phase });
        }
        let generation = self.region.generation;
        self.must(Command::ClusterReal { cluster, generation });
    }

    /// Runs an upgrade to its end.
    #[track_caller]
    pub(crate) fn finish_upgrade(&mut self, cluster: &str) {
        for _ in 0..12 {
            self.upgrade_step(cluster, NodePhase::Ready);
        }
        self.up(cluster, NodePhase::Ready);
        let id = id(&format!("cluster {cluster}"));
        assert!(!self.region.is_upgrading(&id));
        assert_eq!(self.region.clusters[&id].meta.state, ProvisioningState::Succeeded);
    }

    /// One step of an upgrade as the clusters loop reports it: every node that is drained is empty, every node that is
    /// stopped is gone, every other one is up.
    pub(crate) fn upgrade_step(&mut self, cluster: &str, phase: NodePhase) {
        let cluster = id(&format!("cluster {cluster}"));
        let region = self.region.clone();
        for node in region.nodes_of(&cluster) {
            if node.meta.state == ProvisioningState::Deleting {
                continue;
            }
            let machine = node.meta.id.clone();
            match node.node().unwrap().step {
                UpgradeStep::Draining { .. } => self.must(Command::NodeDrained { machine }),
                UpgradeStep::Stopping => self.must(Command::NodeStopped { machine }),
                UpgradeStep::Idle | UpgradeStep::Starting => {
                    self.must(Command::NodeReached { machine, phase })
                }
            };
        }
        self.fabric();
    }

    /// Who holds addresses of a subnet, as a count.
    pub(crate) fn held(&self, subnet: &str) -> u64 {
        self.region.subnet_usage(&id(&format!("subnet {subnet}"))).unwrap().held
    }
}

pub(crate) fn put_vnet(name: &str, prefixes: &[&str]) -> Command {
    Command::PutVnet {
        common: common(id(&format!("vnet {name}"))),
        prefixes: prefixes.iter().map(|text| prefix(text)).collect(),
        subnets: None,
    }
}

pub(crate) fn put_subnet(vnet: &str, subnet: PutSubnet) -> Command {
    Command::PutSubnet { id: id(&format!("subnet {vnet}/{}", subnet.name)), subnet }
}

pub(crate) fn put_nic(name: &str, configs: &[(&str, &str, Option<&str>)]) -> Command {
    let config = |(name, subnet, address): &(&str, &str, Option<&str>)| PutIpConfiguration {
        public_ip: None,
        application_groups: Vec::new(),
        name: (*name).to_owned(),
        subnet: id(&format!("subnet {subnet}")),
        address: address.map(ip),
        family: Family::V4,
    };
    Command::PutNic {
        security_group: None,
        common: common(id(&format!("nic {name}"))),
        ip_forwarding: false,
        configs: configs.iter().map(config).collect(),
    }
}

pub(crate) fn put_cluster(name: &str, cluster: PutCluster) -> Command {
    Command::PutCluster { common: common(id(&format!("cluster {name}"))), cluster }
}

pub(crate) fn put_pool(cluster: &str, pool: PutPool) -> Command {
    Command::PutPool { id: id(&format!("pool {cluster}/{}", pool.name)), pool }
}

/// A security rule that allows anything inbound.
pub(crate) fn rule(name: &str, priority: u16) -> SecurityRule {
    let ports = || Ports { any_of: vec![PortRange::ALL], as_list: false };
    SecurityRule {
        name: name.into(),
        direction: Direction::Inbound,
        priority,
        access: Access::Allow,
        protocol: RuleProtocol::Any,
        source: peer(Addresses::Any),
        source_ports: ports(),
        destination: peer(Addresses::Any),
        destination_ports: ports(),
        kept: BTreeMap::new(),
    }
}

/// One side of a security rule, of one kind of addresses.
pub(crate) fn peer(addresses: Addresses) -> Peers {
    Peers::Addresses { any_of: vec![addresses], as_list: false }
}

/// One side of a security rule, of application security groups.
pub(crate) fn members(groups: &[&str]) -> Peers {
    Peers::Groups(groups.iter().map(|name| id(&format!("asg {name}"))).collect())
}

pub(crate) fn put_security_group(name: &str, rules: Option<Vec<SecurityRule>>) -> Command {
    Command::PutSecurityGroup { common: common(id(&format!("nsg {name}"))), rules }
}

pub(crate) fn put_rule(group: &str, rule: SecurityRule) -> Command {
    Command::PutSecurityRule { id: id(&format!("rule {group}/{}", rule.name)), rule }
}

pub(crate) fn put_application_group(name: &str) -> Command {
    Command::PutApplicationGroup { common: common(id(&format!("asg {name}"))) }
}

/// A NIC with one configuration, in groups.
pub(crate) fn put_nic_with(
    name: &str,
    subnet: &str,
    security_group: Option<&str>,
    application_groups: &[&str],
) -> Command {
    let mut command = put_nic(name, &[("ipconfig1", subnet, None)]);
    if let Command::PutNic { security_group: group, configs, .. } = &mut command {
        *group = security_group.map(|name| id(&format!("nsg {name}")));
        configs[0].application_groups =
            application_groups.iter().map(|name| id(&format!("asg {name}"))).collect();
    }
    command
}

/// One side of a peering, `v/p`, to another virtual network, with Azure's defaults.
pub(crate) fn put_peering(path: &str, remote: &str) -> Command {
    let (_, name) = path.split_once('/').unwrap();
    let peering = PutPeering {
        name: name.into(),
        remote: id(&format!("vnet {remote}")),
        allow_access: true,
        allow_forwarded: false,
        allow_gateway_transit: false,
        use_remote_gateways: false,
        sync: false,
        kept: BTreeMap::new(),
    };
    Command::PutPeering { id: id(&format!("peering {path}")), peering }
}

/// The same with the other's address space learned anew.
pub(crate) fn sync_peering(path: &str, remote: &str) -> Command {
    let Command::PutPeering { id, peering } = put_peering(path, remote) else { unreachable!() };
    Command::PutPeering { id, peering: PutPeering { sync: true, ..peering } }
}

/// A Standard public IP, of a prefix if one is named.
pub(crate) fn put_public_ip(name: &str, prefix: Option<&str>) -> Command {
    Command::PutPublicIp {
        settings: PublicIpSettings::default(),
        family: Family::V4,
        common: common(id(&format!("pip {name}"))),
        prefix: prefix.map(|prefix| id(&format!("prefix {prefix}"))),
        sku: "Standard".to_owned(),
        allocation: Allocation::Static,
    }
}

/// A public IP prefix.
pub(crate) fn put_prefix(name: &str, length: u8) -> Command {
    Command::PutPublicIpPrefix {
        family: Family::V4,
        common: common(id(&format!("prefix {name}"))),
        sku: "Standard".to_owned(),
        length,
    }
}

/// A NAT gateway with public IPs and prefixes.
pub(crate) fn put_nat(name: &str, public_ips: &[&str], prefixes: &[&str]) -> Command {
    let gateway = PutNatGateway {
        sku: "Standard".to_owned(),
        public_ips: public_ips.iter().map(|name| id(&format!("pip {name}"))).collect(),
        public_ip_prefixes: prefixes.iter().map(|name| id(&format!("prefix {name}"))).collect(),
        idle_timeout_minutes: None,
    };
    Command::PutNatGateway { common: common(id(&format!("nat {name}"))), gateway }
}

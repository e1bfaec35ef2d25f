//! A region as one virtual network sees it: which NIC is plugged in where and what it may say, which
//! clusters and load balancers act there. Not here: what the kernel is told (see the siblings).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::names;
use crate::{
    addr::{Mac, Prefix4},
    model::{
        Cluster, Frontend, Holder, LoadBalancer, Machine, NetworkMode, Nic, OutboundType,
        ProvisioningState, Role, RouteTable, Subnet, Vnet,
    },
    name::ArmId,
    region::Region,
};

/// One virtual network and what is in it.
pub(crate) struct View<'a> {
    pub(crate) vnet: &'a Vnet,
    /// Every NIC of a machine, by its primary address.
    pub(crate) ports: Vec<Port<'a>>,
    /// The clusters whose nodes are here.
    pub(crate) clusters: Vec<&'a Cluster>,
    /// The load balancers that act here.
    pub(crate) balancers: Vec<&'a LoadBalancer>,
    region: &'a Region,
}

/// A NIC of a machine.
pub(crate) struct Port<'a> {
    /// The link's name in the virtual network's namespace.
    pub(crate) link: String,
    pub(crate) nic: &'a Nic,
    pub(crate) machine: &'a Machine,
    /// The cluster, when the machine is a node.
    pub(crate) cluster: Option<&'a Cluster>,
    /// The NIC's primary address.
    pub(crate) primary: Ipv4Addr,
    /// Its other addresses: secondary IP configurations, and what a pod subnet gave to the node.
    pub(crate) others: Vec<Ipv4Addr>,
    /// The node's part of the pod range: kubenet and overlay.
    pub(crate) pod_range: Option<Prefix4>,
}

impl<'a> View<'a> {
    /// `None` when the virtual network is being deleted.
    pub(crate) fn new(region: &'a Region, vnet: &'a Vnet) -> Option<Self> {
        if vnet.meta.state == ProvisioningState::Deleting {
            return None;
        }
        let batches = batches(vnet);
        let mut ports: Vec<Port<'a>> = region
            .machines
            .values()
            .filter(|machine| is_there(machine))
            .filter_map(|machine| port(region, vnet, &batches, machine))
            .collect();
        ports.sort_by_key(|port| port.primary);
        let clusters =
            region.clusters.values().map(|it| &**it).filter(|it| it.vnet == vnet.meta.id).collect();
        let balancers = region
            .balancers
            .values()
            .map(|balancer| &**balancer)
            .filter(|balancer| balancer.meta.state != ProvisioningState::Deleting)
            .filter(|balancer| vnet_of(region, balancer).as_ref() == Some(&vnet.meta.id))
            .collect();
        Some(Self { vnet, ports, clusters, balancers, region })
    }

    /// The route table of a subnet.
    pub(crate) fn route_table(&self, subnet: &Subnet) -> Option<&'a RouteTable> {
        self.region.route_tables.get(subnet.route_table.as_ref()?).map(|table| &**table)
    }

    /// The subnet that an address is in.
    pub(crate) fn subnet_of(&self, address: Ipv4Addr) -> Option<&'a Subnet> {
        self.vnet.subnets.values().find(|subnet| subnet.prefix.contains(address))
    }

    /// The port of this NIC.
    pub(crate) fn port_of(&self, nic: &ArmId) -> Option<&Port<'a>> {
        self.ports.iter().find(|port| port.nic.meta.id == *nic)
    }

    /// The port that holds this address.
    pub(crate) fn holder(&self, address: Ipv4Addr) -> Option<&Port<'a>> {
        self.ports.iter().find(|port| port.primary == address || port.others.contains(&address))
    }

    /// The address of a front end, and whether it is a public one.
    pub(crate) fn frontend_address(&self, frontend: &Frontend) -> Option<Ipv4Addr> {
        match frontend {
            Frontend::Internal { address, .. } => Some(*address),
            Frontend::Public { public_ip } => {
                self.region.public_ips.get(public_ip).map(|ip| ip.address)
            }
        }
    }

    /// Every public address that leads into this virtual network.
    pub(crate) fn public_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let mut addresses = BTreeSet::from([self.vnet.default_outbound]);
        for balancer in &self.balancers {
            for frontend in balancer.frontends.values() {
                if matches!(frontend, Frontend::Public { .. }) {
                    addresses.extend(self.frontend_address(frontend));
                }
            }
        }
        addresses
    }

    /// The public address that a NIC's flows to the internet are seen with, if it may have any.
    ///
    /// An outbound rule of a load balancer comes first, then a public front end that does not refuse it.
    /// A member of a Standard load balancer without either has no way out, other VMs have Azure's default
    /// outbound access; nodes have it only until load balancer `kubernetes` knows them.
    pub(crate) fn outbound_address(&self, port: &Port<'_>) -> Option<Ipv4Addr> {
        let mut is_member = false;
        let mut by_rule = None;
        let mut by_frontend = None;
        for balancer in &self.balancers {
            let has = |pool| {
                let pool = balancer.pools.get(pool);
                pool.is_some_and(|pool| pool.members.contains(&port.nic.meta.id))
            };
            let public = |name| match balancer.frontends.get(name)? {
                Frontend::Internal { .. } => None,
                frontend @ Frontend::Public { .. } => self.frontend_address(frontend),
            };
            is_member |=
                balancer.sku.eq_ignore_ascii_case("Standard") && balancer.pools.keys().any(has);
            for rule in balancer.outbound_rules.values().filter(|rule| has(&rule.pool)) {
                by_rule = by_rule.or_else(|| rule.frontends.iter().find_map(public));
            }
            for rule in balancer.rules.values() {
                if has(&rule.pool) && !rule.disable_outbound_snat {
                    by_frontend = by_frontend.or_else(|| public(&rule.frontend));
                }
            }
        }
        let default = match port.cluster.map(|cluster| cluster.outbound) {
            None | Some(OutboundType::LoadBalancer) => Some(self.vnet.default_outbound),
            Some(
                OutboundType::ManagedNatGateway
                | OutboundType::UserAssignedNatGateway
                | OutboundType::UserDefinedRouting
                | OutboundType::None
                | OutboundType::Block,
            ) => None,
        };
        by_rule.or(by_frontend).or(if is_member { None } else { default })
    }
}

impl Port<'_> {
    /// Every address that is the NIC's own.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        std::iter::once(self.primary).chain(self.others.iter().copied())
    }

    /// Whether the node's pods are in a routing domain of their own.
    pub(crate) fn is_overlay(&self) -> bool {
        self.cluster.is_some_and(|cluster| cluster.mode == NetworkMode::Overlay)
    }
}

/// Whether a machine is to be on the fabric. A VM that is being deleted is not; a node stays until its
/// processes are gone and the region has forgotten it.
pub(crate) fn is_there(machine: &Machine) -> bool {
    match machine.role {
        Role::Vm => machine.meta.state != ProvisioningState::Deleting,
        Role::Node(_) => true,
    }
}

/// The virtual network that a load balancer acts in: that of a private front end, or of a member.
fn vnet_of(region: &Region, balancer: &LoadBalancer) -> Option<ArmId> {
    let by_frontend = balancer.frontends.values().find_map(|frontend| match frontend {
        Frontend::Internal { subnet, .. } => subnet.parent(),
        Frontend::Public { .. } => None,
    });
    by_frontend.or_else(|| {
        let mut members = balancer.pools.values().flat_map(|pool| &pool.members);
        members.find_map(|member| region.nics.get(member)?.vnet())
    })
}

/// The pods' addresses that each node was given, by the node's machine.
fn batches(vnet: &Vnet) -> BTreeMap<&ArmId, Vec<Ipv4Addr>> {
    let mut batches: BTreeMap<&ArmId, Vec<Ipv4Addr>> = BTreeMap::new();
    for (address, holder) in vnet.subnets.values().flat_map(|subnet| &subnet.held) {
        match holder {
            Holder::PodBatch { node } => batches.entry(node).or_default().push(*address),
            Holder::IpConfiguration { .. } | Holder::Frontend { .. } => {}
        }
    }
    batches
}

fn port<'a>(
    region: &'a Region,
    vnet: &Vnet,
    batches: &BTreeMap<&ArmId, Vec<Ipv4Addr>>,
    machine: &'a Machine,
) -> Option<Port<'a>> {
    let nic = region.nics.get(&machine.nic)?;
    if nic.vnet().as_ref() != Some(&vnet.meta.id) {
        return None;
    }
    let (cluster, pod_range) = match &machine.role {
        Role::Vm => (None, None),
        Role::Node(node) => {
            (region.clusters.get(&node.cluster).map(|cluster| &**cluster), node.pod_range)
        }
    };
    let mut others: Vec<Ipv4Addr> =
        nic.configs.iter().skip(1).map(|config| config.address).collect();
    others.extend(batches.get(&machine.meta.id).into_iter().flatten());
    Some(Port {
        link: names::port(&nic.meta.id),
        nic,
        machine,
        cluster,
        primary: nic.address()?,
        others,
        pod_range,
    })
}

/// An Ethernet address for an end that has none in the region, from the text that names it.
pub(crate) fn mac_for(text: &str) -> Mac {
    let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes());
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&hash.as_bytes()[..6]);
    // Locally administered, unicast.
    bytes[0] = 0x02;
    Mac(bytes)
}

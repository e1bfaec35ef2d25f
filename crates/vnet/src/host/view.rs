//! A region as one virtual network sees it: which NIC is plugged in where and what it may say, which
//! clusters and load balancers act there, which networks it is joined to. Not here: what the kernel is told
//! (see the siblings).
//!
//! Everything that is looked up for each NIC has an index: networks have a thousand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::names;
use crate::{
    addr::{Family, Mac, Prefix},
    effective,
    model::{
        Cluster, Frontend, Holder, LoadBalancer, Machine, NetworkMode, Nic, OverlayRanges, Peering,
        PeeringState, ProvisioningState, Role, SecurityGroup, Subnet, Vnet,
    },
    name::{ArmId, Name},
    region::Region,
    routes::{EffectiveRoute, Hop},
};

/// One virtual network and what is in it.
pub(crate) struct View<'a> {
    pub(crate) region: &'a Region,
    pub(crate) vnet: &'a Vnet,
    /// Every NIC of a machine, by its primary address.
    pub(crate) ports: Vec<Port<'a>>,
    /// The clusters whose nodes are here.
    pub(crate) clusters: Vec<&'a Cluster>,
    /// The load balancers that act here.
    pub(crate) balancers: Vec<&'a LoadBalancer>,
    /// The networks that this one is joined to.
    pub(crate) peers: Vec<Peer<'a>>,
    /// The addresses of private front ends.
    internal: BTreeSet<IpAddr>,
    by_nic: BTreeMap<&'a ArmId, usize>,
    by_address: BTreeMap<IpAddr, usize>,
    by_network: BTreeMap<IpAddr, &'a Subnet>,
    pools_of: BTreeMap<&'a ArmId, Vec<(&'a LoadBalancer, &'a Name)>>,
}

/// A NIC of a machine.
pub(crate) struct Port<'a> {
    /// The link's name in the virtual network's namespace.
    pub(crate) link: String,
    pub(crate) nic: &'a Nic,
    pub(crate) machine: &'a Machine,
    /// The cluster, when the machine is a node.
    pub(crate) cluster: Option<&'a Cluster>,
    /// The NIC's primary address: IPv4.
    pub(crate) primary: Ipv4Addr,
    /// Its other addresses, of either family: secondary IP configurations, and what a pod subnet gave to the node.
    pub(crate) others: Vec<IpAddr>,
    /// The node's parts of the pod ranges: kubenet and overlay.
    pub(crate) pod_ranges: Vec<Prefix>,
}

/// A network that flows pass to and from: both sides of the peering are there, and both allow it.
pub(crate) struct Peer<'a> {
    /// The link's name in the virtual network's namespace.
    pub(crate) link: String,
    /// This side.
    pub(crate) peering: &'a Peering,
    /// The other network.
    pub(crate) remote: &'a Vnet,
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
        let balancers: Vec<&LoadBalancer> = region
            .balancers
            .values()
            .map(|balancer| &**balancer)
            .filter(|balancer| balancer.meta.state != ProvisioningState::Deleting)
            .filter(|balancer| vnet_of(region, balancer).as_ref() == Some(&vnet.meta.id))
            .collect();
        let mut pools_of: BTreeMap<&ArmId, Vec<(&LoadBalancer, &Name)>> = BTreeMap::new();
        for balancer in &balancers {
            for (name, pool) in &balancer.pools {
                for member in &pool.members {
                    pools_of.entry(member).or_default().push((balancer, name));
                }
            }
        }
        let frontends = balancers.iter().flat_map(|balancer| balancer.frontends.values());
        let internal = frontends.filter_map(|frontend| match frontend {
            Frontend::Internal { address, .. } => Some(*address),
            Frontend::Public { .. } | Frontend::Prefix { .. } => None,
        });
        let internal = internal.collect();
        let mut by_address = BTreeMap::new();
        for (index, port) in ports.iter().enumerate() {
            for address in port.addresses() {
                by_address.entry(address).or_insert(index);
            }
        }
        Some(Self {
            by_nic: ports.iter().enumerate().map(|(n, port)| (&port.nic.meta.id, n)).collect(),
            by_address,
            by_network: vnet
                .subnets
                .values()
                .flat_map(|it| it.prefixes().map(move |prefix| (prefix.network(), it)))
                .collect(),
            peers: peers(region, vnet),
            internal,
            region,
            vnet,
            ports,
            clusters,
            balancers,
            pools_of,
        })
    }

    /// The families that it has.
    pub(crate) fn families(&self) -> &'static [Family] {
        if self.vnet.is_dual_stack() { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }

    /// The subnet that an address is in.
    pub(crate) fn subnet_of(&self, address: impl Into<IpAddr>) -> Option<&'a Subnet> {
        let address = address.into();
        let (_, subnet) = self.by_network.range(..=address).next_back()?;
        subnet.contains(address).then_some(subnet)
    }

    /// The subnets other than its own that a NIC has addresses in: those of its pods.
    pub(crate) fn pod_subnets(&self, port: &Port<'_>) -> Vec<&'a Subnet> {
        let own = self.subnet_of(port.primary).map(|subnet| subnet.prefix);
        let mut subnets: Vec<&Subnet> = Vec::new();
        for address in &port.others {
            if !subnets.last().is_some_and(|last| last.contains(*address)) {
                subnets.extend(self.subnet_of(*address).filter(|it| Some(it.prefix) != own));
            }
        }
        subnets.sort_by_key(|subnet| subnet.prefix);
        subnets.dedup_by_key(|subnet| subnet.prefix);
        subnets
    }

    /// The security group of this id.
    pub(crate) fn group(&self, id: Option<&ArmId>) -> Option<&'a SecurityGroup> {
        self.region.security_groups.get(id?).map(|group| &**group)
    }

    /// The port of this NIC.
    pub(crate) fn port_of(&self, nic: &ArmId) -> Option<&Port<'a>> {
        self.by_nic.get(nic).map(|index| &self.ports[*index])
    }

    /// Whether nothing comes in at a NIC by a public address that is closed without a group.
    pub(crate) fn is_closed(&self, port: &Port<'_>) -> bool {
        effective::is_closed(self.region, self.subnet_of(port.primary), port.nic)
    }

    /// The public addresses that are open without a group.
    pub(crate) fn open_addresses(&self) -> BTreeSet<IpAddr> {
        let open = self.region.public_ips.values().filter(|ip| effective::is_open(ip));
        open.map(|ip| ip.address).collect()
    }

    /// The port that holds this address.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Port<'a>> {
        self.by_address.get(&address).map(|index| &self.ports[*index])
    }

    /// The port of the machine that forwards what is sent to this address. Azure drops when nobody has the
    /// address or its NIC does not forward.
    pub(crate) fn appliance(&self, address: IpAddr) -> Option<&Port<'a>> {
        self.holder(address).filter(|port| port.nic.ip_forwarding)
    }

    /// Whether a load balancer that acts here has a private front end at this address.
    pub(crate) fn has_frontend(&self, address: IpAddr) -> bool {
        self.internal.contains(&address)
    }

    /// Whether a packet to a front end at `address` that takes this route finds it: one in the network where the
    /// network's own routes lead, a public one on the way to the internet. Routes come first for front ends as for all
    /// destinations; nothing that Azure documents excepts them ("Virtual network traffic routing", "How Azure selects a
    /// route"), and no effective route of a front end's own is there to win, as one of a private endpoint's is.
    pub(crate) fn finds(&self, route: &EffectiveRoute, address: IpAddr) -> bool {
        match &route.hop {
            Hop::VnetLocal => self.has_frontend(address),
            Hop::Internet => !self.has_frontend(address),
            Hop::VirtualAppliance(hop) => *hop == address && self.has_frontend(address),
            Hop::None | Hop::Peering(_) => false,
        }
    }

    /// The peer whose address space this address is in.
    pub(crate) fn peer_of(&self, address: IpAddr) -> Option<&Peer<'a>> {
        self.peers
            .iter()
            .find(|peer| peer.peering.remote_prefixes.iter().any(|prefix| prefix.contains(address)))
    }

    /// The mark of flows to a load balancer's member, and the number of the table that leads to it: its address, or
    /// that of IPv4 which the same NIC has.
    pub(crate) fn mark_of(&self, member: IpAddr) -> Option<u32> {
        match member {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => self.holder(member).map(|port| port.primary.into()),
        }
    }

    /// The back-end pools that a NIC is in.
    pub(crate) fn pools_of(&self, nic: &ArmId) -> &[(&'a LoadBalancer, &'a Name)] {
        self.pools_of.get(nic).map_or(&[], Vec::as_slice)
    }

    /// The address of a front end that takes flows: those of a prefix only send.
    pub(crate) fn frontend_address(&self, frontend: &Frontend) -> Option<IpAddr> {
        match frontend {
            Frontend::Internal { address, .. } => Some(*address),
            Frontend::Public { public_ip } => self.public_address(public_ip),
            Frontend::Prefix { .. } => None,
        }
    }

    /// The addresses that a front end has outside; none of a private one.
    pub(crate) fn outside_addresses(&self, frontend: &Frontend) -> Vec<IpAddr> {
        match frontend {
            Frontend::Internal { .. } => Vec::new(),
            Frontend::Public { public_ip } => self.public_address(public_ip).into_iter().collect(),
            Frontend::Prefix { public_ip_prefix } => {
                let there = self.region.public_ip_prefixes.get(public_ip_prefix);
                there.into_iter().flat_map(|it| it.prefix.addresses()).collect()
            }
        }
    }

    /// The address of a public IP.
    pub(crate) fn public_address(&self, id: &ArmId) -> Option<IpAddr> {
        self.region.public_ips.get(id).map(|ip| ip.address)
    }
}

impl Port<'_> {
    /// Every address that is the NIC's own.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        std::iter::once(self.primary.into()).chain(self.others.iter().copied())
    }

    /// The NIC's address of a family, which its other ones of that family are reached through.
    pub(crate) fn main_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.primary.into()),
            Family::V6 => self.nic.address_of(Family::V6),
        }
    }

    /// Whether the node's pods are in a routing domain of their own.
    pub(crate) fn is_overlay(&self) -> bool {
        self.cluster.is_some_and(|cluster| cluster.mode == NetworkMode::Overlay)
    }

    /// The ranges of the pods of the NIC's overlay cluster.
    pub(crate) fn overlay_ranges(&self) -> Option<OverlayRanges> {
        self.cluster.and_then(Cluster::overlay_ranges)
    }

    /// The node's part of the pod range of a family.
    pub(crate) fn pod_range_of(&self, family: Family) -> Option<Prefix> {
        self.pod_ranges.iter().copied().find(|range| range.family() == family)
    }

    /// Whether `address` is in the node's part of a pod range.
    pub(crate) fn has_pod(&self, address: IpAddr) -> bool {
        self.pod_ranges.iter().any(|range| range.contains(address))
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
        Frontend::Public { .. } | Frontend::Prefix { .. } => None,
    });
    by_frontend.or_else(|| {
        let mut members = balancer.pools.values().flat_map(|pool| &pool.members);
        members.find_map(|member| region.nics.get(member)?.vnet())
    })
}

/// The networks that `vnet` is joined to.
fn peers<'a>(region: &'a Region, vnet: &'a Vnet) -> Vec<Peer<'a>> {
    let open = |peering: &&Peering| {
        peering.allow_access
            && peering.peering_state == PeeringState::Connected
            && peering.state != ProvisioningState::Deleting
    };
    let mut seen = BTreeSet::new();
    vnet.peerings
        .values()
        .filter(open)
        .filter_map(|peering| {
            let remote = region.vnets.get(&peering.remote)?;
            let is_there = remote.meta.state != ProvisioningState::Deleting;
            let mut back = remote.peerings.values().filter(open);
            let is_open = is_there
                && back.any(|back| back.remote == vnet.meta.id)
                && seen.insert(&peering.remote);
            let link = names::peer(&peering.remote);
            is_open.then_some(Peer { link, peering, remote })
        })
        .collect()
}

/// The pods' addresses that each node was given, by the node's machine.
pub(super) fn batches(vnet: &Vnet) -> BTreeMap<&ArmId, Vec<IpAddr>> {
    let mut batches: BTreeMap<&ArmId, Vec<IpAddr>> = BTreeMap::new();
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
    batches: &BTreeMap<&ArmId, Vec<IpAddr>>,
    machine: &'a Machine,
) -> Option<Port<'a>> {
    let nic = region.nics.get(&machine.nic)?;
    if nic.vnet().as_ref() != Some(&vnet.meta.id) {
        return None;
    }
    let (cluster, pod_ranges) = match &machine.role {
        Role::Vm => (None, Vec::new()),
        Role::Node(node) => {
            (region.clusters.get(&node.cluster).map(|cluster| &**cluster), node.pod_ranges())
        }
    };
    let mut others: Vec<IpAddr> = nic.configs.iter().skip(1).map(|config| config.address).collect();
    others.extend(batches.get(&machine.meta.id).into_iter().flatten());
    Some(Port {
        link: names::port(&nic.meta.id),
        nic,
        machine,
        cluster,
        primary: nic.address()?,
        others,
        pod_ranges,
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

//! What is said of one NIC: the groups and routes that its packets meet, and what these decide about one flow.
//! They are the same functions that [`crate::flow`] walks by and [`crate::host`] compiles. Not here: what is
//! beyond the NIC.

use std::net::IpAddr;

use crate::{
    model::{
        Access, Direction, Frontend, LoadBalancer, Machine, Nic, OverlayRanges, ProvisioningState,
        PublicIp, Subnet, Vnet,
    },
    name::{ArmId, Name},
    policy::{Decision, Flow, Gate, is_outside, is_platform, virtual_network},
    region::Region,
    routes::{self, EffectiveRoute, Hop, Source},
};

/// A network security group where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The subnet or the NIC.
    pub at: ArmId,
    /// The group there.
    pub gate: Gate,
}

/// What the gates of a NIC say of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes all of them.
    pub access: Access,
    /// Who decided: the rule that denied, else that of the last gate. `None` where no rule is about the flow.
    pub rule: Option<Decider>,
}

/// A rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decider {
    /// The group.
    pub group: ArmId,
    /// The rule's name.
    pub name: Name,
    /// Whether it is one of the six that every group has.
    pub is_default: bool,
}

/// Where a packet goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextStop {
    /// The route's next hop; `None` for the platform's own addresses, which no route is about.
    pub hop: Option<Hop>,
    /// The table of the route, when a user made it.
    pub route_table: Option<ArmId>,
}

/// The machine of a NIC, if it runs.
#[must_use]
pub fn running_machine<'a>(region: &'a Region, nic: &Nic) -> Option<&'a Machine> {
    let machine = region.machines.get(nic.machine.as_ref()?)?;
    match machine.meta.state {
        ProvisioningState::Creating | ProvisioningState::Deleting => None,
        ProvisioningState::Updating
        | ProvisioningState::Scaling
        | ProvisioningState::Upgrading
        | ProvisioningState::Succeeded
        | ProvisioningState::Failed => Some(machine),
    }
}

/// Whether `address` is the NIC's: of one of its IP configurations, or given to its node for pods.
#[must_use]
pub fn has_address(region: &Region, nic: &Nic, address: IpAddr) -> bool {
    nic.configs.iter().any(|config| config.address == address)
        || nic
            .machine
            .as_ref()
            .is_some_and(|it| region.pod_addresses_of(it).iter().any(|its| *its == address))
}

/// The groups that packets with this address of the NIC's meet, in the order of inbound ones: subnet, NIC.
#[must_use]
pub fn gates(region: &Region, nic: &Nic, address: IpAddr) -> Vec<Attached> {
    let Some((vnet, subnet)) = place(region, nic, address) else { return Vec::new() };
    let pod_ranges = overlay_ranges(region, nic);
    let subnet_id = vnet.meta.id.child("subnets", subnet.name.as_str());
    attached(region, vnet, Some((subnet_id, subnet)), nic, pod_ranges)
}

/// The groups of a subnet and a NIC in it, in the order of inbound ones. `pod_ranges` are those of the NIC's overlay.
pub(crate) fn attached(
    region: &Region,
    vnet: &Vnet,
    subnet: Option<(ArmId, &Subnet)>,
    nic: &Nic,
    pod_ranges: Option<OverlayRanges>,
) -> Vec<Attached> {
    let of_subnet = subnet.map(|(id, subnet)| (id, subnet.security_group.as_ref()));
    let of_nic = (nic.meta.id.clone(), nic.security_group.as_ref());
    of_subnet
        .into_iter()
        .chain([of_nic])
        .filter_map(|(at, group)| {
            let group = region.security_groups.get(group?)?;
            let is_there = group.meta.state != ProvisioningState::Deleting;
            is_there.then(|| Attached { at, gate: Gate::new(region, vnet, group, pod_ranges) })
        })
        .collect()
}

/// Whether neither a NIC nor its subnet has a group. Public addresses are closed there ("secure by default": Azure
/// documentation, "Public IP addresses"), but for those that [`is_open`] knows.
///
/// Clusters of earlier versions have no group of their own; their Services' users are let in.
pub(crate) fn is_closed(region: &Region, subnet: Option<&Subnet>, nic: &Nic) -> bool {
    let of_subnet = subnet.and_then(|subnet| subnet.security_group.as_ref());
    let mut groups = [of_subnet, nic.security_group.as_ref()].into_iter().flatten();
    let machine = nic.machine.as_ref().and_then(|machine| region.machines.get(machine));
    let cluster = machine.and_then(|it| region.clusters.get(&it.node()?.cluster));
    let is_of_old = cluster.is_some_and(|cluster| cluster.security_group.is_none());
    !is_of_old && !groups.any(|group| region.security_groups.contains_key(group))
}

/// Whether a public IP takes what no group allows: of SKU Basic (same page).
pub(crate) fn is_open(public_ip: &PublicIp) -> bool {
    public_ip.sku.eq_ignore_ascii_case("Basic")
}

/// Whether what comes in from the internet at an address of the NIC's is closed out for want of a group. Who has no
/// public address gets from the internet only what somebody brings: what a user's route leads elsewhere.
fn is_shut(region: &Region, nic: &Nic, flow: &Flow) -> bool {
    let Some((vnet, subnet)) = place(region, nic, flow.destination) else { return false };
    let config = nic.configs.iter().find(|config| config.address == flow.destination);
    let public_ip = config.and_then(|config| region.public_ips.get(config.public_ip.as_ref()?));
    let comes_by_public = || {
        public_ip.is_some()
            || region.balancers.values().any(|it| is_public(it) && has_member(it, &nic.meta.id))
    };
    is_closed(region, Some(subnet), nic)
        && is_outside(vnet, flow.source)
        && (comes_by_public() || !virtual_network(region, vnet).contains(flow.source))
        && !public_ip.is_some_and(|public_ip| is_open(public_ip))
}

fn is_public(balancer: &LoadBalancer) -> bool {
    balancer.frontends.values().any(|frontend| !matches!(frontend, Frontend::Internal { .. }))
}

fn has_member(balancer: &LoadBalancer, nic: &ArmId) -> bool {
    balancer.pools.values().any(|pool| pool.members.contains(nic))
}

/// What the gates of a NIC say of a flow from or to `own`, an address of the NIC's. Where there is none, a flow from the
/// internet is denied by nobody's rule.
#[must_use]
pub fn verify(region: &Region, nic: &Nic, direction: Direction, flow: &Flow) -> Verdict {
    let own = match direction {
        Direction::Inbound => flow.destination,
        Direction::Outbound => flow.source,
    };
    let mut gates = gates(region, nic, own);
    if direction == Direction::Outbound {
        gates.reverse();
    }
    let is_shut = direction == Direction::Inbound && is_shut(region, nic, flow);
    let access = if is_shut { Access::Deny } else { Access::Allow };
    let mut verdict = Verdict { access, rule: None };
    for Attached { gate, .. } in &gates {
        let decision = gate.decide(direction, flow);
        verdict.access = decision.access();
        verdict.rule = match decision {
            Decision::Rule(rule) => Some(Decider {
                group: gate.group.clone(),
                name: rule.rule.name.clone(),
                is_default: rule.is_default,
            }),
            Decision::Platform => None,
        };
        if verdict.access == Access::Deny {
            break;
        }
    }
    verdict
}

/// The routes that the NIC's packets meet: those of its primary address' subnet.
#[must_use]
pub fn routes(region: &Region, nic: &Nic) -> Vec<EffectiveRoute> {
    let place = nic.address().and_then(|address| place(region, nic, address.into()));
    place.map_or_else(Vec::new, |(vnet, subnet)| routes::effective(region, vnet, subnet))
}

/// Whether a peer of the NIC's virtual network is in another location.
#[must_use]
pub fn is_global(region: &Region, nic: &Nic, peer: &ArmId) -> bool {
    let location = |vnet: &ArmId| region.vnets.get(vnet).map(|vnet| &vnet.meta.location);
    let own = nic.vnet();
    let own = own.as_ref().and_then(location);
    own.zip(location(peer)).is_some_and(|(own, peers)| own != peers)
}

/// Where a packet from `source`, an address of the NIC's, to `destination` goes next. Without a route, nowhere.
#[must_use]
pub fn next_stop(
    region: &Region,
    nic: &Nic,
    source: IpAddr,
    destination: IpAddr,
) -> Option<NextStop> {
    let (vnet, subnet) = place(region, nic, source)?;
    if is_platform(destination) {
        return Some(NextStop { hop: None, route_table: None });
    }
    let all = routes::effective(region, vnet, subnet);
    let route = routes::select(&all, destination);
    let is_users = route.is_some_and(|route| route.source == Source::User);
    Some(NextStop {
        hop: Some(route.map_or(Hop::None, |route| route.hop.clone())),
        route_table: subnet.route_table.clone().filter(|_| is_users),
    })
}

/// The subnet whose group and routes packets with this address meet. A pod of a pod subnet has its own subnet's;
/// what is not the NIC's own has the NIC's.
fn place<'a>(region: &'a Region, nic: &Nic, address: IpAddr) -> Option<(&'a Vnet, &'a Subnet)> {
    let vnet = region.vnets.get(&nic.vnet()?)?;
    let own = if has_address(region, nic, address) { address } else { nic.address()?.into() };
    let subnet = vnet.subnet_of(own)?;
    Some((vnet, subnet))
}

/// The pods' ranges of the overlay that the NIC's node is a part of.
fn overlay_ranges(region: &Region, nic: &Nic) -> Option<OverlayRanges> {
    let node = region.machines.get(nic.machine.as_ref()?)?.node()?;
    let cluster = region.clusters.get(&node.cluster)?;
    cluster.overlay_ranges()
}

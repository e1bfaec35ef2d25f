//! What a change of NICs and machines changes of a fabric, without compiling all of it again. Not here: compiling
//! (see [`super::fabric`]) and tables' texts (see [`mod@super::delta`]).
//!
//! # Why it is right
//! Almost everything that a NIC adds to a fabric names its link or its address, and so is its alone. The region is
//! compiled twice with few NICs, before and after the change: those that changed; all that others' parts are made from
//! (*tied* ones: members of load balancers, of application security groups, nodes, appliances); and for each that
//! changed one that is like it and did not change, so that what both have in common is there before and after. What
//! differs between the two is what differs between the whole ones. Where more than NICs and machines changed, or
//! more than elements of tables' sets differs, the answer is `None`: all is to be compiled.
//!
//! `laws` in `tests/region` compares the outcome with a whole compilation after every command of random histories.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    Fabric, Health, NamespaceState, compile_fabric,
    delta::{delta, patched},
};
use crate::{
    model::{
        InboundTarget, Kept, Machine, Meta, NextHop, Nic, Peering, ProvisioningState, Role, Subnet,
        Tags, UpgradeStep, Vnet,
    },
    name::ArmId,
    region::{Region, Resources},
};

/// So many NICs may have changed; with more, compiling all of it is no more work.
const FEW: usize = 64;

/// What changes of a fabric. Both have whole namespaces of machines, and parts of those of virtual networks: what is in
/// one and not in the other differs, what is in both or neither does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Parts of what was.
    pub before: Fabric,
    /// Parts of what is to be.
    pub after: Fabric,
}

/// What differs between the fabrics of two regions, with the same health of members. `None` when that takes a whole
/// compilation to say.
#[must_use]
pub fn change(lab: &str, before: &Region, after: &Region, health: &Health) -> Option<Change> {
    if !is_same_around(before, after) || any_starts_anew(before, after) {
        return None;
    }
    let mut kept = changed(before, after)?;
    let alike = alike(before, after, &kept);
    kept.extend(alike);
    // Those that are tied before and not after, or the other way round, have changed themselves.
    kept.extend(tied(after));
    let part = |region| compile_fabric(lab, &only(region, &kept), health);
    let change = Change { before: part(before), after: part(after) };
    let is_of_elements = change.after.namespaces.iter().all(|(name, after)| {
        let Some(before) = change.before.namespaces.get(name) else { return true };
        match (&before.nft, &after.nft) {
            (Some(before), Some(after)) => before == after || delta(before, after).is_some(),
            (before, after) => before == after,
        }
    });
    is_of_elements.then_some(change)
}

/// Whether an upgrade has stopped a node. Its namespace went with it, which nothing in a fabric says: who looks at
/// namespaces finds that it is missing.
fn any_starts_anew(before: &Region, after: &Region) -> bool {
    let starts =
        |machine: &Machine| machine.node().is_some_and(|node| node.step == UpgradeStep::Starting);
    let started = |id| before.machines.get(id).is_some_and(|machine| starts(machine));
    after.machines.iter().any(|(id, machine)| starts(machine) && !started(id))
}

impl Change {
    /// Namespaces that are in both and differ.
    pub fn differing(&self) -> impl Iterator<Item = (&str, &NamespaceState, &NamespaceState)> {
        self.after.namespaces.iter().filter_map(|(name, after)| {
            let before = self.before.namespaces.get(name)?;
            (before != after).then_some((name.as_str(), before, after))
        })
    }

    /// Makes the whole fabric of the region before into that of the region after.
    pub fn apply(&self, fabric: &mut Fabric) {
        for name in self.before.namespaces.keys() {
            if !self.after.namespaces.contains_key(name) {
                fabric.namespaces.remove(name);
            }
        }
        for (name, after) in &self.after.namespaces {
            if !self.before.namespaces.contains_key(name) {
                fabric.namespaces.insert(name.clone(), after.clone());
            }
        }
        for (name, before, after) in self.differing() {
            if let Some(state) = fabric.namespaces.get_mut(name) {
                state.patch(before, after);
            }
        }
    }
}

impl NamespaceState {
    /// Takes out what `before` has and `after` has not, and the other way round.
    fn patch(&mut self, before: &Self, after: &Self) {
        patch_map(&mut self.links, &before.links, &after.links);
        patch_set(&mut self.addresses, &before.addresses, &after.addresses);
        patch_map(&mut self.routes, &before.routes, &after.routes);
        patch_set(&mut self.rules, &before.rules, &after.rules);
        patch_map(&mut self.neighbours, &before.neighbours, &after.neighbours);
        patch_map(&mut self.sysctls, &before.sysctls, &after.sysctls);
        if let (Some(whole), Some(before), Some(after)) = (&self.nft, &before.nft, &after.nft)
            && before != after
            && let Some(changes) = delta(before, after)
        {
            self.nft = Some(patched(whole, &changes));
        }
        self.tenancy = after.tenancy;
    }
}

fn patch_map<K: Ord + Clone, V: PartialEq + Clone>(
    whole: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) {
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        whole.remove(key);
    }
    for (key, value) in after {
        if before.get(key) != Some(value) {
            whole.insert(key.clone(), value.clone());
        }
    }
}

fn patch_set<T: Ord + Clone>(whole: &mut BTreeSet<T>, before: &BTreeSet<T>, after: &BTreeSet<T>) {
    for gone in before.difference(after) {
        whole.remove(gone);
    }
    whole.extend(after.difference(before).cloned());
}

/// Whether nothing but NICs and machines differs, as far as a fabric is made from it.
fn is_same_around(before: &Region, after: &Region) -> bool {
    // Whoever adds a field decides here whether fabrics are made from it.
    let Region {
        generation: _,
        groups: _,
        vnets,
        route_tables,
        security_groups,
        application_groups: _,
        nat_gateways,
        public_ip_prefixes,
        public_ips,
        nics: _,
        machines: _,
        balancers,
        clusters,
        operations: _,
        role_assignments: _,
        given_tags,
    } = before;
    is_same(vnets, &after.vnets, shape)
        && is_same(route_tables, &after.route_tables, |it| quiet(it, |it| &mut it.meta))
        && is_same(security_groups, &after.security_groups, |it| quiet(it, |it| &mut it.meta))
        && is_same(nat_gateways, &after.nat_gateways, |it| quiet(it, |it| &mut it.meta))
        && is_same(public_ip_prefixes, &after.public_ip_prefixes, |it| quiet(it, |it| &mut it.meta))
        && is_same(public_ips, &after.public_ips, |it| quiet(it, |it| &mut it.meta))
        && is_same(balancers, &after.balancers, |it| quiet(it, |it| &mut it.meta))
        && is_same(clusters, &after.clusters, |it| quiet(it, |it| &mut it.meta))
        && *given_tags == after.given_tags
}

fn is_same<T: Eq, S: PartialEq>(
    before: &Resources<T>,
    after: &Resources<T>,
    seen: impl Fn(&T) -> S,
) -> bool {
    before.differences(after).all(|it| match (it.before, it.after) {
        (Some(before), Some(after)) => seen(before) == seen(after),
        _ => false,
    })
}

/// A resource without what says only when it was asked for and whether it is real.
fn quiet<T: Clone>(resource: &T, meta: impl Fn(&mut T) -> &mut Meta) -> T {
    let mut quiet = resource.clone();
    hush(meta(&mut quiet));
    quiet
}

fn hush(meta: &mut Meta) {
    meta.tags = Tags::new();
    meta.etag = Uuid::nil();
    meta.state = settled(meta.state);
    meta.changed = 0;
    meta.kept = Kept::new();
}

/// To a fabric something is there, or goes.
fn settled(state: ProvisioningState) -> ProvisioningState {
    match state {
        ProvisioningState::Deleting => ProvisioningState::Deleting,
        _ => ProvisioningState::Succeeded,
    }
}

/// A virtual network without those who hold its addresses: they are NICs, nodes and front ends.
fn shape(vnet: &Vnet) -> Vnet {
    let mut meta = vnet.meta.clone();
    hush(&mut meta);
    let subnets = vnet.subnets.iter().map(|(name, it)| {
        let subnet = Subnet {
            name: it.name.clone(),
            prefix: it.prefix,
            prefix6: it.prefix6,
            route_table: it.route_table.clone(),
            security_group: it.security_group.clone(),
            nat_gateway: it.nat_gateway.clone(),
            default_outbound: it.default_outbound,
            delegations: it.delegations.clone(),
            association_links: it.association_links.clone(),
            held: BTreeMap::new(),
            private_endpoint_network_policies: it.private_endpoint_network_policies.clone(),
            private_link_service_network_policies: it.private_link_service_network_policies.clone(),
            state: settled(it.state),
            changed: 0,
            kept: Kept::new(),
        };
        (name.clone(), subnet)
    });
    let peerings = vnet.peerings.iter().map(|(name, it)| {
        let quiet =
            Peering { state: settled(it.state), changed: 0, kept: Kept::new(), ..it.clone() };
        (name.clone(), quiet)
    });
    Vnet {
        meta,
        prefixes: vnet.prefixes.clone(),
        subnets: subnets.collect(),
        peerings: peerings.collect(),
        default_outbound: vnet.default_outbound,
    }
}

/// The NICs that changed, or whose machines did; `None` when they are many.
fn changed(before: &Region, after: &Region) -> Option<BTreeSet<ArmId>> {
    let mut changed = BTreeSet::new();
    changed.extend(differing(&before.nics, &after.nics).map(|nic| nic.meta.id.clone()));
    changed.extend(differing(&before.machines, &after.machines).map(|it| it.nic.clone()));
    // A node's pods' addresses are held by it.
    let networks = before.vnets.iter().filter_map(|(id, it)| Some((it, after.vnets.get(id)?)));
    for (before_vnet, after_vnet) in networks.filter(|(a, b)| !Arc::ptr_eq(a, b)) {
        let (old, new) = (super::view::batches(before_vnet), super::view::batches(after_vnet));
        for node in old.keys().chain(new.keys()).filter(|node| old.get(*node) != new.get(*node)) {
            let machines = [before.machines.get(*node), after.machines.get(*node)];
            changed.extend(machines.into_iter().flatten().map(|machine| machine.nic.clone()));
        }
    }
    (changed.len() <= FEW).then_some(changed)
}

/// What is not the same in both: the values before, and those after.
fn differing<'a, T: Eq>(
    before: &'a Resources<T>,
    after: &'a Resources<T>,
) -> impl Iterator<Item = &'a T> {
    let all = before.differences(after).flat_map(|it| it.before.into_iter().chain(it.after));
    all.map(|value| &**value)
}

/// For each NIC that changed one that did not, is attached, and is in the same subnets behind the same group.
fn alike(before: &Region, after: &Region, changed: &BTreeSet<ArmId>) -> BTreeSet<ArmId> {
    let of = |region: &Region| -> Vec<Arc<Nic>> {
        changed.iter().filter_map(|id| region.nics.get(id).cloned()).collect()
    };
    let mut wanted: Vec<Arc<Nic>> = of(before);
    for nic in of(after) {
        if !wanted.iter().any(|it| is_alike(it, &nic)) {
            wanted.push(nic);
        }
    }
    let mut found = BTreeSet::new();
    for (id, nic) in &after.nics {
        if wanted.is_empty() {
            break;
        }
        if changed.contains(id) || !nic.machine.as_ref().is_some_and(|it| attached(after, it)) {
            continue;
        }
        let n_wanted = wanted.len();
        wanted.retain(|it| !is_alike(it, nic));
        if wanted.len() < n_wanted {
            found.insert(id.clone());
        }
    }
    found
}

fn attached(region: &Region, machine: &ArmId) -> bool {
    region.machines.get(machine).is_some_and(|machine| super::view::is_there(machine))
}

fn is_alike(a: &Nic, b: &Nic) -> bool {
    a.security_group == b.security_group
        && a.configs.len() == b.configs.len()
        && a.configs
            .iter()
            .zip(&b.configs)
            .all(|(a, b)| a.subnet == b.subnet && a.public_ip.is_some() == b.public_ip.is_some())
}

/// The NICs that other parts of a fabric than their own are made from.
fn tied(region: &Region) -> BTreeSet<ArmId> {
    let mut tied = BTreeSet::new();
    for balancer in region.balancers.values() {
        tied.extend(balancer.pools.values().flat_map(|pool| &pool.members).cloned());
        for rule in balancer.inbound_rules.values() {
            if let InboundTarget::Configuration { member: Some((nic, _)), .. } = &rule.target {
                tied.insert(nic.clone());
            }
        }
    }
    let nodes = region.machines.values().filter(|machine| matches!(machine.role, Role::Node(_)));
    tied.extend(nodes.map(|machine| machine.nic.clone()));
    let hops: BTreeSet<IpAddr> = region
        .route_tables
        .values()
        .flat_map(|table| table.routes.values())
        .filter_map(|route| match route.next_hop {
            NextHop::VirtualAppliance(address) => Some(address),
            NextHop::VnetLocal | NextHop::Internet | NextHop::None => None,
        })
        .collect();
    let of_others = region.nics.iter().filter(|(_, nic)| {
        nic.configs
            .iter()
            .any(|config| !config.application_groups.is_empty() || hops.contains(&config.address))
    });
    tied.extend(of_others.map(|(id, _)| id.clone()));
    tied
}

/// The region with these NICs and their machines, and no others.
fn only(region: &Region, nics: &BTreeSet<ArmId>) -> Region {
    let nics: Resources<Nic> =
        nics.iter().filter_map(|id| region.nics.get_key_value(id)).map(own).collect();
    let machines: Resources<Machine> = nics
        .values()
        .filter_map(|nic| region.machines.get_key_value(nic.machine.as_ref()?))
        .map(own)
        .collect();
    Region {
        generation: region.generation,
        groups: Resources::new(),
        vnets: region.vnets.clone(),
        route_tables: region.route_tables.clone(),
        security_groups: region.security_groups.clone(),
        application_groups: region.application_groups.clone(),
        nat_gateways: region.nat_gateways.clone(),
        public_ip_prefixes: region.public_ip_prefixes.clone(),
        public_ips: region.public_ips.clone(),
        nics,
        machines,
        balancers: region.balancers.clone(),
        clusters: region.clusters.clone(),
        operations: Resources::new(),
        role_assignments: Resources::new(),
        given_tags: region.given_tags.clone(),
    }
}

fn own<T>((id, value): (&ArmId, &Arc<T>)) -> (ArmId, Arc<T>) {
    (id.clone(), Arc::clone(value))
}

//! From asked to real: operations, and the reports that end them.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use super::{Change, Resources, UNCHANGED, UPDATED};
use crate::{
    command::{Accepted, Outcome},
    fault::Fault,
    kind,
    model::{
        ApplicationGroup, Generation, LoadBalancer, Machine, Meta, NatGateway, Nic, Operation,
        ProvisioningState, PublicIp, PublicIpPrefix, RouteTable, SecurityGroup, Subnet, Timestamp,
        Verb, Vnet,
    },
    name::{ArmId, Name},
};

/// A top-level resource that the fabric makes.
pub(super) trait Resource: Clone {
    fn meta(&self) -> &Meta;
    fn meta_mut(&mut self) -> &mut Meta;
    /// Whether it is the fabric that makes it: a node's machine is a resource that the clusters loop makes.
    fn is_fabric(&self) -> bool {
        true
    }
}

macro_rules! resources {
    ($($resource:ty),*) => {$(
        impl Resource for $resource {
            fn meta(&self) -> &Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.meta
            }
        }
    )*};
}
resources!(
    Vnet,
    RouteTable,
    SecurityGroup,
    ApplicationGroup,
    NatGateway,
    PublicIp,
    PublicIpPrefix,
    Nic,
    LoadBalancer
);

impl Resource for Machine {
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
    fn is_fabric(&self) -> bool {
        self.node().is_none()
    }
}

/// Changes the common fields of a resource, if it is there.
pub(super) fn change<T: Resource>(
    map: &mut Resources<T>,
    id: &ArmId,
    change: impl FnOnce(&mut Meta),
) {
    if let Some(resource) = map.get_mut(id) {
        change(Arc::make_mut(resource).meta_mut());
    }
}

/// Ids of resources that are being deleted since `generation` or before.
fn going<T: Resource>(map: &Resources<T>, generation: Generation) -> Vec<ArmId> {
    map.values()
        .filter(|resource| resource.is_fabric())
        .map(|resource| resource.meta())
        .filter(|meta| meta.state == ProvisioningState::Deleting && meta.changed <= generation)
        .map(|meta| meta.id.clone())
        .collect()
}

/// Whether something in this state, last changed by command `changed`, is real with `generation`.
pub(super) fn becomes_real(
    state: ProvisioningState,
    changed: Generation,
    generation: Generation,
) -> bool {
    match state {
        ProvisioningState::Creating
        | ProvisioningState::Updating
        | ProvisioningState::Scaling
        | ProvisioningState::Upgrading
        | ProvisioningState::Failed => changed <= generation,
        ProvisioningState::Deleting | ProvisioningState::Succeeded => false,
    }
}

/// Makes `Succeeded` what is real with `generation`; says whether there was any.
fn succeed<T: Resource>(map: &mut Resources<T>, generation: Generation) -> bool {
    let is_due = |resource: &T| {
        let meta = resource.meta();
        resource.is_fabric() && becomes_real(meta.state, meta.changed, generation)
    };
    map.change(is_due, |resource| resource.meta_mut().state = ProvisioningState::Succeeded)
}

impl Change {
    /// Begins and ends an operation whose answer the door computes.
    pub(super) fn begin_post(&mut self, target: &ArmId) -> Accepted {
        let id = self.begin(target, Verb::Post);
        self.end_operations(None, |operation| operation.id == id);
        Accepted { outcome: Outcome::Updated, operation: Some(id) }
    }

    /// Ends the running operations that `which` picks; says whether there was any.
    pub(super) fn end_operations(
        &mut self,
        fault: Option<&Fault>,
        which: impl Fn(&Operation) -> bool,
    ) -> bool {
        let now = self.now;
        self.region.operations.change(
            |operation| operation.ended.is_none() && which(operation),
            |operation| operation.ended = Some((now, fault.cloned())),
        )
    }

    /// The fabric made `generation` real.
    pub(super) fn fabric_real(&mut self, generation: Generation) -> Accepted {
        let region = &self.region;
        // Users before what they use: a NIC is free once its machine is gone.
        let mut gone = going(&region.machines, generation);
        gone.extend(going(&region.balancers, generation));
        gone.extend(going(&region.nics, generation));
        gone.extend(going(&region.vnets, generation));
        gone.extend(going(&region.nat_gateways, generation));
        gone.extend(going(&region.public_ips, generation));
        gone.extend(going(&region.public_ip_prefixes, generation));
        gone.extend(going(&region.route_tables, generation));
        gone.extend(going(&region.security_groups, generation));
        gone.extend(going(&region.application_groups, generation));
        for id in &gone {
            self.drop_resource(id);
        }
        let region = &mut self.region;
        let mut any = !gone.is_empty();
        any |= succeed(&mut region.machines, generation);
        any |= succeed(&mut region.balancers, generation);
        any |= succeed(&mut region.nics, generation);
        any |= succeed(&mut region.public_ips, generation);
        any |= succeed(&mut region.vnets, generation);
        any |= succeed(&mut region.route_tables, generation);
        any |= succeed(&mut region.security_groups, generation);
        any |= succeed(&mut region.application_groups, generation);
        any |= succeed(&mut region.nat_gateways, generation);
        any |= succeed(&mut region.public_ip_prefixes, generation);
        any |= self.settle_subnets(generation);
        any |= self.settle_peerings(generation);
        any |= self.end_operations(None, |operation| {
            operation.generation <= generation && is_fabric_target(&operation.target)
        });
        if any { UPDATED } else { UNCHANGED }
    }

    fn settle_subnets(&mut self, generation: Generation) -> bool {
        let mut gone = Vec::new();
        let is_due = |subnet: &Subnet| {
            subnet.changed <= generation && subnet.state == ProvisioningState::Deleting
                || becomes_real(subnet.state, subnet.changed, generation)
        };
        let has_due = |vnet: &Vnet| vnet.subnets.values().any(is_due);
        let any = self.region.vnets.change(has_due, |vnet| {
            let names: Vec<Name> = vnet
                .subnets
                .iter()
                .filter(|(_, subnet)| is_due(subnet))
                .map(|(name, _)| name.clone())
                .collect();
            for name in names {
                match vnet.subnets.get_mut(&name) {
                    Some(subnet) if subnet.state != ProvisioningState::Deleting => {
                        subnet.state = ProvisioningState::Succeeded;
                    }
                    _ => {
                        vnet.subnets.remove(&name);
                        gone.push(vnet.meta.id.child("subnets", name.as_str()));
                    }
                }
            }
        });
        for subnet in gone {
            self.forget_assignments(&subnet);
        }
        any
    }

    /// Takes a top-level resource of the network, or a VM, out of the region.
    pub(super) fn drop_resource(&mut self, id: &ArmId) {
        if let Some(machine) = self.region.machines.remove(id)
            && let Some(nic) = self.region.nics.get_mut(&machine.nic)
        {
            Arc::make_mut(nic).machine = None;
        }
        self.drop_balancer(id);
        self.drop_nic(id);
        self.drop_nat_gateway(id);
        self.region.public_ips.remove(id);
        self.region.public_ip_prefixes.remove(id);
        self.region.vnets.remove(id);
        self.region.route_tables.remove(id);
        self.region.security_groups.remove(id);
        self.region.application_groups.remove(id);
        self.forget_assignments(id);
    }

    /// A cluster and its pools are what `generation` asked for.
    pub(super) fn cluster_real(&mut self, id: &ArmId, generation: Generation) -> Accepted {
        let Some(cluster) = self.region.clusters.get(id) else { return UNCHANGED };
        if cluster.meta.state == ProvisioningState::Deleting || self.region.is_upgrading(id) {
            return UNCHANGED;
        }
        let mut next = cluster.as_ref().clone();
        self.end_migration(&mut next);
        let gone: Vec<ArmId> = self
            .region
            .nodes_of(id)
            .into_iter()
            .map(|node| &node.meta)
            .filter(|meta| meta.state == ProvisioningState::Deleting && meta.changed <= generation)
            .map(|meta| meta.id.clone())
            .collect();
        for node in &gone {
            self.drop_node(node);
        }
        let is_gone = |pool: &crate::model::AgentPool| {
            pool.state == ProvisioningState::Deleting && pool.changed <= generation
        };
        let (old_pools, pools) = std::mem::take(&mut next.pools)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, pool)| is_gone(pool));
        next.pools = pools;
        for pool in old_pools.values() {
            self.disconnect(&next, pool);
        }
        for pool in next.pools.values_mut() {
            if becomes_real(pool.state, pool.changed, generation) {
                pool.state = ProvisioningState::Succeeded;
            }
        }
        if becomes_real(next.meta.state, next.meta.changed, generation) {
            next.meta.state = ProvisioningState::Succeeded;
        }
        let is_changed = self.region.clusters.get(id).is_some_and(|cluster| **cluster != next);
        if is_changed {
            self.region.clusters.insert(id.clone(), Arc::new(next));
        }
        let is_ended = self.end_operations(None, |operation| {
            operation.generation <= generation
                && (operation.target == *id || operation.target.parent().as_ref() == Some(id))
        });
        if is_changed || is_ended || !gone.is_empty() { UPDATED } else { UNCHANGED }
    }

    /// What was begun on `target` cannot be done. What is being deleted stays so, and the loops go on trying:
    /// half of it may be gone.
    pub(super) fn failed(&mut self, target: &ArmId, fault: &Fault) -> Accepted {
        if !self.end_operations(Some(fault), |operation| operation.target == *target) {
            return UNCHANGED;
        }
        let fail = |meta: &mut Meta| meta.state = failed_state(meta.state);
        change(&mut self.region.vnets, target, fail);
        change(&mut self.region.route_tables, target, fail);
        change(&mut self.region.security_groups, target, fail);
        change(&mut self.region.application_groups, target, fail);
        change(&mut self.region.nat_gateways, target, fail);
        change(&mut self.region.public_ip_prefixes, target, fail);
        change(&mut self.region.public_ips, target, fail);
        change(&mut self.region.nics, target, fail);
        change(&mut self.region.machines, target, fail);
        change(&mut self.region.balancers, target, fail);
        if self.region.subnet(target).is_some() {
            let subnet = self.subnet_mut(target);
            subnet.state = failed_state(subnet.state);
        }
        if let Some((vnet, peering)) = self.region.peering(target) {
            let (vnet, name) = (vnet.meta.id.clone(), peering.name.clone());
            if let Some(peering) = self.vnet_mut(&vnet).peerings.get_mut(&name) {
                peering.state = failed_state(peering.state);
            }
        }
        let pool = self.region.pool(target).map(|(_, pool)| pool.name.clone());
        let cluster = match &pool {
            Some(_) => target.parent(),
            None => Some(target.clone()),
        };
        if let Some(cluster) = &cluster {
            self.abandon_upgrades(cluster);
        }
        if let Some(cluster) = cluster.and_then(|id| self.region.clusters.get_mut(&id)) {
            let cluster = Arc::make_mut(cluster);
            if pool.is_none() {
                fail(&mut cluster.meta);
            }
            for (name, there) in &mut cluster.pools {
                let is_meant = pool.as_ref().is_none_or(|pool| pool == name);
                if is_meant && there.state != ProvisioningState::Succeeded {
                    there.state = failed_state(there.state);
                }
            }
        }
        UPDATED
    }

    /// Forgets all ended operations but the `keep` that ended last.
    pub(super) fn prune_operations(&mut self, keep: usize) -> Accepted {
        let mut ended: Vec<(Timestamp, Uuid)> = self
            .region
            .operations
            .values()
            .filter_map(|operation| operation.ended.as_ref().map(|(at, _)| (*at, operation.id)))
            .collect();
        if ended.len() <= keep {
            return UNCHANGED;
        }
        ended.sort_unstable();
        for (_, id) in &ended[..ended.len() - keep] {
            self.region.operations.remove(id);
        }
        UPDATED
    }
}

/// What becomes of a state when its operation fails.
fn failed_state(state: ProvisioningState) -> ProvisioningState {
    match state {
        ProvisioningState::Deleting => ProvisioningState::Deleting,
        ProvisioningState::Creating
        | ProvisioningState::Updating
        | ProvisioningState::Scaling
        | ProvisioningState::Upgrading
        | ProvisioningState::Succeeded
        | ProvisioningState::Failed => ProvisioningState::Failed,
    }
}

/// Whether the fabric makes what an operation is about.
fn is_fabric_target(target: &ArmId) -> bool {
    [
        kind::VNET,
        kind::SUBNET,
        kind::PEERING,
        kind::ROUTE_TABLE,
        kind::ROUTE,
        kind::SECURITY_GROUP,
        kind::SECURITY_RULE,
        kind::APPLICATION_GROUP,
        kind::NAT_GATEWAY,
        kind::PUBLIC_IP_PREFIX,
        kind::PUBLIC_IP,
        kind::NIC,
        kind::LOAD_BALANCER,
        kind::VM,
    ]
    .into_iter()
    .any(|kind| target.is_kind(kind))
}

/// A time as `2026-11-24T11:22:18Z`.
pub(super) fn utc(Timestamp(milliseconds): Timestamp) -> String {
    let seconds = milliseconds.div_euclid(1_000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_519_338_999, "2026-11-24T11:22:18Z"),
        ] {
            assert_eq!(utc(Timestamp(milliseconds)), text);
        }
    }
}

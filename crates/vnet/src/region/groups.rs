//! Resource groups and role assignments.

use std::{collections::BTreeSet, sync::Arc};

use super::{Change, UNCHANGED, UPDATED, etag, lifecycle, nodes, refusal, security};
use crate::{
    command::{Accepted, Outcome},
    fault::Fault,
    kind,
    model::{Holder, Meta, ProvisioningState, ResourceGroup, RoleAssignment, Tags, Verb},
    name::{ArmId, Name},
};

const ROLE_ASSIGNMENTS: &str = "/providers/microsoft.authorization/roleassignments/";

/// A region's name as resources keep it: `East US` is `eastus`.
pub(super) fn canonical(location: &str) -> String {
    location.chars().filter(|c| *c != ' ').map(|c| c.to_ascii_lowercase()).collect()
}

impl Change {
    /// The group that `id` is in, if something may be made there.
    pub(super) fn live_group(&self, id: &ArmId) -> Result<&ResourceGroup, Fault> {
        match self.region.groups.get(&id.resource_group_id()) {
            None => Err(refusal::group_not_found(id)),
            Some(group) if group.state == ProvisioningState::Deleting => {
                Err(refusal::group_being_deleted(id))
            }
            Some(group) => Ok(group),
        }
    }

    pub(super) fn put_group(
        &mut self,
        id: ArmId,
        location: &str,
        tags: Tags,
    ) -> Result<Accepted, Fault> {
        let location = canonical(location);
        check_group_name(id.resource_group())?;
        let old = self.region.groups.get(&id);
        if let Some(old) = old {
            if old.state == ProvisioningState::Deleting {
                return Err(refusal::group_being_deleted(&id));
            }
            if old.location != location {
                return Err(Fault::conflict(
                    "InvalidResourceGroupLocation",
                    format!(
                        "Invalid resource group location '{location}'. The Resource group already exists in location \
                         '{}'.",
                        old.location
                    ),
                ));
            }
            if old.tags == tags {
                return Ok(UNCHANGED);
            }
        }
        let outcome = if old.is_some() { Outcome::Updated } else { Outcome::Created };
        let group = ResourceGroup {
            id: old.map_or_else(|| id.clone(), |old| old.id.clone()),
            location,
            tags,
            managed_by: old.and_then(|old| old.managed_by.clone()),
            state: ProvisioningState::Succeeded,
        };
        self.region.groups.insert(id, Arc::new(group));
        Ok(Accepted { outcome, operation: None })
    }

    /// Begins the end of a group: its clusters go first, then (see [`Self::settle_groups`]) everything else.
    pub(super) fn delete_group(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let group = self.region.groups.get(id).ok_or_else(|| refusal::group_not_found(id))?.clone();
        if let Some(cluster) = &group.managed_by {
            return Err(blocked(id, &[format!("it is the node resource group of {cluster}")]));
        }
        if group.state == ProvisioningState::Deleting {
            return Ok(self.deleting_again(id));
        }
        let clusters: Vec<ArmId> =
            self.region.clusters.keys().filter(|cluster| is_in(id, cluster)).cloned().collect();
        let mut going = BTreeSet::from([id.clone()]);
        going.extend(
            clusters
                .iter()
                .filter_map(|id| self.region.clusters.get(id))
                .map(|c| c.node_group.clone()),
        );
        let users = self.outside_users(&going);
        if !users.is_empty() {
            return Err(blocked(id, &users));
        }
        let mut group = group.as_ref().clone();
        group.state = ProvisioningState::Deleting;
        self.region.groups.insert(id.clone(), Arc::new(group));
        for cluster in clusters {
            self.begin_cluster_end(&cluster);
        }
        Ok(self.deleting(id))
    }

    /// Moves groups that are being deleted a step on: once their clusters are gone, everything else is marked;
    /// once that is gone, so is the group.
    pub(super) fn settle_groups(&mut self) {
        let going: Vec<ArmId> = self
            .region
            .groups
            .values()
            .filter(|group| {
                group.state == ProvisioningState::Deleting && group.managed_by.is_none()
            })
            .map(|group| group.id.clone())
            .collect();
        for group in going {
            if self.region.clusters.keys().any(|cluster| is_in(&group, cluster)) {
                continue;
            }
            let resources = self.region.resources_in_group(&group);
            if resources.is_empty() {
                self.region.groups.remove(&group);
                self.forget_assignments(&group);
                self.end_operations(None, |operation| {
                    operation.target == group && operation.verb == Verb::Delete
                });
            }
            for resource in resources {
                self.mark_deleting(&resource);
            }
        }
    }

    /// What outside of the groups `going` uses something in them, as text.
    pub(super) fn outside_users(&self, going: &BTreeSet<ArmId>) -> Vec<String> {
        let inside = |id: &ArmId| going.contains(&id.resource_group_id());
        let region = &self.region;
        let mut users = BTreeSet::new();
        for (id, vnet) in &region.vnets {
            if inside(id) {
                let holders = vnet.subnets.values().flat_map(|subnet| subnet.held.values());
                users.extend(
                    holders.map(Holder::resource).filter(|holder| !inside(holder)).cloned(),
                );
            } else {
                // A cluster takes its own route table off the subnet when it goes.
                let is_managed = |table: &ArmId| {
                    region
                        .clusters
                        .values()
                        .any(|cluster| cluster.route_table.as_ref() == Some(table))
                };
                for subnet in vnet.subnets.values() {
                    if subnet
                        .route_table
                        .as_ref()
                        .is_some_and(|table| inside(table) && !is_managed(table))
                    {
                        users.insert(id.child("subnets", subnet.name.as_str()));
                    }
                    if subnet.security_group.as_ref().is_some_and(inside) {
                        users.insert(id.child("subnets", subnet.name.as_str()));
                    }
                    if subnet.nat_gateway.as_ref().is_some_and(inside) {
                        users.insert(id.child("subnets", subnet.name.as_str()));
                    }
                }
            }
        }
        for (id, nic) in &region.nics {
            let groups = nic.configs.iter().flat_map(|config| &config.application_groups);
            if !inside(id) && groups.chain(&nic.security_group).any(inside) {
                users.insert(id.clone());
            }
        }
        for (id, group) in &region.security_groups {
            let mut named = group.rules.values().flat_map(security::application_groups);
            if !inside(id) && named.any(inside) {
                users.insert(id.clone());
            }
        }
        for (id, cluster) in &region.clusters {
            // Its own node resource group goes with a cluster, not before it.
            let is_leaving = inside(id) || going.contains(&cluster.node_group);
            let used = cluster
                .pools
                .values()
                .flat_map(|pool| pool.pod_subnet.iter().chain([&pool.subnet]));
            if !is_leaving && used.into_iter().any(inside) {
                users.insert(id.clone());
            }
        }
        for (id, machine) in &region.machines {
            if !inside(id) && inside(&machine.nic) {
                users.insert(id.clone());
            }
        }
        users.extend(region.users_of_publics(&inside));
        users.into_iter().map(|id| format!("{id} uses a resource in it")).collect()
    }

    pub(super) fn put_role_assignment(
        &mut self,
        assignment: RoleAssignment,
    ) -> Result<Accepted, Fault> {
        let key = (assignment.scope.to_ascii_lowercase(), assignment.name.to_ascii_lowercase());
        let exists =
            || Fault::conflict("RoleAssignmentExists", "The role assignment already exists.");
        if let Some(old) = self.region.role_assignments.get(&key) {
            return if same_grant(old, &assignment) { Ok(UNCHANGED) } else { Err(exists()) };
        }
        if self.region.role_assignments.values().any(|old| same_grant(old, &assignment)) {
            return Err(exists());
        }
        self.region.role_assignments.insert(key, Arc::new(assignment));
        Ok(Accepted { outcome: Outcome::Created, operation: None })
    }

    /// Takes back a role, when `id` is the id of an assignment.
    pub(super) fn delete_role_assignment(&mut self, id: &ArmId) -> Option<Accepted> {
        let (scope, name) = id.key().rsplit_once(ROLE_ASSIGNMENTS)?;
        let key = (scope.to_owned(), name.to_owned());
        Some(if self.region.role_assignments.remove(&key).is_some() { UPDATED } else { UNCHANGED })
    }

    /// Roles at a scope go with it.
    pub(super) fn forget_assignments(&mut self, scope: &ArmId) {
        let below = format!("{}/", scope.key());
        let is_its = |at: &String| at == scope.key() || at.starts_with(&below);
        let assignments = &mut self.region.role_assignments;
        let gone: Vec<_> = assignments.keys().filter(|(at, _)| is_its(at)).cloned().collect();
        for key in &gone {
            assignments.remove(key);
        }
    }

    /// Marks a resource in a group that is going. Clusters are marked on their own.
    fn mark_deleting(&mut self, id: &ArmId) {
        let generation = self.generation;
        let mark = |meta: &mut Meta| {
            if meta.state != ProvisioningState::Deleting {
                meta.state = ProvisioningState::Deleting;
                meta.changed = generation;
                meta.etag = etag(&meta.id, generation);
            }
        };
        let is_vnet_that_stays = self
            .region
            .vnets
            .get(id)
            .is_some_and(|vnet| vnet.meta.state != ProvisioningState::Deleting);
        if is_vnet_that_stays {
            self.disconnect_peers(id);
        }
        // An id is in one of these.
        let region = &mut self.region;
        lifecycle::change(&mut region.vnets, id, mark);
        lifecycle::change(&mut region.route_tables, id, mark);
        lifecycle::change(&mut region.security_groups, id, mark);
        lifecycle::change(&mut region.application_groups, id, mark);
        lifecycle::change(&mut region.nat_gateways, id, mark);
        lifecycle::change(&mut region.public_ip_prefixes, id, mark);
        lifecycle::change(&mut region.public_ips, id, mark);
        lifecycle::change(&mut region.balancers, id, mark);
        lifecycle::change(&mut region.nics, id, mark);
        lifecycle::change(&mut region.machines, id, mark);
    }

    /// Begins the end of any resource or child. What is not there is gone already.
    pub(super) fn delete(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        if let Some(accepted) = self.delete_role_assignment(id) {
            return Ok(accepted);
        }
        if id.is_kind(kind::SUBNET) {
            self.delete_subnet(id)
        } else if id.is_kind(kind::ROUTE) {
            self.delete_route(id)
        } else if id.is_kind(kind::SECURITY_RULE) {
            self.delete_security_rule(id)
        } else if id.is_kind(kind::PEERING) {
            Ok(self.delete_peering(id))
        } else if id.is_kind(kind::POOL) {
            self.delete_pool(id)
        } else if id.is_kind(kind::CLUSTER) {
            self.delete_cluster(id)
        } else {
            let Some(state) = self.state_of(id) else { return Ok(UNCHANGED) };
            if state == ProvisioningState::Deleting {
                return Ok(self.deleting_again(id));
            }
            self.refuse_used(id)?;
            self.mark_deleting(id);
            Ok(self.deleting(id))
        }
    }

    /// The state of a top-level resource that the fabric makes.
    fn state_of(&self, id: &ArmId) -> Option<ProvisioningState> {
        let region = &self.region;
        None.or_else(|| region.vnets.get(id).map(|vnet| vnet.meta.state))
            .or_else(|| region.route_tables.get(id).map(|table| table.meta.state))
            .or_else(|| region.security_groups.get(id).map(|group| group.meta.state))
            .or_else(|| region.application_groups.get(id).map(|group| group.meta.state))
            .or_else(|| region.nat_gateways.get(id).map(|gateway| gateway.meta.state))
            .or_else(|| region.public_ip_prefixes.get(id).map(|prefix| prefix.meta.state))
            .or_else(|| region.public_ips.get(id).map(|public_ip| public_ip.meta.state))
            .or_else(|| region.balancers.get(id).map(|balancer| balancer.meta.state))
            .or_else(|| region.nics.get(id).map(|nic| nic.meta.state))
            .or_else(|| region.machines.get(id).map(|machine| machine.meta.state))
    }

    /// Refuses to delete what another resource needs.
    fn refuse_used(&self, id: &ArmId) -> Result<(), Fault> {
        let region = &self.region;
        if let Some(vnet) = region.vnets.get(id) {
            for name in vnet.subnets.keys() {
                self.refuse_used_subnet(id, name)?;
            }
        }
        if region.route_tables.contains_key(id) {
            self.refuse_used_route_table(id)?;
        }
        if region.security_groups.contains_key(id) {
            self.refuse_used_security_group(id)?;
        }
        if region.application_groups.contains_key(id) {
            self.refuse_used_application_group(id)?;
        }
        if region.nat_gateways.contains_key(id) {
            self.refuse_used_nat_gateway(id)?;
        }
        if region.public_ip_prefixes.contains_key(id) {
            self.refuse_used_public_ip_prefix(id)?;
        }
        if let Some(public_ip) = region.public_ips.get(id)
            && let Some(user) = &public_ip.used_by
        {
            return Err(Fault::bad(
                "PublicIPAddressCannotBeDeleted",
                format!(
                    "Public IP address {id} can not be deleted since it is still allocated to resource {user}. In order \
                     to delete the public IP, disassociate/detach the Public IP address from the resource. To learn how \
                     to do this, see aka.ms/deletepublicip."
                ),
            ));
        }
        if let Some(machine) = region.machines.get(id)
            && machine.node().is_some()
        {
            return Err(part_of_cluster(id));
        }
        if let Some(nic) = region.nics.get(id)
            && let Some(machine) = &nic.machine
        {
            return Err(Fault::bad(
                "NicInUse",
                format!(
                    "Network Interface {id} is used by existing resource {machine}. In order to delete the network \
                     interface, it must be dissociated from the resource. To learn more, see aka.ms/deletenic."
                ),
            ));
        }
        if region.balancers.contains_key(id) {
            self.refuse_used_balancer(id)?;
        }
        Ok(())
    }

    /// Refuses to delete a subnet that somebody uses, naming the users.
    pub(super) fn refuse_used_subnet(&self, vnet: &ArmId, name: &Name) -> Result<(), Fault> {
        let id = vnet.child("subnets", name.as_str());
        let Some((_, subnet)) = self.region.subnet(&id) else { return Ok(()) };
        let mut users: Vec<String> =
            subnet.held.values().map(|holder| refusal::holder_id(&id, holder)).collect();
        users.dedup();
        if users.is_empty() && !subnet.association_links.is_empty() {
            users.push(id.child("serviceAssociationLinks", "AzureKubernetesService").to_string());
        }
        if users.is_empty() {
            // The scale set of a pool without nodes names its subnet, too.
            for cluster in self.region.clusters.values() {
                let pools = cluster.pools.values().filter(|pool| pool.subnet == id);
                users
                    .extend(pools.map(|pool| nodes::scale_set_id(cluster, &pool.name).to_string()));
            }
        }
        if users.is_empty() { Ok(()) } else { Err(refusal::subnet_in_use(subnet, &users)) }
    }
}

/// What a cluster's node resource group holds can be deleted with the cluster only.
pub(super) fn part_of_cluster(id: &ArmId) -> Fault {
    Fault::conflict(
        "OperationNotAllowed",
        format!("{id} is a part of a managed cluster and goes with it."),
    )
}

fn is_in(group: &ArmId, id: &ArmId) -> bool {
    id.resource_group_id() == *group
}

fn same_grant(a: &RoleAssignment, b: &RoleAssignment) -> bool {
    a.scope.eq_ignore_ascii_case(&b.scope)
        && a.role_definition.eq_ignore_ascii_case(&b.role_definition)
        && a.principal.eq_ignore_ascii_case(&b.principal)
}

fn blocked(group: &ArmId, reasons: &[String]) -> Fault {
    Fault::conflict(
        "ResourceGroupDeletionBlocked",
        format!(
            "Deletion of resource group '{}' failed: {}.",
            group.resource_group(),
            reasons.join("; ")
        ),
    )
}

/// The name of a resource group: up to 90 of letters, digits and `_-.()`, no dot at the end
/// (Azure documentation, "Naming rules and restrictions for Azure resources").
fn check_group_name(name: &str) -> Result<(), Fault> {
    let fits = (1..=90).contains(&name.chars().count())
        && !name.ends_with('.')
        && name.chars().all(|c| c.is_alphanumeric() || "_-.()".contains(c));
    if fits {
        return Ok(());
    }
    Err(Fault::bad(
        "InvalidResourceGroup",
        format!(
            "The provided resource group name '{name}' has these invalid characters or is too long. The name can only \
             be letters, digits, '-', '.', '(', ')' or '_', up to 90 of them, and cannot end with '.'."
        ),
    ))
}

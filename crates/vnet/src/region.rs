//! The whole cloud side's state as one value, and the only function that changes it.
//!
//! *Expected flow.* A door or a loop makes a [`Command`]; [`Region::apply`] runs it on a clone, and the clone
//! takes the region's place only when the command is accepted. A refused command therefore changes nothing.
//!
//! *Life of a network resource* (virtual network, subnet, route table, public IP, NIC, load balancer, VM): a
//! `PUT` makes it `Updating`, a `DELETE` makes it `Deleting`; [`Command::FabricReal`] makes the first
//! `Succeeded` and takes the second out of the region. One that is `Deleting` keeps its addresses until then,
//! so nobody else can get an address that is still on the wire. To the fabric it no longer exists.
//!
//! *Life of a node.* A pool that grows makes a machine (`Creating`) and its NIC with all its addresses.
//! [`Command::NodeReached`] makes the machine `Succeeded`. A pool that shrinks makes machines `Deleting`; their
//! NICs and addresses stay, and to the fabric they still exist, while the clusters loop stops what runs there.
//! [`Command::ClusterReal`] then takes machine and NIC out of the region, and the fabric removes a namespace
//! that no longer belongs to anything.
//!
//! *Life of a cluster.* `Creating`, `Updating` and its pools' `Scaling` end with [`Command::ClusterReal`].
//! `Deleting` ends with [`Command::ClusterGone`], which takes the cluster, its nodes, and its node resource
//! group with everything in it.
//!
//! *Guarantees.* Reports that change nothing are [`Outcome::Unchanged`] and do not raise the generation, so a
//! loop never wakes itself for ever. The same commands at the same times give the same region.

use std::{collections::BTreeMap, collections::BTreeSet, net::IpAddr, sync::Arc};

use uuid::Uuid;

use crate::{
    command::{Accepted, Command, Common, Outcome},
    fault::Fault,
    model::{
        ApplicationGroup, Cluster, Generation, LoadBalancer, Machine, Meta, NatGateway, Nic,
        Operation, ProvisioningState, PublicIp, PublicIpPrefix, ResourceGroup, RoleAssignment,
        RouteTable, SecurityGroup, Timestamp, Verb, Vnet,
    },
    name::ArmId,
    policy::tags::ServiceTags,
};

mod addresses;
mod balancer;
mod cluster;
mod dataplane;
mod findings;
mod gateways;
mod groups;
mod inbound;
mod interfaces;
mod lifecycle;
mod migration;
mod network;
mod nodes;
mod outbound;
mod peerings;
mod pool_subnets;
mod pools;
mod publics;
mod query;
mod ranges;
mod refusal;
mod resources;
mod routes;
mod security;
mod upgrades;

pub use query::Availability;
pub use resources::{Difference, Resources};

/// The state of everything that the local Azure knows. Cheap to clone: resources are shared.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Region {
    /// Counts accepted commands.
    pub generation: Generation,
    /// Resource groups by id.
    pub groups: Resources<ResourceGroup>,
    /// Virtual networks by id.
    pub vnets: Resources<Vnet>,
    /// Route tables by id.
    pub route_tables: Resources<RouteTable>,
    /// Network security groups by id.
    pub security_groups: Resources<SecurityGroup>,
    /// Application security groups by id.
    pub application_groups: Resources<ApplicationGroup>,
    /// NAT gateways by id.
    pub nat_gateways: Resources<NatGateway>,
    /// Public IP prefixes by id.
    pub public_ip_prefixes: Resources<PublicIpPrefix>,
    /// Public IPs by id.
    pub public_ips: Resources<PublicIp>,
    /// NICs by id.
    pub nics: Resources<Nic>,
    /// VMs and nodes by id.
    pub machines: Resources<Machine>,
    /// Load balancers by id.
    pub balancers: Resources<LoadBalancer>,
    /// Clusters by id.
    pub clusters: Resources<Cluster>,
    /// Operations by id.
    pub operations: Resources<Operation, Uuid>,
    /// Role assignments by scope and name, lower case.
    pub role_assignments: Resources<RoleAssignment, (String, String)>,
    /// The service tags, where the built-in ones were replaced; see [`Self::service_tags`].
    pub given_tags: Option<Arc<ServiceTags>>,
}

impl Region {
    /// Applies `command` at `now`, or refuses it and changes nothing.
    pub fn apply(&mut self, command: Command, now: Timestamp) -> Result<Accepted, Fault> {
        let mut change = Change {
            generation: self.generation + 1,
            region: self.clone(),
            now,
            claimed: BTreeSet::new(),
        };
        let accepted = change.run(command)?;
        if accepted.outcome != Outcome::Unchanged {
            change.settle_groups();
            change.region.generation = change.generation;
            *self = change.region;
        }
        Ok(accepted)
    }
}

/// A command under way, on a region of its own.
struct Change {
    region: Region,
    /// The generation that the region will have.
    generation: Generation,
    now: Timestamp,
    /// Addresses of the lab's internet that this command has taken and not yet stored.
    claimed: BTreeSet<IpAddr>,
}

impl Change {
    fn run(&mut self, command: Command) -> Result<Accepted, Fault> {
        match command {
            Command::PutGroup { id, location, tags } => self.put_group(id, &location, tags),
            Command::DeleteGroup { id } => self.delete_group(&id),
            Command::PutVnet { common, prefixes, subnets } => {
                self.put_vnet(&common, prefixes, subnets)
            }
            Command::PutSubnet { id, subnet } => self.put_subnet(&id, subnet),
            Command::PutRouteTable { common, routes, disable_bgp_route_propagation } => {
                self.put_route_table(&common, routes, disable_bgp_route_propagation)
            }
            Command::PutRoute { id, route } => self.put_route(&id, route),
            Command::PutSecurityGroup { common, rules } => self.put_security_group(&common, rules),
            Command::PutSecurityRule { id, rule } => self.put_security_rule(&id, rule),
            Command::PutApplicationGroup { common } => self.put_application_group(&common),
            Command::PutPeering { id, peering } => self.put_peering(&id, peering),
            Command::PutNatGateway { common, gateway } => self.put_nat_gateway(&common, gateway),
            Command::PutPublicIpPrefix { common, sku, length, family } => {
                self.put_public_ip_prefix(&common, sku, length, family)
            }
            Command::PutPublicIp { common, prefix, sku, allocation, family, settings } => {
                self.put_public_ip(&common, prefix, (sku, allocation), family, settings)
            }
            Command::PutNic { common, ip_forwarding, security_group, configs } => {
                self.put_nic(&common, ip_forwarding, security_group, configs)
            }
            Command::PutVm { common, nic } => self.put_vm(&common, &nic),
            Command::PutLoadBalancer { common, balancer } => self.put_balancer(&common, balancer),
            Command::PutCluster { common, cluster } => self.put_cluster(&common, cluster),
            Command::PutPool { id, pool } => self.put_pool(&id, pool),
            Command::UpgradeNodeImage { id } => self.upgrade_node_image(&id),
            Command::PutRoleAssignment(assignment) => self.put_role_assignment(assignment),
            Command::Delete { id } => self.delete(&id),
            Command::Together(commands) => self.run_all(commands),
            Command::BeginPost { target } => Ok(self.begin_post(&target)),
            Command::FabricReal { generation } => Ok(self.fabric_real(generation)),
            Command::NodeReached { machine, phase } => self.node_reached(&machine, phase),
            Command::NodeDrained { machine } => self.node_drained(&machine),
            Command::NodeStopped { machine } => self.node_stopped(&machine),
            Command::SetPodAddresses { machine, total, released } => {
                self.set_pod_addresses(&machine, total, &released)
            }
            Command::ClusterReal { cluster, generation } => {
                Ok(self.cluster_real(&cluster, generation))
            }
            Command::ClusterGone { cluster } => self.cluster_gone(&cluster),
            Command::Failed { target, fault } => Ok(self.failed(&target, &fault)),
            Command::SetServiceTags { tags } => Ok(self.set_service_tags(tags)),
            Command::PruneOperations { keep } => Ok(self.prune_operations(keep)),
        }
    }

    /// Runs commands one after the other; the first one's answer stands for all.
    fn run_all(&mut self, commands: Vec<Command>) -> Result<Accepted, Fault> {
        let mut commands = commands.into_iter();
        let Some(first) = commands.next() else { return Ok(UNCHANGED) };
        let mut accepted = self.run(first)?;
        for command in commands {
            let also = self.run(command)?;
            if accepted.outcome == Outcome::Unchanged && also.outcome != Outcome::Unchanged {
                accepted.outcome = Outcome::Updated;
            }
        }
        Ok(accepted)
    }

    /// The common fields of a resource of `kind` after a `PUT`: in a group that is there, where it was before.
    fn meta(&self, common: &Common, kind: &str, old: Option<&Meta>) -> Result<Meta, Fault> {
        let id = &common.id;
        if !id.is_kind(kind) {
            return Err(refusal::wrong_kind(id, kind));
        }
        let group = self.live_group(id)?;
        if let Some(old) = old
            && old.state == ProvisioningState::Deleting
        {
            return Err(refusal::in_progress(&old.id));
        }
        let location = match (&common.location, old) {
            (Some(location), Some(old)) if groups::canonical(location) != old.location => {
                return Err(refusal::moved(id, &old.location, location));
            }
            (_, Some(old)) => old.location.clone(),
            (Some(location), None) => groups::canonical(location),
            (None, None) => group.location.clone(),
        };
        Ok(Meta {
            // The spelling of the first request stays.
            id: old.map_or_else(|| id.clone(), |old| old.id.clone()),
            location,
            tags: common
                .tags
                .clone()
                .unwrap_or_else(|| old.map_or_else(BTreeMap::new, |old| old.tags.clone())),
            etag: etag(id, self.generation),
            guid: uuid_of(id.key()),
            state: ProvisioningState::Updating,
            changed: self.generation,
            kept: common.kept.clone(),
        })
    }

    /// Begins an operation on `target`.
    fn begin(&mut self, target: &ArmId, verb: Verb) -> Uuid {
        let id = uuid_of(&format!("{} {verb:?} {}", target.key(), self.generation));
        let operation = Operation {
            id,
            target: target.clone(),
            verb,
            generation: self.generation,
            started: self.now,
            ended: None,
        };
        self.region.operations.insert(id, Arc::new(operation));
        id
    }

    /// The answer to a `PUT` of `id`.
    fn put(&mut self, id: &ArmId, is_new: bool) -> Accepted {
        let outcome = if is_new { Outcome::Created } else { Outcome::Updated };
        Accepted { outcome, operation: Some(self.begin(id, Verb::Put)) }
    }

    /// The answer to a `DELETE` of `id`.
    fn deleting(&mut self, id: &ArmId) -> Accepted {
        Accepted { outcome: Outcome::Deleting, operation: Some(self.begin(id, Verb::Delete)) }
    }

    /// The answer to a `DELETE` of what is being deleted already: the operation that runs, or another one when
    /// that one failed.
    fn deleting_again(&mut self, id: &ArmId) -> Accepted {
        match self.region.running_operation(id).map(|operation| operation.id) {
            Some(running) => Accepted { outcome: Outcome::Deleting, operation: Some(running) },
            None => self.deleting(id),
        }
    }

    /// Marks a resource as changed by this command, now in `state`.
    fn touch(&self, meta: &mut Meta, state: ProvisioningState) {
        meta.state = state;
        meta.changed = self.generation;
        meta.etag = etag(&meta.id, self.generation);
    }
}

/// Nothing changed.
const UNCHANGED: Accepted = Accepted { outcome: Outcome::Unchanged, operation: None };
/// Something changed, and nobody waits for it.
const UPDATED: Accepted = Accepted { outcome: Outcome::Updated, operation: None };

/// The same text gives the same UUID, for ever.
fn uuid_of(text: &str) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x5c3f_1d0e_8f1b_4b52_9a41_2c8d_7e60_b1a5);
    Uuid::new_v5(&NAMESPACE, text.as_bytes())
}

/// The etag of what `id` names, as `generation` made it.
fn etag(id: &ArmId, generation: Generation) -> Uuid {
    uuid_of(&format!("{} etag {generation}", id.key()))
}

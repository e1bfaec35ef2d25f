//! The whole cloud side's state as one value, and the only function that changes it.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use crate::{
    command::{Accepted, Command},
    fault::Fault,
    model::{
        Cluster, Generation, LoadBalancer, Machine, Nic, Operation, PublicIp, ResourceGroup,
        RoleAssignment, RouteTable, Timestamp, Vnet,
    },
    name::ArmId,
};

/// The state of everything that the local Azure knows. Cheap to clone: resources are shared.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Region {
    /// Counts accepted commands.
    pub generation: Generation,
    /// Resource groups by id.
    pub groups: BTreeMap<ArmId, Arc<ResourceGroup>>,
    /// Virtual networks by id.
    pub vnets: BTreeMap<ArmId, Arc<Vnet>>,
    /// Route tables by id.
    pub route_tables: BTreeMap<ArmId, Arc<RouteTable>>,
    /// Public IPs by id.
    pub public_ips: BTreeMap<ArmId, Arc<PublicIp>>,
    /// NICs by id.
    pub nics: BTreeMap<ArmId, Arc<Nic>>,
    /// VMs and nodes by id.
    pub machines: BTreeMap<ArmId, Arc<Machine>>,
    /// Load balancers by id.
    pub balancers: BTreeMap<ArmId, Arc<LoadBalancer>>,
    /// Clusters by id.
    pub clusters: BTreeMap<ArmId, Arc<Cluster>>,
    /// Operations by id.
    pub operations: BTreeMap<Uuid, Arc<Operation>>,
    /// Role assignments by scope and name, lower case.
    pub role_assignments: BTreeMap<(String, String), Arc<RoleAssignment>>,
}

impl Region {
    /// Applies `command` at `now`, or refuses it and changes nothing.
    pub fn apply(&mut self, command: Command, now: Timestamp) -> Result<Accepted, Fault> {
        let _ = (command, now);
        Err(Fault::new(501, "NotImplemented", "being written"))
    }
}

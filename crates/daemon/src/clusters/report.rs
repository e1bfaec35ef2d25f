//! What is told to the region. Nothing is told twice: each report is compared with what the region
//! knows.

use store::Store;
use vnet::{
    command::Command,
    fault::Fault,
    model::{Machine, NodePhase, ProvisioningState},
    name::ArmId,
    region::Region,
};

use super::{ClustersError, is_leaving};
use crate::reconcile::now;

/// A node has got somewhere.
pub(super) fn node(
    store: &Store,
    machine: &Machine,
    phase: NodePhase,
) -> Result<(), ClustersError> {
    let is_known = machine.node().is_some_and(|node| {
        node.phase == phase && machine.meta.state == ProvisioningState::Succeeded
    });
    if is_known {
        return Ok(());
    }
    let id = &machine.meta.id;
    tell(store, id, Command::NodeReached { machine: id.clone(), phase })
}

/// The pods of a node that is to be made anew are gone.
pub(super) fn drained(store: &Store, machine: &Machine) -> Result<(), ClustersError> {
    let id = &machine.meta.id;
    tell(store, id, Command::NodeDrained { machine: id.clone() })
}

/// Nothing of a node that is to be made anew runs any more.
pub(super) fn stopped(store: &Store, machine: &Machine) -> Result<(), ClustersError> {
    let id = &machine.meta.id;
    tell(store, id, Command::NodeStopped { machine: id.clone() })
}

/// A cluster is what `region` asked for.
pub(super) fn real(store: &Store, region: &Region, id: &ArmId) -> Result<(), ClustersError> {
    let Some(cluster) = region.clusters.get(id) else { return Ok(()) };
    let is_done = |state: ProvisioningState| state == ProvisioningState::Succeeded;
    let is_known = is_done(cluster.meta.state)
        && !region.is_upgrading(id)
        && cluster.pools.values().all(|pool| is_done(pool.state))
        && !region.nodes_of(id).into_iter().any(|machine| is_leaving(machine))
        && region.running_write(id).is_none();
    if is_known {
        return Ok(());
    }
    let report = Command::ClusterReal { cluster: id.clone(), generation: region.generation };
    tell(store, id, report)
}

/// Nothing of a cluster runs any more.
pub(super) fn gone(store: &Store, id: &ArmId) -> Result<(), ClustersError> {
    tell(store, id, Command::ClusterGone { cluster: id.clone() })
}

/// What was begun on a cluster or one of its pools will not come to be.
pub(super) fn failed(
    store: &Store,
    region: &Region,
    id: &ArmId,
    fault: &Fault,
) -> Result<(), ClustersError> {
    let Some(operation) = region.running_write(id) else { return Ok(()) };
    let target = operation.target.clone();
    tell(store, id, Command::Failed { target, fault: fault.clone() })
}

fn tell(store: &Store, target: &ArmId, command: Command) -> Result<(), ClustersError> {
    let told = store.change(command, now());
    told.map(drop).map_err(|source| ClustersError::Report {
        target: target.clone(),
        source: Box::new(source),
    })
}

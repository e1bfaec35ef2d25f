//! Clusters without any process: each node is at once what it should be.

use store::Store;
use tokio::time::sleep;
use vnet::model::{ProvisioningState, UpgradeStep};

use super::{RESYNC, is_leaving, report, wanted_phase};
use crate::reconcile::Chain;

/// Reports for all clusters until the store is gone.
pub(super) async fn run(store: &Store) {
    let mut wake = store.watch();
    loop {
        wake.mark_unchanged();
        if let Err(err) = pass(store) {
            tracing::warn!(error = %Chain(&err), "reconciliation failed; it will be tried again");
        }
        tokio::select! {
            woken = wake.changed() => if woken.is_err() { return },
            () = sleep(RESYNC) => {}
        }
    }
}

fn pass(store: &Store) -> Result<(), super::ClustersError> {
    let region = store.snapshot();
    for (id, cluster) in &region.clusters {
        if cluster.meta.state == ProvisioningState::Deleting {
            report::gone(store, id)?;
            continue;
        }
        for machine in region.nodes_of(id).into_iter().filter(|machine| !is_leaving(machine)) {
            match machine.node().map(|node| node.step) {
                Some(UpgradeStep::Draining { .. }) => report::drained(store, machine)?,
                Some(UpgradeStep::Stopping) => report::stopped(store, machine)?,
                Some(UpgradeStep::Idle | UpgradeStep::Starting) | None => {
                    report::node(store, machine, wanted_phase(cluster.mode))?;
                }
            }
        }
        report::real(store, &region, id)?;
    }
    Ok(())
}

//! A world that always does at once what a region asks for: no namespace, no process, no packet.

use store::{Store, StoreError};
use vnet::{
    command::{Accepted, Command},
    model::{NetworkMode, NodePhase, ProvisioningState, Timestamp, UpgradeStep},
};

/// Reports everything that is asked for as real, until the region asks for nothing more.
pub(crate) fn settle(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    loop {
        let before = store.snapshot().generation;
        pass(store, now)?;
        if store.snapshot().generation == before {
            return Ok(());
        }
    }
}

fn pass(store: &Store, now: Timestamp) -> Result<Accepted, StoreError> {
    let region = store.snapshot();
    let generation = region.generation;
    for cluster in region.clusters.values() {
        let id = &cluster.meta.id;
        if cluster.meta.state == ProvisioningState::Deleting {
            store.change(Command::ClusterGone { cluster: id.clone() }, now)?;
            continue;
        }
        let phase = match cluster.mode {
            NetworkMode::None => NodePhase::NotReady,
            NetworkMode::Kubenet | NetworkMode::Azure | NetworkMode::Overlay => NodePhase::Ready,
        };
        for machine in region.nodes_of(id) {
            match machine.node().map(|node| node.step) {
                Some(UpgradeStep::Draining { .. }) => {
                    let machine = machine.meta.id.clone();
                    store.change(Command::NodeDrained { machine }, now)?;
                    continue;
                }
                Some(UpgradeStep::Stopping) => {
                    let machine = machine.meta.id.clone();
                    store.change(Command::NodeStopped { machine }, now)?;
                    continue;
                }
                Some(UpgradeStep::Idle | UpgradeStep::Starting) | None => {}
            }
            let is_there = machine.node().is_some_and(|node| node.phase == phase);
            if !is_there && machine.meta.state != ProvisioningState::Deleting {
                let machine = machine.meta.id.clone();
                store.change(Command::NodeReached { machine, phase }, now)?;
            }
        }
        store.change(Command::ClusterReal { cluster: id.clone(), generation }, now)?;
    }
    store.change(Command::FabricReal { generation }, now)
}

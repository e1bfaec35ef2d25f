//! What becomes of pods whose node goes, and what an upgrade does to a node: its pods move, its agent ends, its
//! namespace is made anew. Not here: whose turn it is, which the region knows.
//!
//! Pods move as those of a `ReplicaSet` do: gone from one node, made on another, with an address of that one. What finds
//! no room is gone, and a warning says so.

use std::{collections::BTreeSet, sync::Arc};

use linux::netns::Netns;
use store::Store;
use vnet::{
    model::{Machine, ProvisioningState, UpgradeStep},
    region::Region,
};

use super::{NetworkOnly, Pod, PodPhase, RunPods, blocking, is_leaving, pods::together, report};
use crate::clusters::ClustersError;

impl NetworkOnly {
    /// Takes every node whose turn it is one step on.
    pub(super) async fn upgrade(
        self: &Arc<Self>,
        store: &Store,
        region: &Arc<Region>,
    ) -> Result<(), ClustersError> {
        for machine in region.machines.values().filter(|machine| !is_leaving(machine)) {
            match machine.node().map(|node| node.step) {
                Some(UpgradeStep::Draining { .. }) => {
                    let hostname = &machine.hostname;
                    self.move_pods(region, |pod| pod.node == *hostname).await;
                    if !self.pods().values().any(|pod| pod.node == *hostname) {
                        tracing::info!(node = hostname, "drained for an upgrade");
                        report::drained(store, machine)?;
                    }
                }
                Some(UpgradeStep::Stopping) => {
                    self.stop(machine).await?;
                    tracing::info!(node = machine.hostname, "stopped for an upgrade");
                    report::stopped(store, machine)?;
                }
                Some(UpgradeStep::Idle | UpgradeStep::Starting) | None => {}
            }
        }
        Ok(())
    }

    /// Ends a node's agent and forgets what it kept.
    async fn stop(self: &Arc<Self>, machine: &Machine) -> Result<(), ClustersError> {
        self.members().remove(&machine.hostname);
        self.forget_node(&machine.hostname)?;
        let netns = vnet::host::names::machine_ns(&self.places.lab, machine);
        // The fabric makes it anew: what an agent has put in it belongs to the old one.
        blocking(move || match Netns::delete(&netns) {
            Err(_) if !linux::netns::path(&netns).exists() => Ok(()),
            deleted => deleted.map_err(|source| ClustersError::Namespace { name: netns, source }),
        })
        .await
    }

    /// Removes pods whose node is going or gone, and those whose removal was begun by another daemon. Where their
    /// cluster stays, they move.
    pub(super) async fn clear_nodes_but(
        self: &Arc<Self>,
        region: &Arc<Region>,
        staying: &BTreeSet<String>,
    ) {
        self.move_pods(region, |pod| !staying.contains(&pod.node)).await;
        let half: Vec<Pod> = {
            let pods = self.pods();
            pods.values().filter(|pod| pod.phase == PodPhase::Terminating).cloned().collect()
        };
        for failure in self.delete_all(half).await.failures {
            tracing::warn!(failure, "a pod is not gone; it will be tried again");
        }
    }

    /// Moves the running pods that are meant to other nodes.
    async fn move_pods(self: &Arc<Self>, region: &Arc<Region>, is_meant: impl Fn(&Pod) -> bool) {
        let going: Vec<Pod> = {
            let pods = self.pods();
            let goes = |pod: &&Pod| pod.phase == PodPhase::Running && is_meant(pod);
            pods.values().filter(goes).cloned().collect()
        };
        let work = going.into_iter().map(|pod| {
            let (own, region) = (self.clone(), region.clone());
            async move {
                let gone = own.delete_all(vec![pod.clone()]).await;
                if let Some(why) = gone.failures.into_iter().next() {
                    return Err(why);
                }
                let alive = region.clusters.get(&pod.cluster);
                let alive = alive.filter(|it| it.meta.state != ProvisioningState::Deleting);
                let Some(cluster) = alive else { return Ok(own.view(&pod)) };
                let asked = RunPods {
                    cluster: cluster.meta.id.name().to_owned(),
                    names: vec![pod.name.clone()],
                    node: None,
                    labels: pod.labels,
                };
                let placed = own.place(&region, cluster, &asked);
                let placed = placed.map_err(|error| format!("pod `{}`: {error}", pod.name))?;
                let mut last = Err(format!("pod `{}` has no node", pod.name));
                for pod in placed {
                    last = own.clone().create(pod).await.map(|pod| own.view(&pod));
                }
                last
            }
        });
        for failure in together(work).await.failures {
            tracing::warn!(failure, "a pod has not moved");
        }
    }
}

//! A living cluster gets another way to give addresses to pods: Azure CNI overlay
//! (AKS documentation, "Update Azure CNI IPAM mode and data plane technology for existing AKS clusters").
//!
//! *Expected flow.* The cluster's mode changes at once, so the fabric routes pod ranges; its nodes keep what they
//! have until their turn comes in an upgrade of all pools (see `upgrades`). Until then pods of old and new nodes
//! reach each other: an old node's range, or its pods' own addresses, are still routed. When the last node is
//! done the route table goes.

use super::{Change, refusal};
use crate::{
    addr::Prefix4,
    fault::Fault,
    model::{Cluster, NetworkMode},
    name::Name,
};

/// Refuses every change of mode but the migrations that exist.
pub(super) fn check_modes(from: NetworkMode, to: NetworkMode) -> Result<(), Fault> {
    use NetworkMode::{Azure, Kubenet, None as Bring, Overlay};
    match (from, to) {
        (Kubenet | Azure, Overlay) => Ok(()),
        (Overlay, Azure) => Err(refusal::property_change("networkProfile.networkPluginMode")),
        (Kubenet | Azure | Overlay | Bring, _) => {
            Err(refusal::property_change("networkProfile.networkPlugin"))
        }
    }
}

/// Refuses a migration to overlay of a cluster that cannot be migrated.
pub(super) fn check(old: &Cluster, pod_cidr: Option<Prefix4>) -> Result<(), Fault> {
    if let Some(pool) = old.pools.values().find(|pool| pool.pod_subnet.is_some()) {
        return Err(Fault::bad(
            "PropertyChangeNotAllowed",
            format!(
                "Changing property 'networkProfile.networkPluginMode' is not allowed. Agent pool {} has a pod subnet, \
                 and a cluster with pod subnets cannot be updated to Azure CNI overlay.",
                pool.name
            ),
        )
        .at("networkProfile.networkPluginMode"));
    }
    // Nodes keep their ranges.
    if old.mode == NetworkMode::Kubenet && pod_cidr.is_some_and(|range| Some(range) != old.pod_cidr)
    {
        return Err(refusal::property_change("networkProfile.podCidr"));
    }
    Ok(())
}

impl Change {
    /// Begins to make all nodes of a cluster anew, which is in overlay mode now.
    pub(super) fn begin_migration(&mut self, cluster: &mut Cluster) -> Result<(), Fault> {
        self.check_ranges(cluster)?;
        let pools: Vec<Name> = cluster.pools.keys().cloned().collect();
        self.give_pod_ranges(cluster)?;
        self.begin_upgrade(cluster, &pools)
    }

    /// Takes away the route table of a cluster that was a kubenet one, once no node needs it.
    pub(super) fn end_migration(&mut self, cluster: &mut Cluster) {
        if cluster.mode == NetworkMode::Kubenet {
            return;
        }
        let Some(table) = cluster.route_table.clone() else { return };
        let before = cluster.clone();
        cluster.route_table = None;
        for pool in before.pools.values() {
            self.free_of_route_table(&pool.subnet, &table);
        }
        self.drop_resource(&table);
    }
}

//! Who forwards the packets of a cluster's pods, and who enforces its network policies: what goes together, and how a
//! living cluster gets Cilium (MicrosoftDocs/azure-aks-docs, `azure-cni-powered-by-cilium.md`, `update-azure-cni.md`).
//!
//! *Expected flow.* As in a migration to overlay (see `migration`), the cluster says at once what it is to be, and its
//! nodes stay what they are until their turn comes in an upgrade of all pools (see `upgrades`). They keep their
//! addresses, and all that the pods' addresses come from.

use super::{Change, refusal};
use crate::{
    command::PutCluster,
    fault::Fault,
    model::{Cluster, Dataplane, NetworkLinks, NetworkMode, NetworkPolicy},
    name::Name,
};

const DATAPLANE: &str = "networkProfile.networkDataplane";
const POLICY: &str = "networkProfile.networkPolicy";

/// Who enforces network policies where nobody says.
pub(super) fn default_policy(dataplane: Dataplane) -> Option<NetworkPolicy> {
    (dataplane == Dataplane::Cilium).then_some(NetworkPolicy::Cilium)
}

/// Refuses what does not go together. Codes and texts are those that users were given (Azure/AKS-Construction issue 535,
/// Azure/bicep-registry-modules pull request 3361, MicrosoftDocs/azure-aks-docs issue 264 for Cilium without its policies;
/// AdminTurnedDevOps/DevOps-The-Hard-Way-Azure issue 1 for its policies without Cilium). For plugins and network modes
/// that have no Cilium no such text is public.
pub(super) fn check(cluster: &Cluster) -> Result<(), Fault> {
    if cluster.dataplane.is_azure() {
        // Azure/azure-rest-api-specs, `managedClusters.json`, `AdvancedNetworkingSecurity.enabled`.
        if cluster.advanced_networking.is_some_and(|advanced| advanced.security.is_some()) {
            return Err(refusal::invalid(
                "networkProfile.advancedNetworking.security.enabled",
                "It can be enabled only with network dataplane cilium.",
            ));
        }
        return match cluster.policy {
            Some(NetworkPolicy::Cilium) => Err(Fault::bad(
                "NetworkPolicyNotSupported",
                "Network Policy cilium requires NetworkDataplane cilium",
            )
            .with_subcode("NetworkPolicyCiliumRequiresCiliumDataplane")
            .at(POLICY)),
            _ => Ok(()),
        };
    }
    if matches!(cluster.mode, NetworkMode::Kubenet | NetworkMode::None) {
        return Err(Fault::bad("BadRequest", "Cilium dataplane requires network plugin azure.")
            .at("networkProfile.networkPlugin"));
    }
    if cluster.policy != Some(NetworkPolicy::Cilium) {
        return Err(Fault::bad("BadRequest", "Cilium dataplane requires network policy cilium.")
            .with_subcode("CiliumDataplaneRequiresNetworkPolicyCilium")
            .at(POLICY));
    }
    // One that was migrated to overlay remembers its bridge and has none.
    if (cluster.mode, cluster.links) == (NetworkMode::Azure, Some(NetworkLinks::Bridge)) {
        return Err(Fault::bad(
            "NetworkModeNotSupported",
            "Network mode bridge is not supported with network dataplane cilium.",
        )
        .at("networkProfile.networkMode"));
    }
    Ok(())
}

/// Whether `put` gives the cluster another data plane. Refuses the way back, which does not exist, and the way to Cilium
/// together with one to overlay, which are two.
pub(super) fn is_change(old: &Cluster, put: &PutCluster) -> Result<bool, Fault> {
    let Some(dataplane) = put.dataplane.filter(|dataplane| *dataplane != old.dataplane) else {
        return Ok(false);
    };
    if dataplane.is_azure() {
        return Err(refusal::property_change(DATAPLANE));
    }
    if put.mode.is_some_and(|mode| mode != old.mode) {
        return Err(Fault::bad(
            "PropertyChangeNotAllowed",
            format!(
                "Changing property '{DATAPLANE}' is not allowed. The IPAM mode and the data plane of a cluster cannot be \
                 updated in one operation."
            ),
        )
        .at(DATAPLANE));
    }
    Ok(true)
}

impl Change {
    /// Gives `cluster` the data plane and what goes with it as `put` asks; its nodes have what they had.
    pub(super) fn set_dataplane(
        &mut self,
        cluster: &mut Cluster,
        put: &PutCluster,
    ) -> Result<(), Fault> {
        let is_new = put.dataplane.is_some_and(|dataplane| dataplane != cluster.dataplane);
        if is_new {
            self.keep_images(cluster);
        }
        cluster.dataplane = put.dataplane.unwrap_or(cluster.dataplane);
        // `az aks update --network-dataplane cilium` sends back the `none` that it was shown; with Cilium come its policies
        // (MicrosoftDocs/azure-aks-docs, `update-azure-cni.md`; users of some releases were refused, issue 264 there).
        let none = Some(NetworkPolicy::None);
        let asked =
            put.policy.filter(|_| !(is_new && put.policy == none && cluster.policy == none));
        let default = default_policy(cluster.dataplane);
        cluster.policy = asked.or(default).or(cluster.policy);
        cluster.advanced_networking = put.advanced_networking.or(cluster.advanced_networking);
        check(cluster)
    }

    /// Begins to make all nodes of a cluster anew, which has another data plane now.
    pub(super) fn begin_dataplane(&mut self, cluster: &mut Cluster) -> Result<(), Fault> {
        let pools: Vec<Name> = cluster.pools.keys().cloned().collect();
        self.begin_upgrade(cluster, &pools)
    }
}

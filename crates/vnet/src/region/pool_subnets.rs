//! The subnets of node pools: which ones a cluster can use, and how it binds them.

use super::{
    Change, etag, network,
    pools::{NODE_SUBNET, POD_ALLOCATION, POD_SUBNET},
    refusal,
};
use crate::{
    fault::Fault,
    kind,
    model::{
        AgentPool, Cluster, Delegation, Holder, NetworkLinks, NetworkMode, PodAllocation, Subnet,
    },
    name::{ArmId, Name},
};

/// The name of the delegation that AKS makes on a pod subnet.
const DELEGATION: &str = "aks-delegation";

/// Refuses a subnet whose names cannot be values of nodes' labels, which they become (Azure/AKS, release 2023-11-28).
fn check_lengths(subnet: &ArmId, target: &str) -> Result<(), Fault> {
    const LONGEST: usize = 63;
    let vnet = subnet.parent();
    for (what, name) in [
        ("resource group", subnet.resource_group()),
        ("virtual network", vnet.as_ref().map_or("", ArmId::name)),
        ("subnet", subnet.name()),
    ] {
        if name.len() > LONGEST {
            let text = format!(
                "The name of {what} {name} has {} characters. Nodes get it as a label, which has at most {LONGEST}.",
                name.len()
            );
            return Err(refusal::invalid(target, &text));
        }
    }
    Ok(())
}

impl Change {
    /// Refuses the subnets of a new pool when the cluster cannot use them.
    pub(super) fn check_pool_subnets(
        &self,
        cluster: &Cluster,
        pool: &AgentPool,
    ) -> Result<(), Fault> {
        let id = &pool.subnet;
        let subnet = self.pool_subnet(cluster, id, NODE_SUBNET)?;
        if !subnet.delegations.is_empty() || !subnet.association_links.is_empty() {
            return Err(Fault::bad(
                "SubnetIsDelegated",
                format!(
                    "AgentPoolProfile subnet with id {id} cannot be used as it's a delegated subnet. Please check \
                     https://aka.ms/adv-network-prerequest for more details."
                ),
            )
            .at(NODE_SUBNET));
        }
        if cluster.mode == NetworkMode::Overlay || pool.pod_subnet.is_some() {
            check_lengths(id, NODE_SUBNET)?;
            pool.pod_subnet.as_ref().map_or(Ok(()), |id| check_lengths(id, POD_SUBNET))?;
        }
        Self::check_route_table(cluster, subnet.route_table.as_ref())?;
        self.check_way_out(cluster, pool)?;
        self.check_sharing(cluster, id)?;
        let others = cluster.pools.values().filter(|other| other.name != pool.name);
        if let Some(other) =
            others.into_iter().find(|other| other.pod_subnet.is_some() != pool.pod_subnet.is_some())
        {
            return Err(refusal::invalid(
                POD_SUBNET,
                &format!(
                    "All pools of a cluster get pod addresses the same way; pool {} does it otherwise.",
                    other.name
                ),
            ));
        }
        match &pool.pod_subnet {
            Some(pod_subnet) => self.check_pod_subnet(cluster, pool, pod_subnet),
            None if pool.pod_allocation == PodAllocation::StaticBlock => Err(refusal::invalid(
                POD_ALLOCATION,
                "Static blocks are of a pod subnet, and the agent pool has none.",
            )),
            None => Ok(()),
        }
    }

    /// A subnet that a pool names, in the cluster's virtual network.
    fn pool_subnet(&self, cluster: &Cluster, id: &ArmId, target: &str) -> Result<&Subnet, Fault> {
        let found =
            self.region.subnet(id).filter(|(vnet, _)| vnet.meta.location == cluster.meta.location);
        let Some((vnet, subnet)) = found else {
            return Err(Fault::bad(
                "SubnetNotFound",
                format!("The subnet {id} was not found in region {}.", cluster.meta.location),
            )
            .at(target));
        };
        if vnet.meta.id != cluster.vnet {
            return Err(refusal::invalid(
                target,
                &format!(
                    "{id} is not in virtual network {}, where the other pools are.",
                    cluster.vnet
                ),
            ));
        }
        self.refuse_going(&vnet.meta.id, vnet.meta.state)?;
        self.refuse_going(id, subnet.state)?;
        Ok(subnet)
    }

    fn check_pod_subnet(
        &self,
        cluster: &Cluster,
        pool: &AgentPool,
        id: &ArmId,
    ) -> Result<(), Fault> {
        if cluster.mode != NetworkMode::Azure {
            return Err(refusal::invalid(
                POD_SUBNET,
                "A pod subnet needs network plugin azure without a plugin mode.",
            ));
        }
        if cluster.links == Some(NetworkLinks::Bridge) {
            return Err(Fault::bad(
                "NetworkModeNotSupported",
                "Network mode bridge is for pods of the node subnet; a pod subnet's are not in it.",
            )
            .at(POD_SUBNET));
        }
        let is_node_subnet = |other: &AgentPool| other.subnet == *id;
        if is_node_subnet(pool) || cluster.pools.values().any(is_node_subnet) {
            return Err(refusal::invalid(POD_SUBNET, &format!("{id} is a node subnet.")));
        }
        let subnet = self.pool_subnet(cluster, id, POD_SUBNET)?;
        let others = self.region.clusters.values().map(AsRef::as_ref);
        let others = others.filter(|other| other.meta.id != cluster.meta.id).chain([cluster]);
        let mixed = others.flat_map(|other| other.pools.values()).find(|other| {
            other.pod_subnet.as_ref() == Some(id) && other.pod_allocation != pool.pod_allocation
        });
        if let Some(other) = mixed {
            return Err(refusal::invalid(
                POD_ALLOCATION,
                &format!(
                    "{id} is shared out otherwise for agent pool {}; a subnet is either shared out in static blocks or \
                     dynamically.",
                    other.name
                ),
            ));
        }
        let is_aks = |one: &Delegation| one.service.eq_ignore_ascii_case(kind::AKS_SERVICE);
        if let Some(other) = subnet.delegations.iter().find(|one| !is_aks(one)) {
            return Err(Fault::bad(
                "ResourceNotPermittedOnDelegatedSubnet",
                format!("Subnet {id} is delegated to {}.", other.service),
            )
            .at(POD_SUBNET));
        }
        // The network provider's refusal of AKS' delegation.
        let is_pods = |holder: &Holder| matches!(holder, Holder::PodBatch { .. });
        match subnet.held.values().find(|holder| !is_pods(holder)) {
            Some(holder) => Err(Fault::bad(
                "SubnetDelegationsCannotChangeWhenSubnetUsedByResource",
                format!(
                    "Delegations of subnet {id} cannot be changed from [] to [{}] because it is being used by the \
                     resource {}.",
                    kind::AKS_SERVICE,
                    refusal::holder_id(id, holder)
                ),
            )
            .at(POD_SUBNET)),
            None => Ok(()),
        }
    }

    /// Kubenet writes its own route table (AKS documentation, "Bring your own route table with kubenet").
    fn check_route_table(cluster: &Cluster, table: Option<&ArmId>) -> Result<(), Fault> {
        if cluster.mode == NetworkMode::Kubenet
            && table.is_some_and(|table| Some(table) != cluster.route_table.as_ref())
        {
            return Err(Fault::bad(
                "CustomRouteTableWithUnsupportedMSIType",
                "Clusters using managed identity type SystemAssigned do not support bringing your own route table. \
                 Please see https://aka.ms/aks/customrt for more information",
            ));
        }
        Ok(())
    }

    /// A kubenet cluster shares its node subnets with no other cluster (AKS documentation, "Use kubenet networking").
    fn check_sharing(&self, cluster: &Cluster, subnet: &ArmId) -> Result<(), Fault> {
        let others = self.region.clusters.values().filter(|other| other.meta.id != cluster.meta.id);
        let sharing = others.into_iter().find(|other| {
            let is_kubenet = [cluster.mode, other.mode].contains(&NetworkMode::Kubenet);
            is_kubenet && other.pools.values().any(|pool| pool.subnet == *subnet)
        });
        match sharing {
            Some(other) => Err(refusal::invalid(
                NODE_SUBNET,
                &format!(
                    "{subnet} is used by {}, and a kubenet cluster shares its subnets with no other cluster.",
                    other.meta.id
                ),
            )),
            None => Ok(()),
        }
    }

    /// Gives the cluster's route table to a pool's node subnet, and delegates its pod subnet.
    pub(super) fn connect(&mut self, cluster: &Cluster, pool: &AgentPool) {
        if let Some(table) = &cluster.route_table {
            self.change_subnet(&pool.subnet, |subnet| subnet.route_table = Some(table.clone()));
        }
        if let Some(pod_subnet) = &pool.pod_subnet {
            self.change_subnet(pod_subnet, |subnet| {
                if subnet.delegations.is_empty() {
                    subnet.delegations.push(network::with_actions(Delegation {
                        name: Name::new(DELEGATION),
                        service: kind::AKS_SERVICE.to_owned(),
                        actions: Vec::new(),
                    }));
                }
                if !subnet.association_links.contains(&cluster.meta.id) {
                    subnet.association_links.push(cluster.meta.id.clone());
                }
            });
        }
    }

    /// Takes back what [`Self::connect`] gave, where no pool that is left in `cluster` needs it.
    pub(super) fn disconnect(&mut self, cluster: &Cluster, pool: &AgentPool) {
        let is_left = |used: &dyn Fn(&AgentPool) -> bool| cluster.pools.values().any(used);
        if let Some(table) = &cluster.route_table
            && !is_left(&|other| other.subnet == pool.subnet)
        {
            self.free_of_route_table(&pool.subnet, table);
        }
        if let Some(pod_subnet) = &pool.pod_subnet
            && !is_left(&|other| other.pod_subnet == pool.pod_subnet)
        {
            self.change_subnet(pod_subnet, |subnet| {
                subnet.association_links.retain(|link| *link != cluster.meta.id);
                if subnet.association_links.is_empty() {
                    subnet.delegations.retain(|delegation| delegation.name != DELEGATION.into());
                }
            });
        }
    }

    /// Takes a cluster's route table from a subnet that has it.
    pub(super) fn free_of_route_table(&mut self, subnet: &ArmId, table: &ArmId) {
        self.change_subnet(subnet, |subnet| {
            if subnet.route_table.as_ref() == Some(table) {
                subnet.route_table = None;
            }
        });
    }

    /// Changes a subnet as AKS does it: no operation of the subnet's own. One that is gone stays so.
    pub(super) fn change_subnet(&mut self, id: &ArmId, change: impl FnOnce(&mut Subnet)) {
        let Some((_, subnet)) = self.region.subnet(id) else { return };
        let before = subnet.clone();
        let generation = self.generation;
        let subnet = self.subnet_mut(id);
        change(subnet);
        if *subnet == before {
            return;
        }
        subnet.changed = generation;
        let Some(vnet) = id.parent() else { return };
        let vnet = self.vnet_mut(&vnet);
        vnet.meta.changed = generation;
        vnet.meta.etag = etag(&vnet.meta.id, generation);
    }
}

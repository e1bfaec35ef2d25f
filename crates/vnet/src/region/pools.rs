//! Node pools: what they may be, how they grow and shrink, and which subnets they bind.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, UNCHANGED, etag, network, refusal};
use crate::{
    command::{Accepted, Outcome, PutPool},
    fault::Fault,
    kind,
    model::{
        AgentPool, Cluster, Delegation, NetworkMode, NextHop, OutboundType, PoolMode,
        ProvisioningState,
    },
    name::{ArmId, Name},
    sizing::{
        self, MAX_KUBENET_NODES, MAX_NODES, MAX_POOL_NODES, MAX_POOLS, Need, POD_LIMITS, PoolSize,
        Range,
    },
};

/// The name of the delegation that AKS makes on a pod subnet.
const DELEGATION: &str = "aks-delegation";
/// Pods that a pool must have room for (AKS documentation, "Quotas, virtual machine size restrictions, and
/// region availability").
const FEWEST_PODS: u32 = 30;

const NODE_SUBNET: &str = "agentPoolProfile.vnetSubnetID";
const POD_SUBNET: &str = "agentPoolProfile.podSubnetID";

impl Change {
    pub(super) fn put_pool(&mut self, id: &ArmId, put: PutPool) -> Result<Accepted, Fault> {
        self.live_group(id)?;
        let cluster_id = id.parent().ok_or_else(|| refusal::wrong_kind(id, kind::POOL))?;
        if !self.region.clusters.contains_key(&cluster_id) {
            return Err(refusal::parent_not_found(id, &cluster_id));
        }
        let mut cluster = self.live_cluster(&cluster_id)?.as_ref().clone();
        self.refuse_busy(&cluster)?;
        let is_new = !cluster.pools.contains_key(&put.name);
        self.put_pool_into(&mut cluster, put)?;
        let state = cluster.meta.state;
        self.touch(&mut cluster.meta, state);
        self.region.clusters.insert(cluster_id, Arc::new(cluster));
        Ok(self.put(id, is_new))
    }

    /// Makes or changes a pool of a cluster that is there.
    pub(super) fn put_pool_into(
        &mut self,
        cluster: &mut Cluster,
        put: PutPool,
    ) -> Result<(), Fault> {
        let name = put.name.clone();
        let before = match cluster.pools.get(&name).cloned() {
            Some(old) => {
                let pool = self.changed_pool(&old, put)?;
                cluster.pools.insert(name.clone(), pool);
                Some(old)
            }
            None => {
                let first = first_pool(cluster).map(|first| (first.subnet.clone(), first.subnet_given));
                let pool = self.new_pool(cluster, put, PoolMode::User, first)?;
                self.check_pool_subnets(cluster, &pool)?;
                cluster.pools.insert(name.clone(), pool);
                self.check_ranges(cluster)?;
                None
            }
        };
        check_pools(cluster)?;
        let pool = cluster.pools[&name].clone();
        let need = |pool: &AgentPool| sizing::planned_need(PoolSize::of(cluster.mode, pool));
        // A pool that shrinks is not asked whether it fits.
        let was = before.as_ref().map_or_else(Need::default, need);
        if need(&pool).node_subnet > was.node_subnet {
            self.check_sizes(cluster)?;
        }
        if before.is_none() {
            self.connect(cluster, &pool);
        }
        self.resize(cluster, &name, before.map_or(0, |old| old.count))
    }

    /// Makes or removes nodes until there are as many as asked for.
    pub(super) fn resize(
        &mut self,
        cluster: &mut Cluster,
        name: &Name,
        before: u32,
    ) -> Result<(), Fault> {
        let count = cluster.pools[name].count;
        if count > before {
            self.add_nodes(cluster, name, count - before)?;
        } else {
            let n = usize::try_from(before - count).unwrap_or(usize::MAX);
            self.remove_nodes(&cluster.meta.id, name, n);
        }
        self.sync_members(cluster);
        Ok(())
    }

    /// A pool that is not there yet. `first` is the first pool's subnet, and whether a caller gave it.
    pub(super) fn new_pool(
        &self,
        cluster: &Cluster,
        put: PutPool,
        mode: PoolMode,
        first: Option<(ArmId, bool)>,
    ) -> Result<AgentPool, Fault> {
        check_pool_name(put.name.as_str())?;
        let pool_id = cluster.meta.id.child("agentPools", put.name.as_str());
        let given = put.subnet.map(|subnet| (subnet, true));
        let (subnet, subnet_given) = given.or(first).ok_or_else(|| {
            Fault::bad(
                "AgentPoolsWithEmptySubnetError",
                format!("Agent pool {} has no subnet.", put.name),
            )
            .at(NODE_SUBNET)
        })?;
        let autoscale = put.autoscale;
        let pool = AgentPool {
            mode: put.mode.unwrap_or(mode),
            count: put.count.unwrap_or_else(|| autoscale.map_or(1, |(least, _)| least)),
            max_pods: put.max_pods.unwrap_or_else(|| default_max_pods(cluster.mode)),
            subnet,
            subnet_given,
            pod_subnet: put.pod_subnet,
            version: put.version.unwrap_or_else(|| cluster.version.clone()),
            vm_size: put.vm_size.unwrap_or_else(|| "Standard_D2s_v3".to_owned()),
            labels: put.labels.unwrap_or_else(BTreeMap::new),
            taints: put.taints.unwrap_or_default(),
            max_surge: put.max_surge.unwrap_or_else(|| "10%".to_owned()),
            autoscale,
            next_instance: 0,
            state: ProvisioningState::Creating,
            changed: self.generation,
            etag: etag(&pool_id, self.generation),
            kept: put.kept,
            name: put.name,
        };
        if pool.version != cluster.version {
            return Err(refusal::not_supported(
                "agentPoolProfile.orchestratorVersion",
                "A node pool of another version than its cluster's",
            ));
        }
        check_limits(&pool)?;
        if pool.count > 0 && pool.max_pods.saturating_mul(pool.count) < FEWEST_PODS {
            return Err(Fault::bad(
                "InsufficientAgentPoolMaxPodsPerAgentPool",
                format!(
                    "Agent pool {} has room for {} pods; it must have room for {FEWEST_PODS}.",
                    pool.name,
                    pool.max_pods * pool.count
                ),
            )
            .at("agentPoolProfile.maxPods"));
        }
        Ok(pool)
    }

    /// What `put` makes of a pool that is there.
    fn changed_pool(&self, old: &AgentPool, put: PutPool) -> Result<AgentPool, Fault> {
        let fixed = [
            (put.subnet.is_some_and(|subnet| subnet != old.subnet), NODE_SUBNET),
            (put.pod_subnet.is_some_and(|subnet| Some(subnet) != old.pod_subnet), POD_SUBNET),
            (put.max_pods.is_some_and(|pods| pods != old.max_pods), "agentPoolProfile.maxPods"),
            (
                put.vm_size.is_some_and(|size| !size.eq_ignore_ascii_case(&old.vm_size)),
                "agentPoolProfile.vmSize",
            ),
        ];
        if let Some((_, path)) = fixed.into_iter().find(|(differs, _)| *differs) {
            return Err(refusal::property_change(path));
        }
        if put.version.is_some_and(|version| version != old.version) {
            return Err(refusal::not_supported(
                "agentPoolProfile.orchestratorVersion",
                "An upgrade to another version of Kubernetes",
            ));
        }
        let mut pool = old.clone();
        pool.mode = put.mode.unwrap_or(old.mode);
        pool.count = put.count.unwrap_or(old.count);
        pool.labels = put.labels.unwrap_or_else(|| old.labels.clone());
        pool.taints = put.taints.unwrap_or_else(|| old.taints.clone());
        pool.max_surge = put.max_surge.unwrap_or_else(|| old.max_surge.clone());
        pool.autoscale = put.autoscale;
        pool.kept = put.kept;
        if pool == *old {
            return Ok(pool);
        }
        pool.state = if pool.count == old.count {
            ProvisioningState::Updating
        } else {
            ProvisioningState::Scaling
        };
        pool.changed = self.generation;
        pool.etag = super::uuid_of(&format!("{} {}", old.etag, self.generation));
        check_limits(&pool)?;
        Ok(pool)
    }

    pub(super) fn delete_pool(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some((cluster, pool)) = self.region.pool(id) else { return Ok(UNCHANGED) };
        if pool.state == ProvisioningState::Deleting {
            let operation = self.region.running_operation(id).map(|operation| operation.id);
            return Ok(Accepted { outcome: Outcome::Deleting, operation });
        }
        let name = pool.name.clone();
        let mut cluster = cluster.as_ref().clone();
        self.refuse_busy(&cluster)?;
        let generation = self.generation;
        let pool = cluster.pools.get_mut(&name).expect("the pool was found above");
        pool.state = ProvisioningState::Deleting;
        pool.changed = generation;
        check_pools(&cluster)?;
        self.remove_nodes(&cluster.meta.id, &name, usize::MAX);
        self.sync_members(&cluster);
        let state = cluster.meta.state;
        self.touch(&mut cluster.meta, state);
        self.region.clusters.insert(cluster.meta.id.clone(), Arc::new(cluster));
        Ok(self.deleting(id))
    }

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
        self.check_route_table(cluster, id, subnet.route_table.as_ref())?;
        self.check_sharing(cluster, id)?;
        let others = cluster.pools.values().filter(|other| other.name != pool.name);
        if let Some(other) = others.into_iter().find(|other| other.pod_subnet.is_some() != pool.pod_subnet.is_some())
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
            None => Ok(()),
        }
    }

    /// A subnet that a pool names, in the cluster's virtual network.
    fn pool_subnet(
        &self,
        cluster: &Cluster,
        id: &ArmId,
        target: &str,
    ) -> Result<&crate::model::Subnet, Fault> {
        let found = self.region.subnet(id).filter(|(vnet, _)| vnet.meta.location == cluster.meta.location);
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
                &format!("{id} is not in virtual network {}, where the other pools are.", cluster.vnet),
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
        let is_node_subnet = |other: &AgentPool| other.subnet == *id;
        if is_node_subnet(pool) || cluster.pools.values().any(is_node_subnet) {
            return Err(refusal::invalid(POD_SUBNET, &format!("{id} is a node subnet.")));
        }
        let subnet = self.pool_subnet(cluster, id, POD_SUBNET)?;
        let is_aks = |one: &Delegation| one.service.eq_ignore_ascii_case(kind::AKS_SERVICE);
        if let Some(other) = subnet.delegations.iter().find(|one| !is_aks(one)) {
            return Err(Fault::bad(
                "ResourceNotPermittedOnDelegatedSubnet",
                format!("Subnet {id} is delegated to {}.", other.service),
            )
            .at(POD_SUBNET));
        }
        // The network provider's refusal of AKS' delegation.
        let is_pods = |holder: &crate::model::Holder| {
            matches!(holder, crate::model::Holder::PodBatch { .. })
        };
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

    /// Kubenet writes its own route table; user-defined routing needs one with a way out
    /// (AKS documentation, "Bring your own route table with kubenet", "Customize cluster egress with outbound types").
    fn check_route_table(
        &self,
        cluster: &Cluster,
        subnet: &ArmId,
        table: Option<&ArmId>,
    ) -> Result<(), Fault> {
        if cluster.mode == NetworkMode::Kubenet
            && table.is_some_and(|table| Some(table) != cluster.route_table.as_ref())
        {
            return Err(Fault::bad(
                "CustomRouteTableWithUnsupportedMSIType",
                "Clusters using managed identity type SystemAssigned do not support bringing your own route table. \
                 Please see https://aka.ms/aks/customrt for more information",
            ));
        }
        if cluster.outbound != OutboundType::UserDefinedRouting {
            return Ok(());
        }
        let Some(table) = table.and_then(|table| self.region.route_tables.get(table)) else {
            return Err(Fault::bad(
                "ExistingRouteTableNotAssociatedWithSubnet",
                format!(
                    "An existing route table has not been associated with subnet {subnet}. Please update the route table \
                     association"
                ),
            ));
        };
        match table.routes.values().find(|route| route.prefix.length() == 0).map(|route| route.next_hop) {
            Some(NextHop::VirtualAppliance(_)) => Ok(()),
            Some(NextHop::Internet | NextHop::VnetLocal | NextHop::None) => Err(Fault::bad(
                "RouteTableInvalidNextHop",
                format!("The next hop of 0.0.0.0/0 in route table {} is no appliance.", table.meta.id),
            )),
            None => Err(Fault::bad(
                "RouteTableMissingDefaultRouteError",
                format!("Route table {} has no route for 0.0.0.0/0.", table.meta.id),
            )),
        }
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

    /// Refuses pools that do not fit into their subnets or into the pod CIDR.
    pub(super) fn check_sizes(&self, cluster: &Cluster) -> Result<(), Fault> {
        let mut nodes_need: BTreeMap<&ArmId, u64> = BTreeMap::new();
        let mut pods_need: BTreeMap<&ArmId, u64> = BTreeMap::new();
        let mut pod_cidr = 0;
        for pool in staying(cluster) {
            let need = sizing::planned_need(PoolSize::of(cluster.mode, pool));
            *nodes_need.entry(&pool.subnet).or_default() += need.node_subnet;
            pod_cidr += need.pod_cidr;
            if let Some(pod_subnet) = &pool.pod_subnet {
                *pods_need.entry(pod_subnet).or_default() += need.pod_subnet;
            }
        }
        let fits = |needs: BTreeMap<&ArmId, u64>, target: &'static str| {
            needs.into_iter().try_for_each(|(id, need)| match self.region.subnet(id) {
                Some((_, subnet)) => {
                    let name = subnet.name.as_str();
                    sizing::check_fits(need, Range::Subnet(name, subnet.prefix, target))
                }
                None => Err(refusal::reference(id, &cluster.meta.id)),
            })
        };
        fits(nodes_need, NODE_SUBNET)?;
        fits(pods_need, POD_SUBNET)?;
        match cluster.pod_cidr {
            Some(range) => sizing::check_fits(pod_cidr, Range::PodCidr(range)),
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
        if cluster.route_table.is_some() && !is_left(&|other| other.subnet == pool.subnet) {
            self.change_subnet(&pool.subnet, |subnet| {
                if subnet.route_table == cluster.route_table {
                    subnet.route_table = None;
                }
            });
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

    /// Changes a subnet as AKS does it: no operation of the subnet's own. One that is gone stays so.
    fn change_subnet(&mut self, id: &ArmId, change: impl FnOnce(&mut crate::model::Subnet)) {
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

/// The pools that are not being deleted.
fn staying(cluster: &Cluster) -> impl Iterator<Item = &AgentPool> {
    cluster.pools.values().filter(|pool| pool.state != ProvisioningState::Deleting)
}

/// The pool whose subnet another one gets that names none: the first system pool by name.
fn first_pool(cluster: &Cluster) -> Option<&AgentPool> {
    staying(cluster).find(|pool| pool.mode == PoolMode::System)
}

/// Rules about all pools of a cluster together.
pub(super) fn check_pools(cluster: &Cluster) -> Result<(), Fault> {
    if cluster.pools.len() > MAX_POOLS {
        return Err(Fault::bad(
            "MaxAgentPoolCountReached",
            format!("A cluster has at most {MAX_POOLS} agent pools."),
        ));
    }
    if first_pool(cluster).is_none() {
        return Err(Fault::bad(
            "MustDefineAtLeastOneSystemPool",
            "There has to be at least one system agent pool.",
        ));
    }
    let most = if cluster.mode == NetworkMode::Kubenet { MAX_KUBENET_NODES } else { MAX_NODES };
    let nodes: u32 = staying(cluster).map(|pool| PoolSize::of(cluster.mode, pool).nodes).sum();
    if nodes > most {
        return Err(Fault::bad(
            "AgentPoolMaxCountExceeded",
            format!("The cluster would have {nodes} nodes; it can have {most}."),
        )
        .at("agentPoolProfile.count"));
    }
    Ok(())
}

/// Pods per node where nobody says: recorded answers of the service. For a pod subnet its documentation has
/// both 110 and 250; `az` and the recordings of the article's commands have what node subnets have.
fn default_max_pods(mode: NetworkMode) -> u32 {
    match mode {
        NetworkMode::Kubenet => 110,
        NetworkMode::Azure => 30,
        NetworkMode::Overlay | NetworkMode::None => 250,
    }
}

/// The name of a Linux pool: 1 to 12 lower-case letters and digits, a letter first
/// (AKS documentation, "Create node pools in AKS", limitations).
fn check_pool_name(name: &str) -> Result<(), Fault> {
    let fits = name.len() <= 12
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if fits {
        return Ok(());
    }
    let target = "agentPoolProfile.name";
    Err(Fault::bad(
        "InvalidParameter",
        format!(
            "The value of parameter {target} is invalid. Error details: {name} is not 1 to 12 lower-case letters and \
             digits with a letter first. Please see https://aka.ms/aks-naming-rules for more details."
        ),
    )
    .at(target))
}

/// The limits of one pool.
fn check_limits(pool: &AgentPool) -> Result<(), Fault> {
    if !POD_LIMITS.contains(&pool.max_pods) {
        return Err(refusal::invalid(
            "agentPoolProfile.maxPods",
            &format!(
                "{} is not between {} and {}.",
                pool.max_pods,
                POD_LIMITS.start(),
                POD_LIMITS.end()
            ),
        ));
    }
    let least = if pool.mode == PoolMode::System { 1 } else { 0 };
    if !(least..=MAX_POOL_NODES).contains(&pool.count) {
        let target = "agentPoolProfile.count";
        return Err(Fault::bad(
            "InvalidParameter",
            format!(
                "{target} was {}. It must be greater or equal to minCount:{least} and less than or equal to \
                 maxCount:{MAX_POOL_NODES}. If allowedMinCount was expected to be 0 but is 1: 1) The nodepool is a VMAS \
                 pool. 2) api Version is less than 2020-03-01. 3) The node is a system pool.",
                pool.count
            ),
        )
        .at(target));
    }
    if let Some((fewest, most)) = pool.autoscale
        && (fewest > most || fewest < least || most > MAX_POOL_NODES)
    {
        return Err(refusal::invalid(
            "agentPoolProfile.maxCount",
            &format!("{fewest} to {most} is no range of node counts between {least} and {MAX_POOL_NODES}."),
        ));
    }
    if sizing::surge_nodes(&pool.max_surge, pool.count).is_none() {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxSurge",
            &format!("`{}` is neither a number nor a percentage up to 100%.", pool.max_surge),
        ));
    }
    Ok(())
}

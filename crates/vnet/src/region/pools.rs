//! Node pools: what they may be, how they grow and shrink, and which subnets they bind.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, UNCHANGED, etag, refusal, upgrades};
use crate::{
    command::{Accepted, PutPool},
    fault::Fault,
    kind,
    model::{AgentPool, Cluster, Machine, NetworkMode, PoolMode, ProvisioningState},
    name::{ArmId, Name},
    sizing::{
        self, MAX_DUAL_KUBENET_NODES, MAX_KUBENET_NODES, MAX_NODES, MAX_POOL_NODES, MAX_POOLS,
        Need, POD_LIMITS, PoolSize, Range,
    },
};

/// Pods that a pool must have room for (AKS documentation, "Quotas, virtual machine size restrictions, and
/// region availability").
const FEWEST_PODS: u32 = 30;

/// Minutes that pods may have to leave a node (AKS documentation, "Set node drain timeout value").
const DRAIN_TIMEOUTS: std::ops::RangeInclusive<u32> = 1..=1_440;

/// The property that names a pool's node subnet.
pub(super) const NODE_SUBNET: &str = "agentPoolProfile.vnetSubnetID";
/// The property that names a pool's pod subnet.
pub(super) const POD_SUBNET: &str = "agentPoolProfile.podSubnetID";

/// The property that says how a pod subnet is shared out.
pub(super) const POD_ALLOCATION: &str = "agentPoolProfile.podIPAllocationMode";

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
        self.region.clusters.insert(cluster_id.clone(), Arc::new(cluster));
        self.advance_upgrades(&cluster_id);
        Ok(self.put(id, is_new))
    }

    /// Makes or changes a pool of a cluster that is there.
    pub(super) fn put_pool_into(
        &mut self,
        cluster: &mut Cluster,
        put: PutPool,
    ) -> Result<(), Fault> {
        let name = put.name.clone();
        let before = cluster.pools.get(&name).cloned();
        let pool = if let Some(old) = &before {
            self.keep_images(cluster);
            self.changed_pool(&cluster.version, old, put)?
        } else {
            let first = first_pool(cluster).map(|first| (first.subnet.clone(), first.subnet_given));
            let pool = self.new_pool(cluster, put, PoolMode::User, first)?;
            self.check_pool_subnets(cluster, &pool)?;
            pool
        };
        cluster.pools.insert(name.clone(), pool.clone());
        if before.is_none() {
            self.check_ranges(cluster)?;
        }
        check_pools(cluster)?;
        let need = |pool: &AgentPool| sizing::planned_need(PoolSize::of(cluster.mode, pool));
        // A pool that shrinks is not asked whether it fits.
        let was = before.as_ref().map_or_else(Need::default, need);
        if need(&pool).node_subnet > was.node_subnet {
            self.check_sizes(cluster)?;
            self.check_port_budget(cluster)?;
        }
        if before.is_none() {
            self.connect(cluster, &pool);
        }
        self.resize(cluster, &name)?;
        let is_old = before.is_some_and(|before| before.version != pool.version);
        if is_old || self.has_old_nodes(cluster, &name) {
            self.begin_upgrade(cluster, &[name])?;
        }
        Ok(())
    }

    /// Makes or removes nodes until there are as many as asked for.
    pub(super) fn resize(&mut self, cluster: &mut Cluster, name: &Name) -> Result<(), Fault> {
        let is_staying = |machine: &&Arc<Machine>| {
            machine.meta.state != ProvisioningState::Deleting
                && machine.node().is_some_and(|node| node.pool == *name && !node.is_surge)
        };
        let nodes = self.region.nodes_of(&cluster.meta.id);
        let n = nodes.into_iter().filter(is_staying).count();
        let wanted = usize::try_from(cluster.pools[name].count).unwrap_or(usize::MAX);
        if wanted > n {
            self.add_nodes(cluster, name, wanted - n, false)?;
        } else {
            self.remove_nodes(&cluster.meta.id, name, n - wanted);
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
            pod_allocation: put.pod_allocation.unwrap_or_default(),
            mode: put.mode.unwrap_or(mode),
            count: put.count.unwrap_or_else(|| autoscale.map_or(1, |(least, _)| least)),
            max_pods: put.max_pods.unwrap_or_else(|| default_max_pods(cluster.mode)),
            subnet,
            subnet_given,
            pod_subnet: put.pod_subnet,
            version: put.version.unwrap_or_else(|| cluster.version.clone()),
            vm_size: put.vm_size.unwrap_or_else(|| "Standard_D2s_v3".to_owned()),
            labels: put.labels.unwrap_or_default(),
            taints: put.taints.unwrap_or_default(),
            max_surge: put.max_surge.unwrap_or_else(|| "10%".to_owned()),
            max_unavailable: put.max_unavailable.unwrap_or_else(|| "0".to_owned()),
            drain_timeout_minutes: put.drain_timeout_minutes.unwrap_or(30),
            image: 0,
            upgrade: None,
            autoscale,
            ordinal: cluster.pools.values().map(|pool| pool.ordinal + 1).max().unwrap_or(0),
            next_instance: 0,
            state: ProvisioningState::Creating,
            changed: self.generation,
            etag: etag(&pool_id, self.generation),
            kept: put.kept,
            name: put.name,
        };
        upgrades::check_skew(&cluster.version, &pool.version)?;
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
    fn changed_pool(
        &self,
        control_plane: &str,
        old: &AgentPool,
        put: PutPool,
    ) -> Result<AgentPool, Fault> {
        if old.state == ProvisioningState::Deleting {
            return Err(Fault::conflict(
                "OperationNotAllowed",
                format!("Agent pool {} is being deleted.", old.name),
            ));
        }
        let fixed = [
            (put.subnet.is_some_and(|subnet| subnet != old.subnet), NODE_SUBNET),
            (put.pod_subnet.is_some_and(|subnet| Some(subnet) != old.pod_subnet), POD_SUBNET),
            (put.pod_allocation.is_some_and(|it| it != old.pod_allocation), POD_ALLOCATION),
            (put.max_pods.is_some_and(|pods| pods != old.max_pods), "agentPoolProfile.maxPods"),
            (
                put.vm_size.is_some_and(|size| !size.eq_ignore_ascii_case(&old.vm_size)),
                "agentPoolProfile.vmSize",
            ),
        ];
        if let Some((_, path)) = fixed.into_iter().find(|(differs, _)| *differs) {
            return Err(refusal::property_change(path));
        }
        let mut pool = old.clone();
        if let Some(version) = put.version {
            let target = "agentPoolProfile.orchestratorVersion";
            upgrades::check_version(&old.version, &version, target)?;
            upgrades::check_skew(control_plane, &version)?;
            pool.version = version;
        }
        pool.mode = put.mode.unwrap_or(old.mode);
        pool.count = put.count.unwrap_or(old.count);
        pool.labels = put.labels.unwrap_or_else(|| old.labels.clone());
        pool.taints = put.taints.unwrap_or_else(|| old.taints.clone());
        pool.max_surge = put.max_surge.unwrap_or_else(|| old.max_surge.clone());
        pool.max_unavailable = put.max_unavailable.unwrap_or_else(|| old.max_unavailable.clone());
        pool.drain_timeout_minutes = put.drain_timeout_minutes.unwrap_or(old.drain_timeout_minutes);
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
            return Ok(self.deleting_again(id));
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

    /// Refuses pools that do not fit into their subnets or into the pod CIDR.
    pub(super) fn check_sizes(&self, cluster: &Cluster) -> Result<(), Fault> {
        self.check_sizes_with(cluster, &BTreeMap::new())
    }

    /// The same while an upgrade adds surge nodes: then it is nodes that count, not the autoscaler's maximum.
    pub(super) fn check_sizes_with(
        &self,
        cluster: &Cluster,
        surge: &BTreeMap<Name, u32>,
    ) -> Result<(), Fault> {
        let mut nodes_need: BTreeMap<&ArmId, u64> = BTreeMap::new();
        let mut pods_need: BTreeMap<&ArmId, u64> = BTreeMap::new();
        let mut pod_cidr = 0;
        let mut n_nodes = 0;
        for pool in staying(cluster) {
            let mut size = PoolSize::of(cluster.mode, pool);
            let is_upgraded = pool.upgrade.map(|_| upgrades::surge_of(pool));
            if let Some(surge) = surge.get(&pool.name).copied().or(is_upgraded) {
                size.nodes = pool.count + surge;
                check_surge(pool, surge)?;
            }
            n_nodes += size.nodes;
            let need = sizing::planned_need(size);
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
        let most = most_nodes(cluster);
        if n_nodes > most {
            return Err(too_many_nodes(n_nodes, most));
        }
        fits(nodes_need, NODE_SUBNET)?;
        fits(pods_need, POD_SUBNET)?;
        match cluster.pod_cidr {
            Some(range) => sizing::check_fits(pod_cidr, Range::PodCidr(range)),
            None => Ok(()),
        }
    }
}

/// The pools that are not being deleted.
pub(super) fn staying(cluster: &Cluster) -> impl Iterator<Item = &AgentPool> {
    cluster.pools.values().filter(|pool| pool.state != ProvisioningState::Deleting)
}

/// The pool whose subnet another one gets that names none: the oldest system pool.
fn first_pool(cluster: &Cluster) -> Option<&AgentPool> {
    staying(cluster).filter(|pool| pool.mode == PoolMode::System).min_by_key(|pool| pool.ordinal)
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
    let most = most_nodes(cluster);
    let nodes: u32 = staying(cluster).map(|pool| PoolSize::of(cluster.mode, pool).nodes).sum();
    if nodes > most {
        return Err(too_many_nodes(nodes, most));
    }
    Ok(())
}

/// A scale set holds surge nodes, too (AKS documentation, "Configure rolling upgrades for node pools").
fn check_surge(pool: &AgentPool, surge: u32) -> Result<(), Fault> {
    if pool.count + surge <= MAX_POOL_NODES {
        return Ok(());
    }
    Err(Fault::bad(
        "AgentPoolMaxCountExceeded",
        format!(
            "Agent pool {} has {} nodes and would have {surge} more while it is upgraded; it can have {MAX_POOL_NODES} in \
             all. A smaller maxSurge, or maxUnavailable in its place, would do.",
            pool.name, pool.count
        ),
    )
    .at("agentPoolProfile.upgradeSettings.maxSurge"))
}

fn most_nodes(cluster: &Cluster) -> u32 {
    match (cluster.mode, cluster.is_dual_stack()) {
        (NetworkMode::Kubenet, false) => MAX_KUBENET_NODES,
        (NetworkMode::Kubenet, true) => MAX_DUAL_KUBENET_NODES,
        (NetworkMode::Azure | NetworkMode::Overlay | NetworkMode::None, _) => MAX_NODES,
    }
}

fn too_many_nodes(nodes: u32, most: u32) -> Fault {
    Fault::bad(
        "AgentPoolMaxCountExceeded",
        format!("The cluster would have {nodes} nodes; it can have {most}."),
    )
    .at("agentPoolProfile.count")
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

/// Names of pools that no user can have (Azure/AKS, release 2025-04-27).
const RESERVED_POOL_NAMES: [&str; 1] = ["aksmanagedap"];

/// The name of a Linux pool: 1 to 12 lower-case letters and digits, a letter first
/// (AKS documentation, "Create node pools in AKS", limitations).
fn check_pool_name(name: &str) -> Result<(), Fault> {
    let fits = name.len() <= 12
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let target = "agentPoolProfile.name";
    if RESERVED_POOL_NAMES.contains(&name) {
        return Err(refusal::invalid(
            target,
            &format!("{name} is a name that AKS keeps for itself."),
        ));
    }
    if fits {
        return Ok(());
    }
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
    let least = u32::from(pool.mode == PoolMode::System);
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
            &format!(
                "{fewest} to {most} is no range of node counts between {least} and {MAX_POOL_NODES}."
            ),
        ));
    }
    if sizing::surge_nodes(&pool.max_surge, pool.count).is_none() {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxSurge",
            &format!("`{}` is neither a number nor a percentage up to 100%.", pool.max_surge),
        ));
    }
    check_upgrade_settings(pool)
}

/// Settings of upgrades (AKS documentation, "Customize node surge upgrade", "Set node drain timeout value").
fn check_upgrade_settings(pool: &AgentPool) -> Result<(), Fault> {
    let Some(unavailable) = sizing::surge_nodes(&pool.max_unavailable, pool.count.max(1)) else {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxUnavailable",
            &format!("`{}` is neither a number nor a percentage up to 100%.", pool.max_unavailable),
        ));
    };
    if unavailable > 0 && pool.mode == PoolMode::System {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxUnavailable",
            "A system node pool cannot have nodes away during an upgrade.",
        ));
    }
    if unavailable > 0 && !["0", "0%"].contains(&pool.max_surge.as_str()) {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxUnavailable",
            "maxSurge and maxUnavailable cannot both be other than 0.",
        ));
    }
    if unavailable == 0 && ["0", "0%"].contains(&pool.max_surge.as_str()) {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.maxSurge",
            "maxSurge and maxUnavailable cannot both be 0.",
        ));
    }
    if !DRAIN_TIMEOUTS.contains(&pool.drain_timeout_minutes) {
        return Err(refusal::invalid(
            "agentPoolProfile.upgradeSettings.drainTimeoutInMinutes",
            &format!(
                "{} is not between {} and {}.",
                pool.drain_timeout_minutes,
                DRAIN_TIMEOUTS.start(),
                DRAIN_TIMEOUTS.end()
            ),
        ));
    }
    Ok(())
}

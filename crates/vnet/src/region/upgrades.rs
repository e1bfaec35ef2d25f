//! Upgrades of node pools: node by node, with surge nodes that stand in for those that are away.
//!
//! *Expected flow* (AKS documentation, "Upgrade an Azure Kubernetes Service (AKS) cluster", the upgrade's process).
//! Whatever changes what nodes are made from calls [`Change::begin_upgrade`]: surge nodes come, made from what
//! is wanted. Once they are up, as many old nodes as there are surge nodes are drained
//! ([`UpgradeStep::Draining`]). The clusters loop reports each step, and the node is stopped, forgotten, and made
//! anew with its name and its addresses. When it is up it is done, and the next one's turn comes. At last the
//! surge nodes go.
//!
//! *Guarantees.* How far an upgrade is stands in the region alone. A loop that was killed goes on from there.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, UNCHANGED, UPDATED, nodes, refusal};
use crate::{
    command::{Accepted, Outcome},
    fault::Fault,
    kind,
    model::{
        AgentPool, Cluster, IpConfiguration, Machine, NetworkMode, NodeImage, NodePhase,
        ProvisioningState, Role, Upgrade, UpgradeStep, Verb,
    },
    name::{ArmId, Name},
    region::Region,
    sizing,
};

impl Region {
    /// What a node is made from now.
    #[must_use]
    pub fn image_of(&self, machine: &Machine) -> Option<NodeImage> {
        let node = machine.node()?;
        let cluster = self.clusters.get(&node.cluster)?;
        let pool = cluster.pools.get(&node.pool)?;
        Some(node.image.clone().unwrap_or_else(|| pool.image(cluster)))
    }

    /// Whether nodes of the cluster wait for their turn in an upgrade, or have it.
    #[must_use]
    pub fn is_upgrading(&self, cluster: &ArmId) -> bool {
        let Some(there) = self.clusters.get(cluster) else { return false };
        there.pools.values().filter(|pool| pool.upgrade.is_some()).any(|pool| {
            let target = pool.image(there);
            let nodes = Turns::of(self, there, pool, &target);
            !nodes.surge.is_empty() || !nodes.busy.is_empty() || !nodes.waiting.is_empty()
        })
    }
}

/// The nodes of a pool that stay, by where they are in its upgrade.
struct Turns<'a> {
    surge: Vec<&'a Arc<Machine>>,
    busy: Vec<&'a Arc<Machine>>,
    waiting: Vec<&'a Arc<Machine>>,
}

impl<'a> Turns<'a> {
    fn of(region: &'a Region, cluster: &Cluster, pool: &AgentPool, target: &NodeImage) -> Self {
        let mut turns = Self { surge: Vec::new(), busy: Vec::new(), waiting: Vec::new() };
        for machine in region.nodes_of(&cluster.meta.id) {
            let Some(node) = machine.node().filter(|node| node.pool == pool.name) else { continue };
            if machine.meta.state == ProvisioningState::Deleting {
                continue;
            }
            let is_old = node.image.as_ref().is_some_and(|image| image != target);
            if node.is_surge {
                turns.surge.push(machine);
            } else if node.step != UpgradeStep::Idle {
                turns.busy.push(machine);
            } else if is_old {
                turns.waiting.push(machine);
            }
        }
        turns
    }
}

impl Change {
    /// Makes the nodes of a pool anew from the same version: a node image upgrade.
    pub(super) fn upgrade_node_image(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        if !id.is_kind(kind::POOL) {
            return Err(refusal::wrong_kind(id, kind::POOL));
        }
        let Some((before, _)) = self.region.pool(id) else { return Err(refusal::not_found(id)) };
        let before = before.as_ref().clone();
        let cluster_id = before.meta.id.clone();
        self.live_cluster(&cluster_id)?;
        self.refuse_busy(&before)?;
        let mut cluster = before.clone();
        let name = Name::new(id.name());
        let pool = cluster.pools.get_mut(&name).ok_or_else(|| refusal::not_found(id))?;
        if pool.state == ProvisioningState::Deleting {
            return Err(refusal::in_progress(id));
        }
        self.keep_images(&before);
        pool.image += 1;
        self.begin_upgrade(&mut cluster, &[name])?;
        let state = cluster.meta.state;
        self.touch(&mut cluster.meta, state);
        self.region.clusters.insert(cluster_id.clone(), Arc::new(cluster));
        self.advance_upgrades(&cluster_id);
        // A write like any other: one at a time.
        Ok(Accepted { outcome: Outcome::Updated, operation: Some(self.begin(id, Verb::Put)) })
    }

    /// Begins the upgrade of `pools` to what `cluster` says. All must fit with their surge nodes, or nothing begins.
    pub(super) fn begin_upgrade(
        &mut self,
        cluster: &mut Cluster,
        pools: &[Name],
    ) -> Result<(), Fault> {
        let mut surge: BTreeMap<Name, u32> = BTreeMap::new();
        for name in pools {
            let pool = &cluster.pools[name];
            surge.insert(name.clone(), surge_of(pool));
        }
        // Subnets may have come since (https://aka.ms/aks/servicecidroverlap).
        self.check_ranges(cluster)?;
        self.check_sizes_with(cluster, &surge)?;
        for (name, n_surge) in surge {
            if cluster.pools[&name].upgrade.is_some() {
                // Under way to what is wanted since this very command.
                continue;
            }
            let generation = self.generation;
            let pool = cluster.pools.get_mut(&name).expect("the pool was found above");
            let unavailable = sizing::surge_nodes(&pool.max_unavailable, pool.count);
            pool.upgrade = Some(Upgrade { at_once: n_surge.max(unavailable.unwrap_or(0)).max(1) });
            pool.state = ProvisioningState::Upgrading;
            pool.changed = generation;
            pool.etag = super::uuid_of(&format!("{} {generation}", pool.etag));
            self.add_nodes(cluster, &name, n_surge as usize, true)?;
        }
        self.sync_members(cluster);
        Ok(())
    }

    /// Whether an upgrade that failed left nodes of the pool as they were.
    pub(super) fn has_old_nodes(&self, cluster: &Cluster, pool: &Name) -> bool {
        let Some(pool) = cluster.pools.get(pool).filter(|pool| pool.upgrade.is_none()) else {
            return false;
        };
        !Turns::of(&self.region, cluster, pool, &pool.image(cluster)).waiting.is_empty()
    }

    /// Writes down what nodes are made from, before what their cluster and pool say changes.
    pub(super) fn keep_images(&mut self, before: &Cluster) {
        let without: Vec<ArmId> = self
            .region
            .nodes_of(&before.meta.id)
            .into_iter()
            .filter(|machine| machine.node().is_some_and(|node| node.image.is_none()))
            .map(|machine| machine.meta.id.clone())
            .collect();
        for id in without {
            self.change_node(&id, |_, node| {
                node.image = before.pools.get(&node.pool).map(|pool| pool.image(before));
            });
        }
    }

    /// Gives the next nodes their turn, and ends what is at its end.
    pub(super) fn advance_upgrades(&mut self, id: &ArmId) {
        let Some(cluster) = self.region.clusters.get(id).cloned() else { return };
        if cluster.meta.state == ProvisioningState::Deleting {
            return;
        }
        let mut ended: Vec<Name> = Vec::new();
        for pool in cluster.pools.values() {
            let Some(upgrade) = pool.upgrade else { continue };
            let target = pool.image(&cluster);
            let turns = Turns::of(&self.region, &cluster, pool, &target);
            let is_up = |machine: &Arc<Machine>| {
                machine.node().is_some_and(|node| cluster.mode.is_up(node.phase))
            };
            if !turns.surge.iter().copied().all(is_up) {
                continue;
            }
            let room = (upgrade.at_once as usize).saturating_sub(turns.busy.len());
            let is_done = turns.busy.is_empty() && turns.waiting.is_empty();
            let next: Vec<ArmId> =
                turns.waiting.iter().take(room).map(|machine| machine.meta.id.clone()).collect();
            let surge: Vec<ArmId> =
                turns.surge.iter().map(|machine| machine.meta.id.clone()).collect();
            let since = self.now;
            for machine in next {
                self.change_node(&machine, |_, node| node.step = UpgradeStep::Draining { since });
            }
            if is_done {
                self.begin_end_of(&surge);
                ended.push(pool.name.clone());
            }
        }
        let generation = self.generation;
        let Some(there) = self.region.clusters.get_mut(id).filter(|_| !ended.is_empty()) else {
            return;
        };
        for name in ended {
            if let Some(pool) = Arc::make_mut(there).pools.get_mut(&name) {
                pool.upgrade = None;
                // Not real before the surge nodes are gone.
                pool.changed = generation;
            }
        }
        let cluster = there.as_ref().clone();
        self.sync_members(&cluster);
    }

    /// No pod that has to leave is left on a node whose turn it is.
    pub(super) fn node_drained(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let is_its_turn = |step| matches!(step, UpgradeStep::Draining { .. });
        if !self.is_at(id, is_its_turn)? {
            return Ok(UNCHANGED);
        }
        self.change_node(id, |machine, node| {
            node.step = UpgradeStep::Stopping;
            node.phase = NodePhase::Creating;
            machine.state = ProvisioningState::Updating;
        });
        Ok(UPDATED)
    }

    /// Nothing is left of a node but its name and its NIC, which gives back what its new image does not use.
    pub(super) fn node_stopped(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let target = self.region.machines.get(id).and_then(|machine| {
            let node = machine.node()?;
            let cluster = self.region.clusters.get(&node.cluster)?;
            Some(cluster.pools.get(&node.pool)?.image(cluster))
        });
        let is_stopping = self.is_at(id, |step| step == UpgradeStep::Stopping)?;
        let Some(target) = target.filter(|_| is_stopping) else { return Ok(UNCHANGED) };
        if target.mode != NetworkMode::Azure {
            self.keep_primary(id);
        }
        self.change_node(id, |_, node| {
            node.step = UpgradeStep::Starting;
            node.image = Some(target);
        });
        Ok(UPDATED)
    }

    /// Whether a node that stays is at a step.
    fn is_at(&self, id: &ArmId, step: impl Fn(UpgradeStep) -> bool) -> Result<bool, Fault> {
        let machine = self.region.machines.get(id).ok_or_else(|| refusal::not_found(id))?;
        let node = machine.node().ok_or_else(|| refusal::not_found(id))?;
        Ok(step(node.step) && machine.meta.state != ProvisioningState::Deleting)
    }

    /// A node is up. If it was made anew, the next one's turn comes.
    pub(super) fn node_is_up(&mut self, id: &ArmId) {
        let Some(node) = self.region.machines.get(id).and_then(|machine| machine.node()) else {
            return;
        };
        let cluster = node.cluster.clone();
        if node.step == UpgradeStep::Starting {
            self.change_node(id, |_, node| node.step = UpgradeStep::Idle);
        }
        self.advance_upgrades(&cluster);
    }

    /// Gives every node of the cluster that has none a range of the pod CIDR.
    pub(super) fn give_pod_ranges(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        let without: Vec<ArmId> = self
            .region
            .nodes_of(&cluster.meta.id)
            .into_iter()
            .filter(|machine| machine.node().is_some_and(|node| node.pod_range.is_none()))
            .map(|machine| machine.meta.id.clone())
            .collect();
        let Some(mut ranges) = self.free_pod_ranges(cluster) else { return Ok(()) };
        let mut ranges6 = self.free_pod_ranges6(cluster);
        for id in without {
            let range = ranges.next().ok_or_else(nodes::no_pod_range)?;
            let of_ipv6 = match ranges6.as_mut() {
                Some(ranges) => Some(ranges.next().ok_or_else(nodes::no_pod_range)?),
                None => None,
            };
            self.change_node(&id, |_, node| {
                node.pod_range = Some(range);
                node.pod_range6 = of_ipv6;
            });
        }
        Ok(())
    }

    /// Gives back every address of a node's NIC but the primary one.
    fn keep_primary(&mut self, machine: &ArmId) {
        // That of IPv6 is primary for its family.
        let is_extra = |(i, config): &(usize, &IpConfiguration)| *i > 0 && config.address.is_ipv4();
        let Some(nic) = self.region.nic_of(machine) else { return };
        let extra: Vec<IpConfiguration> = nic
            .configs
            .iter()
            .enumerate()
            .filter(is_extra)
            .map(|(_, config)| config.clone())
            .collect();
        if extra.is_empty() {
            return;
        }
        let mut nic = nic.as_ref().clone();
        nic.configs.retain(|config| !extra.contains(config));
        for config in extra {
            self.release(&config.subnet, config.address);
        }
        self.touch(&mut nic.meta, ProvisioningState::Updating);
        self.region.nics.insert(nic.meta.id.clone(), Arc::new(nic));
    }

    /// An upgrade that failed: what is done stays, surge nodes go, and a node that could not be drained stays out of
    /// use until its owner has looked at it. Nodes that are away come back as they were to be.
    pub(super) fn abandon_upgrades(&mut self, id: &ArmId) {
        let Some(cluster) = self.region.clusters.get(id).cloned() else { return };
        let (mut surge, mut away) = (Vec::new(), Vec::new());
        for machine in self.region.nodes_of(id) {
            let Some(node) = machine.node() else { continue };
            if node.is_surge {
                surge.push(machine.meta.id.clone());
            } else if node.step != UpgradeStep::Idle {
                away.push(machine.meta.id.clone());
            }
        }
        self.begin_end_of(&surge);
        for machine in away {
            self.change_node(&machine, |_, node| node.step = UpgradeStep::Idle);
        }
        if let Some(there) = self.region.clusters.get_mut(id) {
            for pool in Arc::make_mut(there).pools.values_mut() {
                pool.upgrade = None;
            }
        }
        self.sync_members(&cluster);
    }

    fn begin_end_of(&mut self, machines: &[ArmId]) {
        for id in machines {
            let Some(machine) = self.region.machines.get(id) else { continue };
            if machine.meta.state != ProvisioningState::Deleting {
                let mut machine = machine.as_ref().clone();
                self.touch(&mut machine.meta, ProvisioningState::Deleting);
                self.region.machines.insert(id.clone(), Arc::new(machine));
            }
        }
    }

    fn change_node(
        &mut self,
        id: &ArmId,
        change: impl FnOnce(&mut crate::model::Meta, &mut crate::model::NodeRole),
    ) {
        let generation = self.generation;
        let Some(machine) = self.region.machines.get_mut(id).map(Arc::make_mut) else { return };
        if let Role::Node(node) = &mut machine.role {
            change(&mut machine.meta, node);
            machine.meta.changed = generation;
        }
    }
}

/// How many nodes an upgrade of the pool adds: at least one, unless nodes may be away instead.
pub(super) fn surge_of(pool: &AgentPool) -> u32 {
    let surge = sizing::surge_nodes(&pool.max_surge, pool.count).unwrap_or(1);
    let unavailable = sizing::surge_nodes(&pool.max_unavailable, pool.count).unwrap_or(0);
    if surge == 0 && unavailable == 0 { pool.count.min(1) } else { surge }
}

/// Refuses a version that neither the control plane nor its rules allow
/// (AKS documentation, "Upgrade an AKS cluster": one minor version at a time, and never back).
pub(super) fn check_version(from: &str, to: &str, target: &'static str) -> Result<(), Fault> {
    let (Some(old), Some(new)) = (numbers(from), numbers(to)) else {
        return Err(refusal::invalid(target, &format!("{to} is not a version of Kubernetes.")));
    };
    if new >= old && new.0 == old.0 && new.1 <= old.1 + 1 {
        return Ok(());
    }
    Err(Fault::bad(
        "OperationNotAllowed",
        format!(
            "Upgrading Kubernetes version {from} to {to} is not allowed. Please see \
             https://aka.ms/aks-supported-k8s-ver for version details."
        ),
    )
    .at(target))
}

/// Refuses nodes that the control plane cannot have: newer than it, or more than three minor versions older
/// (AKS documentation, "Supported Kubernetes versions in AKS", version skew).
pub(super) fn check_skew(control_plane: &str, nodes: &str) -> Result<(), Fault> {
    let (Some(plane), Some(pool)) = (numbers(control_plane), numbers(nodes)) else {
        return Err(refusal::invalid(
            "agentPoolProfile.orchestratorVersion",
            &format!("{nodes} is not a version of Kubernetes."),
        ));
    };
    if pool <= plane && pool.0 == plane.0 && pool.1 + 3 >= plane.1 {
        return Ok(());
    }
    Err(Fault::bad(
        "NodePoolMcVersionIncompatible",
        format!(
            "Node pool version {nodes} and control plane version {control_plane} are incompatible. Nodes cannot be newer \
             than the control plane, nor more than three minor versions older. For more information, please check \
             https://aka.ms/aks/UpgradeVersionRules"
        ),
    )
    .at("agentPoolProfile.orchestratorVersion"))
}

fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let three = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_up_by_one_minor_at_a_time() {
        let check = |from, to| check_version(from, to, "kubernetesVersion").is_ok();
        let allowed = [("1.35.7", "1.36.3"), ("1.36.3", "1.36.3"), ("1.36.3", "1.36.10")];
        assert!(allowed.into_iter().all(|(from, to)| check(from, to)));
        let refused =
            [("1.36.3", "1.36.2"), ("1.36.3", "1.35.7"), ("1.34.1", "1.36.3"), ("1.36.3", "2.0.0")];
        assert!(!refused.into_iter().any(|(from, to)| check(from, to)));
        let fault = check_version("1.36.3", "x", "kubernetesVersion").expect_err("no version");
        assert_eq!(fault.code, "InvalidParameter");
    }

    #[test]
    fn nodes_are_not_newer_than_the_control_plane_nor_much_older() {
        let check = |plane, nodes| check_skew(plane, nodes).is_ok();
        assert!(
            check("1.36.3", "1.36.3") && check("1.36.3", "1.33.0") && check("1.36.3", "1.36.2")
        );
        assert!(
            !check("1.36.3", "1.36.4") && !check("1.36.3", "1.32.9") && !check("1.36.3", "1.37.0")
        );
    }
}

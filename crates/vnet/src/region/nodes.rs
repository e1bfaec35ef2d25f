//! The nodes of a cluster: machines with NICs, the addresses that they take, and what follows their number.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::{Change, etag, refusal, uuid_of};
use crate::{
    addr::{Family, Prefix4, Prefix6},
    fault::Fault,
    kind,
    model::{
        AgentPool, Allocation, Cluster, Holder, IpConfiguration, Machine, Meta, Nic, NodePhase,
        NodeRole, POD_BATCH, PodAllocation, ProvisioningState, Role, Tags, UpgradeStep,
    },
    name::{ArmId, Name},
    sizing::{self, POD_RANGE_LENGTH, POD_RANGE6_LENGTH, PoolSize},
};

/// The load balancers that a cluster's cloud provider keeps, and their back-end pools
/// (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer_repo.go`; the outbound pool is AKS').
const BALANCERS: [&str; 2] = ["kubernetes", "kubernetes-internal"];
/// See [`BALANCERS`].
pub(super) const INBOUND_POOL: &str = "kubernetes";
/// See [`BALANCERS`].
pub(super) const OUTBOUND_POOL: &str = "aksOutboundBackendPool";

/// The same of IPv6 (`pkg/provider/azure_utils.go`, `getResourceByIPFamily`).
pub(super) const INBOUND_POOL_V6: &str = "kubernetes-IPv6";
/// AKS' own of IPv6; its name is made as the cloud provider makes names.
pub(super) const OUTBOUND_POOL_V6: &str = "aksOutboundBackendPool-IPv6";

impl Change {
    /// Makes `n` more nodes of a pool; surge nodes stay only for as long as an upgrade.
    pub(super) fn add_nodes(
        &mut self,
        cluster: &mut Cluster,
        pool: &Name,
        n: usize,
        is_surge: bool,
    ) -> Result<(), Fault> {
        let mut ranges = self.free_pod_ranges(cluster);
        let mut ranges6 = self.free_pod_ranges6(cluster);
        for _ in 0..n {
            let pool = cluster.pools.get_mut(pool).expect("the pool was put before it grows");
            let instance = pool.next_instance;
            pool.next_instance += 1;
            let pool = pool.clone();
            let pod_range = match ranges.as_mut().map(Iterator::next) {
                None => None,
                Some(Some(range)) => Some(range),
                Some(None) => return Err(no_pod_range()),
            };
            let pod_range6 = match ranges6.as_mut().map(Iterator::next) {
                None => None,
                Some(Some(range)) => Some(range),
                Some(None) => return Err(no_pod_range()),
            };
            self.add_node(cluster, &pool, (instance, is_surge), (pod_range, pod_range6))?;
        }
        Ok(())
    }

    /// The node ranges of the pod CIDR that no node has, lowest first; `None` where nodes have no ranges.
    pub(super) fn free_pod_ranges(
        &self,
        cluster: &Cluster,
    ) -> Option<impl Iterator<Item = Prefix4> + use<>> {
        use crate::model::NetworkMode::{Azure, Kubenet, None as Bring, Overlay};
        let pod_cidr = match cluster.mode {
            Kubenet | Overlay => cluster.pod_cidr?,
            Azure | Bring => return None,
        };
        let taken: BTreeSet<Prefix4> = self
            .region
            .nodes_of(&cluster.meta.id)
            .into_iter()
            .filter_map(|machine| machine.node()?.pod_range)
            .collect();
        Some(pod_cidr.subnets(POD_RANGE_LENGTH).filter(move |range| !taken.contains(range)))
    }

    /// The same of the pod CIDR of IPv6.
    pub(super) fn free_pod_ranges6(
        &self,
        cluster: &Cluster,
    ) -> Option<impl Iterator<Item = Prefix6> + use<>> {
        let pod_cidr = cluster.pod_cidr6.filter(|_| cluster.pod_cidr.is_some())?;
        let taken: BTreeSet<Prefix6> = self
            .region
            .nodes_of(&cluster.meta.id)
            .into_iter()
            .filter_map(|machine| machine.node()?.pod_range6)
            .collect();
        let all = (0..).map_while(move |index| pod_cidr.nth_subnet(POD_RANGE6_LENGTH, index));
        Some(all.filter(move |range| !taken.contains(range)))
    }

    fn add_node(
        &mut self,
        cluster: &Cluster,
        pool: &AgentPool,
        (instance, is_surge): (u32, bool),
        (pod_range, pod_range6): (Option<Prefix4>, Option<Prefix6>),
    ) -> Result<(), Fault> {
        let scale_set = scale_set_name(cluster, &pool.name);
        let machine_id =
            scale_set_id(cluster, &pool.name).child("virtualMachines", &instance.to_string());
        let nic_id = machine_id.child("networkInterfaces", &scale_set);
        let location = &cluster.meta.location;
        self.joinable(&pool.subnet, &nic_id, location)?;
        let per_node = PoolSize::of(cluster.mode, pool).per_node();
        let n_addresses = usize::try_from(per_node).unwrap_or(usize::MAX);
        let name = |i: usize| format!("ipconfig{}", i + 1);
        let addresses = self.hold_many(&pool.subnet, n_addresses, |i| Holder::IpConfiguration {
            nic: nic_id.clone(),
            config: name(i),
        })?;
        if let Some(pod_subnet) = &pool.pod_subnet {
            let holder = Holder::PodBatch { node: machine_id.clone() };
            match pool.pod_allocation {
                PodAllocation::Dynamic => {
                    self.hold_many(pod_subnet, POD_BATCH, |_| holder.clone())?;
                }
                PodAllocation::StaticBlock => {
                    self.hold_blocks(pod_subnet, sizing::n_blocks(pool.max_pods), &holder)?;
                }
            }
        }
        let mut addresses: Vec<IpAddr> = addresses.into_iter().map(IpAddr::from).collect();
        if cluster.is_dual_stack() {
            let config = name(addresses.len());
            let holder = Holder::IpConfiguration { nic: nic_id.clone(), config };
            addresses.push(self.hold(&pool.subnet, Family::V6, None, holder)?);
        }
        let configs = addresses.into_iter().enumerate().map(|(i, address)| IpConfiguration {
            name: name(i),
            subnet: pool.subnet.clone(),
            address,
            public_ip: None,
            application_groups: Vec::new(),
            allocation: Allocation::Dynamic,
        });
        let nic = Nic {
            meta: self.part_meta(&nic_id, location, ProvisioningState::Updating),
            mac: self.mac_for(&nic_id),
            security_group: cluster.security_group.clone().filter(|_| pool.subnet_given),
            // Azure AKS documentation: every scale set's NIC has `enableIPForwarding`.
            ip_forwarding: true,
            configs: configs.collect(),
            machine: Some(machine_id.clone()),
        };
        let machine = Machine {
            meta: self.part_meta(&machine_id, location, ProvisioningState::Creating),
            hostname: format!("{scale_set}{}", base36(instance)),
            dns_servers: nic.vnet().map(|vnet| self.dns_servers(&vnet)).unwrap_or_default(),
            nic: nic_id.clone(),
            role: Role::Node(NodeRole {
                cluster: cluster.meta.id.clone(),
                pool: pool.name.clone(),
                instance,
                pod_range,
                pod_range6,
                phase: NodePhase::Creating,
                image: Some(pool.image(cluster)),
                step: UpgradeStep::Idle,
                is_surge,
            }),
        };
        self.region.nics.insert(nic_id, Arc::new(nic));
        self.region.machines.insert(machine_id, Arc::new(machine));
        Ok(())
    }

    /// The name servers that a virtual network gives to a machine made now.
    fn dns_servers(&self, vnet: &ArmId) -> Vec<Ipv4Addr> {
        let vnet = self.region.vnets.get(vnet);
        vnet.map(|vnet| crate::host::platform::dns_servers(vnet)).unwrap_or_default()
    }

    /// The same for the machine of a NIC.
    pub(super) fn dns_servers_for(&self, nic: &ArmId) -> Vec<Ipv4Addr> {
        let vnet = self.region.nics.get(nic).and_then(|nic| nic.vnet());
        vnet.map(|vnet| self.dns_servers(&vnet)).unwrap_or_default()
    }

    /// Begins the end of the `n` newest nodes of a pool. They keep what they hold until they are gone.
    pub(super) fn remove_nodes(&mut self, cluster: &ArmId, pool: &Name, n: usize) {
        let mut going: Vec<ArmId> = self
            .region
            .nodes_of(cluster)
            .into_iter()
            .filter(|machine| {
                machine.meta.state != ProvisioningState::Deleting
                    && machine.node().is_some_and(|node| node.pool == *pool)
            })
            .map(|machine| machine.meta.id.clone())
            .collect();
        // By instance, so the newest are last (Azure scale sets, the default scale-in policy of one zone).
        let keep = going.len().saturating_sub(n);
        for id in going.drain(keep..) {
            if let Some(machine) = self.region.machines.get(&id) {
                let mut machine = machine.as_ref().clone();
                self.touch(&mut machine.meta, ProvisioningState::Deleting);
                self.region.machines.insert(id, Arc::new(machine));
            }
        }
    }

    /// Takes a node out of the region, with its NIC and everything that it holds.
    pub(super) fn drop_node(&mut self, id: &ArmId) {
        let pod_addresses = self.region.pod_addresses_of(id);
        let Some(machine) = self.region.machines.remove(id) else { return };
        let pod_subnet = machine.node().and_then(|node| {
            self.region.clusters.get(&node.cluster)?.pools.get(&node.pool)?.pod_subnet.clone()
        });
        if let Some(pod_subnet) = pod_subnet {
            for address in pod_addresses {
                self.release(&pod_subnet, address.into());
            }
        }
        self.drop_nic(&machine.nic);
    }

    /// Makes the members of the cluster's load balancers the NICs of its nodes. A node that is going gets no new
    /// flows, but keeps its way out for as long as it lives: its kubelet still has pods to end.
    pub(super) fn sync_members(&mut self, cluster: &Cluster) {
        let nodes = self.region.nodes_of(&cluster.meta.id);
        let staying = nodes.iter().filter(|node| node.meta.state != ProvisioningState::Deleting);
        let inbound: Vec<ArmId> = staying.map(|node| node.nic.clone()).collect();
        let outbound: Vec<ArmId> = nodes.iter().map(|node| node.nic.clone()).collect();
        for name in BALANCERS {
            let id = cluster.node_group.sibling(kind::LOAD_BALANCER, name);
            let Some(balancer) = self.region.balancers.get(&id) else { continue };
            let mut next = balancer.as_ref().clone();
            let pools = [
                (INBOUND_POOL, &inbound),
                (OUTBOUND_POOL, &outbound),
                (INBOUND_POOL_V6, &inbound),
                (OUTBOUND_POOL_V6, &outbound),
            ];
            for (pool, members) in pools {
                if let Some(pool) = next.pools.get_mut(&Name::new(pool)) {
                    pool.members.clone_from(members);
                }
            }
            if next != **balancer {
                self.touch(&mut next.meta, ProvisioningState::Updating);
                self.region.balancers.insert(id, Arc::new(next));
            }
        }
    }

    /// The common fields of something that a cluster makes.
    pub(super) fn part_meta(&self, id: &ArmId, location: &str, state: ProvisioningState) -> Meta {
        Meta {
            id: id.clone(),
            location: location.to_owned(),
            tags: Tags::new(),
            etag: etag(id, self.generation),
            guid: uuid_of(id.key()),
            state,
            changed: self.generation,
            kept: crate::model::Kept::new(),
        }
    }

    /// Refuses a change to something that is a part of a cluster being deleted.
    pub(super) fn live_cluster(&self, id: &ArmId) -> Result<&Arc<Cluster>, Fault> {
        let cluster = self.region.clusters.get(id).ok_or_else(|| refusal::not_found(id))?;
        if cluster.meta.state == ProvisioningState::Deleting {
            return Err(refusal::in_progress(id));
        }
        Ok(cluster)
    }
}

/// The refusal of a node that would need a range of a pod CIDR without a free one.
pub(super) fn no_pod_range() -> Fault {
    Fault::bad("InsufficientPodCidr", "No range of the pod CIDR is left for another node.")
        .at("networkProfile.podCIDR")
}

/// The id of a pool's scale set, in the node resource group.
pub(super) fn scale_set_id(cluster: &Cluster, pool: &Name) -> ArmId {
    cluster.node_group.sibling(kind::SCALE_SET, &scale_set_name(cluster, pool))
}

/// `aks-<pool>-<hash>-vmss`.
fn scale_set_name(cluster: &Cluster, pool: &Name) -> String {
    format!("aks-{}-{}-vmss", pool.key(), cluster.hash)
}

/// A scale set instance's number in its computer name: six digits of base 36
/// (Azure documentation, "Understand instance IDs for Azure VM virtual machine scale sets").
fn base36(number: u32) -> String {
    let mut digits = [b'0'; 6];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
        rest /= 36;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::base36;

    #[test]
    fn instances_are_named_in_base_36() {
        for (number, text) in [(0, "000000"), (9, "000009"), (10, "00000a"), (36, "000010")] {
            assert_eq!(base36(number), text);
        }
    }
}

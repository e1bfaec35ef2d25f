//! What addresses a node of a network-only cluster has: kept as the region says, and more of a pod subnet asked for, as
//! nodes with Kubernetes do by their `NodeNetworkConfig`. Not here: the agent that hands them out.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use store::Store;
use tokio::{sync::Notify, time::sleep};
use vnet::{
    addr::Family,
    command::Command,
    model::{POD_BATCH, PodAllocation},
    name::ArmId,
    pods::{
        PodNetwork,
        demand::Scaler,
        exhaustion::{Ask, answer, explain, is_exhausted},
    },
    region::Region,
};

use super::{
    super::ClustersError,
    member::{failed, masquerade},
};
use crate::{
    hands::Hands,
    metrics::METER,
    node::hosted::{Hosted, Offer, Short, Want},
    reconcile::{Chain, now},
};

/// How long links are gathered before they are deleted together.
const GATHER: Duration = Duration::from_millis(50);
/// How often the queue of releases is looked at, and something that failed tried again.
const LOOK: Duration = Duration::from_secs(1);
/// Steps of a batch that one look may take: a node has at most 256 addresses.
const MOST_STEPS: usize = 256 / POD_BATCH + 1;

/// The pod subnets that are exhausted: there, addresses come and go one by one. What `ClusterSubnetState` is for
/// clusters with Kubernetes.
#[derive(Clone, Debug, Default)]
pub(super) struct Exhaustion(Arc<Mutex<BTreeSet<ArmId>>>);

impl Exhaustion {
    /// Whether a subnet is exhausted still, or now that somebody goes short.
    fn judge(&self, region: &Region, subnet: &ArmId, is_anyone_short: bool) -> bool {
        // Only whole values are put in.
        let mut subnets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was = subnets.contains(subnet);
        if !was && !is_anyone_short {
            return false;
        }
        let n_nodes = region.machines.values().filter_map(|machine| {
            let node = machine.node()?;
            region.clusters.get(&node.cluster)?.pools.get(&node.pool)?.pod_subnet.as_ref()
        });
        let n_nodes = n_nodes.filter(|of_node| *of_node == subnet).count() as u64;
        let n_free = region.free_addresses(subnet).count() as u64;
        let is = is_exhausted(was, is_anyone_short, n_free, n_nodes);
        if is {
            subnets.insert(subnet.clone());
        } else {
            subnets.remove(subnet);
        }
        is
    }
}

/// Keeps an agent's addresses what the region says, asks for more of a pod subnet, and clears up.
pub(super) struct Upkeep {
    pub(super) hosted: Arc<Hosted>,
    pub(super) hands: Hands,
    pub(super) store: Store,
    pub(super) machine: ArmId,
    pub(super) name: String,
    pub(super) is_ready: Arc<AtomicBool>,
    /// Rung when the node turns ready.
    pub(super) bell: Arc<Notify>,
    pub(super) offered: Option<Offer>,
    pub(super) exhaustion: Exhaustion,
    /// Whether the node gets fewer addresses than it asks for.
    pub(super) is_short: bool,
}

/// A node that is gone is in no trouble.
impl Drop for Upkeep {
    fn drop(&mut self) {
        METER.out_of_trouble(&self.name);
    }
}

impl Upkeep {
    pub(super) async fn run(mut self) {
        let mut wake = self.store.watch();
        loop {
            wake.mark_unchanged();
            let passed = self.pass().await;
            if passed.is_ok() {
                METER.out_of_trouble(&self.name);
            }
            if let Err(error) = passed {
                METER.failed("agents");
                METER.in_trouble(&self.name, Chain(&error).to_string());
                tracing::warn!(node = self.name, error = %Chain(&error),
                    "a node's addresses are not what they should be; it will be tried again");
                sleep(LOOK).await;
                continue;
            }
            if self.hosted.is_untidy() {
                sleep(GATHER).await;
                self.tidy().await;
            }
            tokio::select! {
                woken = wake.changed() => if woken.is_err() { return },
                () = self.hosted.used() => {}
                () = sleep(LOOK) => self.tidy().await,
            }
        }
    }

    async fn tidy(&self) {
        let hosted = self.hosted.clone();
        if let Err(error) = self.hands.run(move || hosted.tidy()).await {
            tracing::warn!(node = self.name, error = %Chain(&error), "a node is not cleared up yet");
        }
    }

    async fn pass(&mut self) -> Result<(), ClustersError> {
        for _ in 0..MOST_STEPS {
            let Some(offer) = self.offer() else { return Ok(()) };
            let n_addresses = offer.addresses.len();
            if self.offered.as_ref() != Some(&offer) {
                let (hosted, given) = (self.hosted.clone(), offer.clone());
                let offered = self.hands.run(move || hosted.offer(given)).await;
                offered.map_err(|error| failed(&self.name, error.into()))?;
                self.offered = Some(offer);
                if !self.is_ready.swap(true, Ordering::AcqRel) {
                    self.bell.notify_one();
                }
            }
            let region = self.store.snapshot();
            let Some(subnet) = self.dynamic_subnet(&region) else { return Ok(()) };
            let is_exhausted = self.exhaustion.judge(&region, &subnet, false);
            let Some(want) = self.hosted.wants(n_addresses, is_exhausted) else {
                self.is_short = false;
                return Ok(());
            };
            if !self.ask(want, &subnet, is_exhausted).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the region says that the node has; `None` when it is gone.
    fn offer(&self) -> Option<Offer> {
        let region = self.store.snapshot();
        let machine = region.machines.get(&self.machine)?;
        let cluster = region.clusters.get(&machine.node()?.cluster)?;
        let network = self.hosted.config().network;
        let mut block_v6 = None;
        let (block, addresses) = match network {
            PodNetwork::Kubenet | PodNetwork::Overlay => {
                let node = machine.node()?;
                block_v6 = node.pod_range6;
                (Some(node.pod_range?), Vec::new())
            }
            PodNetwork::NodeSubnet | PodNetwork::NodeBridge => {
                let configs = region.nics.get(&machine.nic)?.configs.iter().skip(1);
                (None, configs.filter_map(|config| Family::v4(config.address)).collect())
            }
            PodNetwork::PodSubnet => {
                let pool = cluster.pools.get(&machine.node()?.pool)?;
                // One of a static node's addresses is its own (see `NetworkConfigSource`).
                let n_own = usize::from(pool.pod_allocation == PodAllocation::StaticBlock);
                let addresses = region.pod_addresses_of(&self.machine);
                (None, addresses.into_iter().skip(n_own).collect())
            }
        };
        let masquerade = masquerade(&region, cluster, network);
        let short = self.dynamic_subnet(&region).filter(|_| self.is_short).and_then(|subnet| {
            Some(Short { subnet: subnet.name().to_owned(), why: explain(&region, &subnet)? })
        });
        Some(Offer { block, block_v6, addresses, masquerade, short })
    }

    /// The pod subnet that the node gets more addresses of. Static blocks are all that a node ever has.
    fn dynamic_subnet(&self, region: &Region) -> Option<ArmId> {
        let node = region.machines.get(&self.machine)?.node()?;
        let pool = region.clusters.get(&node.cluster)?.pools.get(&node.pool)?;
        let is_dynamic = pool.pod_allocation == PodAllocation::Dynamic;
        pool.pod_subnet.clone().filter(|_| is_dynamic)
    }

    /// Asks the region for another number of addresses, as AKS's address management does for a `NodeNetworkConfig`: in
    /// whole batches, or one by one where the subnet is exhausted. Says whether anything has changed.
    async fn ask(
        &mut self,
        want: Want,
        subnet: &ArmId,
        is_exhausted: bool,
    ) -> Result<bool, ClustersError> {
        let region = self.store.snapshot();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let has = region.pod_addresses_of(&self.machine);
        let is_held = |address: &&Ipv4Addr| has.binary_search(address).is_ok();
        let step = if is_exhausted { 1 } else { number(POD_BATCH) };
        let answer = answer(Ask {
            wanted: want.total.next_multiple_of(step).min(Scaler::default().max),
            has: number(has.len()),
            listed: number(want.released.len()),
            listed_held: number(want.released.iter().filter(is_held).count()),
            room: number(region.free_addresses(subnet).count()),
            is_exhausted,
        });
        let was_short = std::mem::replace(&mut self.is_short, answer.is_short);
        if answer.is_short {
            let is_news = !self.exhaustion.judge(&region, subnet, false);
            self.exhaustion.judge(&region, subnet, true);
            if is_news {
                tracing::info!(subnet = %subnet.name(), exhausted = true, "the subnet's addresses");
            }
        }
        let Some(total) = answer.total else {
            // What pods are told changes; and an exhausted subnet may have single ones.
            return Ok(answer.is_short && (!was_short || !is_exhausted));
        };
        let (store, machine) = (self.store.clone(), self.machine.clone());
        let command = Command::SetPodAddresses { machine, total, released: want.released };
        match self.hands.run(move || store.change(command, now())).await {
            Ok(_) => Ok(true),
            Err(store::StoreError::Refused(fault)) => {
                tracing::info!(node = self.name, error = %fault, "no more pod addresses");
                Ok(false)
            }
            Err(source) => Err(ClustersError::Report {
                target: self.machine.clone(),
                source: Box::new(source),
            }),
        }
    }
}

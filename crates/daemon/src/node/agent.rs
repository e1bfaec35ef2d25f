//! The agent's verbs: what happens to one attachment. Not here: the words of answers, the socket, where addresses come
//! from, and what nobody asks for (`upkeep`).
//!
//! *Expected flow.* ADD takes an address (in memory, under a short lock), writes the lease down, wires
//! the pod, answers. DEL marks the lease as leaving, takes the route away, marks the link, answers;
//! the reaper deletes marked links together and only then sets the addresses free.
//!
//! *Guarantees.* An address has at most one holder, whatever is killed when: it is written down
//! before the pod is wired, and struck out after the link is gone. A second ADD of the same
//! attachment gives the same address, a DEL of nothing succeeds.
//!
//! *Assumptions.* One agent per node (the ledger's lock), and nobody else changes the links of
//! [`linux::pod::GROUP`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use cni::{
    queue,
    spec::{Code, Failure},
    talk::{Added, Attachment, Pod, Reply, Request},
};
use linux::{
    pod::{PodError, Sandbox, Wirer},
    shortcut::Shortcut,
};
use tokio::sync::Notify;
use vnet::{
    addr::{Prefix4, Prefix6},
    pods::{
        PodNetwork,
        pool::{Exhausted, Grant, Pool, companion},
        ports::{Bandwidth, PortMapping},
        wiring::Path as Way,
    },
};

use super::{
    answers::{added, not_enough, not_wired, not_written, reserved},
    chain,
    config::Config,
    ledger::{Found, Lease, Ledger, Phase},
    rules::{Ported, Ports, Rules},
    shortcut,
};

/// How long an ADD waits for an earlier link of the same attachment to go.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

mod upkeep;

/// Everything about this node's pods.
pub struct Agent {
    network: PodNetwork,
    pub(super) rules: Rules,
    /// Where the kernel can, and the agent is the data plane.
    pub(super) shortcut: Option<Shortcut>,
    ledger: Ledger,
    releases: PathBuf,
    state: Mutex<State>,
    /// Told whenever an attachment is no longer busy, or a link is gone.
    changed: Condvar,
    /// Told whenever use of addresses changes; for whoever asks for more of them.
    pub(super) used: Notify,
}

#[derive(Default)]
struct State {
    pool: Pool<Attachment>,
    leases: BTreeMap<Attachment, Lease>,
    leaving: BTreeMap<Ipv4Addr, Leaving>,
    busy: BTreeSet<Attachment>,
    node: Option<Node>,
    /// Those that were wired and have no shortcut yet, and since when.
    without_shortcut: Vec<(Instant, Attachment)>,
}

struct Leaving {
    lease: Lease,
    /// The link is in the dead group, or was not there.
    is_marked: bool,
}

/// What must be known before a pod can be wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's block, in modes that have one.
    pub block: Option<Prefix4>,
    /// The node's block of IPv6, in dual-stack clusters.
    pub block_v6: Option<Prefix6>,
    /// The MTU of its NIC in bytes.
    pub mtu: u32,
    /// The subnet that its pods' addresses come from, and how the last request for more went (the
    /// `subnetName` and `status` of a `NodeNetworkConfig`'s container); for who reads errors.
    pub origin: Option<(String, String)>,
    /// Why there are no more, where somebody else than an event says so (see `vnet::pods::exhaustion::explain`).
    pub full: Option<String>,
}

impl Agent {
    /// An agent over the leases that were found, none of which has been looked at yet.
    #[must_use]
    pub fn new(config: &Config, ledger: Ledger, found: Found) -> Self {
        let mut state = State::default();
        for (path, why) in found.unreadable {
            tracing::warn!(path = %path.display(), why, "not a lease; left alone");
        }
        for lease in found.leases {
            let (attachment, address) = (lease.attachment.clone(), lease.address);
            let is_held = lease.phase == Phase::Held
                && is_same_namespace(&lease)
                && state.pool.hold(attachment.clone(), address).is_ok();
            if is_held {
                // The kernel has it, or that of an earlier release.
                state.without_shortcut.push((Instant::now(), attachment.clone()));
                state.leases.insert(attachment, lease);
            } else {
                state.retire(lease);
            }
        }
        Self {
            network: config.network,
            rules: Rules::new(&config.interface, config.network, config.is_dual_stack),
            shortcut: if config.dataplane.is_azure() { shortcut() } else { None },
            ledger,
            releases: queue::directory(&config.socket),
            state: Mutex::new(state),
            changed: Condvar::new(),
            used: Notify::new(),
        }
    }

    /// From now on the node has these addresses. Those in `aside` were offered back to the subnet;
    /// none of them is handed out, not even for a moment.
    pub fn set_grant(&self, grant: &Grant, aside: &[Ipv4Addr], node: Node) {
        let mut state = self.state();
        state.pool.set_grant(grant);
        for address in aside {
            state.pool.set_aside(*address);
        }
        state.node = Some(node);
        drop(state);
        self.used.notify_one();
    }

    /// Runs `work` on the pool of addresses.
    pub(super) fn with_pool<T>(&self, work: impl FnOnce(&mut Pool<Attachment>) -> T) -> T {
        work(&mut self.state().pool)
    }

    /// Answers one request.
    pub fn answer(&self, wirer: &mut Wirer, request: Request) -> Reply {
        let outcome = match request {
            Request::Add { attachment, netns, pod, ports, bandwidth } => {
                let wish =
                    Wish { netns: netns.into(), pod, ports, bandwidth, is_address_only: false };
                self.add(wirer, &attachment, wish).map(Reply::Added)
            }
            Request::Reserve { attachment, netns, pod } => {
                let (ports, bandwidth) = (Vec::new(), Bandwidth::default());
                let wish =
                    Wish { netns: netns.into(), pod, ports, bandwidth, is_address_only: true };
                self.add(wirer, &attachment, wish).map(Reply::Added)
            }
            Request::Del { attachment } => {
                self.delete(wirer, &attachment);
                Ok(Reply::Done)
            }
            Request::Check { attachment, netns, addresses } => {
                self.check(wirer, &attachment, Path::new(&netns), &addresses).map(|()| Reply::Done)
            }
            Request::Gc { keep } => {
                self.collect(wirer, &keep.into_iter().collect());
                Ok(Reply::Done)
            }
            Request::Status => self.status().map(|()| Reply::Done),
        };
        outcome.unwrap_or_else(Reply::from)
    }

    fn add(
        &self,
        wirer: &mut Wirer,
        attachment: &Attachment,
        wish: Wish,
    ) -> Result<Added, Failure> {
        let netns = wish.netns.clone();
        let sandbox = Sandbox::open(&netns).map_err(|error| not_wired(&error))?;
        if queue::has(&self.releases, attachment) {
            self.release(wirer, attachment);
        }
        let _busy = self.claim(attachment);
        self.wait_for_link(attachment)?;
        let (lease, is_new) = self.lease(attachment, &sandbox, wish)?;
        let wiring = lease.wiring();
        let interface = &attachment.interface;
        if is_new {
            self.ledger.write(&lease).map_err(|error| {
                self.begin_leaving(attachment);
                not_written(&error)
            })?;
            if let Err(error) = self.connect(wirer, &lease, &sandbox) {
                self.finish_leaving(wirer, attachment);
                return Err(not_wired(&error));
            }
            self.used.notify_one();
        } else if !lease.is_address_only {
            self.wire_again(wirer, &lease, &sandbox, &netns)?;
        }
        if lease.is_address_only {
            return Ok(reserved(&wiring));
        }
        Ok(added(interface, &wiring))
    }

    /// Makes the pair of links, and what leads through it beside the pod's own address.
    fn connect(&self, wirer: &mut Wirer, lease: &Lease, sandbox: &Sandbox) -> Result<(), PodError> {
        if lease.is_address_only {
            return Ok(());
        }
        let wiring = lease.wiring();
        wirer.wire(sandbox, &lease.attachment.interface, &wiring)?;
        self.rules.admit(wirer, &wiring)?;
        wirer.limit(&wiring, &lease.bandwidth)?;
        self.state().without_shortcut.push((Instant::now(), lease.attachment.clone()));
        if !lease.ports.is_empty() {
            self.rules.open(wirer, &wiring, &lease.ports)?;
        }
        Ok(())
    }

    /// A second ADD: nothing is done if all is well, else the pod is wired anew with its address.
    fn wire_again(
        &self,
        wirer: &mut Wirer,
        lease: &Lease,
        sandbox: &Sandbox,
        netns: &Path,
    ) -> Result<(), Failure> {
        let (wiring, interface) = (lease.wiring(), &lease.attachment.interface);
        if lease.netns_id == sandbox.id() {
            let faults =
                wirer.verify(sandbox, interface, &wiring).map_err(|error| not_wired(&error))?;
            let has_ports = wirer
                .has_ports(&lease.wiring(), &lease.ports)
                .map_err(|error| not_wired(&error.into()))?;
            if faults.is_empty() && has_ports {
                return Ok(());
            }
        }
        wirer.remove(&wiring).map_err(|error| not_wired(&error.into()))?;
        let lease = Lease { netns: netns.to_owned(), netns_id: sandbox.id(), ..lease.clone() };
        self.ledger.write(&lease).map_err(|error| not_written(&error))?;
        self.state().leases.insert(lease.attachment.clone(), lease.clone());
        self.connect(wirer, &lease, sandbox).map_err(|error| not_wired(&error))
    }

    /// The lease of this attachment, and whether it was made just now.
    fn lease(
        &self,
        attachment: &Attachment,
        sandbox: &Sandbox,
        wish: Wish,
    ) -> Result<(Lease, bool), Failure> {
        let mut state = self.state();
        if let Some(lease) = state.leases.get(attachment) {
            return Ok((lease.clone(), false));
        }
        let Some(node) = state.node.clone() else {
            return Err(Failure::new(Code::TryAgain, "the node has no pod addresses yet")
                .details("the agent waits until the cluster grants it some"));
        };
        state.check_ports(&wish.ports)?;
        let address = state.take(attachment, &node).map_err(|error| not_enough(&node, &error))?;
        let lease = Lease {
            attachment: attachment.clone(),
            address,
            pod: wish.pod,
            netns: wish.netns,
            netns_id: sandbox.id(),
            network: self.network,
            block: node.block,
            block_v6: node.block_v6,
            mtu: node.mtu,
            phase: Phase::Held,
            ports: wish.ports,
            bandwidth: wish.bandwidth,
            is_address_only: wish.is_address_only,
        };
        state.leases.insert(attachment.clone(), lease.clone());
        Ok((lease, true))
    }

    fn delete(&self, wirer: &mut Wirer, attachment: &Attachment) {
        let _busy = self.claim(attachment);
        self.finish_leaving(wirer, attachment);
    }

    /// Ends a lease, if there is one: in memory, on disk, then in the kernel.
    fn finish_leaving(&self, wirer: &mut Wirer, attachment: &Attachment) {
        let Some(lease) = self.begin_leaving(attachment) else { return };
        if let Err(error) = self.ledger.write(&lease) {
            // The lease will be found as held, and its namespace gone: it goes then.
            tracing::warn!(error = %chain(&error), "a lease's end is not written down");
        }
        self.mark(wirer, &lease);
        self.changed.notify_all();
        self.used.notify_one();
    }

    fn begin_leaving(&self, attachment: &Attachment) -> Option<Lease> {
        let mut state = self.state();
        let lease = state.leases.remove(attachment)?;
        state.pool.leave(attachment);
        let lease = Lease { phase: Phase::Leaving, ..lease };
        state.leaving.insert(lease.address, Leaving { lease: lease.clone(), is_marked: false });
        Some(lease)
    }

    fn mark(&self, wirer: &mut Wirer, lease: &Lease) {
        let mut retire = || {
            if !lease.ports.is_empty() {
                self.rules.close(wirer, &lease.wiring(), &lease.ports)?;
            }
            if lease.is_address_only {
                return Ok(());
            }
            let wiring = lease.wiring();
            self.rules.dismiss(wirer, &wiring)?;
            wirer.retire(&wiring)
        };
        match retire() {
            Ok(()) => {
                if let Some(leaving) = self.state().leaving.get_mut(&lease.address) {
                    leaving.is_marked = true;
                }
            }
            // The reaper tries again.
            Err(error) => tracing::warn!(
                address = %lease.address, error = %chain(&error), "a pod's link is not retired yet"
            ),
        }
    }

    fn check(
        &self,
        wirer: &mut Wirer,
        attachment: &Attachment,
        netns: &Path,
        addresses: &[String],
    ) -> Result<(), Failure> {
        let broken =
            |why: String| Failure::new(Code::Broken, "the pod is not as it was").details(why);
        let sandbox = Sandbox::open(netns).map_err(|error| not_wired(&error))?;
        let _busy = self.claim(attachment);
        let lease = self.state().leases.get(attachment).cloned().ok_or_else(|| {
            Failure::new(Code::UnknownContainer, "no address is held for this container")
                .details(format!("{} {}", attachment.container, attachment.interface))
        })?;
        let held = lease.addresses();
        let is_held = |text: &str| text.parse().is_ok_and(|address| held.contains(&address));
        if let Some(other) = addresses.iter().find(|address| !is_held(address)) {
            let held: Vec<_> = held.iter().map(IpAddr::to_string).collect();
            return Err(broken(format!("it was told {other} and holds {}", held.join(" and "))));
        }
        if lease.netns_id != sandbox.id() {
            return Err(broken("it was connected in another network namespace".to_owned()));
        }
        if lease.is_address_only {
            return Ok(());
        }
        let faults = wirer
            .verify(&sandbox, &attachment.interface, &lease.wiring())
            .map_err(|error| not_wired(&error))?;
        if faults.is_empty() {
            let has_ports = wirer
                .has_ports(&lease.wiring(), &lease.ports)
                .map_err(|error| not_wired(&error.into()))?;
            if has_ports {
                return Ok(());
            }
            return Err(broken("one of its host ports leads nowhere".to_owned()));
        }
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Err(broken(faults.join("; ")))
    }

    fn collect(&self, wirer: &mut Wirer, keep: &BTreeSet<Attachment>) {
        let stale: Vec<_> =
            self.state().leases.keys().filter(|held| !keep.contains(*held)).cloned().collect();
        for attachment in stale {
            tracing::info!(container = attachment.container, "collected");
            self.delete(wirer, &attachment);
        }
    }

    fn status(&self) -> Result<(), Failure> {
        let state = self.state();
        if state.node.is_none() {
            return Err(Failure::new(Code::Unavailable, "the node has no pod addresses yet"));
        }
        if state.pool.n_free() == 0 && state.leaving.is_empty() {
            return Err(Failure::new(
                Code::Unavailable,
                "all of the node's pod addresses are held",
            )
            .details(format!("it has {}", state.pool.n_granted())));
        }
        Ok(())
    }

    /// The host ports of all pods.
    pub(super) fn ports(&self) -> Ports {
        let state = self.state();
        let leases = state.leases.values().filter(|lease| !lease.ports.is_empty());
        let each = leases.flat_map(|lease| {
            lease.addresses().into_iter().map(|address| (address, lease.ports.clone()))
        });
        each.collect()
    }

    /// The pods whose ports may be a bridge's.
    pub(super) fn ported(&self) -> Ported {
        let state = self.state();
        let leases = state.leases.values().filter(|lease| !lease.is_address_only);
        let wirings = leases.map(Lease::wiring);
        let switched = wirings.filter(|wiring| matches!(wiring.path, Way::Switched(_)));
        switched.map(|wiring| (wiring.address, wiring)).collect()
    }

    fn release(&self, wirer: &mut Wirer, attachment: &Attachment) {
        self.delete(wirer, attachment);
        if let Err(error) = queue::remove(&self.releases, attachment) {
            tracing::warn!(%error, "a queued release is done and stays in the queue");
        }
    }

    /// Waits until nobody else is busy with this attachment, and is, until the guard goes.
    fn claim(&self, attachment: &Attachment) -> Busy<'_> {
        let is_busy = |state: &mut State| state.busy.contains(attachment);
        let mut state = self.changed.wait_while(self.state(), is_busy).expect(NEVER_POISONED);
        state.busy.insert(attachment.clone());
        Busy { agent: self, attachment: attachment.clone() }
    }

    /// An earlier link of the same attachment has the name that the next one will have.
    fn wait_for_link(&self, attachment: &Attachment) -> Result<(), Failure> {
        let is_leaving = |state: &mut State| {
            state.leaving.values().any(|leaving| leaving.lease.attachment == *attachment)
        };
        let begin = Instant::now();
        let (_state, waited) = self
            .changed
            .wait_timeout_while(self.state(), LINK_PATIENCE, is_leaving)
            .expect(NEVER_POISONED);
        if waited.timed_out() {
            return Err(Failure::new(Code::TryAgain, "the container's last link is still there")
                .details(format!("waited {:?}", begin.elapsed())));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NEVER_POISONED)
    }
}

const NEVER_POISONED: &str = "nothing panics while it holds the state";

/// What an ADD asks for, beside an address.
struct Wish {
    netns: PathBuf,
    pod: Option<Pod>,
    ports: Vec<PortMapping>,
    bandwidth: Bandwidth,
    is_address_only: bool,
}

impl State {
    /// The address of `attachment`. In dual-stack clusters it is one whose companion nobody has: a lease made when the
    /// node had another block may still hold that.
    fn take(&mut self, attachment: &Attachment, node: &Node) -> Result<Ipv4Addr, Exhausted> {
        let (Some(block), Some(block_v6)) = (node.block, node.block_v6) else {
            return self.pool.take(attachment);
        };
        let leaving = self.leaving.values().map(|leaving| &leaving.lease);
        let others = self
            .leases
            .values()
            .chain(leaving)
            .filter(|lease| (lease.block, lease.block_v6) != (node.block, node.block_v6));
        let taken: BTreeSet<IpAddr> = others.flat_map(Lease::addresses).collect();
        self.pool.take_where(attachment, |address| {
            companion(block, block_v6, address)
                .is_some_and(|address: Ipv6Addr| !taken.contains(&address.into()))
        })
    }

    /// Refuses a host port that leads to another pod. One whose pod is leaving is free as soon as the
    /// kernel has forgotten it, which is before its DEL is answered.
    fn check_ports(&self, wanted: &[PortMapping]) -> Result<(), Failure> {
        let holds = |lease: &Lease, is_gone: bool| {
            let mut held = lease.ports.iter().flat_map(|a| wanted.iter().map(move |b| (a, b)));
            held.find(|(a, b)| !is_gone && a.host.overlaps(b.host)).map(|(a, _)| a.host)
        };
        for lease in self.leases.values() {
            if let Some(port) = holds(lease, false) {
                let who = &lease.attachment.container;
                let who = lease.pod.as_ref().map_or_else(
                    || format!("container {who}"),
                    |pod| format!("pod {}/{}", pod.namespace, pod.name),
                );
                return Err(Failure::new(Code::HostPort, "a host port is taken")
                    .details(format!("{port} of this node leads to {who}")));
            }
        }
        for leaving in self.leaving.values() {
            if let Some(port) = holds(&leaving.lease, leaving.is_marked) {
                return Err(Failure::new(Code::TryAgain, "a host port is not free yet")
                    .details(format!("{port} of this node: its last pod is leaving")));
            }
        }
        Ok(())
    }

    fn retire(&mut self, lease: Lease) {
        let lease = Lease { phase: Phase::Leaving, ..lease };
        // Holding and leaving at once is how the pool learns of an address that rests.
        if self.pool.hold(lease.attachment.clone(), lease.address).is_ok() {
            self.pool.leave(&lease.attachment);
        }
        self.leaving.insert(lease.address, Leaving { lease, is_marked: false });
    }
}

/// While this lives, its attachment is one thread's.
struct Busy<'a> {
    agent: &'a Agent,
    attachment: Attachment,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.agent.state().busy.remove(&self.attachment);
        self.agent.changed.notify_all();
    }
}

/// Whether the namespace that a lease was made for is still at its path.
fn is_same_namespace(lease: &Lease) -> bool {
    Sandbox::open(&lease.netns).is_ok_and(|sandbox| sandbox.id() == lease.netns_id)
}

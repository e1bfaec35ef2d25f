//! What the agent does that nobody asks for: it clears what a killed one left, deletes links that pods have left,
//! does queued releases, mends what others broke, and gives pods that have settled the shortcut.

use std::{collections::BTreeSet, time::Duration};

use linux::pod::{Wirer, bandwidth};
use vnet::pods::wiring::Wiring;

use super::{super::chain, Agent, Lease, NEVER_POISONED, State, queue};

/// How long links are gathered before they are deleted together.
const GATHER: Duration = Duration::from_millis(50);
/// How often the queue of releases is looked at.
const QUEUE_LOOK: Duration = Duration::from_secs(1);
/// How old a pod is when its packets get the shortcut: plugins behind ours in a chain may want the same place of its
/// link, and have it then (`bandwidth` does).
const SETTLED: Duration = Duration::from_secs(3);

impl Agent {
    /// Clears what a killed agent left: links that no lease names, and links marked before.
    pub(in crate::node) fn sweep(&self, wirer: &mut Wirer) -> Result<(), linux::LinuxError> {
        let known: BTreeSet<String> = self
            .state()
            .leases
            .values()
            .flat_map(|lease| {
                let link = lease.wiring().host_link;
                let limiter = lease.bandwidth.egress.map(|_| bandwidth::limiter(&link));
                [Some(link), limiter]
            })
            .flatten()
            .collect();
        for link in wirer.links()? {
            if !link.is_dead && !known.contains(&link.name) {
                tracing::info!(link = link.name, "no pod has this link; it goes");
                wirer.retire_link(&link)?;
            }
        }
        wirer.reap()?;
        self.release_queued(wirer);
        self.reap(wirer);
        Ok(())
    }

    /// Deletes retired links and releases queued ones, for ever.
    pub(in crate::node) fn run_reaper(&self, wirer: &mut Wirer) {
        let mut seen = None;
        loop {
            let state = self.state();
            let idle = |state: &mut State| state.leaving.is_empty();
            let waited = self.changed.wait_timeout_while(state, QUEUE_LOOK, idle);
            let is_idle = waited.expect(NEVER_POISONED).0.leaving.is_empty();
            self.release_queued(wirer);
            self.mend(wirer, &mut seen);
            if !is_idle {
                std::thread::sleep(GATHER);
                self.reap(wirer);
            }
        }
    }

    /// Puts right what others have done to the node's rules and links, and gives pods that have settled the shortcut.
    /// `seen` is the generation of rules that the last call found in order.
    pub(in crate::node) fn mend(&self, wirer: &mut Wirer, seen: &mut Option<u32>) {
        if let Err(error) = self.rules.mend(wirer, seen) {
            tracing::warn!(error = %chain(&error), "the node's rules cannot be looked at or mended");
        }
        let wirings: Vec<Wiring> = {
            let state = self.state();
            let leases = state
                .leases
                .iter()
                .filter(|(holder, lease)| !lease.is_address_only && !state.busy.contains(holder));
            leases.map(|(_, lease)| lease.wiring()).collect()
        };
        match wirer.mend(&wirings) {
            Ok(done) if done.is_empty() => {}
            Ok(done) => tracing::warn!(
                mended = done.join(", "),
                "somebody has taken away what pods need; it is back"
            ),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "what pods need on the node cannot be mended");
            }
        }
        self.shorten(wirer);
    }

    /// Gives the packets of pods that have settled the shortcut, unless they must pass a token bucket.
    fn shorten(&self, wirer: &mut Wirer) {
        let settled: Vec<Lease> = {
            let mut state = self.state();
            let State { without_shortcut, leases, .. } = &mut *state;
            let settled = without_shortcut.extract_if(.., |(since, _)| since.elapsed() >= SETTLED);
            settled.filter_map(|(_, attachment)| leases.get(&attachment).cloned()).collect()
        };
        let Some(shortcut) = &self.shortcut else { return };
        let is_free = |lease: &&Lease| !lease.is_address_only && lease.bandwidth.egress.is_none();
        for lease in settled.iter().filter(is_free) {
            if let Err(error) = wirer.shorten(&lease.wiring(), shortcut) {
                // It may just have gone.
                tracing::debug!(address = %lease.address, error = %chain(&error), "no shortcut");
            }
        }
    }

    /// How many links are yet to go.
    pub(in crate::node) fn n_leaving(&self) -> usize {
        self.state().leaving.len()
    }

    /// One round: links that are marked go, and their addresses are free after that.
    pub(in crate::node) fn reap(&self, wirer: &mut Wirer) {
        let unmarked: Vec<_> = {
            let state = self.state();
            let unmarked = state.leaving.values().filter(|leaving| !leaving.is_marked);
            unmarked
                .filter(|leaving| !state.busy.contains(&leaving.lease.attachment))
                .map(|leaving| leaving.lease.clone())
                .collect()
        };
        for lease in unmarked {
            self.mark(wirer, &lease);
        }
        let marked: Vec<_> = {
            let state = self.state();
            let marked = state.leaving.iter().filter(|(_, leaving)| leaving.is_marked);
            marked.map(|(address, _)| *address).collect()
        };
        if marked.is_empty() {
            return;
        }
        if let Err(error) = wirer.reap() {
            tracing::warn!(error = %chain(&error), "retired links are not deleted yet");
            return;
        }
        for address in marked {
            if let Err(error) = self.ledger.remove(address) {
                tracing::warn!(error = %chain(&error), "a lease is not struck out yet");
                continue;
            }
            let mut state = self.state();
            state.leaving.remove(&address);
            state.pool.free(address);
        }
        self.changed.notify_all();
        self.used.notify_one();
    }

    /// Does the releases that plugins have queued while nobody listened.
    pub(in crate::node) fn release_queued(&self, wirer: &mut Wirer) {
        match queue::list(&self.releases) {
            Ok(releases) => releases.iter().for_each(|one| self.release(wirer, one)),
            Err(error) => tracing::warn!(%error, "the queue of releases cannot be read"),
        }
    }
}

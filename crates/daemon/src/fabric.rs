//! The fabric: network namespaces that match the region.
//!
//! # Expected flow
//! A change of the region or of a probe's verdict wakes the loop. It takes a snapshot and reports the generation that
//! is real, once it is. Where only NICs and machines changed since the last pass, it plans and applies what that
//! changes (`vnet::host::change`), and looks at nothing; else it compiles what must be, looks at what changed and
//! applies the difference.
//!
//! # Guarantees
//! The loop is told nothing: whatever was missed, the next pass finds. A pass that finds everything as it
//! must be changes nothing. What others broke is mended within [`RESYNC`].
//!
//! # Assumptions
//! Nothing runs any more in the namespace of a machine that has left the region, nor in that of a control
//! plane: the clusters' loop sees to it first.
//!
//! # Caveats
//! Health is not durable. After a start every member is asked once before anything is changed.

mod belief;
mod crossings;
mod dns;
mod flow_files;
mod flow_logs;
mod instance;
mod internet;
mod kept;
mod metadata;
mod platform;
mod probes;
pub mod reconciler;
mod tables;
mod tls;
mod uplink;
mod upstream;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use linux::LinuxError;
use store::Store;
use tokio::{sync::watch, time::Instant};
use vnet::{
    command::{Command, Outcome},
    host::{Change, Fabric, Health, change, compile_fabric, health::questions},
    model::Generation,
    region::Region,
};

use self::{
    flow_logs::FlowLogs, internet::Internet, platform::Platform, probes::Probes, reconciler::Done,
    upstream::Upstream,
};
use crate::{
    metrics::METER,
    reconcile::{Chain, now},
};

pub use self::{
    reconciler::{Reconciler, Scope, down},
    uplink::{Uplink, UplinkError},
};

/// How long damage that others did may last.
pub const RESYNC: Duration = Duration::from_secs(10);
/// How long a world that refuses is left alone.
const REST: Duration = Duration::from_millis(500);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum FabricError {
    #[error("making namespaces match the region")]
    Linux(#[source] LinuxError),
    #[error("joining the machine's network")]
    Uplink(#[source] UplinkError),
    #[error("reporting generation {generation} as real")]
    Report {
        generation: Generation,
        #[source]
        source: store::StoreError,
    },
}

/// What the fabric takes from the rest of the lab.
#[derive(Debug, Default)]
pub struct Settings {
    /// The lab's name.
    pub lab: String,
    /// Answers `/metadata/identity/oauth2/token` of the instance metadata service. Without it nobody has an identity.
    pub identity: Option<Router>,
    /// The `resolv.conf` whose servers are asked for names that are not the lab's. Without it those are nobody's.
    pub resolv_conf: Option<String>,
    /// Joins the lab's internet to the machine's own network.
    pub uplink: Option<Uplink>,
    /// Where flow logs are written. Without it there are none.
    pub flow_logs: Option<PathBuf>,
}

/// Makes the machine match the region, for ever. Cancel by dropping.
pub async fn run(store: Store, settings: Settings) {
    let Settings { lab, identity, resolv_conf, uplink, flow_logs } = settings;
    let upstream = resolv_conf.as_deref().and_then(Upstream::of);
    let (verdicts, mut health) = watch::channel(Health::default());
    let mut generation = store.watch();
    let mut fabric = Loop {
        reconciler: None,
        uplink: uplink.map(Arc::new),
        flow_logs: flow_logs.map(|folder| FlowLogs::new(&lab, store.clone(), &folder)),
        internet: Internet::new(&lab),
        platform: Platform::new(&lab, store.clone(), identity, upstream),
        probes: Probes::new(verdicts),
        looked: None,
        settled: None,
        basis: None,
        store,
        lab,
    };
    fabric.probes.recall(&questions(&fabric.lab, &fabric.store.snapshot())).await;
    loop {
        generation.mark_unchanged();
        health.mark_unchanged();
        let current = health.borrow().clone();
        METER.set_health(&fabric.lab, &current);
        let began = Instant::now();
        let again = match fabric.pass(&current).await {
            Ok(()) => {
                METER.passed(began.elapsed());
                METER.out_of_trouble("fabric");
                fabric.looked.map_or(RESYNC, |looked| RESYNC.saturating_sub(looked.elapsed()))
            }
            Err(error) => {
                METER.failed("fabric");
                METER.in_trouble("fabric", Chain(&error).to_string());
                tracing::warn!(lab = fabric.lab, error = %Chain(&error),
                    "the fabric does not match the region; it will be tried again");
                tokio::time::sleep(REST).await;
                Duration::ZERO
            }
        };
        tokio::select! {
            woken = generation.changed() => if woken.is_err() { return },
            _ = health.changed() => (),
            () = tokio::time::sleep(again) => (),
        }
    }
}

/// Makes the pair to the machine, which routes of the internet lead through, and then everything else.
fn pass(
    reconciler: &mut Reconciler,
    uplink: Option<&Uplink>,
    desired: &Fabric,
    scope: Scope,
) -> Result<Done, FabricError> {
    let made = uplink.map_or(Ok(None), Uplink::ensure).map_err(FabricError::Uplink)?;
    let mut done = reconciler.pass(desired, scope).map_err(FabricError::Linux)?;
    done.created.extend(made);
    Ok(done)
}

/// What differs, with the pair to the machine's network in both.
fn difference(
    lab: &str,
    before: &Region,
    after: &Region,
    health: &Health,
    uplink: Option<&Uplink>,
) -> Option<Change> {
    let mut change = change(lab, before, after, health)?;
    if let Some(uplink) = uplink {
        uplink.join(&mut change.before);
        uplink.join(&mut change.after);
    }
    Some(change)
}

/// `None` when a pass is needed instead.
fn by_difference(reconciler: &mut Reconciler, lab: &str, change: &Change) -> Option<Done> {
    reconciler.change(change).unwrap_or_else(|error| {
        tracing::warn!(lab, error = %Chain(&error), "the fabric is not as it was made; all of it is looked at");
        None
    })
}

struct Loop {
    store: Store,
    lab: String,
    /// `None` at first, while a pass has it, and after one that was cancelled.
    reconciler: Option<Reconciler>,
    uplink: Option<Arc<Uplink>>,
    flow_logs: Option<FlowLogs>,
    internet: Internet,
    platform: Platform,
    probes: Probes,
    /// When every namespace was looked at last, successfully.
    looked: Option<Instant>,
    /// The generation that our own last report made, when nobody came between.
    settled: Option<Generation>,
    /// What the machine was made to match last.
    basis: Option<(Arc<Region>, Health)>,
}

impl Loop {
    async fn pass(&mut self, health: &Health) -> Result<(), FabricError> {
        let region = self.store.snapshot();
        let scope = match self.looked {
            Some(looked) if looked.elapsed() < RESYNC => Scope::Changed,
            _ => Scope::All,
        };
        let basis = self.basis.take().filter(|(_, believed)| believed == health);
        let before = basis.map(|(before, _)| before).filter(|_| scope == Scope::Changed);
        let done = match self.turn(before, Arc::clone(&region), health.clone(), scope).await {
            Ok(done) => done,
            Err(error) => {
                self.looked = None;
                return Err(error);
            }
        };
        self.basis = Some((Arc::clone(&region), health.clone()));
        if scope == Scope::All {
            self.looked = Some(Instant::now());
        }
        if !done.is_nothing() {
            tracing::info!(
                lab = self.lab,
                generation = region.generation,
                n_created = done.created.len(),
                n_deleted = done.deleted.len(),
                n_steps = done.steps.len(),
                "the fabric changed"
            );
        }
        self.internet.serve(&done.created).map_err(FabricError::Linux)?;
        self.platform.serve(&region, &done.created).map_err(FabricError::Linux)?;
        if let Some(flow_logs) = &mut self.flow_logs {
            flow_logs.serve(&region, &done.created).map_err(FabricError::Linux)?;
        }
        self.probes.ask(questions(&self.lab, &region));
        self.report(region.generation)
    }

    /// Makes namespaces match the region: where it is known what they matched before, by the difference.
    async fn turn(
        &mut self,
        before: Option<Arc<Region>>,
        region: Arc<Region>,
        health: Health,
        scope: Scope,
    ) -> Result<Done, FabricError> {
        let mut reconciler = self.reconciler.take().unwrap_or_else(|| {
            let reconciler = Reconciler::new(&self.lab);
            if self.flow_logs.is_some() { reconciler.counting() } else { reconciler }
        });
        let (lab, uplink) = (self.lab.clone(), self.uplink.clone());
        let (reconciler, done) = tokio::task::spawn_blocking(move || {
            let uplink = uplink.as_deref();
            let told =
                before.and_then(|before| difference(&lab, &before, &region, &health, uplink));
            let done = told.and_then(|change| by_difference(&mut reconciler, &lab, &change));
            let done = done.map_or_else(
                || {
                    let mut desired = compile_fabric(&lab, &region, &health);
                    if let Some(uplink) = uplink {
                        uplink.join(&mut desired);
                    }
                    let uplink = uplink.filter(|_| scope == Scope::All);
                    pass(&mut reconciler, uplink, &desired, scope)
                },
                Ok,
            );
            (reconciler, done)
        })
        .await
        .unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()));
        self.reconciler = Some(reconciler);
        done
    }

    /// Says what is real, once for each change that was not our own saying so.
    fn report(&mut self, generation: Generation) -> Result<(), FabricError> {
        if self.settled == Some(generation) {
            return Ok(());
        }
        let report = Command::FabricReal { generation };
        // An fsync of well under a millisecond, and nothing else waits for this task.
        let accepted = self
            .store
            .change(report, now())
            .map_err(|source| FabricError::Report { generation, source })?;
        self.settled = settled(generation, accepted.outcome, self.store.snapshot().generation);
        Ok(())
    }
}

/// The generation that holds nothing which is not known to be real: what a report of `reported` led to, when by now it
/// is `after`. `None` when somebody else has changed something meanwhile.
fn settled(reported: Generation, outcome: Outcome, after: Generation) -> Option<Generation> {
    let own = match outcome {
        Outcome::Unchanged => reported,
        Outcome::Created | Outcome::Updated | Outcome::Deleting => reported + 1,
    };
    (after == own).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_somebody_elses_is_not_taken_for_our_own() {
        assert_eq!(settled(7, Outcome::Unchanged, 7), Some(7));
        assert_eq!(settled(7, Outcome::Updated, 8), Some(8));
        // The report changed nothing, so this is not its doing.
        assert_eq!(settled(7, Outcome::Unchanged, 8), None);
        assert_eq!(settled(7, Outcome::Updated, 9), None);
    }
}

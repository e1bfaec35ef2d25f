//! One pass of the fabric: makes the namespaces of a lab what they must be. Not here: when (see
//! [`super::run`]) and what (see `vnet::host`).

use std::collections::{BTreeMap, BTreeSet};

use linux::{LinuxError, netns::Netns};
use vnet::host::{
    Action, NamespaceState, Observed, Step, names::is_fabric_ns, plan::plan, state::Fabric,
};

use super::belief::{self, Numbers};
use crate::metrics::METER;

/// Makes the network namespaces of one lab what they must be, and remembers what it made, so that the
/// next pass looks only at what changed. It may forget at any time: a full pass finds out again.
#[derive(Debug)]
pub struct Reconciler {
    lab: String,
    made: BTreeMap<String, NamespaceState>,
}

/// Whether a pass believes what earlier ones made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Looks at every namespace, and mends what others did.
    All,
    /// Believes that namespaces which are there are as they were made, and changes what should be other. When it is not
    /// so, the kernel refuses something, or the next look at everything mends it.
    Changed,
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Namespaces that were made.
    pub created: Vec<String>,
    /// Namespaces that were removed.
    pub deleted: Vec<String>,
    /// What was changed in namespaces.
    pub steps: Vec<Step>,
}

impl Done {
    /// Whether the pass found everything as it must be.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.created.is_empty() && self.deleted.is_empty() && self.steps.is_empty()
    }
}

impl Reconciler {
    /// One for the lab of this name.
    #[must_use]
    pub fn new(lab: &str) -> Self {
        Self { lab: lab.to_owned(), made: BTreeMap::new() }
    }

    /// Makes the machine match `desired`. After an error the next pass looks at everything.
    pub fn pass(&mut self, desired: &Fabric, scope: Scope) -> Result<Done, LinuxError> {
        let made = std::mem::take(&mut self.made);
        let mut done = Done::default();
        let is_believed = scope == Scope::Changed && !made.is_empty();
        let present: BTreeSet<String> =
            Netns::list()?.into_iter().filter(|name| is_fabric_ns(&self.lab, name)).collect();
        for name in &present {
            if !desired.namespaces.contains_key(name) {
                Netns::delete(name)?;
                done.deleted.push(name.clone());
            }
        }
        let mut touched: BTreeSet<&str> = BTreeSet::new();
        for (name, state) in &desired.namespaces {
            if !present.contains(name) {
                Netns::ensure(name)?;
                done.created.push(name.clone());
            }
            let before = made.get(name).filter(|_| is_believed && present.contains(name));
            if before == Some(state) {
                continue;
            }
            touched.insert(name);
            // The other end of a new link must be looked at, too.
            for (link, is) in &state.links {
                if before.and_then(|before| before.links.get(link)) != Some(is) {
                    touched.insert(&is.peer.namespace);
                }
            }
        }
        let mut observed: BTreeMap<String, Observed> = BTreeMap::new();
        let mut numbers = Numbers::default();
        for name in touched {
            let Some(state) = desired.namespaces.get(name) else { continue };
            let seen = match made.get(name).filter(|_| is_believed && present.contains(name)) {
                Some(made) => belief::as_made(name, made, &mut numbers),
                None => linux::net::observe(&Netns::open(name)?, state)?,
            };
            observed.insert(name.to_owned(), seen);
        }
        done.steps = plan(desired, &observed);
        if is_believed {
            belief::change_tables(&mut done.steps, &made, &done.created);
        }
        for step in &done.steps {
            if let Action::LoadRuleset(_) = step.action {
                METER.before_load(&step.namespace);
            }
        }
        linux::net::apply_steps(&done.steps)?;
        self.remember(made, desired);
        Ok(done)
    }

    /// Takes over what is different: most of a thousand namespaces is not.
    fn remember(&mut self, mut made: BTreeMap<String, NamespaceState>, desired: &Fabric) {
        made.retain(|name, _| desired.namespaces.contains_key(name));
        for (name, state) in &desired.namespaces {
            if made.get(name) != Some(state) {
                made.insert(name.clone(), state.clone());
            }
        }
        self.made = made;
    }
}

/// Removes every network namespace that the fabric of `lab` made. What runs in them must have ended.
pub fn down(lab: &str) -> Result<(), LinuxError> {
    for name in Netns::list()? {
        if is_fabric_ns(lab, &name) {
            Netns::delete(&name)?;
        }
    }
    Ok(())
}

//! One pass of the fabric: makes the namespaces of a lab what they must be. Not here: when (see
//! [`super::run`]) and what (see `vnet::host`).

use std::collections::{BTreeMap, BTreeSet};

use linux::{LinuxError, net::Actor, netns::Netns};
use vnet::host::{
    Action, Change, NamespaceState, Observed, Step, delta, digest, digest_after,
    names::is_fabric_ns, plan::plan, state::Fabric,
};

use super::{
    belief::{self, Numbers},
    crossings::Crossings,
    tables::Tables,
};
use crate::metrics::METER;

/// Makes the network namespaces of one lab what they must be, and remembers what it made, so that the
/// next pass looks only at what changed. It may forget at any time: a full pass finds out again.
#[derive(Debug)]
pub struct Reconciler {
    lab: String,
    made: Fabric,
    /// Those of the tables that were made.
    digests: BTreeMap<String, String>,
    actor: Actor,
    crossings: Crossings,
    tables: Tables,
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
        Self {
            lab: lab.to_owned(),
            made: Fabric::default(),
            digests: BTreeMap::new(),
            actor: Actor::default(),
            crossings: Crossings::default(),
            tables: Tables::default(),
        }
    }

    /// From now on every packet passes connection tracking, which counts them for flow logs: no shortcuts.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.crossings = Crossings::none();
        self
    }

    /// Makes the machine match `desired`. After an error the next pass looks at everything.
    pub fn pass(&mut self, desired: &Fabric, scope: Scope) -> Result<Done, LinuxError> {
        let made = std::mem::take(&mut self.made.namespaces);
        let mut done = Done::default();
        let is_believed = scope == Scope::Changed && !made.is_empty();
        let present: BTreeSet<String> =
            Netns::list()?.into_iter().filter(|name| is_fabric_ns(&self.lab, name)).collect();
        let leaving = present.iter().filter(|name| !desired.namespaces.contains_key(*name));
        done.deleted = self.remove(leaving)?;
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
                None => self.look(name, state)?,
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
        self.actor.apply(&done.steps)?;
        for name in observed.keys() {
            if let Some(state) = desired.namespaces.get(name) {
                self.crossings.follow(name, state);
            }
        }
        self.remember(made, desired);
        Ok(done)
    }

    /// What a namespace is like; its table counts as absent when others have changed it.
    fn look(&mut self, name: &str, state: &NamespaceState) -> Result<Observed, LinuxError> {
        let namespace = Netns::open(name)?;
        let mut seen = linux::net::observe(&namespace, state)?;
        if let Some(digest) = &seen.nft
            && self.tables.is_changed(&namespace, digest)?
        {
            tracing::warn!(
                namespace = name,
                "somebody has changed the network's rules; they are loaded anew"
            );
            seen.nft = None;
        }
        Ok(seen)
    }

    /// Removes namespaces with all that is known of them, and ends what still runs there.
    fn remove<'n>(
        &mut self,
        leaving: impl Iterator<Item = &'n String> + Clone,
    ) -> Result<Vec<String>, LinuxError> {
        Netns::clear(leaving.clone())?;
        let mut removed = Vec::new();
        for name in leaving {
            self.actor.forget(name);
            self.crossings.forget(name);
            self.tables.forget(name);
            Netns::delete(name)?;
            removed.push(name.clone());
        }
        Ok(removed)
    }

    /// Makes the machine match a change of what it was made to match last, and looks at nothing. `Ok(None)` when it was
    /// not made to match anything, or something else; after an error, too, a pass is needed, which looks at everything.
    pub fn change(&mut self, change: &Change) -> Result<Option<Done>, LinuxError> {
        let is_known = |name: &&String| self.made.namespaces.contains_key(*name);
        let (before, after) = (&change.before.namespaces, &change.after.namespaces);
        if !before.keys().all(|name| is_known(&name)) {
            return Ok(None);
        }
        let made = std::mem::take(&mut self.made);
        let mut done = Done::default();
        let leaving = before.keys().filter(|name| !after.contains_key(*name));
        done.deleted = self.remove(leaving)?;
        let mut observed: BTreeMap<String, Observed> = BTreeMap::new();
        for (name, state) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
            let seen = match Netns::open(name) {
                // Left behind by others.
                Ok(namespace) => linux::net::observe(&namespace, state)?,
                Err(LinuxError::NoNamespace { .. }) => {
                    Netns::create(name)?;
                    belief::fresh()
                }
                Err(error) => return Err(error),
            };
            done.created.push(name.clone());
            observed.insert(name.clone(), seen);
        }
        let mut numbers = Numbers::default();
        for (name, before, _) in change.differing() {
            observed.insert(name.to_owned(), belief::as_made(name, before, &mut numbers));
        }
        done.steps = plan(&change.after, &observed);
        // The parts' tables are not the whole ones.
        let mut whole = made;
        change.apply(&mut whole);
        for step in &mut done.steps {
            let Action::LoadRuleset(_) = &step.action else { continue };
            if !self.change_table(step, change, &whole) {
                return Ok(None);
            }
        }
        self.actor.apply(&done.steps)?;
        for (name, state) in after {
            self.crossings.follow_change(name, before.get(name), state);
        }
        for name in &done.deleted {
            self.digests.remove(name);
        }
        self.made = whole;
        Ok(Some(done))
    }

    /// Puts a change of the whole table in the place of a load of a part of it.
    fn change_table(&mut self, step: &mut Step, change: &Change, whole: &Fabric) -> bool {
        let name = &step.namespace;
        let nft = |fabric: &Fabric| fabric.namespaces.get(name).and_then(|it| it.nft.clone());
        let (Some(before), Some(after)) = (nft(&change.before), nft(&change.after)) else {
            return false;
        };
        let (Some(changes), Some(text)) = (delta(&before, &after), nft(whole)) else {
            return false;
        };
        let Some(loaded) = self.digests.remove(name) else { return false };
        let Some(digest) = digest_after(&loaded, &changes) else { return false };
        self.digests.insert(name.clone(), digest.clone());
        step.action = Action::ChangeRuleset { changes, loaded, digest, text };
        true
    }

    /// Takes over what is different: most of a thousand namespaces is not.
    fn remember(&mut self, mut made: BTreeMap<String, NamespaceState>, desired: &Fabric) {
        made.retain(|name, _| desired.namespaces.contains_key(name));
        self.digests.retain(|name, _| desired.namespaces.contains_key(name));
        for (name, state) in &desired.namespaces {
            if made.get(name) != Some(state) {
                made.insert(name.clone(), state.clone());
                self.digests.remove(name);
            }
            if let Some(text) = &state.nft
                && !self.digests.contains_key(name)
            {
                self.digests.insert(name.clone(), digest(text));
            }
        }
        self.made = Fabric { namespaces: made };
    }
}

/// Removes every network namespace that the fabric of `lab` made, and ends what users have left running in them.
pub fn down(lab: &str) -> Result<(), LinuxError> {
    let mut names = Netns::list()?;
    names.retain(|name| is_fabric_ns(lab, name));
    Netns::clear(&names)?;
    names.iter().try_for_each(|name| Netns::delete(name))
}

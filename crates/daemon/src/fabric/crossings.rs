//! The shortcuts across virtual networks: what a NIC sends to another one goes there directly once its flow has passed
//! every gate both ways (`linux::shortcut`). Not here: which NICs have them (`vnet::host::Crossing`).
//!
//! *Expected flow.* After every change that was made real, [`Crossings::follow`] or [`Crossings::follow_change`] is
//! told what the namespaces' links are.
//!
//! *Guarantees.* Nothing depends on them: whatever fails here makes packets slower and is said once.

use std::collections::{BTreeMap, BTreeSet};

use linux::{
    LinuxError,
    net::{Netlink, link_index, link_indexes},
    netns::Netns,
    shortcut,
};
use vnet::host::{Crossing, NamespaceState};

use crate::reconcile::Chain;

/// Those of a lab.
#[derive(Debug, Default)]
pub(super) struct Crossings {
    networks: BTreeMap<String, Network>,
    mode: Mode,
}

#[derive(Debug, Default)]
enum Mode {
    #[default]
    On,
    /// The kernel cannot.
    Off,
    /// None is wanted. An earlier process may have left some, but for these namespaces.
    Clearing(BTreeSet<String>),
}

/// Those of a virtual network.
struct Network {
    namespace: Netns,
    netlink: Netlink,
    program: shortcut::Crossings,
    /// What is attached: the link's number and what was said of it.
    links: BTreeMap<String, (u32, Crossing)>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("links", &self.links).finish_non_exhaustive()
    }
}

impl Crossings {
    /// None at all: the kernel would not count the packets that take them.
    pub(super) fn none() -> Self {
        Self { networks: BTreeMap::new(), mode: Mode::Clearing(BTreeSet::new()) }
    }

    /// Makes those of one namespace what its state says, all of it.
    pub(super) fn follow(&mut self, name: &str, state: &NamespaceState) {
        if let Mode::Clearing(cleared) = &mut self.mode {
            if cleared.insert(name.to_owned())
                && let Err(error) = clear(name, state)
            {
                tracing::warn!(namespace = name, error = %Chain(&error), "packets may take shortcuts here");
            }
            return;
        }
        self.attempt(name, |crossings| {
            let mut wanted = wanted(state).peekable();
            if wanted.peek().is_none() && !crossings.networks.contains_key(name) {
                return Ok(());
            }
            let network = crossings.network(name)?;
            let indexes = link_indexes(&mut network.netlink)?;
            network.retain(|link| state.links.contains_key(link))?;
            for (link, crossing) in wanted {
                if let Some(index) = indexes.get(link) {
                    network.attach(link, *index, crossing)?;
                }
            }
            Ok(())
        });
    }

    /// The same where only these links of it have changed, from something or nothing.
    pub(super) fn follow_change(
        &mut self,
        name: &str,
        before: Option<&NamespaceState>,
        after: &NamespaceState,
    ) {
        let crossing_before = |link: &str| before?.links.get(link)?.crossing.as_ref();
        let is_new = |(link, crossing): &(&str, &Crossing)| crossing_before(link) != Some(crossing);
        let is_gone =
            |link: &str| crossing_before(link).is_some() && !after.links.contains_key(link);
        let mut new = wanted(after).filter(is_new).peekable();
        let has_gone = before.is_some_and(|before| before.links.keys().any(|link| is_gone(link)));
        if new.peek().is_none() && !has_gone {
            return;
        }
        self.attempt(name, |crossings| {
            let network = crossings.network(name)?;
            network.retain(|link| !is_gone(link))?;
            for (link, crossing) in new {
                if let Some(index) = link_index(&mut network.netlink, link)? {
                    network.attach(link, index, crossing)?;
                }
            }
            Ok(())
        });
    }

    fn attempt(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<(), LinuxError>) {
        if !matches!(self.mode, Mode::On) {
            return;
        }
        if let Err(error) = work(self) {
            if matches!(error, LinuxError::Program { .. }) {
                self.mode = Mode::Off;
            }
            self.networks.remove(name);
            tracing::warn!(namespace = name, error = %Chain(&error), "packets take no shortcut here");
        }
    }

    /// Lets go of a namespace that is no more.
    pub(super) fn forget(&mut self, name: &str) {
        self.networks.remove(name);
        if let Mode::Clearing(cleared) = &mut self.mode {
            cleared.remove(name);
        }
    }

    /// That of this name, unless the name has become another namespace's.
    fn network(&mut self, name: &str) -> Result<&mut Network, LinuxError> {
        let namespace = Netns::open(name)?;
        if let Some(network) = self.networks.get(name)
            && !network.namespace.is_same(&namespace)?
        {
            self.networks.remove(name);
        }
        if !self.networks.contains_key(name) {
            namespace.run(shortcut::prepare)??;
            let netlink = Netlink::open_in(&namespace)?;
            let program = shortcut::Crossings::load()?;
            let network = Network { namespace, netlink, program, links: BTreeMap::new() };
            self.networks.insert(name.to_owned(), network);
        }
        self.networks.get_mut(name).ok_or_else(|| LinuxError::NoNamespace { name: name.to_owned() })
    }
}

impl Network {
    fn attach(&mut self, link: &str, index: u32, crossing: &Crossing) -> Result<(), LinuxError> {
        if self.links.get(link) != Some(&(index, *crossing)) {
            self.program.attach(&mut self.netlink, index, link, crossing)?;
            self.links.insert(link.to_owned(), (index, *crossing));
        }
        Ok(())
    }

    /// Forgets the links that are gone, and with them what was attached.
    fn retain(&mut self, is_there: impl Fn(&str) -> bool) -> Result<(), LinuxError> {
        for (_, (index, _)) in self.links.extract_if(.., |link, _| !is_there(link)) {
            self.program.forget(index)?;
        }
        Ok(())
    }
}

/// Takes those away that an earlier process has left.
fn clear(name: &str, state: &NamespaceState) -> Result<(), LinuxError> {
    if wanted(state).next().is_none() {
        return Ok(());
    }
    let mut netlink = Netlink::open_in(&Netns::open(name)?)?;
    let indexes = link_indexes(&mut netlink)?;
    for (link, _) in wanted(state) {
        if let Some(index) = indexes.get(link) {
            shortcut::detach(&mut netlink, *index, link)?;
        }
    }
    Ok(())
}

/// The links of a namespace that have one.
fn wanted(state: &NamespaceState) -> impl Iterator<Item = (&str, &Crossing)> {
    state.links.iter().filter_map(|(link, is)| Some((link.as_str(), is.crossing.as_ref()?)))
}

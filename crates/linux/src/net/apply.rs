//! Carries out actions in a namespace, as they come. Not here: which ones (see `vnet::host::plan`).
//!
//! Requests are gathered and sent together as long as none of them needs to know what an earlier one made.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::{Duration, Instant},
};

use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute, rule::RuleMessage};
use nix::errno::Errno;
use vnet::host::{
    TABLE,
    plan::{Action, Step},
    state::{Link, RouteKey, Rule, Target, Then},
};

use super::{
    netlink::{Netlink, Request},
    observe::{lacks_carrier, link_index, link_indexes, links_without_carrier},
    sysctl,
    wire::{self, RouteTo, RuleMatch, RuleThen, VethEnd},
};
use crate::{LinuxError, netfilter, netns::Netns, nft};

/// The interface group of links that are about to be deleted: the kernel deletes a group as fast as one
/// link, and one takes 16 to 30 ms.
const DEAD_GROUP: u32 = 0x00de_ad00;

/// Up to so many links are asked for one by one; for more, all are listed.
const FEW: usize = 16;

/// How long links that were set up may take until they send.
const CARRIER_PATIENCE: Duration = Duration::from_millis(500);
/// How often they are looked at meanwhile.
const CARRIER_POLL: Duration = Duration::from_millis(1);

/// Carries out the steps, namespace by namespace in the order given.
pub fn apply_steps(steps: &[Step]) -> Result<(), LinuxError> {
    Actor::default().apply(steps)
}

/// Carries out steps, and keeps the sockets of namespaces whose tables it changes: when one is closed, the kernel
/// waits until what was deleted from tables is gone, some 15 ms (`nft_rcv_nl_event`, `net/netfilter/nf_tables_api.c`).
///
/// A socket holds its namespace: whoever removes one has it forgotten.
#[derive(Default)]
pub struct Actor {
    kept: BTreeMap<String, Sockets>,
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actor").field("kept", &self.kept.keys()).finish()
    }
}

/// The sockets of one namespace, as far as they were needed.
struct Sockets {
    namespace: Netns,
    routes: Option<Netlink>,
    tables: Option<netfilter::Changer>,
}

impl Sockets {
    fn new(namespace: Netns) -> Self {
        Self { namespace, routes: None, tables: None }
    }

    fn routes(&mut self) -> Result<&mut Netlink, LinuxError> {
        match &mut self.routes {
            Some(netlink) => Ok(netlink),
            none => Ok(none.insert(Netlink::open_in(&self.namespace)?)),
        }
    }

    fn tables(&mut self) -> Result<&mut netfilter::Changer, LinuxError> {
        match &mut self.tables {
            Some(changer) => Ok(changer),
            none => Ok(none.insert(netfilter::Changer::open_in(&self.namespace)?)),
        }
    }
}

impl Actor {
    /// Carries out the steps, namespace by namespace in the order given.
    pub fn apply(&mut self, steps: &[Step]) -> Result<(), LinuxError> {
        let mut open: BTreeMap<&str, Sockets> = BTreeMap::new();
        for of_one in steps.chunk_by(|a, b| a.namespace == b.namespace) {
            let Some(first) = of_one.first() else { continue };
            let name = first.namespace.as_str();
            let sockets = match open.entry(name) {
                Entry::Occupied(sockets) => sockets.into_mut(),
                Entry::Vacant(none) => {
                    let kept = self.kept.remove(name);
                    none.insert(Self::sockets(name, kept)?)
                }
            };
            let actions: Vec<&Action> = of_one.iter().map(|step| &step.action).collect();
            run(sockets, &actions)?;
            // Of a thousand namespaces not all are held open.
            if open.len() > FEW {
                self.keep(&mut open);
            }
        }
        let done = self.wait_until_they_send(steps, &mut open);
        self.keep(&mut open);
        done
    }

    /// Lets go of a namespace that is to be removed.
    pub fn forget(&mut self, namespace: &str) {
        self.kept.remove(namespace);
    }

    /// Those that are kept, unless the name has become another namespace's.
    fn sockets(name: &str, kept: Option<Sockets>) -> Result<Sockets, LinuxError> {
        let namespace = Netns::open(name)?;
        Ok(match kept {
            Some(kept) if kept.namespace.is_same(&namespace)? => kept,
            _ => Sockets::new(namespace),
        })
    }

    fn keep(&mut self, open: &mut BTreeMap<&str, Sockets>) {
        let changed = std::mem::take(open).into_iter().filter(|(_, it)| it.tables.is_some());
        self.kept.extend(changed.map(|(name, sockets)| (name.to_owned(), sockets)));
    }

    /// Waits until links that were set up send packets: until then the kernel drops what they are given.
    ///
    /// A veth's first end has no carrier when it is set up; the second one gives it, and a work queue of the
    /// kernel's then activates the first (`linkwatch_do_dev`, `net/core/link_watch.c`). That takes some
    /// milliseconds, and a lost first packet a second. A link whose peer stays down is not waited for.
    fn wait_until_they_send<'s>(
        &mut self,
        steps: &'s [Step],
        open: &mut BTreeMap<&'s str, Sockets>,
    ) -> Result<(), LinuxError> {
        let mut waiting: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for step in steps {
            if let Action::SetLink { name, shape: Some(_) } = &step.action {
                waiting.entry(&step.namespace).or_default().insert(name);
            }
        }
        let patience = Instant::now() + CARRIER_PATIENCE;
        for (name, links) in waiting {
            let mut sockets = match open.remove(name).or_else(|| self.kept.remove(name)) {
                Some(sockets) => sockets,
                None => Sockets::new(Netns::open(name)?),
            };
            while is_one_waiting(sockets.routes()?, &links)? && Instant::now() < patience {
                std::thread::sleep(CARRIER_POLL);
            }
            if sockets.tables.is_some() {
                open.insert(name, sockets);
            }
        }
        Ok(())
    }
}

/// Whether one of these links does not send yet.
fn is_one_waiting(netlink: &mut Netlink, links: &BTreeSet<&str>) -> Result<bool, LinuxError> {
    if links.len() > FEW {
        let waiting = links_without_carrier(netlink)?;
        return Ok(waiting.iter().any(|it| links.contains(it.as_str())));
    }
    for link in links {
        if lacks_carrier(netlink, link)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Carries out one action. Deleting what is not there is success.
pub fn apply(namespace: &Netns, action: &Action) -> Result<(), LinuxError> {
    run(&mut Sockets::new(namespace.try_clone()?), &[action])
}

fn run(sockets: &mut Sockets, actions: &[&Action]) -> Result<(), LinuxError> {
    let mut worker = Worker { sockets, indexes: None, asked: BTreeMap::new(), pending: Vec::new() };
    let mut rest = actions;
    while let Some(first) = rest.first() {
        let same =
            |action: &&&Action| std::mem::discriminant(**action) == std::mem::discriminant(*first);
        let n = rest.iter().take_while(same).count();
        let (now, later) = rest.split_at(n);
        worker.several(now)?;
        rest = later;
    }
    worker.flush()
}

struct Worker<'a> {
    sockets: &'a mut Sockets,
    /// Numbers of links by name; `None` when links were made or deleted since they were read.
    indexes: Option<BTreeMap<String, u32>>,
    /// Those that were asked for one by one, instead.
    asked: BTreeMap<String, u32>,
    pending: Vec<Pending>,
}

struct Pending {
    request: Request,
    deletes: bool,
}

impl Worker<'_> {
    /// Carries out actions of one kind.
    fn several(&mut self, actions: &[&Action]) -> Result<(), LinuxError> {
        match actions.first() {
            Some(Action::MakePair { .. }) => self.make_pairs(actions),
            Some(Action::DeleteLink(_)) => self.delete_links(actions),
            Some(Action::SetSysctl { .. }) => self.set_sysctls(actions),
            _ => actions.iter().try_for_each(|action| self.one(action)),
        }
    }

    fn one(&mut self, action: &Action) -> Result<(), LinuxError> {
        match action {
            Action::LoadRuleset(text) => {
                self.flush()?;
                nft::load(&self.sockets.namespace, text)
            }
            Action::ChangeRuleset { changes, loaded, digest, text } => {
                self.flush()?;
                // Somebody else changed the table, or the kernel has a limit: replacing it is always right.
                let changed = self
                    .sockets
                    .tables()
                    .and_then(|tables| tables.change(TABLE, changes, loaded, digest));
                changed.or_else(|_| {
                    // Answers that were not read belong to nothing that comes.
                    self.sockets.tables = None;
                    nft::load(&self.sockets.namespace, text)
                })
            }
            Action::DropRuleset => {
                self.flush()?;
                nft::unload(&self.sockets.namespace)
            }
            Action::DeleteRule(rule) => {
                self.delete(RouteNetlinkMessage::DelRule(rule_message(rule)), "rule");
                Ok(())
            }
            Action::AddRule(rule) => {
                let message = RouteNetlinkMessage::NewRule(rule_message(rule));
                self.add(Request::create(message, format!("rule {rule}")));
                Ok(())
            }
            Action::DeleteRoute(key, target) => {
                if let Ok(to) = self.route_to(target) {
                    self.delete(wire::delete_route(key.table, key.prefix, to), "route");
                }
                Ok(())
            }
            Action::SetRoute(key @ RouteKey { table, prefix }, target) => {
                let to = self.route_to(target)?;
                let what = format!("route {} {target}", key.prefix);
                self.add(Request::replace(wire::new_route(*table, *prefix, to), what));
                Ok(())
            }
            Action::DeleteNeighbour(link, address, mac) => {
                if let Ok(index) = self.index(link) {
                    self.delete(wire::delete_neighbour(index, *address, *mac), "neighbour");
                }
                Ok(())
            }
            Action::SetNeighbour(link, address, mac) => {
                let message = wire::new_neighbour(self.index(link)?, *address, *mac);
                self.add(Request::replace(message, format!("neighbour {address} dev {link}")));
                Ok(())
            }
            Action::DeleteAddress(address) => {
                if let Ok(index) = self.index(&address.link) {
                    let message = wire::delete_address(index, address.address, address.length);
                    self.delete(message, "address");
                }
                Ok(())
            }
            Action::AddAddress(address) => {
                let index = self.index(&address.link)?;
                let message = wire::new_address(index, address.address, address.length);
                let what = format!("address {} dev {}", address.address, address.link);
                self.add(Request::replace(message, what));
                Ok(())
            }
            Action::SetLink { name, shape } => {
                let index = self.index(name)?;
                if let Some((mac, mtu)) = shape {
                    let attributes =
                        vec![LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(*mtu)];
                    let message = wire::link_set(index, attributes);
                    self.add(Request::change(message, format!("link {name}")));
                }
                self.add(Request::change(wire::link_up(index, true), format!("link {name} up")));
                Ok(())
            }
            Action::MakePair { .. } | Action::DeleteLink(_) | Action::SetSysctl { .. } => {
                self.several(&[action])
            }
        }
    }

    fn make_pairs(&mut self, actions: &[&Action]) -> Result<(), LinuxError> {
        self.flush()?;
        // Held open until the requests, which carry their numbers, are sent.
        let mut namespaces: BTreeMap<&str, Netns> = BTreeMap::new();
        for action in actions {
            if let Action::MakePair { link, .. } = action
                && !namespaces.contains_key(link.peer.namespace.as_str())
            {
                namespaces.insert(&link.peer.namespace, Netns::open(&link.peer.namespace)?);
            }
        }
        let requests: Vec<Request> = actions
            .iter()
            .filter_map(|action| match action {
                Action::MakePair { name, link, peer_mac, peer_mtu } => {
                    use std::os::fd::AsFd as _;
                    let namespace = namespaces.get(link.peer.namespace.as_str())?.as_fd();
                    let here = end(name, link);
                    let there = VethEnd {
                        name: &link.peer.link,
                        mac: Some(*peer_mac),
                        mtu: *peer_mtu,
                        namespace: Some(namespace),
                        up: false,
                        group: 0,
                    };
                    Some(Request::create(wire::new_veth(here, there), format!("pair {name}")))
                }
                _ => None,
            })
            .collect();
        self.forget_indexes();
        self.sockets.routes()?.send_all(&requests)
    }

    fn delete_links(&mut self, actions: &[&Action]) -> Result<(), LinuxError> {
        self.flush()?;
        let mut indexes = Vec::new();
        for action in actions {
            if let Action::DeleteLink(name) = action {
                indexes.extend(self.index(name).ok());
            }
        }
        self.forget_indexes();
        for index in &indexes {
            let group = LinkAttribute::Group(DEAD_GROUP);
            self.delete(wire::link_set(*index, vec![group]), "link");
        }
        self.flush()?;
        if !indexes.is_empty() {
            self.delete(wire::group_delete(DEAD_GROUP), "links");
        }
        self.flush()
    }

    fn set_sysctls(&mut self, actions: &[&Action]) -> Result<(), LinuxError> {
        self.flush()?;
        let values: Vec<(&str, &str)> = actions
            .iter()
            .filter_map(|action| match action {
                Action::SetSysctl { name, value } => Some((name.as_str(), value.as_str())),
                _ => None,
            })
            .collect();
        sysctl::write(&self.sockets.namespace, &values)
    }

    fn add(&mut self, request: Request) {
        self.pending.push(Pending { request, deletes: false });
    }

    fn delete(&mut self, message: RouteNetlinkMessage, what: &str) {
        let request = Request::change(message, format!("delete {what}"));
        self.pending.push(Pending { request, deletes: true });
    }

    /// Sends what is pending. The first refusal is the answer, but everything is tried.
    fn flush(&mut self) -> Result<(), LinuxError> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let (requests, deletes): (Vec<_>, Vec<_>) =
            pending.into_iter().map(|it| (it.request, it.deletes)).unzip();
        let outcomes = self.sockets.routes()?.send_batch(&requests)?;
        for (outcome, deletes) in outcomes.into_iter().zip(deletes) {
            match outcome {
                Err(err) if !(deletes && is_gone(&err)) => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    fn index(&mut self, link: &str) -> Result<u32, LinuxError> {
        let namespace = self.sockets.namespace.name().to_owned();
        let missing = || LinuxError::NoLink { link: link.to_owned(), namespace };
        let indexes = if let Some(indexes) = &self.indexes {
            indexes
        } else {
            self.flush()?;
            if let Some(index) = self.asked.get(link) {
                return Ok(*index);
            }
            // A namespace may have a thousand links, and a change is often of one.
            if self.asked.len() < FEW {
                let index = link_index(self.sockets.routes()?, link)?.ok_or_else(missing)?;
                self.asked.insert(link.to_owned(), index);
                return Ok(index);
            }
            self.indexes.insert(link_indexes(self.sockets.routes()?)?)
        };
        indexes.get(link).copied().ok_or_else(missing)
    }

    /// Links were made or deleted.
    fn forget_indexes(&mut self) {
        self.indexes = None;
        self.asked.clear();
    }

    fn route_to(&mut self, target: &Target) -> Result<RouteTo, LinuxError> {
        Ok(match target {
            Target::Link(link) => RouteTo::Link(self.index(link)?),
            Target::Via(link, gateway) => RouteTo::Via(self.index(link)?, *gateway),
            Target::Local(link) => RouteTo::Local(self.index(link)?),
            Target::Blackhole => RouteTo::Blackhole,
            Target::Unreachable => RouteTo::Unreachable,
            Target::Throw => RouteTo::Throw,
        })
    }
}

fn end<'a>(name: &'a str, link: &Link) -> VethEnd<'a> {
    VethEnd { name, mac: Some(link.mac), mtu: link.mtu, namespace: None, up: false, group: 0 }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let matches = RuleMatch {
        family: rule.family,
        mark: rule.mark,
        iif: rule.iif.as_deref(),
        from: rule.from,
        to: None,
    };
    let then = match rule.then {
        Then::Table(table) => RuleThen::Table(table),
        Then::Goto(priority) => RuleThen::Goto(priority),
    };
    wire::rule(rule.priority, matches, then)
}

/// Whether a deletion failed because there was nothing to delete.
fn is_gone(err: &LinuxError) -> bool {
    matches!(err.errno(), Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL))
}

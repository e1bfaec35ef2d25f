//! Watches the places that a probe may pass while it is sent. Not here: what the sightings mean (see [`super::hops`]).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use linux::{
    netfilter::Tracer,
    netns::Netns,
    nft, packets,
    packets::Tap,
    probe::{Kind, Outcome, probe},
    sandbox,
};
use vnet::addr::Family;

use super::{
    DSCP, OUTSIDE,
    cilium::{self, Agent},
    hops::{self, Seen, Told},
};
use crate::{
    output,
    places::Place,
    watch::frame::{Decoded, Packet, decode},
};

/// How much of a frame is needed: headers, and those of what an ICMP error quotes.
const BEGINNING: usize = 192;
/// An answer to the sender may be read before the taps' copies are.
const LINGER: Duration = Duration::from_millis(20);
/// How long Cilium's agent may take to tell of a packet that its node has seen.
const LINGER_FOR_AGENTS: Duration = Duration::from_millis(500);

/// A namespace that is watched.
struct Post {
    place: Place,
    namespace: Netns,
    tap: Tap,
    tracer: Tracer,
    /// Of a node that has Cilium.
    agent: Option<Agent>,
}

/// A probe's outcome and everything that was seen meanwhile.
pub(super) struct Watched {
    pub(super) outcome: Outcome,
    pub(super) seen: Vec<Seen>,
    pub(super) told: Vec<Told>,
}

/// Sends one probe from inside of `from`, and watches `places` meanwhile.
pub(super) fn watch(
    lab: &str,
    (places, groups): (&[Place], &BTreeMap<String, String>),
    from: &Place,
    kind: Kind,
    to: SocketAddr,
    patience: Duration,
) -> anyhow::Result<Watched> {
    let table = format!("aksnet-trace-{lab}-{}", std::process::id());
    let family = Family::of(to.ip());
    let marked = |place| post(place, &table, family, kind);
    let mut posts: Vec<Post> = places.iter().filter_map(marked).collect();
    let sender = Netns::at(Path::new(&from.netns), &from.name)
        .with_context(|| format!("opening the network of {}", from.name))?;
    anyhow::ensure!(
        posts.iter().any(|post| post.place.netns == from.netns),
        "{} cannot be watched; `aksnet trace` needs root",
        from.name
    );
    packets::wait_for_stamps()?;
    for post in &mut posts {
        if let Some(Err(error)) = post.agent.as_ref().map(Agent::wait) {
            unheard(&post.place, &error);
            post.agent = None;
        }
    }
    // Cilium translates services where sockets are made, by programs that hang on the node's control group.
    let beside = from.first_process.filter(|pid| cilium::is_on(*pid));
    let protocol = kind.protocol(family);
    let is_ours = |packet: &Packet| hops::is_probe(packet, DSCP, protocol);
    let mut seen = Vec::new();
    let mut told: Vec<Told> = posts.iter().map(|post| post.told(groups)).collect();
    let outcome = std::thread::scope(|scope| {
        let sender = &sender;
        let source = (from.name == "internet" && family == Family::V6).then_some(OUTSIDE.into());
        let send = move || probe(sender, kind, source, to, DSCP, patience);
        let sending = scope.spawn(move || match beside {
            Some(pid) => Ok::<_, anyhow::Error>(sandbox::in_group_of(pid, send)??),
            None => Ok(send()?),
        });
        let mut until = None;
        loop {
            let sources: Vec<_> = posts.iter().map(|post| post.tap.as_fd()).collect();
            packets::wait(&sources, Duration::from_millis(5))?;
            for (number, post) in posts.iter_mut().enumerate() {
                post.read(number, &mut seen)?;
                if let Some(Err(error)) = post.agent.as_mut().map(|agent| agent.read(is_ours)) {
                    unheard(&post.place, &error);
                    post.agent = None;
                }
                told[number].events.extend(post.tracer.events()?);
            }
            match until {
                None if sending.is_finished() => until = Some(Instant::now() + LINGER),
                Some(until)
                    if Instant::now() >= until
                        && (have_told(&posts, &seen, is_ours)
                            || Instant::now() >= until + LINGER_FOR_AGENTS) =>
                {
                    break;
                }
                _ => {}
            }
        }
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    for (post, told) in posts.iter().zip(&mut told) {
        if told.events.iter().any(|event| event.table != told.own_table) {
            let listing = nft::listing(&post.namespace);
            told.rules = hops::rules(&listing.context("listing the rules that it met")?, family);
        }
        match post.agent.as_ref().map(Agent::decisions).transpose() {
            Ok(decisions) => told.decisions = decisions.unwrap_or_default(),
            Err(error) => unheard(&post.place, &error),
        }
    }
    Ok(Watched { outcome, seen, told })
}

/// `None` when the place is gone: a pod or node that has just ended.
fn post(place: &Place, table: &str, family: Family, kind: Kind) -> Option<Post> {
    let open = || -> anyhow::Result<Post> {
        let namespace = Netns::at(Path::new(&place.netns), &place.name)?;
        let tap = Tap::open(&namespace, &[], BEGINNING)?;
        let tracer = Tracer::open(&namespace, table, family, DSCP, kind.protocol(family))?;
        // Pods are on nodes that are watched themselves.
        let is_machine = ["node/", "vm/"].iter().any(|kind| place.name.starts_with(kind));
        let agent = place.first_process.filter(|_| is_machine).and_then(|pid| {
            Agent::open(pid).unwrap_or_else(|error| {
                unheard(place, &error);
                None
            })
        });
        Ok(Post { place: place.clone(), namespace, tap, tracer, agent })
    };
    match open() {
        Ok(post) => Some(post),
        Err(error) => {
            tracing::debug!(place = place.name, error = format!("{error:#}"), "not watched");
            None
        }
    }
}

/// Whether the agents of all nodes that have seen a packet of ours have told of it.
fn have_told(posts: &[Post], seen: &[Seen], is_ours: impl Fn(&Packet) -> bool) -> bool {
    posts.iter().enumerate().all(|(number, post)| {
        let passed = || seen.iter().any(|seen| seen.place == number && is_ours(&seen.packet));
        post.agent.as_ref().is_none_or(|agent| agent.has_finished(LINGER) || !passed())
    })
}

/// What Cilium decides there is not shown; all else is.
fn unheard(place: &Place, error: &anyhow::Error) {
    output::say(&format!("{}: what Cilium decides is not shown: {error:#}", place.name));
}

impl Post {
    fn told(&self, groups: &BTreeMap<String, String>) -> Told {
        Told {
            name: self.place.name.clone(),
            links: self.place.links.clone(),
            groups: groups.clone(),
            own_table: self.tracer.table().to_owned(),
            ..Told::default()
        }
    }

    fn read(&self, number: usize, seen: &mut Vec<Seen>) -> anyhow::Result<()> {
        while let Some(frame) = self.tap.read()? {
            if let Some(Decoded::Ip(packet)) = decode(&frame.data) {
                seen.push(Seen {
                    place: number,
                    at: frame.at,
                    link: self.tap.link_name(frame.link),
                    direction: frame.direction,
                    packet,
                });
            }
        }
        Ok(())
    }
}

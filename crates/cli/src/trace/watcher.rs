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
};
use vnet::addr::Family;

use super::{
    DSCP, OUTSIDE,
    hops::{self, Seen, Told},
};
use crate::{
    places::Place,
    watch::frame::{Decoded, decode},
};

/// How much of a frame is needed: headers, and those of what an ICMP error quotes.
const BEGINNING: usize = 192;
/// An answer to the sender may be read before the taps' copies are.
const LINGER: Duration = Duration::from_millis(20);

/// A namespace that is watched.
struct Post {
    place: Place,
    namespace: Netns,
    tap: Tap,
    tracer: Tracer,
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
    let posts: Vec<Post> = places.iter().filter_map(marked).collect();
    let sender = Netns::at(Path::new(&from.netns), &from.name)
        .with_context(|| format!("opening the network of {}", from.name))?;
    anyhow::ensure!(
        posts.iter().any(|post| post.place.netns == from.netns),
        "{} cannot be watched; `aksnet trace` needs root",
        from.name
    );
    packets::wait_for_stamps()?;
    let mut seen = Vec::new();
    let mut told: Vec<Told> = posts.iter().map(|post| post.told(groups)).collect();
    let outcome = std::thread::scope(|scope| {
        let sender = &sender;
        let source = (from.name == "internet" && family == Family::V6).then_some(OUTSIDE.into());
        let sending = scope.spawn(move || probe(sender, kind, source, to, DSCP, patience));
        let mut until = None;
        loop {
            let sources: Vec<_> = posts.iter().map(|post| post.tap.as_fd()).collect();
            packets::wait(&sources, Duration::from_millis(5))?;
            for (number, post) in posts.iter().enumerate() {
                post.read(number, &mut seen)?;
                told[number].events.extend(post.tracer.events()?);
            }
            match until {
                None if sending.is_finished() => until = Some(Instant::now() + LINGER),
                Some(until) if Instant::now() >= until => break,
                _ => {}
            }
        }
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, anyhow::Error>(sent?)
    })?;
    for (post, told) in posts.iter().zip(&mut told) {
        if told.events.iter().any(|event| event.table != told.own_table) {
            let listing = nft::listing(&post.namespace);
            told.rules = hops::rules(&listing.context("listing the rules that it met")?, family);
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
        Ok(Post { place: place.clone(), namespace, tap, tracer })
    };
    match open() {
        Ok(post) => Some(post),
        Err(error) => {
            tracing::debug!(place = place.name, error = format!("{error:#}"), "not watched");
            None
        }
    }
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

//! The model and the kernel agree: random regions, random flows; where [`vnet::flow`] says that a packet goes, a
//! real packet is seen, and nowhere else.
//!
//! `AKSNET_AGREEMENT_WORLDS` is how many regions, `AKSNET_AGREEMENT_FLOWS` how many flows in each, and
//! `AKSNET_AGREEMENT_SEED` the number of the first one. A region that was not agreed upon is named by its number,
//! and belongs into [`COUNTEREXAMPLES`].
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

mod compare;
mod dice;
mod firewalls;
mod flows;
mod wire;
mod worlds;

use vnet::region::Region;

use crate::{compare::Tally, dice::Dice};

/// Numbers of regions that were not agreed upon once.
const COUNTEREXAMPLES: &[u64] = &[20, 103];
/// The same, of regions with firewalls.
const COUNTEREXAMPLES_WITH_FIREWALLS: &[u64] = &[6, 8, 47, 115];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Compares regions: the counterexamples, and as many as are asked for from `first` on, unless another is.
fn compare_all(counterexamples: &[u64], first: u64, region: impl Fn(u64) -> Region) -> Tally {
    let n_worlds = number("AKSNET_AGREEMENT_WORLDS", 6);
    let n_flows = number("AKSNET_AGREEMENT_FLOWS", 500);
    let first = number("AKSNET_AGREEMENT_SEED", first);
    let mut tally = Tally::default();
    for seed in counterexamples.iter().copied().chain(first..first + n_worlds) {
        tally.add(compare::world(seed, &region(seed), n_flows));
    }
    println!("{tally}");
    tally
}

#[test]
fn model_and_kernel_agree() {
    let tally = compare_all(COUNTEREXAMPLES, 1, |seed| worlds::region(&mut Dice::new(seed)));
    assert!(tally.is_diverse(), "too few kinds of fates were seen: {tally}");
}

/// The same regions, and what [`firewalls`] adds to them.
#[test]
fn model_and_kernel_agree_about_firewalls() {
    // Of the first regions few have a front end in a peer that a route names.
    let tally = compare_all(COUNTEREXAMPLES_WITH_FIREWALLS, 18, |seed| {
        let mut region = worlds::region(&mut Dice::new(seed));
        firewalls::add(&mut Dice::new(seed << 32), &mut region);
        region
    });
    assert!(tally.has_firewalls(), "too few flows met firewalls: {tally}");
}

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

use crate::dice::Dice;

/// Numbers of regions that were not agreed upon once.
const COUNTEREXAMPLES: &[u64] = &[20, 103];
/// The same, of regions with firewalls.
const COUNTEREXAMPLES_WITH_FIREWALLS: &[u64] = &[6, 8, 47, 115];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn model_and_kernel_agree() {
    let n_worlds = number("AKSNET_AGREEMENT_WORLDS", 6);
    let n_flows = number("AKSNET_AGREEMENT_FLOWS", 500);
    let first = number("AKSNET_AGREEMENT_SEED", 1);
    let mut tally = compare::Tally::default();
    let seeds = COUNTEREXAMPLES.iter().copied().chain(first..first + n_worlds);
    for seed in seeds {
        let region = worlds::region(&mut Dice::new(seed));
        tally.add(compare::world(seed, &region, n_flows));
    }
    println!("{tally}");
    assert!(tally.is_diverse(), "too few kinds of fates were seen: {tally}");
}

/// The same regions, and what [`firewalls`] adds to them.
#[test]
fn model_and_kernel_agree_about_firewalls() {
    let n_worlds = number("AKSNET_AGREEMENT_WORLDS", 6);
    let n_flows = number("AKSNET_AGREEMENT_FLOWS", 500);
    // Of the first regions few have a front end in a peer that a route names.
    let first = number("AKSNET_AGREEMENT_SEED", 18);
    let mut tally = compare::Tally::default();
    let seeds = COUNTEREXAMPLES_WITH_FIREWALLS.iter().copied().chain(first..first + n_worlds);
    for seed in seeds {
        let mut region = worlds::region(&mut Dice::new(seed));
        firewalls::add(&mut Dice::new(seed << 32), &mut region);
        tally.add(compare::world(seed, &region, n_flows));
    }
    println!("{tally}");
    assert!(tally.has_firewalls(), "too few flows met firewalls: {tally}");
}

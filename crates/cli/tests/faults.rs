//! The lab's daemon is killed while the article is played. The next `up` goes on from there, and nothing is left after `down`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(clippy::print_stdout, reason = "how far it is, and what to repeat when it fails")]

mod lab;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lab::TestLab;

/// How often the daemon is killed.
const KILLS: u32 = 4;

#[test]
fn the_article_goes_on_after_every_crash() {
    let lab = TestLab::up();
    // Other moments by hand: AKSNET_FAULT_SEED=7 cargo nextest run -E 'binary(faults)'.
    let mut seed: u64 =
        std::env::var("AKSNET_FAULT_SEED").map_or(1, |text| text.parse().expect("a number"));
    for kill in 1..=KILLS {
        let mut tour = Command::new(env!("CARGO_BIN_EXE_aksnet"))
            .args(["--name", lab.name(), "tour"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis(2000 + (seed >> 33) % 20_000);
        println!("kill {kill} of {KILLS} after {moment:?}");
        let began = Instant::now();
        while began.elapsed() < moment && tour.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        lab.kill();
        // az finds nobody and gives up; what it was in the middle of is not half done.
        tour.kill().unwrap();
        tour.wait().unwrap();
        lab.aksnet(&["up"]).succeeds();
    }
    let tour = lab.aksnet(&["tour"]);
    assert!(tour.success(), "{}{}", tour.stdout(), tour.stderr());

    // A crash, and `down` without a daemon: it still finds everything.
    lab.kill();
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());

    // What was asked for survives: it comes back as it was.
    lab.aksnet(&["up"]).succeeds();
    let tour = lab.aksnet(&["tour"]);
    assert!(tour.success(), "{}{}", tour.stdout(), tour.stderr());
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

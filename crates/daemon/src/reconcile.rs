//! The one shape of all loops: woken, not told; the timer heals what signals missed; the next pass is the retry.

use std::{
    error::Error,
    fmt,
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use vnet::model::Timestamp;

use crate::metrics::METER;

/// Runs `pass` now, whenever `wake` changes, and every `resync`. Ends when `wake`'s sender is gone.
/// `name` stands in the log of a failed pass.
pub async fn run<E: Error, F: Future<Output = Result<(), E>>>(
    name: &str,
    mut pass: impl FnMut() -> F,
    mut wake: watch::Receiver<()>,
    resync: Duration,
) {
    loop {
        wake.mark_unchanged();
        let passed = pass().await;
        if passed.is_ok() {
            METER.out_of_trouble(name);
        }
        if let Err(error) = passed {
            METER.failed(name);
            METER.in_trouble(name, Chain(&error).to_string());
            tracing::warn!(loop_name = name, error = %Chain(&error), "reconciliation failed; it will be tried again");
            // A broken world is not asked again at once, however often it wakes us.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        tokio::select! {
            woken = wake.changed() => if woken.is_err() { return },
            () = tokio::time::sleep(resync) => (),
        }
    }
}

/// An error with its causes, on one line.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The time of the machine's clock.
///
/// # Panics
/// When the clock stands before 1970 or after the year 292 million.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970");
    Timestamp(i64::try_from(since.as_millis()).expect("milliseconds since 1970 fit into 63 bits"))
}

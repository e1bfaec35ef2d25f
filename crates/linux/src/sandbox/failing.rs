//! Which units of a sandbox do not stay up, read from what its first process has written down.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// How much of a log's end is read.
const TAIL: u64 = 16 << 10;
/// A unit that has ended so often in a row, never having run for long, is not on its way up.
const TOO_OFTEN: u32 = 4;

/// A unit that ends again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The unit.
    pub unit: String,
    /// How it ended the last time, `ended with exit code 1`.
    pub how: String,
    /// The last line of its log.
    pub last_words: String,
    /// Its log.
    pub log: PathBuf,
}

/// The units of the sandbox with logs in `dir` that end again and again; none when there is no such log.
#[must_use]
pub fn failing(dir: &Path) -> Vec<Failing> {
    let log = tail(&dir.join("init.log"));
    let with_log = count(&log).into_iter().map(|(unit, how)| {
        let log = dir.join(format!("{unit}.log"));
        let last_words = tail(&log).trim_end().lines().last().unwrap_or_default().to_owned();
        Failing { unit: unit.to_owned(), how: how.to_owned(), last_words, log }
    });
    with_log.collect()
}

/// The units that have ended often in a row, and how the last time.
fn count(log: &str) -> Vec<(&str, &str)> {
    struct Run<'l> {
        unit: &'l str,
        how: &'l str,
        started: f64,
        n_ends: u32,
    }
    let mut runs: Vec<Run<'_>> = Vec::new();
    for line in log.lines() {
        let Some((time, said)) = line.split_once(' ') else { continue };
        let (Ok(time), Some((unit, said))) = (time.parse::<f64>(), said.split_once(": ")) else {
            continue;
        };
        let index = runs.iter().position(|run| run.unit == unit).unwrap_or_else(|| {
            runs.push(Run { unit, how: "", started: time, n_ends: 0 });
            runs.len() - 1
        });
        let run = &mut runs[index];
        match said.split_once("; next start in ") {
            Some((how, _)) => {
                let was_steady = time - run.started >= super::supervisor::STEADY.as_secs_f64();
                run.n_ends = if was_steady { 1 } else { run.n_ends + 1 };
                run.how = how;
            }
            None => run.started = time,
        }
    }
    let often = runs.iter().filter(|run| run.n_ends >= TOO_OFTEN);
    often.map(|run| (run.unit, run.how)).collect()
}

fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_ends_again_and_again_is_failing() {
        let log = "100.000 kubelet: started\n\
                   100.000 agent: started\n\
                   100.300 kubelet: ended with exit code 1; next start in 200ms\n\
                   100.500 kubelet: started\n\
                   100.800 kubelet: ended with exit code 1; next start in 400ms\n\
                   101.200 kubelet: started\n\
                   101.500 kubelet: ended with exit code 1; next start in 800ms\n\
                   102.300 kubelet: started\n";
        assert_eq!(count(log), []);
        let log = format!("{log}102.500 kubelet: ended by SIGABRT; next start in 1.6s\n");
        assert_eq!(count(&log), [("kubelet", "ended by SIGABRT")]);
        let log = format!("{log}104.100 kubelet: started\n");
        assert_eq!(count(&log), [("kubelet", "ended by SIGABRT")]);
        let log = format!("{log}120.000 kubelet: ended by SIGTERM; next start in 200ms\n");
        assert_eq!(count(&log), [], "it ran for a while");
    }
}

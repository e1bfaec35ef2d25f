//! Files that say which process something is, so that it is found again and no other is taken for it.
//! Not here: what is in a sandbox.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Doing, SandboxError, poll_until};

/// The suffix of a spec's file.
pub(super) const SPEC: &str = ".spec.json";
const PID: &str = ".pid.json";
const LOCK: &str = ".lock";
const ROOT: &str = ".root";

/// A process that no other can be mistaken for: pids are used again, and files outlive boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// As the machine sees it.
    pid: i32,
    /// Clock ticks after boot (`proc_pid_stat(5)`, field 22).
    start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

impl Process {
    /// The process with this pid now; `None` when there is none, or only a zombie.
    #[must_use]
    pub fn observe(pid: i32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        // A zombie holds nothing but its pid.
        (!matches!(state, 'Z' | 'X')).then(|| Self {
            pid,
            start_time,
            boot: boot.trim().to_owned(),
        })
    }

    /// The calling process.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::observe(Pid::this().as_raw())
    }

    /// Its pid, as the machine sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::observe(self.pid).is_some_and(|now| now == *self)
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the check and the signal; whoever waits sees that.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until it has ended, at most so long.
    pub fn wait(&self, patience: Duration) {
        poll_until(patience, || !self.is_alive());
    }
}

/// The process that a file names, alive or not; `None` when there is no such file.
#[must_use]
pub fn read(path: &Path) -> Option<Process> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes down a process.
pub fn write(path: &Path, process: &Process) -> Result<(), SandboxError> {
    let text = serde_json::to_vec(process)
        .map_err(|source| SandboxError::Spec { path: path.to_owned(), source })?;
    write_private(path, &text)
}

/// State and start time. The second field is the program's name in brackets, which may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3; the start time is field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// Where the spec of a sandbox is.
pub(super) fn spec_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}{SPEC}"))
}

/// Where starts of a sandbox take turns.
pub(super) fn lock_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}{LOCK}"))
}

/// The folder on which a sandbox builds its root, empty as the machine sees it.
pub(super) fn root_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}{ROOT}"))
}

/// Where the first process of a sandbox is written down.
pub(super) fn pid_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}{PID}"))
}

/// Removes all files of a sandbox.
pub(super) fn remove(run_dir: &Path, name: &str) -> Result<(), SandboxError> {
    // The spec goes last: as long as it is there, the sandbox is listed.
    for path in [pid_path(run_dir, name), lock_path(run_dir, name), spec_path(run_dir, name)] {
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(err).doing("remove", path.display());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Replaces a file in one step; only its owner may read it.
pub(super) fn write_private(path: &Path, text: &[u8]) -> Result<(), SandboxError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text)?;
        fs::rename(&beside, path)
    };
    write().doing("write", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_names_cannot_mislead() {
        let stat = "7 (a) Z 1 (b) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (x) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let me = Process::current().expect("this process");
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot: "another".to_owned(), ..me }.is_alive());
    }
}

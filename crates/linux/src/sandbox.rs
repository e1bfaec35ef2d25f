//! A process tree of its own, with its own root, namespaces and cgroups: what a computer is to the
//! programs on it. Not here: which programs (see the `cluster` crate), when to start them.
//!
//! A sandbox joins a network namespace that exists already and gets new mount, pid, uts, ipc and
//! cgroup namespaces. Its root is an overlay over the machine's root, so nothing that happens inside
//! reaches the machine's files except through the [`Bind`]s of its [`SandboxSpec`].
//!
//! # Expected flow
//!
//! 1. [`Sandbox::start`] writes the spec and runs the [`Launcher`], a program that calls [`init()`].
//! 2. That process makes cgroups and namespaces and forks. The child, process 1 of the sandbox,
//!    builds the root and reports; the parent writes the pid file and ends.
//! 3. Process 1 starts the units, restarts those that end, and reaps what is orphaned.
//! 4. [`Sandbox::find`], in any process at any later time, finds it by pid, start time and boot.
//! 5. [`Sandbox::stop`] ends process 1, and with it, by the kernel's doing, everything inside.
//!
//! # Guarantees
//!
//! - A sandbox outlives whoever started it. A start that is interrupted leaves nothing running:
//!   process 1 goes on only after its pid file is on disk.
//! - Two starts of one name at a time make one sandbox.
//! - Mounts exist in the sandbox's mount namespace only, and go with it.
//!
//! # Assumptions
//!
//! - The caller is root. The machine's kernel has overlayfs, and the six namespaces.
//!
//! # Caveats
//!
//! - Kernel-wide state is shared: time, disk and memory totals, conntrack limits, `/dev`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

mod cgroup;
mod failing;
mod init;
pub mod pidfile;
mod root;
mod supervisor;

pub use cgroup::in_group_of;
pub use failing::{Failing, failing};
pub use init::init;

/// How long process 1 gets to end its units in an orderly way.
const GRACE: Duration = Duration::from_millis(300);

/// Everything that makes a sandbox. Written as JSON for its first process to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Its name, a file name that is unique in the run directory.
    pub name: String,
    /// Says what the sandbox was made from: one that runs with another digest is out of date.
    pub digest: String,
    /// The network namespace to join, `/run/netns/…`.
    pub netns: PathBuf,
    /// The host name inside.
    pub hostname: String,
    /// Its folder in every cgroup hierarchy, relative: `aksnet/lab/name`.
    pub cgroup: String,
    /// Where logs go, on the machine: `init.log` and one file for each unit.
    pub log_dir: PathBuf,
    /// Files and folders of the machine that are visible, and shared, inside.
    pub binds: Vec<Bind>,
    /// Files that exist only inside.
    pub files: Vec<FileSpec>,
    /// The programs.
    pub units: Vec<Unit>,
}

/// A file or folder of the machine at a path inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// On the machine. A folder that is missing is made.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
}

/// A file inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its path inside.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// Its permission bits, `0o600`.
    pub mode: u32,
}

/// A program that is kept running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Its name; the log is `<name>.log`.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beside `PATH` and `HOME`.
    pub env: BTreeMap<String, String>,
    /// What must be there before its first start.
    pub after: Vec<Ready>,
}

/// A sign that something else is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Ready {
    /// A path exists, such as a Unix socket.
    Path(PathBuf),
    /// A TCP connection is accepted.
    Tcp(SocketAddr),
}

/// The program that becomes a sandbox's first process: it calls [`init()`] with the path that is
/// appended to its arguments.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Arguments before the spec's path.
    pub args: Vec<String>,
}

/// Why a sandbox could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step of the kernel's or the file system's failed.
    #[error("cannot {action} `{subject}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        subject: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The spec is not what [`SandboxSpec`] says.
    #[error("`{path}` is not a sandbox's description")]
    Spec {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Process 1 did not come up.
    #[error("sandbox `{name}` did not start: {reason}")]
    Start {
        /// The sandbox.
        name: String,
        /// What its first process said.
        reason: String,
    },
    /// Process 1 does not end, even when killed.
    #[error("process {pid} of sandbox `{name}` does not end")]
    Unkillable {
        /// The sandbox.
        name: String,
        /// Its first process, as the machine sees it.
        pid: i32,
    },
}

/// Names the step that failed.
pub(crate) trait Doing<T> {
    /// Turns the error into [`SandboxError::Io`].
    fn doing(self, action: &'static str, subject: impl ToString) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: &'static str, subject: impl ToString) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::Io {
            action,
            subject: subject.to_string(),
            source: source.into(),
        })
    }
}

/// A sandbox that was started; it may have ended since.
#[derive(Clone, Debug)]
pub struct Sandbox {
    run_dir: PathBuf,
    spec: SandboxSpec,
    process: pidfile::Process,
}

impl Sandbox {
    /// Starts a sandbox. Blocks until its first process is supervising, which takes some ten
    /// milliseconds. One that already runs with this digest is left as it is.
    ///
    /// `run_dir` holds its pid file and must not survive a reboot unnoticed by the caller.
    pub fn start(
        launcher: &Launcher,
        run_dir: &Path,
        spec: &SandboxSpec,
    ) -> Result<Self, SandboxError> {
        if let Some(running) = Self::find(run_dir, &spec.name) {
            if running.spec.digest == spec.digest {
                return Ok(running);
            }
            running.stop()?;
        } else {
            // What a sandbox that died left behind: a crashed computer comes back without its
            // old control groups.
            remove_leftovers(run_dir, spec)?;
        }
        for dir in [run_dir, &spec.log_dir] {
            fs::create_dir_all(dir).doing("make the folder", dir.display())?;
        }
        let path = pidfile::spec_path(run_dir, &spec.name);
        let text = serde_json::to_vec(spec)
            .map_err(|source| SandboxError::Spec { path: path.clone(), source })?;
        pidfile::write_private(&path, &text)?;
        let output = Command::new(&launcher.program)
            .args(&launcher.args)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .doing("run", launcher.program.display())?;
        match Self::find(run_dir, &spec.name) {
            Some(sandbox) if output.status.success() => Ok(sandbox),
            _ => Err(SandboxError::Start {
                name: spec.name.clone(),
                reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
        }
    }

    /// The sandbox of this name that runs now, whoever started it.
    #[must_use]
    pub fn find(run_dir: &Path, name: &str) -> Option<Self> {
        let process = pidfile::read(&pidfile::pid_path(run_dir, name))?;
        if !process.is_alive() {
            return None;
        }
        let spec = fs::read(pidfile::spec_path(run_dir, name)).ok()?;
        let spec: SandboxSpec = serde_json::from_slice(&spec).ok()?;
        Some(Self { run_dir: run_dir.to_owned(), spec, process })
    }

    /// The names of all sandboxes that were started in `run_dir` and not stopped, dead ones too.
    #[must_use]
    pub fn list(run_dir: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(run_dir) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|file| file.strip_suffix(pidfile::SPEC).map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Whether its first process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// Its first process, as the machine sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// What it was started with.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// Ends everything inside, in order if that takes no longer than a moment, and removes
    /// control groups and run files. The folders behind its binds stay.
    pub fn stop(self) -> Result<(), SandboxError> {
        self.process.terminate();
        self.process.wait(GRACE * 2);
        self.process.kill();
        self.process.wait(GRACE * 20);
        if self.process.is_alive() {
            return Err(SandboxError::Unkillable { name: self.spec.name, pid: self.process.pid() });
        }
        remove_leftovers(&self.run_dir, &self.spec)?;
        pidfile::remove(&self.run_dir, &self.spec.name)
    }

    /// Stops the sandbox of this name, or clears up after one that died. Stopping what is not
    /// there succeeds.
    pub fn stop_named(run_dir: &Path, name: &str) -> Result<(), SandboxError> {
        if let Some(sandbox) = Self::find(run_dir, name) {
            return sandbox.stop();
        }
        if let Ok(text) = fs::read(pidfile::spec_path(run_dir, name))
            && let Ok(spec) = serde_json::from_slice::<SandboxSpec>(&text)
        {
            remove_leftovers(run_dir, &spec)?;
        }
        pidfile::remove(run_dir, name)
    }
}

/// Removes what a sandbox that is not running may have left: control groups with whatever still
/// sits in them, and the mount point of its root.
fn remove_leftovers(run_dir: &Path, spec: &SandboxSpec) -> Result<(), SandboxError> {
    let root = pidfile::root_path(run_dir, &spec.name);
    match fs::remove_dir(&root) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).doing("remove the folder", root.display());
        }
        _ => {}
    }
    cgroup::remove(&spec.cgroup)
}

/// Calls `done` every few milliseconds until it says yes or `patience` is over; says which.
fn poll_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

//! How a process becomes a sandbox's first. Runs in the launcher's process, which has one thread.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{ForkResult, dup2_stderr, dup2_stdout, fork, pipe, sethostname, setsid},
};

use super::{Doing, Sandbox, SandboxError, SandboxSpec, cgroup, pidfile, root, supervisor};

/// What process 1 says when its root stands.
const READY: &[u8] = b"ready";

/// Starts the sandbox that the file describes and returns in two processes: soon in the calling one,
/// with what came of it; and in process 1 of the sandbox at its end. Both callers have nothing left
/// to do but exit.
///
/// To be called by a launcher, before it has started any thread.
#[allow(unsafe_code, reason = "only a fork makes a first process of a pid namespace")]
pub fn init(spec_path: &Path) -> Result<(), SandboxError> {
    let text = fs::read(spec_path).doing("read", spec_path.display())?;
    let spec: SandboxSpec = serde_json::from_slice(&text)
        .map_err(|source| SandboxError::Spec { path: spec_path.to_owned(), source })?;
    let run_dir = spec_path.parent().unwrap_or(Path::new("/"));
    // Held until the pid file is there, so that a second start finds the first.
    let lock_path = pidfile::lock_path(run_dir, &spec.name);
    let lock = File::create(&lock_path).doing("make", lock_path.display())?;
    lock.lock().doing("lock", lock_path.display())?;
    if Sandbox::find(run_dir, &spec.name).is_some() {
        return Ok(());
    }
    // No signal meant for the starter's group or terminal may reach the sandbox.
    setsid().doing("leave the session of", std::process::id())?;
    cgroup::enter(&spec.cgroup)?;
    enter_namespaces(&spec)?;
    let base = pidfile::root_path(run_dir, &spec.name);
    fs::create_dir_all(&base).doing("make the folder", base.display())?;

    let (report_in, report_out) = pipe().doing("make a pipe for", &spec.name)?;
    let (go_in, go_out) = pipe().doing("make a pipe for", &spec.name)?;
    // SAFETY: this process has a single thread (the caller's promise), so the child's copy of
    // memory and locks is whole.
    match unsafe { fork() }.doing("fork", &spec.name)? {
        ForkResult::Child => {
            // The lock belongs to the open file, which both processes share.
            drop((lock, report_in, go_out));
            first_process(&spec, &base, report_out, go_in)
        }
        ForkResult::Parent { child } => {
            drop((report_out, go_in));
            let mut report = Vec::new();
            File::from(report_in).read_to_end(&mut report).doing("hear from", &spec.name)?;
            if report != READY {
                return Err(SandboxError::Start {
                    name: spec.name,
                    reason: String::from_utf8_lossy(&report).into_owned(),
                });
            }
            let process =
                pidfile::Process::observe(child.as_raw()).ok_or_else(|| SandboxError::Start {
                    name: spec.name.clone(),
                    reason: "its first process ended at once".to_owned(),
                })?;
            pidfile::write(&pidfile::pid_path(run_dir, &spec.name), &process)?;
            File::from(go_out).write_all(READY).doing("release", &spec.name)
        }
    }
}

fn enter_namespaces(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let netns = File::open(&spec.netns).doing("open", spec.netns.display())?;
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).doing("enter", spec.netns.display())?;
    // The mount namespace is the child's alone: this process goes on with the machine's paths.
    let new = CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(new).doing("make namespaces for", &spec.name)?;
    sethostname(&spec.hostname).doing("set the host name", &spec.hostname)
}

/// Process 1: builds the root, waits for the word to go on, supervises.
fn first_process(
    spec: &SandboxSpec,
    base: &Path,
    report: OwnedFd,
    go: OwnedFd,
) -> Result<(), SandboxError> {
    let mut report = File::from(report);
    let prepared = prepare(spec, base);
    match &prepared {
        Ok(_) => report.write_all(READY),
        Err(err) => report.write_all(render_chain(err).as_bytes()),
    }
    .doing("report to the starter of", &spec.name)?;
    drop(report);
    let logs = prepared?;
    let mut word = Vec::new();
    File::from(go).read_to_end(&mut word).doing("hear from the starter of", &spec.name)?;
    // An empty word: the starter ended before it could write the pid file.
    if word == READY { supervisor::run(&spec.units, logs) } else { Ok(()) }
}

/// Opens the logs while the machine's paths are still there, then changes the root.
fn prepare(spec: &SandboxSpec, base: &Path) -> Result<supervisor::Logs, SandboxError> {
    let path = spec.log_dir.join("init.log");
    let own = OpenOptions::new().create(true).append(true).open(&path);
    let own = own.doing("open", path.display())?;
    let logs = supervisor::Logs::open(&spec.log_dir, &spec.units)?;
    dup2_stdout(own.as_fd()).doing("write to", path.display())?;
    dup2_stderr(own.as_fd()).doing("write to", path.display())?;
    unshare(CloneFlags::CLONE_NEWNS).doing("make a mount namespace for", &spec.name)?;
    root::enter(spec, base)?;
    Ok(logs)
}

fn render_chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

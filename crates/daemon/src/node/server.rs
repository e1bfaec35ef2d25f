//! The agent's socket: blocking threads, each with netlink sockets of its own.
//!
//! Eight requests are worked on at once; more wait in the kernel's queue. A thread per connection
//! would be as good, but threads that stay have their sockets open already.

use std::{
    fs, io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use cni::{
    spec::{Code, Failure},
    talk::{self, Line, LineVersion, Reply},
};
use linux::pod::Wirer;

use super::{NodeError, agent::Agent, chain};

const N_WORKERS: usize = 8;
/// What one request needs is small, and a node has many agents beside it on this machine.
const STACK_BYTES: usize = 256 << 10;
/// A plugin writes its line at once; whoever does not is not one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Listens at `socket` and answers, on threads that never end.
pub(super) fn start(agent: &Arc<Agent>, socket: &Path) -> Result<(), NodeError> {
    let failed = |source| NodeError::Socket { path: socket.to_owned(), source };
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    // The ledger's lock is ours, so whoever listened here is dead.
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => (),
    }
    let listener = Arc::new(UnixListener::bind(socket).map_err(failed)?);
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    for number in 0..N_WORKERS {
        let (agent, listener) = (Arc::clone(agent), Arc::clone(&listener));
        spawn(&format!("cni-{number}"), move |wirer| serve(&agent, &listener, wirer))?;
    }
    let agent = Arc::clone(agent);
    spawn("reaper", move |wirer| agent.run_reaper(wirer))
}

/// A thread with a wirer of its own, made on it.
fn spawn(name: &str, work: impl FnOnce(&mut Wirer) + Send + 'static) -> Result<(), NodeError> {
    let body = move || match Wirer::new() {
        Ok(mut wirer) => work(&mut wirer),
        Err(error) => tracing::error!(error = %chain(&error), "a worker cannot begin"),
    };
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map(drop)
        .map_err(|source| NodeError::Thread { source })
}

fn serve(agent: &Agent, listener: &UnixListener, wirer: &mut Wirer) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(agent, stream, wirer) {
                    tracing::warn!(%error, "a plugin went away before its answer");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(agent: &Agent, mut stream: UnixStream, wirer: &mut Wirer) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = talk::read_line(&mut stream)?;
    talk::write_line(&mut stream, &reply(agent, &line, wirer))
}

/// What the agent says to one line.
pub(super) fn reply(agent: &Agent, line: &[u8], wirer: &mut Wirer) -> Reply {
    let reply = match parse(line) {
        Ok(line) => {
            tracing::debug!(request = ?line.request, "asked");
            agent.answer(wirer, line.request)
        }
        Err(failure) => failure.into(),
    };
    if let Reply::Failed { code, message, details } = &reply {
        tracing::warn!(code, message, details, "refused");
    }
    reply
}

fn parse(line: &[u8]) -> Result<Line, Failure> {
    let unreadable = |error: serde_json::Error| {
        Failure::new(Code::Decode, "the request is not readable").details(error.to_string())
    };
    let LineVersion { version } = serde_json::from_slice(line).map_err(unreadable)?;
    if version != talk::VERSION {
        return Err(Failure::new(Code::Version, "plugin and agent are of different releases")
            .details(format!("the plugin speaks {version}, the agent {}", talk::VERSION)));
    }
    serde_json::from_slice(line).map_err(unreadable)
}

//! The one process that answers in every pod of the lab (see [`linux::echo`]): started, found again, ended. It
//! outlives the daemon, so that pods answer while that is away.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use linux::{
    echo::{Client, Voice},
    sandbox::pidfile::{self, Process},
};

use super::super::{ClustersError, places::Places};

/// How long it may take from its start until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// The process, as the daemon sees it. Its methods block.
pub(super) struct Echo {
    program: PathBuf,
    lab: String,
    run: PathBuf,
    log: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    client: Option<Client>,
    /// Ours when this daemon started it: to be waited for when it ends.
    child: Option<Child>,
}

impl Echo {
    pub(super) fn new(places: &Places) -> Self {
        Self {
            program: places.aksnet.clone(),
            lab: places.lab.clone(),
            run: places.run.clone(),
            log: places.logs.join("echo.log"),
            inner: Mutex::default(),
        }
    }

    /// Whether it runs. One that has ended is waited for.
    pub(super) fn is_alive(&self) -> bool {
        if let Some(child) = &mut self.lock().child {
            let _ = child.try_wait();
        }
        pidfile::read(&pid_path(&self.run)).is_some_and(|process| process.is_alive())
    }

    /// Makes it be there and lets these answer in it, and nobody else.
    pub(super) fn be_exactly(&self, voices: &[Voice]) -> Result<(), ClustersError> {
        self.with(|client| {
            let there = client.list()?;
            let wanted = |id: &String| voices.iter().any(|voice| voice.id == *id);
            let (stay, go): (Vec<String>, Vec<String>) = there.into_iter().partition(wanted);
            go.iter().try_for_each(|id| client.remove(id))?;
            for voice in voices {
                if !stay.contains(&voice.id)
                    && let Err(error) = client.add(voice.clone())
                {
                    tracing::warn!(pod = voice.name, %error, "a pod has no echo");
                }
            }
            Ok(())
        })
    }

    /// Lets somebody answer.
    pub(super) fn add(&self, voice: Voice) -> Result<(), ClustersError> {
        self.with(|client| client.add(voice))
    }

    /// Lets somebody answer no more.
    pub(super) fn remove(&self, id: &str) -> Result<(), ClustersError> {
        self.with(|client| client.remove(id))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Client) -> io::Result<T>) -> Result<T, ClustersError> {
        let failed = |source| ClustersError::File {
            action: "speak at",
            path: socket_path(&self.run),
            source,
        };
        let mut inner = self.lock();
        let mut client = match inner.client.take() {
            Some(client) => client,
            None => self.connect(&mut inner).map_err(failed)?,
        };
        match work(&mut client) {
            Ok(value) => {
                inner.client = Some(client);
                Ok(value)
            }
            Err(error) => {
                // What it said of one pod is an answer; anything else ends the conversation.
                if error.kind() == io::ErrorKind::Other {
                    inner.client = Some(client);
                }
                Err(failed(error))
            }
        }
    }

    fn connect(&self, inner: &mut Inner) -> io::Result<Client> {
        let (pid, socket) = (pid_path(&self.run), socket_path(&self.run));
        if let Some(process) = pidfile::read(&pid).filter(Process::is_alive) {
            match Client::connect(&socket) {
                Ok(client) => return Ok(client),
                // It is on its way, or will never answer.
                Err(_) => process.kill(),
            }
        }
        if let Some(mut child) = inner.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(["--name", &self.lab, "echo", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What ends the daemon from a terminal is not meant for it.
            .process_group(0)
            .current_dir("/")
            .spawn()?;
        let number = i32::try_from(child.id()).unwrap_or_default();
        inner.child = Some(child);
        let process = Process::observe(number).ok_or(io::ErrorKind::NotFound)?;
        pidfile::write(&pid, &process).map_err(io::Error::other)?;
        let begin = Instant::now();
        loop {
            match Client::connect(&socket) {
                Err(_) if process.is_alive() && begin.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                outcome => return outcome,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // At worst a conversation is begun anew.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the process of a lab, whether a daemon runs or not.
pub(super) fn end(run: &Path) {
    let Some(process) = pidfile::read(&pid_path(run)) else { return };
    process.kill();
    process.wait(PATIENCE);
}

fn pid_path(run: &Path) -> PathBuf {
    run.join("echo.pid")
}

fn socket_path(run: &Path) -> PathBuf {
    run.join("echo.sock")
}

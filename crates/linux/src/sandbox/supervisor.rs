//! Process 1 of a sandbox: keeps the units running and reaps what is orphaned. It decides nothing
//! else, and it has one thread.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    net::TcpStream,
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{Doing, GRACE, Ready, SandboxError, Unit};

/// The first and the longest wait before a unit that ended is started again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A unit that ran so long had started well.
pub(super) const STEADY: Duration = Duration::from_secs(10);
/// How often units that wait for something are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How often logs are looked at, and how long one may get.
const LOG_CHECK: Duration = Duration::from_secs(10);
const LOG_LIMIT: u64 = 16 << 20;

/// The units' log files, open for appending and reading.
pub(super) struct Logs(Vec<File>);

impl Logs {
    /// Opens one file for each unit.
    pub(super) fn open(dir: &Path, units: &[Unit]) -> Result<Self, SandboxError> {
        let open = |unit: &Unit| {
            let path = dir.join(format!("{}.log", unit.name));
            let mut options = OpenOptions::new();
            options.create(true).append(true).read(true);
            options.open(&path).doing("open", path.display())
        };
        Ok(Self(units.iter().map(open).collect::<Result<_, _>>()?))
    }

    /// Keeps the younger half of each log that has become too long.
    fn trim(&mut self) {
        for log in &mut self.0 {
            // A log that cannot be shortened is only long.
            let _ = trim(log);
        }
    }
}

fn trim(log: &mut File) -> io::Result<()> {
    if log.metadata()?.len() <= LOG_LIMIT {
        return Ok(());
    }
    let mut kept = Vec::new();
    log.seek(io::SeekFrom::End(-(LOG_LIMIT / 2).cast_signed()))?;
    log.read_to_end(&mut kept)?;
    // Every writer appends, so what follows lands at the new end.
    log.set_len(0)?;
    log.write_all(&kept)
}

/// What a unit is doing.
enum State {
    /// Waiting for what it needs.
    Waiting,
    /// Running since then.
    Running { pid: Pid, since: Instant },
    /// Ended; to be started at that time.
    Resting { until: Instant },
}

struct Supervised<'a> {
    unit: &'a Unit,
    log: usize,
    state: State,
    back_off: Duration,
}

/// Supervises until a SIGTERM comes, then ends the units and returns.
pub(super) fn run(units: &[Unit], mut logs: Logs) -> Result<(), SandboxError> {
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).doing("block", "signals")?;
    let events = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .doing("listen to", "signals")?;
    let mut all: Vec<Supervised<'_>> = units
        .iter()
        .enumerate()
        .map(|(log, unit)| Supervised { unit, log, state: State::Waiting, back_off: BACK_OFF.0 })
        .collect();
    say(&format!("supervising {} units", all.len()));
    let mut next_check = Instant::now() + LOG_CHECK;
    loop {
        reap(&mut all);
        for supervised in &mut all {
            advance(supervised, &logs);
        }
        if Instant::now() >= next_check {
            logs.trim();
            next_check = Instant::now() + LOG_CHECK;
        }
        let mut descriptors = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout(&all, next_check)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err).doing("wait for", "signals"),
        }
        while let Some(event) = events.read_signal().doing("read", "signals")? {
            if event.ssi_signo != Signal::SIGCHLD as u32 {
                end(&mut all);
                return Ok(());
            }
        }
    }
}

fn timeout(all: &[Supervised<'_>], next_check: Instant) -> PollTimeout {
    let now = Instant::now();
    let wait = all
        .iter()
        .map(|supervised| match supervised.state {
            State::Waiting => LOOK,
            State::Running { .. } => LOG_CHECK,
            State::Resting { until } => until.saturating_duration_since(now),
        })
        .fold(next_check.saturating_duration_since(now), Duration::min);
    // Rounded up, so that the wait does not end just before its time.
    PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

/// Starts a unit whose time has come.
fn advance(supervised: &mut Supervised<'_>, logs: &Logs) {
    let due = match supervised.state {
        State::Waiting => supervised.unit.after.iter().all(is_ready),
        State::Running { .. } => false,
        State::Resting { until } => Instant::now() >= until,
    };
    if !due {
        return;
    }
    match spawn(supervised.unit, &logs.0[supervised.log]) {
        Ok(pid) => {
            say(&format!("{}: started", supervised.unit.name));
            supervised.state = State::Running { pid, since: Instant::now() };
        }
        Err(err) => {
            say(&format!("{}: cannot be started: {err}", supervised.unit.name));
            rest(supervised);
        }
    }
}

fn rest(supervised: &mut Supervised<'_>) {
    supervised.state = State::Resting { until: Instant::now() + supervised.back_off };
    supervised.back_off = (supervised.back_off * 2).min(BACK_OFF.1);
}

fn is_ready(ready: &Ready) -> bool {
    match ready {
        Ready::Path(path) => path.exists(),
        Ready::Tcp(address) => TcpStream::connect_timeout(address, LOOK).is_ok(),
    }
}

#[allow(unsafe_code, reason = "the signal mask must be reset between fork and exec")]
fn spawn(unit: &Unit, log: &File) -> io::Result<Pid> {
    let (program, args) = unit.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .envs(&unit.env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .process_group(0);
    // SAFETY: the closure makes one system call, which is safe between fork and exec
    // (signal-safety(7)), and touches no memory but its own stack.
    unsafe {
        command.pre_exec(|| {
            // The supervisor blocks signals for itself only.
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    // Waited for in `reap`, like everything else here.
    Ok(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?))
}

/// Reaps all that ended, units and orphans.
fn reap(all: &mut [Supervised<'_>]) {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        let Some(ended) = status.pid() else { return };
        let unit = all.iter_mut().find(
            |supervised| matches!(supervised.state, State::Running { pid, .. } if pid == ended),
        );
        let Some(supervised) = unit else { continue };
        if let State::Running { since, .. } = supervised.state
            && since.elapsed() >= STEADY
        {
            supervised.back_off = BACK_OFF.0;
        }
        let (name, wait) = (&supervised.unit.name, supervised.back_off);
        say(&format!("{name}: {}; next start in {wait:?}", describe(status)));
        rest(supervised);
    }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("ended with exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("ended by {signal}"),
        other => format!("ended ({other:?})"),
    }
}

/// Asks every unit to end and waits a little. What is left ends with this process.
fn end(all: &mut [Supervised<'_>]) {
    say("ending");
    for supervised in all.iter() {
        if let State::Running { pid, .. } = supervised.state {
            // It may have ended already.
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
    let is_running =
        |supervised: &Supervised<'_>| matches!(supervised.state, State::Running { .. });
    super::poll_until(GRACE, || {
        reap(all);
        !all.iter().any(is_running)
    });
}

/// A line in `init.log`, to which standard error goes.
fn say(text: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Nobody is left to hear of it if this fails.
    let _ = writeln!(io::stderr(), "{}.{:03} {text}", now.as_secs(), now.subsec_millis());
}

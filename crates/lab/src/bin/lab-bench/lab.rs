//! A lab that is driven as a person would: by `aksnet`, `az` and `kubectl`.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::timed;

/// The resource group that everything is made in.
pub(crate) const GROUP: &str = "bench";

/// A running lab. Dropping it forgets it and removes what it made.
pub(crate) struct Lab {
    name: String,
    aksnet: PathBuf,
    environment: Vec<(String, String)>,
}

impl Lab {
    /// Starts a new one with a resource group; the time is that of `up`.
    pub(crate) fn up(aksnet: &Path) -> anyhow::Result<(Self, Duration)> {
        Self::up_with(aksnet, &[])
    }

    /// Starts one with more arguments to `up`.
    pub(crate) fn up_with(aksnet: &Path, more: &[&str]) -> anyhow::Result<(Self, Duration)> {
        let aksnet = fs::canonicalize(aksnet).context("finding aksnet")?;
        let name = format!("bench{}", std::process::id());
        eprintln!("if this is interrupted: {} --name {name} reset --yes", aksnet.display());
        let mut lab = Self { name, aksnet, environment: Vec::new() };
        // Given back at once; nobody else on this machine takes free ports by the second.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let (_, time) = timed(|| lab.aksnet(&[&["up", "--listen", &listen], more].concat()))?;
        let lines = lab.aksnet(&["env"])?;
        let variable = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').to_owned()))
        };
        lab.environment = lines.lines().filter_map(variable).collect();
        lab.az(&format!("group create -n {GROUP} -l eastus"))?;
        Ok((lab, time))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A variable that points tools at the lab.
    pub(crate) fn variable(&self, name: &str) -> anyhow::Result<&str> {
        let found = self.environment.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.as_str()).with_context(|| format!("`env` gives no {name}"))
    }

    /// The pid of the daemon.
    pub(crate) fn daemon_pid(&self) -> anyhow::Result<u32> {
        let path = Path::new("/run/aksnet").join(&self.name).join("daemon.pid");
        let value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let pid = value["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.context("the daemon's pid file has no pid")
    }

    /// Waits until the registry has what clusters need, so that the first cluster is like the others.
    pub(crate) fn wait_for_images(&self) -> anyhow::Result<()> {
        let log = Path::new("/var/log/aksnet").join(&self.name).join("aksnet.log");
        let begin = Instant::now();
        let mut n_lines = usize::MAX;
        // Pushing is the only thing that an empty lab logs.
        loop {
            thread::sleep(Duration::from_secs(3));
            let text = fs::read_to_string(&log)?;
            let now = text.lines().filter(|line| line.contains("pushed to")).count();
            if now > 0 && now == n_lines {
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_mins(2), "the registry does not get images");
            n_lines = now;
        }
    }

    /// Stops it; the time that it took.
    pub(crate) fn down(&self) -> anyhow::Result<Duration> {
        Ok(timed(|| self.aksnet(&["down"]))?.1)
    }

    /// Plays the article; how long that took, and what the tour says of it.
    pub(crate) fn tour(&self) -> anyhow::Result<(Duration, String)> {
        let begin = Instant::now();
        let output = self.command(&self.aksnet.to_string_lossy()).arg("tour").output()?;
        let time = begin.elapsed();
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        let verdict = talk.lines().find(|line| line.contains("as the article has it"));
        Ok((time, verdict.unwrap_or("it did not reach its end").to_owned()))
    }

    /// Runs `aksnet` for this lab.
    pub(crate) fn aksnet(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command(&self.aksnet.to_string_lossy()).args(arguments), "")
    }

    /// Runs the real `az`; the arguments are split at blanks.
    pub(crate) fn az(&self, line: &str) -> anyhow::Result<String> {
        run(self.command("az").args(line.split_whitespace()), "")
    }

    /// Runs the real `kubectl` with something on its standard input.
    pub(crate) fn kubectl(&self, cluster: &str, line: &str, input: &str) -> anyhow::Result<String> {
        run(self.kubectl_command(cluster, line), input)
    }

    /// The real `kubectl`, not started yet.
    pub(crate) fn kubectl_command(&self, cluster: &str, line: &str) -> Command {
        let mut command = self.command("kubectl");
        command.args(["--context", cluster]).args(line.split_whitespace());
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        command.env("AKSNET_NAME", &self.name).envs(variables).stdin(Stdio::null());
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.aksnet(&["reset", "--yes"]) {
            eprintln!("lab `{}` is not gone: {error:#}", self.name);
        }
    }
}

/// What a program printed; it must have succeeded.
fn run(mut command: impl std::borrow::BorrowMut<Command>, input: &str) -> anyhow::Result<String> {
    let command = command.borrow_mut();
    let said = format!("{command:?}");
    let line = said.rsplit_once("\"PATH=").map_or(said.as_str(), |(_, rest)| rest).to_owned();
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{line} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! A lab for one test: its own name, its own port, and nothing left when it goes.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says why")]

pub(crate) mod kernel;
pub(crate) mod network_only;
pub(crate) mod packets;

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A running lab. Dropping it forgets it and removes what it made.
pub(crate) struct TestLab {
    name: String,
    pub(crate) environment: Vec<(String, String)>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl TestLab {
    /// Starts one with real Kubernetes.
    pub(crate) fn up() -> Self {
        Self::up_with(&[])
    }

    /// Starts one with more arguments to `up`.
    pub(crate) fn up_with(arguments: &[&str]) -> Self {
        Self::up_in(arguments, &[])
    }

    /// The same with variables in the daemon's environment.
    pub(crate) fn up_in(arguments: &[&str], environment: &[(&str, String)]) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}x{count}", std::process::id());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let given = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut lab = Self { name, environment: given.collect() };
        let listen = format!("127.0.0.1:{port}");
        let mut all = vec!["up", "--listen", &listen];
        all.extend(arguments);
        lab.aksnet(&all).succeeds();
        let lines = lab.aksnet(&["env"]).succeeds();
        lab.environment = lines
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        lab
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `aksnet` for this lab.
    pub(crate) fn aksnet(&self, arguments: &[&str]) -> Ran {
        self.run(env!("CARGO_BIN_EXE_aksnet"), arguments, None)
    }

    /// Runs the real `az`; the arguments are split at blanks.
    pub(crate) fn az(&self, line: &str) -> Ran {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.run("az", &arguments, None)
    }

    /// Runs the real `kubectl` on a cluster whose credentials have been fetched.
    pub(crate) fn kubectl(&self, cluster: &str, line: &str) -> Ran {
        let mut arguments = vec!["--context", cluster];
        arguments.extend(line.split_whitespace());
        self.run("kubectl", &arguments, None)
    }

    /// `kubectl apply` of a manifest, which must succeed.
    pub(crate) fn apply(&self, cluster: &str, manifest: &str) {
        self.applied(cluster, manifest).succeeds();
    }

    /// `kubectl apply` of a manifest.
    pub(crate) fn applied(&self, cluster: &str, manifest: &str) -> Ran {
        self.run("kubectl", &["--context", cluster, "apply", "-f", "-"], Some(manifest))
    }

    /// Runs a shell line in the network of a VM, node or pod.
    pub(crate) fn exec(&self, target: &str, line: &str) -> Ran {
        self.aksnet(&["exec", target, "--", "sh", "-c", line])
    }

    /// Starts a shell line in the network of a VM, node or pod and goes on.
    pub(crate) fn exec_in_background(&self, target: &str, line: &str) -> std::process::Child {
        self.command(env!("CARGO_BIN_EXE_aksnet"))
            .args(["exec", target, "--", "sh", "-c", line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The pid of the daemon.
    pub(crate) fn daemon_pid(&self) -> u32 {
        let path = Path::new("/run/aksnet").join(&self.name).join("daemon.pid");
        let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        u32::try_from(value["pid"].as_u64().unwrap()).unwrap()
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill(&self) {
        let pid = self.daemon_pid().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        eventually("the daemon is gone", || {
            !Path::new("/proc").join(&pid).exists() || is_zombie(&pid)
        });
    }

    fn command(&self, program: &str) -> Command {
        // The lab's PATH finds the real az and kubectl.
        let path = self.environment.iter().find(|(name, _)| name == "PATH");
        let program = path
            .and_then(|(_, folders)| {
                std::env::split_paths(folders)
                    .map(|folder| folder.join(program))
                    .find(|file| file.exists())
            })
            .unwrap_or_else(|| PathBuf::from(program));
        let mut command = Command::new(program);
        command
            .env("AKSNET_NAME", &self.name)
            .env_remove("AKSNET_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Ran {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        if let Some(text) = input {
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        Ran { line: format!("{program} {}", arguments.join(" ")), output }
    }

    /// Everything on this machine that carries the lab's name.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let shell = |line: &str| {
            let output = Command::new("sh").args(["-c", line]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let name = &self.name;
        let own = std::process::id().to_string();
        for line in [
            format!("ls /run/netns 2>/dev/null | grep '^{name}-'"),
            format!(
                "grep -l '{name}' /proc/[0-9]*/cmdline 2>/dev/null | grep -v '/{own}/' | while read f; do tr '\\0' ' ' <$f; echo; done | grep -v grep"
            ),
            format!("grep '{name}' /proc/self/mounts"),
            format!("find /sys/fs/cgroup -maxdepth 5 -type d -path '*aksnet/{name}*' 2>/dev/null"),
            format!("ls -d /run/aksnet/{name} 2>/dev/null"),
            format!("ip -o link | grep '{name}'"),
        ] {
            traces.extend(
                shell(&line).lines().filter(|line| !line.trim().is_empty()).map(str::to_owned),
            );
        }
        traces
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = Path::new("/var/log/aksnet").join(&self.name).join("aksnet.log");
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(60).collect();
            eprintln!(
                "--- the daemon's last lines\n{}",
                lines.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
            eprintln!("--- status\n{}", self.aksnet(&["status"]).stdout());
        }
        let _ = self.aksnet(&["reset", "--yes"]);
    }
}

/// What a program did.
pub(crate) struct Ran {
    line: String,
    pub(crate) output: Output,
}

impl Ran {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub(crate) fn success(&self) -> bool {
        self.output.status.success()
    }

    /// What it printed; it must have succeeded.
    #[track_caller]
    pub(crate) fn succeeds(&self) -> String {
        assert!(self.success(), "`{}` failed:\n{}{}", self.line, self.stdout(), self.stderr());
        self.stdout()
    }

    /// What it printed, as JSON; it must have succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let text = self.succeeds();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`{}`: {error}:\n{text}", self.line))
    }

    /// What it said; it must have failed.
    #[track_caller]
    pub(crate) fn fails(&self) -> String {
        assert!(!self.success(), "`{}` succeeded:\n{}", self.line, self.stdout());
        self.stderr()
    }
}

/// Whether clusters with Cilium can be tried; who reads the test is told when not.
pub(crate) fn is_cilium_installed() -> bool {
    let cache = std::env::var_os("AKSNET_CACHE").map_or("/var/cache/aksnet".into(), PathBuf::from);
    let versions = fs::read_dir(cache.join("cilium")).into_iter().flatten().flatten();
    let is_whole =
        versions.map(|it| it.path()).any(|it| it.extension() != Some("partial".as_ref()));
    if !is_whole {
        eprintln!("Cilium is not installed (`aksnet cilium install`): nothing was tested");
    }
    is_whole
}

/// Waits until something is so, two minutes at most.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_mins(2), "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_zombie(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

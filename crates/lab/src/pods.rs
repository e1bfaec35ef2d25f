//! A throw-away node for tests and benches of pod networking: a namespace with a NIC, a neighbour on
//! its other end, an agent, and containers that are namespaces without processes.
//!
//! All of it carries one name, and goes when the [`World`] does.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use linux::netns::{self, Netns};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's address on its NIC.
pub const NODE: &str = "10.0.0.4";
/// The neighbour on the other end, which is the node's default gateway as well.
pub const NEIGHBOUR: &str = "10.0.0.9";
/// An address that only the neighbour has: "the internet".
pub const OUTSIDE: &str = "203.0.113.7";

/// The node's address of IPv6.
pub const NODE_V6: &str = "fd00:10::4";
/// The neighbour's.
pub const NEIGHBOUR_V6: &str = "fd00:10::9";
/// [`OUTSIDE`] in IPv6.
pub const OUTSIDE_V6: &str = "2001:db8:203::7";
/// The range of IPv6 of all nodes' pods, in worlds of two families.
pub const PODS_V6: &str = "fd12:3456:789a::/64";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A node, its neighbour and its agent.
pub struct World {
    name: String,
    /// The program with the subcommands `agent` and `plugin`.
    program: PathBuf,
    directory: TempDir,
    agent: Option<Child>,
}

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    /// Exit code 0?
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
}

impl Said {
    /// The standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The address of the first interface, without its length.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn address(&self) -> String {
        let result = self.json();
        let address = result["ips"][0]["address"].as_str();
        let address = address.unwrap_or_else(|| panic!("no address: {self:?}"));
        address.split('/').next().unwrap_or_default().to_owned()
    }
}

impl World {
    /// A node without an agent. `program` is the path of `cni-lab`.
    ///
    /// # Panics
    /// Without root, `ip` or a kernel with namespaces: there is nothing to test with then.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cnilab{}x{number}", std::process::id());
        let directory = TempDir::with_prefix(&name).expect("a scratch directory can be made");
        let world = Self { name, program: program.into(), directory, agent: None };
        for suffix in ["node", "out"] {
            let netns = Netns::create(&world.netns(suffix)).expect("root can make a namespace");
            // Links that are made later do not ask for a second whether somebody else has their address.
            let path = "/proc/sys/net/ipv6/conf/default/accept_dad";
            let quiet = netns.run(|| fs::write(path, "0")).expect("the namespace can be entered");
            quiet.expect("the kernel has IPv6");
        }
        let (node, out) = (world.netns("node"), world.netns("out"));
        world.ip(&node, &format!("link add eth0 mtu 1400 type veth peer name in netns {out}"));
        world.ip(&node, &format!("addr add {NODE}/24 dev eth0"));
        world.ip(&out, &format!("addr add {NEIGHBOUR}/24 dev in"));
        world.ip(&out, &format!("addr add {OUTSIDE}/32 dev lo"));
        world.ip(&node, &format!("addr add {NODE_V6}/64 dev eth0 nodad"));
        world.ip(&out, &format!("addr add {NEIGHBOUR_V6}/64 dev in nodad"));
        world.ip(&out, &format!("addr add {OUTSIDE_V6}/128 dev lo nodad"));
        for (netns, link) in [(&node, "lo"), (&node, "eth0"), (&out, "lo"), (&out, "in")] {
            world.ip(netns, &format!("link set {link} up"));
        }
        world.ip(&node, &format!("route add default via {NEIGHBOUR}"));
        world.ip(&node, &format!("-6 route add default via {NEIGHBOUR_V6} dev eth0"));
        world
    }

    /// The full name of one of this world's namespaces.
    #[must_use]
    pub fn netns(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    /// A file of this world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/agent.sock")
    }

    /// Starts the agent in `mode` with these addresses (the file source's JSON) and waits until it
    /// has written the network's file.
    ///
    /// # Panics
    /// When it does not within ten seconds.
    pub fn start_agent(&mut self, mode: &str, addresses: &Value) {
        let path = self.path("addresses.json");
        fs::write(&path, addresses.to_string()).expect("a scratch file can be written");
        let is_dual_stack = addresses.get("block_v6").is_some();
        self.launch_agent(mode, "addresses_file", &path, is_dual_stack);
        self.wait_for_network();
    }

    /// Starts the agent in `mode`, to learn its addresses from a cluster, and waits for nothing.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_agent_of_cluster(&mut self, mode: &str, kubeconfig: &Path) {
        self.launch_agent(mode, "kubeconfig", kubeconfig, false);
    }

    fn launch_agent(&mut self, mode: &str, source: &str, path: &Path, is_dual_stack: bool) {
        let config = json!({
            "version": 1,
            "node": "node",
            "mode": mode,
            "pod_cidr": "10.244.0.0/16",
            "pod_cidr_v6": is_dual_stack.then_some(PODS_V6),
            "no_masquerade": if mode.starts_with("node-subnet") { json!(["10.0.0.0/16"]) } else { json!([]) },
            "socket": self.socket(),
            "interface": "eth0",
            "cni_directory": self.path("net.d"),
            source: path,
        });
        fs::write(self.path("agent.json"), config.to_string())
            .expect("a scratch file can be written");
        let _ = fs::remove_dir_all(self.path("net.d"));
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("agent.log"))
            .expect("a scratch file can be made");
        let mut command = Command::new(&self.program);
        command.arg("agent").arg(self.path("agent.json")).stdout(Stdio::null()).stderr(log);
        self.agent = Some(self.spawn("node", &mut command));
    }

    /// Waits until the agent has written the network's file.
    ///
    /// # Panics
    /// When it does not within ten seconds.
    pub fn wait_for_network(&self) {
        let network = self.path("net.d");
        let written = || fs::read_dir(&network).is_ok_and(|mut files| files.next().is_some());
        assert!(
            wait(Duration::from_secs(10), written),
            "the agent does not begin: {}",
            self.agent_log()
        );
    }

    /// What the agent said so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Resident memory of the agent in kilobytes.
    #[must_use]
    pub fn agent_memory_kb(&self) -> Option<u64> {
        memory_kb(self.agent.as_ref()?.id())
    }

    /// Processor time that the agent has used.
    #[must_use]
    pub fn agent_cpu(&self) -> Option<Duration> {
        cpu_of(&self.agent.as_ref()?.id().to_string(), 13)
    }

    /// Kills the agent at once, as a power failure of that process alone.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Kills the agent like [`World::kill_agent`], while others use the world.
    ///
    /// # Panics
    /// When `kill` cannot be started.
    pub fn kill_agent_now(&self) {
        if let Some(agent) = &self.agent {
            let id = agent.id().to_string();
            let _ = Command::new("kill").args(["-KILL", &id]).status().expect("`kill` is there");
        }
    }

    /// Makes a container, unless it is there: a namespace. Answers with its path.
    ///
    /// # Panics
    /// When the kernel has no more.
    #[must_use]
    pub fn container(&self, name: &str) -> PathBuf {
        let name = self.netns(name);
        Netns::ensure(&name).expect("a namespace can be made");
        netns::path(&name)
    }

    /// Removes a container's namespace, as a runtime does after DEL.
    pub fn remove_container(&self, name: &str) {
        let _ = Netns::delete(&self.netns(name));
    }

    /// A network configuration for our plugin.
    #[must_use]
    pub fn network(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "name": "azure", "type": "aksnet-cni", "agentSocket": self.socket() })
    }

    /// Runs our plugin on the node for the container `name`.
    #[must_use]
    pub fn plugin(&self, verb: &str, name: &str, network: &Value) -> Said {
        let mut command = Command::new(&self.program);
        command.arg("plugin");
        self.run_plugin(&mut command, verb, name, network)
    }

    /// What CHECK of the container `name` finds after `damage`, a command run in `place` (see [`World::run`]).
    ///
    /// The agent mends what is on its node every second; where it was faster than CHECK, the damage is done anew.
    ///
    /// # Panics
    /// When the damage cannot be done, or CHECK never finds it.
    #[must_use]
    pub fn check_after(&self, place: &str, damage: &str, name: &str, checked: &Value) -> Said {
        for _ in 0..10 {
            let done = self.run(place, damage);
            assert!(done.status.success(), "{damage}: {done:?}");
            let said = self.plugin("CHECK", name, checked);
            if !said.success {
                return said;
            }
        }
        panic!("CHECK finds nothing after {damage}");
    }

    /// Runs any plugin on the node for the container `name`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run_plugin(
        &self,
        command: &mut Command,
        verb: &str,
        name: &str,
        network: &Value,
    ) -> Said {
        let mut child = self.begin_plugin(command, verb, name);
        if let Some(mut input) = child.stdin.take() {
            // A plugin that refuses early does not read to the end.
            let _ = input.write_all(network.to_string().as_bytes());
        }
        let output = child.wait_with_output().expect("a child can be waited for");
        Said {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    /// Runs our plugin like [`World::plugin`], and kills it after so long, unless it has answered.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn plugin_killed_after(
        &self,
        verb: &str,
        name: &str,
        network: &Value,
        life: Duration,
    ) -> Said {
        let mut command = Command::new(&self.program);
        command.arg("plugin");
        let mut child = self.begin_plugin(&mut command, verb, name);
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(network.to_string().as_bytes());
        }
        std::thread::sleep(life);
        let _ = child.kill();
        let output = child.wait_with_output().expect("a child can be waited for");
        Said {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    fn begin_plugin(&self, command: &mut Command, verb: &str, name: &str) -> Child {
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns::path(&self.netns(name)))
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.spawn("node", command)
    }

    /// Runs a command line in one of this world's namespaces.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, suffix: &str, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("true"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(suffix, &mut command).wait_with_output().expect("a child can be waited for")
    }

    /// The standard output of a command line in one of this world's namespaces.
    #[must_use]
    pub fn output(&self, suffix: &str, line: &str) -> String {
        String::from_utf8_lossy(&self.run(suffix, line).stdout).into_owned()
    }

    /// Whether a ping gets through.
    #[must_use]
    pub fn pings(&self, from: &str, to: &str) -> bool {
        self.run(from, &format!("ping -c 1 -W 2 -n -q {to}")).status.success()
    }

    /// Starts a command in one of this world's namespaces.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, suffix: &str, command: &mut Command) -> Child {
        let netns = Netns::open(&self.netns(suffix)).expect("the namespace is there");
        let child = netns.run(|| command.spawn()).expect("the namespace can be entered");
        child.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn ip(&self, netns: &str, words: &str) {
        let status = Command::new("ip")
            .args(["-n", netns])
            .args(words.split_whitespace())
            .status()
            .expect("`ip` can be started");
        assert!(status.success(), "{}: ip -n {netns} {words}", self.name);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_agent();
        let prefix = format!("{}-", self.name);
        for name in Netns::list().unwrap_or_default() {
            if name.starts_with(&prefix) {
                let _ = Netns::delete(&name);
            }
        }
    }
}

/// Resident memory of a process in kilobytes.
#[must_use]
pub fn memory_kb(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Processor time of a process from `/proc/<process>/stat`: the sum of field `first` (counted from 0) and the one
/// behind it, user and system, in the kernel's ticks of ten milliseconds.
#[must_use]
pub fn cpu_of(process: &str, first: usize) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in brackets, with whatever is in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks = rest.split_whitespace().skip(first - 2).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>().ok()?.iter().sum();
    Some(Duration::from_millis(ticks * 10))
}

/// Whether `condition` comes true within `patience`.
pub fn wait(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The leases that an agent's record in `run` holds, by address.
#[must_use]
pub fn leases(run: &Path) -> Vec<(String, Value)> {
    let Ok(files) = fs::read_dir(run.join("leases")) else { return Vec::new() };
    let mut leases: Vec<_> = files
        .filter_map(Result::ok)
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let bytes = fs::read(file.path()).ok()?;
            Some((name, serde_json::from_slice(&bytes).ok()?))
        })
        .collect();
    leases.sort_by(|a, b| a.0.cmp(&b.0));
    leases
}

/// Where `scripts/setup.sh test` has built the newest reference plugins, and a runtime's half of CNI (`harness`).
///
/// # Panics
/// When they are not there.
#[must_use]
pub fn newest_plugins() -> PathBuf {
    let cache = std::env::var("AKSNET_CACHE").unwrap_or_else(|_| "/var/cache/aksnet".to_owned());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness");
    // The script names the folder after the version and a digest of what it is built from.
    let text = fs::read_to_string(source.join("go.mod")).expect("go.mod can be read");
    let version = text.lines().find_map(|line| line.split_once("containernetworking/plugins v"));
    let version = version.expect("go.mod names the plugins").1.trim();
    let built = Command::new("sh")
        .args(["-c", "cat go.mod go.sum *.go | sha256sum | cut -c1-16"])
        .current_dir(&source)
        .output()
        .expect("`sh` can be started");
    let digest = String::from_utf8_lossy(&built.stdout).trim().to_owned();
    let folder = Path::new(&cache).join("cni").join(format!("{version}-{digest}"));
    assert!(
        folder.join("harness").exists(),
        "{} is missing; run `scripts/setup.sh test`",
        folder.display()
    );
    folder
}

//! Times ADD and DEL of our plugin beside the reference plugins, Debian's and the newest, in one run, and prints JSON.
//!
//! `cni-bench PLUGIN [PODS] [ROUNDS]`: the path of `aksnet-cni`, pods per measurement (100), rounds
//! (3). `cni-lab` must lie beside this program; `scripts/setup.sh bench` builds the newest reference plugins. Each measurement is a node of its own (a network
//! namespace with a NIC); the time is that of the whole process, from its start to its end, as a
//! container runtime sees it. Rounds go through all subjects in turn, so that a busy moment of the
//! machine does not meet one subject alone.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the laboratory")]

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use lab::pods::{Said, World, leases, newest_plugins, wait};
use linux::netns::{self, Netns};
use serde_json::{Value, json};

/// One plugin in one configuration.
struct Subject {
    name: &'static str,
    /// The rows that this one is compared with.
    against: &'static [&'static str],
    kind: Kind,
}

enum Kind {
    /// Ours: the agent's mode.
    Ours(&'static str),
    /// The same, and each pod has a host port.
    OursWithPort(&'static str),
    /// The reference plugin of this name, with or without `ipMasq`.
    Reference { plugin: &'static str, masquerade: bool, from: From },
    /// The reference plugins `ptp` and `portmap`, one after the other, and each pod has a host port.
    Chain(From),
}

/// Which build of the reference plugins.
#[derive(Clone, Copy)]
enum From {
    Debian,
    Newest,
}

const SUBJECTS: [Subject; 15] = [
    Subject {
        name: "routed, host port",
        against: &["ptp, portmap", "newest ptp, portmap"],
        kind: Kind::OursWithPort("pod-subnet"),
    },
    Subject { name: "ptp, portmap", against: &[], kind: Kind::Chain(From::Debian) },
    Subject { name: "newest ptp, portmap", against: &[], kind: Kind::Chain(From::Newest) },
    Subject { name: "routed", against: &["ptp", "newest ptp"], kind: Kind::Ours("pod-subnet") },
    Subject {
        name: "ptp",
        against: &[],
        kind: Kind::Reference { plugin: "ptp", masquerade: false, from: From::Debian },
    },
    Subject {
        name: "newest ptp",
        against: &[],
        kind: Kind::Reference { plugin: "ptp", masquerade: false, from: From::Newest },
    },
    Subject {
        name: "routed, masquerade",
        against: &["ptp, ipMasq", "newest ptp, ipMasq"],
        kind: Kind::Ours("overlay"),
    },
    Subject {
        name: "ptp, ipMasq",
        against: &[],
        kind: Kind::Reference { plugin: "ptp", masquerade: true, from: From::Debian },
    },
    Subject {
        name: "newest ptp, ipMasq",
        against: &[],
        kind: Kind::Reference { plugin: "ptp", masquerade: true, from: From::Newest },
    },
    Subject {
        name: "kubenet, masquerade",
        against: &["bridge", "bridge, ipMasq", "newest bridge", "newest bridge, ipMasq"],
        kind: Kind::Ours("kubenet"),
    },
    Subject {
        name: "bridge",
        against: &[],
        kind: Kind::Reference { plugin: "bridge", masquerade: false, from: From::Debian },
    },
    Subject {
        name: "newest bridge",
        against: &[],
        kind: Kind::Reference { plugin: "bridge", masquerade: false, from: From::Newest },
    },
    Subject {
        name: "bridge, ipMasq",
        against: &[],
        kind: Kind::Reference { plugin: "bridge", masquerade: true, from: From::Debian },
    },
    Subject {
        name: "newest bridge, ipMasq",
        against: &[],
        kind: Kind::Reference { plugin: "bridge", masquerade: true, from: From::Newest },
    },
    Subject {
        name: "azure0, masquerade",
        against: &["bridge", "bridge, ipMasq", "newest bridge", "newest bridge, ipMasq"],
        kind: Kind::Ours("node-subnet-bridge"),
    },
];
const AT_ONCE: [usize; 2] = [1, 8];

/// What was measured of one subject at one level of concurrency, over all rounds.
#[derive(Default)]
struct Row {
    adds: Vec<Duration>,
    deletes: Vec<Duration>,
    add_time: Duration,
    delete_time: Duration,
    gone: Vec<Duration>,
    n_errors: usize,
    agent_memory_kb: Option<u64>,
    plugin_memory_kb: Option<u64>,
    /// Of plugins and agent together, for all ADDs.
    add_cpu: Duration,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(plugin) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: cni-bench PLUGIN [PODS] [ROUNDS]");
        return ExitCode::from(2);
    };
    let n_pods = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(100);
    let n_rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut rows: Vec<Row> = Vec::new();
    rows.resize_with(SUBJECTS.len() * AT_ONCE.len(), Row::default);
    for round in 1..=n_rounds {
        let cases = SUBJECTS.iter().flat_map(|subject| AT_ONCE.map(|n| (subject, n)));
        for ((subject, at_once), row) in cases.zip(&mut rows) {
            eprintln!("round {round} of {n_rounds}: {}, {at_once} at once", subject.name);
            measure(subject, &plugin, n_pods, at_once, row);
        }
    }
    println!("{:#}", report(n_pods, n_rounds, &rows));
    ExitCode::SUCCESS
}

fn measure(subject: &Subject, plugin: &Path, n_pods: usize, at_once: usize, row: &mut Row) {
    let beside = std::env::current_exe().expect("this program has a path");
    let program = beside.with_file_name("cni-lab");
    let mut world = World::new(&program.to_string_lossy());
    let (plugin, network) = match subject.kind {
        Kind::Ours(mode) | Kind::OursWithPort(mode) => {
            let addresses = match mode {
                "pod-subnet" => {
                    let all: Vec<_> = (1..=250).map(|n| format!("10.1.0.{n}")).collect();
                    json!({ "version": 1, "addresses": all })
                }
                // Of the node's own subnet, which has others in it.
                "node-subnet-bridge" => {
                    let all: Vec<_> = (20..=250).map(|n| format!("10.0.0.{n}")).collect();
                    json!({ "version": 1, "addresses": all })
                }
                _ => json!({ "version": 1, "block": "10.244.1.0/24" }),
            };
            world.start_agent(mode, &addresses);
            (plugin.to_owned(), world.network("0.4.0"))
        }
        Kind::Reference { plugin, masquerade, from } => {
            (from.folder().join(plugin), reference_network(&world, plugin, masquerade))
        }
        Kind::Chain(from) => (from.folder().join("ptp"), reference_network(&world, "ptp", false)),
    };
    let names: Vec<_> = (0..n_pods).map(|n| format!("pod{n}")).collect();
    for name in &names {
        let _ = world.container(name);
    }
    let call = |verb| {
        let begin = Instant::now();
        let calls = call_all(&world, subject, &plugin, verb, &network, &names, at_once);
        (calls, begin.elapsed())
    };
    row.plugin_memory_kb = plugin_memory_kb(&plugin).or(row.plugin_memory_kb);
    let cpu = || children_cpu() + world.agent_cpu().unwrap_or_default();
    let before = cpu();
    let (added, add_time) = call("ADD");
    row.add_cpu += cpu().saturating_sub(before);
    row.agent_memory_kb = world.agent_memory_kb().or(row.agent_memory_kb);
    let (deleted, delete_time) = call("DEL");
    let begin = Instant::now();
    if subject.kind.is_ours() {
        let run = world.path("run");
        let gone = wait(Duration::from_secs(10), || leases(&run).is_empty());
        row.n_errors += usize::from(!gone);
        row.gone.push(begin.elapsed());
    }
    let good: Vec<_> = added.iter().filter(|(said, _)| said.success).collect();
    let addresses: BTreeSet<_> = good.iter().map(|(said, _)| said.address()).collect();
    // A duplicate address is an error of the worst kind; it is counted as one.
    row.n_errors += added.len() - addresses.len();
    row.n_errors += deleted.iter().filter(|(said, _)| !said.success).count();
    row.adds.extend(added.iter().map(|(_, time)| *time));
    row.deletes.extend(deleted.iter().map(|(_, time)| *time));
    row.add_time += add_time;
    row.delete_time += delete_time;
}

impl Kind {
    fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_) | Self::OursWithPort(_))
    }
}

impl From {
    fn folder(self) -> PathBuf {
        match self {
            Self::Debian => PathBuf::from("/usr/lib/cni"),
            Self::Newest => newest_plugins(),
        }
    }
}

fn reference_network(world: &World, plugin: &str, masquerade: bool) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "reference",
        "type": plugin,
        "bridge": "ref0",
        "isGateway": true,
        "ipMasq": masquerade,
        "ipam": {
            "type": "host-local",
            "subnet": "10.23.0.0/16",
            "dataDir": world.path("host-local"),
        },
    })
}

/// Processor time of all children that have ended, in steps of ten milliseconds.
fn children_cpu() -> Duration {
    lab::pods::cpu_of("self", 15).unwrap_or_default()
}

/// Resident memory of a plugin that waits for its configuration.
fn plugin_memory_kb(plugin: &Path) -> Option<u64> {
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    thread::sleep(Duration::from_millis(50));
    let memory = lab::pods::memory_kb(child.id());
    let _ = child.kill();
    let _ = child.wait();
    memory
}

/// Calls the plugin for each container, `at_once` of them at a time, on threads in the node.
fn call_all(
    world: &World,
    subject: &Subject,
    plugin: &Path,
    verb: &str,
    network: &Value,
    names: &[String],
    at_once: usize,
) -> Vec<(Said, Duration)> {
    let node = Netns::open(&world.netns("node")).expect("the node is there");
    let next = AtomicUsize::new(0);
    let call = |plugin: &Path, name: &str, network: &Value| {
        let input = network.to_string();
        let mut child = Command::new(plugin)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns::path(&world.netns(name)))
            .env("CNI_PATH", plugin.parent().unwrap_or(plugin))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the plugin can be started");
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().expect("a child can be waited for");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        Said { success: output.status.success(), stdout }
    };
    let one_by_one = || {
        let mut calls = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(number) else { break };
            let mut network = network.clone();
            let ports = json!({ "portMappings": [
                { "hostPort": 10_000 + number, "containerPort": 80, "protocol": "tcp" },
            ] });
            if matches!(subject.kind, Kind::OursWithPort(_)) {
                network["runtimeConfig"] = ports.clone();
            }
            let mut chained = json!({ "cniVersion": "0.4.0", "name": "reference", "type": "portmap",
                "snat": true, "runtimeConfig": ports });
            let begin = Instant::now();
            let said = match (&subject.kind, verb) {
                (Kind::Chain(_), "ADD") => {
                    let first = call(plugin, name, &network);
                    if first.success {
                        chained["prevResult"] = first.json();
                        call(&plugin.with_file_name("portmap"), name, &chained)
                    } else {
                        first
                    }
                }
                (Kind::Chain(_), _) => {
                    let first = call(&plugin.with_file_name("portmap"), name, &chained);
                    let second = call(plugin, name, &network);
                    Said { success: first.success && second.success, ..second }
                }
                _ => call(plugin, name, &network),
            };
            calls.push((said, begin.elapsed()));
        }
        calls
    };
    // Threads begin in the namespace of the thread that starts them.
    node.run(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(one_by_one)).collect();
            threads.into_iter().flat_map(|one| one.join().expect("no call panics")).collect()
        })
    })
    .expect("the node can be entered")
}

fn report(n_pods: usize, n_rounds: usize, rows: &[Row]) -> Value {
    let cases: Vec<_> =
        SUBJECTS.iter().flat_map(|subject| AT_ONCE.map(|n| (subject, n))).zip(rows).collect();
    let table: Vec<_> = cases
        .iter()
        .map(|((subject, at_once), row)| {
            json!({
                "plugin": subject.name,
                "ours": subject.kind.is_ours(),
                "at_once": at_once,
                "add_ms": spread(&row.adds),
                "delete_ms": spread(&row.deletes),
                "adds_per_second": rate(row.adds.len(), row.add_time),
                "deletes_per_second": rate(row.deletes.len(), row.delete_time),
                "links_gone_after_ms": row.gone.iter().max().map(|time| ms(*time)),
                "agent_memory_kb": row.agent_memory_kb,
                "plugin_memory_kb": row.plugin_memory_kb,
                "cpu_per_add_ms": cpu_per_add(row),
                "errors": row.n_errors,
            })
        })
        .collect();
    let ratios: Vec<_> = cases
        .iter()
        .flat_map(|case| case.0.0.against.iter().map(move |against| (case, *against)))
        .filter_map(|(((subject, at_once), row), against)| {
            let (_, other) =
                cases.iter().find(|((one, n), _)| one.name == against && n == at_once)?;
            let quotient = |a: f64, b: f64| (a / b * 1000.0).round() / 1000.0;
            let median = |times: &[Duration]| ms(percentile(times, 50));
            let late = |times: &[Duration]| ms(percentile(times, 99));
            Some(json!({
                "plugin": subject.name,
                "against": against,
                "at_once": at_once,
                "add_p50": quotient(median(&row.adds), median(&other.adds)),
                "cpu_per_add": quotient(cpu_per_add(row), cpu_per_add(other)),
                "add_p99": quotient(late(&row.adds), late(&other.adds)),
                "delete_p50": quotient(median(&row.deletes), median(&other.deletes)),
                "delete_p99": quotient(late(&row.deletes), late(&other.deletes)),
                "add_throughput": quotient(
                    rate(row.adds.len(), row.add_time),
                    rate(other.adds.len(), other.add_time),
                ),
                "delete_throughput": quotient(
                    rate(row.deletes.len(), row.delete_time),
                    rate(other.deletes.len(), other.delete_time),
                ),
            }))
        })
        .collect();
    json!({ "version": 1, "pods": n_pods, "rounds": n_rounds, "rows": table, "ratios": ratios })
}

/// Milliseconds of processor time per ADD, the agent's share with them.
fn cpu_per_add(row: &Row) -> f64 {
    let n_adds = u32::try_from(row.adds.len()).unwrap_or(u32::MAX).max(1);
    ms(row.add_cpu / n_adds)
}

fn spread(times: &[Duration]) -> Value {
    json!({ "p50": ms(percentile(times, 50)), "p99": ms(percentile(times, 99)) })
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

/// Milliseconds with two decimals.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

fn rate(n: usize, time: Duration) -> f64 {
    let n = u32::try_from(n).map_or(f64::INFINITY, f64::from);
    (n / time.as_secs_f64().max(1e-9) * 10.0).round() / 10.0
}

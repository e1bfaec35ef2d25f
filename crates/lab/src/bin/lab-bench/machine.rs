//! What the machine tells of itself: how busy it is, and who holds which memory.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A machine that is less busy than this share of its processors is quiet.
const QUIET: f64 = 0.1;
/// How long quiet is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// Processors, memory and kernel.
pub(crate) fn describe() -> Value {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "processors": thread::available_parallelism().map_or(0, usize::from),
        "memory_mb": kilobytes(&memory, "MemTotal:") / 1024,
        "kernel": kernel.trim(),
    })
}

/// Waits until the machine is quiet, or patience ends. The answer says how busy it then was.
pub(crate) fn wait_until_quiet() -> Value {
    let begin = Instant::now();
    loop {
        let busy = busy_share(Duration::from_secs(2));
        if busy < QUIET || begin.elapsed() > PATIENCE {
            let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
            let load: Option<f64> = load.split(' ').next().and_then(|text| text.parse().ok());
            let busy = (busy * 100.0).round() / 100.0;
            return json!({ "busy": busy, "load_average": load });
        }
    }
}

/// The share of all processors' time that was used during `span`.
fn busy_share(span: Duration) -> f64 {
    let before = processor_time();
    thread::sleep(span);
    let after = processor_time();
    let used = |now: f64, then: f64| now - then;
    let total = used(after.0, before.0);
    if total > 0.0 { 1.0 - used(after.1, before.1) / total } else { 0.0 }
}

/// All time and idle time since boot (`proc_stat(5)`).
fn processor_time() -> (f64, f64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is part of user's.
    let times: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|text| text.parse().ok()).collect();
    (times.iter().sum(), times.iter().skip(3).take(2).sum())
}

/// Megabytes of a lab's processes, proportional (shared pages divided among their users): by kind of
/// computer and program, the mean of all computers of the kind, and of all pods.
pub(crate) fn memory(lab: &str, daemon: u32) -> Value {
    let mut programs: BTreeMap<(Kind, String), u64> = BTreeMap::new();
    let mut computers: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
    let (mut n_pods, mut n_name_servers, mut total) = (0_u32, 0_u32, 0_u64);
    for process in processes() {
        let Some(computer) = computer_of(&process, lab) else { continue };
        let Some(program) = program_of(&process) else { continue };
        let size = proportional_size(&process);
        let kind = match program.as_str() {
            "coredns" => Kind::NameServer,
            "containerd-shim-runc-v2" | "nginx" | "pause" => Kind::Pod,
            _ => Kind::of(&computer),
        };
        n_pods += u32::from(program == "pause");
        n_name_servers += u32::from(program == "coredns");
        total += size;
        *programs.entry((kind, program)).or_default() += size;
        let known = computers.entry(Kind::of(&computer)).or_default();
        if !known.contains(&computer) {
            known.push(computer);
        }
    }
    let of_kind = |kind: Kind| {
        let n = match kind {
            Kind::Pod => n_pods,
            Kind::NameServer => n_name_servers,
            _ => computers.get(&kind).map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX)),
        };
        let mine = programs.iter().filter(|((of, _), _)| *of == kind);
        let mine: BTreeMap<&str, f64> =
            mine.map(|((_, program), size)| (program.as_str(), megabytes(*size, n))).collect();
        let sum = (mine.values().sum::<f64>() * 10.0).round() / 10.0;
        json!({ "number": n, "sum": sum, "programs": mine })
    };
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).unwrap_or_default();
    json!({
        "unit": "MB, proportional",
        "control_plane": of_kind(Kind::ControlPlane),
        "node": of_kind(Kind::Node),
        "pod": of_kind(Kind::Pod),
        "name_server": of_kind(Kind::NameServer),
        "registry": of_kind(Kind::Registry),
        "total": megabytes(total, 1),
        "daemon_resident": megabytes(kilobytes(&status, "VmRSS:"), 1),
    })
}

/// What a process belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ControlPlane,
    Node,
    /// Without what runs in a name server's pod.
    Pod,
    NameServer,
    Registry,
}

impl Kind {
    /// By the name of the computer's control group.
    fn of(computer: &str) -> Self {
        match computer.split('-').next() {
            Some("cp") => Self::ControlPlane,
            Some("node") => Self::Node,
            _ => Self::Registry,
        }
    }
}

/// The folders of all processes.
fn processes() -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_pid = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_pid))
        .map(|entry| entry.path())
        .collect()
}

/// The computer of the lab that a process is on, by its control groups.
fn computer_of(process: &Path, lab: &str) -> Option<String> {
    let text = fs::read_to_string(process.join("cgroup")).ok()?;
    let (_, rest) = text.split_once(&format!("/aksnet/{lab}/"))?;
    rest.split(['/', '\n']).next().map(str::to_owned)
}

/// The name of a process' program; `None` for a process that has ended.
fn program_of(process: &Path) -> Option<String> {
    let text = fs::read_to_string(process.join("cmdline")).ok()?;
    let mut words = text.split(['\0', ' ']).filter(|word| !word.is_empty());
    let program = words.next()?.rsplit('/').next()?.trim_end_matches(':');
    Some(match (program, words.next()) {
        ("aksnet", Some("agent")) => "agent".to_owned(),
        ("aksnet", Some(_)) => "first process".to_owned(),
        // The lab's own image of it.
        ("busybox", Some("sleep")) => "pause".to_owned(),
        _ => program.to_owned(),
    })
}

/// Kilobytes.
fn proportional_size(process: &Path) -> u64 {
    let text = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
    kilobytes(&text, "Pss:")
}

/// The number in the line that begins with `name`.
fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// An `n`-th of some kilobytes, with one decimal.
fn megabytes(kilobytes: u64, n: u32) -> f64 {
    let kilobytes = u32::try_from(kilobytes).map_or(f64::INFINITY, f64::from);
    (kilobytes / 1024.0 / f64::from(n.max(1)) * 10.0).round() / 10.0
}

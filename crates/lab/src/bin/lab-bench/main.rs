//! Times a whole lab, with real az and kubectl, and prints JSON.
//!
//! `lab-bench AKSNET [--only NAME]`: the path of `aksnet`, beside which `aksnet-cni` must lie. The lab
//! is one of its own, `bench<pid>`, on a free port, and is forgotten at the end. Before each
//! measurement the machine is given some time to become quiet; how busy it was is part of the
//! answer. Not here: how a lab is driven (`lab`), what the machine tells of itself (`machine`).
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the laboratory")]

mod cluster;
mod dataplanes;
mod lab;
mod machine;
mod network_only;
mod packets;
mod pods;
mod reconcile;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

use crate::{
    cluster::Cluster,
    lab::Lab,
    pods::{Pods, Token},
};

/// How often a cluster of each size is made.
const ROUNDS: usize = 3;
/// Pods that are made one after the other, and those that are made at once.
const SINGLE_PODS: usize = 10;
const PODS_AT_ONCE: usize = 20;

/// Times a lab of its own and prints JSON
#[derive(Debug, Parser)]
struct Cli {
    /// The path of `aksnet`
    aksnet: PathBuf,
    /// Measure nothing else
    #[arg(long, value_enum)]
    only: Option<What>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// `up` of a new lab
    Up,
    /// A cluster of one node
    OneNode,
    /// A cluster of three nodes
    ThreeNodes,
    /// Pods in a cluster of three nodes
    Pods,
    /// Memory of a cluster of three nodes, with and without pods
    Memory,
    /// `down` with a cluster of three nodes and the pods in it
    Down,
    /// The whole article in a new lab
    Tour,
    /// 100 nodes and 3,000 pods without Kubernetes
    NetworkOnly,
    /// One change among 10 and among 1,000 NICs
    Reconcile,
    /// Round trips between pods beside a bare veth pair
    PodPackets,
    /// Round trips behind security groups and load balancers, few rules and many
    GatePackets,
    /// The lab's own data plane beside Cilium's, with and without Hubble
    Dataplanes,
}

fn main() -> ExitCode {
    if let Some(played) = packets::play() {
        return played.map_or_else(
            |error| {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let cli = Cli::parse();
    match measure(&cli) {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> anyhow::Result<Value> {
    let wants = |what| cli.only.is_none_or(|only| only == what);
    let mut report = Map::new();
    let mut note = |name: &str, value: Value| {
        eprintln!("{name}: {value}");
        report.insert(name.to_owned(), value);
    };
    note("version", json!(1));
    note("machine", machine::describe());

    let without_cluster = [
        What::Tour,
        What::NetworkOnly,
        What::Reconcile,
        What::PodPackets,
        What::GatePackets,
        What::Dataplanes,
    ];
    if cli.only.is_none_or(|only| !without_cluster.contains(&only)) {
        let load = machine::wait_until_quiet();
        let (lab, time) = Lab::up(&cli.aksnet)?;
        note("up", json!({ "seconds": seconds(time), "load": load }));
        lab.wait_for_images()?;
        if wants(What::OneNode) {
            note("one_node", clusters(&lab, 1)?);
        }
        if wants(What::ThreeNodes) {
            note("three_nodes", clusters(&lab, 3)?);
        }
        if wants(What::Pods) || wants(What::Memory) || wants(What::Down) {
            let (cluster, _) = Cluster::create(&lab, "crowd", 3)?;
            if wants(What::Memory) {
                // What a start has used and the collectors have not given back yet.
                machine::wait_until_quiet();
                note("memory", machine::memory(lab.name(), lab.daemon_pid()?));
            }
            let mut pods = Pods::watch(&cluster)?;
            for (name, token) in
                [("single_pods", Token::Mounted), ("single_pods_without_token", Token::Absent)]
            {
                let load = machine::wait_until_quiet();
                let alone = pods.one_by_one(SINGLE_PODS, token)?;
                note(name, json!({ "seconds": spread(&alone), "load": load }));
            }
            let load = machine::wait_until_quiet();
            let together = pods.at_once(PODS_AT_ONCE)?;
            note(
                "pods_at_once",
                json!({ "pods": PODS_AT_ONCE, "seconds": seconds(together), "load": load }),
            );
            if wants(What::Memory) {
                machine::wait_until_quiet();
                note("memory_with_pods", machine::memory(lab.name(), lab.daemon_pid()?));
            }
            if wants(What::Down) {
                let load = machine::wait_until_quiet();
                note("down", json!({ "seconds": seconds(lab.down()?), "load": load }));
            }
        }
    }
    if wants(What::Tour) {
        let (lab, _) = Lab::up(&cli.aksnet)?;
        let load = machine::wait_until_quiet();
        let (time, verdict) = lab.tour()?;
        note("tour", json!({ "seconds": seconds(time), "verdict": verdict, "load": load }));
    }
    if wants(What::NetworkOnly) {
        note("network_only", network_only::measure(&cli.aksnet)?);
    }
    if wants(What::Reconcile) {
        note("reconcile", reconcile::measure()?);
    }
    if wants(What::PodPackets) {
        note("pod_packets", packets::pods(&cli.aksnet)?);
    }
    if wants(What::GatePackets) {
        note("gate_packets", packets::gates()?);
    }
    if wants(What::Dataplanes) {
        note("dataplanes", dataplanes::measure(&cli.aksnet)?);
    }
    Ok(Value::Object(report))
}

/// Makes and deletes clusters of this size.
fn clusters(lab: &Lab, n_nodes: usize) -> anyhow::Result<Value> {
    let (mut az, mut arm, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        loads.push(machine::wait_until_quiet());
        let (cluster, times) = Cluster::create(lab, &format!("n{n_nodes}r{round}"), n_nodes)?;
        az.push(times.az);
        arm.push(times.arm);
        cluster.delete()?;
    }
    Ok(json!({ "az_seconds": spread(&az), "cluster_seconds": spread(&arm), "load": loads }))
}

/// The median, and all in their order.
fn spread(times: &[Duration]) -> Value {
    let mut sorted = times.to_vec();
    sorted.sort();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let all: Vec<f64> = times.iter().map(|time| seconds(*time)).collect();
    json!({ "median": seconds(median), "all": all })
}

/// With two decimals.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

/// What something gave, and how long it took.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
    let begin = Instant::now();
    let value = work()?;
    Ok((value, begin.elapsed()))
}

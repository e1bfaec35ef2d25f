//! One change of a region with few and with many NICs: how long from the command until it is real.
//!
//! The store is in memory and the fabric's loop is the daemon's own, in this process, with real namespaces.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use daemon::reconcile::now;
use serde_json::{Value, json};
use store::Store;
use vnet::{
    addr::{Family, Prefix4},
    command::{Command, Common, PutIpConfiguration, PutSubnet},
    host::{Health, compile_fabric},
    kind,
    model::ProvisioningState,
    name::ArmId,
    region::Region,
};

use crate::{machine, spread};

const SIZES: [usize; 2] = [10, 1_000];
const ROUNDS: usize = 11;
const PATIENCE: Duration = Duration::from_mins(3);

/// Measures all sizes.
pub(crate) fn measure() -> anyhow::Result<Value> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Vec::new();
    for n in SIZES {
        let lab = format!("recon{}", std::process::id() % 100_000);
        let load = machine::wait_until_quiet();
        let outcome = runtime.block_on(one_size(&lab, n));
        daemon::fabric::down(&lab).context("removing namespaces")?;
        let mut value = outcome?;
        value["load"] = load;
        eprintln!("reconcile: {value}");
        report.push(value);
    }
    Ok(json!(report))
}

async fn one_size(lab: &str, n: usize) -> anyhow::Result<Value> {
    let store = Store::in_memory()?;
    let change = |command| store.change(command, now()).map(drop);
    let group = group();
    change(Command::PutGroup {
        id: group.clone(),
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
    })?;
    change(Command::PutVnet {
        common: common(vnet_id()),
        prefixes: vec!["10.0.0.0/16".parse()?],
        subnets: Some(vec![subnet("s", "10.0.0.0/16".parse()?, None)]),
    })?;
    for number in 0..n {
        change(put_nic(number, false))?;
        change(put_vm(number))?;
    }
    let settings = daemon::fabric::Settings { lab: lab.to_owned(), ..Default::default() };
    let fabric = tokio::spawn(daemon::fabric::run(store.clone(), settings));
    let begin = Instant::now();
    wait(&store, |region| region.machines.values().all(|machine| is_real(machine.meta.state)))
        .await?;
    let first = begin.elapsed();

    // A NIC that is there may forward from now on: two elements of the rule set.
    let mut changed = Vec::new();
    for round in 0..ROUNDS {
        settle().await;
        let begin = Instant::now();
        change(put_nic(0, round % 2 == 0))?;
        wait(&store, |region| region.nics.values().all(|nic| is_real(nic.meta.state))).await?;
        changed.push(begin.elapsed());
    }
    // One machine more: a namespace, a pair of links, routes, elements.
    let mut more = Vec::new();
    for round in 0..ROUNDS {
        change(put_nic(n + round, false))?;
        settle().await;
        let begin = Instant::now();
        change(put_vm(n + round))?;
        wait(&store, |region| region.machines.values().all(|machine| is_real(machine.meta.state)))
            .await?;
        more.push(begin.elapsed());
    }
    let region = store.snapshot();
    let mut compiled = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        std::hint::black_box(compile_fabric(lab, &region, &Health::default()));
        compiled.push(begin.elapsed());
    }
    fabric.abort();
    let _ = fabric.await;
    Ok(json!({
        "nics": n, "first_seconds": spread(&[first]),
        "unit": "milliseconds", "nic_changed": milliseconds(&changed), "machine_more": milliseconds(&more),
        "of_which_compiling": milliseconds(&compiled),
    }))
}

/// Lets the loop come to rest, and not always at the same distance from its look at everything.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(170)).await;
}

async fn wait(store: &Store, is_so: impl Fn(&Region) -> bool) -> anyhow::Result<()> {
    let mut wake = store.watch();
    let begin = Instant::now();
    loop {
        wake.mark_unchanged();
        let region: Arc<Region> = store.snapshot();
        if is_so(&region) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "it does not become real");
        let _ = tokio::time::timeout(Duration::from_secs(1), wake.changed()).await;
    }
}

fn is_real(state: ProvisioningState) -> bool {
    state == ProvisioningState::Succeeded
}

fn group() -> ArmId {
    ArmId::group("16e85b36-5c9d-48cc-a45d-c672a4393c36", "bench")
}

fn vnet_id() -> ArmId {
    group().sibling(kind::VNET, "v")
}

fn common(id: ArmId) -> Common {
    Common { id, location: None, tags: None, kept: BTreeMap::new() }
}

fn nic_id(number: usize) -> ArmId {
    group().sibling(kind::NIC, &format!("nic{number}"))
}

fn put_nic(number: usize, ip_forwarding: bool) -> Command {
    Command::PutNic {
        common: common(nic_id(number)),
        ip_forwarding,
        security_group: None,
        configs: vec![PutIpConfiguration {
            family: Family::V4,
            name: "ipconfig1".to_owned(),
            subnet: vnet_id().child("subnets", "s"),
            address: None,
            public_ip: None,
            application_groups: Vec::new(),
        }],
    }
}

fn put_vm(number: usize) -> Command {
    Command::PutVm {
        common: common(group().sibling(kind::VM, &format!("vm{number}"))),
        nic: nic_id(number),
    }
}

/// Median, best and worst, with one decimal.
fn milliseconds(times: &[Duration]) -> Value {
    let mut sorted: Vec<f64> =
        times.iter().map(|time| (time.as_secs_f64() * 10_000.0).round() / 10.0).collect();
    sorted.sort_by(f64::total_cmp);
    json!({ "median": sorted.get(sorted.len() / 2), "best": sorted.first(), "worst": sorted.last() })
}

/// A subnet with a security group or none, and nothing else.
pub(super) fn subnet(name: &str, prefix: Prefix4, security_group: Option<ArmId>) -> PutSubnet {
    PutSubnet {
        prefix6: None,
        name: name.into(),
        prefix,
        route_table: None,
        security_group,
        nat_gateway: None,
        default_outbound: None,
        delegations: Vec::new(),
        private_endpoint_network_policies: None,
        private_link_service_network_policies: None,
        kept: BTreeMap::new(),
    }
}

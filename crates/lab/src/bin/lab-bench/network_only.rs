//! Clusters without Kubernetes by the hundred nodes and the thousand pods, with real az.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{
    lab::{GROUP, Lab},
    machine, seconds, timed,
};

const NODES: usize = 100;
const PODS: usize = 3_000;

/// Asks every pod, from one of them, who called: each must say its own name and the asker's address.
const ASK_ALL: &str = "import json, socket, sys\n\
own, bad = sys.argv[2], []\n\
for pod in json.load(open(sys.argv[1]))['pods']:\n    \
    try:\n        \
        line = socket.create_connection((pod['address'], 8080), 5).recv(200).decode()\n        \
        want = 'pod=%s address=%s caller=%s:' % (pod['name'], pod['address'], own)\n        \
        if not line.startswith(want): bad.append(line)\n    \
    except OSError as error: bad.append('%s: %s' % (pod['name'], error))\n\
print(json.dumps(bad))\n";

/// Makes and removes them once.
pub(crate) fn measure(aksnet: &Path) -> anyhow::Result<Value> {
    let load = machine::wait_until_quiet();
    let (lab, up) = Lab::up_with(aksnet, &["--nodes", "network-only"])?;
    lab.az(&format!(
        "network vnet create -g {GROUP} -n net --address-prefixes 10.20.0.0/16 \
         --subnet-name nodes --subnet-prefixes 10.20.0.0/20"
    ))?;
    let subnet = lab.az(&format!(
        "network vnet subnet show -g {GROUP} --vnet-name net -n nodes --query id -o tsv"
    ))?;
    let before = available_mb()?;
    let (_, create) = timed(|| {
        lab.az(&format!(
            "aks create -n big -g {GROUP} --node-count {NODES} --no-ssh-key --network-plugin azure \
             --network-plugin-mode overlay --pod-cidr 10.128.0.0/9 --service-cidr 10.1.0.0/16 \
             --dns-service-ip 10.1.0.10 --vnet-subnet-id {}",
            subnet.trim()
        ))
    })?;
    let with_nodes = available_mb()?;
    let count = PODS.to_string();
    let (list, pods) =
        timed(|| lab.aksnet(&["pod", "run", "p", "-c", "big", "--count", &count, "-o", "json"]))?;
    let with_pods = available_mb()?;
    let n_wrong = ask_all(&lab, &list)?;
    ensure!(n_wrong == 0, "{n_wrong} of {PODS} pods do not answer as they should");
    let memory = json!({
        "unit": "MB; the daemon's and the echo's are resident, the machine's is what became unavailable",
        "daemon": resident_mb(lab.name(), "daemon")?,
        "echo": resident_mb(lab.name(), "echo")?,
        "machine_for_nodes": before - with_nodes,
        "machine_for_pods": with_nodes - with_pods,
    });
    let down = lab.down()?;
    Ok(json!({
        "nodes": NODES, "pods": PODS, "load": load,
        "up_seconds": seconds(up), "az_aks_create_seconds": seconds(create), "pod_run_seconds": seconds(pods),
        "sum_seconds": seconds(up + create + pods), "memory": memory, "down_seconds": seconds(down),
    }))
}

/// How many pods do not answer as they should.
fn ask_all(lab: &Lab, list: &str) -> anyhow::Result<usize> {
    let value: Value = serde_json::from_str(list)?;
    let all = value["pods"].as_array().context("no list of pods")?;
    ensure!(all.len() == PODS, "{} pods of {PODS} were made", all.len());
    let own =
        all.first().and_then(|pod| pod["address"].as_str()).context("a pod has no address")?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), list)?;
    let path = file.path().to_string_lossy();
    let said = lab.aksnet(&["exec", "p-0", "--", "python3", "-c", ASK_ALL, &path, own])?;
    let bad: Vec<String> = serde_json::from_str(&said)?;
    bad.iter().take(5).for_each(|line| eprintln!("wrong: {line}"));
    Ok(bad.len())
}

fn available_mb() -> anyhow::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kb: i64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no MemAvailable")?;
    Ok(kb / 1024)
}

fn resident_mb(lab: &str, what: &str) -> anyhow::Result<u64> {
    let path = Path::new("/run/aksnet").join(lab).join(format!("{what}.pid"));
    let value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let status = fs::read_to_string(format!("/proc/{}/status", value["pid"]))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb: u64 =
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
    Ok(kb / 1024)
}

//! A cluster made by `az aks create`, watched from the outside by ARM requests.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::{
    lab::{GROUP, Lab},
    timed,
};

/// How often ARM is asked.
const POLL: Duration = Duration::from_millis(50);

/// How long a cluster took.
pub(crate) struct Times {
    /// From the start of `az aks create` to its end.
    pub(crate) az: Duration,
    /// From when the cluster is first seen to when it says `Succeeded`, within two polls.
    pub(crate) arm: Duration,
}

/// A cluster whose nodes are all Ready.
pub(crate) struct Cluster<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: String,
}

impl<'a> Cluster<'a> {
    /// Makes one in overlay mode.
    pub(crate) fn create(
        lab: &'a Lab,
        name: &str,
        n_nodes: usize,
    ) -> anyhow::Result<(Self, Times)> {
        Self::create_with(lab, name, n_nodes, "")
    }

    /// The same with more words for `az aks create`.
    pub(crate) fn create_with(
        lab: &'a Lab,
        name: &str,
        n_nodes: usize,
        more: &str,
    ) -> anyhow::Result<(Self, Times)> {
        let give_up = AtomicBool::new(false);
        let (az, arm) = thread::scope(|scope| {
            let watching = scope.spawn(|| watch(lab, name, &give_up));
            let az = timed(|| {
                lab.az(&format!(
                    "aks create -n {name} -g {GROUP} -l eastus --node-count {n_nodes} --no-ssh-key \
                     --network-plugin azure --network-plugin-mode overlay {more}"
                ))
            });
            give_up.store(true, Ordering::Relaxed);
            (az, watching.join().expect("watching does not panic"))
        });
        let times = Times { az: az?.1, arm: arm? };
        lab.az(&format!("aks get-credentials -n {name} -g {GROUP}"))?;
        let cluster = Self { lab, name: name.to_owned() };
        cluster.check_nodes(n_nodes)?;
        Ok((cluster, times))
    }

    /// `Succeeded` is a word; this is the fact.
    fn check_nodes(&self, n_nodes: usize) -> anyhow::Result<()> {
        let text = self.lab.kubectl(&self.name, "get nodes --no-headers", "")?;
        let is_ready = |line: &&str| line.split_whitespace().nth(1) == Some("Ready");
        let n_ready = text.lines().filter(is_ready).count();
        ensure!(n_ready == n_nodes, "{n_ready} of {n_nodes} nodes of {} are Ready", self.name);
        Ok(())
    }

    /// Deletes it and waits until it is gone.
    pub(crate) fn delete(self) -> anyhow::Result<()> {
        let Self { lab, name } = self;
        lab.az(&format!("aks delete -n {name} -g {GROUP} --yes")).map(drop)
    }
}

/// How long the cluster is on its way, as ARM tells it. Fails when it is not `Succeeded` once az has
/// given up.
fn watch(lab: &Lab, name: &str, give_up: &AtomicBool) -> anyhow::Result<Duration> {
    let agent = client(lab)?;
    let subscription = lab.az("account show --query id -o tsv")?;
    let url = format!(
        "{}/subscriptions/{}/resourceGroups/{GROUP}/providers/Microsoft.ContainerService\
         /managedClusters/{name}?api-version=2024-05-01",
        lab.variable("ARM_ENDPOINT")?,
        subscription.trim(),
    );
    let mut accepted = None;
    loop {
        let is_last = give_up.load(Ordering::Relaxed);
        let mut answer = agent.get(&url).header("Authorization", "Bearer aksnet").call()?;
        if answer.status() == 200 {
            let since = *accepted.get_or_insert_with(Instant::now);
            let body: Value = serde_json::from_str(&answer.body_mut().read_to_string()?)?;
            if body["properties"]["provisioningState"] == "Succeeded" {
                return Ok(since.elapsed());
            }
        }
        ensure!(!is_last, "az has ended and {name} is not Succeeded");
        thread::sleep(POLL);
    }
}

fn client(lab: &Lab) -> anyhow::Result<ureq::Agent> {
    let pem = fs::read(lab.variable("ARM_CA")?).context("reading the lab's authority")?;
    let roots = RootCerts::Specific(Arc::new(vec![Certificate::from_pem(&pem)?]));
    let config = ureq::Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)));
    Ok(config.build().new_agent())
}

//! Pods, timed by one watch: from the event that says that a pod is there to the event that says that
//! it runs. So the start of a `kubectl` is not part of a pod's time.

use std::{
    collections::BTreeMap,
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Deserializer, Value, json};

use crate::cluster::Cluster;

/// How long pods may take to run.
const PATIENCE: Duration = Duration::from_mins(1);

/// The pods of a cluster's namespace `default`.
pub(crate) struct Pods<'a> {
    cluster: &'a Cluster<'a>,
    kubectl: Child,
    events: Receiver<(Instant, Value)>,
    seen: BTreeMap<String, Seen>,
}

/// Whether a pod gets a token of its account, as it does unless it says otherwise. The kubelet looks
/// every 300 ms whether the token's volume is there (`podAttachAndMountRetryInterval` in
/// `pkg/kubelet/volumemanager/volume_manager.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Mounted,
    Absent,
}

/// When a watch told what of a pod.
#[derive(Clone, Copy)]
struct Seen {
    created: Instant,
    running: Option<Instant>,
}

impl<'a> Pods<'a> {
    /// Begins to watch, and runs one pod on each node, so that every node has the image.
    pub(crate) fn watch(cluster: &'a Cluster<'a>) -> anyhow::Result<Self> {
        let line = "get pods -n default --watch --output-watch-events -o json";
        let mut kubectl = cluster.lab.kubectl_command(&cluster.name, line);
        let mut kubectl = kubectl.stdout(Stdio::piped()).spawn().context("starting kubectl")?;
        let stdout = kubectl.stdout.take().context("kubectl has no output")?;
        let (sender, events) = mpsc::channel();
        // Ends with kubectl, or with the receiver.
        thread::spawn(move || {
            for event in Deserializer::from_reader(stdout).into_iter::<Value>() {
                let Ok(event) = event else { return };
                if sender.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        let mut pods = Self { cluster, kubectl, events, seen: BTreeMap::new() };
        let query = "get nodes -o jsonpath={.items[*].metadata.name}";
        let nodes = cluster.lab.kubectl(&cluster.name, query, "")?;
        let on_each: Vec<Value> = nodes
            .split_whitespace()
            .enumerate()
            .map(|(i, node)| pod(&format!("first-{i}"), Some(node), Token::Mounted))
            .collect();
        pods.create(&on_each)?;
        Ok(pods)
    }

    /// Makes pods one after the other; how long each took.
    pub(crate) fn one_by_one(
        &mut self,
        n_pods: usize,
        token: Token,
    ) -> anyhow::Result<Vec<Duration>> {
        let prefix = match token {
            Token::Mounted => "single",
            Token::Absent => "plain",
        };
        let one = |i| self.create(&[pod(&format!("{prefix}-{i}"), None, token)]);
        (0..n_pods).map(one).collect()
    }

    /// Makes pods at once; how long it took until all of them ran.
    pub(crate) fn at_once(&mut self, n_pods: usize) -> anyhow::Result<Duration> {
        let one = |i| pod(&format!("crowd-{i}"), None, Token::Mounted);
        let all: Vec<Value> = (0..n_pods).map(one).collect();
        self.create(&all)
    }

    /// Makes pods and waits until they run; the time from the first one's being to the last one's
    /// running.
    fn create(&mut self, pods: &[Value]) -> anyhow::Result<Duration> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": pods });
        let lab = self.cluster.lab;
        lab.kubectl(&self.cluster.name, "create -n default -f -", &list.to_string())?;
        let names: Vec<&str> =
            pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(time) = self.time_until_all_run(&names) {
                return Ok(time);
            }
            let patience = deadline.saturating_duration_since(Instant::now());
            let (at, event) =
                self.events.recv_timeout(patience).context("waiting for pods to run")?;
            self.take(at, &event["object"]);
        }
    }

    /// `None` while one of them does not run.
    fn time_until_all_run(&self, names: &[&str]) -> Option<Duration> {
        let seen: Vec<Seen> =
            names.iter().map(|name| self.seen.get(*name).copied()).collect::<Option<_>>()?;
        let running: Vec<Instant> = seen.iter().map(|pod| pod.running).collect::<Option<_>>()?;
        Some(*running.iter().max()? - seen.iter().map(|pod| pod.created).min()?)
    }

    fn take(&mut self, at: Instant, pod: &Value) {
        let Some(name) = pod["metadata"]["name"].as_str() else { return };
        let seen = self.seen.entry(name.to_owned()).or_insert(Seen { created: at, running: None });
        if pod["status"]["phase"] == "Running" {
            seen.running.get_or_insert(at);
        }
    }
}

impl Drop for Pods<'_> {
    fn drop(&mut self) {
        // It may have ended with the cluster.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// nginx, as the article's pods have it.
fn pod(name: &str, node: Option<&str>, token: Token) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": token == Token::Mounted,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                { "name": "nginx", "image": "nginx", "imagePullPolicy": "IfNotPresent" },
            ],
        },
    })
}

//! `aksnet pod`: pods of network-only clusters, made by the running lab as a container runtime makes them.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;

use crate::{
    control::{Answer, Ask, AskPods, PodStatus, ask},
    lab::Lab,
    output::{self, Format, Progress, say},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Pod {
    /// Make pods: a network namespace each, connected by the CNI plugin, with an echo on TCP and UDP 80 and 8080
    #[command(
        after_help = "Example:\n  aksnet pod run web --cluster c1 --count 3\n  aksnet exec web-0 -- nc ADDRESS-OF-WEB-1 8080"
    )]
    Run {
        /// Its name; with `--count`, NAME-0, NAME-1, …
        pod: String,
        /// The cluster
        #[arg(long, short = 'c')]
        cluster: String,
        /// The node; where fewest pods are unless given
        #[arg(long)]
        node: Option<String>,
        /// Labels, KEY=VALUE,…
        #[arg(long, value_delimiter = ',', value_parser = parse_label)]
        labels: Vec<(String, String)>,
        /// How many
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
    /// List the pods
    List {
        /// Of this cluster
        #[arg(long, short = 'c')]
        cluster: Option<String>,
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
    /// Remove pods
    Delete {
        /// Their names: NAME, or CLUSTER:NAME
        #[arg(required_unless_present = "all")]
        pods: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "pods")]
        all: bool,
        /// Of this cluster
        #[arg(long, short = 'c')]
        cluster: Option<String>,
    },
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not KEY=VALUE".to_owned()),
    }
}

/// Carries a command out. Says whether all of it was done.
pub(crate) fn run(lab: &Lab, command: Pod) -> anyhow::Result<bool> {
    match command {
        Pod::Run { pod, cluster, node, labels, count, output } => {
            let names = match count {
                None => vec![pod],
                Some(n) => (0..n).map(|number| format!("{pod}-{number}")).collect(),
            };
            let labels: BTreeMap<String, String> = labels.into_iter().collect();
            let progress = Progress::new(&format!("making {} pods", names.len()));
            let (pods, failures) = pods(lab, AskPods::Run { cluster, names, node, labels })?;
            drop(progress);
            show(&pods, output)?;
            Ok(are_none(&failures))
        }
        Pod::List { cluster, output } => {
            let (pods, _) = pods(lab, AskPods::List { cluster })?;
            show(&pods, output)?;
            Ok(true)
        }
        Pod::Delete { pods: names, all: _, cluster } => {
            let progress = Progress::new("removing pods");
            let (pods, failures) = pods(lab, AskPods::Delete { cluster, names })?;
            drop(progress);
            say(&format!("{} pods removed", pods.len()));
            Ok(are_none(&failures))
        }
    }
}

fn pods(lab: &Lab, question: AskPods) -> anyhow::Result<(Vec<PodStatus>, Vec<String>)> {
    match ask(lab, &Ask::Pods(question))? {
        Answer::Pods { pods, failures } => Ok((pods, failures)),
        _ => bail!("the lab answered another question"),
    }
}

fn are_none(failures: &[String]) -> bool {
    for failure in failures {
        say(&format!("error: {failure}"));
    }
    failures.is_empty()
}

fn show(pods: &[PodStatus], format: Format) -> anyhow::Result<()> {
    output::show(&json!({ "version": 1, "pods": pods }), format, |_| {
        let row = |pod: &PodStatus| {
            let labels: Vec<String> =
                pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![
                pod.name.clone(),
                pod.cluster.clone(),
                pod.node.clone(),
                match (&pod.address, &pod.address_v6) {
                    (Some(v4), Some(v6)) => format!("{v4},{v6}"),
                    (address, _) => address.clone().unwrap_or_else(|| "-".to_owned()),
                },
                pod.phase.clone(),
                if labels.is_empty() { "-".to_owned() } else { labels.join(",") },
            ]
        };
        let rows: Vec<Vec<String>> = pods.iter().map(row).collect();
        if rows.is_empty() {
            return "no pods".to_owned();
        }
        output::table(&["POD", "CLUSTER", "NODE", "ADDRESS", "PHASE", "LABELS"], &rows)
    })
}

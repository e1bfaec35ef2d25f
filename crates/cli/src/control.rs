//! What the other commands ask of a running lab: one JSON line each way over a Unix socket that only root may open.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vnet::policy::tags::ServiceTags;

use crate::{
    lab::Lab,
    places::Place,
    trace::model::{Question, Way},
};

/// A question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Everything that `aksnet status` shows.
    Status,
    /// Where commands of a VM, node or pod of this name run.
    Find {
        /// `NAME`, or `NAMESPACE/NAME` of a pod.
        name: String,
    },
    /// About pods of network-only clusters.
    Pods(AskPods),
    /// About the service tags that security rules can name.
    ServiceTags(AskTags),
    /// Where packets of these things pass.
    Places {
        /// As people call them; see [`crate::places`].
        names: Vec<String>,
    },
    /// What a probe from one thing to another may pass.
    Ground {
        /// From whom.
        from: String,
        /// To whom.
        to: String,
    },
    /// What the model says of a flow.
    Ways(Question),
    /// The lab's numbers.
    Sample {
        /// How many pairs of addresses of each virtual network.
        talkers: usize,
    },
}

/// A question about pods of network-only clusters.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AskPods {
    /// Make pods.
    Run {
        /// The cluster's name.
        cluster: String,
        /// Their names.
        names: Vec<String>,
        /// The node; spread unless given.
        node: Option<String>,
        /// Their labels.
        labels: BTreeMap<String, String>,
    },
    /// Show all, or those of a cluster.
    List {
        /// Its name.
        cluster: Option<String>,
    },
    /// Remove these, or all (of a cluster) when none is named.
    Delete {
        /// The cluster's name.
        cluster: Option<String>,
        /// Their names.
        names: Vec<String>,
    },
}

/// A question about service tags.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AskTags {
    /// Show them.
    Show,
    /// Replace them.
    Set(ServiceTags),
    /// Bring the built-in ones back.
    Reset,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To [`Ask::Status`].
    Status(Status),
    /// To [`Ask::Find`]: the path of its network namespace.
    Found {
        /// What it is: VM, node, pod.
        kind: String,
        /// A path that `setns` takes.
        netns: String,
        /// How it finds names.
        #[serde(default)]
        resolv_conf: Option<String>,
        /// The pid of the first process of the computer that it is, or that the pod runs on, where that runs
        /// Kubernetes.
        #[serde(default)]
        first_process: Option<i32>,
    },
    /// To [`Ask::Pods`].
    Pods {
        /// Those that were made, listed or removed.
        pods: Vec<PodStatus>,
        /// A sentence for each that was not.
        failures: Vec<String>,
    },
    /// To [`Ask::ServiceTags`]: the list as it then is.
    ServiceTags(ServiceTags),
    /// To [`Ask::Places`], in the order of the question.
    Places(Vec<Place>),
    /// To [`Ask::Ground`].
    Ground {
        /// From whom.
        from: Box<Place>,
        /// To whom.
        to: Box<Place>,
        /// Every namespace that the probe may pass, once.
        watched: Vec<Place>,
        /// Security groups by the hash that their chains are named after.
        groups: BTreeMap<String, String>,
    },
    /// To [`Ask::Ways`].
    Ways(Vec<Way>),
    /// To [`Ask::Sample`].
    Sample(Box<daemon::metrics::Sample>),
    /// It cannot be answered.
    Failed {
        /// Why, and what would work.
        message: String,
    },
}

/// The lab, as `aksnet status` shows it. `version` changes with the form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) version: u32,
    pub(crate) lab: String,
    pub(crate) endpoint: String,
    pub(crate) nodes: String,
    pub(crate) generation: u64,
    pub(crate) clusters: Vec<ClusterStatus>,
    pub(crate) vms: Vec<VmStatus>,
    pub(crate) subnets: Vec<SubnetStatus>,
    /// What fails now and is tried again.
    #[serde(default)]
    pub(crate) troubles: Vec<TroubleStatus>,
    /// What takes minutes and is being done, a sentence each.
    #[serde(default)]
    pub(crate) underway: Vec<String>,
}

/// Something that fails and is tried again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TroubleStatus {
    /// A loop of the daemon, or a node.
    pub(crate) who: String,
    pub(crate) error: String,
    /// How often, since it last succeeded.
    pub(crate) times: u64,
}

/// A cluster with its nodes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterStatus {
    pub(crate) name: String,
    pub(crate) resource_group: String,
    pub(crate) state: String,
    pub(crate) network: String,
    pub(crate) kubernetes: String,
    pub(crate) nodes: Vec<NodeStatus>,
}

/// A node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeStatus {
    pub(crate) name: String,
    pub(crate) pool: String,
    pub(crate) phase: String,
    pub(crate) address: String,
    pub(crate) subnet: String,
    pub(crate) pod_range: Option<String>,
    /// What does not stay up on it, and its last words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) trouble: Vec<String>,
}

/// A virtual machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VmStatus {
    pub(crate) name: String,
    pub(crate) resource_group: String,
    pub(crate) state: String,
    pub(crate) address: String,
    pub(crate) vnet: String,
    pub(crate) subnet: String,
}

/// A subnet and how full it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubnetStatus {
    pub(crate) vnet: String,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) usable: u64,
    pub(crate) held: u64,
    pub(crate) delegated_to: Option<String>,
}

/// A pod of a network-only cluster.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) resource_group: String,
    pub(crate) node: String,
    pub(crate) address: Option<String>,
    #[serde(default, rename = "addressIPv6", skip_serializing_if = "Option::is_none")]
    pub(crate) address_v6: Option<String>,
    pub(crate) phase: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) netns: String,
}

impl From<daemon::clusters::PodView> for PodStatus {
    fn from(pod: daemon::clusters::PodView) -> Self {
        Self {
            name: pod.name,
            cluster: pod.cluster,
            resource_group: pod.resource_group,
            node: pod.node,
            address: pod.address,
            address_v6: pod.address_v6,
            phase: pod.phase,
            labels: pod.labels,
            netns: pod.netns.display().to_string(),
        }
    }
}

/// How long a question may take whose answer is there already.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long thousands of pods may take.
const PODS_PATIENCE: Duration = Duration::from_mins(10);

/// Asks the running lab.
pub(crate) fn ask(lab: &Lab, question: &Ask) -> anyhow::Result<Answer> {
    let path = lab.control_socket();
    let stream = UnixStream::connect(&path).with_context(|| {
        format!("lab `{}` does not run here; `aksnet up` starts it", lab.name())
    })?;
    let patience = if matches!(question, Ask::Pods(_)) { PODS_PATIENCE } else { PATIENCE };
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_string(question)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("the lab did not answer in time")?;
    match serde_json::from_str(&answer).context("the lab answered with something else")? {
        Answer::Failed { message } => bail!(message),
        answer => Ok(answer),
    }
}

//! What is known of a pod, and the file that says so. Files are in the lab's running state, so they live as long
//! as the namespaces that they describe.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vnet::{model::Timestamp, name::ArmId};

use super::super::ClustersError;

/// Where a pod is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PodPhase {
    /// Its namespace and its network are being made.
    Creating,
    /// It has an address and answers.
    Running,
    /// It is being taken away.
    Terminating,
}

/// A pod of a network-only cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pod {
    /// The form of the file: 1.
    pub(super) version: u32,
    /// Its name, unique in its cluster.
    pub(super) name: String,
    /// Its cluster.
    pub(super) cluster: ArmId,
    /// Its node, by host name.
    pub(super) node: String,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
    /// The id of its container, which is the name of its network namespace.
    pub(super) container: String,
    /// When it was asked for.
    pub(super) created: Timestamp,
    /// Where it is.
    pub(super) phase: PodPhase,
    /// Its address, once it is running.
    pub(super) address: Option<Ipv4Addr>,
    /// What the plugins answered.
    pub(super) result: Option<Value>,
}

/// What finds a pod: its cluster and its name.
pub(super) type Key = (ArmId, String);

impl Pod {
    pub(super) fn key(&self) -> Key {
        (self.cluster.clone(), self.name.clone())
    }
}

/// Writes a pod down, in one step.
pub(super) fn write(folder: &Path, pod: &Pod) -> Result<(), ClustersError> {
    let path = path(folder, &pod.container);
    let write = || {
        fs::create_dir_all(folder)?;
        let beside = folder.join(format!(".{}", pod.container));
        fs::write(&beside, serde_json::to_vec(pod)?)?;
        fs::rename(&beside, &path)
    };
    write().map_err(|source| ClustersError::File { action: "write", path: path.clone(), source })
}

/// Strikes a pod out. None is fine.
pub(super) fn remove(folder: &Path, container: &str) -> Result<(), ClustersError> {
    let path = path(folder, container);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ClustersError::File { action: "remove", path, source })
        }
        _ => Ok(()),
    }
}

/// All pods of a folder. A file that is none is told and left alone.
pub(super) fn read_all(folder: &Path) -> Vec<Pod> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let files = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: PathBuf| {
        let pod = fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
            serde_json::from_slice::<Pod>(&bytes).map_err(|error| error.to_string())
        });
        pod.inspect_err(|why| tracing::warn!(path = %path.display(), why, "not a pod's record"))
            .ok()
    };
    files.filter_map(read).collect()
}

fn path(folder: &Path, container: &str) -> PathBuf {
    folder.join(format!("{container}.json"))
}

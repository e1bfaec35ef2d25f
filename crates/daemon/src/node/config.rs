//! The agent's configuration file, `/etc/aksnet/agent.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use vnet::{
    addr::{Prefix, Prefix4, Prefix6},
    model::Dataplane,
    pods::{PodNetwork, masquerade::Settings},
};

/// The only version of the file so far.
const VERSION: u32 = 1;

/// What the agent is told about its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name in Kubernetes.
    pub node: String,
    /// Where its pods' addresses come from.
    pub network: PodNetwork,
    /// Where it learns which addresses it has.
    pub source: SourceConfig,
    /// Who sees a pod's own address, until the cluster says it.
    pub masquerade: Settings,
    /// Whether its pods have addresses of IPv6, too.
    pub is_dual_stack: bool,
    /// Where the plugin finds the agent.
    pub socket: PathBuf,
    /// The node's NIC.
    pub interface: String,
    /// Leases and queued releases; must go when the node's namespaces go.
    pub run_directory: PathBuf,
    /// Where the container runtime looks for networks.
    pub cni_directory: PathBuf,
    /// Whether pods may have `hostPort`s; as in AKS, they may unless this says otherwise.
    pub host_ports: bool,
    /// Who connects its pods: with [`Dataplane::Cilium`] the agent gives addresses only.
    pub dataplane: Dataplane,
}

/// Where the agent learns which addresses its node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// From the cluster's API.
    Kubernetes {
        /// The credentials to ask it with.
        kubeconfig: PathBuf,
    },
    /// From a file, for nodes without a cluster.
    File {
        /// The file.
        path: PathBuf,
    },
    /// From whoever has the agent in his own process (see [`super::hosted`]).
    Host,
}

/// Why a configuration is no good.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is not an agent's configuration", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// It is of another release.
    #[error("{} has version {version}; this agent reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// A value is wrong.
    #[error("{}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        what: String,
    },
}

#[derive(Deserialize)]
struct WireVersion {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "version")]
    _version: u32,
    node: String,
    mode: String,
    kubeconfig: Option<PathBuf>,
    pod_cidr: Option<Prefix4>,
    pod_cidr_v6: Option<Prefix6>,
    #[serde(default)]
    no_masquerade: Vec<Prefix>,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_interface")]
    interface: String,
    addresses_file: Option<PathBuf>,
    run_directory: Option<PathBuf>,
    #[serde(default = "default_cni_directory")]
    cni_directory: PathBuf,
    #[serde(default = "yes")]
    host_ports: bool,
    #[serde(default)]
    dataplane: WireDataplane,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireDataplane {
    #[default]
    Azure,
    Cilium,
}

fn yes() -> bool {
    true
}

fn default_socket() -> PathBuf {
    cni::config::DEFAULT_SOCKET.into()
}

fn default_interface() -> String {
    "eth0".to_owned()
}

fn default_cni_directory() -> PathBuf {
    "/etc/cni/net.d".into()
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = fs::read(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let syntax = |source| ConfigError::Syntax { path: path.to_owned(), source };
        let value =
            |what: &str| ConfigError::Value { path: path.to_owned(), what: what.to_owned() };
        let WireVersion { version } = serde_json::from_slice(bytes).map_err(syntax)?;
        if version != VERSION {
            return Err(ConfigError::Version { path: path.to_owned(), version });
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(syntax)?;
        let network: PodNetwork =
            wire.mode.parse().map_err(|error| value(&format!("mode: {error}")))?;
        let source = match (wire.kubeconfig, wire.addresses_file) {
            (_, Some(path)) => SourceConfig::File { path },
            (Some(kubeconfig), None) => SourceConfig::Kubernetes { kubeconfig },
            (None, None) => return Err(value("neither kubeconfig nor addresses_file is given")),
        };
        let mut no_masquerade = wire.no_masquerade;
        match (network, wire.pod_cidr) {
            (PodNetwork::Kubenet | PodNetwork::Overlay, Some(pods)) => {
                no_masquerade.push(pods.into());
                no_masquerade.extend(wire.pod_cidr_v6.map(Prefix::from));
            }
            (PodNetwork::Kubenet | PodNetwork::Overlay, None) => {
                return Err(value("pod_cidr is missing; this mode has one"));
            }
            (PodNetwork::NodeSubnet | PodNetwork::NodeBridge | PodNetwork::PodSubnet, _)
                if wire.pod_cidr_v6.is_some() =>
            {
                return Err(value("pod_cidr_v6: this mode has none"));
            }
            (PodNetwork::NodeSubnet | PodNetwork::NodeBridge | PodNetwork::PodSubnet, _) => (),
        }
        let run_directory = match (wire.run_directory, wire.socket.parent()) {
            (Some(directory), _) => directory,
            (None, Some(beside)) => beside.to_owned(),
            (None, None) => return Err(value("socket has no directory")),
        };
        Ok(Self {
            node: wire.node,
            network,
            source,
            masquerade: Settings {
                non_masquerade: no_masquerade,
                masquerade_link_local: network != PodNetwork::Kubenet,
            },
            is_dual_stack: wire.pod_cidr_v6.is_some(),
            socket: wire.socket,
            interface: wire.interface,
            run_directory,
            cni_directory: wire.cni_directory,
            host_ports: wire.host_ports,
            dataplane: match wire.dataplane {
                WireDataplane::Azure => Dataplane::Azure,
                WireDataplane::Cilium => Dataplane::Cilium,
            },
        })
    }
}

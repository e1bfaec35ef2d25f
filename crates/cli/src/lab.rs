//! Which lab a command is about, and where its things are. Not here: what is in them.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use daemon::fabric::Uplink;
use linux::{limits::Limits, netns::Netns};
use serde::{Deserialize, Serialize};

/// The name of a lab: 1 to 12 lower-case letters and digits, a letter first. Everything that the lab
/// makes on the machine begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabName(String);

impl FromStr for LabName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=12).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err("a lab's name has 1 to 12 lower-case letters and digits and begins with a letter"
                .to_owned())
        }
    }
}

/// A lab on this machine, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    name: LabName,
}

/// What `up` was told, kept so that the next `up` does the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The form of this file.
    pub(crate) version: u32,
    /// Where Azure Resource Manager listens.
    pub(crate) listen: std::net::SocketAddr,
    /// Whether clusters have real nodes.
    pub(crate) nodes: Nodes,
    /// The version of Kubernetes that clusters get unless they ask for another.
    pub(crate) kubernetes: String,
    /// Where Prometheus finds the lab's numbers; nowhere unless it was asked for.
    #[serde(default)]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// The link that joins the lab's internet to the machine's network: an empty text is that of the default route.
    #[serde(default)]
    pub(crate) uplink: Option<String>,
    /// Whether flow logs are written.
    #[serde(default)]
    pub(crate) flow_logs: bool,
}

/// What a cluster's nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Nodes {
    /// Real Kubernetes in network namespaces
    Kubernetes,
    /// Network namespaces, real packets, pods by `aksnet pod`; no Kubernetes
    NetworkOnly,
    /// Addresses and states only: no process runs, no packet moves
    Simulated,
}

const CONFIG_VERSION: u32 = 1;

/// Where running labs are.
const RUN: &str = "/run/aksnet";

impl Config {
    /// What `up` does when nothing is said.
    pub(crate) fn new() -> Self {
        Self {
            version: CONFIG_VERSION,
            listen: ([127, 0, 0, 1], 8443).into(),
            nodes: Nodes::Kubernetes,
            kubernetes: cluster::install::DEFAULT_VERSION.to_owned(),
            metrics: None,
            uplink: None,
            flow_logs: false,
        }
    }
}

impl Lab {
    /// The lab of this name.
    pub(crate) fn new(name: LabName) -> Self {
        Self { name }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name.0
    }

    /// What survives `down` and a reboot.
    pub(crate) fn state_dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/aksnet").join(self.name())
    }

    /// What lives as long as the lab runs.
    pub(crate) fn run_dir(&self) -> PathBuf {
        PathBuf::from(RUN).join(self.name())
    }

    /// The machine's limits, which all labs share.
    pub(crate) fn limits() -> Limits {
        Limits::of_the_machine(Path::new(RUN))
    }

    /// Logs.
    pub(crate) fn log_dir(&self) -> PathBuf {
        PathBuf::from("/var/log/aksnet").join(self.name())
    }

    /// Programs and images, shared by all labs.
    pub(crate) fn cache_dir() -> PathBuf {
        std::env::var_os("AKSNET_CACHE").map_or_else(|| "/var/cache/aksnet".into(), PathBuf::from)
    }

    /// The region's state.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.state_dir().join("region.redb")
    }

    /// Certificates of the ARM endpoint.
    pub(crate) fn tls_dir(&self) -> PathBuf {
        self.state_dir().join("tls")
    }

    /// What joins the lab's internet to the network that this process is in.
    pub(crate) fn uplink(&self, link: Option<&str>) -> anyhow::Result<Uplink> {
        let machine = Netns::current().context("opening the machine's network")?;
        let link = link.filter(|link| !link.is_empty()).map(str::to_owned);
        Ok(Uplink::new(machine, self.name(), link, &self.run_dir()))
    }

    /// The certificate authority that clients of the ARM endpoint need.
    pub(crate) fn ca_path(&self) -> PathBuf {
        self.tls_dir().join("ca.pem")
    }

    /// The socket on which the running lab answers `status` and its like.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// Flow logs, as a storage account of Azure's has them.
    pub(crate) fn flow_log_dir(&self) -> PathBuf {
        self.log_dir().join("flow-logs")
    }

    /// The daemon's log.
    pub(crate) fn daemon_log(&self) -> PathBuf {
        self.log_dir().join("aksnet.log")
    }

    fn config_path(&self) -> PathBuf {
        self.state_dir().join("config.json")
    }

    /// What the last `up` was told; `None` when there was none.
    pub(crate) fn read_config(&self) -> anyhow::Result<Option<Config>> {
        let path = self.config_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        // The version is read first and alone: a later release's file is refused by its version.
        match value["version"].as_u64() {
            Some(version) if version <= u64::from(CONFIG_VERSION) => {}
            version => bail!(
                "{} was written by a later aksnet (version {version:?}, this one knows {CONFIG_VERSION})",
                path.display()
            ),
        }
        let config =
            serde_json::from_value(value).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(config))
    }

    /// Keeps what `up` was told.
    pub(crate) fn write_config(&self, config: &Config) -> anyhow::Result<()> {
        let path = self.config_path();
        let beside = path.with_extension("tmp");
        fs::write(&beside, serde_json::to_vec_pretty(config)?)
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "aksnet", "t1234567890a"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "A", "a-b", "a/b", "abcdefghijklm", "ä", "a b", "../x"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }
}

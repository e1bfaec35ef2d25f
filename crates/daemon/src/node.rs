//! The agent on a node: it wires pods for the CNI plugin.
//!
//! *Expected flow.* Started inside the node's namespaces, it reads its configuration, takes up the
//! leases it finds in `/run`, clears what nobody holds, listens for the plugin, and follows the
//! cluster to learn which addresses the node has. When it has some, it loads the node's masquerade
//! rules and writes the container runtime's network file, whereupon the node turns Ready.
//!
//! *Guarantees.* See [`agent`]. Killed at any instant and started again, it goes on where it was.
//!
//! *Assumptions.* The plugin and the agent see the same mounts, so a path to a network namespace
//! means the same to both.

use std::{
    error::Error,
    fmt::Write,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio::signal::unix::{SignalKind, signal};

pub mod agent;
mod answers;
pub mod config;
pub mod hosted;
pub mod kubernetes;
pub mod ledger;
mod masquerade;
mod rules;
mod server;
mod setup;
pub mod source;

use agent::Agent;
use config::{Config, ConfigError, SourceConfig};
use kubernetes::{NetworkConfigSource, NodeSource};
use ledger::{Ledger, LedgerError};
use linux::{LinuxError, shortcut::Shortcut};
use setup::Setup;
use source::{FileSource, follow};
use vnet::pods::PodNetwork;

/// Why the agent cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its configuration is no good.
    #[error("the agent's configuration")]
    Config(#[from] ConfigError),
    /// Its record of leases is no good.
    #[error("the record of leases")]
    Ledger(#[from] LedgerError),
    /// The kernel refused something.
    #[error("the node's network")]
    Linux(#[from] LinuxError),
    /// It cannot listen.
    #[error("listening at {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No thread, no signals or no runtime.
    #[error("starting a thread")]
    Thread {
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("the file {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of addresses is not one.
    #[error("the addresses in {}", path.display())]
    Addresses {
        /// Which.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// `nft` cannot be run.
    #[error("running `nft`")]
    Nft {
        /// Why not.
        source: io::Error,
    },
    /// `nft` refused the node's rules; the old ones stand.
    #[error("`nft` refused the node's rules: {text}")]
    Rules {
        /// What it said.
        text: String,
    },
    /// The cluster's API cannot be used.
    #[error("the cluster's API")]
    Kubernetes(#[from] kubernetes::KubernetesError),
}

/// Runs the agent with the configuration at `path` until it is told to end (`SIGTERM`, `SIGINT`).
///
/// Must be called with the node's namespaces around it, and on a thread that no runtime has.
///
/// # Errors
/// When the node cannot be prepared. A cluster that does not answer is no error: the agent waits.
pub fn run(path: &Path) -> Result<(), NodeError> {
    let config = Config::read(path)?;
    let (ledger, found) = Ledger::open(&config.run_directory.join("leases"))?;
    let agent = Arc::new(Agent::new(&config, ledger, found));
    let mut setup = Setup::new(config.clone())?;
    setup.prepare(&agent)?;
    server::start(&agent, &config.socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| NodeError::Thread { source })?;
    runtime.block_on(async {
        tokio::select! {
            () = learn(&config, &agent, &mut setup) => Ok(()),
            ended = told_to_end() => ended.map_err(|source| NodeError::Thread { source }),
        }
    })
}

async fn learn(config: &Config, agent: &Arc<Agent>, setup: &mut Setup) {
    match (&config.source, config.network) {
        // No file says so: a host gives addresses itself.
        (SourceConfig::Host, _) => std::future::pending().await,
        (SourceConfig::File { path }, _) => {
            follow(&mut FileSource { path: path.clone() }, agent, setup).await;
        }
        (SourceConfig::Kubernetes { kubeconfig }, PodNetwork::Kubenet) => {
            follow(&mut NodeSource::new(kubeconfig), agent, setup).await;
        }
        (
            SourceConfig::Kubernetes { kubeconfig },
            PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::PodSubnet
            | PodNetwork::Overlay,
        ) => Box::pin(follow(&mut NetworkConfigSource::new(kubeconfig), agent, setup)).await,
    }
}

async fn told_to_end() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    Ok(())
}

/// The shortcut of pods' packets, loaded once for all nodes of this process. `None` where the kernel cannot run it:
/// their packets only take longer.
fn shortcut() -> Option<Shortcut> {
    static LOADED: OnceLock<Option<Shortcut>> = OnceLock::new();
    let load = || {
        Shortcut::load()
            .inspect_err(
                |error| tracing::warn!(error = %chain(error), "pods' packets take no shortcut"),
            )
            .ok()
    };
    LOADED.get_or_init(load).clone()
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

//! Where the agent learns which addresses its node has.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use vnet::{
    addr::{Prefix4, Prefix6},
    pods::{PodNetwork, pool::Grant},
};

use super::{
    NodeError,
    agent::Agent,
    chain,
    setup::{Learnt, Setup},
};

/// How long until something that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Somebody who says which addresses the node has.
pub trait AddressSource {
    /// Tells `setup` of every change, for ever; fails when it cannot go on, and is then run again.
    fn run(
        &mut self,
        agent: &Arc<Agent>,
        setup: &mut Setup,
    ) -> impl Future<Output = Result<Infallible, NodeError>>;
}

/// Runs a source, again whenever it fails.
pub async fn follow(source: &mut impl AddressSource, agent: &Arc<Agent>, setup: &mut Setup) {
    loop {
        let Err(error) = source.run(agent, setup).await;
        tracing::warn!(error = %chain(&error), "following the node's addresses failed; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

/// A file that says it once and for all: `{"version": 1, "block": "10.244.1.0/24"}` or
/// `{"version": 1, "addresses": ["10.0.0.5", …]}`. With a block there may be one of IPv6: `"block_v6": "fd00:0:0:1::/80"`.
pub struct FileSource {
    /// The file.
    pub path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "version")]
    _version: u32,
    block: Option<Prefix4>,
    block_v6: Option<Prefix6>,
    #[serde(default)]
    addresses: Vec<std::net::Ipv4Addr>,
}

impl AddressSource for FileSource {
    async fn run(
        &mut self,
        agent: &Arc<Agent>,
        setup: &mut Setup,
    ) -> Result<Infallible, NodeError> {
        let bytes = std::fs::read(&self.path)
            .map_err(|source| NodeError::File { path: self.path.clone(), source })?;
        let wire: Wire = serde_json::from_slice(&bytes)
            .map_err(|source| NodeError::Addresses { path: self.path.clone(), source })?;
        let learnt = learn(setup.config().network, wire.block, wire.block_v6, wire.addresses);
        setup.apply(agent, learnt)?;
        std::future::pending().await
    }
}

/// A block where there is one, else single addresses.
pub(super) fn learn(
    network: PodNetwork,
    block: Option<Prefix4>,
    block_v6: Option<Prefix6>,
    addresses: impl IntoIterator<Item = std::net::Ipv4Addr>,
) -> Learnt {
    let grant = match block {
        Some(block) => Grant::block(network, block),
        None => addresses.into_iter().collect(),
    };
    Learnt { block, block_v6, grant, aside: Vec::new(), origin: None, full: None }
}

//! Why a store does not do something.

use std::path::PathBuf;

use vnet::fault::Fault;

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The region refuses the command. Nothing changed.
    #[error(transparent)]
    Refused(Fault),
    /// Another process, or another store in this one, has the file open.
    #[error("{} is in use by another aksnet; stop that one first", path.display())]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later version of aksnet.
    #[error(
        "the state has format {found}, and this aksnet knows formats up to {known}; use a later aksnet"
    )]
    LaterFormat {
        /// The format of the file.
        found: u64,
        /// The latest one that is known here.
        known: u64,
    },
    /// The file has no format number.
    #[error("the file is not a store of aksnet")]
    NotAStore,
    /// A resource in the file cannot be read.
    #[error("`{key}` in table `{table}` cannot be read")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The resource's key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The file or the disk below it fails.
    #[error("failed {doing}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// An error of the engine while `doing` something.
    pub(crate) fn engine<E>(doing: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Engine { doing, source: Box::new(source) }
    }
}

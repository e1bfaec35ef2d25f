//! What can go wrong between us and the kernel.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// An operation of the kernel's that failed, with what it concerned. The cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// A file of the kernel's or of a namespace could not be read, written, made or removed.
    #[error("{verb} {}", path.display())]
    File {
        /// What was being done: `reading`, `writing`, `mounting`, …
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no network namespace of this name.
    #[error("no network namespace `{name}`")]
    NoNamespace {
        /// Its name.
        name: String,
    },
    /// A system call failed.
    #[error("{what}")]
    Call {
        /// What was being done and to what.
        what: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The kernel refused a netlink request.
    #[error("netlink request {what} refused{}", said(text))]
    Refused {
        /// The request.
        what: String,
        /// What the kernel says beside the number; often empty.
        text: String,
        /// The number.
        #[source]
        source: Errno,
    },
    /// A netlink socket could not be opened, written or read.
    #[error("netlink socket")]
    Netlink {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket could not be set up.
    #[error("setting up a socket")]
    Socket {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("starting a thread")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel said something over netlink that is not understood.
    #[error("netlink answer not understood: {text}")]
    Answer {
        /// What is wrong with it.
        text: String,
    },
    /// A link that an action needs is not there.
    #[error("no link `{link}` in namespace `{namespace}`")]
    NoLink {
        /// Its name.
        link: String,
        /// Where it should be.
        namespace: String,
    },
    /// An eBPF program could not be loaded.
    #[error("loading the eBPF program `{name}`: {text}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        text: String,
    },
    /// `nft` could not be started.
    #[error("starting `nft`")]
    NftMissing {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `nft` refused a rule set; the old one stands.
    #[error("`nft` refused the rule set of `{namespace}`: {text}")]
    Nft {
        /// The namespace.
        namespace: String,
        /// What `nft` said.
        text: String,
    },
}

impl LinuxError {
    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { source, .. } | Self::Refused { source, .. } => Some(*source),
            Self::File { source, .. }
            | Self::Netlink { source }
            | Self::Socket { source }
            | Self::Thread { source }
            | Self::NftMissing { source } => source.raw_os_error().map(Errno::from_raw),
            Self::NoNamespace { .. }
            | Self::Answer { .. }
            | Self::NoLink { .. }
            | Self::Program { .. }
            | Self::Nft { .. } => None,
        }
    }
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

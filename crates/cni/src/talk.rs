//! The words between the plugin and the agent: one line of JSON each way, then the connection ends.
//!
//! The plugin is replaced as a file and the agent as a process, so for a moment they can be of
//! different releases: each line says its version, and an agent refuses one that it does not speak.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vnet::pods::ports::{Bandwidth, PortMapping};

use crate::spec::Failure;

/// The protocol's version; changed whenever a line of the one before could be misread.
pub const VERSION: u32 = 1;
/// The longest line either side reads: a GC list of ten thousand attachments.
pub const LONGEST_LINE_BYTES: u64 = 2 << 20;

/// One interface of one container: what leases are held by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The container's id.
    pub container: String,
    /// The interface's name in it.
    pub interface: String,
}

/// A pod's name; for people who read leases and logs, no decision rests on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Connect a container.
    Add {
        /// Which one.
        attachment: Attachment,
        /// Path of its network namespace, in the mount namespace that both sides share.
        netns: String,
        /// The pod, when Kubernetes asks.
        pod: Option<Pod>,
        /// Ports of the node that are to lead to it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ports: Vec<PortMapping>,
        /// Its share of the network.
        #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
        bandwidth: Bandwidth,
    },
    /// Hold an address for a container that another plugin connects.
    Reserve {
        /// Which one.
        attachment: Attachment,
        /// Path of its network namespace: the address is free when that is gone.
        netns: String,
        /// The pod, when Kubernetes asks.
        pod: Option<Pod>,
    },
    /// Disconnect it. Succeeds when there is nothing to do.
    Del {
        /// Which one.
        attachment: Attachment,
    },
    /// Verify that it is connected as it was told.
    Check {
        /// Which one.
        attachment: Attachment,
        /// Path of its network namespace.
        netns: String,
        /// The addresses that it was told; none when the runtime did not say.
        addresses: Vec<String>,
    },
    /// Disconnect every container that is not in the list.
    Gc {
        /// The list.
        keep: Vec<Attachment>,
    },
    /// Could an ADD succeed now?
    Status,
}

/// A request with its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// The version of a line, read before the rest.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct LineVersion {
    /// See [`VERSION`].
    pub version: u32,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The container is connected, or an address is held for it; then there are no interfaces.
    Added(Added),
    /// Done, nothing to tell.
    Done,
    /// Refused.
    Failed {
        /// The specification's code.
        code: u32,
        /// What is wrong.
        message: String,
        /// With what.
        details: String,
    },
}

/// How a container is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Added {
    /// All interfaces that were made for it.
    pub interfaces: Vec<Interface>,
    /// All addresses that it has.
    pub addresses: Vec<Address>,
    /// The routes in it.
    pub routes: Vec<Route>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// In the container, or on the node?
    pub in_container: bool,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The index of its interface in [`Added::interfaces`].
    pub interface: usize,
    /// Address and prefix length, such as `10.244.1.5/32`.
    pub address: String,
    /// The gateway.
    pub gateway: IpAddr,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where to, in CIDR notation.
    pub destination: String,
    /// Through whom; nobody when it is on the link.
    pub gateway: Option<IpAddr>,
}

impl From<Failure> for Reply {
    fn from(Failure { code, message, details }: Failure) -> Self {
        Self::Failed { code, message, details }
    }
}

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// Nobody listens at the socket.
    #[error("no agent listens at `{socket}`")]
    Down {
        /// The socket's path.
        socket: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was asked, and no whole answer came.
    #[error("the agent at `{socket}` gave no answer")]
    Silent {
        /// The socket's path.
        socket: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer that is not understood.
    #[error("the agent's answer is not understood")]
    Unreadable {
        /// Where it stops making sense.
        source: serde_json::Error,
    },
}

/// Asks the agent and waits at most `patience` for its answer.
pub fn ask(socket: &Path, request: Request, patience: Duration) -> Result<Reply, TalkError> {
    let shown = || socket.display().to_string();
    let silent = |source| TalkError::Silent { socket: shown(), source };
    let mut stream = UnixStream::connect(socket)
        .map_err(|source| TalkError::Down { socket: shown(), source })?;
    stream.set_read_timeout(Some(patience)).map_err(silent)?;
    stream.set_write_timeout(Some(patience)).map_err(silent)?;
    write_line(&mut stream, &Line { version: VERSION, request }).map_err(silent)?;
    let line = read_line(&mut stream).map_err(silent)?;
    serde_json::from_slice(&line).map_err(|source| TalkError::Unreadable { source })
}

/// Writes one line, in one piece.
pub fn write_line(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line, without its end. A line that is too long or cut off is an error.
pub fn read_line(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE_BYTES)).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

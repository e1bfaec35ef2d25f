//! What a control plane and a node run, as values: programs with their arguments, and files. Not
//! here: starting anything.

use std::{collections::BTreeMap, net::SocketAddrV4, path::PathBuf};

mod control_plane;
mod node;

pub use control_plane::{ControlPlane, control_plane};
pub use node::{Node, Plugin, agent_config, no_masquerade, node};

/// Where Kubernetes' programs are, on every computer.
pub const PROGRAMS: &str = "/opt/kubernetes/bin";
/// Where the lab's own program is on a node.
pub const AKSNET: &str = "/opt/aksnet/aksnet";
/// Where Cilium's programs are on its nodes, for people to look with: containers have their own.
pub const CILIUM: &str = "/opt/cilium";
/// Where a node's CNI plugins are.
pub const CNI_BIN: &str = "/opt/cni/bin";
/// The image that holds a pod's namespaces, as AKS names it.
pub const PAUSE_IMAGE: &str = "mcr.microsoft.com/oss/kubernetes/pause:3.6";

/// Everything that is on a computer and runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computer {
    /// Its name.
    pub hostname: String,
    /// Its programs.
    pub programs: Vec<Program>,
    /// Files that are made anew at each start.
    pub files: Vec<TextFile>,
    /// Folders whose content outlives a restart.
    pub folders: Vec<&'static str>,
}

/// A program that is kept running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// What must be there first.
    pub after: Vec<Need>,
}

/// What a program waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A path, such as a Unix socket.
    Path(PathBuf),
    /// Somebody who accepts connections.
    Tcp(SocketAddrV4),
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Where.
    pub path: String,
    /// What it says.
    pub text: String,
    /// Permission bits.
    pub mode: u32,
}

impl Program {
    pub(crate) fn new<A: Into<String>>(
        name: &'static str,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let command = std::iter::once(program.to_owned());
        Self {
            name,
            argv: command.chain(arguments.into_iter().map(Into::into)).collect(),
            env: BTreeMap::new(),
            after: Vec::new(),
        }
    }

    /// One of Kubernetes' programs.
    fn kubernetes<A: Into<String>>(name: &'static str, args: impl IntoIterator<Item = A>) -> Self {
        Self::new(name, &format!("{PROGRAMS}/{name}"), args)
    }

    fn after(mut self, need: Need) -> Self {
        self.after.push(need);
        self
    }
}

impl TextFile {
    pub(crate) fn public(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into(), mode: 0o644 }
    }

    fn secret(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into(), mode: 0o600 }
    }

    /// A certificate at `<stem>.crt` and its key at `<stem>.key`.
    fn pair(stem: &str, pair: &crate::pki::Pair) -> [Self; 2] {
        [
            Self::public(&format!("{stem}.crt"), &pair.certificate),
            Self::secret(&format!("{stem}.key"), &pair.key),
        ]
    }
}

/// `/etc/hosts`: the computer itself and the API server.
fn hosts(own: Option<(&str, std::net::Ipv4Addr)>, server: (&str, std::net::Ipv4Addr)) -> TextFile {
    use std::fmt::Write;
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for (name, address) in own.into_iter().chain([server]) {
        writeln!(text, "{address} {name}").expect("a String takes everything");
    }
    TextFile::public("/etc/hosts", text)
}

/// A list as the arguments of Kubernetes' programs have it.
fn listed(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

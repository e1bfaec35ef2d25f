//! What is in the images of Cilium that the lab makes. Not here: where Cilium's own files come from (see
//! [`crate::install::cilium`]).
//!
//! The agent's has what the agent and its Helm chart's containers call: a compiler, iptables, ipset, a shell with
//! small tools, `mount` and `nsenter`. Places are those of upstream's image (`images/cilium/Dockerfile` and
//! `images/runtime/Dockerfile` of cilium/cilium).

use std::path::{Path, PathBuf};

use super::{ImageError, tree::Tree};

/// AKS's place for images of Cilium: upstream's tag without its `v`.
const REGISTRY: &str = "mcr.microsoft.com/oss/cilium";
/// The operator's program.
pub(super) const OPERATOR: &str = "cilium-operator-generic";
/// The compiler, as Debian's package calls it. It is of the version that upstream's image has
/// (`images/runtime/Dockerfile` of 1.20).
pub(super) const COMPILER: &str = "clang-19";

/// The agent's programs beside the CNI plugin, which is elsewhere.
const PROGRAMS: [&str; 6] = [
    "cilium-agent",
    "cilium-dbg",
    "cilium-health-responder",
    "cilium-mount",
    "cilium-sysctlfix",
    "hubble",
];
const SCRIPTS: [&str; 3] = ["install-plugin.sh", "cni-uninstall.sh", "init-container.sh"];
/// Programs of this machine, and their places in the image.
const TOOLS: [(&str, &str); 7] = [
    (COMPILER, "/usr/bin/clang"),
    ("bash", "/bin/bash"),
    // Busybox's cannot delete, which the plugin's script asks for.
    ("find", "/usr/bin/find"),
    ("mount", "/bin/mount"),
    // Busybox's knows no namespace by a file's name.
    ("nsenter", "/usr/bin/nsenter"),
    ("ipset", "/usr/sbin/ipset"),
    (IPTABLES, "/usr/sbin/xtables-nft-multi"),
];
const IPTABLES: &str = "xtables-nft-multi";
/// The names by which that one program is called.
const IPTABLES_NAMES: [&str; 12] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "iptables-nft",
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "ip6tables-nft",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
];

/// The image of the agent's pods, as AKS names it.
#[must_use]
pub fn agent_name(version: &str) -> String {
    format!("{REGISTRY}/cilium:{version}")
}

/// The image of the operator's pods, as AKS names it.
#[must_use]
pub fn operator_name(version: &str) -> String {
    format!("{REGISTRY}/operator-generic:{version}")
}

/// Puts into an empty tree what the agent's image has beside busybox. `find` knows where a program of this machine is.
pub(super) fn agent(
    tree: &Tree,
    cilium: &Path,
    find: impl Fn(&str) -> Result<PathBuf, ImageError>,
) -> Result<(), ImageError> {
    for program in PROGRAMS {
        tree.copy(&cilium.join(program), &format!("/usr/bin/{program}"))?;
    }
    tree.link("/usr/bin/cilium", "cilium-dbg")?;
    tree.copy(&cilium.join("cilium-cni"), "/opt/cni/bin/cilium-cni")?;
    for script in SCRIPTS {
        tree.copy(&cilium.join(script), &format!("/{script}"))?;
    }
    tree.copy_all(&cilium.join("bpf"), "/var/lib/cilium/bpf")?;
    tree.copy(&cilium.join("LICENSE"), "/LICENSE")?;
    for (program, place) in TOOLS {
        tree.program(&find(program)?, place)?;
    }
    for name in IPTABLES_NAMES {
        tree.link(&format!("/usr/sbin/{name}"), IPTABLES)?;
    }
    // Matches and targets are libraries that no program names.
    let extensions = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
    tree.copy_all(Path::new(&extensions), &extensions)?;
    // The plugin's script gives nodes this one if they have none.
    let loopback = Path::new("/usr/lib/cni/loopback");
    if loopback.is_file() {
        tree.copy(loopback, "/cni/loopback")?;
    }
    for folder in ["/home/cilium", "/run", "/var/run/cilium", "/sys/fs/bpf", "/root"] {
        tree.folder(folder, 0o755)?;
    }
    Ok(())
}

/// Puts into a tree what the operator's image has.
pub(super) fn operator(tree: &Tree, cilium: &Path) -> Result<(), ImageError> {
    tree.copy(&cilium.join(OPERATOR), &format!("/usr/bin/{OPERATOR}"))?;
    tree.copy(&cilium.join("LICENSE"), "/LICENSE")?;
    tree.folder("/tmp", 0o1777)
}

#[cfg(test)]
mod tests;

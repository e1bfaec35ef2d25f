//! The record of which pod holds which address: one file per lease, named by the address.
//!
//! Two leases of one address would be one file, and a file is written beside and renamed, so whatever
//! is killed when, an address has at most one holder and a lease is whole or not there. It lies in
//! `/run`: a power loss takes the record and the namespaces that it describes at once, so nothing
//! needs to be synced.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use cni::talk::{Attachment, Pod};
use serde::{Deserialize, Serialize};
use vnet::{
    addr::{Prefix4, Prefix6},
    pods::{
        PodNetwork,
        pool::companion,
        ports::{Bandwidth, PortMapping},
        wiring::{Wiring, wiring},
    },
};

const VERSION: u32 = 1;

/// An address, its holder and what is needed to find the holder's link again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub attachment: Attachment,
    /// The address.
    pub address: Ipv4Addr,
    /// The pod, when Kubernetes asked.
    pub pod: Option<Pod>,
    /// Where the container's namespace was.
    pub netns: PathBuf,
    /// The namespace's number: a path can mean another one later.
    pub netns_id: u64,
    /// How the pod was wired.
    pub network: PodNetwork,
    /// The node's block then.
    pub block: Option<Prefix4>,
    /// The node's block of IPv6 then: the pod's address of IPv6 follows from the three.
    pub block_v6: Option<Prefix6>,
    /// The pair's MTU.
    pub mtu: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Ports of the node that lead to the pod.
    pub ports: Vec<PortMapping>,
    /// The pod's share of the network.
    pub bandwidth: Bandwidth,
    /// Another plugin has connected the pod; only the address is ours.
    pub is_address_only: bool,
}

/// Where a lease is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A pod has the address.
    Held,
    /// The pod is gone, its link perhaps not.
    Leaving,
}

impl Lease {
    /// How the pod is connected.
    #[must_use]
    pub fn wiring(&self) -> Wiring {
        let attachment = (self.attachment.container.as_str(), self.attachment.interface.as_str());
        wiring(self.network, self.block, attachment, self.address, self.mtu)
            .with_v6(self.block, self.block_v6)
    }

    /// The pod's addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.block.zip(self.block_v6);
        let v6 = v6.and_then(|(block, block_v6)| companion(block, block_v6, self.address));
        [Some(self.address.into()), v6.map(IpAddr::from)].into_iter().flatten().collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    phase: Phase,
    attachment: Attachment,
    pod: Option<Pod>,
    netns: PathBuf,
    netns_id: u64,
    network: String,
    block: Option<Prefix4>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block_v6: Option<Prefix6>,
    mtu: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortMapping>,
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    bandwidth: Bandwidth,
    #[serde(default, skip_serializing_if = "is_false")]
    is_address_only: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Deserialize)]
struct WireVersion {
    version: u32,
}

/// The directory of leases. Its holder is the only one: a second agent is refused.
#[derive(Debug)]
pub struct Ledger {
    directory: PathBuf,
    /// Locked for as long as this value lives.
    _lock: fs::File,
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file operation failed.
    #[error("{verb} {}", path.display())]
    File {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has the directory.
    #[error("another agent has {}", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
    },
}

/// What a ledger held when it was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// The leases.
    pub leases: Vec<Lease>,
    /// Files that are no lease of this release, with the reason; they are left where they are.
    pub unreadable: Vec<(PathBuf, String)>,
}

impl Ledger {
    /// Opens the ledger in `directory`, which is made if it is not there.
    pub fn open(directory: &Path) -> Result<(Self, Found), LedgerError> {
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::File { verb, path, source }
        };
        fs::create_dir_all(directory).map_err(failed("making", directory))?;
        let path = directory.join(".lock");
        let lock = fs::File::create(&path).map_err(failed("making", &path))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => LedgerError::Taken { path: path.clone() },
            fs::TryLockError::Error(source) => failed("locking", &path)(source),
        })?;
        let mut found = Found::default();
        for entry in fs::read_dir(directory).map_err(failed("listing", directory))? {
            let path = entry.map_err(failed("listing", directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                // What a killed agent wrote beside and never renamed was never promised to anyone.
                if name != ".lock" {
                    fs::remove_file(&path).map_err(failed("removing", &path))?;
                }
                continue;
            }
            match read(&path, &name) {
                Ok(lease) => found.leases.push(lease),
                Err(why) => found.unreadable.push((path, why)),
            }
        }
        found.leases.sort_by_key(|lease| lease.address);
        Ok((Self { directory: directory.to_owned(), _lock: lock }, found))
    }

    /// Writes a lease down, over an older one of the same address. It is there when this returns.
    pub fn write(&self, lease: &Lease) -> Result<(), LedgerError> {
        let wire = Wire {
            version: VERSION,
            phase: lease.phase,
            attachment: lease.attachment.clone(),
            pod: lease.pod.clone(),
            netns: lease.netns.clone(),
            netns_id: lease.netns_id,
            network: lease.network.to_string(),
            block: lease.block,
            block_v6: lease.block_v6,
            mtu: lease.mtu,
            ports: lease.ports.clone(),
            bandwidth: lease.bandwidth,
            is_address_only: lease.is_address_only,
        };
        let path = self.directory.join(lease.address.to_string());
        let beside = self.directory.join(format!(".{}", lease.address));
        let write = || {
            fs::write(&beside, serde_json::to_vec(&wire)?)?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| LedgerError::File { verb: "writing", path: path.clone(), source })
    }

    /// Strikes out the lease of `address`. None is fine.
    pub fn remove(&self, address: Ipv4Addr) -> Result<(), LedgerError> {
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError::File { verb: "removing", path, source })
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &Path, name: &str) -> Result<Lease, String> {
    let address: Ipv4Addr = name.parse().map_err(|_| "its name is no address".to_owned())?;
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let WireVersion { version } =
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it has version {version}"));
    }
    let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(Lease {
        attachment: wire.attachment,
        address,
        pod: wire.pod,
        netns: wire.netns,
        netns_id: wire.netns_id,
        network: wire.network.parse().map_err(|error| format!("{error}"))?,
        block: wire.block,
        block_v6: wire.block_v6,
        mtu: wire.mtu,
        phase: wire.phase,
        ports: wire.ports,
        bandwidth: wire.bandwidth,
        is_address_only: wire.is_address_only,
    })
}

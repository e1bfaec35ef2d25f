//! What clusters and nodes keep in the lab's state: certificates and kubeconfigs. Not here: making them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use cluster::{
    kubeconfig::Kubeconfig,
    pki::{ApiServerNames, ClusterCertificates, NodeCertificates, PkiError},
};
use vnet::model::Cluster;

use super::ClustersError;

/// The certificates of a cluster; made when there are none.
pub(super) fn cluster_certificates(
    folder: &Path,
    cluster: &Cluster,
) -> Result<ClusterCertificates, ClustersError> {
    let path = folder.join("certificates.json");
    let make = || {
        let service_address = cluster.service_cidr.network().to_bits() + 1;
        ClusterCertificates::generate(&ApiServerNames {
            fqdn: cluster.fqdn.clone(),
            address: cluster.api_address,
            service_address: service_address.into(),
        })
    };
    ensure(&path, ClusterCertificates::from_json, make, ClusterCertificates::to_json)
}

/// The certificates of a node; made when there are none.
pub(super) fn node_certificates(
    folder: &Path,
    authority: &ClusterCertificates,
    hostname: &str,
    address: std::net::Ipv4Addr,
) -> Result<NodeCertificates, ClustersError> {
    let path = folder.join("certificates.json");
    let make = || authority.sign_node(hostname, address);
    ensure(&path, NodeCertificates::from_json, make, NodeCertificates::to_json)
}

fn ensure<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, PkiError>,
    generate: impl FnOnce() -> Result<T, PkiError>,
    render: impl FnOnce(&T) -> Vec<u8>,
) -> Result<T, ClustersError> {
    let fault = |source| ClustersError::Certificates { name: path.display().to_string(), source };
    match fs::read(path) {
        Ok(text) => parse(&text).map_err(fault),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let made = generate().map_err(fault)?;
            write_private(path, &render(&made))?;
            Ok(made)
        }
        Err(source) => Err(ClustersError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// The administrator's kubeconfig for this machine, also kept as a file.
pub(super) fn kubeconfig(
    folder: &Path,
    cluster: &Cluster,
    certificates: &ClusterCertificates,
    port: u16,
) -> Result<String, ClustersError> {
    let id = &cluster.meta.id;
    let rendered = Kubeconfig {
        cluster: id.name(),
        user: &format!("clusterUser_{}_{}", id.resource_group(), id.name()),
        server: &format!("https://127.0.0.1:{port}"),
        tls_server_name: Some(&cluster.fqdn),
        authority: &certificates.authority.certificate,
        client: &certificates.admin,
    }
    .render();
    write_private(&folder.join("kubeconfig"), rendered.as_bytes())?;
    Ok(rendered)
}

/// What [`kubeconfig`] kept, if it did.
pub(super) fn kept_kubeconfig(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join("kubeconfig")).ok()
}

/// Replaces a file in one step; only its owner may read it.
fn write_private(path: &Path, text: &[u8]) -> Result<(), ClustersError> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| ClustersError::File { action: "write", path: path.to_owned(), source })
}

//! etcd, the API server, the controller manager and the scheduler.

use std::net::{Ipv4Addr, SocketAddrV4};

use vnet::model::Cluster;

use super::{Computer, Need, Program, TextFile, hosts};
use crate::{
    kubeconfig::Kubeconfig,
    pki::{ClusterCertificates, Pair},
};

const PKI: &str = "/etc/kubernetes/pki";
const ETCD: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2379);
/// The API server listens on every address of its namespace.
const API_SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 443);

/// What a control plane is made from.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlane<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its certificates.
    pub certificates: &'a ClusterCertificates,
}

/// The computer that a cluster's control plane runs on.
#[must_use]
pub fn control_plane(input: &ControlPlane<'_>) -> Computer {
    Computer {
        hostname: "control-plane".to_owned(),
        programs: vec![etcd(), api_server(input.cluster), controller_manager(), scheduler()],
        files: files(input),
        folders: vec!["/var/lib/etcd"],
    }
}

fn etcd() -> Program {
    let client = format!("http://{ETCD}");
    // One member elects itself after one election time-out.
    Program::new(
        "etcd",
        "etcd",
        [
            "--name=control-plane".to_owned(),
            "--data-dir=/var/lib/etcd/data".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=control-plane=http://127.0.0.1:2380".to_owned(),
            "--heartbeat-interval=20".to_owned(),
            "--election-timeout=200".to_owned(),
            "--snapshot-count=10000".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )
}

fn api_server(cluster: &Cluster) -> Program {
    Program::kubernetes(
        "kube-apiserver",
        [
            format!("--advertise-address={}", cluster.api_address),
            "--allow-privileged=true".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--client-ca-file={PKI}/ca.crt"),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--etcd-servers=http://{ETCD}"),
            format!("--kubelet-certificate-authority={PKI}/ca.crt"),
            format!("--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt"),
            format!("--kubelet-client-key={PKI}/apiserver-kubelet-client.key"),
            // Logs and exec: nothing here could look a node's name up.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--profiling=false".to_owned(),
            format!("--proxy-client-cert-file={PKI}/front-proxy-client.crt"),
            format!("--proxy-client-key-file={PKI}/front-proxy-client.key"),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            format!("--requestheader-client-ca-file={PKI}/front-proxy-ca.crt"),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--secure-port=443".to_owned(),
            format!("--service-account-issuer=https://{}", cluster.fqdn),
            format!("--service-account-key-file={PKI}/sa.crt"),
            format!("--service-account-signing-key-file={PKI}/sa.key"),
            format!("--service-cluster-ip-range={}", super::listed(&cluster.service_cidrs())),
            format!("--tls-cert-file={PKI}/apiserver.crt"),
            format!("--tls-private-key-file={PKI}/apiserver.key"),
        ],
    )
    .after(Need::Tcp(ETCD))
}

fn controller_manager() -> Program {
    let config = "/etc/kubernetes/controller-manager.conf";
    Program::kubernetes(
        "kube-controller-manager",
        [
            // The lab's controller gives nodes their pod ranges, as AKS's does.
            "--allocate-node-cidrs=false".to_owned(),
            format!("--authentication-kubeconfig={config}"),
            format!("--authorization-kubeconfig={config}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--cloud-provider=external".to_owned(),
            // Each of its forty controllers begins with a few requests. At the default of twenty a
            // second the last ones begin four seconds after the first.
            "--kube-api-burst=400".to_owned(),
            "--kube-api-qps=200".to_owned(),
            format!("--kubeconfig={config}"),
            // Who may ask for metrics is of no interest here, and the answer is not there at the start.
            "--authentication-skip-lookup=true".to_owned(),
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
            format!("--root-ca-file={PKI}/ca.crt"),
            format!("--service-account-private-key-file={PKI}/sa.key"),
            "--use-service-account-credentials=true".to_owned(),
        ],
    )
    .after(Need::Tcp(API_SERVER))
}

fn scheduler() -> Program {
    let config = "/etc/kubernetes/scheduler.conf";
    Program::kubernetes(
        "kube-scheduler",
        [
            format!("--authentication-kubeconfig={config}"),
            format!("--authorization-kubeconfig={config}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--kubeconfig={config}"),
            // Who may ask for metrics is of no interest here, and the answer is not there at the start.
            "--authentication-skip-lookup=true".to_owned(),
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
        ],
    )
    .after(Need::Tcp(API_SERVER))
}

fn files(input: &ControlPlane<'_>) -> Vec<TextFile> {
    let ControlPlane { cluster, certificates } = input;
    let pairs = [
        ("ca", &certificates.authority),
        ("front-proxy-ca", &certificates.front_proxy_authority),
        ("sa", &certificates.service_accounts),
        ("apiserver", &certificates.apiserver),
        ("apiserver-kubelet-client", &certificates.kubelet_client),
        ("front-proxy-client", &certificates.front_proxy_client),
    ];
    let mut files: Vec<TextFile> = pairs
        .into_iter()
        .flat_map(|(name, pair)| TextFile::pair(&format!("{PKI}/{name}"), pair))
        .collect();
    let config = |path: &str, user: &str, client: &Pair| {
        let text = Kubeconfig {
            cluster: "kubernetes",
            user,
            server: &format!("https://{API_SERVER}"),
            tls_server_name: None,
            authority: &certificates.authority.certificate,
            client,
        };
        TextFile::secret(path, text.render())
    };
    files.extend([
        config(
            "/etc/kubernetes/controller-manager.conf",
            "system:kube-controller-manager",
            &certificates.controller_manager,
        ),
        config("/etc/kubernetes/scheduler.conf", "system:kube-scheduler", &certificates.scheduler),
        hosts(None, (&cluster.fqdn, cluster.api_address)),
        // The machine's resolver cannot be reached from here, and nothing may wait for it.
        TextFile::public("/etc/resolv.conf", ""),
    ]);
    files
}

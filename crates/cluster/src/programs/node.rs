//! containerd, the kubelet, kube-proxy and the network agent of a node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::PathBuf,
};

use serde_json::{Value, json};
use vnet::{
    addr::{Family, Prefix, Prefix4},
    host::platform::Resolver,
    model::{AgentPool, Cluster, Dataplane, Machine, NetworkLinks, NetworkMode, PoolMode},
    pods::PodNetwork,
};

use super::{CNI_BIN, Computer, Need, PAUSE_IMAGE, Program, TextFile, hosts};
use crate::{
    images::UPSTREAM_PORT,
    kubeconfig::Kubeconfig,
    pki::{NodeCertificates, Pair},
};

/// Says which nodes Cilium's agents are for, in the words of AKS (its `DaemonSet` `cilium` selects them by it).
const CILIUM_LABEL: (&str, &str) = ("kubernetes.azure.com/ebpf-dataplane", "cilium");
const PKI: &str = "/etc/kubernetes/pki";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What a node is made from.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its cluster.
    pub cluster: &'a Cluster,
    /// Its pool.
    pub pool: &'a AgentPool,
    /// Its machine.
    pub machine: &'a Machine,
    /// Its NIC's primary address.
    pub address: Ipv4Addr,
    /// Its NIC's address of IPv6, in dual-stack clusters.
    pub address_v6: Option<Ipv6Addr>,
    /// The address space of its virtual network.
    pub vnet: &'a [Prefix],
    /// The subnet that its NIC is in.
    pub subnet: Option<Prefix4>,
    /// How it finds names, and the cluster's DNS those that are not the cluster's.
    pub resolver: &'a Resolver,
    /// The authority's certificate.
    pub authority: &'a str,
    /// Its certificates.
    pub certificates: &'a NodeCertificates,
    /// The lab's image registry, which every pull asks first.
    pub registry: SocketAddrV4,
}

/// Who wires pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// The lab's plugin and its agent.
    Aksnet(PodNetwork),
    /// Cilium, with addresses from the lab's agent.
    Cilium(PodNetwork),
    /// Whatever the user installs.
    Own,
}

impl Plugin {
    /// Who wires the pods of a pool's nodes that get their addresses so.
    #[must_use]
    pub fn of(
        cluster: &Cluster,
        mode: NetworkMode,
        dataplane: Dataplane,
        pool: &AgentPool,
    ) -> Self {
        let network = match mode {
            NetworkMode::Kubenet => PodNetwork::Kubenet,
            NetworkMode::Overlay => PodNetwork::Overlay,
            NetworkMode::Azure if pool.pod_subnet.is_some() => PodNetwork::PodSubnet,
            NetworkMode::Azure
                if cluster.links == Some(NetworkLinks::Bridge) && dataplane.is_azure() =>
            {
                PodNetwork::NodeBridge
            }
            NetworkMode::Azure => PodNetwork::NodeSubnet,
            NetworkMode::None => return Self::Own,
        };
        match dataplane {
            Dataplane::Azure => Self::Aksnet(network),
            Dataplane::Cilium => Self::Cilium(network),
        }
    }

    /// How its pods get addresses, where the lab gives them.
    #[must_use]
    pub fn network(self) -> Option<PodNetwork> {
        match self {
            Self::Aksnet(network) | Self::Cilium(network) => Some(network),
            Self::Own => None,
        }
    }
}

/// Destinations that pods reach with their own address (the ip-masq-agent's `nonMasqueradeCIDRs`). `vnet` is
/// the address space of the cluster's virtual network.
#[must_use]
pub fn no_masquerade(cluster: &Cluster, vnet: &[Prefix], mode: PodNetwork) -> Vec<Prefix> {
    match mode {
        PodNetwork::Kubenet | PodNetwork::Overlay => cluster.pod_cidrs(),
        PodNetwork::NodeSubnet | PodNetwork::NodeBridge => vnet.to_vec(),
        // Pods of a pod subnet keep their address everywhere.
        PodNetwork::PodSubnet => vec![Prefix::everything(Family::V4)],
    }
}

impl Node<'_> {
    /// How its pods get addresses: an old node of a cluster that is being migrated has the old way.
    #[must_use]
    pub fn mode(&self) -> NetworkMode {
        let image = self.machine.node().and_then(|node| node.image.as_ref());
        image.map_or(self.cluster.mode, |image| image.mode)
    }

    /// Who forwards its pods' packets; an old node of a cluster that is being migrated has the old data plane.
    #[must_use]
    pub fn dataplane(&self) -> Dataplane {
        let image = self.machine.node().and_then(|node| node.image.as_ref());
        image.map_or(self.cluster.dataplane, |image| image.dataplane)
    }

    /// Who wires this node's pods.
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        Plugin::of(self.cluster, self.mode(), self.dataplane(), self.pool)
    }

    /// Cilium forwards services' packets in kube-proxy's place.
    fn has_kube_proxy(&self) -> bool {
        !matches!(self.plugin(), Plugin::Cilium(_))
    }

    /// Its NIC's addresses, IPv4 first.
    fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.address_v6.map(IpAddr::from);
        [Some(self.address.into()), v6].into_iter().flatten().collect()
    }

    fn no_masquerade(&self, mode: PodNetwork) -> Vec<Prefix> {
        no_masquerade(self.cluster, self.vnet, mode)
    }

    /// `azure://` and the machine's id, the resource group in lower case as AKS writes it.
    #[must_use]
    pub fn provider_id(&self) -> String {
        let id = &self.machine.meta.id;
        let group = format!("/{}/", id.resource_group());
        format!("azure://{}", id.as_str().replacen(&group, &group.to_ascii_lowercase(), 1))
    }

    /// AKS's own labels and the pool's.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mode = match self.pool.mode {
            PoolMode::System => "system",
            PoolMode::User => "user",
        };
        let azure = [
            ("agentpool", self.pool.name.as_str()),
            ("cluster", self.cluster.node_group.name()),
            ("mode", mode),
            ("nodepool-type", "VirtualMachineScaleSets"),
            ("role", "agent"),
        ];
        let mut labels: BTreeMap<String, String> = azure
            .into_iter()
            .map(|(name, value)| (format!("kubernetes.azure.com/{name}"), label_value(value)))
            .collect();
        labels.insert("agentpool".to_owned(), self.pool.name.to_string());
        if self.mode() == NetworkMode::Overlay {
            labels.insert("kubernetes.azure.com/azure-cni-overlay".to_owned(), "true".to_owned());
            labels.insert("kubernetes.azure.com/podnetwork-type".to_owned(), "overlay".to_owned());
        }
        if let Plugin::Cilium(_) = self.plugin() {
            labels.insert(CILIUM_LABEL.0.to_owned(), CILIUM_LABEL.1.to_owned());
        }
        if let Some(subnet) = &self.pool.pod_subnet {
            let vnet = subnet.parent();
            for (name, value) in [
                ("podnetwork-subnet", subnet.name()),
                ("podnetwork-name", vnet.as_ref().map_or("", |vnet| vnet.name())),
                ("podnetwork-resourcegroup", subnet.resource_group()),
                ("podnetwork-subscription", subnet.subscription()),
            ] {
                labels.insert(format!("kubernetes.azure.com/{name}"), label_value(value));
            }
        }
        labels.extend(self.pool.labels.clone());
        labels
    }
}

/// A label's value has at most 63 characters and ends with a letter or digit.
fn label_value(text: &str) -> String {
    let short: String = text.chars().take(63).collect();
    short.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The computer that a node is.
#[must_use]
pub fn node(input: &Node<'_>) -> Computer {
    let mut programs = vec![containerd(), kubelet(input)];
    if input.has_kube_proxy() {
        programs.push(kube_proxy());
    }
    if input.plugin().network().is_some() {
        programs.push(Program::new(
            "agent",
            super::AKSNET,
            ["agent", "--config", "/etc/aksnet/agent.json"],
        ));
    }
    let mut folders = vec![
        CNI_BIN,
        "/var/lib/containerd",
        "/var/lib/kubelet",
        "/var/log/containers",
        "/var/log/pods",
    ];
    if input.plugin() == Plugin::Own {
        // What users install stays. The agent's own file must go with the agent: a node is Ready as
        // soon as it is there.
        folders.extend(["/etc/cni/net.d", "/var/lib/cni"]);
    }
    Computer { hostname: input.machine.hostname.clone(), programs, files: files(input), folders }
}

fn containerd() -> Program {
    Program::new("containerd", "containerd", ["--config", "/etc/containerd/config.toml"])
}

fn kubelet(input: &Node<'_>) -> Program {
    let labels: Vec<String> =
        input.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
    Program::kubernetes(
        "kubelet",
        [
            // Nodes wait for the lab's controller, as they wait for AKS's cloud provider.
            "--cloud-provider=external".to_owned(),
            "--config=/etc/kubernetes/kubelet.json".to_owned(),
            format!("--hostname-override={}", input.machine.hostname),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
            format!("--node-ip={}", super::listed(&input.addresses())),
            format!("--node-labels={}", labels.join(",")),
        ],
    )
    .after(Need::Path(PathBuf::from(CONTAINERD_SOCKET)))
}

fn kube_proxy() -> Program {
    Program::kubernetes("kube-proxy", ["--config=/etc/kubernetes/kube-proxy.json"])
}

fn files(input: &Node<'_>) -> Vec<TextFile> {
    let Node { cluster, certificates, .. } = input;
    let config = |path: &str, user: &str, client: &Pair| {
        let text = Kubeconfig {
            cluster: "kubernetes",
            user,
            server: &format!("https://{}:443", cluster.fqdn),
            tls_server_name: None,
            authority: input.authority,
            client,
        };
        TextFile::secret(path, text.render())
    };
    let json = |path: &str, value: &Value| TextFile::public(path, format!("{value:#}\n"));
    let mut files = vec![
        TextFile::public("/etc/containerd/config.toml", containerd_config()),
        TextFile::public(
            "/etc/containerd/certs.d/_default/hosts.toml",
            registry_config(input.registry),
        ),
        TextFile::public(&format!("{PKI}/ca.crt"), input.authority),
        json("/etc/kubernetes/kubelet.json", &kubelet_config(input)),
        config("/etc/kubernetes/kubelet.conf", "kubelet", &certificates.kubelet),
        hosts(Some((&input.machine.hostname, input.address)), (&cluster.fqdn, cluster.api_address)),
        TextFile::public("/etc/hostname", format!("{}\n", input.machine.hostname)),
        TextFile::public("/etc/resolv.conf", input.resolver.to_string()),
    ];
    files.extend(TextFile::pair(&format!("{PKI}/kubelet-server"), &certificates.kubelet_server));
    if input.has_kube_proxy() {
        files.push(json("/etc/kubernetes/kube-proxy.json", &kube_proxy_config(input)));
        let (user, client) = ("kube-proxy", &certificates.kube_proxy);
        files.push(config("/etc/kubernetes/kube-proxy.conf", user, client));
    }
    if let Some(mode) = input.plugin().network() {
        files.push(config("/etc/kubernetes/agent.kubeconfig", "agent", &certificates.agent));
        files.push(json("/etc/aksnet/agent.json", &agent_config(input, mode)));
    }
    files
}

/// The configuration of the network agent.
#[must_use]
pub fn agent_config(input: &Node<'_>, mode: PodNetwork) -> Value {
    let mut config = json!({
        "version": 1,
        "node": input.machine.hostname,
        "mode": mode.as_str(),
        "kubeconfig": "/etc/kubernetes/agent.kubeconfig",
        "pod_cidr": input.cluster.pod_cidr,
        "no_masquerade": input.no_masquerade(mode),
        "socket": "/run/aksnet/agent.sock",
        "interface": "eth0",
    });
    if let Plugin::Cilium(_) = input.plugin() {
        config["dataplane"] = json!("cilium");
    }
    if let Some(range) = input.cluster.pod_cidr6 {
        config["pod_cidr_v6"] = json!(range);
    }
    config
}

fn containerd_config() -> String {
    // `restrict_oom_score_adj`: a root without CAP_SYS_RESOURCE may not lower a score, and runc fails
    // on each pod without it.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BIN}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"#
    )
}

/// Every pull asks the lab's registry first; what it lacks comes from the image's own.
/// The lab's registry is asked first for every image, and then whoever asks upstream.
fn registry_config(registry: SocketAddrV4) -> String {
    let upstream = SocketAddrV4::new(*registry.ip(), UPSTREAM_PORT);
    [registry, upstream]
        .map(|host| format!("[host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"))
        .join("\n")
}

fn kubelet_config(input: &Node<'_>) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{PKI}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        // The node shares memory and disk with the machine: their totals are not its own.
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [input.cluster.dns_service_ip],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "healthzBindAddress": "127.0.0.1",
        "maxPods": input.pool.max_pods,
        "providerID": input.provider_id(),
        "registerWithTaints": input.pool.taints.iter().filter_map(|text| taint(text)).collect::<Vec<_>>(),
        "resolvConf": "/etc/resolv.conf",
        "rotateCertificates": false,
        "serializeImagePulls": false,
        "tlsCertFile": format!("{PKI}/kubelet-server.crt"),
        "tlsPrivateKeyFile": format!("{PKI}/kubelet-server.key"),
    })
}

/// `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Option<Value> {
    let (pair, effect) = text.rsplit_once(':')?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    Some(json!({"key": key, "value": value, "effect": effect}))
}

fn kube_proxy_config(input: &Node<'_>) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
        "hostnameOverride": input.machine.hostname,
        "mode": "nftables",
        // These are the machine's, and a network namespace may not change them.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "nftables": {"minSyncPeriod": "200ms"},
    });
    // What tells a pod's packet from others: its range, or the link that it comes from.
    let ranges = input.cluster.pod_cidrs();
    match (input.plugin(), ranges.is_empty()) {
        (Plugin::Aksnet(PodNetwork::NodeSubnet | PodNetwork::PodSubnet), _) => {
            config["detectLocalMode"] = json!("InterfaceNamePrefix");
            config["detectLocal"] = json!({"interfaceNamePrefix": "azv"});
        }
        // Packets of a bridge's ports come from the bridge, as others' do. AKS took the pool's subnet then
        // (Azure/AKS issue 2449).
        (Plugin::Aksnet(PodNetwork::NodeBridge), _) => {
            if let Some(subnet) = input.subnet {
                config["detectLocalMode"] = json!("ClusterCIDR");
                config["clusterCIDR"] = json!(subnet);
            }
        }
        (Plugin::Aksnet(PodNetwork::Kubenet | PodNetwork::Overlay) | Plugin::Own, false) => {
            config["detectLocalMode"] = json!("ClusterCIDR");
            config["clusterCIDR"] = json!(super::listed(&ranges));
        }
        // Cilium is in kube-proxy's place; such nodes have none.
        (Plugin::Cilium(_), _)
        | (Plugin::Aksnet(PodNetwork::Kubenet | PodNetwork::Overlay) | Plugin::Own, true) => {}
    }
    config
}

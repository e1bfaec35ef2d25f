//! What computers run, as text that a person can read.

use std::{fmt::Write, net::Ipv4Addr};

use cluster::{
    images,
    pki::{ApiServerNames, ClusterCertificates},
    programs::{Computer, ControlPlane, Node, control_plane, node},
};
use uuid::Uuid;
use vnet::{
    host::platform::Resolver,
    model::{
        AgentPool, Cluster, Dataplane, Machine, Meta, NetworkMode, NodePhase, NodeRole,
        OutboundType, PoolMode, ProvisioningState, Role, Timestamp,
    },
    name::{ArmId, Name},
};

const SUBSCRIPTION: &str = "/subscriptions/00000000-0000-0000-0000-000000000000";

fn id(text: &str) -> ArmId {
    format!("{SUBSCRIPTION}/resourceGroups/{text}").parse().expect("an id")
}

fn meta(id: ArmId) -> Meta {
    Meta {
        id,
        location: "eastus".to_owned(),
        tags: std::collections::BTreeMap::new(),
        etag: Uuid::nil(),
        guid: Uuid::nil(),
        state: ProvisioningState::Creating,
        changed: 1,
        kept: std::collections::BTreeMap::new(),
    }
}

fn cluster(mode: NetworkMode) -> Cluster {
    let pod_cidr = match mode {
        NetworkMode::Kubenet | NetworkMode::Overlay => Some("10.244.0.0/16".parse().expect("p")),
        NetworkMode::Azure | NetworkMode::None => None,
    };
    Cluster {
        outbound_profile: vnet::model::OutboundProfile::default(),
        security_group: None,
        meta: meta(id("rg/providers/Microsoft.ContainerService/managedClusters/demo")),
        created: Timestamp(0),
        version: "1.36.3".to_owned(),
        dns_prefix: "demo".to_owned(),
        fqdn: "demo-12345678.hcp.eastus.azmk8s.io".to_owned(),
        api_address: Ipv4Addr::new(198, 18, 0, 9),
        node_group: id("MC_rg_demo_eastus"),
        hash: "12345678".to_owned(),
        principal: Uuid::nil(),
        mode,
        links: None,
        dataplane: Dataplane::Azure,
        policy: None,
        advanced_networking: None,
        pod_cidr,
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.0.0.0/16".parse().expect("a prefix"),
        dns_service_ip: Ipv4Addr::new(10, 0, 0, 10),
        outbound: OutboundType::LoadBalancer,
        vnet: id("rg/providers/Microsoft.Network/virtualNetworks/vnet"),
        route_table: None,
        pools: std::collections::BTreeMap::new(),
    }
}

fn pool(cluster: &Cluster, pod_subnet: Option<&str>) -> AgentPool {
    AgentPool {
        pod_allocation: vnet::model::PodAllocation::Dynamic,
        name: Name::new("nodepool1"),
        mode: PoolMode::System,
        count: 1,
        max_pods: 30,
        subnet: cluster.vnet.child("subnets", "nodes"),
        subnet_given: true,
        pod_subnet: pod_subnet.map(|name| cluster.vnet.child("subnets", name)),
        version: "1.36.3".to_owned(),
        vm_size: "Standard_D2s_v3".to_owned(),
        labels: [("team".to_owned(), "blue".to_owned())].into(),
        taints: vec!["sku=gpu:NoSchedule".to_owned(), "lonely:NoExecute".to_owned()],
        max_surge: "10%".to_owned(),
        max_unavailable: "0".to_owned(),
        drain_timeout_minutes: 30,
        image: 0,
        upgrade: None,
        autoscale: None,
        ordinal: 0,
        next_instance: 1,
        state: ProvisioningState::Creating,
        changed: 1,
        etag: Uuid::nil(),
        kept: std::collections::BTreeMap::new(),
    }
}

fn certificates(cluster: &Cluster) -> ClusterCertificates {
    ClusterCertificates::generate(&ApiServerNames {
        fqdn: cluster.fqdn.clone(),
        address: cluster.api_address,
        service_address: Ipv4Addr::new(10, 0, 0, 1),
    })
    .expect("certificates")
}

fn render_node(mode: NetworkMode, dataplane: Dataplane, pod_subnet: Option<&str>) -> Computer {
    let cluster = Cluster { dataplane, ..cluster(mode) };
    let pool = pool(&cluster, pod_subnet);
    let certificates = certificates(&cluster);
    let address = Ipv4Addr::new(10, 224, 0, 4);
    let hostname = "aks-nodepool1-12345678-vmss000000";
    let own = certificates.sign_node(hostname, address).expect("certificates");
    let scale_set = "MC_rg_demo_eastus/providers/Microsoft.Compute/virtualMachineScaleSets/\
                     aks-nodepool1-12345678-vmss/virtualMachines/0";
    let machine = Machine {
        meta: meta(id(scale_set)),
        hostname: hostname.to_owned(),
        nic: cluster.vnet.clone(),
        dns_servers: Vec::new(),
        role: Role::Node(NodeRole {
            cluster: cluster.meta.id.clone(),
            pool: pool.name.clone(),
            instance: 0,
            pod_range: None,
            pod_range6: None,
            phase: NodePhase::Creating,
            image: None,
            step: vnet::model::UpgradeStep::Idle,
            is_surge: false,
        }),
    };
    node(&Node {
        cluster: &cluster,
        pool: &pool,
        machine: &machine,
        address,
        address_v6: None,
        vnet: &["10.224.0.0/12".parse().expect("a prefix")],
        subnet: Some("10.224.0.0/16".parse().expect("a prefix")),
        resolver: &Resolver {
            servers: vec![Ipv4Addr::new(168, 63, 129, 16)],
            search: "abc.bx.internal.cloudapp.net".to_owned(),
        },
        authority: &certificates.authority.certificate,
        certificates: &own,
        registry: "198.19.0.10:5000".parse().expect("an address"),
    })
}

/// Everything but keys and certificates, which differ each time.
fn render(computer: &Computer) -> String {
    let mut text = format!("computer {}\n", computer.hostname);
    for folder in &computer.folders {
        writeln!(text, "folder {folder}").expect("text");
    }
    for program in &computer.programs {
        writeln!(text, "\nprogram {}, after {:?}", program.name, program.after).expect("text");
        for arg in &program.argv {
            writeln!(text, "  {arg}").expect("text");
        }
    }
    for file in &computer.files {
        writeln!(text, "\nfile {} {:o}", file.path, file.mode).expect("text");
        let is_secret = file.mode == 0o600 || file.text.contains("BEGIN");
        let shown = if is_secret { "" } else { file.text.as_str() };
        shown.lines().for_each(|line| writeln!(text, "  {line}").expect("text"));
    }
    text
}

#[test]
fn control_planes() {
    let cluster = cluster(NetworkMode::Overlay);
    let certificates = certificates(&cluster);
    let input = ControlPlane { cluster: &cluster, certificates: &certificates };
    insta::assert_snapshot!(render(&control_plane(&input)));
}

#[test]
fn nodes_of_overlay_clusters() {
    insta::assert_snapshot!(render(&render_node(NetworkMode::Overlay, Dataplane::Azure, None)));
}

#[test]
fn registries() {
    insta::assert_snapshot!(render(&images::registry(Ipv4Addr::new(198, 19, 0, 10))));
}

/// What differs between the modes: the agent's configuration, and how kube-proxy tells pods, if there is one.
#[test]
fn modes() {
    let mut text = String::new();
    for (mode, dataplane, pod_subnet) in [
        (NetworkMode::Kubenet, Dataplane::Azure, None),
        (NetworkMode::Azure, Dataplane::Azure, None),
        (NetworkMode::Azure, Dataplane::Azure, Some("pods")),
        (NetworkMode::Overlay, Dataplane::Azure, None),
        (NetworkMode::None, Dataplane::Azure, None),
        (NetworkMode::Azure, Dataplane::Cilium, None),
        (NetworkMode::Azure, Dataplane::Cilium, Some("pods")),
        (NetworkMode::Overlay, Dataplane::Cilium, None),
    ] {
        let computer = render_node(mode, dataplane, pod_subnet);
        writeln!(text, "{mode:?}, data plane {dataplane:?}, pod subnet {pod_subnet:?}")
            .expect("text");
        let names: Vec<&str> = computer.programs.iter().map(|program| program.name).collect();
        writeln!(text, "  programs: {}", names.join(" ")).expect("text");
        let read = |path: &str| {
            let file = computer.files.iter().find(|file| file.path == path);
            file.map(|file| serde_json::from_str::<serde_json::Value>(&file.text).expect("JSON"))
        };
        if let Some(proxy) = read("/etc/kubernetes/kube-proxy.json") {
            for key in ["detectLocalMode", "detectLocal", "clusterCIDR"] {
                writeln!(text, "  kube-proxy {key}: {}", proxy[key]).expect("text");
            }
        }
        if let Some(agent) = read("/etc/aksnet/agent.json") {
            writeln!(text, "  agent: {agent}").expect("text");
        }
        let kubelet = computer.programs.iter().find(|program| program.name == "kubelet");
        let labels = kubelet.and_then(|p| p.argv.iter().find(|arg| arg.contains("--node-labels")));
        for label in labels.expect("labels").split(['=', ',']).skip(1).collect::<Vec<_>>().chunks(2)
        {
            writeln!(text, "  label {}", label.join("=")).expect("text");
        }
    }
    insta::assert_snapshot!(text);
}

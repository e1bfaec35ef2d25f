//! A lab without its doors, to look at clusters alone: the fabric and the clusters' loop, and one cluster
//! that brings its own CNI. `clusters up LAB COUNT` makes it and stays until Ctrl-C; `clusters down LAB`
//! removes everything. As root.
#![allow(clippy::print_stderr, reason = "this is an example, and it talks to people")]

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use daemon::{
    clusters::{Clusters, Nodes, Settings},
    reconcile::now,
};
use store::Store;
use vnet::{
    command::{Command, Common, PutCluster, PutPool, PutSubnet},
    model::NetworkMode,
    name::{ArmId, Name},
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["sandbox-init", spec] => Ok(linux::sandbox::init(Path::new(spec))?),
        ["agent", "--config", path] => Ok(daemon::node::run(Path::new(path))?),
        ["down", lab] => down(lab),
        ["up", lab, count] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(up(lab, count.parse()?))
        }
        _ => Err("clusters up LAB COUNT | clusters down LAB".into()),
    }
}

fn settings(lab: &str) -> Settings {
    let below = |folder: &str| Path::new(folder).join("aksnet").join(lab);
    Settings {
        lab: lab.to_owned(),
        nodes: Nodes::Kubernetes,
        state_dir: below("/var/lib"),
        run_dir: below("/run"),
        log_dir: below("/var/log"),
        cache_dir: PathBuf::from("/var/cache/aksnet"),
        kubernetes: cluster::install::DEFAULT_VERSION.to_owned(),
    }
}

fn down(lab: &str) -> Result<(), Box<dyn Error>> {
    let settings = settings(lab);
    daemon::clusters::down(lab, &settings.run_dir)?;
    daemon::fabric::down(lab)?;
    for folder in [settings.state_dir, settings.run_dir, settings.log_dir] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

async fn up(lab: &str, count: u32) -> Result<(), Box<dyn Error>> {
    let settings = settings(lab);
    std::fs::create_dir_all(&settings.state_dir)?;
    let store = Store::open(&settings.state_dir.join("region.redb"))?;
    let clusters = Clusters::new(settings.clone());
    let id = ask(&store, count)?;
    let began = Instant::now();
    let watching = async {
        while store.snapshot().running_write(&id).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        eprintln!("real after {:?}", began.elapsed());
        let kubeconfig = clusters.credentials(&id).unwrap_or_default();
        let path = settings.state_dir.join("kubeconfig");
        if let Err(err) = std::fs::write(&path, kubeconfig) {
            eprintln!("{}: {err}", path.display());
        }
        eprintln!("KUBECONFIG={}", path.display());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = daemon::fabric::run(store.clone(), lab.to_owned()) => {}
        () = clusters.run(store.clone()) => {}
        () = watching => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// Asks for a virtual network and a cluster in it.
fn ask(store: &Store, count: u32) -> Result<ArmId, Box<dyn Error>> {
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "rg");
    let vnet = group.sibling("Microsoft.Network/virtualNetworks", "vnet");
    let subnet = vnet.child("subnets", "nodes");
    let id = group.sibling("Microsoft.ContainerService/managedClusters", "demo");
    let common = |id: &ArmId| Common {
        id: id.clone(),
        location: Some("eastus".to_owned()),
        tags: None,
        kept: std::collections::BTreeMap::new(),
    };
    let commands = [
        Command::PutGroup {
            id: group.clone(),
            location: "eastus".to_owned(),
            tags: std::collections::BTreeMap::new(),
        },
        Command::PutVnet {
            common: common(&vnet),
            prefixes: vec!["10.224.0.0/12".parse()?],
            subnets: Some(vec![PutSubnet {
                name: Name::new("nodes"),
                prefix: "10.224.0.0/16".parse()?,
                route_table: None,
                delegations: Vec::new(),
                private_endpoint_network_policies: None,
                private_link_service_network_policies: None,
                kept: std::collections::BTreeMap::new(),
            }]),
        },
        Command::PutCluster {
            common: common(&id),
            cluster: PutCluster {
                version: Some(cluster::install::DEFAULT_VERSION.to_owned()),
                dns_prefix: Some("demo".to_owned()),
                node_group: None,
                mode: Some(NetworkMode::None),
                pod_cidr: Some("10.244.0.0/16".parse()?),
                service_cidr: None,
                dns_service_ip: None,
                outbound: None,
                pools: vec![PutPool {
                    name: Name::new("nodepool1"),
                    mode: None,
                    count: Some(count),
                    max_pods: None,
                    subnet: Some(subnet),
                    pod_subnet: None,
                    version: None,
                    vm_size: None,
                    labels: None,
                    taints: None,
                    max_surge: None,
                    autoscale: None,
                    kept: std::collections::BTreeMap::new(),
                }],
            },
        },
    ];
    for command in commands {
        store.change(command, now())?;
    }
    Ok(id)
}

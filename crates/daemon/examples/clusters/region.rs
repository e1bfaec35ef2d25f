//! A region with one cluster, and where its programs are. Used by the example and by the tests of the
//! clusters' loop.

use std::{collections::BTreeMap, error::Error, path::PathBuf};

use daemon::reconcile::now;
use store::Store;
use vnet::{
    command::{Command, Common, PutCluster, PutPool, PutSubnet},
    model::NetworkMode,
    name::{ArmId, Name},
};

/// Where `make` keeps Kubernetes' programs and images.
pub(crate) fn cache_dir() -> PathBuf {
    std::env::var_os("AKSNET_CACHE").map_or_else(|| "/var/cache/aksnet".into(), PathBuf::from)
}

/// Asks for a virtual network and a cluster in it, of so many nodes, that brings its own CNI.
pub(crate) fn ask(store: &Store, count: u32) -> Result<ArmId, Box<dyn Error>> {
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "rg");
    let vnet = group.sibling("Microsoft.Network/virtualNetworks", "vnet");
    let subnet = vnet.child("subnets", "nodes");
    let id = group.sibling("Microsoft.ContainerService/managedClusters", "demo");
    let common = |id: &ArmId| Common {
        id: id.clone(),
        location: Some("eastus".to_owned()),
        tags: None,
        kept: BTreeMap::new(),
    };
    let commands = [
        Command::PutGroup {
            id: group.clone(),
            location: "eastus".to_owned(),
            tags: BTreeMap::new(),
        },
        Command::PutVnet {
            common: common(&vnet),
            prefixes: vec!["10.224.0.0/12".parse()?],
            subnets: Some(vec![PutSubnet {
                prefix6: None,
                security_group: None,
                nat_gateway: None,
                default_outbound: None,
                name: Name::new("nodes"),
                prefix: "10.224.0.0/16".parse()?,
                route_table: None,
                delegations: Vec::new(),
                private_endpoint_network_policies: None,
                private_link_service_network_policies: None,
                kept: BTreeMap::new(),
            }]),
        },
        Command::PutCluster {
            common: common(&id),
            cluster: PutCluster {
                version: Some(cluster::install::DEFAULT_VERSION.to_owned()),
                dns_prefix: Some("demo".to_owned()),
                mode: Some(NetworkMode::None),
                pod_cidr: Some("10.244.0.0/16".parse()?),
                pools: vec![PutPool {
                    count: Some(count),
                    subnet: Some(subnet),
                    ..PutPool::new(Name::new("nodepool1"))
                }],
                ..PutCluster::default()
            },
        },
    ];
    for command in commands {
        store.change(command, now())?;
    }
    Ok(id)
}

//! Kubenet's routes of clusters that have no API server: what `nodes` does for those that have.
//!
//! All changes of a table go in one request, as cloud-provider-azure gathers them
//! (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_routes.go`, `delayedRouteUpdater`).

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use store::Store;
use tokio::sync::watch;
use vnet::{
    model::{Cluster, NetworkMode, ProvisioningState},
    name::ArmId,
    region::Region,
};

use super::{
    Arm, ControllerError, RESYNC, arm,
    nodes::{is_node_route, node_routes},
};
use crate::reconcile;

/// Makes every kubenet cluster's route table hold one route per node and family, until `store` is gone. Cancel by dropping.
pub async fn run(store: Store, arm: Arc<dyn Arm>) {
    let (changed, wake) = watch::channel(());
    let mut region = store.watch();
    let ring = async {
        while region.changed().await.is_ok() {
            changed.send_replace(());
        }
    };
    let pass = || {
        let (store, arm) = (store.clone(), arm.clone());
        async move { pass(&store.snapshot(), &*arm).await }
    };
    tokio::select! {
        () = ring => {}
        () = reconcile::run("routes", pass, wake, RESYNC) => {}
    }
}

async fn pass(region: &Region, arm: &dyn Arm) -> Result<(), ControllerError> {
    let clusters = region.clusters.values().filter(|cluster| {
        cluster.mode == NetworkMode::Kubenet && cluster.meta.state != ProvisioningState::Deleting
    });
    for cluster in clusters {
        let Some(table) = &cluster.route_table else { continue };
        let wanted = wanted(region, cluster);
        if is_as_wanted(region, table, &wanted) {
            continue;
        }
        let failed = |action: &str| {
            let action = format!("{action} route table {}", table.name());
            move |source| ControllerError::Azure { action, source }
        };
        let mut body = arm::get(arm, table.as_str()).await.map_err(failed("reading"))?;
        let routes = &mut body["properties"]["routes"];
        let others = routes.as_array().into_iter().flatten();
        let others =
            others.filter(|route| !is_node_route(route["name"].as_str().unwrap_or_default()));
        let ours = wanted.iter().map(|(name, (range, address))| {
            json!({ "name": name, "properties": {
                "addressPrefix": range, "nextHopType": "VirtualAppliance", "nextHopIpAddress": address } })
        });
        *routes = others.cloned().chain(ours).collect::<Vec<Value>>().into();
        arm::put(arm, table.as_str(), body).await.map_err(failed("writing"))?;
    }
    Ok(())
}

/// Range and next hop of each node's route, by its name.
type Routes = BTreeMap<String, (String, String)>;

fn wanted(region: &Region, cluster: &Cluster) -> Routes {
    let nodes = region.nodes_of(&cluster.meta.id).into_iter();
    let staying = nodes.filter(|machine| machine.meta.state != ProvisioningState::Deleting);
    staying.flat_map(|machine| node_routes(region, machine)).collect()
}

/// Looks before it asks: most changes of a region are none of a route.
fn is_as_wanted(region: &Region, table: &ArmId, wanted: &Routes) -> bool {
    let Some(table) = region.route_tables.get(table) else { return true };
    let has: Routes = table
        .routes
        .values()
        .filter(|route| is_node_route(route.name.as_str()))
        .map(|route| {
            let address = match route.next_hop {
                vnet::model::NextHop::VirtualAppliance(address) => address.to_string(),
                _ => String::new(),
            };
            (route.name.to_string(), (route.prefix.to_string(), address))
        })
        .collect();
    has == *wanted
}

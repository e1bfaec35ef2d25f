//! What resources answer beyond being read and written: `POST` actions and questions.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::json;
use vnet::{command::Command, fault::Fault, name::ArmId};

use super::{deployments, operations, resources, target::Kind, watcher, wrong_method};
use crate::{
    answer::{Answer, Reply},
    call::Call,
    door::Nodes,
    findings::{any_address, missing},
    refuse::{NOT_SUPPORTED, unsupported},
    wire::{cluster, machine, nic, vnet as wire_vnet},
};

/// Answers a word after a resource's id; `word` is in lower case.
pub(super) fn answer(call: &Call<'_>, kind: Kind, id: &ArmId, word: &str) -> Answer {
    let region = call.region();
    match (&call.method, kind, word) {
        (&Method::GET, Kind::Vnet, "checkipaddressavailability") => availability(call, id),
        (&Method::GET, Kind::Vnet, "usages") => {
            let vnet = region.vnets.get(id);
            let vnet = vnet.ok_or_else(|| resources::not_found(&region, kind, id))?;
            Ok(Reply::list(wire_vnet::render_usages(vnet)))
        }
        (&Method::GET, Kind::Vm, "instanceview") => {
            let machine = region.machines.get(id);
            let machine = machine.ok_or_else(|| resources::not_found(&region, kind, id))?;
            Ok(Reply::ok(machine::instance_view(machine)))
        }
        (&Method::GET, Kind::Balancer, "networkinterfaces") => balancer_nics(call, id),
        (&Method::GET, Kind::ScaleSet, "networkinterfaces") => scale_set_nics(call, id),
        (&Method::POST, Kind::Cluster, "listclusterusercredential") => {
            credential(call, id, "clusterUser")
        }
        (&Method::POST, Kind::Cluster, "listclusteradmincredential") => {
            credential(call, id, "clusterAdmin")
        }
        (&Method::GET, Kind::Cluster, "upgradeprofiles") => {
            let cluster = region.clusters.get(id);
            let cluster = cluster.ok_or_else(|| resources::not_found(&region, kind, id))?;
            Ok(Reply::ok(cluster::render_upgrades(&call.view(&region), cluster)))
        }
        (&Method::GET, Kind::Pool, "upgradeprofiles") => {
            let (cluster, pool) =
                region.pool(id).ok_or_else(|| resources::not_found(&region, kind, id))?;
            Ok(Reply::ok(cluster::render_pool_upgrades(&call.view(&region), cluster, pool)))
        }
        (&Method::POST, Kind::Pool, "upgradenodeimageversion") => {
            resources::shown(call, kind, id)?;
            begin(call, id, Command::UpgradeNodeImage { id: id.clone() })
        }
        (&Method::POST, Kind::Nic | Kind::InstanceNic, "effectivenetworksecuritygroups") => {
            watcher::effective_groups(call, kind, id)
        }
        (&Method::POST, Kind::Nic | Kind::InstanceNic, "effectiveroutetable") => {
            watcher::effective_routes(call, kind, id)
        }
        (_, Kind::Deployment, word) => deployments::word(call, id, word),
        (&Method::POST, kind, word) => {
            if kind == Kind::Watcher
                && let Some(answer) = watcher::ask(call, id, word)
            {
                return answer;
            }
            resources::shown(call, kind, id)?;
            Err(unsupported(NOT_SUPPORTED, refused(word)))
        }
        // `az network watcher flow-log`: none, and none to be made.
        (&Method::GET, Kind::Watcher, "flowlogs") => {
            resources::shown(call, kind, id)?;
            Ok(Reply::list(Vec::new()))
        }
        (&Method::GET, kind, _) => {
            resources::shown(call, kind, id)?;
            let message = format!("'{word}' is nothing that {} answers.", id.kind());
            Err(Fault::new(404, "InvalidResourceType", message))
        }
        _ => Err(wrong_method(call)),
    }
}

/// Begins what takes time: 202, and a client polls.
fn begin(call: &Call<'_>, id: &ArmId, command: Command) -> Answer {
    let location = resources::location_of(call, id);
    let accepted = call.change(command)?;
    Ok(match accepted.operation {
        Some(operation) => operations::accepted(call, id, &location, operation),
        None => Reply::empty(StatusCode::NO_CONTENT),
    })
}

/// What an action would do, for its refusal.
fn refused(word: &str) -> &str {
    match word {
        "stop" | "start" | "deallocate" | "poweroff" => "stopping and starting",
        "rotateclustercertificates" => "rotation of a cluster's certificates",
        "runcommand" => "commands run in a cluster",
        other => other,
    }
}

fn availability(call: &Call<'_>, id: &ArmId) -> Answer {
    let text = call.query.get("ipaddress").ok_or_else(|| missing("ipAddress"))?;
    let address = any_address(text, "ipAddress")?;
    let region = call.region();
    let found = region.address_availability(id, address);
    let found = found.ok_or_else(|| resources::not_found(&region, Kind::Vnet, id))?;
    let mut body = json!({ "available": found.available });
    if !found.available {
        body["availableIPAddresses"] = json!(found.alternatives);
    }
    body["isPlatformReserved"] = json!(found.is_platform_reserved);
    Ok(Reply::ok(body))
}

fn credential(call: &Call<'_>, id: &ArmId, name: &str) -> Answer {
    let region = call.region();
    let cluster = region.clusters.get(id);
    let cluster = cluster.ok_or_else(|| resources::not_found(&region, Kind::Cluster, id))?;
    let Some(kubeconfig) = call.door().credentials.kubeconfig(&cluster.meta.id) else {
        let why = match call.door().nodes {
            Nodes::NetworkOnly => {
                "is not there: the nodes of this lab are network-only, no API server runs. \
                 `aksnet pod run` makes pods"
            }
            Nodes::Simulated => {
                "is not there: the nodes of this lab are simulated, no API server runs"
            }
            Nodes::Kubernetes => "is not there yet. Please retry when the cluster is ready",
        };
        let message = format!("The kubeconfig of managed cluster {} {why}.", id.name());
        return Err(Fault::conflict("OperationNotAllowed", message));
    };
    let value = STANDARD.encode(kubeconfig);
    Ok(Reply::ok(json!({ "kubeconfigs": [{ "name": name, "value": value }] })))
}

fn balancer_nics(call: &Call<'_>, id: &ArmId) -> Answer {
    let region = call.region();
    let view = call.view(&region);
    let balancer = region.balancers.get(id);
    let balancer = balancer.ok_or_else(|| resources::not_found(&region, Kind::Balancer, id))?;
    let mut members: Vec<&ArmId> = balancer.pools.values().flat_map(|pool| &pool.members).collect();
    members.sort();
    members.dedup();
    let nics = members.into_iter().filter_map(|id| region.nics.get(id));
    Ok(Reply::list(nics.map(|it| nic::render(&view, it)).collect()))
}

fn scale_set_nics(call: &Call<'_>, id: &ArmId) -> Answer {
    let region = call.region();
    let view = call.view(&region);
    let instances = machine::instances(&view, id);
    if instances.is_empty() {
        return Err(resources::not_found(&region, Kind::ScaleSet, id));
    }
    let nics = instances.into_iter().filter_map(|machine| region.nics.get(&machine.nic));
    Ok(Reply::list(nics.map(|it| nic::render(&view, it)).collect()))
}

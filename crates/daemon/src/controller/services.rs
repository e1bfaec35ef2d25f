//! `type: LoadBalancer` Services (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::{Value, json};
use vnet::{
    addr::{Family, Prefix},
    model::{Cluster as Managed, Role},
    name::ArmId,
};

use super::{
    Cluster, ControllerError, admission, arm,
    arm::ArmError,
    balancers::{self, FrontEnd, Members, Place, Wanted, annotations::Annotations},
    full_name, kubernetes, reference,
};

mod public_ips;

/// Keeps a Service until its load balancer is gone.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Brings every Service's load balancer about. One that cannot be had gets an event, and does not hold up the others.
pub(super) async fn pass(cluster: &Cluster) -> Result<(), ControllerError> {
    let region = cluster.store.snapshot();
    let Some(managed) = region.clusters.get(&cluster.id).cloned() else { return Ok(()) };
    let mut services = cluster.services.state();
    services.sort_by_key(|service| {
        (service.metadata.creation_timestamp.clone(), full_name(service.as_ref()))
    });
    warn(cluster, &services).await;
    let mut failed = None;
    let mut balanced = Vec::new();
    for service in services {
        let done = if is_wanted(&service) {
            let done = ensure(cluster, &managed, &service).await;
            done.map(|done| balanced.extend(done.map(|done| (service.clone(), done))))
        } else if service.finalizers().iter().any(|name| name == FINALIZER) {
            remove(cluster, &managed, &service).await
        } else {
            continue;
        };
        if let Err(error) = done {
            failed_sync(cluster, &service, &error).await;
            // Who has an address keeps what lets its users in.
            let addresses = balancers::shown(&service);
            if is_wanted(&service) && !addresses.is_empty() {
                let is_internal = Wanted::of(&service).internal;
                let state = State::Same;
                balanced.push((service.clone(), Balanced { addresses, is_internal, state }));
            }
            failed.get_or_insert(error);
        }
    }
    tell_of_hosts(cluster, &balanced).await;
    // Nobody hears of an address before its users may use it.
    let addresses: Vec<(&Service, &[IpAddr])> = balanced
        .iter()
        .map(|(service, balanced)| (service.as_ref(), balanced.addresses.as_slice()))
        .collect();
    let admitted = admission::admit(cluster, &managed, &addresses).await;
    for ((service, balanced), admitted) in balanced.iter().zip(admitted) {
        let done = match admitted {
            Ok(()) if balanced.state == State::New => {
                publish(cluster, service, &balanced.addresses).await
            }
            other => other,
        };
        if let Err(error) = done {
            failed_sync(cluster, service, &error).await;
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A Service that its load balancer serves.
struct Balanced {
    /// One of each of its families, IPv4 first.
    addresses: Vec<IpAddr>,
    is_internal: bool,
    state: State,
}

/// What a pass has done for a Service that its load balancer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing.
    Same,
    /// It has other nodes behind it; it shares them with all of its balancer.
    NewHosts,
    /// Its addresses have yet to be shown.
    New,
}

/// Tells the users of Services whose nodes are others now, and nothing else.
async fn tell_of_hosts(cluster: &Cluster, balanced: &[(Arc<Service>, Balanced)]) {
    let changed: BTreeSet<bool> = balanced
        .iter()
        .filter(|(_, it)| it.state == State::NewHosts)
        .map(|(_, it)| it.is_internal)
        .collect();
    for (service, it) in balanced {
        if it.state != State::New && changed.contains(&it.is_internal) {
            let note = "Updated load balancer with new hosts";
            cluster.event(service.as_ref(), EventType::Normal, "UpdatedLoadBalancer", note).await;
        }
    }
}

/// Says once which annotations of a Service have no effect here.
async fn warn(cluster: &Cluster, services: &[Arc<Service>]) {
    const NEVER_POISONED: &str = "nothing panics while it holds what was warned of";
    let mut warned = BTreeMap::new();
    for service in services.iter().filter(|service| is_wanted(service)) {
        let Some(uid) = service.uid() else { continue };
        let known = cluster.warned.lock().expect(NEVER_POISONED).get(&uid).cloned();
        let known: BTreeSet<String> = known.unwrap_or_default();
        let without_effect = Annotations::of(service).without_effect();
        for (name, why) in without_effect.iter().filter(|(name, _)| !known.contains(name)) {
            let note = format!("Annotation {name} has no effect: {why}");
            cluster
                .event(service.as_ref(), EventType::Warning, "AnnotationWithoutEffect", &note)
                .await;
        }
        let names: BTreeSet<String> = without_effect.into_iter().map(|(name, _)| name).collect();
        if !names.is_empty() {
            warned.insert(uid, names);
        }
    }
    *cluster.warned.lock().expect(NEVER_POISONED) = warned;
}

async fn failed_sync(cluster: &Cluster, service: &Service, error: &ControllerError) {
    let text = crate::reconcile::Chain(error).to_string();
    let note = format!("Error syncing load balancer: failed to ensure load balancer: {text}");
    cluster.event(service, EventType::Warning, "SyncLoadBalancerFailed", &note).await;
}

fn is_wanted(service: &Service) -> bool {
    let type_ = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_ref());
    type_ == Some("LoadBalancer")
        && class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

fn balancer_id(managed: &Managed, internal: bool) -> ArmId {
    let name = if internal { "kubernetes-internal" } else { "kubernetes" };
    managed.node_group.sibling("Microsoft.Network/loadBalancers", name)
}

pub(super) fn azure(action: impl Into<String>) -> impl FnOnce(ArmError) -> ControllerError {
    let action = action.into();
    move |source| ControllerError::Azure { action, source }
}

/// The load balancer as it is; null when there is none.
async fn read(cluster: &Cluster, id: &ArmId) -> Result<Value, ControllerError> {
    match arm::get(&*cluster.arm, id.as_str()).await {
        Ok(body) => Ok(body),
        Err(error) if error.is_not_found() => Ok(Value::Null),
        Err(error) => Err(azure(format!("reading load balancer {}", id.name()))(error)),
    }
}

async fn ensure(
    cluster: &Cluster,
    managed: &Managed,
    service: &Service,
) -> Result<Option<Balanced>, ControllerError> {
    let wanted = Wanted::of(service);
    let refused = |why| ControllerError::Refused { why };
    // First of all: what is made must not outlive a Service that goes in between.
    keep(cluster, service).await?;
    let additional = wanted.annotations.additional_addresses().map_err(refused)?;
    let members = members(cluster, managed);
    let id = balancer_id(managed, wanted.internal);
    let context = format!("ensure({}): lb({})", full_name(service), id.name());
    let mut front_ends = BTreeMap::new();
    for family in &wanted.families {
        let front_end = front_end(cluster, managed, &wanted, *family, &context).await?;
        front_ends.insert(*family, front_end);
    }
    let current = read(cluster, &id).await?;
    let place =
        Place { id: id.as_str(), location: &managed.meta.location, outbound: managed.outbound };
    let body = balancers::with(place, &current, &wanted, &front_ends, &members).map_err(refused)?;

    // All of them or none: whoever asks for two addresses is not served by one.
    let addresses_in = |current: &Value| {
        let address = |(family, front_end): (&Family, &FrontEnd)| match front_end {
            FrontEnd::Internal { .. } => balancers::address(current, &wanted, *family, front_end),
            FrontEnd::Public { address, .. } => Some(*address),
        };
        let own = front_ends.iter().map(address).collect::<Option<Vec<IpAddr>>>();
        own.map(|own| own.into_iter().chain(additional.iter().copied()).collect::<Vec<IpAddr>>())
    };
    let shown = balancers::shown(service);
    if body.is_none() && addresses_in(&current).as_ref() == Some(&shown) {
        let state = State::Same;
        return Ok(Some(Balanced { addresses: shown, is_internal: wanted.internal, state }));
    }
    let is_of_members = body.as_ref().is_some_and(|it| balancers::is_of_members(&current, it))
        && addresses_in(&current).as_ref() == Some(&shown);
    if !is_of_members {
        let note = "Ensuring load balancer";
        cluster.event(service, EventType::Normal, "EnsuringLoadBalancer", note).await;
    }
    if wanted.families.iter().all(|family| members.get(family).is_none_or(Vec::is_empty)) {
        let note = "There are no available nodes for LoadBalancer";
        cluster.event(service, EventType::Warning, "UnAvailableLoadBalancer", note).await;
    }
    let before = current.clone();
    let current = match body {
        Some(body) => arm::put(&*cluster.arm, id.as_str(), body).await.map_err(azure(context))?,
        None => current,
    };
    let is_internal = wanted.internal;
    if is_of_members {
        let state = State::NewHosts;
        return Ok(Some(Balanced { addresses: shown, is_internal, state }));
    }
    // A Service that was public and is internal now, or the other way, leaves its old balancer once it has the new one.
    take_out(cluster, managed, &wanted, !wanted.internal).await?;
    if !wanted.internal {
        let has: Vec<&str> = front_ends.values().filter_map(FrontEnd::public_ip).collect();
        let groups = public_ip_groups(managed, &wanted, &before);
        public_ips::give_back(cluster, &wanted, &groups, &has).await?;
    }
    let state = State::New;
    Ok(addresses_in(&current).map(|addresses| Balanced { addresses, is_internal, state }))
}

/// Makes a Service stay until its load balancer is gone.
async fn keep(cluster: &Cluster, service: &Service) -> Result<(), ControllerError> {
    if service.finalizers().iter().any(|name| name == FINALIZER) {
        return Ok(());
    }
    let api: Api<Service> =
        Api::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
    let mut finalizers = service.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let patch = json!({ "metadata": { "finalizers": finalizers } });
    api.patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(kubernetes("adding the finalizer"))?;
    Ok(())
}

/// The resource groups that public IPs of a Service may be in, given the load balancer before it was changed.
fn public_ip_groups(managed: &Managed, wanted: &Wanted, balancer: &Value) -> BTreeSet<ArmId> {
    let had = balancers::front_ends::public_ips(balancer, wanted);
    let had = had.filter_map(|id| Some(id.parse::<ArmId>().ok()?.resource_group_id()));
    let now = [managed.node_group.resource_group_id(), wanted.public_ip_group(&managed.node_group)];
    had.chain(now).collect()
}

/// Shows a Service's addresses.
async fn publish(
    cluster: &Cluster,
    service: &Service,
    addresses: &[IpAddr],
) -> Result<(), ControllerError> {
    let api: Api<Service> =
        Api::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
    let ingress: Vec<Value> =
        addresses.iter().map(|address| json!({ "ip": address, "ipMode": "VIP" })).collect();
    let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
    api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(kubernetes(format!("writing the address of service {}", full_name(service))))?;
    cluster.event(service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer").await;
    Ok(())
}

/// Finds or makes what a family's front end stands on: a subnet, or a public IP.
async fn front_end(
    cluster: &Cluster,
    managed: &Managed,
    wanted: &Wanted,
    family: Family,
    context: &str,
) -> Result<FrontEnd, ControllerError> {
    if wanted.internal {
        let first = || managed.pools_in_order().first().map(|pool| pool.subnet.clone());
        let subnet = match &wanted.subnet {
            Some(name) => managed.vnet.child("subnets", name),
            None => first().unwrap_or_else(|| managed.vnet.child("subnets", "aks-subnet")),
        };
        let missing =
            format!("{context} - failed to get subnet: {}/{}", managed.vnet.name(), subnet.name());
        let body = arm::get(&*cluster.arm, subnet.as_str()).await.map_err(azure(missing))?;
        let id = body["id"].as_str().unwrap_or(subnet.as_str()).to_owned();
        return Ok(FrontEnd::Internal { subnet: id, prefixes: prefixes(&body) });
    }
    public_ips::ensure(cluster, managed, wanted, family, context).await
}

/// The prefixes of a subnet.
fn prefixes(subnet: &Value) -> Vec<Prefix> {
    let properties = &subnet["properties"];
    let several = properties["addressPrefixes"].as_array().into_iter().flatten();
    let all = std::iter::once(&properties["addressPrefix"]).chain(several);
    all.filter_map(|text| text.as_str()?.parse().ok()).collect()
}

/// The NICs' first IP configurations of each family, of every node that may be balanced to.
fn members(cluster: &Cluster, managed: &Managed) -> Members {
    let region = cluster.store.snapshot();
    let nodes = region
        .machines
        .values()
        .filter(|machine| match &machine.role {
            Role::Node(role) => role.cluster == managed.meta.id,
            Role::Vm => false,
        })
        .filter(|machine| {
            cluster.nodes.get(&reference(&machine.hostname)).is_some_and(|node| {
                !node.labels().contains_key(EXCLUDED) && node.metadata.deletion_timestamp.is_none()
            })
        });
    let mut members = Members::new();
    for nic in nodes.filter_map(|machine| region.nics.get(&machine.nic)) {
        for family in [Family::V4, Family::V6] {
            if let Some(config) = nic.config_of(family) {
                let id = format!("{}/ipConfigurations/{}", nic.meta.id, config.name);
                members.entry(family).or_default().push(id);
            }
        }
    }
    for ids in members.values_mut() {
        ids.sort();
    }
    members
}

/// Takes a Service out of the internal or the public balancer, and removes that balancer when it was the last.
async fn take_out(
    cluster: &Cluster,
    managed: &Managed,
    wanted: &Wanted,
    internal: bool,
) -> Result<(), ControllerError> {
    let id = balancer_id(managed, internal);
    let current = read(cluster, &id).await?;
    let doing = || azure(format!("taking service {} out of {}", wanted.full_name, id.name()));
    match balancers::without(&current, wanted) {
        None => {}
        // The public one has the front ends of a cluster's way out, where it is that.
        Some(body) if balancers::is_unused(&body) => {
            arm::delete(&*cluster.arm, id.as_str()).await.map_err(doing())?;
        }
        Some(body) => {
            arm::put(&*cluster.arm, id.as_str(), body).await.map_err(doing())?;
        }
    }
    if !internal {
        let groups = public_ip_groups(managed, wanted, &current);
        public_ips::give_back(cluster, wanted, &groups, &[]).await?;
    }
    Ok(())
}

async fn remove(
    cluster: &Cluster,
    managed: &Managed,
    service: &Service,
) -> Result<(), ControllerError> {
    let wanted = Wanted::of(service);
    cluster
        .event(service, EventType::Normal, "DeletingLoadBalancer", "Deleting load balancer")
        .await;
    take_out(cluster, managed, &wanted, true).await?;
    take_out(cluster, managed, &wanted, false).await?;
    cluster.event(service, EventType::Normal, "DeletedLoadBalancer", "Deleted load balancer").await;
    let api: Api<Service> =
        Api::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
    if service.metadata.deletion_timestamp.is_none() {
        let patch = json!({ "status": { "loadBalancer": { "ingress": null } } });
        api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(kubernetes("clearing the address"))?;
    }
    let rest: Vec<&String> =
        service.finalizers().iter().filter(|name| *name != FINALIZER).collect();
    let patch = json!({ "metadata": { "finalizers": rest } });
    match api.patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(kubernetes("removing the finalizer")(error)),
    }
}

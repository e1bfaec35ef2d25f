//! `type: LoadBalancer` Services (kubernetes-sigs/cloud-provider-azure, `pkg/provider/azure_loadbalancer.go`).

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::{Value, json};
use vnet::{
    model::{Cluster as Managed, Role},
    name::ArmId,
};

use super::{
    Cluster, ControllerError, admission, arm,
    arm::ArmError,
    balancers::{self, FrontEnd, Wanted},
    full_name, kubernetes, reference,
};

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
            if is_wanted(&service)
                && let Some(address) = shown_address(&service)
            {
                balanced.push((service.clone(), Balanced { address, is_new: false }));
            }
            failed.get_or_insert(error);
        }
    }
    // Nobody hears of an address before its users may use it.
    let addresses: Vec<(&Service, &str)> = balanced
        .iter()
        .map(|(service, balanced)| (service.as_ref(), balanced.address.as_str()))
        .collect();
    let admitted = admission::admit(cluster, &managed, &addresses).await;
    for ((service, balanced), admitted) in balanced.iter().zip(admitted) {
        let done = match admitted {
            Ok(()) if balanced.is_new => publish(cluster, service, &balanced.address).await,
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
    address: String,
    /// Whether its address has yet to be shown.
    is_new: bool,
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

/// The families of a Service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Families {
    Ipv4,
    Ipv6,
    Both,
}

fn families(service: &Service) -> Families {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref());
    let has = |family: &str| families.is_some_and(|all| all.iter().any(|it| it == family));
    match (has("IPv4"), has("IPv6")) {
        (true, true) => Families::Both,
        (false, true) => Families::Ipv6,
        (_, false) => Families::Ipv4,
    }
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
    let families = families(service);
    if families == Families::Ipv6 {
        return Err(ControllerError::Family { service: full_name(service) });
    }
    let wanted = Wanted::of(service);
    let members = members(cluster, managed);
    let id = balancer_id(managed, wanted.internal);
    let context = format!("ensure({}): lb({})", full_name(service), id.name());
    let current = read(cluster, &id).await?;
    let front_end = front_end(cluster, managed, &wanted, &context).await?;
    let body = balancers::with(
        id.as_str(),
        &current,
        &wanted,
        &front_end,
        &members,
        &managed.meta.location,
    );

    let address_in = |current: &Value| match &front_end {
        FrontEnd::Internal { .. } => balancers::address(current, &wanted),
        FrontEnd::Public { address, .. } => Some(address.clone()),
    };
    if body.is_none()
        && let Some(address) = shown_address(service)
        && address_in(&current).as_ref() == Some(&address)
    {
        return Ok(Some(Balanced { address, is_new: false }));
    }
    cluster
        .event(service, EventType::Normal, "EnsuringLoadBalancer", "Ensuring load balancer")
        .await;
    if families == Families::Both {
        let note = "The load balancer has a front end of IPv4 only: those of IPv6 are not supported by this version of aksnet yet";
        cluster.event(service, EventType::Warning, "UnsupportedIPFamily", note).await;
    }
    if members.is_empty() {
        let note = "There are no available nodes for LoadBalancer";
        cluster.event(service, EventType::Warning, "UnAvailableLoadBalancer", note).await;
    }
    let api: Api<Service> =
        Api::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
    if !service.finalizers().iter().any(|name| name == FINALIZER) {
        let mut finalizers = service.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        api.patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(kubernetes("adding the finalizer"))?;
    }
    // A Service that was public and is internal now, or the other way, leaves its old balancer.
    take_out(cluster, managed, &wanted, !wanted.internal).await?;
    let current = match body {
        Some(body) => arm::put(&*cluster.arm, id.as_str(), body).await.map_err(azure(context))?,
        None => current,
    };
    Ok(address_in(&current).map(|address| Balanced { address, is_new: true }))
}

/// Shows a Service's address.
async fn publish(
    cluster: &Cluster,
    service: &Service,
    address: &str,
) -> Result<(), ControllerError> {
    let api: Api<Service> =
        Api::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
    let patch = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address, "ipMode": "VIP" }] } } });
    api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(kubernetes(format!("writing the address of service {}", full_name(service))))?;
    cluster.event(service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer").await;
    Ok(())
}

/// Finds or makes what the front end stands on: a subnet, or a public IP.
async fn front_end(
    cluster: &Cluster,
    managed: &Managed,
    wanted: &Wanted,
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
        return Ok(FrontEnd::Internal { subnet: id });
    }
    let name = format!("kubernetes-{}", wanted.base);
    let id = managed.node_group.sibling("Microsoft.Network/publicIPAddresses", &name);
    let body = match arm::get(&*cluster.arm, id.as_str()).await {
        Err(error) if error.is_not_found() => {
            let body = json!({ "location": managed.meta.location, "sku": { "name": "Standard" },
                "tags": { "k8s-azure-service": wanted.full_name, "k8s-azure-cluster-name": "kubernetes" },
                "properties": { "publicIPAllocationMethod": "Static" } });
            arm::put(&*cluster.arm, id.as_str(), body).await
        }
        answer => answer,
    };
    let body = body.map_err(azure(format!("{context} - public IP {name}")))?;
    let address = body["properties"]["ipAddress"].as_str().unwrap_or_default().to_owned();
    Ok(FrontEnd::Public { public_ip: id.as_str().to_owned(), address })
}

/// The NICs' first IP configurations of every node that may be balanced to.
fn members(cluster: &Cluster, managed: &Managed) -> Vec<String> {
    let region = cluster.store.snapshot();
    let mut members: Vec<String> = region
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
        })
        .filter_map(|machine| {
            let nic = region.nics.get(&machine.nic)?;
            Some(format!("{}/ipConfigurations/{}", nic.meta.id, nic.configs.first()?.name))
        })
        .collect();
    members.sort();
    members
}

fn shown_address(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.clone()
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
        Some(body) if internal && balancers::is_unused(&body) => {
            arm::delete(&*cluster.arm, id.as_str()).await.map_err(doing())?;
        }
        Some(body) => {
            arm::put(&*cluster.arm, id.as_str(), body).await.map_err(doing())?;
        }
    }
    if !internal {
        let name = format!("kubernetes-{}", wanted.base);
        let ip = managed.node_group.sibling("Microsoft.Network/publicIPAddresses", &name);
        arm::delete(&*cluster.arm, ip.as_str()).await.map_err(doing())?;
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

//! Reading, writing, listing and removing resources of any type. Not here: their shapes (see `wire`).

use std::sync::Arc;

use ::vnet::{
    command::{Command, Outcome},
    fault::Fault,
    name::{ArmId, Name},
    region::Region,
};
use http::{
    HeaderName, Method, StatusCode,
    header::{IF_MATCH, IF_NONE_MATCH},
};
use serde_json::Value;

use super::{
    actions, deployments, groups, is_read, operations,
    target::{Kind, Target, Within},
    watcher, wrong_method,
};
use crate::{
    answer::{Answer, Reply},
    call::{ApiVersion, Call},
    refuse::{NOT_SUPPORTED, unsupported},
    wire::{
        Asked, View, application_group, balancer, cluster, machine, nat_gateway, nic, peering,
        pool, public_ip, public_ip_prefix, route_table, security_group, subnet, vnet,
    },
};

/// Answers a request for a resource, for a list, or for something that a resource answers.
pub(super) fn answer(call: &Call<'_>, target: &Target) -> Answer {
    match target {
        Target::One { kind: Kind::Deployment, id } => deployments::answer(call, id),
        Target::One { kind, id } => one(call, *kind, id),
        Target::All { kind, within } if is_read(&call.method) => list(call, *kind, within),
        Target::All { .. } => Err(wrong_method(call)),
        Target::Word { kind, id, word } => actions::answer(call, *kind, id, word),
    }
}

fn one(call: &Call<'_>, kind: Kind, id: &ArmId) -> Answer {
    match &call.method {
        method if is_read(method) => {
            let mut body = shown(call, kind, id)?;
            let expand = call.query.get("$expand");
            if kind == Kind::Vm
                && expand.is_some_and(|text| text.eq_ignore_ascii_case("instanceView"))
                && let Some(machine) = call.region().machines.get(id)
            {
                body["properties"]["instanceView"] = machine::instance_view(machine);
            }
            Ok(Reply::ok(body))
        }
        &Method::PUT => put(call, kind, id, None, None),
        &Method::PATCH => patch(call, kind, id),
        &Method::DELETE => delete(call, kind, id),
        _ => Err(wrong_method(call)),
    }
}

/// The resource as it is, or Azure's 404.
pub(super) fn shown(call: &Call<'_>, kind: Kind, id: &ArmId) -> Result<Value, Fault> {
    let region = call.region();
    let view = call.view(&region);
    render(&view, kind, id).ok_or_else(|| not_found(&region, kind, id))
}

/// The resource as a `GET` shows it.
pub(super) fn render(view: &View<'_>, kind: Kind, id: &ArmId) -> Option<Value> {
    let region = view.region;
    let name = Name::new(id.name());
    match kind {
        Kind::Vnet => region.vnets.get(id).map(|it| vnet::render(view, it)),
        Kind::Subnet => region.subnet(id).map(|(vnet, it)| subnet::render(vnet, it)),
        Kind::RouteTable => region.route_tables.get(id).map(|it| route_table::render(view, it)),
        Kind::Route => {
            let table = region.route_tables.get(&id.parent()?)?;
            table.routes.get(&name).map(|it| route_table::render_route(table, it))
        }
        Kind::SecurityGroup => {
            region.security_groups.get(id).map(|it| security_group::render(view, it))
        }
        Kind::SecurityRule => {
            let group = region.security_groups.get(&id.parent()?)?;
            group.rules.get(&name).map(|it| security_group::render_rule(group, it))
        }
        Kind::ApplicationGroup => {
            region.application_groups.get(id).map(|it| application_group::render(it))
        }
        Kind::Watcher => watcher::render(view, id),
        Kind::Peering => region.peering(id).map(|(vnet, it)| peering::render(view, vnet, it)),
        Kind::NatGateway => region.nat_gateways.get(id).map(|it| nat_gateway::render(view, it)),
        Kind::PublicIpPrefix => {
            region.public_ip_prefixes.get(id).map(|it| public_ip_prefix::render(view, it))
        }
        Kind::PublicIp => region.public_ips.get(id).map(|it| public_ip::render(it)),
        Kind::Nic | Kind::InstanceNic => region.nics.get(id).map(|it| nic::render(view, it)),
        Kind::Balancer => region.balancers.get(id).map(|it| balancer::render(view, it)),
        Kind::BackendPool => {
            balancer::render_pool(view, region.balancers.get(&id.parent()?)?, &name)
        }
        Kind::InboundRule => {
            balancer::render_inbound_rule(region.balancers.get(&id.parent()?)?, &name)
        }
        Kind::Vm => region.machines.get(id).map(|it| machine::render(it)),
        Kind::Instance => region.machines.get(id).map(|it| machine::render_instance(it)),
        Kind::ScaleSet => machine::render_scale_set(view, id),
        Kind::Cluster => region.clusters.get(id).map(|it| cluster::render(view, it)),
        Kind::Pool => region.pool(id).map(|(cluster, it)| pool::render(cluster, it)),
        Kind::Part(list) => {
            let parent = id.parent()?;
            let kind = if region.nics.contains_key(&parent) {
                Kind::Nic
            } else if region.security_groups.contains_key(&parent) {
                Kind::SecurityGroup
            } else {
                Kind::Balancer
            };
            let body = render(view, kind, &parent)?;
            let parts = body["properties"][list].as_array()?;
            let is_it =
                |part: &&Value| part["name"].as_str().is_some_and(|it| Name::new(it) == name);
            parts.iter().find(is_it).cloned()
        }
        Kind::Deployment | Kind::Refused(_) => None,
    }
}

/// Whether there is the resource group of `id`.
fn check_group(region: &Region, id: &ArmId) -> Result<(), Fault> {
    if region.groups.contains_key(&id.resource_group_id()) {
        return Ok(());
    }
    Err(Fault::new(
        404,
        "ResourceGroupNotFound",
        format!("Resource group '{}' could not be found.", id.resource_group()),
    ))
}

/// Azure's 404: for a child of something that is there it is the provider's own.
pub(super) fn not_found(region: &Region, kind: Kind, id: &ArmId) -> Fault {
    if let Err(fault) = check_group(region, id) {
        return fault;
    }
    let parent = id.parent();
    let has_parent = parent.as_ref().is_some_and(|parent| {
        region.vnets.contains_key(parent)
            || region.route_tables.contains_key(parent)
            || region.security_groups.contains_key(parent)
            || region.balancers.contains_key(parent)
            || region.nics.contains_key(parent)
            || region.clusters.contains_key(parent)
    });
    if let (true, Kind::Pool, Some(cluster)) = (has_parent, kind, &parent) {
        let message = format!(
            "The agent pool '{}' of managed cluster '{}' was not found.",
            id.name(),
            cluster.name()
        );
        return Fault::new(404, "NotFound", message);
    }
    if has_parent {
        return Fault::new(404, "NotFound", format!("Resource {id} not found."));
    }
    // A missing parent is what is reported, as the manager does before it asks the provider.
    let mut top = id.clone();
    while let Some(parent) = top.parent() {
        top = parent;
    }
    let message = format!(
        "The Resource '{}/{}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
        top.kind(),
        top.name(),
        top.resource_group()
    );
    Fault::new(404, "ResourceNotFound", message)
}

/// Makes or replaces a resource. `body` and `api_version` stand for the request's own when they are given.
pub(super) fn put(
    call: &Call<'_>,
    kind: Kind,
    id: &ArmId,
    body: Option<Value>,
    api_version: Option<&str>,
) -> Answer {
    if let Kind::Refused(what) = kind {
        return Err(unsupported(NOT_SUPPORTED, what));
    }
    let (value, bytes) = match body {
        None if !call.body.trim_ascii().is_empty() => (call.json()?, call.body.to_vec()),
        body => {
            let value = body.map_or_else(|| call.json(), Ok)?;
            let bytes = value.to_string().into_bytes();
            (value, bytes)
        }
    };
    let region = call.region();
    let mut view = call.view(&region);
    if let Some(version) = api_version {
        view.api_version = ApiVersion(version);
    }
    let stored = render(&view, kind, id);
    check_conditions(call, stored.as_ref())?;
    // Children have no location of their own.
    let has_location = value["location"].as_str().is_some_and(|text| !text.is_empty());
    if stored.is_none() && id.parent().is_none() && !has_location {
        groups::find(call, &id.resource_group_id())?;
        let message = "The location property is required for this definition.";
        return Err(Fault::bad("LocationRequired", message));
    }
    let id = spelled(&region, id, stored.as_ref());
    let asked = Asked::new(&view, id.clone(), value, &bytes);
    let accepted = call.change(parse(call, kind, &asked)?)?;
    let body = shown(call, kind, &id)?;
    // A pool with a path of its own is a change of its load balancer.
    let is_new = match kind {
        Kind::BackendPool | Kind::InboundRule => stored.is_none(),
        _ => accepted.outcome == Outcome::Created,
    };
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let location = location_of(call, &id);
    let reply = Reply::with_status(status, body);
    Ok(match accepted.operation {
        Some(operation) => operations::announce(call, reply, &id, &location, operation),
        None => reply,
    })
}

/// The command that a body asks for.
fn parse(call: &Call<'_>, kind: Kind, asked: &Asked<'_>) -> Result<Command, Fault> {
    match kind {
        Kind::Vnet => vnet::parse(asked),
        Kind::Subnet => subnet::parse(asked),
        Kind::RouteTable => route_table::parse(asked),
        Kind::Route => route_table::parse_route(asked),
        Kind::SecurityGroup => security_group::parse(asked),
        Kind::SecurityRule => security_group::parse_rule(asked),
        Kind::ApplicationGroup => application_group::parse(asked),
        Kind::Watcher => Err(unsupported(NOT_SUPPORTED, watcher::FIXED)),
        Kind::Peering => {
            let sync = call.query.get("syncremoteaddressspace");
            peering::parse(asked, sync.is_some_and(|text| text.eq_ignore_ascii_case("true")))
        }
        Kind::NatGateway => nat_gateway::parse(asked),
        Kind::PublicIpPrefix => public_ip_prefix::parse(asked),
        Kind::PublicIp => public_ip::parse(asked),
        Kind::Nic => nic::parse(asked),
        Kind::Balancer => balancer::parse(asked),
        Kind::BackendPool => balancer::parse_pool(asked),
        Kind::InboundRule => balancer::parse_inbound_rule(asked),
        Kind::Vm => machine::parse(asked),
        Kind::Cluster => cluster::parse(asked),
        Kind::Pool => pool::parse(asked),
        Kind::ScaleSet | Kind::Instance | Kind::InstanceNic => {
            Err(unsupported(NOT_SUPPORTED, SCALE_SETS))
        }
        Kind::Part(_) => Err(unsupported(NOT_SUPPORTED, "writing a part without its parent")),
        Kind::Deployment | Kind::Refused(_) => Err(wrong_method(call)),
    }
}

const SCALE_SETS: &str = "changes to scale sets, which belong to their node pools";

/// The id in the spelling of what is stored: the group's, the parents' and the resource's own.
fn spelled(region: &Region, id: &ArmId, stored: Option<&Value>) -> ArmId {
    // AKS shows its ids with `resourcegroups`; what is stored has Azure's usual spelling.
    let known = stored.and_then(|stored| stored["id"].as_str());
    let known = known.map(|text| text.replacen("/resourcegroups/", "/resourceGroups/", 1));
    if let Some(known) =
        known.and_then(|text| text.parse::<ArmId>().ok()).filter(|known| known == id)
    {
        return known;
    }
    if let Some(parent) = id.parent() {
        let kind = id.kind();
        let kind = kind.rsplit('/').next().unwrap_or_default();
        let stored = region.vnets.get_key_value(&parent).map(|(id, _)| id);
        let stored = stored
            .or_else(|| region.route_tables.get_key_value(&parent).map(|(id, _)| id))
            .or_else(|| region.security_groups.get_key_value(&parent).map(|(id, _)| id))
            .or_else(|| region.balancers.get_key_value(&parent).map(|(id, _)| id))
            .or_else(|| region.clusters.get_key_value(&parent).map(|(id, _)| id));
        return stored.unwrap_or(&parent).child(kind, id.name());
    }
    let group = region.groups.get(&id.resource_group_id()).map(|group| group.id.clone());
    group.map_or_else(|| id.clone(), |group| group.sibling(&id.kind(), id.name()))
}

/// Changes tags, the one thing that every type can have patched.
fn patch(call: &Call<'_>, kind: Kind, id: &ArmId) -> Answer {
    let mut body = shown(call, kind, id)?;
    let change = call.json()?;
    let Some(change) = change.as_object() else { return Err(wrong_method(call)) };
    if change.keys().any(|key| key != "tags") {
        let what = "PATCH of anything but tags (PUT the whole resource)";
        return Err(unsupported(NOT_SUPPORTED, what));
    }
    if let Some(tags) = change.get("tags") {
        body["tags"] = tags.clone();
    }
    put(call, kind, id, Some(body), None)
}

fn delete(call: &Call<'_>, kind: Kind, id: &ArmId) -> Answer {
    let region = call.region();
    let view = call.view(&region);
    let Some(stored) = render(&view, kind, id) else {
        check_group(&region, id)?;
        return Ok(Reply::empty(StatusCode::NO_CONTENT));
    };
    check_conditions(call, Some(&stored))?;
    let location = location_of(call, id);
    let command = match kind {
        Kind::BackendPool => remove_pool(&region, id)?,
        Kind::InboundRule => remove_inbound_rule(&region, id)?,
        Kind::ScaleSet | Kind::Instance | Kind::InstanceNic => {
            return Err(unsupported(NOT_SUPPORTED, SCALE_SETS));
        }
        Kind::Part(_) => {
            return Err(unsupported(NOT_SUPPORTED, "removing a part without its parent"));
        }
        Kind::Watcher => return Err(unsupported(NOT_SUPPORTED, watcher::FIXED)),
        _ => Command::Delete { id: id.clone() },
    };
    let accepted = call.change(command)?;
    Ok(match (accepted.operation, accepted.outcome) {
        (Some(operation), _) => operations::accepted(call, id, &location, operation),
        (None, Outcome::Unchanged) => Reply::empty(StatusCode::NO_CONTENT),
        // Done at once; never 200, which is an error to clients of AKS.
        (None, Outcome::Created | Outcome::Updated | Outcome::Deleting) => {
            Reply::empty(StatusCode::NO_CONTENT)
        }
    })
}

fn remove_pool(region: &Arc<Region>, id: &ArmId) -> Result<Command, Fault> {
    let name = Name::new(id.name());
    let balancer = id.parent().and_then(|id| region.balancers.get(&id));
    let balancer = balancer.ok_or_else(|| not_found(region, Kind::BackendPool, id))?;
    let rule = balancer.rules.iter().find(|(_, rule)| rule.pool == name).map(|(name, _)| name);
    if let Some(rule) = rule {
        let message = format!(
            "Load Balancer backend address pool {id} cannot be deleted because it is in use by rule {rule}."
        );
        return Err(Fault::bad("LoadBalancerBackendAddressPoolInUse", message));
    }
    Ok(balancer::with_pools(balancer, |pools| pools.retain(|(other, _)| *other != name)))
}

fn remove_inbound_rule(region: &Arc<Region>, id: &ArmId) -> Result<Command, Fault> {
    let name = Name::new(id.name());
    let balancer = id.parent().and_then(|id| region.balancers.get(&id));
    let balancer = balancer.ok_or_else(|| not_found(region, Kind::InboundRule, id))?;
    Ok(balancer::with_inbound_rules(balancer, |rules| rules.retain(|(other, _)| *other != name)))
}

/// `If-Match` and `If-None-Match`, against the entity tag that is shown.
fn check_conditions(call: &Call<'_>, stored: Option<&Value>) -> Result<(), Fault> {
    let header = |name: HeaderName| {
        call.headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
    };
    let etag = stored.map(|stored| {
        stored["etag"].as_str().or(stored["eTag"].as_str()).unwrap_or_default().to_owned()
    });
    let bare = |text: &str| text.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    let fails = match (header(IF_MATCH), header(IF_NONE_MATCH)) {
        (Some("*"), _) => etag.is_none(),
        (Some(wanted), _) => etag.is_none_or(|etag| bare(&etag) != bare(wanted)),
        (None, Some("*")) => etag.is_some(),
        (None, Some(unwanted)) => etag.is_some_and(|etag| bare(&etag) == bare(unwanted)),
        (None, None) => false,
    };
    if fails {
        let message = "The condition in the HTTP conditional header(s) is not met.";
        return Err(Fault::new(412, "PreconditionFailed", message));
    }
    Ok(())
}

/// Where a resource is, for the URLs of its operations: its group's location will do.
pub(super) fn location_of(call: &Call<'_>, id: &ArmId) -> String {
    let region = call.region();
    let group = region.groups.get(&id.resource_group_id());
    group.map_or_else(|| "eastus".to_owned(), |group| group.location.clone())
}

/// All resources of a type.
fn list(call: &Call<'_>, kind: Kind, within: &Within) -> Answer {
    let region = call.region();
    let view = call.view(&region);
    if let Within::Group(group) = within
        && !(kind == Kind::Watcher && watcher::is_own_group(group))
    {
        groups::find(call, group)?;
    }
    if let Within::Parent(parent) = within {
        return Ok(Reply::list(children(call, &view, kind, parent)?));
    }
    let is_within = |id: &ArmId| match within {
        Within::Group(group) => id.resource_group_id() == *group,
        Within::Subscription(subscription) => id.subscription().eq_ignore_ascii_case(subscription),
        Within::Parent(_) => false,
    };
    let ids = top_level(&view, kind);
    let items = ids.iter().filter(|id| is_within(id)).filter_map(|id| render(&view, kind, id));
    let mut items: Vec<Value> = items.collect();
    if kind == Kind::Deployment {
        items = deployments::list(call, within);
    }
    Ok(Reply::list(items))
}

/// The ids of all resources of a top-level type.
pub(super) fn top_level(view: &View<'_>, kind: Kind) -> Vec<ArmId> {
    let region = view.region;
    match kind {
        Kind::Vnet => region.vnets.keys().cloned().collect(),
        Kind::RouteTable => region.route_tables.keys().cloned().collect(),
        Kind::SecurityGroup => region.security_groups.keys().cloned().collect(),
        Kind::ApplicationGroup => region.application_groups.keys().cloned().collect(),
        Kind::Watcher => watcher::all(view),
        Kind::NatGateway => region.nat_gateways.keys().cloned().collect(),
        Kind::PublicIpPrefix => region.public_ip_prefixes.keys().cloned().collect(),
        Kind::PublicIp => region.public_ips.keys().cloned().collect(),
        // Scale sets' NICs are shown with their instances only.
        Kind::Nic => {
            region.nics.keys().filter(|id| id.is_kind(::vnet::kind::NIC)).cloned().collect()
        }
        Kind::Balancer => region.balancers.keys().cloned().collect(),
        Kind::Vm => {
            region.machines.keys().filter(|id| id.is_kind(::vnet::kind::VM)).cloned().collect()
        }
        Kind::ScaleSet => machine::scale_sets(view),
        Kind::Cluster => region.clusters.keys().cloned().collect(),
        Kind::Subnet
        | Kind::Route
        | Kind::SecurityRule
        | Kind::Peering
        | Kind::BackendPool
        | Kind::InboundRule
        | Kind::Instance
        | Kind::InstanceNic
        | Kind::Pool
        | Kind::Deployment
        | Kind::Part(_)
        | Kind::Refused(_) => Vec::new(),
    }
}

/// The children of a type of one resource.
fn children(
    call: &Call<'_>,
    view: &View<'_>,
    kind: Kind,
    parent: &ArmId,
) -> Result<Vec<Value>, Fault> {
    let (parent_kind, list) = match kind {
        Kind::Subnet => (Kind::Vnet, "subnets"),
        Kind::Route => (Kind::RouteTable, "routes"),
        Kind::SecurityRule => (Kind::SecurityGroup, "securityRules"),
        Kind::Part("defaultSecurityRules") => (Kind::SecurityGroup, "defaultSecurityRules"),
        Kind::Peering => (Kind::Vnet, "virtualNetworkPeerings"),
        Kind::InboundRule => (Kind::Balancer, "inboundNatRules"),
        Kind::BackendPool => (Kind::Balancer, "backendAddressPools"),
        Kind::Part("ipConfigurations") => (Kind::Nic, "ipConfigurations"),
        Kind::Part(list) => (Kind::Balancer, list),
        Kind::Pool => {
            let cluster = view.region.clusters.get(parent);
            let cluster = cluster.ok_or_else(|| not_found(view.region, Kind::Cluster, parent))?;
            return Ok(cluster
                .pools_in_order()
                .into_iter()
                .map(|it| pool::render(cluster, it))
                .collect());
        }
        Kind::Instance => {
            let instances = machine::instances(view, parent);
            return Ok(instances.into_iter().map(machine::render_instance).collect());
        }
        Kind::InstanceNic => {
            let machine = view.region.machines.get(parent);
            let machine = machine.ok_or_else(|| not_found(view.region, kind, parent))?;
            let nic = view.region.nics.get(&machine.nic);
            return Ok(nic.map(|it| nic::render(view, it)).into_iter().collect());
        }
        _ => return Ok(Vec::new()),
    };
    let body = shown(call, parent_kind, parent)?;
    Ok(body["properties"][list].as_array().cloned().unwrap_or_default())
}

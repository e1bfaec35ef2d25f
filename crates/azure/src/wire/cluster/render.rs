//! Clusters as a `GET` shows them, and what is answered about versions.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;
use vnet::{
    kind,
    model::{
        AgentPool, Cluster, Frontend, NetworkLinks, NetworkMode, OutboundAddresses,
        OutboundProfile, OutboundType, ProvisioningState,
    },
    name::ArmId,
};

use super::{SERVICE_PRINCIPAL, dataplane};
use crate::{
    identity::TENANT,
    kept,
    wire::{NODES_TAG, View, cluster_state, fill, pool, references},
};

/// AKS writes `resourcegroups` in the ids of clusters and their parts.
pub(crate) fn shown_id(id: &ArmId) -> String {
    id.as_str().replacen("/resourceGroups/", "/resourcegroups/", 1)
}

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, cluster: &Cluster) -> Value {
    let meta = &cluster.meta;
    let mut tags = meta.tags.clone();
    if let Some(nodes) = view.door.nodes.tag() {
        tags.insert(NODES_TAG.to_owned(), nodes.to_owned());
    }
    let mut body = json!({
        "id": shown_id(&meta.id),
        "location": meta.location,
        "name": meta.id.name(),
        // Other than any other type, with a capital M.
        "type": "Microsoft.ContainerService/ManagedClusters",
    });
    if !tags.is_empty() {
        body["tags"] = json!(tags);
    }
    let has_service_principal = meta.kept.contains_key(SERVICE_PRINCIPAL);
    if !has_service_principal {
        body["identity"] = json!({
            "type": "SystemAssigned",
            "principalId": cluster.principal,
            "tenantId": TENANT,
        });
    }
    body["properties"] = properties(view, cluster);
    kept::merge(&mut body, &meta.kept);
    fill(&mut body, defaults());
    body["eTag"] = json!(meta.etag);
    body
}

fn properties(view: &View<'_>, cluster: &Cluster) -> Value {
    let meta = &cluster.meta;
    let portal = cluster.fqdn.replacen(".hcp.", ".portal.hcp.", 1);
    let mut properties = json!({
        "provisioningState": cluster_state(meta.state),
        "powerState": { "code": "Running" },
        "kubernetesVersion": cluster.version,
        "currentKubernetesVersion": cluster.version,
        "dnsPrefix": cluster.dns_prefix,
        "fqdn": cluster.fqdn,
        "azurePortalFQDN": portal,
        "agentPoolProfiles": cluster.pools_in_order().into_iter().map(pool::render_profile).collect::<Vec<_>>(),
        "nodeResourceGroup": cluster.node_group.resource_group(),
        "networkProfile": network_profile(view, cluster),
        "maxAgentPools": 100,
        "resourceUID": meta.guid.simple().to_string().get(..24),
    });
    if meta.state == ProvisioningState::Succeeded {
        let name = format!("{}-agentpool", meta.id.name());
        let identity =
            cluster.node_group.sibling("Microsoft.ManagedIdentity/userAssignedIdentities", &name);
        properties["identityProfile"] = json!({ "kubeletidentity": {
            "resourceId": shown_id(&identity),
            "clientId": Uuid::new_v5(&meta.guid, b"kubelet client"),
            "objectId": Uuid::new_v5(&meta.guid, b"kubelet object"),
        } });
    }
    properties
}

fn network_profile(view: &View<'_>, cluster: &Cluster) -> Value {
    let (plugin, is_azure) = match cluster.mode {
        NetworkMode::Kubenet => ("kubenet", false),
        NetworkMode::Azure | NetworkMode::Overlay => ("azure", true),
        NetworkMode::None => ("none", false),
    };
    let mut profile = json!({ "networkPlugin": plugin });
    if cluster.mode == NetworkMode::Overlay {
        profile["networkPluginMode"] = json!("overlay");
    }
    // A cluster that was migrated remembers what its last nodes of a node subnet had.
    if let Some(links) = cluster.links.filter(|_| is_azure) {
        profile["networkMode"] = json!(match links {
            NetworkLinks::Transparent => "transparent",
            NetworkLinks::Bridge => "bridge",
        });
    }
    let dataplane = dataplane::shown(view.api_version, cluster.dataplane);
    if let Some((property, text)) = dataplane.filter(|_| is_azure) {
        profile[property] = json!(text);
    }
    if let Some(policy) = cluster.policy {
        profile["networkPolicy"] = json!(dataplane::policy_text(policy));
    }
    if let Some(advanced) = cluster.advanced_networking {
        profile["advancedNetworking"] = dataplane::shown_advanced(advanced);
    }
    profile["loadBalancerSku"] = json!("standard");
    match cluster.outbound {
        OutboundType::LoadBalancer => {
            profile["loadBalancerProfile"] = balancer_profile(view, cluster);
        }
        OutboundType::ManagedNatGateway => {
            profile["natGatewayProfile"] = gateway_profile(view, cluster);
        }
        OutboundType::UserAssignedNatGateway
        | OutboundType::UserDefinedRouting
        | OutboundType::None
        | OutboundType::Block => {}
    }
    if let Some(cidr) = cluster.pod_cidr {
        profile["podCidr"] = json!(cidr);
        profile["podCidrs"] = json!(cluster.pod_cidrs());
    }
    profile["serviceCidr"] = json!(cluster.service_cidr);
    profile["serviceCidrs"] = json!(cluster.service_cidrs());
    profile["dnsServiceIP"] = json!(cluster.dns_service_ip);
    profile["outboundType"] = json!(match cluster.outbound {
        OutboundType::LoadBalancer => "loadBalancer",
        OutboundType::UserDefinedRouting => "userDefinedRouting",
        OutboundType::ManagedNatGateway => "managedNATGateway",
        OutboundType::UserAssignedNatGateway => "userAssignedNATGateway",
        OutboundType::Block => "block",
        OutboundType::None => "none",
    });
    let families: &[_] = if cluster.is_dual_stack() { &["IPv4", "IPv6"] } else { &["IPv4"] };
    profile["ipFamilies"] = json!(families);
    profile
}

/// What was asked of load balancer `kubernetes`; Azure shows ports and minutes only when they are not its own.
fn balancer_profile(view: &View<'_>, cluster: &Cluster) -> Value {
    let asked = &cluster.outbound_profile;
    let mut profile = match &asked.addresses {
        OutboundAddresses::Managed(count) => {
            let mut managed = json!({ "count": count });
            if cluster.n_managed_v6() > 0 {
                managed["countIPv6"] = cluster.n_managed_v6().into();
            }
            json!({ "managedOutboundIPs": managed })
        }
        OutboundAddresses::PublicIps(ids) => {
            json!({ "outboundIPs": { "publicIPs": references(ids.clone()) } })
        }
        OutboundAddresses::Prefixes(ids) => {
            json!({ "outboundIPPrefixes": { "publicIPPrefixes": references(ids.clone()) } })
        }
    };
    let ips = effective_outbound_ips(view, cluster);
    if cluster.meta.state == ProvisioningState::Succeeded && !ips.is_empty() {
        profile["effectiveOutboundIPs"] = json!(references(ips));
    }
    let default = OutboundProfile::default();
    if asked.allocated_ports != default.allocated_ports {
        profile["allocatedOutboundPorts"] = json!(asked.allocated_ports);
    }
    if asked.idle_timeout_minutes != default.idle_timeout_minutes {
        profile["idleTimeoutInMinutes"] = json!(asked.idle_timeout_minutes);
    }
    profile["backendPoolType"] = json!("nodeIPConfiguration");
    profile
}

fn gateway_profile(view: &View<'_>, cluster: &Cluster) -> Value {
    let asked = &cluster.outbound_profile;
    let mut profile = json!({ "idleTimeoutInMinutes": asked.idle_timeout_minutes });
    if let OutboundAddresses::Managed(count) = asked.addresses {
        profile["managedOutboundIPProfile"] = json!({ "count": count });
    }
    let mut subnets =
        view.region.vnets.get(&cluster.vnet).into_iter().flat_map(|it| it.subnets.values());
    let gateway = subnets.find_map(|subnet| subnet.nat_gateway.as_ref());
    let gateway = gateway.and_then(|id| view.region.nat_gateways.get(id));
    if let Some(gateway) = gateway.filter(|_| cluster.meta.state == ProvisioningState::Succeeded) {
        profile["effectiveOutboundIPs"] = json!(references(gateway.public_ips.clone()));
    }
    profile
}

/// The public IPs of the outbound rules of load balancer `kubernetes`.
fn effective_outbound_ips(view: &View<'_>, cluster: &Cluster) -> Vec<ArmId> {
    let id = cluster.node_group.sibling(kind::LOAD_BALANCER, "kubernetes");
    let Some(balancer) = view.region.balancers.get(&id) else { return Vec::new() };
    let names = balancer.outbound_rules.values().flat_map(|rule| &rule.frontends);
    names
        .filter_map(|name| match balancer.frontends.get(name)? {
            Frontend::Public { public_ip } => Some(public_ip.clone()),
            Frontend::Internal { .. } | Frontend::Prefix { .. } => None,
        })
        .collect()
}

/// What AKS shows when nothing was asked.
fn defaults() -> Value {
    json!({
        "sku": { "name": "Base", "tier": "Free" },
        "properties": {
            "servicePrincipalProfile": { "clientId": "msi" },
            "enableRBAC": true,
            "supportPlan": "KubernetesOfficial",
            "disableLocalAccounts": false,
            "securityProfile": {},
            "storageProfile": {
                "diskCSIDriver": { "enabled": true },
                "fileCSIDriver": { "enabled": true },
                "snapshotController": { "enabled": true },
            },
            "oidcIssuerProfile": { "enabled": false },
            "workloadAutoScalerProfile": {},
            "autoUpgradeProfile": { "nodeOSUpgradeChannel": "NodeImage" },
            "metricsProfile": { "costAnalysis": { "enabled": false } },
            "nodeProvisioningProfile": { "mode": "Manual", "defaultNodePools": "Auto" },
            "bootstrapProfile": { "artifactSource": "Direct" },
        },
    })
}

/// The versions that one of Kubernetes can be upgraded to, oldest first: newer ones, up to the next minor version.
fn upgrades<'a>(from: &str, available: impl IntoIterator<Item = &'a String>) -> Vec<Value> {
    let parse = |version: &str| -> Option<[u32; 3]> {
        let parts: Vec<u32> = version.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    };
    let Some(is) = parse(from) else { return Vec::new() };
    let mut newer: Vec<([u32; 3], &String)> = available
        .into_iter()
        .filter_map(|version| Some((parse(version)?, version)))
        .filter(|(to, _)| *to > is && to[0] == is[0] && to[1] <= is[1] + 1)
        .collect();
    newer.sort();
    newer.into_iter().map(|(_, version)| json!({ "kubernetesVersion": version })).collect()
}

/// What a cluster could be upgraded to.
pub(crate) fn render_upgrades(view: &View<'_>, cluster: &Cluster) -> Value {
    let profile = |version: &str| {
        json!({
            "kubernetesVersion": version,
            "osType": "Linux",
            "upgrades": upgrades(version, &view.door.available_versions),
        })
    };
    let pools = cluster.pools_in_order().into_iter().map(|pool| {
        let mut body = profile(&pool.version);
        body["name"] = json!(pool.name.as_str());
        body
    });
    json!({
        "id": format!("{}/upgradeprofiles/default", shown_id(&cluster.meta.id)),
        "name": "default",
        "type": "Microsoft.ContainerService/managedClusters/upgradeprofiles",
        "properties": {
            "controlPlaneProfile": profile(&cluster.version),
            "agentPoolProfiles": pools.collect::<Vec<_>>(),
        },
    })
}

/// The same for a pool, whose nodes can be as new as the control plane.
pub(crate) fn render_pool_upgrades(view: &View<'_>, cluster: &Cluster, pool: &AgentPool) -> Value {
    let id = cluster.meta.id.child("agentPools", pool.name.as_str());
    let mut to = upgrades(&pool.version, &view.door.available_versions);
    let plane = upgrades(&cluster.version, &view.door.available_versions);
    to.retain(|version| !plane.contains(version));
    json!({
        "id": format!("{}/upgradeProfiles/default", shown_id(&id)),
        "name": "default",
        "type": "Microsoft.ContainerService/managedClusters/agentPools/upgradeProfiles",
        "properties": {
            "kubernetesVersion": pool.version,
            "osType": "Linux",
            "upgrades": to,
            "latestNodeImageVersion": pool::NODE_IMAGE,
        },
    })
}

/// The versions of Kubernetes that clusters can have, by minor version.
pub(crate) fn render_versions(versions: &[String]) -> Value {
    let minor =
        |version: &str| version.rsplit_once('.').map_or(version, |(minor, _)| minor).to_owned();
    let default = versions.first().map(|version| minor(version));
    let mut by_minor: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for version in versions {
        let to = upgrades(version, versions);
        let to: Vec<&Value> = to.iter().map(|upgrade| &upgrade["kubernetesVersion"]).collect();
        by_minor
            .entry(minor(version))
            .or_default()
            .insert(version.clone(), json!({ "upgrades": to }));
    }
    let values: Vec<Value> = by_minor
        .into_iter()
        .map(|(minor, patches)| {
            json!({
                "version": minor,
                "capabilities": { "supportPlan": ["KubernetesOfficial"] },
                "isDefault": Some(&minor) == default.as_ref(),
                "patchVersions": patches,
            })
        })
        .collect();
    json!({ "values": values })
}

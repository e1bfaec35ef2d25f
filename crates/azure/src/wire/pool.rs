//! `Microsoft.ContainerService/managedClusters/agentPools`, alone and inside of a cluster: two views of one thing.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::{Command, PutPool},
    fault::Fault,
    kind,
    model::{AgentPool, Cluster, PodAllocation, PoolMode},
    name::Name,
};

use super::{Asked, cluster, cluster_state, fill, public_ip::one_of};
use crate::{
    call::content,
    findings::{Findings, arm_id_of, given, missing},
    kept,
    refuse::{self, Refusal, When, refusal},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    count: Option<u32>,
    vm_size: Option<String>,
    max_pods: Option<u32>,
    mode: Option<String>,
    orchestrator_version: Option<String>,
    #[serde(rename = "vnetSubnetID")]
    subnet: Option<String>,
    #[serde(rename = "podSubnetID")]
    pod_subnet: Option<String>,
    #[serde(rename = "podIPAllocationMode")]
    pod_allocation: Option<String>,
    node_labels: Option<BTreeMap<String, String>>,
    node_taints: Option<Vec<String>>,
    upgrade_settings: Option<UpgradeSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpgradeSettings {
    max_surge: Option<Value>,
    max_unavailable: Option<Value>,
    drain_timeout_in_minutes: Option<u32>,
    node_soak_duration_in_minutes: Option<u32>,
    undrainable_node_behavior: Option<String>,
}

/// Minutes that Azure may wait between draining a node and making it anew (AKS documentation, "Customize node surge
/// upgrade").
const SOAK: std::ops::RangeInclusive<u32> = 0..=30;

/// Properties of a pool that are acted on or read-only.
const KNOWN: [&str; 26] = [
    "/name",
    "/count",
    "/vmSize",
    "/osType",
    "/vnetSubnetID",
    "/podSubnetID",
    "/maxPods",
    "/type",
    "/mode",
    "/enableAutoScaling",
    "/minCount",
    "/maxCount",
    "/orchestratorVersion",
    "/currentOrchestratorVersion",
    "/provisioningState",
    "/powerState",
    "/nodeImageVersion",
    "/nodeLabels",
    "/nodeTaints",
    "/upgradeSettings/maxSurge",
    "/upgradeSettings/maxUnavailable",
    "/upgradeSettings/drainTimeoutInMinutes",
    "/enableNodePublicIP",
    "/status",
    "/eTag",
    "/podIPAllocationMode",
];

const REFUSED: [Refusal; 15] = [
    refusal(
        "/upgradeSettings/maxBlockedNodes",
        When::Given,
        "upgrades that leave nodes behind which cannot be drained",
    ),
    refusal(
        "/osType",
        When::IsNot(&["", "Linux"]),
        "node pools of another operating system than Linux",
    ),
    refusal("/enableAutoScaling", When::True, "the cluster autoscaler"),
    refusal(
        "/type",
        When::IsNot(&["", "VirtualMachineScaleSets"]),
        "node pools of another type than VirtualMachineScaleSets",
    ),
    refusal("/mode", When::Is(&["Gateway"]), "gateway node pools"),
    refusal("/enableNodePublicIP", When::True, "public IPs on nodes"),
    refusal("/nodePublicIPPrefixID", When::Given, "public IPs on nodes"),
    refusal("/networkProfile/allowedHostPorts", When::Given, "network security groups"),
    refusal(
        "/networkProfile/applicationSecurityGroups",
        When::Given,
        "application security groups",
    ),
    refusal("/networkProfile/nodePublicIPTags", When::Given, "public IPs on nodes"),
    refusal("/powerState/code", When::Is(&["Stopped"]), "stopping and starting node pools"),
    refusal(
        "/workloadRuntime",
        When::IsNot(&["", "OCIContainer"]),
        "other workload runtimes than OCIContainer",
    ),
    refusal("/enableEncryptionAtHost", When::True, "encryption at host"),
    refusal("/enableFIPS", When::True, "FIPS images"),
    refusal("/osSKU", When::Is(&["Windows2019", "Windows2022", "Windows2025"]), "Windows"),
];

/// The command that a `PUT` of a pool by its own path asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    #[derive(Deserialize)]
    struct Body {
        properties: Option<Properties>,
    }
    let body: Body = asked.read()?;
    let mut findings = Findings::default();
    if body.properties.is_none() {
        findings.add(missing("properties"));
    }
    let name = asked.id.name();
    let pool = parse_body(asked, name, &asked.value["properties"], &mut findings);
    findings.then(|| Some(Command::PutPool { id: asked.id.clone(), pool: pool? }))
}

/// What a pool should be, alone or as a part of its cluster.
pub(super) fn parse_body(
    asked: &Asked<'_>,
    name: &str,
    value: &Value,
    findings: &mut Findings,
) -> Option<PutPool> {
    refuse::check(value, &REFUSED, "agentPoolProfile", findings);
    let properties = serde_json::from_value::<Properties>(value.clone());
    let properties = findings.take(properties.map_err(|error| content(&error)))?;
    let subnet = findings.take_some(given(properties.subnet), |id| {
        arm_id_of(&id, kind::SUBNET, "agentPoolProfile.vnetSubnetID")
    });
    let pod_subnet = findings.take_some(given(properties.pod_subnet), |id| {
        arm_id_of(&id, kind::SUBNET, "agentPoolProfile.podSubnetID")
    });
    let pod_allocation = findings.take_some(given(properties.pod_allocation), |text| {
        let target = "agentPoolProfile.podIPAllocationMode";
        let mode = one_of(&text, &["DynamicIndividual", "StaticBlock"], target)?;
        Ok(match mode {
            "StaticBlock" => PodAllocation::StaticBlock,
            _ => PodAllocation::Dynamic,
        })
    });
    let mode = findings.take_some(given(properties.mode), |text| {
        let mode = one_of(&text, &["System", "User", "Gateway"], "agentPoolProfile.mode")?;
        Ok(if mode == "System" { PoolMode::System } else { PoolMode::User })
    });
    let cluster =
        if asked.id.is_kind(kind::POOL) { asked.id.parent() } else { Some(asked.id.clone()) };
    let cluster = cluster.and_then(|id| asked.view.region.clusters.get(&id));
    let stored = cluster.and_then(|cluster| cluster.pools.get(&Name::new(name)));
    let version = findings.take_some(given(properties.orchestrator_version), |text| {
        let is = stored.map(|pool| &pool.version).or(cluster.map(|cluster| &cluster.version));
        cluster::resolve_version(asked, &text, is)
    });
    let settings = properties.upgrade_settings.unwrap_or_default();
    check_upgrade(&settings, findings);
    let number_or_percentage = |value: Option<Value>| match value {
        Some(Value::String(text)) => given(Some(text)),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let max_surge = number_or_percentage(settings.max_surge);
    let max_unavailable = number_or_percentage(settings.max_unavailable);
    let mut kept = kept::collect(value, &KNOWN);
    // Older clients send 0 for "the default".
    if kept.get("/osDiskSizeGB").is_some_and(|text| text == "0") {
        kept.remove("/osDiskSizeGB");
    }
    Some(PutPool {
        pod_allocation,
        name: Name::new(name),
        mode,
        count: properties.count,
        max_pods: properties.max_pods.filter(|max_pods| *max_pods != 0),
        subnet,
        pod_subnet,
        version,
        vm_size: given(properties.vm_size),
        labels: properties.node_labels,
        taints: properties.node_taints,
        max_surge,
        max_unavailable,
        drain_timeout_minutes: settings.drain_timeout_in_minutes,
        autoscale: None,
        kept,
    })
}

/// What of upgrades the lab has not, or nobody has.
fn check_upgrade(settings: &UpgradeSettings, findings: &mut Findings) {
    let target = "agentPoolProfile.upgradeSettings.nodeSoakDurationInMinutes";
    match settings.node_soak_duration_in_minutes {
        None | Some(0) => {}
        Some(minutes) if SOAK.contains(&minutes) => {
            let what = "a wait between draining a node and making it anew (0 works)";
            findings.add(refuse::unsupported(refuse::NOT_SUPPORTED, what).at(target));
        }
        Some(minutes) => {
            let text = format!(
                "The value of parameter {target} is invalid. Error details: {minutes} is not between {} and {}.",
                SOAK.start(),
                SOAK.end()
            );
            findings.add(Fault::bad("InvalidParameter", text).at(target));
        }
    }
    let target = "agentPoolProfile.upgradeSettings.undrainableNodeBehavior";
    let behavior = given(settings.undrainable_node_behavior.clone());
    let behavior =
        findings.take_some(behavior, |text| one_of(&text, &["Schedule", "Cordon"], target));
    if behavior == Some("Cordon") {
        let what = "upgrades that leave nodes behind which cannot be drained (Schedule works)";
        findings.add(refuse::unsupported(refuse::NOT_SUPPORTED, what).at(target));
    }
}

/// A pool by its own path, as a `GET` shows it.
pub(crate) fn render(cluster: &Cluster, pool: &AgentPool) -> Value {
    json!({
        "id": cluster::shown_id(&cluster.meta.id.child("agentPools", pool.name.as_str())),
        "name": pool.name.as_str(),
        "type": kind::POOL,
        "properties": render_properties(pool),
    })
}

/// A pool inside of its cluster: the same with its name.
pub(super) fn render_profile(pool: &AgentPool) -> Value {
    let mut profile = json!({ "name": pool.name.as_str() });
    fill(&mut profile, render_properties(pool));
    profile
}

fn render_properties(pool: &AgentPool) -> Value {
    let mut body = json!({
        "count": pool.count,
        "vmSize": pool.vm_size,
        "maxPods": pool.max_pods,
        "type": "VirtualMachineScaleSets",
        "enableAutoScaling": pool.autoscale.is_some(),
        "provisioningState": cluster_state(pool.state),
        "powerState": { "code": "Running" },
        "orchestratorVersion": pool.version,
        "currentOrchestratorVersion": pool.version,
        "enableNodePublicIP": false,
        "mode": match pool.mode {
            PoolMode::System => "System",
            PoolMode::User => "User",
        },
        "osType": "Linux",
        "nodeImageVersion": NODE_IMAGE,
        "upgradeSettings": { "maxSurge": pool.max_surge },
        "eTag": pool.etag,
    });
    if pool.max_unavailable != "0" {
        body["upgradeSettings"]["maxUnavailable"] = json!(pool.max_unavailable);
    }
    if pool.drain_timeout_minutes != DRAIN_TIMEOUT {
        body["upgradeSettings"]["drainTimeoutInMinutes"] = json!(pool.drain_timeout_minutes);
    }
    if pool.subnet_given {
        body["vnetSubnetID"] = json!(pool.subnet);
    }
    if let Some(subnet) = &pool.pod_subnet {
        body["podSubnetID"] = json!(subnet);
    }
    if pool.pod_allocation == PodAllocation::StaticBlock {
        body["podIPAllocationMode"] = json!("StaticBlock");
    }
    if let Some((min, max)) = pool.autoscale {
        body["minCount"] = json!(min);
        body["maxCount"] = json!(max);
    }
    if !pool.labels.is_empty() {
        body["nodeLabels"] = json!(pool.labels);
    }
    if !pool.taints.is_empty() {
        body["nodeTaints"] = json!(pool.taints);
    }
    kept::merge(&mut body, &pool.kept);
    fill(
        &mut body,
        json!({
            "osDiskSizeGB": 128,
            "osDiskType": "Managed",
            "kubeletDiskType": "OS",
            "scaleDownMode": "Delete",
            "enableEncryptionAtHost": false,
            "enableUltraSSD": false,
            "osSKU": "Ubuntu",
            "enableFIPS": false,
            "securityProfile": { "enableVTPM": false, "enableSecureBoot": false },
        }),
    );
    body
}

/// What Azure does when nothing is said, and does not show.
const DRAIN_TIMEOUT: u32 = 30;

/// Nodes share the machine's own system; this is what AKS would name.
pub(crate) const NODE_IMAGE: &str = "AKSUbuntu-2204gen2containerd-202511.01.0";

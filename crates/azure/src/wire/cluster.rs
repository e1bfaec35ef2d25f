//! `Microsoft.ContainerService/managedClusters`: how a `PUT` becomes a command.
//! How they are rendered is in [`mod@render`].

mod dataplane;
mod outbound;
mod refused;
mod render;

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::{Prefix, Prefix4, Prefix6},
    command::{Command, PutCluster},
    fault::Fault,
    model::{Cluster, NetworkLinks, NetworkMode},
    name::ArmId,
};

use self::refused::{KNOWN, REFUSED};
pub(crate) use self::render::{
    render, render_pool_upgrades, render_upgrades, render_versions, shown_id,
};
use super::{Asked, Resource, pool};
use crate::{
    Door,
    call::ApiVersion,
    findings::{Findings, address, cluster_prefix, given, missing, not_one_of},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    kubernetes_version: Option<String>,
    dns_prefix: Option<String>,
    node_resource_group: Option<String>,
    network_profile: Option<NetworkProfile>,
    agent_pool_profiles: Option<Vec<Value>>,
    service_principal_profile: Option<ServicePrincipal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetworkProfile {
    network_plugin: Option<String>,
    network_plugin_mode: Option<String>,
    network_mode: Option<String>,
    network_dataplane: Option<String>,
    ebpf_dataplane: Option<String>,
    network_policy: Option<String>,
    advanced_networking: Option<dataplane::Advanced>,
    pod_cidr: Option<String>,
    pod_cidrs: Option<Vec<String>>,
    service_cidr: Option<String>,
    service_cidrs: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    #[serde(rename = "dnsServiceIP")]
    dns_service_ip: Option<String>,
    outbound_type: Option<String>,
    load_balancer_profile: Option<outbound::BalancerProfile>,
    nat_gateway_profile: Option<outbound::GatewayProfile>,
    kube_proxy_config: Option<dataplane::KubeProxy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePrincipal {
    client_id: Option<String>,
}

/// Where a service principal's client id is kept; its secret is not.
const SERVICE_PRINCIPAL: &str = "/properties/servicePrincipalProfile/clientId";

/// What Azure itself never does is refused in its words, before what only this lab doesn't do
/// (MicrosoftDocs/azure-aks-docs, use-network-policies.md).
fn refuse_azure_policy_with_kubenet(body: &Value) -> Result<(), Fault> {
    let network = &body["properties"]["networkProfile"];
    let is = |key: &str, text: &str| {
        network[key].as_str().is_some_and(|value| value.eq_ignore_ascii_case(text))
    };
    if is("networkPlugin", "kubenet") && is("networkPolicy", "azure") {
        return Err(Fault::bad(
            "NetworkPolicyAzureNotSupportedForKubenet",
            "NetworkPolicy azure is not supported for network plugin kubenet",
        )
        .at("networkProfile.networkPolicy"));
    }
    Ok(())
}

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    refuse_azure_policy_with_kubenet(&asked.value)?;
    let mut findings = asked.findings(&REFUSED);
    let mut common = asked.common(&resource, &KNOWN);
    let properties = resource.properties.unwrap_or_default();
    let principal = properties.service_principal_profile.and_then(|profile| profile.client_id);
    if let Some(id) = given(principal).filter(|id| !id.eq_ignore_ascii_case("msi")) {
        common.kept.insert(SERVICE_PRINCIPAL.to_owned(), json!(id).to_string());
    }

    let stored = asked.view.region.clusters.get(&asked.id);
    let version = findings.take_some(given(properties.kubernetes_version), |text| {
        resolve_version(asked, &text, stored.map(|cluster| &cluster.version))
    });

    let mut pools = Vec::new();
    for value in properties.agent_pool_profiles.unwrap_or_default() {
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            findings.add(missing("agentPoolProfile.name"));
        }
        let put = pool::parse_body(asked, &name, &value, &mut findings);
        pools.extend(put);
    }
    if pools.is_empty() && stored.is_none() {
        findings.add(
            Fault::bad(
                "InvalidParameter",
                "Required parameter agentPoolProfiles is missing (null).",
            )
            .at("agentPoolProfiles"),
        );
    }

    let network = network(
        properties.network_profile.unwrap_or_default(),
        (asked.view.api_version, stored.map(|it| &**it)),
        asked.view.door,
        &mut findings,
    );
    findings.then(|| {
        let cluster = PutCluster {
            version: version.or_else(|| match stored {
                Some(_) => None,
                None => asked.view.door.available_versions.first().cloned(),
            }),
            dns_prefix: given(properties.dns_prefix),
            node_group: given(properties.node_resource_group),
            pools,
            ..network
        };
        Some(Command::PutCluster { common, cluster })
    })
}

/// The network's part of a cluster.
fn network(
    profile: NetworkProfile,
    (api_version, stored): (ApiVersion<'_>, Option<&Cluster>),
    door: &Door,
    findings: &mut Findings,
) -> PutCluster {
    dataplane::check_proxy(profile.kube_proxy_config.as_ref(), findings);
    let (dataplane, policy) = dataplane::parse(&profile, (api_version, stored), findings);
    let is_dual_stack =
        findings.take_some(profile.ip_families.filter(|it| !it.is_empty()), |it| families(&it));
    let is_dual = is_dual_stack.or(stored.map(Cluster::is_dual_stack)).unwrap_or_default();
    let is_forwarded_by = dataplane.or(stored.map(|it| it.dataplane)).unwrap_or_default();
    let has_advanced = stored.and_then(|it| it.advanced_networking);
    let advanced_networking = profile.advanced_networking.and_then(|asked| {
        dataplane::parse_advanced(&asked, is_forwarded_by, (door, has_advanced), findings)
    });
    let mode = findings.take(mode(
        given(profile.network_plugin).as_deref(),
        given(profile.network_plugin_mode).as_deref(),
    ));
    let links = findings.take_some(given(profile.network_mode), |text| links(&text));
    let had = stored.map_or_else(Vec::new, Cluster::pod_cidrs);
    let pods = (profile.pod_cidr, profile.pod_cidrs);
    let pods = ranges(changed(pods, &had), is_dual, "networkProfile.podCIDR");
    let (pod_cidr, pod_cidr6) = findings.take(pods).unwrap_or_default();
    let had = stored.map_or_else(Vec::new, Cluster::service_cidrs);
    let services = (profile.service_cidr, profile.service_cidrs);
    let services = ranges(changed(services, &had), is_dual, "networkProfile.serviceCIDR");
    let (service_cidr, service_cidr6) = findings.take(services).unwrap_or_default();
    let dns_service_ip = findings.take_some(given(profile.dns_service_ip), |text| {
        address(&text, "networkProfile.dnsServiceIP")
    });
    let (outbound, outbound_profile) = outbound::parse(
        outbound::Asked {
            outbound_type: profile.outbound_type,
            balancer: profile.load_balancer_profile,
            gateway: profile.nat_gateway_profile,
        },
        stored,
        findings,
    );
    PutCluster {
        outbound_profile,
        mode: mode.flatten(),
        links,
        dataplane,
        policy,
        advanced_networking,
        pod_cidr,
        is_dual_stack,
        pod_cidr6,
        service_cidr,
        service_cidr6,
        dns_service_ip,
        outbound,
        ..PutCluster::default()
    }
}

/// Whether a cluster of these families has IPv6, too: `IPv4`, or `IPv4` and `IPv6` in this order
/// (MicrosoftDocs/azure-aks-docs, `configure-dual-stack.md`).
fn families(families: &[String]) -> Result<bool, Fault> {
    let is = |n: usize, name: &str| families.get(n).is_some_and(|it| it.eq_ignore_ascii_case(name));
    match families.len() {
        1 if is(0, "IPv4") => Ok(false),
        2 if is(0, "IPv4") && is(1, "IPv6") => Ok(true),
        _ => Err(not_one_of(
            &families.join(","),
            &["[IPv4]", "[IPv4,IPv6]"],
            "networkProfile.ipFamilies",
        )),
    }
}

/// A range and the list that it is the first of, where only one of both is another than what a cluster had: `az aks update
/// --pod-cidr` sends back the list that it was shown.
fn changed(
    (one, several): (Option<String>, Option<Vec<String>>),
    had: &[Prefix],
) -> (Option<String>, Option<Vec<String>>) {
    let had: Vec<String> = had.iter().map(Prefix::to_string).collect();
    let is_another = |text: &String| had.first() != Some(text);
    if had.is_empty() {
        return (one, several);
    }
    match (one, several) {
        (Some(one), Some(several)) if several == had && is_another(&one) => {
            let rest = several.into_iter().skip(1);
            (None, Some([one].into_iter().chain(rest).collect()))
        }
        (Some(one), Some(several)) if several != had && !is_another(&one) => (None, Some(several)),
        both => both,
    }
}

/// One range per family, in the families' order; a single one may stand alone. The target of what is said of the
/// list is the single one's with an `s`.
fn ranges(
    (one, several): (Option<String>, Option<Vec<String>>),
    is_dual: bool,
    target: &str,
) -> Result<(Option<Prefix4>, Option<Prefix6>), Fault> {
    let list = format!("{target}s");
    let (one, several) = (given(one), several.unwrap_or_default());
    let n_families = if is_dual { 2 } else { 1 };
    if several.is_empty() {
        return Ok((one.map(|text| cluster_prefix(&text, target)).transpose()?, None));
    }
    if several.len() != n_families {
        let families = if is_dual { "[IPv4,IPv6]" } else { "[IPv4]" };
        let text = format!(
            "The value of parameter {list} is invalid. Error details: {} CIDRs are given for IP families {families}; the \
             number and the order of CIDRs must be those of networkProfile.ipFamilies.",
            several.len()
        );
        return Err(Fault::bad("InvalidParameter", text).at(&list));
    }
    let parse = |text: &str| {
        text.parse::<Prefix>().map_err(|error| {
            let text = format!("The value of parameter {list} is invalid. Error details: {error}.");
            Fault::bad("InvalidParameter", text).at(&list)
        })
    };
    let unexpected = |range: Prefix, family: &str| {
        let text =
            format!("CIDR {range} of {list} is not of IP family {family}, which is at its place.");
        Fault::bad("UnexpectedIPVersionCIDR", text).at(&list)
    };
    let first = parse(&several[0])?;
    let v4 = first.as_v4().ok_or_else(|| unexpected(first, "IPv4"))?;
    if one.is_some_and(|text| text != v4.to_string()) {
        let text = format!("{target} is not the first of {list}.");
        return Err(Fault::bad("InvalidParameter", text).at(target));
    }
    let v6 = match several.get(1) {
        None => None,
        Some(text) => {
            let second = parse(text)?;
            Some(second.as_v6().ok_or_else(|| unexpected(second, "IPv6"))?)
        }
    };
    Ok((Some(v4), v6))
}

/// How pods get addresses; `None` when nothing is said, so that the service decides.
fn mode(plugin: Option<&str>, mode: Option<&str>) -> Result<Option<NetworkMode>, Fault> {
    let plugin = plugin.map(str::to_ascii_lowercase);
    let overlay = match mode.map(str::to_ascii_lowercase).as_deref() {
        None => false,
        Some("overlay") => true,
        Some(other) => {
            return Err(not_one_of(other, &["overlay"], "networkProfile.networkPluginMode"));
        }
    };
    match (plugin.as_deref(), overlay) {
        (None, false) => Ok(None),
        (None | Some("azure"), true) => Ok(Some(NetworkMode::Overlay)),
        (Some("azure"), false) => Ok(Some(NetworkMode::Azure)),
        (Some("kubenet"), false) => Ok(Some(NetworkMode::Kubenet)),
        (Some("none"), false) => Ok(Some(NetworkMode::None)),
        // Azure/AKS issue 5662.
        (Some(plugin @ ("kubenet" | "none")), true) => Err(Fault::bad(
            "UnsupportedNetworkPluginModeWithNetworkPlugin",
            format!("NetworkPluginMode overlay is not supported with NetworkPlugin {plugin}."),
        )
        .at("networkProfile.networkPluginMode")),
        (Some(other), _) => Err(Fault::bad(
            "UnknownNetworkPlugin",
            format!("Network plugin {other} is unknown. It must be one of: azure, kubenet, none."),
        )
        .at("networkProfile.networkPlugin")),
    }
}

/// How the pods of a node subnet are connected.
fn links(text: &str) -> Result<NetworkLinks, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "transparent" => Ok(NetworkLinks::Transparent),
        "bridge" => Ok(NetworkLinks::Bridge),
        _ => Err(not_one_of(text, &["bridge", "transparent"], "networkProfile.networkMode")),
    }
}

/// `1.36` is the newest version that begins so; a whole version must be one of those that can be had. What is
/// there already stays what it `is` when that is asked for.
pub(super) fn resolve_version(
    asked: &Asked<'_>,
    text: &str,
    is: Option<&String>,
) -> Result<String, Fault> {
    let stays = |is: &&String| **is == text || is.starts_with(&format!("{text}."));
    if let Some(is) = is.filter(stays) {
        return Ok(is.clone());
    }
    let versions = &asked.view.door.available_versions;
    let prefix = format!("{text}.");
    let exact = versions.iter().find(|version| *version == text);
    let newest =
        versions.iter().filter(|version| version.starts_with(&prefix)).max_by_key(|version| {
            version.rsplit('.').next().and_then(|patch| patch.parse::<u32>().ok())
        });
    exact.or(newest).cloned().ok_or_else(|| {
        Fault::bad("K8sVersionNotSupported", format!(
            "Managed cluster {} is on version {text} which is not supported in this region. Please use [az aks get-versions] command to get the supported version list in this region ({}). For more information, please check https://aka.ms/supported-version-list",
            cluster_name(&asked.id),
            versions.join(", "),
        ))
    })
}

fn cluster_name(id: &ArmId) -> String {
    id.parent().unwrap_or_else(|| id.clone()).name().to_owned()
}

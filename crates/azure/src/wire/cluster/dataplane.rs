//! Who forwards pods' packets, who enforces network policies, and what more can be had of both: how a client says it, by
//! its api-version. Not here: what goes together, which the region knows.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    fault::Fault,
    model::{AdvancedNetworking, AdvancedPolicies, Cluster, Dataplane, NetworkPolicy},
};

use super::NetworkProfile;
use crate::{
    Door,
    call::ApiVersion,
    findings::{Findings, given, not_one_of},
    refuse::{NOT_SUPPORTED, unsupported},
    wire::public_ip::one_of,
};

const DATAPLANE: &str = "networkProfile.networkDataplane";
const POLICY: &str = "networkProfile.networkPolicy";
const ADVANCED: &str = "networkProfile.advancedNetworking";
const POLICIES: &str = "networkProfile.advancedNetworking.security.advancedNetworkPolicies";

/// `advancedNetworking`.
#[derive(Debug, Deserialize)]
pub(super) struct Advanced {
    enabled: Option<bool>,
    observability: Option<Switch>,
    security: Option<Security>,
}

#[derive(Debug, Deserialize)]
struct Switch {
    enabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Security {
    enabled: Option<bool>,
    advanced_network_policies: Option<String>,
}

/// `kubeProxyConfig`.
#[derive(Debug, Deserialize)]
pub(super) struct KubeProxy {
    mode: Option<String>,
}

/// Services are forwarded by nftables whatever is asked for; IPVS balances in other ways, which can be told.
pub(super) fn check_proxy(asked: Option<&KubeProxy>, findings: &mut Findings) {
    let target = "networkProfile.kubeProxyConfig.mode";
    let mode = given(asked.and_then(|asked| asked.mode.clone()));
    let known = &["IPTABLES", "IPVS", "NFTABLES"];
    let mode = findings.take_some(mode, |text| one_of(&text, known, target));
    if mode == Some("IPVS") {
        let what = "kube-proxy with IPVS (IPTABLES and NFTABLES work)";
        findings.add(unsupported(NOT_SUPPORTED, what).at(target));
    }
}

/// The property that has the data plane
/// (Azure/azure-sdk-for-python, `azure-mgmt-containerservice`, release history of 22.0.0; the previews from 2022-09-02 on).
fn property(api_version: ApiVersion<'_>) -> Option<&'static str> {
    if api_version.is_since("2023-02-02") {
        Some("networkDataplane")
    } else if api_version.is_preview() && api_version.is_since("2022-09-02") {
        Some("ebpfDataplane")
    } else {
        None
    }
}

/// Whether a new cluster of whose network policies nothing is said has `none`, and says so. Older versions know no such
/// word (Azure/AKS, release notes of 2024-05-13; Azure/azure-cli-extensions, pull request 7011, for the previews).
fn says_none(api_version: ApiVersion<'_>) -> bool {
    let first = if api_version.is_preview() { "2023-08-02" } else { "2024-05-01" };
    api_version.is_since(first)
}

/// What is asked of both.
pub(super) fn parse(
    profile: &NetworkProfile,
    (api_version, stored): (ApiVersion<'_>, Option<&Cluster>),
    findings: &mut Findings,
) -> (Option<Dataplane>, Option<NetworkPolicy>) {
    let own = property(api_version);
    let mut asked = None;
    for (name, value) in [
        ("networkDataplane", &profile.network_dataplane),
        ("ebpfDataplane", &profile.ebpf_dataplane),
    ] {
        match given(value.clone()) {
            Some(_) if own != Some(name) => findings.add(unknown(name)),
            Some(text) => asked = findings.take(dataplane(&text)),
            None => {}
        }
    }
    let policy = findings.take_some(given(profile.network_policy.clone()), |text| policy(&text));
    let will_be = asked.or(stored.map(|cluster| cluster.dataplane)).unwrap_or_default();
    // What Azure itself refuses with Cilium, the region does.
    if let (Dataplane::Azure, Some(NetworkPolicy::Azure | NetworkPolicy::Calico)) =
        (will_be, policy)
    {
        let engine = profile.network_policy.as_deref().unwrap_or_default();
        let what =
            format!("network policies of other engines than cilium ({POLICY}: \"{engine}\")");
        findings.add(unsupported("NetworkPolicyNotSupported", &what).at(POLICY));
    }
    let none = stored.is_none() && will_be.is_azure() && says_none(api_version);
    (asked, policy.or(none.then_some(NetworkPolicy::None)))
}

/// What is asked of Advanced Container Networking Services. Once they are enabled, so is every part that is not disabled;
/// security is Cilium's alone (Azure/azure-rest-api-specs, `managedClusters.json`, `AdvancedNetworking`).
/// `stored` is what the cluster has of them.
pub(super) fn parse_advanced(
    asked: &Advanced,
    dataplane: Dataplane,
    (door, stored): (&Door, Option<AdvancedNetworking>),
    findings: &mut Findings,
) -> Option<AdvancedNetworking> {
    let off = AdvancedNetworking::default();
    if asked.enabled != Some(true) {
        return Some(off);
    }
    if dataplane.is_azure() {
        let what = "Advanced Container Networking Services with network data plane azure";
        findings.add(unsupported(NOT_SUPPORTED, what).at(&format!("{ADVANCED}.enabled")));
        return None;
    }
    let is_on = |enabled: Option<bool>| enabled.unwrap_or(true);
    let policies = findings.take(policies(asked.security.as_ref()))?;
    let advanced = AdvancedNetworking {
        observability: is_on(asked.observability.as_ref().and_then(|it| it.enabled)),
        security: is_on(asked.security.as_ref().and_then(|it| it.enabled)).then_some(policies),
    };
    // Who has them already says so again whenever something else is updated.
    if advanced.security == Some(AdvancedPolicies::L7)
        && stored.and_then(|it| it.security) != advanced.security
        && let Some(why) = (door.why_no_envoy)()
    {
        let text = format!(
            "Advanced network policies L7 (HTTP, gRPC and Kafka) need Envoy, which this lab has not: {why}."
        );
        findings.add(Fault::bad(NOT_SUPPORTED, text).at(POLICIES));
    }
    // Azure/azure-cli, `managed_cluster_decorator.py`, says that the service refuses this, and not how.
    if advanced == off {
        let text = format!(
            "The value of parameter {ADVANCED} is invalid. Error details: It is enabled, and both observability and \
             security are disabled."
        );
        findings.add(Fault::bad("InvalidParameter", text).at(ADVANCED));
    }
    Some(advanced)
}

fn policies(asked: Option<&Security>) -> Result<AdvancedPolicies, Fault> {
    let text = asked.and_then(|security| given(security.advanced_network_policies.clone()));
    match text.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("fqdn") => Ok(AdvancedPolicies::Fqdn),
        Some("l7") => Ok(AdvancedPolicies::L7),
        Some("none") => Ok(AdvancedPolicies::None),
        Some(text) => Err(not_one_of(text, &["FQDN", "L7", "None"], POLICIES)),
    }
}

/// Advanced Container Networking Services as a `GET` shows them.
pub(super) fn shown_advanced(advanced: AdvancedNetworking) -> Value {
    let policies = match advanced.security {
        Some(AdvancedPolicies::Fqdn) => "FQDN",
        Some(AdvancedPolicies::L7) => "L7",
        Some(AdvancedPolicies::None) | None => "None",
    };
    json!({
        "enabled": advanced.is_enabled(),
        "observability": { "enabled": advanced.observability },
        "security": {
            "enabled": advanced.security.is_some(),
            "advancedNetworkPolicies": policies,
        },
    })
}

/// A property that this api-version does not have, which AKS does not overlook
/// (Azure/terraform-azurerm-avm-res-containerservice-managedcluster pull request 176, Azure/azure-cli issue 13050).
fn unknown(name: &str) -> Fault {
    let text = format!("UnmarshalEntity encountered error: json: unknown field \"{name}\".");
    Fault::bad("UnmarshalError", text).at(&format!("networkProfile.{name}"))
}

fn dataplane(text: &str) -> Result<Dataplane, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "azure" => Ok(Dataplane::Azure),
        "cilium" => Ok(Dataplane::Cilium),
        _ => Err(not_one_of(text, &["azure", "cilium"], DATAPLANE)),
    }
}

fn policy(text: &str) -> Result<NetworkPolicy, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(NetworkPolicy::None),
        "azure" => Ok(NetworkPolicy::Azure),
        "calico" => Ok(NetworkPolicy::Calico),
        "cilium" => Ok(NetworkPolicy::Cilium),
        _ => Err(not_one_of(text, &["azure", "calico", "cilium", "none"], POLICY)),
    }
}

/// The data plane's property and its text, for a client that knows one.
pub(super) fn shown(
    api_version: ApiVersion<'_>,
    dataplane: Dataplane,
) -> Option<(&'static str, &'static str)> {
    let text = match dataplane {
        Dataplane::Azure => "azure",
        Dataplane::Cilium => "cilium",
    };
    // The older property had no word for Azure's own.
    property(api_version)
        .filter(|property| *property != "ebpfDataplane" || !dataplane.is_azure())
        .map(|property| (property, text))
}

/// A policy engine as Azure spells it.
pub(super) fn policy_text(policy: NetworkPolicy) -> &'static str {
    match policy {
        NetworkPolicy::None => "none",
        NetworkPolicy::Azure => "azure",
        NetworkPolicy::Calico => "calico",
        NetworkPolicy::Cilium => "cilium",
    }
}

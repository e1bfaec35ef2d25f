//! How a cluster's machines leave it, as a `PUT` asks for it: outbound type, `loadBalancerProfile`, `natGatewayProfile`.

use serde::Deserialize;
use vnet::{
    fault::Fault,
    kind,
    model::{Cluster, OutboundAddresses, OutboundProfile, OutboundType},
    name::ArmId,
};

use crate::{
    findings::{Findings, arm_id_of, given, not_one_of},
    refuse::{NOT_SUPPORTED, unsupported},
    wire::public_ip::one_of,
};

const TYPES: [&str; 6] = [
    "loadBalancer",
    "managedNATGateway",
    "userAssignedNATGateway",
    "userDefinedRouting",
    "none",
    "block",
];
const BALANCER: &str = "networkProfile.loadBalancerProfile";
const GATEWAY: &str = "networkProfile.natGatewayProfile";

/// What is asked for.
pub(super) struct Asked {
    pub(super) outbound_type: Option<String>,
    pub(super) balancer: Option<BalancerProfile>,
    pub(super) gateway: Option<GatewayProfile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BalancerProfile {
    #[serde(rename = "managedOutboundIPs")]
    managed: Option<Count>,
    #[serde(rename = "outboundIPs")]
    ips: Option<PublicIps>,
    #[serde(rename = "outboundIPPrefixes")]
    prefixes: Option<Prefixes>,
    allocated_outbound_ports: Option<i64>,
    idle_timeout_in_minutes: Option<u32>,
    backend_pool_type: Option<String>,
    #[serde(rename = "clusterServiceLoadBalancerHealthProbeMode")]
    probe_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayProfile {
    #[serde(rename = "managedOutboundIPProfile")]
    managed: Option<Count>,
    idle_timeout_in_minutes: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Count {
    count: Option<u32>,
    #[serde(rename = "countIPv6")]
    count_v6: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct PublicIps {
    #[serde(rename = "publicIPs")]
    all: Option<Vec<Reference>>,
}

#[derive(Debug, Deserialize)]
struct Prefixes {
    #[serde(rename = "publicIPPrefixes")]
    all: Option<Vec<Reference>>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    id: Option<String>,
}

/// The outbound type that is asked for, and its profile.
pub(super) fn parse(
    asked: Asked,
    stored: Option<&Cluster>,
    findings: &mut Findings,
) -> (Option<OutboundType>, Option<OutboundProfile>) {
    let outbound = findings.take_some(given(asked.outbound_type), |text| outbound_type(&text));
    let is = stored.map(|cluster| (cluster.outbound, &cluster.outbound_profile));
    let type_ = outbound.or(is.map(|(outbound, _)| outbound)).unwrap_or(OutboundType::LoadBalancer);
    let is = is.filter(|(outbound, _)| *outbound == type_).map(|(_, profile)| profile);
    if let Some(profile) = &asked.balancer {
        check_inbound(profile, findings);
    }
    let balancer = asked.balancer.filter(BalancerProfile::asks);
    let gateway = asked.gateway.filter(GatewayProfile::asks);
    if gateway.is_some() && type_ != OutboundType::ManagedNatGateway {
        findings.add(of_another_type(GATEWAY, "managedNATGateway"));
    }
    let profile = match (type_, balancer) {
        (OutboundType::LoadBalancer, balancer) => {
            balancer.and_then(|it| balancer_profile(it, is, findings))
        }
        (OutboundType::UserDefinedRouting, Some(_)) => {
            findings.add(
                Fault::bad(
                    "InvalidUserDefinedRoutingWithLoadBalancerProfile",
                    "A load balancer profile is not allowed with outbound type userDefinedRouting.",
                )
                .at(BALANCER),
            );
            None
        }
        // AKS takes it, and neither does nor shows what it says (Azure/azure-rest-api-specs issue 22469).
        (OutboundType::UserAssignedNatGateway, Some(_)) => None,
        (OutboundType::ManagedNatGateway | OutboundType::None | OutboundType::Block, Some(_)) => {
            findings.add(of_another_type(BALANCER, "loadBalancer"));
            None
        }
        (OutboundType::ManagedNatGateway, None) => gateway.map(|it| gateway_profile(&it, is)),
        (
            OutboundType::UserAssignedNatGateway
            | OutboundType::UserDefinedRouting
            | OutboundType::None
            | OutboundType::Block,
            None,
        ) => None,
    };
    (outbound, profile)
}

impl BalancerProfile {
    /// Whether it says something of the way out, which is for outbound type `loadBalancer` alone.
    fn asks(&self) -> bool {
        self.managed.is_some()
            || self.ips.is_some()
            || self.prefixes.is_some()
            || self.allocated_outbound_ports.is_some()
            || self.idle_timeout_in_minutes.is_some()
    }
}

impl GatewayProfile {
    fn asks(&self) -> bool {
        self.managed.is_some() || self.idle_timeout_in_minutes.is_some()
    }
}

fn of_another_type(target: &str, type_: &str) -> Fault {
    let text = format!(
        "The value of parameter {target} is invalid. Error details: it is for outbound type {type_}, which this cluster has \
         not."
    );
    Fault::bad("InvalidParameter", text).at(target)
}

/// What of the profile is for flows to Services.
fn check_inbound(profile: &BalancerProfile, findings: &mut Findings) {
    for (text, key, known, what) in [
        (
            &profile.backend_pool_type,
            "backendPoolType",
            &["nodeIPConfiguration", "nodeIP"],
            "back-end pools of IP addresses (nodeIPConfiguration works)",
        ),
        (
            &profile.probe_mode,
            "clusterServiceLoadBalancerHealthProbeMode",
            &["ServiceNodePort", "Shared"],
            "one health probe for all Services (ServiceNodePort works)",
        ),
    ] {
        let target = format!("{BALANCER}.{key}");
        // The first one is Azure's default, and the only one that the lab has.
        let text = findings.take_some(given(text.clone()), |text| one_of(&text, known, &target));
        if text.is_some_and(|text| text != known[0]) {
            findings.add(unsupported(NOT_SUPPORTED, what).at(&target));
        }
    }
}

/// A load balancer's outbound addresses; what is not said stays as it `is`, or is the default.
fn balancer_profile(
    asked: BalancerProfile,
    is: Option<&OutboundProfile>,
    findings: &mut Findings,
) -> Option<OutboundProfile> {
    let target = BALANCER;
    let ids =
        |all: Option<Vec<Reference>>| all.unwrap_or_default().into_iter().filter_map(|it| it.id);
    let mut parse = |ids: Vec<String>, kind: &str| -> Option<Vec<ArmId>> {
        let parsed: Vec<Option<ArmId>> =
            ids.iter().map(|id| findings.take(arm_id_of(id, kind, target))).collect();
        parsed.into_iter().collect()
    };
    let default = OutboundProfile::default();
    let is = is.unwrap_or(&default);
    let addresses = match (asked.ips, asked.prefixes) {
        (Some(_), Some(_)) => {
            let text = "outboundIPs and outboundIPPrefixes cannot both be given.";
            findings.add(Fault::bad("InvalidLoadBalancerProfile", text).at(target));
            return None;
        }
        (Some(ips), None) => {
            OutboundAddresses::PublicIps(parse(ids(ips.all).collect(), kind::PUBLIC_IP)?)
        }
        (None, Some(prefixes)) => {
            OutboundAddresses::Prefixes(parse(ids(prefixes.all).collect(), kind::PUBLIC_IP_PREFIX)?)
        }
        (None, None) => match asked.managed.as_ref().and_then(|managed| managed.count) {
            Some(count) => OutboundAddresses::Managed(count),
            None => is.addresses.clone(),
        },
    };
    let ports = asked.allocated_outbound_ports.map_or(Ok(is.allocated_ports), u32::try_from);
    let Ok(allocated_ports) = ports else {
        let code = "LoadBalancerProfileAllocatedOutboundPortsCannotBeNegative";
        let text = "Load balancer profile allocated ports cannot be negative.";
        findings.add(Fault::bad(code, text).at(target));
        return None;
    };
    let idle_timeout_minutes = asked.idle_timeout_in_minutes.unwrap_or(is.idle_timeout_minutes);
    let managed_v6 = asked.managed.and_then(|managed| managed.count_v6).or(is.managed_v6);
    Some(OutboundProfile { addresses, managed_v6, allocated_ports, idle_timeout_minutes })
}

/// The same for a NAT gateway.
fn gateway_profile(asked: &GatewayProfile, is: Option<&OutboundProfile>) -> OutboundProfile {
    let count = asked.managed.as_ref().and_then(|managed| managed.count);
    let addresses = is.map_or(OutboundAddresses::Managed(1), |is| is.addresses.clone());
    OutboundProfile {
        addresses: count.map_or(addresses, OutboundAddresses::Managed),
        managed_v6: None,
        allocated_ports: 0,
        idle_timeout_minutes: asked
            .idle_timeout_in_minutes
            .or(is.map(|is| is.idle_timeout_minutes))
            .unwrap_or(4),
    }
}

fn outbound_type(text: &str) -> Result<OutboundType, Fault> {
    let target = "networkProfile.outboundType";
    match text.to_ascii_lowercase().as_str() {
        "loadbalancer" => Ok(OutboundType::LoadBalancer),
        "userdefinedrouting" => Ok(OutboundType::UserDefinedRouting),
        "managednatgateway" => Ok(OutboundType::ManagedNatGateway),
        "userassignednatgateway" => Ok(OutboundType::UserAssignedNatGateway),
        "none" => Ok(OutboundType::None),
        "block" => Ok(OutboundType::Block),
        "managednatgatewayv2" => {
            Err(unsupported("UnsupportedOutboundType", &format!("outbound type {text}")).at(target))
        }
        _ => Err(not_one_of(text, &TYPES, target)),
    }
}

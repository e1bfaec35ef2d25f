//! Which pod and service ranges a cluster may have.
//!
//! Rules: Azure AKS documentation, "Configure Azure CNI networking", "Azure CNI Overlay networking" and "Use
//! kubenet networking", prerequisites; AKS release notes of 2024-10-25 (the pod CIDR is compared with
//! subnets, not with the whole virtual network).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{network::FORBIDDEN_6, refusal};
use crate::{
    addr::{Prefix, Prefix4, Prefix6},
    fault::Fault,
    model::{Cluster, NetworkMode, OutboundType, Subnet, Vnet},
    sizing::POD_RANGE6_LENGTH,
};

/// Default of `podCidr` for kubenet and overlay.
pub(super) const POD_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// Default of `serviceCidr`.
pub(super) const SERVICE_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 16);
/// Default of the second of `podCidrs`
/// (MicrosoftDocs/azure-aks-docs, `configure-dual-stack.md`; the service itself draws one of RFC 4193).
pub(super) const POD_CIDR6: (Ipv6Addr, u8) =
    (Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0), 64);
/// Default of the second of `serviceCidrs` (same page).
pub(super) const SERVICE_CIDR6: (Ipv6Addr, u8) =
    (Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 0), 108);
/// The service range of IPv6 must not be larger than a /108 (same page).
const SHORTEST_SERVICE_CIDR6: u8 = 108;
/// Pod ranges of IPv6: at most sixteen bits may number nodes
/// (kubernetes/kubernetes, `pkg/controller/nodeipam/ipam/cidrset`: the most that a node's mask may be longer).
const POD_CIDR6_LENGTHS: std::ops::RangeInclusive<u8> = POD_RANGE6_LENGTH - 16..=POD_RANGE6_LENGTH;
/// Default of `dnsServiceIP`, whatever the service range is.
pub(super) const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);

/// What AKS keeps for itself: no cluster may use these.
const RESERVED: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 30, 0, 0), 16),
    (Ipv4Addr::new(172, 31, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
];

/// Not for pods and services, either: loopback, the platform, multicast, and what is above. Virtual networks cannot have
/// them (Azure Virtual Network FAQ), and a node that took the platform's address for a pod's would find no names.
const NOBODYS: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The service range must be smaller than a /12.
const SHORTEST_SERVICE_CIDR: u8 = 13;

/// Refuses ranges of `cluster` that overlap with each other, with a subnet of its virtual network, or with
/// what AKS keeps for itself.
pub(super) fn check(cluster: &Cluster, vnet: &Vnet) -> Result<(), Fault> {
    let service = cluster.service_cidr;
    let at = "networkProfile.serviceCIDR";
    check_reserved(service, at, "service CIDR")?;
    check_nobodys(service, at, "Service CIDR")?;
    if service.length() < SHORTEST_SERVICE_CIDR {
        return Err(refusal::invalid(
            at,
            &format!(
                "Service CIDR {service} is not smaller than a /{}.",
                SHORTEST_SERVICE_CIDR - 1
            ),
        ));
    }
    if let Some(subnet) = overlapping_subnet(service, vnet) {
        return Err(Fault::bad(
            "ServiceCidrOverlapExistingSubnetsCidr",
            format!(
                "The specified service CIDR {service} is conflicted with an existing subnet CIDR {subnet}. Please see \
                 https://aka.ms/aks/servicecidroverlap for how to fix the error."
            ),
        )
        .at(at));
    }
    check_dns(service, cluster.dns_service_ip)?;
    if let Some(pods) = cluster.pod_cidr {
        check_pods(pods, service, vnet)?;
    }
    check_v6(cluster, vnet)?;
    for pool in cluster.pools.values() {
        for (subnet, at) in [
            (Some(&pool.subnet), "agentPoolProfile.vnetSubnetID"),
            (pool.pod_subnet.as_ref(), "agentPoolProfile.podSubnetID"),
        ] {
            let named = |subnet: &&crate::name::ArmId| crate::name::Name::new(subnet.name());
            if let Some(subnet) = subnet.and_then(|id| vnet.subnets.get(&named(&id))) {
                check_reserved(subnet.prefix, at, "subnet")?;
            }
        }
    }
    Ok(())
}

/// Refuses IPv6 where a cluster cannot have it.
pub(super) fn check_families(cluster: &Cluster) -> Result<(), Fault> {
    if !cluster.is_dual_stack() {
        return Ok(());
    }
    let refuse = |code: &str, target: &str, text: &str| Err(Fault::bad(code, text).at(target));
    if cluster.mode == NetworkMode::Azure {
        return refuse(
            "UnsupportedDualStackNetworkPlugin",
            "networkProfile.ipFamilies",
            "IP families [IPv4,IPv6] are not supported for network plugin azure without network plugin mode overlay.",
        );
    }
    if matches!(
        cluster.outbound,
        OutboundType::ManagedNatGateway | OutboundType::UserAssignedNatGateway
    ) {
        return refuse(
            "UnsupportedOutboundType",
            "networkProfile.outboundType",
            "A NAT gateway does not translate IPv6; a dual-stack cluster needs another outbound type.",
        );
    }
    Ok(())
}

/// The same rules for the ranges of IPv6.
fn check_v6(cluster: &Cluster, vnet: &Vnet) -> Result<(), Fault> {
    let Some(service) = cluster.service_cidr6 else { return Ok(()) };
    let at = "networkProfile.serviceCIDRs";
    if service.length() < SHORTEST_SERVICE_CIDR6 {
        return Err(Fault::bad(
            "InvalidServiceCidrIPv6MaskSize",
            format!(
                "The IPv6 service CIDR {service} is larger than a /{SHORTEST_SERVICE_CIDR6}, which is the largest that is \
                 supported."
            ),
        )
        .at(at));
    }
    check_nobodys_v6(service, at, "Service CIDR")?;
    let overlapping = |range: Prefix6| {
        let all = vnet.subnets.values().flat_map(Subnet::prefixes);
        all.filter_map(Prefix::as_v6).find(|subnet| subnet.overlaps(range))
    };
    if let Some(subnet) = overlapping(service) {
        return Err(Fault::bad(
            "ServiceCidrOverlapExistingSubnetsCidr",
            format!(
                "The specified service CIDR {service} is conflicted with an existing subnet CIDR {subnet}. Please see \
                 https://aka.ms/aks/servicecidroverlap for how to fix the error."
            ),
        )
        .at(at));
    }
    if let Some(pods) = cluster.pod_cidr6 {
        let at = "networkProfile.podCIDRs";
        if !POD_CIDR6_LENGTHS.contains(&pods.length()) {
            let (least, most) = (POD_CIDR6_LENGTHS.start(), POD_CIDR6_LENGTHS.end());
            let text = format!("The IPv6 pod CIDR {pods} is not between a /{least} and a /{most}.");
            return Err(refusal::invalid(at, &text));
        }
        check_nobodys_v6(pods, at, "Pod CIDR")?;
        if pods.overlaps(service) {
            return Err(Fault::bad(
                "PodCidrOverlapServiceCidr",
                format!("The specified pod CIDR {pods} is conflicted with service CIDR {service}."),
            )
            .at(at));
        }
        if let Some(subnet) = overlapping(pods) {
            return Err(Fault::bad(
                "PodCidrOverlapExistingSubnetsCidr",
                format!(
                    "The specified pod CIDR {pods} is conflicted with an existing subnet CIDR {subnet}."
                ),
            )
            .at(at));
        }
    }
    check_subnets_v6(cluster, vnet)
}

/// Refuses node subnets of IPv4 only, by AKS' two names for that: none of the virtual network's, or this one.
fn check_subnets_v6(cluster: &Cluster, vnet: &Vnet) -> Result<(), Fault> {
    for pool in cluster.pools.values() {
        let name = crate::name::Name::new(pool.subnet.name());
        let Some(subnet) = vnet.subnets.get(&name).filter(|subnet| subnet.prefix6.is_none()) else {
            continue;
        };
        let (code, text) = if vnet.is_dual_stack() {
            (
                "VnetSubnetMissingIPv6",
                format!(
                    "Subnet {} of agent pool {} has no IPv6 address prefix, which a dual-stack cluster needs.",
                    subnet.name, pool.name
                ),
            )
        } else {
            (
                "SingleStackVnetSubnetWithDualStackCluster",
                format!(
                    "Agent pool {} of a dual-stack cluster is in subnet {} of virtual network {}, which has IPv4 only.",
                    pool.name,
                    subnet.name,
                    vnet.meta.id.name()
                ),
            )
        };
        return Err(Fault::bad(code, text).at("agentPoolProfile.vnetSubnetID"));
    }
    Ok(())
}

fn check_dns(service: Prefix4, address: Ipv4Addr) -> Result<(), Fault> {
    let at = "networkProfile.dnsServiceIP";
    if !service.contains(address) {
        return Err(Fault::bad(
            "DnsServiceIpOutOfServiceCidr",
            format!(
                "The DNS service IP {address} is out of the range defined by service CIDR {service}."
            ),
        )
        .at(at));
    }
    // The first one is the service `kubernetes` itself.
    if service.nth(0) == Some(address) || service.nth(1) == Some(address) {
        return Err(Fault::bad(
            "DnsServiceIpConflicting",
            format!(
                "The DNS service IP {address} conflicts with the first address of service CIDR {service}, which is the \
                 API server's."
            ),
        )
        .at(at));
    }
    if service.broadcast() == address {
        return Err(Fault::bad(
            "DnsBroadcastAddressConflicting",
            format!("The DNS service IP {address} is the last address of service CIDR {service}."),
        )
        .at(at));
    }
    Ok(())
}

fn check_pods(pods: Prefix4, service: Prefix4, vnet: &Vnet) -> Result<(), Fault> {
    let at = "networkProfile.podCIDR";
    check_reserved(pods, at, "pod CIDR")?;
    check_nobodys(pods, at, "Pod CIDR")?;
    if pods.overlaps(service) {
        return Err(Fault::bad(
            "PodCidrOverlapServiceCidr",
            format!("The specified pod CIDR {pods} is conflicted with service CIDR {service}."),
        )
        .at(at));
    }
    if let Some(subnet) = overlapping_subnet(pods, vnet) {
        return Err(Fault::bad(
            "PodCidrOverlapExistingSubnetsCidr",
            format!(
                "The specified pod CIDR {pods} is conflicted with an existing subnet CIDR {subnet}."
            ),
        )
        .at(at));
    }
    Ok(())
}

fn check_reserved(prefix: Prefix4, at: &str, what: &str) -> Result<(), Fault> {
    let reserved = RESERVED.map(|(network, length)| Prefix4::containing(network, length));
    match reserved.into_iter().find(|reserved| reserved.overlaps(prefix)) {
        Some(reserved) => Err(refusal::invalid(
            at,
            &format!("The {what} {prefix} overlaps with {reserved}, which AKS keeps for itself."),
        )),
        None => Ok(()),
    }
}

fn check_nobodys(prefix: Prefix4, at: &str, what: &str) -> Result<(), Fault> {
    let nobodys = NOBODYS.map(|(network, length)| Prefix4::containing(network, length));
    match nobodys.into_iter().find(|range| range.overlaps(prefix)) {
        Some(range) => {
            Err(refusal::invalid(at, &format!("{what} {prefix} overlaps with {range}.")))
        }
        None => Ok(()),
    }
}

/// The same of IPv6.
fn check_nobodys_v6(prefix: Prefix6, at: &str, what: &str) -> Result<(), Fault> {
    let nobodys = FORBIDDEN_6.map(|range| range.parse::<Prefix>().expect("a list of prefixes"));
    match nobodys.into_iter().find(|range| range.overlaps(Prefix::V6(prefix))) {
        Some(range) => {
            Err(refusal::invalid(at, &format!("{what} {prefix} overlaps with {range}.")))
        }
        None => Ok(()),
    }
}

fn overlapping_subnet(prefix: Prefix4, vnet: &Vnet) -> Option<Prefix4> {
    vnet.subnets.values().map(|subnet| subnet.prefix).find(|subnet| subnet.overlaps(prefix))
}

//! Which pod and service ranges a cluster may have.
//!
//! Rules: Azure AKS documentation, "Configure Azure CNI networking", "Azure CNI Overlay networking" and "Use
//! kubenet networking", prerequisites; AKS release notes of 2024-10-25 (the pod CIDR is compared with
//! subnets, not with the whole virtual network).

use std::net::Ipv4Addr;

use super::refusal;
use crate::{addr::Prefix4, fault::Fault, model::Cluster, model::Vnet};

/// Default of `podCidr` for kubenet and overlay.
pub(super) const POD_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// Default of `serviceCidr`.
pub(super) const SERVICE_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 16);
/// Default of `dnsServiceIP`, whatever the service range is.
pub(super) const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);

/// What AKS keeps for itself: no cluster may use these.
const RESERVED: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 30, 0, 0), 16),
    (Ipv4Addr::new(172, 31, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
];

/// Not for services, either: loopback, multicast, and what is above.
const NOT_FOR_SERVICES: [(Ipv4Addr, u8); 2] =
    [(Ipv4Addr::new(127, 0, 0, 0), 8), (Ipv4Addr::new(224, 0, 0, 0), 3)];

/// The service range must be smaller than a /12.
const SHORTEST_SERVICE_CIDR: u8 = 13;

/// Refuses ranges of `cluster` that overlap with each other, with a subnet of its virtual network, or with
/// what AKS keeps for itself.
pub(super) fn check(cluster: &Cluster, vnet: &Vnet) -> Result<(), Fault> {
    let service = cluster.service_cidr;
    let at = "networkProfile.serviceCIDR";
    check_reserved(service, at, "service CIDR")?;
    for (network, length) in NOT_FOR_SERVICES {
        let range = Prefix4::containing(network, length);
        if service.overlaps(range) {
            return Err(refusal::invalid(
                at,
                &format!("Service CIDR {service} overlaps with {range}."),
            ));
        }
    }
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

fn overlapping_subnet(prefix: Prefix4, vnet: &Vnet) -> Option<Prefix4> {
    vnet.subnets.values().map(|subnet| subnet.prefix).find(|subnet| subnet.overlaps(prefix))
}

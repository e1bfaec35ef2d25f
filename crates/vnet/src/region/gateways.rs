//! NAT gateways.
//!
//! Rules: Azure NAT Gateway documentation, "What is Azure NAT Gateway?" and "Design virtual networks with NAT gateway".

use std::{collections::BTreeSet, sync::Arc};

use super::{Change, Region, refusal};
use crate::{
    addr::Family,
    command::{Accepted, Common, PutNatGateway},
    fault::Fault,
    kind,
    model::NatGateway,
    name::ArmId,
};

/// What a NAT gateway can be.
const SKUS: [&str; 2] = ["Standard", "StandardV2"];
/// Minutes that a flow may be idle.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u32> = 4..=120;
/// Public addresses of one NAT gateway.
const MAX_ADDRESSES: u64 = 16;

impl Region {
    /// The subnets that have the NAT gateway `id`: what its `subnets` shows.
    #[must_use]
    pub fn subnets_of_nat_gateway(&self, id: &ArmId) -> Vec<ArmId> {
        let mut subnets = Vec::new();
        for vnet in self.vnets.values() {
            for subnet in vnet.subnets.values() {
                if subnet.nat_gateway.as_ref() == Some(id) {
                    subnets.push(vnet.meta.id.child("subnets", subnet.name.as_str()));
                }
            }
        }
        subnets
    }

    /// What is wrong with NAT gateways.
    pub(super) fn find_in_nat_gateways(&self, findings: &mut Vec<String>) {
        for (id, gateway) in &self.nat_gateways {
            let user = Some(id.as_str());
            for public_ip in &gateway.public_ips {
                if self.public_ips.get(public_ip).and_then(|it| it.used_by.as_deref()) != user {
                    findings.push(format!("{id} has {public_ip}, which does not know it"));
                }
            }
            for prefix in &gateway.public_ip_prefixes {
                if self.public_ip_prefixes.get(prefix).and_then(|it| it.used_by.as_deref()) != user
                {
                    findings.push(format!("{id} has {prefix}, which does not know it"));
                }
            }
            let subnets = self.subnets_of_nat_gateway(id);
            let vnets: BTreeSet<_> = subnets.iter().filter_map(ArmId::parent).collect();
            if vnets.len() > 1 {
                findings.push(format!("{id} has subnets of several virtual networks"));
            }
        }
        for (id, subnet) in self.vnets.values().flat_map(|vnet| {
            vnet.subnets.values().map(|it| (vnet.meta.id.child("subnets", it.name.as_str()), it))
        }) {
            let gateway = subnet.nat_gateway.as_ref();
            if gateway.is_some_and(|gateway| !self.nat_gateways.contains_key(gateway)) {
                findings.push(format!("{id} has NAT gateway {gateway:?}, which is not there"));
            }
        }
    }
}

impl Change {
    pub(super) fn put_nat_gateway(
        &mut self,
        common: &Common,
        put: PutNatGateway,
    ) -> Result<Accepted, Fault> {
        let old = self.region.nat_gateways.get(&common.id).cloned();
        let meta = self.meta(common, kind::NAT_GATEWAY, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        if !SKUS.iter().any(|sku| put.sku.eq_ignore_ascii_case(sku)) {
            return Err(refusal::invalid(
                "sku.name",
                &format!("A NAT gateway is {}, not '{}'.", SKUS.join(" or "), put.sku),
            ));
        }
        if old.as_ref().is_some_and(|old| !old.sku.eq_ignore_ascii_case(&put.sku)) {
            return Err(refusal::property_change("sku.name"));
        }
        let idle_timeout_minutes = put.idle_timeout_minutes.unwrap_or(*IDLE_TIMEOUT.start());
        if !IDLE_TIMEOUT.contains(&idle_timeout_minutes) {
            return Err(refusal::invalid(
                "properties.idleTimeoutInMinutes",
                &format!(
                    "{idle_timeout_minutes} is not between {} and {}.",
                    IDLE_TIMEOUT.start(),
                    IDLE_TIMEOUT.end()
                ),
            ));
        }
        // What it had is free for the new lists.
        if let Some(old) = &old {
            self.release_publics(old);
        }
        let user = id.to_string();
        let mut n_addresses = 0;
        for public_ip in &put.public_ips {
            self.attach_public(public_ip, &id, &meta.location, &user)?;
            let sku = &self.region.public_ips[public_ip].sku;
            if !sku.eq_ignore_ascii_case("Standard") && !sku.eq_ignore_ascii_case("StandardV2") {
                return Err(refusal::invalid(
                    "properties.publicIpAddresses",
                    &format!(
                        "Public IP {public_ip} is of SKU {sku}; a NAT gateway needs Standard."
                    ),
                ));
            }
            if self.region.public_ips[public_ip].address.is_ipv6() {
                return Err(refuse_ipv6(&id, public_ip));
            }
            n_addresses += 1;
        }
        for prefix in &put.public_ip_prefixes {
            n_addresses += self.attach_prefix(prefix, &id, &meta.location, &user)?;
            if self.region.public_ip_prefixes[prefix].prefix.family() == Family::V6 {
                return Err(refuse_ipv6(&id, prefix));
            }
        }
        if n_addresses > MAX_ADDRESSES {
            return Err(refusal::invalid(
                "properties.publicIpAddresses",
                &format!(
                    "NAT gateway {id} would have {n_addresses} public addresses; {MAX_ADDRESSES} is the most."
                ),
            ));
        }
        let gateway = NatGateway {
            meta,
            sku: put.sku,
            public_ips: put.public_ips,
            public_ip_prefixes: put.public_ip_prefixes,
            idle_timeout_minutes,
        };
        self.region.nat_gateways.insert(id.clone(), Arc::new(gateway));
        Ok(self.put(&id, old.is_none()))
    }

    /// Refuses a NAT gateway that `subnet` of virtual network `vnet` cannot have.
    pub(super) fn check_nat_gateway_of(
        &self,
        subnet: &ArmId,
        vnet: &ArmId,
        location: &str,
        gateway: &ArmId,
    ) -> Result<(), Fault> {
        let there = self.region.nat_gateways.get(gateway);
        let there = there.filter(|there| there.meta.location == location);
        let there = there.ok_or_else(|| refusal::reference(gateway, subnet))?;
        self.refuse_going(gateway, there.meta.state)?;
        let subnets = self.region.subnets_of_nat_gateway(gateway);
        let elsewhere = subnets.iter().find(|other| other.parent().as_ref() != Some(vnet));
        if let Some(other) = elsewhere {
            return Err(Fault::bad(
                "NatGatewayCannotBeUsedBySubnetsBelongingToDifferentVirtualNetworks",
                format!(
                    "NAT gateway {gateway} referenced by subnet {subnet} is already used by subnet {other} of another \
                     virtual network. All subnets of a NAT gateway must belong to one virtual network."
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn refuse_used_nat_gateway(&self, id: &ArmId) -> Result<(), Fault> {
        let subnets = self.region.subnets_of_nat_gateway(id);
        if subnets.is_empty() {
            return Ok(());
        }
        let subnets: Vec<&str> = subnets.iter().map(ArmId::as_str).collect();
        Err(Fault::bad(
            "InUseNatGatewayCannotBeDeleted",
            format!(
                "NAT gateway {id} cannot be deleted because it is in use by the following subnets: {}. In order to delete \
                 the NAT gateway, remove the association with the subnets.",
                subnets.join(", ")
            ),
        ))
    }

    /// Takes a NAT gateway out of the region: its public addresses are free.
    pub(super) fn drop_nat_gateway(&mut self, id: &ArmId) {
        if let Some(gateway) = self.region.nat_gateways.remove(id) {
            self.release_publics(&gateway);
        }
    }

    fn release_publics(&mut self, gateway: &NatGateway) {
        for public_ip in &gateway.public_ips {
            self.detach_public(public_ip);
        }
        for prefix in &gateway.public_ip_prefixes {
            self.detach_prefix(prefix);
        }
    }
}

/// Azure's Standard NAT gateways are IPv4 only ("What is Azure NAT Gateway?", limitations); those of `StandardV2`
/// are not, and nobody has made them here.
fn refuse_ipv6(gateway: &ArmId, public: &ArmId) -> Fault {
    refusal::invalid(
        "properties.publicIpAddresses",
        &format!(
            "NAT gateway {gateway} cannot have {public}, which is IPv6: it translates IPv4 only."
        ),
    )
}

//! Virtual networks and subnets.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, UNCHANGED, refusal};
use crate::{
    addr::{Family, Prefix},
    command::{Accepted, Common, PutSubnet},
    fault::Fault,
    kind,
    model::{Delegation, ProvisioningState, Subnet, Vnet},
    name::{ArmId, Name},
};

/// What no virtual network may have (Azure Virtual Network FAQ, "What address ranges can I use in my virtual networks?").
const FORBIDDEN: [&str; 5] =
    ["224.0.0.0/4", "255.255.255.255/32", "127.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32"];

/// The same for IPv6: what is not one machine's or everybody's (IANA, "IPv6 Special-Purpose Address Registry").
pub(super) const FORBIDDEN_6: [&str; 4] = ["::/128", "::1/128", "fe80::/10", "ff00::/8"];

/// The length of an IPv6 prefix of a subnet, always
/// (Azure documentation, "IPv6 for Azure Virtual Network", limitations).
const SUBNET_6: u8 = 64;

/// The longest prefix of a subnet (same page, "How small and how large can virtual networks and subnets be?").
const LONGEST_SUBNET: u8 = 29;

/// `privateEndpointNetworkPolicies` where nobody says.
pub(super) const PRIVATE_ENDPOINT_DEFAULT: &str = "Disabled";
/// `privateLinkServiceNetworkPolicies` where nobody says.
pub(super) const PRIVATE_LINK_DEFAULT: &str = "Enabled";

impl Change {
    pub(super) fn put_vnet(
        &mut self,
        common: &Common,
        prefixes: Vec<Prefix>,
        subnets: Option<Vec<PutSubnet>>,
    ) -> Result<Accepted, Fault> {
        let old = self.region.vnets.get(&common.id).cloned();
        let meta = self.meta(common, kind::VNET, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        check_address_space(&id, &prefixes)?;
        let old_subnets = old.as_ref().map_or_else(BTreeMap::new, |old| old.subnets.clone());
        let subnets = match subnets {
            None => old_subnets,
            Some(wanted) => self.subnets_of(&id, &meta.location, &old_subnets, wanted)?,
        };
        let default_outbound = match &old {
            Some(old) => old.default_outbound,
            None => self.lab_address()?,
        };
        let peerings = old.as_ref().map_or_else(BTreeMap::new, |old| old.peerings.clone());
        let vnet = Vnet { meta, prefixes, subnets, peerings, default_outbound };
        check_layout(&vnet)?;
        self.region.vnets.insert(id.clone(), Arc::new(vnet));
        self.check_peers(&id)?;
        Ok(self.put(&id, old.is_none()))
    }

    /// The subnets of a virtual network whose whole list is `wanted`.
    fn subnets_of(
        &self,
        vnet: &ArmId,
        location: &str,
        old: &BTreeMap<Name, Subnet>,
        wanted: Vec<PutSubnet>,
    ) -> Result<BTreeMap<Name, Subnet>, Fault> {
        let mut subnets = BTreeMap::new();
        for put in wanted {
            let name = put.name.clone();
            let subnet = self.subnet_from(vnet, location, old.get(&name), put)?;
            if subnets.insert(name.clone(), subnet).is_some() {
                return Err(refusal::invalid(
                    "properties.subnets",
                    &format!("Subnet name {name} is used more than once."),
                ));
            }
        }
        for name in old.keys().filter(|name| !subnets.contains_key(*name)) {
            self.refuse_used_subnet(vnet, name)?;
        }
        Ok(subnets)
    }

    pub(super) fn put_subnet(&mut self, id: &ArmId, put: PutSubnet) -> Result<Accepted, Fault> {
        self.live_group(id)?;
        let vnet_id = id.parent().ok_or_else(|| refusal::wrong_kind(id, kind::SUBNET))?;
        let vnet = self
            .region
            .vnets
            .get(&vnet_id)
            .ok_or_else(|| refusal::parent_not_found(id, &vnet_id))?;
        self.refuse_going(&vnet_id, vnet.meta.state)?;
        let name = put.name.clone();
        let old = vnet.subnets.get(&name);
        let is_new = old.is_none();
        let subnet = self.subnet_from(&vnet.meta.id, &vnet.meta.location, old, put)?;
        let mut vnet = vnet.as_ref().clone();
        vnet.subnets.insert(name, subnet);
        check_layout(&vnet)?;
        self.touch(&mut vnet.meta, ProvisioningState::Updating);
        self.region.vnets.insert(vnet_id, Arc::new(vnet));
        Ok(self.put(id, is_new))
    }

    /// The subnet that `put` makes of `old`.
    fn subnet_from(
        &self,
        vnet: &ArmId,
        location: &str,
        old: Option<&Subnet>,
        put: PutSubnet,
    ) -> Result<Subnet, Fault> {
        let id = vnet.child("subnets", put.name.as_str());
        refusal::check_name(put.name.as_str())?;
        if put.prefix.length() > LONGEST_SUBNET {
            return Err(Fault::bad(
                "NetcfgInvalidSubnet",
                format!(
                    "Subnet '{}' is not valid in virtual network '{}'. {} has {} addresses; the smallest subnet is a \
                     /{LONGEST_SUBNET}.",
                    put.name,
                    vnet.name(),
                    put.prefix,
                    put.prefix.n_addresses()
                ),
            ));
        }
        if let Some(prefix) = put.prefix6.filter(|prefix| prefix.length() != SUBNET_6) {
            return Err(Fault::bad(
                "NetcfgInvalidSubnet",
                format!(
                    "Subnet '{}' is not valid in virtual network '{}'. {prefix} is not a /{SUBNET_6}, as every IPv6 \
                     prefix of a subnet is.",
                    put.name,
                    vnet.name()
                ),
            ));
        }
        if let Some(table) = &put.route_table {
            let there = self.region.route_tables.get(table);
            let there = there.filter(|there| there.meta.location == location);
            let there = there.ok_or_else(|| refusal::reference(table, &id))?;
            self.refuse_going(table, there.meta.state)?;
        }
        self.attachable_security_group(put.security_group.as_ref(), &id, location)?;
        if let Some(gateway) = &put.nat_gateway {
            self.check_nat_gateway_of(&id, vnet, location, gateway)?;
        }
        let delegations: Vec<Delegation> = put.delegations.into_iter().map(with_actions).collect();
        if let Some(old) = old {
            if old.state == ProvisioningState::Deleting {
                return Err(refusal::in_progress(&id));
            }
            let stays = [Some(Prefix::V4(put.prefix)), put.prefix6.map(Prefix::V6)];
            let mut gone = old.prefixes().filter(|prefix| !stays.contains(&Some(*prefix)));
            if let Some(prefix) =
                gone.find(|prefix| old.held.keys().any(|address| prefix.contains(*address)))
            {
                return Err(Fault::bad(
                    "InUsePrefixCannotBeDeleted",
                    format!(
                        "IpPrefix {prefix} on Subnet {} has active allocations and cannot be deleted.",
                        old.name
                    ),
                ));
            }
            check_delegations(&id, old, &delegations)?;
        }
        Ok(Subnet {
            name: old.map_or(put.name, |old| old.name.clone()),
            prefix: put.prefix,
            prefix6: put.prefix6,
            route_table: put.route_table,
            security_group: put.security_group,
            nat_gateway: put.nat_gateway,
            default_outbound: put.default_outbound.unwrap_or(true),
            delegations,
            association_links: old.map_or_else(Vec::new, |old| old.association_links.clone()),
            held: old.map_or_else(BTreeMap::new, |old| old.held.clone()),
            private_endpoint_network_policies: put
                .private_endpoint_network_policies
                .unwrap_or_else(|| PRIVATE_ENDPOINT_DEFAULT.to_owned()),
            private_link_service_network_policies: put
                .private_link_service_network_policies
                .unwrap_or_else(|| PRIVATE_LINK_DEFAULT.to_owned()),
            state: ProvisioningState::Updating,
            changed: self.generation,
            kept: put.kept,
        })
    }

    pub(super) fn delete_subnet(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some((vnet, subnet)) = self.region.subnet(id) else { return Ok(UNCHANGED) };
        if subnet.state == ProvisioningState::Deleting {
            return Ok(self.deleting_again(id));
        }
        let (vnet, name) = (vnet.meta.id.clone(), subnet.name.clone());
        self.refuse_used_subnet(&vnet, &name)?;
        let generation = self.generation;
        let subnet = self.subnet_mut(id);
        subnet.state = ProvisioningState::Deleting;
        subnet.changed = generation;
        Ok(self.deleting(id))
    }
}

/// Refuses an address space with a range that Azure keeps, or with two that overlap.
fn check_address_space(id: &ArmId, prefixes: &[Prefix]) -> Result<(), Fault> {
    let target = "properties.addressSpace.addressPrefixes";
    if prefixes.is_empty() {
        return Err(refusal::invalid(
            target,
            &format!("Virtual network {id} has no address prefix."),
        ));
    }
    if prefixes.iter().all(|prefix| prefix.family() == Family::V6) {
        return Err(refusal::invalid(
            target,
            &format!(
                "Virtual network {id} has no IPv4 address prefix, which it needs beside IPv6."
            ),
        ));
    }
    for prefix in prefixes {
        let longest = match prefix.family() {
            Family::V4 => LONGEST_SUBNET,
            Family::V6 => SUBNET_6,
        };
        if prefix.length() > longest || prefix.length() < 2 {
            return Err(refusal::invalid(
                target,
                &format!("{prefix} is not between /2 and /{longest}."),
            ));
        }
        for forbidden in FORBIDDEN.iter().chain(&FORBIDDEN_6) {
            let forbidden: Prefix = forbidden.parse().expect("the list has prefixes only");
            if prefix.overlaps(forbidden) {
                return Err(refusal::invalid(
                    target,
                    &format!(
                        "{prefix} overlaps with {forbidden}, which no virtual network can have."
                    ),
                ));
            }
        }
    }
    if let Some((a, b)) = first_overlap(prefixes.iter().copied(), |prefix| prefix) {
        return Err(refusal::invalid(target, &format!("{a} and {b} overlap.")));
    }
    Ok(())
}

/// Refuses a subnet outside of its virtual network, and subnets that overlap.
fn check_layout(vnet: &Vnet) -> Result<(), Fault> {
    let name = vnet.meta.id.name();
    for subnet in vnet.subnets.values() {
        let is_inside = |own| vnet.prefixes.iter().any(|prefix| prefix.contains_prefix(own));
        if !subnet.prefixes().all(is_inside) {
            return Err(Fault::bad(
                "NetcfgSubnetRangeOutsideVnet",
                format!(
                    "Subnet '{}' is not valid because its IP address range is outside the IP address range of virtual \
                     network '{name}'.",
                    subnet.name
                ),
            ));
        }
    }
    let all = vnet.subnets.values();
    let all = all.flat_map(|subnet| subnet.prefixes().map(move |prefix| (subnet, prefix)));
    if let Some(((a, _), (b, _))) = first_overlap(all, |(_, prefix)| prefix) {
        // The one that this command changes is the one that is wrong.
        let wrong = if a.changed > b.changed { a } else { b };
        return Err(Fault::bad(
            "NetcfgSubnetRangesOverlap",
            format!(
                "Subnet '{}' is not valid because its IP address range overlaps with that of an existing subnet in \
                 virtual network '{name}'.",
                wrong.name
            ),
        ));
    }
    Ok(())
}

/// The first two that overlap. Prefixes nest or are apart, so in order of their addresses, two that overlap
/// mean two neighbours that do.
fn first_overlap<T: Copy>(
    all: impl IntoIterator<Item = T>,
    prefix: impl Fn(T) -> Prefix,
) -> Option<(T, T)> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort_by_key(|one| (prefix(*one).network(), prefix(*one).length()));
    all.windows(2)
        .find(|pair| prefix(pair[0]).overlaps(prefix(pair[1])))
        .map(|pair| (pair[0], pair[1]))
}

/// Refuses to change what services a subnet belongs to while it is used
/// (Azure Virtual Network documentation, "Add or remove a subnet delegation").
fn check_delegations(id: &ArmId, old: &Subnet, new: &[Delegation]) -> Result<(), Fault> {
    let is_for = |service: &'static str| {
        move |delegation: &&Delegation| delegation.service.eq_ignore_ascii_case(service)
    };
    if !old.association_links.is_empty() && !new.iter().any(|one| is_for(kind::AKS_SERVICE)(&one)) {
        return Err(Fault::bad(
            "SubnetMissingRequiredDelegation",
            format!(
                "Subnet {id} requires any of the following delegation(s) [{}] to reference service association link {}.",
                kind::AKS_SERVICE,
                id.child("serviceAssociationLinks", "AzureKubernetesService")
            ),
        ));
    }
    let services = |delegations: &[Delegation]| {
        let mut services: Vec<String> =
            delegations.iter().map(|one| one.service.to_ascii_lowercase()).collect();
        services.sort();
        services
    };
    let named = |delegations: &[Delegation]| {
        delegations.iter().map(|one| one.service.as_str()).collect::<Vec<_>>().join(", ")
    };
    if let Some(holder) = old.held.values().next()
        && services(&old.delegations) != services(new)
    {
        return Err(Fault::bad(
            "SubnetDelegationsCannotChangeWhenSubnetUsedByResource",
            format!(
                "Delegations of subnet {id} cannot be changed from [{}] to [{}] because it is being used by the resource \
                 {}.",
                named(&old.delegations),
                named(new),
                refusal::holder_id(id, holder)
            ),
        ));
    }
    Ok(())
}

/// A delegation with what its service may do: `availableDelegations` of the network provider.
pub(super) fn with_actions(delegation: Delegation) -> Delegation {
    let subnets = "Microsoft.Network/virtualNetworks/subnets";
    let actions: &[&str] = match delegation.service.to_ascii_lowercase().as_str() {
        "microsoft.web/serverfarms" => &["action"],
        "microsoft.sql/managedinstances" => {
            &["join/action", "prepareNetworkPolicies/action", "unprepareNetworkPolicies/action"]
        }
        _ => &["join/action"],
    };
    Delegation {
        actions: actions.iter().map(|action| format!("{subnets}/{action}")).collect(),
        ..delegation
    }
}

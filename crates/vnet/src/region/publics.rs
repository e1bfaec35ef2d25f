//! Public IPs and public IP prefixes, and who has which: one user each.
//!
//! Rules: Azure documentation, "Public IP addresses", "Public IP address prefix".

use std::{net::IpAddr, sync::Arc};

use super::{Change, Region, refusal};
use crate::{
    addr::{Family, Prefix},
    command::{Accepted, Common},
    fault::Fault,
    kind,
    model::{Allocation, Frontend, PublicIp, PublicIpPrefix, PublicIpSettings},
    name::ArmId,
};

/// The lengths of public IP prefixes, and of those of IPv6.
const LENGTHS: std::ops::RangeInclusive<u8> = 28..=31;
const LENGTHS_6: std::ops::RangeInclusive<u8> = 124..=127;

/// Minutes that a flow may be idle.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u32> = 4..=30;

/// Whether Azure takes it as the first part of a name: 3 to 63 of `[a-z0-9-]`, a letter first, no hyphen last.
fn is_label(text: &str) -> bool {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (3..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !text.ends_with('-')
}

impl Region {
    /// The public IPs that are of the prefix `id`: what its `publicIPAddresses` shows.
    #[must_use]
    pub fn public_ips_of_prefix(&self, id: &ArmId) -> Vec<ArmId> {
        let all = self.public_ips.iter();
        all.filter(|(_, it)| it.prefix.as_ref() == Some(id)).map(|(id, _)| id.clone()).collect()
    }

    /// Everything that has a public IP or a prefix of its own: the address's resource, and the user as an id.
    fn uses_of_publics(&self) -> Vec<(&ArmId, String)> {
        let mut uses = Vec::new();
        for (id, balancer) in &self.balancers {
            for (name, frontend) in &balancer.frontends {
                let public = match frontend {
                    Frontend::Internal { .. } => continue,
                    Frontend::Public { public_ip } => public_ip,
                    Frontend::Prefix { public_ip_prefix } => public_ip_prefix,
                };
                uses.push((public, super::balancer::frontend_id(id, name).to_string()));
            }
        }
        for (id, nic) in &self.nics {
            for config in &nic.configs {
                if let Some(public_ip) = &config.public_ip {
                    uses.push((public_ip, id.child("ipConfigurations", &config.name).to_string()));
                }
            }
        }
        for (id, gateway) in &self.nat_gateways {
            let all = gateway.public_ips.iter().chain(&gateway.public_ip_prefixes);
            uses.extend(all.map(|it| (it, id.to_string())));
        }
        uses
    }

    /// The resources outside of some groups that have a public IP or a prefix inside of them.
    pub(super) fn users_of_publics(&self, inside: &impl Fn(&ArmId) -> bool) -> Vec<ArmId> {
        let all = self.uses_of_publics().into_iter().filter(|(public, _)| inside(public));
        let parts = all.filter_map(|(_, user)| user.parse::<ArmId>().ok());
        // A front end or an IP configuration is a part of its resource.
        let mut users: Vec<ArmId> =
            parts.map(|part| part.parent().unwrap_or(part)).filter(|user| !inside(user)).collect();
        let of_prefix = self
            .public_ips
            .iter()
            .filter(|(id, public_ip)| public_ip.prefix.as_ref().is_some_and(inside) && !inside(id));
        users.extend(of_prefix.map(|(id, _)| id.clone()));
        users
    }

    /// What is wrong with public addresses and their users.
    pub(super) fn find_in_publics(&self, findings: &mut Vec<String>) {
        let all = self.uses_of_publics();
        let named = self.public_ips.iter().map(|(id, it)| (id, &it.used_by));
        let named = named.chain(self.public_ip_prefixes.iter().map(|(id, it)| (id, &it.used_by)));
        for (id, used_by) in named {
            let users: Vec<&String> =
                all.iter().filter(|(of, _)| *of == id).map(|(_, user)| user).collect();
            if users != used_by.iter().collect::<Vec<_>>() {
                findings.push(format!("{id} is used by {users:?} and says {used_by:?}"));
            }
        }
        for (public, user) in &all {
            let is_there = self.public_ips.contains_key(*public)
                || self.public_ip_prefixes.contains_key(*public);
            if !is_there {
                findings.push(format!("{user} has {public}, which is not there"));
            }
        }
        for (id, public_ip) in &self.public_ips {
            for (other, prefix) in &self.public_ip_prefixes {
                let is_inside = prefix.prefix.contains(public_ip.address);
                if is_inside != (public_ip.prefix.as_ref() == Some(other)) {
                    findings.push(format!(
                        "{id} has {} of prefix {:?}; {other} is {}",
                        public_ip.address, public_ip.prefix, prefix.prefix
                    ));
                }
            }
            let prefix = public_ip.prefix.as_ref();
            if prefix.is_some_and(|prefix| !self.public_ip_prefixes.contains_key(prefix)) {
                findings.push(format!("{id} is of {prefix:?}, which is not there"));
            }
        }
        for prefix in self.public_ip_prefixes.values() {
            let id = &prefix.meta.id;
            if prefix.used_by.is_some() && !self.public_ips_of_prefix(id).is_empty() {
                findings.push(format!("{id} is used as a whole, and in parts"));
            }
            let others = self.vnets.values().map(|vnet| vnet.default_outbound);
            let others = others.chain(self.clusters.values().map(|cluster| cluster.api_address));
            for address in others.filter(|address| prefix.prefix.contains(*address)) {
                findings.push(format!("{address} of {id} belongs to somebody else"));
            }
        }
    }
}

impl Change {
    pub(super) fn put_public_ip(
        &mut self,
        common: &Common,
        prefix: Option<ArmId>,
        (sku, allocation): (String, Allocation),
        family: Family,
        settings: PublicIpSettings,
    ) -> Result<Accepted, Fault> {
        let old = self.region.public_ips.get(&common.id).cloned();
        let meta = self.meta(common, kind::PUBLIC_IP, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let is_standard = sku.eq_ignore_ascii_case("Standard");
        if !is_standard && family == Family::V6 && !sku.eq_ignore_ascii_case("StandardV2") {
            return Err(refusal::invalid(
                "properties.publicIPAddressVersion",
                &format!("An IPv6 public IP is of SKU Standard here, not {sku}."),
            ));
        }
        if is_standard && allocation == Allocation::Dynamic {
            return Err(refusal::invalid(
                "properties.publicIPAllocationMethod",
                "A public IP of SKU Standard is static.",
            ));
        }
        if old.as_ref().is_some_and(|old| !old.sku.eq_ignore_ascii_case(&sku)) {
            return Err(refusal::property_change("sku.name"));
        }
        if old.as_ref().is_some_and(|old| Family::of(old.address) != family) {
            return Err(refusal::property_change("properties.publicIPAddressVersion"));
        }
        let id = meta.id.clone();
        let address = match (&old, &prefix) {
            (Some(old), Some(prefix)) if old.prefix.as_ref() != Some(prefix) => {
                return Err(refusal::property_change("properties.publicIPPrefix"));
            }
            (Some(old), _) => old.address,
            (None, Some(prefix)) => {
                if !is_standard {
                    return Err(refusal::invalid(
                        "properties.publicIPPrefix",
                        &format!("A public IP of a prefix is of SKU Standard, not {sku}."),
                    ));
                }
                let address = self.address_of_prefix(prefix, &id, &meta.location)?;
                if Family::of(address) != family {
                    return Err(refusal::invalid(
                        "properties.publicIPPrefix",
                        &format!("Public IP prefix {prefix} is of the other IP address version."),
                    ));
                }
                address
            }
            (None, None) => self.lab_address_of(family)?,
        };
        let public_ip = PublicIp {
            meta,
            address,
            allocation,
            sku,
            // A request that leaves it out keeps it: an address does not leave its prefix.
            prefix: prefix.or_else(|| old.as_ref().and_then(|old| old.prefix.clone())),
            used_by: old.as_ref().and_then(|old| old.used_by.clone()),
            settings,
        };
        self.check_settings(&public_ip)?;
        self.region.public_ips.insert(id.clone(), Arc::new(public_ip));
        Ok(self.put(&id, old.is_none()))
    }

    /// Refuses an idle timeout out of its limits (text: hashicorp/terraform-provider-azurerm pull request 3579), and a label
    /// that is none or that another one of the family has (scarolan/azure-terraform-beginners issue 20). A public IP of each
    /// family may have one label (Azure documentation, "Create a public load balancer with IPv6 using Azure CLI").
    fn check_settings(&self, public_ip: &PublicIp) -> Result<(), Fault> {
        let id = &public_ip.meta.id;
        if !IDLE_TIMEOUT.contains(&public_ip.settings.idle_timeout_minutes) {
            return Err(Fault::bad(
                "InvalidParameter",
                format!(
                    "Public IP address {} has invalid Idle Timeout. The value must be between {} and {}.",
                    id.name(),
                    IDLE_TIMEOUT.start(),
                    IDLE_TIMEOUT.end()
                ),
            )
            .at("properties.idleTimeoutInMinutes"));
        }
        let (Some(label), Some(name)) = (&public_ip.settings.dns_label, public_ip.fqdn()) else {
            return Ok(());
        };
        if !is_label(label) {
            return Err(Fault::bad(
                "InvalidDomainNameLabel",
                format!(
                    "The domain name label {label} is invalid. It must conform to the following regular expression: \
                     ^[a-z][a-z0-9-]{{1,61}}[a-z0-9]$."
                ),
            )
            .at("properties.dnsSettings.domainNameLabel"));
        }
        let family = Family::of(public_ip.address);
        let mut others = self.region.public_ips.iter().filter(|(other, _)| *other != id);
        if others
            .any(|(_, it)| Family::of(it.address) == family && it.fqdn().as_ref() == Some(&name))
        {
            let message = format!("DNS record {name} is already used by another public IP.");
            return Err(Fault::bad("DnsRecordInUse", message));
        }
        Ok(())
    }

    /// The lowest free address of a prefix.
    pub(super) fn address_of_prefix(
        &self,
        prefix: &ArmId,
        public_ip: &ArmId,
        location: &str,
    ) -> Result<IpAddr, Fault> {
        let there = self.prefix_for(prefix, public_ip, location)?;
        if let Some(user) = &there.used_by {
            return Err(Fault::bad(
                "PublicIPPrefixInUse",
                format!(
                    "Public IP {public_ip} cannot be of prefix {prefix}, because {user} uses the prefix as a whole."
                ),
            ));
        }
        let taken: Vec<IpAddr> = self.region.public_ips.values().map(|it| it.address).collect();
        let range = there.prefix;
        range
            .addresses()
            .find(|address| !taken.contains(address))
            .ok_or_else(|| {
                Fault::bad(
                    "PublicIpPrefixOutOfIpAddresses",
                    format!(
                        "Public IP prefix {prefix} has no free address for {public_ip}: all {} of {range} are taken.",
                        range.n_addresses()
                    ),
                )
            })
    }

    pub(super) fn put_public_ip_prefix(
        &mut self,
        common: &Common,
        sku: String,
        length: u8,
        family: Family,
    ) -> Result<Accepted, Fault> {
        let old = self.region.public_ip_prefixes.get(&common.id).cloned();
        let meta = self.meta(common, kind::PUBLIC_IP_PREFIX, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        if !sku.eq_ignore_ascii_case("Standard") && !sku.eq_ignore_ascii_case("StandardV2") {
            return Err(refusal::invalid(
                "sku.name",
                &format!("A public IP prefix is Standard, not '{sku}'."),
            ));
        }
        if old.as_ref().is_some_and(|old| !old.sku.eq_ignore_ascii_case(&sku)) {
            return Err(refusal::property_change("sku.name"));
        }
        if old.as_ref().is_some_and(|old| old.prefix.family() != family) {
            return Err(refusal::property_change("properties.publicIPAddressVersion"));
        }
        let lengths = match family {
            Family::V4 => LENGTHS,
            Family::V6 => LENGTHS_6,
        };
        if !lengths.contains(&length) {
            return Err(refusal::invalid(
                "properties.prefixLength",
                &format!("{length} is not between {} and {}.", lengths.start(), lengths.end()),
            ));
        }
        let prefix = match &old {
            Some(old) if old.prefix.length() != length => {
                return Err(refusal::property_change("properties.prefixLength"));
            }
            Some(old) => old.prefix,
            None => self.lab_prefix(family, length)?,
        };
        let id = meta.id.clone();
        let used_by = old.as_ref().and_then(|old| old.used_by.clone());
        let prefix = PublicIpPrefix { meta, prefix, sku, used_by };
        self.region.public_ip_prefixes.insert(id.clone(), Arc::new(prefix));
        Ok(self.put(&id, old.is_none()))
    }

    /// Refuses to delete a prefix of which there are public IPs, or that somebody uses as a whole.
    pub(super) fn refuse_used_public_ip_prefix(&self, id: &ArmId) -> Result<(), Fault> {
        let user = self.region.public_ip_prefixes.get(id).and_then(|it| it.used_by.clone());
        let mut users: Vec<String> = user.into_iter().collect();
        users.extend(self.region.public_ips_of_prefix(id).iter().map(ToString::to_string));
        if users.is_empty() {
            return Ok(());
        }
        Err(Fault::bad(
            "InUsePublicIpPrefixCannotBeDeleted",
            format!(
                "Public IP prefix {id} cannot be deleted because it is in use by the following resources: {}.",
                users.join(", ")
            ),
        ))
    }

    /// Gives the public IP `id` to `user`, a part of `resource` in `location`.
    pub(super) fn attach_public(
        &mut self,
        id: &ArmId,
        resource: &ArmId,
        location: &str,
        user: &str,
    ) -> Result<(), Fault> {
        let there = self.region.public_ips.get(id);
        let there = there.filter(|there| there.meta.location == location);
        let there = there.ok_or_else(|| refusal::reference(id, resource))?;
        self.refuse_going(id, there.meta.state)?;
        if let Some(other) = &there.used_by {
            return Err(Fault::bad(
                "PublicIPAddressInUse",
                format!(
                    "Resource {user} is referencing public IP address {id} that is already allocated to resource {other}."
                ),
            ));
        }
        let mut there = there.as_ref().clone();
        there.used_by = Some(user.to_owned());
        self.region.public_ips.insert(id.clone(), Arc::new(there));
        Ok(())
    }

    /// Refuses a public IP of another family than the address that it is to belong to. Code and text are as people
    /// pasted them (ansible-collections/azure pull request 582).
    pub(super) fn check_family_of_public(
        &self,
        id: &ArmId,
        family: Family,
        user: &str,
    ) -> Result<(), Fault> {
        let there = self.region.public_ips.get(id);
        if there.is_none_or(|there| Family::of(there.address) == family) {
            return Ok(());
        }
        let versions = match family {
            Family::V4 => ["IPv6", "IPv4"],
            Family::V6 => ["IPv4", "IPv6"],
        };
        Err(Fault::bad(
            "IPVersionForPublicIpAndNicIpConfigurationMustMatch",
            format!(
                "IP version for publicIPAddress '{id}', version '{}' and network interface ipConfiguration '{user}', \
                 version '{}' must match.",
                versions[0], versions[1]
            ),
        ))
    }

    /// Takes a public IP from whoever has it.
    pub(super) fn detach_public(&mut self, id: &ArmId) {
        if let Some(public_ip) = self.region.public_ips.get_mut(id) {
            Arc::make_mut(public_ip).used_by = None;
        }
    }

    /// Gives all of a prefix to `user`; the answer is how many addresses these are.
    pub(super) fn attach_prefix(
        &mut self,
        id: &ArmId,
        resource: &ArmId,
        location: &str,
        user: &str,
    ) -> Result<u64, Fault> {
        let there = self.prefix_for(id, resource, location)?;
        let others = self.region.public_ips_of_prefix(id);
        let other = there.used_by.clone().or_else(|| others.first().map(ToString::to_string));
        if let Some(other) = other {
            return Err(Fault::bad(
                "PublicIPPrefixInUse",
                format!(
                    "Resource {user} is referencing public IP prefix {id} that is already used by resource {other}."
                ),
            ));
        }
        let mut there = there.clone();
        there.used_by = Some(user.to_owned());
        let n_addresses = there.prefix.n_addresses();
        self.region.public_ip_prefixes.insert(id.clone(), Arc::new(there));
        Ok(n_addresses)
    }

    /// Takes a prefix from whoever has it.
    pub(super) fn detach_prefix(&mut self, id: &ArmId) {
        if let Some(prefix) = self.region.public_ip_prefixes.get_mut(id) {
            Arc::make_mut(prefix).used_by = None;
        }
    }

    fn prefix_for(
        &self,
        id: &ArmId,
        resource: &ArmId,
        location: &str,
    ) -> Result<&PublicIpPrefix, Fault> {
        let there = self.region.public_ip_prefixes.get(id);
        let there = there.filter(|there| there.meta.location == location);
        let there = there.ok_or_else(|| refusal::reference(id, resource))?;
        self.refuse_going(id, there.meta.state)?;
        Ok(there)
    }

    /// The lowest free prefix of the lab's internet, aligned.
    fn lab_prefix(&mut self, family: Family, length: u8) -> Result<Prefix, Fault> {
        let taken = self.taken_lab_addresses();
        let internet = match family {
            Family::V4 => Prefix::V4(super::addresses::lab_internet()),
            Family::V6 => Prefix::V6(super::addresses::lab_internet6()),
        };
        let is_free = |prefix: &Prefix| taken.iter().all(|taken| !taken.overlaps(*prefix));
        let ends = [internet.network(), internet.last()];
        let prefix = internet
            .subnets(length)
            .filter(|prefix| !ends.iter().any(|end| prefix.contains(*end)))
            .find(is_free);
        let prefix = prefix.ok_or_else(|| {
            Fault::bad("PublicIPCountLimitReached", format!("No /{length} of {internet} is free."))
        })?;
        self.claimed.extend(prefix.addresses());
        Ok(prefix)
    }
}

//! NICs and virtual machines.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Change, refusal};
use crate::{
    addr::Family,
    command::{Accepted, Common, PutIpConfiguration},
    fault::Fault,
    kind,
    model::{Allocation, Holder, IpConfiguration, Machine, Nic, Role},
    name::ArmId,
};

/// Refuses to move a NIC into another virtual network: it is of the one that it was made in
/// (MicrosoftDocs/azure-docs pull request 123354, "Virtual network" in the table of settings).
fn check_vnet(old: Option<&Nic>, wanted: &[PutIpConfiguration]) -> Result<(), Fault> {
    let Some(vnet) = old.and_then(Nic::vnet) else { return Ok(()) };
    let other = wanted.iter().find(|put| put.subnet.parent().as_ref() != Some(&vnet));
    let Some(other) = other else { return Ok(()) };
    Err(Fault::bad(
        "PropertyChangeNotAllowed",
        format!(
            "The network interface is of virtual network {vnet} for good, and subnet {} is of another one. Make a new \
             network interface.",
            other.subnet
        ),
    )
    .at("properties.ipConfigurations.properties.subnet"))
}

impl Change {
    pub(super) fn put_nic(
        &mut self,
        common: &Common,
        ip_forwarding: bool,
        security_group: Option<ArmId>,
        wanted: Vec<PutIpConfiguration>,
    ) -> Result<Accepted, Fault> {
        let old = self.region.nics.get(&common.id).cloned();
        let meta = self.meta(common, kind::NIC, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        check_configurations(&id, &wanted)?;
        check_vnet(old.as_deref(), &wanted)?;
        let kept = |put: &PutIpConfiguration| -> Option<IpAddr> {
            let configs = old.iter().flat_map(|old| &old.configs);
            let mut same = configs.filter(|config| is_same(config, put));
            same.next().map(|config| config.address)
        };
        // The old addresses are free for the new list. Those that stay are not touched: with them the virtual network
        // would be another one, with all the addresses that others hold there.
        for config in old.iter().flat_map(|old| &old.configs) {
            let stays = |put: &PutIpConfiguration| {
                is_same(config, put) && put.address.is_none_or(|wanted| wanted == config.address)
            };
            if !wanted.iter().any(stays) {
                self.release(&config.subnet, config.address);
            }
            self.release_public(config);
        }
        let mut configs = Vec::with_capacity(wanted.len());
        // Those who know what they want come first, so that nobody takes it from them.
        for put in &wanted {
            self.joinable(&put.subnet, &id, &meta.location)?;
            if let Some(public_ip) = &put.public_ip {
                let user = id.child("ipConfigurations", &put.name).to_string();
                self.attach_public(public_ip, &id, &meta.location, &user)?;
                self.check_family_of_public(public_ip, put.family, &user)?;
            }
            if let Some(address) = put.address.filter(|wanted| kept(put) != Some(*wanted)) {
                let holder = Holder::IpConfiguration { nic: id.clone(), config: put.name.clone() };
                self.hold(&put.subnet, put.family, Some(address), holder)?;
            }
        }
        for put in wanted {
            let address = if let Some(address) = put.address.or_else(|| kept(&put)) {
                address
            } else {
                let config = put.name.clone();
                let holder = Holder::IpConfiguration { nic: id.clone(), config };
                self.hold(&put.subnet, put.family, None, holder)?
            };
            let allocation =
                if put.address.is_some() { Allocation::Static } else { Allocation::Dynamic };
            configs.push(IpConfiguration {
                name: put.name,
                subnet: put.subnet,
                address,
                allocation,
                public_ip: put.public_ip,
                application_groups: put.application_groups,
            });
        }
        let nic = Nic {
            mac: old.as_ref().map_or_else(|| self.mac_for(&id), |old| old.mac),
            machine: old.as_ref().and_then(|old| old.machine.clone()),
            meta,
            ip_forwarding,
            security_group,
            configs,
        };
        self.check_groups_of_nic(&nic)?;
        let names: BTreeSet<String> = nic.configs.iter().map(|it| it.name.clone()).collect();
        self.region.nics.insert(id.clone(), Arc::new(nic));
        self.aim_inbound_rules(|nic, config| *nic != id || names.contains(config));
        Ok(self.put(&id, old.is_none()))
    }

    /// Gives back the address and the public IP of an IP configuration.
    fn release_configuration(&mut self, config: &IpConfiguration) {
        self.release(&config.subnet, config.address);
        self.release_public(config);
    }

    fn release_public(&mut self, config: &IpConfiguration) {
        if let Some(public_ip) = &config.public_ip {
            self.detach_public(public_ip);
        }
    }

    /// Takes a NIC out of the region: its addresses are free, and no load balancer has it as a member.
    pub(super) fn drop_nic(&mut self, id: &ArmId) {
        let Some(nic) = self.region.nics.remove(id) else { return };
        for config in &nic.configs {
            self.release_configuration(config);
        }
        self.aim_inbound_rules(|nic, _| nic != id);
        let with_it: Vec<ArmId> = self
            .region
            .balancers
            .values()
            .filter(|balancer| balancer.pools.values().any(|pool| pool.members.contains(id)))
            .map(|balancer| balancer.meta.id.clone())
            .collect();
        for balancer in with_it {
            if let Some(balancer) = self.region.balancers.get_mut(&balancer) {
                for pool in Arc::make_mut(balancer).pools.values_mut() {
                    pool.members.retain(|member| member != id);
                }
            }
        }
    }

    pub(super) fn put_vm(&mut self, common: &Common, nic_id: &ArmId) -> Result<Accepted, Fault> {
        let old = self.region.machines.get(&common.id).cloned();
        let meta = self.meta(common, kind::VM, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        if old.as_ref().is_some_and(|old| old.nic != *nic_id) {
            return Err(refusal::property_change("networkProfile.networkInterfaces"));
        }
        let nic = self.region.nics.get(nic_id).ok_or_else(|| refusal::reference(nic_id, &id))?;
        if nic.meta.location != meta.location {
            return Err(refusal::reference(nic_id, &id));
        }
        self.refuse_going(nic_id, nic.meta.state)?;
        if let Some(other) = nic.machine.as_ref().filter(|machine| **machine != id) {
            return Err(Fault::conflict(
                "NicInUse",
                format!("Network Interface {nic_id} is used by existing VM {other}."),
            ));
        }
        let mut nic = nic.as_ref().clone();
        nic.machine = Some(id.clone());
        let nic_id = nic.meta.id.clone();
        self.region.nics.insert(nic_id.clone(), Arc::new(nic));
        // A machine keeps the name servers that it started with.
        let dns_servers = match old {
            Some(ref old) => old.dns_servers.clone(),
            None => self.dns_servers_for(&nic_id),
        };
        let machine = Machine {
            hostname: id.name().to_owned(),
            meta,
            nic: nic_id,
            dns_servers,
            role: Role::Vm,
        };
        self.region.machines.insert(id.clone(), Arc::new(machine));
        Ok(self.put(&id, old.is_none()))
    }
}

/// Whether a configuration that is there is the one that is put, and so keeps its address when none is asked for.
fn is_same(config: &IpConfiguration, put: &PutIpConfiguration) -> bool {
    config.name == put.name
        && config.subnet == put.subnet
        && Family::of(config.address) == put.family
}

/// Refuses a NIC without configurations, with two of one name, or in several virtual networks.
fn check_configurations(id: &ArmId, configs: &[PutIpConfiguration]) -> Result<(), Fault> {
    let target = "properties.ipConfigurations";
    let vnets: BTreeSet<Option<ArmId>> =
        configs.iter().map(|config| config.subnet.parent()).collect();
    let names: BTreeSet<&str> = configs.iter().map(|config| config.name.as_str()).collect();
    if configs.is_empty() {
        return Err(refusal::invalid(target, &format!("{id} has no IP configuration.")));
    }
    if configs.first().is_some_and(|first| first.family == Family::V6) {
        // Azure documentation, "IPv6 for Azure Virtual Network": IPv6 is beside IPv4, never alone.
        return Err(refusal::invalid(
            &format!("{target}[{}].properties.privateIPAddressVersion", configs[0].name),
            &format!("The primary IP configuration of {id} is IPv4."),
        ));
    }
    for config in configs {
        let is_other = |address| Family::of(address) != config.family;
        if config.address.is_some_and(is_other) {
            return Err(refusal::invalid(
                &format!("{target}[{}].properties.privateIPAddress", config.name),
                "The address is not of the address version that privateIPAddressVersion says.",
            ));
        }
    }
    if names.len() != configs.len() {
        return Err(refusal::invalid(target, "An IP configuration's name is used more than once."));
    }
    if vnets.len() > 1 {
        return Err(refusal::invalid(
            target,
            &format!("All IP configurations of {id} must be in one virtual network."),
        ));
    }
    names.into_iter().try_for_each(refusal::check_name)
}

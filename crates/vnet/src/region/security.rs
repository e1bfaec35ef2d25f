//! Network security groups, their rules, application security groups: what is refused, and who uses them.
//!
//! Not here: what a rule means for a packet (see [`crate::policy`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

mod limits;

use self::limits::{check_limits, check_priorities, check_rule};
use super::{Change, Region, UNCHANGED, UPDATED, nodes, refusal};
use crate::{
    command::{Accepted, Common},
    fault::Fault,
    kind,
    model::{
        Addresses, ApplicationGroup, Cluster, Nic, Peers, ProvisioningState, SecurityGroup,
        SecurityRule,
    },
    name::{ArmId, Name},
    policy::tags::ServiceTags,
};

/// Application security groups of an IP configuration (Azure subscription and service limits, networking).
const MAX_GROUPS_OF_CONFIGURATION: usize = 20;

impl Change {
    pub(super) fn put_security_group(
        &mut self,
        common: &Common,
        rules: Option<Vec<SecurityRule>>,
    ) -> Result<Accepted, Fault> {
        let old = self.region.security_groups.get(&common.id).cloned();
        let meta = self.meta(common, kind::SECURITY_GROUP, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        let rules = match (rules, &old) {
            (None, Some(old)) => old.rules.clone(),
            (None, None) => BTreeMap::new(),
            (Some(list), _) => {
                let n = list.len();
                let rules: BTreeMap<Name, SecurityRule> =
                    list.into_iter().map(|rule| (rule.name.clone(), rule)).collect();
                if rules.len() != n {
                    return Err(refusal::invalid(
                        "properties.securityRules",
                        "A security rule's name is used more than once.",
                    ));
                }
                rules
            }
        };
        let group = SecurityGroup { meta, rules };
        self.check_security_group(&group, old.as_deref())?;
        self.region.security_groups.insert(id.clone(), Arc::new(group));
        Ok(self.put(&id, old.is_none()))
    }

    pub(super) fn put_security_rule(
        &mut self,
        id: &ArmId,
        rule: SecurityRule,
    ) -> Result<Accepted, Fault> {
        self.live_group(id)?;
        let group_id = id.parent().ok_or_else(|| refusal::wrong_kind(id, kind::SECURITY_RULE))?;
        let old = self.region.security_groups.get(&group_id).cloned();
        let old = old.ok_or_else(|| refusal::parent_not_found(id, &group_id))?;
        self.refuse_going(&group_id, old.meta.state)?;
        let mut group = old.as_ref().clone();
        self.touch(&mut group.meta, ProvisioningState::Updating);
        let is_new = group.rules.insert(rule.name.clone(), rule).is_none();
        self.check_security_group(&group, Some(&old))?;
        self.region.security_groups.insert(group_id, Arc::new(group));
        Ok(self.put(id, is_new))
    }

    pub(super) fn delete_security_rule(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some(group_id) = id.parent() else { return Ok(UNCHANGED) };
        let Some(group) = self.region.security_groups.get(&group_id) else {
            return Ok(UNCHANGED);
        };
        let mut group = group.as_ref().clone();
        if group.rules.remove(&Name::new(id.name())).is_none() {
            return Ok(UNCHANGED);
        }
        self.refuse_going(&group_id, group.meta.state)?;
        self.touch(&mut group.meta, ProvisioningState::Updating);
        self.region.security_groups.insert(group_id, Arc::new(group));
        Ok(self.deleting(id))
    }

    pub(super) fn put_application_group(&mut self, common: &Common) -> Result<Accepted, Fault> {
        let old = self.region.application_groups.get(&common.id).cloned();
        let meta = self.meta(common, kind::APPLICATION_GROUP, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        self.region.application_groups.insert(id.clone(), Arc::new(ApplicationGroup { meta }));
        Ok(self.put(&id, old.is_none()))
    }

    /// Replaces the service tags, or brings the built-in ones back.
    pub(super) fn set_service_tags(&mut self, tags: Option<ServiceTags>) -> Accepted {
        let tags = tags.map(|tags| Arc::new(tags.with_platform()));
        if self.region.given_tags == tags {
            return UNCHANGED;
        }
        self.region.given_tags = tags;
        UPDATED
    }

    /// Refuses a reference to a network security group that `user`, a resource in `location`, cannot have.
    pub(super) fn attachable_security_group(
        &self,
        group: Option<&ArmId>,
        user: &ArmId,
        location: &str,
    ) -> Result<(), Fault> {
        let Some(id) = group else { return Ok(()) };
        let there = self.region.security_groups.get(id);
        let there = there.filter(|there| there.meta.location == location);
        let there = there.ok_or_else(|| refusal::reference(id, user))?;
        self.refuse_going(id, there.meta.state)
    }

    /// Refuses application security groups that are not there, or elsewhere.
    fn known_application_groups<'a>(
        &self,
        groups: impl IntoIterator<Item = &'a ArmId>,
        user: &ArmId,
        location: &str,
    ) -> Result<(), Fault> {
        for id in groups {
            let there = self.region.application_groups.get(id);
            let there = there.filter(|there| there.meta.location == location);
            let there = there.ok_or_else(|| refusal::reference(id, user))?;
            self.refuse_going(id, there.meta.state)?;
        }
        Ok(())
    }

    /// Refuses a NIC, as it would be in the region, whose groups are not there or do not suit one another.
    pub(super) fn check_groups_of_nic(&self, nic: &Nic) -> Result<(), Fault> {
        let id = &nic.meta.id;
        self.attachable_security_group(nic.security_group.as_ref(), id, &nic.meta.location)?;
        let Some(first) = nic.configs.first() else { return Ok(()) };
        let set = |config: &crate::model::IpConfiguration| -> BTreeSet<ArmId> {
            config.application_groups.iter().cloned().collect()
        };
        let groups = set(first);
        if groups.len() > MAX_GROUPS_OF_CONFIGURATION {
            return Err(refusal::invalid(
                "properties.ipConfigurations.applicationSecurityGroups",
                &format!(
                    "An IP configuration can be in {MAX_GROUPS_OF_CONFIGURATION} application security groups, not {}.",
                    groups.len()
                ),
            ));
        }
        // Azure/azure-cli issue 21551 has code and text.
        if let Some(other) = nic.configs.iter().find(|config| set(config) != groups) {
            let named = |config: &crate::model::IpConfiguration| {
                let groups: Vec<&str> =
                    config.application_groups.iter().map(ArmId::as_str).collect();
                format!(
                    "IPConfiguration {} references ASG(s) {}",
                    id.child("ipConfigurations", &config.name),
                    groups.join(", ")
                )
            };
            return Err(Fault::bad(
                "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups",
                format!(
                    "All IPConfigurations on a Network Interface should reference the same set of Application Security \
                     Groups. {}, wheras {}.",
                    named(first),
                    named(other)
                ),
            ));
        }
        self.known_application_groups(&groups, id, &nic.meta.location)?;
        self.check_vnet_of_groups(nic, &groups)
    }

    /// Refuses tags that are not in the list. Azure/azure-powershell issue 4557 has the text.
    fn known_tags(&self, id: &ArmId, rule: &SecurityRule) -> Result<(), Fault> {
        for peers in [&rule.source, &rule.destination] {
            let Peers::Addresses { any_of, .. } = peers else { continue };
            for one in any_of {
                if let Addresses::Tag(tag) = one
                    && !self.region.service_tags().knows(tag)
                {
                    return Err(Fault::bad(
                        "SecurityRuleInvalidAddressPrefix",
                        format!(
                            "Security rule {id} has invalid Address prefix. Value provided: {tag}"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// All NICs of an application security group are in one virtual network, and so are those of all groups of a
    /// rule (Azure documentation, "Application security groups", constraints).
    fn check_vnet_of_groups(&self, nic: &Nic, groups: &BTreeSet<ArmId>) -> Result<(), Fault> {
        let vnet = nic.vnet();
        for group in groups {
            let mut vnets = self.region.vnets_of_application_group(group, Some(&nic.meta.id));
            vnets.extend(vnet.clone());
            if vnets.len() > 1 {
                return Err(refusal::invalid(
                    "properties.ipConfigurations.applicationSecurityGroups",
                    &format!(
                        "The network interfaces of application security group {group} must be in one virtual network, \
                         not in {}.",
                        joined(&vnets)
                    ),
                ));
            }
        }
        for security_group in self.region.security_groups.values() {
            for rule in security_group.rules.values() {
                let named: BTreeSet<&ArmId> = application_groups(rule).collect();
                if !named.iter().any(|group| groups.contains(*group)) {
                    continue;
                }
                let mut vnets = self.vnets_of_rule(rule, Some(&nic.meta.id));
                vnets.extend(vnet.clone());
                refuse_several_vnets(&security_group.meta.id, rule, &vnets)?;
            }
        }
        Ok(())
    }

    /// The virtual networks of the groups that a rule names, but for what `except` is in.
    fn vnets_of_rule(&self, rule: &SecurityRule, except: Option<&ArmId>) -> BTreeSet<ArmId> {
        application_groups(rule)
            .flat_map(|group| self.region.vnets_of_application_group(group, except))
            .collect()
    }

    /// Refuses a group as a whole. Rules that `old` has, too, and that name nothing else are not looked at again:
    /// what they name was there then, and cannot go before them.
    fn check_security_group(
        &self,
        group: &SecurityGroup,
        old: Option<&SecurityGroup>,
    ) -> Result<(), Fault> {
        let id = &group.meta.id;
        for rule in group.rules.values() {
            if old.and_then(|old| old.rules.get(&rule.name)) == Some(rule) {
                continue;
            }
            let rule_id = id.child("securityRules", rule.name.as_str());
            check_rule(&rule_id, rule)?;
            self.known_tags(&rule_id, rule)?;
            self.known_application_groups(
                application_groups(rule),
                &rule_id,
                &group.meta.location,
            )?;
            refuse_several_vnets(id, rule, &self.vnets_of_rule(rule, None))?;
        }
        check_priorities(group, old)?;
        check_limits(group)
    }

    /// The group that AKS keeps for a cluster: on the subnet when that is AKS's own (`managed`), and otherwise on
    /// the nodes' NICs (MicrosoftDocs/azure-docs issue 78162 has the table).
    pub(super) fn make_security_group(&mut self, cluster: &mut Cluster, managed: Option<&ArmId>) {
        let name = format!("aks-agentpool-{}-nsg", cluster.hash);
        let id = cluster.node_group.sibling(kind::SECURITY_GROUP, &name);
        let group = SecurityGroup {
            meta: self.part_meta(&id, &cluster.meta.location, ProvisioningState::Updating),
            rules: BTreeMap::new(),
        };
        self.region.security_groups.insert(id.clone(), Arc::new(group));
        if let Some(subnet) = managed {
            self.subnet_mut(subnet).security_group = Some(id.clone());
        }
        cluster.security_group = Some(id);
    }

    /// Refuses to delete a network security group that a subnet, a NIC or a scale set has.
    pub(super) fn refuse_used_security_group(&self, id: &ArmId) -> Result<(), Fault> {
        let mut users: Vec<String> =
            self.region.subnets_of_security_group(id).iter().map(ToString::to_string).collect();
        users.extend(self.region.nics_of_security_group(id).iter().map(refusal::nic_id));
        if users.is_empty() {
            // The scale sets of pools without nodes name it, too.
            let scale_sets: Vec<String> = self
                .region
                .clusters
                .values()
                .filter(|cluster| cluster.security_group.as_ref() == Some(id))
                .flat_map(|cluster| {
                    cluster.pools.keys().map(|pool| nodes::scale_set_id(cluster, pool).to_string())
                })
                .collect();
            if scale_sets.is_empty() {
                return Ok(());
            }
            return Err(Fault::bad(
                "NetworkSecurityGroupInUseByVirtualMachineScaleSet",
                format!(
                    "Cannot delete network security group {id} since it is in use by virtual machine scale set {}.",
                    scale_sets.join(", ")
                ),
            ));
        }
        Err(Fault::bad(
            "InUseNetworkSecurityGroupCannotBeDeleted",
            format!(
                "Network security group {id} cannot be deleted because it is in use by the following resources: {}. In \
                 order to delete the Network security group, remove the association with the resource(s). To learn how \
                 to do this, see aka.ms/deletensg.",
                refusal::some_of(users)
            ),
        ))
    }

    /// Refuses to delete an application security group that a NIC is in or a rule names.
    pub(super) fn refuse_used_application_group(&self, id: &ArmId) -> Result<(), Fault> {
        let name = id.name();
        let refused = |users: &str| {
            // Azure/azure-cli issue 12591 has the text. No public page shows the code, so it is made like its siblings'.
            Err(Fault::bad(
                "InUseApplicationSecurityGroupCannotBeDeleted",
                format!(
                    "Application Security Group {name} cannot be deleted because it is referenced by {users}."
                ),
            ))
        };
        let configs = self.region.configurations_of_application_group(id);
        if !configs.is_empty() {
            let configs = configs
                .iter()
                .map(|(nic, config)| format!("{}/ipConfigurations/{config}", refusal::nic_id(nic)));
            return refused(&format!("IpConfiguration(s) {}", refusal::some_of(configs.collect())));
        }
        let rules = self.region.rules_of_application_group(id);
        if !rules.is_empty() {
            let rules = rules.iter().map(ToString::to_string).collect();
            return refused(&format!("SecurityRule(s) {}", refusal::some_of(rules)));
        }
        Ok(())
    }
}

impl Region {
    /// The subnets that have the network security group `id`: what its `subnets` shows.
    #[must_use]
    pub fn subnets_of_security_group(&self, id: &ArmId) -> Vec<ArmId> {
        let subnets = self.vnets.values().flat_map(|vnet| {
            vnet.subnets
                .values()
                .filter(|subnet| subnet.security_group.as_ref() == Some(id))
                .map(|subnet| vnet.meta.id.child("subnets", subnet.name.as_str()))
        });
        subnets.collect()
    }

    /// The NICs that have the network security group `id`, those of scale sets too: what its `networkInterfaces` shows.
    #[must_use]
    pub fn nics_of_security_group(&self, id: &ArmId) -> Vec<ArmId> {
        self.nics
            .values()
            .filter(|nic| nic.security_group.as_ref() == Some(id))
            .map(|nic| nic.meta.id.clone())
            .collect()
    }

    /// The IP configurations in the application security group `id`: NIC and name.
    #[must_use]
    pub fn configurations_of_application_group(&self, id: &ArmId) -> Vec<(ArmId, String)> {
        let configs = self.nics.values().flat_map(|nic| {
            nic.configs
                .iter()
                .filter(|config| config.application_groups.contains(id))
                .map(|config| (nic.meta.id.clone(), config.name.clone()))
        });
        configs.collect()
    }

    /// The security rules that name the application security group `id`.
    #[must_use]
    pub fn rules_of_application_group(&self, id: &ArmId) -> Vec<ArmId> {
        let rules = self.security_groups.values().flat_map(|group| {
            group
                .rules
                .values()
                .filter(|rule| application_groups(rule).any(|named| named == id))
                .map(|rule| group.meta.id.child("securityRules", rule.name.as_str()))
        });
        rules.collect()
    }

    /// The virtual networks that the members of an application security group are in, but for the NIC `except`:
    /// at most one.
    fn vnets_of_application_group(&self, id: &ArmId, except: Option<&ArmId>) -> BTreeSet<ArmId> {
        self.nics
            .values()
            .filter(|nic| Some(&nic.meta.id) != except)
            .filter(|nic| nic.configs.iter().any(|config| config.application_groups.contains(id)))
            .filter_map(|nic| nic.vnet())
            .collect()
    }

    /// What of security groups leads nowhere or breaks a law, as sentences.
    pub(super) fn find_in_security(&self, findings: &mut Vec<String>) {
        let is_lost = |group: &Option<ArmId>| {
            group.as_ref().is_some_and(|group| !self.security_groups.contains_key(group))
        };
        for (id, nic) in &self.nics {
            if is_lost(&nic.security_group) {
                findings.push(format!("{id} has a network security group that is not there"));
            }
            for group in nic.configs.iter().flat_map(|config| &config.application_groups) {
                if !self.application_groups.contains_key(group) {
                    findings.push(format!("{id} is in {group}, which is not there"));
                }
            }
        }
        for (id, vnet) in &self.vnets {
            for subnet in vnet.subnets.values().filter(|subnet| is_lost(&subnet.security_group)) {
                let name = &subnet.name;
                findings
                    .push(format!("{id}/{name} has a network security group that is not there"));
            }
        }
        for (id, cluster) in &self.clusters {
            if is_lost(&cluster.security_group) {
                findings.push(format!("{id} has no network security group"));
            }
        }
        for id in self.application_groups.keys() {
            let vnets = self.vnets_of_application_group(id, None);
            if vnets.len() > 1 {
                findings.push(format!("{id} has members in {}", joined(&vnets)));
            }
        }
        for (id, group) in &self.security_groups {
            let mut seen = BTreeSet::new();
            for rule in group.rules.values() {
                if !seen.insert((rule.direction, rule.priority)) {
                    findings.push(format!("{id} has two rules of priority {}", rule.priority));
                }
                for named in application_groups(rule) {
                    if !self.application_groups.contains_key(named) {
                        findings.push(format!("{id} names {named}, which is not there"));
                    }
                }
            }
        }
    }
}

/// The application security groups that a rule names, on both sides.
pub(super) fn application_groups(rule: &SecurityRule) -> impl Iterator<Item = &ArmId> {
    [&rule.source, &rule.destination].into_iter().flat_map(|peers| match peers {
        Peers::Groups(groups) => groups.as_slice(),
        Peers::Addresses { .. } => &[],
    })
}

fn joined(ids: &BTreeSet<ArmId>) -> String {
    ids.iter().map(ArmId::as_str).collect::<Vec<_>>().join(", ")
}

/// Azure/azure-sdk-for-java issue 34158 has code and text.
fn refuse_several_vnets(
    group: &ArmId,
    rule: &SecurityRule,
    vnets: &BTreeSet<ArmId>,
) -> Result<(), Fault> {
    if vnets.len() <= 1 {
        return Ok(());
    }
    Err(Fault::bad(
        "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet",
        format!(
            "Security Rule {} has Application Security Groups (ASGs) from multiple virtual networks ({}). All ASGs on \
             the Security Rule must be from the same virtual network.",
            group.child("securityRules", rule.name.as_str()),
            joined(vnets)
        ),
    ))
}

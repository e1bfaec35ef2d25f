//! What a security rule may say, and how much a group may hold. Not here: what it refers to.

use std::collections::{BTreeMap, BTreeSet};

use super::{super::refusal, application_groups};
use crate::{
    addr::{Family, Prefix},
    fault::Fault,
    model::{Access, Addresses, Direction, Peers, Ports, SecurityGroup, SecurityRule},
    name::ArmId,
};

/// Security rules of a group (Azure subscription and service limits, networking; also the next two).
const MAX_RULES: usize = 1_000;
/// IP addresses and ranges that the sources, or the destinations, of a group's rules name together.
const MAX_PREFIXES: usize = 4_000;
/// Application security groups that the rules of a group name together.
const MAX_APPLICATION_GROUPS: usize = 100;
/// The priorities that a rule of a user's may have (REST API reference, security rules, `priority`).
const PRIORITIES: std::ops::RangeInclusive<u16> = 100..=4096;
/// Tags that can be denied and not allowed: what they name passes unless a rule says otherwise
/// (Azure documentation, "Virtual network service tags").
const PLATFORM_TAGS: [&str; 3] = ["AzurePlatformDNS", "AzurePlatformIMDS", "AzurePlatformLKM"];

/// Refuses a rule for what it says itself.
pub(super) fn check_rule(id: &ArmId, rule: &SecurityRule) -> Result<(), Fault> {
    refusal::check_name(rule.name.as_str())?;
    if !PRIORITIES.contains(&rule.priority) {
        return Err(Fault::bad(
            "SecurityRuleInvalidPriority",
            format!(
                "Security rule has invalid Priority. Value provided: {} Allowed range {}-{}.",
                rule.priority,
                PRIORITIES.start(),
                PRIORITIES.end()
            ),
        )
        .at("properties.priority"));
    }
    check_peers(id, rule, &rule.source, "Source")?;
    check_peers(id, rule, &rule.destination, "Destination")?;
    check_overlaps(id, &rule.source, "Source")?;
    check_overlaps(id, &rule.destination, "Destination")?;
    check_families(rule)?;
    check_ports(&rule.source_ports, "properties.sourcePortRanges")?;
    check_ports(&rule.destination_ports, "properties.destinationPortRanges")
}

fn check_ports(ports: &Ports, target: &str) -> Result<(), Fault> {
    if ports.any_of.is_empty() || (!ports.as_list && ports.any_of.len() > 1) {
        return Err(refusal::invalid(target, "A security rule has one port range or a list."));
    }
    match ports.any_of.iter().find(|range| range.first > range.last) {
        Some(range) => Err(Fault::bad(
            "SecurityRuleInvalidPortRange",
            format!(
                "Security rule has invalid Port range. Value provided: {}-{}. Value should be an integer OR integer \
                 range with '-' delimiter. Valid range 0-65535.",
                range.first, range.last
            ),
        )
        .at(target)),
        None => Ok(()),
    }
}

/// Refuses one side of a rule that names an address twice. Code and text as people pasted them: in
/// alan-turing-institute/data-safe-haven issue 2077; kubernetes-sigs/cloud-provider-azure issue 6775 is why the provider
/// joins prefixes first.
fn check_overlaps(id: &ArmId, peers: &Peers, side: &str) -> Result<(), Fault> {
    let Peers::Addresses { any_of, .. } = peers else { return Ok(()) };
    let prefixes = any_of.iter().filter_map(|one| match one {
        Addresses::Prefix(prefix) => Some(*prefix),
        Addresses::Any | Addresses::Tag(_) => None,
    });
    let mut prefixes: Vec<Prefix> = prefixes.collect();
    // Of two prefixes that overlap one has the other, and stands just before the first that it has.
    prefixes.sort_by_key(|prefix| (prefix.family(), prefix.network(), prefix.length()));
    match prefixes.windows(2).find(|pair| matches!(pair, [a, b] if a.overlaps(*b))) {
        Some([a, b]) => Err(Fault::bad(
            "OverlappingSubnetsNotPermittedInSecurityRule",
            format!(
                "Security rule parameter {side}AddressPrefix for rule with Id {id} contains overlapping subnets [{a}, \
                 {b}], which is not permitted."
            ),
        )
        .at(&format!("properties.{}AddressPrefixes", side.to_ascii_lowercase()))),
        _ => Ok(()),
    }
}

/// Refuses a rule whose prefixes are of both families
/// (Azure documentation, "IPv6 for Azure Virtual Network", limitations).
fn check_families(rule: &SecurityRule) -> Result<(), Fault> {
    let families = [&rule.source, &rule.destination].into_iter().flat_map(|peers| match peers {
        Peers::Addresses { any_of, .. } => any_of.as_slice(),
        Peers::Groups(_) => &[],
    });
    let families: BTreeSet<Family> = families
        .filter_map(|one| match one {
            Addresses::Prefix(prefix) => Some(prefix.family()),
            Addresses::Any | Addresses::Tag(_) => None,
        })
        .collect();
    if families.len() < 2 {
        return Ok(());
    }
    Err(refusal::invalid(
        "properties.sourceAddressPrefix",
        &format!("Security rule {} names IPv4 and IPv6 prefixes; a rule has one kind.", rule.name),
    ))
}

/// Refuses one side of a rule. Code and text of the refusals are as people pasted them: in
/// hashicorp/terraform-provider-azurerm issue 5617, and of `SecurityRuleInvalidAccessType` the code alone.
fn check_peers(id: &ArmId, rule: &SecurityRule, peers: &Peers, side: &str) -> Result<(), Fault> {
    let (any_of, as_list) = match peers {
        Peers::Groups(groups) if groups.is_empty() => {
            return Err(refusal::invalid(
                &format!("properties.{}ApplicationSecurityGroups", side.to_ascii_lowercase()),
                "The list is empty.",
            ));
        }
        Peers::Groups(_) => return Ok(()),
        Peers::Addresses { any_of, as_list } => (any_of, *as_list),
    };
    let target = format!("properties.{}AddressPrefix", side.to_ascii_lowercase());
    if any_of.is_empty() || (!as_list && any_of.len() > 1) {
        return Err(refusal::invalid(&target, "A security rule has one prefix or a list."));
    }
    for addresses in any_of {
        let text = match addresses {
            Addresses::Prefix(_) => continue,
            Addresses::Any => "*",
            Addresses::Tag(tag) => tag,
        };
        if as_list {
            return Err(Fault::bad(
                "SecurityRuleParameterContainsUnsupportedValue",
                format!(
                    "Security rule parameter {side}AddressPrefix for rule with Id {id} cannot specify existing \
                     VIRTUALNETWORK, INTERNET, AZURELOADBALANCER, '*' or system tags. Unsupported value used: {text}."
                ),
            )
            .at(&target));
        }
        let is_platform = PLATFORM_TAGS.iter().any(|tag| tag.eq_ignore_ascii_case(text));
        let is_outbound_side = side == "Destination" && rule.direction == Direction::Outbound;
        if is_platform && (rule.access == Access::Allow || !is_outbound_side) {
            return Err(Fault::bad(
                "SecurityRuleInvalidAccessType",
                format!(
                    "Security rule {id} has invalid Access. Tag {text} is allowed as the destination of outbound rules \
                     with Access Deny only."
                ),
            )
            .at("properties.access"));
        }
    }
    Ok(())
}

/// Refuses two rules of one direction and priority. The one that this command brings is the one that is named first.
pub(super) fn check_priorities(
    group: &SecurityGroup,
    old: Option<&SecurityGroup>,
) -> Result<(), Fault> {
    let mut seen: BTreeMap<(Direction, u16), &SecurityRule> = BTreeMap::new();
    for rule in group.rules.values() {
        let Some(other) = seen.insert((rule.direction, rule.priority), rule) else { continue };
        let is_old = |rule: &SecurityRule| {
            old.and_then(|old| old.rules.get(&rule.name)).is_some_and(|old| old == rule)
        };
        let (new, there) = if is_old(rule) { (other, rule) } else { (rule, other) };
        return Err(Fault::bad(
            "SecurityRuleConflict",
            format!(
                "Security rule {} conflicts with rule {}. Rules cannot have the same Priority and Direction.",
                new.name, there.name
            ),
        ));
    }
    Ok(())
}

pub(super) fn check_limits(group: &SecurityGroup) -> Result<(), Fault> {
    let target = "properties.securityRules";
    let too_many = |n: usize, max: usize, what: &str| {
        let id = &group.meta.id;
        let reason = format!("Network security group {id} would have {n} {what}, more than {max}.");
        Err(refusal::invalid(target, &reason))
    };
    let n = group.rules.len();
    if n > MAX_RULES {
        return too_many(n, MAX_RULES, "security rules");
    }
    let count = |side: fn(&SecurityRule) -> &Peers| -> usize {
        let prefixes = group.rules.values().map(|rule| match side(rule) {
            Peers::Addresses { any_of, .. } => any_of.len(),
            Peers::Groups(_) => 0,
        });
        prefixes.sum()
    };
    for (n, what) in [
        (count(|rule| &rule.source), "source addresses and ranges"),
        (count(|rule| &rule.destination), "destination addresses and ranges"),
    ] {
        if n > MAX_PREFIXES {
            return too_many(n, MAX_PREFIXES, what);
        }
    }
    let named: BTreeSet<&ArmId> = group.rules.values().flat_map(application_groups).collect();
    if named.len() > MAX_APPLICATION_GROUPS {
        return too_many(named.len(), MAX_APPLICATION_GROUPS, "application security groups");
    }
    Ok(())
}

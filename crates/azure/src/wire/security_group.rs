//! `Microsoft.Network/networkSecurityGroups` and their rules.
//!
//! A rule is given back as it was written: `10.0.0.4` stays so, although it means what `10.0.0.4/32` means. Where
//! the model's spelling would be another one, the caller's is kept beside it.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    command::Command,
    fault::Fault,
    kind,
    model::{
        Access, Addresses, Direction, Kept, Meta, Peers, PortRange, Ports, RuleProtocol,
        SecurityGroup, SecurityRule,
    },
    name::{ArmId, Name},
    policy,
};

use super::{
    Asked, Named, Reference, Resource, View, child_frame, frame, id_of, network_state, references,
};
use crate::{
    call::content,
    findings::{Findings, arm_id_of, given, missing, not_one_of},
    kept,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    security_rules: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleProperties {
    description: Option<String>,
    protocol: Option<String>,
    access: Option<String>,
    direction: Option<String>,
    priority: Option<i64>,
    source_address_prefix: Option<String>,
    source_address_prefixes: Option<Vec<String>>,
    source_application_security_groups: Option<Vec<Reference>>,
    source_port_range: Option<String>,
    source_port_ranges: Option<Vec<String>>,
    destination_address_prefix: Option<String>,
    destination_address_prefixes: Option<Vec<String>>,
    destination_application_security_groups: Option<Vec<Reference>>,
    destination_port_range: Option<String>,
    destination_port_ranges: Option<Vec<String>>,
}

const KNOWN: [&str; 6] = [
    "/properties/securityRules",
    "/properties/defaultSecurityRules",
    "/properties/networkInterfaces",
    "/properties/subnets",
    "/properties/flowLogs",
    "/properties/flushConnection",
];

const KNOWN_OF_RULE: [&str; 20] = [
    "/id",
    "/name",
    "/type",
    "/etag",
    "/resourceGroup",
    "/properties/provisioningState",
    "/properties/protocol",
    "/properties/access",
    "/properties/direction",
    "/properties/priority",
    "/properties/sourceAddressPrefix",
    "/properties/sourceAddressPrefixes",
    "/properties/sourceApplicationSecurityGroups",
    "/properties/sourcePortRange",
    "/properties/sourcePortRanges",
    "/properties/destinationAddressPrefix",
    "/properties/destinationAddressPrefixes",
    "/properties/destinationApplicationSecurityGroups",
    "/properties/destinationPortRange",
    "/properties/destinationPortRanges",
];

/// The longest description (REST API reference, security rules, `description`).
const LONGEST_DESCRIPTION: usize = 140;

const PROTOCOLS: [(&str, RuleProtocol); 6] = [
    ("*", RuleProtocol::Any),
    ("Tcp", RuleProtocol::Tcp),
    ("Udp", RuleProtocol::Udp),
    ("Icmp", RuleProtocol::Icmp),
    ("Esp", RuleProtocol::Esp),
    ("Ah", RuleProtocol::Ah),
];
const ACCESSES: [(&str, Access); 2] = [("Allow", Access::Allow), ("Deny", Access::Deny)];
const DIRECTIONS: [(&str, Direction); 2] =
    [("Inbound", Direction::Inbound), ("Outbound", Direction::Outbound)];

/// The command that a `PUT` of a group asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let common = asked.common(&resource, &KNOWN);
    let mut findings = Findings::default();
    let rules = resource.properties.and_then(|properties| properties.security_rules);
    let rules = rules.map(|rules| {
        let rule = |value: Value| {
            let name = value["name"].as_str().unwrap_or_default().to_owned();
            if name.is_empty() {
                findings.add(missing("properties.securityRules.name"));
            }
            parse_body(&asked.id.child("securityRules", &name), &value, &mut findings)
        };
        rules.into_iter().filter_map(rule).collect()
    });
    findings.finish()?;
    Ok(Command::PutSecurityGroup { common, rules })
}

/// The command that a `PUT` of a rule asks for.
pub(crate) fn parse_rule(asked: &Asked<'_>) -> Result<Command, Fault> {
    asked.read::<Named<RuleProperties>>()?;
    let mut findings = Findings::default();
    let rule = parse_body(&asked.id, &asked.value, &mut findings);
    findings.then(|| Some(Command::PutSecurityRule { id: asked.id.clone(), rule: rule? }))
}

fn parse_body(id: &ArmId, value: &Value, findings: &mut Findings) -> Option<SecurityRule> {
    let body = serde_json::from_value::<Named<RuleProperties>>(value.clone());
    let body = findings.take(body.map_err(|error| content(&error)))?;
    let Some(given) = body.properties else {
        findings.add(missing("properties"));
        return None;
    };
    let mut kept = kept::collect(value, &KNOWN_OF_RULE);
    if given.description.is_some_and(|text| text.chars().count() > LONGEST_DESCRIPTION) {
        let reason = format!("a description has up to {LONGEST_DESCRIPTION} characters");
        findings.add(invalid("properties.description", &reason));
    }
    let protocol = findings.take(one_of(given.protocol, &PROTOCOLS, "properties.protocol"));
    let access = findings.take(one_of(given.access, &ACCESSES, "properties.access"));
    let direction = findings.take(one_of(given.direction, &DIRECTIONS, "properties.direction"));
    let priority = given.priority.ok_or_else(|| missing("properties.priority"));
    let priority = findings.take(priority.and_then(|number| {
        // Which of those that are numbers of 16 bits a rule can have is the region's to say.
        u16::try_from(number).map_err(|_| {
            let message = format!(
                "Security rule has invalid Priority. Value provided: {number} Allowed range 100-4096."
            );
            Fault::bad("SecurityRuleInvalidPriority", message).at("properties.priority")
        })
    }));
    let source = Side {
        id,
        name: "source",
        prefix: given.source_address_prefix,
        prefixes: given.source_address_prefixes,
        groups: given.source_application_security_groups,
        range: given.source_port_range,
        ranges: given.source_port_ranges,
    };
    let destination = Side {
        id,
        name: "destination",
        prefix: given.destination_address_prefix,
        prefixes: given.destination_address_prefixes,
        groups: given.destination_application_security_groups,
        range: given.destination_port_range,
        ranges: given.destination_port_ranges,
    };
    let (source, source_ports) = source.parse(&mut kept, findings);
    let (destination, destination_ports) = destination.parse(&mut kept, findings);
    Some(SecurityRule {
        name: Name::new(id.name()),
        direction: direction?,
        priority: priority?,
        access: access?,
        protocol: protocol?,
        source: source?,
        source_ports: source_ports?,
        destination: destination?,
        destination_ports: destination_ports?,
        kept,
    })
}

/// What a request says of one side of a rule.
struct Side<'a> {
    id: &'a ArmId,
    /// `source` or `destination`.
    name: &'static str,
    prefix: Option<String>,
    prefixes: Option<Vec<String>>,
    groups: Option<Vec<Reference>>,
    range: Option<String>,
    ranges: Option<Vec<String>>,
}

impl Side<'_> {
    fn parse(self, kept: &mut Kept, findings: &mut Findings) -> (Option<Peers>, Option<Ports>) {
        let (id, name) = (self.id, self.name);
        let groups = self.groups.unwrap_or_default();
        let addresses = one_or_list(self.prefix, self.prefixes);
        let target = format!("properties.{name}AddressPrefix");
        let peers = match addresses {
            Given::Both => {
                findings.add(exclusive(&target, "es"));
                None
            }
            Given::Nothing if groups.is_empty() => {
                findings.add(no_side(id, name));
                None
            }
            Given::Nothing => self::groups(groups, name, findings),
            Given::One(_) | Given::List(_) if !groups.is_empty() => {
                let with = format!("properties.{name}ApplicationSecurityGroups");
                findings.add(invalid(&with, &format!("it cannot be given with {target}")));
                None
            }
            Given::One(text) => {
                let parsed = findings.take(address(id, &text, &target));
                parsed.map(|one| {
                    keep_spelling(
                        kept,
                        &path(name, "AddressPrefix"),
                        &json!(text),
                        &json!(show(&one)),
                    );
                    Peers::Addresses { any_of: vec![one], as_list: false }
                })
            }
            Given::List(texts) => {
                let parsed: Option<Vec<Addresses>> =
                    texts.iter().map(|text| findings.take(address(id, text, &target))).collect();
                parsed.map(|any_of| {
                    let shown = json!(any_of.iter().map(show).collect::<Vec<_>>());
                    keep_spelling(kept, &path(name, "AddressPrefixes"), &json!(texts), &shown);
                    Peers::Addresses { any_of, as_list: true }
                })
            }
        };
        (peers, ports(name, one_or_list(self.range, self.ranges), kept, findings))
    }
}

/// What of a property that can be given once or as a list.
enum Given {
    Nothing,
    One(String),
    List(Vec<String>),
    Both,
}

/// Clients send the form that they do not mean, too: empty.
fn one_or_list(one: Option<String>, list: Option<Vec<String>>) -> Given {
    match (given(one), list.filter(|list| !list.is_empty())) {
        (None, None) => Given::Nothing,
        (Some(one), None) => Given::One(one),
        (None, Some(list)) => Given::List(list),
        (Some(_), Some(_)) => Given::Both,
    }
}

fn groups(groups: Vec<Reference>, name: &str, findings: &mut Findings) -> Option<Peers> {
    let target = format!("properties.{name}ApplicationSecurityGroups.id");
    let ids: Option<Vec<ArmId>> = groups
        .into_iter()
        .map(|group| {
            let id = id_of(Some(group)).ok_or_else(|| missing(&target));
            findings.take(id.and_then(|id| arm_id_of(&id, kind::APPLICATION_GROUP, &target)))
        })
        .collect();
    ids.map(Peers::Groups)
}

fn ports(name: &str, given: Given, kept: &mut Kept, findings: &mut Findings) -> Option<Ports> {
    let target = format!("properties.{name}PortRange");
    match given {
        Given::Both => {
            findings.add(exclusive(&target, "s"));
            None
        }
        Given::Nothing => {
            findings.add(missing(&target));
            None
        }
        Given::One(text) => {
            let range = findings.take(port_range(&text, &target))?;
            keep_spelling(kept, &path(name, "PortRange"), &json!(text), &json!(show_ports(range)));
            Some(Ports { any_of: vec![range], as_list: false })
        }
        Given::List(texts) => {
            let ranges: Option<Vec<PortRange>> =
                texts.iter().map(|text| findings.take(port_range(text, &target))).collect();
            let any_of = ranges?;
            let shown: Vec<String> = any_of.iter().copied().map(show_ports).collect();
            keep_spelling(kept, &path(name, "PortRanges"), &json!(texts), &json!(shown));
            Some(Ports { any_of, as_list: true })
        }
    }
}

fn path(side: &str, what: &str) -> String {
    format!("/properties/{side}{what}")
}

/// Keeps the caller's spelling where it is not the model's.
fn keep_spelling(kept: &mut Kept, path: &str, given: &Value, shown: &Value) {
    if given != shown {
        kept.insert(path.to_owned(), given.to_string());
    }
}

/// `*`, a prefix, an address or a tag.
fn address(id: &ArmId, text: &str, target: &str) -> Result<Addresses, Fault> {
    if text == "*" {
        return Ok(Addresses::Any);
    }
    // Every tag begins with a letter; an address that does has a colon.
    if text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
    {
        return Ok(Addresses::Tag(text.to_owned()));
    }
    let prefix = match text.parse() {
        Ok(address) => Some(vnet::addr::Prefix::host(address)),
        Err(_) => text.parse().ok(),
    };
    prefix.map(Addresses::Prefix).ok_or_else(|| invalid_prefix(id, text).at(target))
}

/// Azure/azure-powershell issue 4557 has the text.
fn invalid_prefix(id: &ArmId, text: &str) -> Fault {
    Fault::bad(
        "SecurityRuleInvalidAddressPrefix",
        format!("Security rule {id} has invalid Address prefix. Value provided: {text}"),
    )
}

fn port_range(text: &str, target: &str) -> Result<PortRange, Fault> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let port = |text: &str| {
        let digits = text.chars().all(|c| c.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let range = match text.split_once('-') {
        None => port(text).map(PortRange::one),
        Some((first, last)) => {
            port(first).zip(port(last)).map(|(first, last)| PortRange { first, last })
        }
    };
    range.filter(|range| range.first <= range.last).ok_or_else(|| {
        Fault::bad(
            "SecurityRuleInvalidPortRange",
            format!(
                "Security rule has invalid Port range. Value provided: {text}. Value should be an integer OR integer \
                 range with '-' delimiter. Valid range 0-65535."
            ),
        )
        .at(target)
    })
}

/// What a rule must have on each side; people who met it pasted the second sentence.
fn no_side(id: &ArmId, name: &str) -> Fault {
    let name = if name == "source" { "Source" } else { "Destination" };
    Fault::bad(
        "SecurityRuleParametersMissing",
        format!(
            "Required security rule parameters are missing for security rule with Id: {id}. Security rule must specify \
             {name}AddressPrefixes, {name}AddressPrefix, or {name}ApplicationSecurityGroups."
        ),
    )
}

fn exclusive(target: &str, plural: &str) -> Fault {
    invalid(target, &format!("{target} and {target}{plural} cannot both be given"))
}

fn invalid(target: &str, reason: &str) -> Fault {
    let message = format!("The value of parameter {target} is invalid. Error details: {reason}.");
    Fault::bad("InvalidParameter", message).at(target)
}

fn one_of<T: Copy>(text: Option<String>, known: &[(&str, T)], target: &str) -> Result<T, Fault> {
    let text = given(text).ok_or_else(|| missing(target))?;
    let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text));
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    found.map(|(_, value)| *value).ok_or_else(|| not_one_of(&text, &names, target))
}

fn name_of<T: PartialEq>(value: &T, known: &[(&'static str, T)]) -> &'static str {
    known.iter().find(|(_, other)| other == value).map_or("", |(name, _)| name)
}

/// The direction's name.
pub(super) fn direction(direction: Direction) -> &'static str {
    name_of(&direction, &DIRECTIONS)
}

/// The access' name.
pub(crate) fn access(access: Access) -> &'static str {
    name_of(&access, &ACCESSES)
}

/// Addresses as the model spells them.
fn show(addresses: &Addresses) -> String {
    match addresses {
        Addresses::Any => "*".to_owned(),
        Addresses::Prefix(prefix) => prefix.to_string(),
        Addresses::Tag(tag) => tag.clone(),
    }
}

/// Ports as the model spells them.
fn show_ports(range: PortRange) -> String {
    if range == PortRange::ALL {
        "*".to_owned()
    } else if range.first == range.last {
        range.first.to_string()
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

/// A group as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, group: &SecurityGroup) -> Value {
    let id = &group.meta.id;
    let mut rules: Vec<&SecurityRule> = group.rules.values().collect();
    rules.sort_by_key(|rule| (rule.direction, rule.priority));
    let mut body = frame(&group.meta, kind::SECURITY_GROUP);
    body["properties"] = json!({
        "provisioningState": network_state(group.meta.state),
        "resourceGuid": group.meta.guid,
        "securityRules": rules.into_iter().map(|rule| render_rule(group, rule)).collect::<Vec<_>>(),
        "defaultSecurityRules": render_default_rules(group),
    });
    for (key, users) in [
        ("networkInterfaces", view.region.nics_of_security_group(id)),
        ("subnets", view.region.subnets_of_security_group(id)),
    ] {
        if !users.is_empty() {
            body["properties"][key] = json!(references(users));
        }
    }
    kept::merge(&mut body, &group.meta.kept);
    body
}

/// A rule as a `GET` shows it.
pub(crate) fn render_rule(group: &SecurityGroup, rule: &SecurityRule) -> Value {
    let id = group.meta.id.child("securityRules", rule.name.as_str());
    render_any(&id, kind::SECURITY_RULE, &group.meta, network_state(group.meta.state), rule)
}

/// What a group's six default rules are described with, in the order of [`policy::default_rules`].
const DESCRIPTIONS: [&str; 6] = [
    "Allow inbound traffic from all VMs in VNET",
    "Allow inbound traffic from azure load balancer",
    "Deny all inbound traffic",
    "Allow outbound traffic from all VMs to all VMs in VNET",
    "Allow outbound traffic from all VMs to Internet",
    "Deny all outbound traffic",
];

fn render_default_rules(group: &SecurityGroup) -> Vec<Value> {
    let kind = format!("{}/defaultSecurityRules", kind::SECURITY_GROUP);
    let rules = policy::default_rules().into_iter().zip(DESCRIPTIONS);
    rules
        .map(|(mut rule, description)| {
            rule.kept.insert("/properties/description".to_owned(), json!(description).to_string());
            let id = group.meta.id.child("defaultSecurityRules", rule.name.as_str());
            render_any(&id, &kind, &group.meta, "Succeeded", &rule)
        })
        .collect()
}

fn render_any(id: &ArmId, kind: &str, parent: &Meta, state: &str, rule: &SecurityRule) -> Value {
    let mut body = child_frame(id, kind, parent);
    let mut properties = json!({
        "provisioningState": state,
        "protocol": name_of(&rule.protocol, &PROTOCOLS),
        "access": access(rule.access),
        "priority": rule.priority,
        "direction": direction(rule.direction),
    });
    for (side, peers, ports) in [
        ("source", &rule.source, &rule.source_ports),
        ("destination", &rule.destination, &rule.destination_ports),
    ] {
        let ranges: Vec<String> = ports.any_of.iter().copied().map(show_ports).collect();
        render_texts(
            &mut properties,
            &format!("{side}PortRange"),
            "s",
            ranges,
            ports.as_list,
            rule,
        );
        let (texts, as_list) = match peers {
            Peers::Addresses { any_of, as_list } => (any_of.iter().map(show).collect(), *as_list),
            Peers::Groups(_) => (Vec::new(), true),
        };
        render_texts(&mut properties, &format!("{side}AddressPrefix"), "es", texts, as_list, rule);
        if let Peers::Groups(groups) = peers {
            properties[format!("{side}ApplicationSecurityGroups")] = json!(references(groups));
        }
    }
    body["properties"] = properties;
    kept::merge(&mut body, &rule.kept);
    body
}

/// A property that is given once or as a list, in the caller's spelling. Azure's clients expect a list always.
fn render_texts(
    properties: &mut Value,
    key: &str,
    plural: &str,
    texts: Vec<String>,
    as_list: bool,
    rule: &SecurityRule,
) {
    let list = format!("{key}{plural}");
    let spelled = |key: &str| {
        let kept = rule.kept.get(&format!("/properties/{key}"));
        kept.and_then(|text| serde_json::from_str::<Value>(text).ok())
    };
    if as_list {
        properties[&list] = spelled(&list).unwrap_or_else(|| json!(texts));
    } else {
        properties[key] = spelled(key).unwrap_or_else(|| json!(texts.into_iter().next()));
        properties[&list] = json!([]);
    }
}

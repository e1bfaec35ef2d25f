//! Which policies a verdict is by, from what a node's agent says of itself by its API: values in, names out.

use std::collections::BTreeSet;

use serde_json::Value;

use super::stream::{Direction, Fate, Verdict};

/// A packet's protocol and destination port as policies have them; of an ICMP message the type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    /// IP's number.
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// What the agent says of itself.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Of the endpoint: `/endpoint/ID`.
    pub(super) endpoint: Value,
    /// All rules: `/policy`.
    pub(super) rules: Value,
    /// Which identities those select that are the other end: `/policy/selectors`.
    pub(super) peers: Value,
    /// Which identities those select that rules are for: `/policy/subject-selectors`.
    pub(super) subjects: Value,
}

/// The policies by which it was decided so, each once: those with a rule that is about it, or when it is denied because
/// no rule allows it, those that have made that the default.
pub(super) fn names(told: &Told, verdict: Verdict, door: Door) -> Vec<String> {
    let names = match (verdict.fate, verdict.has_rule) {
        (Fate::Denied | Fate::Audited, false) => told.by_default(verdict.direction),
        (Fate::Denied | Fate::Audited, true) => told.by_rule(verdict, door, true),
        (Fate::Allowed | Fate::Redirected, _) => told.by_rule(verdict, door, false),
    };
    names.into_iter().collect()
}

impl Told {
    /// Whose rules are for the endpoint in this direction, and deny what they don't allow.
    fn by_default(&self, direction: Direction) -> BTreeSet<String> {
        let identity = &self.endpoint["status"]["identity"]["id"];
        let selecting = selecting(&self.subjects, identity.as_i64());
        let text = self.rules["policy"].as_str().unwrap_or_default();
        let rules: Value = serde_json::from_str(text).unwrap_or_default();
        let is_meant = |rule: &&Value| match (&rule["Ingress"], direction) {
            (Value::Bool(is_ingress), _) => {
                *is_ingress == (direction == Direction::Ingress) && rule["DefaultDeny"] != false
            }
            // Before Cilium 1.19 both directions are in one rule.
            (_, Direction::Ingress) => has(rule, &["ingress", "ingressDeny"]),
            (_, Direction::Egress) => has(rule, &["egress", "egressDeny"]),
        };
        let labels = |rule: &Value| {
            name(&each(&rule["Labels"]).chain(each(&rule["labels"])).map(label).collect::<Vec<_>>())
        };
        let names = each(&rules).filter(is_meant).filter_map(labels);
        names.filter(|name| selecting.contains(name)).collect()
    }

    /// Whose rules of the endpoint are about this door and the other end's identity.
    fn by_rule(&self, verdict: Verdict, door: Door, denies: bool) -> BTreeSet<String> {
        let remote = i64::from(verdict.remote);
        let policy = &self.endpoint["status"]["policy"]["realized"]["l4"];
        let filters = &policy[match verdict.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }];
        let mut found = BTreeSet::new();
        for filter in each(filters) {
            let text = filter["rule"].as_str().unwrap_or_default();
            let rule: Value = serde_json::from_str(text).unwrap_or_default();
            if !is_about(&rule, door, &self.endpoint) {
                continue;
            }
            let selectors = each(&rule["l7-rules"]).filter_map(Value::as_object).flatten();
            for (selector, details) in selectors {
                let is_deny = details["verdict"] == 1 || details["isDeny"] == true;
                let of_selector = |it: &&Value| it["selector"] == *selector;
                let peers: Vec<&Value> = each(&self.peers).filter(of_selector).collect();
                let selects = |it: &&Value| each(&it["identities"]).any(|id| *id == remote);
                if is_deny != denies || !peers.iter().any(selects) {
                    continue;
                }
                match &filter["rules-by-selector"][selector] {
                    Value::Null => {
                        // Whose rules the filter is made of, and who has this selector.
                        let users: BTreeSet<String> =
                            peers.iter().flat_map(|it| all_names(&it["labels"])).collect();
                        let derived = all_names(&filter["derived-from-rules"]);
                        found.extend(derived.filter(|name| users.contains(name)));
                    }
                    rules => found.extend(all_names(rules)),
                }
            }
        }
        found
    }
}

/// Whether a filter is about a door of the endpoint's, or of who it sends to.
fn is_about(filter: &Value, door: Door, endpoint: &Value) -> bool {
    let protocol = filter["protocol"].as_str().unwrap_or("ANY");
    let of_protocol = match protocol {
        "TCP" => door.protocol == 6,
        "UDP" => door.protocol == 17,
        "ICMP" => door.protocol == 1,
        "ICMPv6" => door.protocol == 58,
        "ANY" => true,
        _ => false,
    };
    let named = || named_port(endpoint, filter["port-name"].as_str()?, protocol);
    let first = filter["port"].as_u64().filter(|port| *port > 0).or_else(named).unwrap_or(0);
    let last = filter["endPort"].as_u64().filter(|end| *end > 0).unwrap_or(first);
    of_protocol && (first == 0 || (first..=last).contains(&u64::from(door.port)))
}

/// The number of a port of the endpoint's own that has a name: `NAME.PROTOCOL.NUMBER_...` in a label that Cilium makes.
fn named_port(endpoint: &Value, name: &str, protocol: &str) -> Option<u64> {
    let labels = each(&endpoint["status"]["identity"]["labels"]).map(label);
    let mut ports = labels
        .filter(|(key, _)| *key == "io.cilium.k8s.named-ports")
        .flat_map(|(_, ports)| ports.split('_'));
    let wanted = format!("{name}.{protocol}.");
    ports.find_map(|port| port.strip_prefix(&wanted)?.parse().ok())
}

/// The names of policies that have a selector of this identity.
fn selecting(selectors: &Value, identity: Option<i64>) -> BTreeSet<String> {
    let of_identity = |it: &&Value| each(&it["identities"]).any(|id| id.as_i64() == identity);
    each(selectors).filter(of_identity).flat_map(|it| all_names(&it["labels"])).collect()
}

/// The names in a list of lists of labels.
fn all_names(lists: &Value) -> impl Iterator<Item = String> {
    each(lists).filter_map(|labels| name(&each(labels).map(label).collect::<Vec<_>>()))
}

/// A label as key and value: `SOURCE:KEY=VALUE`, or an object.
fn label(label: &Value) -> (&str, &str) {
    match label.as_str() {
        Some(text) => {
            let text = text.split_once(':').map_or(text, |(_, rest)| rest);
            text.split_once('=').unwrap_or((text, ""))
        }
        None => {
            (label["key"].as_str().unwrap_or_default(), label["value"].as_str().unwrap_or_default())
        }
    }
}

/// The policy that a rule's labels name (cilium/cilium, pkg/k8s/apis/cilium.io/const.go): kind, namespace and name, or
/// what Cilium has made it from.
fn name(labels: &[(&str, &str)]) -> Option<String> {
    let value = |key| labels.iter().find(|(it, _)| *it == key).map(|(_, value)| *value);
    let kind = value("io.cilium.k8s.policy.derived-from").unwrap_or("policy");
    match (value("io.cilium.k8s.policy.namespace"), value("io.cilium.k8s.policy.name")) {
        (Some(namespace), Some(name)) if !namespace.is_empty() => {
            Some(format!("{kind} {namespace}/{name}"))
        }
        (_, Some(name)) => Some(format!("{kind} {name}")),
        (_, None) => value("io.cilium.policy.derived-from").map(str::to_owned),
    }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn has(rule: &Value, sections: &[&str]) -> bool {
    sections.iter().any(|section| rule.get(section).is_some_and(|it| !it.is_null()))
}

//! Numbers as Prometheus reads them (prometheus.io, "Exposition formats": text format 0.0.4).

use std::{collections::BTreeMap, fmt::Write as _};

use super::{meter::Passes, sample::Sample};

/// A series' labels, as text.
type Labels = String;

/// A sample in the text format.
#[must_use]
pub fn prometheus(sample: &Sample) -> String {
    let mut text = String::new();
    // Series that differ in nothing are one: resources of one name in different groups.
    let mut addresses: BTreeMap<Labels, u64> = BTreeMap::new();
    let mut rules: BTreeMap<Labels, (u64, u64)> = BTreeMap::new();
    let mut drops: BTreeMap<Labels, u64> = BTreeMap::new();
    let mut flows: BTreeMap<Labels, u64> = BTreeMap::new();
    for vnet in &sample.vnets {
        let of_vnet = [("resource_group", &*vnet.resource_group), ("vnet", &*vnet.name)];
        let with = |more: &[(&str, &str)]| labels(of_vnet.iter().chain(more));
        *flows.entry(with(&[])).or_default() += vnet.flows;
        for subnet in &vnet.subnets {
            for (state, n) in [("used", subnet.used), ("free", subnet.free)] {
                let labels = with(&[("subnet", &subnet.name), ("state", state)]);
                *addresses.entry(labels).or_default() += n;
            }
        }
        for rule in &vnet.rules {
            let mut reason = rule.name.clone();
            if let (Some(group), Some(direction)) = (&rule.group, &rule.direction) {
                reason = format!("{group}/{}", rule.name);
                let labels =
                    with(&[("group", group), ("rule", &rule.name), ("direction", direction)]);
                let sum = rules.entry(labels).or_default();
                *sum = (sum.0 + rule.packets, sum.1 + rule.bytes);
            }
            if rule.drops {
                *drops.entry(with(&[("reason", &reason)])).or_default() += rule.packets;
            }
        }
    }
    let mut nodes: BTreeMap<Labels, u64> = BTreeMap::new();
    for (cluster, phase, n) in &sample.nodes {
        *nodes.entry(labels(&[("cluster", &**cluster), ("phase", phase)])).or_default() += n;
    }
    let packets = rules.iter().map(|(labels, (packets, _))| (labels, *packets));
    let bytes = rules.iter().map(|(labels, (_, bytes))| (labels, *bytes));
    let one = |map| BTreeMap::iter(map).map(|(labels, n)| (labels, *n));
    family(
        &mut text,
        "subnet_addresses",
        "gauge",
        "Addresses of a subnet, the five that Azure keeps left out.",
        one(&addresses),
    );
    family(
        &mut text,
        "nsg_rule_packets_total",
        "counter",
        "Packets that a security rule decided about: the first of each flow, and every one that it denied.",
        packets,
    );
    family(&mut text, "nsg_rule_bytes_total", "counter", "Bytes of these packets.", bytes);
    family(
        &mut text,
        "drops_total",
        "counter",
        "Packets that a virtual network dropped, by the reason.",
        one(&drops),
    );
    family(
        &mut text,
        "flows",
        "gauge",
        "Flows that a virtual network keeps state of.",
        one(&flows),
    );
    family(&mut text, "nodes", "gauge", "Nodes of clusters.", one(&nodes));
    let plain = String::new();
    family(&mut text, "vms", "gauge", "Virtual machines.", [(&plain, sample.vms)]);
    let errors: BTreeMap<Labels, u64> =
        sample.errors.iter().map(|(name, n)| (labels(&[("loop", &**name)]), *n)).collect();
    family(
        &mut text,
        "reconcile_errors_total",
        "counter",
        "Passes of a loop that failed and were tried again.",
        one(&errors),
    );
    family(
        &mut text,
        "store_generation",
        "gauge",
        "Accepted changes of the region.",
        [(&plain, sample.generation)],
    );
    passes(&mut text, &sample.passes);
    text
}

fn family<'a>(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    series: impl IntoIterator<Item = (&'a Labels, u64)>,
) {
    line(text, format_args!("# HELP aksnet_{name} {help}"));
    line(text, format_args!("# TYPE aksnet_{name} {kind}"));
    for (labels, value) in series {
        line(text, format_args!("aksnet_{name}{labels} {value}"));
    }
}

fn passes(text: &mut String, passes: &Passes) {
    let name = "aksnet_fabric_pass_seconds";
    line(
        text,
        format_args!("# HELP {name} How long the fabric took to make namespaces match the region."),
    );
    line(text, format_args!("# TYPE {name} histogram"));
    for (bound, count) in Passes::BOUNDS.iter().zip(&passes.at_most) {
        let seconds = std::time::Duration::from_millis(*bound).as_secs_f64();
        line(text, format_args!("{name}_bucket{{le=\"{seconds}\"}} {count}"));
    }
    line(text, format_args!("{name}_bucket{{le=\"+Inf\"}} {}", passes.count));
    let sum = std::time::Duration::from_nanos(passes.nanoseconds).as_secs_f64();
    line(text, format_args!("{name}_sum {sum}"));
    line(text, format_args!("{name}_count {}", passes.count));
}

/// `{name="value",…}`, with what would end a value written as the format wants it.
fn labels<'a>(pairs: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> Labels {
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a String never fails");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::sample::{RuleSample, SubnetSample, VnetSample};

    fn rule(group: Option<&str>, name: &str, drops: bool, packets: u64) -> RuleSample {
        RuleSample {
            group: group.map(str::to_owned),
            direction: group.map(|_| "inbound".to_owned()),
            name: name.to_owned(),
            drops,
            packets,
            bytes: packets * 60,
        }
    }

    #[test]
    fn numbers_read_as_prometheus_wants_them() {
        let vnet = VnetSample {
            name: "v\"1".to_owned(),
            resource_group: "rg".to_owned(),
            subnets: vec![SubnetSample {
                name: "s".to_owned(),
                prefix: "10.0.0.0/24".to_owned(),
                used: 3,
                free: 248,
            }],
            flows: 7,
            talkers: Vec::new(),
            rules: vec![
                rule(None, "no route", true, 2),
                rule(Some("web"), "Deny", true, 5),
                rule(Some("web"), "Allow", false, 9),
            ],
        };
        let sample = Sample {
            version: 1,
            generation: 12,
            vnets: vec![vnet.clone(), vnet],
            nodes: vec![("c".to_owned(), "Ready".to_owned(), 2)],
            vms: 1,
            passes: Passes { count: 2, nanoseconds: 1_500_000_000, ..Passes::default() },
            errors: BTreeMap::from([("fabric".to_owned(), 1)]),
        };
        let text = prometheus(&sample);
        let of = r#"resource_group="rg",vnet="v\"1""#;
        for line in [
            &format!("aksnet_subnet_addresses{{{of},subnet=\"s\",state=\"used\"}} 6"),
            &format!(
                "aksnet_nsg_rule_packets_total{{{of},group=\"web\",rule=\"Allow\",direction=\"inbound\"}} 18"
            ),
            &format!("aksnet_drops_total{{{of},reason=\"no route\"}} 4"),
            &format!("aksnet_drops_total{{{of},reason=\"web/Deny\"}} 10"),
            &format!("aksnet_flows{{{of}}} 14"),
            "aksnet_nodes{cluster=\"c\",phase=\"Ready\"} 2",
            "aksnet_reconcile_errors_total{loop=\"fabric\"} 1",
            "aksnet_store_generation 12",
            "aksnet_fabric_pass_seconds_bucket{le=\"0.025\"} 0",
            "aksnet_fabric_pass_seconds_bucket{le=\"+Inf\"} 2",
            "aksnet_fabric_pass_seconds_sum 1.5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        // One type line for each family, and no series twice.
        let mut names: Vec<&str> =
            text.lines().filter_map(|line| line.rsplit_once(' ').map(|(name, _)| name)).collect();
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n, "{text}");
    }
}

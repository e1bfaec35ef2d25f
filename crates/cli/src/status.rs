//! `aksnet status`.

use crate::{
    control::{Answer, Ask, Status, ask},
    lab::Lab,
    output::{self, Format},
};

/// Asks the running lab and shows its answer.
pub(crate) fn show(lab: &Lab, format: Format) -> anyhow::Result<()> {
    let Answer::Status(status) = ask(lab, &Ask::Status)? else {
        anyhow::bail!("the lab answered another question");
    };
    output::show(&status, format, draw)
}

fn draw(status: &Status) -> String {
    let mut parts = vec![format!(
        "lab {}, Azure Resource Manager at {}, nodes: {}",
        status.lab, status.endpoint, status.nodes
    )];
    let clusters: Vec<Vec<String>> = status
        .clusters
        .iter()
        .map(|cluster| {
            let ready = cluster.nodes.iter().filter(|node| node.phase == "Ready").count();
            vec![
                cluster.name.clone(),
                cluster.resource_group.clone(),
                cluster.state.clone(),
                cluster.network.clone(),
                cluster.kubernetes.clone(),
                format!("{ready}/{}", cluster.nodes.len()),
            ]
        })
        .collect();
    parts.push(section(
        "no clusters",
        &["CLUSTER", "GROUP", "STATE", "NETWORK", "KUBERNETES", "READY"],
        &clusters,
    ));
    let nodes: Vec<Vec<String>> = status
        .clusters
        .iter()
        .flat_map(|cluster| &cluster.nodes)
        .map(|node| {
            vec![
                node.name.clone(),
                node.phase.clone(),
                node.address.clone(),
                node.subnet.clone(),
                node.pod_range.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    if !nodes.is_empty() {
        parts.push(output::table(&["NODE", "PHASE", "ADDRESS", "SUBNET", "PODS"], &nodes));
    }
    let troubles = status.clusters.iter().flat_map(|cluster| &cluster.nodes).flat_map(|node| {
        node.trouble.iter().map(move |trouble| format!("{}: {trouble}", node.name))
    });
    parts.extend(troubles);
    let vms: Vec<Vec<String>> = status
        .vms
        .iter()
        .map(|vm| {
            vec![
                vm.name.clone(),
                vm.resource_group.clone(),
                vm.state.clone(),
                vm.address.clone(),
                format!("{}/{}", vm.vnet, vm.subnet),
            ]
        })
        .collect();
    if !vms.is_empty() {
        parts.push(output::table(&["VM", "GROUP", "STATE", "ADDRESS", "SUBNET"], &vms));
    }
    let subnets: Vec<Vec<String>> = status
        .subnets
        .iter()
        .map(|subnet| {
            vec![
                format!("{}/{}", subnet.vnet, subnet.name),
                subnet.prefix.clone(),
                format!("{}/{}", subnet.held, subnet.usable),
                bar(subnet.held, subnet.usable),
                subnet.delegated_to.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    parts.push(section("no subnets", &["SUBNET", "PREFIX", "HELD", "", "DELEGATED TO"], &subnets));
    parts.extend(status.underway.iter().cloned());
    for trouble in &status.troubles {
        parts.push(format!(
            "{} fails ({} times so far) and will try again: {}",
            trouble.who, trouble.times, trouble.error
        ));
    }
    parts.join("\n\n")
}

fn section(empty: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() { empty.to_owned() } else { output::table(header, rows) }
}

/// Ten cells, filled from the left; one as soon as anything is held, ten only when all is.
fn bar(held: u64, usable: u64) -> String {
    let cells = if usable == 0 { 10 } else { (held * 10).div_ceil(usable).min(10) };
    let cells = if held < usable { cells.min(9) } else { cells };
    (0..10).map(|cell| if cell < cells { '#' } else { '.' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_only_when_the_subnet_is() {
        assert_eq!(bar(0, 59), "..........");
        assert_eq!(bar(1, 59), "#.........");
        assert_eq!(bar(58, 59), "#########.");
        assert_eq!(bar(59, 59), "##########");
    }
}

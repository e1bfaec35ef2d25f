//! Where a pod's network is, by what the kubelet leaves on its node: a log folder that names the pod, and a
//! cgroup that names its processes. So it is found whichever network plugin made it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use linux::sandbox::Sandbox;
use vnet::{host::names, name::ArmId, region::Region};

use super::{Clusters, places::Places};

/// A pod as a person names it: `[CLUSTER:]NAMESPACE/NAME`.
struct PodName<'a> {
    cluster: Option<&'a str>,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> PodName<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (cluster, rest) = match text.split_once(':') {
            Some((cluster, rest)) => (Some(cluster), rest),
            None => (None, text),
        };
        let (namespace, name) = rest.split_once('/')?;
        let is_plain = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
        };
        (is_plain(namespace) && is_plain(name)).then_some(Self { cluster, namespace, name })
    }
}

/// Where a pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAt {
    /// Its cluster.
    pub cluster: ArmId,
    /// The machine that is its node.
    pub node: ArmId,
    /// A path to its network namespace.
    pub netns: PathBuf,
}

impl Clusters {
    /// Where the pods `[CLUSTER:]NAMESPACE/NAME` run, at most one in each cluster.
    #[must_use]
    pub fn find_pods(&self, region: &Region, text: &str) -> Vec<PodAt> {
        if self.0.nodes == super::Nodes::NetworkOnly {
            return self.own_pods_at(region, text);
        }
        let Some(pod) = PodName::parse(text) else { return Vec::new() };
        let places = &self.0.places;
        let is_meant = |name: &str| pod.cluster.is_none_or(|it| it.eq_ignore_ascii_case(name));
        let clusters = region.clusters.keys().filter(|cluster| is_meant(cluster.name()));
        let found = clusters.filter_map(|cluster| {
            region.nodes_of(cluster).into_iter().find_map(|machine| {
                let netns = names::machine_ns(&places.lab, machine);
                let netns = on_node(places, places.sandbox_name(&netns), &pod)?;
                Some(PodAt { cluster: cluster.clone(), node: machine.meta.id.clone(), netns })
            })
        });
        found.collect()
    }
}

fn on_node(places: &Places, sandbox: &str, pod: &PodName<'_>) -> Option<PathBuf> {
    let logs = places.folder_of(sandbox, "/var/log/pods");
    let prefix = format!("{}_{}_", pod.namespace, pod.name);
    let mut uids: Vec<String> = fs::read_dir(logs)
        .ok()?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix(&prefix).map(|uid| format!("/pod{uid}/"))
        })
        .collect();
    if uids.is_empty() {
        return None;
    }
    // The runtime's cgroup driver writes the uid as it is, systemd's with underscores.
    let underscored: Vec<String> = uids.iter().map(|uid| uid.replace('-', "_")).collect();
    uids.extend(underscored);
    let node = Sandbox::find(&places.run_dir(), sandbox)?;
    let node_netns = namespace_number(&PathBuf::from(format!("/proc/{}", node.pid())))?;
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some(entry.path())
    });
    let of_pod = |process: &PathBuf| {
        fs::read_to_string(process.join("cgroup"))
            .is_ok_and(|text| uids.iter().any(|uid| text.contains(uid)))
    };
    let mut on_host_network = None;
    for process in processes.filter(of_pod) {
        match namespace_number(&process) {
            Some(number) if number == node_netns => on_host_network = Some(process.join("ns/net")),
            Some(_) => return Some(process.join("ns/net")),
            None => {}
        }
    }
    on_host_network
}

fn namespace_number(process: &Path) -> Option<u64> {
    fs::metadata(process.join("ns/net")).ok().map(|file| file.ino())
}

#[cfg(test)]
mod tests {
    use super::PodName;

    #[test]
    fn names_are_parsed_and_nothing_else() {
        let check = |text| PodName::parse(text).map(|pod| (pod.cluster, pod.namespace, pod.name));
        assert_eq!(check("default/web-0"), Some((None, "default", "web-0")));
        assert_eq!(check("c1:default/web-0"), Some((Some("c1"), "default", "web-0")));
        for bad in ["", "web", "/web", "default/", "a/b/c", "../etc/passwd", "default/We b"] {
            assert_eq!(check(bad), None, "{bad}");
        }
    }
}

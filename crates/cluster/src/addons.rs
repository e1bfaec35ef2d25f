//! The objects that every cluster of the lab has from the start. Not here: users' objects, nodes.

use std::net::Ipv4Addr;

use kube::{
    Client,
    api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta},
};

/// The cluster's name server, as AKS names its image.
pub const COREDNS_IMAGE: &str = "mcr.microsoft.com/oss/kubernetes/coredns:v1.14.7";

/// Who owns the fields that are applied here.
const MANAGER: &str = "aksnet";

/// Add-ons that are applied together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Who may do what, and our resource types: before anything runs.
    Base,
    /// The name server: when its image can be pulled.
    Dns,
}

impl Group {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Base => &[
                include_str!("addons/access.yaml"),
                include_str!("addons/nodenetworkconfigs.yaml"),
            ],
            Self::Dns => &[include_str!("addons/coredns.yaml")],
        }
    }
}

/// Why the add-ons are not all there.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply {kind} `{name}`")]
pub struct AddonError {
    /// The object's kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What the API server said.
    #[source]
    pub source: kube::Error,
}

/// A group for a cluster with this DNS service address, in the order in which it is applied.
///
/// # Panics
/// Never: the manifests are part of the program, and a test reads them.
#[must_use]
pub fn render(group: Group, dns_service_ip: Ipv4Addr) -> Vec<DynamicObject> {
    let fill = |text: &str| {
        text.replace("${DNS_SERVICE_IP}", &dns_service_ip.to_string())
            .replace("${COREDNS_IMAGE}", COREDNS_IMAGE)
    };
    group
        .files()
        .iter()
        .flat_map(|file| file.split("\n---\n"))
        .map(|text| {
            serde_saphyr::from_str(&fill(text)).expect("the add-ons are Kubernetes objects")
        })
        .collect()
}

/// Puts a group into a cluster by server-side apply. Doing it again changes nothing.
pub async fn apply(
    client: &Client,
    group: Group,
    dns_service_ip: Ipv4Addr,
) -> Result<(), AddonError> {
    for object in render(group, dns_service_ip) {
        let types = object.types.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let api = api(client, &types, object.metadata.namespace.as_deref());
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
        applied.map_err(|source| AddonError { kind: types.kind, name, source })?;
    }
    Ok(())
}

fn api(client: &Client, types: &TypeMeta, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_manifests_are_objects() {
        let address = Ipv4Addr::new(10, 0, 0, 10);
        let lines: Vec<String> = [Group::Base, Group::Dns]
            .into_iter()
            .flat_map(|group| render(group, address))
            .map(|object| {
                let kind = object.types.as_ref().map_or("", |types| &types.kind);
                format!("{kind} {}", object.metadata.name.as_deref().unwrap_or("?"))
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ClusterRole aksnet:agents
        ClusterRoleBinding aksnet:agents
        ClusterRoleBinding aksnet:kube-apiserver-to-kubelet
        CustomResourceDefinition nodenetworkconfigs.acn.azure.com
        CustomResourceDefinition clustersubnetstates.acn.azure.com
        ServiceAccount coredns
        ClusterRole system:coredns
        ClusterRoleBinding system:coredns
        ConfigMap coredns
        Service kube-dns
        Deployment coredns
        ");
    }

    #[test]
    fn every_blank_is_filled() {
        let text =
            serde_json::to_string(&render(Group::Dns, Ipv4Addr::new(10, 9, 0, 10))).expect("JSON");
        assert!(!text.contains("${"), "{text}");
        assert!(text.contains(r#""clusterIP":"10.9.0.10""#));
    }
}

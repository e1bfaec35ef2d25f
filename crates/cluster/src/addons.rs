//! The objects that every cluster of the lab has from the start. Not here: users' objects, nodes.

use std::net::Ipv4Addr;

use kube::{
    Client,
    api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta},
};
use vnet::model::{AdvancedNetworking, Cluster};

mod cilium;

pub use cilium::{is_rolled_out, tells_api_server};

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
    /// What Cilium's agents and operator may do, and what their pods are told.
    CiliumAccess,
    /// Cilium's agents and operator, where nodes are for them: when their images can be pulled, and
    /// [`tells_api_server`] says yes.
    Cilium,
}

/// What add-ons depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// The name server's address.
    pub dns_service_ip: Ipv4Addr,
    /// The API server's public name.
    pub api_server: String,
    /// What Cilium is to do besides forwarding.
    pub advanced: AdvancedNetworking,
    /// Whether pods have addresses of both families.
    pub is_dual_stack: bool,
}

impl Values {
    /// Those of a cluster.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            dns_service_ip: cluster.dns_service_ip,
            api_server: cluster.fqdn.clone(),
            advanced: cluster.advanced_networking.unwrap_or_default(),
            is_dual_stack: cluster.is_dual_stack(),
        }
    }
}

impl Group {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Base => &[
                include_str!("addons/access.yaml"),
                include_str!("addons/nodenetworkconfigs.yaml"),
            ],
            Self::Dns => &[include_str!("addons/coredns.yaml")],
            Self::CiliumAccess => &cilium::ACCESS,
            Self::Cilium => &cilium::PROGRAMS,
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

/// A group for a cluster with these values, in the order in which it is applied.
///
/// # Panics
/// Never: the manifests are part of the program, and a test reads them.
#[must_use]
pub fn render(group: Group, values: &Values) -> Vec<DynamicObject> {
    let dns = [
        ("${DNS_SERVICE_IP}", values.dns_service_ip.to_string()),
        ("${COREDNS_IMAGE}", COREDNS_IMAGE.to_owned()),
    ];
    let blanks: Vec<_> = dns.into_iter().chain(cilium::blanks(values)).collect();
    let fill = |text: &str| {
        blanks.iter().fold(text.to_owned(), |text, (blank, value)| text.replace(blank, value))
    };
    let mut objects: Vec<DynamicObject> = group
        .files()
        .iter()
        .flat_map(|file| file.split("\n---\n"))
        .map(|text| {
            serde_saphyr::from_str(&fill(text)).expect("the add-ons are Kubernetes objects")
        })
        .collect();
    if group == Group::Cilium {
        cilium::settle(&mut objects, values);
    }
    objects
}

/// Puts a group into a cluster by server-side apply. Doing it again changes nothing.
pub async fn apply(client: &Client, group: Group, values: &Values) -> Result<(), AddonError> {
    for object in render(group, values) {
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
    use serde_json::json;
    use vnet::model::AdvancedPolicies;

    use super::*;

    fn values(advanced: AdvancedNetworking) -> Values {
        Values {
            dns_service_ip: Ipv4Addr::new(10, 9, 0, 10),
            api_server: "demo.hcp.eastus.azmk8s.io".to_owned(),
            advanced,
            is_dual_stack: false,
        }
    }

    #[test]
    fn all_manifests_are_objects() {
        let values = values(AdvancedNetworking::default());
        let lines: Vec<String> = [Group::Base, Group::Dns, Group::CiliumAccess, Group::Cilium]
            .into_iter()
            .flat_map(|group| render(group, &values))
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
        ServiceAccount cilium
        ServiceAccount cilium-operator
        ClusterRole cilium
        ClusterRole cilium-operator
        ClusterRoleBinding cilium
        ClusterRoleBinding cilium-operator
        Role cilium-config-agent
        RoleBinding cilium-config-agent
        MutatingAdmissionPolicy aks-kube-service-host-fqdn
        MutatingAdmissionPolicyBinding aks-kube-service-host-fqdn
        ValidatingAdmissionPolicy aksnet-layer-7
        ValidatingAdmissionPolicyBinding aksnet-layer-7
        ConfigMap cilium-config
        ConfigMap cni-configuration
        DaemonSet cilium
        Deployment cilium-operator
        ");
    }

    #[test]
    fn every_blank_is_filled() {
        for group in [Group::Dns, Group::CiliumAccess, Group::Cilium] {
            let objects = render(group, &values(AdvancedNetworking::default()));
            let text = serde_json::to_string(&objects).expect("JSON");
            assert!(!text.contains("${"), "{text}");
            let wanted = match group {
                Group::Dns => r#""clusterIP":"10.9.0.10""#,
                _ => "demo.hcp.eastus.azmk8s.io",
            };
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn proxies_are_those_that_policies_may_need() {
        for (security, proxies, external) in [
            (None, "false", "false"),
            (Some(AdvancedPolicies::None), "false", "false"),
            (Some(AdvancedPolicies::Fqdn), "true", "true"),
            (Some(AdvancedPolicies::L7), "true", "false"),
        ] {
            let values = values(AdvancedNetworking { observability: false, security });
            let objects = render(Group::Cilium, &values);
            let data = &objects[0].data["data"];
            let said = ["enable-l7-proxy", "external-envoy-proxy", "enable-hubble"];
            assert_eq!(said.map(|key| &data[key]), [proxies, external, "false"], "{security:?}");
            // Rules that none is there for are refused.
            let objects = render(Group::CiliumAccess, &values);
            let expressions: Vec<&str> = objects
                .iter()
                .filter_map(|it| it.data.pointer("/spec/validations")?.as_array())
                .flatten()
                .filter_map(|it| it["expression"].as_str()?.split(' ').next())
                .collect();
            let has_envoy = (proxies == "true" && external == "false").to_string();
            assert_eq!(expressions, [proxies, &has_envoy], "{security:?}");
        }
    }

    #[test]
    fn cilium_speaks_the_families_that_pods_have() {
        let none = json!(null);
        for (is_dual_stack, expected) in [
            (false, [json!("false"), none.clone(), none]),
            (true, [json!("true"), json!("fe80::"), json!("2")]),
        ] {
            let values = Values { is_dual_stack, ..values(AdvancedNetworking::default()) };
            let data = &render(Group::Cilium, &values)[0].data["data"];
            let said = ["enable-ipv6", "local-router-ipv6", "bpf-filter-priority"];
            assert_eq!(said.map(|key| data[key].clone()), expected);
        }
    }

    #[test]
    fn pods_of_cilium_begin_anew_when_its_settings_change() {
        let checksum = |advanced| {
            let objects = render(Group::Cilium, &values(advanced));
            let annotations: Vec<String> = objects
                .iter()
                .filter_map(|object| object.data.pointer("/spec/template/metadata/annotations"))
                .map(|it| it["cilium.io/cilium-configmap-checksum"].to_string())
                .collect();
            assert_eq!(annotations.len(), 2);
            assert_eq!(annotations[0], annotations[1]);
            annotations[0].clone()
        };
        let observed = AdvancedNetworking { observability: true, security: None };
        assert_eq!(checksum(observed), checksum(observed));
        assert_ne!(checksum(observed), checksum(AdvancedNetworking::default()));
    }
}

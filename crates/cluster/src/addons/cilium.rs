//! Cilium as AKS puts it into a cluster: its settings, agents and operator. Not here: where its images come
//! from ([`crate::images`]).

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vnet::model::{AdvancedNetworking, AdvancedPolicies};

use super::Values;
use crate::{
    images::{self, render_hex},
    install::CILIUM_VERSION,
};

/// What policies of more than addresses and ports may need.
struct Proxies {
    /// The agent's own, of DNS.
    has_dns: bool,
    /// Envoy.
    has_envoy: bool,
}

impl Proxies {
    fn of(advanced: AdvancedNetworking) -> Self {
        let (has_dns, has_envoy) = match advanced.security {
            None | Some(AdvancedPolicies::None) => (false, false),
            Some(AdvancedPolicies::Fqdn) => (true, false),
            Some(AdvancedPolicies::L7) => (true, true),
        };
        Self { has_dns, has_envoy }
    }
}

/// The settings that depend on the cluster.
fn settings(values: &Values) -> BTreeMap<&'static str, &'static str> {
    let on = |is_on| if is_on { "true" } else { "false" };
    let Proxies { has_dns, has_envoy } = Proxies::of(values.advanced);
    let mut settings = BTreeMap::from([
        ("enable-hubble", on(values.advanced.observability)),
        ("enable-ipv6", on(values.is_dual_stack)),
        // The agent's own proxy of DNS needs the switch, too.
        ("enable-l7-proxy", on(has_dns)),
        // An Envoy that runs elsewhere is not looked for before a policy needs it. Without the switch, the agent
        // itself starts the one of its image, then (`pkg/envoy/xds_server_ondemand.go` of cilium/cilium).
        ("external-envoy-proxy", on(has_dns && !has_envoy)),
    ]);
    if values.is_dual_stack {
        settings.extend([
            ("local-router-ipv6", "fe80::"),
            // Behind the program of the node's own that gives health probes of IPv6 a source to answer to.
            ("bpf-filter-priority", "2"),
            ("enable-tcx", "false"),
        ]);
    }
    if values.advanced.observability {
        settings.extend([
            ("hubble-disable-tls", "true"),
            ("hubble-metrics", "dns drop tcp flow icmp port-distribution"),
            ("hubble-metrics-server", ":9965"),
            ("hubble-socket-path", "/var/run/cilium/hubble.sock"),
        ]);
    }
    settings
}

/// The manifests of [`super::Group::CiliumAccess`].
pub(super) const ACCESS: [&str; 2] =
    [include_str!("cilium/access.yaml"), include_str!("cilium/policies.yaml")];
/// The manifests of [`super::Group::Cilium`].
pub(super) const PROGRAMS: [&str; 3] = [
    include_str!("cilium/config.yaml"),
    include_str!("cilium/agent.yaml"),
    include_str!("cilium/operator.yaml"),
];

/// What stands in the manifests' blanks.
pub(super) fn blanks(values: &Values) -> [(&'static str, String); 6] {
    let Proxies { has_dns, has_envoy } = Proxies::of(values.advanced);
    [
        ("${API_SERVER}", values.api_server.clone()),
        ("${HAS_DNS_PROXY}", has_dns.to_string()),
        ("${HAS_ENVOY}", has_envoy.to_string()),
        ("${CILIUM_IMAGE}", images::agent_name(CILIUM_VERSION)),
        ("${OPERATOR_IMAGE}", images::operator_name(CILIUM_VERSION)),
        ("${UNDERLAY}", render_hex(&Sha256::digest(&values.api_server))[..24].to_owned()),
    ]
}

/// Adds to `cilium-config` what depends on the cluster, and tells the pods that read it what they have read, so that
/// they begin anew when it changes.
pub(super) fn settle(objects: &mut [DynamicObject], values: &Values) {
    let mut checksum = String::new();
    for object in objects {
        if object.metadata.name.as_deref() == Some("cilium-config") {
            for (key, value) in settings(values) {
                object.data["data"][key] = json!(value);
            }
            checksum = render_hex(&Sha256::digest(object.data["data"].to_string()));
        }
        let template = object.data.pointer_mut("/spec/template/metadata/annotations");
        if let Some(Value::Object(annotations)) = template {
            annotations.insert("cilium.io/cilium-configmap-checksum".to_owned(), json!(checksum));
        }
    }
}

/// Whether the API server tells Cilium's operator its name: some time passes before a policy of admission that was
/// applied is in force, and a pod that was made before stays without.
pub async fn tells_api_server(client: &Client) -> Result<bool, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "cilium-operator-probe", "labels": {"io.cilium/app": "operator"}},
        "spec": {
            "serviceAccountName": "cilium-operator",
            "containers": [{"name": "probe", "image": "none"}],
        },
    }))
    .map_err(kube::Error::SerdeError)?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made = api.create(&dry, &pod).await?;
    let containers = made.spec.map(|spec| spec.containers).unwrap_or_default();
    Ok(containers.iter().all(|container| container.env.is_some()))
}

/// Whether every node that Cilium is for has an agent that is available and of its present settings.
pub async fn is_rolled_out(client: &Client) -> Result<bool, kube::Error> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
    let Some(agents) = api.get_opt("cilium").await? else { return Ok(false) };
    Ok(agents.status.is_some_and(|status| {
        let n_wanted = status.desired_number_scheduled;
        status.observed_generation == agents.metadata.generation
            && status.updated_number_scheduled == Some(n_wanted)
            && status.number_available.unwrap_or_default() == n_wanted
    }))
}

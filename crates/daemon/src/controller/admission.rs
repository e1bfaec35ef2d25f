//! Brings about the rules that let Services' users in, in AKS's own network security group and nowhere else.
//! Not here: which rules those are (see [`super::access`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Service;
use kube::runtime::events::EventType;
use vnet::{addr::Family, model::Cluster as Managed, name::ArmId};

use super::{
    Cluster, ControllerError,
    access::{self, Changes, Claim},
    arm, full_name,
    services::azure,
};

/// Makes the group's rules those that these Services, with their addresses, need. Answers for each of them.
///
/// A rule that Azure refuses is the fault of who asks for it, and does not hold up the others.
pub(super) async fn admit(
    cluster: &Cluster,
    managed: &Managed,
    services: &[(&Service, &[IpAddr])],
) -> Vec<Result<(), ControllerError>> {
    // Clusters of earlier versions have no group; their fabric lets everything in.
    let Some(group) = &managed.security_group else {
        return services.iter().map(|_| Ok(())).collect();
    };
    let nodes = nodes(cluster, managed);
    let mut claims = Vec::new();
    for (service, addresses) in services {
        claims.push(claim(cluster, service, addresses, &nodes).await);
    }
    let good: Vec<Claim> = claims.iter().flatten().cloned().collect();
    let refused = apply(cluster, group, &good).await;
    let answer = |((service, _), claim): (&(&Service, &[IpAddr]), Result<Claim, String>)| {
        let why = match (claim, &refused) {
            (Err(why), _) => Some(why),
            (Ok(_), Err(why)) => Some(why.clone()),
            (Ok(claim), Ok(refused)) => {
                claim.rule_names().iter().find_map(|name| refused.get(name).cloned())
            }
        };
        let service = full_name(*service);
        why.map_or(Ok(()), |why| Err(ControllerError::Admission { service, why }))
    };
    services.iter().zip(claims).map(answer).collect()
}

async fn claim(
    cluster: &Cluster,
    service: &Service,
    addresses: &[IpAddr],
    nodes: &BTreeSet<IpAddr>,
) -> Result<Claim, String> {
    let (claim, warnings) = Claim::of(service, addresses, nodes).map_err(str::to_owned)?;
    for (reason, note) in warnings {
        cluster.event(service, EventType::Warning, reason, &note).await;
    }
    Ok(claim)
}

/// The addresses of the cluster's nodes.
fn nodes(cluster: &Cluster, managed: &Managed) -> BTreeSet<IpAddr> {
    let region = cluster.store.snapshot();
    let nodes = region.nodes_of(&managed.meta.id).into_iter();
    let nics = nodes.filter_map(|node| region.nics.get(&node.nic));
    nics.flat_map(|nic| [Family::V4, Family::V6].map(|family| nic.address_of(family)))
        .flatten()
        .collect()
}

/// Changes the rules one by one, so that nobody else's change of the group is lost. Answers which were refused, by
/// name, and why.
async fn apply(
    cluster: &Cluster,
    group: &ArmId,
    claims: &[Claim],
) -> Result<BTreeMap<String, String>, String> {
    let text = |error: ControllerError| crate::reconcile::Chain(&error).to_string();
    let doing = |what: &str| azure(format!("{what} network security group {}", group.name()));
    let body = arm::get(&*cluster.arm, group.as_str());
    let body = body.await.map_err(doing("reading")).map_err(text)?;
    let changes = access::changes(&body, claims);
    let Changes { remove, put } =
        changes.ok_or_else(|| "security rule priority exhausted".to_owned())?;
    let rule = |name: &str| group.child("securityRules", name);
    for name in remove {
        let gone = arm::delete(&*cluster.arm, rule(&name).as_str()).await;
        gone.map_err(doing("taking a rule out of")).map_err(text)?;
    }
    let mut refused = BTreeMap::new();
    for (name, body) in put {
        let done = arm::put(&*cluster.arm, rule(&name).as_str(), body).await;
        if let Err(error) = done.map_err(doing("putting a rule into")) {
            refused.insert(name, text(error));
        }
    }
    Ok(refused)
}

//! Finds, makes, keeps and gives back the public IPs of Services. Not here: what they must be like (see
//! [`super::super::balancers::public_ips`]).

use std::collections::BTreeSet;

use serde_json::Value;
use vnet::{addr::Family, kind, model::Cluster as Managed, name::ArmId};

use super::{
    super::{
        Cluster, ControllerError, arm,
        balancers::{
            FrontEnd, Wanted,
            public_ips::{self, Choice, Left},
        },
    },
    azure, take_out,
};

/// The public IP that a family's front end stands on.
pub(super) async fn ensure(
    cluster: &Cluster,
    managed: &Managed,
    wanted: &Wanted,
    family: Family,
    context: &str,
) -> Result<FrontEnd, ControllerError> {
    let group = wanted.public_ip_group(&managed.node_group);
    let choice = wanted.choice(family);
    let there = find(cluster, &group, &choice, context).await?;
    let refused = |why: String| ControllerError::Refused { why };
    let (id, there) = match (choice, there) {
        // A Service of IPv6 alone that became dual-stack: what was its only one has the name of the other's.
        (Choice::Own(name), Some(there))
            if there["properties"]["publicIPAddressVersion"] != public_ips::version(family) =>
        {
            take_out(cluster, managed, wanted, false).await?;
            (of_group(&group, &name), None)
        }
        (Choice::Own(name), there) => (of_group(&group, &name), there),
        (Choice::Named(_) | Choice::Address(_), Some(there)) => {
            let name = there["name"].as_str().unwrap_or_default();
            (of_group(&group, name), Some(there))
        }
        (Choice::Named(name), None) => {
            return Err(refused(format!(
                "PublicIP from annotation azure-pip-name(-IPv6)={name} for service {} doesn't exist",
                wanted.full_name
            )));
        }
        (Choice::Address(address), None) => {
            return Err(refused(format!(
                "user supplied IP Address {address} was not found in resource group {}",
                group.resource_group()
            )));
        }
    };
    let body = match &there {
        Some(there) => public_ips::changed(there, wanted).map_err(refused)?,
        None => Some(public_ips::new(wanted, family, &managed.meta.location).map_err(refused)?),
    };
    let failed = azure(format!("{context} - public IP {}", id.name()));
    let there = match (body, there) {
        (Some(body), _) => arm::put(&*cluster.arm, id.as_str(), body).await.map_err(failed)?,
        (None, there) => there.unwrap_or_default(),
    };
    let address = there["properties"]["ipAddress"].as_str().and_then(|text| text.parse().ok());
    let address =
        address.ok_or_else(|| ControllerError::NoAddress { public_ip: id.name().to_owned() })?;
    Ok(FrontEnd::Public { public_ip: id.as_str().to_owned(), address })
}

fn of_group(group: &ArmId, name: &str) -> ArmId {
    group.sibling(kind::PUBLIC_IP, name)
}

async fn find(
    cluster: &Cluster,
    group: &ArmId,
    choice: &Choice,
    context: &str,
) -> Result<Option<Value>, ControllerError> {
    let (name, answer) = match choice {
        Choice::Named(name) | Choice::Own(name) => {
            (name, arm::get(&*cluster.arm, of_group(group, name).as_str()).await)
        }
        Choice::Address(address) => {
            let all = list(cluster, group).await;
            let found = all.map(|all| public_ips::with_address(&all, address).cloned());
            (address, found.map(Option::unwrap_or_default))
        }
    };
    match answer {
        Ok(body) => Ok((!body.is_null()).then_some(body)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(azure(format!("{context} - public IP {name}"))(error)),
    }
}

/// The public IPs of a group.
async fn list(cluster: &Cluster, group: &ArmId) -> Result<Value, arm::ArmError> {
    let all = format!("{group}/providers/{}", kind::PUBLIC_IP);
    arm::get(&*cluster.arm, &all).await
}

/// Gives back the public IPs of these groups that a Service had, but for those that it has now.
pub(super) async fn give_back(
    cluster: &Cluster,
    wanted: &Wanted,
    groups: &BTreeSet<ArmId>,
    has: &[&str],
) -> Result<(), ControllerError> {
    let doing = |name: &str| azure(format!("giving back public IP {name}"));
    for group in groups {
        let all = match list(cluster, group).await {
            Ok(all) => all,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(doing(&format!("{}/*", group.resource_group()))(error)),
        };
        for there in all["value"].as_array().into_iter().flatten() {
            let name = there["name"].as_str().unwrap_or_default();
            let id = of_group(group, name);
            if has.iter().any(|has| has.eq_ignore_ascii_case(id.as_str())) {
                continue;
            }
            match public_ips::left(there, &wanted.full_name) {
                Left::Alone => {}
                Left::Changed(body) => {
                    arm::put(&*cluster.arm, id.as_str(), body).await.map_err(doing(name))?;
                }
                Left::Gone => {
                    arm::delete(&*cluster.arm, id.as_str()).await.map_err(doing(name))?;
                }
            }
        }
    }
    Ok(())
}

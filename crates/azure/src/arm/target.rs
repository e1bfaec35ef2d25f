//! What a path below a subscription is about. Not here: whether it exists.

use vnet::{fault::Fault, kind, name::ArmId};

use super::watcher;

/// A resource type that the door knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vnet,
    Subnet,
    RouteTable,
    Route,
    SecurityGroup,
    SecurityRule,
    ApplicationGroup,
    Watcher,
    Peering,
    NatGateway,
    PublicIpPrefix,
    PublicIp,
    Nic,
    Balancer,
    BackendPool,
    InboundRule,
    Vm,
    ScaleSet,
    Instance,
    InstanceNic,
    Cluster,
    Pool,
    Deployment,
    /// A part that is shown with its parent, in a list of this name.
    Part(&'static str),
    /// A type that Azure has and this lab refuses, with what it is.
    Refused(&'static str),
}

/// Every type, as Azure spells it.
const KINDS: &[(&str, Kind)] = &[
    (kind::VNET, Kind::Vnet),
    (kind::SUBNET, Kind::Subnet),
    (kind::ROUTE_TABLE, Kind::RouteTable),
    (kind::ROUTE, Kind::Route),
    (kind::PUBLIC_IP, Kind::PublicIp),
    (kind::NIC, Kind::Nic),
    ("Microsoft.Network/networkInterfaces/ipConfigurations", Kind::Part("ipConfigurations")),
    (kind::LOAD_BALANCER, Kind::Balancer),
    ("Microsoft.Network/loadBalancers/backendAddressPools", Kind::BackendPool),
    (
        "Microsoft.Network/loadBalancers/frontendIPConfigurations",
        Kind::Part("frontendIPConfigurations"),
    ),
    ("Microsoft.Network/loadBalancers/loadBalancingRules", Kind::Part("loadBalancingRules")),
    ("Microsoft.Network/loadBalancers/probes", Kind::Part("probes")),
    ("Microsoft.Network/loadBalancers/outboundRules", Kind::Part("outboundRules")),
    ("Microsoft.Network/loadBalancers/inboundNatRules", Kind::InboundRule),
    (kind::PEERING, Kind::Peering),
    (kind::SECURITY_GROUP, Kind::SecurityGroup),
    (kind::SECURITY_RULE, Kind::SecurityRule),
    (
        "Microsoft.Network/networkSecurityGroups/defaultSecurityRules",
        Kind::Part("defaultSecurityRules"),
    ),
    (kind::APPLICATION_GROUP, Kind::ApplicationGroup),
    (kind::NAT_GATEWAY, Kind::NatGateway),
    (kind::PUBLIC_IP_PREFIX, Kind::PublicIpPrefix),
    ("Microsoft.Network/privateEndpoints", Kind::Refused("private endpoints")),
    ("Microsoft.Network/privateLinkServices", Kind::Refused("private link services")),
    ("Microsoft.Network/privateDnsZones", Kind::Refused("private DNS zones")),
    ("Microsoft.Network/dnsZones", Kind::Refused("DNS zones")),
    ("Microsoft.Network/bastionHosts", Kind::Refused("Azure Bastion")),
    ("Microsoft.Network/azureFirewalls", Kind::Refused("Azure Firewall")),
    ("Microsoft.Network/firewallPolicies", Kind::Refused("Azure Firewall")),
    ("Microsoft.Network/applicationGateways", Kind::Refused("application gateways")),
    ("Microsoft.Network/virtualNetworkGateways", Kind::Refused("virtual network gateways")),
    ("Microsoft.Network/localNetworkGateways", Kind::Refused("virtual network gateways")),
    ("Microsoft.Network/connections", Kind::Refused("virtual network gateways")),
    (watcher::KIND, Kind::Watcher),
    ("Microsoft.Network/ddosProtectionPlans", Kind::Refused("DDoS protection plans")),
    (kind::VM, Kind::Vm),
    (kind::SCALE_SET, Kind::ScaleSet),
    (crate::wire::machine::INSTANCE, Kind::Instance),
    (crate::wire::nic::INSTANCE_NIC, Kind::InstanceNic),
    (kind::CLUSTER, Kind::Cluster),
    (kind::POOL, Kind::Pool),
    (
        "Microsoft.ContainerService/managedClusters/maintenanceConfigurations",
        Kind::Refused("maintenance windows"),
    ),
    ("Microsoft.ManagedIdentity/userAssignedIdentities", Kind::Refused("user-assigned identities")),
    ("Microsoft.Resources/deployments", Kind::Deployment),
];

/// The types of a namespace that the lab has, without the namespace.
pub(super) fn types_of(namespace: &str) -> Vec<&'static str> {
    let prefix = format!("{}/", namespace.to_ascii_lowercase());
    KINDS
        .iter()
        .filter(|(_, kind)| !matches!(kind, Kind::Refused(_) | Kind::Part(_)))
        .filter(|(name, _)| name.to_ascii_lowercase().starts_with(&prefix))
        .filter_map(|(name, _)| name.get(prefix.len()..))
        .collect()
}

/// The namespaces that the lab knows, as Azure spells them.
pub(super) const NAMESPACES: [&str; 6] = [
    "Microsoft.Authorization",
    "Microsoft.Compute",
    "Microsoft.ContainerService",
    "Microsoft.ManagedIdentity",
    "Microsoft.Network",
    "Microsoft.Resources",
];

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One resource.
    One { kind: Kind, id: ArmId },
    /// All of a type in a subscription, a group or a parent resource.
    All { kind: Kind, within: Within },
    /// Something else that a resource answers: `…/listClusterUserCredential`, `…/usages`.
    Word { kind: Kind, id: ArmId, word: String },
}

/// Where a list is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Within {
    Subscription(String),
    Group(ArmId),
    Parent(ArmId),
}

/// Reads a path below `/subscriptions/S`.
pub(super) fn parse(
    subscription: &str,
    segments: &[&str],
    lower: &[&str],
) -> Result<Target, Fault> {
    match (segments, lower) {
        ([_, namespace, kind], ["providers", ..]) => {
            let kind = find(namespace, &[kind])?.1;
            Ok(Target::All { kind, within: Within::Subscription(subscription.to_owned()) })
        }
        ([_, group, _, namespace, rest @ ..], ["resourcegroups", _, "providers", ..])
            if !rest.is_empty() =>
        {
            in_group(&ArmId::group(subscription, group), namespace, rest)
        }
        _ => Err(Fault::new(
            404,
            "InvalidRequestUri",
            format!(
                "The path '/subscriptions/{subscription}/{}' is not one of a resource.",
                segments.join("/")
            ),
        )),
    }
}

fn in_group(group: &ArmId, namespace: &str, rest: &[&str]) -> Result<Target, Fault> {
    let types: Vec<&str> = rest.iter().copied().step_by(2).collect();
    let names: Vec<&str> = rest.iter().copied().skip(1).step_by(2).collect();
    // `…/upgradeProfiles/default` is one word of its resource.
    if let [parents @ .., "default"] = names.as_slice()
        && let [kinds @ .., last] = types.as_slice()
        && last.eq_ignore_ascii_case("upgradeProfiles")
        && !kinds.is_empty()
    {
        let (name, kind) = find(namespace, kinds)?;
        let word = last.to_ascii_lowercase();
        return Ok(Target::Word { kind, id: id(group, name, parents), word });
    }
    if types.len() == names.len() {
        // `…/deployments/D/operationStatuses/ID` likewise.
        if let ([kinds @ .., last], [parents @ .., status]) = (types.as_slice(), names.as_slice())
            && last.eq_ignore_ascii_case("operationStatuses")
            && !kinds.is_empty()
        {
            let (name, kind) = find(namespace, kinds)?;
            let word = format!("operationstatuses/{status}");
            return Ok(Target::Word { kind, id: id(group, name, parents), word });
        }
        let (name, kind) = find(namespace, &types)?;
        return Ok(Target::One { kind, id: id(group, name, &names) });
    }
    // One more type than names: a list, or a word of the resource before it.
    let [kinds @ .., last] = types.as_slice() else {
        return Err(unknown(namespace, ""));
    };
    if let Ok((_, kind)) = find(namespace, &types) {
        let within = if kinds.is_empty() {
            Within::Group(group.clone())
        } else {
            let (name, _) = find(namespace, kinds)?;
            Within::Parent(id(group, name, &names))
        };
        return Ok(Target::All { kind, within });
    }
    if kinds.is_empty() {
        return Err(unknown(namespace, last));
    }
    let (name, kind) = find(namespace, kinds)?;
    Ok(Target::Word { kind, id: id(group, name, &names), word: last.to_ascii_lowercase() })
}

/// The type's name as Azure spells it, and the kind.
fn find(namespace: &str, types: &[&str]) -> Result<(&'static str, Kind), Fault> {
    let wanted = format!("{namespace}/{}", types.join("/"));
    KINDS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(&wanted))
        .copied()
        .ok_or_else(|| unknown(namespace, &types.join("/")))
}

fn unknown(namespace: &str, kind: &str) -> Fault {
    let known = NAMESPACES.iter().find(|known| known.eq_ignore_ascii_case(namespace));
    match known {
        Some(namespace) => Fault::new(
            404,
            "InvalidResourceType",
            format!(
                "The resource type '{kind}' could not be found in the namespace '{namespace}' for any api version: this lab (aksnet) has none."
            ),
        ),
        None => Fault::new(
            404,
            "InvalidResourceNamespace",
            format!(
                "The resource namespace '{namespace}' is invalid: this lab (aksnet) has none of that name."
            ),
        ),
    }
}

/// The id with Azure's spelling of everything but names.
fn id(group: &ArmId, kind: &str, names: &[&str]) -> ArmId {
    let mut parts = kind.split('/');
    let namespace = parts.next().unwrap_or_default();
    let mut types = parts.zip(names);
    let Some((first, name)) = types.next() else { return group.clone() };
    let top = group.sibling(&format!("{namespace}/{first}"), name);
    types.fold(top, |id, (kind, name)| id.child(kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &str) {
        let path = crate::call::Path::parse(path);
        let (segments, lower) = (path.segments(), path.lower());
        let target = parse("S", &segments, &lower);
        let text = match target {
            Ok(Target::One { kind, id }) => format!("{kind:?} {id}"),
            Ok(Target::All { kind, within }) => format!("all {kind:?} {within:?}"),
            Ok(Target::Word { kind, id, word }) => format!("{word} of {kind:?} {id}"),
            Err(fault) => fault.code,
        };
        assert_eq!(text, expected, "{path:?}");
    }

    #[test]
    fn paths_are_understood_in_any_case() {
        let base = "/subscriptions/S/resourceGroups/g/providers";
        check(
            "/resourcegroups/g/PROVIDERS/microsoft.network/VIRTUALNETWORKS/V/subnets/s/",
            &format!("Subnet {base}/Microsoft.Network/virtualNetworks/V/subnets/s"),
        );
        check(
            "/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets",
            &format!("all Subnet Parent(`{base}/Microsoft.Network/virtualNetworks/v`)"),
        );
        check(
            "/resourceGroups/g/providers/Microsoft.Network/virtualNetworks",
            "all Vnet Group(`/subscriptions/S/resourceGroups/g`)",
        );
        check(
            "/providers/microsoft.containerservice/managedclusters",
            "all Cluster Subscription(\"S\")",
        );
        check(
            "/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/CheckIPAddressAvailability",
            &format!(
                "checkipaddressavailability of Vnet {base}/Microsoft.Network/virtualNetworks/v"
            ),
        );
        check(
            "/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/c/agentPools/p/upgradeProfiles/default",
            &format!(
                "upgradeprofiles of Pool {base}/Microsoft.ContainerService/managedClusters/c/agentPools/p"
            ),
        );
        check(
            "/resourcegroups/g/providers/Microsoft.Resources/deployments/d/operationStatuses/1",
            &format!("operationstatuses/1 of Deployment {base}/Microsoft.Resources/deployments/d"),
        );
    }

    #[test]
    fn what_azure_has_not_is_told_from_what_the_lab_has_not() {
        check("/resourceGroups/g/providers/Microsoft.Network/toasters/t", "InvalidResourceType");
        check("/resourceGroups/g/providers/Contoso.Toast/toasters/t", "InvalidResourceNamespace");
        check("/resourceGroups/g/something", "InvalidRequestUri");
    }
}

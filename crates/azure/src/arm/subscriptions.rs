//! Subscriptions, locations and resource providers.

use http::Method;
use serde_json::{Value, json};
use vnet::fault::Fault;

use super::{no_route, target, wrong_method};
use crate::{
    answer::{Answer, Reply},
    call::Call,
    identity::{DEFAULT_SUBSCRIPTION, TENANT},
    wire::{cluster, effective},
};

/// Name, display name, geography, longitude, latitude, place.
type Location =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const LOCATIONS: [Location; 12] = [
    ("eastus", "East US", "US", "-79.8164", "37.3719", "Virginia"),
    ("eastus2", "East US 2", "US", "-78.3889", "36.6681", "Virginia"),
    ("centralus", "Central US", "US", "-93.6208", "41.5908", "Iowa"),
    ("westus", "West US", "US", "-122.417", "37.783", "California"),
    ("westus2", "West US 2", "US", "-119.852", "47.233", "Washington"),
    ("westus3", "West US 3", "US", "-112.074036", "33.448376", "Phoenix"),
    ("northeurope", "North Europe", "Europe", "-6.2597", "53.3478", "Ireland"),
    ("westeurope", "West Europe", "Europe", "4.9", "52.3667", "Netherlands"),
    ("uksouth", "UK South", "UK", "-0.799", "50.941", "London"),
    ("francecentral", "France Central", "France", "2.3730", "46.3772", "Paris"),
    ("germanywestcentral", "Germany West Central", "Germany", "8.682127", "50.110924", "Frankfurt"),
    ("swedencentral", "Sweden Central", "Sweden", "17.14127", "60.67488", "Gävle"),
];

/// The subscription that the lab offers, and any other that has a group in it.
pub(super) fn list(call: &Call<'_>) -> Reply {
    let mut all = vec![DEFAULT_SUBSCRIPTION.to_owned()];
    for group in call.region().groups.keys() {
        let subscription = group.subscription().to_ascii_lowercase();
        if !all.contains(&subscription) {
            all.push(subscription);
        }
    }
    let count = all.len();
    let value: Vec<Value> = all.iter().map(|id| render(id)).collect();
    Reply::ok(json!({ "value": value, "count": { "type": "Total", "value": count } }))
}

/// One subscription; any GUID is one.
pub(super) fn show(call: &Call<'_>, id: &str) -> Answer {
    if call.method != Method::GET {
        return Err(wrong_method(call));
    }
    Ok(Reply::ok(render(&id.to_ascii_lowercase())))
}

fn render(id: &str) -> Value {
    json!({
        "id": format!("/subscriptions/{id}"),
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
        "subscriptionId": id,
        "tenantId": TENANT,
        "displayName": "aksnet",
        "state": "Enabled",
        "subscriptionPolicies": {
            "locationPlacementId": "Internal_2014-09-01",
            "quotaId": "Internal_2014-09-01",
            "spendingLimit": "Off",
        },
    })
}

/// Where resources can be.
pub(super) fn locations(subscription: &str) -> Reply {
    let render = |(name, display, geography, longitude, latitude, place): &Location| {
        json!({
            "id": format!("/subscriptions/{subscription}/locations/{name}"),
            "name": name,
            "type": "Region",
            "displayName": display,
            "regionalDisplayName": format!("({geography}) {display}"),
            "metadata": {
                "regionType": "Physical",
                "regionCategory": "Recommended",
                "geography": geography,
                "geographyGroup": geography,
                "longitude": longitude,
                "latitude": latitude,
                "physicalLocation": place,
                "pairedRegion": [],
            },
        })
    };
    Reply::list(LOCATIONS.iter().map(render).collect())
}

/// All resource providers that the lab has.
pub(super) fn providers(subscription: &str) -> Reply {
    Reply::list(target::NAMESPACES.iter().map(|name| render_provider(subscription, name)).collect())
}

/// One resource provider. All are registered; registering says so again.
pub(super) fn provider(subscription: &str, namespace: &str) -> Answer {
    let known = target::NAMESPACES.iter().find(|known| known.eq_ignore_ascii_case(namespace));
    let known = known.ok_or_else(|| {
        Fault::new(
            404,
            "InvalidResourceNamespace",
            format!("The resource namespace '{namespace}' is invalid."),
        )
    })?;
    Ok(Reply::ok(render_provider(subscription, known)))
}

fn render_provider(subscription: &str, namespace: &str) -> Value {
    let locations: Vec<&str> = LOCATIONS.iter().map(|location| location.1).collect();
    let types: Vec<Value> = target::types_of(namespace)
        .into_iter()
        .map(|kind| {
            json!({
                "resourceType": kind,
                "locations": locations,
                "apiVersions": ["2026-03-01", "2025-05-01", "2024-05-01", "2024-01-01"],
                "capabilities": "SupportsTags, SupportsLocation",
            })
        })
        .collect();
    json!({
        "id": if subscription.is_empty() {
            format!("/providers/{namespace}")
        } else {
            format!("/subscriptions/{subscription}/providers/{namespace}")
        },
        "namespace": namespace,
        "registrationState": "Registered",
        "registrationPolicy": "RegistrationRequired",
        "resourceTypes": types,
    })
}

/// What a provider answers about a location.
pub(super) fn in_location(
    call: &Call<'_>,
    namespace: &str,
    location: &str,
    rest: &[&str],
) -> Answer {
    match (namespace, rest) {
        ("microsoft.containerservice", ["kubernetesversions"]) => {
            Ok(Reply::ok(cluster::render_versions(&call.door().available_versions)))
        }
        ("microsoft.network", ["servicetags"]) => {
            let region = call.region();
            Ok(Reply::ok(effective::render_tags(region.service_tags(), location)))
        }
        ("microsoft.network", ["availabledelegations"]) => Ok(Reply::list(vec![json!({
            "name": "Microsoft.ContainerService.managedClusters",
            "id": format!("/subscriptions/{DEFAULT_SUBSCRIPTION}/providers/Microsoft.Network/availableDelegations/Microsoft.ContainerService.managedClusters"),
            "type": "Microsoft.Network/availableDelegations",
            "serviceName": vnet::kind::AKS_SERVICE,
            "actions": ["Microsoft.Network/virtualNetworks/subnets/join/action"],
            "location": location,
        })])),
        (
            "microsoft.compute",
            [
                "publishers",
                publisher,
                "artifacttypes",
                "vmimage",
                "offers",
                offer,
                "skus",
                sku,
                "versions",
                rest @ ..,
            ],
        ) => image(location, [publisher, offer, sku], rest).ok_or_else(|| no_route(call)),
        ("microsoft.network", ["usages"]) => Ok(Reply::list(network_usages(call, location))),
        _ => Err(no_route(call)),
    }
}

/// The one version of every image.
const IMAGE_VERSION: &str = "1.0.0";

/// What the marketplace says of an image. A machine's image is kept, not acted upon, so there is every one of them;
/// what tools have to know is which operating system it would be.
fn image(location: &str, of: [&str; 3], rest: &[&str]) -> Option<Reply> {
    let [publisher, offer, sku] = of;
    let id = format!(
        "/Subscriptions/{DEFAULT_SUBSCRIPTION}/Providers/Microsoft.Compute/Locations/{location}/Publishers/{publisher}/ArtifactTypes/VMImage/Offers/{offer}/Skus/{sku}/Versions/{IMAGE_VERSION}"
    );
    let body = json!({ "name": IMAGE_VERSION, "location": location, "id": id });
    match rest {
        // A list without the usual frame, as Azure has it.
        [] => Some(Reply::ok(Value::Array(vec![body]))),
        [version] if [IMAGE_VERSION, "latest"].contains(version) => {
            let is_windows = publisher.starts_with("microsoftwindows") || offer.contains("windows");
            let mut body = body;
            body["properties"] = json!({
                "architecture": "x64",
                "automaticOSUpgradeProperties": { "automaticOSUpgradeSupported": false },
                "dataDiskImages": [],
                "disallowed": { "vmDiskType": "None" },
                "features": [],
                "hyperVGeneration": "V2",
                "osDiskImage": { "operatingSystem": if is_windows { "Windows" } else { "Linux" } },
                "replicaType": "Managed",
            });
            Some(Reply::ok(body))
        }
        _ => None,
    }
}

/// How many resources of Microsoft.Network a region has, and how many it may have
/// (Azure subscription and service limits, networking: the defaults).
fn network_usages(call: &Call<'_>, location: &str) -> Vec<serde_json::Value> {
    let region = call.region();
    let location = crate::wire::location(location);
    let is_in = |meta: &vnet::model::Meta| meta.location == location;
    let counts = [
        (
            "VirtualNetworks",
            "Virtual Networks",
            1_000,
            region.vnets.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "StaticPublicIPAddresses",
            "Static Public IP Addresses",
            1_000,
            region.public_ips.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "NetworkSecurityGroups",
            "Network Security Groups",
            5_000,
            region.security_groups.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "PublicIPAddresses",
            "Public IP Addresses",
            1_000,
            region.public_ips.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "PublicIpPrefixes",
            "Public Ip Prefixes",
            2_147_483_647,
            region.public_ip_prefixes.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "NatGateways",
            "Nat Gateways",
            1_000,
            region.nat_gateways.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "NetworkInterfaces",
            "Network Interfaces",
            65_536,
            region.nics.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "LoadBalancers",
            "Load Balancers",
            1_000,
            region.balancers.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "ApplicationSecurityGroups",
            "Application Security Groups",
            3_000,
            region.application_groups.values().filter(|it| is_in(&it.meta)).count(),
        ),
        (
            "RouteTables",
            "Route Tables",
            200,
            region.route_tables.values().filter(|it| is_in(&it.meta)).count(),
        ),
    ];
    let usage = |(name, label, limit, count): (&str, &str, u64, usize)| {
        json!({
            "id": format!("/subscriptions/{DEFAULT_SUBSCRIPTION}/providers/Microsoft.Network/locations/{location}/usages/{name}"),
            "name": { "value": name, "localizedValue": label },
            "currentValue": count,
            "limit": limit,
            "unit": "Count",
        })
    };
    counts.into_iter().map(usage).collect()
}

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
        _ => Err(no_route(call)),
    }
}

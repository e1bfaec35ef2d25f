//! What the metadata service says of a machine, as JSON. Not here: who may ask, and how (see [`super::metadata`]).
//!
//! As in Azure every value is a text, and what does not apply is an empty one (Azure documentation, "Azure Instance
//! Metadata Service"). A lab has no images and no disks: what is said of them is empty, too.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use vnet::{
    model::{Frontend, LoadBalancer, Machine, Nic, Role, Transport},
    name::{ArmId, Name},
    region::Region,
};

use super::kept;

/// The version that brought each property of `compute`; the others have always been there.
const SINCE: [(&str, &str); 35] = [
    ("additionalCapabilities", "2021-11-01"),
    ("azEnvironment", "2018-10-01"),
    ("customData", "2019-02-01"),
    ("evictionPolicy", "2020-12-01"),
    ("extendedLocation", "2021-03-01"),
    ("host", "2021-11-15"),
    ("hostGroup", "2021-11-15"),
    ("isHostCompatibilityLayerVm", "2020-06-01"),
    ("licenseType", "2020-09-01"),
    ("location", "2017-04-02"),
    ("name", "2017-04-02"),
    ("offer", "2017-04-02"),
    ("osProfile", "2020-07-15"),
    ("osType", "2017-04-02"),
    ("physicalZone", "2023-11-15"),
    ("placementGroupId", "2017-08-01"),
    ("plan", "2018-04-02"),
    ("platformFaultDomain", "2017-04-02"),
    ("platformSubFaultDomain", "2021-10-01"),
    ("platformUpdateDomain", "2017-04-02"),
    ("priority", "2020-12-01"),
    ("provider", "2018-10-01"),
    ("publicKeys", "2018-04-02"),
    ("publisher", "2017-04-02"),
    ("resourceGroupName", "2017-08-01"),
    ("resourceId", "2019-03-11"),
    ("securityProfile", "2020-06-01"),
    ("storageProfile", "2019-06-01"),
    ("subscriptionId", "2017-08-01"),
    ("tags", "2017-08-01"),
    ("tagsList", "2019-06-04"),
    ("userData", "2021-01-01"),
    ("virtualMachineScaleSet", "2021-03-01"),
    ("vmScaleSetName", "2017-12-01"),
    ("zone", "2017-12-01"),
];

/// `/metadata/instance` as the version has it.
pub(super) fn document(region: &Region, machine: &Machine, version: &str) -> Value {
    let mut compute = compute(region, machine);
    compute.retain(|name, _| {
        SINCE.iter().find(|(known, _)| known == name).is_none_or(|(_, since)| *since <= version)
    });
    json!({ "compute": compute, "network": network(region, machine) })
}

fn compute(region: &Region, machine: &Machine) -> Map<String, Value> {
    let meta = &machine.meta;
    let (name, scale_set, size, user) = match &machine.role {
        Role::Vm => {
            let size = kept::text(meta, "/properties/hardwareProfile/vmSize");
            let user = kept::text(meta, "/properties/osProfile/adminUsername");
            let size = size.unwrap_or_else(|| "Standard_B1s".to_owned());
            (meta.id.name().to_owned(), String::new(), size, user.unwrap_or_default())
        }
        Role::Node(node) => {
            let scale_set = meta.id.parent().map(|id| id.name().to_owned()).unwrap_or_default();
            let cluster = region.clusters.get(&node.cluster);
            let pool = cluster.and_then(|cluster| cluster.pools.get(&node.pool));
            let size = pool.map(|pool| pool.vm_size.clone()).unwrap_or_default();
            let name = format!("{scale_set}_{}", node.instance);
            (name, scale_set, size, "azureuser".to_owned())
        }
    };
    let zone = match kept::property(meta, "/zones") {
        Some(Value::Array(zones)) => zones.first().and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let tags: Vec<String> =
        meta.tags.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    let tags_list: Vec<Value> =
        meta.tags.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let compute = json!({
        "additionalCapabilities": { "hibernationEnabled": "false" },
        "azEnvironment": "AzurePublicCloud",
        "customData": "",
        "evictionPolicy": "",
        "extendedLocation": { "name": "", "type": "" },
        "host": { "id": "" },
        "hostGroup": { "id": "" },
        "isHostCompatibilityLayerVm": "false",
        "licenseType": "",
        "location": meta.location,
        "name": name,
        "offer": "",
        "osProfile": {
            "adminUsername": user,
            "computerName": machine.hostname,
            "disablePasswordAuthentication": "true",
        },
        "osType": "Linux",
        "physicalZone": "",
        "placementGroupId": "",
        "plan": { "name": "", "product": "", "publisher": "" },
        "platformFaultDomain": "0",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": "0",
        "priority": "",
        "provider": "Microsoft.Compute",
        "publicKeys": [],
        "publisher": "",
        "resourceGroupName": meta.id.resource_group(),
        "resourceId": meta.id.as_str(),
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "false",
            "securityType": "",
            "virtualTpmEnabled": "false",
        },
        "sku": "",
        "storageProfile": { "dataDisks": [], "imageReference": {}, "osDisk": {}, "resourceDisk": { "size": "0" } },
        "subscriptionId": subscription(&meta.id),
        "tags": tags.join(";"),
        "tagsList": tags_list,
        "userData": "",
        "version": "",
        "virtualMachineScaleSet": { "id": "" },
        "vmId": meta.guid.to_string(),
        "vmScaleSetName": scale_set,
        "vmSize": size,
        "zone": zone.unwrap_or_default(),
    });
    match compute {
        Value::Object(compute) => compute,
        _ => Map::new(),
    }
}

fn subscription(id: &ArmId) -> &str {
    id.as_str().split('/').nth(2).unwrap_or_default()
}

fn network(region: &Region, machine: &Machine) -> Value {
    let nic = region.nics.get(&machine.nic);
    let interfaces: Vec<Value> = nic.into_iter().map(|nic| interface(region, nic)).collect();
    json!({ "interface": interfaces })
}

fn interface(region: &Region, nic: &Nic) -> Value {
    let mut addresses = Vec::new();
    let mut subnets: Vec<Value> = Vec::new();
    for config in &nic.configs {
        let public = config.public_ip.as_ref().and_then(|id| region.public_ips.get(id));
        addresses.push(json!({
            "privateIpAddress": config.address.to_string(),
            "publicIpAddress": public.map(|ip| ip.address.to_string()).unwrap_or_default(),
        }));
        let vnet = config.subnet.parent().and_then(|id| region.vnets.get(&id).cloned());
        let subnet = vnet.as_ref().and_then(|vnet| {
            vnet.subnets.values().find(|subnet| subnet.prefix.contains(config.address))
        });
        let shown = subnet.map(|subnet| {
            json!({
                "address": subnet.prefix.network().to_string(),
                "prefix": subnet.prefix.length().to_string(),
            })
        });
        if let Some(shown) = shown.filter(|shown| !subnets.contains(shown)) {
            subnets.push(shown);
        }
    }
    let mac = nic.mac.to_string().replace(':', "").to_ascii_uppercase();
    json!({
        "ipv4": { "ipAddress": addresses, "subnet": subnets },
        "ipv6": { "ipAddress": [] },
        "macAddress": mac,
    })
}

/// `/metadata/loadbalancer`; `None` for a machine that has neither a Standard load balancer nor a public address.
pub(super) fn balancers(region: &Region, machine: &Machine) -> Option<Value> {
    let nic = region.nics.get(&machine.nic)?;
    let private = nic.address()?.to_string();
    let own: Vec<Value> = nic
        .configs
        .iter()
        .filter_map(|config| {
            let public = region.public_ips.get(config.public_ip.as_ref()?)?;
            Some(json!({
                "frontendIpAddress": public.address.to_string(),
                "privateIpAddress": config.address.to_string(),
            }))
        })
        .collect();
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    let mut is_member = false;
    let standard = region.balancers.values().filter(|it| it.sku.eq_ignore_ascii_case("Standard"));
    for balancer in standard {
        let has = |pool: &Name| {
            balancer.pools.get(pool).is_some_and(|pool| pool.members.contains(&nic.meta.id))
        };
        is_member |= balancer.pools.keys().any(has);
        for rule in balancer.rules.values().filter(|rule| has(&rule.pool)) {
            let frontend = balancer.frontends.get(&rule.frontend);
            let Some(address) = frontend.and_then(|it| address_of(region, it)) else { continue };
            inbound.push(json!({
                "frontendIpAddress": address.to_string(),
                "protocol": match rule.protocol {
                    Transport::Tcp => "tcp",
                    Transport::Udp => "udp",
                    Transport::All => "all",
                },
                "frontendPort": rule.frontend_port,
                "backendPort": rule.backend_port,
                "privateIpAddress": private,
            }));
        }
        for address in outbound_addresses(region, balancer, has) {
            outbound.push(json!({
                "frontendIpAddress": address.to_string(),
                "privateIpAddress": private,
            }));
        }
    }
    (is_member || !own.is_empty()).then(
        || json!({ "publicIpAddresses": own, "inboundRules": inbound, "outboundRules": outbound }),
    )
}

fn outbound_addresses(
    region: &Region,
    balancer: &LoadBalancer,
    has: impl Fn(&Name) -> bool,
) -> Vec<IpAddr> {
    let rules = balancer.outbound_rules.values().filter(|rule| has(&rule.pool));
    rules
        .flat_map(|rule| &rule.frontends)
        .filter_map(|name| balancer.frontends.get(name))
        .flat_map(|frontend| match frontend {
            Frontend::Prefix { public_ip_prefix } => {
                let there = region.public_ip_prefixes.get(public_ip_prefix);
                there.into_iter().flat_map(|it| it.prefix.addresses()).collect()
            }
            frontend => address_of(region, frontend).into_iter().collect::<Vec<_>>(),
        })
        .collect()
}

fn address_of(region: &Region, frontend: &Frontend) -> Option<IpAddr> {
    match frontend {
        Frontend::Internal { address, .. } => Some(*address),
        Frontend::Public { public_ip } => region.public_ips.get(public_ip).map(|ip| ip.address),
        Frontend::Prefix { .. } => None,
    }
}

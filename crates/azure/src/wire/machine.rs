//! `Microsoft.Compute/virtualMachines`, as far as the network sees them, and the read-only view of node
//! pools as `Microsoft.Compute/virtualMachineScaleSets`.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::Family,
    command::Command,
    fault::Fault,
    kind,
    model::{Machine, Nic, ProvisioningState},
    name::ArmId,
};

use super::{Asked, Reference, Resource, View, fill, frame, id_of, network_state, nic, references};
use crate::{
    findings::{self, arm_id_of, missing},
    kept,
    refuse::{Refusal, When, refusal, unsupported},
};

/// The type of a scale set's instance.
pub(crate) const INSTANCE: &str = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    network_profile: Option<NetworkProfile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetworkProfile {
    network_interfaces: Option<Vec<Reference>>,
}

const KNOWN: [&str; 11] = [
    "/properties/networkProfile/networkInterfaces",
    "/properties/vmId",
    "/properties/timeCreated",
    "/properties/instanceView",
    "/resources",
    // Secrets are never kept.
    "/properties/osProfile/adminPassword",
    "/properties/osProfile/secrets",
    "/properties/osProfile/customData",
    "/properties/userData",
    "/properties/extensionsTimeBudget",
    "/identity/principalId",
];

const REFUSED: [Refusal; 5] = [
    refusal("/properties/osProfile/windowsConfiguration", When::Given, "Windows"),
    refusal("/properties/storageProfile/osDisk/osType", When::Is(&["Windows"]), "Windows"),
    refusal(
        "/properties/networkProfile/networkInterfaceConfigurations",
        When::Given,
        "network interfaces made together with a virtual machine (make the network interface first)",
    ),
    refusal("/properties/virtualMachineScaleSet", When::Given, "virtual machines in scale sets"),
    refusal("/properties/host", When::Given, "dedicated hosts"),
];

/// The command that a `PUT` of a virtual machine asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(&REFUSED);
    let common = asked.common(&resource, &KNOWN);
    let target = "properties.networkProfile.networkInterfaces";
    let nics = resource
        .properties
        .and_then(|properties| properties.network_profile)
        .and_then(|profile| profile.network_interfaces)
        .unwrap_or_default();
    if nics.len() > 1 {
        findings.add(
            unsupported("NotSupported", "virtual machines with more than one network interface")
                .at(target),
        );
    }
    let nic = id_of(nics.into_iter().next()).ok_or_else(|| missing(target));
    let nic = findings.take(nic.and_then(|id| arm_id_of(&id, kind::NIC, target)));
    findings.then(|| Some(Command::PutVm { common, nic: nic? }))
}

/// A virtual machine as a `GET` shows it.
pub(crate) fn render(machine: &Machine) -> Value {
    let mut body = frame(&machine.meta, kind::VM);
    body["properties"] = properties(machine);
    kept::merge(&mut body, &machine.meta.kept);
    fill(&mut body, json!({ "properties": { "hardwareProfile": { "vmSize": "Standard_B1s" } } }));
    body
}

/// What a virtual machine is doing, as `$expand=instanceView` and `…/instanceView` show it.
pub(crate) fn instance_view(machine: &Machine) -> Value {
    let state = network_state(machine.meta.state);
    let status = |code: String, text: String| json!({ "code": code, "level": "Info", "displayStatus": text });
    let mut statuses = vec![status(
        format!("ProvisioningState/{}", state.to_ascii_lowercase()),
        format!("Provisioning {}", state.to_ascii_lowercase()),
    )];
    // A machine that is there runs; the lab has no other.
    if machine.meta.state == ProvisioningState::Succeeded {
        statuses.push(status("PowerState/running".to_owned(), "VM running".to_owned()));
    }
    json!({ "computerName": machine.hostname, "statuses": statuses })
}

fn properties(machine: &Machine) -> Value {
    json!({
        "provisioningState": network_state(machine.meta.state),
        "vmId": machine.meta.guid,
        "osProfile": { "computerName": machine.hostname },
        "networkProfile": {
            "networkInterfaces": [{ "id": machine.nic, "properties": { "primary": true } }],
        },
    })
}

/// A scale set's instance as a `GET` shows it.
pub(crate) fn render_instance(machine: &Machine) -> Value {
    let mut body = frame(&machine.meta, INSTANCE);
    let number = machine.meta.id.name();
    body["instanceId"] = json!(number);
    if let Some(scale_set) = scale_set_of(machine) {
        body["name"] = json!(format!("{}_{number}", scale_set.name()));
    }
    body["properties"] = properties(machine);
    body["properties"]["latestModelApplied"] = json!(true);
    body
}

/// The id of the scale set that a node is an instance of.
fn scale_set_of(machine: &Machine) -> Option<ArmId> {
    machine.meta.id.parent().filter(|id| id.is_kind(kind::SCALE_SET))
}

/// The instances of a scale set, by number.
pub(crate) fn instances<'a>(view: &'a View<'_>, scale_set: &ArmId) -> Vec<&'a Machine> {
    let mut instances: Vec<&Machine> = view
        .region
        .machines
        .values()
        .map(AsRef::as_ref)
        .filter(|machine| scale_set_of(machine).as_ref() == Some(scale_set))
        .collect();
    instances.sort_by_key(|machine| machine.node().map(|node| node.instance));
    instances
}

/// The ids of the scale sets that have instances.
pub(crate) fn scale_sets(view: &View<'_>) -> Vec<ArmId> {
    let mut ids: Vec<ArmId> =
        view.region.machines.values().filter_map(|machine| scale_set_of(machine)).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// A scale set as a `GET` shows it; `None` when it has no instance.
pub(crate) fn render_scale_set(view: &View<'_>, id: &ArmId) -> Option<Value> {
    let instances = instances(view, id);
    let first = instances.first()?;
    let node = first.node()?;
    let nic = view.region.nics.get(&first.nic);
    let size = view
        .region
        .clusters
        .get(&node.cluster)
        .and_then(|cluster| cluster.pools.get(&node.pool))
        .map_or("", |pool| pool.vm_size.as_str());
    let id = scale_set_of(first)?;
    let mut body = json!({
        "name": id.name(),
        "id": id,
        "type": kind::SCALE_SET,
        "location": first.meta.location,
        "tags": { "aks-managed-poolName": node.pool.as_str() },
        "sku": { "name": size, "tier": "Standard", "capacity": instances.len() },
        "properties": {
            "singlePlacementGroup": false,
            "orchestrationMode": "Uniform",
            "upgradePolicy": { "mode": "Manual" },
            "provisioningState": network_state(first.meta.state),
            "overprovision": false,
            "virtualMachineProfile": {},
        },
    });
    if let Some(nic) = nic {
        let configuration = interface_configuration(view, id.name(), nic);
        body["properties"]["virtualMachineProfile"]["networkProfile"] =
            json!({ "networkInterfaceConfigurations": [configuration] });
    }
    Some(body)
}

fn interface_configuration(view: &View<'_>, name: &str, nic: &Nic) -> Value {
    let configurations: Vec<Value> = nic
        .configs
        .iter()
        .enumerate()
        .map(|(index, config)| {
            let mut properties = json!({
                "primary": index == 0,
                "subnet": { "id": config.subnet },
                "privateIPAddressVersion": findings::version_of(Family::of(config.address)),
            });
            let pools = nic::pools_with(view, nic, config);
            if !pools.is_empty() {
                properties["loadBalancerBackendAddressPools"] = json!(references(pools));
            }
            json!({ "name": config.name, "properties": properties })
        })
        .collect();
    let mut body = json!({ "name": name, "properties": {
        "primary": true,
        "enableAcceleratedNetworking": false,
        "enableIPForwarding": nic.ip_forwarding,
        "dnsSettings": { "dnsServers": [] },
        "ipConfigurations": configurations,
    } });
    if let Some(group) = &nic.security_group {
        body["properties"]["networkSecurityGroup"] = json!({ "id": group });
    }
    body
}

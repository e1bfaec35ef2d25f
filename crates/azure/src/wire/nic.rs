//! `Microsoft.Network/networkInterfaces`, and the NICs of scale sets' instances.

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    addr::{Family, Prefix4},
    command::{Command, PutIpConfiguration},
    fault::Fault,
    kind,
    model::{Allocation, IpConfiguration, Nic, PodAllocation},
    name::ArmId,
};

use super::{
    Asked, Named, Reference, Resource, View,
    balancer::{Memberships, inbound_rules_of},
    fill, frame, id_of, network_state, references,
};
use crate::{
    findings::{self, Findings, any_address, arm_id_of, given, missing},
    kept,
    refuse::{Refusal, When, refusal, unsupported},
    wire::{etag, public_ip},
};

/// The type of a scale set instance's NIC.
pub(crate) const INSTANCE_NIC: &str =
    "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces";

#[derive(Debug, Deserialize)]
struct Properties {
    #[serde(rename = "enableIPForwarding")]
    ip_forwarding: Option<bool>,
    #[serde(rename = "networkSecurityGroup")]
    security_group: Option<Reference>,
    #[serde(rename = "ipConfigurations")]
    configurations: Option<Vec<Named<Configuration>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(rename = "privateIPAddress")]
    address: Option<String>,
    #[serde(rename = "privateIPAddressVersion")]
    version: Option<String>,
    #[serde(rename = "privateIPAllocationMethod")]
    allocation: Option<String>,
    subnet: Option<Reference>,
    load_balancer_backend_address_pools: Option<Vec<Reference>>,
    application_security_groups: Option<Vec<Reference>>,
    load_balancer_inbound_nat_rules: Option<Vec<Reference>>,
    #[serde(rename = "publicIPAddress")]
    public_ip: Option<Reference>,
    primary: Option<bool>,
}

const KNOWN: &[&str] = &[
    "/properties/enableIPForwarding",
    "/properties/macAddress",
    "/properties/primary",
    "/properties/virtualMachine",
    "/properties/networkSecurityGroup",
    "/properties/hostedWorkloads",
    "/properties/tapConfigurations",
    "/properties/dnsSettings/appliedDnsServers",
    "/properties/nicType",
    "/properties/vnetEncryptionSupported",
    "/properties/ipConfigurations/*/id",
    "/properties/ipConfigurations/*/name",
    "/properties/ipConfigurations/*/etag",
    "/properties/ipConfigurations/*/type",
    "/properties/ipConfigurations/*/properties/provisioningState",
    "/properties/ipConfigurations/*/properties/privateIPAddress",
    "/properties/ipConfigurations/*/properties/privateIPAddressVersion",
    "/properties/ipConfigurations/*/properties/privateIPAllocationMethod",
    "/properties/ipConfigurations/*/properties/subnet",
    "/properties/ipConfigurations/*/properties/primary",
    "/properties/ipConfigurations/*/properties/loadBalancerBackendAddressPools",
    "/properties/ipConfigurations/*/properties/applicationSecurityGroups",
    "/properties/ipConfigurations/*/properties/loadBalancerInboundNatRules",
    "/properties/ipConfigurations/*/properties/publicIPAddress",
];

const REFUSED: &[Refusal] = &[
    refusal(
        "/properties/ipConfigurations/*/properties/applicationGatewayBackendAddressPools",
        When::Given,
        "application gateways",
    ),
    refusal(
        "/properties/ipConfigurations/*/properties/gatewayLoadBalancer",
        When::Given,
        "gateway load balancers",
    ),
];

/// The command that a `PUT` asks for: the NIC, and the load balancers that have it behind them.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let mut findings = asked.findings(REFUSED);
    let common = asked.common(&resource, KNOWN);
    let mut memberships = Memberships::default();
    let (ip_forwarding, security_group, configurations) =
        resource.properties.map_or((None, None, None), |given| {
            (given.ip_forwarding, given.security_group, given.configurations)
        });
    let security_group = findings.take_some(id_of(security_group), |text| {
        arm_id_of(&text, kind::SECURITY_GROUP, "properties.networkSecurityGroup.id")
    });
    let mut configurations = configurations.unwrap_or_default();
    // The primary one comes first, whatever the order in which they are sent.
    configurations.sort_by_key(|it| {
        !it.properties.as_ref().and_then(|properties| properties.primary).unwrap_or(false)
    });
    let mut configs: Vec<PutIpConfiguration> = Vec::new();
    for configuration in configurations {
        let n_pools = memberships.pools.len();
        configs.extend(parse_configuration(configuration, &mut memberships, &mut findings));
        let family = configs.last().map_or(Family::V4, |last| last.family);
        let is_first = configs.iter().filter(|it| it.family == family).count() < 2;
        if !is_first && memberships.pools.len() > n_pools {
            let what = "back-end pools of IP configurations that are neither the primary one nor the first of IPv6";
            findings.add(unsupported("NotSupported", what));
        }
    }
    if configs.is_empty() {
        findings.add(missing("properties.ipConfigurations"));
    }
    findings.finish()?;
    let ip_forwarding = ip_forwarding.unwrap_or(false);
    let also = memberships.commands(asked.view.region, &asked.id)?;
    let nic = Command::PutNic { common, ip_forwarding, security_group, configs };
    if also.is_empty() {
        return Ok(nic);
    }
    Ok(Command::Together(std::iter::once(nic).chain(also).collect()))
}

fn parse_configuration(
    configuration: Named<Configuration>,
    memberships: &mut Memberships,
    findings: &mut Findings,
) -> Option<PutIpConfiguration> {
    let path = "properties.ipConfigurations";
    let Some(properties) = configuration.properties else {
        findings.add(missing(&format!("{path}.properties")));
        return None;
    };
    let name = given(configuration.name).ok_or_else(|| missing(&format!("{path}.name")));
    let name = findings.take(name);
    let subnet = id_of(properties.subnet).ok_or_else(|| missing(&format!("{path}.subnet.id")));
    let subnet = subnet.and_then(|id| arm_id_of(&id, kind::SUBNET, &format!("{path}.subnet.id")));
    let subnet = findings.take(subnet);
    let is_static =
        properties.allocation.is_some_and(|method| method.eq_ignore_ascii_case("Static"));
    let target = format!("{path}.privateIPAddress");
    // A dynamic address that a client read is not a wish for it.
    let text = given(properties.address).filter(|_| is_static);
    if is_static && text.is_none() {
        findings.add(missing(&target));
    }
    let version = properties.version.as_deref();
    let family =
        findings.take(findings::version(version, &format!("{path}.privateIPAddressVersion")));
    let address = findings.take_some(text, |text| any_address(&text, &target));
    for pool in properties.load_balancer_backend_address_pools.unwrap_or_default() {
        let target = format!("{path}.loadBalancerBackendAddressPools.id");
        let kind = format!("{}/backendAddressPools", kind::LOAD_BALANCER);
        let pool = findings.take_some(pool.id, |id| arm_id_of(&id, &kind, &target));
        memberships.pools.extend(pool.zip(family));
    }
    let mut application_groups = Vec::new();
    for group in properties.application_security_groups.unwrap_or_default() {
        let target = format!("{path}.applicationSecurityGroups.id");
        let id = group.id.ok_or_else(|| missing(&target));
        let id = id.and_then(|id| arm_id_of(&id, kind::APPLICATION_GROUP, &target));
        application_groups.extend(findings.take(id));
    }
    for rule in properties.load_balancer_inbound_nat_rules.unwrap_or_default() {
        let target = format!("{path}.loadBalancerInboundNatRules.id");
        let config = name.as_deref().unwrap_or_default();
        findings.take_some(rule.id, |id| memberships.add_rule(&id, config, &target));
    }
    let public_ip = findings.take_some(id_of(properties.public_ip), |id| {
        arm_id_of(&id, kind::PUBLIC_IP, &format!("{path}.publicIPAddress.id"))
    });
    Some(PutIpConfiguration {
        name: name?,
        subnet: subnet?,
        address,
        family: family?,
        public_ip,
        application_groups,
    })
}

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, nic: &Nic) -> Value {
    let is_instance = nic.meta.id.is_kind(INSTANCE_NIC);
    let mut body = frame(&nic.meta, if is_instance { INSTANCE_NIC } else { kind::NIC });
    let first = nic.configs.first().map(|config| config.name.as_str());
    let configurations: Vec<Value> = nic
        .configs
        .iter()
        .map(|config| {
            let is_primary = Some(config.name.as_str()) == first;
            render_configuration(view, nic, config, is_primary)
        })
        .chain(render_blocks(view, nic))
        .collect();
    body["properties"] = json!({
        "provisioningState": network_state(nic.meta.state),
        "resourceGuid": nic.meta.guid,
        "ipConfigurations": configurations,
        "enableIPForwarding": nic.ip_forwarding,
        "hostedWorkloads": [],
        "tapConfigurations": [],
        "nicType": "Standard",
        "vnetEncryptionSupported": false,
    });
    if let Some(group) = &nic.security_group {
        body["properties"]["networkSecurityGroup"] = json!({ "id": group });
    }
    if let Some(machine) = &nic.machine {
        let mac = nic.mac.to_string().to_ascii_uppercase().replace(':', "-");
        body["properties"]["macAddress"] = json!(mac);
        body["properties"]["primary"] = json!(true);
        body["properties"]["virtualMachine"] = json!({ "id": machine });
    }
    kept::merge(&mut body, &nic.meta.kept);
    fill(
        &mut body,
        json!({ "properties": {
            "dnsSettings": { "dnsServers": [], "appliedDnsServers": [] },
            "enableAcceleratedNetworking": false,
        } }),
    );
    body
}

fn render_configuration(
    view: &View<'_>,
    nic: &Nic,
    config: &IpConfiguration,
    is_primary: bool,
) -> Value {
    let mut body = json!({
        "name": config.name,
        "id": nic.meta.id.child("ipConfigurations", &config.name),
        "etag": etag(nic.meta.etag),
        "type": format!("{}/ipConfigurations", kind::NIC),
        "properties": {
            "provisioningState": network_state(nic.meta.state),
            "privateIPAddress": config.address,
            "privateIPAllocationMethod": public_ip::method(config.allocation),
            "privateIPAddressVersion": findings::version_of(Family::of(config.address)),
            "primary": is_primary,
            "subnet": { "id": config.subnet },
        },
    });
    if !config.application_groups.is_empty() {
        body["properties"]["applicationSecurityGroups"] =
            json!(references(&config.application_groups));
    }
    let pools = pools_with(view, nic, config);
    if !pools.is_empty() {
        body["properties"]["loadBalancerBackendAddressPools"] = json!(references(pools));
    }
    let rules = inbound_rules_of(view.region, &nic.meta.id, &config.name);
    if !rules.is_empty() {
        body["properties"]["loadBalancerInboundNatRules"] = json!(references(rules));
    }
    if let Some(public_ip) = &config.public_ip {
        body["properties"]["publicIPAddress"] = json!({ "id": public_ip });
    }
    body
}

/// The static blocks of a node's pods, which are configurations of its NIC after the others
/// (AKS documentation, "Configure Azure CNI Pod Subnet - Static Block Allocation").
fn render_blocks(view: &View<'_>, nic: &Nic) -> Vec<Value> {
    let blocks = || {
        let machine = nic.machine.as_ref()?;
        let node = view.region.machines.get(machine)?.node()?;
        let pool = view.region.clusters.get(&node.cluster)?.pools.get(&node.pool)?;
        let subnet = pool.pod_subnet.as_ref()?;
        let is_static = pool.pod_allocation == PodAllocation::StaticBlock;
        is_static.then(|| (subnet, view.region.pod_blocks_of(machine)))
    };
    let Some((subnet, blocks)) = blocks() else { return Vec::new() };
    let first = nic.configs.len() + 1;
    let render = |(number, block): (usize, Prefix4)| {
        let name = format!("ipconfig{number}");
        json!({
            "name": name,
            "id": nic.meta.id.child("ipConfigurations", &name),
            "etag": etag(nic.meta.etag),
            "type": format!("{}/ipConfigurations", kind::NIC),
            "properties": {
                "provisioningState": network_state(nic.meta.state),
                "privateIPAddress": block,
                "privateIPAddressPrefixLength": block.length(),
                "privateIPAllocationMethod": public_ip::method(Allocation::Dynamic),
                "privateIPAddressVersion": findings::version_of(Family::V4),
                "primary": false,
                "subnet": { "id": subnet },
            },
        })
    };
    (first..).zip(blocks).map(render).collect()
}

/// The back-end pools that a NIC is in with one of its configurations: the first of their family.
pub(crate) fn pools_with(view: &View<'_>, nic: &Nic, config: &IpConfiguration) -> Vec<ArmId> {
    let family = Family::of(config.address);
    let is_first = nic.config_of(family).is_some_and(|first| first.name == config.name);
    if is_first { pools_of(view, &nic.meta.id, family) } else { Vec::new() }
}

/// The back-end pools of a family that a NIC is a member of, as ids.
pub(crate) fn pools_of(view: &View<'_>, nic: &ArmId, family: Family) -> Vec<ArmId> {
    let mut pools = Vec::new();
    for balancer in view.region.balancers.values() {
        for (name, pool) in &balancer.pools {
            if pool.family == family && pool.members.contains(nic) {
                pools.push(balancer.meta.id.child("backendAddressPools", name.as_str()));
            }
        }
    }
    pools
}

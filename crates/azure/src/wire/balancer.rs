//! `Microsoft.Network/loadBalancers` with their parts: how a `PUT` becomes a command.
//! How they are rendered is in [`mod@render`].

mod inbound;
mod render;

use std::collections::BTreeSet;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use vnet::{
    addr::Family,
    command::{Command, PutFrontend, PutLoadBalancer},
    fault::Fault,
    kind,
    model::{
        Allocation, BackendPool, BalancingRule, Distribution, Frontend, InboundNatRule,
        LoadBalancer, OutboundRule, Probe, ProbeProtocol, Transport,
    },
    name::{ArmId, Name},
    region::Region,
};

pub(crate) use self::{
    inbound::{Memberships, parse_alone as parse_inbound_rule, rules_of as inbound_rules_of},
    render::{render, render_inbound_rule, render_pool},
};
use super::{Asked, Named, Reference, Resource, id_of, public_ip::one_of};
use crate::{
    call::content,
    findings::{self, Findings, any_address, arm_id, arm_id_of, given, missing},
    refuse::{Refusal, When, refusal},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    #[serde(rename = "frontendIPConfigurations")]
    frontends: Option<Vec<Named<FrontendProperties>>>,
    #[serde(rename = "backendAddressPools")]
    pools: Option<Vec<Named<PoolProperties>>>,
    probes: Option<Vec<Named<ProbeProperties>>>,
    #[serde(rename = "loadBalancingRules")]
    rules: Option<Vec<Named<RuleProperties>>>,
    outbound_rules: Option<Vec<Named<OutboundProperties>>>,
    inbound_nat_rules: Option<Vec<Named<inbound::Properties>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrontendProperties {
    #[serde(rename = "privateIPAddress")]
    address: Option<String>,
    #[serde(rename = "privateIPAddressVersion")]
    version: Option<String>,
    #[serde(rename = "privateIPAllocationMethod")]
    allocation: Option<String>,
    subnet: Option<Reference>,
    #[serde(rename = "publicIPAddress")]
    public_ip: Option<Reference>,
    #[serde(rename = "publicIPPrefix")]
    public_ip_prefix: Option<Reference>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolProperties {
    #[serde(rename = "backendIPConfigurations")]
    members: Option<Vec<Reference>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProbeProperties {
    protocol: Option<String>,
    port: Option<u16>,
    request_path: Option<String>,
    interval_in_seconds: Option<u32>,
    number_of_probes: Option<u32>,
    probe_threshold: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleProperties {
    #[serde(rename = "frontendIPConfiguration")]
    frontend: Option<Reference>,
    backend_address_pool: Option<Reference>,
    backend_address_pools: Option<Vec<Reference>>,
    probe: Option<Reference>,
    protocol: Option<String>,
    frontend_port: Option<u16>,
    backend_port: Option<u16>,
    #[serde(rename = "enableFloatingIP")]
    floating_ip: Option<bool>,
    load_distribution: Option<String>,
    idle_timeout_in_minutes: Option<u32>,
    enable_tcp_reset: Option<bool>,
    disable_outbound_snat: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutboundProperties {
    #[serde(rename = "frontendIPConfigurations")]
    frontends: Option<Vec<Reference>>,
    backend_address_pool: Option<Reference>,
    protocol: Option<String>,
    allocated_outbound_ports: Option<u32>,
    idle_timeout_in_minutes: Option<u32>,
    enable_tcp_reset: Option<bool>,
}

const KNOWN: &[&str] = &[
    "/sku/name",
    "/properties/inboundNatRules",
    "/properties/inboundNatPools",
    "/properties/frontendIPConfigurations/*/id",
    "/properties/frontendIPConfigurations/*/name",
    "/properties/frontendIPConfigurations/*/type",
    "/properties/frontendIPConfigurations/*/etag",
    "/properties/frontendIPConfigurations/*/properties/provisioningState",
    "/properties/frontendIPConfigurations/*/properties/privateIPAddress",
    "/properties/frontendIPConfigurations/*/properties/privateIPAddressVersion",
    "/properties/frontendIPConfigurations/*/properties/privateIPAllocationMethod",
    "/properties/frontendIPConfigurations/*/properties/subnet",
    "/properties/frontendIPConfigurations/*/properties/publicIPAddress",
    "/properties/frontendIPConfigurations/*/properties/publicIPPrefix",
    "/properties/frontendIPConfigurations/*/properties/loadBalancingRules",
    "/properties/frontendIPConfigurations/*/properties/outboundRules",
    "/properties/backendAddressPools",
    "/properties/probes/*/id",
    "/properties/probes/*/name",
    "/properties/probes/*/type",
    "/properties/probes/*/etag",
    "/properties/probes/*/properties/provisioningState",
    "/properties/probes/*/properties/protocol",
    "/properties/probes/*/properties/port",
    "/properties/probes/*/properties/requestPath",
    "/properties/probes/*/properties/intervalInSeconds",
    "/properties/probes/*/properties/probeThreshold",
    "/properties/probes/*/properties/loadBalancingRules",
    "/properties/loadBalancingRules/*/id",
    "/properties/loadBalancingRules/*/name",
    "/properties/loadBalancingRules/*/type",
    "/properties/loadBalancingRules/*/etag",
    "/properties/loadBalancingRules/*/properties/provisioningState",
    "/properties/loadBalancingRules/*/properties/frontendIPConfiguration",
    "/properties/loadBalancingRules/*/properties/backendAddressPool",
    "/properties/loadBalancingRules/*/properties/backendAddressPools",
    "/properties/loadBalancingRules/*/properties/probe",
    "/properties/loadBalancingRules/*/properties/protocol",
    "/properties/loadBalancingRules/*/properties/frontendPort",
    "/properties/loadBalancingRules/*/properties/backendPort",
    "/properties/loadBalancingRules/*/properties/enableFloatingIP",
    "/properties/loadBalancingRules/*/properties/loadDistribution",
    "/properties/loadBalancingRules/*/properties/idleTimeoutInMinutes",
    "/properties/loadBalancingRules/*/properties/enableTcpReset",
    "/properties/loadBalancingRules/*/properties/disableOutboundSnat",
    // Every property of an outbound rule is acted on or rendered.
    "/properties/outboundRules",
    "/properties/frontendIPConfigurations/*/properties/inboundNatRules",
];

const REFUSED: &[Refusal] = &[
    refusal("/sku/tier", When::Is(&["Global"]), "global load balancers"),
    refusal("/sku/name", When::Is(&["Gateway"]), "gateway load balancers"),
    refusal("/properties/inboundNatPools", When::Given, "inbound NAT pools"),
    refusal(
        "/properties/frontendIPConfigurations/*/properties/gatewayLoadBalancer",
        When::Given,
        "gateway load balancers",
    ),
    refusal(
        "/properties/backendAddressPools/*/properties/loadBalancerBackendAddresses",
        When::Given,
        "back-end pools of IP addresses (network interfaces can be members)",
    ),
    refusal(
        "/properties/backendAddressPools/*/properties/tunnelInterfaces",
        When::Given,
        "gateway load balancers",
    ),
    refusal(
        "/properties/loadBalancingRules/*/properties/backendAddressPools",
        When::Several,
        "rules with more than one back-end pool",
    ),
];

/// The command that a `PUT` asks for.
pub(crate) fn parse(asked: &Asked<'_>) -> Result<Command, Fault> {
    let resource: Resource<Properties> = asked.read()?;
    let findings = asked.findings(REFUSED);
    let common = asked.common(&resource, KNOWN);
    let mut parser = Parser { id: &asked.id, region: asked.view.region, findings };
    let sku = given(resource.sku.and_then(|sku| sku.name)).unwrap_or_else(|| "Basic".to_owned());
    let sku = parser.findings.take(one_of(&sku, &["Basic", "Standard", "Gateway"], "sku.name"));
    let properties = resource.properties.unwrap_or_default();
    let stored = asked.view.region.balancers.get(&asked.id);
    let pools = parser.each("backendAddressPools", properties.pools, |parser, name, pool| {
        let members = pool.and_then(|pool| pool.members);
        Some(parser.members(members, stored.map(AsRef::as_ref), name))
    });
    let frontends =
        parser.each("frontendIPConfigurations", properties.frontends, |parser, name, it| {
            parser.frontend(name, it?)
        });
    let probes = parser.each("probes", properties.probes, |parser, _, it| parser.probe(it?));
    let rules =
        parser.each("loadBalancingRules", properties.rules, |parser, _, it| parser.rule(it?));
    let outbound_rules =
        parser
            .each("outboundRules", properties.outbound_rules, |parser, _, it| parser.outbound(it?));
    let inbound_rules =
        parser.each("inboundNatRules", properties.inbound_nat_rules, |parser, name, it| {
            inbound::parse(parser, stored.map(AsRef::as_ref), name, it?)
        });
    parser.findings.then(|| {
        let balancer = PutLoadBalancer {
            inbound_rules,
            sku: sku?.to_owned(),
            frontends,
            pools,
            probes,
            rules,
            outbound_rules,
        };
        Some(Command::PutLoadBalancer { common, balancer })
    })
}

struct Parser<'a> {
    id: &'a ArmId,
    region: &'a Region,
    findings: Findings,
}

impl Parser<'_> {
    /// Parses every element of a list of named parts.
    fn each<P, T>(
        &mut self,
        kind: &str,
        parts: Option<Vec<Named<P>>>,
        mut parse: impl FnMut(&mut Self, &Name, Option<P>) -> Option<T>,
    ) -> Vec<(Name, T)> {
        let mut all: Vec<(Name, T)> = Vec::new();
        for part in parts.unwrap_or_default() {
            let Some(name) = given(part.name) else {
                self.findings.add(missing(&format!("properties.{kind}.name")));
                continue;
            };
            let name = Name::new(&name);
            if all.iter().any(|(other, _)| *other == name) {
                let message = format!("{kind} has more than one element of the name '{name}'.");
                self.findings.add(Fault::bad("InvalidRequestFormat", message));
            }
            all.extend(parse(self, &name, part.properties).map(|parsed| (name, parsed)));
        }
        all
    }

    /// A pool's members. Clients that change something else leave them out, so that those that are there stay.
    fn members(
        &mut self,
        given: Option<Vec<Reference>>,
        stored: Option<&LoadBalancer>,
        name: &Name,
    ) -> BackendPool {
        let Some(references) = given else {
            let pool = stored.and_then(|stored| stored.pools.get(name));
            return pool.cloned().unwrap_or_default();
        };
        let target = "properties.backendAddressPools.backendIPConfigurations.id";
        let mut members: Vec<ArmId> = Vec::new();
        let mut families = BTreeSet::new();
        for text in references.into_iter().filter_map(|reference| reference.id) {
            // A member is named by its IP configuration: the first of a family is meant.
            let Some(id) = self.findings.take(arm_id(&text, target)) else { continue };
            let nic = id.parent().filter(|nic| id == nic.child("ipConfigurations", id.name()));
            let config = nic.as_ref().and_then(|nic| self.region.nics.get(nic));
            let config = config.and_then(|nic| {
                nic.configs.iter().find(|it| it.name.eq_ignore_ascii_case(id.name()))
            });
            families.insert(config.map_or(Family::V4, |config| Family::of(config.address)));
            match nic {
                Some(nic) if members.contains(&nic) => {}
                Some(nic) => members.push(nic),
                None => {
                    let kind = "an IP configuration of a network interface";
                    let message = format!(
                        "Property id '{text}' at path '{target}' is invalid. Expect the id of {kind}."
                    );
                    self.findings.add(Fault::bad("LinkedInvalidPropertyId", message).at(target));
                }
            }
        }
        if families.len() > 1 {
            self.findings.add(mixed_pool(&self.id.child("backendAddressPools", name.as_str())));
        }
        BackendPool { members, family: families.into_iter().next().unwrap_or_default() }
    }

    /// A front end. Refusals: ernestio/ernest issue 480, hashicorp/terraform-provider-azurerm issue 1622.
    fn frontend(&mut self, name: &Name, part: FrontendProperties) -> Option<PutFrontend> {
        let path = "properties.frontendIPConfigurations";
        let id = self.id.child("frontendIPConfigurations", name.as_str());
        let subnet = id_of(part.subnet);
        let public = (id_of(part.public_ip), id_of(part.public_ip_prefix));
        let mut refuse = |what: &str, must: &str| {
            let message = format!("Frontend IP Configuration {id} must {must} Public IP Address.");
            self.findings.add(Fault::bad(&format!("FrontendIPConfigHas{what}"), message).at(path));
            None
        };
        let subnet = match (subnet, public) {
            (Some(_), (Some(_), _) | (_, Some(_))) => {
                return refuse("BothSubnetAndPublicIP", "not reference both a Subnet and a");
            }
            (None, (None, None)) => {
                return refuse("NoSubnetOrPublicIP", "reference either a Subnet or a");
            }
            (None, (Some(id), _)) => {
                let target = format!("{path}.publicIPAddress.id");
                let public_ip = arm_id_of(&id, kind::PUBLIC_IP, &target);
                return Some(PutFrontend::Public { public_ip: self.findings.take(public_ip)? });
            }
            (None, (None, Some(id))) => {
                let target = format!("{path}.publicIPPrefix.id");
                let id = arm_id_of(&id, kind::PUBLIC_IP_PREFIX, &target);
                return Some(PutFrontend::Prefix { public_ip_prefix: self.findings.take(id)? });
            }
            (Some(subnet), (None, None)) => subnet,
        };
        let subnet = arm_id_of(&subnet, kind::SUBNET, &format!("{path}.subnet.id"));
        let subnet = self.findings.take(subnet);
        let target = format!("{path}.privateIPAddress");
        let is_static = part.allocation.is_some_and(|text| text.eq_ignore_ascii_case("Static"));
        let text = given(part.address).filter(|_| is_static);
        if is_static && text.is_none() {
            self.findings.add(missing(&target));
        }
        let address = self.findings.take_some(text, |text| any_address(&text, &target));
        let version =
            findings::version(part.version.as_deref(), &format!("{path}.privateIPAddressVersion"));
        let family = self.findings.take(version)?;
        if address.is_some_and(|address| Family::of(address) != family) {
            let message = format!(
                "The address at path '{target}' is not of the IP address version that privateIPAddressVersion says."
            );
            self.findings.add(Fault::bad("InvalidParameter", message).at(&target));
        }
        Some(PutFrontend::Internal { subnet: subnet?, address, family })
    }

    fn probe(&mut self, part: ProbeProperties) -> Option<Probe> {
        let text = part.protocol.unwrap_or_default();
        let target = "properties.probes.protocol";
        let protocol = match self.findings.take(one_of(&text, &["Tcp", "Http", "Https"], target))? {
            "Http" => ProbeProtocol::Http,
            "Https" => ProbeProtocol::Https,
            _ => ProbeProtocol::Tcp,
        };
        let number = part.port.ok_or_else(|| missing("properties.probes.port"));
        // Two names for one number to us; neither may be 0.
        let mut given = [part.probe_threshold, part.number_of_probes].into_iter().flatten();
        let least = given.clone().min();
        let threshold = least.filter(|it| *it == 0).or(given.next()).unwrap_or(1);
        Some(Probe {
            protocol,
            port: self.findings.take(number)?,
            path: part.request_path.unwrap_or_default(),
            interval_seconds: part.interval_in_seconds.unwrap_or(15),
            threshold,
        })
    }

    fn rule(&mut self, part: RuleProperties) -> Option<BalancingRule> {
        let path = "properties.loadBalancingRules";
        let pool = part
            .backend_address_pool
            .or_else(|| part.backend_address_pools.and_then(|pools| pools.into_iter().next()));
        let frontend = self.part(
            part.frontend,
            "frontendIPConfigurations",
            &format!("{path}.frontendIPConfiguration"),
        );
        let pool = self.part(pool, "backendAddressPools", &format!("{path}.backendAddressPool"));
        let probe = match id_of(part.probe) {
            None => None,
            Some(id) => Some(self.part(
                Some(Reference { id: Some(id) }),
                "probes",
                &format!("{path}.probe"),
            )?),
        };
        let protocol = self.protocol(part.protocol, &format!("{path}.protocol"));
        let distribution = self.distribution(
            part.load_distribution.as_deref().unwrap_or("Default"),
            &format!("{path}.loadDistribution"),
        );
        Some(BalancingRule {
            frontend: frontend?,
            pool: pool?,
            probe,
            protocol: protocol?,
            frontend_port: part.frontend_port.unwrap_or(0),
            backend_port: part.backend_port.unwrap_or(0),
            floating_ip: part.floating_ip.unwrap_or(false),
            distribution: distribution?,
            idle_timeout_minutes: part.idle_timeout_in_minutes.unwrap_or(4),
            enable_tcp_reset: part.enable_tcp_reset.unwrap_or(false),
            disable_outbound_snat: part.disable_outbound_snat.unwrap_or(false),
        })
    }

    fn outbound(&mut self, part: OutboundProperties) -> Option<OutboundRule> {
        let path = "properties.outboundRules";
        let mut frontends = Vec::new();
        for frontend in part.frontends.unwrap_or_default() {
            let target = format!("{path}.frontendIPConfigurations");
            frontends.extend(self.part(Some(frontend), "frontendIPConfigurations", &target));
        }
        let target = format!("{path}.backendAddressPool");
        let pool = self.part(part.backend_address_pool, "backendAddressPools", &target);
        let protocol = self.protocol(part.protocol, &format!("{path}.protocol"));
        Some(OutboundRule {
            frontends,
            pool: pool?,
            protocol: protocol?,
            allocated_ports: part.allocated_outbound_ports.unwrap_or(0),
            idle_timeout_minutes: part.idle_timeout_in_minutes.unwrap_or(4),
            enable_tcp_reset: part.enable_tcp_reset.unwrap_or(false),
        })
    }

    fn protocol(&mut self, text: Option<String>, target: &str) -> Option<Transport> {
        let text = text.unwrap_or_default();
        Some(match self.findings.take(one_of(&text, &["Tcp", "Udp", "All"], target))? {
            "Udp" => Transport::Udp,
            "All" => Transport::All,
            _ => Transport::Tcp,
        })
    }

    fn distribution(&mut self, text: &str, target: &str) -> Option<Distribution> {
        let known = &["Default", "SourceIP", "SourceIPProtocol"];
        Some(match self.findings.take(one_of(text, known, target))? {
            "SourceIP" => Distribution::SourceIp,
            "SourceIPProtocol" => Distribution::SourceIpProtocol,
            _ => Distribution::Default,
        })
    }

    /// The name of a part of this load balancer that another part refers to by id.
    fn part(&mut self, reference: Option<Reference>, kind: &str, target: &str) -> Option<Name> {
        let id = id_of(reference).ok_or_else(|| missing(&format!("{target}.id")));
        let id = self.findings.take(id.and_then(|id| arm_id(&id, target)))?;
        if id == self.id.child(kind, id.name()) {
            return Some(Name::new(id.name()));
        }
        let message = format!(
            "Resource {id} referenced by resource {} was not found. Please make sure that the referenced resource exists, and that both resources are in the same region.",
            self.id
        );
        self.findings.add(Fault::bad("InvalidResourceReference", message).at(target));
        None
    }
}

/// A `PUT` of one back-end pool by its own path: the stored load balancer with that pool.
pub(crate) fn parse_pool(asked: &Asked<'_>) -> Result<Command, Fault> {
    let stored = stored(asked)?;
    let named = read_value::<Named<PoolProperties>>(&asked.value)?;
    let mut parser = Parser {
        id: &stored.meta.id,
        region: asked.view.region,
        findings: asked.findings(&POOL_REFUSED),
    };
    let name = Name::new(asked.id.name());
    let members = named.properties.and_then(|properties| properties.members);
    let members = parser.members(members, Some(stored), &name);
    parser.findings.finish()?;
    Ok(with_pools(stored, |pools| {
        pools.retain(|(other, _)| *other != name);
        pools.push((name, members));
    }))
}

const POOL_REFUSED: [Refusal; 2] = [
    refusal(
        "/properties/loadBalancerBackendAddresses",
        When::Given,
        "back-end pools of IP addresses (network interfaces can be members)",
    ),
    refusal("/properties/tunnelInterfaces", When::Given, "gateway load balancers"),
];

/// Refuses members of both families in one pool. Azure has a code for scale sets alone (kubernetes/kubernetes issue
/// 93085), which says the same.
fn mixed_pool(pool: &ArmId) -> Fault {
    let message = format!(
        "Network interface ipConfigurations of both IPv4 and IPv6 cannot be in the same load balancer backend address pool '{pool}'."
    );
    Fault::bad("InvalidParameter", message)
}

fn stored<'a>(asked: &'a Asked<'_>) -> Result<&'a LoadBalancer, Fault> {
    let id = asked.id.parent().unwrap_or_else(|| asked.id.clone());
    asked.view.region.balancers.get(&id).map(AsRef::as_ref).ok_or_else(|| {
        Fault::new(404, "ParentResourceNotFound", format!("Failed to perform 'write' on resource(s) of type 'loadBalancers/backendAddressPools', because the parent resource '{id}' could not be found."))
    })
}

fn read_value<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    serde_json::from_value(value.clone()).map_err(|error| content(&error))
}

/// The load balancer as it is, but for its pools.
pub(crate) fn with_pools(
    stored: &LoadBalancer,
    change: impl FnOnce(&mut Vec<(Name, BackendPool)>),
) -> Command {
    with_parts(stored, |put| change(&mut put.pools))
}

/// The load balancer as it is, but for its inbound NAT rules.
pub(crate) fn with_inbound_rules(
    stored: &LoadBalancer,
    change: impl FnOnce(&mut Vec<(Name, InboundNatRule)>),
) -> Command {
    with_parts(stored, |put| change(&mut put.inbound_rules))
}

/// The load balancer as it is, but for some of its parts.
fn with_parts(stored: &LoadBalancer, change: impl FnOnce(&mut PutLoadBalancer)) -> Command {
    let frontend = |frontend: &Frontend| match frontend {
        Frontend::Internal { subnet, address, allocation } => PutFrontend::Internal {
            subnet: subnet.clone(),
            address: (*allocation == Allocation::Static).then_some(*address),
            family: Family::of(*address),
        },
        Frontend::Public { public_ip } => PutFrontend::Public { public_ip: public_ip.clone() },
        Frontend::Prefix { public_ip_prefix } => {
            PutFrontend::Prefix { public_ip_prefix: public_ip_prefix.clone() }
        }
    };
    let pools = stored.pools.iter().map(|(name, pool)| (name.clone(), pool.clone())).collect();
    let common = vnet::command::Common {
        id: stored.meta.id.clone(),
        location: None,
        tags: None,
        kept: stored.meta.kept.clone(),
    };
    let mut balancer = PutLoadBalancer {
        inbound_rules: stored
            .inbound_rules
            .iter()
            .map(|(name, it)| (name.clone(), it.clone()))
            .collect(),
        sku: stored.sku.clone(),
        frontends: stored.frontends.iter().map(|(name, it)| (name.clone(), frontend(it))).collect(),
        pools,
        probes: stored.probes.iter().map(|(name, it)| (name.clone(), it.clone())).collect(),
        rules: stored.rules.iter().map(|(name, it)| (name.clone(), it.clone())).collect(),
        outbound_rules: stored
            .outbound_rules
            .iter()
            .map(|(name, it)| (name.clone(), it.clone()))
            .collect(),
    };
    change(&mut balancer);
    Command::PutLoadBalancer { common, balancer }
}

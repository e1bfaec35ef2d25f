//! Load balancers as a `GET` shows them.

use serde_json::{Value, json};
use vnet::{
    addr::Family,
    kind,
    model::{
        BackendPool, BalancingRule, Distribution, Frontend, InboundNatRule, InboundTarget,
        LoadBalancer, OutboundRule, Probe, ProbeProtocol, Transport,
    },
    name::{ArmId, Name},
};

use super::inbound;
use crate::{
    findings::version_of,
    kept,
    wire::{View, etag, fill, frame, network_state, public_ip::method, references},
};

/// The resource as a `GET` shows it.
pub(crate) fn render(view: &View<'_>, balancer: &LoadBalancer) -> Value {
    let mut body = frame(&balancer.meta, kind::LOAD_BALANCER);
    body["sku"] = json!({ "name": balancer.sku });
    let part = Part { balancer };
    body["properties"] = json!({
        "provisioningState": network_state(balancer.meta.state),
        "resourceGuid": balancer.meta.guid,
        "frontendIPConfigurations": part.all(&balancer.frontends, |name, it| part.frontend(name, it)),
        "backendAddressPools": part.all(&balancer.pools, |name, it| part.pool(view, name, it)),
        "loadBalancingRules": part.all(&balancer.rules, |name, it| part.rule(name, it)),
        "probes": part.all(&balancer.probes, |name, it| part.probe(name, it)),
        "inboundNatRules": part.all(&balancer.inbound_rules, |name, it| part.inbound(name, it)),
        "inboundNatPools": [],
        "outboundRules": part.all(&balancer.outbound_rules, |name, it| part.outbound(name, it)),
    });
    kept::merge(&mut body, &balancer.meta.kept);
    fill(&mut body, json!({ "sku": { "tier": "Regional" } }));
    body
}

/// One back-end pool as a `GET` of its own path shows it.
pub(crate) fn render_pool(view: &View<'_>, balancer: &LoadBalancer, name: &Name) -> Option<Value> {
    let pool = balancer.pools.get(name)?;
    Some(Part { balancer }.pool(view, name, pool))
}

/// One inbound NAT rule as a `GET` of its own path shows it.
pub(crate) fn render_inbound_rule(balancer: &LoadBalancer, name: &Name) -> Option<Value> {
    let rule = balancer.inbound_rules.get(name)?;
    Some(Part { balancer }.inbound(name, rule))
}

struct Part<'a> {
    balancer: &'a LoadBalancer,
}

impl Part<'_> {
    #[allow(clippy::unused_self, reason = "reads like the others")]
    fn all<T>(
        &self,
        parts: &std::collections::BTreeMap<Name, T>,
        render: impl Fn(&Name, &T) -> Value,
    ) -> Vec<Value> {
        parts.iter().map(|(name, part)| render(name, part)).collect()
    }

    fn id(&self, kind: &str, name: &Name) -> ArmId {
        self.balancer.meta.id.child(kind, name.as_str())
    }

    fn reference(&self, kind: &str, name: &Name) -> Value {
        json!({ "id": self.id(kind, name) })
    }

    /// What every part has; `properties` get the provisioning state as their first one.
    fn frame(&self, kind: &str, name: &Name, properties: Value) -> Value {
        let mut all = json!({ "provisioningState": network_state(self.balancer.meta.state) });
        fill(&mut all, properties);
        json!({
            "name": name.as_str(),
            "id": self.id(kind, name),
            "etag": etag(self.balancer.meta.etag),
            "type": format!("{}/{kind}", kind::LOAD_BALANCER),
            "properties": all,
        })
    }

    /// The rules for which `uses` holds, as references.
    fn rules(&self, uses: impl Fn(&BalancingRule) -> bool) -> Vec<Value> {
        let rules = self.balancer.rules.iter().filter(|(_, rule)| uses(rule));
        references(rules.map(|(name, _)| self.id("loadBalancingRules", name)))
    }

    fn outbound_rules(&self, uses: impl Fn(&OutboundRule) -> bool) -> Vec<Value> {
        let rules = self.balancer.outbound_rules.iter().filter(|(_, rule)| uses(rule));
        references(rules.map(|(name, _)| self.id("outboundRules", name)))
    }

    fn inbound_rules(&self, uses: impl Fn(&InboundNatRule) -> bool) -> Vec<Value> {
        let rules = self.balancer.inbound_rules.iter().filter(|(_, rule)| uses(rule));
        references(rules.map(|(name, _)| self.id("inboundNatRules", name)))
    }

    fn inbound(&self, name: &Name, rule: &InboundNatRule) -> Value {
        let reference = |kind: &str, name: &Name| self.reference(kind, name);
        let properties = inbound::properties(rule, reference, transport(rule.protocol));
        self.frame("inboundNatRules", name, properties)
    }

    fn frontend(&self, name: &Name, frontend: &Frontend) -> Value {
        let mut properties = match frontend {
            Frontend::Internal { subnet, address, allocation } => json!({
                "privateIPAddress": address,
                "privateIPAllocationMethod": method(*allocation),
                "privateIPAddressVersion": version_of(Family::of(*address)),
                "subnet": { "id": subnet },
            }),
            Frontend::Public { public_ip } => json!({
                "privateIPAllocationMethod": "Dynamic",
                "publicIPAddress": { "id": public_ip },
            }),
            Frontend::Prefix { public_ip_prefix } => json!({
                "privateIPAllocationMethod": "Dynamic",
                "publicIPPrefix": { "id": public_ip_prefix },
            }),
        };
        let rules = self.rules(|rule| rule.frontend == *name);
        let outbound = self.outbound_rules(|rule| rule.frontends.contains(name));
        add(&mut properties, "loadBalancingRules", &rules);
        add(&mut properties, "outboundRules", &outbound);
        let inbound = self.inbound_rules(|rule| rule.frontend == *name);
        add(&mut properties, "inboundNatRules", &inbound);
        self.frame("frontendIPConfigurations", name, properties)
    }

    fn pool(&self, view: &View<'_>, name: &Name, pool: &BackendPool) -> Value {
        let members = pool.members.iter().map(|nic| {
            // A member counts with its NIC's first address of the pool's family.
            let config = view.region.nics.get(nic).and_then(|nic| nic.config_of(pool.family));
            nic.child("ipConfigurations", config.map_or("ipconfig1", |config| &config.name))
        });
        let members = references(members);
        let mut properties = json!({});
        add(&mut properties, "backendIPConfigurations", &members);
        add(&mut properties, "loadBalancingRules", &self.rules(|rule| rule.pool == *name));
        let outbound = self.outbound_rules(|rule| rule.pool == *name);
        add(&mut properties, "outboundRules", &outbound);
        let inbound = self.inbound_rules(
            |rule| matches!(&rule.target, InboundTarget::Pool { pool, .. } if pool == name),
        );
        add(&mut properties, "inboundNatRules", &inbound);
        self.frame("backendAddressPools", name, properties)
    }

    fn probe(&self, name: &Name, probe: &Probe) -> Value {
        let mut properties = json!({
            "protocol": match probe.protocol {
                ProbeProtocol::Tcp => "Tcp",
                ProbeProtocol::Http => "Http",
                ProbeProtocol::Https => "Https",
            },
            "port": probe.port,
            "intervalInSeconds": probe.interval_seconds,
            "probeThreshold": probe.threshold,
        });
        if !probe.path.is_empty() {
            properties["requestPath"] = json!(probe.path);
        }
        let rules = self.rules(|rule| rule.probe.as_ref() == Some(name));
        add(&mut properties, "loadBalancingRules", &rules);
        self.frame("probes", name, properties)
    }

    fn rule(&self, name: &Name, rule: &BalancingRule) -> Value {
        let pool = self.reference("backendAddressPools", &rule.pool);
        let mut properties = json!({
            "frontendIPConfiguration": self.reference("frontendIPConfigurations", &rule.frontend),
            "backendAddressPool": pool,
            "backendAddressPools": [pool],
            "protocol": transport(rule.protocol),
            "frontendPort": rule.frontend_port,
            "backendPort": rule.backend_port,
            "enableFloatingIP": rule.floating_ip,
            "loadDistribution": distribution(rule.distribution),
            "idleTimeoutInMinutes": rule.idle_timeout_minutes,
            "enableTcpReset": rule.enable_tcp_reset,
            "disableOutboundSnat": rule.disable_outbound_snat,
        });
        if let Some(probe) = &rule.probe {
            properties["probe"] = self.reference("probes", probe);
        }
        self.frame("loadBalancingRules", name, properties)
    }

    fn outbound(&self, name: &Name, rule: &OutboundRule) -> Value {
        let frontends = rule.frontends.iter().map(|name| self.id("frontendIPConfigurations", name));
        let properties = json!({
            "frontendIPConfigurations": references(frontends),
            "backendAddressPool": self.reference("backendAddressPools", &rule.pool),
            "protocol": transport(rule.protocol),
            "allocatedOutboundPorts": rule.allocated_ports,
            "idleTimeoutInMinutes": rule.idle_timeout_minutes,
            "enableTcpReset": rule.enable_tcp_reset,
        });
        self.frame("outboundRules", name, properties)
    }
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "Tcp",
        Transport::Udp => "Udp",
        Transport::All => "All",
    }
}

fn distribution(distribution: Distribution) -> &'static str {
    match distribution {
        Distribution::Default => "Default",
        Distribution::SourceIp => "SourceIP",
        Distribution::SourceIpProtocol => "SourceIPProtocol",
    }
}

/// Azure leaves empty lists of references out.
fn add(properties: &mut Value, key: &str, references: &[Value]) {
    if !references.is_empty() {
        properties[key] = json!(references);
    }
}

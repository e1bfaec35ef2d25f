//! What is wrong with a region, if anything: the laws that hold after any commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::Region;
use crate::{
    addr::{Family, Mac, Prefix},
    ipam,
    model::{
        Cluster, Frontend, Holder, InboundTarget, LoadBalancer, NetworkMode, NetworkPolicy,
        ProvisioningState, Subnet, UpgradeStep,
    },
    name::{ArmId, Name},
};

impl Region {
    /// Every law that this region breaks, as a sentence. Empty for every region that
    /// [`apply`](Self::apply) made; tests ask after each command.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        self.find_homeless(&mut findings);
        self.find_misplaced(&mut findings);
        self.find_false_holders(&mut findings);
        self.find_unheld(&mut findings);
        self.find_shared(&mut findings);
        self.find_dangling(&mut findings);
        self.find_in_security(&mut findings);
        self.find_in_peerings(&mut findings);
        self.find_in_publics(&mut findings);
        self.find_in_nat_gateways(&mut findings);
        for cluster in self.clusters.values() {
            self.find_in_cluster(cluster, &mut findings);
        }
        findings
    }

    fn subnets(&self) -> impl Iterator<Item = (ArmId, &Subnet)> {
        self.vnets.values().flat_map(|vnet| {
            vnet.subnets
                .values()
                .map(|subnet| (vnet.meta.id.child("subnets", subnet.name.as_str()), subnet))
        })
    }

    /// A resource is in a group that is there, and under its own id.
    fn find_homeless(&self, findings: &mut Vec<String>) {
        let ids = self
            .vnets
            .iter()
            .map(|(key, vnet)| (key, &vnet.meta.id))
            .chain(self.route_tables.iter().map(|(key, table)| (key, &table.meta.id)))
            .chain(self.security_groups.iter().map(|(key, group)| (key, &group.meta.id)))
            .chain(self.application_groups.iter().map(|(key, group)| (key, &group.meta.id)))
            .chain(self.nat_gateways.iter().map(|(key, gateway)| (key, &gateway.meta.id)))
            .chain(self.public_ip_prefixes.iter().map(|(key, prefix)| (key, &prefix.meta.id)))
            .chain(self.public_ips.iter().map(|(key, public_ip)| (key, &public_ip.meta.id)))
            .chain(self.nics.iter().map(|(key, nic)| (key, &nic.meta.id)))
            .chain(self.machines.iter().map(|(key, machine)| (key, &machine.meta.id)))
            .chain(self.balancers.iter().map(|(key, balancer)| (key, &balancer.meta.id)))
            .chain(self.clusters.iter().map(|(key, cluster)| (key, &cluster.meta.id)));
        for (key, id) in ids {
            if key != id {
                findings.push(format!("{id} is stored as {key}"));
            }
            if !self.groups.contains_key(&id.resource_group_id()) {
                findings.push(format!("{id} is in no group"));
            }
        }
    }

    /// Subnets are inside their virtual network and apart; held addresses are inside their subnet.
    fn find_misplaced(&self, findings: &mut Vec<String>) {
        for vnet in self.vnets.values() {
            let id = &vnet.meta.id;
            find_overlaps(vnet.prefixes.iter().copied(), id, findings);
            find_overlaps(vnet.subnets.values().flat_map(Subnet::prefixes), id, findings);
        }
        for (id, subnet) in self.subnets() {
            let vnet = id.parent().and_then(|vnet| self.vnets.get(&vnet));
            if !vnet.is_some_and(|vnet| {
                subnet
                    .prefixes()
                    .all(|own| vnet.prefixes.iter().any(|prefix| prefix.contains_prefix(own)))
            }) {
                findings.push(format!("{id} is outside of its virtual network"));
            }
            for address in subnet.held.keys() {
                if !subnet.contains(*address) {
                    findings.push(format!("{address} is held in {id} and outside of it"));
                }
                if subnet.prefixes().any(|prefix| ipam::is_reserved(prefix, *address)) {
                    findings.push(format!("{address} is held in {id} and reserved"));
                }
            }
        }
    }

    /// Who is said to hold an address says so, too.
    fn find_false_holders(&self, findings: &mut Vec<String>) {
        for (id, subnet) in self.subnets() {
            for (address, holder) in &subnet.held {
                let agrees = match holder {
                    Holder::IpConfiguration { nic, config } => {
                        self.nics.get(nic).is_some_and(|nic| {
                            nic.configs.iter().any(|there| {
                                there.name == *config
                                    && there.subnet == id
                                    && there.address == *address
                            })
                        })
                    }
                    Holder::Frontend { balancer, frontend } => {
                        let balancer = self.balancers.get(balancer);
                        let frontend =
                            balancer.and_then(|there| there.frontends.get(&Name::new(frontend)));
                        matches!(frontend, Some(Frontend::Internal { subnet, address: there, .. })
                            if *subnet == id && there == address)
                    }
                    Holder::PodBatch { node } => self.pod_subnet_of(node) == Some(&id),
                };
                if !agrees {
                    findings.push(format!(
                        "{address} of {id} is held by {holder:?}, who does not have it"
                    ));
                }
            }
        }
    }

    fn pod_subnet_of(&self, machine: &ArmId) -> Option<&ArmId> {
        let node = self.machines.get(machine)?.node()?;
        self.clusters.get(&node.cluster)?.pools.get(&node.pool)?.pod_subnet.as_ref()
    }

    /// Who has an address holds it.
    fn find_unheld(&self, findings: &mut Vec<String>) {
        let mut expect = |subnet: &ArmId, address: IpAddr, holder: Holder| {
            let held = self.subnet(subnet).and_then(|(_, subnet)| subnet.held.get(&address));
            if held != Some(&holder) {
                findings.push(format!(
                    "{holder:?} has {address} of {subnet}, which is held by {held:?}"
                ));
            }
        };
        for nic in self.nics.values() {
            for config in &nic.configs {
                let holder = Holder::IpConfiguration {
                    nic: nic.meta.id.clone(),
                    config: config.name.clone(),
                };
                expect(&config.subnet, config.address, holder);
            }
        }
        for balancer in self.balancers.values() {
            for (name, frontend) in &balancer.frontends {
                if let Frontend::Internal { subnet, address, .. } = frontend {
                    let holder = Holder::Frontend {
                        balancer: balancer.meta.id.clone(),
                        frontend: name.as_str().to_owned(),
                    };
                    expect(subnet, *address, holder);
                }
            }
        }
    }

    /// What must be one's own is: Ethernet addresses, addresses of the lab's internet, host names of nodes.
    fn find_shared(&self, findings: &mut Vec<String>) {
        let mut macs: BTreeMap<Mac, &ArmId> = BTreeMap::new();
        for (id, nic) in &self.nics {
            if let Some(other) = macs.insert(nic.mac, id) {
                findings.push(format!("{id} and {other} both have {}", nic.mac));
            }
        }
        let outside = self
            .public_ips
            .iter()
            .map(|(id, public_ip)| (id, public_ip.address))
            .chain(self.vnets.iter().map(|(id, vnet)| (id, vnet.default_outbound.into())))
            .chain(self.clusters.iter().map(|(id, cluster)| (id, cluster.api_address.into())));
        let mut addresses: BTreeMap<IpAddr, &ArmId> = BTreeMap::new();
        for (id, address) in outside {
            if let Some(other) = addresses.insert(address, id) {
                findings.push(format!("{id} and {other} both have {address}"));
            }
        }
    }

    /// References lead somewhere, and back where there is a way back.
    fn find_dangling(&self, findings: &mut Vec<String>) {
        for (id, machine) in &self.machines {
            if self.nics.get(&machine.nic).and_then(|nic| nic.machine.as_ref()) != Some(id) {
                findings.push(format!("{id} has NIC {}, which is not its own", machine.nic));
            }
        }
        for (id, nic) in &self.nics {
            let machine = nic.machine.as_ref();
            if machine
                .is_some_and(|machine| self.machines.get(machine).is_none_or(|m| m.nic != *id))
            {
                findings.push(format!("{id} is attached to {machine:?}, which has another NIC"));
            }
        }
        for (id, subnet) in self.subnets() {
            let table = subnet.route_table.as_ref();
            if table.is_some_and(|table| !self.route_tables.contains_key(table)) {
                findings.push(format!("{id} has route table {table:?}, which is not there"));
            }
            for link in &subnet.association_links {
                let cluster = self.clusters.get(link);
                let uses = |cluster: &Cluster| {
                    cluster.pools.values().any(|pool| pool.pod_subnet.as_ref() == Some(&id))
                };
                if !cluster.is_some_and(|cluster| uses(cluster)) {
                    findings.push(format!("{id} is linked to {link}, which has no pods there"));
                }
                if subnet.delegations.is_empty() {
                    findings.push(format!("{id} is linked to {link} and not delegated"));
                }
            }
        }
        for balancer in self.balancers.values() {
            self.find_in_balancer(balancer, findings);
        }
    }

    fn find_in_balancer(&self, balancer: &LoadBalancer, findings: &mut Vec<String>) {
        let id = &balancer.meta.id;
        for member in balancer.pools.values().flat_map(|pool| &pool.members) {
            if !self.nics.contains_key(member) {
                findings.push(format!("{id} has member {member}, which is not there"));
            }
        }
        for rule in balancer.rules.values() {
            if !balancer.frontends.contains_key(&rule.frontend)
                || !balancer.pools.contains_key(&rule.pool)
            {
                findings.push(format!("{id} has a rule without a front end or a pool"));
            }
        }
        for (name, rule) in &balancer.inbound_rules {
            let is_aimed = match &rule.target {
                InboundTarget::Configuration { member: None, .. } => true,
                InboundTarget::Configuration { member: Some((nic, config)), .. } => {
                    let nic = self.nics.get(nic);
                    nic.is_some_and(|nic| nic.configs.iter().any(|it| it.name == *config))
                }
                InboundTarget::Pool { pool, .. } => balancer.pools.contains_key(pool),
            };
            if !is_aimed || !balancer.frontends.contains_key(&rule.frontend) {
                findings.push(format!("{id} has inbound NAT rule {name} without an end"));
            }
        }
    }

    /// A cluster has its parts, and its nodes have what they need.
    fn find_in_cluster(&self, cluster: &Cluster, findings: &mut Vec<String>) {
        let id = &cluster.meta.id;
        let managed_by =
            self.groups.get(&cluster.node_group).and_then(|group| group.managed_by.as_ref());
        if managed_by != Some(id) {
            findings.push(format!("{id} has no node resource group"));
        }
        if cluster.route_table.as_ref().is_some_and(|table| !self.route_tables.contains_key(table))
        {
            findings.push(format!("{id} has no route table"));
        }
        let is_cilium = !cluster.dataplane.is_azure();
        if is_cilium != (cluster.policy == Some(NetworkPolicy::Cilium)) {
            findings.push(format!("{id} has Cilium's data plane or its policies, and not both"));
        }
        if is_cilium && matches!(cluster.mode, NetworkMode::Kubenet | NetworkMode::None) {
            findings.push(format!("{id} has Cilium's data plane with {:?}", cluster.mode));
        }
        let mut ranges = BTreeSet::new();
        let mut ranges6 = BTreeSet::new();
        let mut hostnames = BTreeSet::new();
        let mut counts: BTreeMap<&Name, u32> = BTreeMap::new();
        for machine in self.nodes_of(id) {
            let Some(node) = machine.node() else { continue };
            let name = &machine.hostname;
            if !is_cilium && node.image.as_ref().is_some_and(|image| !image.dataplane.is_azure()) {
                findings.push(format!("{name} has Cilium, and its cluster has not"));
            }
            if !hostnames.insert(name) {
                findings.push(format!("{id} has two nodes {name}"));
            }
            if let Some(range) = node.pod_range {
                if !cluster.pod_cidr.is_some_and(|pods| pods.contains_prefix(range)) {
                    findings.push(format!("{name} has {range}, outside of the pod CIDR"));
                }
                if !ranges.insert(range) {
                    findings.push(format!("{name} has {range}, and so has another node"));
                }
            }
            if let Some(range) = node.pod_range6 {
                if !cluster.pod_cidr6.is_some_and(|pods| pods.contains_prefix(range)) {
                    findings.push(format!("{name} has {range}, outside of the pod CIDR of IPv6"));
                }
                if !ranges6.insert(range) {
                    findings.push(format!("{name} has {range}, and so has another node"));
                }
            }
            if cluster.is_dual_stack()
                && self
                    .nics
                    .get(&machine.nic)
                    .is_some_and(|nic| nic.address_of(Family::V6).is_none())
            {
                findings.push(format!("{name} has no address of IPv6"));
            }
            if !cluster.pools.contains_key(&node.pool) {
                findings.push(format!("{name} is of pool {}, which is not there", node.pool));
            }
            let is_upgraded =
                cluster.pools.get(&node.pool).is_some_and(|pool| pool.upgrade.is_some());
            if machine.meta.state == ProvisioningState::Deleting {
                continue;
            }
            if (node.is_surge || node.step != UpgradeStep::Idle) && !is_upgraded {
                findings.push(format!("{name} is in an upgrade that its pool is not in"));
            }
            if !node.is_surge {
                *counts.entry(&node.pool).or_default() += 1;
            }
        }
        for pool in cluster.pools.values() {
            let n = counts.get(&pool.name).copied().unwrap_or_default();
            let expected = if pool.state == ProvisioningState::Deleting { 0 } else { pool.count };
            if n != expected {
                findings.push(format!("pool {} of {id} has {n} nodes, not {expected}", pool.name));
            }
        }
    }
}

fn find_overlaps(
    prefixes: impl IntoIterator<Item = Prefix>,
    id: &ArmId,
    findings: &mut Vec<String>,
) {
    let mut prefixes: Vec<Prefix> = prefixes.into_iter().collect();
    prefixes.sort();
    for pair in prefixes.windows(2) {
        if pair[0].overlaps(pair[1]) {
            findings.push(format!("{} and {} of {id} overlap", pair[0], pair[1]));
        }
    }
}

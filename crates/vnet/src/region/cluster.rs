//! Managed clusters: what one brings into the region when it is made, and how it changes and goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Change, UNCHANGED, dataplane, groups, lifecycle, migration, network, outbound, pools, ranges,
    refusal, upgrades, uuid_of,
};
use crate::{
    addr::{Prefix, Prefix4, Prefix6},
    command::{Accepted, Common, Outcome, PutCluster, PutPool},
    fault::Fault,
    kind,
    model::{
        Cluster, NetworkLinks, NetworkMode, OutboundType, PoolMode, ProvisioningState,
        ResourceGroup, RouteTable, Subnet, Vnet,
    },
    name::{ArmId, Name},
};

/// Kubernetes' version where nobody says; doors say.
const DEFAULT_VERSION: &str = "1.36.3";
/// The longest name of a node resource group; longer defaults are cut (AKS documentation, FAQ).
const LONGEST_GROUP: usize = 80;
/// A managed virtual network and its subnet (AKS release notes of 2022-02-24).
const MANAGED_VNET: ([u8; 4], u8) = ([10, 224, 0, 0], 12);
/// See [`MANAGED_VNET`].
const MANAGED_SUBNET: ([u8; 4], u8) = ([10, 224, 0, 0], 16);

impl Change {
    pub(super) fn put_cluster(
        &mut self,
        common: &Common,
        put: PutCluster,
    ) -> Result<Accepted, Fault> {
        match self.region.clusters.get(&common.id).cloned() {
            Some(old) => self.update_cluster(&old, common, put),
            None => self.create_cluster(common, put),
        }
    }

    fn create_cluster(&mut self, common: &Common, put: PutCluster) -> Result<Accepted, Fault> {
        let mut meta = self.meta(common, kind::CLUSTER, None)?;
        meta.state = ProvisioningState::Creating;
        let id = meta.id.clone();
        check_cluster_name(id.name())?;
        let group = self.live_group(&id)?.id.clone();
        let mode = put.mode.unwrap_or(NetworkMode::Overlay);
        let outbound = put.outbound.unwrap_or(OutboundType::LoadBalancer);
        let hash = eight_digits(&id);
        let node_group =
            self.node_group_id(&id, &group, &meta.location, put.node_group.as_deref())?;
        let dns_prefix = put.dns_prefix.unwrap_or_else(|| default_dns_prefix(&id));
        let suffix = &uuid_of(&format!("{} fqdn", id.key())).simple().to_string()[..8];
        let first_subnet = put.pools.first().and_then(|pool| pool.subnet.clone());
        let vnet = match &first_subnet {
            Some(subnet) => {
                subnet.parent().ok_or_else(|| refusal::wrong_kind(subnet, kind::SUBNET))?
            }
            None => node_group.sibling(kind::VNET, &format!("aks-vnet-{hash}")),
        };
        let route_table = (mode == NetworkMode::Kubenet).then(|| {
            node_group.sibling(kind::ROUTE_TABLE, &format!("aks-agentpool-{hash}-routetable"))
        });
        let is_dual_stack = put.is_dual_stack.unwrap_or_default();
        let mut cluster = Cluster {
            created: self.now,
            version: put.version.unwrap_or_else(|| DEFAULT_VERSION.to_owned()),
            fqdn: format!("{dns_prefix}-{suffix}.hcp.{}.azmk8s.io", meta.location),
            dns_prefix,
            api_address: self.lab_address()?,
            principal: uuid_of(&format!("{} principal", id.key())),
            mode,
            links: put.links,
            dataplane: put.dataplane.unwrap_or_default(),
            policy: put
                .policy
                .or_else(|| dataplane::default_policy(put.dataplane.unwrap_or_default())),
            advanced_networking: put.advanced_networking,
            pod_cidr: pod_cidr(mode, put.pod_cidr)?,
            pod_cidr6: put.pod_cidr6.or_else(|| match mode {
                NetworkMode::Kubenet | NetworkMode::Overlay if is_dual_stack => {
                    Some(default_range6(ranges::POD_CIDR6))
                }
                _ => None,
            }),
            service_cidr6: is_dual_stack.then(|| {
                put.service_cidr6.unwrap_or_else(|| default_range6(ranges::SERVICE_CIDR6))
            }),
            service_cidr: put.service_cidr.unwrap_or_else(|| default_range(ranges::SERVICE_CIDR)),
            dns_service_ip: put.dns_service_ip.unwrap_or(ranges::DNS_SERVICE_IP),
            outbound,
            outbound_profile: put
                .outbound_profile
                .unwrap_or_else(|| outbound::default_profile(outbound)),
            security_group: None,
            vnet,
            route_table,
            pools: BTreeMap::new(),
            node_group,
            hash,
            meta,
        };
        ranges::check_families(&cluster)?;
        check_links(&cluster)?;
        dataplane::check(&cluster)?;
        outbound::check_type(&cluster)?;
        self.make_node_group(&cluster, &group);
        let managed = match first_subnet {
            Some(_) => None,
            None => Some(self.make_managed_vnet(&cluster)?),
        };
        // The virtual network's own spelling, wherever the pools' subnets came from.
        if let Some(vnet) = self.region.vnets.get(&cluster.vnet) {
            cluster.vnet = vnet.meta.id.clone();
        }
        self.make_route_table(&cluster);
        self.make_security_group(&mut cluster, managed.as_ref());
        self.make_first_pools(&mut cluster, put.pools, managed)?;
        self.check_outbound(&cluster)?;
        self.refuse_idle_gateway(&cluster)?;
        self.make_outbound(&cluster)?;
        self.sync_members(&cluster);
        self.region.clusters.insert(id.clone(), Arc::new(cluster));
        Ok(self.put(&id, true))
    }

    /// The pools that a cluster begins with: all are checked before any gets an address.
    fn make_first_pools(
        &mut self,
        cluster: &mut Cluster,
        puts: Vec<PutPool>,
        managed: Option<ArmId>,
    ) -> Result<(), Fault> {
        let mut default = managed.map(|subnet| (subnet, false));
        for put in puts {
            let name = put.name.clone();
            let is_first = cluster.pools.is_empty();
            let mode = if is_first { PoolMode::System } else { PoolMode::User };
            let pool = self.new_pool(cluster, put, mode, default.clone())?;
            if is_first {
                default = Some((pool.subnet.clone(), pool.subnet_given));
            }
            self.check_pool_subnets(cluster, &pool)?;
            if cluster.pools.insert(name.clone(), pool).is_some() {
                return Err(refusal::invalid(
                    "agentPoolProfiles",
                    &format!("The name {name} is used more than once."),
                ));
            }
        }
        pools::check_pools(cluster)?;
        self.check_ranges(cluster)?;
        self.check_sizes(cluster)?;
        for pool in cluster.pools.clone().into_values() {
            self.connect(cluster, &pool);
            self.resize(cluster, &pool.name)?;
        }
        Ok(())
    }

    /// Refuses the cluster's ranges when they do not suit its virtual network.
    pub(super) fn check_ranges(&self, cluster: &Cluster) -> Result<(), Fault> {
        let vnet = self.region.vnets.get(&cluster.vnet);
        ranges::check(
            cluster,
            vnet.ok_or_else(|| refusal::reference(&cluster.vnet, &cluster.meta.id))?,
        )
    }

    fn update_cluster(
        &mut self,
        old: &Cluster,
        common: &Common,
        put: PutCluster,
    ) -> Result<Accepted, Fault> {
        let meta = self.meta(common, kind::CLUSTER, Some(&old.meta))?;
        self.refuse_busy(old)?;
        check_fixed(old, &put)?;
        let is_new_dataplane = dataplane::is_change(old, &put)?;
        let mut cluster = Cluster { meta, ..old.clone() };
        let is_migration = put.mode.is_some_and(|mode| mode != old.mode);
        let pod_cidr = put.pod_cidr.filter(|range| !is_migration && Some(*range) != old.pod_cidr);
        if let Some(range) = pod_cidr {
            // Nodes keep their ranges, which are in the larger one, too.
            cluster.pod_cidr = Some(range);
            self.check_ranges(&cluster)?;
        }
        self.set_dataplane(&mut cluster, &put)?;
        let is_upgrade = put.version.as_ref().is_some_and(|version| *version != old.version);
        if let Some(version) = put.version {
            upgrades::check_version(&old.version, &version, "kubernetesVersion")?;
            cluster.version = version;
        }
        if is_migration {
            migration::check(old, put.pod_cidr)?;
        }
        let new_names: Vec<Name> = put.pools.iter().map(|pool| pool.name.clone()).collect();
        if new_names.iter().collect::<BTreeSet<_>>().len() != new_names.len() {
            return Err(refusal::invalid("agentPoolProfiles", "A name is used more than once."));
        }
        for pool in put.pools {
            self.put_pool_into(&mut cluster, pool)?;
        }
        if is_upgrade {
            cluster.meta.state = ProvisioningState::Upgrading;
        }
        check_pool_versions(&cluster)?;
        if let Some(outbound) = put.outbound {
            ranges::check_families(&Cluster { outbound, ..cluster.clone() })?;
        }
        self.change_outbound(old, &mut cluster, put.outbound, put.outbound_profile)?;
        if is_migration {
            let pod_cidr = put.pod_cidr.or(old.pod_cidr);
            cluster.mode = NetworkMode::Overlay;
            cluster.pod_cidr = Some(pod_cidr.unwrap_or_else(|| default_range(ranges::POD_CIDR)));
            self.begin_migration(&mut cluster)?;
        }
        if is_new_dataplane {
            self.begin_dataplane(&mut cluster)?;
        }
        let id = cluster.meta.id.clone();
        self.region.clusters.insert(id.clone(), Arc::new(cluster));
        self.advance_upgrades(&id);
        Ok(self.put(&id, false))
    }

    /// One write at a time (AKS: `OperationNotAllowed`).
    pub(super) fn refuse_busy(&self, cluster: &Cluster) -> Result<(), Fault> {
        let Some(running) = self.region.running_write(&cluster.meta.id) else { return Ok(()) };
        let is_pool = running.target.is_kind(kind::POOL);
        let state = match self.region.pool(&running.target) {
            Some((_, pool)) => pool.state,
            None => cluster.meta.state,
        };
        let doing = match state {
            ProvisioningState::Creating => "create",
            ProvisioningState::Deleting => "delete",
            ProvisioningState::Scaling => "scale",
            ProvisioningState::Upgrading => "upgrade",
            ProvisioningState::Updating
            | ProvisioningState::Succeeded
            | ProvisioningState::Failed => "update",
        };
        let (kind, thing, abort) = if is_pool {
            ("node pool", "agent pool", "az aks nodepool operation-abort")
        } else {
            ("managed cluster", "managed cluster", "az aks operation-abort")
        };
        Err(Fault::conflict(
            "OperationNotAllowed",
            format!(
                "Operation is not allowed because there's an in progress {doing} {kind} operation (operation ID: {}) on \
                 the {thing} {} started on UTC {}. Please wait for it to finish before starting a new operation. You can \
                 also use '{abort}' to abort the ongoing operation.",
                running.id,
                running.target.name(),
                lifecycle::utc(running.started)
            ),
        ))
    }

    pub(super) fn delete_cluster(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some(cluster) = self.region.clusters.get(id) else { return Ok(UNCHANGED) };
        if cluster.meta.state == ProvisioningState::Deleting {
            return Ok(self.deleting_again(id));
        }
        let users = self.outside_users(&BTreeSet::from([cluster.node_group.clone()]));
        if !users.is_empty() {
            return Err(Fault::conflict(
                "ResourceGroupDeletionBlocked",
                format!(
                    "Deletion of resource group '{}' failed: {}.",
                    cluster.node_group.resource_group(),
                    users.join("; ")
                ),
            ));
        }
        self.begin_cluster_end(id);
        Ok(self.deleting(id))
    }

    /// Marks a cluster, its pools, its nodes and its node resource group. What was under way is preempted.
    pub(super) fn begin_cluster_end(&mut self, id: &ArmId) {
        let Some(cluster) = self.region.clusters.get(id) else { return };
        if cluster.meta.state == ProvisioningState::Deleting {
            return;
        }
        let mut cluster = cluster.as_ref().clone();
        let preempted = Fault::conflict(
            "AKSOperationPreempted",
            "This operation has been preempted by another operation. Please retry later.",
        );
        self.end_operations(Some(&preempted), |operation| {
            operation.target == *id || operation.target.parent().as_ref() == Some(id)
        });
        self.touch(&mut cluster.meta, ProvisioningState::Deleting);
        for pool in cluster.pools.values_mut() {
            pool.state = ProvisioningState::Deleting;
            pool.changed = self.generation;
        }
        for pool in cluster.pools.keys() {
            self.remove_nodes(id, pool, usize::MAX);
        }
        if let Some(group) = self.region.groups.get_mut(&cluster.node_group) {
            Arc::make_mut(group).state = ProvisioningState::Deleting;
        }
        self.region.clusters.insert(id.clone(), Arc::new(cluster));
    }

    /// Takes a cluster that is being deleted out of the region, with everything that it brought.
    pub(super) fn cluster_gone(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some(cluster) = self.region.clusters.get(id).cloned() else { return Ok(UNCHANGED) };
        if cluster.meta.state != ProvisioningState::Deleting {
            return Err(groups::part_of_cluster(id));
        }
        let nodes: Vec<ArmId> =
            self.region.nodes_of(id).into_iter().map(|node| node.meta.id.clone()).collect();
        for node in nodes {
            self.drop_node(&node);
        }
        let empty = Cluster { pools: BTreeMap::new(), ..cluster.as_ref().clone() };
        for pool in cluster.pools.values() {
            self.disconnect(&empty, pool);
        }
        self.region.clusters.remove(id);
        for resource in self.region.resources_in_group(&cluster.node_group) {
            self.drop_resource(&resource);
        }
        self.region.groups.remove(&cluster.node_group);
        self.forget_assignments(&cluster.node_group);
        self.forget_assignments(id);
        self.end_operations(None, |operation| {
            operation.target == *id || operation.target.parent().as_ref() == Some(id)
        });
        Ok(Accepted { outcome: Outcome::Updated, operation: None })
    }

    fn node_group_id(
        &self,
        id: &ArmId,
        group: &ArmId,
        location: &str,
        wanted: Option<&str>,
    ) -> Result<ArmId, Fault> {
        let target = "nodeResourceGroup";
        let name = wanted.map_or_else(
            || {
                let name = format!("MC_{}_{}_{location}", group.resource_group(), id.name());
                name.chars().take(LONGEST_GROUP).collect()
            },
            str::to_owned,
        );
        let node_group = ArmId::group(id.subscription(), &name);
        if node_group == *group {
            return Err(Fault::bad(
                "NodeResourceGroupSameAsResourceGroup",
                format!("The node resource group '{name}' is the cluster's own resource group."),
            )
            .at(target));
        }
        if self.region.groups.contains_key(&node_group) {
            return Err(Fault::bad(
                "NodeResourceGroupAlreadyExists",
                format!("The node resource group '{name}' already exists."),
            )
            .at(target));
        }
        Ok(node_group)
    }

    fn make_node_group(&mut self, cluster: &Cluster, group: &ArmId) {
        let tags = [
            ("aks-managed-cluster-name", cluster.meta.id.name()),
            ("aks-managed-cluster-rg", group.resource_group()),
        ];
        let node_group = ResourceGroup {
            id: cluster.node_group.clone(),
            location: cluster.meta.location.clone(),
            tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect(),
            managed_by: Some(cluster.meta.id.clone()),
            state: ProvisioningState::Succeeded,
        };
        self.region.groups.insert(cluster.node_group.clone(), Arc::new(node_group));
    }

    /// The virtual network of a cluster that was given none; the answer is its subnet.
    fn make_managed_vnet(&mut self, cluster: &Cluster) -> Result<ArmId, Fault> {
        let updating = ProvisioningState::Updating;
        let range6 = cluster.is_dual_stack().then(|| managed_range6(cluster));
        let name = Name::new("aks-subnet");
        let subnet = Subnet {
            name: name.clone(),
            prefix: Prefix4::containing(MANAGED_SUBNET.0.into(), MANAGED_SUBNET.1),
            prefix6: range6.and_then(|range| range.nth_subnet(64, 0)),
            security_group: None,
            nat_gateway: None,
            // As AKS makes it since September 2025 (Azure/AKS, release notes).
            default_outbound: false,
            route_table: None,
            delegations: Vec::new(),
            association_links: Vec::new(),
            held: BTreeMap::new(),
            private_endpoint_network_policies: network::PRIVATE_ENDPOINT_DEFAULT.to_owned(),
            private_link_service_network_policies: network::PRIVATE_LINK_DEFAULT.to_owned(),
            state: updating,
            changed: self.generation,
            kept: BTreeMap::new(),
        };
        let vnet = Vnet {
            meta: self.part_meta(&cluster.vnet, &cluster.meta.location, updating),
            prefixes: [Prefix4::containing(MANAGED_VNET.0.into(), MANAGED_VNET.1).into()]
                .into_iter()
                .chain(range6.map(Prefix::from))
                .collect(),
            subnets: BTreeMap::from([(name.clone(), subnet)]),
            peerings: BTreeMap::new(),
            default_outbound: self.lab_address()?,
        };
        self.region.vnets.insert(cluster.vnet.clone(), Arc::new(vnet));
        Ok(cluster.vnet.child("subnets", name.as_str()))
    }

    fn make_route_table(&mut self, cluster: &Cluster) {
        let Some(id) = &cluster.route_table else { return };
        let table = RouteTable {
            meta: self.part_meta(id, &cluster.meta.location, ProvisioningState::Updating),
            routes: BTreeMap::new(),
            disable_bgp_route_propagation: false,
        };
        self.region.route_tables.insert(id.clone(), Arc::new(table));
    }
}

/// Refuses pools of versions that the cluster's control plane cannot have.
fn check_pool_versions(cluster: &Cluster) -> Result<(), Fault> {
    cluster
        .pools
        .values()
        .try_for_each(|pool| upgrades::check_skew(&cluster.version, &pool.version))
}

/// Refuses to change what is fixed when a cluster is made.
fn check_fixed(old: &Cluster, put: &PutCluster) -> Result<(), Fault> {
    let is_migration = match put.mode.filter(|mode| *mode != old.mode) {
        Some(mode) => {
            migration::check_modes(old.mode, mode)?;
            true
        }
        None => false,
    };
    if !is_migration && let Some(range) = put.pod_cidr {
        check_pod_cidr(old, range)?;
    }
    let same_group = |name: &String| name.eq_ignore_ascii_case(old.node_group.resource_group());
    let fixed = [
        (
            put.is_dual_stack.is_some_and(|it| it != old.is_dual_stack()),
            "networkProfile.ipFamilies",
        ),
        (
            put.pod_cidr6.is_some_and(|range| Some(range) != old.pod_cidr6),
            "networkProfile.podCidrs",
        ),
        (
            put.service_cidr6.is_some_and(|range| Some(range) != old.service_cidr6),
            "networkProfile.serviceCidrs",
        ),
        (
            put.service_cidr.is_some_and(|range| range != old.service_cidr),
            "networkProfile.serviceCidr",
        ),
        (
            put.dns_service_ip.is_some_and(|address| address != old.dns_service_ip),
            "networkProfile.dnsServiceIP",
        ),
        (put.links.is_some_and(|links| Some(links) != old.links), "networkProfile.networkMode"),
        (put.dns_prefix.as_ref().is_some_and(|prefix| *prefix != old.dns_prefix), "dnsPrefix"),
        (put.node_group.as_ref().is_some_and(|name| !same_group(name)), "nodeResourceGroup"),
    ];
    match fixed.into_iter().find(|(differs, _)| *differs) {
        Some((_, path)) => Err(refusal::property_change(path)),
        None => Ok(()),
    }
}

/// Refuses a choice of `networkMode` where there is none. That it goes with network plugin azure alone, the API's
/// own text says (Azure/azure-rest-api-specs, `managedClusters.json`, `networkMode`); overlay has never had a bridge.
fn check_links(cluster: &Cluster) -> Result<(), Fault> {
    use NetworkLinks::{Bridge, Transparent};
    let refused = |text: &str| {
        Err(Fault::bad("NetworkModeNotSupported", text).at("networkProfile.networkMode"))
    };
    match (cluster.links, cluster.mode) {
        (None, _) | (Some(_), NetworkMode::Azure) | (Some(Transparent), NetworkMode::Overlay) => {
            Ok(())
        }
        (Some(_), NetworkMode::Kubenet | NetworkMode::None) => {
            refused("Network mode cannot be specified if the network plugin is not azure.")
        }
        (Some(Bridge), NetworkMode::Overlay) => {
            refused("Network mode bridge is not supported with network plugin mode overlay.")
        }
    }
}

/// Refuses a pod CIDR that a cluster cannot be given: that of an overlay of IPv4 can become larger
/// (MicrosoftDocs/azure-aks-docs, `azure-cni-overlay-pod-expand.md`), where users bring their own CNI it is theirs to say
/// (`use-byo-cni.md` there), others stay what they are.
fn check_pod_cidr(old: &Cluster, range: Prefix4) -> Result<(), Fault> {
    let at = "networkProfile.podCidr";
    match old.pod_cidr {
        Some(is) if is == range => Ok(()),
        _ if old.mode == NetworkMode::None => Ok(()),
        Some(is) if old.mode == NetworkMode::Overlay && !old.is_dual_stack() => {
            if range.contains_prefix(is) {
                return Ok(());
            }
            let text = format!(
                "Changing property '{at}' is not allowed. The pod CIDR of an overlay can only be expanded, and {range} \
                 does not contain {is}."
            );
            Err(Fault::bad("PropertyChangeNotAllowed", text).at(at))
        }
        _ => Err(refusal::property_change(at)),
    }
}

/// The pod CIDR of a new cluster.
fn pod_cidr(mode: NetworkMode, wanted: Option<Prefix4>) -> Result<Option<Prefix4>, Fault> {
    match (mode, wanted) {
        (NetworkMode::Kubenet | NetworkMode::Overlay, wanted) => {
            Ok(Some(wanted.unwrap_or_else(|| default_range(ranges::POD_CIDR))))
        }
        (NetworkMode::None, wanted) => Ok(wanted),
        (NetworkMode::Azure, None) => Ok(None),
        (NetworkMode::Azure, Some(_)) => Err(refusal::invalid(
            "networkProfile.podCidr",
            "Pods of network plugin azure without a plugin mode have addresses of a subnet.",
        )),
    }
}

fn default_range6((network, length): (std::net::Ipv6Addr, u8)) -> Prefix6 {
    Prefix6::containing(network, length)
}

fn default_range((network, length): (std::net::Ipv4Addr, u8)) -> Prefix4 {
    Prefix4::containing(network, length)
}

/// The unique local /56 of a dual-stack cluster's managed virtual network (RFC 4193); which one Azure draws is not known.
fn managed_range6(cluster: &Cluster) -> Prefix6 {
    let mut bytes = *uuid_of(&format!("{} vnet", cluster.meta.id.key())).as_bytes();
    bytes[0] = 0xfd;
    Prefix6::containing(bytes.into(), 56)
}

/// Eight digits that name the parts of a cluster, always the same for the same id. What the service computes
/// them from is not known.
fn eight_digits(id: &ArmId) -> String {
    format!("{:08}", uuid_of(&format!("{} hash", id.key())).as_u128() % 100_000_000)
}

/// What `az aks create` sends: ten characters of the cluster's name, sixteen of its group's, six of the subscription's.
fn default_dns_prefix(id: &ArmId) -> String {
    let start = |text: &str, n: usize| text.chars().take(n).collect::<String>();
    format!(
        "{}-{}-{}",
        start(id.name(), 10),
        start(id.resource_group(), 16),
        start(id.subscription(), 6)
    )
}

/// The name of a cluster: 1 to 63 of letters, digits, `_` and `-`, a letter or digit at both ends
/// (AKS documentation, "Naming rules": `https://aka.ms/aks-naming-rules`).
fn check_cluster_name(name: &str) -> Result<(), Fault> {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    let fits = (1..=63).contains(&name.len())
        && name.starts_with(is_end)
        && name.ends_with(is_end)
        && name.chars().all(|c| is_end(c) || c == '_' || c == '-');
    if fits {
        return Ok(());
    }
    Err(Fault::bad(
        "InvalidParameter",
        format!(
            "The value of parameter resourceName is invalid. Error details: {name} is not 1 to 63 letters, digits, '_' or \
             '-' with a letter or digit at both ends. Please see https://aka.ms/aks-naming-rules for more details."
        ),
    )
    .at("resourceName"))
}

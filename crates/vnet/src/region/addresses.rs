//! Taking and giving back addresses. Every address in a subnet's `held` came through here.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{Change, UNCHANGED, UPDATED, refusal, uuid_of};
use crate::{
    addr::{Family, Mac, Prefix, Prefix4, Prefix6},
    command::Accepted,
    fault::Fault,
    ipam,
    model::{
        Holder, NetworkMode, NodePhase, POD_BATCH, POD_BLOCK_LENGTH, PodAllocation,
        ProvisioningState, Role, Subnet, Vnet,
    },
    name::{ArmId, Name},
};

/// The lab's internet that public IPs, virtual networks' default outbound access and API servers have
/// addresses of: the lower half of the range for benchmarks (RFC 2544). The upper half is the lab's own.
const LAB_INTERNET: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
/// The same for IPv6: the lower half of the range for benchmarks (RFC 5180).
const LAB_INTERNET_6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 49);
/// The first ones are left to the internet itself.
const FIRST_LAB_ADDRESS: u64 = 4;

/// The lab's internet as a prefix.
pub(super) fn lab_internet() -> Prefix4 {
    Prefix4::containing(LAB_INTERNET.0, LAB_INTERNET.1)
}

/// The lab's internet of IPv6 as a prefix.
pub(super) fn lab_internet6() -> Prefix6 {
    Prefix6::containing(LAB_INTERNET_6.0, LAB_INTERNET_6.1)
}

impl Change {
    /// The subnet `id`, if `user` (a resource in `location`) may put something into it.
    pub(super) fn joinable(
        &self,
        id: &ArmId,
        user: &ArmId,
        location: &str,
    ) -> Result<&Subnet, Fault> {
        let (vnet, subnet) = self.region.subnet(id).ok_or_else(|| refusal::reference(id, user))?;
        if vnet.meta.location != location {
            return Err(refusal::reference(id, user));
        }
        self.refuse_going(&vnet.meta.id, vnet.meta.state)?;
        self.refuse_going(id, subnet.state)?;
        if !subnet.association_links.is_empty() {
            return Err(Fault::bad(
                "SubnetWithExternalResourcesCannotBeUsedByOtherResources",
                format!(
                    "Subnet {id} referenced by {user} cannot be used because it contains external resources. The \
                     external resources in this subnet are {}. You need to delete these external resources before \
                     deploying into this subnet.",
                    id.child("serviceAssociationLinks", "AzureKubernetesService")
                ),
            ));
        }
        if let Some(delegation) = subnet.delegations.first() {
            return Err(Fault::bad(
                "ResourceNotPermittedOnDelegatedSubnet",
                format!(
                    "Resource {user} cannot be placed in subnet {id} because the subnet is delegated to {}.",
                    delegation.service
                ),
            ));
        }
        Ok(subnet)
    }

    /// Refuses the use of `id` when it or its group is being deleted.
    pub(super) fn refuse_going(&self, id: &ArmId, state: ProvisioningState) -> Result<(), Fault> {
        let group = self.region.groups.get(&id.resource_group_id());
        if state == ProvisioningState::Deleting {
            Err(refusal::in_progress(id))
        } else if group.is_none_or(|group| group.state == ProvisioningState::Deleting) {
            Err(refusal::group_being_deleted(id))
        } else {
            Ok(())
        }
    }

    /// Takes an address of `subnet` of a family for `holder`: the one that is wanted, or the lowest free one.
    pub(super) fn hold(
        &mut self,
        subnet: &ArmId,
        family: Family,
        wanted: Option<IpAddr>,
        holder: Holder,
    ) -> Result<IpAddr, Fault> {
        let (_, there) = self
            .region
            .subnet(subnet)
            .ok_or_else(|| refusal::reference(subnet, holder.resource()))?;
        let prefix = there.prefix_of(family).ok_or_else(|| refusal::no_ipv6(subnet, &holder))?;
        let address = match wanted {
            Some(address) => {
                check_static(subnet, there, prefix, address, &holder)?;
                address
            }
            None => there.free_address_of(family).ok_or_else(|| full(there, 1))?,
        };
        self.subnet_mut(subnet).held.insert(address, holder);
        Ok(address)
    }

    /// Takes the `n` lowest free addresses of `subnet`, in one pass; `holder` says whose the `i`-th is.
    pub(super) fn hold_many(
        &mut self,
        subnet: &ArmId,
        n: usize,
        holder: impl Fn(usize) -> Holder,
    ) -> Result<Vec<Ipv4Addr>, Fault> {
        let (_, there) =
            self.region.subnet(subnet).ok_or_else(|| refusal::reference(subnet, subnet))?;
        let addresses: Vec<Ipv4Addr> = there.free_addresses().take(n).collect();
        if addresses.len() < n {
            return Err(full(there, n));
        }
        let held = &mut self.subnet_mut(subnet).held;
        let numbered = addresses.iter().enumerate();
        held.extend(numbered.map(|(i, address)| (IpAddr::from(*address), holder(i))));
        Ok(addresses)
    }

    /// Takes the `n` lowest free blocks of /28 of `subnet`. Its first and last ones have addresses that Azure keeps.
    pub(super) fn hold_blocks(
        &mut self,
        subnet: &ArmId,
        n: u32,
        holder: &Holder,
    ) -> Result<(), Fault> {
        let (_, there) =
            self.region.subnet(subnet).ok_or_else(|| refusal::reference(subnet, subnet))?;
        let n = n as usize;
        let is_free = |block: &Prefix4| {
            let range = IpAddr::from(block.network())..=IpAddr::from(block.broadcast());
            let is_held = there.held.range(range).next().is_some();
            let is_edge = [block.network(), block.broadcast()]
                .into_iter()
                .any(|address| ipam::is_reserved(there.prefix, address));
            !is_held && !is_edge
        };
        let blocks: Vec<Prefix4> =
            there.prefix.subnets(POD_BLOCK_LENGTH).filter(is_free).take(n).collect();
        if blocks.len() < n {
            return Err(full(there, n * POD_BATCH));
        }
        let held = &mut self.subnet_mut(subnet).held;
        for block in blocks {
            let addresses = (0..block.n_addresses()).filter_map(|offset| block.nth(offset));
            held.extend(addresses.map(|address| (IpAddr::from(address), holder.clone())));
        }
        Ok(())
    }

    /// Gives an address back. Giving back what nobody holds is success.
    pub(super) fn release(&mut self, subnet: &ArmId, address: IpAddr) {
        if self.region.subnet(subnet).is_some_and(|(_, subnet)| subnet.held.contains_key(&address))
        {
            self.subnet_mut(subnet).held.remove(&address);
        }
    }

    /// A subnet that was just looked at.
    ///
    /// # Panics
    /// When it is not there.
    pub(super) fn subnet_mut(&mut self, id: &ArmId) -> &mut Subnet {
        let vnet = id.parent().and_then(|vnet| self.region.vnets.get_mut(&vnet));
        let subnet =
            vnet.and_then(|vnet| Arc::make_mut(vnet).subnets.get_mut(&Name::new(id.name())));
        subnet.expect("the subnet was found before it is changed")
    }

    /// The virtual network of a subnet that was just looked at.
    ///
    /// # Panics
    /// When it is not there.
    pub(super) fn vnet_mut(&mut self, id: &ArmId) -> &mut Vnet {
        let vnet = self.region.vnets.get_mut(id);
        Arc::make_mut(vnet.expect("the virtual network was found before it is changed"))
    }

    /// What of the lab's internet somebody has: single addresses and prefixes.
    pub(super) fn taken_lab_addresses(&self) -> Vec<Prefix> {
        let region = &self.region;
        let single = self.claimed.iter().copied();
        let single = single
            .chain(region.public_ips.values().map(|public_ip| public_ip.address))
            .chain(region.vnets.values().map(|vnet| vnet.default_outbound.into()))
            .chain(region.clusters.values().map(|cluster| cluster.api_address.into()));
        let prefixes = region.public_ip_prefixes.values().map(|prefix| prefix.prefix);
        single.map(Prefix::host).chain(prefixes).collect()
    }

    /// The lowest free address of the lab's internet.
    pub(super) fn lab_address(&mut self) -> Result<Ipv4Addr, Fault> {
        let internet = lab_internet();
        let offsets = FIRST_LAB_ADDRESS..internet.n_addresses() - 1;
        let all = offsets.filter_map(|offset| internet.nth(offset));
        let address = self.lowest_free(all).ok_or_else(|| none_is_free(internet.into()))?;
        self.claimed.insert(address.into());
        Ok(address)
    }

    /// The lowest free IPv6 address of the lab's internet.
    pub(super) fn lab_address6(&mut self) -> Result<Ipv6Addr, Fault> {
        let internet = lab_internet6();
        // There are more than anybody can take.
        let all = (u128::from(FIRST_LAB_ADDRESS)..).map_while(|offset| internet.nth(offset));
        let address = self.lowest_free(all).ok_or_else(|| none_is_free(internet.into()))?;
        self.claimed.insert(address.into());
        Ok(address)
    }

    /// The first of these addresses of the lab's internet that nobody has.
    fn lowest_free<A: Copy + Into<IpAddr>>(&self, mut all: impl Iterator<Item = A>) -> Option<A> {
        let is_single = |prefix: &Prefix| prefix.length() == prefix.family().bits();
        let (single, prefixes): (Vec<Prefix>, Vec<Prefix>) =
            self.taken_lab_addresses().into_iter().partition(is_single);
        let single: BTreeSet<IpAddr> = single.into_iter().map(Prefix::network).collect();
        all.find(|address| {
            let address = (*address).into();
            !single.contains(&address) && !prefixes.iter().any(|prefix| prefix.contains(address))
        })
    }

    /// The lowest free address of a family of the lab's internet.
    pub(super) fn lab_address_of(&mut self, family: Family) -> Result<IpAddr, Fault> {
        Ok(match family {
            Family::V4 => self.lab_address()?.into(),
            Family::V6 => self.lab_address6()?.into(),
        })
    }

    /// The Ethernet address of a new NIC: Microsoft's prefix, the rest from the id, no other NIC's.
    pub(super) fn mac_for(&self, nic: &ArmId) -> Mac {
        let taken = |mac: Mac| self.region.nics.values().any(|nic| nic.mac == mac);
        (0..u32::MAX)
            .map(|attempt| {
                let bytes = *uuid_of(&format!("{} mac {attempt}", nic.key())).as_bytes();
                Mac([0x00, 0x0d, 0x3a, bytes[0], bytes[1], bytes[2]])
            })
            .find(|mac| !taken(*mac))
            .expect("there are more Ethernet addresses than NICs")
    }

    /// Gives a node whole batches of its pod subnet, or takes back those that it returns.
    pub(super) fn set_pod_addresses(
        &mut self,
        machine: &ArmId,
        total: u32,
        released: &[Ipv4Addr],
    ) -> Result<Accepted, Fault> {
        let pod_subnet = self.region.machines.get(machine).and_then(|machine| {
            let node = machine.node()?;
            let pool = self.region.clusters.get(&node.cluster)?.pools.get(&node.pool)?;
            Some((pool.pod_subnet.clone()?, pool.pod_allocation))
        });
        let Some((pod_subnet, allocation)) = pod_subnet else {
            return Err(refusal::not_found(machine));
        };
        if allocation == PodAllocation::StaticBlock {
            // All that it ever gets, it has.
            return Ok(UNCHANGED);
        }
        let wanted = usize::try_from(total).unwrap_or(usize::MAX);
        let has = self.region.pod_addresses_of(machine);
        // Single addresses come and go while the subnet is exhausted, and at a node's maximum of 250.
        let in_batches = [wanted, has.len()].iter().all(|n| n.is_multiple_of(POD_BATCH));
        let step = if in_batches { POD_BATCH } else { 1 };
        if wanted > has.len() {
            let room = self.region.free_addresses(&pod_subnet).take(wanted - has.len()).count();
            let granted = room - room % step;
            if granted == 0 {
                let (_, subnet) = self
                    .region
                    .subnet(&pod_subnet)
                    .ok_or_else(|| refusal::reference(&pod_subnet, machine))?;
                return Err(full(subnet, wanted - has.len()));
            }
            self.hold_many(&pod_subnet, granted, |_| Holder::PodBatch { node: machine.clone() })?;
            return Ok(UPDATED);
        }
        let n_back = has.len() - wanted;
        if n_back == 0 {
            return Ok(UNCHANGED);
        }
        let mut back: Vec<Ipv4Addr> =
            released.iter().copied().filter(|address| has.binary_search(address).is_ok()).collect();
        back.sort_unstable();
        back.dedup();
        if back.len() < n_back {
            return Err(refusal::invalid(
                "ipsNotInUse",
                &format!("{n_back} addresses would have to be given back; {} are.", back.len()),
            ));
        }
        for address in &back[back.len() - n_back..] {
            self.release(&pod_subnet, (*address).into());
        }
        Ok(UPDATED)
    }

    /// Writes down how far a node is. A machine that is going stays where it is.
    pub(super) fn node_reached(
        &mut self,
        machine: &ArmId,
        phase: NodePhase,
    ) -> Result<Accepted, Fault> {
        let there = self.region.machines.get(machine).ok_or_else(|| refusal::not_found(machine))?;
        let node = there.node().ok_or_else(|| refusal::not_found(machine))?;
        let is_up = matches!(phase, NodePhase::NotReady | NodePhase::Ready);
        let state = match there.meta.state {
            ProvisioningState::Deleting => return Ok(UNCHANGED),
            _ if is_up => ProvisioningState::Succeeded,
            state => state,
        };
        if node.phase == phase && there.meta.state == state {
            return Ok(UNCHANGED);
        }
        let mut next = there.as_ref().clone();
        next.meta.state = state;
        if let Role::Node(node) = &mut next.role {
            node.phase = phase;
        }
        let mode = next.node().and_then(|node| node.image.as_ref()).map(|image| image.mode);
        let is_done = mode.unwrap_or(NetworkMode::Azure).is_up(phase);
        self.region.machines.insert(machine.clone(), Arc::new(next));
        if is_done {
            self.node_is_up(machine);
        }
        Ok(UPDATED)
    }
}

fn none_is_free(internet: Prefix) -> Fault {
    Fault::bad("PublicIPCountLimitReached", format!("No address of {internet} is free."))
}

/// Refuses an address that a caller chose and cannot have
/// (Azure Virtual Network documentation, "Private IP addresses").
fn check_static(
    id: &ArmId,
    subnet: &Subnet,
    prefix: Prefix,
    address: IpAddr,
    holder: &Holder,
) -> Result<(), Fault> {
    if !prefix.contains(address) {
        return Err(Fault::bad(
            "PrivateIPAddressNotInSubnet",
            format!(
                "Private static IP address {address} does not belong to the range of subnet prefix {}/{prefix}.",
                subnet.name
            ),
        ));
    }
    if ipam::is_reserved(prefix, address) {
        return Err(Fault::bad(
            "PrivateIPAddressInReservedRange",
            format!(
                "Private static IP address {address} falls within reserved IP range of subnet prefix {prefix}."
            ),
        ));
    }
    match subnet.held.get(&address) {
        Some(taken) if taken != holder => Err(Fault::bad(
            "PrivateIPAddressIsAllocated",
            format!(
                "IP configuration {} is using the private IP address {address} which is already allocated to resource \
                 {}.",
                refusal::holder_id(id, holder),
                refusal::holder_id(id, taken)
            ),
        )),
        _ => Ok(()),
    }
}

/// The refusal of a subnet without room.
fn full(subnet: &Subnet, n: usize) -> Fault {
    Fault::bad(
        "SubnetIsFull",
        format!(
            "Subnet {} with address prefix {} does not have enough capacity for {n} IP addresses.",
            subnet.name, subnet.prefix
        ),
    )
}

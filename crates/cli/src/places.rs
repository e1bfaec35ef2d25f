//! What people call things, turned into where their packets pass: a network namespace, links in it, and the
//! addresses that are meant. Not here: reading packets there.

use std::{collections::BTreeMap, net::IpAddr};

use daemon::clusters::PodAt;
use linux::netns::{self, Netns};
use serde::{Deserialize, Serialize};
use vnet::{
    addr::Family,
    host::names,
    model::{Frontend, Holder, LoadBalancer, Machine, Nic, Role, Vnet},
    name::ArmId,
    region::Region,
};

/// A point of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Place {
    /// `vm/web`: kind and name.
    pub(crate) name: String,
    /// A path to its network namespace.
    pub(crate) netns: String,
    /// Links there that are known, with what is behind each.
    pub(crate) links: BTreeMap<String, String>,
    /// Whether all links are meant, or only those that are known.
    pub(crate) every_link: bool,
    /// Only packets from or to these are meant; empty: all.
    pub(crate) hosts: Vec<IpAddr>,
    /// Its own address, where it has one: that of IPv4, unless one of the other family was named.
    pub(crate) address: Option<IpAddr>,
    /// Its own address of IPv6.
    #[serde(default)]
    pub(crate) address_v6: Option<IpAddr>,
    /// The machine that it is, or runs on, by id.
    pub(crate) machine: Option<ArmId>,
    /// The first process of that machine, where it has file systems of its own.
    #[serde(default)]
    pub(crate) first_process: Option<i32>,
}

/// Finds places in a region.
pub(crate) struct Finder<'a> {
    pub(crate) lab: &'a str,
    pub(crate) region: &'a Region,
    /// Where the pods `[CLUSTER:]NAMESPACE/NAME` run.
    pub(crate) pods: &'a dyn Fn(&str) -> Vec<PodAt>,
}

/// How the kinds are written, in the order in which a bare name is looked for.
const KINDS: [&str; 7] = ["vm", "node", "vnet", "lb", "nic", "gateway", "pod"];
/// The kinds of what runs programs.
const HOSTS: [&str; 3] = ["vm", "node", "pod"];
/// Machines and clusters that are watched when it is not said who gets a probe.
const MAX_WATCHED: usize = 64;
/// Names that an error lists at most.
const MAX_LISTED: usize = 12;

impl Finder<'_> {
    /// The place that `text` names: `KIND/NAME`, `internet`, an address, or a name that only one thing has.
    pub(crate) fn find(&self, text: &str) -> Result<Place, String> {
        if text == "internet" {
            return Ok(self.internet());
        }
        if let Ok(address) = text.parse() {
            return self.at_address(address);
        }
        self.among(&KINDS, text)
    }

    /// The VM, node or pod that `text` names, as [`Finder::find`] does, or the internet: where programs can run.
    pub(crate) fn find_host(&self, text: &str) -> Result<Place, String> {
        if text == "internet" {
            return Ok(self.internet());
        }
        self.among(&HOSTS, text)
    }

    /// What has this name, `KIND/NAME` or alone, among things of these kinds.
    fn among(&self, kinds: &[&str], text: &str) -> Result<Place, String> {
        let (kind, name) = text.split_once('/').unwrap_or(("", text));
        if kinds.contains(&kind) {
            return self.of_kind(kind, name);
        }
        let mut found: Vec<Place> = Vec::new();
        for kind in kinds.iter().copied() {
            // Where a machine has a name, its NIC's is only another word for it.
            let is_new = |place: &Place| !(kind == "nic" && has_machine(&found, place));
            let places = self.all_of(kind, text)?;
            let places: Vec<Place> = places.into_iter().filter(is_new).collect();
            found.extend(places);
        }
        match found.len() {
            0 => Err(self.unknown(kinds, text)),
            1 => Ok(found.remove(0)),
            _ => {
                let names: Vec<&str> = found.iter().map(|place| place.name.as_str()).collect();
                // The same name in several groups, or names of several kinds.
                let one = names.first().filter(|one| names.iter().all(|name| name == *one));
                let which = one.and_then(|one| one.split_once('/')).map_or_else(
                    || "which".to_owned(),
                    |(kind, name)| format!("{kind}/GROUP:{name}"),
                );
                Err(format!("`{text}` is several things: {}; say {which}", names.join(", ")))
            }
        }
    }

    /// Every namespace that a packet between two places may pass, each once: both ends with their nodes, all
    /// virtual networks, who forwards, the internet; and where it is not said who gets it, all machines.
    pub(crate) fn between(&self, from: &Place, to: &Place) -> Vec<Place> {
        let machines = self.region.machines.values();
        let may_be_any = to.machine.is_none();
        // A node may send what it gets for a service on to any other.
        let is_node = |machine: &&Machine| self.machine(machine).address == to.address;
        let node = to.machine.as_ref().and_then(|id| self.region.machines.get(id));
        let cluster =
            node.map(|it| &**it).filter(is_node).and_then(Machine::node).map(|it| &it.cluster);
        let mut others = 0;
        let wanted = machines.filter(|machine| {
            let is_end = [&from.machine, &to.machine].contains(&&Some(machine.meta.id.clone()));
            let nic = self.region.nics.get(&machine.nic);
            let forwards =
                matches!(machine.role, Role::Vm) && nic.is_some_and(|it| it.ip_forwarding);
            let is_peer = machine.node().is_some_and(|node| cluster == Some(&node.cluster));
            others += usize::from(may_be_any || is_peer);
            is_end || forwards || ((may_be_any || is_peer) && others <= MAX_WATCHED)
        });
        let mut places: Vec<Place> = wanted.map(|machine| self.machine(machine)).collect();
        places.extend(self.region.vnets.values().map(|vnet| self.vnet(vnet)));
        places.push(self.internet());
        for cluster in self.region.clusters.keys().take(MAX_WATCHED) {
            let name = format!("control plane of {}", cluster.name());
            places.push(Self::place(name, &names::control_plane_ns(self.lab, cluster)));
        }
        // A pod's namespace has no name of the lab's.
        for end in [to, from] {
            if !places.iter().any(|place| place.netns == end.netns) {
                places.insert(0, end.clone());
            }
        }
        for place in &mut places {
            place.every_link = true;
        }
        places
    }

    fn of_kind(&self, kind: &str, name: &str) -> Result<Place, String> {
        let mut found = self.all_of(kind, name)?;
        match found.len() {
            0 => Err(self.unknown_of_kind(kind, name)),
            1 => Ok(found.remove(0)),
            _ => {
                let names: Vec<&str> = found.iter().map(|place| place.name.as_str()).collect();
                Err(format!(
                    "there are several: {}; say {kind}/GROUP:{}",
                    names.join(", "),
                    plain(name)
                ))
            }
        }
    }

    /// Everything of this kind that has this name: `[GROUP:]NAME`, and for pods `[CLUSTER:]NAMESPACE/NAME`.
    fn all_of(&self, kind: &str, name: &str) -> Result<Vec<Place>, String> {
        let is_meant = |id: &ArmId| is_meant(id, name);
        Ok(match kind {
            "vm" | "node" => {
                let wanted = self.region.machines.values().filter(|machine| {
                    let fits = match &machine.role {
                        Role::Vm => kind == "vm" && is_meant(&machine.meta.id),
                        Role::Node(_) => kind == "node",
                    };
                    fits && (is_meant(&machine.meta.id) || has_hostname(machine, name))
                });
                wanted.map(|machine| self.machine(machine)).collect()
            }
            "vnet" => {
                let wanted = self.region.vnets.values().filter(|vnet| is_meant(&vnet.meta.id));
                wanted.map(|vnet| self.vnet(vnet)).collect()
            }
            "lb" => {
                let all = self.region.balancers.values();
                let wanted = all.filter(|balancer| is_meant(&balancer.meta.id));
                wanted.map(|balancer| self.balancer(balancer)).collect::<Result<_, _>>()?
            }
            "nic" => {
                let wanted = self.region.nics.values().filter(|nic| is_meant(&nic.meta.id));
                wanted.filter_map(|nic| self.nic(nic)).collect()
            }
            "gateway" => self.gateways(name)?,
            "pod" => self.pods_named(name),
            _ => Vec::new(),
        })
    }

    fn internet(&self) -> Place {
        Self::place("internet".to_owned(), &names::internet_ns(self.lab))
    }

    /// All links of a namespace.
    fn place(name: String, namespace: &str) -> Place {
        Place {
            name,
            netns: netns::path(namespace).display().to_string(),
            links: BTreeMap::new(),
            every_link: true,
            hosts: Vec::new(),
            address: None,
            address_v6: None,
            machine: None,
            first_process: None,
        }
    }

    /// A VM's or node's own link.
    pub(crate) fn machine(&self, machine: &Machine) -> Place {
        let mut place = Self::place(machine_name(machine), &names::machine_ns(self.lab, machine));
        let nic = self.region.nics.get(&machine.nic);
        place.links.insert(names::ETH0.to_owned(), String::new());
        place.every_link = false;
        place.address = nic.and_then(|nic| nic.address_of(Family::V4));
        place.address_v6 = nic.and_then(|nic| nic.address_of(Family::V6));
        place.machine = Some(machine.meta.id.clone());
        place
    }

    /// All links of a virtual network, with who is behind each.
    pub(crate) fn vnet(&self, vnet: &Vnet) -> Place {
        let name = format!("vnet/{}", vnet.meta.id.name());
        let mut place = Self::place(name, &names::vnet_ns(self.lab, &vnet.meta.id));
        place.links = self.ports(&vnet.meta.id);
        place
    }

    /// Who is behind each link of a virtual network.
    fn ports(&self, vnet: &ArmId) -> BTreeMap<String, String> {
        let nics = self.region.nics.values().filter(|nic| nic.vnet().as_ref() == Some(vnet));
        let mut ports: BTreeMap<String, String> =
            nics.filter_map(|nic| Some((names::port(&nic.meta.id), self.behind(nic)?))).collect();
        ports.insert(names::UPLINK.to_owned(), "internet".to_owned());
        let peerings = self.region.vnets.get(vnet).into_iter().flat_map(|it| it.peerings.values());
        for remote in peerings.map(|peering| &peering.remote) {
            ports.insert(names::peer(remote), format!("peering with {}", remote.name()));
        }
        for cluster in self.region.clusters.values().filter(|cluster| cluster.vnet == *vnet) {
            let name = format!("control plane of {}", cluster.meta.id.name());
            ports.insert(names::control_port(&cluster.meta.id), name);
        }
        ports
    }

    fn behind(&self, nic: &Nic) -> Option<String> {
        let machine = self.region.machines.get(nic.machine.as_ref()?)?;
        Some(machine_name(machine))
    }

    /// A NIC's port, seen from the virtual network: behind it the machine, before it every gate.
    fn nic(&self, nic: &Nic) -> Option<Place> {
        let machine = self.region.machines.get(nic.machine.as_ref()?)?;
        let namespace = names::vnet_ns(self.lab, &nic.vnet()?);
        let mut place = Self::place(format!("nic/{}", nic.meta.id.name()), &namespace);
        place.links.insert(names::port(&nic.meta.id), machine_name(machine));
        place.every_link = false;
        place.address = nic.address_of(Family::V4);
        place.address_v6 = nic.address_of(Family::V6);
        place.machine = Some(machine.meta.id.clone());
        Some(place)
    }

    /// The ports of all NICs in a subnet: what its gateway routes.
    fn gateways(&self, name: &str) -> Result<Vec<Place>, String> {
        let Some((vnet_name, subnet_name)) = name.split_once('/') else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for vnet in self.region.vnets.values().filter(|it| is_meant(&it.meta.id, vnet_name)) {
            let subnets = vnet.subnets.values();
            for subnet in subnets.filter(|it| it.name.as_str().eq_ignore_ascii_case(subnet_name)) {
                let name = format!("gateway/{}/{}", vnet.meta.id.name(), subnet.name.as_str());
                let id = vnet.meta.id.child("subnets", subnet.name.as_str());
                let mut place = Self::place(name, &names::vnet_ns(self.lab, &vnet.meta.id));
                for nic in self.region.nics.values() {
                    if nic.configs.iter().any(|config| config.subnet == id)
                        && let Some(machine) = self.behind(nic)
                    {
                        place.links.insert(names::port(&nic.meta.id), machine);
                    }
                }
                if place.links.is_empty() {
                    return Err(format!(
                        "subnet {} has no machine, so nothing passes its gateway",
                        place.name.trim_start_matches("gateway/")
                    ));
                }
                place.every_link = false;
                place.address = subnet.prefix.nth(1).map(IpAddr::from);
                place.address_v6 = subnet.prefix_of(Family::V6).and_then(|prefix| prefix.nth(1));
                found.push(place);
            }
        }
        Ok(found)
    }

    /// What a load balancer gets and gives, where it acts: packets of its front ends and, once translated, of its members.
    fn balancer(&self, balancer: &LoadBalancer) -> Result<Place, String> {
        let id = &balancer.meta.id;
        let mut vnet = None;
        let mut hosts = Vec::new();
        for frontend in balancer.frontends.values() {
            match frontend {
                Frontend::Internal { subnet, address, .. } => {
                    vnet = vnet.or_else(|| subnet.parent());
                    hosts.push(*address);
                }
                Frontend::Public { public_ip } => {
                    let public = self.region.public_ips.get(public_ip);
                    hosts.extend(public.map(|public| public.address));
                }
                // Nobody sends anything there but answers.
                Frontend::Prefix { .. } => {}
            }
        }
        let mut members = balancer.pools.values().flat_map(|pool| &pool.members);
        let of_member = || members.find_map(|member| self.region.nics.get(member)?.vnet());
        let vnet = vnet.or_else(of_member).and_then(|id| self.region.vnets.get(&id));
        let Some(vnet) = vnet else {
            return Err(format!(
                "load balancer `{}` has no member yet, so it acts nowhere",
                id.name()
            ));
        };
        let namespace = names::vnet_ns(self.lab, &vnet.meta.id);
        let mut place = Self::place(format!("lb/{}", id.name()), &namespace);
        let first = |family| hosts.iter().copied().find(|host| Family::of(*host) == family);
        place.address = first(Family::V4).or(first(Family::V6));
        place.address_v6 = first(Family::V6);
        place.links = self.ports(&vnet.meta.id);
        place.hosts = hosts;
        Ok(place)
    }

    fn pods_named(&self, name: &str) -> Vec<Place> {
        let found = (self.pods)(name);
        let is_one = found.len() == 1;
        let place = |pod: PodAt| {
            // As it was asked for; of several, what tells them apart.
            let name =
                if is_one { name.to_owned() } else { format!("{}:{name}", pod.cluster.name()) };
            let mut place = Self::place(format!("pod/{name}"), "");
            let namespace = Netns::at(&pod.netns, &name).ok();
            let addresses = namespace.and_then(|it| linux::net::addresses_of(&it).ok());
            let (four, six) = addresses.unwrap_or_default();
            place.netns = pod.netns.display().to_string();
            place.address = four.map(IpAddr::from);
            place.address_v6 = six.map(IpAddr::from);
            place.machine = Some(pod.node);
            place
        };
        found.into_iter().map(place).collect()
    }

    /// Where the packets of an address pass: at who has it.
    fn at_address(&self, address: IpAddr) -> Result<Place, String> {
        let mut place = if let Some(machine) = self.machine_of(address) {
            let mut place = self.machine(machine);
            // A pod's packets pass links of the node that are not its eth0.
            if ![place.address, place.address_v6].contains(&Some(address)) {
                place.every_link = true;
            }
            place
        } else if let Some(balancer) = self.region.balancers.values().find(|balancer| {
            let place = self.balancer(balancer);
            place.is_ok_and(|place| place.hosts.contains(&address))
        }) {
            self.balancer(balancer)?
        } else if let Some(vnet) = self
            .region
            .vnets
            .values()
            .find(|vnet| vnet.prefixes.iter().any(|prefix| prefix.contains(address)))
        {
            self.vnet(vnet)
        } else {
            self.internet()
        };
        place.name = format!("{address} ({})", place.name);
        place.hosts = vec![address];
        place.address = Some(address);
        place.address_v6 = Some(address).filter(IpAddr::is_ipv6);
        Ok(place)
    }

    /// The machine that has an address, or that a pod with this address is on: the first of several, since overlay
    /// clusters may have the same.
    fn machine_of(&self, address: IpAddr) -> Option<&Machine> {
        let of_nic = |nic: &Nic| nic.configs.iter().any(|config| config.address == address);
        let nic = self.region.nics.values().find(|nic| of_nic(nic) && nic.machine.is_some());
        let by_nic = nic.and_then(|nic| nic.machine.clone());
        let by_range = || {
            self.region.machines.values().find_map(|machine| {
                let node = machine.node()?;
                let mut ranges = node.pod_ranges().into_iter();
                ranges.any(|range| range.contains(address)).then(|| machine.meta.id.clone())
            })
        };
        let by_batch = || {
            let mut subnets = self.region.vnets.values().flat_map(|vnet| vnet.subnets.values());
            subnets.find_map(|subnet| match subnet.held.get(&address)? {
                Holder::PodBatch { node } => Some(node.clone()),
                Holder::IpConfiguration { .. } | Holder::Frontend { .. } => None,
            })
        };
        let id = by_nic.or_else(by_batch).or_else(by_range)?;
        self.region.machines.get(&id).map(|machine| &**machine)
    }

    fn unknown(&self, kinds: &[&str], text: &str) -> String {
        let names =
            kinds.iter().flat_map(|kind| self.names_of(kind)).chain(["internet".to_owned()]);
        let what = if kinds == HOSTS { "no VM, node or pod" } else { "nothing here" };
        format!(
            "{what} is called `{text}`; there {}; a pod is [CLUSTER:]NAMESPACE/NAME, or [CLUSTER:]NAME of `aksnet pod list`",
            listing(names)
        )
    }

    fn unknown_of_kind(&self, kind: &str, name: &str) -> String {
        let how = match kind {
            "pod" => {
                "; a pod is pod/[CLUSTER:]NAMESPACE/NAME, and `kubectl get pods -A` lists them"
                    .to_owned()
            }
            "gateway" => format!(
                "; a subnet's gateway is gateway/VNET/SUBNET; there {}",
                listing(self.names_of(kind))
            ),
            _ => format!("; there {}", listing(self.names_of(kind))),
        };
        format!("there is no {kind} `{name}`{how}")
    }

    fn names_of(&self, kind: &str) -> Vec<String> {
        let region = self.region;
        let named = |id: &ArmId| format!("{kind}/{}", id.name());
        match kind {
            "vm" | "node" => {
                let is_vm = |machine: &Machine| matches!(machine.role, Role::Vm);
                let machines = region.machines.values().filter(|it| is_vm(it) == (kind == "vm"));
                machines.map(|machine| machine_name(machine)).collect()
            }
            "vnet" => region.vnets.keys().map(named).collect(),
            "lb" => region.balancers.keys().map(named).collect(),
            "nic" => region.nics.keys().map(named).collect(),
            "gateway" => region
                .vnets
                .values()
                .flat_map(|vnet| {
                    let subnets = vnet.subnets.values();
                    subnets.map(|it| format!("{}/{}", named(&vnet.meta.id), it.name.as_str()))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn machine_name(machine: &Machine) -> String {
    match &machine.role {
        Role::Vm => format!("vm/{}", machine.meta.id.name()),
        Role::Node(_) => format!("node/{}", machine.hostname),
    }
}

/// Whether `[GROUP:]NAME` means this resource.
fn is_meant(id: &ArmId, text: &str) -> bool {
    is_in_group(id, text) && id.name().eq_ignore_ascii_case(plain(text))
}

/// Whether `[GROUP:]HOSTNAME` means this machine.
fn has_hostname(machine: &Machine, text: &str) -> bool {
    is_in_group(&machine.meta.id, text) && machine.hostname == plain(text)
}

/// Whether the resource is in the group of `[GROUP:]NAME`, if it names one.
fn is_in_group(id: &ArmId, text: &str) -> bool {
    text.split_once(':').is_none_or(|(group, _)| id.resource_group().eq_ignore_ascii_case(group))
}

/// The name without its group.
fn plain(text: &str) -> &str {
    text.split_once(':').map_or(text, |(_, name)| name)
}

fn has_machine(found: &[Place], place: &Place) -> bool {
    found.iter().any(|other| other.machine.is_some() && other.machine == place.machine)
}

fn listing(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    match names.len() {
        0 => "is none".to_owned(),
        n if n <= MAX_LISTED => format!("are {}", names.join(", ")),
        n => format!("are {} and {} more", names[..MAX_LISTED].join(", "), n - MAX_LISTED),
    }
}

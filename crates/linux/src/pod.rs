//! A pod's veth pair: made, verified, retired, reaped. Not here: who gets which address, and when.
//!
//! *Expected flow.* [`Wirer::wire`] makes the pair with the pod's end in the pod's namespace already,
//! then sends two batches, one into each namespace. [`Wirer::retire`] takes the route away and puts
//! the link into [`DEAD_GROUP`]; [`Wirer::reap`] deletes that whole group at once, because a deletion
//! costs the kernel 16 to 30 ms however many links it is of.
//!
//! *Guarantees.* A pod that could not be wired has left no link. Only links in [`GROUP`] and
//! [`DEAD_GROUP`] are ever deleted.
//!
//! *Assumptions.* Nobody else uses these groups. One thread does not wire two pods at once; as many
//! threads as one likes do.
//!
//! *Caveats.* For a moment the calling thread is in the pod's namespace. It is made for that: it must
//! not be one that an async runtime gives to others.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path as FilePath, PathBuf},
};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressProtocol},
    link::{
        InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::NeighbourAttribute,
    route::{RouteMessage, RouteProtocol},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::{
        stat::Mode,
        statfs::{FsType, fstatfs},
    },
};
use vnet::{
    addr::{Family, Mac, Prefix},
    pods::wiring::{Bridge, Path, Wiring},
};

use crate::{
    LinuxError,
    alias::Alias,
    net::{
        Netlink, Request,
        wire::{self, RouteTo, VethEnd},
    },
    netfilter::elements::Nfnetlink,
    netns::Netns,
};

pub mod bandwidth;
pub mod bridging;
mod mend;
mod ports;
mod shortcut;
pub mod verify;

/// The interface group of links that pods use.
pub const GROUP: u32 = 0x0a5e;
/// The interface group of links that are about to be deleted.
pub const DEAD_GROUP: u32 = 0x0a5d;

/// The protocol number of pods' addresses and routes: another than the fabric's
/// ([`wire::PROTOCOL`]), which takes away what carries its own number and is not in its plan.
pub const PROTOCOL: u8 = 198;

const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;
const LOOPBACK_INDEX: u32 = 1;
/// The file system that namespaces are files of (`NSFS_MAGIC`, linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);

/// Why a pod could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The path leads to nothing, or to something else.
    #[error("`{}` is not a network namespace", path.display())]
    NotNamespace {
        /// The path.
        path: PathBuf,
    },
    /// Wiring a node to itself would take its network away.
    #[error("`{}` is the node's own network namespace", path.display())]
    OwnNamespace {
        /// The path.
        path: PathBuf,
    },
    /// The container has an interface of that name, which is not ours to change.
    #[error("the container already has an interface `{interface}`")]
    InterfaceExists {
        /// Its name.
        interface: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Linux(#[from] LinuxError),
}

/// A pod's network namespace, open. It stays alive while this value does, so keep it for one request.
#[derive(Debug)]
pub struct Sandbox {
    file: OwnedFd,
    id: u64,
    path: PathBuf,
}

impl Sandbox {
    /// Opens the namespace at `path`, which nobody has looked at yet: it may be anything.
    pub fn open(path: &FilePath) -> Result<Self, PodError> {
        let other = || PodError::NotNamespace { path: path.to_owned() };
        // By path only at first: opening a device or a FIFO can already do something.
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let found = open(path, flags, Mode::empty()).map_err(|_| other())?;
        let is_namespace = fstatfs(&found).is_ok_and(|stat| stat.filesystem_type() == NSFS);
        let proc = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        if !is_namespace {
            return Err(other());
        }
        let file = std::fs::File::open(&proc).map_err(|_| other())?;
        // Whether it is one of a network, the kernel says at the first use (`EINVAL`).
        let id = file.metadata().map(|metadata| metadata.ino()).map_err(|_| other())?;
        Ok(Self { file: file.into(), id, path: path.to_owned() })
    }

    /// The namespace's number, the same for every path to it, for as long as it lives.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// A link of a pod, as the node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it is in [`DEAD_GROUP`].
    pub is_dead: bool,
}

/// Wires pods to the node whose namespace the thread that made it was in.
pub struct Wirer {
    node: Netlink,
    namespace: Netns,
    id: u64,
    nftables: Option<Nfnetlink>,
    frames: Option<Nfnetlink>,
}

impl Wirer {
    /// A wirer for the calling thread, which must be the only one to use it.
    pub fn new() -> Result<Self, LinuxError> {
        let namespace = Netns::current()?;
        let path = FilePath::new("/proc/thread-self/ns/net");
        let id = std::fs::metadata(path).map(|metadata| metadata.ino()).map_err(|source| {
            LinuxError::File { verb: "reading", path: path.to_owned(), source }
        })?;
        Ok(Self { node: Netlink::open()?, namespace, id, nftables: None, frames: None })
    }

    /// Makes the pair and everything that leads through it.
    pub fn wire(
        &mut self,
        sandbox: &Sandbox,
        interface: &str,
        wiring: &Wiring,
    ) -> Result<(), PodError> {
        if sandbox.id == self.id {
            return Err(PodError::OwnNamespace { path: sandbox.path.clone() });
        }
        self.make_pair(sandbox, interface, wiring)?;
        let wired = self.connect(sandbox, interface, wiring);
        if wired.is_err() {
            // Best effort: the caller's error is the one that matters, and what is left over is in
            // our group, where the agent finds it.
            let _ = self.delete(&wiring.host_link);
        }
        wired
    }

    fn make_pair(
        &mut self,
        sandbox: &Sandbox,
        interface: &str,
        wiring: &Wiring,
    ) -> Result<(), PodError> {
        let name = &wiring.host_link;
        let end = VethEnd {
            name,
            mac: Some(wiring.host_mac),
            mtu: wiring.mtu,
            namespace: None,
            up: true,
            group: GROUP,
        };
        let peer = VethEnd {
            name: interface,
            mac: Some(wiring.pod_mac),
            mtu: wiring.mtu,
            namespace: Some(sandbox.file.as_fd()),
            up: false,
            group: 0,
        };
        let mut message = wire::new_veth(end, peer);
        let bridge = wiring.path.bridge().map(index).transpose()?;
        if let (RouteNetlinkMessage::NewLink(link), Some(bridge)) = (&mut message, bridge) {
            link.attributes.push(LinkAttribute::Controller(bridge));
        }
        let set = match &wiring.path {
            Path::Routed => RouteNetlinkMessage::SetLink(proxy_arp(name)),
            Path::Bridged(_) | Path::Switched(_) => RouteNetlinkMessage::NewLink(hairpin(name)),
        };
        let requests = [
            Request::create(message, format!("add link {name} with peer {interface}")),
            Request::change(set, format!("set link {name}")),
        ];
        match self.node.send_all(&requests) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // Both ends have names: which one is it?
                if index(name).is_ok() {
                    return Err(error.into());
                }
                Err(PodError::InterfaceExists { interface: interface.to_owned() })
            }
            other => Ok(other?),
        }
    }

    fn connect(
        &mut self,
        sandbox: &Sandbox,
        interface: &str,
        wiring: &Wiring,
    ) -> Result<(), PodError> {
        let (mut pod, pod_index) = self.inside(sandbox, || {
            if wiring.address_v6.is_some() {
                quiet_v6(interface)?;
            }
            Ok::<_, LinuxError>((Netlink::open(), index(interface)))
        })??;
        let (pod, pod_index) = (pod.as_mut().map_err(|_| no_socket())?, pod_index?);
        pod.send_all(&inside_requests(pod_index, wiring))?;
        let link = index(&wiring.host_link)?;
        // The node's end has its carrier since the pod's is up, but sends nothing until the kernel's watch of carriers
        // has found time for it: what is sent until then is lost. A look at the link does that work at once (net/core:
        // `rtnl_getlink` calls `linkwatch_sync_dev`, since Linux 6.9).
        let look = RouteNetlinkMessage::GetLink(wire::link(link));
        let mut requests =
            vec![Request::change(look, format!("look at link {}", wiring.host_link))];
        if matches!(wiring.path, Path::Routed) {
            for address in wiring.addresses() {
                let host = Prefix::host(address);
                let route = RouteNetlinkMessage::NewRoute(route(host, RouteTo::Link(link)));
                let what = format!("add route {host} dev {}", wiring.host_link);
                // Permanent, like the pod's own: what is learned counts against a limit of the whole machine
                // (`gc_thresh3`, 1,024), and thousands of pods would make each other unreachable.
                let neighbour = new_neighbour(link, address, wiring.pod_mac);
                requests.push(Request::replace(route, what));
                requests.push(Request::replace(neighbour, format!("add neighbour {address}")));
            }
        }
        if let Some((link, address)) = bridged_v6(wiring) {
            let neighbour = new_neighbour(link, address, wiring.pod_mac);
            requests.push(Request::replace(neighbour, format!("add neighbour {address}")));
        }
        Ok(self.node.send_all(&requests)?)
    }

    /// Takes a pod's route away and marks its link for [`Wirer::reap`]. What is gone is fine.
    pub fn retire(&mut self, wiring: &Wiring) -> Result<(), LinuxError> {
        // On a bridge it outlives the pod's link.
        let bridged = bridged_v6(wiring).map(|(link, address)| {
            let neighbour = wire::delete_neighbour(link, address, wiring.pod_mac);
            Request::change(neighbour, format!("delete neighbour {address}"))
        });
        let Ok(link) = index(&wiring.host_link) else {
            self.send_whatever_is_gone(&bridged.into_iter().collect::<Vec<_>>())?;
            return self.retire_limiter(wiring);
        };
        let group = wire::link_set(link, vec![LinkAttribute::Group(DEAD_GROUP)]);
        let group = Request::change(group, format!("set link {} group dead", wiring.host_link));
        let mut requests = Vec::with_capacity(3);
        requests.extend(bridged);
        if matches!(wiring.path, Path::Routed) {
            for host in wiring.addresses().map(Prefix::host) {
                let route = RouteNetlinkMessage::DelRoute(route(host, RouteTo::Link(link)));
                requests.push(Request::change(route, format!("delete route {host}")));
            }
        }
        requests.push(group);
        self.send_whatever_is_gone(&requests)?;
        self.retire_limiter(wiring)
    }

    /// Sends requests to take things away, some of which may be gone.
    fn send_whatever_is_gone(&mut self, requests: &[Request]) -> Result<(), LinuxError> {
        if requests.is_empty() {
            return Ok(());
        }
        for outcome in self.node.send_batch(requests)? {
            match outcome {
                Err(error) if is_gone(&error) => (),
                other => other?,
            }
        }
        Ok(())
    }

    /// The link that a limited pod's packets were led through outlives the pair.
    fn retire_limiter(&mut self, wiring: &Wiring) -> Result<(), LinuxError> {
        let name = bandwidth::limiter(&wiring.host_link);
        match index(&name) {
            Ok(index) => self.retire_link(&PodLink { name, index, is_dead: false }),
            Err(_) => Ok(()),
        }
    }

    /// Deletes every link that was retired, all at once. None is fine.
    pub fn reap(&mut self) -> Result<(), LinuxError> {
        let request = Request::change(wire::group_delete(DEAD_GROUP), "delete retired links");
        match self.node.send_all(&[request]) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// Marks a link that no pod has for [`Wirer::reap`].
    pub fn retire_link(&mut self, link: &PodLink) -> Result<(), LinuxError> {
        let group = wire::link_set(link.index, vec![LinkAttribute::Group(DEAD_GROUP)]);
        let request = Request::change(group, format!("set link {} group dead", link.name));
        match self.node.send_all(&[request]) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// All links of pods.
    pub fn links(&mut self) -> Result<Vec<PodLink>, LinuxError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = self.node.dump(&question)?.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { return None };
            let group = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Group(group) => Some(*group),
                _ => None,
            })?;
            let name = name_of(&link)?.to_owned();
            let is_ours = group == GROUP || group == DEAD_GROUP;
            is_ours.then_some(PodLink {
                name,
                index: link.header.index,
                is_dead: group == DEAD_GROUP,
            })
        });
        Ok(links.collect())
    }

    /// Makes a bridge and gives it its address, or does nothing when it is so already.
    pub fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<(), LinuxError> {
        let name = &bridge.name;
        let message = wire::new_bridge(name, Some(bridge.mac), bridge.mtu);
        match self.node.send_all(&[Request::create(message, format!("add bridge {name}"))]) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => (),
            other => other?,
        }
        let link = index(name)?;
        let up = Request::change(wire::link_up(link, true), format!("set link {name} up"));
        let addresses = bridge.addresses().map(|(gateway, network)| {
            let address = new_address(link, gateway, network.length());
            Request::replace(address, format!("add address {gateway} dev {name}"))
        });
        self.node.send_all(&[up].into_iter().chain(addresses).collect::<Vec<_>>())
    }

    /// Deletes a pod's link and waits until it is gone. What is gone is fine.
    pub fn remove(&mut self, wiring: &Wiring) -> Result<(), LinuxError> {
        self.delete(&wiring.host_link)?;
        self.delete(&bandwidth::limiter(&wiring.host_link))
    }

    /// Lets an alias hold at the node's NIC, and says whether it does (see [`Alias::attach`]).
    pub fn alias_nic(&mut self, nic: &str, alias: &Alias) -> Result<bool, LinuxError> {
        alias.attach(&mut self.node, index(nic)?, nic)
    }

    /// The MTU of a link of the node, in bytes.
    pub fn mtu_of(&mut self, name: &str) -> Result<u32, LinuxError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mtu = self.node.dump(&question)?.into_iter().find_map(|answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { return None };
            if name_of(&link) != Some(name) {
                return None;
            }
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        });
        mtu.ok_or_else(|| LinuxError::NoLink {
            link: name.to_owned(),
            namespace: self.namespace.name().to_owned(),
        })
    }

    fn delete(&mut self, name: &str) -> Result<(), LinuxError> {
        let Ok(link) = index(name) else { return Ok(()) };
        let request = Request::change(wire::link_delete(link), format!("delete link {name}"));
        match self.node.send_all(&[request]) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// Runs `work` in the pod's namespace, on this thread.
    fn inside<T>(&self, sandbox: &Sandbox, work: impl FnOnce() -> T) -> Result<T, LinuxError> {
        setns(&sandbox.file, CloneFlags::CLONE_NEWNET).map_err(|source| LinuxError::Call {
            what: format!("entering {}", sandbox.path.display()),
            source,
        })?;
        let result = work();
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)
            .expect("a thread can go back to the namespace that it came from");
        Ok(result)
    }
}

/// What makes the pod's own end usable: one batch.
fn inside_requests(link: u32, wiring: &Wiring) -> Vec<Request> {
    let mut requests = vec![Request::change(wire::link_up(LOOPBACK_INDEX, true), "set link lo up")];
    requests.extend(wiring.legs().map(|leg| {
        let address = new_address(link, leg.address, leg.length);
        Request::replace(address, format!("add address {}/{}", leg.address, leg.length))
    }));
    requests.push(Request::change(wire::link_up(link, true), "set the pod's link up"));
    for leg in wiring.legs() {
        let gateway = leg.gateway;
        if leg.address.is_ipv6() {
            // The kernel makes its own a moment later, from a work queue that has to find time: a pod would not hear
            // the answers to its first packets.
            let host = Prefix::host(leg.address);
            let mut local = wire::route(LOCAL_TABLE, host, RouteTo::Local(link));
            local.header.protocol = RouteProtocol::from(PROTOCOL);
            let local = RouteNetlinkMessage::NewRoute(local);
            requests.push(Request::replace(local, format!("add local route {host}")));
        }
        match &wiring.path {
            Path::Routed => {
                let host = Prefix::host(gateway);
                let on_link = RouteNetlinkMessage::NewRoute(route(host, RouteTo::Link(link)));
                let neighbour = new_neighbour(link, gateway, wiring.host_mac);
                requests.push(Request::replace(on_link, format!("add route {host}")));
                requests.push(Request::replace(neighbour, format!("add neighbour {gateway}")));
            }
            Path::Bridged(bridge) if leg.address.is_ipv6() => {
                let neighbour = new_neighbour(link, gateway, bridge.mac);
                requests.push(Request::replace(neighbour, format!("add neighbour {gateway}")));
            }
            Path::Bridged(_) | Path::Switched(_) => {}
        }
        let everywhere = Prefix::everything(Family::of(leg.address));
        let default = RouteNetlinkMessage::NewRoute(route(everywhere, RouteTo::Via(link, gateway)));
        requests.push(Request::replace(default, format!("add default route via {gateway}")));
    }
    requests
}

/// The bridge's index and the pod's address of IPv6, of a pod that has both: the node knows it by a permanent neighbour.
fn bridged_v6(wiring: &Wiring) -> Option<(u32, Ipv6Addr)> {
    match &wiring.path {
        Path::Bridged(bridge) => Some((index(&bridge.name).ok()?, wiring.address_v6?)),
        Path::Routed | Path::Switched(_) => None,
    }
}

/// Switches IPv6 on at a pod's link, before it is up, with nothing but what it is told: no router is believed, and no
/// address waits until nobody else has it (`accept_dad`).
fn quiet_v6(interface: &str) -> Result<(), LinuxError> {
    for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")] {
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"));
        std::fs::write(&path, value).map_err(|source| LinuxError::File {
            verb: "writing",
            path,
            source,
        })?;
    }
    Ok(())
}

fn route(prefix: Prefix, to: RouteTo) -> RouteMessage {
    let mut message = wire::route(MAIN_TABLE, prefix, to);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message
}

/// A permanent neighbour. With the fabric's number it would be the fabric's, to take away.
fn new_neighbour(link: u32, address: impl Into<IpAddr>, mac: Mac) -> RouteNetlinkMessage {
    let mut message = wire::neighbour(link, address, mac);
    message.attributes.retain(|one| !matches!(one, NeighbourAttribute::Protocol(_)));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    RouteNetlinkMessage::NewNeighbour(message)
}

fn new_address(link: u32, address: IpAddr, length: u8) -> RouteNetlinkMessage {
    let mut message = wire::address(link, address, length);
    message.attributes.retain(|one| !matches!(one, AddressAttribute::Protocol(_)));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(PROTOCOL)));
    RouteNetlinkMessage::NewAddress(message)
}

/// `net.ipv4.conf.LINK.proxy_arp = 1`: a pod that has lost its neighbour entry still finds the node.
fn proxy_arp(name: &str) -> LinkMessage {
    /// `NLA_F_NESTED` (linux/netlink.h).
    const NESTED: u16 = 0x8000;
    /// `IFLA_AF_SPEC`, `AF_INET` in it, `IFLA_INET_CONF` in that (`linux/if_link.h`).
    const AF_SPEC: u16 = NESTED + 26;
    const AF_INET: u16 = NESTED + 2;
    const INET_CONF: u16 = NESTED + 1;
    /// `IPV4_DEVCONF_PROXY_ARP` (linux/ip.h).
    const PROXY_ARP: u16 = 3;
    let nest = |kind: u16, content: Vec<u8>| {
        let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(content);
        bytes
    };
    let on = nest(PROXY_ARP, 1_u32.to_ne_bytes().to_vec());
    let spec = nest(AF_INET, nest(INET_CONF, on));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Other(DefaultNla::new(AF_SPEC, spec)),
    ];
    message
}

/// Lets a bridge send a frame back to the port it came from: a pod that calls a service and is
/// itself chosen needs that.
fn hairpin(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    message
}

/// The index of a link in the calling thread's namespace.
fn index(name: &str) -> Result<u32, LinuxError> {
    if_nametoindex(name).map_err(|_| LinuxError::NoLink {
        link: name.to_owned(),
        namespace: "(current)".to_owned(),
    })
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

fn is_gone(error: &LinuxError) -> bool {
    matches!(error.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::ENXIO))
}

fn no_socket() -> LinuxError {
    LinuxError::Answer { text: "no netlink socket in the pod's namespace".to_owned() }
}

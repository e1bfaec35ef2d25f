//! How a pod is connected to its node. Not here: the kernel, which is `linux::pod`'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use uuid::Uuid;

use crate::{
    addr::{Mac, Prefix, Prefix4, Prefix6},
    pods::{PodNetwork, pool::companion},
};

/// The gateway of routed pods: no host has it, the pod finds the node behind it by a fixed
/// neighbour entry (azure-vnet, transparent mode).
pub const ROUTED_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6 (Azure/azure-container-networking, `network/transparent_endpointclient_linux.go`:
/// `virtualv6GwString`).
pub const ROUTED_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);
/// The node's end of every routed pod (azure-vnet: a constant).
pub const ROUTED_HOST_MAC: Mac = Mac([0xaa; 6]);
/// The bridge of kubenet.
pub const BRIDGE: &str = "cbr0";
/// The bridge of azure-vnet's mode `bridge` (Azure/azure-container-networking, `cni/network`).
pub const NODE_BRIDGE: &str = "azure0";

/// The two ends of a pod's veth pair and what leads through them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// The name of the node's end.
    pub host_link: String,
    /// The Ethernet address of the node's end.
    pub host_mac: Mac,
    /// The Ethernet address of the pod's end.
    pub pod_mac: Mac,
    /// The MTU of both, in bytes.
    pub mtu: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its address of IPv6, in dual-stack clusters.
    pub address_v6: Option<Ipv6Addr>,
    /// How packets get from one to the other.
    pub path: Path,
}

/// How packets get from pod to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The node routes: a /32 on both sides and a gateway that is only a neighbour entry.
    Routed,
    /// The node's end is a port of a bridge that owns `gateway`.
    Bridged(Bridge),
    /// The node's end is a port of a bridge that the node's NIC is a port of, too.
    Switched(Switch),
}

/// The network that a node's NIC is in, which its pods are in, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The bridge's name.
    pub bridge: String,
    /// The subnet.
    pub network: Prefix4,
    /// Its router, which is the pods' gateway.
    pub gateway: Ipv4Addr,
}

/// A bridge with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, fixed, so that it does not follow its ports.
    pub mac: Mac,
    /// Its address, which is the pods' gateway.
    pub gateway: Ipv4Addr,
    /// The network that it and its pods are in.
    pub network: Prefix4,
    /// Its address of IPv6 and the network that it and its pods are in, in dual-stack clusters.
    pub v6: Option<(Ipv6Addr, Prefix6)>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Path {
    /// The bridge that the node's end is a port of.
    #[must_use]
    pub fn bridge(&self) -> Option<&str> {
        match self {
            Self::Routed => None,
            Self::Bridged(bridge) => Some(&bridge.name),
            Self::Switched(switch) => Some(&switch.bridge),
        }
    }
}

/// One family of a pod's network: its address, and the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The pod's address.
    pub address: IpAddr,
    /// The length that it has on the pod's interface.
    pub length: u8,
    /// The next hop of the pod's default route.
    pub gateway: IpAddr,
}

impl Wiring {
    /// IPv4 first, and IPv6 where the pod has it.
    pub fn legs(&self) -> impl Iterator<Item = Leg> {
        let v4 = Leg {
            address: self.address.into(),
            length: self.prefix_length(),
            gateway: self.gateway().into(),
        };
        let v6 = self.address_v6.map(|address| {
            let (gateway, length) = match &self.path {
                Path::Routed | Path::Switched(_) | Path::Bridged(Bridge { v6: None, .. }) => {
                    (ROUTED_GATEWAY_V6, 128)
                }
                Path::Bridged(Bridge { v6: Some((gateway, network)), .. }) => {
                    (*gateway, network.length())
                }
            };
            Leg { address: address.into(), length, gateway: gateway.into() }
        });
        [Some(v4), v6].into_iter().flatten()
    }

    /// The pod's addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.legs().map(|leg| leg.address)
    }

    /// The same pod with an address of IPv6, where its node has a `block_v6` beside `block`: the one that is as far
    /// from the beginning as its other one.
    #[must_use]
    pub fn with_v6(mut self, block: Option<Prefix4>, block_v6: Option<Prefix6>) -> Self {
        if let (Some(block), Some(block_v6)) = (block, block_v6) {
            self.address_v6 = companion(block, block_v6, self.address);
            if let Path::Bridged(bridge) = self.path {
                self.path = Path::Bridged(bridge.with_v6(Some(block_v6)));
            }
        }
        self
    }

    /// The length that the pod's address has on its interface.
    #[must_use]
    pub fn prefix_length(&self) -> u8 {
        match &self.path {
            Path::Routed => 32,
            Path::Bridged(bridge) => bridge.network.length(),
            Path::Switched(switch) => switch.network.length(),
        }
    }

    /// The next hop of the pod's default route.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        match &self.path {
            Path::Routed => ROUTED_GATEWAY,
            Path::Bridged(bridge) => bridge.gateway,
            Path::Switched(switch) => switch.gateway,
        }
    }
}

impl Bridge {
    /// The same bridge with the second address of `block` of IPv6.
    #[must_use]
    pub fn with_v6(self, block: Option<Prefix6>) -> Self {
        let v6 = block.and_then(|block| Some((block.nth(1)?, block)));
        Self { v6, ..self }
    }

    /// Its addresses and the networks that they are in, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, Prefix)> {
        let v4 = (self.gateway.into(), self.network.into());
        let v6 = self.v6.map(|(gateway, network)| (gateway.into(), network.into()));
        [Some(v4), v6].into_iter().flatten()
    }
}

/// The bridge of a kubenet node whose block is `network`: `cbr0` with the first usable address.
#[must_use]
pub fn bridge(network: Prefix4, mtu: u32) -> Bridge {
    let gateway = network.nth(1).unwrap_or(network.network());
    Bridge { name: BRIDGE.to_owned(), mac: mac_of(0x0a, gateway), gateway, network, v6: None, mtu }
}

/// The bridge of a node whose NIC is in `network`: Azure's router has a subnet's first usable address.
#[must_use]
pub fn switch(network: Prefix4) -> Switch {
    let gateway = network.nth(1).unwrap_or(network.network());
    Switch { bridge: NODE_BRIDGE.to_owned(), network, gateway }
}

/// How the attachment (`container`, `interface`) with `address` is connected.
///
/// `block` is the node's block where there is one, or the subnet that its NIC is in; without it a pod can
/// only be routed.
#[must_use]
pub fn wiring(
    network: PodNetwork,
    block: Option<Prefix4>,
    attachment: (&str, &str),
    address: Ipv4Addr,
    mtu: u32,
) -> Wiring {
    let (prefix, host_mac, path) = match (network, block) {
        (PodNetwork::Kubenet, Some(block)) => {
            ("veth", mac_of(0x0e, address), Path::Bridged(bridge(block, mtu)))
        }
        (PodNetwork::NodeBridge, Some(subnet)) => {
            ("azv", mac_of(0x0e, address), Path::Switched(switch(subnet)))
        }
        (PodNetwork::Kubenet | PodNetwork::NodeBridge, None)
        | (PodNetwork::NodeSubnet | PodNetwork::PodSubnet | PodNetwork::Overlay, _) => {
            ("azv", ROUTED_HOST_MAC, Path::Routed)
        }
    };
    let host_link = host_link(prefix, attachment);
    Wiring {
        host_link,
        host_mac,
        pod_mac: mac_of(0x0a, address),
        mtu,
        address,
        address_v6: None,
        path,
    }
}

/// A name of `prefix` and 11 hexadecimal digits of a SHA-1, as azure-vnet makes it; at most the 15
/// characters that an interface's name can have.
///
/// It comes from the container's id and not from the pod's name: a `StatefulSet` starts a pod anew
/// under its old name while the old one's link may still be on its way out.
fn host_link(prefix: &str, (container, interface): (&str, &str)) -> String {
    // A version 5 UUID is a SHA-1; the first 12 of its digits are not touched by its version.
    let key = format!("{container}/{interface}");
    let digest = Uuid::new_v5(&Uuid::nil(), key.as_bytes()).simple().to_string();
    format!("{prefix}{}", &digest[..11])
}

/// A locally administered address made from `address`: the same pod address always answers with the
/// same Ethernet address, so nobody's neighbour table goes stale.
fn mac_of(first: u8, address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([first, 0x58, a, b, c, d])
}

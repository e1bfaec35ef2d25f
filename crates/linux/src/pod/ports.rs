//! Host ports of pods, as elements of the node's table (see `vnet::pods::table`).

use std::{fs, net::IpAddr};

use nix::errno::Errno;
use vnet::{
    addr::Family,
    pods::{
        ports::PortMapping,
        table::{HAIRPIN, HOST_PORTS, HOST_PORTS_AT, TABLE},
        wiring::Wiring,
    },
};

use super::Wirer;
use crate::{
    LinuxError,
    netfilter::elements::{Element, Nfnetlink},
};

impl Wirer {
    /// Leads ports of the node to a pod, all or none. Doing it again is fine.
    pub fn open_ports(&mut self, wiring: &Wiring, ports: &[PortMapping]) -> Result<(), LinuxError> {
        if ports.is_empty() {
            return Ok(());
        }
        // A process of the node that asks for 127.0.0.1 is sent to the pod with that source, until
        // postrouting masquerades it. The table's `guard` keeps others' packets with such addresses out.
        let link = wiring.path.bridge().unwrap_or(&wiring.host_link);
        let path = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
        fs::write(&path, "1").map_err(|source| LinuxError::File {
            verb: "writing",
            path: path.into(),
            source,
        })?;
        self.nftables()?.add(TABLE, &elements(wiring, ports))
    }

    /// Takes a pod's ports away. What is gone is fine.
    pub fn close_ports(
        &mut self,
        wiring: &Wiring,
        ports: &[PortMapping],
    ) -> Result<(), LinuxError> {
        if ports.is_empty() {
            return Ok(());
        }
        let nftables = self.nftables()?;
        // One by one: a batch would be refused because of one that is gone.
        for element in elements(wiring, ports) {
            match nftables.delete(TABLE, &[element]) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether all of a pod's ports lead somewhere.
    pub fn has_ports(
        &mut self,
        wiring: &Wiring,
        ports: &[PortMapping],
    ) -> Result<bool, LinuxError> {
        if ports.is_empty() {
            return Ok(true);
        }
        let nftables = self.nftables()?;
        for element in elements(wiring, ports) {
            if !nftables.has(TABLE, &element)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The socket for elements, opened when it is first needed: most nodes have no host ports.
    fn nftables(&mut self) -> Result<&mut Nfnetlink, LinuxError> {
        match &mut self.nftables {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(Nfnetlink::open()?)),
        }
    }
}

/// The elements of all families that the pod has an address of.
fn elements(wiring: &Wiring, ports: &[PortMapping]) -> Vec<Element> {
    wiring.addresses().flat_map(|address| elements_of(address, ports)).collect()
}

fn elements_of(pod: IpAddr, ports: &[PortMapping]) -> Vec<Element> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        word
    };
    let family = Family::of(pod);
    let pod = octets(pod);
    let mut elements: Vec<_> = ports
        .iter()
        .filter(|port| port.host.is_of(family))
        .map(|PortMapping { host, pod_port }| {
            let mut key = host.address.map(octets).unwrap_or_default();
            key.extend(word(&[host.transport.number()]));
            key.extend(word(&host.port.to_be_bytes()));
            let mut value = pod.clone();
            value.extend(word(&pod_port.to_be_bytes()));
            let set = if host.address.is_some() { HOST_PORTS_AT } else { HOST_PORTS };
            Element { family: family.into(), set: set.to_owned(), key, value: Some(value) }
        })
        .collect();
    if !elements.is_empty() {
        let key = [pod.as_slice(), pod.as_slice()].concat();
        elements.push(Element { family: family.into(), set: HAIRPIN.to_owned(), key, value: None });
    }
    elements
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

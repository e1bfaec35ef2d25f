//! Host ports of pods, as elements of the node's table (see `vnet::pods::table`).

use std::{fs, net::Ipv4Addr};

use nix::errno::Errno;
use vnet::pods::{
    ports::PortMapping,
    table::{HAIRPIN, HOST_PORTS, HOST_PORTS_AT, TABLE},
    wiring::Wiring,
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
        self.nftables()?.add(TABLE, &elements(wiring.address, ports))
    }

    /// Takes a pod's ports away. What is gone is fine.
    pub fn close_ports(
        &mut self,
        address: Ipv4Addr,
        ports: &[PortMapping],
    ) -> Result<(), LinuxError> {
        if ports.is_empty() {
            return Ok(());
        }
        let nftables = self.nftables()?;
        // One by one: a batch would be refused because of one that is gone.
        for element in elements(address, ports) {
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
        address: Ipv4Addr,
        ports: &[PortMapping],
    ) -> Result<bool, LinuxError> {
        if ports.is_empty() {
            return Ok(true);
        }
        let nftables = self.nftables()?;
        for element in elements(address, ports) {
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

fn elements(pod: Ipv4Addr, ports: &[PortMapping]) -> Vec<Element> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        word
    };
    let mut elements: Vec<_> = ports
        .iter()
        .map(|PortMapping { host, pod_port }| {
            let mut key = Vec::with_capacity(12);
            key.extend(host.address.map(|address| address.octets()).into_iter().flatten());
            key.extend(word(&[host.transport.number()]));
            key.extend(word(&host.port.to_be_bytes()));
            let mut value = pod.octets().to_vec();
            value.extend(word(&pod_port.to_be_bytes()));
            let set = if host.address.is_some() { HOST_PORTS_AT } else { HOST_PORTS };
            Element { set: set.to_owned(), key, value: Some(value) }
        })
        .collect();
    let key = [pod.octets(), pod.octets()].concat();
    elements.push(Element { set: HAIRPIN.to_owned(), key, value: None });
    elements
}

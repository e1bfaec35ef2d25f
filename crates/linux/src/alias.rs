//! An alias of an address at a link: TCP from the address is taken for what comes from its alias, and what leaves for the
//! alias goes to the address. It is done in eBPF (`bpf/alias.bpf.c`), so that other eBPF programs of the link, which come
//! later, see the alias; netfilter would be too late for them. Not here: why somebody wants one.

use std::{net::Ipv6Addr, os::fd::OwnedFd};

use crate::{
    LinuxError,
    bpf::{self, Direction},
    net::Netlink,
};

/// What `build.rs` has made of `bpf/alias.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/alias.bpf.o"));
const LABEL: &str = "aksnet-alias";

/// The programs for one pair of addresses, loaded.
#[derive(Debug)]
pub struct Alias {
    inwards: OwnedFd,
    outwards: OwnedFd,
}

impl Alias {
    /// Loads the programs for what comes from `address` into the kernel.
    ///
    /// # Errors
    /// When the kernel does not let the caller load programs.
    pub fn load(address: Ipv6Addr, alias: Ipv6Addr) -> Result<Self, LinuxError> {
        // `names` of the program.
        let names = [address.octets(), alias.octets()].concat();
        let (inwards, outwards) = ("alias_in", "alias_out");
        let object = bpf::load(OBJECT, &[inwards, outwards], |map| map.set_initial_value(&names))?;
        Ok(Self {
            inwards: bpf::program(&object, inwards)?,
            outwards: bpf::program(&object, outwards)?,
        })
    }

    /// Lets the alias hold at a link, before filters of priority 2 and more. A second time is fine.
    ///
    /// Says whether it holds: not where the link has a queue of another kind for what comes in.
    pub fn attach(&self, netlink: &mut Netlink, link: u32, name: &str) -> Result<bool, LinuxError> {
        let mut attach =
            |direction, program| bpf::attach(netlink, (link, name), direction, (program, LABEL));
        Ok(attach(Direction::In, &self.inwards)? && attach(Direction::Out, &self.outwards)?)
    }
}

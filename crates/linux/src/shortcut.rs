//! The shortcut of flows that a namespace's stack has let through: an eBPF program where packets come in, which sends
//! the middle of such a flow straight to the link that it leaves by. Not here: any decision (`bpf/shortcut.bpf.c`
//! says which packets take it, and who decided about them).
//!
//! *Guarantees.* It is an addition: a kernel that cannot run it, or a link without it, only is slower. Captures on
//! links, their queues and TTLs are as without it; a namespace's rules see the first and the last packets of a flow, but
//! no longer those between, and connection tracking does not count them. A program goes with the links that it is
//! attached to, whoever lives or dies.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    errno::Errno,
    time::{ClockId, clock_getres},
};
use vnet::{
    addr::{Prefix4, Prefix6},
    host::Crossing,
};

use crate::{
    LinuxError,
    bpf::{self, Direction, absent, failed, program},
    net::{
        Netlink, Request,
        traffic::{INGRESS, INGRESS_HANDLE, message},
    },
};

/// What `build.rs` has made of `bpf/shortcut.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shortcut.bpf.o"));
const LABEL: &str = "aksnet-shortcut";
/// Its map of NICs.
const NICS: &str = "nics";
/// Flows that connection tracking would forget within so many seconds take the long way once. Less than half of the
/// least time that it keeps a flow for which there is a shortcut (30 s, `nf_conntrack_udp_timeout`).
const RENEWAL_S: u64 = 10;
/// Packets between first and last are not seen by connection tracking, so it must not ask that they follow each other.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The program for the links of nodes, loaded: one serves all nodes of a process.
#[derive(Clone, Debug)]
pub struct Shortcut(Arc<OwnedFd>);

impl Shortcut {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    /// When the kernel has no type information (`/sys/kernel/btf/vmlinux`), no lookup of tracked flows
    /// (`bpf_skb_ct_lookup`, Linux 5.18), or does not let the caller load programs.
    pub fn load() -> Result<Self, LinuxError> {
        let name = "shortcut";
        Ok(Self(Arc::new(program(&load(name)?, name)?)))
    }

    /// Gives what comes in on a link the shortcut, in place of an earlier one.
    pub fn attach(&self, netlink: &mut Netlink, link: u32, name: &str) -> Result<(), LinuxError> {
        attach(netlink, link, name, &self.0)
    }
}

/// The program for the NICs of one virtual network, loaded, and what it knows of them.
#[derive(Debug)]
pub struct Crossings {
    program: OwnedFd,
    nics: MapHandle,
}

impl Crossings {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    /// As [`Shortcut::load`].
    pub fn load() -> Result<Self, LinuxError> {
        let name = "crossing";
        let object = load(name)?;
        let nics = object.maps().find(|map| map.name() == NICS).ok_or_else(|| absent(NICS))?;
        let nics = MapHandle::try_from(&nics).map_err(|error| failed(name, &error))?;
        Ok(Self { program: program(&object, name)?, nics })
    }

    /// Lets what comes in on a NIC's link go straight to other NICs that are let in like this.
    pub fn attach(
        &self,
        netlink: &mut Netlink,
        link: u32,
        name: &str,
        crossing: &Crossing,
    ) -> Result<(), LinuxError> {
        self.nics
            .update(&link.to_ne_bytes(), &nic(crossing), MapFlags::ANY)
            .map_err(|error| failed(NICS, &error))?;
        attach(netlink, link, name, &self.program)
    }

    /// Forgets a link that is gone. An unknown one is fine.
    pub fn forget(&self, link: u32) -> Result<(), LinuxError> {
        match self.nics.delete(&link.to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(failed(NICS, &error))
            }
            _ => Ok(()),
        }
    }
}

/// Takes the shortcut from a link, whoever gave it. Success when there is none.
pub fn detach(netlink: &mut Netlink, link: u32, name: &str) -> Result<(), LinuxError> {
    let queue = message(link, INGRESS_HANDLE, INGRESS, "clsact", None);
    let request = Request::change(
        RouteNetlinkMessage::DelQueueDiscipline(queue),
        format!("take the place for filters from {name}"),
    );
    match netlink.send_all(&[request]) {
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOENT)) => Ok(()),
        other => other,
    }
}

/// Makes connection tracking of the calling thread's namespace fit for shortcuts.
pub fn prepare() -> Result<(), LinuxError> {
    match fs::write(LIBERAL, "1") {
        // Nobody tracks connections.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| LinuxError::File {
            verb: "writing",
            path: Path::new(LIBERAL).to_owned(),
            source,
        }),
    }
}

/// Loads one program of the object, with the maps that it uses.
fn load(name: &'static str) -> Result<Object, LinuxError> {
    let renewal = u32::try_from(RENEWAL_S * ticks_per_second()?).unwrap_or(u32::MAX);
    bpf::load(OBJECT, &[name], |map| {
        if map.name() == NICS {
            map.set_autocreate(name == "crossing")
        } else {
            // The constants', of which there is one.
            map.set_initial_value(&renewal.to_ne_bytes())
        }
    })
}

fn attach(
    netlink: &mut Netlink,
    link: u32,
    name: &str,
    program: &OwnedFd,
) -> Result<(), LinuxError> {
    bpf::attach(netlink, (link, name), Direction::In, (program, LABEL)).map(|_attached| ())
}

/// `struct nic` of the program.
fn nic(crossing: &Crossing) -> Vec<u8> {
    // An address that nobody has, where there is no range.
    let nowhere = Prefix4::host(Ipv4Addr::UNSPECIFIED);
    let nowhere6 = Prefix6::host(Ipv6Addr::UNSPECIFIED);
    let (zone, range, range6) = match crossing.overlay {
        Some((ranges, zone)) => (zone, ranges.v4, ranges.v6.unwrap_or(nowhere6)),
        None => (0, nowhere, nowhere6),
    };
    let mask6 = u128::MAX.checked_shl(128 - u32::from(range6.length())).unwrap_or(0);
    let v4 = |range: Prefix4| {
        let mask = u32::MAX.checked_shl(32 - u32::from(range.length())).unwrap_or(0);
        [range.network().octets(), mask.to_be_bytes()].concat()
    };
    let mut bytes = crossing.address.octets().to_vec();
    bytes.extend(v4(crossing.pods.unwrap_or(nowhere)));
    bytes.extend(u32::from(zone).to_ne_bytes());
    bytes.extend(v4(range));
    bytes.extend(range6.network().octets());
    bytes.extend(mask6.to_be_bytes());
    bytes
}

/// The kernel's `HZ`: its coarse clocks move once a tick.
fn ticks_per_second() -> Result<u64, LinuxError> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|source| {
        LinuxError::Call { what: "asking for the length of a tick".to_owned(), source }
    })?;
    let nanoseconds = u64::try_from(tick.tv_nsec()).unwrap_or_default().max(1);
    Ok(1_000_000_000 / nanoseconds)
}

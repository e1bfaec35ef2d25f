//! The shortcut of flows that the node's stack has let through: an eBPF program where packets come in, which sends
//! the middle of such a flow straight to the link that it leaves by. Not here: any decision (`bpf/shortcut.bpf.c`
//! says which packets take it, and who decided about them).
//!
//! *Guarantees.* It is an addition: a kernel that cannot run it, or a link without it, only is slower. Captures on the
//! node's links, their queues and TTLs are as without it; the node's rules and counters see the first and last packets
//! of a flow, but no longer those between. It goes with the link, and holds nothing but memory.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use libbpf_rs::ObjectBuilder;
use netlink_packet_route::RouteNetlinkMessage;
use nix::time::{ClockId, clock_getres};
use vnet::pods::wiring::{Path, Wiring};

use super::{
    Wirer, index,
    traffic::{ALL_PROTOCOLS_FIRST, INGRESS, INGRESS_FILTERS, INGRESS_HANDLE, message, put},
};
use crate::{LinuxError, net::Request};

/// What `build.rs` has made of `bpf/shortcut.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shortcut.bpf.o"));
const PROGRAM: &str = "shortcut";
/// Flows that connection tracking would forget within so many seconds take the long way once. Less than half of the
/// least time that it keeps a flow in for which there is a shortcut (30 s, `nf_conntrack_udp_timeout`).
const RENEWAL_S: u64 = 10;
/// Packets between first and last are not seen by connection tracking, so it must not ask that they follow each other.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The program, loaded: one serves all nodes of a process. What it is attached to keeps it when this is dropped.
#[derive(Clone, Debug)]
pub struct Shortcut(Arc<OwnedFd>);

impl Shortcut {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    /// When the kernel has no type information (`/sys/kernel/btf/vmlinux`), no lookup of tracked flows
    /// (`bpf_skb_ct_lookup`, Linux 5.18), or does not let the caller load programs.
    pub fn load() -> Result<Self, LinuxError> {
        let failed = |error: libbpf_rs::Error| LinuxError::Program { name: PROGRAM, text: format!("{error:#}") };
        let mut object = ObjectBuilder::default().open_memory(OBJECT).map_err(failed)?;
        let renewal = u32::try_from(RENEWAL_S * ticks_per_second()?).unwrap_or(u32::MAX);
        for mut map in object.maps_mut() {
            // The only one is its constants', of which there is one.
            map.set_initial_value(&renewal.to_ne_bytes()).map_err(failed)?;
        }
        let object = object.load().map_err(failed)?;
        let program = object.progs().find(|program| program.name() == PROGRAM);
        let program = program.ok_or_else(|| LinuxError::Program {
            name: PROGRAM,
            text: "it is not in its object".to_owned(),
        })?;
        let file = program.as_fd().try_clone_to_owned().map_err(|error| LinuxError::Program {
            name: PROGRAM,
            text: error.to_string(),
        })?;
        Ok(Self(Arc::new(file)))
    }
}

impl Wirer {
    /// Gives what a pod sends the shortcut. Does nothing for pods on a bridge, whose packets are not routed.
    ///
    /// Not for pods whose sending is limited: the packets would pass their token bucket by.
    pub fn shorten(&mut self, wiring: &Wiring, shortcut: &Shortcut) -> Result<(), LinuxError> {
        if matches!(wiring.path, Path::Routed) {
            self.attach(&wiring.host_link, shortcut)
        } else {
            Ok(())
        }
    }

    /// Gives what comes in at the node's NIC the shortcut, and makes connection tracking fit for it.
    pub fn shorten_nic(&mut self, nic: &str, shortcut: &Shortcut) -> Result<(), LinuxError> {
        fs::write(LIBERAL, "1").map_err(|source| LinuxError::File {
            verb: "writing",
            path: LIBERAL.into(),
            source,
        })?;
        self.attach(nic, shortcut)
    }

    fn attach(&mut self, name: &str, shortcut: &Shortcut) -> Result<(), LinuxError> {
        /// `TCA_BPF_FD`, `TCA_BPF_NAME`, `TCA_BPF_FLAGS`, `TCA_BPF_FLAG_ACT_DIRECT` (linux/pkt_cls.h).
        const FD: u16 = 6;
        const NAME: u16 = 7;
        const FLAGS: u16 = 8;
        const DIRECT_ACTION: u32 = 1;
        let link = index(name)?;
        let queue = message(link, INGRESS_HANDLE, INGRESS, "clsact", None);
        let mut content = Vec::new();
        put(&mut content, FD, &shortcut.0.as_raw_fd().to_ne_bytes());
        put(&mut content, NAME, format!("{PROGRAM}\0").as_bytes());
        put(&mut content, FLAGS, &DIRECT_ACTION.to_ne_bytes());
        let mut filter = message(link, 1, INGRESS_FILTERS, "bpf", Some(content));
        filter.header.info = ALL_PROTOCOLS_FIRST;
        self.node.send_all(&[
            Request::replace(
                RouteNetlinkMessage::NewQueueDiscipline(queue),
                format!("add a place for filters to {name}"),
            ),
            Request::replace(
                RouteNetlinkMessage::NewTrafficFilter(filter),
                format!("give the packets of {name} the shortcut"),
            ),
        ])
    }
}

/// The kernel's `HZ`: its coarse clocks move once a tick.
fn ticks_per_second() -> Result<u64, LinuxError> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|errno| LinuxError::Call {
        what: "asking for the length of a tick".to_owned(),
        source: errno,
    })?;
    let nanoseconds = u64::try_from(tick.tv_nsec()).unwrap_or_default().max(1);
    Ok(1_000_000_000 / nanoseconds)
}

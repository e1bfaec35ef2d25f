//! eBPF programs: from an object that `build.rs` has compiled into the kernel, and onto links. Not here: what they do.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libbpf_rs::{Object, ObjectBuilder, OpenMapMut};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use crate::{
    LinuxError,
    net::{
        Netlink, Request,
        traffic::{
            ALL_PROTOCOLS_FIRST, EGRESS_FILTERS, INGRESS, INGRESS_FILTERS, INGRESS_HANDLE, message,
            put,
        },
    },
};

/// Which of a link's packets a program gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Loads these programs of an object; `set` gives its maps what they begin with.
pub(crate) fn load(
    object: &[u8],
    names: &[&'static str],
    set: impl Fn(&mut OpenMapMut<'_>) -> libbpf_rs::Result<()>,
) -> Result<Object, LinuxError> {
    let name = names.first().copied().unwrap_or_default();
    let failed = |error| failed(name, &error);
    let mut object = ObjectBuilder::default().open_memory(object).map_err(failed)?;
    for mut program in object.progs_mut() {
        let is_wanted = names.iter().any(|name| program.name() == *name);
        program.set_autoload(is_wanted);
    }
    for mut map in object.maps_mut() {
        set(&mut map).map_err(failed)?;
    }
    object.load().map_err(failed)
}

/// A program that was loaded, for longer than its object lives.
pub(crate) fn program(object: &Object, name: &'static str) -> Result<OwnedFd, LinuxError> {
    let program = object.progs().find(|program| program.name() == name);
    let program = program.ok_or_else(|| absent(name))?;
    let file = program.as_fd().try_clone_to_owned();
    file.map_err(|source| LinuxError::Program { name, text: source.to_string() })
}

/// Lets a program see a link's packets first, in place of an earlier one. `label` is what `tc` shows it as.
///
/// Does nothing, and says so, where somebody else has an ingress queue, which the packets would pass by.
pub(crate) fn attach(
    netlink: &mut Netlink,
    (link, name): (u32, &str),
    direction: Direction,
    (program, label): (&OwnedFd, &str),
) -> Result<bool, LinuxError> {
    /// `TCA_BPF_FD`, `TCA_BPF_NAME`, `TCA_BPF_FLAGS`, `TCA_BPF_FLAG_ACT_DIRECT` (`linux/pkt_cls.h`).
    const FD: u16 = 6;
    const NAME: u16 = 7;
    const FLAGS: u16 = 8;
    const DIRECT_ACTION: u32 = 1;
    let queue = message(link, INGRESS_HANDLE, INGRESS, "clsact", None);
    let place = Request::replace(
        RouteNetlinkMessage::NewQueueDiscipline(queue),
        format!("add a place for filters to {name}"),
    );
    match netlink.send_all(&[place]) {
        // Somebody else's: an ingress queue.
        Err(error) if error.errno() == Some(Errno::EINVAL) => return Ok(false),
        other => other?,
    }
    let mut content = Vec::new();
    put(&mut content, FD, &program.as_raw_fd().to_ne_bytes());
    put(&mut content, NAME, format!("{label}\0").as_bytes());
    put(&mut content, FLAGS, &DIRECT_ACTION.to_ne_bytes());
    let filters = match direction {
        Direction::In => INGRESS_FILTERS,
        Direction::Out => EGRESS_FILTERS,
    };
    let mut filter = message(link, 1, filters, "bpf", Some(content));
    filter.header.info = ALL_PROTOCOLS_FIRST;
    netlink.send_all(&[Request::replace(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        format!("add {label} to {name}"),
    )])?;
    Ok(true)
}

pub(crate) fn failed(name: &'static str, error: &libbpf_rs::Error) -> LinuxError {
    LinuxError::Program { name, text: format!("{error:#}") }
}

pub(crate) fn absent(name: &'static str) -> LinuxError {
    LinuxError::Program { name, text: "it is not in its object".to_owned() }
}

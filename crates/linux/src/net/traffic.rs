//! Words of the kernel's traffic control (`tc`) that more than one thing on a link needs.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

/// `TC_H_ROOT`: in place of a link's queue (`linux/pkt_sched.h`).
pub(crate) const ROOT: u32 = 0xffff_ffff;
/// `TC_H_INGRESS`, `TC_H_CLSACT`: where packets come in, and where they come in and leave.
pub(crate) const INGRESS: u32 = 0xffff_fff1;
/// The handle of a queue of either kind.
pub(crate) const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` of `clsact`: filters of what comes in.
pub(crate) const INGRESS_FILTERS: u32 = 0xffff_fff2;
/// `TC_H_MIN_EGRESS` of `clsact`: filters of what leaves.
pub(crate) const EGRESS_FILTERS: u32 = 0xffff_fff3;
/// A filter's priority 1, and the protocol `ETH_P_ALL` in the network's order.
pub(crate) const ALL_PROTOCOLS_FIRST: u32 = 1 << 16 | (3_u16.to_be() as u32);

/// A queue or a filter of `link`.
pub(crate) fn message(
    link: u32,
    handle: u32,
    parent: u32,
    kind: &str,
    options: Option<Vec<u8>>,
) -> TcMessage {
    /// `TCA_OPTIONS`.
    const OPTIONS: u16 = 2;
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(link).unwrap_or(i32::MAX);
    message.header.handle = TcHandle::from(handle);
    message.header.parent = TcHandle::from(parent);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    let options = options.map(|content| TcAttribute::Other(DefaultNla::new(OPTIONS, content)));
    message.attributes.extend(options);
    message
}

/// Appends an attribute.
pub(crate) fn put(buffer: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let length = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(content);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

//! The stream of Cilium's monitor socket: what its programs in the kernel tell of packets, as the agent passes it on.
//! Plain functions from bytes to values. Not here: the socket (see [`super`]).
//!
//! The agent writes values of one Go type by `encoding/gob` (cilium/cilium, pkg/monitor/payload), each with one record of
//! the kernel's (`datapath_policy.go`, `datapath_drop.go` and `datapath_trace.go` in pkg/monitor).

use crate::watch::frame::{Decoded, Packet, decode};

/// What was decided on a packet, and the packet as it then was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) what: What,
    pub(super) packet: Packet,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// By the policies of a pod, or of the node.
    Policy(Verdict),
    /// It is dropped, for the reason with this number.
    Drop(u8),
    /// Nothing: it passed.
    Passed,
}

/// What an endpoint's policies said of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whose policies: the agent's number of a pod, or of the node.
    pub(super) endpoint: u16,
    pub(super) direction: Direction,
    /// The identity of the other end.
    pub(super) remote: u32,
    pub(super) fate: Fate,
    /// Whether any rule was about it; none when it is denied because nothing allows it.
    pub(super) has_rule: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Allowed,
    /// Allowed, by way of Cilium's proxy.
    Redirected,
    Denied,
    /// Would be denied, were policies not only audited.
    Audited,
}

/// More than any record has.
const LONGEST: u64 = 1 << 20;

/// The bytes of the socket that are not understood yet.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pending: Vec<u8>,
}

impl Stream {
    /// Takes more bytes and gives what is then complete. `Err` when they are of another kind.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Notice>, &'static str> {
        self.pending.extend_from_slice(bytes);
        let mut notices = Vec::new();
        let mut rest = self.pending.as_slice();
        loop {
            let mut message = rest;
            let Some(length) = unsigned(&mut message) else { break };
            if length > LONGEST {
                return Err("the monitor of Cilium's agent speaks another language");
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((body, behind)) = message.split_at_checked(length) else { break };
            notices.extend(record(body).and_then(notice));
            rest = behind;
        }
        let taken = self.pending.len() - rest.len();
        self.pending.drain(..taken);
        Ok(notices)
    }
}

/// A number below 128 is itself; before others stands how many bytes they have, negated.
fn unsigned(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    if first < 128 {
        *bytes = rest;
        return Some(first.into());
    }
    let length = usize::from(first.wrapping_neg());
    if length > 8 {
        // No number: a length that is refused.
        return Some(u64::MAX);
    }
    let (number, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// The bytes of the kernel's record in a message; `None` in those that describe types.
fn record(mut message: &[u8]) -> Option<&[u8]> {
    // A type's number is negative where it is described, which the lowest bit says.
    if unsigned(&mut message)? & 1 == 1 {
        return None;
    }
    // Fields that are zero are left out; the record is the first field.
    if unsigned(&mut message)? != 1 {
        return None;
    }
    let length = usize::try_from(unsigned(&mut message)?).ok()?;
    message.get(..length)
}

/// `None` for records of other kinds, and of packets that are not IP.
fn notice(record: &[u8]) -> Option<Notice> {
    const DROP: u8 = 1;
    const TRACE: u8 = 4;
    const POLICY: u8 = 5;
    let (what, header) = match *record.first()? {
        DROP => {
            let header = match record.get(14)? {
                0 | 1 => 36,
                2 => 40,
                _ => 48,
            };
            (What::Drop(*record.get(1)?), header)
        }
        TRACE => {
            let header = match record.get(14)? {
                0 => 32,
                1 => 48,
                _ => 56,
            };
            (What::Passed, header)
        }
        POLICY => {
            // Cilium 1.19 made the header longer. Records are padded, to eight bytes at most.
            let captured = usize::from(u16_at(record, 12)?);
            let is_long = record.len() >= 40 + captured;
            (What::Policy(verdict(record)?), if is_long { 40 } else { 32 })
        }
        _ => return None,
    };
    match decode(record.get(header..)?)? {
        Decoded::Ip(packet) => Some(Notice { what, packet }),
        Decoded::Arp { .. } | Decoded::Other(_) => None,
    }
}

fn verdict(record: &[u8]) -> Option<Verdict> {
    let flags = *record.get(27)?;
    let number = i32::from_ne_bytes(*record.get(20..)?.first_chunk()?);
    let is_audited = flags & 0x40 != 0;
    Some(Verdict {
        endpoint: u16_at(record, 2)?,
        direction: match flags & 3 {
            1 => Direction::Ingress,
            2 => Direction::Egress,
            _ => return None,
        },
        remote: u32::from_ne_bytes(*record.get(16..)?.first_chunk()?),
        fate: match number {
            _ if is_audited => Fate::Audited,
            0 => Fate::Allowed,
            1.. => Fate::Redirected,
            _ => Fate::Denied,
        },
        has_rule: flags >> 3 & 7 != 0,
    })
}

fn u16_at(record: &[u8], at: usize) -> Option<u16> {
    record.get(at..)?.first_chunk().map(|pair| u16::from_ne_bytes(*pair))
}

/// Whether the reason is that a policy denies it, which a [`Verdict`] has said already.
pub(super) fn is_policy(reason: u8) -> bool {
    matches!(reason, 133 | 181)
}

/// A reason in Cilium's words (cilium/cilium, pkg/monitor/api/drop.go): those that a packet of a probe's may meet.
pub(super) fn reason(number: u8) -> String {
    let words = match number {
        132 => "Invalid source ip",
        133 => "Policy denied",
        134 => "Invalid packet",
        135 => "CT: Truncated or invalid header",
        136 => "Fragmentation needed",
        137 => "CT: Unknown L4 protocol",
        139 => "Unsupported L3 protocol",
        140 => "Missed tail call",
        142 => "Unknown L4 protocol",
        150 => "Unknown L3 target address",
        151 => "Stale or unroutable IP",
        155 => "CT: Map insertion failed",
        157 => "IP fragmentation not supported",
        158 => "Service backend not found",
        163 => "Unknown connection tracking state",
        164 => "Local host is unreachable",
        167 => "No mapping for NAT masquerade",
        168 => "Unsupported protocol for NAT masquerade",
        169 => "FIB lookup failed",
        171 => "Invalid identity",
        174 => "Is a ClusterIP",
        177 => "Denied by LB src range check",
        181 => "Policy denied by denylist",
        189 => "Authentication required",
        196 => "TTL exceeded",
        202 => "Host datapath not ready",
        203 => "Endpoint policy program not available",
        other => return format!("reason {other} of Cilium's"),
    };
    words.to_owned()
}

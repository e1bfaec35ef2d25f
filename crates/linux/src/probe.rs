//! One packet sent on purpose, and what came back to who sent it. Not here: what it met on its way.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
        getsockopt, recv, send, setsockopt, socket, sockopt,
    },
};
use vnet::addr::Family;

use crate::{LinuxError, netns::Netns};

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The beginning of a TCP connection.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP echo request.
    Echo,
}

impl Kind {
    /// IP's number of the protocol, in a family.
    #[must_use]
    pub fn protocol(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Echo, Family::V4) => 1,
            (Self::Echo, Family::V6) => 58,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came, after this time: a connection, a datagram, an echo reply.
    Answered(Duration),
    /// The far end said that nobody listens, after this time.
    Refused(Duration),
    /// The kernel or somebody on the way said that it cannot get there.
    Unreachable(Errno),
    /// Nothing came in time.
    Silence,
}

/// Sends one packet from inside `namespace`, marked with `dscp` (six bits), and waits for an answer.
/// With `source`, from that address, which need not be on a link.
pub fn probe(
    namespace: &Netns,
    kind: Kind,
    source: Option<IpAddr>,
    to: SocketAddr,
    dscp: u8,
    patience: Duration,
) -> Result<Outcome, LinuxError> {
    let failed = |source| LinuxError::Call {
        what: format!("probing {to} from `{}`", namespace.name()),
        source,
    };
    let family = Family::of(to.ip());
    let socket = namespace.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (form, protocol) = match (kind, family) {
            (Kind::Tcp, _) => (SockType::Stream, None),
            (Kind::Udp, _) => (SockType::Datagram, None),
            (Kind::Echo, Family::V4) => (SockType::Raw, Some(SockProtocol::Icmp)),
            (Kind::Echo, Family::V6) => (SockType::Raw, Some(SockProtocol::IcmpV6)),
        };
        let traffic_class = i32::from(dscp << 2);
        let socket = match family {
            Family::V4 => {
                let socket = socket(AddressFamily::Inet, form, flags, protocol)?;
                setsockopt(&socket, sockopt::Ipv4Tos, &traffic_class)?;
                socket
            }
            Family::V6 => {
                let socket = socket(AddressFamily::Inet6, form, flags, protocol)?;
                setsockopt(&socket, sockopt::Ipv6TClass, &traffic_class)?;
                socket
            }
        };
        if let Some(source) = source {
            match family {
                Family::V4 => setsockopt(&socket, sockopt::IpFreebind, &true)?,
                Family::V6 => freebind_ipv6(&socket)?,
            }
            let source = SockaddrStorage::from(SocketAddr::new(source, 0));
            nix::sys::socket::bind(socket.as_raw_fd(), &source)?;
        }
        Ok::<_, Errno>(socket)
    })?;
    let socket = socket.map_err(failed)?;
    let began = Instant::now();
    let done = match kind {
        Kind::Tcp => tcp(&socket, to, patience),
        Kind::Udp => exchange(&socket, to, patience, b"aksnet trace", |_| true),
        Kind::Echo => {
            let id = std::process::id().to_be_bytes();
            let request = echo_request(family, [id[2], id[3]]);
            let is_reply = |packet: &[u8]| {
                // Raw sockets of IPv6 are given what is behind the header.
                let (header, reply) = match family {
                    Family::V4 => {
                        (packet.first().map_or(20, |first| usize::from(first & 15) * 4), 0)
                    }
                    Family::V6 => (0, 129),
                };
                let message = packet.get(header..).unwrap_or_default();
                message.first() == Some(&reply) && message.get(4..6) == Some(&id[2..4])
            };
            exchange(&socket, to, patience, &request, is_reply)
        }
    };
    match done {
        Ok(true) => Ok(Outcome::Answered(began.elapsed())),
        Ok(false) => Ok(Outcome::Silence),
        Err(Errno::ECONNREFUSED) => Ok(Outcome::Refused(began.elapsed())),
        Err(Errno::ETIMEDOUT) => Ok(Outcome::Silence),
        Err(
            reason @ (Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EINVAL
            | Errno::ECONNRESET),
        ) => Ok(Outcome::Unreachable(reason)),
        Err(source) => Err(failed(source)),
    }
}

/// The same as [`sockopt::IpFreebind`]: raw sockets of IPv6 have this one only, and `nix` has not.
#[allow(unsafe_code, reason = "nix has no such option")]
fn freebind_ipv6(socket: &OwnedFd) -> Result<(), Errno> {
    let yes: nix::libc::c_int = 1;
    let size = nix::libc::socklen_t::try_from(size_of_val(&yes)).unwrap_or_default();
    // SAFETY: the value outlives the call, and its size is what is said.
    let done = unsafe {
        nix::libc::setsockopt(
            socket.as_raw_fd(),
            nix::libc::IPPROTO_IPV6,
            nix::libc::IPV6_FREEBIND,
            (&raw const yes).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

/// Whether the connection was made in time.
fn tcp(socket: &OwnedFd, to: SocketAddr, patience: Duration) -> Result<bool, Errno> {
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => return Ok(true),
        Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    if !wait(socket, PollFlags::POLLOUT, patience)? {
        return Ok(false);
    }
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(true),
        number => Err(Errno::from_raw(number)),
    }
}

/// Whether an answer came in time.
fn exchange(
    socket: &OwnedFd,
    to: SocketAddr,
    patience: Duration,
    request: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> Result<bool, Errno> {
    // Connected, so that errors of the way come back as ours.
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let until = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        if !wait(socket, PollFlags::POLLIN, until.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if is_answer(buffer.get(..length).unwrap_or_default()) => return Ok(true),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait(socket: &OwnedFd, what: PollFlags, patience: Duration) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(socket.as_fd(), what)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    Ok(nix::poll::poll(&mut fds, patience)? > 0)
}

/// RFC 792: type 8, code 0, checksum, identifier, sequence number 1. RFC 4443: type 128, and the kernel puts in the
/// checksum, which covers addresses.
fn echo_request(family: Family, id: [u8; 2]) -> [u8; 8] {
    if family == Family::V6 {
        return [128, 0, 0, 0, id[0], id[1], 0, 1];
    }
    let sum = 0x0800_u32 + u32::from(u16::from_be_bytes(id)) + 1;
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    [8, 0, high, low, id[0], id[1], 0, 1]
}

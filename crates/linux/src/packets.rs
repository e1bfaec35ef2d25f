//! Reading packets off links, as a sniffer does: a copy of every frame that a namespace's links send and
//! receive, with the kernel's own time. Not here: what the frames say.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
        recvmsg, setsockopt, socket, sockopt,
    },
};

use crate::{
    LinuxError,
    net::{Netlink, link_indexes},
    netns::Netns,
};

/// How much may wait in the kernel for us, in bytes. What is more is lost.
const BUFFER: usize = 8 << 20;
/// The longest frame that is taken whole: a veth carries segments of 64 KiB.
const LONGEST: usize = 1 << 17;
/// The loopback link's hardware type (`ARPHRD_LOOPBACK`, `linux/if_arp.h`).
const LOOPBACK: u16 = 772;
/// `PACKET_OUTGOING` (`linux/if_packet.h`).
const OUTGOING: u8 = 4;

/// Whether a frame came in or went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The link received it.
    In,
    /// The link sent it.
    Out,
}

/// A frame as it was on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When, since 1970, by the kernel.
    pub at: Duration,
    /// The link's number in its namespace.
    pub link: u32,
    /// In or out.
    pub direction: Direction,
    /// From the Ethernet header on; shorter than the frame was when the tap takes only the beginning.
    pub data: Vec<u8>,
    /// How many bytes the frame had.
    pub length: usize,
}

/// A socket that gets a copy of what links of one namespace carry. It stays that namespace's, wherever
/// it is read.
#[derive(Debug)]
pub struct Tap {
    namespace: String,
    socket: OwnedFd,
    links: BTreeMap<u32, String>,
    chosen: Vec<u32>,
    beginning: usize,
}

impl Tap {
    /// A tap on these links, on all of the namespace's when `links` is empty. Of each frame the first
    /// `beginning` bytes are taken (0: all).
    pub fn open(namespace: &Netns, links: &[String], beginning: usize) -> Result<Self, LinuxError> {
        let numbers = link_indexes(&mut Netlink::open_in(namespace)?)?;
        let mut chosen = Vec::new();
        for link in links {
            chosen.push(*numbers.get(link).ok_or_else(|| LinuxError::NoLink {
                link: link.clone(),
                namespace: namespace.name().to_owned(),
            })?);
        }
        let failed = |source| LinuxError::Call {
            what: format!("listening to the links of `{}`", namespace.name()),
            source,
        };
        let socket = namespace.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            if !chosen.is_empty() {
                only_from(&socket, &chosen)?;
            }
            Ok(socket)
        })?;
        let tap = Self {
            namespace: namespace.name().to_owned(),
            socket: socket.map_err(failed)?,
            links: numbers.into_iter().map(|(name, number)| (number, name)).collect(),
            chosen,
            beginning: if beginning == 0 { LONGEST } else { beginning },
        };
        tap.drop_earlier()?;
        Ok(tap)
    }

    /// The links that it is on, by number. Links that are made later are heard, too, when it is on all.
    #[must_use]
    pub fn links(&self) -> Vec<u32> {
        let heard = |link: &&u32| self.chosen.is_empty() || self.chosen.contains(link);
        self.links.keys().filter(heard).copied().collect()
    }

    /// The name of a link; its number when it is newer than the tap.
    #[must_use]
    pub fn link_name(&self, link: u32) -> String {
        self.links.get(&link).cloned().unwrap_or_else(|| format!("#{link}"))
    }

    /// The next frame that has come; `None` when there is none now.
    pub fn read(&self) -> Result<Option<Frame>, LinuxError> {
        loop {
            match self.receive() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                // A link went down; the others go on.
                Err(Errno::ENETDOWN) => {}
                Err(source) => {
                    let what = format!("reading packets of `{}`", self.namespace);
                    return Err(LinuxError::Call { what, source });
                }
            }
        }
    }

    /// `None` for what would be told twice.
    fn receive(&self) -> Result<Option<Frame>, Errno> {
        let mut data = vec![0; self.beginning];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut parts = [IoSliceMut::new(&mut data)];
        // MSG_TRUNC: the frame's own length is given, not that of the part that fits.
        let message = recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_TRUNC,
        )?;
        let length = message.bytes;
        let Some(address) = message.address else { return Ok(None) };
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let direction = if address.pkttype() == OUTGOING { Direction::Out } else { Direction::In };
        if address.hatype() == LOOPBACK && direction == Direction::Out {
            return Ok(None);
        }
        data.truncate(length);
        data.shrink_to_fit();
        let at = stamp
            .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let link = u32::try_from(address.ifindex()).unwrap_or_default();
        Ok(Some(Frame { at, link, direction, data, length }))
    }

    /// Between the socket's birth and its filter's, frames of other links may have come.
    fn drop_earlier(&self) -> Result<(), LinuxError> {
        if self.chosen.is_empty() {
            return Ok(());
        }
        while self.read()?.is_some() {}
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until the kernel stamps packets as they pass. It begins to, a moment after the first tap asks for it; what
/// passes before that gets the time at which it is read, and packets of several taps would be in no order.
pub fn wait_for_stamps() -> Result<(), LinuxError> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let failed = |source| LinuxError::Call { what: "waiting for time stamps".to_owned(), source };
    let broken = |source| LinuxError::Socket { source };
    let own = std::net::UdpSocket::bind(("127.0.0.1", 0)).map_err(broken)?;
    own.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    let address = own.local_addr().map_err(broken)?;
    setsockopt(&own, sockopt::ReceiveTimestampns, &true).map_err(failed)?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = now() + PATIENCE;
    while now() < until {
        own.send_to(&[0], address).map_err(broken)?;
        // On loopback it has arrived when this returns: a later stamp is that of the reading.
        let sent = now();
        std::thread::sleep(Duration::from_micros(200));
        let mut byte = [0; 1];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(own.as_raw_fd(), &mut parts, Some(&mut control), flags)
            .map_err(failed)?;
        let is_stamped = message.cmsgs().map_err(failed)?.any(|control| {
            matches!(control, ControlMessageOwned::ScmTimestampns(time) if Duration::from(time) <= sent)
        });
        if is_stamped {
            return Ok(());
        }
    }
    // Only the order is in doubt: nothing is worse than before.
    Ok(())
}

/// Waits until one of these has something to read, for `patience` at most.
pub fn wait(sources: &[BorrowedFd<'_>], patience: Duration) -> Result<(), LinuxError> {
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|source| PollFd::new(*source, PollFlags::POLLIN)).collect();
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(&mut fds, patience) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(source) => Err(LinuxError::Call { what: "waiting for packets".to_owned(), source }),
    }
}

/// Has the kernel keep only frames of these links: a classic BPF program that compares the link's number.
fn only_from(socket: &OwnedFd, links: &[u32]) -> Result<(), Errno> {
    let step = |code: u32, unequal: u8, k: u32| {
        let code = u16::try_from(code).map_err(|_| Errno::EINVAL)?;
        Ok::<_, Errno>(libc::sock_filter { code, jt: 0, jf: unequal, k })
    };
    // SKF_AD_OFF + SKF_AD_IFINDEX (linux/filter.h).
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0xffff_f000 + 8)?];
    for link in links {
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, *link)?);
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX)?);
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0)?);
    attach(socket, &mut program)
}

#[allow(unsafe_code, reason = "setsockopt is the only way to give a socket a filter")]
fn attach(socket: &OwnedFd, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&filter)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel copies the program before it returns; `filter` and `program` live until then.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

//! An nfnetlink socket on which the kernel tells what happens, with a reader that may wait. Not here: what is told
//! (see `conntrack` and `log`).

use std::{io, os::fd::AsFd, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{setsockopt, sockopt},
};

use crate::{LinuxError, netns::Netns};

/// The bytes of a netlink header (`linux/netlink.h`, `struct nlmsghdr`).
const HEADER: usize = 16;
/// The bytes of nfnetlink's own (`linux/netfilter/nfnetlink.h`, `struct nfgenmsg`).
const OWN: usize = 4;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Room for a burst that the reader was not there for.
const BUFFER: usize = 8 << 20;
/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket of one namespace.
pub(super) struct Channel(Socket);

/// A message of nfnetlink's: its subsystem, its type there, and its attributes.
pub(super) type Message = (u8, u8, Vec<u8>);

/// What one read gave.
pub(super) enum Heard {
    Messages(Vec<Message>),
    /// A list is at its end, or a request done.
    End(Vec<Message>),
    /// Nothing for as long as was waited.
    Silence,
    /// The reader was too slow, and the kernel threw some away.
    Lost,
}

impl Channel {
    pub(super) fn open_in(namespace: &Netns) -> Result<Self, LinuxError> {
        let failed = |source| LinuxError::Netlink { source };
        let socket = namespace.run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            Ok::<_, io::Error>(socket)
        })?;
        let socket = socket.map_err(failed)?;
        // Beyond the limit of `rmem_max`, as root may.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).map_err(|source| LinuxError::Call {
            what: "sizing a netlink socket".to_owned(),
            source,
        })?;
        Ok(Self(socket))
    }

    /// Also hears what is told to this group.
    pub(super) fn join(&self, group: u32) -> Result<(), LinuxError> {
        self.0.add_membership(group).map_err(|source| LinuxError::Netlink { source })
    }

    /// Has the kernel do something. `body` is what follows the netlink header.
    pub(super) fn ask(&self, kind: [u8; 2], body: &[u8], what: &str) -> Result<(), LinuxError> {
        self.send(kind, REQUEST | ACK, body)?;
        self.answers(what).map(drop)
    }

    /// Everything that the kernel lists.
    pub(super) fn list(
        &self,
        kind: [u8; 2],
        body: &[u8],
        what: &str,
    ) -> Result<Vec<Message>, LinuxError> {
        self.send(kind, REQUEST | DUMP, body)?;
        self.answers(what)
    }

    fn answers(&self, what: &str) -> Result<Vec<Message>, LinuxError> {
        let mut answers = Vec::new();
        loop {
            match self.hear(what, PATIENCE)? {
                Heard::Messages(more) => answers.extend(more),
                Heard::End(more) => {
                    answers.extend(more);
                    return Ok(answers);
                }
                Heard::Silence | Heard::Lost => {
                    return Err(LinuxError::Answer { text: format!("none when asked to {what}") });
                }
            }
        }
    }

    fn send(&self, [kind, subsystem]: [u8; 2], flags: u16, body: &[u8]) -> Result<(), LinuxError> {
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(u16::from_be_bytes([subsystem, kind]).to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        let sent = self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0);
        sent.map(drop).map_err(|source| LinuxError::Netlink { source })
    }

    /// Reads once, after waiting at most this long. `what` is for messages to people.
    pub(super) fn hear(&self, what: &str, patience: Duration) -> Result<Heard, LinuxError> {
        let failed = |source| LinuxError::Netlink { source };
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Heard::Silence),
            Ok(_) => {}
            Err(err) => return Err(failed(err.into())),
        }
        match self.0.recv_from_full() {
            Ok((data, _)) => parse(&data, what),
            Err(err) if err.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Heard::Lost),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(Heard::Silence),
            Err(err) => Err(failed(err)),
        }
    }
}

fn parse(mut rest: &[u8], what: &str) -> Result<Heard, LinuxError> {
    let mut found = Vec::new();
    while let Some(&[a, b, c, d, e, f, ..]) = rest.first_chunk::<HEADER>() {
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or_default();
        let Some(body) = rest.get(HEADER..length) else { break };
        match u16::from_ne_bytes([e, f]) {
            DONE => return Ok(Heard::End(found)),
            ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code == 0 {
                    return Ok(Heard::End(found));
                }
                let source = Errno::from_raw(code.saturating_abs());
                let (what, text) = (what.to_owned(), String::new());
                return Err(LinuxError::Refused { what, text, source });
            }
            kind => {
                let [subsystem, kind] = kind.to_be_bytes();
                found.push((subsystem, kind, body.get(OWN..).unwrap_or_default().to_vec()));
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Heard::Messages(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_messages_end_the_reading() {
        for bytes in [&[0_u8; 64][..], &[0xff; 64], &[16, 0, 0, 0], &[]] {
            let heard = parse(bytes, "test").expect("no error");
            assert!(matches!(heard, Heard::Messages(found) if found.is_empty()), "{bytes:?}");
        }
    }
}

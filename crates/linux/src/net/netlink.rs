//! A synchronous rtnetlink socket: batches of requests, and dumps. Not here: what the requests say
//! (see [`super::wire`]).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::{LinuxError, netns::Netns};

/// How many requests go out before their answers are read: their acknowledgements must fit the
/// socket's buffer.
const BATCH: usize = 64;
/// A dump that changes while it is read is begun again, this often.
const DUMP_TRIES: u32 = 10;

/// One change that is asked of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    what: String,
}

impl Request {
    /// Makes what is not there yet; what is there is an error (`EEXIST`). `what` is for messages, `add route 10.0.0.0/8`.
    #[must_use]
    pub fn create(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self { message, flags: NLM_F_CREATE | NLM_F_EXCL, what: what.into() }
    }

    /// Makes it or puts it in place of what is there.
    #[must_use]
    pub fn replace(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self { message, flags: NLM_F_CREATE | NLM_F_REPLACE, what: what.into() }
    }

    /// Changes what is there, or deletes it: the message's own type says which.
    #[must_use]
    pub fn change(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self { message, flags: 0, what: what.into() }
    }

    /// What it asks, for messages.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// An rtnetlink socket. It belongs to the namespace that it was opened in, wherever it is used.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket of the calling thread's namespace.
    pub fn open() -> Result<Self, LinuxError> {
        let failed = |source| LinuxError::Netlink { source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Acknowledgements without a copy of the request, with the kernel's explanation.
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A socket of this namespace.
    pub fn open_in(namespace: &Netns) -> Result<Self, LinuxError> {
        namespace.run(Self::open)?
    }

    /// Sends all requests, in order, in as few system calls as fit, and answers with each one's outcome.
    /// The kernel goes on after a request that it refuses.
    pub fn send_batch(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Result<(), LinuxError>>, LinuxError> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(BATCH) {
            self.send_chunk(chunk, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Sends all requests and fails with the first that the kernel refused.
    pub fn send_all(&mut self, requests: &[Request]) -> Result<(), LinuxError> {
        self.send_batch(requests)?.into_iter().collect()
    }

    fn send_chunk(
        &mut self,
        chunk: &[Request],
        outcomes: &mut Vec<Result<(), LinuxError>>,
    ) -> Result<(), LinuxError> {
        let first = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        for request in chunk {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            append(&mut buffer, request.message.clone(), flags, self.sequence);
        }
        self.write(&buffer)?;
        let base = outcomes.len();
        outcomes.extend(chunk.iter().map(|_| Ok(())));
        let mut n_answered = 0;
        while n_answered < chunk.len() {
            let data = self.read()?;
            for message in messages(&data) {
                let message = message?;
                let NetlinkPayload::Error(error) = message.payload else { continue };
                let index = usize::try_from(message.header.sequence_number.wrapping_sub(first))
                    .unwrap_or(usize::MAX);
                let Some(request) = chunk.get(index) else { continue };
                n_answered += 1;
                if let Some(code) = error.code {
                    outcomes[base + index] = Err(LinuxError::Refused {
                        what: request.what.clone(),
                        text: explanation(&error.header),
                        source: Errno::from_raw(code.get().saturating_abs()),
                    });
                }
            }
        }
        Ok(())
    }

    /// The one thing that is asked for; `None` when it is not there. `what` is for messages.
    pub fn get(
        &mut self,
        question: &RouteNetlinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, LinuxError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        append(&mut buffer, question.clone(), NLM_F_REQUEST, self.sequence);
        self.write(&buffer)?;
        loop {
            let data = self.read()?;
            for message in messages(&data) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => return Ok(Some(inner)),
                    NetlinkPayload::Error(error) => {
                        let number = error.code.map_or(0, |code| code.get().saturating_abs());
                        return match Errno::from_raw(number) {
                            Errno::ENODEV | Errno::ENOENT => Ok(None),
                            source => Err(LinuxError::Refused {
                                what: what(),
                                text: explanation(&error.header),
                                source,
                            }),
                        };
                    }
                    other => return Err(LinuxError::Answer { text: format!("{other:?}") }),
                }
            }
        }
    }

    /// Everything that the kernel lists for this question.
    pub fn dump(
        &mut self,
        question: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, LinuxError> {
        for _ in 0..DUMP_TRIES {
            if let Some(answers) = self.dump_once(question)? {
                return Ok(answers);
            }
        }
        Err(LinuxError::Answer { text: format!("a dump changed {DUMP_TRIES} times while read") })
    }

    /// `None` when something changed meanwhile and the answer may have holes.
    fn dump_once(
        &mut self,
        question: &RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, LinuxError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        append(&mut buffer, question.clone(), NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.write(&buffer)?;
        let mut answers = Vec::new();
        let mut whole = true;
        loop {
            let data = self.read()?;
            for message in messages(&data) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(whole.then_some(answers)),
                    NetlinkPayload::Error(error) => {
                        if let Some(code) = error.code {
                            return Err(LinuxError::Refused {
                                what: "dump".to_owned(),
                                text: explanation(&error.header),
                                source: Errno::from_raw(code.get().saturating_abs()),
                            });
                        }
                    }
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) => {}
                    other => return Err(LinuxError::Answer { text: format!("{other:?}") }),
                }
            }
        }
    }

    fn write(&mut self, buffer: &[u8]) -> Result<(), LinuxError> {
        self.socket.send(buffer, 0).map(drop).map_err(|source| LinuxError::Netlink { source })
    }

    fn read(&mut self) -> Result<Vec<u8>, LinuxError> {
        loop {
            match self.socket.recv_from_full() {
                Ok((data, _)) => return Ok(data),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LinuxError::Netlink { source }),
            }
        }
    }
}

fn append(buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = buffer.len();
    // NLMSG_ALIGN: each message begins at a multiple of four.
    buffer.resize((start + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut buffer[start..]);
}

/// The messages in one datagram.
fn messages(
    data: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, LinuxError>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        if length < 16 || length > rest.len() {
            return None;
        }
        let (message, after) = rest.split_at(length);
        rest = after.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(
            NetlinkMessage::deserialize(message)
                .map_err(|err| LinuxError::Answer { text: err.to_string() }),
        )
    })
}

/// The text of `NLMSGERR_ATTR_MSG` behind the copied header of 16 bytes, if there is one.
fn explanation(answer: &[u8]) -> String {
    let mut rest = answer.get(16..).unwrap_or_default();
    while let Some(&[a, b, c, d]) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if length < 4 || length > rest.len() {
            break;
        }
        if u16::from_ne_bytes([c, d]) == 1 {
            return String::from_utf8_lossy(&rest[4..length]).trim_end_matches('\0').to_owned();
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    String::new()
}

//! A process that answers in many network namespaces: whoever asks is told who answered and who asked.
//!
//! *Expected flow.* [`run`] listens on a Unix socket. A client (see [`Client`]) says in which namespaces
//! there is to be somebody; for each, the one thread enters it, opens four sockets and comes back. Then
//! it waits for all sockets of all namespaces together. Sockets stay in the namespace that they were
//! opened in.
//!
//! *Guarantees.* It lives on when its clients go, and answers meanwhile. Whoever it is told of twice is
//! there once.
//!
//! *What is said.* `pod=NAME address=ADDRESS caller=ADDRESS:PORT`, one line. TCP [`SPEAKING`] says it at
//! once. TCP [`LISTENING`] waits for a request: HTTP is answered as HTTP, anything else with the line. UDP
//! on both ports answers every datagram.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    resource::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

use crate::{LinuxError, netns::Netns};

/// The port that waits for a request.
pub const LISTENING: u16 = 80;
/// The TCP port that speaks first.
pub const SPEAKING: u16 = 8080;

/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many sockets are looked at before the kernel is asked again.
const AT_ONCE: usize = 256;
/// More than a request of ours, less than somebody's upload.
const LONGEST_REQUEST: usize = 4096;

/// Somebody who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voice {
    /// What it is known by to the client, unique.
    pub id: String,
    /// The name that it gives itself.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The path of its network namespace.
    pub netns: PathBuf,
}

/// What a client asks: one line of JSON each way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    /// Who is there?
    List,
    /// Be there.
    Add(Voice),
    /// Be there no more.
    Remove(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ids(Vec<String>),
    Done,
    Failed(String),
}

/// A connection to the process.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the process that listens at `socket`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The ids of all who answer.
    pub fn list(&mut self) -> io::Result<Vec<String>> {
        match self.ask(&Question::List)? {
            Answer::Ids(ids) => Ok(ids),
            other => Err(io::Error::other(format!("{other:?} is no list"))),
        }
    }

    /// Lets somebody answer. Success when it does already.
    pub fn add(&mut self, voice: Voice) -> io::Result<()> {
        self.done(&Question::Add(voice))
    }

    /// Lets somebody answer no more. Success when it does not.
    pub fn remove(&mut self, id: &str) -> io::Result<()> {
        self.done(&Question::Remove(id.to_owned()))
    }

    fn done(&mut self, question: &Question) -> io::Result<()> {
        match self.ask(question)? {
            Answer::Done => Ok(()),
            Answer::Failed(why) => Err(io::Error::other(why)),
            Answer::Ids(_) => Err(io::Error::other("a list was not asked for")),
        }
    }

    fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.0.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

/// Lets this process have as many open files as the machine allows it.
pub fn raise_open_files() -> Result<(), LinuxError> {
    let failed =
        |source| LinuxError::Call { what: "raising the limit of open files".into(), source };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)
}

/// Answers for ever, for whoever it is told at `socket`. Nobody else may listen there.
pub fn run(socket: &Path) -> Result<(), LinuxError> {
    raise_open_files()?;
    let file = |verb, source| LinuxError::File { verb, path: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(file("removing", source));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket)
        .and_then(|it| it.set_nonblocking(true).map(|()| it))
        .map_err(|source| file("listening at", source))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
        .map_err(|source| LinuxError::Call { what: "making an epoll".to_owned(), source })?;
    let mut house = House {
        epoll,
        own: Netns::current()?,
        next: 0,
        things: HashMap::new(),
        voices: BTreeMap::new(),
        guests: 0,
    };
    house.take(Thing::Door(listener))?;
    loop {
        house.turn()?;
    }
}

/// Something to wait for.
enum Thing {
    /// Where clients come in.
    Door(UnixListener),
    /// A client, and what it has said of its next line.
    Client(UnixStream, Vec<u8>),
    Listener(Rc<Voice>, TcpListener, u16),
    Datagrams(Rc<Voice>, UdpSocket),
    Guest(Guest),
}

/// A TCP connection.
struct Guest {
    voice: Rc<Voice>,
    stream: TcpStream,
    peer: SocketAddr,
    since: Instant,
    request: Vec<u8>,
    /// What comes now is read and dropped: closing before that would reset what was said.
    is_answered: bool,
}

struct House {
    epoll: Epoll,
    own: Netns,
    next: u64,
    things: HashMap<u64, Thing>,
    /// Who answers, with the numbers of its sockets.
    voices: BTreeMap<String, [u64; 4]>,
    guests: usize,
}

impl House {
    fn turn(&mut self) -> Result<(), LinuxError> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        let timeout =
            if self.guests == 0 { EpollTimeout::NONE } else { EpollTimeout::from(1000_u16) };
        let n = match self.epoll.wait(&mut events, timeout) {
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(source) => return Err(LinuxError::Call { what: "waiting".to_owned(), source }),
        };
        for event in events.iter().take(n) {
            self.serve(event.data());
        }
        if self.guests > 0 {
            let is_late = |thing: &Thing| matches!(thing, Thing::Guest(guest) if guest.since.elapsed() > PATIENCE);
            let before = self.things.len();
            self.things.retain(|_, thing| !is_late(thing));
            self.guests -= before - self.things.len();
        }
        Ok(())
    }

    /// Waits for a thing from now on. Closing it ends that.
    fn take(&mut self, thing: Thing) -> Result<u64, LinuxError> {
        let number = self.next;
        self.next += 1;
        let file = match &thing {
            Thing::Door(listener) => listener.as_fd(),
            Thing::Client(stream, _) => stream.as_fd(),
            Thing::Listener(_, listener, _) => listener.as_fd(),
            Thing::Datagrams(_, socket) => socket.as_fd(),
            Thing::Guest(guest) => guest.stream.as_fd(),
        };
        self.epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN, number)).map_err(|source| {
            LinuxError::Call { what: "waiting for a socket".to_owned(), source }
        })?;
        self.guests += usize::from(matches!(thing, Thing::Guest(_)));
        self.things.insert(number, thing);
        Ok(number)
    }

    fn drop(&mut self, number: u64) {
        if let Some(Thing::Guest(_)) = self.things.remove(&number) {
            self.guests -= 1;
        }
    }

    /// Something has happened to this thing; one step of it, since the kernel tells again.
    fn serve(&mut self, number: u64) {
        // It may have gone with an earlier event of the same turn.
        let Some(thing) = self.things.get_mut(&number) else { return };
        match thing {
            Thing::Door(listener) => {
                if let Ok((stream, _)) = listener.accept() {
                    // A client that does not read its answers must not stop the others.
                    let _ = stream.set_nonblocking(true);
                    let _ = self.take(Thing::Client(stream, Vec::new()));
                }
            }
            Thing::Client(stream, said) => {
                let mut piece = [0; 8192];
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => return self.drop(number),
                    Ok(n) => said.extend_from_slice(piece.get(..n).unwrap_or_default()),
                }
                let Some(end) = said.iter().rposition(|byte| *byte == b'\n') else { return };
                let lines: Vec<u8> = said.drain(..=end).collect();
                let mut answers = Vec::new();
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let answer = match serde_json::from_slice(line) {
                        Ok(question) => self.answer(question),
                        Err(error) => Answer::Failed(error.to_string()),
                    };
                    answers.extend(serde_json::to_vec(&answer).unwrap_or_default());
                    answers.push(b'\n');
                }
                if let Some(Thing::Client(stream, _)) = self.things.get_mut(&number)
                    && tell(stream, &answers).is_err()
                {
                    self.drop(number);
                }
            }
            Thing::Listener(voice, listener, port) => {
                let (voice, port) = (Rc::clone(voice), *port);
                match listener.accept() {
                    Ok((stream, peer)) => self.welcome(voice, stream, peer, port),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // Out of files: some are free as soon as guests leave.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            Thing::Datagrams(voice, socket) => {
                if let Ok((_, peer)) = socket.recv_from(&mut [0; 16]) {
                    let _ = socket.send_to(line(voice, peer).as_bytes(), peer);
                }
            }
            Thing::Guest(guest) => {
                if guest.step() {
                    self.drop(number);
                }
            }
        }
    }

    fn welcome(&mut self, voice: Rc<Voice>, stream: TcpStream, peer: SocketAddr, port: u16) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let (since, request) = (Instant::now(), Vec::new());
        let mut guest = Guest { voice, stream, peer, since, request, is_answered: false };
        if port == SPEAKING {
            guest.say();
        }
        let _ = self.take(Thing::Guest(guest));
    }

    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::List => Answer::Ids(self.voices.keys().cloned().collect()),
            Question::Add(voice) => match self.add(voice) {
                Ok(()) => Answer::Done,
                Err(error) => {
                    let why = std::error::Error::source(&error).map(|why| format!(": {why}"));
                    Answer::Failed(format!("{error}{}", why.unwrap_or_default()))
                }
            },
            Question::Remove(id) => {
                for number in self.voices.remove(&id).into_iter().flatten() {
                    self.drop(number);
                }
                // A guest would keep the namespace.
                let is_its =
                    |thing: &Thing| matches!(thing, Thing::Guest(guest) if guest.voice.id == id);
                if self.guests > 0 {
                    let before = self.things.len();
                    self.things.retain(|_, thing| !is_its(thing));
                    self.guests -= before - self.things.len();
                }
                Answer::Done
            }
        }
    }

    fn add(&mut self, voice: Voice) -> Result<(), LinuxError> {
        if self.voices.contains_key(&voice.id) {
            return Ok(());
        }
        let namespace = Netns::at(&voice.netns, &voice.name)?;
        namespace.enter()?;
        let opened = open();
        // Pathname sockets and `/proc` are the same everywhere, but a namespace is kept by who is in it.
        self.own.enter()?;
        let (listening, speaking, first, second) =
            opened.map_err(|source| LinuxError::Socket { source })?;
        let voice = Rc::new(voice);
        let numbers = [
            self.take(Thing::Listener(Rc::clone(&voice), listening, LISTENING))?,
            self.take(Thing::Listener(Rc::clone(&voice), speaking, SPEAKING))?,
            self.take(Thing::Datagrams(Rc::clone(&voice), first))?,
            self.take(Thing::Datagrams(Rc::clone(&voice), second))?,
        ];
        self.voices.insert(voice.id.clone(), numbers);
        Ok(())
    }
}

/// Every address of a family. A socket of IPv6 hears IPv4 as well, where the kernel has IPv6.
const EVERYWHERE: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];

/// The four sockets of the namespace that the thread is in.
fn open() -> io::Result<(TcpListener, TcpListener, UdpSocket, UdpSocket)> {
    let at = |port| EVERYWHERE.map(|address| SocketAddr::new(address, port));
    let tcp = |port| {
        let listener = TcpListener::bind(&at(port)[..])?;
        listener.set_nonblocking(true).map(|()| listener)
    };
    let udp = |port| {
        let socket = UdpSocket::bind(&at(port)[..])?;
        socket.set_nonblocking(true).map(|()| socket)
    };
    Ok((tcp(LISTENING)?, tcp(SPEAKING)?, udp(LISTENING)?, udp(SPEAKING)?))
}

impl Guest {
    /// Reads what there is, and answers a request that is whole. Says whether the connection is done with.
    fn step(&mut self) -> bool {
        let mut piece = [0; 2048];
        match self.stream.read(&mut piece) {
            Ok(0) => {
                if !self.is_answered && !self.request.is_empty() {
                    self.say();
                }
                return true;
            }
            Ok(_) if self.is_answered => return false,
            Ok(n) => self.request.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
        let is_whole = if is_http(&self.request) {
            self.request.windows(4).any(|four| four == b"\r\n\r\n")
        } else {
            self.request.contains(&b'\n')
        };
        if is_whole || self.request.len() > LONGEST_REQUEST {
            self.say();
        }
        false
    }

    fn say(&mut self) {
        self.is_answered = true;
        let line = line(&self.voice, self.peer);
        let text = if is_http(&self.request) {
            let body = if self.request.starts_with(b"HEAD ") { "" } else { &line };
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                line.len()
            )
        } else {
            line
        };
        // It fits into an empty send buffer; a guest that is gone is no news.
        let _ = self.stream.write_all(text.as_bytes());
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

fn is_http(request: &[u8]) -> bool {
    [b"GET ".as_slice(), b"HEAD ", b"POST ", b"PUT "].iter().any(|verb| request.starts_with(verb))
}

fn line(voice: &Voice, caller: SocketAddr) -> String {
    let caller = SocketAddr::new(caller.ip().to_canonical(), caller.port());
    format!("pod={} address={} caller={caller}\n", voice.name, voice.address)
}

/// Writes an answer; a list of ids can be longer than a socket's buffer.
fn tell(stream: &mut UnixStream, text: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(text)?;
    stream.set_nonblocking(true)
}

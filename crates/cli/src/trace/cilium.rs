//! What Cilium decides on a node, where the tracer of nftables sees nothing: it is asked of the agent by the sockets that
//! it has in the node. Not here: what the answers mean (see [`stream`] and [`policies`]).

mod policies;
mod stream;

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;

use self::{
    policies::Door,
    stream::{Direction, Fate, Notice, Stream, Verdict, What},
};
use super::hops::{Decision, Path as Way, Rule, Turn};
use crate::watch::frame::{Inside, Packet};

/// The table that its rules are shown in.
const TABLE: &str = "Cilium";
/// What it means that no socket may connect: Cilium refuses those to a service that nobody answers for.
pub(super) const UNANSWERED: &str =
    "it never left: Cilium knows nobody who answers for the service";
/// Verdicts that are shown in words of their own.
pub(super) const DEFAULT_DENY: &str = "default deny";
pub(super) const AUDIT: &str = "audit";
pub(super) const REDIRECT: &str = "redirect";
pub(super) const TRANSLATED: &str = "translate";
/// Where the agent has its sockets, seen from a node's root folder.
const SOCKETS: &str = "run/cilium";
/// How long it takes until an agent's new reader has got the kernel's events in place of an old one.
const RELIEF: Duration = Duration::from_millis(50);
/// After that it is taken to read.
const READY: Duration = Duration::from_millis(250);
/// How long an agent may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(3);

/// Cilium's agent on a node, which is listened to.
#[derive(Debug)]
pub(super) struct Agent {
    sockets: PathBuf,
    monitor: UnixStream,
    opened: Instant,
    stream: Stream,
    notices: Vec<Notice>,
    /// When the last of them came.
    heard: Option<Instant>,
}

/// Whether the node with this first process has Cilium.
pub(crate) fn is_on(first_process: i32) -> bool {
    folder(first_process).join("cilium.sock").exists()
}

fn folder(first_process: i32) -> PathBuf {
    Path::new("/proc").join(first_process.to_string()).join("root").join(SOCKETS)
}

impl Agent {
    /// Begins to listen to the agent of the node that has this first process; `None` when it has none.
    pub(super) fn open(first_process: i32) -> anyhow::Result<Option<Self>> {
        if !is_on(first_process) {
            return Ok(None);
        }
        let sockets = folder(first_process);
        let monitor = UnixStream::connect(sockets.join("monitor1_2.sock"))
            .context("listening to Cilium's agent")?;
        monitor.set_nonblocking(true)?;
        Ok(Some(Self {
            sockets,
            monitor,
            opened: Instant::now(),
            stream: Stream::default(),
            notices: Vec::new(),
            heard: None,
        }))
    }

    /// Waits until the agent reads what the kernel tells: it does so only while somebody listens.
    pub(super) fn wait(&self) -> anyhow::Result<()> {
        // The reader of those who listened last may still wait for an event, which it would lose, and when it ends
        // the agent may say that it reads nothing though it does.
        std::thread::sleep(RELIEF.saturating_sub(self.opened.elapsed()));
        while self.ask("healthz")?["nodeMonitor"].is_null() && self.opened.elapsed() < READY {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Takes what has come, and keeps what is about packets that `is_ours`.
    pub(super) fn read(&mut self, is_ours: impl Fn(&Packet) -> bool) -> anyhow::Result<()> {
        let mut buffer = [0; 16_384];
        loop {
            match (&self.monitor).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let come = self.stream.push(&buffer[..length]).map_err(anyhow::Error::msg)?;
                    let before = self.notices.len();
                    self.notices.extend(come.into_iter().filter(|it| is_ours(&it.packet)));
                    if self.notices.len() > before {
                        self.heard = Some(Instant::now());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("listening to Cilium's agent"),
            }
        }
    }

    /// Whether it has told of packets of ours, and nothing more for some time.
    pub(super) fn has_finished(&self, quiet: Duration) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() >= quiet)
    }

    /// What was decided, with the names of pods and policies.
    pub(super) fn decisions(&self) -> anyhow::Result<Vec<Decision>> {
        let mut decisions = Vec::new();
        for notice in &self.notices {
            let (turn, rule) = match notice.what {
                What::Policy(verdict) => (
                    match verdict.direction {
                        Direction::Egress => Turn::First,
                        Direction::Ingress => Turn::Last,
                    },
                    self.rule(verdict, &notice.packet)?,
                ),
                What::Drop(number) if !stream::is_policy(number) => (Turn::Last, dropped(number)),
                What::Drop(_) | What::Passed => continue,
            };
            decisions.push(Decision { packet: notice.packet.clone(), turn, rule });
        }
        Ok(decisions)
    }

    fn rule(&self, verdict: Verdict, packet: &Packet) -> anyhow::Result<Rule> {
        let (own, direction) = match verdict.direction {
            Direction::Ingress => (packet.destination, "ingress"),
            Direction::Egress => (packet.source, "egress"),
        };
        let told = policies::Told {
            endpoint: self.ask(&format!("endpoint/{}", verdict.endpoint))?,
            rules: self.ask("policy")?,
            peers: self.ask("policy/selectors")?,
            subjects: self.ask("policy/subject-selectors")?,
        };
        let names = policies::names(&told, verdict, door(packet));
        let whose = &self
            .ask(&format!("ip?cidr={own}/{}", if own.is_ipv6() { 128 } else { 32 }))?[0]["metadata"];
        let whose = match (whose["namespace"].as_str(), whose["name"].as_str()) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => own.to_string(),
        };
        let is_drop = verdict.fate == Fate::Denied;
        Ok(Rule {
            table: TABLE.to_owned(),
            chain: direction.to_owned(),
            gate: Some(format!("{TABLE}, {direction} of {whose}")),
            name: Some(match names.as_slice() {
                [] => "a policy that is gone".to_owned(),
                names => names.join(", "),
            }),
            text: None,
            verdict: match (verdict.fate, verdict.has_rule) {
                (Fate::Allowed, _) => "allow",
                (Fate::Redirected, _) => REDIRECT,
                (Fate::Denied, true) => "deny",
                (Fate::Denied, false) => DEFAULT_DENY,
                (Fate::Audited, _) => AUDIT,
            }
            .to_owned(),
            is_drop,
        })
    }

    /// What the agent's API answers; nothing when it has nothing of this name.
    fn ask(&self, what: &str) -> anyhow::Result<Value> {
        let asking = || format!("asking Cilium's agent for `{what}`");
        let mut stream =
            UnixStream::connect(self.sockets.join("cilium.sock")).with_context(asking)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the answer ends with the stream and comes in one piece.
        write!(stream, "GET /v1/{what} HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .with_context(asking)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(asking)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        match head.split_whitespace().nth(1) {
            Some("200") => serde_json::from_str(body).with_context(asking),
            _ => Ok(Value::Null),
        }
    }
}

/// Shows that a probe to `wanted` has got another destination before it was sent: Cilium chooses who answers for a service
/// where a socket is made.
pub(super) fn show_socket(way: &mut Way, wanted: SocketAddr) {
    let Some(hop) = way.hops.first_mut() else { return };
    let Some(packet) = &hop.first else { return };
    let given = SocketAddr::new(packet.destination, packet.ports().map_or(0, |(_, to)| to));
    if given == wanted || matches!(packet.inside, Inside::Icmp { .. }) {
        return;
    }
    let source = SocketAddr::new(packet.source, packet.ports().map_or(0, |(from, _)| from));
    hop.before = format!("{source} > {wanted}");
    hop.rules.insert(
        0,
        Rule {
            table: TABLE.to_owned(),
            chain: "socket".to_owned(),
            gate: Some(format!("{TABLE}, socket of {}", hop.place)),
            name: Some(format!("{given} for {wanted}")),
            text: None,
            verdict: TRANSLATED.to_owned(),
            is_drop: false,
        },
    );
}

/// Where a packet wants to enter.
fn door(packet: &Packet) -> Door {
    let port = match packet.inside {
        Inside::Tcp { destination, .. } | Inside::Udp { destination, .. } => destination,
        Inside::Icmp { kind, .. } => kind.into(),
        Inside::Other => 0,
    };
    Door { protocol: packet.protocol, port }
}

/// A packet that Cilium drops, though no policy denies it.
fn dropped(number: u8) -> Rule {
    Rule {
        table: TABLE.to_owned(),
        chain: "drop".to_owned(),
        gate: Some(TABLE.to_owned()),
        name: Some(stream::reason(number)),
        text: None,
        verdict: "drop".to_owned(),
        is_drop: true,
    }
}

#[cfg(test)]
mod tests;

//! Health probes of load balancers. Not here: what a verdict means (see `vnet::host`).
//!
//! A member is down until a probe has succeeded once. After that, [`Probe::threshold`] answers in a row
//! change the verdict, as in Azure.
//!
//! [`Probe::threshold`]: vnet::model::Probe::threshold

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use linux::{LinuxError, netns::Netns};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use vnet::{
    host::{
        Health,
        health::{Probed, Question},
        names::PLATFORM_ADDRESS,
    },
    model::ProbeProtocol,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a member is asked that has never answered well. Azure waits a whole interval; so that a
/// new service is not slower than its pods, a lab does not.
const EAGER: Duration = Duration::from_secs(1);

/// Asks questions again and again, and tells what changes.
pub(super) struct Probes {
    verdicts: watch::Sender<Health>,
    asked: Vec<(Question, JoinHandle<()>)>,
}

impl Probes {
    pub(super) fn new(verdicts: watch::Sender<Health>) -> Self {
        Self { verdicts, asked: Vec::new() }
    }

    /// Asks each question once, so that a lab that goes on after its daemon ended does not begin with
    /// nobody healthy. Takes as long as the slowest answer, [`PATIENCE`] at most.
    pub(super) async fn recall(&self, questions: &[Question]) {
        let mut asked = JoinSet::new();
        for question in questions.iter().cloned() {
            asked.spawn_blocking(move || {
                ask_once(&question).unwrap_or(false).then_some(question.probed)
            });
        }
        for probed in asked.join_all().await.into_iter().flatten() {
            set(&self.verdicts, &probed, true);
        }
    }

    /// From now on asks these questions and no others.
    pub(super) fn ask(&mut self, questions: Vec<Question>) {
        let verdicts = &self.verdicts;
        self.asked.retain(|(question, task)| {
            let stays = questions.contains(question);
            if !stays {
                task.abort();
                set(verdicts, &question.probed, false);
            }
            stays
        });
        for question in questions {
            if !self.asked.iter().any(|(asked, _)| *asked == question) {
                let task = tokio::spawn(keep_asking(question.clone(), self.verdicts.clone()));
                self.asked.push((question, task));
            }
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for (_, task) in &self.asked {
            task.abort();
        }
    }
}

fn set(verdicts: &watch::Sender<Health>, probed: &Probed, up: bool) {
    verdicts.send_if_modified(|health| {
        if up { health.up.insert(probed.clone()) } else { health.up.remove(probed) }
    });
}

async fn keep_asking(question: Question, verdicts: watch::Sender<Health>) {
    let is_up = verdicts.borrow().up.contains(&question.probed);
    let mut streak = Streak { verdict: is_up.then_some(true), n_against: 0 };
    let interval = Duration::from_secs(question.probe.interval_seconds.max(1).into());
    loop {
        let asked = question.clone();
        let good = tokio::task::spawn_blocking(move || ask_once(&asked).unwrap_or(false))
            .await
            .unwrap_or(false);
        if let Some(up) = streak.hear(good, question.probe.threshold) {
            tracing::info!(member = %question.address, port = question.probe.port, up,
                "a load balancer's member changed its health");
            set(&verdicts, &question.probed, up);
        }
        let fresh = streak.verdict.is_none();
        tokio::time::sleep(if fresh { EAGER.min(interval) } else { interval }).await;
    }
}

/// Answers in a row, and the verdict so far.
#[derive(Debug, Default)]
struct Streak {
    verdict: Option<bool>,
    n_against: u32,
}

impl Streak {
    /// Takes one more answer; gives the verdict when it changes.
    fn hear(&mut self, good: bool, threshold: u32) -> Option<bool> {
        match self.verdict {
            Some(verdict) if verdict == good => {
                self.n_against = 0;
                return None;
            }
            Some(_) => {
                self.n_against += 1;
                if self.n_against < threshold {
                    return None;
                }
            }
            // Down is where everybody starts, so only good news is news.
            None if !good => return None,
            None => {}
        }
        self.n_against = 0;
        self.verdict = Some(good);
        self.verdict
    }
}

/// Whether the member answers as it should. HTTPS is asked no more than whether somebody accepts.
fn ask_once(question: &Question) -> Result<bool, LinuxError> {
    let namespace = Netns::open(&question.namespace)?;
    let to = SocketAddrV4::new(question.address, question.probe.port);
    let stream = namespace.tcp_connect(Some(PLATFORM_ADDRESS), to, PATIENCE)?;
    Ok(match question.probe.protocol {
        ProbeProtocol::Tcp | ProbeProtocol::Https => true,
        ProbeProtocol::Http => is_ok(stream, to, &question.probe.path).unwrap_or(false),
    })
}

/// Whether `GET path` answers 200.
fn is_ok(mut stream: TcpStream, to: SocketAddrV4, path: &str) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let path = if path.is_empty() { "/" } else { path };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {to}\r\nuser-agent: Load Balancer Agent\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as `+` and `-`; what comes out, `u`p or `d`own, where it changes.
    fn check(threshold: u32, answers: &str, expected: &str) {
        let mut streak = Streak::default();
        let heard: String = answers
            .chars()
            .map(|answer| match streak.hear(answer == '+', threshold) {
                None => '.',
                Some(true) => 'u',
                Some(false) => 'd',
            })
            .collect();
        assert_eq!(heard, expected, "{answers}");
    }

    #[test]
    fn the_first_success_counts_and_then_the_threshold() {
        check(2, "--+-+--++-", "..u...d.u.");
        check(1, "+-+", "udu");
        check(2, "", "");
    }
}

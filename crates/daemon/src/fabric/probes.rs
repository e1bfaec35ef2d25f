//! Health probes of load balancers. Not here: what a verdict means (see `vnet::host`).
//!
//! A member is down until a probe has succeeded once. After that, [`Probe::threshold`] answers in a row
//! change the verdict, as in Azure.
//!
//! [`Probe::threshold`]: vnet::model::Probe::threshold

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream},
    time::{Duration, Instant},
};

use linux::{
    LinuxError,
    net::{Netlink, link_indexes},
    netns::Netns,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use vnet::{
    host::{
        Health,
        health::{Probed, Question},
        names::{self, GATEWAY_ADDRESS, PLATFORM_ADDRESS},
    },
    model::ProbeProtocol,
};

use super::tls;

/// How long an answer may take: this long, or until the next one is due (Azure documentation, "Azure Load Balancer
/// health probes").
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the first answers after a start may take: the fabric waits for them.
const RECALL_PATIENCE: Duration = Duration::from_secs(3);
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
    /// nobody healthy. Takes as long as the slowest answer, [`RECALL_PATIENCE`] at most.
    pub(super) async fn recall(&self, questions: &[Question]) {
        let mut asked = JoinSet::new();
        for question in questions.iter().cloned() {
            asked.spawn_blocking(move || {
                let good = ask_once(&question, RECALL_PATIENCE).unwrap_or(false);
                good.then_some(question.probed)
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
    let patience = PATIENCE.min(interval);
    loop {
        let asked = question.clone();
        let good = tokio::task::spawn_blocking(move || ask_once(&asked, patience).unwrap_or(false))
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

/// Whether the member answers as it should.
fn ask_once(question: &Question, patience: Duration) -> Result<bool, LinuxError> {
    let deadline = Instant::now() + patience;
    let namespace = Netns::open(&question.namespace)?;
    let to = SocketAddr::new(question.address, question.probe.port);
    let source = match question.address {
        IpAddr::V4(_) => SocketAddr::new(PLATFORM_ADDRESS.into(), 0),
        // Of all the links that have this address, that of the member.
        IpAddr::V6(_) => {
            let links = link_indexes(&mut Netlink::open_in(&namespace)?)?;
            let link = links.get(&names::port(&question.probed.member)).copied();
            SocketAddrV6::new(GATEWAY_ADDRESS, 0, 0, link.unwrap_or_default()).into()
        }
    };
    let stream = namespace.tcp_connect_from(Some(source), to, patience)?;
    let stream = Timed { stream, deadline };
    let path = &question.probe.path;
    Ok(match question.probe.protocol {
        ProbeProtocol::Tcp => true,
        ProbeProtocol::Http => is_ok(stream, to, path).unwrap_or(false),
        ProbeProtocol::Https => {
            tls::over(stream, to).and_then(|stream| is_ok(stream, to, path)).unwrap_or(false)
        }
    })
}

/// A connection on which everything together must be done at a time, however slowly the other side trickles.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Whether `GET path` answers 200.
fn is_ok(mut stream: impl Read + Write, to: SocketAddr, path: &str) -> io::Result<bool> {
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

    /// Whether a server that sends `answer`, this slowly, is well.
    fn asked(answer: &'static [u8], pause: Duration) -> bool {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("an address");
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 1000];
            let n = stream.read(&mut request).expect("a request");
            for byte in answer {
                std::thread::sleep(pause);
                if stream.write_all(&[*byte]).is_err() {
                    break;
                }
            }
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let stream = TcpStream::connect(to).expect("a connection");
        let deadline = Instant::now() + Duration::from_millis(500);
        let good = is_ok(Timed { stream, deadline }, to, "/healthz").unwrap_or(false);
        let request = serving.join().expect("a server");
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"), "{request}");
        good
    }

    #[test]
    fn only_200_in_time_is_good() {
        assert!(asked(b"HTTP/1.1 200 OK\r\n\r\n", Duration::ZERO));
        assert!(asked(b"HTTP/1.0 200 OK\r\n\r\n", Duration::ZERO));
        for bad in [
            &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
            b"HTTP/1.1 302 Found\r\n\r\n",
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
            b"SSH-2.0-OpenSSH 200\r\n",
            b"",
        ] {
            assert!(!asked(bad, Duration::ZERO), "{}", String::from_utf8_lossy(bad));
        }
        // Each byte is in time, all of them are not.
        assert!(!asked(b"HTTP/1.1 200 OK\r\n\r\n", Duration::from_millis(100)));
    }
}

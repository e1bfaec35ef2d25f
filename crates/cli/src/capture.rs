//! `aksnet capture`: the packets at points of their path, as lines or as a file for Wireshark and tcpdump.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use linux::{
    netns::Netns,
    packets::{self, Direction, Frame, Tap},
};

use crate::{
    control::{Answer, Ask, ask},
    lab::Lab,
    output::{Progress, say},
    places::Place,
    watch::{
        filter::Filter,
        frame::{Decoded, decode},
        pcapng::Writer,
    },
};

/// How often what was written is handed on, and whoever pressed Ctrl-C is heard.
const BEAT: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "Points:
  vm/NAME, node/NAME         a machine's own link
  pod/[CLUSTER:]NAMESPACE/NAME
  nic/NAME                   the same link seen from the virtual network
  gateway/VNET/SUBNET        what a subnet's gateway routes: the links of all its machines
  vnet/NAME                  all links of a virtual network, and the one to the internet
  lb/NAME                    what is for a load balancer's front ends, before and after it chooses
  internet, ADDRESS          or just NAME, when only one thing is called so
  GROUP:NAME                 where several resource groups have one

Examples:
  aksnet capture jump
  aksnet capture vm/jump gateway/vnet1/default --filter 'tcp port 80' --count 10
  aksnet capture pod/testns/web node/aks-pool1-12345678-vmss000000 | wireshark -k -i -
  aksnet capture lb/kubernetes -w lb.pcapng --seconds 30")]
pub(crate) struct Capture {
    /// Where
    #[arg(required = true)]
    points: Vec<String>,
    /// Write pcapng to this file; `-` is standard output, and the default where that is no terminal
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// A line for each packet; the default on a terminal
    #[arg(long, conflicts_with = "write")]
    text: bool,
    /// Only packets that fit, in tcpdump's words: `host`, `net`, `port`, `tcp`, `and`, `or`, `not`, …
    #[arg(short, long, value_name = "EXPRESSION")]
    filter: Option<Filter>,
    /// End after this many packets
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// End after this many seconds
    #[arg(short, long, value_name = "S")]
    seconds: Option<f64>,
    /// Keep only the first bytes of each packet
    #[arg(long, value_name = "BYTES", default_value = "0", hide_default_value = true)]
    snapshot_length: usize,
}

/// A place with its tap.
struct Point {
    place: Place,
    tap: Tap,
    hosts: Option<Filter>,
}

enum Output {
    Lines,
    File { writer: Writer<BufWriter<Box<dyn Write>>>, numbers: Vec<Vec<(u32, u32)>> },
}

/// Captures until it is told to end.
pub(crate) fn run(lab: &Lab, wanted: &Capture) -> anyhow::Result<()> {
    if wanted.seconds.is_some_and(|seconds| !(seconds >= 0.0 && seconds.is_finite())) {
        bail!("--seconds takes a number of seconds");
    }
    let Answer::Places(places) = ask(lab, &Ask::Places { names: wanted.points.clone() })? else {
        bail!("the lab answered another question");
    };
    let points = places
        .into_iter()
        .map(|place| open(place, wanted.snapshot_length))
        .collect::<anyhow::Result<Vec<_>>>()?;
    packets::wait_for_stamps()?;
    let stop = stop_on_signals()?;
    let mut output = Output::new(wanted, &points)?;
    let names: Vec<&str> = points.iter().map(|point| point.place.name.as_str()).collect();
    let mut progress = Progress::new(&format!("capturing at {}, Ctrl-C ends it", names.join(", ")));
    let began = Instant::now();
    let patience = wanted.seconds.map(Duration::from_secs_f64);
    let mut n_packets = 0;
    let is_enough = |n: u64| wanted.count.is_some_and(|count| n >= count);
    'all: while !is_enough(n_packets) && !stop.load(Ordering::Relaxed) {
        let left = patience.map(|patience| patience.saturating_sub(began.elapsed()));
        if left == Some(Duration::ZERO) {
            break;
        }
        let sources: Vec<_> = points.iter().map(|point| point.tap.as_fd()).collect();
        packets::wait(&sources, left.map_or(BEAT, |left| left.min(BEAT)))?;
        for (number, frame, decoded) in gather(&points, wanted.filter.as_ref())? {
            match output.packet(&points, number, &frame, decoded.as_ref()) {
                // Whoever read it has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break 'all,
                other => other.context("writing packets")?,
            }
            n_packets += 1;
            if is_enough(n_packets) {
                break;
            }
        }
        match output.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            other => other.context("writing packets")?,
        }
        progress.tell(&format!("{n_packets} packets"));
    }
    drop(progress);
    say(&format!("{n_packets} packets"));
    Ok(())
}

fn open(place: Place, beginning: usize) -> anyhow::Result<Point> {
    let namespace = Netns::at(Path::new(&place.netns), &place.name)
        .with_context(|| format!("opening the network of {}", place.name))?;
    let links: Vec<String> =
        if place.every_link { Vec::new() } else { place.links.keys().cloned().collect() };
    let tap = Tap::open(&namespace, &links, beginning)
        .with_context(|| format!("listening at {}", place.name))?;
    let hosts = Filter::any_host(place.hosts.iter().copied());
    Ok(Point { place, tap, hosts })
}

/// What has come at all points and is wanted, in the order of time.
fn gather(
    points: &[Point],
    filter: Option<&Filter>,
) -> anyhow::Result<Vec<(usize, Frame, Option<Decoded>)>> {
    let mut all = Vec::new();
    for (number, point) in points.iter().enumerate() {
        // A flood must not keep us from writing.
        for _ in 0..10_000 {
            let Some(frame) = point.tap.read()? else { break };
            let decoded = decode(&frame.data);
            let wants = |filter: Option<&Filter>| {
                filter.is_none_or(|it| decoded.as_ref().is_some_and(|packet| it.wants(packet)))
            };
            if wants(filter) && wants(point.hosts.as_ref()) {
                all.push((number, frame, decoded));
            }
        }
    }
    all.sort_by_key(|(_, frame, _)| frame.at);
    Ok(all)
}

impl Point {
    /// `vm/web eth0`, with who is behind the link when that says more.
    fn link_name(&self, link: u32) -> String {
        let name = self.tap.link_name(link);
        match self.place.links.get(&name).filter(|behind| !behind.is_empty()) {
            Some(behind) => format!("{} {name} ({behind})", self.place.name),
            None => format!("{} {name}", self.place.name),
        }
    }
}

impl Output {
    fn new(wanted: &Capture, points: &[Point]) -> anyhow::Result<Self> {
        let to_stdout = wanted.write.as_ref().is_none_or(|path| path.as_os_str() == "-");
        if wanted.text || (wanted.write.is_none() && io::stdout().is_terminal()) {
            return Ok(Self::Lines);
        }
        let out: Box<dyn Write> = match &wanted.write {
            Some(path) if !to_stdout => {
                Box::new(File::create(path).with_context(|| format!("making {}", path.display()))?)
            }
            _ if io::stdout().is_terminal() => {
                bail!("packets would garble this terminal; give `-w` a file, or use a pipe")
            }
            _ => Box::new(io::stdout()),
        };
        let begin = || -> io::Result<Self> {
            let mut writer = Writer::new(BufWriter::new(out))?;
            let mut numbers = Vec::new();
            for point in points {
                let mut own = Vec::new();
                for link in point.tap.links() {
                    own.push((link, writer.interface(&point.link_name(link))?));
                }
                numbers.push(own);
            }
            writer.flush()?;
            Ok(Self::File { writer, numbers })
        };
        begin().context("writing packets")
    }

    fn packet(
        &mut self,
        points: &[Point],
        number: usize,
        frame: &Frame,
        decoded: Option<&Decoded>,
    ) -> io::Result<()> {
        match self {
            Self::Lines => {
                let text = decoded.map_or_else(|| "too short".to_owned(), ToString::to_string);
                let arrow = match frame.direction {
                    Direction::In => "in ",
                    Direction::Out => "out",
                };
                let (time, place) = (clock(frame.at), points[number].link_name(frame.link));
                writeln!(io::stdout(), "{time} {place} {arrow} {text}")
            }
            Self::File { writer, numbers } => {
                let known = numbers[number].iter().find(|(link, _)| *link == frame.link);
                let interface = if let Some((_, interface)) = known {
                    *interface
                } else {
                    // A link that was made since.
                    let interface = writer.interface(&points[number].link_name(frame.link))?;
                    numbers[number].push((frame.link, interface));
                    interface
                };
                writer.packet(interface, frame)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Lines => io::stdout().flush(),
            Self::File { writer, .. } => writer.flush(),
        }
    }
}

/// The time of day in UTC, in microseconds.
fn clock(at: Duration) -> String {
    let seconds = at.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:06}", seconds % 60, at.subsec_micros())
}

/// Becomes true at SIGINT and SIGTERM, which end the process no more.
pub(crate) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
        });
        told.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

//! A lab of a test's own: real namespaces, removed at the end.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use daemon::fabric::{Reconciler, Scope, down, reconciler::Done};
use linux::netns::Netns;
use vnet::{
    host::{Health, change, compile_fabric, names},
    region::Region,
};

use crate::world::{id, machine_id, region, vnet_id};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Longer than any answer takes, shorter than a kernel's second try.
const PATIENCE: Duration = Duration::from_millis(900);

pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) region: Region,
    reconciler: Reconciler,
    /// Of the last pass.
    health: Health,
}

impl Lab {
    /// A lab with this region, made real.
    pub(crate) fn new(text: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}x{number}", std::process::id());
        let reconciler = Reconciler::new(&name);
        let mut lab = Self { name, region: region(text), reconciler, health: Health::default() };
        lab.pass(&Health::default(), Scope::Changed);
        lab
    }

    /// Makes it real once more.
    pub(crate) fn pass(&mut self, health: &Health, scope: Scope) -> Done {
        let fabric = compile_fabric(&self.name, &self.region, health);
        self.health = health.clone();
        self.reconciler.pass(&fabric, scope).unwrap_or_else(|err| {
            panic!("{err}: {:?}", std::error::Error::source(&err).map(ToString::to_string))
        })
    }

    /// What a new process finds that wants every packet counted.
    pub(crate) fn begins_to_count(&mut self) {
        self.reconciler = Reconciler::new(&self.name).counting();
        let health = self.health.clone();
        self.pass(&health, Scope::All);
    }

    /// Makes it what the text says now: as the fabric's loop does, by the difference where that is known.
    pub(crate) fn becomes(&mut self, text: &str) -> Done {
        let before = std::mem::replace(&mut self.region, region(text));
        let health = Health::default();
        if self.health == health
            && let Some(change) = change(&self.name, &before, &self.region, &health)
        {
            let done = self.reconciler.change(&change).unwrap_or_else(|err| panic!("{err:?}"));
            return done.expect("it is known what was made");
        }
        self.pass(&health, Scope::Changed)
    }

    pub(crate) fn machine(&self, name: &str) -> Netns {
        let machine = &self.region.machines[&machine_id(name)];
        open(&names::machine_ns(&self.name, machine))
    }

    pub(crate) fn vnet(&self, name: &str) -> Netns {
        open(&names::vnet_ns(&self.name, &vnet_id(name)))
    }

    pub(crate) fn internet(&self) -> Netns {
        open(&names::internet_ns(&self.name))
    }

    pub(crate) fn control_plane(&self, cluster: &str) -> Netns {
        open(&names::control_plane_ns(&self.name, &id("managedClusters", cluster)))
    }

    /// Has a machine answer on every port named, with its own name and the source that it sees.
    pub(crate) fn serve(&self, machine: &str, ports: &[u16]) {
        let namespace = self.machine(machine);
        for port in ports {
            serve(&namespace, machine, *port);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = down(&self.name);
        if !thread::panicking() {
            removed.expect("the lab can be removed");
            let left = Netns::list().expect("namespaces can be listed");
            let prefix = format!("{}-", self.name);
            assert!(!left.iter().any(|name| name.starts_with(&prefix)), "left: {left:?}");
        }
    }
}

fn open(name: &str) -> Netns {
    Netns::open(name).unwrap_or_else(|err| panic!("{err}"))
}

/// Answers connections of both families in a namespace with `NAME sees SOURCE at DESTINATION`.
pub(crate) fn serve(namespace: &Netns, name: &str, port: u16) {
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let listener = namespace.tcp_listen_at(at).expect("the port is free");
    let name = name.to_owned();
    thread::spawn(move || answer(&listener, &name));
}

fn answer(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { continue };
        let said =
            format!("{name} sees {} at {}", peer.ip().to_canonical(), local.ip().to_canonical());
        let _ = stream.write_all(said.as_bytes());
        // Some tests hold connections open and speak a second time.
        let name = name.to_owned();
        thread::spawn(move || echo(stream, &name));
    }
}

fn echo(mut stream: TcpStream, name: &str) {
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if stream.write_all(name.as_bytes()).is_err() {
            return;
        }
    }
}

/// A connection with the first thing that the other side says.
pub(crate) fn connect(from: &Netns, to: &str) -> Option<(TcpStream, String)> {
    connect_as(from, None, to)
}

/// The same, with a source address of one's own choice.
pub(crate) fn connect_as(
    from: &Netns,
    source: Option<&str>,
    to: &str,
) -> Option<(TcpStream, String)> {
    let to = to.parse().expect("ADDRESS:PORT");
    let source = source.map(|source| SocketAddr::new(source.parse().expect("an address"), 0));
    let mut stream = from.tcp_connect_from(source, to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let mut buffer = [0; 200];
    let n = stream.read(&mut buffer).ok()?;
    Some((stream, String::from_utf8_lossy(&buffer[..n]).into_owned()))
}

/// What the other side says first, or `nothing`.
pub(crate) fn ask(from: &Netns, to: &str) -> String {
    connect(from, to).map_or_else(|| "nothing".to_owned(), |(_, said)| said)
}

/// The same, with a source address of one's own choice.
pub(crate) fn ask_as(from: &Netns, source: &str, to: &str) -> String {
    connect_as(from, Some(source), to).map_or_else(|| "nothing".to_owned(), |(_, said)| said)
}

/// Counts packets that match from now on, in a namespace; [`counted`] says how many there were.
pub(crate) fn count(namespace: &Netns, hook: &str, matching: &str) {
    let rules = format!(
        "add table ip counting; add chain ip counting c {{ type filter hook {hook} priority -400; }}; \
         add rule ip counting c {matching} counter"
    );
    assert_eq!(run(namespace, "nft", &[&rules]), "");
}

/// How many packets [`count`] has counted.
pub(crate) fn counted(namespace: &Netns) -> u32 {
    let listing = run(namespace, "nft", &["list", "chain", "ip", "counting", "c"]);
    let (_, after) = listing.split_once("counter packets ").expect("a counter");
    after.split(' ').next().expect("a number").parse().expect("a number")
}

/// How often the rule of this name has decided, in the chain of a security group's list.
pub(crate) fn decided(namespace: &Netns, chain: &str, rule: &str) -> u32 {
    all_decided(namespace, chain).get(rule).copied().unwrap_or(0)
}

/// How often each rule has decided, in the chain of a security group's list and its parts.
pub(crate) fn all_decided(namespace: &Netns, chain: &str) -> BTreeMap<String, u32> {
    let listing = run(namespace, "nft", &["list", "table", "ip", vnet::host::TABLE]);
    let part = format!("{chain}-");
    let mut decided = BTreeMap::new();
    let mut is_within = false;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            let name = name.trim_end_matches([' ', '{']);
            is_within = name == chain || name.starts_with(&part);
        }
        let Some((_, after)) = line.split_once("counter packets ").filter(|_| is_within) else {
            continue;
        };
        let (_, rule) = line.split_once(" comment \"").expect("a name");
        let n: u32 = after.split(' ').next().expect("a number").parse().expect("a number");
        if n > 0 {
            *decided.entry(rule.trim_end_matches('"').to_owned()).or_default() += n;
        }
    }
    decided
}

/// Gives a node a pod: an address on its loopback. The fabric sees no difference.
pub(crate) fn pod(node: &Netns, address: &str) {
    run(node, "ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
}

/// Gives a namespace an address of IPv6 on a link, and waits until the kernel answers to it: it says so before.
pub(crate) fn add_ipv6(namespace: &Netns, address: &str, link: &str) {
    let with_length = format!("{address}/128");
    assert_eq!(
        run(namespace, "ip", &["-6", "addr", "add", &with_length, "dev", link, "nodad"]),
        ""
    );
    let is_there = || {
        let routes = run(namespace, "ip", &["-6", "route", "show", "table", "local"]);
        routes.lines().any(|line| line.starts_with(&format!("local {address} ")))
    };
    for _ in 0..200 {
        if is_there() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{address} is not there within two seconds");
}

/// Has a machine translate what it forwards to its own address.
pub(crate) fn masquerade(machine: &Netns) {
    let rules = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; \
                 add rule ip t c masquerade";
    assert_eq!(run(machine, "nft", &[rules]), "");
}

/// Runs a program in a namespace and gives its standard output.
pub(crate) fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> String {
    let output = namespace
        .run(|| std::process::Command::new(program).args(arguments).output())
        .expect("the namespace can be entered")
        .unwrap_or_else(|err| panic!("{program}: {err}"));
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

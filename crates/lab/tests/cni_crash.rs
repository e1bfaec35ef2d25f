//! The agent and plugins are killed again and again while pods come and go; afterwards every law holds. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lab::pods::{World, leases, wait};
use linux::netns::Netns;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const N_CONTAINERS: usize = 12;
const N_THREADS: usize = 4;
/// Rounds unless `AKSNET_FAULT_ROUNDS` says otherwise.
const N_KILLS: u64 = 50;

/// What the runtime believes of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Belief {
    /// DEL has succeeded, or nothing was asked yet.
    Absent,
    /// ADD has said this address.
    Present(String),
    /// What was tried last broke off: either may be so, until a DEL.
    Unknown,
}

/// A few numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn whatever_is_killed_when_no_address_is_doubled_or_lost() {
    let mut world = World::new(PROGRAM);
    // Fewer addresses than could be held at once with leaving ones: they are used again and again.
    let addresses: Vec<_> = (10..26).map(|last| format!("10.1.0.{last}")).collect();
    let addresses = json!({ "version": 1, "addresses": addresses });
    world.start_agent("pod-subnet", &addresses);
    let names: Vec<_> = (0..N_CONTAINERS).map(|n| format!("c{n}")).collect();
    for name in &names {
        let _ = world.container(name);
    }
    let beliefs: BTreeMap<_, _> =
        names.iter().map(|name| (name.clone(), Mutex::new(Belief::Absent))).collect();
    let network = world.network("1.0.0");
    // Two pods that run throughout: their packets never meet the agent.
    let bystanders = Bystanders::start(&world, &network);
    let mut chance = Chance(20_231_102);
    let n_kills = match std::env::var("AKSNET_FAULT_ROUNDS") {
        Ok(text) => text.parse().expect("AKSNET_FAULT_ROUNDS is a number"),
        Err(_) => N_KILLS,
    };
    for kill in 0..n_kills {
        let stop = AtomicBool::new(false);
        let pause = Duration::from_millis(20 + chance.below(150));
        thread::scope(|scope| {
            for thread in 0..N_THREADS {
                let (stop, beliefs, world, network, names) =
                    (&stop, &beliefs, &world, &network, &names);
                let mut chance = Chance(kill * 100 + u64::try_from(thread).unwrap());
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let n_mine = u64::try_from(N_CONTAINERS / N_THREADS).unwrap();
                        let mine = usize::try_from(chance.below(n_mine)).unwrap();
                        // One in four plugins is killed, before or after it has spoken with the agent.
                        let life = (chance.below(4) == 0)
                            .then(|| Duration::from_micros(chance.below(4_000)));
                        step(world, network, &names[mine * N_THREADS + thread], beliefs, life);
                    }
                });
            }
            thread::sleep(pause);
            // The children of `world` are not ours to borrow mutably here: kill by its number.
            world.kill_agent_now();
            thread::sleep(Duration::from_millis(20));
            stop.store(true, Ordering::Relaxed);
        });
        world.kill_agent();
        world.start_agent("pod-subnet", &addresses);
        let mut holders = BTreeMap::new();
        for (name, belief) in &beliefs {
            let Belief::Present(address) = &*belief.lock().unwrap() else { continue };
            let other = holders.insert(address.clone(), name.clone());
            assert_eq!(other, None, "{address} is held by {name} too");
            let again = world.plugin("ADD", name, &network);
            assert_eq!(&again.address(), address, "{name} keeps its address over a crash");
            let mut checked = network.clone();
            checked["prevResult"] = again.json();
            let said = world.plugin("CHECK", name, &checked);
            assert!(said.success, "{name}: {said:?}\n{}", world.agent_log());
        }
        let on_disk: BTreeMap<_, _> = leases(&world.path("run"))
            .into_iter()
            .map(|(address, lease)| (lease["attachment"].to_string(), address))
            .collect();
        assert!(on_disk.len() <= N_CONTAINERS + 2, "an attachment has one lease");
    }
    bystanders.stop();
    for name in names.iter().map(String::as_str).chain(BYSTANDERS) {
        assert!(world.plugin("DEL", name, &network).success);
    }
    let is_clean = || {
        let links = world.output("node", "ip -o link show type veth");
        leases(&world.path("run")).is_empty() && links.lines().count() == 1
    };
    assert!(wait(Duration::from_secs(5), is_clean), "something is left\n{}", world.agent_log());
}

const BYSTANDERS: [&str; 2] = ["first", "second"];

/// Pods that send each other a packet every few milliseconds, and count what comes back.
struct Bystanders {
    stop: Arc<AtomicBool>,
    threads: [thread::JoinHandle<(u64, u64)>; 2],
}

impl Bystanders {
    fn start(world: &World, network: &serde_json::Value) -> Self {
        let addresses = BYSTANDERS.map(|name| {
            let _ = world.container(name);
            let said = world.plugin("ADD", name, network);
            assert!(said.success, "{said:?}");
            said.address()
        });
        let sockets = BYSTANDERS.map(|name| {
            let netns = Netns::open(&world.netns(name)).unwrap();
            let socket = netns.run(|| UdpSocket::bind("0.0.0.0:7777")).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        });
        let [first, second] = sockets;
        let stop = Arc::new(AtomicBool::new(false));
        let (asking, echoing) = (Arc::clone(&stop), Arc::clone(&stop));
        let to = format!("{}:7777", addresses[1]);
        let ask = thread::spawn(move || {
            let (mut sent, mut back) = (0, 0);
            while !asking.load(Ordering::Relaxed) {
                first.send_to(&u64::to_be_bytes(sent), &to).unwrap();
                let mut buffer = [0; 8];
                if first.recv(&mut buffer).is_ok() && u64::from_be_bytes(buffer) == sent {
                    back += 1;
                }
                sent += 1;
                thread::sleep(Duration::from_millis(5));
            }
            (sent, back)
        });
        let echo = thread::spawn(move || {
            let mut n = 0;
            while !echoing.load(Ordering::Relaxed) {
                let mut buffer = [0; 8];
                let Ok((_, from)) = second.recv_from(&mut buffer) else { continue };
                second.send_to(&buffer, from).unwrap();
                n += 1;
            }
            (n, n)
        });
        Self { stop, threads: [ask, echo] }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let [ask, echo] = self.threads;
        let (sent, back) = ask.join().unwrap();
        echo.join().unwrap();
        assert!(sent > 100, "{sent} packets in all");
        assert_eq!(sent, back, "a packet of running pods was lost");
    }
}

/// The next thing that a runtime would do with this container. The plugin is killed after `life`.
fn step(
    world: &World,
    network: &serde_json::Value,
    name: &str,
    beliefs: &BTreeMap<String, Mutex<Belief>>,
    life: Option<Duration>,
) {
    let mut belief = beliefs[name].lock().unwrap();
    let ask = |verb: &str| match life {
        Some(life) => world.plugin_killed_after(verb, name, network, life),
        None => world.plugin(verb, name, network),
    };
    *belief = match &*belief {
        Belief::Absent => {
            let said = ask("ADD");
            if said.success { Belief::Present(said.address()) } else { Belief::Unknown }
        }
        Belief::Present(_) | Belief::Unknown => {
            let said = ask("DEL");
            assert!(said.success || life.is_some(), "DEL always succeeds: {said:?}");
            if said.success { Belief::Absent } else { Belief::Unknown }
        }
    };
}

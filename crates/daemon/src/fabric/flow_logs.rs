//! Virtual network flow logs, as Azure writes them: who spoke with whom, which rule let them, and who was denied. Not
//! here: how the kernel tells it (see `linux::netfilter`), and the files (see [`super::flow_files`]).
//!
//! One thread for each virtual network. Beginnings and ends of flows are the kernel's own, with its counts; the rule of
//! a flow that passed is what `vnet::flow` says of it, that of one that was denied is told by the rule itself.
//!
//! Source: Azure documentation, "Virtual network flow logs".

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use linux::{
    LinuxError,
    net::{Netlink, link_indexes},
    netfilter::{
        conntrack::{self, Connection, Counters, Tuple},
        log::{self, Logged},
    },
    netns::Netns,
};
use store::Store;
use vnet::{
    flow::{End, Map, Origin, Step, Walk},
    host::{
        Health,
        health::questions,
        is_led,
        names::{self, vnet_ns},
        platform::{FLOW_LOG_GROUP, machine_at, networks},
    },
    model::{Access, Direction, Machine, Role},
    name::ArmId,
    policy::{Flow, Protocol, default_rules},
    region::Region,
};

use super::flow_files::{Entry, Files};
use crate::reconcile::{Chain, now};

/// How long a thread waits for news, and so for its own end.
const WAIT: Duration = Duration::from_millis(250);
/// How often files are written. Azure does so every minute; a lab is looked at while it runs.
const FLUSH: Duration = Duration::from_secs(5);
/// How often flows that go on are told of (Azure's five minutes).
const CONTINUES: Duration = Duration::from_mins(5);
/// How many events are taken before they are worked on.
const BATCH: usize = 4096;
/// How many entries are gathered before they are written.
const GATHERED: usize = 20_000;

/// The flow logs of every virtual network. They end, written, with this value.
pub(super) struct FlowLogs {
    lab: String,
    store: Store,
    folder: PathBuf,
    running: BTreeMap<String, Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has said why, if it panicked.
            drop(thread.join());
        }
    }
}

impl FlowLogs {
    pub(super) fn new(lab: &str, store: Store, folder: &Path) -> Self {
        let running = BTreeMap::new();
        Self { lab: lab.to_owned(), store, folder: folder.to_owned(), running }
    }

    /// Logs in the virtual networks of the region and no others. `created` are namespaces that are new, under a name
    /// that may not be.
    pub(super) fn serve(&mut self, region: &Region, created: &[String]) -> Result<(), LinuxError> {
        let wanted: BTreeMap<String, &ArmId> =
            networks(region).into_iter().map(|vnet| (vnet_ns(&self.lab, vnet), vnet)).collect();
        self.running.retain(|name, running| {
            let goes_on = running.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            wanted.contains_key(name) && !created.contains(name) && goes_on
        });
        for (name, vnet) in wanted {
            if !self.running.contains_key(&name) {
                let running = self.start(&name, vnet)?;
                self.running.insert(name, running);
            }
        }
        Ok(())
    }

    fn start(&self, name: &str, vnet: &ArmId) -> Result<Running, LinuxError> {
        let namespace = Netns::open(name)?;
        count_packets(&namespace)?;
        let mut logger = Logger {
            connections: conntrack::Listener::open_in(&namespace)?,
            denied: log::Listener::open_in(&namespace, FLOW_LOG_GROUP)?,
            namespace,
            lab: self.lab.clone(),
            store: self.store.clone(),
            vnet: vnet.clone(),
            files: Files::new(&self.folder),
            flows: HashMap::new(),
            links: BTreeMap::new(),
            entries: Vec::new(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("flow-logs".to_owned())
            .spawn(move || logger.run(&asked))
            .map_err(|source| LinuxError::Thread { source })?;
        Ok(Running { stop, thread: Some(thread) })
    }
}

fn count_packets(namespace: &Netns) -> Result<(), LinuxError> {
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_acct");
    namespace.run(|| std::fs::write(path, "1"))?.map_err(|source| LinuxError::File {
        verb: "writing",
        path: path.to_owned(),
        source,
    })
}

struct Logger {
    lab: String,
    store: Store,
    vnet: ArmId,
    namespace: Netns,
    connections: conntrack::Listener,
    denied: log::Listener,
    files: Files,
    /// What has begun and not ended, by the kernel's number.
    flows: HashMap<u32, Tracked>,
    /// Links' names by their numbers.
    links: BTreeMap<u32, String>,
    entries: Vec<Entry>,
}

/// A flow that has begun.
struct Tracked {
    /// What is written of it, once for each NIC that it concerns.
    sides: Vec<Entry>,
    sent: Counters,
    received: Counters,
}

impl Logger {
    fn run(&mut self, stop: &AtomicBool) {
        let (mut flushed, mut continued) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.listen() {
                tracing::warn!(vnet = %self.vnet, error = %Chain(&error), "flows cannot be heard of");
                std::thread::sleep(WAIT);
            }
            if continued.elapsed() > CONTINUES {
                continued = Instant::now();
                self.tell_what_goes_on();
            }
            if flushed.elapsed() > FLUSH || self.entries.len() > GATHERED {
                flushed = Instant::now();
                self.flush();
            }
        }
        drop(self.listen());
        self.flush();
    }

    fn flush(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        if entries.is_empty() {
            return;
        }
        let region = self.store.snapshot();
        let Some(vnet) = region.vnets.get(&self.vnet) else { return };
        if let Err(error) = self.files.write(vnet, entries, now()) {
            tracing::warn!(vnet = %self.vnet, %error, "flow logs cannot be written");
        }
    }

    fn listen(&mut self) -> Result<(), LinuxError> {
        let mut events = self.connections.hear(WAIT)?;
        while events.len() < BATCH {
            let more = self.connections.hear(Duration::ZERO)?;
            if more.is_empty() {
                break;
            }
            events.extend(more);
        }
        let mut denied = Vec::new();
        while denied.len() < BATCH {
            let more = self.denied.hear(Duration::ZERO)?;
            if more.is_empty() {
                break;
            }
            denied.extend(more);
        }
        if events.is_empty() && denied.is_empty() {
            return Ok(());
        }
        let region = self.store.snapshot();
        // Whether members answer decides where flows go, not which rules they meet.
        let up = questions(&self.lab, &region).into_iter().map(|question| question.probed);
        let health = Health { up: up.collect() };
        let map = Map::new(&region, &health);
        let vnet = self.vnet.clone();
        let view = View { region: &region, vnet: &vnet, map: &map };
        for event in events {
            match event {
                conntrack::Event::Began(connection) => self.began(&view, &connection),
                conntrack::Event::Ended(connection) => self.ended(&connection),
                conntrack::Event::Lost => {
                    tracing::warn!(vnet = %self.vnet, "more flows than could be logged; some are missing");
                }
            }
        }
        for packet in denied {
            self.denied(&view, &packet);
        }
        Ok(())
    }

    fn began(&mut self, view: &View<'_>, connection: &Connection) {
        let sides = view.sides(connection);
        if sides.is_empty() {
            return;
        }
        let time = now();
        self.entries.extend(sides.iter().map(|side| side.told(time, 'B', [0; 4])));
        let tracked = Tracked { sides, sent: Counters::default(), received: Counters::default() };
        self.flows.insert(connection.id, tracked);
    }

    fn ended(&mut self, connection: &Connection) {
        if let Some(mut flow) = self.flows.remove(&connection.id) {
            flow.tell(connection, 'E', &mut self.entries);
        }
    }

    fn tell_what_goes_on(&mut self) {
        match conntrack::list(&self.namespace) {
            Ok(connections) => {
                for connection in connections {
                    if let Some(flow) = self.flows.get_mut(&connection.id) {
                        flow.tell(&connection, 'C', &mut self.entries);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(vnet = %self.vnet, error = %Chain(&error), "flows cannot be listed");
            }
        }
    }

    /// A packet that a security group's rule denied. The rule says which list it is in, and its name.
    fn denied(&mut self, view: &View<'_>, packet: &Logged) {
        let Some((chain, rule)) = packet.prefix.split_once(' ') else { return };
        let Some((hash, direction)) = names::gate_of(chain) else { return };
        let group = view.region.security_groups.keys().find(|group| {
            names::gate_of(&names::gate(group, direction, None)).is_some_and(|(own, _)| own == hash)
        });
        let number = match direction {
            Direction::Outbound => packet.from_link,
            Direction::Inbound => packet.to_link,
        };
        let Some(link) = self.link(number) else { return };
        let nic = view.region.nics.values().find(|nic| names::port(&nic.meta.id) == link);
        let (Some(group), Some(nic)) = (group, nic) else { return };
        let group = view.region.security_groups.get(group).map(|group| group.meta.guid);
        let entry = Entry {
            mac: nic.mac,
            group,
            rule: shown(rule),
            tuple: packet.tuple,
            direction,
            time: now(),
            state: 'D',
            counts: [0; 4],
        };
        // A client that tries again is not denied again.
        let is_known = |other: &Entry| {
            other.state == 'D'
                && (other.mac, other.tuple, other.direction)
                    == (entry.mac, entry.tuple, entry.direction)
        };
        if !self.entries.iter().any(is_known) {
            self.entries.push(entry);
        }
    }

    fn link(&mut self, number: u32) -> Option<String> {
        if !self.links.contains_key(&number) {
            let mut netlink = Netlink::open_in(&self.namespace).ok()?;
            let indexes = link_indexes(&mut netlink).ok()?;
            self.links = indexes.into_iter().map(|(name, number)| (number, name)).collect();
        }
        self.links.get(&number).cloned()
    }
}

impl Tracked {
    /// Tells what went each way since it was told last.
    fn tell(&mut self, connection: &Connection, state: char, entries: &mut Vec<Entry>) {
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let (sent, received) = (connection.sent, connection.received);
        let counts = [
            since(sent.packets, self.sent.packets),
            since(sent.bytes, self.sent.bytes),
            since(received.packets, self.received.packets),
            since(received.bytes, self.received.bytes),
        ];
        (self.sent, self.received) = (sent, received);
        let time = now();
        entries.extend(self.sides.iter().map(|side| side.told(time, state, counts)));
    }
}

/// The region as one batch of events sees it.
struct View<'a> {
    region: &'a Region,
    vnet: &'a ArmId,
    map: &'a Map<'a>,
}

impl View<'_> {
    /// What is written of a flow: by the NIC that it leaves, and by the NIC that it comes in at, as far as they are in
    /// this network.
    fn sides(&self, connection: &Connection) -> Vec<Entry> {
        // Told of where it is one of the network's own.
        if is_led(connection.zone) {
            return Vec::new();
        }
        let original = connection.original;
        let sender = self.machine(self.vnet, original.source);
        // A member that keeps the front end's address is known by the mark, everybody else by who answers.
        let receiver = match connection.mark {
            0 => self.machine(self.vnet, connection.reply.source),
            mark => self.machine(self.vnet, Ipv4Addr::from(mark).into()),
        };
        if sender.is_none() && receiver.is_none() {
            return Vec::new();
        }
        let origin = match sender.or_else(|| self.peer(original.source)) {
            Some(machine) => Origin::Machine(machine.meta.id.clone()),
            None if is_probes(original.source) => Origin::Platform(self.vnet.clone()),
            None => Origin::Internet,
        };
        let walk = self.walk(&origin, original, receiver);
        let mut sides = Vec::new();
        if let Some(machine) = sender {
            sides.extend(self.side(machine, original, Direction::Outbound, walk.as_ref()));
        }
        if let Some(machine) = receiver {
            let seen = Tuple {
                // With floating IP it is the front end's still.
                destination: if connection.mark == 0 {
                    connection.reply.source
                } else {
                    original.destination
                },
                destination_port: connection.reply.source_port,
                ..original
            };
            sides.extend(self.side(machine, seen, Direction::Inbound, walk.as_ref()));
        }
        sides
    }

    fn machine(&self, vnet: &ArmId, address: IpAddr) -> Option<&Machine> {
        machine_at(self.region, vnet, address).or_else(|| {
            let mut machines = self.region.machines.values().filter(|machine| {
                let nic = self.region.nics.get(&machine.nic);
                nic.and_then(|nic| nic.vnet()).as_ref() == Some(vnet)
            });
            machines
                .find(|machine| {
                    matches!(&machine.role, Role::Node(node)
                if node.pod_ranges().iter().any(|range| range.contains(address)))
                })
                .map(|it| &**it)
        })
    }

    fn peer(&self, address: IpAddr) -> Option<&Machine> {
        let vnet = self.region.vnets.get(self.vnet)?;
        vnet.peerings.values().find_map(|peering| self.machine(&peering.remote, address))
    }

    /// The way that a flow has taken: it has passed, so the one that ends where it went.
    fn walk(&self, origin: &Origin, tuple: Tuple, receiver: Option<&Machine>) -> Option<Walk> {
        let flow = Flow {
            source: tuple.source,
            destination: tuple.destination,
            protocol: match tuple.protocol {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                1 => Protocol::Icmp,
                50 => Protocol::Esp,
                51 => Protocol::Ah,
                other => Protocol::Other(other),
            },
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
        };
        let mut walks = self.map.walk(origin, flow).into_iter();
        walks.find(|walk| match (&walk.end, receiver) {
            (End::Dropped(_), _) => false,
            (End::Delivered { machine, .. }, Some(receiver)) => *machine == receiver.meta.id,
            _ => true,
        })
    }

    /// What one NIC's log says: the rule of the last gate there, `unspecified` where there is none.
    fn side(
        &self,
        machine: &Machine,
        tuple: Tuple,
        direction: Direction,
        walk: Option<&Walk>,
    ) -> Option<Entry> {
        let nic = self.region.nics.get(&machine.nic)?;
        let own = |at: &ArmId| {
            *at == nic.meta.id || nic.configs.iter().any(|config| config.subnet == *at)
        };
        let mut gates =
            walk.into_iter().flat_map(|walk| &walk.steps).filter_map(|step| match step {
                Step::Gate { at, group, direction: way, rule, access: Access::Allow, .. }
                    if *way == direction && own(at) =>
                {
                    Some((group, rule))
                }
                _ => None,
            });
        let decided = match direction {
            // What an appliance sends on has gates of its own, later.
            Direction::Outbound => gates.by_ref().take(2).last(),
            Direction::Inbound => gates.next_back(),
        };
        let group = decided.and_then(|(group, _)| self.region.security_groups.get(group));
        let rule = decided.and_then(|(_, rule)| rule.as_ref());
        Some(Entry {
            mac: nic.mac,
            group: group.map(|group| group.meta.guid),
            rule: rule.map_or_else(|| "unspecified".to_owned(), |rule| shown(rule.as_str())),
            tuple,
            direction,
            time: now(),
            state: 'B',
            counts: [0; 4],
        })
    }
}

/// Whether health probes come from this address.
fn is_probes(address: IpAddr) -> bool {
    address == IpAddr::from(names::PLATFORM_ADDRESS)
        || address == IpAddr::from(names::GATEWAY_ADDRESS)
}

/// How flow logs call a rule: those that every group has begin with `DefaultRule_`.
fn shown(rule: &str) -> String {
    let is_default = default_rules().iter().any(|default| default.name.as_str() == rule);
    if is_default { format!("DefaultRule_{rule}") } else { rule.to_owned() }
}

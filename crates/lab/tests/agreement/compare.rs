//! One region, made real, and what becomes of real packets beside what the model says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use daemon::fabric::{Reconciler, Scope, down};
use linux::netns::Netns;
use vnet::{
    flow::{End, Map, Origin, Reason, Step, Walk},
    host::{Health, compile_fabric, names},
    name::ArmId,
    policy::{Flow, Protocol},
    region::Region,
};

use crate::{
    dice::Dice,
    flows,
    wire::{Ear, Seen, send, wait},
};

/// How many flows had which fate.
#[derive(Default)]
pub(crate) struct Tally {
    fates: BTreeMap<String, u64>,
    led: Led,
}

/// How many flows were led by routes that have to do with front ends.
#[derive(Default)]
struct Led {
    /// To a front end, by which a machine sent them on.
    through: u64,
    /// The same, and that front end was a peer's.
    through_peers: u64,
    /// By an appliance, and then they found a front end that they were for.
    past: u64,
}

impl Led {
    fn add(&mut self, walk: &Walk) {
        let (mut is_through, mut is_across, mut is_past) = (false, false, false);
        let mut is_at_peers = false;
        let mut is_forwarded = false;
        for step in &walk.steps {
            match step {
                Step::Balanced { frontend, member, after } => {
                    let is_by_route = ![*frontend, *member].contains(&after.destination);
                    is_through |= is_by_route;
                    is_across |= is_by_route && is_at_peers;
                    is_past |= is_forwarded && !is_by_route;
                }
                Step::Forwarded { .. } => is_forwarded = true,
                _ => {}
            }
            is_at_peers = matches!(step, Step::Peering { .. });
        }
        self.through += u64::from(is_through && is_forwarded);
        self.through_peers += u64::from(is_across && is_forwarded);
        self.past += u64::from(is_past);
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        for (fate, n) in other.fates {
            *self.fates.entry(fate).or_default() += n;
        }
        self.led.through += other.led.through;
        self.led.through_peers += other.led.through_peers;
        self.led.past += other.led.past;
    }

    /// Whether enough flows were led to and past front ends.
    pub(crate) fn has_firewalls(&self) -> bool {
        [self.led.through, self.led.through_peers, self.led.past].into_iter().all(|n| n > 0)
    }

    /// Whether the flows met enough of what there is to mean anything.
    pub(crate) fn is_diverse(&self) -> bool {
        let has = |fate: &str| self.fates.get(fate).is_some_and(|n| *n > 0);
        ["delivered", "internet", "denied", "nobody", "spoofed", "no group", "not carried"]
            .into_iter()
            .all(has)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.fates.values().sum();
        write!(f, "{all} flows agreed upon:")?;
        self.fates.iter().try_for_each(|(fate, n)| write!(f, " {n} {fate}"))?;
        let Led { through, through_peers, past } = self.led;
        write!(
            f,
            "; {through} by firewalls, {through_peers} by peers', {past} to front ends behind"
        )
    }
}

/// Where a packet was seen to arrive, and what it looked like. An appliance's own namespace sees it, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sight {
    namespace: String,
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
}

/// The namespaces of a lab, removed at the end.
struct Lab {
    name: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = down(&self.name);
    }
}

/// Makes a region real, sends flows, and panics where model and kernel differ.
pub(crate) fn world(seed: u64, region: &Region, n_flows: u64) -> Tally {
    // Tests of one process may compare the same region at the same time.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let lab = Lab { name: format!("agree{}x{number}", std::process::id()) };
    let health = Health::default();
    let fabric = compile_fabric(&lab.name, region, &health);
    Reconciler::new(&lab.name).pass(&fabric, Scope::Changed).expect("the region can be made real");

    let internet = names::internet_ns(&lab.name);
    let mut ears = BTreeMap::new();
    for name in region.machines.values().map(|it| names::machine_ns(&lab.name, it)) {
        let namespace = Netns::open(&name).expect("the machine is there");
        silence(&namespace);
        ears.insert(name, Ear::new(&namespace));
    }
    let outside = Netns::open(&internet).expect("the internet is there");
    silence(&outside);
    ears.insert(internet.clone(), Ear::new(&outside));

    let map = Map::new(region, &health);
    let mut dice = Dice::new(!seed);
    let mut tally = Tally::default();
    let mut pairs = BTreeSet::new();
    // As many at once as there are source ports, and as fit into the ears.
    let mut left = n_flows;
    while left > 0 {
        let n = left.min(250);
        left -= n;
        let batch: Vec<(u32, Origin, Flow)> = (0..n)
            .map(|i| {
                let number = u32::try_from(n_flows - left - n + i).expect("not that many");
                let port = 20_000 + u16::try_from(number % 40_000).expect("below");
                let (origin, mut flow) = flows::any(&mut dice, region, port);
                // Without ports, two flows between the same two are one to the kernel, and of those that share an
                // address after a translation, the first one has it.
                let pair = (flow.source.min(flow.destination), flow.source.max(flow.destination));
                let is_translated = |step: &Step| match step {
                    Step::Translated { .. } => true,
                    Step::Balanced { member, after, .. } => after.destination == *member,
                    _ => false,
                };
                if flow.protocol == Protocol::Esp
                    && (!pairs.insert(pair)
                        || map
                            .walk(&origin, flow)
                            .iter()
                            .flat_map(|it| &it.steps)
                            .any(is_translated))
                {
                    flow = Flow { protocol: Protocol::Udp, source_port: port, ..flow };
                }
                (number, origin, flow)
            })
            .collect();
        let sightings = fly(&lab.name, region, &internet, &ears, &batch);
        for (number, origin, flow) in &batch {
            let walks = map.walk(origin, *flow);
            let real = sightings.get(number).cloned().unwrap_or_default();
            let mut possible = Vec::new();
            let mut is_sent_on = false;
            for walk in &walks {
                let (sights, last) = expected(&lab.name, region, &internet, walk);
                if matches!(walk.end, End::Dropped(Reason::OwnAddress { .. })) {
                    // Whether it is dropped by the machine or just before it is nothing that anybody can tell.
                    possible.push(sights.clone());
                }
                if walk.end == End::Dropped(Reason::Loop) && is_led_back(origin, walk) {
                    possible.push(BTreeSet::new());
                }
                let sights: BTreeSet<Sight> = sights.into_iter().chain(last).collect();
                is_sent_on |= sends_on(region, &walk.end) && real.is_superset(&sights);
                possible.push(sights);
            }
            assert!(
                possible.contains(&real) || is_sent_on,
                "region {seed}, {origin:?}, {flow:?}:\nthe model says {walks:#?}\nthat is {possible:#?}\n\
                 but the packet was seen at {real:#?}"
            );
            *tally.fates.entry(fate(&walks[0].end)).or_default() += 1;
            tally.led.add(&walks[0]);
        }
    }
    tally
}

/// Whether a flow's first route leads it back to its sender. The kernel answers no ARP request for what is reached by the
/// link that it came in on, so that such a flow may not even leave.
fn is_led_back(origin: &Origin, walk: &Walk) -> bool {
    let first = walk.steps.iter().find_map(|step| match step {
        Step::Forwarded { machine, .. } => Some(machine),
        _ => None,
    });
    matches!(origin, Origin::Machine(sender) if first == Some(sender))
}

/// Whether a flow ends at a machine that does not take it and sends it on instead, which is the machine's own doing: a
/// member of a load balancer with floating IP that forwards. None of these machines owns a front end's address.
fn sends_on(region: &Region, end: &End) -> bool {
    let End::Delivered { machine, flow } = end else { return false };
    region.nic_of(machine).is_some_and(|nic| {
        nic.ip_forwarding && nic.configs.iter().all(|config| config.address != flow.destination)
    })
}

/// Nobody answers: an answer would open the way for what comes after.
fn silence(namespace: &Netns) {
    let rules = "add table inet silence; add chain inet silence out { type filter hook output priority 0; }; \
                 add rule inet silence out tcp flags rst drop; add rule inet silence out icmp type != echo-request drop; \
                 add rule inet silence out icmpv6 type != echo-request drop";
    let output = namespace
        .run(|| std::process::Command::new("nft").arg(rules).output())
        .expect("the namespace can be entered")
        .expect("nft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends everything, and says where each was seen.
fn fly(
    lab: &str,
    region: &Region,
    internet: &str,
    ears: &BTreeMap<String, Ear>,
    batch: &[(u32, Origin, Flow)],
) -> BTreeMap<u32, BTreeSet<Sight>> {
    let mut by_sender: BTreeMap<String, Vec<(u32, Flow)>> = BTreeMap::new();
    for (number, origin, flow) in batch {
        let from = match origin {
            Origin::Machine(id) => names::machine_ns(lab, &region.machines[id]),
            Origin::Internet => internet.to_owned(),
            Origin::Platform(vnet) => names::vnet_ns(lab, vnet),
        };
        by_sender.entry(from).or_default().push((*number, *flow));
    }
    for (from, probes) in &by_sender {
        send(&Netns::open(from).expect("the sender is there"), probes);
    }
    wait();
    let mut seen: BTreeMap<u32, BTreeSet<Sight>> = BTreeMap::new();
    for (namespace, ear) in ears {
        for Seen { probe, source, destination, destination_port } in ear.hear() {
            let namespace = namespace.clone();
            let sight = Sight { namespace, source, destination, destination_port };
            seen.entry(probe).or_default().insert(sight);
        }
    }
    seen
}

/// Where a packet of this walk is seen to arrive: on the way, and at its end.
fn expected(
    lab: &str,
    region: &Region,
    internet: &str,
    walk: &Walk,
) -> (BTreeSet<Sight>, Option<Sight>) {
    let sight = |namespace: String, flow: &Flow| Sight {
        namespace,
        source: flow.source,
        destination: flow.destination,
        destination_port: flow.destination_port,
    };
    let machine = |id: &ArmId| names::machine_ns(lab, &region.machines[id]);
    let mut sights = BTreeSet::new();
    for step in &walk.steps {
        match step {
            Step::Forwarded { machine: id, flow } => {
                sights.insert(sight(machine(id), flow));
            }
            Step::Internet { flow } => {
                sights.insert(sight(internet.to_owned(), flow));
            }
            Step::Gate { .. }
            | Step::Overlay { .. }
            | Step::Route { .. }
            | Step::Peering { .. }
            | Step::Balanced { .. }
            | Step::Translated { .. } => {}
        }
    }
    let last = match &walk.end {
        End::Delivered { machine: id, flow }
        | End::Dropped(Reason::OwnAddress { machine: id, flow }) => Some(sight(machine(id), flow)),
        // What the internet sends to itself it sees.
        End::Internet(flow) => Some(sight(internet.to_owned(), flow)),
        End::ApiServer(_) | End::Platform | End::Dropped(_) => None,
    };
    (sights, last)
}

fn fate(end: &End) -> String {
    match end {
        End::Delivered { .. } => "delivered",
        End::Internet(_) => "internet",
        End::ApiServer(_) => "API server",
        End::Platform => "platform",
        End::Dropped(reason) => match reason {
            Reason::NoSuchMachine => "no machine",
            Reason::Spoofed => "spoofed",
            Reason::Denied => "denied",
            Reason::NextHopNone => "next hop None",
            Reason::NobodyThere => "nobody",
            Reason::NotServed => "not served",
            Reason::ToMany => "to many",
            Reason::NoAppliance(_) => "no appliance",
            Reason::NoRule(_) => "no rule",
            Reason::NoTransit => "no transit",
            Reason::NoWayOut => "no way out",
            Reason::NotCarried(_) => "not carried",
            Reason::Closed => "closed",
            Reason::NoGroup => "no group",
            Reason::NoHealthyMember => "no member",
            Reason::OwnAddress { .. } => "own address",
            Reason::Loop => "loop",
        },
    }
    .to_owned()
}

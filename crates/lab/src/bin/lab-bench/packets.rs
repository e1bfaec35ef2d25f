//! What a packet's way costs: round trips of one byte over TCP, and connections with one byte each way, between pods,
//! behind security groups and behind load balancers, each beside a bare veth pair in the same rounds.
//!
//! Both ends are processes of this program, on one processor, as placement decides more than the way does.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use daemon::reconcile::now;
use linux::netns::Netns;
use serde_json::{Value, json};
use store::Store;
use vnet::{
    addr::{Family, Prefix4},
    command::{Command as Ask, Common, PutFrontend, PutIpConfiguration, PutLoadBalancer},
    host::names,
    kind,
    model::{
        Access, Addresses, BalancingRule, Direction, Distribution, Peers, PortRange, Ports,
        ProvisioningState, RuleProtocol, SecurityRule, Transport,
    },
    name::{ArmId, Name},
};

use crate::{
    lab::{GROUP, Lab},
    machine,
    reconcile::subnet,
};

/// How often each subject has its turn.
const ROUNDS: usize = 7;
const ROUND_TRIPS: usize = 20_000;
const CONNECTIONS: usize = 1_500;
pub(crate) const PORT: u16 = 7_000;
const PATIENCE: Duration = Duration::from_mins(3);

/// Plays one end, when this process was started as one: `serve PORT` or `ask ADDRESS:PORT`.
pub(crate) fn play() -> Option<anyhow::Result<()>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => Some(serve(port)),
        ["ask", to] => Some(ask(to)),
        _ => None,
    }
}

fn serve(port: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse::<u16>()?))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // One at a time: who asks never asks two things at once.
            let mut byte = [0];
            let _ = stream.set_nodelay(true);
            while stream.read(&mut byte).is_ok_and(|n| n == 1) && stream.write_all(&byte).is_ok() {}
        }
    });
    // Who started this may have been killed, and between the two are other programs.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn ask(to: &str) -> anyhow::Result<()> {
    let to: SocketAddr = to.parse()?;
    let begin = Instant::now();
    let mut stream = loop {
        match TcpStream::connect_timeout(&to, Duration::from_secs(2)) {
            Ok(stream) => break stream,
            Err(error) if begin.elapsed() > Duration::from_secs(10) => bail!("{to}: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_nodelay(true)?;
    let trip = |stream: &mut TcpStream| -> anyhow::Result<()> {
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        Ok(())
    };
    let mut trips = Vec::new();
    for n in 0..ROUND_TRIPS {
        let begin = Instant::now();
        trip(&mut stream)?;
        if n > ROUND_TRIPS / 10 {
            trips.push(begin.elapsed());
        }
    }
    drop(stream);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        trip(&mut stream)?;
        connections.push(begin.elapsed());
    }
    println!("{}", json!({ "trip": micros(trips), "connection": micros(connections) }));
    Ok(())
}

/// The median in microseconds.
fn micros(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Two ends to measure between.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// What comes before this program's own command line, to be where the asker is.
    pub(crate) asker: Vec<String>,
    pub(crate) to: String,
}

pub(crate) struct Servers(pub(crate) Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It ends with its input.
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

impl Servers {
    pub(crate) fn start(&mut self, place: &[String], port: u16) -> anyhow::Result<()> {
        let mut command = pinned(place, &["serve", &port.to_string()])?;
        self.0.push(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
        Ok(())
    }
}

fn pinned(place: &[String], role: &[&str]) -> anyhow::Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).args(place).arg(own).args(role).stdin(Stdio::null());
    Ok(command)
}

fn inside(namespace: &str) -> Vec<String> {
    ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec()
}

/// Each subject in turn, round after round; medians, and medians of each round's ratio to the first subject.
pub(crate) fn compare(subjects: &[Subject]) -> anyhow::Result<Value> {
    let mut all: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for subject in subjects {
            let output = pinned(&subject.asker, &["ask", &subject.to])?.output()?;
            ensure!(
                output.status.success(),
                "{}: {}",
                subject.name,
                String::from_utf8_lossy(&output.stderr)
            );
            let said: Value = serde_json::from_slice(&output.stdout)?;
            let number = |name: &str| said[name].as_f64().context("no number");
            let times = (number("trip")?, number("connection")?);
            all.entry(subject.name).or_default().push(times);
        }
    }
    let bare = subjects.first().and_then(|first| all.get(first.name)).context("no subjects")?;
    let told = subjects.iter().map(|subject| {
        let times = &all[subject.name];
        let column = |of: fn(&(f64, f64)) -> f64| median(times.iter().map(of).collect());
        let ratio = |of: fn(&(f64, f64)) -> f64| {
            median(times.iter().zip(bare).map(|(time, bare)| of(time) / of(bare)).collect())
        };
        let value = json!({
            "round_trip": column(|it| it.0), "ratio": ratio(|it| it.0),
            "connection": column(|it| it.1), "connection_ratio": ratio(|it| it.1),
        });
        (subject.name.to_owned(), value)
    });
    Ok(Value::Object(told.collect()))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.get(numbers.len() / 2).copied().unwrap_or_default();
    (middle * 100.0).round() / 100.0
}

/// A veth pair between two namespaces, and nothing else.
pub(crate) struct Bare {
    names: [String; 2],
}

impl Bare {
    const SERVER: &str = "192.0.2.2";

    pub(crate) fn new() -> anyhow::Result<Self> {
        let names = ["a", "b"].map(|end| format!("bare{}-{end}", std::process::id()));
        let [a, b] = &names;
        for name in &names {
            Netns::create(name)?;
        }
        let bare = Self { names: names.clone() };
        let ip = |line: &str| -> anyhow::Result<()> {
            let status = Command::new("ip").args(line.split_whitespace()).status()?;
            ensure!(status.success(), "ip {line}");
            Ok(())
        };
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"))?;
        for (name, address) in [(a, "192.0.2.1"), (b, Self::SERVER)] {
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(bare)
    }

    pub(crate) fn subject(&self, servers: &mut Servers) -> anyhow::Result<Subject> {
        servers.start(&inside(&self.names[1]), PORT)?;
        let to = format!("{}:{PORT}", Self::SERVER);
        Ok(Subject { name: "bare_veth", asker: inside(&self.names[0]), to })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Netns::delete(name);
        }
    }
}

/// Pods that the plugin wired, on one node and on two.
pub(crate) fn pods(aksnet: &Path) -> anyhow::Result<Value> {
    let (lab, _) = Lab::up_with(aksnet, &["--nodes", "network-only"])?;
    lab.az(&format!(
        "aks create -n c -g {GROUP} --node-count 2 --no-ssh-key --network-plugin azure \
         --network-plugin-mode overlay"
    ))?;
    let list = lab.aksnet(&["pod", "run", "p", "-c", "c", "--count", "4", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let pods: Vec<[String; 3]> = list["pods"]
        .as_array()
        .context("no list of pods")?
        .iter()
        .map(|pod| {
            ["name", "address", "node"].map(|key| pod[key].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let own = std::fs::canonicalize(aksnet)?.to_string_lossy().into_owned();
    let place = |pod: &str| -> Vec<String> {
        [&own, "--name", lab.name(), "exec", pod, "--"].map(str::to_owned).to_vec()
    };
    let first = pods.first().context("no pods")?;
    let same = pods.iter().skip(1).find(|pod| pod[2] == first[2]).context("none on the node")?;
    let other = pods.iter().find(|pod| pod[2] != first[2]).context("none on the other node")?;
    let bare = Bare::new()?;
    let mut servers = Servers(Vec::new());
    let mut subjects = vec![bare.subject(&mut servers)?];
    for (name, pod) in [("same_node", same), ("cross_node", other)] {
        servers.start(&place(&pod[0]), PORT)?;
        subjects.push(Subject { name, asker: place(&first[0]), to: format!("{}:{PORT}", pod[1]) });
    }
    let load = machine::wait_until_quiet();
    let mut value = compare(&subjects)?;
    value["unit"] = json!("µs, median");
    value["load"] = load;
    drop(servers);
    lab.down()?;
    Ok(value)
}

/// Machines behind security groups of different lengths, and front ends among few and many.
pub(crate) fn gates() -> anyhow::Result<Value> {
    let name = format!("gates{}", std::process::id() % 100_000);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store = region()?;
    let settings = daemon::fabric::Settings { lab: name.clone(), ..Default::default() };
    let fabric = runtime.spawn(daemon::fabric::run(store.clone(), settings));
    let outcome = real(&store).and_then(|()| measure_gates(&name));
    fabric.abort();
    let _ = runtime.block_on(fabric);
    daemon::fabric::down(&name).context("removing namespaces")?;
    outcome
}

const SERVICES: [usize; 2] = [10, 10_000];

fn measure_gates(lab: &str) -> anyhow::Result<Value> {
    let bare = Bare::new()?;
    let mut servers = Servers(Vec::new());
    let at = |vm: &str| inside(&names::vm_ns(lab, &id(kind::VM, vm)));
    let mut subjects = vec![bare.subject(&mut servers)?];
    for (name, vm, address) in [
        ("no_group", "none", "10.0.0.5"),
        ("group_of_10", "ten", "10.0.1.4"),
        ("group_of_1000", "thousand", "10.0.2.4"),
    ] {
        servers.start(&at(vm), PORT)?;
        subjects.push(Subject { name, asker: at("asker"), to: format!("{address}:{PORT}") });
    }
    for (n, [direct, service]) in SERVICES
        .into_iter()
        .zip([["direct_beside_10", "service_of_10"], ["direct_beside_10000", "service_of_10000"]])
    {
        servers.start(&at(&format!("member{n}")), PORT)?;
        let asker = at(&format!("client{n}"));
        let to = format!("10.1.0.5:{PORT}");
        subjects.push(Subject { name: direct, asker: asker.clone(), to });
        let to = format!("10.1.0.100:{}", 20_000 + n - 1);
        subjects.push(Subject { name: service, asker, to });
    }
    let load = machine::wait_until_quiet();
    let mut value = compare(&subjects)?;
    value["unit"] = json!("µs, median");
    value["load"] = load;
    Ok(value)
}

/// Waits until all of it is on the machine.
fn real(store: &Store) -> anyhow::Result<()> {
    let begin = Instant::now();
    let is_real = |state| state == ProvisioningState::Succeeded;
    loop {
        let region = store.snapshot();
        if region.machines.values().all(|machine| is_real(machine.meta.state))
            && region.balancers.values().all(|balancer| is_real(balancer.meta.state))
        {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "it does not become real");
        thread::sleep(Duration::from_millis(100));
    }
}

fn id(kind: &str, name: &str) -> ArmId {
    ArmId::group("16e85b36-5c9d-48cc-a45d-c672a4393c36", "bench").sibling(kind, name)
}

fn common(id: ArmId) -> Common {
    Common { id, location: None, tags: None, kept: BTreeMap::new() }
}

/// One network with machines behind groups, and two with a balancer each.
fn region() -> anyhow::Result<Store> {
    let store = Store::in_memory()?;
    let change = |command| store.change(command, now()).map(drop);
    change(Ask::PutGroup {
        id: ArmId::group("16e85b36-5c9d-48cc-a45d-c672a4393c36", "bench"),
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
    })?;
    for n in [10, 1_000] {
        change(Ask::PutSecurityGroup {
            common: common(id(kind::SECURITY_GROUP, &format!("of{n}"))),
            rules: Some((0..n).map(|i| security_rule(i, n)).collect()),
        })?;
    }
    let subnets = [(0, None), (1, Some("of10")), (2, Some("of1000"))];
    change(Ask::PutVnet {
        common: common(id(kind::VNET, "gates")),
        prefixes: vec!["10.0.0.0/16".parse()?],
        subnets: Some(
            subnets
                .into_iter()
                .map(|(n, group)| {
                    let group = group.map(|name| id(kind::SECURITY_GROUP, name));
                    Ok(subnet(&format!("s{n}"), format!("10.0.{n}.0/24").parse()?, group))
                })
                .collect::<anyhow::Result<Vec<_>>>()?,
        ),
    })?;
    for (vm, subnet) in [("asker", "s0"), ("none", "s0"), ("ten", "s1"), ("thousand", "s2")] {
        machine(&store, vm, "gates", subnet)?;
    }
    for n in SERVICES {
        let vnet = format!("services{n}");
        change(Ask::PutVnet {
            common: common(id(kind::VNET, &vnet)),
            prefixes: vec!["10.1.0.0/16".parse()?],
            subnets: Some(vec![subnet("s", "10.1.0.0/24".parse()?, None)]),
        })?;
        machine(&store, &format!("client{n}"), &vnet, "s")?;
        machine(&store, &format!("member{n}"), &vnet, "s")?;
        change(Ask::PutLoadBalancer {
            common: common(id(kind::LOAD_BALANCER, &format!("lb{n}"))),
            balancer: balancer(n, &vnet)?,
        })?;
    }
    Ok(store)
}

fn machine(store: &Store, name: &str, vnet: &str, subnet: &str) -> anyhow::Result<()> {
    let nic = id(kind::NIC, name);
    let config = PutIpConfiguration {
        family: Family::V4,
        name: "ipconfig1".to_owned(),
        subnet: id(kind::VNET, vnet).child("subnets", subnet),
        address: None,
        public_ip: None,
        application_groups: Vec::new(),
    };
    let put = Ask::PutNic {
        common: common(nic.clone()),
        ip_forwarding: false,
        security_group: None,
        configs: vec![config],
    };
    store.change(put, now())?;
    store.change(Ask::PutVm { common: common(id(kind::VM, name)), nic }, now())?;
    Ok(())
}

/// The last of `n` rules lets the flow in; the others are about sources, each of its own, that nobody has.
fn security_rule(i: u16, n: u16) -> SecurityRule {
    let is_last = i + 1 == n;
    let source: Prefix4 = if is_last {
        Prefix4::containing([10, 0, 0, 0].into(), 24)
    } else {
        let [high, low] = i.to_be_bytes();
        Prefix4::containing([172, 16 + high, low, 0].into(), 24)
    };
    let any = || Ports { any_of: vec![PortRange::ALL], as_list: false };
    let port = if is_last { PORT } else { 1_000 + i };
    let of = |addresses: Addresses| Peers::Addresses { any_of: vec![addresses], as_list: false };
    SecurityRule {
        name: Name::new(&format!("rule{i}")),
        kept: BTreeMap::new(),
        direction: Direction::Inbound,
        priority: 100 + i,
        access: if is_last || i.is_multiple_of(2) { Access::Allow } else { Access::Deny },
        protocol: RuleProtocol::Tcp,
        source: of(Addresses::Prefix(source.into())),
        destination: of(Addresses::Any),
        source_ports: any(),
        destination_ports: Ports { any_of: vec![PortRange::one(port)], as_list: false },
    }
}

fn balancer(n: usize, vnet: &str) -> anyhow::Result<PutLoadBalancer> {
    let rule = |i: usize| -> anyhow::Result<(Name, BalancingRule)> {
        let rule = BalancingRule {
            frontend: Name::new("f"),
            pool: Name::new("p"),
            probe: None,
            protocol: Transport::Tcp,
            frontend_port: u16::try_from(20_000 + i)?,
            backend_port: PORT,
            floating_ip: false,
            distribution: Distribution::Default,
            idle_timeout_minutes: 4,
            enable_tcp_reset: false,
            disable_outbound_snat: true,
        };
        Ok((Name::new(&format!("r{i}")), rule))
    };
    let front = PutFrontend::Internal {
        family: Family::V4,
        subnet: id(kind::VNET, vnet).child("subnets", "s"),
        address: Some([10, 1, 0, 100].into()),
    };
    Ok(PutLoadBalancer {
        sku: "Standard".to_owned(),
        frontends: vec![(Name::new("f"), front)],
        pools: vec![(Name::new("p"), vec![id(kind::NIC, &format!("member{n}"))].into())],
        probes: Vec::new(),
        rules: (0..n).map(rule).collect::<anyhow::Result<_>>()?,
        outbound_rules: Vec::new(),
        inbound_rules: Vec::new(),
    })
}

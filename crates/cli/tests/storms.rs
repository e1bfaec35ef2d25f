//! The daemon dies again and again while Azure's resources change and pods come and go; what the kernel or `nft`
//! refuses is tried again and told; what others break comes back. Without Kubernetes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(
    dead_code,
    reason = "the laboratory is shared, and Kubernetes' half of it is not for here"
)]

mod lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::UdpSocket,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lab::{
    TestLab, eventually,
    network_only::{nodes, pods},
};
use linux::netns::Netns;
use serde_json::{Value, json};

const RESOURCES: &str =
    "/subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/rg/providers";
const VERSION: &str = "api-version=2024-05-01";
/// Rounds unless `AKSNET_FAULT_ROUNDS` says otherwise.
const N_KILLS: u64 = 50;
/// The seed unless `AKSNET_FAULT_SEED` says otherwise.
const SEED: u64 = 20_231_102;

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Azure's client without az, which takes a second to start.
struct Arm {
    endpoint: String,
}

impl Arm {
    fn of(lab: &TestLab) -> Self {
        let status = lab.aksnet(&["status", "-o", "json"]).json();
        Self { endpoint: status["endpoint"].as_str().unwrap().to_owned() }
    }

    /// The status, 0 when nobody answered, and the body.
    fn call(&self, verb: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let query = if path.contains('?') { "" } else { VERSION };
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{RESOURCES}/{path}{mark}{query}", self.endpoint);
        let mut command = Command::new("curl");
        command
            .args(["-sk", "--max-time", "10", "-w", "\n%{http_code}", "-X", verb, &url])
            .args(["-H", "Authorization: Bearer aksnet", "-H", "Content-Type: application/json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if body.is_some() {
            command.args(["--data-binary", "@-"]);
        }
        let mut child = command.spawn().unwrap();
        if let (Some(mut input), Some(body)) = (child.stdin.take(), body) {
            // `curl` may give up before it has read.
            let _ = input.write_all(body.to_string().as_bytes());
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        let is_whole = output.status.success();
        let status = if is_whole { status.trim().parse().unwrap_or(0) } else { 0 };
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    #[track_caller]
    fn put(&self, path: &str, body: &Value) {
        let (status, said) = self.call("PUT", path, Some(body));
        assert!((200..300).contains(&status), "PUT {path}: {status} {said}");
    }

    /// Waits until a resource is what was asked for.
    fn succeeded(&self, path: &str) {
        eventually(path, || {
            self.call("GET", path, None).1["properties"]["provisioningState"] == "Succeeded"
        });
    }
}

/// A network, two clusters of two nodes.
fn build(lab: &TestLab) -> Arm {
    let arm = Arm::of(lab);
    lab.az("group create -n rg -l eastus -o none").succeeds();
    let subnet = |name: &str, prefix: &str| {
        json!({ "name": name, "properties": { "addressPrefix": prefix,
        "networkSecurityGroup": { "id": format!("{RESOURCES}/Microsoft.Network/networkSecurityGroups/guard") } } })
    };
    arm.put(
        "Microsoft.Network/networkSecurityGroups/guard",
        &json!({ "location": "eastus", "properties": {} }),
    );
    arm.put(
        "Microsoft.Network/virtualNetworks/net",
        &json!({ "location": "eastus", "properties": {
            "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] },
            "subnets": [subnet("overlay", "10.20.0.0/24"), subnet("bridged", "10.20.1.0/24"), subnet("vms", "10.20.2.0/24")] } }),
    );
    for (name, profile) in [
        ("overlay", json!({ "networkPlugin": "azure", "networkPluginMode": "overlay" })),
        ("bridged", json!({ "networkPlugin": "azure", "networkMode": "bridge" })),
    ] {
        let subnet = format!("{RESOURCES}/Microsoft.Network/virtualNetworks/net/subnets/{name}");
        let mut profile = profile;
        profile["serviceCidr"] = "10.1.0.0/16".into();
        profile["dnsServiceIP"] = "10.1.0.10".into();
        let path = format!("{}?api-version=2025-01-01", cluster(name));
        let body = json!({ "location": "eastus", "properties": {
            "dnsPrefix": name, "networkProfile": profile,
            "agentPoolProfiles": [{ "name": "pool1", "mode": "System", "count": 2, "maxPods": 30,
                "vmSize": "Standard_D2s_v3", "vnetSubnetID": subnet }] } });
        arm.put(&path, &body);
    }
    for name in ["overlay", "bridged"] {
        arm.succeeded(&format!("{}?api-version=2025-01-01", cluster(name)));
    }
    arm
}

fn cluster(name: &str) -> String {
    format!("Microsoft.ContainerService/managedClusters/{name}")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key}: {value}"))
}

/// A pod that sends numbers to a pod of another node, which sends them back.
struct Flow {
    stop: Arc<AtomicBool>,
    name: String,
    ask: thread::JoinHandle<(u64, Vec<String>)>,
    echo: thread::JoinHandle<()>,
}

impl Flow {
    fn start(name: &str, from: &Value, to: &Value) -> Self {
        let socket = |pod: &Value| {
            let netns = Netns::at(Path::new(text(pod, "netns")), "pod").unwrap();
            let socket = netns.run(|| UdpSocket::bind("0.0.0.0:7777")).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        let (first, second) = (socket(from), socket(to));
        let stop = Arc::new(AtomicBool::new(false));
        let (asking, echoing) = (Arc::clone(&stop), Arc::clone(&stop));
        let to = format!("{}:7777", text(to, "address"));
        let ask = thread::spawn(move || {
            let (mut sent, mut lost) = (0_u64, Vec::new());
            while !asking.load(Ordering::Relaxed) {
                first.send_to(&sent.to_be_bytes(), &to).unwrap();
                let mut buffer = [0; 8];
                if first.recv(&mut buffer).is_err() || u64::from_be_bytes(buffer) != sent {
                    // The time is the log's, less what is waited for.
                    lost.push(format!("{sent}, missed at {}", since_midnight()));
                }
                sent += 1;
                thread::sleep(Duration::from_millis(5));
            }
            (sent, lost)
        });
        let echo = thread::spawn(move || {
            while !echoing.load(Ordering::Relaxed) {
                let mut buffer = [0; 8];
                let Ok((_, from)) = second.recv_from(&mut buffer) else { continue };
                second.send_to(&buffer, from).unwrap();
            }
        });
        Self { stop, name: name.to_owned(), ask, echo }
    }

    #[track_caller]
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, lost) = self.ask.join().unwrap();
        self.echo.join().unwrap();
        assert!(sent > 100, "{sent} packets in all");
        let name = self.name;
        assert_eq!(lost, Vec::<String>::new(), "of {sent} packets of {name} these were lost");
    }
}

/// The time of day (UTC), as in the log.
fn since_midnight() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seconds = now.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, now.subsec_millis())
}

/// What whoever asked believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    Absent,
    Present,
    /// The answer never came.
    Unknown,
}

type Beliefs = Mutex<BTreeMap<String, Belief>>;

/// One step of somebody who makes and deletes VMs, route tables and security rules. A rule has the network's table
/// replaced whole.
fn change_azure(arm: &Arm, lab: &TestLab, chance: &mut Chance, beliefs: &Beliefs) {
    let n = chance.below(4);
    match chance.below(3) {
        0 => {
            let key = format!("table{n}");
            let path = format!("Microsoft.Network/routeTables/{key}");
            let body = json!({ "location": "eastus", "properties": { "routes": [] } });
            return put_or_delete(arm, &key, &path, &body, beliefs);
        }
        1 => {
            let key = format!("rule{n}");
            let path = format!("Microsoft.Network/networkSecurityGroups/guard/securityRules/{key}");
            let body = json!({ "properties": { "priority": 200 + n, "direction": "Inbound", "access": "Deny",
                "protocol": "Tcp", "sourceAddressPrefix": "*", "sourcePortRange": "*",
                "destinationAddressPrefix": "*", "destinationPortRange": "9999" } });
            return put_or_delete(arm, &key, &path, &body, beliefs);
        }
        _ => {}
    }
    let key = format!("vm{n}");
    let belief = beliefs.lock().unwrap().get(&key).copied().unwrap_or(Belief::Absent);
    let (said, then) = if belief == Belief::Absent {
        let arguments = ["vm", "create", &key, "-g", "rg", "--vnet", "net", "--subnet", "vms"];
        (lab.aksnet(&arguments), Belief::Present)
    } else {
        (lab.aksnet(&["vm", "delete", &key, "-g", "rg"]), Belief::Absent)
    };
    let belief = if said.success() { then } else { Belief::Unknown };
    beliefs.lock().unwrap().insert(key, belief);
}

fn put_or_delete(arm: &Arm, key: &str, path: &str, body: &Value, beliefs: &Beliefs) {
    let belief = beliefs.lock().unwrap().get(key).copied().unwrap_or(Belief::Absent);
    let (status, then) = if belief == Belief::Absent {
        (arm.call("PUT", path, Some(body)).0, Belief::Present)
    } else {
        (arm.call("DELETE", path, None).0, Belief::Absent)
    };
    let belief = if (200..300).contains(&status) { then } else { Belief::Unknown };
    beliefs.lock().unwrap().insert(key.to_owned(), belief);
}

/// One step of somebody who runs and deletes pods.
fn change_pods(lab: &TestLab, chance: &mut Chance, thread: u64, beliefs: &Beliefs) {
    let cluster = ["overlay", "bridged"][usize::try_from(chance.below(2)).unwrap()];
    let name = format!("p{thread}{}", chance.below(3));
    let key = format!("{cluster}:{name}");
    let belief = beliefs.lock().unwrap().get(&key).copied().unwrap_or(Belief::Absent);
    let (said, then) = if belief == Belief::Absent {
        (lab.aksnet(&["pod", "run", &name, "-c", cluster]), Belief::Present)
    } else {
        (lab.aksnet(&["pod", "delete", &key]), Belief::Absent)
    };
    let belief = if said.success() { then } else { Belief::Unknown };
    beliefs.lock().unwrap().insert(key, belief);
}

/// The addresses that nodes have written down, by cluster's nodes.
fn leased(lab: &TestLab, node: &str) -> BTreeSet<String> {
    let folder = format!("/run/aksnet/{}/nodes/{node}/leases", lab.name());
    let files = fs::read_dir(folder).map(|files| files.filter_map(Result::ok).collect::<Vec<_>>());
    let names = files.unwrap_or_default().into_iter();
    names
        .filter_map(|file| file.file_name().into_string().ok())
        .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
        .collect()
}

/// What a node's kernel routes or bridges to pods.
fn wired(lab: &TestLab, node: &str) -> usize {
    let netns = format!("/run/netns/{}-node-{node}", lab.name());
    let output = Command::new("nsenter")
        .args([&format!("--net={netns}"), "ip", "-o", "link", "show", "group", "2654"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Everything that must hold when the daemon is back: told things are so, nobody shares an address, nothing is left.
fn laws(lab: &TestLab, arm: &Arm, azure: &Beliefs, of_pods: &Beliefs, all_nodes: &[String]) {
    let running = pods(lab);
    for (key, belief) in of_pods.lock().unwrap().iter() {
        match belief {
            Belief::Present => assert!(running.contains_key(key), "{key} was said to run"),
            Belief::Absent => assert!(!running.contains_key(key), "{key} was said to be gone"),
            Belief::Unknown => {}
        }
    }
    let mut holders: BTreeMap<(&str, &str), &String> = BTreeMap::new();
    for (key, pod) in &running {
        // Pods of the virtual network share one space, those of an overlay have their own.
        let Some(address) = pod["address"].as_str() else { continue };
        let other = holders.insert((text(pod, "cluster"), address), key);
        assert_eq!(other, None, "{address} is held by {key} too");
    }
    let machines = || -> BTreeSet<String> {
        let status = lab.aksnet(&["status", "-o", "json"]).json();
        status["vms"].as_array().unwrap().iter().map(|vm| text(vm, "name").to_owned()).collect()
    };
    let there = || {
        let mut there = machines();
        for kind in ["routeTables", "networkSecurityGroups/guard/securityRules"] {
            let (code, list) = arm.call("GET", &format!("Microsoft.Network/{kind}"), None);
            assert_eq!(code, 200, "{list}");
            let names = list["value"].as_array().unwrap().iter();
            there.extend(names.map(|it| text(it, "name").to_owned()));
        }
        there
    };
    let of = |wanted: Belief| -> Vec<String> {
        let beliefs = azure.lock().unwrap();
        beliefs
            .iter()
            .filter(|(_, belief)| **belief == wanted)
            .map(|(key, _)| key.clone())
            .collect()
    };
    let now = there();
    for key in of(Belief::Present) {
        assert!(now.contains(&key), "{key} was accepted: {now:?}");
    }
    // A deletion that was accepted is carried out by whichever daemon comes.
    let absent = of(Belief::Absent);
    eventually("what was to be deleted is gone", || {
        let now = there();
        absent.iter().all(|key| !now.contains(key))
    });
    // The kernel has the machines that the store has.
    eventually("the machines' namespaces", || {
        // One that is being deleted is in the store a moment longer.
        let (machines, names) = (machines(), Netns::list().unwrap());
        let of_vm = |n: u8| format!("{}-vm-vm{n}-", lab.name());
        (0..4).all(|n| {
            names.iter().any(|name| name.starts_with(&of_vm(n)))
                == machines.contains(&format!("vm{n}"))
        })
    });
    // What was torn is cleared away; leases, links and pods are the same things then.
    eventually("leases, links and pods agree", || {
        let running = pods(lab);
        all_nodes.iter().all(|node| {
            let of_node = running.values().filter(|pod| pod["node"] == node.as_str());
            let addresses: BTreeSet<String> =
                of_node.filter_map(|pod| pod["address"].as_str().map(str::to_owned)).collect();
            leased(lab, node) == addresses && wired(lab, node) == addresses.len()
        })
    });
}

#[test]
fn the_daemon_dies_in_a_storm() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    let arm = build(&lab);
    let mut flows = Vec::new();
    let mut all_nodes = Vec::new();
    for cluster in ["overlay", "bridged"] {
        for (n, (node, _)) in nodes(&lab, cluster).iter().enumerate() {
            let name = format!("stays{n}");
            lab.aksnet(&["pod", "run", &name, "-c", cluster, "--node", node]).succeeds();
            all_nodes.push(node.clone());
        }
        let pods = pods(&lab);
        let pod = |n: u8| &pods[&format!("{cluster}:stays{n}")];
        flows.push(Flow::start(cluster, pod(0), pod(1)));
    }
    let (azure, of_pods) = (Beliefs::default(), Beliefs::default());
    let mut chance = Chance(number("AKSNET_FAULT_SEED", SEED));
    for round in 0..number("AKSNET_FAULT_ROUNDS", N_KILLS) {
        let stop = AtomicBool::new(false);
        let pause = Duration::from_millis(20 + chance.below(250));
        thread::scope(|scope| {
            let (stop, lab, arm, azure, of_pods) = (&stop, &lab, &arm, &azure, &of_pods);
            for thread in 0..3 {
                let mut chance = Chance(round * 10 + thread);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        match thread {
                            0 => change_azure(arm, lab, &mut chance, azure),
                            _ => change_pods(lab, &mut chance, thread, of_pods),
                        }
                    }
                });
            }
            thread::sleep(pause);
            stop.store(true, Ordering::Relaxed);
            lab.kill();
        });
        lab.aksnet(&["up"]).succeeds();
        laws(&lab, &arm, &azure, &of_pods, &all_nodes);
    }
    flows.into_iter().for_each(Flow::stop);
    for n in 0..4 {
        lab.aksnet(&["vm", "delete", &format!("vm{n}"), "-g", "rg"]).succeeds();
    }
    eventually("no address is held by a machine", || {
        let status = lab.aksnet(&["status", "-o", "json"]).json();
        let subnets = status["subnets"].as_array().unwrap();
        subnets.iter().any(|subnet| subnet["name"] == "vms" && subnet["held"] == 0)
    });
    lab.aksnet(&["pod", "delete", "--all"]).succeeds();
    eventually("no address is held by a pod", || {
        all_nodes.iter().all(|node| leased(&lab, node).is_empty() && wired(&lab, node) == 0)
    });
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// A lab whose daemon finds an `nft` that refuses as often as a file says, and then is the real one.
struct Refusing {
    folder: tempfile::TempDir,
}

impl Refusing {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let real = Command::new("sh").args(["-c", "command -v nft"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let left = folder.path().join("left");
        fs::write(&left, "").unwrap();
        // One line of the file per refusal; only what changes something is refused.
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = -f ] && [ -s {left} ]; then\n  sed -i 1d {left}\n  cat >/dev/null\n  \
             echo 'Error: Could not process rule: Cannot allocate memory' >&2\n  exit 1\nfi\nexec {real} \"$@\"\n",
            left = left.display(),
            real = real.trim(),
        );
        let program = folder.path().join("nft");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        format!("{}:{}", self.folder.path().display(), std::env::var("PATH").unwrap())
    }

    fn refuse(&self, times: usize) {
        fs::write(self.folder.path().join("left"), "x\n".repeat(times)).unwrap();
    }

    fn is_done(&self) -> bool {
        fs::read(self.folder.path().join("left")).unwrap().is_empty()
    }
}

/// What `line` prints in a namespace of the lab.
fn inside(netns: &str, line: &str) -> String {
    let output = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{netns}"), "sh", "-c", line])
        .output()
        .unwrap();
    assert!(output.status.success(), "{netns}: {line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn vnet(lab: &TestLab) -> String {
    let prefix = format!("{}-vnet-net-", lab.name());
    Netns::list().unwrap().into_iter().find(|name| name.starts_with(&prefix)).unwrap()
}

fn log(lab: &TestLab) -> String {
    fs::read_to_string(Path::new("/var/log/aksnet").join(lab.name()).join("aksnet.log")).unwrap()
}

#[test]
fn what_is_refused_is_tried_again_and_what_others_break_comes_back() {
    let refusing = Refusing::new();
    let lab = TestLab::up_in(&["--nodes", "network-only"], &[("PATH", refusing.path())]);
    // The first tables of nodes and of the network are refused, too.
    refusing.refuse(6);
    let arm = build(&lab);
    assert!(refusing.is_done());
    let node = nodes(&lab, "overlay").remove(0).0;
    for cluster in ["overlay", "bridged"] {
        for (n, (node, _)) in nodes(&lab, cluster).iter().enumerate() {
            lab.aksnet(&["pod", "run", &format!("stays{n}"), "-c", cluster, "--node", node])
                .succeeds();
        }
    }
    refused_by_nft(&lab, &arm, &refusing);
    in_the_way(&lab);
    broken_by_others(&lab, &node);
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// `nft` refuses a change: it is in the status and the metrics, and made in the end.
fn refused_by_nft(lab: &TestLab, arm: &Arm, refusing: &Refusing) {
    refusing.refuse(1000);
    let rule = json!({ "properties": { "priority": 300, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*",
        "destinationPortRange": "9999" } });
    let path = "Microsoft.Network/networkSecurityGroups/guard/securityRules/late";
    arm.put(path, &rule);
    eventually("the status says so", || {
        let status = lab.aksnet(&["status", "-o", "json"]).json();
        status["troubles"].as_array().unwrap().iter().any(|trouble| {
            trouble["who"] == "fabric" && text(trouble, "error").contains("Cannot allocate memory")
        })
    });
    assert!(lab.aksnet(&["status"]).succeeds().contains("fabric fails"));
    assert_eq!(arm.call("GET", path, None).1["properties"]["provisioningState"], "Updating");
    let metrics = lab.aksnet(&["metrics"]).succeeds();
    let counted = metrics.lines().find_map(|line| {
        line.strip_prefix("aksnet_reconcile_errors_total{loop=\"fabric\"} ")?.parse::<u64>().ok()
    });
    assert!(counted > Some(6), "{metrics}");
    assert!(log(lab).contains("it will be tried again"));
    refusing.refuse(0);
    arm.succeeded(path);
    assert!(inside(&vnet(lab), "nft list ruleset").contains("9999"));
    assert_eq!(lab.aksnet(&["status", "-o", "json"]).json()["troubles"], json!([]));
}

/// A link of the name that a new machine's is to have is there already: the kernel says `EEXIST`.
fn in_the_way(lab: &TestLab) {
    let vm = || {
        lab.aksnet(&["vm", "create", "late", "-g", "rg", "--vnet", "net", "--subnet", "vms"])
            .succeeds()
    };
    let ports = || -> BTreeSet<String> {
        let links = inside(&vnet(lab), "ip -br link show type veth");
        links.lines().filter_map(|line| line.split(['@', ' ']).next().map(str::to_owned)).collect()
    };
    let before = ports();
    vm();
    let new: Vec<String> = ports().difference(&before).cloned().collect();
    let [port] = new.as_slice() else { panic!("{new:?}") };
    lab.aksnet(&["vm", "delete", "late", "-g", "rg"]).succeeds();
    eventually("the port goes", || !ports().contains(port));
    inside(&vnet(lab), &format!("ip link add {port} type bridge"));
    vm();
    assert!(ports().contains(port), "a pair, not the bridge");
    lab.aksnet(&["vm", "delete", "late", "-g", "rg"]).succeeds();
}

/// Somebody else takes things away in namespaces of the lab. All of it is as it was within seconds.
fn broken_by_others(lab: &TestLab, node: &str) {
    let pods = pods(lab);
    let bridged = text(&pods["bridged:stays0"], "node").to_owned();
    let places = [
        vnet(lab),
        format!("{}-node-{node}", lab.name()),
        format!("{}-node-{bridged}", lab.name()),
    ];
    // Counters move and handles are new each time; what is learned comes and goes.
    let look = || {
        let lines = "nft -s list ruleset; ip -4 rule show; ip -4 route show table all; ip -br link show; \
                     ip -4 neigh show nud permanent; bridge link show | grep -o 'master .* state [a-z]*'";
        places.each_ref().map(|place| {
            let text = inside(place, &format!("{lines}; true"));
            text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
        })
    };
    // Each look of the fabric mends all that it finds, so what does not hide something else goes together.
    let rounds: [&[(usize, &str)]; 3] = [
        &[
            (0, "nft flush ruleset"),
            (1, "nft flush ruleset"),
            (2, "nft flush ruleset"),
            (1, "ip route del default"),
            (1, "ip -4 route show proto 198 | while read r; do ip route del ${r%% *}; done"),
        ],
        &[
            (0, "ip route flush table main proto 197"),
            (
                0,
                "ip -4 rule show | sed 's/:.*//' | grep -vwE '0|32766|32767' | while read n; do ip rule del pref $n; done",
            ),
            (1, "ip link set eth0 down"),
            (2, "ip link set azure0 down"),
        ],
        &[
            (0, "ip link set uplink down"),
            (
                0,
                "for l in $(ip -br link show type veth | sed 's/[@ ].*//' | head -3); do ip link set $l down; done",
            ),
            (2, "ip link set eth0 nomaster"),
        ],
    ];
    let ways = [("overlay:stays0", "overlay:stays1"), ("bridged:stays0", "bridged:stays1")];
    let meet = || {
        ways.iter().all(|(from, to)| {
            let line = format!("ping -c 1 -W 1 -n -q {}", text(&pods[*to], "address"));
            lab.exec(from, &line).success()
        })
    };
    assert!(meet());
    let before = look();
    for damages in rounds {
        for (place, damage) in damages {
            inside(&places[*place], damage);
        }
        eventually(&format!("{damages:?}"), || look() == before && meet());
    }
    for (place, damage) in rounds.into_iter().flatten() {
        inside(&places[*place], &format!("{damage}; true"));
    }
    eventually("all at once", || look() == before && meet());
}

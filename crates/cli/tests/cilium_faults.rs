//! Cilium's agent and operator, and the lab's own agent, are killed at random while pods come and go.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(dead_code, reason = "the laboratory is shared")]

mod lab;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lab::{
    TestLab, eventually, is_cilium_installed,
    packets::{jsonpath, run_pod, wait_for_pods},
};

/// How often something is killed.
const ROUNDS: u32 = 12;

/// A process of the lab's in a node.
struct InNode {
    pid: u32,
    /// The node's sandbox, `node-aks-…`.
    node: String,
}

/// The lab's processes with this name and, if given, this argument.
fn processes(lab: &TestLab, name: &str, argument: Option<&str>) -> Vec<InNode> {
    let mark = format!("aksnet/{}/", lab.name());
    let all = fs::read_dir("/proc").unwrap().flatten();
    let found = all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let (_, below) = groups.split_once(&mark)?;
        let node = below.split(['/', '\n']).next()?.to_owned();
        let has = |wanted: &str| arguments.split('\0').any(|it| it == wanted);
        (comm.trim() == name && argument.is_none_or(has)).then_some(InNode { pid, node })
    });
    found.collect()
}

fn kill(process: &InNode) {
    let killed = std::process::Command::new("kill").args(["-9", &process.pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

/// Addresses that each node's agent holds for pods.
fn leases(lab: &TestLab) -> BTreeMap<String, usize> {
    let agents = processes(lab, "aksnet", Some("agent")).into_iter();
    let counted = agents.map(|agent| {
        let folder: PathBuf =
            Path::new("/proc").join(agent.pid.to_string()).join("root/run/aksnet/leases");
        let n = fs::read_dir(folder).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|it| !it.file_name().to_string_lossy().starts_with('.'))
                .count()
        });
        (agent.node, n)
    });
    counted.collect()
}

/// A server that sends a line ten times a second to whoever connects, and a client that says the longest silence in it.
const STREAM: &str = "import socket, time\n\
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
s.bind(('0.0.0.0', 9100)); s.listen(4); c, _ = s.accept()\n\
while True:\n    c.sendall(b'x'); time.sleep(0.1)\n";

fn client(server: &str, seconds: u32) -> String {
    format!(
        "import socket, time\n\
         s = socket.create_connection(('{server}', 9100), 5); s.settimeout(20); longest = 0; end = time.time() + {seconds}\n\
         while time.time() < end:\n    \
             t = time.time(); d = s.recv(64); longest = max(longest, time.time() - t)\n    \
             assert d, 'the stream ended'\n\
         print(longest)\n"
    )
}

#[test]
fn killed_under_churn() {
    if !is_cilium_installed() {
        return;
    }
    let lab = TestLab::up();
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az(
        "aks create -g rg -n c --network-plugin azure --network-plugin-mode overlay --network-dataplane cilium \
         --no-ssh-key --node-count 2",
    )
    .succeeds();
    lab.az("aks get-credentials -g rg -n c").succeeds();
    let nodes = jsonpath(&lab, "c", "nodes", ".items[*].metadata.name");
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    run_pod(&lab, "c", "from", nodes[0]);
    run_pod(&lab, "c", "to", nodes[1]);
    wait_for_pods(&lab, "c");
    let to = jsonpath(&lab, "c", "pod to", ".status.podIP");
    let mut server =
        lab.exec_in_background("c:default/to", &format!("exec python3 -c \"{STREAM}\""));
    std::thread::sleep(Duration::from_secs(1));
    let line = format!("exec python3 -c \"{}\"", client(&to, ROUNDS * 5));
    let stream = lab.exec_in_background("c:default/from", &line);
    lab.apply(
        "c",
        r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"many"},"spec":{"replicas":0,
            "selector":{"matchLabels":{"app":"many"}},"template":{"metadata":{"labels":{"app":"many"}},
            "spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"nginx"}]}}}}"#,
    );
    // Any numbers do; these are the same in each run.
    let mut seed = 7_u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        seed as usize / 65_536 % below
    };
    for round in 0..ROUNDS {
        let replicas = [8, 2, 12, 0][random(4)];
        lab.kubectl("c", &format!("scale deployment many --replicas={replicas}")).succeeds();
        std::thread::sleep(Duration::from_millis(200 + 100 * random(15) as u64));
        let (name, argument) = match round % 4 {
            0 | 2 => ("cilium-agent", None),
            1 => ("aksnet", Some("agent")),
            _ => ("cilium-operator", None),
        };
        // The operator's own name is longer than the kernel keeps.
        let name: String = name.chars().take(15).collect();
        let victims = processes(&lab, &name, argument);
        if !victims.is_empty() {
            kill(&victims[random(victims.len())]);
        }
        let listed =
            lab.kubectl("c", "get pods -A --field-selector=status.phase=Running -o json").json();
        let mut holders: BTreeMap<&str, &str> = BTreeMap::new();
        let pods = listed["items"].as_array().unwrap().iter();
        for pod in pods.filter(|pod| pod["spec"]["hostNetwork"] != true) {
            let is_going = pod["metadata"]["deletionTimestamp"].is_string();
            let (Some(address), false) = (pod["status"]["podIP"].as_str(), is_going) else {
                continue;
            };
            let other = holders.insert(address, pod["metadata"]["name"].as_str().unwrap());
            assert!(other.is_none(), "{address} has two holders: {other:?} in {listed}");
        }
    }
    let output = stream.wait_with_output().unwrap();
    let longest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(longest.parse::<f64>().is_ok_and(|it| it < 5.0), "the longest silence: `{longest}`");
    let _ = server.kill();
    let _ = server.wait();
    lab.kubectl("c", "scale deployment many --replicas=6").succeeds();
    lab.kubectl("c", "rollout status deployment many --timeout=120s").succeeds();
    lab.kubectl("c", "delete deployment many --cascade=foreground").succeeds();
    // Two name servers, `from` and `to`: what has gone has given its address back.
    eventually("no address is held for nobody", || leases(&lab).values().sum::<usize>() == 4);
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

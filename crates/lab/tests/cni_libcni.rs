//! Our plugin under libcni, which containerd and CRI-O call plugins with, in chains with the newest reference
//! plugins. Needs root, and what `scripts/setup.sh test` builds of `harness/`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use lab::pods::{NODE, World, leases, newest_plugins, wait};
use linux::netns::{self, Netns};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const PATIENCE: Duration = Duration::from_secs(5);
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A node with a container runtime that is libcni alone.
struct Runtime {
    world: World,
    plugins: PathBuf,
}

/// What libcni said.
#[derive(Debug)]
struct Said(Value);

impl Said {
    #[track_caller]
    fn succeeds(&self) -> &Value {
        assert_eq!(self.0["error"], Value::Null, "{self:?}");
        &self.0["result"]
    }

    /// The error's code; 0 is libcni's own.
    #[track_caller]
    fn code(&self) -> u64 {
        self.0["error"]["code"].as_u64().unwrap_or_else(|| panic!("no error: {self:?}"))
    }
}

impl Runtime {
    fn new(mode: &str, addresses: &Value) -> Self {
        let mut world = World::new(PROGRAM);
        world.start_agent(mode, addresses);
        let bin = world.path("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!("#!/bin/sh\nexec {PROGRAM} plugin\n");
        fs::write(bin.join("aksnet-cni"), script).unwrap();
        let executable = Command::new("chmod").arg("+x").arg(bin.join("aksnet-cni")).status();
        assert!(executable.unwrap().success());
        Self { world, plugins: newest_plugins() }
    }

    /// Our part of a list.
    fn ours(&self) -> Value {
        json!({ "type": "aksnet-cni", "agentSocket": self.world.socket() })
    }

    fn call(&self, verb: &str, list: &Value, container: &str) -> Said {
        let path = netns::path(&self.world.netns(container));
        self.call_with(verb, list, [container, path.to_str().unwrap(), "eth0"], &[])
    }

    fn call_with(
        &self,
        verb: &str,
        list: &Value,
        of: [&str; 3],
        environment: &[(&str, String)],
    ) -> Said {
        let file = self.world.path("list.conflist");
        fs::write(&file, list.to_string()).unwrap();
        let path = format!("{}:{}", self.world.path("bin").display(), self.plugins.display());
        let mut command = Command::new(self.plugins.join("harness"));
        command
            .arg(verb)
            .arg(&file)
            .args(of)
            .env("CNI_PATH", path)
            .env("HARNESS_CACHE", self.world.path("cache"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self.world.spawn("node", &mut command).wait_with_output().unwrap();
        let parsed = serde_json::from_slice(&output.stdout);
        Said(parsed.unwrap_or_else(|error| panic!("{verb}: {error}: {output:?}")))
    }

    fn is_bare(&self) -> bool {
        leases(&self.world.path("run")).is_empty()
            && !self.world.output("node", "ip -br link show").contains("azv")
    }
}

fn block() -> Value {
    json!({ "version": 1, "block": "10.244.1.0/24" })
}

fn list(version: &str, plugins: &[Value]) -> Value {
    json!({ "cniVersion": version, "name": "azure", "plugins": plugins })
}

/// The address in a result of any version.
fn address(result: &Value) -> String {
    let text = result["ips"][0]["address"].as_str().or(result["ip4"]["ip"].as_str());
    let text = text.unwrap_or_else(|| panic!("no address: {result}"));
    text.split('/').next().unwrap().to_owned()
}

/// How many files libcni keeps.
fn n_cached(cache: &Path) -> usize {
    fs::read_dir(cache.join("results")).map_or(0, Iterator::count)
}

#[test]
fn every_version_goes_all_the_way_in_a_chain() {
    let runtime = Runtime::new("overlay", &block());
    let world = &runtime.world;
    for (number, version) in VERSIONS.into_iter().enumerate() {
        let name = format!("c{number}");
        let _ = world.container(&name);
        let tuning =
            json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" } });
        let mut chain = vec![runtime.ours(), tuning];
        // Before 0.3.0 a result has no interfaces, which the others look for.
        let is_long = version >= "0.3.0";
        if is_long {
            chain.extend([
                json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
                json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
            ]);
        }
        let list = list(version, &chain);
        let path = netns::path(&world.netns(&name));
        let of = [name.as_str(), path.to_str().unwrap(), "eth0"];
        let wishes = json!({
            "bandwidth": { "ingressRate": 80_000_000, "ingressBurst": 80_000_000,
                "egressRate": 80_000_000, "egressBurst": 80_000_000 },
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        });
        let environment = [
            ("HARNESS_CAPABILITIES", wishes.to_string()),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;IgnoreUnknown=1".to_owned()),
        ];
        let call = |verb| runtime.call_with(verb, &list, of, &environment);
        let said = call("add");
        let result = said.succeeds();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(call("cached").succeeds(), result, "{version}");
        assert!(world.pings(&name, NODE) && world.pings("node", &address(result)), "{version}");
        let lease = &leases(&world.path("run"))[0].1;
        assert_eq!(lease["pod"]["name"], "web", "{version}: {lease}");
        if is_long {
            let pod = Netns::open(&world.netns(&name)).unwrap();
            let listener = pod.tcp_listen("0.0.0.0:80".parse().unwrap()).unwrap();
            let out = Netns::open(&world.netns("out")).unwrap();
            let at = format!("{NODE}:8080").parse().unwrap();
            let connected = out.tcp_connect(None, at, Duration::from_secs(3));
            assert!(connected.is_ok(), "{version}: {connected:?}");
            let _ = listener.accept().unwrap();
            let queues = world.output("node", "tc qdisc show");
            assert_eq!(queues.matches("rate 80Mbit").count(), 2, "{version}: {queues}");
        }
        let checked = call("check");
        if version >= "0.4.0" {
            checked.succeeds();
            assert!(world.run(&name, "ip route del default").status.success());
            assert_eq!(call("check").code(), 101, "{version}");
        } else {
            // libcni's own words: the verb is younger.
            assert_eq!(checked.code(), 0, "{version}");
        }
        for _ in 0..2 {
            call("del").succeeds();
        }
        assert_eq!(call("cached").succeeds(), &Value::Null);
        assert!(wait(PATIENCE, || runtime.is_bare()), "{version}\n{}", world.agent_log());
    }
    assert_eq!(n_cached(&world.path("cache")), 0);
}

#[test]
fn what_a_runtime_has_lost_is_collected() {
    let runtime =
        Runtime::new("pod-subnet", &json!({ "version": 1, "addresses": ["10.1.0.4", "10.1.0.5"] }));
    let world = &runtime.world;
    let list = list("1.1.0", &[runtime.ours()]);
    for name in ["a", "b"] {
        let _ = world.container(name);
        runtime.call("add", &list, name).succeeds();
    }
    assert_eq!(runtime.call("status", &list, "a").code(), 50, "no address is left");
    // One that the runtime knows by its cache, and one that it has no memory of.
    fs::remove_dir_all(world.path("cache")).unwrap();
    let keep = json!([{ "containerID": "a", "ifname": "eth0" }]).to_string();
    let collect = || {
        let path = netns::path(&world.netns("a"));
        let of = ["a", path.to_str().unwrap(), "eth0"];
        runtime.call_with("gc", &list, of, &[("HARNESS_KEEP", keep.clone())])
    };
    collect().succeeds();
    assert!(wait(PATIENCE, || leases(&world.path("run")).len() == 1), "{}", world.agent_log());
    assert!(wait(PATIENCE, || runtime.call("status", &list, "a").0["error"].is_null()));
    runtime.call("add", &list, "b").succeeds();
    collect().succeeds();
    assert!(wait(PATIENCE, || leases(&world.path("run")).len() == 1));
    assert_eq!(n_cached(&world.path("cache")), 0, "`b` is forgotten, too");
    runtime.call("add", &list, "a").succeeds();
    runtime.call("check", &list, "a").succeeds();
    runtime.call("del", &list, "a").succeeds();
    assert!(wait(PATIENCE, || runtime.is_bare()));
}

#[test]
fn errors_reach_the_runtime_with_their_codes() {
    let mut runtime = Runtime::new("overlay", &block());
    let ours = runtime.ours();
    let newest = list("1.1.0", std::slice::from_ref(&ours));
    let _ = runtime.world.container("a");
    let path = netns::path(&runtime.world.netns("a"));
    let path = path.to_str().unwrap();
    let of = |list: &Value, of: [&str; 3]| runtime.call_with("add", list, of, &[]).code();
    assert_eq!(of(&newest, ["a", "/dev/null", "eth0"]), 4, "no namespace");
    assert_eq!(of(&newest, ["a", "/proc/self/ns/net", "eth0"]), 4, "the node's own");
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut part = ours.clone();
        change(&mut part);
        of(&list("1.1.0", &[part]), ["a", path, "eth0"])
    };
    assert_eq!(wrong(&|part| part["agentSocket"] = json!(5)), 6);
    assert_eq!(wrong(&|part| part["agentSocket"] = json!("relative")), 7);
    assert_eq!(of(&list("1.1.0", &[json!({ "type": "no-such-plugin" })]), ["a", path, "eth0"]), 0);
    // What libcni itself stops before a plugin runs.
    assert_eq!(of(&newest, ["a b", path, "eth0"]), 4);
    assert_eq!(of(&newest, ["a", path, "eth/0"]), 4);
    assert_eq!(of(&newest, ["a", path, "sixteen-letters-"]), 4);
    assert_eq!(
        runtime.call("check", &newest, "a").code(),
        7,
        "nothing was added, so libcni knows no result"
    );
    runtime.call("add", &newest, "a").succeeds();
    runtime.world.kill_agent();
    assert_eq!(runtime.call("status", &newest, "a").code(), 50);
    let _ = runtime.world.container("b");
    assert_eq!(runtime.call("add", &newest, "b").code(), 11);
    runtime.call("del", &newest, "a").succeeds();
    runtime.world.start_agent("overlay", &block());
    assert!(wait(PATIENCE, || runtime.is_bare()), "what was queued is done");
    runtime.call("status", &newest, "a").succeeds();
}

/// The newest `bridge` connects the pod and asks us for its address.
#[test]
fn others_delegate_to_us() {
    let runtime = Runtime::new("overlay", &block());
    let world = &runtime.world;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let bridge = json!({ "type": "bridge", "bridge": "br7", "isGateway": false, "ipam": runtime.ours() });
        let list = list(version, &[bridge]);
        let name = format!("c{}", version.replace('.', ""));
        let _ = world.container(&name);
        let said = runtime.call("add", &list, &name);
        let address = address(said.succeeds());
        assert!(world.output(&name, "ip -4 addr show dev eth0").contains(&address), "{version}");
        assert_eq!(leases(&world.path("run"))[0].0, address);
        for _ in 0..2 {
            runtime.call("del", &list, &name).succeeds();
        }
        assert!(wait(PATIENCE, || runtime.is_bare()), "{version}\n{}", world.agent_log());
    }
}

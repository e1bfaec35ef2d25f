//! Our plugin with others: the reference plugins behind it in a chain, and in front of it as those who
//! ask it for addresses. Needs root and Debian's reference plugins.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{fs, process::Command, time::Duration};

use lab::pods::{NODE, Said, World, leases, wait};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-lab");
const REFERENCE: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(5);

fn world() -> World {
    let mut world = World::new(PROGRAM);
    world.start_agent("overlay", &json!({ "version": 1, "block": "10.244.1.0/24" }));
    world
}

/// Runs one plugin as a runtime would run it as part of the network `config`.
fn run(world: &World, plugin: &str, verb: &str, name: &str, config: &Value) -> Said {
    let mut command = match plugin {
        "aksnet-cni" => {
            let mut ours = Command::new(PROGRAM);
            ours.arg("plugin");
            ours
        }
        other => Command::new(format!("{REFERENCE}/{other}")),
    };
    let mut through = Command::new("env");
    // Delegating plugins look there for whom they delegate to.
    through.arg(format!("CNI_PATH={REFERENCE}:{}", world.path("bin").display()));
    through.arg(command.get_program()).args(command.get_args());
    command = through;
    world.run_plugin(&mut command, verb, name, config)
}

fn with(part: &Value, version: &str, previous: Option<&Value>) -> Value {
    let mut config = part.clone();
    config["cniVersion"] = version.into();
    config["name"] = "azure".into();
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    config
}

#[test]
fn a_whole_chain_is_added_checked_and_deleted_in_every_version() {
    let world = world();
    let chain = [
        json!({ "type": "aksnet-cni", "agentSocket": world.socket() }),
        json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" } }),
        json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000 }),
        json!({ "type": "portmap", "snat": true, "conditionsV4": [], "runtimeConfig": { "portMappings": [] } }),
    ];
    // What Debian's 1.1.1 speaks; 1.1.0 is ours alone.
    for (number, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"].into_iter().enumerate() {
        let name = format!("c{number}");
        let _ = world.container(&name);
        let mut previous = None;
        for part in &chain {
            let plugin = part["type"].as_str().unwrap();
            let said = run(&world, plugin, "ADD", &name, &with(part, version, previous.as_ref()));
            assert!(said.success, "{version} {plugin}: {said:?}");
            previous = Some(said.json());
        }
        let last = previous.unwrap();
        assert_eq!(last["cniVersion"], version);
        assert!(world.pings(&name, NODE), "{version}");
        if version >= "0.4.0" {
            for part in &chain {
                let plugin = part["type"].as_str().unwrap();
                let said = run(&world, plugin, "CHECK", &name, &with(part, version, Some(&last)));
                assert!(said.success, "{version} {plugin}: {said:?}");
            }
        }
        for part in chain.iter().rev() {
            let plugin = part["type"].as_str().unwrap();
            for _ in 0..2 {
                let said = run(&world, plugin, "DEL", &name, &with(part, version, Some(&last)));
                assert!(said.success, "{version} {plugin}: {said:?}");
            }
        }
    }
    assert!(wait(PATIENCE, || leases(&world.path("run")).is_empty()));
}

/// The reference plugin `bridge` connects the pod and asks us for its address, under either of our names.
/// (`ptp` cannot: it wants the route of a network, and a routed pod's address is a /32.)
#[test]
fn reference_plugins_get_their_addresses_from_us() {
    let world = world();
    fs::create_dir(world.path("bin")).unwrap();
    // A delegate is found by name and started without arguments.
    for name in ["aksnet-cni", "azure-ipam"] {
        let script = format!("#!/bin/sh\nexec {PROGRAM} plugin\n");
        let path = world.path("bin").join(name);
        fs::write(&path, script).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&path).status().unwrap().success());
    }
    for (plugin, ours) in [("bridge", "aksnet-cni"), ("bridge", "azure-ipam")] {
        let config = json!({
            "cniVersion": "1.0.0", "name": "other", "type": plugin, "bridge": "br7", "isGateway": false,
            "ipam": { "type": ours, "agentSocket": world.socket() },
        });
        let name = format!("c-{ours}");
        let _ = world.container(&name);
        let said = run(&world, plugin, "ADD", &name, &config);
        assert!(said.success, "{plugin}: {said:?}\n{}", world.agent_log());
        let address = said.address();
        assert!(address.starts_with("10.244.1."), "{said:?}");
        assert!(world.output(&name, "ip -4 addr show eth0").contains(&address), "{plugin}");
        let held = leases(&world.path("run"));
        assert_eq!(held.len(), 1, "{held:?}");
        assert_eq!(held[0].1["is_address_only"], true);
        // A second agent finds the address held; the same attachment gets the same one.
        let mut alone = config.clone();
        alone["type"] = "somebody".into();
        let again = run(&world, "aksnet-cni", "ADD", &name, &alone);
        assert_eq!(again.address(), address, "{again:?}");
        let mut checked = config.clone();
        checked["prevResult"] = said.json();
        // Debian's `bridge` itself fails CHECK of every pod without a gateway, after it has asked us.
        let good = run(&world, "aksnet-cni", "CHECK", &name, &checked);
        assert!(good.success, "{plugin}: {good:?}");
        for _ in 0..2 {
            let gone = run(&world, plugin, "DEL", &name, &config);
            assert!(gone.success, "{plugin}: {gone:?}");
        }
        assert!(wait(PATIENCE, || leases(&world.path("run")).is_empty()), "{plugin}");
        let lost = run(&world, "aksnet-cni", "CHECK", &name, &{
            let mut alone = checked.clone();
            alone["type"] = "somebody".into();
            alone
        });
        assert_eq!(lost.json()["code"], 3, "{lost:?}");
    }
}

/// An address that another plugin uses survives the agent, and goes with the container's namespace.
#[test]
fn a_reserved_address_lives_as_long_as_its_container() {
    let mut world = world();
    let config = json!({
        "cniVersion": "1.1.0", "name": "other", "type": "somebody",
        "ipam": { "type": "azure-ipam", "agentSocket": world.socket() },
    });
    for name in ["a", "b"] {
        let _ = world.container(name);
        let said = run(&world, "aksnet-cni", "ADD", name, &config);
        assert!(said.success && said.json().get("interfaces").is_none(), "{said:?}");
    }
    let held = leases(&world.path("run"));
    assert_eq!(held.len(), 2);
    world.kill_agent();
    world.remove_container("b");
    world.start_agent("overlay", &json!({ "version": 1, "block": "10.244.1.0/24" }));
    assert!(wait(PATIENCE, || leases(&world.path("run")).len() == 1));
    assert_eq!(leases(&world.path("run"))[0].0, held[0].0);
    let mut kept = config.clone();
    kept["cni.dev/valid-attachments"] = json!([]);
    let said = run(&world, "aksnet-cni", "GC", "", &kept);
    assert!(said.success, "{said:?}");
    assert!(wait(PATIENCE, || leases(&world.path("run")).is_empty()), "collected");
}

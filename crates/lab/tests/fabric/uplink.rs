//! A lab's internet joined to a machine's network: both are namespaces of the test's.

use std::path::PathBuf;

use daemon::fabric::{Settings, Uplink};
use linux::netns::Netns;
use store::Store;
use vnet::{host::names, kind, name::ArmId};

use crate::{
    lab::{ask, run, serve},
    running::{Azure, Removed, until},
};

/// A machine with a way out, and what is there.
struct Outside {
    lab: String,
    machine: Netns,
    beyond: Netns,
    run_dir: PathBuf,
}

impl Outside {
    fn new() -> Self {
        let lab = format!("t{}up", std::process::id());
        let machine = Netns::create(&format!("{lab}x-machine")).unwrap();
        let outside = Netns::create(&format!("{lab}x-outside")).unwrap();
        let run_dir = std::env::temp_dir().join("aksnet-uplink-test").join(&lab);
        std::fs::create_dir_all(&run_dir).unwrap();
        let script = format!(
            "ip link add eth0 type veth peer name eth0 netns {} && ip addr add 203.0.113.1/24 dev eth0 && \
             ip link set eth0 up && ip link set lo up && sysctl -qw net.ipv4.ip_forward=0",
            outside.name()
        );
        assert_eq!(run(&machine, "sh", &["-c", &script]), "");
        let script = "ip addr add 203.0.113.2/24 dev eth0 && ip addr add 192.0.2.8/32 dev lo && \
             ip link set lo up && ip link set eth0 up && ip route add default via 203.0.113.1";
        assert_eq!(run(&outside, "sh", &["-c", script]), "");
        assert_eq!(run(&machine, "ip", &["route", "add", "default", "via", "203.0.113.2"]), "");
        Self { lab, machine, beyond: outside, run_dir }
    }

    fn uplink(&self) -> Uplink {
        let machine = Netns::open(self.machine.name()).unwrap();
        Uplink::new(machine, &self.lab, None, &self.run_dir)
    }

    /// What a lab may change in the machine's namespace.
    fn traces(&self) -> String {
        [
            "ip -br link",
            "ip -br -4 addr",
            "ip route",
            "nft list ruleset",
            "sysctl net.ipv4.ip_forward",
        ]
        .map(|command| run(&self.machine, "sh", &["-c", command]))
        .join("")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for namespace in [&self.machine, &self.beyond] {
            drop(Netns::delete(namespace.name()));
        }
        drop(std::fs::remove_dir_all(&self.run_dir));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lab_reaches_outside_and_nobody_reaches_the_lab() {
    let outside = Outside::new();
    let before = outside.traces();
    serve(&outside.beyond, "outside", 80);
    serve(&outside.machine, "machine", 80);
    let store = Store::in_memory().unwrap();
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "g");
    let azure = Azure { store: store.clone(), group };
    let _removed = Removed(outside.lab.clone());
    let settings =
        Settings { lab: outside.lab.clone(), uplink: Some(outside.uplink()), ..Default::default() };
    let running = tokio::spawn(daemon::fabric::run(store, settings));
    azure.network();
    azure.vm("one");
    azure.settled().await;
    let one = names::vm_ns(&outside.lab, &azure.id(kind::VM, "one"));
    let one = Netns::open(&one).unwrap();
    until("outside is reached", || async {
        ask(&one, "192.0.2.8:80") == "outside sees 203.0.113.1 at 192.0.2.8"
    })
    .await;
    // Not the machine itself, by whatever address; and the lab's own internet is still the lab's.
    let machine_end = vnet::host::uplink::Uplink::of(&outside.lab).machine;
    for address in ["203.0.113.1".to_owned(), machine_end.to_string()] {
        assert_eq!(ask(&one, &format!("{address}:80")), "nothing", "{address}");
    }
    let own = run(&one, "curl", &["-s", "-m", "2", "http://198.18.77.77/"]);
    assert!(own.starts_with("198.18."), "{own}");
    // Whoever outside knows the way finds nobody.
    let script = "ip route add 198.18.0.0/15 via 203.0.113.1 && ip route add 169.254.64.0/18 via 203.0.113.1";
    assert_eq!(run(&outside.beyond, "sh", &["-c", script]), "");
    let lab_end = vnet::host::uplink::Uplink::of(&outside.lab).lab;
    for address in [lab_end.to_string(), "198.18.0.1".to_owned(), "198.19.0.10".to_owned()] {
        assert_eq!(ask(&outside.beyond, &format!("{address}:80")), "nothing", "{address}");
    }
    // Somebody else's `nft flush ruleset` is mended with the next look at everything.
    run(&outside.machine, "nft", &["flush", "ruleset"]);
    let table = format!("{}-uplink", outside.lab);
    until("the table is back", || async {
        run(&outside.machine, "nft", &["list", "tables"]).contains(&table)
    })
    .await;

    running.abort();
    drop(running.await);
    outside.uplink().down().unwrap();
    outside.uplink().down().unwrap();
    assert_eq!(outside.traces(), before);
}

#[test]
fn a_machine_without_a_way_out_is_told_so() {
    let outside = Outside::new();
    assert_eq!(outside.uplink().way_out().unwrap(), "eth0");
    run(&outside.machine, "ip", &["route", "del", "default"]);
    let error = outside.uplink().way_out().unwrap_err();
    assert!(error.to_string().contains("no default route"), "{error}");
    let machine = Netns::open(outside.machine.name()).unwrap();
    let other = Uplink::new(machine, &outside.lab, Some("eth7".to_owned()), &outside.run_dir);
    assert_eq!(other.way_out().unwrap_err().to_string(), "the machine has no link `eth7`");
}

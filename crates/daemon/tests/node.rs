//! The agent's files: its configuration, and the record of leases in every version ever written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{error::Error, fs};

use cni::talk::{Attachment, Pod};
use daemon::node::{
    config::{Config, SourceConfig},
    ledger::{Lease, Ledger, LedgerError, Phase},
};
use vnet::pods::{
    PodNetwork,
    ports::{Bandwidth, HostPort, PortMapping, Rate, Transport},
};

/// What a configuration says, or what is wrong with it.
fn check(text: &str, expected: &str) {
    let directory = scratch("config");
    let path = directory.join("agent.json");
    fs::write(&path, text).unwrap();
    let said = match Config::read(&path) {
        Ok(config) => {
            let exempt: Vec<_> =
                config.masquerade.non_masquerade.iter().map(ToString::to_string).collect();
            let source = match config.source {
                SourceConfig::Kubernetes { kubeconfig } => kubeconfig,
                SourceConfig::File { path } => path,
                SourceConfig::Host => "the daemon".into(),
            };
            format!(
                "{} {} from {}, exempt {}, run {}",
                config.node,
                config.network,
                source.display(),
                exempt.join(" "),
                config.run_directory.display()
            )
        }
        Err(error) => {
            let mut text = error.to_string().replace(&path.display().to_string(), "FILE");
            if let Some(cause) = error.source() {
                text = format!("{text}: {cause}");
            }
            text
        }
    };
    assert_eq!(said, expected);
    fs::remove_dir_all(directory).unwrap();
}

fn scratch(name: &str) -> std::path::PathBuf {
    let thread = std::thread::current();
    let name = format!("aksnet-{name}-{}-{}", std::process::id(), thread.name().unwrap());
    let path = std::env::temp_dir().join(name.replace(':', "_"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_configuration_is_read_or_refused_by_what_is_wrong() {
    check(
        r#"{"version":1,"node":"n","mode":"overlay","kubeconfig":"/k","pod_cidr":"10.244.0.0/16",
            "no_masquerade":[],"socket":"/run/aksnet/agent.sock","interface":"eth0"}"#,
        "n overlay from /k, exempt 10.244.0.0/16, run /run/aksnet",
    );
    check(
        r#"{"version":1,"node":"n","mode":"node-subnet","kubeconfig":"/k","pod_cidr":null,
            "no_masquerade":["10.0.0.0/16"]}"#,
        "n node-subnet from /k, exempt 10.0.0.0/16, run /run/aksnet",
    );
    check(
        r#"{"version":1,"node":"n","mode":"kubenet","kubeconfig":"/k","pod_cidr":"10.244.0.0/16",
            "pod_cidr_v6":"fd12:3456:789a::/64"}"#,
        "n kubenet from /k, exempt 10.244.0.0/16 fd12:3456:789a::/64, run /run/aksnet",
    );
    check(
        r#"{"version":1,"node":"n","mode":"pod-subnet","kubeconfig":"/k","pod_cidr_v6":"fd00::/64"}"#,
        "FILE: pod_cidr_v6: this mode has none",
    );
    check(r#"{"version":2,"surprise":true}"#, "FILE has version 2; this agent reads version 1");
    check(
        r#"{"version":1,"node":"n","mode":"kubenet","kubeconfig":"/k"}"#,
        "FILE: pod_cidr is missing; this mode has one",
    );
    check(
        r#"{"version":1,"node":"n","mode":"bridge","kubeconfig":"/k"}"#,
        "FILE: mode: `bridge` is not one of kubenet, node-subnet, node-subnet-bridge, pod-subnet, overlay",
    );
    check(
        r#"{"version":1,"node":"n","mode":"pod-subnet"}"#,
        "FILE: neither kubeconfig nor addresses_file is given",
    );
    check(
        "{",
        "FILE is not an agent's configuration: EOF while parsing an object at line 1 column 1",
    );
}

fn lease(last: u8, phase: Phase) -> Lease {
    Lease {
        attachment: Attachment { container: format!("c{last}"), interface: "eth0".to_owned() },
        address: [10, 244, 1, last].into(),
        pod: Some(Pod { namespace: "default".to_owned(), name: "web-0".to_owned() }),
        netns: "/run/netns/c".into(),
        netns_id: 4_026_532_000,
        network: PodNetwork::Overlay,
        block: Some("10.244.1.0/24".parse().unwrap()),
        block_v6: None,
        mtu: 1500,
        phase,
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        is_address_only: false,
    }
}

#[test]
fn a_ledger_holds_what_was_written_and_has_one_owner() {
    let directory = scratch("ledger");
    let (ledger, found) = Ledger::open(&directory).unwrap();
    assert!(found.leases.is_empty() && found.unreadable.is_empty());
    assert!(matches!(Ledger::open(&directory), Err(LedgerError::Taken { .. })));
    let host = HostPort { transport: Transport::Udp, address: None, port: 53 };
    let rate = Rate { bits_per_second: 1_000_000, burst_bits: 80_000 };
    let limited = Lease {
        ports: vec![PortMapping { host, pod_port: 5353 }],
        bandwidth: Bandwidth { ingress: None, egress: Some(rate) },
        ..lease(4, Phase::Held)
    };
    let both = Lease {
        block_v6: Some("fd12:3456:789a:0:1::/80".parse().unwrap()),
        ..lease(5, Phase::Held)
    };
    let addresses: Vec<_> = both.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.244.1.5", "fd12:3456:789a:0:1::5"]);
    for written in [
        lease(1, Phase::Held),
        lease(2, Phase::Held),
        lease(2, Phase::Leaving),
        limited.clone(),
        both.clone(),
    ] {
        ledger.write(&written).unwrap();
    }
    ledger.write(&lease(3, Phase::Held)).unwrap();
    ledger.remove([10, 244, 1, 3].into()).unwrap();
    ledger.remove([10, 244, 1, 3].into()).unwrap();
    drop(ledger);
    // Killed between writing beside and renaming; and somebody else's file.
    fs::write(directory.join(".10.244.1.9"), "{\"ver").unwrap();
    fs::write(directory.join("10.244.1.8"), "{\"version\":7}").unwrap();
    let (_ledger, found) = Ledger::open(&directory).unwrap();
    assert_eq!(found.leases, [lease(1, Phase::Held), lease(2, Phase::Leaving), limited, both]);
    assert_eq!(found.unreadable.len(), 1, "{:?}", found.unreadable);
    assert!(!directory.join(".10.244.1.9").exists());
    fs::remove_dir_all(directory).unwrap();
}

/// A lease as the first release wrote it; it must be readable for ever.
#[test]
fn version_1_of_a_lease_is_read() {
    let directory = scratch("lease");
    let text = include_str!("golden/lease-v1.json");
    fs::write(directory.join("10.244.1.1"), text).unwrap();
    let (ledger, found) = Ledger::open(&directory).unwrap();
    assert_eq!(found.leases, [lease(1, Phase::Held)]);
    ledger.write(&lease(1, Phase::Held)).unwrap();
    let written = fs::read_to_string(directory.join("10.244.1.1")).unwrap();
    assert_eq!(written, text.trim_end(), "a changed format needs a new version");
    fs::remove_dir_all(directory).unwrap();
}

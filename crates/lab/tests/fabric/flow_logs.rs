//! Flow logs of real packets.

use std::path::{Path, PathBuf};

use daemon::fabric::Settings;
use linux::netns::Netns;
use serde_json::Value;
use store::Store;
use vnet::{
    addr::Family,
    command::Command,
    host::names,
    kind,
    model::{Access, Addresses, Direction, Peers, PortRange, Ports, RuleProtocol, SecurityRule},
    name::{ArmId, Name},
};

use crate::{
    lab::{ask, serve},
    running::{Azure, Removed, until},
};

/// `RULE TUPLE` of everything that is logged, without time and the client's port.
fn logged(folder: &Path) -> Vec<String> {
    let mut files: Vec<PathBuf> = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        // It may just be being written.
        let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
        for record in value["records"].as_array().unwrap() {
            let mac = record["macAddress"].as_str().unwrap();
            assert!(path.to_string_lossy().contains(mac), "{} has {mac}", path.display());
            for flow in record["flowRecords"]["flows"].as_array().unwrap() {
                for group in flow["flowGroups"].as_array().unwrap() {
                    for tuple in group["flowTuples"].as_array().unwrap() {
                        let fields: Vec<&str> = tuple.as_str().unwrap().split(',').collect();
                        assert_eq!(fields.len(), 13, "{tuple}");
                        let [_, source, destination, _, port, protocol, way, state, ..] =
                            fields[..]
                        else {
                            panic!("{tuple}");
                        };
                        found.push(format!(
                            "{} {source} {destination}:{port} {protocol} {way} {state}",
                            group["rule"].as_str().unwrap()
                        ));
                    }
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn any() -> Peers {
    Peers::Addresses { any_of: vec![Addresses::Any], as_list: false }
}

/// Denies TCP to port 81.
fn no_81() -> SecurityRule {
    SecurityRule {
        name: Name::new("no-81"),
        direction: Direction::Inbound,
        priority: 100,
        access: Access::Deny,
        protocol: RuleProtocol::Tcp,
        source: any(),
        source_ports: Ports { any_of: vec![PortRange::ALL], as_list: false },
        destination: any(),
        destination_ports: Ports { any_of: vec![PortRange::one(81)], as_list: false },
        kept: [].into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_are_logged_at_both_ends_and_denials_with_their_rule() {
    let lab = format!("t{}fl", std::process::id());
    let folder = std::env::temp_dir().join(format!("aksnet-flow-logs-{lab}"));
    let store = Store::in_memory().unwrap();
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "g");
    let azure = Azure { store: store.clone(), group };
    let _removed = Removed(lab.clone());
    let settings =
        Settings { lab: lab.clone(), flow_logs: Some(folder.clone()), ..Default::default() };
    let running = tokio::spawn(daemon::fabric::run(store, settings));
    azure.network();
    azure.command(Command::PutSecurityGroup {
        common: azure.common(kind::SECURITY_GROUP, "nsg"),
        rules: Some(vec![no_81()]),
    });
    azure.vm("one");
    azure.vm_behind("v", "two", Some(azure.id(kind::SECURITY_GROUP, "nsg")));
    azure.settled().await;
    let open = |name: &str| Netns::open(&names::vm_ns(&lab, &azure.id(kind::VM, name))).unwrap();
    let (one, two) = (open("one"), open("two"));
    serve(&two, "two", 80);
    serve(&two, "two", 81);
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(ask(&one, "10.1.1.5:81"), "nothing");
    assert!(ask(&one, "93.184.216.34:80") != "two", "the internet");
    let expected = [
        "DefaultRule_AllowVnetInBound 10.1.1.4 10.1.1.5:80 6 I B",
        "no-81 10.1.1.4 10.1.1.5:81 6 I D",
        "unspecified 10.1.1.4 10.1.1.5:80 6 O B",
        "unspecified 10.1.1.4 93.184.216.34:80 6 O B",
    ];
    until("all of it is written", || async {
        let found = logged(&folder);
        expected.iter().all(|line| found.iter().any(|other| other == line))
    })
    .await;
    // What was denied has not begun.
    let found = logged(&folder);
    assert!(!found.iter().any(|line| line.contains(":81 6 I B")), "{found:#?}");
    running.abort();
    drop(running.await);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_is_logged_as_ipv4_is() {
    let lab = format!("t{}fl6", std::process::id());
    let folder = std::env::temp_dir().join(format!("aksnet-flow-logs-{lab}"));
    let store = Store::in_memory().unwrap();
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "g");
    let azure = Azure { store: store.clone(), group };
    let _removed = Removed(lab.clone());
    let settings =
        Settings { lab: lab.clone(), flow_logs: Some(folder.clone()), ..Default::default() };
    let running = tokio::spawn(daemon::fabric::run(store, settings));
    azure.command(Command::PutGroup {
        id: azure.group.clone(),
        location: "eastus".to_owned(),
        tags: [].into(),
    });
    azure.command(azure.put_dual_vnet("v"));
    let nsg = azure.id(kind::SECURITY_GROUP, "nsg");
    azure.command(Command::PutSecurityGroup {
        common: azure.common(kind::SECURITY_GROUP, "nsg"),
        rules: Some(vec![no_81()]),
    });
    let both = [Family::V4, Family::V6];
    azure.vm_of("v", "one", None, &both);
    azure.vm_of("v", "two", Some(nsg), &both);
    azure.settled().await;
    let open = |name: &str| Netns::open(&names::vm_ns(&lab, &azure.id(kind::VM, name))).unwrap();
    let (one, two) = (open("one"), open("two"));
    serve(&two, "two", 80);
    serve(&two, "two", 81);
    let (a, b) = ("fd00:1:0:1::4", "fd00:1:0:1::5");
    assert_eq!(ask(&one, &format!("[{b}]:80")), format!("two sees {a} at {b}"));
    assert_eq!(ask(&one, &format!("[{b}]:81")), "nothing");
    let expected = [
        format!("DefaultRule_AllowVnetInBound {a} {b}:80 6 I B"),
        format!("no-81 {a} {b}:81 6 I D"),
        format!("unspecified {a} {b}:80 6 O B"),
    ];
    until("all of it is written", || async {
        let found = logged(&folder);
        expected.iter().all(|line| found.iter().any(|other| other == line))
    })
    .await;
    running.abort();
    drop(running.await);
    std::fs::remove_dir_all(&folder).unwrap();
}

//! What the platform answers inside a virtual network: names and instance metadata, asked with the machine's own
//! resolver and `curl`.

use std::process::Command as Program;

use linux::netns::Netns;
use serde_json::Value;
use store::Store;
use vnet::{
    host::{names, platform::Resolver},
    kind,
    model::Machine,
    name::ArmId,
};

use crate::{
    lab::run,
    running::{Azure, Removed, until},
};

/// Two virtual networks with the same prefix: `one` and `two` in the first, `one` of the other in the second.
struct World {
    lab: String,
    azure: Azure,
    running: tokio::task::JoinHandle<()>,
    _removed: Removed,
}

impl World {
    async fn new(name: &str) -> Self {
        let lab = format!("t{}{name}", std::process::id());
        let store = Store::in_memory().unwrap();
        let group = ArmId::group("00000000-0000-0000-0000-000000000000", "g");
        let azure = Azure { store: store.clone(), group };
        let removed = Removed(lab.clone());
        let settings = daemon::fabric::Settings { lab: lab.clone(), ..Default::default() };
        let running = tokio::spawn(daemon::fabric::run(store, settings));
        azure.network();
        azure.command(azure.put_vnet("w", [].into()));
        azure.vm("one");
        azure.vm("two");
        azure.vm_in("w", "other");
        azure.settled().await;
        Self { lab, azure, running, _removed: removed }
    }

    fn machine(&self, name: &str) -> Machine {
        let id = self.azure.id(kind::VM, name);
        Machine::clone(&self.azure.store.snapshot().machines[&id])
    }

    fn namespace(&self, name: &str) -> Netns {
        Netns::open(&names::machine_ns(&self.lab, &self.machine(name))).unwrap()
    }

    fn resolver(&self, name: &str) -> Resolver {
        Resolver::of(&self.azure.store.snapshot(), &self.machine(name)).unwrap()
    }

    /// What `getent` finds from a machine, on one line.
    fn getent(&self, from: &str, database: &str, key: &str) -> String {
        let text = self.resolver(from).to_string();
        let output = self
            .namespace(from)
            .run_with_resolver(&text, || Program::new("getent").args([database, key]).output());
        let output = output.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// `curl` of a path of the metadata service: the status, and the body.
    fn metadata(&self, from: &str, path: &str, more: &[&str]) -> (String, String) {
        let url = format!("http://169.254.169.254{path}");
        let mut arguments = vec!["-s", "-m", "5", "-w", "\n%{http_code}", &url];
        arguments.extend(more);
        let text = run(&self.namespace(from), "curl", &arguments);
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    fn json(&self, from: &str, path: &str) -> Value {
        let (status, body) = self.metadata(from, path, &["-H", "Metadata: true"]);
        assert_eq!(status, "200", "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn end(self) {
        self.running.abort();
        drop(self.running.await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_find_each_other_by_name() {
    let world = World::new("dns").await;
    let suffix = world.resolver("one").search;
    assert_eq!(world.getent("one", "hosts", "two"), format!("10.1.1.5 two.{suffix}"));
    let short = "two.internal.cloudapp.net";
    assert_eq!(world.getent("one", "hosts", short), format!("10.1.1.5 {short}"));
    assert_eq!(world.getent("one", "hosts", "10.1.1.5"), format!("10.1.1.5 {short}"));
    assert_eq!(
        world.getent("one", "hosts", "registry.aksnet.test"),
        "198.19.0.10 registry.aksnet.test"
    );
    // Over TCP, the same.
    let tcp = format!("{}options use-vc\n", world.resolver("one"));
    let found = world
        .namespace("one")
        .run_with_resolver(&tcp, || Program::new("getent").args(["hosts", "two"]).output());
    let found = String::from_utf8(found.unwrap().unwrap().stdout).unwrap();
    assert!(found.starts_with("10.1.1.5 "), "{found}");
    // Other networks' machines have no names here, though the address is one of ours.
    for nobody in ["other", "other.internal.cloudapp.net", "nobody", "example.com", "10.1.1.77"] {
        assert_eq!(world.getent("one", "hosts", nobody), "", "{nobody}");
    }
    assert_eq!(world.getent("other", "hosts", "10.1.1.4"), "10.1.1.4 other.internal.cloudapp.net");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_keeps_the_name_servers_that_it_was_made_with() {
    let world = World::new("own").await;
    let servers = r#"{"dnsServers":["10.1.1.4","10.1.1.5"]}"#.to_owned();
    let kept = [("/properties/dhcpOptions".to_owned(), servers)].into();
    world.azure.command(world.azure.put_vnet("v", kept));
    world.azure.vm("late");
    world.azure.settled().await;
    assert_eq!(world.resolver("one").servers, [names::PLATFORM_ADDRESS]);
    let late = world.resolver("late").to_string();
    assert_eq!(late, "nameserver 10.1.1.4\nnameserver 10.1.1.5\nsearch reddog.microsoft.com\n");
    // A change of the machine is no restart.
    world.azure.command(world.azure.put_vnet("v", [].into()));
    world.azure.vm("late");
    assert_eq!(world.resolver("late").to_string(), late);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_reads_its_own_metadata() {
    let world = World::new("md").await;
    let document = world.json("one", "/metadata/instance?api-version=2025-04-07");
    assert_eq!(document["compute"]["name"], "one");
    assert_eq!(document["compute"]["location"], "eastus");
    assert_eq!(document["compute"]["resourceGroupName"], "g");
    let id = world.azure.id(kind::VM, "one");
    assert_eq!(document["compute"]["resourceId"], id.as_str());
    let interface = &document["network"]["interface"][0];
    assert_eq!(interface["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.1.1.4");
    assert_eq!(interface["ipv4"]["subnet"][0]["address"], "10.1.1.0");
    assert_eq!(interface["ipv4"]["subnet"][0]["prefix"], "24");
    // The same address in another network is another machine.
    let path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
    let name = |from: &str| world.metadata(from, path, &["-H", "Metadata: true"]).1;
    assert_eq!(
        (name("one"), name("two"), name("other")),
        ("one".into(), "two".into(), "other".into())
    );
    // An old version does not know what came later.
    let old = world.json("one", "/metadata/instance/compute?api-version=2017-08-01");
    assert_eq!((old["name"].as_str(), old.get("resourceId")), (Some("one"), None));
    let events = world.json("one", "/metadata/scheduledevents?api-version=2020-07-01");
    assert_eq!(events["Events"], serde_json::json!([]));
    let versions = world.json("one", "/metadata/versions");
    assert_eq!(versions["apiVersions"][0], "2017-03-01");

    let refused = |path: &str, more: &[&str], status: &str, says: &str| {
        let (got, body) = world.metadata("one", path, more);
        assert!(got == status && body.contains(says), "{path}: {got} {body}");
    };
    let good: [&str; 2] = ["-H", "Metadata: true"];
    refused("/metadata/instance?api-version=2021-02-01", &[], "400", "metadata header");
    let forwarded = ["-H", "Metadata: true", "-H", "X-Forwarded-For: 1.2.3.4"];
    refused("/metadata/instance?api-version=2021-02-01", &forwarded, "400", "X-Forwarded-For");
    refused("/metadata/instance", &good, "400", "newest-versions");
    refused("/metadata/instance?api-version=2021-02-02", &good, "400", "newest-versions");
    refused("/metadata/instance/nothing?api-version=2021-02-01", &good, "404", "Not found");
    refused("/metadata/instance/compute/name?api-version=2021-02-01", &good, "400", "format=text");
    let post = ["-H", "Metadata: true", "-X", "POST"];
    refused("/metadata/instance?api-version=2021-02-01", &post, "405", "not allowed");
    refused("/metadata/loadbalancer?api-version=2021-02-01", &good, "404", "load balancer");
    refused(
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x",
        &good,
        "404",
        "Not found",
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_made_again_under_its_name_is_answered_again() {
    let world = World::new("re").await;
    let name = names::vnet_ns(&world.lab, &world.azure.id(kind::VNET, "v"));
    Netns::delete(&name).unwrap();
    // Any change wakes the loop.
    world.azure.vm("three");
    world.azure.settled().await;
    until("names are found again", || async {
        world.getent("one", "hosts", "two").starts_with("10.1.1.5 ")
    })
    .await;
    world.end().await;
}

//! The loop: commands go into a store, and the machine follows.

use std::{
    future::Future,
    io::{Read, Write},
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use linux::netns::Netns;
use store::Store;
use vnet::{
    addr::{Family, Prefix4, Prefix6},
    command::{Command, Common, PutFrontend, PutIpConfiguration, PutLoadBalancer, PutSubnet},
    host::names,
    kind,
    model::{BalancingRule, Distribution, Kept, Probe, ProbeProtocol, Timestamp, Transport},
    name::{ArmId, Name},
};

use crate::lab::{ask, run, serve};

/// A region that commands go into.
pub(crate) struct Azure {
    pub(crate) store: Store,
    pub(crate) group: ArmId,
}

impl Azure {
    pub(crate) fn id(&self, kind: &str, name: &str) -> ArmId {
        self.group.sibling(kind, name)
    }

    pub(crate) fn common(&self, kind: &str, name: &str) -> Common {
        Common { id: self.id(kind, name), location: None, tags: None, kept: [].into() }
    }

    pub(crate) fn command(&self, command: Command) {
        self.store.change(command, Timestamp(0)).expect("the region accepts");
    }

    /// The group, and virtual network `v` with subnet `a`.
    pub(crate) fn network(&self) {
        self.command(Command::PutGroup {
            id: self.group.clone(),
            location: "eastus".to_owned(),
            tags: [].into(),
        });
        self.command(self.put_vnet("v", Kept::new()));
    }

    /// A virtual network of 10.1.0.0/16 with subnet `a` of 10.1.1.0/24.
    pub(crate) fn put_vnet(&self, name: &str, kept: Kept) -> Command {
        self.put_vnet_of(name, kept, &["10.1.0.0/16"], None)
    }

    /// The same with IPv6: `fd00:1::/48`, and in the subnet `fd00:1:0:1::/64`.
    pub(crate) fn put_dual_vnet(&self, name: &str) -> Command {
        let prefix6 = Some("fd00:1:0:1::/64".parse().unwrap());
        self.put_vnet_of(name, Kept::new(), &["10.1.0.0/16", "fd00:1::/48"], prefix6)
    }

    fn put_vnet_of(
        &self,
        name: &str,
        kept: Kept,
        prefixes: &[&str],
        prefix6: Option<Prefix6>,
    ) -> Command {
        let prefix: Prefix4 = "10.1.1.0/24".parse().unwrap();
        let subnet = PutSubnet {
            security_group: None,
            nat_gateway: None,
            default_outbound: None,
            name: Name::new("a"),
            prefix,
            prefix6,
            route_table: None,
            delegations: Vec::new(),
            private_endpoint_network_policies: None,
            private_link_service_network_policies: None,
            kept: [].into(),
        };
        Command::PutVnet {
            common: Common { kept, ..self.common(kind::VNET, name) },
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
            subnets: Some(vec![subnet]),
        }
    }

    /// A machine in subnet `a` of `v`.
    pub(crate) fn vm(&self, name: &str) {
        self.vm_in("v", name);
    }

    /// A machine in subnet `a` of a virtual network.
    pub(crate) fn vm_in(&self, vnet: &str, name: &str) {
        self.vm_behind(vnet, name, None);
    }

    /// The same behind a security group.
    pub(crate) fn vm_behind(&self, vnet: &str, name: &str, group: Option<ArmId>) {
        self.vm_of(vnet, name, group, &[Family::V4]);
    }

    /// The same with an address of each of these families.
    pub(crate) fn vm_of(&self, vnet: &str, name: &str, group: Option<ArmId>, families: &[Family]) {
        let subnet = self.id(kind::VNET, vnet).child("subnets", "a");
        let config = |(n, family): (usize, &Family)| PutIpConfiguration {
            public_ip: None,
            application_groups: Vec::new(),
            name: format!("ipconfig{}", n + 1),
            subnet: subnet.clone(),
            address: None,
            family: *family,
        };
        self.command(Command::PutNic {
            security_group: group,
            common: self.common(kind::NIC, name),
            ip_forwarding: false,
            configs: families.iter().enumerate().map(config).collect(),
        });
        let nic = self.id(kind::NIC, name);
        self.command(Command::PutVm { common: self.common(kind::VM, name), nic });
    }

    fn balancer(&self) {
        let subnet = self.id(kind::VNET, "v").child("subnets", "a");
        let probe = Probe {
            protocol: ProbeProtocol::Http,
            port: 8080,
            path: "/healthz".to_owned(),
            interval_seconds: 5,
            threshold: 1,
        };
        let rule = BalancingRule {
            frontend: Name::new("f"),
            pool: Name::new("p"),
            probe: Some(Name::new("h")),
            protocol: Transport::Tcp,
            frontend_port: 90,
            backend_port: 90,
            floating_ip: true,
            distribution: Distribution::Default,
            idle_timeout_minutes: 4,
            enable_tcp_reset: true,
            disable_outbound_snat: true,
        };
        let address = Some([10, 1, 1, 100].into());
        let balancer = PutLoadBalancer {
            inbound_rules: Vec::new(),
            sku: "Standard".to_owned(),
            frontends: vec![(
                Name::new("f"),
                PutFrontend::Internal { subnet, address, family: Family::V4 },
            )],
            pools: vec![(Name::new("p"), vec![self.id(kind::NIC, "two")].into())],
            probes: vec![(Name::new("h"), probe)],
            rules: vec![(Name::new("r"), rule)],
            outbound_rules: Vec::new(),
        };
        self.command(Command::PutLoadBalancer {
            common: self.common(kind::LOAD_BALANCER, "ilb"),
            balancer,
        });
    }

    pub(crate) async fn settled(&self) {
        until("all operations end", || async {
            self.store.snapshot().operations.values().all(|operation| operation.ended.is_some())
        })
        .await;
    }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(15), "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes what the loop made, however the test ends.
pub(crate) struct Removed(pub(crate) String);

impl Drop for Removed {
    fn drop(&mut self) {
        drop(daemon::fabric::down(&self.0));
    }
}

/// What `GET /` at an address answers, but for the header.
fn get(from: &Netns, to: &str) -> String {
    let to: SocketAddrV4 = to.parse().unwrap();
    let mut stream = from.tcp_connect(None, to, Duration::from_secs(2)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_follows_the_region() {
    let lab = format!("t{}run", std::process::id());
    let store = Store::in_memory().unwrap();
    let group = ArmId::group("00000000-0000-0000-0000-000000000000", "g");
    let azure = Azure { store: store.clone(), group: group.clone() };
    let _removed = Removed(lab.clone());
    let running = tokio::spawn(daemon::fabric::run(
        store,
        daemon::fabric::Settings { lab: lab.clone(), ..Default::default() },
    ));

    azure.network();
    azure.vm("one");
    azure.vm("two");
    azure.settled().await;

    let open = |name: &str| Netns::open(&names::vm_ns(&lab, &azure.id(kind::VM, name))).unwrap();
    let (one, two) = (open("one"), open("two"));
    serve(&two, "two", 80);
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    let outside = azure.store.snapshot().vnets.values().next().unwrap().default_outbound;
    assert_eq!(get(&one, "93.184.216.34:80"), format!("{outside}\n"));

    // A load balancer's member gets flows once its probe is answered, and none after it is not.
    azure.balancer();
    azure.settled().await;
    run(&two, "ip", &["addr", "add", "10.1.1.100/32", "dev", "lo"]);
    serve(&two, "two", 90);
    assert_eq!(ask(&one, "10.1.1.100:90"), "nothing", "not yet probed");
    let healthy = two.tcp_listen("0.0.0.0:8080".parse().unwrap()).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, from) = healthy.accept().unwrap();
        let mut request = [0; 1000];
        let n = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        (from.ip().to_string(), String::from_utf8_lossy(&request[..n]).into_owned())
    });
    let through = "two sees 10.1.1.4 at 10.1.1.100";
    until("the member is healthy", || async { ask(&one, "10.1.1.100:90") == through }).await;
    let (from, request) = answering.join().unwrap();
    assert_eq!(from, "168.63.129.16");
    assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"), "{request}");
    until("the member is not healthy", || async { ask(&one, "10.1.1.100:90") == "nothing" }).await;

    azure.command(Command::DeleteGroup { id: group });
    until("everything is gone", || async {
        Netns::list()
            .unwrap()
            .iter()
            .all(|name| !names::is_fabric_ns(&lab, name) || name.ends_with("-internet"))
    })
    .await;
    azure.settled().await;
    running.abort();
    drop(running.await);
    daemon::fabric::down(&lab).unwrap();
    assert!(!Netns::list().unwrap().iter().any(|name| names::is_fabric_ns(&lab, name)));
}

//! Reading packets, counters and traces off the kernel, in namespaces of the test's own.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use linux::{
    LinuxError,
    net::{apply_steps, observe},
    netfilter::{self, Fate, Tracer, Verdict},
    netns::Netns,
    nft,
    packets::{Direction, Tap},
    probe::{Kind, Outcome, probe},
};
use vnet::{
    addr::{Family, Mac},
    host::{
        plan::plan,
        state::{Address, End, Fabric, Link, NamespaceState},
    },
};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// Two namespaces with a link between them; gone with the test.
struct World {
    a: Netns,
    b: Netns,
}

impl World {
    fn new(name: &str) -> Self {
        let make = |end| Netns::create(&format!("w{}{name}-{end}", std::process::id())).unwrap();
        let world = Self { a: make("a"), b: make("b") };
        let state = |own: u8, address, peer: &Netns| {
            let mut state = NamespaceState::default();
            let end = End { namespace: peer.name().to_owned(), link: "eth0".to_owned() };
            let link =
                Link { mac: Mac([2, 0, 0, 0, 0, own]), mtu: 1500, peer: end, crossing: None };
            state.links.insert("eth0".to_owned(), link);
            state.addresses.insert(Address { link: "eth0".to_owned(), address, length: 24 });
            state
        };
        let namespaces = BTreeMap::from([
            (world.a.name().to_owned(), state(1, A.into(), &world.b)),
            (world.b.name().to_owned(), state(2, B.into(), &world.a)),
        ]);
        let desired = Fabric { namespaces };
        let look = |(name, state): (&String, &NamespaceState)| {
            (name.clone(), observe(&Netns::open(name).unwrap(), state).unwrap())
        };
        let observed = desired.namespaces.iter().map(look).collect();
        apply_steps(&plan(&desired, &observed)).unwrap();
        world
    }

    /// Gives both an address of IPv6, too.
    fn with_ipv6(self) -> Self {
        for (namespace, address) in [(&self.a, A6), (&self.b, B6)] {
            let line = format!(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0 \
                 && ip -6 addr add {address}/64 dev eth0 nodad"
            );
            let done = namespace.run(|| Command::new("sh").args(["-c", &line]).status()).unwrap();
            assert!(done.unwrap().success(), "{line}");
        }
        self
    }

    /// Sends a probe from A to B by IPv6.
    fn probe_ipv6(&self, kind: Kind, port: u16) -> Outcome {
        let to = SocketAddr::new(B6.into(), port);
        probe(&self.a, kind, None, to, 45, Duration::from_millis(500)).unwrap()
    }

    /// Sends a UDP datagram from A to a port of B, with this DSCP.
    fn send(&self, dscp: i32, port: u16) {
        let socket = self.a.udp_bind(SocketAddrV4::new(A, 0)).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4Tos, &(dscp << 2))
            .unwrap();
        socket.send_to(b"probe", SocketAddrV4::new(B, port)).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.a, &self.b] {
            drop(Netns::delete(namespace.name()));
        }
    }
}

const RULES: &str = r#"
table ip aksnet {
	chain gate {
		udp dport 7 counter accept comment "let seven through"
		counter drop comment "nothing else"
	}

	chain input {
		type filter hook input priority filter; policy accept;
		meta l4proto udp jump gate
	}
}
"#;

#[test]
fn counters_are_read_with_comments_verdicts_and_the_load_they_belong_to() {
    let world = World::new("c");
    assert_eq!(netfilter::table(&world.b, "aksnet").unwrap(), None);
    nft::load(&world.b, RULES).unwrap();
    world.send(0, 7);
    world.send(0, 8);
    world.send(0, 9);
    let table = netfilter::table(&world.b, "aksnet").unwrap().unwrap();
    let told: Vec<_> = table
        .rules
        .iter()
        .map(|rule| {
            (rule.chain.as_str(), rule.comment.as_deref(), rule.verdict.clone(), rule.packets)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("gate", Some("let seven through"), Some(Verdict::Accept), 1),
            ("gate", Some("nothing else"), Some(Verdict::Drop), 2),
        ]
    );
    assert_eq!(table.rules[1].bytes, 2 * 33);
    nft::load(&world.b, RULES).unwrap();
    let again = netfilter::table(&world.b, "aksnet").unwrap().unwrap();
    assert_ne!(again.load, table.load, "a table that was loaded again counts from nothing");
    assert_eq!(again.rules[1].packets, 0);
}

#[test]
fn a_trace_tells_every_rule_and_only_of_what_is_marked() {
    let world = World::new("t");
    nft::load(&world.b, RULES).unwrap();
    let table = netfilter::table(&world.b, "aksnet").unwrap().unwrap();
    let tracer = Tracer::open(&world.b, "aksnet-trace-test", Family::V4, 45, 17).unwrap();
    world.send(0, 9);
    assert_eq!(tracer.events().unwrap(), []);
    world.send(45, 9);
    let events = tracer.events().unwrap();
    let at = |chain: &str| events.iter().filter(|event| event.chain == chain).collect::<Vec<_>>();
    assert_eq!(events[0].table, "aksnet-trace-test");
    let headers = events[0].headers.as_ref().unwrap();
    assert_eq!(headers[12..20], [A.octets(), B.octets()].concat());
    let rule = &table.rules[1];
    assert_eq!(
        at("gate").last().unwrap().fate,
        Fate::Rule { handle: rule.handle, verdict: Verdict::Drop }
    );
    let jump = Fate::Rule { handle: rule.handle + 1, verdict: Verdict::Jump("gate".to_owned()) };
    assert_eq!(at("input").last().unwrap().fate, jump, "{events:?}");

    let tables = || nft_tables(&world.b);
    assert!(tables().contains("aksnet-trace-test"));
    drop(tracer);
    assert!(!tables().contains("aksnet-trace-test"), "the table goes with its socket");
    assert!(tables().contains("table ip aksnet\n"), "{}", tables());
}

#[test]
fn ipv6_is_probed_traced_and_counted_as_ipv4_is() {
    let world = World::new("6").with_ipv6();
    // What nobody asks about, the kernel does not track.
    let tracking = "table ip6 tracking {\n\tchain c {\n\t\ttype filter hook input priority 1;\n\t\tct state new\n\t}\n}\n";
    let both = [RULES, &RULES.replace("table ip ", "table ip6 "), tracking].concat();
    nft::load(&world.b, &both).unwrap();
    let packets = |table: &netfilter::Table| {
        let told = table.rules.iter().map(|rule| (rule.family, rule.packets));
        told.collect::<Vec<_>>()
    };
    let before = netfilter::table(&world.b, "aksnet").unwrap().unwrap();
    assert_eq!(packets(&before).len(), 4, "two rules in two families");

    let tracer = Tracer::open(&world.b, "aksnet-trace-test", Family::V6, 45, 17).unwrap();
    assert_eq!(world.probe_ipv6(Kind::Udp, 9), Outcome::Silence);
    world.send(45, 9);
    let events = tracer.events().unwrap();
    let entered = events.iter().filter(|event| event.table == "aksnet-trace-test");
    let headers: Vec<&[u8]> = entered.filter_map(|event| event.headers.as_deref()).collect();
    assert_eq!(headers.len(), 1, "of IPv4 nothing is told: {events:?}");
    assert_eq!(headers[0][8..40], [A6.octets(), B6.octets()].concat());
    let dropped = Fate::Rule { handle: before.rules[3].handle, verdict: Verdict::Drop };
    assert!(events.iter().any(|event| event.fate == dropped), "{events:?}");

    let after = netfilter::table(&world.b, "aksnet").unwrap().unwrap();
    assert_eq!(after.load, before.load);
    let (four, six) = (Family::V4, Family::V6);
    assert_eq!(packets(&after), [(four, 0), (four, 1), (six, 0), (six, 1)]);
    nft::load(&world.b, &both).unwrap();
    assert_ne!(netfilter::table(&world.b, "aksnet").unwrap().unwrap().load, before.load);

    // An echo is answered, a connection refused; and from an address that no link has, the way back is missing.
    assert!(matches!(world.probe_ipv6(Kind::Echo, 0), Outcome::Answered(_)));
    assert!(matches!(world.probe_ipv6(Kind::Tcp, 9), Outcome::Refused(_)));
    let foreign = "fd00::77".parse::<IpAddr>().unwrap();
    let to = SocketAddr::new(B6.into(), 0);
    for kind in [Kind::Echo, Kind::Tcp] {
        let outcome = probe(&world.a, kind, Some(foreign), to, 45, Duration::from_millis(100));
        assert_eq!(outcome.unwrap(), Outcome::Silence, "{kind:?}");
    }
    let known = netfilter::conntrack::list(&world.b).unwrap();
    assert!(
        known.iter().any(|it| it.original.source == IpAddr::from(A6)
            && it.original.destination == IpAddr::from(B6)
            && it.reply.source == IpAddr::from(B6)),
        "{known:?}"
    );
}

fn nft_tables(namespace: &Netns) -> String {
    let output = namespace.run(|| Command::new("nft").args(["list", "tables"]).output()).unwrap();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn a_tap_gets_what_its_links_carry_and_when() {
    let world = World::new("p");
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let here = Tap::open(&world.a, &["eth0".to_owned()], 0).unwrap();
    let there = Tap::open(&world.b, &[], 60).unwrap();
    let nothing = Tap::open(&world.b, &["lo".to_owned()], 0).unwrap();
    let missing = Tap::open(&world.b, &["eth7".to_owned()], 0).unwrap_err();
    assert!(matches!(missing, LinuxError::NoLink { link, .. } if link == "eth7"));

    let socket = world.a.udp_bind(SocketAddrV4::new(A, 0)).unwrap();
    socket.send_to(&[7; 200], SocketAddrV4::new(B, 7)).unwrap();
    let udp = |tap: &Tap| {
        let mut frames = Vec::new();
        while let Some(frame) = tap.read().unwrap() {
            if frame.data[12..14] == [8, 0] && frame.data[23] == 17 {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 1);
        frames.remove(0)
    };
    let (sent, received) = (udp(&here), udp(&there));
    assert_eq!((sent.direction, received.direction), (Direction::Out, Direction::In));
    assert_eq!((sent.length, sent.data.len()), (14 + 20 + 8 + 200, 14 + 20 + 8 + 200));
    assert_eq!((received.length, received.data.len()), (242, 60), "only the beginning");
    assert_eq!(there.link_name(received.link), "eth0");
    assert!(began <= sent.at && sent.at <= received.at, "{sent:?} {received:?}");
    assert!(received.at < began + Duration::from_mins(1));
    assert_eq!(nothing.read().unwrap(), None);
}

#[test]
fn flows_are_counted_and_listed() {
    let world = World::new("f");
    nft::load(
        &world.b,
        "table ip aksnet {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tct state new counter comment \"new\"\n\t}\n}\n",
    )
    .unwrap();
    assert_eq!(netfilter::flow_count(&world.b).unwrap(), 0);
    world.send(0, 7);
    let flows = netfilter::flows(&world.b).unwrap();
    let flow = flows.iter().find(|flow| flow.original.destination_port == Some(7)).unwrap();
    assert_eq!(flow.original.source, std::net::IpAddr::from(A));
    assert_eq!(netfilter::flow_count(&world.b).unwrap(), u64::try_from(flows.len()).unwrap());
}

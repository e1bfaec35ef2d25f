//! The crate against the kernel: every kind of action is done, seen, undone, in namespaces of the test's own.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::UdpSocket,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use linux::{
    LinuxError,
    alias::Alias,
    net::{Netlink, Request, apply, apply_steps, link_index, observe, wire},
    netns::Netns,
    nft,
};
use nix::errno::Errno;
use vnet::{
    addr::{Family, Mac, Prefix},
    host::{
        Observed, digest,
        plan::{Action, Step, plan},
        state::{
            Address, End, Fabric, Link, NamespaceState, RouteKey, Rule, Target, Tenancy, Then,
        },
    },
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Namespaces that go with the test.
struct World(Vec<String>);

impl World {
    fn new<const N: usize>() -> (Self, [Netns; N]) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let names: [String; N] =
            std::array::from_fn(|n| format!("k{}x{number}-{n}", std::process::id()));
        let namespaces =
            names.each_ref().map(|name| Netns::create(name).expect("root may do this"));
        (Self(names.to_vec()), namespaces)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.0 {
            drop(Netns::delete(name));
        }
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn pair(a: &Netns, b: &Netns) -> Fabric {
    let end = |namespace: &Netns, link: &str| End {
        namespace: namespace.name().to_owned(),
        link: link.to_owned(),
    };
    let mut here = NamespaceState::default();
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    here.links
        .insert("one".to_owned(), Link { mac, mtu: 1400, peer: end(b, "two"), crossing: None });
    let mut there = NamespaceState { tenancy: Tenancy::Shared, ..NamespaceState::default() };
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    there
        .links
        .insert("two".to_owned(), Link { mac, mtu: 1400, peer: end(a, "one"), crossing: None });
    Fabric {
        namespaces: BTreeMap::from([(a.name().to_owned(), here), (b.name().to_owned(), there)]),
    }
}

fn look(fabric: &Fabric) -> BTreeMap<String, Observed> {
    let look = |(name, state): (&String, &NamespaceState)| {
        let seen =
            observe(&Netns::open(name).expect("it is there"), state).expect("it can be seen");
        (name.clone(), seen)
    };
    fabric.namespaces.iter().map(look).collect()
}

/// Plans, acts, and gives what was done.
fn reach(fabric: &Fabric) -> Vec<Step> {
    let steps = plan(fabric, &look(fabric));
    apply_steps(&steps).unwrap_or_else(|err| panic!("{err}: {:?}", err.errno()));
    steps
}

#[test]
fn namespaces_come_and_go_by_name() {
    let name = format!("k{}-come", std::process::id());
    assert!(matches!(Netns::open(&name), Err(LinuxError::NoNamespace { .. })));
    let namespace = Netns::create(&name).unwrap();
    assert!(Netns::list().unwrap().contains(&name));
    assert!(Netns::create(&name).is_err(), "two of one name");
    let links = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    assert_eq!(links.unwrap().lines().count(), 3, "two lines of title, and lo");
    Netns::ensure(&name).unwrap();
    Netns::delete(&name).unwrap();
    Netns::delete(&name).unwrap();
    assert!(!Netns::list().unwrap().contains(&name));
}

#[test]
fn everything_that_can_be_desired_is_made_seen_changed_and_removed() {
    let (_world, [a, b]) = World::new();
    let bare = pair(&a, &b);
    let mut full = bare.clone();
    let state = full.namespaces.get_mut(a.name()).unwrap();
    let one = || "one".to_owned();
    state.addresses.insert(Address { link: one(), address: [10, 0, 0, 1].into(), length: 24 });
    state.addresses.insert(Address {
        link: "lo".to_owned(),
        address: [10, 0, 9, 9].into(),
        length: 32,
    });
    for (text, table, target) in [
        ("0.0.0.0/0", 254, Target::Via(one(), [10, 0, 0, 2].into())),
        ("10.2.0.0/16", 254, Target::Link(one())),
        ("10.3.0.0/16", 254, Target::Link("lo".to_owned())),
        ("10.4.0.0/16", 254, Target::Blackhole),
        ("10.5.0.0/16", 254, Target::Unreachable),
        ("10.6.0.0/16", 0x0a00_0000, Target::Throw),
        ("0.0.0.0/0", 0x0a00_0000, Target::Via(one(), [192, 168, 7, 7].into())),
        ("10.7.0.0/16", 255, Target::Local("lo".to_owned())),
        ("255.255.255.255/32", 300, Target::Blackhole),
    ] {
        state.routes.insert(RouteKey { table, prefix: prefix(text) }, target);
    }
    let rule = |priority, mark, iif: Option<&str>, from: Option<&str>, then| Rule {
        family: Family::V4,
        priority,
        mark,
        iif: iif.map(str::to_owned),
        from: from.map(prefix),
        then,
    };
    state.rules.extend([
        rule(500, Some(0x0a00_0001), None, None, Then::Table(0x0a00_0001)),
        rule(900, None, Some("one"), None, Then::Table(300)),
        rule(951, None, Some("one"), Some("10.1.0.0/16"), Then::Goto(32_766)),
        rule(951, None, None, Some("10.1.0.0/16"), Then::Table(7)),
        rule(1000, None, None, None, Then::Table(254)),
    ]);
    state.neighbours.insert((one(), [10, 0, 0, 2].into()), Mac::FABRIC);
    state.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    state.sysctls.insert("net/ipv4/conf/one/proxy_arp".to_owned(), "1".to_owned());
    state.sysctls.insert("net/ipv4/neigh/one/proxy_delay".to_owned(), "0".to_owned());
    state.nft = Some("table ip aksnet {\n\tchain c {\n\t\tcounter\n\t}\n}\n".to_owned());

    reach(&full);
    assert_eq!(reach(&full), [], "it rests");
    let seen = &look(&full)[a.name()];
    let state = &full.namespaces[a.name()];
    assert_eq!(seen.routes, state.routes);
    assert_eq!(seen.rules, state.rules);
    assert_eq!(seen.addresses, state.addresses);
    assert_eq!((seen.links["one"].mtu, seen.links["one"].up), (1400, true));

    let mut other = full.clone();
    let state = other.namespaces.get_mut(a.name()).unwrap();
    let key = RouteKey { table: 254, prefix: prefix("10.2.0.0/16") };
    state.routes.insert(key, Target::Throw);
    state.neighbours.insert((one(), [10, 0, 0, 2].into()), Mac([2, 0, 0, 0, 0, 9]));
    state.links.get_mut("one").unwrap().mtu = 1300;
    assert_eq!(reach(&other).len(), 3, "a changed thing is changed in place");
    assert_eq!(reach(&other), []);

    reach(&bare);
    assert_eq!(reach(&bare), []);
    let mut nothing = bare.clone();
    for state in nothing.namespaces.values_mut() {
        state.links.clear();
    }
    reach(&nothing);
    let left = look(&nothing);
    assert!(left.values().all(|seen| seen.links.len() == 1), "{left:#?}");
}

#[test]
fn what_others_made_stays() {
    let (_world, [a, b]) = World::new();
    let fabric = pair(&a, &b);
    reach(&fabric);
    let run = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let status = b.run(|| std::process::Command::new("ip").args(arguments).status());
        assert!(status.unwrap().unwrap().success());
    };
    run("addr add 10.0.0.9/24 dev two");
    run("route add 10.8.0.0/16 via 10.0.0.8");
    run("rule add from 10.8.0.0/16 table 8");
    run("neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev two");
    run("link add other type veth peer name rehto");
    assert_eq!(reach(&fabric), []);
    assert_eq!(look(&fabric)[b.name()].links.len(), 4);
}

#[test]
fn deleting_what_is_not_there_is_success_and_the_kernel_explains_refusals() {
    let (_world, [a]) = World::new();
    apply(&a, &Action::DeleteLink("none".to_owned())).unwrap();
    let key = RouteKey { table: 254, prefix: prefix("10.0.0.0/8") };
    apply(&a, &Action::DeleteRoute(key, Target::Blackhole)).unwrap();
    let missing = apply(&a, &Action::SetRoute(key, Target::Link("none".to_owned())));
    assert!(matches!(missing, Err(LinuxError::NoLink { .. })), "{missing:?}");
    let down = apply(&a, &Action::SetRoute(key, Target::Link("lo".to_owned())));
    assert_eq!(down.as_ref().err().and_then(LinuxError::errno), Some(Errno::ENETDOWN), "{down:?}");

    let mut netlink = Netlink::open_in(&a).unwrap();
    let requests: Vec<Request> = (0..200u8)
        .map(|n| wire::new_route(254, Prefix::host([10, 0, 0, n].into()), wire::RouteTo::Blackhole))
        .map(|message| Request::create(message, "route"))
        .collect();
    assert!(
        netlink.send_batch(&requests).unwrap().iter().all(Result::is_ok),
        "more than fit at once"
    );
    let again = netlink.send_batch(&requests).unwrap();
    assert!(
        again.iter().all(|it| it.as_ref().err().and_then(LinuxError::errno) == Some(Errno::EEXIST))
    );
}

#[test]
fn a_rule_set_is_replaced_whole_or_not_at_all() {
    let (_world, [a]) = World::new();
    assert_eq!(nft::loaded(&a).unwrap(), None);
    let good = "table ip aksnet {\n\tchain old {\n\t}\n}\n";
    nft::load(&a, good).unwrap();
    assert_eq!(nft::loaded(&a).unwrap(), Some(digest(good)));
    nft::check(&a, "table ip aksnet {\n\tchain new {\n\t}\n}\n").unwrap();
    let bad = "table ip aksnet {\n\tchain a {\n\t\ttype filter hook input priority 0\n\t\tjump b\n\t}\n\tchain b {\n\t\tjump b\n\t}\n}\n";
    let refused = nft::load(&a, bad);
    assert!(matches!(refused, Err(LinuxError::Nft { .. })), "{refused:?}");
    assert_eq!(nft::loaded(&a).unwrap(), Some(digest(good)), "the old one stands");
    nft::unload(&a).unwrap();
    nft::unload(&a).unwrap();
    assert_eq!(nft::loaded(&a).unwrap(), None);
}

#[test]
fn a_setting_is_the_namespaces_own_and_read_as_anybody_reads_it() {
    const NAME: &str = "net/ipv4/ip_default_ttl";
    let (_world, [here, there]) = World::new();
    let set = |value: &str| Action::SetSysctl { name: NAME.to_owned(), value: value.to_owned() };
    let wanted = NamespaceState {
        sysctls: BTreeMap::from([
            (NAME.to_owned(), "77".to_owned()),
            ("net/ipv4/conf/none/proxy_arp".to_owned(), "1".to_owned()),
        ]),
        ..NamespaceState::default()
    };
    apply(&here, &set("77")).unwrap();
    for (namespace, value) in [(&here, "77"), (&there, "64")] {
        let shown = || std::fs::read_to_string(format!("/proc/sys/{NAME}"));
        assert_eq!(namespace.run(shown).unwrap().unwrap().trim(), value);
        // What is not there has no value.
        let expected = BTreeMap::from([(NAME.to_owned(), value.to_owned())]);
        assert_eq!(observe(namespace, &wanted).unwrap().sysctls, expected);
    }
    let refused = apply(&here, &set("256")).unwrap_err().to_string();
    assert!(refused.contains("/proc/sys/net/ipv4/ip_default_ttl"), "{refused}");
}

/// By TCP the server sees the alias, and its answers come back; by UDP, and where another address asks, it sees who asks.
#[test]
fn an_alias_stands_for_its_address_at_the_link_that_has_it() {
    let (_world, [here, there]) = World::new();
    let ip = |line: &str| {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip runs");
        assert!(status.success(), "ip {line}");
    };
    let (a, b) = (here.name(), there.name());
    ip(&format!("-n {a} link add one type veth peer name two netns {b}"));
    for (namespace, link, last) in [(a, "one", "1"), (b, "two", "2")] {
        ip(&format!("-n {namespace} addr add fd00::{last}/64 dev {link} nodad"));
        ip(&format!("-n {namespace} link set {link} up"));
    }
    ip(&format!("-n {a} addr add fd00::3/64 dev one nodad"));
    ip(&format!("-n {b} route add default via fd00::1"));
    let alias = Alias::load("fd00::1".parse().unwrap(), "2001:db8::a".parse().unwrap()).unwrap();
    let mut netlink = Netlink::open_in(&there).unwrap();
    let index = link_index(&mut netlink, "two").unwrap().unwrap();
    for _ in 0..2 {
        assert!(alias.attach(&mut netlink, index, "two").unwrap(), "a second time is fine");
    }

    let listener = there.tcp_listen_at("[::]:80".parse().unwrap()).unwrap();
    for (from, seen) in [("fd00::1", "2001:db8::a"), ("fd00::3", "fd00::3")] {
        let patience = Duration::from_secs(2);
        let to = "[fd00::2]:80".parse().unwrap();
        let mut asking = here
            .tcp_connect_from(Some(format!("[{from}]:0").parse().unwrap()), to, patience)
            .unwrap();
        let (mut asked, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_string(), seen);
        asking.write_all(b"question").unwrap();
        let mut text = [0; 8];
        asked.read_exact(&mut text).unwrap();
        asked.write_all(b"answered").unwrap();
        asking.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"answered");
    }
    let socket = there.run(|| UdpSocket::bind("[::]:53")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let asking = here.run(|| UdpSocket::bind("[fd00::1]:0")).unwrap().unwrap();
    asking.send_to(b"?", "[fd00::2]:53").unwrap();
    assert_eq!(socket.recv_from(&mut [0]).unwrap().1.ip().to_string(), "fd00::1");
}

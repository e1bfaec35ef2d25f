//! Elements of nftables by netlink against what `nft` says of them. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use linux::{
    netfilter::{
        Changer,
        elements::{Element, Nfnetlink},
    },
    netns::Netns,
    nft,
};
use nix::errno::Errno;
use std::{fmt::Write as _, process::Command};
use vnet::{
    addr::Family,
    host::{TABLE, delta, digest},
};

struct Namespace(String);

impl Namespace {
    fn nft(&self, rule: &str) -> String {
        let netns = Netns::open(&self.0).unwrap();
        let output = netns.run(|| Command::new("nft").arg(rule).output()).unwrap().unwrap();
        assert!(output.status.success(), "{rule}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Netns::delete(&self.0);
    }
}

const V4: Family = Family::V4;

fn entry(port: u8, last: u8) -> Element {
    Element {
        family: Family::V4.into(),
        set: "m".to_owned(),
        key: vec![6, 0, 0, 0, 0, port, 0, 0],
        value: Some(vec![10, 0, 0, last, 0, 80, 0, 0]),
    }
}

/// Two tables of one name, in one batch: all or none.
#[test]
fn families_have_tables_of_their_own() {
    let namespace = Namespace(format!("nftfamilies{}", std::process::id()));
    let netns = Netns::create(&namespace.0).unwrap();
    for (family, address) in [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")] {
        namespace.nft(&format!("add table {family} t"));
        namespace.nft(&format!(
            "add map {family} t m {{ type inet_proto . inet_service : {address} . inet_service; }}"
        ));
    }
    let six = Element {
        family: Family::V6.into(),
        value: Some([&[0xfd; 16][..], &[0, 80, 0, 0]].concat()),
        ..entry(80, 0)
    };
    let mut socket = netns.run(Nfnetlink::open).unwrap().unwrap();
    socket.add("t", &[entry(80, 1), six.clone()]).unwrap();
    let listing = namespace.nft("list map ip6 t m");
    assert!(
        listing.contains("tcp . 80 : fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd . 80"),
        "{listing}"
    );
    let counts = |socket: &mut Nfnetlink| {
        [V4, Family::V6].map(|family| socket.n_elements(family, "t", "m").unwrap())
    };
    assert_eq!(counts(&mut socket), [1, 1]);
    let refused = socket.delete("t", &[six.clone(), entry(81, 1)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOENT));
    assert_eq!(counts(&mut socket), [1, 1]);
    socket.delete("t", std::slice::from_ref(&six)).unwrap();
    assert_eq!(counts(&mut socket), [1, 0]);
    assert!(!socket.has("t", &six).unwrap());
}

#[test]
fn elements_come_go_and_are_counted_as_nft_sees_them() {
    let namespace = Namespace(format!("nftelements{}", std::process::id()));
    let netns = Netns::create(&namespace.0).unwrap();
    namespace.nft("add table ip t");
    namespace.nft("add map ip t m { type inet_proto . inet_service : ipv4_addr . inet_service; }");
    namespace.nft("add set ip t s { type ipv4_addr; flags interval; }");
    namespace.nft("add chain ip t c");
    let mut socket = netns.run(Nfnetlink::open).unwrap().unwrap();
    let before = socket.generation().unwrap();
    assert_eq!(socket.n_elements(V4, "t", "m").unwrap(), 0);
    socket.add("t", &[entry(80, 1), entry(81, 2)]).unwrap();
    assert_ne!(socket.generation().unwrap(), before);
    let listing = namespace.nft("list map ip t m");
    assert!(
        listing.contains("tcp . 80 : 10.0.0.1 . 80, tcp . 81 : 10.0.0.2 . 80")
            || listing.contains("tcp . 81 : 10.0.0.2 . 80"),
        "{listing}"
    );
    assert_eq!(socket.n_elements(V4, "t", "m").unwrap(), 2);
    assert!(socket.has("t", &entry(80, 9)).unwrap());
    assert!(!socket.has("t", &entry(82, 9)).unwrap());
    // Once more is fine, elsewhere is not, and then nothing is added at all.
    socket.add("t", &[entry(80, 1)]).unwrap();
    let refused = socket.add("t", &[entry(83, 3), entry(80, 7)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EEXIST), "{refused:?}");
    assert_eq!(socket.n_elements(V4, "t", "m").unwrap(), 2);
    socket.delete("t", &[entry(80, 1)]).unwrap();
    let refused = socket.delete("t", &[entry(80, 1)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOENT), "{refused:?}");
    namespace.nft("flush map ip t m");
    assert_eq!(socket.n_elements(V4, "t", "m").unwrap(), 0);
    let refused = socket.add("nowhere", &[entry(80, 1)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOENT), "{refused:?}");
    // Rules, and elements of intervals.
    assert_eq!(socket.n_rules(V4, "t").unwrap(), 0);
    namespace.nft("add rule ip t c ip saddr @s drop");
    namespace.nft("add rule ip t c accept");
    assert_eq!(socket.n_rules(V4, "t").unwrap(), 2);
    namespace.nft("add element ip t s { 10.0.0.0/24, 10.2.0.0/16 }");
    assert!(socket.n_elements(V4, "t", "s").unwrap() >= 2);
    namespace.nft("delete table ip t");
    assert_eq!(
        (socket.n_rules(V4, "t").unwrap(), socket.n_elements(V4, "t", "s").unwrap()),
        (0, 0)
    );
}

/// A table with sets and maps of every kind that the fabric has: which elements they have.
fn table(elements: [&str; 8]) -> String {
    let heads = [
        ("set links", "ifname", ""),
        ("set sources", "ifname . ipv4_addr", "flags interval"),
        ("map overlay", "ifname . ipv4_addr : verdict", "flags interval"),
        ("map gates", "ifname : verdict", ""),
        ("map balanced", "ipv4_addr . inet_proto . inet_service : verdict", ""),
        ("map direct", "ipv4_addr : mark", ""),
        ("map public", "ipv4_addr : ipv4_addr", ""),
        ("map ports", "ipv4_addr : interval ipv4_addr . inet_service", ""),
    ];
    let mut text = format!("table ip {TABLE} {{\n");
    for ((head, kind, flags), elements) in heads.into_iter().zip(elements) {
        writeln!(text, "\t{head} {{\n\t\ttype {kind}").unwrap();
        if !flags.is_empty() {
            writeln!(text, "\t\t{flags}").unwrap();
        }
        if !elements.is_empty() {
            writeln!(text, "\t\telements = {{ {elements} }}").unwrap();
        }
        text += "\t}\n";
    }
    text + "\tchain one-1 {\n\t\tcounter drop\n\t}\n\tchain whole {\n\t\tiifname vmap @gates\n\t\tcounter\n\t}\n}\n"
}

#[test]
fn changed_elements_are_those_that_nft_would_have_loaded() {
    let (updated, loaded) = (
        Namespace(format!("nftchanged{}", std::process::id())),
        Namespace(format!("nftloaded{}", std::process::id())),
    );
    let netns = Netns::create(&updated.0).unwrap();
    let beside = Netns::create(&loaded.0).unwrap();
    let mut socket = Changer::open_in(&netns).unwrap();
    let mut before = table([""; 8]);
    nft::load(&netns, &before).unwrap();
    let nics = "\"eth0\", \"nic-0123456789a\"";
    for elements in [
        [
            nics,
            "\"eth0\" . 10.1.0.4, \"eth0\" . 10.244.0.0/24, \"nic-0123456789a\" . 0.0.0.0/0",
            "\"eth0\" . 10.0.0.0/8 : goto one-1, \"eth1\" . 10.1.0.0/16 : return",
            "\"eth0\" : jump one-1, \"eth1\" : goto one-1",
            "10.0.0.1 . tcp . 80 : goto one-1, 10.0.0.1 . udp . 53 : goto one-1",
            "10.0.0.1 : 0x0a000001, 10.0.0.2 : 0x0a000002",
            "10.0.0.1 : 20.0.0.1",
            "10.0.0.1 : 20.0.0.1 . 1024-2047, 10.0.0.2 : 20.0.0.1 . 2048-3071",
        ],
        // Other values for the same keys.
        [
            "\"eth0\"",
            "\"eth0\" . 10.1.0.5, \"eth0\" . 10.244.0.0/25",
            "\"eth0\" . 10.0.0.0/8 : return",
            "\"eth0\" : goto one-1",
            "10.0.0.1 . tcp . 80 : return",
            "10.0.0.1 : 0x0a000003",
            "10.0.0.1 : 20.0.0.2",
            "10.0.0.1 : 20.0.0.1 . 1024-1025",
        ],
        ["", "", "", "", "", "", "", ""],
    ] {
        let after = table(elements);
        let difference = delta(&before, &after).expect("only elements differ");
        socket.change(TABLE, &difference, &digest(&before), &digest(&after)).unwrap();
        assert_eq!(nft::loaded(&netns).unwrap(), Some(digest(&after)));
        nft::load(&beside, &after).unwrap();
        let listing = |namespace: &Namespace| {
            let mut lines: Vec<String> =
                namespace.nft("list ruleset").lines().map(str::to_owned).collect();
            lines.sort();
            // The order of elements is the hash's.
            for line in &mut lines {
                let mut parts: Vec<&str> = line.split([',', '{', '}']).map(str::trim).collect();
                parts.sort_unstable();
                *line = parts.join(",");
            }
            let mut words: Vec<String> =
                lines.iter().flat_map(|line| line.split(',').map(str::to_owned)).collect();
            words.sort();
            words
        };
        assert_eq!(listing(&updated), listing(&loaded));
        before = after;
    }
    // From a text that is not loaded: nothing at all.
    let other = table([nics, "", "", "", "", "", "", ""]);
    let difference = delta(&before, &other).unwrap();
    let refused = socket.change(TABLE, &difference, &digest(&other), &digest(&other));
    assert_eq!(refused.unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(nft::loaded(&netns).unwrap(), Some(digest(&before)));
    assert!(!updated.nft("list ruleset").contains("eth0"));
}

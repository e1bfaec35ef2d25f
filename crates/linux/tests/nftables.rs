//! Elements of nftables by netlink against what `nft` says of them. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use linux::{
    netfilter::elements::{Element, Nfnetlink},
    netns::Netns,
};
use nix::errno::Errno;
use std::process::Command;

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

fn entry(port: u8, last: u8) -> Element {
    Element {
        set: "m".to_owned(),
        key: vec![6, 0, 0, 0, 0, port, 0, 0],
        value: Some(vec![10, 0, 0, last, 0, 80, 0, 0]),
    }
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
    assert_eq!(socket.n_elements("t", "m").unwrap(), 0);
    socket.add("t", &[entry(80, 1), entry(81, 2)]).unwrap();
    assert_ne!(socket.generation().unwrap(), before);
    let listing = namespace.nft("list map ip t m");
    assert!(
        listing.contains("tcp . 80 : 10.0.0.1 . 80, tcp . 81 : 10.0.0.2 . 80")
            || listing.contains("tcp . 81 : 10.0.0.2 . 80"),
        "{listing}"
    );
    assert_eq!(socket.n_elements("t", "m").unwrap(), 2);
    assert!(socket.has("t", &entry(80, 9)).unwrap());
    assert!(!socket.has("t", &entry(82, 9)).unwrap());
    // Once more is fine, elsewhere is not, and then nothing is added at all.
    socket.add("t", &[entry(80, 1)]).unwrap();
    let refused = socket.add("t", &[entry(83, 3), entry(80, 7)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EEXIST), "{refused:?}");
    assert_eq!(socket.n_elements("t", "m").unwrap(), 2);
    socket.delete("t", &[entry(80, 1)]).unwrap();
    let refused = socket.delete("t", &[entry(80, 1)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOENT), "{refused:?}");
    namespace.nft("flush map ip t m");
    assert_eq!(socket.n_elements("t", "m").unwrap(), 0);
    let refused = socket.add("nowhere", &[entry(80, 1)]).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOENT), "{refused:?}");
    // Rules, and elements of intervals.
    assert_eq!(socket.n_rules("t").unwrap(), 0);
    namespace.nft("add rule ip t c ip saddr @s drop");
    namespace.nft("add rule ip t c accept");
    assert_eq!(socket.n_rules("t").unwrap(), 2);
    namespace.nft("add element ip t s { 10.0.0.0/24, 10.2.0.0/16 }");
    assert!(socket.n_elements("t", "s").unwrap() >= 2);
    namespace.nft("delete table ip t");
    assert_eq!((socket.n_rules("t").unwrap(), socket.n_elements("t", "s").unwrap()), (0, 0));
}

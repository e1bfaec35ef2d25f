//! What an agent of Cilium 1.20 told of real packets: bytes of its monitor socket and answers of its API, as recorded
//! in a lab.
#![expect(clippy::unwrap_used, reason = "a test may")]

use serde_json::{Value, json};

use super::{
    policies::{self, Door, Told},
    show_socket,
    stream::{Direction, Fate, Notice, Stream, Verdict, What, reason},
};
use crate::{
    trace::{
        DSCP,
        hops::{self, Seen},
    },
    watch::frame::Packet,
};

/// The message that describes the type of those that follow.
const TYPE: &str = "3afe010d030101075061796c6f616401fe010e000104010444617461010a0001034350550104\
    0001044c6f73740106000104547970650104000000";
/// From b to port 81 of a: b's egress allows it, a's ingress denies it, it is dropped.
const ALLOWED: &str = "7efe010e017405001d01e3ab194b4a0000004a000100cf560000000000005100060a0000000000\
    00000000000000923ee6252d4152dd534de3de080045bc003c74e94000400643c1c0a80003c0a80002cfd800516d5a27f7\
    00000000a002faf081840000020405b40402080a183b41ff000000000103030a00000102021200";
const DENIED: &str = "7efe010e01740500b202e3ab194b4a0000004a00010001e700004bffffff51000611000000000000\
    000000000000f2a97a0d643a2e20e0a0fe7d080045bc003c74e940003f0644c1c0a80003c0a80002cfd800516d5a27f7000\
    00000a002faf081840000020405b40402080a183b41ff000000000103030a00000102021200";
const DROPPED: &str = "ff86fe010e017c01b5b202e3ab194b4a0000004a00030001e70000cf560000b2020000ad0902000\
    a000000000000000000000000000000f2a97a0d643a2e20e0a0fe7d080045bc003c74e940003f0644c1c0a80003c0a80002\
    cfd800516d5a27f700000000a002faf081840000020405b40402080a183b41ff000000000103030a00000102021200";
/// An echo from b to c, which nothing allows.
const ECHO: &str = "5cfe010e015405001d01721802f22a0000002a00010058cb00007bffffff00000102000000000000000\
    000000000923ee6252d4152dd534de3de080045bc001c4ac0400040016d11c0a80003c0a801000800c2ad35510001000003\
    1200";

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn read(messages: &[&str]) -> Vec<Notice> {
    Stream::default().push(&bytes(&messages.concat())).unwrap()
}

#[test]
fn the_monitors_bytes_are_verdicts_and_packets() {
    let notices = read(&[TYPE, ALLOWED, DENIED, DROPPED, ECHO]);
    let policy = |endpoint, direction, remote, fate, has_rule| {
        What::Policy(Verdict { endpoint, direction, remote, fate, has_rule })
    };
    let expected = [
        (
            policy(285, Direction::Egress, 22223, Fate::Allowed, true),
            "192.168.0.3:53208 > 192.168.0.2:81",
        ),
        (
            policy(690, Direction::Ingress, 59137, Fate::Denied, true),
            "192.168.0.3:53208 > 192.168.0.2:81",
        ),
        (What::Drop(181), "192.168.0.3:53208 > 192.168.0.2:81"),
        (policy(285, Direction::Egress, 52056, Fate::Denied, false), "192.168.0.3 > 192.168.1.0"),
    ];
    assert_eq!(notices.len(), expected.len());
    for (notice, (what, ends)) in notices.iter().zip(expected) {
        assert_eq!((notice.what, notice.packet.ends().as_str()), (what, ends));
        assert_eq!(notice.packet.dscp, DSCP, "of a trace");
    }
    assert_eq!([notices[0].packet.id, notices[3].packet.id], [0x74e9, 0x4ac0]);
    assert_eq!(reason(181), "Policy denied by denylist");
}

#[test]
fn the_monitors_bytes_may_come_in_any_pieces() {
    let whole = bytes(&[TYPE, ALLOWED, DROPPED, ECHO].concat());
    for size in [1, 2, 7, 100] {
        let mut stream = Stream::default();
        let notices: Vec<Notice> =
            whole.chunks(size).flat_map(|piece| stream.push(piece).unwrap()).collect();
        assert_eq!(notices, read(&[ALLOWED, DROPPED, ECHO]), "{size} bytes at a time");
    }
    assert!(Stream::default().push(b"\xfe\xff\xff\xff\xff").is_ok(), "not whole yet");
    let other = Stream::default().push(b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff").unwrap_err();
    assert!(other.contains("another language"), "{other}");
}

/// Records of Cilium before 1.19 have a shorter header.
#[test]
fn older_headers_are_told_by_their_length() {
    let mut old = bytes(ECHO);
    // Without the last eight bytes of the header: the message's and the record's lengths are less.
    old.drain(6 + 32..6 + 40);
    old[0] -= 8;
    old[5] -= 8;
    let notices = Stream::default().push(&old).unwrap();
    assert_eq!(notices, read(&[ECHO]));
}

/// What one of the two nodes' agents answers about an endpoint: a is 690, b is 285, c is 476 on the second.
fn told(endpoint: u16) -> Told {
    let recorded: Value = serde_json::from_str(include_str!("told.json")).unwrap();
    let node = &recorded[if endpoint == 476 { "second" } else { "first" }];
    Told {
        endpoint: node["endpoints"][endpoint.to_string()].clone(),
        rules: json!({ "policy": recorded["rules"].to_string() }),
        peers: node["peers"].clone(),
        subjects: node["subjects"].clone(),
    }
}

const A: u32 = 22223;
const B: u32 = 59137;
const C: u32 = 52056;

/// Endpoint, direction, the other end, fate, whether a rule is about it, where it wants to enter, whose rules.
type Row<'a> = (u16, Direction, u32, Fate, bool, Door, &'a [&'a str]);

#[test]
fn verdicts_have_the_names_of_their_policies() {
    use Direction::{Egress, Ingress};
    use Fate::{Allowed, Denied};
    let tcp = |port| Door { protocol: 6, port };
    let echo = Door { protocol: 1, port: 8 };
    let cidr = "CiliumNetworkPolicy default/b-cidr";
    let out = "NetworkPolicy default/b-out";
    let no_a = "CiliumNetworkPolicy default/no-a";
    let deny = "NetworkPolicy default/deny";
    let from_a = "NetworkPolicy default/from-a";
    let everywhere = "CiliumClusterwideNetworkPolicy everywhere";
    let table: [Row<'_>; 14] = [
        // Nothing allows it: all that select the pod in this direction.
        (285, Egress, C, Denied, false, tcp(80), &[cidr, out]),
        (476, Ingress, B, Denied, false, tcp(80), &[deny, from_a]),
        (476, Egress, 2, Denied, false, tcp(80), &[everywhere]),
        (690, Ingress, C, Denied, false, tcp(80), &[no_a]),
        // By a rule.
        (285, Egress, A, Allowed, true, tcp(80), &[out]),
        (285, Egress, 16_777_218, Allowed, true, tcp(80), &[cidr]),
        (285, Egress, 16_777_219, Denied, true, tcp(80), &[cidr]),
        (690, Ingress, B, Allowed, true, tcp(80), &[no_a]),
        (690, Ingress, B, Denied, true, tcp(81), &[no_a]),
        (690, Ingress, C, Allowed, true, echo, &[no_a]),
        (476, Ingress, A, Allowed, true, tcp(80), &[from_a]),
        (476, Ingress, A, Allowed, true, tcp(8005), &[from_a]),
        // Of no other port, and of no other end.
        (476, Ingress, A, Allowed, true, tcp(8011), &[]),
        (476, Ingress, B, Allowed, true, tcp(80), &[]),
    ];
    for (endpoint, direction, remote, fate, has_rule, door, expected) in table {
        let verdict = Verdict { endpoint, direction, remote, fate, has_rule };
        let names = policies::names(&told(endpoint), verdict, door);
        assert_eq!(names, expected, "{verdict:?} {door:?}");
    }
    // What comes from the node itself is let in by Cilium.
    let verdict =
        Verdict { endpoint: 476, direction: Ingress, remote: 1, fate: Allowed, has_rule: true };
    assert_eq!(policies::names(&told(476), verdict, tcp(80)), ["allow-localhost-ingress"]);
}

#[test]
fn a_port_with_a_name_is_the_pods_own() {
    let mut told = told(476);
    let rule =
        json!({ "port": 0, "protocol": "TCP", "port-name": "web", "l7-rules": [{ "ends": null }] });
    let labels = json!([["k8s:io.cilium.k8s.policy.name=named"]]);
    told.endpoint["status"]["policy"]["realized"]["l4"]["ingress"] =
        json!([{ "rule": rule.to_string(), "rules-by-selector": { "ends": labels } }]);
    told.endpoint["status"]["identity"]["labels"] =
        json!(["gen:io.cilium.k8s.named-ports=dns.UDP.53_web.TCP.8080"]);
    told.peers = json!([{ "selector": "ends", "identities": [A], "labels": [] }]);
    let verdict = Verdict {
        endpoint: 476,
        direction: Direction::Ingress,
        remote: A,
        fate: Fate::Allowed,
        has_rule: true,
    };
    let names = |port| policies::names(&told, verdict, Door { protocol: 6, port });
    assert_eq!(names(8080), ["policy named"]);
    assert_eq!(names(80), Vec::<String>::new());
}

/// Before Cilium 1.19 the agent shows policies as they were written.
#[test]
fn policies_as_they_were_written_are_understood() {
    let mut told = told(690);
    let label = |key: &str, value: &str| json!({ "key": key, "value": value, "source": "k8s" });
    let labels = |name| {
        json!([
            label("io.cilium.k8s.policy.derived-from", "NetworkPolicy"),
            label("io.cilium.k8s.policy.namespace", "default"),
            label("io.cilium.k8s.policy.name", name),
        ])
    };
    let rules = json!([
        { "endpointSelector": {}, "ingress": [{}], "labels": labels("in") },
        { "endpointSelector": {}, "egress": [{}], "labels": labels("out") },
        { "endpointSelector": {}, "ingress": [{}], "labels": labels("of-others") },
    ]);
    told.rules = json!({ "policy": rules.to_string() });
    told.subjects = json!([
        { "selector": "", "identities": [A], "labels": [labels("in"), labels("out")] },
        { "selector": "", "identities": [B], "labels": [labels("of-others")] },
    ]);
    let names = |direction| {
        let verdict =
            Verdict { endpoint: 690, direction, remote: B, fate: Fate::Denied, has_rule: false };
        policies::names(&told, verdict, Door { protocol: 6, port: 80 })
    };
    assert_eq!(names(Direction::Ingress), ["NetworkPolicy default/in"]);
    assert_eq!(names(Direction::Egress), ["NetworkPolicy default/out"]);
}

#[test]
fn who_answers_for_a_service_is_chosen_before_the_packet_is_seen() {
    let packet: Packet = read(&[ALLOWED]).remove(0).packet;
    let seen = Seen {
        place: 0,
        at: std::time::Duration::ZERO,
        link: "eth0".to_owned(),
        direction: linux::packets::Direction::Out,
        packet,
    };
    let told = [hops::Told { name: "pod/default/b".to_owned(), ..hops::Told::default() }];
    let mut way = hops::path(&[seen], &told, DSCP, 6);
    let as_it_was = way.clone();
    show_socket(&mut way, "192.168.0.2:81".parse().unwrap());
    assert_eq!(way, as_it_was, "it went where it was sent");
    show_socket(&mut way, "10.1.2.3:8080".parse().unwrap());
    let hop = &way.hops[0];
    assert_eq!(hop.before, "192.168.0.3:53208 > 10.1.2.3:8080");
    assert_eq!(hop.after, "192.168.0.3:53208 > 192.168.0.2:81");
    assert_eq!(hop.rules[0].name.as_deref(), Some("192.168.0.2:81 for 10.1.2.3:8080"));
}

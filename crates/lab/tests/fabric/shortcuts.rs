//! Flows that have passed every gate go past a network's stack; nothing else does.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use linux::netns::Netns;

use crate::lab::{Lab, connect, count, counted, masquerade, pod, run};

/// Asks for so many answers over a connection that is open: a packet with a byte each way, and acknowledgements.
const QUESTIONS: u32 = 50;

fn talk(stream: &mut TcpStream) -> bool {
    (0..QUESTIONS)
        .all(|_| stream.write_all(b"?").is_ok() && stream.read(&mut [0; 32]).is_ok_and(|n| n > 0))
}

const TWO: &str = "
    vnet v 10.1.0.0/16
    subnet a 10.1.1.0/24
    subnet b 10.1.2.0/24
    vm one 10.1.1.4
    vm two 10.1.2.4
    vm three 10.1.1.5
";

#[test]
fn the_first_and_the_last_packets_of_a_flow_take_the_long_way_and_no_others() {
    let lab = Lab::new(TWO);
    lab.serve("two", &[80]);
    let (one, vnet) = (lab.machine("one"), lab.vnet("v"));
    count(&vnet, "forward", "");
    let (mut stream, said) = connect(&one, "10.1.2.4:80").expect("it is served");
    assert_eq!(said, "two sees 10.1.1.4 at 10.1.2.4");
    let begun = counted(&vnet);
    assert!((2..=8).contains(&begun), "{begun}: a handshake and what was said at once");
    // One less each time that it is routed, by the stack or past it.
    count_ttl(&lab.machine("two"), 63);
    assert!(talk(&mut stream));
    assert_eq!(counted(&vnet), begun);
    assert!(counted(&lab.machine("two")) >= QUESTIONS, "what came has a TTL of 63");
    drop(stream);
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(10));
        let flows = run(&vnet, "conntrack", &["-L", "-p", "tcp", "--dport", "80"]);
        if flows.contains("TIME_WAIT") {
            assert!(counted(&vnet) > begun);
            return;
        }
    }
    panic!("connection tracking has not seen the end");
}

fn count_ttl(machine: &Netns, ttl: u8) {
    count(machine, "prerouting", &format!("ip ttl {ttl} tcp flags & (syn | fin) == 0x0"));
}

#[test]
fn nobody_else_speaks_in_a_flow() {
    let lab = Lab::new(TWO);
    let (one, two, three) = (lab.machine("one"), lab.machine("two"), lab.machine("three"));
    let socket = |namespace: &Netns, at: &str| -> UdpSocket {
        let socket = namespace.run(|| UdpSocket::bind(at)).expect("entered").expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
        socket
    };
    let here = socket(&one, "10.1.1.4:5000");
    let there = socket(&two, "10.1.2.4:5000");
    here.connect("10.1.2.4:5000").expect("connected");
    there.connect("10.1.1.4:5000").expect("connected");
    let mut buffer = [0; 16];
    for _ in 0..5 {
        here.send(b"own").expect("sent");
        assert_eq!(there.recv(&mut buffer).expect("it comes"), 3);
        there.send(b"answer").expect("sent");
        assert_eq!(here.recv(&mut buffer).expect("it comes"), 6);
    }
    // The same flow, but for the NIC that it comes from.
    pod(&three, "10.1.1.4");
    let spoofing = socket(&three, "10.1.1.4:5000");
    spoofing.send_to(b"spoofed", "10.1.2.4:5000").expect("sent");
    assert!(there.recv(&mut buffer).is_err(), "not an address of the NIC");
    here.send(b"own").expect("sent");
    assert_eq!(there.recv(&mut buffer).expect("it comes"), 3, "the flow goes on");
}

#[test]
fn a_flow_follows_the_routes_that_are_there_now() {
    let with = |route: &str| {
        format!(
            "vnet v 10.1.0.0/16
             table t
             {route}
             subnet a 10.1.1.0/24 table t
             subnet b 10.1.2.0/24
             subnet nva 10.1.9.0/24
             vm one 10.1.1.4
             vm two 10.1.2.4
             vm nva 10.1.9.4 forwards"
        )
    };
    let mut lab = Lab::new(&with("route 9.0.0.0/8 none"));
    lab.serve("two", &[80]);
    let (one, nva) = (lab.machine("one"), lab.machine("nva"));
    count(&nva, "forward", "");
    let (mut stream, _) = connect(&one, "10.1.2.4:80").expect("it is served");
    assert!(talk(&mut stream));
    assert_eq!(counted(&nva), 0);
    lab.becomes(&with("route 10.1.2.0/24 via 10.1.9.4"));
    assert!(talk(&mut stream), "through the appliance");
    assert!(counted(&nva) >= QUESTIONS);
    lab.becomes(&with("route 10.1.2.0/24 none"));
    assert!(!talk(&mut stream), "to nobody");
}

#[test]
fn what_is_translated_takes_the_long_way() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.1.2.0/24 via 10.1.9.4
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm two 10.1.2.4
         vm nva 10.1.9.4 forwards",
    );
    lab.serve("two", &[80]);
    let (one, nva) = (lab.machine("one"), lab.machine("nva"));
    masquerade(&nva);
    let (mut stream, said) = connect(&one, "10.1.2.4:80").expect("it is served");
    assert_eq!(said, "two sees 10.1.9.4 at 10.1.2.4");
    assert!(talk(&mut stream));
}

#[test]
fn who_wants_packets_counted_has_none() {
    let mut lab = Lab::new(TWO);
    lab.serve("two", &[80]);
    let (one, vnet) = (lab.machine("one"), lab.vnet("v"));
    count(&vnet, "forward", "");
    let (mut stream, _) = connect(&one, "10.1.2.4:80").expect("it is served");
    assert!(talk(&mut stream));
    assert!(counted(&vnet) < QUESTIONS);
    lab.begins_to_count();
    assert!(talk(&mut stream));
    assert!(counted(&vnet) >= 2 * QUESTIONS);
}

//! Public addresses are closed until a security group allows something in.

use std::io::{Read, Write};

use daemon::fabric::Scope;
use vnet::{
    effective,
    host::Health,
    model::{Access, Direction},
    policy::{Flow, Protocol},
};

use crate::{
    lab::{Lab, add_ipv6, ask, ask_as, connect_as, count, counted, serve},
    world::nic_id,
};

const WORLD: &str = "
    nsg allow
    in 100 allow tcp Internet * > * 80
    vnet w 10.2.0.0/16
    subnet a 10.2.1.0/24
    vm stranger 10.2.1.4
    vnet v 10.1.0.0/16,fd00:1::/48
    subnet bare 10.1.1.0/24,fd00:1:0:1::/64
    subnet grouped 10.1.2.0/24,fd00:1:0:2::/64 nsg allow
    vm shut 10.1.1.4,fd00:1:0:1::4 public 20.5.5.1,2001:2::1
    vm let 10.1.1.5,fd00:1:0:1::5 nsg allow public 20.5.5.2,2001:2::2
    vm within 10.1.2.4 public 20.5.5.3
    vm basic 10.1.1.6 public basic-20.5.5.4
    vm member 10.1.1.7
    balancer b
    frontend front public 20.8.8.8
    pool nodes member
    rule front nodes tcp 80 to 80
    rule front nodes tcp 90 to 81
";

const CLIENT: &str = "198.19.0.10";
const CLIENT_6: &str = "2a00::1";

#[test]
fn nobody_comes_in_from_the_internet_where_no_group_is() {
    let lab = Lab::new(WORLD);
    for name in ["shut", "let", "within", "basic", "member"] {
        lab.serve(name, &[80, 81]);
    }
    let internet = lab.internet();
    serve(&internet, "internet", 80);
    add_ipv6(&internet, CLIENT_6, "lo");
    for (to, expected) in [
        ("20.5.5.1:80", "nothing"),
        ("20.5.5.2:80", "let sees 198.19.0.10 at 10.1.1.5"),
        ("20.5.5.2:81", "nothing"),
        ("20.5.5.3:80", "within sees 198.19.0.10 at 10.1.2.4"),
        // Those of SKU Basic are open by default.
        ("20.5.5.4:81", "basic sees 198.19.0.10 at 10.1.1.6"),
        ("20.8.8.8:80", "nothing"),
        ("20.8.8.8:90", "nothing"),
    ] {
        assert_eq!(ask_as(&internet, CLIENT, to), expected, "{to}");
    }
    assert_eq!(ask_as(&internet, CLIENT_6, "[2001:2::1]:80"), "nothing");
    assert_eq!(ask_as(&internet, CLIENT_6, "[2001:2::2]:80"), "let sees 2a00::1 at fd00:1:0:1::5");
    // Another network comes by the internet, too; one's own does not, and answers to what was asked outside come in.
    assert_eq!(ask(&lab.machine("stranger"), "20.5.5.1:80"), "nothing");
    assert_eq!(ask(&lab.machine("within"), "10.1.1.4:80"), "shut sees 10.1.2.4 at 10.1.1.4");
    let shut = lab.machine("shut");
    assert_eq!(ask(&shut, "9.9.9.9:80"), "internet sees 20.5.5.1 at 9.9.9.9");
    assert_eq!(
        ask(&shut, &format!("[{CLIENT_6}]:80")),
        format!("internet sees 2001:2::1 at {CLIENT_6}")
    );
}

#[test]
fn a_group_opens_what_it_allows_and_what_has_begun_goes_on_without_it() {
    let mut lab = Lab::new(WORLD);
    lab.serve("shut", &[80]);
    lab.serve("member", &[80, 81]);
    let internet = lab.internet();
    let shown = "shut sees 198.19.0.10 at 10.1.1.4";
    let ask = |to: &str| ask_as(&internet, CLIENT, to);
    assert_eq!(ask("20.5.5.1:80"), "nothing");
    // At the NIC: by the difference alone.
    let at_nic = WORLD.replace("public 20.5.5.1", "nsg allow public 20.5.5.1");
    lab.becomes(&at_nic);
    assert_eq!(ask("20.5.5.1:80"), shown);
    assert_eq!(ask("20.8.8.8:80"), "nothing", "another NIC");
    let (mut stream, _) = connect_as(&internet, Some(CLIENT), "20.5.5.1:80").expect("an answer");
    lab.becomes(WORLD);
    assert_eq!(ask("20.5.5.1:80"), "nothing");
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 4]).expect("the flow lives");
    // At the subnet.
    lab.becomes(&WORLD.replace("fd00:1:0:1::/64", "fd00:1:0:1::/64 nsg allow"));
    assert_eq!(ask("20.5.5.1:80"), shown);
    assert_eq!(ask("20.8.8.8:80"), "member sees 198.19.0.10 at 10.1.1.7");
    assert_eq!(ask("20.8.8.8:90"), "nothing", "the group does not allow port 81");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

/// What Network Watcher would say of TCP from `source` to port 80 of a machine.
fn verified(lab: &Lab, source: &str, machine: &str) -> Access {
    let nic = &lab.region.nics[&nic_id(machine)];
    let flow = Flow {
        source: source.parse().expect("an address"),
        destination: nic.configs[0].address,
        protocol: Protocol::Tcp,
        source_port: 40_000,
        destination_port: 80,
    };
    effective::verify(&lab.region, nic, Direction::Inbound, &flow).access
}

/// Routes make everything a part of tag `VirtualNetwork`, and open nothing.
#[test]
fn a_default_route_of_a_users_opens_no_public_address() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.4
         subnet a 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm nva 10.1.9.4 forwards
         vm shut 10.1.1.4 public 20.5.5.1
         vm basic 10.1.1.5 public basic-20.5.5.4
         vm member 10.1.1.7
         vm inner 10.1.1.8
         balancer b
         frontend front public 20.8.8.8
         pool nodes member
         rule front nodes tcp 80 to 80",
    );
    // The answer would go to the appliance: what counts is what arrives.
    for (machine, to, expected) in [
        ("shut", "20.5.5.1:80", Access::Deny),
        ("basic", "20.5.5.4:80", Access::Allow),
        ("member", "20.8.8.8:80", Access::Deny),
    ] {
        let namespace = lab.machine(machine);
        count(&namespace, "input", &format!("ip saddr {CLIENT} tcp dport 80"));
        lab.serve(machine, &[80]);
        ask_as(&lab.internet(), CLIENT, to);
        let arrived = if counted(&namespace) > 0 { Access::Allow } else { Access::Deny };
        assert_eq!(arrived, expected, "{machine}");
        assert_eq!(verified(&lab, CLIENT, machine), expected, "{machine}");
        assert_eq!(verified(&lab, "10.1.1.9", machine), Access::Allow, "{machine}");
    }
    // Who has no public address gets what an appliance brings.
    assert_eq!(verified(&lab, CLIENT, "inner"), Access::Allow);
}

//! User-defined routes.

use crate::lab::{Lab, ask, count, counted, masquerade, run, serve};

#[test]
fn a_route_leads_through_an_appliance_and_the_longest_prefix_wins() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.1.2.0/24 via 10.1.9.4
         route 10.1.2.5/32 local
         route 10.1.2.6/32 none
         route 10.1.2.7/32 via 10.1.9.5
         route 10.1.2.8/32 via 10.1.9.77
         route 8.0.0.0/8 none
         route 8.8.8.0/24 internet
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm two 10.1.1.5
         vm far 10.1.2.4,10.1.2.5,10.1.2.6,10.1.2.7,10.1.2.8
         vm nva 10.1.9.4 forwards
         vm host 10.1.9.5",
    );
    lab.serve("far", &[80]);
    lab.serve("two", &[80]);
    serve(&lab.internet(), "internet", 80);
    let (one, nva) = (lab.machine("one"), lab.machine("nva"));
    count(&nva, "forward", "");
    run(&lab.machine("host"), "sysctl", &["-q", "net.ipv4.ip_forward=1"]);
    assert_eq!(ask(&one, "10.1.2.5:80"), "far sees 10.1.1.4 at 10.1.2.5");
    assert_eq!(counted(&nva), 0, "a longer route of the user's goes straight");
    assert_eq!(ask(&one, "10.1.2.4:80"), "far sees 10.1.1.4 at 10.1.2.4");
    assert_ne!(counted(&nva), 0, "through the appliance");
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(ask(&one, "10.1.2.6:80"), "nothing", "next hop None");
    assert_eq!(ask(&one, "10.1.2.7:80"), "nothing", "an appliance without IP forwarding");
    assert_eq!(ask(&one, "10.1.2.8:80"), "nothing", "an appliance that is not there");
    assert_eq!(ask(&one, "8.8.4.4:80"), "nothing");
    assert_eq!(ask(&one, "8.8.8.8:80"), "internet sees 20.0.0.1 at 8.8.8.8");
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.0.0.1 at 9.9.9.9");
}

#[test]
fn everything_goes_through_a_firewall() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.4
         subnet a 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm nva 10.1.9.4 forwards",
    );
    serve(&lab.internet(), "internet", 80);
    let (one, nva) = (lab.machine("one"), lab.machine("nva"));
    count(&lab.internet(), "prerouting", "");
    assert_eq!(ask(&one, "9.9.9.9:80"), "nothing", "nobody translates for a foreign address");
    assert_eq!(counted(&lab.internet()), 0);
    masquerade(&nva);
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.0.0.1 at 9.9.9.9");
}

#[test]
fn an_own_prefix_can_be_sent_through_an_appliance() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.1.0.0/16 via 10.1.9.4
         subnet a 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm two 10.1.1.5
         vm nva 10.1.9.4 forwards",
    );
    lab.serve("two", &[80]);
    assert_eq!(ask(&lab.machine("one"), "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    run(
        &lab.machine("nva"),
        "nft",
        &["add table ip t; add chain ip t c { type filter hook forward priority 0; policy drop; }"],
    );
    assert_eq!(ask(&lab.machine("one"), "10.1.1.5:80"), "nothing", "even between neighbours");
}

#[test]
fn a_local_route_leads_nowhere_outside_of_the_network() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 local
         subnet a 10.1.1.0/24 table t
         vm one 10.1.1.4
         vm two 10.1.1.5",
    );
    lab.serve("two", &[80]);
    serve(&lab.internet(), "internet", 80);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(
        ask(&one, "93.184.216.34:80"),
        "nothing",
        "the main table leads out, the route does not"
    );
}

#[test]
fn a_service_tag_leads_through_an_appliance() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route Storage via 10.1.9.4
         route Storage.EastUS none
         route Sql none
         route 198.19.23.0/24 internet
         subnet a 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm nva 10.1.9.4 forwards",
    );
    serve(&lab.internet(), "internet", 80);
    let (one, nva) = (lab.machine("one"), lab.machine("nva"));
    masquerade(&nva);
    count(&nva, "forward", "");
    assert_eq!(ask(&one, "198.19.23.9:80"), "internet sees 20.0.0.1 at 198.19.23.9");
    assert_eq!(ask(&one, "198.19.22.49:80"), "nothing", "the tag of a region");
    assert_eq!(counted(&nva), 0, "neither is the appliance's");
    assert_eq!(ask(&one, "198.19.22.200:80"), "internet sees 20.0.0.1 at 198.19.22.200");
    assert_ne!(counted(&nva), 0, "through the appliance");
}

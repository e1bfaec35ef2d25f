//! Virtual networks that are joined.

use daemon::fabric::Scope;
use vnet::host::Health;

use crate::lab::{Lab, ask, ask_as, count, counted, masquerade, pod, run, serve};

/// Three networks in a row: `v` and `w` are joined, `w` and `x` are.
fn row(v: &str, w: &str) -> String {
    format!(
        "vnet x 10.3.0.0/16
         subnet a 10.3.1.0/24
         vm three 10.3.1.4
         vnet w 10.2.0.0/16
         subnet a 10.2.1.0/24
         vm two 10.2.1.4
         vnet v 10.1.0.0/16,172.20.0.0/24
         subnet a 10.1.1.0/24
         vm one 10.1.1.4
         peer v w {v}
         peer w v {w}
         peer w x
         peer x w"
    )
}

#[test]
fn joined_networks_reach_each_other_and_no_others() {
    let mut lab = Lab::new(&row("", ""));
    let (one, two, three) = (lab.machine("one"), lab.machine("two"), lab.machine("three"));
    for name in ["one", "two", "three"] {
        lab.serve(name, &[80]);
    }
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask(&one, "10.2.1.4:80"), "two sees 10.1.1.4 at 10.2.1.4");
    assert_eq!(ask(&two, "10.1.1.4:80"), "one sees 10.2.1.4 at 10.1.1.4");
    assert_eq!(ask(&two, "10.3.1.4:80"), "three sees 10.2.1.4 at 10.3.1.4");
    assert_eq!(ask(&one, "10.3.1.4:80"), "nothing", "a peer's peer");
    assert_eq!(ask(&three, "10.1.1.4:80"), "nothing", "a peer's peer");
    assert_eq!(ask(&one, "10.2.1.77:80"), "nothing", "nobody there");
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.0.0.3 at 9.9.9.9", "the own way out");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
    // Even when somebody makes it a route, a peer's peer is not reached.
    let link = vnet::host::names::peer(&crate::world::vnet_id("w"));
    run(
        &lab.vnet("v"),
        "ip",
        &["route", "add", "10.3.0.0/16", "via", "169.254.0.1", "dev", &link, "onlink"],
    );
    count(&lab.vnet("w"), "prerouting", "ip daddr 10.3.1.4");
    count(&three, "prerouting", "ip saddr 10.1.1.4");
    assert_eq!(ask(&one, "10.3.1.4:80"), "nothing");
    assert_ne!(counted(&lab.vnet("w")), 0, "it came that far");
    assert_eq!(counted(&three), 0);
}

#[test]
fn nothing_passes_unless_both_sides_are_there_and_allow_it() {
    let mut lab = Lab::new(&row("", ""));
    let (one, two) = (lab.machine("one"), lab.machine("two"));
    lab.serve("one", &[80]);
    lab.serve("two", &[80]);
    for (v, w) in [("closed", ""), ("", "closed"), ("initiated", ""), ("", "initiated")] {
        lab.becomes(&row(v, w));
        assert!(lab.pass(&Health::default(), Scope::All).is_nothing(), "{v}, {w}");
        assert_eq!(ask(&one, "10.2.1.4:80"), "nothing", "v {v}, w {w}");
        assert_eq!(ask(&two, "10.1.1.4:80"), "nothing", "v {v}, w {w}");
    }
    lab.becomes(&row("", ""));
    assert_eq!(ask(&one, "10.2.1.4:80"), "two sees 10.1.1.4 at 10.2.1.4");
}

/// `v` and `x` are joined to hub `w` and to nobody else; an appliance in the hub forwards between them.
fn hub(v: &str, x: &str) -> String {
    format!(
        "vnet w 10.2.0.0/16
         subnet nva 10.2.9.0/24
         vm nva 10.2.9.4 forwards
         table t
         route 10.0.0.0/8 via 10.2.9.4
         route 0.0.0.0/0 via 10.2.9.4
         vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24 table t
         vm one 10.1.1.4
         vnet x 10.3.0.0/16
         subnet a 10.3.1.0/24 table t
         vm three 10.3.1.4
         peer v w {v}
         peer w v forwarded
         peer x w {x}
         peer w x forwarded"
    )
}

#[test]
fn an_appliance_in_a_hub_joins_its_spokes_where_they_allow_forwarded_traffic() {
    let mut lab = Lab::new(&hub("forwarded", "forwarded"));
    let (one, three, nva) = (lab.machine("one"), lab.machine("three"), lab.machine("nva"));
    lab.serve("one", &[80]);
    lab.serve("three", &[80]);
    count(&nva, "forward", "tcp dport 80");
    assert_eq!(ask(&one, "10.3.1.4:80"), "three sees 10.1.1.4 at 10.3.1.4");
    assert_ne!(counted(&nva), 0, "through the appliance");
    assert_eq!(ask(&three, "10.1.1.4:80"), "one sees 10.3.1.4 at 10.1.1.4");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
    lab.becomes(&hub("forwarded", ""));
    assert_eq!(ask(&one, "10.3.1.4:80"), "nothing", "x does not allow it");
    assert_eq!(ask(&three, "10.1.1.4:80"), "one sees 10.3.1.4 at 10.1.1.4", "v does");
    // And the hub is the way out.
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask(&one, "9.9.9.9:80"), "nothing", "nobody translates");
    masquerade(&nva);
    assert_eq!(ask(&one, "9.9.9.9:80"), "internet sees 20.0.0.1 at 9.9.9.9");
}

#[test]
fn each_network_keeps_its_own_gates() {
    let lab = Lab::new(
        "vnet w 10.2.0.0/16
         nsg in
         in 100 deny tcp 10.1.0.0/16 * > * 82
         subnet a 10.2.1.0/24 nsg in
         vm two 10.2.1.4
         vnet v 10.1.0.0/16
         nsg out
         out 100 deny tcp * * > 10.2.0.0/16 81
         subnet a 10.1.1.0/24 nsg out
         vm one 10.1.1.4
         peer v w
         peer w v",
    );
    lab.serve("two", &[80, 81, 82]);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.2.1.4:80"), "two sees 10.1.1.4 at 10.2.1.4", "VirtualNetwork");
    count(&lab.vnet("w"), "prerouting", "tcp dport 81");
    assert_eq!(ask(&one, "10.2.1.4:81"), "nothing");
    assert_eq!(counted(&lab.vnet("w")), 0, "dropped by the sender's gate");
    assert_eq!(ask(&one, "10.2.1.4:82"), "nothing");
}

#[test]
fn pods_and_front_ends_are_reached_over_a_peering_as_their_mode_says() {
    let mut lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4
         vnet w 10.2.0.0/16
         subnet a 10.2.1.0/24
         subnet pods 10.2.4.0/24
         cluster n azure 198.18.0.10
         node n1 10.2.1.4,10.2.1.5
         cluster p azure 198.18.0.11
         node p1 10.2.1.6 batch 10.2.4.4-10.2.4.19
         cluster o overlay 198.18.0.12 pods 10.244.0.0/16
         node o1 10.2.1.7 range 10.244.0.0/24
         balancer kubernetes-internal
         frontend front 10.2.1.100
         pool nodes o1
         rule front nodes tcp 80
         peer v w
         peer w v",
    );
    let one = lab.machine("one");
    for (node, address) in [("n1", "10.2.1.5"), ("p1", "10.2.4.9"), ("o1", "10.244.0.7")] {
        pod(&lab.machine(node), address);
        lab.serve(node, &[80]);
    }
    pod(&lab.machine("o1"), "10.2.1.100");
    assert_eq!(ask(&one, "10.2.1.5:80"), "n1 sees 10.1.1.4 at 10.2.1.5");
    assert_eq!(ask(&one, "10.2.4.9:80"), "p1 sees 10.1.1.4 at 10.2.4.9");
    assert_eq!(ask(&one, "10.244.0.7:80"), "nothing", "an overlay is nobody's network");
    assert_eq!(ask(&one, "10.2.1.100:80"), "o1 sees 10.1.1.4 at 10.2.1.100", "its services are");
    lab.serve("one", &[80]);
    assert_eq!(
        ask_as(&lab.machine("p1"), "10.2.4.9", "10.1.1.4:80"),
        "one sees 10.2.4.9 at 10.1.1.4"
    );
    assert_eq!(ask_as(&lab.machine("o1"), "10.244.0.7", "10.1.1.4:80"), "nothing");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

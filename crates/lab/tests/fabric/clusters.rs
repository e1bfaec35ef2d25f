//! Nodes, pods, control planes. A pod is an address on its node's loopback: the fabric sees no difference.

use crate::lab::{Lab, ask, ask_as, count, counted, pod, run, serve};

const OVERLAY: &str = "
    vnet v 10.1.0.0/16
    subnet a 10.1.1.0/24
    vm one 10.1.1.4
    cluster c overlay 198.18.0.10 pods 10.244.0.0/16
    node c1 10.1.1.5 range 10.244.0.0/24
    node c2 10.1.1.6 range 10.244.1.0/24
    cluster d overlay 198.18.0.11 pods 10.244.0.0/16
    node d1 10.1.1.7 range 10.244.0.0/24
    node d2 10.1.1.8 range 10.244.1.0/24
    balancer kubernetes
    frontend out public 20.9.9.9
    pool nodes c1 c2
    outbound out nodes
";

#[test]
fn overlay_pods_meet_in_their_own_cluster_only() {
    let lab = Lab::new(OVERLAY);
    for node in ["c1", "c2", "d1", "d2"] {
        let namespace = lab.machine(node);
        pod(&namespace, if node.ends_with('1') { "10.244.0.7" } else { "10.244.1.7" });
        lab.serve(node, &[80]);
    }
    let (c1, d1, one) = (lab.machine("c1"), lab.machine("d1"), lab.machine("one"));
    let to = "10.244.1.7:80";
    assert_eq!(ask_as(&c1, "10.244.0.7", to), "c2 sees 10.244.0.7 at 10.244.1.7");
    assert_eq!(ask_as(&d1, "10.244.0.7", to), "d2 sees 10.244.0.7 at 10.244.1.7");
    let flows = run(&lab.vnet("v"), "cat", &["/proc/net/nf_conntrack"]);
    for zone in [10, 11] {
        let mut flows = flows.lines().filter(|flow| flow.contains("dst=10.244.1.7 sport"));
        let own = format!("zone={zone} ");
        assert!(flows.any(|flow| flow.contains(&own)), "overlays share no state: {flows:?}");
    }
    assert_eq!(ask(&c1, to), "c2 sees 10.1.1.5 at 10.244.1.7", "node to pod");
    assert_eq!(ask(&one, to), "nothing", "VM to pod");
    assert_eq!(ask_as(&c1, "10.244.0.7", "10.244.9.7:80"), "nothing", "a pod of no node");
    assert_eq!(ask_as(&c1, "10.244.1.8", to), "nothing", "another node's pods cannot be played");
    // What its node does not translate stays in the overlay.
    lab.serve("one", &[80]);
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask_as(&c1, "10.244.0.7", "10.1.1.4:80"), "nothing");
    assert_eq!(ask_as(&c1, "10.244.0.7", "9.9.9.9:80"), "nothing");
    assert_eq!(ask(&c1, "9.9.9.9:80"), "internet sees 20.9.9.9 at 9.9.9.9", "the outbound rule");
}

#[test]
fn an_overlay_packet_crosses_the_network_as_it_is() {
    let lab = Lab::new(OVERLAY);
    let (c1, c2) = (lab.machine("c1"), lab.machine("c2"));
    pod(&c1, "10.244.0.7");
    pod(&c2, "10.244.1.7");
    let unchanged = "ether saddr 12:34:56:78:9a:bc ether daddr 00:0d:3a:01:01:06 \
                     ip saddr 10.244.0.7 ip daddr 10.244.1.7 tcp dport 80";
    count(&c2, "prerouting", unchanged);
    ask_as(&c1, "10.244.0.7", "10.244.1.7:80");
    assert_ne!(counted(&c2), 0, "{unchanged}");
}

#[test]
fn control_planes_and_nodes_reach_each_other() {
    let lab = Lab::new(&format!(
        "{OVERLAY}
         table t
         route 10.245.0.0/24 via 10.1.2.5
         subnet k 10.1.2.0/24 table t
         cluster k kubenet 198.18.0.12 pods 10.245.0.0/16
         node k1 10.1.2.5 range 10.245.0.0/24 forwards"
    ));
    for (node, address) in [("c1", "10.244.0.7"), ("d1", "10.244.0.7"), ("k1", "10.245.0.7")] {
        pod(&lab.machine(node), address);
        lab.serve(node, &[80]);
    }
    serve(&lab.control_plane("c"), "api", 443);
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask(&lab.machine("c1"), "198.18.0.10:443"), "api sees 20.9.9.9 at 198.18.0.10");
    assert_eq!(ask(&lab.internet(), "198.18.0.10:443"), "api sees 198.19.0.10 at 198.18.0.10");
    let (c, d, k) = (lab.control_plane("c"), lab.control_plane("d"), lab.control_plane("k"));
    assert_eq!(ask(&c, "10.1.1.5:80"), "c1 sees 100.82.0.10 at 10.1.1.5");
    assert_eq!(ask(&c, "10.244.0.7:80"), "c1 sees 100.82.0.10 at 10.244.0.7");
    assert_eq!(ask(&d, "10.244.0.7:80"), "d1 sees 100.82.0.11 at 10.244.0.7");
    assert_eq!(ask(&k, "10.245.0.7:80"), "k1 sees 100.82.0.12 at 10.245.0.7");
    assert_eq!(ask(&c, "9.9.9.9:80"), "internet sees 198.18.0.10 at 9.9.9.9");
}

#[test]
fn kubenet_pods_go_where_the_route_table_says() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 10.244.0.0/24 via 10.1.1.5
         route 10.244.1.0/24 via 10.1.1.6
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24
         vm one 10.1.2.4
         cluster c kubenet 198.18.0.10 pods 10.244.0.0/16
         node c1 10.1.1.5 range 10.244.0.0/24 forwards
         node c2 10.1.1.6 range 10.244.1.0/24 forwards",
    );
    let c1 = lab.machine("c1");
    pod(&c1, "10.244.0.7");
    pod(&lab.machine("c2"), "10.244.1.7");
    lab.serve("c2", &[80]);
    lab.serve("one", &[80]);
    assert_eq!(ask_as(&c1, "10.244.0.7", "10.244.1.7:80"), "c2 sees 10.244.0.7 at 10.244.1.7");
    assert_eq!(
        ask(&lab.machine("one"), "10.244.1.7:80"),
        "nothing",
        "its subnet has no such route"
    );
    assert_eq!(ask(&c1, "10.1.2.4:80"), "one sees 10.1.1.5 at 10.1.2.4");
}

#[test]
fn pods_with_addresses_of_the_network_are_reached_by_everybody() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         table t
         route 9.0.0.0/8 none
         subnet a 10.1.1.0/24 table t
         subnet pods 10.1.4.0/24
         subnet b 10.1.2.0/24
         vm one 10.1.2.4
         cluster c azure 198.18.0.10
         node n1 10.1.1.5,10.1.1.6,10.1.1.7
         cluster d azure 198.18.0.11
         node p1 10.1.1.8 batch 10.1.4.4-10.1.4.19",
    );
    let (n1, p1, one) = (lab.machine("n1"), lab.machine("p1"), lab.machine("one"));
    pod(&n1, "10.1.1.7");
    pod(&p1, "10.1.4.9");
    for name in ["n1", "p1", "one"] {
        lab.serve(name, &[80]);
    }
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask(&one, "10.1.1.7:80"), "n1 sees 10.1.2.4 at 10.1.1.7");
    assert_eq!(ask(&one, "10.1.4.9:80"), "p1 sees 10.1.2.4 at 10.1.4.9");
    assert_eq!(ask_as(&p1, "10.1.4.9", "10.1.2.4:80"), "one sees 10.1.4.9 at 10.1.2.4");
    assert_eq!(ask_as(&n1, "10.1.1.7", "10.1.4.9:80"), "p1 sees 10.1.1.7 at 10.1.4.9");
    assert_eq!(ask_as(&p1, "10.1.4.9", "1.1.1.1:80"), "internet sees 20.0.0.1 at 1.1.1.1");
    // The node's subnet has a route that the pods' one has not.
    assert_eq!(ask(&p1, "9.9.9.9:80"), "nothing");
    assert_eq!(ask_as(&p1, "10.1.4.9", "9.9.9.9:80"), "internet sees 20.0.0.1 at 9.9.9.9");
}

#[test]
fn nodes_without_an_outbound_method_have_no_way_out() {
    let lab = Lab::new(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         cluster c azure 198.18.0.10 outbound none
         node n1 10.1.1.5",
    );
    serve(&lab.internet(), "internet", 80);
    assert_eq!(ask(&lab.machine("n1"), "9.9.9.9:80"), "nothing");
}

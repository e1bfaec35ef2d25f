//! What regions are compiled to, as text. `cargo insta review` after a wanted change.

use vnet::host::{Health, compile_fabric, names};

use crate::world::{region, vnet_id};

/// The namespace of virtual network `v`, without what is the same in each: settings, and rules that are
/// not in a set, a map or a service's chain.
fn vnet(text: &str) -> String {
    let fabric = compile_fabric("lab", &region(text), &Health::default());
    let mut state = fabric.namespaces[&names::vnet_ns("lab", &vnet_id("v"))].clone();
    state.sysctls.clear();
    let rules = state.nft.take().unwrap();
    let (own, _) = rules.split_once("\n\n").unwrap_or((&rules, ""));
    let own: String = own
        .split_inclusive("\t}\n")
        .filter(|part| part.contains("elements") || part.contains("chain"))
        .collect();
    format!("{state}{own}")
}

#[test]
fn a_whole_lab() {
    let region = region(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         vm one 10.1.1.4,10.1.1.5
         vm two 10.1.1.6 forwards
         cluster c overlay 198.18.0.10 pods 10.244.0.0/16
         node aks-pool-00000000-vmss000000 10.1.1.7 range 10.244.0.0/24",
    );
    insta::assert_snapshot!(compile_fabric("lab", &region, &Health::default()));
}

#[test]
fn kubenet() {
    insta::assert_snapshot!(vnet(
        "vnet v 10.1.0.0/16
         table t
         route 10.244.0.0/24 via 10.1.1.5
         route 10.244.1.0/24 via 10.1.1.6
         subnet a 10.1.1.0/24 table t
         cluster c kubenet 198.18.0.10 pods 10.244.0.0/16
         node c1 10.1.1.5 range 10.244.0.0/24 forwards
         node c2 10.1.1.6 range 10.244.1.0/24 forwards"
    ));
}

#[test]
fn user_defined_routes() {
    insta::assert_snapshot!(vnet(
        "vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.4
         route 10.1.0.0/16 via 10.1.9.4
         route 10.1.1.0/24 local
         route 10.1.2.0/24 none
         route 20.0.0.0/8 internet
         subnet a 10.1.1.0/24 table t
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm nva 10.1.9.4 forwards"
    ));
}

#[test]
fn routes_to_front_ends_and_past_them() {
    insta::assert_snapshot!(vnet(
        "vnet w 10.2.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.100
         subnet a 10.2.1.0/24 table t
         vm two 10.2.1.4
         vnet v 10.1.0.0/16
         table t
         route 0.0.0.0/0 via 10.1.9.100
         route 10.1.2.0/24 via 10.1.9.100
         subnet a 10.1.1.0/24 table t
         subnet b 10.1.2.0/24
         subnet nva 10.1.9.0/24
         vm one 10.1.1.4
         vm web 10.1.2.4
         vm fw1 10.1.9.4 forwards
         vm fw2 10.1.9.5
         balancer firewalls
         frontend front 10.1.9.100
         pool fws fw1 fw2
         rule front fws all 0 to 0
         balancer web
         frontend front 10.1.2.100
         pool webs web
         rule front webs tcp 80 to 8080
         rule front webs tcp 443
         peer v w
         peer w v"
    ));
}

#[test]
fn two_overlays_with_one_range() {
    insta::assert_snapshot!(vnet(
        "vnet v 10.1.0.0/16
         subnet a 10.1.1.0/24
         cluster c overlay 198.18.0.10 pods 10.244.0.0/16
         node c1 10.1.1.5 range 10.244.0.0/24
         node c2 10.1.1.6 range 10.244.1.0/24
         cluster d overlay 198.18.0.11 pods 10.244.0.0/16
         node d1 10.1.1.7 range 10.244.0.0/24"
    ));
}

#[test]
fn node_subnet_and_pod_subnet() {
    insta::assert_snapshot!(vnet(
        "vnet v 10.1.0.0/16
         table t
         route 9.0.0.0/8 none
         subnet a 10.1.1.0/24 table t
         subnet pods 10.1.4.0/24
         cluster c azure 198.18.0.10
         node n1 10.1.1.5,10.1.1.6,10.1.1.7
         cluster d azure 198.18.0.11 outbound none
         node p1 10.1.1.8 batch 10.1.4.4-10.1.4.7"
    ));
}

#[test]
fn load_balancers() {
    insta::assert_snapshot!(vnet(
        "vnet v 172.20.0.0/24
         subnet nodes 172.20.0.0/26
         subnet ilb 172.20.0.128/26
         vm n1 172.20.0.4
         vm n2 172.20.0.5
         balancer kubernetes-internal
         frontend front 172.20.0.132
         pool nodes n1 n2
         probe p tcp 30080
         rule front nodes tcp 80
         rule front nodes udp 53 by-source
         rule front nodes tcp 90 to 8080
         rule front nodes tcp 99 probe p
         balancer kubernetes
         frontend out public 20.9.9.9
         pool nodes n1
         rule out nodes all 0
         outbound out nodes"
    ));
}

//! Data planes and the network policies that come with them: what goes together, and how a living cluster gets Cilium.

use std::sync::Arc;

use vnet::{
    command::{Command, PutCluster, PutPool},
    fault::Fault,
    model::{
        AdvancedNetworking, AdvancedPolicies, Dataplane, NetworkLinks, NetworkMode, NetworkPolicy,
        NodePhase, Role,
    },
};

use crate::support::{Lab, cluster, id, pool, pool_in, put_cluster, put_pool};

use Dataplane::{Azure, Cilium};

/// A virtual network with subnets for nodes and for pods.
fn network() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "nodes", "10.1.0.0/24");
    lab.subnet("v", "pods", "10.1.4.0/22");
    lab
}

/// A cluster of one pool, whose pods have the subnet `pods` in mode `Azure` if that is wanted.
fn put(mode: NetworkMode, count: u32, has_pod_subnet: bool) -> PutCluster {
    let pod_subnet = has_pod_subnet.then(|| id("subnet v/pods"));
    cluster(mode, vec![PutPool { pod_subnet, ..pool_in("nodepool1", count, "v/nodes") }])
}

/// The same when it is up, with Azure's own data plane.
fn living(mode: NetworkMode, has_pod_subnet: bool) -> Lab {
    let mut lab = network();
    lab.cluster("c", put(mode, 2, has_pod_subnet)).unwrap();
    lab.up("c", NodePhase::Ready);
    lab
}

fn to_cilium() -> PutCluster {
    PutCluster { dataplane: Some(Cilium), ..PutCluster::default() }
}

/// What the cluster says: its data plane and its policies.
fn says(lab: &Lab) -> (Dataplane, Option<NetworkPolicy>) {
    let cluster = &lab.region.clusters[&id("cluster c")];
    (cluster.dataplane, cluster.policy)
}

/// The data plane of every node's image, a letter each.
fn images(lab: &Lab) -> String {
    let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
    nodes.map(|node| letter(lab.region.image_of(node).unwrap().dataplane)).collect()
}

fn letter(dataplane: Dataplane) -> char {
    match dataplane {
        Azure => 'a',
        Cilium => 'c',
    }
}

/// Every node's addresses and its range of pods.
fn addresses(lab: &Lab) -> Vec<String> {
    let nodes = lab.region.nodes_of(&id("cluster c")).into_iter();
    let text = nodes.map(|node| {
        let nic = lab.region.nic_of(&node.meta.id).unwrap();
        let own: Vec<_> = nic.configs.iter().map(|config| config.address.to_string()).collect();
        format!("{} {:?} {}", node.hostname, node.node().unwrap().pod_range, own.join(" "))
    });
    text.collect()
}

const NOT_WITHOUT_CILIUM: (&str, &str, &str) = (
    "NetworkPolicyNotSupported",
    "networkProfile.networkPolicy",
    "Network Policy cilium requires NetworkDataplane cilium",
);
const CILIUM_NEEDS_ITS_OWN: (&str, &str, &str) = (
    "BadRequest",
    "networkProfile.networkPolicy",
    "Cilium dataplane requires network policy cilium.",
);
const CILIUM_NEEDS_AZURE: (&str, &str, &str) = (
    "BadRequest",
    "networkProfile.networkPlugin",
    "Cilium dataplane requires network plugin azure.",
);

/// Asserts that the answer is a refusal with this code, target and text, or what the cluster says then.
#[track_caller]
fn check(
    lab: &mut Lab,
    put: PutCluster,
    expected: Result<(Dataplane, Option<NetworkPolicy>), (&str, &str, &str)>,
) {
    let asked = format!("{put:?}");
    match (lab.apply(put_cluster("c", put)), expected) {
        (Ok(_), Ok(expected)) => assert_eq!(says(lab), expected, "{asked}"),
        (Err(fault), Err(expected)) => assert_eq!(
            (fault.code.as_str(), fault.target.as_deref().unwrap_or(""), fault.message.as_str()),
            expected,
            "{asked}"
        ),
        (answer, expected) => panic!("{asked}: {answer:?} is not {expected:?}"),
    }
}

#[test]
fn new_clusters() {
    use NetworkMode::{Azure as Flat, Kubenet, None as Bring, Overlay};
    use NetworkPolicy::{Azure as Npm, Calico, Cilium as Own, None as Nobody};
    let all = [Kubenet, Flat, Overlay, Bring];
    for mode in all {
        for (dataplane, policy, expected) in [
            (None, None, Ok((Azure, None))),
            (Some(Azure), None, Ok((Azure, None))),
            (None, Some(Nobody), Ok((Azure, Some(Nobody)))),
            (None, Some(Own), Err(NOT_WITHOUT_CILIUM)),
            (Some(Azure), Some(Own), Err(NOT_WITHOUT_CILIUM)),
        ] {
            let put = PutCluster { dataplane, policy, ..put(mode, 1, false) };
            check(&mut network(), put, expected);
        }
    }
    for (mode, has_pod_subnet) in [(Flat, false), (Flat, true), (Overlay, false)] {
        for (policy, expected) in [
            (None, Ok((Cilium, Some(Own)))),
            (Some(Own), Ok((Cilium, Some(Own)))),
            (Some(Nobody), Err(CILIUM_NEEDS_ITS_OWN)),
            (Some(Npm), Err(CILIUM_NEEDS_ITS_OWN)),
            (Some(Calico), Err(CILIUM_NEEDS_ITS_OWN)),
        ] {
            let put = PutCluster { policy, ..put(mode, 1, has_pod_subnet) };
            check(&mut network(), PutCluster { dataplane: Some(Cilium), ..put }, expected);
        }
    }
    for mode in [Kubenet, Bring] {
        let put = PutCluster { dataplane: Some(Cilium), ..put(mode, 1, false) };
        check(&mut network(), put, Err(CILIUM_NEEDS_AZURE));
    }
    for (links, is_refused) in [(NetworkLinks::Transparent, false), (NetworkLinks::Bridge, true)] {
        let put = PutCluster { dataplane: Some(Cilium), links: Some(links), ..put(Flat, 1, false) };
        let expected = (
            "NetworkModeNotSupported",
            "networkProfile.networkMode",
            "Network mode bridge is not supported with network dataplane cilium.",
        );
        let expected = if is_refused { Err(expected) } else { Ok((Cilium, Some(Own))) };
        check(&mut network(), put, expected);
    }
}

#[test]
fn the_finer_code_is_said() {
    let put = PutCluster {
        dataplane: Some(Cilium),
        policy: Some(NetworkPolicy::None),
        ..put(NetworkMode::Overlay, 1, false)
    };
    let fault = network().refused(put_cluster("c", put));
    assert_eq!(fault.subcode.as_deref(), Some("CiliumDataplaneRequiresNetworkPolicyCilium"));
}

#[test]
fn addresses_do_not_depend_on_the_data_plane() {
    for (mode, has_pod_subnet) in
        [(NetworkMode::Azure, false), (NetworkMode::Azure, true), (NetworkMode::Overlay, false)]
    {
        let taken = |dataplane| {
            let mut lab = network();
            let put = PutCluster { dataplane: Some(dataplane), ..put(mode, 3, has_pod_subnet) };
            lab.cluster("c", put).unwrap();
            let pool = lab.region.clusters[&id("cluster c")].pools[&"nodepool1".into()].clone();
            (lab.held("v/nodes"), lab.held("v/pods"), addresses(&lab), pool.max_pods)
        };
        assert_eq!(taken(Cilium), taken(Azure), "{mode:?}, {has_pod_subnet}");
    }
}

#[test]
fn what_living_clusters_can_become() {
    use NetworkMode::{Azure as Flat, Kubenet, None as Bring, Overlay};
    use NetworkPolicy::{Cilium as Own, None as Nobody};
    let with = |policy| PutCluster { policy: Some(policy), ..PutCluster::default() };
    for (mode, has_pod_subnet) in [(Flat, false), (Flat, true), (Overlay, false)] {
        let mut lab = living(mode, has_pod_subnet);
        check(&mut lab, with(Own), Err(NOT_WITHOUT_CILIUM));
        let none = PutCluster { policy: Some(Nobody), ..to_cilium() };
        check(&mut lab, none.clone(), Err(CILIUM_NEEDS_ITS_OWN));
        assert_eq!(images(&lab), "aa", "a refused command changes nothing");
        check(&mut lab, with(Nobody), Ok((Azure, Some(Nobody))));
        lab.up("c", NodePhase::Ready);
        // As a client does that sends back what it was shown.
        check(&mut lab, none, Ok((Cilium, Some(Own))));
        lab.finish_upgrade("c");
        check(&mut lab, with(Nobody), Err(CILIUM_NEEDS_ITS_OWN));
        check(&mut lab, with(Own), Ok((Cilium, Some(Own))));
        lab.up("c", NodePhase::Ready);
        let fixed = "networkProfile.networkDataplane";
        let text = "Changing property 'networkProfile.networkDataplane' is not allowed.";
        let back = PutCluster { dataplane: Some(Azure), ..PutCluster::default() };
        check(&mut lab, back, Err(("PropertyChangeNotAllowed", fixed, text)));
        check(&mut lab, PutCluster::default(), Ok((Cilium, Some(Own))));
    }
    for mode in [Kubenet, Bring] {
        check(&mut living(mode, false), to_cilium(), Err(CILIUM_NEEDS_AZURE));
    }
    for mode in [Kubenet, Flat] {
        let mut lab = living(mode, false);
        let both = PutCluster { mode: Some(Overlay), ..to_cilium() };
        let fault = lab.refused(put_cluster("c", both));
        assert_eq!(fault.code, "PropertyChangeNotAllowed", "{mode:?}");
        assert!(fault.message.ends_with("cannot be updated in one operation."), "{fault}");
        // One after the other.
        let overlay = PutCluster { mode: Some(Overlay), ..PutCluster::default() };
        check(&mut lab, overlay, Ok((Azure, None)));
        lab.finish_upgrade("c");
        check(&mut lab, to_cilium(), Ok((Cilium, Some(Own))));
        lab.finish_upgrade("c");
        assert_eq!(images(&lab), "cc");
    }
    // And in the other order.
    let mut lab = living(Flat, false);
    check(&mut lab, to_cilium(), Ok((Cilium, Some(Own))));
    lab.finish_upgrade("c");
    let overlay = PutCluster { mode: Some(Overlay), ..PutCluster::default() };
    check(&mut lab, overlay, Ok((Cilium, Some(Own))));
    lab.finish_upgrade("c");
    assert_eq!((images(&lab).as_str(), lab.held("v/nodes")), ("cc", 2));
}

#[test]
fn nodes_get_cilium_one_by_one_and_keep_their_addresses() {
    for (mode, has_pod_subnet) in
        [(NetworkMode::Azure, false), (NetworkMode::Azure, true), (NetworkMode::Overlay, false)]
    {
        let mut lab = living(mode, has_pod_subnet);
        let other = lab.apply(put_pool("c", pool_in("two", 1, "v/nodes")));
        // A pool of a cluster with pod subnets must have one, too.
        assert_eq!(other.is_err(), has_pod_subnet, "{mode:?}");
        lab.up("c", NodePhase::Ready);
        let before = addresses(&lab);
        let held = (lab.held("v/nodes"), lab.held("v/pods"));
        lab.must(put_cluster("c", to_cilium()));
        let mut seen = vec![images(&lab)];
        while lab.region.is_upgrading(&id("cluster c")) {
            lab.upgrade_step("c", NodePhase::Ready);
            if seen.last() != Some(&images(&lab)) {
                seen.push(images(&lab));
            }
            assert!(seen.len() < 20, "{seen:?}");
        }
        // All pools at once, each with a surge node of the new kind.
        let (expected, last) = if has_pod_subnet {
            (["aac", "cac", "ccc"], "cc")
        } else {
            (["aacac", "caccc", "ccccc"], "ccc")
        };
        assert_eq!(seen, expected, "{mode:?}");
        lab.up("c", NodePhase::Ready);
        assert_eq!(images(&lab), last);
        assert_eq!(addresses(&lab), before, "{mode:?}");
        assert_eq!((lab.held("v/nodes"), lab.held("v/pods")), held, "{mode:?}");
    }
}

#[test]
fn a_pool_that_comes_later_has_cilium_at_once() {
    let mut lab = network();
    let overlay = put(NetworkMode::Overlay, 1, false);
    lab.cluster("c", PutCluster { dataplane: Some(Cilium), ..overlay }).unwrap();
    lab.up("c", NodePhase::Ready);
    lab.must(put_pool("c", pool_in("two", 2, "v/nodes")));
    assert_eq!(images(&lab), "ccc");
}

#[test]
fn surge_nodes_must_fit() {
    // 8 nodes of 31 addresses fill a /24, and none is left to stand in for one.
    let mut lab = network();
    lab.cluster("c", put(NetworkMode::Azure, 8, false)).unwrap();
    lab.up("c", NodePhase::Ready);
    let fault = lab.refused(put_cluster("c", to_cilium()));
    assert_eq!(fault.code, "InsufficientSubnetSize");
    assert_eq!(says(&lab), (Azure, None));
}

#[test]
fn security_needs_cilium_and_nothing_is_made_anew_for_it() {
    let ask = |security| PutCluster {
        advanced_networking: Some(AdvancedNetworking { observability: true, security }),
        ..PutCluster::default()
    };
    let mut lab = living(NetworkMode::Overlay, false);
    let fqdn = Some(AdvancedPolicies::Fqdn);
    check(
        &mut lab,
        ask(fqdn),
        Err((
            "InvalidParameter",
            "networkProfile.advancedNetworking.security.enabled",
            "The value of parameter networkProfile.advancedNetworking.security.enabled is invalid. Error details: It can be \
             enabled only with network dataplane cilium.",
        )),
    );
    // With Cilium in one update.
    let both = PutCluster { dataplane: Some(Cilium), ..ask(fqdn) };
    check(&mut lab, both, Ok((Cilium, Some(NetworkPolicy::Cilium))));
    lab.finish_upgrade("c");
    let advanced = |lab: &Lab| lab.region.clusters[&id("cluster c")].advanced_networking;
    assert_eq!(advanced(&lab), ask(fqdn).advanced_networking);
    lab.must(put_cluster("c", ask(None)));
    assert!(!lab.region.is_upgrading(&id("cluster c")));
    assert_eq!(advanced(&lab), ask(None).advanced_networking);
    assert!(advanced(&lab).unwrap().is_enabled());
    lab.up("c", NodePhase::Ready);
    lab.must(put_cluster("c", PutCluster::default()));
    assert_eq!(advanced(&lab), ask(None).advanced_networking, "what is not said stays");
}

#[test]
fn an_update_that_failed_goes_on_when_it_is_asked_for_again() {
    let mut lab = living(NetworkMode::Overlay, false);
    lab.must(put_cluster("c", to_cilium()));
    for _ in 0..4 {
        lab.upgrade_step("c", NodePhase::Ready);
    }
    // One is done, and the next one cannot be drained.
    assert_eq!(images(&lab), "cac");
    let fault = Fault::bad("PodDrainFailure", "Drain node failed.");
    lab.must(Command::Failed { target: id("cluster c"), fault });
    lab.up("c", NodePhase::Ready);
    assert_eq!((images(&lab).as_str(), says(&lab).0), ("ca", Cilium));
    // As `az` does: with all that there is.
    let again = PutCluster {
        policy: Some(NetworkPolicy::Cilium),
        pools: vec![pool("nodepool1", 2)],
        ..to_cilium()
    };
    lab.must(put_cluster("c", again));
    assert!(lab.region.is_upgrading(&id("cluster c")));
    lab.finish_upgrade("c");
    assert_eq!(images(&lab), "cc");
}

/// Older versions of the lab did not write down what nodes were made from.
#[test]
fn nodes_of_which_nothing_is_written_get_cilium_too() {
    let mut lab = living(NetworkMode::Overlay, false);
    for (id, machine) in &lab.region.machines.clone() {
        let mut machine = machine.as_ref().clone();
        let Role::Node(node) = &mut machine.role else { continue };
        node.image = None;
        lab.region.machines.insert(id.clone(), Arc::new(machine));
    }
    lab.must(put_cluster("c", to_cilium()));
    assert_eq!(images(&lab), "aac");
    lab.finish_upgrade("c");
    assert_eq!(images(&lab), "cc");
}

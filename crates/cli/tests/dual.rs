//! Dual-stack clusters: nodes, pods and services with an address of each family, without Kubernetes and with it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(dead_code, reason = "the laboratory is shared")]

mod lab;

use std::net::IpAddr;

use lab::{
    TestLab, eventually, is_cilium_installed,
    packets::{jsonpath, run_pod, wait_for_pods},
};
use serde_json::{Value, json};

const DUAL: &str = "--ip-families ipv4,ipv6 --no-ssh-key";
const OVERLAY: &str = "--network-plugin azure --network-plugin-mode overlay";
/// An address that only the lab's internet has.
const OUTSIDE: &str = "2001:db8:203::9";

/// The public addresses of a family in a group.
fn publics(lab: &TestLab, group: &str, version: &str) -> Vec<String> {
    let all = lab.az(&format!("network public-ip list -g {group}")).json();
    let of_version =
        all.as_array().unwrap().iter().filter(|it| it["publicIPAddressVersion"] == version);
    of_version.map(|it| it["ipAddress"].as_str().unwrap().to_owned()).collect()
}

/// The pod that answers at an address, and the caller that it saw.
fn heard(lab: &TestLab, from: &str, to: &str) -> Option<(String, String)> {
    let said = lab.exec(from, &format!("curl -s --max-time 3 http://[{to}]/")).stdout();
    let field = |name: &str| {
        let mut words = said.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)).map(str::to_owned)
    };
    let (caller, _) =
        field("caller=")?.rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    Some((field("pod=")?, caller.trim_matches(['[', ']']).to_owned()))
}

#[test]
fn clusters_without_kubernetes() {
    let lab = TestLab::up_with(&["--nodes", "network-only"]);
    lab.az("group create -n rg -l eastus").succeeds();
    refusals(&lab);
    for (name, plugin) in [("overlay", OVERLAY), ("kubenet", "--network-plugin kubenet")] {
        lab.az(&format!("aks create -g rg -n {name} {plugin} {DUAL} --node-count 2")).succeeds();
        let shown = lab.az(&format!("aks show -g rg -n {name}")).json();
        let profile = &shown["networkProfile"];
        assert_eq!(profile["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(profile["podCidr"], "10.244.0.0/16");
        assert_eq!(profile["podCidrs"], json!(["10.244.0.0/16", "fd12:3456:789a::/64"]));
        assert_eq!(profile["serviceCidrs"], json!(["10.0.0.0/16", "fd12:3456:789a:1::/108"]));
        assert_eq!(
            profile["loadBalancerProfile"]["managedOutboundIPs"],
            json!({ "count": 1, "countIpv6": 1 })
        );
        let status = lab.aksnet(&["status", "-o", "json"]).json();
        let clusters = status["clusters"].as_array().unwrap();
        let cluster = clusters.iter().find(|it| it["name"] == name).unwrap();
        let nodes: Vec<&str> = cluster["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node["name"].as_str().unwrap())
            .collect();
        for (pod, node) in [("a", 0), ("b", 0), ("c", 1)] {
            lab.aksnet(&["pod", "run", pod, "-c", name, "--node", nodes[node]]).succeeds();
        }
        let list = lab.aksnet(&["pod", "list", "-o", "json"]).json();
        let six = |pod: &str| {
            let all: &Vec<Value> = list["pods"].as_array().unwrap();
            let it = all.iter().find(|it| it["name"] == pod && it["cluster"] == name).unwrap();
            it["addressIPv6"].as_str().unwrap().to_owned()
        };
        let (a, b, c) = (six("a"), six("b"), six("c"));
        let from = |pod: &str| format!("{name}:{pod}");
        for (pod, to) in [("b", &b), ("c", &c)] {
            assert_eq!(
                heard(&lab, &from("a"), to),
                Some((pod.to_owned(), a.clone())),
                "{name}: a to {pod}"
            );
            assert_eq!(
                heard(&lab, &from(pod), &a),
                Some(("a".to_owned(), to.clone())),
                "{name}: {pod} to a"
            );
        }
        let outside = lab.exec(&from("a"), &format!("curl -s --max-time 5 http://[{OUTSIDE}]/"));
        let group = format!("MC_rg_{name}_eastus");
        assert_eq!(publics(&lab, &group, "IPv6"), [outside.succeeds().trim()], "{name}: outside");
        let v4 = lab.exec(&from("a"), "curl -s --max-time 5 http://203.0.113.9/").succeeds();
        assert_eq!(publics(&lab, &group, "IPv4"), [v4.trim()], "{name}: outside by IPv4");
    }
    // Kubenet: a route per node and family, by the next hop of the same family.
    let tables = lab.az("network route-table list -g MC_rg_kubenet_eastus").json();
    let routes = tables[0]["routes"].as_array().unwrap();
    let of_v6 = routes.iter().filter(|it| it["addressPrefix"].as_str().unwrap().contains(':'));
    assert_eq!((routes.len(), of_v6.clone().count()), (4, 2), "{routes:?}");
    for route in of_v6 {
        let hop: IpAddr = route["nextHopIpAddress"].as_str().unwrap().parse().unwrap();
        assert!(hop.is_ipv6(), "{route}");
    }
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Refused by Azure's codes, before anything is made.
fn refusals(lab: &TestLab) {
    for (arguments, code) in [
        (format!("--network-plugin azure {DUAL}"), "UnsupportedDualStackNetworkPlugin"),
        (
            format!("{OVERLAY} {DUAL} --service-cidrs 10.0.0.0/16,fd12:3456:789a:1::/64"),
            "InvalidServiceCidrIPv6MaskSize",
        ),
        (format!("{OVERLAY} {DUAL} --pod-cidrs 10.244.0.0/16"), "InvalidParameter"),
        (
            format!("{OVERLAY} {DUAL} --pod-cidrs fd12:3456:789a::/64,10.244.0.0/16"),
            "UnexpectedIPVersionCIDR",
        ),
    ] {
        let said = lab.az(&format!("aks create -g rg -n no {arguments} --node-count 1")).fails();
        assert!(said.contains(code), "{arguments}: {said}");
    }
    assert_eq!(lab.az("aks list").json(), json!([]));
}

/// A server of both families that says who called it, and a call.
const ECHO: &str = "import socket\n\
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
s.bind(('::', 9000)); s.listen(16)\n\
while True:\n    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()\n";

fn seen(lab: &TestLab, from: &str, to: &str) -> String {
    let line = format!(
        "python3 -c \"import socket; s = socket.create_connection(('{to}', 9000), 3); print(s.recv(64).decode(), end='')\""
    );
    lab.exec(from, &line).stdout()
}

/// What the echo at an address says of a caller on the internet that has this one.
fn seen_on_the_internet(lab: &TestLab, caller: &str, to: &str) -> String {
    // IP_FREEBIND: the internet has every address, and none on a link.
    let (family, option) =
        if caller.contains(':') { ("AF_INET6", "41, 78") } else { ("AF_INET", "0, 15") };
    let line = format!(
        "import socket; s = socket.socket(socket.{family}); s.setsockopt({option}, 1); s.bind(('{caller}', 0)); \
         s.settimeout(2); s.connect(('{to}', 9000)); print(s.recv(64).decode(), end='')"
    );
    let internet = format!("{}-internet", lab.name());
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", &internet, "python3", "-c", &line])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim_start_matches("::ffff:").to_owned()
}

fn apply_service(lab: &TestLab, name: &str, policy: &str, annotations: &Value, spec: &Value) {
    let mut service = json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "type": "LoadBalancer", "ipFamilyPolicy": policy, "selector": { "app": "c" },
            "ports": [{ "port": 9000 }] } });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    lab.apply("dual", &service.to_string());
}

/// The addresses that a Service shows, once there are so many.
fn fronts(lab: &TestLab, name: &str, n: usize) -> Vec<String> {
    let mut found = Vec::new();
    eventually(&format!("{name} has {n} addresses"), || {
        let path = ".status.loadBalancer.ingress[*].ip";
        let text = jsonpath(lab, "dual", &format!("service {name}"), path);
        found = text.split_whitespace().map(str::to_owned).collect();
        found.len() == n
    });
    found
}

/// Services with front ends of IPv6: public and internal ones, of one family and of both. `c`, which echoes, is on
/// `node`.
fn balanced(lab: &TestLab, node: &str) {
    const GROUP: &str = "MC_rg_dual_eastus";
    const V4: &str = "9.9.9.9";
    const V6: &str = "2a00::9";
    let outbound = publics(lab, GROUP, "IPv6");
    apply_service(lab, "six", "SingleStack", &json!({}), &json!({ "ipFamilies": ["IPv6"] }));
    let local = json!({ "externalTrafficPolicy": "Local" });
    apply_service(lab, "both", "RequireDualStack", &json!({}), &local);
    let internal = json!({ "service.beta.kubernetes.io/azure-load-balancer-internal": "true" });
    apply_service(lab, "inside", "RequireDualStack", &internal, &json!({}));
    let (six, both, inside) =
        (fronts(lab, "six", 1), fronts(lab, "both", 2), fronts(lab, "inside", 2));
    let mut expected = [outbound.clone(), six.clone(), both[1..].to_vec()].concat();
    let mut found = publics(lab, GROUP, "IPv6");
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert!(publics(lab, GROUP, "IPv4").contains(&both[0]), "{both:?}");

    // Whichever node takes it, and with a node's address where the policy is `Cluster`.
    eventually("six answers", || !seen_on_the_internet(lab, V6, &six[0]).is_empty());
    let path = ".status.addresses[?(@.type=='InternalIP')].address";
    let own = jsonpath(lab, "dual", "nodes", &format!(".items[*]{path}"));
    for _ in 0..6 {
        let seen = seen_on_the_internet(lab, V6, &six[0]);
        assert!(own.split_whitespace().any(|node| node == seen), "{seen} of {own}");
    }
    // By the node that has the pod alone, and with the caller's own.
    eventually("both answers", || {
        seen_on_the_internet(lab, V4, &both[0]) == V4
            && seen_on_the_internet(lab, V6, &both[1]) == V6
    });
    for _ in 0..6 {
        assert_eq!(seen_on_the_internet(lab, V6, &both[1]), V6, "by {node}");
    }

    // From inside, by a VM of the cluster's network.
    let vnet = lab.az(&format!("network vnet list -g {GROUP}")).json();
    let subnet = vnet[0]["subnets"][0]["id"].as_str().unwrap();
    lab.az(&format!(
        "vm create -g rg -n client --image Ubuntu2204 --admin-username u --admin-password Passw0rd.1234 \
         --subnet {subnet} --public-ip-address= --nsg="
    ))
    .succeeds();
    lab.az(&format!(
        "network nic ip-config create -g rg --nic-name clientVMNic -n six --private-ip-address-version IPv6 \
         --subnet {subnet}"
    ))
    .succeeds();
    for front in &inside {
        eventually("inside answers", || !seen(lab, "client", front).is_empty());
    }
    let trace =
        lab.aksnet(&["trace", "vm/client", &inside[1], "--port", "9000", "-o", "json"]).json();
    assert_eq!(
        (&trace["verdict"], &trace["agree"]),
        (&json!("answered"), &json!(true)),
        "{trace:#}"
    );
    let to_pod = jsonpath(lab, "dual", "pod c", ".status.podIPs[1].ip");
    let trace =
        lab.aksnet(&["trace", "pod/default/a", &to_pod, "--port", "9000", "-o", "json"]).json();
    assert_eq!(
        (&trace["verdict"], &trace["agree"]),
        (&json!("answered"), &json!(true)),
        "{trace:#}"
    );
    let balancer = lab.az(&format!("network lb show -g {GROUP} -n kubernetes-internal")).json();
    let rules = balancer["loadBalancingRules"].as_array().unwrap();
    let floating = |it: &Value| {
        (it["name"].as_str().unwrap().ends_with("-IPv6"), it["enableFloatingIP"].clone())
    };
    let floating: Vec<_> = rules.iter().map(floating).collect();
    assert_eq!(floating, [(false, json!(true)), (true, json!(false))]);

    // One that becomes dual-stack, and one that is so no longer.
    apply_service(lab, "six", "RequireDualStack", &json!({}), &json!({ "ipFamilies": ["IPv6"] }));
    apply_service(lab, "both", "SingleStack", &json!({}), &json!({ "ipFamilies": ["IPv4"] }));
    let (six, both) = (fronts(lab, "six", 2), fronts(lab, "both", 1));
    eventually("they answer", || {
        [(V4, &six[0]), (V6, &six[1]), (V4, &both[0])]
            .iter()
            .all(|(caller, to)| !seen_on_the_internet(lab, caller, to).is_empty())
    });
    let mut expected = [outbound.clone(), vec![six[1].clone()]].concat();
    let mut found = publics(lab, GROUP, "IPv6");
    expected.sort();
    found.sort();
    assert_eq!(found, expected);

    lab.kubectl("dual", "delete service six both inside").succeeds();
    assert_eq!(publics(lab, GROUP, "IPv6"), outbound);
    let balancers = lab.az(&format!("network lb list -g {GROUP}")).json();
    assert_eq!(balancers.as_array().unwrap().len(), 1);
    assert_eq!(balancers[0]["loadBalancingRules"], json!([]));
    eventually("nobody is let in", || {
        let groups = lab.az(&format!("network nsg list -g {GROUP}")).json();
        groups[0]["securityRules"] == json!([])
    });
}

#[test]
fn a_cluster_of_kubernetes() {
    kubernetes("", |_| {});
}

#[test]
fn a_cluster_powered_by_cilium() {
    if is_cilium_installed() {
        kubernetes("--network-dataplane cilium", policies);
    }
}

/// Policies hold for IPv6 as for IPv4: of `a`, `b` and `c`, which echoes.
fn policies(lab: &TestLab) {
    let both = jsonpath(lab, "dual", "pod c", ".status.podIPs[*].ip");
    let both: Vec<&str> = both.split_whitespace().collect();
    let heard = |from: &str| {
        let from = format!("dual:default/{from}");
        [0, 1].map(|it| !seen(lab, &from, both[it]).is_empty())
    };
    let policy = |name: &str, spec: &Value| {
        let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name }, "spec": spec });
        lab.apply("dual", &policy.to_string());
    };
    let of = |app: &str| json!({ "matchLabels": { "app": app } });
    let everyone = json!([{ "from": [{ "ipBlock": { "cidr": "::/0" } }, { "ipBlock": { "cidr": "0.0.0.0/0" } }] }]);
    policy("everyone", &json!({ "podSelector": of("c"), "ingress": everyone }));
    eventually("an ipBlock selects no pod", || [heard("a"), heard("b")] == [[false; 2]; 2]);
    policy(
        "from-a",
        &json!({ "podSelector": of("c"), "ingress": [{ "from": [{ "podSelector": of("a") }] }] }),
    );
    eventually("one is let in", || heard("a") == [true; 2]);
    assert_eq!(heard("b"), [false; 2]);
    let trace = |from: &str| lab.aksnet(&["trace", from, both[1], "--port", "9000"]);
    let said = trace("dual:default/b");
    let text = said.stdout();
    let denies = "by `NetworkPolicy default/everyone, NetworkPolicy default/from-a` (Cilium, ingress of default/c)";
    assert!(!said.success() && text.contains(denies), "{text}");
    let text = trace("dual:default/a").succeeds();
    let allows = "Cilium, ingress of default/c: NetworkPolicy default/from-a allows";
    assert!(text.contains(allows), "{text}");

    let reaches = |address: &str| {
        let line = format!("curl -s --max-time 2 -o /dev/null http://{address}/");
        lab.exec("dual:default/b", &line).success()
    };
    let outside = format!("[{OUTSIDE}]");
    policy(
        "out",
        &json!({ "podSelector": of("b"), "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "ipBlock": { "cidr": "2001:db8:203::/64" } }] }] }),
    );
    eventually("one block is let out to", || {
        reaches(&outside) && !reaches("[2001:db8:204::9]") && !reaches("203.0.113.9")
    });
    lab.kubectl("dual", "delete networkpolicy --all").succeeds();
    eventually("all are let through", || [heard("a"), heard("b")] == [[true; 2]; 2]);
    eventually("all are let out", || reaches("[2001:db8:204::9]") && reaches("203.0.113.9"));
}

/// A cluster of two nodes with these arguments, its pods and services; `more` is done before services of type `LoadBalancer`.
fn kubernetes(arguments: &str, more: impl FnOnce(&TestLab)) {
    let lab = TestLab::up();
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az(&format!("aks create -g rg -n dual {OVERLAY} {DUAL} --node-count 2 {arguments}"))
        .succeeds();
    lab.az("aks get-credentials -g rg -n dual").succeeds();
    let nodes = jsonpath(&lab, "dual", "nodes", ".items[*].metadata.name");
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    for node in &nodes {
        let ranges = jsonpath(&lab, "dual", &format!("node {node}"), ".spec.podCIDRs");
        let ranges: Vec<String> = serde_json::from_str(&ranges).unwrap();
        assert!(ranges.len() == 2 && ranges[1].starts_with("fd12:3456:789a:"), "{ranges:?}");
        let path = ".status.addresses[?(@.type=='InternalIP')].address";
        let addresses = jsonpath(&lab, "dual", &format!("node {node}"), path);
        assert_eq!(addresses.split_whitespace().count(), 2, "{addresses}");
    }
    run_pod(&lab, "dual", "a", nodes[0]);
    run_pod(&lab, "dual", "b", nodes[0]);
    run_pod(&lab, "dual", "c", nodes[1]);
    wait_for_pods(&lab, "dual");
    let six = |pod: &str| {
        let both = jsonpath(&lab, "dual", &format!("pod {pod}"), ".status.podIPs[*].ip");
        let both: Vec<IpAddr> = both.split_whitespace().map(|it| it.parse().unwrap()).collect();
        assert!(both.len() == 2 && both[0].is_ipv4() && both[1].is_ipv6(), "{both:?}");
        both[1].to_string()
    };
    let (a, b, c) = (six("a"), six("b"), six("c"));
    let pod = |name: &str| format!("dual:default/{name}");
    let mut echoes: Vec<_> = ["b", "c"]
        .map(|it| lab.exec_in_background(&pod(it), &format!("exec python3 -c \"{ECHO}\"")))
        .into();
    eventually("both echo", || {
        [("b", &b), ("c", &c)].iter().all(|(it, to)| !seen(&lab, &pod(it), to).is_empty())
    });
    assert_eq!(seen(&lab, &pod("a"), &b), a, "pod to pod on its node");
    let capture = lab.exec_in_background(
        nodes[1],
        &format!("timeout 20 tcpdump -lnni eth0 -c 1 'ip6 dst host {c} and tcp dst port 9000'"),
    );
    let capture = std::thread::spawn(move || capture.wait_with_output().unwrap());
    while !capture.is_finished() {
        assert_eq!(seen(&lab, &pod("a"), &c), a, "pod to pod on another node");
    }
    let captured = String::from_utf8_lossy(&capture.join().unwrap().stdout).into_owned();
    assert!(
        captured.contains(&format!("IP6 {a}.")) && captured.contains(&format!("> {c}.9000:")),
        "{captured}"
    );

    lab.apply(
        "dual",
        "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"echo\"},\
        \"spec\":{\"selector\":{\"app\":\"c\"},\"ipFamilyPolicy\":\"RequireDualStack\",\
        \"ports\":[{\"port\":9000}]}}",
    );
    let services = jsonpath(&lab, "dual", "service echo", ".spec.clusterIPs[*]");
    let services: Vec<&str> = services.split_whitespace().collect();
    assert!(services.len() == 2 && services[1].starts_with("fd12:3456:789a:1::"), "{services:?}");
    for service in services {
        eventually("the service is programmed", || !seen(&lab, &pod("a"), service).is_empty());
    }
    let outside = lab.exec(&pod("a"), &format!("curl -s --max-time 5 http://[{OUTSIDE}]/"));
    assert_eq!(publics(&lab, "MC_rg_dual_eastus", "IPv6"), [outside.succeeds().trim()], "outside");
    more(&lab);
    balanced(&lab, nodes[1]);
    for echo in &mut echoes {
        let _ =
            std::process::Command::new("pkill").args(["-9", "-P", &echo.id().to_string()]).status();
        let _ = echo.kill();
        let _ = echo.wait();
    }
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

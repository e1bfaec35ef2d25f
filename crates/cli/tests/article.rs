//! The article from end to end: real az, real Kubernetes, real packets. One lab, played once, looked at from all sides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(clippy::print_stdout, reason = "the tour, as it was played")]

mod lab;

use lab::{
    TestLab, eventually,
    packets::{Echo, Mode, Seen, jsonpath, run_pod, seen_from, table, wait_for_pods},
};

#[test]
fn the_article_from_end_to_end() {
    let lab = TestLab::up();

    // Every command of the article, every answer compared.
    let tour = lab.aksnet(&["tour"]);
    println!("{}{}", tour.stdout(), tour.stderr());
    assert!(tour.success(), "the tour was not as the article has it");

    // Played again, it finds everything there and changes nothing.
    lab.aksnet(&["tour"]).succeeds();

    let subnet =
        lab.az("network vnet subnet show --vnet-name aks-vnet3 -n ilb-subnet -g aksntwdemo").json();
    let front_end = subnet["ipConfigurations"][0]["id"].as_str().unwrap_or_default();
    assert!(
        front_end.contains("/loadBalancers/kubernetes-internal/frontendIPConfigurations/"),
        "{front_end}"
    );

    // Pods of the pod subnet hold addresses of it.
    let status = lab.aksnet(&["status", "-o", "json"]).json();
    let pods = status["subnets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|subnet| subnet["name"] == "subnet-pods")
        .unwrap();
    assert_eq!(pods["held"].as_u64().unwrap() % 16, 0, "whole batches: {pods}");
    assert!(pods["held"].as_u64().unwrap() >= 48, "a batch per node: {pods}");

    let make = |vm: &str, vnet: &str, subnet: &str| {
        lab.aksnet(&["vm", "create", vm, "-g", "aksntwdemo", "--vnet", vnet, "--subnet", subnet])
            .succeeds();
    };
    make("vm10", "aks-vnet2", "subnet-aks");
    // A subnet without kubenet's route table: those with it know the way to pods.
    make("vm12", "aks-vnet3", "ilb-subnet");
    for mode in [
        Mode {
            group: "aksntwdemo",
            cluster: "aks-ntwdemo12",
            vm_sees: Seen::Node,
            pod_sees_vm: false,
        },
        Mode {
            group: "aksntwdemo",
            cluster: "aks-ntwdemo10",
            vm_sees: Seen::Pod,
            pod_sees_vm: true,
        },
    ] {
        let vm = if mode.cluster == "aks-ntwdemo12" { "vm12" } else { "vm10" };
        table(&lab, &mode, vm);
    }

    balancers_heal(&lab);

    // A crash of the daemon disturbs nothing that runs, and the next `up` goes on from there.
    let before = jsonpath(&lab, "aks-ntwdemo12", "pods -n testns", ".items[*].metadata.uid");
    lab.kill();
    let ilb = lab.exec("jump", "curl -s --max-time 5 http://172.20.0.132/ | head -5");
    assert!(!ilb.success(), "`exec` asks the daemon, which is dead");
    lab.aksnet(&["up"]).succeeds();
    eventually("the API server answers again", || {
        lab.kubectl("aks-ntwdemo12", "get --raw /readyz").success()
    });
    assert_eq!(jsonpath(&lab, "aks-ntwdemo12", "pods -n testns", ".items[*].metadata.uid"), before);
    let page = lab.exec("jump", "curl -s --max-time 5 http://172.20.0.132/").succeeds();
    assert!(page.contains("Welcome to nginx!"));

    bring_your_own(&lab);

    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// A Service that asks for what is not there says so, and gets it as soon as it is.
fn balancers_heal(lab: &TestLab) {
    let cluster = "aks-ntwdemo12";
    let make = |name: &str| {
        lab.apply(cluster, &format!("{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"{name}\",\
            \"annotations\":{{\"service.beta.kubernetes.io/azure-load-balancer-internal\":\"true\",\
            \"service.beta.kubernetes.io/azure-load-balancer-internal-subnet\":\"late-subnet\"}}}},\
            \"spec\":{{\"type\":\"LoadBalancer\",\"selector\":{{\"app\":\"c\"}},\"ports\":[{{\"port\":9000}}]}}}}"));
    };
    let address = |name: &str| {
        jsonpath(lab, cluster, &format!("service {name}"), ".status.loadBalancer.ingress[0].ip")
    };
    let says = |name: &str, text: &str| {
        eventually(&format!("service {name} says `{text}`"), || {
            let events = lab.kubectl(cluster, &format!("get events --field-selector reason=SyncLoadBalancerFailed,involvedObject.name={name}"));
            events.stdout().contains(text)
        });
    };
    make("first");
    says("first", "failed to get subnet: aks-vnet3/late-subnet");
    assert_eq!(address("first"), "");
    lab.az("network vnet subnet create -n late-subnet -g aksntwdemo --vnet-name aks-vnet3 --address-prefixes 172.20.0.192/29").succeeds();
    eventually("the first service has its address", || address("first") == "172.20.0.196");

    // A /29 has three addresses.
    for (name, expected) in [("second", "172.20.0.197"), ("third", "172.20.0.198")] {
        make(name);
        eventually(&format!("the {name} service has its address"), || address(name) == expected);
    }
    make("fourth");
    says("fourth", "SubnetIsFull");
    lab.kubectl(cluster, "delete service second").succeeds();
    eventually("the fourth service has the second's address", || {
        address("fourth") == "172.20.0.197"
    });
    for name in ["first", "third", "fourth"] {
        lab.kubectl(cluster, &format!("delete service {name}")).succeeds();
    }
    lab.az("network vnet subnet delete -n late-subnet -g aksntwdemo --vnet-name aks-vnet3")
        .succeeds();
}

/// On the cluster without a network: Debian's reference plugins and a configuration of one's own, brought by a
/// `DaemonSet` as any network provider brings its own.
fn bring_your_own(lab: &TestLab) {
    let cluster = "aks-ntwdemo8";
    let node = jsonpath(lab, cluster, "nodes", ".items[0].metadata.name");
    assert_eq!(node_ready(lab, cluster), "False");
    let archive = std::env::temp_dir().join(format!("{}-plugins.tar", lab.name()));
    let made = std::process::Command::new("python3")
        .args(["-c", IMAGE, archive.to_str().unwrap()])
        .status()
        .unwrap();
    assert!(made.success());
    let imported = lab.aksnet(&["image", "import", archive.to_str().unwrap()]).succeeds();
    assert!(imported.contains("own-plugins:1"), "{imported}");
    std::fs::remove_file(&archive).unwrap();
    lab.apply(cluster, OWN_NETWORK);
    eventually("the node is Ready", || node_ready(lab, cluster) == "True");
    run_pod(lab, cluster, "a", &node);
    run_pod(lab, cluster, "b", &node);
    wait_for_pods(lab, cluster);
    let b = jsonpath(lab, cluster, "pod b", ".status.podIP");
    let _echo = Echo::start(lab, &format!("{cluster}:default/b"), &b);
    let a = jsonpath(lab, cluster, "pod a", ".status.podIP");
    assert_eq!(seen_from(lab, &format!("{cluster}:default/a"), &b), a);
}

fn node_ready(lab: &TestLab, cluster: &str) -> String {
    jsonpath(lab, cluster, "nodes", ".items[0].status.conditions[?(@.type==\"Ready\")].status")
}

/// Makes an image archive as `docker save` does, of Debian's busybox and reference plugins.
const IMAGE: &str = r"
import hashlib, io, json, sys, tarfile
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode='w') as tar:
    tar.add('/bin/busybox', 'bin/busybox')
    for plugin in ('bridge', 'host-local', 'loopback'):
        tar.add('/usr/lib/cni/' + plugin, 'plugins/' + plugin)
layer = layer.getvalue()
digest = hashlib.sha256(layer).hexdigest()
config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {},
    'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + digest]}}).encode()
name = hashlib.sha256(config).hexdigest() + '.json'
manifest = json.dumps([{'Config': name, 'RepoTags': ['own-plugins:1'], 'Layers': ['layer.tar']}]).encode()
with tarfile.open(sys.argv[1], 'w') as tar:
    for path, data in ((name, config), ('layer.tar', layer), ('manifest.json', manifest)):
        entry = tarfile.TarInfo(path)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
";

const OWN_NETWORK: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: own-network, namespace: kube-system }
data:
  10-own.conflist: |
    {"cniVersion": "0.4.0", "name": "own", "plugins": [{"type": "bridge", "bridge": "own0", "isGateway": true,
      "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: own-network, namespace: kube-system }
spec:
  selector: { matchLabels: { app: own-network } }
  template:
    metadata: { labels: { app: own-network } }
    spec:
      hostNetwork: true
      tolerations: [{ operator: Exists }]
      terminationGracePeriodSeconds: 0
      containers:
      - name: install
        image: own-plugins:1
        command: [/bin/busybox, sh, -c, "/bin/busybox cp /plugins/* /host/bin/ && /bin/busybox cp /config/10-own.conflist /host/net.d/ && exec /bin/busybox sleep 1000000"]
        volumeMounts:
        - { name: bin, mountPath: /host/bin }
        - { name: net, mountPath: /host/net.d }
        - { name: config, mountPath: /config }
      volumes:
      - { name: bin, hostPath: { path: /opt/cni/bin } }
      - { name: net, hostPath: { path: /etc/cni/net.d } }
      - { name: config, configMap: { name: own-network } }
"#;

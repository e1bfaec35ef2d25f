//! The plugin as a runtime meets it: verb by version, input that is wrong, an agent that is away.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Cursor,
    os::unix::{ffi::OsStringExt, net::UnixListener},
    path::Path,
    thread,
};

use cni::{
    plugin::{self, Outcome},
    queue,
    spec::{Verb, Version},
    talk::{self, Added, Address, Attachment, Interface, Line, Reply, Request, Route},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use vnet::pods::ports::Bandwidth;

/// A call of the plugin that is right in every respect until something is changed.
struct Call {
    directory: TempDir,
    environment: BTreeMap<String, OsString>,
    config: Value,
}

impl Call {
    fn new(verb: &str, version: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("agent.sock");
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/c0ffee"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"),
        ];
        let environment =
            environment.map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect();
        let mut config = json!({
            "cniVersion": version, "name": "azure", "type": "aksnet-cni", "agentSocket": socket,
        });
        if verb == "CHECK" {
            config["prevResult"] = json!({
                "interfaces": [{ "name": "azv1" }, { "name": "eth0", "sandbox": "/run/netns/c0ffee" }],
                "ips": [{ "interface": 1, "address": "10.244.1.5/32" }],
            });
        }
        if verb == "GC" {
            config["cni.dev/valid-attachments"] = json!([{ "containerID": "c", "ifname": "eth0" }]);
        }
        Self { directory, environment, config }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn run(&self) -> Outcome {
        self.run_with(self.config.to_string().as_bytes())
    }

    fn run_with(&self, input: &[u8]) -> Outcome {
        plugin::run(&|name| self.environment.get(name).cloned(), &mut Cursor::new(input))
    }

    /// Runs with an agent that answers once, and says what it was asked.
    fn run_against(&self, reply: Reply) -> (Outcome, Request) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let line: Line =
                serde_json::from_slice(&talk::read_line(&mut stream).unwrap()).unwrap();
            talk::write_line(&mut stream, &reply).unwrap();
            line.request
        });
        let outcome = self.run();
        (outcome, agent.join().unwrap())
    }

    /// The code and details of a refusal, which must have asked nobody and left nothing.
    fn refusal(&self) -> (u64, String) {
        self.refusal_with(self.config.to_string().as_bytes())
    }

    fn refusal_with(&self, input: &[u8]) -> (u64, String) {
        let outcome = self.run_with(input);
        assert!(!outcome.success, "{outcome:?}");
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 0, "something is left");
        let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let text = |key: &str| error[key].as_str().unwrap().to_owned();
        assert!(!text("msg").is_empty() && !text("cniVersion").is_empty(), "{error}");
        (error["code"].as_u64().unwrap(), text("details"))
    }
}

fn added() -> Added {
    let interface = |name: &str, in_container| Interface {
        name: name.to_owned(),
        mac: "aa:aa:aa:aa:aa:aa".to_owned(),
        mtu: 1500,
        in_container,
    };
    let gateway = [169, 254, 1, 1].into();
    Added {
        interfaces: vec![interface("azv1", false), interface("eth0", true)],
        addresses: vec![Address { interface: 1, address: "10.244.1.5/32".to_owned(), gateway }],
        routes: vec![Route { destination: "0.0.0.0/0".to_owned(), gateway: Some(gateway) }],
    }
}

#[test]
fn every_version_has_its_own_result() {
    for version in Version::ALL {
        let (outcome, request) =
            Call::new("ADD", version.as_str()).run_against(Reply::Added(added()));
        assert!(outcome.success, "{outcome:?}");
        let Request::Add { attachment, netns, pod, .. } = request else { panic!("{request:?}") };
        assert_eq!(
            (attachment.container.as_str(), netns.as_str()),
            ("c0ffee", "/run/netns/c0ffee")
        );
        assert_eq!(pod.unwrap().name, "web-0");
        let mut interfaces = json!([
            { "name": "azv1", "mac": "aa:aa:aa:aa:aa:aa" },
            { "name": "eth0", "mac": "aa:aa:aa:aa:aa:aa", "sandbox": "/run/netns/c0ffee" },
        ]);
        let mut address =
            json!({ "interface": 1, "address": "10.244.1.5/32", "gateway": "169.254.1.1" });
        if version < Version::V1_0_0 {
            address["version"] = "4".into();
        }
        if version >= Version::V1_1_0 {
            interfaces[0]["mtu"] = 1500.into();
            interfaces[1]["mtu"] = 1500.into();
        }
        let expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": [address],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            "dns": {},
        });
        let oldest = json!({
            "cniVersion": version.as_str(),
            "ip4": {
                "ip": "10.244.1.5/32",
                "gateway": "169.254.1.1",
                "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            },
        });
        let expected = if version < Version::V0_3_0 { oldest } else { expected };
        assert_eq!(serde_json::from_str::<Value>(&outcome.stdout).unwrap(), expected, "{version}");
    }
}

/// A row per verb: what it answers, and the oldest version that has it.
#[test]
fn every_verb_in_every_version() {
    for verb in Verb::ALL {
        for version in Version::ALL {
            let call = Call::new(verb.as_str(), version.as_str());
            let since = match verb {
                Verb::Check => Version::V0_4_0,
                Verb::Gc | Verb::Status => Version::V1_1_0,
                Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
            };
            if version < since {
                let (code, details) = call.refusal();
                assert_eq!(code, 1);
                assert!(details.ends_with(&format!("exists since {since}")), "{details}");
                continue;
            }
            let expected = match verb {
                Verb::Version => {
                    let outcome = call.run();
                    let answer: Value = serde_json::from_str(&outcome.stdout).unwrap();
                    assert_eq!(answer["cniVersion"], version.as_str());
                    assert_eq!(
                        answer["supportedVersions"],
                        json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
                    );
                    continue;
                }
                Verb::Add => Reply::Added(added()),
                Verb::Del | Verb::Check | Verb::Gc | Verb::Status => Reply::Done,
            };
            let (outcome, request) = call.run_against(expected);
            assert!(outcome.success, "{verb:?} {version}: {outcome:?}");
            assert_eq!(outcome.stdout.is_empty(), verb != Verb::Add, "{outcome:?}");
            match (verb, request) {
                (Verb::Add, Request::Add { .. })
                | (Verb::Del, Request::Del { .. })
                | (Verb::Status, Request::Status) => (),
                (Verb::Check, Request::Check { addresses, .. }) => {
                    assert_eq!(addresses, ["10.244.1.5"]);
                }
                (Verb::Gc, Request::Gc { keep }) => assert_eq!(keep[0].container, "c"),
                (verb, request) => panic!("{verb:?} asked {request:?}"),
            }
        }
    }
}

#[test]
fn a_chained_plugin_adds_to_what_was_there() {
    // As Debian's bridge and ptp plugins write it in 0.4.0.
    let previous = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            { "name": "cni0", "mac": "00:00:00:00:00:01" },
            { "name": "veth1", "mac": "00:00:00:00:00:02" },
            { "name": "net0", "mac": "00:00:00:00:00:03", "sandbox": "/run/netns/c0ffee" },
        ],
        "ips": [{ "version": "4", "interface": 2, "address": "10.22.0.2/16", "gateway": "10.22.0.1" }],
        "routes": [{ "dst": "10.22.0.0/16" }],
        "dns": { "nameservers": ["10.0.0.10"] },
    });
    let call = Call::new("ADD", "0.4.0").config("prevResult", previous);
    let (outcome, _) = call.run_against(Reply::Added(added()));
    let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 5);
    assert_eq!(result["ips"][0]["interface"], 2);
    assert_eq!(result["ips"][1]["interface"], 4);
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
    assert_eq!(result["dns"]["nameservers"][0], "10.0.0.10");
}

#[test]
fn a_wrong_environment_is_refused_with_every_finding() {
    let long_id = "a".repeat(201);
    for (name, value) in [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", ".hidden"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a\n"),
        ("CNI_CONTAINERID", &long_id),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_IFNAME", "eth:0"),
        ("CNI_IFNAME", "sixteen-letters!"),
        ("CNI_IFNAME", "ä"),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "run/netns/a"),
        ("CNI_NETNS", "/run/netns/a\u{7}"),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_ARGS", "K8S_POD_NAME=../x;K8S_POD_NAMESPACE=default"),
    ] {
        let (code, details) = Call::new("ADD", "1.0.0").set(name, value).refusal();
        assert_eq!(code, 4, "{name}={value}");
        assert!(details.contains(name), "{name}={value}: {details}");
    }
    let call = Call::new("ADD", "1.0.0").without("CNI_CONTAINERID").without("CNI_IFNAME");
    let (_, details) = call.set("CNI_NETNS", "x").refusal();
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        assert!(details.contains(name), "{details}");
    }
    for verb in ["", "add", "REMOVE"] {
        assert_eq!(Call::new(verb, "1.0.0").refusal().0, 4, "{verb}");
    }
    let mut call = Call::new("ADD", "1.0.0");
    call.environment.insert("CNI_IFNAME".to_owned(), OsString::from_vec(vec![0xff, 0xfe]));
    assert_eq!(call.refusal().0, 4);
}

#[test]
fn a_wrong_configuration_is_refused() {
    let call = Call::new("ADD", "1.0.0");
    let huge = vec![b' '; (4 << 20) + 1];
    let deep = "[".repeat(100_000);
    for (input, code) in [
        (&b""[..], 6),
        (b"{", 6),
        (b"[]", 6),
        (b"null", 6),
        (b"\xff\xfe", 6),
        (deep.as_bytes(), 6),
        (b"{\"cniVersion\": 1, \"name\": \"x\"}", 6),
        (b"{\"cniVersion\": \"new\", \"name\": \"x\"}", 6),
        (b"{\"cniVersion\": \"0.0.9\", \"name\": \"x\"}", 1),
        (b"{\"cniVersion\": \"2.0.0\", \"name\": \"x\"}", 1),
        (b"{\"cniVersion\": \"1.0.0\"}", 7),
        (b"{\"cniVersion\": \"1.0.0\", \"name\": \"../x\"}", 7),
        (&huge, 7),
    ] {
        let beginning = String::from_utf8_lossy(&input[..input.len().min(60)]);
        assert_eq!(call.refusal_with(input).0, code, "{beginning}");
    }
    for (key, value) in [
        ("agentSocket", json!("relative.sock")),
        ("prevResult", json!([])),
        ("prevResult", json!({ "ips": {} })),
        ("prevResult", json!({ "ips": [{ "interface": 0 }] })),
        ("prevResult", json!({ "interfaces": [{}], "ips": [{ "interface": -1 }] })),
    ] {
        let call = Call::new("ADD", "1.0.0").config(key, value.clone());
        assert_eq!(call.refusal().0, 7, "{key} {value}");
    }
    assert_eq!(Call::new("CHECK", "1.0.0").config("prevResult", Value::Null).refusal().0, 7);
    let call = Call::new("GC", "1.1.0").config("cni.dev/valid-attachments", Value::Null);
    assert_eq!(call.refusal().0, 7);
}

#[test]
fn without_an_agent_add_is_to_be_tried_again_and_delete_is_queued() {
    assert_eq!(Call::new("ADD", "1.0.0").refusal().0, 11);
    assert_eq!(Call::new("CHECK", "1.0.0").refusal().0, 11);
    assert_eq!(Call::new("STATUS", "1.1.0").refusal().0, 50);
    let call = Call::new("DEL", "1.0.0").without("CNI_NETNS");
    for _ in 0..2 {
        assert_eq!(call.run(), Outcome { stdout: String::new(), success: true });
    }
    let directory = queue::directory(&call.socket());
    let wanted = Attachment { container: "c0ffee".to_owned(), interface: "eth0".to_owned() };
    assert_eq!(queue::list(&directory).unwrap(), std::slice::from_ref(&wanted));
    assert!(queue::has(&directory, &wanted));
    queue::remove(&directory, &wanted).unwrap();
    queue::remove(&directory, &wanted).unwrap();
    assert_eq!(queue::list(&directory).unwrap(), []);
}

#[test]
fn a_strangers_file_in_the_queue_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("rubbish", "{");
    write(".123.c:eth0", r#"{"container":"c","interface":"eth0"}"#);
    write("other:eth0", r#"{"container":"c","interface":"eth0"}"#);
    write("c:eth0", r#"{"container":"c","interface":"eth0"}"#);
    assert_eq!(queue::list(directory.path()).unwrap().len(), 1);
    assert_eq!(queue::list(Path::new("/nowhere/at/all")).unwrap(), []);
}

#[test]
fn an_agent_that_refuses_or_breaks_off_is_told_as_it_is() {
    let failed =
        Reply::Failed { code: 11, message: "later".to_owned(), details: "no address".to_owned() };
    let (outcome, _) = Call::new("ADD", "0.3.1").run_against(failed);
    let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(!outcome.success);
    assert_eq!(
        error,
        json!({ "cniVersion": "0.3.1", "code": 11, "msg": "later", "details": "no address" })
    );
    let (outcome, _) = Call::new("ADD", "1.0.0").run_against(Reply::Done);
    assert!(outcome.stdout.contains("\"code\":6"), "{outcome:?}");

    let call = Call::new("ADD", "1.0.0");
    let listener = UnixListener::bind(call.socket()).unwrap();
    let agent = thread::spawn(move || drop(listener.accept().unwrap()));
    let outcome = call.run();
    agent.join().unwrap();
    assert!(outcome.stdout.contains("\"code\":11"), "{outcome:?}");
}

#[test]
fn lines_of_the_protocol_are_stable() {
    let line = |request| serde_json::to_string(&Line { version: talk::VERSION, request }).unwrap();
    let attachment = Attachment { container: "c".to_owned(), interface: "eth0".to_owned() };
    assert_eq!(line(Request::Status), r#"{"version":1,"request":"status"}"#);
    assert_eq!(
        line(Request::Del { attachment: attachment.clone() }),
        r#"{"version":1,"request":{"del":{"attachment":{"container":"c","interface":"eth0"}}}}"#
    );
    assert_eq!(
        line(Request::Add {
            attachment,
            netns: "/n".to_owned(),
            pod: None,
            ports: Vec::new(),
            bandwidth: Bandwidth::default(),
        }),
        concat!(
            r#"{"version":1,"request":{"add":{"attachment":{"container":"c","interface":"eth0"},"#,
            r#""netns":"/n","pod":null}}}"#
        )
    );
    assert_eq!(serde_json::to_string(&Reply::Done).unwrap(), r#""done""#);
}

proptest! {
    /// Whatever is on stdin and in the environment: no panic, one JSON object or nothing, and
    /// nothing is left (the agent is away, so nothing but a DEL can succeed).
    #[test]
    fn hostile_input_is_survived(
        verb in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "X"]),
        id in ".{0,40}",
        interface in ".{0,20}",
        netns in ".{0,40}",
        arguments in ".{0,40}",
        key in prop::sample::select(vec!["name", "prevResult", "dns", "cniVersion", "other"]),
        value in any_json(),
    ) {
        let mut call = Call::new(verb, "1.1.0").config(key, value);
        for (name, value) in [
            ("CNI_CONTAINERID", id), ("CNI_IFNAME", interface), ("CNI_NETNS", netns), ("CNI_ARGS", arguments),
        ] {
            call = call.set(name, &value);
        }
        let outcome = call.run();
        if outcome.success {
            prop_assert!(verb == "DEL" || verb == "VERSION", "{:?}", outcome);
        } else {
            let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
            prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0));
            prop_assert_eq!(fs::read_dir(call.directory.path()).unwrap().count(), 0);
        }
    }
}

/// Any bytes that an environment can carry: all but NUL.
fn any_bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1..=u8::MAX, 0..longest)
}

proptest! {
    /// The same for every byte, in variables and in the configuration's text.
    #[test]
    fn hostile_bytes_are_survived(
        verb in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]),
        which in prop::sample::select(vec![
            "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH",
        ]),
        value in any_bytes(60),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut call = Call::new(verb, "1.1.0");
        call.environment.insert(which.to_owned(), OsString::from_vec(value));
        let mut input = serde_json::to_vec(&call.config).unwrap();
        // A release is queued beside the socket, wherever a damaged path leads.
        let is_damaged = verb != "DEL";
        for (at, byte) in damage.into_iter().filter(|_| is_damaged) {
            let at = at.index(input.len());
            input[at] = byte;
        }
        if let Some(cut) = cut.filter(|_| is_damaged) {
            input.truncate(cut.index(input.len()));
        }
        let outcome = call.run_with(&input);
        if outcome.success {
            prop_assert!(verb == "DEL" || verb == "VERSION" || which == "CNI_COMMAND", "{:?}", outcome);
        } else {
            let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
            prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0));
            prop_assert_eq!(fs::read_dir(call.directory.path()).unwrap().count(), 0);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let key = prop_oneof![
            Just("interfaces".to_owned()),
            Just("ips".to_owned()),
            Just("interface".to_owned()),
            ".{0,5}".prop_map(String::from),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn another_plugin_gets_an_address_and_nothing_else() {
    for (version, ours) in
        [("0.3.1", "aksnet-cni"), ("1.0.0", "azure-ipam"), ("1.1.0", "azure-ipam")]
    {
        let call = Call::new("ADD", version)
            .config("type", json!("cilium-cni"))
            .config("ipam", json!({ "type": ours }));
        let mut reply = added();
        reply.interfaces.clear();
        let (outcome, request) = call.run_against(Reply::Added(reply));
        assert!(matches!(request, Request::Reserve { .. }), "{request:?}");
        let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result.get("interfaces"), None, "{result}");
        assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
        assert_eq!(result["ips"][0].get("interface"), None, "{result}");
        assert_eq!(result["ips"][0].get("version").is_some(), version == "0.3.1", "{result}");
    }
    // The socket of the delegated part counts; another plugin's `ipam`, of whatever shape, does not.
    for (key, value) in [
        ("ipam", json!({ "type": "host-local", "agentSocket": "/nowhere" })),
        ("ipam", json!(["what", 7])),
        ("ipam", json!({ "type": ["azure-ipam"] })),
    ] {
        let call = Call::new("ADD", "1.0.0").config(key, value.clone());
        let (_, request) = call.run_against(Reply::Added(added()));
        assert!(matches!(request, Request::Add { .. }), "{value}");
    }
}

/// Port mappings and rates as runtimes write them, and what is wrong with others.
#[test]
fn what_the_runtime_adds_is_read_or_refused() {
    let ports = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "TCP" },
        { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "10.0.0.4" },
        { "hostPort": 0, "containerPort": 9 },
        { "hostPort": 81, "containerPort": 81, "hostIP": "fd00::1" },
    ]);
    let runtime =
        json!({ "portMappings": ports, "bandwidth": { "egressRate": 8000, "egressBurst": 80 } });
    let call = Call::new("ADD", "1.0.0").config("runtimeConfig", runtime);
    let (_, request) = call.run_against(Reply::Added(added()));
    let Request::Add { ports, bandwidth, .. } = request else { panic!("{request:?}") };
    let said: Vec<_> =
        ports.iter().map(|one| format!("{} to {}", one.host, one.pod_port)).collect();
    assert_eq!(said, ["8080/tcp to 80", "10.0.0.4:53/udp to 5353", "[fd00::1]:81/tcp to 81"]);
    assert_eq!((bandwidth.ingress, bandwidth.egress.unwrap().bits_per_second), (None, 8000));
    // As containerd writes both.
    let runtime = json!({
        "portMappings": [
            { "HostPort": 54323, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "127.0.0.1" },
            { "HostPort": 81, "ContainerPort": 8081, "Protocol": "udp", "HostIP": "" },
        ],
        "bandwidth": { "IngressRate": 8000, "IngressBurst": 80, "EgressRate": 9000, "EgressBurst": 90 },
    });
    let call = Call::new("ADD", "1.0.0").config("runtimeConfig", runtime);
    let (_, request) = call.run_against(Reply::Added(added()));
    let Request::Add { ports, bandwidth, .. } = request else { panic!("{request:?}") };
    let said: Vec<_> =
        ports.iter().map(|one| format!("{} to {}", one.host, one.pod_port)).collect();
    assert_eq!(said, ["127.0.0.1:54323/tcp to 8080", "81/udp to 8081"]);
    let rates = [bandwidth.ingress, bandwidth.egress].map(|rate| rate.unwrap().bits_per_second);
    assert_eq!(rates, [8000, 9000]);
    let port = |port: Value, pod: Value, protocol: &str, address: &str| {
        json!({ "portMappings": [
            { "hostPort": port, "containerPort": pod, "protocol": protocol, "hostIP": address },
        ] })
    };
    let twice = json!({ "portMappings": [
        { "hostPort": 80, "containerPort": 1 }, { "hostPort": 80, "containerPort": 2, "hostIP": "10.0.0.4" },
    ] });
    for (runtime, code, found) in [
        (port(json!(70_000), json!(80), "tcp", ""), 7, "hostPort is 70000, which is no port"),
        (port(json!(-1), json!(80), "tcp", ""), 7, "hostPort is -1"),
        (port(json!(80), json!(0), "tcp", ""), 7, "containerPort is 0"),
        (port(json!(80), json!(80), "icmp", ""), 7, "`icmp` is not one of"),
        (port(json!(80), json!(80), "tcp", "here"), 7, "hostIP is `here`"),
        (twice, 7, "is asked for twice"),
        (json!({ "portMappings": "all" }), 6, "invalid type"),
        (json!({ "bandwidth": { "ingressRate": 1000 } }), 7, "ingressRate needs a burst"),
        (json!({ "bandwidth": { "egressBurst": 1000 } }), 7, "egressBurst needs a rate"),
        (json!({ "bandwidth": { "egressBurst": 7, "egressRate": 7 } }), 7, "8 bits at least"),
        (json!({ "bandwidth": { "egressRate": -1 } }), 6, "invalid value"),
    ] {
        let (said, details) =
            Call::new("ADD", "1.0.0").config("runtimeConfig", runtime.clone()).refusal();
        assert_eq!(said, code, "{runtime}");
        assert!(details.contains(found), "{runtime}: {details}");
    }
}

//! Watching a lab: captures, traces, counts. Real packets between real namespaces, without Kubernetes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod lab;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use lab::{Ran, TestLab, eventually, packets::Echo};
use serde_json::Value;

/// Two machines in two subnets of one virtual network.
fn lab(more: &[&str]) -> TestLab {
    let mut arguments = vec!["--nodes", "simulated"];
    arguments.extend(more);
    let lab = TestLab::up_with(&arguments);
    lab.az("group create -n rg -l eastus").succeeds();
    lab.az("network vnet create -g rg -n v --address-prefixes 10.1.0.0/16 --subnet-name s1 --subnet-prefixes 10.1.0.0/24").succeeds();
    lab.az("network vnet subnet create -g rg --vnet-name v -n s2 --address-prefixes 10.1.1.0/24")
        .succeeds();
    for (vm, subnet) in [("web", "s1"), ("db", "s2")] {
        lab.aksnet(&["vm", "create", vm, "-g", "rg", "--vnet", "v", "--subnet", subnet]).succeeds();
    }
    lab
}

fn trace(lab: &TestLab, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut all = vec!["trace"];
    all.extend(arguments);
    all.extend(["--timeout", "1", "-o", "json"]);
    let ran = lab.aksnet(&all);
    let value = serde_json::from_str(&ran.stdout())
        .unwrap_or_else(|error| panic!("{error}: {}{}", ran.stdout(), ran.stderr()));
    (ran.output.status.code(), value)
}

fn places(report: &Value) -> Vec<&str> {
    report["hops"].as_array().unwrap().iter().map(|hop| hop["place"].as_str().unwrap()).collect()
}

/// `aksnet capture` in the background; it listens when this returns.
fn capture(lab: &TestLab, line: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aksnet"))
        .args(["--name", lab.name(), "capture"])
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    // A packet socket that is ours: the process has one open when it listens.
    eventually("the capture listens", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended at once");
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
            files.filter_map(Result::ok).any(|file| {
                fs::read_link(file.path())
                    .is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
            })
        })
    });
    child
}

fn tcpdump(file: &Path) -> Vec<String> {
    let mut command = Command::new("tcpdump");
    command.arg("-nr").arg(file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_lab_can_be_watched() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metrics = format!("127.0.0.1:{port}");
    let lab = lab(&["--metrics", &metrics]);
    let _echo = Echo::start(&lab, "db", "10.1.1.4");
    traces_follow_the_packet(&lab);
    a_killed_trace_leaves_no_table(&lab);
    captures_have_every_packet_once_at_each_point(&lab);
    names_that_mean_nothing_are_refused_with_those_that_do(&lab);
    machines_are_made_once(&lab);
    what_runs_in_a_machine_ends_with_it(&lab);
    counts_are_the_kernels_and_outlive_reloads(&lab, &metrics);
    a_security_rule_is_named_by_packet_model_and_counter(&lab);
}

fn traces_follow_the_packet(lab: &TestLab) {
    let (code, report) = trace(lab, &["web", "db", "--port", "9000"]);
    assert_eq!((code, &report["verdict"]), (Some(0), &"answered".into()), "{report:#}");
    assert_eq!(places(&report), ["vm/web", "vnet/v", "vm/db"]);
    assert_eq!(report["agree"], true);
    let answer: Vec<_> =
        report["answer"].as_array().unwrap().iter().map(|it| &it["place"]).collect();
    assert_eq!(answer, ["vm/db", "vnet/v", "vm/web"]);

    let (code, report) = trace(lab, &["web", "db", "--port", "9001"]);
    assert_eq!(
        (code, &report["verdict"]),
        (Some(0), &"it arrived, and nobody listens there".into())
    );
    let (code, report) = trace(lab, &["web", "db"]);
    assert_eq!((code, &report["protocol"]), (Some(0), &"icmp".into()), "{report:#}");

    // The internet sees the network's address, and the hop says what it was before.
    let (code, report) = trace(lab, &["web", "203.0.113.9", "--port", "80"]);
    assert_eq!((code, places(&report)), (Some(0), vec!["vm/web", "vnet/v", "internet"]));
    let hop = &report["hops"][1];
    let (before, after) = (hop["before"].as_str().unwrap(), hop["after"].as_str().unwrap());
    assert!(before.starts_with("10.1.0.4:") && !after.starts_with("10.1."), "{report:#}");
    assert_eq!(report["agree"], true, "{report:#}");

    // The platform's own services are in the virtual network, and nothing beside them.
    for (to, answer) in [
        (&["168.63.129.16", "--port", "53"][..], true),
        (&["168.63.129.16", "--port", "53", "--protocol", "udp"], true),
        (&["169.254.169.254", "--port", "80"], true),
        (&["168.63.129.16", "--port", "99"], false),
        (&["168.63.129.16"], false),
    ] {
        let (_, report) = trace(lab, &[&["web"], to].concat());
        assert_eq!(
            (&report["reachable"], &report["agree"]),
            (&answer.into(), &true.into()),
            "{to:?}: {report:#}"
        );
    }
    for (from, to, why) in [
        ("web", "224.0.0.1", "no multicast"),
        ("internet", "web", "say the public address of vm/web"),
    ] {
        let said = lab.aksnet(&["trace", from, to]).fails();
        assert!(said.contains(why), "{said}");
    }

    // Nobody has the address: a rule says so, and the model does.
    let (code, report) = trace(lab, &["web", "10.1.1.77", "--port", "80"]);
    assert_eq!((code, &report["agree"]), (Some(1), &true.into()), "{report:#}");
    assert_eq!(report["verdict"], "dropped at vnet/v by `no route` (forward)");

    // A rule that the model knows nothing of: the packet is dropped, and the two do not agree.
    let vnet = namespace(lab, "vnet-v");
    nft(
        &vnet,
        "table ip stray {\nchain c {\ntype filter hook forward priority 5\ntcp dport 9000 drop comment \"somebody's\"\n}\n}\n",
    );
    let (code, report) = trace(lab, &["web", "db", "--port", "9000"]);
    nft(&vnet, "delete table ip stray");
    assert_eq!((code, &report["agree"]), (Some(3), &false.into()), "{report:#}");
    assert_eq!(report["verdict"], "dropped at vnet/v by `somebody's` (c)");
    assert_eq!(tables(lab), "", "nothing is left behind");
}

/// The table that marks packets is gone with the process, however that ended.
fn a_killed_trace_leaves_no_table(lab: &TestLab) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aksnet"))
        .args([
            "--name",
            lab.name(),
            "trace",
            "web",
            "10.1.1.77",
            "--port",
            "80",
            "--timeout",
            "600",
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the trace has begun", || tables(lab).contains("aksnet-trace-"));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its tables are gone", || tables(lab).is_empty());
}

fn namespace(lab: &TestLab, kind: &str) -> String {
    let prefix = format!("{}-{kind}", lab.name());
    let names = fs::read_dir("/run/netns").unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.find(|name| name.starts_with(&prefix)).unwrap()
}

fn nft(namespace: &str, line: &str) -> String {
    let output =
        Command::new("ip").args(["netns", "exec", namespace, "nft", line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Tables in namespaces of the lab that are not the fabric's.
fn tables(lab: &TestLab) -> String {
    let all = nft(&namespace(lab, "vnet-v"), "list tables")
        + &nft(&namespace(lab, "vm-db"), "list tables");
    all.lines().filter(|line| *line != "table ip aksnet").collect()
}

fn captures_have_every_packet_once_at_each_point(lab: &TestLab) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.pcapng", lab.name()));
    let line = format!(
        "vm/web gateway/v/s2 nic/db-nic 10.1.1.4 --filter icmp --count 8 -w {}",
        file.display()
    );
    let mut child = capture(lab, &line);
    // The pings go on until the capture has what it wants: it may begin to listen point by point.
    eventually("eight packets", || {
        lab.exec("web", "ping -c 1 -W 1 10.1.1.4 >/dev/null").success();
        child.try_wait().unwrap().is_some_and(|status| status.success())
    });
    let lines = tcpdump(&file);
    assert_eq!(lines.len(), 8, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("ICMP echo re")), "{lines:?}");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    for name in ["vm/web eth0", "gateway/v/s2 nic-", "nic/db-nic nic-", "10.1.1.4 (vm/db) eth0"] {
        let is_there = bytes.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(is_there, "an interface is called {name}");
    }
    assert!(bytes.windows(8).any(|window| window == b"(vm/db)\0" || window == b" (vm/db)"));

    let mut child = capture(lab, "web --text --filter icmp");
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let first = std::thread::spawn(move || {
        let mut line = String::new();
        lines.read_line(&mut line).map(|_| line)
    });
    eventually("it has a packet", || {
        lab.exec("web", "ping -c 1 -W 1 10.1.1.4").succeeds();
        first.is_finished()
    });
    let line = first.join().unwrap().unwrap();
    assert!(line.contains(" vm/web eth0 out icmp 10.1.0.4 > 10.1.1.4 echo request"), "{line}");
    // It is told to end as Ctrl-C does, and ends well.
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

fn names_that_mean_nothing_are_refused_with_those_that_do(lab: &TestLab) {
    let refusal = |ran: Ran| {
        assert_eq!(ran.output.status.code(), Some(3), "{}", ran.stderr());
        ran.stderr()
    };
    let text = refusal(lab.aksnet(&["capture", "nobody"]));
    assert!(
        text.contains("`nobody`") && text.contains("vm/web") && text.contains("gateway/v/s1"),
        "{text}"
    );
    let text = refusal(lab.aksnet(&["capture", "vm/nobody"]));
    assert_eq!(text.trim(), "error: there is no vm `nobody`; there are vm/db, vm/web");
    let text = refusal(lab.aksnet(&["trace", "vnet/v", "db"]));
    assert!(text.contains("cannot send a probe"), "{text}");
    let wrong = lab.aksnet(&["capture", "web", "--filter", "tcp prot 80"]);
    assert_eq!(wrong.output.status.code(), Some(2));
    assert!(wrong.stderr().contains("`prot` is not understood"), "{}", wrong.stderr());
    // Two of one name.
    lab.az("network vnet create -g rg -n web --address-prefixes 10.9.0.0/16").succeeds();
    let text = refusal(lab.aksnet(&["capture", "web"]));
    assert!(text.contains("several things: vm/web, vnet/web"), "{text}");
    // Nothing runs in a network.
    let address = |target: &str| lab.exec(target, "ip -o -4 addr show dev eth0");
    assert!(address("web").succeeds().contains("10.1.0.4/"));
    let text = refusal(address("vnet/web"));
    assert!(
        text.contains("no VM, node or pod is called `vnet/web`; there are internet, vm/db"),
        "{text}"
    );
    let said = lab.exec("internet", "curl -s --max-time 2 http://203.0.113.9/").succeeds();
    assert!(said.trim().parse::<std::net::IpAddr>().is_ok(), "{said}");
    lab.az("group create -n rg2 -l eastus").succeeds();
    lab.az("network vnet create -g rg2 -n v2 --address-prefixes 10.9.0.0/16 --subnet-name s --subnet-prefixes 10.9.0.0/24").succeeds();
    lab.aksnet(&["vm", "create", "web", "-g", "rg2", "--vnet", "v2", "--subnet", "s"]).succeeds();
    let text = refusal(address("web"));
    assert!(text.contains("several things: vm/web, vm/web; say vm/GROUP:web"), "{text}");
    for (target, expected) in [("vm/rg:web", "10.1.0.4/"), ("rg2:web", "10.9.0.4/")] {
        assert!(address(target).succeeds().contains(expected), "{target}");
    }
    lab.az("group delete -n rg2 --yes").succeeds();
    lab.az("network vnet delete -g rg -n web").succeeds();
}

/// What runs in a machine's network ends with whoever began it, and with the machine.
fn what_runs_in_a_machine_ends_with_it(lab: &TestLab) {
    let is_there = |pid: u32| Path::new(&format!("/proc/{pid}/cmdline")).exists();
    lab.aksnet(&["vm", "create", "brief", "-g", "rg", "--vnet", "v", "--subnet", "s1"]).succeeds();
    let mut one = lab.exec_in_background("brief", "exec sleep 600");
    let name = || fs::read_to_string(format!("/proc/{}/comm", one.id())).unwrap_or_default();
    eventually("the process is the program itself", || name() == "sleep\n");
    one.kill().unwrap();
    one.wait().unwrap();
    let mut one = lab.exec_in_background("brief", "sleep 601 & echo $!; exec sleep 602");
    let mut line = String::new();
    BufReader::new(one.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child: u32 = line.trim().parse().unwrap();
    assert!(is_there(child));
    lab.aksnet(&["vm", "delete", "brief", "-g", "rg"]).succeeds();
    eventually("both have ended", || one.try_wait().unwrap().is_some() && !is_there(child));
}

/// A machine is made once: the same line again changes nothing of it, another line is refused, and a name is a name.
fn machines_are_made_once(lab: &TestLab) {
    let create = |vm: &str, subnet: &str| {
        lab.aksnet(&["vm", "create", vm, "-g", "rg", "--vnet", "v", "--subnet", subnet])
    };
    lab.az("network nsg create -g rg -n mine").succeeds();
    lab.az("network nic update -g rg -n web-nic --network-security-group mine").succeeds();
    assert_eq!(create("web", "s1").succeeds().trim(), "web 10.1.0.4");
    let nic = || lab.az("network nic show -g rg -n web-nic").json();
    let group = nic()["networkSecurityGroup"]["id"].as_str().map(str::to_owned);
    assert!(group.is_some_and(|id| id.ends_with("/mine")), "{:#}", nic());
    let before = nic();
    let said = create("web", "s2").fails();
    assert!(said.contains("is another one: 10.1.0.4 in "), "{said}");
    assert_eq!(nic(), before);
    for name in ["a?b", "../x", "x y", "", "x."] {
        let said = create(name, "s1").fails();
        assert!(said.contains("letters, digits"), "{name}: {said}");
    }
    // Half of one is made whole.
    lab.aksnet(&["vm", "create", "half", "-g", "rg", "--vnet", "v", "--subnet", "s1"]).succeeds();
    lab.az("vm delete -g rg -n half --yes").succeeds();
    let address = create("half", "s1").succeeds();
    assert!(
        lab.exec("half", "ip -o -4 addr show dev eth0")
            .succeeds()
            .contains(address.split_whitespace().nth(1).unwrap())
    );
    lab.aksnet(&["vm", "delete", "half", "-g", "rg"]).succeeds();
    lab.az("network nic update -g rg -n web-nic --remove networkSecurityGroup").succeeds();
    lab.az("network nsg delete -g rg -n mine").succeeds();
}

fn counts_are_the_kernels_and_outlive_reloads(lab: &TestLab, metrics: &str) {
    let dropped = || {
        let text = scrape(metrics);
        let line = text.lines().find(|line| {
            line.starts_with("aksnet_drops_total") && line.contains("reason=\"no route\"")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    let before = dropped();
    lab.exec("web", "ping -c 3 -i 0.2 -W 1 10.1.1.77");
    let after = dropped();
    assert_eq!(after, before + 3);
    let chains = || nft(&namespace(lab, "vnet-v"), "list chains ip");
    let loaded = chains();
    // A third machine is another rule set: the kernel counts from nothing, the lab goes on.
    lab.aksnet(&["vm", "create", "more", "-g", "rg", "--vnet", "v", "--subnet", "s1"]).succeeds();
    assert_ne!(chains(), loaded, "the table was loaded anew");
    assert_eq!(dropped(), after);
    lab.exec("web", "ping -c 1 -W 1 10.1.1.77");
    assert_eq!(dropped(), after + 1);

    let text = lab.aksnet(&["metrics"]).succeeds();
    let used =
        "aksnet_subnet_addresses{resource_group=\"rg\",vnet=\"v\",subnet=\"s1\",state=\"used\"} 2";
    assert!(text.contains(used), "{text}");
    assert!(text.contains("\naksnet_vms 3\n"), "{text}");
    trace(lab, &["web", "db", "--port", "9000"]);
    let top = lab.aksnet(&["top", "--once", "--talkers", "100", "-o", "json"]).json();
    assert_eq!(top["version"], 1);
    let vnet = top["vnets"].as_array().unwrap().iter().find(|vnet| vnet["name"] == "v").unwrap();
    let has_flow =
        |flow: &Value| flow["destination"] == "10.1.1.4:9000" && flow["source"] == "10.1.0.4";
    assert!(vnet["talkers"].as_array().unwrap().iter().any(has_flow), "{vnet:#}");
    let drops = top["drops"].as_array().unwrap();
    assert!(drops.iter().any(|drop| drop["reason"] == "no route" && drop["packets"] == after + 1));
    let table = lab.aksnet(&["top", "--once"]).succeeds();
    assert!(table.contains("v/s2    10.1.1.0/24  1     250"), "{table}");
}

fn a_security_rule_is_named_by_packet_model_and_counter(lab: &TestLab) {
    lab.az("network nsg create -g rg -n gate").succeeds();
    lab.az("network nsg rule create -g rg --nsg-name gate -n no-9000 --priority 100 --access Deny --protocol Tcp --direction Inbound --destination-port-ranges 9000").succeeds();
    lab.az("network vnet subnet update -g rg --vnet-name v -n s2 --network-security-group gate")
        .succeeds();
    let (code, report) = trace(lab, &["web", "db", "--port", "9000"]);
    assert_eq!((code, &report["agree"]), (Some(1), &true.into()), "{report:#}");
    assert_eq!(report["verdict"], "dropped at vnet/v by `no-9000` (gate, inbound)");
    assert_eq!(report["model"][0]["deniedBy"], "no-9000");
    let (code, report) = trace(lab, &["web", "db", "--port", "9001"]);
    assert_eq!((code, &report["agree"]), (Some(0), &true.into()), "{report:#}");
    let rules = report["hops"][1]["rules"].as_array().unwrap();
    let allowing = rules.iter().find(|rule| rule["gate"] == "gate, inbound").unwrap();
    assert_eq!(allowing["name"], "AllowVnetInBound", "{report:#}");

    let text = lab.aksnet(&["metrics"]).succeeds();
    let counted = |rule: &str| {
        let line = text.lines().find(|line| {
            line.starts_with("aksnet_nsg_rule_packets_total")
                && line.contains(&format!("group=\"gate\",rule=\"{rule}\",direction=\"inbound\""))
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    // The kernel may have sent the denied one again.
    assert!((1..=2).contains(&counted("no-9000")), "{text}");
    assert_eq!(counted("AllowVnetInBound"), 1, "{text}");
    assert!(text.contains("reason=\"gate/no-9000\""), "{text}");
}

/// What Prometheus would read.
fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").unwrap();
    let text = std::io::read_to_string(stream).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("text/plain; version=0.0.4"),
        "{text}"
    );
    text
}

#[test]
fn who_stops_reading_stops_the_program_without_a_word() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aksnet"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}

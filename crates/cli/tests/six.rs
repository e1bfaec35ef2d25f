//! IPv6 as the real `az` asks for it, and packets of it, without Kubernetes; and public addresses that are closed until
//! a security group allows something in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]
#![allow(dead_code, reason = "the laboratory is shared")]

mod lab;

use lab::{TestLab, eventually};
use serde_json::{Value, json};

/// A server of both families that says who called it.
const ECHO: &str = "import socket\n\
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
s.bind(('::', 9000)); s.listen(16)\n\
while True:\n    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()\n";

/// Something that runs in a machine's network until the test ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // `aksnet exec` waits for its child; killing the child ends both.
        let pid = self.0.id().to_string();
        let _ = std::process::Command::new("pkill").args(["-9", "-P", &pid]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo(lab: &TestLab, target: &str) -> Running {
    Running(lab.exec_in_background(target, &format!("exec python3 -c \"{ECHO}\"")))
}

/// The exit status of a trace, and what it says.
fn trace(lab: &TestLab, line: &str) -> (Option<i32>, Value) {
    let mut arguments = vec!["trace"];
    arguments.extend(line.split_whitespace());
    arguments.extend(["--timeout", "1", "-o", "json"]);
    let ran = lab.aksnet(&arguments);
    let value = serde_json::from_str(&ran.stdout())
        .unwrap_or_else(|error| panic!("{error}: {}{}", ran.stdout(), ran.stderr()));
    (ran.output.status.code(), value)
}

/// A trace that arrives and is answered, where the model says so; or else one that both say is dropped.
#[track_caller]
fn agreed(lab: &TestLab, line: &str, arrives: bool) -> Value {
    let (code, report) = trace(lab, line);
    let expected = if arrives { Some(0) } else { Some(1) };
    assert_eq!((code, &report["agree"]), (expected, &json!(true)), "{line}: {report:#}");
    report
}

/// Two machines with an address of each family, and a load balancer with a front end of each.
fn network(lab: &TestLab) {
    for line in [
        "group create -n rg -l eastus",
        "network vnet create -g rg -n v --address-prefixes 10.1.0.0/16 fd00:1::/48 --subnet-name a \
         --subnet-prefixes 10.1.0.0/24 fd00:1:0:1::/64",
        "network vnet subnet create -g rg --vnet-name v -n b --address-prefixes 10.1.1.0/24 fd00:1:0:2::/64",
        "network public-ip create -g rg -n six --version IPv6 --sku Standard --dns-name web",
        "network public-ip create -g rg -n four --sku Standard --dns-name web",
    ] {
        lab.az(line).succeeds();
    }
    for (vm, subnet) in [("web", "a"), ("db", "b")] {
        lab.aksnet(&["vm", "create", vm, "-g", "rg", "--vnet", "v", "--subnet", subnet]).succeeds();
    }
    for line in [
        "network nic ip-config create -g rg --nic-name web-nic -n six --private-ip-address-version IPv6 \
         --vnet-name v --subnet a --public-ip-address six",
        "network nic ip-config create -g rg --nic-name db-nic -n six --private-ip-address-version IPv6 \
         --private-ip-address fd00:1:0:2::9 --vnet-name v --subnet b",
        "network lb create -g rg -n lb --sku Standard --vnet-name v --subnet b --frontend-ip-name four \
         --backend-pool-name p4",
        "network lb frontend-ip create -g rg --lb-name lb -n six --private-ip-address-version IPv6 \
         --vnet-name v --subnet b",
        "network lb address-pool create -g rg --lb-name lb -n p6",
        "network nic ip-config address-pool add -g rg --nic-name db-nic --ip-config-name six --lb-name lb \
         --address-pool p6",
        "network lb rule create -g rg --lb-name lb -n r6 --frontend-ip-name six --backend-pool-name p6 \
         --protocol Tcp --frontend-port 80 --backend-port 9000",
    ] {
        lab.az(line).succeeds();
    }
}

#[test]
fn ipv6_by_az() {
    let lab = TestLab::up_with(&["--nodes", "simulated", "--flow-logs"]);
    network(&lab);
    let shown = lab.az("network vnet show -g rg -n v").json();
    assert_eq!(shown["addressSpace"]["addressPrefixes"], json!(["10.1.0.0/16", "fd00:1::/48"]));
    let both = json!(["10.1.1.0/24", "fd00:1:0:2::/64"]);
    assert_eq!(
        lab.az("network vnet subnet show -g rg --vnet-name v -n b").json()["addressPrefixes"],
        both
    );
    let nic = lab.az("network nic show -g rg -n db-nic").json();
    let config = &nic["ipConfigurations"][1];
    assert_eq!(config["privateIPAddress"], "fd00:1:0:2::9");
    assert_eq!(config["privateIPAddressVersion"], "IPv6");
    let front = lab.az("network lb frontend-ip show -g rg --lb-name lb -n six").json();
    assert_eq!(front["privateIPAddressVersion"], "IPv6");
    let front = front["privateIPAddress"].as_str().unwrap().to_owned();
    assert!(front.starts_with("fd00:1:0:2::"), "{front}");
    let public = lab.az("network public-ip show -g rg -n six").json();
    assert_eq!(public["publicIPAddressVersion"], "IPv6");
    let public = public["ipAddress"].as_str().unwrap().to_owned();
    // One family in a rule.
    let said = lab
        .az("network lb rule create -g rg --lb-name lb -n no --frontend-ip-name four --backend-pool-name p6 \
             --protocol Tcp --frontend-port 81 --backend-port 81")
        .fails();
    assert!(said.contains("are not of one IP address version"), "{said}");

    let _echoes = [echo(&lab, "web"), echo(&lab, "db")];
    eventually("both echo", || {
        ["-6 web db --port 9000", "-6 db web --port 9000"]
            .iter()
            .all(|line| trace(&lab, line).1["verdict"] == "answered")
    });
    packets(&lab, &front);
    // One name for both.
    let named = |database: &str| {
        let line =
            format!("getent {database} web.eastus.cloudapp.azure.com | cut -d' ' -f1 | sort -u");
        lab.exec("db", &line).succeeds().trim().to_owned()
    };
    assert_eq!(named("ahostsv6"), public);
    let four = lab.az("network public-ip show -g rg -n four").json();
    assert_eq!(named("ahostsv4"), four["ipAddress"].as_str().unwrap());
    closed(&lab, &public);
    eventually("flows are logged", || {
        let logged = lab.aksnet(&["flow-logs"]).stdout();
        let has = |text: &str| logged.lines().any(|line| line.contains(text));
        has("fd00:1:0:1::4,fd00:1:0:2::9,")
            && has(",9000,6,I,B,")
            && has(" DefaultRule_DenyAllInBound ")
    });
    lab.aksnet(&["down"]).succeeds();
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Ways of packets, and what the model says of them.
fn packets(lab: &TestLab, front: &str) {
    let places = |report: &Value| {
        let hops = report["hops"].as_array().unwrap();
        hops.iter().map(|hop| hop["place"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let report = agreed(lab, "-6 web db --port 9000", true);
    assert_eq!(places(&report), ["vm/web", "vnet/v", "vm/db"]);
    let report = agreed(lab, "web fd00:1:0:2::9", true);
    assert_eq!(
        (&report["protocol"], &report["answer"][0]["packet"]),
        (&json!("icmp"), &json!("echo reply"))
    );
    let report = agreed(lab, "web fd00:1:0:2::9 --port 9001", true);
    assert_eq!(report["verdict"], "it arrived, and nobody listens there");
    agreed(lab, "web fd00:1:0:2::9 --port 9001 --protocol udp", true);
    let report = agreed(lab, &format!("web {front} --port 80"), true);
    let after = report["hops"][1]["after"].as_str().unwrap();
    assert!(after.ends_with("> [fd00:1:0:2::9]:9000"), "{report:#}");
    // Nobody has the address.
    agreed(lab, "web fd00:1:0:2::77 --port 80", false);
    // There is no way out but by an address of one's own.
    let report = agreed(lab, "web 2a00::9 --port 80", true);
    assert_eq!(places(&report), ["vm/web", "vnet/v", "internet"]);
    agreed(lab, "db 2a00::9 --port 80", false);
    let said = lab.aksnet(&["trace", "-6", "web", "internet", "--port", "80"]).fails();
    assert!(said.contains("which address on the internet"), "{said}");
}

/// What a public address takes, without a group and with one.
fn closed(lab: &TestLab, public: &str) {
    let verify = || {
        let line = "network watcher test-ip-flow -g rg --vm web --direction Inbound --protocol TCP \
                    --local 10.1.0.4:9000 --remote 203.0.113.9:4000";
        let answer = lab.az(line).json();
        (
            answer["access"].as_str().unwrap().to_owned(),
            answer["ruleName"].as_str().unwrap().to_owned(),
        )
    };
    let to_web = format!("internet {public} --port 9000");
    let report = agreed(lab, &to_web, false);
    assert_eq!(report["verdict"], "dropped at vnet/v by `no security group allows it` (forward)");
    assert_eq!(verify(), ("Deny".to_owned(), String::new()));
    for line in [
        "network nsg create -g rg -n open",
        "network nsg rule create -g rg --nsg-name open -n web --priority 100 --protocol Tcp \
         --source-address-prefixes Internet --destination-port-ranges 9000",
        "network nic update -g rg -n web-nic --network-security-group open",
    ] {
        lab.az(line).succeeds();
    }
    let report = agreed(lab, &to_web, true);
    assert_eq!(report["verdict"], "answered");
    assert_eq!(verify(), ("Allow".to_owned(), "securityRules/web".to_owned()));
    let report = agreed(lab, &format!("internet {public} --port 9001"), false);
    assert_eq!(report["verdict"], "dropped at vnet/v by `DenyAllInBound` (open, inbound)");
}

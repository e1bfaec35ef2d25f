//! Packets between machines, pods, the internet.

use daemon::fabric::Scope;
use vnet::host::{Health, Step};

use crate::lab::{Lab, ask, ask_as, count, counted, run, serve};

const TWO_SUBNETS: &str = "
    vnet v 10.1.0.0/16
    subnet a 10.1.1.0/24
    subnet b 10.1.2.0/24
    vm one 10.1.1.4
    vm two 10.1.1.5,10.1.1.6
    vm three 10.1.2.4
";

#[test]
fn machines_reach_each_other_and_the_internet() {
    let lab = Lab::new(TWO_SUBNETS);
    lab.serve("two", &[80]);
    lab.serve("three", &[80]);
    serve(&lab.internet(), "internet", 80);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(ask(&one, "10.1.1.6:80"), "two sees 10.1.1.4 at 10.1.1.6");
    assert_eq!(ask(&one, "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
    assert_eq!(ask(&one, "93.184.216.34:80"), "internet sees 20.0.0.1 at 93.184.216.34");
    assert_eq!(ask(&one, "198.19.0.10:80"), "internet sees 20.0.0.1 at 198.19.0.10");
    // Nobody is there, neither next door nor in other private ranges; and the gateway is silent.
    for nobody in ["10.1.1.77:80", "10.9.0.4:80", "192.168.0.1:80", "10.1.1.1:80"] {
        assert_eq!(ask(&one, nobody), "nothing", "{nobody}");
    }
    // Every ARP request is answered by the fabric's one address.
    let neighbours = run(&one, "ip", &["neigh"]);
    for address in ["10.1.1.5", "10.1.1.1", "10.1.1.77"] {
        let line = format!("{address} dev eth0 lladdr 12:34:56:78:9a:bc");
        assert!(neighbours.contains(&line), "{line} in {neighbours}");
    }
}

#[test]
fn a_second_pass_changes_nothing_and_damage_is_mended() {
    let mut lab = Lab::new(TWO_SUBNETS);
    let done = lab.pass(&Health::default(), Scope::All);
    assert!(done.is_nothing(), "{}", text(&done.steps));
    let vnet = lab.vnet("v");
    run(&vnet, "ip", &["route", "del", "10.1.1.5"]);
    run(&vnet, "ip", &["link", "set", "uplink", "down"]);
    run(&vnet, "ip", &["addr", "del", "10.1.1.1/32", "dev", "lo"]);
    run(&vnet, "nft", &["flush", "ruleset"]);
    run(&vnet, "sysctl", &["-q", "net.ipv4.ip_forward=0"]);
    run(&lab.machine("three"), "ip", &["link", "del", "eth0"]);
    assert!(!lab.pass(&Health::default(), Scope::All).is_nothing());
    let done = lab.pass(&Health::default(), Scope::All);
    assert!(done.is_nothing(), "{}", text(&done.steps));
    lab.serve("two", &[80]);
    lab.serve("three", &[80]);
    serve(&lab.internet(), "internet", 80);
    let one = lab.machine("one");
    assert_eq!(ask(&one, "10.1.1.5:80"), "two sees 10.1.1.4 at 10.1.1.5");
    assert_eq!(ask(&one, "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
    assert_eq!(ask(&one, "1.2.3.4:80"), "internet sees 20.0.0.1 at 1.2.3.4");
}

fn text(steps: &[Step]) -> String {
    steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_machine_comes_and_goes_and_nothing_else_is_touched() {
    let mut lab = Lab::new(TWO_SUBNETS);
    lab.serve("three", &[80]);
    let done = lab.becomes(&format!("{TWO_SUBNETS}\n vm four 10.1.2.5"));
    let (vnet, four) = (lab.vnet("v"), lab.machine("four"));
    assert_eq!(done.created, [four.name()]);
    let touched = |step: &Step| [vnet.name(), four.name()].contains(&step.namespace.as_str());
    assert!(done.steps.iter().all(touched), "{}", text(&done.steps));
    let old = lab.machine("one");
    assert!(!text(&done.steps).contains("10.1.1.4"), "{}", text(&done.steps));
    assert_eq!(ask(&four, "10.1.2.4:80"), "three sees 10.1.2.5 at 10.1.2.4");

    let done = lab.becomes(TWO_SUBNETS);
    assert_eq!(done.deleted, [four.name()]);
    assert!(!run(&vnet, "ip", &["route"]).contains("10.1.2.5"));
    assert_eq!(run(&vnet, "ip", &["-o", "link"]).matches("nic-").count(), 3);
    assert_eq!(ask(&old, "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
    assert!(lab.pass(&Health::default(), Scope::All).is_nothing());
}

#[test]
fn addresses_of_a_machine_come_and_go() {
    let one = |addresses: &str| {
        format!("vnet v 10.1.0.0/16\n subnet a 10.1.1.0/24\n vm two 10.1.1.99\n vm one {addresses}")
    };
    let mut lab = Lab::new(&one("10.1.1.4,10.1.1.5,10.1.1.6"));
    lab.serve("one", &[80]);
    for addresses in ["10.1.1.5,10.1.1.6", "10.1.1.7,10.1.1.6", "10.1.1.6"] {
        lab.becomes(&one(addresses));
        assert!(lab.pass(&Health::default(), Scope::All).is_nothing(), "{addresses}");
        for address in addresses.split(',') {
            let said = ask(&lab.machine("two"), &format!("{address}:80"));
            assert_eq!(said, format!("one sees 10.1.1.99 at {address}"));
        }
    }
}

#[test]
fn a_namespace_that_was_removed_behind_our_back_comes_back() {
    let mut lab = Lab::new(TWO_SUBNETS);
    let name = lab.machine("three").name().to_owned();
    linux::netns::Netns::delete(&name).unwrap();
    assert_eq!(lab.pass(&Health::default(), Scope::Changed).created, [name]);
    // The kernel may still be taking the old links away; then the next full pass sees it.
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        lab.pass(&Health::default(), Scope::All);
    }
    lab.serve("three", &[80]);
    assert_eq!(ask(&lab.machine("one"), "10.1.2.4:80"), "three sees 10.1.1.4 at 10.1.2.4");
}

#[test]
fn nobody_sends_as_somebody_else() {
    let lab = Lab::new(TWO_SUBNETS);
    lab.serve("three", &[80]);
    let (one, three) = (lab.machine("one"), lab.machine("three"));
    run(&one, "ip", &["addr", "add", "10.1.1.5/32", "dev", "eth0"]);
    count(&three, "prerouting", "ip saddr 10.1.1.5");
    assert_eq!(ask_as(&one, "10.1.1.5", "10.1.2.4:80"), "nothing");
    assert_eq!(counted(&three), 0);
    assert_eq!(ask(&lab.machine("two"), "10.1.2.4:80"), "three sees 10.1.1.5 at 10.1.2.4");
    assert_ne!(counted(&three), 0, "the true owner is heard");
}

#[test]
fn the_internet_reaches_nobody_unasked() {
    let lab = Lab::new(TWO_SUBNETS);
    lab.serve("one", &[80]);
    let (one, internet) = (lab.machine("one"), lab.internet());
    count(&one, "prerouting", "tcp dport 80");
    // Somebody outside who knows the way in.
    let script = "link=$(ip -o link | grep -o 'v-[0-9a-f]*' | head -1); \
        ip neigh add 10.1.1.4 lladdr 12:34:56:78:9a:bc dev $link && \
        ip route add 10.1.1.4 dev $link table local";
    assert_eq!(run(&internet, "sh", &["-c", script]), "");
    assert_eq!(ask(&internet, "10.1.1.4:80"), "nothing");
    assert_eq!(ask(&internet, "20.0.0.1:80"), "nothing");
    assert_eq!(counted(&one), 0);
}

//! What the parts of a load balancer must be, alone and beside each other.

use vnet::{
    command::{Command, PutFrontend, PutLoadBalancer},
    model::{
        BalancingRule, Distribution, InboundNatRule, InboundTarget, OutboundRule, Probe,
        ProbeProtocol, Transport,
    },
};

use crate::support::{Lab, common, id, internal_balancer, put_prefix, put_public_ip};

const INVALID: &str = "InvalidParameter";
const SAME_BACKEND: &str = "RulesUseSameBackendPortProtocolAndPool";
const MUST_DISABLE_SNAT: &str =
    "LoadBalancingRuleMustDisableSNATSinceSameFrontendIPConfigurationIsReferencedByOutboundRule";
const TWO_OUTBOUND: &str =
    "MoreThanOneOutboundRuleUsingSameFrontendIPConfigurationAndProtocolIsNotSupported";
const NO_FRONTEND: &str = "LoadBalancerWithoutFrontendIPCantHaveChildResources";
const NOT_BY_EIGHT: &str = "SpecifiedAllocatedOutboundPortsForOutboundRuleIsNotAMultipleOfEight";
const TOO_MANY: &str =
    "SpecifiedAllocatedOutboundPortsForOutboundRuleExceedsTotalNumberOfAllowedPortsPerRule";
const TOO_FEW_LEFT: &str =
    "SpecifiedAllocatedOutboundPortsForOutboundRuleExceedsTotalNumberOfAvailablePorts";

/// NICs `m` and `n` in subnet `v/s`; public IPs `p` and `q`, prefix `x` of four addresses.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "s", "10.1.0.0/24");
    lab.nic("m", "v/s", None).unwrap();
    lab.nic("n", "v/s", None).unwrap();
    for name in ["p", "q"] {
        lab.must(put_public_ip(name, None));
    }
    lab.must(put_prefix("x", 30));
    lab
}

fn rule(frontend: &str, protocol: Transport, port: u16) -> BalancingRule {
    BalancingRule {
        frontend: frontend.into(),
        pool: "be".into(),
        probe: None,
        protocol,
        frontend_port: port,
        backend_port: port,
        floating_ip: false,
        distribution: Distribution::Default,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
        disable_outbound_snat: true,
    }
}

fn outbound(frontend: &str, protocol: Transport) -> OutboundRule {
    OutboundRule {
        frontends: vec![frontend.into()],
        pool: "be".into(),
        protocol,
        allocated_ports: 0,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
    }
}

fn probe(protocol: ProbeProtocol, path: &str) -> Probe {
    let path = path.to_owned();
    Probe { protocol, port: 80, path, interval_seconds: 5, threshold: 1 }
}

/// What a load balancer is made of in a test.
enum Part {
    Rule(BalancingRule),
    Outbound(OutboundRule),
    Probe(Probe),
}
use Part::{Outbound, Probe as Probes, Rule};
use Transport::{All, Tcp, Udp};

/// Front ends `fe` and `other` of public IPs `p` and `q`, `all` of prefix `x`; or `fe` and `other` inside. Pool `be` has
/// both NICs, pool `empty` none.
fn balancer(is_public: bool, parts: Vec<Part>) -> PutLoadBalancer {
    let mut balancer = internal_balancer("v/s", None);
    let inside = balancer.frontends[0].1.clone();
    let public = |name: &str| PutFrontend::Public { public_ip: id(&format!("pip {name}")) };
    balancer.frontends = if is_public {
        let all = PutFrontend::Prefix { public_ip_prefix: id("prefix x") };
        vec![("fe".into(), public("p")), ("other".into(), public("q")), ("all".into(), all)]
    } else {
        vec![("fe".into(), inside.clone()), ("other".into(), inside)]
    };
    let members = vec![id("nic m"), id("nic n")];
    balancer.pools = vec![("be".into(), members.into()), ("empty".into(), Vec::new().into())];
    for (n, part) in parts.into_iter().enumerate() {
        let name = format!("part{n}").as_str().into();
        match part {
            Rule(rule) => balancer.rules.push((name, rule)),
            Outbound(rule) => balancer.outbound_rules.push((name, rule)),
            Probes(probe) => balancer.probes.push((name, probe)),
        }
    }
    balancer
}

fn put(balancer: PutLoadBalancer) -> Command {
    Command::PutLoadBalancer { common: common(id("lb b")), balancer }
}

/// Asserts that a load balancer is taken (`""`) or refused with a code and a piece of text.
#[track_caller]
fn check(balancer: PutLoadBalancer, code: &str, text: &str) {
    let shown = format!("{balancer:?}");
    match (lab().apply(put(balancer)), code) {
        (Ok(_), "") => {}
        (Ok(_), code) => panic!("not refused with {code}: {shown}"),
        (Err(fault), code) => {
            assert_eq!(fault.code, code, "{fault}\n{shown}");
            assert!(fault.message.contains(text), "`{text}` is not in: {fault}");
            assert_eq!(fault.status, 400, "{fault}");
        }
    }
}

fn internal(parts: Vec<Part>, code: &str, text: &str) {
    check(balancer(false, parts), code, text);
}

fn public(parts: Vec<Part>, code: &str, text: &str) {
    check(balancer(true, parts), code, text);
}

#[test]
fn rules_of_one_pool_have_back_end_ports_of_their_own() {
    let to = |frontend: &str, protocol, port, backend_port| {
        Rule(BalancingRule { backend_port, ..rule(frontend, protocol, port) })
    };
    let floating = |port| Rule(BalancingRule { floating_ip: true, ..rule("fe", Tcp, port) });
    let text = "floating IP disabled use the same protocol Tcp and backend port 8080";
    for is_public in [true, false] {
        for (parts, code) in [
            (vec![to("fe", Tcp, 80, 8080), to("fe", Tcp, 81, 8080)], SAME_BACKEND),
            // Not even of two front ends.
            (vec![to("fe", Tcp, 80, 8080), to("other", Tcp, 80, 8080)], SAME_BACKEND),
            (vec![to("fe", Tcp, 80, 8080), to("fe", Udp, 80, 8080)], ""),
            (vec![to("fe", Tcp, 80, 8080), to("fe", Tcp, 81, 8081)], ""),
            (vec![to("fe", Tcp, 81, 80), floating(80)], ""),
        ] {
            check(balancer(is_public, parts), code, if code.is_empty() { "" } else { text });
        }
    }
    let elsewhere = Rule(BalancingRule { pool: "empty".into(), ..rule("other", Tcp, 80) });
    internal(vec![Rule(rule("fe", Tcp, 80)), elsewhere], "", "");
    // MicrosoftDocs/azure-docs issue 94673.
    let all = || vec![Rule(rule("fe", All, 0)), Rule(rule("other", All, 0))];
    internal(all(), SAME_BACKEND, "the same protocol All and backend port 0");
    let both =
        ["fe", "other"].map(|it| Rule(BalancingRule { floating_ip: true, ..rule(it, All, 0) }));
    internal(both.into(), "", "");
}

#[test]
fn a_front_end_has_one_way_out() {
    let lets_out = |frontend: &str, port| {
        Rule(BalancingRule { disable_outbound_snat: false, ..rule(frontend, Tcp, port) })
    };
    let out = |frontend: &str, protocol| Outbound(outbound(frontend, protocol));
    let text = "loadBalancingRules/part0,";
    let parts = vec![lets_out("fe", 80), lets_out("fe", 81), out("fe", All)];
    public(parts, MUST_DISABLE_SNAT, text);
    public(vec![lets_out("fe", 80), out("fe", Udp)], MUST_DISABLE_SNAT, "outboundRules/part1.");
    public(vec![Rule(rule("fe", Tcp, 80)), out("fe", All)], "", "");
    public(vec![lets_out("other", 80), out("fe", All)], "", "");

    let text = "outboundRules/part0,/subscriptions/";
    for (a, b, code) in [
        (All, All, TWO_OUTBOUND),
        (Tcp, All, TWO_OUTBOUND),
        (All, Udp, TWO_OUTBOUND),
        (Tcp, Tcp, TWO_OUTBOUND),
        (Tcp, Udp, ""),
    ] {
        public(vec![out("fe", a), out("fe", b)], code, if code.is_empty() { "" } else { text });
    }
    public(vec![out("fe", All), out("other", All)], "", "");
    let two = OutboundRule { frontends: vec!["other".into(), "fe".into()], ..outbound("fe", All) };
    public(vec![out("fe", All), Outbound(two)], TWO_OUTBOUND, "frontendIPConfigurations/fe");
}

#[test]
fn high_availability_ports_are_inside_and_0() {
    let all = |frontend_port, backend_port| {
        vec![Rule(BalancingRule { frontend_port, backend_port, ..rule("fe", All, 0) })]
    };
    internal(all(0, 0), "", "");
    for (from, to) in [(80, 80), (0, 80), (80, 0)] {
        internal(all(from, to), INVALID, "Port 0 and protocol All belong together");
    }
    public(all(0, 0), INVALID, "needs an internal front end");
    let basic = PutLoadBalancer { sku: "Basic".to_owned(), ..balancer(false, all(0, 0)) };
    check(basic, INVALID, "needs SKU Standard");
}

#[test]
fn ports_of_a_rule_are_ports() {
    for (from, to, code) in [
        (1, 1, ""),
        (65534, 65535, ""),
        (65535, 80, INVALID),
        (0, 80, INVALID),
        (80, 0, INVALID),
        (0, 0, INVALID),
    ] {
        for protocol in [Tcp, Udp] {
            let rule =
                BalancingRule { frontend_port: from, backend_port: to, ..rule("fe", protocol, 1) };
            internal(vec![Rule(rule)], code, if code.is_empty() { "" } else { "1 to 65534" });
        }
    }
}

#[test]
fn idle_minutes_have_limits() {
    for (minutes, rules, outbounds) in
        [(3, INVALID, INVALID), (4, "", ""), (100, "", ""), (101, INVALID, ""), (120, INVALID, "")]
    {
        let text = |code: &str| if code.is_empty() { "" } else { "is not between 4 and 1" };
        let rule = BalancingRule { idle_timeout_minutes: minutes, ..rule("fe", Tcp, 80) };
        public(vec![Rule(rule)], rules, text(rules));
        let rule = OutboundRule { idle_timeout_minutes: minutes, ..outbound("fe", All) };
        public(vec![Outbound(rule)], outbounds, text(outbounds));
    }
    let rule = OutboundRule { idle_timeout_minutes: 121, ..outbound("fe", All) };
    public(vec![Outbound(rule)], INVALID, "121 is not between 4 and 120");
}

#[test]
fn outbound_rules_have_public_front_ends_and_ports_by_eight() {
    internal(
        vec![Outbound(outbound("fe", All))],
        INVALID,
        "Internal load balancer cannot have any outbound rules",
    );
    let none = OutboundRule { frontends: Vec::new(), ..outbound("fe", All) };
    public(vec![Outbound(none)], INVALID, "at least one front end");
    let mut basic = balancer(false, vec![Outbound(outbound("fe", All))]);
    basic.sku = "Basic".to_owned();
    check(basic, INVALID, "need SKU Standard");

    // Two members share what an address has, four addresses have four times as much.
    for (frontend, ports, code) in [
        ("fe", 0, ""),
        ("fe", 8, ""),
        ("fe", 12, NOT_BY_EIGHT),
        ("fe", 32_000, ""),
        ("fe", 32_008, TOO_FEW_LEFT),
        ("all", 64_000, ""),
        ("all", 64_008, TOO_MANY),
    ] {
        let rule = OutboundRule { allocated_ports: ports, ..outbound(frontend, All) };
        let text = format!("Specified Allocated Outbound Ports {ports} for Outbound Rule");
        public(vec![Outbound(rule)], code, if code.is_empty() { "" } else { &text });
    }
    let empty =
        OutboundRule { pool: "empty".into(), allocated_ports: 64_000, ..outbound("fe", All) };
    public(vec![Outbound(empty)], "", "");
}

#[test]
fn probes_ask_for_what_can_be_answered() {
    use ProbeProtocol::{Http, Https, Tcp};
    for (protocol, path, code) in [
        (Tcp, "", ""),
        (Http, "/", ""),
        (Https, "/healthz", ""),
        (Tcp, "/", INVALID),
        (Http, "", INVALID),
        (Https, "", INVALID),
    ] {
        internal(vec![Probes(probe(protocol, path))], code, "");
    }
    let tcp = probe(Tcp, "");
    for (probe, text) in [
        (Probe { port: 0, ..tcp.clone() }, "[part0].port"),
        (Probe { interval_seconds: 4, ..tcp.clone() }, "the least are 5"),
        (Probe { threshold: 0, ..tcp.clone() }, "the least is 1"),
    ] {
        internal(vec![Probes(probe)], INVALID, text);
    }
    internal(vec![Probes(Probe { port: 65535, ..tcp })], "", "");
}

#[test]
fn a_load_balancer_is_inside_or_outside() {
    let mut mixed = balancer(true, Vec::new());
    mixed.frontends.push(("in".into(), internal_balancer("v/s", None).frontends[0].1.clone()));
    check(mixed, INVALID, "either internal or public");
    let mut bare = balancer(true, Vec::new());
    bare.frontends.clear();
    check(bare.clone(), NO_FRONTEND, "does not have Frontend IP Configuration");
    bare.pools.clear();
    check(bare.clone(), "", "");
    let inbound = InboundNatRule {
        frontend: "fe".into(),
        protocol: Tcp,
        target: InboundTarget::Configuration { frontend_port: 22, member: None },
        backend_port: 22,
        floating_ip: false,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
    };
    bare.inbound_rules.push(("ssh".into(), inbound));
    check(bare, NO_FRONTEND, "");
}

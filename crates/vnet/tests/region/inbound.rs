//! Inbound NAT rules: their ends, their ports, and what is refused.

use vnet::{
    command::{Command, PutLoadBalancer},
    fault::Fault,
    model::{BalancingRule, Distribution, InboundNatRule, InboundTarget, PortRange, Transport},
};

use crate::support::{Lab, common, id, internal_balancer, put_nic};

/// Virtual network `v` with subnet `s`, and NICs `m` and `n` there.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.1.0.0/16"]);
    lab.subnet("v", "s", "10.1.0.0/24");
    lab.nic("m", "v/s", None).unwrap();
    lab.nic("n", "v/s", None).unwrap();
    lab
}

fn rule(frontend_port: u16, backend_port: u16, member: Option<&str>) -> InboundNatRule {
    let member = member.map(|nic| (id(&format!("nic {nic}")), "ipconfig1".to_owned()));
    InboundNatRule {
        frontend: "fe".into(),
        protocol: Transport::Tcp,
        target: InboundTarget::Configuration { frontend_port, member },
        backend_port,
        floating_ip: false,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
    }
}

fn of_pool(first: u16, last: u16) -> InboundNatRule {
    let frontend_ports = PortRange { first, last };
    InboundNatRule {
        target: InboundTarget::Pool { pool: "be".into(), frontend_ports },
        ..rule(0, 22, None)
    }
}

/// A load balancer with front end `fe`, pool `be` of both NICs, and these inbound NAT rules.
fn balancer(rules: &[(&str, InboundNatRule)]) -> PutLoadBalancer {
    let mut balancer = internal_balancer("v/s", None);
    balancer.pools = vec![("be".into(), vec![id("nic m"), id("nic n")].into())];
    balancer.inbound_rules =
        rules.iter().map(|(name, rule)| ((*name).into(), rule.clone())).collect();
    balancer
}

fn put(balancer: PutLoadBalancer) -> Command {
    Command::PutLoadBalancer { common: common(id("lb b")), balancer }
}

fn refused(rules: &[(&str, InboundNatRule)]) -> Fault {
    lab().refused(put(balancer(rules)))
}

#[test]
fn a_front_ends_port_is_one_rules() {
    for (a, b) in [
        (rule(5000, 22, None), rule(5000, 23, None)),
        (rule(5001, 22, None), of_pool(5000, 5001)),
        (of_pool(5000, 5009), of_pool(5009, 5010)),
    ] {
        let fault = refused(&[("a", a), ("b", b)]);
        assert_eq!(fault.code, "InvalidParameter", "{fault}");
        assert!(fault.message.contains("same front end fe, protocol and port"), "{fault}");
    }
    let udp = InboundNatRule { protocol: Transport::Udp, ..rule(5000, 22, None) };
    lab().must(put(balancer(&[("a", rule(5000, 22, None)), ("b", udp), ("c", of_pool(1, 4999))])));
}

#[test]
fn balancing_rules_have_their_ports_first() {
    let balancing = |protocol, port| BalancingRule {
        frontend: "fe".into(),
        pool: "be".into(),
        probe: None,
        protocol,
        frontend_port: port,
        backend_port: port,
        floating_ip: false,
        distribution: Distribution::Default,
        idle_timeout_minutes: 4,
        enable_tcp_reset: false,
        disable_outbound_snat: false,
    };
    for (protocol, port, is_refused) in
        [(Transport::Tcp, 80, true), (Transport::Udp, 80, false), (Transport::All, 0, true)]
    {
        let mut balancer = balancer(&[("a", rule(80, 8080, None))]);
        balancer.rules = vec![("r".into(), balancing(protocol, port))];
        assert_eq!(lab().apply(put(balancer)).is_err(), is_refused, "{protocol:?}");
    }
}

#[test]
fn what_a_rule_cannot_be_is_refused() {
    let other = |change: fn(&mut InboundNatRule)| {
        let mut rule = rule(5000, 22, None);
        change(&mut rule);
        rule
    };
    for (rule, code) in [
        (other(|it| it.protocol = Transport::All), "InvalidParameter"),
        (other(|it| it.backend_port = 0), "InvalidParameter"),
        (other(|it| it.idle_timeout_minutes = 101), "InvalidParameter"),
        (other(|it| it.floating_ip = true), "InvalidParameter"),
        (other(|it| it.frontend = "nope".into()), "InvalidResourceReference"),
        (rule(0, 22, None), "InvalidParameter"),
        (rule(5000, 22, Some("nope")), "InvalidResourceReference"),
        (of_pool(5000, 5000), "InvalidParameter"),
        (of_pool(5001, 5000), "InvalidParameter"),
    ] {
        assert_eq!(refused(&[("a", rule.clone())]).code, code, "{rule:?}");
    }
    let twice = [("a", rule(5000, 22, Some("m"))), ("b", rule(5001, 22, Some("m")))];
    assert_eq!(
        refused(&twice).code,
        "RulesOfSameLoadBalancerTypeUseSameBackendPortProtocolAndIPConfig"
    );
}

#[test]
fn a_rule_loses_its_machine_with_the_ip_configuration() {
    let mut lab = lab();
    let member = |lab: &Lab, name: &str| {
        let rule = &lab.region.balancers[&id("lb b")].inbound_rules[&name.into()];
        match &rule.target {
            InboundTarget::Configuration { member, .. } => member.clone(),
            InboundTarget::Pool { .. } => None,
        }
    };
    lab.must(put(balancer(&[("a", rule(5000, 22, Some("m"))), ("b", rule(5001, 22, Some("n")))])));
    // The NIC stays, its configuration does not.
    lab.must(put_nic("m", &[("other", "v/s", None)]));
    assert_eq!(member(&lab, "a"), None);
    assert!(member(&lab, "b").is_some());
    lab.delete("nic n");
    lab.fabric();
    assert_eq!(member(&lab, "b"), None);
}

#[test]
fn commands_together_are_all_done_or_none() {
    let mut lab = lab();
    let nic = put_nic("m", &[("other", "v/s", None)]);
    let wrong = put(balancer(&[("a", rule(5000, 22, Some("m")))]));
    let fault = lab.refused(Command::Together(vec![nic.clone(), wrong]));
    assert_eq!(fault.code, "InvalidResourceReference");
    let right = put(balancer(&[("a", rule(5000, 22, Some("n")))]));
    lab.must(Command::Together(vec![nic, right]));
    assert_eq!(lab.region.nics[&id("nic m")].configs[0].name, "other");
    assert!(lab.region.balancers.contains_key(&id("lb b")));
    lab.fabric();
    assert!(lab.region.operations.values().all(|operation| operation.ended.is_some()));
}

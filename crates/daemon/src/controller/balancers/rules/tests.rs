#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;

use vnet::model::OutboundType;

use super::*;

/// What a Service of these ports, spec and annotations asks for.
fn wanted(annotations: &[(&str, &str)], spec: &Value) -> Wanted {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
    let mut service = json!({
        "metadata": { "name": "web", "namespace": "ns", "annotations": annotations,
            "uid": "01234567-89ab-cdef-0123-456789abcdef" },
        "spec": { "type": "LoadBalancer", "ports": [
            { "name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP" },
            { "name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP" } ] } });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    Wanted::of(&serde_json::from_value(service).unwrap())
}

fn parts(wanted: &Wanted) -> Result<Parts, String> {
    let place = Place { id: "/lb", location: "eastus", outbound: OutboundType::LoadBalancer };
    let mut parts = Parts::default();
    let at = At { family: Family::V4, front_end: "front", is_way_out: false };
    add(&mut parts, place, wanted, at)?;
    Ok(parts)
}

/// The rules with their probes, a line each: end of the name, front-end and back-end port, floating IP, minutes, and the
/// probe: end of its name, protocol, port, path, interval, count.
fn lines(wanted: &Wanted) -> Result<Vec<String>, String> {
    let parts = parts(wanted)?;
    let end = |name: &str| name.replace("a0123456789abcdef0123456789abcde-", "");
    let line = |rule: &Value| {
        let it = &rule["properties"];
        let floating = if it["enableFloatingIP"] == true { "floating" } else { "translated" };
        let line = format!(
            "{} {} {}>{} {floating} {}",
            end(rule["name"].as_str().unwrap()),
            it["protocol"].as_str().unwrap(),
            it["frontendPort"],
            it["backendPort"],
            it["idleTimeoutInMinutes"],
        );
        let Some(probe) = it["probe"]["id"].as_str() else { return format!("{line} unprobed") };
        let name = probe.strip_prefix("/lb/probes/").unwrap();
        let probe = parts.probes.iter().find(|it| it["name"] == name).unwrap();
        let it = &probe["properties"];
        format!(
            "{line} {} {} {}{} {}x{}",
            end(name),
            it["protocol"].as_str().unwrap(),
            it["port"],
            it["requestPath"].as_str().unwrap_or_default(),
            it["intervalInSeconds"],
            it["probeThreshold"],
        )
    };
    let lines: Vec<String> = parts.rules.iter().map(line).collect();
    let probed = lines.iter().filter(|line| !line.ends_with("unprobed")).count();
    assert!(probed >= parts.probes.len(), "no probe is for nothing");
    Ok(lines)
}

/// Annotations, and the rest of the spec.
type Asks<'a> = (&'a [(&'a str, &'a str)], &'a Value);

#[test]
fn a_port_is_probed_as_its_annotations_say() {
    let http = |app: &str| {
        json!({ "ports": [{ "name": "web", "port": 80, "nodePort": 30080, "appProtocol": app },
            { "name": "other", "port": 81, "nodePort": 30081 }] })
    };
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000 });
    let none = json!({});
    let cases: &[(Asks<'_>, &str)] = &[
        ((&[], &none), "TCP-80 Tcp 30080 5x2"),
        ((&[], &http("HTTP")), "TCP-80 Http 30080/ 5x2"),
        ((&[], &http("https")), "TCP-80 Https 30080/ 5x2"),
        ((&[], &http("kubernetes.io/h2c")), "TCP-80 Tcp 30080 5x2"),
        // Port, then application protocol, then Service.
        (
            (&[("azure-load-balancer-health-probe-protocol", "Http")], &none),
            "TCP-80 Http 30080/ 5x2",
        ),
        (
            (&[("azure-load-balancer-health-probe-protocol", "http")], &http("https")),
            "TCP-80 Https 30080/ 5x2",
        ),
        (
            (&[("azure-load-balancer-health-probe-protocol", "http")], &http("grpc")),
            "TCP-80 Tcp 30080 5x2",
        ),
        ((&[("port_80_health-probe_protocol", " Tcp ")], &http("https")), "TCP-80 Tcp 30080 5x2"),
        ((&[("port_81_health-probe_protocol", "Tcp")], &http("https")), "TCP-80 Https 30080/ 5x2"),
        // Paths are for those who ask for one.
        (
            (&[("azure-load-balancer-health-probe-request-path", "/up")], &none),
            "TCP-80 Tcp 30080 5x2",
        ),
        (
            (&[("azure-load-balancer-health-probe-request-path", "/up")], &http("http")),
            "TCP-80 Http 30080/up 5x2",
        ),
        (
            (
                &[
                    ("azure-load-balancer-health-probe-request-path", "/up"),
                    ("port_80_health-probe_request-path", "/p"),
                ],
                &http("http"),
            ),
            "TCP-80 Http 30080/p 5x2",
        ),
        // Another port of the Service by its node port, any other by itself.
        ((&[("port_80_health-probe_port", "other")], &http("http")), "TCP-80 Http 30081/ 5x2"),
        ((&[("port_80_health-probe_port", "81")], &http("http")), "TCP-80 Http 30081/ 5x2"),
        ((&[("port_80_health-probe_port", "10256")], &http("http")), "TCP-80 Http 10256/ 5x2"),
        ((&[("azure-load-balancer-health-probe-interval", "10")], &none), "TCP-80 Tcp 30080 10x2"),
        (
            (
                &[
                    ("azure-load-balancer-health-probe-interval", "10"),
                    ("port_80_health-probe_interval", "20"),
                    ("azure-load-balancer-health-probe-num-of-probe", "3"),
                ],
                &none,
            ),
            "TCP-80 Tcp 30080 20x3",
        ),
        ((&[("port_80_health-probe_num-of-probe", "23")], &none), "TCP-80 Tcp 30080 5x23"),
        ((&[("port_80_no_probe_rule", "TRUE")], &none), "unprobed"),
        // Nodes without a pod are found out by kube-proxy's port.
        ((&[], &local), "TCP-31000 Http 31000/healthz 5x2"),
        (
            (
                &[
                    ("azure-load-balancer-health-probe-interval", "9"),
                    ("azure-load-balancer-health-probe-request-path", "/up"),
                    ("azure-load-balancer-health-probe-protocol", "tcp"),
                ],
                &local,
            ),
            "TCP-31000 Http 31000/healthz 9x2",
        ),
        (
            (&[("port_31000_health-probe_num-of-probe", "4")], &local),
            "TCP-31000 Http 31000/healthz 5x4",
        ),
        ((&[("port_80_health-probe_port", "80")], &local), "TCP-80 Tcp 30080 5x2"),
        ((&[("port_80_no_probe_rule", "true")], &local), "unprobed"),
    ];
    for ((annotations, spec), expected) in cases {
        let found = lines(&wanted(annotations, spec)).unwrap();
        let expected = format!("TCP-80 Tcp 80>80 floating 4 {expected}");
        assert_eq!(found[0], expected, "{annotations:?} {spec}");
    }
}

#[test]
fn rules_are_as_annotations_say() {
    let internal = ("azure-load-balancer-internal", "true");
    let all_ports = ("azure-load-balancer-enable-high-availability-ports", "true");
    let (none, local) =
        (json!({}), json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000 }));
    let sctp = json!({ "ports": [{ "port": 99, "nodePort": 30099, "protocol": "SCTP" }] });
    let udp = json!({ "ports": [{ "port": 53, "nodePort": 30053, "protocol": "UDP" }] });
    let web = "TCP-80 Tcp 80>80 floating 4 TCP-80 Tcp 30080 5x2";
    let cases: &[(Asks<'_>, &[&str])] = &[
        ((&[], &none), &[web, "UDP-53 Udp 53>53 floating 4 unprobed"]),
        ((&[("port_53_no_lb_rule", "true")], &none), &[web]),
        (
            (&[("port_53_no_lb_rule", "false"), ("port_80_no_lb_rule", "true")], &none),
            &["UDP-53 Udp 53>53 floating 4 unprobed"],
        ),
        (
            (
                &[("azure-load-balancer-tcp-idle-timeout", "100"), ("port_53_no_lb_rule", "true")],
                &none,
            ),
            &["TCP-80 Tcp 80>80 floating 100 TCP-80 Tcp 30080 5x2"],
        ),
        (
            (
                &[
                    ("azure-disable-load-balancer-floating-ip", "true"),
                    ("port_53_no_lb_rule", "true"),
                ],
                &none,
            ),
            &["TCP-80 Tcp 80>30080 translated 4 TCP-80 Tcp 30080 5x2"],
        ),
        // Whoever has pods is asked for every port.
        (
            (&[], &local),
            &[
                "TCP-80 Tcp 80>80 floating 4 TCP-31000 Http 31000/healthz 5x2",
                "UDP-53 Udp 53>53 floating 4 TCP-31000 Http 31000/healthz 5x2",
            ],
        ),
        // One rule for all ports, for those inside.
        ((&[internal, all_ports], &none), &["TCP-80 All 0>0 floating 4 TCP-80 Tcp 30080 5x2"]),
        (
            (&[internal, all_ports], &local),
            &["TCP-80 All 0>0 floating 4 TCP-31000 Http 31000/healthz 5x2"],
        ),
        ((&[internal, all_ports], &udp), &["UDP-53 All 0>0 floating 4 unprobed"]),
        (
            (
                &[
                    internal,
                    all_ports,
                    ("azure-disable-load-balancer-floating-ip", "true"),
                    ("port_80_health-probe_interval", "7"),
                ],
                &none,
            ),
            &["TCP-80 All 0>0 floating 4 TCP-80 Tcp 30080 7x2"],
        ),
        ((&[all_ports], &none), &[web, "UDP-53 Udp 53>53 floating 4 unprobed"]),
        ((&[internal], &sctp), &["SCTP-99 All 99>99 floating 4 unprobed"]),
        ((&[("port_99_no_lb_rule", "true")], &sctp), &[]),
    ];
    for ((annotations, spec), expected) in cases {
        assert_eq!(&lines(&wanted(annotations, spec)).unwrap(), expected, "{annotations:?} {spec}");
    }
}

#[test]
fn what_cannot_be_is_refused_in_the_providers_words() {
    let sctp = json!({ "ports": [{ "port": 99, "nodePort": 30099, "protocol": "SCTP" }] });
    let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000 });
    let none = json!({});
    let idle = "error generate lb rule for ha mod loadbalancer. err: error parsing idle timeout key: \
                service.beta.kubernetes.io/azure-load-balancer-tcp-idle-timeout, err: ";
    let cases: &[(Asks<'_>, String)] = &[
        ((
            &[("azure-load-balancer-tcp-idle-timeout", "abc")],
            &none),
            format!("{idle}error value: strconv.ParseInt: parsing \"abc\": invalid syntax: abc value must be a whole number"),
        ),
        ((
            &[("azure-load-balancer-tcp-idle-timeout", "200")],
            &none),
            format!("{idle}error parsing value: idle timeout value must be a whole number representing minutes between \
                 4 and 100, actual value: 200"),
        ),
        ((
            &[("azure-load-balancer-health-probe-interval", "4")],
            &none),
            "failed to parse health probe config for port 80: failed to parse annotation \
             service.beta.kubernetes.io/azure-load-balancer-health-probe-interval: error parsing value: \
             the minimum value of interval is 5".to_owned(),
        ),
        ((
            &[("port_80_health-probe_num-of-probe", "1")],
            &none),
            "failed to parse health probe config for port 80: failed to parse annotation \
             service.beta.kubernetes.io/port_80_health-probe_num-of-probe: error parsing value: \
             the minimum value of num-of-probe is 2".to_owned(),
        ),
        ((
            &[("azure-load-balancer-health-probe-interval", "60")],
            &local),
            "total probe should be less than 120, please adjust interval and number of probe accordingly".to_owned(),
        ),
        ((
            &[("port_80_health-probe_port", "nobody")],
            &none),
            "failed to parse annotation service.beta.kubernetes.io/port_80_health-probe_port: port nobody not found in \
             service".to_owned(),
        ),
        ((
            &[("port_80_health-probe_port", "70000")],
            &none),
            "failed to parse annotation service.beta.kubernetes.io/port_80_health-probe_port: port 70000 is out of range"
                .to_owned(),
        ),
        ((&[], &sctp), "SCTP is only supported on standard loadbalancer in internal mode".to_owned()),
    ];
    for ((annotations, spec), expected) in cases {
        assert_eq!(lines(&wanted(annotations, spec)), Err(expected.clone()), "{annotations:?}");
    }
}

//! `aksnet trace`: one real packet, what it met on its way, and what the model says of it.

mod cilium;
mod hops;
pub(crate) mod model;
mod watcher;

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use linux::probe::{Kind, Outcome};
use serde::Serialize;
use vnet::addr::Family;

pub(crate) use self::cilium::is_on as has_cilium;
use self::{
    hops::{Hop, Path},
    model::{Question, Way},
};
use crate::{
    Exit,
    control::{Answer, Ask, ask},
    lab::Lab,
    output::{self, Format},
    places::Place,
};

/// What probes from the internet to an address of IPv6 come from (RFC 3849: an address for documentation). The internet
/// has every address there is, and of IPv6 none on a link, which the kernel would choose.
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What probes are marked with: a value of IP's DSCP that no standard gives a meaning (RFC 2474, pool 2). It
/// stays when addresses and ports are translated, and nothing here looks at it.
const DSCP: u8 = 0b10_1111;

#[derive(Debug, Args)]
#[command(
    after_help = "FROM is a VM, a node, a pod or `internet`; TO is one of these, a load balancer, or any address.
`aksnet capture --help` says how points are written.

The exit status is 0 when the probe arrived and was answered (also when nobody listens on the port; a UDP
datagram need only arrive), 1 when not, 3 when the packet did not do what the model says.

Examples:
  aksnet trace jump db --port 5432
  aksnet trace pod/testns/web 10.1.1.4 --port 53 --protocol udp
  aksnet trace -6 jump db --port 5432
  aksnet trace internet lb/kubernetes --port 80 -o json"
)]
pub(crate) struct Trace {
    /// Who sends
    from: String,
    /// To whom
    to: String,
    /// The port; without one, an ICMP echo is sent
    #[arg(long, short)]
    port: Option<u16>,
    /// What to send [default: tcp with a port, icmp without]
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// To the IPv6 address of TO
    #[arg(long, short = '6')]
    ipv6: bool,
    /// How many seconds to wait for an answer
    #[arg(long, value_name = "S", default_value = "2")]
    timeout: f64,
    /// The form of the answer
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// The beginning of a connection
    Tcp,
    /// A datagram
    Udp,
    /// An echo request
    Icmp,
}

/// What `-o json` gives. `version` changes with the form.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: u32,
    from: String,
    to: String,
    protocol: &'static str,
    /// Whether the probe arrived and was answered.
    reachable: bool,
    /// The same in words.
    verdict: String,
    hops: Vec<Hop>,
    /// Where the answer passed, from the receiver's side.
    answer: Vec<Answered>,
    milliseconds: Option<f64>,
    /// What the model says of what entered a virtual network; empty when nothing did.
    model: Vec<Way>,
    /// Whether the packet did what the model says; `None` when it was not the model's.
    agree: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    place: String,
    packet: String,
}

/// Sends a probe and shows its way.
pub(crate) fn run(lab: &Lab, wanted: &Trace) -> anyhow::Result<Exit> {
    let (kind, port) = match (wanted.protocol, wanted.port) {
        (None | Some(Protocol::Tcp), Some(port)) => (Kind::Tcp, port),
        (Some(Protocol::Udp), Some(port)) => (Kind::Udp, port),
        (None | Some(Protocol::Icmp), None) => (Kind::Echo, 0),
        (Some(Protocol::Icmp), Some(_)) => bail!("icmp has no ports; leave out --port"),
        (Some(_), None) => bail!("tcp and udp need a --port"),
    };
    if !(wanted.timeout > 0.0 && wanted.timeout <= 3600.0) {
        bail!("--timeout takes seconds, up to 3600");
    }
    let question = Ask::Ground { from: wanted.from.clone(), to: wanted.to.clone() };
    let Answer::Ground { from, to, watched, groups } = ask(lab, &question)? else {
        bail!("the lab answered another question");
    };
    let can_send = ["vm/", "node/", "pod/", "internet"].iter().any(|it| from.name.starts_with(it));
    if !can_send {
        bail!("{} cannot send a probe: FROM is a VM, a node, a pod or `internet`", from.name);
    }
    let address = if wanted.ipv6 { to.address_v6 } else { to.address };
    let address = address.with_context(|| match to.name.as_str() {
        "internet" => "say which address on the internet, such as 203.0.113.9".to_owned(),
        name if wanted.ipv6 => format!("{name} has no IPv6 address"),
        name => format!("{name} has no address that a probe could be sent to"),
    })?;
    refuse_pointless(&from, &to, address)?;
    let destination = SocketAddr::new(address, port);
    let protocol = kind.protocol(Family::of(address));
    let patience = Duration::from_secs_f64(wanted.timeout);
    let seen = watcher::watch(lab.name(), (&watched, &groups), &from, kind, destination, patience)?;
    let names: Vec<String> = seen.told.iter().map(|told| told.name.clone()).collect();
    let mut path = hops::path(&seen.seen, &seen.told, DSCP, protocol);
    if from.first_process.is_some_and(cilium::is_on) {
        cilium::show_socket(&mut path, destination);
    }
    let ways = match question_about(&from, &path, protocol) {
        None => Vec::new(),
        Some(question) => match ask(lab, &Ask::Ways(question))? {
            Answer::Ways(ways) => ways,
            _ => bail!("the lab answered another question"),
        },
    };
    let mut report = report(&from, &to, kind, seen.outcome, path, &names, ways);
    if report.hops.is_empty()
        && matches!(seen.outcome, Outcome::Unreachable(_))
        && from.first_process.is_some_and(cilium::is_on)
    {
        cilium::UNANSWERED.clone_into(&mut report.verdict);
    }
    output::show(&report, wanted.output, draw)?;
    Ok(match (report.agree, report.reachable) {
        (Some(false), _) => Exit::Failed,
        (_, true) => Exit::Done,
        (_, false) => Exit::No,
    })
}

/// The model knows what is outside of machines: the flow as it enters a virtual network, or leaves the internet.
fn question_about(from: &Place, path: &Path, protocol: u8) -> Option<Question> {
    let entered = path.hops.iter().find(|hop| is_vnet(hop))?;
    let hop = if from.name == "internet" { path.hops.first()? } else { entered };
    let packet = hop.first.as_ref()?;
    let (source, destination) = packet.ports().unwrap_or_default();
    Some(Question {
        machine: from.machine.clone(),
        source: SocketAddr::new(packet.source, source),
        destination: SocketAddr::new(packet.destination, destination),
        protocol,
    })
}

fn is_vnet(hop: &Hop) -> bool {
    hop.place.starts_with("vnet/")
}

/// Puts the answer together.
fn report(
    from: &Place,
    to: &Place,
    kind: Kind,
    outcome: Outcome,
    path: Path,
    names: &[String],
    ways: Vec<Way>,
) -> Report {
    let last = path.hops.last();
    let was_dropped = last.is_some_and(|hop| hop.dropped);
    let arrived = path.hops.len() > 1 && last.is_some_and(|hop| !is_vnet(hop) && !hop.dropped);
    let was_answered = matches!(outcome, Outcome::Answered(_) | Outcome::Refused(_));
    let reachable = match kind {
        Kind::Udp => was_answered && !was_dropped || arrived,
        Kind::Tcp | Kind::Echo => was_answered && !was_dropped,
    };
    let (way, agree) = agreement(&path, &ways);
    let way = way.cloned();
    Report {
        version: 1,
        from: from.name.clone(),
        to: to.name.clone(),
        protocol: match kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Echo => "icmp",
        },
        reachable,
        verdict: verdict(outcome, &path, arrived, names),
        answer: path
            .answer
            .iter()
            .map(|(place, packet)| Answered {
                place: names.get(*place).cloned().unwrap_or_default(),
                packet: packet.clone(),
            })
            .collect(),
        milliseconds: match outcome {
            Outcome::Answered(after) | Outcome::Refused(after) => {
                Some((after.as_secs_f64() * 1e6).round() / 1e3)
            }
            Outcome::Unreachable(_) | Outcome::Silence => None,
        },
        hops: path.hops,
        // The way that was taken comes first.
        model: way
            .iter()
            .cloned()
            .chain(ways.into_iter().filter(|it| Some(it) != way.as_ref()))
            .collect(),
        agree,
    }
}

/// Refuses probes that cannot leave, and says what would.
fn refuse_pointless(from: &Place, to: &Place, address: IpAddr) -> anyhow::Result<()> {
    let (is_private, is_to_all) = match address {
        IpAddr::V4(v4) => (v4.is_private(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unique_local(), false),
    };
    if address.is_multicast() || is_to_all {
        bail!("a virtual network carries no multicast and no broadcast, which {address} is");
    }
    if from.name == "internet" && is_private {
        bail!(
            "the internet knows no route to {address}: say the public address of {}, if it has one (`az network \
             public-ip list`)",
            to.name
        );
    }
    Ok(())
}

/// The appliance that made another packet of it and sent that on, which is its own doing: from there on the model
/// speaks of something else.
fn translator(hops: &[Hop]) -> Option<&String> {
    let entered = hops.iter().position(is_vnet)?;
    let left = hops.iter().rposition(is_vnet)?;
    let mut between = hops[entered..=left].iter();
    between.find(|hop| !is_vnet(hop) && hop.before != hop.after).map(|hop| &hop.place)
}

/// The way of the model's that the packet took, or should have, and whether it did.
fn agreement<'w>(path: &Path, ways: &'w [Way]) -> (Option<&'w Way>, Option<bool>) {
    let Some(entered) = path.hops.iter().position(is_vnet) else { return (None, None) };
    let left = path.hops.iter().rposition(is_vnet).unwrap_or(entered);
    let beyond = &path.hops[left + 1..];
    // A node may send it on to another, of which the model knows nothing: what counts is where it got first.
    let arrival = |way: &Way| {
        let machine = way.delivered_to.as_ref()?;
        path.hops[entered + 1..].iter().position(|hop| hop.place == *machine)
    };
    let translator = translator(&path.hops);
    let passed = |machine: &&String| path.hops.iter().any(|hop| hop.place == **machine);
    let dropper = path.hops.last().and_then(|hop| hop.rules.iter().find(|rule| rule.is_drop));
    let agrees = |way: &Way| {
        if translator.is_some_and(|machine| way.through.contains(machine)) {
            return true;
        }
        let same_rule = match (&way.denied_by, dropper.filter(|_| beyond.is_empty())) {
            (Some(rule), Some(dropper)) => dropper.name.as_ref() == Some(rule),
            (Some(_), None) => false,
            (None, _) => true,
        };
        match &way.delivered_to {
            Some(_) => arrival(way).is_some(),
            None => (way.passes && !way.ends_in_network) != beyond.is_empty() && same_rule,
        }
    };
    let destination = path.hops.last().and_then(|hop| hop.last.as_ref()).map(|it| it.destination);
    let taken = |way: &&Way| destination == Some(way.destination);
    let way = ways
        .iter()
        .filter(|way| agrees(way))
        .min_by_key(|way| {
            let n_passed = way.through.iter().filter(passed).count();
            (way.through.len() - n_passed, arrival(way))
        })
        .or_else(|| ways.iter().find(taken))
        .or_else(|| ways.first());
    (way, way.map(agrees))
}

fn verdict(outcome: Outcome, path: &Path, arrived: bool, names: &[String]) -> String {
    let Some(last) = path.hops.last() else {
        return match outcome {
            Outcome::Unreachable(_) => "it never left: no route leads there".to_owned(),
            _ => "it never left".to_owned(),
        };
    };
    if let Some(rule) = last.rules.iter().find(|rule| rule.is_drop) {
        let name = rule.name.as_deref().or(rule.text.as_deref()).unwrap_or("a rule");
        let chain = rule.gate.as_ref().unwrap_or(&rule.chain);
        return format!("dropped at {} by `{name}` ({chain})", last.place);
    }
    match outcome {
        Outcome::Answered(_) => "answered".to_owned(),
        Outcome::Refused(_) => "it arrived, and nobody listens there".to_owned(),
        Outcome::Unreachable(reason) => {
            format!("last seen at {}: {}", last.place, reason.desc())
        }
        Outcome::Silence if arrived => match path.answer.last() {
            // Who sent the probe got no answer, so it ended on its way back.
            Some((place, packet)) => format!(
                "it arrived at {}, and the answer ({packet}) was last seen at {}",
                last.place,
                names.get(*place).map_or("?", String::as_str)
            ),
            None => format!("it arrived at {}, and no answer came", last.place),
        },
        Outcome::Silence if last.link_out.is_none() => {
            format!("last seen at {}: no route led on, or nobody there has the address", last.place)
        }
        Outcome::Silence => format!("last seen leaving {}", last.place),
    }
}

fn draw(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        writeln!(text, "{arguments}").expect("writing to a String never fails");
    };
    let ends = report.hops.first().map_or("", |hop| &hop.before);
    line(format_args!("{} from {} to {}  {ends}\n", report.protocol, report.from, report.to));
    for (number, hop) in (1..).zip(&report.hops) {
        let links = match (&hop.link_in, &hop.link_out) {
            (Some(one), Some(other)) => format!("in {one}, out {other}"),
            (Some(one), None) => format!("in {one}"),
            (None, Some(other)) => format!("out {other}"),
            (None, None) => String::new(),
        };
        line(format_args!("{number:>2}  {}  {links}", hop.place));
        for rule in hop.rules.iter().filter(|rule| is_telling(rule)) {
            let what = rule.name.as_deref().or(rule.text.as_deref()).unwrap_or("a rule");
            let at = rule.gate.as_ref().unwrap_or(&rule.chain);
            line(format_args!("      {at}: {}", said(rule, what)));
        }
        if hop.before != hop.after {
            line(format_args!("      {}  becomes  {}", hop.before, hop.after));
        }
    }
    let mut result = report.verdict.clone();
    if let Some(milliseconds) = report.milliseconds {
        write!(result, ", after {milliseconds} ms").expect("writing to a String never fails");
    }
    line(format_args!("\npacket  {result}"));
    if !report.answer.is_empty() {
        let places: Vec<&str> = report.answer.iter().map(|it| it.place.as_str()).collect();
        let packet = &report.answer[0].packet;
        line(format_args!("        {packet} back by {}", places.join(", ")));
    }
    for way in report.model.iter().take(1) {
        line(format_args!("model   {}", way.end));
        for step in &way.steps {
            line(format_args!("          {step}"));
        }
    }
    let reachable = if report.reachable { "reachable" } else { "not reachable" };
    let agreement = match (report.agree, translator(&report.hops)) {
        (Some(true), Some(machine)) => {
            format!("the packet did what the model says until {machine} made another one of it")
        }
        (Some(true), None) => "the packet did what the model says".to_owned(),
        (Some(false), _) => "the packet did NOT do what the model says".to_owned(),
        (None, _) => "it entered no virtual network, so the model says nothing".to_owned(),
    };
    line(format_args!("\n{reachable}; {agreement}"));
    text
}

/// What a rule does, in words.
fn said(rule: &hops::Rule, what: &str) -> String {
    match (rule.verdict.as_str(), &rule.gate, rule.is_drop) {
        (cilium::DEFAULT_DENY, _, _) => format!("no rule of {what} allows it"),
        (cilium::AUDIT, _, _) => format!("{what} would deny it, and only audits"),
        (cilium::REDIRECT, _, _) => format!("{what} allows, by way of the proxy"),
        (cilium::TRANSLATED, _, _) => what.to_owned(),
        (_, Some(_), true) => format!("{what} denies"),
        (_, Some(_), false) => format!("{what} allows"),
        (_, None, true) => format!("{what} drops"),
        (_, None, false) => what.to_owned(),
    }
}

/// Whether a rule is worth a line: those that have a name, drop, choose or translate. Who jumps where is in the JSON.
fn is_telling(rule: &hops::Rule) -> bool {
    const CHANGES: [&str; 6] =
        ["mark set jhash", "mark set symhash", "nat to ", "masquerade", "redirect", "reject"];
    let changes = |text: &String| {
        CHANGES.iter().any(|change| text.contains(change)) && !text.contains("vmap")
    };
    rule.name.is_some() || rule.is_drop || rule.text.as_ref().is_some_and(changes)
}

#[cfg(test)]
mod tests;

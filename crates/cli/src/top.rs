//! `aksnet top`: flows, drops by rule and addresses by subnet, as they are now. And `aksnet metrics`, the same for
//! Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::Args;
use daemon::metrics::{Sample, VnetSample, prometheus};
use serde::Serialize;

use crate::{
    capture::stop_on_signals,
    control::{Answer, Ask, ask},
    lab::Lab,
    output::{self, Format, data},
};

/// Drops that are shown at most, the busiest.
const MAX_DROPS: usize = 15;
/// To the upper left corner, and everything from there away.
const CLEAR: &str = "\x1b[H\x1b[J";
/// The other screen and back, without and with the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  aksnet top
  aksnet top --once -o json | jq '.vnets[] | {name, flows}'")]
pub(crate) struct Top {
    /// Show it once and end; without a terminal, too
    #[arg(long)]
    once: bool,
    /// Seconds between looks
    #[arg(long, value_name = "S", default_value = "2")]
    interval: f64,
    /// How many pairs of addresses are shown of each virtual network
    #[arg(long, value_name = "N", default_value = "5")]
    talkers: usize,
    /// The form of the answer; JSON comes once for each look
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// A sample with how fast drops rise.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Look {
    #[serde(flatten)]
    sample: Sample,
    drops: Vec<Drop>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Drop {
    vnet: String,
    /// `GROUP/RULE` of a security rule, or the reason in words.
    reason: String,
    packets: u64,
    /// Since the last look.
    per_second: Option<f64>,
}

/// Packets by virtual network and reason.
type Drops = BTreeMap<(String, String), u64>;

/// Shows until it is told to end.
pub(crate) fn run(lab: &Lab, wanted: &Top) -> anyhow::Result<()> {
    if !(wanted.interval >= 0.1 && wanted.interval <= 3600.0) {
        bail!("--interval takes seconds, 0.1 to 3600");
    }
    let on_screen = io::stdout().is_terminal() && wanted.output == Format::Table && !wanted.once;
    let once = wanted.once || (!on_screen && wanted.output == Format::Table);
    let stop = stop_on_signals()?;
    let mut before: Option<(Instant, Drops)> = None;
    // Whatever happens, the terminal gets its screen back.
    let _screen = on_screen.then(Screen::enter).transpose()?;
    loop {
        let sample = take(lab, wanted.talkers)?;
        let taken = Instant::now();
        let drops = drops(&sample);
        let since = before.as_ref().map(|(at, drops)| (taken - *at, drops));
        let look = Look { drops: rates(&drops, since), sample };
        if on_screen {
            write!(io::stdout(), "{CLEAR}{}", draw(lab, &look))?;
            io::stdout().flush()?;
        } else {
            output::show(&look, wanted.output, |look| draw(lab, look))?;
        }
        if once {
            return Ok(());
        }
        before = Some((taken, drops));
        let until = taken + Duration::from_secs_f64(wanted.interval);
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Prints the lab's numbers as Prometheus reads them.
pub(crate) fn metrics(lab: &Lab) -> anyhow::Result<()> {
    data(prometheus(&take(lab, 0)?).trim_end());
    Ok(())
}

fn take(lab: &Lab, talkers: usize) -> anyhow::Result<Sample> {
    match ask(lab, &Ask::Sample { talkers })? {
        Answer::Sample(sample) => Ok(*sample),
        _ => bail!("the lab answered another question"),
    }
}

struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        write!(io::stdout(), "{ENTER}")?;
        Ok(Self)
    }
}

impl std::ops::Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = write!(io::stdout(), "{LEAVE}").and_then(|()| io::stdout().flush());
    }
}

fn drops(sample: &Sample) -> Drops {
    let mut drops = Drops::new();
    for vnet in &sample.vnets {
        for rule in vnet.rules.iter().filter(|rule| rule.drops) {
            let reason = match &rule.group {
                Some(group) => format!("{group}/{}", rule.name),
                None => rule.name.clone(),
            };
            *drops.entry((vnet.name.clone(), reason)).or_default() += rule.packets;
        }
    }
    drops
}

/// What was dropped at all, the fastest first.
fn rates(drops: &Drops, since: Option<(Duration, &Drops)>) -> Vec<Drop> {
    let mut all: Vec<Drop> = drops
        .iter()
        .filter(|(_, packets)| **packets > 0)
        .map(|((vnet, reason), packets)| Drop {
            vnet: vnet.clone(),
            reason: reason.clone(),
            packets: *packets,
            per_second: since.map(|(elapsed, before)| {
                let before = before.get(&(vnet.clone(), reason.clone())).copied();
                let more = packets.saturating_sub(before.unwrap_or_default());
                // A count of packets in a few seconds is far below 2^32.
                f64::from(u32::try_from(more).unwrap_or(u32::MAX))
                    / elapsed.as_secs_f64().max(0.001)
            }),
        })
        .collect();
    all.sort_by(|a, b| {
        let faster = b.per_second.unwrap_or_default().total_cmp(&a.per_second.unwrap_or_default());
        faster.then(b.packets.cmp(&a.packets))
    });
    all
}

fn draw(lab: &Lab, look: &Look) -> String {
    let sample = &look.sample;
    let mut nodes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (cluster, phase, n) in &sample.nodes {
        let count = nodes.entry(cluster).or_default();
        count.0 += if phase == "Ready" { *n } else { 0 };
        count.1 += n;
    }
    let mut title = format!("lab {}, {} VMs", lab.name(), sample.vms);
    for (cluster, (ready, all)) in nodes {
        write!(title, ", {cluster} {ready}/{all} nodes ready")
            .expect("writing to a String never fails");
    }
    let mut parts = vec![title];
    let subnets: Vec<Vec<String>> = sample
        .vnets
        .iter()
        .flat_map(|vnet| vnet.subnets.iter().map(move |subnet| (vnet, subnet)))
        .map(|(vnet, subnet)| {
            vec![
                format!("{}/{}", vnet.name, subnet.name),
                subnet.prefix.clone(),
                subnet.used.to_string(),
                subnet.free.to_string(),
            ]
        })
        .collect();
    parts.push(section("no subnets", &["SUBNET", "PREFIX", "USED", "FREE"], &subnets));
    parts.extend(sample.vnets.iter().map(flows));
    let drops: Vec<Vec<String>> = look
        .drops
        .iter()
        .take(MAX_DROPS)
        .map(|drop| {
            let rate = drop.per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
            vec![drop.vnet.clone(), drop.reason.clone(), drop.packets.to_string(), rate]
        })
        .collect();
    parts.push(section(
        "nothing was dropped",
        &["VNET", "DROPPED BY", "PACKETS", "PER SECOND"],
        &drops,
    ));
    parts.join("\n\n") + "\n"
}

fn flows(vnet: &VnetSample) -> String {
    let mut text = format!("vnet {}: {} flows", vnet.name, vnet.flows);
    let rows: Vec<Vec<String>> = vnet
        .talkers
        .iter()
        .map(|pair| {
            vec![
                pair.protocol.clone(),
                pair.source.clone(),
                pair.destination.clone(),
                pair.flows.to_string(),
                pair.unreplied.to_string(),
                pair.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&output::table(
            &["PROTOCOL", "FROM", "TO", "FLOWS", "UNANSWERED", "BYTES"],
            &rows,
        ));
    }
    text
}

fn section(empty: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() { empty.to_owned() } else { output::table(header, rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drops_fastest_comes_first_and_what_never_did_not_at_all() {
        let drops = |counts: &[(&str, u64)]| -> Drops {
            counts.iter().map(|(name, n)| (("v".to_owned(), (*name).to_owned()), *n)).collect()
        };
        let before = drops(&[("a", 100), ("b", 5), ("c", 0)]);
        let now = drops(&[("a", 101), ("b", 25), ("c", 0), ("d", 2)]);
        let told = |all: Vec<Drop>| {
            all.into_iter().map(|it| (it.reason, it.per_second)).collect::<Vec<_>>()
        };
        assert_eq!(
            told(rates(&now, Some((Duration::from_secs(2), &before)))),
            [
                ("b".to_owned(), Some(10.0)),
                ("d".to_owned(), Some(1.0)),
                ("a".to_owned(), Some(0.5))
            ]
        );
        let first = told(rates(&now, None));
        assert_eq!(first[0], ("a".to_owned(), None), "without rates, what dropped most");
    }
}

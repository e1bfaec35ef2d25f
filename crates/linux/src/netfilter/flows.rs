//! Flows that connection tracking knows. Not here: whose they are.

use std::{fs, io, net::IpAddr, path::Path};

use crate::{LinuxError, netns::Netns};

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Side {
    /// Who sends.
    pub source: IpAddr,
    /// Who is addressed.
    pub destination: IpAddr,
    /// The sender's port, where the protocol has ports.
    pub source_port: Option<u16>,
    /// The addressed port.
    pub destination_port: Option<u16>,
    /// Packets, when the kernel counts them (`net.netfilter.nf_conntrack_acct`).
    pub packets: Option<u64>,
    /// Bytes, when the kernel counts them.
    pub bytes: Option<u64>,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp`, …
    pub protocol: String,
    /// `ESTABLISHED` and the like; TCP has states.
    pub state: Option<String>,
    /// As the one who began it sends.
    pub original: Side,
    /// As answers come back: the other way round, unless addresses are translated.
    pub reply: Side,
    /// Whether no answer has come yet.
    pub unreplied: bool,
}

/// The flows of a namespace.
pub fn flows(namespace: &Netns) -> Result<Vec<Flow>, LinuxError> {
    let text = read(namespace, "/proc/thread-self/net/nf_conntrack")?;
    Ok(text.lines().filter_map(parse).collect())
}

/// How many flows a namespace has.
pub fn flow_count(namespace: &Netns) -> Result<u64, LinuxError> {
    let text = read(namespace, "/proc/sys/net/netfilter/nf_conntrack_count")?;
    Ok(text.trim().parse().unwrap_or_default())
}

/// Empty when the kernel has no such file: nobody tracks connections then.
fn read(namespace: &Netns, path: &str) -> Result<String, LinuxError> {
    match namespace.run(|| fs::read_to_string(path))? {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => {
            Err(LinuxError::File { verb: "reading", path: Path::new(path).to_owned(), source })
        }
    }
}

/// `ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=… [packets=… bytes=…] [[UNREPLIED]] src=… …`.
fn parse(line: &str) -> Option<Flow> {
    let mut words = line.split_whitespace();
    let protocol = words.nth(2)?.to_owned();
    let rest: Vec<&str> = words.skip(2).collect();
    let state = rest.first().filter(|word| !word.contains('=') && !word.starts_with('['));
    let is_source = |word: &&str| word.starts_with("src=");
    let first = rest.iter().position(is_source)?;
    let second = first + 1 + rest.get(first + 1..)?.iter().position(is_source)?;
    Some(Flow {
        protocol,
        state: state.map(|&state| state.to_owned()),
        original: side(rest.get(first..second)?)?,
        reply: side(rest.get(second..)?)?,
        unreplied: rest.contains(&"[UNREPLIED]"),
    })
}

fn side(words: &[&str]) -> Option<Side> {
    let value = |key: &str| {
        words.iter().find_map(|word| word.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')))
    };
    Some(Side {
        source: value("src")?.parse().ok()?,
        destination: value("dst")?.parse().ok()?,
        source_port: value("sport").and_then(|port| port.parse().ok()),
        destination_port: value("dport").and_then(|port| port.parse().ok()),
        packets: value("packets").and_then(|count| count.parse().ok()),
        bytes: value("bytes").and_then(|count| count.parse().ok()),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind_are_read() {
        let flow = parse(
            "ipv4     2 tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=10.1.0.1 sport=41094 dport=8080 packets=3 bytes=180 src=10.2.0.2 dst=10.2.0.1 sport=80 dport=41094 packets=2 bytes=120 [ASSURED] mark=0 zone=0 use=2",
        )
        .unwrap();
        assert_eq!((flow.protocol.as_str(), flow.state.as_deref()), ("tcp", Some("ESTABLISHED")));
        assert_eq!(flow.original.destination_port, Some(8080));
        assert_eq!(flow.reply.source.to_string(), "10.2.0.2");
        assert_eq!((flow.original.bytes, flow.reply.packets), (Some(180), Some(2)));
        let flow = parse(
            "ipv4     2 icmp     1 26 src=10.1.0.2 dst=10.2.0.2 type=8 code=0 id=9307 [UNREPLIED] src=10.2.0.2 dst=10.1.0.2 type=0 code=0 id=9307 mark=0 zone=0 use=2",
        )
        .unwrap();
        assert!(flow.unreplied && flow.state.is_none() && flow.original.source_port.is_none());
        let flow = parse(
            "ipv6     10 udp      17 29 src=fd00::1 dst=fd00::2 sport=1 dport=2 src=fd00::2 dst=fd00::1 sport=2 dport=1 mark=0 use=2",
        );
        assert_eq!(flow.unwrap().reply.source.to_string(), "fd00::2");
        for bad in
            ["", "ipv4 2 tcp", "ipv4 2 tcp 6 1 src=x dst=y src=z dst=w", "a b c d e src=1.1.1.1"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

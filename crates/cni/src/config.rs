//! The network configuration on stdin. Not here: the environment.

use std::{io::Read, net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use vnet::pods::ports::{Bandwidth, HostPort, PortMapping, Rate, Transport};

use crate::{
    invocation::check_identifier,
    spec::{Code, Failure, Version, shorten},
    talk::Attachment,
};

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/aksnet/agent.sock";
/// The names that the plugin is installed under; the second is what Azure's configurations of Cilium ask for
/// addresses (Azure/azure-container-networking, `azure-ipam`).
const NAMES: [&str; 2] = ["aksnet-cni", "azure-ipam"];
/// A configuration of a node with thousands of attachments (GC lists them) is far below this.
const LARGEST_BYTES: u64 = 4 << 20;

/// A network configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// The version that the answer must have.
    pub version: Version,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// What pods are told about DNS, handed on as it is.
    pub dns: Option<Value>,
    /// The result of the plugin before this one, or of the ADD that is being checked.
    pub previous: Option<Map<String, Value>>,
    /// The attachments that GC must keep, if the runtime listed them.
    pub valid: Option<Vec<Attachment>>,
    /// Whether another plugin asks, for an address only.
    pub is_delegated: bool,
    /// Ports of the node that are to lead to the pod.
    pub ports: Vec<PortMapping>,
    /// The pod's share of the network.
    pub bandwidth: Bandwidth,
}

// Unknown fields are allowed: the runtime adds its own, and chains share one configuration.
#[derive(Deserialize)]
struct Wire {
    name: Option<String>,
    #[serde(rename = "agentSocket")]
    agent_socket: Option<PathBuf>,
    dns: Option<Value>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<WireAttachment>>,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<WireRuntime>,
    #[serde(rename = "type")]
    plugin: Option<Value>,
    // Of any shape: most plugins' is no business of ours.
    ipam: Option<Value>,
}

impl Wire {
    /// A plugin that delegates hands on its own configuration, in which `ipam.type` names us and `type`
    /// itself (CNI specification, "Section 4: Plugin Delegation").
    fn is_delegated(&self) -> bool {
        let is_ours = |name: &Value| NAMES.iter().any(|ours| name == ours);
        let ipam = self.ipam.as_ref().and_then(|ipam| ipam.get("type"));
        ipam.is_some_and(is_ours) && !self.plugin.as_ref().is_some_and(is_ours)
    }
}

/// What the runtime adds for the capabilities that the configuration names.
#[derive(Default, Deserialize)]
struct WireRuntime {
    #[serde(rename = "portMappings")]
    ports: Option<Vec<WirePort>>,
    bandwidth: Option<WireBandwidth>,
}

// containerd writes these two with capitals, which CNI's own library, where Go reads them, does not mind
// (containerd/go-cni: `PortMapping` and `BandWidth` have no JSON names).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePort {
    #[serde(default, alias = "HostPort")]
    host_port: i64,
    #[serde(default, alias = "ContainerPort")]
    container_port: i64,
    #[serde(alias = "Protocol")]
    protocol: Option<String>,
    #[serde(rename = "hostIP", alias = "HostIP")]
    host_ip: Option<String>,
}

/// Bits per second, and bits.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireBandwidth {
    #[serde(alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    egress_burst: u64,
}

#[derive(Deserialize)]
struct WireAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

#[derive(Deserialize)]
struct WireVersion {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
}

/// Reads stdin to its end, or to the limit.
pub fn read_input(input: &mut dyn Read) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    input.take(LARGEST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| {
        Failure::new(Code::Io, "stdin cannot be read").details(error.to_string())
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|n_bytes| n_bytes > LARGEST_BYTES) {
        return Err(Failure::new(Code::Config, "the network configuration is too large")
            .details(format!("more than {LARGEST_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The version that `input` says, as text, for answers to requests that are otherwise wrong.
#[must_use]
pub fn version_text(input: &[u8]) -> Option<String> {
    serde_json::from_slice::<WireVersion>(input).ok()?.version.filter(|text| text.len() <= 32)
}

/// Parses and checks a configuration.
pub fn parse(input: &[u8]) -> Result<NetworkConfig, Failure> {
    // The version first and alone, so that a request of a later one is refused by its version.
    let version: WireVersion = decode(input)?;
    let version: Version = version
        .version
        .as_deref()
        // As libcni reads it (containernetworking/cni, `pkg/version/conf.go`).
        .map_or(Ok(Version::V0_1_0), str::parse)?;
    let wire: Wire = decode(input)?;
    let invalid = |details: String| {
        Failure::new(Code::Config, "the network configuration is wrong").details(details)
    };
    let is_delegated = wire.is_delegated();
    let name = wire.name.unwrap_or_default();
    check_identifier(&name)
        .map_err(|why| invalid(format!("name is `{}`: {why}", shorten(&name))))?;
    let of_ipam = wire
        .ipam
        .as_ref()
        .filter(|_| is_delegated)
        .and_then(|ipam| Some(PathBuf::from(ipam.get("agentSocket")?.as_str()?)));
    let socket = of_ipam.or(wire.agent_socket).unwrap_or_else(|| DEFAULT_SOCKET.into());
    if !socket.is_absolute() {
        return Err(invalid(format!("agentSocket `{}` is not an absolute path", socket.display())));
    }
    let previous = match wire.previous {
        None | Some(Value::Null) => None,
        Some(Value::Object(previous)) => {
            check_previous(&previous).map_err(invalid)?;
            Some(previous)
        }
        Some(_) => return Err(invalid("prevResult is not an object".to_owned())),
    };
    let valid = wire.valid.map(|list| {
        list.into_iter()
            .map(|one| Attachment { container: one.container, interface: one.ifname })
            .collect()
    });
    let runtime = wire.runtime.unwrap_or_default();
    let ports = runtime.ports.unwrap_or_default();
    let ports = ports.iter().filter_map(|port| port_mapping(port).transpose());
    let ports = ports.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    for (n, one) in ports.iter().enumerate() {
        if let Some(other) = ports.iter().take(n).find(|other| other.host.overlaps(one.host)) {
            let what = format!("host port {} is asked for twice, as {} too", one.host, other.host);
            return Err(invalid(format!("runtimeConfig.portMappings: {what}")));
        }
    }
    let wire_rates = runtime.bandwidth.unwrap_or_default();
    let bandwidth = Bandwidth {
        ingress: rate("ingress", wire_rates.ingress_rate, wire_rates.ingress_burst)
            .map_err(invalid)?,
        egress: rate("egress", wire_rates.egress_rate, wire_rates.egress_burst).map_err(invalid)?,
    };
    Ok(NetworkConfig {
        version,
        socket,
        dns: wire.dns,
        previous,
        valid,
        is_delegated,
        ports,
        bandwidth,
    })
}

/// `None` for what is no host port. One at an address of a family that the pod does not have leads nowhere.
fn port_mapping(wire: &WirePort) -> Result<Option<PortMapping>, String> {
    let wrong = |what: String| format!("runtimeConfig.portMappings: {what}");
    if wire.host_port == 0 {
        return Ok(None);
    }
    let port = |name: &str, value: i64| match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(wrong(format!("{name} is {value}, which is no port"))),
    };
    let address = match wire.host_ip.as_deref() {
        None | Some("" | "0.0.0.0" | "::") => None,
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) => return Err(wrong(format!("hostIP is `{}`, no address", shorten(text)))),
        },
    };
    let transport = match wire.protocol.as_deref() {
        None | Some("") => Transport::Tcp,
        Some(text) => shorten(text).parse().map_err(|error| wrong(format!("protocol: {error}")))?,
    };
    let host = HostPort { transport, address, port: port("hostPort", wire.host_port)? };
    Ok(Some(PortMapping { host, pod_port: port("containerPort", wire.container_port)? }))
}

/// Both zero is no limit; one alone is a mistake, as for the reference plugin `bandwidth`.
fn rate(direction: &str, bits_per_second: u64, burst_bits: u64) -> Result<Option<Rate>, String> {
    /// The kernel's `tc_ratespec` and its times have 32 bits; so the reference plugin.
    const MOST_BURST: u64 = 4_294_967_295 * 8;
    let wrong = |what: &str| Err(format!("runtimeConfig.bandwidth: {direction}{what}"));
    match (bits_per_second, burst_bits) {
        (0, 0) => Ok(None),
        (0, _) => wrong("Burst needs a rate"),
        (_, 0) => wrong("Rate needs a burst"),
        (1..8, _) | (_, 1..8) => wrong(": rate and burst are 8 bits at least"),
        (_, burst) if burst > MOST_BURST => wrong("Burst is more than 4 GiB"),
        _ => Ok(Some(Rate { bits_per_second, burst_bits })),
    }
}

fn decode<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(input).map_err(|error| {
        Failure::new(Code::Decode, "the network configuration is not readable")
            .details(error.to_string())
    })
}

/// What is added to must be lists, and what points into them must point at something.
fn check_previous(previous: &Map<String, Value>) -> Result<(), String> {
    for list in ["interfaces", "ips", "routes"] {
        match previous.get(list) {
            None | Some(Value::Null | Value::Array(_)) => (),
            Some(_) => return Err(format!("prevResult.{list} is not a list")),
        }
    }
    let n_interfaces = list(previous, "interfaces").len();
    for address in list(previous, "ips") {
        match address.get("interface") {
            None | Some(Value::Null) => (),
            Some(index) => {
                let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
                if index.is_none_or(|index| index >= n_interfaces) {
                    return Err(
                        "prevResult.ips names an interface that it does not list".to_owned()
                    );
                }
            }
        }
    }
    Ok(())
}

/// The list called `name` in a result; missing is empty.
pub(crate) fn list<'a>(result: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    result.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

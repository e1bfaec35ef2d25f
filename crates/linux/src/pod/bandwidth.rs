//! A pod's share of the network: token buckets on the node's end of its pair, and for what it sends on a
//! link of its own (`ifb`) that the pair's packets are led through. The same as the reference plugin
//! `bandwidth` makes (containernetworking/plugins, `plugins/meta/bandwidth`), out of the pod's reach.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use nix::errno::Errno;
use vnet::pods::{
    ports::{Bandwidth, Rate},
    wiring::Wiring,
};

use super::{GROUP, Wirer, index};
use crate::{
    LinuxError,
    net::{
        Request,
        traffic::{ALL_PROTOCOLS_FIRST, INGRESS, INGRESS_HANDLE, ROOT, message, put},
    },
};

const TBF_HANDLE: u32 = 0x0001_0000;
/// How long a packet may wait in a bucket, in milliseconds (the reference plugin: 25).
const LATENCY_MS: u64 = 25;

impl Wirer {
    /// Limits a pod that was just wired. Without limits nothing is done.
    pub fn limit(&mut self, wiring: &Wiring, bandwidth: &Bandwidth) -> Result<(), LinuxError> {
        if bandwidth.is_unlimited() {
            return Ok(());
        }
        let name = &wiring.host_link;
        let link = index(name)?;
        if let Some(rate) = bandwidth.ingress {
            self.node.send_all(&[bucket(link, rate, name)])?;
        }
        let Some(rate) = bandwidth.egress else { return Ok(()) };
        let through = limiter(name);
        match self.node.send_all(&[new_limiter(&through, wiring.mtu)]) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            other => other?,
        }
        let limiter = index(&through)?;
        self.node.send_all(&[
            bucket(limiter, rate, &through),
            ingress(link, name),
            redirect(link, limiter, name),
        ])
    }
}

/// The name of the link that a pod's own packets are led through, from the name of its pair.
#[must_use]
pub fn limiter(host_link: &str) -> String {
    let digits = host_link.get(host_link.len().saturating_sub(11)..).unwrap_or(host_link);
    format!("ifb{digits}")
}

fn new_limiter(name: &str, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Group(GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    Request::create(RouteNetlinkMessage::NewLink(message), format!("add link {name}"))
}

/// A token bucket filter in place of the link's queue.
fn bucket(link: u32, rate: Rate, name: &str) -> Request {
    /// `TC_LINKLAYER_ETHERNET`: the kernel computes times and wants no table of them.
    const LINK_LAYER_ETHERNET: u8 = 1;
    /// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
    const PARAMETERS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let bytes_per_second = rate.bits_per_second / 8;
    let burst = rate.burst_bits / 8;
    let wait = bytes_per_second.saturating_mul(LATENCY_MS) / 1000;
    // `struct tc_tbf_qopt`: two `tc_ratespec`s (of which the second, the peak's, is unused), the queue's
    // limit, the buffer in ticks (the attribute of the burst in bytes counts instead), an unused word.
    let mut options = vec![0, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    options.extend(narrow(bytes_per_second).to_ne_bytes());
    options.extend([0; 12]);
    options.extend(narrow(wait.saturating_add(burst)).to_ne_bytes());
    options.extend([0; 8]);
    let mut content = Vec::new();
    put(&mut content, PARAMETERS, &options);
    put(&mut content, RATE64, &bytes_per_second.to_ne_bytes());
    put(&mut content, BURST, &narrow(burst).to_ne_bytes());
    let message = message(link, TBF_HANDLE, ROOT, "tbf", Some(content));
    Request::replace(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        format!("add a token bucket to {name}"),
    )
}

fn ingress(link: u32, name: &str) -> Request {
    let message = message(link, INGRESS_HANDLE, INGRESS, "ingress", None);
    Request::replace(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        format!("add an ingress queue to {name}"),
    )
}

/// Every packet that comes from `link` leaves by `to`, and goes on from there as if nothing had been.
fn redirect(link: u32, to: u32, name: &str) -> Request {
    /// `TCA_U32_SEL`, `TCA_U32_ACT`; `TC_U32_TERMINAL`.
    const SELECTOR: u16 = 5;
    const ACTIONS: u16 = 7;
    const TERMINAL: u8 = 1;
    /// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`; `TCA_MIRRED_PARMS`, `TCA_EGRESS_REDIR`, `TC_ACT_STOLEN`.
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    const PARAMETERS: u16 = 2;
    const EGRESS_REDIRECT: i32 = 1;
    const STOLEN: i32 = 4;
    /// `NLA_F_NESTED`.
    const NESTED: u16 = 0x8000;
    // `struct tc_u32_sel` with one key whose mask is empty: everything matches.
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.extend([0; 12]);
    selector.extend([0; 16]);
    // `struct tc_mirred`: index, capabilities, action, two counters, what to do, the link.
    let mut mirred = Vec::new();
    for word in [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT] {
        mirred.extend(word.to_ne_bytes());
    }
    mirred.extend(to.to_ne_bytes());
    let mut parameters = Vec::new();
    put(&mut parameters, PARAMETERS, &mirred);
    let mut action = Vec::new();
    put(&mut action, KIND, b"mirred\0");
    put(&mut action, NESTED | OPTIONS, &parameters);
    let mut actions = Vec::new();
    put(&mut actions, NESTED | 1, &action);
    let mut content = Vec::new();
    put(&mut content, SELECTOR, &selector);
    put(&mut content, NESTED | ACTIONS, &actions);
    let mut message = message(link, 0, INGRESS_HANDLE, "u32", Some(content));
    message.header.info = ALL_PROTOCOLS_FIRST;
    Request::create(
        RouteNetlinkMessage::NewTrafficFilter(message),
        format!("lead the packets of {name} through its token bucket"),
    )
}

//! Network Watcher: one for every location with a virtual network, there without having been made, as in Azure; and
//! the questions about a machine that it answers. Not here: what decides the answers (see [`vnet::effective`]).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json};
use vnet::{
    effective,
    fault::Fault,
    model::{Direction, Nic},
    name::ArmId,
    policy::{Flow, Protocol},
    region::Region,
};

use crate::{
    answer::{Answer, Reply},
    call::{Call, content},
    findings::{Findings, any_address, arm_id, given, missing, not_one_of},
    wire::{View, effective as wire},
};

use super::{resources, target::Kind};

/// The type.
pub(super) const KIND: &str = "Microsoft.Network/networkWatchers";

/// Why none can be made or removed.
pub(super) const FIXED: &str =
    "making and removing Network Watchers (each location with a virtual network has one)";

/// The group that Azure puts them in. It is in no list of groups here.
const GROUP: &str = "NetworkWatcherRG";

/// The first port that clients get when nobody asks for one (RFC 6335): what `*` is tried as.
const ANY_PORT: u16 = 49_152;

/// Every watcher.
pub(super) fn all(view: &View<'_>) -> Vec<ArmId> {
    let vnets = view.region.vnets.values();
    let places: BTreeSet<(&str, &str)> =
        vnets.map(|vnet| (vnet.meta.id.subscription(), vnet.meta.location.as_str())).collect();
    places
        .into_iter()
        .map(|(subscription, location)| {
            ArmId::group(subscription, GROUP).sibling(KIND, &format!("NetworkWatcher_{location}"))
        })
        .collect()
}

/// A watcher as a `GET` shows it.
pub(super) fn render(view: &View<'_>, id: &ArmId) -> Option<Value> {
    let id = all(view).into_iter().find(|there| there == id)?;
    let location = id.name().trim_start_matches("NetworkWatcher_").to_owned();
    Some(json!({
        "name": id.name(),
        "id": id,
        "type": KIND,
        "location": location,
        "properties": { "provisioningState": "Succeeded", "runningOperationIds": [] },
    }))
}

/// Whether a group is the watchers' own.
pub(super) fn is_own_group(group: &ArmId) -> bool {
    group.resource_group().eq_ignore_ascii_case(GROUP)
}

/// Answers one kind of question.
type Answering = fn(&Call<'_>) -> Answer;

/// What a watcher answers.
const QUESTIONS: [(&str, Answering); 3] = [
    ("ipflowverify", ip_flow_verify),
    ("nexthop", next_hop),
    ("securitygroupview", security_group_view),
];

/// Answers a `POST` about a machine; `None` when it is no question that a watcher here answers.
pub(super) fn ask(call: &Call<'_>, id: &ArmId, word: &str) -> Option<Answer> {
    let (_, answer) = QUESTIONS.into_iter().find(|(known, _)| *known == word)?;
    Some(resources::shown(call, Kind::Watcher, id).and_then(|_| answer(call)))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    target_resource_id: Option<String>,
    target_nic_resource_id: Option<String>,
    direction: Option<String>,
    protocol: Option<String>,
    #[serde(rename = "localIPAddress")]
    local_address: Option<String>,
    local_port: Option<String>,
    #[serde(rename = "remoteIPAddress")]
    remote_address: Option<String>,
    remote_port: Option<String>,
    #[serde(rename = "sourceIPAddress")]
    source: Option<String>,
    #[serde(rename = "destinationIPAddress")]
    destination: Option<String>,
}

fn question(call: &Call<'_>) -> Result<Question, Fault> {
    serde_json::from_slice(call.body).map_err(|error| content(&error))
}

/// The NIC that a question is about.
fn nic_of(region: &Region, question: &Question) -> Result<Arc<Nic>, Fault> {
    let target = "targetResourceId";
    let text = given(question.target_resource_id.clone()).ok_or_else(|| missing(target))?;
    let id = arm_id(&text, target)?;
    let machine = region.machines.get(&id);
    let machine = machine.ok_or_else(|| resources::not_found(region, Kind::Vm, &id))?;
    if let Some(text) = given(question.target_nic_resource_id.clone()) {
        let target = "targetNicResourceId";
        if arm_id(&text, target)? != machine.nic {
            let message = format!("Network Interface {text} is not attached to {id}.");
            return Err(Fault::bad("InvalidParameter", message).at(target));
        }
    }
    let nic = region.nics.get(&machine.nic).filter(|nic| is_running(region, nic));
    nic.cloned().ok_or_else(|| not_running(&id))
}

fn is_running(region: &Region, nic: &Nic) -> bool {
    effective::running_machine(region, nic).is_some()
}

fn not_running(id: &ArmId) -> Fault {
    Fault::bad(
        "OperationNotAllowed",
        format!(
            "Only what runs can be asked about: {id} must be, or be attached to, a running virtual machine."
        ),
    )
}

fn own_address(region: &Region, nic: &Nic, own: IpAddr, target: &str) -> Result<(), Fault> {
    if effective::has_address(region, nic, own) {
        return Ok(());
    }
    let message = format!("IP address {own} is not one of Network Interface {}.", nic.meta.id);
    Err(Fault::bad("InvalidParameter", message).at(target))
}

fn required_address(text: Option<String>, target: &str) -> Result<IpAddr, Fault> {
    given(text).ok_or_else(|| missing(target)).and_then(|text| any_address(&text, target))
}

/// A port; the side that chooses its own may say `*`.
fn port(text: Option<String>, may_be_any: bool, target: &str) -> Result<u16, Fault> {
    let text = given(text).ok_or_else(|| missing(target))?;
    if text == "*" && may_be_any {
        return Ok(ANY_PORT);
    }
    text.parse().map_err(|_| {
        let message =
            format!("The port '{text}' is invalid. It must be an integer from 0 to 65535.");
        Fault::bad("InvalidParameter", message).at(target)
    })
}

fn ip_flow_verify(call: &Call<'_>) -> Answer {
    let question = question(call)?;
    let region = call.region();
    let nic = nic_of(&region, &question)?;
    let mut findings = Findings::default();
    let text = given(question.direction).unwrap_or_default();
    let direction = match text.to_ascii_lowercase().as_str() {
        "inbound" => Ok(Direction::Inbound),
        "outbound" => Ok(Direction::Outbound),
        _ => Err(not_one_of(&text, &["Inbound", "Outbound"], "direction")),
    };
    let is_outbound = direction == Ok(Direction::Outbound);
    let direction = findings.take(direction);
    let text = given(question.protocol).unwrap_or_default();
    let protocol = findings.take(match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(not_one_of(&text, &["TCP", "UDP"], "protocol")),
    });
    let local = findings.take(required_address(question.local_address, "localIPAddress"));
    let remote = findings.take(required_address(question.remote_address, "remoteIPAddress"));
    let local_port = findings.take(port(question.local_port, is_outbound, "localPort"));
    let remote_port = findings.take(port(question.remote_port, !is_outbound, "remotePort"));
    let (direction, flow) = findings.then(|| {
        let (local, remote) = ((local?, local_port?), (remote?, remote_port?));
        let (from, to) = if is_outbound { (local, remote) } else { (remote, local) };
        let flow = Flow {
            source: from.0,
            source_port: from.1,
            destination: to.0,
            destination_port: to.1,
            protocol: protocol?,
        };
        Some((direction?, flow))
    })?;
    let own = if is_outbound { flow.source } else { flow.destination };
    own_address(&region, &nic, own, "localIPAddress")?;
    let verdict = effective::verify(&region, &nic, direction, &flow);
    Ok(Reply::ok(wire::render_verdict(&verdict)))
}

fn next_hop(call: &Call<'_>) -> Answer {
    let question = question(call)?;
    let region = call.region();
    let nic = nic_of(&region, &question)?;
    let source = required_address(question.source, "sourceIPAddress")?;
    let destination = required_address(question.destination, "destinationIPAddress")?;
    own_address(&region, &nic, source, "sourceIPAddress")?;
    let stop = effective::next_stop(&region, &nic, source, destination);
    let stop = stop.ok_or_else(|| not_running(&nic.meta.id))?;
    Ok(Reply::ok(wire::render_next_stop(&stop)))
}

fn security_group_view(call: &Call<'_>) -> Answer {
    let question = question(call)?;
    let region = call.region();
    let view = call.view(&region);
    let nic = nic_of(&region, &question)?;
    Ok(Reply::ok(wire::render_view(&view, &nic)))
}

/// The answer of a NIC's `effectiveNetworkSecurityGroups`.
pub(super) fn effective_groups(call: &Call<'_>, kind: Kind, id: &ArmId) -> Answer {
    let region = call.region();
    let nic = running_nic(&region, kind, id)?;
    let gates = nic.address().map(|address| effective::gates(&region, nic, address.into()));
    Ok(Reply::list(gates.iter().flatten().map(wire::render_gate).collect()))
}

/// The answer of a NIC's `effectiveRouteTable`.
pub(super) fn effective_routes(call: &Call<'_>, kind: Kind, id: &ArmId) -> Answer {
    let region = call.region();
    let nic = running_nic(&region, kind, id)?;
    let routes = effective::routes(&region, nic);
    Ok(Reply::list(wire::render_routes(&region, nic, &routes)))
}

fn running_nic<'a>(region: &'a Region, kind: Kind, id: &ArmId) -> Result<&'a Nic, Fault> {
    let nic = region.nics.get(id).ok_or_else(|| resources::not_found(region, kind, id))?;
    if is_running(region, nic) { Ok(nic) } else { Err(not_running(id)) }
}

//! `…/resources`: everything in a subscription or group, filtered.

use serde_json::{Value, json};
use vnet::{fault::Fault, name::ArmId};

use super::{groups, is_read, resources, target::Kind, wrong_method};
use crate::{
    answer::{Answer, Reply},
    call::Call,
};

/// `GET …/resources`, with the parts of `$filter` that tools use.
pub(super) fn answer(call: &Call<'_>, subscription: &str, group: Option<&str>) -> Answer {
    if !is_read(&call.method) {
        return Err(wrong_method(call));
    }
    if let Some(group) = group {
        groups::find(call, &ArmId::group(subscription, group))?;
    }
    let filter = Filter::parse(call.query.get("$filter").map_or("", String::as_str))?;
    let top = call.query.get("$top").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let region = call.region();
    let view = call.view(&region);
    let kinds = [
        Kind::Vnet,
        Kind::RouteTable,
        Kind::SecurityGroup,
        Kind::ApplicationGroup,
        Kind::NatGateway,
        Kind::PublicIpPrefix,
        Kind::PublicIp,
        Kind::Nic,
        Kind::Balancer,
        Kind::Vm,
        Kind::ScaleSet,
        Kind::Cluster,
    ];
    let mut found = Vec::new();
    for kind in kinds {
        for id in resources::top_level(&view, kind) {
            let is_in = group.is_none_or(|group| id.resource_group().eq_ignore_ascii_case(group))
                && id.subscription().eq_ignore_ascii_case(subscription);
            if !is_in {
                continue;
            }
            let Some(body) = resources::render(&view, kind, &id) else { continue };
            if filter.matches(&id, &body) {
                found.push(brief(&body));
            }
        }
    }
    found.sort_by(|a, b| a["id"].as_str().cmp(&b["id"].as_str()));
    found.truncate(top);
    Ok(Reply::list(found))
}

/// A resource without its properties.
fn brief(body: &Value) -> Value {
    let mut brief = json!({});
    for key in ["id", "name", "type", "location", "tags", "sku", "identity"] {
        if let Some(value) = body.get(key) {
            brief[key] = value.clone();
        }
    }
    if let Some(state) = body.pointer("/properties/provisioningState") {
        brief["provisioningState"] = state.clone();
    }
    brief
}

/// `a eq 'b' and c eq 'd'`.
struct Filter(Vec<(String, String)>);

impl Filter {
    fn parse(text: &str) -> Result<Self, Fault> {
        let mut terms = Vec::new();
        // Quoted values are every second part, so that ` and ` in a name does no harm.
        let parts: Vec<&str> = text.split('\'').collect();
        for pair in parts.chunks(2) {
            let [before, value] = pair else { continue };
            let before = before.trim().trim_start_matches("and ").trim();
            let key = before.strip_suffix(" eq").ok_or_else(|| {
                Fault::bad("InvalidFilterInQueryString", format!("Invalid $filter '{text}' specified in the query string: this lab understands terms of the form name eq 'value' joined by and."))
            })?;
            terms.push((key.trim().to_ascii_lowercase(), (*value).to_owned()));
        }
        Ok(Self(terms))
    }

    fn matches(&self, id: &ArmId, body: &Value) -> bool {
        let mut tag = None;
        self.0.iter().all(|(key, value)| {
            let is = |text: &str| text.eq_ignore_ascii_case(value);
            match key.as_str() {
                "resourcegroup" => is(id.resource_group()),
                "name" => is(id.name()),
                "resourcetype" => is(&id.kind()),
                "location" => body["location"].as_str().is_some_and(is),
                "tagname" => {
                    tag = Some(value.clone());
                    body["tags"].get(value).is_some()
                }
                "tagvalue" => {
                    tag.as_ref().is_some_and(|tag| body["tags"][tag].as_str() == Some(value))
                }
                _ => false,
            }
        })
    }
}

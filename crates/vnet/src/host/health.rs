//! Which members of load balancers answer their probes. Not here: asking them.

use std::{collections::BTreeSet, net::IpAddr};

use super::names;
use crate::{
    model::{LoadBalancer, Probe},
    name::{ArmId, Name},
    region::Region,
};

/// A probe of a load balancer, at one member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    /// The load balancer.
    pub balancer: ArmId,
    /// The probe's name.
    pub probe: Name,
    /// The member's NIC.
    pub member: ArmId,
}

/// Who answers. A member is down until its probe has succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The members that answer.
    pub up: BTreeSet<Probed>,
}

impl Health {
    /// Whether new flows may go to `member`; always, when the rule has no probe.
    #[must_use]
    pub fn is_up(&self, balancer: &ArmId, probe: Option<&Name>, member: &ArmId) -> bool {
        probe.is_none_or(|probe| {
            self.up.contains(&Probed {
                balancer: balancer.clone(),
                probe: probe.clone(),
                member: member.clone(),
            })
        })
    }
}

/// A question that must be asked again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Of whom.
    pub probed: Probed,
    /// The virtual network's namespace, to ask from, with the source [`names::PLATFORM_ADDRESS`].
    pub namespace: String,
    /// The member's address: its primary one, or its IPv6 one in a pool of these.
    pub address: IpAddr,
    /// What to ask.
    pub probe: Probe,
}

/// Every probe that a rule uses, at every member of the rule's pool.
#[must_use]
pub fn questions(lab: &str, region: &Region) -> Vec<Question> {
    let mut questions: Vec<Question> = region
        .balancers
        .values()
        .flat_map(|balancer| questions_of(lab, region, balancer))
        .collect();
    questions.sort_by(|a, b| a.probed.cmp(&b.probed));
    questions.dedup_by(|a, b| a.probed == b.probed);
    questions
}

fn questions_of(lab: &str, region: &Region, balancer: &LoadBalancer) -> Vec<Question> {
    let mut questions = Vec::new();
    for rule in balancer.rules.values() {
        let Some((name, probe)) =
            rule.probe.as_ref().and_then(|name| Some((name, balancer.probes.get(name)?)))
        else {
            continue;
        };
        let Some(pool) = balancer.pools.get(&rule.pool) else { continue };
        for member in &pool.members {
            let Some(nic) = region.nics.get(member) else { continue };
            let (Some(address), Some(vnet)) = (nic.address_of(pool.family), nic.vnet()) else {
                continue;
            };
            questions.push(Question {
                probed: Probed {
                    balancer: balancer.meta.id.clone(),
                    probe: name.clone(),
                    member: member.clone(),
                },
                namespace: names::vnet_ns(lab, &vnet),
                address,
                probe: probe.clone(),
            });
        }
    }
    questions
}

//! What a namespace looks like if nobody has touched it since we made it: an observation without looking. Not here:
//! when that may be believed (see [`super::reconciler`]).

use std::collections::BTreeMap;

use vnet::{
    addr::Mac,
    host::{
        Action, NamespaceState, Observed, Step, delta, digest,
        state::{End, ObservedLink},
    },
};

/// Numbers for ends of links. They are not the kernel's, and only tell which two belong together.
#[derive(Debug, Default)]
pub(super) struct Numbers(BTreeMap<End, u32>);

impl Numbers {
    fn of(&mut self, end: End) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(end).or_insert(next)
    }
}

/// The namespace `name` as it was made.
pub(super) fn as_made(name: &str, made: &NamespaceState, numbers: &mut Numbers) -> Observed {
    let lo =
        ObservedLink { index: 0, peer: None, mac: Mac([0; 6]), mtu: 0, up: true, controller: None };
    let mut links = BTreeMap::from([("lo".to_owned(), lo)]);
    for (link, is) in &made.links {
        let end = End { namespace: name.to_owned(), link: link.clone() };
        let observed = ObservedLink {
            index: numbers.of(end),
            peer: Some(numbers.of(is.peer.clone())),
            mac: is.mac,
            mtu: is.mtu,
            up: true,
            controller: None,
        };
        links.insert(link.clone(), observed);
    }
    Observed {
        links,
        addresses: made.addresses.clone(),
        routes: made.routes.clone(),
        rules: made.rules.clone(),
        neighbours: made.neighbours.clone(),
        sysctls: made.sysctls.clone(),
        nft: made.nft.as_deref().map(digest),
    }
}

/// A namespace that has just been made.
pub(super) fn fresh() -> Observed {
    let lo = ObservedLink {
        index: 0,
        peer: None,
        mac: Mac([0; 6]),
        mtu: 0,
        up: false,
        controller: None,
    };
    Observed { links: BTreeMap::from([("lo".to_owned(), lo)]), ..Observed::default() }
}

/// Puts changes in the place of new tables, where the table that is loaded is known: not in `created` namespaces.
pub(super) fn change_tables(
    steps: &mut [Step],
    made: &BTreeMap<String, NamespaceState>,
    created: &[String],
) {
    for step in steps.iter_mut().filter(|step| !created.contains(&step.namespace)) {
        let loaded = made.get(&step.namespace).and_then(|made| made.nft.as_deref());
        if let (Action::LoadRuleset(text), Some(loaded)) = (&step.action, loaded)
            && let Some(changes) = delta(loaded, text)
        {
            step.action = Action::ChangeRuleset {
                changes,
                loaded: digest(loaded),
                digest: digest(text),
                text: text.clone(),
            };
        }
    }
}

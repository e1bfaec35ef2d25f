//! What the cluster says about masquerading: the two `ConfigMap`s of azure-ip-masq-agent, watched.

use cluster::masquerade::{RECONCILED, USERS, parse};
use futures::{Stream, StreamExt, future::ready, stream::select};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use vnet::pods::masquerade::Settings;

use super::chain;

/// The settings of both maps together, whenever they change; `None` while AKS's own is not there. A map
/// that cannot be understood leaves its last settings in force, as ip-masq-agent does.
pub(super) fn watch(client: Client) -> impl Stream<Item = Option<Settings>> {
    let api: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let one = |name: &'static str| {
        let changes = watch_object(api.clone(), name).default_backoff();
        changes.filter_map(move |change| ready(read(name, change)))
    };
    select(one(RECONCILED), one(USERS)).scan((None, None), |(aks, user), (name, settings)| {
        let slot: &mut Option<Settings> = if name == RECONCILED { aks } else { user };
        *slot = settings;
        let (aks, user) = (aks.clone(), user.clone().unwrap_or_default());
        ready(Some(aks.map(|settings| settings.and(&user))))
    })
}

type Watched = Result<Option<ConfigMap>, kube::runtime::watcher::Error>;

/// What a change means; `None` when nothing is to change.
fn read(name: &'static str, change: Watched) -> Option<(&'static str, Option<Settings>)> {
    let map = change
        .inspect_err(|error| tracing::debug!(error = %chain(error), name, "watching a ConfigMap"))
        .ok()?;
    let Some(map) = map else { return Some((name, None)) };
    match parse(&map.data.unwrap_or_default()) {
        Ok(settings) => Some((name, Some(settings))),
        Err(error) => {
            tracing::warn!(error = %chain(&error), name, "masquerading stays as it was");
            None
        }
    }
}

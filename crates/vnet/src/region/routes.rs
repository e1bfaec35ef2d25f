//! Route tables and their routes.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, UNCHANGED, refusal};
use crate::{
    addr::Family,
    command::{Accepted, Common},
    fault::Fault,
    kind,
    model::{Destination, NextHop, ProvisioningState, Route, RouteTable},
    name::{ArmId, Name},
};

/// Routes of a table (Azure subscription and service limits, networking).
const MAX_ROUTES: usize = 400;

/// Routes with service tags of a table (Azure documentation, "Virtual network traffic routing", "Service tags for
/// user-defined routes").
const MAX_TAGGED_ROUTES: usize = 25;
/// Tags that no route can have (Azure documentation, "Virtual network service tags", "Tags unsupported for user defined
/// routes").
const NOT_ROUTED: [&str; 6] = [
    "AzurePlatformDNS",
    "AzurePlatformIMDS",
    "AzurePlatformLKM",
    "VirtualNetwork",
    "AzureLoadBalancer",
    "Internet",
];

impl Change {
    /// Refuses a route for a tag that there is not, unless the table has it: a list of tags can be replaced.
    fn known_tag(
        &self,
        table: &ArmId,
        route: &Route,
        old: Option<&RouteTable>,
    ) -> Result<(), Fault> {
        let Destination::Tag(tag) = &route.prefix else { return Ok(()) };
        let is_old = old
            .and_then(|old| old.routes.get(&route.name))
            .is_some_and(|old| old.prefix.is_same(&route.prefix));
        let is_routed = !NOT_ROUTED.iter().any(|it| it.eq_ignore_ascii_case(tag));
        if is_old || is_routed && self.region.service_tags().knows(tag) {
            return Ok(());
        }
        let id = table.child("routes", route.name.as_str());
        Err(Fault::bad(
            "InvalidAddressPrefixFormat",
            format!(
                "Address prefix {tag} of resource {id} is neither in CIDR notation, for example 10.0.0.0/24, nor a \
                 service tag that routes can have."
            ),
        )
        .at("properties.addressPrefix"))
    }

    pub(super) fn put_route_table(
        &mut self,
        common: &Common,
        routes: Option<Vec<Route>>,
        disable_bgp_route_propagation: bool,
    ) -> Result<Accepted, Fault> {
        let old = self.region.route_tables.get(&common.id).cloned();
        let meta = self.meta(common, kind::ROUTE_TABLE, old.as_ref().map(|old| &old.meta))?;
        refusal::check_name(common.id.name())?;
        let id = meta.id.clone();
        let routes = match (routes, &old) {
            (None, Some(old)) => old.routes.clone(),
            (None, None) => BTreeMap::new(),
            (Some(list), _) => {
                let n = list.len();
                let routes: BTreeMap<Name, Route> =
                    list.into_iter().map(|route| (route.name.clone(), route)).collect();
                if routes.len() != n {
                    return Err(refusal::invalid(
                        "properties.routes",
                        "A route name is used more than once.",
                    ));
                }
                routes
            }
        };
        let table = RouteTable { meta, routes, disable_bgp_route_propagation };
        check_routes(&table)?;
        for route in table.routes.values() {
            self.known_tag(&id, route, old.as_deref())?;
        }
        self.region.route_tables.insert(id.clone(), Arc::new(table));
        Ok(self.put(&id, old.is_none()))
    }

    pub(super) fn put_route(&mut self, id: &ArmId, route: Route) -> Result<Accepted, Fault> {
        self.live_group(id)?;
        let table_id = id.parent().ok_or_else(|| refusal::wrong_kind(id, kind::ROUTE))?;
        let table = self.region.route_tables.get(&table_id);
        let table = table.ok_or_else(|| refusal::parent_not_found(id, &table_id))?;
        self.refuse_going(&table_id, table.meta.state)?;
        self.known_tag(&table_id, &route, Some(table.as_ref()))?;
        let mut table = table.as_ref().clone();
        self.touch(&mut table.meta, ProvisioningState::Updating);
        let is_new = table.routes.insert(route.name.clone(), route).is_none();
        check_routes(&table)?;
        self.region.route_tables.insert(table_id, Arc::new(table));
        Ok(self.put(id, is_new))
    }

    pub(super) fn delete_route(&mut self, id: &ArmId) -> Result<Accepted, Fault> {
        let Some(table_id) = id.parent() else { return Ok(UNCHANGED) };
        let Some(table) = self.region.route_tables.get(&table_id) else { return Ok(UNCHANGED) };
        let mut table = table.as_ref().clone();
        if table.routes.remove(&Name::new(id.name())).is_none() {
            return Ok(UNCHANGED);
        }
        self.refuse_going(&table_id, table.meta.state)?;
        self.touch(&mut table.meta, ProvisioningState::Updating);
        self.region.route_tables.insert(table_id, Arc::new(table));
        Ok(self.deleting(id))
    }

    /// Refuses to delete a route table that a subnet or a cluster has.
    pub(super) fn refuse_used_route_table(&self, id: &ArmId) -> Result<(), Fault> {
        let mut clusters = self.region.clusters.values();
        let is_managed = clusters.any(|cluster| cluster.route_table.as_ref() == Some(id));
        if !is_managed && self.region.subnets_of_route_table(id).is_empty() {
            return Ok(());
        }
        Err(Fault::bad(
            "InUseRouteTableCannotBeDeleted",
            format!("Route table {} is in use and cannot be deleted.", id.name()),
        ))
    }
}

fn check_routes(table: &RouteTable) -> Result<(), Fault> {
    if table.routes.len() > MAX_ROUTES {
        return Err(refusal::invalid(
            "properties.routes",
            &format!("Route table {} would have more than {MAX_ROUTES} routes.", table.meta.id),
        ));
    }
    let is_tagged = |route: &&Route| matches!(route.prefix, Destination::Tag(_));
    if table.routes.values().filter(is_tagged).count() > MAX_TAGGED_ROUTES {
        return Err(refusal::invalid(
            "properties.routes",
            &format!(
                "Route table {} would have more than {MAX_TAGGED_ROUTES} routes with service tags.",
                table.meta.id
            ),
        ));
    }
    let mut prefixes = BTreeMap::new();
    for route in table.routes.values() {
        refusal::check_name(route.name.as_str())?;
        if let (NextHop::VirtualAppliance(address), Destination::Prefix(prefix)) =
            (route.next_hop, &route.prefix)
            && Family::of(address) != prefix.family()
        {
            return Err(refusal::invalid(
                &format!("properties.routes[{}].nextHopIpAddress", route.name),
                &format!("{address} is not of the IP address version of {}.", route.prefix),
            ));
        }
        let text = route.prefix.to_string().to_ascii_lowercase();
        if let Some(other) = prefixes.insert(text, &route.name) {
            return Err(Fault::bad(
                "RouteConflict",
                format!(
                    "Route {} conflicts with route {other}. Routes cannot have the same AddressPrefix {}.",
                    route.name, route.prefix
                ),
            ));
        }
    }
    Ok(())
}

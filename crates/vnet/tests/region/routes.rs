//! User-defined routes for service tags.

use vnet::{
    command::{Command, PutSubnet},
    fault::Fault,
    model::{NextHop, Route},
    policy::tags::ServiceTags,
    routes::{self, Source},
};

use crate::support::{Lab, common, id, ip, prefix, put_subnet, subnet};

#[track_caller]
fn check(fault: &Fault, code: &str, text: &str) {
    assert_eq!(fault.code, code, "{fault}");
    assert!(fault.message.contains(text), "`{}` does not say `{text}`", fault.message);
}

#[test]
fn routes_may_have_service_tags() {
    let mut lab = Lab::new();
    lab.vnet("v", &["10.0.0.0/16"]);
    let table = |routes: Vec<Route>| Command::PutRouteTable {
        common: common(id("table t")),
        routes: Some(routes),
        disable_bgp_route_propagation: false,
    };
    let route = |name: &str, to: &str| Route {
        name: name.into(),
        prefix: prefix(to),
        next_hop: NextHop::VirtualAppliance(ip("10.0.0.4")),
    };
    lab.must(table(vec![route("a", "Storage"), route("b", "storage.eastus")]));
    let put = |name: &str, to: &str| Command::PutRoute {
        id: id(&format!("route t/{name}")),
        route: route(name, to),
    };
    check(&lab.refused(put("c", "STORAGE")), "RouteConflict", "Route c conflicts with route a");
    let bad = "InvalidAddressPrefixFormat";
    for tag in ["Atlantis", "Storage.Atlantis", "VirtualNetwork", "Internet", "AzureLoadBalancer"] {
        check(&lab.refused(put("c", tag)), bad, &format!("Address prefix {tag} of resource"));
        check(&lab.refused(table(vec![route("c", tag)])), bad, "/routeTables/t/routes/c");
    }
    // As many as Azure takes, and one more.
    let tags: Vec<String> = ServiceTags::built_in()
        .tags
        .keys()
        .filter(|tag| tag.starts_with("Sql."))
        .cloned()
        .collect();
    let many =
        |n: usize| tags.iter().take(n).map(|tag| route(&tag.replace('.', "-"), tag)).collect();
    lab.must(table(many(25)));
    check(
        &lab.refused(table(many(26))),
        "InvalidParameter",
        "more than 25 routes with service tags",
    );
    // A route stays when its tag goes, and can be written again; it leads nowhere.
    lab.must(table(vec![route("a", "Storage")]));
    let route_table = Some(id("table t"));
    lab.must(put_subnet("v", PutSubnet { route_table, ..subnet("b", "10.0.1.0/24") }));
    lab.must(Command::SetServiceTags { tags: Some(ServiceTags::default()) });
    lab.must(put("a", "Storage"));
    let (v, b) = (&lab.region.vnets[&id("vnet v")], "b".into());
    let routes = routes::effective(&lab.region, v, &v.subnets[&b]);
    assert!(routes.iter().all(|route| route.source == Source::Default));
    let fault = lab.refused(put("c", "Sql"));
    check(&fault, bad, "nor a service tag that routes can have");
}

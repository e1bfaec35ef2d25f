//! What requests set and the region keeps without acting on it, where the platform tells machines of it.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;
use vnet::{model::Meta, region::Region};

/// A property of a resource that is kept, by its path, `/properties/hardwareProfile/vmSize`. Names of properties
/// compare without case, as Azure's do.
pub(super) fn property(meta: &Meta, path: &str) -> Option<Value> {
    meta.kept.iter().find_map(|(kept, text)| {
        let (above, below) = path.split_at_checked(kept.len())?;
        let fits = above.eq_ignore_ascii_case(kept) && (below.is_empty() || below.starts_with('/'));
        if !fits {
            return None;
        }
        let mut value: Value = serde_json::from_str(text).ok()?;
        for key in below.split('/').skip(1) {
            let Value::Object(mut object) = value else { return None };
            let name = object.keys().find(|name| name.eq_ignore_ascii_case(key))?.clone();
            value = object.remove(&name)?;
        }
        Some(value)
    })
}

/// The same, when it is a text.
pub(super) fn text(meta: &Meta, path: &str) -> Option<String> {
    match property(meta, path)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The names of public IPs that have a label, `<label>.<location>.cloudapp.azure.com`, in lower case.
pub(super) fn public_names(region: &Region) -> BTreeMap<String, Vec<IpAddr>> {
    let mut names = BTreeMap::<String, Vec<IpAddr>>::new();
    for ip in region.public_ips.values() {
        // Before labels were acted on, they were kept.
        let kept = || {
            let label = text(&ip.meta, "/properties/dnsSettings/domainNameLabel")?;
            Some(format!("{label}.{}.cloudapp.azure.com", ip.meta.location))
        };
        if let Some(name) = ip.fqdn().or_else(kept) {
            names.entry(name.to_ascii_lowercase()).or_default().push(ip.address);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vnet::model::ProvisioningState;

    use super::*;

    #[test]
    fn a_property_is_found_at_any_depth_that_it_was_kept_at() {
        let meta = Meta {
            id: vnet::name::ArmId::group("s", "g"),
            location: String::new(),
            tags: BTreeMap::new(),
            etag: Uuid::nil(),
            guid: Uuid::nil(),
            state: ProvisioningState::Succeeded,
            changed: 1,
            kept: BTreeMap::from([
                ("/properties/dnsSettings".to_owned(), r#"{"domainNameLabel":"web"}"#.to_owned()),
                ("/properties/hardwareProfile/vmSize".to_owned(), r#""B1s""#.to_owned()),
                ("/properties/broken".to_owned(), "{".to_owned()),
            ]),
        };
        let found = |path: &str| text(&meta, path);
        assert_eq!(found("/properties/dnsSettings/domainNameLabel").as_deref(), Some("web"));
        assert_eq!(found("/Properties/DnsSettings/DomainNameLabel").as_deref(), Some("web"));
        assert_eq!(found("/properties/hardwareProfile/vmSize").as_deref(), Some("B1s"));
        for absent in ["/properties/dnsSettingsX", "/properties/broken", "/properties", "", "/é"] {
            assert_eq!(found(absent), None, "{absent}");
        }
    }
}

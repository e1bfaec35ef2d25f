//! Service tags: names for addresses of Azure's own. The list has a version and can be replaced by Azure's own
//! file; see [`Region::service_tags`](crate::region::Region::service_tags).

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::addr::{AddressSet, Family, Prefix};

mod built_in;

/// The virtual network and what is joined to it; see [`super::virtual_network`].
pub const VIRTUAL_NETWORK: &str = "VirtualNetwork";
/// Where health probes come from: 168.63.129.16.
pub const AZURE_LOAD_BALANCER: &str = "AzureLoadBalancer";
/// Every public address outside of `VirtualNetwork`.
pub const INTERNET: &str = "Internet";

/// The platform's names: port 53 of 168.63.129.16.
pub const PLATFORM_DNS: &str = "AzurePlatformDNS";

/// Names of services of the platform's own, which only rules that say so are about
/// (Azure documentation, "Virtual network service tags").
const PLATFORM_SERVICES: [&str; 3] = [PLATFORM_DNS, "AzurePlatformIMDS", "AzurePlatformLKM"];

/// What is not reached over the internet (IANA, "IPv4 Special-Purpose Address Registry"). The lab's own internet,
/// the range for benchmarks, is.
const NOT_PUBLIC: [&str; 9] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
];

/// The same for IPv6 (IANA, "IPv6 Special-Purpose Address Registry"). The lab's own internet,
/// the range for benchmarks, is reached.
const NOT_PUBLIC_6: [&str; 5] = ["::/128", "::1/128", "fc00::/7", "fe80::/10", "ff00::/8"];

/// A list of service tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTags {
    /// Azure's `changeNumber`; 0 for the built-in list.
    pub change_number: u64,
    /// Prefixes by tag, `AzureCloud.eastus`. `VirtualNetwork` and `Internet` are never here.
    pub tags: BTreeMap<String, Vec<Prefix>>,
}

impl ServiceTags {
    /// The addresses of a tag, which is found in any case. `None` when there is no such tag.
    #[must_use]
    pub fn addresses(&self, tag: &str) -> Option<AddressSet> {
        self.find(tag).map(|prefixes| prefixes.iter().copied().collect())
    }

    /// The same as they are listed; none when there is no such tag.
    #[must_use]
    pub fn prefixes(&self, tag: &str) -> &[Prefix] {
        self.find(tag).unwrap_or_default()
    }

    fn find(&self, tag: &str) -> Option<&[Prefix]> {
        let found = self.tags.iter().find(|(name, _)| name.eq_ignore_ascii_case(tag));
        found.map(|(_, prefixes)| prefixes.as_slice())
    }

    /// Whether a rule may name this tag.
    #[must_use]
    pub fn knows(&self, tag: &str) -> bool {
        tag.eq_ignore_ascii_case(VIRTUAL_NETWORK)
            || tag.eq_ignore_ascii_case(INTERNET)
            || self.tags.keys().any(|name| name.eq_ignore_ascii_case(tag))
    }

    /// The same list with what the platform's own tags mean in a lab. Azure's file has none of them: they are the same
    /// in every virtual network.
    #[must_use]
    pub fn with_platform(mut self) -> Self {
        let is_own = |tag: &String| {
            [VIRTUAL_NETWORK, INTERNET].iter().any(|own| own.eq_ignore_ascii_case(tag))
        };
        let built_in = &Self::built_in().tags;
        let platform = built_in
            .iter()
            .filter(|(tag, _)| tag.as_str() == AZURE_LOAD_BALANCER || is_platform_service(tag));
        for (tag, prefixes) in platform {
            self.tags.retain(|name, _| !name.eq_ignore_ascii_case(tag));
            self.tags.insert(tag.clone(), prefixes.clone());
        }
        self.tags.retain(|tag, _| !is_own(tag));
        self
    }

    /// The tags that rules can name where nobody has given a list: Azure's names, and addresses of the lab's internet.
    #[must_use]
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<ServiceTags> =
            LazyLock::new(|| ServiceTags { change_number: 0, tags: built_in::tags() });
        &BUILT_IN
    }
}

/// Whether a tag names a service of the platform's own.
#[must_use]
pub fn is_platform_service(tag: &str) -> bool {
    PLATFORM_SERVICES.iter().any(|service| service.eq_ignore_ascii_case(tag))
}

/// Every address of a family that can be reached over the internet.
pub(super) fn public(family: Family) -> AddressSet {
    let not: &[&str] = match family {
        Family::V4 => &NOT_PUBLIC,
        Family::V6 => &NOT_PUBLIC_6,
    };
    let not = not.iter().map(|it| it.parse::<Prefix>().expect("the list has prefixes only"));
    let all: AddressSet = [Prefix::everything(family)].into_iter().collect();
    all.without(&not.collect())
}

//! Collects what is wrong with a request, so that the client hears all of it. Not here: the rules.

use std::net::{IpAddr, Ipv4Addr};

use vnet::{
    addr::{Family, Prefix, Prefix4, Prefix4Error, PrefixError},
    fault::Fault,
    name::ArmId,
};

/// Everything that is wrong with one request.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Fault>);

impl Findings {
    /// Notes one more.
    pub(crate) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The value, or `None` once what is wrong with it is noted.
    pub(crate) fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.add(fault)).ok()
    }

    /// As [`take`](Self::take), for what may be absent.
    pub(crate) fn take_some<T, U>(
        &mut self,
        given: Option<T>,
        parse: impl FnOnce(T) -> Result<U, Fault>,
    ) -> Option<U> {
        given.and_then(|given| self.take(parse(given)))
    }

    /// One refusal for all of it: the only finding, or the first one with every one as a detail.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let mut all = self.0;
        match all.len() {
            0 => Ok(()),
            1 => Err(all.remove(0)),
            _ => Err(Fault { details: all.clone(), ..all.remove(0) }),
        }
    }

    /// `make`s the value if nothing is wrong.
    pub(crate) fn then<T>(self, make: impl FnOnce() -> Option<T>) -> Result<T, Fault> {
        self.finish()?;
        make().ok_or_else(|| {
            Fault::new(
                500,
                "InternalServerError",
                "A request was not understood and nothing says why.",
            )
        })
    }
}

/// A prefix in a property of `resource`, refused as Microsoft.Network refuses it.
pub(crate) fn network_prefix(text: &str, resource: &ArmId, target: &str) -> Result<Prefix, Fault> {
    text.parse().map_err(|error| match error {
        PrefixError::Syntax { text } => Fault::bad(
            "InvalidAddressPrefixFormat",
            format!("Address prefix {text} of resource {resource} is not formatted correctly. It should follow CIDR notation, for example 10.0.0.0/24."),
        ),
        PrefixError::HostBits { given, meant } => Fault::bad(
            "InvalidCIDRNotation",
            format!("The address prefix {given} in resource {resource} has an invalid CIDR notation. For the given prefix length, the address prefix should be {meant}."),
        ),
    }.at(target))
}

/// A prefix in a property of a cluster.
pub(crate) fn cluster_prefix(text: &str, target: &str) -> Result<Prefix4, Fault> {
    if text.contains(':') {
        return Err(ipv6(target));
    }
    text.parse().map_err(|error: Prefix4Error| {
        let message = format!("The value of parameter {target} is invalid. Error details: {error}. Please see https://aka.ms/aks-naming-rules for more details.");
        Fault::bad("InvalidParameter", message).at(target)
    })
}

/// An IPv4 address in a property.
pub(crate) fn address(text: &str, target: &str) -> Result<Ipv4Addr, Fault> {
    if text.contains(':') {
        return Err(ipv6(target));
    }
    text.parse().map_err(|_| {
        Fault::bad("InvalidIPAddressFormat", format!("IP address {text} is not formatted correctly: an IPv4 address such as 10.0.0.4 is expected."))
            .at(target)
    })
}

/// An address of either family in a property.
pub(crate) fn any_address(text: &str, target: &str) -> Result<IpAddr, Fault> {
    if text.contains(':') {
        return text.parse().map_err(|_| {
            let message = format!("IP address {text} is not formatted correctly: an IPv6 address such as fd00::4 is expected.");
            Fault::bad("InvalidIPAddressFormat", message).at(target)
        });
    }
    address(text, target).map(IpAddr::V4)
}

/// An IP address version in a property; nobody says so of IPv4.
pub(crate) fn version(text: Option<&str>, target: &str) -> Result<Family, Fault> {
    match text.filter(|text| !text.is_empty()) {
        None => Ok(Family::V4),
        Some(text) if text.eq_ignore_ascii_case("IPv4") => Ok(Family::V4),
        Some(text) if text.eq_ignore_ascii_case("IPv6") => Ok(Family::V6),
        Some(text) => Err(not_one_of(text, &["IPv4", "IPv6"], target)),
    }
}

/// An IP address version as Azure spells it.
pub(crate) fn version_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The id of a resource in a property.
pub(crate) fn arm_id(text: &str, target: &str) -> Result<ArmId, Fault> {
    text.parse().map_err(|_| {
        Fault::bad("LinkedInvalidPropertyId", format!("Property id '{text}' at path '{target}' is invalid. Expect fully qualified resource Id that start with '/subscriptions/{{subscriptionId}}' or '/providers/{{resourceProviderNamespace}}/'."))
            .at(target)
    })
}

/// The id of a resource of one type in a property.
pub(crate) fn arm_id_of(text: &str, kind: &str, target: &str) -> Result<ArmId, Fault> {
    let id = arm_id(text, target)?;
    if id.is_kind(kind) {
        return Ok(id);
    }
    let message = format!(
        "Property id '{text}' at path '{target}' is invalid. Expect a resource of type '{kind}', not '{}'.",
        id.kind()
    );
    Err(Fault::bad("LinkedInvalidPropertyId", message).at(target))
}

/// What is said of a property that must be there.
pub(crate) fn missing(target: &str) -> Fault {
    Fault::bad(
        "MissingJsonReferenceProperty",
        format!("Value for reference is missing. Path {target} is required."),
    )
    .at(target)
}

/// What is said of a value that is none of those that Azure knows.
pub(crate) fn not_one_of(text: &str, known: &[&str], target: &str) -> Fault {
    let known = known.join(", ");
    Fault::bad(
        "InvalidParameter",
        format!("The value '{text}' of parameter {target} is invalid. It must be one of: {known}."),
    )
    .at(target)
}

fn ipv6(target: &str) -> Fault {
    crate::refuse::unsupported("IPv6NotSupported", "IPv6 and dual stack").at(target)
}

/// Azure's clients send an empty text for "the default".
pub(crate) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_finding_is_the_refusal_itself() {
        let mut findings = Findings::default();
        findings.add(Fault::bad("A", "a"));
        let fault = findings.finish().unwrap_err();
        assert_eq!((fault.code.as_str(), fault.details.len()), ("A", 0));
    }

    #[test]
    fn several_are_all_named() {
        let mut findings = Findings::default();
        assert_eq!(findings.take::<u8>(Err(Fault::bad("A", "a"))), None);
        findings.add(Fault::bad("B", "b"));
        let fault = findings.finish().unwrap_err();
        assert_eq!((fault.code.as_str(), fault.details.len()), ("A", 2));
    }

    #[test]
    fn prefixes_are_refused_as_azure_refuses_them() {
        let id: ArmId = "/subscriptions/s/resourceGroups/g".parse().unwrap();
        let code = |text| network_prefix(text, &id, "p").unwrap_err().code;
        assert_eq!(code("10.0.0.0"), "InvalidAddressPrefixFormat");
        assert_eq!(code("10.0.0.1/24"), "InvalidCIDRNotation");
        assert_eq!(code("fd00::1/64"), "InvalidCIDRNotation");
        assert_eq!(code("fd00::/64x"), "InvalidAddressPrefixFormat");
        assert_eq!(cluster_prefix("fd00::/64", "p").unwrap_err().code, "IPv6NotSupported");
    }
}

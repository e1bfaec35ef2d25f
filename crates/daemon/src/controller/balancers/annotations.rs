//! The annotations of a Service that are for its load balancer. Pure.
//!
//! Names and what is said of wrong values: kubernetes-sigs/cloud-provider-azure, `pkg/consts/consts.go` and
//! `pkg/consts/helpers.go`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::{IntErrorKind, ParseIntError},
};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

/// What the names begin with.
pub(in super::super) const PREFIX: &str = "service.beta.kubernetes.io/";

/// A Service's annotations, by their names without [`PREFIX`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Annotations(BTreeMap<String, String>);

impl Annotations {
    /// Reads a Service.
    pub(in super::super) fn of(service: &Service) -> Self {
        let all = service.annotations().iter();
        let ours = all.filter_map(|(name, value)| {
            Some((name.strip_prefix(PREFIX)?.to_owned(), value.clone()))
        });
        Self(ours.collect())
    }

    /// What is written there, blanks and all.
    pub(in super::super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What is written there, if it is more than blanks.
    pub(in super::super) fn text(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim).filter(|text| !text.is_empty())
    }

    /// Whether it says `true`.
    pub(in super::super) fn is_true(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// The number that is written there, as long as `check` does not say what is wrong with it.
    pub(super) fn number(
        &self,
        name: &str,
        check: impl Fn(i32) -> Result<(), String>,
    ) -> Result<Option<i32>, String> {
        let Some(text) = self.raw(name).map(str::trim) else { return Ok(None) };
        let number: i32 = text.parse().map_err(|error: ParseIntError| {
            let why = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!(
                "error value: strconv.ParseInt: parsing {text:?}: {why}: {text} value must be a whole number"
            )
        })?;
        check(number).map_err(|why| format!("error parsing value: {why}"))?;
        Ok(Some(number))
    }

    /// Addresses that lead to the Service beside its own, in whatever way its users see to.
    pub(in super::super) fn additional_addresses(&self) -> Result<Vec<IpAddr>, String> {
        let name = "azure-additional-public-ips";
        let Some(value) = self.raw(name) else { return Ok(Vec::new()) };
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                format!(
                    "invalid service annotation {PREFIX}{name}:{value}: invalid CIDR `{text}`: \
                     ParseAddr({text:?}): unable to parse IP"
                )
            })
        };
        value.trim().split(',').map(parse).collect()
    }

    /// What the Service asks for and does not get here: each annotation's whole name, and why it has no effect.
    pub(in super::super) fn without_effect(&self) -> Vec<(String, &'static str)> {
        let why = |name: &str| match name {
            "azure-load-balancer-mode" => {
                Some("it chooses among load balancers of SKU Basic, and there are none")
            }
            "azure-load-balancer-configurations" => {
                Some("a cluster has one load balancer of each kind here")
            }
            "azure-shared-securityrule" => {
                Some("Services that let the same in by the same ports share a rule anyway")
            }
            "azure-pip-ip-tags" => Some("public IPs have no IP tags here"),
            _ if name.starts_with("azure-pls-") => Some("there are no private link services here"),
            _ => None,
        };
        let all = self.0.keys();
        all.filter_map(|name| Some((format!("{PREFIX}{name}"), why(name)?))).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    fn annotations(all: &[(&str, &str)]) -> Annotations {
        let all: BTreeMap<String, &str> =
            all.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
        let service = serde_json::json!({ "metadata": { "name": "web", "annotations": all } });
        Annotations::of(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn numbers_are_whole_and_within_bounds() {
        let check = |number| if number < 5 { Err(format!("{number} is low")) } else { Ok(()) };
        for (text, expected) in [
            ("5", Ok(Some(5))),
            (" 60 ", Ok(Some(60))),
            ("4", Err("error parsing value: 4 is low")),
            (
                "abc",
                Err(
                    "error value: strconv.ParseInt: parsing \"abc\": invalid syntax: abc value must be a whole number",
                ),
            ),
            (
                "",
                Err(
                    "error value: strconv.ParseInt: parsing \"\": invalid syntax:  value must be a whole number",
                ),
            ),
            (
                "99999999999",
                Err("error value: strconv.ParseInt: parsing \"99999999999\": value out of range: \
                     99999999999 value must be a whole number"),
            ),
        ] {
            let found = annotations(&[("n", text)]).number("n", check);
            assert_eq!(found, expected.map_err(str::to_owned), "`{text}`");
        }
        assert_eq!(annotations(&[]).number("n", check), Ok(None));
    }

    #[test]
    fn additional_addresses_are_addresses() {
        let found = |text: &str| {
            annotations(&[("azure-additional-public-ips", text)]).additional_addresses()
        };
        assert_eq!(found(" 20.0.0.4,2001:db8::4 ").unwrap().len(), 2);
        assert_eq!(
            found("20.0.0.4,20.0.0").unwrap_err(),
            "invalid service annotation service.beta.kubernetes.io/azure-additional-public-ips:20.0.0.4,20.0.0: \
             invalid CIDR `20.0.0`: ParseAddr(\"20.0.0\"): unable to parse IP"
        );
        assert!(found("20.0.0.4, 20.0.0.5").is_err(), "blanks belong to no address");
        assert!(found("").is_err());
        assert_eq!(annotations(&[]).additional_addresses(), Ok(Vec::new()));
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let names = |all: &[(&str, &str)]| -> Vec<String> {
            annotations(all).without_effect().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            names(&[
                ("azure-pls-create", "true"),
                ("azure-load-balancer-internal", "true"),
                ("azure-load-balancer-mode", "__auto__"),
                ("azure-load-balancer-configurations", "a,b"),
                ("azure-shared-securityrule", "true"),
                ("azure-pip-ip-tags", "a=b"),
                ("azure-pip-name", "mine"),
            ]),
            [
                "azure-load-balancer-configurations",
                "azure-load-balancer-mode",
                "azure-pip-ip-tags",
                "azure-pls-create",
                "azure-shared-securityrule",
            ]
            .map(|name| format!("{PREFIX}{name}"))
        );
    }
}

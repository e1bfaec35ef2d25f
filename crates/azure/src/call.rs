//! A request, taken apart: path, query, body. Not here: what it asks for.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, Method, header::HOST, request::Parts};
use serde_json::Value;
use vnet::{
    command::{Accepted, Command},
    fault::Fault,
    region::Region,
};

use crate::{
    door::{Door, State},
    wire::View,
};

/// A request with all that is needed to answer it.
pub(crate) struct Call<'a> {
    pub(crate) state: &'a State,
    pub(crate) method: Method,
    /// The URL that the client reached the door by, without a slash at its end.
    pub(crate) base: String,
    pub(crate) path: Path,
    pub(crate) query: Form,
    pub(crate) headers: HeaderMap,
    pub(crate) body: &'a [u8],
}

/// An api-version, `2023-08-02-preview`. Any is good; a few properties are not in all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApiVersion<'a>(pub(crate) &'a str);

impl ApiVersion<'_> {
    /// Whether it is of this day or a later one; what has no date is as late as can be.
    pub(crate) fn is_since(self, day: &str) -> bool {
        let is_date = |text: &&str| text.bytes().all(|c| c.is_ascii_digit() || c == b'-');
        self.0.get(..10).filter(is_date).is_none_or(|own| own >= day)
    }

    /// Whether it is one of a preview.
    pub(crate) fn is_preview(self) -> bool {
        self.0.ends_with("-preview")
    }
}

/// Keys in lower case with their values.
pub(crate) type Form = BTreeMap<String, String>;

impl<'a> Call<'a> {
    pub(crate) fn new(state: &'a State, parts: &Parts, body: &'a [u8]) -> Self {
        Self {
            state,
            method: parts.method.clone(),
            base: format!("https://{}", host(parts)),
            path: Path::parse(parts.uri.path()),
            query: parse_form(parts.uri.query().unwrap_or_default()),
            headers: parts.headers.clone(),
            body,
        }
    }

    pub(crate) fn door(&self) -> &Door {
        &self.state.door
    }

    pub(crate) fn region(&self) -> Arc<Region> {
        self.door().store.snapshot()
    }

    /// The api-version that the client speaks; any is good.
    pub(crate) fn api_version(&self) -> &str {
        self.query.get("api-version").map_or("2024-05-01", String::as_str)
    }

    /// What is rendered from: `region` for this client.
    pub(crate) fn view<'v>(&'v self, region: &'v Region) -> View<'v> {
        View { region, door: self.door(), api_version: ApiVersion(self.api_version()) }
    }

    /// Changes the region.
    pub(crate) fn change(&self, command: Command) -> Result<Accepted, Fault> {
        let now = (self.door().clock)();
        self.door().store.change(command, now).map_err(|error| match error {
            store::StoreError::Refused(fault) => fault,
            error => {
                tracing::error!(%error, "the store failed");
                Fault::new(500, "InternalServerError", format!("The lab's store failed: {error}."))
            }
        })
    }

    /// The body as JSON; an empty one is an empty object.
    pub(crate) fn json(&self) -> Result<Value, Fault> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Object(serde_json::Map::new()));
        }
        let value: Value = serde_json::from_slice(self.body).map_err(|error| content(&error))?;
        if value.is_object() {
            Ok(value)
        } else {
            Err(invalid_content("a JSON object is expected, line 1, position 1"))
        }
    }
}

/// Azure's refusal of a body that is not what it should be.
pub(crate) fn content(error: &serde_json::Error) -> Fault {
    if error.line() == 0 {
        return invalid_content(&error.to_string());
    }
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    invalid_content(&format!("{what}, line {}, position {}", error.line(), error.column()))
}

fn invalid_content(what: &str) -> Fault {
    Fault::bad(
        "InvalidRequestContent",
        format!("The request content was invalid and could not be deserialized: '{what}.'."),
    )
}

/// The host that the client asked for, if it can stand in a URL.
fn host(parts: &Parts) -> String {
    let header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let fits = |host: &&str| host.parse::<http::uri::Authority>().is_ok();
    header.filter(fits).or(authority).unwrap_or("localhost").to_owned()
}

/// The segments of a path: decoded, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    segments: Vec<String>,
    lower: Vec<String>,
}

impl Path {
    /// Takes a path apart; `//` is as good as `/`.
    pub(crate) fn parse(path: &str) -> Self {
        let segments: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| decode(part, false))
            .collect();
        let lower = segments.iter().map(|part| part.to_ascii_lowercase()).collect();
        Self { segments, lower }
    }

    /// The segments as the client spelled them.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The segments in lower case, for routing.
    pub(crate) fn lower(&self) -> Vec<&str> {
        self.lower.iter().map(String::as_str).collect()
    }

    /// The namespace of the resource provider, in lower case; empty when there is none.
    pub(crate) fn namespace(&self) -> &str {
        let at = self.lower.iter().rposition(|segment| segment == "providers");
        at.and_then(|at| self.lower.get(at + 1)).map_or("", String::as_str)
    }
}

/// Takes `a=b&c=d` apart. Keys are lower-cased, the last of equal ones wins.
pub(crate) fn parse_form(text: &str) -> Form {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key, true).to_ascii_lowercase(), decode(value, true)))
        .collect()
}

/// Undoes percent-encoding; what is not encoded rightly stays as it is.
fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                let hex = [*a, *b];
                let hex = std::str::from_utf8(&hex).expect("hexadecimal digits are ASCII");
                decoded
                    .push(u8::from_str_radix(hex, 16).expect("two hexadecimal digits are a byte"));
                rest = after;
            }
            (b'+', _) if plus_is_space => decoded.push(b' '),
            (other, _) => decoded.push(*other),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_empty_segments_and_encoding() {
        let path = Path::parse("//Subscriptions/s%20x//resourcegroups/RG/");
        assert_eq!(path.segments(), ["Subscriptions", "s x", "resourcegroups", "RG"]);
        assert_eq!(path.lower()[0], "subscriptions");
    }

    #[test]
    fn the_namespace_is_the_innermost_providers() {
        let path =
            Path::parse("/a/providers/Microsoft.Network/b/c/providers/Microsoft.Authorization/x");
        assert_eq!(path.namespace(), "microsoft.authorization");
        assert_eq!(Path::parse("/providers").namespace(), "");
    }

    #[test]
    fn forms_are_decoded() {
        let form = parse_form("$filter=name+eq+%27a%26b%27&API-version=1&odd=%zz&&x");
        assert_eq!(form["$filter"], "name eq 'a&b'");
        assert_eq!(form["api-version"], "1");
        assert_eq!(form["odd"], "%zz");
        assert_eq!(form["x"], "");
    }
}

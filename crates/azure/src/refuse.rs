//! What this lab cannot do, refused by tables. Not here: what Azure itself would refuse.

use serde_json::Value;
use vnet::fault::Fault;

use crate::findings::Findings;

/// The code for what is not supported where Azure has no code of its own.
pub(crate) const NOT_SUPPORTED: &str = "NotSupported";

/// One thing that is refused.
pub(crate) struct Refusal {
    /// Where it is asked for: a JSON pointer in which `*` stands for every element of a list.
    pub(crate) at: &'static str,
    /// Which values ask for it.
    pub(crate) when: When,
    /// Azure's code where it has one.
    pub(crate) code: &'static str,
    /// What it is, as a noun: "not supported: …".
    pub(crate) what: &'static str,
}

/// Which values are refused.
pub(crate) enum When {
    /// One of these texts, without regard to case.
    Is(&'static [&'static str]),
    /// Any other text than these, without regard to case.
    IsNot(&'static [&'static str]),
    /// `true`.
    True,
    /// `false`.
    False,
    /// Anything but null, an empty text, list or object, `false` and 0.
    Given,
    /// A list with more than one element.
    Several,
    /// A number other than this one.
    NotNumber(u64),
}

/// Shorthand for tables.
pub(crate) const fn refusal(at: &'static str, when: When, what: &'static str) -> Refusal {
    Refusal { at, when, code: NOT_SUPPORTED, what }
}

impl Refusal {
    /// The same with Azure's own code.
    pub(crate) const fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }
}

/// The refusal of something that this lab doesn't do.
pub(crate) fn unsupported(code: &str, what: &str) -> Fault {
    Fault::bad(code, format!("Not supported by this version of aksnet yet: {what}."))
}

/// Notes everything in `body` that a table refuses. `within` is where the body is, for the target.
pub(crate) fn check(body: &Value, table: &[Refusal], within: &str, findings: &mut Findings) {
    for refusal in table {
        let segments: Vec<&str> = refusal.at.split('/').skip(1).collect();
        visit(body, &segments, &mut |value| {
            if refusal.when.matches(value) {
                let named =
                    segments.iter().filter(|segment| !matches!(**segment, "*" | "properties"));
                let named: Vec<&str> = Some(within)
                    .filter(|it| !it.is_empty())
                    .into_iter()
                    .chain(named.copied())
                    .collect();
                let target = named.join(".");
                let shown = match value {
                    Value::Object(_) | Value::Array(_) => String::new(),
                    value => format!(" ({target}: {value})"),
                };
                let fault = unsupported(refusal.code, &format!("{}{shown}", refusal.what));
                findings.add(fault.at(&target));
            }
        });
    }
}

fn visit(value: &Value, segments: &[&str], found: &mut dyn FnMut(&Value)) {
    match (segments, value) {
        ([], value) => found(value),
        (["*", rest @ ..], Value::Array(items)) => {
            for item in items {
                visit(item, rest, found);
            }
        }
        (["*", rest @ ..], Value::Object(object)) => {
            for item in object.values() {
                visit(item, rest, found);
            }
        }
        ([key, rest @ ..], Value::Object(object)) => {
            if let Some(inner) = object.get(*key) {
                visit(inner, rest, found);
            }
        }
        _ => {}
    }
}

impl When {
    fn matches(&self, value: &Value) -> bool {
        let is_one_of = |texts: &[&str]| {
            value.as_str().map(|text| texts.iter().any(|other| text.eq_ignore_ascii_case(other)))
        };
        match self {
            Self::Is(texts) => is_one_of(texts) == Some(true),
            Self::IsNot(texts) => is_one_of(texts) == Some(false),
            Self::True => value == &Value::Bool(true),
            Self::False => value == &Value::Bool(false),
            Self::Given => match value {
                Value::Null | Value::Bool(false) => false,
                Value::Bool(true) => true,
                Value::Number(number) => number.as_f64() != Some(0.0),
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(object) => !object.is_empty(),
            },
            Self::Several => value.as_array().is_some_and(|items| items.len() > 1),
            Self::NotNumber(number) => value.as_u64().is_some_and(|other| other != *number),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_one(at: &'static str, when: When, body: &Value) -> usize {
        let mut findings = Findings::default();
        check(body, &[refusal(at, when, "it")], "", &mut findings);
        findings.finish().map_or_else(|fault| fault.details.len().max(1), |()| 0)
    }

    #[test]
    fn every_element_of_a_list_is_looked_at() {
        let body =
            json!({ "pools": [{ "os": "Windows" }, { "os": "Linux" }, { "os": "windows" }, {}] });
        assert_eq!(check_one("/pools/*/os", When::Is(&["Windows"]), &body), 2);
        assert_eq!(check_one("/pools/*/os", When::IsNot(&["", "linux"]), &body), 2);
        assert_eq!(check_one("/nothing/*/os", When::Given, &body), 0);
    }

    #[test]
    fn defaults_are_not_given() {
        let body = json!({ "a": null, "b": "", "c": [], "d": {}, "e": false, "f": 0, "g": [1], "h": true });
        for (at, n) in
            [("/a", 0), ("/b", 0), ("/c", 0), ("/d", 0), ("/e", 0), ("/f", 0), ("/g", 1), ("/h", 1)]
        {
            assert_eq!(check_one(at, When::Given, &body), n, "{at}");
        }
    }
}

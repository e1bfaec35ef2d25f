//! Properties that nothing acts on: taken out of a request, put back into an answer.
//! Not here: which ones they are (each module of `wire` has its list).
//!
//! A path is a JSON pointer, but an element of a list is named by its `name`:
//! `/properties/ipConfigurations/ipconfig1/zones`.

use serde_json::{Map, Value};
use vnet::model::Kept;

/// The properties of `body` that `known` doesn't cover. `known` are paths of properties that are acted on
/// or read-only; `*` stands for the elements of a list of named things.
pub(crate) fn collect(body: &Value, known: &[&str]) -> Kept {
    let mut kept = Kept::new();
    if let Value::Object(object) = body {
        walk(object, "", "", known, &mut kept);
    }
    kept
}

fn walk(object: &Map<String, Value>, path: &str, pattern: &str, known: &[&str], kept: &mut Kept) {
    for (key, value) in object {
        let path = format!("{path}/{}", escape(key));
        let pattern = format!("{pattern}/{key}");
        // Clients send an empty text for "the default".
        if value.is_null() || value == "" || covers(known, &pattern) {
            continue;
        }
        match value {
            Value::Object(inner) if has_below(known, &pattern) => {
                walk(inner, &path, &pattern, known, kept);
            }
            Value::Array(items) if has_below(known, &format!("{pattern}/*")) => {
                for item in items {
                    let (Some(name), Some(inner)) = (item["name"].as_str(), item.as_object())
                    else {
                        continue;
                    };
                    let path = format!("{path}/{}", escape(name));
                    walk(inner, &path, &format!("{pattern}/*"), known, kept);
                }
            }
            other => {
                kept.insert(path, other.to_string());
            }
        }
    }
}

fn covers(known: &[&str], pattern: &str) -> bool {
    known.iter().any(|path| path.eq_ignore_ascii_case(pattern))
}

fn has_below(known: &[&str], pattern: &str) -> bool {
    known.iter().any(|path| {
        path.len() > pattern.len()
            && path.as_bytes()[pattern.len()] == b'/'
            && path[..pattern.len()].eq_ignore_ascii_case(pattern)
    })
}

/// Puts kept properties into a rendered body. What is rendered wins; what has no place any more is left out.
pub(crate) fn merge(body: &mut Value, kept: &Kept) {
    for (path, text) in kept {
        if let Ok(value) = serde_json::from_str(text) {
            insert(body, path, value);
        }
    }
}

fn insert(body: &mut Value, path: &str, value: Value) {
    let mut segments: Vec<String> = path.split('/').skip(1).map(unescape).collect();
    let Some(last) = segments.pop() else { return };
    let mut at = body;
    for segment in &segments {
        let next = match at {
            Value::Object(object) => {
                Some(object.entry(segment.clone()).or_insert_with(|| Value::Object(Map::new())))
            }
            Value::Array(items) => {
                items.iter_mut().find(|item| item["name"].as_str() == Some(segment.as_str()))
            }
            _ => None,
        };
        let Some(next) = next else { return };
        at = next;
    }
    if let Value::Object(object) = at {
        object.entry(last).or_insert(value);
    }
}

fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KNOWN: [&str; 4] = [
        "/etag",
        "/properties/acted",
        "/properties/list/*/name",
        "/properties/list/*/properties/acted",
    ];

    #[test]
    fn what_is_kept_comes_back() {
        let body = json!({ "etag": "x", "a/b": [1], "gone": null, "properties": { "acted": 1, "deep": { "x": true },
            "list": [{ "name": "one", "zones": ["1"], "properties": { "acted": 1, "extra": 2 } }] } });
        let kept = collect(&body, &KNOWN);
        assert_eq!(
            kept.keys().collect::<Vec<_>>(),
            [
                "/a~1b",
                "/properties/deep",
                "/properties/list/one/properties/extra",
                "/properties/list/one/zones"
            ]
        );
        let mut rendered =
            json!({ "properties": { "list": [{ "name": "one" }, { "name": "two" }] } });
        merge(&mut rendered, &kept);
        assert_eq!(rendered["a/b"], json!([1]));
        assert_eq!(rendered["properties"]["deep"], json!({ "x": true }));
        assert_eq!(rendered["properties"]["list"][0]["properties"]["extra"], 2);
        assert_eq!(rendered["properties"]["list"][1], json!({ "name": "two" }));
    }

    #[test]
    fn what_is_rendered_wins() {
        let kept = collect(&json!({ "properties": { "x": "asked" } }), &[]);
        let mut rendered = json!({ "properties": { "x": "is" } });
        merge(&mut rendered, &kept);
        assert_eq!(rendered["properties"]["x"], "is");
    }

    #[test]
    fn elements_that_are_gone_are_left_out() {
        let kept = Kept::from([("/properties/list/gone/zones".to_owned(), "[1]".to_owned())]);
        let mut rendered = json!({ "properties": { "list": [] } });
        merge(&mut rendered, &kept);
        assert_eq!(rendered, json!({ "properties": { "list": [] } }));
    }
}

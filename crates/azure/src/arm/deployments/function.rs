//! Template functions that depend on nothing but their arguments.
//! Not here: those that ask for the deployment or for resources (see [`super::scope`]).
//!
//! Azure Resource Manager's documentation, "ARM template functions".

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vnet::fault::Fault;

use super::invalid;

/// The functions here, in lower case.
pub(super) const NAMES: &[&str] = &[
    "add",
    "and",
    "array",
    "base64",
    "base64tostring",
    "bool",
    "coalesce",
    "concat",
    "contains",
    "createarray",
    "createobject",
    "div",
    "empty",
    "endswith",
    "equals",
    "false",
    "first",
    "format",
    "greater",
    "greaterorequals",
    "guid",
    "indexof",
    "int",
    "join",
    "json",
    "last",
    "length",
    "less",
    "lessorequals",
    "max",
    "min",
    "mod",
    "mul",
    "not",
    "null",
    "or",
    "padleft",
    "range",
    "replace",
    "skip",
    "split",
    "startswith",
    "string",
    "sub",
    "substring",
    "take",
    "tolower",
    "toupper",
    "trim",
    "true",
    "union",
    "uniquestring",
];

/// What `name`, in lower case, makes of its arguments.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, Fault> {
    let result = match arguments {
        [] => constant(name),
        [one] => unary(name, one),
        [one, other] => binary(name, one, other),
        _ => None,
    };
    result.or_else(|| variadic(name, arguments)).ok_or_else(|| {
        invalid(&format!(
            "the template function '{name}' cannot have the arguments {}",
            Value::from(arguments)
        ))
    })
}

fn constant(name: &str) -> Option<Value> {
    match name {
        "true" => Some(json!(true)),
        "false" => Some(json!(false)),
        "null" => Some(Value::Null),
        _ => None,
    }
}

fn unary(name: &str, one: &Value) -> Option<Value> {
    let text = one.as_str();
    Some(match name {
        "tolower" => json!(text?.to_lowercase()),
        "toupper" => json!(text?.to_uppercase()),
        "trim" => json!(text?.trim()),
        "string" => json!(as_text(one)),
        "int" => json!(one.as_i64().or_else(|| text?.trim().parse().ok())?),
        "bool" => match (one, text.map(str::to_ascii_lowercase).as_deref()) {
            (Value::Bool(_), _) => one.clone(),
            (_, Some("true" | "1")) => json!(true),
            (_, Some("false" | "0")) => json!(false),
            (Value::Number(number), _) => json!(number.as_i64()? != 0),
            _ => return None,
        },
        "array" if one.is_array() => one.clone(),
        "array" => json!([one]),
        "json" => serde_json::from_str(text?).ok()?,
        "base64" => json!(STANDARD.encode(text?)),
        "base64tostring" => json!(String::from_utf8(STANDARD.decode(text?).ok()?).ok()?),
        "length" => json!(match one {
            Value::String(text) => text.chars().count(),
            Value::Array(items) => items.len(),
            Value::Object(object) => object.len(),
            _ => return None,
        }),
        "empty" => json!(match one {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => return None,
        }),
        "first" => match one {
            Value::Array(items) => items.first().cloned().unwrap_or(Value::Null),
            _ => json!(text?.chars().take(1).collect::<String>()),
        },
        "last" => match one {
            Value::Array(items) => items.last().cloned().unwrap_or(Value::Null),
            _ => json!(text?.chars().next_back().map_or(String::new(), String::from)),
        },
        "not" => json!(!one.as_bool()?),
        _ => return None,
    })
}

fn binary(name: &str, one: &Value, other: &Value) -> Option<Value> {
    let numbers = || Some((one.as_i64()?, other.as_i64()?));
    let texts = || Some((one.as_str()?, other.as_str()?));
    let lower = || texts().map(|(one, other)| (one.to_lowercase(), other.to_lowercase()));
    Some(match name {
        "add" => json!(numbers().and_then(|(a, b)| a.checked_add(b))?),
        "sub" => json!(numbers().and_then(|(a, b)| a.checked_sub(b))?),
        "mul" => json!(numbers().and_then(|(a, b)| a.checked_mul(b))?),
        "div" => json!(numbers().and_then(|(a, b)| a.checked_div(b))?),
        "mod" => json!(numbers().and_then(|(a, b)| a.checked_rem(b))?),
        "equals" => json!(one == other),
        "less" => json!(compare(one, other)?.is_lt()),
        "lessorequals" => json!(compare(one, other)?.is_le()),
        "greater" => json!(compare(one, other)?.is_gt()),
        "greaterorequals" => json!(compare(one, other)?.is_ge()),
        "startswith" => lower().map(|(one, other)| json!(one.starts_with(&other)))?,
        "endswith" => lower().map(|(one, other)| json!(one.ends_with(&other)))?,
        "indexof" => {
            let (one, other) = lower()?;
            let at = one.find(&other).map(|at| one[..at].chars().count());
            at.map_or(json!(-1), |at| json!(at))
        }
        "contains" => json!(match one {
            Value::Array(items) => items.contains(other),
            Value::Object(object) => object
                .keys()
                .any(|key| key.eq_ignore_ascii_case(other.as_str().unwrap_or_default())),
            _ => texts().map(|(one, other)| one.contains(other))?,
        }),
        "split" => {
            let one = one.as_str()?;
            match other {
                Value::Array(marks) => {
                    let marks: Vec<char> =
                        marks.iter().filter_map(|mark| mark.as_str()?.chars().next()).collect();
                    json!(one.split(marks.as_slice()).collect::<Vec<_>>())
                }
                _ => json!(
                    one.split(other.as_str().filter(|mark| !mark.is_empty())?).collect::<Vec<_>>()
                ),
            }
        }
        "join" => {
            let parts: Vec<String> = one.as_array()?.iter().map(as_text).collect();
            json!(parts.join(other.as_str()?))
        }
        "take" | "skip" => {
            let n = usize::try_from(other.as_i64()?.max(0)).ok()?;
            match (one, name) {
                (Value::Array(items), "take") => json!(items.iter().take(n).collect::<Vec<_>>()),
                (Value::Array(items), _) => json!(items.iter().skip(n).collect::<Vec<_>>()),
                (_, "take") => json!(one.as_str()?.chars().take(n).collect::<String>()),
                _ => json!(one.as_str()?.chars().skip(n).collect::<String>()),
            }
        }
        "range" => {
            let (first, n) = numbers()?;
            // As many as Azure allows.
            if !(0..=10_000).contains(&n) || first.checked_add(n).is_none() {
                return None;
            }
            json!((first..first + n).collect::<Vec<_>>())
        }
        "substring" => {
            let from = usize::try_from(other.as_i64()?).ok()?;
            json!(one.as_str()?.chars().skip(from).collect::<String>())
        }
        "padleft" => json!(format!(
            "{:>1$}",
            as_text(one),
            usize::try_from(other.as_i64()?).ok().filter(|n| *n <= 1_024)?
        )),
        _ => return None,
    })
}

fn variadic(name: &str, arguments: &[Value]) -> Option<Value> {
    Some(match name {
        "concat" if arguments.iter().any(Value::is_array) => {
            let mut all = Vec::new();
            for argument in arguments {
                all.extend(argument.as_array()?.iter().cloned());
            }
            Value::Array(all)
        }
        "concat" => json!(arguments.iter().map(as_text).collect::<String>()),
        "format" => json!(format(arguments.split_first()?)?),
        "createarray" => json!(arguments),
        "createobject" if arguments.len().is_multiple_of(2) => {
            let mut object = Map::new();
            for pair in arguments.chunks(2) {
                object.insert(pair[0].as_str()?.to_owned(), pair[1].clone());
            }
            Value::Object(object)
        }
        "coalesce" => arguments.iter().find(|it| !it.is_null()).cloned().unwrap_or(Value::Null),
        "and" | "or" if arguments.len() > 1 => {
            let all: Vec<bool> = arguments.iter().map(Value::as_bool).collect::<Option<_>>()?;
            json!(if name == "and" { all.iter().all(|it| *it) } else { all.iter().any(|it| *it) })
        }
        "min" | "max" if !arguments.is_empty() => {
            let list = match arguments {
                [Value::Array(items)] => items,
                _ => arguments,
            };
            let all: Vec<i64> = list.iter().map(Value::as_i64).collect::<Option<_>>()?;
            json!(if name == "min" { all.iter().min()? } else { all.iter().max()? })
        }
        "union" if arguments.iter().all(Value::is_array) => {
            let mut all: Vec<Value> = Vec::new();
            for item in arguments.iter().filter_map(Value::as_array).flatten() {
                if !all.contains(item) {
                    all.push(item.clone());
                }
            }
            Value::Array(all)
        }
        "union" => {
            let mut all = Map::new();
            for argument in arguments {
                all.extend(argument.as_object()?.clone());
            }
            Value::Object(all)
        }
        "replace" => match arguments {
            [text, old, new] => json!(text.as_str()?.replace(old.as_str()?, new.as_str()?)),
            _ => return None,
        },
        "substring" => match arguments {
            [text, from, n] => {
                let (from, n) =
                    (usize::try_from(from.as_i64()?).ok()?, usize::try_from(n.as_i64()?).ok()?);
                let chars: Vec<char> = text.as_str()?.chars().collect();
                json!(chars.get(from..from.checked_add(n)?)?.iter().collect::<String>())
            }
            _ => return None,
        },
        "padleft" => match arguments {
            [text, n, with] => {
                let n = usize::try_from(n.as_i64()?).ok().filter(|n| *n <= 1_024)?;
                let text = as_text(text);
                let missing = n.saturating_sub(text.chars().count());
                let with = with.as_str()?.chars().next()?;
                json!(std::iter::repeat_n(with, missing).chain(text.chars()).collect::<String>())
            }
            _ => return None,
        },
        // The same texts give the same answer, as in Azure; its letters are not Azure's.
        "guid" if !arguments.is_empty() => json!(named(arguments)?.to_string()),
        "uniquestring" if !arguments.is_empty() => {
            let mut bits = named(arguments)?.as_u128();
            let mut text = String::new();
            for _ in 0..13 {
                let letter = u8::try_from(bits % 25).expect("a remainder of 25 is a byte");
                text.push(char::from(b'a' + letter));
                bits /= 25;
            }
            json!(text)
        }
        _ => return None,
    })
}

fn named(arguments: &[Value]) -> Option<Uuid> {
    let texts: Vec<&str> = arguments.iter().map(Value::as_str).collect::<Option<_>>()?;
    Some(Uuid::new_v5(&Uuid::NAMESPACE_OID, texts.join("-").as_bytes()))
}

/// `{0}` and so on replaced by arguments; `{{` is a brace.
fn format((text, arguments): (&Value, &[Value])) -> Option<String> {
    let mut rest = text.as_str()?;
    let mut all = String::new();
    while let Some(at) = rest.find(['{', '}']) {
        all.push_str(&rest[..at]);
        let (brace, after) = rest[at..].split_at(1);
        if let Some(after) = after.strip_prefix(brace) {
            all.push_str(brace);
            rest = after;
            continue;
        }
        let (inner, after) = after.split_once('}').filter(|_| brace == "{")?;
        let index: usize = inner.split([':', ',']).next()?.trim().parse().ok()?;
        all.push_str(&as_text(arguments.get(index)?));
        rest = after;
    }
    all.push_str(rest);
    Some(all)
}

fn compare(one: &Value, other: &Value) -> Option<std::cmp::Ordering> {
    match (one, other) {
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => Some(one.as_i64()?.cmp(&other.as_i64()?)),
    }
}

/// A value as a text: a text is itself, everything else is JSON; `True` as .NET has it.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_as_documented() {
        for (name, arguments, expected) in [
            ("concat", json!(["a", 1, "b"]), json!("a1b")),
            ("concat", json!([[1], [2, 3]]), json!([1, 2, 3])),
            ("format", json!(["{0}-{1}{{}}", "a", 7]), json!("a-7{}")),
            ("tolower", json!(["ÄB"]), json!("äb")),
            ("substring", json!(["one two", 4, 3]), json!("two")),
            ("substring", json!(["one two", 4]), json!("two")),
            ("split", json!(["a,b;c", [",", ";"]]), json!(["a", "b", "c"])),
            ("join", json!([["a", "b"], "-"]), json!("a-b")),
            ("replace", json!(["123-123", "-", ""]), json!("123123")),
            ("indexof", json!(["Test", "T"]), json!(0)),
            ("contains", json!([{ "One": 1 }, "one"]), json!(true)),
            ("length", json!(["äöü"]), json!(3)),
            ("range", json!([5, 3]), json!([5, 6, 7])),
            ("mod", json!([7, 3]), json!(1)),
            ("min", json!([[3, 1, 2]]), json!(1)),
            ("int", json!(["4"]), json!(4)),
            ("bool", json!(["True"]), json!(true)),
            ("and", json!([true, false]), json!(false)),
            ("coalesce", json!([null, null, "x"]), json!("x")),
            ("union", json!([{ "a": 1 }, { "b": 2, "a": 3 }]), json!({ "a": 3, "b": 2 })),
            ("createobject", json!(["a", 1]), json!({ "a": 1 })),
            ("take", json!([[1, 2, 3], 2]), json!([1, 2])),
            ("skip", json!(["abc", 1]), json!("bc")),
            ("padleft", json!(["123", 6, "0"]), json!("000123")),
            ("first", json!(["abc"]), json!("a")),
            ("last", json!([[1, 2]]), json!(2)),
            ("empty", json!([""]), json!(true)),
            ("base64tostring", json!(["b25l"]), json!("one")),
            ("json", json!(["{\"a\": [1]}"]), json!({ "a": [1] })),
            ("less", json!(["A", "a"]), json!(true)),
            ("true", json!([]), json!(true)),
        ] {
            let list = arguments.as_array().unwrap();
            assert_eq!(call(name, list).unwrap(), expected, "{name}{arguments}");
        }
        let unique = call("uniquestring", &[json!("a")]).unwrap();
        assert_eq!(unique.as_str().unwrap().len(), 13);
        assert_ne!(unique, call("uniquestring", &[json!("b")]).unwrap());
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        for (name, arguments) in [
            ("add", json!(["a", 1])),
            ("add", json!([i64::MAX, 1])),
            ("div", json!([1, 0])),
            ("div", json!([i64::MIN, -1])),
            ("format", json!(["{1}", "a"])),
            ("format", json!(["}", "a"])),
            ("substring", json!(["abc", 2, 5])),
            ("substring", json!(["abc", -1])),
            ("range", json!([0, 10_001])),
            ("range", json!([i64::MAX, 5])),
            ("padleft", json!(["a", 1_000_000])),
            ("concat", json!([["a"], "b"])),
            ("not", json!(["x"])),
            ("json", json!(["{"])),
            ("min", json!([])),
            ("uniquestring", json!([1])),
        ] {
            let list = arguments.as_array().unwrap();
            assert_eq!(call(name, list).unwrap_err().code, "InvalidTemplate", "{name}{arguments}");
        }
    }
}

//! What template expressions mean in one deployment: its parameters and variables, the loop that a resource is of,
//! and the resources that are there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vnet::{fault::Fault, name::ArmId};

use super::{
    expression::{Expression, in_text},
    function, invalid,
};
use crate::refuse::{NOT_SUPPORTED, unsupported};

/// The functions here, in lower case.
const NAMES: &[&str] = &[
    "copyindex",
    "deployment",
    "if",
    "parameters",
    "reference",
    "resourcegroup",
    "resourceid",
    "subscription",
    "subscriptionresourceid",
    "variables",
];
/// How deep variables may mean variables.
const MAX_DEPTH: usize = 32;

/// A template with the values of its parameters.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// The template as it was sent.
    pub(super) value: Value,
    /// Parameters by name in lower case: type and value.
    pub(super) parameters: BTreeMap<String, (String, Value)>,
}

/// Answers `reference`: the resource of a name or an id, whole or only its properties.
pub(super) type Resources<'a> = dyn Fn(&str, bool) -> Result<Value, Fault> + 'a;

/// Where an expression stands.
pub(super) struct Scope<'a> {
    pub(super) template: &'a Template,
    /// The deployment.
    pub(super) id: &'a ArmId,
    /// Its resource group, as `resourceGroup()` gives it.
    pub(super) group: &'a Value,
    /// The loop's name and how far it is.
    pub(super) copy: Option<(String, i64)>,
    pub(super) resources: &'a Resources<'a>,
}

/// Refuses expressions that cannot be read, functions that are not known and loops inside of a value.
pub(super) fn check(value: &Value) -> Result<(), Fault> {
    let mut unknown = None;
    each_expression(value, &mut |expression| {
        expression.calls(&mut |name, _| {
            let lower = name.to_ascii_lowercase();
            if !NAMES.contains(&lower.as_str()) && !function::NAMES.contains(&lower.as_str()) {
                unknown.get_or_insert(name.to_owned());
            }
        });
    })?;
    match unknown {
        Some(name) => Err(unsupported(NOT_SUPPORTED, &format!("the template function '{name}'"))),
        None => Ok(()),
    }
}

/// Calls `visit` with every expression in a value.
pub(super) fn each_expression(
    value: &Value,
    visit: &mut dyn FnMut(&Expression),
) -> Result<(), Fault> {
    match value {
        Value::String(text) => {
            if let Some(inner) = in_text(text) {
                visit(&Expression::parse(inner)?);
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| each_expression(item, visit)),
        Value::Object(object) if object.contains_key("copy") => {
            Err(unsupported(NOT_SUPPORTED, "copy loops of properties, variables and outputs"))
        }
        Value::Object(object) => object.values().try_for_each(|item| each_expression(item, visit)),
        _ => Ok(()),
    }
}

/// Whether a value asks for resources that are there.
pub(super) fn asks_for_resources(value: &Value) -> Result<bool, Fault> {
    let mut asks = false;
    each_expression(value, &mut |expression| {
        expression.calls(&mut |name, _| asks |= name.eq_ignore_ascii_case("reference"));
    })?;
    Ok(asks)
}

impl Scope<'_> {
    /// A value with every expression in it replaced by what it means.
    pub(super) fn value(&self, value: &Value) -> Result<Value, Fault> {
        self.value_at(value, 0)
    }

    /// The same where a text is expected.
    pub(super) fn text(&self, value: &Value, what: &str) -> Result<String, Fault> {
        match self.value(value)? {
            Value::String(text) => Ok(text),
            other => Err(invalid(&format!("{what} must be a text, not {other}"))),
        }
    }

    /// What one expression means.
    pub(super) fn evaluated(&self, expression: &Expression) -> Result<Value, Fault> {
        self.evaluate(expression, 0)
    }

    fn value_at(&self, value: &Value, depth: usize) -> Result<Value, Fault> {
        if depth > MAX_DEPTH {
            return Err(invalid("variables and parameters mean each other without end"));
        }
        Ok(match value {
            Value::String(text) => match in_text(text) {
                Some(inner) => self.evaluate(&Expression::parse(inner)?, depth)?,
                // `[[` is a bracket that means itself.
                None => Value::String(
                    text.strip_prefix("[[").map_or_else(|| text.clone(), |rest| format!("[{rest}")),
                ),
            },
            Value::Array(items) => {
                let items = items.iter().map(|item| self.value_at(item, depth));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Object(object) => {
                let items = object
                    .iter()
                    .map(|(key, item)| self.value_at(item, depth).map(|item| (key.clone(), item)));
                Value::Object(items.collect::<Result<Map<_, _>, _>>()?)
            }
            other => other.clone(),
        })
    }

    fn evaluate(&self, expression: &Expression, depth: usize) -> Result<Value, Fault> {
        match expression {
            Expression::Text(text) => Ok(json!(text)),
            Expression::Number(number) => Ok(json!(number)),
            Expression::Of(whole, part) => {
                let whole = self.evaluate(whole, depth)?;
                let part = self.evaluate(part, depth)?;
                part_of(&whole, &part).ok_or_else(|| {
                    invalid(&format!("the language expression property '{part}' doesn't exist"))
                })
            }
            Expression::Call(name, arguments) => {
                let lower = name.to_ascii_lowercase();
                if let ("if", [condition, yes, no]) = (lower.as_str(), arguments.as_slice()) {
                    let condition = self.evaluate(condition, depth)?;
                    let Some(holds) = condition.as_bool() else {
                        return Err(invalid(&format!("the condition of 'if' is {condition}")));
                    };
                    return self.evaluate(if holds { yes } else { no }, depth);
                }
                let arguments = arguments.iter().map(|it| self.evaluate(it, depth));
                let arguments: Vec<Value> = arguments.collect::<Result<_, _>>()?;
                if function::NAMES.contains(&lower.as_str()) {
                    return function::call(&lower, &arguments);
                }
                self.call(&lower, &arguments, depth)
            }
        }
    }

    fn call(&self, name: &str, arguments: &[Value], depth: usize) -> Result<Value, Fault> {
        let texts: Option<Vec<&str>> = arguments.iter().map(Value::as_str).collect();
        match (name, texts.as_deref()) {
            ("parameters", Some([name])) => {
                let found = self.template.parameters.get(&name.to_ascii_lowercase());
                found.map(|(_, value)| value.clone()).ok_or_else(|| {
                    invalid(&format!("the template parameter '{name}' is not found"))
                })
            }
            ("variables", Some([name])) => {
                let variables = self.template.value["variables"].as_object();
                let mut all = variables.into_iter().flatten();
                let found = all.find(|(other, _)| other.eq_ignore_ascii_case(name));
                let (_, value) = found.ok_or_else(|| {
                    invalid(&format!("the template variable '{name}' is not found"))
                })?;
                self.value_at(value, depth + 1)
            }
            ("resourceid", Some(texts)) => self.resource_id(texts),
            ("subscriptionresourceid", Some(texts)) if texts.len() > 1 => {
                let (kind, names) = (texts[0], &texts[1..]);
                let path = pairs(kind, names).ok_or_else(|| wrong_id(texts))?;
                Ok(json!(format!("/subscriptions/{}/providers/{path}", self.id.subscription())))
            }
            ("resourcegroup", Some([])) => Ok(self.group.clone()),
            ("subscription", Some([])) => Ok(json!({
                "id": format!("/subscriptions/{}", self.id.subscription()),
                "subscriptionId": self.id.subscription(),
            })),
            ("deployment", Some([])) => Ok(json!({ "name": self.id.name() })),
            ("reference", Some([resource] | [resource, _])) => (self.resources)(resource, false),
            ("reference", Some([resource, _, full])) => {
                (self.resources)(resource, full.eq_ignore_ascii_case("Full"))
            }
            ("copyindex", _) => self.copy_index(arguments),
            _ => Err(invalid(&format!(
                "the template function '{name}' cannot have the arguments {}",
                Value::from(arguments)
            ))),
        }
    }

    /// `copyIndex()`, `copyIndex(1)`, `copyIndex('loop')`, `copyIndex('loop', 1)`.
    fn copy_index(&self, arguments: &[Value]) -> Result<Value, Fault> {
        let Some((name, index)) = &self.copy else {
            return Err(invalid(
                "the template function 'copyIndex' is not expected outside of a loop",
            ));
        };
        let (wanted, offset) = match arguments {
            [] => (None, Some(0)),
            [Value::String(wanted)] => (Some(wanted), Some(0)),
            [offset] => (None, offset.as_i64()),
            [Value::String(wanted), offset] => (Some(wanted), offset.as_i64()),
            _ => (None, None),
        };
        let is_its = wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(name));
        let sum = offset.filter(|_| is_its).and_then(|offset| index.checked_add(offset));
        sum.map(|sum| json!(sum)).ok_or_else(|| {
            invalid(&format!(
                "'copyIndex' in loop '{name}' has the arguments {}",
                Value::from(arguments)
            ))
        })
    }

    /// `resourceId([subscription], [group], type, names…)`.
    fn resource_id(&self, texts: &[&str]) -> Result<Value, Fault> {
        let wrong = || wrong_id(texts);
        let at = texts.iter().position(|text| text.contains('/')).ok_or_else(wrong)?;
        let (subscription, group) = match &texts[..at] {
            [] => (self.id.subscription(), self.id.resource_group()),
            [group] => (self.id.subscription(), *group),
            [subscription, group] => (*subscription, *group),
            _ => return Err(wrong()),
        };
        let path = pairs(texts[at], &texts[at + 1..]).ok_or_else(wrong)?;
        Ok(json!(format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/{path}")))
    }
}

fn wrong_id(texts: &[&str]) -> Fault {
    invalid(&format!("{texts:?} are not a resource type and as many names as it has segments"))
}

/// `Microsoft.Network/virtualNetworks/subnets` and `v`, `s` make `Microsoft.Network/virtualNetworks/v/subnets/s`.
pub(super) fn pairs(kind: &str, names: &[&str]) -> Option<String> {
    let (namespace, types) = kind.split_once('/')?;
    let types: Vec<&str> = types.split('/').collect();
    let names: Vec<&str> = names.iter().flat_map(|name| name.split('/')).collect();
    let fits = types.len() == names.len() && !names.iter().chain(&types).any(|it| it.is_empty());
    fits.then(|| {
        let pairs = types.iter().zip(&names);
        pairs.fold(namespace.to_owned(), |path, (kind, name)| format!("{path}/{kind}/{name}"))
    })
}

fn part_of(whole: &Value, part: &Value) -> Option<Value> {
    match (whole, part) {
        (Value::Object(object), Value::String(name)) => object
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone()),
        (Value::Array(items), Value::Number(index)) => {
            items.get(usize::try_from(index.as_u64()?).ok()?).cloned()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str, copy: Option<(&str, i64)>) -> Result<Value, Fault> {
        let template = Template {
            value: json!({ "variables": { "a": "[concat(parameters('P'), '-v')]", "list": ["x", "y"],
                "round": "[variables('round')]", "Deep": { "Key": ["[variables('a')]"] } } }),
            parameters: BTreeMap::from([("p".to_owned(), ("string".to_owned(), json!("it")))]),
        };
        let id: ArmId =
            "/subscriptions/S/resourceGroups/g/providers/Microsoft.Resources/deployments/d"
                .parse()
                .unwrap();
        let scope = Scope {
            template: &template,
            id: &id,
            group: &json!({ "name": "g", "location": "eastus" }),
            copy: copy.map(|(name, index)| (name.to_owned(), index)),
            resources: &|name, is_full| Ok(json!({ "of": name, "full": is_full })),
        };
        scope.value(&json!(text))
    }

    #[test]
    fn expressions_mean_what_azure_means() {
        let v = "/subscriptions/S/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v";
        for (text, expected) in [
            ("plain", json!("plain")),
            ("[[plain]", json!("[plain]")),
            ("[variables('a')]", json!("it-v")),
            ("[variables('deep').key[0]]", json!("it-v")),
            ("[variables('list')[copyIndex(1)]]", json!("y")),
            ("[concat('n', copyIndex('l', 5))]", json!("n5")),
            ("[resourceGroup().location]", json!("eastus")),
            ("[resourceId('Microsoft.Network/virtualNetworks', 'v')]", json!(v)),
            (
                "[resourceId('h', 'Microsoft.Network/virtualNetworks/subnets', 'v', 's')]",
                json!(format!("{}/subnets/s", v.replace("/g/", "/h/"))),
            ),
            ("[reference('lb')]", json!({ "of": "lb", "full": false })),
            ("[reference('lb', '2020-01-01', 'Full').full]", json!(true)),
            ("[if(equals(parameters('p'), 'it'), 'yes', variables('nope'))]", json!("yes")),
            ("[deployment().name]", json!("d")),
        ] {
            assert_eq!(evaluate(text, Some(("l", 0))).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (text, part) in [
            ("[parameters('nope')]", "'nope' is not found"),
            ("[variables('nope')]", "'nope' is not found"),
            ("[variables('round')]", "without end"),
            ("[variables('list')[2]]", "doesn't exist"),
            ("[variables('list').x]", "doesn't exist"),
            ("[resourceId('Microsoft.Network/virtualNetworks')]", "as many names"),
            ("[resourceId('v')]", "as many names"),
            ("[if('x', 1, 2)]", "condition"),
            ("[copyIndex()]", "outside of a loop"),
            ("[parameters()]", "cannot have the arguments"),
        ] {
            let fault = evaluate(text, None).unwrap_err();
            assert!(fault.message.contains(part), "{text}: {fault}");
        }
        assert!(evaluate("[copyIndex('other')]", Some(("l", 0))).is_err());
    }

    #[test]
    fn functions_that_are_not_known_are_refused_before_anything_is_made() {
        let fault = check(&json!({ "a": ["[concat('x', listKeys('y', 'z').key)]"] })).unwrap_err();
        assert_eq!(fault.code, NOT_SUPPORTED);
        assert!(fault.message.contains("'listKeys'"), "{fault}");
        assert!(check(&json!({ "copy": [] })).is_err());
        assert!(check(&json!(["[[listKeys()]", "[concat('[', variables('a'))]"])).is_ok());
    }
}

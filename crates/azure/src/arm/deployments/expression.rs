//! Template expressions: `[concat(variables('name'), copyIndex())]` read as values.
//! Not here: what they mean (see [`super::function`] and [`super::scope`]).
//!
//! The grammar is that of Azure Resource Manager's documentation, "Template syntax and expressions": calls, literal
//! texts in single quotes (a quote in a text is doubled), whole numbers, `.property` and `[index]` after a call.

use vnet::fault::Fault;

use super::invalid;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    /// A literal text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A call of a function by its name, as it was written.
    Call(String, Vec<Expression>),
    /// A property or an element of what an expression is.
    Of(Box<Expression>, Box<Expression>),
}

/// How deep expressions may nest; more is refused rather than followed.
const MAX_DEPTH: usize = 64;
/// How long an expression may be (Azure Resource Manager, "Template limits").
const MAX_LENGTH: usize = 24_576;

/// The expression in a text, or `None` where the text means itself.
pub(super) fn in_text(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    (!inner.starts_with('[')).then_some(inner)
}

impl Expression {
    /// Reads what stands between the brackets.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_LENGTH {
            return Err(invalid(&format!("an expression is longer than {MAX_LENGTH} characters")));
        }
        let mut reader = Reader { text, at: 0, depth: 0 };
        let expression = reader.expression()?;
        reader.space();
        if reader.at == text.len() { Ok(expression) } else { Err(reader.wrong("nothing more")) }
    }

    /// Calls `visit` with every call in the expression, the outer one first.
    pub(super) fn calls<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [Self])) {
        match self {
            Self::Text(_) | Self::Number(_) => {}
            Self::Call(name, arguments) => {
                visit(name, arguments);
                for argument in arguments {
                    argument.calls(visit);
                }
            }
            Self::Of(whole, part) => {
                whole.calls(visit);
                part.calls(visit);
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Whether `c` comes next, which is then passed.
    fn next_is(&mut self, c: char) -> bool {
        self.space();
        let is = self.rest().starts_with(c);
        if is {
            self.at += c.len_utf8();
        }
        is
    }

    fn wrong(&self, expected: &str) -> Fault {
        invalid(&format!(
            "Unable to parse language expression '{}': {expected} is expected at position {}",
            self.text,
            self.text[..self.at].chars().count()
        ))
    }

    fn expression(&mut self) -> Result<Expression, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(invalid(&format!("an expression nests deeper than {MAX_DEPTH} levels")));
        }
        let mut expression = self.operand()?;
        loop {
            if self.next_is('.') {
                let name = self.name();
                if name.is_empty() {
                    return Err(self.wrong("the name of a property"));
                }
                expression = Expression::Of(Box::new(expression), Box::new(Expression::Text(name)));
            } else if self.next_is('[') {
                let index = self.expression()?;
                if !self.next_is(']') {
                    return Err(self.wrong("']'"));
                }
                expression = Expression::Of(Box::new(expression), Box::new(index));
            } else {
                break;
            }
        }
        self.depth -= 1;
        Ok(expression)
    }

    fn operand(&mut self) -> Result<Expression, Fault> {
        if self.next_is('\'') {
            return self.literal();
        }
        let digits: String = self
            .rest()
            .char_indices()
            .take_while(|(i, c)| c.is_ascii_digit() || (*i == 0 && *c == '-'))
            .map(|(_, c)| c)
            .collect();
        if !digits.is_empty() {
            let number = digits.parse().map_err(|_| self.wrong("a whole number"))?;
            self.at += digits.len();
            return Ok(Expression::Number(number));
        }
        let name = self.name();
        if name.is_empty() {
            return Err(self.wrong("a function, a text or a number"));
        }
        if !self.next_is('(') {
            return Err(self.wrong("'('"));
        }
        let mut arguments = Vec::new();
        if self.next_is(')') {
            return Ok(Expression::Call(name, arguments));
        }
        loop {
            arguments.push(self.expression()?);
            if self.next_is(')') {
                return Ok(Expression::Call(name, arguments));
            }
            if !self.next_is(',') {
                return Err(self.wrong("',' or ')'"));
            }
        }
    }

    fn literal(&mut self) -> Result<Expression, Fault> {
        let mut text = String::new();
        loop {
            let Some(end) = self.rest().find('\'') else {
                return Err(self.wrong("a closing quote"));
            };
            text.push_str(&self.rest()[..end]);
            self.at += end + 1;
            if !self.rest().starts_with('\'') {
                return Ok(Expression::Text(text));
            }
            text.push('\'');
            self.at += 1;
        }
    }

    fn name(&mut self) -> String {
        self.space();
        let is_part = |c: &char| c.is_ascii_alphanumeric() || *c == '_' || *c == '-' || *c == '$';
        let name: String = self.rest().chars().take_while(is_part).collect();
        self.at += name.len();
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    fn call(name: &str, arguments: Vec<Expression>) -> Expression {
        Expression::Call(name.to_owned(), arguments)
    }

    #[test]
    fn expressions_are_read() {
        for (source, expected) in [
            ("'it''s'", text("it's")),
            (" add( 1 ,-2 ) ", call("add", vec![Expression::Number(1), Expression::Number(-2)])),
            (
                "variables('a')[copyIndex()].id",
                Expression::Of(
                    Box::new(Expression::Of(
                        Box::new(call("variables", vec![text("a")])),
                        Box::new(call("copyIndex", vec![])),
                    )),
                    Box::new(text("id")),
                ),
            ),
            ("concat('ü', ')')", call("concat", vec![text("ü"), text(")")])),
        ] {
            assert_eq!(Expression::parse(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_its_place() {
        for (source, place) in [
            ("", "position 0"),
            ("concat", "position 6"),
            ("concat('a'", "position 10"),
            ("concat('a' 'b')", "position 11"),
            ("'a", "position 1"),
            ("a().", "position 4"),
            ("a()[0", "position 5"),
            ("a() b", "position 4"),
            ("ü()", "position 0"),
        ] {
            let fault = Expression::parse(source).unwrap_err();
            assert_eq!(fault.code, "InvalidTemplate");
            assert!(fault.message.contains(place), "{source}: {fault}");
        }
        let deep = "f(".repeat(1_000);
        assert!(Expression::parse(&deep).unwrap_err().message.contains("deeper"));
    }

    #[test]
    fn only_texts_in_single_brackets_are_expressions() {
        assert_eq!(in_text("[a()]"), Some("a()"));
        for plain in ["a()", "[[a()]", "[a()", "a()]", ""] {
            assert_eq!(in_text(plain), None, "{plain}");
        }
    }
}

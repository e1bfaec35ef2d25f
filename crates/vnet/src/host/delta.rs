//! The difference of two rule sets that differ in the elements of sets and maps alone: what a NIC that comes or
//! goes changes. Not here: rendering (see [`super::ruleset`]) and loading (`linux::nft`).
//!
//! A table with a thousand NICs takes `nft` tens of milliseconds to replace, two elements of it a few.

use std::{collections::BTreeSet, fmt::Write as _};

use super::ruleset::TABLE;

const ELEMENTS: &str = "\t\telements = { ";

/// The statements that turn the table of `old` into that of `new`, for one transaction. `None` when more than
/// elements differs: then the table is to be replaced.
#[must_use]
pub fn delta(old: &str, new: &str) -> Option<String> {
    let (mut old, mut new) = (Reader::of(old), Reader::of(new));
    let (mut gone, mut come) = (String::new(), String::new());
    loop {
        let before = old.next_line();
        if before != new.next_line() {
            return None;
        }
        let Some(line) = before else { break };
        // The elements of a set are its last line, and an empty set has none.
        if line == "\t}" {
            continue;
        }
        let (Some(name), true) = (set_name(line), old.is_set()) else { continue };
        if !old.skip_to_elements(&mut new) {
            return None;
        }
        let (has, wants) = (old.elements(), new.elements());
        statement(&mut gone, "delete", name, has.difference(&wants));
        statement(&mut come, "add", name, wants.difference(&has));
    }
    gone.push_str(&come);
    Some(gone)
}

/// The lines of a table.
struct Reader<'a> {
    lines: std::iter::Peekable<std::str::Lines<'a>>,
}

impl<'a> Reader<'a> {
    fn of(text: &'a str) -> Self {
        Self { lines: text.lines().peekable() }
    }

    fn next_line(&mut self) -> Option<&'a str> {
        self.lines.next()
    }

    /// Whether the block that has just begun is one of typed elements.
    fn is_set(&mut self) -> bool {
        self.lines
            .peek()
            .is_some_and(|line| line.starts_with("\t\ttype ") && !line.contains(" hook "))
    }

    /// Passes over type and flags of a set; says whether they are the same in both.
    fn skip_to_elements(&mut self, other: &mut Self) -> bool {
        loop {
            let (Some(here), Some(there)) = (self.lines.peek(), other.lines.peek()) else {
                return false;
            };
            let is_head = |line: &str| !line.starts_with(ELEMENTS) && line != "\t}";
            match (is_head(here), is_head(there)) {
                (false, false) => return true,
                (true, true) if here == there => {
                    self.lines.next();
                    other.lines.next();
                }
                _ => return false,
            }
        }
    }

    fn elements(&mut self) -> BTreeSet<&'a str> {
        let line = self.lines.next_if(|line| line.starts_with(ELEMENTS));
        let list = line.and_then(|line| line.strip_prefix(ELEMENTS)?.strip_suffix(" }"));
        list.map(|list| list.split(", ").collect()).unwrap_or_default()
    }
}

fn set_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("\tset ").or_else(|| line.strip_prefix("\tmap "))?;
    rest.strip_suffix(" {")
}

fn statement<'a>(
    text: &mut String,
    verb: &str,
    set: &str,
    elements: impl Iterator<Item = &'a &'a str>,
) {
    let elements: Vec<&str> = elements.copied().collect();
    if !elements.is_empty() {
        writeln!(text, "{verb} element ip {TABLE} {set} {{ {} }}", elements.join(", "))
            .expect("writing to a String never fails");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sources: &str, map: &str, rule: &str) -> String {
        let set = |head: &str, elements: &str| {
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!("{ELEMENTS}{elements} }}\n")
            };
            format!("\t{head} {{\n\t\ttype ipv4_addr\n\t\tflags interval\n{elements}\t}}\n")
        };
        format!(
            "table ip aksnet {{\n{}{}\tchain c {{\n\t\ttype filter hook input priority 0; policy accept;\n\t\t{rule}\n\t}}\n}}\n",
            set("set sources", sources),
            set("map public", map)
        )
    }

    fn check(old: [&str; 3], new: [&str; 3], expected: Option<&str>) {
        let text = |[a, b, c]: [&str; 3]| table(a, b, c);
        assert_eq!(delta(&text(old), &text(new)).as_deref(), expected, "{old:?} {new:?}");
    }

    #[test]
    fn elements_are_told_and_everything_else_is_a_new_table() {
        check(["1.1.1.1", "", "accept"], ["1.1.1.1", "", "accept"], Some(""));
        check(
            ["1.1.1.1, 2.2.2.2", "", "accept"],
            ["1.1.1.1, 3.3.3.3", "4.4.4.4 : 5.5.5.5", "accept"],
            Some(
                "delete element ip aksnet sources { 2.2.2.2 }\nadd element ip aksnet sources { 3.3.3.3 }\n\
                 add element ip aksnet public { 4.4.4.4 : 5.5.5.5 }\n",
            ),
        );
        // The same key with another value: it goes before it comes.
        check(
            ["", "4.4.4.4 : 5.5.5.5", "accept"],
            ["", "4.4.4.4 : 6.6.6.6", "accept"],
            Some(
                "delete element ip aksnet public { 4.4.4.4 : 5.5.5.5 }\n\
                 add element ip aksnet public { 4.4.4.4 : 6.6.6.6 }\n",
            ),
        );
        check(["1.1.1.1", "", "accept"], ["1.1.1.1", "", "drop"], None);
        assert_eq!(delta(&table("", "", ""), "table ip aksnet {\n}\n"), None);
        let other = table("", "", "")
            .replace("set sources {\n\t\ttype ipv4_addr", "set sources {\n\t\ttype ifname");
        assert_eq!(delta(&table("", "", ""), &other), None);
    }
}

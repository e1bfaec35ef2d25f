//! The difference of two rule sets that differ in the elements of sets and maps alone: what a NIC that comes or
//! goes changes. Not here: rendering (see `ruleset`), elements as values (see [`super::element`]), and
//! putting them in (`linux::netfilter`).

use std::collections::BTreeSet;

use crate::addr::Family;

/// How the line of a set's elements begins.
pub(super) const ELEMENTS: &str = "\t\telements = { ";

/// What differs in one set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The family of its table.
    pub family: Family,
    /// Its name.
    pub set: String,
    /// Its type as `nft` writes it: `ifname . ipv4_addr : verdict`.
    pub kind: String,
    /// Whether keys are intervals.
    pub is_interval: bool,
    /// Elements that go, as `nft` writes them, in order.
    pub gone: Vec<String>,
    /// Elements that come.
    pub come: Vec<String>,
}

/// What turns the table of `old` into that of `new`. `None` when more than elements differs: then the table is to be
/// replaced.
#[must_use]
pub fn delta(old: &str, new: &str) -> Option<Vec<Elements>> {
    let (mut old, mut new) = (Reader::of(old), Reader::of(new));
    let mut changes = Vec::new();
    let mut family = Family::V4;
    loop {
        let before = old.next_line();
        if before != new.next_line() {
            return None;
        }
        let Some(line) = before else { break };
        // A namespace with IPv6 has a table for each family.
        family = table_family(line).unwrap_or(family);
        // The elements of a set are its last line, and an empty set has none.
        if line == "\t}" {
            continue;
        }
        let (Some(set), true) = (set_name(line), old.is_set()) else { continue };
        let head = old.skip_to_elements(&mut new)?;
        let (has, wants) = (old.elements(), new.elements());
        if has == wants {
            continue;
        }
        let (has, wants) = (listed(has), listed(wants));
        let only = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| {
            a.difference(b).map(|it| (*it).to_owned()).collect()
        };
        changes.push(Elements {
            family,
            set: set.to_owned(),
            kind: head.kind.to_owned(),
            is_interval: head.is_interval,
            gone: only(&has, &wants),
            come: only(&wants, &has),
        });
    }
    Some(changes)
}

/// The text of a table with other elements.
pub(super) fn patched(whole: &str, changes: &[Elements]) -> String {
    let mut text = String::with_capacity(whole.len());
    let mut reader = Reader::of(whole);
    let mut family = Family::V4;
    while let Some(line) = reader.next_line() {
        push_line(&mut text, line);
        family = table_family(line).unwrap_or(family);
        let Some(set) = set_name(line).filter(|_| reader.is_set()) else { continue };
        let Some(change) = changes.iter().find(|it| it.set == set && it.family == family) else {
            continue;
        };
        while let Some(line) =
            reader.lines.next_if(|line| !line.starts_with(ELEMENTS) && *line != "\t}")
        {
            push_line(&mut text, line);
        }
        let elements = merged(reader.elements(), change);
        if !elements.is_empty() {
            text.push_str(ELEMENTS);
            for (n, element) in elements.iter().enumerate() {
                text.push_str(if n == 0 { "" } else { ", " });
                text.push_str(element);
            }
            text.push_str(" }\n");
        }
    }
    text
}

/// The elements in a set's line of them, without those that go and with those that come. All are in order.
fn merged<'a>(line: &'a str, change: &'a Elements) -> Vec<&'a str> {
    let mut come = change.come.iter().map(String::as_str).peekable();
    let mut all = Vec::new();
    for element in line.split(", ").filter(|element| !element.is_empty()) {
        while let Some(new) = come.next_if(|new| *new < element) {
            all.push(new);
        }
        if !change.gone.iter().any(|gone| gone == element) {
            come.next_if_eq(&element);
            all.push(element);
        }
    }
    all.extend(come);
    all
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The elements in a set's line of them.
pub(super) fn listed(line: &str) -> BTreeSet<&str> {
    if line.is_empty() { BTreeSet::new() } else { line.split(", ").collect() }
}

/// The lines of a table.
pub(super) struct Reader<'a> {
    lines: std::iter::Peekable<std::str::Lines<'a>>,
}

/// What a set is.
struct Head<'a> {
    kind: &'a str,
    is_interval: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { lines: text.lines().peekable() }
    }

    pub(super) fn next_line(&mut self) -> Option<&'a str> {
        self.lines.next()
    }

    /// Whether the block that has just begun is one of typed elements.
    fn is_set(&mut self) -> bool {
        self.lines
            .peek()
            .is_some_and(|line| line.starts_with("\t\ttype ") && !line.contains(" hook "))
    }

    /// Passes over type and flags of a set; `None` unless they are the same in both.
    fn skip_to_elements(&mut self, other: &mut Self) -> Option<Head<'a>> {
        let mut head = Head { kind: "", is_interval: false };
        let is_head = |line: &str| !line.starts_with(ELEMENTS) && line != "\t}";
        loop {
            let (here, there) = (*self.lines.peek()?, *other.lines.peek()?);
            match (is_head(here), is_head(there)) {
                (false, false) => return Some(head),
                (true, true) if here == there => {
                    if let Some(kind) = here.strip_prefix("\t\ttype ") {
                        head.kind = kind;
                    }
                    head.is_interval |= here == "\t\tflags interval";
                    self.lines.next();
                    other.lines.next();
                }
                _ => return None,
            }
        }
    }

    /// What is between the braces, if the next line is that of a set's elements.
    fn elements(&mut self) -> &'a str {
        let line = self.lines.next_if(|line| line.starts_with(ELEMENTS));
        line.and_then(elements_of).unwrap_or_default()
    }
}

/// What is between the braces of a line of elements.
pub(super) fn elements_of(line: &str) -> Option<&str> {
    line.strip_prefix(ELEMENTS)?.strip_suffix(" }")
}

/// The family of the table that a line begins.
pub(super) fn table_family(line: &str) -> Option<Family> {
    match line.strip_prefix("table ")?.split_once(' ')?.0 {
        "ip" => Some(Family::V4),
        "ip6" => Some(Family::V6),
        _ => None,
    }
}

/// The name in the first line of a set or map.
pub(super) fn set_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("\tset ").or_else(|| line.strip_prefix("\tmap "))?;
    rest.strip_suffix(" {")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ruleset::{digest, digest_after};

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

    /// `set -gone +come`, one for each set; and that text and digest follow.
    fn check(old: [&str; 3], new: [&str; 3], expected: Option<&str>) {
        let text = |[a, b, c]: [&str; 3]| table(a, b, c);
        let changes = delta(&text(old), &text(new));
        let told = changes.as_ref().map(|changes| {
            let one = |it: &Elements| {
                assert!(it.is_interval && it.kind == "ipv4_addr");
                format!("{} -{} +{}", it.set, it.gone.join(","), it.come.join(","))
            };
            changes.iter().map(one).collect::<Vec<_>>().join("; ")
        });
        assert_eq!(told.as_deref(), expected, "{old:?} {new:?}");
        if let Some(changes) = changes {
            assert_eq!(patched(&text(old), &changes), text(new));
            assert_eq!(digest_after(&digest(&text(old)), &changes), Some(digest(&text(new))));
        }
    }

    #[test]
    fn elements_are_told_and_everything_else_is_a_new_table() {
        check(["1.1.1.1", "", "accept"], ["1.1.1.1", "", "accept"], Some(""));
        check(
            ["1.1.1.1, 2.2.2.2", "", "accept"],
            ["1.1.1.1, 3.3.3.3", "4.4.4.4 : 5.5.5.5", "accept"],
            Some("sources -2.2.2.2 +3.3.3.3; public - +4.4.4.4 : 5.5.5.5"),
        );
        // The same key with another value: it goes before it comes.
        check(
            ["", "4.4.4.4 : 5.5.5.5", "accept"],
            ["", "4.4.4.4 : 6.6.6.6", "accept"],
            Some("public -4.4.4.4 : 5.5.5.5 +4.4.4.4 : 6.6.6.6"),
        );
        check(["1.1.1.1", "", "accept"], ["", "", "accept"], Some("sources -1.1.1.1 +"));
        check(["1.1.1.1", "", "accept"], ["1.1.1.1", "", "drop"], None);
        assert_eq!(delta(&table("", "", ""), "table ip aksnet {\n}\n"), None);
        let other = table("", "", "")
            .replace("set sources {\n\t\ttype ipv4_addr", "set sources {\n\t\ttype ifname");
        assert_eq!(delta(&table("", "", ""), &other), None);
    }

    #[test]
    fn a_digest_tells_texts_apart() {
        let texts = [
            table("1.1.1.1", "", "accept"),
            table("", "1.1.1.1", "accept"),
            table("1.1.1.1", "", "drop"),
            table("1.1.1.1, 2.2.2.2", "", "accept"),
            table("2.2.2.1, 1.1.1.2", "", "accept"),
            table("1.1.1.1, 2.2.2.2, 1.1.1.2", "", "accept"),
            table("", "", "accept"),
            String::new(),
        ];
        let digests: BTreeSet<String> = texts.iter().map(|text| digest(text)).collect();
        assert_eq!(digests.len(), texts.len());
        assert!(digests.iter().all(|digest| digest.len() == 32));
    }
}

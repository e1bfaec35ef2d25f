//! The settings of azure-ip-masq-agent, as `ConfigMap`s in `kube-system` say them: what they mean, and what AKS
//! itself writes. Not here: the rules that follow (`vnet::pods::masquerade`).
//!
//! Each entry of the maps whose name begins with `ip-masq` is a file of the agent; lists of all files are
//! appended and switches are joined by "or" (Azure/ip-masq-agent-v2).

use std::collections::BTreeMap;

use serde::Deserialize;
use vnet::{
    addr::{Prefix, PrefixError},
    pods::masquerade::Settings,
};

/// The map that AKS owns: it is put back when somebody changes it.
pub const RECONCILED: &str = "azure-ip-masq-agent-config-reconciled";
/// The map that a cluster's user may make.
pub const USERS: &str = "azure-ip-masq-agent-config";
/// The one entry of [`RECONCILED`].
pub const RECONCILED_FILE: &str = "ip-masq-agent-reconciled";

/// How the names of the agent's files begin.
const FILE_PREFIX: &str = "ip-masq";
/// ip-masq-agent takes no more than this, "to protect against really bad mistakes".
const MOST_PREFIXES: usize = 64;

/// Why settings are refused. As with ip-masq-agent, those before stay then.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// A file is not YAML of the agent's.
    #[error("the file `{file}` is not a configuration of ip-masq-agent")]
    Syntax {
        /// The file.
        file: String,
        /// Where it goes wrong.
        source: Box<serde_saphyr::Error>,
    },
    /// A prefix is none, or has bits of a host.
    #[error("`{text}` in the file `{file}`")]
    Prefix {
        /// The file.
        file: String,
        /// What is there.
        text: String,
        /// Why it is no prefix.
        source: PrefixError,
    },
    /// More prefixes than the agent takes.
    #[error("{n} prefixes; at most {MOST_PREFIXES} are taken")]
    TooMany {
        /// How many.
        n: usize,
    },
}

// Unknown fields are ignored, as Go's decoder does it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    #[serde(rename = "nonMasqueradeCIDRs")]
    non_masquerade: Vec<String>,
    #[serde(rename = "masqLinkLocal")]
    link_local: bool,
}

/// What the files of a map say together.
pub fn parse(files: &BTreeMap<String, String>) -> Result<Settings, MasqueradeError> {
    let mut all = Settings::default();
    let mut n = 0;
    for (file, text) in files.iter().filter(|(name, _)| name.starts_with(FILE_PREFIX)) {
        // A file that says nothing is no mistake.
        let wire: Option<Wire> = serde_saphyr::from_str(text).map_err(|source| {
            MasqueradeError::Syntax { file: file.clone(), source: Box::new(source) }
        })?;
        let wire = wire.unwrap_or_default();
        n += wire.non_masquerade.len();
        for text in wire.non_masquerade {
            let prefix: Prefix = text.parse().map_err(|source| MasqueradeError::Prefix {
                file: file.clone(),
                text: text.clone(),
                source,
            })?;
            all.non_masquerade.push(prefix);
        }
        all.masquerade_link_local |= wire.link_local;
    }
    if n > MOST_PREFIXES {
        return Err(MasqueradeError::TooMany { n });
    }
    Ok(all)
}

/// The file that AKS writes for these settings.
#[must_use]
pub fn render(settings: &Settings) -> String {
    let list = match settings.non_masquerade.as_slice() {
        [] => vec!["nonMasqueradeCIDRs: []".to_owned()],
        prefixes => {
            let items = prefixes.iter().map(|prefix| format!("  - {prefix}"));
            ["nonMasqueradeCIDRs:".to_owned()].into_iter().chain(items).collect()
        }
    };
    format!("{}\nmasqLinkLocal: {}\n", list.join("\n"), settings.masquerade_link_local)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

    use std::error::Error;

    use super::*;

    /// Files in, settings or the chain of errors out.
    fn check(files: &[(&str, &str)], expected: &str) {
        let files = files.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let said = match parse(&files) {
            Ok(settings) => {
                let list: Vec<_> =
                    settings.non_masquerade.iter().map(ToString::to_string).collect();
                format!("[{}] {}", list.join(" "), settings.masquerade_link_local)
            }
            Err(error) => error.source().map_or(error.to_string(), |why| format!("{error}: {why}")),
        };
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn files_are_appended_and_switches_joined() {
        check(&[], "[] false");
        check(&[("ip-masq-agent", "")], "[] false");
        check(&[("ip-masq-agent", "masqLinkLocal: true\nresyncInterval: 60s")], "[] true");
        check(
            &[
                (
                    "ip-masq-agent",
                    "nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']\nmasqLinkLocal: true",
                ),
                ("ip-masq-agent-more", r#"{"nonMasqueradeCIDRs": ["192.168.0.0/16"]}"#),
                ("readme", "what: ever: it: says"),
            ],
            "[10.0.0.0/8 fd00::/8 192.168.0.0/16] true",
        );
    }

    #[test]
    fn mistakes_are_named() {
        check(&[("ip-masq-agent", "nonMasqueradeCIDRs: 7")], "the file `ip-masq-agent` is not");
        check(&[("ip-masq-agent", "nonMasqueradeCIDRs: [10.0.0.1/8]")], "`10.0.0.1/8` in the file");
        check(&[("ip-masq-agent", "nonMasqueradeCIDRs: ['fd00::/129']")], "`fd00::/129` in the");
        let many: Vec<_> = (0..65).map(|n| format!("10.{n}.0.0/16")).collect();
        let many = format!("nonMasqueradeCIDRs: [{}]", many.join(", "));
        check(&[("ip-masq-agent", &many)], "65 prefixes; at most 64");
    }

    #[test]
    fn what_is_written_is_read() {
        let settings = Settings {
            non_masquerade: vec!["10.244.0.0/16".parse().unwrap()],
            masquerade_link_local: true,
        };
        let text = render(&settings);
        assert_eq!(text, "nonMasqueradeCIDRs:\n  - 10.244.0.0/16\nmasqLinkLocal: true\n");
        assert_eq!(parse(&BTreeMap::from([(RECONCILED_FILE.to_owned(), text)])).unwrap(), settings);
        let none = BTreeMap::from([(RECONCILED_FILE.to_owned(), render(&Settings::default()))]);
        assert_eq!(parse(&none).unwrap(), Settings::default());
    }
}

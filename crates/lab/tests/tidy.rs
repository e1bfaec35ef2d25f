//! Rules of the house that no compiler checks.
#![expect(missing_docs, reason = "a test has no readers of its documentation")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Crate, and every crate that it may name under `[dependencies]`. The table of `ARCHITECTURE.md`, and the
/// libraries that each crate's power needs.
const ALLOWED: &[(&str, &[&str])] = &[
    ("aksnet-vnet", &["ipnet", "prefix-trie", "serde", "sha1_smol", "thiserror", "uuid"]),
    (
        "aksnet-store",
        &["aksnet-vnet", "redb", "serde", "serde_json", "thiserror", "tokio", "tracing"],
    ),
    (
        "aksnet-linux",
        &[
            "aksnet-vnet",
            "libc",
            "netlink-packet-core",
            "netlink-packet-route",
            "netlink-sys",
            "nix",
            "serde",
            "serde_json",
            "sha2",
            "thiserror",
            "tracing",
        ],
    ),
    (
        "aksnet-cluster",
        &[
            "aksnet-vnet",
            "base64",
            "flate2",
            "futures",
            "jiff",
            "k8s-openapi",
            "kube",
            "rcgen",
            "serde",
            "serde-saphyr",
            "serde_json",
            "sha2",
            "tar",
            "thiserror",
            "time",
            "tokio",
            "tracing",
            "ureq",
        ],
    ),
    ("aksnet-cni", &["aksnet-vnet", "serde", "serde_json", "thiserror"]),
    (
        "aksnet-azure",
        &[
            "aksnet-store",
            "aksnet-vnet",
            "axum",
            "base64",
            "http",
            "http-body-util",
            "hyper",
            "hyper-util",
            "jiff",
            "rcgen",
            "rustls",
            "rustls-pemfile",
            "serde",
            "serde_json",
            "serde_path_to_error",
            "thiserror",
            "tokio",
            "tokio-rustls",
            "tower",
            "tracing",
            "uuid",
            "futures",
            "percent-encoding",
            "time",
        ],
    ),
    (
        "aksnet-daemon",
        &[
            "aksnet-cluster",
            "aksnet-cni",
            "aksnet-linux",
            "aksnet-store",
            "aksnet-vnet",
            "futures",
            "k8s-openapi",
            "kube",
            "serde",
            "serde_json",
            "sha2",
            "thiserror",
            "tokio",
            "tracing",
            "uuid",
        ],
    ),
    (
        "aksnet-cli",
        &[
            "aksnet-azure",
            "aksnet-cluster",
            "aksnet-cni",
            "aksnet-daemon",
            "aksnet-linux",
            "aksnet-store",
            "aksnet-vnet",
            "anyhow",
            "clap",
            "clap_complete",
            "comfy-table",
            "indicatif",
            "jiff",
            "serde",
            "serde-saphyr",
            "serde_json",
            "tokio",
            "tower",
            "tracing",
            "tracing-subscriber",
            "ureq",
        ],
    ),
    ("aksnet-lab", &[]),
];

/// Files that may be longer than [`LONGEST`], with the reason.
const LONG: &[(&str, &str)] = &[];
const LONGEST: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned()
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

#[test]
fn every_arrow_is_allowed() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some((_, allowed)) = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = dependency["name"].as_str().expect("name");
            if dependency["kind"].is_null() && !allowed.contains(&to) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that ARCHITECTURE.md does not have:\n{}", wrong.join("\n"));
}

#[test]
fn the_map_names_every_crate_and_no_other() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let named: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("- **`")?.split('`').next()).collect();
    let mut crates: Vec<String> = fs::read_dir(root().join("crates"))
        .expect("crates/")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    crates.sort();
    let mut sorted: Vec<&str> = named.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, crates);
}

#[test]
fn files_tell_one_story() {
    let mut found = Vec::new();
    files(&root().join("crates"), "rs", &mut found);
    let mut wrong = Vec::new();
    for path in found {
        let lines = fs::read_to_string(&path).expect("a source file").lines().count();
        let name = path.strip_prefix(root()).expect("inside").display().to_string();
        if lines > LONGEST && !LONG.iter().any(|(allowed, _)| *allowed == name) {
            wrong.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(
        wrong.is_empty(),
        "divide by thing, or add a line with a reason:\n{}",
        wrong.join("\n")
    );
}

/// A file under `tests/` that no target and no `mod` reaches is never compiled, and passes for ever.
#[test]
fn every_test_file_is_compiled() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("crates/") {
        let tests = entry.expect("an entry").path().join("tests");
        if !tests.is_dir() {
            continue;
        }
        let mut found = Vec::new();
        files(&tests, "rs", &mut found);
        let texts: BTreeMap<&PathBuf, String> =
            found.iter().map(|path| (path, fs::read_to_string(path).expect("a test"))).collect();
        for path in &found {
            if path.parent() == Some(&tests) {
                continue;
            }
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let module = if stem == "mod" || stem == "main" {
                path.parent()
                    .and_then(Path::file_name)
                    .expect("a folder")
                    .to_string_lossy()
                    .into_owned()
            } else {
                stem.clone()
            };
            let declared = texts.values().any(|text| text.contains(&format!("mod {module};")));
            if stem != "main" && !declared {
                wrong.push(path.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "no `mod` names these tests:\n{}", wrong.join("\n"));
}

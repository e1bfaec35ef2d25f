//! Rules of the house that no compiler checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A crate, and what it names under `[dependencies]`: of ours at most these (the table of
/// `ARCHITECTURE.md`), and of libraries exactly these.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("vnet", "", "imbl ipnet serde thiserror uuid"),
    ("store", "vnet", "redb serde serde_json thiserror tokio tracing uuid"),
    (
        "linux",
        "vnet",
        "libbpf-rs netlink-packet-core netlink-packet-route netlink-sys nix serde serde_json thiserror",
    ),
    (
        "cluster",
        "vnet",
        "base64 http k8s-openapi kube rcgen serde serde-saphyr serde_json sha2 thiserror tracing ureq",
    ),
    ("cni", "vnet", "serde serde_json thiserror"),
    (
        "azure",
        "store vnet",
        "axum base64 http hyper hyper-util jiff rcgen rustls serde serde_json thiserror tokio tokio-rustls \
         tracing uuid",
    ),
    (
        "daemon",
        "store linux cluster cni vnet",
        "axum futures k8s-openapi kube rustls serde serde_json sha2 simple-dns thiserror tokio tower tracing uuid",
    ),
    (
        "cli",
        "azure daemon store linux cluster cni vnet",
        "anyhow clap clap_complete comfy-table indicatif serde serde-saphyr serde_json tokio tower tracing \
         tracing-subscriber ureq",
    ),
    (
        "lab",
        "cli azure daemon store linux cluster cni vnet",
        "anyhow clap serde_json tempfile tokio tracing-subscriber ureq",
    ),
];

/// Files that may be longer than [`LONGEST`], with the reason.
const LONG: &[(&str, &str)] = &[];
const LONGEST: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned()
}

/// What is said of the workspace's own crates, or, with more arguments, of others too.
fn metadata(more: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version=1"])
        .args(more)
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
fn every_arrow_is_allowed_and_every_library_used() {
    let metadata = metadata(&["--no-deps"]);
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name").trim_start_matches("aksnet-");
        let Some((_, ours, libraries)) =
            ALLOWED.iter().find(|(crate_name, ..)| *crate_name == name)
        else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        let mut unused: BTreeSet<&str> = libraries.split_whitespace().collect();
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["kind"].is_null() {
                continue;
            }
            let to = dependency["name"].as_str().expect("name");
            let known = match to.strip_prefix("aksnet-") {
                Some(to) => ours.split_whitespace().any(|allowed| allowed == to),
                None => unused.remove(to),
            };
            if !known {
                wrong.push(format!("{name} -> {to} is not in the table"));
            }
        }
        wrong.extend(unused.iter().map(|to| format!("{name} -> {to} is only in the table")));
    }
    assert!(wrong.is_empty(), "the table and the manifests differ:\n{}", wrong.join("\n"));
}

/// Licences under which others' code may be linked into a program that is given away under the Apache License 2.0.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    // Of its files alone, which are used as they are.
    "MPL-2.0+",
    "Unicode-3.0",
    "Zlib",
];

/// Whether an expression such as `(MIT OR Apache-2.0) AND Unicode-3.0` can be satisfied; `/` is the old way to say `OR`.
fn is_allowed(expression: &str) -> bool {
    expression.split(" AND ").all(|part| {
        let one_of = part.trim_matches(['(', ')']).replace('/', " OR ");
        one_of.split(" OR ").any(|licence| LICENCES.contains(&licence))
    })
}

#[test]
fn every_library_may_be_given_away() {
    let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let metadata = metadata(&platform);
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "{} libraries", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .map(|package| (&package["name"], package["license"].as_str().unwrap_or_default()))
        .filter(|(_, licence)| !is_allowed(licence))
        .map(|(name, licence)| format!("{name} {licence}"))
        .collect();
    assert!(refused.is_empty(), "{}", refused.join(", "));
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("LGPL-2.1-only OR BSD-2-Clause", true),
        ("MIT/GPL-2.0", true),
        ("(MIT OR Apache-2.0) AND GPL-2.0", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), expected, "{expression}");
    }
}

#[test]
fn every_version_in_the_root_manifest_is_used() {
    let root = root();
    let read = |path: PathBuf| fs::read_to_string(path).expect("a manifest");
    let manifests: String = fs::read_dir(root.join("crates"))
        .expect("crates/")
        .map(|entry| read(entry.expect("an entry").path().join("Cargo.toml")))
        .collect();
    let unused: Vec<String> = read(root.join("Cargo.toml"))
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .filter(|name| !manifests.contains(&format!("\n{name}.workspace = ")))
        .collect();
    assert!(unused.is_empty(), "no crate names these: {}", unused.join(", "));
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
        let contents: BTreeMap<&PathBuf, String> =
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
            let declared = contents.values().any(|text| text.contains(&format!("mod {module};")));
            if stem != "main" && !declared {
                wrong.push(path.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "no `mod` names these tests:\n{}", wrong.join("\n"));
}

/// A filter that names no test gives its tests no group, and says nothing.
#[test]
fn every_filter_of_nextest_names_a_test_binary() {
    let root = root();
    let settings =
        fs::read_to_string(root.join(".config/nextest.toml")).expect("nextest's settings");
    let names: Vec<&str> = settings
        .split("binary_id(")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
        .collect();
    assert!(!names.is_empty(), "no filter is found: is it still written with binary_id(…)?");
    for name in names {
        let (package, target) = name.split_once("::").expect("aksnet-CRATE::TEST");
        let tests = root.join("crates").join(package.trim_start_matches("aksnet-")).join("tests");
        let exists = tests.join(format!("{target}.rs")).exists()
            || tests.join(target).join("main.rs").exists();
        assert!(exists, "there is no test binary {name}");
    }
}

//! nftables by way of the `nft` program: one table as text, replaced whole in one transaction. Not here:
//! what the rules say (see `vnet::host`).
//!
//! An empty chain named after the text's digest tells what is loaded: `nft` merges and renames what it
//! lists, so listings cannot be compared with texts.

use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
};

use vnet::host::{TABLE, digest};

use crate::{LinuxError, netfilter::elements::Nfnetlink, netns::Netns};

/// How the name of the chain that tells what is loaded begins.
pub(crate) const LOADED: &str = "loaded-";

/// Puts the table of `text` in place of the one that is there. When it is refused, the old one stands.
pub fn load(namespace: &Netns, text: &str) -> Result<(), LinuxError> {
    load_table(namespace, TABLE, text)
}

/// The same for a table of another name, which `text` must have.
pub fn load_table(namespace: &Netns, table: &str, text: &str) -> Result<(), LinuxError> {
    run_with(namespace, &["-f", "-"], &transaction(table, text)).map(drop)
}

/// Has `text` checked as [`load`] would load it, and changes nothing.
pub fn check(namespace: &Netns, text: &str) -> Result<(), LinuxError> {
    run_with(namespace, &["-c", "-f", "-"], &transaction(TABLE, text)).map(drop)
}

/// Removes the table. Success when there is none.
pub fn unload(namespace: &Netns) -> Result<(), LinuxError> {
    unload_table(namespace, TABLE)
}

/// The same for a table of another name.
pub fn unload_table(namespace: &Netns, table: &str) -> Result<(), LinuxError> {
    run_with(namespace, &["-f", "-"], &removal(table)).map(drop)
}

/// The digest of the text that was loaded last, if its table is still there.
pub fn loaded(namespace: &Netns) -> Result<Option<String>, LinuxError> {
    loaded_table(namespace, TABLE)
}

/// The same for a table of another name.
pub fn loaded_table(namespace: &Netns, table: &str) -> Result<Option<String>, LinuxError> {
    let listing = run_with(namespace, &["list", "chains", "ip"], "")?;
    let mut is_inside = false;
    Ok(listing.lines().find_map(|line| {
        if let Some(name) = line.strip_prefix("table ip ") {
            is_inside = name.trim_end_matches(['{', ' ']) == table;
        }
        let name = line.trim().strip_prefix("chain ")?.strip_prefix(LOADED)?;
        is_inside.then(|| name.trim_end_matches(['{', ' ']).to_owned())
    }))
}

/// The number of the namespace's rule set: another after every change that anybody makes.
pub fn generation(namespace: &Netns) -> Result<u32, LinuxError> {
    namespace.run(|| Nfnetlink::open()?.generation())?
}

/// A digest of what the tables of this name hold now, in no order and without counts: another after a change of
/// anything in them.
pub fn content(namespace: &Netns, table: &str) -> Result<String, LinuxError> {
    let listing = run_with(namespace, &["-s", "list", "ruleset"], "")?;
    let mut is_inside = false;
    let mut words: Vec<&str> = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix("table ") {
            is_inside = name.split(' ').nth(1) == Some(table);
        }
        if is_inside {
            words.extend(line.split([' ', '\t', ',']).filter(|word| !word.is_empty()));
        }
    }
    // Elements of sets are listed as they lie in the kernel's memory.
    words.sort_unstable();
    Ok(digest(&words.join(" ")))
}

/// Every table of the namespace as `nft` writes it, each rule with its number (`# handle N`) and without counters;
/// what is in sets is left out.
pub fn listing(namespace: &Netns) -> Result<String, LinuxError> {
    run_with(namespace, &["-a", "-s", "-t", "list", "ruleset"], "")
}

fn transaction(table: &str, text: &str) -> String {
    format!(
        "{}{text}\ntable ip {table} {{\n\tchain {LOADED}{} {{\n\t}}\n}}\n",
        removal(table),
        digest(text)
    )
}

/// Removes the tables of this name, whether there are any or not: a namespace with IPv6 has one for each family.
fn removal(table: &str) -> String {
    let one = |ip: &str| format!("table {ip} {table}\ndelete table {ip} {table}\n");
    one("ip") + &one("ip6")
}

/// Runs `nft` inside the namespace: it is started by a thread that is there.
fn run_with(namespace: &Netns, arguments: &[&str], input: &str) -> Result<String, LinuxError> {
    let output = namespace
        .run(|| start(arguments, input))?
        .map_err(|source| LinuxError::NftMissing { source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(LinuxError::Nft {
        namespace: namespace.name().to_owned(),
        text: text.lines().take(3).collect::<Vec<_>>().join(" / "),
    })
}

fn start(arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // `nft` reads all of its input before it writes; if it ended early, its status says so.
        match stdin.write_all(input.as_bytes()) {
            Err(err) if err.kind() != io::ErrorKind::BrokenPipe => return Err(err),
            _ => {}
        }
    }
    child.wait_with_output()
}

//! `aksnet flow-logs`: what the flow logs say, a line a flow. Not here: writing them (see `daemon::fabric`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{lab::Lab, output::data};

/// Prints what is there, and with `follow` what comes.
pub(crate) fn show(lab: &Lab, follow: bool) -> anyhow::Result<()> {
    let folder = lab.flow_log_dir();
    if !folder.exists() {
        bail!("lab `{}` has no flow logs; `aksnet up --flow-logs` writes them", lab.name());
    }
    // How many records of each file have been shown.
    let mut shown: BTreeMap<PathBuf, usize> = BTreeMap::new();
    loop {
        let mut lines = Vec::new();
        for path in files(&folder)? {
            let n = shown.entry(path.clone()).or_default();
            let Some(records) = records(&path, follow)? else { continue };
            for record in records.iter().skip(*n) {
                lines.extend(lines_of(record));
            }
            *n = records.len();
        }
        lines.sort();
        for line in &lines {
            data(line);
        }
        if !follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Every file below a folder, in order.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The records of a file; `None` when it is just being written and `may_wait`.
fn records(path: &Path, may_wait: bool) -> anyhow::Result<Option<Vec<Value>>> {
    let reading = || format!("reading {}", path.display());
    let text = fs::read_to_string(path).with_context(reading)?;
    match serde_json::from_str::<Value>(&text) {
        Ok(mut value) => match value["records"].take() {
            Value::Array(records) => Ok(Some(records)),
            _ => Ok(Some(Vec::new())),
        },
        Err(_) if may_wait => Ok(None),
        Err(error) => Err(error).with_context(reading),
    }
}

/// `TIME NIC RULE TUPLE`, once for each tuple of a record. The time is first, so that lines sort by it.
fn lines_of(record: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mac = text(&record["macAddress"]);
    let mut lines = Vec::new();
    for flow in list(&record["flowRecords"]["flows"]) {
        for group in list(&flow["flowGroups"]) {
            let rule = text(&group["rule"]);
            for tuple in list(&group["flowTuples"]) {
                let tuple = text(&tuple);
                if let Some((time, rest)) = tuple.split_once(',') {
                    lines.push(format!("{time} {mac} {rule} {rest}"));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::lines_of;

    #[test]
    fn a_record_is_a_line_a_tuple() {
        let record = json!({ "macAddress": "000D3A010203", "flowRecords": { "flows": [
            { "aclID": "x", "flowGroups": [{ "rule": "web", "flowTuples": ["1,a,b", "2,c,d"] }] },
            { "aclID": "y", "flowGroups": [{ "rule": "ssh", "flowTuples": ["3,e,f"] }] } ] } });
        assert_eq!(
            lines_of(&record),
            ["1 000D3A010203 web a,b", "2 000D3A010203 web c,d", "3 000D3A010203 ssh e,f"]
        );
        assert!(lines_of(&json!({ "flowRecords": 1 })).is_empty());
    }
}

//! `aksnet service-tags`: the list of service tags, which Azure's own file can replace.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Deserialize;
use vnet::{addr::Prefix, policy::tags::ServiceTags};

use crate::{
    control::{Answer, Ask, AskTags, ask},
    lab::Lab,
    output::{self, Format, say},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Tags {
    /// Show the tags, or the prefixes of one
    Show {
        /// The tag, `AzureCloud.eastus`
        tag: Option<String>,
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
    /// Replace the list by that of a file
    #[command(
        after_help = "FILE has the form of Azure's download \"Azure IP Ranges and Service Tags\" \
            (ServiceTags_Public_DATE.json). Tags for the lab's own addresses (198.18.0.0/15) are then those that it says, too."
    )]
    Set {
        /// Azure's JSON
        file: PathBuf,
    },
    /// Bring the built-in list back
    Reset,
}

/// Azure's file, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AzureFile {
    change_number: u64,
    values: Vec<AzureTag>,
}

#[derive(Debug, Deserialize)]
struct AzureTag {
    name: String,
    properties: AzureProperties,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AzureProperties {
    address_prefixes: Vec<String>,
}

pub(crate) fn run(lab: &Lab, wanted: &Tags) -> anyhow::Result<()> {
    match wanted {
        Tags::Show { tag, output } => {
            show(&asked(lab, AskTags::Show)?, tag.as_deref(), *output)?;
        }
        Tags::Set { file } => {
            let doing = || format!("reading service tags from {}", file.display());
            let text = fs::read_to_string(file).with_context(doing)?;
            let tags = read(&text).with_context(doing)?;
            let now = asked(lab, AskTags::Set(tags))?;
            say(&format!("{} service tags, change number {}", now.tags.len(), now.change_number));
        }
        Tags::Reset => {
            let now = asked(lab, AskTags::Reset)?;
            say(&format!("{} service tags, built in", now.tags.len()));
        }
    }
    Ok(())
}

fn asked(lab: &Lab, question: AskTags) -> anyhow::Result<ServiceTags> {
    match ask(lab, &Ask::ServiceTags(question))? {
        Answer::ServiceTags(tags) => Ok(tags),
        Answer::Failed { message } => bail!(message),
        _ => bail!("the lab answered another question; is it of another version?"),
    }
}

/// The list of Azure's file.
fn read(text: &str) -> anyhow::Result<ServiceTags> {
    let file: AzureFile = serde_json::from_str(text).context("not Azure's list of tags")?;
    let mut tags: BTreeMap<String, Vec<Prefix>> = BTreeMap::new();
    for AzureTag { name, properties } in file.values {
        let prefixes = properties.address_prefixes.iter();
        let prefixes: Result<Vec<Prefix>, _> = prefixes.map(|text| text.parse()).collect();
        let prefixes = prefixes.with_context(|| format!("a prefix of tag {name}"))?;
        if tags.insert(name.clone(), prefixes).is_some() {
            bail!("tag {name} is there twice");
        }
    }
    Ok(ServiceTags { change_number: file.change_number, tags })
}

fn show(tags: &ServiceTags, tag: Option<&str>, format: Format) -> anyhow::Result<()> {
    let Some(wanted) = tag else {
        return output::show(tags, format, |tags| {
            let row = |(tag, prefixes): (&String, &Vec<Prefix>)| {
                let first = prefixes.first().map(ToString::to_string).unwrap_or_default();
                let more = if prefixes.len() > 1 { ", …" } else { "" };
                vec![tag.clone(), prefixes.len().to_string(), format!("{first}{more}")]
            };
            let rows: Vec<Vec<String>> = tags.tags.iter().map(row).collect();
            output::table(&["TAG", "PREFIXES", "ADDRESSES"], &rows)
        });
    };
    let found = tags.tags.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let Some((_, prefixes)) = found else {
        bail!("no service tag `{wanted}`; `aksnet service-tags show` lists them all");
    };
    output::show(prefixes, format, |prefixes| {
        prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    })
}

#[cfg(test)]
mod tests {
    use super::read;

    const FILE: &str = r#"{ "changeNumber": 340, "cloud": "Public", "values": [
        { "name": "Storage.EastUS", "id": "Storage.EastUS", "properties": { "changeNumber": 1, "region": "eastus",
          "regionId": 32, "platform": "Azure", "systemService": "AzureStorage", "networkFeatures": ["API", "NSG"],
          "addressPrefixes": ["20.38.98.0/24", "2603:1030::/40", "20.60.0.0/24"] } } ] }"#;

    #[test]
    fn azures_file_is_understood() {
        let tags = read(FILE).expect("it is Azure's form");
        assert_eq!(tags.change_number, 340);
        let shown: Vec<String> =
            tags.tags["Storage.EastUS"].iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["20.38.98.0/24", "2603:1030::/40", "20.60.0.0/24"]);
        for wrong in [
            "{}".to_owned(),
            FILE.replace("20.60.0.0/24", "20.60.0.1/24"),
            FILE.replace("} } ]", "} }, { \"name\": \"Storage.EastUS\", \"properties\": { \"addressPrefixes\": [] } } ]"),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}

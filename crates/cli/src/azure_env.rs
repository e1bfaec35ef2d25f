//! What points Azure's tools and kubectl at the lab, without touching the user's own configuration.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use crate::{
    lab::{Config, Lab},
    output::{Progress, say},
};

/// The version of azure-cli that the lab is tested with, and that the set-up installs.
const AZ_VERSION: &str = "2.91.0";

/// The environment variables, in order.
pub(crate) fn variables(lab: &Lab, config: &Config) -> BTreeMap<&'static str, String> {
    let endpoint = endpoint(config);
    let ca = lab.ca_path().display().to_string();
    let state = lab.state_dir();
    let mut variables = BTreeMap::from([
        ("ARM_ENDPOINT", endpoint),
        ("ARM_CA", ca.clone()),
        // az and the Python SDKs; replaces their own list of authorities.
        ("REQUESTS_CA_BUNDLE", ca.clone()),
        ("NODE_EXTRA_CA_CERTS", ca),
        ("AZURE_CONFIG_DIR", azure_dir(lab).display().to_string()),
        ("AZURE_CORE_COLLECT_TELEMETRY", "no".to_owned()),
        ("AZURE_CORE_SURVEY_MESSAGE", "no".to_owned()),
        ("KUBECONFIG", state.join("kubeconfig").display().to_string()),
        ("no_proxy", "localhost,127.0.0.1,::1".to_owned()),
    ]);
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = [az().and_then(|az| az.parent().map(Path::to_owned)), kubectl_dir(config)];
    let mut folders: Vec<String> =
        programs.into_iter().flatten().map(|folder| folder.display().to_string()).collect();
    folders.retain(|folder| !path.split(':').any(|there| there == folder));
    folders.push(path);
    variables.insert("PATH", folders.join(":"));
    variables
}

/// The base URL of Azure Resource Manager.
pub(crate) fn endpoint(config: &Config) -> String {
    if config.listen.ip().is_loopback() || config.listen.ip().is_unspecified() {
        format!("https://localhost:{}", config.listen.port())
    } else {
        format!("https://{}", config.listen)
    }
}

fn azure_dir(lab: &Lab) -> PathBuf {
    lab.state_dir().join("azure")
}

/// `az`: the one that the set-up installed, else the first on `PATH`.
pub(crate) fn az() -> Option<PathBuf> {
    let ours = Lab::cache_dir().join("az").join(AZ_VERSION).join("bin/az");
    if ours.exists() { Some(ours) } else { on_path("az") }
}

fn kubectl_dir(config: &Config) -> Option<PathBuf> {
    let folder = cluster::install::dir(&Lab::cache_dir(), &config.kubernetes);
    folder.join("kubectl").exists().then_some(folder)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())
}

/// Registers the lab as a cloud in its own az configuration and logs in there, unless that is done.
pub(crate) fn prepare_az(lab: &Lab, config: &Config) -> anyhow::Result<()> {
    let Some(az) = az() else {
        say(
            "note: there is no `az` here; `make lab` installs one, `pip install azure-cli` does too",
        );
        return Ok(());
    };
    let dir = azure_dir(lab);
    let marker = dir.join("aksnet-endpoint");
    let ca = fs::read_to_string(lab.ca_path())
        .with_context(|| format!("reading {}: has `aksnet up` run?", lab.ca_path().display()))?;
    let done = format!("{}\n{ca}", endpoint(config));
    if fs::read_to_string(&marker).is_ok_and(|text| text == done) {
        return Ok(());
    }
    let mut progress = Progress::new("preparing an az configuration for the lab");
    // az remembers tokens and discovery documents of an endpoint; a changed one needs a fresh start.
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", dir.display()));
        }
        _ => fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?,
    }
    let endpoint = endpoint(config);
    let steps: [&[&str]; 3] = [
        &["cloud", "register", "-n", "aksnet", "--endpoint-resource-manager", &endpoint],
        &["cloud", "set", "-n", "aksnet"],
        &["login", "--service-principal", "-u", "aksnet", "-p", "aksnet", "--tenant", "aksnet"],
    ];
    for step in steps {
        progress.tell(&format!("az {}", step[..2].join(" ")));
        let output = Command::new(&az)
            .args(step)
            .envs(variables(lab, config))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", az.display()))?;
        if !output.status.success() {
            bail!(
                "`az {}` failed: {}",
                step.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    fs::write(&marker, done).with_context(|| format!("writing {}", marker.display()))
}

/// `export NAME='value'` lines.
pub(crate) fn export_lines(variables: &BTreeMap<&'static str, String>) -> String {
    let line = |(name, value): (&&str, &String)| {
        format!("export {name}='{}'", value.replace('\'', r"'\''"))
    };
    variables.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_shell() {
        let variables = BTreeMap::from([("A", "it's; $HOME".to_owned())]);
        assert_eq!(export_lines(&variables), r"export A='it'\''s; $HOME'");
    }
}

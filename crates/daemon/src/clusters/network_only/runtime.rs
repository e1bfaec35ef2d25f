//! What a container runtime does for a pod's network: reads the node's network configuration and executes its
//! plugins (containernetworking/cni, `SPEC.md` 1.1.0, sections 2 and 3). Not here: which pods there are.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use linux::netns::Netns;
use serde_json::{Value, json};

/// The interface that a pod's network is behind.
const INTERFACE: &str = "eth0";
/// The specification's code for "try again later".
const TRY_AGAIN: u64 = 11;

/// A network configuration: the first list of a node's folder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    name: String,
    version: String,
    plugins: Vec<Value>,
}

/// A container as the plugins are told of it.
#[derive(Clone, Debug)]
pub(super) struct Container {
    /// Its id.
    pub(super) id: String,
    /// The path of its network namespace.
    pub(super) netns: PathBuf,
    /// The pod's name.
    pub(super) pod: String,
    /// Where plugins are looked for, in this order.
    pub(super) search: Vec<PathBuf>,
}

/// Why a container has no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RuntimeError {
    #[error("cannot {action} {}: {why}", path.display())]
    File { action: &'static str, path: PathBuf, why: String },
    #[error("{} is no network configuration: {why}", path.display())]
    Configuration { path: PathBuf, why: String },
    #[error("the CNI plugin `{plugin}` is in none of {folders}")]
    Missing { plugin: String, folders: String },
    #[error("the CNI plugin `{plugin}` refuses (code {code}): {text}")]
    Refused { plugin: String, code: u64, text: String },
}

impl RuntimeError {
    /// Whether the same may succeed in a moment.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Refused { code: TRY_AGAIN, .. })
    }
}

impl Network {
    /// The first `.conflist` of `folder` by name, as every runtime takes it. `None` when there is none.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, RuntimeError> {
        let failed = |action, path: &Path, error: &io::Error| RuntimeError::File {
            action,
            path: path.to_owned(),
            why: error.to_string(),
        };
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| failed("list", folder, &error))?,
        };
        let is_list = |path: &PathBuf| {
            let hidden =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            !hidden && path.extension().is_some_and(|extension| extension == "conflist")
        };
        let first = entries.flatten().map(|entry| entry.path()).filter(is_list).min();
        let Some(path) = first else { return Ok(None) };
        let bytes = fs::read(&path).map_err(|error| failed("read", &path, &error))?;
        Self::parse(&bytes)
            .map(Some)
            .map_err(|why| RuntimeError::Configuration { path: path.clone(), why })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let text =
            |key: &str| value[key].as_str().map(str::to_owned).ok_or(format!("it has no {key}"));
        let plugins = value["plugins"].as_array().ok_or("it has no plugins")?.clone();
        if plugins.iter().any(|plugin| !plugin["type"].is_string()) {
            return Err("a plugin has no type".to_owned());
        }
        Ok(Self { name: text("name")?, version: text("cniVersion")?, plugins })
    }

    /// Connects a container: each plugin gets the result of the one before it. The answer is the last one's.
    /// The node's namespace must be entered already.
    pub(super) fn add(&self, container: &Container) -> Result<Value, RuntimeError> {
        let mut result = None;
        for plugin in &self.plugins {
            result = self.execute("ADD", plugin, container, result.as_ref())?;
        }
        Ok(result.unwrap_or_default())
    }

    /// Disconnects a container, in the reverse order. `result` is what [`Self::add`] answered, if it did.
    pub(super) fn delete(
        &self,
        container: &Container,
        result: Option<&Value>,
    ) -> Result<(), RuntimeError> {
        let mut plugins = self.plugins.iter().rev();
        plugins.try_for_each(|plugin| self.execute("DEL", plugin, container, result).map(drop))
    }

    fn execute(
        &self,
        verb: &str,
        plugin: &Value,
        container: &Container,
        previous: Option<&Value>,
    ) -> Result<Option<Value>, RuntimeError> {
        let kind = plugin["type"].as_str().unwrap_or_default().to_owned();
        let folders = std::env::join_paths(&container.search).unwrap_or_default();
        let program =
            container.search.iter().map(|folder| folder.join(&kind)).find(|it| it.exists());
        let Some(program) = program else {
            let folders = folders.to_string_lossy().into_owned();
            return Err(RuntimeError::Missing { plugin: kind, folders });
        };
        let mut input = plugin.clone();
        input["cniVersion"] = json!(self.version);
        input["name"] = json!(self.name);
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        let mut command = Command::new(&program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", &container.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                    container.pod, container.id
                ),
            )
            .env("CNI_PATH", &folders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let failed = |error: &io::Error| RuntimeError::File {
            action: "run",
            path: program.clone(),
            why: error.to_string(),
        };
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that refuses early does not read to the end; its answer says why.
            let _ = stdin.write_all(input.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| failed(&error))?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok((!answer.is_null()).then_some(answer));
        }
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let said = [
            text("msg"),
            text("details"),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ];
        let said: Vec<String> = said.into_iter().filter(|text| !text.is_empty()).collect();
        Err(RuntimeError::Refused {
            plugin: kind,
            code: answer["code"].as_u64().unwrap_or_default(),
            text: said.join(": "),
        })
    }
}

/// Enters the node's namespace and does what needs it.
pub(super) fn on_node<T>(
    netns: &Path,
    work: impl FnOnce() -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    let entered = Netns::at(netns, &netns.to_string_lossy()).and_then(|netns| netns.enter());
    entered.map_err(|error| RuntimeError::File {
        action: "enter",
        path: netns.to_owned(),
        why: crate::reconcile::Chain(&error).to_string(),
    })?;
    work()
}

/// The address of a family that a result gives to the container.
pub(super) fn address_of<T: std::str::FromStr>(result: &Value) -> Option<T> {
    let mut addresses = result["ips"].as_array()?.iter();
    addresses.find_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    #[test]
    fn a_list_needs_a_name_a_version_and_types() {
        let check =
            |text: &str| Network::parse(text.as_bytes()).map(|network| network.plugins.len());
        assert_eq!(
            check(r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"b"}]}"#),
            Ok(2)
        );
        for bad in [
            "",
            "[]",
            r#"{"name":"n","plugins":[]}"#,
            r#"{"name":"n","cniVersion":"1.0.0"}"#,
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[{}]}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_hands_results_on_and_goes_back_in_reverse() {
        let folder = std::env::temp_dir().join(format!("aksnet-chain-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log");
        for name in ["first", "second"] {
            // Each adds its name to what it got and writes down when it was asked.
            let script = format!(
                "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND {name} $CNI_CONTAINERID\" >> {}\n\
                 case \"$input\" in *refuse*) echo '{{\"code\":11,\"msg\":\"later\"}}'; exit 1;; esac\n\
                 case \"$input\" in *prevResult*) seen=yes;; *) seen=no;; esac\n\
                 [ $CNI_COMMAND = ADD ] && echo \"{{\\\"by\\\":\\\"{name}\\\",\\\"previous\\\":\\\"$seen\\\",\\\"ips\\\":[{{\\\"address\\\":\\\"10.1.2.3/24\\\"}}]}}\"; exit 0\n",
                log.display()
            );
            fs::write(folder.join(name), script).unwrap();
            Command::new("chmod").arg("+x").arg(folder.join(name)).status().unwrap();
        }
        let container = Container {
            id: "c1".to_owned(),
            netns: "/nowhere".into(),
            pod: "p".to_owned(),
            search: vec!["/nonexistent".into(), folder.clone()],
        };
        let network = |plugins: &str| {
            Network::parse(
                format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{plugins}]}}"#).as_bytes(),
            )
            .unwrap()
        };
        let chain = network(r#"{"type":"first"},{"type":"second"}"#);
        let result = chain.add(&container).unwrap();
        assert_eq!((&result["by"], &result["previous"]), (&json!("second"), &json!("yes")));
        assert_eq!(address_of(&result), Some(std::net::Ipv4Addr::new(10, 1, 2, 3)));
        chain.delete(&container, Some(&result)).unwrap();
        let said = fs::read_to_string(&log).unwrap();
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said, ["ADD first c1", "ADD second c1", "DEL second c1", "DEL first c1"]);

        let refused = network(r#"{"type":"first","refuse":true}"#).add(&container).unwrap_err();
        assert!(refused.is_passing() && refused.to_string().contains("later"), "{refused}");
        let missing = network(r#"{"type":"third"}"#).add(&container).unwrap_err();
        assert!(!missing.is_passing() && missing.to_string().contains("third"), "{missing}");
        fs::remove_dir_all(folder).unwrap();
    }
}

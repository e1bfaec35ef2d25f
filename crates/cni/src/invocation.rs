//! What the runtime says in the environment. Not here: the network configuration on stdin.

use std::ffi::OsString;

use crate::{
    spec::{Code, Failure, Verb, shorten},
    talk::{Attachment, Pod},
};

/// Looks up an environment variable.
pub type Environment<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// Which container, which interface: the environment of ADD, CHECK and DEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The pair that identifies the attachment.
    pub attachment: Attachment,
    /// Path of the container's network namespace; DEL may come without.
    pub netns: Option<String>,
    /// The pod that the container is the sandbox of, when Kubernetes asks.
    pub pod: Option<Pod>,
}

/// The longest container id: files of the agent are named after it, and a name has 255 bytes.
const LONGEST_CONTAINER_ID: usize = 200;
/// The kernel's `IFNAMSIZ` less the final zero.
const LONGEST_INTERFACE_NAME: usize = 15;
/// The kernel's `PATH_MAX` less the final zero.
const LONGEST_PATH: usize = 4095;

/// Reads the verb from `CNI_COMMAND`.
pub fn parse_verb(environment: &Environment<'_>) -> Result<Verb, Failure> {
    let given = text(environment, "CNI_COMMAND")?.unwrap_or_default();
    Verb::ALL.into_iter().find(|verb| verb.as_str() == given).ok_or_else(|| {
        let known = Verb::ALL.map(Verb::as_str).join(", ");
        wrong(&[format!("CNI_COMMAND is `{}`, not one of {known}", shorten(&given))])
    })
}

/// Reads what ADD, CHECK or DEL needs, and says everything that is wrong with it at once.
pub fn parse_attachment(environment: &Environment<'_>, verb: Verb) -> Result<Invocation, Failure> {
    let mut findings = Vec::new();
    let mut read = |name: &str, check: fn(&str) -> Result<(), String>| {
        let found = text(environment, name).map_err(|failure| failure.details);
        let checked = found.and_then(|value| match value {
            Some(value) if !value.is_empty() => {
                check(&value).map_err(|why| format!("{name} is `{}`: {why}", shorten(&value)))?;
                Ok(Some(value))
            }
            Some(_) | None => Ok(None),
        });
        checked.unwrap_or_else(|finding| {
            findings.push(finding);
            // A value that is already complained about is not missing as well.
            Some(String::new())
        })
    };
    let container = read("CNI_CONTAINERID", check_container);
    let interface = read("CNI_IFNAME", check_interface);
    let netns = read("CNI_NETNS", check_netns);
    let arguments = read("CNI_ARGS", |_| Ok(())).unwrap_or_default();
    let pod = parse_pod(&arguments).unwrap_or_else(|finding| {
        findings.push(finding);
        None
    });
    if container.is_none() {
        findings.push("CNI_CONTAINERID is missing".to_owned());
    }
    if interface.is_none() {
        findings.push("CNI_IFNAME is missing".to_owned());
    }
    if netns.is_none() && verb != Verb::Del {
        findings.push("CNI_NETNS is missing".to_owned());
    }
    match (container, interface) {
        (Some(container), Some(interface)) if findings.is_empty() => {
            Ok(Invocation { attachment: Attachment { container, interface }, netns, pod })
        }
        _ => Err(wrong(&findings)),
    }
}

fn wrong(findings: &[String]) -> Failure {
    Failure::new(Code::Environment, "environment variables are missing or wrong")
        .details(findings.join("; "))
}

fn text(environment: &Environment<'_>, name: &str) -> Result<Option<String>, Failure> {
    environment(name)
        .map(OsString::into_string)
        .transpose()
        .map_err(|_| wrong(&[format!("{name} is not UTF-8")]))
}

fn check_container(id: &str) -> Result<(), String> {
    check_identifier(id)?;
    if id.len() > LONGEST_CONTAINER_ID {
        return Err(format!("longer than {LONGEST_CONTAINER_ID} bytes"));
    }
    Ok(())
}

/// The specification's rule for container ids and network names.
pub(crate) fn check_identifier(id: &str) -> Result<(), String> {
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("does not begin with a letter or digit".to_owned());
    }
    match id.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-')) {
        Some(other) => Err(format!("{other:?} is not a letter, digit, `_`, `.` or `-`")),
        None => Ok(()),
    }
}

fn check_interface(name: &str) -> Result<(), String> {
    if name.len() > LONGEST_INTERFACE_NAME {
        return Err(format!("longer than {LONGEST_INTERFACE_NAME} bytes"));
    }
    if name == "." || name == ".." {
        return Err("not a name".to_owned());
    }
    // Linux takes more (`dev_valid_name`), but a `%` makes it choose a name of its own, and the
    // others have no place in a terminal or a file's name.
    match name.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%')) {
        Some(other) => Err(format!("{other:?} cannot be in an interface's name")),
        None => Ok(()),
    }
}

fn check_netns(path: &str) -> Result<(), String> {
    if path.len() > LONGEST_PATH {
        return Err(format!("longer than {LONGEST_PATH} bytes"));
    }
    if !path.starts_with('/') {
        return Err("not an absolute path".to_owned());
    }
    if path.contains(|c: char| c.is_control()) {
        return Err("has control characters".to_owned());
    }
    Ok(())
}

/// Finds Kubernetes' words in `CNI_ARGS`; other keys are other plugins' business.
fn parse_pod(arguments: &str) -> Result<Option<Pod>, String> {
    let (mut namespace, mut name) = (None, None);
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("CNI_ARGS has `{}`, which is not KEY=VALUE", shorten(pair)));
        };
        let slot = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            _ => continue,
        };
        if check_identifier(value).is_err() || value.len() > 253 {
            return Err(format!("CNI_ARGS: {key} is `{}`, which is no name", shorten(value)));
        }
        *slot = Some(value.to_owned());
    }
    Ok(namespace.zip(name).map(|(namespace, name)| Pod { namespace, name }))
}

//! Gets Cilium: its programs, the sources of its data path and its images' scripts, of which the lab makes images; or
//! upstream's images as they are.
//!
//! Upstream's are taken where their registry can be reached: they bring Envoy, which is not written in Go and so not
//! in Cilium's module.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    InstallError, Progress, file, fill,
    folder::{copy, put},
    has_version, make_executable, parse_version, say_version,
};
use crate::images::Upstream;

mod build;
mod pull;

/// The version of Cilium that clusters get unless they ask for another.
pub const CILIUM_VERSION: &str = "1.20.2";
/// Cilium's programs, in the order in which they build fastest: the first one compiles what most share.
pub const CILIUM_PROGRAMS: [&str; 8] = [
    "cilium-agent",
    "cilium-operator-generic",
    "cilium-dbg",
    "hubble",
    "cilium-cni",
    "cilium-health-responder",
    "cilium-mount",
    "cilium-sysctlfix",
];
/// What else of Cilium's module is needed: where it is in the module, and its name in the folder.
const SOURCES: [(&str, &str); 6] = [
    ("bpf", "bpf"),
    ("pkg/k8s/apis/cilium.io/client/crds", "crds"),
    ("plugins/cilium-cni/install-plugin.sh", "install-plugin.sh"),
    ("plugins/cilium-cni/cni-uninstall.sh", "cni-uninstall.sh"),
    ("images/cilium/init-container.sh", "init-container.sh"),
    ("LICENSE", "LICENSE"),
];
/// The folder of upstream's image of the agent, an OCI layout, where it was pulled.
pub const AGENT_IMAGE: &str = "agent-image";
/// The same of the operator.
pub const OPERATOR_IMAGE: &str = "operator-image";

/// Where Cilium of a version is, or will be. It has either [`CILIUM_PROGRAMS`] with the folders `bpf` and `crds`
/// and the scripts of upstream's image, or [`AGENT_IMAGE`] and [`OPERATOR_IMAGE`].
#[must_use]
pub fn cilium_dir(cache: &Path, version: &str) -> PathBuf {
    cache.join("cilium").join(format!("v{}", version.trim_start_matches('v')))
}

/// Gets Cilium of a version. `from` is a folder that has all of it, such as another machine's [`cilium_dir`].
/// The answer is its folder.
pub fn cilium(
    cache: &Path,
    version: &str,
    from: Option<&Path>,
    progress: Progress<'_>,
) -> Result<PathBuf, InstallError> {
    cilium_by(&Upstream::new(), cache, version, from, progress)
}

/// The same with registries that are given.
fn cilium_by(
    upstream: &Upstream,
    cache: &Path,
    version: &str,
    from: Option<&Path>,
    progress: Progress<'_>,
) -> Result<PathBuf, InstallError> {
    let version = parse_version(version)?;
    let folder = cilium_dir(cache, &version);
    fill(&folder, |partial| {
        if let Some(from) = from {
            return take(from, &version, partial, progress);
        }
        // Part of it was built: upstream could not be reached.
        if !partial.join(CILIUM_PROGRAMS[0]).exists() {
            match pull::images(upstream, &version, partial, progress) {
                Err(InstallError::Unreachable { .. }) => {}
                other => return other,
            }
        }
        // A call that was interrupted may have pulled some; what is built is not mixed with it.
        for name in [AGENT_IMAGE, OPERATOR_IMAGE] {
            for left in [partial.join(name), partial.join(format!(".{name}.new"))] {
                if left.exists() {
                    fs::remove_dir_all(&left).map_err(file("remove", &left))?;
                }
            }
        }
        build::all(cache, &folder, &version, partial, progress)
    })?;
    Ok(folder)
}

/// A version of Cilium in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstalledCilium {
    /// Without a `v`.
    pub version: String,
    /// Whether it was pulled or built.
    #[serde(rename = "from")]
    pub source: &'static str,
    /// What its files take.
    pub bytes: u64,
    /// See [`cilium_dir`].
    pub folder: PathBuf,
}

/// The versions of Cilium in the cache, the oldest first.
pub fn list_cilium(cache: &Path) -> Result<Vec<InstalledCilium>, InstallError> {
    let folder = cache.join("cilium");
    let entries = match fs::read_dir(&folder) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file("read", &folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry.map_err(file("read", &folder))?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What is being made has another name.
        let Some(version) = name.strip_prefix('v').and_then(|it| parse_version(it).ok()) else {
            continue;
        };
        let is_pulled = folder.join(AGENT_IMAGE).exists();
        let source = if is_pulled { "upstream's images" } else { "programs, built with Go" };
        let bytes = size_of(&folder).map_err(file("read", &folder))?;
        found.push(InstalledCilium { version, source, bytes, folder });
    }
    let numbers = |it: &InstalledCilium| -> Vec<u16> {
        it.version.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    found.sort_by_key(numbers);
    Ok(found)
}

/// The bytes of all files in a folder.
fn size_of(folder: &Path) -> io::Result<u64> {
    let sizes = fs::read_dir(folder)?.map(|entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() { size_of(&entry.path()) } else { Ok(metadata.len()) }
    });
    sizes.sum()
}

/// Why policies of layer 7 cannot be had with what is installed of a version, and what would do; `None` where they can.
///
/// Envoy enforces them. Upstream's image of the agent has it (`images/cilium/Dockerfile` of cilium/cilium).
#[must_use]
pub fn why_no_envoy(cache: &Path, version: &str) -> Option<String> {
    let folder = cilium_dir(cache, version);
    if folder.join(AGENT_IMAGE).is_dir() {
        return None;
    }
    let upstream = "`aksnet cilium install` pulls upstream's images, which have it, where quay.io can be reached";
    if !folder.is_dir() {
        return Some(format!("Cilium {version} is not installed; {upstream}"));
    }
    let folder = folder.display();
    Some(format!(
        "Cilium {version} was built with Go, without it; when `{folder}` is removed, {upstream}"
    ))
}

/// Copies everything from a folder that was given.
fn take(
    from: &Path,
    version: &str,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    let unfit = |name: &str, found: String| InstallError::Unfit {
        path: from.join(name),
        program: name.to_owned(),
        wanted: version.to_owned(),
        found,
    };
    if from.join(AGENT_IMAGE).is_dir() {
        for name in [AGENT_IMAGE, OPERATOR_IMAGE] {
            let found = pull::version_of(&from.join(name));
            if found.as_deref() != Some(version) {
                let found =
                    found.map_or("no image is in it".to_owned(), |it| format!("it is {it}"));
                return Err(unfit(name, found));
            }
        }
    } else {
        for name in CILIUM_PROGRAMS.into_iter().chain(SOURCES.map(|(_, name)| name)) {
            if !from.join(name).exists() {
                return Err(unfit(name, "it does not exist".to_owned()));
            }
        }
        // The others say no version.
        for name in ["cilium-agent", "cilium-operator-generic"] {
            let said = say_version(&from.join(name), name);
            let said = said.map_err(|err| unfit(name, err.to_string()))?;
            if !has_version(&said, version) {
                let said = said.lines().next().unwrap_or_default();
                return Err(unfit(name, format!("it says `{said}`")));
            }
        }
    }
    let everything = CILIUM_PROGRAMS.into_iter().chain(SOURCES.map(|(_, name)| name));
    for name in everything.chain([AGENT_IMAGE, OPERATOR_IMAGE]) {
        let source = from.join(name);
        if source.exists() {
            progress(&format!("copying {name}"));
            put(partial, name, |target| copy(&source, target))?;
        }
    }
    Ok(())
}

/// Copies what is needed of Cilium's module beside the programs.
fn take_sources(module: &Path, partial: &Path) -> Result<(), InstallError> {
    for (place, name) in SOURCES {
        let source = module.join(place);
        put(partial, name, |target| {
            copy(&source, target)?;
            if target.is_file() { make_executable(target) } else { prune(target) }
        })?;
    }
    Ok(())
}

/// Removes tests of a folder of sources, which are most of it.
fn prune(folder: &Path) -> Result<(), InstallError> {
    for name in ["tests", "complexity-tests", "test-progs", "Makefile", "Makefile.bpf"] {
        let path = folder.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(file("remove", &path))?;
        } else if path.exists() {
            fs::remove_file(&path).map_err(file("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

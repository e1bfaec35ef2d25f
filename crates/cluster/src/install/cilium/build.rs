//! Builds Cilium's programs with Go from its module.
//!
//! `go install github.com/cilium/cilium/daemon@VERSION` is refused for two reasons: the module has a `replace`
//! directive, and it requires modules that no module proxy serves. A module of our own requires it and says what
//! to take in their place (`cilium/go.mod`).

use std::{fmt::Write as _, fs, path::Path};

use serde::Deserialize;

use super::{CILIUM_PROGRAMS, CILIUM_VERSION, take_sources};
use crate::install::{
    InstallError, Progress, file,
    folder::put,
    go::{Downloaded, Go, Module},
    make_executable,
};

const GO_MOD: &str = include_str!("../../../../../cilium/go.mod");
const GO_SUM: &str = include_str!("../../../../../cilium/go.sum");
const TOOLS: &str = include_str!("../../../../../cilium/tools.go");
/// The stand-in for a module that no proxy serves.
const STAND_IN: [(&str, &str); 2] = [
    (
        "mcs-api/controllers/go.mod",
        include_str!("../../../../../cilium/mcs-api/controllers/go.mod"),
    ),
    (
        "mcs-api/controllers/controllers.go",
        include_str!("../../../../../cilium/mcs-api/controllers/controllers.go"),
    ),
];
const UPSTREAM: &str = "github.com/cilium/cilium";

/// Builds every program and takes the sources that go with them.
pub(super) fn all(
    cache: &Path,
    folder: &Path,
    version: &str,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    let go = Go::find(cache, "Cilium", version, "cannot be pulled from quay.io")?;
    progress("fetching its sources");
    let module = module(go, folder, version)?;
    let upstream = module.download(UPSTREAM)?;
    take_sources(&upstream.dir, partial)?;
    let stamp = stamp(version, &upstream)?;
    // Quoted for Go, which parts the flags at blanks.
    let flags = format!(
        "-s -w -X '{UPSTREAM}/pkg/version.ciliumVersion={stamp}' -X {UPSTREAM}/hubble/pkg.Version=v{version}"
    );
    for (place, program) in CILIUM_PROGRAMS.into_iter().enumerate() {
        put(partial, program, |target| {
            progress(&format!("building {program} ({} of {})", place + 1, CILIUM_PROGRAMS.len()));
            let (package, tags) = package(program);
            let output = target.to_string_lossy();
            let package = format!("{UPSTREAM}/{package}");
            let flags =
                ["build", "-trimpath", "-tags", tags, "-ldflags", &flags, "-o", &output, &package];
            module.go(program, &flags)?;
            make_executable(target)
        })?;
    }
    module.remove()
}

/// Where a program is in Cilium's module, and with which tags it is built: those of upstream's makefiles.
fn package(program: &str) -> (&'static str, &'static str) {
    const USUAL: &str = "osusergo";
    match program {
        "cilium-agent" => ("daemon", USUAL),
        "cilium-operator-generic" => ("operator", "osusergo,ipam_provider_operator"),
        "cilium-cni" => ("plugins/cilium-cni", USUAL),
        "cilium-health-responder" => ("cilium-health/responder", USUAL),
        "cilium-mount" => ("tools/mount", USUAL),
        "cilium-sysctlfix" => ("tools/sysctlfix", USUAL),
        "hubble" => ("hubble", USUAL),
        _ => ("cilium-dbg", USUAL),
    }
}

/// The module that the programs are built from.
fn module(go: Go, folder: &Path, version: &str) -> Result<Module, InstallError> {
    let module = Module::new(go, folder, version)?;
    module.write("tools.go", TOOLS)?;
    for (name, text) in STAND_IN {
        module.write(name, text)?;
    }
    if version == CILIUM_VERSION {
        module.write("go.mod", GO_MOD)?;
        module.write("go.sum", GO_SUM)?;
        return Ok(module);
    }
    module.write("go.mod", "module aksnet.dev/cilium\n")?;
    let upstream = module.download(UPSTREAM)?;
    let text = fs::read_to_string(&upstream.go_mod).map_err(file("read", &upstream.go_mod))?;
    module.write("go.mod", &render_go_mod(&text, version))?;
    let sums = upstream.dir.join("go.sum");
    module.write("go.sum", &fs::read_to_string(&sums).map_err(file("read", &sums))?)?;
    // Adds the sums of Cilium itself and of what stands in for others, and nothing newer.
    let package = format!("{UPSTREAM}/daemon");
    module.go("cilium-agent", &["list", "-mod=mod", "-deps", "-tags=osusergo", &package])?;
    Ok(module)
}

/// Upstream's `go.mod` as a module of our own, with what no proxy serves replaced. Go does not take the
/// directives of a module that is required, so they are repeated.
fn render_go_mod(upstream: &str, version: &str) -> String {
    let mut text = String::new();
    let mut is_tool = false;
    for line in upstream.lines() {
        let begins_tool = line.starts_with("tool ");
        is_tool |= begins_tool && line.ends_with('(');
        if line.starts_with("module ") {
            text.push_str("module aksnet.dev/cilium\n");
        } else if !(is_tool || begins_tool || is_unused(line)) {
            writeln!(text, "{line}").expect("a String takes everything");
        }
        is_tool &= line != ")";
    }
    writeln!(text, "\nrequire {UPSTREAM} v{version}").expect("a String takes everything");
    for line in GO_MOD.lines().filter(|line| line.contains(" => ")) {
        let (replaced, _) = line.trim().split_once(" => ").unwrap_or_default();
        if upstream.lines().any(|line| line.trim().starts_with(&format!("{replaced} v"))) {
            writeln!(text, "replace {}", line.trim()).expect("a String takes everything");
        }
    }
    text
}

/// Says where to get a generator of code, which building does without.
fn is_unused(line: &str) -> bool {
    line.contains("sigs.k8s.io/controller-tools => ")
}

/// What the programs say of themselves: version, commit, and the commit's time, as upstream's do. Without all
/// three, Cilium reads no version from it.
fn stamp(version: &str, upstream: &Downloaded) -> Result<String, InstallError> {
    /// A part of what a module proxy says of a version.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info {
        time: String,
        #[serde(default)]
        origin: Origin,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Origin {
        hash: Option<String>,
    }
    let text = fs::read(&upstream.info).map_err(file("read", &upstream.info))?;
    let info: Info = serde_json::from_slice(&text)
        .map_err(|err| file("read", &upstream.info)(std::io::Error::other(err)))?;
    let commit = info.origin.hash.unwrap_or_else(|| "unknown".to_owned());
    Ok(format!("{version} {} {}", &commit[..commit.len().min(8)], info.time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_get_upstreams_module_without_its_tools() {
        let upstream = "module github.com/cilium/cilium\n\ngo 1.26.0\n\nrequire (\n\
                        \tgithub.com/osrg/gobgp/v4 v4.6.1-0.20260630022313-d6dee8360046\n\
                        \tsigs.k8s.io/controller-tools v0.20.1 // indirect\n)\n\n\
                        replace sigs.k8s.io/controller-tools => github.com/cilium/controller-tools v0.21.0-1\n\n\
                        tool (\n\tgithub.com/cilium/linters\n)\n";
        assert_eq!(
            render_go_mod(upstream, "1.20.9"),
            "module aksnet.dev/cilium\n\ngo 1.26.0\n\nrequire (\n\
             \tgithub.com/osrg/gobgp/v4 v4.6.1-0.20260630022313-d6dee8360046\n\
             \tsigs.k8s.io/controller-tools v0.20.1 // indirect\n)\n\n\n\n\
             require github.com/cilium/cilium v1.20.9\n\
             replace github.com/osrg/gobgp/v4 => github.com/osrg/gobgp/v4 v4.8.0\n"
        );
    }

    #[test]
    fn the_module_that_is_carried_is_of_the_default_version() {
        assert!(GO_MOD.contains(&format!("\nrequire {UPSTREAM} v{CILIUM_VERSION}\n")));
        for program in CILIUM_PROGRAMS {
            let (package, _) = package(program);
            assert!(TOOLS.contains(&format!("\t_ \"{UPSTREAM}/{package}\"\n")), "{program}");
        }
        // What is replaced by a folder is written beside it.
        let folders = GO_MOD.lines().filter_map(|line| line.split_once(" => ./")).map(|it| it.1);
        for folder in folders {
            let name = format!("{folder}/go.mod");
            assert!(STAND_IN.iter().any(|(path, _)| *path == name), "{folder}");
        }
    }

    #[test]
    fn every_module_that_is_carried_has_its_sum() {
        let modules = GO_MOD.lines().filter_map(|line| line.strip_prefix('\t'));
        for line in modules.filter(|line| !line.starts_with("//") && !line.contains(" => ")) {
            let (module, version) = line.split_once(' ').expect("a module and its version");
            let version = version.trim_end_matches(" // indirect");
            let is_replaced = GO_MOD.contains(&format!("\t{module} => "));
            assert!(is_replaced || GO_SUM.contains(&format!("{module} {version} h1:")), "{line}");
        }
    }
}

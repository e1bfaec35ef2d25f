//! Builds Kubernetes' programs and `CoreDNS` with Go from their modules.
//!
//! `go install k8s.io/kubernetes/cmd/kubelet@VERSION` is refused, because that module has `replace`
//! directives. A module of our own that requires it and repeats the directives with released versions
//! builds the same programs.

use std::{fmt::Write as _, fs, path::Path};

use super::{
    DEFAULT_VERSION, InstallError, PROGRAMS, file,
    go::{self, Go, Module},
};

const GO_MOD: &str = include_str!("../../../../kubernetes/go.mod");
const GO_SUM: &str = include_str!("../../../../kubernetes/go.sum");
const TOOLS: &str = include_str!("../../../../kubernetes/tools.go");
const UPSTREAM: &str = "k8s.io/kubernetes";

/// A module from which Kubernetes' programs of one version are built.
pub(super) struct Builder(Module);

impl Builder {
    /// Writes the module beside the folder that the programs will be in.
    pub(super) fn new(
        cache: &Path,
        folder: &Path,
        program: &str,
        version: &str,
    ) -> Result<Self, InstallError> {
        let missing = "is neither on PATH nor can dl.k8s.io be reached";
        let go = Go::find(cache, program, version, missing)?;
        let module = Module::new(go, folder, version)?;
        module.write("tools.go", TOOLS)?;
        if version == DEFAULT_VERSION {
            module.write("go.mod", GO_MOD)?;
            module.write("go.sum", GO_SUM)?;
        } else {
            module.write("go.mod", "module aksnet.dev/kubernetes\n")?;
            let upstream = module.download(UPSTREAM)?.go_mod;
            let upstream = fs::read_to_string(&upstream).map_err(file("read", &upstream))?;
            module.write("go.mod", &render_go_mod(&upstream, version))?;
            module.go(program, &["mod", "tidy"])?;
        }
        Ok(Self(module))
    }

    /// Builds one program.
    pub(super) fn build(&self, program: &str, target: &Path) -> Result<(), InstallError> {
        let version = self.0.version();
        let mut numbers = version.split('.');
        let [major, minor] = [(); 2].map(|()| numbers.next().unwrap_or_default());
        let package = "k8s.io/component-base/version";
        let flags = format!(
            "-s -w -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean",
        );
        let output = target.to_string_lossy();
        let command = format!("{UPSTREAM}/cmd/{program}");
        self.0.go(program, &["build", "-trimpath", "-ldflags", &flags, "-o", &output, &command])?;
        if PROGRAMS.last() == Some(&program) { self.0.remove() } else { Ok(()) }
    }
}

/// Builds `CoreDNS`, whose module can be installed as it is.
pub(super) fn coredns(cache: &Path, version: &str, target: &Path) -> Result<(), InstallError> {
    let go = Go::find(cache, "coredns", version, "is not on PATH")?;
    let folder = target.with_extension("bin");
    let mut command = go.command();
    command
        .args(["install", "-trimpath", "-ldflags", "-s -w"])
        .arg(format!("github.com/coredns/coredns@v{version}"))
        .env("GOBIN", &folder);
    go::run(&mut command).map_err(|message| InstallError::Build {
        program: "coredns".to_owned(),
        version: version.to_owned(),
        message,
    })?;
    fs::rename(folder.join("coredns"), target).map_err(file("move", &folder))?;
    fs::remove_dir_all(&folder).map_err(file("remove", &folder))
}

/// Requires Kubernetes of this version, and its staging modules of the version that belongs to it.
fn render_go_mod(upstream: &str, version: &str) -> String {
    let staging_version = version.split_once('.').map_or("0.0", |(_, rest)| rest);
    let go = upstream.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26.0");
    let mut text = format!(
        "module aksnet.dev/kubernetes\n\n{go}\n\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n"
    );
    for line in upstream.lines().filter(|line| line.contains("=> ./staging/")) {
        let line = line.trim().trim_start_matches("replace ");
        if let Some((module, _)) = line.split_once(" =>") {
            writeln!(text, "\t{module} => {module} v0.{staging_version}")
                .expect("a String takes everything");
        }
    }
    text.push_str(")\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_get_a_module_of_the_same_form() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.25.0\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\
                        \tk8s.io/kubelet => ./staging/src/k8s.io/kubelet\n)\n";
        assert_eq!(
            render_go_mod(upstream, "1.35.4"),
            "module aksnet.dev/kubernetes\n\ngo 1.25.0\n\nrequire k8s.io/kubernetes v1.35.4\n\nreplace (\n\
             \tk8s.io/api => k8s.io/api v0.35.4\n\tk8s.io/kubelet => k8s.io/kubelet v0.35.4\n)\n"
        );
    }

    #[test]
    fn the_module_that_is_carried_is_of_the_default_version() {
        assert!(GO_MOD.contains(&format!("k8s.io/kubernetes v{DEFAULT_VERSION}\n")));
        assert!(PROGRAMS.iter().all(|program| TOOLS.contains(&format!("/cmd/{program}\""))));
    }
}

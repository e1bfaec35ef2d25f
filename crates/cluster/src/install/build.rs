//! Builds programs with Go from their modules.
//!
//! `go install k8s.io/kubernetes/cmd/kubelet@VERSION` is refused, because that module has `replace`
//! directives. A module of our own that requires it and repeats the directives with released versions
//! builds the same programs.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::{DEFAULT_VERSION, InstallError, PROGRAMS, file};

const GO_MOD: &str = include_str!("../../../../kubernetes/go.mod");
const GO_SUM: &str = include_str!("../../../../kubernetes/go.sum");
const TOOLS: &str = include_str!("../../../../kubernetes/tools.go");

/// A module from which Kubernetes' programs of one version are built.
pub(super) struct Builder {
    version: String,
    module: PathBuf,
}

impl Builder {
    /// Writes the module beside the folder that the programs will be in.
    pub(super) fn new(folder: &Path, program: &str, version: &str) -> Result<Self, InstallError> {
        let has_go = Command::new("go").arg("version").output().is_ok_and(|go| go.status.success());
        if !has_go {
            let (program, version) = (program.to_owned(), version.to_owned());
            return Err(InstallError::NoGo { program, version });
        }
        let module = folder.with_file_name(format!(".module-v{version}"));
        fs::create_dir_all(&module).map_err(file("make", &module))?;
        let builder = Self { version: version.to_owned(), module };
        builder.write("tools.go", TOOLS)?;
        if version == DEFAULT_VERSION {
            builder.write("go.mod", GO_MOD)?;
            builder.write("go.sum", GO_SUM)?;
        } else {
            builder.write("go.mod", "module aksnet.dev/kubernetes\n")?;
            builder.write("go.mod", &builder.other_go_mod()?)?;
            builder.go(program, &["mod", "tidy"])?;
        }
        Ok(builder)
    }

    /// Builds one program.
    pub(super) fn build(&self, program: &str, target: &Path) -> Result<(), InstallError> {
        let mut numbers = self.version.split('.');
        let [major, minor] = [(); 2].map(|()| numbers.next().unwrap_or_default());
        let package = "k8s.io/component-base/version";
        let flags = format!(
            "-s -w -X {package}.gitVersion=v{} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean",
            self.version
        );
        let output = target.to_string_lossy();
        let command = format!("k8s.io/kubernetes/cmd/{program}");
        self.go(program, &["build", "-trimpath", "-ldflags", &flags, "-o", &output, &command])?;
        if PROGRAMS.last() == Some(&program) {
            fs::remove_dir_all(&self.module).map_err(file("remove", &self.module))?;
        }
        Ok(())
    }

    /// The module file for a version that the project does not carry one for.
    fn other_go_mod(&self) -> Result<String, InstallError> {
        /// A part of what `go mod download -json` prints.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Downloaded {
            go_mod: PathBuf,
        }
        let module = format!("k8s.io/kubernetes@v{}", self.version);
        let text = self.go("k8s.io/kubernetes", &["mod", "download", "-json", &module])?;
        let downloaded: Downloaded = serde_json::from_str(&text).map_err(|err| {
            self.failed("k8s.io/kubernetes", format!("`go mod download` printed no JSON: {err}"))
        })?;
        let upstream =
            fs::read_to_string(&downloaded.go_mod).map_err(file("read", &downloaded.go_mod))?;
        Ok(render_go_mod(&upstream, &self.version))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), InstallError> {
        let path = self.module.join(name);
        fs::write(&path, text).map_err(file("write", &path))
    }

    fn go(&self, program: &str, args: &[&str]) -> Result<String, InstallError> {
        let mut command = Command::new("go");
        command.current_dir(&self.module).env("CGO_ENABLED", "0").args(args);
        run(&mut command).map_err(|message| self.failed(program, message))
    }

    fn failed(&self, program: &str, message: String) -> InstallError {
        InstallError::Build { program: program.to_owned(), version: self.version.clone(), message }
    }
}

/// Builds `CoreDNS`, whose module can be installed as it is.
pub(super) fn coredns(version: &str, target: &Path) -> Result<(), InstallError> {
    let folder = target.with_extension("bin");
    let mut command = Command::new("go");
    command
        .args(["install", "-trimpath", "-ldflags", "-s -w"])
        .arg(format!("github.com/coredns/coredns@v{version}"))
        .env("CGO_ENABLED", "0")
        .env("GOBIN", &folder);
    run(&mut command).map_err(|message| InstallError::Build {
        program: "coredns".to_owned(),
        version: version.to_owned(),
        message,
    })?;
    fs::rename(folder.join("coredns"), target).map_err(file("move", &folder))?;
    fs::remove_dir_all(&folder).map_err(file("remove", &folder))
}

/// What a command prints, or the end of what it complains of.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|err| format!("cannot run go: {err}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        // With `-json`, the complaint is in the answer.
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["Error"].as_str().unwrap_or("it did not say why").clone_into(&mut said);
    }
    let lines: Vec<&str> = said.lines().collect();
    Err(lines[lines.len().saturating_sub(5)..].join("; "))
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

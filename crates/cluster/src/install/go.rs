//! Runs Go in a module of our own, from which upstream's programs are built. Not here: which modules there are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::{InstallError, file};

/// The `go` program.
#[derive(Clone, Debug)]
pub(super) struct Go(PathBuf);

/// A module in a folder of the cache.
pub(super) struct Module {
    go: Go,
    version: String,
    folder: PathBuf,
}

/// A part of what `go mod download -json` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Downloaded {
    /// The module's `go.mod`.
    pub(super) go_mod: PathBuf,
    /// A file that says when the version was made.
    pub(super) info: PathBuf,
    /// All of it, unpacked.
    pub(super) dir: PathBuf,
}

impl Module {
    /// An empty one beside the folder that the programs of this version will be in.
    pub(super) fn new(go: Go, programs: &Path, version: &str) -> Result<Self, InstallError> {
        let folder = programs.with_file_name(format!(".module-v{version}"));
        fs::create_dir_all(&folder).map_err(file("make", &folder))?;
        Ok(Self { go, version: version.to_owned(), folder })
    }

    /// The version of what is built.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Writes a file of the module.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), InstallError> {
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(file("make", parent))?;
        }
        fs::write(&path, text).map_err(file("write", &path))
    }

    /// Runs `go` in it; the answer is what it prints.
    pub(super) fn go(&self, program: &str, args: &[&str]) -> Result<String, InstallError> {
        run(self.go.command().current_dir(&self.folder).args(args))
            .map_err(|message| self.failed(program, message))
    }

    /// Gets upstream's module of this version.
    pub(super) fn download(&self, upstream: &str) -> Result<Downloaded, InstallError> {
        let wanted = format!("{upstream}@v{}", self.version);
        let text = self.go(upstream, &["mod", "download", "-json", &wanted])?;
        serde_json::from_str(&text).map_err(|err| {
            self.failed(upstream, format!("`go mod download` printed no JSON: {err}"))
        })
    }

    /// Removes it; the programs are built.
    pub(super) fn remove(&self) -> Result<(), InstallError> {
        fs::remove_dir_all(&self.folder).map_err(file("remove", &self.folder))
    }

    fn failed(&self, program: &str, message: String) -> InstallError {
        InstallError::Build { program: program.to_owned(), version: self.version.clone(), message }
    }
}

impl Go {
    /// The one that the set-up has put into the cache, which it does where none on `PATH` is new enough; else the one on
    /// `PATH`. `missing` says where else than in Go the program was looked for.
    pub(super) fn find(
        cache: &Path,
        program: &str,
        version: &str,
        missing: &'static str,
    ) -> Result<Self, InstallError> {
        let works = |go: &PathBuf| {
            Command::new(go).arg("version").output().is_ok_and(|output| output.status.success())
        };
        let candidates = [cache.join("go/bin/go"), PathBuf::from("go")];
        candidates.into_iter().find(works).map(Self).ok_or_else(|| InstallError::NoGo {
            program: program.to_owned(),
            version: version.to_owned(),
            missing,
        })
    }

    /// A run of it, which ends when this process does: the lab's daemon builds too, and may be stopped meanwhile.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(&self.0).env("CGO_ENABLED", "0");
        command
    }
}

/// What a command prints, or the end of what it complains of.
pub(super) fn run(command: &mut Command) -> Result<String, String> {
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
    let lines: Vec<&str> = said.lines().filter(|line| !is_chatter(line)).collect();
    Err(lines[lines.len().saturating_sub(5)..].join("; "))
}

/// What Go says of its progress.
fn is_chatter(line: &str) -> bool {
    line.starts_with("go: downloading ") || line.starts_with("go: finding ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_ups_go_comes_before_that_on_path() {
        let world = tempfile::tempdir().expect("a folder");
        let go = world.path().join("go/bin/go");
        fs::create_dir_all(go.parent().expect("a parent")).expect("a folder");
        fs::write(&go, "#!/bin/sh\necho go version go1.26.8\n").expect("written");
        crate::install::make_executable(&go).expect("executable");
        let found = Go::find(world.path(), "cilium-agent", "1.20.2", "is nowhere").expect("found");
        assert_eq!(found.0, go);
        let said = run(found.command().arg("version")).expect("it runs");
        assert_eq!(said, "go version go1.26.8\n");
    }

    #[test]
    fn a_failure_is_told_by_its_end_without_what_was_fetched() {
        let script = "for it in 1 2 3 4 5 6; do echo \"$it\" >&2; echo 'go: downloading x v1' >&2; done; exit 1";
        let said = run(Command::new("sh").args(["-c", script]));
        assert_eq!(said, Err("2; 3; 4; 5; 6".to_owned()));
    }
}

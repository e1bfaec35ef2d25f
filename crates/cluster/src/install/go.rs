//! Runs Go in a module of our own, from which upstream's programs are built. Not here: which modules there are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::{InstallError, file};

/// A module in a folder of the cache.
pub(super) struct Module {
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
    pub(super) fn new(programs: &Path, version: &str) -> Result<Self, InstallError> {
        let folder = programs.with_file_name(format!(".module-v{version}"));
        fs::create_dir_all(&folder).map_err(file("make", &folder))?;
        Ok(Self { version: version.to_owned(), folder })
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
        run(command().current_dir(&self.folder).args(args))
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

/// Refuses to go on where there is no Go. `missing` says where else the program was looked for.
pub(super) fn require(
    program: &str,
    version: &str,
    missing: &'static str,
) -> Result<(), InstallError> {
    if Command::new("go").arg("version").output().is_ok_and(|go| go.status.success()) {
        return Ok(());
    }
    Err(InstallError::NoGo { program: program.to_owned(), version: version.to_owned(), missing })
}

/// `go`, which ends when this process does: the lab's daemon builds too, and may be stopped meanwhile.
pub(super) fn command() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "go"]).env("CGO_ENABLED", "0");
    command
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

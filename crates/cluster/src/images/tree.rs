//! A folder that becomes an image's layer. Not here: what is in it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use super::ImageError;

/// Files as an image will have them.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one in a folder that does not exist yet.
    pub(super) fn new(root: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(root).map_err(error("make", root))?;
        Ok(Self { root: root.to_owned() })
    }

    /// Makes a folder.
    pub(super) fn folder(&self, path: &str, mode: u32) -> Result<(), ImageError> {
        let target = self.inside(path)?;
        fs::create_dir_all(&target).map_err(error("make", &target))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))
            .map_err(error("set the permissions of", &target))
    }

    /// Writes a file.
    pub(super) fn file(&self, path: &str, text: &str) -> Result<(), ImageError> {
        let target = self.inside(path)?;
        fs::write(&target, text).map_err(error("write", &target))
    }

    /// Copies a file of the machine, following links.
    pub(super) fn copy(&self, from: &Path, to: &str) -> Result<(), ImageError> {
        let target = self.inside(to)?;
        fs::copy(from, &target).map(drop).map_err(error("copy", from))
    }

    /// Makes a symbolic link, unless something is there.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<(), ImageError> {
        let link = self.inside(path)?;
        match symlink(target, &link) {
            Err(err) if err.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error("link", &link)(err))
            }
            _ => Ok(()),
        }
    }

    /// Copies a program with the shared libraries that it names, each to its own path.
    pub(super) fn program(&self, from: &Path, to: &str) -> Result<(), ImageError> {
        self.copy(from, to)?;
        let output = Command::new("ldd").arg(from).output().map_err(error("run ldd on", from))?;
        // It fails for a static program, which has no libraries.
        for library in parse_ldd(&String::from_utf8_lossy(&output.stdout)) {
            self.copy(&library, &library.to_string_lossy())?;
        }
        Ok(())
    }

    /// Copies a folder with all that is in it, following links.
    pub(super) fn copy_all(&self, from: &Path, to: &str) -> Result<(), ImageError> {
        for entry in fs::read_dir(from).map_err(error("read", from))? {
            let source = entry.map_err(error("read", from))?.path();
            let name = source.file_name().unwrap_or_default().to_string_lossy();
            let target = format!("{to}/{name}");
            if source.is_dir() {
                self.copy_all(&source, &target)?;
            } else {
                self.copy(&source, &target)?;
            }
        }
        Ok(())
    }

    /// Packs everything as the file `layer`: the same files give the same bytes.
    pub(super) fn pack(&self, layer: &Path) -> Result<(), ImageError> {
        let output = Command::new("tar")
            .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
            .args(["--numeric-owner", "--format=gnu", "--file"])
            .arg(layer)
            .arg("--directory")
            .arg(&self.root)
            .arg(".")
            .output()
            .map_err(error("run tar for", layer))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ImageError::Program { program: "tar", message })
    }

    /// The place of an absolute path; its folder is made.
    fn inside(&self, path: &str) -> Result<PathBuf, ImageError> {
        let target = self.root.join(path.trim_start_matches('/'));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(error("make", parent))?;
        }
        Ok(target)
    }
}

/// The paths in the output of `ldd`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn error(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::File { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text), expected.map(PathBuf::from));
        assert_eq!(parse_ldd("\tnot a dynamic executable\n"), Vec::<PathBuf>::new());
    }
}

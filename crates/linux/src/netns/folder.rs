//! Many namespaces that come one by one and go all at once. Not here: what they are for.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags};

use super::Netns;
use crate::LinuxError;

/// A folder of network namespaces: a file system of its own, in memory, on which each is mounted as a file.
///
/// One unmount takes the whole tree away, however many namespaces there are; one by one, each would
/// wait for all processors. Its mounts are private, so that no other mount namespace keeps them.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder at `path`, or takes the one that is there with all that is in it.
    pub fn ensure(path: &Path) -> Result<Self, LinuxError> {
        let file = |verb, source| LinuxError::File { verb, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(|source| file("making", source))?;
        if !is_mounted(path) {
            let none = None::<&str>;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            nix::mount::mount(Some("aksnet"), path, Some("tmpfs"), flags, Some("mode=0700"))
                .and_then(|()| nix::mount::mount(none, path, none, MsFlags::MS_PRIVATE, none))
                .map_err(|source| file("mounting", source.into()))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The path of the namespace `name`.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a namespace of this name, which none has yet.
    pub fn create(&self, name: &str) -> Result<(), LinuxError> {
        Netns::mount_at(&self.path_of(name))
    }

    /// Whether there is a namespace of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        super::is_namespace(&self.path_of(name))
    }

    /// Removes the name. The namespace goes when the last process and file in it do. Success when there is none.
    pub fn delete(&self, name: &str) -> Result<(), LinuxError> {
        Netns::unmount_from(&self.path_of(name))
    }

    /// The names of all files in the folder: namespaces, and what a killed creation left.
    pub fn list(&self) -> Result<Vec<String>, LinuxError> {
        let entries = fs::read_dir(&self.path).map_err(|source| LinuxError::File {
            verb: "listing",
            path: self.path.clone(),
            source,
        })?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    /// Removes the folder at `path` and every name in it, at once. Success when there is none.
    pub fn remove(path: &Path) -> Result<(), LinuxError> {
        let file = |verb, source| LinuxError::File { verb, path: path.to_owned(), source };
        while is_mounted(path) {
            nix::mount::umount2(path, MntFlags::MNT_DETACH)
                .map_err(|source| file("unmounting", source.into()))?;
        }
        match fs::remove_dir(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(file("removing", source))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a file system of its own is mounted on a folder.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|folder| folder.dev()).ok();
    let parent = path.parent().and_then(device);
    device(path).zip(parent).is_some_and(|(own, parent)| own != parent)
}

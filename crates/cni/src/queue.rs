//! Releases that wait for an agent: a DEL must succeed while the agent is down.
//!
//! One file per release in `releases/` beside the agent's socket, named by the container's id and
//! the interface, written beside and renamed, so that the agent only ever reads whole ones.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::talk::Attachment;

/// The queue of the agent that listens at `socket`.
#[must_use]
pub fn directory(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join("releases")
}

/// Puts a release into the queue. Twice is once.
pub fn push(directory: &Path, attachment: &Attachment) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let path = path(directory, attachment);
    let beside = directory.join(format!(".{}.{}", std::process::id(), file_name(attachment)));
    fs::write(&beside, serde_json::to_vec(attachment)?)?;
    fs::rename(&beside, path)
}

/// Every release in the queue. What is not one (a half-written file of a plugin that was killed, a
/// stranger's) is left alone.
pub fn list(directory: &Path) -> io::Result<Vec<Attachment>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut releases = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        if let Ok(attachment) = serde_json::from_slice::<Attachment>(&bytes)
            && entry.file_name() == *file_name(&attachment)
        {
            releases.push(attachment);
        }
    }
    Ok(releases)
}

/// Whether a release of `attachment` waits.
#[must_use]
pub fn has(directory: &Path, attachment: &Attachment) -> bool {
    path(directory, attachment).exists()
}

/// Takes a release out of the queue, after it was done.
pub fn remove(directory: &Path, attachment: &Attachment) -> io::Result<()> {
    match fs::remove_file(path(directory, attachment)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn path(directory: &Path, attachment: &Attachment) -> PathBuf {
    directory.join(file_name(attachment))
}

/// Both halves were checked at the door: no `/`, and the id does not begin with a dot.
fn file_name(attachment: &Attachment) -> String {
    format!("{}:{}", attachment.container, attachment.interface)
}

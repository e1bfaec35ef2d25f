//! A folder that appears whole or not at all, made by one call at a time. Not here: what goes into it.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::{InstallError, file};

/// Makes a folder by `get`, which fills one that becomes it. Nothing is done when the folder is there. What an
/// interrupted call has made stays for the next one.
pub(super) fn fill(
    folder: &Path,
    get: impl FnOnce(&Path) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    if folder.exists() {
        return Ok(());
    }
    let partial = folder.with_extension(partial_extension(folder));
    fs::create_dir_all(&partial).map_err(file("make", &partial))?;
    let lock_path = partial.join(".lock");
    let lock = File::create(&lock_path).map_err(file("make", &lock_path))?;
    lock.lock().map_err(file("lock", &lock_path))?;
    // Somebody else may have done it while this call waited.
    if folder.exists() {
        return Ok(());
    }
    get(&partial)?;
    fs::remove_file(&lock_path).map_err(file("remove", &lock_path))?;
    fs::rename(&partial, folder).map_err(file("write", folder))
}

/// Makes a file or folder of this name by `get`, which is given a path of its own, unless it is there.
pub(super) fn put(
    partial: &Path,
    name: &str,
    get: impl FnOnce(&Path) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    let target = partial.join(name);
    if target.exists() {
        return Ok(());
    }
    let beside = partial.join(format!(".{name}.new"));
    get(&beside)?;
    fs::rename(&beside, &target).map_err(file("write", &target))
}

/// Copies a file, or a folder with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), InstallError> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).map_err(file("copy", from));
    }
    match fs::create_dir(to) {
        // Left by a call that was interrupted.
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(file("make", to))?,
    }
    for entry in fs::read_dir(from).map_err(file("read", from))? {
        let entry = entry.map_err(file("read", from))?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// `v1.36.3` becomes `v1.36.3.partial`: the version's last dot is no extension.
fn partial_extension(folder: &Path) -> String {
    let last = folder.extension().unwrap_or_default().to_string_lossy();
    format!("{last}.partial")
}

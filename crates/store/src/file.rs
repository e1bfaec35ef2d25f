//! The file on disk: made whole or not at all.

use std::{fs, io::ErrorKind, path::Path};

use redb::{Database, DatabaseError};

use crate::{StoreError, tables};

/// Opens the file, or makes it. A new one gets its name only once it is a store, so that a crash leaves no
/// half of one.
pub(crate) fn open(path: &Path) -> Result<Database, StoreError> {
    let new = path.with_extension("new");
    if !path.try_exists().map_err(StoreError::engine("looking for the state"))? {
        create(&new, path)?;
    }
    // A crash between its two names left it.
    remove(&new)?;
    Database::builder()
        .set_repair_callback(|session| {
            if session.progress() == 0.0 {
                tracing::warn!("the state was not closed; it is being checked");
            }
        })
        .open(path)
        .map_err(|error| refuse(path, error))
}

fn create(new: &Path, path: &Path) -> Result<(), StoreError> {
    let database = match Database::create(new) {
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            return Err(StoreError::AlreadyOpen { path: path.to_owned() });
        }
        Ok(database) => database,
        // What a crash left here was never a store.
        Err(_) => {
            remove(new)?;
            Database::create(new).map_err(|error| refuse(new, error))?
        }
    };
    tables::initialise(&database)?;
    drop(database);
    // Unlike a renaming, a second name does not replace what somebody else made meanwhile.
    match fs::hard_link(new, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        named => named.map_err(StoreError::engine("naming the new state"))?,
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::engine("syncing the folder of the state"))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StoreError::engine("removing an unfinished state")(error))
        }
        _ => Ok(()),
    }
}

fn refuse(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::AlreadyOpen { path: path.to_owned() },
        error => StoreError::engine("opening the state")(error),
    }
}

//! What must survive a crash: the region, in one file.
//!
//! [`Store::change`] applies one command in one durable transaction, and then wakes whoever watches.
//!
//! *Guarantees.* When `change` returns, the change is on disk; a refused one left no trace. After a crash at
//! any instant the region is what the last acknowledged change made it, or what the one under way would have
//! made it: never a part of a change. Readers have a whole region and wait for nobody.
//!
//! *Assumptions.* The file system keeps what `fsync` acknowledged. One process has the file open; the engine's
//! lock refuses a second.
//!
//! *Caveats.* `change` blocks for as long as an `fsync` takes; call it where blocking is allowed. After an
//! engine error, every further change fails until the store is opened again.
//!
//! Deliberately absent: decisions (the region makes them), HTTP, Kubernetes, and the engine's types in public
//! signatures.
#![forbid(unsafe_code)]

mod error;
mod file;
mod tables;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod golden;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use redb::{Database, StorageBackend};
use tokio::sync::watch;
use vnet::{
    command::{Accepted, Command},
    model::{Generation, Timestamp},
    region::Region,
};

pub use error::StoreError;

/// A region that survives. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    /// Held for a whole change, so changes come one after the other.
    writer: Mutex<()>,
    /// What is on disk. Locked only to take or replace the pointer.
    current: RwLock<Arc<Region>>,
    generation: watch::Sender<Generation>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("generation", &*self.inner.generation.borrow()).finish()
    }
}

impl Store {
    /// Opens the store in the file `path`, or makes it; its folder must be there.
    ///
    /// # Errors
    /// When the file is open elsewhere, was written by a later version, or is no store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::from_database(file::open(path)?)
    }

    /// An empty store that is forgotten with its last clone, for tests and rehearsals.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::with_backend(redb::backends::InMemoryBackend::new())
    }

    /// A store in anything that the engine can write to.
    fn with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = Database::builder()
            .create_with_backend(backend)
            .map_err(StoreError::engine("opening the store"))?;
        tables::initialise(&database)?;
        Self::from_database(database)
    }

    fn from_database(database: Database) -> Result<Self, StoreError> {
        let region = tables::load(&database)?;
        let (generation, _) = watch::channel(region.generation);
        let inner = Inner {
            database,
            writer: Mutex::new(()),
            current: RwLock::new(Arc::new(region)),
            generation,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Applies `command` at `now`. It is on disk when this returns, and only then does anybody hear of it.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the region refuses; anything else when the disk does.
    pub fn change(&self, command: Command, now: Timestamp) -> Result<Accepted, StoreError> {
        // A panic under this lock left everything as it was: the new region was not yet anybody's.
        let _turn = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot();
        let mut after = Region::clone(&before);
        let accepted = after.apply(command, now).map_err(StoreError::Refused)?;
        if after.generation == before.generation {
            return Ok(accepted);
        }
        tables::save(&self.inner.database, &before, &after)?;
        let generation = after.generation;
        *self.inner.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        self.inner.generation.send_replace(generation);
        Ok(accepted)
    }

    /// The region as it is on disk.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Region> {
        Arc::clone(&self.inner.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The generation of what is on disk, as a level: who slept through ten changes is woken once.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Generation> {
        self.inner.generation.subscribe()
    }
}

//! Whether somebody else has changed a table that the fabric loaded. Not here: whether it is there at all, which its own
//! mark says (`linux::nft::loaded`).
//!
//! *Caveats.* What a table is compared with is what it was at the first look after the fabric's own last change: what
//! others do between the two is taken for the fabric's.

use std::collections::BTreeMap;

use linux::{LinuxError, netns::Netns, nft};
use vnet::host::TABLE;

/// What tables were like, by the namespaces that they are in.
#[derive(Debug, Default)]
pub(super) struct Tables(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    /// What was loaded.
    digest: String,
    generation: u32,
    content: String,
}

impl Tables {
    /// Looks at the table of a namespace, in which `digest` is said to be loaded.
    pub(super) fn is_changed(
        &mut self,
        namespace: &Netns,
        digest: &str,
    ) -> Result<bool, LinuxError> {
        let name = namespace.name();
        let generation = nft::generation(namespace)?;
        let seen = self.0.get_mut(name).filter(|seen| seen.digest == digest);
        if seen.as_ref().is_some_and(|seen| seen.generation == generation) {
            return Ok(false);
        }
        let content = nft::content(namespace, TABLE)?;
        if let Some(seen) = seen {
            // Others have tables of their own there.
            seen.generation = generation;
            let is_changed = seen.content != content;
            if is_changed {
                self.0.remove(name);
            }
            return Ok(is_changed);
        }
        let seen = Seen { digest: digest.to_owned(), generation, content };
        self.0.insert(name.to_owned(), seen);
        Ok(false)
    }

    /// Lets go of a namespace that is no more.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

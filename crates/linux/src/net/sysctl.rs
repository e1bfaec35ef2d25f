//! Kernel settings of a namespace: `/proc/sys/net` shows those of the thread that looks.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use crate::{LinuxError, netns::Netns};

/// The values of those settings that exist.
pub(super) fn read<'a>(
    namespace: &Netns,
    names: impl Iterator<Item = &'a str> + Send,
) -> Result<BTreeMap<String, String>, LinuxError> {
    namespace.run(move || {
        let mut values = BTreeMap::new();
        for name in names {
            match fs::read_to_string(path(name)) {
                Ok(value) => drop(values.insert(name.to_owned(), value.trim().to_owned())),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(LinuxError::File { verb: "reading", path: path(name), source });
                }
            }
        }
        Ok(values)
    })?
}

/// Writes settings, in order.
pub(super) fn write(namespace: &Netns, values: &[(&str, &str)]) -> Result<(), LinuxError> {
    namespace.run(|| {
        for (name, value) in values {
            fs::write(path(name), value).map_err(|source| LinuxError::File {
                verb: "writing",
                path: path(name),
                source,
            })?;
        }
        Ok(())
    })?
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

//! Limits of the machine that many nodes on one kernel meet first, raised while a lab needs it. Not here: who needs it.
//!
//! # Guarantees
//! A limit is only ever raised. What it was is written down before it is changed, and set again when the last holder
//! leaves, unless somebody has set another value since. Doing either twice changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What nodes need, and how much of it: a node has about ten inotify instances (kubelet, kube-proxy, containerd) and the
/// kernel gives each user 128. `kind` asks its users for the same (kind's documentation, "Known issues", "Pod errors due to
/// “too many open files”").
const NEEDED: [(&str, u64); 2] =
    [("fs/inotify/max_user_instances", 8192), ("fs/inotify/max_user_watches", 524_288)];

/// The machine's limits, and who needs them raised.
#[derive(Debug)]
pub struct Limits {
    /// `/proc/sys`.
    settings: PathBuf,
    /// The folder in which it is written down who holds them.
    folder: PathBuf,
}

/// What is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// What each setting was before it was raised.
    was: BTreeMap<String, u64>,
    /// Who needs them raised.
    holders: BTreeSet<String>,
}

/// Why limits are as they were.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// A file cannot be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file says something else than it should.
    #[error("{} says `{text}`, which is not understood", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
}

impl Limits {
    /// The limits of this machine. `folder` is shared by all who raise them, and must not outlive a boot.
    #[must_use]
    pub fn of_the_machine(folder: &Path) -> Self {
        Self { settings: PathBuf::from("/proc/sys"), folder: folder.to_owned() }
    }

    /// Raises what is too low, for `holder`.
    ///
    /// # Errors
    /// [`LimitsError`]; what was not raised is as it was.
    pub fn raise(&self, holder: &str) -> Result<(), LimitsError> {
        let _turn = self.take_turn()?;
        let mut kept = self.read_kept()?;
        let mut low = Vec::new();
        for (name, needed) in NEEDED {
            let now = self.read(name)?;
            if now < needed {
                kept.was.entry(name.to_owned()).or_insert(now);
                low.push((name, needed));
            }
        }
        kept.holders.insert(holder.to_owned());
        self.write_kept(&kept)?;
        low.into_iter().try_for_each(|(name, needed)| self.write(name, needed))
    }

    /// Says that `holder` needs them no longer.
    ///
    /// # Errors
    /// [`LimitsError`]; the next call goes on.
    pub fn give_back(&self, holder: &str) -> Result<(), LimitsError> {
        if !self.kept_path().exists() {
            return Ok(());
        }
        let _turn = self.take_turn()?;
        let mut kept = self.read_kept()?;
        kept.holders.remove(holder);
        if !kept.holders.is_empty() {
            return self.write_kept(&kept);
        }
        for (name, was) in &kept.was {
            let raised = NEEDED.iter().find(|(known, _)| known == name);
            if raised.is_some_and(|(_, needed)| self.read(name).is_ok_and(|now| now == *needed)) {
                self.write(name, *was)?;
            }
        }
        let path = self.kept_path();
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(file("remove", &path)(err)),
            _ => Ok(()),
        }
    }

    /// Labs come and go side by side.
    fn take_turn(&self) -> Result<File, LimitsError> {
        fs::create_dir_all(&self.folder).map_err(file("make", &self.folder))?;
        let folder = File::open(&self.folder).map_err(file("open", &self.folder))?;
        folder.lock().map_err(file("lock", &self.folder))?;
        Ok(folder)
    }

    fn kept_path(&self) -> PathBuf {
        self.folder.join("limits.json")
    }

    fn read_kept(&self) -> Result<Kept, LimitsError> {
        let path = self.kept_path();
        match fs::read_to_string(&path) {
            Ok(text) => {
                serde_json::from_str(&text).map_err(|_| LimitsError::Content { path, text })
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(err) => Err(file("read", &path)(err)),
        }
    }

    fn write_kept(&self, kept: &Kept) -> Result<(), LimitsError> {
        let path = self.kept_path();
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(kept).expect("maps and sets of texts are JSON");
        fs::write(&beside, text).map_err(file("write", &beside))?;
        fs::rename(&beside, &path).map_err(file("write", &path))
    }

    fn read(&self, name: &str) -> Result<u64, LimitsError> {
        let path = self.settings.join(name);
        let text = fs::read_to_string(&path).map_err(file("read", &path))?;
        text.trim().parse().map_err(|_| LimitsError::Content { path, text: text.trim().to_owned() })
    }

    fn write(&self, name: &str, value: u64) -> Result<(), LimitsError> {
        let path = self.settings.join(name);
        fs::write(&path, value.to_string()).map_err(file("write", &path))
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LimitsError {
    let path = path.to_owned();
    move |source| LimitsError::File { action, path, source }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    /// A machine of files, with a name of its own, gone at the end.
    struct Machine(PathBuf);

    impl Machine {
        fn new(test: &str) -> Self {
            let root = std::env::temp_dir().join(format!("limits-{test}-{}", std::process::id()));
            fs::create_dir_all(root.join("sys/fs/inotify")).unwrap();
            let machine = Self(root);
            machine.set("max_user_instances", 128);
            machine.set("max_user_watches", 1_000_000);
            machine
        }

        fn limits(&self) -> Limits {
            Limits { settings: self.0.join("sys"), folder: self.0.join("run") }
        }

        fn set(&self, name: &str, value: u64) {
            fs::write(self.0.join("sys/fs/inotify").join(name), value.to_string()).unwrap();
        }

        fn instances(&self) -> u64 {
            self.limits().read("fs/inotify/max_user_instances").unwrap()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_last_to_leave_sets_what_was_low_as_it_was() {
        let machine = Machine::new("last");
        let limits = machine.limits();
        for holder in ["a", "b", "a"] {
            limits.raise(holder).unwrap();
            assert_eq!(machine.instances(), 8192);
        }
        // What was high enough is nobody's business.
        assert_eq!(limits.read("fs/inotify/max_user_watches").unwrap(), 1_000_000);
        limits.give_back("a").unwrap();
        assert_eq!(machine.instances(), 8192);
        limits.give_back("b").unwrap();
        limits.give_back("b").unwrap();
        assert_eq!(machine.instances(), 128);
        assert!(!limits.kept_path().exists());
    }

    #[test]
    fn what_somebody_else_has_set_since_stays() {
        let machine = Machine::new("else");
        machine.limits().raise("a").unwrap();
        machine.set("max_user_instances", 256);
        machine.limits().give_back("a").unwrap();
        assert_eq!(machine.instances(), 256);
    }

    #[test]
    fn nothing_is_raised_before_it_is_written_down() {
        let machine = Machine::new("order");
        fs::create_dir_all(machine.limits().kept_path()).unwrap();
        assert!(machine.limits().raise("a").is_err());
        assert_eq!(machine.instances(), 128);
    }
}

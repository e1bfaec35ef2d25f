//! What one lab has made and the next one uses again: when it was used, and what goes because something newer has taken
//! its place. Not here: how anything is made.
//!
//! Labs share a cache and know nothing of each other, perhaps of two versions of this program. So nothing goes that
//! somebody has used of late; what is gone is made again by who needs it.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::{Duration, SystemTime},
};

/// How long what has been replaced stays after its last use: two versions that are tried by turns are both kept.
const KEPT: Duration = Duration::from_hours(24);
/// Added to the name of what is being removed, so that nobody takes a half of it for the whole.
const GOING: &str = "going";

/// Notes that a file or folder is used now: its time of change, which otherwise never moves.
pub fn mark_used(path: &Path) {
    // Who cannot write here cannot remove either.
    if let Err(error) = File::open(path).and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!(path = %path.display(), %error, "its use is not noted");
    }
}

/// Removes those in a folder whose names are for `is_replaced`, unless somebody has used them of late.
pub fn sweep(folder: &Path, is_replaced: impl Fn(&str) -> bool) {
    if let Err(error) = sweep_at(folder, SystemTime::now(), is_replaced) {
        // They only take space.
        tracing::warn!(folder = %folder.display(), %error, "what nobody uses any more stays");
    }
}

fn sweep_at(folder: &Path, now: SystemTime, is_replaced: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(&is_replaced) {
            continue;
        }
        match remove_unused(&entry.path(), now) {
            // Another lab was sooner.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn remove_unused(path: &Path, now: SystemTime) -> io::Result<()> {
    let used = fs::symlink_metadata(path)?.modified()?;
    // A clock that was put back makes it used in the future, and so it stays.
    if now.duration_since(used).is_ok_and(|age| age > KEPT) {
        tracing::info!(path = %path.display(), "nobody uses it any more: removing");
        let going = path.with_added_extension(GOING);
        fs::rename(path, &going)?;
        if going.is_dir() { fs::remove_dir_all(&going) } else { fs::remove_file(&going) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_goes_a_day_after_its_last_use() {
        let world = tempfile::tempdir().expect("a folder");
        let now = SystemTime::now();
        let put = |name: &str, hours: u64| {
            let path = world.path().join(name);
            fs::create_dir(&path).expect("made");
            fs::write(path.join("file"), "").expect("written");
            let used = now - Duration::from_hours(hours);
            File::open(&path).and_then(|it| it.set_modified(used)).expect("set");
        };
        put("old-today", 23);
        put("old-used-again", 100);
        put("old", 25);
        put("new", 100);
        fs::write(world.path().join("old-file"), "").expect("written");
        mark_used(&world.path().join("old-used-again"));
        mark_used(&world.path().join("absent"));
        let sweep = |later: Duration| {
            sweep_at(world.path(), now + later, |name| name.starts_with("old")).expect("swept");
            let mut left: Vec<_> = fs::read_dir(world.path())
                .expect("there")
                .map(|it| it.expect("an entry").file_name().into_string().expect("UTF-8"))
                .collect();
            left.sort();
            left.join(" ")
        };
        assert_eq!(sweep(Duration::ZERO), "new old-file old-today old-used-again");
        assert_eq!(sweep(Duration::from_hours(2)), "new old-file old-used-again");
        assert_eq!(sweep(Duration::from_hours(25)), "new");
    }
}

//! The control groups of a sandbox: a folder of its own in every hierarchy, version 1 or 2.
//! Not here: limits; whoever runs inside divides its folder further.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Doing, SandboxError, poll_until};

/// Where Linux systems have their hierarchies.
pub(super) const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) path: PathBuf,
    /// Version 2.
    pub(super) unified: bool,
    /// What to say to mount it again: `cpu,cpuacct` or `none,name=systemd`; empty for version 2.
    pub(super) options: String,
}

/// All hierarchies, each once.
pub(super) fn observe() -> Result<Vec<Hierarchy>, SandboxError> {
    let mountinfo = "/proc/self/mountinfo";
    Ok(parse(&fs::read_to_string(mountinfo).doing("read", mountinfo)?))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        let unified = match back.next() {
            Some("cgroup") => false,
            Some("cgroup2") => true,
            _ => continue,
        };
        let Some(path) = front.split(' ').nth(4).map(PathBuf::from) else { continue };
        let options = if unified { String::new() } else { version1_options(back.nth(1)) };
        let known = |other: &Hierarchy| other.path == path || other.options == options;
        if path.starts_with(MOUNT_POINT) && !found.iter().any(known) {
            found.push(Hierarchy { path, unified, options });
        }
    }
    found
}

/// What of the superblock's options names the hierarchy.
fn version1_options(superblock: Option<&str>) -> String {
    let names: Vec<&str> = superblock
        .unwrap_or_default()
        .split(',')
        .filter(|option| {
            !matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children")
                && !option.starts_with("release_agent=")
        })
        .collect();
    let has_name = names.iter().any(|option| option.starts_with("name="));
    if has_name { format!("none,{}", names.join(",")) } else { names.join(",") }
}

/// Makes the folder `cgroup` in every hierarchy and moves the calling process into it.
pub(super) fn enter(cgroup: &str) -> Result<(), SandboxError> {
    for hierarchy in observe()? {
        let mut folder = hierarchy.path.clone();
        for part in Path::new(cgroup) {
            if hierarchy.unified {
                delegate(&folder);
            }
            let parent = folder.clone();
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.doing("make the control group", folder.display())?,
            }
            fill_cpuset(&parent, &folder)?;
        }
        fs::write(folder.join("cgroup.procs"), "0")
            .doing("enter the control group", folder.display())?;
    }
    Ok(())
}

/// Does `work` with this whole process in the version 2 control group of another one: programs of the kernel's that
/// hang on the group, or on one above, see what is done. The process is back in its own afterwards.
pub fn in_group_of<T>(pid: i32, work: impl FnOnce() -> T) -> Result<T, SandboxError> {
    let Some(hierarchy) = observe()?.into_iter().find(|hierarchy| hierarchy.unified) else {
        return Ok(work());
    };
    let enter = |folder: &Path| {
        fs::write(folder.join("cgroup.procs"), "0")
            .doing("enter the control group", folder.display())
    };
    let own = group_of("self", &hierarchy)?;
    enter(&group_of(&pid.to_string(), &hierarchy)?)?;
    let done = work();
    enter(&own)?;
    Ok(done)
}

/// The folder of a process's version 2 control group.
fn group_of(process: &str, hierarchy: &Hierarchy) -> Result<PathBuf, SandboxError> {
    let file = format!("/proc/{process}/cgroup");
    let groups = fs::read_to_string(&file).doing("read", &file)?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok(hierarchy.path.join(group))
}

/// Lets the children of a version 2 group have every controller that it has itself.
pub(super) fn delegate(folder: &Path) {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One that cannot be had (such as cpu with real-time processes) must not cost the others.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A version 1 cpuset starts empty, and nothing can enter it then.
fn fill_cpuset(parent: &Path, folder: &Path) -> Result<(), SandboxError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = fs::read_to_string(folder.join(file)) else { continue };
        // Version 2 has files of this name too; empty means "the parent's" there.
        if folder.join("tasks").exists() && own.trim().is_empty() {
            let all = fs::read(parent.join(file)).doing("read", parent.join(file).display())?;
            fs::write(folder.join(file), all).doing("write", folder.join(file).display())?;
        }
    }
    Ok(())
}

/// Removes the folder `cgroup` from every hierarchy, with what is below it and in it, and each
/// parent that becomes empty.
pub(super) fn remove(cgroup: &str) -> Result<(), SandboxError> {
    for hierarchy in observe()? {
        let folder = hierarchy.path.join(cgroup);
        let gone = poll_until(Duration::from_secs(5), || {
            remove_tree(&folder);
            !folder.exists()
        });
        if !gone {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy))
                .doing("remove the control group", folder.display());
        }
        let mut parent = Path::new(cgroup).parent();
        while let Some(part) = parent.filter(|part| part.components().next().is_some()) {
            if fs::remove_dir(hierarchy.path.join(part)).is_err() {
                break;
            }
            parent = part.parent();
        }
    }
    Ok(())
}

/// One try to kill what is in a group and its children, and to remove them.
fn remove_tree(folder: &Path) {
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in inside.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, expected: &str) {
        let text: Vec<String> = parse(mountinfo)
            .iter()
            .map(|h| format!("{} {} `{}`", h.path.display(), h.unified, h.options))
            .collect();
        assert_eq!(text.join("\n"), expected);
    }

    #[test]
    fn finds_each_hierarchy_once() {
        check(
            "1 2 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             3 1 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             4 1 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
             5 1 0:32 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
             6 1 0:30 / /mnt/cpu rw - cgroup cgroup rw,cpu,cpuacct",
            "/sys/fs/cgroup/cpu,cpuacct false `cpu,cpuacct`\n\
             /sys/fs/cgroup/systemd false `none,name=systemd`\n\
             /sys/fs/cgroup/unified true ``",
        );
        check("7 8 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup true ``");
    }
}

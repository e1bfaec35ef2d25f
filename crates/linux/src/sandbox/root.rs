//! A sandbox's file system. Runs in its first process, in a mount namespace of its own.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::pivot_root,
};

use super::{
    Bind, Doing, FileSpec, SandboxError, SandboxSpec,
    cgroup::{self, Hierarchy},
};

/// Where the old root is while the new one takes its place.
const OLD: &str = ".old-root";

/// Settings of the whole machine, which no namespace has of its own, that eBPF data planes write when they start
/// (cilium/cilium, `pkg/datapath/loader/base.go`). The second cannot be taken back before the machine starts anew.
const GUARDED_SETTINGS: [&str; 2] =
    ["proc/sys/kernel/timer_migration", "proc/sys/kernel/unprivileged_bpf_disabled"];

/// Builds the root on the folder `base` and makes it the calling process's.
///
/// What is written below it goes to memory and ends with the sandbox, except below binds.
pub(super) fn enter(spec: &SandboxSpec, base: &Path) -> Result<(), SandboxError> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).doing("make private", "/")?;
    let root = overlay(base)?;
    bind_other_file_systems(&root)?;
    kernel_file_systems(&root)?;
    for bind in &spec.binds {
        apply_bind(&root, bind)?;
    }
    for file in &spec.files {
        write_file(&root, file)?;
    }
    let old = root.join(OLD);
    make_dir(&old)?;
    pivot_root(&root, &old).doing("change root to", root.display())?;
    std::env::set_current_dir("/").doing("enter", "/")?;
    let old = Path::new("/").join(OLD);
    umount2(&old, MntFlags::MNT_DETACH).doing("unmount", old.display())?;
    fs::remove_dir(&old).doing("remove", old.display())?;
    // Container runtimes and CSI plugins pass mounts on to pods (`HostToContainer`).
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).doing("make shared", "/")
}

/// The machine's root with a layer in memory above it.
fn overlay(base: &Path) -> Result<PathBuf, SandboxError> {
    mount_new("tmpfs", base, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| base.join(name));
    for dir in [&upper, &work, &root] {
        make_dir(dir)?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount_new("overlay", &root, &options)?;
    Ok(root)
}

/// An overlay shows one file system. Where programs live on others, those are bound.
fn bind_other_file_systems(root: &Path) -> Result<(), SandboxError> {
    let mountinfo = "/proc/self/mountinfo";
    let text = fs::read_to_string(mountinfo).doing("read", mountinfo)?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    for point in points.filter(|point| point.starts_with("/usr") || point.starts_with("/opt")) {
        if point.is_dir() {
            apply_bind(root, &Bind { source: point.clone(), target: point })?;
        }
    }
    Ok(())
}

fn kernel_file_systems(root: &Path) -> Result<(), SandboxError> {
    let hierarchies = cgroup::observe()?;
    mount_new("proc", &root.join("proc"), "")?;
    for setting in GUARDED_SETTINGS {
        guard(&root.join(setting))?;
    }
    // A fresh sysfs shows the devices of the network namespace that it is mounted in.
    mount_new("sysfs", &root.join("sys"), "")?;
    cgroups(root, &hierarchies)?;
    mount_new("bpf", &root.join("sys/fs/bpf"), "")?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/dev"), &root.join("dev"), None::<&str>, flags, None::<&str>)
        .doing("bind", "/dev")?;
    mount_new("tmpfs", &root.join("run"), "mode=755")?;
    make_dir(&root.join("run/lock"))?;
    mount_new("tmpfs", &root.join("tmp"), "mode=1777")
}

/// Lets a file be read and not written. One that this kernel doesn't have needs no guard.
fn guard(file: &Path) -> Result<(), SandboxError> {
    if !file.exists() {
        return Ok(());
    }
    let bind =
        |flags| mount(Some(file), file, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>);
    // The kernel takes no other flags in the step that binds.
    bind(MsFlags::empty()).doing("bind", file.display())?;
    bind(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).doing("make read-only", file.display())
}

/// The sandbox's own groups as the hierarchies' roots: its cgroup namespace sees to that.
fn cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<(), SandboxError> {
    let top = root.join(cgroup::MOUNT_POINT.trim_start_matches('/'));
    if let [Hierarchy { unified: true, path, .. }] = hierarchies
        && path == Path::new(cgroup::MOUNT_POINT)
    {
        mount_new("cgroup2", &top, "")?;
        return leave_the_top(&top);
    }
    mount_new("tmpfs", &top, "mode=755")?;
    for hierarchy in hierarchies {
        let Some(name) = hierarchy.path.file_name() else { continue };
        let target = top.join(name);
        make_dir(&target)?;
        let kind = if hierarchy.unified { "cgroup2" } else { "cgroup" };
        mount_new(kind, &target, &hierarchy.options)?;
        // `cpu` is also found where it shares a hierarchy, `cpu,cpuacct`.
        let controllers = hierarchy.options.split(',').filter(|option| {
            !matches!(*option, "" | "none") && !option.contains('=') && Path::new(option) != name
        });
        for part in controllers {
            let link = top.join(part);
            symlink(name, &link).doing("link", link.display())?;
        }
    }
    Ok(())
}

/// In version 2 a group with children that have controllers may not hold processes itself.
fn leave_the_top(top: &Path) -> Result<(), SandboxError> {
    let leaf = top.join("init");
    make_dir(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0").doing("enter the control group", leaf.display())?;
    cgroup::delegate(top);
    Ok(())
}

fn apply_bind(root: &Path, bind: &Bind) -> Result<(), SandboxError> {
    let target = inside(root, &bind.target);
    if bind.source.exists() && !bind.source.is_dir() {
        if let Some(parent) = target.parent() {
            make_dir(parent)?;
        }
        if !target.is_file() {
            fs::write(&target, "").doing("make", target.display())?;
        }
    } else {
        make_dir(&bind.source)?;
        make_dir(&target)?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&bind.source), &target, None::<&str>, flags, None::<&str>)
        .doing("bind", bind.source.display())
}

fn write_file(root: &Path, file: &FileSpec) -> Result<(), SandboxError> {
    let path = inside(root, &file.path);
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    // Not through a link: `/etc/resolv.conf` often is one, to a file of the machine's.
    match fs::remove_file(&path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).doing("replace", file.path.display());
        }
        _ => {}
    }
    fs::write(&path, &file.text).doing("write", file.path.display())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
        .doing("set the permissions of", file.path.display())
}

/// The path as seen from outside the new root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path).doing("make the folder", path.display())
}

fn mount_new(kind: &'static str, target: &Path, options: &str) -> Result<(), SandboxError> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options))
        .doing("mount", format!("{kind} at {}", target.display()))
}

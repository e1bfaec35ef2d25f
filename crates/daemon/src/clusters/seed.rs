//! What containerd keeps of Cilium's images, prepared once, so that a node begins with it: its files are linked, not
//! copied, and nodes share the memory that they are read into. Pulling and unpacking took 5 s and 0.8 GB for each
//! node, linking takes 0.1 s and nothing. Not here: how nodes pull what they lack.
//!
//! # Assumptions
//!
//! - containerd does not write into the files of layers and blobs, which are named after their digests. It
//!   writes into its databases (`*.db`), which are copied.
//! - A seed that is on another file system than the node's folder cannot be linked; such nodes pull.

use std::{
    fs, io,
    net::SocketAddrV4,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use cluster::{
    cache,
    images::{REGISTRY_PORT, Reference},
};
use vnet::host::names;

/// How often containerd is asked until it answers, every 50 ms.
const TRIES: u32 = 200;
/// The kubelet's images are in this namespace of containerd's.
const NAMESPACE: &str = "k8s.io";

/// Pulls images from the lab's registry into a folder that becomes `seed`, unless it is there. Each image is given by
/// where it is in the registry and the name by which pods ask for it. `run_dir` is the lab's, whose path is short
/// enough for a socket's. Older seeds go when nobody has used them of late: nodes that began with one have links of their
/// own to its files.
pub(super) fn prepare(
    lab: &str,
    run_dir: &Path,
    seed: &Path,
    images: &[(Reference, String)],
) -> io::Result<()> {
    let prepared = make(lab, run_dir, seed, images);
    cache::mark_used(seed);
    if let (Some(folder), Some(name)) = (seed.parent(), seed.file_name()) {
        cache::sweep(folder, |other| name != other);
    }
    prepared
}

fn make(lab: &str, run_dir: &Path, seed: &Path, images: &[(Reference, String)]) -> io::Result<()> {
    if seed.exists() {
        return Ok(());
    }
    let scratch = seed.with_added_extension(format!("{}.tmp", std::process::id()));
    fs::create_dir_all(&scratch)?;
    fs::create_dir_all(run_dir)?;
    let socket = run_dir.join("seed.sock");
    let prepared =
        pull(lab, &scratch, &socket, images).and_then(|()| fs::rename(scratch.join("root"), seed));
    let removed = fs::remove_dir_all(&scratch);
    match prepared {
        // Another lab was sooner.
        Err(_) if seed.exists() => Ok(()),
        other => other.and(removed),
    }
}

fn pull(lab: &str, folder: &Path, socket: &Path, images: &[(Reference, String)]) -> io::Result<()> {
    let config = format!(
        "version = 2\nroot = '{}'\nstate = '{}'\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
         [grpc]\naddress = '{}'\n",
        folder.join("root").display(),
        folder.join("state").display(),
        socket.display()
    );
    let config_path = folder.join("config.toml");
    fs::write(&config_path, config)?;
    let log = fs::File::create(folder.join("log"))?;
    // `ip netns exec` has a mount namespace of its own: what containerd mounts is not seen on the machine.
    let netns = names::internet_ns(lab);
    let containerd = Command::new("ip")
        .args(["netns", "exec", &netns, "setpriv", "--pdeathsig", "TERM", "containerd", "--config"])
        .arg(&config_path)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut containerd = Running(containerd);
    let ctr = |args: &[&str]| -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns, "ctr", "--namespace", NAMESPACE, "--address"]);
        let output = command.arg(socket).args(["--connect-timeout", "1s"]).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
    };
    let mut answer = ctr(&["version"]);
    for _ in 0..TRIES {
        if answer.is_ok() {
            break;
        }
        if let Some(status) = containerd.0.try_wait()? {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            let last = log.lines().next_back().unwrap_or_default();
            return Err(io::Error::other(format!("containerd ended ({status}): {last}")));
        }
        thread::sleep(Duration::from_millis(50));
        answer = ctr(&["version"]);
    }
    answer?;
    let registry = SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT);
    for (reference, name) in images {
        let pulled = format!("{registry}/{reference}");
        ctr(&["images", "pull", "--plain-http", &pulled])?;
        ctr(&["images", "tag", &pulled, name])?;
        ctr(&["images", "rm", &pulled])?;
    }
    containerd.stop()
}

/// containerd, which ends with this.
struct Running(Child);

impl Running {
    /// Ends it as it wants to be ended, so that its databases are closed.
    fn stop(&mut self) -> io::Result<()> {
        let pid = self.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both say nothing new about one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives a seed to a node whose folder of containerd's is empty or not there; says whether it did. Where it cannot,
/// the node is as it was.
pub(super) fn plant(seed: &Path, root: &Path) -> io::Result<bool> {
    let is_empty = match fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_none(),
        Err(err) => err.kind() == io::ErrorKind::NotFound,
    };
    if !is_empty || !seed.is_dir() {
        return Ok(false);
    }
    cache::mark_used(seed);
    let beside: PathBuf = root.with_added_extension("new");
    // Left by a call that was interrupted.
    let _ = fs::remove_dir_all(&beside);
    if let Some(parent) = beside.parent() {
        fs::create_dir_all(parent)?;
    }
    let planted = link(seed, &beside).and_then(|()| fs::rename(&beside, root));
    if planted.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    match planted {
        Err(err) if err.kind() == io::ErrorKind::CrossesDevices => Ok(false),
        other => other.map(|()| true),
    }
}

/// Makes the same tree, with the same files but for databases.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            link(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if source.extension().is_some_and(|extension| extension == "db") {
            fs::copy(&source, &target)?;
        } else {
            fs::hard_link(&source, &target)?;
        }
    }
    // Last: some may not be written into.
    fs::set_permissions(to, fs::Permissions::from_mode(fs::metadata(from)?.permissions().mode()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_node_begins_with_the_same_files_and_databases_of_its_own() {
        let dir = std::env::temp_dir().join(format!("aksnet-test-seed-{}", std::process::id()));
        let (seed, root) = (dir.join("seed"), dir.join("node/containerd"));
        fs::create_dir_all(seed.join("layer/bin")).expect("a folder");
        fs::write(seed.join("layer/bin/busybox"), "program").expect("written");
        symlink("busybox", seed.join("layer/bin/sh")).expect("linked");
        fs::set_permissions(seed.join("layer"), fs::Permissions::from_mode(0o1711)).expect("set");
        fs::write(seed.join("meta.db"), "database").expect("written");
        fs::create_dir_all(&root).expect("a folder");

        assert!(plant(&seed, &root).expect("planted"), "an empty folder is taken");
        let inode = |path: &Path| fs::metadata(path).expect("there").ino();
        let same = |name: &str| inode(&seed.join(name)) == inode(&root.join(name));
        assert!(same("layer/bin/busybox"));
        assert!(!same("meta.db"));
        assert_eq!(fs::read_link(root.join("layer/bin/sh")).expect("a link"), Path::new("busybox"));
        let mode = fs::metadata(root.join("layer")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o1711);

        fs::remove_file(root.join("layer/bin/busybox")).expect("removed");
        assert!(!plant(&seed, &root).expect("asked"), "a node that has run keeps what it has");
        assert!(!root.join("layer/bin/busybox").exists());
        assert!(!plant(&dir.join("none"), &dir.join("other")).expect("asked"), "no seed");
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn older_seeds_go_when_nobody_uses_them_and_nodes_keep_what_they_have() {
        let dir = std::env::temp_dir().join(format!("aksnet-test-seeds-{}", std::process::id()));
        let path = |name: &str| dir.join("containerd").join(name);
        let long_ago = std::time::SystemTime::now() - Duration::from_hours(48);
        for name in ["older", "left.4711.tmp", "other", "now"] {
            fs::create_dir_all(path(name).join("layer")).expect("made");
            fs::write(path(name).join("layer/busybox"), name).expect("written");
            let folder = fs::File::open(path(name)).expect("there");
            folder.set_modified(long_ago).expect("set");
        }
        // A node of another lab's began with this one long ago, and another one just now.
        assert!(plant(&path("older"), &dir.join("node")).expect("planted"));
        let folder = fs::File::open(path("older")).expect("there");
        folder.set_modified(long_ago).expect("set");
        assert!(plant(&path("other"), &dir.join("another")).expect("planted"));
        prepare("nolab", &dir.join("run"), &path("now"), &[]).expect("there already");
        let is_there = |name: &str| path(name).exists();
        assert!(is_there("now") && is_there("other"));
        assert!(!is_there("older") && !is_there("left.4711.tmp"));
        let kept = fs::read_to_string(dir.join("node/layer/busybox")).expect("kept");
        assert_eq!(kept, "older");
        fs::remove_dir_all(&dir).expect("removed");
    }
}

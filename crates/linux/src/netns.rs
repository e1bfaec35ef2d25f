//! Named network namespaces, as `ip netns` has them: a bind mount of the namespace below `/run/netns`.
//!
//! A thread that enters a namespace is made for it and ends with it, so that no other code ever finds
//! itself in the wrong one.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags},
    poll::{PollFd, PollFlags, PollTimeout},
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket, sockopt,
        },
        statfs::{FsType, fstatfs, statfs},
    },
    unistd::Pid,
};

use crate::LinuxError;

mod folder;

pub use self::folder::Folder;

/// Where namespaces are mounted.
pub const DIRECTORY: &str = "/run/netns";

/// The file system that namespaces are files of (`NSFS_MAGIC`, linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace. It stays alive while this value does, even when its name is gone.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: OwnedFd,
}

impl Netns {
    /// Makes a namespace of this name, or opens the one that is there.
    pub fn ensure(name: &str) -> Result<Self, LinuxError> {
        match Self::open(name) {
            Err(LinuxError::NoNamespace { .. }) => Self::create(name),
            other => other,
        }
    }

    /// Makes a namespace of this name, which no namespace has yet.
    pub fn create(name: &str) -> Result<Self, LinuxError> {
        prepare_directory()?;
        Self::mount_at(&path(name))?;
        Self::open(name)
    }

    /// Makes a namespace and mounts it on `path`, which no namespace is mounted on yet.
    fn mount_at(path: &Path) -> Result<(), LinuxError> {
        let file = |verb, source| LinuxError::File { verb, path: path.to_owned(), source };
        match fs::OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => {}
            // Left behind when a creation was killed between this and the mount.
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists && !is_namespace(path) => {}
            Err(err) => return Err(file("making", err)),
        }
        on_a_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), path, MsFlags::MS_BIND)
        })?
        .map_err(|source| file("mounting a namespace on", source.into()))
    }

    /// Opens the namespace of this name.
    pub fn open(name: &str) -> Result<Self, LinuxError> {
        let path = path(name);
        let missing = || LinuxError::NoNamespace { name: name.to_owned() };
        let namespace = Self::at(&path, name).map_err(|err| match err {
            LinuxError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                missing()
            }
            err => err,
        })?;
        match fstatfs(&namespace.file) {
            Ok(stat) if stat.filesystem_type() == NSFS => Ok(namespace),
            _ => Err(missing()),
        }
    }

    /// Opens a namespace by any path to it, such as `/proc/PID/ns/net`; `name` is for messages.
    pub fn at(path: &Path, name: &str) -> Result<Self, LinuxError> {
        let file = fs::File::open(path).map_err(|source| LinuxError::File {
            verb: "opening",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { name: name.to_owned(), file: file.into() })
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self, LinuxError> {
        Self::at(Path::new("/proc/thread-self/ns/net"), "(current)")
    }

    /// Removes the name. The namespace goes when the last process and file in it do. Success when there is none.
    pub fn delete(name: &str) -> Result<(), LinuxError> {
        Self::unmount_from(&path(name))
    }

    fn unmount_from(path: &Path) -> Result<(), LinuxError> {
        // Twice mounted names exist after crashes of other programs; each mount is one more turn.
        while is_namespace(path) {
            nix::mount::umount2(path, MntFlags::MNT_DETACH).map_err(|source| LinuxError::File {
                verb: "unmounting",
                path: path.to_owned(),
                source: source.into(),
            })?;
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LinuxError::File { verb: "removing", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Ends all processes that are in these namespaces, at once: those that somebody has begun there, and that would go on
    /// in a network that nobody can name any more. A process counts by its first thread. Namespaces that are not there are
    /// fine.
    pub fn clear<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), LinuxError> {
        let number = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let wanted: BTreeSet<_> =
            names.into_iter().filter_map(|name| number(&self::path(name))).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let processes = fs::read_dir("/proc").map_err(|source| LinuxError::File {
            verb: "listing",
            path: PathBuf::from("/proc"),
            source,
        })?;
        for process in processes.filter_map(Result::ok) {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if number(&process.path().join("ns/net")).is_some_and(|at| wanted.contains(&at)) {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        Ok(())
    }

    /// The names of all namespaces, sorted.
    pub fn list() -> Result<Vec<String>, LinuxError> {
        let directory = Path::new(DIRECTORY);
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                return Err(LinuxError::File {
                    verb: "listing",
                    path: directory.to_owned(),
                    source,
                });
            }
        };
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| is_namespace(&entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same namespace, opened once more.
    pub fn try_clone(&self) -> Result<Self, LinuxError> {
        let file = self.file.try_clone().map_err(|source| LinuxError::File {
            verb: "opening",
            path: PathBuf::from(&self.name),
            source,
        })?;
        Ok(Self { name: self.name.clone(), file })
    }

    /// Whether both are one namespace, whatever their names: a name can have become another one's.
    pub fn is_same(&self, other: &Self) -> Result<bool, LinuxError> {
        let number = |of: &Self| {
            let stat = nix::sys::stat::fstat(&of.file).map_err(|source| LinuxError::Call {
                what: format!("looking at `{}`", of.name),
                source,
            })?;
            Ok::<_, LinuxError>((stat.st_dev, stat.st_ino))
        };
        Ok(number(self)? == number(other)?)
    }

    /// Takes the calling thread into the namespace, for good: only a thread that was made to do so may.
    pub fn enter(&self) -> Result<(), LinuxError> {
        nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|source| LinuxError::Call {
            what: format!("entering `{}`", self.name),
            source,
        })
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LinuxError> {
        on_a_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// The same, where `/etc/resolv.conf` has this text: for the thread, and for programs that it starts. Nobody
    /// else sees it, and it is gone with them. Where the machine has no such file, there is none either.
    pub fn run_with_resolver<T: Send>(
        &self,
        text: &str,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, LinuxError> {
        self.run(|| {
            put_resolver(text)?;
            Ok(work())
        })?
    }

    /// A TCP connection from inside the namespace. `source` chooses the address that it comes from.
    pub fn tcp_connect(
        &self,
        source: Option<std::net::Ipv4Addr>,
        to: SocketAddrV4,
        timeout: Duration,
    ) -> Result<TcpStream, LinuxError> {
        let source = source.map(|source| SocketAddrV4::new(source, 0).into());
        self.tcp_connect_from(source, to.into(), timeout)
    }

    /// The same in either family. A `source` that is link-local has the number of its link as its scope.
    pub fn tcp_connect_from(
        &self,
        source: Option<SocketAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<TcpStream, LinuxError> {
        let socket = self.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = socket(family, SockType::Stream, flags, None)?;
            if let Some(source) = source {
                bind_to(&socket, source)?;
            }
            Ok::<_, Errno>(socket)
        })?;
        let failed = |source| LinuxError::Call {
            what: format!("connecting from `{}` to {to}", self.name),
            source,
        };
        let socket = socket.map_err(failed)?;
        finish_connect(&socket, to, timeout).map_err(failed)?;
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false).map_err(|source| LinuxError::Socket { source })?;
        Ok(stream)
    }

    /// A TCP listener inside the namespace.
    pub fn tcp_listen(&self, at: SocketAddrV4) -> Result<TcpListener, LinuxError> {
        self.tcp_listen_at(at.into())
    }

    /// The same in either family. One of IPv6 that is for every address is for IPv4, too.
    pub fn tcp_listen_at(&self, at: SocketAddr) -> Result<TcpListener, LinuxError> {
        self.run(|| TcpListener::bind(at))?.map_err(|err| self.socket_error("listening", at, &err))
    }

    /// A UDP socket inside the namespace.
    pub fn udp_bind(&self, at: SocketAddrV4) -> Result<UdpSocket, LinuxError> {
        self.run(|| UdpSocket::bind(SocketAddr::V4(at)))?
            .map_err(|err| self.socket_error("binding", at.into(), &err))
    }

    fn socket_error(&self, verb: &str, at: SocketAddr, err: &io::Error) -> LinuxError {
        LinuxError::Call {
            what: format!("{verb} in `{}` on {at}", self.name),
            source: Errno::from_raw(err.raw_os_error().unwrap_or_default()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where a namespace of this name is mounted.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LinuxError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .spawn_scoped(scope, work)
            .map_err(|source| LinuxError::Thread { source })?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

fn mount(source: Option<&str>, target: &Path, flags: MsFlags) -> Result<(), Errno> {
    nix::mount::mount(source, target, Some("none"), flags, None::<&str>)
}

/// Lays a file of this text over `/etc/resolv.conf`, in a mount namespace that is the calling thread's own.
fn put_resolver(text: &str) -> Result<(), LinuxError> {
    // Often a link, and then to a file of some service; what it leads to is what programs read.
    let Ok(target) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| LinuxError::Call { what, source }
    };
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(failed("leaving the mount namespace"))?;
    let ours = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None, Path::new("/"), ours).map_err(failed("keeping mounts to oneself"))?;
    let id = nix::unistd::gettid();
    let source = Path::new("/run").join(format!(".aksnet-resolv.conf-{id}"));
    let file = |verb, source_path: &Path| {
        let path = source_path.to_owned();
        move |source| LinuxError::File { verb, path, source }
    };
    fs::write(&source, text).map_err(file("writing", &source))?;
    let from = source.to_str();
    let laid = nix::mount::mount(from, &target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    // The mount keeps the file alive.
    fs::remove_file(&source).map_err(file("removing", &source))?;
    laid.map_err(|err| file("mounting over", &target)(err.into()))
}

/// Makes `/run/netns` a mount whose changes reach other mount namespaces, as `ip netns add` does, so
/// that a namespace removed here does not live on there.
fn prepare_directory() -> Result<(), LinuxError> {
    let directory = Path::new(DIRECTORY);
    let file = |verb| {
        move |source: io::Error| LinuxError::File { verb, path: directory.to_owned(), source }
    };
    fs::create_dir_all(directory).map_err(file("making"))?;
    let share = || mount(None, directory, MsFlags::MS_SHARED | MsFlags::MS_REC);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), directory, MsFlags::MS_BIND | MsFlags::MS_REC)
                .map_err(|err| file("mounting")(err.into()))?;
            share()
        }
        other => other,
    }
    .map_err(|err| file("sharing")(err.into()))
}

fn bind_to(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    bind(socket.as_raw_fd(), &as_kernels(at))
}

fn as_kernels(address: SocketAddr) -> SockaddrStorage {
    match address {
        SocketAddr::V4(address) => address.into(),
        SocketAddr::V6(address) => address.into(),
    }
}

fn finish_connect(socket: &OwnedFd, to: SocketAddr, timeout: Duration) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    match connect(socket.as_raw_fd(), &as_kernels(to)) {
        Ok(()) => return Ok(()),
        Err(Errno::EINPROGRESS) => {}
        Err(err) => return Err(err),
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    if nix::poll::poll(&mut fds, timeout)? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    match nix::sys::socket::getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        number => Err(Errno::from_raw(number)),
    }
}

//! Kernel settings of a namespace: `/proc/sys/net` shows those of the thread that looks.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    libc,
    sys::stat::Mode,
};

use crate::{LinuxError, netns::Netns};

/// The values of those settings that exist.
pub(super) fn read<'a>(
    namespace: &Netns,
    names: impl Iterator<Item = &'a str> + Send,
) -> Result<BTreeMap<String, String>, LinuxError> {
    namespace.run(move || {
        let settings = Settings::open()?;
        let mut values = BTreeMap::new();
        for name in names {
            match settings.read(name) {
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
        let settings = Settings::open()?;
        for (name, value) in values {
            settings.write(name, value).map_err(|source| LinuxError::File {
                verb: "writing",
                path: path(name),
                source,
            })?;
        }
        Ok(())
    })?
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);
/// How the names of a namespace's settings begin.
const OF_NAMESPACE: &str = "net/";

/// So many namespaces' settings are looked for in one `/proc`.
const FEW: u32 = 64;

/// The directory of a namespace's settings, of the thread that opened it.
///
/// All namespaces' directories have one name in one parent, and the kernel looks for the right one among those that were
/// ever opened (`proc_sys_compare`, `fs/proc/proc_sysctl.c`): half a millisecond where there are a thousand. So it is
/// opened once, and in a `/proc` where few others were.
struct Settings(OwnedFd);

impl Settings {
    fn open() -> Result<Self, LinuxError> {
        // Who may not mount has the one that everybody has.
        let directory = Self::in_own_proc()
            .or_else(|_| open("/proc/sys/net", DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()));
        directory.map(Self).map_err(|source| LinuxError::File {
            verb: "opening",
            path: path(OF_NAMESPACE),
            source: source.into(),
        })
    }

    fn in_own_proc() -> nix::Result<OwnedFd> {
        static PROC: Mutex<Option<(OwnedFd, u32)>> = Mutex::new(None);
        let mut kept = PROC.lock().unwrap_or_else(PoisonError::into_inner);
        let (proc, n_opened) = match kept.take() {
            Some((proc, n_opened)) if n_opened < FEW => (proc, n_opened),
            _ => (mount_proc()?, 0),
        };
        let directory = openat(&proc, "sys/net", DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        *kept = Some((proc, n_opened + 1));
        Ok(directory)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut value = String::new();
        self.file(name, OFlag::O_RDONLY)?.read_to_string(&mut value)?;
        Ok(value)
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        self.file(name, OFlag::O_WRONLY)?.write_all(value.as_bytes())
    }

    fn file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        // A setting that is not a namespace's has a whole path, which says on its own where it is.
        let path = name.strip_prefix(OF_NAMESPACE).map_or_else(|| path(name), PathBuf::from);
        let file = openat(&self.0, &path, flags | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(file.into())
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` (`include/uapi/linux/mount.h`; also the next).
const CLOSE_ON_EXEC: libc::c_uint = 1;
/// `FSCONFIG_CMD_CREATE`.
const CREATE: libc::c_uint = 6;

/// A `/proc` that is nowhere in the file system, and goes with the last file that is open in it.
#[allow(unsafe_code, reason = "nix cannot mount without a place")]
fn mount_proc() -> nix::Result<OwnedFd> {
    // SAFETY: the kernel has read the text when it returns, and gives descriptors that nobody else has.
    unsafe {
        let nothing = std::ptr::null::<libc::c_char>();
        let context = libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOSE_ON_EXEC);
        let context = OwnedFd::from_raw_fd(descriptor(context)?);
        let at = context.as_raw_fd();
        Errno::result(libc::syscall(libc::SYS_fsconfig, at, CREATE, nothing, nothing, 0))?;
        let mounted = libc::syscall(libc::SYS_fsmount, at, CLOSE_ON_EXEC, 0);
        Ok(OwnedFd::from_raw_fd(descriptor(mounted)?))
    }
}

fn descriptor(answer: libc::c_long) -> nix::Result<RawFd> {
    RawFd::try_from(Errno::result(answer)?).map_err(|_| Errno::EBADF)
}

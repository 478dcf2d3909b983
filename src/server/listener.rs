//! The socket that clients connect to: made safely, and taken away at the end.
//!
//! A path in the file system says nothing about who made it, so three things are told apart. A
//! socket that refuses connections was left behind by a store that died, and is replaced. One that
//! accepts them belongs to somebody alive, and is an error. Anything else is never touched.
//!
//! Between looking and replacing another store could do the same. So each store first binds a
//! second socket in the kernel's abstract namespace, whose name is made of the directory's identity
//! (device and inode: other spellings, links and bind mounts give the same) and the file's name.
//! The kernel lets one process have it and takes it back at that process's end, however it ends: no
//! lock file stays behind, and nobody waits. The store keeps it for life, so it is also found when
//! somebody has removed the file of its socket. Three limits: the name is seen in one network
//! namespace only (two containers that share a directory are kept apart by the connection test
//! alone); a process forked from a store's program holds it as long as it lives; and another user
//! can take it to keep a store from starting. Whoever has it is named in the error.
//!
//! The file gets its permissions before it has a name: the kernel makes it with the mode of the
//! unbound socket less the umask, so there is no moment in which it is wider than asked for,
//! and the umask, which belongs to all threads, stays as it is. What the umask took away is added
//! afterwards, when the file has got its group.
//!
//! It knows nothing about what is said on the socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{AccessFlags, faccessat};

use crate::limits::{LISTEN_BACKLOG, SOCKET_PATH_BYTES_MAX};

#[cfg(test)]
pub(super) mod tests;

/// Queue of the abstract socket.
const LOCK_BACKLOG: i32 = 16;

/// The file of a listening socket. Dropping it removes the file, if it is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file as it was made.
    identity: (u64, u64),
    /// The abstract socket. Released after the file is gone, so that nobody sees the one without
    /// the other.
    _lock: OwnedFd,
}

/// The socket cannot be made. Nothing that was there before has been changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each is")]
pub enum ListenError {
    /// No file can be made there.
    #[error(
        "-s {path:?}: cannot make a file in {directory:?}: {reason}; create that directory, mend \
         its permissions, or choose another socket with -s"
    )]
    Directory { path: PathBuf, directory: PathBuf, reason: Errno },
    /// Something else has that name.
    #[error(
        "-s {0:?}: this exists and is not a socket; it was left alone: remove it yourself, or \
         choose another socket with -s"
    )]
    NotASocket(PathBuf),
    /// Somebody alive has that name.
    #[error(
        "-s {path:?}: {} has this socket; stop it, or choose another socket with -s",
        .process.map_or_else(
            || "another process".to_owned(),
            |pid| format!("a live store or program (process {pid})")
        )
    )]
    InUse {
        path: PathBuf,
        /// Who, if the system tells.
        process: Option<i32>,
    },
    /// It cannot be found out whether somebody has that name.
    #[error(
        "-s {path:?}: cannot find out whether this socket is in use: {reason}; remove it, or \
         choose another socket with -s"
    )]
    Unknown { path: PathBuf, reason: Errno },
    /// The system refused a step.
    #[error("-s {path:?}: cannot {step}: {reason}; choose another socket with -s")]
    System { path: PathBuf, step: &'static str, reason: Errno },
}

/// Binds the path and listens. A stale socket is replaced. From now on clients can connect, and
/// wait in the queue until they are accepted. Accepting does not block. The file should be kept as
/// long as the socket is used.
///
/// # Errors
/// The path cannot be used, or somebody else uses it.
pub fn bind(
    path: &Path,
    mode: u32,
    group: Option<u32>,
) -> Result<(UnixListener, SocketFile), ListenError> {
    check(path)?;
    let lock = lock(path)?;
    // Again, for another store may have come and gone, and now none can.
    if is_stale(path)? {
        remove_stale(path)?;
    }

    let socket = bind_socket(path, mode).map_err(failed(path, "bind it"))?;
    // From here on dropping it removes the file.
    let file = SocketFile::new(path, lock).map_err(failed(path, "find it again"))?;
    // Nobody can connect before it listens.
    if let Some(group) = group {
        lchown(path, None, Some(group)).map_err(failed(path, "give it to that group"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(failed(path, "set its mode"))?;
    let listens = Backlog::new(LISTEN_BACKLOG).and_then(|queue| socket::listen(&socket, queue));
    listens.map_err(failed(path, "listen on it"))?;
    Ok((UnixListener::from(socket), file))
}

impl SocketFile {
    fn new(path: &Path, lock: OwnedFd) -> io::Result<Self> {
        // Absolute, so that it is the same file whatever becomes of the working directory.
        let path = std::path::absolute(path)?;
        let identity = identity(&path)?;
        Ok(Self { path, identity, _lock: lock })
    }

    /// Removes the file if it is still the one that was made, and says whether it was. After that
    /// another store may have the path.
    fn remove(&self) -> io::Result<bool> {
        // The kernel keeps the inode as long as the socket is open, so its number cannot have been
        // given to another file.
        match identity(&self.path) {
            Ok(found) if found == self.identity => fs::remove_file(&self.path).map(|()| true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!("cannot remove the socket {:?}: {error}", self.path);
        }
    }
}

/// Whether a socket can be made there, as far as can be seen without making one.
///
/// # Errors
/// As [`bind`].
pub(super) fn check(path: &Path) -> Result<(), ListenError> {
    check_path(path)?;
    is_stale(path).map(|_| ())
}

/// Whether this is a directory in which this process may make files.
pub(super) fn check_writable(directory: &Path) -> nix::Result<()> {
    if !fs::metadata(directory).map_err(|error| errno(&error))?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(AT_FDCWD, directory, wanted, AtFlags::AT_EACCESS)
}

/// Whether the directory can take a file of that name, and whatever has the name is a socket.
fn check_path(path: &Path) -> Result<(), ListenError> {
    let directory = directory_of(path);
    check_writable(directory).map_err(|reason| ListenError::Directory {
        path: path.to_owned(),
        directory: directory.to_owned(),
        reason,
    })?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => Err(ListenError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ListenError::Unknown { path: path.to_owned(), reason: errno(&error) }),
    }
}

/// Takes the abstract socket that stands for the path.
fn lock(path: &Path) -> Result<OwnedFd, ListenError> {
    let failed = failed(path, "lock it");
    let address = lock_address(path).map_err(&failed)?;
    let lock = new_socket().map_err(io::Error::from).map_err(&failed)?;
    match socket::bind(lock.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => {
            let process = try_connect(&address).unwrap_or(None);
            return Err(ListenError::InUse { path: path.to_owned(), process });
        }
        Err(reason) => return Err(failed(reason.into())),
    }
    // It listens only so that those who come too late can ask the kernel who was first. Nobody
    // accepts them, so the queue is short.
    let listens = Backlog::new(LOCK_BACKLOG).and_then(|few| socket::listen(&lock, few));
    listens.map_err(|error| failed(error.into()))?;
    Ok(lock)
}

fn lock_address(path: &Path) -> io::Result<UnixAddr> {
    let directory = fs::metadata(directory_of(path))?;
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let mut address =
        format!("plasma_store:{:x}:{:x}:", directory.dev(), directory.ino()).into_bytes();
    address.extend_from_slice(name.as_encoded_bytes());
    // Two very long names in one directory that begin alike exclude each other needlessly.
    address.truncate(SOCKET_PATH_BYTES_MAX);
    Ok(UnixAddr::new_abstract(&address)?)
}

/// Whether there is a socket on which nobody listens; an error if somebody does.
fn is_stale(path: &Path) -> Result<bool, ListenError> {
    match UnixAddr::new(path).and_then(|address| try_connect(&address)) {
        Ok(process) => Err(ListenError::InUse { path: path.to_owned(), process }),
        Err(Errno::ENOENT) => Ok(false),
        Err(Errno::ECONNREFUSED) => Ok(true),
        Err(reason) => Err(ListenError::Unknown { path: path.to_owned(), reason }),
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    // Once more, for a file of another kind refuses connections as well.
    check_path(path)?;
    log::info!("replacing the stale socket {path:?}");
    fs::remove_file(path).map_err(failed(path, "remove the stale socket"))
}

/// Connects and hangs up. `Ok` means that somebody lives there, with the process if known.
fn try_connect(address: &UnixAddr) -> nix::Result<Option<i32>> {
    let probe = new_socket()?;
    match socket::connect(probe.as_raw_fd(), address) {
        Ok(()) => {
            let peer = socket::getsockopt(&probe, sockopt::PeerCredentials).ok();
            // 0 stands for a process that this one's namespace does not show.
            Ok(peer.map(|peer| peer.pid()).filter(|pid| *pid != 0))
        }
        // A full queue, or a socket of another type: alive, but it will not talk.
        Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A socket bound to the path; its file's mode is `mode` less the umask from the first moment.
fn bind_socket(path: &Path, mode: u32) -> nix::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let socket = new_socket()?;
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    socket::bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// The system refused this step.
fn failed<E: Into<io::Error>>(path: &Path, step: &'static str) -> impl Fn(E) -> ListenError {
    move |error| ListenError::System { path: path.to_owned(), step, reason: errno(&error.into()) }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

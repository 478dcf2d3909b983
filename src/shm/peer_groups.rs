//! The groups of the process at the other end of a socket, which the system knows and nix cannot
//! ask for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups that most processes have at most.
const GROUPS_USUAL: usize = 64;

/// The supplementary groups that the peer of a unix socket had when it connected.
///
/// # Errors
/// The system does not tell: it is too old (Linux before 4.13), or this is no such socket.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_USUAL];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut bytes = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: `groups` has `bytes` bytes to write to, and so the kernel writes at most as many,
        // and how many they are to `bytes`. Every bit pattern is a `gid_t`.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let error = (outcome != 0).then(io::Error::last_os_error);
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        match error {
            None => {
                groups.truncate(count);
                return Ok(groups);
            }
            // There are more of them, so many.
            Some(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            Some(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use nix::unistd::getgroups;

    use super::*;

    #[test]
    fn our_own_are_those_that_we_have() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let own = getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw);
        let sorted = |mut groups: Vec<u32>| {
            groups.sort_unstable();
            groups
        };
        assert_eq!(sorted(peer_groups(&socket).unwrap()), sorted(own.collect()));
        peer_groups(File::open("/dev/null").unwrap()).unwrap_err();
    }
}

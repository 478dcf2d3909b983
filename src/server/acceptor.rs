//! New connections: taken out of the listen queue, unless there is no room for them.
//!
//! The selector reports the listening socket once when the queue gets something, so it is
//! remembered here whether the queue may still have some. When descriptors or memory run out, the
//! queue is left alone for a while: trying again at once would fail again, and fill the log with
//! it. Nobody is turned away: who cannot be accepted waits in the queue. (Only a connection that
//! was accepted and then cannot be watched for want of kernel memory is lost.) What becomes of a
//! connection is not known here.

use std::io;

use mio::net::{UnixListener, UnixStream};
use nix::errno::Errno;

use super::metrics::ServerCounters;
use crate::limits;
use crate::time::Timestamp;

/// What is known of the listen queue, and whether it may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// It was found empty. The selector says when that changes.
    Empty,
    /// It may have connections.
    Pending,
    /// It has one that could not be accepted. Tried again then, or when a connection is closed.
    Paused { until: Timestamp },
    /// It may have connections, but too many are connected. Tried again when one is closed.
    Full,
}

#[derive(Debug)]
pub struct Acceptor {
    listener: UnixListener,
    queue: Queue,
    /// There has been no room since the queue was last empty, and the log has a line about it.
    is_short: bool,
}

impl Acceptor {
    /// An acceptor for a socket that is watched by the selector.
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, queue: Queue::Empty, is_short: false }
    }

    /// The selector says that the queue has got something.
    pub fn note_arrival(&mut self) {
        if self.queue == Queue::Empty {
            self.queue = Queue::Pending;
        }
    }

    /// A connection was closed, so there may be room.
    pub fn note_departure(&mut self) {
        if matches!(self.queue, Queue::Paused { .. } | Queue::Full) {
            self.queue = Queue::Pending;
        }
    }

    /// Whether there may be something to accept right now.
    pub fn is_pending(&self) -> bool {
        self.queue == Queue::Pending
    }

    /// When a pause ends.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if let Queue::Paused { until } = self.queue { Some(until) } else { None }
    }

    /// The next new connection, if there is one and there is room for it beside those that are
    /// connected.
    pub fn accept(
        &mut self,
        connected: usize,
        now: Timestamp,
        counters: &mut ServerCounters,
    ) -> Option<UnixStream> {
        if self.next_deadline().is_some_and(|until| until <= now) {
            self.queue = Queue::Pending;
        }
        while self.is_pending() {
            if connected >= limits::CLIENTS_MAX {
                self.queue = Queue::Full;
                self.leave_waiting("as many as there may be are connected", counters);
                break;
            }
            match self.listener.accept() {
                Ok((socket, _)) => return Some(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue = Queue::Empty;
                    self.is_short = false;
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => self.pause(&error, now, counters),
            }
        }
        None
    }

    /// The system has no room for a connection: looks at the queue again some time later.
    pub fn pause(&mut self, error: &io::Error, now: Timestamp, counters: &mut ServerCounters) {
        self.queue = Queue::Paused { until: now.after(limits::ACCEPT_PAUSE) };
        self.leave_waiting(error, counters);
    }

    fn leave_waiting(&mut self, reason: impl std::fmt::Display, counters: &mut ServerCounters) {
        counters.accepts_refused += 1;
        if !self.is_short {
            self.is_short = true;
            log::warn!("cannot accept new clients for now, they wait: {reason}");
        }
    }
}

/// Whether accepting failed because of the one connection that was at the head of the queue.
fn is_of_the_peer(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::net::UnixStream as Peer;

    const NOW: Timestamp = Timestamp::from_nanos(1_000_000);

    fn acceptor() -> (tempfile::TempDir, Acceptor, impl Fn() -> Peer) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let acceptor = Acceptor::new(UnixListener::bind(&path).unwrap());
        (directory, acceptor, move || Peer::connect(&path).unwrap())
    }

    #[test]
    fn an_exhausted_system_is_asked_again_after_a_pause_or_a_departure() {
        let (_directory, mut acceptor, connect) = acceptor();
        let mut counters = ServerCounters::default();
        let _peers = [connect(), connect()];
        acceptor.note_arrival();

        acceptor.pause(&Errno::EMFILE.into(), NOW, &mut counters);
        acceptor.note_arrival();
        assert!(!acceptor.is_pending(), "a pause is no busy loop");
        assert!(acceptor.accept(0, NOW, &mut counters).is_none());
        let until = acceptor.next_deadline().unwrap();
        assert!(acceptor.accept(0, until, &mut counters).is_some());

        acceptor.pause(&Errno::EMFILE.into(), NOW, &mut counters);
        acceptor.note_departure();
        assert!(acceptor.is_pending());
        assert!(acceptor.accept(0, NOW, &mut counters).is_some());
        assert!(acceptor.accept(0, NOW, &mut counters).is_none());
        assert!(!acceptor.is_pending() && acceptor.next_deadline().is_none());
        assert_eq!(counters.accepts_refused, 2);
    }

    #[test]
    fn beyond_clients_max_new_ones_wait_until_one_leaves() {
        let (_directory, mut acceptor, connect) = acceptor();
        let mut counters = ServerCounters::default();
        let _peer = connect();
        acceptor.note_arrival();
        assert!(acceptor.accept(limits::CLIENTS_MAX, NOW, &mut counters).is_none());
        assert!(!acceptor.is_pending() && acceptor.next_deadline().is_none());
        acceptor.note_departure();
        assert!(acceptor.accept(limits::CLIENTS_MAX - 1, NOW, &mut counters).is_some());
    }
}

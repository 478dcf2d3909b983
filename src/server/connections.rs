//! All connections, and which of them the phases of a turn have to look at.
//!
//! A phase never walks over all connections: whoever gives one something to do puts it on the
//! agenda of that phase. Being there without need does no harm, and ids are never reused, so an id
//! whose connection is gone is simply not found.
//!
//! This is the one place that makes and ends connections. What is said on them, and the store, are
//! not known here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use foldhash::fast::FixedState;
use mio::Registry;
use mio::event::Event;
use mio::net::UnixStream;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::close_reason::CloseReason;
use super::connection::{Connection, Flushed};
use super::memory::Memory;
use super::metrics::ServerCounters;
use super::peer_lines::PeerLines;
use crate::ids::ClientId;
use crate::limits;
use crate::store::Peer;
use crate::store::request_memory::RequestMemory;
use crate::time::{Clock, Timestamp};

/// Connections flushed before the clock is looked at again.
const FLUSHES_PER_LOOK: usize = 8;

#[derive(Debug)]
pub struct Connections {
    registry: Registry,
    /// Boxed, because a table that grows moves everything it has.
    table: HashMap<ClientId, Box<Connection>, FixedState>,
    last_id: ClientId,
    /// May have something to be read.
    pub to_read: Agenda,
    /// Those that could not send descriptors, and when to try again.
    starved: Vec<ClientId>,
    starved_until: Option<Timestamp>,
    /// Have something to be sent, or drain.
    pub to_flush: Agenda,
    /// Have drained.
    to_close: Agenda,
    /// When those that drain but do not read are closed in any case, in order: the time to drain
    /// is the same for all.
    drain_deadlines: VecDeque<(Timestamp, ClientId)>,
    lines: PeerLines,
}

impl Connections {
    /// A table without connections; those to come are watched by this selector.
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            table: HashMap::default(),
            last_id: ClientId(0),
            to_read: Agenda::default(),
            starved: Vec::new(),
            starved_until: None,
            to_flush: Agenda::default(),
            to_close: Agenda::default(),
            drain_deadlines: VecDeque::new(),
            lines: PeerLines::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn get_mut(&mut self, client: ClientId) -> Option<&mut Connection> {
        self.table.get_mut(&client).map(Box::as_mut)
    }

    /// Takes in a new connection.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn admit(&mut self, socket: UnixStream) -> io::Result<()> {
        let peer = peer_of(&socket)?;
        let client = ClientId(self.last_id.0 + 1);
        let connection = Connection::new(client, socket, peer, &self.registry)?;
        log::debug!("accepted {connection}");
        self.last_id = client;
        self.table.insert(client, Box::new(connection));
        Ok(())
    }

    /// The selector says something about a connection.
    pub fn note_event(&mut self, event: &Event) {
        let client = ClientId(event.token().0 as u64);
        let Some(connection) = self.table.get_mut(&client) else {
            return;
        };
        if event.is_read_closed() || event.is_error() {
            connection.note_hang_up();
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.to_read.push(client);
        }
        if event.is_writable() || event.is_write_closed() || event.is_error() {
            self.to_flush.push(client);
        }
    }

    /// Begins the end of a connection, unless it is gone.
    pub fn drain(&mut self, client: ClientId, reason: CloseReason) {
        if let Some(connection) = self.table.get_mut(&client) {
            connection.drain(reason);
            self.to_flush.push(client);
        }
    }

    /// Whether there is something to do that no event will tell of.
    pub fn has_backlog(&self) -> bool {
        let agendas = [&self.to_read, &self.to_flush, &self.to_close];
        agendas.iter().any(|agenda| !agenda.is_empty())
    }

    /// When [`Self::next_to_close`] has something to say, or something is to be sent again.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let closing = self.drain_deadlines.front().map(|(deadline, _)| *deadline);
        let others = [self.starved_until, self.lines.next_deadline()];
        closing.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Sends what can be sent, within the time of a turn. Calls `flushed` for each connection that
    /// was looked at, which says whether something may be read from it again.
    pub fn flush(
        &mut self,
        now: Timestamp,
        clock: &Clock,
        memory: &Memory,
        counters: &mut ServerCounters,
        mut flushed: impl FnMut(&mut Connection, &mut ServerCounters) -> bool,
    ) {
        if self.starved_until.take_if(|until| *until <= now).is_some() {
            for client in self.starved.drain(..) {
                self.to_flush.push(client);
            }
        }
        let mut end = None;
        for count in 1..=self.to_flush.len() {
            if count % FLUSHES_PER_LOOK == 0 {
                let now = clock.now();
                if now >= *end.get_or_insert(now.after(limits::TURN_FLUSH_TIME)) {
                    break;
                }
            }
            let Some(client) = self.to_flush.pop() else {
                break;
            };
            let Some(connection) = self.table.get_mut(&client) else {
                continue;
            };
            let Flushed { resumes_reading, is_starved } =
                connection.flush(memory, &self.registry, counters);
            let deadline = now.after(limits::DRAIN_TIME_MAX);
            if connection.is_draining() && connection.outbox_bytes() == 0 {
                self.to_close.push(client);
            } else if connection.set_drain_deadline(deadline) {
                self.drain_deadlines.push_back((deadline, client));
            } else if resumes_reading {
                self.to_read.push(client);
            }
            if is_starved {
                self.starved.push(client);
                self.starved_until = Some(now.after(limits::STARVED_TIME));
            }
            if flushed(connection, counters) {
                self.to_read.push(client);
                self.to_flush.push(client);
            }
        }
    }

    /// A connection that is to be closed now, if there is any.
    pub fn next_to_close(&mut self, now: Timestamp) -> Option<ClientId> {
        self.lines.look(now);
        while let Some((deadline, client)) = self.drain_deadlines.front().copied() {
            let is_here = self.table.contains_key(&client);
            if is_here && deadline > now {
                break;
            }
            self.drain_deadlines.pop_front();
            if is_here {
                self.to_close.push(client);
            }
        }
        self.to_close.pop()
    }

    /// Ends a connection that drains. Returns whether the store knows the client.
    pub fn close(
        &mut self,
        client: ClientId,
        now: Timestamp,
        all: &mut RequestMemory,
        counters: &mut ServerCounters,
    ) -> bool {
        let connection = self.table.remove(&client).expect("it is closed once");
        connection.forget_memory(all);
        connection.close(&self.registry, &mut self.lines, now, counters)
    }
}

/// Who has to be looked at by a phase of the turn, in the order in which they were put down, each
/// at most once. Its memory is kept for the next turn.
///
/// A phase takes as many as there were when it began. Who is put down meanwhile has its turn in the
/// next one, so a phase ends even if everybody it looks at needs to be looked at again.
#[derive(Debug, Default)]
pub struct Agenda {
    queue: VecDeque<ClientId>,
    /// Who is really in the queue; it may also have some that were taken off.
    members: HashSet<ClientId, FixedState>,
}

impl Agenda {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Puts a client down, if it is not there already.
    pub fn push(&mut self, client: ClientId) {
        if self.members.insert(client) {
            self.queue.push_back(client);
        }
    }

    pub fn pop(&mut self) -> Option<ClientId> {
        while let Some(client) = self.queue.pop_front() {
            if self.members.remove(&client) {
                return Some(client);
            }
        }
        None
    }

    /// Takes off a client that is never put down again.
    pub fn remove(&mut self, client: ClientId) {
        self.members.remove(&client);
    }
}

/// Who is at the other end, as the system knows it.
fn peer_of(socket: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    Ok(Peer {
        name: String::new(),
        // 0 stands for a process outside of our namespace.
        pid: u32::try_from(credentials.pid()).unwrap_or(0),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_comes_once_and_in_order_and_those_removed_not_at_all() {
        let mut agenda = Agenda::default();
        for id in [3, 1, 3, 2, 1] {
            agenda.push(ClientId(id));
        }
        agenda.remove(ClientId(1));
        assert_eq!(agenda.len(), 2);
        assert_eq!(agenda.pop(), Some(ClientId(3)));
        agenda.push(ClientId(3));
        let rest: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(rest, [ClientId(2), ClientId(3)]);
        assert!(agenda.is_empty() && agenda.queue.is_empty());
    }
}

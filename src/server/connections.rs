//! All connections, and which of them the phases of a turn have to look at.
//!
//! A phase never walks over all connections: whoever gives one something to do puts it on the
//! agenda of that phase. Being there without need does no harm, and ids are never reused, so an id
//! whose connection is gone is simply not found.
//!
//! This is the one place that makes and ends connections. What is said on them, and the store, are
//! not known here.

use std::collections::{HashMap, VecDeque};
use std::io;

use foldhash::fast::FixedState;
use mio::Registry;
use mio::event::Event;
use mio::net::UnixStream;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::agenda::{Agenda, FairAgenda};
use super::close_reason::CloseReason;
use super::connection::{Connection, Flushed};
use super::memory::Memory;
use super::metrics::ServerCounters;
use super::peer_lines::PeerLines;
use crate::ids::ClientId;
use crate::limits;
use crate::shm::peer_groups;
use crate::store::Peer;
use crate::store::request_memory::{Process, RequestMemory};
use crate::time::{Clock, Timestamp};

#[derive(Debug)]
pub struct Connections {
    registry: Registry,
    /// Boxed, because a table that grows moves everything it has.
    table: HashMap<ClientId, Box<Connection>, FixedState>,
    last_id: ClientId,
    /// The group of peers who only read.
    pub read_only_group: Option<u32>,
    /// How many connections each process has.
    processes: HashMap<Process, usize, FixedState>,
    /// Have not introduced themselves, and may have something to be read.
    pub strangers: Agenda,
    /// Have introduced themselves, and may have something to be read.
    pub to_read: FairAgenda,
    /// Have a request that takes more than a slice. They are not read meanwhile.
    pub busy: FairAgenda,
    /// Those that could not send descriptors, and when to try again.
    starved: Vec<ClientId>,
    starved_until: Option<Timestamp>,
    /// Have something to be sent, or drain.
    to_flush: FairAgenda,
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
            read_only_group: None,
            processes: HashMap::default(),
            strangers: Agenda::default(),
            to_read: FairAgenda::default(),
            busy: FairAgenda::default(),
            starved: Vec::new(),
            starved_until: None,
            to_flush: FairAgenda::default(),
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
        let is_read_only =
            self.read_only_group.is_some_and(|group| only_reads(&socket, &peer, group));
        let mut connection = Connection::new(client, socket, peer, &self.registry)?;
        connection.is_read_only = is_read_only;
        log::debug!("accepted {connection}");
        self.last_id = client;
        *self.processes.entry(connection.process()).or_default() += 1;
        self.table.insert(client, Box::new(connection));
        Ok(())
    }

    /// A connection may have something to be read.
    pub fn read_later(&mut self, client: ClientId) {
        match self.table.get(&client) {
            Some(connection) if connection.is_stranger() => self.strangers.push(client),
            Some(connection) => self.to_read.push(client, connection.process()),
            None => {}
        }
    }

    /// A client has a request that takes more than a slice.
    pub fn go_on_later(&mut self, client: ClientId) {
        if let Some(connection) = self.table.get(&client) {
            self.busy.push(client, connection.process());
        }
    }

    /// A connection has something to be sent, or drains.
    pub fn flush_later(&mut self, client: ClientId) {
        if let Some(connection) = self.table.get(&client) {
            self.to_flush.push(client, connection.process());
        }
    }

    /// Whether others should be closed, or introduce themselves, before more are accepted.
    pub fn are_too_many_coming_and_going(&self) -> bool {
        !self.to_close.is_empty() || self.strangers.len() >= limits::STRANGERS_READY_MAX
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
        if event.is_write_closed() {
            connection.note_deaf();
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read_later(client);
        }
        if event.is_writable() || event.is_write_closed() || event.is_error() {
            self.flush_later(client);
        }
    }

    /// Begins the end of a connection, unless it is gone.
    pub fn drain(&mut self, client: ClientId, reason: CloseReason) {
        if let Some(connection) = self.table.get_mut(&client) {
            connection.drain(reason);
            self.flush_later(client);
        }
    }

    /// Whether there is something to do that no event will tell of.
    pub fn has_backlog(&self) -> bool {
        !(self.to_read.is_empty()
            && self.busy.is_empty()
            && self.to_flush.is_empty()
            && self.strangers.is_empty()
            && self.to_close.is_empty())
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
            for client in std::mem::take(&mut self.starved) {
                self.flush_later(client);
            }
        }
        let mut began = clock.now();
        let end = began.after(limits::TURN_FLUSH_TIME);
        for _ in 0..self.to_flush.len() {
            let Some((client, process)) = self.to_flush.pop() else { break };
            let Some(connection) = self.table.get_mut(&client) else { continue };
            let Flushed { resumes_reading, is_starved } =
                connection.flush(memory, &self.registry, counters);
            let deadline = now.after(limits::DRAIN_TIME_MAX);
            let is_to_be_looked_at = flushed(connection, counters);
            if connection.is_draining() && connection.outbox_bytes() == 0 {
                self.to_close.push(client);
            } else if connection.set_drain_deadline(deadline) {
                self.drain_deadlines.push_back((deadline, client));
            } else if resumes_reading {
                self.read_later(client);
            }
            if is_starved {
                self.starved.push(client);
                self.starved_until = Some(now.after(limits::STARVED_TIME));
            }
            if is_to_be_looked_at {
                self.read_later(client);
                self.flush_later(client);
            }
            let ended = clock.now();
            self.to_flush.charge(process, ended.since(began));
            began = ended;
            if ended >= end {
                break;
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
        let process = connection.process();
        let left = self.processes.get_mut(&process).expect("it has this connection");
        *left -= 1;
        if *left == 0 {
            self.processes.remove(&process);
            self.to_read.forget(process);
            self.busy.forget(process);
            self.to_flush.forget(process);
        }
        connection.forget_memory(all);
        connection.close(&self.registry, &mut self.lines, now, counters)
    }
}

/// Whether a peer is in the group of those who only read, and is neither root nor our own user. If
/// the system does not say which groups it is in, it is taken to be.
fn only_reads(socket: &UnixStream, peer: &Peer, group: u32) -> bool {
    let is_of_another_user = peer.uid != 0 && peer.uid != geteuid().as_raw();
    let is_member =
        || peer_groups(socket).map_or(true, |groups| peer.gid == group || groups.contains(&group));
    is_of_another_user && is_member()
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

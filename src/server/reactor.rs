//! The loop of the one thread that owns the store.
//!
//! A turn has named phases, each with a budget from [`crate::limits`]: a number, and a time after
//! which it begins nothing more. The store itself never does more than a slice at a time and has
//! the rest for later turns. The selector is edge-triggered: it tells once that something has
//! become ready. So a phase that stops on its budget leaves the rest on an agenda, and as long as
//! any agenda has something the next poll does not wait. Without news the loop sleeps until the
//! next deadline, however far that is.
//!
//! Here requests meet the store. What they mean, how they are encoded and how effects are carried
//! out is not known here.

use std::io;
use std::time::Duration;

use mio::event::Source;
use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token, Waker};

use super::acceptor::Acceptor;
use super::connection::{Budget, Received};
use super::connections::Connections;
use super::effects::Outside;
use super::memory::Memory;
use super::metrics::ServerCounters;
use super::streams::Streams;
use super::trimming::Trimmer;
use crate::ids::ClientId;
use crate::limits;
use crate::polling::Polling;
use crate::protocol::message::{Connected, Reply};
use crate::store::{Effects, Store};
use crate::time::{Clock, Timestamp};

/// Connections have the tokens in between.
const LISTENER: Token = Token(0);
const STOP: Token = Token(usize::MAX);
const TRIMMED: Token = Token(usize::MAX - 1);

/// The loop and everything that it drives.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    events: Events,
    clock: Clock,
    polling: Polling,
    /// When the last poll ended, for all phases of a turn; then when the turn ended.
    now: Timestamp,
    acceptor: Acceptor,
    store: Store,
    effects: Effects,
    /// Memory to receive into, for one connection after the other.
    spare: Vec<u8>,
    outside: Outside,
    /// Whether the last long work was a slice of a job.
    is_jobs_turn: bool,
    /// What new clients are told, but for their number.
    welcome: Connected,
    is_stopping: bool,
    /// Memory has gone back to the system, and the store is to be told.
    memory_has_gone: bool,
}

impl Reactor {
    /// A loop around an empty store.
    ///
    /// # Errors
    /// The system has no selector to give.
    pub fn new(
        mut listener: UnixListener,
        store: Store,
        mut memory: Memory,
        clock: Clock,
        poll_time: Duration,
        welcome: Connected,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        if let Some(trimmer) = &mut memory.trimmer {
            poll.registry().register(trimmer.reports(), TRIMMED, Interest::READABLE)?;
        }
        let outside = Outside {
            connections: Connections::new(poll.registry().try_clone()?),
            streams: Streams::default(),
            memory,
            counters: ServerCounters::default(),
        };
        Ok(Self {
            poll,
            events: Events::with_capacity(limits::TURN_EVENTS_MAX),
            now: clock.now(),
            clock,
            polling: Polling::new(poll_time),
            acceptor: Acceptor::new(listener),
            store,
            effects: Effects::new(),
            spare: Vec::new(),
            outside,
            is_jobs_turn: false,
            welcome,
            is_stopping: false,
            memory_has_gone: false,
        })
    }

    /// Lets those of this group, who are neither root nor the user of the store, only read.
    pub fn set_read_only_group(&mut self, group: Option<u32>) {
        self.outside.connections.read_only_group = group;
    }

    /// Ends the loop when this has something to be read.
    ///
    /// # Errors
    /// The system does not watch it.
    pub fn stop_on(&self, source: &mut impl Source) -> io::Result<()> {
        self.poll.registry().register(source, STOP, Interest::READABLE)
    }

    /// Something that ends the loop from another thread.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn stopper(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), STOP)
    }

    /// Turns until it is told to stop. The connections are closed on drop.
    pub fn run(&mut self) -> &ServerCounters {
        while !self.is_stopping {
            self.turn();
        }
        &self.outside.counters
    }

    /// One turn. The order has its reasons. Memory that went back to the system comes first, since
    /// some may have waited for that, and then what clients ask. What has expired is looked at
    /// after the requests, so that an object that came in time is not missed because we were busy.
    /// Events are handed out when requests have made some, and then everything is sent, so that all
    /// that a turn has for one peer goes in one call. What takes longer comes behind that: then
    /// short answers have left already. So do those who come and go, in a time of their own: closes
    /// first, or those who only come and go again would pile up.
    fn turn(&mut self) {
        self.poll();
        self.end_trim();
        self.read_and_apply();
        self.expire();
        self.stream_events();
        self.flush();
        self.do_long_work();
        self.admit_and_close();

        self.outside.memory.note_used(self.store.used_end());
        let began = std::mem::replace(&mut self.now, self.clock.now());
        self.outside.counters.turn_ended(self.now.since(began), self.has_backlog());
    }

    /// Waits for something to do, and notes who has it.
    fn poll(&mut self) {
        match self.poll_timeout() {
            Some(Duration::ZERO) => self.select(Some(Duration::ZERO)),
            timeout => self.wait(timeout),
        }
        for event in &self.events {
            match event.token() {
                LISTENER => self.acceptor.note_arrival(),
                STOP => self.is_stopping = true,
                TRIMMED => self.memory_has_gone = true,
                _ => self.outside.connections.note_event(event),
            }
        }
    }

    /// Looks for something to do for a while, and sleeps until there is something.
    fn wait(&mut self, timeout: Option<Duration>) {
        let began = self.now;
        let look_time = self.polling.begin_wait();
        if look_time.is_zero() {
            self.select(timeout);
        } else {
            let look_end = began.after(timeout.map_or(look_time, |limit| limit.min(look_time)));
            self.select(Some(Duration::ZERO));
            while self.events.is_empty() && self.now < look_end {
                self.select(Some(Duration::ZERO));
            }
            let found = !self.events.is_empty();
            self.polling.looked(found);
            if !found {
                self.select(timeout.map(|timeout| began.after(timeout).since(self.now)));
            }
        }
        self.polling.end_wait(self.now.since(began));
    }

    /// Asks the selector for events, and reads the clock.
    fn select(&mut self, timeout: Option<Duration>) {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the selector is ours and in order, and yet: {error}"),
        }
        self.now = self.clock.now();
    }

    fn end_trim(&mut self) {
        if !std::mem::take(&mut self.memory_has_gone) {
            return;
        }
        // One at a time: the next one begins when the store knows of this one.
        while let Some((ticket, outcome)) =
            self.outside.memory.trimmer.as_mut().and_then(Trimmer::ended)
        {
            self.store.done(ticket, outcome, self.now, &mut self.effects);
            self.carry_out();
        }
    }

    fn read_and_apply(&mut self) {
        let mut began = self.now;
        let end = began.after(limits::TURN_READ_TIME);
        for _ in 0..self.outside.connections.to_read.len() {
            let Some((client, process)) = self.outside.connections.to_read.pop() else { break };
            self.serve(client, end);
            self.count_memory(client);
            let ended = self.clock.now();
            self.outside.connections.to_read.charge(process, ended.since(began));
            began = ended;
            if ended >= end {
                break;
            }
        }
    }

    fn expire(&mut self) {
        if self.store.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.store.expire(self.now, &mut self.effects);
            self.carry_out();
        }
    }

    /// One slice of a job, or of the request of a busy client, in turn.
    fn do_long_work(&mut self) {
        let has_job = self.store.has_work();
        let has_busy = !self.outside.connections.busy.is_empty();
        self.is_jobs_turn = has_job && !(has_busy && self.is_jobs_turn);
        if self.is_jobs_turn {
            self.outside.counters.slices += 1;
            self.store.work(self.now, &mut self.effects);
            self.carry_out();
        } else if let Some((client, process)) = self.outside.connections.busy.pop() {
            let began = self.clock.now();
            self.store.go_on(client, self.now, &mut self.effects);
            self.carry_out();
            self.outside.connections.busy.charge(process, self.clock.now().since(began));
            if self.store.is_busy(client) {
                self.outside.connections.go_on_later(client);
            } else {
                self.outside.connections.read_later(client);
            }
        }
    }

    fn stream_events(&mut self) {
        let count = self.outside.streams.begin_turn(self.store.event_sequence());
        if count == 0 {
            return;
        }
        let end = self.clock.now().after(limits::TURN_SIDE_TIME);
        for index in 0..count {
            if index > 0 && self.clock.now() >= end {
                break;
            }
            if let Some(client) = self.outside.streams.next_behind() {
                self.stream_to(client);
            }
        }
    }

    fn flush(&mut self) {
        let Outside { connections, streams, memory, counters } = &mut self.outside;
        let all = self.store.request_memory();
        connections.flush(self.now, &self.clock, memory, counters, |connection, counters| {
            streams.note_flushed(connection.id(), connection.outbox_bytes());
            connection.count_memory(all, counters)
        });
    }

    /// What is kept for a connection has changed.
    fn count_memory(&mut self, client: ClientId) {
        let Outside { connections, counters, .. } = &mut self.outside;
        if let Some(connection) = connections.get_mut(client)
            && connection.count_memory(self.store.request_memory(), counters)
        {
            connections.read_later(client);
            connections.flush_later(client);
        }
    }

    /// Closes connections, accepts others, and listens to those who have not introduced themselves.
    fn admit_and_close(&mut self) {
        let end = self.clock.now().after(limits::TURN_SIDE_TIME);
        while let Some(client) = self.outside.connections.next_to_close(self.now) {
            self.outside.streams.remove(client);
            self.acceptor.note_departure();
            let Outside { connections, counters, .. } = &mut self.outside;
            if connections.close(client, self.now, self.store.request_memory(), counters) {
                self.store.disconnect(client, self.now, &mut self.effects);
                self.carry_out();
            }
            if self.clock.now() >= end {
                break;
            }
        }
        while !self.outside.connections.are_too_many_coming_and_going() {
            let Outside { connections, counters, .. } = &mut self.outside;
            let accepted = self.acceptor.accept(connections.len(), self.now, counters);
            let Some(socket) = accepted else { break };
            match connections.admit(socket) {
                Ok(()) => counters.connections_accepted += 1,
                Err(error) => self.acceptor.pause(&error, self.now, counters),
            }
            if self.clock.now() >= end {
                break;
            }
        }
        for _ in 0..self.outside.connections.strangers.len() {
            if let Some(client) = self.outside.connections.strangers.pop() {
                self.serve(client, end);
                self.count_memory(client);
            }
            if self.clock.now() >= end {
                break;
            }
        }
    }

    fn carry_out(&mut self) {
        self.outside.carry_out(&mut self.store, self.now, &mut self.effects);
    }

    /// Serves what a client has sent, within the budget of a turn and until `end`.
    fn serve(&mut self, client: ClientId, end: Timestamp) {
        if self.store.is_busy(client) {
            return;
        }
        let mut budget = Budget::new(&mut self.spare);
        loop {
            let Outside { connections, counters, .. } = &mut self.outside;
            let Some(connection) = connections.get_mut(client) else {
                return;
            };
            match connection.receive(&mut budget, counters) {
                Received::Request(request_id, request) => {
                    // Of one who hears nothing, only what others notice is served.
                    if !connection.takes_nothing() || request.traits().has_effects {
                        self.store.apply(client, request_id, request, self.now, &mut self.effects);
                        self.outside.carry_out(&mut self.store, self.now, &mut self.effects);
                    }
                    if self.store.is_busy(client) {
                        return self.outside.connections.go_on_later(client);
                    }
                    if self.clock.now() >= end {
                        return self.outside.connections.read_later(client);
                    }
                }
                Received::Refused(request, refusal) => {
                    self.outside.reply(client, request, Reply::Refused(refusal));
                }
                Received::Opened { request, connect, version } => {
                    if let Err(refusal) = self.store.connect(client, connection.peer().clone()) {
                        connection.turn_away(request, refusal, counters);
                        return connections.flush_later(client);
                    }
                    let mut welcome = Connected {
                        client,
                        protocol_version: version,
                        read_only: connection.is_read_only,
                        ..self.welcome.clone()
                    };
                    if !(connect.reads_directory && self.store.let_read(client)) {
                        welcome.directory_slots = 0;
                    }
                    connection.open(welcome.directory_slots);
                    self.outside.reply(client, request, Reply::Connected(welcome));
                }
                Received::Later => return connections.read_later(client),
                Received::Nothing => return,
                Received::Ended => return connections.flush_later(client),
            }
        }
    }

    /// Tells a subscriber what is new until its outbox is full.
    fn stream_to(&mut self, client: ClientId) {
        while let Some(connection) = self.outside.connections.get_mut(client) {
            if connection.takes_nothing() {
                return;
            }
            if connection.is_full() {
                return self.outside.streams.note_full(client);
            }
            let mut events = Vec::new();
            self.store.next_events(client, limits::EVENTS_PART_MAX, &mut events);
            if events.is_empty() && self.store.has_snapshot_left(client) {
                return self.outside.streams.insert(client);
            }
            if events.is_empty() {
                return self.outside.streams.note_told(client);
            }
            self.outside.tell(client, events);
        }
    }

    fn has_backlog(&self) -> bool {
        self.acceptor.is_pending()
            || self.store.has_work()
            || self.outside.connections.has_backlog()
            || self.outside.streams.has_backlog(self.store.event_sequence())
    }

    fn poll_timeout(&self) -> Option<Duration> {
        if self.has_backlog() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.store.next_deadline(),
            self.outside.connections.next_deadline(),
            self.acceptor.next_deadline(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.since(self.now))
    }
}

#[cfg(test)]
mod tests;

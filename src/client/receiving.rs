//! The reading half of a connection: what comes from the store, and who gets it.
//!
//! # Who reads
//!
//! A request is registered in the [`Inbox`] before it is sent, and stays until its reply is taken
//! out or nobody wants it any more. A thread that waits for a reply takes the [`Receiver`] out of
//! the inbox, if it is there, and becomes the *leader*: it receives and puts each reply where its
//! owner looks for it. The others park. When the leader has its own reply, it puts the receiver
//! back and wakes one of those who still wait, which leads on. So at any time one thread sleeps in
//! the kernel and the rest in `park`, and nobody who waits for a slow reply holds up somebody with
//! a quick one. An event loop reads when its socket is readable.
//!
//! # What nobody wants
//!
//! A ticket that is dropped before its reply has come leaves the store a cancel, without waiting.
//! The reply comes all the same, to whoever reads then, and the request may still be granted. What
//! the store hands out then would be held until the connection ends. So with each request lies what
//! it would take to undo it: [`Grants`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Duration;

use foldhash::fast::RandomState;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{Fault, unexpected};
use super::transport::{AT_ONCE, Halves, Transport, lock};
use crate::ids::{ObjectId, Slot};
use crate::limits::FRAME_DESCRIPTORS_MAX;
use crate::polling::Polling;
use crate::protocol::ProtocolError;
use crate::protocol::codec::decode_server;
use crate::protocol::frame::FrameReader;
use crate::protocol::message::{DescriptorInfo, Granted, Reply, Request, RequestId};
use crate::shm::fd_passing;
use crate::time::Timestamp;

/// Bytes asked of the socket at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// How often to try where the system does not say when to.
const WITHOUT_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The right to the reply of one request.
pub(super) struct Ticket<'a> {
    transport: &'a Arc<Transport>,
    request: RequestId,
}

impl<'a> Ticket<'a> {
    pub(super) const fn new(transport: &'a Arc<Transport>, request: RequestId) -> Self {
        Self { transport, request }
    }

    /// Asks the store to answer now. Waits for nothing. The other ticket is for the answer to that,
    /// which comes after the reply.
    pub(super) fn cancel(&self) -> Result<Option<Ticket<'a>>, Fault> {
        let mut inbox = lock(&self.transport.halves()?.inbox);
        let cancels = inbox.waiting.get_mut(&self.request).is_some_and(Waiting::cancel);
        drop(inbox);
        let cancel = Request::Cancel { request: self.request };
        cancels.then(|| self.transport.start(cancel, AT_ONCE)).transpose()
    }

    /// Waits for the reply, but no longer than until `end`.
    pub(super) fn wait_until(&mut self, end: Option<Timestamp>) -> Result<Option<Reply>, Fault> {
        loop {
            let halves = self.transport.halves()?;
            let mut inbox = lock(&halves.inbox);
            if let Some(outcome) = inbox.take_outcome(self.request) {
                return outcome.map(Some);
            }
            let patience = end.map(|end| end.since(self.transport.clock.now()));
            if patience == Some(Duration::ZERO) {
                inbox.set_state(self.request, WaitState::LooksAway);
                inbox.wake_successor();
                return Ok(None);
            }
            inbox.set_state(self.request, WaitState::Looks);
            let lead = Lead::take(self.transport, halves, &mut inbox);
            drop(inbox);
            match (lead, patience) {
                (Some(mut lead), _) => lead.receive_until(self.request, end),
                (None, Some(patience)) => thread::park_timeout(patience),
                (None, None) => thread::park(),
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.transport.abandon(self.request);
    }
}

/// The part of the leader: whoever has this reads for all. Given up on drop.
pub(super) struct Lead<'a> {
    transport: &'a Arc<Transport>,
    halves: &'a Halves,
    /// Only taken out by `drop`.
    receiver: Option<Receiver>,
}

impl<'a> Lead<'a> {
    /// `None` if another thread leads.
    pub(super) fn take(
        transport: &'a Arc<Transport>,
        halves: &'a Halves,
        inbox: &mut Inbox,
    ) -> Option<Self> {
        let receiver = inbox.receiver.take()?;
        Some(Self { transport, halves, receiver: Some(receiver) })
    }

    /// Reads until there is an outcome for one request, or the time is over.
    fn receive_until(&mut self, request: RequestId, end: Option<Timestamp>) {
        while !lock(&self.halves.inbox).has_outcome(request) {
            let began = self.transport.clock.now();
            if end.is_some_and(|end| end <= began) {
                return;
            }
            self.receive_by(|receiver, transport| receiver.wait(transport, began, end));
        }
    }

    /// Receives once and delivers what has come.
    pub(super) fn receive(&mut self) {
        self.receive_by(|receiver, transport| receiver.receive(&transport.socket).map(|_| ()));
    }

    /// Receives in this way and delivers what has come. A failure is the end of the connection, for
    /// all.
    fn receive_by(&mut self, receive: impl FnOnce(&mut Receiver, &Transport) -> Result<(), Fault>) {
        let Some(receiver) = &mut self.receiver else { return };
        let received = receive(receiver, self.transport);
        if let Err(fault) = received.and_then(|()| self.deliver()) {
            self.transport.hang_up();
            lock(&self.halves.inbox).fail(fault);
        }
    }

    fn deliver(&mut self) -> Result<(), Fault> {
        let Some(receiver) = &mut self.receiver else { return Ok(()) };
        while let Some(Received { request, reply, descriptors }) = receiver.next()? {
            for (info, descriptor) in descriptors {
                self.transport.segments.add(info, descriptor);
            }
            let undo = lock(&self.halves.inbox).deliver(request, reply)?;
            self.transport.note_answered(request);
            self.transport.undo(undo)?;
        }
        Ok(())
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut inbox = lock(&self.halves.inbox);
        inbox.receiver = self.receiver.take();
        inbox.wake_successor();
    }
}

impl Transport {
    /// The reply, if it has been taken in, or the reason why there will be none.
    pub(super) fn take_reply(&self, request: RequestId) -> Result<Option<Reply>, Fault> {
        lock(&self.halves()?.inbox).take_outcome(request).transpose()
    }

    /// Takes in what has come, unless another thread is doing so. Says which requests of event
    /// loops have been answered.
    pub(super) fn receive_ready(self: &Arc<Self>) -> Result<Vec<RequestId>, Fault> {
        let halves = self.halves()?;
        let lead = Lead::take(self, halves, &mut lock(&halves.inbox));
        if let Some(mut lead) = lead {
            let has_fault = || lock(&halves.inbox).fault.is_some();
            while !has_fault() && wait_readable(&self.socket, Duration::ZERO) {
                lead.receive();
            }
        }
        let mut inbox = lock(&halves.inbox);
        let answered = std::mem::take(&mut inbox.answered);
        inbox.fault.clone().map_or(Ok(answered), Err)
    }
}

/// Replies, and who waits for them.
#[derive(Debug)]
pub(super) struct Inbox {
    /// `None` while a thread leads.
    receiver: Option<Receiver>,
    waiting: HashMap<RequestId, Waiting, RandomState>,
    readers: Readers,
    /// Requests of event loops whose replies have come since the loop last asked.
    answered: Vec<RequestId>,
    /// Why there will be no more replies.
    pub(super) fault: Option<Fault>,
    /// Requests that may wait long are not wanted any more.
    pub(super) is_closing: bool,
}

#[derive(Debug)]
struct Waiting {
    /// Who is to be woken, if anybody.
    thread: Option<Thread>,
    state: WaitState,
    /// Whether the store may take its time to answer.
    may_wait: bool,
    /// It has been sent, may wait, and nobody has cancelled it.
    is_cancellable: bool,
    grants: Grants,
}

impl Waiting {
    /// Whether the store has to be told that it need not wait any more: once.
    const fn cancel(&mut self) -> bool {
        std::mem::replace(&mut self.is_cancellable, false)
    }
}

/// Who is to get a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    ThisThread,
    /// A loop that watches the socket, and looks when something has come.
    EventLoop,
    Nobody,
}

#[derive(Debug)]
enum WaitState {
    /// The thread is on its way to look for the reply, or sleeps and will look when it is woken.
    Looks,
    /// The thread is busy with something else and cannot be relied on to read for others.
    LooksAway,
    Replied(Reply),
    /// Nobody wants the reply.
    Abandoned,
}

impl Inbox {
    /// An inbox whose messages this receiver will bring.
    pub(super) fn new(receiver: Receiver) -> Self {
        Self {
            receiver: Some(receiver),
            waiting: HashMap::default(),
            readers: Readers::default(),
            answered: Vec::new(),
            fault: None,
            is_closing: false,
        }
    }

    /// Announces a request that is about to be sent.
    pub(super) fn register(
        &mut self,
        id: RequestId,
        request: &Request,
        waiter: Waiter,
    ) -> Result<(), Fault> {
        let may_wait = may_wait(request);
        self.fault.clone().map_or(Ok(()), Err)?;
        if self.is_closing && may_wait {
            return Err(Fault::Closed);
        }
        let (thread, state) = match waiter {
            Waiter::ThisThread => (Some(thread::current()), WaitState::Looks),
            Waiter::EventLoop => (None, WaitState::LooksAway),
            Waiter::Nobody => (None, WaitState::Abandoned),
        };
        let grants = Grants::of(request);
        let waiting = Waiting { thread, state, may_wait, is_cancellable: false, grants };
        self.readers.enter(id, &waiting);
        self.waiting.insert(id, waiting);
        Ok(())
    }

    /// Puts a reply where its thread will find it. If nobody wants it, returns what has to be sent
    /// to give back what it grants.
    fn deliver(&mut self, request: RequestId, reply: Reply) -> Result<Undo, Fault> {
        let Some(waiting) = self.waiting.get_mut(&request) else {
            return Err(unexpected("none", &reply).into());
        };
        match waiting.state {
            WaitState::Looks | WaitState::LooksAway => {
                self.readers.strike_out(request, waiting);
                waiting.state = WaitState::Replied(reply);
                match &waiting.thread {
                    Some(thread) if thread.id() == thread::current().id() => {}
                    Some(thread) => thread.unpark(),
                    None => self.answered.push(request),
                }
                Ok(Undo::default())
            }
            WaitState::Replied(_) => Err(unexpected("a second time", &reply).into()),
            WaitState::Abandoned => {
                let undo = waiting.grants.undo(&reply);
                self.waiting.remove(&request);
                Ok(undo)
            }
        }
    }

    /// Ends the connection for everybody. The first reason is the one that counts.
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        for thread in self.waiting.values().filter_map(|waiting| waiting.thread.as_ref()) {
            thread.unpark();
        }
    }

    /// Whether there is a reply, or never will be.
    fn has_outcome(&self, request: RequestId) -> bool {
        let state = self.waiting.get(&request).map(|waiting| &waiting.state);
        self.fault.is_some() || matches!(state, Some(WaitState::Replied(_)))
    }

    /// The reply, or the reason why there is none.
    fn take_outcome(&mut self, request: RequestId) -> Option<Result<Reply, Fault>> {
        let state = self.waiting.get(&request).map(|waiting| &waiting.state);
        if matches!(state, Some(WaitState::Replied(_)))
            && let Some(Waiting { state: WaitState::Replied(reply), .. }) =
                self.waiting.remove(&request)
        {
            return Some(Ok(reply));
        }
        self.fault.clone().map(Err)
    }

    /// What the thread that wants the reply does meanwhile.
    fn set_state(&mut self, request: RequestId, state: WaitState) {
        if let Some(waiting) = self.waiting.get_mut(&request)
            && !matches!(waiting.state, WaitState::Replied(_))
        {
            self.readers.strike_out(request, waiting);
            waiting.state = state;
            self.readers.enter(request, waiting);
        }
    }

    /// Nobody wants the reply, if it has not been taken out. Returns what the store has to be told:
    /// that it need not wait any more, or what is given back.
    pub(super) fn abandon(&mut self, request: RequestId) -> Undo {
        let Some(mut waiting) = self.waiting.remove(&request) else { return Undo::default() };
        self.readers.strike_out(request, &waiting);
        let undo = match waiting.state {
            _ if self.fault.is_some() => Undo::default(),
            WaitState::Replied(reply) => waiting.grants.undo(&reply),
            WaitState::Looks | WaitState::LooksAway | WaitState::Abandoned => {
                let cancel = waiting.cancel().then(|| Request::Cancel { request }.into());
                waiting.state = WaitState::Abandoned;
                self.waiting.insert(request, waiting);
                cancel.unwrap_or_default()
            }
        };
        self.wake_successor();
        undo
    }

    /// The request is on its way. Whether it has to be cancelled at once.
    pub(super) fn note_sent(&mut self, request: RequestId) -> bool {
        let Some(waiting) = self.waiting.get_mut(&request) else { return false };
        waiting.is_cancellable = waiting.may_wait;
        self.is_closing && waiting.cancel()
    }

    /// Whether a loop that watches the socket counts on reading what comes.
    pub(super) const fn serves_event_loop(&self) -> bool {
        self.readers.of_loops > 0
    }

    /// Lets no more requests in that may wait long. Returns those that do.
    pub(super) fn close(&mut self) -> Vec<RequestId> {
        self.is_closing = true;
        let waiting = self.waiting.iter_mut();
        waiting.filter_map(|(request, waiting)| waiting.cancel().then_some(*request)).collect()
    }

    /// If nobody leads, wakes a thread that will.
    fn wake_successor(&self) {
        if self.receiver.is_none() {
            return;
        }
        let first = self.readers.looking.first().and_then(|first| self.waiting.get(first));
        if let Some(thread) = first.and_then(|waiting| waiting.thread.as_ref()) {
            thread.unpark();
        }
    }
}

/// Who of those that wait will read what comes: known without a look at all of them, of whom an
/// event loop may have thousands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Readers {
    /// Requests of threads that look.
    looking: BTreeSet<RequestId>,
    /// How many requests of event loops have no reply.
    of_loops: usize,
}

impl Readers {
    fn enter(&mut self, request: RequestId, waiting: &Waiting) {
        match (&waiting.thread, &waiting.state) {
            (Some(_), WaitState::Looks) => {
                self.looking.insert(request);
            }
            (None, WaitState::LooksAway) => self.of_loops += 1,
            _ => {}
        }
    }

    /// To be called before anything about it changes.
    fn strike_out(&mut self, request: RequestId, waiting: &Waiting) {
        match (&waiting.thread, &waiting.state) {
            (Some(_), WaitState::Looks) => {
                self.looking.remove(&request);
            }
            (None, WaitState::LooksAway) => self.of_loops -= 1,
            _ => {}
        }
    }
}

/// Whether the answer may depend on what others do.
pub(super) const fn may_wait(request: &Request) -> bool {
    matches!(
        request,
        Request::Get { .. } | Request::Wait { .. } | Request::Create { .. } | Request::Put { .. }
    )
}

/// What it takes to give back what came with a reply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undo {
    /// To be said to the store.
    pub(super) request: Option<Request>,
    /// To be taken out of the table.
    pub(super) pins: Vec<Slot>,
}

impl From<Request> for Undo {
    fn from(request: Request) -> Self {
        Self { request: Some(request), pins: Vec::new() }
    }
}

/// What a request asks for that has to be given back one day.
#[derive(Debug)]
enum Grants {
    Nothing,
    /// A hold on each of these that the reply has.
    Holds(Vec<ObjectId>),
    /// The right to write this object.
    Creation(ObjectId),
    /// The hold of this object's creator, as that of a reader.
    OwnHold(ObjectId),
}

impl Grants {
    fn of(request: &Request) -> Self {
        match request {
            Request::Get { ids, .. } => Self::Holds(ids.clone()),
            Request::Create { id, .. } => Self::Creation(*id),
            Request::Seal { id, release: false } => Self::OwnHold(*id),
            _ => Self::Nothing,
        }
    }

    /// What gives back what came with this reply.
    fn undo(&self, reply: &Reply) -> Undo {
        match (self, reply) {
            (Self::Holds(ids), Reply::Granted(granted)) => {
                let counted = |it: &Option<Granted>| it.is_some_and(|it| it.pin.is_none());
                let counted = ids.iter().zip(granted).filter(|(_, it)| counted(it));
                let holds: Vec<_> = counted.map(|(id, _)| (*id, 1)).collect();
                Undo {
                    request: (!holds.is_empty()).then_some(Request::Release { holds }),
                    pins: granted.iter().flatten().filter_map(|granted| granted.pin).collect(),
                }
            }
            (Self::Creation(id), Reply::Created(_)) => Request::Abort { id: *id }.into(),
            (Self::OwnHold(id), Reply::Done) => Request::Release { holds: vec![(*id, 1)] }.into(),
            _ => Undo::default(),
        }
    }
}

pub(super) struct Received {
    pub(super) request: RequestId,
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<(DescriptorInfo, OwnedFd)>,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    frames: FrameReader,
    descriptors: VecDeque<OwnedFd>,
    /// Whether more may be taken out of the socket than the next message.
    reads_ahead: bool,
    /// How long to look for the next message before sleeping.
    pub(super) polling: Polling,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            frames: FrameReader::new(FRAME_DESCRIPTORS_MAX),
            descriptors: VecDeque::new(),
            reads_ahead: true,
            polling: Polling::new(Duration::ZERO),
        }
    }

    /// From now on leaves in the socket what is behind the next message: somebody else may read it.
    pub(super) fn read_one_by_one(&mut self) {
        self.reads_ahead = false;
    }

    /// Takes in what there is, without waiting; whether something has come.
    pub(super) fn receive(&mut self, socket: &UnixStream) -> Result<bool, Fault> {
        let space = match self.reads_ahead {
            true => self.frames.space(CHUNK_BYTES),
            false => self.frames.space_for_one(),
        };
        match fd_passing::receive_now(socket.as_fd(), space, &mut self.descriptors) {
            Ok(0) => Err(Fault::hung_up()),
            Ok(received) => {
                self.frames.advance(received);
                Ok(true)
            }
            // Nothing has come, and something still may.
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something has come, or the time is over: looks for it first, and sleeps only
    /// then.
    fn wait(
        &mut self,
        Transport { socket, clock, .. }: &Transport,
        began: Timestamp,
        end: Option<Timestamp>,
    ) -> Result<(), Fault> {
        let look_time = self.polling.begin_wait();
        let look_end = began.after(look_time);
        let look_end = end.map_or(look_end, |end| end.min(look_end));
        let mut has_come = false;
        if !look_time.is_zero() {
            while !has_come && clock.now() < look_end {
                has_come = self.receive(socket)?;
            }
            self.polling.looked(has_come);
        }
        if !has_come {
            // One call that receives and sleeps would be woken twice: Linux wakes who sleeps in it
            // also when the store has taken the request out of the socket, as there is room again.
            let rest = end.map(|end| end.since(clock.now()));
            if !poll_for(socket, PollFlags::POLLIN, rest).is_empty() {
                self.receive(socket)?;
            }
        }
        self.polling.end_wait(clock.now().since(began));
        Ok(())
    }

    /// The next message, if all of it has come. Must be called until there is none before more is
    /// received.
    pub(super) fn next(&mut self) -> Result<Option<Received>, ProtocolError> {
        let Some(frame) = self.frames.next_frame()? else {
            return Ok(None);
        };
        let message = decode_server(frame.payload)?;
        let count = usize::from(frame.descriptors);
        if self.descriptors.len() < count || message.descriptors.len() != count {
            return Err(ProtocolError::MissingDescriptors);
        }
        let descriptors = message.descriptors.into_iter().zip(self.descriptors.drain(..count));
        let reply = match message.reply {
            // From here on there is one kind of answer to a get: these are grants without pins.
            Reply::Objects(places) => {
                let held = |location| Granted { location, pin: None };
                Reply::Granted(places.into_iter().map(|place| place.map(held)).collect())
            }
            reply => reply,
        };
        Ok(Some(Received { request: message.request, reply, descriptors: descriptors.collect() }))
    }
}

/// Waits until there is something to receive, but no longer than `patience`. False if nothing came;
/// a signal may have been the reason.
pub(super) fn wait_readable(socket: &UnixStream, patience: Duration) -> bool {
    !poll_for(socket, PollFlags::POLLIN, Some(patience)).is_empty()
}

/// Waits until one of `events` is possible, or the connection is gone, which shows in the next send
/// or receive. Empty if the time was over before, or a signal came.
pub(super) fn poll_for(
    socket: &UnixStream,
    events: PollFlags,
    patience: Option<Duration>,
) -> PollFlags {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    let patience = patience.map_or(PollTimeout::NONE, whole_milliseconds);
    match poll(&mut polled, patience) {
        Ok(_) => polled[0].revents().unwrap_or(PollFlags::empty()),
        Err(Errno::EINTR) => PollFlags::empty(),
        // No memory for the wait, or a process that has forbidden itself all descriptors but those
        // that it has: the caller tries a little later, which is right and only slower.
        Err(_) => {
            thread::park_timeout(WITHOUT_POLL_INTERVAL);
            events
        }
    }
}

/// Rounded up: a wait that ends early would be followed by many short ones.
fn whole_milliseconds(patience: Duration) -> PollTimeout {
    let milliseconds = patience.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever becomes of requests, the books say what a look at all of them would.
    #[test]
    fn the_readers_are_those_who_wait() {
        let mut inbox = Inbox::new(Receiver::new());
        let waiters = [Waiter::ThisThread, Waiter::EventLoop, Waiter::Nobody];
        let check = |inbox: &Inbox| {
            let mut readers = Readers::default();
            inbox.waiting.iter().for_each(|(request, waiting)| readers.enter(*request, waiting));
            assert_eq!(inbox.readers, readers);
        };
        // Each kind of waiter meets each order of what can happen to its request.
        let steps = [0, 1, 2, 3];
        let orders = steps.iter().flat_map(|first| steps.iter().map(move |second| [first, second]));
        for (number, (waiter, order)) in
            waiters.iter().flat_map(|waiter| orders.clone().map(move |it| (waiter, it))).enumerate()
        {
            let request = RequestId(number as u64 + 1);
            inbox.register(request, &Request::GetStats, *waiter).unwrap();
            check(&inbox);
            for step in order {
                match step {
                    0 => drop(inbox.deliver(request, Reply::Done)),
                    1 => drop(inbox.abandon(request)),
                    2 if *waiter == Waiter::ThisThread => {
                        inbox.set_state(request, WaitState::LooksAway);
                    }
                    _ => drop(inbox.take_outcome(request)),
                }
                check(&inbox);
            }
        }
        assert!(inbox.serves_event_loop() && !inbox.readers.looking.is_empty());
    }
}

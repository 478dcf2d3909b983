//! One open connection: calls that give typed errors, and the objects that are held through it.
//!
//! # Holds
//!
//! The store counts how often a connection holds an object: once for each time that a reply granted
//! it. Here each [`Held`] stands for exactly one of these, and gives back exactly one when it is
//! dropped. The table below lets a second get of the same object share the first one's `Held`, but
//! nothing depends on it being up to date: when a drop in one thread races with a get in another,
//! there are two holds for a moment, and the store counts them. An object that the directory has is
//! pinned instead, each time that it is asked for, and no table of ours knows of it.
//!
//! A connection lives as long as the client uses it or something is held through it. In a forked
//! child nothing is said on it and no lock is taken, see [`super::process_local`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Result;
use super::buffers::{Held, Hold, ObjectBuffer};
use super::direct::{Attempt, DirectReader, Found};
use super::error::{Error, Fault, unexpected};
use super::opening::{CONNECT_REQUEST, open};
use super::options::{Builder, Interrupt};
use super::process_local::ProcessLocal;
use super::sending::SendTime;
use super::transport::{Transport, lock};
use crate::ids::{Extent, Location, ObjectId, SegmentId};
use crate::limits::REQUEST_IDS_TOGETHER;
use crate::polling::Polling;
use crate::protocol::message::{Connected, Granted, Reply, Request};
use crate::shm::words::Words;
use crate::shm::{Access, View, life_lock};
use crate::time::{Clock, Timestamp};

/// Objects that are looked for in the directory before the first of them is pinned.
const LOOKS_TOGETHER: usize = 16;

type HeldTable = HashMap<ObjectId, Weak<Held>, RandomState>;

/// An open connection to a store.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) path: PathBuf,
    /// What the store said at the opening; its limits are within ours.
    pub(super) connected: Connected,
    pub(super) transport: Arc<Transport>,
    /// How long past its timeout a request may go without an answer.
    pub(super) answer_grace: Duration,
    /// As long as a process has this, the store keeps what was given here, whatever becomes of the
    /// socket.
    life: Option<Words>,
    held: ProcessLocal<Mutex<HeldTable>>,
}

impl Connection {
    /// Connects, with as many attempts as `builder` says.
    pub(super) fn open(
        path: &Path,
        builder: &Builder,
        clock: &Clock,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let (mut line, connected) = open(path, builder, clock, interrupt)?;
        line.receiver.polling = Polling::new(builder.poll_time);
        let direct = match DirectReader::open(&line.descriptors) {
            Some(Ok(direct)) => Some(direct),
            // What the store gives to such a client it pins, so it has to connect anew without.
            Some(Err(error)) if builder.reads_directory => {
                log::info!("this process asks for objects, it cannot map the directory: {error}");
                let by_message = builder.clone().directory(false);
                return Self::open(path, &by_message, clock, None);
            }
            Some(Err(error)) => return Err(Error::Map(error)),
            None => None,
        };
        let life = line.descriptors.iter().find(|(info, _)| info.segment == SegmentId::LIFE);
        let life = life.map(|(_, file)| life_lock::hold(file)).transpose().map_err(Error::Map)?;
        // What is mapped has no more use for its descriptor.
        line.descriptors.retain(|(info, _)| {
            ![SegmentId::DIRECTORY, SegmentId::CLIENT_TABLE, SegmentId::LIFE]
                .contains(&info.segment)
        });
        let transport = Transport::new(
            line,
            direct,
            CONNECT_REQUEST,
            connected.request_ids_max.min(REQUEST_IDS_TOGETHER),
            clock.clone(),
        );
        Ok(Self {
            path: path.to_owned(),
            connected,
            transport: Arc::new(transport),
            answer_grace: builder.answer_grace,
            life,
            held: ProcessLocal::new(Mutex::default()),
        })
    }

    /// Whether this is the parent's connection, and this process a forked child.
    pub(super) fn is_inherited(&self) -> bool {
        self.held.is_inherited()
    }

    /// Ids in one of several requests for as many as somebody wants.
    pub(super) fn ids_together(&self) -> usize {
        self.connected.request_ids_max.min(REQUEST_IDS_TOGETHER)
    }

    /// Sends a request and waits for its reply. A refusal is an error.
    pub(super) fn call(&self, request: Request) -> Result<Reply> {
        match self.transport.call(request).map_err(|fault| self.error(fault))? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// As [`Self::call`], for a request whose reply is `Done`.
    pub(super) fn call_for_done(&self, request: Request) -> Result<()> {
        let name = request.name();
        match self.call(request)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(name, &other)),
        }
    }

    /// Gives back holds. Waits for nothing, whatever the store does: this is called with locks held
    /// that we do not know. Nobody is told if the store has gone: there are no holds then.
    pub(super) fn release(&self, holds: &[(ObjectId, u32)]) {
        self.transport.release(holds);
    }

    /// What there is of these objects as far as it is known without asking the store: what is in
    /// its directory, and what is held.
    pub(super) fn find_here(
        self: &Arc<Self>,
        ids: &[ObjectId],
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        let mut found = Vec::with_capacity(ids.len());
        self.find_in_directory(ids, |object| {
            found.push(object);
            true
        })?;
        found.resize(ids.len(), None);
        let mut missing =
            ids.iter().zip(&mut found).filter(|(_, found)| found.is_none()).peekable();
        if missing.peek().is_some()
            && let Some(held) = self.held.get()
        {
            let held = lock(held);
            for (id, found) in missing {
                *found = held.get(id).and_then(Weak::upgrade).map(ObjectBuffer::new);
            }
        }
        Ok(found)
    }

    /// All of these objects, if the directory has them.
    pub(super) fn get_at_hand(
        self: &Arc<Self>,
        ids: &[ObjectId],
    ) -> Result<Option<Vec<ObjectBuffer>>> {
        let mut found = Vec::with_capacity(ids.len());
        self.find_in_directory(ids, |object| object.map(|object| found.push(object)).is_some())?;
        Ok((found.len() == ids.len()).then_some(found))
    }

    /// The object, if the directory has it.
    pub(super) fn find_one_in_directory(
        self: &Arc<Self>,
        id: &ObjectId,
    ) -> Result<Option<ObjectBuffer>> {
        let Some(direct) = self.transport.directory() else { return Ok(None) };
        match direct.look(id) {
            Some(seen) => self.pin(direct, *id, seen),
            None => Ok(None),
        }
    }

    /// Says of one object after another what the directory has, until `each` wants no more.
    fn find_in_directory(
        self: &Arc<Self>,
        ids: &[ObjectId],
        mut each: impl FnMut(Option<ObjectBuffer>) -> bool,
    ) -> Result<()> {
        let mut seen = [None; LOOKS_TOGETHER];
        for ids in ids.chunks(LOOKS_TOGETHER) {
            // Meanwhile another thread may have given something back, or the store have ended.
            let Some(direct) = self.transport.directory() else { return Ok(()) };
            for (seen, id) in seen.iter_mut().zip(ids) {
                *seen = direct.look(id);
            }
            for (seen, id) in seen.iter().zip(ids) {
                let object = seen.map_or(Ok(None), |seen| self.pin(direct, *id, seen))?;
                if !each(object) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn pin(
        self: &Arc<Self>,
        direct: &DirectReader,
        id: ObjectId,
        seen: Found<'_>,
    ) -> Result<Option<ObjectBuffer>> {
        match direct.pin(seen) {
            Attempt::Pinned(slot, location) => {
                let held = self.hold(id, &location, Hold::Pinned(slot));
                Ok(Some(ObjectBuffer::new(Arc::new(held?))))
            }
            Attempt::Missed => Ok(None),
            Attempt::MissedAndTell(slot) => {
                self.transport.tell_unpinned(slot);
                Ok(None)
            }
        }
    }

    /// Whether the object is there, if that is known without asking the store.
    pub(super) fn has_here(&self, id: &ObjectId) -> bool {
        self.transport.directory().is_some_and(|direct| direct.contains(id)) || self.holds(id)
    }

    /// Whether this client holds the object.
    pub(super) fn holds(&self, id: &ObjectId) -> bool {
        self.transport.direct().is_some_and(|direct| direct.has_pinned(id))
            || self
                .held
                .get()
                .is_some_and(|held| lock(held).get(id).is_some_and(|held| held.strong_count() > 0))
    }

    /// Takes over what the store has granted, one hold or pin for each entry.
    pub(super) fn admit(
        self: &Arc<Self>,
        granted: &[(ObjectId, Granted)],
    ) -> Result<Vec<ObjectBuffer>> {
        // All of them first, so that those that are not used give themselves back.
        let held = granted.iter().map(|(id, Granted { location, pin })| {
            self.hold(*id, location, pin.map_or(Hold::Counted, Hold::Pinned))
        });
        let held: Vec<Result<Held>> = held.collect();
        let mut buffers =
            held.into_iter().map(|held| held.map(Arc::new)).collect::<Result<Vec<_>>>()?;
        // Those that are not needed must be dropped after the lock has been given up.
        let _surplus = self.share(&mut buffers);
        Ok(buffers.into_iter().map(ObjectBuffer::new).collect())
    }

    /// Strikes out an object that is not held any more, unless it is held anew.
    pub(super) fn forget(&self, id: &ObjectId) {
        let Some(held) = self.held.get() else { return };
        let mut held = lock(held);
        if held.get(id).is_some_and(|known| known.strong_count() == 0) {
            held.remove(id);
        }
    }

    /// The error for a fault of this connection.
    pub(super) fn error(&self, fault: Fault) -> Error {
        fault.at(&self.path)
    }

    /// The store answered with something else than what was asked for.
    pub(super) fn unexpected(&self, request: &'static str, reply: &Reply) -> Error {
        self.error(unexpected(request, reply).into())
    }

    /// Ends this connection in an orderly way, so that all that was held has been released when
    /// this returns. If the store does not play along it is left to itself.
    pub(super) fn say_goodbye(&self) {
        let end = SendTime::Until(self.grace_end());
        if let Ok(mut goodbye) = self.transport.start(Request::Disconnect, end) {
            let _ = goodbye.wait_until(Some(self.grace_end()));
        }
    }

    /// Cancels what waits, and lets nothing in that may wait.
    pub(super) fn close(&self) {
        // If the store has gone, nobody waits for it any more.
        let _ = self.transport.close(self.grace_end());
    }

    /// When to give up on a request that the store should answer at once.
    fn grace_end(&self) -> Timestamp {
        self.transport.clock.now().after(self.answer_grace)
    }

    fn hold(self: &Arc<Self>, id: ObjectId, location: &Location, hold: Hold) -> Result<Held> {
        match self.view(id, location) {
            Ok((bytes, data_len)) => Ok(Held { id, bytes, data_len, hold }),
            Err(error) => {
                self.give_back(id, hold);
                Err(error)
            }
        }
    }

    /// An object's data with the metadata behind it, and how much of it is data.
    #[inline]
    fn view(self: &Arc<Self>, id: ObjectId, location: &Location) -> Result<(View<Self>, usize)> {
        let Location { segment, offset, data_size, metadata_size } = *location;
        // What the directory says was not checked on its way, as what comes by message is.
        let len = data_size.checked_add(metadata_size);
        let len = len.ok_or_else(|| self.outside(id, location))?;
        let extent = Extent { segment, offset, len };
        let view = View::kept_by(Arc::clone(self), extent, |connection| {
            let mapping = connection.transport.segments.mapping(segment, Access::ReadOnly);
            mapping.map(|mapping| &**mapping)
        })?;
        // The whole is no longer than what is mapped, and so is its part.
        view.zip(usize::try_from(data_size).ok()).ok_or_else(|| self.outside(id, location))
    }

    /// Gives one hold back. Waits for nothing.
    pub(super) fn give_back(&self, id: ObjectId, hold: Hold) {
        match hold {
            Hold::Counted => {
                self.forget(&id);
                self.release(&[(id, 1)]);
            }
            Hold::Pinned(slot) => self.transport.unpin(slot),
            Hold::GivenBack => {}
        }
    }

    /// Enters objects into the table. Those that are there already replace their newcomers, which
    /// are returned.
    fn share(&self, newcomers: &mut [Arc<Held>]) -> Vec<Arc<Held>> {
        let Some(held) = self.held.get() else {
            return Vec::new();
        };
        let mut surplus = Vec::new();
        let mut held = lock(held);
        for newcomer in newcomers {
            // Each pin is one of its own.
            if newcomer.hold != Hold::Counted {
                continue;
            }
            match held.get(&newcomer.id).and_then(Weak::upgrade) {
                Some(known) => surplus.push(std::mem::replace(newcomer, known)),
                None => {
                    held.insert(newcomer.id, Arc::downgrade(newcomer));
                }
            }
        }
        surplus
    }

    /// The store named a place that is not in its memory.
    pub(super) fn outside(&self, id: ObjectId, location: &Location) -> Error {
        let reason = format!("object {id} would lie outside of its segment: {location:?}");
        self.error(
            crate::protocol::ProtocolError::InvalidField { field: "Location", reason }.into(),
        )
    }
}

impl Drop for Connection {
    /// Closing the socket would not be enough while the flusher has it, or an event loop.
    fn drop(&mut self) {
        // First, so that the store finds nobody left when the socket ends.
        self.life = None;
        self.transport.hang_up();
    }
}

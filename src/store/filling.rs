//! Puts whose bytes are being written. Part of [`Store`].
//!
//! The objects of a put have their place and are not sealed until all their bytes are there:
//! whoever writes them says how it went ([`Store::done`]). That is the server's thread itself,
//! which does it at once. So nothing that the store is told comes in between, the departure of the
//! putter neither, and nobody sees the objects unsealed. If the bytes could not be written the
//! objects go as if their creator had aborted them.

use crate::ids::{ClientId, Extent, Slot, Ticket};
use crate::protocol::message::Reply;
use crate::protocol::refusal::Refusal;
use crate::store::clients::Hold;
use crate::store::{Asked, Effect, Store, Work, WorkOutcome};

/// A put whose bytes are being written.
#[derive(Debug)]
pub struct Filling {
    ticket: Ticket,
    asked: Asked,
    /// Its objects, in its order. Nobody but the putter holds them, and he is there.
    slots: Vec<Slot>,
}

impl Store {
    /// The objects of a put have got their places; now come the bytes.
    pub(super) fn fill(
        &mut self,
        asked: Asked,
        slots: Vec<Slot>,
        writes: Vec<(Extent, Vec<u8>)>,
    ) -> Option<Reply> {
        if writes.is_empty() {
            self.seal_filled(asked.client, &slots);
            return Some(Reply::Done);
        }
        let ticket = self.space.issue_ticket();
        let former = self.filling.replace(Filling { ticket, asked, slots });
        assert!(former.is_none(), "one put is filled at a time");
        self.effects.push(Effect::Start { ticket, work: Work::Fill { writes } });
        None
    }

    /// Whether what has ended was the writing of a put's bytes. If so, that put is answered.
    pub(super) fn end_filling(&mut self, ticket: Ticket, outcome: WorkOutcome) -> bool {
        let Some(filling) = self.filling.take_if(|it| it.ticket == ticket) else { return false };
        let Filling { asked, slots, .. } = filling;
        match outcome {
            WorkOutcome::Done => {
                self.seal_filled(asked.client, &slots);
                self.reply(asked, Reply::Done);
            }
            WorkOutcome::Failed => {
                self.counters.fills_failed += 1;
                for slot in slots {
                    self.remove_unsealed(asked.client, slot);
                }
                self.refuse(asked, Refusal::MemoryLost);
            }
        }
        true
    }

    /// Whether these bytes are being written by us.
    pub(super) fn is_being_filled(&self, slot: Slot) -> bool {
        self.filling.as_ref().is_some_and(|filling| filling.slots.contains(&slot))
    }

    /// All objects of a put become visible, and idle.
    fn seal_filled(&mut self, client: ClientId, slots: &[Slot]) {
        for slot in slots {
            self.seal_slot(*slot, client);
        }
        for slot in slots {
            self.release_hold(client, *slot, Hold::granted(1));
        }
    }
}

//! What the model's clients leave: seals that they have told, the end of a connection, and survivors.

use super::{Hold, Model, Object, Seen};
use crate::ids::{ClientId, Extent, ObjectId};
use crate::protocol::message::Subject;
use crate::store::tests::simulation::Notice;

/// How often the store found something out by looking.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoundOut {
    pub(super) seals: u64,
    pub(super) seals_at_deadlines: u64,
    seals_without_room: u64,
    pub(super) deaths: u64,
    deaths_with_quarantine: u64,
    deaths_without_room: u64,
}

impl FoundOut {
    /// With names.
    pub fn named(self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("seals found out", self.seals),
            ("seals found out at deadlines", self.seals_at_deadlines),
            ("seals found out for want of room", self.seals_without_room),
            ("deaths found out", self.deaths),
            ("deaths found out that end a quarantine", self.deaths_with_quarantine),
            ("deaths found out for want of room", self.deaths_without_room),
        ];
        all.into_iter()
    }
}

impl Model {
    fn is_told(&self, id: &ObjectId) -> bool {
        self.objects.get(id).is_some_and(|object| object.told.is_some())
    }

    /// The store must have looked at what an answer depends on.
    pub(super) fn settle_for(&mut self, subject: Subject<'_>, seen: &mut Seen) {
        let unsealed = self.objects.values().filter(|object| object.sealed.is_none()).count();
        match subject {
            Subject::Nothing => {}
            Subject::Objects(ids) if ids.len() <= unsealed => {
                for id in ids {
                    self.settle(*id, seen);
                }
            }
            Subject::Objects(_) | Subject::Everything => {
                self.settle_what_was_noticed(seen);
                let denied = self.objects.keys().find(|id| self.is_told(id));
                assert_eq!(denied, None, "a seal that was told is known to every answer");
            }
        }
    }

    /// What was told of an object comes to be.
    pub(super) fn settle(&mut self, id: ObjectId, seen: &mut Seen) {
        if self.is_told(&id) {
            self.settle_but_hold(id, seen);
            self.let_go_with_seal(id, seen);
        }
    }

    /// The same, but that the creator lets go.
    pub(super) fn settle_but_hold(&mut self, id: ObjectId, seen: &mut Seen) {
        if self.is_told(&id) {
            let notice = seen.take_notice();
            assert_eq!(notice, Some(Notice::Sealed(id)), "a seal that was told is known");
            self.found_out.seals += 1;
            self.seal(id, self.now, seen);
        }
    }

    pub(super) fn let_go_with_seal(&mut self, id: ObjectId, seen: &mut Seen) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        let creator = object.creator;
        if object.told.take() == Some(true) {
            self.drop_hold(creator, id, Hold::ONE, seen);
        }
    }

    /// What the store finds out next, after what it met before that.
    fn next_notice(&mut self, seen: &mut Seen) -> Option<Notice> {
        while let Some(id) = seen.parked_before_notice() {
            self.park(id, seen);
        }
        seen.notice()
    }

    fn settle_what_was_noticed(&mut self, seen: &mut Seen) {
        while let Some(Notice::Sealed(id)) = self.next_notice(seen) {
            assert!(self.is_told(&id), "the store seals what was told");
            self.settle(id, seen);
        }
    }

    /// Before it refuses a create for want of room the store looks at everything, or may do so.
    pub(super) fn catch_up(&mut self, seen: &mut Seen) {
        let FoundOut { seals, deaths, .. } = self.found_out;
        self.settle_what_was_noticed(seen);
        self.look_at_survivors(seen);
        self.found_out.seals_without_room += self.found_out.seals - seals;
        self.found_out.deaths_without_room += self.found_out.deaths - deaths;
    }

    /// Nobody is refused for want of room while there is something that is told.
    pub(super) fn check_caught_up(&self) {
        let unknown = self.objects.keys().find(|id| self.is_told(id));
        assert_eq!(unknown, None, "a seal that was told is known before a create is refused");
    }

    /// Whether it would find nothing then.
    pub fn has_nothing_to_catch_up(&self) -> bool {
        !self.objects.keys().any(|id| self.is_told(id))
            && !self.clients.values().any(|client| client.survives)
    }

    /// The store looks at survivors when it chooses to. Those that have died are gone now.
    pub(super) fn look_at_survivors(&mut self, seen: &mut Seen) {
        let mut dead = Vec::new();
        while let Some(Notice::Alive(client, is_alive)) = self.next_notice(seen) {
            seen.take_notice();
            assert!(self.clients[&client].survives, "only survivors are looked at");
            if is_alive {
                self.look_at_parked_of(client, seen);
            } else {
                let is_kept = self.quarantined.iter().any(|(survivor, ..)| *survivor == client);
                self.found_out.deaths += 1;
                self.found_out.deaths_with_quarantine += u64::from(is_kept);
                self.quarantined.retain(|(survivor, ..)| *survivor != client);
                self.drop_pins(client);
                dead.push(client);
            }
        }
        for client in dead {
            self.drop_client(client, seen);
        }
    }

    /// Nobody is served before all that the dead had is gone, and before that the store may begin to
    /// give memory back.
    pub(super) fn begin_trim_after(&mut self, deaths_before: u64, seen: &Seen) {
        if let Some(Extent { offset, len, .. }) = seen.trim
            && self.found_out.deaths > deaths_before
        {
            self.slice = Some((offset, offset + len));
        }
    }

    /// In the order of the store's slots.
    fn look_at_parked_of(&mut self, client: ClientId, seen: &mut Seen) {
        let mut slots: Vec<_> = seen.slots_before.iter().map(|(id, slot)| (*slot, *id)).collect();
        slots.sort_unstable();
        for (_, id) in slots {
            let witness = self.objects.get(&id).and_then(|object| object.witness);
            if witness == Some(client) {
                self.look_at_parked(id, seen);
            }
        }
    }

    /// The connection of a client has ended: what it waited for and what it was creating is gone,
    /// and what it has is gone with it, unless it survives.
    pub fn disconnect(&mut self, client: ClientId, has_said_goodbye: bool, seen: &mut Seen) {
        self.counters.clients_disconnected += 1;
        self.waiting.retain(|waiting| waiting.call.client != client);
        self.queue.retain(|create| create.call.client != client);
        let survives = !has_said_goodbye && {
            let asked = seen.take_notice();
            assert!(matches!(asked, Some(Notice::Alive(asked, _)) if asked == client));
            asked == Some(Notice::Alive(client, true))
        };
        let left = self.clients.get_mut(&client).expect("only connected clients leave");
        (left.survives, left.stream) = (survives, None);
        let idle = left.idle.ids();
        if !survives {
            self.drop_pins(client);
        }
        for id in idle {
            self.order_of(&id).forget(&id);
            let size = self.objects[&id].size();
            self.everybodys.became_idle(id, size, self.tick);
            self.objects.get_mut(&id).unwrap().account = None;
        }
        for object in self.objects.values_mut().filter(|object| object.account == Some(client)) {
            object.account = None;
        }
        let is_own = |object: &&Object| object.sealed.is_none() && object.creator == client;
        for id in seen.listed {
            if self.objects.get(id).filter(is_own).is_none() {
                continue;
            }
            if self.is_told(id) {
                self.settle(*id, seen);
                continue;
            }
            let location = self.objects[id].location;
            if survives && location.size() > 0 {
                let end = location.offset + super::room::rounded(location.size());
                self.quarantined.push((client, location.offset, end));
            }
            self.drop_hold(client, *id, Hold::ONE, seen);
        }
        if !survives {
            self.drop_client(client, seen);
        }
        self.serve_queue(seen);
    }

    fn drop_pins(&mut self, client: ClientId) {
        for object in self.objects.values_mut() {
            object.pins.remove(&client);
        }
    }

    /// Nothing of a client is left. All of it goes at once, so in no order that a user could know;
    /// the store takes that of its list.
    fn drop_client(&mut self, client: ClientId, seen: &mut Seen) {
        for id in seen.listed {
            let object = self.objects.get(id);
            if let Some(hold) = object.and_then(|object| object.holds.get(&client)).copied() {
                self.drop_hold(client, *id, hold, seen);
            }
        }
        for id in seen.listed {
            let witness = self.objects.get(id).and_then(|object| object.witness);
            if witness == Some(client) {
                self.look_at_parked(*id, seen);
            }
        }
        self.clients.remove(&client);
    }

    /// Whether nothing but memory that it was writing to is kept for a survivor.
    pub fn has_nothing(&self, client: ClientId) -> bool {
        let is_of = |object: &Object| object.is_held_by(client) || object.witness == Some(client);
        !self.objects.values().any(is_of)
    }
}

//! What always holds between two requests, checked in one walk over the whole state.
//!
//! Run after every step in tests, in simulation and while fuzzing. It never repairs anything: a
//! failure is a bug of ours, and its message is the fact that does not hold.

use std::collections::BTreeMap;

use crate::ids::Slot;
use crate::store::Store;
use crate::store::clients::{Presence, WaitCost};
use crate::store::object_table::State;
use crate::store::waiting::Place;

impl Store {
    /// Walks the whole state and checks that its parts agree.
    ///
    /// # Panics
    /// If they do not, with the fact that is wrong.
    pub fn check_invariants(&self) {
        self.idle.check_invariants();
        self.quotas.check_invariants();
        self.waits.check_invariants();
        self.creates.check_invariants();
        self.subscriptions.check_invariants();
        self.check_holds();
        self.check_memory();
        self.check_idle();
        self.check_search();
        self.check_waiters();
    }

    /// An object's holders are the clients that hold it, and the store while it wakes those who
    /// waited and while readers have it pinned; an unsealed one has exactly its creator.
    fn check_holds(&self) {
        let mut holders: BTreeMap<Slot, u32> = BTreeMap::new();
        for (_, client) in self.clients.iter() {
            let mut bytes = 0;
            let mut unsealed = 0;
            for (slot, hold) in &client.holds {
                assert!(!hold.is_empty(), "a hold counts at least one");
                *holders.entry(*slot).or_default() += 1;
                bytes += self.objects.get(*slot).size();
                unsealed += u64::from(!self.objects.get(*slot).is_sealed());
            }
            assert_eq!(client.held_bytes, bytes, "a client's bytes are those of what it holds");
            assert_eq!(client.unsealed, unsealed, "a client's unsealed objects are those it holds");
        }
        self.parked.check_invariants();
        for slot in self.parked.iter() {
            *holders.entry(slot).or_default() += 1;
            assert!(self.objects.get(slot).is_sealed(), "only sealed objects are pinned");
        }
        for slot in &self.jobs.wakes {
            *holders.entry(*slot).or_default() += 1;
            let object = self.objects.get(*slot);
            assert!(object.is_sealed() && object.is_waking, "only sealed objects wake anybody");
        }
        let mut unsealed = 0;
        for (slot, object) in self.objects.iter_from(0) {
            let counted = holders.get(&slot).copied().unwrap_or(0);
            assert_eq!(object.holders, counted, "an object's holders are the clients holding it");
            if let State::Created { creator } = object.state {
                unsealed += 1;
                assert!(self.unsealed.contains(&(creator, slot)), "what is unsealed is listed");
                assert_eq!(object.holders, 1, "an unsealed object has one holder");
                let holds = &self.clients.get(creator).holds;
                assert!(holds.contains_key(&slot), "the creator holds its unsealed object");
            }
            assert_eq!(
                self.objects.find(&object.id),
                Some(slot),
                "every object is found by its id"
            );
        }
        assert_eq!(self.unsealed.len(), unsealed, "the number of unsealed objects is kept");
    }

    /// Each byte is of one object, in transit, or free.
    fn check_memory(&self) {
        let objects = self.objects.iter_from(0).map(|(_, object)| object);
        self.space.check_invariants(objects.map(|object| (object.location.offset, object.size())));
        assert!(
            self.objects.len() <= self.config.objects_max as usize,
            "there are not too many objects"
        );
    }

    /// A search for room stands on objects that are idle.
    fn check_search(&self) {
        for slot in self.search.iter().flat_map(|(_, search)| search.cursors()) {
            assert!(
                self.objects.try_get(slot).is_some(),
                "a search goes on from an object that is there"
            );
            assert!(self.is_idle(slot), "nor on what is in use");
        }
    }

    /// The policies hold exactly the sealed objects without holders.
    fn check_idle(&self) {
        let (mut idle_objects, mut idle_bytes) = (0, 0);
        let mut charged: BTreeMap<_, u64> = BTreeMap::new();
        for (slot, object) in self.objects.iter_from(0) {
            let is_idle = object.is_unused();
            let policy = match object.account() {
                None => &self.idle,
                Some(owner) => {
                    *charged.entry(owner).or_default() += object.size();
                    &self.quotas.get(owner).expect("a charged object's owner has a quota").idle
                }
            };
            assert_eq!(policy.is_idle(slot), is_idle, "idle objects are known to their policy");
            if is_idle && object.account().is_none() {
                idle_objects += 1;
                idle_bytes += object.size();
            }
        }
        assert_eq!(self.idle.idle_objects(), idle_objects, "the policy has no other objects");
        assert_eq!(self.idle.idle_bytes(), idle_bytes, "the policy's bytes are those objects'");
        for (owner, account) in self.quotas.iter() {
            assert!(self.clients.contains(owner), "the owner of a quota is connected");
            let used = charged.get(&owner).copied().unwrap_or(0);
            assert_eq!(account.used, used, "a quota's use is the sum of its objects");
        }
    }

    /// Waiters are connected and miss only what is not sealed; a get holds the rest.
    fn check_waiters(&self) {
        let mut waiting: BTreeMap<_, (usize, WaitCost)> = BTreeMap::new();
        let mut holds: BTreeMap<_, u64> = BTreeMap::new();
        for waiter in self.waits.iter() {
            for (place, id) in waiter.places().iter().zip(&waiter.ids) {
                let sealed = self.find_sealed(id);
                if *place == Place::Missing {
                    let is_told_soon = sealed.is_some_and(|slot| self.objects.get(slot).is_waking);
                    assert!(sealed.is_none() || is_told_soon, "no missing id is sealed");
                } else if *place == Place::There && waiter.is_get() {
                    let slot = sealed.expect("what a waiting get has got is there");
                    *holds.entry((waiter.asked.client, slot)).or_default() += 1;
                }
            }
        }
        let waiters = self.waits.iter().map(|waiter| (waiter.asked.client, waiter.cost()));
        let creates =
            self.creates.iter().map(|create| (create.asked.client, create.creation.cost()));
        let askers = self.jobs.askers().filter(|client| self.clients.is_here(*client));
        let askers = askers.map(|client| (client, WaitCost::default()));
        for (client, cost) in waiters.chain(creates).chain(askers) {
            let (count, costs) = waiting.entry(client).or_default();
            *count += 1;
            costs.ids += cost.ids;
            costs.bytes += cost.bytes;
        }
        self.clients.memory.check_invariants();
        let kept = self.clients.iter().map(|(_, client)| client.waited_memory()).sum::<u64>();
        // Unfinished frames and unread replies count as well, where there are any.
        assert!(self.clients.memory.used() >= kept, "what waits is counted");
        for (id, client) in self.clients.iter() {
            if client.presence != Presence::Here {
                waiting.remove(&id);
                holds.retain(|(holder, _), _| *holder != id);
                continue;
            }
            for (slot, hold) in &client.holds {
                let counted = holds.remove(&(id, *slot)).unwrap_or(0);
                assert_eq!(hold.waiting, counted, "a waiting get holds what it has got");
            }
            let counted = waiting.remove(&id).unwrap_or_default();
            assert_eq!((client.waiting, client.waited), counted, "waits are counted");
        }
        assert!(waiting.is_empty() && holds.is_empty(), "only connected clients wait");
    }
}

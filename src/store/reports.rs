//! Looking at the store: lists, statistics and the debug text. Part of [`Store`]; changes nothing.

use std::fmt::Write;
use std::ops::Range;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::limits;
use crate::protocol::message::{ClientInfo, ObjectInfo, ObjectState, Reply, Stats};
use crate::protocol::refusal::FullStore;
use crate::store::Store;
use crate::store::clients::Client;
use crate::store::object_table::{Object, State};

impl Store {
    pub(super) fn list(&self, cursor: u32) -> Reply {
        let mut listed = Vec::new();
        let mut next = None;
        for (looked, (slot, object)) in self.objects.slots_from(cursor).enumerate() {
            if listed.len() == limits::LIST_PART_MAX || looked == limits::LIST_LOOKS_MAX {
                next = Some(slot.0);
                break;
            }
            listed.extend(object.map(|object| (slot, self.object_info(slot, object))));
        }
        self.count_readers(cursor..next.unwrap_or(self.objects.slots().end), &mut listed);
        Reply::ObjectList { objects: listed.into_iter().map(|(_, info)| info).collect(), next }
    }

    /// Adds to listed objects the clients that have them pinned in the directory and do not hold
    /// them otherwise.
    fn count_readers(&self, slots: Range<u32>, listed: &mut [(Slot, ObjectInfo)]) {
        self.directory.pins(slots, &mut |client, slot| {
            if let Ok(index) = listed.binary_search_by_key(&slot, |(slot, _)| *slot)
                && !self.clients.has_hold(client, slot)
            {
                listed[index].1.ref_count += 1;
            }
        });
    }

    fn object_info(&self, slot: Slot, object: &Object) -> ObjectInfo {
        let (create_time, construction) = self.directory.times(slot);
        let (state, creator, construct_duration) = match object.state {
            State::Created { creator } => (ObjectState::Created, Some(creator), None),
            State::Sealed { .. } => (ObjectState::Sealed, None, Some(construction)),
        };
        ObjectInfo {
            id: object.id,
            data_size: object.location.data_size,
            metadata_size: object.location.metadata_size,
            // What the store holds itself does not count.
            ref_count: object.holders
                - u32::from(self.parked.contains(slot))
                - u32::from(object.is_waking),
            create_time,
            construct_duration,
            state,
            delete_pending: object.delete_pending,
            creator,
        }
    }

    pub(super) fn list_clients(&self, after: ClientId, holding: Option<ObjectId>) -> Reply {
        // An object that is not there is held by nobody.
        let wanted = match holding.map(|id| self.objects.find(&id)) {
            None => None,
            Some(Some(slot)) => Some(slot),
            Some(None) => return Reply::ClientList { clients: Vec::new(), next: None },
        };
        let holds = |id, client: &Client, slot: Slot| {
            client.holds.contains_key(&slot) || self.directory.has_pinned(id, slot)
        };
        let mut rest = self.clients.after(after).take(limits::CLIENTS_PART_MAX);
        let mut clients = Vec::new();
        let mut last = None;
        for (id, client) in rest.by_ref() {
            last = Some(id);
            if wanted.is_none_or(|slot| holds(id, client, slot)) {
                clients.push(self.client_info(id, client));
            }
        }
        let next = last.filter(|last| self.clients.after(*last).next().is_some());
        Reply::ClientList { clients, next }
    }

    fn client_info(&self, id: ClientId, client: &Client) -> ClientInfo {
        let account = self.quotas.get(id);
        let (mut objects, mut bytes) = (client.holds.len() as u64, client.held_bytes);
        self.directory.pins_of(id, self.objects.slots(), &mut |slot| {
            if let Some(object) = self.objects.try_get(slot)
                && object.is_sealed()
                && !client.holds.contains_key(&slot)
            {
                objects += 1;
                bytes += object.size();
            }
        });
        ClientInfo {
            id: id.0,
            name: client.peer.name.clone(),
            pid: client.peer.pid,
            uid: client.peer.uid,
            gid: client.peer.gid,
            objects,
            bytes,
            unsealed_objects: client.unsealed,
            waiting_requests: client.waiting as u64,
            quota: account.map(|account| account.quota),
            quota_used: account.map_or(0, |account| account.used),
            subscribed: self.subscriptions.contains(id),
        }
    }

    /// The state of the store in numbers. Takes the longer the more readers have pinned; a request
    /// for it is served in slices.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats_with(self.pinned_idle_bytes(self.objects.slots()).0)
    }

    /// The same, of which so many bytes are idle and yet pinned.
    pub(super) fn stats_with(&self, pinned_bytes: u64) -> Stats {
        let evictable = self.evictable_bytes().saturating_sub(pinned_bytes);
        Stats {
            capacity: self.config.capacity,
            used: self.space.used(),
            pinned: self.space.used() - evictable,
            evictable,
            largest_free_run: self.space.largest_free_run(),
            objects: self.objects.len() as u64,
            unsealed_objects: self.unsealed.len() as u64,
            clients: self.clients.len() as u64,
            waiting_requests: (self.waits.len() + self.creates.len() + self.jobs.askers().count())
                as u64,
            subscribers: self.subscriptions.len() as u64,
            counters: self.counters.named().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }

    /// Bytes that could be evicted, if none of it turns out to be pinned.
    pub(super) fn evictable_bytes(&self) -> u64 {
        self.idle.idle_bytes() + self.quotas.totals().idle_bytes
    }

    /// The numbers that explain why there is no room.
    pub(super) fn full(&self, requested: u64) -> FullStore {
        FullStore {
            requested,
            capacity: self.config.capacity,
            used: self.space.used(),
            pinned: self.space.used() - self.evictable_bytes(),
            largest_free_run: self.space.largest_free_run(),
            objects: self.objects.len() as u64,
            objects_max: u64::from(self.config.objects_max),
        }
    }

    /// The text that the original printed, line for line; programs match on parts of it.
    pub(super) fn debug_text(&self, pinned_bytes: u64) -> String {
        let capacity = self.config.capacity;
        let evictable = self.evictable_bytes().saturating_sub(pinned_bytes);
        let pinned = self.space.used() - evictable;
        let quotas = self.quotas.totals();
        let (charged, busy) = (quotas.objects, quotas.busy_objects);
        let idle = (self.idle.idle_bytes(), self.idle.idle_objects());
        let global = list_report("global lru", capacity - quotas.granted, capacity, idle);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "num clients with quota: {}\nquota map size: {charged}\npinned quota map size: {busy}\n\
             allocated bytes: {}\nallocation limit: {capacity}\npinned bytes: {}\n{global}\n\
             (global lru) num evictions: {}\n(global lru) bytes evicted: {}",
            self.quotas.len(),
            self.space.used(),
            pinned,
            self.counters.objects_evicted,
            self.counters.bytes_evicted,
        );
        for (client, account) in self.quotas.iter().take(limits::CLIENTS_PART_MAX) {
            let name = &self.clients.get(client).peer.name;
            let use_of_quota = (account.used, account.objects());
            let list = list_report(name, account.quota, account.quota, use_of_quota);
            let _ = write!(text, "\n{list}");
        }
        // The text has to fit into a frame, whatever the clients do.
        let left_out = self.quotas.len().saturating_sub(limits::CLIENTS_PART_MAX);
        if left_out > 0 {
            let _ = write!(text, "\nclients with quota left out: {left_out}");
        }
        text
    }
}

/// The lines of the debug text about one eviction list, with its bytes and its objects.
fn list_report(name: &str, capacity: u64, original: u64, (used, objects): (u64, usize)) -> String {
    // What quotas have taken from the capacity counts as used.
    let gone = original - capacity + used;
    let percent = if original == 0 { 0.0 } else { 100.0 * gone as f64 / original as f64 };
    let percent = six_digits(percent);
    format!(
        "({name}) capacity: {capacity}\n({name}) used: {percent}%\n({name}) num objects: {objects}"
    )
}

/// A number from 0 up with six significant digits and no zeros at the end, as C's `%g` prints it.
fn six_digits(number: f64) -> String {
    let scientific = format!("{number:.5e}");
    let (digits, exponent) = scientific.split_once('e').expect("a power of ten follows an e");
    let exponent: i32 = exponent.parse().expect("the power of ten is a number");
    match usize::try_from(5 - exponent) {
        Ok(decimals) if exponent >= -4 => without_zeros(&format!("{number:.decimals$}")),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", without_zeros(digits), exponent.abs())
        }
    }
}

fn without_zeros(number: &str) -> String {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        number.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_digits_are_those_of_printf() {
        let printed = [
            (0.0, "0"),
            (80.0, "80"),
            (41.943_04, "41.943"),
            (99.999_999, "100"),
            (0.080_128_205, "0.0801282"),
            (0.000_123_456_78, "0.000123457"),
            (0.000_009_313_226, "9.31323e-06"),
            (123_456.7, "123457"),
            (1_000_000.0, "1e+06"),
        ];
        for (number, text) in printed {
            assert_eq!(six_digits(number), text);
        }
    }
}

//! What a creator says in its table, and what becomes of that when it leaves.

use std::time::Duration;

use super::simulation::twin::Twin;
use crate::eviction::PolicyKind;
use crate::ids::{ClientId, ObjectId, SegmentId};
use crate::protocol::message::{ObjectState, Placed, Reply, Request, RequestId, Room};
use crate::store::{Effect, Effects, Peer, Store, StoreConfig};
use crate::time::Timestamp;

fn ask(store: &mut Store, client: u64, request: Request) -> Reply {
    let (client, mut effects) = (ClientId(client), Effects::new());
    store.apply(client, RequestId(1), request, Timestamp::ZERO, &mut effects);
    while store.is_busy(client) {
        store.go_on(client, Timestamp::ZERO, &mut effects);
    }
    match effects.pop() {
        Some(Effect::Reply { reply, .. }) => reply,
        other => panic!("it is answered at once: {other:?}"),
    }
}

/// Creators of so many objects, who seal and let go of all but the last of them, and are dead at
/// once. Slices are of so many steps.
fn dies_at_once(objects: u8, steps: usize) {
    let twin = Twin::default();
    twin.state().may_join = true;
    let config = StoreConfig {
        capacity: 10_000,
        segment: SegmentId(0),
        segment_bytes: 65_536,
        objects_max: 1000,
        policy: PolicyKind::Lru,
        trim: None,
        unix_start: Duration::ZERO,
    };
    let mut store = Store::with_directory(config, Box::new(twin.clone()));
    store.slice.steps = steps;
    for client in [1, 2] {
        store.connect(ClientId(client), Peer::default()).expect("nobody is turned away");
        assert!(store.let_read(ClientId(client)));
    }
    let ids: Vec<_> = (0..objects).map(|number| ObjectId::from([number; 20])).collect();
    for id in &ids {
        let room = Room { evict: false, timeout: Some(Duration::ZERO) };
        let create = Request::Create { id: *id, data_size: 8, metadata_size: 0, room };
        let Reply::Created(Placed { seal: Some(seal), .. }) = ask(&mut store, 1, create) else {
            panic!("it is told where to seal");
        };
        if *id != ids[ids.len() - 1] {
            twin.state().seals.insert((ClientId(1), seal.slot), (seal.generation, true));
        }
    }
    let mut effects = Effects::new();
    store.disconnect(ClientId(1), Timestamp::ZERO, &mut effects);
    while store.has_work() {
        store.work(Timestamp::ZERO, &mut effects);
        store.check_invariants();
    }
    let mut expected = vec![ObjectState::Sealed; ids.len() - 1];
    expected.push(ObjectState::Absent);
    assert_eq!(ask(&mut store, 2, Request::GetState { ids }), Reply::States(expected));
    assert_eq!(store.stats().clients, 1);
    assert_eq!(store.stats().pinned, 0);
}

#[test]
fn what_was_sealed_stays_when_its_creator_is_dead_at_once() {
    dies_at_once(3, 1000);
}

#[test]
fn so_it_is_slice_by_slice() {
    dies_at_once(40, 3);
}

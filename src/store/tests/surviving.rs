//! Clients whose connections have ended and of which processes are left, with slices as thin as can
//! be and others in between.

use std::collections::BTreeSet;
use std::time::Duration;

use super::simulation::Twin;
use super::thin::{AT_ONCE, OBJECT_BYTES, OBJECTS, Thin, create, get, id, object};
use crate::ids::{ClientId, Slot};
use crate::limits::SURVIVORS_OF_PROCESS_MAX;
use crate::protocol::message::{Reply, Request, Room};
use crate::protocol::refusal::Refusal;
use crate::store::Peer;

/// A store in which all clients have tables, and processes that live.
fn thin(twin: &Twin, steps: usize, clients: u64) -> Thin {
    twin.state().may_join = true;
    let mut thin = Thin::over(Box::new(twin.clone()), steps, clients);
    for client in (1..=clients).map(ClientId) {
        twin.state().alive.insert(client);
        thin.store.let_read(client);
    }
    thin
}

fn disconnect(thin: &mut Thin, client: u64) {
    let now = thin.now;
    thin.act(|store, effects| store.disconnect(ClientId(client), now, effects));
}

fn die(twin: &Twin, client: u64) {
    twin.state().alive.remove(&ClientId(client));
}

#[test]
fn who_dies_while_he_leaves_is_gone_once() {
    let twin = Twin::default();
    let mut thin = thin(&twin, 4, 2);
    for number in 0..20 {
        let created = thin.ask(1, create(number, OBJECT_BYTES, AT_ONCE));
        assert!(matches!(created, Some(Reply::Created(_))));
    }
    disconnect(&mut thin, 1);
    assert!(thin.store.has_work(), "he has not left yet");
    die(&twin, 1);
    // Somebody looks at those who survive, before he is through.
    for _ in 0..10 {
        thin.ask(2, Request::List { cursor: 0 });
    }
    thin.finish(|_| {});
    assert_eq!(thin.store.stats().clients, 1);
    assert_eq!(thin.store.stats().used, 0);
}

/// A process of this number connects, pins an object and loses the connection, again and again.
/// How often it may.
fn connections_of(pid: u32) -> usize {
    let twin = Twin::default();
    let mut thin = thin(&twin, 1000, 1);
    let objects = vec![object(0, OBJECT_BYTES)];
    let put = Request::Put { objects, room: Room { evict: false, timeout: AT_ONCE } };
    assert_eq!(thin.ask(1, put), Some(Reply::Done));
    let mut clients = 2..=3 * SURVIVORS_OF_PROCESS_MAX as u64;
    let count = clients.clone().count();
    let turned_away = clients.position(|client| {
        let peer = Peer { pid, ..Peer::default() };
        if let Err(refusal) = thin.store.connect(ClientId(client), peer) {
            assert_eq!(refusal, Refusal::TooManyEnded(SURVIVORS_OF_PROCESS_MAX as u64));
            return true;
        }
        twin.state().alive.insert(ClientId(client));
        assert!(thin.store.let_read(ClientId(client)));
        assert!(matches!(thin.ask(client, get(0, AT_ONCE)), Some(Reply::Granted(_))));
        disconnect(&mut thin, client);
        thin.finish(|_| {});
        false
    });
    turned_away.unwrap_or(count)
}

#[test]
fn a_process_with_many_survivors_is_refused_unless_it_cannot_be_told_from_others() {
    assert_eq!(connections_of(7), SURVIVORS_OF_PROCESS_MAX);
    // All processes of other namespaces have this number.
    assert_eq!(connections_of(0), 3 * SURVIVORS_OF_PROCESS_MAX - 1);
}

#[test]
fn whoever_survives_all_comes_back_when_he_is_gone() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let clients = 6;
        let twin = Twin::default();
        let mut thin = thin(&twin, random.usize(1..8), clients);
        let objects = (0..OBJECTS / 2).map(|number| object(number, OBJECT_BYTES)).collect();
        let put = Request::Put { objects, room: Room { evict: false, timeout: AT_ONCE } };
        assert_eq!(thin.ask(1, put), Some(Reply::Done));
        let mut here: BTreeSet<u64> = (1..=clients).collect();
        let mut pins: Vec<(u64, Slot)> = Vec::new();
        let last = clients;
        for _ in 0..300 {
            thin.now = thin.now.after(Duration::from_micros(random.u64(0..1000)));
            let now = thin.now;
            let client = random.u64(1..=clients);
            match random.u8(0..14) {
                0..=3 => thin.slice(),
                4 => thin.act(|store, effects| store.expire(now, effects)),
                5 if client != last && random.bool() && here.remove(&client) => {
                    if random.bool() {
                        die(&twin, client);
                    }
                    disconnect(&mut thin, client);
                }
                6 if !here.contains(&client) => {
                    die(&twin, client);
                    pins.retain(|(owner, _)| *owner != client);
                }
                7 if !pins.is_empty() => {
                    let (owner, slot) = pins.swap_remove(random.usize(..pins.len()));
                    let is_there = twin.state().has_pinned_now(ClientId(owner), slot);
                    if is_there
                        && twin.state().unpin(ClientId(owner), slot)
                        && here.contains(&owner)
                    {
                        thin.begin(owner, Request::Unpinned { slots: vec![slot] });
                    }
                }
                8 if here.contains(&client) => {
                    let number = random.u64(OBJECTS / 2..OBJECTS + 20);
                    let timeout =
                        [AT_ONCE, Some(Duration::from_millis(1)), None][random.usize(0..3)];
                    thin.begin(client, create(number, OBJECT_BYTES * random.u64(0..40), timeout));
                }
                9 if here.contains(&client) => {
                    thin.begin(client, Request::List { cursor: 0 });
                }
                10 if here.contains(&client) => {
                    let asked = get(random.u64(0..OBJECTS), AT_ONCE);
                    if let Some(Reply::Granted(granted)) = thin.ask(client, asked)
                        && let Some(Some(slot)) = granted.first().map(|it| it.and_then(|it| it.pin))
                    {
                        pins.push((client, slot));
                    }
                }
                11 if here.contains(&client) => {
                    thin.begin(client, Request::Delete { ids: vec![id(random.u64(0..OBJECTS))] });
                }
                12 if here.contains(&client) => {
                    thin.begin(client, Request::GetStats);
                }
                13 if here.contains(&client) && random.u8(..10) == 0 => {
                    let quota = Some(random.u64(0..OBJECTS * OBJECT_BYTES / 4));
                    thin.begin(client, Request::SetOptions { client_name: None, quota });
                }
                _ => {}
            }
        }
        for client in here {
            disconnect(&mut thin, client);
        }
        thin.finish(|_| {});
        for client in 1..=clients {
            die(&twin, client);
        }
        for _ in 0..10 {
            thin.now = thin.now.after(Duration::from_secs(2));
            let now = thin.now;
            thin.act(|store, effects| store.expire(now, effects));
            thin.finish(|_| {});
        }
        let stats = thin.store.stats();
        let left = (stats.clients, stats.pinned, stats.waiting_requests, stats.unsealed_objects);
        assert_eq!(left, (0, 0, 0, 0), "seed {seed}");
        assert_eq!(thin.store.next_deadline(), None, "seed {seed}: nothing is left to look at");
    }
}

//! A seal is not answered: what may come between it and the store must not lose it, nor let
//! anybody who knows of it be answered as if it had not been.

use super::*;
use crate::protocol::message::{DeleteOutcome, ObjectState};

fn state(number: u64) -> Request {
    Request::GetState { ids: vec![id(number)] }
}

fn seal(number: u64) -> Request {
    Request::Seal { id: id(number), release: true }
}

impl Peer {
    /// So many questions, and a request behind them.
    fn ask_in_one_piece(&mut self, questions: usize, request_id: RequestId, request: &Request) {
        let mut bytes = Vec::new();
        let mut append = |request_id, request: &Request| {
            let message = ClientMessage::Request(request.clone());
            append_frame(&mut bytes, 0, |out| encode_client(out, request_id, &message)).unwrap();
        };
        for _ in 0..questions {
            append(RequestId(2), &state(2));
        }
        append(request_id, request);
        self.write_bytes(&bytes);
        assert!(self.unsent.is_empty(), "the socket takes all of it");
    }
}

impl Harness {
    /// Two clients, of which the first is creating object 1.
    fn creator_and_other() -> (Self, Peer, Peer) {
        let mut harness = Self::new();
        let mut creator = harness.connect();
        let other = harness.connect();
        assert!(matches!(harness.ask(&mut creator, create(1, 100)), Reply::Created(_)));
        (harness, creator, other)
    }

    /// What the other client is answered that asks when it knows that the creator has sealed, if
    /// the loop has its request at hand before it knows that the creator has said something.
    fn ask_behind_a_seal(request: &Request) -> Reply {
        let (mut harness, mut creator, mut other) = Self::creator_and_other();
        // More than one turn serves, and all of it is received at once.
        let before = limits::TURN_REQUESTS_MAX;
        other.ask_in_one_piece(before, RequestId(1), request);
        harness.turn();
        creator.send(RequestId::NONE, seal(1));
        for _ in 0..before {
            assert!(matches!(harness.reply_to(&mut other).reply, Reply::States(_)));
        }
        harness.reply_to(&mut other).reply
    }
}

#[test]
fn who_knows_of_a_seal_finds_the_object_sealed() {
    let answer = |request| Harness::ask_behind_a_seal(&request);
    assert_eq!(answer(state(1)), Reply::States(vec![ObjectState::Sealed]));
    let Reply::Objects(objects) = answer(get(1, Some(Duration::ZERO))) else { panic!() };
    assert!(objects[0].is_some());
    let wait = Request::Wait { ids: vec![id(1)], count: 1, timeout: Some(Duration::ZERO) };
    assert_eq!(answer(wait), Reply::Ready(vec![true]));
    let delete = Request::Delete { ids: vec![id(1)] };
    assert_eq!(answer(delete), Reply::Deleted(vec![DeleteOutcome::Deleted]));
    assert_eq!(answer(Request::Evict { bytes: 1 }), Reply::Evicted { bytes: 100, objects: 1 });
    let Reply::ObjectList { objects, .. } = answer(Request::List { cursor: 0 }) else { panic!() };
    assert_eq!(objects[0].state, ObjectState::Sealed);
    let Reply::Stats(stats) = answer(Request::GetStats) else { panic!() };
    assert_eq!(stats.unsealed_objects, 0);
}

#[test]
fn an_object_that_nobody_seals_delays_nobody_for_long() {
    let (mut harness, _creator, mut other) = Harness::creator_and_other();
    let turns = harness.counters().turns;
    for _ in 0..100 {
        let reply = harness.ask(&mut other, state(1));
        assert_eq!(reply, Reply::States(vec![ObjectState::Created]));
    }
    assert!(harness.counters().turns - turns <= 300, "{}", harness.counters());
}

#[test]
fn what_comes_behind_a_request_that_is_put_off_is_answered_behind_it() {
    let (mut harness, mut creator, mut other) = Harness::creator_and_other();
    for round in 0..10 {
        other.send(RequestId(10 * round + 1), state(1));
        other.send(RequestId(10 * round + 2), state(2));
        harness.turn();
        other.send(RequestId(10 * round + 3), state(1));
        for number in 1..=3 {
            assert_eq!(harness.reply_to(&mut other).request, RequestId(10 * round + number));
        }
    }
    creator.send(RequestId::NONE, seal(1));
    assert_eq!(harness.ask(&mut other, state(1)), Reply::States(vec![ObjectState::Sealed]));
}

#[test]
fn a_request_that_is_put_off_is_served_behind_all_that_the_next_poll_names() {
    let (mut harness, mut creator, mut other) = Harness::creator_and_other();
    other.send(RequestId(1), state(1));
    harness.turn();
    other.send(RequestId(2), state(2));
    creator.send(RequestId::NONE, seal(1));
    let sealed = Reply::States(vec![ObjectState::Sealed]);
    assert_eq!(harness.reply_to(&mut other).reply, sealed);
}

#[test]
fn who_leaves_while_its_request_is_put_off_is_forgotten() {
    let (mut harness, _creator, mut other) = Harness::creator_and_other();
    other.send(RequestId(1), state(1));
    harness.turn();
    assert!(harness.reactor.outside.connections.has_backlog());
    drop(other);
    harness.wait_for_connections(1);
    assert!(!harness.reactor.outside.connections.has_backlog());
}

#[test]
fn a_seal_counts_though_its_client_was_gone_when_it_was_answered() {
    let (mut harness, mut creator, mut other) = Harness::creator_and_other();
    // The loop sends the first answers, and finds that nobody takes them, before it has read all.
    creator.ask_in_one_piece(3 * limits::TURN_REQUESTS_MAX, RequestId::NONE, &seal(1));
    drop(creator);
    harness.wait_for_connections(1);
    assert_eq!(harness.ask(&mut other, state(1)), Reply::States(vec![ObjectState::Sealed]));
}

#[test]
fn events_are_not_collected_for_who_cannot_take_them() {
    let (mut harness, mut creator, mut other) = Harness::creator_and_other();
    put_many(&mut harness, &mut creator, 2..3 * limits::EVENTS_PART_MAX as u64);
    other.socket.shutdown(std::net::Shutdown::Read).unwrap();
    other.send(RequestId(1), state(2));
    harness.turn();
    other.send(RequestId(2), Request::Subscribe { one_by_one: false });
    (0..100).for_each(|_| harness.turn());
    let Reply::Stats(Stats { subscribers, .. }) = harness.ask(&mut creator, Request::GetStats)
    else {
        panic!()
    };
    assert_eq!(subscribers, 1);
    assert!(harness.reactor.store.has_snapshot_left(ClientId(2)), "nobody walks over it");
    assert_eq!(harness.reactor.poll_timeout(), None);
}

#[test]
fn who_only_talks_is_listened_to_until_it_hangs_up() {
    let (mut harness, mut creator, mut other) = Harness::creator_and_other();
    creator.socket.shutdown(std::net::Shutdown::Read).unwrap();
    for _ in 0..3 {
        creator.send(RequestId(1), state(2));
        harness.turn();
    }
    creator.send(RequestId::NONE, seal(1));
    assert_eq!(harness.ask(&mut other, state(1)), Reply::States(vec![ObjectState::Sealed]));
    assert_eq!(harness.connections(), 2);
    assert_eq!(harness.outbox_bytes(ClientId(1)), 0);
    drop(creator);
    harness.wait_for_connections(1);
}

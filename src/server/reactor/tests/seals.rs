//! A seal need not be answered: what may come between it and the store must not lose it.

use super::*;
use crate::protocol::message::ObjectState;

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
    put_many(&mut harness, &mut creator, 2..30 * limits::EVENTS_PART_MAX as u64);
    other.socket.shutdown(std::net::Shutdown::Read).unwrap();
    other.send(RequestId(1), Request::Subscribe { one_by_one: false });
    (0..100).for_each(|_| harness.turn());
    let Reply::Stats(Stats { subscribers, .. }) = harness.ask(&mut creator, Request::GetStats)
    else {
        panic!()
    };
    assert_eq!(subscribers, 1);
    assert!(harness.reactor.store.has_snapshot_left(ClientId(2)), "nobody walks over it");
    // The time of one turn may be over when something has been done.
    harness.turn_until(|it| it.reactor.poll_timeout().is_none().then_some(()));
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
    harness.turn();
    assert_eq!(harness.ask(&mut other, state(1)), Reply::States(vec![ObjectState::Sealed]));
    assert_eq!(harness.connections(), 2);
    assert_eq!(harness.outbox_bytes(ClientId(1)), 0);
    drop(creator);
    harness.wait_for_connections(1);
}

#[test]
fn of_the_dead_only_what_others_notice_is_served() {
    let (mut harness, mut dead, mut other) = Harness::creator_and_other();
    put_many(&mut harness, &mut other, 2..10);
    let requests = |harness: &Harness| harness.reactor.store.stats().counter("requests");
    let before = requests(&harness);
    dead.ask_in_one_piece(3 * limits::TURN_REQUESTS_MAX, RequestId::NONE, &seal(1));
    dead.send(RequestId(10), Request::Delete { ids: vec![id(2)] });
    drop(dead);
    harness.wait_for_connections(1);
    assert_eq!(requests(&harness), before + 2);
    let states = vec![ObjectState::Sealed, ObjectState::Absent];
    let asked = Request::GetState { ids: vec![id(1), id(2)] };
    assert_eq!(harness.ask(&mut other, asked), Reply::States(states));
}

#[test]
fn strangers_wait_in_the_queue_while_many_come_and_go() {
    let (mut harness, _creator, mut other) = Harness::creator_and_other();
    let many = 4 * limits::STRANGERS_READY_MAX;
    for _ in 0..many {
        drop(harness.dial());
    }
    // A client that asks is served in the next turn, whoever else wants something.
    other.send(RequestId(3), state(1));
    harness.turn();
    assert!(matches!(other.receive(), Incoming::Message(_)));
    harness.turn_until(|harness| {
        assert!(harness.connections() <= 2 + 2 * limits::STRANGERS_READY_MAX);
        (harness.counters().connections_accepted == 2 + many as u64).then_some(())
    });
    harness.wait_for_connections(2);
}

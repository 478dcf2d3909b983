//! Tests of what goes back and when, on the state alone; creates that wait are in the scenarios.

use std::time::Duration;

use super::*;

const AFTER: Duration = Duration::from_nanos(10);
const UNIT: u64 = 128;

/// A segment with objects at chosen places.
struct World {
    pool: Pool,
    trimming: Trimming,
    used_end: u64,
}

impl World {
    fn new(bytes: u64, ready_bytes: u64) -> Self {
        let config = TrimConfig {
            after: AFTER,
            ready_bytes,
            bytes_min: 256,
            slice_bytes: 512,
            unit_bytes: UNIT,
        };
        Self { pool: Pool::new(bytes), trimming: Trimming::new(Some(config), bytes), used_end: 0 }
    }

    fn create(&mut self, size: u64) -> u64 {
        let offset = self.pool.allocate(size).unwrap();
        self.used_end = self.used_end.max(offset + size);
        self.trimming.note_taken(offset, size, self.used_end);
        offset
    }

    fn remove(&mut self, offset: u64, size: u64, now: u64) {
        self.pool.free(offset, size);
        self.trimming.note_freed();
        self.trimming.plan_look(&self.pool, Timestamp::from_nanos(now));
    }

    /// A slice goes to the system, under the ticket of its first byte.
    fn begin_slice(&mut self) -> Option<Range> {
        let slice = self.trimming.next_slice()?;
        self.trimming.began(Ticket(slice.start));
        Some(slice)
    }

    fn end_slice(&mut self, slice: Range, outcome: WorkOutcome) {
        assert!(!self.trimming.done(Ticket(u64::MAX), slice, outcome), "that is other work");
        assert!(self.trimming.done(Ticket(slice.start), slice, outcome));
    }

    /// Looks as often as there is something to look at until then, and gives back what is ripe.
    fn given_back_until(&mut self, now: u64) -> Vec<(u64, u64)> {
        let mut given = Vec::new();
        while let Some(at) = self.trimming.next_look().filter(|at| at.as_nanos() <= now) {
            self.trimming.look(&self.pool, at);
            while let Some(slice) = self.begin_slice() {
                assert!(self.pool.is_free(slice.start, slice.len()));
                self.end_slice(slice, WorkOutcome::Done);
                given.push((slice.start, slice.end));
            }
            self.trimming.check_invariants(&self.pool);
        }
        given
    }
}

#[test]
fn what_was_free_for_long_enough_goes_back_in_slices_and_once() {
    let mut world = World::new(1 << 20, 0);
    let offset = world.create(1300);
    world.remove(offset, 1300, 100);
    assert_eq!(world.given_back_until(109), []);
    assert_eq!(world.given_back_until(110), [(0, 512), (512, 1024), (1024, 1280)]);
    assert_eq!(world.trimming.next_look(), None, "there is nothing left to do");
    assert_eq!(world.given_back_until(1000), []);

    let offset = world.create(64);
    world.remove(offset, 64, 2000);
    assert_eq!(world.given_back_until(3000), [], "too little to be worth it");
    assert_eq!(world.trimming.next_look(), None);
}

#[test]
fn what_is_used_again_meanwhile_stays() {
    let mut world = World::new(1 << 20, 0);
    let (low, high) = (world.create(1024), world.create(1024));
    world.remove(low, 1024, 100);
    world.remove(high, 1024, 100);
    assert_eq!(world.given_back_until(100), []);
    let low = world.create(1024);
    world.remove(low, 1024, 105);
    assert_eq!(world.given_back_until(110), [(1024, 1536), (1536, 2048)]);
    assert_eq!(world.given_back_until(119), []);
    assert_eq!(world.given_back_until(120), [(0, 512), (512, 1024)]);
    assert_eq!(world.trimming.next_look(), None);
}

#[test]
fn what_is_in_use_and_what_is_small_stays() {
    let mut world = World::new(4096, 0);
    let objects: Vec<u64> = (0..16).map(|_| world.create(256)).collect();
    for index in [1, 4, 5, 8, 10, 12, 14] {
        world.remove(objects[index], 256, 0);
    }
    let given = world.given_back_until(100);
    assert_eq!(
        given,
        [256, 1024, 2048, 2560, 3072, 3584]
            .map(|start| { (start, start + if start == 1024 { 512 } else { 256 }) })
    );
    // A part of a neighbour makes a piece longer, but only that part has pages.
    world.remove(objects[2], 128, 200);
    assert_eq!(world.given_back_until(300), [], "the new part is too small");
}

#[test]
fn one_slice_goes_at_a_time_and_a_failure_is_the_end() {
    let mut world = World::new(1 << 20, 0);
    let offset = world.create(1024);
    world.remove(offset, 1024, 0);
    for _ in 0..2 {
        let at = world.trimming.next_look().unwrap();
        world.trimming.look(&world.pool, at);
    }
    let slice = world.begin_slice().unwrap();
    assert_eq!((slice.start, slice.end), (0, 512));
    assert_eq!(world.begin_slice(), None, "one at a time");
    world.end_slice(slice, WorkOutcome::Done);
    let slice = world.begin_slice().unwrap();
    assert_eq!((slice.start, slice.end), (512, 1024));
    world.end_slice(slice, WorkOutcome::Failed);
    assert_eq!((world.begin_slice(), world.trimming.given_bytes), (None, 512));
    world.remove(world.pool.bytes(), 0, 0);
    assert_eq!(world.trimming.next_look(), None, "it does not work here");
}

#[test]
fn what_is_to_be_ready_stays_ready() {
    let mut world = World::new(1 << 20, 1024);
    let offset = world.create(2048);
    world.remove(offset, 2048, 0);
    // Behind the object, as much has been made ready as at the start.
    let given = world.given_back_until(100);
    assert_eq!(given, [(1024, 1536), (1536, 2048), (2048, 2560), (2560, 3072)]);
    let offset = world.create(1024);
    world.remove(offset, 1024, 200);
    assert_eq!(world.given_back_until(1000), []);
}

#[test]
fn looks_are_rare_however_much_is_freed() {
    let mut world = World::new(1 << 20, 0);
    let mut looks = 0;
    for now in 0..1000 {
        let offset = world.create(64);
        world.remove(offset, 64, now);
        let now = Timestamp::from_nanos(now);
        if world.trimming.next_look().is_some_and(|at| at <= now) {
            world.trimming.look(&world.pool, now);
            looks += 1;
        }
    }
    assert_eq!(looks, 100, "one in ten nanoseconds");
}

#[test]
fn a_store_that_gives_nothing_back_never_looks() {
    let pool = Pool::new(4096);
    let mut trimming = Trimming::new(None, 4096);
    trimming.note_taken(0, 4096, 4096);
    trimming.note_freed();
    trimming.plan_look(&pool, Timestamp::ZERO);
    trimming.look(&pool, Timestamp::ZERO);
    assert_eq!((trimming.next_look(), trimming.next_slice()), (None, None));
}

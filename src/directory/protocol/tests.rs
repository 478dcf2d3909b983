//! The protocol under a model checker, which goes through every order in which two readers and the
//! store can take their steps, within its bounds, and everything that a weak memory may show them.
//!
//! Each model is run with all steps, where it has to hold, and without each of the steps that it
//! needs, where it has to be found broken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::*;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }

    fn compare_exchange(&self, from: u64, to: u64, order: Ordering) -> Result<u64, u64> {
        self.compare_exchange(from, to, order, Relaxed)
    }

    fn fence(order: Ordering) {
        loom::sync::atomic::fence(order);
    }
}

const READERS: usize = 2;

/// Times that a thread may be interrupted in one run, by another one that could go on as well.
const PREEMPTIONS: usize = 3;

/// Memory that everybody sees.
struct Shared {
    record: [AtomicU64; HALF_WORDS],
    details: [AtomicU64; HALF_WORDS],
    tables: [[AtomicU64; 2]; READERS],
    /// The bytes of the object, and what finds any access to them that is not ordered with another.
    bytes: AtomicU64,
    access: UnsafeCell<()>,
}

impl Shared {
    /// With the first object in the record.
    fn new() -> Arc<Self> {
        let word = |_| AtomicU64::new(0);
        let shared = Self {
            record: std::array::from_fn(word),
            details: std::array::from_fn(word),
            tables: std::array::from_fn(|_| std::array::from_fn(word)),
            bytes: AtomicU64::new(1),
            access: UnsafeCell::new(()),
        };
        shared.put::<AllSteps>(1);
        Arc::new(shared)
    }

    fn record(&self) -> Record<'_, AtomicU64> {
        Record(&self.record)
    }

    /// The store creates and seals an object.
    fn put<S: Steps>(&self, number: u8) {
        let generation = number.into();
        let created = Created {
            generation,
            id: &id(number, number),
            location: location(generation),
            creator: ClientId(1),
            at: 0,
        };
        self.record().create(&Details(&self.details), &created);
        self.record().seal::<S>();
    }

    fn pins(&self, reader: usize) -> Pins<'_, AtomicU64> {
        let [block, own] = &self.tables[reader];
        Pins { block, own }
    }

    fn is_pinned<S: Steps>(&self) -> bool {
        (0..READERS).any(|reader| is_pinned::<S, _>(self.pins(reader)))
    }

    fn write(&self, value: u64) {
        self.access.with_mut(|_| self.bytes.store(value, Relaxed));
    }

    fn read(&self) -> u64 {
        self.access.with(|_| self.bytes.load(Relaxed))
    }
}

/// An id that is easily torn.
fn id(first: u8, last: u8) -> ObjectId {
    let mut bytes = [0; 20];
    (bytes[0], bytes[8]) = (first, last);
    bytes.into()
}

fn location(number: u64) -> Location {
    Location { segment: SegmentId(0), offset: number, data_size: 1, metadata_size: 0 }
}

/// A reader: whether the store has to be told.
fn get<S: Steps>(shared: &Shared, reader: usize, number: u8) -> bool {
    let (record, pins) = (shared.record(), shared.pins(reader));
    let Some(sequence) = record.look(&id(number, number)) else { return false };
    match pin::<S, _>(record, sequence, pins, 0) {
        Err(missed) => missed.tell,
        Ok(()) => {
            assert_eq!(record.location().offset, u64::from(number), "it lies where it lay");
            assert_eq!(shared.read(), u64::from(number), "the bytes are those of the object");
            unpin::<S, _>(record, pins, 0)
        }
    }
}

/// Both readers want the first object while the store puts another one in its place.
fn evict<S: Steps>() {
    let shared = Shared::new();
    let readers = [0, 1].map(|reader| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || get::<S>(&shared, reader, 1))
    });
    let record = shared.record();
    record.retire::<S>();
    if shared.is_pinned::<S>() {
        record.restore();
    } else {
        record.remove();
        shared.write(2);
        shared.put::<S>(2);
    }
    for reader in readers {
        reader.join().unwrap();
    }
    for reader in 0..READERS {
        assert!(!is_pinned::<AllSteps, _>(shared.pins(reader)), "everything is given back");
    }
}

/// One reader wants the object that comes.
fn publish<S: Steps>() {
    let shared = Shared::new();
    let reader = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || get::<S>(&shared, 0, 2))
    };
    let record = shared.record();
    record.retire::<S>();
    if shared.is_pinned::<S>() {
        record.restore();
    } else {
        record.remove();
        shared.write(2);
        shared.put::<S>(2);
    }
    reader.join().unwrap();
}

/// The store wants to delete an object, and to be told when the readers have let go.
fn tell<S: Steps>() {
    let shared = Shared::new();
    let readers = [0, 1].map(|reader| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || get::<S>(&shared, reader, 1))
    });
    let record = shared.record();
    let mut is_gone = false;
    for attempt in 0..2 {
        if attempt > 0 {
            record.ask_to_tell();
        }
        record.retire::<S>();
        is_gone = !shared.is_pinned::<S>();
        if is_gone {
            record.remove();
            break;
        }
        record.restore();
    }
    let told = readers.map(|reader| reader.join().unwrap());
    assert!(is_gone || told.contains(&true), "somebody tells the store that it can go on");
}

/// A reader asks for an object that never was, while one with half of its id follows another one
/// with the other half.
fn look<S: Steps>() {
    let shared = Shared::new();
    let reader = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let record = shared.record();
            let found = record.look(&id(2, 1)).is_some_and(|found| record.is_still::<S>(found));
            assert!(!found, "there was no such object");
        })
    };
    let record = shared.record();
    record.retire::<S>();
    record.remove();
    shared.put::<S>(2);
    reader.join().unwrap();
}

/// What a creator and the store share, beside the bytes.
struct Creation {
    seal: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
    access: UnsafeCell<()>,
}

impl Creation {
    fn new() -> Arc<Self> {
        let [seal, ended, bytes] = [0; 3].map(AtomicU64::new);
        Arc::new(Self { seal, ended, bytes, access: UnsafeCell::new(()) })
    }

    /// The creator: whether its object is sealed for sure.
    fn seal<S: Steps>(&self) -> bool {
        self.access.with_mut(|_| self.bytes.store(7, Relaxed));
        tell_sealed::<S, _>(&self.seal, &self.ended, 3, Told { released: true })
    }

    /// The store: whether the object is sealed. If so, its bytes are there.
    fn is_sealed<S: Steps>(&self) -> bool {
        let told = told_sealed::<S, _>(&self.seal, 3);
        if told.is_some() {
            assert_eq!(told, Some(Told { released: true }));
            assert_eq!(self.access.with(|_| self.bytes.load(Relaxed)), 7);
        }
        told.is_some()
    }
}

/// The store ends the connection of a creator, who seals at this moment.
fn end_creator<S: Steps>() {
    let creation = Creation::new();
    let creator = {
        let creation = Arc::clone(&creation);
        thread::spawn(move || creation.seal::<S>())
    };
    end::<S, _>(&creation.ended);
    let is_sealed = creation.is_sealed::<S>();
    let is_sure = creator.join().unwrap();
    assert!(is_sealed || !is_sure, "what its creator believes to be sealed is not aborted");
}

/// A creator has sealed, and tells somebody, who asks the store.
fn tell_others<S: Steps>() {
    let creation = Creation::new();
    let pipe = Arc::new(AtomicU64::new(0));
    let creator = {
        let (creation, pipe) = (Arc::clone(&creation), Arc::clone(&pipe));
        thread::spawn(move || {
            assert!(creation.seal::<S>(), "nobody ends it");
            pipe.store(1, Release);
        })
    };
    let was_told = pipe.load(Acquire) == 1;
    assert!(creation.is_sealed::<S>() || !was_told, "what is said to be sealed is sealed");
    creator.join().unwrap();
}

#[test]
fn a_seal_of_an_earlier_object_says_nothing() {
    loom::model(|| {
        let creation = Creation::new();
        assert!(creation.seal::<AllSteps>());
        assert_eq!(told_sealed::<AllSteps, _>(&creation.seal, 4), None);
        assert_eq!(told_sealed::<AllSteps, _>(&creation.seal, 2), None);
    });
}

fn check(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// Without this step the model breaks.
fn assert_needed<S: Steps>(model: fn()) {
    let outcome = catch_unwind(AssertUnwindSafe(|| check(model)));
    assert!(outcome.is_err(), "nothing goes wrong without {:?}", S::WITHOUT);
}

macro_rules! needed {
    ($($name:ident: $step:ident in $model:ident;)*) => {
        $(
            #[test]
            fn $name() {
                struct Without;
                impl Steps for Without {
                    const WITHOUT: Option<Step> = Some(Step::$step);
                }
                assert_needed::<Without>($model::<Without>);
            }
        )*

        /// Every step has a model that it is needed in.
        #[test]
        fn no_step_is_forgotten() {
            let covered = [$(Step::$step),*];
            for step in Step::ALL {
                assert!(covered.contains(&step), "{step:?} is never left out");
            }
        }
    };
}

needed! {
    a_reader_needs_its_fence: FencePin in evict;
    a_reader_has_to_look_again: CheckPinned in evict;
    the_store_needs_its_fence: FenceRetire in evict;
    the_store_has_to_look_for_pins: CheckPins in evict;
    a_pin_ends_after_reading: ReleaseUnpin in evict;
    the_store_writes_after_the_pin_has_ended: AcquirePins in evict;
    an_entry_is_sealed_last: ReleasePublish in publish;
    telling_needs_a_fence: FenceUnpin in tell;
    a_pin_in_vain_is_told_too: TellAfterAll in tell;
    a_look_is_made_twice: LookAgain in look;
    with_a_fence_in_between: FenceLook in look;
    a_seal_comes_after_the_bytes: ReleaseSeal in tell_others;
    the_store_reads_after_the_seal: AcquireSeal in end_creator;
    a_creator_needs_its_fence: FenceSeal in end_creator;
    a_creator_has_to_look_for_the_end: CheckEnded in end_creator;
    the_store_needs_a_fence_before_its_look_at_seals: FenceEnd in end_creator;
    the_store_has_to_look_at_seals: CheckSeals in tell_others;
}

#[test]
fn what_is_pinned_is_not_evicted() {
    check(evict::<AllSteps>);
}

#[test]
fn what_is_found_is_complete() {
    check(publish::<AllSteps>);
}

#[test]
fn the_store_is_told() {
    check(tell::<AllSteps>);
}

#[test]
fn a_seal_is_never_lost() {
    check(end_creator::<AllSteps>);
    check(tell_others::<AllSteps>);
}

#[test]
fn what_never_was_is_not_found() {
    check(look::<AllSteps>);
}

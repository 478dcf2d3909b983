//! Micro-benchmarks of the parts without I/O, one by one: frame, codec, store, filling, pool,
//! policy.
//!
//! `cargo bench`, or `cargo bench -- pool` for some. They tell where the time of a request goes in
//! the store; what users wait for is measured in `side_by_side`. Times are printed, never asserted.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use plasma::ObjectId;
use plasma::eviction::{EvictionPolicy, PolicyKind, Population};
use plasma::ids::{ClientId, SegmentId, Slot};
use plasma::protocol::codec::{decode_client, decode_server, encode_client, encode_server};
use plasma::protocol::frame::{FrameReader, append_frame};
use plasma::protocol::message::{
    ClientMessage, NewObject, ObjectState, Reply, Request, RequestId, Room, ServerMessage,
};
use plasma::shm::{Backing, Filler, Segment};
use plasma::store::space::pool::Pool;
use plasma::store::{Effect, Effects, Peer, Store, StoreConfig, WorkOutcome};
use plasma::time::Timestamp;

/// Objects in the store, or idle objects, or runs of free memory: few, and what it should be ready
/// for.
const SCALES: [u32; 2] = [1_000, 1_000_000];

const KILOBYTE: usize = 1024;

fn main() {
    divan::main();
}

/// A different id for each number.
fn id(number: u32) -> ObjectId {
    let mut bytes = [0x5a; 20];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    ObjectId::from(bytes)
}

// ---- the protocol -------------------------------------------------------------------------------

mod frame {
    use super::*;

    #[divan::bench]
    fn append(bencher: Bencher<'_, '_>) {
        let payload = [1; 64];
        let mut out = Vec::new();
        bencher.bench_local(|| {
            out.clear();
            append_frame(&mut out, 0, |out| out.extend_from_slice(black_box(&payload)))
        });
    }

    /// As bytes come from a socket: all of a frame in one piece.
    #[divan::bench(args = [64, 16 << 10])]
    fn read(bencher: Bencher<'_, '_>, payload_bytes: usize) {
        let mut stream = Vec::new();
        append_frame(&mut stream, 0, |out| out.resize(out.len() + payload_bytes, 1)).expect("fits");
        let mut reader = FrameReader::new(0);
        bencher.counter(BytesCount::new(stream.len())).bench_local(|| {
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let space = reader.space(4096);
                let received = space.len().min(rest.len());
                space[..received].copy_from_slice(&rest[..received]);
                reader.advance(received);
                rest = &rest[received..];
            }
            reader.next_frame().expect("a frame").map(|frame| frame.payload.len())
        });
    }
}

mod codec {
    use super::*;

    fn requests() -> [(&'static str, Request); 4] {
        let room = Room { evict: true, timeout: Some(Duration::ZERO) };
        let object = NewObject { id: id(1), data: vec![1; KILOBYTE], metadata: Vec::new() };
        [
            ("contains", Request::GetState { ids: vec![id(1)] }),
            ("get", get(vec![id(1)])),
            ("get 1000", get((0..1000).map(id).collect())),
            ("put 1 KB", Request::Put { objects: vec![object], room }),
        ]
    }

    fn request(name: &str) -> ClientMessage {
        let found = requests().into_iter().find(|(known, _)| *known == name);
        ClientMessage::Request(found.expect("one of them").1)
    }

    #[divan::bench(args = ["contains", "get", "get 1000", "put 1 KB"])]
    fn encode_request(bencher: Bencher<'_, '_>, name: &str) {
        let (message, mut out) = (request(name), Vec::new());
        bencher.bench_local(|| {
            out.clear();
            encode_client(&mut out, RequestId(7), black_box(&message));
        });
    }

    #[divan::bench(args = ["contains", "get", "get 1000", "put 1 KB"])]
    fn decode_request(bencher: Bencher<'_, '_>, name: &str) {
        let mut payload = Vec::new();
        encode_client(&mut payload, RequestId(7), &request(name));
        bencher.bench_local(|| decode_client(black_box(&payload)).expect("what was encoded"));
    }

    fn reply() -> ServerMessage {
        let reply = Reply::States(vec![ObjectState::Sealed]);
        ServerMessage { request: RequestId(7), reply, descriptors: Vec::new() }
    }

    #[divan::bench]
    fn encode_reply(bencher: Bencher<'_, '_>) {
        let (message, mut out) = (reply(), Vec::new());
        bencher.bench_local(|| {
            out.clear();
            encode_server(&mut out, black_box(&message));
        });
    }

    #[divan::bench]
    fn decode_reply(bencher: Bencher<'_, '_>) {
        let mut payload = Vec::new();
        encode_server(&mut payload, &reply());
        bencher.bench_local(|| decode_server(black_box(&payload)).expect("what was encoded"));
    }
}

fn get(ids: Vec<ObjectId>) -> Request {
    Request::Get { ids, timeout: None, fail_if_abandoned: false }
}

// ---- the store ----------------------------------------------------------------------------------

mod store {
    use super::*;

    const MAKER: ClientId = ClientId(1);
    const READER: ClientId = ClientId(2);

    /// A store with some objects of a kilobyte that nobody holds, and what it wants done.
    struct Played {
        store: Store,
        effects: Effects,
    }

    impl Played {
        /// `room` is how many more objects fit.
        fn with_objects(objects: u32, room: u32) -> Self {
            let capacity = u64::from(objects + room) * KILOBYTE as u64;
            let config = StoreConfig {
                capacity,
                segment: SegmentId(0),
                segment_bytes: capacity,
                objects_max: 1 << 24,
                policy: PolicyKind::Lru,
                unix_start: Duration::ZERO,
                trim: None,
            };
            let mut played = Self { store: Store::new(config), effects: Effects::new() };
            for client in [MAKER, READER] {
                played.store.connect(client, Peer::default()).expect("nobody is turned away");
            }
            (0..objects).for_each(|number| played.put(number));
            played
        }

        fn apply(&mut self, client: ClientId, request: Request) {
            let Self { store, effects } = self;
            store.apply(client, RequestId(1), request, Timestamp::ZERO, effects);
            while let Some(effect) = effects.pop() {
                if let Effect::Start { ticket, .. } = black_box(effect) {
                    store.done(ticket, WorkOutcome::Done, Timestamp::ZERO, effects);
                }
            }
        }

        fn put(&mut self, number: u32) {
            let object =
                NewObject { id: id(number), data: vec![1; KILOBYTE], metadata: Vec::new() };
            let room = Room { evict: true, timeout: Some(Duration::ZERO) };
            self.apply(MAKER, Request::Put { objects: vec![object], room });
        }
    }

    #[divan::bench(args = SCALES)]
    fn contains(bencher: Bencher<'_, '_>, objects: u32) {
        let mut played = Played::with_objects(objects, 0);
        let mut numbers = (0..objects).cycle();
        bencher.bench_local(|| {
            let ids = numbers.next().map(id).into_iter().collect();
            played.apply(READER, Request::GetState { ids });
        });
    }

    #[divan::bench(args = SCALES)]
    fn get_and_release(bencher: Bencher<'_, '_>, objects: u32) {
        let mut played = Played::with_objects(objects, 0);
        let mut numbers = (0..objects).cycle();
        bencher.bench_local(|| {
            let id = numbers.next().map(id).expect("it goes round");
            played.apply(READER, get(vec![id]));
            played.apply(READER, Request::Release { holds: vec![(id, 1)] });
        });
    }

    #[divan::bench(args = SCALES)]
    fn put_and_delete(bencher: Bencher<'_, '_>, objects: u32) {
        let mut played = Played::with_objects(objects, 1);
        bencher.bench_local(|| {
            played.put(objects);
            played.apply(MAKER, Request::Delete { ids: vec![id(objects)] });
        });
    }

    /// The store is full: each put has to evict the oldest object.
    #[divan::bench(args = SCALES)]
    fn evicting_put(bencher: Bencher<'_, '_>, objects: u32) {
        let mut played = Played::with_objects(objects, 0);
        let mut numbers = objects..;
        bencher.bench_local(|| played.put(numbers.next().expect("there are enough")));
    }
}

/// Bytes of puts on their way into shared memory that has been used before.
mod filling {
    use super::*;

    #[divan::bench(args = [100, KILOBYTE, 3 * KILOBYTE])]
    fn write(bencher: Bencher<'_, '_>, bytes: usize) {
        const SEGMENT_BYTES: u64 = 4 << 20;
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, SEGMENT_BYTES);
        let mut filler = segment.map(Arc::new).ok().and_then(|segment| Filler::new(segment).ok());
        let filler = filler.as_mut().expect("there is memory");
        let source = vec![1; bytes];
        let offsets = (0..SEGMENT_BYTES - 4096).step_by(bytes.next_multiple_of(64));
        offsets.clone().for_each(|offset| filler.write(offset, &source).expect("it is there"));
        let mut offsets = offsets.cycle();
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            filler.write(offsets.next().expect("it goes round"), black_box(&source))
        });
    }
}

mod pool {
    use super::*;

    /// Memory that has so many free runs.
    fn fragmented(runs: u32) -> Pool {
        let mut pool = Pool::new(u64::from(runs) * 2 * KILOBYTE as u64);
        let offsets: Vec<u64> =
            (0..runs * 2).map(|_| pool.allocate(KILOBYTE as u64).expect("there is room")).collect();
        offsets.iter().step_by(2).for_each(|offset| pool.free(*offset, KILOBYTE as u64));
        pool
    }

    #[divan::bench]
    fn in_one_piece(bencher: Bencher<'_, '_>) {
        let mut pool = Pool::new(1 << 30);
        bencher.bench_local(|| allocate_and_free(&mut pool));
    }

    #[divan::bench(args = SCALES)]
    fn in_many_pieces(bencher: Bencher<'_, '_>, runs: u32) {
        let mut pool = fragmented(runs);
        bencher.bench_local(|| allocate_and_free(&mut pool));
    }

    fn allocate_and_free(pool: &mut Pool) {
        let size = black_box(1000);
        let offset = pool.allocate(size).expect("there is room");
        pool.free(offset, size);
    }
}

mod policy {
    use super::*;

    fn filled(kind: PolicyKind, objects: u32) -> Box<dyn EvictionPolicy> {
        let mut policy = kind.build(Population::Most);
        (0..objects).for_each(|number| policy.became_idle(Slot(number), 1, 0));
        policy
    }

    #[divan::bench(args = PolicyKind::ALL)]
    fn use_and_release(bencher: Bencher<'_, '_>, kind: PolicyKind) {
        const OBJECTS: u32 = SCALES[1];
        let mut policy = filled(kind, OBJECTS);
        // Far apart, so that each is out of the cache, as with real ids.
        let mut slots =
            (0..OBJECTS).map(|number| Slot(number.wrapping_mul(7919) % OBJECTS)).cycle();
        bencher.bench_local(|| {
            let slot = slots.next().expect("it goes round");
            policy.became_busy(slot);
            policy.became_idle(slot, 1, 0);
        });
    }

    #[divan::bench(args = PolicyKind::ALL)]
    fn evict_first(bencher: Bencher<'_, '_>, kind: PolicyKind) {
        let mut policy = filled(kind, SCALES[1]);
        bencher.bench_local(|| {
            let slot = policy.first().expect("there are idle objects");
            policy.removed(slot);
            policy.became_idle(slot, 1, 0);
        });
    }
}

//! Every bound of the program, with its unit, what it costs, and what happens beyond it.
//!
//! A limit is enforced in one place, and `tests/limits.rs` has a test for each that a peer can
//! reach.

use std::time::Duration;

/// Version of the wire protocol, one more with each release that changes it. Of client and store
/// the newer one speaks as the older one does; beyond [`PROTOCOL_VERSION_OLDEST`] a client is told
/// so and hung up on.
pub const PROTOCOL_VERSION: u32 = 2;

/// The oldest version that is spoken: that of the release before.
pub const PROTOCOL_VERSION_OLDEST: u32 = 1;

/// Bytes of a frame's payload. The header is checked against it before anything is allocated; a
/// peer that announces more is disconnected.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 4 << 20;

/// Descriptors that may ride with one frame: a writable and a read-only one for a few segments.
pub const FRAME_DESCRIPTORS_MAX: u16 = 8;

/// Ids in one request: bounds the time that the store's thread spends on it (up to 600 ns an id).
/// The client splits longer lists; on the wire more is a protocol error.
pub const REQUEST_IDS_MAX: usize = 8192;

/// Ids that our client sends in one request, where it may split them: then the others wait 1 ms for
/// it at most. A wait cannot be split.
pub const REQUEST_IDS_TOGETHER: usize = 2048;

/// Bytes (data and metadata) of all objects in one put or batch that travels inside the message.
/// They are copied by the store's thread, so the bound is also the time that others wait for it.
/// The client writes larger objects in place; on the wire more is a protocol error.
pub const INLINE_BYTES_MAX: usize = 1 << 20;

/// Bytes up to which the client's `put` sends an object inside the message. Beyond, a message more
/// (create, and a seal without an answer) costs less than the two extra copies: with 3 KiB both
/// take the same time, with 8 KiB it is two thirds, with 64 KiB a fifth to a half.
pub const PUT_INLINE_BYTES: usize = 3 << 10;

/// Objects in one batch of puts, which succeeds or fails as a whole: 2 ms for the most.
pub const BATCH_OBJECTS_MAX: usize = 4096;

/// Bytes of a client's name. The client refuses a longer one; on the wire it is a protocol error.
pub const CLIENT_NAME_BYTES_MAX: usize = 256;

/// Bytes of the first frame of a connection, `Connect`. A peer that sends more before it has
/// introduced itself is disconnected.
pub const HANDSHAKE_BYTES_MAX: usize = 1 << 10;

/// Requests of one client that may wait at a time (gets, waits, creates), [`WAIT_BYTES`] each, and
/// their ids and bytes. The next one is refused.
pub const CLIENT_WAITS_MAX: usize = 65_536;

/// Ids that the waiting requests of one client may name together, [`WAITED_ID_BYTES`] each. A
/// request beyond is refused.
pub const CLIENT_WAITED_IDS_MAX: usize = 1 << 18;

/// Bytes of data and metadata that may wait for room with the puts of one client. A put beyond is
/// refused.
pub const CLIENT_WAITED_BYTES_MAX: u64 = 16 << 20;

/// Bytes of the store's own memory that all requests may keep, unless told otherwise: those that
/// wait with their ids and bytes, frames of which a part has come, replies that nobody has read. A
/// request that would wait is refused beyond, a connection with an unfinished frame ends, and of
/// those with unread replies nothing is read.
pub const REQUEST_MEMORY_BYTES: u64 = 256 << 20;

/// The share of the memory that the store may use which requests may keep at most, as a divisor,
/// unless told otherwise.
pub const REQUEST_MEMORY_DIVISOR: u64 = 32;

/// Least such bytes that anybody can ask for: a process may then have the largest frame.
pub const REQUEST_MEMORY_BYTES_MIN: u64 = 32 << 20;

/// The share of these bytes that one process may have, as a divisor. Beyond half of what the others
/// leave it may have nothing more either.
pub const REQUEST_MEMORY_PROCESS_DIVISOR: u64 = 4;

/// Bytes that each process may keep in any case, so that a small request gets in whatever others
/// do.
pub const REQUEST_MEMORY_LEAST: u64 = 16 << 10;

/// Bytes that a waiting request costs in all tables that know it, without its ids.
pub const WAIT_BYTES: usize = 640;

/// Bytes that each of its ids costs in all tables, or later in the reply.
pub const WAITED_ID_BYTES: usize = 160;

/// Bytes of an unfinished frame for which no connection is ended.
pub const SMALL_FRAME_BYTES: usize = 8 << 10;

/// Entries in one part of a listing; about 100 bytes and 100 ns each.
pub const LIST_PART_MAX: usize = 128;

/// Slots that one part of a listing looks at, in use or not, about 5 ns each: where very many
/// objects have gone, a part may be short or even empty.
pub const LIST_LOOKS_MAX: usize = 4 << 10;

/// Entries in one part of the list of clients.
pub const CLIENTS_PART_MAX: usize = 1024;

/// Events that the store remembers for subscribers, 48 bytes each, once for all of them. A
/// subscriber that is further behind is told so and hung up on.
pub const EVENT_LOG_MAX: usize = 1 << 20;

/// Events (or snapshot entries) in one frame to a subscriber.
pub const EVENTS_PART_MAX: usize = 256;

/// Clients connected at a time, whatever the descriptor limit allows. Beyond, new ones wait in the
/// listen queue.
pub const CLIENTS_MAX: usize = 65_536;

/// Queue of the listening socket; the kernel caps it by `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Bytes of replies that may lie unsent for one client before the store stops reading its requests.
/// Replies to requests that were waiting may still be added, which [`CLIENT_WAITS_MAX`] bounds.
pub const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// Unsent bytes below which a stream of events is given the next part. A subscriber that does not
/// read costs this much and one part more.
pub const STREAM_REFILL_BYTES: usize = 64 << 10;

/// How long a connection that is being closed may take to read what it was still sent. Then it is
/// closed all the same.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// When to try again to send descriptors, after the system has said that too many of this user are
/// on their way to programs that do not read.
pub const STARVED_TIME: Duration = Duration::from_millis(10);

/// Small steps (an object evicted, released, or looked at) that the store does in one go for a
/// request or a job, about 0.5 µs each. What takes more goes on in later turns.
pub const SLICE_STEPS: usize = 64;

/// Waiting requests, and ids in them, that are answered in one go when an object is sealed or
/// given up or a deadline comes, about 0.5 µs each. The others follow in later turns.
pub const SLICE_ANSWERS: usize = 64;

/// How often a search for room begins again because others have come in between. Then one that does
/// not wait is refused, and one that does lets others have their turn first.
pub const SEARCH_ROUNDS_MAX: u32 = 8;

/// Sockets that one poll reports as ready, and so those served in one turn; the others follow in
/// the next one.
pub const TURN_EVENTS_MAX: usize = 256;

/// Streams of events given something to send in one turn of the loop.
pub const TURN_STREAMS_MAX: usize = 64;

/// Bytes read from one connection in one turn of the loop before the next one is served.
pub const TURN_READ_BYTES_MAX: usize = 256 << 10;

/// Connections of one process that may have ended while buffers of theirs are still in use. A
/// process that has so many is refused the next one.
pub const SURVIVORS_OF_PROCESS_MAX: usize = 16;

/// When the store looks for the first time whether anybody is left who has what a client was given
/// whose connection has ended. The kernel may let go of the memory a little after the socket.
pub const SURVIVORS_LOOK_FIRST: Duration = Duration::from_millis(1);

/// Longest time between two such looks: each is twice as late as the one before.
pub const SURVIVORS_LOOK_LAST: Duration = Duration::from_secs(1);

/// Such clients, and objects that they keep, that are looked at in one go, about 0.5 µs each.
pub const SURVIVORS_LOOKS_MAX: usize = 1024;

/// How long giving memory back to the system pauses while room is being made for somebody.
pub const TRIM_PAUSE: Duration = Duration::from_millis(5);

/// Requests of one connection applied in one turn of the loop.
pub const TURN_REQUESTS_MAX: usize = 128;

/// Connections that have something to be read and have not introduced themselves, from which on no
/// others are accepted: these wait in the listen queue.
pub const STRANGERS_READY_MAX: usize = 64;

/// Time after which a turn begins no other request; what has come stays for the next turn.
pub const TURN_READ_TIME: Duration = Duration::from_micros(30);

/// Time after which a turn sends to no other connection. More than for requests, since each of them
/// may make something to be sent.
pub const TURN_FLUSH_TIME: Duration = Duration::from_micros(30);

/// Time after which a turn accepts, closes or streams to no other connection, for each of these.
pub const TURN_SIDE_TIME: Duration = Duration::from_micros(30);

/// How long accepting pauses when descriptors or memory ran out. A departing client ends the pause.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How long the store looks for the next request before it sleeps, while traffic is hot, unless
/// told otherwise; and a client for its reply. About what a round trip takes when both sides sleep
/// and are woken (90 µs on a virtual machine), so that looking in vain at most doubles that. With
/// half of it one late message could put both sides to sleep for long.
pub const POLL_TIME: Duration = Duration::from_micros(100);

/// Longest time to look before sleeping that anybody can ask for, microseconds.
pub const POLL_US_MAX: u64 = 1000;

/// Traffic is hot if the last wait was not longer than this: twice what a round trip takes when
/// both sides sleep, and some work in between.
pub const POLL_HOT: Duration = Duration::from_micros(200);

/// Waits without looking after many looks in vain. That leaves them a hundredth of the time, though
/// each then lasts [`POLL_HOT`].
pub const POLL_SKIPS_MAX: u32 = 1023;

/// Releases in a row, each soon after the one before ([`POLL_HOT`]), from which on a client lets
/// them wait for its next request.
pub const RELEASE_RUN: u32 = 32;

/// Longest time that a release waits in a client for another message to travel with.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(1);

/// Looks without a release since the last one, after which the thread that looks ends.
pub const SWEEPS_IDLE_MAX: u32 = 20;

/// What a client allows for releases of others that wait ([`SWEEP_INTERVAL`]) before it reports
/// that an object is in use or that there is no room: an interval, and the time to send.
pub const RELEASE_GRACE: Duration = Duration::from_millis(3);

/// Releases that wait together at most, 24 bytes each; then they are sent.
pub const RELEASES_TOGETHER_MAX: usize = 256;

/// Bytes that the store keeps ready for the next objects, unless told otherwise: they cost their
/// size of the machine's memory, whether they are ever used or not.
pub const COMMIT_AHEAD_BYTES: u64 = 512 << 20;

/// The share of the memory that the store may use which it keeps ready at most, as a divisor.
pub const COMMIT_AHEAD_DIVISOR: u64 = 16;

/// The share of a store's own memory that it keeps ready at most, as a divisor: what is kept ready
/// never goes back to the system, and the rest of a small store shall.
pub const COMMIT_AHEAD_STORE_DIVISOR: u64 = 2;

/// Bytes made ready in one call, in less than half a millisecond. Whoever gives memory back
/// meanwhile waits for it.
pub const COMMIT_STEP_BYTES: u64 = 512 << 10;

/// Bytes that have to be used anew before the thread is woken that makes more ready.
pub const COMMIT_WAKE_BYTES: u64 = 16 << 20;

/// Memory of the machine, or room in a control group, below which nothing is made ready ahead.
pub const COMMIT_FREE_BYTES_MIN: u64 = 1 << 30;

/// The share of the memory that can still be had which the hash table of the directory may take at
/// the start, as a divisor. A larger one takes its pages as they are touched.
pub const TABLE_READY_DIVISOR: u64 = 16;

/// Bytes that the process needs beside the memory of the objects, at least. A store that takes all
/// of that at the start is refused if its control group has less than both left.
pub const OWN_BYTES: u64 = 16 << 20;

/// The share of mapped memory that the kernel needs for page tables, as a divisor.
pub const PAGE_TABLES_DIVISOR: u64 = 512;

/// How long free memory stays with the store before it goes back to the system, unless told
/// otherwise; it may be twice as long. To take it again costs what memory costs at first touch,
/// a quarter of a second for a GiB, so it should be rare.
pub const TRIM_AFTER: Duration = Duration::from_secs(30);

/// Longest such time that anybody can ask for, seconds.
pub const TRIM_AFTER_SECONDS_MAX: u64 = 86_400;

/// Bytes of free memory in one piece that are worth giving back.
pub const TRIM_BYTES_MIN: u64 = 16 << 20;

/// Bytes that go back at a time, and what their place is a multiple of: a huge page, where the
/// kernel uses them for shared memory. It takes less than a millisecond, for which a create that
/// needs just these waits; and so long the loop may have to wait for a processor.
pub const TRIM_SLICE_BYTES: u64 = 2 << 20;

/// Pieces of free memory that are looked at in one turn of the loop, the longest ones.
pub const TRIM_RUNS_MAX: usize = 1024;

/// Address granularity of objects in a segment, bytes: a cache line, and what SIMD code wants.
pub const ALIGNMENT: u64 = 64;

/// Smallest capacity of a store, bytes.
pub const CAPACITY_MIN: u64 = 1;

/// Largest capacity of a store, bytes: keeps every sum of sizes inside 63 bits.
pub const CAPACITY_MAX: u64 = 1 << 50;

/// Most objects a store can be told to hold, about 200 bytes of the server's own memory each.
pub const OBJECTS_MAX: u32 = 1 << 30;

/// Longest path of a unix socket, bytes: `sun_path` without its final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How often a client tries again to connect while there is no store, unless told otherwise. With
/// [`CONNECT_RETRY_INTERVAL`] that is 8 seconds, as in the original.
pub const CONNECT_RETRIES: u32 = 80;

/// Time between two of these attempts.
pub const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How often a client that waits asks its caller whether to go on.
pub const INTERRUPT_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a call that was interrupted waits for the store to say what has become of it. Beyond,
/// it ends without knowing, and what the store grants later is given back.
pub const CANCEL_PATIENCE: Duration = Duration::from_millis(500);

/// How long a client waits for a store that does not answer, unless told otherwise; a call with a
/// timeout waits so much longer than that. Then it fails. A store that has too many clients lets
/// new ones wait; something else than a store may never answer.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client that disconnects waits for the answer to that, at most.
pub const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes from which on a new object is made ready for writing in one call. Below, its page faults
/// cost less than the call.
pub const POPULATE_BYTES_MIN: u64 = 1 << 20;

/// Bytes that a thread makes ready and copies at a time when several do so, a multiple of
/// [`ALIGNMENT`]. Several large pages of the kernel: two threads that want the same one clear two,
/// and one is thrown away, which was twenty times as slow.
pub const COPY_PART_BYTES: usize = 4 << 20;

/// Bytes that a copy must have for each thread that takes part; below, what lies in the cache is
/// copied faster by one, and starting the other costs more than it brings.
pub const COPY_BYTES_PER_THREAD_MIN: usize = 8 << 20;

/// Threads that copy a large object, where nobody says how many.
pub const COPY_THREADS: usize = 4;

/// Lines of the log that peers may cause at once. Further ones are left out, and how many were is
/// logged.
pub const PEER_LINES_AT_ONCE: u32 = 200;

/// Time after which peers may cause one line more.
pub const PEER_LINE_INTERVAL: Duration = Duration::from_millis(50);

/// Most lines of the store's log that wait to be written to stderr. Further ones are lost, and how
/// many were is logged.
pub const LOG_LINES_MAX: usize = 4096;

/// How long a store that ends waits for its last lines to be written.
pub const LOG_FLUSH_PATIENCE: Duration = Duration::from_secs(1);

const _: () = {
    assert!(PROTOCOL_VERSION_OLDEST <= PROTOCOL_VERSION);
    assert!(STREAM_REFILL_BYTES <= OUTBOX_BYTES_MAX);
    assert!(INLINE_BYTES_MAX < FRAME_PAYLOAD_BYTES_MAX as usize / 2);
    assert!(PUT_INLINE_BYTES <= INLINE_BYTES_MAX);
    assert!(REQUEST_IDS_MAX * 64 < FRAME_PAYLOAD_BYTES_MAX as usize, "a reply has to fit as well");
    assert!(LIST_PART_MAX * 256 < FRAME_PAYLOAD_BYTES_MAX as usize);
    assert!(CLIENTS_PART_MAX * (CLIENT_NAME_BYTES_MAX + 256) < FRAME_PAYLOAD_BYTES_MAX as usize);
    assert!(EVENTS_PART_MAX * 128 < FRAME_PAYLOAD_BYTES_MAX as usize);
    assert!(REQUEST_IDS_MAX <= CLIENT_WAITED_IDS_MAX);
    assert!(
        2 * FRAME_PAYLOAD_BYTES_MAX as u64
            <= REQUEST_MEMORY_BYTES_MIN / REQUEST_MEMORY_PROCESS_DIVISOR
    );
    assert!(CLIENT_NAME_BYTES_MAX + 64 < HANDSHAKE_BYTES_MAX);
    assert!(INLINE_BYTES_MAX as u64 <= CLIENT_WAITED_BYTES_MAX);
    assert!(TURN_READ_BYTES_MAX >= 4096);
    assert!(TRIM_SLICE_BYTES.is_multiple_of(ALIGNMENT) && TRIM_SLICE_BYTES <= TRIM_BYTES_MIN);
};

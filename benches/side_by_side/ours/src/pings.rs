//! How long one client's small request takes while another client does something heavy.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::clock::{nanos_since, now, pause};
use crate::works::{Works, new_ids};
use crate::{Failure, Samples};

/// Between two pings: it is about latency, not about a third busy process.
const BETWEEN: Duration = Duration::from_micros(50);

/// The latencies of pings (`contains`) for as long as the heavy thing takes, `count` times.
pub fn ping_during(
    works: &Works,
    heavy: &str,
    count: usize,
    size: usize,
) -> Result<Samples, Failure> {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings = scope.spawn(|| ping(works, &is_done));
        let result = (0..count).try_for_each(|_| do_heavy(works, heavy, size));
        is_done.store(true, Ordering::Relaxed);
        let samples = pings.join().map_err(|_| "the pinging thread panicked")?;
        result.and(samples)
    })
}

fn ping(works: &Works, is_done: &AtomicBool) -> Result<Samples, Failure> {
    let id = new_ids(1)[0];
    let mut samples = Samples::new();
    while !is_done.load(Ordering::Relaxed) {
        let start = now();
        black_box(works.reader.contains(id)?);
        samples.push(nanos_since(start));
        pause(BETWEEN);
    }
    Ok(samples)
}

/// `size` is bytes for a put, and the number of objects for the others.
fn do_heavy(works: &Works, heavy: &str, size: usize) -> Result<(), Failure> {
    let client = &works.maker;
    match heavy {
        "put" => {
            let ids = new_ids(1);
            client.put(ids[0], works.payload(size), b"")?;
            works.delete(&ids)?;
        }
        "list" => {
            for object in client.list() {
                black_box(object?);
            }
        }
        "evict" => {
            // Objects of a byte each, see the orchestrator's `fill`.
            client.evict(size as u64)?;
        }
        "subscribe" => {
            for event in client.subscribe()?.take(size) {
                black_box(event?);
            }
        }
        _ => return Err(format!("{heavy} is not known here").into()),
    }
    Ok(())
}

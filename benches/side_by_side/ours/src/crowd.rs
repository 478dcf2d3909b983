//! Many clients at once: how much the store does for all of them together.

use std::path::Path;
use std::sync::Barrier;
use std::thread;

use plasma::{Client, ObjectId};

use crate::clock::{nanos_since, now};
use crate::works::new_ids;
use crate::{Failure, Samples};

/// Bytes of each object that is read.
const OBJECT_BYTES: usize = 1000;

/// What a client does at least: less than this is over before the last thread runs.
const EACH_MIN: usize = 20_000;

/// `clients` clients, each in a thread, get and release objects of 1 KB, `count` times altogether
/// or more. The sample is the time that one operation takes of the whole: one divided by it are
/// the operations per second.
pub fn throughput(socket: &Path, count: usize, clients: usize) -> Result<Samples, Failure> {
    let each = (count / clients).max(EACH_MIN);
    let all: Vec<Client> =
        (0..clients).map(|_| Client::connect(socket)).collect::<Result<_, _>>()?;
    let ids = new_ids(clients);
    for id in &ids {
        all[0].put(*id, &[1; OBJECT_BYTES], b"")?;
    }
    let (ready, begin) = (Barrier::new(clients + 1), Barrier::new(clients + 1));
    let elapsed = thread::scope(|scope| {
        let threads: Vec<_> = all
            .iter()
            .zip(&ids)
            .map(|(client, id)| {
                scope.spawn(|| {
                    ready.wait();
                    begin.wait();
                    work(client, *id, each)
                })
            })
            .collect();
        ready.wait();
        // Nobody goes on before this thread does: it may be the last one to be woken.
        let start = now();
        begin.wait();
        for thread in threads {
            thread.join().map_err(|_| "a client panicked")??;
        }
        Ok::<_, Failure>(nanos_since(start))
    })?;
    all[0].delete(&ids)?;
    Ok(vec![elapsed / (each * clients) as u64])
}

fn work(client: &Client, id: ObjectId, times: usize) -> Result<(), Failure> {
    for _ in 0..times {
        client.get_one(id, None)?.ok_or("not there")?;
    }
    Ok(())
}

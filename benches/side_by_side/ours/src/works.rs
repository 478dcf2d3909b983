//! The works of one client of our store, or of one that makes and one that reads.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use plasma::client::CreateOptions;
use plasma::{Client, ObjectBuffer, ObjectId};

use crate::clock::{nanos_since, now, pause, timed};
use crate::{Contender, Failure, Question, Samples};

/// Bytes of sealed objects that a work reads from, at most.
const READ_BYTES: usize = 64 << 20;

/// Objects that are put or deleted in one request when it is not timed.
const BATCH: usize = 1000;

/// Objects that are put with one message to be there for what is measured. A message is served in
/// one turn of the loop, and the longest turn is to be that of the works.
const TOGETHER: usize = 100;

/// Until all processes sleep. Longer than anybody looks for news before sleeping.
const UNTIL_ASLEEP: Duration = Duration::from_micros(500);

/// Our store's side of every work.
pub struct Works {
    pub socket: PathBuf,
    pub maker: Client,
    pub reader: Client,
    /// What is put; grows to the largest size asked for.
    payload: Vec<u8>,
    idle: Vec<Client>,
}

impl Contender for Works {
    fn work(&mut self, question: &Question) -> Result<Samples, Failure> {
        let Question { work, count, size } = question;
        let (count, size) = (*count, *size);
        if self.payload.len() < size {
            self.payload = vec![b'x'; size];
        }
        match work.as_str() {
            "contains" => self.contains(count),
            "create_seal" => self.create_seal(count, size),
            "put" => self.put(count, size),
            "get" => self.get(count, size),
            "get_held" => self.get_held(count, size),
            "get_batch" => self.get_batch(count, size),
            "wake" => self.wake(count),
            "fill" => self.fill(count, size),
            "warm" => self.warm(count, size),
            "list" => self.list(count),
            "subscribe" => self.subscribe(count, size),
            "get_random" => self.get_random(count, size),
            "readers" => Ok(crate::readers::together(self, count, size)?.0),
            "readers_cpu" => Ok(crate::readers::together(self, count, size)?.1),
            "crowd" => crate::crowd::throughput(&self.socket, count, size),
            "idle" => self.idle(count),
            "longest_turn" => self.longest_turn(),
            "ping_put" | "ping_list" | "ping_evict" | "ping_subscribe" => {
                crate::pings::ping_during(self, &work["ping_".len()..], count, size)
            }
            _ => Err(format!("{work} is not known here").into()),
        }
    }
}

impl Works {
    pub fn connect(socket: &str) -> Result<Self, Failure> {
        Ok(Self {
            socket: Path::new(socket).to_owned(),
            maker: Client::builder().name("maker").connect(socket)?,
            reader: Client::builder().name("reader").connect(socket)?,
            payload: Vec::new(),
            idle: Vec::new(),
        })
    }

    fn contains(&self, count: usize) -> Result<Samples, Failure> {
        let ids = self.sealed(count.min(BATCH), 1)?;
        let samples = each(count, |index| Ok(self.reader.contains(ids[index % ids.len()])?));
        self.delete(&ids)?;
        samples
    }

    fn create_seal(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let ids = new_ids(count);
        let payload = &self.payload[..size];
        let samples = each(count, |index| {
            let options = CreateOptions::default();
            let mut writer = self.maker.create(ids[index], size as u64, 0, options)?;
            writer.data_mut().copy_from_slice(payload);
            Ok(writer.seal()?)
        });
        self.delete(&ids)?;
        samples
    }

    /// Large objects are deleted one by one, so that the next one finds memory that is warm.
    fn put(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let payload = &self.payload[..size];
        let mut samples = Samples::new();
        let together = (READ_BYTES / size.max(1)).clamp(1, BATCH);
        for part in new_ids(count).chunks(together) {
            samples.extend(each(part.len(), |index| {
                Ok(self.maker.put(part[index], payload, b"")?)
            })?);
            self.delete(part)?;
        }
        Ok(samples)
    }

    fn get(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let ids = self.sealed((READ_BYTES / size.max(1)).clamp(1, count.min(BATCH)), size)?;
        self.get_each(count, &ids)
    }

    /// Of `size` objects of 1 KB, in no order.
    fn get_random(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let mut ids = self.sealed(size, 1000)?;
        // Their names are read one after another: to look for one in memory is no work of ours.
        fastrand::shuffle(&mut ids);
        self.get_each(count, &ids)
    }

    /// Gets these, one after another and again, and deletes them.
    fn get_each(&self, count: usize, ids: &[ObjectId]) -> Result<Samples, Failure> {
        let samples = each(count, |index| {
            let buffer = self.reader.get_one(ids[index % ids.len()], None)?;
            black_box(buffer.ok_or("not there")?.first());
            Ok(())
        });
        self.delete(ids)?;
        samples
    }

    fn get_held(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let ids = self.sealed(1, size)?;
        let held = self.reader.get_one(ids[0], None)?;
        let samples = each(count, |_| {
            let buffer = self.reader.get_one(ids[0], None)?;
            black_box(buffer.ok_or("not there")?.first());
            Ok(())
        });
        drop(held);
        self.delete(&ids)?;
        samples
    }

    /// `size` is the number of objects of 1 KB in a batch.
    fn get_batch(&mut self, count: usize, size: usize) -> Result<Samples, Failure> {
        let ids = self.sealed(size, 1000)?;
        let samples = each(count, |_| {
            let buffers = self.reader.get(&ids, None)?;
            black_box(&buffers);
            ObjectBuffer::release_all(buffers.into_iter().flatten());
            Ok(())
        });
        self.delete(&ids)?;
        samples
    }

    /// From just before the seal until the other client's get has returned.
    fn wake(&self, count: usize) -> Result<Samples, Failure> {
        let ids = new_ids(count);
        let (woken, wakes) = mpsc::channel();
        let samples = thread::scope(|scope| {
            scope.spawn(|| {
                for id in &ids {
                    let buffer = self.reader.get_one(*id, None);
                    let at = now();
                    if woken.send((at, buffer)).is_err() {
                        break;
                    }
                }
            });
            let mut samples = Samples::new();
            for id in &ids {
                let mut writer = self.maker.create(*id, 1, 0, CreateOptions::default())?;
                writer.data_mut().fill(1);
                pause(UNTIL_ASLEEP);
                let sealed = now();
                writer.seal()?;
                let (at, buffer) = wakes.recv()?;
                buffer?.ok_or("not there")?;
                let nanos = at.saturating_duration_since(sealed).as_nanos();
                samples.push(u64::try_from(nanos)?);
            }
            Ok(samples)
        });
        self.delete(&ids)?;
        samples
    }

    /// Puts so many objects that stay.
    pub fn fill(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let (nanos, result) = timed(|| self.keep(&new_ids(count), size));
        result?;
        Ok(vec![nanos])
    }

    /// Has all of the store's memory touched and mapped.
    fn warm(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        let ids = new_ids(count);
        let (nanos, result) = timed(|| self.keep(&ids, size));
        result?;
        self.delete(&ids)?;
        Ok(vec![nanos])
    }

    fn list(&self, count: usize) -> Result<Samples, Failure> {
        each(count, |_| {
            for object in self.reader.list() {
                black_box(object?);
            }
            Ok(())
        })
    }

    /// Until `size` objects, those that are there, have been told.
    fn subscribe(&self, count: usize, size: usize) -> Result<Samples, Failure> {
        each(count, |_| {
            for event in self.reader.subscribe()?.take(size) {
                black_box(event?);
            }
            Ok(())
        })
    }

    /// Makes it so many clients that are connected and do nothing.
    fn idle(&mut self, count: usize) -> Result<Samples, Failure> {
        self.idle.truncate(count);
        while self.idle.len() < count {
            self.idle.push(Client::connect(&self.socket)?);
        }
        Ok(Samples::new())
    }

    /// Of the store's loop, since it was started.
    fn longest_turn(&self) -> Result<Samples, Failure> {
        Ok(vec![self.maker.stats()?.counter("turn_longest_us") * 1000])
    }

    pub fn sealed(&self, count: usize, size: usize) -> Result<Vec<ObjectId>, Failure> {
        let ids = new_ids(count);
        self.keep(&ids, size)?;
        Ok(ids)
    }

    fn keep(&self, ids: &[ObjectId], size: usize) -> Result<(), Failure> {
        let Some(payload) = self.payload.get(..size) else {
            return self.keep_one_by_one(ids, &vec![1; size]);
        };
        if size > 4096 {
            return self.keep_one_by_one(ids, payload);
        }
        for part in ids.chunks(TOGETHER) {
            let objects: Vec<_> = part.iter().map(|id| (*id, payload, b"")).collect();
            self.maker.put_batch(&objects)?;
        }
        Ok(())
    }

    fn keep_one_by_one(&self, ids: &[ObjectId], payload: &[u8]) -> Result<(), Failure> {
        ids.iter().try_for_each(|id| self.maker.put(*id, payload, b""))?;
        Ok(())
    }

    pub fn delete(&self, ids: &[ObjectId]) -> Result<(), Failure> {
        for part in ids.chunks(BATCH) {
            self.maker.delete(part)?;
        }
        Ok(())
    }

    pub fn payload(&self, size: usize) -> &[u8] {
        &self.payload[..size]
    }
}

/// Names, made before anything is timed: the system is asked for each.
pub fn new_ids(count: usize) -> Vec<ObjectId> {
    let mut random = fastrand::Rng::new();
    let id = |_| {
        let mut bytes = [0; 20];
        random.fill(&mut bytes);
        ObjectId::from(bytes)
    };
    (0..count).map(id).collect()
}

/// Times each of `count` operations.
fn each<T>(
    count: usize,
    mut operation: impl FnMut(usize) -> Result<T, Failure>,
) -> Result<Samples, Failure> {
    let mut samples = Samples::with_capacity(count);
    for index in 0..count {
        let start = now();
        black_box(operation(index)?);
        samples.push(nanos_since(start));
    }
    Ok(samples)
}

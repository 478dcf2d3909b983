//! Processes that read at the same time: how much they do together, and what the store does
//! meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plasma::{Client, ObjectId};

use crate::clock::{nanos_since, now, pause};
use crate::works::Works;
use crate::{Failure, Samples};

/// Objects that are read, and the bytes of each.
const OBJECTS: usize = 100_000;
const OBJECT_BYTES: usize = 1000;

/// Longer than the store looks for news before it sleeps.
const UNTIL_ASLEEP: Duration = Duration::from_millis(50);

/// So many processes get and release random objects, `count` times altogether. The time that one
/// operation takes of the whole, and the processor time of the store meanwhile, nanoseconds.
pub fn together(
    works: &Works,
    count: usize,
    processes: usize,
) -> Result<(Samples, Samples), Failure> {
    let ids = works.sealed(OBJECTS, OBJECT_BYTES)?;
    let each = (count / processes).max(1);
    let mut readers: Vec<Reader> =
        (0..processes).map(|seed| Reader::start(works, each, seed)).collect::<Result<_, _>>()?;
    readers.iter_mut().try_for_each(Reader::hear)?;
    pause(UNTIL_ASLEEP);
    let store = works.maker.server_pid()?;
    let before = processor_time(store)?;
    let start = now();
    readers.iter_mut().try_for_each(Reader::go)?;
    readers.iter_mut().try_for_each(Reader::hear)?;
    let elapsed = nanos_since(start);
    let spent = processor_time(store)? - before;
    readers.into_iter().try_for_each(Reader::end)?;
    works.delete(&ids)?;
    Ok((vec![elapsed / (each * processes) as u64], vec![spent]))
}

/// Of all threads of a process so far, nanoseconds.
fn processor_time(process: u32) -> Result<u64, Failure> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let statistics = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += statistics.split_whitespace().next().ok_or("no time")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// A process that reads when it is told to.
struct Reader {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn start(works: &Works, count: usize, seed: usize) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("read")
            .arg(&works.socket)
            .args([count.to_string(), seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(child.stdout.take().ok_or("it has an output")?);
        Ok(Self { child, said })
    }

    /// Waits until it has done the next thing.
    fn hear(&mut self) -> Result<(), Failure> {
        match self.said.read_line(&mut String::new())? {
            0 => Err("a reader has ended".into()),
            _ => Ok(()),
        }
    }

    fn go(&mut self) -> Result<(), Failure> {
        Ok(writeln!(self.child.stdin.as_mut().ok_or("it has an input")?)?)
    }

    fn end(mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        if self.child.wait()?.success() { Ok(()) } else { Err("a reader has failed".into()) }
    }
}

/// What such a process does: says that it is ready, waits for a line, reads, says so, and waits for
/// the end of its input.
pub fn read(socket: &str, count: &str, seed: &str) -> Result<(), Failure> {
    let client = Client::connect(socket)?;
    let mut ids: Vec<ObjectId> = client.list_all()?.iter().map(|object| object.id).collect();
    fastrand::Rng::with_seed(seed.parse()?).shuffle(&mut ids);
    let mut next = ids.iter().cycle();
    let mut get = || {
        let object = client.get_one(*next.next().ok_or("there are none")?, None)?;
        object.map(drop).ok_or_else(|| Failure::from("not there"))
    };
    // Everything is mapped.
    (0..1000).try_for_each(|_| get())?;
    let mut lines = std::io::stdin().lines();
    println!("ready");
    lines.next().transpose()?;
    (0..count.parse()?).try_for_each(|_: usize| get())?;
    println!("done");
    lines.next().transpose()?;
    Ok(())
}

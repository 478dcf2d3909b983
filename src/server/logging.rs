//! The log of the program: one line an event on stderr, which nobody has to read.
//!
//! A pipe that nobody reads fills up, and who writes to it then waits for ever. So the loop never
//! writes: it leaves lines in a queue with an end, and a thread of its own writes them. Lines that
//! find the queue full are lost, and how many were is logged when there is room again.
//!
//! Knows lines, and not what they say.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use env_logger::fmt::Formatter;
use env_logger::{Target, WriteStyle};
use log::Record;

use crate::limits::{LOG_FLUSH_PATIENCE, LOG_LINES_MAX};
use crate::threads;

/// The log of this process. Dropping it waits until what was logged is written, but not for long.
#[derive(Debug)]
pub struct Log {
    lines: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// To be answered when everything before has been written.
    Flush(Sender<()>),
}

impl Log {
    /// Makes stderr the log of this process: time, level, text. `RUST_LOG` says how much of it.
    ///
    /// # Errors
    /// There can be no thread.
    ///
    /// # Panics
    /// If this process has a logger.
    pub fn start() -> io::Result<Self> {
        let (lines, queue) = sync_channel(LOG_LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let target = Queue { lines: lines.clone(), lost: Arc::clone(&lost) };
        threads::spawn("plasma-log", move || write_lines(&queue, &lost))?;
        // Colours for people, and only for them.
        let is_read_by_people = io::stderr().is_terminal();
        env_logger::Builder::new()
            .write_style(if is_read_by_people { WriteStyle::Always } else { WriteStyle::Never })
            .parse_env(env_logger::Env::default().default_filter_or("info"))
            .format(write_event)
            .target(Target::Pipe(Box::new(target)))
            .init();
        Ok(Self { lines })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (written, all_written) = channel();
        // A full queue means that nobody reads, so there is nothing to wait for.
        if self.lines.try_send(Message::Flush(written)).is_ok() {
            let _ = all_written.recv_timeout(LOG_FLUSH_PATIENCE);
        }
    }
}

/// Where the logger writes.
struct Queue {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl Write for Queue {
    /// Takes whole lines.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Message::Line(bytes.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs in its own thread until nobody can log any more.
fn write_lines(queue: &Receiver<Message>, lost: &AtomicU64) {
    // If stderr is closed there is nobody to tell, and no reason to stop.
    for message in queue {
        match message {
            Message::Line(line) => drop(io::stderr().write_all(&line)),
            Message::Flush(written) => drop(written.send(())),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let note = "lines of the log were lost here, because nobody read it in time";
            let _ = writeln!(io::stderr(), "{lost} {note}");
        }
    }
}

fn write_event(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level) = (out.timestamp_millis(), record.level());
    let style = out.default_level_style(level);
    let text = one_line(record.args());
    writeln!(out, "{time} {style}{level:<5}{style:#} {text}")
}

/// Names that clients choose and paths may have line ends; nobody may forge a line with them.
#[must_use]
pub fn one_line(text: &dyn Display) -> String {
    text.to_string().replace(char::is_control, " ")
}

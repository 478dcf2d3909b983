//! How long small requests take.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use plasma::{Client, ObjectId};

use crate::Failure;

/// Between two pings: it is about latency, not about one more busy process.
const BETWEEN: Duration = Duration::from_micros(100);

/// What pings took.
#[derive(Clone, Copy)]
pub struct Latencies {
    pub p50: Duration,
    pub p999: Duration,
}

impl Latencies {
    /// Of each figure the median of several measurements.
    pub fn median_of(all: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> Duration| {
            let mut figures: Vec<_> = all.iter().map(figure).collect();
            figures.sort_unstable();
            figures[figures.len() / 2]
        };
        Self { p50: median(|it| it.p50), p999: median(|it| it.p999) }
    }
}

/// Asks for so long whether an object is there. It is not, and the client does not look into the
/// directory, so each question goes to the store.
pub fn measure(socket: &Path, time: Duration) -> Result<Latencies, Failure> {
    let client = Client::builder().name("pings").directory(false).connect(socket)?;
    let id = ObjectId::random();
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < time {
        let asked = Instant::now();
        black_box(client.contains(id)?);
        samples.push(asked.elapsed());
        thread::sleep(BETWEEN);
    }
    samples.sort_unstable();
    let at = |share: usize| samples[(samples.len() * share / 1000).min(samples.len() - 1)];
    Ok(Latencies { p50: at(500), p999: at(999) })
}

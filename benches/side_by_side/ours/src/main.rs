//! The measuring program of the side-by-side benchmark: asked on standard input, it does some work
//! and answers how long each operation took.
//!
//! ```text
//! plasma-side-by-side store SOCKET     works against our store, in `works`, `crowd` and `pings`
//! plasma-side-by-side limits           what the machine allows: `echo` and `memory`
//! plasma-side-by-side read SOCKET …    one of the readers of `readers`
//! ```
//!
//! A question is a line `WORK COUNT SIZE`, an answer is a line `ok` with nanoseconds, or `no` and
//! the reason. What the numbers mean is known to the orchestrator, which asks the programs of all
//! contenders in this way, in turn.

mod clock;
mod crowd;
mod echo;
mod limits;
mod memory;
mod pings;
mod readers;
mod works;

use std::error::Error;
use std::io::{BufRead, Write};
use std::process::ExitCode;

/// Nanoseconds of each operation, in order.
type Samples = Vec<u64>;

/// Why a work cannot be done. Whatever it is, it is only shown.
type Failure = Box<dyn Error + Send + Sync>;

/// One question.
struct Question {
    work: String,
    count: usize,
    size: usize,
}

/// Something that can be asked to work.
trait Contender {
    fn work(&mut self, question: &Question) -> Result<Samples, Failure>;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["store", socket] => works::Works::connect(socket).and_then(serve),
        ["limits"] => serve(limits::Limits::default()),
        ["read", socket, count, seed] => readers::read(socket, count, seed),
        ["echo", socket, waiting] => echo::serve(socket, waiting),
        _ => Err("usage: plasma-side-by-side store SOCKET | limits".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plasma-side-by-side: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers questions until there are no more.
fn serve(mut contender: impl Contender) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = parse(&line?).and_then(|question| contender.work(&question));
        match answer {
            Ok(samples) => writeln!(output, "ok{}", as_text(&samples))?,
            Err(error) => writeln!(output, "no {}", error.to_string().replace('\n', " "))?,
        }
        output.flush()?;
    }
    Ok(())
}

fn parse(line: &str) -> Result<Question, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [work, count, size] = words[..] else {
        return Err(format!("{line:?} is not WORK COUNT SIZE").into());
    };
    Ok(Question { work: work.to_owned(), count: count.parse()?, size: size.parse()? })
}

fn as_text(samples: &Samples) -> String {
    samples.iter().map(|sample| format!(" {sample}")).collect()
}

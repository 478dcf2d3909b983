//! `plasma_store`: arguments in, a running store, an exit code out.
//!
//! 0: the store was asked to end and did, or help was printed. 1: the machine does not have what
//! was asked for. 2: the command line is wrong. Both errors are one line on stderr. A bug of ours
//! panics, which is 101.
//!
//! The log goes to stderr, one line an event: time, level, text. `RUST_LOG` says how much of it.

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use env_logger::fmt::Formatter;
use log::Record;
use plasma::server::config::{Config, Invocation};
use plasma::server::signals::block_termination_signals;

/// What `RUST_LOG` is when nobody sets it.
const LOG_FILTER_DEFAULT: &str = "info";

const ENVIRONMENT: u8 = 1;

fn main() -> ExitCode {
    // Before anything else, so that no signal finds its default action, and before any thread.
    if let Err(error) = block_termination_signals() {
        return fail(&format_args!("cannot block signals: {error}"), ENVIRONMENT);
    }
    match Config::from_arguments(env::args_os().skip(1)) {
        Ok(Invocation::Print(text)) => {
            // A reader who has seen enough (`| head`) is no error.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Serve(config)) => serve(config),
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn serve(config: Config) -> ExitCode {
    let filter = env_logger::Env::default().default_filter_or(LOG_FILTER_DEFAULT);
    env_logger::Builder::from_env(filter).format(write_event).init();
    match plasma::server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, ENVIRONMENT),
    }
}

fn write_event(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level) = (out.timestamp_millis(), record.level());
    let style = out.default_level_style(level);
    let text = one_line(record.args());
    writeln!(out, "{time} {style}{level:<5}{style:#} {text}")
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    // If stderr is closed there is nobody to tell, and no reason to panic.
    let _ = writeln!(io::stderr(), "plasma_store: {}", one_line(error));
    ExitCode::from(code)
}

/// Names that clients choose and paths may have line ends; nobody may forge a line with them.
fn one_line(text: &dyn Display) -> String {
    text.to_string().replace(char::is_control, " ")
}

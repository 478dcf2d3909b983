//! `plasma_store`: arguments in, a running store, an exit code out.
//!
//! 0: the store was asked to end and did, or help was printed. 1: the machine does not have what
//! was asked for. 2: the command line is wrong. Both errors are one line on stderr. A bug of ours
//! panics, which is 101.
//!
//! The log goes to stderr, see `plasma::server::logging`.

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use plasma::server::config::{Config, Invocation};
use plasma::server::logging::{Log, one_line};
use plasma::server::signals::block_termination_signals;

/// Gives freed memory back to the system. The allocator of the C library keeps nearly all of it:
/// a page goes back only if nothing on it is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    let _log = match Log::start() {
        Ok(log) => log,
        Err(error) => return fail(&format_args!("cannot start a thread: {error}"), ENVIRONMENT),
    };
    match plasma::server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, ENVIRONMENT),
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    // If stderr is closed there is nobody to tell, and no reason to panic.
    let _ = writeln!(io::stderr(), "plasma_store: {}", one_line(error));
    ExitCode::from(code)
}

//! What heavy clients cost the others: how long small requests take while some load is on the
//! same store, against *calm*: the same load on a second store of this machine. So what the
//! scheduler does is in both figures, and only what the store does is in their ratio.
//!
//! ```text
//! plasma-fairness --store target/release/plasma_store
//! ```

mod loads;
mod pings;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::Duration;

use argh::FromArgs;

use loads::Load;
use pings::Latencies;

/// Why something cannot be measured. Whatever it is, it is only shown.
type Failure = Box<dyn Error + Send + Sync>;

/// Memory of each store: room for what the loads make.
const STORE_BYTES: &str = "256MB";

/// Enough for all requests of 200 peers in one process, so that none is refused.
const REQUEST_MEMORY: &str = "2GB";

/// What heavy clients of a store cost the others.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    part: Part,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Part {
    Measure(Measure),
    Load(RunLoad),
    Stuff(Stuff),
}

/// measure, and print a table
#[derive(FromArgs)]
#[argh(subcommand, name = "measure")]
struct Measure {
    /// the program of the store
    #[argh(option)]
    store: PathBuf,
    /// seconds of each measurement (default: 2)
    #[argh(option, default = "2")]
    seconds: u64,
    /// measurements of each figure, in turn with the others; the median counts (default: 3)
    #[argh(option, default = "3")]
    rounds: usize,
    /// numbers of peers, with commas between them (default: 1,20,200)
    #[argh(option, default = "String::from(\"1,20,200\")")]
    peers: String,
    /// names of loads, with commas between them (default: all)
    #[argh(option)]
    only: Option<String>,
    /// each peer is a process of its own
    #[argh(switch)]
    apart: bool,
}

/// be a load, until standard input ends
#[derive(FromArgs)]
#[argh(subcommand, name = "load")]
struct RunLoad {
    #[argh(positional)]
    load: String,
    #[argh(positional)]
    socket: PathBuf,
    #[argh(positional)]
    peers: usize,
}

/// fill so many connections with requests, and wait to be killed
#[derive(FromArgs)]
#[argh(subcommand, name = "stuff")]
struct Stuff {
    #[argh(positional)]
    socket: PathBuf,
    #[argh(positional)]
    connections: usize,
}

fn main() -> ExitCode {
    let result = match argh::from_env::<Arguments>().part {
        Part::Measure(measure) => measure.run(),
        Part::Load(RunLoad { load, socket, peers }) => {
            Load::named(&load).and_then(|load| loads::run(load, &socket, peers))
        }
        Part::Stuff(Stuff { socket, connections }) => loads::stuff(&socket, connections),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plasma-fairness: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Measure {
    fn run(&self) -> Result<(), Failure> {
        let loads = match &self.only {
            None => Load::ALL.to_vec(),
            Some(names) => names.split(',').map(Load::named).collect::<Result<_, _>>()?,
        };
        let peers: Vec<usize> = self.peers.split(',').map(str::parse).collect::<Result<_, _>>()?;
        println!("| load | peers | p50 calm | p50 | times | p99.9 calm | p99.9 |");
        println!("|---|---|---|---|---|---|---|");
        for load in loads {
            let stores = [Store::start(&self.store)?, Store::start(&self.store)?];
            for store in &stores {
                loads::prepare(load, &store.socket())?;
            }
            for peers in &peers {
                self.measure(load, *peers, &stores)?;
            }
        }
        Ok(())
    }

    /// Pings the first store while the load is on the second one, and then on the first one.
    fn measure(&self, load: Load, peers: usize, stores: &[Store; 2]) -> Result<(), Failure> {
        let (mut calm, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (loaded, results) in [(&stores[1], &mut calm), (&stores[0], &mut busy)] {
                let running = Running::start(load, &loaded.socket(), peers, self.apart)?;
                let time = Duration::from_secs(self.seconds);
                results.push(pings::measure(&stores[0].socket(), time)?);
                running.end()?;
            }
        }
        let calm = Latencies::median_of(&calm);
        let busy = Latencies::median_of(&busy);
        println!(
            "| {} | {peers} | {} | {} | {:.1} | {} | {} |",
            load.name(),
            milliseconds(calm.p50),
            milliseconds(busy.p50),
            busy.p50.as_secs_f64() / calm.p50.as_secs_f64(),
            milliseconds(calm.p999),
            milliseconds(busy.p999),
        );
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1000.0)
}

/// A store of our own, ended on drop.
struct Store {
    process: Child,
    directory: tempfile::TempDir,
}

impl Store {
    fn start(program: &Path) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command
            .args(["-m", STORE_BYTES, "--request-memory", REQUEST_MEMORY, "-s"])
            .arg(directory.path().join("socket"));
        // Its log would say of every killed client that it is gone.
        command.env("RUST_LOG", "error").stdin(Stdio::null());
        Ok(Self { process: command.spawn()?, directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Processes that are a load.
struct Running(Vec<(Child, ChildStdin)>);

impl Running {
    /// Starts them; they are at work when this returns.
    fn start(load: Load, socket: &Path, peers: usize, apart: bool) -> Result<Self, Failure> {
        let (processes, each) = if apart { (peers, 1) } else { (1, peers) };
        let mut running = Self(Vec::new());
        let mut said = Vec::new();
        for _ in 0..processes {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["load", load.name()]).arg(socket).arg(each.to_string());
            let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let stdin = process.stdin.take().ok_or("stdin is piped")?;
            said.push(BufReader::new(process.stdout.take().ok_or("stdout is piped")?));
            running.0.push((process, stdin));
        }
        for output in &mut said {
            let mut line = String::new();
            output.read_line(&mut line)?;
            if line != "ready\n" {
                return Err(format!("the load {} did not start", load.name()).into());
            }
        }
        Ok(running)
    }

    fn end(mut self) -> Result<(), Failure> {
        for (process, stdin) in self.0.drain(..) {
            drop(stdin);
            let status = process.wait_with_output()?.status;
            if !status.success() {
                return Err(format!("a load ended with {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (process, _) in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

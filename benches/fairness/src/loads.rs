//! The loads: what somebody without manners, or without luck, does to a store.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use plasma::limits::PROTOCOL_VERSION;
use plasma::protocol::codec::encode_client;
use plasma::protocol::frame::append_frame;
use plasma::protocol::message::{ClientMessage, Connect, Request, RequestId};
use plasma::{Client, ObjectId};

use crate::Failure;

/// Ids in one request.
const IDS: usize = 8192;

/// Objects that are deleted together.
const DELETED: usize = 2000;

/// Clients with tables, which a delete may have to ask.
const READERS: usize = 1000;

/// Objects in a long listing.
const LISTED: usize = 1_000_000;

/// Objects in one batch.
const BATCH: usize = 4096;

/// How long a get or a wait waits for objects that never come.
const TIMEOUT: Option<Duration> = Some(Duration::from_millis(1));

/// What each peer does, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Connects and hangs up, without a word.
    Connect,
    /// Waits for many objects that do not come.
    Wait,
    /// Gets many objects that do not come.
    Get,
    /// Refreshes many objects.
    Refresh,
    /// Puts many objects and deletes them, while there are many readers.
    Delete,
    /// Lists very many objects.
    List,
    /// Asks for as many lists as the socket takes, and is killed.
    Dead,
}

impl Load {
    pub const ALL: [Self; 7] =
        [Self::Connect, Self::Wait, Self::Get, Self::Refresh, Self::Delete, Self::List, Self::Dead];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Wait => "wait",
            Self::Get => "get",
            Self::Refresh => "refresh",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Dead => "dead",
        }
    }

    pub fn named(name: &str) -> Result<Self, Failure> {
        let known = Self::ALL.map(Self::name).join(", ");
        let load = Self::ALL.into_iter().find(|load| load.name() == name);
        load.ok_or_else(|| format!("there is no load {name}; there are {known}").into())
    }
}

fn numbered(number: usize) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    ObjectId::from(bytes)
}

fn new_ids(count: usize) -> Vec<ObjectId> {
    (0..count).map(|_| ObjectId::random()).collect()
}

fn put(client: &Client, ids: &[ObjectId]) -> Result<(), Failure> {
    for ids in ids.chunks(BATCH) {
        let objects: Vec<_> = ids.iter().map(|id| (*id, b"x", b"")).collect();
        client.put_batch(&objects)?;
    }
    Ok(())
}

/// Makes the objects that the load needs.
pub fn prepare(load: Load, socket: &Path) -> Result<(), Failure> {
    let objects = match load {
        Load::Refresh => IDS,
        Load::List | Load::Dead => LISTED,
        Load::Connect | Load::Wait | Load::Get | Load::Delete => 0,
    };
    let ids: Vec<_> = (0..objects).map(numbered).collect();
    put(&Client::connect(socket)?, &ids)
}

/// So many peers, each in a thread, until standard input ends.
pub fn run(load: Load, socket: &Path, peers: usize) -> Result<(), Failure> {
    let readers = if load == Load::Delete { READERS } else { 0 };
    let _readers: Vec<Client> =
        (0..readers).map(|_| Client::connect(socket)).collect::<Result<_, _>>()?;
    // Dead peers share their processes.
    let threads = if load == Load::Dead { 1 } else { peers };
    let is_over = AtomicBool::new(false);
    let all_are_ready = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let peers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(load, socket, peers, &all_are_ready, &is_over)))
            .collect();
        all_are_ready.wait();
        println!("ready");
        io::stdout().flush()?;
        io::stdin().read_to_end(&mut Vec::new())?;
        is_over.store(true, Ordering::Relaxed);
        peers.into_iter().try_for_each(|peer| peer.join().map_err(|_| "a peer panicked")?)
    })
}

fn work(
    load: Load,
    socket: &Path,
    peers: usize,
    all_are_ready: &Barrier,
    is_over: &AtomicBool,
) -> Result<(), Failure> {
    let client = Client::connect(socket);
    let ids: Vec<_> = if load == Load::Refresh {
        (0..IDS).map(numbered).collect()
    } else {
        new_ids(if load == Load::Delete { DELETED } else { IDS })
    };
    all_are_ready.wait();
    let client = client?;
    while !is_over.load(Ordering::Relaxed) {
        match load {
            Load::Connect => connect_and_hang_up(socket)?,
            Load::Wait => drop(client.wait(&ids, ids.len(), TIMEOUT)?),
            Load::Get => drop(client.get(&ids, TIMEOUT)?),
            Load::Refresh => drop(client.refresh(&ids)?),
            Load::Delete => {
                put(&client, &ids)?;
                client.delete(&ids)?;
            }
            Load::List => {
                for object in client.list() {
                    object?;
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            Load::Dead => kill_one_who_asks(socket, peers)?,
        }
    }
    Ok(())
}

fn connect_and_hang_up(socket: &Path) -> Result<(), Failure> {
    match UnixStream::connect(socket) {
        Ok(stream) => drop(stream),
        // The queue of the socket is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Starts a process that asks too much, and kills it.
fn kill_one_who_asks(socket: &Path, connections: usize) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("stuff").arg(socket).arg(connections.to_string());
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = process.stdout.take().ok_or("stdout is piped")?;
    let read = io::BufReader::new(output).read_line(&mut String::new());
    process.kill()?;
    process.wait()?;
    read?;
    Ok(())
}

/// Fills connections with requests whose answers it does not read, says so, and waits.
pub fn stuff(socket: &Path, connections: usize) -> Result<(), Failure> {
    let hello = ClientMessage::Connect(Connect {
        protocol_version: PROTOCOL_VERSION,
        client_name: "dead".to_owned(),
        ..Connect::default()
    });
    let mut requests = Vec::new();
    for number in 2..5000 {
        let list = ClientMessage::Request(Request::List { cursor: 0 });
        add_frame(&mut requests, number, &list)?;
    }
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = UnixStream::connect(socket)?;
        let mut frame = Vec::new();
        add_frame(&mut frame, 1, &hello)?;
        stream.write_all(&frame)?;
        stream.read_exact(&mut [0])?;
        streams.push(stream);
    }
    for stream in &mut streams {
        stream.set_nonblocking(true)?;
        loop {
            match stream.write(&requests) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!("full");
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

fn add_frame(out: &mut Vec<u8>, request: u64, message: &ClientMessage) -> Result<(), Failure> {
    append_frame(out, 0, |payload| encode_client(payload, RequestId(request), message))
        .map_err(|error| format!("{error:?}").into())
}

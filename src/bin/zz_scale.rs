//! scratch
use plasma::client::*;
use plasma::{Client, ObjectId};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
fn id(n: u64) -> ObjectId {
    let mut b = [0; 20];
    b[..8].copy_from_slice(&(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes());
    b[8..16].copy_from_slice(&n.to_le_bytes());
    ObjectId::from(b)
}
fn rss(pid: u32) -> u64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let l = s.lines().find(|l| l.starts_with("RssAnon")).unwrap();
    l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
fn cpu(pid: u32) -> u64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
    s.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}
fn fill(c: &Client, from: u64, to: u64) {
    let mut n = from;
    while n < to {
        let end = (n + 1000).min(to);
        let objs: Vec<_> = (n..end).map(|n| (id(n), n.to_le_bytes(), b"")).collect();
        c.put_batch(&objs).unwrap();
        n = end;
    }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (bin, what) = (&args[1], args[2].as_str());
    let n: u64 = args.get(3).map_or(1_000_000, |n| n.parse().unwrap());
    let dir = std::path::PathBuf::from(format!("/tmp/scale-bin/run{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let sock = dir.join("s");
    let mb = 200;
    let mut child = Command::new(bin)
        .args(["-m", &format!("{mb}M"), "-s"])
        .arg(&sock)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let c = Client::connect(&sock).unwrap();
    let rss0 = rss(pid);
    let t = Instant::now();
    let holder = Client::connect(&sock).unwrap();
    if what == "quota" {
        holder.set_quota(140 << 20).unwrap();
        fill(&holder, 0, n)
    } else if what != "rate" {
        fill(&c, 0, n)
    }
    let fill_t = t.elapsed();
    let mut keep = Vec::new();
    if what == "holds" || what == "heap" {
        for part in 0..n / 1000 {
            let ids: Vec<_> = (part * 1000..part * 1000 + 1000).map(id).collect();
            keep.extend(holder.get(&ids, None).unwrap());
        }
    }
    let rss1 = rss(pid);
    let mut waiters = Vec::new();
    if what == "wake" {
        for k in 0..100 {
            let w = Client::connect(&sock).unwrap();
            let pend: Vec<_> = (0..100)
                .map(|_| w.start_get(&[id(1 << 40)], GetOptions::default()).unwrap())
                .collect();
            waiters.push((w, pend));
            let _ = k;
        }
    }
    if what == "wake1" {
        let w = Client::connect(&sock).unwrap();
        let pend: Vec<_> = (0..10000)
            .map(|_| w.start_get(&[id(1 << 40)], GetOptions::default()).unwrap())
            .collect();
        waiters.push((w, pend));
    }
    let mut conns = Vec::new();
    if what == "close" {
        for _ in 0..1000 {
            conns.push(Client::connect(&sock).unwrap());
        }
    }
    let before_longest = c.stats().unwrap().counter("turn_longest_us");
    let stop = Arc::new(AtomicBool::new(false));
    let pinger = {
        let (stop, sock) = (stop.clone(), sock.clone());
        std::thread::spawn(move || {
            let p = Client::connect(&sock).unwrap();
            let mut v = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let t = Instant::now();
                p.contains(id(1 << 50)).unwrap();
                v.push(t.elapsed());
                std::thread::sleep(Duration::from_micros(50));
            }
            v
        })
    };
    std::thread::sleep(Duration::from_millis(100));
    let cpu0 = cpu(pid);
    let turns0 = c.stats().unwrap().counter("turns");
    let t = Instant::now();
    let mut note = String::new();
    match what {
        "fill" | "heap" => {}
        "rate" => {
            fill(&c, 0, 1000);
            let mut small = Vec::new();
            let mut big = Vec::new();
            let run = |from: u64| {
                let t = Instant::now();
                let c0 = cpu(pid);
                for k in from..from + 20000 {
                    c.put(id(k), &k.to_le_bytes(), b"").unwrap();
                }
                (20000.0 / t.elapsed().as_secs_f64(), (cpu(pid) - c0) as f64 / 20000.0)
            };
            for r in 0..3 {
                small.push(run(2_000_000 + r * 20000));
            }
            let del: Vec<_> = (2_000_000..2_060_000).map(id).collect();
            c.delete(&del).unwrap();
            fill(&c, 1000, n);
            for r in 0..5 {
                big.push(run(2_000_000 + r * 20000));
            }
            note = format!("small {small:.0?} big {big:.0?}");
        }
        "list" => {
            note = format!("{}", c.list_all().unwrap().len());
        }
        "evict" => {
            note = format!("{:?}", c.evict(8 * n).unwrap());
        }
        "evict5" => {
            note = format!("{:?}", c.evict(8 * 100_000).unwrap());
        }
        "create" => {
            let w = c.create(id(1 << 41), 150 << 20, 0, CreateOptions::default()).unwrap();
            drop(w);
            let s = c.stats().unwrap();
            note = format!("evicted {}", s.counter("objects_evicted"));
        }
        "frag" => {
            // every 100th object held: no room for a large one
            let ids: Vec<_> = (0..n).step_by(100).map(id).collect();
            for part in ids.chunks(1000) {
                keep.extend(c.get(part, None).unwrap());
            }
            let r = c.create(id(1 << 41), 150 << 20, 0, CreateOptions::default());
            note = format!("{:?}", r.err());
            let s = c.stats().unwrap();
            note += &format!("evicted {}", s.counter("objects_evicted"));
        }
        "holds" | "quota" => {
            let t0 = Instant::now();
            for k in keep.drain(..) {
                std::mem::forget(k);
            }
            // vanish: a connection that is cut
            note = format!("forget {:?}", t0.elapsed());
            holder.disconnect();
            while c.stats().unwrap().clients > 2 || c.stats().unwrap().pinned > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        "delete" => {
            for part in 0..20 {
                let ids: Vec<_> = (part * 8192..part * 8192 + 8192).map(id).collect();
                c.delete(&ids).unwrap();
            }
        }
        "deleteall" => {
            let ids: Vec<_> = (0..n).map(id).collect();
            c.delete(&ids).unwrap();
            fill(&c, n, n + 10);
            note = format!("{}", c.list_all().unwrap().len());
        }
        "wake" | "wake1" => {
            c.put(id(1 << 40), b"x", b"").unwrap();
            for (w, pend) in &mut waiters {
                let mut left = pend.len();
                while left > 0 {
                    left -= w.receive_ready().unwrap().len();
                }
            }
        }
        "close" => {
            drop(conns.drain(..));
            while c.stats().unwrap().clients > 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        "sub" => {
            let mut s = c.subscribe().unwrap();
            let mut k = 0;
            while k < n {
                s.next_timeout(Duration::from_secs(5)).unwrap().unwrap();
                k += 1;
            }
            note = format!("{k}");
        }
        "batch" => {
            for r in 0..50 {
                let objs: Vec<_> =
                    (0..4000u64).map(|k| (id(3_000_000 + r * 4000 + k), [0u8; 250], b"")).collect();
                c.put_batch(&objs).ok();
            }
        }
        _ => panic!(),
    }
    let took = t.elapsed();
    let p2 = Client::connect(&sock).unwrap();
    let cpu1 = cpu(pid);
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    let mut v = pinger.join().unwrap();
    v.sort();
    let s = p2.stats().unwrap();
    println!(
        "{what} n={n}: fill {fill_t:?} took {took:?} cpu {:.1} ms turns {} | longest before {} after {} us | ping n={} p50 {:?} p99.9 {:?} max {:?} | heap/object {} | {note}",
        (cpu1 - cpu0) as f64 / 1e6,
        s.counter("turns") - turns0,
        before_longest,
        s.counter("turn_longest_us"),
        v.len(),
        v[v.len() / 2],
        v[v.len() * 999 / 1000],
        v[v.len() - 1],
        (rss1 - rss0) / n
    );
    for k in keep.drain(..) {
        std::mem::forget(k);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(dir).ok();
    std::process::exit(0);
}

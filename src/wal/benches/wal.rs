//! What a durable batch costs, and what decides it. Questions, one sweep each:
//!
//! - does an overwritten, pre-written file sync faster than one that grows, and by how much?
//! - what does one client wait for, over and above one write and one sync?
//! - how many entries share a sync as the number of writers rises, and what does an entry cost then?
//! - how fast is replay and cold reading?
//!
//! Numbers are for the file system under `WAL_BENCH_DIR` (default: the target's temporary directory). Excluded: everything
//! above the log (no raft, no network), and the filling of new segments, which the helper thread does meanwhile.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use quorate_wal::{Disk, Entry, LogPos, Observer, Options, RealDisk, Wal};

/// Each measurement runs about this long.
const RUN: Duration = Duration::from_millis(700);

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags; there is nothing to choose here.
    let root = std::env::var_os("WAL_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("quorate-wal-bench-{}", std::process::id()));
    RealDisk.create_dir_all(&root).expect("create bench directory");
    bytes_per_sync(&root);
    one_client(&root);
    many_clients(&root);
    replay(&root);
    std::fs::remove_dir_all(&root).expect("remove bench directory");
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_micros();
    format!("p50 {:>5} µs  p99 {:>6} µs  ({} samples)", at(50), at(99), times.len())
}

/// One write and one sync, by size, into a file that was filled before and into one that grows.
fn bytes_per_sync(root: &Path) {
    println!("\nwrite + fdatasync, by bytes");
    for bytes in [512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        for (what, filled) in [("pre-written", 64 << 20), ("growing", 0)] {
            let path = root.join("raw");
            let file = RealDisk.create(&path).expect("create");
            for at in (0..filled).step_by(1 << 20) {
                file.write_at(&vec![0; 1 << 20], at).expect("fill");
            }
            file.sync().expect("sync");
            let data = vec![0x5a; bytes];
            let (mut at, mut times, start) = (0, Vec::new(), Instant::now());
            while start.elapsed() < RUN && at + bytes as u64 <= 64 << 20 {
                let one = Instant::now();
                file.write_at(&data, at).expect("write");
                file.sync().expect("sync");
                times.push(one.elapsed());
                at += bytes as u64;
            }
            RealDisk.remove(&path).expect("remove");
            println!("  {bytes:>8} B  {what:<12} {}", percentiles(times));
        }
    }
}

#[derive(Default)]
struct Count {
    batches: AtomicU64,
    nanos_disk: AtomicU64,
}

impl Observer for Count {
    fn batch(&self, _bytes: u64, write: Duration, sync: Duration) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.nanos_disk
            .fetch_add((write + sync).as_nanos() as u64, Ordering::Relaxed);
    }
}

fn open(dir: &Path, count: &Arc<Count>) -> Wal {
    let options = Options {
        observer: count.clone(),
        ..Options::new(dir)
    };
    Wal::open(options, Arc::new(RealDisk)).expect("open").0
}

fn entry(index: u64, payload: &bytes::Bytes) -> Entry {
    Entry {
        pos: LogPos { term: 1, index },
        payload: payload.clone(),
    }
}

/// What a single client waits for, and how much of it is the disk.
fn one_client(root: &Path) {
    println!("\none client, one entry at a time");
    for bytes in [100, 1 << 10, 16 << 10, 256 << 10] {
        let (dir, count) = (root.join("one"), Arc::new(Count::default()));
        let wal = open(&dir, &count);
        let payload = bytes::Bytes::from(vec![7; bytes]);
        let (mut index, mut times, start) = (0, Vec::new(), Instant::now());
        while start.elapsed() < RUN {
            let (tell, told) = mpsc::sync_channel(1);
            let one = Instant::now();
            wal.append(
                vec![entry(index, &payload)],
                Box::new(move |outcome| tell.send(outcome).expect("told")),
            );
            told.recv().expect("answer").expect("durable");
            times.push(one.elapsed());
            index += 1;
        }
        let disk = count.nanos_disk.load(Ordering::Relaxed) / count.batches.load(Ordering::Relaxed);
        println!(
            "  {bytes:>8} B  {}  of which disk, on average {} µs",
            percentiles(times),
            disk / 1000
        );
        wal.close().expect("close");
        std::fs::remove_dir_all(&dir).expect("remove");
    }
}

/// A fixed number of entries in flight: each answer sends the next.
fn many_clients(root: &Path) {
    println!("\nentries of 256 B in flight");
    let payload = bytes::Bytes::from(vec![7; 256]);
    for in_flight in [1, 10, 100, 1000, 10_000] {
        let (dir, count) = (root.join("many"), Arc::new(Count::default()));
        let wal = open(&dir, &count);
        let (tell, told) = mpsc::channel();
        let (mut next, mut answered, start, cpu) = (0u64, 0u64, Instant::now(), cpu_time());
        let send = |next: &mut u64| {
            let tell = tell.clone();
            wal.append(
                vec![entry(*next, &payload)],
                Box::new(move |outcome| drop(tell.send(outcome))),
            );
            *next += 1;
        };
        (0..in_flight).for_each(|_| send(&mut next));
        while start.elapsed() < RUN {
            told.recv().expect("answer").expect("durable");
            answered += 1;
            send(&mut next);
            if next.is_multiple_of(100_000) {
                let upto = LogPos {
                    term: 1,
                    index: answered - 1,
                };
                wal.purge(upto, Box::new(|outcome| outcome.expect("purged")));
            }
        }
        let (took, cpu) = (start.elapsed(), cpu_time() - cpu);
        let batches = count.batches.load(Ordering::Relaxed);
        println!(
            "  {in_flight:>6}  {:>8.0} entries/s  {:>7.1} entries/sync  {:>5.0} syncs/s  {:>5.2} µs CPU/entry (bench's own included)",
            answered as f64 / took.as_secs_f64(),
            answered as f64 / batches as f64,
            batches as f64 / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / answered as f64,
        );
        wal.close().expect("close");
        std::fs::remove_dir_all(&dir).expect("remove");
    }
}

/// User and system time of the process, in clock ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| {
        after_name
            .split_whitespace()
            .nth(field)
            .and_then(|t| t.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// Opening a log after a crash, and reading all of it back.
fn replay(root: &Path) {
    println!("\nopen after a crash, and read back from the segments (warm page cache)");
    let payload = bytes::Bytes::from(vec![7; 4 << 10]);
    let (dir, count) = (root.join("replay"), Arc::new(Count::default()));
    for mib in [0u64, 64, 256] {
        let wal = open(&dir, &count);
        let entries = mib * 256;
        for first in (0..entries).step_by(256) {
            let batch = (first..first + 256).map(|index| entry(index, &payload)).collect();
            let (tell, told) = mpsc::sync_channel(1);
            wal.append(batch, Box::new(move |outcome| tell.send(outcome).expect("told")));
            told.recv().expect("answer").expect("durable");
        }
        drop(wal);
        let start = Instant::now();
        let wal = open(&dir, &count);
        let opened = start.elapsed();
        let (mut next, start) = (0, Instant::now());
        while next < entries {
            next += wal.read(next..entries, 1 << 20).expect("read").len() as u64;
        }
        println!("  {mib:>4} MiB  open {opened:>8.1?}  read {:>8.1?}", start.elapsed());
        drop(wal);
        std::fs::remove_dir_all(&dir).expect("remove");
    }
}

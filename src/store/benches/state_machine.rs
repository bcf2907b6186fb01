//! What does the state machine itself cost, at a million keys? Memory per key, a put and a get in the index, a put
//! applied (batches of 100, values of 256 B, file in the background), reads of one, of 500 and of everything, the
//! start, and compaction. One thread; no network, no log. `KEYS` sets the number of keys. `-- origins` asks instead what
//! it costs to remember whose batch an entry was.

#![allow(clippy::unwrap_used)]

mod measure;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use measure::{cpu, key};
use quorate_api::proto::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest};
use quorate_store::backend::{Applied, RowId};
use quorate_store::command::Command;
use quorate_store::mvcc::index::{Index, NewVersion};
use quorate_store::{Applier, Options, Origin, Store};

const VALUE_LEN: usize = 256;
const BATCH: u64 = 100;

/// Of all threads, in ticks of 10 ms.
fn process_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn per(what: &str, count: u64, took: Duration) {
    println!(
        "{what:<44} {:>9.0} ns of CPU each",
        took.as_nanos() as f64 / count as f64
    );
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon"))
        .unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

fn index(keys: u64) {
    let before = resident_bytes();
    let mut index = Index::default();
    let started = cpu();
    for n in 0..keys {
        let id = RowId {
            main: 2 + n as i64,
            sub: 0,
        };
        let new = NewVersion {
            id,
            value_len: VALUE_LEN as u32,
            lease: Some(0),
        };
        index.put(key(n).as_bytes(), new);
    }
    per("index: put of a new key", keys, cpu() - started);
    println!(
        "index: {} bytes a key by its own count, {} resident; the key has {}",
        index.heap_bytes() as u64 / keys,
        (resident_bytes().saturating_sub(before)) / keys,
        key(0).len()
    );
    let asked: Vec<String> = (0..200_000).map(|n| key(n * 7919 % keys)).collect();
    let std_map: BTreeMap<Box<[u8]>, [u64; 5]> = (0..keys).map(|n| (key(n).into_bytes().into(), [n; 5])).collect();
    for _ in 0..3 {
        let started = cpu();
        let found = asked
            .iter()
            .filter(|key| index.get(key.as_bytes(), i64::MAX).is_some())
            .count();
        per("index: get", found as u64, cpu() - started);
        let started = cpu();
        let found = asked
            .iter()
            .filter(|key| std_map.get(key.as_bytes()).is_some_and(|v| v[0] < keys))
            .count();
        per("for comparison, get from a std BTreeMap", found as u64, cpu() - started);
    }
}

fn apply(applier: &mut Applier, index: &mut u64, commands: Vec<Command>) {
    *index += 1;
    let entry = Applied { index: *index, term: 1 };
    applier.apply(entry, commands, &mut Vec::new()).unwrap();
}

/// What an entry costs by itself, and what of it is for remembering whose batch it was: entries of one put. By turns,
/// since the machine is not alone.
fn origins(keys: u64) {
    const ROUNDS: u64 = 8;
    let folder = tempfile::tempdir().unwrap();
    let (store, mut applier) = Store::open(&folder.path().join("store"), Options::default(), Box::new(())).unwrap();
    let mut index = 0;
    let mut took = [(Duration::ZERO, Duration::ZERO); 2];
    let mut outcomes = Vec::new();
    for round in 0..ROUNDS * 2 {
        let member = round % 2;
        let (all, here) = (process_cpu(), cpu());
        for n in 0..keys / ROUNDS {
            let commands = puts(n, n + 1);
            let started = cpu();
            for command in commands {
                index += 1;
                let entry = Applied { index, term: 1 };
                let origin = Origin {
                    member,
                    boot: 1,
                    sequence: index,
                };
                outcomes.clear();
                let fresh = applier.apply_once(entry, origin, true, vec![command], &mut outcomes);
                assert!(fresh.unwrap());
            }
            took[member as usize].0 += cpu() - started;
        }
        store.flush().unwrap();
        let here = cpu() - here;
        took[member as usize].1 += (process_cpu() - all).saturating_sub(here);
    }
    for (what, (here, others)) in [("of nobody's", took[0]), ("remembered", took[1])] {
        per(&format!("apply: entry of one put, {what}"), keys, here);
        per(&format!("the backend's thread for it, {what}"), keys, others);
    }
}

fn puts(from: u64, to: u64) -> Vec<Command> {
    let put = |n| {
        Command::Put(PutRequest {
            key: key(n).into(),
            value: Bytes::from(vec![n as u8; VALUE_LEN]),
            ..Default::default()
        })
    };
    (from..to).map(put).collect()
}

fn main() {
    let keys: u64 = std::env::var("KEYS")
        .ok()
        .and_then(|keys| keys.parse().ok())
        .unwrap_or(1_000_000);
    if std::env::args().any(|arg| arg == "origins") {
        return origins(keys);
    }
    index(keys);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (store, mut applier) = Store::open(&path, Options::default(), Box::new(())).unwrap();
    let mut index = 0;
    for (what, round) in [("apply: put of a new key", 0), ("apply: put of a known key", 1)] {
        let mut took = Duration::ZERO;
        for from in (0..keys).step_by(BATCH as usize) {
            let commands = puts(from, from + BATCH);
            let started = cpu();
            apply(&mut applier, &mut index, commands);
            took += cpu() - started;
        }
        per(what, keys, took);
        let started = Instant::now();
        store.flush().unwrap();
        println!("flush after it: {:?}", started.elapsed());
        let _ = round;
    }
    println!("memory: {:?}, resident {} MiB", store.memory(), resident_bytes() >> 20);

    for (what, among) in [
        ("range: one key, value in memory", 1000),
        ("range: one key, anywhere", keys),
    ] {
        let requests: Vec<_> = (0..100_000)
            .map(|n| RangeRequest {
                key: key(keys - 1 - n * 7919 % among).into(),
                ..Default::default()
            })
            .collect();
        let started = cpu();
        for request in &requests {
            let mut answer = store.range(request).unwrap();
            assert!(answer.next_chunk(usize::MAX).unwrap().is_some());
        }
        per(what, requests.len() as u64, cpu() - started);
    }
    let list = RangeRequest {
        key: Bytes::from_static(b"/registry/"),
        range_end: Bytes::from_static(b"/registry0"),
        limit: 500,
        ..Default::default()
    };
    let started = cpu();
    let count = store.range(&list).unwrap().count;
    println!("range: count of {count} keys in {:?}", cpu() - started);
    let first = store.range(&list).unwrap().into_kvs().unwrap();
    let bounded = RangeRequest {
        range_end: [&first[499].key[..], b"\0"].concat().into(),
        ..list.clone()
    };
    let started = cpu();
    for _ in 0..100 {
        let mut answer = store.range(&bounded).unwrap();
        while answer.next_chunk(1 << 20).unwrap().is_some() {}
    }
    per("range: 500 scattered keys, warm", 100, cpu() - started);
    let started = cpu();
    let mut answer = store.range(&RangeRequest { limit: 0, ..list }).unwrap();
    let sized = cpu() - started;
    let (mut bytes, mut held) = (0, 0);
    while let Some(piece) = answer.next_chunk(64 << 10).unwrap() {
        bytes += piece.len();
        held = held.max(answer.memory());
    }
    println!(
        "range: all, {bytes} bytes: sized in {sized:?}, sent in {:?}, held {held} bytes",
        cpu() - started
    );
    drop(answer);

    let revision = store.revision().0;
    let started = Instant::now();
    apply(
        &mut applier,
        &mut index,
        vec![Command::Compact(CompactionRequest {
            revision,
            physical: true,
        })],
    );
    println!("compact: in force in {:?}", started.elapsed());
    let (done, waits) = std::sync::mpsc::channel();
    store.on_compacted(revision, move |result| drop(done.send(result)));
    let (mut slowest, mut slowest_read) = (Duration::ZERO, Duration::ZERO);
    let mut n = 0;
    while waits.try_recv().is_err() {
        let commands = puts(n, n + 1);
        let one = Instant::now();
        apply(&mut applier, &mut index, commands);
        slowest = slowest.max(one.elapsed());
        let one = Instant::now();
        let request = RangeRequest {
            key: key(n).into(),
            ..Default::default()
        };
        drop(store.range(&request).unwrap());
        slowest_read = slowest_read.max(one.elapsed());
        n = (n + 1) % keys;
        std::thread::sleep(Duration::from_micros(200));
    }
    println!(
        "compact: {keys} versions gone and durable in {:?}; meanwhile the slowest put took {slowest:?}, the slowest get {slowest_read:?}",
        started.elapsed()
    );
    store.flush().unwrap();
    println!("memory: {:?}, resident {} MiB", store.memory(), resident_bytes() >> 20);
    drop((store, applier));
    let started = cpu();
    let (store, _applier) = Store::open(&path, Options::default(), Box::new(())).unwrap();
    println!("open: {} keys in {:?}", store.live_keys(), cpu() - started);
}

//! The backend as the store uses it, on a file: what a put costs it (CPU of the backend thread and of `push`), what a
//! read costs, how long a restart scan of a million rows takes, what is resident, what compaction costs.
//!
//! `cargo bench -p quorate-store --profile quick --bench backend`

use std::fs;
use std::time::Instant;

use bytes::Bytes;
use quorate_store::backend::{Applied, Backend, Change, Options, Row, RowId};
use rustix::time::{ClockId, clock_gettime};

const COUNT: i64 = 1_000_000;

fn main() {
    if std::env::args().any(|arg| arg == "sweep") {
        return sweep();
    }
    for value_len in [256, 1024] {
        run(value_len);
    }
}

/// µs of CPU that the whole process has used.
fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn id(main: i64) -> RowId {
    RowId { main, sub: 0 }
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
    };
    format!("RssAnon {} MiB, RssFile {} MiB", of("RssAnon:"), of("RssFile:"))
}

fn run(value_len: usize) {
    println!("## {COUNT} rows, keys of 64 B, values of {value_len} B");
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("backend");
    let (backend, _) = Backend::open(&path, Options::default()).expect("open");
    let (wall, all, own) = (
        Instant::now(),
        cpu(ClockId::ProcessCPUTime),
        cpu(ClockId::ThreadCPUTime),
    );
    let mut pushing = 0.0;
    for first in (0..COUNT).step_by(100) {
        let rows = (first..first + 100).map(|main| row(main, value_len)).collect();
        let index = (first / 100) as u64 + 1;
        let change = Change {
            applied: Applied { index, term: 1 },
            revision: first + 99,
            rows,
            ..Change::default()
        };
        let before = cpu(ClockId::ThreadCPUTime);
        backend.push(change).expect("push");
        pushing += cpu(ClockId::ThreadCPUTime) - before;
    }
    backend.flush().expect("flush");
    let thread = cpu(ClockId::ProcessCPUTime) - all - (cpu(ClockId::ThreadCPUTime) - own);
    let per = |us: f64| us / COUNT as f64;
    println!(
        "- put: backend thread {:.2} µs CPU, push {:.3} µs CPU, a change holding 100",
        per(thread),
        per(pushing)
    );
    println!("- wall {:.1} s, {}", wall.elapsed().as_secs_f64(), resident());
    let sizes = backend.sizes();
    println!(
        "- in use {} MiB, file {} MiB",
        sizes.in_use_bytes >> 20,
        sizes.total_bytes >> 20
    );
    drop(backend); // as a crash would

    let start = Instant::now();
    let (backend, recovered) = Backend::open(&path, Options::default()).expect("open");
    println!(
        "- open after abort {:.1} ms, walked: {}",
        start.elapsed().as_secs_f64() * 1e3,
        recovered.walked
    );
    let view = backend.view().expect("view");
    let (wall, before) = (Instant::now(), cpu(ClockId::ThreadCPUTime));
    let mut keys = 0;
    view.scan_meta(|row| keys += row.key.len()).expect("scan");
    let spent = cpu(ClockId::ThreadCPUTime) - before;
    println!(
        "- restart scan {:.2} s, {:.2} µs CPU a row, {} MiB of keys; {}",
        wall.elapsed().as_secs_f64(),
        per(spent),
        keys >> 20,
        resident()
    );
    let reads = |name: &str, ids: &dyn Fn(i64) -> Vec<RowId>| {
        let rounds = 200;
        let before = cpu(ClockId::ThreadCPUTime);
        let mut bytes = 0;
        for round in 0..rounds {
            view.values(&ids(round), |_, value| bytes += value.len()).expect("read");
        }
        let spent = cpu(ClockId::ThreadCPUTime) - before;
        assert_eq!(bytes, 500 * value_len * rounds as usize);
        println!("- {name}: {:.0} µs CPU for 500", spent / rounds as f64);
    };
    reads("neighbours", &|round| {
        (round * 4000..round * 4000 + 500).map(id).collect()
    });
    reads("scattered, ascending", &|round| {
        (0..500).map(|at| id(at * 2000 + round)).collect()
    });
    reads("scattered, at random", &|round| {
        (0..500).map(|at| id((at * 7919 + round * 104_729) % COUNT)).collect()
    });
    let before = cpu(ClockId::ThreadCPUTime);
    for at in 0..50_000 {
        view.value(id(at * 7919 % COUNT)).expect("read");
    }
    println!(
        "- one value at random: {:.2} µs CPU",
        (cpu(ClockId::ThreadCPUTime) - before) / 50_000.0
    );
    drop(view);

    let before = cpu(ClockId::ProcessCPUTime);
    let wall = Instant::now();
    for first in (0..COUNT).step_by(10_000) {
        let removed = (first..first + 10_000).filter(|main| main % 10 != 0).map(id).collect();
        let applied = Applied {
            index: 100_000 + first as u64,
            term: 1,
        };
        let change = Change {
            applied,
            revision: COUNT,
            compacted: first,
            removed,
            ..Change::default()
        };
        backend.push(change).expect("push");
    }
    backend.flush().expect("flush");
    let spent = cpu(ClockId::ProcessCPUTime) - before;
    let rows = COUNT as f64 * 0.9;
    println!(
        "- compaction of 90 %: {:.2} µs CPU a row, wall {:.1} s",
        spent / rows,
        wall.elapsed().as_secs_f64()
    );
    let sizes = backend.sizes();
    println!(
        "- then in use {} MiB, file {} MiB, {}",
        sizes.in_use_bytes >> 20,
        sizes.total_bytes >> 20,
        resident()
    );
}

/// How much of redb's cache should a commit be? What does not fit into half of it is written, then read again.
fn sweep() {
    println!("| cache MiB | commit MiB | CPU µs/put of 1 KB |");
    println!("|--:|--:|--:|");
    for cache in [16, 32, 64, 128] {
        for commit in [2, 4, 8, 16, 32] {
            let folder = tempfile::tempdir().expect("folder");
            let options = Options {
                cache_bytes: cache << 20,
                commit_bytes: commit << 20,
                ..Options::default()
            };
            let (backend, _) = Backend::open(&folder.path().join("backend"), options).expect("open");
            let (all, own) = (cpu(ClockId::ProcessCPUTime), cpu(ClockId::ThreadCPUTime));
            let count = 150_000;
            for first in (0..count).step_by(100) {
                let rows = (first..first + 100).map(|main| row(main, 1024)).collect();
                let applied = Applied {
                    index: first as u64 + 1,
                    term: 1,
                };
                let change = Change {
                    applied,
                    revision: first + 99,
                    rows,
                    ..Change::default()
                };
                backend.push(change).expect("push");
            }
            backend.flush().expect("flush");
            let spent = cpu(ClockId::ProcessCPUTime) - all - (cpu(ClockId::ThreadCPUTime) - own);
            println!("| {cache} | {commit} | {:.2} |", spent / count as f64);
        }
    }
}

fn row(main: i64, value_len: usize) -> Row {
    Row {
        id: id(main),
        key: Bytes::from(format!("{main:064}")),
        create: main,
        version: 1,
        lease: 0,
        tombstone: false,
        value: Bytes::from(vec![main as u8; value_len]),
    }
}

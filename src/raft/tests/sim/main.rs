//! Clusters in one process on bad disks, bad networks and bad clocks, again and again the same from the same seed.
//!
//! ```text
//!   seed ─► plan ─► world ─┬─ machines: log and store on twins of disks, a raft node, a watch hub; one process each
//!                          ├─ net: connections that are slow, cut and broken
//!                          ├─ clients, also of several keys at once, watchers, leases: what they were answered is recorded
//!                          ├─ operator: members come and go, leadership moves, compaction
//!                          └─ faults: overlapping
//!                   then all is well again: everybody goes on, comes to the same state, and the records are judged
//! ```
//!
//! Beside those, [`planted`]: bugs that must be found; [`handover`]: how long a change of leader takes where all is well.
//!
//! `QUORATE_SIM_SEED=n … -- --nocapture seeds` replays one seed and tells what happens (`QUORATE_SIM_MARKS=1`: every
//! message, too), `QUORATE_SIM_SEEDS=a..b` or a number runs many.

#![allow(clippy::unwrap_used)]

mod clients;
mod dice;
mod faults;
mod handover;
mod leases;
mod machine;
mod net;
mod operator;
mod plan;
mod planted;
mod several;
mod tap;
mod trace;
mod watchers;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use world::{Report, run};

fn complain(report: &Report) -> String {
    format!(
        "seed {seed}: {failure}\nreplay: QUORATE_SIM_SEED={seed} cargo test -p quorate-raft --test sim -- --nocapture seeds\n{last}",
        seed = report.seed,
        failure = report.failure.as_deref().unwrap_or_default(),
        last = report.last.join("\n"),
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// `QUORATE_SIM_SEEDS`: how many, or `a..b`.
fn seeds() -> std::ops::Range<u64> {
    match std::env::var("QUORATE_SIM_SEEDS") {
        Ok(asked) => match asked.split_once("..") {
            Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
            None => 0..asked.parse().unwrap(),
        },
        Err(_) => 0..500,
    }
}

/// Runs seeds on all processors, and returns how they went, in order.
fn run_all(seeds: std::ops::Range<u64>) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let mut reports = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return reports;
            }
            reports.push(run(seed, false));
        }
    };
    let mut reports: Vec<Report> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    reports.sort_by_key(|report| report.seed);
    reports
}

fn summary(reports: &[Report]) -> String {
    let sum = |what: fn(&Report) -> u64| reports.iter().map(what).sum::<u64>();
    format!(
        "{} seeds: {} operations, {} of unknown fate, {} revisions, {} terms, {} snapshots, {} files \
         defragmented",
        reports.len(),
        sum(|report| report.done as u64),
        sum(|report| report.unknown as u64),
        sum(|report| report.revisions as u64),
        sum(|report| report.terms as u64),
        sum(|report| report.snapshots),
        sum(|report| report.defragmented),
    )
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        let report = run(seed, true);
        println!("{}", summary(std::slice::from_ref(&report)));
        assert!(report.failure.is_none(), "{}", complain(&report));
        return;
    }
    let begun = Instant::now();
    let reports = run_all(seeds());
    println!("{} in {:?}", summary(&reports), begun.elapsed());
    let failed: Vec<&Report> = reports.iter().filter(|report| report.failure.is_some()).collect();
    for report in failed.iter().skip(1) {
        println!(
            "seed {}: {}",
            report.seed,
            report.failure.as_deref().unwrap_or_default()
        );
    }
    if let Some(first) = failed.first() {
        panic!(
            "{} of {} seeds failed\n{}",
            failed.len(),
            reports.len(),
            complain(first)
        );
    }
}

#[test]
fn a_seed_gives_the_same_world_again() {
    for seed in 0..10 {
        let (first, again) = (run(seed, false), run(seed, false));
        assert_eq!(
            first.hash, again.hash,
            "seed {seed}: {:#?}\n{:#?}",
            first.last, again.last
        );
    }
}

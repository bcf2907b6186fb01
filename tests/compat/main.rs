//! The differential test: generated sequences of client operations, run against Debian's real etcd and against the
//! node under test, every field of every answer compared.
//!
//! - [`op`]: an operation and its literal form; [`generate`]: sequences from a seed;
//! - [`side`]: one server, its watch streams and what is due on them ([`watchers`]);
//! - [`reply`]: answers in comparable form; [`differences`]: where 3.4 is known to differ from 3.7;
//! - [`hashes`]: `HashKV` over a history of its own; [`membership`]: members come and go, as far as one server goes;
//! - [`pair`]: both servers in step; [`shrink`]: from a long failing sequence to a short one; [`scripted`]: edges that
//!   chance would not find;
//!   [`regressions`]: sequences that once disagreed.
//! - [`bootstrap`]: how members found and join, against real members of etcd.
//!
//! `QUORATE_SEED` and `QUORATE_COMPAT_SEQUENCES` ask for other or more sequences, `QUORATE_ORACLE` for another
//! reference, `QUORATE_UNDER_TEST` for another node under test.
#![allow(clippy::unwrap_used)]

mod bootstrap;
mod differences;
mod generate;
mod hashes;
mod membership;
mod op;
mod pair;
mod regressions;
mod reply;
mod scripted;
mod shrink;
mod side;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use op::Op;
use pair::Contest;
use quorate_kit::Binary;

const SEED: u64 = 0x1c1e_5eed;
const SEQUENCES: usize = 200;
const OPERATIONS: usize = 200;
/// Pairs of servers that work at the same time: waiting for one hides behind working on another.
const PAIRS: usize = 4;

fn contest() -> Contest {
    Contest {
        ours: Binary::under_test(env!("CARGO_BIN_EXE_quorate")),
        oracle: Binary::oracle(),
    }
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// One test, since the differences must all be met in it: kept sequences, scripted edges, then generated ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorate_answers_as_etcd_does() {
    let contest = contest();
    let (seed, sequences) = (
        from_env("QUORATE_SEED", SEED),
        from_env("QUORATE_COMPAT_SEQUENCES", SEQUENCES),
    );
    println!(
        "{} ({:?}) against {} ({:?}), seed {seed}, {sequences} sequences of {OPERATIONS}",
        contest.ours.path.display(),
        contest.ours.version,
        contest.oracle.path.display(),
        contest.oracle.version
    );
    let began = Instant::now();
    hashes::agree(&contest).await;
    kept_sequences_agree(&contest).await;
    scripted_edges_agree(&contest).await;
    println!("kept and scripted sequences agree after {:?}", began.elapsed());
    generated_sequences_agree(&contest, seed, sequences).await;
    println!(
        "{sequences} sequences agree after {:?}; differences met:\n{}",
        began.elapsed(),
        differences::tally()
    );
    if contest.oracle.is_34() && !contest.ours.is_34() {
        let unmet = differences::unmet();
        assert!(unmet.is_empty(), "rows of differences.rs that nothing met: {unmet:#?}");
    }
}

/// Apart from the others, as it leaves its servers behind as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_changed_and_refused_as_by_etcd() {
    membership::agree(&contest()).await;
}

async fn kept_sequences_agree(contest: &Contest) {
    let mut pair = contest.pair();
    for (name, kept) in regressions::KEPT {
        let ops: Vec<Op> = kept
            .iter()
            .map(|(kind, message)| Op::from_literal(kind, message))
            .collect();
        if let Err(mismatch) = pair.run(&ops).await {
            panic!("kept sequence `{name}` disagrees\n{}", mismatch.text);
        }
    }
}

async fn scripted_edges_agree(contest: &Contest) {
    let mut pair = contest.pair();
    for (index, (name, ops)) in scripted::edges().into_iter().enumerate() {
        let outcome = if index == 0 {
            pair.run_fresh(&ops).await
        } else {
            pair.run(&ops).await
        };
        if let Err(mismatch) = outcome {
            panic!("scripted sequence `{name}` disagrees\n{}", mismatch.text);
        }
    }
}

async fn generated_sequences_agree(contest: &Contest, seed: u64, sequences: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (0..PAIRS.min(sequences)).map(|_| {
        let (contest, next) = (contest.clone(), next.clone());
        tokio::spawn(async move {
            let mut pair = contest.pair();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= sequences {
                    return None;
                }
                let ops = generate::sequence(seed.wrapping_add(number as u64), OPERATIONS);
                if let Err(found) = pair.run(&ops).await {
                    next.store(sequences, Ordering::Relaxed); // the others finish what they are at
                    return Some((number, ops, found));
                }
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    let mut reports = Vec::new();
    for worker in workers {
        let Some((number, ops, found)) = worker.await.unwrap() else {
            continue;
        };
        let whence = format!(
            "sequence {number} of seed {seed} disagrees (QUORATE_SEED={})",
            seed.wrapping_add(number as u64)
        );
        reports.push(pair::report(contest, &whence, &ops, found).await);
    }
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
}

//! kill -9 at random points under load.

mod actors;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{from_env, metric, start_with};
use crate::turn::alone;
use actors::{Actor, Known, Shared, check_revisions};

const ROUNDS: usize = 30;
const WRITERS: usize = 12;
const RESTART_MAX: Duration = Duration::from_secs(1);
/// Most rounds are over before the backend commits for the first time: what they wrote is in the log alone. Every third
/// is longer, with larger values, so that the kill meets the commit, the purge of the log behind it and the next segment.
const LONG_EVERY: usize = 3;

/// D1: no acknowledged write is lost, no revision comes back lower, a transaction is whole or absent, a delete, a
/// compaction and the end of a lease stay, nothing appears that was never tried, and the node is back within a second.
#[test]
fn kill9_loses_nothing() {
    let seed: u64 = from_env("QUORATE_SEED", 0xc4a5);
    let rounds: usize = from_env("QUORATE_ROUNDS", ROUNDS);
    println!("seed {seed}, {rounds} rounds");
    let _turn = alone();
    let mut rng = StdRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter(); // clients belong to a runtime
    let mut own = start_with(|config| config.flag("--snapshot-count=20"));
    let mut cast: Vec<(Actor, Known)> = (0..WRITERS)
        .map(Actor::Writer)
        .chain([Actor::Deleter, Actor::Lessee, Actor::Compacter])
        .map(|actor| (actor, Known::default()))
        .collect();
    let shared = Arc::new(Shared::default());
    let (mut slowest, mut met_a_commit) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let long = round % LONG_EVERY == 0;
        let commits = || metric(&own.node, "etcd_disk_backend_commit_duration_seconds_count");
        let before = commits();
        shared.begin(long);
        let tasks: Vec<_> = cast
            .iter()
            .map(|(actor, known)| runtime.spawn(actor.act(own.node.rpc(), *known, shared.clone())))
            .collect();
        let life = if long { 1_200..2_500 } else { 5..150 };
        std::thread::sleep(Duration::from_millis(rng.random_range(life)));
        if long {
            met_a_commit += usize::from(commits() > before);
        }
        own.node.kill();
        shared.stop();
        for ((_, known), task) in cast.iter_mut().zip(tasks) {
            *known = runtime.block_on(task).unwrap();
        }
        let restarted = Instant::now();
        own.node.restart();
        slowest = slowest.max(restarted.elapsed());
        let rpc = own.node.rpc();
        runtime.block_on(check_revisions(&rpc, &shared, round));
        for (actor, known) in &mut cast {
            *known = runtime.block_on(actor.check(&rpc, *known, round));
        }
    }
    let total: u64 = cast.iter().map(|(_, known)| known.acknowledged).sum();
    println!("{total} requests, slowest restart {slowest:?}, {met_a_commit} rounds with a commit of the backend");
    assert!(total > 1_000, "only {total} requests: there was no load");
    for (actor, known) in &cast {
        assert!(known.acknowledged > 0, "{actor:?} did nothing");
    }
    assert!(
        met_a_commit >= rounds / LONG_EVERY,
        "the backend committed in {met_a_commit} rounds only"
    );
    let first = own.node.config.data_dir().join("member/wal/0000000000000001.wal");
    assert!(!first.exists(), "the log was never purged");
    assert!(slowest < RESTART_MAX, "a restart took {slowest:?}");
}

//! A node whose disks fail: slow, hanging, full, dead, and without power.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::{Disks, counting, delete, options, put, runtime, until, value};
use quorate_raft::{Node, Options, ProposeError, StartError};
use quorate_store::testing::{ALL_CASES, MemDisk, Replay, Rng, Survives};
use quorate_wal::disk::Tear;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than any test takes; a wait for nothing uses it up.
const LONG: Duration = Duration::from_secs(60);

/// B2: one member alone is no reason to answer before the log is safe.
#[test]
fn single_member_acks_only_after_sync() {
    let disks = Disks::default();
    let node = disks.start();
    runtime().block_on(async {
        node.propose(&put("k", "before", 0)).await.unwrap();
        let (applied, first) = (*node.applied().borrow(), Path::new("/wal/0000000000000001.wal"));
        let written = disks.log.contents(first).unwrap();
        disks.log.hold_syncs(true);
        let mut answer = node.proposer().propose(&put("k", "after", 0)).unwrap();
        until("the batch is written", || disks.log.contents(first).unwrap() != written);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut answer).await;
        assert!(early.is_err(), "answered before its sync: {early:?}");
        assert_eq!(*node.applied().borrow(), applied);
        assert_eq!(value(&node, "k").unwrap(), "before");
        disks.log.hold_syncs(false);
        assert_eq!(answer.await.unwrap().unwrap().revision.0, 3);
        assert_eq!(value(&node, "k").unwrap(), "after");
    });
    node.stop(LONG);
}

/// D6, B40: after a failed sync nothing is acknowledged any more, and the process is told to end.
#[test]
fn fsync_error_stops_the_node() {
    // The next sync is to be the log's own, and not that of a segment that is made ahead.
    let disks = Disks {
        log_options: Some(quorate_wal::Options {
            prepare_ahead: false,
            ..quorate_wal::Options::new("/wal")
        }),
        ..Disks::default()
    };
    let (options, ends) = counting();
    let node = disks.try_start(options).unwrap();
    let runtime = runtime();
    let revision = runtime.block_on(async {
        let mut revision = 0;
        for n in 0..10 {
            revision = node.propose(&put(format!("k{n}"), "v", 0)).await.unwrap().revision.0;
        }
        disks.log.fail_sync(1);
        let refused = node.propose(&put("lost", "v", 0)).await.unwrap_err();
        assert_eq!(refused, ProposeError::Unknown, "it may be on disk or not");
        revision
    });
    until("the end is told", || ends.load(Ordering::SeqCst) > 0);
    for _ in 0..3 {
        let refused = runtime.block_on(node.propose(&put("later", "v", 0))).unwrap_err();
        assert_eq!(refused, ProposeError::Stopped);
    }
    assert_eq!(value(&node, "lost"), None);
    node.stop(LONG);
    assert_eq!(ends.load(Ordering::SeqCst), 1, "told once");

    disks.log.power_loss(Tear::Lose);
    let node = disks.start();
    assert_eq!(node.store().revision().0, revision);
    assert!((0..10).all(|n| value(&node, format!("k{n}")).is_some()));
    runtime.block_on(node.propose(&put("later", "v", 0))).unwrap();
    node.stop(LONG);
}

/// What the log says can't be continued is an error with its reason, and not the end of the process on the way out.
#[test]
fn a_store_that_the_log_can_not_continue_is_refused_with_its_reason() {
    let disks = Disks::default();
    let node = disks.try_start(purging()).unwrap();
    runtime().block_on(async {
        for n in 0..20 {
            node.propose(&put(format!("k{n}"), "v", 0)).await.unwrap();
        }
    });
    purge(&node);
    node.stop(LONG);
    drop(node);
    let lost = Disks {
        store: MemDisk::default(),
        ..disks
    };
    match lost.try_start(options()) {
        Err(StartError::Raft(reason)) => assert!(reason.contains("Cannot re-apply logs"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started without what the log no longer has"),
    }
}

/// The same for a disk that dies during the start.
#[test]
fn a_sync_that_fails_during_the_start_is_its_reason() {
    let disks = Disks {
        log_options: Some(quorate_wal::Options {
            prepare_ahead: false,
            ..quorate_wal::Options::new("/wal")
        }),
        ..Disks::default()
    };
    disks.start().stop(LONG);
    let (wal, store, applier) = disks.open();
    disks.log.fail_sync(1);
    match Node::start(
        quorate_raft::node::Threads::start().unwrap(),
        counting().0,
        wal,
        store,
        applier,
    ) {
        Err(StartError::Raft(reason)) => assert!(reason.contains("sync log segment"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started without a sync"),
    }
}

/// There is no time limit to a start: timers for a local network and a disk that takes its time go together.
#[test]
fn a_slow_disk_only_makes_the_start_slow() {
    let disks = Disks::default();
    for _ in 0..2 {
        disks.log.slow_syncs(Duration::from_millis(60));
        let quick = Options {
            heartbeat: Duration::from_millis(1),
            election: Duration::from_millis(5),
            ..options()
        };
        let node = disks.try_start(quick).unwrap();
        runtime().block_on(node.propose(&put("k", "v", 0))).unwrap();
        disks.log.slow_syncs(Duration::ZERO);
        node.stop(LONG);
    }
}

/// E7: a disk that hangs does not hold up the end.
#[test]
fn a_stop_has_a_deadline() {
    let disks = Disks::default();
    let node = disks.start();
    runtime().block_on(async {
        node.propose(&put("k", "acknowledged", 0)).await.unwrap();
        disks.log.hold_syncs(true);
        let answer = node.proposer().propose(&put("k", "never synced", 0)).unwrap();
        let begun = Instant::now();
        let stopping = node.clone();
        tokio::task::spawn_blocking(move || stopping.stop(Duration::from_millis(400)))
            .await
            .unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(answer.await.unwrap().unwrap_err(), ProposeError::Stopped);
    });
    let after = disks.after_power_loss(Tear::Lose);
    disks.log.hold_syncs(false);
    let node = after.start();
    assert_eq!(value(&node, "k").unwrap(), "acknowledged");
    node.stop(LONG);
}

/// E7: what was accepted before the stop is answered, though nothing new is taken.
#[test]
fn a_stop_answers_what_was_accepted() {
    let disks = Disks::default();
    let node = disks.start();
    disks.log.slow_syncs(Duration::from_millis(5));
    let propose = |n| node.proposer().propose(&put(format!("k{n}"), "v", 0)).unwrap();
    let answers: Vec<_> = (0..1000).map(propose).collect();
    node.stop(LONG);
    for answer in answers {
        assert!(answer.blocking_recv().unwrap().is_ok());
    }
    assert_eq!(
        node.proposer().propose(&put("k", "v", 0)).unwrap_err(),
        ProposeError::Stopped
    );
}

/// Room for a log of three segments, and a store that leaves it all of its entries.
fn small() -> Disks {
    Disks {
        log_options: Some(quorate_wal::Options {
            segment_bytes: 8 << 20,
            ..quorate_wal::Options::new("/wal")
        }),
        quiet_store: true,
        ..Disks::default()
    }
}

/// Puts of 100 KB from a hundred clients until one is refused. How many were acknowledged.
async fn fill(node: &Arc<Node>) -> usize {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let client = |client: usize| {
        let (node, acknowledged) = (node.clone(), acknowledged.clone());
        tokio::spawn(async move {
            for n in 0..1000 {
                let put = put(format!("{client}/{n}"), vec![b'x'; 100 << 10], 0);
                match node.propose(&put).await {
                    Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                    Err(error) => return error,
                };
            }
            panic!("the disk is full and a thousand writes went on");
        })
    };
    for client in (0..100).map(client).collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap(), ProposeError::NoSpace);
    }
    acknowledged.load(Ordering::SeqCst)
}

async fn once_there_is_room(node: &Node) {
    let begun = Instant::now();
    while let Err(error) = node.propose(&put("after", vec![b'x'; 100 << 10], 0)).await {
        assert_eq!(error, ProposeError::NoSpace);
        assert!(begun.elapsed() < LONG, "never any room again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// D7, E5: many clients at the boundary of a full disk are refused one by one, and the node goes on; with room again,
/// so do they.
#[test]
fn disk_full_recovers_by_itself() {
    let disks = small();
    let node = disks.start();
    runtime().block_on(async {
        disks.log.set_capacity(Some(disks.log.used() + (24 << 20)));
        let acknowledged = fill(&node).await;
        assert!(acknowledged > 100, "{acknowledged}");
        assert_eq!(node.store().live_keys(), acknowledged);
        node.propose(&delete("0/0")).await.expect("what makes room has room");
        disks.log.set_capacity(None);
        once_there_is_room(&node).await;
        assert_eq!(node.store().live_keys(), acknowledged);
    });
    let revision = node.store().revision();
    node.stop(LONG);
    drop(node);
    let node = disks.start();
    assert_eq!(node.store().revision(), revision);
    node.stop(LONG);
}

/// D7: however few entries it has, a log without space is purged, and what that frees is used again.
#[test]
fn a_full_disk_purges_the_log() {
    let disks = small();
    let node = disks.start();
    runtime().block_on(async {
        disks.log.set_capacity(Some(disks.log.used() + (24 << 20)));
        fill(&node).await;
        let first = node.log_first();
        node.store().flush().unwrap();
        node.propose(&delete("0/0")).await.unwrap();
        node.store().flush().unwrap();
        until("the log is purged", || node.log_first() > first);
        once_there_is_room(&node).await;
    });
    node.stop(LONG);
}

fn purging() -> Options {
    Options {
        snapshot_count: 1,
        purge_interval: Duration::from_millis(1),
        ..options()
    }
}

/// Two commits of the store, and the purge that they allow.
fn purge(node: &Node) {
    let first = node.log_first();
    node.store().flush().unwrap();
    runtime().block_on(node.propose(&put("purge", "v", 0))).unwrap();
    node.store().flush().unwrap();
    until("the log is purged", || node.log_first() > first);
}

const PUTS: usize = 60;

fn scripted(n: usize) -> (String, String) {
    (format!("k{}", n % 7), format!("{n}{:100}", ""))
}

/// Writes, with commits of the store between them, until the disk is gone or the script at its end. How many were
/// acknowledged.
fn play(node: &Node) -> usize {
    let acknowledge = |n: usize| {
        let (key, value) = scripted(n);
        let outcome = runtime_of_script().block_on(node.propose(&put(key, value, 0)));
        if n % 5 == 4 {
            node.store().flush().unwrap();
        }
        outcome.is_ok()
    };
    (0..PUTS).take_while(|n| acknowledge(*n)).count()
}

fn runtime_of_script() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// B1, B21, D2: power goes at every call that changes the log's files, on both disks, with store commits and purges
/// going on. What is found is a beginning of what was written, whole, and not less than what was acknowledged.
#[test]
fn crash_never_skips_an_entry() {
    let log_options = quorate_wal::Options {
        segment_bytes: 4096,
        cache_bytes: 300,
        ..quorate_wal::Options::new("/wal")
    };
    let mut rng = Rng(0x5eed);
    let (mut calls, mut purged, mut cut_short) = (0, 0, 0);
    loop {
        let disks = Disks {
            quiet_store: true,
            ..Disks::default()
        };
        let image = disks.store.start_trace();
        // What the store had told its disk when the log's disk went.
        let told = Arc::new(Mutex::new(None));
        let on_fatal = {
            let (told, store) = (told.clone(), disks.store.clone());
            move |_: &quorate_wal::Error| {
                told.lock().unwrap().get_or_insert(store.trace_len());
            }
        };
        let cut = Disks {
            log_options: Some(quorate_wal::Options {
                on_fatal: Arc::new(on_fatal),
                ..log_options.clone()
            }),
            ..disks.clone()
        };
        let ignored = Options {
            on_fatal: Arc::new(|_| {}),
            ..purging()
        };
        let node = cut.try_start(ignored).unwrap();
        disks.log.cut_power_after(calls);
        let acknowledged = play(&node);
        purged += usize::from(node.log_first() > 1);
        let whole = !disks.log.is_off();
        let told = told.lock().unwrap().unwrap_or(disks.store.trace_len());
        let log = disks.log.fork();
        drop(node);

        let (survives, tear) = case(calls, &mut rng);
        log.power_loss(tear);
        let mut replay = Replay::new(image);
        disks.store.trace()[..told].iter().for_each(|op| replay.step(op));
        let after = Disks {
            log,
            store: MemDisk::with_image(replay.power_loss(survives, &mut rng)),
            log_options: Some(log_options.clone()),
            quiet_store: true,
        };
        let what = format!("power cut at call {calls}, {survives:?}, {tear:?}");
        let node = after.try_start(purging()).unwrap();
        check(&node, acknowledged, &what);
        node.stop(LONG);
        if whole {
            break;
        }
        cut_short += 1;
        calls += 1;
    }
    assert!(
        cut_short > 100 && purged > 10,
        "{cut_short} cuts, {purged} runs with a purge"
    );
}

fn case(calls: u64, rng: &mut Rng) -> (Survives, Tear) {
    let tears = [
        Tear::Lose,
        Tear::Keep,
        Tear::LoseFirst,
        Tear::LoseLast,
        Tear::Mix(rng.next()),
    ];
    let survives = ALL_CASES[rng.below(ALL_CASES.len() as u64) as usize];
    (survives, tears[calls as usize % tears.len()])
}

fn check(node: &Node, acknowledged: usize, what: &str) {
    let found = node.store().revision().0 as usize - 1;
    assert!(
        found >= acknowledged,
        "{what}: {acknowledged} acknowledged, {found} found"
    );
    assert!(found <= acknowledged + 1, "{what}: one at a time was written");
    for key in 0..7 {
        let expected = (0..found).rev().find(|n| n % 7 == key).map(|n| scripted(n).1);
        let found = value(node, format!("k{key}"));
        assert_eq!(
            found.as_deref(),
            expected.as_deref().map(str::as_bytes),
            "{what}: k{key}"
        );
    }
    let (key, value) = scripted(found);
    let next = runtime_of_script().block_on(node.propose(&put(key, value, 0))).unwrap();
    assert_eq!(next.revision.0 as usize, found + 2, "{what}: it goes on from there");
}

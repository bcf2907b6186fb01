//! A whole node of consensus in this process, on real files.

#![allow(clippy::unwrap_used)]

use quorate_api::proto::etcdserverpb::{PutRequest, RangeRequest};
use quorate_api::proto::quorate as wire;
use quorate_raft::{Node, Options};
use quorate_store::Store;
use quorate_store::command::{Command, Outcome, Reply};
use quorate_wal::{RealDisk, Wal};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ELECTION: Duration = Duration::from_millis(1000);

fn start(dir: &Path, snapshot_count: u64) -> Arc<Node> {
    let (store, applier) = Store::open(&dir.join("store.redb"), Default::default(), Box::new(())).unwrap();
    let (wal, _) = Wal::open(quorate_wal::Options::new(dir.join("wal")), Arc::new(RealDisk)).unwrap();
    let options = Options {
        member: 7,
        heartbeat: Duration::from_millis(100),
        election: ELECTION,
        snapshot_count,
        catchup_entries: 5,
        observer: Arc::new(()),
        on_fatal: Arc::new(|reason| panic!("{reason}")),
    };
    Node::start(options, wal, store, applier).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> Command {
    Command::Put(PutRequest {
        key: key.into().into(),
        value: value.into().into(),
        lease,
        ..Default::default()
    })
}

fn value(node: &Node, key: &str) -> Option<Vec<u8>> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    let kvs = node.store().range(&request).unwrap().into_kvs().unwrap();
    kvs.first().map(|kv| kv.value.to_vec())
}

#[test]
fn a_sole_voter_leads_at_once_and_answers_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let node = start(dir.path(), 10_000);
    assert!(
        begun.elapsed() < ELECTION,
        "no election timeout passes: {:?}",
        begun.elapsed()
    );
    assert_eq!((node.leader(), node.term()), (Some(7), 1));
    runtime().block_on(async {
        node.barrier().pass().await.unwrap();
        let answers = (0..100).map(|n| node.proposer().propose(&put("k", n.to_string(), 0)).unwrap());
        let mut last = 1;
        for answer in answers.collect::<Vec<_>>() {
            let Outcome { revision, result } = answer.await.unwrap().unwrap().outcome;
            assert!(matches!(result, Ok(Reply::Put(_))));
            assert_eq!(revision.0, last + 1);
            last = revision.0;
        }
    });
    assert_eq!(value(&node, "k").unwrap(), b"99");
    node.stop(Duration::from_secs(1));
}

/// B1, B2: what was acknowledged is there after a restart without a stop, and before the first read.
#[test]
fn a_restart_serves_everything_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut revision = 1;
    for round in 0..3 {
        let node = start(dir.path(), 10_000);
        assert_eq!(node.store().revision().0, revision, "round {round}");
        runtime().block_on(async {
            for n in 0..20 {
                let outcome = node
                    .propose(&put(format!("k{n}"), format!("{round}.{n}"), 0))
                    .await
                    .unwrap();
                revision = outcome.revision.0;
            }
        });
        assert_eq!(node.term(), round + 1, "each start is an election");
        node.stop(Duration::from_secs(1));
    }
    let node = start(dir.path(), 10_000);
    assert_eq!(value(&node, "k19").unwrap(), b"2.19");
    node.stop(Duration::from_secs(1));
}

#[test]
fn the_log_is_purged_behind_the_backend_and_a_restart_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), 10);
    let before = node.log_first();
    runtime().block_on(async {
        let limit = Instant::now() + Duration::from_secs(20);
        let mut n = 0;
        while node.log_first() == before {
            assert!(Instant::now() < limit, "never purged");
            node.propose(&put(format!("k{n}"), "v", 0)).await.unwrap();
            n += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let revision = node.store().revision();
    node.stop(Duration::from_secs(1));
    drop(node); // and with it the last handle of the store
    let node = start(dir.path(), 10);
    assert_eq!(node.store().revision(), revision);
    runtime().block_on(async { node.propose(&put("after", "v", 0)).await.unwrap() });
    node.stop(Duration::from_secs(1));
}

#[test]
fn leases_end_by_the_leaders_clock_and_take_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), 10_000);
    runtime().block_on(async {
        for id in [1, 2] {
            node.propose(&Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs: 1 }))
                .await
                .unwrap();
        }
        node.propose(&put("short", "v", 1)).await.unwrap();
        node.propose(&put("kept", "v", 2)).await.unwrap();
        let begun = Instant::now();
        while value(&node, "short").is_some() {
            node.lessor().renew(2);
            assert!(begun.elapsed() < Duration::from_secs(10), "never expired");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            begun.elapsed() >= Duration::from_millis(900),
            "expired early: {:?}",
            begun.elapsed()
        );
        assert!(value(&node, "kept").is_some());
    });
    node.stop(Duration::from_secs(1));
}

/// A crash between the install of a snapshot and the reset of the log: the log ends before the store, which is no damage
/// but what the next start tidies up. Entries after it go on from there.
#[test]
fn a_log_that_ends_before_an_installed_snapshot_is_reset() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ahead, behind] = [0, 1].map(|at: usize| {
        let node = start(dirs[at].path(), 10_000);
        runtime().block_on(async {
            for n in 0..10 + 40 * (1 - at) {
                node.propose(&put(format!("k{n}"), at.to_string(), 0)).await.unwrap();
            }
        });
        node.stop(Duration::from_secs(1));
        (node.store().revision(), *node.applied().borrow())
    });
    let open = |at: usize| Store::open(&dirs[at].path().join("store.redb"), Default::default(), Box::new(())).unwrap();
    {
        let ((from, _), (to, mut applier)) = (open(0), open(1));
        let mut incoming = to.receive().unwrap();
        from.image()
            .unwrap()
            .read()
            .for_each(|piece| incoming.push(&piece.unwrap()).unwrap());
        applier.install(incoming.finish().unwrap()).unwrap();
        assert_eq!(to.installed(), Some(to.durable().last));
        assert!(to.durable().last.index > behind.1);
    }
    for _ in 0..2 {
        let node = start(dirs[1].path(), 10_000);
        assert_eq!(node.log_first(), ahead.1 + 1);
        assert!(node.store().revision() >= ahead.0);
        assert_eq!(value(&node, "k49").unwrap(), b"0");
        runtime().block_on(async { node.propose(&put("after", "v", 0)).await.unwrap() });
        node.stop(Duration::from_secs(1));
    }
}

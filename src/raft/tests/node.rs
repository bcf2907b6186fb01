//! A whole node of consensus in this process, on real files.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::{Disks, ELECTION, MEMBER, put, runtime, start, value};
use quorate_api::proto::quorate as wire;
use quorate_raft::lessor::TimeToLive;
use quorate_store::Store;
use quorate_store::command::{Command, Outcome, Reply};
use quorate_wal::disk::Tear;
use std::time::{Duration, Instant};

#[test]
fn a_sole_voter_leads_at_once_and_answers_in_order() {
    // In memory, so that the time is that of the election.
    let disks = Disks::default();
    let begun = Instant::now();
    let node = disks.start();
    let took = begun.elapsed();
    assert!(took < ELECTION, "no election timeout passes: {took:?}");
    assert_eq!((node.leader(), node.term()), (Some(MEMBER), 1));
    runtime().block_on(async {
        node.barrier().pass().await.unwrap();
        let answers = (0..100).map(|n| node.proposer().propose(&put("k", n.to_string(), 0)).unwrap());
        let mut last = 1;
        for answer in answers.collect::<Vec<_>>() {
            let Outcome { revision, result } = answer.await.unwrap().unwrap();
            assert!(matches!(result, Ok(Reply::Put(_))));
            assert_eq!(revision.0, last + 1);
            last = revision.0;
        }
    });
    assert_eq!(value(&node, "k").unwrap(), "99");
    node.stop(Duration::from_secs(1));
}

/// B1, B2: what was acknowledged is there after a restart without a stop, and before the first read.
#[test]
fn a_restart_serves_everything_that_was_acknowledged() {
    let mut disks = Disks::default();
    let mut revision = 1;
    for round in 0..3 {
        let node = disks.start();
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
        // The node goes on; the next one starts from what is on disk.
        disks = disks.after_power_loss(Tear::Lose);
    }
    let node = disks.start();
    assert_eq!(value(&node, "k19").unwrap(), "2.19");
    node.stop(Duration::from_secs(1));
}

/// A lease that was there before the start is there as soon as it is over, with its time and its leader.
#[test]
fn a_start_ends_when_leases_have_their_deadlines() {
    let disks = Disks::default();
    for term in 1..20 {
        let node = disks.start();
        assert_eq!((node.leader(), node.term()), (Some(MEMBER), term));
        runtime().block_on(async {
            let left = node.time_to_live(5).await;
            if term == 1 {
                assert_eq!(left, Ok(None));
                let grant = wire::LeaseGrant { id: 5, ttl_secs: 1000 };
                node.propose(&Command::LeaseGrant(grant)).await.unwrap();
            } else {
                assert!(
                    matches!(left, Ok(Some(TimeToLive { granted_secs: 1000, .. }))),
                    "{left:?}"
                );
            }
            assert_eq!(node.renew(5).await, Ok(Some(1000)));
        });
        node.stop(Duration::from_secs(1));
    }
}

/// B29: the lessor hears of a revocation after everybody else, and may say nothing that contradicts what they saw.
#[test]
fn keepalive_of_revoked_lease_says_gone() {
    let disks = Disks::default();
    let node = disks.start();
    runtime().block_on(async {
        // As between the apply of a revocation and its news to the lessor.
        node.lessor().granted(5, 1000);
        assert_eq!(node.renew(5).await, Ok(None));
        assert_eq!(node.time_to_live(5).await, Ok(None));
        // As between the apply of a grant and its news.
        let grant = wire::LeaseGrant { id: 6, ttl_secs: 1000 };
        node.propose(&Command::LeaseGrant(grant)).await.unwrap();
        node.lessor().revoked(6);
        let asked = async { tokio::join!(node.renew(6), node.time_to_live(6)) };
        let told = async {
            tokio::task::yield_now().await;
            node.lessor().granted(6, 1000);
            node.propose(&put("k", "v", 0)).await.unwrap();
        };
        let ((renewed, left), ()) = tokio::join!(asked, told);
        assert_eq!(renewed, Ok(Some(1000)));
        assert_eq!(left.map(|left| left.map(|left| left.granted_secs)), Ok(Some(1000)));
    });
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
    let disks = Disks::default();
    let node = disks.start();
    runtime().block_on(async {
        let begun = Instant::now();
        for (id, ttl_secs) in [(1, 1), (2, 5)] {
            node.propose(&Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs }))
                .await
                .unwrap();
        }
        node.propose(&put("short", "v", 1)).await.unwrap();
        node.propose(&put("kept", "v", 2)).await.unwrap();
        while value(&node, "short").is_some() {
            node.renew(2).await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(60), "never expired");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1), "expired early: {took:?}");
        assert!(value(&node, "kept").is_some());
        assert_eq!(node.renew(1).await, Ok(None));
    });
    assert_eq!(node.store().leases().len(), 1);
    node.stop(Duration::from_secs(1));
}

/// A round of revocations that is refused comes again at the next scan, and leaves the thread to others meanwhile.
#[test]
fn refused_revocations_wait_for_the_next_scan() {
    let disks = Disks::default();
    let node = disks.start();
    let begun = Instant::now();
    runtime().block_on(async {
        let grant = wire::LeaseGrant { id: 1, ttl_secs: 1 };
        node.propose(&Command::LeaseGrant(grant)).await.unwrap();
        // Nothing gets through, so that the queue fills up.
        disks.log.hold_syncs(true);
        let mut refused = 0;
        while refused < 5 {
            match node.proposer().propose(&put("k", vec![0; 1 << 20], 0)) {
                Ok(_) => refused = 0,
                Err(_) => refused += 1,
            }
            if refused > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let failed = node.proposer().failed();
        while node.proposer().failed() < failed + 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "never tried");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let scans = 2 + begun.elapsed().as_millis() as u64 / 500;
        assert!(node.proposer().failed() <= failed + scans, "tried without a pause");
        disks.log.hold_syncs(false);
        while !node.store().leases().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never expired");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
            .for_each(|piece| incoming.push(piece.unwrap()).unwrap());
        applier.install(incoming.finish().unwrap()).unwrap();
        assert_eq!(to.installed(), Some(to.durable().last));
        assert!(to.durable().last.index > behind.1);
    }
    for _ in 0..2 {
        let node = start(dirs[1].path(), 10_000);
        assert_eq!(node.log_first(), ahead.1 + 1);
        assert!(node.store().revision() >= ahead.0);
        assert_eq!(value(&node, "k49").unwrap(), "0");
        runtime().block_on(async { node.propose(&put("after", "v", 0)).await.unwrap() });
        node.stop(Duration::from_secs(1));
    }
}

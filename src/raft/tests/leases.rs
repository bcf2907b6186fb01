//! Leases on three members in this process: whoever is asked, whoever leads.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::wires::{ELECTION, Trio};
use kit::{Disks, options, put, runtime, until, value};
use quorate_api::LeaseId;
use quorate_api::proto::quorate as wire;
use quorate_raft::lessor::CHECKPOINT_PERIOD;
use quorate_raft::{Node, Options};
use quorate_store::command::{Command, Reply};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

async fn grant(node: &Node, id: i64, ttl_secs: i64) {
    let grant = Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs });
    let outcome = timeout(SOON, node.propose(&grant)).await.unwrap().unwrap();
    assert_eq!(outcome.result, Ok(Reply::LeaseGrant { id, ttl_secs }));
}

async fn revoke(node: &Node, id: i64) {
    let expired_in_term = 0;
    let revoke = Command::LeaseRevoke(wire::LeaseRevoke { id, expired_in_term });
    let outcome = timeout(SOON, node.propose(&revoke)).await.unwrap().unwrap();
    assert_eq!(outcome.result, Ok(Reply::LeaseRevoke));
}

async fn renew(node: &Node, id: i64) -> Option<i64> {
    timeout(SOON, node.renew(id)).await.unwrap().unwrap()
}

/// Whole seconds left.
async fn left(node: &Node, id: i64) -> i64 {
    let left = timeout(SOON, node.time_to_live(id)).await.unwrap().unwrap();
    left.unwrap().remaining_secs
}

fn noted(node: &Node, id: i64) -> Option<i64> {
    node.store().lease(LeaseId(id)).and_then(|lease| lease.remaining_secs)
}

/// B29: a grant that one member has answered holds on every other at once, and "gone" is true where it is said.
#[test]
fn every_member_knows_a_lease_as_soon_as_one_has_answered() {
    let trio = Trio::start(CHECKPOINT_PERIOD);
    trio.wait_leader();
    let member = |nth: i64| &trio.nodes[&(1 + nth as u64 % 3)];
    trio.runtime.block_on(async {
        for id in 1..150 {
            grant(member(id), id, 1000).await;
            for asked in 0..3 {
                assert_eq!(renew(member(id + asked), id).await, Some(1000), "lease {id}");
                assert_eq!(left(member(id + asked), id).await, 999, "lease {id}");
            }
            let revoker = member(id / 3);
            revoke(revoker, id).await;
            assert_eq!(renew(revoker, id).await, None, "lease {id}, by the one that knew");
            for asked in 0..3 {
                let asked = member(id + asked);
                // Others may be behind in apply, as with any answer that was not asked to be linearizable.
                while renew(asked, id).await.is_some() {}
                assert!(
                    asked.store().lease(LeaseId(id)).is_none(),
                    "lease {id} is said to be gone, and is there"
                );
                assert_eq!(renew(asked, id).await, None, "lease {id}");
            }
        }
    });
    trio.stop();
}

/// B24: a leader that was cut off answers nothing about leases, and what it finds ended does no harm to what others renew
/// meanwhile. Once it is back it answers as any follower does.
#[test]
fn deposed_leader_revokes_nothing() {
    let trio = Trio::start(CHECKPOINT_PERIOD);
    let old = trio.wait_leader();
    let alone = &trio.nodes[&old];
    trio.runtime.block_on(async {
        grant(alone, 5, 2).await;
        timeout(SOON, alone.propose(&put("k", "v", 5))).await.unwrap().unwrap();
        assert_eq!(renew(alone, 5).await, Some(2));
    });
    trio.cut_off(old);
    let new = trio.wait_leader();
    assert_ne!(new, old);
    let other = trio
        .nodes
        .keys()
        .copied()
        .find(|member| *member != old && *member != new);
    trio.runtime.block_on(async {
        let begun = Instant::now();
        let mut healed = false;
        while begun.elapsed() < Duration::from_secs(4) {
            assert_eq!(renew(&trio.nodes[&other.unwrap()], 5).await, Some(2));
            // Its own clock ends the lease after two seconds.
            if !healed && begun.elapsed() > Duration::from_millis(2500) {
                trio.heal();
                healed = true;
            }
            let asked = timeout(Duration::from_millis(50), alone.renew(5)).await;
            assert!(healed || asked.is_err(), "cut off, it said {asked:?}");
            let asked = timeout(Duration::from_millis(50), alone.time_to_live(5)).await;
            assert!(healed || asked.is_err(), "cut off, it said {asked:?}");
        }
        assert_eq!(renew(alone, 5).await, Some(2));
    });
    for node in trio.nodes.values() {
        until("the value", || value(node, "k").is_some());
        assert!(node.store().lease(LeaseId(5)).is_some());
    }
    trio.stop();
}

/// B30: the next leader goes on from what is left, and from the full TTL after a renewal.
#[test]
fn leader_change_does_not_renew_leases() {
    let trio = Trio::start(Duration::from_millis(500));
    let first = trio.wait_leader();
    trio.runtime.block_on(grant(&trio.nodes[&first], 5, 600));
    let followers = trio.followers();
    until("a remainder", || {
        followers
            .iter()
            .all(|member| noted(&trio.nodes[member], 5).is_some_and(|left| left < 599))
    });
    let before = noted(&trio.nodes[&followers[0]], 5).unwrap();
    trio.cut_off(first);
    let second = trio.wait_leader();
    trio.runtime.block_on(async {
        let found = left(&trio.nodes[&second], 5).await;
        // The election timeout is added to what was noted.
        assert!(found <= before, "{found} of {before}");
        assert!(found >= before - 5, "{found} of {before}");
    });
    trio.heal();
    trio.wait_leader();
    let asked = trio.nodes.keys().copied().find(|member| *member != trio.wait_leader());
    let asked = &trio.nodes[&asked.unwrap()];
    trio.runtime.block_on(async {
        // For two periods: some meet a remainder, some don't.
        let begun = Instant::now();
        let mut met = false;
        while begun.elapsed() < Duration::from_millis(1500) || !met {
            let was = noted(asked, 5);
            assert_eq!(renew(asked, 5).await, Some(600));
            met |= was.is_some();
            tokio::time::sleep(Duration::from_millis(if met { 5 } else { 700 })).await;
        }
        assert!(met, "no renewal found a remainder");
    });
    let third = trio.wait_leader();
    until("the reset", || noted(&trio.nodes[&third], 5).is_none());
    trio.cut_off(third);
    let fourth = trio.wait_leader();
    trio.runtime.block_on(async {
        let found = left(&trio.nodes[&fourth], 5).await;
        assert!(found >= 598, "a renewed lease has {found} s left");
    });
    trio.stop();
}

/// D19, B31: what was to end at about the same time is spread by a new leader, and puts go on meanwhile.
#[test]
fn many_leases_end_in_slices_after_an_election() {
    const LEASES: i64 = 3000;
    let trio = Trio::start(CHECKPOINT_PERIOD);
    let old = trio.wait_leader();
    trio.runtime.block_on(async {
        let propose = |id| {
            let grant = Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs: 2 });
            trio.nodes[&old].proposer().propose(&grant).unwrap()
        };
        for answer in (1..=LEASES).map(propose).collect::<Vec<_>>() {
            answer.await.unwrap().unwrap();
        }
    });
    trio.cut_off(old);
    let new = trio.wait_leader();
    let (node, elected) = (&trio.nodes[&new], Instant::now());
    assert_eq!(node.store().leases().len() as i64, LEASES);
    let mut slowest = Duration::ZERO;
    while !node.store().leases().is_empty() {
        assert!(elected.elapsed() < SOON, "{} leases left", node.store().leases().len());
        let begun = Instant::now();
        trio.runtime
            .block_on(async { timeout(SOON, node.propose(&put("k", "v", 0))).await.unwrap().unwrap() });
        slowest = slowest.max(begun.elapsed());
    }
    // Four slices of 750, a second apart, of which the first ends after the TTL.
    let took = elected.elapsed();
    assert!(took > Duration::from_secs(2 + 2), "not spread: {took:?}");
    assert!(slowest < Duration::from_secs(1), "a put took {slowest:?}");
    trio.stop();
}

/// A restart is a leader change, too: the lease has what was left, and a renewal gives it all of its TTL again, for good.
#[test]
fn a_remainder_survives_a_restart() {
    let mut disks = Disks::default();
    let start = |disks: &Disks| {
        let options = Options {
            lease_checkpoint_period: Duration::from_millis(200),
            ..options()
        };
        disks.try_start(options).unwrap()
    };
    let node = start(&disks);
    runtime().block_on(grant(&node, 5, 600));
    until("a remainder", || noted(&node, 5).is_some_and(|left| left < 600));
    let before = noted(&node, 5).unwrap();
    disks = disks.after_power_loss(quorate_wal::disk::Tear::Lose);
    let node = start(&disks);
    runtime().block_on(async {
        let found = left(&node, 5).await;
        assert!(found <= before, "{found} of {before}");
        assert_eq!(renew(&node, 5).await, Some(600));
    });
    // Noted again at once, perhaps; with all of it.
    assert!(noted(&node, 5).is_none_or(|left| left >= 599));
    node.stop(Duration::from_secs(1));
    assert!(ELECTION < Duration::from_secs(1));
}

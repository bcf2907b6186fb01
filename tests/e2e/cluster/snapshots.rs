//! Members that have missed more than the log holds, and take in a snapshot.

use std::time::Duration;

use quorate_kit::background::wait_for;
use quorate_kit::cluster::Options;
use quorate_kit::{Cluster, Load, wait};

use super::{members, millis, move_to, others};
use crate::turn;

const LIMIT: Duration = Duration::from_secs(20);

/// The log is purged after a few entries.
fn short_log() -> Options {
    members(3)
        .with_links()
        .with_peer_tls()
        .flag("--snapshot-count=50")
        .flag("--snapshot-catchup-entries=10")
}

/// Writes `count` values of `bytes`, one after the other, so that each is an entry.
fn fill(cluster: &Cluster, through: usize, count: usize, bytes: usize) {
    let client = cluster.client_of(&[through]);
    wait_for(async move {
        for number in 0..count {
            let value = vec![b'a' + (number % 26) as u8; bytes];
            client.put(format!("fill/{number}"), value).await.unwrap();
        }
    });
}

/// Entries go, and the log's beginning with them: the store commits once a second, and the log is purged behind the last
/// commit but one, once a second as well.
fn miss_more_than_the_log_holds(cluster: &Cluster, through: usize) {
    fill(cluster, through, 200, 20_000);
    for _ in 0..12 {
        fill(cluster, through, 20, 100);
        std::thread::sleep(millis(300));
    }
}

/// Transfers that have begun since the member was started.
fn taken_in(cluster: &Cluster, member: usize) -> usize {
    let log = cluster[member].log();
    log.matches("applying snapshot: receiving from the leader").count()
}

/// B6, D14: a member that was away until the log was purged gets a snapshot while others write, watchers there
/// see everything once and in order, and all members hold the same.
#[test]
fn watch_never_goes_back_after_snapshot() {
    let _turn = turn::shared();
    let mut cluster = short_log().start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let load = Load::on(&cluster).clients(6).watchers(6).start();
    load.wait_acknowledged(50);
    // cut off: its watchers stay connected to it and wait
    cluster.links().isolate(rest[0]);
    miss_more_than_the_log_holds(&cluster, leader);
    cluster.links().heal_all();
    wait::until("a snapshot to be taken in", LIMIT, || {
        (taken_in(&cluster, rest[0]) > 0).then_some(())
    });
    load.wait_acknowledged(200);
    // and again at once, this time without its process, from another: who has sent one keeps its log for a while
    cluster[rest[0]].kill();
    let leader = cluster.wait_leader();
    let next = others(&cluster, leader)
        .into_iter()
        .find(|member| *member != rest[0])
        .unwrap();
    move_to(&mut cluster, leader, next);
    miss_more_than_the_log_holds(&cluster, next);
    cluster[rest[0]].restart();
    load.wait_acknowledged(200);
    load.finish().check();
    assert!(taken_in(&cluster, rest[0]) > 0);
    cluster.wait_equal();
}

/// B10, B33, D14: transfers end in the middle, by a cut link, by the death of the receiver and by that of the sender;
/// nothing half taken in is ever served, and the next attempt goes through. A receiver that is killed as soon as it has
/// taken one in starts with it.
#[test]
fn half_snapshot_is_never_applied() {
    let _turn = turn::shared();
    let mut cluster = short_log().start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let (behind, third) = (rest[0], rest[1]);
    cluster[behind].kill();
    fill(&cluster, leader, 300, 40_000);
    miss_more_than_the_log_holds(&cluster, leader);
    let slow = |cluster: &Cluster| {
        for from in [leader, third] {
            cluster.links().throttle(from, behind, 2_000_000);
        }
    };
    let begun = |cluster: &Cluster, times: usize| {
        wait::until("a transfer to begin", LIMIT, || {
            (taken_in(cluster, behind) >= times).then_some(())
        });
        std::thread::sleep(millis(300));
    };
    slow(&cluster);
    cluster[behind].relaunch();
    begun(&cluster, 1);
    for cuts in 1..=2 {
        cluster.links().cut(leader, behind);
        std::thread::sleep(millis(300));
        cluster.links().reset(leader, behind);
        cluster.links().heal_all();
        slow(&cluster);
        begun(&cluster, 1 + cuts);
    }
    // the receiver dies
    cluster[behind].kill();
    cluster[behind].relaunch();
    begun(&cluster, 1);
    // the sender dies, and the next leader sends
    cluster[leader].kill();
    cluster.links().heal_all();
    cluster[behind].wait_ready();
    cluster[leader].restart();
    cluster.wait_leader();
    cluster.wait_equal();

    // and again, killed right after the install
    let sender = cluster.wait_leader();
    cluster[behind].kill();
    let next = others(&cluster, sender)
        .into_iter()
        .find(|member| *member != behind)
        .unwrap();
    cluster.wait_leader();
    if sender != behind {
        move_to(&mut cluster, sender, next);
    }
    miss_more_than_the_log_holds(&cluster, next);
    cluster[behind].relaunch();
    wait::until("a snapshot to be installed", LIMIT, || {
        (installed(&cluster, behind) > 0).then_some(())
    });
    cluster[behind].kill();
    cluster[behind].restart();
    cluster.wait_leader();
    cluster.wait_equal();
}

/// A sender that is cut off does not say so. The next leader's snapshot takes the place of its half, and does not wait until
/// nobody believes in that any more.
#[test]
fn the_next_leaders_snapshot_replaces_one_that_does_not_come_on() {
    let _turn = turn::shared();
    let mut cluster = short_log().start();
    let leader = cluster.wait_leader();
    let behind = others(&cluster, leader)[0];
    cluster[behind].kill();
    fill(&cluster, leader, 300, 40_000);
    miss_more_than_the_log_holds(&cluster, leader);
    cluster.links().throttle(leader, behind, 1_000_000);
    cluster[behind].relaunch();
    let begins = |times: usize| {
        wait::until("a transfer to begin", Duration::from_secs(10), || {
            (taken_in(&cluster, behind) >= times).then_some(())
        });
    };
    begins(1);
    cluster.links().isolate(leader);
    begins(2);
    cluster[behind].wait_ready();
    cluster.links().heal_all();
    cluster.wait_leader();
    cluster.wait_equal();
}

fn installed(cluster: &Cluster, member: usize) -> usize {
    cluster[member].log().matches("applied snapshot").count()
}

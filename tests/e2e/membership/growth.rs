//! From one to five and back to one under a load, and snapshots for members that come late. Whatever happens, no
//! acknowledged write is lost and the history is linearizable.

use std::time::Duration;

use quorate_kit::load::Running;
use quorate_kit::wait::until;
use quorate_kit::{Cluster, Load};

use super::{SOON, assert_quiet, ctl, hex, of};
use crate::turn;

/// Answers that are waited for between two steps.
const BETWEEN: u64 = 60;

fn load(cluster: &Cluster) -> Load {
    Load::on(cluster)
        .clients(6)
        .keys(4)
        .watchers(1)
        .thinking(Duration::from_millis(8))
        .retrying()
}

/// `etcdctl member add`; the process is started only when that has returned.
fn add(cluster: &mut Cluster) -> usize {
    let member = cluster.add();
    cluster[member].restart();
    member
}

/// `etcdctl member remove`, asked of another member; the process ends by itself.
fn remove(cluster: &mut Cluster, member: usize) {
    let id = hex(cluster.member_id(member));
    let other = cluster.members().into_iter().find(|other| *other != member).unwrap();
    until("the cluster to let a member go", SOON, || {
        let said = ctl(cluster, other).call(&["member", "remove", &id]);
        let unhealthy = said.err.contains("etcdserver: unhealthy cluster");
        assert!(said.ok || unhealthy, "{}", said.err);
        said.ok.then_some(())
    });
    cluster.forget(member);
    assert_eq!(cluster[member].wait_end(SOON).code(), Some(0));
}

fn step(cluster: &mut Cluster, load: &mut Running, crash: bool) {
    load.follow(cluster);
    load.wait_acknowledged(BETWEEN);
    if !crash {
        return;
    }
    let leader = cluster.wait_leader();
    cluster[leader].kill();
    cluster[leader].restart();
    cluster.wait_leader();
    load.wait_acknowledged(BETWEEN);
}

/// The founder goes first: nothing of what it began with is left in the end.
fn grow_and_shrink(mut cluster: Cluster, crash: bool) {
    let mut load = load(&cluster).start();
    for _ in 0..4 {
        add(&mut cluster);
        step(&mut cluster, &mut load, crash);
    }
    assert_eq!(cluster.members().len(), 5);
    for _ in 0..4 {
        let first = cluster.members()[0];
        remove(&mut cluster, first);
        step(&mut cluster, &mut load, crash);
    }
    let left = cluster.members();
    assert_eq!(left.len(), 1);
    let record = load.finish();
    record.check();
    println!(
        "answered {}, failed {}, unknown {}, longest pause {:?}",
        record.answered(),
        record.failed(),
        record.unknown(),
        record.longest_pause()
    );
    for member in 0..cluster.len() {
        assert_quiet(&cluster[member]);
    }
}

/// D13. With etcd's strict checks: each next member waits until the last has been connected for five seconds.
#[test]
fn a_cluster_grows_from_one_to_five_and_shrinks_to_one_under_load() {
    let _turn = turn::shared();
    grow_and_shrink(of(1).start(), false);
}

/// D13. The leader is killed after every step. Without strict checks, or the test would wait for them.
#[test]
fn growth_survives_the_crash_of_the_leader_after_every_step() {
    let _turn = turn::shared();
    grow_and_shrink(of(1).flag("--strict-reconfig-check=false").start(), true);
}

/// A log of a few entries: whoever comes late needs a snapshot.
fn forgetful(size: usize) -> Cluster {
    of(size)
        .flag("--snapshot-count=20")
        .flag("--snapshot-catchup-entries=5")
        .flag("--strict-reconfig-check=false")
        .start()
}

fn count(cluster: &Cluster, member: usize, text: &str) -> usize {
    cluster[member].log().matches(text).count()
}

/// Fills the log until its beginning is gone on all running members.
fn outrun(cluster: &mut Cluster, load: &Running) {
    load.wait_acknowledged(100);
    cluster.wait_leader();
    std::thread::sleep(Duration::from_millis(2500)); // the backend commits once a second, purging follows the last but one
    load.wait_acknowledged(50);
}

/// B10: installs are serial, however close together.
#[test]
fn snapshots_bring_new_and_lagging_members_up_under_load() {
    let _turn = turn::shared();
    let mut cluster = forgetful(3);
    // Clients of a member that is paused should not wait for long.
    let mut load = load(&cluster).timeout(Duration::from_millis(800)).start();
    outrun(&mut cluster, &load);
    // New ones, one of them a learner.
    let voter = cluster.add();
    cluster[voter].restart();
    let learner = cluster.add_learner();
    let id = hex(cluster.member_id(learner));
    cluster[learner].relaunch();
    until("the learner to be promoted", SOON, || {
        ctl(&cluster, 0).call(&["member", "promote", &id]).ok.then_some(())
    });
    cluster[learner].wait_ready();
    for member in [voter, learner] {
        assert!(
            count(&cluster, member, "applied snapshot") > 0,
            "{}",
            cluster[member].tail()
        );
    }
    load.follow(&cluster);
    // One that was away: the log is kept for it, or it gets a snapshot. Watchers go on where they were.
    let leader = cluster.wait_leader();
    let away = (leader + 1) % 3;
    for _ in 0..2 {
        cluster[away].pause();
        outrun(&mut cluster, &load);
        cluster[away].resume();
        load.wait_acknowledged(50);
    }
    cluster[away].kill();
    // What is behind the snapshot that it may have got is kept for it, ten seconds long.
    std::thread::sleep(Duration::from_secs(10));
    outrun(&mut cluster, &load);
    cluster[away].restart();
    until("the member that was away to get a snapshot", SOON, || {
        (count(&cluster, away, "applied snapshot") > 0).then_some(())
    });
    let record = load.finish();
    cluster.wait_equal();
    record.check();
    for member in 0..cluster.len() {
        assert_quiet(&cluster[member]);
    }
}

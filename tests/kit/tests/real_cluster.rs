//! Clusters of the kit, driven against a real etcd.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use quorate_kit::background::wait_for;
use quorate_kit::cluster::Options;
use quorate_kit::{Binary, Cluster, Load};

/// Three members that elect within a fraction of a second.
fn three() -> Options {
    Cluster::of(&Binary::oracle())
        .members(3)
        .heartbeat_ms(50)
        .election_ms(500)
}

/// A write through any of the members that run, and its revision.
fn put(cluster: &mut Cluster, key: &'static str, value: &'static str) -> i64 {
    let running = cluster.running();
    put_through(cluster, &running, key, value)
}

fn put_through(cluster: &Cluster, members: &[usize], key: &'static str, value: &'static str) -> i64 {
    let client = cluster.client_of(members);
    let answer = wait_for(async move { client.put(key, value).await.unwrap() });
    answer.header.unwrap().revision
}

fn get_through(cluster: &Cluster, member: usize, key: &'static str) -> String {
    let client = cluster.client_of(&[member]);
    let answer = wait_for(async move { client.get(key).await.unwrap() });
    String::from_utf8(answer.kvs[0].value.to_vec()).unwrap()
}

#[test]
fn another_member_leads_when_the_leader_is_killed_or_paused() {
    let mut cluster = three().start();
    let first = cluster.wait_leader();
    cluster[first].kill();
    let second = cluster.wait_leader();
    assert_ne!(first, second);
    let written = put(&mut cluster, "a", "without the first");
    cluster[first].restart();
    cluster[second].pause();
    let third = cluster.wait_leader();
    assert_ne!(second, third);
    cluster[second].resume();
    assert_eq!(cluster.wait_equal(), written);

    let follower = (0..3).find(|member| Some(*member) != cluster.leader()).unwrap();
    cluster[follower].terminate();
    cluster[follower].wipe();
    assert!(!cluster[follower].config.data_dir().exists());
}

#[test]
fn links_cut_one_way_and_delay_under_mutual_tls() {
    let mut cluster = three().with_links().with_client_tls().with_peer_tls().start();
    let leader = cluster.wait_leader();
    let written = put(&mut cluster, "a", "1");
    assert_eq!(cluster.wait_equal(), written);
    let followers: Vec<usize> = (0..3).filter(|member| *member != leader).collect();

    // every write waits for a follower's answer
    cluster.links().delay_all(Duration::from_millis(60), Duration::ZERO);
    let began = Instant::now();
    put_through(&cluster, &[leader], "a", "2");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(120), "there and back took {took:?}");
    cluster.links().heal_all();

    // the leader hears the others, but they do not hear it
    cluster.links().mute(leader);
    let next = cluster.wait_leader_without(&[leader]);
    assert!(followers.contains(&next));
    put_through(&cluster, &followers, "a", "3");
    let carried = cluster.links().carried_bytes(leader, next);
    put_through(&cluster, &followers, "a", "4");
    assert_eq!(cluster.links().carried_bytes(leader, next), carried);

    cluster.links().heal_all();
    cluster.wait_leader();
    cluster.wait_equal();
    assert_eq!(get_through(&cluster, leader, "a"), "4");
}

#[test]
fn one_member_becomes_three_and_one_of_them_leaves() {
    let mut cluster = Cluster::of(&Binary::oracle()).with_links().start();
    put(&mut cluster, "a", "1");
    let second = cluster.grow();
    let third = cluster.grow();
    cluster.wait_equal();
    assert_eq!(get_through(&cluster, third, "a"), "1");
    cluster.wait_leader();
    cluster.remove(second);
    let status = cluster[second].wait_end(quorate_kit::cluster::LIMIT);
    assert!(status.success(), "a removed member ends by itself: {status}");
    assert_eq!(cluster.members(), [0, third]);
    put(&mut cluster, "a", "2");
    cluster.wait_equal();
}

#[test]
fn a_load_over_the_death_of_the_leader_is_linearizable() {
    let mut cluster = three().with_client_tls().start();
    let load = Load::on(&cluster).clients(12).watchers(3).start();
    load.wait_acknowledged(500);
    let leader = cluster.wait_leader();
    cluster[leader].kill();
    cluster.wait_leader();
    load.wait_acknowledged(500);
    cluster[leader].restart();
    load.wait_acknowledged(500);
    let record = load.finish();
    record.check();
    assert!(
        record.unknown() + record.failed() > 0,
        "the leader was missed by nobody"
    );
    assert!(
        record.longest_pause() > Duration::from_millis(50),
        "{:?}",
        record.longest_pause()
    );
    assert!(record.watchers.iter().all(|watcher| watcher.events().count() > 100));
    cluster.wait_equal();
}

/// A client that retries goes on at the other members. Reads never fail, and of writes only those that were under way.
#[test]
fn a_retrying_load_hardly_notices_that_a_follower_dies() {
    let mut cluster = three().start();
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let load = Load::on(&cluster).clients(6).retrying().start();
    load.wait_acknowledged(300);
    cluster[follower].kill();
    load.wait_acknowledged(300);
    cluster[follower].restart();
    load.wait_acknowledged(300);
    let record = load.finish();
    record.check();
    assert!(
        record.errors.len() <= 6,
        "one for each client at most: {:#?}",
        record.errors
    );
    assert_eq!(
        record.failed(),
        0,
        "what did nothing is tried again: {:#?}",
        record.errors
    );
}

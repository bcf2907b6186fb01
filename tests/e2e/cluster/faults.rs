//! Kills, pauses and cut links under a load whose answers are held against what one correct store can have given.
//!
//! A round does one thing to the cluster, lets the load run on for a while, undoes it, and waits until all members agree
//! again. `QUORATE_ROUNDS` sets how many there are, `QUORATE_SEED` replays what was printed.

use quorate_kit::wait::until;
use quorate_kit::{Cluster, Load};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{members, millis, move_to, others};
use crate::mounts::Freezable;
use crate::support::from_env;
use crate::turn;

/// The history of so many rounds is judged together.
const ROUNDS_JUDGED: usize = 10;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    KillLeader,
    KillFollower,
    KillAll,
    PauseLeader,
    PauseFollower,
    /// Neither heard nor hearing.
    IsolateLeader,
    IsolateFollower,
    /// It hears, and nobody hears it.
    MuteLeader,
    /// It is heard, and hears nobody.
    DeafenLeader,
    DeafenFollower,
    /// The leader and one follower have nothing of each other, everybody else has both.
    Partial,
    /// Everybody has its two neighbours only.
    Ring,
    /// No majority anywhere.
    Shatter,
    Slow,
    Reset,
    StopLeader,
    /// Nobody can dial it; what it has dialled itself goes on.
    ShutLeader,
    ShutFollower,
}

const TROUBLES: [Trouble; 18] = [
    Trouble::KillLeader,
    Trouble::PauseLeader,
    Trouble::IsolateLeader,
    Trouble::Partial,
    Trouble::MuteLeader,
    Trouble::StopLeader,
    Trouble::DeafenLeader,
    Trouble::KillFollower,
    Trouble::Ring,
    Trouble::PauseFollower,
    Trouble::KillAll,
    Trouble::IsolateFollower,
    Trouble::Slow,
    Trouble::Shatter,
    Trouble::DeafenFollower,
    Trouble::Reset,
    Trouble::ShutLeader,
    Trouble::ShutFollower,
];

fn round(cluster: &mut Cluster, trouble: Trouble, random: &mut StdRng) {
    let leader = cluster.wait_leader();
    let follower = *others(cluster, leader).choose(random).unwrap();
    let all = cluster.members();
    match trouble {
        Trouble::KillLeader => cluster[leader].kill(),
        Trouble::KillFollower => cluster[follower].kill(),
        Trouble::KillAll => cluster.kill_all(),
        Trouble::PauseLeader => cluster[leader].pause(),
        Trouble::PauseFollower => cluster[follower].pause(),
        Trouble::IsolateLeader => cluster.links().isolate(leader),
        Trouble::IsolateFollower => cluster.links().isolate(follower),
        Trouble::MuteLeader => cluster.links().mute(leader),
        Trouble::DeafenLeader => cluster.links().deafen(leader),
        Trouble::DeafenFollower => cluster.links().deafen(follower),
        Trouble::Partial => cluster.links().cut_between(leader, follower),
        Trouble::Ring => {
            let size = all.len();
            for (place, one) in all.iter().enumerate() {
                for (there, other) in all.iter().enumerate() {
                    let apart = place.abs_diff(there);
                    if apart > 1 && apart < size - 1 {
                        cluster.links().cut(*one, *other);
                    }
                }
            }
            // of three everybody is everybody's neighbour: there, one pair has nothing of each other
            if size == 3 {
                cluster.links().cut_between(all[0], all[1]);
            }
        }
        Trouble::Shatter => all.iter().for_each(|member| cluster.links().isolate(*member)),
        Trouble::ShutLeader => cluster.links().shut(leader),
        Trouble::ShutFollower => cluster.links().shut(follower),
        Trouble::Slow => cluster.links().delay_all(millis(20), millis(40)),
        Trouble::Reset => others(cluster, leader)
            .iter()
            .for_each(|other| cluster.links().reset(leader, *other)),
        Trouble::StopLeader => {
            let (_, took) = cluster[leader].terminate();
            assert!(took < millis(1500), "a leader took {took:?} to end");
        }
    }
    let longest = if std::env::var_os("QUORATE_ROUNDS").is_some() {
        4000
    } else {
        1200
    };
    std::thread::sleep(millis(random.random_range(200..longest)));
    for member in all {
        if cluster[member].is_paused() {
            cluster[member].resume();
        }
    }
    cluster.links().heal_all();
    cluster.start_all();
}

fn run(size: usize, rounds: usize, first: usize) {
    let seed = from_env("QUORATE_SEED", rand::random::<u64>());
    println!("QUORATE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = members(size).with_links().with_client_tls().with_peer_tls().start();
    let mut done = 0;
    while done < rounds {
        let load = Load::on(&cluster)
            .clients(2 * size)
            .keys(2 * size)
            .watchers(size)
            .thinking(millis(8))
            .seed(seed.wrapping_add(done as u64))
            .start();
        load.wait_acknowledged(50);
        for _ in 0..ROUNDS_JUDGED.min(rounds - done) {
            let trouble = TROUBLES[(first + done) % TROUBLES.len()];
            println!("round {done}: {trouble:?}");
            round(&mut cluster, trouble, &mut random);
            cluster.wait_leader();
            load.wait_acknowledged(50);
            done += 1;
        }
        let record = load.finish();
        record.check();
        let (answered, failed, unknown) = (record.answered(), record.failed(), record.unknown());
        println!("{done} rounds: {answered} answered, {failed} failed, {unknown} unknown");
        cluster.wait_equal();
    }
}

/// D1, D9, D11, B17, B25: whatever happens to the links and to the processes of three members under mutual TLS,
/// what clients are told is linearizable and watchers miss nothing.
#[test]
fn three_members_are_linearizable_under_faults() {
    let _turn = turn::shared();
    run(3, from_env("QUORATE_ROUNDS", 8), 0);
}

/// The same with five.
#[test]
fn five_members_are_linearizable_under_faults() {
    let _turn = turn::shared();
    run(5, from_env("QUORATE_ROUNDS", 5), 8);
}

/// D10: a network that is slow, breaks connections and flips bits, without TLS, which would notice. Nothing that was
/// flipped is believed: members stay the same, and clients see one correct store.
#[test]
fn hostile_network() {
    let _turn = turn::shared();
    let mut cluster = members(3).with_links().start();
    let load = Load::on(&cluster)
        .clients(6)
        .keys(6)
        .watchers(3)
        .thinking(millis(4))
        .start();
    load.wait_acknowledged(50);
    cluster.links().delay_all(millis(0), millis(10));
    cluster.links().flip_all(20);
    let noticed = |cluster: &Cluster| {
        let logs = cluster.members().into_iter().map(|member| cluster[member].log());
        logs.map(|log| log.matches("its checksum is wrong").count())
            .sum::<usize>()
    };
    until("flipped bits to be noticed", millis(30_000), || {
        let (one, other) = (rand::random_range(0..3), rand::random_range(0..3));
        if one != other {
            cluster.links().reset(one, other);
        }
        (noticed(&cluster) >= 20).then_some(())
    });
    cluster.links().heal_all();
    cluster.wait_leader();
    load.wait_acknowledged(50);
    let record = load.finish();
    cluster.wait_equal();
    record.check();
}

/// B39: a leader and a follower that can't talk to each other keep nobody from working: the leader stays, and the term.
#[test]
fn partial_partition_keeps_one_leader() {
    let _turn = turn::shared();
    let mut cluster = members(3).with_links().with_peer_tls().start();
    let leader = cluster.wait_leader();
    let term = cluster.status(leader).unwrap().raft_term;
    let cut_off = others(&cluster, leader)[0];
    cluster.links().cut_between(leader, cut_off);
    let load = Load::through(&cluster, &[leader, others(&cluster, leader)[1]])
        .clients(4)
        .start();
    std::thread::sleep(millis(4000)); // eight election timeouts
    load.wait_acknowledged(100);
    let status = cluster.status(leader).unwrap();
    assert_eq!((status.leader, status.raft_term), (cluster.member_id(leader), term));
    cluster.links().heal_all();
    assert_eq!(cluster.wait_leader(), leader);
    assert_eq!(
        cluster.status(cut_off).unwrap().raft_term,
        term,
        "it brought no new term"
    );
    load.finish().check();
    cluster.wait_equal();
}

/// B17, D11: a leader that slept while another was elected answers no read from before.
#[test]
fn paused_member_never_serves_stale_read() {
    let _turn = turn::shared();
    let mut cluster = members(3).start();
    for turn in 0..4u64 {
        let leader = cluster.wait_leader();
        let rest = others(&cluster, leader);
        let key = format!("paused/{turn}");
        let asleep = cluster.client_of(&[leader]).without_retries();
        let awake = cluster.client_of(&rest);
        let put = |client: quorate_kit::Client, key: String, value: &'static str| {
            quorate_kit::background::wait_for(async move { client.put(key, value).await })
        };
        put(asleep.clone(), key.clone(), "old").unwrap();
        // the leader sleeps with reads on their way to it
        let reads: Vec<_> = (0..50)
            .map(|number: u64| {
                let (client, key) = (asleep.clone(), key.clone());
                quorate_kit::background::handle().spawn(async move {
                    tokio::time::sleep(millis(number * 40)).await;
                    let called = std::time::Instant::now();
                    (called, client.get(key).await)
                })
            })
            .collect();
        cluster[leader].pause();
        cluster.wait_leader();
        put(awake, key, "new").unwrap();
        let written = std::time::Instant::now();
        cluster[leader].resume();
        for read in reads {
            let (called, answer) = quorate_kit::background::wait_for(async move { read.await.unwrap() });
            if let Ok(answer) = answer
                && called > written
            {
                assert_eq!(&answer.kvs[0].value[..], b"new");
            }
        }
    }
    cluster.wait_equal();
}

/// A leader that nobody can dial is heard by everybody, and holds up all clients of the others: it makes room for one
/// that can be reached. A follower like that holds up nobody.
#[test]
fn leader_that_others_cannot_reach_makes_room() {
    let _turn = turn::shared();
    let mut cluster = members(3).with_links().start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let load = Load::through(&cluster, &rest).clients(6).watchers(2).start();
    load.wait_acknowledged(100);
    let shut = std::time::Instant::now();
    cluster.links().shut(leader);
    let next = cluster.wait_leader_without(&[leader]);
    load.wait_acknowledged(300);
    println!("another led and served {:?} after the port was shut", shut.elapsed());
    let why = "most voters can't reach this member, which leads; giving leadership away";
    assert!(cluster[leader].log().contains(why));
    cluster.links().heal_all();
    cluster.wait_equal();
    let term = cluster.status(next).unwrap().raft_term;
    cluster.links().shut(leader);
    load.wait_acknowledged(300);
    // more than it takes to miss a link and to change the leader
    std::thread::sleep(millis(2500));
    load.wait_acknowledged(300);
    let now = cluster.status(next).unwrap();
    assert_eq!((now.leader, now.raft_term), (cluster.member_id(next), term));
    cluster.links().heal_all();
    cluster.wait_equal();
    load.finish().check();
}

/// B38, D8: a leader whose disk hangs gives leadership away, and takes it for granted that it is not the leader any more;
/// a follower's holds up nobody. When the disk is back, so is its member.
#[test]
fn stuck_disk_leader_steps_down() {
    let _turn = turn::shared();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let disk = Freezable::mount(&dir.path().join("image"), &disk, 400);
    let data = dir.path().join("disk/data");
    let mut cluster = members(3).flag_of(1, &format!("--data-dir={}", data.display())).start();
    let leader = cluster.wait_leader();
    if leader != 1 {
        move_to(&mut cluster, leader, 1);
    }
    let term = cluster.status(1).unwrap().raft_term;
    let load = Load::through(&cluster, &[0, 2]).clients(6).watchers(2).start();
    load.wait_acknowledged(100);
    disk.freeze();
    let frozen = std::time::Instant::now();
    let next = cluster.wait_leader_without(&[1]);
    let acknowledged = load.acknowledged();
    quorate_kit::wait::until("writes to go on", quorate_kit::cluster::LIMIT, || {
        (load.acknowledged() > acknowledged + 50).then_some(())
    });
    println!("another led {:?} after the disk hung", frozen.elapsed());
    assert!(frozen.elapsed() < millis(3000), "{:?}", frozen.elapsed());
    assert_ne!(next, 1);
    let status = cluster.status(next).unwrap();
    assert!(status.raft_term > term);
    // it does not come back while its disk hangs
    std::thread::sleep(millis(1500));
    load.wait_acknowledged(100);
    assert_eq!(cluster.status(next).unwrap().raft_term, status.raft_term);
    disk.thaw();
    cluster.wait_leader();
    // the same for a follower
    disk.freeze();
    load.wait_acknowledged(300);
    disk.thaw();
    load.finish().check();
    cluster.wait_leader();
    cluster.wait_equal();
    drop(cluster);
    drop(disk);
}

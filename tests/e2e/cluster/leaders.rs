//! Leadership that moves, ends and is lost, and what requests under way hear of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prost::Message;
use quorate_api::proto::etcdserverpb::{PutRequest, PutResponse, RangeResponse};
use quorate_kit::background::{handle, wait_for};
use quorate_kit::{Cluster, Load, wait};
use rustix::process::Signal;
use tonic::{Code, Status};

use super::{ask, members, millis, move_leader, others};
use crate::support::{self, PUT, RANGE, binary, from_env, percentile, prefix};
use crate::turn;

/// SIGTERM, on a leader: 500 ms later another leads, exactly one term further on; the process is gone within 1.5 s; and
/// so on until there is no quorum to spare.
#[test]
fn a_leader_that_is_told_to_stop_hands_over() {
    let _turn = turn::alone();
    for size in [3, 5] {
        let mut cluster = Cluster::of(&binary()).members(size).start();
        while cluster.running().len() > size / 2 + 1 {
            let leader = cluster.wait_leader();
            let status = cluster.status(leader).unwrap();
            let asked = Instant::now();
            cluster[leader].signal(Signal::TERM);
            std::thread::sleep(millis(500).saturating_sub(asked.elapsed()));
            let left: Vec<usize> = cluster
                .running()
                .into_iter()
                .filter(|member| *member != leader)
                .collect();
            for member in left {
                let now = cluster.status(member).unwrap();
                assert_ne!(now.leader, status.leader);
                assert_ne!(now.leader, 0);
                assert_eq!(now.raft_term, status.raft_term + 1);
            }
            cluster[leader].wait_end(millis(1000));
        }
    }
}

/// Every member is restarted, one after the other, under a load that retries as etcd's client does. Each restart costs
/// one change of leader at most, and no request.
#[test]
fn rolling_restart_loses_nothing() {
    let _turn = turn::alone();
    let mut cluster = Cluster::of(&binary()).members(3).start();
    let leader = cluster.wait_leader();
    let first = cluster.status(leader).unwrap().raft_term;
    let load = Load::on(&cluster).clients(12).watchers(3).retrying().start();
    let mut restarts = 0;
    // the leader twice, so that leadership moves more than once
    for member in [leader, others(&cluster, leader)[0], others(&cluster, leader)[1], leader] {
        load.wait_acknowledged(200);
        let (_, took) = cluster[member].terminate();
        assert!(took < millis(1500), "{took:?}");
        load.wait_acknowledged(200);
        cluster[member].restart();
        cluster.wait_leader();
        restarts += 1;
        let now = cluster.status(member).unwrap().raft_term;
        assert!(
            now <= first + restarts,
            "term {now} after {restarts} restarts, {first} before"
        );
    }
    let record = load.finish();
    record.check();
    println!("longest pause {:?}", record.longest_pause());
    assert!(record.errors.is_empty(), "{:#?}", record.errors);
    cluster.wait_equal();
}

/// Time from the death of a leader to the next write.
#[test]
fn writes_go_on_soon_after_the_leader_is_killed() {
    let _turn = turn::alone();
    let kills = from_env("QUORATE_KILLS", 11);
    let (heartbeat, election) = (
        from_env("QUORATE_HEARTBEAT_MS", 50),
        from_env("QUORATE_ELECTION_MS", 500),
    );
    let mut cluster = Cluster::of(&binary())
        .members(3)
        .heartbeat_ms(heartbeat)
        .election_ms(election)
        .start();
    let mut took = Vec::new();
    for number in 0..kills {
        let leader = cluster.wait_leader();
        cluster.wait_equal();
        let rest = others(&cluster, leader);
        let client = cluster
            .client_of(&rest[number % 2..=number % 2])
            .within(Duration::from_secs(10));
        wait_for({
            let client = client.clone();
            async move { client.put("before", "1").await.unwrap() }
        });
        cluster[leader].kill();
        let killed = Instant::now();
        wait_for(async move { while client.put("after", "1").await.is_err() {} });
        took.push(killed.elapsed());
        cluster[leader].restart();
    }
    let median = percentile(&mut took.clone(), 50);
    println!("election timeout {election} ms: median {median:?}, all {took:?}");
    assert!(
        median <= millis(u64::from(election) * 3 / 2),
        "median {median:?}: {took:?}"
    );
}

/// Without a quorum nothing is acknowledged and nothing hangs: requests end with etcd's texts, and all is well again
/// when the others are back.
#[test]
fn without_a_quorum_requests_end_with_etcds_texts() {
    let _turn = turn::shared();
    let mut cluster = members(3).start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let rpc = cluster[leader].rpc();
    let follower = cluster[rest[0]].rpc();
    let put = |rpc: &quorate_kit::Rpc, key: &str| -> Result<PutResponse, Status> {
        let request = PutRequest {
            key: key.as_bytes().to_vec().into(),
            value: "v".into(),
            ..PutRequest::default()
        };
        ask(rpc, PUT, &request)
    };
    put(&rpc, "a").unwrap();
    cluster[leader].kill();
    cluster[rest[1]].kill();
    let began = Instant::now();
    let serializable = quorate_api::proto::etcdserverpb::RangeRequest {
        serializable: true,
        ..prefix("a")
    };
    let got: RangeResponse = ask(&follower, RANGE, &serializable).unwrap();
    assert_eq!(got.kvs.len(), 1);
    let read = handle().spawn({
        let rpc = cluster[rest[0]].rpc();
        async move { rpc.unary::<RangeResponse>(RANGE, &prefix("a")).await }
    });
    let refused = put(&follower, "b").unwrap_err();
    let texts = [
        (Code::DeadlineExceeded, "context deadline exceeded"),
        (Code::Unavailable, "etcdserver: request timed out"),
        (
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
        ),
        (
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to connection lost",
        ),
    ];
    assert!(texts.contains(&(refused.code(), refused.message())), "{refused:?}");
    let refused = wait_for(async move { read.await.unwrap().unwrap_err() });
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: request timed out")
    );
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let status = cluster.status(rest[0]).unwrap();
    assert_eq!(status.leader, 0);
    assert!(
        status.errors.contains(&"etcdserver: no leader".to_owned()),
        "{:?}",
        status.errors
    );

    // whoever would rather have an error than old news gets one
    let mut asked = tonic::Request::new(bytes::Bytes::from(serializable.encode_to_vec()));
    asked.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let refused = wait_for({
        let follower = follower.clone();
        async move { follower.unary_request(RANGE, asked).await.unwrap_err() }
    });
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    let health = quorate_kit::http::get(cluster[rest[0]].address(), "/health").unwrap();
    assert!(health.text().contains("RAFT NO LEADER"), "{}", health.text());

    cluster[leader].relaunch();
    let back = cluster[leader].rpc();
    wait::until("writes to go on", Duration::from_secs(10), || put(&back, "c").ok());
    assert!(put(&follower, "d").is_ok());
    cluster[rest[1]].restart();
    cluster.wait_leader();
    cluster.wait_equal();
}

/// MoveLeader is answered once another leads; whoever does not lead and whatever is no voter gets etcd's texts.
#[test]
fn move_leader_says_what_etcd_says() {
    let _turn = turn::shared();
    let mut cluster = members(3).start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let ids: Vec<u64> = (0..3).map(|member| cluster.member_id(member)).collect();
    let term = cluster.status(leader).unwrap().raft_term;
    let refused = move_leader(&cluster, rest[0], ids[rest[1]]).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "etcdserver: not leader")
    );
    let refused = move_leader(&cluster, leader, 7).unwrap_err();
    let bad = (Code::FailedPrecondition, "etcdserver: bad leader transferee");
    assert_eq!((refused.code(), refused.message()), bad);
    move_leader(&cluster, leader, ids[leader]).unwrap();
    assert_eq!(cluster.status(leader).unwrap().raft_term, term, "it leads already");
    move_leader(&cluster, leader, ids[rest[0]]).unwrap();
    let status = cluster.status(leader).unwrap();
    assert_eq!((status.leader, status.raft_term), (ids[rest[0]], term + 1));
    // a target that is not there: etcd says so, and goes on
    cluster[rest[1]].kill();
    let refused = move_leader(&cluster, rest[0], ids[rest[1]]).unwrap_err();
    let late = "etcdserver: request timed out, leader transfer took too long";
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, late));
    let rpc = cluster[rest[0]].rpc();
    wait_for(async move { support::put(&rpc, "still", "here").await.unwrap() });
    cluster[rest[1]].restart();
    cluster.wait_leader();
    cluster.wait_equal();
}

/// B28: a write that was under way while leadership moved is executed once or not at all. Every key is put once; after
/// fifty changes of leader none has a second version, and none that was acknowledged is missing.
#[test]
fn no_write_is_executed_twice() {
    let _turn = turn::shared();
    let changes = from_env("QUORATE_CHANGES", 50);
    let mut cluster = members(3).with_links().start();
    cluster.wait_leader();
    let writers: Vec<_> = (0..24)
        .map(|writer: usize| {
            let rpc = cluster[writer % 3].rpc();
            handle().spawn(async move {
                let mut acknowledged = BTreeMap::new();
                let mut failed = Vec::new();
                for number in 0.. {
                    let key = format!("once/{writer}/{number}");
                    if number > 0 && support::get(&rpc, "stop").await.is_ok_and(|got| !got.kvs.is_empty()) {
                        break;
                    }
                    match support::put(&rpc, key.clone(), "v").await {
                        Ok(answer) => drop(acknowledged.insert(key, answer.header.unwrap().revision)),
                        Err(status) => failed.push(format!("{key}: {status:?}")),
                    }
                }
                (acknowledged, failed)
            })
        })
        .collect();
    for change in 0..changes {
        let leader = cluster.wait_leader();
        let rest = others(&cluster, leader);
        let target = cluster.member_id(rest[change % 2]);
        if change % 5 == 4 {
            // links break with forwards and entries on them
            rest.iter().for_each(|other| cluster.links().reset(leader, *other));
            cluster.links().reset(rest[0], rest[1]);
        }
        if change % 10 == 7 {
            // what the old leader has appended meanwhile is dropped by the next, and sent to it
            cluster.links().isolate(leader);
            cluster.wait_leader_without(&[leader]);
            std::thread::sleep(millis(100));
            cluster.links().heal_all();
            continue;
        }
        let moved = move_leader(&cluster, leader, target);
        if change % 5 != 4 {
            moved.unwrap();
        }
        std::thread::sleep(millis(20));
    }
    let client = cluster.client();
    wait_for(async move { client.put("stop", "now").await.unwrap() });
    let mut acknowledged = BTreeMap::new();
    let mut failed = Vec::new();
    for writer in writers {
        let (done, not) = wait_for(async move { writer.await.unwrap() });
        acknowledged.extend(done);
        failed.extend(not);
    }
    let client = cluster.client();
    let found = wait_for(async move { client.range(&prefix("once/")).await.unwrap() });
    println!(
        "{} acknowledged, {} not: {:?}",
        acknowledged.len(),
        failed.len(),
        failed.first()
    );
    let mut versions = BTreeMap::new();
    for kv in found.kvs {
        let key = String::from_utf8(kv.key.to_vec()).unwrap();
        assert_eq!(kv.version, 1, "{key} was put once");
        versions.insert(key, kv.mod_revision);
    }
    for (key, revision) in &acknowledged {
        assert_eq!(versions.get(key), Some(revision), "{key} was acknowledged");
    }
    assert!(failed.is_empty(), "no request had to fail: {failed:#?}");
    cluster.wait_equal();
}

/// Requests that are under way while leadership is moved on purpose wait for the next leader, and not for long.
#[test]
fn a_planned_change_of_leader_is_hardly_noticed() {
    let _turn = turn::alone();
    let mut cluster = Cluster::of(&binary()).members(3).start();
    let mut worst = Vec::new();
    for change in 0..10 {
        let leader = cluster.wait_leader();
        let target = others(&cluster, leader)[change % 2];
        let target = cluster.member_id(target);
        let began = Instant::now();
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let rpc = cluster[client % 3].rpc();
                handle().spawn(async move {
                    let mut worst = Duration::ZERO;
                    while began.elapsed() < millis(250) {
                        let asked = Instant::now();
                        match client < 3 {
                            true => drop(support::put(&rpc, "w", "v").await.unwrap()),
                            false => drop(support::get(&rpc, "w").await.unwrap()),
                        }
                        // the first opens the connection
                        if began.elapsed() > millis(40) {
                            worst = worst.max(asked.elapsed());
                        }
                    }
                    worst
                })
            })
            .collect();
        std::thread::sleep(millis(80));
        move_leader(&cluster, leader, target).unwrap();
        for client in clients {
            worst.push(wait_for(async move { client.await.unwrap() }));
        }
    }
    let (median, longest) = (percentile(&mut worst, 50), percentile(&mut worst, 100));
    println!("slowest request of each client: median {median:?}, longest {longest:?}");
    assert!(median < millis(100) && longest < millis(400), "{worst:?}");
}

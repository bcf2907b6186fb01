//! Any member serves, and all hold the same.

use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_api::proto::etcdserverpb::request_op::Request as Op;
use quorate_api::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, HashKvRequest, HashKvResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse, watch_request,
};
use quorate_kit::background::{handle, wait_for};
use quorate_kit::{Load, Rpc};

use super::{ask, members, others};
use crate::support::{self, COMPACT, DELETE, TXN, WATCH, from_env, percentile};
use crate::turn;

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const SOON: Duration = Duration::from_secs(5);

fn put_op(key: &str) -> RequestOp {
    let put = PutRequest {
        key: key.as_bytes().to_vec().into(),
        value: "by txn".into(),
        ..PutRequest::default()
    };
    RequestOp {
        request: Some(Op::RequestPut(put)),
    }
}

/// Everything that clients do with keys and leases, through one member; each answer speaks for that member.
async fn use_everything(rpc: &Rpc, member_id: u64, name: usize) {
    let key = |kind: &str| format!("{kind}/{name}");
    let create = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(WatchCreateRequest {
            key: key("put").into(),
            prev_kv: true,
            ..WatchCreateRequest::default()
        })),
    };
    let mut watch = rpc.bidi(WATCH, &create).await.unwrap();
    assert!(watch.next::<WatchResponse>(SOON).await.unwrap().unwrap().created);

    let put = support::put(rpc, key("put"), "1").await.unwrap().header.unwrap();
    assert_eq!(put.member_id, member_id);
    let got = support::get(rpc, key("put")).await.unwrap();
    assert!(got.header.unwrap().revision >= put.revision);
    assert_eq!(got.kvs[0].mod_revision, put.revision);
    let event = watch.next::<WatchResponse>(SOON).await.unwrap().unwrap();
    assert_eq!(event.header.as_ref().unwrap().member_id, member_id);
    assert_eq!(event.events[0].kv.as_ref().unwrap().mod_revision, put.revision);

    let txn = TxnRequest {
        success: vec![put_op(&key("txn/a")), put_op(&key("txn/b"))],
        ..TxnRequest::default()
    };
    let txn: TxnResponse = rpc.unary(TXN, &txn).await.unwrap();
    assert!(txn.succeeded && txn.header.unwrap().revision > put.revision);

    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let lease: LeaseGrantResponse = rpc.unary(GRANT, &grant).await.unwrap();
    let attached = PutRequest {
        key: key("leased").into(),
        lease: lease.id,
        ..PutRequest::default()
    };
    let _: quorate_api::proto::etcdserverpb::PutResponse = rpc.unary(support::PUT, &attached).await.unwrap();
    let mut keep = rpc
        .bidi(KEEP_ALIVE, &LeaseKeepAliveRequest { id: lease.id })
        .await
        .unwrap();
    let kept: LeaseKeepAliveResponse = keep.next(SOON).await.unwrap().unwrap();
    assert_eq!((kept.id, kept.ttl), (lease.id, 60));
    let left = LeaseTimeToLiveRequest {
        id: lease.id,
        keys: true,
    };
    let left: LeaseTimeToLiveResponse = rpc.unary(TIME_TO_LIVE, &left).await.unwrap();
    assert_eq!((left.granted_ttl, left.keys.len()), (60, 1));
    assert!((58..=60).contains(&left.ttl), "{}", left.ttl);
    let _: LeaseRevokeResponse = rpc.unary(REVOKE, &LeaseRevokeRequest { id: lease.id }).await.unwrap();
    assert!(support::get(rpc, key("leased")).await.unwrap().kvs.is_empty());
    let kept = LeaseKeepAliveRequest { id: lease.id };
    assert!(keep.send(&kept).await);
    let kept: LeaseKeepAliveResponse = keep.next(SOON).await.unwrap().unwrap();
    assert_eq!(kept.ttl, 0, "B29: a lease that is gone is said to be");

    let delete = DeleteRangeRequest {
        key: key("put").into(),
        ..DeleteRangeRequest::default()
    };
    let deleted: DeleteRangeResponse = rpc.unary(DELETE, &delete).await.unwrap();
    assert_eq!(deleted.deleted, 1);
    let event = watch.next::<WatchResponse>(SOON).await.unwrap().unwrap();
    assert_eq!(event.events[0].prev_kv.as_ref().unwrap().mod_revision, put.revision);
    let now = deleted.header.unwrap().revision;
    let compact = CompactionRequest {
        revision: now - 1,
        physical: true,
    };
    let _: CompactionResponse = rpc.unary(COMPACT, &compact).await.unwrap();
    let again = rpc.unary::<CompactionResponse>(COMPACT, &compact).await.unwrap_err();
    assert_eq!(
        again.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
}

#[test]
fn every_member_serves_everything() {
    let _turn = turn::shared();
    let mut cluster = members(3).with_client_tls().with_peer_tls().start();
    let leader = cluster.wait_leader();
    let leader_id = cluster.member_id(leader);
    for member in 0..3 {
        let (rpc, id) = (cluster[member].rpc(), cluster.member_id(member));
        wait_for(async move { use_everything(&rpc, id, member).await });
    }
    // an alarm that one raises, all see, and any takes back
    let alarm = |action: AlarmAction| AlarmRequest {
        action: action.into(),
        member_id: leader_id,
        alarm: AlarmType::Nospace.into(),
    };
    let _: AlarmResponse = ask(&cluster[0].rpc(), ALARM, &alarm(AlarmAction::Activate)).unwrap();
    for member in 0..3 {
        let rpc = cluster[member].rpc();
        let refused = wait_for(async move { support::put(&rpc, "full", "x").await.unwrap_err() });
        assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    }
    let _: AlarmResponse = ask(&cluster[2].rpc(), ALARM, &alarm(AlarmAction::Deactivate)).unwrap();

    let revision = cluster.wait_equal();
    let hash = |member: usize, revision: i64| -> HashKvResponse {
        ask(&cluster[member].rpc(), HASH_KV, &HashKvRequest { revision }).unwrap()
    };
    let oldest = hash(0, revision).compact_revision;
    for at in oldest.max(1)..=revision {
        let hashes: Vec<u32> = (0..3).map(|member| hash(member, at).hash).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "at {at}: {hashes:?}");
    }
    let statuses: Vec<_> = (0..3).map(|member| cluster.status(member).unwrap()).collect();
    for status in &statuses {
        assert_eq!(status.leader, leader_id);
        assert_eq!(status.raft_term, statuses[leader].raft_term);
        assert_eq!(status.raft_applied_index, statuses[leader].raft_applied_index);
        assert_eq!(status.raft_index, statuses[leader].raft_index);
        assert!(status.errors.is_empty() && !status.is_learner, "{status:?}");
    }
    let etcdctl = cluster.etcdctl();
    let table = etcdctl.ok(&["endpoint", "status"]);
    assert_eq!(table.lines().count(), 3);
    assert_eq!(table.matches(", true, false, ").count(), 1, "{table}");
    etcdctl.ok(&["endpoint", "health"]);
}

/// B25: whoever reads through another member than wrote sees what was acknowledged.
#[test]
fn linearizable_reads_hold_on_every_member() {
    let _turn = turn::shared();
    let mut cluster = members(3).start();
    cluster.wait_leader();
    let rpcs: Vec<Rpc> = (0..3).map(|member| cluster[member].rpc()).collect();
    let tasks: Vec<_> = (0..6usize)
        .map(|task| {
            let rpcs = rpcs.clone();
            handle().spawn(async move {
                let key = format!("seen/{task}");
                for number in 0..200usize {
                    let written = support::put_at(&rpcs[(number + task) % 3], key.clone(), number.to_string()).await;
                    let got = support::get(&rpcs[(number + task + 1 + number % 2) % 3], key.clone())
                        .await
                        .unwrap();
                    assert_eq!(got.kvs[0].mod_revision, written);
                    assert!(got.header.unwrap().revision >= written);
                }
            })
        })
        .collect();
    for task in tasks {
        wait_for(async move { task.await.unwrap() });
    }
    cluster.wait_equal();
}

/// B5, B14, B15, B47, D20: watchers at followers that are slowed, paused and cut off, and go on elsewhere, miss nothing,
/// get nothing twice, and no progress is vouched for before its events.
#[test]
fn watchers_at_followers_see_everything_in_order() {
    let _turn = turn::shared();
    let mut cluster = members(3)
        .with_links()
        .flag("--watch-progress-notify-interval=100ms")
        .start();
    let leader = cluster.wait_leader();
    let rest = others(&cluster, leader);
    let load = Load::through(&cluster, &[leader]).clients(8).start();
    let at_followers = Load::through(&cluster, &rest).clients(2).watchers(6).start();
    // one that begins in the future at a member that lags: nothing old, no notice before its time
    let now = at(&cluster[rest[0]].rpc());
    cluster
        .links()
        .delay(leader, rest[0], Duration::from_millis(150), Duration::ZERO);
    let start = now + 300;
    let future = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(WatchCreateRequest {
            key: "load/".into(),
            range_end: "load0".into(),
            start_revision: start,
            progress_notify: true,
            ..WatchCreateRequest::default()
        })),
    };
    let rpc = cluster[rest[0]].rpc();
    let future = handle().spawn(async move {
        let mut stream = rpc.bidi(WATCH, &future).await.unwrap();
        assert!(stream.next::<WatchResponse>(SOON).await.unwrap().unwrap().created);
        let mut last = start - 1;
        while last < start + 100 {
            let answer = stream.next::<WatchResponse>(SOON * 4).await.unwrap().unwrap();
            let revision = answer.header.unwrap().revision;
            if answer.events.is_empty() {
                assert!(revision >= start - 1, "a notice of {revision} for a watch from {start}");
                assert!(revision >= last, "a notice of {revision} after {last}");
            }
            for event in answer.events {
                let at = event.kv.unwrap().mod_revision;
                assert!(at > last, "an event of {at} after {last}");
                last = at;
            }
        }
    });
    load.wait_acknowledged(400);
    cluster[rest[1]].pause();
    load.wait_acknowledged(200);
    cluster[rest[1]].resume();
    cluster.links().heal_all();
    cluster.links().isolate(rest[0]);
    load.wait_acknowledged(200);
    cluster.links().heal_all();
    load.wait_acknowledged(200);
    wait_for(async move { future.await.unwrap() });
    load.finish().check();
    at_followers.finish().check();
    cluster.wait_equal();
}

fn at(rpc: &Rpc) -> i64 {
    let rpc = rpc.clone();
    wait_for(async move { support::get(&rpc, "x").await.unwrap().header.unwrap().revision })
}

/// D18: a thousand clients at one follower: all are served, and no member takes much memory for it.
#[test]
fn a_thousand_clients_at_a_follower_are_served() {
    const CLIENTS: usize = 1000;
    const CONNECTIONS: usize = 50;
    const BUDGET: u64 = 100 << 20;
    let _turn = turn::alone();
    let each = from_env("QUORATE_PUTS_EACH", 10);
    let mut cluster = members(3).start();
    let leader = cluster.wait_leader();
    let follower = others(&cluster, leader)[0];
    let before: Vec<u64> = (0..3).map(|member| cluster[member].resident_bytes()).collect();
    let connections: Vec<Rpc> = (0..CONNECTIONS).map(|_| cluster[follower].rpc()).collect();
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let rpc = connections[client % CONNECTIONS].clone();
            handle().spawn(async move {
                let mut took = Vec::new();
                for number in 0..each {
                    let asked = Instant::now();
                    let key = format!("many/{client}/{}", number % 4);
                    support::put(&rpc, key.clone(), vec![b'v'; 1000]).await.unwrap();
                    assert_eq!(support::get(&rpc, key).await.unwrap().kvs.len(), 1);
                    took.push(asked.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for client in clients {
        took.extend(wait_for(async move { client.await.unwrap() }));
    }
    let all = began.elapsed();
    let grown: Vec<u64> = (0..3)
        .map(|member| cluster[member].peak_resident_bytes().saturating_sub(before[member]))
        .collect();
    println!(
        "{} puts and gets in {all:?}, p99 {:?}, MiB more: {:?}",
        took.len(),
        percentile(&mut took, 99),
        grown.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>()
    );
    assert!(grown.iter().all(|bytes| *bytes < BUDGET), "{grown:?}");
    cluster.wait_equal();
}

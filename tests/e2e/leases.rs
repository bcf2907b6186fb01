//! Leases on three members: the leader that keeps their time is killed, or stands still and comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
};
use quorate_kit::rpc::LIMIT;
use quorate_kit::wait::{until, until_async};
use quorate_kit::{Cluster, Rpc, background};
use tokio::task::JoinHandle;

use crate::support::{PUT, RANGE, binary};
use crate::turn;

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

const ELECTION: Duration = Duration::from_millis(500);
/// The leader looks at its clock this often.
const SCAN: Duration = Duration::from_millis(500);
/// What a busy machine may add to anything.
const SLACK: Duration = Duration::from_secs(2);

fn trio() -> Cluster {
    let options = Cluster::of(&binary()).members(3);
    options.heartbeat_ms(50).election_ms(500).start()
}

/// A lease with a key of its number.
async fn grant(rpc: &Rpc, id: i64, ttl: i64) {
    let granted: LeaseGrantResponse = rpc.unary(GRANT, &LeaseGrantRequest { id, ttl }).await.unwrap();
    assert_eq!((granted.id, granted.ttl), (id, ttl));
    let put = PutRequest {
        key: id.to_string().into(),
        lease: id,
        ..PutRequest::default()
    };
    let _: PutResponse = rpc.unary(PUT, &put).await.unwrap();
}

/// Linearizably.
async fn has_key(rpc: &Rpc, id: i64) -> bool {
    let range = RangeRequest {
        key: id.to_string().into(),
        ..RangeRequest::default()
    };
    let found: RangeResponse = rpc.unary(RANGE, &range).await.unwrap();
    found.count == 1
}

async fn left(rpc: &Rpc, id: i64) -> LeaseTimeToLiveResponse {
    let ask = LeaseTimeToLiveRequest { id, keys: true };
    rpc.unary(TIME_TO_LIVE, &ask).await.unwrap()
}

/// Renews a lease at one member until it is stopped, and fails when it is told that the lease is gone.
struct Keeper {
    stop: Arc<AtomicBool>,
    /// When the last request was sent that was answered.
    last: Arc<Mutex<Instant>>,
    task: JoinHandle<()>,
}

impl Keeper {
    fn start(rpc: Rpc, id: i64, ttl: i64) -> Self {
        let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Instant::now())));
        let (stopped, renewed) = (stop.clone(), last.clone());
        let task = background::handle().spawn(async move {
            let mut sent = Instant::now();
            let mut stream = rpc.bidi(KEEP_ALIVE, &LeaseKeepAliveRequest { id }).await.unwrap();
            loop {
                let answer: LeaseKeepAliveResponse = stream.next(LIMIT).await.unwrap().unwrap();
                assert_eq!(
                    (answer.id, answer.ttl),
                    (id, ttl),
                    "{:?} after it was asked",
                    sent.elapsed()
                );
                *renewed.lock().unwrap() = sent;
                tokio::time::sleep(Duration::from_millis(200)).await;
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                sent = Instant::now();
                assert!(stream.send(&LeaseKeepAliveRequest { id }).await);
            }
        });
        Self { stop, last, task }
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap()
    }

    /// When the last answered request was sent.
    fn stop(self) -> Instant {
        self.stop.store(true, Ordering::Relaxed);
        background::wait_for(self.task).unwrap();
        *self.last.lock().unwrap()
    }
}

/// A lease that is renewed through a follower outlives the leader; one that is not ends when its time is over, and the
/// election gives it no more than its TTL and the election timeout again.
#[test]
fn a_killed_leader_takes_no_lease_with_it_and_leaves_none_behind() {
    const TTL: Duration = Duration::from_secs(2);
    let _turn = turn::shared();
    let mut cluster = trio();
    let leader = cluster.wait_leader();
    let followers: Vec<usize> = cluster
        .members()
        .into_iter()
        .filter(|member| *member != leader)
        .collect();
    let rpcs = followers
        .iter()
        .map(|member| cluster[*member].rpc())
        .collect::<Vec<_>>();
    let (one, other) = (rpcs[0].clone(), rpcs[1].clone());
    let granted = Instant::now();
    background::wait_for(async move {
        for id in [1, 2, 3] {
            grant(&one, id, if id == 3 { 100 } else { 2 }).await;
        }
        // Known everywhere as soon as it is answered.
        assert_eq!(left(&other, 3).await.granted_ttl, 100);
    });
    let keeper = Keeper::start(rpcs[0].clone(), 1, 2);
    until("a renewal", LIMIT, || (keeper.last() > granted).then_some(()));
    cluster[leader].kill();
    let killed = Instant::now();
    let other = rpcs[1].clone();
    background::wait_for(async move {
        until_async("the end of the lease that nobody renews", LIMIT, || async {
            (!has_key(&other, 2).await).then_some(())
        })
        .await;
        assert_eq!(left(&other, 2).await.ttl, -1);
    });
    let (since_grant, since_kill) = (granted.elapsed(), killed.elapsed());
    assert!(since_grant >= TTL, "ended after {since_grant:?}");
    let most = 2 * ELECTION + ELECTION + TTL + SCAN + SLACK;
    assert!(
        since_kill <= most,
        "still there {since_kill:?} after the leader was killed"
    );
    let other = rpcs[1].clone();
    background::wait_for(async move {
        assert!(has_key(&other, 1).await, "renewed all the time, and gone");
        let long = left(&other, 3).await;
        assert_eq!((long.granted_ttl, long.keys.len()), (100, 1));
        assert!((90..=100).contains(&long.ttl), "{} s left of 100", long.ttl);
    });
    let last = keeper.stop();
    let other = rpcs[1].clone();
    background::wait_for(async move {
        until_async("the end of the other", LIMIT, || async {
            (!has_key(&other, 1).await).then_some(())
        })
        .await;
    });
    let lived = last.elapsed();
    assert!(lived >= TTL, "ended {lived:?} after it was renewed");
    assert!(
        lived <= TTL + SCAN + SLACK,
        "still there {lived:?} after it was renewed"
    );
}

/// B24, B46: a leader stands still while others elect another and a client renews its lease there. When it goes on, the
/// lease has ended by its clock; nothing of it goes, and what it is asked it answers truthfully.
#[test]
fn resumed_leader_revokes_nothing_renewed() {
    const TTL: Duration = Duration::from_secs(2);
    let _turn = turn::shared();
    let mut cluster = trio();
    for round in 0..2 {
        let leader = cluster.wait_leader();
        let follower = cluster.members().into_iter().find(|member| *member != leader).unwrap();
        let (old, rpc) = (cluster[leader].rpc(), cluster[follower].rpc());
        let id = 10 + round;
        let granting = rpc.clone();
        background::wait_for(async move { grant(&granting, id, 2).await });
        let keeper = Keeper::start(rpc.clone(), id, 2);
        // Renewed by the one that is about to stand still, too.
        let asked = old.clone();
        let stream = background::wait_for(async move {
            let mut stream = asked.bidi(KEEP_ALIVE, &LeaseKeepAliveRequest { id }).await.unwrap();
            let answer: LeaseKeepAliveResponse = stream.next(LIMIT).await.unwrap().unwrap();
            assert_eq!(answer.ttl, 2);
            stream
        });
        cluster[leader].pause();
        let paused = Instant::now();
        background::wait_for(async move {
            // Waits in its sockets.
            stream.send(&LeaseKeepAliveRequest { id }).await;
            let beyond = paused + TTL + SCAN;
            tokio::time::sleep_until(beyond.into()).await;
            drop(stream);
        });
        let renewed = keeper.last();
        assert!(renewed > paused + ELECTION, "nobody else renewed it");
        cluster[leader].resume();
        // Long enough for two looks at its clock, and for what it proposed to arrive somewhere.
        let until = Instant::now() + 2 * SCAN + ELECTION;
        while Instant::now() < until {
            let (asked, at_old) = (rpc.clone(), old.clone());
            background::wait_for(async move {
                assert!(has_key(&asked, id).await, "round {round}: revoked while it was renewed");
                assert!(has_key(&at_old, id).await);
                assert!(
                    left(&at_old, id).await.ttl >= 0,
                    "round {round}: the resumed one knows of no lease"
                );
            });
            std::thread::sleep(Duration::from_millis(20));
        }
        let last = keeper.stop();
        let asked = rpc.clone();
        background::wait_for(async move {
            until_async("the end", LIMIT, || async {
                (!has_key(&asked, id).await).then_some(())
            })
            .await;
        });
        let lived = last.elapsed();
        assert!(lived >= TTL, "round {round}: ended {lived:?} after it was renewed");
    }
    cluster.wait_equal();
}

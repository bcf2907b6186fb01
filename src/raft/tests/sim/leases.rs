//! Leases: granted, given a key, kept alive for a while at any member, and then left to end or revoked.

use crate::clients::Asked;
use crate::machine::ELECTION;
use crate::world::World;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::PutRequest;
use quorate_api::proto::quorate::{LeaseGrant, LeaseRevoke};
use quorate_store::command::{Command, Reply};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Lease clocks are wrong by so many thousandths at most.
pub const DRIFT: u32 = 20;

/// After the last one was lost, everything that nobody renews is gone within its TTL and this.
pub const SLACK: Duration = Duration::from_millis(4 * ELECTION.as_millis() as u64 + 2000);

/// What is known of a lease, as its client knows it.
pub struct Lease {
    pub id: i64,
    pub ttl: Duration,
    /// It has its key for certain.
    pub key: Option<Bytes>,
    /// When the last renewal that was acknowledged was asked for.
    pub renewed: Instant,
    /// Somebody may have revoked it since.
    pub revoked: Option<Instant>,
}

pub fn key_of(id: i64) -> Bytes {
    format!("lease/{id}").into()
}

/// One lease after the other.
pub async fn run(world: Arc<World>, number: i64) {
    let mut count = 0;
    while !world.is_over() {
        count += 1;
        one(&world, number * 1000 + count).await;
        sleep(world.clients.millis(10..500)).await;
    }
}

async fn one(world: &Arc<World>, id: i64) {
    let dice = &world.clients;
    let trace = &world.around.trace;
    let ttl_secs = 1 + dice.below(3) as i64;
    let patience = ELECTION * 4;
    let called = Instant::now();
    let grant = Command::LeaseGrant(LeaseGrant { id, ttl_secs });
    match world.command(world.some_member(), patience, grant).await {
        Asked::Done(Ok((_, Ok(Reply::LeaseGrant { .. })))) => {}
        _ => return,
    }
    trace.note(format_args!("lease {id} granted for {ttl_secs} s"));
    let mut lease = Lease {
        id,
        ttl: Duration::from_secs(ttl_secs as u64),
        key: None,
        renewed: called,
        revoked: None,
    };
    let put = Command::Put(PutRequest {
        key: key_of(id),
        lease: id,
        ..Default::default()
    });
    let attached = world.command(world.some_member(), patience, put).await;
    if matches!(attached, Asked::Done(Ok((_, Ok(_))))) {
        lease.key = Some(key_of(id));
    }
    let renewals = dice.below(world.plan.renewals);
    for _ in 0..renewals {
        sleep(dice.millis(50..600)).await;
        let called = Instant::now();
        let through = world.some_member();
        let renewed = world
            .ask(
                through,
                ELECTION * (1 + dice.below(3) as u32),
                move |_, node| async move { node.renew(id).await },
            )
            .await;
        match renewed {
            Asked::Done(Ok(Some(granted))) => {
                if granted != ttl_secs {
                    trace.fail(format_args!("lease {id} of {ttl_secs} s is renewed for {granted}"));
                }
                trace.note(format_args!(
                    "lease {id} renewed through {through:?} in {:?}",
                    called.elapsed()
                ));
                lease.renewed = called;
            }
            // It has ended: whether it might is judged by when its key went.
            Asked::Done(Ok(None)) => {
                trace.note(format_args!(
                    "lease {id} is gone, says {through:?} after {:?}",
                    called.elapsed()
                ));
                let early = lease.renewed + least(lease.ttl);
                if Instant::now() < early {
                    trace.fail(format_args!(
                        "lease {id} is said to be gone {:?} early",
                        early - Instant::now()
                    ));
                }
                break;
            }
            _ => {}
        }
    }
    if dice.chance(30) {
        lease.revoked = Some(Instant::now());
        let revoke = Command::LeaseRevoke(LeaseRevoke { id, expired_in_term: 0 });
        if let Asked::Done(Ok((_, Ok(_)))) = world.command(world.some_member(), patience, revoke).await {
            // A leader that was deposed may vouch for half an election timeout more for what it said before.
            sleep(ELECTION).await;
            let renewed = world
                .ask(world.some_member(), patience, move |_, node| async move {
                    node.renew(id).await
                })
                .await;
            if let Asked::Done(Ok(Some(_))) = renewed {
                trace.fail(format_args!("lease {id} is renewed after it was revoked"));
            }
        }
    }
    world.leases.lock().push(lease);
}

/// By the fastest clock.
fn least(ttl: Duration) -> Duration {
    ttl * 1000 / (1000 + DRIFT)
}

impl World {
    /// No lease has ended early, and none lives for ever.
    pub fn judge_leases(&self) -> Result<(), String> {
        for lease in self.leases.lock().iter() {
            let Some(key) = &lease.key else { continue };
            let deleted = self.around.tap.deleted(key);
            let Some(deleted) = deleted else {
                return Err(format!("lease {} should have ended, and its key is there", lease.id));
            };
            let before_revoke = lease.revoked.is_none_or(|revoked| deleted < revoked);
            let early = lease.renewed + least(lease.ttl);
            if before_revoke && deleted < early {
                return Err(format!("lease {} has ended {:?} early", lease.id, early - deleted));
            }
        }
        Ok(())
    }
}

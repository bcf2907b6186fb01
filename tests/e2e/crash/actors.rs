//! Clients that write until they are cut off, and know what they have to find afterwards.
//!
//! Each counts its requests. What it left behind follows from how many were done, so that what is found must be the
//! state after the last acknowledged one, or after the one that was under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use quorate_kit::Rpc;
use tonic::{Code, Status};

use crate::support::{COMPACT, DELETE, PUT, RANGE, TXN, get, prefix};

const LARGE_BYTES: usize = 20_000;
/// One writer in so many has large values in a long round: enough to fill segments, little enough to be replayed soon.
const LARGE_EVERY: usize = 4;
/// Revisions that compaction leaves.
const HISTORY: i64 = 20;
const COMPACT_EVERY: Duration = Duration::from_millis(50);
const GONE: &str = "crash/gone";
const LEASED: &str = "crash/leased";

#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// Counts up in two keys at once.
    Writer(usize),
    /// Puts a key and deletes it, in turn.
    Deleter,
    /// Grants a lease, puts a key with it, and revokes it, in turn.
    Lessee,
    Compacter,
}

/// How many requests of an actor were acknowledged, and how many it has sent: as many or one more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    pub acknowledged: u64,
    pub tried: u64,
}

/// What all actors know.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    long: AtomicBool,
    /// The highest that was told in a header.
    revision: AtomicI64,
    /// The highest whose compaction was acknowledged.
    compacted: AtomicI64,
}

impl Shared {
    pub fn begin(&self, long: bool) {
        self.long.store(long, Ordering::Relaxed);
        self.stop.store(false, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn heard(&self, header: Option<ResponseHeader>) {
        self.revision.fetch_max(header.unwrap().revision, Ordering::Relaxed);
    }
}

impl Actor {
    /// Acts until told to stop or cut off.
    pub async fn act(self, rpc: Rpc, mut known: Known, shared: Arc<Shared>) -> Known {
        while !shared.stop.load(Ordering::Relaxed) {
            known.tried += 1;
            let done = match self {
                Self::Writer(writer) => count_up(&rpc, writer, known.tried, &shared).await,
                Self::Deleter => put_or_delete(&rpc, known.tried, &shared).await,
                Self::Lessee => lease(&rpc, known.tried, &shared).await,
                Self::Compacter => compact(&rpc, &shared).await,
            };
            if done.is_err() {
                break;
            }
            known.acknowledged = known.tried;
        }
        known
    }

    /// Fails the test unless what is there is what was done; gives what was done.
    pub async fn check(self, rpc: &Rpc, known: Known, round: usize) -> Known {
        let Known { acknowledged, tried } = known;
        let found = match self {
            Self::Writer(writer) => {
                let found = counted(rpc, writer, round).await;
                (acknowledged..=tried).contains(&found).then_some(found)
            }
            Self::Deleter => {
                let value = number(&get(rpc, GONE).await.unwrap());
                [acknowledged, tried]
                    .into_iter()
                    .find(|done| value == (done % 2 == 1).then_some(*done))
            }
            Self::Lessee => {
                let leases: LeaseLeasesResponse = rpc
                    .unary("/etcdserverpb.Lease/LeaseLeases", &LeaseLeasesRequest {})
                    .await
                    .unwrap();
                let leases: Vec<i64> = leases.leases.iter().map(|lease| lease.id).collect();
                let keys: RangeResponse = rpc.unary(RANGE, &prefix(LEASED)).await.unwrap();
                let with: Vec<i64> = keys.kvs.iter().map(|kv| kv.lease).collect();
                [acknowledged, tried].into_iter().find(|done| {
                    let id = lease_id(done / 3);
                    let expected: (&[i64], &[i64]) = match done % 3 {
                        0 => (&[], &[]),
                        1 => (&[id], &[]),
                        _ => (&[id], &[id]),
                    };
                    (leases.as_slice(), with.as_slice()) == expected
                })
            }
            // what it has done is checked with the revisions
            Self::Compacter => Some(acknowledged),
        };
        let Some(found) = found else {
            panic!(
                "round {round}: {self:?} had {acknowledged} requests acknowledged and sent {tried}; neither is there"
            );
        };
        Known {
            acknowledged: found,
            tried: found,
        }
    }
}

/// The store's clock has not gone back, and what was compacted still is.
pub async fn check_revisions(rpc: &Rpc, shared: &Shared, round: usize) {
    let told = shared.revision.load(Ordering::Relaxed);
    let now = get(rpc, GONE).await.unwrap().header.unwrap().revision;
    assert!(now >= told, "round {round}: revision {now} after {told} was told");
    let compacted = shared.compacted.load(Ordering::Relaxed);
    if compacted > 1 {
        let past = RangeRequest {
            key: GONE.into(),
            revision: compacted - 1,
            ..RangeRequest::default()
        };
        let refused = rpc.unary::<RangeResponse>(RANGE, &past).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted"
            ),
            "round {round}"
        );
    }
}

async fn count_up(rpc: &Rpc, writer: usize, count: u64, shared: &Shared) -> Result<(), Status> {
    let large = shared.long.load(Ordering::Relaxed) && writer.is_multiple_of(LARGE_EVERY);
    let value = match large {
        true => format!("{count} {}", "x".repeat(LARGE_BYTES)),
        false => count.to_string(),
    };
    let put = |half: &str| RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: format!("crash/{writer}/{half}").into(),
            value: value.clone().into(),
            ..PutRequest::default()
        })),
    };
    let txn = TxnRequest {
        success: vec![put("left"), put("right")],
        ..TxnRequest::default()
    };
    let answer: TxnResponse = rpc.unary(TXN, &txn).await?;
    shared.heard(answer.header);
    Ok(())
}

async fn counted(rpc: &Rpc, writer: usize, round: usize) -> u64 {
    let mut halves = Vec::new();
    for half in ["left", "right"] {
        let got = get(rpc, format!("crash/{writer}/{half}")).await.unwrap();
        halves.push(number(&got).unwrap_or(0));
    }
    assert_eq!(
        halves[0], halves[1],
        "round {round}: half a transaction of writer {writer}"
    );
    halves[0]
}

/// The number that a value starts with.
fn number(got: &RangeResponse) -> Option<u64> {
    let value = String::from_utf8_lossy(&got.kvs.first()?.value).into_owned();
    Some(value.split(' ').next().unwrap().parse().unwrap())
}

async fn put_or_delete(rpc: &Rpc, count: u64, shared: &Shared) -> Result<(), Status> {
    if count % 2 == 1 {
        let put = PutRequest {
            key: GONE.into(),
            value: count.to_string().into(),
            ..PutRequest::default()
        };
        let answer: PutResponse = rpc.unary(PUT, &put).await?;
        shared.heard(answer.header);
    } else {
        let delete = DeleteRangeRequest {
            key: GONE.into(),
            ..DeleteRangeRequest::default()
        };
        let answer: DeleteRangeResponse = rpc.unary(DELETE, &delete).await?;
        shared.heard(answer.header);
    }
    Ok(())
}

fn lease_id(cycle: u64) -> i64 {
    i64::try_from(cycle).unwrap() + 1
}

async fn lease(rpc: &Rpc, count: u64, shared: &Shared) -> Result<(), Status> {
    let (cycle, step) = ((count - 1) / 3, (count - 1) % 3);
    let id = lease_id(cycle);
    let header = match step {
        0 => {
            let grant = LeaseGrantRequest { id, ttl: 3_600 };
            rpc.unary::<LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", &grant)
                .await?
                .header
        }
        1 => {
            let put = PutRequest {
                key: LEASED.into(),
                lease: id,
                ..PutRequest::default()
            };
            rpc.unary::<PutResponse>(PUT, &put).await?.header
        }
        _ => {
            let revoke = LeaseRevokeRequest { id };
            rpc.unary::<LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", &revoke)
                .await?
                .header
        }
    };
    shared.heard(header);
    Ok(())
}

async fn compact(rpc: &Rpc, shared: &Shared) -> Result<(), Status> {
    let revision = shared.revision.load(Ordering::Relaxed) - HISTORY;
    if revision > shared.compacted.load(Ordering::Relaxed) {
        let request = CompactionRequest {
            revision,
            physical: shared.long.load(Ordering::Relaxed),
        };
        match rpc.unary::<CompactionResponse>(COMPACT, &request).await {
            Ok(_) => {}
            // the one before went through, and its answer was cut off
            Err(status) if status.message() == "etcdserver: mvcc: required revision has been compacted" => {}
            Err(status) => return Err(status),
        }
        shared.compacted.fetch_max(revision, Ordering::Relaxed);
    }
    tokio::time::sleep(COMPACT_EVERY).await;
    Ok(())
}

//! `HashKV`: over the same history, both servers come to the same number at every revision, before and after
//! compactions. Revisions count absolutely there, so this needs servers that nobody has written to.

use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, HashKvRequest, HashKvResponse,
    LeaseGrantRequest, LeaseGrantResponse, PutRequest, PutResponse,
};
use quorate_kit::Rpc;

use crate::pair::Contest;
use crate::reply::Reply;
use crate::side::Side;

enum Step {
    Put(&'static str, &'static str, i64),
    Delete(&'static str, &'static str),
    Grant(i64),
    Compact(i64),
}

use Step::{Compact, Delete, Grant, Put};

/// Keys that live and die, several changes in one revision, leases; compactions at a put, at a deletion, and where no
/// key is left; and in the end more of them than are remembered.
const HISTORY: &[Step] = &[
    Put("a", "1", 0),
    Put("b", "1", 0),
    Put("a", "2", 0),
    Delete("b", ""),
    Put("c", "x", 0),
    Compact(4),
    Put("a", "3", 0),
    Compact(5),
    Delete("\0", "\0"),
    Compact(7),
    Compact(8),
    Grant(77),
    Put("leased", "", 77),
    Put("empty", "", 0),
    Put("b", "again", 0),
    Compact(9),
    Compact(10),
    Compact(11),
    Put("b", "12", 0),
    Put("b", "13", 0),
    Put("b", "14", 0),
    Put("b", "15", 0),
    Put("b", "16", 0),
    Put("b", "17", 0),
    Compact(12),
    Compact(13),
    Compact(14),
    Compact(15),
    Compact(16),
];
const LAST: i64 = 17;

pub async fn agree(contest: &Contest) {
    let (ours, oracle) = (Side::start(&contest.ours), Side::start(&contest.oracle));
    let (ours, oracle) = (ours.node.rpc(), oracle.node.rpc());
    let mut compacted = -1;
    for (number, step) in HISTORY.iter().enumerate() {
        run(&ours, step).await;
        run(&oracle, step).await;
        if let Compact(revision) = step {
            compacted = *revision;
        }
        for revision in 0..=LAST + 1 {
            let (mut our, mut their) = (hash(&ours, revision).await, hash(&oracle, revision).await);
            if contest.oracle.is_34() {
                // It remembers no compaction, and does not say which revision it hashed.
                if revision > 0 && revision <= compacted {
                    continue;
                }
                for reply in [&mut our, &mut their].into_iter().flatten() {
                    reply.hash_revision = 0;
                }
            }
            assert_eq!(our, their, "revision {revision} after step {number}");
        }
    }
}

async fn run(rpc: &Rpc, step: &Step) {
    match *step {
        Put(key, value, lease) => {
            let request = PutRequest {
                key: key.into(),
                value: value.into(),
                lease,
                ..PutRequest::default()
            };
            let _: PutResponse = rpc.unary("/etcdserverpb.KV/Put", &request).await.unwrap();
        }
        Delete(key, end) => {
            let request = DeleteRangeRequest {
                key: key.into(),
                range_end: end.into(),
                prev_kv: false,
            };
            let _: DeleteRangeResponse = rpc.unary("/etcdserverpb.KV/DeleteRange", &request).await.unwrap();
        }
        Grant(id) => {
            let request = LeaseGrantRequest { id, ttl: 3600 };
            let _: LeaseGrantResponse = rpc.unary("/etcdserverpb.Lease/LeaseGrant", &request).await.unwrap();
        }
        Compact(revision) => {
            // Physical, so that it has come to its end when it is answered.
            let request = CompactionRequest {
                revision,
                physical: true,
            };
            let _: CompactionResponse = rpc.unary("/etcdserverpb.KV/Compact", &request).await.unwrap();
        }
    }
}

/// What differs between any two servers, their ids, is taken out.
async fn hash(rpc: &Rpc, revision: i64) -> Result<HashKvResponse, Reply> {
    let answer: Result<HashKvResponse, _> = rpc
        .unary("/etcdserverpb.Maintenance/HashKV", &HashKvRequest { revision })
        .await;
    let mut answer = answer.map_err(|status| Reply::from_status(&status))?;
    if let Some(header) = &mut answer.header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
    Ok(answer)
}

//! Commands and reads over few keys, few leases and near revisions, so that everything meets everything.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_api::proto::etcdserverpb::compare::TargetUnion;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::quorate as wire;
use quorate_store::command::Command;
use quorate_store::validate;

/// One thing that happens to the store.
#[derive(Clone, Debug)]
pub enum Step {
    /// The commands of one entry, whose batch they are, and which of that member's.
    Entry(Vec<Command>, u64, Turn),
    Blank,
    Read(Vec<pb::RangeRequest>),
    Txn(pb::TxnRequest),
    Compact(usize),
    Flush,
    /// The process is killed and starts again.
    Crash,
}

/// Which of a member's batches, against the newest that was applied.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    Next,
    /// Those between were lost.
    Skip,
    /// The member started again.
    Restart,
    /// The log has it twice.
    Repeat,
    /// Of before the last start, overtaken.
    Late,
}

const KEYS: [&str; 7] = ["a", "ab", "ac", "b", "c", "c\0", "d"];

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&KEYS[..]).prop_map(Bytes::from)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"\0")),
        3 => key(),
    ]
}

fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0i64), 4 => 1..40i64, 1 => Just(-1i64)]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0i64), 3 => 1..4i64]
}

pub fn range() -> impl Strategy<Value = pb::RangeRequest> {
    let shape = (-1..4i64, revision(), 0..3i32, 0..5i32);
    let filters = prop_oneof![3 => Just([0; 4]), 1 => prop::array::uniform4(prop_oneof![2 => Just(0), 1 => 0..20i64])];
    let flags = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.02),
    );
    (key(), end(), shape, filters, flags).prop_map(|(key, range_end, shape, filters, flags)| pb::RangeRequest {
        key,
        range_end,
        limit: shape.0,
        revision: shape.1,
        sort_order: if flags.2 { 9 } else { shape.2 },
        sort_target: shape.3,
        serializable: false,
        keys_only: flags.0,
        count_only: flags.1,
        min_mod_revision: filters[0],
        max_mod_revision: filters[1],
        min_create_revision: filters[2],
        max_create_revision: filters[3],
    })
}

fn put() -> impl Strategy<Value = pb::PutRequest> {
    let flags = (any::<bool>(), prop::bool::weighted(0.15), prop::bool::weighted(0.15));
    let value = prop_oneof![1 => Just(0usize), 4 => 1..20usize, 1 => Just(3000usize)];
    (key(), value, b'p'..=b'z', lease(), flags).prop_map(|(key, len, byte, lease, flags)| {
        let (prev_kv, ignore_value, ignore_lease) = flags;
        pb::PutRequest {
            key,
            value: if ignore_value {
                Bytes::new()
            } else {
                vec![byte; len].into()
            },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        }
    })
}

fn delete() -> impl Strategy<Value = pb::DeleteRangeRequest> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| pb::DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn compare() -> impl Strategy<Value = pb::Compare> {
    let union = prop_oneof![
        1 => Just(None),
        2 => (0..4i64).prop_map(|n| Some(TargetUnion::Version(n))),
        2 => (0..20i64).prop_map(|n| Some(TargetUnion::CreateRevision(n))),
        2 => (0..20i64).prop_map(|n| Some(TargetUnion::ModRevision(n))),
        2 => (b'p'..=b'z').prop_map(|b| Some(TargetUnion::Value(vec![b; 3].into()))),
        2 => (0..4i64).prop_map(|n| Some(TargetUnion::Lease(n))),
    ];
    (0..5i32, 0..6i32, key(), end(), union, any::<bool>()).prop_map(|(result, target, key, range_end, union, fits)| {
        let fitting = match &union {
            Some(TargetUnion::Version(_)) => 0,
            Some(TargetUnion::CreateRevision(_)) => 1,
            Some(TargetUnion::ModRevision(_)) => 2,
            Some(TargetUnion::Value(_)) => 3,
            Some(TargetUnion::Lease(_)) => 4,
            None => target,
        };
        pb::Compare {
            result,
            target: if fits { fitting } else { target },
            key,
            range_end,
            target_union: union,
        }
    })
}

fn txn_of(op: impl Strategy<Value = pb::RequestOp> + Clone) -> impl Strategy<Value = pb::TxnRequest> {
    let ops = || prop::collection::vec(op.clone(), 0..4);
    let compares = prop::collection::vec(compare(), 0..3);
    (compares, ops(), ops()).prop_map(|(compare, success, failure)| pb::TxnRequest {
        compare,
        success,
        failure,
    })
}

fn op() -> impl Strategy<Value = pb::RequestOp> + Clone {
    let leaf = prop_oneof![
        4 => put().prop_map(Request::RequestPut),
        2 => range().prop_map(Request::RequestRange),
        2 => delete().prop_map(Request::RequestDeleteRange),
    ];
    let leaf = leaf
        .prop_map(|request| pb::RequestOp { request: Some(request) })
        .boxed();
    leaf.prop_recursive(2, 12, 3, |op| {
        txn_of(op).prop_map(|txn| pb::RequestOp {
            request: Some(Request::RequestTxn(txn)),
        })
    })
    .boxed()
}

fn txn() -> impl Strategy<Value = pb::TxnRequest> {
    // Sort options that validation refuses stay in: apply must refuse them alike.
    let duplicates = |txn: &pb::TxnRequest| validate::txn(txn, 128) != Err(quorate_api::Error::DuplicateKey);
    txn_of(op()).prop_filter("a key is put once", duplicates)
}

/// Few enough that they clash, and with blanks around some.
fn urls() -> impl Strategy<Value = Vec<String>> {
    let url = (0..9u8, prop::bool::weighted(0.1)).prop_map(|(host, blanks)| match blanks {
        false => format!("http://peer{host}:2380"),
        true => format!(" http://peer{host}:2380 "),
    });
    prop::collection::vec(url, 1..3)
}

fn member() -> impl Strategy<Value = pb::Member> {
    (1..7u64, urls(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(id, urls, named, is_learner)| pb::Member {
        id,
        name: if named { format!("m{id}") } else { String::new() },
        peer_ur_ls: urls,
        client_ur_ls: Vec::new(),
        is_learner,
    })
}

fn membership_command() -> impl Strategy<Value = Command> {
    let id = || 0..7u64;
    let strict = || prop::bool::weighted(0.7);
    let add = (id(), urls(), any::<bool>(), 0..3u64, strict()).prop_map(
        |(id, peer_urls, is_learner, max_learners, strict)| {
            Command::MemberAdd(wire::MemberAdd {
                id,
                peer_urls,
                is_learner,
                max_learners,
                strict,
            })
        },
    );
    let update = (id(), urls()).prop_map(|(id, peer_urls)| Command::MemberUpdate(wire::MemberUpdate { id, peer_urls }));
    let promote = (id(), strict()).prop_map(|(id, strict)| Command::MemberPromote(wire::MemberPromote { id, strict }));
    let remove = (id(), strict()).prop_map(|(id, strict)| Command::MemberRemove(wire::MemberRemove { id, strict }));
    let publish = (id(), prop::bool::weighted(0.1)).prop_map(|(id, wiped)| {
        Command::MemberPublish(wire::MemberPublish {
            id,
            name: format!("published {id}"),
            client_urls: vec![format!("http://client{id}:2379")],
            incarnation: if wiped { 99 } else { id },
        })
    });
    let members = prop::collection::vec(member(), 1..3);
    let init = (1..9u64, members)
        .prop_map(|(cluster_id, members)| Command::ClusterInit(wire::ClusterInit { cluster_id, members }));
    prop_oneof![
        8 => add,
        2 => update,
        4 => promote,
        3 => remove,
        8 => publish,
        1 => init,
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let grant = (0..4i64, 1..100i64).prop_map(|(id, ttl_secs)| Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs }));
    let revoke = (1..4i64, 0..4u64)
        .prop_map(|(id, expired_in_term)| Command::LeaseRevoke(wire::LeaseRevoke { id, expired_in_term }));
    let checkpoint = (1..4i64, 0..50i64, 1..4u64).prop_map(|(id, remaining_secs, term)| {
        Command::LeaseCheckpoint(wire::LeaseCheckpoint {
            term,
            remainders: vec![wire::LeaseRemainder { id, remaining_secs }],
        })
    });
    // Mostly cleared, or nothing else would ever run.
    let alarm = (0..2u64, 0..4i32, prop::bool::weighted(0.2)).prop_map(|(member_id, alarm, active)| {
        Command::AlarmSet(wire::AlarmSet {
            member_id,
            alarm,
            active,
        })
    });
    prop_oneof![
        30 => put().prop_map(Command::Put),
        8 => delete().prop_map(Command::DeleteRange),
        20 => txn().prop_map(Command::Txn),
        4 => (0..40i64).prop_map(|revision| Command::Compact(pb::CompactionRequest { revision, physical: false })),
        8 => grant,
        5 => revoke,
        4 => checkpoint,
        4 => membership_command(),
        3 => alarm,
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        12 => Just(Turn::Next),
        1 => Just(Turn::Skip),
        1 => Just(Turn::Restart),
        3 => Just(Turn::Repeat),
        1 => Just(Turn::Late),
    ]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let read_only = |txn: pb::TxnRequest| {
        let ranges = |ops: Vec<pb::RequestOp>| -> Vec<pb::RequestOp> {
            ops.into_iter()
                .filter(|op| matches!(op.request, Some(Request::RequestRange(_))))
                .collect()
        };
        pb::TxnRequest {
            compare: txn.compare,
            success: ranges(txn.success),
            failure: ranges(txn.failure),
        }
    };
    let step = prop_oneof![
        24 => (prop::collection::vec(command(), 1..5), 0..7u64, turn()).prop_map(|(commands, member, turn)| Step::Entry(commands, member, turn)),
        1 => Just(Step::Blank),
        6 => prop::collection::vec(range(), 1..4).prop_map(Step::Read),
        3 => txn().prop_map(read_only).prop_map(Step::Txn),
        3 => (1..20usize).prop_map(Step::Compact),
        1 => Just(Step::Flush),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// A cluster that grows and shrinks.
pub fn memberships() -> impl Strategy<Value = Vec<Step>> {
    let found = (prop::collection::vec(member(), 1..4)).prop_map(|members| {
        let init = Command::ClusterInit(wire::ClusterInit { cluster_id: 5, members });
        Step::Entry(vec![init], 0, Turn::Next)
    });
    let commands = prop::collection::vec(membership_command(), 1..4);
    let step = prop_oneof![
        30 => (commands, 0..7u64, turn()).prop_map(|(commands, member, turn)| Step::Entry(commands, member, turn)),
        2 => Just(Step::Flush),
        2 => Just(Step::Crash),
    ];
    (found, prop::collection::vec(step, 1..80)).prop_map(|(first, mut steps)| {
        steps.insert(0, first);
        steps
    })
}

//! Edges that chance would not find in a short sequence: a store that was never compacted, answers and requests at
//! their size limits, histories longer than one response.

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::compare::TargetUnion;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};

use crate::op::{Op, at};

/// Names and operations. The first needs servers that nobody has written to.
pub fn edges() -> Vec<(&'static str, Vec<Op>)> {
    vec![
        ("never compacted", never_compacted()),
        ("compaction keeps what it must", compaction()),
        ("a deletion among puts at the compacted revision", deletion_among_puts()),
        ("large requests", large_requests()),
        ("large answers", large_answers()),
        ("long history", long_history()),
        ("leases and their keys", leases()),
        ("nested transactions", nested()),
        ("one key twice in one transaction", one_key_twice()),
    ]
}

fn put(key: &'static str, value: impl Into<Bytes>) -> Op {
    Op::Put(PutRequest {
        key: Bytes::from(key),
        value: value.into(),
        prev_kv: true,
        ..PutRequest::default()
    })
}

fn leased(key: &'static str, lease: i64) -> Op {
    Op::Put(PutRequest {
        key: Bytes::from(key),
        lease,
        ..PutRequest::default()
    })
}

fn delete(key: &'static str) -> Op {
    Op::Delete(DeleteRangeRequest {
        key: Bytes::from(key),
        prev_kv: true,
        ..DeleteRangeRequest::default()
    })
}

fn all(revision: i64) -> Op {
    let zero = Bytes::from_static(b"\0");
    Op::Range(RangeRequest {
        key: zero.clone(),
        range_end: zero,
        revision,
        ..RangeRequest::default()
    })
}

fn compact(revision: i64) -> Op {
    Op::Compact(CompactionRequest {
        revision,
        physical: false,
    })
}

fn watch(start_revision: i64) -> WatchCreateRequest {
    let zero = Bytes::from_static(b"\0");
    WatchCreateRequest {
        key: zero.clone(),
        range_end: zero,
        start_revision,
        prev_kv: true,
        ..Default::default()
    }
}

/// Revision 1, compaction at 0 (accepted once), history from the very beginning.
fn never_compacted() -> Vec<Op> {
    vec![
        all(0),
        all(1),
        all(2),
        compact(1_000_000),
        Op::Watch(0, watch(1)),
        put("a", "1"),
        put("a", "2"),
        delete("a"),
        Op::Watch(0, watch(1)),
        all(2),
        all(3),
        all(4),
        compact(0),
        compact(0),
        compact(-1),
        all(1),
        Op::Watch(1, watch(1)),
        Op::Progress(1),
        compact(2),
        all(1),
        all(2),
        Op::Watch(1, watch(1)),
        Op::Watch(1, watch(2)),
        Op::Progress(0),
        Op::Progress(1),
    ]
}

/// Live keys survive, a deletion at the very revision is still watched, what is below is gone.
fn compaction() -> Vec<Op> {
    vec![
        put("a", "1"),
        put("a", "2"),
        put("b", "1"),
        delete("b"),
        put("c", "1"),
        compact(at(4)),
        all(at(3)),
        all(at(4)),
        all(at(5)),
        all(0),
        Op::Watch(0, watch(at(3))),
        Op::Watch(0, watch(at(4))),
        Op::Watch(
            0,
            WatchCreateRequest {
                filters: vec![1],
                ..watch(at(4))
            },
        ),
        Op::Watch(1, watch(at(7))),
        Op::Progress(1),
        delete("a"),
        compact(at(6)),
        Op::Watch(0, watch(at(6))),
        Op::Progress(1),
        put("d", "1"),
        Op::Progress(1),
        Op::Progress(0),
        compact(at(6)),
        compact(at(8)),
        all(at(5)),
    ]
}

fn deletion_among_puts() -> Vec<Op> {
    let success = vec![request_put("f"), request_delete("e"), request_put("g")];
    vec![
        put("e", "1"),
        Op::Txn(TxnRequest {
            success,
            ..TxnRequest::default()
        }),
        compact(at(2)),
        Op::Watch(1, watch(at(2))),
        all(at(2)),
    ]
}

fn request_put(key: &'static str) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: key.into(),
            ..PutRequest::default()
        })),
    }
}

fn request_delete(key: &'static str) -> RequestOp {
    let delete = DeleteRangeRequest {
        key: key.into(),
        ..DeleteRangeRequest::default()
    };
    RequestOp {
        request: Some(Request::RequestDeleteRange(delete)),
    }
}

/// Up to what a request may have and a byte more (a value of 1,572,837 or 1,572,838 bytes is the largest, by the length of
/// the member's id), well below and well above it, and above what the transport takes.
fn large_requests() -> Vec<Op> {
    let of = |bytes: usize| vec![b'x'; bytes];
    let many = |count: usize, bytes: usize| {
        let success = (0..count)
            .map(|n| {
                let put = PutRequest {
                    key: format!("big/{n}").into(),
                    value: of(bytes).into(),
                    ..Default::default()
                };
                RequestOp {
                    request: Some(Request::RequestPut(put)),
                }
            })
            .collect();
        Op::Txn(TxnRequest {
            success,
            ..TxnRequest::default()
        })
    };
    vec![
        put("a", of(1_500_000)),
        put("a", of(1_572_000)),
        put("a", of(1_572_824)),
        put("a", of(1_572_836)),
        put("a", of(1_572_837)),
        put("a", of(1_572_839)),
        put("a", of(1_572_864)),
        put("a", of(1_572_865)),
        put("a", of(1_573_500)),
        put("a", of(2_000_000)),
        put("a", of(2_097_152)),
        put("a", of(3_000_000)),
        many(3, 500_000),
        many(4, 500_000),
        Op::Put(PutRequest {
            key: of(1_000_000).into(),
            ..PutRequest::default()
        }),
        Op::Delete(DeleteRangeRequest {
            key: of(1_600_000).into(),
            ..Default::default()
        }),
        all(0),
    ]
}

/// A response of more than two MiB: split only where the watcher asked for it.
fn large_answers() -> Vec<Op> {
    let of = |bytes: usize| vec![b'x'; bytes];
    vec![
        put("a", of(900_000)),
        put("a", of(900_000)),
        put("a", of(900_000)),
        Op::Watch(
            0,
            WatchCreateRequest {
                fragment: true,
                ..watch(at(1))
            },
        ),
        Op::Watch(1, watch(at(1))),
        put("a", of(900_000)),
        all(0),
    ]
}

/// More revisions than one response of a watcher that catches up may hold.
fn long_history() -> Vec<Op> {
    let mut ops: Vec<Op> = (0..1_100).map(|n| put("a", n.to_string())).collect();
    ops.push(Op::Watch(0, watch(at(1))));
    ops.push(Op::Watch(
        1,
        WatchCreateRequest {
            prev_kv: false,
            ..watch(at(50))
        },
    ));
    ops.push(Op::Progress(0));
    ops.push(put("a", "last"));
    ops
}

fn leases() -> Vec<Op> {
    let time_to_live = |id| Op::TimeToLive(LeaseTimeToLiveRequest { id, keys: true });
    vec![
        Op::Grant(LeaseGrantRequest { id: 5, ttl: 1_000 }),
        Op::Grant(LeaseGrantRequest { id: 5, ttl: 1_000 }),
        Op::Grant(LeaseGrantRequest { id: 6, ttl: 1_000 }),
        leased("z", 5),
        leased("b", 5),
        leased("a", 6),
        time_to_live(5),
        leased("b", 6),
        time_to_live(5),
        time_to_live(6),
        Op::Put(PutRequest {
            key: "b".into(),
            ignore_lease: true,
            value: "1".into(),
            ..Default::default()
        }),
        time_to_live(6),
        put("a", "detached"),
        time_to_live(6),
        Op::Put(PutRequest {
            key: "z".into(),
            ignore_value: true,
            lease: 6,
            ..Default::default()
        }),
        time_to_live(6),
        delete("z"),
        leased("c", 6),
        leased("aa", 6),
        time_to_live(6),
        Op::Watch(0, watch(0)),
        Op::KeepAlive(vec![5, 404, 6, 0]),
        Op::Revoke(LeaseRevokeRequest { id: 6 }),
        Op::Revoke(LeaseRevokeRequest { id: 6 }),
        Op::Revoke(LeaseRevokeRequest { id: 5 }),
        time_to_live(5),
        leased("a", 5),
        all(0),
    ]
}

/// Compares of a nested transaction see the state before the outer one; its own header is there and empty.
fn nested() -> Vec<Op> {
    let op = |request| RequestOp { request: Some(request) };
    let put = |key: &'static str, value: &'static str| {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            prev_kv: true,
            ..Default::default()
        }))
    };
    let range = |key: &'static str| {
        op(Request::RequestRange(RangeRequest {
            key: key.into(),
            ..Default::default()
        }))
    };
    let delete = |key: &'static str| {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            prev_kv: true,
            ..Default::default()
        }))
    };
    let absent = |key: &'static str| Compare {
        target: 1,
        key: key.into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Compare::default()
    };
    let txn = |compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>| TxnRequest {
        compare,
        success,
        failure,
    };
    let inner = txn(
        vec![absent("a")],
        vec![put("b", "a was absent"), range("a")],
        vec![put("b", "a was there")],
    );
    let inside = |txn: TxnRequest| op(Request::RequestTxn(txn));
    let deep = (0..200).fold(txn(Vec::new(), vec![put("deep", "1")], Vec::new()), |inner, _| {
        txn(Vec::new(), vec![inside(inner)], Vec::new())
    });
    vec![
        Op::Watch(0, watch(0)),
        Op::Txn(txn(
            vec![],
            vec![
                put("a", "1"),
                inside(inner.clone()),
                range("b"),
                delete("a"),
                range("a"),
            ],
            vec![],
        )),
        Op::Txn(txn(
            vec![absent("a")],
            vec![delete("b"), inside(inner.clone())],
            vec![range("a")],
        )),
        Op::Txn(txn(vec![], vec![inside(inner.clone()), inside(inner.clone())], vec![])),
        Op::Txn(txn(vec![], vec![inside(txn(vec![], vec![], vec![]))], vec![])),
        Op::Txn(txn(vec![], vec![], vec![])),
        Op::Txn(txn(vec![], vec![inside(txn(vec![], vec![op_none()], vec![]))], vec![])),
        Op::Txn(deep),
        all(0),
    ]
}

/// The two ways in which etcd lets one transaction write a key twice. No compaction follows: that would end its
/// process if it came at such a revision.
fn one_key_twice() -> Vec<Op> {
    let op = |request| RequestOp { request: Some(request) };
    let put = |key: &'static str, value: &'static str| {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            prev_kv: true,
            ..Default::default()
        }))
    };
    let delete = |key: &'static str, range_end: &'static str| {
        let (key, range_end) = (key.into(), range_end.into());
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: true,
        }))
    };
    let read = || {
        op(Request::RequestRange(RangeRequest {
            key: "a".into(),
            range_end: "z".into(),
            ..Default::default()
        }))
    };
    let txn = |success: Vec<RequestOp>| TxnRequest {
        success,
        ..TxnRequest::default()
    };
    let inside = |success: Vec<RequestOp>| op(Request::RequestTxn(txn(success)));
    vec![
        Op::Watch(0, watch(0)),
        self::put("a", "1"),
        self::put("b", "1"),
        Op::Txn(txn(vec![delete("a", "\0"), read(), put("a", "2"), read()])),
        all(0),
        all(at(2)),
        all(at(3)),
        Op::Txn(txn(vec![put("b", "2"), put("a", "3"), delete("a", "\0"), read()])),
        all(0),
        all(at(4)),
        self::put("a", "4"),
        Op::Txn(txn(vec![
            inside(vec![put("a", "5"), read()]),
            inside(vec![delete("a", "")]),
            read(),
        ])),
        all(0),
        Op::Txn(txn(vec![inside(vec![delete("a", "")]), inside(vec![put("a", "6")])])),
        self::put("a", "7"),
        Op::Txn(txn(vec![inside(vec![put("a", "8")]), inside(vec![put("a", "9")])])),
        Op::Watch(1, watch(at(1))),
        all(0),
    ]
}

fn op_none() -> RequestOp {
    RequestOp { request: None }
}

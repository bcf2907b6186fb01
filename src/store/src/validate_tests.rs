use super::*;
use quorate_api::proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_of(key: &'static str) -> RequestOp {
    op(Request::RequestPut(PutRequest {
        key: key.into(),
        value: "0123456789".into(),
        ..Default::default()
    }))
}

fn delete_of(key: &'static str, end: &'static str) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    }))
}

fn branch(ops: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success: ops,
        ..Default::default()
    }
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(TxnRequest {
        success,
        failure,
        ..Default::default()
    }))
}

fn check(ops: Vec<RequestOp>) -> Result<(), Error> {
    txn(&branch(ops), 128)
}

#[test]
fn a_key_is_put_once_and_not_deleted_beside() {
    let dup = Err(Error::DuplicateKey);
    assert_eq!(check(vec![put_of("a"), put_of("b")]), Ok(()));
    assert_eq!(check(vec![put_of("a"), put_of("a")]), dup);
    assert_eq!(check(vec![put_of("b"), delete_of("a", "c")]), dup);
    assert_eq!(check(vec![put_of("c"), delete_of("a", "c")]), Ok(()));
    assert_eq!(check(vec![put_of("a"), delete_of("a", "")]), dup);
    assert_eq!(
        check(vec![delete_of("a", "m"), delete_of("b", "z"), delete_of("b", "")]),
        Ok(())
    );
    assert_eq!(check(vec![delete_of("a", "m"), delete_of("k", "z"), put_of("y")]), dup);
    // What etcd lets pass.
    assert_eq!(check(vec![put_of("b"), delete_of("a", "\0")]), Ok(()));
    assert_eq!(check(vec![put_of("b"), delete_of("c", "a")]), Ok(()));
    let both = TxnRequest {
        success: vec![put_of("a")],
        failure: vec![put_of("a")],
        ..Default::default()
    };
    assert_eq!(txn(&both, 128), Ok(()));
}

#[test]
fn the_rule_reaches_into_nested_transactions() {
    let dup = Err(Error::DuplicateKey);
    assert_eq!(check(vec![nested(vec![put_of("a")], vec![put_of("a")])]), Ok(()));
    assert_eq!(check(vec![nested(vec![put_of("a")], vec![]), put_of("a")]), dup);
    assert_eq!(
        check(vec![
            nested(vec![put_of("a")], vec![]),
            nested(vec![], vec![put_of("a")])
        ]),
        dup
    );
    assert_eq!(check(vec![nested(vec![put_of("b")], vec![]), delete_of("a", "c")]), dup);
    assert_eq!(check(vec![nested(vec![delete_of("a", "c")], vec![]), put_of("b")]), dup);
    assert_eq!(check(vec![nested(vec![put_of("a"), put_of("a")], vec![])]), dup);
    let (put, delete) = (
        nested(vec![put_of("b")], vec![]),
        nested(vec![delete_of("a", "c")], vec![]),
    );
    assert_eq!(check(vec![delete.clone(), put.clone()]), dup);
    assert_eq!(
        check(vec![put, delete]),
        Ok(()),
        "etcd looks only one way between siblings"
    );
}

/// A37: both the number of operations and the cost count what is nested.
#[test]
fn nested_txn_counts_toward_quota_and_op_limit() {
    let puts = |keys: &[&'static str]| keys.iter().map(|key| put_of(key)).collect::<Vec<_>>();
    let inner = nested(puts(&["a", "b"]), vec![]);
    assert_eq!(txn(&branch(vec![inner.clone()]), 3), Ok(()));
    assert_eq!(txn(&branch(vec![inner.clone()]), 2), Err(Error::TooManyOps));
    assert_eq!(txn(&branch(vec![inner.clone(), put_of("c")]), 4), Ok(()));
    let one = put_cost(&PutRequest {
        key: "a".into(),
        value: "0123456789".into(),
        ..Default::default()
    });
    assert_eq!(one, 256 + 1 + 10);
    let whole = TxnRequest {
        success: vec![put_of("c")],
        failure: vec![inner, put_of("d"), delete_of("x", "")],
        ..Default::default()
    };
    assert_eq!(txn_cost(&whole), 3 * one);
    assert_eq!(txn_cost(&branch(vec![delete_of("a", "b")])), 0);
    let compares = TxnRequest {
        compare: vec![
            Compare {
                key: "k".into(),
                ..Default::default()
            };
            3
        ],
        ..Default::default()
    };
    assert_eq!(txn(&compares, 2), Err(Error::TooManyOps));
}

/// A18, A21, A23: unknown numbers and missing parts are errors.
#[test]
fn unknown_enum_values_are_errors_everywhere() {
    let range_of = |sort_order, sort_target| RangeRequest {
        key: "k".into(),
        sort_order,
        sort_target,
        ..Default::default()
    };
    for (order, target) in [(3, 0), (0, 5), (-1, 0), (0, i32::MAX)] {
        let odd = range_of(order, target);
        assert_eq!(range(&odd), Err(Error::InvalidSortOption));
        assert_eq!(
            check(vec![op(Request::RequestRange(odd))]),
            Err(Error::InvalidSortOption)
        );
    }
    assert_eq!(range(&range_of(2, 4)), Ok(()));
    assert_eq!(check(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
    assert_eq!(check(vec![put_of("")]), Err(Error::EmptyKey));
    let compare = TxnRequest {
        compare: vec![Compare::default()],
        ..Default::default()
    };
    assert_eq!(txn(&compare, 128), Err(Error::EmptyKey));
}

#[test]
fn puts_that_keep_something_must_not_give_it() {
    let request = |ignore_value, ignore_lease| PutRequest {
        key: "k".into(),
        value: "v".into(),
        lease: 1,
        ignore_value,
        ignore_lease,
        prev_kv: false,
    };
    assert_eq!(put(&request(false, false)), Ok(()));
    assert_eq!(put(&request(true, false)), Err(Error::ValueProvided));
    assert_eq!(put(&request(false, true)), Err(Error::LeaseProvided));
}

#[test]
fn ttls_are_raised_and_limited() {
    assert_eq!(lease_ttl_min(10, 100), 2);
    assert_eq!(lease_ttl(-5, 2), Ok(2));
    assert_eq!(lease_ttl(60, 2), Ok(60));
    assert_eq!(lease_ttl(TTL_SECS_MAX + 1, 2), Err(Error::LeaseTtlTooLarge));
}

#[test]
fn many_nested_operations_are_checked_in_no_time() {
    let level = |depth: usize| -> Vec<RequestOp> {
        (0..42)
            .map(|n| {
                let key = Bytes::from(format!("{depth:03}{n:05}"));
                op(Request::RequestDeleteRange(DeleteRangeRequest {
                    key,
                    ..Default::default()
                }))
            })
            .collect()
    };
    let mut ops = level(0);
    for at in 0..42 {
        let deeper = (0..42).map(|n| nested(level(at * 42 + n), vec![])).collect();
        ops.push(nested(deeper, vec![]));
    }
    let request = branch(ops);
    assert_eq!(txn(&request, 1000), Ok(()));
    assert!(is_read_only(&TxnRequest::default()) && is_serializable(&TxnRequest::default()));
    assert!(!is_read_only(&request));
}

//! Transactions that etcd does not survive, kept out of the sequences.

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{RequestOp, TxnRequest};

/// etcd lets a transaction write one key twice in two ways: a delete with an open end beside a put, and a put in one
/// nested transaction whose key a later sibling deletes. Either can end its process for good (a put that ignores the
/// value it no longer has; a compaction at that very revision), so they stay out of here. What they do otherwise is
/// in `scripted.rs`, and that we survive them in `tests/e2e`.
pub fn keep_from_writing_twice(txn: &mut TxnRequest) {
    for branch in [&mut txn.success, &mut txn.failure] {
        for index in 0..branch.len() {
            let (earlier, rest) = branch.split_at_mut(index);
            if let Some(Request::RequestTxn(inner)) = &mut rest[0].request {
                keep_from_writing_twice(inner);
                let deletes_again = earlier
                    .iter()
                    .filter(|op| matches!(op.request, Some(Request::RequestTxn(_))))
                    .flat_map(put_keys)
                    .any(|key| deleted_spans(&rest[0]).iter().any(|span| covers(span, &key)));
                if deletes_again {
                    rest[0].request = Some(Request::RequestTxn(TxnRequest::default()));
                }
            }
        }
        let puts: Vec<Bytes> = branch.iter().flat_map(put_keys).collect();
        if !puts.is_empty() {
            branch.iter_mut().for_each(close_open_deletes);
        }
    }
}

fn put_keys(op: &RequestOp) -> Vec<Bytes> {
    match &op.request {
        Some(Request::RequestPut(put)) => vec![put.key.clone()],
        Some(Request::RequestTxn(inner)) => inner.success.iter().chain(&inner.failure).flat_map(put_keys).collect(),
        Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => Vec::new(),
    }
}

fn deleted_spans(op: &RequestOp) -> Vec<(Bytes, Bytes)> {
    match &op.request {
        Some(Request::RequestDeleteRange(delete)) => vec![(delete.key.clone(), delete.range_end.clone())],
        Some(Request::RequestTxn(inner)) => inner
            .success
            .iter()
            .chain(&inner.failure)
            .flat_map(deleted_spans)
            .collect(),
        Some(Request::RequestRange(_) | Request::RequestPut(_)) | None => Vec::new(),
    }
}

fn covers((key, end): &(Bytes, Bytes), asked: &Bytes) -> bool {
    match end.as_ref() {
        b"" => key == asked,
        b"\0" => key <= asked,
        _ => key <= asked && asked < end,
    }
}

/// Makes a delete to the end of all keys one to the last of ours but two, which is checked against the puts.
fn close_open_deletes(op: &mut RequestOp) {
    match &mut op.request {
        Some(Request::RequestDeleteRange(delete)) if delete.range_end.as_ref() == b"\0" => {
            delete.range_end = Bytes::from_static(b"zz");
        }
        Some(Request::RequestTxn(inner)) => {
            inner
                .success
                .iter_mut()
                .chain(&mut inner.failure)
                .for_each(close_open_deletes);
        }
        Some(Request::RequestRange(_) | Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => {}
    }
}

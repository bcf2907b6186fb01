//! One operation of a sequence, and its literal form.
//!
//! An operation is the request message itself. Its revision fields may be relative to the revision at which the
//! sequence began ([`at`]), so that the same sequence means the same on any server; [`Op::resolve`] makes them
//! absolute for one side.
//!
//! The literal form, one `("kind", "hex of the message")` a line with the message in words beside it, is what a
//! mismatch prints and what `regressions.rs` keeps.

use std::fmt::Write;

use prost::Message;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest, WatchCancelRequest, WatchCreateRequest, compare,
};

/// Centre of the numbers that stand for "so much after the first revision". No test uses real revisions this high.
const RELATIVE: i64 = 1 << 40;
const RELATIVE_REACH: u64 = 1 << 20;

/// The revision `delta` after the start of the sequence.
pub fn at(delta: i64) -> i64 {
    RELATIVE + delta
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    /// Grants and at once revokes what was granted: for ids the server picks and for lives too short to wait for.
    GrantAndRevoke(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases(LeaseLeasesRequest),
    /// One stream: a request per id, then the half-close.
    KeepAlive(Vec<i64>),
    /// On watch stream 0 or 1.
    Watch(usize, WatchCreateRequest),
    Cancel(usize, WatchCancelRequest),
    Progress(usize),
}

impl Op {
    /// This operation with the relative revisions made absolute.
    pub fn resolve(&self, base: i64) -> Self {
        let mut op = self.clone();
        let fix = |revision: &mut i64| {
            if revision.abs_diff(RELATIVE) < RELATIVE_REACH {
                *revision += base - RELATIVE;
            }
        };
        match &mut op {
            Op::Range(range) | Op::RangeStream(range) => resolve_range(range, &fix),
            Op::Txn(txn) => resolve_txn(txn, &fix),
            Op::Compact(compact) => fix(&mut compact.revision),
            Op::Watch(_, create) => fix(&mut create.start_revision),
            Op::Put(_)
            | Op::Delete(_)
            | Op::Grant(_)
            | Op::GrantAndRevoke(_)
            | Op::Revoke(_)
            | Op::TimeToLive(_)
            | Op::Leases(_)
            | Op::KeepAlive(_)
            | Op::Cancel(..)
            | Op::Progress(_) => {}
        }
        op
    }

    /// `("kind", "hex")`.
    pub fn literal(&self) -> (String, String) {
        let (kind, bytes) = match self {
            Op::Range(m) => ("range".to_owned(), m.encode_to_vec()),
            Op::RangeStream(m) => ("range stream".to_owned(), m.encode_to_vec()),
            Op::Put(m) => ("put".to_owned(), m.encode_to_vec()),
            Op::Delete(m) => ("delete".to_owned(), m.encode_to_vec()),
            Op::Txn(m) => ("txn".to_owned(), m.encode_to_vec()),
            Op::Compact(m) => ("compact".to_owned(), m.encode_to_vec()),
            Op::Grant(m) => ("grant".to_owned(), m.encode_to_vec()),
            Op::GrantAndRevoke(m) => ("grant+revoke".to_owned(), m.encode_to_vec()),
            Op::Revoke(m) => ("revoke".to_owned(), m.encode_to_vec()),
            Op::TimeToLive(m) => ("time to live".to_owned(), m.encode_to_vec()),
            Op::Leases(m) => ("leases".to_owned(), m.encode_to_vec()),
            Op::KeepAlive(ids) => (
                "keep alive".to_owned(),
                ids.iter().flat_map(|id| id.to_be_bytes()).collect(),
            ),
            Op::Watch(stream, m) => (format!("watch {stream}"), m.encode_to_vec()),
            Op::Cancel(stream, m) => (format!("cancel {stream}"), m.encode_to_vec()),
            Op::Progress(stream) => (format!("progress {stream}"), Vec::new()),
        };
        (kind, hex(&bytes))
    }

    /// Reads a literal back.
    pub fn from_literal(kind: &str, message: &str) -> Self {
        let bytes = unhex(message);
        let b = bytes.as_slice();
        let broken = "a kept literal decodes";
        match kind {
            "range" => Op::Range(Message::decode(b).expect(broken)),
            "range stream" => Op::RangeStream(Message::decode(b).expect(broken)),
            "put" => Op::Put(Message::decode(b).expect(broken)),
            "delete" => Op::Delete(Message::decode(b).expect(broken)),
            "txn" => Op::Txn(Message::decode(b).expect(broken)),
            "compact" => Op::Compact(Message::decode(b).expect(broken)),
            "grant" => Op::Grant(Message::decode(b).expect(broken)),
            "grant+revoke" => Op::GrantAndRevoke(Message::decode(b).expect(broken)),
            "revoke" => Op::Revoke(Message::decode(b).expect(broken)),
            "time to live" => Op::TimeToLive(Message::decode(b).expect(broken)),
            "leases" => Op::Leases(Message::decode(b).expect(broken)),
            "keep alive" => Op::KeepAlive(
                b.chunks(8)
                    .map(|eight| i64::from_be_bytes(eight.try_into().expect("whole numbers")))
                    .collect(),
            ),
            "watch 0" => Op::Watch(0, Message::decode(b).expect(broken)),
            "watch 1" => Op::Watch(1, Message::decode(b).expect(broken)),
            "cancel 0" => Op::Cancel(0, Message::decode(b).expect(broken)),
            "cancel 1" => Op::Cancel(1, Message::decode(b).expect(broken)),
            "progress 0" => Op::Progress(0),
            "progress 1" => Op::Progress(1),
            other => panic!("no operation is called {other:?}"),
        }
    }
}

/// A sequence as it goes into `regressions.rs`.
pub fn literal(ops: &[Op]) -> String {
    let mut text = String::from("&[\n");
    for op in ops {
        let (kind, message) = op.literal();
        let _ = writeln!(text, "    ({kind:?}, {message:?}), // {op:?}");
    }
    text.push(']');
    text
}

fn resolve_range(range: &mut RangeRequest, fix: &impl Fn(&mut i64)) {
    fix(&mut range.revision);
    fix(&mut range.min_mod_revision);
    fix(&mut range.max_mod_revision);
    fix(&mut range.min_create_revision);
    fix(&mut range.max_create_revision);
}

fn resolve_txn(txn: &mut TxnRequest, fix: &impl Fn(&mut i64)) {
    for compare in &mut txn.compare {
        match &mut compare.target_union {
            Some(compare::TargetUnion::CreateRevision(r) | compare::TargetUnion::ModRevision(r)) => fix(r),
            Some(
                compare::TargetUnion::Version(_) | compare::TargetUnion::Value(_) | compare::TargetUnion::Lease(_),
            )
            | None => {}
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => resolve_range(range, fix),
            Some(Request::RequestTxn(inner)) => resolve_txn(inner, fix),
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => {}
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits"))
        .collect()
}

#[test]
fn a_literal_reads_back() {
    let ops = crate::generate::sequence(7, 500);
    for op in &ops {
        let (kind, message) = op.literal();
        assert_eq!(&Op::from_literal(&kind, &message), op);
    }
}

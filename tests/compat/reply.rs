//! What a server said, in a form that two servers can be compared in.
//!
//! [`Normal`] removes exactly what may differ: the ids of cluster and member and the raft term (each checked against
//! what this server calls itself, so a missing or foreign one still shows), the revision at which the sequence began,
//! a lease id the server picked, the seconds that went by, and the order of lists that have none.

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_api::proto::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest,
    TxnResponse, WatchResponse,
};
use quorate_api::proto::mvccpb::{Event, KeyValue};
use tonic::Status;

use crate::op::Op;

/// Revision 1000 of a comparison is the revision at which the sequence began.
const BASE: i64 = 1_000;
/// Stands for a lease id that the server picked.
const PICKED_LEASE: i64 = 7_777;
/// A lease's remaining seconds may have fallen by this much since it was granted; more is a finding.
const ELAPSED_MAX: i64 = 300;

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    /// The answer, and what a second, physical compaction at the same revision said.
    Compact(CompactionResponse, Box<Reply>),
    Grant(LeaseGrantResponse),
    GrantAndRevoke(LeaseGrantResponse, Box<Reply>),
    Revoke(LeaseRevokeResponse),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    KeepAlive(Vec<LeaseKeepAliveResponse>, Box<Reply>),
    /// Everything on a watch stream that is not an event, until the operation was certainly done.
    Watch(Vec<WatchResponse>),
    Error {
        code: i32,
        message: String,
    },
    /// Nothing was to be sent.
    Nothing,
    /// A stream ended with OK.
    End,
}

/// One event as a watcher saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub stream: usize,
    pub watch_id: i64,
    /// The revision in the header of the response that brought it.
    pub header: i64,
    pub event: Event,
}

/// One operation's whole effect on what clients see.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub reply: Reply,
    /// What each watcher was sent, in order, grouped by watcher.
    pub seen: Vec<Seen>,
    /// What happened to the store, as a watcher of everything saw it.
    pub recorded: Vec<Event>,
    /// What this server did against the rules, whatever the other one does.
    pub broken: Vec<String>,
}

impl Step {
    pub fn only(reply: Reply) -> Self {
        Self {
            reply,
            seen: Vec::new(),
            recorded: Vec::new(),
            broken: Vec::new(),
        }
    }
}

impl Reply {
    pub fn error(code: tonic::Code, message: &str) -> Self {
        Self::Error {
            code: code as i32,
            message: message.to_owned(),
        }
    }

    pub fn from_status(status: &Status) -> Self {
        Self::error(status.code(), status.message())
    }
}

/// How one server names itself and where the sequence began on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Normal {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
    pub base: i64,
}

impl Normal {
    pub fn revision(&self, revision: &mut i64) {
        if *revision > 0 {
            *revision += BASE - self.base;
        }
    }

    pub fn header(&self, header: &mut Option<ResponseHeader>) {
        let Some(header) = header else { return };
        // 1 for "as it should be"; anything else stays as it is and shows
        if header.cluster_id == self.cluster_id {
            header.cluster_id = 1;
        }
        if header.member_id == self.member_id {
            header.member_id = 1;
        }
        if header.raft_term == self.raft_term {
            header.raft_term = 1;
        }
        self.revision(&mut header.revision);
    }

    pub fn key_value(&self, kv: &mut KeyValue) {
        self.revision(&mut kv.create_revision);
        self.revision(&mut kv.mod_revision);
    }

    pub fn event(&self, event: &mut Event) {
        for kv in event.kv.iter_mut().chain(&mut event.prev_kv) {
            self.key_value(kv);
        }
    }

    pub fn seen(&self, seen: &mut Seen) {
        self.revision(&mut seen.header);
        self.event(&mut seen.event);
    }

    /// `op` as it was sent, since a txn's answers only make sense beside its questions.
    pub fn reply(&self, op: &Op, reply: &mut Reply) {
        match (op, reply) {
            (Op::Range(request) | Op::RangeStream(request), Reply::Range(answer)) => self.range(request, answer),
            (Op::Txn(request), Reply::Txn(answer)) => self.txn(request, answer),
            (_, Reply::Put(answer)) => {
                self.header(&mut answer.header);
                answer.prev_kv.iter_mut().for_each(|kv| self.key_value(kv));
            }
            (_, Reply::Delete(answer)) => {
                self.header(&mut answer.header);
                answer.prev_kvs.iter_mut().for_each(|kv| self.key_value(kv));
            }
            (_, Reply::Compact(answer, again)) => {
                self.header(&mut answer.header);
                self.reply(op, again);
            }
            (_, Reply::Grant(answer)) => self.header(&mut answer.header),
            (Op::GrantAndRevoke(request), Reply::GrantAndRevoke(answer, revoked)) => {
                self.header(&mut answer.header);
                if request.id == 0 && answer.id > 0 {
                    answer.id = PICKED_LEASE;
                }
                self.reply(op, revoked);
            }
            (_, Reply::Revoke(answer)) => self.header(&mut answer.header),
            (_, Reply::TimeToLive(answer)) => {
                self.header(&mut answer.header);
                if answer.granted_ttl > 0
                    && (answer.granted_ttl - ELAPSED_MAX..=answer.granted_ttl).contains(&answer.ttl)
                {
                    answer.ttl = answer.granted_ttl;
                }
                answer.keys.sort();
            }
            (_, Reply::Leases(answer)) => {
                self.header(&mut answer.header);
                answer.leases.sort_by_key(|lease| lease.id);
            }
            (_, Reply::KeepAlive(answers, end)) => {
                answers.iter_mut().for_each(|answer| self.header(&mut answer.header));
                self.reply(op, end);
            }
            (_, Reply::Watch(answers)) => answers.iter_mut().for_each(|answer| {
                self.header(&mut answer.header);
                self.revision(&mut answer.compact_revision);
            }),
            // an answer that does not belong to its question is left as it is, and differs
            (_, Reply::Range(_) | Reply::Txn(_) | Reply::GrantAndRevoke(..)) => {}
            (_, Reply::Error { .. } | Reply::Nothing | Reply::End) => {}
        }
    }

    fn range(&self, request: &RangeRequest, answer: &mut RangeResponse) {
        self.header(&mut answer.header);
        answer.kvs.iter_mut().for_each(|kv| self.key_value(kv));
        order_ties(request, &mut answer.kvs);
    }

    fn txn(&self, request: &TxnRequest, answer: &mut TxnResponse) {
        self.header(&mut answer.header);
        for_each_pair(request, answer, &mut |question, response| match (question, response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(answer))) => {
                self.range(request, answer);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(answer))) => self.txn(request, answer),
            (_, Some(Response::ResponsePut(answer))) => {
                self.header(&mut answer.header);
                answer.prev_kv.iter_mut().for_each(|kv| self.key_value(kv));
            }
            (_, Some(Response::ResponseDeleteRange(answer))) => {
                self.header(&mut answer.header);
                answer.prev_kvs.iter_mut().for_each(|kv| self.key_value(kv));
            }
            _ => {}
        });
    }
}

/// Each operation of the branch that ran, with its answer. One level; nested ones are the caller's.
pub fn for_each_pair(
    request: &TxnRequest,
    answer: &mut TxnResponse,
    visit: &mut impl FnMut(&Option<Request>, &mut Option<Response>),
) {
    let branch = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, response) in branch.iter().zip(&mut answer.responses) {
        visit(&op.request, &mut response.response);
    }
}

/// Keys that tie in the asked order may come in any order: puts them in key order, if the asked order was kept.
fn order_ties(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let descending = request.sort_order == 2;
    let attribute = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, Vec::new()),
        2 => (kv.create_revision, Vec::new()),
        3 => (kv.mod_revision, Vec::new()),
        4 => (0, kv.value.to_vec()), // all equal when only keys were asked for
        _ => (0, kv.key.to_vec()),
    };
    if request.sort_target == 0 {
        return;
    }
    let kept = kvs.windows(2).all(|two| {
        let (left, right) = (attribute(&two[0]), attribute(&two[1]));
        if descending { left >= right } else { left <= right }
    });
    if kept {
        kvs.sort_by(|left, right| {
            let by_attribute = attribute(left).cmp(&attribute(right));
            let by_attribute = if descending {
                by_attribute.reverse()
            } else {
                by_attribute
            };
            by_attribute.then_with(|| left.key.cmp(&right.key))
        });
    }
}

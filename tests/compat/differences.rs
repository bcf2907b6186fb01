//! Where etcd 3.4, Debian's, differs from 3.7, which we follow. Every known difference is a row here; anything else
//! that differs is a fault.
//!
//! Rows apply only when the reference is of the 3.4 line. A row says what 3.7 answers where 3.4 answers otherwise, so
//! the comparison stays exact. Each row must be met in every run of the suite, or it is no longer true and must go.

use std::sync::atomic::{AtomicU64, Ordering};

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use tonic::Code;

use crate::op::Op;
use crate::reply::{Reply, Seen, Step, for_each_pair};

pub struct Difference {
    pub name: &'static str,
    /// Where it is written down.
    pub cites: &'static str,
    rule: Rule,
    met: AtomicU64,
}

enum Rule {
    /// What 3.7 answers to a request that 3.4 must not even be sent, or has no call for.
    Unasked(fn(&Op) -> Option<Reply>),
    /// Turns what 3.4 answered into what 3.7 answers; says whether that changed anything.
    Answered(fn(&Op, &Facts, &mut Step) -> bool),
    /// Counted by name from where the suite deals with it.
    Noted,
}

/// What the operation met on the 3.4 side.
pub struct Facts {
    /// Whether 3.7 would have answered this progress request.
    pub progress_was_due: bool,
    /// The refusal that comes first in 3.7's order, where 3.4 refused a transaction before running it.
    pub first_refusal: Option<Reply>,
    /// Deletions that 3.4 forgot to send, each with its place among what its watcher saw.
    pub forgotten: Vec<(usize, Seen)>,
}

pub static DIFFERENCES: [Difference; 8] = [
    Difference {
        name: "an unknown sort order or target is refused (3.4 ignores the order, and the target ends the process)",
        cites: "grpc-semantics.md §4.3 step 1, errors.md §2, advisories.md A18 and E1",
        rule: Rule::Unasked(unknown_sort),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "RangeStream refuses sort orders and revision filters",
        cites: "grpc-semantics.md §4.4, errors.md §2",
        rule: Rule::Unasked(stream_refusals),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "RangeStream adds up to what Range answers (3.4 has only Range)",
        cites: "grpc-semantics.md §4.4",
        rule: Rule::Answered(|op, _, _| matches!(op, Op::RangeStream(_))),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "keys_only leaves the lease out",
        cites: "grpc-semantics.md §4.3 step 6",
        rule: Rule::Answered(keys_only),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "a watch from a negative revision is refused at creation",
        cites: "grpc-semantics.md §8.2",
        rule: Rule::Answered(negative_start),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "progress is answered only when every watcher of the stream has caught up",
        cites: "grpc-semantics.md §8.5",
        rule: Rule::Answered(progress),
        met: AtomicU64::new(0),
    },
    Difference {
        name: "of several reasons to refuse a transaction, the first in the order of its operations is given",
        cites: "grpc-semantics.md §6 `pre-checks`; 3.4 checks all puts before all ranges, and a put's key before its lease",
        rule: Rule::Answered(first_refusal),
        met: AtomicU64::new(0),
    },
    Difference {
        name: FORGOTTEN,
        cites: "grpc-semantics.md §7 `kept`, advisories.md B13 and B47",
        rule: Rule::Noted,
        met: AtomicU64::new(0),
    },
];

const FORGOTTEN: &str = "a deletion at exactly the compacted revision is still watched from there";

/// The answer to `op` where the reference is not asked.
pub fn unasked(op: &Op) -> Option<Reply> {
    DIFFERENCES.iter().find_map(|row| match row.rule {
        Rule::Unasked(rule) => rule(op).inspect(|_| row.count()),
        Rule::Answered(_) | Rule::Noted => None,
    })
}

/// Makes 3.4's step what 3.7's would be.
pub fn translate(op: &Op, facts: Facts, step: &mut Step) {
    for row in &DIFFERENCES {
        if let Rule::Answered(rule) = row.rule
            && rule(op, &facts, step)
        {
            row.count();
        }
    }
    for (place, forgotten) in facts.forgotten {
        note(FORGOTTEN);
        let watcher = (forgotten.stream, forgotten.watch_id);
        let first = step
            .seen
            .iter()
            .position(|seen| (seen.stream, seen.watch_id) >= watcher);
        let place = first.unwrap_or(step.seen.len()) + place;
        step.seen.insert(place.min(step.seen.len()), forgotten);
    }
}

/// Rows that nothing has met yet.
pub fn unmet() -> Vec<String> {
    let unmet = DIFFERENCES.iter().filter(|row| row.met.load(Ordering::Relaxed) == 0);
    unmet.map(|row| format!("{} ({})", row.name, row.cites)).collect()
}

/// How often each row was met.
pub fn tally() -> String {
    DIFFERENCES
        .iter()
        .map(|row| format!("{:>8}  {}\n", row.met.load(Ordering::Relaxed), row.name))
        .collect()
}

fn note(name: &str) {
    DIFFERENCES
        .iter()
        .filter(|row| row.name == name)
        .for_each(Difference::count);
}

impl Difference {
    fn count(&self) {
        self.met.fetch_add(1, Ordering::Relaxed);
    }
}

fn unknown_sort(op: &Op) -> Option<Reply> {
    let range = match op {
        Op::Range(range) => range,
        Op::Txn(TxnRequest { success, .. }) => match success.as_slice() {
            [only] => match &only.request {
                Some(Request::RequestRange(range)) => range,
                _ => return None,
            },
            _ => return None,
        },
        _ => return None,
    };
    let known = (0..=2).contains(&range.sort_order) && (0..=4).contains(&range.sort_target);
    (!known).then(|| Reply::error(Code::InvalidArgument, "etcdserver: invalid sort option"))
}

fn stream_refusals(op: &Op) -> Option<Reply> {
    let Op::RangeStream(range) = op else { return None };
    if range.key.is_empty() {
        return None;
    }
    // ascending by key is the order it streams in anyway
    let streams = range.sort_order == 0 || (range.sort_order == 1 && range.sort_target == 0);
    if !streams {
        return Some(Reply::error(
            Code::Unimplemented,
            "RangeStream does not support custom sort orders",
        ));
    }
    let filters = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    (filters != [0; 4]).then(|| Reply::error(Code::Unimplemented, "RangeStream does not support revision filters"))
}

fn keys_only(op: &Op, _: &Facts, step: &mut Step) -> bool {
    match (op, &mut step.reply) {
        (Op::Range(request) | Op::RangeStream(request), Reply::Range(answer)) => drop_leases(request, answer),
        (Op::Txn(request), Reply::Txn(answer)) => drop_leases_in_txn(request, answer),
        _ => false,
    }
}

fn drop_leases(request: &RangeRequest, answer: &mut RangeResponse) -> bool {
    // sorting by value has to read the pairs whole, and then the lease stays
    if !request.keys_only || request.sort_target == 4 {
        return false;
    }
    let leased = answer.kvs.iter_mut().filter(|kv| kv.lease != 0);
    leased.map(|kv| kv.lease = 0).count() > 0
}

fn drop_leases_in_txn(request: &TxnRequest, answer: &mut TxnResponse) -> bool {
    let mut changed = false;
    for_each_pair(request, answer, &mut |question, response| {
        changed |= match (question, response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(answer))) => {
                drop_leases(request, answer)
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(answer))) => {
                drop_leases_in_txn(request, answer)
            }
            _ => false,
        };
    });
    changed
}

fn negative_start(op: &Op, _: &Facts, step: &mut Step) -> bool {
    let (Op::Watch(_, create), Reply::Watch(answers)) = (op, &mut step.reply) else {
        return false;
    };
    // checked before anything else about the watch, so that an empty range is not what it is refused for
    if create.start_revision >= 0 || answers.is_empty() {
        return false;
    }
    answers.truncate(1);
    answers[0].watch_id = -1;
    answers[0].canceled = true;
    answers[0].cancel_reason = "etcdserver: mvcc: required revision has been compacted".to_owned();
    true
}

/// Whether `reply` is one of the refusals that a transaction gets before anything of it runs.
pub fn is_precheck(txn: &TxnRequest, reply: &Reply) -> bool {
    if has_empty_op(txn) {
        return false; // refused as malformed, which shares a text with the refusals below
    }
    let texts = [
        "etcdserver: requested lease not found",
        "etcdserver: key not found",
        "etcdserver: mvcc: required revision is a future revision",
        "etcdserver: mvcc: required revision has been compacted",
    ];
    matches!(reply, Reply::Error { message, .. } if texts.contains(&message.as_str()))
}

fn has_empty_op(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        None => true,
        Some(Request::RequestTxn(inner)) => has_empty_op(inner),
        Some(Request::RequestRange(_) | Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
    })
}

fn first_refusal(_: &Op, facts: &Facts, step: &mut Step) -> bool {
    match &facts.first_refusal {
        Some(first) if *first != step.reply => {
            step.reply = first.clone();
            true
        }
        _ => false,
    }
}

fn progress(op: &Op, facts: &Facts, step: &mut Step) -> bool {
    let (Op::Progress(_), Reply::Watch(answers)) = (op, &mut step.reply) else {
        return false;
    };
    if facts.progress_was_due {
        return false;
    }
    let before = answers.len();
    answers.retain(|answer| answer.watch_id != -1);
    answers.len() < before
}

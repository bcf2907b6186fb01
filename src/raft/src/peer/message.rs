//! openraft's types as messages, and back. Reading checks the shape of everything; what it means is for the receiver.

use crate::batch;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, position};
use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::vote::leader_id_std::LeaderId;
use quorate_api::proto::quorate::peer as pb;

/// Terms beyond this are forged: one election every nanosecond would take 146 years to get there, and what follows must
/// still be countable.
const TERM_MAX: u64 = 1 << 62;
const INDEX_MAX: u64 = 1 << 62;

/// A message whose parts don't fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("term {0} is out of bounds")]
    Term(u64),
    #[error("index {0} is out of bounds")]
    Index(u64),
    #[error("entry {found} where {wanted} should follow")]
    Gap { wanted: u64, found: u64 },
    #[error("entry {index} is of term {term}, after one of term {before}")]
    TermFalls { index: u64, term: u64, before: u64 },
    #[error("entry {index} is of term {term}, later than its leader's {leader}")]
    Future { index: u64, term: u64, leader: u64 },
    #[error("only a leader's vote may come with this")]
    NotCommitted,
    #[error("a candidate's vote may not be a leader's")]
    Committed,
    #[error("entry {index}: {reason}")]
    Payload { index: u64, reason: String },
}

pub fn put_vote(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub fn get_vote(vote: Option<pb::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed::Missing("vote"))?;
    if vote.term > TERM_MAX {
        return Err(Malformed::Term(vote.term));
    }
    Ok(Vote {
        leader_id: LeaderId {
            term: vote.term,
            voted_for: vote.voted_for,
        },
        committed: vote.committed,
    })
}

fn leaders_vote(vote: Option<pb::Vote>) -> Result<Vote, Malformed> {
    let vote = get_vote(vote)?;
    if vote.committed {
        Ok(vote)
    } else {
        Err(Malformed::NotCommitted)
    }
}

pub fn put_log_id(id: &LogId) -> pb::LogId {
    pb::LogId {
        term: id.leader_id.term,
        index: position(id.index),
    }
}

pub fn get_log_id(id: pb::LogId) -> Result<LogId, Malformed> {
    if id.term > TERM_MAX {
        return Err(Malformed::Term(id.term));
    }
    match id.index.checked_sub(1) {
        Some(index) if index < INDEX_MAX => Ok(log_id(id.term, index)),
        _ => Err(Malformed::Index(id.index)),
    }
}

pub fn put_append(request: AppendEntriesRequest<TypeConfig>) -> pb::Append {
    let entry = |entry: Entry| pb::Entry {
        term: entry.log_id.leader_id.term,
        index: position(entry.log_id.index),
        payload: batch::encode(&entry.payload),
    };
    pb::Append {
        vote: Some(put_vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(put_log_id),
        entries: request.entries.into_iter().map(entry).collect(),
        commit: request.leader_commit.as_ref().map(put_log_id),
    }
}

/// Entries follow each other and `prev`; terms don't fall, and none is later than the leader's.
pub fn get_append(append: pb::Append) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let vote = leaders_vote(append.vote)?;
    let leader = vote.leader_id.term;
    let prev_log_id = append.prev.map(get_log_id).transpose()?;
    let leader_commit = append.commit.map(get_log_id).transpose()?;
    let mut before = prev_log_id;
    let mut entries = Vec::with_capacity(append.entries.len());
    for entry in append.entries {
        let id = get_log_id(pb::LogId {
            term: entry.term,
            index: entry.index,
        })?;
        let (wanted, term_before) = before.map_or((0, 0), |id| (id.index + 1, id.leader_id.term));
        if id.index != wanted {
            return Err(Malformed::Gap {
                wanted: position(wanted),
                found: entry.index,
            });
        }
        if entry.term < term_before {
            return Err(Malformed::TermFalls {
                index: entry.index,
                term: entry.term,
                before: term_before,
            });
        }
        if entry.term > leader {
            return Err(Malformed::Future {
                index: entry.index,
                term: entry.term,
                leader,
            });
        }
        let payload = batch::decode(entry.payload).map_err(|error| Malformed::Payload {
            index: entry.index,
            reason: error.to_string(),
        })?;
        entries.push(Entry::new(id, payload));
        before = Some(id);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

pub fn put_append_answer(answer: &AppendEntriesResponse<TypeConfig>) -> pb::AppendAnswer {
    use pb::append_answer::Result as Wire;
    let result = match answer {
        AppendEntriesResponse::Success => Wire::Stored(true),
        AppendEntriesResponse::PartialSuccess(upto) => match upto {
            Some(upto) => Wire::Partly(put_log_id(upto)),
            None => Wire::Stored(false),
        },
        AppendEntriesResponse::Conflict => Wire::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => Wire::HigherVote(put_vote(vote)),
    };
    pb::AppendAnswer { result: Some(result) }
}

pub fn get_append_answer(answer: pb::AppendAnswer) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use pb::append_answer::Result as Wire;
    Ok(match answer.result.ok_or(Malformed::Missing("result"))? {
        Wire::Stored(true) => AppendEntriesResponse::Success,
        Wire::Stored(false) => AppendEntriesResponse::PartialSuccess(None),
        Wire::Partly(upto) => AppendEntriesResponse::PartialSuccess(Some(get_log_id(upto)?)),
        Wire::Conflict(_) => AppendEntriesResponse::Conflict,
        Wire::HigherVote(vote) => AppendEntriesResponse::HigherVote(get_vote(Some(vote))?),
    })
}

pub fn put_vote_request(request: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(put_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(put_log_id),
        transfer: request.leadership_transfer,
    }
}

pub fn get_vote_request(request: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = get_vote(request.vote)?;
    if vote.committed {
        return Err(Malformed::Committed);
    }
    let last = request.last.map(get_log_id).transpose()?;
    let mut made = VoteRequest::new(vote, last);
    made.leadership_transfer = request.transfer;
    Ok(made)
}

pub fn put_vote_answer(answer: &VoteResponse<TypeConfig>) -> pb::VoteAnswer {
    pb::VoteAnswer {
        vote: Some(put_vote(&answer.vote)),
        last: answer.last_log_id.as_ref().map(put_log_id),
        granted: answer.vote_granted,
    }
}

pub fn get_vote_answer(answer: pb::VoteAnswer) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let vote = get_vote(answer.vote)?;
    let last = answer.last.map(get_log_id).transpose()?;
    Ok(VoteResponse::new(vote, last, answer.granted))
}

pub fn put_transfer(request: &TransferLeaderRequest<TypeConfig>) -> pb::Transfer {
    pb::Transfer {
        from: Some(put_vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(put_log_id),
    }
}

pub fn get_transfer(request: pb::Transfer) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let from = leaders_vote(request.from)?;
    let last = request.last.map(get_log_id).transpose()?;
    Ok(TransferLeaderRequest::new(from, request.to, last))
}

/// A forwarded batch, which must be one.
pub fn get_forwarded(payload: Bytes) -> Result<batch::Batch, Malformed> {
    match batch::decode(payload) {
        Ok(openraft::EntryPayload::Normal(batch)) => Ok(batch),
        Ok(_) => Err(Malformed::Missing("batch")),
        Err(error) => Err(Malformed::Payload {
            index: 0,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(entries: &[(u64, u64)], prev: Option<(u64, u64)>, leader: u64) -> pb::Append {
        let id = |(term, index): (u64, u64)| pb::LogId { term, index };
        pb::Append {
            vote: Some(pb::Vote {
                term: leader,
                voted_for: 1,
                committed: true,
            }),
            prev: prev.map(id),
            entries: entries
                .iter()
                .map(|(term, index)| pb::Entry {
                    term: *term,
                    index: *index,
                    payload: Bytes::from_static(&[0]),
                })
                .collect(),
            commit: None,
        }
    }

    #[test]
    fn appends_read_back_as_they_were_sent() {
        let sent = append(&[(2, 6), (3, 7)], Some((2, 5)), 3);
        let read = get_append(sent.clone()).unwrap();
        assert_eq!(put_append(read), sent);
        let first = append(&[(1, 1)], None, 1);
        assert_eq!(put_append(get_append(first.clone()).unwrap()), first);
    }

    /// A19, A46: bounds come from what is there, never from the message.
    #[test]
    fn append_with_gap_or_overlap_is_an_error() {
        let gap = |entries: &[(u64, u64)], prev| get_append(append(entries, prev, 9)).unwrap_err();
        assert_eq!(gap(&[(2, 7)], Some((2, 5))), Malformed::Gap { wanted: 6, found: 7 });
        assert_eq!(gap(&[(2, 5)], Some((2, 5))), Malformed::Gap { wanted: 6, found: 5 });
        assert_eq!(
            gap(&[(2, 6), (2, 6)], Some((2, 5))),
            Malformed::Gap { wanted: 7, found: 6 }
        );
        assert_eq!(gap(&[(2, 2)], None), Malformed::Gap { wanted: 1, found: 2 });
        assert_eq!(gap(&[(2, 0)], None), Malformed::Index(0));
        assert_eq!(gap(&[(2, u64::MAX)], None), Malformed::Index(u64::MAX));
        let falls = Malformed::TermFalls {
            index: 6,
            term: 1,
            before: 2,
        };
        assert_eq!(gap(&[(1, 6)], Some((2, 5))), falls);
        let future = Malformed::Future {
            index: 6,
            term: 10,
            leader: 9,
        };
        assert_eq!(gap(&[(10, 6)], Some((2, 5))), future);
    }

    /// A46: a term at the end of its range would leave no room for the next election.
    #[test]
    fn forged_terms_and_votes_are_errors() {
        let vote = |term, committed| pb::Vote {
            term,
            voted_for: 1,
            committed,
        };
        assert_eq!(get_vote(Some(vote(u64::MAX, true))), Err(Malformed::Term(u64::MAX)));
        assert_eq!(get_vote(None), Err(Malformed::Missing("vote")));
        let asked = pb::VoteRequest {
            vote: Some(vote(3, true)),
            last: None,
            transfer: false,
        };
        assert_eq!(get_vote_request(asked), Err(Malformed::Committed));
        let mut uncommitted = append(&[], None, 1);
        uncommitted.vote = Some(vote(1, false));
        assert!(matches!(get_append(uncommitted), Err(Malformed::NotCommitted)));
    }
}

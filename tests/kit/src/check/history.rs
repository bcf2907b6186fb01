//! What is recorded while clients work.
//!
//! Every value that is ever written is different from all others, so that a value tells which operation wrote it.

use std::fmt;

use bytes::Bytes;

use super::Violation;

/// When something happened, in a unit of the recorder's choice: only the order counts. Two operations are one after
/// the other when the first was answered strictly before the second was called.
pub type Time = u64;

/// All operations of all clients, in no particular order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub ops: Vec<Op>,
}

/// One operation on one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Op {
    pub client: usize,
    pub key: Bytes,
    pub called: Time,
    /// When the answer, or the news that there will be none, came.
    pub returned: Time,
    pub request: Request,
    pub outcome: Outcome,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Request {
    Get {
        serializable: bool,
    },
    Put(Bytes),
    /// Puts the value if the key's modification revision is still this one; none: if the key is absent.
    Swap(Option<i64>, Bytes),
    Delete,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The header's revision, and what was answered at it.
    Done(i64, Answer),
    /// It certainly did nothing, and never will.
    Failed,
    /// It may have happened, may happen later, or never.
    Unknown,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    Got(Option<Kv>),
    Put(Previous),
    Swapped,
    /// What was there instead.
    NotSwapped(Option<Kv>),
    Deleted(Previous),
    /// There was nothing to delete.
    NotDeleted,
}

/// What a write replaced, where that was asked.
#[derive(Clone, PartialEq, Eq)]
pub enum Previous {
    NotAsked,
    Was(Option<Kv>),
}

/// What a key holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Kv {
    pub value: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
}

/// What a watcher is told.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: i64,
    pub key: Bytes,
    pub change: Change,
    pub previous: Previous,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    Put(Kv),
    Delete,
}

impl Op {
    /// The revision of the change that this operation is known to have made.
    pub fn changed_at(&self) -> Option<i64> {
        match &self.outcome {
            Outcome::Done(revision, Answer::Put(_) | Answer::Swapped | Answer::Deleted(_)) => Some(*revision),
            _ => None,
        }
    }

    /// What it would write.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.request {
            Request::Put(value) | Request::Swap(_, value) => Some(value),
            Request::Get { .. } | Request::Delete => None,
        }
    }

    /// What it says was there, and the newest revision at which that may have been so.
    pub fn saw(&self) -> Option<(&Option<Kv>, i64)> {
        let Outcome::Done(revision, answer) = &self.outcome else {
            return None;
        };
        match answer {
            Answer::Got(found) | Answer::NotSwapped(found) => Some((found, *revision)),
            Answer::NotDeleted => Some((&None, *revision)),
            Answer::Put(Previous::Was(found)) | Answer::Deleted(Previous::Was(found)) => Some((found, revision - 1)),
            Answer::Put(Previous::NotAsked) | Answer::Deleted(Previous::NotAsked) | Answer::Swapped => None,
        }
    }

    pub fn is_serializable(&self) -> bool {
        matches!(self.request, Request::Get { serializable: true })
    }
}

/// Whether every operation is in itself what an operation can be.
pub(super) fn check_shape(history: &History) -> Result<(), Violation> {
    let mut written = std::collections::HashMap::new();
    for op in &history.ops {
        if op.returned < op.called {
            return Err(Violation(format!("answered before it was called: {op:?}")));
        }
        let fits = match (&op.request, &op.outcome) {
            (_, Outcome::Failed | Outcome::Unknown) => true,
            (Request::Get { .. }, Outcome::Done(_, Answer::Got(_)))
            | (Request::Put(_), Outcome::Done(_, Answer::Put(_)))
            | (Request::Swap(..), Outcome::Done(_, Answer::Swapped | Answer::NotSwapped(_)))
            | (Request::Delete, Outcome::Done(_, Answer::Deleted(_) | Answer::NotDeleted)) => true,
            (Request::Get { .. } | Request::Put(_) | Request::Swap(..) | Request::Delete, Outcome::Done(..)) => false,
        };
        if !fits {
            return Err(Violation(format!("answered something else: {op:?}")));
        }
        if let Some(value) = op.value()
            && let Some(other) = written.insert(value, op)
        {
            return Err(Violation(format!("two operations write one value: {other:?}, {op:?}")));
        }
    }
    Ok(())
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        write!(f, "[{}..{}] client {} {key} ", self.called, self.returned, self.client)?;
        match &self.request {
            Request::Get { serializable: false } => write!(f, "get")?,
            Request::Get { serializable: true } => write!(f, "get (serializable)")?,
            Request::Put(value) => write!(f, "put {}", value.escape_ascii())?,
            Request::Swap(expected, value) => {
                write!(f, "put {} if at {}", value.escape_ascii(), expected.unwrap_or(0))?;
            }
            Request::Delete => write!(f, "delete")?,
        }
        match &self.outcome {
            Outcome::Failed => write!(f, " -> failed"),
            Outcome::Unknown => write!(f, " -> unknown"),
            Outcome::Done(revision, answer) => write!(f, " -> {answer:?} @{revision}"),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Got(found) => write!(f, "{}", Shown(found)),
            Self::Put(previous) => write!(f, "done{previous:?}"),
            Self::Swapped => write!(f, "swapped"),
            Self::NotSwapped(found) => write!(f, "not swapped, {}", Shown(found)),
            Self::Deleted(previous) => write!(f, "deleted{previous:?}"),
            Self::NotDeleted => write!(f, "nothing to delete"),
        }
    }
}

impl fmt::Debug for Previous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => Ok(()),
            Self::Was(found) => write!(f, ", was {}", Shown(found)),
        }
    }
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.escape_ascii();
        write!(
            f,
            "{value} (created {}, modified {}, version {})",
            self.create_revision, self.mod_revision, self.version
        )
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        match &self.change {
            Change::Put(kv) => write!(f, "@{} {key} = {kv:?}{:?}", self.revision, self.previous),
            Change::Delete => write!(f, "@{} {key} deleted{:?}", self.revision, self.previous),
        }
    }
}

/// What a key holds, or that it holds nothing.
pub(super) struct Shown<'a>(pub(super) &'a Option<Kv>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(kv) => write!(f, "{kv:?}"),
            None => write!(f, "nothing"),
        }
    }
}

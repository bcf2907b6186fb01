//! Reading the past for watchers that are behind: jobs from the dispatcher, replies to it. Stateless, so that a slow
//! disk holds up those who need it and nobody else.

use super::REVISIONS_PER_RESPONSE;
use super::history::{History, HistoryError};
use super::payload::{Change, Chunk, load_prevs};
use super::slots::Ticket;
use parking_lot::{Condvar, Mutex};
use quorate_api::{KeyRange, Revision};
use std::collections::VecDeque;
use std::sync::Arc;

/// A read that serves all `members`: they stand at the same revision.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) members: Vec<Ticket>,
    pub(super) scope: Scope,
    pub(super) range: KeyRange,
    pub(super) from: Revision,
    pub(super) with_prev: bool,
    pub(super) bytes_max: usize,
}

/// What the members of a job have in common besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// They watch the very range that is read.
    Range,
    /// Nothing: everything is read, and sorted out as live events are.
    All,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) members: Vec<Ticket>,
    pub(super) scope: Scope,
    pub(super) result: Result<Slice, HistoryError>,
}

#[derive(Debug)]
pub(super) struct Slice {
    pub(super) chunk: Option<Arc<Chunk>>,
    /// Complete up to and including this revision.
    pub(super) through: Revision,
    /// The store's revision when the slice was read, for the header.
    pub(super) header: Revision,
}

impl Job {
    pub(super) fn run(self, history: &dyn History) -> Reply {
        let result = self.read(history);
        Reply {
            members: self.members,
            scope: self.scope,
            result,
        }
    }

    fn read(&self, history: &dyn History) -> Result<Slice, HistoryError> {
        let header = history.revision();
        let replay = history.read(&self.range, self.from, REVISIONS_PER_RESPONSE, self.bytes_max)?;
        let mut changes = Vec::new();
        for batch in replay.batches {
            debug_assert!(batch.revision >= self.from && batch.revision <= replay.through);
            let revision = batch.revision;
            changes.extend(batch.events.into_iter().map(|event| Change::new(event, revision)));
        }
        if self.with_prev {
            load_prevs(&changes, history)?;
        }
        let chunk = Chunk::new(changes).map(Arc::new);
        let last = chunk.as_ref().map(|chunk| chunk.last()).unwrap_or_default();
        Ok(Slice {
            chunk,
            through: replay.through,
            header: header.max(last),
        })
    }
}

/// Jobs on their way to the reader; the dispatcher never lets more than a few be under way.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    state: Mutex<(VecDeque<Job>, bool)>,
    arrived: Condvar,
}

impl Jobs {
    pub(super) fn push(&self, job: Job) {
        self.state.lock().0.push_back(job);
        self.arrived.notify_one();
    }

    pub(super) fn try_pop(&self) -> Option<Job> {
        self.state.lock().0.pop_front()
    }

    /// Waits for a job; `None` when the hub stops.
    pub(super) fn pop(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.1 {
                return None;
            }
            if let Some(job) = state.0.pop_front() {
                return Some(job);
            }
            self.arrived.wait(&mut state);
        }
    }

    pub(super) fn stop(&self) {
        self.state.lock().1 = true;
        self.arrived.notify_all();
    }
}

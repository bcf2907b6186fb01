//! Watchers that are behind: served a slice at a time, from recent batches if those reach back far enough, else by
//! the history reader. Watchers of one group that stand at the same revision share a slice. Many groups at the same
//! revision, as there are when batches were missed, share the read as well: history is scanned once for all of them.

use super::super::catch_up::{Job, Reply, Scope, Slice};
use super::super::history::HistoryError;
use super::super::index::GroupId;
use super::super::outbox::Place;
use super::super::payload::Chunk;
use super::super::slots::Ticket;
use super::{Dispatcher, State};
use quorate_api::{KeyRange, Revision};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Reads under way at one time: bounds the memory of replies, and keeps the reader busy while one is delivered.
const JOBS_MAX: usize = 2;
/// Slices from recent batches in one turn: live batches come first.
const RECENT_PER_TURN: usize = 32;
/// More ranges than this at one revision are served by one read of everything. Single keys don't count: their history
/// is found without looking at that of others.
const RANGES_READ_ALONE: usize = 8;

/// Watchers that share a slice, beside the revision at which they stand. Ranges sort before single keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cohort {
    single: bool,
    group: GroupId,
    with_prev: bool,
}

/// Watchers at one revision. Some of the tickets may be void, or of watchers that have moved on since.
type Line = BTreeMap<Cohort, Vec<Ticket>>;

/// Who waits to be served from the past, by where they stand.
///
/// Invariant: the revision of each line is either in `queue` or in `for_history`, once.
#[derive(Debug, Default)]
pub(super) struct Behind {
    lines: HashMap<Revision, Line>,
    queue: VecDeque<Revision>,
    /// What only history can help with.
    for_history: VecDeque<Revision>,
}

impl Behind {
    fn push(&mut self, next: Revision, cohort: Cohort, ticket: Ticket) {
        let line = self.lines.entry(next).or_insert_with(|| {
            self.queue.push_back(next);
            Line::new()
        });
        line.entry(cohort).or_default().push(ticket);
    }

    /// There is something to serve at once.
    pub(super) fn has_more(&self) -> bool {
        !self.queue.is_empty()
    }

    fn pop_cohort(&mut self, next: Revision) -> Option<(Cohort, Vec<Ticket>)> {
        self.lines.get_mut(&next)?.pop_first()
    }

    fn wants_sweep(&self, next: Revision) -> bool {
        let ranges = |line: &Line| {
            let ranges = line.keys().take_while(|cohort| !cohort.single);
            ranges.take(RANGES_READ_ALONE + 1).count()
        };
        self.lines.get(&next).map_or(0, ranges) > RANGES_READ_ALONE
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lines.values().flat_map(Line::values).map(Vec::len).sum()
    }
}

impl Dispatcher {
    /// Puts a watcher in state `Queued` where it is found when its turn comes.
    pub(super) fn line_up(&mut self, ticket: Ticket) {
        let Some(watcher) = self.watchers.redeem(ticket) else {
            return;
        };
        let group = watcher.membership.group;
        let Some(single) = self.index.group(group).map(|group| group.range.is_single()) else {
            return;
        };
        let cohort = Cohort {
            single,
            group,
            with_prev: watcher.with_prev,
        };
        if watcher.state == State::Queued {
            self.queued.push(watcher.next, cohort, ticket);
        }
    }

    #[cfg(test)]
    pub(in super::super) fn waiting(&self) -> usize {
        self.queued.len() + self.retries.len()
    }

    pub(super) fn serve_queued(&mut self) {
        let mut budget = RECENT_PER_TURN;
        while budget > 0
            && let Some(next) = self.queued.queue.front().copied()
        {
            if !self.recent.has(next) && next <= self.dispatched {
                self.queued.queue.pop_front();
                self.queued.for_history.push_back(next);
            } else if let Some((cohort, tickets)) = self.queued.pop_cohort(next) {
                let members = self.take_up(tickets, next);
                if !members.is_empty() {
                    budget -= 1;
                    self.serve_from_recent(cohort, next, members);
                }
            } else {
                self.queued.queue.pop_front();
                self.queued.lines.remove(&next);
            }
        }
        while self.jobs_under_way < JOBS_MAX
            && let Some(next) = self.queued.for_history.pop_front()
        {
            if self.queued.wants_sweep(next) {
                let line = self.queued.lines.remove(&next).unwrap_or_default();
                self.sweep(line, next);
            } else if let Some((cohort, tickets)) = self.queued.pop_cohort(next) {
                self.queued.for_history.push_back(next); // the rest of the line, after others have had their turn
                self.send_to_history(cohort, next, tickets);
            } else {
                self.queued.lines.remove(&next);
            }
        }
    }

    /// Of these watchers, those that still stand at `next` and whose stream has room; sees to the others. From here on
    /// they are in the hands of whoever reads for them.
    fn take_up(&mut self, mut tickets: Vec<Ticket>, next: Revision) -> Vec<Ticket> {
        tickets.retain(|ticket| self.is_to_be_served(*ticket, next));
        tickets
    }

    fn is_to_be_served(&mut self, ticket: Ticket, next: Revision) -> bool {
        let Some(watcher) = self.watchers.redeem(ticket) else {
            return false;
        };
        let stream = watcher.stream;
        if watcher.state != State::Queued || watcher.next != next {
            return false;
        }
        if next > self.dispatched {
            self.set_state(ticket.at, State::Synced);
            return false;
        }
        let Some(stream) = self.stream_mut(stream) else {
            return false;
        };
        if !stream.outbox.has_room() {
            self.park(ticket.at);
            return false;
        }
        self.set_state(ticket.at, State::Reading);
        true
    }

    fn send_to_history(&mut self, cohort: Cohort, from: Revision, tickets: Vec<Ticket>) {
        let Some(range) = self.index.group(cohort.group).map(|group| group.range.clone()) else {
            return; // all of its watchers were cancelled
        };
        let members = self.take_up(tickets, from);
        self.read(members, Scope::Range, range, from, cohort.with_prev);
    }

    /// One read for all who stand at `from`.
    fn sweep(&mut self, line: Line, from: Revision) {
        let mut members = Vec::new();
        let mut with_prev = false;
        for (cohort, tickets) in line {
            let some = self.take_up(tickets, from);
            with_prev |= cohort.with_prev && !some.is_empty();
            members.extend(some);
        }
        self.read(members, Scope::All, KeyRange::all(), from, with_prev);
    }

    fn read(&mut self, members: Vec<Ticket>, scope: Scope, range: KeyRange, from: Revision, with_prev: bool) {
        if members.is_empty() {
            return;
        }
        self.jobs_under_way += 1;
        self.shared.jobs.push(Job {
            members,
            scope,
            range,
            from,
            with_prev,
            bytes_max: self.shared.options.response_bytes,
        });
    }

    fn serve_from_recent(&mut self, cohort: Cohort, from: Revision, members: Vec<Ticket>) {
        let read = self.index.group(cohort.group).and_then(|group| {
            let bytes_max = self.shared.options.response_bytes;
            self.recent.read(&group.range, from, bytes_max)
        });
        // It was asked whether recent batches reach back to `from`, and the members keep their group alive.
        debug_assert!(read.is_some());
        let Some((changes, through)) = read else {
            return self.retry_later(members);
        };
        if cohort.with_prev
            && let Err(error) = self.load_prev(&changes)
        {
            self.report(&error);
            return self.retry_later(members);
        }
        let chunk = Chunk::new(changes).map(Arc::new);
        for ticket in members {
            self.advance(ticket, chunk.as_ref(), through, self.dispatched);
        }
    }

    fn retry_later(&mut self, members: Vec<Ticket>) {
        for ticket in members {
            if self.watchers.redeem(ticket).is_some() {
                self.queue_later(ticket.at);
            }
        }
    }

    pub(super) fn take_reply(&mut self, reply: Reply) {
        let Reply { members, scope, result } = reply;
        match result {
            Ok(slice) if scope == Scope::All => self.sort_out(members, slice),
            Ok(Slice { chunk, through, header }) => {
                for ticket in members {
                    self.advance(ticket, chunk.as_ref(), through, header);
                }
            }
            Err(HistoryError::Compacted { at }) => {
                let compacted = self.history.compacted().max(at);
                #[cfg(feature = "planted")]
                if crate::planted::is(crate::planted::Bug::EventDroppedAtCompaction) {
                    let through = Revision(compacted);
                    return members
                        .into_iter()
                        .for_each(|ticket| self.advance(ticket, None, through, through));
                }
                for ticket in members {
                    if self.watchers.redeem(ticket).is_some() {
                        self.bury(ticket.at, compacted);
                    }
                }
            }
            Err(error @ HistoryError::Failed(_)) => {
                self.report(&error);
                self.retry_later(members);
            }
        }
    }

    /// Gives each member what its group wants of a slice of everything.
    fn sort_out(&mut self, members: Vec<Ticket>, slice: Slice) {
        let Slice { chunk, through, header } = slice;
        let mut touched = Vec::new();
        for change in chunk.iter().flat_map(|chunk| &chunk.changes) {
            self.index.gather(change.key(), &mut touched, || Arc::clone(change));
        }
        let mut chunks: HashMap<GroupId, Arc<Chunk>> = HashMap::new();
        for id in touched {
            let gathered = self
                .index
                .group_mut(id)
                .map(|group| std::mem::take(&mut group.gathered));
            if let Some(chunk) = gathered.and_then(Chunk::new) {
                chunks.insert(id, Arc::new(chunk));
            }
        }
        for ticket in members {
            let Some(group) = self.watchers.redeem(ticket).map(|watcher| watcher.membership.group) else {
                continue;
            };
            self.advance(ticket, chunks.get(&group), through, header);
        }
    }

    /// Delivers a slice of the past, complete up to `through`, to a watcher that stands where it begins.
    fn advance(&mut self, ticket: Ticket, chunk: Option<&Arc<Chunk>>, through: Revision, header: Revision) {
        let at = ticket.at;
        if self.watchers.redeem(ticket).is_none() {
            return; // cancelled meanwhile
        }
        if let Some(chunk) = chunk
            && self.deliver(at, chunk, Some(header)).is_err()
        {
            return self.park(at);
        }
        let dispatched = self.dispatched;
        let Some(watcher) = self.watchers.redeem(ticket) else {
            return;
        };
        let stuck = through < watcher.next;
        watcher.next = watcher.next.max(through.next());
        if watcher.next > dispatched {
            self.set_state(at, State::Synced);
        } else if stuck {
            self.queue_later(at); // history is behind what was published; let it come up
        } else {
            self.queue(at);
        }
    }

    /// All streams together have too much waiting: what their clients don't read goes back to history.
    pub(super) fn relieve(&mut self) {
        let over = self.shared.counters.totals.bytes.load(Ordering::Relaxed) >= self.shared.options.outboxes_bytes_max;
        for id in 0..self.streams.len() {
            let Some(Some(stream)) = self.streams.get(id) else {
                continue;
            };
            // Asked of each, since it is about the time since it was last asked.
            if !stream.outbox.is_slow() || !over {
                continue;
            }
            // A watcher for which a read is under way would lose its place; there are few.
            let watcher = |id| {
                let at = stream.ids.get(&id).copied().flatten()?;
                self.watchers
                    .get(at)
                    .filter(|watcher| watcher.state != State::Reading)?;
                Some(at)
            };
            let taken = stream.outbox.take_back(|id| watcher(id).is_some());
            let taken: Vec<_> = taken
                .into_iter()
                .filter_map(|(id, first)| Some((watcher(id)?, first)))
                .collect();
            for (at, first) in taken {
                let Some(watcher) = self.watchers.get_mut(at) else {
                    continue;
                };
                watcher.next = watcher.next.min(first);
                watcher.last_place = Place::default();
                if watcher.state != State::Parked {
                    self.park(at);
                }
            }
        }
    }
}

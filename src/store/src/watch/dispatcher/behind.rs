//! Watchers that are behind: served a slice at a time, from recent batches if those reach back far enough, else by
//! the history reader. Watchers of one group that stand at the same revision share a slice.

use super::super::catch_up::{Job, Reply, Slice};
use super::super::history::HistoryError;
use super::super::payload::Chunk;
use super::super::slots::Ticket;
use super::{Dispatcher, State};
use std::sync::Arc;

/// Reads under way at one time: bounds the memory of replies, and keeps the reader busy while one is delivered.
const JOBS_MAX: usize = 2;
/// Slices from recent batches in one turn: live batches come first.
const RECENT_PER_TURN: usize = 32;

impl Dispatcher {
    pub(super) fn serve_queued(&mut self) {
        let mut budget = RECENT_PER_TURN;
        while budget > 0
            && let Some(ticket) = self.queued.pop_front()
        {
            let Some(next) = self.still_queued(ticket) else {
                continue;
            };
            if self.recent.has(next) {
                budget -= 1;
                self.serve_from_recent(ticket);
            } else {
                self.for_history.push_back(ticket);
            }
        }
        while self.jobs_under_way < JOBS_MAX
            && let Some(ticket) = self.for_history.pop_front()
        {
            if self.still_queued(ticket).is_some() {
                self.send_to_history(ticket);
            }
        }
    }

    /// Where the watcher stands, if it is there, behind, and its stream has room; sees to it otherwise.
    fn still_queued(&mut self, ticket: Ticket) -> Option<quorate_api::Revision> {
        let watcher = self.watchers.redeem(ticket)?;
        let (next, stream) = (watcher.next, watcher.stream);
        if watcher.state != State::Queued {
            return None;
        }
        if next > self.dispatched {
            self.set_state(ticket.at, State::Synced);
            return None;
        }
        if !self.stream_mut(stream)?.outbox.has_room() {
            self.park(ticket.at);
            return None;
        }
        Some(next)
    }

    /// This watcher and all like it: same range, same position, same wish for previous pairs.
    fn companions(&mut self, ticket: Ticket) -> Option<(Vec<Ticket>, Job)> {
        let leader = self.watchers.redeem(ticket)?;
        let (from, with_prev, id) = (leader.next, leader.with_prev, leader.membership.group);
        let group = self.index.group(id)?;
        let alike = |at: &&u32| {
            self.watchers.get(**at).is_some_and(|watcher| {
                watcher.state == State::Queued && watcher.next == from && watcher.with_prev == with_prev
            })
        };
        let members: Vec<Ticket> = group
            .members
            .iter()
            .filter(alike)
            .map(|at| self.watchers.ticket(*at))
            .collect();
        debug_assert!(members.contains(&ticket));
        let job = Job {
            members: Vec::new(),
            range: group.range.clone(),
            from,
            with_prev,
            bytes_max: self.shared.options.response_bytes,
        };
        Some((members, job))
    }

    fn send_to_history(&mut self, ticket: Ticket) {
        let Some((members, mut job)) = self.companions(ticket) else {
            return;
        };
        for member in &members {
            self.set_state(member.at, State::Reading);
        }
        job.members = members;
        self.jobs_under_way += 1;
        self.shared.jobs.push(job);
    }

    fn serve_from_recent(&mut self, ticket: Ticket) {
        let Some((members, job)) = self.companions(ticket) else {
            return;
        };
        let Some((changes, through)) = self.recent.read(&job.range, job.from, job.bytes_max) else {
            return;
        };
        if job.with_prev
            && let Err(error) = self.load_prev(&changes)
        {
            self.report(&error);
            for member in members {
                self.queue_later(member.at);
            }
            return;
        }
        let slice = Slice {
            chunk: Chunk::new(changes).map(Arc::new),
            through,
            header: self.dispatched,
        };
        self.advance(members, &slice);
    }

    pub(super) fn take_reply(&mut self, reply: Reply) {
        match reply.result {
            Ok(slice) => self.advance(reply.members, &slice),
            Err(HistoryError::Compacted { at }) => {
                let compacted = self.history.compacted().max(at);
                for ticket in reply.members {
                    if self.watchers.redeem(ticket).is_some() {
                        self.bury(ticket.at, compacted);
                    }
                }
            }
            Err(error @ HistoryError::Failed(_)) => {
                self.report(&error);
                for ticket in reply.members {
                    if self.watchers.redeem(ticket).is_some() {
                        self.queue_later(ticket.at);
                    }
                }
            }
        }
    }

    /// Delivers a slice of the past to watchers that stand where it begins.
    fn advance(&mut self, members: Vec<Ticket>, slice: &Slice) {
        for ticket in members {
            let at = ticket.at;
            if self.watchers.redeem(ticket).is_none() {
                continue; // cancelled meanwhile
            }
            if let Some(chunk) = &slice.chunk
                && self.deliver(at, chunk, Some(slice.header)).is_err()
            {
                self.park(at);
                continue;
            }
            let dispatched = self.dispatched;
            let Some(watcher) = self.watchers.redeem(ticket) else {
                continue;
            };
            let stuck = slice.through < watcher.next;
            watcher.next = watcher.next.max(slice.through.next());
            if watcher.next > dispatched {
                self.set_state(at, State::Synced);
            } else if stuck {
                self.queue_later(at); // history is behind what was published; let it come up
            } else {
                self.queue(at);
            }
        }
    }
}

//! Live batches: matched once per event, delivered once per watcher and turn.

use super::super::inbox::size;
use super::super::index::GroupId;
use super::super::payload::{Change, Chunk, load_prevs};
use super::super::{HistoryError, Options};
use super::{Dispatcher, State};
use crate::event::EventBatch;
use quorate_api::{KeyRange, Revision};
use std::collections::VecDeque;
use std::sync::Arc;

impl Dispatcher {
    pub(super) fn dispatch(&mut self, batches: Vec<Arc<EventBatch>>) {
        let mut touched = Vec::new();
        for batch in batches {
            if batch.revision <= self.dispatched {
                continue; // seen, or covered by a skip
            }
            let gap = batch.revision > self.dispatched.next();
            #[cfg(feature = "planted")]
            let gap = gap && !crate::planted::is(crate::planted::Bug::InstallWithoutResync);
            if gap {
                self.flush(&mut touched);
                self.skip_to(Revision(batch.revision.0 - 1));
            }
            self.dispatched = batch.revision;
            for event in &batch.events {
                let change = || Change::new(event.clone(), batch.revision);
                self.index.gather(&event.key, &mut touched, change);
            }
            self.recent.push(batch);
        }
        self.flush(&mut touched);
    }

    /// Delivers what the groups have gathered.
    fn flush(&mut self, touched: &mut Vec<GroupId>) {
        for id in touched.drain(..) {
            let Some(group) = self.index.group_mut(id) else {
                continue;
            };
            let changes = std::mem::take(&mut group.gathered);
            let want_prev = group.want_prev > 0;
            let members = std::mem::take(&mut group.members);
            self.deliver_live(&members, changes, want_prev);
            if let Some(group) = self.index.group_mut(id) {
                group.members = members; // delivering changes no memberships
            }
        }
    }

    fn deliver_live(&mut self, members: &[u32], changes: Vec<Arc<Change>>, want_prev: bool) {
        let prev = if want_prev { self.load_prev(&changes) } else { Ok(()) };
        let Some(chunk) = Chunk::new(changes).map(Arc::new) else {
            return;
        };
        if let Err(error) = &prev {
            self.report(error);
        }
        for &at in members {
            let Some(watcher) = self.watchers.get_mut(at) else {
                continue;
            };
            if watcher.state != State::Synced {
                continue;
            }
            let prev_missing = watcher.with_prev && prev.is_err();
            let full = !prev_missing && self.deliver(at, &chunk, None).is_err();
            let Some(watcher) = self.watchers.get_mut(at) else {
                continue;
            };
            if !full && !prev_missing {
                watcher.next = watcher.next.max(chunk.last().next());
                continue;
            }
            // From here on it is history's to serve. Everything before this chunk was delivered.
            watcher.next = watcher.next.max(chunk.first());
            if full {
                self.park(at);
            } else {
                self.queue_later(at);
            }
        }
    }

    pub(super) fn load_prev(&self, changes: &[Arc<Change>]) -> Result<(), HistoryError> {
        load_prevs(changes, self.history.as_ref())
    }

    /// Batches up to `revision` will not come: whoever waits for them turns to history.
    pub(super) fn skip_to(&mut self, revision: Revision) {
        if revision <= self.dispatched {
            return;
        }
        self.recent.clear();
        let unseen = self.dispatched.next();
        self.dispatched = revision;
        let mut behind = Vec::new();
        for (ticket, watcher) in self.watchers.iter_mut() {
            if watcher.state == State::Synced && watcher.next <= revision {
                watcher.next = watcher.next.max(unseen);
                behind.push(ticket);
            }
        }
        for ticket in behind {
            self.queue(ticket.at);
        }
    }
}

/// The last batches that were dispatched, without a gap up to `dispatched`.
#[derive(Debug)]
pub(super) struct Recent {
    batches: VecDeque<Arc<EventBatch>>,
    bytes: usize,
    batches_max: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            batches_max: options.recent_batches,
            bytes_max: options.recent_bytes,
        }
    }

    pub(super) fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    fn push(&mut self, batch: Arc<EventBatch>) {
        debug_assert!(
            self.batches
                .back()
                .is_none_or(|last| last.revision.next() == batch.revision)
        );
        self.bytes += size(&batch);
        self.batches.push_back(batch);
        while self.bytes > self.bytes_max || self.batches.len() > self.batches_max {
            let Some(oldest) = self.batches.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
        }
    }

    /// Where to start for everything from `from` on; `None` when that is not all here.
    fn position(&self, from: Revision) -> Option<usize> {
        let first = self.batches.front()?.revision;
        let at = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        (at < self.batches.len()).then_some(at)
    }

    pub(super) fn has(&self, from: Revision) -> bool {
        self.position(from).is_some()
    }

    /// The events in `range` from `from` on, and the revision up to which they are complete: the newest, or where
    /// `bytes_max` was reached.
    pub(super) fn read(
        &self,
        range: &KeyRange,
        from: Revision,
        bytes_max: usize,
    ) -> Option<(Vec<Arc<Change>>, Revision)> {
        let mut changes = Vec::new();
        let (mut through, mut bytes) = (from, 0);
        for batch in self.batches.range(self.position(from)?..) {
            let before = changes.len();
            let wanted = batch.events.iter().filter(|event| range.contains(&event.key));
            changes.extend(wanted.map(|event| Change::new(event.clone(), batch.revision)));
            through = batch.revision;
            if changes.len() > before {
                bytes += size(batch);
            }
            if bytes >= bytes_max {
                break;
            }
        }
        Some((changes, through))
    }
}

//! The dispatcher: sole owner of all watchers. It takes what has arrived, in one turn, and moves watchers along.
//!
//! A watcher is in one of four states:
//!
//! ```text
//!            events ≤ dispatched are all delivered
//!          ┌───────────────── Synced ◄──────────┐
//!          │ outbox full,       │ batches missed│ came up to `dispatched`
//!          │ or taken back      │               │
//!          ▼      client reads  ▼               │
//!        Parked ─────────────► Queued ───► Reading (a history job is under way)
//!          ▲                    │  ▲            │ more to read
//!          └────────────────────┘  └────────────┘
//! ```
//!
//! Only synced watchers look at live batches; `next` says from where on, for those that registered ahead of the
//! dispatcher or were carried ahead of it by history. So registering and publishing need no lock between them.

mod behind;
mod live;
mod progress;
mod requests;

use super::history::{History, HistoryError};
use super::hub::Shared;
use super::inbox::{StreamId, Woken};
use super::index::{Index, Membership, WatcherAt};
use super::outbox::{Delivery, Full, Outbox, Place};
use super::payload::Chunk;
use super::response::Response;
use super::slots::{Slots, Ticket};
use behind::Behind;
use live::Recent;
use progress::Asked;
use quorate_api::Revision;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Turns after which failed reads are tried again although the dispatcher is never idle.
const TURNS_BEFORE_RETRY: u32 = 64;

pub(super) struct Dispatcher {
    history: Arc<dyn History>,
    shared: Arc<Shared>,
    /// Every batch up to here was seen, or its watchers were sent to history.
    dispatched: Revision,
    streams: Vec<Option<Stream>>,
    watchers: Slots<Watcher>,
    index: Index,
    recent: Recent,
    /// Watchers in state `Queued`.
    queued: Behind,
    /// Watchers in state `Queued` that wait after a failed read. May hold tickets of watchers that have moved on since.
    retries: Vec<Ticket>,
    turns_since_retry: u32,
    jobs_under_way: usize,
    asked: Vec<Asked>,
    /// Streams with something new in this turn.
    touched: Vec<StreamId>,
    /// How many watchers are not synced.
    behind: u64,
}

struct Stream {
    outbox: Arc<Outbox>,
    /// Ids in use: live watchers, and those that compaction ended and the client has not cancelled yet.
    ids: BTreeMap<i64, Option<WatcherAt>>,
    next_id: i64,
    parked: Vec<Ticket>,
    touched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Synced,
    Queued,
    Reading,
    Parked,
}

struct Watcher {
    id: i64,
    stream: StreamId,
    membership: Membership,
    state: State,
    no_put: bool,
    no_delete: bool,
    with_prev: bool,
    may_split: bool,
    notify: bool,
    /// Had an event since the last tick.
    sent: bool,
    /// Nothing below is owed any more.
    next: Revision,
    /// No progress is told below: the start revision asked for, or the store's at registration.
    start: Revision,
    /// Where its last events wait, to be joined by the next.
    last_place: Place,
}

impl Watcher {
    fn takes_all(&self) -> bool {
        !self.no_put && !self.no_delete
    }

    /// May be told that everything up to `revision` was sent.
    fn has_all_through(&self, revision: Revision) -> bool {
        self.state == State::Synced && self.start <= revision && self.next <= revision.next()
    }
}

impl Dispatcher {
    pub(super) fn new(history: Arc<dyn History>, shared: Arc<Shared>) -> Self {
        let recent = Recent::new(&shared.options);
        Self {
            dispatched: history.revision(),
            history,
            shared,
            streams: Vec::new(),
            watchers: Slots::default(),
            index: Index::default(),
            recent,
            queued: Behind::default(),
            retries: Vec::new(),
            turns_since_retry: 0,
            jobs_under_way: 0,
            asked: Vec::new(),
            touched: Vec::new(),
            behind: 0,
        }
    }

    /// Takes what has arrived and does it. True when there is more to do at once.
    pub(super) fn turn(&mut self, retry: bool) -> bool {
        let work = self.shared.inbox.take();
        if let Some(revision) = work.missed {
            self.skip_to(revision);
        }
        if work.resync {
            self.recent.clear();
            self.skip_to(self.history.revision());
        }
        for request in work.requests {
            self.request(request);
        }
        for reply in work.replies {
            self.jobs_under_way -= 1;
            self.take_reply(reply);
        }
        self.dispatch(work.batches);
        if work.relieve {
            self.relieve();
        }
        if work.tick {
            self.notify_progress();
        }
        self.answer_progress();
        self.turns_since_retry += 1;
        if retry || self.turns_since_retry >= TURNS_BEFORE_RETRY {
            self.turns_since_retry = 0;
            for ticket in std::mem::take(&mut self.retries) {
                self.line_up(ticket);
            }
        }
        self.serve_queued();
        self.shared.counters.behind.store(self.behind, Ordering::Relaxed);
        for id in std::mem::take(&mut self.touched) {
            if let Some(Some(stream)) = self.streams.get_mut(id as usize) {
                stream.touched = false;
                stream.outbox.wake();
            }
        }
        self.queued.has_more()
    }

    pub(super) fn wait(&self, at_most: Option<Duration>) -> Woken {
        self.shared.inbox.wait(at_most)
    }

    pub(super) fn history(&self) -> &dyn History {
        self.history.as_ref()
    }

    pub(super) fn has_retries(&self) -> bool {
        !self.retries.is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        self.shared.inbox.has_work()
    }

    /// Last act: streams end once they have handed out what is queued.
    pub(super) fn end(&mut self) {
        for request in self.shared.inbox.take().requests {
            self.request(request);
        }
        for stream in self.streams.iter().flatten() {
            stream.outbox.end();
        }
    }

    /// The store's revision, never behind what was dispatched.
    fn revision(&self) -> Revision {
        self.history.revision().max(self.dispatched)
    }

    fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id as usize)?.as_mut()
    }

    /// Notes that the stream's task has something to do after this turn: one wake-up, however much it is.
    fn touch(&mut self, id: StreamId) {
        if let Some(Some(stream)) = self.streams.get_mut(id as usize)
            && !stream.touched
        {
            stream.touched = true;
            self.touched.push(id);
        }
    }

    /// Puts into the outbox what the watcher wants of the chunk. Without a `header` it is the revision of the events.
    fn deliver(&mut self, at: WatcherAt, chunk: &Arc<Chunk>, header: Option<Revision>) -> Result<(), Full> {
        let Some(watcher) = self.watchers.get_mut(at) else {
            return Ok(());
        };
        let tailored;
        let mut chunk = chunk;
        if !watcher.takes_all() || watcher.next > chunk.first() {
            let wanted = |change: &&Arc<super::payload::Change>| {
                let filtered = if change.is_put() {
                    watcher.no_put
                } else {
                    watcher.no_delete
                };
                !filtered && change.revision() >= watcher.next
            };
            match Chunk::new(chunk.changes.iter().filter(wanted).cloned().collect()) {
                Some(some) => tailored = Arc::new(some),
                None => return Ok(()),
            }
            chunk = &tailored;
        }
        let Some(Some(stream)) = self.streams.get_mut(watcher.stream as usize) else {
            return Ok(());
        };
        watcher.last_place = stream.outbox.deliver(Delivery {
            watch_id: watcher.id,
            header: header.unwrap_or(chunk.last()),
            chunk,
            with_prev: watcher.with_prev,
            may_split: watcher.may_split,
            join: watcher.last_place,
        })?;
        watcher.sent = true;
        if !stream.touched {
            stream.touched = true;
            self.touched.push(watcher.stream);
        }
        Ok(())
    }

    fn set_state(&mut self, at: WatcherAt, state: State) {
        if let Some(watcher) = self.watchers.get_mut(at) {
            self.behind += u64::from(state != State::Synced);
            self.behind -= u64::from(watcher.state != State::Synced);
            watcher.state = state;
        }
    }

    /// The watcher waits until its stream's outbox has room, which the outbox has been told to say.
    fn park(&mut self, at: WatcherAt) {
        self.set_state(at, State::Parked);
        let ticket = self.watchers.ticket(at);
        let Some(stream) = self.watchers.get(at).map(|watcher| watcher.stream) else {
            return;
        };
        if let Some(stream) = self.stream_mut(stream) {
            stream.parked.push(ticket);
        }
    }

    fn queue(&mut self, at: WatcherAt) {
        self.set_state(at, State::Queued);
        self.line_up(self.watchers.ticket(at));
    }

    fn queue_later(&mut self, at: WatcherAt) {
        self.set_state(at, State::Queued);
        self.retries.push(self.watchers.ticket(at));
    }

    /// Takes the watcher out of everything but its stream's list of ids.
    fn forget(&mut self, at: WatcherAt) -> Option<Watcher> {
        let watcher = self.watchers.remove(at)?;
        self.behind -= u64::from(watcher.state != State::Synced);
        if let Some(moved) = self.index.leave(watcher.membership, watcher.with_prev)
            && let Some(moved) = self.watchers.get_mut(moved)
        {
            moved.membership.position = watcher.membership.position;
        }
        self.shared.counters.watchers.fetch_sub(1, Ordering::Relaxed);
        Some(watcher)
    }

    /// Compaction took what the watcher needs: it ends, and its id stays taken until the client cancels it.
    fn bury(&mut self, at: WatcherAt, compacted: i64) {
        let Some(watcher) = self.forget(at) else {
            return;
        };
        if let Some(stream) = self.stream_mut(watcher.stream) {
            stream.ids.insert(watcher.id, None);
            stream.outbox.obituary(Response::compacted(watcher.id, compacted));
        }
        self.touch(watcher.stream);
    }

    fn report(&self, error: &HistoryError) {
        self.shared.options.observer.history_failed(error);
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("dispatched", &self.dispatched)
            .field("behind", &self.behind)
            .finish_non_exhaustive()
    }
}

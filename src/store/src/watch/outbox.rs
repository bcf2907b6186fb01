//! What waits to be sent on one stream: the only order there is between events, answers and progress.
//!
//! Events that arrive for a watcher whose last response was not taken yet join that response, so a slow client gets
//! fewer, larger responses, and the queue holds about one per watcher. They never join across a progress notice:
//! a client that has seen revision n promised must not then be sent a notice that says less.
//!
//! Answers to requests always have room, since [`Outbox::poll_ready`] keeps the client from asking more before.
//!
//! What is queued for a client that hardly reads can be taken back ([`Outbox::take_back`]): its watchers then find it in
//! history again, when it reads.

use super::payload::Chunk;
use super::response::{Events, Response};
use super::{Options, REVISIONS_PER_RESPONSE, STREAM_SHARE_BYTES};
use parking_lot::Mutex;
use quorate_api::Revision;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

/// What one waiting response costs beside its events.
const RESPONSE_OVERHEAD: usize = 192;
/// What one more response of the stream costs for events that wait in it already.
const SHARED_BYTES: usize = 32;

/// Sums over all outboxes.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) bytes: AtomicUsize,
    /// Events that wait, once for every watcher.
    pub(super) waiting: AtomicUsize,
    /// Events that were taken since the start.
    pub(super) taken: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    bytes_max: usize,
    responses_max: usize,
    requests_max: usize,
    response_bytes: usize,
    totals: Arc<Totals>,
    /// Bound of the bytes in all outboxes.
    total_max: usize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Sequence number of the queue's front.
    front: u64,
    bytes: usize,
    /// Events in the queue.
    events: usize,
    /// End of the queue when it was last asked whether the client is slow.
    asked_at: u64,
    /// The events that were queued last, with or without previous pairs. In the queue they are charged for once, with
    /// the first watcher that gets them. The others come soon after it, so what waits uncharged is no more than what may
    /// wait anyway.
    charged: (Weak<Chunk>, bool),
    /// Responses before this one take no more events.
    barrier: u64,
    /// Requests without an answer, and answers that were not taken.
    owed: usize,
    /// Watchers fell behind for want of room and wait until no more than these bytes are queued.
    stalled: Option<usize>,
    /// The client's side is gone: everything is dropped.
    closed: bool,
    /// The hub is gone: what is queued is the last.
    ended: bool,
    reader: Option<Waker>,
    requester: Option<Waker>,
}

#[derive(Debug, Default)]
struct Queued {
    response: Response,
    /// In memory, beside [`RESPONSE_OVERHEAD`].
    bytes: usize,
    wire_bytes: usize,
    events: usize,
    revisions: usize,
    answer: bool,
}

impl Queued {
    fn new(response: Response) -> Self {
        Self {
            response,
            ..Self::default()
        }
    }

    fn answer(response: Response) -> Self {
        Self {
            answer: true,
            ..Self::new(response)
        }
    }
}

/// No room; the outbox tells when there is again (see [`Popped::drained`]).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Where an outbox's event response is, to be joined by later events. The default is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

pub(super) struct Delivery<'a> {
    pub(super) watch_id: i64,
    pub(super) header: Revision,
    pub(super) chunk: &'a Arc<Chunk>,
    pub(super) with_prev: bool,
    pub(super) may_split: bool,
    /// Where the last delivery for this watcher was put.
    pub(super) join: Place,
}

pub(super) enum Popped {
    Response {
        response: Response,
        /// There is room again, and the dispatcher wants to know.
        drained: bool,
    },
    Empty {
        drained: bool,
    },
    Ended,
}

impl Outbox {
    pub(super) fn new(options: &Options, totals: Arc<Totals>) -> Self {
        let state = State {
            front: 1, // so that the default place is nowhere
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            bytes_max: options.outbox_bytes_max,
            responses_max: options.outbox_responses_max,
            requests_max: options.requests_max,
            response_bytes: options.response_bytes,
            totals,
            total_max: options.outboxes_bytes_max,
        }
    }

    fn push(&self, state: &mut State, queued: Queued) -> Place {
        if state.closed {
            return Place::default();
        }
        let place = Place(state.front + state.queue.len() as u64);
        self.add(state, queued.bytes + RESPONSE_OVERHEAD, queued.events);
        state.queue.push_back(queued);
        place
    }

    fn add(&self, state: &mut State, bytes: usize, events: usize) {
        state.bytes += bytes;
        state.events += events;
        self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.totals.waiting.fetch_add(events, Ordering::Relaxed);
    }

    fn subtract(&self, state: &mut State, bytes: usize, events: usize) {
        state.bytes -= bytes;
        state.events -= events;
        self.totals.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.totals.waiting.fetch_sub(events, Ordering::Relaxed);
    }

    /// How many bytes may wait here, as things stand.
    fn bytes_max(&self) -> usize {
        if self.totals.bytes.load(Ordering::Relaxed) < self.total_max {
            self.bytes_max
        } else {
            self.bytes_max.min(STREAM_SHARE_BYTES)
        }
    }

    /// A request is on its way.
    pub(super) fn owe(&self) {
        self.state.lock().owed += 1;
    }

    /// A request gets no answer.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        state.owed = state.owed.saturating_sub(1);
        let requester = state.requester.take();
        drop(state);
        requester.inspect(Waker::wake_by_ref);
    }

    /// The answer to a request.
    pub(super) fn answer(&self, response: Response) {
        self.push(&mut self.state.lock(), Queued::answer(response));
    }

    /// An answer that vouches for everything up to its revision.
    pub(super) fn answer_progress(&self, response: Response) {
        let mut state = self.state.lock();
        state.barrier = self.push(&mut state, Queued::answer(response)).0 + 1;
    }

    /// The end of a watcher: at most one for each, so there is always room.
    pub(super) fn obituary(&self, response: Response) {
        self.push(&mut self.state.lock(), Queued::new(response));
    }

    /// A progress notice nobody asked for. Without room there is none: the client is not that far.
    pub(super) fn notice(&self, response: Response) -> Result<(), Full> {
        let mut state = self.state.lock();
        if self.is_full(&state) {
            return Err(Full);
        }
        self.push(&mut state, Queued::new(response));
        Ok(())
    }

    /// Events for one watcher. A chunk that is larger than the whole outbox passes alone.
    pub(super) fn deliver(&self, delivery: Delivery<'_>) -> Result<Place, Full> {
        let Delivery {
            watch_id,
            header,
            chunk,
            with_prev,
            may_split,
            join,
        } = delivery;
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.closed {
            return Ok(Place::default());
        }
        let bytes = match state.has_charged(chunk, with_prev) {
            true => SHARED_BYTES,
            false => chunk.bytes(with_prev),
        };
        let (max, cost) = (self.bytes_max(), bytes + RESPONSE_OVERHEAD);
        if state.bytes > 0 && state.bytes + cost > max {
            state.stall((max / 2).min(max.saturating_sub(cost)));
            return Err(Full);
        }
        let (wire_bytes, events) = (chunk.wire_bytes(with_prev), chunk.changes.len());
        if join.0 >= state.front.max(state.barrier) {
            let at = usize::try_from(join.0 - state.front).unwrap_or(usize::MAX);
            if let Some(queued) = state.queue.get_mut(at)
                && queued.wire_bytes + wire_bytes <= self.response_bytes
                && queued.revisions + chunk.revisions <= REVISIONS_PER_RESPONSE
            {
                debug_assert_eq!(queued.response.watch_id, watch_id);
                queued.response.events.push(Arc::clone(chunk));
                queued.response.revision = queued.response.revision.max(header);
                queued.bytes += bytes;
                queued.wire_bytes += wire_bytes;
                queued.events += events;
                queued.revisions += chunk.revisions;
                self.add(state, bytes, events);
                state.charge(chunk, with_prev);
                return Ok(join);
            }
        }
        if state.queue.len() >= self.responses_max {
            state.stall(max / 2);
            return Err(Full);
        }
        state.charge(chunk, with_prev);
        let response = Response {
            watch_id,
            revision: header,
            events: Events::new(Arc::clone(chunk), with_prev, may_split),
            ..Response::default()
        };
        let queued = Queued {
            bytes,
            wire_bytes,
            events,
            revisions: chunk.revisions,
            ..Queued::new(response)
        };
        Ok(self.push(state, queued))
    }

    /// Is it worth fetching events for this stream? If not, the outbox tells when it is.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.state.lock();
        let full = self.is_full(&state);
        if full {
            state.stall(self.bytes_max() / 2);
        }
        !full
    }

    fn is_full(&self, state: &State) -> bool {
        state.bytes >= self.bytes_max() || state.queue.len() >= self.responses_max
    }

    pub(super) fn pop(&self) -> Popped {
        let mut state = self.state.lock();
        self.pop_locked(&mut state)
    }

    fn pop_locked(&self, state: &mut State) -> Popped {
        let Some(queued) = state.queue.pop_front() else {
            if state.ended {
                return Popped::Ended;
            }
            // Who waits for room with nothing queued had it taken back.
            let drained = state.stalled.take().is_some();
            return Popped::Empty { drained };
        };
        state.front += 1;
        self.subtract(state, queued.bytes + RESPONSE_OVERHEAD, queued.events);
        self.totals.taken.fetch_add(queued.events as u64, Ordering::Relaxed);
        if queued.answer {
            state.owed = state.owed.saturating_sub(1);
            state.requester.take().inspect(Waker::wake_by_ref);
        }
        let drained =
            state.stalled.is_some_and(|below| state.bytes <= below) && state.queue.len() <= self.responses_max / 2;
        if drained {
            state.stalled = None;
        }
        if state.queue.is_empty() && state.queue.capacity() > 64 {
            state.queue = VecDeque::new(); // a burst should not be paid for ever after
        }
        Popped::Response {
            response: queued.response,
            drained,
        }
    }

    /// As `pop`, and sees to a wake-up when there is nothing.
    pub(super) fn poll_pop(&self, cx: &Context<'_>) -> Popped {
        let mut state = self.state.lock();
        let popped = self.pop_locked(&mut state);
        if matches!(popped, Popped::Empty { .. }) {
            remember(&mut state.reader, cx);
        }
        popped
    }

    pub(super) fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.owed < self.requests_max || state.ended {
            return Poll::Ready(());
        }
        remember(&mut state.requester, cx);
        Poll::Pending
    }

    /// Wakes the stream's task if it waits for responses and there are some.
    pub(super) fn wake(&self) {
        let mut state = self.state.lock();
        if state.queue.is_empty() && !state.ended {
            return;
        }
        let reader = state.reader.take();
        drop(state);
        reader.inspect(Waker::wake_by_ref);
    }

    /// Does anything still wait that waited when this was last asked?
    pub(super) fn is_slow(&self) -> bool {
        let mut state = self.state.lock();
        let end = state.front + state.queue.len() as u64;
        let asked_at = std::mem::replace(&mut state.asked_at, end);
        state.front < asked_at.min(end)
    }

    /// Takes the events out again that wait for those watchers that `may` read them from history, and says from which
    /// revision on each of them has to. The outbox tells when the client reads on.
    ///
    /// Progress that waits behind them vouches for them, so it goes too; if it was asked for, the client asks again.
    pub(super) fn take_back(&self, may: impl Fn(i64) -> bool) -> BTreeMap<i64, Revision> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        // The id may have been another watcher's: what is ahead of its last `created` is not the present one's.
        let created = state
            .queue
            .iter()
            .enumerate()
            .filter(|(_, queued)| queued.response.created);
        let begins: HashMap<i64, usize> = created.map(|(at, queued)| (queued.response.watch_id, at)).collect();
        let mut taken: BTreeMap<i64, Revision> = BTreeMap::new();
        let mut dropped = Vec::new();
        let mut kept = VecDeque::new();
        for (at, queued) in std::mem::take(&mut state.queue).into_iter().enumerate() {
            let id = queued.response.watch_id;
            let first = queued.response.events.first_revision();
            if let Some(first) = first.filter(|_| begins.get(&id).is_none_or(|begin| *begin < at) && may(id)) {
                taken.entry(id).or_insert(first);
            } else if dropped.is_empty() || !queued.response.is_progress() {
                kept.push_back(queued);
                continue;
            } else if queued.answer {
                state.owed = state.owed.saturating_sub(1);
            }
            self.subtract(state, queued.bytes + RESPONSE_OVERHEAD, queued.events);
            dropped.push(queued);
        }
        state.queue = kept;
        if dropped.is_empty() {
            return taken;
        }
        // No place is given out twice, and nobody joins what has changed its place.
        state.front += dropped.len() as u64;
        state.barrier = state.front + state.queue.len() as u64;
        state.charged = Default::default();
        state.stall(self.bytes_max / 2);
        let requester = state.requester.take();
        drop(guard);
        requester.inspect(Waker::wake_by_ref);
        drop(dropped); // may free a lot: not under the lock
        taken
    }

    /// The client's side is gone.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        state.front += queue.len() as u64;
        let (bytes, events) = (state.bytes, state.events);
        self.subtract(&mut state, bytes, events);
        drop(state);
        drop(queue); // may free a lot: not under the lock
    }

    /// The hub is gone.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        let wakers = [state.reader.take(), state.requester.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    fn has_charged(&self, chunk: &Arc<Chunk>, with_prev: bool) -> bool {
        let (charged, prev) = &self.charged;
        std::ptr::eq(charged.as_ptr(), Arc::as_ptr(chunk)) && *prev == with_prev
    }

    fn charge(&mut self, chunk: &Arc<Chunk>, with_prev: bool) {
        if !self.has_charged(chunk, with_prev) {
            self.charged = (Arc::downgrade(chunk), with_prev);
        }
    }

    fn stall(&mut self, below: usize) {
        self.stalled = Some(self.stalled.map_or(below, |other| other.min(below)));
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

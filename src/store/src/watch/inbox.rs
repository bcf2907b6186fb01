//! What waits for the dispatcher: batches from apply, requests from streams, replies from the history reader.
//!
//! One short lock, held by nobody for longer than a few pushes, so that apply never waits.

use super::catch_up::Reply;
use super::outbox::Outbox;
use crate::event::{Event, EventBatch, EventKind};
use crate::stepped::OnWork;
use parking_lot::{Condvar, Mutex};
use quorate_api::Revision;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Upper bound for one round of the dispatcher, so that requests and replies get their turn.
const ROUND_BATCHES: usize = 512;
const ROUND_BYTES: usize = 1 << 20;

/// A stream's number; reused after the dispatcher has forgotten the stream.
pub(super) type StreamId = u32;

#[derive(Debug)]
pub(super) enum Request {
    Open(StreamId, Arc<Outbox>),
    Create(StreamId, WatchCreateRequest),
    /// A create that was turned down before it came here (permissions), to be answered in its turn.
    Refuse(StreamId, Cow<'static, str>),
    Cancel(StreamId, i64),
    Progress(StreamId),
    /// The stream's outbox has room again.
    Drained(StreamId),
    Close(StreamId),
}

#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    /// Called as well, where no dispatcher waits.
    on_work: Option<OnWork>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Arc<EventBatch>>,
    batch_bytes: usize,
    requests: Vec<Request>,
    replies: Vec<Reply>,
    /// Batches were let go up to here.
    missed: Option<Revision>,
    /// The store was replaced under us.
    resync: bool,
    tick: bool,
    relieve: bool,
    streams: usize,
    free: Vec<StreamId>,
    next: StreamId,
    /// The dispatcher sleeps and must be woken.
    asleep: bool,
    stopped: bool,
}

/// What the dispatcher takes for one round.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) batches: Vec<Arc<EventBatch>>,
    pub(super) requests: Vec<Request>,
    pub(super) replies: Vec<Reply>,
    pub(super) missed: Option<Revision>,
    pub(super) resync: bool,
    pub(super) tick: bool,
    pub(super) relieve: bool,
}

/// Why the dispatcher was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Work,
    Timeout,
    Stop,
}

/// About what a batch holds in memory. Most batches have one event, and room for four.
pub(super) fn size(batch: &EventBatch) -> usize {
    const BATCH_OVERHEAD: usize = 128;
    // Key and value share a piece of memory of their own.
    const PAIR_OVERHEAD: usize = 48;
    let pair = |event: &Event| match &event.kind {
        EventKind::Put { value, .. } => event.key.len() + value.len(),
        EventKind::Delete => event.key.len(),
    };
    let events = batch
        .events
        .iter()
        .map(|event| PAIR_OVERHEAD + pair(event))
        .sum::<usize>();
    BATCH_OVERHEAD + batch.events.capacity() * size_of::<Event>() + events
}

impl Inbox {
    pub(super) fn new(bytes_max: usize, on_work: Option<OnWork>) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            on_work,
            bytes_max,
        }
    }

    pub(super) fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        let Some(last) = batches.last().map(|batch| batch.revision) else {
            return;
        };
        let mut state = self.state.lock();
        if state.streams == 0 {
            // Nobody watches: only how far the store has come is of interest, and not now.
            let dropped = std::mem::take(&mut state.batches);
            state.batch_bytes = 0;
            state.missed = Some(last);
            drop(state);
            return drop(dropped);
        }
        state.batch_bytes += batches.iter().map(|batch| size(batch)).sum::<usize>();
        state.batches.extend(batches);
        let mut dropped = VecDeque::new();
        if state.batch_bytes > self.bytes_max {
            dropped = std::mem::take(&mut state.batches);
            state.batch_bytes = 0;
            state.missed = Some(last);
        }
        self.wake(state);
        drop(dropped);
    }

    pub(super) fn request(&self, request: Request) {
        let mut state = self.state.lock();
        if matches!(request, Request::Close(_)) {
            state.streams -= 1;
        }
        state.requests.push(request);
        self.wake(state);
    }

    /// Admits a stream; from now on published batches are kept.
    pub(super) fn open(&self, outbox: Arc<Outbox>) -> StreamId {
        let mut state = self.state.lock();
        let id = state.free.pop().unwrap_or_else(|| {
            state.next += 1;
            state.next - 1
        });
        if state.stopped {
            outbox.end();
        }
        state.streams += 1;
        state.requests.push(Request::Open(id, outbox));
        self.wake(state);
        id
    }

    pub(super) fn free(&self, id: StreamId) {
        self.state.lock().free.push(id);
    }

    pub(super) fn reply(&self, reply: Reply) {
        let mut state = self.state.lock();
        state.replies.push(reply);
        self.wake(state);
    }

    pub(super) fn tick(&self) {
        let mut state = self.state.lock();
        state.tick = true;
        self.wake(state);
    }

    pub(super) fn relieve(&self) {
        let mut state = self.state.lock();
        state.relieve = true;
        self.wake(state);
    }

    pub(super) fn resync(&self) {
        let mut state = self.state.lock();
        let dropped = std::mem::take(&mut state.batches);
        state.batch_bytes = 0;
        state.resync = true;
        self.wake(state);
        drop(dropped);
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        self.wake(state);
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let asleep = std::mem::replace(&mut state.asleep, false);
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
        if let Some(on_work) = &self.on_work {
            on_work.call();
        }
    }

    pub(super) fn has_work(&self) -> bool {
        let state = self.state.lock();
        !state.stopped && state.has_work()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    pub(super) fn take(&self) -> Work {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut work = Work {
            batches: Vec::new(),
            requests: std::mem::take(&mut state.requests),
            replies: std::mem::take(&mut state.replies),
            missed: state.missed.take(),
            resync: std::mem::take(&mut state.resync),
            tick: std::mem::take(&mut state.tick),
            relieve: std::mem::take(&mut state.relieve),
        };
        let mut bytes = 0;
        while bytes < ROUND_BYTES
            && work.batches.len() < ROUND_BATCHES
            && let Some(batch) = state.batches.pop_front()
        {
            bytes += size(&batch);
            work.batches.push(batch);
        }
        state.batch_bytes = if state.batches.is_empty() {
            0
        } else {
            state.batch_bytes - bytes
        };
        work
    }

    /// Sleeps until there is work, but for `at_most`.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> Woken {
        let mut state = self.state.lock();
        let mut woken = Woken::Work;
        while !state.stopped && !state.has_work() {
            state.asleep = true;
            match at_most {
                Some(at_most) => {
                    if self.arrived.wait_for(&mut state, at_most).timed_out() {
                        woken = Woken::Timeout;
                        break;
                    }
                }
                None => self.arrived.wait(&mut state),
            }
        }
        state.asleep = false;
        if state.stopped { Woken::Stop } else { woken }
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.batches.is_empty()
            || !self.requests.is_empty()
            || !self.replies.is_empty()
            || self.resync
            || self.tick
            || self.relieve
            // Batches missed while nobody watched can wait for the first request.
            || (self.missed.is_some() && self.streams > 0)
    }
}

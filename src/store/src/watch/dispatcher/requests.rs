//! What clients ask for: create, cancel, progress; and streams that come and go.

use super::super::inbox::{Request, StreamId};
use super::super::outbox::{Outbox, Place};
use super::super::response::Response;
use super::{Dispatcher, State, Stream, Watcher};
use bytes::Bytes;
use quorate_api::error::watch_cancel;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use quorate_api::proto::etcdserverpb::watch_create_request::FilterType;
use quorate_api::{KeyRange, Revision};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Dispatcher {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Open(stream, outbox) => self.open(stream, outbox),
            Request::Create(stream, request) => {
                self.answer_before_create(stream);
                let range = exact_range(&request.key, &request.range_end);
                match self.create(stream, range, &request) {
                    Created::Watcher(answer) | Created::Refused(answer) => self.answer(stream, Some(answer)),
                    Created::Compacted(answer, at) => {
                        let id = answer.watch_id;
                        self.answer(stream, Some(answer));
                        if let Some(open) = self.stream_mut(stream) {
                            open.outbox.obituary(Response::compacted(id, at));
                        }
                    }
                    Created::NoStream => {}
                }
            }
            Request::Refuse(stream, reason) => {
                let answer = Response::refused(self.revision(), reason);
                self.answer(stream, Some(answer));
            }
            Request::Cancel(stream, id) => {
                let answer = self.cancel(stream, id);
                self.answer(stream, answer);
            }
            Request::Progress(stream) => self.ask_progress(stream),
            Request::Drained(stream) => {
                let parked = self.stream_mut(stream).map(|stream| std::mem::take(&mut stream.parked));
                for ticket in parked.unwrap_or_default() {
                    if self.watchers.redeem(ticket).is_some() {
                        self.queue(ticket.at);
                    }
                }
            }
            Request::Close(stream) => self.close(stream),
        }
    }

    fn open(&mut self, id: StreamId, outbox: Arc<Outbox>) {
        let at = id as usize;
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, || None);
        }
        debug_assert!(self.streams[at].is_none(), "stream {id} opened twice");
        self.streams[at] = Some(Stream {
            outbox,
            ids: BTreeMap::new(),
            next_id: 0,
            parked: Vec::new(),
            touched: false,
        });
        self.shared.counters.streams.fetch_add(1, Ordering::Relaxed);
    }

    fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        for at in stream.ids.into_values().flatten() {
            self.forget(at);
        }
        self.asked.retain(|asked| asked.stream != id);
        self.touched.retain(|touched| *touched != id); // the number may have a new owner within this turn
        self.shared.counters.streams.fetch_sub(1, Ordering::Relaxed);
        self.shared.inbox.free(id);
    }

    pub(super) fn answer(&mut self, stream: StreamId, answer: Option<Response>) {
        let Some(open) = self.stream_mut(stream) else {
            return;
        };
        match answer {
            Some(answer) => {
                open.outbox.answer(answer);
                self.touch(stream);
            }
            None => open.outbox.settle(),
        }
    }

    /// Registers a watcher. The answer enters the outbox before any of its events can: both come from here.
    fn create(&mut self, stream: StreamId, range: KeyRange, request: &WatchCreateRequest) -> Created {
        let revision = self.revision();
        let (dispatched, compacted) = (self.dispatched, self.history.compacted());
        let Some(open) = self.stream_mut(stream) else {
            return Created::NoStream;
        };
        let refused = |reason: &'static str| Created::Refused(Response::refused(revision, reason.into()));
        if request.start_revision < 0 {
            return refused(watch_cancel::COMPACTED);
        }
        if range.is_empty() {
            return refused(watch_cancel::EMPTY_RANGE);
        }
        if request.watch_id != 0 && open.ids.contains_key(&request.watch_id) {
            return refused(watch_cancel::DUPLICATE_ID);
        }
        let id = if request.watch_id == 0 {
            open.free_id()
        } else {
            request.watch_id
        };
        let created = Response {
            watch_id: id,
            revision,
            created: true,
            ..Response::default()
        };
        open.ids.insert(id, None);
        if request.start_revision > 0 && request.start_revision < compacted {
            return Created::Compacted(created, compacted);
        }

        let (start, next) = match Revision::from_range(request.start_revision) {
            Some(start) => (start, start),
            None => (revision, revision.next()),
        };
        let at = self.watchers.insert_with(|at| Watcher {
            id,
            stream,
            membership: self.index.join(&range, at, request.prev_kv),
            state: State::Synced,
            no_put: request.filters.contains(&FilterType::Noput.into()),
            no_delete: request.filters.contains(&FilterType::Nodelete.into()),
            with_prev: request.prev_kv,
            may_split: request.fragment,
            notify: request.progress_notify,
            sent: false,
            next,
            start,
            last_place: Place::default(),
        });
        self.shared.counters.watchers.fetch_add(1, Ordering::Relaxed);
        if let Some(open) = self.stream_mut(stream) {
            open.ids.insert(id, Some(at));
        }
        if next <= dispatched {
            self.queue(at);
        }
        Created::Watcher(created)
    }

    fn cancel(&mut self, stream: StreamId, id: i64) -> Option<Response> {
        let revision = self.revision();
        let watcher = self.stream_mut(stream)?.ids.remove(&id)?;
        if let Some(at) = watcher {
            self.forget(at);
        }
        Some(Response {
            watch_id: id,
            revision,
            canceled: true,
            ..Response::default()
        })
    }
}

/// How a create ended.
enum Created {
    Watcher(Response),
    Refused(Response),
    /// Created, and ended in the same breath by an earlier compaction.
    Compacted(Response, i64),
    /// The stream was closed meanwhile.
    NoStream,
}

impl Stream {
    fn free_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}

/// The range to watch, in memory of its own: a slice of the request would keep the whole receive buffer alive for as
/// long as the watcher lives.
fn exact_range(key: &Bytes, range_end: &Bytes) -> KeyRange {
    let key: &[u8] = if key.is_empty() { b"\0" } else { key };
    KeyRange::new(Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end))
}

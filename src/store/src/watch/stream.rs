//! One watch stream, as the task sees it that serves it.

use super::hub::Shared;
use super::inbox::{Request, StreamId};
use super::outbox::{Outbox, Popped};
use super::response::Response;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Requests go in, responses come out, in one order. Requests return at once; their answers come as responses. Call
/// them only after [`poll_ready`](Self::poll_ready), or a client that asks without reading costs unbounded memory.
///
/// Dropping it ends all its watchers.
#[derive(Debug)]
pub struct WatchStream {
    shared: Arc<Shared>,
    id: StreamId,
    outbox: Arc<Outbox>,
    /// Pieces of a response that was too large, still to be handed out.
    pieces: VecDeque<Response>,
}

impl WatchStream {
    pub(super) fn open(shared: &Arc<Shared>) -> Self {
        let outbox = Arc::new(Outbox::new(&shared.options, Arc::clone(&shared.counters.totals)));
        Self {
            shared: Arc::clone(shared),
            id: shared.inbox.open(Arc::clone(&outbox)),
            outbox,
            pieces: VecDeque::new(),
        }
    }

    /// Whether the next request may be read from the client.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.outbox.poll_ready(cx)
    }

    /// Permission must have been checked.
    pub fn create(&mut self, request: WatchCreateRequest) {
        self.request(Request::Create(self.id, request));
    }

    /// Answers a create that may not be, in its turn: `created` and `canceled` with this reason, watch id −1.
    pub fn refuse(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.request(Request::Refuse(self.id, reason.into()));
    }

    pub fn cancel(&mut self, watch_id: i64) {
        self.request(Request::Cancel(self.id, watch_id));
    }

    /// Asks for progress of the whole stream.
    pub fn progress(&mut self) {
        self.request(Request::Progress(self.id));
    }

    fn request(&mut self, request: Request) {
        self.outbox.owe();
        self.shared.inbox.request(request);
    }

    /// The next response; `None` when the hub has stopped and everything was handed out.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(piece));
        }
        match self.outbox.poll_pop(cx) {
            Popped::Response { response, drained } => Poll::Ready(self.hand_out(response, drained)),
            Popped::Empty { drained } => {
                self.note(drained);
                Poll::Pending
            }
            Popped::Ended => Poll::Ready(None),
        }
    }

    /// As [`poll_next`](Self::poll_next), without waiting.
    pub fn try_next(&mut self) -> Option<Response> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        match self.outbox.pop() {
            Popped::Response { response, drained } => self.hand_out(response, drained),
            Popped::Empty { drained } => {
                self.note(drained);
                None
            }
            Popped::Ended => None,
        }
    }

    fn note(&self, drained: bool) {
        if drained {
            self.shared.inbox.request(Request::Drained(self.id));
        }
    }

    fn hand_out(&mut self, response: Response, drained: bool) -> Option<Response> {
        self.note(drained);
        let limit = self.shared.options.fragment_bytes;
        if !response.must_split(limit) {
            return Some(response);
        }
        response.split(limit, |piece| self.pieces.push_back(piece));
        self.pieces.pop_front()
    }

    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.outbox.close();
        self.shared.inbox.request(Request::Close(self.id));
    }
}

//! The watch hub: from the events of apply to the responses of every watch stream.
//!
//! ```text
//! apply ──publish──► inbox ──► dispatcher ──► outbox of each stream ──► the stream's task (encode, send)
//!                      ▲           │  ▲
//! stream requests ─────┘     jobs  ▼  │ replies
//!                             history reader ──► [`History`] (mvcc)
//! ```
//!
//! * [`History`] is all that the hub wants from the store; nothing here reads a clock, time enters as calls.
//! * Apply hands batches over and goes on: what a watcher costs is paid on the dispatcher's thread, which owns all
//!   watchers, so that requests, events and progress of one stream have one order and need no lock between them.
//! * A watcher that is *synced* takes events from the dispatcher. One that is *behind* (it asked for the past, its
//!   client reads slowly, or a snapshot jumped) is served from recent batches or by the history reader, a slice at a
//!   time, and holds up nobody.
//! * Memory is bounded, and what waits is charged with what it takes in memory, not on the wire: a full outbox sends its
//!   watchers back to history until the client reads again, a full inbox sends all of them there. Nobody is ever dropped
//!   for being slow.
//!
//! Invariants, per watcher: `next` only grows, unless what waits is taken back out of the outbox; every event in its
//! range below `next` (and not below its start) has been put into the outbox, exactly once and in order; a transaction
//! is never cut between two responses unless the client takes fragments. Progress is told only of synced watchers, up to where the dispatcher has come and no less
//! than what history has delivered, and travels in the same outbox: so it can't promise what was not sent.

mod catch_up;
mod dispatcher;
mod history;
mod hub;
mod inbox;
mod index;
mod intervals;
mod outbox;
mod payload;
mod response;
mod slots;
mod stream;

#[cfg(test)]
mod tests;

pub use history::{History, HistoryError, Replay};
pub use hub::{Hub, Stats, Stepper};
pub use response::{Header, Response, Segments};
pub use stream::WatchStream;

use std::fmt;
use std::sync::Arc;

/// Hears what nobody who waits for an answer can be told.
pub trait Observer: Send + Sync + 'static {
    /// History could not be read (not: was compacted). The watchers concerned wait and are tried again; they miss
    /// nothing, but they stand still for as long as this goes on.
    fn history_failed(&self, error: &HistoryError);
}

impl Observer for () {
    fn history_failed(&self, _: &HistoryError) {}
}

/// Bounds of the hub. The defaults suit a server.
#[derive(Clone)]
pub struct Options {
    /// What one stream may have waiting, in bytes of events and their overhead; beyond it its watchers fall behind.
    /// One response may exceed it alone.
    pub outbox_bytes_max: usize,
    /// What all streams together may have waiting. Beyond it a stream is full when it has [`STREAM_SHARE_BYTES`], until
    /// those that read slowly have let go of theirs ([`Hub::tick_slow`]). An event that waits on several streams is
    /// counted on each, though it is in memory once.
    pub outboxes_bytes_max: usize,
    /// The same as `outbox_bytes_max` as a number of responses. Waiting events of one watcher share a response, so this
    /// also bounds how many watchers of a stream can have something waiting.
    pub outbox_responses_max: usize,
    /// Requests of one stream that are not answered yet, or whose answer was not taken yet, before
    /// [`WatchStream::poll_ready`] asks for patience.
    pub requests_max: usize,
    /// Events stop being added to a waiting response once it has this size; also the size of one read of history.
    pub response_bytes: usize,
    /// From this encoded size on a response is split, if its watcher allows it: etcd's request limit + 512 KiB.
    pub fragment_bytes: usize,
    /// Events that wait for the dispatcher; beyond it they are let go, and all watchers turn to history.
    pub inbox_bytes_max: usize,
    /// Dispatched batches that are kept to bring watchers the last step up to date without reading history.
    pub recent_batches: usize,
    pub recent_bytes: usize,
    pub observer: Arc<dyn Observer>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            outbox_bytes_max: 4 << 20,
            outboxes_bytes_max: 64 << 20,
            outbox_responses_max: 4096,
            requests_max: 128,
            response_bytes: 256 << 10,
            fragment_bytes: (1536 << 10) + (512 << 10),
            inbox_bytes_max: 64 << 20,
            recent_batches: 256,
            recent_bytes: 1 << 20,
            observer: Arc::new(()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("outbox_bytes_max", &self.outbox_bytes_max)
            .field("outboxes_bytes_max", &self.outboxes_bytes_max)
            .field("outbox_responses_max", &self.outbox_responses_max)
            .field("requests_max", &self.requests_max)
            .field("fragment_bytes", &self.fragment_bytes)
            .field("inbox_bytes_max", &self.inbox_bytes_max)
            .finish_non_exhaustive()
    }
}

/// What a stream may have waiting even when all streams together have too much.
pub const STREAM_SHARE_BYTES: usize = 64 << 10;

/// Distinct revisions in one response: etcd's bound for watchers that catch up, kept for all.
const REVISIONS_PER_RESPONSE: usize = 1000;

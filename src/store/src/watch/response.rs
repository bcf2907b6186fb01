//! Responses as streams hand them out, and how they are written: a small head of their own, then the bytes of shared
//! events.

use super::payload::{Change, Chunk};
use bytes::Bytes;
use prost::Message;
use quorate_api::Revision;
use quorate_api::proto::etcdserverpb as pb;
use std::borrow::Cow;
use std::sync::Arc;

/// The part of a response header that the server knows; the revision is the response's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
}

/// One `WatchResponse`, events not yet written out.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// −1 on a failed create and on progress of the whole stream.
    pub watch_id: i64,
    /// `header.revision`; 0 when compaction ended the watcher.
    pub revision: Revision,
    pub created: bool,
    pub canceled: bool,
    /// Not 0 when compaction ended the watcher.
    pub compact_revision: i64,
    pub cancel_reason: Cow<'static, str>,
    /// More fragments of this response follow.
    pub fragment: bool,
    pub(super) events: Events,
}

/// The events of a response: chunks shared with other responses.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    // Nearly all responses have one chunk: no allocation for those.
    first: Option<Arc<Chunk>>,
    more: Vec<Arc<Chunk>>,
    pub(super) with_prev: bool,
    /// The client takes fragments.
    pub(super) may_split: bool,
}

impl Events {
    pub(super) fn new(chunk: Arc<Chunk>, with_prev: bool, may_split: bool) -> Self {
        Self {
            first: Some(chunk),
            more: Vec::new(),
            with_prev,
            may_split,
        }
    }

    pub(super) fn push(&mut self, chunk: Arc<Chunk>) {
        debug_assert!(self.first.is_some());
        self.more.push(chunk);
    }

    fn changes(&self) -> impl Iterator<Item = &Arc<Change>> {
        self.first.iter().chain(&self.more).flat_map(|chunk| &chunk.changes)
    }

    /// `None` without events.
    pub(super) fn first_revision(&self) -> Option<Revision> {
        self.first.as_ref().map(|chunk| chunk.first())
    }

    fn len(&self) -> usize {
        self.first
            .iter()
            .chain(&self.more)
            .map(|chunk| chunk.changes.len())
            .sum()
    }
}

impl Response {
    /// A failed create: the stream stays usable.
    pub(super) fn refused(revision: Revision, reason: Cow<'static, str>) -> Self {
        Self {
            watch_id: -1,
            revision,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Self::default()
        }
    }

    pub(super) fn compacted(watch_id: i64, at: i64) -> Self {
        Self {
            watch_id,
            canceled: true,
            compact_revision: at,
            ..Self::default()
        }
    }

    pub(super) fn progress(watch_id: i64, revision: Revision) -> Self {
        Self {
            watch_id,
            revision,
            ..Self::default()
        }
    }

    /// Answers a request or ends a watcher.
    pub fn is_control(&self) -> bool {
        self.created || self.canceled
    }

    /// A promise about what was sent, and nothing else.
    pub(super) fn is_progress(&self) -> bool {
        !self.is_control() && self.events.first.is_none()
    }

    pub fn events_len(&self) -> usize {
        self.events.len()
    }

    fn head(&self, header: &Header) -> pb::WatchResponse {
        pb::WatchResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: header.cluster_id,
                member_id: header.member_id,
                revision: self.revision.0,
                raft_term: header.raft_term,
            }),
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.clone().into_owned(),
            fragment: self.fragment,
            events: Vec::new(),
        }
    }

    /// The whole message, to compare with what is written.
    #[cfg(test)]
    pub(super) fn to_message(&self, header: &Header) -> pb::WatchResponse {
        let with_prev = self.events.with_prev;
        let events = self.events.changes().map(|change| change.to_message(with_prev));
        pb::WatchResponse {
            events: events.collect(),
            ..self.head(header)
        }
    }

    fn events_encoded_len(&self) -> usize {
        let with_prev = self.events.with_prev;
        self.events
            .changes()
            .map(|change| change.encoded(with_prev).len())
            .sum()
    }

    /// Appends the message as gRPC frames it: one byte "not compressed", the length as 4 bytes, the message.
    pub fn encode_grpc(&self, header: &Header, out: &mut Segments) {
        let prefix = out.tail.len();
        out.put_small(&[0; 5]);
        let head = out.put_message(&self.head(header));
        // No transaction comes near 4 GiB.
        let len = u32::try_from(head + self.events_encoded_len()).unwrap_or(u32::MAX);
        out.tail[prefix + 1..prefix + 5].copy_from_slice(&len.to_be_bytes());
        for change in self.events.changes() {
            out.put_shared(change.encoded(self.events.with_prev));
        }
    }

    /// Is it too large for a client that takes fragments?
    pub(super) fn must_split(&self, limit: usize) -> bool {
        self.events.may_split && self.events.len() > 1 && self.head_max() + self.events_encoded_len() >= limit
    }

    /// What comes before the events, at most: the server's part of the header is not known here.
    fn head_max(&self) -> usize {
        const IDS_AND_TERM_MAX: usize = 33;
        self.head(&Header::default()).encoded_len() + IDS_AND_TERM_MAX
    }

    /// Splits at event boundaries, so that each piece stays below `limit` if possible; calls `piece` for each.
    pub(super) fn split(self, limit: usize, mut piece: impl FnMut(Response)) {
        let head = self.head_max();
        let with_prev = self.events.with_prev;
        let mut pieces = Vec::new();
        let (mut changes, mut size) = (Vec::new(), head);
        for change in self.events.changes() {
            let len = change.encoded(with_prev).len();
            if !changes.is_empty() && size + len >= limit {
                pieces.push(std::mem::take(&mut changes));
                size = head;
            }
            changes.push(Arc::clone(change));
            size += len;
        }
        pieces.push(changes);
        let last = pieces.len() - 1;
        for (at, changes) in pieces.into_iter().enumerate() {
            let Some(chunk) = Chunk::new(changes) else { continue };
            piece(Response {
                fragment: at < last,
                events: Events::new(Arc::new(chunk), with_prev, false),
                cancel_reason: self.cancel_reason.clone(),
                ..self
            });
        }
    }
}

/// Encoded messages as a few segments: what is small is copied together, what is large is shared. Several responses
/// may be written into one.
#[derive(Debug, Default)]
pub struct Segments {
    done: Vec<Bytes>,
    tail: Vec<u8>, // not `BytesMut`: single bytes, of which heads are made, go into a vector much faster
    len: usize,
    /// How long the last tail became: the next is likely to need as much.
    last_tail: usize,
}

impl Segments {
    /// Below this a segment of its own (a frame, a write) costs more than the copy.
    const SHARE_FROM: usize = 4 << 10;
    /// A tail begins with room for so much. What is reserved in vain waits for the client as long as the rest does, so
    /// it is not much.
    const TAIL_MIN: usize = 128;
    const TAIL_MAX: usize = 4 << 10;

    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in all segments.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn put_small(&mut self, bytes: &[u8]) {
        if self.tail.capacity() == 0 {
            let room = self.last_tail.clamp(Self::TAIL_MIN, Self::TAIL_MAX);
            self.tail.reserve(room.max(bytes.len()));
        }
        self.len += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Returns the message's length.
    fn put_message(&mut self, message: &pb::WatchResponse) -> usize {
        let before = self.tail.len();
        message.encode_raw(&mut self.tail); // can not run out of room: a vector grows
        let len = self.tail.len() - before;
        self.len += len;
        len
    }

    fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < Self::SHARE_FROM {
            return self.put_small(bytes);
        }
        self.end_tail();
        self.len += bytes.len();
        self.done.push(bytes.clone());
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.last_tail = self.tail.len();
            self.done.push(std::mem::take(&mut self.tail).into());
        }
    }

    /// The segments in order; leaves this empty for the next use.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.end_tail();
        self.len = 0;
        std::mem::take(&mut self.done)
    }
}

//! Events on their way to watchers: encoded once, shared by all who want them.

use super::history::{History, HistoryError};
use crate::event::{Event, EventBatch, EventKind};
use bytes::Bytes;
use prost::encoding::message;
use quorate_api::Revision;
use quorate_api::proto::mvccpb;
use std::sync::{Arc, OnceLock};

/// `WatchResponse.events`.
const EVENTS_FIELD: u32 = 11;
/// Field tags, lengths and numbers of an event, roughly; only used to account for memory.
const EVENT_OVERHEAD: usize = 48;

/// One event that at least one watcher wants.
#[derive(Debug)]
pub(super) struct Change {
    batch: Arc<EventBatch>,
    at: usize,
    /// The pair that the event replaced, looked up once if anyone wants it.
    prev: OnceLock<Option<Box<mvccpb::KeyValue>>>,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl Change {
    pub(super) fn new(batch: &Arc<EventBatch>, at: usize) -> Arc<Self> {
        debug_assert!(at < batch.events.len());
        Arc::new(Self {
            batch: Arc::clone(batch),
            at,
            prev: OnceLock::new(),
            plain: OnceLock::new(),
            with_prev: OnceLock::new(),
        })
    }

    pub(super) fn event(&self) -> &Event {
        &self.batch.events[self.at]
    }

    pub(super) fn revision(&self) -> Revision {
        self.batch.revision
    }

    pub(super) fn is_put(&self) -> bool {
        matches!(self.event().kind, EventKind::Put { .. })
    }

    pub(super) fn load_prev(&self, history: &dyn History) -> Result<(), HistoryError> {
        if self.prev.get().is_some() {
            return Ok(());
        }
        let event = self.event();
        let pair = match event.prev {
            Some(revision) => history.pair_at(&event.key, revision)?,
            None => None,
        };
        // A second thread may have been faster; it read the same.
        let _ = self.prev.set(pair.map(Box::new));
        Ok(())
    }

    fn prev(&self) -> Option<&mvccpb::KeyValue> {
        self.prev.get().and_then(|pair| pair.as_deref())
    }

    pub(super) fn to_message(&self, with_prev: bool) -> mvccpb::Event {
        let event = self.event();
        let mod_revision = self.batch.revision.0;
        let (kind, kv) = match &event.kind {
            EventKind::Put {
                create_revision,
                version,
                lease,
                value,
            } => {
                let kv = mvccpb::KeyValue {
                    key: event.key.clone(),
                    create_revision: create_revision.0,
                    mod_revision,
                    version: *version,
                    value: value.clone(),
                    lease: *lease,
                };
                (mvccpb::event::EventType::Put, kv)
            }
            EventKind::Delete => {
                let kv = mvccpb::KeyValue {
                    key: event.key.clone(),
                    mod_revision,
                    ..Default::default()
                };
                (mvccpb::event::EventType::Delete, kv)
            }
        };
        mvccpb::Event {
            r#type: kind.into(),
            kv: Some(kv),
            prev_kv: self.prev().filter(|_| with_prev).cloned(),
        }
    }

    /// The event as an element of `WatchResponse.events`, tag and length included.
    pub(super) fn encoded(&self, with_prev: bool) -> &Bytes {
        if with_prev && self.prev().is_some() {
            self.with_prev.get_or_init(|| self.encode(true))
        } else {
            self.plain.get_or_init(|| self.encode(false))
        }
    }

    fn encode(&self, with_prev: bool) -> Bytes {
        let event = self.to_message(with_prev);
        let mut bytes = Vec::with_capacity(message::encoded_len(EVENTS_FIELD, &event));
        message::encode(EVENTS_FIELD, &event, &mut bytes);
        bytes.into()
    }

    fn size(&self) -> usize {
        let event = self.event();
        let value = match &event.kind {
            EventKind::Put { value, .. } => value.len(),
            EventKind::Delete => 0,
        };
        EVENT_OVERHEAD + event.key.len() + value
    }

    fn prev_size(&self) -> usize {
        self.prev()
            .map_or(0, |pair| EVENT_OVERHEAD + pair.key.len() + pair.value.len())
    }
}

/// Some events in order, whole transactions of them; what watchers with the same taste share. Never empty.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) changes: Vec<Arc<Change>>,
    /// Distinct revisions.
    pub(super) revisions: usize,
    bytes: usize,
    prev_bytes: usize,
}

impl Chunk {
    /// `None` for no events. If anyone wants previous pairs, they must have been loaded.
    pub(super) fn new(changes: Vec<Arc<Change>>) -> Option<Self> {
        let mut last = changes.first()?.revision();
        let mut chunk = Self {
            changes,
            revisions: 1,
            bytes: 0,
            prev_bytes: 0,
        };
        for change in &chunk.changes {
            debug_assert!(change.revision() >= last, "events out of order");
            chunk.revisions += usize::from(change.revision() > last);
            last = change.revision();
            chunk.bytes += change.size();
            chunk.prev_bytes += change.prev_size();
        }
        Some(chunk)
    }

    pub(super) fn first(&self) -> Revision {
        self.changes.first().map(|change| change.revision()).unwrap_or_default()
    }

    pub(super) fn last(&self) -> Revision {
        self.changes.last().map(|change| change.revision()).unwrap_or_default()
    }

    /// About what it holds in memory and needs on the wire.
    pub(super) fn bytes(&self, with_prev: bool) -> usize {
        self.bytes + if with_prev { self.prev_bytes } else { 0 }
    }
}

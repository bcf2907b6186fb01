//! Events on their way to watchers: encoded once, shared by all who want them.

use super::history::{History, HistoryError};
use crate::event::{Event, EventKind};
use bytes::Bytes;
use prost::encoding::message;
use quorate_api::Revision;
use quorate_api::proto::mvccpb;
use std::sync::{Arc, OnceLock};

/// `WatchResponse.events`.
const EVENTS_FIELD: u32 = 11;
/// Field tags, lengths and numbers of an encoded event, roughly.
const FIELDS_BYTES: usize = 48;
/// What an event, or the pair that it replaced, takes in memory beside its key and its value: [`Change`] itself, and the
/// allocator's share of the four or five pieces of memory that it consists of.
const EVENT_OVERHEAD: usize = 320;

/// One event that at least one watcher wants. It has nothing of the rest of its transaction, which may be much larger
/// and of interest to nobody.
#[derive(Debug)]
pub(super) struct Change {
    event: Event,
    revision: Revision,
    /// The pair that the event replaced, looked up once if anyone wants it.
    prev: OnceLock<Option<Box<mvccpb::KeyValue>>>,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl Change {
    pub(super) fn new(event: Event, revision: Revision) -> Arc<Self> {
        Arc::new(Self {
            event,
            revision,
            prev: OnceLock::new(),
            plain: OnceLock::new(),
            with_prev: OnceLock::new(),
        })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.event.key
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn is_put(&self) -> bool {
        matches!(self.event.kind, EventKind::Put { .. })
    }

    fn prev(&self) -> Option<&mvccpb::KeyValue> {
        self.prev.get().and_then(|pair| pair.as_deref())
    }

    pub(super) fn to_message(&self, with_prev: bool) -> mvccpb::Event {
        let event = &self.event;
        let mod_revision = self.revision.0;
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

    fn len(&self) -> usize {
        let value = match &self.event.kind {
            EventKind::Put { value, .. } => value.len(),
            EventKind::Delete => 0,
        };
        self.event.key.len() + value
    }
}

/// Sees to the previous pairs of all of these.
pub(super) fn load_prevs(changes: &[Arc<Change>], history: &dyn History) -> Result<(), HistoryError> {
    let missing: Vec<&Change> = changes
        .iter()
        .map(Arc::as_ref)
        .filter(|change| change.prev.get().is_none())
        .collect();
    let wanted: Vec<(&[u8], Revision)> = missing
        .iter()
        .filter_map(|change| Some((change.key(), change.event.prev?)))
        .collect();
    let pairs = match wanted.is_empty() {
        true => Vec::new(),
        false => history.pairs_at(&wanted)?,
    };
    debug_assert_eq!(pairs.len(), wanted.len());
    let mut pairs = pairs.into_iter();
    for change in missing {
        let pair = change.event.prev.and_then(|_| pairs.next().flatten());
        // A second thread may have been faster; it read the same.
        let _ = change.prev.set(pair.map(Box::new));
    }
    Ok(())
}

/// Some events in order, whole transactions of them; what watchers with the same taste share. Never empty.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) changes: Vec<Arc<Change>>,
    /// Distinct revisions.
    pub(super) revisions: usize,
    /// Keys and values.
    len: usize,
    /// The same of previous pairs, and how many there are.
    prev_len: usize,
    prevs: usize,
}

impl Chunk {
    /// `None` for no events. If anyone wants previous pairs, they must have been loaded.
    pub(super) fn new(changes: Vec<Arc<Change>>) -> Option<Self> {
        let mut last = changes.first()?.revision();
        let mut chunk = Self {
            changes,
            revisions: 1,
            len: 0,
            prev_len: 0,
            prevs: 0,
        };
        for change in &chunk.changes {
            debug_assert!(change.revision() >= last, "events out of order");
            chunk.revisions += usize::from(change.revision() > last);
            last = change.revision();
            chunk.len += change.len();
            if let Some(prev) = change.prev() {
                chunk.prev_len += prev.key.len() + prev.value.len();
                chunk.prevs += 1;
            }
        }
        Some(chunk)
    }

    pub(super) fn first(&self) -> Revision {
        self.changes.first().map(|change| change.revision()).unwrap_or_default()
    }

    pub(super) fn last(&self) -> Revision {
        self.changes.last().map(|change| change.revision()).unwrap_or_default()
    }

    /// About what it needs on the wire.
    pub(super) fn wire_bytes(&self, with_prev: bool) -> usize {
        let (len, parts) = self.parts(with_prev);
        len + parts * FIELDS_BYTES
    }

    /// About what it holds in memory, once it is encoded: keys and values are then there twice.
    pub(super) fn bytes(&self, with_prev: bool) -> usize {
        let (len, parts) = self.parts(with_prev);
        2 * len + parts * EVENT_OVERHEAD
    }

    /// Bytes of keys and values, and how many pairs they make.
    fn parts(&self, with_prev: bool) -> (usize, usize) {
        match with_prev {
            true => (self.len + self.prev_len, self.changes.len() + self.prevs),
            false => (self.len, self.changes.len()),
        }
    }
}

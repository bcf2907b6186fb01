//! What members apply, held against each other as it happens, and kept as the truth of a run.

use crate::trace::Trace;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kit::check::{self, Change, Keys, Kv, Previous, Truth, Violation};
use quorate_store::event::{Event, EventBatch, EventKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// What all keys begin with that are checked one operation for one.
pub const KEYS: &str = "k/";

pub struct Tap {
    applied: Mutex<BTreeMap<i64, Applied>>,
    trace: Arc<Trace>,
}

pub struct Applied {
    batch: Arc<EventBatch>,
    by: u64,
    first: Instant,
}

impl Applied {
    pub fn events(&self) -> &[Event] {
        &self.batch.events
    }
}

/// What there is of the key after a change of it.
pub fn left_by(event: &Event, revision: i64) -> Option<Kv> {
    match &event.kind {
        EventKind::Put {
            create_revision,
            version,
            lease: _,
            value,
        } => Some(Kv {
            value: value.clone(),
            create_revision: create_revision.0,
            mod_revision: revision,
            version: *version,
        }),
        EventKind::Delete => None,
    }
}

impl Tap {
    pub fn new(trace: Arc<Trace>) -> Self {
        Self {
            applied: Mutex::default(),
            trace,
        }
    }

    pub fn applied(&self, member: u64, batches: &[Arc<EventBatch>]) {
        let mut applied = self.applied.lock();
        for batch in batches {
            let known = applied.entry(batch.revision.0).or_insert_with(|| Applied {
                batch: batch.clone(),
                by: member,
                first: Instant::now(),
            });
            if known.batch != *batch {
                self.trace.fail(format_args!(
                    "members {} and {member} apply different things as revision {}: {:?}, {:?}",
                    known.by, batch.revision.0, known.batch.events, batch.events
                ));
            }
        }
    }

    /// When a key was first seen to be deleted.
    pub fn deleted(&self, key: &[u8]) -> Option<Instant> {
        let applied = self.applied.lock();
        let deletes = |applied: &&Applied| {
            let mut events = applied.batch.events.iter();
            events.any(|event| event.key == key && event.kind == EventKind::Delete)
        };
        applied.values().find(deletes).map(|applied| applied.first)
    }

    /// All that was applied, by revision.
    pub fn with_all<T>(&self, look: impl FnOnce(&BTreeMap<i64, Applied>) -> T) -> T {
        look(&self.applied.lock())
    }

    pub fn newest(&self) -> i64 {
        self.applied.lock().keys().next_back().copied().unwrap_or(1)
    }

    /// All of it. A revision that nobody ever applied is a change that was lost.
    pub fn truth(&self) -> Result<Truth, Violation> {
        let applied = self.applied.lock();
        let keys = Keys::prefix(KEYS);
        let mut events = Vec::new();
        let mut held: BTreeMap<Bytes, Kv> = BTreeMap::new();
        for (expected, (revision, applied)) in (2..).zip(applied.iter()) {
            if expected != *revision {
                return Err(Violation(format!(
                    "revision {expected} was never applied, {revision} was"
                )));
            }
            for event in applied.batch.events.iter().filter(|event| keys.contain(&event.key)) {
                let change = left_by(event, *revision).map_or(Change::Delete, Change::Put);
                let before = held.get(&event.key).cloned();
                match &change {
                    Change::Put(kv) => held.insert(event.key.clone(), kv.clone()),
                    Change::Delete => held.remove(&event.key),
                };
                events.push(check::Event {
                    revision: *revision,
                    key: event.key.clone(),
                    change,
                    previous: Previous::Was(before),
                });
            }
        }
        Truth::new(keys, events)
    }
}

//! What each watcher of one side must be sent.
//!
//! A *recorder* watches everything from before the sequence begins. What another watcher must see follows from it:
//! the events in its range, from its start, without what it filters. So a watcher is never waited for by time: an
//! expected event that does not come, or one that comes unexpected, is a finding of that side alone.

use std::collections::BTreeMap;

use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use quorate_api::proto::mvccpb::Event;
use quorate_api::proto::mvccpb::event::EventType;

/// Watchers of one stream by id.
pub type Watchers = BTreeMap<i64, Watcher>;

#[derive(Debug)]
pub struct Watcher {
    key: Vec<u8>,
    range_end: Vec<u8>,
    filters: Vec<i32>,
    prev_kv: bool,
    pub start: i64,
    /// Store and compacted revision when it was created.
    created_at: i64,
    compacted_at: i64,
    /// Killed by a compaction; the id is still taken.
    pub doomed: bool,
    /// The server is of the 3.4 line, which forgets a deletion at exactly the compacted revision.
    forgets_deletion: bool,
    /// How much of the recorder's log has been looked at, and what of it is still to come.
    looked: usize,
    due: Vec<Due>,
    /// How many events its replay has had, with those that 3.4 forgot.
    replayed: usize,
    /// Deletions that 3.4 forgot, each with its place among the replayed events.
    pub forgotten: Vec<(usize, Event)>,
}

/// An event that must come next, and how its header may say so.
#[derive(Debug)]
struct Due {
    event: Event,
    header: i64,
}

impl Watcher {
    /// `recorded` is everything recorded so far, `revision` and `compacted` the store's now.
    pub fn new(
        create: &WatchCreateRequest,
        recorded: usize,
        revision: i64,
        compacted: i64,
        forgets_deletion: bool,
    ) -> Self {
        let start = create.start_revision;
        let historical = start != 0 && start <= revision;
        let key = if create.key.is_empty() {
            vec![0]
        } else {
            create.key.to_vec()
        };
        Self {
            key,
            range_end: create.range_end.to_vec(),
            filters: create.filters.clone(),
            prev_kv: create.prev_kv,
            start,
            created_at: revision,
            compacted_at: compacted,
            doomed: historical && start < compacted,
            forgets_deletion,
            looked: if historical { 0 } else { recorded },
            due: Vec::new(),
            replayed: 0,
            forgotten: Vec::new(),
        }
    }

    /// Takes in what was recorded since the last time.
    pub fn look(&mut self, recorded: &[Event]) {
        if !self.doomed {
            for event in &recorded[self.looked.min(recorded.len())..] {
                self.consider(event);
            }
        }
        self.looked = recorded.len();
    }

    fn consider(&mut self, event: &Event) {
        let Some(kv) = &event.kv else { return };
        let revision = kv.mod_revision;
        let deletion = event.r#type() == EventType::Delete;
        if !self.covers(&kv.key) || revision < self.start || self.filters.contains(&i32::from(deletion)) {
            return;
        }
        let replayed = revision <= self.created_at;
        if replayed && deletion && revision == self.compacted_at && self.forgets_deletion {
            let mut forgotten = event.clone();
            forgotten.prev_kv = None; // what was before is compacted
            self.forgotten.push((self.replayed, forgotten));
            self.replayed += 1;
            return;
        }
        self.replayed += usize::from(replayed);
        let mut event = event.clone();
        if !self.prev_kv || (replayed && revision - 1 < self.compacted_at) {
            event.prev_kv = None;
        }
        self.due.push(Due {
            event,
            header: if replayed { self.created_at } else { revision },
        });
    }

    fn covers(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            b"" => key == self.key,
            b"\0" => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }

    pub fn is_waiting(&self) -> bool {
        !self.due.is_empty()
    }

    /// Checks off an event that came.
    pub fn came(&mut self, event: &Event, header: i64) -> Result<(), String> {
        if self.due.is_empty() {
            return Err(format!("an event nobody expected, header revision {header}: {event:?}"));
        }
        let due = self.due.remove(0);
        if &due.event != event {
            return Err(format!(
                "another event than the one due\n    due  {:?}\n    came {event:?}",
                due.event
            ));
        }
        // replayed history says how far the store has come, which may be further than when the watcher was made
        let fits = if due.header == self.created_at {
            header >= due.header
        } else {
            header == due.header
        };
        if !fits {
            return Err(format!(
                "header revision {header} where {} is due, with {event:?}",
                due.header
            ));
        }
        Ok(())
    }

    /// What is still missing, in words.
    pub fn missing(&self) -> String {
        format!("{:?}", self.due)
    }
}

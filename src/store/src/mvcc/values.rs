//! Values that were written or read lately, under a budget. A version never changes, so what is found under its id is
//! right for ever and nothing has to be invalidated.
//!
//! Eviction is a clock: first in, first out, but what was read since its last turn gets another one. A read only sets
//! a flag, so readers share the lock. What was superseded goes first, and has an eighth of the room: whoever shows
//! what a change replaced (`prev_kv`, in answers and events) asks within moments or not at all.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::backend::RowId;

const SHARDS: usize = 16;
/// What an entry costs beside its bytes: slot of the map, slot of the queue, share of the allocation.
const OVERHEAD: usize = 112;

pub struct Values {
    shards: Vec<RwLock<Shard>>,
    shard_bytes_max: usize,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<RowId, Entry, BuildHasherDefault<IdHasher>>,
    queue: VecDeque<RowId>,
    bytes: usize,
    /// In the order in which they were superseded.
    superseded: VecDeque<RowId>,
    superseded_bytes: usize,
}

struct Entry {
    value: Bytes,
    /// Bytes that the value keeps alive: it may share its allocation with its key.
    cost: usize,
    used: AtomicBool,
    superseded: bool,
}

/// Ids are given out by the store in sequence, so nobody can choose them to collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Values {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            shard_bytes_max: bytes_max / SHARDS,
        }
    }

    fn shard(&self, id: RowId) -> &RwLock<Shard> {
        &self.shards[(id.main as usize ^ id.sub as usize) % SHARDS]
    }

    pub fn get(&self, id: RowId) -> Option<Bytes> {
        let shard = self.shard(id).read();
        let entry = shard.entries.get(&id)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(entry.value.clone())
    }

    /// `shared_bytes` is what the value's allocation holds beside the value.
    pub fn insert(&self, id: RowId, value: Bytes, shared_bytes: usize) {
        let cost = value.len() + shared_bytes + OVERHEAD;
        if cost > self.shard_bytes_max / 4 {
            return;
        }
        let mut shard = self.shard(id).write();
        shard.bytes += cost;
        let entry = Entry {
            value,
            cost,
            used: AtomicBool::new(false),
            superseded: false,
        };
        match shard.entries.insert(id, entry) {
            Some(before) => shard.forget(&before),
            None => shard.queue.push_back(id),
        }
        while shard.bytes > self.shard_bytes_max {
            shard.evict();
        }
    }

    /// The version was overwritten or deleted.
    pub fn supersede(&self, id: RowId) {
        let mut guard = self.shard(id).write();
        let shard = &mut *guard;
        let Some(entry) = shard.entries.get_mut(&id).filter(|entry| !entry.superseded) else {
            return;
        };
        entry.superseded = true;
        shard.superseded_bytes += entry.cost;
        shard.superseded.push_back(id);
        while shard.superseded_bytes > self.shard_bytes_max / 8 {
            let Some(id) = shard.superseded.pop_front() else { break };
            shard.remove(id);
        }
        shard.tidy();
    }

    pub fn remove(&self, id: RowId) {
        let mut shard = self.shard(id).write();
        shard.remove(id);
        shard.tidy();
    }

    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().bytes).sum()
    }
}

impl Shard {
    fn evict(&mut self) {
        let Some(id) = self.queue.pop_front() else {
            self.bytes = 0;
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if std::mem::take(entry.used.get_mut()) {
            self.queue.push_back(id);
        } else {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: RowId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.forget(&entry);
        }
    }

    /// What an entry that has left counted.
    fn forget(&mut self, entry: &Entry) {
        self.bytes -= entry.cost;
        if entry.superseded {
            self.superseded_bytes -= entry.cost;
        }
    }

    /// Ids of what has gone stay in the queues until they are many.
    fn tidy(&mut self) {
        let Self {
            entries,
            queue,
            superseded,
            ..
        } = self;
        for ids in [queue, superseded] {
            if ids.len() > 2 * entries.len() + 64 {
                ids.retain(|id| entries.contains_key(id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(main: i64) -> RowId {
        RowId { main, sub: 0 }
    }

    #[test]
    fn the_budget_holds_and_what_is_read_stays() {
        let values = Values::new(16 * 4096);
        values.insert(id(1), Bytes::from_static(b"hot"), 0);
        for main in 2..10_000 {
            values.insert(id(main), Bytes::from(vec![0; 100]), 0);
            assert_eq!(values.get(id(1)).as_deref(), Some(&b"hot"[..]), "after {main}");
        }
        assert!(values.bytes() <= 16 * 4096);
        assert!(values.get(id(9_999)).is_some());
        assert!(values.get(id(2)).is_none());
    }

    /// A key that is written all the time does not fill the memory with what it was, and what it just was is there.
    #[test]
    fn superseded_ones_stay_for_a_while() {
        let values = Values::new(16 * 4096);
        values.insert(id(0), Bytes::from_static(b"cold"), 0);
        for main in 1..10_000 {
            values.insert(id(main), Bytes::from(vec![0; 100]), 0);
            values.supersede(id(main - 1));
            if main > 1 {
                assert!(values.get(id(main - 1)).is_some(), "replaced at {main}");
                assert!(values.get(id(main)).is_some());
            }
        }
        assert!(values.bytes() <= 16 * 4096 / 8 + 2 * 212, "{}", values.bytes());
        assert!(values.shards.iter().all(|shard| shard.read().queue.len() <= 80));
        (0..10_000).for_each(|main| values.remove(id(main)));
        assert_eq!(values.bytes(), 0);
        assert!(values.shards.iter().all(|shard| shard.read().superseded_bytes == 0));
        assert!(values.shards.iter().all(|shard| shard.read().superseded.len() <= 64));
    }

    #[test]
    fn removed_ones_leave_no_trace() {
        let values = Values::new(1 << 20);
        for main in 0..10_000 {
            values.insert(id(main), Bytes::from_static(b"value"), 0);
            values.remove(id(main));
        }
        assert_eq!(values.bytes(), 0);
        assert!(values.shards.iter().all(|shard| shard.read().queue.len() <= 64));
    }
}

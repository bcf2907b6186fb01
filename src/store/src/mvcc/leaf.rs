//! One page of the index: a run of neighbouring keys, packed, with their records.
//!
//! Keys lie end to end in one buffer, so a key costs its bytes and five more. Growth is in small exact steps: with a
//! hundred thousand leaves, doubling would waste more than the records take.

use super::version::Record;

/// Bounds of a leaf; moving at most this much makes room for a new key.
pub(super) const RECORDS_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 16 << 10;
const RECORDS_STEP: usize = 8;
const KEY_BYTES_STEP: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Leaf {
    keys: Vec<u8>,
    /// Where each key ends in `keys`.
    ends: Vec<u32>,
    /// A byte of each key's hash: one cache line says where a key can be, a binary search would touch six.
    tags: Vec<u8>,
    records: Vec<Record>,
}

impl Leaf {
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn key(&self, at: usize) -> &[u8] {
        &self.keys[self.start(at)..self.ends[at] as usize]
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    pub fn record(&self, at: usize) -> &Record {
        &self.records[at]
    }

    pub fn record_mut(&mut self, at: usize) -> &mut Record {
        &mut self.records[at]
    }

    /// Position of exactly this key.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let wanted = tag(key);
        let candidates = self.tags.iter().enumerate().filter(|(_, tag)| **tag == wanted);
        candidates.map(|(at, _)| at).find(|at| self.key(*at) == key)
    }

    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Position of the first key that is not below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|at| at)
    }

    pub fn insert(&mut self, at: usize, key: &[u8], record: Record) {
        if self.records.len() == self.records.capacity() {
            self.records.reserve_exact(RECORDS_STEP);
            self.ends.reserve_exact(RECORDS_STEP);
            self.tags.reserve_exact(RECORDS_STEP);
        }
        if self.keys.capacity() - self.keys.len() < key.len() {
            self.keys.reserve_exact(key.len().max(KEY_BYTES_STEP));
        }
        let start = self.start(at);
        let tail = self.keys.len();
        self.keys.extend_from_slice(key);
        if start < tail {
            self.keys[start..].rotate_right(key.len());
        }
        self.tags.insert(at, tag(key));
        self.ends.insert(at, start as u32);
        for end in &mut self.ends[at..] {
            *end += key.len() as u32;
        }
        self.records.insert(at, record);
    }

    /// When over its bounds, the upper part, to become a leaf of its own. `at` is where the last key went in: keys
    /// that come in ascending order leave full leaves behind.
    pub fn split(&mut self, at: usize) -> Option<Leaf> {
        let over = self.len() > RECORDS_MAX || (self.keys.len() > KEY_BYTES_MAX && self.len() > 1);
        if !over {
            return None;
        }
        let from = if at + 1 == self.len() { at } else { self.len() / 2 };
        let start = self.start(from);
        let right = Leaf {
            keys: self.keys[start..].to_vec(),
            ends: self.ends[from..].iter().map(|end| end - start as u32).collect(),
            tags: self.tags[from..].to_vec(),
            records: self.records.drain(from..).collect(),
        };
        self.keys.truncate(start);
        self.ends.truncate(from);
        self.tags.truncate(from);
        self.shrink();
        Some(right)
    }

    /// Keeps the keys whose record passes.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Record) -> bool) {
        let keeps: Vec<bool> = self.records.iter_mut().map(&mut keep).collect();
        if keeps.iter().all(|keep| *keep) {
            return;
        }
        let mut kept = Leaf::default();
        for (at, record) in std::mem::take(&mut self.records).into_iter().enumerate() {
            if keeps[at] {
                kept.insert(kept.len(), self.key(at), record);
            }
        }
        *self = kept;
        self.shrink();
    }

    /// Takes in the leaf that follows, if both together are well below the bounds.
    pub fn absorb(&mut self, next: &mut Leaf) -> bool {
        let small =
            self.len() + next.len() <= RECORDS_MAX / 2 && self.keys.len() + next.keys.len() <= KEY_BYTES_MAX / 2;
        if small {
            let base = self.keys.len() as u32;
            self.keys.extend_from_slice(&next.keys);
            self.ends.extend(next.ends.iter().map(|end| end + base));
            self.tags.append(&mut next.tags);
            self.records.append(&mut next.records);
            self.shrink();
        }
        small
    }

    fn shrink(&mut self) {
        self.keys.shrink_to(self.keys.len().next_multiple_of(KEY_BYTES_STEP));
        self.ends.shrink_to(self.ends.len().next_multiple_of(RECORDS_STEP));
        self.tags.shrink_to(self.tags.len().next_multiple_of(RECORDS_STEP));
        self.records
            .shrink_to(self.records.len().next_multiple_of(RECORDS_STEP));
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let records: usize = self.records.iter().map(Record::heap_bytes).sum();
        self.keys.capacity()
            + self.ends.capacity() * size_of::<u32>()
            + self.tags.capacity()
            + self.records.capacity() * size_of::<Record>()
            + records
    }
}

/// Need not be strong: keys that collide are compared, 64 at most.
fn tag(key: &[u8]) -> u8 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = key.as_chunks::<8>();
    let mut hash = words
        .iter()
        .fold(key.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    for byte in rest {
        hash = mix(hash, u64::from(*byte));
    }
    (hash >> 32) as u8
}

//! Which ranges contain this key? A treap ordered by (start, end); every node knows the furthest end below it, so that
//! a search leaves out subtrees that end before the key: O(log n + found), whatever the ranges look like.

use quorate_api::{KeyRange, RangeEnd};
use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

const NIL: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    /// Priorities come from a keyed hash: a client that knew them could build a list instead of a tree.
    hasher: RandomState,
    inserted: u64,
}

#[derive(Debug)]
struct Node {
    range: KeyRange,
    value: u32,
    priority: u64,
    left: u32,
    right: u32,
    /// Node of this subtree with the furthest end.
    furthest: u32,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
            hasher: RandomState::new(),
            inserted: 0,
        }
    }
}

fn compare_ends(a: &RangeEnd, b: &RangeEnd) -> Ordering {
    match (a, b) {
        (RangeEnd::Infinity, RangeEnd::Infinity) => Ordering::Equal,
        (RangeEnd::Infinity, _) => Ordering::Greater,
        (_, RangeEnd::Infinity) => Ordering::Less,
        (RangeEnd::Before(a), RangeEnd::Before(b)) => a.cmp(b),
        // Single keys live elsewhere; for completeness they are the shortest.
        (RangeEnd::Single, RangeEnd::Single) => Ordering::Equal,
        (RangeEnd::Single, _) => Ordering::Less,
        (_, RangeEnd::Single) => Ordering::Greater,
    }
}

fn compare(a: &KeyRange, b: &KeyRange) -> Ordering {
    a.start.cmp(&b.start).then_with(|| compare_ends(&a.end, &b.end))
}

fn ends_after(end: &RangeEnd, key: &[u8]) -> bool {
    match end {
        RangeEnd::Infinity => true,
        RangeEnd::Before(end) => end.as_ref() > key,
        RangeEnd::Single => false,
    }
}

impl Intervals {
    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    pub(super) fn get(&self, range: &KeyRange) -> Option<u32> {
        let mut at = self.root;
        while at != NIL {
            let node = self.node(at);
            at = match compare(range, &node.range) {
                Ordering::Equal => return Some(node.value),
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        None
    }

    /// `range` must not be in it yet.
    pub(super) fn insert(&mut self, range: KeyRange, value: u32) {
        self.inserted += 1;
        let node = Node {
            range,
            value,
            priority: self.hasher.hash_one(self.inserted),
            left: NIL,
            right: NIL,
            furthest: NIL,
        };
        let new = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("four billion ranges do not fit into memory")
            }
        };
        self.node_mut(new).furthest = new;
        self.root = self.insert_below(self.root, new);
    }

    /// Returns the subtree's new root. The depth of the recursion is the depth of the tree: logarithmic.
    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NIL {
            return new;
        }
        let root = if compare(&self.node(new).range, &self.node(at).range) == Ordering::Less {
            let left = self.insert_below(self.node(at).left, new);
            self.node_mut(at).left = left;
            if self.node(left).priority > self.node(at).priority {
                self.rotate_right(at)
            } else {
                at
            }
        } else {
            let right = self.insert_below(self.node(at).right, new);
            self.node_mut(at).right = right;
            if self.node(right).priority > self.node(at).priority {
                self.rotate_left(at)
            } else {
                at
            }
        };
        self.update(root);
        root
    }

    pub(super) fn remove(&mut self, range: &KeyRange) {
        self.root = self.remove_below(self.root, range);
    }

    fn remove_below(&mut self, at: u32, range: &KeyRange) -> u32 {
        if at == NIL {
            return NIL;
        }
        match compare(range, &self.node(at).range) {
            Ordering::Less => {
                let left = self.remove_below(self.node(at).left, range);
                self.node_mut(at).left = left;
            }
            Ordering::Greater => {
                let right = self.remove_below(self.node(at).right, range);
                self.node_mut(at).right = right;
            }
            Ordering::Equal => {
                let Node { left, right, .. } = *self.node(at);
                let joined = self.join(left, right);
                let node = self.node_mut(at);
                node.range = KeyRange::all(); // lets go of the keys
                (node.left, node.right) = (NIL, NIL);
                self.free.push(at);
                return joined;
            }
        }
        self.update(at);
        at
    }

    fn join(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL {
            return right;
        }
        if right == NIL {
            return left;
        }
        let root = if self.node(left).priority > self.node(right).priority {
            let joined = self.join(self.node(left).right, right);
            self.node_mut(left).right = joined;
            left
        } else {
            let joined = self.join(left, self.node(right).left);
            self.node_mut(right).left = joined;
            right
        };
        self.update(root);
        root
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let root = self.node(at).left;
        self.node_mut(at).left = self.node(root).right;
        self.node_mut(root).right = at;
        self.update(at);
        root
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let root = self.node(at).right;
        self.node_mut(at).right = self.node(root).left;
        self.node_mut(root).left = at;
        self.update(at);
        root
    }

    fn update(&mut self, at: u32) {
        let Node { left, right, .. } = *self.node(at);
        let mut furthest = at;
        for child in [left, right] {
            if child != NIL {
                let candidate = self.node(child).furthest;
                let (theirs, ours) = (&self.node(candidate).range.end, &self.node(furthest).range.end);
                if compare_ends(theirs, ours) == Ordering::Greater {
                    furthest = candidate;
                }
            }
        }
        self.node_mut(at).furthest = furthest;
    }

    /// Calls `found` for every range that contains `key`, in order of their starts.
    pub(super) fn containing(&self, key: &[u8], mut found: impl FnMut(u32)) {
        self.search(self.root, key, &mut found);
    }

    fn search(&self, at: u32, key: &[u8], found: &mut impl FnMut(u32)) {
        if at == NIL {
            return;
        }
        let node = self.node(at);
        if !ends_after(&self.node(node.furthest).range.end, key) {
            return;
        }
        self.search(node.left, key, found);
        if node.range.start.as_ref() <= key {
            if ends_after(&node.range.end, key) {
                found(node.value);
            }
            self.search(node.right, key, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn range() -> impl Strategy<Value = (u8, u8)> {
        // An end of 0 stands for infinity; others may well be below the start.
        (0..40u8, 0..40u8)
    }

    fn key_range((start, end): (u8, u8)) -> KeyRange {
        let start = Bytes::copy_from_slice(&[start]);
        let end = match end {
            0 => RangeEnd::Infinity,
            end => RangeEnd::Before(Bytes::copy_from_slice(&[end])),
        };
        KeyRange { start, end }
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_of_all_ranges_finds(
            steps in prop::collection::vec((range(), any::<bool>()), 1..200),
        ) {
            let mut intervals = Intervals::default();
            let mut model: BTreeMap<(u8, u8), u32> = BTreeMap::new();
            for (at, (range, insert)) in steps.into_iter().enumerate() {
                let key = key_range(range);
                prop_assert_eq!(intervals.get(&key), model.get(&range).copied());
                if insert && !model.contains_key(&range) {
                    intervals.insert(key, at as u32);
                    model.insert(range, at as u32);
                } else if !insert {
                    intervals.remove(&key);
                    model.remove(&range);
                }
            }
            for probe in 0..45u8 {
                let mut found = Vec::new();
                intervals.containing(&[probe], |value| found.push(value));
                found.sort_unstable();
                let mut want: Vec<u32> =
                    model.iter().filter(|(range, _)| key_range(**range).contains(&[probe])).map(|(_, v)| *v).collect();
                want.sort_unstable();
                prop_assert_eq!(found, want);
            }
        }
    }
}

//! The one meaning of `key` and `range_end`, shared by every call that selects keys.

use bytes::Bytes;
use std::ops::Bound;

/// Where a range ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// `range_end` empty: exactly the start key.
    Single,
    /// `range_end` = `\0`: no end.
    Infinity,
    /// Exclusive end; at or before the start it selects nothing.
    Before(Bytes),
}

/// A selection of keys, by etcd's convention for (`key`, `range_end`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: RangeEnd,
}

impl KeyRange {
    /// Reads the two wire fields. An empty `key` is the caller's error to report; here it is just the lowest key.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            b"" => RangeEnd::Single,
            b"\0" => RangeEnd::Infinity,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// Exactly `key`.
    pub fn single(key: Bytes) -> Self {
        Self {
            start: key,
            end: RangeEnd::Single,
        }
    }

    /// Every key there is.
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: RangeEnd::Infinity,
        }
    }

    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// True when no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Infinity => key >= self.start.as_ref(),
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
        }
    }

    /// True when every key of `other` is in `self`.
    pub fn covers(&self, other: &KeyRange) -> bool {
        if other.is_empty() {
            return true;
        }
        match (&self.end, &other.end) {
            (_, RangeEnd::Single) => self.contains(&other.start),
            (RangeEnd::Single, _) => false,
            (RangeEnd::Infinity, _) => self.start <= other.start,
            (RangeEnd::Before(_), RangeEnd::Infinity) => false,
            (RangeEnd::Before(mine), RangeEnd::Before(theirs)) => self.start <= other.start && theirs <= mine,
        }
    }

    /// Bounds for an ordered map of byte keys; a range that selects nothing gets bounds that select nothing.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = self.start.as_ref();
        match &self.end {
            RangeEnd::Single => (Bound::Included(start), Bound::Included(start)),
            RangeEnd::Infinity => (Bound::Included(start), Bound::Unbounded),
            // Ordered maps panic on start > end, so an inverted range becomes the empty [start, start).
            RangeEnd::Before(end) if end.as_ref() < start => (Bound::Included(start), Bound::Excluded(start)),
            RangeEnd::Before(end) => (Bound::Included(start), Bound::Excluded(end.as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from(key), Bytes::from(end))
    }

    #[test]
    fn contains_follows_the_wire_convention() {
        assert!(range("a", "").contains(b"a") && !range("a", "").contains(b"aa"));
        assert!(range("a", "c").contains(b"b") && !range("a", "c").contains(b"c"));
        assert!(range("b", "\0").contains(b"z") && !range("b", "\0").contains(b"a"));
        assert!(range("\0", "\0").contains(b"\0"));
    }

    #[test]
    fn bounds_never_panic_and_agree_with_contains() {
        let keys = ["", "a", "b", "c", "d"];
        let map: BTreeMap<&[u8], ()> = keys.iter().map(|k| (k.as_bytes(), ())).collect();
        for (start, end) in [("a", ""), ("a", "c"), ("c", "a"), ("b", "b"), ("b", "\0"), ("", "c")] {
            let range = range(start, end);
            let got: Vec<&[u8]> = map.range::<[u8], _>(range.bounds()).map(|(k, ())| *k).collect();
            let want: Vec<&[u8]> = keys
                .iter()
                .map(|k| k.as_bytes())
                .filter(|k| range.contains(k))
                .collect();
            assert_eq!(got, want, "{range:?}");
        }
    }

    #[test]
    fn covers_is_containment_of_every_key() {
        assert!(range("a", "\0").covers(&range("b", "\0")));
        assert!(!range("a", "z").covers(&range("b", "\0")));
        assert!(range("a", "z").covers(&range("b", "z")));
        assert!(!range("a", "").covers(&range("a", "b")));
        assert!(range("x", "").covers(&range("z", "a")), "an empty range needs nothing");
    }
}

//! Names of segments and of the other files in the log's directory.

use std::fmt;

/// Sequence number of a segment; the first is 1. A file that is reused gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

impl SegmentId {
    pub(crate) const FIRST: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    pub(crate) fn file_name(self) -> String {
        format!("{self}.wal")
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in the log; places compare in the order of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub segment: SegmentId,
    pub offset: u64,
}

/// What a name in the log's directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Part of the log, or prepared to become the next part.
    Segment(SegmentId),
    /// Purged, waiting to be reused; the number only keeps names apart.
    Spare(SegmentId),
    /// Half made when the process ended.
    Unfinished,
    /// Not ours.
    Foreign,
}

pub(crate) const UNFINISHED: &str = "new.tmp";

pub(crate) fn spare_name(id: SegmentId) -> String {
    format!("{id}.spare")
}

pub(crate) fn parse(name: &str) -> Name {
    let number = |stem: &str| {
        let plain = stem.len() == 16 && stem.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // The last number is left out, so that the next one always exists.
        plain
            .then(|| u64::from_str_radix(stem, 16).ok())
            .flatten()
            .filter(|n| (1..u64::MAX).contains(n))
            .map(SegmentId)
    };
    if name == UNFINISHED {
        Name::Unfinished
    } else if let Some(id) = name.strip_suffix(".wal").and_then(number) {
        Name::Segment(id)
    } else if let Some(id) = name.strip_suffix(".spare").and_then(number) {
        Name::Spare(id)
    } else {
        Name::Foreign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_written() {
        let id = SegmentId(0x1f);
        assert_eq!(parse(&id.file_name()), Name::Segment(id));
        assert_eq!(parse(&spare_name(id)), Name::Spare(id));
        assert_eq!(parse(UNFINISHED), Name::Unfinished);
    }

    #[test]
    fn other_peoples_files_are_left_alone() {
        for name in [
            "",
            ".wal",
            "1.wal",
            "000000000000001F.wal",
            "0000000000000000.wal",
            "ffffffffffffffff.wal",
            "+00000000000001f.wal",
            "é.wal",
        ] {
            assert_eq!(parse(name), Name::Foreign, "{name}");
        }
    }
}

//! What can go wrong, by what a caller would do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::LogPos;
use crate::segment::SegmentId;

/// Every failure of the log. Cheap to clone, because one failed sync is news for many callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that were once safe on disk are not what they were. Not repaired here: the entries may have been
    /// acknowledged, and only a peer or a backup can say what they were.
    #[error(
        "log segment {segment} is damaged at offset {offset}: {what}. What was there may have been acknowledged, so the \
         log does not guess: restore this member from its peers (remove it, wipe its data directory, add it again) or \
         from a backup"
    )]
    Damage {
        segment: SegmentId,
        offset: u64,
        what: String,
    },

    #[error(
        "log segment {segment} has format version {found}, this program reads up to {supported}: start the newer \
         program that wrote it"
    )]
    Version {
        segment: SegmentId,
        found: u32,
        supported: u32,
    },

    /// Two members with one directory: each would apply, and overwrite, what is the other's.
    #[error(
        "log segment {segment} in {} belongs to owner {found:016x}, and this log to {expected:016x}: the directory holds \
         another member's log, so give each member a log directory of its own",
        dir.display()
    )]
    Owner {
        dir: PathBuf,
        segment: SegmentId,
        found: u64,
        expected: u64,
    },

    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },

    #[error("write {bytes} bytes to log segment {segment} at offset {offset}")]
    Write {
        segment: SegmentId,
        offset: u64,
        bytes: usize,
        #[source]
        source: Arc<io::Error>,
    },

    #[error("sync log segment {segment}")]
    Sync {
        segment: SegmentId,
        #[source]
        source: Arc<io::Error>,
    },

    /// Nothing of the operation was kept and the log works on; try again when there is space.
    #[error("no disk space for another log segment")]
    NoSpace,

    #[error("the log refuses writes after an earlier write or sync failed; restart to replay what is durable")]
    Poisoned,

    #[error("the log is closed")]
    Closed,

    /// The caller's mistake: nothing was kept.
    #[error("entry {got} does not follow {last:?}, the last one in the log")]
    NotNext { last: Option<LogPos>, got: LogPos },

    /// The caller's mistake: the last index can't be used, so that there is always a next one.
    #[error("position {pos} is beyond what a log can hold")]
    OutOfRange { pos: LogPos },

    /// The caller's mistake: a committed entry never goes away.
    #[error("asked to truncate the log after {after:?}, below the committed entry {committed}")]
    TruncatesCommitted { after: Option<u64>, committed: LogPos },

    #[error("{what} of {bytes} bytes is over the log's limit of {max}")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        max: usize,
    },

    /// An option that can't work; says which and what would.
    #[error("log option {option}: {problem}")]
    Options { option: &'static str, problem: String },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace;
        }
        Self::Io {
            doing,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn damage(segment: SegmentId, offset: u64, what: impl Into<String>) -> Self {
        Self::Damage {
            segment,
            offset,
            what: what.into(),
        }
    }
}

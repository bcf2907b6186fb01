//! How a log is opened and what opening it found.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::format::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::segment::SegmentId;
use crate::{Error, LogPos};

/// Hears about each batch, for metrics. Called on the writer thread, so it should only count.
pub trait Observer: Send + Sync {
    /// `bytes` were written in `write` and made durable in `sync`; both are zero where a simulation takes the turns.
    fn batch(&self, bytes: u64, write: Duration, sync: Duration) {
        let _ = (bytes, write, sync);
    }
}

/// The observer of those who don't want one.
impl Observer for () {}

#[derive(Clone)]
pub struct Options {
    /// Directory of the segments; created (0700) if missing. One log, nothing else in it.
    pub dir: PathBuf,
    /// Size that segments grow to. The first has 4 MiB and each further one twice its forerunner's, so that an idle
    /// node holds 8 MiB (the one in use and the next), and a busy one soon has few, large segments. Default 64 MiB.
    pub segment_bytes: u64,
    /// Purged segments kept for reuse, on top of the one prepared for what comes next; more are deleted. Default 1.
    pub spare_segments: usize,
    /// Payload bytes of recent entries kept in memory for readers. Entries not yet written are kept on top. Default 8 MiB.
    pub cache_bytes: usize,
    /// Whose log this is, in every segment's header: a number that no other member has, now or later. A log with
    /// another one is refused with [`Error::Owner`]. 0: whoever's it turns out to be. Default 0.
    pub owner: u64,
    /// The last position that the backend has made durable. A log that ends below it was cut where it must not be.
    pub applied: Option<LogPos>,
    /// Prepare segments on a helper thread. Off, the writer thread does it between batches, which makes the order of
    /// all disk calls a function of the calls made: for tests. Default on.
    pub prepare_ahead: bool,
    pub observer: Arc<dyn Observer>,
    /// Called once, on the writer thread, when a write or sync has failed and the log acknowledges nothing more,
    /// before the waiting callers hear of it. The process should end.
    pub on_fatal: Arc<dyn Fn(&Error) + Send + Sync>,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            spare_segments: 1,
            cache_bytes: 8 << 20,
            owner: 0,
            applied: None,
            prepare_ahead: true,
            observer: Arc::new(()),
            on_fatal: Arc::new(|_| {}),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return Err(Error::Options {
                option: "segment_bytes",
                problem: format!(
                    "{} is not within {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX}",
                    self.segment_bytes
                ),
            });
        }
        Ok(())
    }
}

/// What [`crate::Wal::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// As last saved.
    pub vote: Option<Bytes>,
    /// At least every position saved before the last acknowledged operation.
    pub committed: Option<LogPos>,
    /// Everything up to here, inclusive, is gone from the log.
    pub purged: Option<LogPos>,
    /// The last entry, or `purged` where the log holds none.
    pub last: Option<LogPos>,
    /// The log was closed in order.
    pub clean_stop: bool,
    /// A batch that was being written when the power went, and was never acknowledged, was cut off.
    pub torn: Option<Torn>,
}

/// Where and why the end of the log was cut, for a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub segment: SegmentId,
    pub offset: u64,
    pub what: String,
}

//! What goes into the log and how its caller hears back.

use std::fmt;

use bytes::Bytes;

use crate::Error;

/// Position of an entry. Raft's rule is that term and index together name one entry for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    pub term: u64,
    pub index: u64,
}

impl fmt::Display for LogPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

/// One entry; the payload means nothing to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pos: LogPos,
    pub payload: Bytes,
}

/// Runs once: on the writer thread after the sync that covers the operation, or with the error.
///
/// It holds up the batches behind it, so it should hand the news on and return. Only for a log that has been closed
/// does it run on the caller's thread, with [`Error::Closed`].
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

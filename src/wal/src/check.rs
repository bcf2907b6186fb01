//! Looking at a log without opening it, for `quoratectl` and for those who wonder whether a disk lies.

use std::path::Path;

use bytes::Bytes;

use crate::disk::Disk;
use crate::entry::LogPos;
use crate::options::Torn;
use crate::{Error, recover};

/// What a sound log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub segments: usize,
    pub entries: u64,
    pub vote: Option<Bytes>,
    pub committed: Option<LogPos>,
    pub purged: Option<LogPos>,
    pub last: Option<LogPos>,
    pub clean_stop: bool,
    pub torn: Option<Torn>,
}

/// Checks every record of the log in `dir`, and that they make sense together. `None` if there is no log.
///
/// Nothing is changed. No process may be writing to the log meanwhile.
pub fn check(disk: &dyn Disk, dir: &Path, applied: Option<LogPos>) -> Result<Option<Report>, Error> {
    Ok(recover::inspect(disk, dir, applied)?.map(|scan| Report {
        segments: scan.live.len(),
        entries: scan.log.next() - scan.log.first(),
        vote: scan.vote,
        committed: scan.committed,
        purged: scan.log.purged(),
        last: scan.log.last(),
        clean_stop: scan.clean_stop,
        torn: scan.torn,
    }))
}

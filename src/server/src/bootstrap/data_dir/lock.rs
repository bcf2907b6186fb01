//! Locks that end with the process, however it ends.

use super::{Error, private};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

/// The lock file in the log's directory. `--wal-dir` may name the data directory itself, so it has a name of its own.
pub(super) const WAL: &str = "wal.lock";

/// How often a process that waits for a lock says so.
const NOTICE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

/// As etcd does, waits for as long as it takes and says so: the other process is usually the one that is being
/// replaced.
pub(super) fn take(path: &Path, what: &'static str) -> Result<File, Error> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(file.map_err(|error| Error::io("open lock file", path)(error.into()))?);
    private::tighten_file(path)?;
    let mut waited = Duration::ZERO;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(Error::io("lock", path)(error.into())),
        }
        if waited.as_millis().is_multiple_of(NOTICE.as_millis()) {
            warn!(path = %path.display(), "{what} is locked by another process; waiting for it to end");
        }
        std::thread::sleep(POLL);
        waited += POLL;
    }
    if !waited.is_zero() {
        info!(path = %path.display(), waited = ?waited, "{what} is free");
    }
    Ok(file)
}

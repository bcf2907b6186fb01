//! Something made of files, made anew when they change.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Error;

/// How often files are looked at again, at most.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// The newest `T` that its files gave.
pub(super) struct Followed<T> {
    files: Vec<PathBuf>,
    current: ArcSwap<T>,
    check: Mutex<Check>,
}

struct Check {
    last: Instant,
    /// The files that were tried last, whether they worked or not.
    tried: Vec<Option<FileStamp>>,
}

impl<T> Followed<T> {
    /// Builds for the first time; here an error is final.
    pub(super) fn load(files: Vec<PathBuf>, build: impl FnOnce() -> Result<T, Error>) -> Result<Self, Error> {
        // Stamps first: a change while we read is then seen as a change.
        let tried = stamps(&files);
        let first = build()?;
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(first),
            check: Mutex::new(Check {
                last: Instant::now(),
                tried,
            }),
        })
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Whether it is time for [`Self::refresh`].
    pub(super) fn is_due(&self) -> bool {
        self.check
            .try_lock()
            .is_some_and(|check| check.last.elapsed() >= CHECK_INTERVAL)
    }

    /// Looks at the files and builds anew if they changed. Reads files, so not for async threads. `None` when nothing is
    /// new; after an error, which is returned once for each state of the files, the last good one stays in place.
    pub(super) fn refresh(&self, build: impl FnOnce() -> Result<T, Error>) -> Option<Result<(), Error>> {
        // Whoever holds the lock is just doing this.
        let mut check = self.check.try_lock()?;
        let stamps = stamps(&self.files);
        check.last = Instant::now();
        if stamps == check.tried {
            return None;
        }
        check.tried = stamps;
        Some(build().map(|built| self.current.store(Arc::new(built))))
    }
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamps(files: &[PathBuf]) -> Vec<Option<FileStamp>> {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some(FileStamp {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    files.iter().map(stamp).collect()
}

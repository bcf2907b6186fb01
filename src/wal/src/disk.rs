//! The seam to the disk: all that the log asks of a file system, and what it may rely on.
//!
//! [`RealDisk`] is files and `fdatasync`. Behind the feature `testing` there is a faulty twin in memory,
//! and `conformance`, the suite that both pass. The twin's files read, write, resize and sync at any offset, so a
//! page-oriented store can be put on it as well.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
mod faulty;
mod real;

#[cfg(any(test, feature = "testing"))]
pub use faulty::{FaultyDisk, Tear};
pub use real::RealDisk;

/// A file system. Names are paths below some directory that the user of the disk owns alone.
///
/// Creating, renaming and removing take effect at once for this process, and survive power loss once
/// [`sync_dir`](Disk::sync_dir) on the directory has returned `Ok`; before that any first part of them may survive.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes the directory and its parents, readable by the owner only. Fine if it exists.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// File names (not directories) in `dir`, in no order. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file, readable and writable by the owner only; `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading and writing; `NotFound` if there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading alone: whatever is asked of it, the file stays as it is.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Bytes that files in `dir` can still grow by. A hint: others take of it too, and quotas need not be in it.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Replaces `to` if it exists. An open file stays open.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// An open file stays usable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Once this returns `Ok`, every earlier change of names in `dir` survives power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. All calls take offsets, so one handle serves many threads.
pub trait File: fmt::Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Shortens the file, or lengthens it with zeros. Durable after [`sync`](File::sync).
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before that. Sees every earlier write, synced or not.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, lengthening the file where needed. Nothing is durable yet, and power loss
    /// may keep any of the sectors written and lose the others. On error any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Once this returns `Ok`, every earlier write and change of length survives power loss. After an error none of
    /// what was unsynced may ever become durable, even if a later call returns `Ok`: the data has to be written again.
    fn sync(&self) -> io::Result<()>;
}

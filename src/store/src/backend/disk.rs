//! The seam under redb: the file, its checksums, and what happens when the disk is full.
//!
//! ```text
//! redb ── Summed (a CRC for every page) ── Patient (space) ── Disk: FileDisk, or a faulty twin in tests
//! ```
//!
//! redb takes any error of its storage as final: after one it serves nothing more. A full disk must not end that way,
//! so [`Patient`] stands between: it keeps a *reserve* of allocated blocks beside the file, gives it up piece by piece
//! when a write finds no space, and when there is none left holds the write back until there is. Only the backend
//! thread writes, so only that thread waits; Views read on. While the reserve is not whole the backend counts as full,
//! and the store refuses what would make it grow, so that deletes and compaction can use what is left of the reserve.
//! A failed sync is never waited out: it goes up and is final.
//!
//! A file that is made in one go has [`Gathered`] between Patient and Disk, which makes few large writes of many small.

mod file;
mod gathered;
mod layout;
mod summed;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Error;

pub use file::{FileDisk, FilePlace};
pub(super) use gathered::Gathered;
pub(super) use summed::Summed;

/// One growing array of bytes with a reserve of space beside it.
pub trait Disk: std::fmt::Debug + Send + Sync + 'static {
    fn size(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; bytes beyond the end are an error.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Growth reads as zeros. Nothing is durable before the next sync.
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// The same for much that nobody reads soon: it should take no memory of the page cache, nor time of the next sync.
    /// Offset, length, and the data's place in memory are multiples of 4096.
    fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(offset, data)
    }
    /// Once this returns `Ok`, every earlier write and length survives power loss.
    fn sync(&self) -> io::Result<()>;
    /// Bytes of blocks that the array has taken from the disk.
    fn allocated(&self) -> io::Result<u64>;
    /// Blocks set aside now, in bytes.
    fn reserved(&self) -> u64;
    /// Sets aside this many bytes in all; fewer than now gives the rest back to the disk.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
}

/// Where the backend file has its name, and where the one that shall replace it is made.
pub trait Place: std::fmt::Debug + Send + Sync + 'static {
    /// The file that has the name, if there is one. What is left of others is removed.
    fn current(&self) -> Result<Option<Arc<dyn Disk>>, Error>;
    /// An empty file without the name and without a reserve; one at a time.
    fn incoming(&self) -> Result<Arc<dyn Disk>, Error>;
    /// Gives the name, and the reserve, to the last one of [`Place::incoming`], which was synced. Once this returns `Ok`
    /// that survives power loss; after an error, or a crash on the way, the name is the old file's or the new one's.
    fn adopt(&self) -> Result<(), Error>;
    /// Removes what `incoming` made, unless it has the name by now.
    fn discard(&self);
}

/// How things stand with space, shared with the handle.
#[derive(Debug, Default)]
pub(super) struct Space {
    full: AtomicBool,
    stalled: AtomicBool,
    leaving: Mutex<bool>,
    left: Condvar,
}

impl Space {
    /// The reserve is not whole.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// A write waits for space, the reserve is used up.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// From now on a write without space fails instead of waiting.
    pub fn leave(&self) {
        *self.leaving.lock() = true;
        self.left.notify_all();
    }

    fn stay(&self) {
        *self.leaving.lock() = false;
    }
}

/// How often a write without space is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// What a write without space takes from the reserve at once, at least.
const RELEASE_BYTES: u64 = 4 << 20;

/// A disk that waits for space.
#[derive(Clone, Debug)]
pub(super) struct Patient {
    disk: Arc<dyn Disk>,
    space: Arc<Space>,
    reserve_bytes: u64,
}

impl Patient {
    /// Not patient yet: until [`Patient::settle`], a write without space fails once the reserve is used up, so that
    /// opening a file on a full disk says so.
    pub fn new(disk: Arc<dyn Disk>, reserve_bytes: u64) -> Self {
        let space = Arc::new(Space::default());
        space.leave();
        Self {
            disk,
            space,
            reserve_bytes,
        }
    }

    /// From now on a write without space waits for it.
    pub fn settle(&self) {
        self.space.stay();
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Makes the reserve whole again if the disk lets us.
    pub fn replenish(&self) {
        let whole = self.disk.reserved() >= self.reserve_bytes || self.disk.reserve(self.reserve_bytes).is_ok();
        self.space.full.store(!whole, Ordering::Release);
    }

    fn with_space(&self, bytes: u64, mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            match attempt() {
                Err(error) if is_no_space(&error) => {
                    self.space.full.store(true, Ordering::Release);
                    let reserved = self.disk.reserved();
                    if reserved > 0 {
                        self.disk.reserve(reserved.saturating_sub(bytes.max(RELEASE_BYTES)))?;
                        continue;
                    }
                    self.space.stalled.store(true, Ordering::Release);
                    let mut leaving = self.space.leaving.lock();
                    if *leaving {
                        return Err(error);
                    }
                    self.space.left.wait_for(&mut leaving, RETRY);
                }
                result => {
                    self.space.stalled.store(false, Ordering::Release);
                    return result;
                }
            }
        }
    }
}

pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Patient {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_space(0, || self.disk.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_space(data.len() as u64, || self.disk.write(offset, data))
    }
}

//! Room in the log when the disk is full.
//!
//! The log prepares its space ahead. Once it can get no more, what is prepared is all there is, and an entry that does
//! not fit ends the node for good. So commands are refused while there is still room, in two steps: first those that
//! grow the store, later those that make room; the last bytes are for raft itself.

use quorate_store::command::Command;
use quorate_store::validate;
use quorate_wal::Wal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a command or a batch leaves of the log at least.
struct Kept {
    /// When a command is taken in.
    from_command: u64,
    /// When a batch is handed to the log: what was taken in before the disk was full had no limit.
    from_batch: u64,
}

/// Of those that grow the store.
const GROWING: Kept = Kept {
    from_command: 4 << 20,
    from_batch: 3 << 20,
};

/// Of those that make room: deletes, revocations, compaction, alarms. The rest is for blank entries, votes and
/// membership.
const FREEING: Kept = Kept {
    from_command: 2 << 20,
    from_batch: 512 << 10,
};

/// What the log can still take.
pub struct LogSpace {
    grows: Arc<AtomicBool>,
    writable: Box<dyn Fn() -> u64 + Send + Sync>,
    preparing: Box<dyn Fn() -> bool + Send + Sync>,
}

impl LogSpace {
    pub fn of(wal: Wal) -> Self {
        let preparer = wal.clone();
        Self {
            preparing: Box::new(move || preparer.is_preparing()),
            ..Self::new(wal.space(), move || wal.writable_bytes())
        }
    }

    pub(crate) fn new(grows: Arc<AtomicBool>, writable: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            grows,
            writable: Box::new(writable),
            preparing: Box::new(|| false),
        }
    }

    /// For those that have no log.
    pub(crate) fn endless() -> Self {
        Self::new(Arc::new(AtomicBool::new(true)), || u64::MAX)
    }

    /// The log can get more space when it needs some.
    pub fn grows(&self) -> bool {
        self.grows.load(Ordering::Acquire)
    }

    /// Whether it can is about to be known.
    pub fn is_preparing(&self) -> bool {
        (self.preparing)()
    }

    /// No command that grows the store is taken, with `outstanding` bytes on their way into the log already.
    pub fn is_full(&self, outstanding: usize) -> bool {
        !self.grows() && !self.leaves(GROWING.from_command, outstanding)
    }

    /// Room to take a command of `bytes` in.
    pub fn admits(&self, grows_store: bool, bytes: usize, outstanding: usize) -> bool {
        self.grows() || self.leaves(kept(grows_store).from_command, outstanding.saturating_add(bytes))
    }

    /// Room in what is prepared to hand a batch of `bytes` to the log, which may leave up to as much unused at the end of
    /// a segment.
    pub fn has(&self, grows_store: bool, bytes: usize, in_flight: usize) -> bool {
        let bytes = bytes.saturating_mul(2).saturating_add(in_flight);
        self.leaves(kept(grows_store).from_batch, bytes)
    }

    fn leaves(&self, kept: u64, bytes: usize) -> bool {
        (self.writable)() >= kept.saturating_add(bytes as u64)
    }
}

fn kept(grows_store: bool) -> &'static Kept {
    if grows_store { &GROWING } else { &FREEING }
}

/// Whether a command can make the store larger.
pub fn grows_store(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant(_) => true,
        Command::Txn(txn) => validate::txn_cost(txn) > 0,
        _ => false,
    }
}

//! A snapshot on its way in.
//!
//! ```text
//!  pieces ─► Incoming: a new file beside the current one ─► Received: durable, checked, index and tables in memory
//!                                                               │ Applier::install
//!                                                               ▼
//!                              name of the file, then the pointer that all readers follow
//! ```
//!
//! All that can go wrong with a stream goes wrong in [`Incoming`], where it costs nothing but the transfer: the store
//! serves on and has not noticed. What is left for the install is a rename.

use std::sync::Arc;

use bytes::Bytes;

use super::beside::Slot;
use super::indexing::Indexing;
use super::{Restored, Root, Shared, Store};
use crate::backend::{Applied, Backend, Import};
use crate::error::Error;

impl Store {
    /// Begins to receive an image; one at a time. What it costs the store is space on the disk. Does not wait: a
    /// defragmentation that is under way is told to give way, and has done so a little later.
    pub fn receive(&self) -> Result<Incoming, Error> {
        let slot = Slot::for_snapshot(&self.root)?;
        let backend = &self.root.options.backend;
        let disk = self.root.place.incoming()?;
        let indexing = Indexing::default();
        let on_rows = indexing.clone().takes();
        let import = Import::new(disk, backend.cache_bytes, backend.commit_bytes, on_rows)?;
        Ok(Incoming { import, indexing, slot })
    }
}

/// Takes the stream of [`crate::Image::read`]. Dropped, it leaves nothing behind. Its calls write and sync: not for
/// async threads.
pub struct Incoming {
    // Dropped in this order: the file is closed before its name goes.
    import: Import,
    indexing: Indexing,
    slot: Slot,
}

impl Incoming {
    /// The next bytes of the stream, cut anywhere. After an error nothing more is taken.
    pub fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        Ok(self.import.push(bytes)?)
    }

    /// The stream has ended. Checks that it is whole, makes it durable, and brings what the disk then says to memory.
    pub fn finish(self) -> Result<Received, Error> {
        let Self { import, indexing, slot } = self;
        let disk = import.finish()?;
        let index = indexing.finish()?;
        let options = &slot.root.options;
        let opened = Backend::open_aside(disk, options.backend.clone(), slot.root.on_work.clone())?;
        let compaction = slot.root.current.load().compaction.clone();
        let restored = Restored::with(opened, index, options, compaction)?;
        Ok(Received { restored, slot })
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

/// A whole store, ready to take the place of the one it was received for. Dropped, it leaves nothing behind.
pub struct Received {
    restored: Restored,
    slot: Slot,
}

impl Received {
    /// The last entry that is in it.
    pub fn applied(&self) -> Applied {
        self.restored.applied.unwrap_or_default()
    }

    /// What raft had stored as of that entry.
    pub fn raft_membership(&self) -> Option<Bytes> {
        self.restored.membership.clone()
    }

    pub fn revision(&self) -> i64 {
        self.restored.shared.revision()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.restored.shared
    }

    pub(crate) fn is_of(&self, root: &Arc<Root>) -> bool {
        Arc::ptr_eq(&self.slot.root, root)
    }

    /// The file has the name when this returns.
    pub(crate) fn take_place(self) -> Result<Restored, Error> {
        let Self { restored, slot } = self;
        slot.root.place.adopt()?;
        restored.shared.backend.take_over();
        Ok(restored)
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("applied", &self.applied())
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

//! The last durable commit as a whole, for whoever can't be helped with entries of the log.

use std::sync::Arc;

use bytes::Bytes;

use super::{Shared, Store};
use crate::apply::RAFT_MEMBERSHIP_RECORD;
use crate::backend::{self, Applied, SystemTable};
use crate::error::Error;

/// A state of the store that stands still, whatever is applied, compacted or installed meanwhile. Cheap to take and to
/// clone: nothing is copied. While it lives the file can't use the space of what it holds again.
#[derive(Clone)]
pub struct Image {
    image: backend::Image,
    /// The file stays open.
    shared: Arc<Shared>,
}

impl Store {
    /// What is durable at the moment; [`Store::flush`] first makes that everything applied.
    pub fn image(&self) -> Result<Image, Error> {
        loop {
            let shared = self.shared();
            match shared.backend.image() {
                Err(backend::Error::Replaced) => {}
                image => {
                    return Ok(Image { image: image?, shared });
                }
            }
        }
    }
}

impl Image {
    /// The last entry that is in it. None: nothing was ever applied, and there is nothing to send.
    pub fn applied(&self) -> Option<Applied> {
        let facts = self.image.facts();
        (facts.revision > 0).then_some(facts.applied)
    }

    /// What raft had stored with [`crate::Applier::apply_empty`] as of that entry.
    pub fn raft_membership(&self) -> Result<Option<Bytes>, Error> {
        Ok(self.image.system(SystemTable::Cluster, RAFT_MEMBERSHIP_RECORD)?)
    }

    pub fn revision(&self) -> i64 {
        self.image.facts().revision.max(1)
    }

    /// −1: never compacted.
    pub fn compacted(&self) -> i64 {
        if self.image.facts().revision > 0 {
            self.image.facts().compacted
        } else {
            -1
        }
    }

    /// All of it as a stream of pieces of about 256 KiB, to be fed to [`crate::Incoming`] in order. Reads the file: not
    /// to be stepped on an async thread.
    pub fn read(&self) -> Pieces {
        Pieces {
            pieces: self.image.pieces(),
            _shared: self.shared.clone(),
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("applied", &self.applied())
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

/// An image, piece by piece.
pub struct Pieces {
    pieces: backend::Pieces,
    _shared: Arc<Shared>,
}

impl Iterator for Pieces {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.pieces.next()?.map_err(Error::from))
    }
}

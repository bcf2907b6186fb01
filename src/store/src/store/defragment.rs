//! A file without gaps: what compaction, deletes and snapshots have left free goes back to the disk.

use super::Store;
use super::beside::Slot;
use crate::backend;
use crate::error::Error;

impl Store {
    /// Copies what is live to a new file, which then takes the place of the current one. Reads, applies and commits go on
    /// all the while; what it takes is time, and space on the disk for both. A snapshot that comes in goes first, and
    /// brings a new file anyway. One at a time. After an error all is as before, unless the store has failed. Blocks.
    pub fn defragment(&self) -> Result<(), Error> {
        let slot = Slot::for_copy(&self.root)?;
        let disk = slot.root.place.incoming()?;
        let place = slot.root.place.clone();
        let go_on = || match slot.root.beside.is_in_the_way() {
            true => Err(backend::Error::Replaced),
            false => Ok(()),
        };
        let done = self
            .shared()
            .backend
            .defragment(disk, Box::new(move || place.adopt()), &go_on);
        match done {
            Err(backend::Error::Replaced) => Err(Error::GaveWay),
            Err(error) if self.failure().is_none() => Err(Error::NotDefragmented(error)),
            done => Ok(done?),
        }
    }
}

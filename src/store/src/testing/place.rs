//! The faulty twin of the place where the backend file has its name.

use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::{MemDisk, Rng, Survives};
use crate::backend::Error;
use crate::backend::disk::{Disk, Place};

#[derive(Debug, Default)]
struct State {
    current: Option<MemDisk>,
    incoming: Option<MemDisk>,
    /// What the next incoming one is made of.
    next: Option<MemDisk>,
    /// Where in the trace of the incoming file it got the name.
    renamed_at: Option<usize>,
    fail: Option<Fail>,
    /// Incoming ones are made so.
    crashable: bool,
}

/// Where an adoption breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    Rename,
    FolderSync,
}

/// Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct MemPlace(Arc<Mutex<State>>);

impl MemPlace {
    pub fn with(disk: MemDisk) -> Self {
        let place = Self::default();
        place.state().current = Some(disk);
        place
    }

    /// An empty one whose files know at any time what a loss of power would leave.
    pub fn crashable() -> Self {
        let place = Self::default();
        place.state().crashable = true;
        place
    }

    /// The power goes, or, where everything survives, just the process: see [`MemDisk::power_loss`]. A file that was on
    /// its way here is lost.
    pub fn power_loss(&self, survives: Survives, rng: &mut Rng) -> Self {
        let State { current, incoming, .. } = std::mem::take(&mut *self.state());
        if let Some(incoming) = incoming {
            incoming.power_loss(Survives::Nothing, rng);
        }
        let place = Self::crashable();
        place.state().current = current.map(|disk| disk.power_loss(survives, rng));
        place
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// # Panics
    /// If no file has the name yet.
    pub fn disk(&self) -> MemDisk {
        self.state().current.clone().expect("a file that has the name")
    }

    pub fn make_next_of(&self, disk: MemDisk) {
        self.state().next = Some(disk);
    }

    pub fn has_incoming(&self) -> bool {
        self.state().incoming.is_some()
    }

    pub fn renamed_at(&self) -> Option<usize> {
        self.state().renamed_at
    }

    pub fn fail(&self, fail: Fail) {
        self.state().fail = Some(fail);
    }
}

impl Place for MemPlace {
    fn current(&self) -> Result<Option<Arc<dyn Disk>>, Error> {
        let mut state = self.state();
        state.incoming = None;
        Ok(state.current.clone().map(|disk| Arc::new(disk) as _))
    }

    fn incoming(&self) -> Result<Arc<dyn Disk>, Error> {
        let mut state = self.state();
        assert!(state.incoming.is_none(), "one at a time");
        let disk = state.next.take().unwrap_or_else(|| match state.crashable {
            true => MemDisk::crashable(),
            false => MemDisk::default(),
        });
        state.incoming = Some(disk.clone());
        Ok(Arc::new(disk))
    }

    /// Syncs nothing of the file: that is for whoever wrote it.
    fn adopt(&self) -> Result<(), Error> {
        let mut state = self.state();
        let failed = || Error::Disk {
            doing: "name new backend file",
            source: Arc::new(io::Error::from_raw_os_error(5)),
        };
        if state.fail == Some(Fail::Rename) {
            return Err(failed());
        }
        let disk = state.incoming.take().ok_or_else(failed)?;
        state.renamed_at = Some(disk.trace_len());
        state.current = Some(disk);
        if state.fail == Some(Fail::FolderSync) {
            return Err(failed());
        }
        Ok(())
    }

    fn discard(&self) {
        self.state().incoming = None;
    }
}

//! The file that is made beside the current one: one at a time, whether a snapshot that comes in or a copy without gaps.
//! Whoever takes the current one's place holds the [`Slot`], so the two can't get into each other's way.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Root;
use crate::error::Error;

/// What is under way.
#[derive(Debug, Default)]
pub(crate) struct Beside(Mutex<What>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum What {
    #[default]
    Nothing,
    Snapshot,
    Copy,
    /// A snapshot waits for its end.
    CopyInTheWay,
}

impl Beside {
    /// Whether a snapshot wants to come in. It makes a copy of what is there now worthless.
    pub fn is_in_the_way(&self) -> bool {
        *self.0.lock() == What::CopyInTheWay
    }
}

/// Dropping it clears away what there is.
pub(super) struct Slot {
    pub root: Arc<Root>,
}

impl Slot {
    pub fn for_snapshot(root: &Arc<Root>) -> Result<Self, Error> {
        let mut what = root.beside.0.lock();
        match *what {
            What::Nothing => *what = What::Snapshot,
            What::Snapshot => return Err(Error::Receiving),
            What::Copy | What::CopyInTheWay => {
                *what = What::CopyInTheWay;
                return Err(Error::Defragmenting);
            }
        }
        Ok(Self { root: root.clone() })
    }

    pub fn for_copy(root: &Arc<Root>) -> Result<Self, Error> {
        let mut what = root.beside.0.lock();
        match *what {
            What::Nothing => *what = What::Copy,
            What::Snapshot => return Err(Error::GaveWay),
            What::Copy | What::CopyInTheWay => return Err(Error::Defragmenting),
        }
        Ok(Self { root: root.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.root.place.discard();
        *self.root.beside.0.lock() = What::Nothing;
    }
}

//! Who leads, as this member knows it.

use crate::runtime::watch;

/// A leader and its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// `None`: nobody that this member knows of.
    pub leader: Option<u64>,
}

/// Told by consensus, heard by everybody who has something for the leader.
pub type Led = watch::Receiver<Leadership>;

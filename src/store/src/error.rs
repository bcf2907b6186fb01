//! What the store says no with.

use quorate_api::{ClusterId, Code, Error as Answer, Status};

use crate::backend;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An answer of the API: the request can't be done, nothing was changed, all is well.
    #[error(transparent)]
    Refused(#[from] Answer),
    /// The disk failed or its bytes are damaged. In apply this is the end: a member that can't apply must stop.
    #[error("store can't go on: {0}")]
    Backend(#[from] backend::Error),
    #[error("stored {what} of {name} can't be read: damaged, or written by a newer version")]
    Damaged { what: &'static str, name: String },
    /// One range, or all of a transaction, would hold more than its budget.
    #[error("request would hold more than {budget} bytes for its result; ask for fewer keys, or without a sort order")]
    Memory { budget: usize },
    /// Entries come once each and in order.
    #[error("entry {index} does not follow the applied entry {applied}")]
    OutOfOrder { index: u64, applied: u64 },
    /// An image replaces only what is older.
    #[error("the image is of entry {image} and not newer than what is applied, entry {applied}")]
    NotNewer { image: u64, applied: u64 },
    /// Revisions never go back where the log goes on.
    #[error("the image is of revision {image}, this member has {own} at an earlier entry; it came from a wrong peer")]
    Backwards { image: i64, own: i64 },
    #[error("the image is of cluster {image}, this member belongs to {own}; it came from a wrong peer")]
    OtherCluster { image: ClusterId, own: ClusterId },
    #[error("the image was received for another store")]
    OtherStore,
    /// Images come one at a time.
    #[error("another image is being received; finish or drop that one first")]
    Receiving,
    /// A snapshot is on its way in, or wants to be: see [`crate::Store::defragment`].
    #[error("a snapshot comes in from another member, which brings a new file; nothing was defragmented")]
    GaveWay,
    #[error("not defragmented, and all goes on as before: {0}")]
    NotDefragmented(#[source] backend::Error),
    /// One file is made at a time.
    #[error("the file is being defragmented; ask again when that has ended")]
    Defragmenting,
    /// An earlier apply failed half way.
    #[error("store takes no more entries, applying an earlier one failed")]
    Poisoned,
}

impl Error {
    /// One stored thing is bad; everything else can be read.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::Backend(backend::Error::Corrupt { .. }) | Error::Damaged { .. }
        )
    }

    /// What a client is told.
    pub fn status(&self) -> Status {
        match self {
            Error::Refused(answer) => (*answer).into(),
            Error::Memory { .. } => Status::new(Code::ResourceExhausted, self.to_string()),
            Error::Backend(backend::Error::Corrupt { .. })
            | Error::NotDefragmented(backend::Error::Corrupt { .. })
            | Error::Damaged { .. } => Status::new(Code::DataLoss, self.to_string()),
            Error::NotDefragmented(backend::Error::NoSpaceForCopy) => {
                Status::new(Code::ResourceExhausted, self.to_string())
            }
            Error::GaveWay | Error::Defragmenting => Status::new(Code::Unavailable, self.to_string()),
            Error::Backend(_)
            | Error::NotDefragmented(_)
            | Error::OutOfOrder { .. }
            | Error::NotNewer { .. }
            | Error::Backwards { .. }
            | Error::OtherCluster { .. }
            | Error::OtherStore
            | Error::Receiving
            | Error::Poisoned => Status::new(Code::Unknown, self.to_string()),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.status()
    }
}

//! What can go wrong below the store, shaped by what the caller would do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::RowId;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has the file.
    #[error("backend file {} is in use by another process; stop that one first", path.display())]
    InUse { path: PathBuf },
    #[error(
        "backend file has format {found}, this version reads up to {known}: start the version that wrote it, or a newer one"
    )]
    Format { found: u32, known: u32 },
    #[error("the file is no backend file; point the data directory at one, or at an empty place")]
    Foreign,
    #[error("{doing}")]
    Disk {
        doing: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// Bytes are not what was written. Never answered as "not found".
    #[error("backend is damaged: {what}; restore this member from its peers or from a snapshot")]
    Corrupt { what: String },
    #[error("{doing}")]
    Database {
        doing: &'static str,
        #[source]
        source: Arc<redb::Error>,
    },
    /// An earlier commit failed: nothing is made durable any more.
    #[error("backend takes no more writes, an earlier one failed")]
    Poisoned {
        #[source]
        source: Arc<Error>,
    },
    #[error("no space left for the backend file; it goes on by itself once there is some")]
    DiskFull,
    /// The file that the store stands on goes first.
    #[error("no space on the disk for a copy of the backend file beside it; nothing was changed")]
    NoSpaceForCopy,
    /// A snapshot took this file's place.
    #[error("backend file was replaced by a newer one")]
    Replaced,
    /// Bytes that came as an image of a store are none, or not all of one. Nothing of them was used.
    #[error("image can't be used: {what}; nothing of it was applied, let it be sent again")]
    Image { what: String },
    #[error("backend is closed")]
    Closed,
}

impl Error {
    pub(super) fn disk(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Disk {
            doing,
            source: Arc::new(source),
        }
    }

    pub(super) fn database(doing: &'static str) -> impl FnOnce(redb::Error) -> Self {
        move |source| match source {
            redb::Error::Corrupted(what) => Self::Corrupt {
                what: format!("{doing}: {what}"),
            },
            redb::Error::DatabaseClosed => Self::Closed,
            redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => Self::Corrupt {
                what: format!("{doing}: {source}"),
            },
            redb::Error::Io(source) => Self::Disk {
                doing,
                source: Arc::new(source),
            },
            source => Self::Database {
                doing,
                source: Arc::new(source),
            },
        }
    }

    pub(super) fn missing(row: RowId) -> Self {
        Self::Corrupt {
            what: format!("value of revision {}.{} is missing", row.main, row.sub),
        }
    }

    pub(super) fn checksum(row: RowId, table: &'static str) -> Self {
        Self::Corrupt {
            what: format!(
                "checksum of revision {}.{} in table {table} does not match",
                row.main, row.sub
            ),
        }
    }
}

/// For errors of redb's many kinds: `.during("open table")`.
pub(super) trait During<T> {
    fn during(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<redb::Error>> During<T> for Result<T, E> {
    fn during(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::database(doing)(source.into()))
    }
}
